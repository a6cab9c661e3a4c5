"""How each library trains a reward model: minirlhf, TRL's RewardTrainer, and a CrossEncoder.

All get the same encoder, pairs and number of epochs. Each comes in two ways:

as documented   what the library's own example does, with its defaults. TRL's are batches of 8 at
                1e-4, in bfloat16, with recomputed activations and no dropout. The CrossEncoder's
                are batches of 8 at 5e-5, in float32, with dropout
tuned           all layers, at most `max_length` tokens, as many pairs a batch as `train.py` has, no
                dropout, and a learning rate that rises to `lr` for a tenth of the steps and then
                falls to 0

Some things stay different. Ours pools the mean of all tokens, and the others read the first one, as
transformers' classifiers do. Ours keeps its epoch with the lowest validation loss, and the others
keep their last. Ours leaves the word embeddings as they are. It puts the pairs of one prompt into
one batch, while TRL (tuned) batches by length, and the CrossEncoder at random. The CrossEncoder
reads question and answer as two texts, of which the tokenizer cuts the longer one. The others use
no weight decay for biases and norms. All score in float32.

All of them minimise the Bradley-Terry loss. RankNet (Burges et al. 2005, section 3) on a list of
two responses is -log sigmoid(r_chosen - r_rejected). sentence-transformers takes the logarithm of
base 2, which makes the loss 1.44 times as large.

Each way is called with the work and a folder for its files, and returns a function that scores
texts with what was trained. Read next: `peers.py`.
"""

import runpy
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from minirlhf import data, encoders, tokens
from minirlhf import model as models
from minirlhf.bundled import arithmetic
from minirlhf.data import PreferencePair
from minirlhf.runtime.device import Device, pick_device, seed_everything
from minirlhf.runtime.files import load_rows
from minirlhf.settings import Settings, to_flags

TRAIN = Path(__file__).parents[2] / "train.py"
TOKENS_AT_ONCE = 2048  # when a model of TRL scores
SHARED = ("dataset", "limit", "model", "max_length", "epochs", "seed", "device")  # settings
FLOAT32 = {"dtype": torch.float32, "use_safetensors": True}  # of the weights that are loaded

# The rewards of N texts: (N prompts, N responses) -> N numbers.
Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class Work(NamedTuple):
    """What every library gets."""

    settings: Settings  # the tuned ways learn as these say, the others only as long
    machine: Device
    data: str  # checksum of all pairs
    encoder: str  # its folder or hub id
    train: list[PreferencePair]
    validation: list[PreferencePair]
    test: list[PreferencePair]


def prepare(settings: Settings) -> Work:
    """The pairs of a fold, just as `train.py` trains on them and tests on them.

    Raises ValueError for data or an encoder that cannot be had, or that cannot read `max_length`
    tokens.
    """
    if settings.dataset == "arithmetic":
        rows = arithmetic.generate(settings.limit or arithmetic.PAIRS)
    else:
        rows = load_rows(settings.dataset)
    pairs, counts = data.build_pairs(rows, settings.limit)
    parts = data.split_usable(pairs, settings.fold)

    # Pairs whose sides become the same tokens when they are cut are left out, for everybody.
    encoder, tokenizer = encoders.load_auto(settings.model)
    models.check_length(settings.max_length, encoder, tokenizer, settings.model)
    texts = data.number_texts(pairs)
    encoded = tokens.encode(texts.prompts, texts.responses, tokenizer, settings.max_length)
    parts = models.drop_identical_pairs(parts, texts, encoded.token_rows)
    return Work(
        settings=settings,
        machine=pick_device(settings.device),
        data=counts["sha256"],
        encoder=encoders.resolve(settings.model).path,
        train=parts.train,
        validation=parts.validation,
        test=parts.test,
    )


def tokenizer_of(work: Work):
    """The encoder's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(work.encoder, trust_remote_code=False)


# ---- ours


def ours(work: Work, folder: Path) -> Scorer:
    """`python train.py` with its defaults, which use two thirds of the encoder's layers."""
    return train_py(work, folder)


def ours_tuned(work: Work, folder: Path) -> Scorer:
    """The same with all layers and another learning rate."""
    return train_py(work, folder, depth=1.0, lr=work.settings.lr)


