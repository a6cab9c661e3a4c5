"""What a run has to say, as text: the verdict, the worst mistakes, the comparison, the model card.

`compare` pools the test parts of several folds, in which each pair is tested once, and sets the
approaches side by side on the same pairs; the rest puts numbers of `metrics.py` into words.

Read next: `figures.py`.
"""

from collections.abc import Sequence
from textwrap import indent

import torch
from torch import Tensor

from minirlhf.metrics import accuracies, bootstrap, credit, named

LARGE_GAP = 0.1  # of train over test accuracy, from which on the verdict speaks of overfitting


def interval(row: dict, name: str = "accuracy") -> str:
    """`0.762 [0.730, 0.791]`, or a dash where the row has no such number."""
    if row.get(name) is None:
        return "–"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def verdict(summary: dict) -> str:
    """The result in a few lines, with what a careful reader would ask at once.

    Is it more than a coin, and more than preferring the longer response? Does it hold for every
    subset? Was it learned, or learned by heart? May its confidence be believed?
    """
    test, train = summary["test"], summary["train"]["accuracy"]
    text = f"""test accuracy {interval(test)}, the 95 % interval from resampling prompts
on {test["n"]} pairs over {test["n_prompts"]} prompts that training never saw
a coin has 0.500, "the longer response" {interval(summary["baselines"]["longer response"])}
so many prompts show a true accuracy of {0.5 + test["detectable"]:.3f} four times in five
"""
    if test["accuracy_low"] <= 0.5 <= test["accuracy_high"]:
        text += "the interval holds 0.5: nothing here tells this model from a coin\n"
    elif test["accuracy"] < 0.5:
        text += "worse than a coin: are chosen and rejected swapped?\n"
    if len(test["subsets"]) > 1:
        text += f"mean over subsets {interval(test, 'balanced_accuracy')}:\n"
        for name, of_one in sorted(test["subsets"].items(), key=lambda s: s[1]["accuracy"]):
            text += f"  {of_one['accuracy']:.3f}  {name} ({of_one['n']})\n"
    text += f"train accuracy {train:.3f}"
    gap = train - test["accuracy"]
    if gap > LARGE_GAP and train > test["accuracy_high"]:
        text += f", {gap:.3f} above test: much of it is these pairs learned by heart"
    if "mae" in test:
        text += "\nratings: MAE {mae:.2f}, RMSE {rmse:.2f}, R² {r2:.2f}".format(**test)
    said = "\ncalibration error {calibration_error:.3f}, {calibration_error_calibrated:.3f} with "
    return text + (said + "margins divided by the temperature {temperature:.3g}").format(**test)


def mistakes(pairs: Sequence, margins: Tensor, count: int = 10) -> str:
    """The most confident errors as Markdown: N PreferencePairs and their margins (N,).

    Read them before you trust a number. Often the label is wrong, or a pattern leaps to the eye.
    """
    text = "# The most confident mistakes on the test part\n"
    for place, i in enumerate(margins.argsort()[:count].tolist(), 1):
        if not margins[i] < 0:
            break
        text += f"\n## {place}. {pairs[i].subset}, margin {margins[i]:.3f}\n"
        for role in ("prompt", "chosen", "rejected"):  # an indented block holds any text
            text += f"\n{role}:\n\n{indent(getattr(pairs[i], role), '    ')}\n"
    return text


def compare(results: dict[str, list[dict]]) -> list[dict]:
    """One row for each approach, best first, then the baselines (response-only first).

    results: of each approach, what `train.run` returned for each fold, all in one order of folds.
    The test parts are pooled before anything is counted (`metrics.accuracies`): a mean of five
    accuracies has no interval of its own. `minus_better_accuracy` is the difference to the row
    above (for response-only: to bt-finetune, of which it is the copy that reads no prompt), pair
    by pair, and so is `minus_better_balanced_accuracy`. `seconds` are those of one fold, as if it
    were run alone: the embedding is counted, cached or not.
    """
    first = next(iter(results.values()))
    labels = [[name for run in first for name in run["labels"][i]] for i in (0, 1)]
    lengths = torch.cat([run["lengths"] for run in first])  # (N, 2)
    right = {a: credit(torch.cat([run["margins"] for run in results[a]])) for a in results}
    rows = []
    for name, runs in results.items():
        row = {"name": name, "trained": runs[0]["trained"]}
        row["seconds"] = sum(run["seconds"] for run in runs) / len(runs)
        row["train_accuracy"] = sum(run["train"]["accuracy"] for run in runs) / len(runs)
        row |= accuracies(right[name], *labels)
        rows.append(row | {"gap": row["train_accuracy"] - row["accuracy"]})
    rows.sort(key=lambda row: (row["name"] == "response only", -row["accuracy"]))
    for better, row in zip(rows, rows[1:], strict=False):
        other = "bt-finetune" if row["name"] == "response only" else better["name"]
        lead = right[row["name"]] - right[other]  # (N,)
        for name, subsets in (("accuracy", None), ("balanced_accuracy", labels[1])):
            row |= named(f"minus_better_{name}", bootstrap(lead, labels[0], subsets))
    longer = accuracies(credit(lengths[:, 0] - lengths[:, 1]), *labels)
    coin = {"name": "chance", "accuracy": 0.5, "balanced_accuracy": 0.5}
    return [*rows, {"name": "longer response"} | longer, coin]


def table(rows: Sequence[dict]) -> str:
    """The rows of `compare` as a Markdown table."""
    head = ["approach", "parameters", "seconds a fold", "train accuracy", "test accuracy [95 %]"]
    head += ["train − test", "minus the better", "mean over subsets [95 %]", "minus the better"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    names = ["train_accuracy", "accuracy", "gap", "minus_better_accuracy", "balanced_accuracy"]
    for row in rows:
        cells = [f"{row[key]:,.0f}" if key in row else "–" for key in ("trained", "seconds")]
        cells += [interval(row, name) for name in (*names, "minus_better_balanced_accuracy")]
        lines.append("| " + " | ".join([row["name"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def model_card(summary: dict, config: dict, output) -> str:
    """The run folder's README: what the model is, how good, and how to use it."""
    compares = summary["approach"] == "classification"
    use = 'rank("2 + 2?", ["4", "5"])' if compares else 'score("2 + 2?", "4")'
    return f"""# {output.name}

A reward model made by minirlhf with the approach `{summary["approach"]}`
from `{summary["encoder"]}` on `{summary["dataset"]}`, fold {summary["fold"]}: `{config["command"]}`

```text
{verdict(summary)}
```

All numbers are in `metrics.json`, the pictures in `figures/`, all settings in `config.json`, the
most confident errors in `mistakes.md`.

    import minirlhf
    minirlhf.load("{output}").{use}
"""
