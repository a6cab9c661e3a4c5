"""The rows of a data set: of a file, of a local folder, or of the hub.

`datasets` reads the hub. A local folder is read from inside itself only: we list its files first,
and its README.md can merely choose among them. (`datasets` would let the README.md name any file of
the machine as the folder's data.) No data set runs code: datasets 5 has no loading scripts any
more, and refuses the argument `trust_remote_code`.

`rows.py` reads the files themselves. This file needs `huggingface_hub` for a folder's README.md,
and `datasets` for the hub.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

from minirlhf.runtime.rows import (
    AS_CSV,
    KINDS,
    UNPACK,
    Refused,
    inner_name,
    kind_of,
    rows_of_files,
)

SHORT_NAMES = {"argilla-math": "RLHFlow/Argilla-Math-DPO-standard"}
EXPECTED = (
    "a .jsonl, .json, .csv or .tsv file in UTF-8 or a .parquet file (also as .gz, .xz or .zst), "
    "a folder of one such kind, or a hub id"
)

AS_JSONL = "write its rows as JSON lines"
OTHER_KINDS = {  # what to do with files that people have, and that are not read
    ".zip": UNPACK,
    ".tar": UNPACK,
    ".tgz": UNPACK,
    ".7z": UNPACK,
    ".rar": UNPACK,
    ".xlsx": AS_CSV,
    ".xls": AS_CSV,
    ".ods": AS_CSV,
    ".pkl": AS_JSONL + ", because loading a pickle can run code",
    ".pt": AS_JSONL + ", because loading a pickle can run code",
    ".txt": AS_JSONL,
    ".yaml": AS_JSONL,
    ".yml": AS_JSONL,
    ".xml": AS_JSONL,
    ".feather": "write it as .parquet",
    ".db": AS_JSONL,
    ".sqlite": AS_JSONL,
}

# Files beside the data that are no data. `datasets` leaves them out, too.
NO_DATA = (
    "config.json",
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
)
SPLIT_WORDS = {  # those that `datasets` looks for in names
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
MOST_ENTRIES = 100_000  # of a folder; a folder of more is probably a whole disk


# ---- what the rest of the library calls


def load_rows(dataset: str, split: str = "train", config: str | None = None) -> Iterator[dict]:
    """The rows of a file, of a folder or of a data set on the hub, one by one and once.

    dataset: a path or a hub id.
    split: the split of a folder or a hub id; a file is one split, "train".
    config: which configuration to read, of a folder or a hub id that has several.

    Each row has all columns of the data; None stands for what a row lacks. Text files are read
    twice, first for the columns, and are never held as a whole. Raises ValueError, in one
    sentence: at once, except for damage in the middle of a .parquet or .arrow file.
    """
    try:
        rows = open_rows(dataset, split, config)
    except Exception as error:  # each library has many kinds of its own
        raise ValueError(in_a_sentence(dataset, error)) from error
    return checked(rows, dataset)


def checked(rows: Iterable[dict], dataset: str) -> Iterator[dict]:
    """The same rows; whatever goes wrong between them is a ValueError."""
    try:
        yield from rows
    except Exception as error:
        raise ValueError(in_a_sentence(dataset, error)) from error


def in_a_sentence(dataset: str, error: Exception) -> str:
    """What is wrong with the data, and what to do."""
    if isinstance(error, Refused):
        return f"cannot read {dataset!r}: {error}"
    cause = error.__cause__ or error
    reason = " ".join(str(cause).split())[:300].rstrip(".!") or repr(error)
    if isinstance(error, PermissionError):
        return f"cannot read {dataset!r}: {reason}; let yourself read it, as with chmod u+r"
    return f"cannot read {dataset!r}: {reason}. Give {EXPECTED}"


def open_rows(dataset: str, split: str, config: str | None) -> Iterable[dict]:
    """As `load_rows`, with whatever error the reading library raises."""
    if not dataset:
        raise Refused(f"no name of data; give {EXPECTED}")
    path = Path(dataset)
    if path.is_dir():
        return rows_of_files(files_of_split(path.resolve(), split, config))
    if path.exists() or not may_be_hub_id(dataset):
        check_file(path, dataset, split, config)
        return rows_of_files([path])
    return rows_of_hub(SHORT_NAMES.get(dataset, dataset), split, config)


def may_be_hub_id(dataset: str) -> bool:
    """Whether a name could be one on the hub: NAME or OWNER/NAME, without a file's ending."""
    has_the_form = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", dataset) is not None
    suffix = inner_name(Path(dataset)).suffix
    return has_the_form and suffix not in KINDS and suffix not in OTHER_KINDS


