import pytest
import torch

from minirlhf.runtime import device


@pytest.fixture
def machine(monkeypatch):
    """Pretend that this machine has, or lacks, an accelerator."""

    def pretend(cuda=False, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


def test_auto_prefers_cuda_then_mps_then_cpu(machine):
    machine(cuda=True, mps=True)
    assert device.pick_device().device.type == "cuda"
    assert device.pick_device().dtype == torch.bfloat16
    machine(mps=True)
    picked = device.pick_device()
    assert (picked.device.type, picked.dtype) == ("mps", torch.float32)
    machine()
    assert device.pick_device().device.type == "cpu"
    assert "cpu" in device.pick_device().reason


def test_what_was_typed_is_taken(machine):
    machine(cuda=True, mps=True)
    for name in ("cpu", "mps", "cuda", "cuda:1"):
        assert device.pick_device(name).device == torch.device(name)


@pytest.mark.parametrize("name", ["mps", "cuda", "cuda:7", "cuda:x", "tpu", "cpu:1", ""])
def test_what_is_not_here_is_an_error_that_lists_what_is(machine, name):
    machine(cuda=name in ("cuda:7", "cuda:x"))
    with pytest.raises(ValueError, match="there is: .*cpu"):
        device.pick_device(name)


def test_bfloat16_on_a_cpu_follows_the_hardware(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda n=native: n)
        assert device.pick_device("cpu").dtype == dtype
