"""How each library trains a reward model: minirlhf, TRL's RewardTrainer, and a CrossEncoder.

All get the same encoder, the same pairs and the same number of epochs. Each comes in two ways:

as documented   what the library's own example does, with its defaults: ours too. TRL's defaults
                are batches of 8 at 1e-4, the CrossEncoder's batches of 8 at 5e-5 with dropout
tuned           the whole encoder on at most `max_length` tokens, 16 pairs a batch, no dropout, a
                learning rate that rises for a tenth of the steps and then falls, and whose peak was
                chosen on validation pairs

A ranking loss over the two responses of a pair is the Bradley-Terry loss: RankNet (Burges et al.
2005, section 3) is -log sigmoid(r_chosen - r_rejected), here with a logarithm of base 2. So all of
them minimise the same number, and differ in how a text is read, how the encoder's states become a
reward, and in the training.

Each function here returns the way to score texts with what was trained. Read next: `peers.py`.
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
WEIGHT_DECAY = 0.01  # of the tuned ways, as ours
TEXTS_AT_ONCE = 16  # when a peer scores, in batches of like length

# The rewards of N texts: (N prompts, N responses) -> N numbers.
Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


class Work(NamedTuple):
    """What every library gets."""

    settings: Settings  # data, fold, encoder, longest text, epochs and seed
    machine: Device
    path: str  # the folder of the encoder
    train: list[PreferencePair]
    validation: list[PreferencePair]
    test: list[PreferencePair]


def prepare(settings: Settings) -> Work:
    """The pairs of a fold, just as `train.py` trains on them and tests on them.

    Raises ValueError for data or a model that cannot be had.
    """
    seed_everything(settings.seed)
    if settings.dataset == "arithmetic":
        rows = arithmetic.generate(settings.limit or arithmetic.PAIRS)
    else:
        rows = load_rows(settings.dataset)
    pairs, _ = data.build_pairs(rows, settings.limit)
    parts = data.split_usable(pairs, settings.fold)

    # Pairs that became identical when they were cut are left out, for everybody.
    path = encoders.resolve(settings.model).path
    tokenizer = tokenizer_of(path)
    texts = data.number_texts(pairs)
    encoded = tokens.encode(texts.prompts, texts.responses, tokenizer, settings.max_length)
    parts = models.drop_identical_pairs(parts, texts, encoded.token_rows)
    machine = pick_device(settings.device)
    return Work(settings, machine, path, parts.train, parts.validation, parts.test)


def tokenizer_of(path: str):
    """The tokenizer of a model folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, trust_remote_code=False)


# ---- ours


def ours(work: Work, folder: Path) -> Scorer:
    """`python train.py` with its defaults, which use two thirds of the encoder's layers."""
    return train_py(work, folder, {})


def ours_tuned(work: Work, folder: Path, rate: float) -> Scorer:
    """The same with all layers and another learning rate."""
    return train_py(work, folder, {"depth": 1.0, "lr": rate})


def train_py(work: Work, folder: Path, more: dict) -> Scorer:
    """Run `train.py` in this process, with these settings more than those for everybody."""
    from minirlhf import score

    names = ("dataset", "limit", "fold", "model", "max_length", "epochs", "seed", "device")
    typed = {name: getattr(work.settings, name) for name in names}
    typed = {name: value for name, value in typed.items() if value is not None}
    typed |= more
    typed |= {"output": str(folder / "run"), "overwrite": True, "tracking_uri": "none"}
    runpy.run_path(str(TRAIN))["main"](to_flags(typed))
    return score.load(folder / "run", work.settings.device).score_texts


# ---- TRL


def trl(work: Work, folder: Path) -> Scorer:
    """TRL's RewardTrainer as its documentation shows it: text in, defaults for the rest.

    The columns are those of its "standard" format: prompt, chosen and rejected, which TRL joins.
    Three defaults cannot stay. Texts may be as long as the encoder can read, not 1,024 tokens; TRL
    leaves out pairs that are longer. A tokenizer of an encoder has no token for the end of a text,
    which TRL appends; the one that separates two texts takes its place. And an encoder that cannot
    recompute its activations, such as MPNet, keeps them.
    """
    from datasets import Dataset

    tokenizer = tokenizer_of(work.path)
    model = sequence_classifier(work.path)
    longest = encoders.longest_text(model, tokenizer)
    rows = [
        {"prompt": trl_prompt(pair.prompt), "chosen": pair.chosen, "rejected": pair.rejected}
        for pair in work.train
    ]
    options = {
        "max_length": longest,
        "eos_token": end_of_text(tokenizer),
        "gradient_checkpointing": model.supports_gradient_checkpointing,
    }
    train_with_trl(work, folder, model, tokenizer, Dataset.from_list(rows), options)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        texts = []
        for prompt, response in zip(prompts, responses, strict=True):
            texts.append(trl_prompt(prompt) + response + end_of_text(tokenizer))
        token_rows = tokenizer(texts, truncation=True, max_length=longest)["input_ids"]
        return rewards_of(model, token_rows, tokenizer)

    return score


def trl_prompt(prompt: str) -> str:
    """A prompt that an answer can be appended to, as one would write it for TRL."""
    return f"{prompt}\n\n"


