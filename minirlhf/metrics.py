"""Metrics: what the margins of a set of pairs say about a model.

A margin is the reward of the chosen response minus the reward of the rejected one. A positive
margin means that the model ranks the pair as the data does.

Every number here is computed over all pairs of a part at once. The mean of the batches' means would
be a different number, because the last batch is smaller than the others.

Several pairs may share a prompt. A model tends to be right on all of them or wrong on all of them,
so pairs are not independent draws. The intervals therefore come from resampling prompts, and each
prompt brings all of its pairs along (a cluster bootstrap). One function, `bootstrap`, gives the
interval of an accuracy, of a mean over subsets, and of the difference between two models on the
same pairs. These intervals are about one trained model. What another training would have given is
seen only by training again: `t_interval` is for a few runs or folds.

Copy this file alone; it needs torch only. Read next: `score.py`.

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
    """An estimate and the two ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


class Bin(NamedTuple):
    """The pairs on which the model is about equally confident."""

    confidence: float  # mean over the pairs of the bin
    accuracy: float
    n: int  # number of pairs


def named(name: str, interval: Interval) -> dict[str, float]:
    """An interval as three numbers of a flat dictionary: {name, name_low, name_high}."""
    return {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}


def credit(margins: Tensor) -> Tensor:
    """How right each pair is: 1 if its margin is positive, 0 if negative, 1/2 if zero: (N,).

    A tie counts 1/2 because guessing would earn that much. A model that gives every text the same
    reward would score 100 % if ties counted as right, and 0 % if they counted as wrong.
    """
    right = (margins > 0).float()  # (N,)
    tied = (margins == 0).float()  # (N,)
    return right + 0.5 * tied


# ---- accuracy and its interval