def check_file(path: Path, dataset: str, split: str, config: str | None) -> None:
    """Refuse what is not one plain file of a kind that we read."""
    if "://" in dataset:
        raise Refused("it is an address; download the file first")
    if not path.exists():
        raise Refused("no such file or folder")
    if not path.is_file():  # reading a pipe would be waiting for ever
        raise Refused("it is no plain file but a pipe or a device; write the rows to a file")
    if kind_of(path) is None:
        raise Refused(unknown_kind(path))
    if split != "train":
        raise Refused(f"a file has no split {split!r}; --split is for folders and hub ids")
    if config is not None:
        raise Refused(f"a file has no configuration {config!r}; leave out --config")


def unknown_kind(path: PurePath) -> str:
    """Why the file is not read, and what to do."""
    suffix = inner_name(path).suffix
    if suffix == "":
        return f"unknown file type, because its name has no ending; give {EXPECTED}"
    advice = OTHER_KINDS.get(suffix, f"give {EXPECTED}")
    return f"unknown file type {suffix!r}; {advice}"


# ---- folders: files inside, and nothing else


def files_of_split(folder: Path, split: str, config: str | None) -> list[Path]:
    """The data files of one split of a folder, in the order of their names."""
    configs = configs_of(folder)
    chosen = configs[choose_config(list(configs), default_config(configs), config)]
    found = data_files(folder)
    found = [file for file in found if file.relative_to(folder).is_relative_to(chosen.folder)]
    if not found:
        raise Refused(not_inside(chosen.folder))

    if chosen.patterns:
        check_split(split, chosen.patterns)
        files = matching(chosen.patterns[split], folder / chosen.folder, found)
    else:
        by_split = by_split_name(folder, found)
        check_split(split, by_split)
        files = by_split[split]

    kinds = {kind_of(file): file.relative_to(folder) for file in files}
    if len(kinds) > 1:
        names = " and ".join(repr(str(file)) for file in kinds.values())
        raise Refused(f"files of several kinds, such as {names}; give one file, or one kind")
    return files


def data_files(folder: Path) -> list[Path]:
    """The files below a folder whose names are those of data, all of them inside it.

    As `datasets` does, we pass over hidden files and folders, and what `datasets` itself keeps
    beside its data.
    """
    found = []
    entries = 0
    for place, folders, names in os.walk(folder, onerror=raise_error):
        entries += len(folders) + len(names)
        if entries > MOST_ENTRIES:
            raise Refused(f"more than {MOST_ENTRIES:,} files; give a folder with one data set")
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        for name in folders:
            check_inside(Path(place, name), folder)  # `os.walk` follows no link to a folder
        for name in names:
            file = Path(place, name)
            is_cache = name.startswith("cache-") and name.endswith(".arrow")
            is_hidden = name.startswith((".", "__"))
            if kind_of(file) and name not in NO_DATA and not is_cache and not is_hidden:
                check_inside(file, folder)
                found.append(file)
    if not found:
        raise Refused(f"no data file in this folder; give {EXPECTED}")
    return sorted(found)


def raise_error(error: OSError) -> None:
    """A folder that cannot be listed is an error; `os.walk` would pass over it."""
    raise error


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a link that leaves the folder, and what is neither a plain file nor a folder."""
    target = path.resolve()
    name = str(path.relative_to(folder))
    inside = target.is_relative_to(folder)
    if folder.parent.name == "snapshots":  # where the hub's cache keeps links to its own files
        inside = inside or target.is_relative_to(folder.parents[1] / "blobs")
    if not inside:
        raise Refused(f"{name!r} is a link that leaves the folder; put a copy in its place")
    if not target.is_file() and not target.is_dir():
        raise Refused(f"{name!r} is no plain file; remove it")


def by_split_name(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split, by the names of the files and of the folders they are in.

    If no name tells a split, all files are of the split "train". If some names do, the files whose
    names do not are left out, as by `datasets`.
    """
    is_saved_dict = (folder / "dataset_dict.json").is_file()  # of `DatasetDict.save_to_disk`
    named: dict[str, list[Path]] = {}
    for file in files:
        split = file.parent.name if is_saved_dict else split_in_name(file, folder)
        if split is not None:
            named.setdefault(split, []).append(file)
    return named or {"train": list(files)}


