"""Draw the pictures of the README that are not about one run.

    python -m minirlhf pictures

    pooling.png      Which tokens does each pooler read, and which one is read by mistake?
    gradient.png     How far does the gradient reach in each of the four approaches?
    losses.png       What does the Bradley-Terry loss do, and what does a sigmoid before it spoil?
    comparison.png   Which approach is better? Drawn from `bundled.json`, which `compare` wrote.
    mistakes.png     What does each classic mistake cost? Drawn from `mistakes.json`.
    work.png         How good does a model get for how much work? Drawn from `work.json`.
    policy.png       What do four ways to use a reward make of a policy? Drawn from `policy.json`.
    turn.png         On which reward does a policy turn how soon? Drawn from `turn.json`.

The first three pictures need no results. The others need the named file in the folder of results
(`.github/results`); where it is missing, the picture is skipped and a line says so. No picture is
drawn by hand, so after a change to a loss or to a result, run this command again. Two runs write
the same pixels.

The background is white and opaque, because the page around it may be dark. The colours are those
of `report/figures.py`: blue stands for what is right or trained, vermilion for what is wrong and
for the gradient. A hatch, a marker or a word says the same again for readers who cannot tell the
colours apart.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.losses import bradley_terry_loss
from minirlhf.policy import report as policy_report
from minirlhf.report import figures
from minirlhf.report.figures import BLUE, RED
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line


# ---- Parts that the diagrams are made of
@contextmanager
def sheet(path: Path, title: str, height: float) -> Iterator:
    """Give the axes of an empty page for a diagram, and write the page at the end.

    Coordinates are counted from the top left corner. The page is 90 units wide and `height` units
    high; a unit is ten pixels. That is as wide as `figures.picture`, so that diagrams and plots
    look alike side by side.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, height / 20), dpi=200)
    figure.suptitle(title, y=1 - 1 / height, verticalalignment="top")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 90), ylim=(height, 0))
    axes.set_axis_off()
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


class Look(NamedTuple):
    """How a box is painted."""

    fill: str
    edge: str
    text: str
    hatch: str | None = None


LOOKS = {
    "trained": Look(fill=BLUE, edge=BLUE, text="white"),
    "frozen": Look(fill="0.9", edge="0.6", text="black", hatch="////"),
    "special": Look(fill="0.85", edge="0.5", text="black"),
    "plain": Look(fill="white", edge="black", text="black"),
    "vector": Look(fill=BLUE, edge="white", text="white"),
    "wrong": Look(fill="white", edge=RED, text=RED, hatch="xxxx"),
}


def box(
    axes, x: float, y: float, width: float, height: float, text: str, look: str, **font
) -> None:
    """Draw a box with its top left corner at (x, y) and `text` in its middle.

    `look` is a key of LOOKS; `font` goes to matplotlib's text.
    """
    from matplotlib.patches import Rectangle

    paint = LOOKS[look]
    colors = {"facecolor": paint.fill, "edgecolor": paint.edge, "hatch": paint.hatch}
    axes.add_patch(Rectangle((x, y), width, height, **colors))

    if paint.hatch:
        # The letters get a ground of their own, since nobody can read them on a hatch.
        font["bbox"] = {"facecolor": paint.fill, "edgecolor": "none", "pad": 0.8}
    say(axes, x + width / 2, y + height / 2, text, color=paint.text, **font)


def say(axes, x: float, y: float, text: str, ha: str = "center", **font) -> None:
    """Write a line of text whose middle is at the height y."""
    axes.text(x, y, text, ha=ha, va="center_baseline", fontsize=8, **font)


def arrow(
    axes,
    x: float,
    y: float,
    to_x: float,
    to_y: float,
    color: str = "black",
    linewidth: float = 1,
) -> None:
    """Draw an arrow from (x, y) to (to_x, to_y)."""
    look = {
        "arrowstyle": "-|>",
        "mutation_scale": 8,  # the size of the head
        "shrinkA": 0,
        "shrinkB": 0,
        "color": color,
        "linewidth": linewidth,
    }
    axes.annotate("", (to_x, to_y), (x, y), arrowprops=look)