def train_py(work: Work, folder: Path, **more: float) -> Scorer:
    """Run `train.py` in this process. more: settings beside those that all ways share."""
    from minirlhf import score

    typed = {name: getattr(work.settings, name) for name in (*SHARED, "fold")}
    typed = {name: value for name, value in typed.items() if value is not None}
    typed |= more
    typed |= {"output": str(folder / "run"), "tracking_uri": "none"}
    runpy.run_path(str(TRAIN))["main"](to_flags(typed))
    return score.load(folder / "run", work.settings.device).score_texts


# ---- TRL


def trl(work: Work, folder: Path) -> Scorer:
    """TRL's RewardTrainer as its documentation shows it: text in, defaults for the rest.

    The columns are those of its "standard" format; TRL puts the prompt before each response. Three
    defaults are changed. `max_length` is what the encoder can read, since TRL leaves out training
    pairs that are longer. TRL ends each text with the tokenizer's end-of-text token; an encoder's
    often has none, and then its separator is used. Activations are not recomputed where the encoder
    cannot do so, such as MPNet.
    """
    from datasets import Dataset

    tokenizer = tokenizer_of(work)
    model = sequence_classifier(work)
    longest = encoders.longest_text(model, tokenizer)
    end = tokenizer.eos_token or tokenizer.sep_token
    rows = []
    for pair in work.train:
        prompt = f"{pair.prompt}\n\n"
        rows.append({"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected})
    options = {
        "max_length": longest,
        "eos_token": end,
        "gradient_checkpointing": model.supports_gradient_checkpointing,
    }
    train_with_trl(work, folder, model, tokenizer, Dataset.from_list(rows), options)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        texts = []
        for prompt, response in zip(prompts, responses, strict=True):
            texts.append(f"{prompt}\n\n{response}{end}")
        token_rows = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        return rewards_of(model, token_rows, tokenizer, longest)

    return score


def trl_tuned(work: Work, folder: Path) -> Scorer:
    """TRL's RewardTrainer on our token ids, with batches and a schedule like ours."""
    from datasets import Dataset

    tokenizer = tokenizer_of(work)
    model = sequence_classifier(work, attn_implementation=work.machine.attention)
    longest = work.settings.max_length

    def ids_of(prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        encoded = tokens.encode(prompts, responses, tokenizer, longest)
        return [list(ids) for ids in encoded.token_rows]

    prompts = [pair.prompt for pair in work.train]
    chosen = ids_of(prompts, [pair.chosen for pair in work.train])
    rejected = ids_of(prompts, [pair.rejected for pair in work.train])
    longer = [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    columns = {"chosen_ids": chosen, "rejected_ids": rejected, "length": longer}
    options = tuned_arguments(work) | {
        "max_length": longest,
        "gradient_checkpointing": False,
        # This reads the column `length`, which must therefore not be removed as unused.
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": False,
    }
    train_with_trl(work, folder, model, tokenizer, Dataset.from_dict(columns), options)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return rewards_of(model, ids_of(prompts, responses), tokenizer, longest)

    return score


def sequence_classifier(work: Work, **options) -> nn.Module:
    """The encoder with transformers' own head for one number, in float32."""
    from transformers import AutoModelForSequenceClassification

    seed_everything(work.settings.seed)  # the head is drawn at random
    return AutoModelForSequenceClassification.from_pretrained(
        work.encoder, num_labels=1, trust_remote_code=False, **FLOAT32, **options
    )


def train_with_trl(
    work: Work, folder: Path, model: nn.Module, tokenizer, rows, options: dict
) -> None:
    """Train a model with TRL's RewardTrainer, which saves nothing.

    Its losses are printed, and so is how many pairs it left out.
    """
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(str(folder), **arguments_of_trainer(work), **options)
    trainer = RewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    left_out = len(work.train) - len(trainer.train_dataset)
    print(f"TRL leaves out {left_out} of {len(work.train)} training pairs, which are too long")
    trainer.train()
    score_in_float32(trainer)


def score_in_float32(trainer) -> None:
    """Take off the model what the trainer put on it: a forward that computes in bfloat16.

    It would stay after training, and round the rewards so that many of them are equal.
    """
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


@torch.no_grad()
def rewards_of(model: nn.Module, token_rows: Sequence, tokenizer, longest: int) -> list[float]:
    """The rewards that a sequence classifier gives N texts of at most `longest` tokens."""
    model.eval()
    lengths = [len(ids) for ids in token_rows]
    rewards = torch.empty(len(token_rows))
    for picked in tokens.length_batches(lengths, TOKENS_AT_ONCE):
        rows = [token_rows[i] for i in picked]
        ids, mask = tokens.pad(rows, tokenizer.pad_token_id or 0, limit=longest)
        ids = ids.to(model.device)
        mask = mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits  # (N, 1)
        rewards[picked] = logits.squeeze(1).float().cpu()
    return rewards.tolist()


# ---- sentence-transformers


def cross_encoder(work: Work, folder: Path) -> Scorer:
    """A CrossEncoder as the documentation of its ranking loss shows it: defaults for the rest."""
    return train_cross_encoder(work, folder, new_cross_encoder(work), {})


def cross_encoder_tuned(work: Work, folder: Path) -> Scorer:
    """A CrossEncoder without dropout, with batches and a schedule like ours.

    Of a text that is too long it loses the beginning, as ours does, and not the end.
    """
    model = new_cross_encoder(
        work,
        max_length=work.settings.max_length,
        attn_implementation=work.machine.attention,
    )
    model.tokenizer.truncation_side = "left"
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return train_cross_encoder(work, folder, model, tuned_arguments(work))


def new_cross_encoder(work: Work, max_length: int | None = None, **options):
    """A CrossEncoder around the encoder, with a new head for one number, in float32."""
    from sentence_transformers import CrossEncoder

    seed_everything(work.settings.seed)  # the head is drawn at random
    return CrossEncoder(
        work.encoder,
        num_labels=1,
        max_length=max_length,
        device=str(work.machine.device),
        trust_remote_code=False,
        model_kwargs=FLOAT32 | options,
    )


def train_cross_encoder(work: Work, folder: Path, model, options: dict) -> Scorer:
    """Train a CrossEncoder with RankNet on lists of two responses, the chosen one first."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import (
        CrossEncoderTrainer,
        CrossEncoderTrainingArguments,
    )
    from sentence_transformers.cross_encoder.losses import RankNetLoss

    rows = Dataset.from_dict(
        {
            "query": [pair.prompt for pair in work.train],
            "docs": [[pair.chosen, pair.rejected] for pair in work.train],
            "labels": [[1, 0]] * len(work.train),
        }
    )
    arguments = CrossEncoderTrainingArguments(
        str(folder), **arguments_of_trainer(work), **options
    )
    trainer = CrossEncoderTrainer(model, arguments, train_dataset=rows, loss=RankNetLoss(model))
    trainer.train()
    score_in_float32(trainer)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        # The default sigmoid would turn all large rewards into 1.
        found = model.predict(
            list(zip(prompts, responses, strict=True)),
            activation_fn=nn.Identity(),
            show_progress_bar=False,
        )
        return found.tolist()

    return score


# ---- for both trainers of Hugging Face


def arguments_of_trainer(work: Work) -> dict:
    """What both trainers are told in both ways: how long to train, and to save nothing."""
    return {
        "num_train_epochs": work.settings.epochs,
        "seed": work.settings.seed,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": work.machine.device.type == "cpu",
    }


def tuned_arguments(work: Work) -> dict:
    """What both trainers are told when they are tuned: what `train.py` does."""
    return {
        "per_device_train_batch_size": work.settings.batch_size,
        "learning_rate": work.settings.lr,
        "weight_decay": work.settings.weight_decay,
        "warmup_steps": work.settings.warmup,  # below 1 it is a share of all steps
        "bf16": work.machine.dtype == torch.bfloat16,
    }


AS_DOCUMENTED = {"ours": ours, "trl": trl, "cross-encoder": cross_encoder}
TUNED = {
    "ours-tuned": ours_tuned,
    "trl-tuned": trl_tuned,
    "cross-encoder-tuned": cross_encoder_tuned,
}
WAYS = AS_DOCUMENTED | TUNED


def train(name: str, work: Work) -> Scorer:
    """Train in the way of that name."""
    with tempfile.TemporaryDirectory() as folder:
        return WAYS[name](work, Path(folder))
