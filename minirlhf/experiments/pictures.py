"""Every picture of the README that is not of one run, from the results in the repository.

    python -m minirlhf pictures

    pooling.png      which tokens does each pooler read, and which one is read by mistake?
    gradient.png     how far does the gradient reach, in each of the four approaches?
    losses.png       what does the Bradley-Terry loss do, and what does a sigmoid before it spoil?
    comparison.png   which approach is better? From `bundled.json`, rows of `commands/compare.py`
    mistakes.png     what does each classic mistake cost? From `mistakes.json`

The first three need no results; the last two are skipped, with a line that says so, where theirs
are not there. Nothing is drawn by hand: who changes a loss or a result runs this again. Two runs
write the same pixels.

The background is white and opaque, for a page may be dark. As in `figures.py`, blue is right or
trained and vermilion is wrong or the gradient; a hatch, a marker or a word says the same again.
"""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from minirlhf.losses import bradley_terry_loss
from minirlhf.report import figures
from minirlhf.report.figures import BLUE, RED
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line

# fmt: off
LOOKS = {  # of a box: what it is filled with, its edge (and hatch), its text
    "trained": {"facecolor": BLUE,    "edgecolor": BLUE,             "color": "white"},
    "frozen":  {"facecolor": "0.9",   "edgecolor": "0.6", "hatch": "////", "color": "black"},
    "special": {"facecolor": "0.85",  "edgecolor": "0.5",            "color": "black"},
    "plain":   {"facecolor": "white", "edgecolor": "black",          "color": "black"},
    "vector":  {"facecolor": BLUE,    "edgecolor": "white",          "color": "white"},
    "wrong":   {"facecolor": "white", "edgecolor": RED, "hatch": "xxxx", "color": RED},
}
TEXTS = {  # as an encoder sees them in one batch
    "longer":  ("[CLS]", "2", "+", "2", "=", "4", "[SEP]"),
    "shorter": ("[CLS]", "it", "is", "4", "[SEP]", "[PAD]", "[PAD]"),
}
CHAINS = {  # what the gradient meets; the question is `approaches.py`'s
    "regression":     ("what is this response rated?",   "head",       "MSE to\nrating"),
    "classification": ("is the first preferred?",        "pair\nhead", "BCE"),
    "bt-frozen":      ("how much better is the chosen?", "head",       "Bradley-\nTerry"),
    "bt-finetune":    ("the same, learning to read",     "head",       "Bradley-\nTerry"),
}
# fmt: on


def draw_pooling(path: Path) -> None:
    """Two texts in one batch, padded on the right, and the tokens that each pooler reads.

    Look at the grey, hatched boxes: a text's vector must not depend on them, since they are there
    only because another text is longer. `hidden[:, -1]` reads one, unless its text is the longest.
    """
    with sheet(path, "Which tokens make the vector of a text?", height=68) as axes:
        for (name, tokens), top in zip(TEXTS.items(), (8, 40), strict=True):
            xs = [24 + 8.6 * i for i in range(len(tokens))]  # the middles of the columns
            real = [x for x, token in zip(xs, tokens, strict=True) if token != "[PAD]"]
            say(axes, 1, top + 2.5, f"{name} text", ha="left", weight="bold")
            say(axes, 1, top + 7, "mask", ha="left")
            say(axes, 85.6, top + 7, "vector")
            for x, token in zip(xs, tokens, strict=True):
                look = "frozen" if x not in real else "special" if len(token) > 2 else "plain"
                box(axes, x - 4, top, 8, 5, token, look, family="monospace")
                say(axes, x, top + 7, str(int(x in real)), family="monospace")
                axes.plot([x, x], [top + 9, top + 25.5], ":", color="0.8", linewidth=1, zorder=0)
            note, marker = "right only by luck", "o"
            if real != xs:
                note, marker = "reads a PAD", "X"
                axes.plot(xs[-1:] * 2, [top + 9, top + 24], "--", color=RED, linewidth=1, zorder=0)
            ground = {"ha": "right", "color": RED, "backgroundcolor": "white"}
            say(axes, xs[-1] - 2.5, top + 24.4, note, **ground)
            lanes = [("mean", real, "o"), ("last", real[-1:], "s"), ("cls", real[:1], "^")]
            lanes.append(("hidden[:, -1]", xs[-1:], marker))
            for i, (pooler, read, marker) in enumerate(lanes):
                y, color = top + 11.2 + 4.4 * i, RED if i == 3 else BLUE
                say(axes, 1, y, pooler, ha="left", family="monospace", color=color)
                axes.plot(read, [y] * len(read), "-", color=color, marker=marker, markersize=7)
                arrow(axes, 80, y, 83, y, color=color)
                for x in (83.8, 85.6, 87.4):
                    box(axes, x, y - 0.9, 1.8, 1.8, "", "wrong" if marker == "X" else "vector")


