"""How fast is it, and how much memory does it take? Measured beside others, on your machine.

    python -m minirlhf benchmark                           all: half an hour on two cores
    python -m minirlhf benchmark --only finetune,embed     two of its sections
    pip install "minirlhf[bench]"                                TRL beside it, if you like

finetune  pairs a second: ours, TRL's RewardTrainer, and a plain loop in the manner of a notebook
embed     texts a second: ours, sentence-transformers, and the notebook's one text at a time
frozen    a run of ten epochs on frozen features, against one pass of embedding
score     one response (latency), and many
memory    the peak of each way to fine-tune, and of the frozen path with up to 100,000 pairs
start     what an import costs beyond Python itself

All get the same encoder, pairs, token ids and longest length. In `finetune` one epoch is timed: no
loading, tokenising, evaluation, logging or saving; elsewhere tokenising is part of it. Times are
taken in turns (A B A B ...) after a turn for warming up. The share of the ceiling counts what the
real tokens need, three times a forward in training (padding and recomputation are no work done),
against a large matrix product of the same precision, measured in the same turns. Rows whose turns
lie far apart are named below the table: on a busy machine, two runs put tuned TRL at 0.7 and at 1.4
times our speed.

What cannot be made equal: ours leaves the word embeddings as they are, where the others train them;
TRL's model reads the first token through a pooler where ours takes the mean of all, it keeps
statistics in each step, and draws its batches itself. A batch is 32 pairs in
ours and in TRL tuned, 8 in TRL's defaults, 16 in the notebook's loop (its 64 did not fit into
24 GB), which padded to 512 tokens, here to --max-length. Pairs of one prompt often share a
response; we read it once a batch, the others once a pair. So "ours" reads it once a pair too, and
"ours, shared responses read once" is a row of its own. `memory` and `start` need Linux or macOS.

What was tried, and how many times as fast it made fine-tuning the default encoder in batches of 32
pairs (two cores with native bfloat16, in turns; texts of some 160 tokens or bundled ones of 75):

    kept: texts sorted by length, in forwards of 1,024 tokens   1.7
    a bfloat16 copy of the encoder does the work                1.3 on top of it
    plain attention for bfloat16, not the fused kernel          1.4
    a shared response is read once a batch                      1.9 on bundled pairs, which share
    the word embeddings do not learn                            1.13 on bundled texts, 1.03 on long
    left out: 512, 2,048, 4,096 tokens in a forward             0.9, 0.95, 0.8
    torch.compile                                               0.9, and 100 seconds to compile
    an allocator that keeps freed memory (mallopt)              1.7 without the forwards, now 1.0
    jemalloc, preloaded (TRL tuned on long texts: 3.4)          1.0 to 1.1
    attention whose scale and mask take fewer passes            1.0
    a backward pass after every 4 pairs: activations stay small 0.8 to 0.9
    lengths in multiples of 16 or 32; gradients kept; sparse
    gradients of the word embeddings; fused AdamW for heads     1.0
    frozen features in half precision on disk                   half the file, but rankings change
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf import data, encoders, loops, score, tokens
from minirlhf import model as models
from minirlhf.approaches import Options
from minirlhf.bundled.arithmetic import generate
from minirlhf.report.words import near_duplicates, table_head, table_row
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line
from minirlhf.runtime.device import pick_device, seed_everything

# fmt: off
# train.py's defaults (a test compares them), but for the epochs.
FINETUNE = {"epochs": 1, "batch_size": 32, "accumulate": 1, "lr": 1e-4, "weight_decay": 0.01,
            "warmup": 0.1, "clip": 1.0, "dropout": 0.0, "patience": 3, "seed": 0}
FROZEN = {"epochs": 10, "batch_size": 64, "lr": 1e-3, "weight_decay": 0.1, "patience": 10,
          "seed": 0}
# fmt: on
FEW = 16  # pairs in the notebook's batch and in the turn that warms up; texts one at a time
NOISE = 1.5  # highest to lowest of the turns; chosen, not measured
FROZEN_PAIRS = (1_000, 10_000, 100_000)


class Work(NamedTuple):
    """What every variant gets: N pairs of U distinct texts, and how to compute."""

    build: Callable[[str], models.RewardModel]  # approach -> a new model
    name: str  # of the encoder
    max_length: int
    device: torch.device
    dtype: torch.dtype
    attention: str | None
    prompts: list[str]  # (U,)
    responses: list[str]  # (U,)
    rows: list  # (U,) token ids
    part: data.Part  # of N pairs
    cost: Tensor  # (U,) operations of a forward, see `operations`


class Run(NamedTuple):
    """One repeat of one variant."""

    value: float  # nan where there is none, and then the unit says why
    unit: str
    speed: float = 0.0  # operations a second for real tokens; 0 where that has no meaning
    dtype: torch.dtype | None = None
    loss: float = math.nan  # mean of the epoch


def prepare(args: argparse.Namespace, **changes) -> Work:
    """Read pairs and tokens. Raises ValueError for data or a model that cannot be had."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()  # nothing between the lines of the table
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    seed_everything(0)
    args = argparse.Namespace(**vars(args) | changes)
    table = generate(args.pairs) if args.dataset == "arithmetic" else data.load_rows(args.dataset)
    pairs = data.usable(data.build_pairs(table)[0])[: args.pairs]
    prompts, responses, (part,) = data.index_texts(pairs)
    device, dtype, attention, _ = pick_device(args.device)
    settings = {"name": args.model, "max_length": args.max_length, "attention": attention}
    build = partial(models.build, **settings, device=device)
    model = build("bt-finetune")
    rows, _ = model.encode(prompts, responses)
    cost = operations(model.encoder, torch.tensor([len(row) for row in rows]))
    texts = {"prompts": prompts, "responses": responses, "rows": rows, "part": part, "cost": cost}
    return Work(build, device=device, dtype=dtype, **settings, **texts)


