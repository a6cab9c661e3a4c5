"""Exports give minirlhf's rewards in the other library, in a process without minirlhf."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from tokenizers import processors
from transformers import AutoModel, AutoTokenizer

import train
from minirlhf import heads, model, score, tokens
from minirlhf.commands import export

CLASSIFIER = "sequence-classification"
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|endoftext|>{% endfor %}"
PAIRS = [
    ("What is 2 + 2?", "2 + 2 = 4"),
    ("What is 2 + 2?", "5"),
    ("", "An answer without a question."),
    (
        "How much is left?",
        "Nothing at all.<|endoftext|>",
    ),  # GPT-2's EOS, in the text itself
    ("How many apples are left? " * 20, "Twelve apples. " * 3),  # both are cut
    ("How many?", "First 3 apples, then 4, then 5. " * 20),
]
PROMPTS = [prompt for prompt, _ in PAIRS]
RESPONSES = [response for _, response in PAIRS]


class Case(NamedTuple):
    """A run, and the form in which it is exported."""

    approach: str
    base: str
    pooling: str | None
    form: str | None = None  # the default


CASES = {
    "regression": Case("regression", "encoder", None),
    "regression, published": Case("regression", "published", None),
    "bt-frozen, mean": Case("bt-frozen", "encoder", "mean"),
    "bt-frozen, cls": Case("bt-frozen", "encoder", "cls"),
    "bt-frozen, last": Case("bt-frozen", "decoder", "last"),
    "bt-finetune, mean": Case("bt-finetune", "decoder", "mean"),
    "bt-finetune, cls": Case("bt-finetune", "encoder", "cls"),
    "bt-finetune, last": Case("bt-finetune", "decoder", "last"),
    "bt-finetune, chat": Case("bt-finetune", "chat", "last"),
    "classifier": Case("bt-finetune", "decoder", "last", CLASSIFIER),
    "classifier, chat": Case("bt-finetune", "chat", "last", CLASSIFIER),
    "classifier, response only": Case("bt-finetune", "decoder", "last", CLASSIFIER),
}
# Runs the README's code in each folder, then judges all texts in one batch.
OTHER_LIBRARY = """
import contextlib, io, json, os, re, sys

found = {}
for folder, (texts, chat) in json.load(sys.stdin).items():
    os.chdir(folder)
    names, out = {}, io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(re.search(r"```python\\n(.*?)```", open("README.md").read(), re.S)[1], names)
    if "tokenizer" in names:
        how = {"padding": True, "truncation": True, "add_special_tokens": not chat}
        batch = names["tokenizer"](texts, return_tensors="pt", **how)
        rewards = names["model"](**batch).logits[:, 0]
    else:
        rewards = names["model"].encode(texts)[:, 0]
    found[folder] = [float(out.getvalue()), rewards.tolist()]
