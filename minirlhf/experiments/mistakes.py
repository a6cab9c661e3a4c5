"""What do common mistakes in reward modelling cost? Mend them one by one and measure.

    python -m minirlhf mistakes --seeds 3 --output mistakes.json

The first row of the table is the recipe of a public notebook, rebuilt: minirlhf's bt-finetune with
eight mistakes planted in it. Each mistake is a few lines below and says what its mend is. Every
further row of the table mends one more of them, and those above it stay mended. In the last row
nothing is planted: it is minirlhf itself. The columns are

    claimed         the accuracy that the recipe of this row reports, counted in its own way on its
                    own test part
    true            the accuracy of the same model on untouched prompts, which no row trains on and
                    no row uses to choose an epoch. They are the same pairs in all rows, and a tie
                    counts one half.
    gain            `true` minus the `true` of the row above, on the same pairs
    claimed - true  by how much the recipe deceives itself
    caught by       the line of `selfcheck`, or the test, that finds such a bug

There are two kinds of mistakes, and each has its own column to look at. The first five belong to
the model and cost accuracy, so mending one should raise `true`. The last three belong to the
evaluation and cost honesty, so mending one should bring `claimed - true` closer to 0.

Each of `--seeds N` repeats everything: it draws other pairs and other untouched prompts, and trains
other models. All numbers are means over the seeds with a 95 % t interval: the spread between the
seeds holds the chance of the data, of the training and of the prompts that were tested. With one
seed, the default, there is no such spread. The intervals of `true` and `gain` then come from
resampling prompts, leave out the chance of training, and are too narrow for a claim about the
mistake; the other columns have none. If the interval of `gain` contains 0, the bug was not shown to
do harm in this order and on this data.

All rows of a seed learn from the same pairs of the bundled data. Up to six of these pairs share a
prompt and its four answers, and this is what a split by row leaks. Every row keeps a tenth of the
pairs for validation, even where the recipe never looks at it, so that all rows train on about as
many pairs. All texts are cut to 64 tokens, question included, so that it matters from which end
they are cut. The last row differs from a plain `python train.py` in the length, the number of
epochs, the patience and the number of pairs, and it uses all layers of the encoder. Rows that only
change the evaluation share one training. One seed took 17 minutes on two CPU cores that multiply
bfloat16 natively, beside other jobs.

What was measured, and what we make of it, is in minirlhf/experiments/README.md.

What to copy: `planted`, to make sure that a check of yours finds the bug it is meant for. Left out
are bugs of the data, such as wrong labels, and that the notebook pads every text to 512 tokens,
which costs time and nothing else.
"""

import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from minirlhf import data, heads, loops, pooling, tokens
from minirlhf import model as models
from minirlhf.bundled.arithmetic import generate
from minirlhf.metrics import Interval, bootstrap, credit, named
from minirlhf.report import figures
from minirlhf.report.tables import interval, table_head, table_row
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line, quiet_transformers
from minirlhf.runtime.device import pick_device, seed_everything
from minirlhf.settings import FINETUNE, Settings

HERE = sys.modules[__name__]  # this module, because some bugs replace a name in it
UNTOUCHED = 1200  # pairs to measure the truth on, from another seed of the generator
# The patience is out of the way, so that `--epochs` alone says how long a row trains.
SETTINGS = replace(FINETUNE, depth=1.0, max_length=64, patience=10**6)


# ---- The eight bugs. The table BUGS below says what each of them replaces.
def last_position(hidden: Tensor, mask: Tensor) -> Tensor:
    """Pool the state at the last position: (N, T, D), (N, T) -> (N, D).

    For every text but the longest of its batch this is the state of a PAD token.
    Mend: `pooling.mean_pool`, which reads the mask.
    """
    return hidden[:, -1].float()