def apart(work: Work) -> Work:
    """The same pairs, no text shared: 2N texts, the chosen first."""
    texts, count = torch.cat(work.part[:2]), len(work.part.chosen)
    chosen, rejected = torch.arange(2 * count).chunk(2)
    part = work.part._replace(chosen=chosen, rejected=rejected, prompt=chosen)
    rows = [work.rows[i] for i in texts.tolist()]
    return work._replace(rows=rows, part=part, cost=work.cost[texts])


def operations(encoder: torch.nn.Module, lengths: Tensor) -> Tensor:
    """Floating-point operations of one forward of texts of T tokens without padding: (U,) -> (U,).

    2 a token for each weight of a linear layer, and in each layer 2 T T D for the attention's
    scores and as many for its sums. Embeddings, normalisation and a pooler are left out. A causal
    mask is not credited: most kernels compute both halves.
    """
    weights = 0
    for name, module in encoder.named_modules():
        weight = getattr(module, "weight", None)  # not nn.Linear alone: GPT-2 has its own class
        if weight is not None and weight.dim() == 2 and "pooler" not in name:
            weights += 0 if isinstance(module, torch.nn.Embedding) else weight.numel()
    config, lengths = encoder.config, lengths.double()
    return 2 * weights * lengths + 4 * config.num_hidden_layers * config.hidden_size * lengths**2


def now(device: torch.device) -> float:
    """Seconds, after the device has done all it was told to."""
    getattr(torch, device.type).synchronize()
    return time.perf_counter()


# ---- fine-tuning: each function trains on all pairs, and times that alone


def trained(work: Work, times: list, dtype: torch.dtype, loss: float, done: float = 0.0) -> Run:
    """times: when the epoch began and ended; done: operations of a forward of what was read."""
    seconds, done = times[-1] - times[0], done or work.cost.sum().item()
    return Run(len(work.part.chosen) / seconds, "pairs/s", 3 * done / seconds, dtype, loss)


