"""The cache of frozen vectors: an encoder that does not learn reads each text only once, ever.

A file of the cache is named by a digest of everything its vectors depend on: the weights, the way
of pooling, the versions of the libraries, and every token id, which stands for texts, template,
tokenizer and maximum length at once. Another input has another name, so nothing in the cache can
be out of date. A file is written whole or not at all, with a checksum; a damaged one is computed
again.

Copy this file alone; it needs torch.

>>> ones = lambda token_rows: torch.ones(len(token_rows), 4)
>>> found = cached(ones, [[5, 6], [7]])
>>> found.vectors.shape, found.origin
(torch.Size([2, 4]), 'computed')
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ROWS_AT_ONCE = 10_000  # computed and written in pieces, so that memory stays flat


class Features(NamedTuple):
    """The frozen vectors of U texts."""

    vectors: torch.Tensor  # (U, D) float32, mapped from the file where there is one
    seconds: float  # that computing took, now or in the call that wrote the file
    seconds_saved: float  # by the cache: the same, or 0 where they were computed now
    origin: str  # where they are from, in words


def cached(
    compute: Callable[[Sequence], torch.Tensor],
    token_rows: Sequence,
    folder: Path | None = None,
    **depends_on: str,
) -> Features:
    """The vectors (U, D) of U token rows, computed or read from `folder`.

    compute: N token rows -> their vectors (N, D); called for 10,000 rows at a time.
    folder: None keeps the vectors in memory, and not on disk. Otherwise they are mapped from the
        file: the system loads what is used and may drop it again, so the process needs no memory
        for them.
    depends_on: what else the vectors depend on, beside the token ids.
    """
    start = time.perf_counter()
    if folder is None:
        vectors = torch.cat(list(pieces(compute, token_rows)))
        return Features(vectors, time.perf_counter() - start, 0.0, "computed")

    folder.mkdir(parents=True, exist_ok=True)  # if this fails, then before the work
    path = folder / f"{name_of(token_rows, depends_on)}.float32"
    seconds = seconds_of(path)
    if seconds is not None:
        return Features(mapped(path, len(token_rows)), seconds, seconds, str(path))

    origin = f"computed again, since {path} was damaged" if path.is_file() else "computed"
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:  # gone even if the disk is full
        vectors_file = Path(unfinished, "vectors")
        with open(vectors_file, "wb") as file:
            for piece in pieces(compute, token_rows):
                file.write(piece.numpy().tobytes())
        seconds = time.perf_counter() - start
        about_file = Path(unfinished, "about")
        about_file.write_text(f"{sha256(vectors_file)} {seconds}")
        os.replace(about_file, about(path))
        os.replace(vectors_file, path)
    return Features(mapped(path, len(token_rows)), seconds, 0.0, origin)


def cache_folder() -> Path:
    """Where frozen features are kept: $MINIRLHF_CACHE, else in the user's cache folder."""
    folder = os.environ.get("MINIRLHF_CACHE") or os.path.expanduser("~/.cache/minirlhf")
    return Path(folder) / "features"


def pieces(compute: Callable, token_rows: Sequence) -> Iterator[torch.Tensor]:
    """The vectors of a piece of the rows at a time, in float32 on the CPU."""
    for start in range(0, len(token_rows), ROWS_AT_ONCE):
        yield compute(token_rows[start : start + ROWS_AT_ONCE]).float().cpu()


def name_of(token_rows: Sequence, depends_on: dict[str, str]) -> str:
    """A digest of everything that the vectors depend on."""
    digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode())
    for ids in token_rows:
        digest.update(array("i", [len(ids), *ids]).tobytes())
    return digest.hexdigest()[:32]


def about(path: Path) -> Path:
    """The small file beside a file of vectors, with its checksum and the seconds it took."""
    return path.with_suffix(".sha256")


def seconds_of(path: Path) -> float | None:
    """The seconds that a sound file of vectors took to compute; None if it is absent or damaged."""
    with contextlib.suppress(OSError, ValueError):
        checksum, seconds = about(path).read_text().split()
        if checksum == sha256(path) and float(seconds) >= 0:
            return float(seconds)
    return None


def mapped(path: Path, count: int) -> torch.Tensor:
    """The vectors (count, D) of a file, without reading it."""
    numbers = torch.from_file(str(path), size=path.stat().st_size // 4)
    return numbers.view(count, -1)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
