"""How fast is minirlhf, and how much memory does it take? Measured beside others, on your machine.

    python -m minirlhf benchmark                           all: half an hour on two cores
    python -m minirlhf benchmark --only finetune,embed     two of its sections
    pip install "minirlhf[bench]"                          to have TRL beside it, if you like

finetune  pairs a second: ours, TRL's RewardTrainer, and a plain loop in the manner of a notebook
embed     texts a second: ours, sentence-transformers, and the notebook's one text at a time
frozen    a run of ten epochs on frozen features, against one pass of embedding
score     one response (latency), and many
memory    the peak of each way to fine-tune, and of the frozen path with up to 100,000 pairs
start     what an import costs beyond Python itself

All variants get the same encoder, pairs, token ids and longest length. In `finetune` one epoch is
timed, without loading, tokenising, evaluation, logging and saving; in the other sections tokenising
is part of the work. The variants take turns (A B A B ...), after one turn for warming up. On a busy
machine the turns of a variant differ a lot, and the ratio of two variants can be off by a factor of
two. Rows whose turns lie far apart are named below the table.

The share of the ceiling compares two speeds. One counts the operations that the real tokens need,
in training three times those of a forward; padding and recomputation are not counted as work. The
other is that of a large matrix product in the same precision, measured in the same turns.

Some things cannot be made equal. Ours leaves the word embeddings as they are, and the others train
them. TRL's model reads the first token through a pooler, where ours takes the mean of all tokens;
it also keeps statistics in each step and draws its batches itself. A batch is 32 pairs in ours and
in TRL tuned, 8 in TRL's defaults and 16 in the notebook's loop, where 64 did not fit into 24 GB
when they were padded to 512 tokens; here it pads to --max-length. Pairs of one prompt often share a
response. We read it once a batch, and the others once a pair; so that the work is equal, "ours"
reads it once a pair too, and "ours, shared responses read once" is a row of its own. `memory` and
`start` need Linux or macOS.

What was tried to make fine-tuning faster, and how much it gained, is in
minirlhf/experiments/README.md.

The work is in `benchmark_work.py`, the ways of fine-tuning are in `benchmark_training.py`, and the
peaks of memory in `benchmark_memory.py`. This file has the other sections, the turns, the table and
the command.
"""

import argparse
import copy
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from minirlhf import encoders, loops, score, tokens
from minirlhf.experiments.benchmark_memory import in_child, peak_of_frozen, peak_of_training
from minirlhf.experiments.benchmark_training import TRAINING
from minirlhf.experiments.benchmark_work import FEW, Run, Work, new_model, now, prepare
from minirlhf.model import RewardModel
from minirlhf.report.tables import table_head, table_row
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.features import cached
from minirlhf.settings import ENCODER, FINETUNE, FROZEN, Settings

ONE_EPOCH = replace(FINETUNE, epochs=1, batch_size=32)
TEN_EPOCHS = replace(FROZEN, epochs=10)

SECTIONS = ("finetune", "embed", "frozen", "score", "memory", "start")
FROZEN_PAIRS = (1_000, 10_000, 100_000)
NOISE = 1.5  # of the highest turn to the lowest; chosen, not measured
HEAD = [
    "section",
    "what",
    "median (lowest to highest)",
    "× the first",
    "GFLOP/s",
    "of the ceiling",
]

# A way to do a section's work, which it is called with. A section has several, by their names; the
# first one is what the others are compared with.
Variant = Callable[[Work], Run]


# ---- timing


def seconds_of(function: Callable[[Work], None], work: Work) -> float:
    """How long `function(work)` takes."""
    start = now(work.machine.device)
    function(work)
    return now(work.machine.device) - start


def first_texts(work: Work, count: int | None) -> Work:
    """The same work on the first `count` texts; None for all of them."""
    return work._replace(
        prompts=work.prompts[:count],
        responses=work.responses[:count],
        operations=work.operations[:count],
    )


def texts_per_second(
    function: Callable[[Work], None],
    dtype: torch.dtype,
    work: Work,
    count: int | None = None,
) -> Run:
    """How many texts `function(work)` handles in a second, computing in `dtype`."""
    work = first_texts(work, count)
    seconds = seconds_of(function, work)
    speed = work.operations.sum().item() / seconds
    return Run(len(work.prompts) / seconds, "texts/s", speed, dtype)


# ---- embed, frozen, score, start, and the ceiling


@torch.no_grad()
def vectors(model: RewardModel, work: Work) -> Tensor:
    """Features (U, D) as train.py makes them."""
    encoded = model.encode(work.prompts, work.responses)
    return cached(model.vectors, encoded.token_rows).vectors