def ours(work: Work, shared: bool = False) -> Run:
    """`loops.fit_finetune` with the defaults of train.py.

    The pass that starts the head is not counted: it is at most a third of an epoch's work.
    """
    work = work if shared else apart(work)
    part, times, read = work.part, [], []

    def clock(steps: Sequence, name: str) -> Iterator:
        if not name.startswith("epoch"):  # the pass that starts the head
            yield from steps
            return
        for pairs in sum(steps, []):  # a text is read once in each batch
            texts = torch.cat([part.chosen[pairs], part.rejected[pairs]]).unique()
            read.append(work.cost[texts].sum().item())
        times.append(now(work.device))
        yield from steps
        times.append(now(work.device))

    few = data.Part(*(t[:8] for t in part))  # the loop wants to evaluate; that is not timed
    how = SimpleNamespace(**FINETUNE), Options(dtype=work.dtype, progress=clock)
    (row,) = loops.fit_finetune(work.build("bt-finetune"), work.rows, part, few, *how)
    return trained(work, times, work.dtype, row["train_loss"], sum(read))


def trl(work: Work, tuned: bool = False) -> Run:
    """TRL's RewardTrainer with its defaults, or tuned: as fast as its flags make it.

    Tuned: batches as large as ours, of like length, no recomputation of activations, the attention
    that ours has. bfloat16 and no dropout are its defaults.
    """
    try:
        import transformers
        from datasets import Dataset
        from trl import RewardConfig, RewardTrainer
    except ImportError:
        return Run(math.nan, "not installed: pip install trl")
    work, times = apart(work), []

    class Clock(transformers.TrainerCallback):
        def on_epoch_begin(self, *_, **__):
            times.append(now(work.device))

        on_epoch_end = on_epoch_begin

    chosen, rejected = ([list(work.rows[i]) for i in side.tolist()] for side in work.part[:2])
    longest = [max(map(len, pair)) for pair in zip(chosen, rejected, strict=True)]
    pairs = {"chosen_ids": chosen, "rejected_ids": rejected, "length": longest}
    how = {"num_train_epochs": 1, "max_length": work.max_length, "save_strategy": "no"}
    how |= {"logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    how |= {"use_cpu": work.device.type == "cpu"}
    if tuned:
        how |= {"per_device_train_batch_size": FINETUNE["batch_size"]}
        how |= {"gradient_checkpointing": False, "bf16": work.dtype == torch.bfloat16}
        # Reads the column `length`, which must therefore not be removed as unused.
        how |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False}
    try:
        path, _ = encoders.resolve(work.name)
        head = {"num_labels": 1, "attn_implementation": work.attention if tuned else None}
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path, **head)
        told = {"train_dataset": Dataset.from_dict(pairs), "callbacks": [Clock()]}
        told["processing_class"] = transformers.AutoTokenizer.from_pretrained(path)
        with tempfile.TemporaryDirectory() as folder:
            trainer = RewardTrainer(model, RewardConfig(folder, **how), **told)
            trainer.remove_callback(transformers.PrinterCallback)
            loss = trainer.train().training_loss
    except Exception as error:  # another version of it must not end the benchmark
        return Run(math.nan, f"failed: {error!r}"[:120])
    dtype = torch.bfloat16 if trainer.args.bf16 else torch.float32
    return trained(work, times, dtype, loss)


