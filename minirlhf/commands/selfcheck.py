"""Is this reward model sound? Eight checks of its plumbing, without a data set.

    python -m minirlhf selfcheck runs/bt-finetune    a run that train.py wrote
    python -m minirlhf selfcheck                     tiny models made on the spot, no download

Accuracy does not tell a bug from hard data: most bugs of reward models still learn something. So
this checks what must hold whatever the data is, each line of the table for the sake of a mistake
that trainers in use have made. Any texts will do for that; they are a few of the bundled ones. How
*good* a model is, its `metrics.json` tells. The run folder is only read; what must be trained is a
new head, and for bt-finetune a copy of the encoder.

Every number is a distance from what it ought to be, and the rule is `number <= limit`. So nan is a
FAIL: broken weights, or a model that gives all texts the same reward. Exit code: 0 if nothing
failed, 1 if something did, 2 for bad input.

What to copy: one function a check, for the tests of any reward model. What is left out: speed,
memory, lower precision; rewards are compared in float32, as scoring computes them.
"""

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn.functional import pad

from minirlhf import data, loops, score
from minirlhf import model as models
from minirlhf.approaches import STEPS
from minirlhf.bundled.arithmetic import generate
from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.device import seed_everything

TRAINED, HELD_OUT = 8, 16  # pairs; few, since an encoder is trained on them
# In standard deviations over the texts. Measured: the order of sums moves a float32 reward by up to
# 2e-6 of one (seven architectures, on a CPU), the pooling of a PAD position by 0.02 to 9.
SAME = 1e-4
SAME_WORDS = "largest difference, in standard deviations over the texts"
Result = tuple[float | None, float, str]  # number (None: it has no meaning here), limit, in words


