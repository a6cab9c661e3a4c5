"""Two processes that train together do what one does: the same gradients, losses and verdicts."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import prepare
from test_loops import without_seconds

from minirlhf import data, loops, model
from minirlhf.runtime import checkpoint, ranks
from minirlhf.settings import FINETUNE

LEARN = replace(FINETUNE, lr=1e-3, patience=1000, batch_size=8)
ONE_STEP = replace(LEARN, lr=1.0, epochs=1, batch_size=9, warmup=0.0, clip=1e9)
ONE_PAIR = replace(LEARN, epochs=3)
SETTINGS = {
    "one step": ONE_STEP,
    "learn": replace(LEARN, epochs=20),
    "one pair": ONE_PAIR,
    "accumulate": replace(LEARN, epochs=5, batch_size=2, accumulate=5),
}


def plain(weights, **_):
    """One step of it leaves minus the gradient in the weights, times the rate."""
    return torch.optim.SGD(weights, lr=1.0)


def train(encoder, settings):
    """History, margins of all pairs, and how far each weight moved, for 9 pairs or for one.

    With 8 pairs a batch, one batch of an epoch is a single pair: one process has none of it. Where
    there is one pair in all, one process has nothing to read in training and in evaluation.
    """
    adamw = torch.optim.AdamW
    if settings is ONE_STEP:
        torch.optim.AdamW = plain
    built, token_rows, part = prepare("bt-finetune", encoder, pairs=9)
    part = part._replace(prompt=torch.arange(9))
    if settings is ONE_PAIR:
        part = part.pick(slice(1))
    loops.start_head(
        built, token_rows, part
    )  # as the loop will again; the rest is the gradient
    before = {n: p.detach().clone() for n, p in built.named_parameters()}
    history = list(loops.fit_finetune(built, token_rows, part, part, settings))
    torch.optim.AdamW = adamw
    moved = {n: (p - before[n]).detach() for n, p in built.named_parameters()}
    margins = loops.evaluate_texts(built, token_rows, part).margins
    return without_seconds(history), margins, moved


def one_of_two(rank, port, encoder, folder):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in names.items()})
    torch.set_num_threads(1)
    assert ranks.join("cpu") == "cpu"
    assert (ranks.rank(), ranks.count()) == (rank, 2)
    for name, settings in SETTINGS.items():
        torch.save(train(encoder, settings), f"{folder}/{name}-{rank}.pt")


def test_two_processes_do_what_one_does(tiny_encoder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(one_of_two, (port, tiny_encoder, str(tmp_path)), nprocs=2)
    together = {n: [torch.load(tmp_path / f"{n}-{r}.pt") for r in (0, 1)] for n in SETTINGS}
    alone = {name: train(tiny_encoder, settings) for name, settings in SETTINGS.items()}

    # The gradient of the first step, from unequal shares of 4 and 5 pairs.
    gradient = alone["one step"][2]
    assert max(moved.abs().max() for moved in gradient.values()) > 1e-3
    for name, moved in gradient.items():
        first, second = (run[2][name] for run in together["one step"])
        torch.testing.assert_close(first, moved, atol=1e-6, rtol=1e-4, msg=name)
        assert torch.equal(first, second)

    # All epochs: losses, accuracies, early stopping and verdicts.
    history, _, _ = alone["learn"]
    assert len(history) == 20
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    for name in ("learn", "accumulate", "one pair"):
        history, margins, _ = alone[name]
        first, second = together[name]
        for mine, theirs in zip(first[0], history, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4)
        assert first[0] == second[0]
        torch.testing.assert_close(first[1], margins, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("approach", ["bt-finetune", "bt-frozen"])
def test_a_run_with_fewer_pairs_than_processes_ends_as_any_other(
    approach, tiny_encoder, pairs_file
):
    """Three processes, and one pair in each of the three parts."""
    pairs, _ = data.build_pairs(checkpoint.read_jsonl(Path("pairs.jsonl")))
    few = [part[0]._asdict() for part in data.split(pairs)]
    checkpoint.write_jsonl(Path("few.jsonl"), few)
    root = Path(__file__).parents[2]
    flags = ["--approach", approach, "--dataset", "few.jsonl", "--model", tiny_encoder]
    flags += ["--max-length", "64", "--epochs", "2", "--device", "cpu"]
    flags += ["--tracking-uri", "none", "--output", "few"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node", "3", str(root / "train.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run([*launch, *flags], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(checkpoint.read_jsonl(Path("few/history.jsonl"))) == 2
    assert checkpoint.read_json(Path("few/metrics.json"))["test"]["n"] == 1


STOPPED = """
import sys
import torch
sys.path.insert(0, {root!r})
import train
real, calls = torch.optim.AdamW.step, []
def step(*args, **kwargs):
    calls.append(1)
    if len(calls) == 25:
        raise SystemExit(9)
    return real(*args, **kwargs)