def draw_gradient(path: Path) -> None:
    """The four approaches as chains, and below each how far the gradient comes back from the loss.

    Look at where the arrow ends: what lies to its left never changes. That is why the vectors of
    frozen encoders are computed once, and why only bt-finetune can learn to read better.
    """
    with sheet(path, "How far does the gradient reach?", height=91) as axes:
        for i, (name, (question, head, loss)) in enumerate(CHAINS.items()):
            top, tuned = 8 + 19 * i, name == "bt-finetune"
            say(axes, 1, top + 1.5, name, ha="left", weight="bold")
            say(axes, 89, top + 1.5, question, ha="right", style="italic")
            top += 4.2
            lanes = {"response": 4.5} if name == "regression" else {"chosen": 2, "rejected": 7}
            difference = name.startswith("bt")
            for text, y in lanes.items():
                box(axes, 1, top + y - 2, 14, 4, text, "plain")
                for start, end in ((15, 19), (33, 37), (46, 49), (54.4, 58)):
                    arrow(axes, start, top + y, end, top + y)
                for x in (49, 50.8, 52.6):
                    box(axes, x, top + y - 0.9, 1.8, 1.8, "", "plain" if tuned else "frozen")
                if difference:  # of two rewards
                    arrow(axes, 67, top + y, 72.6, top + 4.5 + (y - 4.5) / 3)
            box(axes, 19, top, 14, 9, "encoder", "trained" if tuned else "frozen")
            box(axes, 37, top, 9, 9, "pool", "plain")
            box(axes, 58, top, 9, 9, head, "trained")
            if difference:
                axes.plot(73.2, top + 4.5, "ok", markersize=9, markerfacecolor="white")
                axes.plot(73.2, top + 4.5, "_k", markersize=5)
            arrow(axes, 74.8 if difference else 67, top + 4.5, 78, top + 4.5)
            box(axes, 78, top, 11, 9, loss, "plain")
            stop = 19 if tuned else 58
            axes.plot([83.5, 83.5], [top + 9.3, top + 11.6], "-", color=RED, linewidth=2)
            arrow(axes, 83.5, top + 11.6, stop, top + 11.6, color=RED, linewidth=2)
            axes.plot([stop, stop], [top + 10, top + 13.2], "-", color=RED, linewidth=2)
            if not tuned:
                say(axes, 56.5, top + 11.6, "computed once, cached", ha="right")
        legend = {"trained": "trained", "frozen": "frozen", "plain": "nothing to learn"}
        for x, (look, text) in zip((1, 19, 37), legend.items(), strict=True):
            box(axes, x, 87, 4, 2.6, "", look)
            say(axes, x + 5, 88.3, text, ha="left")
        arrow(axes, 77, 88.3, 72, 88.3, color=RED, linewidth=2)
        say(axes, 78, 88.3, "gradient", ha="left")


def draw_losses(path: Path) -> None:
    """The Bradley-Terry loss of one pair against its margin, with and without the mistake.

    The rewards are half the margin and minus half of it. Look at the left end: where the model is
    sure and wrong, the right loss is steep, and the one after a sigmoid nearly flat, so that the
    model is hardly corrected. At the right end it stays above 0.3133 however good the model.
    """
    margin = torch.linspace(-6, 6, 241)  # (M,)
    right = _losses(margin / 2, -margin / 2)
    wrong = _losses((margin / 2).sigmoid(), (-margin / 2).sigmoid())
    tie = _losses(torch.zeros(1), torch.zeros(1))[0]
    floor = _losses(torch.ones(1), torch.zeros(1))[0]  # the largest gap that two sigmoids leave
    words = (
        "Bradley-Terry loss of one pair",
        "margin: reward of chosen − reward of rejected",
        "loss",
    )
    with figures.picture(path, *words, height=3.6) as (axes,):
        look = {"markevery": 40, "markersize": 5}
        axes.plot(margin, right, label="rewards as they are", **look)
        axes.plot(margin, wrong, label="after a sigmoid (mistake)", **look)
        axes.axhline(floor, color="gray", linestyle=":", zorder=1)
        line = {"color": "black", "arrowstyle": "->", "relpos": (0, 0)}  # from the lower left
        axes.annotate(f"at a tie: ln 2 = {tie:.4f}", (0, tie), (0.4, 3.2), arrowprops=line)
        line |= {"color": RED, "relpos": (0.8, 0)}
        why = f"never below {floor:.4f}:\nsigmoids differ by < 1"
        axes.annotate(why, (5, floor), (1.1, 1.3), arrowprops=line, color=RED)
        axes.text(-6, 0.5, "hardly a slope", color=RED)