def notebook(work: Work) -> Run:
    """The loop that most write first, with the mistakes of the one it was taken from.

    Two forwards a batch, padded to the longest length there may be, in float32 and with dropout;
    the last position read as if it were the last token; a sigmoid on the rewards.
    """
    work = apart(work)
    encoder, tokenizer = encoders.load_auto(work.name)
    head = torch.nn.Linear(encoder.config.hidden_size, 1)
    both = torch.nn.ModuleList([encoder, head]).to(work.device).train()
    optimizer = torch.optim.AdamW(both.parameters(), lr=FINETUNE["lr"])

    def reward(texts: Tensor) -> Tensor:
        rows = [work.rows[i] for i in texts.tolist()]
        padded = tokens.pad(rows, tokenizer.pad_token_id or 0, multiple=work.max_length)
        ids, mask = (t.to(work.device) for t in padded)
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.sigmoid(head(hidden[:, -1, :])).squeeze(-1)

    total, times = 0.0, [now(work.device)]
    for picked in torch.randperm(len(work.part.chosen)).split(FEW):
        chosen, rejected = reward(work.part.chosen[picked]), reward(work.part.rejected[picked])
        loss = -torch.log(torch.sigmoid(chosen - rejected)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(picked)
    times.append(now(work.device))
    return trained(work, times, torch.float32, total / len(work.part.chosen))


TRAINING = {
    "ours": ours,
    "ours, shared responses read once": partial(ours, shared=True),
    "TRL, its defaults": trl,
    "TRL, tuned": partial(trl, tuned=True),
    "notebook's loop": notebook,
}


# ---- the other sections: each returns functions of the work by name, the reference first


def timed(function: Callable, work: Work, unit="texts/s", dtype=None, count=None, times=1) -> Run:
    """Time `function(work)` on the first `count` texts (None: on all)."""
    texts = {"prompts": work.prompts[:count], "responses": work.responses[:count]}
    work = work._replace(**texts, cost=work.cost[:count])
    start = now(work.device)
    function(work)
    seconds, count = now(work.device) - start, len(work.prompts)
    value = {"texts/s": count / seconds, "ms": 1000 * seconds / count, "s": seconds * times}[unit]
    return Run(value, unit, work.cost.sum().item() / seconds if dtype else 0.0, dtype)


@torch.no_grad()
def vectors(model: models.RewardModel, work: Work) -> Tensor:
    """Features (U, D) as train.py makes them."""
    rows, _ = model.encode(work.prompts, work.responses)
    return encoders.cached(partial(model.map, model.vectors), rows)[0]


@torch.no_grad()
def one_by_one(model: models.RewardModel, work: Work) -> None:
    """The same, each text by itself and padded to the longest length."""
    for pair in zip(work.prompts, work.responses, strict=True):
        rows, _ = model.encode(*([text] for text in pair))
        ids, mask = tokens.pad(rows, model.pad_id, multiple=work.max_length)
        model.vectors(ids.to(work.device), mask.to(work.device))


def embed(work: Work) -> dict[str, Callable]:
    """From text to vectors. Tuned: in bfloat16 where that is native, with our attention."""
    model = work.build("bt-frozen")
    published, tokenizer = encoders.load_sentence_transformer(work.name, work.device)
    published.max_seq_length, tokenizer.truncation_side = work.max_length, "left"
    tuned = copy.deepcopy(published).to(work.dtype)
    tuned[0].auto_model.set_attn_implementation(work.attention or "sdpa")

    def theirs(model, work: Work) -> None:
        pairs = zip(work.prompts, work.responses, strict=True)
        texts = [tokens.render(*pair, tokenizer) for pair in pairs]
        model.encode(texts, show_progress_bar=False)

    low, single = {"dtype": work.dtype}, {"dtype": torch.float32}
    return {
        "ours": partial(timed, partial(vectors, model.in_precision(work.dtype)), **low),
        "ours, float32": partial(timed, partial(vectors, model), **single),
        "sentence-transformers": partial(timed, partial(theirs, published), **single),
        "sentence-transformers, tuned": partial(timed, partial(theirs, tuned), **low),
        "notebook: one at a time": partial(timed, partial(one_by_one, model), **single, count=FEW),
    }


def frozen(work: Work) -> dict[str, Callable]:
    """Ten epochs of bt-frozen as train.py runs them without a cache, and as the notebook did.

    On ten times `--pairs`: of few, what a run costs beyond its texts would count too much.
    """
    model = work.build("bt-frozen")
    worker = model.in_precision(work.dtype)

    def whole(work: Work) -> None:
        settings = work.part, work.part, SimpleNamespace(**FROZEN)
        list(loops.fit_frozen(worker, vectors(worker, work), *settings))

    few = min(FEW, len(work.prompts))  # its head's training is left out
    how = {"count": few, "times": FROZEN["epochs"] * 2 * len(work.part.chosen) / few}
    again = partial(timed, partial(one_by_one, model), unit="s", **how)
    once = f"one pass of embedding, {len(work.prompts):,} texts"
    found = {once: partial(timed, partial(vectors, worker), unit="s")}
    found["features once, ten epochs"] = partial(timed, whole, unit="s")
    return found | {f"notebook: embedded in each epoch (scaled up from {few} texts)": again}


def scoring(work: Work) -> dict[str, Callable]:
    """As a user of a trained bt-finetune calls it, from text to number, in float32."""
    scorer = score.Scorer(work.build("bt-finetune").eval())

    def one(work: Work) -> None:
        for pair in zip(work.prompts, work.responses, strict=True):
            scorer.score(*pair)

    def many(work: Work) -> None:
        scorer.score_many(work.prompts, work.responses)

    found = {"one response": partial(timed, one, unit="ms", count=2 * FEW)}
    return found | {"many responses": partial(timed, many, dtype=torch.float32)}


def product(dtype: torch.dtype, work: Work) -> Run:
    """The ceiling: operations a second of a large matrix product."""
    size = 2048 if work.device.type == "cpu" else 8192
    a, times = torch.randn(size, size, device=work.device).to(dtype), []
    for _ in range(20):  # half a second or more, so that no moment decides
        start = now(work.device)
        a @ a
        times.append(now(work.device) - start)
    speed = 2 * size**3 / median(times)
    return Run(speed / 1e9, "GFLOP/s", speed, dtype)


def starting() -> dict[str, Callable]:
    """Each in a fresh interpreter, less the time of one that does nothing."""
    root = Path(__file__).parents[2]
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]

    def seconds(*command: str) -> float:
        how = sys.executable, [sys.executable, *command], os.environ | {"PYTHONPATH": str(root)}
        start = time.perf_counter()
        _, failed = os.waitpid(os.posix_spawn(*how, file_actions=silent), 0)
        return math.nan if failed else time.perf_counter() - start

    def beyond(*command: str) -> Run:
        value = 1000 * (seconds(*command) - seconds("-c", "pass"))
        return Run(value, "failed" if math.isnan(value) else "ms")

    names = [f"import {name}" for name in ("torch", "minirlhf.losses", "minirlhf")]
    commands = {name: ("-c", name) for name in names}
    commands["train.py --help"] = (str(root / "train.py"), "--help")
    return {name: lambda _, c=command: beyond(*c) for name, command in commands.items()}


