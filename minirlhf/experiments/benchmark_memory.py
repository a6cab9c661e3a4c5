"""How much memory the benchmark's variants need: each number comes from a process of its own.

Linux and macOS can tell the peak of a process, Windows cannot. Read next: `benchmark.py`.
"""

import json
import math
import multiprocessing
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minirlhf import data, loops
from minirlhf.bundled.arithmetic import generate
from minirlhf.experiments.benchmark_training import TRAINING
from minirlhf.experiments.benchmark_work import FEW, Run, new_model, prepare
from minirlhf.report.duplicates import near_duplicates
from minirlhf.runtime.device import Device
from minirlhf.runtime.features import cached
from minirlhf.runtime.files import load_rows
from minirlhf.settings import FROZEN, Settings

STATUS = Path("/proc/self/status")  # what Linux tells a process about itself


def in_child(function: Callable, about: str | int, settings: Settings) -> Run:
    """The megabytes that `function(about, settings)` returns in a fresh interpreter."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            megabytes = pool.submit(function, about, settings).result()
    except BrokenProcessPool:
        return Run(math.nan, "killed, most likely for want of memory")
    if math.isnan(megabytes):
        return Run(megabytes, "not measured: see finetune")
    return Run(megabytes, "MB")


# ---- what is measured


def peak_of_training(name: str, settings: Settings) -> float:
    """The peak of one way of fine-tuning on a few batches, with imports and model, in MB.

    The name "" measures the imports, the model and the pairs alone.
    """
    few_batches = replace(settings, limit=min(settings.limit, 4 * FEW))
    work = prepare(few_batches)
    if name:
        run = TRAINING[name](work)
        if math.isnan(run.value):
            return math.nan
    return peak_memory(work.machine.device)


def peak_of_frozen(count: int, settings: Settings) -> float:
    """The peak of a bt-frozen run on `count` pairs, from the file to the tested head, in MB.

    On a CPU under Linux this leaves out the features, because they are mapped from a file (see
    `watch`). The pairs are bundled ones with a number in each prompt, so that no two share a text.
    The vectors are random, which does not change how much memory is held.
    """
    seen: list[float] = []
    done = threading.Event()
    threading.Thread(target=watch, args=(seen, done), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # before `datasets` is imported
        one_pair = prepare(replace(settings, dataset="arithmetic", limit=1))
        file = Path(folder) / "pairs.jsonl"
        write_pairs(file, count)
        run_frozen(file, one_pair.settings, one_pair.machine)
        done.set()
        if seen and one_pair.machine.device.type == "cpu":
            return max(seen)
        return peak_memory(one_pair.machine.device)


def write_pairs(file: Path, count: int) -> None:
    """Write `count` bundled pairs, each of another prompt."""
    rows = generate(1000)
    with file.open("w") as out:
        for i in range(count):
            row = dict(rows[i % len(rows)])
            row["prompt"] = f"{i}. {row['prompt']}"
            out.write(json.dumps(row) + "\n")


def run_frozen(file: Path, settings: Settings, machine: Device) -> None:
    """Do what train.py does for bt-frozen, holding all that it holds, with random vectors."""
    pairs, _ = data.build_pairs(load_rows(str(file)))
    train, validation, test = data.split(pairs)
    near_duplicates(train, test)
    texts = data.number_texts(pairs)
    train_part = data.make_part(train, texts)
    validation_part = data.make_part(validation, texts)
    test_part = data.make_part(test, texts)

    model = new_model("bt-frozen", settings, machine)
    token_rows = model.encode(texts.prompts, texts.responses).token_rows

    def random_vectors(texts: Sequence, mask: Tensor | None = None) -> Tensor:
        """Vectors (N, D) of N token rows, or of a batch of ids (N, T) with its mask."""
        return torch.rand(len(texts), model.info["size"])

    found = cached(random_vectors, token_rows, file.parent / "features")
    features = found.vectors.to(machine.device)
    one_epoch = replace(FROZEN, epochs=1)
    list(loops.fit_frozen(model, features, train_part, validation_part, one_epoch))

    model.embed = random_vectors
    loops.evaluate_texts(model, token_rows, test_part)


# ---- how it is measured


def watch(seen: list[float], done: threading.Event) -> None:
    """A hundred times a second, append how much memory this process alone takes, in MB.

    Pages of mapped files are not in it. The system may drop these, and reads them again when they
    are needed. This works on Linux only; elsewhere `seen` stays empty.
    """
    while STATUS.exists() and not done.wait(0.01):
        found = re.search(r"RssAnon:\s+(\d+)", STATUS.read_text())
        if found is None:
            break  # a system that only looks like Linux
        seen.append(megabytes(found[1]))


def peak_memory(device: torch.device) -> float:
    """The largest memory so far, in MB: of the process, or on a GPU of its tensors.

    `ru_maxrss` is what most systems have. Linux hands it on from a parent to its child, even to a
    fresh interpreter, so `VmHWM` is read there, which it does not hand on.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if STATUS.exists():
        found = re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())
        return megabytes(found[1])

    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, elsewhere kilobytes of 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def megabytes(kilobytes: str) -> float:
    """Linux's kilobytes, which are of 1024 bytes, as megabytes of a million bytes."""
    return int(kilobytes) * 1024 / 1e6
