"""What a run has to say: two pairs, near duplicates, the verdict, the worst mistakes, a card.

`train.py` puts the numbers of `metrics.py` into words with it.
"""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from textwrap import indent

from torch import Tensor

from minirlhf import data

LARGE_GAP = 0.1  # of train over test accuracy, from which on the verdict speaks of overfitting


def pair_text(pair: data.PreferencePair, width: int = 400) -> str:
    """A pair as text, each part cut to `width` characters."""
    cut = [" ".join(text.split())[:width] for text in pair[:3]]
    ratings = ["" if r is None else f"  [rated {r:g}]" for r in pair[3:5]]
    return f"prompt    {cut[0]}\nchosen    {cut[1]}{ratings[0]}\nrejected  {cut[2]}{ratings[1]}"


def near_duplicates(
    train: Sequence[data.PreferencePair], other: Sequence[data.PreferencePair]
) -> dict:
    """How many prompts of `other` share eight words in a row with some training prompt.

    `any` counts one shared 8-gram (a common phrase is enough), `most` those for which at least half
    of the 8-grams are shared (a reworded copy). Prompts under eight words are compared whole.
    """
    grams = [_grams(prompt) for prompt in {pair.prompt for pair in other}]
    asked = set().union(*grams)
    known = {gram for prompt in {p.prompt for p in train} for gram in _grams(prompt) & asked}
    shares = [len(of_one & known) / len(of_one) for of_one in grams]
    some, most = sum(share > 0 for share in shares), sum(share >= 0.5 for share in shares)
    return {"prompts": len(shares), "any": some, "most": most}


def _grams(prompt: str) -> set[int]:
    words = re.findall(r"\w+", data.normalize(prompt))
    # Their hashes: the words themselves take ten times the memory.
    return {hash(tuple(words[i : i + 8])) for i in range(max(1, len(words) - 7))}


def interval(row: dict, name: str = "accuracy", form: str = ".3f") -> str:
    """`0.762 [0.730, 0.791]`, or a dash where the row has no such number."""
    if row.get(name) is None:
        return "–"
    text, low, high = f"{row[name]:{form}}", row.get(f"{name}_low"), row.get(f"{name}_high")
    return text if low is None else f"{text} [{low:{form}}, {high:{form}}]"


def table_row(cells: Iterable) -> str:
    """A line of a Markdown table; a bare "|" in a cell would end it."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table_head(titles: Sequence[str]) -> str:
    """The first two lines of a Markdown table."""
    return table_row(titles) + "\n" + "|---" * len(titles) + "|"


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


def model_card(summary: dict, config: dict, output: Path) -> str:
    """The run folder's README: what the model is, how good, its limits, and how to use it.

    `card.md`, filled in. Its head is the metadata that the hub reads from a model's README
    (https://huggingface.co/docs/hub/model-cards).
    """
    test, compares = summary["test"], summary["approach"] == "classification"
    use = 'rank("2 + 2?", ["4", "5"])' if compares else 'score("2 + 2?", "4")'
    words = {"name": output.name, "dataset": summary["dataset"], "encoder": summary["encoder"]}
    for key, text in list(words.items()):  # JSON is YAML, but for what YAML writes its own way
        quoted = json.dumps(text, ensure_ascii=False)
        shown = [c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted]
        words[f"{key}_yaml"] = "".join(shown)
    for name in ("accuracy", "balanced_accuracy"):
        words |= {name: round(test[name], 4), f"{name}_interval": interval(test, name)}
    words |= {"verdict": verdict(summary).strip(), "command": config["command"]}
    words |= {key: summary[key] for key in ("approach", "fold")} | {"use": use}
    words |= {"output": shlex.quote(str(output)), "output_text": json.dumps(str(output))}
    return (Path(__file__).parent / "card.md").read_text("utf-8").format(**words)
