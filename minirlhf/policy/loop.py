"""The loop that trains a policy on a reward, and what is measured on the way.

Each step draws answers to new questions, asks the reward what they are worth, and moves the weights
a few times with the method's loss. The policy at its start stands by as the reference.

Every few steps the policy answers the validation questions, which it never learns from. What is
found there is a row of `history.jsonl`:

    reward       what the policy is trained to raise
    rating       what its answers are really worth (of the toy: by the grader)
    kl           how far the policy has gone from its start, in nats an answer (estimate k1)
    flawless     the share of answers without a flaw, and of each flaw the share that has it
    tokens       the length of an answer
    distinct     the share of different answers among them, as tokens; it falls when a policy
                 comes to say the same to everybody

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
from minirlhf.policy.data_pairs import pairs_of_step
from minirlhf.policy.methods import LOSSES
from minirlhf.policy.objectives import kl_k1, sequence_log_probabilities
from minirlhf.policy.policies import Draws, Policy
from minirlhf.policy.questions import Question, Questions, questions_of_step
from minirlhf.policy.rewards import Reward, grades_of
from minirlhf.policy.settings import PolicySettings
from minirlhf.runtime import precision
from minirlhf.runtime.device import seed_everything
from minirlhf.runtime.progress import Progress

# ---- seeds

# The parts of a run that draw answers. Each has seeds of its own, so that no draw is seen twice.
TRAIN = 0
VALIDATION = 10**6
TEST = 2 * 10**6


def seed_of(settings: PolicySettings, part: int, step: int = 0) -> int:
    """The seed of the draws of one step, different for every part of a run.

    part: TRAIN, VALIDATION or TEST.
    """
    return settings.seed * 10_000 + part + step


# ---- training


@dataclass
class PolicyState:
    """All that changes while a policy trains."""

    optimizer: torch.optim.Optimizer
    step: int = 0  # the last step that is finished
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
    """Train a policy, and yield rows of `history.jsonl`.

    There is one before the first step, every `settings.evaluate_every` steps, and after the last.

    policy: learns. start: the frozen copy of it from before the first step.
    method: a key of `LOSSES`. state: `new_state(policy, rate)`, or that of a run that is resumed.
    Raises FloatingPointError if a loss is not finite.
    """
    if state.step == 0:
        yield validate(policy, start, reward, questions.validation, settings, state)

    steps = range(state.step + 1, settings.steps + 1)
    progress = Progress(steps, [1] * len(steps), method, "steps")
    for step in progress:
        began = time.perf_counter()
        draws = draw(policy, start, reward, method, questions.train, settings, step)
        for _ in range(settings.updates):
            loss = LOSSES[method](policy, draws, settings)
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
            yield validate(policy, start, reward, questions.validation, settings, state)


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
    seed_everything(seed_of(settings, TRAIN, step))
    asked = questions_of_step(train, step, settings.questions)
    if method == "dpo-data":
        texts = pairs_of_step(asked, settings.seed, step)
        draws = policy.draws_of(asked, texts)
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


# ---- what a policy answers


@dataclass
class Answers:
    """What a policy answers to P questions, one answer to each, and what that is worth."""

    draws: Draws
    rewards: Tensor  # (P,)
    kl: Tensor  # (P,) in nats an answer
    grades: list[Grade] | None  # of the toy

    @property
    def texts(self) -> list[str]:
        """The P answers."""
        return [of_question[0] for of_question in self.draws.texts]

    @property
    def distinct(self) -> float:
        """The share of different answers, as tokens.

        In the toy's tokens, names and numbers of the question are slots. A policy that gives the
        same answer to everybody has one answer then; as texts, all its answers differ.
        """
        token_rows = answer_rows(self.draws)
        return len(set(token_rows)) / len(token_rows)


def answer(
    policy: Policy,
    start: Policy,
    reward: Reward,
    questions: Sequence[Question],
    settings: PolicySettings,
    seed: int,
) -> Answers:
    """Draw one answer to each question, and judge it."""
    seed_everything(seed)
    draws = policy.sample(questions, 1, settings.max_tokens)
    with torch.no_grad():
        log_ratio = kl_k1(policy.log_probabilities(draws), start.log_probabilities(draws))
    grades = None
    if questions[0].problem is not None:
        grades = [of_question[0] for of_question in grades_of(questions, draws.texts)]
    return Answers(
        draws=draws,
        rewards=reward(draws.questions, draws.texts)[:, 0],
        kl=sequence_log_probabilities(log_ratio, draws.mask),
        grades=grades,
    )


def validate(
    policy: Policy,
    start: Policy,
    reward: Reward,
    questions: Sequence[Question],
    settings: PolicySettings,
    state: PolicyState,
) -> dict:
    """A row of `history.jsonl`: what the policy answers to the validation questions.

    The weights are kept if the rating is the best so far.
    """
    seed = seed_of(settings, VALIDATION, state.step)
    answers = answer(policy, start, reward, questions, settings, seed)
    row = {"step": state.step, **means(answers), "seconds": state.seconds}
    row["best"] = keep_if_best(policy, row, state)
    return row


def keep_if_best(policy: Policy, row: dict, state: PolicyState) -> bool:
    """Keep the weights in `state` if the row's rating is the best so far. True if it is."""
    if "rating" not in row or row["rating"] <= state.best_rating:
        return False
    state.best_rating = row["rating"]
    state.best_step = row["step"]
    weights = policy.model.state_dict()
    state.best_weights = {name: weight.clone() for name, weight in weights.items()}
    return True


def means(answers: Answers) -> dict[str, float]:
    """The numbers of a row of `history.jsonl`, each a mean over the questions."""
    numbers = {name: values.mean().item() for name, values in of_each(answers).items()}
    numbers["distinct"] = answers.distinct
    if answers.grades is not None:
        numbers |= shares_of_flaws(answers.grades)
    return numbers


def of_each(answers: Answers) -> dict[str, Tensor]:
    """The numbers of each answer, (P,) each: reward, kl, tokens, and if known rating, flawless."""
    values = {"kl": answers.kl, "tokens": answers.draws.mask.sum(dim=1).float()}
    if not answers.rewards.isnan().any():  # a classification gives no reward to a single answer
        values["reward"] = answers.rewards
    if answers.grades is not None:
        ratings = [grade.rating for grade in answers.grades]
        flawless = [not grade.flaws for grade in answers.grades]
        values["rating"] = torch.tensor(ratings, dtype=torch.float64)
        values["flawless"] = torch.tensor(flawless, dtype=torch.float64)
    return values


def answer_rows(draws: Draws) -> list[tuple[int, ...]]:
    """The token ids of N answers, without padding."""
    ids = draws.ids[:, -draws.mask.shape[1] :]  # (N, A)
    rows = []
    for row, mask in zip(ids, draws.mask.bool(), strict=True):
        rows.append(tuple(row[mask].tolist()))
    return rows


def shares_of_flaws(grades: Sequence[Grade]) -> dict[str, float]:
    """The share of answers without a flaw, and of those with each flaw."""
    shares = {"flawless": sum(not grade.flaws for grade in grades) / len(grades)}
    for flaw in (*FLAWS, UNREADABLE):
        shares[flaw] = sum(flaw in grade.flaws for grade in grades) / len(grades)
    return shares
