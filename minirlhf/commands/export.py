"""Write a trained run as a model folder of another library, which then needs nothing of minirlhf.

    python -m minirlhf export runs/bt-frozen OUT
    python -m minirlhf export runs/bt-finetune OUT --format sequence-classification

A reward model is used where policies are trained, evaluated or served, and the tools for that load
the folders of two libraries. An export is exact: the other library gives the rewards of
`minirlhf.score`, up to the order in which float32 numbers are summed. Two forms can be exact.

    sentence-transformers     every run with a reward: regression, bt-frozen, bt-finetune. The
                              library's own pooling has our three kinds, and a head is one Dense
                              module or three.
    sequence-classification   a decoder that is pooled at its last token, under a linear head: what
                              bt-finetune makes of a GPT-2, Llama or Qwen. TRL, RewardBench and vLLM
                              load this form (we have not run these three).

A run that has no exact form is refused, with the reason, because an almost right reward model is
worse than none: nobody would notice. For the same reason the command itself loads what it wrote
with the other library, and compares rewards before OUT takes its name.

Neither form puts a prompt and a response into the template, so the text to feed is the rendered
one. The README.md in OUT writes the template out, with code to copy. The tokenizer is saved such
that both libraries cut long texts as training did.

Exit code: 0, 1 if the rewards differ (OUT is then not written), or 2 for bad input and for a run
that is refused.

What to copy: `dense_modules`, which moves a standardisation into layers, and the care that
`to_classifier` takes of the PAD token. What is left out: lower precision (the file is float32), and
the temperature, which `Scorer.probability` reads and no other library knows.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minirlhf import encoders, heads, score, tokens
from minirlhf.bundled.arithmetic import generate
from minirlhf.model import RewardModel
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line, quiet_transformers

SENTENCE_TRANSFORMERS = "sentence-transformers"
CLASSIFIER = "sequence-classification"
POOLING = {
    "mean": "mean",
    "last": "lasttoken",
    "cls": "cls",
}  # ours -> sentence-transformers'

# A module of sentence-transformers hands these on to transformers, which would ask otherwise.
NO_CODE = {"trust_remote_code": False}

# The largest difference between two rewards that counts as none, as a share of the rewards' spread.
# Another order of sums moves float32 rewards by up to 2e-6 in trained models. It is more where
# vectors hardly differ and the head, which divides by their deviation, enlarges the last bit of
# float32: the [CLS] vectors of an untrained BERT gave 1e-3 between two kinds of attention.
SAME = 1e-4


class Exported(NamedTuple):
    """How well an export was checked."""

    difference: float  # the largest between two rewards, as a share of the rewards' spread
    texts: int  # how many were compared
    cut: int  # how many of these were too long


class Examples(NamedTuple):
    """The N texts whose rewards are compared."""

    prompts: list[str]
    responses: list[str]
    rendered: list[str]  # prompt and response in the template: what the other library reads


# ---- what can be exported


def refusal(model: RewardModel, form: str) -> str | None:
    """Why the model has no exact form of that name; None if it has one."""
    if model.info["approach"] == "classification":
        return "a classification compares two responses, so there is no score to export"
    if form == SENTENCE_TRANSFORMERS:
        return None

    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    library = "AutoModelForSequenceClassification"
    config = model.encoder.config
    if not isinstance(model.head, heads.LinearHead):
        return f"a {model.info['approach']} head has two layers, that of {library} one"
    if not encoders.is_causal(model.encoder):
        return f"{config.model_type} is an encoder, to which {library} gives layers that ours lacks"
    if model.info["pooling"] != "last":
        return (
            f"{library} reads a decoder's last token; this one pools by {model.info['pooling']}"
        )
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return f"transformers has no {library} for {config.model_type}"
    return None


# ---- the tokenizer


def tokenizer_settings(model: RewardModel) -> dict:
    """Settings with which a tokenizer gives a text the ids of `tokens.encode`.

    Padding is on the right, because that counts for absolute positions. Token types are left out,
    because our encoder gets none.
    """
    return {
        "truncation_side": "left",
        "model_max_length": model.info["max_length"],
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"],
    }


def adds_special_tokens(tokenizer) -> bool:
    """Whether special tokens are added to a rendered text. A chat template writes its own."""
    return not getattr(tokenizer, "chat_template", None)


def give_pad_token(tokenizer, network: nn.Module, unfit: set) -> None:
    """Give the tokenizer a PAD token of its own if the id of the one it has is in `unfit`.

    network: the model whose embedding gets a row for it.
    """
    if tokenizer.pad_token_id not in unfit:
        return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    if len(tokenizer) > network.get_input_embeddings().num_embeddings:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)


# ---- the form of sentence-transformers


def dense_modules(head: nn.Module) -> list[nn.Module]:
    """The head as sentence-transformers' Dense modules: (N, D) -> (N, 1).

    A LinearHead is one module. An MLPHead is three: x - mean, as an identity matrix with a bias;
    the hidden layer, with 1 / std in its weights; and the output layer, with scale and shift. They
    are computed in float64 and stored in float32.

    With the mean in the bias of the hidden layer, two modules would do and (D, D) numbers could be
    saved. But float32 would then subtract large numbers from each other: for vectors whose mean is
    10 times their deviation, as frozen ones may be, that costs 3e-5 of a reward. As it is, the
    error is 3e-6 whatever the mean.
    """
    if isinstance(head, heads.LinearHead):
        return [dense(head.output.weight)]
    head = copy.deepcopy(head).double()
    identity = torch.eye(len(head.mean))  # (D, D)
    hidden = head.hidden
    output = head.output
    return [
        dense(identity, -head.mean),
        dense(hidden.weight / head.std, hidden.bias, nn.GELU()),
        dense(head.scale * output.weight, head.scale * output.bias + head.shift),
    ]


def dense(weight: Tensor, bias: Tensor | None = None, activation: nn.Module | None = None):
    """One of sentence-transformers' Dense modules, from a weight (out, in) and a bias (out,)."""
    from sentence_transformers.sentence_transformer.modules import Dense

    out_features, in_features = weight.shape
    return Dense(
        in_features,
        out_features,
        bias=bias is not None,
        activation_function=activation or nn.Identity(),  # Dense's own default is tanh
        init_weight=weight.detach().float(),
        init_bias=None if bias is None else bias.detach().float(),
    )


