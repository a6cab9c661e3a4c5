"""The work that every variant of the benchmark gets: the same pairs, token ids, encoder and device.

`benchmark_training.py` and `benchmark_memory.py` build on it. Read next: `benchmark_training.py`.
"""

import math
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minirlhf import data
from minirlhf import model as models
from minirlhf.bundled.arithmetic import generate
from minirlhf.runtime.device import Device, pick_device, seed_everything
from minirlhf.runtime.files import load_rows
from minirlhf.settings import Settings

FEW = (
    16  # pairs in the notebook's batch and in the turn that warms up; texts read one at a time
)


class Work(NamedTuple):
    """What every variant gets: N pairs of U distinct texts, and how to compute."""

    settings: Settings  # those of fine-tuning; also which encoder, and how many tokens at most
    machine: Device
    prompts: list[str]  # (U,)
    responses: list[str]  # (U,)
    token_rows: list  # (U,) token ids
    operations: Tensor  # (U,) of a forward of each text, see `forward_operations`
    part: data.Part  # of N pairs


class Run(NamedTuple):
    """What one variant did in one turn."""

    value: float  # NaN if there is none, and then the unit says why
    unit: str
    speed: float = 0.0  # operations a second for real tokens; 0 where that has no meaning
    dtype: torch.dtype | None = None
    loss: float = math.nan  # mean of the epoch


def prepare(settings: Settings) -> Work:
    """Read the first `settings.limit` pairs of the data set and turn them into token ids.

    Raises ValueError for data or a model that cannot be had.
    """
    silence_libraries()
    seed_everything(0)
    if settings.dataset == "arithmetic":
        rows = generate(settings.limit)
    else:
        rows = load_rows(settings.dataset)
    pairs, _ = data.build_pairs(rows)
    pairs = data.usable(pairs)[: settings.limit]
    texts = data.number_texts(pairs)

    machine = pick_device(settings.device)
    model = new_model("bt-finetune", settings, machine)
    encoded = model.encode(texts.prompts, texts.responses)
    lengths = torch.tensor([len(ids) for ids in encoded.token_rows])
    return Work(
        settings=settings,
        machine=machine,
        prompts=texts.prompts,
        responses=texts.responses,
        token_rows=encoded.token_rows,
        operations=forward_operations(model.encoder, lengths),
        part=data.make_part(pairs, texts),
    )


def silence_libraries() -> None:
    """Let no progress bar or warning of a library come between the lines of the table."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def new_model(approach: str, settings: Settings, machine: Device) -> models.RewardModel:
    """A new model for an approach, of the encoder and maximum length in `settings`.

    All layers are used, as the other libraries do.
    """
    return models.build(
        approach,
        settings.model,
        max_length=settings.max_length,
        attention=machine.attention,
        device=machine.device,
        depth=1.0,
    )


def without_sharing(work: Work) -> Work:
    """The same N pairs as 2N texts: no two pairs share a response. The chosen come first."""
    count = len(work.part.chosen)
    texts = torch.cat([work.part.chosen, work.part.rejected])  # (2N,)
    part = work.part._replace(
        chosen=torch.arange(count),
        rejected=torch.arange(count, 2 * count),
        prompt=torch.arange(count),
    )
    return work._replace(
        token_rows=[work.token_rows[i] for i in texts.tolist()],
        operations=work.operations[texts],
        part=part,
    )


def forward_operations(encoder: nn.Module, lengths: Tensor) -> Tensor:
    """Floating-point operations of one forward of texts of T tokens without padding: (U,) -> (U,).

    Each weight of a linear layer costs 2 operations a token. In each layer the attention's scores
    cost 2 T T D operations, and its weighted sums as many. Embeddings, normalisation and a pooler
    are left out. A causal mask is not credited, because most kernels compute both halves.
    """
    weights = 0
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Embedding) or "pooler" in name:
            continue
        weight = getattr(
            module, "weight", None
        )  # not of nn.Linear alone: GPT-2 has its own class
        if weight is not None and weight.dim() == 2:
            weights += weight.numel()

    lengths = lengths.double()
    layers = encoder.config.num_hidden_layers
    size = encoder.config.hidden_size  # D
    linear = 2 * weights * lengths
    attention = 4 * layers * size * lengths**2
    return linear + attention


def now(device: torch.device) -> float:
    """The time in seconds, after the device has done all that it was told to do."""
    getattr(torch, device.type).synchronize()
    return time.perf_counter()
