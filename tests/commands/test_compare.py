"""`python -m minirlhf compare`: the approaches on the same folds, and how a stopped one goes on."""

import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import stop_at

import train
from minirlhf.commands import compare
from minirlhf.runtime import checkpoint, run_folder
from minirlhf.settings import APPROACHES, flag_parser, read_flags

ROOT = Path(__file__).parents[2]


def flags(tiny_encoder: str, *more: str) -> list[str]:
    data = ["--dataset", "pairs.jsonl", "--model", tiny_encoder, "--max-length", "96"]
    return [*data, "--device", "cpu", "--tracking-uri", "none", *more]


def config(folder: str) -> dict:
    return checkpoint.read_json(Path(folder, "config.json"))


def metrics(folder: str) -> dict:
    return checkpoint.read_json(Path(folder, "metrics.json"))


def rows_of(output: str) -> list[dict]:
    return checkpoint.read_json(Path(output, "comparison.json"))


def refused(capsys, *argv: str) -> str:
    """The one sentence with which the command ends."""
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("python -m minirlhf compare: error: ")
    assert len(error.splitlines()) == 1 and "Traceback" not in error
    return error


train_in_own_process = compare.train


def train_here(job, fold, folder):
    """Train in this process, without the seconds that one of its own needs to start."""
    argv = [*job.flags, "--fold", str(fold), "--output", str(folder)]
    try:
        with open(f"{folder}.log", "a") as log, redirect_stdout(log):
            train.main(argv)
    except SystemExit as stop:
        assert stop.code == 130
        raise KeyboardInterrupt from None


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(compare, "train", train_here)


# ---- flags


def plan(*argv: str) -> dict:
    """The settings of each row of the table."""
    parser = compare.compare_parser()
    args, shared = parser.parse_known_args(argv)
    jobs = compare.plan(parser, args, shared)
    return {job.name: read_flags(flag_parser(), job.flags) for job in jobs}


def test_a_flag_for_all_reaches_those_that_use_it():
    planned = plan("--margin", "0.3", "--pooling", "cls")
    assert list(planned) == [*APPROACHES, "response only"]
    assert [planned[name].margin for name in APPROACHES] == [0, 0, 0.3, 0.3]
    assert [planned[name].pooling for name in APPROACHES] == [None, None, "cls", "cls"]
    assert [planned[name].approach for name in APPROACHES] == list(APPROACHES)


