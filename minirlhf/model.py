"""RewardModel: an encoder, a pooler and a head as one model, saved and loaded as one folder.

    ids, mask (N, T) --encoder--> hidden (N, T, D) --pool--> vector (N, D) --head--> reward (N,)

The encoder is either a `transformers` model whose hidden states we pool ourselves (bt-frozen and
bt-finetune), or a SentenceTransformer that pools and normalises as it was published (regression and
classification). With the default encoder and `--depth 1`, the vectors of bt-frozen are those of
regression before these are scaled to length 1. By default bt-frozen uses the lower two thirds of
the layers, and regression uses all of them. Read next: `loops.py`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from minirlhf import encoders, heads, pooling, tokens
from minirlhf.data import Parts, PreferencePair, Texts
from minirlhf.runtime import checkpoint, features, precision
from minirlhf.runtime.device import Device
from minirlhf.runtime.progress import Progress

FORMAT = 1  # of the model folder; raised when its layout changes
HEADS = {
    "regression": heads.MLPHead,
    "classification": heads.PairHead,
    "bt-frozen": heads.MLPHead,
    "bt-finetune": heads.LinearHead,
}
AS_PUBLISHED = "as published"  # the pooling of a SentenceTransformer

# How many padded tokens go through the encoder at once: on a CPU what its caches hold, on a GPU
# what keeps it busy. That of the CPU was measured: see experiments/README.md.
TOKENS_AT_ONCE = {"cpu": 1024, "other": 16384}

# How far padding may move the vectors of a text, as a share of their length. The order of float32
# sums moved them by 1.2e-6 at most in 25 architectures with random weights that read the mask.
# FNet, ConvBERT, Funnel, Nystromformer and YOSO do not, and moved them by 1.2e-3 to 1.4.
MOST_BY_PADDING = 1e-4


class RewardModel(nn.Module):
    """`model(ids, mask)` is the reward of each text, (N,) in float32.

    A classification has no reward of one text: give the vectors of two texts to its `head`.
    """

    def __init__(self, encoder: nn.Module, tokenizer, head: nn.Module, info: dict):
        """info: what `reward.json` holds, see `build`."""
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.head = head
        self.info = info
        self.pad_id = tokenizer.pad_token_id or 0  # any id will do, because the mask hides it

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """One vector for each text of a batch, in float32: (N, T), (N, T) -> (N, D)."""
        if self.info["pooling"] == AS_PUBLISHED:
            batch = {"input_ids": ids, "attention_mask": mask}
            return self.encoder(batch)["sentence_embedding"].float()
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (N, T, D)
        pool = pooling.POOLERS[self.info["pooling"]]
        return pool(hidden, mask)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The reward of each text of a batch: (N, T), (N, T) -> (N,)."""
        return self.head(self.embed(ids, mask))

    def rewards(self, token_rows: Sequence, progress: bool = False) -> Tensor:
        """The rewards of U token rows: (U,). Gradients flow if they are enabled."""
        return self.in_batches(self.forward, token_rows, progress=progress)

    def vectors(self, token_rows: Sequence, progress: bool = False) -> Tensor:
        """The vectors of U token rows: (U, D)."""
        return self.in_batches(self.embed, token_rows, progress=progress)

    def in_batches(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        token_rows: Sequence,
        tokens_at_once: int | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Apply `function(ids, mask)` to all token rows; the results in the order of the rows.

        Training, evaluation and scoring all pass through here. Rows of similar length go together,
        so that little of the work is padding. The result is (U,) or (U, D).
        """
        if tokens_at_once is None:
            kind = "cpu" if self.device.type == "cpu" else "other"
            tokens_at_once = TOKENS_AT_ONCE[kind]
        limit = self.info["max_length"]  # which the encoder can read; it may not read more
        lengths = [len(ids) for ids in token_rows]
        batches = tokens.length_batches(lengths, tokens_at_once)

        if progress:
            sizes = [len(batch) for batch in batches]
            batches = Progress(batches, sizes, "encoding", "texts")

        results = []
        order: list[int] = []  # the rows as they are computed
        for batch in batches:
            order += batch
            rows = [token_rows[i] for i in batch]
            ids, mask = tokens.pad(rows, self.pad_id, limit=limit)  # (N, T), (N, T)
            results.append(function(ids.to(self.device), mask.to(self.device)))

        place = torch.tensor(order).argsort().to(self.device)  # (U,) where each row's result is
        return torch.cat(results)[place]

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> tokens.Encoded:
        """The token rows of U texts, for training and scoring alike, and how many were cut."""
        if self.info.get("response_only"):
            prompts = [""] * len(prompts)
        return tokens.encode(prompts, responses, self.tokenizer, self.info["max_length"])

    def count_truncation(
        self, pairs: Sequence[PreferencePair], texts: Texts, encoded: tokens.Encoded
    ) -> dict[str, int]:
        """Counts for the report on the data.

        They are the texts, the texts that were cut, the questions that were lost, and the pairs
        whose two sides became identical.
        """
        questions = texts.prompts
        if self.info.get("response_only"):
            questions = [""] * len(questions)
        token_rows = encoded.token_rows
        max_length = self.info["max_length"]
        lost = tokens.count_lost_questions(
            questions, texts.responses, token_rows, self.tokenizer, max_length
        )
        apart = tokens.drop_identical_pairs(pairs, texts.text_id, token_rows)
        return {
            "texts": len(token_rows),
            "texts_cut": encoded.cut,
            "questions_lost": lost,
            "same_tokens": len(pairs) - len(apart),
        }

    def in_precision(self, dtype: torch.dtype) -> "RewardModel":
        """A model with the same head, and a copy of the encoder in `dtype`.

        For float32 it is this model itself, because that is the precision of its own weights.
        """
        if dtype == torch.float32:
            return self
        encoder = precision.copy_in(self.encoder, dtype)
        return RewardModel(encoder, self.tokenizer, self.head, self.info)


def drop_identical_pairs(parts: Parts, texts: Texts, token_rows: Sequence) -> Parts:
    """The parts without the pairs whose two sides became the same tokens."""
    kept = [tokens.drop_identical_pairs(pairs, texts.text_id, token_rows) for pairs in parts]
    return Parts(*kept)


# ---- a new model


def build(
    approach: str,
    name: str,
    pooler: str | None = None,
    max_length: int = 256,
    attention: str | None = None,
    device: torch.device | str = "cpu",
    depth: float = 1.0,
) -> RewardModel:
    """A new model for an approach: a pretrained encoder, and a head that prefers nothing yet.

    name: of the encoder, a folder or a hub id.
    pooler: "mean", "last" or "cls", for the two Bradley-Terry approaches. None takes "last" for a
        decoder and "mean" for an encoder.
    max_length: tokens of a text; attention: `attn_implementation` of transformers.
    depth: the share of the encoder's layers that is used, the lowest ones, for the two
        Bradley-Terry approaches.
    Raises ValueError if the encoder cannot be loaded, cannot read `max_length` tokens, or reads
    padding as if it were text.
    """
    if approach in ("regression", "classification"):
        encoder, tokenizer = encoders.load_sentence_transformer(name, device)
        pooler = AS_PUBLISHED
        size = encoders.embedding_size(encoder)
    else:
        encoder, tokenizer = encoders.load_auto(name, attention, depth)
        choose_what_learns(encoder, approach)
        pooler = pooler or ("last" if encoders.is_causal(encoder) else "mean")
        size = encoders.state_size(encoder)
    check_length(max_length, encoder, tokenizer, name)

    info = {
        "format": FORMAT,
        "approach": approach,
        "pooling": pooler,
        "max_length": max_length,
        "size": size,  # D
        "temperature": 1.0,  # until a loop fits it, at the best epoch
        "response_only": False,  # train.py sets it; `encode` then leaves the prompts out
    }
    head = HEADS[approach](size)
    model = RewardModel(encoder, tokenizer, head, info).to(device)
    check_padding(model, name)
    return model


def check_length(max_length: int, encoder: nn.Module, tokenizer, name: str) -> None:
    """Raise ValueError if the encoder of that name cannot read `max_length` tokens."""
    limit = encoders.longest_text(encoder, tokenizer)
    if max_length > limit:
        raise ValueError(
            f"max-length {max_length} is more than {name!r} can read, {limit} tokens"
        )


def check_padding(model: RewardModel, name: str) -> None:
    """Raise ValueError if padding changes what the encoder makes of a text.

    Some encoders have no use for a mask, so that padding is text to them: the Fourier transforms of
    FNet, the convolutions of ConvBERT. Their rewards would depend on the batch a text is in.
    """
    change = change_by_padding(model)
    if not change <= MOST_BY_PADDING:  # NaN is refused, too
        raise ValueError(
            f"{name!r} reads padding as if it were text, which changes the text's vectors by "
            f"{change:.1e} of their length, so a reward would depend on the batch; give another"
        )


@torch.no_grad()
def change_by_padding(model: RewardModel) -> float:
    """How far padding moves the vectors of a text, as a share of their length."""
    limit = model.info["max_length"]
    (ids,) = model.encode(["What is 2 + 2?"], ["4"]).token_rows
    ids = ids[: limit // 2]  # so that there is room for padding
    alone = text_vectors(model, *tokens.pad([ids], model.pad_id, multiple=1))
    more = len(ids) + 64
    padded = text_vectors(model, *tokens.pad([ids], model.pad_id, multiple=more, limit=limit))
    return ((alone - padded).norm() / alone.norm()).item()


def text_vectors(model: RewardModel, ids: Tensor, mask: Tensor) -> Tensor:
    """What the encoder makes of a text: the states of its real tokens, or one published vector."""
    ids = ids.to(model.device)
    mask = mask.to(model.device)
    if model.info["pooling"] == AS_PUBLISHED:
        return model.embed(ids, mask)  # (1, D)
    hidden = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (1, T, D)
    return hidden[mask.bool()].float()  # (real tokens, D)


def choose_what_learns(encoder: nn.Module, approach: str) -> None:
    """Say which weights of a `transformers` model get a gradient.

    In bt-finetune all of them do but the word embeddings. Those are half of a small encoder's
    weights, a batch touches few of them, and a small data set says nothing about most words.
    No cost of leaving them alone was seen on validation (experiments/README.md).
    Raises ValueError if the model has no table of word embeddings.
    """
    for name, weight in encoder.named_parameters():
        never_read = "pooler." in name
        weight.requires_grad_(approach == "bt-finetune" and not never_read)
    try:
        encoder.get_input_embeddings().requires_grad_(False)
    except NotImplementedError as error:  # CANINE, which reads characters
        kind = type(encoder).__name__
        raise ValueError(f"a {kind} has no table of word embeddings; give another") from error


def shape_of(model: RewardModel) -> str:
    """How many layers the encoder has, and how its states become one vector, in words."""
    pooler = model.info["pooling"]
    if pooler == AS_PUBLISHED:
        return "the vectors are those of the published encoder"
    return f"layers: {model.encoder.config.num_hidden_layers}, pooling: {pooler}"


def describe_encoder(model: RewardModel, name: str) -> dict:
    """What `config.json` says of a new model's encoder, and how many parameters are trained."""
    return {
        "name": name,
        "source": encoders.resolve(name).reason,
        "sha256": encoders.fingerprint(model.encoder.state_dict()),
        "trained": sum(weight.numel() for weight in precision.trained(model)),
    }


# ---- frozen vectors


def frozen_features(
    model: RewardModel, token_rows: Sequence, device: Device, keep: bool = True
) -> features.Features:
    """The vectors (U, D) of token rows under an encoder that does not learn.

    device: where, and in which precision, they are computed.
    keep: look for them in the cache on disk, and leave them there.
    """
    working_copy = model.in_precision(device.dtype)
    configs = [module.config for module in model.encoder.modules() if hasattr(module, "config")]
    depends_on = {
        "weights": encoders.fingerprint(model.encoder.state_dict()),
        "pooling": model.info["pooling"],
        "pooling code": encoders.sha256(pooling.__file__),
        "architecture": f"{model.encoder} {configs}",
        "how": f"{device.device} {device.dtype} {device.attention}",
    }

    def compute(some_rows: Sequence) -> Tensor:
        with torch.no_grad():
            return working_copy.vectors(some_rows, progress=True)

    folder = features.cache_folder() if keep else None
    return features.cached(compute, token_rows, folder, **depends_on, **encoders.versions())


# ---- saved and loaded


def save(model: RewardModel, folder: Path) -> None:
    """Write encoder, tokenizer, head and `reward.json` to a folder that needs nothing else."""
    with checkpoint.whole_folder(folder) as temporary:
        if model.info["pooling"] == AS_PUBLISHED:
            model.encoder.save_pretrained(str(temporary / "encoder"), create_model_card=False)
        else:
            model.encoder.save_pretrained(temporary / "encoder")
            model.tokenizer.save_pretrained(temporary / "encoder")
        checkpoint.save_tensors(temporary / "head.safetensors", model.head.state_dict())
        checkpoint.write_json(temporary / "reward.json", model.info)


def load(folder: Path, device="cpu", attention: str | None = None) -> RewardModel:
    """Rebuild what `save` wrote; on the same device the rewards are equal bit for bit.

    Raises ValueError if the folder is no model folder or of a newer format.
    """
    if not (folder / "reward.json").is_file():
        raise ValueError(f"{folder} holds no trained model (no reward.json)")
    try:
        return read_model(folder, device, attention)
    except Exception as error:  # a stranger's folder may hold anything
        raise ValueError(f"{folder} holds no readable reward model: {error!r}"[:300]) from error


def read_model(folder: Path, device, attention: str | None) -> RewardModel:
    """As `load`, with whatever error the reading raises."""
    info = {"temperature": 1.0} | checkpoint.read_json(folder / "reward.json")
    if info["format"] > FORMAT:
        raise ValueError(f"format {info['format']} is newer than {FORMAT}; update minirlhf")
    weights = checkpoint.load_tensors(folder / "head.safetensors").tensors
    check_head_size(info, weights)
    head = HEADS[info["approach"]](info["size"])
    head.load_state_dict(weights)
    path = f"{folder}/encoder"
    if info["pooling"] == AS_PUBLISHED:
        encoder, tokenizer = encoders.load_sentence_transformer(path, device)
    else:
        encoder, tokenizer = encoders.load_auto(path, attention)
    check_length(info["max_length"], encoder, tokenizer, path)
    model = RewardModel(encoder, tokenizer, head, info).to(device).eval()
    check_that_parts_fit(model)
    return model


def check_head_size(info: dict, weights: dict[str, Tensor]) -> None:
    """Raise RuntimeError if the weights of a head are not of the size that `reward.json` says.

    It may say anything in a stranger's folder, so no memory is taken before the size is known to be
    that of the file: on the device "meta" there are shapes and no numbers.
    """
    with torch.device("meta"):
        head = HEADS[info["approach"]](info["size"])
    head.load_state_dict({name: weight.to("meta") for name, weight in weights.items()})


def check_that_parts_fit(model: RewardModel) -> None:
    """Raise an error if encoder, tokenizer and head do not belong together."""
    one_text = model.encode(["a"], ["b"]).token_rows
    with torch.no_grad():
        vector = model.vectors(one_text)
    expected = (1, model.info["size"])
    if vector.shape != expected:
        raise ValueError(f"the encoder gives vectors of shape {vector.shape}, not {expected}")