def padding(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """The same batch with and without more PAD tokens on the right.

    Finds pooling of `hidden[:, -1]`, a PAD token's state (trlx and others; TRL #937, #2758), and an
    encoder that is not given the mask.
    """
    half = scorer.model.info["max_length"] // 2  # of each text, so that there is room for PAD
    rows = [row[:half] for row in rows]
    longer = judge(scorer.model, rows, more=min(half, 32))
    return relative(judge(scorer.model, rows), longer), SAME, SAME_WORDS


def batch_size(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """The same texts one at a time and all at once.

    Finds whatever looks at the neighbours in a batch (last position of the longest text, batch
    normalisation), dropout left on, and results that are not put back in order after a sort.
    """
    alone = judge(scorer.model, rows, at_once=1)
    return relative(alone, judge(scorer.model, rows)), SAME, SAME_WORDS


def order_of_a_pair(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """The margin of (a, b) is minus that of (b, a), and P(a over b) + P(b over a) is 1.

    Finds a pair classifier that learned which side comes first: fed with (chosen, rejected, 1), one
    on plain concatenation learns to say 1.
    """
    inputs, part = read(scorer.model, rows), data.index_texts(pairs)[2][0]
    back = part._replace(chosen=part.rejected, rejected=part.chosen)
    margins, minus = (loops.evaluate(scorer.model, inputs, p)[1] for p in (part, back))
    ask, worst = scorer.probability, relative(-minus, margins)
    for prompt, a, b, *_ in pairs[:4]:
        worst = max(worst, abs(ask(prompt, a, b) + ask(prompt, b, a) - 1))
    return worst, SAME, "largest |margin(a, b) + margin(b, a)|, in standard deviations"


def loss_at_start(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """A new head prefers nothing: the first loss is ln 2 = 0.6931, whatever the encoder.

    Finds a head that starts with opinions or is not new, and in the loss a margin nobody asked for,
    a sum in place of a mean, or (N, 1) against (N,).
    """
    if scorer.approach == "regression":
        return None, 0.0, "a squared error starts at the ratings' variance, not at ln 2"
    # The step without its loop, which points bt-finetune's head before it trains.
    new = fresh(scorer.model)
    part = data.Part(*(t.to(new.device) for t in data.index_texts(pairs)[2][0]))
    loss = STEPS[scorer.approach](new, read(new, rows), part)[0].item()
    return abs(loss - math.log(2)), 1e-5, f"|loss - ln 2|; the loss is {loss:.6f}"


def one_batch_overfits(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """A new head learns one batch by heart: loss near 0 (a regression's starts at 1), all right.

    Finds a loss that cannot fall (a sigmoid before Bradley-Terry holds it above 0.3133), a gradient
    that does not arrive, and chosen mixed up with rejected.
    """
    new = fresh(scorer.model)
    for row in overfit(new, rows, pairs):
        number = max(row["train_loss"], 1 - row["train_accuracy"])
        if number <= 0.05:
            break
    twins = zip(new.encoder.parameters(), scorer.model.encoder.parameters(), strict=True)
    if scorer.approach == "bt-finetune" and all(torch.equal(*twin) for twin in twins):
        return math.nan, 0.05, "the encoder did not move"
    words = f"loss in step {row['epoch']}, {row['train_accuracy']:.0%} of {TRAINED} pairs right"
    return number, 0.05, words


def shuffled_labels(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """Trained on sides drawn by lot, a model judges other pairs no better than a coin.

    Finds what raises accuracy without the labels: a head that sees that chosen comes first, an
    evaluation that reads training pairs, sides that are sorted again after the lot.

    One lot may by luck agree with the truth, most of all on an encoder that was trained to see it.
    So a second model is trained with every side turned round: the first one's mirror image, right
    where that is wrong. The mean of the two is 0.5 with no luck in it; a leak brings both near 1.
    """
    pairs, rows = choose(scorer.model, TRAINED + HELD_OUT)
    _, _, (train, held_out) = data.index_texts(pairs[:TRAINED], pairs[TRAINED:])
    lot = torch.rand(TRAINED, generator=torch.Generator().manual_seed(0)) < 0.5
    inputs, found = read(scorer.model, rows), []
    for swap in (lot, ~lot):
        chosen = torch.where(swap, train.rejected, train.chosen)
        drawn = train._replace(chosen=chosen, rejected=train.chosen + train.rejected - chosen)
        # The last epoch's number: the best epoch's would be chosen with the true labels.
        *_, row = fit(fresh(scorer.model), inputs, drawn, held_out)
        found.append(row["validation_accuracy"])
    words = f"|mean accuracy - 0.5|; they are {found[0]:.2f} and, turned round, {found[1]:.2f}"
    return abs(sum(found) / 2 - 0.5), 0.1, words


def save_and_load(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """Saved and loaded again, the rewards are equal bit for bit.

    Finds a head or a buffer that is not saved and comes back newly drawn (TRL #1379).
    """
    with tempfile.TemporaryDirectory() as folder:
        models.save(scorer.model, Path(folder) / "model")
        loaded = score.load(folder, str(scorer.model.device)).model
        difference = judge(scorer.model, rows) - judge(loaded, rows)
    return difference.abs().max().item(), 0.0, "largest difference"


def training_is_scoring(scorer: score.Scorer, pairs: list, rows: list) -> Result:
    """The reward of training is the reward of scoring, for texts that are too long as well.

    Finds a template, special tokens or a truncation that differ between the two (OpenRLHF's server;
    RewardBench #94, #164), and a sigmoid on what is returned.
    """
    limit = scorer.model.info["max_length"]
    a, b, *others = pairs  # one with long answers, one with a long question
    long_answers = a._replace(chosen=f"{a.chosen} " * limit, rejected=f"{a.rejected} " * limit)
    cases = [long_answers, b._replace(prompt=f"{b.prompt} " * limit), *others]
    prompts, responses, (part,) = data.index_texts(cases)  # from here on as train.py does it
    rows, cut = scorer.model.encode(prompts, responses)
    _, margins, rewards = loops.evaluate(scorer.model, read(scorer.model, rows), part)
    expected = torch.sigmoid(margins / scorer.model.info["temperature"])
    got = torch.tensor([scorer.probability(*case[:3]) for case in cases])
    worst = (got - expected).abs().max().item()
    if rewards is not None:
        got = torch.tensor(scorer.score_many(prompts, responses))[torch.stack(part[:2], dim=1)]
        worst = max(relative(got, rewards), worst)
    return worst, SAME, f"the same, and of probabilities; {cut} of {len(rows)} texts are cut"


CHECKS = (padding, batch_size, order_of_a_pair, loss_at_start, one_batch_overfits, shuffled_labels)
CHECKS += (save_and_load, training_is_scoring)


@torch.no_grad()
def judge(model: models.RewardModel, rows: Sequence, more: int = 0, at_once: int = 10**9) -> Tensor:
    """A number a text, (N,): its reward, or a classification's logit against the text before it.

    more: columns of PAD to add to each batch; at_once: padded tokens in a batch, 1 for single rows.
    """
    pairwise = model.info["approach"] == "classification"

    def function(ids: Tensor, mask: Tensor) -> Tensor:
        ids, mask = pad(ids, (0, more), value=model.pad_id), pad(mask, (0, more))
        return model.vectors(ids, mask) if pairwise else model(ids, mask)

    found = model.map(function, rows, budget=at_once)
    return (model.head(found, found.roll(1, dims=0)) if pairwise else found).cpu()


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference in standard deviations of `b`; nan if all of `b` are the same."""
    return ((a - b).abs().max() / b.std()).item() if b.std() else math.nan


@torch.no_grad()
def read(model: models.RewardModel, rows: Sequence):
    """What the loops take: the token rows, or features (U, D) where the encoder is frozen."""
    if model.info["approach"] == "bt-finetune":
        return rows
    return model.map(model.vectors, rows)


def fresh(model: models.RewardModel) -> models.RewardModel:
    """The same encoder (a copy of it if it will be trained) with a new head."""
    seed_everything(0)
    encoder, info = model.encoder, model.info
    if info["approach"] == "bt-finetune":
        encoder = copy.deepcopy(encoder)
    head = models.HEADS[info["approach"]](info["size"]).to(model.device)
    return models.RewardModel(encoder, model.tokenizer, head, dict(info)).eval()


def fit(model: models.RewardModel, inputs, train: data.Part, held_out: data.Part, **settings):
    """Train with the library's own loops, on settings for a few pairs; their row an epoch."""
    tuned = model.info["approach"] == "bt-finetune"
    args = {"epochs": 3 if tuned else 20, "batch_size": 4, "lr": 1e-3 if tuned else 1e-2, "seed": 0}
    args |= {"accumulate": 1, "warmup": 0.0, "clip": 1.0, "dropout": 0.0, "weight_decay": 0.0}
    args = SimpleNamespace(**(args | {"patience": 10**6} | settings))
    return (loops.fit_finetune if tuned else loops.fit_frozen)(model, inputs, train, held_out, args)


def overfit(model: models.RewardModel, rows: list, pairs: list) -> Iterator[dict]:
    """Train on all pairs in one batch, a step an epoch."""
    part = data.index_texts(pairs)[2][0]
    return fit(model, read(model, rows), part, part, epochs=60, batch_size=len(pairs))


def choose(model: models.RewardModel, count: int) -> tuple[list[data.PreferencePair], list]:
    """Bundled pairs, one a prompt, no two texts alike even as tokens; and the texts' token rows.

    The ratings are 1 and -1, so that a regression starts at a loss of 1 and turned labels mirror
    it. Raises ValueError if the model keeps so few tokens that the texts are alike.
    """
    limit, pairs, rows, seen = model.info["max_length"], [], [], set()
    for pair in data.build_pairs(generate(300))[0]:
        texts = [pair.prompt] * 2, [pair.chosen, pair.rejected]
        two, _ = model.encode(*texts)
        new = {pair.prompt, *map(bytes, two)}
        if len(new - seen) == 3:
            pairs.append(pair._replace(chosen_rating=1.0, rejected_rating=-1.0))
            rows, seen = rows + two, seen | new
        if len(pairs) == count:
            return pairs, rows
    raise ValueError(f"cut to {limit} tokens, the texts to check with are too much alike")


def make_tiny_run(approach: str, folder: Path) -> None:
    """A run folder without a download: a random BERT of two layers and its tokenizer, trained."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers import models as token_models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    seed_everything(0)
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["[PAD]"], show_progress=False)
    tokenizer.train_from_iterator([row["chosen"] + row["prompt"] for row in generate(100)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=600, intermediate_size=64, max_position_embeddings=128, **size)
    for part in (BertModel(config), tokenizer):
        part.save_pretrained(folder / "tiny")
    model = models.build(approach, str(folder / "tiny"), max_length=96)
    pairs, rows = choose(model, TRAINED)
    part = data.index_texts(pairs)[2][0]
    list(fit(model, read(model, rows), part, part))  # so that the rewards are not all zero
    models.save(model, folder / "model")


def print_table(scorer: score.Scorer, pairs: list, rows: list) -> int:
    """Run and print the checks, each line as soon as it is known; how many failed."""
    failed = 0
    for function in CHECKS:
        try:
            number, limit, words = function(scorer, pairs, rows)
        except Exception as error:  # whatever a broken model raises is a finding
            number, limit, words = math.nan, 0.0, f"stopped by {error!r}"[:200]
        verdict = "-" if number is None else "PASS" if number <= limit else "FAIL"
        failed += verdict == "FAIL"
        values = "" if number is None else f"{number:8.1e} <= {limit:g}"
        name = function.__name__.replace("_", " ")
        print(f"  {verdict:4}  {name:19}  {values:18}  {words}", flush=True)
    return failed


def main(argv: Sequence[str] | None = None) -> None:
    """Check a run, or tiny models of all approaches, and print a table of each."""
    parser = command("selfcheck", "Check a reward model's plumbing.")
    parser.add_argument("run", nargs="?", help="a run folder (default: tiny models, made here)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args(argv)
    from transformers.utils import logging

    logging.disable_progress_bar()
    failed = 0
    for name in STEPS if args.run is None else [args.run]:
        with one_line(parser), tempfile.TemporaryDirectory() as folder:
            if args.run is None:
                make_tiny_run(name, Path(folder))
            scorer = score.load(args.run or folder, args.device)
            pairs, rows = choose(scorer.model, TRAINED)
            print(name if args.run else f"tiny model, {name}")
            failed += print_table(scorer, pairs, rows)
    print(f"{failed} failed; selfcheck.py says what each finds" if failed else "nothing failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