@torch.no_grad()
def one_by_one(model: RewardModel, work: Work) -> None:
    """The same, but each text by itself and padded to the longest length that there may be."""
    device = work.machine.device
    for prompt, response in zip(work.prompts, work.responses, strict=True):
        encoded = model.encode([prompt], [response])
        longest = work.settings.max_length
        ids, mask = tokens.pad(encoded.token_rows, model.pad_id, multiple=longest)
        model.embed(ids.to(device), mask.to(device))


def embed(work: Work) -> dict[str, Variant]:
    """From text to vectors. "Tuned" is bfloat16 where it is native, with the attention we use."""
    dtype = work.machine.dtype
    model = new_model("bt-frozen", work.settings, work.machine)
    worker = model.in_precision(dtype)

    name = work.settings.model
    published, tokenizer = encoders.load_sentence_transformer(name, work.machine.device)
    published.max_seq_length = work.settings.max_length
    tokenizer.truncation_side = "left"
    tuned = copy.deepcopy(published).to(dtype)
    tuned[0].auto_model.set_attn_implementation(work.machine.attention or "sdpa")

    def theirs(model, work: Work) -> None:
        pairs = zip(work.prompts, work.responses, strict=True)
        texts = [tokens.render(prompt, response, tokenizer) for prompt, response in pairs]
        model.encode(texts, show_progress_bar=False)

    single = torch.float32
    return {
        "ours": partial(texts_per_second, partial(vectors, worker), dtype),
        "ours, float32": partial(texts_per_second, partial(vectors, model), single),
        "sentence-transformers": partial(texts_per_second, partial(theirs, published), single),
        "sentence-transformers, tuned": partial(
            texts_per_second, partial(theirs, tuned), dtype
        ),
        "notebook: one at a time": partial(
            texts_per_second, partial(one_by_one, model), single, count=FEW
        ),
    }


def frozen(work: Work) -> dict[str, Variant]:
    """Ten epochs of bt-frozen as train.py runs them without a cache, and as the notebook did."""
    model = new_model("bt-frozen", work.settings, work.machine)
    worker = model.in_precision(work.machine.dtype)
    few = min(FEW, len(work.prompts))
    texts_in_all_epochs = TEN_EPOCHS.epochs * 2 * len(work.part.chosen)

    def whole_run(work: Work) -> None:
        features = vectors(worker, work)
        list(loops.fit_frozen(worker, features, work.part, work.part, TEN_EPOCHS))

    def once(work: Work) -> Run:
        return Run(seconds_of(partial(vectors, worker), work), "s")

    def ten_epochs(work: Work) -> Run:
        return Run(seconds_of(whole_run, work), "s")

    def in_each_epoch(work: Work) -> Run:  # without the training of its head
        seconds = seconds_of(partial(one_by_one, model), first_texts(work, few))
        return Run(seconds * texts_in_all_epochs / few, "s")

    return {
        f"one pass of embedding, {len(work.prompts):,} texts": once,
        "features once, ten epochs": ten_epochs,
        f"notebook: embedded in each epoch (scaled up from {few} texts)": in_each_epoch,
    }


def scoring(work: Work) -> dict[str, Variant]:
    """From text to number, as a user of a trained bt-finetune calls it, in float32."""
    model = new_model("bt-finetune", work.settings, work.machine)
    scorer = score.Scorer(model.eval())

    def score_each(work: Work) -> None:
        for prompt, response in zip(work.prompts, work.responses, strict=True):
            scorer.score(prompt, response)

    def score_all(work: Work) -> None:
        scorer.score_many(work.prompts, work.responses)

    def one_response(work: Work) -> Run:
        work = first_texts(work, 2 * FEW)
        milliseconds = 1000 * seconds_of(score_each, work)
        return Run(milliseconds / len(work.prompts), "ms")

    return {
        "one response": one_response,
        "many responses": partial(texts_per_second, score_all, torch.float32),
    }


def matrix_products(dtype: torch.dtype) -> dict[str, Variant]:
    """The ceilings: a large matrix product in `dtype` and one in float32."""
    both = (dtype, torch.float32)
    return {f"matrix product, {name_of(one)}": partial(matrix_product, one) for one in both}


def matrix_product(dtype: torch.dtype, work: Work) -> Run:
    """Operations a second of a large matrix product."""
    device = work.machine.device
    size = 2048 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device).to(dtype)
    times = []
    for _ in range(20):  # half a second or more, so that no moment decides
        start = now(device)
        matrix @ matrix
        times.append(now(device) - start)
    speed = 2 * size**3 / median(times)
    return Run(speed / 1e9, "GFLOP/s", speed, dtype)