def end_of_text(tokenizer) -> str:
    """The token that TRL is to put behind each text."""
    return tokenizer.eos_token or tokenizer.sep_token


def trl_tuned(work: Work, folder: Path, rate: float) -> Scorer:
    """TRL's RewardTrainer on our token ids, with our batches and schedule, at its own best rate."""
    from datasets import Dataset

    tokenizer = tokenizer_of(work.path)
    model = sequence_classifier(work.path)
    longest = work.settings.max_length

    def ids_of(prompts: Sequence[str], responses: Sequence[str]) -> list[list[int]]:
        encoded = tokens.encode(prompts, responses, tokenizer, longest)
        return [list(ids) for ids in encoded.token_rows]

    prompts = [pair.prompt for pair in work.train]
    chosen = ids_of(prompts, [pair.chosen for pair in work.train])
    rejected = ids_of(prompts, [pair.rejected for pair in work.train])
    longer = [max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True)]
    columns = {"chosen_ids": chosen, "rejected_ids": rejected, "length": longer}
    options = tuned_arguments(work, rate) | {
        "max_length": longest,
        "gradient_checkpointing": False,
        # This reads the column `length`, which must therefore not be removed as unused.
        "train_sampling_strategy": "group_by_length",
        "remove_unused_columns": False,
    }
    train_with_trl(work, folder, model, tokenizer, Dataset.from_dict(columns), options)

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        return rewards_of(model, ids_of(prompts, responses), tokenizer)

    return score


def sequence_classifier(path: str) -> nn.Module:
    """The encoder with transformers' own head for one number, in float32."""
    from transformers import AutoModelForSequenceClassification

    seed_everything(0)  # the head is drawn at random
    return AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype=torch.float32, trust_remote_code=False
    )


def train_with_trl(
    work: Work, folder: Path, model: nn.Module, tokenizer, rows, options: dict
) -> None:
    """Train a model with TRL's RewardTrainer, which logs and saves nothing."""
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(str(folder), **arguments_of_trainer(work), **options)
    trainer = RewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    print(f"TRL trains on {len(trainer.train_dataset)} of {len(work.train)} pairs")
    trainer.train()


@torch.no_grad()
def rewards_of(model: nn.Module, token_rows: Sequence, tokenizer) -> list[float]:
    """The rewards that a sequence classifier gives N texts, in float32."""
    model.eval()
    order = sorted(range(len(token_rows)), key=lambda i: len(token_rows[i]))
    rewards = torch.empty(len(token_rows))
    for start in range(0, len(order), TEXTS_AT_ONCE):
        picked = order[start : start + TEXTS_AT_ONCE]
        ids, mask = tokens.pad([token_rows[i] for i in picked], tokenizer.pad_token_id or 0)
        ids = ids.to(model.device)
        mask = mask.to(model.device)
        logits = model(input_ids=ids, attention_mask=mask).logits  # (N, 1)
        rewards[picked] = logits.squeeze(1).float().cpu()
    return rewards.tolist()


# ---- sentence-transformers


def cross_encoder(work: Work, folder: Path) -> Scorer:
    """A CrossEncoder as the documentation of its ranking loss shows it: defaults for the rest."""
    model = new_cross_encoder(work, {}, max_length=None)
    return train_cross_encoder(work, folder, model, {})


def cross_encoder_tuned(work: Work, folder: Path, rate: float) -> Scorer:
    """A CrossEncoder with our batches, schedule and longest text, at its own best rate."""
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = new_cross_encoder(work, no_dropout, work.settings.max_length)
    return train_cross_encoder(work, folder, model, tuned_arguments(work, rate))


def new_cross_encoder(work: Work, config: dict, max_length: int | None):
    """A CrossEncoder around the encoder, with a new head for one number."""
    from sentence_transformers import CrossEncoder

    seed_everything(work.settings.seed)
    return CrossEncoder(
        work.path,
        num_labels=1,
        max_length=max_length,
        config_kwargs=config,
        device=str(work.machine.device),
        trust_remote_code=False,
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

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        # Without a sigmoid, which makes equal rewards of large ones.
        found = model.predict(
            list(zip(prompts, responses, strict=True)),
            activation_fn=nn.Identity(),
            batch_size=TEXTS_AT_ONCE,
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


def tuned_arguments(work: Work, rate: float) -> dict:
    """What both trainers are told when they are tuned: what `train.py` does by default."""
    return {
        "per_device_train_batch_size": work.settings.batch_size,
        "learning_rate": rate,
        "weight_decay": WEIGHT_DECAY,
        "warmup_steps": 0.1,  # below 1 it is a share of all steps
        "bf16": work.machine.dtype == torch.bfloat16,
    }


AS_DOCUMENTED = {"ours": ours, "trl": trl, "cross-encoder": cross_encoder}
TUNED = {
    "ours-tuned": ours_tuned,
    "trl-tuned": trl_tuned,
    "cross-encoder-tuned": cross_encoder_tuned,
}


def train(name: str, work: Work, rate: float) -> Scorer:
    """Train in the way of that name; rate: the learning rate of the tuned ways."""
    with tempfile.TemporaryDirectory() as folder:
        if name in TUNED:
            return TUNED[name](work, Path(folder), rate)
        return AS_DOCUMENTED[name](work, Path(folder))