def _losses(chosen: Tensor, rejected: Tensor) -> list[float]:
    """The loss of each pair by itself: (B,), (B,) -> B numbers; the library's is their mean."""
    pairs = zip(chosen.split(1), rejected.split(1), strict=True)
    return [bradley_terry_loss(a, b).item() for a, b in pairs]


def draw_mistakes(path: Path, rows: list[dict]) -> None:
    """What each classic mistake costs, as the tool that measured it draws it."""
    from minirlhf.experiments.mistakes import draw

    draw(path, rows)


@contextmanager
def sheet(path: Path, title: str, height: float):
    """Give the axes of an empty page for a diagram; write it at the end.

    It is 90 wide and `height` high, counted from the top left corner, a unit being ten pixels: as
    wide as `figures.picture`, so that the two look alike side by side.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, height / 20), dpi=200)
    figure.suptitle(title, y=1 - 1 / height, verticalalignment="top")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 90), ylim=(height, 0))
    axes.set_axis_off()
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def box(axes, x: float, y: float, width: float, height: float, text: str, look: str, **font):
    """A box of LOOKS, its top left corner at (x, y), and the text in its middle."""
    from matplotlib.patches import Rectangle

    colors = dict(LOOKS[look])
    color = colors.pop("color")
    axes.add_patch(Rectangle((x, y), width, height, **colors))
    if "hatch" in colors:  # the letters get a ground of their own
        font["bbox"] = {"facecolor": colors["facecolor"], "edgecolor": "none", "pad": 0.8}
    say(axes, x + width / 2, y + height / 2, text, color=color, **font)


def say(axes, x: float, y: float, text: str, ha: str = "center", **font) -> None:
    """A line of text whose middle is at the height y."""
    axes.text(x, y, text, ha=ha, va="center_baseline", fontsize=8, **font)


def arrow(axes, x: float, y: float, to_x: float, to_y: float, **look) -> None:
    """An arrow from (x, y) to (to_x, to_y)."""
    look = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8, **look}
    axes.annotate("", (to_x, to_y), (x, y), arrowprops={"color": "black", "linewidth": 1} | look)


SCHEMES = {"pooling": draw_pooling, "gradient": draw_gradient, "losses": draw_losses}
DRAWN = {  # name of the picture: where its rows are, and who draws them
    "comparison": ("bundled.json", figures.draw_comparison),
    "mistakes": ("mistakes.json", draw_mistakes),
}


def draw(results: Path, output: Path) -> Iterable[str]:
    """Write all pictures into `output`; give a line for each, also for what is skipped.

    Raises ValueError if a file of `results` is not what its tool writes, OSError if `results` is
    no folder or `output` cannot be written.
    """
    if not results.is_dir():
        raise NotADirectoryError(f"there is no folder of results {results}")
    for name, scheme in SCHEMES.items():
        scheme(output / f"{name}.png")
        yield f"{output / name}.png"
    for name, (file, draw_rows) in DRAWN.items():
        source, path = results / file, output / f"{name}.png"
        if not source.exists():
            yield f"{path} skipped: there is no {source}"
            continue
        try:
            found = checkpoint.read_json(source)  # rows, or all that a tool found, with its rows
            draw_rows(path, found["rows"] if isinstance(found, dict) else found)
            yield str(path)
        except ModuleNotFoundError as error:
            yield f"{path} skipped: {error}"
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{source} does not hold the rows of a picture: {error}") from error


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, and print a line for each picture."""
    parser = command("pictures", "Draw the pictures of the README.")
    add = parser.add_argument
    add("--results", default=".github/results", metavar="FOLDER", help="(default: %(default)s)")
    add("--output", default=".github/images", metavar="FOLDER", help="(default: %(default)s)")
    args = parser.parse_args(argv)
    with one_line(parser):
        for line in draw(Path(args.results), Path(args.output)):
            print(line)


if __name__ == "__main__":
    main()