# ---- memory: each number is from a process of its own


def watch(seen: list[float], done: threading.Event) -> None:
    """A hundred times a second, append how much memory, in MB, this process alone takes.

    Pages of mapped files are not in it: the system may drop them, and reads them again if need be.
    Linux only; elsewhere `seen` stays empty.
    """
    status = Path("/proc/self/status")
    while status.exists() and not done.wait(0.01):
        if not (found := re.search(r"RssAnon:\s+(\d+)", status.read_text())):
            break  # a system that only looks like Linux
        seen.append(int(found[1]) * 1024 / 1e6)


def peak(device: torch.device) -> float:
    """Largest memory so far, in MB: of the process, or on a GPU of its tensors.

    Linux hands `ru_maxrss` on from parent to child, even to a fresh interpreter; `VmHWM` it does
    not. Elsewhere there is only `ru_maxrss`, on macOS in bytes.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if (status := Path("/proc/self/status")).exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_of_training(name: str, args: argparse.Namespace) -> float:
    """Of one variant on a few batches, with imports and model; "": only these."""
    work = prepare(args, pairs=min(args.pairs, 4 * FEW))
    run = TRAINING[name](work) if name else None
    return math.nan if run and math.isnan(run.value) else peak(work.device)


def peak_of_frozen(count: int, args: argparse.Namespace) -> float:
    """Of bt-frozen from file to tested head, with all that train.py holds on the way.

    On a CPU under Linux without the features, which lie in a mapped file (`watch`). Texts are
    bundled ones with a number each, so none is shared. Vectors are random, which does not change
    how much is held.
    """
    seen, done = [], threading.Event()
    threading.Thread(target=watch, args=(seen, done), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_DATASETS_CACHE"] = folder  # before `datasets` is imported
        work = prepare(args, pairs=1, dataset="arithmetic")
        file, some = Path(folder) / "pairs.jsonl", generate(1000)
        with file.open("w") as out:
            for i in range(count):
                row = some[i % len(some)]
                out.write(json.dumps(row | {"prompt": f"{i}. {row['prompt']}"}) + "\n")
        pairs, _ = data.build_pairs(data.load_rows(str(file)))
        train, validation, test = data.split(pairs)
        near_duplicates(train, test)
        prompts, responses, parts = data.index_texts(pairs, train, validation, test)
        model = work.build("bt-frozen")
        rows, _ = model.encode(prompts, responses)

        def at_random(ids: Sequence, mask: Tensor | None = None) -> Tensor:
            return torch.rand(len(ids), model.info["size"])

        features, *_ = encoders.cached(at_random, rows, Path(folder) / "features")
        settings = SimpleNamespace(**FROZEN | {"epochs": 1})
        list(loops.fit_frozen(model, features.to(work.device), *parts[1:3], settings))
        model.vectors = at_random
        loops.evaluate(model, rows, parts[3])
        done.set()
        return max(seen) if seen and work.device.type == "cpu" else peak(work.device)


def in_child(function: Callable, about: str | int, args: argparse.Namespace) -> Run:
    """`function(about, args)` in a fresh interpreter."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            value = pool.submit(function, about, args).result()
    except BrokenProcessPool:
        return Run(math.nan, "killed, most likely for want of memory")
    return Run(value, "not measured: see finetune" if math.isnan(value) else "MB")


