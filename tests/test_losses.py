import math

import pytest
import torch

from minirlhf.heads import LinearHead, MLPHead, PairHead
from minirlhf.losses import bce_loss, bradley_terry_loss, mse_loss


def test_closed_forms():
    zero = torch.zeros(3)
    assert bradley_terry_loss(zero, zero).item() == pytest.approx(math.log(2))
    assert bce_loss(zero, torch.ones(3)).item() == pytest.approx(math.log(2))
    chosen, rejected = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 5.0])
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(expected)
    assert mse_loss(chosen, rejected).item() == pytest.approx((1 + 4) / 2)
    # A margin m is the same as rewarding the rejected response m more.
    assert torch.equal(
        bradley_terry_loss(chosen, rejected, torch.tensor([0.5, 2.0])),
        bradley_terry_loss(chosen, rejected + torch.tensor([0.5, 2.0])),
    )


def test_gradients():
    # d/dm of -log sigmoid(m) is sigmoid(m) - 1; the two rewards get it with opposite signs.
    chosen = torch.tensor([0.3, -2.0, 4.0], dtype=torch.float32, requires_grad=True)
    rejected = torch.zeros(3, requires_grad=True)
    bradley_terry_loss(chosen, rejected).backward()
    torch.testing.assert_close(chosen.grad, (torch.sigmoid(chosen.detach()) - 1) / 3)
    torch.testing.assert_close(rejected.grad, -chosen.grad)


def test_a_constant_changes_nothing_and_extremes_stay_finite():
    chosen, rejected = torch.randn(8), torch.randn(8)
    torch.testing.assert_close(
        bradley_terry_loss(chosen + 7, rejected + 7), bradley_terry_loss(chosen, rejected)
    )
    loss = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]))
    assert loss.item() == 1000  # log(sigmoid(-1000)) would be -inf


def test_label_smoothing_is_the_expected_loss_under_flipped_labels():
    chosen, rejected = torch.randn(8), torch.randn(8)
    right, flipped = (
        bradley_terry_loss(chosen, rejected),
        bradley_terry_loss(rejected, chosen),
    )
    smoothed = bradley_terry_loss(chosen, rejected, label_smoothing=0.1)
    torch.testing.assert_close(smoothed, 0.9 * right + 0.1 * flipped)
    torch.testing.assert_close(smoothed, bce_loss(chosen - rejected, torch.ones(8), 0.1))
    torch.testing.assert_close(
        bce_loss(-chosen, torch.zeros(8), 0.1), bce_loss(chosen, torch.ones(8), 0.1)
    )


def test_bce_on_differences_with_a_linear_head_is_bradley_terry():
    a, b = torch.randn(16, 8), torch.randn(16, 8)
    one, two = LinearHead(8), LinearHead(8)
    torch.nn.init.normal_(one.output.weight)
    two.load_state_dict(one.state_dict())
    loss_bt, loss_bce = (
        bradley_terry_loss(one(a), one(b)),
        bce_loss(two(a - b), torch.ones(16)),
    )
    loss_bt.backward()
    loss_bce.backward()
    torch.testing.assert_close(loss_bt, loss_bce)
    torch.testing.assert_close(one.output.weight.grad, two.output.weight.grad)


def test_bfloat16_rewards_are_computed_in_float32():
    chosen = torch.tensor([8.03], dtype=torch.bfloat16)
    assert bradley_terry_loss(chosen, chosen).dtype == torch.float32


@pytest.mark.parametrize("loss", [mse_loss, bce_loss, bradley_terry_loss])
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match="two equally long vectors"):
        loss(torch.zeros(4, 1), torch.zeros(4))


def test_new_heads_prefer_nothing():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    assert (
        LinearHead(8)(a).tolist()
        == MLPHead(8)(a).tolist()
        == PairHead(8)(a, b).tolist()
        == [0] * 5
    )


def test_pair_head_is_antisymmetric_and_sees_both():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    head = PairHead(8)
    torch.nn.init.normal_(head.g.output.weight)
    assert torch.equal(head(a, b), -head(b, a))
    assert head(a, a).abs().max() == 0
    # No reward r explains it: Bradley-Terry logits would add up along a -> b -> c.
    c = torch.randn(5, 8)
    assert not torch.allclose(head(a, b) + head(b, c), head(a, c), atol=1e-3)


def test_mlp_head_standardises_its_input_and_starts_at_the_mean_rating():
    vectors, ratings = 3 + 0.01 * torch.randn(200, 8), torch.tensor([2.0, 8.0])
    head = MLPHead(8)
    head.fit_input(vectors)
    head.fit_output(ratings)
    x = (vectors - head.mean) / head.std
    torch.testing.assert_close(x.std(dim=0, unbiased=False), torch.ones(8))
    assert head(vectors[:2]).tolist() == [5, 5]
    assert {"mean", "std", "shift", "scale"} <= set(head.state_dict())
