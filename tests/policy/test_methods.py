"""Each method does what it is for: the policy comes to write what is rewarded."""

from dataclasses import replace

import pytest
import torch
from test_policies import questions, tiny_policy

from minirlhf.policy import language
from minirlhf.policy.methods import LOSSES, best_of_n
from minirlhf.policy.objectives import sequence_log_probabilities
from minirlhf.policy.policies import Draws
from minirlhf.policy.settings import PolicySettings

SETTINGS = PolicySettings(kl_weight=0.0)
LIKED = language.to_ids(["dollars"])[0]


def liked_tokens(draws: Draws) -> torch.Tensor:
    """A reward: how often an answer says "dollars", (P, G)."""
    answers = draws.ids[:, -draws.mask.shape[1] :]
    count = ((answers == LIKED) & draws.mask.bool()).sum(dim=1)
    return count.float().view(len(draws.questions), -1)


def drawn(policy, start, seed: int) -> Draws:
    """Sixteen answers to each of four questions, with their rewards."""
    torch.manual_seed(seed)
    draws = policy.sample(questions(4), 16, max_tokens=12)
    with torch.no_grad():
        return replace(
            draws,
            rewards=liked_tokens(draws),
            old_log_p=policy.log_probabilities(draws),
            reference_log_p=start.log_probabilities(draws),
        )


@pytest.mark.parametrize("method", ["rejection-sampling", "dpo", "grpo"])
def test_the_reward_rises(method):
    policy = tiny_policy()
    start = policy.frozen_copy()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-2)
    before = drawn(policy, start, 1000).rewards.mean().item()
    for step in range(25):
        draws = drawn(policy, start, step)
        loss = LOSSES[method](policy, draws, SETTINGS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = drawn(policy, start, 2000).rewards.mean().item()
    assert after > before + 0.5, (before, after)


def test_dpo_makes_the_chosen_answer_likelier_than_the_rejected_one():
    policy = tiny_policy()
    start = policy.frozen_copy()
    asked = questions(4)
    texts = [["Answer: 23 dollars.", "So: 23 dollars."] for _ in asked]
    draws = policy.draws_of(asked, texts)
    with torch.no_grad():
        draws = replace(
            draws,
            rewards=torch.tensor([[1.0, 0.0]] * 4),
            reference_log_p=start.log_probabilities(draws),
        )

    def preference() -> torch.Tensor:
        both = sequence_log_probabilities(policy.log_probabilities(draws), draws.mask)
        return (both.view(4, 2)[:, 0] - both.view(4, 2)[:, 1]).detach()

    before = preference()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-3)
    for _ in range(10):
        loss = LOSSES["dpo-data"](policy, draws, SETTINGS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (preference() > before + 1).all()


@pytest.mark.parametrize("method", ["dpo", "grpo"])
def test_equal_rewards_teach_nothing(method):
    policy = tiny_policy()
    start = policy.frozen_copy()
    draws = replace(drawn(policy, start, 0), rewards=torch.full((4, 16), 3.3))
    loss = LOSSES[method](policy, draws, SETTINGS)
    loss.backward()
    assert all(weight.grad.abs().max() < 1e-6 for weight in policy.model.parameters())


def test_the_price_of_divergence_holds_the_policy_back():
    """The same draws and the same updates, with and without a KL weight."""
    moved = {}
    for kl_weight in (0.0, 10.0):
        policy = tiny_policy()
        start = policy.frozen_copy()
        optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.5)
        draws = drawn(policy, start, 0)
        for _ in range(5):
            loss = LOSSES["grpo"](policy, draws, replace(SETTINGS, kl_weight=kl_weight))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            now = policy.log_probabilities(draws)
        moved[kl_weight] = ((now - draws.reference_log_p) * draws.mask).abs().mean().item()
    assert moved[10.0] < 0.8 * moved[0.0]


def test_best_of_n_takes_the_highest_reward():
    policy = tiny_policy()
    draws = drawn(policy, policy, 0)
    best = best_of_n(draws)
    for i in range(4):
        highest = draws.rewards[i].argmax().item()
        assert best.texts[i] == [draws.texts[i][highest]]
