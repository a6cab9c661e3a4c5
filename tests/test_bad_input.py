"""Bad input, kind by kind: one sentence that names what is wrong, exit code 2, nothing written.

And odd input that works, with what was dropped counted. Each kind goes through `train.main` or the
score command, as a user's does; most fail before a model is loaded.
"""

import csv
import gzip
import io
import json
import logging
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import train
from minirlhf import data, score
from minirlhf import model as models
from minirlhf.commands import score as score_lines
from minirlhf.report import figures
from minirlhf.runtime.checkpoint import save_tensors
from minirlhf.runtime.files import load_rows

QUIET = ("--tracking-uri", "none", "--device", "cpu")


def rows(n=60, **more):
    """Plain pairs, more columns on request; a function is given the row's number."""
    made = []
    for i in range(n):
        row = {
            "prompt": f"Is {i} even?",
            "chosen": f"{i} it is.",
            "rejected": f"no idea {i}",
        }
        made.append(row | {k: v(i) if callable(v) else v for k, v in more.items()})
    return made


def chats(*before, role="role", content="content"):
    """Message lists: `before`, the question, the answer."""
    made = []
    for row in rows():
        turns = [*before, ("user", row["prompt"])]
        sides = {k: [*turns, ("assistant", row[k])] for k in ("chosen", "rejected")}
        made.append({k: [{role: r, content: t} for r, t in side] for k, side in sides.items()})
    return made


def jsonl(made):
    return "".join(json.dumps(row) + "\n" for row in made)


def as_csv(made, delimiter=","):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(made[0])
    writer.writerows(row.values() for row in made)
    return text.getvalue()


GOOD, RATED = jsonl(rows()), jsonl(rows(chosen_rating=9, rejected_rating=2))
REGRESSION = ("--approach", "regression")


def inside(folder="."):
    """What there is, the library's cache apart."""
    return {str(path) for path in Path(folder).rglob("*") if path.parts[0] != "datasets"}


