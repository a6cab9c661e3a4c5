"""The loop that trains a policy on a reward, and the look at what it has become.

Each step draws answers to new questions, asks the reward what they are worth, and moves the weights
a few times with the method's loss. The policy at its start stands by as the reference.

Every few steps the policy answers the validation questions, which it never learns from. What is
found there is a row of `history.jsonl`:

    reward       what the policy is trained to raise
    rating       what its answers are really worth (of the toy: by the grader)
    kl           how far the policy has gone from its start, in nats an answer (estimate k1)
    flawless     the share of answers without a flaw, and of each flaw the share that has it
    tokens       the length of an answer
    distinct     the share of different answers among them, which falls when a policy collapses

A step draws from a seed of its own, so a run that is resumed draws what it would have drawn.

What to copy: `fit`, with your own policy and reward. Read next: `commands/policy.py`.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minirlhf.bundled.arithmetic import FLAWS
from minirlhf.bundled.grader import UNREADABLE, Grade
from minirlhf.policy import questions as asking
from minirlhf.policy.data_pairs import pairs_of_step
from minirlhf.policy.methods import STEPS
from minirlhf.policy.objectives import kl_k1, sequence_log_probabilities
from minirlhf.policy.policies import Draws, Policy
from minirlhf.policy.questions import Question, Questions
from minirlhf.policy.rewards import Reward, grades_of
from minirlhf.policy.settings import PolicySettings
from minirlhf.runtime import precision
from minirlhf.runtime.device import seed_everything
from minirlhf.runtime.progress import Progress

VALIDATION_SEED = 10**6  # added to the run's seed, so that no draw is seen twice


# ---- training


@dataclass
class PolicyState:
    """All that changes while a policy trains."""

    optimizer: torch.optim.Optimizer
    step: int = 0  # the last that is done
    best_step: int = 0  # at which the validation answers were rated highest
    best_rating: float = -float("inf")
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0


def new_state(policy: Policy, rate: float) -> PolicyState:
    """The state before the first step."""
    weights = policy.model.parameters()
    return PolicyState(torch.optim.AdamW(weights, lr=rate, weight_decay=0.0))


def fit(
    policy: Policy,
    start: Policy,
    reward: Reward,
    method: str,
    questions: Questions,
    settings: PolicySettings,
    state: PolicyState,
) -> Iterator[dict]:
    """Train a policy, and yield a row of `history.jsonl` before the first step and then and now.

    policy: learns. start: the frozen copy of it from before the first step.
    method: a key of `STEPS`. state: `new_state(policy, rate)`, or that of a run that is resumed.
    Raises FloatingPointError if a loss is not finite.
    """
    if state.step == 0:
        yield look(policy, start, reward, questions.validation, settings, state)

    steps = range(state.step + 1, settings.steps + 1)
    progress = Progress(steps, [1] * len(steps), method, "steps")
    for step in progress:
        began = time.perf_counter()
        draws = draw(policy, start, reward, method, questions.train, settings, step)
        for _ in range(settings.updates):
            loss = STEPS[method](policy, draws, settings)
            check_finite(loss, step)
            state.optimizer.zero_grad()
            loss.backward()
            precision.hand_gradients(policy.worker, policy.model)
            clip_grad_norm_(policy.model.parameters(), settings.max_gradient)
            state.optimizer.step()
            precision.hand_weights(policy.model, policy.worker)

        progress.note = f"reward {draws.rewards.mean():.3f}"
        state.step = step
        state.seconds += time.perf_counter() - began
        if step % settings.evaluate_every == 0 or step == settings.steps:
            yield look(policy, start, reward, questions.validation, settings, state)


def draw(
    policy: Policy,
    start: Policy,
    reward: Reward,
    method: str,
    train: list[Question],
    settings: PolicySettings,
    step: int,
) -> Draws:
    """The answers that a step learns from, with their rewards and log-probabilities."""
    seed_everything(settings.seed * 10_000 + step)
    asked = asking.of_step(train, step, settings.questions)
    if method == "dpo-data":
        texts = pairs_of_step(asked, settings.seed, step)
        draws = policy.read(asked, texts)
        rewards = torch.tensor([[1.0, 0.0]] * len(asked))  # chosen, rejected
    else:
        draws = policy.sample(asked, settings.group, settings.max_tokens)
        rewards = reward(draws.questions, draws.texts)
    with torch.no_grad():
        return replace(
            draws,
            rewards=rewards,
            old_log_p=policy.log_probabilities(draws),
            reference_log_p=start.log_probabilities(draws),
        )


def check_finite(loss: Tensor, step: int) -> None:
    """Raise FloatingPointError if the loss is infinite or no number."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss of step {step} is {loss.item()}; lower --lr")


# ---- the look at a policy


@dataclass
class Look:
    """What a policy answers to Q questions, one answer to each, and what that is worth."""

    draws: Draws
    rewards: Tensor  # (Q,)
    kl: Tensor  # (Q,) in nats an answer
    grades: list[Grade] | None  # of the toy


def answer(
    policy: Policy,
    start: Policy,
    reward: Reward,
    questions: Sequence[Question],
    settings: PolicySettings,
    seed: int,
) -> Look:
    """Draw one answer to each question, and judge it."""
    seed_everything(seed)
    draws = policy.sample(questions, 1, settings.max_tokens)
    with torch.no_grad():
        log_ratio = kl_k1(policy.log_probabilities(draws), start.log_probabilities(draws))
    grades = None
    if questions[0].problem is not None:
        grades = [of_question[0] for of_question in grades_of(questions, draws.texts)]
    return Look(
        draws=draws,
        rewards=reward(draws.questions, draws.texts)[:, 0],
        kl=sequence_log_probabilities(log_ratio, draws.mask),
        grades=grades,
    )


def look(
    policy: Policy,
    start: Policy,
    reward: Reward,
    questions: Sequence[Question],
    settings: PolicySettings,
    state: PolicyState,
) -> dict:
    """A row of `history.jsonl`; the weights are kept if the rating is the best so far."""
    seed = settings.seed * 10_000 + state.step + VALIDATION_SEED
    seen = answer(policy, start, reward, questions, settings, seed)
    row = {"step": state.step, **means(seen), "seconds": state.seconds}
    row["best"] = "rating" in row and row["rating"] > state.best_rating
    if row["best"]:
        state.best_rating = row["rating"]
        state.best_step = state.step
        weights = policy.model.state_dict()
        state.best_weights = {name: weight.clone() for name, weight in weights.items()}
    return row


def means(seen: Look) -> dict[str, float]:
    """The numbers of a look, each a mean over the questions."""
    texts = [of_question[0] for of_question in seen.draws.texts]
    lengths = seen.draws.mask.sum(dim=1).float()  # (Q,)
    numbers = {"reward": seen.rewards.mean().item()}
    if seen.grades is not None:
        ratings = [grade.rating for grade in seen.grades]
        numbers["rating"] = sum(ratings) / len(ratings)
    numbers["kl"] = seen.kl.mean().item()
    numbers["tokens"] = lengths.mean().item()
    numbers["distinct"] = len(set(texts)) / len(texts)
    if seen.grades is not None:
        numbers |= shares_of_flaws(seen.grades)
    return numbers


def shares_of_flaws(grades: Sequence[Grade]) -> dict[str, float]:
    """The share of answers without a flaw, and of those with each flaw."""
    shares = {"flawless": sum(not grade.flaws for grade in grades) / len(grades)}
    for flaw in (*FLAWS, UNREADABLE):
        shares[flaw] = sum(flaw in grade.flaws for grade in grades) / len(grades)
    return shares
