"""Mixed precision, written out: a bfloat16 copy of the encoder works, the float32 weights learn.

Where the hardware multiplies bfloat16 natively, forward and backward run in a copy of the encoder
whose weights are bfloat16. Its gradients are handed to the float32 weights, the optimiser moves
those, and the copy gets their new values. The weights themselves must be float32: most steps are
smaller than the gap between two neighbouring bfloat16 numbers, so they would be rounded away.

In float32 there is no copy. The functions then meet each weight as its own copy and leave it alone.

Copy this file alone; it needs torch.

>>> linear = torch.nn.Linear(2, 1)
>>> copy_in(linear, torch.bfloat16).weight.dtype, copy_in(linear, torch.float32) is linear
(torch.bfloat16, True)
"""

import copy

import torch
from torch import nn


def copy_in(encoder: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the encoder whose weights are `dtype`; the encoder itself for float32.

    Buffers keep their precision: a decoder's rotary frequencies need it.
    """
    if dtype == torch.float32:
        return encoder
    encoder = copy.deepcopy(encoder)
    for parameter in encoder.parameters():
        parameter.data = parameter.data.to(dtype)
    return encoder


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The weights that learn."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def hand_gradients(working_copy: nn.Module, model: nn.Module) -> None:
    """Move the gradients from the copy that computed them to the float32 weights that learn."""
    for copied, weight in zip(trained(working_copy), trained(model), strict=True):
        if copied is weight:
            continue
        weight.grad = None if copied.grad is None else copied.grad.float()
        copied.grad = None


def hand_weights(model: nn.Module, working_copy: nn.Module) -> None:
    """Give the copy the new values of the float32 weights, after a step of the optimiser."""
    for copied, weight in zip(trained(working_copy), trained(model), strict=True):
        if copied is not weight:
            copied.data.copy_(weight)
