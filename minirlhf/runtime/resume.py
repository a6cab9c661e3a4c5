"""What a training holds between two epochs, saved so that a stopped run can go on.

    python train.py --resume runs/bt-finetune

A fine-tuning goes on after its last whole epoch, from the run folder's `state.safetensors`: the
weights, the best ones so far and what they say of the validation part, AdamW's moments, the order
of the pairs, the random state, and how many epochs went by without a better one. The learning rate
follows from the step. In one process on a CPU, with the same number of threads and the same
versions, the run ends with the weights, bit for bit, of one that was never stopped. A frozen run
starts over: its features are cached, and the rest takes seconds.
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from minirlhf.runtime.checkpoint import load_tensors, save_tensors

FORMAT = 6  # of the file; raised when what it holds changes


@dataclass
class TrainingState:
    """All that changes while a model trains, and so all that a resumed run needs back."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator  # draws the order of the pairs
    epoch: int = 0  # the last whole one
    lowest_loss: float = math.inf  # calibrated loss of the best epoch so far
    best_weights: dict[str, Tensor] = field(default_factory=dict)  # of that epoch
    temperature: float = 1.0  # fitted at that epoch
    validation: dict = field(default_factory=dict)  # loss, margins and rewards at that epoch
    epochs_waited: int = 0  # since that epoch
    step: int = 0  # updates so far
    seconds: float = 0.0  # that the run has taken, from its start on


def save_state(path: Path, state: TrainingState) -> None:
    """Write the state after an epoch, whole."""
    tensors = {"order": state.generator.get_state(), "random": torch.get_rng_state()}
    for name, weight in state.model.named_parameters():
        if weight.requires_grad:
            tensors[f"weight/{name}"] = weight
    for name, weight in state.best_weights.items():
        tensors[f"best/{name}"] = weight
    for name in ("margins", "rewards"):
        tensors[f"validation/{name}"] = state.validation[name]
    tensors |= moments_of(state.optimizer)
    numbers = {
        "format": FORMAT,
        "epoch": state.epoch,
        "step": state.step,
        "lowest_loss": state.lowest_loss,
        "temperature": state.temperature,
        "validation_loss": state.validation["loss"],
        "epochs_waited": state.epochs_waited,
        "seconds": state.seconds,
        "checksum": checksum(tensors),
    }
    save_tensors(path, tensors, numbers)


def load_state(path: Path, state: TrainingState) -> None:
    """Put back into `state` what was saved at `path`, if there is any.

    Raises ValueError if the file is damaged or of another version.
    """
    if not path.exists():
        return
    try:
        saved = load_tensors(path)
        tensors = saved.tensors
        numbers = saved.numbers
        if not isinstance(numbers, dict) or numbers["format"] != FORMAT:
            raise ValueError("it is of another version")
        if checksum(tensors) != numbers["checksum"]:
            raise ValueError("it has another checksum")
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be used ({error}); delete it, and the run starts over"
        ) from error

    state.epoch = numbers["epoch"]
    state.step = numbers["step"]
    state.lowest_loss = numbers["lowest_loss"]
    state.temperature = numbers["temperature"]
    state.epochs_waited = numbers["epochs_waited"]
    state.seconds = numbers["seconds"]
    state.model.load_state_dict(starting_with("weight/", tensors), strict=False)
    state.best_weights = starting_with("best/", tensors)
    state.validation = starting_with("validation/", tensors)
    state.validation["loss"] = numbers["validation_loss"]
    put_moments_back(state.optimizer, tensors)
    state.generator.set_state(tensors["order"])
    torch.set_rng_state(tensors["random"])


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments that AdamW keeps of each weight, as named tensors."""
    tensors = {}
    for number, moments in optimizer.state_dict()["state"].items():
        for name, moment in moments.items():
            tensors[f"moment/{number}/{name}"] = moment
    return tensors


def put_moments_back(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give an optimizer the moments that `moments_of` returned; other tensors are ignored."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, moment in starting_with("moment/", tensors).items():
        number, _, of_what = name.partition("/")
        moments.setdefault(int(number), {})[of_what] = moment
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def bytes_needed(model: nn.Module) -> int:
    """Room on the disk for a run: its model and, if the encoder learns, its state.

    The state holds what learns, the best of it, and two moments. While a file is replaced it is
    there twice, at four bytes a number.
    """
    numbers = 0
    for weight in model.parameters():
        copies_in_state = 4 if weight.requires_grad else 0
        numbers += weight.numel() * (1 + copies_in_state)
    return 2 * 4 * numbers


def starting_with(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start so, under the rest of their names."""
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def checksum(tensors: dict[str, Tensor]) -> str:
    """Hex digest of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        as_bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(as_bytes.numpy())
    return digest.hexdigest()
