"""Which device computes, in which precision, and why; and the seed.

Copy this file alone; it needs torch.

>>> seed_everything(7); a = torch.rand(1); seed_everything(7); bool(a == torch.rand(1))
True
>>> pick_device("cpu").device
device(type='cpu')
"""

from typing import NamedTuple

import torch


class Device(NamedTuple):
    """Where and how to compute, and the reason in words."""

    device: torch.device
    dtype: torch.dtype  # in which the encoder computes in training and for frozen features
    attention: str | None  # `attn_implementation` of transformers, None for its own choice
    reason: str

    @property
    def computes_in_float32(self) -> bool:
        """True where training and frozen features are as exact as scoring, which is in float32."""
        return self.dtype == torch.float32


def pick_device(name: str = "auto") -> Device:
    """Choose cuda, then mps, then cpu; or take the one that is named ("cuda:1" works).

    The encoder computes in bfloat16, in training and for frozen features, where the hardware
    multiplies it natively. That is a rule about the hardware, never a timing. The weights that
    learn, the optimiser, the head, the loss and scoring stay in float32. Raises ValueError, with a
    list of what there is, if the named device is not here.
    """
    available = available_devices()
    listed = ", ".join(available)
    if name == "auto":
        device = torch.device(available[0])
        reason = f"the best of: {listed}"
    elif is_here(name, available):
        device = torch.device(name)
        reason = "as asked"
    else:
        raise ValueError(f"no device {name!r} on this machine; there is: {listed}")

    if not has_bfloat16(device):
        return Device(device, torch.float32, None, f"{reason}; no native bfloat16 known here")
    # On a CPU the plain attention is the fast one in bfloat16: its matrix products are native,
    # those of the fused kernel are not.
    attention = "eager" if device.type == "cpu" else None
    reason = f"{reason}; bfloat16 is native: training uses it"
    return Device(device, torch.bfloat16, attention, reason)


def available_devices() -> list[str]:
    """The kinds of device of this machine, the best first."""
    available = []
    if torch.cuda.is_available():
        available.append("cuda")
    if torch.backends.mps.is_available():
        available.append("mps")
    return [*available, "cpu"]


def is_here(name: str, available: list[str]) -> bool:
    """True if the machine has the device of that name, such as "cpu", "cuda" or "cuda:1"."""
    kind, colon, index = name.partition(":")
    if kind not in available:
        return False
    if not colon:
        return True
    return kind == "cuda" and index.isdigit() and int(index) < torch.cuda.device_count()


def has_bfloat16(device: torch.device) -> bool:
    """True if the device multiplies bfloat16 natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def seed_everything(seed: int) -> None:
    """Seed torch's generators on every device; nothing here draws from another. Call it first."""
    torch.manual_seed(seed)