def to_sentence_transformer(
    model: RewardModel, encoder: str, folder: Path, texts: list[str]
) -> Tensor:
    """Write Transformer, Pooling and Dense modules; the rewards (N,) that the folder then gives.

    encoder: the run's encoder folder, of which a regression keeps all modules it came with.
    texts: N rendered texts.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    options = {
        "processor_kwargs": {**NO_CODE, **tokenizer_settings(model)},
        "model_kwargs": {**NO_CODE, "dtype": torch.float32, "use_safetensors": True},
        "config_kwargs": NO_CODE,
    }
    if model.info["pooling"] in POOLING:
        transformer = Transformer(encoder, **options)
        pooling = Pooling(model.info["size"], POOLING[model.info["pooling"]])
        modules = [transformer, pooling]
    else:  # as published
        published = SentenceTransformer(
            encoder, device="cpu", trust_remote_code=False, **options
        )
        modules = list(published)

    first = modules[0]
    give_pad_token(first.tokenizer, first.model, unfit={None})
    # Given a chat template, sentence-transformers would put the text, rendered already, into it.
    first.modality_config = {"text": first.modality_config["text"]}
    special = adds_special_tokens(model.tokenizer)
    first.processing_kwargs = {"text": {"add_special_tokens": special}}

    # A new SentenceTransformer has no prompts; a published encoder may put one before each text.
    modules += dense_modules(model.head)
    whole = SentenceTransformer(modules=modules, device="cpu")
    whole.save_pretrained(str(folder), create_model_card=False)
    loaded = SentenceTransformer(str(folder), device="cpu", trust_remote_code=False)
    return torch.tensor(loaded.encode(texts))[:, 0]


# ---- the form of transformers


@torch.inference_mode()
def to_classifier(model: RewardModel, encoder: str, folder: Path, texts: list[str]) -> Tensor:
    """Write an AutoModelForSequenceClassification; the rewards (N,) that the folder then gives.

    encoder: the run's encoder folder; texts: N rendered texts.
    Raises ValueError if transformers has another head than ours for the architecture.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    whole = new_classifier(model)
    tokenizer = AutoTokenizer.from_pretrained(
        encoder, trust_remote_code=False, **tokenizer_settings(model)
    )
    special = adds_special_tokens(model.tokenizer)
    unfit = ids_at_an_end(tokenizer, texts, special)
    give_pad_token(tokenizer, whole, unfit | {None})
    whole.config.pad_token_id = tokenizer.pad_token_id
    whole.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    loaded_tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    batch = loaded_tokenizer(
        texts,
        return_tensors="pt",
        padding=True,
        truncation=True,
        add_special_tokens=special,
    )
    loaded = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False)
    return loaded(**batch).logits[:, 0]


