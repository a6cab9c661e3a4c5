"""Four ways to use a reward, on one page.

                          what learns   from what
    best-of-n             nothing       the highest reward of n draws
    rejection sampling    policy        the best of its own draws, by imitation (RAFT)
    DPO                   policy        pairs: the data's own, or its draws ranked by the reward
    GRPO                  policy        the rewards of all its draws, compared within a group

All four look at the same thing: a group of answers to each question, with a reward for each answer.
They differ in how much of it they use. Best-of-n and rejection sampling use the highest one, DPO
the highest and the lowest, GRPO all of them. They also differ in what keeps the policy near its
start. In DPO and GRPO the loss weighs the distance from the start against the reward. In rejection
sampling nothing does, except that the best of few draws is never far from the others.

The three that train have one contract: (policy, draws, settings) -> loss. `draws.rewards` (P, G)
are the rewards, and `draws.reference_log_p` (N, A) is what the policy at its start gave each token.
`draws.old_log_p` (N, A) is what the policy that drew them gave each token; only GRPO reads it.

DPO is here twice. `dpo` ranks the policy's own draws by the reward. `dpo-data` is the same step on
answers that others wrote and others ranked; it needs no reward model, which is what DPO was made
for. Its draws are pairs of the data, with the reward 1 for the chosen answer and 0 for the other.

Read next: `loop.py`.
"""

import torch
from torch import Tensor

from minirlhf.policy.objectives import (
    cross_entropy,
    dpo_loss,
    group_advantages,
    grpo_loss,
    sequence_log_probabilities,
)
from minirlhf.policy.policies import Draws, Policy
from minirlhf.policy.settings import PolicySettings


def best_of_n(draws: Draws) -> Draws:
    """The answer with the highest reward to each question. Nothing is trained."""
    return draws.one_of_each(draws.rewards.argmax(dim=1))


def rejection_sampling(policy: Policy, draws: Draws, settings: PolicySettings) -> Tensor:
    """Imitate the best draw of each question (RAFT, Dong et al. 2023, arXiv:2304.06767)."""
    best = best_of_n(draws)  # P answers
    return cross_entropy(policy.log_probabilities(best), best.mask)


def dpo(policy: Policy, draws: Draws, settings: PolicySettings) -> Tensor:
    """Prefer the best draw of each question to the worst (Rafailov et al. 2023, eq. 7).

    Where all rewards are equal there is nothing to prefer: an answer is then compared with itself,
    which gives no gradient.
    """
    best = draws.rewards.argmax(dim=1)  # (P,)
    worst = draws.rewards.argmin(dim=1)  # (P,)
    is_tied = draws.rewards.amax(dim=1) == draws.rewards.amin(dim=1)  # (P,)
    chosen = draws.one_of_each(best)  # P answers
    rejected = draws.one_of_each(torch.where(is_tied, best, worst))  # P answers
    return dpo_loss(
        sequence_log_probabilities(policy.log_probabilities(chosen), chosen.mask),
        sequence_log_probabilities(policy.log_probabilities(rejected), rejected.mask),
        sequence_log_probabilities(chosen.reference_log_p, chosen.mask),
        sequence_log_probabilities(rejected.reference_log_p, rejected.mask),
        settings.beta,
    )


def grpo(policy: Policy, draws: Draws, settings: PolicySettings) -> Tensor:
    """Make answers above their group's mean more likely (Shao et al. 2024, eq. 3)."""
    advantages = group_advantages(draws.rewards).flatten()  # (N,)
    return grpo_loss(
        policy.log_probabilities(draws),
        draws.old_log_p,
        draws.reference_log_p,
        advantages.to(policy.device),
        draws.mask,
        settings.clip,
        settings.kl_weight,
    )


LOSSES = {
    "rejection-sampling": rejection_sampling,
    "dpo": dpo,
    "dpo-data": dpo,
    "grpo": grpo,
}
