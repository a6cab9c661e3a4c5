"""What a set of margins says: stage 7 of the data's path.

Everything here is counted a pair at a time over the whole part. A mean of batch means is another
number, since the last batch is smaller.

Several pairs may share a prompt, and such pairs succeed or fail together, so pairs are not
independent draws: intervals come from resampling prompts, each with all of its pairs (a cluster
bootstrap). One function, `bootstrap`, serves accuracy, the mean over subsets and the difference
between two models on the same pairs.

Copy this file alone; it needs torch only. Read next: `figures.py`.

>>> credit(torch.tensor([0.3, -2.0, 0.0])).tolist()
[1.0, 0.0, 0.5]
>>> interval = bootstrap(torch.tensor([1.0, 1.0, 0.0, 1.0]), ["a", "a", "b", "c"])
>>> interval.estimate
0.75
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def named(name: str, interval: Interval) -> dict[str, float]:
    """An interval as three flat numbers: {name, name_low, name_high}."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


def credit(margins: Tensor) -> Tensor:
    """1 where the chosen response has the larger reward, 0 where the smaller, 1/2 for a tie: (N,).

    A tie at 1/2 is what guessing would earn. Counted as right or as wrong, a model that gives every
    text the same reward would score 100 % or 0 %.
    """
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def bootstrap(
    values: Tensor,
    prompts: Sequence[str],
    subsets: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` (N,) with its 95 % percentile interval from resampling prompts.

    values: `credit(margins)` for accuracy; `credit(a) - credit(b)` for the paired difference of two
        models on the same pairs. An interval clear of zero is a test at 5 %: of twenty models
        that are no better, one passes.
    prompts: the N pairs' prompts; pairs of one prompt are drawn together, or not at all.
    subsets: N names; with them the estimate is the mean over subsets of each subset's mean. A
        subset that a resample misses is left out of its mean, so subsets of a few prompts widen
        the interval on one side.

    The percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section
    13.3. On few prompts, or near 0 and 1, it is too narrow. Raises ValueError when empty.
    """
    if len(values) == 0:
        raise ValueError("no values to average")
    group = _codes(prompts)
    kind = _codes(subsets if subsets is not None else [""] * len(values))
    cell = group * (kind.max() + 1) + kind  # one cell for each prompt and subset
    shape = (int(group.max()) + 1, int(kind.max()) + 1)  # (prompts G, subsets S)
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.float64)
    total = flat.index_add(0, cell, values.double()).view(shape)  # (G, S) sums
    count = flat.index_add(0, cell, torch.ones(len(cell), dtype=torch.float64)).view(shape)
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for _ in range(resamples):
        drawn = torch.randint(shape[0], (shape[0],), generator=generator)
        # (G,) how often each prompt is drawn
        weight = torch.bincount(drawn, minlength=shape[0]).double()
        draws.append((weight @ total) / (weight @ count))  # (S,) NaN where a subset was not drawn
    means = torch.stack(draws).nanmean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval((total.sum(0) / count.sum(0)).mean().item(), low, high)


def negative_log_likelihood(
    margins: Tensor, temperature: float = 1.0, weight: Tensor | float = 1.0
) -> float:
    """-mean log sigmoid(margin / temperature), in nats: (N,) -> float. A coin's is ln 2 = 0.693.

    weight: (N,) with mean 1, how much each pair counts.
    """
    return (weight * F.softplus(-margins.double() / temperature)).mean().item()


def fit_temperature(margins: Tensor, weight: Tensor | float = 1.0) -> float:
    """The temperature T at which sigmoid(margin / T) has the highest likelihood on (N,) margins.

    One number, fitted on validation, mends a model that is too sure or too timid and moves no
    ranking (Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2). Two imaginary pairs
    with margins of mean size are added, one right and one wrong: without them, a few pairs that
    are all right would ask for certainty. The likelihood is concave in 1/T, so its slope is
    bisected. T stays within 0.01 and 100 times the mean size; it goes to the upper end, where
    probabilities are near one half, if the mean margin is not positive. All zero: T is 1.
    """
    size = margins.double().abs().mean()
    if size == 0:
        return 1.0
    m = torch.cat([margins.double(), torch.stack([size, -size])])
    if isinstance(weight, Tensor):
        weight = torch.cat([weight, torch.ones(2)])
    low, high = math.log(0.01 * size), math.log(100 * size)
    for _ in range(60):
        middle = (low + high) / 2
        # The slope of the likelihood in 1/T: positive where a lower temperature would be better.
        better_lower = (weight * m * torch.sigmoid(-m / math.exp(middle))).sum() > 0
        low, high = (low, middle) if better_lower else (middle, high)
    return math.exp(high)


def reliability(
    margins: Tensor, temperature: float = 1.0, bins: int = 10
) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, n) of each bin of confidence that holds a pair.

    The model's confidence in its own choice is sigmoid(|margin| / temperature), from 0.5 to 1;
    `bins` of equal width. Where confidence is honest, the two are equal.
    """
    confidence = torch.sigmoid(margins.double().abs() / temperature)  # (N,)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    table = []
    for i in place.unique():
        inside = place == i
        means = confidence[inside].mean().item(), credit(margins[inside]).mean().item()
        table.append((*means, int(inside.sum())))
    return table


def calibration_error(margins: Tensor, temperature: float = 1.0, bins: int = 10) -> float:
    """Expected calibration error: mean over pairs of their bin's |confidence - accuracy|.

    Guo et al. 2017, eq. 3 (https://arxiv.org/abs/1706.04599). Small samples inflate it: a perfectly
    calibrated model on n pairs in k bins still gets about sqrt(k / n) / 3.
    """
    table = reliability(margins, temperature, bins)
    return sum(n * abs(sure - right) for sure, right, n in table) / len(margins)


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors (N,), ties sharing their mean rank; nan if one is constant.

    Spearman 1904: Pearson's correlation of the ranks.
    """
    ranks = []
    for values in (a, b):
        _, place, count = values.unique(return_inverse=True, return_counts=True)
        rank = count.cumsum(0) - (count - 1) / 2  # mean rank of each distinct value
        ranks.append(rank[place].double())
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def rating_errors(predicted: Tensor, ratings: Tensor) -> dict[str, float]:
    """How far predictions (N,) are from ratings (N,), on the ratings' own scale.

    `mae` is the mean absolute error, `rmse` the root of the mean squared one, and `r2` the share of
    the ratings' variance that the model explains: 0 for always predicting their mean, and if all
    ratings are equal.
    """
    error = predicted.double() - ratings.double()
    mean_square, variance = error.square().mean().item(), ratings.double().var(correction=0).item()
    r2 = 1 - mean_square / variance if variance else 0.0
    return {"mae": error.abs().mean().item(), "rmse": math.sqrt(mean_square), "r2": r2}


def accuracies(right: Tensor, prompts: Sequence[str], subsets: Sequence[str]) -> dict:
    """Accuracy from credits (N,) and the pairs' prompts and subsets, with all that qualifies it.

    `n`, `n_prompts`; `accuracy` and, so that a large subset cannot hide a small one, its mean over
    subsets `balanced_accuracy`, both with the ends of their intervals; n and accuracy of each of
    the `subsets`; `detectable`, the smallest distance from 0.5 that this part would show four times
    in five (2.8 standard errors, 1.96 + 0.84, of a model that is right half the time).
    """
    right, n_prompts = right.double(), len(set(prompts))
    summary: dict = {"n": len(right), "n_prompts": n_prompts}
    for name, by in (("accuracy", None), ("balanced_accuracy", subsets)):
        summary |= named(name, bootstrap(right, prompts, by))
    error = (summary["accuracy_high"] - summary["accuracy_low"]) / 3.92
    # A share p strays in proportion to sqrt(p (1 - p)). Where the bootstrap shows no error at all,
    # as if each prompt were one pair.
    spread = math.sqrt(summary["accuracy"] * (1 - summary["accuracy"]))
    relative = error / spread if error and spread else n_prompts**-0.5
    summary["detectable"] = min(0.5, 2.8 * 0.5 * relative)
    summary["subsets"] = {}
    for name in sorted(set(subsets)):
        of_one = right[torch.tensor([subset == name for subset in subsets])]
        summary["subsets"][name] = {"n": len(of_one), "accuracy": of_one.mean().item()}
    return summary


def summarize(
    margins: Tensor,
    prompts: Sequence[str],
    subsets: Sequence[str],
    lengths: Tensor,
    rewards: Tensor | None = None,
    temperature: float = 1.0,
) -> dict:
    """What `metrics.json` holds for one part.

    margins (N,), the pairs' prompts and subsets, lengths (N, 2) in characters and rewards (N, 2) of
    chosen and rejected (None where the model only compares), the temperature fitted on validation.

    All that `accuracies` gives; `tie_rate`, the share of zero margins; `mean_margin` in reward
    units (logits for a classification); `nll` and `calibration_error`, and both after division by
    `temperature`; `length_correlation`, Spearman's of reward and length over the 2N responses (None
    if all are alike); accuracy and n of the pairs whose chosen response is the longer
    (`chosen_longer`) or the shorter.
    """
    right = credit(margins).double()
    summary = accuracies(right, prompts, subsets)
    summary["tie_rate"] = (margins == 0).double().mean().item()
    summary["mean_margin"] = margins.double().mean().item()
    summary["temperature"] = temperature
    for name, t in (("", 1.0), ("_calibrated", temperature)):
        summary[f"nll{name}"] = negative_log_likelihood(margins, t)
        summary[f"calibration_error{name}"] = calibration_error(margins, t)
    if rewards is not None:
        correlation = spearman(rewards.flatten(), lengths.flatten())
        summary["length_correlation"] = None if math.isnan(correlation) else correlation
    gap = lengths[:, 0] - lengths[:, 1]
    for name, pairs in (("chosen_longer", gap > 0), ("chosen_shorter", gap < 0)):
        accuracy = right[pairs].mean().item() if pairs.any() else None
        summary[name] = {"n": int(pairs.sum()), "accuracy": accuracy}
    return summary


def _codes(names: Sequence[str]) -> Tensor:
    """Names as integers 0, 1, ... in order of first appearance: (N,) int64."""
    code: dict[str, int] = {}
    return torch.tensor([code.setdefault(name, len(code)) for name in names])
