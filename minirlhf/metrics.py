"""What a set of margins says: stage 7 of the data's path.

Everything here is counted a pair at a time over the whole part. A mean of batch means is another
number, since the last batch is smaller.

Several pairs may share a prompt, and such pairs succeed or fail together, so pairs are not
independent draws: intervals come from resampling prompts, each with all of its pairs (a cluster
bootstrap). One function, `bootstrap`, serves accuracy, the mean over subsets and the difference
between two models on the same pairs.

Copy this file alone; it needs torch only. Read next: `score.py`.

>>> credit(torch.tensor([0.3, -2.0, 0.0])).tolist()
[1.0, 0.0, 0.5]
>>> interval = bootstrap(torch.tensor([1.0, 1.0, 0.0, 1.0]), ["a", "a", "b", "c"])
>>> interval.estimate
0.75
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % interval."""

    estimate: float
    low: float
    high: float


def credit(margins: torch.Tensor) -> torch.Tensor:
    """1 where the chosen response has the larger reward, 0 where the smaller, 1/2 for a tie: (N,).

    A tie at 1/2 is what guessing would earn. Counted as right or as wrong, a model that gives every
    text the same reward would score 100 % or 0 %.
    """
    return (margins > 0).float() + 0.5 * (margins == 0).float()


def bootstrap(
    values: torch.Tensor,
    prompts: Sequence[str],
    subsets: Sequence[str] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` (N,) with its 95 % percentile interval from resampling prompts.

    values: `credit(margins)` for accuracy; `credit(a) - credit(b)` for the paired difference of two
        models on the same pairs, whose interval is clear of zero when one is really better.
    prompts: the N pairs' prompts; pairs of one prompt are drawn together, or not at all.
    subsets: N names; with them the estimate is the mean over subsets of each subset's mean.

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


def summarize(margins: torch.Tensor, prompts: Sequence[str], subsets: Sequence[str]) -> dict:
    """What `metrics.json` holds for one part, from its margins (N,) and the pairs' names.

    The numbers of pairs `n` and of prompts; `accuracy` and, so that a large subset cannot hide a
    small one, its mean over subsets `balanced_accuracy`, both with the ends of their intervals;
    `tie_rate`, the share of zero margins; `mean_margin`, in reward units (logits for a
    classification); `accuracy` and `n` of each subset.
    """
    right = credit(margins)
    summary = {"n": len(margins), "n_prompts": len(set(prompts))}
    for name, by in (("accuracy", None), ("balanced_accuracy", subsets)):
        summary[name], summary[f"{name}_low"], summary[f"{name}_high"] = bootstrap(
            right, prompts, by
        )
    summary["tie_rate"] = (margins == 0).float().mean().item()
    summary["mean_margin"] = margins.mean().item()
    summary["subsets"] = {}
    for name in sorted(set(subsets)):
        of_one = right[torch.tensor([subset == name for subset in subsets])]
        summary["subsets"][name] = {"n": len(of_one), "accuracy": of_one.mean().item()}
    return summary


def _codes(names: Sequence[str]) -> torch.Tensor:
    """Names as integers 0, 1, ... in order of first appearance: (N,) int64."""
    code: dict[str, int] = {}
    return torch.tensor([code.setdefault(name, len(code)) for name in names])
