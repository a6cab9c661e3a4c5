"""The objectives that train a policy, each a pure function of tensors.

    imitation      cross_entropy                  make the answers of the data more likely
    preferences    dpo_loss                       prefer the chosen answer to the rejected one
    rewards        group_advantages, grpo_loss    make answers above their group's mean more likely
    divergence     kl_k1, kl_k2, kl_k3            how far is the policy from its reference?

All of them read log-probabilities, which `token_log_probabilities` takes from a language model's
logits. All log-probabilities and divergences are in nats.

The shapes are B answers, T tokens, V words of the vocabulary, P prompts and G answers a prompt. A
mask is (B, T), and it is 1 (or True) at the tokens of the answer and 0 at those of the prompt and
at PAD tokens. What `log_p` says at a masked token never matters. It may even be infinite or nan, so
masked values are replaced, not multiplied by zero: 0 * nan is nan, and one such value would spoil
the loss of the whole batch.

Copy this file alone; it needs torch only.

>>> import torch
>>> rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]])  # one prompt, four answers
>>> advantages = group_advantages(rewards, divide=False)
>>> advantages.tolist()
[[0.5, -0.5, -0.5, 0.5]]
>>> log_p = torch.full((4, 3), -2.0, requires_grad=True)  # four answers of three tokens
>>> mask = torch.ones(4, 3)
>>> loss = grpo_loss(log_p, log_p, log_p, advantages.flatten(), mask, clip=0.2, kl_weight=0.1)
>>> loss.backward()
>>> log_p.grad[:, 0].sign().tolist()  # a step against the gradient helps answers 0 and 3
[-1.0, 1.0, 1.0, -1.0]
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Rewards of a group that differ by no more than this part of the largest of them are called equal.
# It is eight times the rounding of float32, which is 1.2e-7 of the number that is rounded.
EQUAL_REWARDS = 1e-6

# TRL adds this to the deviation of a group before it divides by it, and so do we.
DEVIATION_FLOOR = 1e-4


# ---- log-probabilities


def token_log_probabilities(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Log-probability of each token: (B, T, V), (B, T) -> (B, T), in nats and in float32.

    `logits[:, t]` must be the model's prediction of `token_ids[:, t]`. A language model returns the
    prediction of the next token at each position, so the caller shifts one against the other:
    `token_log_probabilities(logits[:, :-1], token_ids[:, 1:])`.

    PAD tokens need an id of the vocabulary too. Their log-probabilities are masked later, so any
    value will do. A nan in their logits would not: it would reach the gradient.

    Raises ValueError if the shapes do not fit. `gather` accepts fewer tokens than predictions and
    would silently leave out the last predictions.
    """
    _require_equal_shapes(logits[..., 0], token_ids)
    # In bfloat16, a log-probability near -10 would be a multiple of 1/16.
    logits = logits.float()  # (B, T, V)
    chosen = logits.gather(2, token_ids.unsqueeze(2)).squeeze(2)  # (B, T)
    # log_softmax would keep a second tensor of (B, T, V), the largest of the whole training step.
    return chosen - logits.logsumexp(dim=2)


def sequence_log_probabilities(log_p: Tensor, mask: Tensor) -> Tensor:
    """Log-probability of each answer: (B, T), (B, T) -> (B,), in nats.

    This is the sum over the answer's tokens, because the probability of a text is the product of
    the probabilities of its tokens, each given those before it. An answer without tokens gets 0.

    Raises ValueError if the shapes differ.
    """
    _require_equal_shapes(log_p, mask)
    return _without_padding(log_p, mask).sum(dim=1)


# ---- imitation