assert "minirlhf" not in sys.modules
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def bases(tiny_encoder, tiny_decoder, tmp_path_factory) -> dict[str, str]:
    """Model folders: the two tiny ones, a SentenceTransformer with a prompt, a chat model."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Normalize,
        Pooling,
        Transformer,
    )

    chat = str(tmp_path_factory.mktemp("chat"))
    published = str(tmp_path_factory.mktemp("published"))
    AutoModel.from_pretrained(tiny_decoder).save_pretrained(chat)
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder, pad_token="<|endoftext|>")
    tokenizer.chat_template = CHAT
    twice = processors.TemplateProcessing(  # what a template's text must not get once more
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.backend_tokenizer.post_processor = twice
    tokenizer.save_pretrained(chat)
    modules = [Transformer(tiny_encoder), Pooling(32, "cls"), Normalize()]
    prompts = {"prompts": {"q": "query: "}, "default_prompt_name": "q"}
    SentenceTransformer(modules=modules, device="cpu", **prompts).save_pretrained(published)
    return {
        "encoder": tiny_encoder,
        "decoder": tiny_decoder,
        "chat": chat,
        "published": published,
    }


def make_run(
    folder: Path, approach: str, base: str, pooling: str | None, **info
) -> score.Scorer:
    """A run as train.py leaves it, with a drawn head in place of a trained one."""
    built = model.build(approach, base, pooling, max_length=64)
    built.info.update(info)
    torch.manual_seed(1)
    if approach != "classification":
        torch.nn.init.normal_(built.head.output.weight)
    if isinstance(built.head, heads.MLPHead):
        token_rows = built.encode(PROMPTS, RESPONSES).token_rows
        with torch.no_grad():
            built.head.fit_input(built.vectors(token_rows))
        built.head.std.clamp_(min=0.05)  # a random BERT's [CLS] hardly varies: see export.SAME
        built.head.fit_output(torch.tensor([1.0, 4.0, 9.0]))
    model.save(built, folder / "model")
    return score.load(folder, "cpu")


class Judged(NamedTuple):
    """An exported run, and what both libraries say of the texts of `PAIRS`."""

    out: Path  # the exported folder
    ours: torch.Tensor  # (N,) our rewards
    printed: float  # what the code of the README prints
    theirs: list[float]  # N, the rewards of the other library


@pytest.fixture(scope="module")
def judged(bases, tmp_path_factory) -> dict[str, Judged]:
    """Every case, exported, and judged in one process without minirlhf."""
    outs = {}
    rewards = {}
    questions = {}
    for name, case in CASES.items():
        run = tmp_path_factory.mktemp("run")
        only = name.endswith("response only")
        scorer = make_run(
            run, case.approach, bases[case.base], case.pooling, response_only=only
        )
        rewards[name] = torch.tensor(scorer.score_many(PROMPTS, RESPONSES))
        outs[name] = run / "out"
        flags = ["--format", case.form] if case.form else []
        export.main([str(run), str(outs[name]), *flags])

        texts = []
        for prompt, response in PAIRS:
            texts.append(
                tokens.render("" if only else prompt, response, scorer.model.tokenizer)
            )
        questions[str(outs[name])] = (texts, case.base == "chat")

    command = [sys.executable, "-c", OTHER_LIBRARY]
    done = subprocess.run(command, input=json.dumps(questions), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    found = {}
    for name, out in outs.items():
        printed, theirs = answers[str(out)]
        found[name] = Judged(out, rewards[name], printed, theirs)
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_other_library_gives_our_rewards(name, judged):
    case = judged[name]
    assert case.ours.std() > 0.01  # or the comparison would say nothing
    assert case.printed == pytest.approx(case.ours[0].item(), rel=1e-5, abs=1e-5)
    assert case.theirs == pytest.approx(case.ours.tolist(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_an_export_is_safetensors_and_json_and_names_no_code(name, judged):
    out = judged[name].out
    suffixes = {path.suffix for path in out.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md", ".jinja", ".txt"}
    settings = "".join(path.read_text() for path in out.rglob("*.json"))
    assert "auto_map" not in settings
    assert str(out.parent) not in settings


def test_the_readme_says_which_text_to_feed(judged):
    plain = (judged["regression"].out / "README.md").read_text()
    chat = (judged["classifier, chat"].out / "README.md").read_text()
    only = (judged["classifier, response only"].out / "README.md").read_text()
    assert "Question: {prompt}\n\nAnswer: {response}\n" in plain
    assert "scale of the ratings" in plain
    assert "[user] {prompt}<|endoftext|>[assistant] {response}<|endoftext|>\n" in chat
    assert "apply_chat_template" in chat
    assert '"add_special_tokens": False' in chat and '"add_special_tokens": True' in only
    assert "Question: \n\nAnswer: {response}\n" in only and "--response-only" in only


def test_a_pipeline_gives_the_raw_reward(judged):
    from transformers import pipeline

    case = judged["classifier"]
    judge = pipeline("text-classification", str(case.out), device="cpu")
    got = judge("Question: What is 2 + 2?\n\nAnswer: 2 + 2 = 4")[0]["score"]
    assert got == pytest.approx(case.ours[0].item(), rel=1e-5)


@pytest.mark.parametrize("mean", [0, 1, 1000])  # of the vectors, in their standard deviations
def test_dense_modules_compute_what_the_head_does(mean):
    torch.manual_seed(0)
    head = heads.MLPHead(32)
    vectors = 0.1 * (mean + torch.randn(100, 32))
    torch.nn.init.normal_(head.output.weight)
    head.fit_input(vectors)
    head.fit_output(torch.tensor([10.0, 30.0]))
    features = {"sentence_embedding": vectors}
    for module in export.dense_modules(head):
        features = module(features)
    expected = head(vectors)
    assert expected.std() > 1
    assert torch.allclose(features["sentence_embedding"][:, 0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("approach", "base", "pooling", "form", "reason"),
    [
        (
            "classification",
            "encoder",
            None,
            "sentence-transformers",
            "no score to export",
        ),
        ("classification", "encoder", None, CLASSIFIER, "no score to export"),
        ("regression", "encoder", None, CLASSIFIER, "two layers"),
        ("bt-frozen", "decoder", "last", CLASSIFIER, "two layers"),
        ("bt-finetune", "encoder", "last", CLASSIFIER, "bert is an encoder"),
        ("bt-finetune", "decoder", "mean", CLASSIFIER, "pools by mean"),
    ],
)
def test_what_has_no_exact_form_is_refused(
    approach, base, pooling, form, reason, bases, capsys
):
    make_run(Path("run"), approach, bases[base], pooling)
    capsys.readouterr()
    assert refused(capsys, "run", "out", "--format", form).count(reason) == 1
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


def refused(capsys, *flags) -> str:
    """The one sentence of an exit with code 2."""
    with pytest.raises(SystemExit) as stopped:
        export.main(flags)
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err.removeprefix("python -m minirlhf export: error: ")


def test_bad_input_is_one_sentence_and_exit_code_2(tiny_encoder, capsys):
    assert "no trained model" in refused(capsys, "nowhere", "out")
    assert "--format" in refused(capsys, "nowhere", "out", "--format", "onnx")
    make_run(Path("run"), "bt-frozen", tiny_encoder, None)
    capsys.readouterr()
    Path("full").mkdir()
    Path("full/mine").write_text("mine")
    for out in ("full", "full/mine", "full/mine/out"):
        refused(capsys, "run", out)
    assert [path.name for path in Path("full").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("approach", "base", "form"),
    [
        ("bt-frozen", "encoder", "sentence-transformers"),
        ("regression", "published", "sentence-transformers"),
        ("bt-finetune", "decoder", CLASSIFIER),
    ],
)
def test_an_export_cannot_run_code_of_the_run_folder(
    approach, base, form, bases, capsys, monkeypatch
):
    make_run(Path("run"), approach, bases[base], "last" if base == "decoder" else None)
    encoder = Path("run/model/encoder")
    (encoder / "spy.py").write_text("open('spy was here', 'w').close()")
    config = json.loads((encoder / "config.json").read_text())
    config |= {"model_type": "spy"}
    config |= {"auto_map": {"AutoConfig": "spy.Config", "AutoModel": "spy.Model"}}
    (encoder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    monkeypatch.setenv("HF_MODULES_CACHE", "modules")
    capsys.readouterr()
    said = refused(capsys, "run", "out", "--format", form)
    assert "code of its own, which is never run" in said
    assert not Path("spy was here").exists()
    assert not Path("out").exists()


def test_an_export_with_other_rewards_is_not_written(tiny_encoder, monkeypatch, capsys):
    make_run(Path("run"), "bt-frozen", tiny_encoder, "mean")
    monkeypatch.setitem(export.POOLING, "mean", "max")
    with pytest.raises(SystemExit) as stopped:
        export.main(["run", "out"])
    assert stopped.value.code == 1
    assert "out was not written: its rewards differ by up to" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["run"]


def test_a_run_of_train_py_is_exported_and_not_touched(tiny_decoder, pairs_file, capsys):
    flags = ["--dataset", pairs_file, "--model", tiny_decoder, "--max-length", "96"]
    flags += ["--epochs", "1", "--response-only", "--tracking-uri", "none"]
    train.main([*flags, "--device", "cpu", "--output", "run"])
    capsys.readouterr()
    files = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")}
    Path("out").mkdir()  # an empty folder is no obstacle
    export.main(["run", "out", "--format", CLASSIFIER])
    last = capsys.readouterr().out.splitlines()[-1]
    words = r".*: (\S+) of their.*; (\d+) texts, (\d+) cut"
    number, count, cut = re.fullmatch(words, last).groups()
    assert float(number) < 1e-5
    assert (int(count), int(cut)) == (22, 0)
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*")} == files


def test_an_unknown_word_at_the_end_is_no_padding(tiny_decoder, capsys):
    """Where PAD is the unknown token, transformers would skip it in its search for the last one."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(("<unk>", "<s>", *"2+=4"))}
    whole = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "<s>", "pad_token": "<unk>"}
    AutoModel.from_pretrained(tiny_decoder).save_pretrained("base")
    PreTrainedTokenizerFast(tokenizer_object=whole, **special).save_pretrained("base")
    make_run(Path("run"), "bt-finetune", "base", "last")
    export.main(["run", "out", "--format", CLASSIFIER])
    assert AutoTokenizer.from_pretrained("out").pad_token == "<|pad|>"
