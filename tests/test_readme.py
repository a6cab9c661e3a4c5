"""README's commands parse, its Python blocks run, and its links lead somewhere."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from minirlhf import __main__
from minirlhf.commands import compare
from minirlhf.commands import score as score_lines
from minirlhf.experiments import pictures
from minirlhf.report import verdict
from minirlhf.report.tables import interval, table
from minirlhf.runtime.tracking import console_row
from minirlhf.settings import APPROACHES, flag_parser, read_flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
NOTEBOOK = (ROOT / "minirlhf/experiments/README.md").read_text("utf-8")
CHAPTER = (ROOT / "minirlhf/policy/README.md").read_text("utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.strip().splitlines()
]


def test_the_first_screen_holds_exactly_the_two_commands():
    assert COMMANDS[:2] == [
        'pip install -e ".[offline]" && python train.py',
        'pip install -e ".[dev]" && pytest',
    ]
    assert README.index(COMMANDS[1]) < 1200


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if " train.py" in c and "pip" not in c]
)
def test_train_commands_parse(command):
    settings = read_flags(flag_parser(), shlex.split(command.split("train.py")[1]))
    assert settings.approach in APPROACHES


@pytest.mark.parametrize("command", [c for c in COMMANDS if "minirlhf compare" in c])
def test_compare_commands_parse(command):
    parser = compare.compare_parser()
    args, shared = parser.parse_known_args(shlex.split(command)[4:])
    jobs = compare.plan(parser, args, shared)
    assert {job.approach for job in jobs} == set(APPROACHES)


@pytest.mark.parametrize("command", [c for c in COMMANDS if "minirlhf score" in c])
def test_score_commands_parse(command, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        score_lines.main(shlex.split(command)[4:])
    assert "no trained model" in capsys.readouterr().err  # parsed; there is just no run here


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if "-m minirlhf" in c and "compare" not in c]
)
def test_tools_commands_parse(command, capsys):
    _, name, *flags = shlex.split(command)[2:]
    with pytest.raises(SystemExit) as stop:
        __main__.main([name, *flags])
    assert stop.value.code == 2
    assert "no trained model" in capsys.readouterr().err  # parsed; there is just no run here


def test_commands_within_sentences_are_known():
    names = re.findall(r"`python -m minirlhf ([a-z]+)`", README)
    assert names
    assert set(names) <= {*__main__.COMMANDS, *__main__.EXPERIMENTS}


def test_no_command_is_left_untested():
    tested = (
        "python train.py",
        "torchrun --nproc-per-node 4 train.py",
        "python -m minirlhf ",
    )
    assert all(command.startswith(tested) for command in COMMANDS[2:])


def test_python_blocks_run(tiny_encoder, pairs_file):
    train.main(
        [
            "--dataset",
            pairs_file,
            "--model",
            tiny_encoder,
            "--max-length",
            "96",
            "--epochs",
            "1",
        ]
        + ["--tracking-uri", "none", "--output", "runs/bt-finetune"]
    )
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        used = ""
        if "def reward" in block:  # what the block defines runs, too
            used = 'reward(["What is 2 + 2?"] * 2, ["4", "5"])\n'
        run = subprocess.run(
            [sys.executable, "-c", block + used],
            env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def anchors(markdown: str) -> set[str]:
    """The anchors of a file's headings, made the way GitHub makes them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", markdown, re.M):
        kept = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(kept.replace(" ", "-"))
    return found


def test_links_and_file_names_resolve():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        assert path.startswith("https://") or (ROOT / path).exists(), target
        if anchor:
            assert anchor in anchors((ROOT / path).read_text("utf-8")), target
    for name in re.findall(r"`((?:minirlhf|tests)/[\w./]+|train\.py|pyproject\.toml)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:\w+/)?\w+\.py|\w+/)`", README):
        assert (ROOT / name).exists() or (ROOT / "minirlhf" / name).exists(), name


def flags_of_all_commands(capsys) -> set[str]:
    """Every flag that `--help` of train.py or of a command tells of."""
    helps = "--nproc-per-node "  # torchrun's
    with pytest.raises(SystemExit):
        train.main(["--help"])
    for name in (*__main__.COMMANDS, *__main__.EXPERIMENTS):
        with pytest.raises(SystemExit):
            __main__.main([name, "--help"])
        helps += capsys.readouterr().out
    return set(re.findall(r"(--[a-z-]+)", helps))


