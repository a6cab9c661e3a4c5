"""`benchmark` counts operations right and gives every variant the same work.

No test asserts a time: how fast this machine is, is not what is tested.
"""

import json
import math
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from minirlhf import encoders, settings
from minirlhf.experiments import benchmark, benchmark_memory, benchmark_training, benchmark_work
from minirlhf.runtime.device import Device, seed_everything

FLOAT32 = Device(torch.device("cpu"), torch.float32, None, "for the test")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A small matrix product: what is in it does not matter here."""
    randn = torch.randn
    monkeypatch.setattr(benchmark.torch, "randn", lambda *size, **how: randn(8, 8, **how))


@pytest.fixture
def few_pairs(tiny_encoder):
    """The settings of a benchmark on eight pairs and a tiny encoder."""
    return replace(
        benchmark.ONE_EPOCH,
        dataset="arithmetic",
        model=tiny_encoder,
        limit=8,
        max_length=96,
        device="cpu",
    )


def without_trl(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)  # `import trl` raises ImportError


def test_operations_of_minilm_by_hand():
    size = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
    with torch.device("meta"):
        encoder = BertModel(BertConfig(intermediate_size=1536, **size))
    weights = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert weights == 10_616_832
    expected = [2 * weights * t + 6 * 4 * t * t * 384 for t in (1, 100)]
    assert expected[1] == 2_215_526_400
    assert (
        benchmark_work.forward_operations(encoder, torch.tensor([1, 100])).tolist() == expected
    )


@pytest.mark.parametrize("kind", ["tiny_encoder", "tiny_decoder"])
def test_operations_are_those_that_torch_counts(kind, request):
    encoder, _ = encoders.load_auto(request.getfixturevalue(kind), "eager")
    encoder.pooler = None  # BERT's, which nothing here reads
    ids = torch.ones(3, 24, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = benchmark_work.forward_operations(encoder, torch.tensor([24] * 3)).sum().item()
    assert counter.get_total_flops() == expected


def test_settings_are_the_defaults_of_train():
    used = {"bt-finetune": benchmark.ONE_EPOCH, "bt-frozen": benchmark.TEN_EPOCHS}
    for approach, of_benchmark in used.items():
        parser = settings.flag_parser("", "")
        real = settings.read_flags(parser, ["--approach", approach])
        # One epoch is timed, of batches as large as TRL's; the frozen run has ten.
        same = replace(of_benchmark, epochs=real.epochs, batch_size=real.batch_size)
        assert same == real
    assert benchmark.ONE_EPOCH.batch_size == 32
    assert benchmark.TEN_EPOCHS.batch_size == settings.FROZEN.batch_size
    assert (benchmark.ONE_EPOCH.epochs, benchmark.TEN_EPOCHS.epochs) == (1, 10)


def test_without_sharing_the_pairs_are_the_same(few_pairs):
    work = benchmark_work.prepare(few_pairs)
    alone = benchmark_work.without_sharing(work)
    assert len(work.token_rows) < len(alone.token_rows)  # bundled pairs share answers
    assert len(alone.token_rows) == len(alone.operations) == 16
    for side in ("chosen", "rejected"):
        shared = getattr(work.part, side).tolist()
        single = getattr(alone.part, side).tolist()
        for one, two in zip(shared, single, strict=True):
            assert work.token_rows[one] == alone.token_rows[two]
            assert work.operations[one] == alone.operations[two]


VARIANTS = [name for name in benchmark_training.TRAINING if "TRL" not in name]


@pytest.mark.parametrize("name", [*VARIANTS, "TRL, its defaults", "TRL, tuned"])
def test_a_variant_trains_on_all_pairs_and_its_loss_moves(name, few_pairs, monkeypatch):
    if "TRL" in name:
        pytest.importorskip("trl")
    monkeypatch.setattr(benchmark_training, "FEW", 2)
    work = benchmark_work.prepare(few_pairs)
    texts = work if "shared" in name else benchmark_work.without_sharing(work)
    read = []

    def counted(self, *positional, forward=BertModel.forward, **named):
        if torch.is_grad_enabled():  # training, not evaluation
            read.append(named["attention_mask"].sum().item())
        return forward(self, *positional, **named)

    monkeypatch.setattr(BertModel, "forward", counted)
    losses = []
    for lr in (0.0, 0.01):
        batch_size = 8 if lr == 0 else 2
        work = work._replace(settings=replace(few_pairs, lr=lr, batch_size=batch_size))
        read.clear()
        seed_everything(0)
        run = benchmark_training.TRAINING[name](work)
        losses.append(run.loss)
        if lr == 0 or "shared" not in name:  # in smaller batches a text is read more than once
            assert sum(read) == sum(map(len, texts.token_rows))
        assert run.unit == "pairs/s"
        assert run.value > 0
        assert run.speed > 0
    if "TRL" not in name:  # which takes its own rate
        assert losses[0] != losses[1]
    assert all(math.isfinite(loss) for loss in losses)


def test_without_trl_its_lines_say_how_to_get_it(few_pairs, monkeypatch):
    without_trl(monkeypatch)
    work = benchmark_work.prepare(few_pairs)
    variants = {"ours": benchmark_training.ours, "TRL": benchmark_training.trl}
    ours, line = benchmark.in_turns("finetune", variants, work, 1, work)
    assert ours.median > 0
    assert (line.unit, line.values) == ("not installed: pip install trl", [])
    expected = "| finetune | TRL | not installed: pip install trl |  |  |  |"
    assert benchmark.to_markdown(line) == expected


def test_a_trl_that_has_changed_does_not_end_the_benchmark(few_pairs):
    pytest.importorskip("trl")
    work = benchmark_work.prepare(few_pairs)
    work = work._replace(settings=replace(few_pairs, model="no/such-model"))
    assert benchmark_training.trl(work).unit.startswith("failed: ")


def test_medians_ratios_and_shares_of_lines():
    def variant(values, *rest):
        left = iter(values)
        return lambda work: benchmark.Run(next(left), *rest)

    variants = {
        "a": variant([9, 4, 1, 2], "pairs/s", 5e9, torch.float32),
        "b": variant([9, 8, 4, 6], "pairs/s", 2e9, torch.bfloat16),
        "c": variant([1, 10, 10, 10], "GFLOP/s", 10e9, torch.float32),
    }
    a, b, c = benchmark.in_turns("x", variants, "work", 3, "warm")
    assert (a.values, a.median, a.relative, a.share) == ([4, 1, 2], 2, 1, 0.5)
    assert (b.median, b.relative, b.share) == (6, 3, None)  # no ceiling of its precision
    assert (c.relative, c.share) == (None, None)
    assert [benchmark.is_noisy(line) for line in (a, b, c)] == [True, True, False]
    expected = "| x | a | 2 pairs/s (1 to 4) | 1 | 5 | 50% of float32 |"
    assert benchmark.to_markdown(a) == expected


def test_memory_is_that_of_a_fresh_process(few_pairs):
    held = torch.ones(3 * 10**8)  # 1200 MB of ours, not the child's
    run = benchmark_memory.in_child(benchmark_memory.peak_of_training, "", few_pairs)
    assert run.unit == "MB"
    assert 50 < run.value < held.nbytes / 1e6


def test_the_frozen_path_runs_from_file_to_head(few_pairs, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", "restored after the test")
    assert benchmark_memory.peak_of_frozen(200, few_pairs) > 50


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_mapped_pages_are_not_watched(tmp_path):
    """A hundred megabytes read from a mapped file do not count, in the process's own they do."""
    (tmp_path / "file").write_bytes(b"1" * 10**8)
    mapped = torch.from_file(str(tmp_path / "file"), size=10**8, dtype=torch.uint8)

    def rise(use) -> float:
        seen, done = [], threading.Event()
        monitor = threading.Thread(target=benchmark_memory.watch, args=(seen, done))
        monitor.start()
        time.sleep(0.5)
        before = seen[-1]
        kept = use()
        time.sleep(0.5)
        del kept  # not before it was seen
        done.set()
        monitor.join()
        return max(seen) - before

    assert rise(mapped.max) < 20
    assert rise(lambda: torch.ones(10**8, dtype=torch.uint8)) > 80


