"""Rows out of files: JSON, CSV, Parquet and Arrow, also compressed.

`pyarrow` reads .parquet and .arrow. JSON and CSV are read by small readers of our own, because
`datasets` (5.2, with pyarrow 25) fails there in two ways: a null between rows of JSON can end the
process, and the cells of a CSV file are guessed to be numbers or dates, so that the answer 4.10
becomes 4.1. What is damaged, or something else than its name says, is refused in one sentence.

Copy this file alone. It needs `pyarrow` for .parquet, .arrow and .zst.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "pairs.jsonl"
>>> _ = path.write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}')
>>> list(rows_of_files([path]))
[{'prompt': '2 + 2?', 'chosen': '4', 'rejected': '5'}]
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO, TextIO

GOOD_ROW = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "chosen_rating": 10, ...}'

KINDS = {
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
UNPACK = "unpack it and give the file inside"
AS_CSV = 'save the sheet as "CSV UTF-8"'
FIRST_BYTES = {  # what a file is, whatever its name says
    b"PK\x03\x04": f"it is a zip archive or an Excel file; {UNPACK}, or {AS_CSV}",
    b"\xd0\xcf\x11\xe0": f"it is an old or encrypted Office file; {AS_CSV}",
    b"PAR1": "it is a Parquet file; give it the ending .parquet",
    b"ARROW1": "it is an Arrow file; give it the ending .arrow",
    b"\xff\xff\xff\xff": "it is an Arrow file; give it the ending .arrow",
    b"\xff\xfe": "it is UTF-16, not UTF-8; save it as UTF-8",
    b"\xfe\xff": "it is UTF-16, not UTF-8; save it as UTF-8",
    b"\x1f\x8b": f"it is compressed twice; {UNPACK}",
    b"\xfd7zXZ\x00": f"it is compressed twice; {UNPACK}",
    b"\x28\xb5\x2f\xfd": f"it is compressed twice; {UNPACK}",
}
POINTER = b"version https://git-lfs"  # `git clone` leaves it in the place of a large file
ROWS_AT_ONCE = 1000  # of a Parquet file, so that few rows are held as dictionaries
CHARACTERS_AT_ONCE = 2**16  # of a JSON file


class Refused(ValueError):
    """Data that are not read. The message says why, and what to do."""


def inner_name(path: PurePath) -> PurePath:
    """The name of the file inside a compressed file, in small letters; else the file's own."""
    name = PurePath(path.name.lower())
    return name.with_suffix("") if name.suffix in COMPRESSED else name


def kind_of(path: PurePath) -> str | None:
    """What a file holds by its name, a value of KINDS; None if we do not read such files."""
    return KINDS.get(inner_name(path).suffix)


# ---- rows of files: two passes, the first of which finds the columns


def rows_of_files(files: Sequence[Path]) -> Iterator[dict]:
    """The rows of all files, each with all columns that any of them has."""
    columns = {}  # a dictionary keeps the order, and None stands for what a row lacks
    for file in files:
        columns.update(dict.fromkeys(columns_of(file)))
    if not columns:
        raise Refused(f"no row like {GOOD_ROW}")
    return complete_rows(files, columns)


def complete_rows(files: Sequence[Path], columns: dict[str, None]) -> Iterator[dict]:
    """The second pass: the rows themselves. What is no row becomes one without any text."""
    for file in files:
        for value in values_of(file):
            own = value if isinstance(value, dict) else {}
            yield {**columns, **own}


def columns_of(file: Path) -> Iterable[str]:
    """The names of the columns of a file. Reads a text file to its end, to find every mistake."""
    if kind_of(file) in ("Parquet", "Arrow"):
        with named_damage():
            return schema_of(open_table(file)).names
    columns = {}
    count = 0
    for value in values_of(file):
        count += 1
        if isinstance(value, dict):
            columns.update(dict.fromkeys(value))
    if count == 1 and isinstance(value, dict):
        refuse_table(value)
    return columns


