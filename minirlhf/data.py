"""Rows of any known layout in, clean preference pairs out: stages 0 and 1 of the data's path.

    load_rows     a file, a folder or a hub id -> raw rows
    build_pairs   rows -> PreferencePairs, and a report of what was dropped and why
    split         pairs -> train, validation and test, by prompt
    index_texts   parts -> the distinct texts, and the pairs as row numbers into them

Three layouts are recognised by their columns: message lists with the prompt inside both sides
(Argilla-Math, UltraFeedback), an explicit prompt with two responses (RewardBench), and transcripts
that share their beginning (HH-RLHF).

The split hashes the prompt, so it is the same on every machine, for every approach and however
many rows are added, and no prompt is in two parts. A split by row is the classic leak: with several
pairs a prompt, the model has read most test questions, and their good answers, in training.

Copy this file alone; it needs `pyarrow` for .parquet, `datasets` for folders and the hub.
Read next: `tokens.py`.

>>> rows = [{"prompt": f"{i} + {i}?", "chosen": f"{2 * i}", "rejected": "1"} for i in range(50)]
>>> pairs, report = build_pairs(rows)
>>> [len(part) for part in split(pairs)], report["dropped"]
([39, 2, 9], {})
"""

import csv
import hashlib
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

SHORT_NAMES = {"argilla-math": "RLHFlow/Argilla-Math-DPO-standard"}
FORMATS = (".jsonl", ".json", ".csv", ".parquet")

# The usual names of each column, the first that is present counts.
COLUMNS = {
    "prompt": ["prompt", "instruction", "question"],
    "chosen": ["chosen", "chosen_response"],
    "rejected": ["rejected", "rejected_response"],
    "chosen_rating": ["chosen_rating", "chosen_score", "score_chosen", "rating_chosen"],
    "rejected_rating": ["rejected_rating", "rejected_score", "score_rejected", "rating_rejected"],
    "subset": ["subset"],
}
GOOD_ROW = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "chosen_rating": 10, ...}'


class PreferencePair(NamedTuple):
    """One preference: for `prompt`, `chosen` was preferred to `rejected`.

    Ratings are the data's own numbers, None where it has none. `subset` names a kind of pair, so
    that accuracy can be shown for each kind.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_rating: float | None = None
    rejected_rating: float | None = None
    subset: str = "all"


def load_rows(dataset: str, split: str = "train") -> Iterable[dict]:
    """The rows of a file, of a folder laid out as a hub data set, or of a hub id.

    A file's rows come one by one and once, so that those of JSON lines and .parquet are not all
    held as dictionaries; the others are a `datasets.Dataset`, which lies on disk. Raises
    ValueError, in one sentence, if there is nothing to read.
    """
    path, kind = Path(dataset), Path(dataset).suffix.lower()
    try:
        if path.is_file() or (kind in FORMATS and not path.is_dir()):
            if kind not in FORMATS or not path.is_file():
                raise ValueError("unknown file type" if path.exists() else "no such file")
            if split != "train":
                raise ValueError(f"a file has no split {split!r}")
            if kind != ".parquet":
                return _read_text(path, kind)
            from pyarrow.parquet import ParquetFile

            return (row for some in ParquetFile(path).iter_batches() for row in some.to_pylist())
        import datasets

        datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # the error below says it all
        folder = str(path.resolve()) if dataset and path.is_dir() else None
        return datasets.load_dataset(folder or SHORT_NAMES.get(dataset, dataset), split=split)
    except Exception as error:  # the library has many kinds of its own
        reason = " ".join(str(error.__cause__ or error).split())[:300].rstrip(".!") or repr(error)
        expected = "a .jsonl, .json or .csv file in UTF-8, a .parquet file, a folder or a hub id"
        raise ValueError(f"cannot read {dataset!r}: {reason}. Give {expected}") from error


def _read_text(path: Path, kind: str) -> Iterable[dict]:
    """Rows of a CSV file, where each cell is text, or of JSON: one list, or one object a line.

    Not by `datasets`: there a null between JSON rows can end the process (5.2, with pyarrow 25).
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(2**31 - 1)  # a long answer has more than the usual 131,072 characters
        table = list(csv.DictReader(file, strict=True)) if kind == ".csv" else []
        text, blank = file.read(), re.compile(r"\s*")  # "" at the end of a CSV file

    def rows() -> Iterator:
        yield from table
        place = 0
        while (place := blank.match(text, place).end()) < len(text):
            value, place = json.JSONDecoder().raw_decode(text, place)
            yield from value if isinstance(value, list) else [value]

    # Read twice: a row may lack columns that later ones have.
    columns = dict.fromkeys(name for row in rows() if isinstance(row, dict) for name in row)
    if not columns or None in columns:
        raise ValueError("a row longer than the header" if columns else f"no row like {GOOD_ROW}")
    return (columns | row if isinstance(row, dict) else columns for row in rows())


