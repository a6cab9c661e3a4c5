"""The lab notebook: each entry has its command, its code and the source of its numbers.

The rule: an entry whose line "Numbers" names result files may hold no number with two or three
decimals that is not in those files. An entry whose numbers are in no file says "log" instead, and
names the commit of the code that they were measured with.
"""

import re
from pathlib import Path

import pytest
from test_readme import RESULTS, anchors, flags_of_all_commands, numbers

from minirlhf import __main__
from minirlhf.bundled.arithmetic import blind_accuracies
from minirlhf.experiments import mistakes
from minirlhf.report import comparison
from minirlhf.report.tables import interval, table_row

ROOT = Path(__file__).parents[2]
FILE = ROOT / "minirlhf/experiments/README.md"
NOTEBOOK = FILE.read_text("utf-8")
COMMIT = re.compile(r"`[0-9a-f]{7}`")


def entries() -> dict[str, str]:
    """The text of each entry, by its question."""
    found = {}
    for part in re.split(r"^(?=##)", NOTEBOOK, flags=re.MULTILINE):
        if part.startswith("### "):
            heading, text = part.removeprefix("### ").split("\n", 1)
            found[heading] = text
    return found


def field(entry: str, name: str) -> str:
    """What follows "- NAME:", up to the next field or the next paragraph; "" if there is none."""
    found = re.search(rf"^- {name}:\s+(.+?)(?=\n- |\n\n)", entry, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def decimals(text: str) -> set[str]:
    """The numbers with two or three decimals; the number of another entry is none of them."""
    text = re.sub(r"\bentr(y|ies)\s+\d+\.\d+((,|\s+and)\s+\d+\.\d+)*", "", text)
    return set(re.findall(r"(?<![\d.])\d+\.\d{2,3}(?!\d)", text))


ENTRIES = entries()
MEASURED = [name for name, entry in ENTRIES.items() if "results/" in field(entry, "Numbers")]
LOGGED = [question for question in ENTRIES if question not in MEASURED]


def test_there_are_entries_of_both_kinds():
    assert len(MEASURED) >= 8
    assert len(LOGGED) >= 20


@pytest.mark.parametrize("question", ENTRIES)
def test_an_entry_is_a_question_with_command_code_numbers_and_conclusion(question):
    entry = ENTRIES[question]
    assert question.endswith("?")
    assert field(entry, "Command")
    assert field(entry, "Code")
    assert COMMIT.search(entry), "no commit is named"
    assert field(entry, "Numbers")
    assert "**Conclusion.**" in entry or "**What can be read from it.**" in entry


@pytest.mark.parametrize("question", MEASURED)
def test_measured_numbers_stand_in_the_files_that_the_entry_names(question):
    entry = ENTRIES[question]
    names = re.findall(r"results/(\w+)\.json", field(entry, "Numbers"))
    known = set()
    for number in numbers([RESULTS[name] for name in names]):
        known |= {f"{number:.2f}", f"{number:.3f}"}
    found = decimals(entry)
    assert len(found) > 5
    assert found <= known, sorted(found - known)


@pytest.mark.parametrize("question", LOGGED)
def test_what_no_file_holds_is_called_a_log(question):
    assert field(ENTRIES[question], "Numbers") == "log"


def test_outside_of_entries_there_is_no_measured_number():
    rest = NOTEBOOK
    for question, entry in ENTRIES.items():
        rest = rest.replace(f"### {question}\n{entry}", "")
    introduction_to_tuning = {
        "0.005",
        "0.03",
        "0.08",
    }  # how far two runs differ; a log, it says
    versions = {"3.11", "2.13"}
    guessing = {"0.693"}  # ln 2
    assert decimals(rest) == introduction_to_tuning | versions | guessing


@pytest.mark.parametrize(
    "name", ["bundled", "bundled_5000", "gsm8k", "gsm8k_balance", "gsm8k_defaults"]
)
def test_the_comparisons_are_those_that_were_written(name):
    assert comparison.table(RESULTS[name]) in NOTEBOOK


def test_the_blind_raters_are_those_of_the_generator_beside_the_models():
    blind = blind_accuracies()
    assert RESULTS["blind"] == pytest.approx(blind, rel=1e-12)
    rows = {row["name"]: row["subsets"] for row in RESULTS["bundled"] if "subsets" in row}
    lines = []
    for name in sorted(blind, key=blind.get):
        model, without = rows["bt-finetune"][name], rows["response only"][name]
        cells = [f"`{name}`", model["n"], f"{blind[name]:.3f}"]
        lines.append(table_row([*cells, interval(model), interval(without)]))
        assert model["accuracy"] > blind[name]  # "on no subset" is it below the blind rater
    assert "\n".join(lines) in NOTEBOOK


def test_the_mistakes_are_those_that_were_written():
    lines = [mistakes.HEAD, *map(mistakes.show, RESULTS["mistakes"]["rows"])]
    assert "\n".join(lines) in NOTEBOOK


def test_links_and_file_names_resolve():
    for target in re.findall(r"\]\(([^)]+)\)", NOTEBOOK):
        path, _, anchor = target.partition("#")
        if path:
            assert path.startswith("https://") or (FILE.parent / path).exists(), target
        else:
            assert anchor in anchors(NOTEBOOK), target
    for name in re.findall(r"`((?:minirlhf|tests)/[\w./]+)`", NOTEBOOK):
        assert (ROOT / name).exists(), name


def test_every_command_and_flag_exists(capsys):
    names = re.findall(r"python -m minirlhf ([a-z]+)", NOTEBOOK)
    assert names
    assert set(names) <= {*__main__.COMMANDS, *__main__.EXPERIMENTS}
    assert set(re.findall(r"(--[a-z][a-z-]+)", NOTEBOOK)) <= flags_of_all_commands(capsys)


def test_every_entry_that_is_referred_to_exists():
    numbered = {question.split()[0] for question in ENTRIES}
    for sentence in re.findall(r"entr(?:y|ies) ((?:\d+\.\d+(?:, | and )?)+)", NOTEBOOK):
        assert set(re.findall(r"\d+\.\d+", sentence)) <= numbered, sentence
