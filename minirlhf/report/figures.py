"""The pictures of a run: what to look at once the numbers are in.

    learning_curves.png   did the model learn, and when did it stop learning what generalises?
    rewards.png           how far apart are chosen and rejected responses?
    reliability.png       when the model is sure, is it right?
    reward_length.png     does it prefer the longer response of a pair?
    subsets.png           which kind of pair does it get wrong?
    comparison.png        which approach is better? (drawn by `python -m minirlhf compare`)

The docstring of the function that draws a picture says what to look for in it and when to worry.

The figures are made with matplotlib's objects and not with `pyplot`, so nothing global is set and
no window is opened. They can be drawn in a thread, or on a machine without a screen.

The two colours are the blue and the vermilion of Okabe and Ito (https://jfly.uni-koeln.de/color/),
which colour-blind readers can tell apart. A marker, a dash or a hatch makes the same difference in
black and white.

Copy this file together with `metrics.py`. It needs torch, and matplotlib when a picture is drawn.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path

from torch import Tensor

from minirlhf.metrics import reliability

BLUE = "#0072B2"
RED = "#D55E00"
OPACITY = "4D"  # 0.3, as the last two digits of a colour: where areas overlap, both are seen


def draw_run(
    folder: Path,
    history: list[dict],
    steps: list[dict],
    margins: Tensor,
    rewards: Tensor | None,
    lengths: Tensor,
    test: dict,
    blind: dict[str, float] | None = None,
) -> None:
    """Write a run's pictures into `folder`, which is made if it does not exist.

    history: what training recorded after each epoch. The last epoch marked `best` is the one whose
        weights were kept.
    steps: what it recorded every few updates; empty for a head on frozen vectors, whose epochs take
        no time.
    margins: (N,), of the test part; like the other tensors, on the CPU.
    rewards: (N, 2), of chosen and rejected; None for a model that compares and gives no rewards.
    lengths: (N, 2), of the chosen and the rejected response in characters.
    test: what `metrics.summarize` returned for the test part.
    blind: where the data's rule is known, of each subset the accuracy of a rater who is blind to
        what sets that subset apart (`bundled.arithmetic.blind_accuracies`).

    Without rewards, `rewards.png` shows the margins and there is no `reward_length.png`. With only
    one subset there is no `subsets.png`.
    """
    _learning_curves(folder / "learning_curves.png", history, steps)
    _reliability(folder / "reliability.png", margins, test)
    if rewards is None:
        _margins(folder / "rewards.png", margins)
    else:
        _rewards(folder / "rewards.png", rewards)
        _reward_length(folder / "reward_length.png", margins, lengths, test)
    if len(test["subsets"]) > 1:
        _subsets(folder / "subsets.png", test["subsets"], test["balanced_accuracy"], blind)


def draw_comparison(path: Path, models: list[dict]) -> None:
    """Write one picture of several models' accuracies, with the first model at the top.

    models: of each the `name`, the `accuracy` and, where they are known, the `balanced_accuracy`
        (the mean over subsets) and the ends of both intervals (`accuracy_low` and so on). A
        baseline such as a coin has no intervals.

    Look for intervals that do not contain the coin's 0.5. Where the intervals of two models
    overlap, the picture does not say which is better. The difference between the two on the same
    pairs does (`metrics.bootstrap`). The intervals are about the models that were trained; they
    leave out what another training would have given (`comparison.compared`).
    """
    _accuracies(path, "Test accuracy and its 95 % interval", models)


def _learning_curves(path: Path, history: list[dict], steps: list[dict]) -> None:
    """Loss and accuracy over the epochs, on the training part and on validation.

    Validation is drawn as it is after each epoch, and training as it is averaged over the epoch
    while the weights moved. The thin gray line is the same average over about ten updates.

    Look for the epoch from which only the training curve improves. Most of what the model learns
    after it holds for the training pairs alone. Worry if validation stays at the coin, because then
    nothing is learned that holds for other prompts; if a frozen approach keeps its last epoch,
    because then more epochs may be better; and if the training loss jumps, because then the
    learning rate may be too high.

    The kept epoch is the one with the lowest calibrated loss (`loops.py`). That loss is not drawn;
    the loss that is drawn may be lowest at another epoch.
    """
    epochs = [epoch["epoch"] for epoch in history]
    kept = max(epoch["epoch"] for epoch in history if epoch["best"])
    every = len(epochs) // 10 + 1  # epochs from one marker to the next: there are ten at most
    ticks = min(2, len(epochs))

    title = f"Training: epoch {kept} is kept"
    with picture(path, title, "epoch", "loss", "accuracy") as panels:
        loss_panel, accuracy_panel = panels
        for axes, number in ((loss_panel, "loss"), (accuracy_panel, "accuracy")):
            if steps:
                done = [step["epochs_done"] for step in steps]
                values = [step[f"step_{number}"] for step in steps]
                axes.plot(done, values, color="gray", linewidth=0.7, marker="", label="updates")
            for part in ("train", "validation"):
                values = [epoch[f"{part}_{number}"] for epoch in history]
                axes.plot(epochs, values, label=part, markevery=every)
            axes.axvline(kept, color="gray", label="kept epoch", zorder=1)
            axes.locator_params("x", integer=True, min_n_ticks=ticks)
        accuracy_panel.axhline(0.5, color="gray", linestyle=":", label="a coin")


def _rewards(path: Path, rewards: Tensor) -> None:
    """Two histograms: the rewards of the chosen and of the rejected responses (N, 2).

    Look at how far one is shifted against the other. They overlap more than the model errs: a pair
    is judged by its own difference, and some prompts get high rewards for both of their responses.
    Worry about a spike, where different responses get one and the same reward, and about a few
    responses far out, because a policy that is trained on this reward will go there first.
    """
    look = {
        "edgecolor": (BLUE, RED),
        "facecolor": (BLUE + OPACITY, RED + OPACITY),
        "hatch": ("", "//"),
        "label": ("chosen", "rejected"),
    }
    with picture(path, "Rewards on the test part", "reward", "count") as (axes,):
        axes.hist(rewards.numpy(), bins=30, histtype="stepfilled", linewidth=1.5, **look)


def _margins(path: Path, margins: Tensor) -> None:
    """One histogram of the margins (N,), for a model that compares and gives no rewards.

    The pairs to the right of zero are those that the model ranks correctly.
    """
    look = {"edgecolor": BLUE, "facecolor": BLUE + OPACITY, "label": "a pair's margin"}
    with picture(path, "Margins on the test part", "margin", "count") as (axes,):
        axes.hist(margins.numpy(), bins=30, histtype="stepfilled", linewidth=1.5, **look)
        axes.axvline(0, color="black", linestyle=":", label="a tie")


def _reliability(path: Path, margins: Tensor, test: dict) -> None:
    """Confidence against accuracy, as trained (T = 1) and after division by the temperature T.

    The pairs are sorted into bins by the model's confidence in its own choice. A larger marker
    stands for more pairs. Below the diagonal the model is more confident than it is right, and
    above the diagonal it is not confident enough.

    Look at the large markers, since the small ones lie off the diagonal by chance. Worry if large
    ones are off the diagonal after the division, too. Then a confidence of 0.9 does not mean that
    the model is right nine times in ten.
    """
    with picture(path, "Confidence at temperature T", "confidence", "accuracy") as (axes,):
        _reliability_curve(axes, margins, 1.0, test["calibration_error"], "o")
        error = test["calibration_error_calibrated"]
        _reliability_curve(axes, margins, test["temperature"], error, "s")
        axes.axline((0.5, 0.5), (1, 1), color="gray", linestyle=":", label="honest")


def _reliability_curve(
    axes, margins: Tensor, temperature: float, error: float, marker: str
) -> None:
    bins = reliability(margins, temperature)
    confidence = [group.confidence for group in bins]
    accuracy = [group.accuracy for group in bins]
    sizes = [36 + 300 * group.n / len(margins) for group in bins]
    axes.plot(confidence, accuracy, label=f"T = {temperature:.3g}: error {error:.3f}")
    axes.scatter(confidence, accuracy, sizes, marker=marker)


def _reward_length(path: Path, margins: Tensor, lengths: Tensor, test: dict) -> None:
    """Margin against difference in length, with one point for each of at most 500 pairs.

    The points are differences within a pair, chosen minus rejected, because rewards of different
    prompts cannot be compared. In the upper right and the lower left the longer response got the
    larger reward, which circles mark; in the other two quarters the shorter one did, which crosses
    mark. Gray dots are pairs that speak for neither.

    Look whether the circles outnumber the crosses, or the other way round. Worry if they do and the
    chosen responses are not mostly longer, which you see by the number of points to the right of
    zero. A policy that is trained on such a reward learns to write long responses, or short ones,
    and little else.

    margins: (N,); lengths: (N, 2). The correlation in the title is that of all pairs
    (`metrics.length_preference`). It is shown as 0 if it is not defined.
    """
    correlation = test["length_correlation"] or 0.0  # None if it is not defined
    title = f"Length within pairs: rank correlation {correlation:.2f}"

    every = len(margins) // 500 + 1  # the points of very many pairs would run into one blot
    margins = margins[::every]
    longer_by = (lengths[:, 0] - lengths[:, 1])[::every]
    agreement = margins.sign() * longer_by.sign()  # 1 where the longer response is preferred
    y_label = "difference in reward"
    with picture(path, title, "difference in characters, chosen - rejected", y_label) as (
        axes,
    ):
        look = {"s": 20, "alpha": 0.6}
        for sign, marker, label in (
            (1, "o", "longer preferred"),
            (-1, "x", "shorter preferred"),
        ):
            here = agreement == sign
            axes.scatter(longer_by[here], margins[here], marker=marker, label=label, **look)
        neither = agreement == 0
        axes.scatter(longer_by[neither], margins[neither], marker=".", color="gray")
        axes.axhline(0, color="gray", linestyle=":", zorder=1)
        axes.axvline(0, color="gray", linestyle=":", zorder=1)


def _subsets(
    path: Path,
    subsets: dict[str, dict],
    mean: float,
    blind: dict[str, float] | None = None,
) -> None:
    """Accuracy on each subset, the best at the top, with its number of pairs in brackets.

    Look at the bottom: which kind of mistake is not learned? A subset of ten pairs says next to
    nothing. An accuracy below one half does not say that the model learned the opposite. The two
    responses differ in more than what the subset is named for, and a rater who is blind to that one
    thing, and right about all others, is often below one half, too. For the bundled data the red
    mark shows such a rater. Worry about a large subset whose blue mark is not to the right of the
    red one: the model ranks these pairs as if it were blind. Only far to the left of the red mark
    did it learn the opposite.

    subsets: `n` and `accuracy` of each; mean: the mean of those accuracies; blind: as in
        `draw_run`.
    """
    lines = []
    for name, subset in subsets.items():
        line = {**subset, "name": f"{name} ({subset['n']})"}
        if blind:
            line["blind_rater"] = blind.get(name)
        lines.append(line)
    lines.sort(key=itemgetter("accuracy"), reverse=True)
    _accuracies(path, "Accuracy on each subset", lines, mean)


def _accuracies(path: Path, title: str, lines: list[dict], mean: float | None = None) -> None:
    """One or two points on each line, the first line at the top.

    lines: of each the `name`, and those of `accuracy`, `balanced_accuracy`, their intervals and
        `blind_rater` that are known; what a line does not have is not drawn. A long name is cut
        after two lines.
    mean: where a vertical line is drawn to compare with, besides the one of the coin.
    """
    names = [textwrap.fill(line["name"], 30, max_lines=2, placeholder="…") for line in lines]
    height = 1.4 + 0.4 * len(lines)
    with picture(path, title, "accuracy", "", height=height) as (axes,):
        # Without `parse_math`, a "$" in a name is a dollar and does not begin a formula.
        axes.set_yticks(range(len(lines)), names, parse_math=False)
        axes.set_ylim(len(lines) - 0.3, -0.7)
        _dots(axes, lines, "accuracy", 0, BLUE, "o")
        _dots(axes, lines, "balanced_accuracy", 0.25, RED, "s")
        _dots(axes, lines, "blind_rater", 0.25, RED, "x")
        axes.axvline(0.5, color="gray", linestyle=":", label="a coin", zorder=1)
        if mean is not None:
            label = f"mean, {mean:.2f}"
            axes.axvline(mean, color="gray", linestyle="--", label=label, zorder=1)


def _dots(axes, lines: list[dict], key: str, offset: float, color: str, marker: str) -> None:
    """The number `key` of each line as a point with its interval, moved down by `offset`."""
    x = [line.get(key) for line in lines]
    low = [line.get(f"{key}_low") for line in lines]
    high = [line.get(f"{key}_high") for line in lines]
    y = [place + offset for place in range(len(lines))]

    label = key.replace("_", " ") if any(x) else None  # the legend explains only what is drawn
    axes.plot([low, high], [y, y], "-", color=color)
    axes.plot(x, y, marker, color=color, label=label)


@contextmanager
def picture(
    path: Path, title: str, x_label: str, *y_labels: str, height: float = 3.0
) -> Iterator[list]:
    """Give the panels of an empty figure, one for each label of a y axis, and write it at the end.

    The picture is 900 pixels wide. A README that shows two of them side by side gives 400 pixels to
    each. The figure is therefore small (4.5 inches): on a small figure, the sizes of text and lines
    that matplotlib chooses are comparatively large, and its ticks are few.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, height), dpi=200, layout="constrained")
    figure.suptitle(title)
    panels = list(figure.subplots(1, len(y_labels), squeeze=False)[0])
    for axes, y_label in zip(panels, y_labels, strict=True):
        axes.set(xlabel=x_label, ylabel=y_label, axisbelow=True)
        axes.set_prop_cycle(color=(BLUE, RED), marker=("o", "s"), linestyle=("-", "--"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9")

    yield panels

    # The legend of the last panel serves all of them. Under the panels it hides no data.
    artists, labels = panels[-1].get_legend_handles_labels()
    figure.legend(artists, labels, loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