def new_classifier(model: RewardModel) -> nn.Module:
    """Our encoder and head as an AutoModelForSequenceClassification."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(model.encoder.config)
    config.num_labels = 1
    config.problem_type = "regression"  # so that neither a pipeline nor vLLM adds a sigmoid
    whole = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    head = getattr(whole, "score", None)
    if not isinstance(head, nn.Linear) or type(whole.base_model) is not type(model.encoder):
        raise ValueError(
            f"transformers' {type(whole).__name__} is no encoder under a linear head"
        )
    whole.base_model.load_state_dict(model.encoder.state_dict())
    head.load_state_dict(model.head.output.state_dict())
    return whole


def ids_at_an_end(tokenizer, texts: list[str], special: bool) -> set:
    """Ids of tokens with which a text may end, so that none of them can serve as PAD.

    transformers finds the last token of a text by its id: it is the rightmost one that is not PAD.
    Where PAD shares its id with EOS, as is common, a text that ends with EOS would be read one
    token too early. An unknown word may end a text, too.
    """
    ids = set()
    for role in ("bos", "eos", "unk", "sep", "cls"):
        ids.add(getattr(tokenizer, f"{role}_token_id"))
    for row in tokenizer(texts, add_special_tokens=special)["input_ids"]:
        ids.add(row[-1])
    return ids


# ---- the README of the exported folder

README = """# A reward model as {form}

Written by `python -m minirlhf export` from a {approach} run.
Tried with transformers {transformers} and sentence-transformers
{sentence_transformers}.
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
ON_THE_SCALE_OF_RATINGS = "It lies on the scale of the ratings that the model was trained on."
ONLY_DIFFERENCES_COUNT = (
    "By itself it means nothing; what counts is how two responses to one prompt differ."
)
SENTENCE_TRANSFORMERS_CODE = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer(".")
text = {text!r}
print(model.encode([text])[0, 0])  # {reward:.4f}"""
CLASSIFIER_CODE = """from transformers import AutoModelForSequenceClassification
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForSequenceClassification.from_pretrained(".")
text = {text!r}
how = {{"padding": True, "truncation": True, "add_special_tokens": {special}}}
batch = tokenizer([text], return_tensors="pt", **how)
print(model(**batch).logits[0, 0].item())  # {reward:.4f}"""
CHAT_NOTE = """\
It is what the tokenizer's `apply_chat_template` makes of a user's and an assistant's turn
with `tokenize=False, date_string="1 January 2025"`, and with that day wherever the template asks
for the day. It holds its special tokens: none are added.

"""
RESPONSE_ONLY_NOTE = "The model was trained with `--response-only`: it never saw a prompt.\n\n"


def readme(model: RewardModel, form: str, text: str, reward: float) -> str:
    """The README.md of the exported folder.

    text, reward: a rendered text and its reward, for the code that loads the model.
    """
    special = adds_special_tokens(model.tokenizer)
    code = SENTENCE_TRANSFORMERS_CODE if form == SENTENCE_TRANSFORMERS else CLASSIFIER_CODE
    meaning = ONLY_DIFFERENCES_COUNT
    if model.info["approach"] == "regression":
        meaning = ON_THE_SCALE_OF_RATINGS
    notes = ""
    if not special:
        notes += CHAT_NOTE
    if model.info.get("response_only"):
        notes += RESPONSE_ONLY_NOTE

    versions = encoders.versions()
    return README.format(
        form=form,
        approach=model.info["approach"],
        transformers=versions["transformers"],
        sentence_transformers=versions["sentence-transformers"],
        code=code.format(text=text, reward=reward, special=special),
        meaning=meaning,
        template=render(model, "{prompt}", "{response}"),
        notes=notes,
        max_length=model.info["max_length"],
    )