def build_pairs(
    rows: Iterable[dict], limit: int | None = None, **columns: str | None
) -> tuple[list[PreferencePair], dict]:
    """Turn rows into pairs and count what was dropped.

    limit: keep the first so many pairs; rows and drops are still counted over all the data.
    columns: names for `prompt`, `chosen`, `rejected`, `chosen_rating`, `rejected_rating` or
        `subset` where the data's own are unusual.
    Pairs of equal ratings are kept, since a regression learns from them; `usable` drops them
    where a preference is needed.
    Raises ValueError if the columns are unknown or no pair is left.
    """
    dropped: Counter[str] = Counter()
    total, seen, names = 0, {}, None
    for total, row in enumerate(rows, 1):  # noqa: B007
        names = names or find_columns(list(row), **columns)
        pair = _read_pair(row, names)
        if isinstance(pair, str):
            dropped[pair] += 1
        elif (key := (normalize(pair.prompt), pair.chosen, pair.rejected)) in seen:
            dropped["duplicate"] += 1
        else:
            seen[key] = pair
    pairs = [pair for (q, a, b), pair in seen.items() if (q, b, a) not in seen]
    dropped["contradiction: preferred both ways"] = len(seen) - len(pairs)
    dropped = +dropped  # without what did not happen
    if not pairs:
        said = ", ".join(f"{why}: {count}" for why, count in dropped.items())
        raise ValueError(f"no pair is left of {total} rows; {said}. A good row: {GOOD_ROW}")
    pairs = pairs[:limit]
    rated = [pair for pair in pairs if pair.chosen_rating is not None]
    lengths = [median(len(pair[i]) for pair in pairs) for i in range(3)]
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr(pair).encode())
    report = {
        "rows": total,
        "pairs": len(pairs),
        "prompts": len({normalize(pair.prompt) for pair in pairs}),
        "dropped": dict(dropped),
        "rated": len(rated),
        "rating_ties": sum(is_tie(pair) for pair in rated),
        "rating_against_preference": sum(p.chosen_rating < p.rejected_rating for p in rated),
        "columns": {role: name for role, name in names.items() if name},
        "subsets": dict(Counter(pair.subset for pair in pairs).most_common()),
        "median_characters": dict(zip(PreferencePair._fields, lengths, strict=False)),
        "sha256": digest.hexdigest(),
    }
    return pairs, report


def is_tie(pair: PreferencePair) -> bool:
    """True where both sides have the same rating, so that the preference is no evidence."""
    return pair.chosen_rating is not None and pair.chosen_rating == pair.rejected_rating


def usable(pairs: Sequence[PreferencePair], rated=False, ties=False) -> list[PreferencePair]:
    """The pairs without ties (unless `ties`), and with `rated` without those that lack ratings."""
    pairs = pairs if ties else [pair for pair in pairs if not is_tie(pair)]
    return [pair for pair in pairs if pair.chosen_rating is not None or not rated]


def find_columns(found: Sequence[str], **columns: str | None) -> dict[str, str | None]:
    """Which column plays which role; None for one that is absent. Raises ValueError if unknown."""
    names, there = {}, repr(", ".join(found))[1:-1][:300]
    for role, usual in COLUMNS.items():
        given = columns.get(role)
        if given and given not in found:
            raise ValueError(f"no column {given!r}; the data has: {there}")
        names[role] = given or next((name for name in usual if name in found), None)
    if not (names["chosen"] and names["rejected"]):
        expected = "; ".join(f"{role}: {' or '.join(COLUMNS[role])}" for role in COLUMNS)
        said = f"these are no preference pairs. Columns found: {there}. Expected: {expected} (all"
        raise ValueError(f"{said} but chosen and rejected may be absent). A good row: {GOOD_ROW}")
    if bool(names["chosen_rating"]) != bool(names["rejected_rating"]):
        raise ValueError("ratings for one side only; name both rating columns or neither")
    return names


def split(
    pairs: Sequence[PreferencePair], fold: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair], list[PreferencePair]]:
    """Train, validation and test parts: about 70, 10 and 20 % of the prompts, by their hash.

    fold: 0 to 4. Each prompt is in the test part of exactly one fold.
    Raises ValueError if a part is empty.
    """
    train, validation, test = [], [], []
    for pair in pairs:
        digest = hashlib.sha256(normalize(pair.prompt).encode("utf-8", "surrogatepass")).digest()
        kept = validation if int.from_bytes(digest[8:16]) % 8 == 0 else train  # 1/8 of 80 % is 10 %
        (test if int.from_bytes(digest[:8]) % 5 == fold else kept).append(pair)
    if not (train and validation and test):
        count = len({pair.prompt for pair in pairs})
        sizes = f"{len(train)} train, {len(validation)} validation and {len(test)} test pairs"
        raise ValueError(f"{count} prompts are too few to split by prompt: {sizes}")
    return train, validation, test


