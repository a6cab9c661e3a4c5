"""From a coin-flip to honest, one bug at a time: what common mistakes of reward models really cost.

    python -m minirlhf mistakes --output mistakes.json

The first row of the table is the recipe of a public notebook, rebuilt: minirlhf's bt-finetune with
eight mistakes planted, each a few lines below, beside its mend. Each further row mends one more
of them, and those above it stay mended; the last row has nothing planted: it is minirlhf.

    claimed    the accuracy that the row's recipe reports: counted its way, on its own test part
    true       the same model's on prompts that no row trains on or chooses by, the same in all
               rows; ties one half; 95 % interval from drawing prompts again and again
    gain       true minus the true of the row above, paired, with its interval
    caught by  the line of `selfcheck`, or the test, that finds such a bug

Two kinds of bug, two ways to read. A bug of the model (the first five) costs accuracy: its mend
should raise `true`. A bug of the evaluation (the last three) costs honesty: its mend should bring
`claimed` closer to `true`. A mend is worth what its row says and no more.
If the interval of `gain` holds 0, the bug was not shown to do harm: in this order, on these data,
with this seed. The intervals are about prompts only; another `--seed` trains other models and moves
all numbers. `claimed` has none, since a recipe gives none; on 300 pairs it strays by six points.

All rows learn from the same pairs of the bundled data, of which up to six share a prompt and its
four answers: that is what a split by row leaks. All keep a tenth for validation, also where nobody
looks at it, so that all train on about as many. All cut texts to 64 tokens, question included, so
that it matters at which end; this, the batch, the epochs, the patience and the number of pairs are
where the last row is not `python train.py`. Rows that change the evaluation only share one
training.

Measured with the defaults, on a CPU with native bfloat16: the five mends of the model raised `true`
from 0.510 to 0.655: the sigmoid (+0.065), the pooling (+0.062) and the random head (+0.043).
Dropout and the side of the cut showed no harm here (the question is needed, too). Split by row, the
recipe claimed 0.815 where 0.655 was true; by prompt, 0.607. The look at the test part was worth
0.106 of claim; without it the few validation pairs chose the first epoch, which cost 0.068 of
truth: epochs are chosen well by a validation part that is large enough.

What to copy: `planted`, to see that a check of yours finds what it is for. What is left out: bugs
of the data, such as wrong labels, and the notebook's one pass over each text at 512 tokens, which
costs time and nothing else.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from minirlhf import data, heads, loops, pooling, tokens
from minirlhf import model as models
from minirlhf.approaches import Options
from minirlhf.bundled.arithmetic import generate
from minirlhf.metrics import bootstrap, credit, named
from minirlhf.report import figures
from minirlhf.report.words import interval, table_head, table_row
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.device import pick_device, seed_everything

HERE = sys.modules[__name__]
UNTOUCHED = 1200  # pairs to measure the truth on, from another seed of the generator
# train.py's for bt-finetune, but for the smaller batches (few pairs, so that there are more steps)
# and the length. Patience is out of the way: the number of epochs is `--epochs`.
SETTINGS = {"batch_size": 16, "accumulate": 1, "lr": 1e-4, "weight_decay": 0.01, "warmup": 0.1}
SETTINGS |= {"clip": 1.0, "dropout": 0.0, "patience": 10**6, "max_length": 64}


# ---- The bugs. What each replaces is in BUGS, below.
def last_position(hidden: Tensor, mask: Tensor) -> Tensor:
    """(N, T, D), (N, T) -> (N, D): a PAD token's state for all texts but the longest.

    Mend: `pooling.mean_pool`, which reads the mask.
    """
    return hidden[:, -1].float()


def as_they_come(function: Callable, rows: Sequence, pad_id: int, device="cpu", **_) -> Tensor:
    """`tokens.map_rows` without its order: 32 texts at once, padded to the longest: (N,) or (N, D).

    No bug while poolers read the mask, only slow; with `last_position` the reward depends on the
    neighbours. Mend: texts of like length together, so that there is little padding.
    """
    batches = [tokens.pad(rows[i : i + 32], pad_id) for i in range(0, len(rows), 32)]
    return torch.cat([function(ids.to(device), mask.to(device)) for ids, mask in batches])


def squashed(head: heads.LinearHead, vector: Tensor) -> Tensor:
    """(N, D) -> (N,) within (0, 1), so the margin stays within (-1, 1) and the loss above 0.3133.

    Mend: `heads.LinearHead`, which returns the raw score; Bradley-Terry has its own sigmoid.
    """
    return head.output(vector.float()).squeeze(-1).sigmoid()


DROPOUT = 0.1  # as the encoder was pretrained: two masks in a pair. Mend: `--dropout 0`


def cut_the_end(prompts: Sequence[str], responses: Sequence[str], tokenizer, max_length: int):
    """Token rows as `tokens.encode` gives them, cut from the right: the result is lost.

    Mend: `tokens.encode` cuts from the left, the question first.
    """
    texts = [tokens.render(*pair, tokenizer) for pair in zip(prompts, responses, strict=True)]
    whole = tokenizer(texts, verbose=False)["input_ids"]
    tokenizer.truncation_side = "right"
    rows = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    return rows, sum(len(row) > max_length for row in whole)


def random_head(model: models.RewardModel, *_) -> None:
    """`nn.Linear`'s own start: the head asks the encoder for something drawn by lot.

    No bug but a habit. Mend: `loops.start_head`, which points it from the rejected to the chosen.
    """
    model.head.output.reset_parameters()


def split_by_row(pairs: Sequence[data.PreferencePair], fold: int = 0) -> tuple[list, list, list]:
    """70, 10 and 20 % of the rows, by lot: other pairs of most test prompts are in training.

    Mend: `data.split`, by the prompt's hash.
    """
    rows = random.Random(fold).sample(list(pairs), len(pairs))
    a, b = round(0.7 * len(rows)), round(0.8 * len(rows))
    return rows[:a], rows[a:b], rows[b:]


def mean_of_batch_means(margins: Tensor) -> float:
    """(N,) -> accuracy, in which a small last batch counts as a full one and a tie as right.

    Mend: `accuracy`.
    """
    batches = margins.split(64)
    return sum((batch >= 0).float().mean().item() for batch in batches) / len(batches)


def accuracy(margins: Tensor) -> float:
    """(N,) -> the mean over pairs, ties one half, as `metrics` counts."""
    return credit(margins).mean().item()


def best_on_test(epochs: list[dict]) -> dict:
    """The epoch that looks best on the test part itself. Mend: `best_on_validation`."""
    return max(epochs, key=lambda epoch: accuracy(epoch["test_margins"]))


def best_on_validation(epochs: list[dict]) -> dict:
    """The epoch that `loops.fit_finetune` keeps: the lowest calibrated loss on validation."""
    return [epoch for epoch in epochs if epoch["best"]][-1]


class Bug(NamedTuple):
    """A mistake: its short name, what its mend is, what to replace by what, and what finds it."""

    name: str
    mend: str
    replaced: tuple[tuple, ...]  # (module, class or dict; name in it; what is there instead)
    caught_by: str  # "selfcheck: LINE" or "FILE::TEST"
    in_training: bool = True  # False: only the evaluation changes, so nothing is trained again


BUGS = (
    Bug("PAD pooled", "pool from the mask, not `hidden[:, -1]`",
        ((pooling.POOLERS, "mean", last_position), (tokens, "map_rows", as_they_come)),
        "selfcheck: padding"),
    Bug("sigmoid", "no sigmoid before Bradley-Terry",
        ((heads.LinearHead, "forward", squashed),), "selfcheck: one batch overfits"),
    Bug("dropout", "dropout off", ((SETTINGS, "dropout", DROPOUT),),
        "tests/test_model.py::test_dropout_is_off_in_training_unless_asked_for"),
    Bug("end cut off", "cut the question, not the end of the answer",
        ((tokens, "encode", cut_the_end),),
        "tests/test_tokens.py::test_truncation_cuts_the_question_first_and_keeps_the_end"),
    Bug("random head", "point the head before the encoder moves",
        ((loops, "start_head", random_head),),
        "tests/test_model.py::test_fine_tuning_starts_with_a_head_that_points_to_the_chosen"),
    Bug("split by row", "split by prompt, not by row", ((data, "split", split_by_row),),
        "tests/test_data.py::test_split_is_by_prompt_stable_and_every_prompt_is_tested_once"),
    Bug("batch means", "mean over pairs, ties one half", ((HERE, "accuracy", mean_of_batch_means),),
        "tests/test_metrics.py::test_the_accuracy_of_a_part_is_no_mean_of_batch_means", False),
    Bug("chosen on test", "choose the epoch on validation, not on test",
        ((HERE, "best_on_validation", best_on_test),),
        "tests/experiments/test_mistakes.py::test_the_test_part_does_not_choose_the_epoch", False),
)  # fmt: skip


@contextmanager
def planted(bugs: Sequence[Bug]) -> Iterator[None]:
    """Within the block minirlhf has these bugs; after it, none."""
    with ExitStack() as stack:
        for owner, name, wrong in (one for bug in bugs for one in bug.replaced):
            if isinstance(owner, dict):
                stack.enter_context(patch.dict(owner, {name: wrong}))
            else:
                stack.enter_context(patch.object(owner, name, wrong))
        yield


def train(pool: list, untouched: list, args: argparse.Namespace) -> tuple[dict, Callable]:
    """One training by the library's own loop: (what it was, judge).

    What it was: `pairs` in training and in test, `leaked` (share of the test pairs whose prompt is
    in training), share of texts `cut`, and `epochs`, the loop's rows with the weights and the
    margins (N,) on the recipe's own test part. `judge(epoch)` gives the margins of the untouched.
    """
    device, dtype, attention, _ = pick_device(args.device)
    seed_everything(args.seed)
    parts = data.split(pool)
    model = models.build("bt-finetune", args.model, None, SETTINGS["max_length"], attention, device)
    prompts, responses, (learned, validation, test, held_out) = data.index_texts(*parts, untouched)
    rows, cut = model.encode(prompts, responses)
    about = {"pairs": len(learned.prompt), "test_pairs": len(test.prompt), "cut": cut / len(rows)}
    about["leaked"] = torch.isin(test.prompt, learned.prompt).float().mean().item()
    about["epochs"] = epochs = []
    settings = SimpleNamespace(**SETTINGS, epochs=args.epochs, seed=args.seed)
    for row in loops.fit_finetune(model, rows, learned, validation, settings, Options(dtype=dtype)):
        row["weights"] = {name: value.clone() for name, value in model.state_dict().items()}
        row["test_margins"] = loops.evaluate(model.in_precision(dtype), rows, test)[1]
        epochs.append(row)

    def judge(epoch: dict) -> Tensor:
        model.load_state_dict(epoch["weights"])
        return loops.evaluate(model.in_precision(dtype), rows, held_out)[1]

    return about, judge


def measure(args: argparse.Namespace) -> Iterator[dict]:
    """A row of the table at a time: the ancestor, then a row for each mend.

    args: `pairs`, `epochs`, `seed`, `model` and `device`. Raises ValueError for what cannot be.
    """
    pool = data.usable(data.build_pairs(generate(args.pairs, seed=args.seed))[0])
    seen = {data.normalize(pair.prompt) for pair in pool}
    fresh = data.usable(data.build_pairs(generate(UNTOUCHED, seed=10**6 + args.seed))[0])
    untouched = [pair for pair in fresh if data.normalize(pair.prompt) not in seen]
    prompts, before, trained = [pair.prompt for pair in untouched], None, None
    for i in range(len(BUGS) + 1):
        start, mended = time.perf_counter(), BUGS[i - 1] if i else None
        with planted(BUGS[i:]):
            if mended is None or mended.in_training:
                trained = train(pool, untouched, args)
            about, judge = trained
            kept = best_on_validation(about["epochs"])
            right = credit(judge(kept))  # (N,) counted as it should be, in every row
            row = {"name": mended.name if mended else "all eight"}
            row |= {"mended": mended.mend if mended else "nothing yet: the notebook's recipe"}
            row |= {"claimed": accuracy(kept["test_margins"])}
        row |= named("true", bootstrap(right, prompts))
        row |= named("gain", bootstrap(right - before, prompts)) if mended else {}
        row |= {key: value for key, value in about.items() if key != "epochs"}
        row |= {"epoch": kept["epoch"], "train_accuracy": kept["train_accuracy"]}
        row |= {"caught_by": mended.caught_by if mended else None}
        yield row | {"seconds": time.perf_counter() - start}
        before = right


HEAD = table_head(["mended in this row", "claimed", "true [95 %]", "gain [95 %]", "caught by"])


def show(row: dict) -> str:
    """A row of `measure` as a row of the Markdown table."""
    cells = [interval(row, "claimed"), interval(row, "true"), interval(row, "gain", "+z.3f")]
    return table_row([row["mended"], *cells, row["caught_by"] or "–"])


def draw(path: Path, rows: list[dict]) -> None:
    """Claimed and true accuracy of each row of `measure` side by side, the first row on top.

    Look at the distance between the two marks of a row: it is what the recipe deceives itself by.
    Then follow the blue marks down: they are what the mends were worth. The lines are the 95 %
    intervals over prompts.
    """
    names = [row["name"] if i == 0 else f"− {row['name']}" for i, row in enumerate(rows)]
    title, places = "One bug fewer in each row", range(len(rows))
    with figures.picture(path, title, "accuracy", "", height=1.4 + 0.4 * len(rows)) as (axes,):
        axes.set_yticks(places, names)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        low, high = ([row[f"true_{end}"] for row in rows] for end in ("low", "high"))
        axes.plot([low, high], [[y + 0.12 for y in places]] * 2, "-", color=figures.BLUE, marker="")
        claimed, true = ([row[key] for row in rows] for key in ("claimed", "true"))
        axes.plot(claimed, [y - 0.12 for y in places], "s", color=figures.RED, label="claimed")
        axes.plot(true, [y + 0.12 for y in places], "o", color=figures.BLUE, label="true")
        axes.axvline(0.5, color="gray", linestyle=":", label="a coin", zorder=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, each row as soon as it is known."""
    parser = command("mistakes", "Mend one bug a row.")
    add = parser.add_argument
    add("--pairs", type=int, default=1500, metavar="N", help="to learn from (default: %(default)s)")
    add("--epochs", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of data and training (default: 0)")
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="an encoder")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    add("--output", metavar="FILE", help="write the rows as JSON, too (default: do not)")
    args = parser.parse_args(argv)
    from transformers.utils import logging

    logging.disable_progress_bar()
    start, rows = time.perf_counter(), []
    with one_line(parser):
        if args.pairs < 100 or args.epochs < 1:
            raise ValueError("--pairs must be 100 or more, and --epochs 1 or more")
        if args.output and not Path(args.output).parent.is_dir():
            raise ValueError(f"no folder to write {args.output} into")
        for row in measure(args):
            print(show(row) if rows else f"{HEAD}\n{show(row)}", flush=True)
            rows.append(row)
        found = {"arguments": vars(args), "seconds": time.perf_counter() - start, "rows": rows}
        if args.output:
            checkpoint.write_json(Path(args.output), found)
    print(f"\n{found['seconds']:.0f} seconds")


if __name__ == "__main__":
    main()
