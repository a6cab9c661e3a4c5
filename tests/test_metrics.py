import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from minirlhf import metrics


def names(n: int) -> list[str]:
    return [str(i) for i in range(n)]


def honest(n: int, seed: int = 0, temperature: float = 1.0) -> torch.Tensor:
    """Margins of a model that is right as often as sigmoid(margin / temperature) says."""
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.5, 1, n)
    right = rng.random(n) < confidence
    return torch.tensor(temperature * np.log(confidence / (1 - confidence)) * (2 * right - 1))


def summary_of(margins, prompts=None, subsets=None, **more):
    n = len(margins)
    lengths = more.pop("lengths", torch.tensor([[2, 1]] * n))
    return metrics.summarize(
        margins, prompts or names(n), subsets or ["all"] * n, lengths, **more
    )


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
        interval = metrics.bootstrap(
            values, list(map(str, range(150))), resamples=300, seed=trial
        )
        hits += interval.low <= 0.7 <= interval.high
    assert 178 <= hits <= 200  # 190 expected, 3 standard deviations below it is 181


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("prompts", [5, 20])
def test_the_interval_of_an_accuracy_holds_on_few_prompts_and_near_the_ends(share, prompts):
    rng = np.random.default_rng(2)
    hits = 0
    for trial in range(200):
        right = torch.tensor(rng.random(prompts) < share).float()
        interval = metrics.bootstrap(
            right, names(prompts), ends=(0, 1), resamples=300, seed=trial
        )
        hits += interval.low <= share <= interval.high + 1e-9
    assert hits >= 181  # 190 expected, less 3 standard deviations; without ends it is 6 to 190


def test_three_right_pairs_do_not_show_that_a_model_is_always_right():
    summary = summary_of(torch.ones(3))
    # 4 of 5 prompts are right, one of which is imaginary, and one imaginary one is wrong. Of five
    # that are drawn, three or more are wrong in 5.8 % of all cases, and four or more in 0.7 %.
    assert (summary["accuracy"], summary["accuracy_high"]) == (1, 1)
    assert summary["accuracy_low"] == pytest.approx(0.4)
    assert summary["balanced_accuracy_low"] == pytest.approx(0.4)
    wrong = summary_of(-torch.ones(3))
    assert (wrong["accuracy_low"], wrong["accuracy"]) == (0, 0)
    assert wrong["accuracy_high"] == pytest.approx(0.6)


def test_two_models_that_agree_on_all_pairs_may_differ_on_others():
    lead = metrics.bootstrap(torch.zeros(200), names(200), ends=(-1, 1))
    assert lead.estimate == 0
    # The standard error is sqrt(2) / 202: 1.96 of them are 2.8 / 202, and pairs come in whole ones.
    assert (lead.low, lead.high) == pytest.approx((-3 / 202, 3 / 202))


def test_known_ends_are_two_more_prompts_of_average_size():
    values = torch.tensor(np.random.default_rng(5).random(30))
    prompts = [str(i % 10) for i in range(30)]
    ours = metrics.bootstrap(values, prompts, ends=(-1, 1))
    written_out = torch.cat([values, -torch.ones(3), torch.ones(3)])
    more_prompts = [*prompts, *["least"] * 3, *["most"] * 3]
    plain = metrics.bootstrap(written_out, more_prompts)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high))
    assert ours.estimate == pytest.approx(values.mean().item())


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_t_interval_is_that_of_scipy(count):
    values = np.random.default_rng(count).normal(0.7, 0.02, count)
    ours = metrics.t_interval(values.tolist())
    theirs = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert ours.estimate == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx(theirs, rel=1e-6)


def test_mean_over_subsets_weighs_small_subsets_as_large_ones():
    margins = torch.tensor([1.0] * 90 + [-1.0] * 10)
    subsets = ["large"] * 90 + ["small"] * 10
    summary = summary_of(margins, subsets=subsets)
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
    summary = summary_of(margins)
    assert summary["accuracy"] == pytest.approx(0.8)