class Part(NamedTuple):
    """N pairs as tensors: which of the distinct texts each side is, and its rating."""

    chosen: torch.Tensor  # (N,) int64
    rejected: torch.Tensor  # (N,)
    chosen_rating: torch.Tensor  # (N,) float32, NaN where the data has none
    rejected_rating: torch.Tensor  # (N,)
    weight: torch.Tensor  # (N,) float32, how much the pair counts in the loss, 1 on average
    prompt: torch.Tensor  # (N,) int64, number of the prompt


def index_texts(
    *parts: Sequence[PreferencePair], balance: bool = False
) -> tuple[list[str], list[str], list[Part]]:
    """Number the distinct texts of all parts: (prompts, responses, the parts in those numbers).

    Where several pairs share a response it is one text, so it is tokenised and embedded once.
    balance: weigh the pairs of a part so that all its subsets count the same, the small as much as
        the large; otherwise all pairs do.
    """
    number: dict[tuple[str, str], int] = {}
    prompt_number: dict[str, int] = {}
    indexed = []
    for part in parts:
        sizes = Counter(pair.subset for pair in part)
        columns = (
            [number.setdefault((p.prompt, p.chosen), len(number)) for p in part],
            [number.setdefault((p.prompt, p.rejected), len(number)) for p in part],
            [math.nan if p.chosen_rating is None else p.chosen_rating for p in part],
            [math.nan if p.rejected_rating is None else p.rejected_rating for p in part],
            [len(part) / len(sizes) / sizes[p.subset] if balance else 1.0 for p in part],
            [prompt_number.setdefault(normalize(p.prompt), len(prompt_number)) for p in part],
        )
        indexed.append(Part(*map(torch.tensor, columns)))
    prompts, responses = zip(*number, strict=True)
    return list(prompts), list(responses), indexed


def normalize(prompt: str) -> str:
    """A prompt without what does not distinguish it: case, spaces, Unicode forms, the unseen."""
    visible = re.sub(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]", "", prompt)
    return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())


def _read_pair(row: dict, names: dict[str, str | None]) -> PreferencePair | str:
    """A pair, or the reason why the row holds none."""
    turns = {role: _turns(row.get(names[role])) for role in ("chosen", "rejected")}
    if not turns["chosen"] or not turns["rejected"]:
        return "empty or not text"
    if names["prompt"]:
        before = _turns(row.get(names["prompt"]), role="user")
        if not before:
            return "empty or not text"
        if len(before) > 1 and not before[-1][1].strip():
            before.pop()  # a prompt that ends with an empty "Assistant:"
        # Some sets give the prompt in a column of its own and inside both sides too.
        has_prompt = turns["chosen"][0][0] == "user" or before[-1] in turns["chosen"]
        turns = {k: t if has_prompt else before + t for k, t in turns.items()}
    chosen, rejected = turns["chosen"], turns["rejected"]
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1][0] == "assistant":
        shared -= 1  # the prompt ends with the user's turn
    if not shared:
        return "the two sides share no prompt"
    texts = [_flat(chosen[:shared]), _flat(chosen[shared:]), _flat(rejected[shared:])]
    if not all(t.strip() for t in texts) or re.search(r"[\ud800-\udfff]", "".join(texts)):
        return "empty or not text"
    if texts[1] == texts[2]:
        return "chosen equals rejected"
    ratings = [_rating(row.get(names[f"{side}_rating"])) for side in ("chosen", "rejected")]
    if None in ratings:
        ratings = [None, None]
    subset = row.get(names["subset"])
    subset = "all" if subset is None else " ".join(str(subset).split())
    return PreferencePair(*texts, *ratings, subset)


def _turns(value, role: str = "assistant") -> list[tuple[str, str]]:
    """(role, text) of each turn; [] for what is no text. `role` is that of a bare string."""
    if isinstance(value, str):
        parts = re.split(r"\n\n(Human|Assistant): ?", "\n\n" + value.strip())
        if len(parts) > 1 and not parts[0].strip():
            roles = {"Human": "user", "Assistant": "assistant"}
            return [(roles[r], t.strip()) for r, t in zip(parts[1::2], parts[2::2], strict=True)]
        return [(role, value)]
    messages = value if isinstance(value, (list, tuple)) else []
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        return []
    roles = ["user"] * (len(messages) - 1) + [role]  # where the data names none
    return [(str(m.get("role") or r), m["content"]) for m, r in zip(messages, roles, strict=False)]


def _flat(turns: Sequence[tuple[str, str]]) -> str:
    """One turn is its text; several are written out with their speakers, so that none is lost."""
    if len(turns) == 1:
        return turns[0][1]
    speakers = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "\n\n".join(f"{speakers.get(role, role)}: {text}" for role, text in turns)


def _rating(value) -> float | None:
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if abs(rating) < 1e9 else None  # of more, float32 has no square; nor of NaN
