"""Is another library's reward model better? Ours, TRL's and sentence-transformers', side by side.

    pip install "minirlhf[bench]"
    python -m minirlhf peers --folds 5
    python -m minirlhf peers --folds 5 --dataset pairs.jsonl --only ours,trl-tuned

Each way of training gets the same encoder, pairs, folds and number of epochs, and a process of its
own. They take turns: all of them on the first fold, then all of them on the second. What they do is
in `peers_training.py`.

ours            `python train.py` with its defaults, on two thirds of the encoder's layers
ours-tuned      the same on all layers
trl             TRL's RewardTrainer as its documentation shows it
trl-tuned       the same on our token ids, with our batches and schedule
cross-encoder   sentence-transformers' CrossEncoder with RankNetLoss as its documentation shows it
cross-encoder-tuned  the same with our batches, schedule and longest text, without dropout

The tuned ways take `--lr`. Choose it for each by the validation accuracy in the table; the test
accuracy is not for choosing. The seconds are those of reading and cutting texts, training, and
scoring validation and test pairs, without imports. Ours in them also chooses its epoch, and draws
pictures. The memory is the peak of the process: imports, model and all.

The folder `--output` has a folder and a log for each run, and the result as `peers.md` and `.json`.
After Ctrl-C, type the same command again: finished runs are kept.
"""

import contextlib
import multiprocessing
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.data import PreferencePair, normalize
from minirlhf.experiments import peers_training
from minirlhf.experiments.benchmark_memory import peak_memory
from minirlhf.experiments.peers_training import AS_DOCUMENTED, TUNED, Scorer
from minirlhf.metrics import accuracies, credit, fit_temperature, negative_log_likelihood
from minirlhf.report.comparison import Pooled, paired_difference
from minirlhf.report.tables import interval, table
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.run_folder import locked
from minirlhf.settings import ENCODER, FINETUNE, Settings

WAYS = tuple(AS_DOCUMENTED) + tuple(TUNED)
NEEDED = {"trl": ("trl",), "cross-encoder": ("sentence-transformers", "accelerate")}
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


class PeerRun(NamedTuple):
    """One way of training on one fold."""

    numbers: dict  # seconds, peak_mb, and accuracy and loss on validation
    margins: Tensor  # (N,) of the test pairs
    lengths: Tensor  # (N, 2) characters of the chosen and the rejected response
    prompts: list[str]  # (N,) normalised
    subsets: list[str]  # (N,)


# ---- one run, in a process of its own


def run_one(name: str, settings: Settings, rate: float, folder: Path) -> None:
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
            score = peers_training.train(name, work, rate)
        except Exception as error:  # each library has kinds of its own
            raise ValueError(
                f"{name} failed on fold {settings.fold} ({type(error).__name__}: {error}); "
                f"what it printed is in {folder}.log"
            ) from error
        on_validation = margins_of(score, work.validation)
        on_test = margins_of(score, work.test)
        seconds = time.perf_counter() - start

    temperature = fit_temperature(on_validation)
    numbers = {
        "seconds": seconds,
        "peak_mb": peak_memory(work.machine.device),
        "validation_accuracy": credit(on_validation).double().mean().item(),
        "validation_loss": negative_log_likelihood(on_validation, temperature),
    }
    predictions = []
    for pair, margin in zip(work.test, on_test.tolist(), strict=True):
        predictions.append(
            {
                "prompt": normalize(pair.prompt),
                "subset": pair.subset,
                "lengths": [len(pair.chosen), len(pair.rejected)],
                "margin": margin,
            }
        )
    with checkpoint.whole_folder(folder) as temporary:
        checkpoint.write_jsonl(temporary / "predictions.jsonl", predictions)
        checkpoint.write_json(temporary / "numbers.json", numbers)


def margins_of(score: Scorer, pairs: Sequence[PreferencePair]) -> Tensor:
    """The reward of the chosen minus that of the rejected response of each pair: (N,) float64."""
    prompts = [pair.prompt for pair in pairs]
    chosen = score(prompts, [pair.chosen for pair in pairs])
    rejected = score(prompts, [pair.rejected for pair in pairs])
    return torch.tensor(chosen).double() - torch.tensor(rejected).double()


