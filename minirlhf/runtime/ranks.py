"""Several processes that train one model together, under `torchrun`.

    torchrun --nproc-per-node 4 train.py --approach bt-finetune

Each process reads its share of a batch, and the gradients are summed, so that the step is that of
one process with the whole batch. Only the first process prints and writes (`run_folder.py`).
There may be fewer pairs or texts than processes: some then have nothing to read and sum zeros.
Without `torchrun` there is one process, and every function here does nothing or hands back what it
was given.

Copy this file alone; it needs torch.

>>> rank(), count(), my_share([1, 2, 3])
(0, 1, [1, 2, 3])
"""

import atexit
import os
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist


def join(device: str) -> str:
    """Under `torchrun`, join the other processes. Returns the name of this one's device.

    The processes talk by NCCL between CUDA devices, and by gloo between CPUs.
    """
    if "LOCAL_RANK" not in os.environ or dist.is_initialized():
        return device
    on_cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_cuda:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_cuda else "gloo")
    atexit.register(dist.destroy_process_group)
    return device


def rank() -> int:
    """The number of this process: 0 for the first, or the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def my_share(items: Sequence) -> Sequence:
    """This process's share of a batch: neighbours, because neighbouring pairs share responses.

    It may be empty if there are fewer items than processes.
    """
    first = len(items) * rank() // count()
    end = len(items) * (rank() + 1) // count()
    return items[first:end]


def sum_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if not dist.is_initialized():
        return
    for tensor in tensors:
        dist.all_reduce(tensor)


def sum_gradients(weights: Iterable[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes.

    This is what PyTorch's DistributedDataParallel does, in the open. That one also hides the
    transfer behind the backward pass, which pays from many or large GPUs on.
    """
    if not dist.is_initialized():
        return
    for weight in weights:
        if weight.grad is None:  # this process had no pair in the batch
            weight.grad = torch.zeros_like(weight)
        dist.all_reduce(weight.grad)


def every_nth(items):
    """This process's share of many rows of unlike length: each takes every n-th of them.

    Of a tensor it is a view, which can be written to.
    """
    return items[rank() :: count()]