def cross_entropy(log_p: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-probability of a token: (B, T), (B, T) -> (), in nats per token.

    The mean is over all real tokens of the batch. It is not the mean of the answers' means, in
    which a token of a short answer would count more than a token of a long one. A batch without any
    real token gives 0.

    Raises ValueError if the shapes differ.
    """
    total = sequence_log_probabilities(log_p, mask).sum()  # ()
    tokens = mask.bool().sum().clamp(min=1)  # (), at least 1 to not divide by zero
    return -total / tokens


# ---- preferences


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Direct preference optimisation: four times (B,) -> (), in nats.

    chosen, rejected: the policy's log-probabilities of the two answers, summed over their tokens
        (`sequence_log_probabilities`).
    reference_chosen, reference_rejected: the same of the frozen reference, without gradient.
    beta: what one nat of log-ratio is worth as reward. A smaller beta lets the policy go further
        from the reference for the same reward. The paper uses 0.1 unless it says otherwise.

    This is eq. 7 of Rafailov et al. 2023 (https://arxiv.org/abs/2305.18290): the Bradley-Terry loss
    of `losses.py`, in which an answer's reward is beta * log(policy / reference). A policy that
    equals its reference has a loss of ln 2.

    Raises ValueError unless all four are vectors of the same length.
    """
    _require_equal_shapes(chosen, rejected, reference_chosen, reference_rejected)
    _require_vector(chosen, len(chosen))
    chosen_reward = beta * (chosen - reference_chosen)  # (B,)
    rejected_reward = beta * (rejected - reference_rejected)  # (B,)
    return -F.logsigmoid(chosen_reward - rejected_reward).mean()  # eq. 7


# ---- rewards


def group_advantages(rewards: Tensor, divide: bool = True) -> Tensor:
    """How much better each answer is than its group: (P, G) -> (P, G), in float32.

    The group is the G answers to one prompt. With `divide`, an advantage is
    (reward - mean) / (deviation + 1e-4), as in section 4.1.2 of Shao et al. 2024
    (https://arxiv.org/abs/2402.03300), and has no unit. Without it, an advantage is reward - mean,
    in units of the reward.

    The paper does not say which deviation it means. This one is the unbiased one, with G - 1 in its
    denominator, and both it and the 1e-4 are those of TRL (`GRPOTrainer` of version 1.16.0).

    A group with equal rewards has nothing to teach, so its advantages are exactly zero. The 1e-4
    alone does not see to that. Near 1,000, float32 rounds to 6e-5, which is not small beside 1e-4:
    the mean of eight rewards of 1,000.1 is one rounding off, and the formula makes advantages of
    -0.37 from it. So a group counts as equal if the range of its rewards is at most 1e-6 of the
    largest one's size, and then its advantages are set to zero.

    Dr. GRPO (Liu et al. 2025, https://arxiv.org/abs/2503.20783) changed two things. It does not
    divide by the deviation (`divide=False`), because that makes prompts that are nearly always or
    nearly never solved count more than the others. And it does not divide the loss of an answer by
    the answer's length (`length` of `grpo_loss`).

    Raises ValueError unless the rewards are (P, G) with G of at least 2. One answer has no group to
    be compared with, and all advantages would be zero.
    """
    if rewards.dim() != 2 or rewards.shape[1] < 2:
        shape = tuple(rewards.shape)
        raise ValueError(f"expected rewards (P, G) with a G of at least 2, got {shape}")
    rewards = rewards.float()  # (P, G)
    advantages = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    if divide:
        deviation = rewards.std(dim=1, keepdim=True)  # (P, 1)
        advantages = advantages / (deviation + DEVIATION_FLOOR)  # (P, G)
    return advantages.masked_fill(_equal_rewards(rewards), 0.0)


def grpo_loss(
    log_p: Tensor,
    old_log_p: Tensor,
    reference_log_p: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    kl_weight: float,
    length: float | None = None,
) -> Tensor:
    """Group relative policy optimisation: three times (B, T), (B,), (B, T) -> (), to minimise.

    log_p: what the policy gives each token now.
    old_log_p: what the policy that drew the answers gave it. It is taken as a constant, so `log_p`
        itself may stand here in the first step after drawing, when the two are equal.
    reference_log_p: what the frozen reference gives it, without gradient.
    advantages: one for each answer, from `group_advantages(rewards).flatten()`.
    clip: epsilon of the paper. Once a token's probability ratio has left [1 - clip, 1 + clip] in
        the direction that its advantage asks for, the token has no more gradient from its reward.
    kl_weight: beta of the paper, the price of one nat of divergence from the reference.
    length: a constant, usually the largest number of tokens that may be drawn. The sum over an
        answer's tokens is divided by it, as in Dr. GRPO (https://arxiv.org/abs/2503.20783). If it
        is None, the sum is divided by the answer's own number of tokens, as in GRPO. Then a token
        of a long wrong answer is punished less than a token of a short wrong answer.

    This is eq. 3 of Shao et al. 2024 (https://arxiv.org/abs/2402.03300), which the paper maximises,
    with its sign changed. Its unit is that of the advantages. An answer without tokens adds 0, but
    counts as an answer.

    Raises ValueError unless the tensors of tokens have one shape and the advantages are (B,).
    """
    _require_equal_shapes(log_p, old_log_p, reference_log_p, mask)
    _require_vector(advantages, len(log_p))
    log_p = _without_padding(log_p, mask)  # (B, T)
    old_log_p = _without_padding(old_log_p.detach(), mask)  # (B, T)
    reference_log_p = _without_padding(reference_log_p, mask)  # (B, T)

    ratio = torch.exp(log_p - old_log_p)  # (B, T)
    clipped = ratio.clamp(1 - clip, 1 + clip)  # (B, T)
    advantage = advantages.unsqueeze(1)  # (B, 1)
    gain = torch.minimum(ratio * advantage, clipped * advantage)  # (B, T)
    price = kl_weight * kl_k3(log_p, reference_log_p)  # (B, T), eq. 4

    total = _without_padding(gain - price, mask).sum(dim=1)  # (B,)
    tokens = mask.bool().sum(dim=1).clamp(min=1)  # (B,), at least 1 to not divide by zero
    divisor = tokens if length is None else length
    return -(total / divisor).mean()  # eq. 3


# ---- divergence: three estimates of KL(pi || ref) from tokens that the policy drew
#
# They are from Schulman 2020, http://joschu.net/blog/kl-approx.html. Here pi is the policy's
# distribution of one token, given the tokens before it, and ref is the reference's. The token must
# be drawn from the very policy that `log_p` belongs to.
#
# An estimate of a divergence need not have the gradient of the divergence. The tokens are already
# drawn when backward() runs, so it cannot see that another policy would have drawn others. The
# averages are over the tokens that pi draws:
#
#          average value            average gradient
#     k1   KL(pi || ref)            0
#     k2   not KL(pi || ref)        the gradient of KL(pi || ref)
#     k3   KL(pi || ref)            the gradient of KL(ref || pi), the other direction
#
# The tests check each entry by going through all tokens of a small vocabulary.


def kl_k1(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """log(pi / ref): any equal shapes -> the same shape, in nats.

    It is unbiased, since KL(pi || ref) is by definition its mean over pi. Single values can be
    negative. Its variance is large for two similar distributions: the values are of the order of
    the difference d between the log-probabilities, and their mean is only of the order of d**2.

    It is good for a reward that is reduced by the divergence, and useless as a loss: its gradient
    is grad log pi, whose mean over pi is zero.

    Raises ValueError if the shapes differ.
    """
    _require_equal_shapes(log_p, reference_log_p)
    return log_p - reference_log_p


def kl_k2(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """Half the square of log(pi / ref): any equal shapes -> the same shape, in nats.

    It is biased, by an amount of the order of d**3 for two distributions whose log-probabilities
    differ by d. It is never negative, and all its values are of the order of d**2, so its variance
    is much smaller than that of k1 for similar distributions.

    Its gradient is log(pi / ref) * grad log pi, whose mean over pi is exactly the gradient of
    KL(pi || ref).

    Raises ValueError if the shapes differ.
    """
    return kl_k1(log_p, reference_log_p) ** 2 / 2


def kl_k3(log_p: Tensor, reference_log_p: Tensor) -> Tensor:
    """ref / pi - 1 - log(ref / pi): any equal shapes -> the same shape, in nats.

    This is k1 plus ref / pi - 1, which is zero on average over pi, and so it is unbiased. It is
    never negative, because x - 1 is never below log x. Its variance is about that of k2 for similar
    distributions. It is larger than that of k1 where the reference likes tokens which the policy
    hardly ever draws, because then ref / pi is seldom seen and huge.

    This is the estimate that GRPO uses (eq. 4 of https://arxiv.org/abs/2402.03300). Its gradient is
    (1 - ref / pi) * grad log pi, whose mean over pi is that of KL(ref || pi), not KL(pi || ref).

    DeepSeek-V3.2 (https://arxiv.org/abs/2512.02556) therefore multiplies k3 by the ratio of the new
    policy to the old one, through which the gradient flows too. Its mean is then the gradient of
    KL(pi || ref). TRL does so by default (`use_bias_correction_kl`), and eq. 3 of GRPO does not.

    Raises ValueError if the shapes differ.
    """
    k1 = kl_k1(log_p, reference_log_p)
    # exp(-k1) - 1 would lose all digits of a small k1: for 1e-4, k3 is only 5e-9.
    return torch.expm1(-k1) + k1


# ---- what the functions above share


def _without_padding(values: Tensor, mask: Tensor) -> Tensor:
    """The values with zeros where the mask is 0, whatever stood there: (B, T), (B, T) -> (B, T)."""
    return values.masked_fill(~mask.bool(), 0.0)


def _equal_rewards(rewards: Tensor) -> Tensor:
    """True for the groups whose rewards are equal up to rounding: (P, G) -> (P, 1)."""
    highest = rewards.amax(dim=1, keepdim=True)  # (P, 1)
    lowest = rewards.amin(dim=1, keepdim=True)  # (P, 1)
    size = rewards.abs().amax(dim=1, keepdim=True)  # (P, 1)
    return highest - lowest <= EQUAL_REWARDS * size


def _require_equal_shapes(first: Tensor, *others: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape: others would broadcast silently."""
    for other in others:
        if other.shape != first.shape:
            shapes = f"{tuple(first.shape)} and {tuple(other.shape)}"
            raise ValueError(f"expected tensors of one shape, got {shapes}")


def _require_vector(values: Tensor, answers: int) -> None:
    """Raise ValueError unless there is one value for each answer: (B,)."""
    if values.shape != (answers,):
        shape = tuple(values.shape)
        raise ValueError(f"expected one value for each of {answers} answers, got shape {shape}")