# ---- the export


def render(model: RewardModel, prompt: str, response: str) -> str:
    """The text that the model reads; a model trained on responses only reads no prompt."""
    if model.info.get("response_only"):
        prompt = ""
    return tokens.render(prompt, response, model.tokenizer)


def make_examples(model: RewardModel) -> Examples:
    """Texts of several kinds to compare rewards on; one is too long for the model."""
    question = "What is 2 + 2?"
    pairs = [(question, "2 + 2 = 4")]
    for row in generate(8):
        pairs.append((row["prompt"], row["chosen"]))
        pairs.append((row["prompt"], row["rejected"]))
    # A tokenizer may not know these endings, and PAD must not share its id with "unknown".
    for ending in ("\U0001f600", "четыре", "四", "zq"):
        pairs.append((question, f"It is 4 {ending}"))
    too_long = f"{question} " * model.info["max_length"]
    pairs.append((too_long, "It is 4 zq"))
    return Examples(
        prompts=[prompt for prompt, response in pairs],
        responses=[response for prompt, response in pairs],
        rendered=[render(model, prompt, response) for prompt, response in pairs],
    )


def export(run: str, folder: Path, form: str) -> Exported:
    """Write the run's model to `folder` in a form of another library, and check its rewards.

    Raises ValueError for what is refused, and ArithmeticError if the rewards differ; `folder` is
    then as it was.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already and not an empty folder")
    scorer = score.load(run, "cpu")
    model = scorer.model
    reason = refusal(model, form)
    if reason is not None:
        raise ValueError(f"{run} has no exact form as {form}: {reason}")

    examples = make_examples(model)
    expected = torch.tensor(scorer.score_many(examples.prompts, examples.responses))  # (N,)
    encoder = f"{run}/model/encoder"
    with checkpoint.whole_folder(folder) as temporary:
        if form == SENTENCE_TRANSFORMERS:
            found = to_sentence_transformer(model, encoder, temporary, examples.rendered)
        else:
            found = to_classifier(model, encoder, temporary, examples.rendered)
        difference = share_of_spread(found, expected)
        check_same(difference)
        text = readme(model, form, examples.rendered[0], expected[0].item())
        checkpoint.write_text(temporary / "README.md", text)

    cut = model.encode(examples.prompts, examples.responses).cut
    return Exported(difference, len(examples.rendered), cut)


def share_of_spread(found: Tensor, expected: Tensor) -> float:
    """The largest difference between rewards (N,) and (N,), as a share of the spread of `expected`.

    The spread is the scale to measure it by, because only distances between rewards mean anything.
    """
    spread = expected.max() - expected.min()
    return ((found - expected).abs().max() / spread).item()


def check_same(difference: float) -> None:
    """Raise ArithmeticError unless the difference is small; NaN is not."""
    if not difference <= SAME:
        said = f"{difference:.1e} of their spread, limit {SAME:g}"
        raise ArithmeticError(f"its rewards differ by up to {said}")


def main(argv: Sequence[str] | None = None) -> None:
    """Export a run, and print how near its rewards are to ours."""
    parser = command("export", "Write a run as a model folder of another library.")
    parser.add_argument("run", help="a run folder, such as runs/bt-finetune")
    parser.add_argument("out", help="the folder to write; new or empty")
    parser.add_argument(
        "--format",
        choices=(SENTENCE_TRANSFORMERS, CLASSIFIER),
        default=SENTENCE_TRANSFORMERS,
        help="(default: %(default)s)",
    )
    args = parser.parse_args(argv)

    quiet_transformers()
    try:
        with one_line(parser):
            exported = export(args.run, Path(args.out).resolve(), args.format)
    except ArithmeticError as error:
        parser.exit(1, f"{parser.prog}: {args.out} was not written: {error}\n")
    print(f"wrote {args.out} as {args.format}; README.md in it says how to load it")
    print(
        f"largest difference to minirlhf's rewards: {exported.difference:.1e} of their spread; "
        f"{exported.texts} texts, {exported.cut} cut"
    )