def test_with_one_pair_a_prompt_it_is_the_bootstrap_of_scipy():
    values = torch.tensor(np.random.default_rng(2).exponential(size=80))
    ours = metrics.bootstrap(values, names(80))
    theirs = stats.bootstrap(
        (values.numpy(),), np.mean, n_resamples=5000, method="percentile", rng=0
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.025)  # it is 0.44 wide


def test_the_interval_of_the_mean_over_subsets_agrees_with_one_written_plainly():
    rng = np.random.default_rng(3)
    prompts = rng.integers(0, 60, 300)
    subsets = np.where(rng.random(300) < 0.15, "small", "large")  # a prompt may be in both
    values = (rng.random(300) < np.where(subsets == "small", 0.3, 0.8)).astype(float)
    ours = metrics.bootstrap(torch.tensor(values), list(map(str, prompts)), list(subsets))

    def mean_over_subsets(rows):
        return np.mean([values[rows][subsets[rows] == s].mean() for s in ("small", "large")])

    rows_of = [np.flatnonzero(prompts == p) for p in np.unique(prompts)]
    means = [
        mean_over_subsets(np.concatenate([rows_of[i] for i in drawn]))
        for drawn in rng.integers(0, len(rows_of), (2000, len(rows_of)))
    ]
    assert ours.estimate == pytest.approx(mean_over_subsets(np.arange(300)))
    assert (ours.low, ours.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.015)


def test_the_imaginary_prompts_of_a_small_subset_are_as_large_as_its_own():
    """200 prompts beside 5: averaged over all 205, they would nearly vanish in the small subset."""
    held = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        right = rng.random(205) < 0.8
        subsets = ["large"] * 200 + ["small"] * 5
        values = torch.tensor(right.astype(float))
        interval = metrics.bootstrap(
            values, names(205), subsets, ends=(0, 1), resamples=300, seed=trial
        )
        held += interval.low <= 0.8 <= interval.high
    assert held >= 54  # 0.61 of the cases before; seeded, so it cannot flake


def test_a_subset_that_some_resamples_do_not_hold_makes_no_interval_nan():
    subsets = ["rare"] + ["common"] * 20  # no resample without the one prompt has a "rare" mean
    interval = metrics.bootstrap(torch.tensor([0.0] + [1.0] * 20), names(21), subsets)
    assert (interval.estimate, interval.low, interval.high) == (0.5, 0.5, 1.0)


def test_on_the_same_pairs_a_small_lead_shows_that_two_intervals_hide():
    better = torch.tensor([1.0, -1.0] * 100)
    worse = torch.where(torch.arange(200) < 20, -1.0, better)  # ten more mistakes, none mended
    a, b = metrics.credit(better), metrics.credit(worse)
    assert metrics.bootstrap(a - a, names(200)) == (0, 0, 0)
    lead = metrics.bootstrap(a - b, names(200))
    assert lead.estimate == pytest.approx(0.05)
    assert 0 < lead.low < lead.high
    assert metrics.bootstrap(a, names(200)).low < metrics.bootstrap(b, names(200)).high


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_likelihood_agrees_with_the_formula(temperature):
    margins, weight = torch.randn(50), torch.rand(50)
    plain = -np.log(1 / (1 + np.exp(-margins.double().numpy() / temperature)))
    ours = metrics.negative_log_likelihood(margins, temperature, weight)
    assert ours == pytest.approx((weight.double().numpy() * plain).mean())


