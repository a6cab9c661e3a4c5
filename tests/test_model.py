"""The model as a whole: rows in batches, saved and loaded, and the same rewards every time."""

import pytest
import torch
from conftest import prepare
from test_loops import fit

from minirlhf import model, score
from minirlhf.approaches import STEPS
from minirlhf.bundled.arithmetic import generate
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