def memory(args: argparse.Namespace) -> list[dict]:
    """A row for each peak, measured once, and for what the last step in pairs adds."""
    found = {name: partial(in_child, peak_of_training, name) for name in TRAINING}
    found["imports, model and pairs alone"] = partial(in_child, peak_of_training, "")
    sizes = {f"frozen, {n:,} pairs": partial(in_child, peak_of_frozen, n) for n in FROZEN_PAIRS}
    rows = in_turns("memory", found, args) + in_turns("memory", sizes, args)
    if rows[-1]["median"] and rows[-2]["median"]:
        more = Run(rows[-1]["median"] - rows[-2]["median"], "MB more")
        name = "frozen, from {:,} to {:,} pairs".format(*FROZEN_PAIRS[-2:])
        rows += in_turns("memory", {name: lambda _: more}, args)
    return rows


# ---- turns, table, command


def in_turns(section: str, variants: dict[str, Callable], work, repeats=1, warm=None) -> list[dict]:
    """A row for each variant, run once in each turn; `warm`: the work of a turn before the first.

    Where matrix products are among the variants, the others get their share of that ceiling.
    """
    runs = {name: [] for name in variants}
    for turn in range(0 if warm else 1, repeats + 1):
        for name, variant in variants.items():
            print(f"{section}, turn {turn} of {repeats}: {name}", file=sys.stderr, flush=True)
            run = variant(work if turn else warm)
            runs[name] += [run] if turn else []
    rows = []
    for name, found in runs.items():
        row = {"section": section, "name": name, "unit": found[-1].unit}
        row["values"] = [run.value for run in found if not math.isnan(run.value)]
        row["median"] = median(row["values"]) if row["values"] else None
        row["gflops"] = median(run.speed for run in found) / 1e9 or None
        rows.append(row | {"dtype": str(found[-1].dtype)[6:] if row["gflops"] else None})
    ceilings = {row["dtype"]: row["gflops"] for row in rows if row["unit"] == "GFLOP/s"}
    for row in rows:
        same = row["unit"] == rows[0]["unit"] and row["median"]
        row["relative"] = row["median"] / rows[0]["median"] if same else None
        known = row["dtype"] in ceilings and row["unit"] != "GFLOP/s"
        row["share"] = row["gflops"] / ceilings[row["dtype"]] if known else None
    return rows


