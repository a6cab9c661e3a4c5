"""How often does a 95 % interval of `metrics.bootstrap` hold the truth? A simulation.

    python -m minirlhf coverage coverage.json

Prompts are invented whose true accuracy is known. Each has 1 to 6 pairs, which tend to be right or
wrong together: the prompt's own accuracy is drawn from a Beta distribution around the true one, and
two pairs of a prompt then have a correlation of 0.3. The interval is computed as for a real model,
without and with the two imaginary prompts, and it is counted how often it holds the truth. This is
repeated for the difference of two models, and for the mean over subsets of which one is small.

It takes some ten minutes on an idle core. Its tables are in the notebook (experiments/README.md).
"""

import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from minirlhf.metrics import bootstrap
from minirlhf.report.tables import table
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command

PROMPTS = (5, 10, 20, 50, 100, 200)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
DISAGREEMENTS = (0.1, 0.3)
SMALL_SUBSETS = (2, 3, 5, 10)
LARGE_SUBSETS = ([40, 40, 40, 40], [200])  # prompts of each, beside a small one
CORRELATION = 0.3  # of two pairs of one prompt
TRIALS = 400  # a measured share of 0.95 is then good to 0.02, twice its standard error
RESAMPLES = 400


class Invented(NamedTuple):
    """The test pairs of an imaginary model."""

    values: list[float]  # (N,)
    prompts: list[int]
    subsets: list[int]


def near(share: float, rng: random.Random) -> float:
    """One prompt's own share, drawn around the share of all prompts."""
    if share in (0, 1):
        return share
    strength = (1 - CORRELATION) / CORRELATION
    return rng.betavariate(share * strength, (1 - share) * strength)


def invent_accuracy(share: float, sizes: Sequence[int], rng: random.Random) -> Invented:
    """Credits (1 or 0) of a model whose true accuracy is `share`.

    sizes: the number of prompts of each subset.
    """
    invented = Invented([], [], [])
    prompt = 0
    for subset, size in enumerate(sizes):
        for _ in range(size):
            prompt += 1
            own_share = near(share, rng)
            for _ in range(rng.randint(1, 6)):
                invented.values.append(float(rng.random() < own_share))
                invented.prompts.append(prompt)
                invented.subsets.append(subset)
    return invented


def invent_difference(
    disagree: float, better: float, prompts: int, rng: random.Random
) -> Invented:
    """Differences (1, 0 or -1) of two models that disagree on a share of the pairs.

    better: how often the first model is right where they disagree.
    """
    invented = Invented([], [], [])
    for prompt in range(prompts):
        own_disagree = near(disagree, rng)
        own_better = near(better, rng)
        for _ in range(rng.randint(1, 6)):
            value = 0.0
            if rng.random() < own_disagree:
                value = 1.0 if rng.random() < own_better else -1.0
            invented.values.append(value)
            invented.prompts.append(prompt)
            invented.subsets.append(0)
    return invented


def count_hits(
    invent: Callable[[random.Random], Invented],
    truth: float,
    ends: tuple[float, float],
    trials: int,
) -> dict[str, float]:
    """How often the interval holds the truth, without and with imaginary prompts.

    invent: draws the pairs of one trial. The result also holds the intervals' mean widths, and how
    often they lie above zero.
    """
    found = {}
    for name, known_ends in (("without", None), ("with", ends)):
        rng = random.Random(0)
        hits, width, above = 0, 0.0, 0
        for trial in range(trials):
            pairs = invent(rng)
            _, low, high = bootstrap(
                torch.tensor(pairs.values),
                pairs.prompts,
                pairs.subsets,
                known_ends,
                resamples=RESAMPLES,
                seed=trial,
            )
            tolerance = 1e-9  # of a sum of fractions
            hits += low - tolerance <= truth <= high + tolerance
            width += high - low
            above += low > tolerance
        found[name] = hits / trials
        found[f"{name}_width"] = width / trials
        found[f"{name}_above_zero"] = above / trials
    return found


def measure(trials: int) -> dict[str, list[dict]]:
    """Everything that the notebook shows."""
    found: dict[str, list[dict]] = {"accuracy": [], "difference": [], "small_subset": []}
    for prompts in PROMPTS:
        print(f"{prompts} prompts ...", file=sys.stderr, flush=True)
        for share in SHARES:
            invent = partial(invent_accuracy, share, [prompts])
            hits = count_hits(invent, share, (0, 1), trials)
            found["accuracy"].append({"prompts": prompts, "share": share} | hits)

        for disagree in DISAGREEMENTS:
            for better in (0.5, 0.75):
                truth = disagree * (2 * better - 1)
                invent = partial(invent_difference, disagree, better, prompts)
                hits = count_hits(invent, truth, (-1, 1), trials)
                about = {"prompts": prompts, "disagree": disagree, "truth": truth}
                found["difference"].append(about | hits)

    found["small_subset"] = measure_small_subsets(trials)
    return found


def measure_small_subsets(trials: int) -> list[dict]:
    """The mean over subsets, one of which has few prompts."""
    found = []
    for large in LARGE_SUBSETS:
        for small in SMALL_SUBSETS:
            for share in (0.6, 0.8, 0.95):
                invent = partial(invent_accuracy, share, [*large, small])
                hits = count_hits(invent, share, (0, 1), trials)
                found.append({"large": large, "prompts": small, "share": share} | hits)
    return found


def tables(found: dict[str, list[dict]]) -> str:
    """The measured shares as Markdown: without and with imaginary prompts in each cell."""
    by_prompts: dict[int, list[str]] = {}
    for row in found["accuracy"]:
        line = by_prompts.setdefault(row["prompts"], [str(row["prompts"])])
        line.append(pair_of_shares(row, ""))
    titles = ["prompts", *(f"share {share:g}" for share in SHARES)]
    text = table(titles, by_prompts.values())

    lines = []
    for row in found["difference"]:
        cells = [row["prompts"], f"{row['disagree']:g}", f"{row['truth']:g}"]
        cells += [pair_of_shares(row, ""), pair_of_shares(row, "_above_zero")]
        lines.append(cells)
    titles = ["prompts", "they disagree on", "true difference", "holds it", "lies above zero"]
    text += "\n" + table(titles, lines)

    lines = []
    for row in found["small_subset"]:
        large = " + ".join(str(prompts) for prompts in row["large"])
        lines.append([large, row["prompts"], f"{row['share']:g}", pair_of_shares(row, "")])
    titles = ["prompts of the large subsets", "of the small one", "share", "holds it"]
    return text + "\n" + table(titles, lines)


def pair_of_shares(row: dict, what: str) -> str:
    """One number without imaginary prompts, and the same with them."""
    return f"{row[f'without{what}']:.3f}, {row[f'with{what}']:.3f}"


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print the tables, and write the numbers to a file."""
    parser = command("coverage", "Measure how often the intervals hold the truth.")
    parser.add_argument("output", help="the .json file to write")
    args = parser.parse_args(argv)
    found = measure(TRIALS)
    checkpoint.write_json(Path(args.output), found)
    print(tables(found))
