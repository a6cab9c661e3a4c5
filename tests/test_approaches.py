"""The four training steps: where they start, and that each setting reaches the loss."""

from dataclasses import replace

import pytest
import torch
from conftest import prepare

from minirlhf import loops
from minirlhf.approaches import STEPS
from minirlhf.settings import FINETUNE


@pytest.mark.parametrize("approach", ["classification", "bt-frozen", "bt-finetune"])
def test_the_first_loss_is_ln_2(approach, tiny_encoder):
    built, token_rows, part = prepare(approach, tiny_encoder)
    if approach == "bt-finetune":
        inputs, part = loops.distinct_texts(token_rows, part)
    else:
        inputs = built.vectors(token_rows)
    loss = STEPS[approach](built, inputs, part).loss
    assert loss.item() == pytest.approx(0.693147, abs=1e-6)


def test_margin_and_label_smoothing_reach_the_loss(tiny_encoder):
    built, token_rows, part = prepare("bt-finetune", tiny_encoder)
    texts, pairs = loops.distinct_texts(token_rows, part)

    def loss(**settings):
        return STEPS["bt-finetune"](built, texts, pairs, replace(FINETUNE, **settings)).loss

    gap = part.chosen_rating - part.rejected_rating
    expected = torch.nn.functional.softplus(0.5 * gap).mean()
    torch.testing.assert_close(loss(margin=0.5), expected)
    torch.nn.init.normal_(built.head.output.weight)
    assert not torch.isclose(loss(), loss(label_smoothing=0.3))


def test_weights_reach_the_loss_of_every_approach(tiny_encoder):
    for approach, step in STEPS.items():
        built, token_rows, part = prepare(approach, tiny_encoder)
        for parameter in built.head.parameters():
            torch.nn.init.normal_(parameter)
        only_first = part._replace(weight=torch.tensor([8.0] + [0.0] * 7))
        first = part.pick(slice(1))
        losses = []
        for pairs in (only_first, first):
            if approach == "bt-finetune":
                inputs, pairs = loops.distinct_texts(token_rows, pairs)
            else:
                inputs = built.vectors(token_rows)
            losses.append(step(built, inputs, pairs).loss.detach())
        torch.testing.assert_close(*losses)
