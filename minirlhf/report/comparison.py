"""Several approaches on the same folds, in one table: what `python -m minirlhf compare` reports.

All approaches are tested on the same pairs, so two of them can be compared pair by pair: the
interval of their difference is much narrower than those of the two accuracies.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.data import normalize
from minirlhf.metrics import accuracies, bootstrap, credit, named
from minirlhf.report.tables import interval, table_head, table_row
from minirlhf.runtime import checkpoint

RESPONSE_ONLY = "response only"  # bt-finetune, trained without the prompts


class TestedRun(NamedTuple):
    """A finished run: what it cost, and each pair of its test part."""

    trained: int  # parameters that learned
    seconds: float
    train_accuracy: float
    margins: Tensor  # (N,)
    lengths: Tensor  # (N, 2) characters of the chosen and the rejected response
    prompts: list[str]  # (N,) normalised
    subsets: list[str]  # (N,)


class Pooled(NamedTuple):
    """The test pairs of all folds of one approach, in one order for all approaches."""

    right: Tensor  # (N,) credit for each pair
    lengths: Tensor  # (N, 2)
    prompts: list[str]
    subsets: list[str]


def read_run(folder: Path) -> TestedRun:
    """A finished run from its folder."""
    summary = checkpoint.read_json(folder / "metrics.json")
    pairs = checkpoint.read_jsonl(folder / "predictions.jsonl")
    return TestedRun(
        trained=summary["trained"],
        seconds=summary["seconds"],
        train_accuracy=summary["train"]["accuracy"],
        margins=torch.tensor([pair["margin"] for pair in pairs]),
        lengths=torch.tensor([pair["lengths"] for pair in pairs]),
        prompts=[normalize(pair["prompt"]) for pair in pairs],
        subsets=[pair["subset"] for pair in pairs],
    )


def pool(runs: Sequence[TestedRun]) -> Pooled:
    """The test parts of several folds as one."""
    margins = torch.cat([run.margins for run in runs])
    lengths = torch.cat([run.lengths for run in runs])
    prompts = [prompt for run in runs for prompt in run.prompts]
    subsets = [subset for run in runs for subset in run.subsets]
    return Pooled(credit(margins), lengths, prompts, subsets)


def compared(runs: dict[str, list[TestedRun]]) -> list[dict]:
    """The numbers of each approach, the best first, then of the baselines (response-only first).

    runs: of each approach one for each fold, all in the same order of folds.

    The folds are pooled before anything is counted: a mean of five accuracies has no interval of
    its own. `minus_better_accuracy` is the difference to the approach above, pair by pair, and so
    is `minus_better_balanced_accuracy`; that of response-only is to bt-finetune, of which it is the
    copy that reads no prompt. `seconds` are those of one fold, as if it were run alone: the
    embedding is counted, cached or not.
    """
    pooled = {name: pool(of_one) for name, of_one in runs.items()}
    table_rows = [summarize(name, runs[name], pooled[name]) for name in runs]
    table_rows.sort(key=lambda row: (row["name"] == RESPONSE_ONLY, -row["accuracy"]))

    for better, row in zip(table_rows, table_rows[1:], strict=False):
        other = "bt-finetune" if row["name"] == RESPONSE_ONLY else better["name"]
        if other in pooled:
            row |= paired_difference(pooled[row["name"]], pooled[other])

    some = next(iter(pooled.values()))
    prefers_longer = credit(some.lengths[:, 0] - some.lengths[:, 1])
    longer = accuracies(prefers_longer, some.prompts, some.subsets)
    coin = {"name": "chance", "accuracy": 0.5, "balanced_accuracy": 0.5}
    return [*table_rows, {"name": "longer response"} | longer, coin]


def summarize(name: str, runs: Sequence[TestedRun], pooled: Pooled) -> dict:
    """The numbers of one approach over all its folds."""
    train_accuracy = sum(run.train_accuracy for run in runs) / len(runs)
    numbers = {
        "name": name,
        "trained": runs[0].trained,
        "seconds": sum(run.seconds for run in runs) / len(runs),
        "train_accuracy": train_accuracy,
    }
    numbers |= accuracies(pooled.right, pooled.prompts, pooled.subsets)
    numbers["gap"] = train_accuracy - numbers["accuracy"]
    return numbers


def paired_difference(one: Pooled, other: Pooled) -> dict:
    """How much more often `one` is right than `other` on the same pairs, with intervals.

    Raises ValueError if the pairs are not the same.
    """
    if one.prompts != other.prompts:
        raise ValueError("not all runs were tested on the same pairs; were the data changed?")
    difference = one.right - other.right  # (N,)
    accuracy = bootstrap(difference, one.prompts)
    balanced = bootstrap(difference, one.prompts, one.subsets)
    return named("minus_better_accuracy", accuracy) | named(
        "minus_better_balanced_accuracy", balanced
    )


def table(table_rows: Sequence[dict]) -> str:
    """What `compared` returned, as a Markdown table."""
    titles = [
        "approach",
        "parameters",
        "seconds a fold",
        "train accuracy",
        "test accuracy [95 %]",
        "train - test",
        "minus the better",
        "mean over subsets [95 %]",
        "minus the better",
    ]
    lines = [table_head(titles)]
    for row in table_rows:
        cells = [
            row["name"],
            f"{row['trained']:,.0f}" if "trained" in row else "–",
            f"{row['seconds']:,.0f}" if "seconds" in row else "–",
            interval(row, "train_accuracy"),
            interval(row, "accuracy"),
            interval(row, "gap"),
            interval(row, "minus_better_accuracy"),
            interval(row, "balanced_accuracy"),
            interval(row, "minus_better_balanced_accuracy"),
        ]
        lines.append(table_row(cells))
    return "\n".join(lines) + "\n"


def warning(table_rows: Sequence[dict]) -> str:
    """What a reader of the table must not miss, or "": bt-finetune may do without the prompts.

    If it is not shown to be worse without them, who wrote a response, or how, may be all it sees.
    """
    for row in table_rows:
        if row["name"] == RESPONSE_ONLY and row.get("minus_better_accuracy_high", -1) >= 0:
            difference = interval(row, "minus_better_accuracy")
            return (
                "\nWARNING: bt-finetune may not read the prompts: "
                f"trained without the prompts it is not shown to be worse ({difference})\n"
            )
    return ""
