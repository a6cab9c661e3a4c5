"""Four ways to learn from a preference, on one page: the training steps.

                    encoder     trained          loss               one step's question
    regression      frozen      MLP head         MSE                what is this response rated?
    classification  frozen      pair head        BCE                is the first one preferred?
    bt-frozen       frozen      MLP head         Bradley-Terry      how much better is the chosen?
    bt-finetune     trained     encoder + head   Bradley-Terry      the same, learning to read

All four have one contract: (model, inputs, pairs, settings) -> Step.

inputs      where the encoder is frozen, the vectors (U, D) of all distinct texts, computed once;
            where it is trained, the token rows of the batch's U distinct texts
pairs       a `data.Part` of B pairs. `pairs.chosen` and `pairs.rejected` (B,) are the numbers of
            their texts among the U, because several pairs often share a response
settings    `label_smoothing` and `margin` are used here

The model, which joins an encoder and a head, is in the next file; here it is enough to know that
`model.head` turns vectors into rewards, and `model.rewards` token rows.

To add a fifth approach: write its step here and put it into `STEPS`, name it in `settings.py`, give
it a head in `model.HEADS` and an encoder in `model.build`, and say in `train.py` if it needs
ratings. If it trains the encoder, `loops.fit_finetune` must call it. Read next: `model.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf.data import Part
from minirlhf.losses import bce_loss, bradley_terry_loss, mse_loss
from minirlhf.model import RewardModel
from minirlhf.settings import FINETUNE, Settings


class Step(NamedTuple):
    """What a training step finds out about B pairs."""

    loss: Tensor  # (), to call `backward` on
    margins: Tensor  # (B,) how strongly chosen is preferred to rejected; positive is right
    rewards: Tensor | None  # (B, 2) of chosen and rejected; None where the model only compares


def regression(
    model: RewardModel, features: Tensor, pairs: Part, settings: Settings = FINETUNE
) -> Step:
    """Rate each response by itself. A preference is then a comparison of two ratings."""
    texts = torch.cat([pairs.chosen, pairs.rejected])  # (2B,)
    rewards = model.head(features[texts])  # (2B,)
    ratings = torch.cat([pairs.chosen_rating, pairs.rejected_rating])  # (2B,)
    loss = mse_loss(rewards, ratings, pairs.weight.repeat(2))
    chosen, rejected = rewards.chunk(2)  # (B,), (B,)
    return Step(loss, chosen - rejected, torch.stack([chosen, rejected], dim=1))


def classification(
    model: RewardModel, features: Tensor, pairs: Part, settings: Settings = FINETUNE
) -> Step:
    """See both responses and say which one is preferred.

    The label is always "the first". The head is antisymmetric, so (rejected, chosen, 0) would give
    the same loss and the same gradient, and there is no order to learn.
    """
    logits = model.head(features[pairs.chosen], features[pairs.rejected])  # (B,)
    labels = torch.ones_like(logits)  # (B,)
    loss = bce_loss(logits, labels, settings.label_smoothing, pairs.weight)
    return Step(loss, margins=logits, rewards=None)


def bt_frozen(
    model: RewardModel, features: Tensor, pairs: Part, settings: Settings = FINETUNE
) -> Step:
    """Give each response a reward, so that the difference of two explains the preference."""
    chosen = model.head(features[pairs.chosen])  # (B,)
    rejected = model.head(features[pairs.rejected])  # (B,)
    return bradley_terry(chosen, rejected, pairs, settings)


def bt_finetune(
    model: RewardModel, token_rows: Sequence, pairs: Part, settings: Settings = FINETUNE
) -> Step:
    """The same, but the gradient goes on into the encoder, which learns what to look for."""
    rewards = model.rewards(token_rows)  # (U,) each distinct text is read once
    chosen = rewards[pairs.chosen]  # (B,)
    rejected = rewards[pairs.rejected]  # (B,)
    return bradley_terry(chosen, rejected, pairs, settings)


def bradley_terry(chosen: Tensor, rejected: Tensor, pairs: Part, settings: Settings) -> Step:
    """The Bradley-Terry step from the rewards (B,), (B,) of the two sides."""
    margin = 0.0
    if settings.margin:
        margin = settings.margin * (pairs.chosen_rating - pairs.rejected_rating)  # (B,)
    loss = bradley_terry_loss(chosen, rejected, margin, settings.label_smoothing, pairs.weight)
    return Step(loss, chosen - rejected, torch.stack([chosen, rejected], dim=1))


STEPS = {
    "regression": regression,
    "classification": classification,
    "bt-frozen": bt_frozen,
    "bt-finetune": bt_finetune,
}

# How pairs are evaluated, given the vectors of their texts. Here bt-finetune is bt-frozen: the two
# differ only in whether the gradient goes on into the encoder. An evaluation gives no settings. The
# steps then use their default `FINETUNE`, in which margin and label smoothing are 0, and they have
# that default for this purpose alone.
EVALUATION_STEPS = STEPS | {"bt-finetune": bt_frozen}