def test_response_only_is_bt_finetune_without_the_prompts():
    planned = plan("--epochs", "5", "--bt-finetune", "--lr 3e-5 --clip 2")
    finetune, response_only = planned["bt-finetune"], planned["response only"]
    assert (finetune.lr, finetune.clip, finetune.epochs) == (3e-5, 2, 5)
    assert not finetune.response_only
    assert response_only == replace(finetune, response_only=True)
    assert planned["regression"].lr == 1e-3
    assert planned["regression"].epochs == 5


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--folds", "6"], "argument --folds: invalid choice: 6"),
        (["--folds", "0"], "argument --folds: invalid choice: 0"),
        (
            ["--only", "bt"],
            "--only bt: there is regression, classification, bt-frozen, bt-fine",
        ),
        (["--fold", "2"], "compare sets --fold of each run itself"),
        (["--approach", "regression"], "compare sets --approach of each run itself"),
        (["--response-only"], "compare sets --response-only of each run itself"),
        (["--resume", "runs/compare"], "compare sets --resume of each run itself"),
        (["--bt-finetune", "--fold 2"], "compare sets --fold of each run itself"),
        (
            ["--bt-finetune", "--approach regression"],
            "compare sets --approach of each run",
        ),
        (["--bt-frozen", "--limit 99"], "read the same data; give --limit to all"),
        (
            ["--regression", "--clip 1"],
            "regression does not use --clip; only bt-finetune does",
        ),
        (["--regression", "--lr '1"], "No closing quotation"),
        (["--only", "regression", "--clip", "1"], "none of the approaches uses --clip"),
        (["--lr", "fast"], "argument --lr: invalid number value: 'fast'"),
        (["pairs.jsonl"], "unrecognized arguments: pairs.jsonl"),
        (
            ["--output", "here"],
            "here exists and holds no comparison; give another --output",
        ),
        (["--output", "here", "--overwrite"], "here exists and holds no comparison"),
        (["--output", "run"], "run exists and holds no comparison"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(argv, words, capsys):
    Path("here").mkdir()
    Path("here/thesis.txt").write_text("years of work")
    Path("run").mkdir()
    checkpoint.write_json(Path("run/config.json"), {"arguments": {}})
    assert words in refused(capsys, *argv)
    assert Path("here/thesis.txt").read_text() == "years of work"
    assert config("run") == {"arguments": {}}
    assert not Path("runs").exists()


def test_a_comparison_goes_on_with_the_same_flags_only(capsys):
    Path("out").mkdir()
    begun = {"command": "", "flags": {"regression": ["--approach", "regression"]}}
    checkpoint.write_json(Path("out/config.json"), begun)
    argv = ["--only", "regression", "--output", "out", "--lr", "0.1"]
    assert "other flags for regression; give another --output" in refused(capsys, *argv)
    assert config("out") == begun


# ---- runs


def test_all_approaches_on_the_same_folds(tiny_encoder, pairs_file, in_this_process, capsys):
    more = ["--epochs", "1", "--warmup", "0.2", "--folds", "2", "--output", "out"]
    compare.main(flags(tiny_encoder, *more))
    rows = rows_of("out")
    trained = [row["name"] for row in rows if "trained" in row]
    assert sorted(trained) == sorted([*APPROACHES, "response only"])
    assert [row["name"] for row in rows[-3:]] == [
        "response only",
        "longer response",
        "chance",
    ]
    # The pooled accuracy is that of both folds' pairs; each pair is tested once.
    folds = [metrics(f"out/regression-{fold}")["test"] for fold in (0, 1)]
    right = sum(fold["n"] * fold["accuracy"] for fold in folds)
    (row,) = [row for row in rows if row["name"] == "regression"]
    assert row["n"] == folds[0]["n"] + folds[1]["n"]
    assert row["accuracy"] == pytest.approx(right / row["n"])
    best, second = rows[:2]
    difference = second["accuracy"] - best["accuracy"]
    assert second["minus_better_accuracy"] == pytest.approx(difference)
    assert Path("out/comparison.md").read_text() in capsys.readouterr().out
    assert Path("out/comparison.png").exists()
    # Features are computed in the first fold that needs them; of two kinds, for three approaches.
    logs = {(a, f): Path(f"out/{a}-{f}.log").read_text() for a in APPROACHES for f in (0, 1)}
    computed = [key for key, log in logs.items() if "seconds, computed" in log]
    assert computed == [("regression", 0), ("bt-frozen", 0)]
    # A flag goes to the approaches that have a use for it.
    warmup = {name: config(f"out/{name}-0")["arguments"]["warmup"] for name in APPROACHES}
    assert warmup == {"bt-finetune": 0.2} | dict.fromkeys(APPROACHES[:3])
    # Of all runs, only those of response-only are without the prompts.
    blank = [path.parent.name for path in Path("out").glob("*/config.json") if is_blank(path)]
    assert sorted(blank) == ["response-only-0", "response-only-1"]


def is_blank(config_file: Path) -> bool:
    return checkpoint.read_json(config_file)["arguments"]["response_only"]


def test_each_run_is_a_child_in_mlflow(tiny_encoder, pairs_file):
    import mlflow

    uri = "sqlite:///tracked.db"
    same = [flag if flag != "none" else uri for flag in flags(tiny_encoder)]
    compare.main([*same, "--only", "bt-frozen,regression", "--epochs", "1", "--output", "out"])
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("minirlhf").experiment_id])
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs}
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(runs) == 3 and parents == {None, parent.info.run_id}
    assert all(run.info.status == "FINISHED" for run in runs)
    accuracy = metrics("out/regression-0")["test"]["accuracy"]
    assert parent.data.metrics["table/regression_accuracy"] == pytest.approx(accuracy)
    assert parent.data.tags["mlflow.note.content"] == Path("out/comparison.md").read_text()
    (child,) = [run for run in runs if run.info.run_name == "regression-0"]
    assert child.data.tags["mlflow.note.content"].startswith("```text\ntest accuracy ")
    assert child.data.tags["approach"] == "regression"
    assert child.data.tags["encoder"] == tiny_encoder
    assert child.data.tags["dataset"] == "pairs.jsonl"
    (data,) = child.inputs.dataset_inputs
    checksum = config("out/regression-0")["data"]["sha256"]
    assert (data.dataset.name, data.dataset.digest) == ("pairs.jsonl", checksum[:8])


def test_a_run_that_fails_is_named(tiny_encoder, pairs_file, capfd):
    argv = flags(tiny_encoder, "--only", "regression", "--output", "out", "--max-length", "999")
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    assert stop.value.code == 2
    of_train, of_compare = capfd.readouterr().err.splitlines()
    assert of_train.startswith("train.py: error: max-length 999 is more than")
    assert (
        "regression failed on fold 0; what it printed is in out/regression-0.log" in of_compare
    )
    assert Path("out/regression-0.log").exists()


