"""Several approaches on the same folds, in one table: what `python -m minirlhf compare` reports.

All approaches are tested on the same pairs, so two of them can be compared pair by pair: the
interval of their difference is much narrower than those of the two accuracies.

There are two kinds of interval. One comes from resampling prompts and is about the models that were
trained. The other comes from how much the folds differ, in each of which a model was trained anew,
so it contains the chance of training as well. We credit a difference to the approaches, and not to
chance, only if both intervals exclude zero.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.data import normalize
from minirlhf.metrics import accuracies, bootstrap, credit, named, t_interval
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
    data: str = ""  # checksum of all pairs that the run was made from


class Pooled(NamedTuple):
    """The test pairs of all folds of one approach, in one order for all approaches."""

    right: Tensor  # (N,) credit for each pair
    accuracies: list[float]  # of each fold
    lengths: Tensor  # (N, 2)
    prompts: list[str]
    subsets: list[str]


def read_run(folder: Path) -> TestedRun:
    """A finished run from its folder."""
    summary = checkpoint.read_json(folder / "metrics.json")
    config = checkpoint.read_json(folder / "config.json")
    pairs = checkpoint.read_jsonl(folder / "predictions.jsonl")
    return TestedRun(
        trained=summary["trained"],
        seconds=summary["seconds"],
        train_accuracy=summary["train"]["accuracy"],
        margins=torch.tensor([pair["margin"] for pair in pairs]),
        lengths=torch.tensor([pair["lengths"] for pair in pairs]),
        prompts=[normalize(pair["prompt"]) for pair in pairs],
        subsets=[pair["subset"] for pair in pairs],
        data=config["data"]["sha256"],
    )


def check_same_data(runs: dict[str, list[TestedRun]]) -> None:
    """Raise ValueError if not all runs were made from the same pairs."""
    checksums = {run.data for of_one in runs.values() for run in of_one}
    if len(checksums) > 1:
        raise ValueError(
            "the data changed between two runs of this comparison, so its runs cannot be "
            "compared; start it anew with --overwrite, or give another --output"
        )


def pool(runs: Sequence[TestedRun]) -> Pooled:
    """The test parts of several folds as one."""
    right_by_fold = [credit(run.margins).double() for run in runs]
    fold_accuracies = [right.mean().item() for right in right_by_fold]
    lengths = torch.cat([run.lengths for run in runs])
    prompts = [prompt for run in runs for prompt in run.prompts]
    subsets = [subset for run in runs for subset in run.subsets]
    return Pooled(torch.cat(right_by_fold), fold_accuracies, lengths, prompts, subsets)


def compared(runs: dict[str, list[TestedRun]]) -> list[dict]:
    """The numbers of each approach, the best first, then of the baselines (response-only first).

    runs: of each approach one for each fold, all in the same order of folds.

    The folds are pooled before anything is counted. `minus_better_accuracy` is the difference to
    the approach above, pair by pair, and so is `minus_better_balanced_accuracy`; that of
    response-only is to bt-finetune, of which it is the copy that reads no prompt. `better` is the
    name of the other one. With more than one fold there are also `fold_accuracies`, their standard
    deviation `fold_spread`, and `minus_better_fold_mean`, the mean of the folds' differences with
    the interval over folds. `seconds` are those of one fold, as if it were run alone: the embedding
    is counted, cached or not.
    """
    pooled = {name: pool(of_one) for name, of_one in runs.items()}
    table_rows = [summarize(name, runs[name], pooled[name]) for name in runs]
    table_rows.sort(key=lambda row: (row["name"] == RESPONSE_ONLY, -row["accuracy"]))

    for better, row in zip(table_rows, table_rows[1:], strict=False):
        other = "bt-finetune" if row["name"] == RESPONSE_ONLY else better["name"]
        if other in pooled:
            row["better"] = other
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
    if len(runs) > 1:
        numbers["fold_accuracies"] = pooled.accuracies
        numbers["fold_spread"] = torch.tensor(pooled.accuracies).std().item()
    return numbers


def paired_difference(one: Pooled, other: Pooled, name: str = "minus_better") -> dict:
    """How much more often `one` is right than `other` on the same pairs, with intervals.

    name: what the names of the numbers begin with.
    The intervals over prompts are from all pairs, that over folds from each fold's difference.
    Raises ValueError if the pairs are not the same.
    """
    if one.prompts != other.prompts:
        raise ValueError("not all runs were tested on the same pairs; were the data changed?")
    difference = one.right - other.right  # (N,)
    accuracy = bootstrap(difference, one.prompts, ends=(-1, 1))
    balanced = bootstrap(difference, one.prompts, one.subsets, ends=(-1, 1))
    numbers = named(f"{name}_accuracy", accuracy)
    numbers |= named(f"{name}_balanced_accuracy", balanced)
    if len(one.accuracies) > 1:
        by_fold = []
        for mine, theirs in zip(one.accuracies, other.accuracies, strict=True):
            by_fold.append(mine - theirs)
        numbers |= named(f"{name}_fold_mean", t_interval(by_fold))
    return numbers


def table(table_rows: Sequence[dict]) -> str:
    """What `compared` returned, as a Markdown table.

    The two columns about folds are left out if no row has them, as after a comparison on one fold.
    """
    has_folds = any("fold_spread" in row for row in table_rows)
    titles = ["approach", "parameters", "seconds a fold", "train accuracy"]
    titles += ["test accuracy [95 %]"]
    if has_folds:
        titles += ["spread of the folds"]
    titles += ["train - test", "minus the better"]
    if has_folds:
        titles += ["the same, over folds"]
    titles += ["mean over subsets [95 %]", "minus the better"]

    lines = [table_head(titles)]
    for row in table_rows:
        cells = [
            row["name"],
            f"{row['trained']:,.0f}" if "trained" in row else "–",
            f"{row['seconds']:,.0f}" if "seconds" in row else "–",
            interval(row, "train_accuracy"),
            interval(row, "accuracy"),
        ]
        if has_folds:
            cells += [interval(row, "fold_spread")]
        cells += [interval(row, "gap"), interval(row, "minus_better_accuracy")]
        if has_folds:
            cells += [interval(row, "minus_better_fold_mean")]
        cells += [
            interval(row, "balanced_accuracy"),
            interval(row, "minus_better_balanced_accuracy"),
        ]
        lines.append(table_row(cells))
    return "\n".join(lines) + "\n"


def shown_lead(row: dict) -> str:
    """Which of a row's approach and `better` is shown to lead, in words; "" if neither is."""
    low = min(row["minus_better_accuracy_low"], row["minus_better_fold_mean_low"])
    high = max(row["minus_better_accuracy_high"], row["minus_better_fold_mean_high"])
    if high < 0:
        return f"{row['better']} over {row['name']}"
    if low > 0:
        return f"{row['name']} over {row['better']}"
    return ""


