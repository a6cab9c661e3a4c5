"""Is this reward model sound? Eight checks of its plumbing, without a data set.

    python -m minirlhf selfcheck runs/bt-finetune    a run that train.py wrote
    python -m minirlhf selfcheck                     tiny models made on the spot, no download

Accuracy cannot tell a bug from hard data, because a reward model with a bug usually still learns
something. So these checks look at what must hold whatever the data are. Each was written for a
mistake that trainers in use have made, and its docstring names it. Any texts will do for that; they
are a few of the bundled ones. How good a model is, its `metrics.json` tells.

The run folder is only read. Where something must be trained, it is a new head, and for bt-finetune
a copy of the encoder.

The number of a check is a distance from what ought to be, and the check is passed if the number is
not above its limit. So NaN is a FAIL: the weights are broken, or the model gives the same reward to
all texts. Exit code: 0 if nothing failed, 1 if something did, or 2 for bad input.

What to copy: the check functions, for the tests of any reward model. What is left out: speed,
memory and lower precision. Rewards are compared in float32, as scoring computes them.
"""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from minirlhf import data, loops, score
from minirlhf import model as models
from minirlhf.approaches import STEPS
from minirlhf.bundled.arithmetic import generate
from minirlhf.model import RewardModel
from minirlhf.runtime.command_line import command, one_line, quiet_transformers
from minirlhf.runtime.device import seed_everything
from minirlhf.score import Scorer
from minirlhf.settings import APPROACHES, FINETUNE, FROZEN, Settings

TRAINED = 8  # pairs to train on; few, because an encoder may be trained on them
HELD_OUT = 16  # pairs to judge a trained model on

# In standard deviations over the texts. Measured on seven architectures on a CPU: another order of
# sums moves a float32 reward by up to 2e-6 of one, the pooling of a PAD position by 0.02 to 9.
SAME = 1e-4
SAME_WORDS = "largest difference, in standard deviations over the texts"

# For learning a few pairs by heart in a few seconds. Patience is out of the way.
NEVER = 10**6
FINETUNE_FEW = replace(
    FINETUNE,
    epochs=3,
    batch_size=4,
    lr=1e-3,
    warmup=0.0,
    weight_decay=0.0,
    patience=NEVER,
)
FROZEN_FEW = replace(FROZEN, epochs=20, batch_size=4, lr=1e-2, weight_decay=0.0, patience=NEVER)


class Sample(NamedTuple):
    """The texts that a model is checked with."""

    pairs: list[data.PreferencePair]  # B
    token_rows: list  # 2B, in the order of `data.number_texts`: all chosen, then all rejected


class Finding(NamedTuple):
    """What a check found."""

    number: float | None  # how far it is from what it ought to be; None: it has no meaning here
    limit: float
    words: str  # what the number is

    @property
    def verdict(self) -> str:
        if self.number is None:
            return "-"
        return "PASS" if self.number <= self.limit else "FAIL"


# ---- the checks


