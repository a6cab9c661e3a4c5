"""Rows out of a file, a folder or a hub id.

A file is read by a small reader of our own where `datasets` fails: a null between JSON rows can end
the process (datasets 5.2 with pyarrow 25), and a CSV cell would be guessed to be a number or a
date. `.parquet` is read by pyarrow, row group by row group; folders and hub ids by `datasets`.

Copy this file alone; it needs `pyarrow` for .parquet, and `datasets` for folders and the hub.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "pairs.jsonl"
>>> _ = path.write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}')
>>> list(load_rows(str(path)))
[{'prompt': '2 + 2?', 'chosen': '4', 'rejected': '5'}]
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

SHORT_NAMES = {"argilla-math": "RLHFlow/Argilla-Math-DPO-standard"}
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
GOOD_ROW = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "chosen_rating": 10, ...}'


def load_rows(dataset: str, split: str = "train") -> Iterable[dict]:
    """The rows of a file, of a folder laid out as a hub data set, or of a hub id.

    A file's rows come one by one and once, so that those of JSON lines and .parquet are not all
    held as dictionaries; the others are a `datasets.Dataset`, which lies on disk. Raises
    ValueError, in one sentence, if there is nothing to read.
    """
    try:
        return open_rows(dataset, split)
    except Exception as error:  # each library has many kinds of its own
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300].rstrip(".!") or repr(error)
        expected = (
            "a .jsonl, .json or .csv file in UTF-8, a .parquet file, a folder or a hub id"
        )
        raise ValueError(f"cannot read {dataset!r}: {reason}. Give {expected}") from error


def open_rows(dataset: str, split: str) -> Iterable[dict]:
    """As `load_rows`, with whatever error the reading library raises."""
    path = Path(dataset)
    kind = path.suffix.lower()
    is_folder = path.is_dir()
    if path.is_file() or (kind in FORMATS and not is_folder):
        if not path.exists():
            raise ValueError("no such file")
        if (
            kind not in FORMATS or not path.is_file()
        ):  # to read a pipe would be to wait for ever
            raise ValueError("unknown file type")
        if split != "train":
            raise ValueError(f"a file has no split {split!r}")
        return read_parquet(path) if kind == ".parquet" else read_text(path, kind)

    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # `load_rows` says what is wrong
    if dataset and is_folder:
        return datasets.load_dataset(str(path.resolve()), split=split)
    return datasets.load_dataset(SHORT_NAMES.get(dataset, dataset), split=split)


def read_parquet(path: Path) -> Iterator[dict]:
    """The rows of a .parquet file, a batch at a time."""
    from pyarrow.parquet import ParquetFile

    file = ParquetFile(path)  # opened at once, so that a damaged file is an error here

    def rows() -> Iterator[dict]:
        for batch in file.iter_batches():
            yield from batch.to_pylist()

    return rows()


def read_text(path: Path, kind: str) -> Iterator[dict]:
    """The rows of a .csv file, where each cell is text, or of a .json or .jsonl file."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        if kind == ".csv":
            csv.field_size_limit(2**31 - 1)  # long answers exceed the usual 131,072 characters
            table = list(csv.DictReader(file, strict=True))
        else:
            text = file.read()

    def values() -> Iterator:
        return iter(table) if kind == ".csv" else json_values(text)

    # Read twice: a row may lack columns that later ones have.
    columns: dict[str, None] = {}
    for value in values():
        if isinstance(value, dict):
            columns |= dict.fromkeys(value)
    if not columns:
        raise ValueError(f"no row like {GOOD_ROW}")
    if None in columns:
        raise ValueError("a row longer than the header")

    def rows() -> Iterator[dict]:
        for value in values():
            yield columns | value if isinstance(value, dict) else dict(columns)

    return rows()


def json_values(text: str) -> Iterator:
    """The rows of a JSON text: those of one list, or one value after the other."""
    decoder = json.JSONDecoder()
    blank = re.compile(r"\s*")
    place = blank.match(text).end()
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        if isinstance(value, list):
            yield from value
        else:
            yield value
        place = blank.match(text, place).end()
