"""The model as a whole: rows in batches, saved and loaded, and the same rewards every time."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import prepare
from test_loops import fit
from transformers import AutoTokenizer

import train
from minirlhf import model, score
from minirlhf.approaches import STEPS
from minirlhf.bundled.arithmetic import generate
from minirlhf.commands import evaluate
from minirlhf.experiments import overoptimize
from minirlhf.runtime import checkpoint


@pytest.fixture
def built(tiny_encoder):
    return model.build("bt-finetune", tiny_encoder, max_length=96)


def test_batches_keep_the_order_of_the_rows_and_the_budget(built):
    token_rows = [[i] * (i % 50 + 1) for i in range(200)]
    shapes = []

    def first_token(ids, mask):
        shapes.append(ids.numel())
        return ids[:, 0]

    found = built.in_batches(first_token, token_rows, tokens_at_once=512)
    assert found.tolist() == list(range(200))
    assert max(shapes) <= 512


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own(built):
    def length(ids, mask):
        return mask.sum(1)

    assert built.in_batches(length, [[1] * 100], tokens_at_once=10).item() == 100


@pytest.mark.parametrize("approach", STEPS)
def test_save_and_load_give_bit_equal_rewards(approach, tiny_encoder, tmp_path):
    prepared = prepare(approach, tiny_encoder)
    built = prepared.model
    _, before = fit(*prepared, epochs=3)
    model.save(built, tmp_path / "run" / "model")
    loaded = model.load(tmp_path / "run" / "model")
    for name, value in built.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    scorer = score.load(tmp_path / "run", "cpu")
    row = generate(8)[0]
    if approach == "classification":
        with pytest.raises(TypeError, match="cannot score one"):
            scorer.score(row["prompt"], row["chosen"])
    else:
        scores = scorer.score_many([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        # The reward of scoring is the reward of training.
        assert scores[0] - scores[1] == pytest.approx(before[0].item(), abs=1e-4)
    assert scorer.rank(row["prompt"], [row["rejected"], row["chosen"]])[0][1] == row["chosen"]
    if approach == "classification":
        assert scorer.rank("q", ["alone"]) == [(0.5, "alone")]
        assert scorer.rank("q", []) == []
        (low, _), (middle, _), (high, _) = sorted(scorer.rank("q", ["a", "b", "why not"]))
        assert low + middle + high == pytest.approx(1.5)  # each win is another's loss


def test_scores_do_not_depend_on_company_or_order(tiny_encoder, tmp_path):
    prepared = prepare("bt-finetune", tiny_encoder)
    fit(*prepared, epochs=3)
    model.save(prepared.model, tmp_path / "model")
    scorer = score.load(tmp_path, "cpu")
    rows = generate(40)
    prompts = [row["prompt"] for row in rows]
    responses = [row["chosen"] for row in rows]
    together = scorer.score_many(prompts, responses)
    alone = [scorer.score(row["prompt"], row["chosen"]) for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)
    backwards = scorer.score_many(prompts[::-1], responses[::-1])
    assert backwards[::-1] == pytest.approx(together, abs=1e-5)
    assert scorer.score_many([], []) == []
    assert scorer.rank("q", []) == []


def test_a_model_folder_of_a_newer_format_or_without_a_model_is_refused(tiny_encoder, tmp_path):
    model.save(model.build("bt-frozen", tiny_encoder, max_length=96), tmp_path / "model")
    info = checkpoint.read_json(tmp_path / "model" / "reward.json")
    checkpoint.write_json(tmp_path / "model" / "reward.json", info | {"format": 99})
    with pytest.raises(ValueError, match="format 99"):
        model.load(tmp_path / "model")
    checkpoint.write_json(tmp_path / "model" / "reward.json", info | {"size": 16})
    with pytest.raises(ValueError, match="no readable reward model"):
        model.load(tmp_path / "model")
    with pytest.raises(ValueError, match="no trained model"):
        model.load(tmp_path)


def test_more_tokens_than_the_encoder_can_read_are_refused(tiny_encoder):
    with pytest.raises(ValueError, match="max-length 129 is more than .* 128 tokens"):
        model.build("bt-finetune", tiny_encoder, max_length=129)


# ---- what is read from a stranger's folder


def test_a_run_that_claims_to_read_more_than_its_encoder_can_is_refused(tiny_encoder, tmp_path):
    model.save(model.build("bt-frozen", tiny_encoder, max_length=96), tmp_path / "model")
    info = checkpoint.read_json(tmp_path / "model" / "reward.json")
    checkpoint.write_json(tmp_path / "model" / "reward.json", info | {"max_length": 10**12})
    with pytest.raises(ValueError, match="can read, 128 tokens"):
        model.load(tmp_path / "model")


def test_a_head_of_a_trillion_numbers_needs_no_memory_to_be_refused(tiny_encoder, tmp_path):
    model.save(model.build("bt-frozen", tiny_encoder, max_length=96), tmp_path / "model")
    info = checkpoint.read_json(tmp_path / "model" / "reward.json")
    checkpoint.write_json(tmp_path / "model" / "reward.json", info | {"size": 10**12})
    with pytest.raises(ValueError, match="size mismatch"):
        model.load(tmp_path / "model")


@pytest.mark.parametrize("limit", [10**12, -1, 2.5, "many"])
def test_a_run_that_claims_a_trillion_pairs_is_refused_at_once(limit, tiny_encoder, capsys):
    model.save(model.build("bt-finetune", tiny_encoder, max_length=96), Path("run/model"))
    arguments = {"dataset": "arithmetic", "split": "train", "limit": limit, "fold": 0}
    config = {"arguments": arguments, "data": {"sha256": "0"}}
    checkpoint.write_json(Path("run/config.json"), config)
    for main, flags in (
        (evaluate.main, ["run", "--dataset", "arithmetic", "--device", "cpu"]),
        (overoptimize.main, ["run", "--device", "cpu"]),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(flags)
        said = capsys.readouterr().err
        assert (stopped.value.code, said.count("\n")) == (2, 1), said
        assert f"config.json says that the run used {limit!r} pairs" in said


# ---- pairs whose two sides become one text


ANSWER_ALONE = (  # as DeepSeek-R1's: what stands before </think> is dropped
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}{% endfor %}"
)


@pytest.fixture
def thinking_rows() -> list[dict]:
    """120 rows, of which every fourth pair differs in its thoughts only."""
    rows = generate(120)
    for number, row in enumerate(rows):
        row["chosen"] = f"<think>good {number}</think>{row['chosen']}"
        row["rejected"] = f"<think>bad {number}</think>{row['rejected']}"
        if number % 4 == 0:
            row["rejected"] = row["chosen"].replace("good", "bad")
    return rows


@pytest.mark.parametrize("approach", ["bt-finetune", "bt-frozen"])
def test_pairs_that_a_template_makes_equal_are_dropped_and_counted(
    approach, thinking_rows, tiny_decoder, capsys
):
    shutil.copytree(tiny_decoder, "chat")
    tokenizer = AutoTokenizer.from_pretrained("chat")
    tokenizer.chat_template = ANSWER_ALONE
    tokenizer.save_pretrained("chat")
    Path("p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thinking_rows))
    flags = ["--approach", approach, "--dataset", "p.jsonl", "--model", "chat", "--epochs", "1"]
    flags += ["--max-length", "96", "--device", "cpu", "--tracking-uri", "none"]
    train.main([*flags, "--output", "run"])

    counts = checkpoint.read_json(Path("run/config.json"))["data"]
    assert (counts["pairs"], counts["same_tokens"]) == (120, 30)
    assert sum(counts["parts"].values()) == 90
    predictions = checkpoint.read_jsonl(Path("run/predictions.jsonl"))
    assert len(predictions) == counts["parts"]["test"]
    assert "30 pairs whose sides are the same tokens" in capsys.readouterr().out


def test_a_run_that_cuts_most_texts_warns_and_names_the_flag(tiny_encoder, pairs_file, capsys):
    flags = ["--dataset", pairs_file, "--model", tiny_encoder, "--epochs", "1"]
    flags += ["--approach", "bt-frozen", "--device", "cpu", "--tracking-uri", "none"]
    train.main([*flags, "--max-length", "16", "--output", "short"])
    warning = [line for line in capsys.readouterr().out.splitlines() if "WARNING" in line]
    assert len(warning) == 1
    assert "raise --max-length above 16" in warning[0]
    counts = checkpoint.read_json(Path("short/config.json"))["data"]
    assert counts["texts"] / 2 < counts["questions_lost"] <= counts["texts_cut"]
    train.main([*flags, "--max-length", "128", "--output", "long"])
    assert "WARNING" not in capsys.readouterr().out


def test_without_prompts_no_question_is_lost(tiny_encoder, pairs_file):
    flags = [
        "--dataset",
        pairs_file,
        "--model",
        tiny_encoder,
        "--epochs",
        "1",
        "--response-only",
    ]
    flags += ["--approach", "bt-frozen", "--device", "cpu", "--tracking-uri", "none"]
    train.main([*flags, "--max-length", "16", "--output", "run"])
    assert checkpoint.read_json(Path("run/config.json"))["data"]["questions_lost"] == 0