def padding(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """More PAD tokens on the right of a batch change no reward.

    Finds pooling of `hidden[:, -1]`, which is the state of a PAD token (trlx and others; TRL #937,
    #2758), and an encoder that is not given the mask.
    """
    half = scorer.model.info["max_length"] // 2
    shortened = [ids[:half] for ids in token_rows]  # so that there is room for PAD
    plain = judge(scorer.model, shortened)
    padded = judge(scorer.model, shortened, more_pad=min(half, 32))
    return Finding(relative(plain, padded), SAME, SAME_WORDS)


def batch_size(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """A text gets the same reward alone and in a batch with all the others.

    Finds whatever looks at the neighbours in a batch, such as pooling at the last position of the
    longest text or batch normalisation. Also finds dropout that was left on, and results that were
    not put back in order after a sort by length.
    """
    alone = judge(scorer.model, token_rows, one_by_one=True)
    together = judge(scorer.model, token_rows)
    return Finding(relative(alone, together), SAME, SAME_WORDS)


def order_of_a_pair(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """The margin of (a, b) is minus that of (b, a), and P(a over b) + P(b over a) is 1.

    Finds a classifier of pairs that learned which side comes first. One that concatenates the two,
    and is only ever fed with (chosen, rejected, 1), learns to say 1.
    """
    inputs = as_inputs(scorer.model, token_rows)
    part = as_part(pairs)
    turned = part._replace(chosen=part.rejected, rejected=part.chosen)
    margins = evaluate(scorer.model, inputs, part).margins  # (B,)
    turned_margins = evaluate(scorer.model, inputs, turned).margins  # (B,)

    worst = relative(-turned_margins, margins)
    for pair in pairs[:4]:
        one_way = scorer.probability(pair.prompt, pair.chosen, pair.rejected)
        other_way = scorer.probability(pair.prompt, pair.rejected, pair.chosen)
        worst = max(worst, abs(one_way + other_way - 1))
    words = "largest |margin(a, b) + margin(b, a)|, in standard deviations"
    return Finding(worst, SAME, words)


def loss_at_start(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """A new head prefers nothing: the first loss is ln 2 = 0.6931, whatever the encoder.

    Finds a head that is not new or starts with opinions, and three bugs of the loss: a margin that
    nobody asked for, a sum in place of a mean, and (N, 1) against (N,).
    """
    if scorer.approach == "regression":
        words = "a squared error starts at the ratings' variance, not at ln 2"
        return Finding(None, 0.0, words)
    # The step without its loop, because that of bt-finetune points the head before it trains.
    step = STEPS[scorer.approach]
    model = with_new_head(scorer.model)
    part = as_part(pairs).to(model.device)
    loss = step(model, as_inputs(model, token_rows), part).loss.item()
    return Finding(abs(loss - math.log(2)), 1e-5, f"|loss - ln 2|; the loss is {loss:.6f}")


def one_batch_overfits(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """A new head learns one batch by heart: the loss falls to 0, and all pairs are right.

    Finds a loss that cannot fall (a sigmoid before Bradley-Terry holds it above 0.3133), a gradient
    that does not arrive, and chosen mixed up with rejected.
    """
    limit = 0.05  # the loss starts at ln 2, that of a regression at 1
    model = with_new_head(scorer.model)
    for epoch in overfit(model, pairs, token_rows):
        worse = max(epoch["train_loss"], 1 - epoch["train_accuracy"])
        if worse <= limit:
            break

    if scorer.approach == "bt-finetune" and same_weights(model.encoder, scorer.model.encoder):
        return Finding(math.nan, limit, "the encoder did not move")
    right = f"{epoch['train_accuracy']:.0%} of {TRAINED} pairs right"
    return Finding(worse, limit, f"loss in step {epoch['epoch']}, {right}")


def shuffled_labels(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """Trained on sides drawn by lot, a model judges other pairs no better than a coin.

    Finds what raises accuracy without the labels: a head that sees that chosen comes first, an
    evaluation that reads training pairs, and sides that are sorted again after the lot.

    One lot may agree with the truth by luck, most of all on an encoder that was trained to see it.
    So a second model is trained with every side turned round. It is the mirror image of the first,
    right where that is wrong, and the mean of the two accuracies is 0.5 with no luck in it. A leak
    brings both near 1.
    """
    sample = choose(scorer.model, TRAINED + HELD_OUT)
    train_pairs = sample.pairs[:TRAINED]
    other_pairs = sample.pairs[TRAINED:]
    texts = data.number_texts(sample.pairs)
    train = data.make_part(train_pairs, texts)
    held_out = data.make_part(other_pairs, texts)
    inputs = as_inputs(scorer.model, sample.token_rows)

    generator = torch.Generator().manual_seed(0)
    lot = torch.rand(TRAINED, generator=generator) < 0.5  # (B,)
    accuracy = accuracy_after_training(scorer.model, inputs, swap_sides(train, lot), held_out)
    turned = accuracy_after_training(scorer.model, inputs, swap_sides(train, ~lot), held_out)
    words = f"|mean accuracy - 0.5|; they are {accuracy:.2f} and, turned round, {turned:.2f}"
    return Finding(abs((accuracy + turned) / 2 - 0.5), 0.1, words)


def save_and_load(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """Saved and loaded again, the model gives rewards that are equal bit for bit.

    Finds a head or a buffer that is not saved, and so comes back newly drawn (TRL #1379).
    """
    with tempfile.TemporaryDirectory() as folder:
        models.save(scorer.model, Path(folder) / "model")
        loaded = score.load(folder, str(scorer.model.device))
        difference = judge(scorer.model, token_rows) - judge(loaded.model, token_rows)
    return Finding(difference.abs().max().item(), 0.0, "largest difference")


def training_is_scoring(scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """The reward of training is the reward of scoring, for texts that are too long as well.

    Finds a template, special tokens or a truncation that differ between the two (OpenRLHF's server;
    RewardBench #94, #164), and a sigmoid on what is returned.
    """
    cases = with_long_texts(pairs, scorer.model.info["max_length"])

    # As train.py does it:
    texts = data.number_texts(cases)
    part = data.make_part(cases, texts)
    encoded = scorer.model.encode(texts.prompts, texts.responses)
    judged = evaluate(scorer.model, as_inputs(scorer.model, encoded.token_rows), part)
    expected = torch.sigmoid(judged.margins / scorer.model.info["temperature"])  # (B,)

    # As a user does it:
    probabilities = [
        scorer.probability(pair.prompt, pair.chosen, pair.rejected) for pair in cases
    ]
    worst = (torch.tensor(probabilities) - expected).abs().max().item()
    if judged.rewards is not None:
        rewards = torch.tensor(scorer.score_many(texts.prompts, texts.responses))  # (U,)
        scored = torch.stack([rewards[part.chosen], rewards[part.rejected]], dim=1)  # (B, 2)
        worst = max(relative(scored, judged.rewards), worst)

    cut = f"{encoded.cut} of {len(encoded.token_rows)} texts are cut"
    return Finding(worst, SAME, f"the same, and of probabilities; {cut}")


CHECKS = (
    padding,
    batch_size,
    order_of_a_pair,
    loss_at_start,
    one_batch_overfits,
    shuffled_labels,
    save_and_load,
    training_is_scoring,
)


# ---- texts to check with


def choose(model: RewardModel, count: int) -> Sample:
    """The first bundled pairs such that no two prompts and no two texts are alike.

    Texts count as alike if they are the same tokens, so it depends on the model. The ratings become
    1 and -1: then the loss of a regression starts at 1, and turning the sides round mirrors it.
    Raises ValueError if the model keeps so few tokens that there are not enough such pairs.
    """
    pairs = []
    chosen_rows = []
    rejected_rows = []
    seen = set()
    candidates, report = data.build_pairs(generate(300))
    for pair in candidates:
        encoded = model.encode([pair.prompt, pair.prompt], [pair.chosen, pair.rejected])
        chosen, rejected = encoded.token_rows
        new = {pair.prompt, tuple(chosen), tuple(rejected)} - seen
        if len(new) == 3:
            seen |= new
            pairs.append(pair._replace(chosen_rating=1.0, rejected_rating=-1.0))
            chosen_rows.append(chosen)
            rejected_rows.append(rejected)
        if len(pairs) == count:
            return Sample(pairs, chosen_rows + rejected_rows)
    limit = model.info["max_length"]
    raise ValueError(f"cut to {limit} tokens, the texts to check with are too much alike")


def as_part(pairs: Sequence[data.PreferencePair]) -> data.Part:
    """The pairs as tensors."""
    return data.make_part(pairs, data.number_texts(pairs))


def swap_sides(part: data.Part, swap: Tensor) -> data.Part:
    """The pairs with chosen and rejected exchanged where `swap` (B,) is true."""
    chosen = torch.where(swap, part.rejected, part.chosen)
    rejected = torch.where(swap, part.chosen, part.rejected)
    return part._replace(chosen=chosen, rejected=rejected)


def with_long_texts(
    pairs: Sequence[data.PreferencePair], limit: int
) -> list[data.PreferencePair]:
    """The pairs, the first one with long answers and the second one with a long question.

    limit: how many tokens the model reads; the long texts have more.
    """
    first, second = pairs[:2]
    long_answers = first._replace(
        chosen=f"{first.chosen} " * limit, rejected=f"{first.rejected} " * limit
    )
    long_question = second._replace(prompt=f"{second.prompt} " * limit)
    return [long_answers, long_question, *pairs[2:]]


# ---- what a model says


@torch.no_grad()
def judge(
    model: RewardModel, token_rows: Sequence, more_pad: int = 0, one_by_one: bool = False
) -> Tensor:
    """A number for each text, (U,): its reward, or for a classification a logit.

    The logit is that of preferring the text to the one before it.
    more_pad: columns of PAD to add to each batch, as far as the model can read them.
    one_by_one: give the texts to the model one at a time, and not all at once.
    """
    compares = model.info["approach"] == "classification"

    def with_more_pad(ids: Tensor, mask: Tensor) -> Tensor:
        room = model.info["max_length"] - ids.shape[1]  # the encoder may not read more
        extra = max(0, min(more_pad, room))
        ids = pad(ids, (0, extra), value=model.pad_id)  # (N, T + extra)
        mask = pad(mask, (0, extra))
        return model.embed(ids, mask) if compares else model(ids, mask)

    tokens_at_once = 1 if one_by_one else 10**9
    found = model.in_batches(with_more_pad, token_rows, tokens_at_once)  # (U, D) or (U,)
    if compares:
        found = model.head(found, found.roll(1, dims=0))  # (U,)
    return found.cpu()


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference in standard deviations of `b`; nan if all of `b` are the same."""
    deviation = b.std()
    if deviation == 0:
        return math.nan
    return ((a - b).abs().max() / deviation).item()


@torch.no_grad()
def as_inputs(model: RewardModel, token_rows: Sequence) -> Sequence | Tensor:
    """What the loops take: token rows, or vectors (U, D) where the encoder is frozen."""
    if model.info["approach"] == "bt-finetune":
        return token_rows
    return model.vectors(token_rows)


def evaluate(model: RewardModel, inputs, part: data.Part) -> loops.Evaluation:
    """Judge the pairs as the training loop of the model's approach does; inputs: of `as_inputs`."""
    if model.info["approach"] == "bt-finetune":
        return loops.evaluate_texts(model, inputs, part)
    return loops.evaluate(model, inputs, part)


# ---- training


def with_new_head(model: RewardModel) -> RewardModel:
    """The same encoder, or a copy of it if it will be trained, with a new head."""
    seed_everything(0)
    encoder = model.encoder
    if model.info["approach"] == "bt-finetune":
        encoder = copy.deepcopy(encoder)
    head = models.HEADS[model.info["approach"]](model.info["size"]).to(model.device)
    return RewardModel(encoder, model.tokenizer, head, dict(model.info)).eval()


def settings_for_few(approach: str) -> Settings:
    """The settings with which an approach learns a few pairs."""
    return FINETUNE_FEW if approach == "bt-finetune" else FROZEN_FEW


def fit(
    model: RewardModel, inputs, train: data.Part, held_out: data.Part, settings: Settings
) -> Iterator[dict]:
    """Train with the library's own loops; the numbers of each epoch. inputs: of `as_inputs`."""
    if model.info["approach"] == "bt-finetune":
        return loops.fit_finetune(model, inputs, train, held_out, settings)
    return loops.fit_frozen(model, inputs, train, held_out, settings)


def overfit(model: RewardModel, pairs: list, token_rows: list) -> Iterator[dict]:
    """Train on all pairs in one batch; an epoch is one step."""
    settings = settings_for_few(model.info["approach"])
    settings = replace(settings, epochs=60, batch_size=len(pairs))
    part = as_part(pairs)
    return fit(model, as_inputs(model, token_rows), part, part, settings)


def accuracy_after_training(
    model: RewardModel, inputs, train: data.Part, held_out: data.Part
) -> float:
    """The accuracy on `held_out` of a new head that was trained on `train`.

    It is that of the last epoch. The best epoch would be chosen by the true labels of `held_out`.
    """
    settings = settings_for_few(model.info["approach"])
    history = list(fit(with_new_head(model), inputs, train, held_out, settings))
    return history[-1]["validation_accuracy"]


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two modules of one architecture have the same parameters."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


# ---- tiny models


def make_tiny_run(approach: str, folder: Path) -> None:
    """Write a run folder without a download: a random BERT of two layers, trained for a moment."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers
    from tokenizers import models as token_models
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    seed_everything(0)
    tokenizer = Tokenizer(token_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["[PAD]"], show_progress=False)
    tokenizer.train_from_iterator(
        [row["chosen"] + row["prompt"] for row in generate(100)], trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    config = BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")

    model = models.build(approach, str(folder / "tiny"), max_length=96)
    sample = choose(model, TRAINED)
    part = as_part(sample.pairs)
    inputs = as_inputs(model, sample.token_rows)
    for _ in fit(model, inputs, part, part, settings_for_few(approach)):
        pass  # trained only so that the rewards are not all zero
    models.save(model, folder / "model")


# ---- the command


def run_check(check: Callable, scorer: Scorer, pairs: list, token_rows: list) -> Finding:
    """Run a check. Whatever error a broken model raises in it is a finding, too."""
    try:
        return check(scorer, pairs, token_rows)
    except Exception as error:
        return Finding(math.nan, 0.0, f"stopped by {error!r}"[:200])


def print_table(scorer: Scorer, pairs: list, token_rows: list) -> int:
    """Run and print the checks, each line as soon as it is known; how many failed."""
    failed = 0
    for check in CHECKS:
        finding = run_check(check, scorer, pairs, token_rows)
        if finding.verdict == "FAIL":
            failed += 1
        name = check.__name__.replace("_", " ")
        numbers = ""
        if finding.number is not None:
            numbers = f"{finding.number:8.1e} <= {finding.limit:g}"
        print(f"  {finding.verdict:4}  {name:19}  {numbers:18}  {finding.words}", flush=True)
    return failed


def check_run(run: str, device: str, title: str) -> int:
    """Load a run, and print the title and the table of its checks; how many failed."""
    scorer = score.load(run, device)
    sample = choose(scorer.model, TRAINED)
    print(title)
    return print_table(scorer, sample.pairs, sample.token_rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Check a run, or tiny models of all approaches, and print a table of each."""
    parser = command("selfcheck", "Check a reward model's plumbing.")
    parser.add_argument("run", nargs="?", help="a run folder (default: tiny models, made here)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or mps (default: auto)"
    )
    args = parser.parse_args(argv)

    quiet_transformers()
    failed = 0
    with one_line(parser):
        if args.run is not None:
            failed = check_run(args.run, args.device, title=args.run)
        else:
            for approach in APPROACHES:
                with tempfile.TemporaryDirectory() as folder:
                    make_tiny_run(approach, Path(folder))
                    failed += check_run(folder, args.device, title=f"tiny model, {approach}")
    print(f"{failed} failed; selfcheck.py says what each finds" if failed else "nothing failed")
    raise SystemExit(1 if failed else 0)
