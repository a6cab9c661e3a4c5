"""Use a trained model: score responses, rank them. Stage 9 of the data's path.

    model = minirlhf.load("runs/bt-finetune")
    model.score("What is 2 + 2?", "2 + 2 = 4")

or, from the command line,

    python -m minirlhf.score runs/bt-finetune --prompt "What is 2 + 2?" --response 4 --response 5

A score is the raw reward of training. A regression's lies on the scale of its ratings. A
Bradley-Terry reward means nothing by itself; its difference to the reward of another response to
the same prompt does: sigmoid(difference) is the probability of being preferred.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from minirlhf import tokens
from minirlhf.device import pick_device
from minirlhf.model import RewardModel
from minirlhf.model import load as load_model


class Scorer:
    """A trained model with its tokenizer, ready to judge text. `load` makes one."""

    def __init__(self, model: RewardModel, device: torch.device):
        self.model, self.device, self.approach = model, device, model.info["approach"]

    def score(self, prompt: str, response: str) -> float:
        """Reward of one response. Raises TypeError for a classification, which only compares."""
        return self.score_many([prompt], [response])[0]

    def score_many(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Reward of each (prompt, response), in their order."""
        if self.approach == "classification":
            raise TypeError("a classification compares and cannot score one response; use rank")
        return self._map(self.model, prompts, responses).tolist()

    def rank(self, prompt: str, responses: Sequence[str]) -> list[tuple[float, str]]:
        """(number, response), best first. The number is the reward; for a classification, the mean
        probability of being preferred to each of the other responses."""
        prompts, count = [prompt] * len(responses), len(responses)
        if self.approach == "classification" and count > 1:
            vectors = self._map(self.model.vectors, prompts, responses).to(self.device)  # (K, D)
            with torch.inference_mode():  # every response against every other
                logits = self.model.head(
                    vectors.repeat_interleave(count, 0), vectors.repeat(count, 1)
                )
            wins = torch.sigmoid(logits).view(count, count).sum(1) - 0.5  # 1/2 against itself
            numbers = (wins / (count - 1)).tolist()
        elif self.approach == "classification":
            numbers = [0.5] * count  # nothing to compare with
        else:
            numbers = self.score_many(prompts, responses)
        return sorted(zip(numbers, responses, strict=True), key=lambda pair: -pair[0])

    def _map(self, function, prompts: Sequence[str], responses: Sequence[str]) -> torch.Tensor:
        if len(prompts) == 0:
            return torch.empty(0)
        limit = self.model.info["max_length"]
        rows, _ = tokens.encode(prompts, responses, self.model.tokenizer, limit)
        return tokens.map_batches(function, rows, self.model.pad_id, self.device)


def load(run: str | Path, device: str = "auto") -> Scorer:
    """Load what `train.py` saved in the folder `run`. Raises ValueError if it holds no model."""
    chosen = pick_device(device)
    return Scorer(load_model(Path(run) / "model", chosen.device, chosen.attention), chosen.device)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m minirlhf.score", description="Rank responses to a prompt, best first."
    )
    parser.add_argument("run", help="a run folder, such as runs/bt-finetune")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--response", required=True, action="append", help="give it several times")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args(argv)
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        scorer = load(args.run, args.device)
    except (ValueError, OSError) as error:
        parser.exit(2, f"python -m minirlhf.score: error: {error}\n")
    print("win rate" if scorer.approach == "classification" else "  reward", " response")
    for number, response in scorer.rank(args.prompt, args.response):
        print(f"{number:8.3f}  {response}")


if __name__ == "__main__":
    main()
