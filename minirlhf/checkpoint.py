"""Files that are written whole or not at all: stage 8 of the data's path.

Text goes to a temporary name beside its place, is flushed to the disk and renamed. A folder is
filled beside its place and takes it by renaming, so a reader never finds a part; killed between the
two renames, the old folder is left as `.NAME.old`. Tensors are
safetensors and everything else is JSON: nothing here is ever unpickled, so loading a model that a
stranger sent cannot run code.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole: temporary name, flush, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path):
    """Read a JSON file. Raises ValueError if it is not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_jsonl(path: Path, row: dict) -> None:
    """Add one line to a JSON-lines file and flush it to the disk."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Save named tensors as safetensors."""
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under a temporary name; at the end it takes the place of `path`.

    If the block raises, `path` stays as it was.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
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
