"""Tiny models built on the spot, and no network: what every test shares."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers or datasets is imported
# Before torch is imported: the tests run side by side, and each process keeps to one core.
os.environ["OMP_NUM_THREADS"] = "1"

import json
from typing import NamedTuple

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedTokenizerFast

from minirlhf import data, model
from minirlhf.bundled.arithmetic import generate
from minirlhf.model import RewardModel
from minirlhf.runtime.device import seed_everything

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch):
    """Every test works in its own folder, keeps its caches there, and draws the same numbers."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIRLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def _tokenizer(cls: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"] if cls else ["<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [row[side] for row in generate(100) for side in ("prompt", "chosen", "rejected")]
    tokenizer.train_from_iterator(texts, trainer)
    if not cls:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    """A randomly initialised BERT of two layers, as a model folder."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=600,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    _tokenizer(cls=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory) -> str:
    """A randomly initialised GPT-2 of two layers; its tokenizer has no PAD token, as GPT-2's."""
    folder = tmp_path_factory.mktemp("decoder")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=2, n_positions=128)
    GPT2Model(config).save_pretrained(folder)
    _tokenizer(cls=False).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pairs_file(tmp_path):
    """120 bundled pairs as a .jsonl file."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in generate(120)))
    return str(path)


class Prepared(NamedTuple):
    """A model, and some pairs for it to learn from."""

    model: RewardModel
    token_rows: list
    part: data.Part


def prepare(approach: str, name: str, pairs: int = 8) -> Prepared:
    """A seeded model, and bundled pairs as one part."""
    seed_everything(0)
    built = model.build(approach, name, max_length=96)
    found, _ = data.build_pairs(generate(pairs))
    texts = data.number_texts(found)
    token_rows = built.encode(texts.prompts, texts.responses).token_rows
    return Prepared(built, token_rows, data.make_part(found, texts))


def stop_at(monkeypatch, target, name: str, call: int, error=KeyboardInterrupt) -> None:
    """The given call of a function raises."""
    real = getattr(target, name)
    calls = []

    def stopped(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(target, name, stopped)
