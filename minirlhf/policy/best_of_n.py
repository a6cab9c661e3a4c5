"""Best-of-n of the policy at its start: what a reward is worth without any training.

Of n answers the one with the highest reward is taken, for n = 1, 2, 4 ... and all draws. The curve
is exact for the draws that there are (`expected_best`). Its divergence from the start is at most
log n - (n - 1)/n nats, and close to that while the n draws are nearly always different (Beirami et
al. 2024, arXiv:2401.01879).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

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
    """The share of different answers, as tokens, among the best of each question's first n."""
    rewards = draws.rewards[:, :n]
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


# ---- what the best of n is worth, exactly


def expected_best(rewards: Tensor, values: Tensor, n: int) -> Tensor:
    """What the answer with the highest reward of n is worth: (P, M), (P, M) -> (P,) float64.

    This is the exact mean of `values` over all ways to choose n of the M draws, not a simulation;
    n is from 1 to M. The draw of rank i, counted from the lowest reward, is the best of n in
    C(i - 1, n - 1) of the C(M, n) ways. So all M draws serve every n, and the estimate has no bias
    (as in Nakano et al. 2021, https://arxiv.org/abs/2112.09332). Of equal rewards the later draw is
    taken, which is as good as any.
    """
    draws = rewards.shape[1]
    ways = math.comb(draws, n)
    # Integers of any size: these binomials may exceed every float, their quotient does not.
    weights = [math.comb(lower, n - 1) / ways for lower in range(draws)]
    order = rewards.argsort(dim=1, stable=True)  # (P, M) from the lowest to the highest
    ordered = values.double().gather(1, order)  # (P, M)
    return ordered @ torch.tensor(weights, dtype=torch.float64)


def kl_bound(n: int) -> float:
    """Upper bound of the KL divergence of best-of-n from single draws, in nats."""
    return math.log(n) - (n - 1) / n


def sizes(draws: int) -> list[int]:
    """The powers of two below `draws`, and `draws` itself."""
    found = []
    n = 1
    while n < draws:
        found.append(n)
        n *= 2
    return [*found, draws]
