import pytest
import torch

from minirlhf.pooling import POOLERS


def padded(hidden, left, right):
    """The same states with noise before and after, and the mask that hides it."""
    n, t, d = hidden.shape
    noise = lambda width: 100 * torch.randn(n, width, d)  # noqa: E731
    mask = torch.cat([torch.zeros(n, left), torch.ones(n, t), torch.zeros(n, right)], 1).long()
    return torch.cat([noise(left), hidden, noise(right)], 1), mask


@pytest.mark.parametrize("name", POOLERS)
@pytest.mark.parametrize(("left", "right"), [(0, 4), (4, 0), (3, 2), (0, 1)])
def test_padding_changes_nothing(name, left, right):
    hidden = torch.randn(3, 5, 4)
    plain = POOLERS[name](hidden, torch.ones(3, 5).long())
    torch.testing.assert_close(POOLERS[name](*padded(hidden, left, right)), plain)


def test_each_reads_what_its_name_says():
    hidden = torch.tensor([[[1.0], [2.0], [6.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1, 0]])
    assert [POOLERS[name](hidden, mask).item() for name in ("mean", "last", "cls")] == [
        3,
        6,
        1,
    ]


@pytest.mark.parametrize("name", POOLERS)
def test_gradient_reaches_real_tokens_only(name):
    hidden = torch.randn(1, 4, 2, requires_grad=True)
    POOLERS[name](hidden, torch.tensor([[0, 1, 1, 0]])).sum().backward()
    assert hidden.grad[0, [0, 3]].abs().sum() == 0
    assert hidden.grad[0, [1, 2]].abs().sum() > 0


@pytest.mark.parametrize("name", POOLERS)
def test_half_precision_comes_out_as_float32(name):
    hidden = torch.randn(2, 3, 4).bfloat16()
    assert POOLERS[name](hidden, torch.ones(2, 3).long()).dtype == torch.float32
