"""Files that are written whole or not at all.

A file is written under a temporary name beside its place, flushed to the disk and then renamed. A
folder is filled beside its place and takes it by renaming, so a reader never finds half of one. If
the process is killed between two renames, the old folder is left as `.NAME.old`.

Tensors are safetensors and everything else is JSON. Nothing here is ever unpickled, so loading a
model that a stranger sent cannot run code.

Copy this file alone; it needs torch and safetensors.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> write_json(folder / "a.json", {"loss": 0.5})
>>> read_json(folder / "a.json")
{'loss': 0.5}
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole: temporary name, flush, rename."""
    temporary = temporary_name(path)
    temporary.write_text(text, encoding="utf-8")
    take_place(temporary, path)


def temporary_name(path: Path) -> Path:
    """The hidden name beside `path` under which it is written."""
    return path.with_name(f".{path.name}.tmp")


def take_place(temporary: Path, path: Path) -> None:
    """Flush a file to the disk and give it its name."""
    with open(temporary, "rb+") as file:
        # Otherwise a power cut could leave the new name with no content.
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path):
    """Read a JSON file. Raises ValueError if it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """Write a JSON-lines file whole."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    write_text(path, "".join(lines))


def read_jsonl(path: Path) -> list[dict]:
    """The records of a JSON-lines file; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def append_jsonl(path: Path, record: dict) -> None:
    """Add a record to the end of a JSON-lines file."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def cut_jsonl(path: Path, key: str, last: int) -> list[dict]:
    """Drop what a stopped run wrote after its last whole epoch, and return the records before.

    key, last: the records are kept in which the number under `key` is at most `last`. The last line
    may be unfinished, where the run was killed.
    """
    if not path.exists():
        return []
    kept = []
    for line in path.read_text("utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if record[key] <= last:
            kept.append(record)
    write_jsonl(path, kept)
    return kept


class Saved(NamedTuple):
    """What a file of `save_tensors` holds."""

    tensors: dict[str, torch.Tensor]
    numbers: object  # whatever JSON can hold


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], numbers=None) -> None:
    """Save named tensors, and with them what JSON can hold, as one safetensors file, whole."""
    from safetensors.torch import save_file

    temporary = temporary_name(path)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, temporary, {"numbers": json.dumps(numbers)})
    take_place(temporary, path)


def load_tensors(path: Path) -> Saved:
    """What `save_tensors` wrote."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
        return Saved(tensors, json.loads(file.metadata()["numbers"]))


@contextmanager
def whole_folder(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Fill a folder under a temporary name; at the end it takes the place of `path`.

    If the block raises, `path` stays as it was. Raises ValueError if `path` is there, unless it is
    to be overwritten.
    """
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists")
    path = path.resolve()  # a link stays one
    temporary = temporary_name(path)
    old = path.with_name(f".{path.name}.old")
    for left_over in (temporary, old):
        shutil.rmtree(left_over, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