def vector(axes, left: float, y: float, look: str) -> None:
    """Draw a vector as three small squares in a row, whose middle is at the height y."""
    for i in range(3):
        box(axes, left + 1.8 * i, y - 0.9, 1.8, 1.8, "", look)


# ---- pooling.png
PAD = "[PAD]"
LONGER = ("[CLS]", "2", "+", "2", "=", "4", "[SEP]")
SHORTER = ("[CLS]", "it", "is", "4", "[SEP]", PAD, PAD)


def draw_pooling(path: Path) -> None:
    """Two texts in one batch, padded on the right, and the tokens that each pooler reads.

    Look at the grey, hatched boxes. They are there only because another text is longer, so a text's
    vector must not depend on them. `hidden[:, -1]` reads one, unless its text is the longest.
    """
    with sheet(path, "Which tokens make the vector of a text?", height=68) as axes:
        _draw_text(axes, 8, "longer text", LONGER)
        _draw_text(axes, 40, "shorter text", SHORTER)


def _draw_text(axes, top: float, name: str, tokens: Sequence[str]) -> None:
    """One text of the batch: its tokens, its mask, and a line for each pooler."""
    columns = [24 + 8.6 * i for i in range(len(tokens))]  # the middle of each token's column
    real = [x for x, token in zip(columns, tokens, strict=True) if token != PAD]
    last = columns[-1]

    say(axes, 1, top + 2.5, name, ha="left", weight="bold")
    say(axes, 1, top + 7, "mask", ha="left")
    say(axes, 85.6, top + 7, "vector")
    for x, token in zip(columns, tokens, strict=True):
        _draw_token(axes, x, top, token)

    # The lines of the poolers are 4.4 units apart.
    first_line = top + 11.2
    _draw_pooler(axes, first_line, "mean", real, "o")
    _draw_pooler(axes, first_line + 4.4, "last", real[-1:], "s")
    _draw_pooler(axes, first_line + 8.8, "cls", real[:1], "^")
    _draw_mistake(axes, top, first_line + 13.2, last, reads_pad=tokens[-1] == PAD)


def _draw_token(axes, x: float, top: float, token: str) -> None:
    """A token in its box, its bit of the mask, and a dotted line down to the poolers."""
    if token == PAD:
        look = "frozen"
    elif token in ("[CLS]", "[SEP]"):
        look = "special"
    else:
        look = "plain"
    bit = "0" if token == PAD else "1"

    box(axes, x - 4, top, 8, 5, token, look, family="monospace")
    say(axes, x, top + 7, bit, family="monospace")
    axes.plot([x, x], [top + 9, top + 25.5], ":", color="0.8", linewidth=1, zorder=0)


def _draw_pooler(
    axes,
    y: float,
    name: str,
    read: list[float],
    marker: str,
    color: str = BLUE,
    look: str = "vector",
) -> None:
    """A pooler's line: its name, a marker at each column that it reads, and the vector it makes."""
    say(axes, 1, y, name, ha="left", family="monospace", color=color)
    axes.plot(read, [y] * len(read), "-", color=color, marker=marker, markersize=7)
    arrow(axes, 80, y, 83, y, color=color)
    vector(axes, 83.8, y, look)


def _draw_mistake(axes, top: float, y: float, last: float, reads_pad: bool) -> None:
    """The line of `hidden[:, -1]`, which reads the last column whether it is a PAD or not."""
    if reads_pad:
        note, marker, look = "reads a PAD", "X", "wrong"
        axes.plot([last, last], [top + 9, top + 24], "--", color=RED, linewidth=1, zorder=0)
    else:
        note, marker, look = "right only by luck", "o", "vector"
    say(axes, last - 2.5, top + 24.4, note, ha="right", color=RED, backgroundcolor="white")
    _draw_pooler(axes, y, "hidden[:, -1]", [last], marker, RED, look)


# ---- gradient.png
class Chain(NamedTuple):
    """An approach as a chain from texts to loss; the questions are those of `approaches.py`."""

    approach: str
    question: str
    texts: tuple[str, ...]  # what goes through the encoder
    head: str
    loss: str
    subtracts: bool = False  # whether the loss reads the difference of two rewards
    trains_encoder: bool = False


