"""`peers` gives every library the same pairs, and counts what comes out in the same way."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from minirlhf.experiments import peers, peers_training
from minirlhf.losses import bradley_terry_loss
from minirlhf.runtime.checkpoint import read_jsonl
from minirlhf.runtime.device import Device
from minirlhf.settings import FINETUNE

IN_CHILD = peers.in_child  # as it is: the tests run everything in this process
SMALL = ["--limit", "120", "--epochs", "1", "--max-length", "96", "--device", "cpu"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """No process of its own for each run: starting one takes seconds."""
    monkeypatch.setattr(peers, "in_child", peers.run_one)


def knows_all(work, folder):
    """A way of training whose result is right about every pair."""
    ratings = {}
    for pair in [*work.validation, *work.test]:
        ratings[pair.prompt, pair.chosen] = pair.chosen_rating
        ratings[pair.prompt, pair.rejected] = pair.rejected_rating

    def score(prompts, responses):
        return [ratings[one] for one in zip(prompts, responses, strict=True)]

    return score


def knows_nothing(work, folder):
    """A way of training whose result gives every text the same reward."""
    return lambda prompts, responses: [0.0] * len(prompts)


@pytest.fixture
def made_up_ways(monkeypatch):
    """Three ways that need no training, and how often each of them was called."""
    calls = []

    def counted(name, way):
        def train_it(work, folder):
            calls.append((name, work.settings.lr))
            return way(work, folder)

        return train_it

    for name, way in (("ours", knows_all), ("trl", knows_nothing), ("ours-tuned", knows_all)):
        monkeypatch.setitem(peers_training.WAYS, name, counted(name, way))
    monkeypatch.setattr(peers, "version_of", lambda package: "1.0")
    return calls


def run(*flags: str) -> list[dict]:
    """Run the command; the rows of its table."""
    peers.main([*SMALL, *flags, "--output", "found"])
    return json.loads(Path("found/peers.json").read_text())


def test_ours_is_train_py(tiny_encoder, capsys):
    (row,) = run("--only", "ours", "--model", tiny_encoder)
    train.main([*SMALL, "--model", tiny_encoder, "--output", "run", "--tracking-uri", "none"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert row["accuracy"] == pytest.approx(metrics["test"]["accuracy"])
    assert row["validation_accuracy"] == pytest.approx(metrics["validation"]["accuracy"])
    theirs = read_jsonl(Path("run/predictions.jsonl"))
    mine = read_jsonl(Path("found/ours-0/predictions.jsonl"))
    assert [one["lengths"] for one in mine] == [one["lengths"] for one in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-5)
    assert row["seconds"] > 0 and row["peak_mb"] > 100


def test_differences_are_pair_by_pair_to_the_first(made_up_ways, tiny_encoder, capsys):
    first, second = run("--only", "ours,trl", "--folds", "2", "--model", tiny_encoder)
    assert first["accuracy"] == 1.0 and second["accuracy"] == 0.5
    assert second["minus_first_accuracy"] == -0.5
    assert second["minus_first_fold_mean"] == -0.5
    assert "minus_first_accuracy" not in first
    assert first["calibrated_loss"] < second["calibrated_loss"]
    assert second["calibrated_loss"] == pytest.approx(math.log(2))
    assert Path("found/peers.md").read_text() in capsys.readouterr().out


def test_a_finished_run_is_kept_and_each_rate_has_its_own(made_up_ways, tiny_encoder, capsys):
    flags = ("--model", tiny_encoder)
    run("--only", "ours,ours-tuned@3e-5", *flags)
    run("--only", "ours,ours-tuned@3e-5", *flags)
    assert made_up_ways == [("ours", 1e-4), ("ours-tuned", 3e-5)]
    rows = run("--only", "ours-tuned@3e-5,ours-tuned,ours-tuned@1e-4", *flags)
    assert made_up_ways[2:] == [("ours-tuned", 1e-4)]
    assert [row["name"] for row in rows] == ["ours-tuned@3e-05", "ours-tuned@0.0001"]


def refused(*flags: str) -> None:
    """Run the command with flags that it refuses."""
    with pytest.raises(SystemExit) as stop:
        peers.main([*SMALL, *flags])
    assert stop.value.code == 2


def test_a_failure_of_a_library_is_one_sentence(
    monkeypatch, made_up_ways, tiny_encoder, capsys
):
    def broken(work, folder):
        raise RuntimeError("no such\nargument")

    monkeypatch.setitem(peers_training.WAYS, "trl", broken)
    refused("--only", "trl", "--model", tiny_encoder)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "trl failed on fold 0 (RuntimeError: no such argument)" in error


def test_a_failure_of_train_py_is_one_sentence(monkeypatch, tiny_encoder, capsys):
    monkeypatch.setattr("minirlhf.loops.clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    refused("--only", "ours", "--model", tiny_encoder)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "ours failed on fold 0" in error


def test_a_process_that_fails_says_so_in_the_parent(tiny_encoder):
    settings = replace(FINETUNE, dataset="no.jsonl", model=tiny_encoder)
    with pytest.raises(ValueError, match="no.jsonl"):
        IN_CHILD("ours", settings, Path("ours-0"))


def test_other_settings_and_other_data_need_another_folder(
    made_up_ways, tiny_encoder, pairs_file, capsys
):
    flags = ("--only", "ours", "--model", tiny_encoder, "--dataset", pairs_file)
    run(*flags)
    refused(*flags, "--epochs", "2", "--output", "found")
    assert "other settings; give another --output" in capsys.readouterr().err

    file = Path(pairs_file)
    file.write_text(file.read_text().replace("Answer", "Result"))
    refused(*flags, "--folds", "2", "--output", "found")
    assert "the data changed" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(made_up_ways, tiny_encoder, capsys):
    Path("run").mkdir()
    Path("run/config.json").write_text('{"arguments": {}}')
    refused("--only", "ours", "--model", tiny_encoder, "--output", "run")
    assert "holds something else" in capsys.readouterr().err
    assert Path("run/config.json").read_text() == '{"arguments": {}}'


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--only", "openrlhf"], "--only openrlhf: there is ours"),
        (["--only", "ours@1e-4"], "--only ours@1e-4"),
        (["--only", "ours-tuned@fast"], "fast is no learning rate"),
        (["--only", "ours-tuned@nan"], "nan is no learning rate"),
        (["--only", "trl"], 'trl needs trl: pip install "minirlhf[bench]"'),
        (["--only", "ours", "--epochs", "0"], "0 is not between 1 and"),
        (["--only", "ours", "--limit", "0"], "0 is not between 1 and"),
        (["--only", "ours", "--fold", "1"], "unrecognized arguments: --fold 1"),
        (["--only", "ours", "--dataset", "no.jsonl"], "no.jsonl"),
        (["--only", "ours", "--max-length", "1000000"], "more than"),
    ],
)
def test_bad_input_is_one_sentence(flags, sentence, monkeypatch, tiny_encoder, capsys):
    monkeypatch.setattr(peers, "version_of", {"torch": "2.13"}.get)
    refused("--model", tiny_encoder, *flags)
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_ranknet_on_two_responses_is_bradley_terry(tiny_encoder):
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import RankNetLoss

    model = CrossEncoder(tiny_encoder, num_labels=1, device="cpu").eval()
    prompts = ["What is 2 + 2?", "What is 3 + 5?"]
    answers = [["4", "5"], ["8", "It is 7."]]
    with torch.no_grad():
        theirs = RankNetLoss(model)([prompts, answers], [torch.tensor([1, 0])] * 2)
        flat = [(prompts[i], answers[i][k]) for i in (0, 1) for k in (0, 1)]
        rewards = model.predict(flat, activation_fn=torch.nn.Identity(), convert_to_tensor=True)
    chosen, rejected = rewards.view(2, 2).T
    # Its logarithm has base 2, which is a constant factor.
    ours = bradley_terry_loss(chosen, rejected).item() / math.log(2)
    assert theirs.item() == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("name", ["trl", "trl-tuned", "cross-encoder", "cross-encoder-tuned"])
def test_the_other_libraries_learn_what_is_easy(name, tiny_encoder, tmp_path):
    pytest.importorskip("accelerate")
    if name.startswith("trl"):
        pytest.importorskip("trl")
    rows = []
    for i in range(120):
        rows.append({"prompt": f"Is {i} a number?", "chosen": "yes", "rejected": "no no no"})
    file = tmp_path / "easy.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rate = "@1e-3" if name.endswith("tuned") else ""
    flags = ["--dataset", str(file), "--epochs", "4", "--model", tiny_encoder]
    (row,) = run("--only", name + rate, *flags)
    assert row["accuracy"] == 1.0
    assert row["validation_accuracy"] == 1.0


@pytest.mark.parametrize("name", ["trl", "trl-tuned", "cross-encoder-tuned"])
def test_the_other_libraries_score_in_float32_after_training_in_bfloat16(
    name, tiny_encoder, tmp_path, monkeypatch
):
    pytest.importorskip("trl")
    settings = replace(FINETUNE, limit=120, max_length=96, epochs=1, model=tiny_encoder)
    work = peers_training.prepare(settings)
    machine = Device(torch.device("cpu"), torch.bfloat16, "eager", "for the test")
    score = peers_training.train(name, work._replace(machine=machine))
    prompts = [pair.prompt for pair in work.test]
    rewards = torch.tensor(score(prompts, [pair.chosen for pair in work.test]))
    assert not torch.equal(rewards, rewards.bfloat16().float())


def test_rewards_that_are_not_finite_are_one_sentence(
    monkeypatch, made_up_ways, tiny_encoder, capsys
):
    def diverged(work, folder):
        return lambda prompts, responses: [math.nan] * len(prompts)

    monkeypatch.setitem(peers_training.WAYS, "trl", diverged)
    refused("--only", "trl", "--model", tiny_encoder)
    assert "rewards that are not finite" in capsys.readouterr().err
