"""Rows out of files of each kind: nothing is guessed, nothing is lost."""

import json
import os
from pathlib import Path

import pytest

from minirlhf import data
from minirlhf.runtime.files import SHORT_NAMES, load_rows


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_each_kind(tmp_path, suffix):
    import datasets

    row = {"prompt": "How many are left?", "chosen": "None", "rejected": "It is 5."}
    rows = datasets.Dataset.from_list([row, row | {"prompt": "And now?"}])
    path = tmp_path / f"pairs.{suffix}"
    if suffix in ("json", "jsonl"):
        rows.to_json(path)
    else:
        getattr(rows, f"to_{suffix}")(path)
    assert len(data.build_pairs(load_rows(str(path)))[0]) == 2


def test_a_parquet_file_is_read_as_named_and_as_it_is_now(tmp_path):
    import datasets

    def write(name, answer):
        row = {"prompt": "2 + 2?", "chosen": answer, "rejected": "5"}
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / name)
        os.utime(tmp_path / name, (10**9, 10**9))  # as an archive or rsync leaves it

    def read(name):
        return next(iter(load_rows(str(tmp_path / name))))["chosen"]

    write("p[1].parquet", "this one")
    write("p1.parquet", "another one")  # what the name above matches as a pattern
    assert read("p[1].parquet") == "this one"
    write("p[1].parquet", "the new content")
    assert read("p[1].parquet") == "the new content"


def test_a_folder_laid_out_as_the_hub_lays_out_argilla_math(tmp_path):
    import datasets

    question = {"role": "user", "content": "2 + 2?"}
    row = {
        "chosen": [question, {"role": "assistant", "content": "4"}],
        "rejected": [question, {"role": "assistant", "content": "5"}],
        "chosen_rating": 9.0,
        "rejected_rating": 3.0,
        "metadata": json.dumps({"source": "x"}),
    }
    (tmp_path / "argilla" / "data").mkdir(parents=True)
    file = tmp_path / "argilla" / "data" / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list([row]).to_parquet(file)
    (tmp_path / "argilla" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/train-*\n---\n"
    )
    (pair,), _ = data.build_pairs(load_rows(str(tmp_path / "argilla")))
    assert pair == data.PreferencePair("2 + 2?", "4", "5", 9.0, 3.0)
    with pytest.raises(ValueError, match="test"):
        load_rows(str(tmp_path / "argilla"), split="test")
    assert SHORT_NAMES["argilla-math"] == "RLHFlow/Argilla-Math-DPO-standard"


def test_unreadable_data_is_one_clear_sentence(tmp_path):
    (tmp_path / "half.jsonl").write_text('{"prompt": "a", "cho')
    (tmp_path / "pairs.txt").write_text("x")
    for name in ("half.jsonl", "pairs.txt", "missing.jsonl", "no-such/dataset"):
        with pytest.raises(ValueError, match=f"cannot read '{name}': .+ Give a .jsonl"):
            load_rows(name)


def pairs_of(name, content):
    Path(name).write_text(content, newline="")
    return data.build_pairs(load_rows(name))[0]


def test_csv_cells_stay_as_they_are_written():
    text = (
        'prompt,chosen,rejected\n2.05 * 2?,4.10,"4,1"\nNone?,None,NA\nTwo lines?,"a\nb",007\n'
    )
    assert [pair[:3] for pair in pairs_of("p.csv", text)] == [
        ("2.05 * 2?", "4.10", "4,1"),
        ("None?", "None", "NA"),
        ("Two lines?", "a\nb", "007"),
    ]
    long = "x" * 5_000_000
    assert pairs_of("p.csv", f"prompt,chosen,rejected\nLong?,{long},short\n")[0].chosen == long
