"""Scoring through Python: one response, many, and a ranking."""

from pathlib import Path

import pytest
import torch

import minirlhf
from minirlhf import model
from minirlhf.approaches import STEPS

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