def line(row: dict) -> str:
    """A row as a line of Markdown."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"

    low_high = [number(f(row["values"], default=None)) for f in (min, max)]
    spread = " ({} to {})".format(*low_high) if len(row["values"]) > 1 else ""
    cells = [row["section"], row["name"], f"{number(row['median'])} {row['unit']}{spread}".strip()]
    cells += [number(row["relative"]), number(row["gflops"])]
    cells += [f"{row['share']:.0%} of {row['dtype']}" if row["share"] else ""]
    return table_row(cells)


def is_noisy(row: dict) -> bool:
    """True where the turns differ so much that a ratio to another row says little."""
    values = row["values"]
    return row["section"] != "start" and max(values, default=0) > NOISE * min(values, default=0)


SECTIONS = {"finetune": lambda work: TRAINING, "embed": embed, "frozen": frozen, "score": scoring}
SECTIONS |= {"memory": memory, "start": starting}
HEAD = ["section", "what", "median (lowest to highest)", "× the first", "GFLOP/s", "of the ceiling"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what was asked for and print a table, a section's lines as soon as it is done."""
    parser = command("benchmark", "Measure speed, memory, start-up.")
    add = parser.add_argument
    add("--dataset", default="arithmetic", help="as train.py's (default: %(default)s)")
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="(default: %(default)s)")
    add("--pairs", type=int, default=96, metavar="N", help="to train on (default: %(default)s)")
    add("--max-length", type=int, default=256, metavar="N", help="in tokens (default: %(default)s)")
    add("--repeats", type=int, default=3, metavar="N", help="turns (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add("--only", default=",".join(SECTIONS), metavar="A,B", help="of %(default)s (default: all)")
    add("--output", metavar="FILE.json", help="write the numbers there as well")
    args = parser.parse_args(argv)
    asked, output = args.only.split(","), Path(args.output or "none.json")
    if unknown := [name for name in asked if name not in SECTIONS]:
        parser.error(f"there is no section {unknown[0]!r}, only {', '.join(SECTIONS)}")
    if min(args.pairs, args.repeats, args.max_length - 7) < 1:
        parser.error("--pairs and --repeats must be at least 1, --max-length at least 8")
    if output.is_dir() or not output.absolute().parent.is_dir():
        parser.error(f"--output {output} is a folder, or in one that does not exist")
    with one_line(parser):
        device, dtype, _, reason = pick_device(args.device)
        work, warm = prepare(args), prepare(args, pairs=min(args.pairs, FEW))
        length = sum(map(len, work.rows)) / len(work.rows)
        about = {"device": f"{device}: {reason}", "threads": torch.get_num_threads()}
        about |= {"platform": platform.platform(), "versions": encoders.versions()}
        about["pairs"] = f"{len(work.part.chosen)} of {len(work.rows)} texts of {length:.0f} tokens"
        print("\n".join(f"{key:9} {value}" for key, value in about.items()), end="\n\n")
        print(table_head(HEAD), flush=True)
        products = {
            f"matrix product, {str(t)[6:]}": partial(product, t) for t in (dtype, torch.float32)
        }
        rows = []
        for name, section in (
            (name, section) for name, section in SECTIONS.items() if name in asked
        ):
            if name == "memory":
                found = memory(args)
            elif name == "start":
                found = in_turns(name, starting(), None, max(args.repeats, 5))
            else:
                ceiling = {} if name == "frozen" else products
                large = prepare(args, pairs=10 * args.pairs) if name == "frozen" else work
                found = in_turns(name, section(large) | ceiling, large, args.repeats, warm)
            print("\n".join(map(line, found)), flush=True)
            rows += found
        if noisy := [f"{row['section']}: {row['name']}" for row in rows if is_noisy(row)]:
            print(f"\nNOT TO BE TRUSTED, more than {NOISE:g}-fold apart between turns")
            print("(is the machine busy with something else?): " + "; ".join(noisy))
        if args.output:
            checkpoint.write_json(output, {"arguments": vars(args)} | about | {"rows": rows})


if __name__ == "__main__":
    main()
