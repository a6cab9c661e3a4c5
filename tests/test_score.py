"""Scoring through Python: one response, many, and a ranking."""

from pathlib import Path

import pytest
import torch
from test_data import FORMS

import minirlhf
from minirlhf import data, model
from minirlhf.approaches import STEPS
from minirlhf.score import Scorer

PROMPT = "2 + 2?"
RESPONSES = ["4", "It is 5, I think.", "2 + 2 = 4. Answer: 4."]


def write_run(folder: Path, approach: str, encoder: str) -> Path:
    """A run folder whose head is not trained but drawn."""
    torch.manual_seed(0)
    built = model.build(approach, encoder, max_length=64)
    for parameter in built.head.parameters():
        torch.nn.init.normal_(parameter)
    folder.mkdir()
    model.save(built, folder / "model")
    return folder


@pytest.fixture(scope="module")
def scorer(tiny_encoder, tmp_path_factory) -> Scorer:
    """A Bradley-Terry model whose head is drawn."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return minirlhf.load(write_run(folder, "bt-frozen", tiny_encoder), "cpu")


@pytest.mark.parametrize("approach", STEPS)
def test_rank_judge_and_best_of_n_agree(approach, tiny_encoder):
    scorer = minirlhf.load(write_run(Path("run"), approach, tiny_encoder), "cpu")
    ranked = scorer.rank(PROMPT, RESPONSES)
    numbers = scorer.judge([(PROMPT, RESPONSES), ("Why?", ["So."]), ("Why?", [])])
    assert [len(found) for found in numbers] == [3, 1, 0]
    assert [number for number, _ in ranked] == pytest.approx(sorted(numbers[0], reverse=True))
    best_first = sorted(RESPONSES, key=lambda text: -numbers[0][RESPONSES.index(text)])
    assert [text for _, text in ranked] == best_first
    assert scorer.best_of_n(PROMPT, RESPONSES) == best_first[0]
    with pytest.raises(ValueError, match="at least one"):
        scorer.best_of_n(PROMPT, [])
    if approach == "classification":
        assert sum(numbers[0]) == pytest.approx(1.5)  # of three, each pair shares one win
        assert numbers[1] == [0.5]
    else:
        assert numbers[0] == pytest.approx(scorer.score_many([PROMPT] * 3, RESPONSES))


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_has_the_reward_of_training_in_any_form(form, scorer):
    _, row, question, *sides = FORMS[form]
    (pair,), _ = data.build_pairs([row])
    texts = data.number_texts([pair])
    trained_on = scorer.model.encode(texts.prompts, texts.responses).token_rows
    rewards = scorer.model.rewards(trained_on).tolist()  # of the chosen and the rejected side

    def same(numbers):  # up to the rounding of batches of another size
        return numbers == pytest.approx(rewards, abs=1e-4)

    assert same([scorer.score(question, side) for side in sides])
    assert same(scorer.score_many([question] * 2, sides))
    assert same(scorer.judge([(question, sides)])[0])
    assert sorted(number for number, _ in scorer.rank(question, sides)) == pytest.approx(
        sorted(rewards), abs=1e-4
    )
    expected = torch.tensor(rewards[0] - rewards[1]).sigmoid().item()  # the temperature is 1
    assert scorer.probability(question, *sides) == pytest.approx(expected, abs=1e-4)


def test_what_is_no_conversation_is_refused_by_name(scorer):
    for prompt, response, reason in (
        (None, "4", "`prompt` is null"),
        (PROMPT, 4, "`response` is a number"),
        (PROMPT, [{"role": "assistant"}], "`content` of a message is missing"),
    ):
        with pytest.raises(ValueError, match=reason):
            scorer.score(prompt, response)
