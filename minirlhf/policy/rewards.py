"""What an answer is worth: by a trained reward model, by several, or in truth.

A reward is a function (questions, texts) -> (P, G): P questions, and a list of G answers to each.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from minirlhf import score
from minirlhf.bundled.grader import Grade, grade
from minirlhf.policy.questions import Question
from minirlhf.runtime.device import Device

Reward = Callable[[Sequence[Question], list[list[str]]], Tensor]


def grades_of(questions: Sequence[Question], texts: list[list[str]]) -> list[list[Grade]]:
    """What the grader says of bundled answers: P lists of G."""
    grades = []
    for question, answers in zip(questions, texts, strict=True):
        grades.append([grade(question.problem, text) for text in answers])
    return grades


def true_ratings(questions: Sequence[Question], texts: list[list[str]]) -> Tensor:
    """The reward that knows the truth: the grader's rating, 1 to 10."""
    grades = grades_of(questions, texts)
    return torch.tensor([[one.rating for one in of_question] for of_question in grades])


class RunReward:
    """The reward of finished runs of train.py.

    One run gives its raw reward. Several give the mean of their rewards, each divided by the run's
    temperature: a difference of 1 is then the same log-odds in all of them. A classification, which
    compares, gives an answer's mean probability of being preferred to the others of its group, and
    nan to an answer without others.

    Every text is scored once. The encoder computes in `device.dtype`, as it did in training. In
    bfloat16 a reward depends a little on the texts that it is scored with (up to 0.02).
    """

    def __init__(self, runs: Sequence[str], device: Device):
        self.models = []
        self.only_compares = False
        for run in runs:
            scorer = score.load(run, str(device.device))
            self.only_compares |= scorer.approach == "classification"
            self.models.append(scorer.model.in_precision(device.dtype))
        if self.only_compares and len(runs) > 1:
            raise ValueError(
                "a classification only compares; it cannot be averaged with others"
            )
        self.known: dict[tuple[str, str], float] = {}

    def __call__(self, questions: Sequence[Question], texts: list[list[str]]) -> Tensor:
        """(P, G) rewards."""
        if self.only_compares and len(texts[0]) == 1:
            return torch.full((len(texts), 1), torch.nan)
        if self.only_compares:
            asked = [question.text for question in questions]
            items = list(zip(asked, texts, strict=True))
            return torch.tensor(score.Scorer(self.models[0]).judge_texts(items))

        pairs = []
        for question, answers in zip(questions, texts, strict=True):
            pairs.append([(question.text, answer) for answer in answers])
        new = {pair for of_question in pairs for pair in of_question} - self.known.keys()
        self.score(sorted(new))
        return torch.tensor(
            [[self.known[pair] for pair in of_question] for of_question in pairs]
        )

    @torch.inference_mode()
    def score(self, pairs: list[tuple[str, str]]) -> None:
        """Find the rewards of (question, answer) pairs and keep them in `known`."""
        if not pairs:
            return
        prompts = [prompt for prompt, _ in pairs]
        answers = [answer for _, answer in pairs]
        total = torch.zeros(len(pairs))
        for model in self.models:
            rewards = model.rewards(model.encode(prompts, answers).token_rows).float().cpu()
            scale = model.info["temperature"] if len(self.models) > 1 else 1.0
            total += rewards / scale
        mean = total / len(self.models)
        self.known.update(zip(pairs, mean.tolist(), strict=True))
