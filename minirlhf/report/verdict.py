"""The result in words: what was read, the verdict, and the worst mistakes.

`train.py` prints the first two and writes the third to `mistakes.md`.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent

from torch import Tensor

from minirlhf.data import PreferencePair
from minirlhf.report.tables import interval

# If training accuracy is above test accuracy by more than this, the verdict speaks of overfitting.
LARGE_GAP = 0.1


def data_text(dataset: str, counts: dict, pairs: Sequence[PreferencePair]) -> str:
    """What was read and dropped, a line for each number, and the first two pairs."""
    lines = [f"data      {dataset}"]
    for name, value in counts.items():
        if name not in ("dropped", "first_dropped", "not_read"):
            lines.append(f"  {name:26} {value}")
    if reading_text(counts):
        lines.append(indent(reading_text(counts), "  "))
    for pair in pairs[:2]:
        lines.append(f"\n{pair_text(pair)}")
    return "\n".join(lines)


def reading_text(counts: dict) -> str:
    """What was dropped and why, and the columns that nobody read; "" if there is nothing to say.

    counts: the report of `build_pairs`.
    """
    lines = []
    for reason, count in counts["dropped"].items():
        lines.append(f"dropped   {count:,}: {reason} (first {counts['first_dropped'][reason]})")
    columns = []
    for name, remark in counts["not_read"].items():
        columns.append(f"{name} ({remark})" if remark else name)
    if columns:
        lines.append(f"not read  the columns {', '.join(columns)}")
    return "\n".join(lines)


def pair_text(pair: PreferencePair, width: int = 400) -> str:
    """A pair as three lines of text, with its ratings; each text is cut to `width` characters."""
    prompt = _one_line(pair.prompt, width)
    chosen = _one_line(pair.chosen, width) + _rating(pair.chosen_rating)
    rejected = _one_line(pair.rejected, width) + _rating(pair.rejected_rating)
    return f"prompt    {prompt}\nchosen    {chosen}\nrejected  {rejected}"


def _one_line(text: str, width: int) -> str:
    return " ".join(text.split())[:width]


def _rating(rating: float | None) -> str:
    return "" if rating is None else f"  [rated {rating:g}]"


def verdict(summary: dict) -> str:
    """The result in a few lines, with the questions that a careful reader would ask at once.

    Is the model better than a coin, and better than preferring the longer response? Is it good on
    every subset? Did it learn something general, or its training pairs by heart? Can its confidence
    be believed?

    summary: what `train.py` writes to `metrics.json`.
    """
    test = summary["test"]
    train_accuracy = summary["train"]["accuracy"]
    longer = summary["baselines"]["longer response"]

    lines = [
        f"test accuracy {interval(test)}, the 95 % interval from resampling prompts",
        f"on {test['n']} pairs over {test['n_prompts']} prompts that training never saw",
        f'a coin has 0.500, "the longer response" {interval(longer)}',
        f"with this many prompts, a true accuracy of {0.5 + test['detectable']:.3f} "
        "would be detected four times in five",
    ]
    lines += _on_new_prompts(test)
    lines += _against_a_coin(test)
    lines += _worst_subsets_first(test)
    lines.append(f"train accuracy {train_accuracy:.3f}" + _overfitting(train_accuracy, test))
    if "mae" in test:
        errors = "MAE {mae:.2f}, RMSE {rmse:.2f}, R² {r2:.2f}".format(**test)
        lines.append(f"ratings: {errors}")
    lines.append(
        f"calibration error {test['calibration_error']:.3f}, "
        f"{test['calibration_error_calibrated']:.3f} with margins divided by the temperature "
        f"{test['temperature']:.3g}"
    )
    return "\n".join(lines)


def _against_a_coin(test: dict) -> list[str]:
    """A warning if the model is not better than guessing, or even worse."""
    if test["accuracy_low"] <= 0.5 <= test["accuracy_high"]:
        return ["the interval holds 0.5: nothing here tells this model from a coin"]
    if test["accuracy"] < 0.5:
        return ["worse than a coin: are chosen and rejected swapped?"]
    return []


def _on_new_prompts(test: dict) -> list[str]:
    """The accuracy without the test prompts that nearly repeat a training prompt, if there are any.

    See `report/duplicates.py`.
    """
    if "new_prompts" not in test:
        return []
    new = test["new_prompts"]
    repeated = test["n_prompts"] - new["n_prompts"]
    return [
        f"{repeated} of the test prompts nearly repeat a training prompt, as templates do; "
        f"on the {new['n']} pairs of the others {interval(new)}"
    ]


def _worst_subsets_first(test: dict) -> list[str]:
    """The mean over subsets and the accuracy on each; nothing if there is only one subset."""
    subsets = test["subsets"]
    if len(subsets) <= 1:
        return []
    lines = [f"mean over subsets {interval(test, 'balanced_accuracy')}:"]
    for name in sorted(subsets, key=lambda name: subsets[name]["accuracy"]):
        subset = subsets[name]
        lines.append(f"  {subset['accuracy']:.3f}  {name} ({subset['n']})")
    return lines


def _overfitting(train_accuracy: float, test: dict) -> str:
    """A remark if the accuracy on training pairs is far above that on test pairs, or ""."""
    gap = train_accuracy - test["accuracy"]
    if gap > LARGE_GAP and train_accuracy > test["accuracy_high"]:
        return f", {gap:.3f} above test: much of it is these pairs learned by heart"
    return ""


def what_next(summary: dict, folder: str) -> str:
    """How long a run took, and what to look at in its folder."""
    mistakes = Path(folder, "mistakes.md")
    return (
        f"{summary['seconds']:.0f} seconds, features included; all is in {folder}\n"
        f"the most confident mistakes: {mistakes}\n"
        f"next: python -m minirlhf score {shlex.quote(folder)} --prompt 2+2 --response 4"
    )


def worst_mistakes(pairs: Sequence[PreferencePair], margins: Tensor, count: int = 10) -> str:
    """The most confident errors as Markdown: N pairs and their margins (N,).

    Read them before you trust a number. Often a label turns out to be wrong, or the errors have
    something in common.
    """
    text = "# The most confident mistakes on the test part\n"
    smallest_margin_first = margins.argsort()[:count].tolist()
    wrong = [number for number in smallest_margin_first if margins[number] < 0]
    for place, number in enumerate(wrong, 1):
        pair = pairs[number]
        text += f"\n## {place}. {pair.subset}, margin {margins[number]:.3f}\n"
        text += _indented("prompt", pair.prompt)
        text += _indented("chosen", pair.chosen)
        text += _indented("rejected", pair.rejected)
    return text


def _indented(role: str, content: str) -> str:
    """A text as an indented block, which may hold anything without breaking the Markdown."""
    block = indent(content, "    ")
    return f"\n{role}:\n\n{block}\n"