def values_of(file: Path) -> Iterator:
    """What stands in a file, one after the other: dictionaries, unless the file is no table."""
    kind = kind_of(file)
    with named_damage():
        if kind == "JSON":
            yield from json_values(file)
        elif kind == "CSV":
            yield from csv_rows(file)
        else:
            yield from table_rows(file)


@contextmanager
def named_damage() -> Iterator[None]:
    """Say what the errors of the libraries that read files mean, and what to do."""
    try:
        yield
    except Refused:
        raise
    except UnicodeDecodeError as error:
        raise Refused(f"{error}; it is no text in UTF-8, so save it as UTF-8") from error
    except csv.Error as error:
        raise Refused(f"{error}; a quote that opens a cell must close it, too") from error
    except (EOFError, zlib.error, lzma.LZMAError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own, such as "Permission denied"
        reason = " ".join(str(error).split()).rstrip(".")
        raise Refused(
            f"{reason}; it is damaged, cut short, encrypted or of another kind than its name "
            "says, so fetch or write it again"
        ) from error


# ---- bytes and text


def open_bytes(path: Path) -> BinaryIO:
    """The content of a file, or of the file inside a compressed one.

    The first bytes decide and not the name, because programs that fetch files sometimes unpack
    them and keep the name.
    """
    with open(path, "rb") as file:
        start = file.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if start.startswith(b"BZh"):
        return bz2.open(path)
    if start.startswith(b"\xfd7zXZ\x00"):
        return lzma.open(path)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd")
    return open(path, "rb")


def first_bytes_of(path: Path) -> bytes:
    """The first bytes of what `open_bytes` opens. Refuses a pointer to a file."""
    with open_bytes(path) as file:
        start = file.read(32)
    if start.startswith(POINTER):
        raise Refused("it is only a pointer of Git LFS; fetch the file with: git lfs pull")
    return start


def open_text(path: Path) -> TextIO:
    """The text of a file in UTF-8, with or without a byte order mark. Refuses what is no text."""
    start = first_bytes_of(path)
    for first_bytes, words in FIRST_BYTES.items():
        if start.startswith(first_bytes):
            raise Refused(words)
    if b"\0" in start[:4]:
        raise Refused("it is no text in UTF-8 but binary data or UTF-16; save it as UTF-8")
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


# ---- JSON


def json_values(path: Path) -> Iterator:
    """The values of a JSON file: those of one list, or one value after the other.

    A value may be longer than a line. So lines are added until it can be decoded, each time twice
    as many, and an error counts only if it is not simply that the text ends too early.
    """
    decoder = json.JSONDecoder()
    blank = re.compile(r"\s*")
    text = ""  # what is read and not decoded yet
    line = 1  # the number of its first line
    with open_text(path) as file:
        while True:
            more = "".join(file.readlines(max(CHARACTERS_AT_ONCE, len(text))))
            text += more
            place = blank.match(text).end()
            while place < len(text):
                try:
                    value, end = decoder.raw_decode(text, place)
                except json.JSONDecodeError as error:
                    ends_too_early = error.pos >= len(text.rstrip())
                    if more and ends_too_early:
                        break
                    raise Refused(json_mistake(error, place, line)) from None
                if isinstance(value, list):
                    yield from value
                else:
                    yield value
                place = blank.match(text, end).end()
            if not more:
                return
            line += text.count("\n", 0, place)
            text = text[place:]


def json_mistake(error: json.JSONDecodeError, place: int, line: int) -> str:
    """What is wrong, and where. place: where the value starts; line: the number of line 1."""
    number = line + error.lineno - 1
    where = f"line {number} column {error.colno}"
    if error.pos == place and error.doc[place] == ",":
        return (
            f"a comma between two rows: {where}; remove the commas after the rows, or put [ and ] "
            "around all of them"
        )
    return f"{error.msg}: {where}; mend the file, which must be JSON or JSON lines"


def refuse_table(value: dict) -> None:
    """Refuse a whole table in one JSON object, as pandas writes it unless told otherwise."""
    parts = list(value.values())
    by_number = all(is_numbered(part) for part in parts)  # {"chosen": {"0": "4", ...}, ...}
    by_list = all(is_list_of_cells(part) for part in parts)  # {"chosen": ["4", ...], ...}
    by_row = is_numbered(value)  # {"0": {"chosen": "4", ...}, ...}
    in_parts = "data" in value and ("schema" in value or "columns" in value)
    if value and (by_number or by_list or by_row or in_parts):
        raise Refused(
            "it is a table by columns, not by rows; write it with pandas as "
            'df.to_json("pairs.jsonl", orient="records", lines=True)'
        )


def is_numbered(value) -> bool:
    """Whether a value is a dictionary whose keys are the numbers of rows."""
    return isinstance(value, dict) and len(value) > 0 and all(key.isdigit() for key in value)


def is_list_of_cells(value) -> bool:
    """Whether a value is a list that is no list of messages."""
    return isinstance(value, list) and not any(isinstance(cell, dict) for cell in value)


# ---- CSV


def csv_rows(path: Path) -> Iterator[dict]:
    """The rows of a CSV file. Each cell is text, exactly as it is written.

    The columns are separated by whatever the header has most of: commas, semicolons (a
    spreadsheet in much of Europe) or tabs.
    """
    csv.field_size_limit(2**31 - 1)  # long answers exceed the usual 131,072 characters
    with open_text(path) as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        lines = itertools.chain([header], file)
        table = csv.DictReader(lines, delimiter=delimiter, strict=True)
        names = table.fieldnames or []
        for name in names:
            if name and names.count(name) > 1:
                raise Refused(f"two columns are called {name!r}; rename one of them")
        for row in table:
            if None in row:
                raise Refused(
                    f"a row longer than the header: it ends in line {table.line_num}; put cells "
                    "with commas or quotes into quotes"
                )
            yield row


# ---- Parquet and Arrow


def open_table(path: Path):
    """A Parquet or Arrow file, as pyarrow's reader of it."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    start = first_bytes_of(path)
    is_compressed = path.suffix.lower() in COMPRESSED
    if is_compressed:  # the file inside cannot be read from its end, as Parquet is
        with open_bytes(path) as file:
            source = pyarrow.BufferReader(file.read())
    else:
        source = pyarrow.OSFile(str(path))
    if kind_of(path) == "Parquet":
        return ParquetFile(source)
    if start.startswith(b"ARROW1"):
        return pyarrow.ipc.open_file(source)
    return pyarrow.ipc.open_stream(source)


def table_rows(path: Path) -> Iterator[dict]:
    """The rows of a Parquet or Arrow file, few at a time."""
    table = open_table(path)
    schema = schema_of(table)
    has_json = "arrow.json" in str(schema)
    for batch in table_batches(table):
        batch.validate(full=True)  # a damaged file could crash the process otherwise
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            for row in batch.slice(start, ROWS_AT_ONCE).to_pylist():
                yield decoded(row, schema) if has_json else row


def schema_of(table):
    """The names and types of the columns of what `open_table` returns."""
    from pyarrow.parquet import ParquetFile

    return table.schema_arrow if isinstance(table, ParquetFile) else table.schema


def table_batches(table) -> Iterator:
    """The record batches of what `open_table` returns."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    if isinstance(table, ParquetFile):
        yield from table.iter_batches(batch_size=ROWS_AT_ONCE)
    elif isinstance(table, pyarrow.RecordBatchFileReader):
        for number in range(table.num_record_batches):
            yield table.get_batch(number)
    else:
        yield from table


def decoded(row: dict, schema) -> dict:
    """A row of a table with that schema of pyarrow's, with the JSON texts inside it decoded."""
    types = {field.name: field.type for field in schema}
    return {name: decode_json(value, types[name]) for name, value in row.items()}


def decode_json(value, kind):
    """A value of the pyarrow type `kind`, with the JSON texts inside it decoded.

    `datasets` writes a column as JSON if its values are of several types, such as a message whose
    content is a text in one row and a list of parts in another.
    """
    import pyarrow

    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return json.loads(value)
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        return [decode_json(one, kind.value_type) for one in value]
    if pyarrow.types.is_struct(kind):
        return {field.name: decode_json(value[field.name], field.type) for field in kind}
    return value
