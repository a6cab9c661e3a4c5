"""Where does a policy turn? One table and one picture out of many runs of `policy`.

    python -m minirlhf turn runs/policy-* --output turn

A policy that is trained on a reward at first writes better answers, and later answers that only the
reward likes. This puts together runs of `python -m minirlhf policy` that differ in the seed alone,
and shows for every kind of run how high the true rating rose, how far from the start that was, and
what became of it. Intervals are Student's t over the seeds, because the chance of training is
larger than that of the questions; with three seeds they are wide. Runs with the same seed learned
from the same questions, so differences are taken seed by seed, to the first kind of run with that
method.

Writes `turn.json`, `turn.md` and `turn.png`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minirlhf.metrics import named, t_interval
from minirlhf.policy import report
from minirlhf.policy.settings import METHODS, PolicySettings
from minirlhf.report.tables import interval, table
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line

POINTS = ("start", "best", "end")
NUMBERS = ("reward", "rating", "kl", "flawless", "tokens")
MOST_SEEDS = 5  # for which `t_interval` has a table


class PolicyRun(NamedTuple):
    """A finished run of one method."""

    kind: str  # what it shares with the runs of other seeds
    method: str
    seed: int
    metrics: dict
    history: list[dict]


def read_runs(folders: Sequence[Path]) -> list[PolicyRun]:
    """The finished runs in some folders. Raises ValueError if a folder holds none."""
    runs = []
    for folder in folders:
        config = folder / "config.json"
        if not config.is_file():
            raise ValueError(f"{folder} is no run folder of the command policy")
        arguments = checkpoint.read_json(config)["arguments"]
        is_all = arguments["method"] == "all"
        for method in METHODS if is_all else (arguments["method"],):
            place = folder / method if is_all else folder
            if not (place / "metrics.json").is_file():
                raise ValueError(f"the run in {place} is not finished")
            metrics = checkpoint.read_json(place / "metrics.json")
            if "rating" not in metrics["end"]:
                raise ValueError(f"nobody knows what the answers in {place} are worth")
            history = checkpoint.read_jsonl(place / "history.jsonl")
            kind = kind_of(method, arguments)
            runs.append(PolicyRun(kind, method, arguments["seed"], metrics, history))
    return runs


def kind_of(method: str, arguments: dict) -> str:
    """What a run shares with the runs of other seeds, in words."""
    rewards = [Path(name).name for name in arguments["reward"]]
    reward = rewards[0] if len(rewards) == 1 else f"the mean of {len(rewards)}"
    kind = f"{method} on {reward}"
    usual = PolicySettings()
    for name in ("kl_weight", "beta", "lr", "steps", "group"):
        if arguments[name] != getattr(usual, name):
            kind += f", {name.replace('_', ' ')} {arguments[name]:g}"
    return kind


def by_kind(runs: Sequence[PolicyRun]) -> dict[str, list[PolicyRun]]:
    """The runs of each kind, sorted by seed."""
    kinds: dict[str, list[PolicyRun]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        kinds.setdefault(run.kind, []).append(run)
    return kinds


def summarize(runs: Sequence[PolicyRun]) -> dict:
    """The numbers of a kind of run: means over the seeds with their intervals."""
    found = {"kind": runs[0].kind, "method": runs[0].method, "seeds": [r.seed for r in runs]}
    for point in POINTS:
        numbers = {}
        for name in NUMBERS:
            if name in runs[0].metrics[point]:  # a classification has no reward
                numbers |= over_seeds(name, [run.metrics[point][name] for run in runs])
        numbers |= over_seeds("at", [float(run.metrics[point]["at"]) for run in runs])
        found[point] = numbers
    return found


def over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean over seeds as named numbers, with an interval if there are 2 to 5 of them."""
    if 2 <= len(values) <= MOST_SEEDS:
        return named(name, t_interval(values))
    return {name: sum(values) / len(values)}


def difference(runs: Sequence[PolicyRun], first: Sequence[PolicyRun], point: str) -> dict:
    """How much higher the rating is than in the first kind of run, over the seeds of both."""
    of_first = {run.seed: run.metrics[point]["rating"] for run in first}
    differences = []
    for run in runs:
        if run.seed in of_first:
            differences.append(run.metrics[point]["rating"] - of_first[run.seed])
    return over_seeds("difference", differences) if differences else {}


def mean_curve(runs: Sequence[PolicyRun]) -> list[dict]:
    """The history of a kind of run, averaged over its seeds row by row.

    Raises ValueError if the runs were not looked at equally often.
    """
    if len({len(run.history) for run in runs}) > 1:
        raise ValueError(f"the runs of {runs[0].kind!r} have histories of different lengths")
    rows = []
    for same_step in zip(*[run.history for run in runs], strict=True):
        row = {}
        for name in ("kl", "reward", "rating"):
            if name not in same_step[0]:
                continue
            row[name] = sum(one[name] for one in same_step) / len(same_step)
        rows.append(row)
    return rows


def text_of(kinds: Sequence[dict], with_differences: bool = True) -> str:
    """The table of all kinds of run: a line for each of their three points."""
    head = ["kind of run", "point", "reward", "true rating [95 %]", "KL", "flawless"]
    if with_differences:
        head.append("rating minus that of the first kind with this method")
    lines = []
    for found in kinds:
        for point in POINTS:
            numbers = found[point]
            most = "at most " if found["method"] == "best-of-n" and point != "start" else ""
            cells = [
                found["kind"],
                f"{point}, {numbers['at']:.0f}",
                interval({"reward": numbers.get("reward")}, "reward", ".2f"),
                interval(numbers, "rating", ".2f"),
                f"{most}{numbers['kl']:.2f}",
                f"{numbers['flawless']:.2f}",
            ]
            if with_differences:
                cells.append(interval(found[f"minus_first_{point}"], "difference", ".2f"))
            lines.append(cells)
    return table(head, lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Read finished runs, and write table and picture."""
    parser = command("turn", "Put finished runs of the command policy together.")
    parser.add_argument("folders", nargs="+", help="run folders of the command policy")
    parser.add_argument("--output", default="turn", help="folder to write to (default: turn)")
    args = parser.parse_args(argv)
    with one_line(parser):
        groups = list(by_kind(read_runs([Path(name) for name in args.folders])).values())
        kinds = []
        curves = {}
        for runs in groups:
            found = summarize(runs)
            same_method = [other for other in groups if other[0].method == runs[0].method]
            for point in POINTS:
                found[f"minus_first_{point}"] = difference(runs, same_method[0], point)
            found["curve"] = mean_curve(runs)
            kinds.append(found)
            curves[runs[0].kind] = found["curve"]
        output = Path(args.output)
        output.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(output / "turn.json", kinds)
        text = text_of(kinds)
        checkpoint.write_text(output / "turn.md", text)
        report.draw_curves(output / "turn.png", "Where a policy turns", curves)
        print(f"{text}\neverything is in {output}")