def starting() -> dict[str, Callable]:
    """Imports and `--help`, each in a fresh interpreter."""
    train = Path(__file__).parents[2] / "train.py"
    commands = {
        "import torch": ["-c", "import torch"],
        "import minirlhf.losses": ["-c", "import minirlhf.losses"],
        "import minirlhf": ["-c", "import minirlhf"],
        "train.py --help": [str(train), "--help"],
    }
    return {name: partial(time_to_start, arguments) for name, arguments in commands.items()}


def time_to_start(arguments: list[str], work: None) -> Run:
    """Milliseconds of `python ARGUMENTS`, less those of a Python that does nothing."""
    value = 1000 * (seconds_of_python(arguments) - seconds_of_python(["-c", "pass"]))
    return Run(value, "failed" if math.isnan(value) else "ms")


def seconds_of_python(arguments: list[str]) -> float:
    """How long `python ARGUMENTS` runs; NaN if it fails."""
    root = str(Path(__file__).parents[2])
    start = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    seconds = time.perf_counter() - start
    return seconds if finished.returncode == 0 else math.nan


# ---- turns


@dataclass
class Line:
    """A line of the table: what a variant did in all turns."""

    section: str
    name: str
    unit: str
    values: list[float] = field(default_factory=list)  # of the turns that have one
    median: float | None = None
    gflops: float | None = None
    dtype: str | None = None
    relative: float | None = None  # the median, in units of that of the section's first line
    share: float | None = None  # of the speed of the matrix product in the same precision


def in_turns(
    section: str, variants: dict[str, Callable], work, repeats: int = 1, warm_up=None
) -> list[Line]:
    """Run each variant once in each turn, and return a line for each.

    work: what a variant is called with. warm_up: the same for a turn before the first, whose
    numbers are dropped; None for no such turn.
    """
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    first_turn = 1 if warm_up is None else 0
    for turn in range(first_turn, repeats + 1):
        for name, variant in variants.items():
            print(
                f"{section}, turn {turn} of {repeats}: {name}",
                file=sys.stderr,
                flush=True,
            )
            if turn == 0:
                variant(warm_up)
            else:
                runs[name].append(variant(work))

    lines = [summarize(section, name, runs_of_one) for name, runs_of_one in runs.items()]
    compare(lines)
    return lines


def summarize(section: str, name: str, runs: list[Run]) -> Line:
    """The line of one variant, before it is compared with others."""
    line = Line(section, name, unit=runs[-1].unit)
    line.values = [run.value for run in runs if not math.isnan(run.value)]
    if line.values:
        line.median = median(line.values)
    speed = median(run.speed for run in runs)
    if speed > 0:
        line.gflops = speed / 1e9
        line.dtype = name_of(runs[-1].dtype)
    return line


def compare(lines: list[Line]) -> None:
    """Fill in how each line compares with the first one and with the ceiling of its precision."""
    first = lines[0]
    ceilings = {line.dtype: line.gflops for line in lines if line.unit == "GFLOP/s"}
    for line in lines:
        if line.unit == first.unit and line.median:
            line.relative = line.median / first.median
        if line.dtype in ceilings and line.unit != "GFLOP/s":
            line.share = line.gflops / ceilings[line.dtype]


def memory(settings: Settings) -> list[Line]:
    """A line for each peak, measured once, and for what the last step in pairs adds."""
    training: dict[str, Callable] = {}
    for name in TRAINING:
        training[name] = partial(in_child, peak_of_training, name)
    training["imports, model and pairs alone"] = partial(in_child, peak_of_training, "")

    sizes: dict[str, Callable] = {}
    for count in FROZEN_PAIRS:
        sizes[f"frozen, {count:,} pairs"] = partial(in_child, peak_of_frozen, count)

    lines = in_turns("memory", training, settings)
    lines += in_turns("memory", sizes, settings)
    before, last = lines[-2], lines[-1]
    if before.median and last.median:
        name = f"frozen, from {FROZEN_PAIRS[-2]:,} to {FROZEN_PAIRS[-1]:,} pairs"
        more = Run(last.median - before.median, "MB more")
        line = summarize("memory", name, [more])
        compare([line])
        lines.append(line)
    return lines


def measure(
    section: str, settings: Settings, work: Work, warm_up: Work, repeats: int
) -> list[Line]:
    """Measure one section."""
    if section == "memory":
        return memory(settings)
    if section == "start":
        return in_turns(section, starting(), None, max(repeats, 5))
    if section == "frozen":
        # With few pairs, what a run costs beyond its texts would count too much.
        work = prepare(replace(settings, limit=10 * settings.limit))
        return in_turns(section, frozen(work), work, repeats, warm_up)

    if section == "finetune":
        variants = dict(TRAINING)
    elif section == "embed":
        variants = embed(work)
    else:
        variants = scoring(work)
    variants.update(matrix_products(work.machine.dtype))
    return in_turns(section, variants, work, repeats, warm_up)


