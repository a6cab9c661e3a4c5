"""Train and test all approaches on the same folds, and make one table of them.

    python -m minirlhf compare --folds 5
    python -m minirlhf compare --folds 5 --dataset pairs.jsonl --bt-finetune "--lr 3e-5"
    python -m minirlhf compare --folds 5 --only bt-finetune,regression

It starts `python train.py ...` once for each approach and fold, in a process of its own, and then
reads the run folders. With five folds each pair is tested once, and how much the folds differ shows
how much is due to the chance of training. A fifth row, `response only`, is bt-finetune (with the
same flags) trained without the prompts.

Any flag of `train.py` is handed on, to the approaches that understand it. A flag for one approach
alone is given in quotes behind its name, as above. After Ctrl-C or a crash, type the same command
again: finished runs are kept, a bt-finetune goes on after its last whole epoch, and another run
that was stopped starts over.

The folder of the comparison (`--output`, default `runs/compare`) has a run folder and a log for
each run, and the result as `comparison.md`, `.json` and `.png`. In MLflow its runs are children of
one run.
"""

import shlex
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.run_folder import locked
from minirlhf.settings import (
    APPROACHES,
    flag_name,
    flag_parser,
    refuse_unused,
    to_flags,
    typed_flags,
    used_by,
)

RESPONSE_ONLY = "response only"
OURS = ("approach", "fold", "output", "overwrite", "resume", "response_only")
# These decide which pairs are tested, so they must be the same for all approaches.
DATA = (
    "dataset",
    "split",
    "config",
    "prompt_column",
    "chosen_column",
    "rejected_column",
    "chosen_rating_column",
    "rejected_rating_column",
    "limit",
)
TRAIN = Path(__file__).parents[2] / "train.py"


class Job(NamedTuple):
    """What to run for one row of the table: an approach on every fold."""

    name: str
    approach: str
    flags: list[str]  # of train.py, but for fold and folder


def plan(parser: ArgumentParser, args: Namespace, shared: Sequence[str]) -> list[Job]:
    """A job for each row of the table. A mistake in a flag ends the program with one line.

    shared: the flags of train.py that were typed for all approaches.
    """
    reader = flag_parser()
    reader.error = parser.error
    for_all = typed_flags(reader, shared)
    refuse_ours(parser, for_all)

    names = args.only.split(",") if args.only else [*APPROACHES, "response-only"]
    jobs = []
    for name in names:
        if name not in (*APPROACHES, "response-only"):
            parser.error(f"--only {name}: there is {', '.join(APPROACHES)} and response-only")
        approach = "bt-finetune" if name == "response-only" else name
        own = typed_flags(reader, shlex.split(vars(args)[approach.replace("-", "_")]))
        refuse_ours(parser, own)
        refuse_unused(parser, own, approach)
        for key in DATA:
            if key in own:
                parser.error(f"all approaches read the same data; give {flag_name(key)} to all")

        typed = {"approach": approach}
        typed |= {key: value for key, value in for_all.items() if approach in used_by(key)}
        typed |= own
        if name == "response-only":
            typed["response_only"] = True
        jobs.append(
            Job(name.replace("response-only", RESPONSE_ONLY), approach, to_flags(typed))
        )

    for key in for_all:
        if not any(job.approach in used_by(key) for job in jobs):
            parser.error(f"none of the approaches uses {flag_name(key)}")
    return jobs


def refuse_ours(parser: ArgumentParser, typed: dict) -> None:
    """End the program with one line if a flag was typed that the comparison sets itself."""
    for name in OURS:
        if name in typed:
            parser.error(f"compare sets {flag_name(name)} of each run itself")


def run_folder_of(job: Job, fold: int, output: Path) -> Path:
    """Where a job's run on a fold is."""
    return output / f"{job.name.replace(' ', '-')}-{fold}"


