"""A trained run as a model folder of another library, which then needs nothing of minirlhf.

    python -m minirlhf export runs/bt-frozen OUT
    python -m minirlhf export runs/bt-finetune OUT --format sequence-classification

Exact means: the other library gives `minirlhf.score`'s rewards, up to the order of float32 sums.
Two forms can be exact.

    sentence-transformers     every run with a reward: regression, bt-frozen, bt-finetune. Its own
                              pooling has our three; a head is one or three Dense modules.
    sequence-classification   a decoder, pooled at the last token, under a linear head: what
                              bt-finetune makes of a GPT-2, Llama or Qwen. It is the form that
                              TRL, RewardBench and vLLM load (these three were not tried).

What has no exact form is refused with the reason, for an almost right reward model is worse than
none: nobody would notice. So the tool, too, loads what it wrote with the other library and compares
rewards before OUT takes its name. Exit code: 0, 1 if they differ (OUT is then not written), 2 for
bad input and what is refused.

Neither form renders a prompt and a response: feed the rendered text. OUT's README.md writes the
template out, with code to copy. The tokenizer is saved such that both libraries cut long texts as
training did.

What to copy: `dense_modules`, to move a standardisation into layers; `to_classifier`'s care for the
PAD token. What is left out: lower precision (the file is float32) and the temperature, which
`Scorer.probability` reads and no other library knows.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from minirlhf import encoders, heads, score, tokens
from minirlhf.bundled.arithmetic import generate
from minirlhf.model import RewardModel
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line

# Of the spread of the rewards. float32 in another order of sums: up to 2e-6 in trained models.
# More where vectors hardly differ and the head, by dividing by their std, enlarges the last bit of
# float32: an untrained BERT's [CLS], of std mean / 400, gave 1e-3 between two kinds of attention.
SAME = 1e-4
POOLING = {"mean": "mean", "last": "lasttoken", "cls": "cls"}  # ours -> sentence-transformers'

README = """# A reward model as {form}

Written by `python -m minirlhf export` from a {approach} run.
Tried with transformers {versions[transformers]} and sentence-transformers
{versions[sentence-transformers]}.
To load it, in this folder:

```python
{code}
```

The number after `#` is what minirlhf gives. It is a raw reward: no sigmoid, no scaling.
{meaning}

The text to feed is the whole of this, filled in:

```text
{template}
```

{notes}A text of more than {max_length} tokens is cut from the left, as in training.
"""
MEANING = {
    True: "It lies on the scale of the ratings that the model was trained on.",
    False: "By itself it means nothing; what counts is how two responses to one prompt differ.",
}
CODE = {
    "sentence-transformers": """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
text = {0!r}
print(model.encode([text])[0, 0])  # {1:.4f}""",
    "sequence-classification": """from transformers import AutoModelForSequenceClassification
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".")
text = {0!r}
how = {{"padding": True, "truncation": True, "add_special_tokens": {special}}}
batch = tokenizer([text], return_tensors="pt", **how)
print(model(**batch).logits[0, 0].item())  # {1:.4f}""",
}
CHAT = """It is what the tokenizer's `apply_chat_template` makes of a user's and an assistant's turn
with `tokenize=False, date_string="1 January 2025"`. It holds its special tokens: none are added.

"""
RESPONSE_ONLY = "The model was trained with `--response-only`: it never saw a prompt.\n\n"


def refusal(model: RewardModel, form: str) -> str | None:
    """Why the model has no exact form of that name; None if it has one."""
    if model.info["approach"] == "classification":
        return "a classification compares two responses, so there is no score to export"
    if form == "sentence-transformers":
        return None
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as CLASSIFIERS

    where, config = "AutoModelForSequenceClassification", model.encoder.config
    if not isinstance(model.head, heads.LinearHead):
        return f"a {model.info['approach']} head has two layers, that of {where} one"
    if not encoders.is_causal(model.encoder):
        return f"{config.model_type} is an encoder, to which {where} gives layers that ours lacks"
    if model.info["pooling"] != "last":
        return f"{where} reads a decoder's last token; this one pools by {model.info['pooling']}"
    if type(config) not in CLASSIFIERS:
        return f"transformers has no {where} for {config.model_type}"
    return None