CHAINS = (
    Chain(
        approach="regression",
        question="what is this response rated?",
        texts=("response",),
        head="head",
        loss="MSE to\nrating",
    ),
    Chain(
        approach="classification",
        question="is the first preferred?",
        texts=("chosen", "rejected"),
        head="pair\nhead",
        loss="BCE",
    ),
    Chain(
        approach="bt-frozen",
        question="how much better is the chosen?",
        texts=("chosen", "rejected"),
        head="head",
        loss="Bradley-\nTerry",
        subtracts=True,
    ),
    Chain(
        approach="bt-finetune",
        question="the same, learning to read",
        texts=("chosen", "rejected"),
        head="head",
        loss="Bradley-\nTerry",
        subtracts=True,
        trains_encoder=True,
    ),
)


class Span(NamedTuple):
    """Where a part of a chain begins and ends, from left to right."""

    left: float
    right: float

    @property
    def width(self) -> float:
        return self.right - self.left


TEXT = Span(1, 15)
ENCODER = Span(19, 33)
POOL = Span(37, 46)
VECTOR = Span(49, 54.4)
HEAD = Span(58, 67)
MINUS = Span(72.6, 74.8)  # the circle in which one reward is subtracted from the other
LOSS = Span(78, 89)


def draw_gradient(path: Path) -> None:
    """The four approaches as chains, and below each how far the gradient comes back from the loss.

    Look at where the arrow ends: what lies to its left never changes. That is why the vectors of
    frozen encoders are computed once, and why only bt-finetune can learn to read better.
    """
    with sheet(path, "How far does the gradient reach?", height=91) as axes:
        for i, chain in enumerate(CHAINS):
            _draw_chain(axes, 8 + 19 * i, chain)
        _draw_legend(axes)


def _draw_chain(axes, top: float, chain: Chain) -> None:
    """An approach: its title, its boxes and arrows from left to right, and its gradient."""
    say(axes, 1, top + 1.5, chain.approach, ha="left", weight="bold")
    say(axes, 89, top + 1.5, chain.question, ha="right", style="italic")

    top += 4.2  # of the boxes, which are 9 units high
    middle = top + 4.5
    heights = [middle] if len(chain.texts) == 1 else [top + 2, top + 7]
    for text, y in zip(chain.texts, heights, strict=True):
        _draw_path_of_text(axes, y, text, chain.trains_encoder)
        if chain.subtracts:
            arrow(axes, HEAD.right, y, MINUS.left, middle + (y - middle) / 3)

    encoder_look = "trained" if chain.trains_encoder else "frozen"
    box(axes, ENCODER.left, top, ENCODER.width, 9, "encoder", encoder_look)
    box(axes, POOL.left, top, POOL.width, 9, "pool", "plain")
    box(axes, HEAD.left, top, HEAD.width, 9, chain.head, "trained")
    if chain.subtracts:
        _draw_minus(axes, middle)
        arrow(axes, MINUS.right, middle, LOSS.left, middle)
    else:
        arrow(axes, HEAD.right, middle, LOSS.left, middle)
    box(axes, LOSS.left, top, LOSS.width, 9, chain.loss, "plain")

    _draw_way_back(axes, top, chain.trains_encoder)


def _draw_path_of_text(axes, y: float, text: str, trains_encoder: bool) -> None:
    """The way of one text at the height y: through encoder and pooler to a vector and the head."""
    box(axes, TEXT.left, y - 2, TEXT.width, 4, text, "plain")
    arrow(axes, TEXT.right, y, ENCODER.left, y)
    arrow(axes, ENCODER.right, y, POOL.left, y)
    arrow(axes, POOL.right, y, VECTOR.left, y)
    vector(axes, VECTOR.left, y, "plain" if trains_encoder else "frozen")
    arrow(axes, VECTOR.right, y, HEAD.left, y)


def _draw_minus(axes, y: float) -> None:
    """A circle with a minus sign in it."""
    axes.plot(73.2, y, "ok", markersize=9, markerfacecolor="white")
    axes.plot(73.2, y, "_k", markersize=5)


