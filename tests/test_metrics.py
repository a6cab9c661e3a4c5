import numpy as np
import pytest
import torch

from minirlhf import metrics


def test_credit_counts_a_tie_one_half():
    assert metrics.credit(torch.tensor([1.0, -1.0, 0.0, 1e-9])).tolist() == [1, 0, 0.5, 1]
    assert metrics.credit(torch.zeros(10)).mean() == 0.5


def test_bootstrap_over_prompts_agrees_with_one_written_plainly():
    rng = np.random.default_rng(0)
    prompts = [str(p) for p in rng.integers(0, 40, 200)]
    values = torch.tensor(rng.random(200) < 0.6).float()
    ours = metrics.bootstrap(values, prompts)
    groups = {
        p: [v for v, q in zip(values.tolist(), prompts, strict=True) if q == p] for p in prompts
    }
    names, means = list(groups), []
    for _ in range(4000):
        drawn = [v for i in rng.integers(0, len(names), len(names)) for v in groups[names[i]]]
        means.append(np.mean(drawn))
    low, high = np.quantile(means, [0.025, 0.975])
    assert ours.estimate == pytest.approx(values.mean().item())
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.015)


def test_pairs_of_one_prompt_are_no_independent_evidence():
    # 50 prompts, 10 pairs each that all agree: as uncertain as 50 pairs, not as 500.
    right = (torch.arange(50) % 2).float()
    few = metrics.bootstrap(right, list(map(str, range(50))))
    many = metrics.bootstrap(right.repeat(10), list(map(str, range(50))) * 10)
    naive = metrics.bootstrap(right.repeat(10), list(map(str, range(500))))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (many.high - many.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        values = torch.tensor(rng.random(150) < 0.7).float()
        interval = metrics.bootstrap(values, list(map(str, range(150))), resamples=300, seed=trial)
        hits += interval.low <= 0.7 <= interval.high
    assert 178 <= hits <= 200  # 190 expected, 3 standard deviations below it is 181


def test_mean_over_subsets_weighs_small_subsets_as_large_ones():
    margins = torch.tensor([1.0] * 90 + [-1.0] * 10)
    subsets = ["large"] * 90 + ["small"] * 10
    summary = metrics.summarize(margins, list(map(str, range(100))), subsets)
    assert summary["accuracy"] == pytest.approx(0.9)
    assert summary["balanced_accuracy"] == pytest.approx(0.5)
    assert summary["subsets"] == {
        "large": {"n": 90, "accuracy": 1.0},
        "small": {"n": 10, "accuracy": 0.0},
    }
    assert (summary["n"], summary["n_prompts"], summary["tie_rate"]) == (100, 100, 0)


def test_the_accuracy_of_a_part_is_no_mean_of_batch_means():
    margins = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])
    batch_means = [metrics.credit(batch).mean().item() for batch in margins.split(4)]
    assert sum(batch_means) / 2 == 0.5
    summary = metrics.summarize(margins, list("abcde"), ["all"] * 5)
    assert summary["accuracy"] == pytest.approx(0.8)


def test_no_pairs():
    with pytest.raises(ValueError, match="no values"):
        metrics.bootstrap(torch.tensor([]), [])