def test_lines_of_memory(few_pairs, monkeypatch):
    def child(function, about, settings):
        if function is benchmark_memory.peak_of_frozen:
            return benchmark.Run(100 + about / 1000, "MB")
        return benchmark.Run(math.nan, "said")

    monkeypatch.setattr(benchmark, "in_child", child)
    *lines, one, ten, hundred, more = benchmark.memory(few_pairs)
    assert [line.name for line in lines[:-1]] == list(benchmark_training.TRAINING)
    assert {(line.median, line.unit) for line in lines} == {(None, "said")}
    assert [line.median for line in (one, ten, hundred, more)] == [101, 110, 200, 90]
    assert more.name == "frozen, from 10,000 to 100,000 pairs"


def test_a_child_that_is_killed_is_told(few_pairs, monkeypatch):
    def broken(*how):
        raise benchmark_memory.BrokenProcessPool

    monkeypatch.setattr(benchmark_memory, "ProcessPoolExecutor", broken)
    run = benchmark_memory.in_child(benchmark_memory.peak_of_training, "ours", few_pairs)
    assert math.isnan(run.value)
    assert run.unit.startswith("killed")


def test_starting_runs_what_it_says():
    variants = benchmark.starting()
    assert list(variants)[:2] == ["import torch", "import minirlhf.losses"]
    for name in ("import minirlhf", "train.py --help"):
        assert variants[name](None).unit == "ms"


def test_main_writes_a_table_and_a_file(
    tiny_encoder, pairs_file, capsys, monkeypatch, tmp_path
):
    without_trl(monkeypatch)
    monkeypatch.setattr(benchmark_work, "pick_device", lambda name: FLOAT32)
    flags = [
        "--dataset",
        pairs_file,
        "--model",
        tiny_encoder,
        "--pairs",
        "8",
        "--repeats",
        "1",
    ]
    flags += ["--max-length", "96", "--only", "embed,score,frozen", "--output", "b.json"]
    benchmark.main(flags)
    out = capsys.readouterr().out
    written = json.loads((tmp_path / "b.json").read_text())["rows"]
    lines = [benchmark.Line(**row) for row in written]
    table = [text for text in out.splitlines() if text.startswith("|")]
    assert table[2:] == [benchmark.to_markdown(line) for line in lines]
    assert len({text.count("|") for text in table}) == 1
    assert {line.section for line in lines} == {"embed", "score", "frozen"}
    assert all(line.median is not None for line in lines), lines


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--only", "speed"], "there is no section 'speed'"),
        (["--dataset", "none.jsonl"], "cannot read 'none.jsonl'"),
        (["--model", "no/such-model"], "cannot load the model"),
        (["--max-length", "1000"], "can read, 128 tokens"),
        (["--pairs", "0"], "must be at least 1"),
        (["--output", "nowhere/a.json"], "does not exist"),
        (["--device", "tpu"], "no device 'tpu'"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, said, tiny_encoder, capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.main(["--model", tiny_encoder, *flags])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.count("\n") == 1