def dense_modules(head: nn.Module) -> list[nn.Module]:
    """The head as sentence-transformers' Dense modules: (N, D) -> (N, 1).

    A LinearHead is one. An MLPHead is three: x - mean, as an identity matrix with a bias; the
    hidden layer with 1/std in its weights; the output layer with scale and shift. All is computed
    in float64 and stored in float32. Dense's default activation is tanh, hence the nn.Identity.

    With the mean in the hidden layer's bias two would do, and (D, D) numbers be saved. But float32
    would then subtract large numbers from each other: for vectors whose mean is 10 times their
    deviation, as frozen ones may be, off by 3e-5 of a reward; so it is 3e-6, whatever the mean.
    """
    from sentence_transformers.sentence_transformer.modules import Dense

    def dense(activation: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Module:
        start = [None if part is None else part.detach().float() for part in (weight, bias)]
        return Dense(weight.shape[1], weight.shape[0], bias is not None, activation, *start)

    if isinstance(head, heads.LinearHead):
        return [dense(nn.Identity(), head.output.weight)]
    head = copy.deepcopy(head).double()
    hidden, out, scale = head.hidden, head.output, head.scale
    return [
        dense(nn.Identity(), torch.eye(len(head.mean)), -head.mean),
        dense(nn.GELU(), hidden.weight / head.std, hidden.bias),
        dense(nn.Identity(), scale * out.weight, scale * out.bias + head.shift),
    ]


def how_to_read(model: RewardModel) -> dict:
    """A tokenizer's settings that give a text the ids of `tokens.encode`, and the encoder no more.

    Right padding counts for absolute positions. Token types are left out, since ours gets none.
    """
    settings = {"truncation_side": "left", "model_max_length": model.info["max_length"]}
    settings |= {"padding_side": "right", "model_input_names": ["input_ids", "attention_mask"]}
    return settings


def give_pad(tokenizer, network: nn.Module, unfit: set) -> None:
    """A PAD token of its own, with a row of the embedding, if the tokenizer's is in `unfit`."""
    if tokenizer.pad_token_id in unfit:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        if len(tokenizer) > network.get_input_embeddings().num_embeddings:
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def to_sentence_transformer(
    model: RewardModel, encoder: str, folder: Path, texts: list[str], special: bool
) -> Tensor:
    """Write Transformer, Pooling and Dense modules; the rewards (N,) that the folder then gives.

    A regression's encoder keeps all modules it came with. encoder: the run's encoder folder; texts:
    rendered; special: whether special tokens are added to them.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    read = {"processor_kwargs": how_to_read(model), "model_kwargs": {"dtype": torch.float32}}
    if model.info["pooling"] == "as published":
        modules = list(SentenceTransformer(encoder, device="cpu", **read))
    else:
        pooling = Pooling(model.info["size"], POOLING[model.info["pooling"]])
        modules = [Transformer(encoder, **read), pooling]
    first = modules[0]
    give_pad(first.tokenizer, first.model, {None})
    # Given a chat template, sentence-transformers would put the text, rendered already, into it.
    first.modality_config = {"text": first.modality_config["text"]}
    first.processing_kwargs = {"text": {"add_special_tokens": special}}
    # No prompts: a published encoder may have one that it puts before each text.
    whole = SentenceTransformer(modules=[*modules, *dense_modules(model.head)], device="cpu")
    whole.save_pretrained(str(folder), create_model_card=False)
    return torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(texts))[:, 0]


@torch.inference_mode()
def to_classifier(
    model: RewardModel, encoder: str, folder: Path, texts: list[str], special: bool
) -> Tensor:
    """Write an AutoModelForSequenceClassification; the rewards (N,) that the folder then gives.

    It finds a text's last token by id: the rightmost one that is not PAD. So PAD must be no token
    that a text may end with, as it is where it shares an id with EOS. The arguments are those of
    `to_sentence_transformer`. Raises ValueError if the architecture has another head than ours.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    config = copy.deepcopy(model.encoder.config)
    # "regression": a pipeline puts no sigmoid on it, nor does vLLM.
    config.num_labels, config.problem_type = 1, "regression"
    whole = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    last = getattr(whole, "score", None)
    if not isinstance(last, nn.Linear) or type(whole.base_model) is not type(model.encoder):
        raise ValueError(f"transformers' {type(whole).__name__} is no encoder under a linear head")
    whole.base_model.load_state_dict(model.encoder.state_dict())
    last.load_state_dict(model.head.output.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(encoder, **how_to_read(model))
    ends = {ids[-1] for ids in tokenizer(texts, add_special_tokens=special)["input_ids"]}
    roles = ("bos", "eos", "unk", "sep", "cls")
    others = {getattr(tokenizer, f"{role}_token_id") for role in roles}
    give_pad(tokenizer, whole, {None} | others | ends)  # an unknown word may end a text, too
    whole.config.pad_token_id = tokenizer.pad_token_id
    for part in (whole, tokenizer):
        part.save_pretrained(folder)
    how = {"padding": True, "truncation": True, "add_special_tokens": special}
    batch = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", **how)
    return AutoModelForSequenceClassification.from_pretrained(folder)(**batch).logits[:, 0]


FORMS = {"sentence-transformers": to_sentence_transformer, "sequence-classification": to_classifier}


def export(run: str, folder: Path, form: str) -> tuple[float, int, int]:
    """Write the run's model to `folder`: (largest difference, texts compared, how many are cut).

    The difference is a share of the rewards' spread. Raises ValueError for what is refused, and
    ArithmeticError if the rewards differ; `folder` is then as it was.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not an empty folder")
    scorer = score.load(run, "cpu")
    model, info = scorer.model, scorer.model.info
    if reason := refusal(model, form):
        raise ValueError(f"{run} has no exact form as {form}: {reason}")
    pairs = [("What is 2 + 2?", "2 + 2 = 4")]
    pairs += [(row["prompt"], row[side]) for row in generate(8) for side in ("chosen", "rejected")]
    pairs += [("What is 2 + 2?", f"It is 4 {end}") for end in ("\U0001f600", "четыре", "四", "zq")]
    pairs += [(f"{pairs[-1][0]} " * info["max_length"], pairs[-1][1])]  # to be cut
    expected = torch.tensor(scorer.score_many(*zip(*pairs, strict=True)))
    _, cut = model.encode(*zip(*pairs, strict=True))
    only = info.get("response_only")
    turns = [("" if only else prompt, answer) for prompt, answer in pairs]
    turns += [("" if only else "{prompt}", "{response}")]
    *texts, template = (tokens.render(*pair, model.tokenizer) for pair in turns)
    special = not getattr(model.tokenizer, "chat_template", None)  # it has written its own
    with checkpoint.whole_folder(folder) as temporary:
        found = FORMS[form](model, f"{run}/model/encoder", temporary, texts, special)
        # Of the rewards' spread: what a reward is worth is its distance to other rewards.
        difference = ((found - expected).abs().max() / (expected.max() - expected.min())).item()
        if not difference <= SAME:  # so nan is a difference
            said = f"{difference:.1e} of their spread, limit {SAME:g}"
            raise ArithmeticError(f"its rewards differ by up to {said}")
        words = {"form": form, "template": template, "versions": encoders.versions()}
        words["code"] = CODE[form].format(texts[0], expected[0].item(), special=special)
        words["notes"] = CHAT * (not special) + RESPONSE_ONLY * bool(only)
        words["meaning"] = MEANING[info["approach"] == "regression"]
        checkpoint.write_text(temporary / "README.md", README.format(**(info | words)))
    return difference, len(texts), cut


def main(argv: Sequence[str] | None = None) -> None:
    """Export a run and say how near its rewards are."""
    parser = command("export", "A run for another library.")
    parser.add_argument("run", help="a run folder, such as runs/bt-finetune")
    parser.add_argument("out", help="the folder to write; new or empty")
    parser.add_argument("--format", choices=FORMS, default="sentence-transformers")
    args = parser.parse_args(argv)
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with one_line(parser):
            difference, count, cut = export(args.run, Path(args.out).resolve(), args.format)
    except ArithmeticError as error:
        parser.exit(1, f"{parser.prog}: {args.out} was not written: {error}\n")
    print(f"wrote {args.out} as {args.format}; README.md in it says how to load it")
    said = f"{difference:.1e} of their spread; {count} texts, {cut} cut"
    print(f"largest difference to minirlhf's rewards: {said}")


if __name__ == "__main__":
    main()
