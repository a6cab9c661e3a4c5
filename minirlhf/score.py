"""Use a trained model: score responses and rank them.

    model = minirlhf.load("runs/bt-finetune")
    model.score("What is 2 + 2?", "2 + 2 = 4")

The same from the command line:

    python -m minirlhf score runs/bt-finetune --prompt "What is 2 + 2?" --response 4 --response 5

A prompt may have any form that training data may have: a string, a transcript, a list of messages,
or a row such as {"system": "Be brief.", "question": "2 + 2?"}. A response may be a string, a
message or a list of messages. They become the text that training would have made of them.

A score is the raw reward of training. That of a regression lies on the scale of its ratings. A
Bradley-Terry reward means nothing by itself; its difference to the reward of another response to
the same prompt does, and `probability` says how much.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from minirlhf.layouts import read_question, write_texts
from minirlhf.model import RewardModel
from minirlhf.model import load as load_model
from minirlhf.runtime.device import pick_device

Conversation = str | list | dict  # a prompt or a response in one of the forms named above


class Scorer:
    """A trained model with its tokenizer, ready to judge text. `load` makes one.

    All methods raise ValueError if a prompt or a response is no conversation.
    """

    def __init__(self, model: RewardModel):
        self.model = model
        self.approach = model.info["approach"]

    def score(self, prompt: Conversation, response: Conversation) -> float:
        """The reward of one response. Raises TypeError for a classification, which compares."""
        return self.score_many([prompt], [response])[0]

    def score_many(
        self, prompts: Sequence[Conversation], responses: Sequence[Conversation]
    ) -> list[float]:
        """The reward of each (prompt, response), in their order."""
        prompt_texts = []
        response_texts = []
        for prompt, response in zip(prompts, responses, strict=True):
            prompt_text, one_response = write_texts(read_question(prompt), [response])
            prompt_texts.append(prompt_text)
            response_texts += one_response
        return self.score_texts(prompt_texts, response_texts)

    def score_texts(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """As `score_many`, for texts that are written as the model reads them already."""
        if self.approach == "classification":
            raise TypeError("a classification compares and cannot score one response; use rank")
        if len(prompts) == 0:
            return []
        token_rows = self.model.encode(prompts, responses).token_rows
        with torch.inference_mode():
            return self.model.rewards(token_rows, progress=True).tolist()

    def probability(self, prompt: Conversation, a: Conversation, b: Conversation) -> float:
        """The probability that `a` is preferred to `b`: sigmoid(margin / temperature).

        The temperature was fitted on validation when the model was trained. So the number is one
        to bet on, for texts like those it was trained on (`metrics.fit_temperature`).
        """
        prompt_text, responses = write_texts(read_question(prompt), [a, b])
        return self.win_probabilities(prompt_text, responses)[0, 1].item()

    def rank(
        self, prompt: Conversation, responses: Sequence[Conversation]
    ) -> list[tuple[float, Conversation]]:
        """(number, response), the best first.

        The number is the reward. For a classification it is the mean probability of being preferred
        to each of the other responses, and 1/2 if there is no other.
        """
        numbers = self.judge([(prompt, responses)])[0]
        ranked = list(zip(numbers, responses, strict=True))
        ranked.sort(key=lambda pair: -pair[0])
        return ranked

    def best_of_n(
        self, prompt: Conversation, responses: Sequence[Conversation]
    ) -> Conversation:
        """The best of the responses. Raises ValueError if there is none."""
        if not responses:
            raise ValueError("best_of_n needs at least one response")
        _, best = self.rank(prompt, responses)[0]
        return best

    def judge(
        self, items: Sequence[tuple[Conversation, Sequence[Conversation]]]
    ) -> list[list[float]]:
        """The numbers that `rank` sorts by, of many (prompt, responses) at once, in their order."""
        written = []
        for prompt, responses in items:
            question = read_question(prompt)
            written.append(write_texts(question, responses) if responses else ("", []))
        return self.judge_texts(written)

    def judge_texts(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """As `judge`, for texts that are written as the model reads them already."""
        if self.approach == "classification":
            return [self.win_rates(prompt, responses) for prompt, responses in items]
        prompts = []
        flat = []
        for prompt, responses in items:
            prompts.extend([prompt] * len(responses))
            flat.extend(responses)
        rewards = self.score_texts(prompts, flat)
        numbers = []
        start = 0
        for _, responses in items:
            numbers.append(rewards[start : start + len(responses)])
            start += len(responses)
        return numbers

    def win_rates(self, prompt: str, responses: Sequence[str]) -> list[float]:
        """For each of K responses, the mean probability of being preferred to the K - 1 others."""
        count = len(responses)
        if count < 2:
            return [0.5] * count
        wins = self.win_probabilities(prompt, responses)  # (K, K)
        against_itself = 0.5
        return ((wins.sum(dim=1) - against_itself) / (count - 1)).tolist()

    def win_probabilities(self, prompt: str, responses: Sequence[str]) -> Tensor:
        """(K, K): the probability that each response (row) is preferred to each other (column)."""
        count = len(responses)
        token_rows = self.model.encode([prompt] * count, responses).token_rows
        head = self.model.head
        with torch.inference_mode():
            vectors = self.model.vectors(token_rows, progress=True)  # (K, D)
            if self.approach == "classification":
                rows = vectors.repeat_interleave(count, dim=0)  # (K * K, D): 1 1 1 2 2 2 3 3 3
                columns = vectors.repeat(count, 1)  # (K * K, D): 1 2 3 1 2 3 1 2 3
                margins = head(rows, columns).view(count, count)
            else:
                rewards = head(vectors)  # (K,)
                margins = rewards[:, None] - rewards  # (K, K)
            return torch.sigmoid(margins / self.model.info["temperature"]).cpu()


def load(run: str | Path, device: str = "auto") -> Scorer:
    """Load what `train.py` saved in the folder `run`. Raises ValueError if it holds no model."""
    chosen = pick_device(device)
    return Scorer(load_model(Path(run) / "model", chosen.device, chosen.attention))
