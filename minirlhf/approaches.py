"""Four ways to learn from a preference, on one page: the training steps.

                    encoder     trained          loss               one step's question
    regression      frozen      MLP head         MSE                what is this response rated?
    classification  frozen      pair head        BCE                is the first preferred?
    bt-frozen       frozen      MLP head         Bradley-Terry      how much better is the chosen?
    bt-finetune     trained     encoder + head   Bradley-Terry      the same, learning to read

Each step has one contract: (model, batch) -> (loss, margins). The loss is a scalar to call
`backward` on; the margins (B,) say how strongly the model prefers chosen to rejected, positive
where it is right. Read next: `model.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from minirlhf.losses import bce_loss, bradley_terry_loss, mse_loss
from minirlhf.model import RewardModel


class FrozenBatch(NamedTuple):
    """B pairs as vectors that were computed once."""

    chosen: torch.Tensor  # (B, D)
    rejected: torch.Tensor  # (B, D)
    chosen_rating: torch.Tensor  # (B,) NaN where the data has none
    rejected_rating: torch.Tensor  # (B,)


class TokenBatch(NamedTuple):
    """B pairs as tokens. Responses that several pairs share are one row: U <= 2B rows."""

    ids: torch.Tensor  # (U, T)
    mask: torch.Tensor  # (U, T)
    chosen: torch.Tensor  # (B,) row of each pair's chosen response
    rejected: torch.Tensor  # (B,)
    chosen_rating: torch.Tensor  # (B,)
    rejected_rating: torch.Tensor  # (B,)


class Options(NamedTuple):
    """What a user may change in a step."""

    label_smoothing: float = 0.0
    margin: float = 0.0  # asks for a reward gap of margin * (rating gap), Llama 2's idea
    dtype: torch.dtype = torch.float32  # autocast dtype of the encoder
    progress: Callable = lambda batches, name: batches  # wraps long loops, as tqdm does


PLAIN = Options()
Step = tuple[torch.Tensor, torch.Tensor]  # loss (), margins (B,)


def regression(model: RewardModel, batch: FrozenBatch, options: Options = PLAIN) -> Step:
    """Rate each response by itself; a preference is then a comparison of two ratings."""
    rewards = model.head(torch.cat([batch.chosen, batch.rejected]))  # (2B,)
    ratings = torch.cat([batch.chosen_rating, batch.rejected_rating])  # (2B,)
    chosen, rejected = rewards.chunk(2)  # (B,), (B,)
    return mse_loss(rewards, ratings), chosen - rejected


def classification(model: RewardModel, batch: FrozenBatch, options: Options = PLAIN) -> Step:
    """See both responses and say which is preferred.

    The label is always "the first": the head is antisymmetric, so (rejected, chosen, 0) would give
    the same loss and the same gradient, and there is no order to learn.
    """
    logits = model.head(batch.chosen, batch.rejected)  # (B,)
    return bce_loss(logits, torch.ones_like(logits), options.label_smoothing), logits


def bt_frozen(model: RewardModel, batch: FrozenBatch, options: Options = PLAIN) -> Step:
    """Give each response a reward, such that the difference explains the preference."""
    chosen, rejected = model.head(torch.cat([batch.chosen, batch.rejected])).chunk(2)  # (B,), (B,)
    return _bradley_terry(chosen, rejected, batch, options)


def bt_finetune(model: RewardModel, batch: TokenBatch, options: Options = PLAIN) -> Step:
    """The same, but the gradient goes on into the encoder: it learns what to look for."""
    rewards = model(batch.ids, batch.mask, options.dtype)  # (U,) one forward for both sides
    return _bradley_terry(rewards[batch.chosen], rewards[batch.rejected], batch, options)


def _bradley_terry(chosen: torch.Tensor, rejected: torch.Tensor, batch, options: Options) -> Step:
    margin = 0.0
    if options.margin:
        margin = options.margin * (batch.chosen_rating - batch.rejected_rating)  # (B,)
    loss = bradley_terry_loss(chosen, rejected, margin, options.label_smoothing)
    return loss, chosen - rejected


STEPS = {
    "regression": regression,
    "classification": classification,
    "bt-frozen": bt_frozen,
    "bt-finetune": bt_finetune,
}
