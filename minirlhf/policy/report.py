"""What came of a policy: numbers with their intervals, answers side by side, and the picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minirlhf.bundled.arithmetic import FLAWS
from minirlhf.bundled.grader import UNREADABLE, Grade
from minirlhf.metrics import bootstrap, named
from minirlhf.policy.loop import Answers, of_each, shares_of_flaws
from minirlhf.report import figures
from minirlhf.report.tables import interval, table

SAMPLES = 10  # questions whose answers are shown
FURTHEST = 5.0  # square roots of a nat, in the picture; beyond it nothing new is to be seen
BOUNDS = {"rating": (1.0, 10.0), "flawless": (0.0, 1.0)}  # of a single answer

# Okabe and Ito's colours, and a marker each, so that they differ in black and white too.
STYLES = {
    "best-of-n": ("black", "x"),
    "rejection-sampling": ("#009E73", "^"),
    "dpo-data": ("#CC79A7", "D"),
    "dpo": (figures.RED, "s"),
    "grpo": (figures.BLUE, "o"),
}
PANELS = {"reward": "reward", "rating": "true rating"}
ALL_STYLES = [*STYLES.values(), ("0.6", "v"), ("#56B4E9", "P"), ("#E69F00", "*")]


# ---- numbers


def judged(answers: Answers) -> dict:
    """The numbers of answers to the test questions, with 95 % intervals over the questions."""
    prompts = [question.text for question in answers.draws.questions]
    values = of_each(answers)
    tokens = values.pop("tokens")  # has no interval
    numbers = with_intervals(values, prompts)
    numbers["tokens"] = tokens.mean().item()
    numbers["distinct"] = answers.distinct
    if answers.grades is not None:
        numbers["flaws"] = shares_of_flaws(answers.grades)
    return numbers


def with_intervals(values: dict[str, Tensor], prompts: Sequence[str]) -> dict[str, float]:
    """Each value (P,) as its mean over questions with a 95 % interval: three named numbers."""
    bounds = dict(BOUNDS)
    if "rating" in values and "reward" in values:
        is_truth = torch.equal(values["reward"].double(), values["rating"].double())
        if is_truth:
            bounds["reward"] = BOUNDS["rating"]
    numbers = {}
    for name, of_questions in values.items():
        found = bootstrap(of_questions.cpu().float(), prompts, ends=bounds.get(name))
        numbers |= named(name, found)
    return numbers


# ---- words


def verdict(metrics: dict) -> str:
    """What a run has shown, in a few lines."""
    start = metrics["start"]
    end = metrics["end"]
    lines = [
        f"method     {metrics['method']}, reward: {', '.join(metrics['reward'])}",
        f"reward     {interval(start, 'reward', '.2f')} -> {interval(end, 'reward', '.2f')}",
    ]
    if "rating" in end:
        best = metrics["best"]
        rating = f"{interval(start, 'rating', '.2f')} -> {interval(end, 'rating', '.2f')}"
        lines.append(f"truth      {rating}, of at most 10")
        lines.append(
            f"           {interval(best, 'rating', '.2f')} {metrics['unit']} {best['at']}, which "
            "validation says was the best"
        )
        fell = end["rating_high"] < best["rating_low"]
        rose = "reward" in end and end["reward"] > best["reward"]
        if fell and rose:
            lines.append(
                "           the reward went on rising while the truth fell: over-optimised"
            )
    lines.append(f"distance   {end['kl']:.2f} nats an answer from the start")
    lines.append(
        f"answers    {end['tokens']:.0f} tokens, {end['distinct']:.0%} of them distinct"
    )
    return "\n".join(lines)


def point_cells(point: dict) -> list[str]:
    """The cells of a table for one point of a run."""
    return [
        interval(point, "reward", ".2f"),
        interval(point, "rating", ".2f"),
        f"{point['kl']:.2f}",
        interval(point, "flawless", ".2f"),
        f"{point['tokens']:.0f}",
    ]


def methods_table(runs: Sequence[dict]) -> str:
    """The start, and for each run its best validation point and its end."""
    head = ["method", "at", "reward", "true rating [95 %]", "KL", "flawless", "tokens"]
    lines = [["start", "", *point_cells(runs[-1]["start"])]]
    for metrics in runs:
        for name in ("best", "end"):
            if name in metrics:
                at = f"{name}: {metrics['unit']} {metrics[name]['at']}"
                cells = point_cells(metrics[name])
                if metrics["method"] == "best-of-n":
                    cells[2] = f"at most {cells[2]}"
                lines.append([metrics["method"], at, *cells])
    return table(head, lines)


def samples(before: Answers, after: Answers) -> str:
    """What the policy answered to some questions at its start and at its end, side by side."""
    text = "# The same questions before and after\n"
    for i, question in enumerate(before.draws.questions[:SAMPLES]):
        text += f"\n**{one_line(question.text)}**\n\n"
        for name, answers in (("before", before), ("after", after)):
            answer = one_line(answers.texts[i])
            remark = f"reward {answers.rewards[i]:.2f}"
            if answers.grades is not None:
                remark += f", {in_words(answers.grades[i])}"
            text += f"- {name} ({remark}): {answer}\n"
    return text


def one_line(text: str) -> str:
    """The text without line breaks, which would end a Markdown list."""
    return " ".join(text.split())


def in_words(grade: Grade) -> str:
    """A grade as a few words."""
    flaws = ", ".join(grade.flaws) or "no flaw"
    return f"rated {grade.rating:g}: {flaws}"


# ---- pictures


def draw_flaws(path: Path, history: Sequence[dict]) -> None:
    """The share of each flaw while training.

    Look for a flaw that grows while the reward rises: it is what the reward overlooks, or likes.
    """
    title = "What the policy writes while it trains"
    with figures.picture(path, title, "step", "share of the answers") as (axes,):
        steps = [row["step"] for row in history]
        shown = [flaw for flaw in ("flawless", *FLAWS, UNREADABLE) if flaw in history[0]]
        for i, flaw in enumerate(sorted(shown, key=lambda name: -largest(history, name))[:6]):
            shares = [row[flaw] for row in history]
            label = flaw.replace("_", " ")
            color, marker = ALL_STYLES[i]
            axes.plot(steps, shares, "-", color=color, marker=marker, markersize=3, label=label)


def largest(history: Sequence[dict], name: str) -> float:
    """The largest value that a number has in a history."""
    return max(row[name] for row in history)


def draw_curves(
    path: Path,
    title: str,
    curves: dict[str, Sequence[dict]],
    shown: Sequence[str] = ("reward", "rating"),
) -> None:
    """Reward and true rating against the square root of the KL divergence, a line for each method.

    curves: by method, points with `kl` and the numbers that are shown.
    shown: the numbers, a panel each. A panel leaves out the methods that lack its number, as a
        classification has no reward of a single answer.

    This is how Gao et al. 2022 draw it. Look for where a line of the right panel turns while its
    line of the left panel goes on rising: from there on the policy learns what the reward model is
    wrong about. The gray line is the rating at the start. What is further than `FURTHEST` from the
    start is cut off.
    """
    starts = [points[0] for points in curves.values()]
    shown = [name for name in shown if any(name in start for start in starts)]
    labels = [PANELS[name] for name in shown]
    with figures.picture(
        path, title, "square root of KL (nats)", *labels, height=3.6
    ) as panels:
        for axes, name in zip(panels, shown, strict=True):
            for number, (method, points) in enumerate(curves.items()):
                if name not in points[0]:
                    continue
                color, marker = STYLES.get(method, ALL_STYLES[number % len(ALL_STYLES)])
                x = [math.sqrt(max(point["kl"], 0.0)) for point in points]
                y = [point[name] for point in points]
                axes.plot(x, y, "-", color=color, marker=marker, markersize=3, label=method)
            if name == "rating":
                axes.axhline(starts[0][name], color="0.6", linewidth=0.8, zorder=0)
            axes.set_xlim(right=min(axes.get_xlim()[1], FURTHEST))