def _draw_way_back(axes, top: float, trains_encoder: bool) -> None:
    """The gradient: an arrow below the boxes, from the loss back to the last part that learns."""
    start = (LOSS.left + LOSS.right) / 2
    stop = ENCODER.left if trains_encoder else HEAD.left
    y = top + 11.6
    axes.plot([start, start], [top + 9.3, y], "-", color=RED, linewidth=2)
    arrow(axes, start, y, stop, y, color=RED, linewidth=2)
    axes.plot([stop, stop], [top + 10, top + 13.2], "-", color=RED, linewidth=2)
    if not trains_encoder:
        say(axes, 56.5, y, "computed once, cached", ha="right")


def _draw_legend(axes) -> None:
    """What the looks of the boxes and the vermilion arrow mean, in one line at the bottom."""
    for x, look, text in (
        (1, "trained", "trained"),
        (19, "frozen", "frozen"),
        (37, "plain", "nothing to learn"),
    ):
        box(axes, x, 87, 4, 2.6, "", look)
        say(axes, x + 5, 88.3, text, ha="left")
    arrow(axes, 77, 88.3, 72, 88.3, color=RED, linewidth=2)
    say(axes, 78, 88.3, "gradient", ha="left")


# ---- losses.png
def draw_losses(path: Path) -> None:
    """The Bradley-Terry loss of one pair against its margin, with and without the mistake.

    The rewards are plus and minus half the margin. Look at the left end, where the model is sure
    and wrong: the right loss is steep there, and the one after a sigmoid is nearly flat, so that
    the model is hardly corrected. Then look at the right end: after a sigmoid the loss stays above
    0.3133 however good the model is.
    """
    margin = torch.linspace(-6, 6, 241)  # (M,)
    chosen = margin / 2
    rejected = -margin / 2
    right = _losses(chosen, rejected)
    wrong = _losses(chosen.sigmoid(), rejected.sigmoid())
    tie = _losses(torch.zeros(1), torch.zeros(1))[0]
    # 1 is the largest difference that two sigmoids can have.
    floor = _losses(torch.ones(1), torch.zeros(1))[0]

    title = "Bradley-Terry loss of one pair"
    x_name = "margin: reward of chosen − reward of rejected"
    with figures.picture(path, title, x_name, "loss", height=3.6) as (axes,):
        markers = {"markevery": 40, "markersize": 5}
        axes.plot(margin, right, label="rewards as they are", **markers)
        axes.plot(margin, wrong, label="after a sigmoid (mistake)", **markers)
        axes.axhline(floor, color="gray", linestyle=":", zorder=1)

        note = f"at a tie: ln 2 = {tie:.4f}"
        pointer = {
            "color": "black",
            "arrowstyle": "->",
            "relpos": (0, 0),
        }  # from the lower left
        axes.annotate(note, (0, tie), (0.4, 3.2), arrowprops=pointer)

        note = f"never below {floor:.4f}:\nsigmoids differ by < 1"
        pointer = {"color": RED, "arrowstyle": "->", "relpos": (0.8, 0)}
        axes.annotate(note, (5, floor), (1.1, 1.3), arrowprops=pointer, color=RED)

        axes.text(-6, 0.5, "hardly a slope", color=RED)


def _losses(chosen: Tensor, rejected: Tensor) -> list[float]:
    """The library's loss of each pair by itself, not their mean: (M,), (M,) -> M numbers."""
    pairs = zip(chosen.split(1), rejected.split(1), strict=True)
    return [bradley_terry_loss(one, other).item() for one, other in pairs]


# ---- comparison.png and mistakes.png
def draw_mistakes(path: Path, table_rows: list[dict]) -> None:
    """What each classic mistake costs, as the experiment that measured it draws it."""
    # Imported here, since it brings the models along, and the diagrams should not wait for them.
    from minirlhf.experiments.mistakes import draw

    draw(path, table_rows)