def bootstrap(
    values: Tensor,
    prompts: Sequence[str],
    subsets: Sequence[str] | None = None,
    ends: tuple[float, float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` (N,) with its 95 % interval from resampling prompts.

    values: one number for each pair. `credit(margins)` gives an accuracy, and `credit(a) -
        credit(b)` gives the paired difference of two models on the same pairs. If the interval of a
        difference does not contain zero, the two models differ at the 5 % level. Remember that of
        twenty comparisons of equally good models one passes such a test, and that in one of forty
        the first model looks better.
    prompts: the prompt of each of the N pairs. Whenever a prompt is drawn, all of its pairs are.
    subsets: the subset of each of the N pairs. If they are given, the estimate is the mean over
        subsets of each subset's mean. A resample may contain no pair of some subset, which is then
        left out of that resample's mean. Where a subset has few prompts the percentile interval can
        be much too narrow; with `ends` it is rather wider than it need be (experiments/README.md).
    ends: the smallest and the largest value that a pair can have: (0, 1) for an accuracy, (-1, 1)
        for a difference of two. None for values without such ends.

    The percentile interval is that of Efron and Tibshirani, An Introduction to the Bootstrap
    (1993), section 13.3. On few prompts and near the ends it is too narrow, and if all values are
    equal it has no width: three right pairs do not show that a model is always right. Where `ends`
    are given, two imaginary prompts are therefore added before resampling. They have as many pairs
    as the average prompt; one has the smallest value everywhere and the other the largest. They
    widen the interval and leave the estimate as it is. Bonett and Price 2012
    (https://doi.org/10.3102/1076998611411915) add one pair for either of two models in this way;
    Agresti and Coull 1998 (https://doi.org/10.1080/00031305.1998.10480550) add two right and two
    wrong ones to a single share. With one of each, as here, the interval of an accuracy held the
    truth in 93 to 100 of 100 cases on 5 to 200 prompts (experiments/README.md).

    Raises ValueError if there are no values.
    """
    if len(values) == 0:
        raise ValueError("no values to average")
    if subsets is None:
        subsets = [""] * len(values)  # all pairs are in one subset

    total, count = _totals(values, prompts, subsets)  # both (G, S): G prompts, S subsets
    estimate = (total.sum(0) / count.sum(0)).mean().item()
    if ends is not None:
        total, count = _with_imaginary_prompts(total, count, ends)  # G is now larger by two

    n_prompts = len(total)
    generator = torch.Generator().manual_seed(seed)
    subset_means = []
    for _ in range(resamples):
        drawn = torch.randint(n_prompts, (n_prompts,), generator=generator)  # (G,)
        times_drawn = torch.bincount(drawn, minlength=n_prompts).double()  # (G,)
        subset_means.append((times_drawn @ total) / (times_drawn @ count))  # (S,)

    # A subset that a resample did not draw has the mean 0 / 0 = NaN, which nanmean leaves out.
    means = torch.stack(subset_means).nanmean(dim=1)  # (resamples,)
    both = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.quantile(means, both).tolist()
    return Interval(estimate, low, high)


def _with_imaginary_prompts(
    total: Tensor, count: Tensor, ends: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Two more prompts, one at each end of the values: (G, S) and (G, S) -> both (G + 2, S)."""
    # (S,) the pairs of an average prompt among those that have any in the subset. An average over
    # all prompts would nearly vanish in a small subset, and its interval would be too narrow.
    average = count.sum(dim=0) / (count > 0).sum(dim=0)
    smallest, largest = ends
    imaginary = torch.stack([smallest * average, largest * average])  # (2, S)
    return torch.cat([total, imaginary]), torch.cat([count, average.expand(2, -1)])


def _totals(
    values: Tensor, prompts: Sequence[str], subsets: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Sum of the values, and number of pairs, of each prompt in each subset: both (G, S)."""
    prompt = _numbers(prompts)  # (N,)
    subset = _numbers(subsets)  # (N,)
    n_prompts = int(prompt.max()) + 1  # G
    n_subsets = int(subset.max()) + 1  # S

    cell = prompt * n_subsets + subset  # (N,) the pair's place in a flattened (G, S) table
    empty = torch.zeros(n_prompts * n_subsets, dtype=torch.float64)
    ones = torch.ones(len(cell), dtype=torch.float64)
    total = empty.index_add(0, cell, values.double())
    count = empty.index_add(0, cell, ones)
    return total.view(n_prompts, n_subsets), count.view(n_prompts, n_subsets)


def _numbers(names: Sequence[str]) -> Tensor:
    """Distinct names numbered 0, 1, ... in order of first appearance: (N,) int64."""
    number: dict[str, int] = {}
    for name in names:
        if name not in number:
            number[name] = len(number)
    return torch.tensor([number[name] for name in names])


def accuracies(right: Tensor, prompts: Sequence[str], subsets: Sequence[str]) -> dict:
    """Accuracy, from credits (N,) and the pairs' prompts and subsets, and how far to trust it.

    The result holds
    - `n` and `n_prompts`, the numbers of pairs and of distinct prompts;
    - `accuracy` and `balanced_accuracy`, the mean over subsets, in which a large subset cannot hide
      a small one; each with the ends of its interval (`accuracy_low`, `accuracy_high`, ...);
    - `detectable`, the smallest distance of a model's true accuracy from 0.5 that this part would
      detect four times in five;
    - `subsets`, a dictionary with `n` and `accuracy` of each subset.
    """
    right = right.double()
    accuracy = bootstrap(right, prompts, ends=(0, 1))
    balanced = bootstrap(right, prompts, subsets, ends=(0, 1))

    summary: dict = {"n": len(right), "n_prompts": len(set(prompts))}
    summary.update(named("accuracy", accuracy))
    summary.update(named("balanced_accuracy", balanced))
    summary["detectable"] = _detectable(accuracy, summary["n"], summary["n_prompts"])

    summary["subsets"] = {}
    for name in sorted(set(subsets)):
        inside = torch.tensor([subset == name for subset in subsets])  # (N,)
        summary["subsets"][name] = _count_and_accuracy(right, inside)
    return summary


def _detectable(accuracy: Interval, n: int, n_prompts: int) -> float:
    """The smallest distance from 0.5 that n pairs would detect four times in five.

    A test at the 5 % level has a power of 80 % at a distance of 1.96 + 0.84 = 2.8 standard errors.
    The standard error is that of a model whose true accuracy is 0.5. It is derived from the
    measured interval: the standard error of a share p is proportional to sqrt(p (1 - p)).
    """
    error = (accuracy.high - accuracy.low) / 3.92  # a 95 % interval is 2 * 1.96 errors wide
    share = (n_prompts * accuracy.estimate + 1) / (n_prompts + 2)  # with the imaginary prompts
    spread = math.sqrt(share * (1 - share))
    # Pairs of one prompt tell less than pairs of different prompts, and never more.
    relative = max(error / spread, n**-0.5)
    return min(0.5, 2.8 * 0.5 * relative)  # the spread at an accuracy of 0.5 is 0.5


def _count_and_accuracy(right: Tensor, inside: Tensor) -> dict:
    """Number of the selected pairs and the accuracy on them, which is None if there are none."""
    selected = right[inside]
    accuracy = selected.mean().item() if len(selected) else None
    return {"n": len(selected), "accuracy": accuracy}


# ---- what another training would have given

# The 0.975 quantile of Student's t with k - 1 degrees of freedom, for k = 2 ... 5 values.
STUDENT_T = {2: 12.706205, 3: 4.302653, 4: 3.182446, 5: 2.776445}


def t_interval(values: Sequence[float]) -> Interval:
    """Mean of 2 to 5 independent values, such as one for each seed, with its 95 % interval.

    It is Student's (1908): the mean plus and minus t standard errors. Two values say next to
    nothing. The folds of one data set are not independent, because each pair is in several of their
    training parts. An interval over folds is therefore somewhat too narrow as well, and no estimate
    from the folds alone could mend that (Bengio and Grandvalet 2004,
    https://www.jmlr.org/papers/v5/grandvalet04a.html).
    """
    values = torch.tensor(values, dtype=torch.float64)  # (k,)
    mean = values.mean().item()
    error = values.std().item() / math.sqrt(len(values))
    distance = STUDENT_T[len(values)] * error
    return Interval(mean, mean - distance, mean + distance)


# ---- may the model's confidence be believed?


def negative_log_likelihood(
    margins: Tensor, temperature: float = 1.0, weight: Tensor | float = 1.0
) -> float:
    """-mean log sigmoid(margin / temperature), in nats: (N,) -> float. Guessing gives ln 2 = 0.693.

    weight: how much each pair counts, (N,) with mean 1.
    """
    loss = F.softplus(-margins.double() / temperature)  # (N,) -log sigmoid(x) is softplus(-x)
    return (weight * loss).mean().item()


def fit_temperature(margins: Tensor, weight: Tensor | float = 1.0) -> float:
    """The temperature T at which sigmoid(margin / T) has the highest likelihood on (N,) margins.

    Dividing the margins by this one number, fitted on the validation part, corrects a model that is
    too sure or not sure enough, and it changes no ranking (Guo et al. 2017,
    https://arxiv.org/abs/1706.04599, section 4.2).

    Two imaginary pairs with margins of the mean size are added, one right and one wrong. Without
    them, a few pairs that are all right would drive T to its lower end, where the model is certain.

    T stays within 0.01 and 100 times the margins' mean size. If the mean margin is not positive, T
    is at the upper end, where all probabilities are near one half. If all margins are zero, T is 1.

    weight: how much each pair counts, (N,) with mean 1.
    """
    size = margins.double().abs().mean()
    if size == 0:
        return 1.0
    imaginary = torch.stack([size, -size])
    margins = torch.cat([margins.double(), imaginary])  # (N + 2,)
    if isinstance(weight, Tensor):
        weight = torch.cat([weight, torch.ones(2)])  # (N + 2,)

    # The log-likelihood is concave in 1/T. Its slope therefore changes sign once, at the best T,
    # and halving the range of log T again and again finds that place.
    low = math.log(0.01 * size)
    high = math.log(100 * size)
    for _ in range(60):
        middle = (low + high) / 2
        slope = (weight * margins * torch.sigmoid(-margins / math.exp(middle))).sum()  # in 1/T
        if slope > 0:  # a larger 1/T, that is a lower temperature, would be better
            high = middle
        else:
            low = middle
    return math.exp(high)


def reliability(margins: Tensor, temperature: float = 1.0, bins: int = 10) -> list[Bin]:
    """Mean confidence, accuracy and number of pairs of each bin that holds a pair.

    The model's confidence in its own choice is sigmoid(|margin| / temperature), from 0.5 to 1. That
    range is cut into `bins` bins of equal width. If the model's confidence can be believed, the
    mean confidence and the accuracy of each bin are equal.
    """
    confidence = torch.sigmoid(margins.double().abs() / temperature)  # (N,)
    place = ((confidence - 0.5) * 2 * bins).long()  # (N,)
    place = place.clamp(max=bins - 1)  # a confidence of exactly 1 belongs to the last bin

    table = []
    for number in place.unique():
        inside = place == number  # (N,)
        mean_confidence = confidence[inside].mean().item()
        accuracy = credit(margins[inside]).mean().item()
        table.append(Bin(mean_confidence, accuracy, int(inside.sum())))
    return table


def calibration_error(margins: Tensor, temperature: float = 1.0, bins: int = 10) -> float:
    """Expected calibration error: the mean over pairs of their bin's |confidence - accuracy|.

    Guo et al. 2017, eq. 3 (https://arxiv.org/abs/1706.04599). It is too large on small samples: a
    perfectly calibrated model on n pairs in k bins still gets about sqrt(k / n) / 3.
    """
    total = 0.0
    for group in reliability(margins, temperature, bins):
        total += group.n * abs(group.confidence - group.accuracy)
    return total / len(margins)


# ---- ranks and ratings


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation of two vectors (N,); nan if one of them is constant.

    Spearman 1904: it is Pearson's correlation of the ranks. Equal values share their mean rank.
    """
    ranks = torch.stack([_ranks(a), _ranks(b)])  # (2, N)
    return torch.corrcoef(ranks)[0, 1].item()


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value, counted from 1; equal values share their mean rank: (N,) -> (N,)."""
    distinct, place, count = values.unique(return_inverse=True, return_counts=True)
    last_rank = count.cumsum(0)  # of each distinct value, in ascending order
    mean_rank = last_rank - (count - 1) / 2
    return mean_rank[place].double()


def length_preference(margins: Tensor, longer_by: Tensor) -> float:
    """Rank correlation, within pairs, of margins and differences in length; nan if it is undefined.

    margins, longer_by: (N,), the chosen response's reward and length minus the rejected one's.

    Rewards of different prompts cannot be compared. Over all responses, a model that gives long
    prompts low rewards seems to dislike long responses, even if it prefers the longer response of
    every pair. So only differences within pairs are correlated. Each pair is counted twice, as it
    is and with its two responses swapped, because the question is not which one was chosen. The
    result is then positive if the model always prefers the longer response and negative if it
    always prefers the shorter one. A pair of equal rewards or equal lengths speaks for neither. If
    all pairs are so, the correlation is not defined.
    """
    both_ways = torch.cat([margins, -margins])  # (2N,)
    return spearman(both_ways, torch.cat([longer_by, -longer_by]))


def rating_errors(predicted: Tensor, ratings: Tensor) -> dict[str, float]:
    """How far predictions (N,) are from ratings (N,), on the scale of the ratings.

    `mae` is the mean absolute error and `rmse` is the root of the mean squared error. `r2` is the
    share of the ratings' variance that the model explains. It is 0 for a model that always predicts
    the mean rating, and it is set to 0 if all ratings are equal.
    """
    error = predicted.double() - ratings.double()  # (N,)
    mean_square = error.square().mean().item()
    variance = ratings.double().var(correction=0).item()
    r2 = 1 - mean_square / variance if variance else 0.0
    return {"mae": error.abs().mean().item(), "rmse": math.sqrt(mean_square), "r2": r2}


# ---- everything together


def summarize(
    margins: Tensor,
    prompts: Sequence[str],
    subsets: Sequence[str],
    lengths: Tensor,
    rewards: Tensor | None = None,
    temperature: float = 1.0,
) -> dict:
    """All numbers of one part, as `metrics.json` holds them.

    margins: (N,).
    prompts, subsets: those of the N pairs.
    lengths: (N, 2), lengths of the chosen and of the rejected response in characters.
    rewards: (N, 2), of chosen and rejected; None for a model that compares and gives no rewards.
    temperature: fitted on the validation part (`fit_temperature`).

    The result holds everything that `accuracies` returns, and
    - `tie_rate`, the share of margins that are zero;
    - `mean_margin`, in units of the reward (for a classification, in logits);
    - `temperature`;
    - `nll` and `calibration_error`, and both again after the margins were divided by the
      temperature (`nll_calibrated`, `calibration_error_calibrated`);
    - `length_correlation`, from -1 to 1: within a pair, does the longer response get the larger
      reward (`length_preference`)? None if all margins are zero, or if the lengths of each pair are
      equal. It is absent if there are no rewards;
    - `chosen_longer` and `chosen_shorter`, the number and the accuracy of the pairs whose chosen
      response is the longer, or the shorter, of the two.
    """
    right = credit(margins).double()  # (N,)
    summary = accuracies(right, prompts, subsets)
    summary["tie_rate"] = (margins == 0).double().mean().item()
    summary["mean_margin"] = margins.double().mean().item()

    summary["temperature"] = temperature
    summary["nll"] = negative_log_likelihood(margins)
    summary["calibration_error"] = calibration_error(margins)
    summary["nll_calibrated"] = negative_log_likelihood(margins, temperature)
    summary["calibration_error_calibrated"] = calibration_error(margins, temperature)

    longer_by = lengths[:, 0] - lengths[:, 1]  # (N,)
    if rewards is not None:
        correlation = length_preference(margins, longer_by)
        summary["length_correlation"] = None if math.isnan(correlation) else correlation
    summary["chosen_longer"] = _count_and_accuracy(right, longer_by > 0)
    summary["chosen_shorter"] = _count_and_accuracy(right, longer_by < 0)
    return summary
