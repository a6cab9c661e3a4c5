"""Pairs that others wrote and others ranked, for DPO without a reward.

For the toy they are the generator's: two of its answers with different ratings, the better one
first.
"""

import random
from collections.abc import Sequence

from minirlhf.bundled.arithmetic import Problem, draw_answer
from minirlhf.policy.questions import Question


def pairs_of_step(questions: Sequence[Question], seed: int, step: int) -> list[list[str]]:
    """For each question, a chosen and a rejected answer. Only the toy's questions have them."""
    rng = random.Random(f"data pairs {seed} {step}")
    return [draw_pair(question.problem, rng) for question in questions]


def draw_pair(problem: Problem, rng: random.Random) -> list[str]:
    """Two answers of the generator with different ratings, the better one first."""
    one = draw_answer(problem, rng)
    two = draw_answer(problem, rng)
    while two.rating == one.rating:
        two = draw_answer(problem, rng)
    if one.rating > two.rating:
        return [one.text, two.text]
    return [two.text, one.text]