def test_the_likelihood_of_a_coin_and_of_a_sure_mistake():
    assert metrics.negative_log_likelihood(torch.zeros(3)) == pytest.approx(math.log(2))
    # log(sigmoid(-1000)) would be log(0).
    assert metrics.negative_log_likelihood(torch.tensor([-1000.0]), 2.0) == 500


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_temperature_agrees_with_scipy_and_with_a_logistic_regression(scale, weighted):
    rng = np.random.default_rng(4)
    margins = torch.tensor(scale * rng.normal(0.5, 1, 300)).float()
    weight = torch.tensor(rng.exponential(size=300) if weighted else np.ones(300)).float()
    ours = metrics.fit_temperature(margins, weight)
    # Then the two imaginary pairs, one right and one wrong, written out.
    size = margins.double().abs().mean()
    margins = torch.cat([margins.double(), torch.stack([size, -size])])
    weight = torch.cat([weight, torch.ones(2)])

    def loss(log_temperature):
        return metrics.negative_log_likelihood(margins, math.exp(log_temperature), weight)

    around = math.log(scale)
    best = optimize.minimize_scalar(loss, bounds=(around - 4, around + 4), method="bounded")
    assert ours == pytest.approx(math.exp(best.x), rel=1e-3)
    assert loss(math.log(ours)) <= best.fun + 1e-12
    # Without an intercept, the slope of "right or not" on the margin is 1 / temperature. Every pair
    # is shown both ways round, since a regression wants both classes.
    x = margins.double().numpy() / scale  # near 1, where its solver is at home
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8)
    model.fit(np.r_[x, -x][:, None], np.repeat([1, 0], 302), np.tile(weight.numpy(), 2))
    assert ours == pytest.approx(scale / model.coef_.item(), rel=1e-3)


def test_the_temperature_finds_how_much_too_sure_a_model_is():
    margins = honest(20_000, temperature=3.0)
    assert metrics.fit_temperature(margins) == pytest.approx(3.0, rel=0.05)
    assert metrics.calibration_error(margins) > 0.1
    assert metrics.calibration_error(margins, 3.0) < 0.02


@pytest.mark.parametrize("count", [1, 20, 500])
def test_a_few_pairs_that_are_all_right_ask_for_no_certainty(count):
    # Laplace's rule of succession: `count` right and the two imaginary pairs, one of them right.
    margins = torch.full((count,), 0.3)
    probability = torch.sigmoid(margins[0] / metrics.fit_temperature(margins)).item()
    assert probability == pytest.approx((count + 1) / (count + 2), abs=1e-4)


@pytest.mark.parametrize("sizes", [[0.2], [0.2] * 9, [1e-6, 1.0, 40.0], [0.0, 2.0]])
def test_where_all_are_wrong_every_probability_is_near_one_half(sizes):
    margins = -torch.tensor(sizes)
    temperature = metrics.fit_temperature(margins)
    assert temperature == pytest.approx(100 * margins.abs().mean().item())
    assert torch.sigmoid(margins / temperature) == pytest.approx(0.5, abs=0.01)


def test_ties_alone_have_no_temperature():
    assert metrics.fit_temperature(torch.zeros(4)) == 1


@pytest.mark.parametrize("bins", [1, 4, 10])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_reliability_agrees_with_sklearn(bins, temperature):
    margins = honest(500, seed=5).float()
    ours = metrics.reliability(margins, temperature, bins)
    confidence = torch.sigmoid(margins.double().abs() / temperature).numpy()
    # sklearn's bins go from 0 to 1 and leave out the empty ones, here the lower half.
    right, sure = calibration_curve(margins > 0, confidence, n_bins=2 * bins)
    assert [row[:2] for row in ours] == [
        pytest.approx(p) for p in zip(sure, right, strict=True)
    ]
    assert sum(n for _, _, n in ours) == 500


def test_the_calibration_error_agrees_with_a_plain_loop():
    margins, bins = honest(300, seed=6), 7
    pairs = [(1 / (1 + math.exp(-abs(m))), m > 0) for m in margins.tolist()]
    error = 0
    for i in range(bins):
        low, high = 0.5 + 0.5 * i / bins, 0.5 + 0.5 * (i + 1) / bins
        inside = [(sure, right) for sure, right in pairs if low <= sure < high]
        error += abs(sum(sure - right for sure, right in inside)) / len(pairs)
    assert metrics.calibration_error(margins, bins=bins) == pytest.approx(error)


def test_reliability_of_a_coin_and_of_the_very_sure():
    assert metrics.reliability(torch.zeros(6)) == [(0.5, 0.5, 6)]  # a tie is half right
    sure = torch.tensor([1000.0, 1000.0, 1000.0, -1000.0])
    assert metrics.reliability(sure) == [(1.0, 0.75, 4)]
    assert metrics.calibration_error(sure) == 0.25
    # A confidence of exactly 1 is in the last bin, with one of 0.98.
    assert [n for _, _, n in metrics.reliability(torch.tensor([1000.0, 4.0]))] == [2]