def as_they_come(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of 32 texts in the order they come, each padded to its longest text.

    As long as poolers read the mask, this is only slow. Together with `last_position` it makes a
    reward depend on the texts beside it.
    Mend: `tokens.length_batches`, which puts texts of like length together.
    """
    indices = list(range(len(lengths)))
    return [indices[start : start + 32] for start in range(0, len(indices), 32)]


def squashed(head: heads.LinearHead, vector: Tensor) -> Tensor:
    """A reward between 0 and 1: (N, D) -> (N,).

    The margin then stays between -1 and 1, and the loss of a pair above 0.3133.
    Mend: `heads.LinearHead`, which returns the raw score. Bradley-Terry has a sigmoid of its own.
    """
    return head.output(vector.float()).squeeze(-1).sigmoid()


# The rate with which the encoder was pretrained. The two texts of a pair are read under different
# masks, and their difference is noisy. Mend: a dropout of 0, the default.
DROPOUT = 0.1


def cut_the_end(
    prompts: Sequence[str], responses: Sequence[str], tokenizer, max_length: int
) -> tokens.Encoded:
    """Cut texts that are too long from the right, where the result of the answer stands.

    Mend: `tokens.encode`, which cuts from the left, so that the question goes first.
    """
    pairs = zip(prompts, responses, strict=True)
    texts = [tokens.render(prompt, response, tokenizer) for prompt, response in pairs]
    whole = tokenizer(texts, verbose=False)["input_ids"]
    cut = sum(len(ids) > max_length for ids in whole)

    tokenizer.truncation_side = "right"
    token_rows = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return tokens.Encoded(token_rows, cut)


def random_head(model: models.RewardModel, token_rows: Sequence, train: data.Part) -> None:
    """Start the head with the random weights of `nn.Linear`.

    This is a habit rather than a bug: at first the encoder is taught to show something random.
    Mend: `loops.start_head`, which points the head from the rejected to the chosen.
    """
    model.head.output.reset_parameters()


def split_by_row(
    pairs: Sequence[data.PreferencePair], fold: int = 0
) -> tuple[list[data.PreferencePair], list[data.PreferencePair], list[data.PreferencePair]]:
    """70, 10 and 20 % of the pairs, drawn at random.

    Most prompts of the test part then have other pairs in training.
    Mend: `data.split`, which goes by the prompt's hash.
    """
    shuffled = random.Random(fold).sample(list(pairs), len(pairs))
    train_end = round(0.7 * len(pairs))
    validation_end = round(0.8 * len(pairs))
    train = shuffled[:train_end]
    validation = shuffled[train_end:validation_end]
    test = shuffled[validation_end:]
    return train, validation, test


def mean_of_batch_means(margins: Tensor) -> float:
    """An accuracy in which a small last batch counts as much as a full one: (N,) -> float.

    It also counts a tie as right. Mend: `accuracy`.
    """
    batches = margins.split(64)
    batch_means = [(batch >= 0).float().mean().item() for batch in batches]
    return sum(batch_means) / len(batch_means)


def accuracy(margins: Tensor) -> float:
    """The mean over pairs, with one half for a tie, as `metrics.py` counts: (N,) -> float."""
    return credit(margins).mean().item()


class Epoch(NamedTuple):
    """What a recipe knows after an epoch."""

    epoch: int
    best: bool  # whether its calibrated loss on validation is the lowest so far
    train_accuracy: float
    test_margins: Tensor  # (N,) on the recipe's own test part
    weights: dict[str, Tensor]  # those that learn


def best_on_test(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest accuracy on the test part itself. Mend: `best_on_validation`."""
    return max(epochs, key=lambda epoch: accuracy(epoch.test_margins))


def best_on_validation(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch that `loops.fit_finetune` keeps: the lowest calibrated loss on validation."""
    return [epoch for epoch in epochs if epoch.best][-1]


class Replacement(NamedTuple):
    """A name in the library, and what a bug puts in its place."""

    owner: object  # a module, a class or a dict
    name: str
    wrong: object


class Bug(NamedTuple):
    """A mistake: what it is called, what mends it, what it replaces, and what finds it."""

    name: str
    mend: str
    replaced: tuple[Replacement, ...]
    caught_by: str  # "selfcheck: LINE" or "FILE::TEST"
    in_training: bool = (
        True  # False if it only changes the evaluation, so that no training is due
    )


BUGS = (
    Bug(
        name="PAD pooled",
        mend="pool from the mask, not `hidden[:, -1]`",
        replaced=(
            Replacement(pooling.POOLERS, "mean", last_position),
            Replacement(tokens, "length_batches", as_they_come),
        ),
        caught_by="selfcheck: padding",
    ),
    Bug(
        name="sigmoid",
        mend="no sigmoid before Bradley-Terry",
        replaced=(Replacement(heads.LinearHead, "forward", squashed),),
        caught_by="selfcheck: one batch overfits",
    ),
    Bug(
        name="dropout",
        mend="dropout off",
        replaced=(Replacement(HERE, "SETTINGS", replace(SETTINGS, dropout=DROPOUT)),),
        caught_by="tests/test_loops.py::test_dropout_is_off_in_training_unless_asked_for",
    ),
    Bug(
        name="end cut off",
        mend="cut the question, not the end of the answer",
        replaced=(Replacement(tokens, "encode", cut_the_end),),
        caught_by="tests/test_tokens.py::test_truncation_cuts_the_question_first_and_keeps_the_end",
    ),
    Bug(
        name="random head",
        mend="point the head before the encoder moves",
        replaced=(Replacement(loops, "start_head", random_head),),
        caught_by="tests/test_loops.py"
        "::test_fine_tuning_starts_with_a_head_that_points_to_the_chosen",
    ),
    Bug(
        name="split by row",
        mend="split by prompt, not by row",
        replaced=(Replacement(data, "split", split_by_row),),
        caught_by="tests/test_data.py"
        "::test_split_is_by_prompt_stable_and_every_prompt_is_tested_once",
    ),
    Bug(
        name="batch means",
        mend="mean over pairs, ties one half",
        replaced=(Replacement(HERE, "accuracy", mean_of_batch_means),),
        caught_by="tests/test_metrics.py::test_the_accuracy_of_a_part_is_no_mean_of_batch_means",
        in_training=False,
    ),
    Bug(
        name="chosen on test",
        mend="choose the epoch on validation, not on test",
        replaced=(Replacement(HERE, "best_on_validation", best_on_test),),
        caught_by="tests/experiments/test_mistakes.py"
        "::test_the_test_part_does_not_choose_the_epoch",
        in_training=False,
    ),
)


@contextmanager
def planted(bugs: Sequence[Bug]) -> Iterator[None]:
    """Within the block minirlhf has these bugs; after it, none of them."""
    replacements = [replacement for bug in bugs for replacement in bug.replaced]
    with ExitStack() as stack:
        for one in replacements:
            if isinstance(one.owner, dict):
                patched = patch.dict(one.owner, {one.name: one.wrong})
            else:
                patched = patch.object(one.owner, one.name, one.wrong)
            stack.enter_context(patched)
        yield


# ---- The experiment
@dataclass
class Training:
    """One training by the library's own loop, and what it takes to judge its epochs."""

    model: models.RewardModel
    dtype: torch.dtype  # in which the encoder computes
    token_rows: Sequence  # U of them
    untouched: data.Part
    epochs: list[Epoch]
    pairs: int  # in training
    test_pairs: int
    cut: float  # share of the texts that were too long
    leaked: float  # share of the test pairs whose prompt is in training, too

    def judge(self, epoch: Epoch) -> Tensor:
        """The margins (N,) of the untouched pairs, with the weights of this epoch."""
        self.model.load_state_dict(epoch.weights, strict=False)
        worker = self.model.in_precision(self.dtype)
        return loops.evaluate_texts(worker, self.token_rows, self.untouched).margins


def train(
    pool: Sequence[data.PreferencePair],
    untouched: Sequence[data.PreferencePair],
    settings: Settings,
) -> Training:
    """Split the pool, train on its training part, and look at its test part after each epoch."""
    where = pick_device(settings.device)
    seed_everything(settings.seed)
    train_pairs, validation_pairs, test_pairs = data.split(pool)
    model = models.build(
        "bt-finetune",
        settings.model,
        max_length=settings.max_length,
        attention=where.attention,
        device=where.device,
    )

    texts = data.number_texts(train_pairs, validation_pairs, test_pairs, untouched)
    token_rows, cut = model.encode(texts.prompts, texts.responses)
    train_part = data.make_part(train_pairs, texts)
    validation_part = data.make_part(validation_pairs, texts)
    test_part = data.make_part(test_pairs, texts)

    epochs = []
    for record in loops.fit_finetune(
        model, token_rows, train_part, validation_part, settings, dtype=where.dtype
    ):
        worker = model.in_precision(where.dtype)
        epoch = Epoch(
            epoch=record["epoch"],
            best=record["best"],
            train_accuracy=record["train_accuracy"],
            test_margins=loops.evaluate_texts(worker, token_rows, test_part).margins,
            weights=learned_weights(model),
        )
        epochs.append(epoch)

    return Training(
        model=model,
        dtype=where.dtype,
        token_rows=token_rows,
        untouched=data.make_part(untouched, texts),
        epochs=epochs,
        pairs=len(train_pairs),
        test_pairs=len(test_pairs),
        cut=cut / len(token_rows),
        leaked=torch.isin(test_part.prompt, train_part.prompt).float().mean().item(),
    )


def learned_weights(model: models.RewardModel) -> dict[str, Tensor]:
    """A copy of the weights that learn. The word embeddings, half of a small encoder, do not."""
    weights = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weights[name] = weight.detach().clone()
    return weights


class Material(NamedTuple):
    """The pairs of one seed."""

    seed: int
    pool: list[data.PreferencePair]  # to learn from, to choose by and to claim on
    untouched: list[data.PreferencePair]  # to measure the truth on


def make_material(pairs: int, seed: int) -> Material:
    """Draw `pairs` rows for the pool, and UNTOUCHED others, less those with prompts of the pool."""
    pool = make_pairs(pairs, seed)
    seen = {data.normalize(pair.prompt) for pair in pool}
    fresh = make_pairs(UNTOUCHED, 10**6 + seed)
    untouched = [pair for pair in fresh if data.normalize(pair.prompt) not in seen]
    return Material(seed, pool, untouched)


class Outcome(NamedTuple):
    """What a recipe gives with one seed."""

    seed: int
    claimed: float
    right: Tensor  # (N,) the credit of each untouched pair
    prompts: list[str]  # (N,)
    epoch: int  # the one that the recipe keeps
    train_accuracy: float
    training: Training

    @property
    def true(self) -> float:
        """The accuracy on the untouched pairs."""
        return self.right.double().mean().item()


def measure(pairs: int, epochs: int, seeds: int, model: str, device: str) -> Iterator[dict]:
    """Give one table row at a time: first the recipe with all bugs, then a row for each mend.

    pairs: how many to learn from; seeds: how often everything is repeated. Raises ValueError if the
    model or the device cannot be had, or if the pairs are too few to split.
    """
    materials = [make_material(pairs, seed) for seed in range(seeds)]
    trainings: dict[int, Training] = {}  # the last one of each seed
    above: list[Outcome] = []  # those of the row above

    for mends in range(len(BUGS) + 1):  # how many bugs are mended in this row
        start = time.perf_counter()
        mended = BUGS[mends - 1] if mends > 0 else None
        outcomes = []
        with planted(BUGS[mends:]):
            for material in materials:
                seed = material.seed
                if mended is None or mended.in_training:
                    settings = replace(
                        SETTINGS, epochs=epochs, seed=seed, model=model, device=device
                    )
                    trainings[seed] = train(material.pool, material.untouched, settings)
                outcomes.append(follow_recipe(trainings[seed], material))

        measured = summarize(mended, outcomes, above)
        measured["seconds"] = time.perf_counter() - start
        yield measured
        above = outcomes


def follow_recipe(training: Training, material: Material) -> Outcome:
    """Choose an epoch and claim an accuracy as the recipe does, whatever is planted in it.

    The truth is counted in the same way in all rows.
    """
    kept = best_on_validation(training.epochs)
    return Outcome(
        seed=material.seed,
        claimed=accuracy(kept.test_margins),
        right=credit(training.judge(kept)),
        prompts=[pair.prompt for pair in material.untouched],
        epoch=kept.epoch,
        train_accuracy=kept.train_accuracy,
        training=training,
    )


def summarize(mended: Bug | None, outcomes: list[Outcome], above: list[Outcome]) -> dict:
    """A table row: means over the seeds with their intervals, and the numbers of each seed.

    outcomes, above: of this row and of the row above, one for each seed; `above` is empty in the
        first row, which has no `gain` and no `overclaim_change`.
    """
    claimed = [outcome.claimed for outcome in outcomes]
    true = [outcome.true for outcome in outcomes]
    overclaim = differences(claimed, true)
    measured = {
        "name": mended.name if mended else "all eight",
        "mended": mended.mend if mended else "nothing yet: the notebook's recipe",
        "caught_by": mended.caught_by if mended else None,
        **over_seeds("claimed", claimed),
        **over_seeds("true", true),
        **over_seeds("overclaim", overclaim),
    }
    if above:
        true_above = [outcome.true for outcome in above]
        overclaim_above = differences([outcome.claimed for outcome in above], true_above)
        measured.update(over_seeds("gain", differences(true, true_above)))
        measured.update(over_seeds("overclaim_change", differences(overclaim, overclaim_above)))

    if len(outcomes) == 1:  # the prompts are all that can be resampled
        right = outcomes[0].right
        prompts = outcomes[0].prompts
        measured.update(named("true", bootstrap(right, prompts, ends=(0, 1))))
        if above:
            measured.update(
                named("gain", bootstrap(right - above[0].right, prompts, ends=(-1, 1)))
            )

    measured["by_seed"] = [numbers_of(outcome) for outcome in outcomes]
    return measured


def differences(ones: Sequence[float], others: Sequence[float]) -> list[float]:
    """One minus the other, seed by seed."""
    return [one - other for one, other in zip(ones, others, strict=True)]


# By the number of seeds, the 97.5 % quantile of Student's t with one degree of freedom less.
T_QUANTILES = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean of a number over the seeds with its 95 % t interval, as three named numbers.

    The seeds share nothing, so their values are independent draws. One seed has no interval.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {name: mean}
    standard_error = statistics.stdev(values) / math.sqrt(len(values))
    reach = T_QUANTILES[len(values)] * standard_error
    return named(name, Interval(mean, mean - reach, mean + reach))


def numbers_of(outcome: Outcome) -> dict:
    """The numbers of one seed, as the file of results has them."""
    training = outcome.training
    return {
        "seed": outcome.seed,
        "claimed": outcome.claimed,
        "true": outcome.true,
        "pairs": training.pairs,
        "test_pairs": training.test_pairs,
        "cut": training.cut,
        "leaked": training.leaked,
        "epoch": outcome.epoch,
        "train_accuracy": outcome.train_accuracy,
    }


def make_pairs(count: int, seed: int) -> list[data.PreferencePair]:
    """The pairs among `count` generated rows in which one answer is better than the other."""
    pairs, _ = data.build_pairs(generate(count, seed=seed))
    return data.usable(pairs)


# ---- The table and the picture
HEAD = table_head(
    [
        "mended in this row",
        "claimed",
        "true [95 %]",
        "gain [95 %]",
        "claimed - true",
        "caught by",
    ]
)


def show(measured: dict) -> str:
    """What `measure` gives, as a line of the Markdown table."""
    cells = [
        measured["mended"],
        f"{measured['claimed']:.3f}",
        interval(measured, "true"),
        interval(measured, "gain", "+z.3f"),
        interval(measured, "overclaim", "+z.3f"),
        measured["caught_by"] or "–",
    ]
    return table_row(cells)


def draw(path: Path, table_rows: list[dict]) -> None:
    """Claimed and true accuracy of each table row side by side, the first row on top.

    Look at the distance between the two large marks of a row: by so much its recipe deceives
    itself. Then follow the blue marks down: they show what the mends were worth. The large marks
    are means over the seeds, the small ones are the seeds, and the lines are the 95 % intervals.
    """
    names = [f"− {line['name']}" for line in table_rows]
    names[0] = table_rows[0]["name"]  # nothing is taken away yet
    title = "One bug fewer in each row"
    height = 1.4 + 0.4 * len(table_rows)
    with figures.picture(path, title, "accuracy", "", height=height) as (axes,):
        axes.set_yticks(range(len(table_rows)), names)
        axes.set_ylim(len(table_rows) - 0.4, -0.6)
        draw_marks(axes, table_rows, "claimed", -0.16, figures.RED, "s")
        draw_marks(axes, table_rows, "true", 0.16, figures.BLUE, "o")
        axes.axvline(0.5, color="gray", linestyle=":", label="a coin", zorder=1)


def draw_marks(
    axes, table_rows: list[dict], key: str, offset: float, color: str, marker: str
) -> None:
    """The number `key` of each table row with its interval and its seeds, moved by `offset`."""
    for place, line in enumerate(table_rows):
        y = place + offset
        if f"{key}_low" in line:
            ends = [line[f"{key}_low"], line[f"{key}_high"]]
            axes.plot(ends, [y, y], "-", color=color, marker="")
        seeds = [one[key] for one in line["by_seed"]]
        axes.plot(seeds, [y] * len(seeds), marker, color=color, markersize=3, alpha=0.5)
    places = [place + offset for place in range(len(table_rows))]
    means = [line[key] for line in table_rows]
    axes.plot(means, places, marker, color=color, label=key)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, each row as soon as it is known."""
    parser = command("mistakes", "Mend one bug a row.")
    add = parser.add_argument
    add(
        "--pairs",
        type=int,
        default=1500,
        metavar="N",
        help="to learn from (default: %(default)s)",
    )
    add("--epochs", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="of data and training (default: 1)",
    )
    add("--model", default=FINETUNE.model, help="an encoder (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--output", metavar="FILE", help="write the rows as JSON, too (default: do not)")
    args = parser.parse_args(argv)
    quiet_transformers()
    start = time.perf_counter()
    table_rows = []
    with one_line(parser):
        if args.pairs < 100 or args.epochs < 1:
            raise ValueError("--pairs must be 100 or more, and --epochs 1 or more")
        if args.seeds != 1 and args.seeds not in T_QUANTILES:
            raise ValueError(f"--seeds must be 1 to {max(T_QUANTILES)}")
        if args.output and not Path(args.output).parent.is_dir():
            raise ValueError(f"no folder to write {args.output} into")

        for measured in measure(args.pairs, args.epochs, args.seeds, args.model, args.device):
            if not table_rows:
                print(HEAD)  # only now, since bad input ends without a table
            print(show(measured), flush=True)
            table_rows.append(measured)

        seconds = time.perf_counter() - start
        if args.output:
            found = {"arguments": vars(args), "seconds": seconds, "rows": table_rows}
            checkpoint.write_json(Path(args.output), found)
    print(f"\n{seconds:.0f} seconds")
