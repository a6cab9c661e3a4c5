"""Is another library's reward model better? Ours, TRL's and sentence-transformers', side by side.

    pip install "minirlhf[bench]"
    python -m minirlhf peers --folds 5
    python -m minirlhf peers --folds 5 --dataset pairs.jsonl --only ours,trl-tuned@5e-5

Each way of training gets the same encoder, pairs, folds and number of epochs, and a process of its
own. They take turns: all of them on the first fold, then all of them on the second. What they do,
and what cannot be made equal, is in `peers_training.py`.

ours                 `python train.py` with its defaults, on two thirds of the encoder's layers
ours-tuned           the same on all layers
trl                  TRL's RewardTrainer as its documentation shows it
trl-tuned            the same on our token ids, with batches and a schedule like ours
cross-encoder        sentence-transformers' CrossEncoder with RankNetLoss, as documented
cross-encoder-tuned  the same without dropout, with batches and a schedule like ours

A tuned way learns at the rate behind its name (`trl-tuned@5e-5`), or at train.py's default. Try
several rates on one fold, and choose by the validation numbers in the table, not by the test
accuracy. The validation loss is the calibrated one (`loops.py`). Keep in mind that many trials on
the bundled pairs led to our defaults, and none to the others'.

The seconds are those of one fold, after the pairs were read: importing the library, loading the
encoder, tokenising, training, and scoring validation and test pairs. For ours they contain all of
`train.py`: it reads the data again, chooses its epoch on validation, scores the test pairs once
more, and writes a report with pictures. The memory is the peak of the process, imports and model
included; on a GPU it is that of its tensors.

TRL leaves out training pairs that are longer than its `max_length`; the log of a run says how many.

The folder `--output` has a folder and a log for each run, and the table of the last command as
`peers.md` and `.json`. After Ctrl-C, type the same command again: finished runs are kept. If you
change the code, take another folder.
"""

import contextlib
import multiprocessing
import os
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.data import PreferencePair, normalize
from minirlhf.experiments import peers_training
from minirlhf.experiments.benchmark_memory import peak_memory
from minirlhf.experiments.peers_training import AS_DOCUMENTED, SHARED, TUNED, WAYS, Scorer, Work
from minirlhf.metrics import accuracies, credit, fit_temperature, negative_log_likelihood
from minirlhf.report.comparison import paired_difference, pool
from minirlhf.report.tables import interval, table
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.device import pick_device
from minirlhf.runtime.run_folder import locked
from minirlhf.settings import FINETUNE, Settings, add_flag, number

NEEDED = {  # packages that minirlhf itself does not need
    "trl": "trl",
    "trl-tuned": "trl",
    "cross-encoder": "accelerate",
    "cross-encoder-tuned": "accelerate",
}
PACKAGES = ("torch", "transformers", "accelerate", "sentence-transformers", "trl")
TITLES = [
    "training",
    "seconds a fold",
    "peak, MB",
    "validation loss",
    "validation accuracy",
    "test accuracy [95 %]",
    "minus the first",
    "the same, over folds",
    "mean over subsets [95 %]",
    "minus the first",
]


class Way(NamedTuple):
    """A line of the table."""

    name: str  # of `peers_training.WAYS`
    lr: float  # the learning rate, if it is a tuned one

    @property
    def label(self) -> str:
        """Its name in the table and on the disk."""
        return f"{self.name}@{self.lr:g}" if self.name in TUNED else self.name


class PeerRun(NamedTuple):
    """One way of training on one fold."""

    data: str  # checksum of all pairs
    numbers: dict  # seconds, peak_mb, and accuracy and loss on validation
    margins: Tensor  # (N,) of the test pairs
    lengths: Tensor  # (N, 2) characters of the chosen and the rejected response
    prompts: list[str]  # (N,) normalised
    subsets: list[str]  # (N,)


# ---- one run, in a process of its own


