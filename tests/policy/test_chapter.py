"""The chapter on policies: commands that parse, lines that are the code's, numbers that exist."""

import json
import re
import shlex
from pathlib import Path

import pytest

from minirlhf.commands import policy as command

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "minirlhf/policy"
CHAPTER = (FOLDER / "README.md").read_text("utf-8")
RESULTS = [
    *json.loads((ROOT / ".github/results/policy.json").read_text("utf-8")),
    *json.loads((ROOT / ".github/results/turn.json").read_text("utf-8")),
]
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", CHAPTER, re.S)
    for line in block.strip().splitlines()
    if "minirlhf policy" in line
]


def test_the_chapter_is_short():
    assert len([word for word in CHAPTER.split() if re.search(r"\w", word)]) <= 1800


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    parser, settings = command.parse(shlex.split(line)[4:])
    assert command.contradiction(settings) == ""


def test_quoted_lines_are_those_of_the_methods():
    source = (FOLDER / "methods.py").read_text("utf-8")
    code = {line.strip() for line in source.splitlines()}
    quoted = re.findall(r"```python\n(.*?)```", CHAPTER, re.S)
    assert len(quoted) == 4
    for block in quoted:
        for line in block.strip().splitlines():
            assert line.strip() in code, line


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)h][^)]*)\)", CHAPTER)
    assert len(targets) >= 5
    for target in targets:
        assert (FOLDER / target.partition("#")[0]).exists(), target


def test_flags_exist(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    known = capsys.readouterr().out
    for flag in re.findall(r"`(--[a-z-]+)", CHAPTER):
        assert flag in known or flag in ("--response-only",), flag


def numbers_of(results) -> set[str]:
    """All numbers of the results with two decimals."""
    if isinstance(results, dict):
        return set().union(*map(numbers_of, results.values()))
    if isinstance(results, list):
        return set().union(*map(numbers_of, results), set())
    if isinstance(results, float):
        return {f"{results:.2f}", f"{abs(results):.2f}"}
    return set()


def test_every_number_with_two_decimals_was_measured():
    text = re.sub(r"```.*?```|https?://\S+|0\.36 million", "", CHAPTER, flags=re.S)
    text = re.sub(r"^ *>.*$", "", text, flags=re.M)  # a sample
    found = set(re.findall(r"(?<![\d.])-?\d+\.\d\d(?!\d)", text))
    assert len(found) > 30
    assert found <= numbers_of(RESULTS) | {"-" + n for n in numbers_of(RESULTS)}
