"""The folder of a run: who may write to it, and whether a run in it can go on.

Copy this file alone; it needs filelock.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> free_name(folder / "regression").name
'regression'
>>> with locked(folder / "regression"):
...     pass  # nobody else writes to it in here
"""

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_name(folder: Path) -> Path:
    """The folder itself if there is none of that name, else NAME-2, NAME-3, ..."""
    candidate = folder
    number = 1
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def check_may_be_written(folder: Path, overwrite: bool) -> None:
    """Raise ValueError if the folder exists, unless it holds a run that is to be overwritten."""
    if not folder.exists():
        return
    if not overwrite:
        raise ValueError(
            f"{folder} exists; give another --output, or --overwrite to replace it"
        )
    config = folder / "config.json"  # a folder with any model in it has one, too
    if not config.is_file() or '"arguments"' not in config.read_text("utf-8"):
        raise ValueError(f"{folder} is no run folder, so it is not overwritten")


def check_disk(folder: Path, needed: int) -> None:
    """Raise ValueError if the disk of a folder's parent has fewer than `needed` bytes free."""
    if shutil.disk_usage(folder.parent).free < needed:
        raise ValueError(f"{folder} needs {needed / 1e6:,.0f} MB on this disk, which has less")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run folder, which need not exist yet.

    Raises ValueError if another process is in it, OSError if nothing can be written there. A killed
    process leaves no lock behind.
    """
    from filelock import FileLock, Timeout

    path = folder.resolve()  # one lock for one folder, whatever it is called
    made = [parent for parent in path.parents if not parent.exists()]  # the nearest first
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_file = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"another run is writing to {folder}; give another --output"
        ) from error
    try:
        yield
    finally:
        lock_file.unlink(missing_ok=True)
        lock.release()
        for parent in made:  # where nothing was written, nothing is left
            if not any(parent.iterdir()):
                parent.rmdir()


def reopen(folder: Path) -> dict:
    """The `config.json` of a run that was stopped.

    Raises ValueError if no run was started there, or if it is finished.
    """
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        is_whole = {"arguments", "data", "encoder", "command"} <= config.keys()
        history = folder / "history.jsonl"
        lines = history.read_text("utf-8").splitlines() if history.exists() else []
        epochs = [json.loads(line) for line in lines]
        is_sound = all(epoch["seconds"] >= 0 and epoch["epoch"] > 0 for epoch in epochs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise not_sound(folder) from error
    if not (is_whole and is_sound):
        raise not_sound(folder)
    if (folder / "metrics.json").exists():
        raise ValueError(f"the run in {folder} is finished")
    return config


def not_sound(folder: Path) -> ValueError:
    """The error of a folder in which no run can go on."""
    return ValueError(f"{folder} holds no sound run of this version to go on with")


def resumed_config(folder: Path, now: dict) -> dict:
    """The `config.json` with which the run in the folder was started.

    now: what it would be today. Raises ValueError if the run would go on with other data or with
    another encoder.
    """
    before = reopen(folder)
    for key in ("data", "encoder"):
        if before[key] != now[key]:
            raise ValueError(f"not the same {key} as when {folder} was started")
    return before


def can_go_on(folder: Path) -> bool:
    """True if a run was started in the folder and is not finished."""
    return (folder / "config.json").exists() and not (folder / "metrics.json").exists()


def is_helper() -> bool:
    """True in each of torchrun's processes but the first, even before they have joined."""
    return "LOCAL_RANK" in os.environ and int(os.environ["RANK"]) > 0


def silent_scratch_folder(exists: bool) -> Path:
    """Print nothing from now on, and return a folder to write to that is deleted at the end.

    exists: make the folder already, as a resumed run expects.

    For the processes that help the first one: what they would print and write, it does.
    """
    scratch = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    folder = scratch / "run"
    if exists:
        folder.mkdir()
    return folder