# ---- the table


def to_markdown(line: Line) -> str:
    """A line as a line of a Markdown table."""
    what = f"{shown(line.median)} {line.unit}".strip()
    if len(line.values) > 1:
        what += f" ({shown(min(line.values))} to {shown(max(line.values))})"
    share = f"{line.share:.0%} of {line.dtype}" if line.share else ""
    cells = [
        line.section,
        line.name,
        what,
        shown(line.relative),
        shown(line.gflops),
        share,
    ]
    return table_row(cells)


def shown(value: float | None) -> str:
    """Three digits, or all those before the point; nothing for None."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def name_of(dtype: torch.dtype) -> str:
    """`torch.float32` is "float32"."""
    return str(dtype).removeprefix("torch.")


def is_noisy(line: Line) -> bool:
    """True where the turns differ so much that a ratio to another line says little."""
    if line.section == "start" or not line.values:
        return False
    return max(line.values) > NOISE * min(line.values)


def warn_of_noise(lines: list[Line]) -> None:
    """Name the lines that are not to be trusted."""
    noisy = [f"{line.section}: {line.name}" for line in lines if is_noisy(line)]
    if noisy:
        print(f"\nNOT TO BE TRUSTED, more than {NOISE:g}-fold apart between turns")
        print("(is the machine busy with something else?): " + "; ".join(noisy))


# ---- the command


def flag_parser() -> argparse.ArgumentParser:
    """The parser of the command's flags."""
    parser = command("benchmark", "Measure speed, memory, start-up.")
    add = parser.add_argument
    add("--dataset", default="arithmetic", help="as train.py's (default: %(default)s)")
    add("--model", default=ENCODER, help="(default: %(default)s)")
    add(
        "--pairs",
        type=int,
        default=96,
        metavar="N",
        help="to train on (default: %(default)s)",
    )
    add(
        "--max-length",
        type=int,
        default=256,
        metavar="N",
        help="in tokens (default: %(default)s)",
    )
    add("--repeats", type=int, default=3, metavar="N", help="turns (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add(
        "--only",
        default=",".join(SECTIONS),
        metavar="A,B",
        help="of %(default)s (default: all)",
    )
    add("--output", metavar="FILE.json", help="write the numbers there as well")
    return parser


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program with one line and exit code 2 if the flags make no sense."""
    for name in args.only.split(","):
        if name not in SECTIONS:
            parser.error(f"there is no section {name!r}, only {', '.join(SECTIONS)}")
    if args.pairs < 1 or args.repeats < 1 or args.max_length < 8:
        parser.error("--pairs and --repeats must be at least 1, --max-length at least 8")
    if args.output:
        output = Path(args.output)
        if output.is_dir() or not output.absolute().parent.is_dir():
            parser.error(f"--output {output} is a folder, or in one that does not exist")


def describe(work: Work) -> dict:
    """What the numbers depend on: device, platform, versions and texts."""
    lengths = [len(ids) for ids in work.token_rows]
    length = sum(lengths) / len(lengths)
    return {
        "device": f"{work.machine.device}: {work.machine.reason}",
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": encoders.versions(),
        "pairs": f"{len(work.part.chosen)} of {len(lengths)} texts of {length:.0f} tokens",
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for and print a table, a section's lines as soon as it is done."""
    parser = flag_parser()
    args = parser.parse_args(argv)
    check_flags(parser, args)

    settings = replace(
        ONE_EPOCH,
        dataset=args.dataset,
        model=args.model,
        limit=args.pairs,
        max_length=args.max_length,
        device=args.device,
    )
    with one_line(parser):
        work = prepare(settings)
        warm_up = prepare(replace(settings, limit=min(args.pairs, FEW)))
        about = describe(work)
        for key, value in about.items():
            print(f"{key:9} {value}")
        print()
        print(table_head(HEAD), flush=True)

        lines: list[Line] = []
        asked = args.only.split(",")
        for section in SECTIONS:
            if section in asked:
                of_section = measure(section, settings, work, warm_up, args.repeats)
                for line in of_section:
                    print(to_markdown(line), flush=True)
                lines += of_section
        warn_of_noise(lines)

        if args.output:
            numbers = {
                "arguments": vars(args),
                **about,
                "rows": [asdict(line) for line in lines],
            }
            checkpoint.write_json(Path(args.output), numbers)


if __name__ == "__main__":
    main()
