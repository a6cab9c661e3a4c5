"""The three losses, each a pure function of tensors: stage 6 of the data's path.

    regression      mse_loss             how far is the reward from the rating?
    classification  bce_loss             is the first response the preferred one?
    bt-frozen       bradley_terry_loss   how likely is the observed preference?
    bt-finetune     bradley_terry_loss   the same; only the gradient reaches further

Rewards are raw scores. A sigmoid before the Bradley-Terry loss is a common mistake: it holds the
margin within (-1, 1), so that the loss can never fall below log(1 + 1/e) = 0.3133 and its gradient
vanishes exactly where the model is sure and wrong.

`weight` makes some pairs count more than others, (B,) with mean 1 over the data set; left out, all
count the same.

Copy this file alone; it needs torch only. Read next: `approaches.py`, where each loss is used.

>>> import torch
>>> chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
>>> round(bradley_terry_loss(chosen, rejected).item(), 4)  # mean of log(1 + e^-2) and ln 2
0.41
>>> round(bradley_terry_loss(chosen + 5, rejected + 5).item(), 4)  # only differences count
0.41
"""

import torch.nn.functional as F
from torch import Tensor


def mse_loss(reward: Tensor, rating: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean squared error between rewards and ratings: (N,), (N,) -> scalar, rating units squared.

    Raises ValueError if the shapes differ: (N, 1) against (N,) would broadcast to (N, N) unseen.
    """
    _same_shape(reward, rating)
    return (weight * (reward.float() - rating.float()) ** 2).mean()


def bce_loss(
    logit: Tensor, label: Tensor, label_smoothing: float = 0.0, weight: Tensor | float = 1.0
) -> Tensor:
    """Binary cross-entropy of "the first is preferred": logits (B,), labels 0 or 1 (B,) -> scalar.

    Label smoothing e moves each label e of the way to its opposite: 1 becomes 1 - e, 0 becomes e.
    """
    _same_shape(logit, label)
    label = label.float() * (1 - 2 * label_smoothing) + label_smoothing
    loss = F.binary_cross_entropy_with_logits(logit.float(), label, reduction="none")  # (B,)
    return (weight * loss).mean()


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Negative log-likelihood of the preferences under Bradley-Terry: (B,), (B,) -> scalar in nats.

    P(chosen > rejected) = sigmoid(r_chosen - r_rejected)      Bradley and Terry 1952
    loss = -mean log sigmoid(r_chosen - r_rejected - margin)   InstructGPT, eq. 1
                                                               (https://arxiv.org/abs/2203.02155);
                                                               the margin is Llama 2's, eq. 2
                                                               (https://arxiv.org/abs/2307.09288)

    With label smoothing e the observed preference is taken to be wrong with probability e, so the
    other direction enters with weight e (https://arxiv.org/abs/2401.06080). Equal rewards
    give ln 2; adding one constant to all rewards changes nothing. `logsigmoid` keeps the result
    finite where log(sigmoid(x)) is -inf, and float32 is forced: autocast has no rule for it.
    """
    _same_shape(chosen, rejected)
    difference = chosen.float() - rejected.float() - margin  # (B,)
    right, wrong = F.logsigmoid(difference), F.logsigmoid(-difference)
    return -(weight * ((1 - label_smoothing) * right + label_smoothing * wrong)).mean()


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.dim() != 1:
        raise ValueError(f"expected two equally long vectors, got {(*a.shape,)} and {(*b.shape,)}")