def supported_differences(table_rows: Sequence[dict]) -> str:
    """One sentence: which differences in accuracy are shown over prompts and over folds alike."""
    pairs_of_rows = [row for row in table_rows if "better" in row]
    if not pairs_of_rows:
        return ""
    if "minus_better_fold_mean" not in pairs_of_rows[0]:
        return (
            "\nOne fold is one training of each approach: the differences are between these "
            "models, and none is shown between the approaches.\n"
        )
    leads = [shown_lead(row) for row in pairs_of_rows]
    listed = "; ".join(lead for lead in leads if lead) or "none"
    return (
        "\nThe differences in accuracy that are shown between approaches, over prompts and over "
        f"folds alike: {listed}.\n"
    )


def warning(table_rows: Sequence[dict]) -> str:
    """What a reader of the table must not miss, or "": bt-finetune may do without the prompts.

    If it is not shown to be worse without them, who wrote a response, or how, may be all it sees.
    """
    for row in table_rows:
        over_prompts = row.get("minus_better_accuracy_high", -1)
        over_folds = row.get("minus_better_fold_mean_high", -1)
        if row["name"] == RESPONSE_ONLY and max(over_prompts, over_folds) >= 0:
            difference = interval(row, "minus_better_accuracy")
            return (
                "\nWARNING: bt-finetune may not read the prompts: "
                f"trained without the prompts it is not shown to be worse ({difference})\n"
            )
    return ""
