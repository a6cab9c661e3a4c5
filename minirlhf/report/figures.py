"""The pictures of a run: what to look at once the numbers are in.

    learning_curves.png   did it learn, and until when did it learn what carries over?
    rewards.png           how far apart are chosen and rejected answers?
    reliability.png       when the model is sure, is it right?
    reward_length.png     does it pay for length?
    subsets.png           which kind of pair does it get wrong?
    comparison.png        which approach is better? (of `--approach all`)

The docstring of the function that draws a picture says what to look for and when to worry.

Figures are made with matplotlib's objects, not with `pyplot`: nothing global is set and no window
is opened, so a thread or a machine without a screen draws as any other. Blue and vermilion are
Okabe and Ito's (https://jfly.uni-koeln.de/color/), which colour-blind readers tell apart; a marker,
a dash or a hatch says the same again in black and white.

Copy this file with `metrics.py`; it needs torch, and matplotlib when called.
Read next: `score.py`.
"""

import textwrap
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from minirlhf.metrics import reliability

BLUE, RED = "#0072B2", "#D55E00"


def draw_run(
    folder: Path, epochs: list, margins: Tensor, rewards: Tensor | None, lengths: Tensor, test: dict
) -> None:
    """Write a run's pictures into `folder`, which is made if it is not there.

    epochs: training's rows, one an epoch; the last one marked `best` is the epoch that was kept.
    margins (N,), rewards (N, 2) of chosen and rejected, or None where the model only compares, and
        lengths (N, 2) in characters: of the test part, on the CPU.
    test: what `metrics.summarize` says of the same part.

    Without rewards there is no `reward_length.png`, and with one subset only, no `subsets.png`.
    """
    _learning_curves(folder / "learning_curves.png", epochs)
    _reliability(folder / "reliability.png", margins, test)
    if rewards is None:
        _histogram(folder / "rewards.png", "margin", margins, ("a pair's margin",))
    else:
        _histogram(folder / "rewards.png", "reward", rewards, ("chosen", "rejected"))
        _reward_length(folder / "reward_length.png", rewards, lengths, test)
    if len(test["subsets"]) > 1:
        _subsets(folder / "subsets.png", test["subsets"], test["balanced_accuracy"])


def draw_comparison(path: Path, rows: list[dict]) -> None:
    """Write one picture of several models' accuracies, the first row on top.

    rows: `name`, `accuracy` and, where known, `balanced_accuracy` (the mean over subsets) and the
        ends of both intervals, `accuracy_low` and so on. A baseline such as a coin has none.

    Look for intervals that are clear of the coin. Where two models' intervals overlap, the picture
    does not say which is better; their difference on the same pairs does (`metrics.bootstrap`).
    """
    _dots(path, "Test accuracy and its 95 % interval", rows, {"a coin": 0.5})


