"""README's commands parse, its Python blocks run, and its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import train
from minirlhf import score
from minirlhf.tools import selfcheck

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


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("python train.py")])
def test_train_commands_parse(command):
    args = train.parse(shlex.split(command)[2:])
    assert args.approach in (*train.APPROACHES, "all")


@pytest.mark.parametrize("command", [c for c in COMMANDS if "minirlhf.score" in c])
def test_score_commands_parse(command, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        score.main(shlex.split(command)[3:])
    assert "no trained model" in capsys.readouterr().err  # parsed; there is just no run here


@pytest.mark.parametrize("command", [c for c in COMMANDS if "selfcheck" in c])
def test_selfcheck_commands_parse(command, capsys):
    with pytest.raises(SystemExit):
        selfcheck.main(shlex.split(command)[3:])
    assert "no trained model" in capsys.readouterr().err


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
    helps = ""
    for command in (train.main, score.main):
        with pytest.raises(SystemExit):
            command(["--help"])
        helps += capsys.readouterr().out
    assert set(re.findall(r"(--[a-z][a-z-]+)", README)) <= set(re.findall(r"(--[a-z-]+)", helps))
