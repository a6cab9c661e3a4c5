"""Four ways to learn from a preference, on one page: the training steps.

                    encoder     trained          loss               one step's question
    regression      frozen      MLP head         MSE                what is this response rated?
    classification  frozen      pair head        BCE                is the first preferred?
    bt-frozen       frozen      MLP head         Bradley-Terry      how much better is the chosen?
    bt-finetune     trained     encoder + head   Bradley-Terry      the same, learning to read

Each step has one contract: (model, inputs, pairs, options) -> (loss, margins). `inputs`: where the
encoder is frozen, the features (U, D) of all distinct texts; where it is trained, the token rows of
the batch's U texts. `pairs` (a `data.Part` of B pairs) says which two of the U texts each pair
compares: a response that several pairs share is one text. The loss is a scalar to call `backward`
on; the margins (B,) say how strongly the model prefers chosen to rejected, positive where it is
right. Read next: `model.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minirlhf.data import Part
from minirlhf.losses import bce_loss, bradley_terry_loss, mse_loss
from minirlhf.model import RewardModel


class Options(NamedTuple):
    """What train.py hands to the loops; they use the rest, the steps the first two (flags)."""

    label_smoothing: float = 0.0
    margin: float = 0.0  # asks for a reward gap of margin * (rating gap), Llama 2's idea
    dtype: torch.dtype = torch.float32  # in which a trained encoder computes
    progress: Callable = lambda batches, name: batches  # wraps long loops, as tqdm does
    state: Any = None  # saves and loads all that `fit_finetune` holds, so that a run can be resumed


PLAIN = Options()
Step = tuple[Tensor, Tensor]  # loss (), margins (B,)


def regression(model: RewardModel, features, pairs: Part, options: Options = PLAIN) -> Step:
    """Rate each response by itself; a preference is then a comparison of two ratings."""
    texts = torch.cat([pairs.chosen, pairs.rejected])  # (2B,)
    rewards = model.head(features[texts])  # (2B,)
    ratings = torch.cat([pairs.chosen_rating, pairs.rejected_rating])  # (2B,)
    chosen, rejected = rewards.chunk(2)  # (B,), (B,)
    return mse_loss(rewards, ratings, pairs.weight.repeat(2)), chosen - rejected


def classification(model: RewardModel, features, pairs: Part, options: Options = PLAIN) -> Step:
    """See both responses and say which is preferred.

    The label is always "the first": the head is antisymmetric, so (rejected, chosen, 0) would give
    the same loss and the same gradient, and there is no order to learn.
    """
    logits = model.head(features[pairs.chosen], features[pairs.rejected])  # (B,)
    label = torch.ones_like(logits)
    return bce_loss(logits, label, options.label_smoothing, pairs.weight), logits


def bt_frozen(model: RewardModel, features, pairs: Part, options: Options = PLAIN) -> Step:
    """Give each response a reward, such that the difference explains the preference."""
    chosen = model.head(features[pairs.chosen])  # (B,)
    rejected = model.head(features[pairs.rejected])  # (B,)
    return _bradley_terry(chosen, rejected, pairs, options)


def bt_finetune(model: RewardModel, rows, pairs: Part, options: Options = PLAIN) -> Step:
    """The same, but the gradient goes on into the encoder: it learns what to look for."""
    rewards = model.map(model, rows)  # (U,) each text once, in forwards of like length
    return _bradley_terry(rewards[pairs.chosen], rewards[pairs.rejected], pairs, options)


def _bradley_terry(chosen: Tensor, rejected: Tensor, pairs: Part, options) -> Step:
    gap = pairs.chosen_rating - pairs.rejected_rating  # (B,) NaN where the data has no ratings
    margin = options.margin * gap if options.margin else 0.0
    loss = bradley_terry_loss(chosen, rejected, margin, options.label_smoothing, pairs.weight)
    return loss, chosen - rejected


STEPS = {"regression": regression, "classification": classification,
         "bt-frozen": bt_frozen, "bt-finetune": bt_finetune}  # fmt: skip