def draw_work(path: Path, trials: list[dict]) -> None:
    """The accuracy that each trial of a search reached, over the work that its training took.

    trials: of each the `gflop` (thousands of millions of operations in matrix products), the
        `accuracy` on fresh prompts, the number of `layers`, and whether it is the `default`.

    Look for the trials in the upper left: nothing reached more with as little work.
    """
    with figures.picture(
        path, "What a run reaches, and what it costs", "GFLOP", "accuracy"
    ) as (axes,):
        for layers, marker in ((6, "s"), (4, "o"), (3, "^"), (2, "v")):
            some = [trial for trial in trials if trial["layers"] == layers]
            work = [trial["gflop"] for trial in some]
            reached = [trial["accuracy"] for trial in some]
            label = f"{layers} of 6 layers"
            axes.plot(work, reached, marker, color=BLUE, fillstyle="none", label=label)
        chosen = [trial for trial in trials if trial["default"]]
        work = [trial["gflop"] for trial in chosen]
        reached = [trial["accuracy"] for trial in chosen]
        axes.plot(work, reached, "o", color=RED, label="the default")
        axes.axhline(0.5, color="gray", linestyle=":", label="a coin")
        axes.set_xlim(left=0)


# ---- All pictures
def draw_policy(path: Path, kinds: list[dict]) -> None:
    """All methods on the reward of `python train.py`.

    kinds: what the experiment `turn` writes.
    """
    end = " on bt-finetune"
    curves = {}
    for kind in kinds:
        if kind["kind"].endswith(end):
            curves[kind["kind"].removesuffix(end)] = kind["curve"]
    policy_report.draw_curves(path, "Optimised against a reward model", curves)


def draw_turn(path: Path, kinds: list[dict]) -> None:
    """The true rating of GRPO on different rewards. See `draw_policy`."""
    start = "grpo on "
    curves = {}
    for kind in kinds:
        name = kind["kind"].removeprefix(start)
        if kind["kind"].startswith(start) and "," not in name:
            curves[name] = kind["curve"]
    policy_report.draw_curves(path, "GRPO on different rewards", curves, shown=("rating",))


class Result(NamedTuple):
    """A picture of results: the file that holds its table rows, and the function that draws it."""

    file: str
    draw: Callable[[Path, list[dict]], None]


WITHOUT_RESULTS = {
    "pooling": draw_pooling,
    "gradient": draw_gradient,
    "losses": draw_losses,
}
FROM_RESULTS = {
    "comparison": Result("bundled.json", figures.draw_comparison),
    "mistakes": Result("mistakes.json", draw_mistakes),
    "work": Result("work.json", draw_work),
    "policy": Result("policy.json", draw_policy),
    "turn": Result("turn.json", draw_turn),
}


def draw(results: Path, output: Path) -> Iterator[str]:
    """Write all pictures into `output`; give a line for each, also for one that is skipped.

    Raises ValueError if a file of `results` is not what its command writes, OSError if `results` is
    no folder or `output` cannot be written.
    """
    if not results.is_dir():
        raise NotADirectoryError(f"there is no folder of results {results}")
    for name, draw_picture in WITHOUT_RESULTS.items():
        path = output / f"{name}.png"
        draw_picture(path)
        yield str(path)
    for name, result in FROM_RESULTS.items():
        yield _draw_result(result, results / result.file, output / f"{name}.png")


def _draw_result(result: Result, source: Path, path: Path) -> str:
    """Draw one picture of results; the line says where it is, or why it was skipped."""
    if not source.exists():
        return f"{path} skipped: there is no {source}"
    try:
        found = checkpoint.read_json(source)
        # Some commands write their table rows alone, others all that they found.
        table_rows = found["rows"] if isinstance(found, dict) else found
        result.draw(path, table_rows)
    except ModuleNotFoundError as error:
        return f"{path} skipped: {error}"
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{source} does not hold the rows of a picture: {error}") from error
    return str(path)


def main(argv: Sequence[str] | None = None) -> None:
    """Draw all pictures, and print a line for each."""
    parser = command("pictures", "Draw the pictures of the README.")
    add = parser.add_argument
    add(
        "--results",
        default=".github/results",
        metavar="FOLDER",
        help="(default: %(default)s)",
    )
    add(
        "--output",
        default=".github/images",
        metavar="FOLDER",
        help="(default: %(default)s)",
    )
    args = parser.parse_args(argv)
    with one_line(parser):
        for line in draw(Path(args.results), Path(args.output)):
            print(line)