def in_child(name: str, settings: Settings, rate: float, folder: Path) -> None:
    """Call `run_one` in a fresh interpreter. Raises ValueError if that fails."""
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context) as pool:
            pool.submit(run_one, name, settings, rate, folder).result()
    except BrokenProcessPool as error:
        raise ValueError(
            f"{name} was killed on fold {settings.fold}, most likely for want of memory"
        ) from error


def read_run(folder: Path) -> PeerRun:
    """A finished run from its folder."""
    pairs = checkpoint.read_jsonl(folder / "predictions.jsonl")
    return PeerRun(
        numbers=checkpoint.read_json(folder / "numbers.json"),
        margins=torch.tensor([pair["margin"] for pair in pairs]),
        lengths=torch.tensor([pair["lengths"] for pair in pairs]),
        prompts=[pair["prompt"] for pair in pairs],
        subsets=[pair["subset"] for pair in pairs],
    )


# ---- the table


def compared(runs: dict[str, list[PeerRun]]) -> list[dict]:
    """The numbers of each way over all its folds, with paired differences to the first one."""
    pooled = {name: pool(of_one) for name, of_one in runs.items()}
    first = next(iter(pooled.values()))
    rows = []
    for name, of_one in runs.items():
        row = {"name": name, "folds": len(of_one)}
        for key in of_one[0].numbers:
            row[key] = sum(run.numbers[key] for run in of_one) / len(of_one)
        found = pooled[name]
        row |= accuracies(found.right, found.prompts, found.subsets)
        row["fold_accuracies"] = found.accuracies
        if found is not first:
            row |= paired_difference(found, first)
        rows.append(row)
    return rows


def pool(runs: Sequence[PeerRun]) -> Pooled:
    """The test pairs of several folds as one."""
    right = [credit(run.margins).double() for run in runs]
    return Pooled(
        right=torch.cat(right),
        accuracies=[one.mean().item() for one in right],
        lengths=torch.cat([run.lengths for run in runs]),
        prompts=[prompt for run in runs for prompt in run.prompts],
        subsets=[subset for run in runs for subset in run.subsets],
    )


def text_of(rows: Sequence[dict]) -> str:
    """The table in Markdown."""
    lines = []
    for row in rows:
        lines.append(
            [
                row["name"],
                f"{row['seconds']:,.0f}",
                f"{row['peak_mb']:,.0f}",
                f"{row['validation_loss']:.3f}",
                f"{row['validation_accuracy']:.3f}",
                interval(row, "accuracy"),
                interval(row, "minus_better_accuracy"),
                interval(row, "minus_better_fold_mean"),
                interval(row, "balanced_accuracy"),
                interval(row, "minus_better_balanced_accuracy"),
            ]
        )
    return table(TITLES, lines)


# ---- the command


