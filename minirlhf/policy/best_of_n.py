"""Best-of-n of the policy at its start: what a reward is worth without any training.

For every n up to the number of draws, the answer with the highest reward of n is taken. The curve
is exact for the draws that there are (`overoptimize.expected_best`). Its distance from the start is
log n - (n - 1)/n nats. This is an upper bound of the divergence, and close to it while the n draws
are nearly always different (Beirami et al. 2024, arXiv:2401.01879).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from minirlhf.experiments.overoptimize import expected_best, kl_bound, sizes
from minirlhf.policy.loop import Answers, answer_rows, seed_of
from minirlhf.policy.methods import best_of_n
from minirlhf.policy.policies import Draws, Policy
from minirlhf.policy.questions import Question
from minirlhf.policy.report import with_intervals
from minirlhf.policy.rewards import Reward, grades_of
from minirlhf.policy.settings import PolicySettings
from minirlhf.runtime.device import seed_everything


def draw_many(
    policy: Policy,
    reward: Reward,
    questions: Sequence[Question],
    settings: PolicySettings,
    part: int,
) -> Draws:
    """`settings.draws` answers to each question, with their rewards. part: see `loop.seed_of`."""
    seed_everything(seed_of(settings, part))
    draws = policy.sample(questions, settings.draws, settings.max_tokens)
    return replace(draws, rewards=reward(draws.questions, draws.texts))


def curve(draws: Draws) -> list[dict]:
    """What the best of n is worth for n = 1, 2, 4 ...: a row for each n, with 95 % intervals."""
    values = {"reward": draws.rewards.double()}  # each (P, G)
    if draws.questions[0].problem is not None:
        grades = grades_of(draws.questions, draws.texts)
        ratings = [[grade.rating for grade in of_question] for of_question in grades]
        flawless = [[float(not grade.flaws) for grade in of_question] for of_question in grades]
        values["rating"] = torch.tensor(ratings)
        values["flawless"] = torch.tensor(flawless)
    lengths = draws.mask.sum(dim=1).view(len(draws.questions), -1).cpu()  # (P, G)
    prompts = [question.text for question in draws.questions]

    rows = []
    for n in sizes(draws.group):
        of_best = {}  # (P,) each
        for name, of_draws in values.items():
            of_best[name] = expected_best(draws.rewards, of_draws, n)
        tokens = expected_best(draws.rewards, lengths, n).mean().item()
        numbers = {"kl": kl_bound(n), "tokens": tokens, "distinct": distinct(draws, n)}
        rows.append({"at": n, **with_intervals(of_best, prompts), **numbers})
    return rows


def distinct(draws: Draws, n: int) -> float:
    """The share of different answers, as tokens, among the best of n of each question."""
    rewards: Tensor = draws.rewards[:, :n]
    picked = draws.one_of_each(rewards.argmax(dim=1))
    rows = answer_rows(picked)
    return len(set(rows)) / len(rows)


def best_answers(draws: Draws) -> Answers:
    """The best of all draws of each question, as the answers of a policy."""
    best = best_of_n(draws)
    grades = None
    if draws.questions[0].problem is not None:
        grades = [of_question[0] for of_question in grades_of(best.questions, best.texts)]
    distance = torch.full((len(best.questions),), kl_bound(draws.group))
    return Answers(best, draws.rewards.amax(dim=1), distance, grades)