def refused(capsys, *flags, main=train.main, name="train.py"):
    """The sentence that `main` ends with, checked for what all of them have in common."""
    before = inside()
    with pytest.raises(SystemExit) as stop:
        main([*flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith(f"{name}: error: ") and error.endswith("\n")
    assert len(error.splitlines()) == 1 and "Traceback" not in error
    assert inside() == before
    return error


# ---- data files: name, content, words of the sentence, and flags if there are any

NO_ROW = 'no row like {"prompt": "2 + 2?"'
FILES = {
    "a missing column": ("p.jsonl", GOOD.replace("chosen", "x"), "Columns found: prompt, x, rejec"),
    "a misspelt column": ("p.jsonl", GOOD.replace("chosen", "choosen"), "prompt, choosen, reject"),
    "a column in capitals": ("p.jsonl", GOOD.replace("chosen", "Chosen"), "prompt, Chosen, reject"),
    "columns of another task": ("p.csv", "text,label\na,1\n", "Columns found: text, label."),
    "rows within a row": ("p.json", json.dumps({"data": rows()}), "Columns found: data."),
    "a named column that is not there": (
        *("p.jsonl", GOOD, "no column 'worse'; the data has: prompt, chosen, rejected"),
        *("--rejected-column", "worse"),
    ),
    "one column for both sides": (
        *("p.jsonl", GOOD, "chosen equals rejected: 60", "--chosen-column", "rejected"),
    ),
    "numbers for texts": ("p.jsonl", jsonl(rows(chosen=7)), "60 rows; `chosen` is a number: 60"),
    "an object for a text": (
        *("p.jsonl", jsonl(rows(chosen={"a": "b"}))),
        "`content` of a message is missing: 60 (first row 1: {'a': 'b'})",
    ),
    "a list of texts for a prompt": (
        *("p.jsonl", jsonl(rows(prompt=["yes"])), "`prompt` is a list of texts: 60 (first row 1"),
    ),
    "messages of other names": (
        *("p.jsonl", jsonl(chats(role="by", content="what")), "`content` of a message is missing"),
    ),
    "messages without content": (
        *("p.jsonl", jsonl(rows(chosen=[{"role": "assistant", "content": None}]))),
        "`content` of a message is null: 60",
    ),
    "pictures": (
        *("p.jsonl", jsonl(rows(chosen=[{"role": "assistant", "content": [{"type": "image"}]}]))),
        "a part of a message is image, not text: 60",
    ),
    "a cell of messages that is cut": (
        *("p.csv", as_csv(rows(chosen='[{"role": "user", "content": "Hi'))),
        "`chosen` looks like a list of messages and cannot be read: 60",
    ),
    "empty message lists": ("p.jsonl", jsonl(rows(chosen=[])), "`chosen` is an empty list: 60"),
    "nulls": (
        *("p.jsonl", jsonl(rows(rejected=None))),
        "`rejected` is null: 60 (first row 1: None). A good row: {",
    ),
    "empty strings": ("p.jsonl", jsonl(rows(prompt="")), "the prompt is empty: 60"),
    "white space": (
        *("p.jsonl", jsonl(rows(chosen=" \n\t ")), "the response in `chosen` is empty: 60"),
    ),
    "halves of surrogate pairs": (
        *("p.jsonl", jsonl(rows(chosen="\ud83d!")), "half of a surrogate pair"),
    ),
    "no prompt anywhere": ("p.csv", "chosen,rejected\na,b\n", "two sides share no prompt: 1"),
    "only the assistant speaks": (
        *("p.jsonl", '{"chosen": "\\n\\nAssistant: a", "rejected": "\\n\\nAssistant: b"}'),
        "the two sides share no prompt: 1",
    ),
    "a file cut in mid-line": ("p.jsonl", GOOD[:-20], "Unterminated string starting at: line 60"),
    "a comma after each row": ("p.jsonl", GOOD.replace("}\n", "},\n"), "remove the commas"),
    "a list cut in the middle": ("p.json", json.dumps(rows())[:-20], "Unterminated string"),
    "a line that is not JSON": ("p.jsonl", GOOD + "oops\n" + GOOD, "value: line 61 column 1"),
    "a comma too many": ("p.json", json.dumps(rows())[:-1] + ",]", ": line 1 column"),
    "names without quotes": ("p.json", "{prompt: 'x'}", "name enclosed in double quotes"),
    "a web page": ("p.jsonl", "<!DOCTYPE html>\n<html>404</html>", ": line 1 column"),
    "brackets without end": ("p.json", "[" * 100_000, "maximum recursion depth"),
    "UTF-16": ("p.jsonl", GOOD.encode("utf-16"), "it is UTF-16, not UTF-8; save it as UTF-8"),
    "UTF-16 in CSV": ("p.csv", as_csv(rows()).encode("utf-16"), "it is UTF-16, not UTF-8; save"),
    "Latin-1": ("p.jsonl", GOOD.replace("no", "n\xf3").encode("latin-1"), "can't decode byte 0xf3"),
    "Latin-1 in CSV": ("p.csv", as_csv(rows(chosen="\xe9")).encode("latin-1"), "decode byte 0xe9"),
    "random bytes": ("p.jsonl", bytes(range(128, 256)), "can't decode byte 0x80"),
    "a file compressed twice": ("p.gz.jsonl", gzip.compress(gzip.compress(b"{}")), "d twice; unpa"),
    "a compressed file cut short": (
        *("p.jsonl.gz", gzip.compress(GOOD.encode())[:-20], "end-of-stream marker was reached; it"),
    ),
    "a pointer to a file": (
        *("p.parquet", "version https://git-lfs.github.com/spec/v1\n", "with: git lfs pull"),
    ),
    "an empty .jsonl": ("p.jsonl", "", NO_ROW),
    "an empty .json": ("p.json", "", NO_ROW),
    "an empty .csv": ("p.csv", "", NO_ROW),
    "an empty .parquet": ("p.parquet", "", "Parquet file size is 0 bytes"),
    "blank lines": ("p.jsonl", "\n\n \n", NO_ROW),
    "an empty list": ("p.json", "[]", NO_ROW),
    "empty objects": ("p.jsonl", "{}\n{}\n", NO_ROW),
    "a header and no row": ("p.csv", "prompt,chosen,rejected\n", NO_ROW),
    "bare nulls": ("p.jsonl", "null\n" * 5, NO_ROW),  # through `datasets`, the end of the process
    "a list of nulls": ("p.json", "[null, null]", NO_ROW),
    "a number": ("p.json", "42", NO_ROW),
    "a string": ("p.json", '"pairs"', NO_ROW),
    "a list of strings": ("p.json", '["a", "b"]', NO_ROW),
    "arrays, a line each": ("p.jsonl", '["a", "b", "c"]\n' * 5, NO_ROW),
    "rows by columns": ("p.json", '{"chosen": ["a"], "rejected": ["b"]}', 'orient="records"'),
    "pandas' columns": ("p.json", '{"chosen": {"0": "a"}, "rejected": {"0": "b"}}', "by columns"),
    "CSV rows longer than the header": (  # the library would move all columns by one
        *("p.csv", as_csv(rows()).replace("?", "?,x"), "a row longer than the header"),
    ),
    "one such CSV row": ("p.csv", as_csv(rows()) + "a,b,c,d\n", "a row longer than the header"),
    "an open quote": ("p.csv", as_csv(rows()) + '"a,b,c\n', "unexpected end of data"),
    "bars": ("p.csv", as_csv(rows(), "|"), "found: prompt|chosen|rejected."),
    "no header": ("p.csv", as_csv(rows()).split("\n", 1)[1], "Columns found: Is 0 even?, 0 it is."),
    "no parquet": ("p.parquet", GOOD, "Parquet magic bytes not found"),
    "cut parquet": ("p.parquet", b"PAR1ab", "'p.parquet': Parquet file size is 6 bytes"),
    "another file type": (
        *("p.xlsx", b"PK\3\4", "'p.xlsx': unknown file type '.xlsx'; save the sheet as"),
    ),
    "another type by this name": ("p.csv", b"PK\3\4", "it is a zip archive or an Excel file"),
    "a zipped file": ("p.jsonl.zip", b"PK\3\4", "unknown file type '.zip'; unpack it"),
    "no file type": ("pairs", GOOD, "unknown file type"),
    "a split of a file": ("p.jsonl", GOOD, "a file has no split 'test'", "--split", "test"),
    "a slice of a file": ("p.jsonl", GOOD, "no split 'train[:9]'", "--split", "train[:9]"),
    "a configuration of a file": ("p.jsonl", GOOD, "no configuration 'x'", "--config", "x"),
    "one row": ("p.jsonl", jsonl(rows(1)), "1 prompts are too few to split by prompt: 0 train"),
    "too small a limit": ("p.jsonl", GOOD, "2 prompts are too few to split", "--limit", "2"),
    "the same prompt everywhere": ("p.jsonl", jsonl(rows(prompt="Why?")), "1 prompts are too few"),
    "prompts that differ in case": (
        *("p.jsonl", jsonl(rows(prompt=lambda i: "wWhHyY"[i % 2 :: 2])), "0 validation and"),
    ),
    "chosen equals rejected": (
        *("p.jsonl", jsonl(rows(chosen="x", rejected="x")), "chosen equals rejected: 60 (first"),
    ),
    "each preferred both ways": (
        *("p.jsonl", jsonl(rows(chosen="x", rejected="y") + rows(chosen="y", rejected="x"))),
        "contradiction: preferred both ways: 120",
    ),
    "ties only": ("p.jsonl", jsonl(rows(chosen_rating=5, rejected_rating=5)), "60 of them equal"),
    "a rating for one side only": (
        *("p.jsonl", jsonl(rows(chosen_rating=5)), "for one side only"),
        *("--chosen-rating-column", "chosen_rating"),
    ),
    "two responses and a label": (
        *("p.jsonl", jsonl([{"prompt": "Why?", "answer_0": "a", "answer_1": "b", "label": 0}])),
        "Of answer_0 and answer_1, make the one that the label prefers `chosen`",
    ),
}  # fmt: skip
for kind, (one, other) in {
    "no": (None, None),
    "NaN for": (float("nan"), 2),
    "infinite": (float("inf"), 2),
    "verbal": ("good", "bad"),
    "listed": ([9], [2]),
    "astronomic": (1e300, 2),  # in float32, infinite
    "overlong": (10**400, 2),  # no float at all
}.items():
    text = jsonl(rows(chosen_rating=one, rejected_rating=other))
    FILES[f"{kind} ratings"] = ("p.jsonl", text, "0 of 60 rated", *REGRESSION)


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_data_file(kind, capsys):
    name, content, words, *flags = FILES[kind]
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    approach = () if "--approach" in flags else ("--approach", "bt-frozen")
    assert words in refused(capsys, *QUIET, *approach, "--dataset", name, *flags)


def test_bad_places_for_data(capsys):
    Path("d.jsonl").mkdir()
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("dear diary")
    Path("gone.jsonl").symlink_to("nowhere")
    Path("loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo("pipe.jsonl")  # reading it would wait for ever
    for place, words in {
        "d.jsonl": "no data file in this folder; give a .jsonl",
        "notes": "no data file in this folder; give a .jsonl",
        "gone.jsonl": "cannot read 'gone.jsonl': no such file",
        "loop.jsonl": "no such file",
        "pipe.jsonl": "it is no plain file but a pipe or a device",
        "/dev/null": "it is no plain file but a pipe or a device",
        "/no/such/folder": "no such file or folder",
        "a\nb.jsonl": r"cannot read 'a\nb.jsonl': no such file",
        "a" * 300 + ".jsonl": "File name too long",
        "https://example.com/pairs.jsonl": "it is an address; download the file first",
        "no-one/nothing": "Couldn't reach 'no-one/nothing' on the Hub",
        "": "cannot read ''",
    }.items():
        assert words in refused(capsys, *QUIET, "--dataset", place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written(capsys):
    Path("p.jsonl").write_text(GOOD)
    Path("p.jsonl").chmod(0)
    assert "Permission denied" in refused(capsys, *QUIET, "--dataset", "p.jsonl")
    Path("locked").mkdir(mode=0o500)
    said = refused(capsys, *QUIET, "--output", "locked/run")
    assert "Permission denied" in said and "locked/run" in said


# ---- flags

BT, FROZEN = ("--approach", "bt-finetune"), ("--approach", "bt-frozen")
COMPARE = "to compare several, type: python -m minirlhf compare --folds 5"
FLAGS = [
    (
        ["--approach", "bt-finetun"],
        "--approach bt-finetun is none of regression, classification,",
    ),
    (
        ["--approach", "regresion"],
        "--approach regresion is none of regression, classification, bt",
    ),
    (
        ["--approach", ""],
        "--approach  is none of regression, classification, bt-frozen, bt-finet",
    ),
    (["pairs.jsonl"], "unrecognized arguments: pairs.jsonl"),
    (["--lr"], "argument --lr: expected one argument"),
    (["--lr", "-1"], "--lr: -1 is not between 0 and 10"),
    (["--lr", "inf"], "--lr: inf is not between 0 and 10"),
    (["--seed", "-1"], "--seed: -1 is not between 0"),
    (["--seed", "1e3"], "--seed: invalid whole number value: '1e3'"),
    (["--seed", str(2**70)], "is not between 0"),
    (["--batch-size", "0"], "--batch-size: 0 is not between 1"),
    (["--epochs", "1.5"], "--epochs: invalid whole number value: '1.5'"),
    (["--patience", "0"], "--patience: 0 is not between 1"),
    (["--weight-decay", "-0.1"], "--weight-decay: -0.1 is not between 0 and 10"),
    (["--label-smoothing", "0.6"], "--label-smoothing: 0.6 is not between 0 and 0.5"),
    (["--label-smoothing", "-0.1"], "--label-smoothing: -0.1 is not between"),
    (["--label-smoothing", "lots"], "--label-smoothing: invalid number value: 'lots'"),
    (["--margin", "-1"], "--margin: -1 is not between 0 and 100"),
    ([*BT, "--warmup", "2"], "--warmup: 2 is not between 0 and 1"),
    ([*BT, "--dropout", "0.95"], "--dropout: 0.95 is not between 0 and 0.9"),
    ([*BT, "--clip", "0"], "--clip: 0 is not between"),
    ([*BT, "--accumulate", "0"], "--accumulate: 0 is not between 1"),
    (["--limit", "0"], "--limit: 0 is not between 1"),
    (["--max-length", "7"], "--max-length: 7 is not between 8 and 1000000"),
    (["--max-length", "99999999"], "--max-length: 99999999 is not between 8"),
    (["--fold", "5"], "--fold: 5 is not between 0 and 4"),
    (["--folds", "0"], COMPARE),
    (["--fold", "1", "--folds", "2"], COMPARE),
    (["--approach", "all"], COMPARE),
    (["--pooling", "max"], "--pooling: invalid choice: 'max'"),
    (["--device", "gpu"], "no device 'gpu' on this machine; there is: "),
    (["--device", ""], "no device ''"),
    (
        [*FROZEN, "--dropout", "0.1"],
        "bt-frozen does not use --dropout; only bt-finetune does",
    ),
    ([*REGRESSION, "--margin", "1"], "regression does not use --margin"),
    ([*BT, "--no-cache"], "bt-finetune does not use --no-cache"),
    (["--overwrite"], "--overwrite goes with --output FOLDER"),
    (["--output", "thesis.txt"], "thesis.txt exists; give another --output"),
    (["--output", "thesis.txt", "--overwrite"], "thesis.txt is no run folder"),
    (["--output", "thesis.txt/run"], "/thesis.txt'"),
    (["--output", "."], ". exists; give another --output"),
    (["--output", "a" * 300], "File name too long"),
    (["--model", "nowhere/nothing"], "cannot load the model 'nowhere/nothing'"),
    (["--model", "a b c"], "cannot load the model 'a b c'"),
    (["--model", "thesis.txt"], "cannot load the model 'thesis.txt'"),
    (["--model", "."], "'.' is a folder without config.json"),
]


@pytest.mark.parametrize(
    ("flags", "words"), FLAGS, ids=lambda v: " ".join(v)[:40] * (type(v) is list)
)
def test_bad_flags(flags, words, capsys):
    Path("thesis.txt").write_text("years of work")
    Path("p.jsonl").write_text(GOOD)
    assert words in refused(capsys, *QUIET, "--dataset", "p.jsonl", *flags)
    assert Path("thesis.txt").read_text() == "years of work"


# ---- model folders, each damaged in one way


def set_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def config(**changes):
    return lambda model: set_json(model / "config.json", **changes)


def drop(pattern):
    return lambda model: [file.unlink() for file in model.glob(pattern)]


def cut(name, size):
    return lambda model: (model / name).write_bytes((model / name).read_bytes()[:size])


def write(name, text):
    return lambda model: (model / name).write_text(text)


def weights(change):
    def damage(model):
        file = model / "model.safetensors"
        tensors = {key: change(key, tensor) for key, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})

    return damage


def pickled(model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def half_the_words(model):
    weights(lambda key, t: t[:300].clone() if "word_emb" in key else t)(model)
    set_json(model / "config.json", vocab_size=300)


MODELS = {
    "an empty folder": (drop("*"), "'m' is a folder without config.json"),
    "no config": (drop("config.json"), "'m' is a folder without config.json"),
    "no weights": (drop("model.safetensors"), "no file named model.safetensors"),
    "no tokenizer": (drop("token*"), "'m' is a model folder without its tokenizer"),
    "weights cut short": (cut("model.safetensors", 1000), "cannot load the model 'm'"),
    "weights cut to nothing": (cut("model.safetensors", 0), "header too small"),
    "weights as a pickle": (pickled, "no file named model.safetensors"),
    "weights of another shape": (config(hidden_size=64), "lack sound tensors of this shape: "),
    "weights that lack a layer": (config(num_hidden_layers=6), "lack sound tensors"),
    "weights that are NaN": (weights(lambda key, t: t * float("nan")), "lack sound tensors"),
    "another model's tokenizer": (half_the_words, "knows fewer tokens than its tokenizer has, 600"),
    "a cut config": (cut("config.json", 20), "not a valid JSON file"),
    "an empty config": (write("config.json", "{}"), "Unrecognized model in m"),
    "an unknown architecture": (config(model_type="brain"), "model type `brain`"),
    "an impossible config": (config(num_attention_heads=5), "not a multiple of the number of"),
    "a cut tokenizer": (cut("tokenizer.json", 500), "cannot load the model 'm'"),
    "texts longer than it reads": (config(), "256 is more than 'm' can read, 128 tokens"),
}  # fmt: skip


@pytest.mark.parametrize("approach", ["bt-frozen", "regression"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_bad_model_folder(kind, approach, tiny_encoder, capsys, caplog, monkeypatch):
    # What the library would print of its own, such as a table of the tensors.
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    damage, words = MODELS[kind]
    shutil.copytree(tiny_encoder, "m")
    damage(Path("m"))
    Path("p.jsonl").write_text(RATED)
    longer = () if kind.startswith("texts") else ("--max-length", "96")
    flags = ("--approach", approach, "--dataset", "p.jsonl", "--model", "m", *longer)
    assert words in refused(capsys, *QUIET, *flags)
    assert not [record for record in caplog.records if record.name.startswith("transformers")]


# ---- run folders that are scored with


@pytest.fixture(scope="module")
def trained(tiny_encoder, tmp_path_factory):
    """A run folder of each kind of head, as `train.py` leaves it but untrained."""
    folders = {}
    for approach in ("bt-finetune", "classification"):
        model = models.build(approach, tiny_encoder, max_length=96)
        folders[approach] = tmp_path_factory.mktemp(approach) / "run"
        models.save(model, folders[approach] / "model")
    return folders


def info(**changes):
    return lambda model: set_json(model / "reward.json", **changes)


def without(key):
    def damage(model):
        kept = json.loads((model / "reward.json").read_text())
        del kept[key]
        (model / "reward.json").write_text(json.dumps(kept))

    return damage


def other_encoder(model):
    """One of twice the width, sound in itself."""
    from transformers import BertConfig, BertModel

    kept = json.loads((model / "encoder/config.json").read_text())
    wide = BertConfig(
        **{k: v for k, v in kept.items() if k != "model_type"} | {"hidden_size": 64}
    )
    BertModel(wide).save_pretrained(model / "encoder")


RUNS = {
    "no model": (
        lambda model: shutil.rmtree(model),
        "holds no trained model (no reward.json)",
    ),
    "a newer format": (info(format=99), "format 99 is newer than 1; update minirlhf"),
    "a format in words": (info(format="new"), "no readable reward model: TypeError"),
    "an unknown approach": (info(approach="ppo"), "KeyError('ppo')"),
    "an unknown pooling": (info(pooling="max"), "KeyError('max')"),
    "no pooling": (without("pooling"), "KeyError('pooling')"),
    "no length": (without("max_length"), "KeyError('max_length')"),
    "a length in words": (info(max_length="long"), "no readable reward model: TypeError"),
    "another size": (info(size=64), "size mismatch"),
    "a list": (write("reward.json", "[]"), "no readable reward model"),
    "cut JSON": (cut("reward.json", 9), "JSONDecodeError"),
    "no head": (drop("head.safetensors"), "No such file"),
    "a cut head": (cut("head.safetensors", 9), "SafetensorError"),
    "another head": (
        lambda model: save_tensors(model / "head.safetensors", {"x": torch.zeros(1)}),
        "Missing key(s) in state_dict",
    ),
    "no encoder": (
        lambda model: shutil.rmtree(model / "encoder"),
        "cannot load the model",
    ),
    "an encoder without weights": (
        drop("encoder/model.safetensors"),
        "no file named model.safete",
    ),
    "another encoder": (
        other_encoder,
        "vectors of shape torch.Size([1, 64]), not (1, 32)",
    ),
}


@pytest.mark.parametrize("approach", ["bt-finetune", "classification"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_bad_run_folder(kind, approach, trained, capsys):
    damage, words = RUNS[kind]
    shutil.copytree(trained[approach], "run")
    damage(Path("run/model"))
    flags = ("run", "--prompt", "2 + 2?", "--response", "4", "--device", "cpu")
    assert words in refused(
        capsys, *flags, main=score_lines.main, name="python -m minirlhf score"
    )


@pytest.mark.parametrize("approach", ["bt-finetune", "classification"])
def test_odd_texts_are_scored(approach, trained, capsys):
    odd = [
        "",
        " ",
        "\0",
        "4 \U0001f916",
        "\u05d0\u05e8\u05d1\u05e2",
        "4 " * 1000,
        "broken \ud83d",
    ]
    flags = [flag for text in odd for flag in ("--response", text)]
    score_lines.main(
        [str(trained[approach]), "--prompt", "2 + 2?", *flags[:-2], "--device", "cpu"]
    )
    assert len(re.findall(r"^ *-?\d+\.\d{3}  ", capsys.readouterr().out, re.M)) == 6
    ranked = score.load(trained[approach], "cpu").rank("2 + 2?", odd)
    assert sorted(text for _, text in ranked) == sorted(odd)


# ---- odd data that works: name, content, the counts expected, and flags if there are any

NAN, ODD = float("nan"), "\U0001f469\u200d\U0001f680 \u0645\u0631\u062d\u0628\u0627"
NULL_INSIDE = (
    GOOD + ("null\n" + jsonl(rows(1))) * 6000
)  # over the block in which `datasets` reads
WORKS = {
    "a byte order mark": ("p.jsonl", GOOD.encode("utf-8-sig"), {"pairs": 60}),
    "such a mark in a list": ("p.json", json.dumps(rows()).encode("utf-8-sig"), {"pairs": 60}),
    "such a mark in CSV": ("p.csv", as_csv(rows()).encode("utf-8-sig"), {"pairs": 60}),
    "a file type in capitals": ("P.JSONL", GOOD, {"pairs": 60}),
    "a list in .jsonl": ("p.jsonl", json.dumps(rows(), indent=2), {"pairs": 60}),
    "objects over several lines": (
        *("p.json", "\n".join(json.dumps(row, indent=1) for row in rows()), {"pairs": 60}),
    ),
    "Windows line ends": ("p.jsonl", GOOD.replace("\n", "\r\n"), {"pairs": 60}),
    "a compressed file": ("p.jsonl.gz", gzip.compress(GOOD.encode()), {"pairs": 60}),
    "such a file by another name": ("p.jsonl", gzip.compress(GOOD.encode()), {"pairs": 60}),
    "semicolons in CSV": ("p.csv", as_csv(rows(), ";"), {"pairs": 60}),
    "tabs in CSV": ("p.tsv", as_csv(rows(), "\t"), {"pairs": 60}),
    "numbers as CSV answers": (
        *("p.csv", as_csv(rows(chosen=lambda i: f"{i}.10", rejected=0)), {"pairs": 60}),
    ),
    "short CSV rows": (
        *("p.csv", as_csv(rows()) + "Why?,yes\n"),
        {"pairs": 60, "dropped": {"`rejected` is null": 1}},
    ),
    "nulls, empty, numbers here and there": (
        *("p.jsonl", jsonl(rows(chosen=lambda i: [None, "", 7, "so", "yes", "no"][i % 6]))),
        {
            "rows": 60,
            "pairs": 30,
            "dropped": {
                "`chosen` is null": 10,
                "the response in `chosen` is empty": 10,
                "`chosen` is a number": 10,
            },
        },
    ),
    "null rows among others": (
        *("p.jsonl", NULL_INSIDE),
        {"rows": 12060, "pairs": 60, "dropped": {"`prompt` is null": 6000, "duplicate": 6000}},
    ),
    "a null row first": (
        *("p.json", json.dumps([None, *rows()])),
        {"rows": 61, "pairs": 60, "dropped": {"`prompt` is null": 1}},
    ),
    "columns that come late": (
        *("p.jsonl", '{"prompt": "Why?"}\n' + RATED),
        {"pairs": 60, "rated": 60, "dropped": {"`chosen` is null": 1}},
    ),
    "a list of one response": (
        *("p.jsonl", jsonl(rows(chosen=["yes"])), {"pairs": 60, "dropped": {}}),
    ),
    "several rejected responses": (
        *("p.jsonl", jsonl(rows(rejected=["no", "never"])), {"comparisons": 120, "pairs": 120}),
    ),
    "messages of from and value": (
        *("p.jsonl", jsonl(chats(role="from", content="value")), {"pairs": 60, "dropped": {}}),
    ),
    "a rating of one side": (
        *("p.jsonl", jsonl(rows(chosen_rating=5, margin=1)), {"pairs": 60, "rated": 0}),
    ),
    "ratings as strings": (
        *("p.jsonl", jsonl(rows(chosen_rating="9.5", rejected_rating="2"))),
        {"rated": 60, "rating_ties": 0},
        *REGRESSION,
    ),
    "ratings, some not numbers": (
        *("p.jsonl", jsonl(rows(chosen_rating=lambda i: [9, NAN, "?"][i % 3], rejected_rating=2))),
        {"pairs": 60, "rated": 20},
    ),
    "emoji and right-to-left text": (
        *("p.jsonl", jsonl(rows(prompt=lambda i: f"{i} {ODD}?", chosen=ODD))),
        {"pairs": 60, "dropped": {}},
    ),
    "NUL characters": ("p.csv", as_csv(rows(chosen=lambda i: f"a\0{i}")), {"pairs": 60}),
    "100,000 rows that are one": (
        *("p.jsonl", GOOD + jsonl(rows(1)) * 100_000),
        {"rows": 100_060, "pairs": 60, "dropped": {"duplicate": 100_000}},
    ),
    "a response of 100,000 words": (
        *("p.jsonl", GOOD + jsonl(rows(1, prompt="Go on?", chosen="and on " * 50_000))),
        {"pairs": 61, "texts_cut": 1},
    ),
}  # fmt: skip


def learned_from(kind_of_file, tiny_encoder, monkeypatch):
    """The counts in the run folder after training on the file."""
    name, content, _, *flags = kind_of_file
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    monkeypatch.setattr(figures, "draw_run", lambda *args: None)  # a second a run
    approach = flags or ["--approach", "bt-frozen"]
    more = (
        "--model",
        tiny_encoder,
        "--max-length",
        "64",
        "--epochs",
        "1",
        "--output",
        "out",
    )
    train.main([*QUIET, *approach, "--dataset", name, *more])
    return json.loads(Path("out/config.json").read_text())["data"]


@pytest.mark.parametrize("kind", WORKS)
def test_odd_data_that_works(kind, tiny_encoder, monkeypatch):
    counts = learned_from(WORKS[kind], tiny_encoder, monkeypatch)
    expected = WORKS[kind][2]
    assert {key: counts[key] for key in expected} == expected
    assert counts["comparisons"] == counts["pairs"] + sum(counts["dropped"].values())


@pytest.mark.slow
@pytest.mark.parametrize(("side", "cut"), [("prompt", 2), ("chosen", 1)])
def test_a_text_of_five_megabytes(side, cut, tiny_encoder, monkeypatch):
    made = jsonl(rows(1, **{"prompt": "Go on?", side: "apples and " * 460_000}))
    counts = learned_from(("p.jsonl", GOOD + made, {}), tiny_encoder, monkeypatch)
    assert (counts["pairs"], counts["texts_cut"]) == (61, cut)


# ---- what the pairs are, where a wrong reading would go unseen


def pairs_of(name, content):
    Path(name).write_text(content, newline="")
    return data.build_pairs(load_rows(name))[0]


def test_turns_of_the_system_of_the_assistant_and_of_nobody():
    for before, start in {
        ("system", "Be brief."): "System: Be brief.\n\nHuman: ",
        ("assistant", "Hello!"): "Assistant: Hello!\n\nHuman: ",
    }.items():
        assert pairs_of("p.jsonl", jsonl(chats(before)))[3][:2] == (
            f"{start}Is 3 even?",
            "3 it is.",
        )
    plain = pairs_of("p.jsonl", GOOD)
    for nobody in ({}, {"role": None}):
        made, both = [], []
        for row in rows():
            texts = {k: (row["prompt"], row[k]) for k in ("chosen", "rejected")}
            made.append({k: [{"content": t} | nobody for t in two] for k, two in texts.items()})
            both.append(made[-1] | {"prompt": row["prompt"]})  # it is not said twice
        assert pairs_of("p.jsonl", jsonl(made)) == pairs_of("p.jsonl", jsonl(both)) == plain