def _learning_curves(path: Path, history: list[dict]) -> None:
    """Loss and accuracy after each epoch, on the training part and on validation.

    The kept epoch has the lowest calibrated loss (`loops.py`), which is not drawn; the loss drawn
    here may be lower elsewhere.

    Look for the epoch from which only training gets better: what is learned after it holds for the
    training pairs alone. Worry if validation stays at the coin (nothing is learned), if the last
    epoch is the one kept (train longer), and if the training loss jumps (lower the rate).
    """
    epochs = [row["epoch"] for row in history]
    kept = max(row["epoch"] for row in history if row["best"])
    with picture(path, f"Training: epoch {kept} is kept", "epoch", "loss", "accuracy") as panels:
        for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
            y = [(row[f"train_{name}"], row[f"validation_{name}"]) for row in history]  # (E, 2)
            axes.plot(epochs, y, label=("train", "validation"), markevery=len(epochs) // 10 + 1)
            axes.axvline(kept, color="gray", label="kept epoch", zorder=1)
            axes.locator_params("x", integer=True, min_n_ticks=min(2, len(epochs)))
        axes.axhline(0.5, color="gray", linestyle=":", label="a coin")


def _histogram(path: Path, kind: str, values: Tensor, names: tuple[str, ...]) -> None:
    """The spread of the rewards of chosen and rejected answers (N, 2), or of the margins (N,).

    Rewards: look at the shift between the two. They overlap more than the model errs, since a pair
    is judged by its own difference, and some prompts get high rewards for both answers. Worry about
    a spike, where different answers get one reward, and about a few answers far out: a policy that
    is trained on this reward goes there first. Margins: what lies right of zero is right.
    """
    # "4D" is an opacity of 0.3: where the two overlap, both are seen.
    look = {"edgecolor": (BLUE, RED), "facecolor": (BLUE + "4D", RED + "4D"), "hatch": ("", "//")}
    with picture(path, f"{kind.capitalize()}s on the test part", kind, "count") as (axes,):
        axes.hist(values.numpy(), 30, histtype="stepfilled", linewidth=1.5, label=names, **look)
        if values.ndim == 1:
            axes.axvline(0, color="black", linestyle=":", label="a tie")


def _reliability(path: Path, margins: Tensor, summary: dict) -> None:
    """Confidence against accuracy, as trained (T = 1) and after division by the temperature T.

    Pairs are put into bins by the model's confidence in its own choice; the larger a marker, the
    more pairs. Below the diagonal the model is surer than it is right, above it not sure enough.
    Look at the large markers, since small ones stray by chance. Worry if they are off the diagonal
    after the temperature, too: then do not read a confidence of 0.9 as nine times in ten.
    """
    with picture(path, "Confidence at temperature T", "confidence", "accuracy") as (axes,):
        for t, end, marker in ((1.0, "", "o"), (summary["temperature"], "_calibrated", "s")):
            x, y, n = zip(*reliability(margins, t), strict=True)
            axes.plot(x, y, label=f"T = {t:.3g}: error {summary['calibration_error' + end]:.3f}")
            axes.scatter(x, y, [36 + 300 * pairs / len(margins) for pairs in n], marker=marker)
        axes.axline((0.5, 0.5), (1, 1), color="gray", linestyle=":", label="honest")


def _reward_length(path: Path, rewards: Tensor, lengths: Tensor, summary: dict) -> None:
    """Length against reward, a point for each answer; of at most 500 pairs, evenly picked.

    Look for a slope. Worry if there is one although chosen answers are no longer than rejected ones
    (compare where the two kinds of point lie from left to right): a policy that is trained on this
    reward learns to write long, or short, and little else. The correlation is that of all pairs
    (0 where rewards or lengths are all equal).
    """
    title = f"Length and reward: rank correlation {summary['length_correlation'] or 0:.2f}"
    k = len(rewards) // 500 + 1  # each k-th pair is drawn: all of many would be one blot
    with picture(path, title, "length in characters", "reward") as (axes,):
        for i, who in enumerate(("chosen", "rejected")):
            axes.scatter(lengths[::k, i], rewards[::k, i], 20, marker="ox"[i], alpha=0.6, label=who)


def _subsets(path: Path, subsets: dict[str, dict], mean: float) -> None:
    """Accuracy on each subset, the best on top, with its number of pairs in brackets.

    Look at the bottom: which kind of mistake is not learned? Worry about a large subset below the
    coin, where the model learned the opposite. Ten pairs say next to nothing.
    """
    rows = [subset | {"name": f"{name} ({subset['n']})"} for name, subset in subsets.items()]
    rows.sort(key=lambda row: -row["accuracy"])
    _dots(path, "Accuracy on each subset", rows, {"a coin": 0.5, f"mean, {mean:.2f}": mean})


def _dots(path: Path, title: str, rows: list[dict], lines: dict[str, float]) -> None:
    """One or two points for each row, the first on top; what a row does not have is not drawn.

    lines: where to draw vertical lines to compare with. A name is cut after its second line.
    """
    names = [textwrap.fill(row["name"], 30, max_lines=2, placeholder="…") for row in rows]
    with picture(path, title, "accuracy", "", height=1.4 + 0.4 * len(rows)) as (axes,):
        axes.set_yticks(range(len(rows)), names, parse_math=False)  # a "$" in a name is a dollar
        axes.set_ylim(len(rows) - 0.3, -0.7)
        for i, key, color in ((0, "accuracy", BLUE), (1, "balanced_accuracy", RED)):
            y = [place + 0.25 * i for place in range(len(rows))]
            x, low, high = ([row.get(key + end) for row in rows] for end in ("", "_low", "_high"))
            axes.plot([low, high], [y, y], "-", color=color)
            axes.plot(x, y, "os"[i], color=color, label=key.replace("_", " ") if any(x) else None)
        for (label, at), style in zip(lines.items(), (":", "--"), strict=False):
            axes.axvline(at, color="gray", linestyle=style, label=label, zorder=1)


@contextmanager
def picture(path: Path, title: str, x: str, *names: str, height: float = 3.0):
    """Give the panels of an empty figure, one for each name of a y axis; write it at the end.

    900 pixels wide, of which half the width of a README shows 400. The figure is small (4.5 inches)
    so that matplotlib's own sizes are large on it, and its choice of ticks is a sparse one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, height), dpi=200, layout="constrained")
    figure.suptitle(title)
    for axes, y in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axes.set(xlabel=x, ylabel=y, axisbelow=True)
        axes.set_prop_cycle(color=(BLUE, RED), marker=("o", "s"), linestyle=("-", "--"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")
    yield figure.axes
    # One legend, the last panel's, serves all; under the panels it hides no data.
    entries = axes.get_legend_handles_labels()
    figure.legend(*entries, loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