def test_every_flag_in_the_text_exists(capsys):
    assert set(re.findall(r"(--[a-z][a-z-]+)", README)) <= flags_of_all_commands(capsys)


RESULTS = {
    path.stem: json.loads(path.read_text()) for path in (ROOT / ".github/results").iterdir()
}


def numbers(value) -> Iterator[float]:
    """Every number in a JSON value."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield abs(value)


def test_every_accuracy_in_the_text_was_written_by_a_command():
    first = RESULTS["first_run"]
    gap = first["train"]["accuracy"] - first["test"]["accuracy"]
    known = {f"{number:.3f}" for number in numbers(RESULTS)} | {
        f"{gap:.3f}",
        "0.693",
    }  # ln 2
    found = re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", README)
    assert len(found) > 40  # the lab notebook holds the rest, and test_notebook.py checks them
    assert set(found) <= known, sorted(set(found) - known)


def test_the_output_of_the_first_command_is_what_it_prints():
    first = RESULTS["first_run"]
    epochs = [console_row(numbers).split(" | ") for numbers in first["history"]]
    said = verdict.verdict(first).splitlines()
    shown = re.search(r"```text\n(.*?)```", README, re.S)[1].splitlines()
    assert len(shown) > len(epochs)
    for line, epoch in zip(shown, epochs, strict=False):  # shortened: not all numbers
        assert set(line.split(" | ")) <= set(epoch)
    for line in shown[len(epochs) :]:
        assert line in said


def test_the_table_is_what_was_written():
    sets = {"bundled": "bundled", "GSM8K": "gsm8k_minilm", "Alpaca": "alpaca_minilm"}
    by_set = [{row["name"]: row for row in RESULTS[name]} for name in sets.values()]
    larger = [RESULTS["encoders"][name] for name in ("bundled", "gsm8k", "alpaca")]
    lines = []
    for row in RESULTS["bundled"]:
        if row["name"] != "chance":
            lines.append([row["name"], *(interval(rows[row["name"]]) for rows in by_set)])
    of_bt_frozen = [row for rows in larger for row in rows if row["name"] == "bt-frozen"]
    lines.append(["bt-frozen, larger `--model`", *map(interval, of_bt_frozen)])
    head = ["test accuracy [95 %]", *sets]
    assert table(head, lines) in README


def test_the_quoted_steps_are_those_of_approaches():
    source = (ROOT / "minirlhf/approaches.py").read_text()
    quoted = re.findall(r"```py\n(.*?)```", README, re.S)
    assert len(quoted) == 4
    for step, name in zip(
        quoted, ("regression", "classification", "bt_frozen", "bt_finetune"), strict=True
    ):
        assert step.startswith(f"def {name}(")
        assert step in source


def test_readme_is_read_in_a_quarter_of_an_hour():
    assert len(README.split()) <= 2500


def test_no_commit_is_named():
    words = re.findall(r"\b[0-9a-f]{7,40}\b", README)
    assert not [word for word in words if re.search("[0-9]", word) and re.search("[a-f]", word)]


def test_every_picture_is_drawn_by_the_tools():
    shown = set(
        re.findall(r"\]\([./]*\.github/images/(\w+)\.png\)", README + NOTEBOOK + CHAPTER)
    )
    assert shown == {path.stem for path in (ROOT / ".github/images").iterdir()}
    assert {f"{name}.png" for name in shown - {"overoptimize"}} <= set(
        re.findall(r"(\w+\.png)", pictures.__doc__)
    )


def test_the_lines_that_make_pairs_of_labels_drop_ties_and_turn_the_sides():
    """README's function on HelpSteer3's columns: -1 prefers the first response, 2 the second."""
    (block,) = [
        code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "labelled" in code
    ]
    rows = [
        {"prompt": "2 + 2?", "response1": "4", "response2": "5", "overall_preference": -1},
        {"prompt": "3 + 3?", "response1": "5", "response2": "6", "overall_preference": 2},
        {"prompt": "4 + 4?", "response1": "8", "response2": "8.", "overall_preference": 0},
    ]
    run = subprocess.run(
        [sys.executable, "-c", f"{block}\nprint(list(pairs_of_labelled({rows!r})))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(run.stdout) == [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": "3 + 3?", "chosen": "6", "rejected": "5"},
    ]
