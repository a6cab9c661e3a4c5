"""A run that was killed goes on and ends as if it had not been; nothing that was saved is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import stop_at
from safetensors.torch import load_file
from test_loops import without_seconds

import train
from minirlhf import loops, model
from minirlhf.report import figures
from minirlhf.runtime import checkpoint, resume

ROOT = Path(__file__).parents[2]


def flags(tiny_encoder: str, *more: str) -> list[str]:
    short = ["--dataset", "pairs.jsonl", "--model", tiny_encoder, "--max-length", "64"]
    how = [
        "--device",
        "cpu",
        "--tracking-uri",
        "none",
        "--epochs",
        "4",
        "--dropout",
        "0.1",
    ]
    return [*short, *how, "--batch-size", "8", "--lr", "3e-3", *more]


def weights(run: str) -> dict[str, torch.Tensor]:
    parts = sorted(Path(run, "model").rglob("*.safetensors"))
    assert len(parts) == 2
    return {f"{part.name}/{n}": t for part in parts for n, t in load_file(part).items()}


def epochs(run: str) -> list[dict]:
    """What the epochs were, but for their seconds."""
    return without_seconds(checkpoint.read_jsonl(Path(run, "history.jsonl")))


def metrics(run: str) -> dict:
    return checkpoint.read_json(Path(run, "metrics.json"))


def assert_same(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert epochs(one) == epochs(other)
    assert metrics(one)["test"] == metrics(other)["test"]


@pytest.fixture
def whole(tiny_encoder, pairs_file) -> str:
    """A run that nobody stopped."""
    train.main(flags(tiny_encoder, "--output", "whole"))
    assert not Path("whole/state.safetensors").exists()
    return "whole"


@pytest.mark.parametrize(
    ("target", "name", "call"),
    [
        (loops, "shuffled_batches", 1),  # before the first step
        (torch.optim.AdamW, "step", 15),  # in the middle of an epoch
        (checkpoint, "write_jsonl", 2),  # an epoch is done, and neither told nor saved
        (model, "save", 1),  # told, its model not written
        (resume, "save_tensors", 2),  # told, its model written, its state not saved
        (checkpoint, "write_text", 7),  # the last epoch is done, and neither told nor saved
        (figures, "draw_run", 1),  # at the end, among the results
    ],
)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    target, name, call, whole, tiny_encoder, monkeypatch, capsys
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        stop_at(patch, target, name, call)
        train.main(flags(tiny_encoder, "--output", "stopped"))
    assert exit.value.code == 130
    assert "go on with: python train.py --resume stopped" in capsys.readouterr().err
    assert not Path("stopped/metrics.json").exists()
    train.main(["--resume", "stopped"])
    assert_same("whole", "stopped")
    assert not Path("stopped/state.safetensors").exists()
    assert not list(Path().glob(".*"))
    with pytest.raises(SystemExit):
        train.main(["--resume", "stopped"])
    assert "the run in stopped is finished" in capsys.readouterr().err


def kill_and_resume(tiny_encoder: str, run: str, after: float) -> None:
    """Start a run in a process of its own, kill it after so many seconds, and resume it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train.py")]
    started = subprocess.Popen(
        [*command, *flags(tiny_encoder, "--output", run)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    time.sleep(after)
    started.send_signal(signal.SIGKILL)
    started.wait()
    if not Path(run).exists():  # killed before anything was written: the same command again
        again = flags(tiny_encoder, "--output", run)
    elif Path(run, "metrics.json").exists():
        return
    else:
        again = ["--resume", run]
    subprocess.run([*command, *again], env=environment, check=True, stdout=subprocess.DEVNULL)


def seconds_of_a_run(tiny_encoder: str) -> float:
    start = time.perf_counter()
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *flags(tiny_encoder, "--output", "timed"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def test_the_seconds_of_a_resumed_run_hold_those_before_it_was_stopped(
    tiny_encoder, pairs_file, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, torch.optim.AdamW, "step", 25)
        train.main(flags(tiny_encoder, "--output", "stopped"))
    state_file = Path("stopped/state.safetensors")
    saved = checkpoint.load_tensors(state_file)
    assert saved.numbers["seconds"] > 0
    an_hour_later = saved.numbers | {"seconds": saved.numbers["seconds"] + 3600}
    checkpoint.save_tensors(state_file, saved.tensors, an_hour_later)
    train.main(["--resume", "stopped"])
    assert an_hour_later["seconds"] < metrics("stopped")["seconds"] < 7200


def test_killed_twice(tiny_encoder, pairs_file):
    whole = seconds_of_a_run(tiny_encoder)
    for i, share in enumerate((0.6, 0.9)):
        kill_and_resume(tiny_encoder, f"killed-{i}", share * whole)
        assert_same("timed", f"killed-{i}")


@pytest.mark.slow
def test_killed_twenty_times(tiny_encoder, pairs_file):
    whole, draw = seconds_of_a_run(tiny_encoder), random.Random(0)
    for i in range(20):
        kill_and_resume(tiny_encoder, f"killed-{i}", draw.uniform(0, 1) * whole)
        assert_same("timed", f"killed-{i}")


def test_a_frozen_run_starts_over_with_its_features_kept(
    tiny_encoder, pairs_file, monkeypatch, capsys
):
    same = [
        *flags(tiny_encoder)[:10],
        "--epochs",
        "5",
        "--approach",
        "bt-frozen",
        "--output",
    ]
    train.main([*same, "whole"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, checkpoint, "write_jsonl", 3)
        train.main([*same, "stopped"])
    history = checkpoint.read_jsonl(Path("stopped/history.jsonl"))
    assert history
    long_ago = [epoch | {"seconds": 1000.0} for epoch in history]
    checkpoint.write_jsonl(Path("stopped/history.jsonl"), long_ago)
    train.main(["--resume", "stopped"])
    assert_same("whole", "stopped")
    # What is done again is not counted twice.
    assert metrics("stopped")["seconds"] < 1000
    assert "seconds, computed" not in capsys.readouterr().out.split("folder    stopped")[-1]


def test_what_cannot_be_resumed_is_refused(whole, tiny_encoder, monkeypatch, capsys):
    def refused(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit:
            train.main(list(argv))
        assert exit.value.code == 2
        said = capsys.readouterr().err
        assert len(said.strip().splitlines()) == 1
        return said

    assert "the run in whole is finished" in refused("--resume", "whole")
    assert "holds no sound run" in refused("--resume", "nowhere")
    Path("empty").mkdir()
    assert "holds no sound run" in refused("--resume", "empty")
    assert "takes no other flag" in refused("--resume", "whole", "--epochs", "9")
    assert "holds no sound run" in refused("--resume", "")
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, torch.optim.AdamW, "step", 15)
        train.main(flags(tiny_encoder, "--output", "stopped"))
    capsys.readouterr()
    lines = Path("pairs.jsonl").read_text().splitlines()
    Path("pairs.jsonl").write_text("\n".join(lines[:-1]))
    assert "not the same data" in refused("--resume", "stopped")


def test_a_damaged_state_is_noticed(tiny_encoder, pairs_file, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, torch.optim.AdamW, "step", 25)
        train.main(flags(tiny_encoder, "--output", "stopped"))
    state = Path("stopped/state.safetensors")
    sound = state.read_bytes()
    saved = checkpoint.load_tensors(state)
    all_but_one = dict(list(saved.tensors.items())[1:])
    checkpoint.save_tensors(state, all_but_one, saved.numbers)
    one_missing = state.read_bytes()
    flipped = sound[:-100] + bytes([sound[-100] ^ 1]) + sound[-99:]
    for damage in (b"", sound[:50], sound[:-7], bytes(len(sound)), flipped, one_missing):
        state.write_bytes(damage)
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            train.main(["--resume", "stopped"])
        assert exit.value.code == 2
        said = capsys.readouterr().err
        assert "state.safetensors cannot be used" in said and len(said.splitlines()) == 1
    state.unlink()
    train.main(["--resume", "stopped"])
    assert len(epochs("stopped")) == 4


def test_early_stopping_and_an_earlier_best_epoch_are_resumed(
    tiny_encoder, pairs_file, monkeypatch, capsys
):
    more = [
        "--epochs",
        "12",
        "--patience",
        "2",
        "--lr",
        "2e-2",
        "--accumulate",
        "2",
        "--balance",
    ]
    train.main(flags(tiny_encoder, *more, "--output", "whole"))
    history = epochs("whole")
    assert len(history) < 12 and not history[-1]["best"]
    for epoch in (
        len(history) - 1,
        len(history),
    ):  # one before the last; all but the results
        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            stop_at(patch, checkpoint, "write_jsonl", epoch)
            train.main(flags(tiny_encoder, *more, "--output", f"stopped-{epoch}"))
        train.main(["--resume", f"stopped-{epoch}"])
        assert_same("whole", f"stopped-{epoch}")


def test_the_store_may_be_gone_when_a_run_is_resumed(
    tiny_encoder, pairs_file, tmp_path, monkeypatch, capsys
):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    same = [flag if flag != "none" else uri for flag in flags(tiny_encoder)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, torch.optim.AdamW, "step", 25)
        train.main([*same, "--output", "stopped"])
    Path("stopped/mlflow_run_id").write_text("0" * 32)
    train.main(["--resume", "stopped"])
    assert "warning: cannot reach the tracking store" in capsys.readouterr().out
    assert len(epochs("stopped")) == 4


def test_a_loss_that_is_not_finite_names_step_and_pairs(
    tiny_encoder, pairs_file, monkeypatch, capsys
):
    """A gradient in the second epoch is NaN; the first epoch's model stays as it was saved."""
    real, calls = loops.clip_grad_norm_, []
    draw, batches = loops.shuffled_batches, []

    def counted(*args):
        batches.append(draw(*args))
        return batches[-1]

    def spoiled(parameters, norm):
        parameters = list(parameters)
        calls.append(1)
        if len(calls) == len(batches[0]) + 4:
            parameters[-1].grad[0] = float("nan")
        return real(parameters, norm)

    monkeypatch.setattr(loops, "clip_grad_norm_", spoiled)
    monkeypatch.setattr(loops, "shuffled_batches", counted)
    with pytest.raises(SystemExit) as exit:
        train.main(flags(tiny_encoder, "--output", "run"))
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert "no finite gradient at step 4 of epoch 2, training pairs [" in said
    assert str(batches[1][3][0]) in said
    assert "try a lower --lr" in said
    kept = weights("run")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert len(epochs("run")) == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_what_to_lower(
    error, tiny_encoder, pairs_file, monkeypatch, capsys
):
    stop_at(monkeypatch, torch.optim.AdamW, "step", 3, error)
    with pytest.raises(SystemExit) as exit:
        train.main(flags(tiny_encoder, "--output", "run"))
    assert exit.value.code == 2
    assert "out of memory; lower --batch-size" in capsys.readouterr().err


def test_a_disk_that_fills_costs_the_epoch_and_not_what_was_saved(
    tiny_encoder, pairs_file, monkeypatch, capsys
):
    full = OSError(28, "No space left on device")
    stop_at(monkeypatch, resume, "save_tensors", 2, full)
    with pytest.raises(SystemExit) as exit:
        train.main(flags(tiny_encoder, "--output", "run"))
    assert exit.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert minirlhf_loads("run")
    train.main(["--resume", "run"])
    assert len(epochs("run")) == 4


def minirlhf_loads(run: str) -> bool:
    return bool(model.load(Path(run, "model")).encode(["a"], ["b"]).token_rows)


def test_a_resumed_run_goes_on_in_mlflow(
    tiny_encoder, pairs_file, tmp_path, monkeypatch, capsys
):
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    same = [flag if flag != "none" else uri for flag in flags(tiny_encoder)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, torch.optim.AdamW, "step", 25)
        train.main([*same, "--output", "stopped"])
    train.main(["--resume", "stopped"])
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("minirlhf")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    accuracy = metrics("stopped")["test"]["accuracy"]
    assert run.data.metrics["test_accuracy"] == pytest.approx(accuracy)
    steps = {m.step for m in client.get_metric_history(run.info.run_id, "train_loss")}
    assert steps == {1, 2, 3, 4}