def test_small_samples_inflate_the_calibration_error_as_the_docstring_says():
    errors = {
        n: np.mean([metrics.calibration_error(honest(n, seed)) for seed in range(60)])
        for n in (200, 3200)
    }
    assert 0.25 < errors[200] / math.sqrt(10 / 200) < 0.5
    assert errors[200] / errors[3200] == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_agrees_with_scipy_where_there_are_ties(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 4, 30), rng.normal(size=30).round(1)
    ours = metrics.spearman(torch.tensor(a), torch.tensor(b).float())
    assert ours == pytest.approx(stats.spearmanr(a, b).statistic)


def test_spearman_sees_only_the_order():
    a = torch.randn(40)
    assert metrics.spearman(a, a.exp()) == pytest.approx(1)
    assert metrics.spearman(a, -(a**3)) == pytest.approx(-1)
    assert math.isnan(metrics.spearman(a, torch.full((40,), 0.3)))


def test_who_prefers_the_longer_response_of_every_pair_has_a_positive_correlation():
    # Long prompts get low rewards and have long responses. Over all responses, reward and length
    # have a correlation of -0.98; within each pair the longer response gets the larger reward.
    base = torch.arange(50).float()
    lengths = torch.stack([100 * base + 10, 100 * base], dim=1)
    rewards = torch.stack([-base + 0.1, -base], dim=1)
    raw = metrics.spearman(rewards.flatten(), lengths.flatten())
    assert raw < -0.98
    margins = rewards[:, 0] - rewards[:, 1]
    found = summary_of(margins, lengths=lengths, rewards=rewards)["length_correlation"]
    assert found > 0.5
    shorter = summary_of(-margins, lengths=lengths, rewards=rewards.flip(1))
    assert shorter["length_correlation"] == pytest.approx(-found)


@pytest.mark.parametrize("seed", range(5))
def test_the_length_preference_has_the_sign_that_all_pairs_agree_on(seed):
    rng = np.random.default_rng(seed)
    longer_by = torch.tensor(rng.integers(1, 50, 30)).float()  # the chosen one is always longer
    margins = torch.tensor(rng.exponential(size=30))  # and always preferred, by any amount
    assert metrics.length_preference(margins, longer_by) > 0
    assert metrics.length_preference(-margins, longer_by) < 0
    # It does not matter which of the two was chosen.
    swapped = torch.tensor(rng.choice([-1.0, 1.0], 30))
    one = metrics.length_preference(margins * swapped, longer_by * swapped)
    assert one == pytest.approx(metrics.length_preference(margins, longer_by))


def test_pairs_of_equal_length_or_reward_speak_for_neither():
    margins, longer_by = torch.tensor([2.0, 1.0, 0.0, 3.0]), torch.tensor([5.0, -9.0, 4.0, 0.0])
    both_ways = torch.cat([margins, -margins]), torch.cat([longer_by, -longer_by])
    expected = stats.spearmanr(*both_ways).statistic
    assert metrics.length_preference(margins, longer_by) == pytest.approx(expected)
    for summary in (
        summary_of(torch.zeros(4), rewards=torch.ones(4, 2)),
        summary_of(margins, lengths=torch.ones(4, 2), rewards=torch.randn(4, 2)),
    ):
        assert summary["length_correlation"] is None


def test_rating_errors_agree_with_sklearn():
    # In double: sklearn computes in the precision of its input, and r2 may be near 0.
    ratings = torch.randint(1, 11, (100,)).double()
    predicted = ratings + 2 * torch.randn(100).double() + 1
    assert metrics.rating_errors(predicted, ratings) == pytest.approx(
        {
            "mae": mean_absolute_error(ratings, predicted),
            "rmse": root_mean_squared_error(ratings, predicted),
            "r2": r2_score(ratings, predicted),
        }
    )


