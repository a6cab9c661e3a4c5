"""The three losses, each a pure function of tensors.

    regression      mse_loss             how far is the reward from the rating?
    classification  bce_loss             is the first response the preferred one?
    bt-frozen       bradley_terry_loss   how likely is the observed preference?
    bt-finetune     bradley_terry_loss   the same loss, but its gradient reaches the encoder too

Rewards are raw scores. Applying a sigmoid to them before the Bradley-Terry loss is a common
mistake. It keeps the margin within (-1, 1), so the loss can never fall below log(1 + 1/e) = 0.3133.
Worse, the gradient vanishes exactly where the model is sure and wrong, because the sigmoid is flat
there.

Each loss takes a `weight`, which makes some pairs count more than others: (B,), with mean 1 over
the data set. Without it all pairs count the same.

Copy this file alone; it needs torch only. Read next: `approaches.py`, where each loss is used.

>>> import torch
>>> chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
>>> round(bradley_terry_loss(chosen, rejected).item(), 4)  # the mean of log(1 + e^-2) and ln 2
0.41
>>> round(bradley_terry_loss(chosen + 5, rejected + 5).item(), 4)  # only differences count
0.41
"""

import torch.nn.functional as F
from torch import Tensor


def mse_loss(reward: Tensor, rating: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean squared error of rewards and ratings: (N,), (N,) -> scalar, in squared rating units.

    Raises ValueError if the shapes differ. PyTorch would silently broadcast (N, 1) against (N,) to
    (N, N), and the loss would compare every reward with every rating.
    """
    _require_equal_vectors(reward, rating)
    error = reward.float() - rating.float()  # (N,)
    return (weight * error**2).mean()


def bce_loss(
    logit: Tensor, label: Tensor, label_smoothing: float = 0.0, weight: Tensor | float = 1.0
) -> Tensor:
    """Binary cross-entropy of "the first response is preferred": (B,), (B,) -> scalar in nats.

    The label is 1 where the first response is preferred and 0 where the second one is. Label
    smoothing e replaces a label of 1 by 1 - e and a label of 0 by e. Raises ValueError if the
    shapes differ.
    """
    _require_equal_vectors(logit, label)
    target = label.float() * (1 - 2 * label_smoothing) + label_smoothing  # (B,)
    loss = F.binary_cross_entropy_with_logits(logit.float(), target, reduction="none")  # (B,)
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
                                                               the margin is that of Llama 2, eq. 2
                                                               (https://arxiv.org/abs/2307.09288)

    Equal rewards give a loss of ln 2, and adding one constant to all rewards changes nothing.

    Label smoothing e assumes that the observed preference is wrong with probability e, so the
    opposite preference enters the loss with weight e (https://arxiv.org/abs/2401.06080).

    `logsigmoid` keeps the loss finite where log(sigmoid(x)) would be -inf. Autocast has no rule for
    it, so the rewards are converted to float32 here.

    Raises ValueError if the shapes differ.
    """
    _require_equal_vectors(chosen, rejected)
    difference = chosen.float() - rejected.float() - margin  # (B,)
    right = F.logsigmoid(difference)  # (B,) the observed preference
    wrong = F.logsigmoid(-difference)  # (B,) the opposite preference
    log_likelihood = (1 - label_smoothing) * right + label_smoothing * wrong  # (B,)
    return -(weight * log_likelihood).mean()


def _require_equal_vectors(a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both tensors are vectors of the same length."""
    if a.dim() != 1 or a.shape != b.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"expected two equally long vectors, got {shapes}")
