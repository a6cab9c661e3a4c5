"""Use a trained model: score responses, rank them. Stage 9 of the data's path.

    model = minirlhf.load("runs/bt-finetune")
    model.score("What is 2 + 2?", "2 + 2 = 4")

or, from the command line,

    python -m minirlhf score runs/bt-finetune --prompt "What is 2 + 2?" --response 4 --response 5
    python -m minirlhf score runs/bt-finetune --input rows.jsonl --output scored.jsonl

A score is the raw reward of training. A regression's lies on the scale of its ratings. A
Bradley-Terry reward means nothing by itself; its difference to the reward of another response to
the same prompt does, and `probability` says how much.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from minirlhf.model import RewardModel
from minirlhf.model import load as load_model
from minirlhf.runtime.device import pick_device
from minirlhf.runtime.tracking import progress_bar


class Scorer:
    """A trained model with its tokenizer, ready to judge text. `load` makes one."""

    def __init__(self, model: RewardModel):
        self.model, self.approach = model, model.info["approach"]

    def score(self, prompt: str, response: str) -> float:
        """Reward of one response. Raises TypeError for a classification, which only compares."""
        return self.score_many([prompt], [response])[0]

    def score_many(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Reward of each (prompt, response), in their order."""
        if self.approach == "classification":
            raise TypeError("a classification compares and cannot score one response; use rank")
        return self._map(self.model, prompts, responses).tolist()

    def probability(self, prompt: str, a: str, b: str) -> float:
        """Probability that `a` is preferred to `b`: sigmoid(margin / temperature).

        The temperature was fitted on validation when the model was trained, which makes the number
        one to bet on, for texts like those it was trained on (`metrics.fit_temperature`).
        """
        return self._win_probabilities(prompt, [a, b])[0, 1].item()

    def rank(self, prompt: str, responses: Sequence[str]) -> list[tuple[float, str]]:
        """(number, response), best first. The number is the reward; for a classification, the mean
        probability of being preferred to each of the other responses (1/2 if there is none)."""
        numbers = self.judge([(prompt, responses)])[0]
        return sorted(zip(numbers, responses, strict=True), key=lambda pair: -pair[0])

    def best_of_n(self, prompt: str, responses: Sequence[str]) -> str:
        """The best of the responses. Raises ValueError if there is none."""
        if not responses:
            raise ValueError("best_of_n needs at least one response")
        return self.rank(prompt, responses)[0][1]

    def judge(self, items: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """The numbers that `rank` sorts by, of many (prompt, responses) at once, in their order."""
        if self.approach != "classification":
            flat = [(prompt, response) for prompt, responses in items for response in responses]
            numbers = iter(self.score_many(*zip(*flat, strict=True)) if flat else [])
            return [list(islice(numbers, len(responses))) for _, responses in items]
        found = []
        for prompt, responses in items:
            wins = self._win_probabilities(prompt, responses) if responses else torch.empty(0, 0)
            found.append((wins.sum(1) - 0.5) / max(len(wins) - 1, 1))  # less 1/2 against itself
        return [(w if len(w) > 1 else w + 0.5).tolist() for w in found]

    def _win_probabilities(self, prompt: str, responses: Sequence[str]) -> Tensor:
        """(K, K): that of each response (row) over each response (column)."""
        count, head = len(responses), self.model.head
        vectors = self._map(self.model.vectors, [prompt] * count, responses)
        with torch.inference_mode():
            if self.approach == "classification":
                margins = head(vectors.repeat_interleave(count, 0), vectors.repeat(count, 1))
            else:
                rewards = head(vectors)  # (K,)
                margins = rewards[:, None] - rewards
        return torch.sigmoid(margins.view(count, count) / self.model.info["temperature"]).cpu()

    def _map(self, function, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        if len(prompts) == 0:
            return torch.empty(0)
        rows, _ = self.model.encode(prompts, responses)
        with torch.inference_mode():
            return self.model.map(function, rows, progress=progress_bar)


def load(run: str | Path, device: str = "auto") -> Scorer:
    """Load what `train.py` saved in the folder `run`. Raises ValueError if it holds no model."""
    chosen = pick_device(device)
    return Scorer(load_model(Path(run) / "model", chosen.device, chosen.attention))