# ---- stopped, and gone on with


def test_a_comparison_keeps_its_finished_runs(
    tiny_encoder, pairs_file, in_this_process, monkeypatch, capsys
):
    same = flags(tiny_encoder, "--folds", "2", "--epochs", "2")
    compare.main([*same, "--output", "whole"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        stop_at(patch, torch.optim.AdamW, "step", 30)
        compare.main([*same, "--output", "stopped"])
    assert stop.value.code == 130
    assert "interrupted; go on with the same command" in capsys.readouterr().err
    assert Path("stopped/bt-finetune-0/config.json").exists()
    finished = {
        path: path.stat().st_mtime_ns for path in Path("stopped").glob("*/metrics.json")
    }
    assert 0 < len(finished) < 10
    resumed = []

    def go_on(job, fold, folder):
        if (folder / "config.json").exists():
            resumed.append(folder.name)
            train_in_own_process(job, fold, folder)
        else:
            train_here(job, fold, folder)

    monkeypatch.setattr(compare, "train", go_on)
    compare.main([*same, "--output", "stopped"])
    assert resumed == ["bt-finetune-0"]
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    whole, stopped = rows_of("whole"), rows_of("stopped")
    for rows in (whole, stopped):
        assert [row.pop("seconds", None) for row in rows]
    assert whole == stopped


def test_one_fold_of_a_comparison_can_be_resumed_alone(
    tiny_encoder, pairs_file, in_this_process, monkeypatch, capsys
):
    argv = flags(tiny_encoder, "--epochs", "4", "--batch-size", "8", "--folds", "2")
    argv += ["--only", "bt-finetune", "--output", "both"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, torch.optim.AdamW, "step", 25)
        compare.main(argv)
    with run_folder.locked(Path("both/bt-finetune-0")), pytest.raises(SystemExit):
        Path("link").symlink_to("both/bt-finetune-0")
        train.main(["--resume", "link"])
    assert "another run is writing to" in capsys.readouterr().err
    train.main(["--resume", "both/bt-finetune-0"])
    assert len(checkpoint.read_jsonl(Path("both/bt-finetune-0/history.jsonl"))) == 4
    assert not Path("both/bt-finetune-0/bt-finetune-0").exists()
    compare.main(argv)
    assert Path("both/comparison.json").exists()


def test_more_folds_and_approaches_can_be_added(
    tiny_encoder, pairs_file, in_this_process, capsys
):
    same = flags(tiny_encoder, "--epochs", "1", "--output", "out")
    compare.main([*same, "--only", "bt-frozen"])
    first = Path("out/bt-frozen-0/metrics.json").stat().st_mtime_ns
    compare.main([*same, "--only", "bt-frozen,regression", "--folds", "2"])
    assert Path("out/bt-frozen-0/metrics.json").stat().st_mtime_ns == first
    assert config("out")["flags"].keys() == {"bt-frozen", "regression"}
    assert {row["name"] for row in rows_of("out")[:2]} == {"bt-frozen", "regression"}
    # With --overwrite it starts again.
    compare.main([*same, "--only", "bt-frozen", "--lr", "0.1", "--overwrite"])
    assert not Path("out/regression-0").exists()
    assert config("out/bt-frozen-0")["arguments"]["lr"] == 0.1


def test_two_comparisons_in_one_folder_are_refused(tiny_encoder, capsys):
    with run_folder.locked(Path("taken")):
        said = refused(capsys, *flags(tiny_encoder, "--output", "taken"))
    assert "another run is writing to taken" in said


def test_ctrl_c_stops_the_run_and_the_comparison(tiny_encoder, pairs_file):
    """Both processes get the signal, as from a terminal, while the run is in the middle."""
    more = ["--only", "bt-finetune", "--epochs", "100000", "--patience", "100000"]
    command = [sys.executable, "-m", "minirlhf", "compare"]
    started = subprocess.Popen(
        [*command, *flags(tiny_encoder, *more, "--output", "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not Path("out/bt-finetune-0/history.jsonl").exists():
        assert started.poll() is None
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    _, error = started.communicate()
    assert started.returncode == 130
    assert "interrupted; go on with: python train.py --resume out/bt-finetune-0\n" in error
    assert error.endswith("interrupted; go on with the same command\n")
    assert "Traceback" not in error
    assert not Path("out/bt-finetune-0/metrics.json").exists()
    assert not list(Path("out").glob(".*"))
