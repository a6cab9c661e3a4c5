"""The simulation behind the notebook's table on intervals."""

import random
from pathlib import Path

import pytest
from test_readme import NOTEBOOK, RESULTS

from minirlhf.experiments import coverage
from minirlhf.runtime import checkpoint


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_invented_accuracy_is_the_true_one_and_pairs_of_a_prompt_agree(share):
    pairs = coverage.invent_accuracy(share, [4000, 2000], random.Random(0))
    assert mean(pairs.values) == pytest.approx(share, abs=0.02)
    assert len(set(pairs.prompts)) == 6000
    assert len(pairs.values) == pytest.approx(3.5 * 6000, rel=0.02)
    assert pairs.subsets.count(0) == pytest.approx(2 * pairs.subsets.count(1), rel=0.05)
    neighbours = []  # products of the deviations of two pairs of one prompt
    for i in range(len(pairs.values) - 1):
        if pairs.prompts[i] == pairs.prompts[i + 1]:
            neighbours.append((pairs.values[i] - share) * (pairs.values[i + 1] - share))
    correlation = mean(neighbours) / (share * (1 - share))
    assert correlation == pytest.approx(coverage.CORRELATION, abs=0.04)


def test_the_invented_models_disagree_as_often_as_asked_for():
    pairs = coverage.invent_difference(0.3, 0.75, 6000, random.Random(0))
    assert mean([abs(value) for value in pairs.values]) == pytest.approx(0.3, abs=0.02)
    assert mean(pairs.values) == pytest.approx(0.15, abs=0.02)


def test_hits_are_counted_and_written(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "PROMPTS", (3, 8))
    monkeypatch.setattr(coverage, "SHARES", (1.0,))
    monkeypatch.setattr(coverage, "DISAGREEMENTS", (0.0,))
    monkeypatch.setattr(coverage, "SMALL_SUBSETS", (2,))
    monkeypatch.setattr(coverage, "TRIALS", 3)
    monkeypatch.setattr(coverage, "RESAMPLES", 50)
    coverage.main(["coverage.json"])
    found = checkpoint.read_json(Path("coverage.json"))
    first = found["accuracy"][0]
    # All pairs are right: without imaginary prompts the interval has no width.
    assert (first["prompts"], first["without"], first["without_width"]) == (3, 1, 0)
    assert first["with_width"] > 0.3
    assert found["difference"][0]["without_width"] == 0
    assert found["difference"][0]["with_above_zero"] == 0
    assert len(found["small_subset"]) == 6  # beside four subsets and beside one, three shares
    printed = capsys.readouterr().out
    assert coverage.tables(found) in printed
    assert "| 3 | 1.000, 1.000 |" in printed


def test_the_tables_of_the_notebook_are_those_that_were_written():
    for table in coverage.tables(RESULTS["coverage"]).split("\n\n"):
        assert table.strip() in NOTEBOOK


def test_with_imaginary_prompts_the_interval_of_an_accuracy_holds_everywhere():
    found = RESULTS["coverage"]["accuracy"]
    assert len(found) == len(coverage.PROMPTS) * len(coverage.SHARES)
    assert min(row["with"] for row in found) > 0.92
    assert min(row["without"] for row in found) < 0.2