def train(job: Job, fold: int, folder: Path) -> None:
    """Start `python train.py`, or let it go on with what it began, and wait for it.

    What it prints goes to a log beside its folder; its errors and progress bars go to the terminal.
    Raises KeyboardInterrupt if it was interrupted, ValueError if it failed.
    """
    if (folder / "config.json").exists():
        flags = ["--resume", str(folder)]
    else:
        flags = [*job.flags, "--fold", str(fold), "--output", str(folder)]
    with open(f"{folder}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, str(TRAIN), *flags], stdout=log)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it was interrupted, too, and is about to say so
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise ValueError(
            f"{job.name} failed on fold {fold}; what it printed is in {folder}.log"
        )


def compare(jobs: Sequence[Job], args: Namespace, shared: Sequence[str]) -> None:
    """Run all jobs on all folds, and write and print the table."""
    from minirlhf.report import comparison, figures
    from minirlhf.report.tables import interval
    from minirlhf.runtime import checkpoint, tracking

    output = Path(args.output)
    config = {
        "command": shlex.join(["python", "-m", "minirlhf", "compare", *sys.argv[2:]]),
        "flags": {job.name: job.flags for job in jobs},
    }
    is_begun = begin(output, config, args.overwrite)
    typed = typed_flags(flag_parser(), shared)
    uri = typed.get("tracking_uri")
    experiment = typed.get("experiment", "minirlhf")
    with tracking.track(uri, experiment, output, tracking.About(), is_begun) as log:
        log({}, step=0)
        print(f"folder    {output}")
        runs = {}
        for job in jobs:
            runs[job.name] = []
            for fold in range(args.folds):
                folder = run_folder_of(job, fold, output)
                if not (folder / "metrics.json").exists():
                    train(job, fold, folder)
                    tracking.make_child(uri, folder, output)
                runs[job.name].append(comparison.read_run(folder))
                comparison.check_same_data(runs)
                test = checkpoint.read_json(folder / "metrics.json")["test"]
                print(
                    f"{job.name:15} fold {fold}  test accuracy {interval(test)}",
                    flush=True,
                )

        table_rows = comparison.compared(runs)
        text = comparison.table(table_rows) + comparison.supported_differences(table_rows)
        text += comparison.warning(table_rows)
        checkpoint.write_json(output / "comparison.json", table_rows)
        checkpoint.write_text(output / "comparison.md", text)
        figures.draw_comparison(output / "comparison.png", table_rows)
        for row in table_rows:
            name = row["name"].replace(" ", "_")
            # MLflow draws all names with the same word before a slash in a section of their own.
            log({f"table/{name}_{key}": value for key, value in row.items()}, step=0)
    tracking.set_description(uri, output, text)
    print(f"\n{text}")
    print(f"everything is in {output}")


def begin(output: Path, config: dict, overwrite: bool) -> bool:
    """Make the folder, or see whether the comparison in it can go on: True if it was begun before.

    Raises ValueError if the folder holds something else, or a comparison with other flags.
    """
    from minirlhf.runtime import checkpoint

    before = flags_of(output)
    if output.exists() and before is None:
        raise ValueError(f"{output} exists and holds no comparison; give another --output")
    if before is None or overwrite:
        with checkpoint.whole_folder(output) as folder:
            checkpoint.write_json(folder / "config.json", config)
        return False

    for name, flags in config["flags"].items():
        if before.get(name, flags) != flags:
            raise ValueError(
                f"{output} holds a comparison with other flags for {name}; "
                "give another --output, or --overwrite to replace it"
            )
    config["flags"] = before | config["flags"]
    checkpoint.write_json(output / "config.json", config)
    return True


def flags_of(output: Path) -> dict | None:
    """The flags of each approach of the comparison in a folder; None if it holds no comparison."""
    from minirlhf.runtime import checkpoint

    try:
        config = checkpoint.read_json(output / "config.json")
        return config.get("flags")  # a run of train.py has a config.json, too
    except (OSError, ValueError, AttributeError):
        return None


def main(argv: Sequence[str] | None = None) -> None:
    """Compare approaches. Bad input: one sentence on stderr and exit code 2."""
    parser = compare_parser()
    args, shared = parser.parse_known_args(argv)
    with one_line(parser, how_to_go_on):
        jobs = plan(parser, args, shared)
        if not TRAIN.is_file():
            raise ValueError("compare starts train.py, which is in minirlhf's repository")
        with locked(Path(args.output)):
            compare(jobs, args, shared)


def how_to_go_on() -> str:
    """What to do after Ctrl-C."""
    return "; go on with the same command"


def compare_parser() -> ArgumentParser:
    """The flags of this command. All others are train.py's."""
    parser = command(
        "compare", "Train and test all approaches on the same folds, for one table."
    )
    parser.epilog = "Any flag of train.py is handed on to the approaches that understand it."
    parser.allow_abbrev = False  # "--fold" must not be read as "--folds"
    add = parser.add_argument
    add(
        "--folds",
        type=int,
        default=1,
        choices=range(1, 6),
        metavar="1..5",
        help="run folds 0 to N - 1; with 5 every pair is tested once (default: %(default)s)",
    )
    add(
        "--only",
        metavar="A,B",
        help="these approaches (default: all four, and response-only)",
    )
    for approach in APPROACHES:
        text = f'flags for {approach} alone, in quotes: --{approach} "--epochs 5"'
        add(f"--{approach}", metavar="FLAGS", default="", help=text)
    add(
        "--output",
        metavar="FOLDER",
        default="runs/compare",
        help="(default: %(default)s)",
    )
    add("--overwrite", action="store_true", help="replace the comparison in --output")
    return parser
