"""`python -m minirlhf policy`: its files, what it refuses, and a stopped run that goes on."""

import json
from pathlib import Path

import pytest
import torch
from conftest import _tokenizer, stop_at
from transformers import GPT2Config, GPT2LMHeadModel

import train
from minirlhf.bundled.arithmetic import generate
from minirlhf.commands import policy as command
from minirlhf.policy import loop
from minirlhf.runtime.checkpoint import read_json, read_jsonl

TINY = ["--start-steps", "2", "--steps", "4", "--questions", "2", "--group", "3"]
TINY += ["--evaluate-every", "2", "--validation", "4", "--test", "8", "--draws", "4"]
TINY += ["--max-tokens", "12", "--device", "cpu", "--tracking-uri", "none"]


@pytest.fixture(scope="module")
def runs(tiny_encoder, tmp_path_factory) -> dict[str, str]:
    """Tiny runs of train.py, for their rewards."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.chdir(folder)
        patch.setenv("MINIRLHF_CACHE", str(folder / "cache"))
        for approach in ("bt-finetune", "classification"):
            flags = ["--approach", approach, "--model", tiny_encoder, "--limit", "120"]
            flags += ["--max-length", "64", "--epochs", "1", "--tracking-uri", "none"]
            train.main([*flags, "--device", "cpu", "--output", approach])
            found[approach] = str(folder / approach)
    return found


def test_four_ways_on_one_reward(runs, capsys):
    command.main(["--reward", runs["bt-finetune"], "--method", "all", "--output", "all", *TINY])
    printed = capsys.readouterr().out
    for method in ("rejection-sampling", "dpo-data", "dpo", "grpo"):
        folder = Path("all", method)
        history = read_jsonl(folder / "history.jsonl")
        assert [row["step"] for row in history] == [0, 2, 4]
        assert history[0]["kl"] == pytest.approx(0, abs=1e-4)  # the start is the start
        metrics = read_json(folder / "metrics.json")
        for point in ("start", "best", "end"):
            found = metrics[point]
            assert found["rating_low"] <= found["rating"] <= found["rating_high"]
            assert 1 <= found["rating"] <= 10
            assert found["flawless"] == pytest.approx(found["flaws"]["flawless"])
        assert metrics["best"]["at"] in (0, 2, 4)
        for name in ("samples.md", "figures/curve.png", "figures/flaws.png"):
            assert (folder / name).stat().st_size > 100
        assert not (folder / "state.safetensors").exists()
    best = read_jsonl(Path("all/best-of-n/history.jsonl"))
    assert [row["at"] for row in best] == [1, 2, 4]
    rewards = [row["reward"] for row in best]
    assert rewards == sorted(rewards)
    assert Path("all/figures/policy.png").exists()
    assert Path("all/policy.md").read_text() in printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run on the truth that was not stopped."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.setenv("MINIRLHF_CACHE", str(folder / "cache"))
        command.main(["--output", str(folder / "run"), *TINY])
    return folder / "run"


def test_best_validation_point_has_the_highest_validation_rating(whole):
    history = read_jsonl(whole / "history.jsonl")
    best = max(history, key=lambda row: row["rating"])
    assert read_json(whole / "metrics.json")["best"]["at"] == best["step"]


def test_the_truth_is_a_reward(whole):
    for row in read_jsonl(whole / "history.jsonl"):
        assert row["reward"] == pytest.approx(row["rating"])
    end = read_json(whole / "metrics.json")["end"]
    assert end["reward_low"] == end["rating_low"] < end["rating_high"] == end["reward_high"]


def stop_before(monkeypatch, draw: int, flags: list[str]) -> None:
    """Run the command, and press Ctrl-C before it draws for the so-manieth time."""
    with monkeypatch.context() as patch:
        stop_at(patch, loop, "draw", call=draw)
        with pytest.raises(SystemExit) as stop:
            command.main(flags)
        assert stop.value.code == 130


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole, monkeypatch, capsys):
    """It is stopped before its second look at the validation questions, and once after it."""
    stop_before(monkeypatch, 2, ["--output", "stopped", *TINY])
    assert "--resume stopped" in capsys.readouterr().err
    stop_before(monkeypatch, 4, ["--resume", "stopped"])
    assert not Path("stopped/metrics.json").exists()

    # With another start it could not be compared with where it came from.
    config = read_json(Path("stopped/config.json"))
    other = {**config, "arguments": {**config["arguments"], "start_seed": 1}}
    Path("stopped/config.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit) as stop:
        command.main(["--resume", "stopped"])
    assert stop.value.code == 2
    assert "does not start where it started" in capsys.readouterr().err
    Path("stopped/config.json").write_text(json.dumps(config))

    command.main(["--resume", "stopped"])

    def without_seconds(folder: Path) -> list[dict]:
        rows = read_jsonl(folder / "history.jsonl")
        return [{name: row[name] for name in row if name != "seconds"} for row in rows]

    assert without_seconds(Path("stopped")) == without_seconds(whole)
    metrics = read_json(whole / "metrics.json")
    assert {**metrics, "seconds": 0} == {
        **read_json(Path("stopped/metrics.json")),
        "seconds": 0,
    }


def test_the_average_of_two_runs_is_a_reward(runs):
    both = [runs["bt-finetune"], runs["bt-finetune"]]
    command.main(["--reward", *both, "--output", "run", *TINY])
    assert read_json(Path("run/metrics.json"))["reward"] == both


def test_a_classification_is_a_reward_within_a_group(runs):
    command.main(["--reward", runs["classification"], "--output", "run", *TINY])
    history = read_jsonl(Path("run/history.jsonl"))
    assert len(history) == 3
    assert not any("reward" in row for row in history)  # it has none for an answer alone
    assert "rating" in history[0]


@pytest.fixture(scope="module")
def tiny_writer(tmp_path_factory) -> str:
    """A randomly initialised GPT-2 with a language-model head and a chat template."""
    folder = tmp_path_factory.mktemp("writer")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=600, n_embd=32, n_layer=2, n_head=2, n_positions=256, eos_token_id=0,
        bos_token_id=0,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = _tokenizer(cls=False)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def prompts_file() -> str:
    """60 prompts."""
    rows = [{"prompt": row["prompt"]} for row in generate(200)]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "prompts.jsonl"


@pytest.mark.parametrize("method", ["grpo", "dpo", "rejection-sampling", "best-of-n"])
def test_any_causal_language_model_is_a_policy(method, runs, tiny_writer, prompts_file):
    flags = ["--policy", tiny_writer, "--dataset", prompts_file, "--method", method]
    command.main(["--reward", runs["bt-finetune"], "--output", "run", *flags, *TINY])
    metrics = read_json(Path("run/metrics.json"))
    assert "rating" not in metrics["end"] and "best" not in metrics  # nobody knows the truth
    assert "before" in Path("run/samples.md").read_text()
    if method != "best-of-n":
        model = GPT2LMHeadModel.from_pretrained("run/model", trust_remote_code=False)
        before = GPT2LMHeadModel.from_pretrained(tiny_writer, trust_remote_code=False)
        assert not torch.equal(model.lm_head.weight, before.lm_head.weight)
        assert Path("run/model/tokenizer.json").exists()


BAD = [
    (["--reward", "truth", "run"], "--reward truth stands alone"),
    (["--dataset", "x.jsonl"], "the toy has questions of its own"),
    (["--policy", "some/model"], "needs --dataset"),
    (["--policy", "m", "--dataset", "x"], "the truth is known of the toy's answers only"),
    (
        ["--policy", "m", "--dataset", "x", "--reward", "r", "--method", "all"],
        "pairs for the toy",
    ),
    (["--reward", "nowhere"], "nowhere"),
    (["--group", "1"], "--group"),
    (["--steps", "0"], "--steps"),
    (["--lr", "nan"], "--lr"),
    (["--method", "ppo"], "--method"),
    (["--resume", "nowhere"], "holds no run"),
    (["--overwrite"], "--overwrite goes with --output"),
]


@pytest.mark.parametrize(("flags", "sentence"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_one_sentence(flags, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(flags)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert sentence in error and error.count("\n") == 1
    assert not Path("runs").exists()


def test_help_answers_at_once(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    assert "--kl-weight" in capsys.readouterr().out