def split_in_name(file: Path, folder: Path) -> str | None:
    """The split that a file's name tells, or that of a folder it is in; None if none does."""
    # On the hub, data/filtered-00000-of-00002.parquet is a file of the split "filtered".
    path = file.relative_to(folder)
    piece = re.match(r"(\w+)-\d{5}-of-\d{5}", path.name)
    if piece and path.parent.name == "data":
        return piece.group(1)
    for part in path.parts:
        for word in re.split(r"[-._ \d]+", part.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return None


def check_split(split: str, splits: Iterable[str]) -> None:
    """Refuse a split that does not exist."""
    if split not in splits:
        names = ", ".join(sorted(splits))
        raise Refused(f"no split {split!r}; choose one with --split: {names}")


# ---- configurations: those that a folder's README.md lists, or the hub


class Configuration(NamedTuple):
    """One of several data sets in a folder, as its README.md describes it."""

    folder: str  # the folder inside that it is in
    patterns: dict[str, list[str]]  # of the names of each split's files; empty if not given
    is_default: bool


def configs_of(folder: Path) -> dict[str, Configuration]:
    """The configurations of a folder by name; a single one, "default", if README.md lists none."""
    readme = folder / "README.md"
    only = {"default": Configuration("", {}, is_default=True)}
    if not readme.is_file():
        return only

    from huggingface_hub import metadata_load

    try:
        listed = (metadata_load(readme) or {}).get("configs") or []
        configs = {text_of(about["config_name"]): configuration(about) for about in listed}
    except Exception as error:  # of the reader of YAML, or because the list is of another form
        raise Refused(
            "the configurations at the top of its README.md are not written as the hub wants "
            "them; mend or remove that file"
        ) from error
    return configs or only


def configuration(about: dict) -> Configuration:
    """One entry of `configs` in a README.md. Raises errors of all kinds if it is malformed."""
    listed = about.get("data_files") or []
    if isinstance(listed, str):
        listed = [listed]
    patterns: dict[str, list[str]] = {}
    for entry in listed:
        if isinstance(entry, str):
            entry = {"split": "train", "path": entry}
        paths = entry["path"]
        if isinstance(paths, str):
            paths = [paths]
        patterns.setdefault(text_of(entry["split"]), []).extend(text_of(path) for path in paths)

    is_default = bool(about.get("default")) or about["config_name"] == "default"
    return Configuration(text_of(about.get("data_dir") or ""), patterns, is_default)


def text_of(value) -> str:
    """A name in YAML. Raises TypeError if it is a list or the like, which may be endless."""
    if not isinstance(value, (str, int)):
        raise TypeError(f"a {type(value).__name__} is no name")
    return str(value)


def default_config(configs: dict[str, Configuration]) -> str | None:
    """The configuration to read if none is asked for; None if one must be asked for."""
    for name, about in configs.items():
        if len(configs) == 1 or about.is_default:
            return name
    return None


def choose_config(names: Sequence[str], default: str | None, asked: str | None) -> str:
    """The configuration that was asked for, or the default. Refuses one that does not exist."""
    listed = ", ".join(names)
    if asked is None and default is None:
        raise Refused(f"it has several configurations; choose one with --config: {listed}")
    name = default if asked is None else asked
    if name not in names:
        raise Refused(f"no configuration {name!r}; choose one with --config: {listed}")
    return name


def matching(patterns: Sequence[str], base: Path, found: Sequence[Path]) -> list[Path]:
    """Those of the files found that match a pattern. Refuses a pattern that matches none."""
    files = set()
    for pattern in patterns:
        wanted = PurePath(pattern).parts
        matched = [file for file in found if matches(file.relative_to(base).parts, wanted)]
        if not matched:
            raise Refused(not_inside(pattern))
        files.update(matched)
    return sorted(files)


@cache
def matches(parts: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    """Whether a path matches a pattern, both cut at each slash; ** is any number of folders.

    `glob` would search the disk, and could be led outside or in circles by links.
    """
    if not wanted:
        return not parts
    if wanted[0] == "**":
        rests = [parts[start:] for start in range(len(parts) + 1)]
        return any(matches(rest, wanted[1:]) for rest in rests)
    if not parts:
        return False
    return fnmatchcase(parts[0], wanted[0]) and matches(parts[1:], wanted[1:])


def not_inside(pattern: str) -> str:
    """Why what a README.md names is not read, and what to do."""
    return (
        f"its README.md names {pattern!r} as data, and no data file inside the folder has that "
        "name; a folder is read from inside itself only, so put the data there or mend README.md"
    )


# ---- the hub


def rows_of_hub(name: str, split: str, config: str | None) -> Iterable[dict]:
    """The rows of a data set on the hub, which `datasets` downloads and keeps on disk."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # `load_rows` says what is wrong
    try:
        builder = datasets.load_dataset_builder(name, config)
    except ValueError:
        names = datasets.get_dataset_config_names(name)
        choose_config(names, datasets.get_dataset_default_config_name(name), config)
        raise
    refuse_local_files(builder.config.data_files or {})
    builder.download_and_prepare()
    try:
        return builder.as_dataset(split)
    except ValueError as error:
        names = ", ".join(builder.info.splits)
        raise Refused(f"no split {split!r}; choose one with --split: {names}") from error


def refuse_local_files(data_files: dict[str, list[str]]) -> None:
    """Refuse a data set on the hub whose README.md names files of this machine as its data."""
    for files in data_files.values():
        for file in files:
            place = str(file).split("::")[-1]  # of zip://inside::hf://outside
            if not place.startswith(("hf://", "https://", "http://")):
                raise Refused(
                    f"its README.md names {place!r}, a file of this machine, as data; "
                    "choose another data set"
                )