torch.optim.AdamW.step = step
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_resume_what_two_were_stopped_at(tiny_encoder, pairs_file):
    root = str(Path(__file__).parents[2])
    Path("stopped.py").write_text(STOPPED.format(root=root))
    flags = ["--dataset", "pairs.jsonl", "--model", tiny_encoder, "--max-length", "64"]
    flags += [
        "--epochs",
        "4",
        "--batch-size",
        "8",
        "--device",
        "cpu",
        "--tracking-uri",
        "none",
    ]

    def run(*command: str) -> int:
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        launch[3:3] = ["--standalone"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
        done = subprocess.run([*launch, *command], env=environment, capture_output=True)
        return done.returncode

    assert run(f"{root}/train.py", *flags, "--output", "whole") == 0
    assert run("stopped.py", *flags, "--output", "stopped") != 0
    assert run(f"{root}/train.py", "--resume", "stopped") == 0
    for file in ("history.jsonl", "predictions.jsonl"):
        whole = checkpoint.read_jsonl(Path("whole", file))
        stopped = checkpoint.read_jsonl(Path("stopped", file))
        assert whole
        assert without_seconds(whole) == without_seconds(stopped), file


def pretend(monkeypatch, rank, count):
    """Make this process one of several, whose sums are those of its own share."""
    monkeypatch.setattr(ranks, "rank", lambda: rank)
    monkeypatch.setattr(ranks, "count", lambda: count)


def test_a_process_without_a_text_evaluates_along(tiny_encoder, monkeypatch):
    built = model.build("bt-finetune", tiny_encoder, max_length=64).eval()
    token_rows = built.encode(["2 + 2?"] * 3, ["4", "5", "6"]).token_rows
    alone = built.vectors(token_rows)
    shares = []
    for rank in range(5):  # more than there are texts
        pretend(monkeypatch, rank, count=5)
        shares.append(loops.vectors_by_all(built, token_rows))
    assert [int(share.any()) for share in shares] == [1, 1, 1, 0, 0]
    torch.testing.assert_close(sum(shares), alone)


def test_neighbouring_pairs_stay_in_one_process(tiny_encoder, monkeypatch):
    """Pairs of one prompt are neighbours, and both processes would read the text they share."""
    built = model.build("bt-finetune", tiny_encoder, max_length=64)
    pairs = []
    for i in range(4):
        for n in range(2, 6):
            pairs.append(data.PreferencePair(f"{i} + 1?", f"{i + 1}", f"{i + n}"))
    texts = data.number_texts(pairs)
    part = data.make_part(pairs, texts)
    token_rows = built.encode(texts.prompts, texts.responses).token_rows
    step = loops.bt_finetune
    read = []

    def counted(model, some_rows, *rest):
        read.append(len(some_rows))
        return step(model, some_rows, *rest)

    monkeypatch.setattr(loops, "bt_finetune", counted)
    for rank in range(2):
        pretend(monkeypatch, rank, count=2)
        settings = replace(LEARN, epochs=1)
        list(loops.fit_finetune(built, token_rows, part, part, settings))
    assert read == [5] * 4  # two batches in two processes: one response right, four wrong