def test_predicting_the_mean_explains_nothing():
    ratings = torch.tensor([1.0, 3.0, 8.0])
    assert metrics.rating_errors(torch.full((3,), 4.0), ratings)["r2"] == pytest.approx(0)
    assert metrics.rating_errors(ratings, ratings) == {"mae": 0, "rmse": 0, "r2": 1}


def test_a_summary_by_hand():
    margins = torch.tensor([2.0, -1.0, 0.0, 3.0])
    rewards = torch.tensor([[3.0, 1.0], [0.0, 1.0], [2.0, 2.0], [4.0, 1.0]])
    lengths = torch.tensor([[5, 3], [9, 2], [2, 7], [4, 4]])
    summary = summary_of(
        margins, ["p", "p", "q", "r"], list("aabb"), lengths=lengths, rewards=rewards
    )
    assert (summary["n"], summary["n_prompts"]) == (4, 3)
    assert (summary["accuracy"], summary["balanced_accuracy"]) == (0.625, 0.625)
    assert summary["subsets"] == {
        "a": {"n": 2, "accuracy": 0.5},
        "b": {"n": 2, "accuracy": 0.75},
    }
    assert summary["chosen_longer"] == {"n": 2, "accuracy": 0.5}
    assert summary["chosen_shorter"] == {
        "n": 1,
        "accuracy": 0.5,
    }  # equal lengths are in neither
    assert (summary["tie_rate"], summary["mean_margin"]) == (0.25, 1)
    longer_by = [2, 7, -5, 0]
    both_ways = [2, -1, 0, 3, -2, 1, 0, -3], [*longer_by, -2, -7, 5, 0]
    expected = stats.spearmanr(*both_ways).statistic
    assert summary["length_correlation"] == pytest.approx(expected)


def test_a_summary_says_what_the_temperature_mends():
    margins = honest(2000, seed=7, temperature=4.0)
    before, after = summary_of(margins), summary_of(margins, temperature=4.0)
    assert before["nll_calibrated"] == before["nll"] == after["nll"]
    assert after["nll_calibrated"] < after["nll"] - 0.1
    assert after["calibration_error_calibrated"] < after["calibration_error"] - 0.1
    assert after["accuracy"] == before["accuracy"]
    # A classification has no rewards to correlate.
    assert "length_correlation" not in after


def test_an_accuracy_at_the_detectable_distance_is_told_from_a_coin_four_times_in_five():
    margins = torch.tensor([1.0, -1.0] * 200)
    detectable = summary_of(margins)["detectable"]
    accuracy = np.random.default_rng(8).binomial(400, 0.5 + detectable, 4000) / 400
    shown = accuracy - 1.96 * np.sqrt(accuracy * (1 - accuracy) / 400) > 0.5
    assert shown.mean() == pytest.approx(0.8, abs=0.05)
    # Pairs of one prompt that agree are no further evidence: 40 prompts show as much as 40 pairs.
    clustered = summary_of(margins, [str(i % 40) for i in range(400)])["detectable"]
    alone = summary_of(margins[:40])["detectable"]
    assert clustered == pytest.approx(alone, rel=0.1)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_what_is_detectable_hardly_depends_on_how_accurate_this_model_is(share):
    right = torch.arange(200) < 200 * share
    margins = torch.where(right, 1.0, -1.0)
    assert summary_of(margins)["detectable"] == pytest.approx(1.4 / math.sqrt(200), rel=0.12)


@pytest.mark.parametrize("margins", [[1.5], [-1.5], [0.0], [0.0, 0.0], [2.0, 2.0, 2.0]])
def test_the_smallest_parts_have_a_summary_of_finite_numbers(margins):
    margins = torch.tensor(margins)
    summary = summary_of(margins, temperature=metrics.fit_temperature(margins))
    assert summary["n"] == len(margins)
    assert summary["chosen_shorter"] == {"n": 0, "accuracy": None}
    numbers = [value for value in summary.values() if isinstance(value, float)]
    assert len(numbers) > 10 and all(map(math.isfinite, numbers))


def test_no_pairs():
    with pytest.raises(ValueError, match="no values"):
        metrics.bootstrap(torch.tensor([]), [])
