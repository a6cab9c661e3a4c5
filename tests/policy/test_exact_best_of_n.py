"""Best-of-n: exact expectations, and the bound of its divergence."""

import math
from itertools import combinations

import pytest
import torch

from minirlhf.policy.best_of_n import expected_best, kl_bound


def random_table(prompts=3, draws=7):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, prompts, draws, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 2, 3, 6, 7])
def test_expected_best_is_the_mean_over_all_subsets(n):
    rewards, values = random_table()
    subsets = [list(subset) for subset in combinations(range(7), n)]
    by_hand = torch.zeros(3, dtype=torch.float64)
    for subset in subsets:
        for prompt in range(3):
            best = max(subset, key=lambda i, prompt=prompt: rewards[prompt, i])
            by_hand[prompt] += values[prompt, best] / len(subsets)
    assert torch.allclose(expected_best(rewards, values, n), by_hand, rtol=0, atol=1e-12)


def test_one_draw_is_the_mean_and_all_draws_the_pick():
    rewards, values = random_table()
    assert torch.allclose(expected_best(rewards, values, 1), values.mean(dim=1))
    picked = values[torch.arange(3), rewards.argmax(dim=1)]
    assert torch.equal(expected_best(rewards, values, 7), picked)
    many = torch.arange(3000.0).expand(2, -1)  # binomials that no float holds
    assert torch.allclose(
        expected_best(many, many, 1500)[0], torch.tensor(2998.0).double(), atol=1
    )


def test_the_bound_is_the_kl_divergence_where_no_two_draws_are_equal():
    assert kl_bound(1) == 0
    assert kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    # Of K equally likely answers, best-of-n takes that of rank i with probability
    # (i/K)^n - ((i-1)/K)^n; the divergence reaches the bound from below as K grows.
    for n in (2, 16, 256):
        found = []
        for k in (100, 10_000, 1_000_000):
            steps = torch.linspace(0, 1, k + 1, dtype=torch.float64) ** n
            p = steps.diff()
            found.append((p * (p * k).clamp(min=1e-300).log()).sum().item())
        assert found == sorted(found) and found[-1] < kl_bound(n)
        assert found[-1] == pytest.approx(kl_bound(n), abs=1e-3)