def run_one(name: str, settings: Settings, folder: Path) -> None:
    """Train in one way on one fold, and write what came out. What it prints goes to a log.

    Raises ValueError if it fails.
    """
    with (
        open(f"{folder}.log", "w", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        work = peers_training.prepare(settings)
        start = time.perf_counter()
        try:
            score = peers_training.train(name, work)
        # train.py exits after a mistake, and each library has errors of its own.
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{name} failed on fold {settings.fold} ({type(error).__name__}: {error}); "
                f"what it printed is in {folder}.log"
            ) from error
        on_validation = margins_of(score, work.validation)
        on_test = margins_of(score, work.test)
        if not torch.cat([on_validation, on_test]).isfinite().all():
            raise ValueError(
                f"{name} gives rewards that are not finite on fold {settings.fold}"
            )
        seconds = time.perf_counter() - start

    temperature = fit_temperature(on_validation)
    numbers = {
        "seconds": seconds,
        "peak_mb": peak_memory(work.machine.device),
        "validation_accuracy": credit(on_validation).double().mean().item(),
        "calibrated_loss": negative_log_likelihood(on_validation, temperature),
    }
    write_run(folder, work, numbers, on_test)


def margins_of(score: Scorer, pairs: Sequence[PreferencePair]) -> Tensor:
    """The reward of the chosen minus that of the rejected response of each pair: (N,) float64."""
    prompts = [pair.prompt for pair in pairs]
    chosen = score(prompts, [pair.chosen for pair in pairs])
    rejected = score(prompts, [pair.rejected for pair in pairs])
    return torch.tensor(chosen).double() - torch.tensor(rejected).double()


def in_child(name: str, settings: Settings, folder: Path) -> None:
    """Call `run_one` in a fresh interpreter. Raises ValueError if that fails."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # TRL would report its use
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as pool_of_one:
            pool_of_one.submit(run_one, name, settings, folder).result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"{name} was killed on fold {settings.fold}, most likely for want of memory"
        ) from error


def write_run(folder: Path, work: Work, numbers: dict, margins: Tensor) -> None:
    """Write a finished run. margins: (N,) of the test pairs."""
    predictions = []
    for pair, margin in zip(work.test, margins.tolist(), strict=True):
        predictions.append(
            {
                "prompt": pair.prompt,
                "subset": pair.subset,
                "lengths": [len(pair.chosen), len(pair.rejected)],
                "margin": margin,
            }
        )
    with checkpoint.whole_folder(folder) as temporary:
        checkpoint.write_jsonl(temporary / "predictions.jsonl", predictions)
        checkpoint.write_json(
            temporary / "numbers.json", {"data": work.data, "numbers": numbers}
        )


def read_run(folder: Path) -> PeerRun:
    """What `write_run` wrote."""
    pairs = checkpoint.read_jsonl(folder / "predictions.jsonl")
    return PeerRun(
        **checkpoint.read_json(folder / "numbers.json"),
        margins=torch.tensor([pair["margin"] for pair in pairs], dtype=torch.float64),
        lengths=torch.tensor([pair["lengths"] for pair in pairs]),
        prompts=[normalize(pair["prompt"]) for pair in pairs],
        subsets=[pair["subset"] for pair in pairs],
    )


# ---- the table


def compared(runs: dict[str, list[PeerRun]]) -> list[dict]:
    """The numbers of each way over all its folds, with paired differences to the first one.

    Raises ValueError if not all runs were made from the same pairs.
    """
    if len({run.data for of_one in runs.values() for run in of_one}) > 1:
        raise ValueError("the data changed between two runs; give another --output")
    pooled = {label: pool(of_one) for label, of_one in runs.items()}
    first = next(iter(pooled.values()))
    rows = []
    for label, of_one in runs.items():
        row: dict = {"name": label}
        for key in of_one[0].numbers:
            row[key] = sum(run.numbers[key] for run in of_one) / len(of_one)
        found = pooled[label]
        row |= accuracies(found.right, found.prompts, found.subsets)
        row["fold_accuracies"] = found.accuracies
        if found is not first:
            row |= paired_difference(found, first, name="minus_first")
        rows.append(row)
    return rows


def text_of(rows: Sequence[dict]) -> str:
    """The table in Markdown."""
    lines = []
    for row in rows:
        lines.append(
            [
                row["name"],
                f"{row['seconds']:,.0f}",
                f"{row['peak_mb']:,.0f}",
                f"{row['calibrated_loss']:.3f}",
                f"{row['validation_accuracy']:.3f}",
                interval(row, "accuracy"),
                interval(row, "minus_first_accuracy"),
                interval(row, "minus_first_fold_mean"),
                interval(row, "balanced_accuracy"),
                interval(row, "minus_first_balanced_accuracy"),
            ]
        )
    return table(TITLES, lines)


# ---- the command


def flag_parser() -> ArgumentParser:
    """The flags of this command."""
    parser = command("peers", "Compare results with TRL and sentence-transformers.")
    parser.allow_abbrev = False  # "--fold" must not be read as "--folds"
    add = parser.add_argument
    for one in fields(Settings):
        if one.name in SHARED:
            add_flag(parser, one)
    add(
        "--folds",
        type=int,
        default=1,
        choices=range(1, 6),
        metavar="1..5",
        help="run folds 0 to N - 1 (default: %(default)s)",
    )
    add(
        "--only",
        default=",".join(WAYS),
        metavar="A,B@LR",
        help="some of %(default)s; a tuned one may bring its learning rate",
    )
    add(
        "--output",
        metavar="FOLDER",
        default="runs/peers",
        help="(default: %(default)s)",
    )
    return parser


def asked_for(parser: ArgumentParser, only: str) -> list[Way]:
    """The ways that were asked for, each once."""
    ways = [read_way(parser, text) for text in only.split(",")]
    return list(dict.fromkeys(ways))


def read_way(parser: ArgumentParser, text: str) -> Way:
    """A way as it was typed: `trl` or `trl-tuned@5e-5`.

    A mistake ends the program with one line and exit code 2.
    """
    name, _, rate = text.partition("@")
    if name not in WAYS or (rate and name not in TUNED):
        parser.error(
            f"--only {text}: there is {', '.join(AS_DOCUMENTED)}, and, with a learning rate "
            f"behind an @ if you like, {', '.join(TUNED)}"
        )
    package = NEEDED.get(name)
    if package and version_of(package) is None:
        parser.error(f'{name} needs {package}: pip install "minirlhf[bench]"')
    if not rate:
        return Way(name, FINETUNE.lr)
    try:
        return Way(name, number(float, 1e-9, 10)(rate))
    except (ValueError, ArgumentTypeError):
        parser.error(f"--only {text}: {rate} is no learning rate from 1e-9 to 10")


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def settings_of(args: Namespace) -> Settings:
    """The settings that were typed, and for the rest the defaults of `train.py`."""
    typed = {name: value for name, value in vars(args).items() if name in SHARED}
    return replace(FINETUNE, **typed)


def peers(ways: Sequence[Way], args: Namespace) -> None:
    """Run all ways on all folds, and write and print the table."""
    output = Path(args.output)
    settings = settings_of(args)
    begin(output, settings)
    runs: dict[str, list[PeerRun]] = {way.label: [] for way in ways}
    for fold in range(args.folds):
        for way in ways:
            folder = output / f"{way.label}-{fold}"
            if not folder.exists():
                print(f"{way.label}, fold {fold}: begins at {time.strftime('%H:%M:%S')}")
                in_child(way.name, replace(settings, fold=fold, lr=way.lr), folder)
            run = read_run(folder)
            runs[way.label].append(run)
            print(
                f"{way.label}, fold {fold}: {run.numbers['seconds']:.0f} seconds, "
                f"validation accuracy {run.numbers['validation_accuracy']:.3f}"
            )

    rows = compared(runs)
    text = text_of(rows)
    checkpoint.write_json(output / "peers.json", rows)
    checkpoint.write_text(output / "peers.md", text)
    print(f"\n{text}\neverything is in {output}")


def begin(output: Path, settings: Settings) -> None:
    """Make the folder, or see whether the runs in it were made in the same way.

    Raises ValueError if they were not, or if the folder holds something else.
    """
    machine = pick_device(settings.device)
    config = {
        "peers": {name: getattr(settings, name) for name in SHARED},
        "machine": f"{machine.device}, {machine.dtype}, threads: {torch.get_num_threads()}",
        "versions": {package: version_of(package) for package in PACKAGES},
    }
    file = output / "config.json"
    if output.exists():
        before = checkpoint.read_json(file) if file.exists() else {}
        if "peers" not in before:
            raise ValueError(f"{output} holds something else; give another --output")
        if before != config and any(output.glob("*/numbers.json")):
            raise ValueError(f"{output} holds runs with other settings; give another --output")
    output.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(file, config)


def main(argv: Sequence[str] | None = None) -> None:
    """Train in all ways and make one table. Bad input: one sentence and exit code 2."""
    parser = flag_parser()
    args = parser.parse_args(argv)
    ways = asked_for(parser, args.only)
    with one_line(parser):
        if not peers_training.TRAIN.is_file():
            raise ValueError("peers starts train.py, which is in minirlhf's repository")
        with locked(Path(args.output)):
            peers(ways, args)


if __name__ == "__main__":
    main()