def flag_parser() -> ArgumentParser:
    """The flags of this command."""
    parser = command("peers", "Compare results with TRL and sentence-transformers.")
    add = parser.add_argument
    add("--dataset", default="arithmetic", help="as train.py's (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="use the first N pairs only")
    add("--model", default=ENCODER, help="(default: %(default)s)")
    add(
        "--max-length",
        type=int,
        default=FINETUNE.max_length,
        metavar="N",
        help="tokens, for the ways that let one choose (default: %(default)s)",
    )
    add(
        "--epochs",
        type=int,
        default=FINETUNE.epochs,
        metavar="N",
        help="for all (default: %(default)s)",
    )
    add(
        "--lr",
        type=float,
        default=FINETUNE.lr,
        metavar="X",
        help="peak of the learning rate, for the tuned ways (default: %(default)s)",
    )
    add(
        "--folds",
        type=int,
        default=1,
        choices=range(1, 6),
        metavar="1..5",
        help="run folds 0 to N - 1 (default: %(default)s)",
    )
    add("--seed", type=int, default=FINETUNE.seed, metavar="N", help="(default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add("--only", metavar="A,B", help=f"of {', '.join(WAYS)} (default: all)")
    add(
        "--output",
        metavar="FOLDER",
        default="runs/peers",
        help="(default: %(default)s)",
    )
    return parser


def check_flags(parser: ArgumentParser, args: Namespace) -> list[str]:
    """The ways that were asked for. A mistake ends the program with one line and exit code 2."""
    names = args.only.split(",") if args.only else list(WAYS)
    for name in names:
        if name not in WAYS:
            parser.error(f"--only {name}: there is {', '.join(WAYS)}")
        for package in NEEDED.get(name.removesuffix("-tuned"), ()):
            if version_of(package) is None:
                parser.error(f'{name} needs {package}: pip install "minirlhf[bench]"')
    if args.epochs < 1 or args.max_length < 8 or not 0 < args.lr < 10:
        parser.error("--epochs must be at least 1, --max-length 8, and --lr from 0 to 10")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    return names


def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def settings_of(args: Namespace) -> Settings:
    """What the flags mean, in the settings of `train.py`."""
    return replace(
        FINETUNE,
        dataset=args.dataset,
        limit=args.limit,
        model=args.model,
        max_length=args.max_length,
        epochs=args.epochs,
        seed=args.seed,
        device=args.device,
    )


def peers(names: Sequence[str], args: Namespace) -> None:
    """Run all ways on all folds, and write and print the table."""
    output = Path(args.output)
    settings = settings_of(args)
    begin(output, args, settings)
    for fold in range(args.folds):
        for name in names:
            folder = folder_of(output, name, args.lr, fold)
            if not folder.exists():
                in_child(name, replace(settings, fold=fold), args.lr, folder)
            numbers = read_run(folder).numbers
            print(
                f"{folder.name:30} {numbers['seconds']:6.0f} seconds, "
                f"validation accuracy {numbers['validation_accuracy']:.3f}"
            )

    runs = {}
    for name in names:
        folders = [folder_of(output, name, args.lr, fold) for fold in range(args.folds)]
        runs[name] = [read_run(folder) for folder in folders]
    rows = compared(runs)
    text = text_of(rows)
    checkpoint.write_json(output / "peers.json", rows)
    checkpoint.write_text(output / "peers.md", text)
    print(f"\n{text}\neverything is in {output}")


def folder_of(output: Path, name: str, rate: float, fold: int) -> Path:
    """Where a run is. That of a tuned way has its learning rate in its name."""
    tuned = f"-lr-{rate:g}" if name in TUNED else ""
    return output / f"{name}{tuned}-{fold}"


def begin(output: Path, args: Namespace, settings: Settings) -> None:
    """Make the folder, or see whether the runs in it are of the same data, encoder and epochs.

    Raises ValueError if they are not.
    """
    names = ("dataset", "limit", "model", "max_length", "epochs", "seed", "device")
    config = {name: getattr(settings, name) for name in names}
    file = output / "config.json"
    if any(output.glob("*/numbers.json")):
        before = checkpoint.read_json(file).get("settings")
        if before != config:
            raise ValueError(f"{output} holds other runs ({before}); give another --output")
        return
    output.mkdir(parents=True, exist_ok=True)
    typed = shlex.join(["python", "-m", "minirlhf", "peers", *sys.argv[2:]])
    packages = ("torch", "transformers", "sentence-transformers", "trl")
    versions = {package: version_of(package) for package in packages}
    checkpoint.write_json(file, {"command": typed, "settings": config, "versions": versions})


def main(argv: Sequence[str] | None = None) -> None:
    """Train in all ways and make one table. Bad input: one sentence and exit code 2."""
    parser = flag_parser()
    args = parser.parse_args(argv)
    names = check_flags(parser, args)
    with one_line(parser):
        if not peers_training.TRAIN.is_file():
            raise ValueError("peers starts train.py, which is in minirlhf's repository")
        Path(args.output).mkdir(parents=True, exist_ok=True)
        with locked(Path(args.output)):
            peers(names, args)


if __name__ == "__main__":
    main()
