"""Which device, in which precision, and why; the seed; and several processes that train together.

Copy this file alone; it needs torch only.

>>> seed_everything(7); a = torch.rand(1); seed_everything(7); bool(a == torch.rand(1))
True
>>> pick_device("cpu").device
device(type='cpu')
"""

import atexit
import os
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist


class Device(NamedTuple):
    """Where and how to compute, and the reason in words."""

    device: torch.device
    dtype: torch.dtype  # in which the encoder computes in training and for frozen features
    attention: str | None  # `attn_implementation` of transformers, None for its own choice
    reason: str


def pick_device(name: str = "auto") -> Device:
    """Choose cuda, then mps, then cpu; or the one that was named ("cuda:1" works).

    The encoder computes in bfloat16, in training and for frozen features, where the hardware
    multiplies it natively (a rule about the hardware, never a timing). The weights that learn,
    optimiser, head, loss and scoring stay in float32. On a CPU the plain ("eager") attention is
    then the fast one: its bfloat16 matrix products are native, those of the fused kernel are not.
    Raises ValueError, listing what there is, if the named device is not here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    available = ["cuda"] * cuda + ["mps"] * mps + ["cpu"]
    kind, _, index = name.partition(":")
    known = index.isdigit() and kind == "cuda" and int(index) < torch.cuda.device_count()
    if name != "auto" and (kind not in available or (":" in name and not known)):
        raise ValueError(f"no device {name!r} on this machine; there is: {', '.join(available)}")
    device = torch.device(available[0] if name == "auto" else name)
    why = f"the best of: {', '.join(available)}" if name == "auto" else "as asked"
    if _has_bfloat16(device):
        attention, why = "eager" if device.type == "cpu" else None, f"{why}; bfloat16 is native"
        return Device(device, torch.bfloat16, attention, f"{why}: training uses it")
    return Device(device, torch.float32, None, f"{why}; no native bfloat16 known here")


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":  # AVX512-BF16 or AMX; emulated bfloat16 is slower than float32
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def seed_everything(seed: int) -> None:
    """Seed torch's generators on every device; nothing here draws from another. Call it first."""
    torch.manual_seed(seed)


def join_ranks(name: str) -> str:
    """Under `torchrun`, join the other processes. Returns this one's device name, else `name`.

    NCCL between CUDA devices, gloo between CPUs.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return name
    if cuda := name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(name)
    dist.init_process_group("nccl" if cuda else "gloo")
    atexit.register(dist.destroy_process_group)
    return name


def ranks() -> tuple[int, int]:
    """This process's number and how many train together: (0, 1) without `torchrun`."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_ranks(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes.

    With gradients, it is what PyTorch's DistributedDataParallel does, in the open: that one also
    hides the transfer behind the backward pass, which pays from many or large GPUs on.
    """
    for tensor in tensors if dist.is_initialized() else ():
        dist.all_reduce(tensor)
