"""What MLflow is told of a run's data and of its result."""

import json

import mlflow
import pytest
from mlflow.entities import Dataset

from minirlhf.bundled.arithmetic import generate
from minirlhf.data import build_pairs
from minirlhf.report import results


def data_set(dataset: str) -> Dataset:
    """The record of a data set of 20 pairs under this name."""
    arguments = {"dataset": dataset, "config": None, "split": "train"}
    _, counts = build_pairs(generate(20))
    return Dataset(**results.data_for_mlflow(arguments, counts))


def test_the_record_of_data_says_how_many_pairs_and_which_columns():
    record = data_set("arithmetic")
    _, counts = build_pairs(generate(20))
    assert record.name == "arithmetic"
    assert counts["sha256"].startswith(record.digest)
    assert json.loads(record.profile)["pairs"] == 20
    columns = json.loads(record.schema)["mlflow_colspec"]
    assert {column["name"]: column["type"] for column in columns} == {
        "prompt": "string",
        "chosen": "string",
        "rejected": "string",
        "chosen_rating": "double",
        "rejected_rating": "double",
        "subset": "string",
    }


@pytest.mark.parametrize(
    ("dataset", "source_type"),
    [("arithmetic", "code"), ("pairs.jsonl", "local"), ("owner/pairs", "hugging_face")],
)
def test_mlflow_can_read_where_the_data_came_from(
    dataset, source_type, pairs_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    record = data_set(dataset)
    assert record.source_type == source_type
    source = mlflow.data.get_source(record)
    if source_type == "local":
        assert (record.name, source.uri) == ("pairs.jsonl", pairs_file)
    if source_type == "hugging_face":
        assert (source.path, source.split) == ("owner/pairs", "train")


def test_a_description_keeps_its_lines_and_fits_on_a_page(monkeypatch):
    long = "word " * 30
    monkeypatch.setattr(results, "verdict", lambda summary: f"one\n  0.5  two (3)\n{long}")
    first, *lines, last = results.description({}).splitlines()
    assert (first, last) == ("```text", "```")
    assert lines[:2] == ["one", "  0.5  two (3)"]
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(lines[2:]).split() == long.split()
