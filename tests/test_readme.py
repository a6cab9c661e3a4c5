"""README's commands parse, its Python blocks run, and its links lead somewhere."""

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
from minirlhf.experiments import mistakes, pictures

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
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


@pytest.mark.parametrize("command", [c for c in COMMANDS if " train.py" in c and "pip" not in c])
def test_train_commands_parse(command):
    args = train.parse(shlex.split(command.split("train.py")[1]))
    assert args.approach in (*train.APPROACHES, "all")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "minirlhf score" in c])
def test_score_commands_parse(command, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        score_lines.main(shlex.split(command)[4:])
    assert "no trained model" in capsys.readouterr().err  # parsed; there is just no run here


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m minirlhf" in c])
def test_tools_commands_parse(command, capsys):
    _, name, *flags = shlex.split(command)[2:]
    reason = "no trained model"  # parsed; there is just no run here
    if name == "benchmark":  # it needs none, and takes minutes
        flags, reason = [*flags, "--dataset", "nowhere.jsonl"], "No such file"
    if name == "mistakes":  # the same
        flags, reason = [*flags, "--model", "no-such/model"], "cannot load the model"
    with pytest.raises(SystemExit) as stop:
        __main__.main([name, *flags])
    assert stop.value.code == 2
    assert reason.casefold() in capsys.readouterr().err.casefold()


def test_no_command_is_left_untested():
    tested = ("python train.py", "torchrun --nproc-per-node 4 train.py", "python -m minirlhf ")
    assert all(command.startswith(tested) for command in COMMANDS[2:])


def test_python_blocks_run(tiny_encoder, pairs_file):
    train.main(
        ["--dataset", pairs_file, "--model", tiny_encoder, "--max-length", "96", "--epochs", "1"]
        + ["--tracking-uri", "none", "--output", "runs/bt-finetune"]
    )
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        run = subprocess.run(
            [sys.executable, "-c", block],
            env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PATH": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def test_links_and_file_names_resolve():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for name in re.findall(r"`((?:minirlhf|tests)/[\w./]+|train\.py|pyproject\.toml)`", README):
        assert (ROOT / name).exists(), name


def test_every_flag_in_the_text_exists(capsys):
    helps = "--nproc-per-node "  # torchrun's
    with pytest.raises(SystemExit):
        train.main(["--help"])
    for name in (*__main__.COMMANDS, *__main__.EXPERIMENTS):
        if name != "compare":
            with pytest.raises(SystemExit):
                __main__.main([name, "--help"])
        helps += capsys.readouterr().out
    assert set(re.findall(r"(--[a-z][a-z-]+)", README)) <= set(re.findall(r"(--[a-z-]+)", helps))


RESULTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / ".github/results").iterdir()}


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
    known = {f"{number:.3f}" for number in numbers(RESULTS)} | {f"{gap:.3f}", "0.693"}  # ln 2
    found = set(re.findall(r"(?<![\d.])\d\.\d{3}(?!\d)", README))
    assert len(found) > 50
    assert found <= known, sorted(found - known)


def test_the_tables_are_those_that_were_written():
    assert compare.table(RESULTS["bundled"]) in README
    assert "\n".join([mistakes.HEAD, *map(mistakes.show, RESULTS["mistakes"]["rows"])]) in README


def test_the_quoted_steps_are_those_of_approaches():
    source = (ROOT / "minirlhf/approaches.py").read_text()
    quoted = re.findall(r"```py\n(.*?)```", README, re.S)
    assert len(quoted) == 4
    for step, name in zip(
        quoted, ("regression", "classification", "bt_frozen", "bt_finetune"), strict=True
    ):
        assert step.startswith(f"def {name}(")
        assert step in source


def test_readme_is_read_in_half_an_hour():
    assert len(README.split()) < 5000


def test_every_picture_is_drawn_by_the_tools():
    shown = set(re.findall(r"\]\(\.github/images/(\w+)\.png\)", README))
    assert shown == {path.stem for path in (ROOT / ".github/images").iterdir()}
    assert {f"{name}.png" for name in shown - {"overoptimize"}} <= set(
        re.findall(r"(\w+\.png)", pictures.__doc__)
    )
