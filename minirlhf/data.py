"""From rows to preference pairs, and from pairs to the three parts of an experiment.

    build_pairs    rows -> PreferencePairs, and a report of what was dropped and why
    split          pairs -> train, validation and test, by prompt
    number_texts   pairs -> the distinct texts, each with a number
    make_part      pairs -> tensors of these numbers, ready for training

Three layouts of rows are recognised by their columns: message
lists with the prompt inside both sides (Argilla-Math, UltraFeedback), a prompt column with two
responses (RewardBench), and transcripts that share their beginning (HH-RLHF).

The split is made by a hash of the prompt. It is therefore the same on every machine and for every
approach, it does not change when rows are added, and no prompt is in two parts. Splitting by row
is the classic leak: where a prompt has several pairs, the model has read most of the test
questions, and their good answers, in training.

Copy this file alone; it needs torch. Read next: `tokens.py`.

>>> rows = [{"prompt": f"{i} + {i}?", "chosen": f"{2 * i}", "rejected": "1"} for i in range(50)]
>>> pairs, report = build_pairs(rows)
>>> [len(part) for part in split(pairs)], report["dropped"]
([39, 2, 9], {})
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

import torch

# The usual names of each column. The first one that is present counts.
COLUMNS = {
    "prompt": ["prompt", "instruction", "question"],
    "chosen": ["chosen", "chosen_response"],
    "rejected": ["rejected", "rejected_response"],
    "chosen_rating": ["chosen_rating", "chosen_score", "score_chosen", "rating_chosen"],
    "rejected_rating": [
        "rejected_rating",
        "rejected_score",
        "score_rejected",
        "rating_rejected",
    ],
    "subset": ["subset"],
}
GOOD_ROW = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "chosen_rating": 10, ...}'


# ---- pairs


class PreferencePair(NamedTuple):
    """One preference: for `prompt`, the response `chosen` was preferred to `rejected`.

    The ratings are the data's own numbers, and None where it has none. `subset` names a kind of
    pair, so that accuracy can be shown for each kind.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_rating: float | None = None
    rejected_rating: float | None = None
    subset: str = "all"


class UnusableRow(ValueError):
    """A row that holds no preference pair. The message is the reason that the report counts."""


def build_pairs(
    rows: Iterable[dict], limit: int | None = None, **columns: str | None
) -> tuple[list[PreferencePair], dict]:
    """Turn rows into pairs, and report what was dropped: (pairs, report).

    limit: keep this many pairs at most, the first ones. Rows and drops are counted over all data.
    columns: names for `prompt`, `chosen`, `rejected`, `chosen_rating`, `rejected_rating` or
        `subset`, for data whose own names are unusual.

    Pairs of equal ratings are kept, because a regression learns from them; `usable` drops them
    where a preference is needed. Raises ValueError if the columns are unknown or no pair is left.
    """
    total = 0
    names: dict[str, str | None] = {}
    dropped: Counter[str] = Counter()
    found: dict[tuple[str, str, str], PreferencePair] = {}
    for row in rows:
        total += 1
        if not names:
            names = find_columns(list(row), **columns)
        try:
            pair = read_pair(row, names)
        except UnusableRow as reason:
            dropped[str(reason)] += 1
            continue
        key = (normalize(pair.prompt), pair.chosen, pair.rejected)
        if key in found:
            dropped["duplicate"] += 1
        else:
            found[key] = pair

    pairs = []
    for (prompt, chosen, rejected), pair in found.items():
        if (prompt, rejected, chosen) in found:
            dropped["contradiction: preferred both ways"] += 1
        else:
            pairs.append(pair)
    if not pairs:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise ValueError(f"no pair is left of {total} rows; {reasons}. A good row: {GOOD_ROW}")

    pairs = pairs[:limit]
    return pairs, describe(pairs, total, dropped, names)


def describe(
    pairs: Sequence[PreferencePair],
    total: int,
    dropped: Counter[str],
    names: dict[str, str | None],
) -> dict:
    """The report that `build_pairs` gives: how many rows there were, and what became of them."""
    rated = [pair for pair in pairs if pair.chosen_rating is not None]
    against = [pair for pair in rated if pair.chosen_rating < pair.rejected_rating]
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr(pair).encode())
    return {
        "rows": total,
        "pairs": len(pairs),
        "prompts": len({normalize(pair.prompt) for pair in pairs}),
        "dropped": dict(dropped),
        "rated": len(rated),
        "rating_ties": sum(is_tie(pair) for pair in rated),
        "rating_against_preference": len(against),
        "columns": {role: name for role, name in names.items() if name},
        "subsets": dict(Counter(pair.subset for pair in pairs).most_common()),
        "median_characters": {
            "prompt": median(len(pair.prompt) for pair in pairs),
            "chosen": median(len(pair.chosen) for pair in pairs),
            "rejected": median(len(pair.rejected) for pair in pairs),
        },
        "sha256": digest.hexdigest(),
    }


def is_tie(pair: PreferencePair) -> bool:
    """True where both sides have the same rating, so that the preference is no evidence."""
    return pair.chosen_rating is not None and pair.chosen_rating == pair.rejected_rating


def usable(
    pairs: Sequence[PreferencePair], rated: bool = False, ties: bool = False
) -> list[PreferencePair]:
    """The pairs that can serve a purpose.

    rated: leave out pairs without ratings, for a loss that needs them.
    ties: keep pairs whose two ratings are equal. They say nothing about a preference, but a
        regression learns from them.
    """
    kept = []
    for pair in pairs:
        if rated and pair.chosen_rating is None:
            continue
        if is_tie(pair) and not ties:
            continue
        kept.append(pair)
    return kept


# ---- the split


def split(
    pairs: Sequence[PreferencePair], fold: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair], list[PreferencePair]]:
    """Train, validation and test parts: about 70, 10 and 20 % of the prompts, by their hash.

    fold: 0 to 4. Each prompt is in the test part of exactly one fold.
    Raises ValueError if a part is empty.
    """
    train, validation, test = [], [], []
    for pair in pairs:
        prompt = normalize(pair.prompt).encode("utf-8", "surrogatepass")
        digest = hashlib.sha256(prompt).digest()
        # Two numbers that depend on nothing but the prompt, and not on each other.
        first = int.from_bytes(digest[:8])
        second = int.from_bytes(digest[8:16])
        if first % 5 == fold:  # one prompt in five
            test.append(pair)
        elif second % 8 == 0:  # one in eight of the others: 10 % of all
            validation.append(pair)
        else:
            train.append(pair)

    if not (train and validation and test):
        prompts = len({pair.prompt for pair in pairs})
        sizes = f"{len(train)} train, {len(validation)} validation and {len(test)} test pairs"
        raise ValueError(f"{prompts} prompts are too few to split by prompt: {sizes}")
    return train, validation, test


class Parts(NamedTuple):
    """The pairs of an experiment, each part without what it cannot use."""

    train: list[PreferencePair]  # learned from
    train_untied: list[
        PreferencePair
    ]  # the same without ties; training accuracy is about these
    validation: list[PreferencePair]
    test: list[PreferencePair]


def split_usable(
    pairs: Sequence[PreferencePair], fold: int, rated: bool = False, ties: bool = False
) -> Parts:
    """Split the pairs by prompt, and leave out of each part what is of no use to it.

    rated: leave out pairs without ratings, except in the test part. That part does not depend on
        the approach, so that all approaches are tested on the same pairs.
    ties: keep pairs of equal ratings to learn from. As preferences, and in any evaluation, they are
        useless.
    Raises ValueError if a part is empty.
    """
    train, validation, test = split(pairs, fold)
    parts = Parts(
        train=usable(train, rated, ties),
        train_untied=usable(train, rated),
        validation=usable(validation, rated),
        test=usable(test),
    )
    if not all(parts):
        with_ratings = [pair for pair in pairs if pair.chosen_rating is not None]
        equal = sum(is_tie(pair) for pair in with_ratings)
        raise ValueError(
            f"too few pairs ({len(with_ratings)} of {len(pairs)} rated, {equal} of them equal); "
            "regression and --margin need ratings"
        )
    return parts


def sizes(parts: Parts) -> dict[str, int]:
    """How many pairs each part has."""
    return {
        "train": len(parts.train),
        "validation": len(parts.validation),
        "test": len(parts.test),
    }


def normalize(prompt: str) -> str:
    """A key that is the same for prompts that differ only in how they are written.

    It ignores upper and lower case, white space, different Unicode forms of one character, and
    characters that cannot be seen.
    """
    visible = re.sub(r"[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]", "", prompt)
    return " ".join(unicodedata.normalize("NFKC", visible).casefold().split())


# ---- texts as numbers


class Texts(NamedTuple):
    """The U distinct texts of some pairs, each a prompt with one response, and their numbers."""

    prompts: list[str]  # (U,)
    responses: list[str]  # (U,)
    text_id: dict[tuple[str, str], int]  # (prompt, response) -> 0 ... U - 1
    prompt_id: dict[str, int]  # prompt -> its number; spellings of one prompt share it


class Part(NamedTuple):
    """N pairs as tensors: which of the distinct texts each side is, and its rating."""

    chosen: torch.Tensor  # (N,) int64, text ids
    rejected: torch.Tensor  # (N,) int64
    chosen_rating: torch.Tensor  # (N,) float32, NaN where the data has none
    rejected_rating: torch.Tensor  # (N,)
    weight: torch.Tensor  # (N,) float32, how much the pair counts in the loss, 1 on average
    prompt: torch.Tensor  # (N,) int64, prompt ids

    def pick(self, picked: Sequence[int] | torch.Tensor | slice) -> "Part":
        """Some of the pairs, by their numbers."""
        return Part(*(column[picked] for column in self))

    def to(self, device: torch.device | str) -> "Part":
        """The same pairs on a device."""
        return Part(*(column.to(device) for column in self))


def number_texts(*groups: Sequence[PreferencePair]) -> Texts:
    """Number the distinct texts of one or more groups of pairs.

    Where several pairs share a response it is one text, so it is tokenised and embedded once. In
    each group the chosen responses get their numbers first, then the rejected ones.

    >>> pairs = [PreferencePair("2+2?", "4", "5"), PreferencePair("2+2?", "4", "6")]
    >>> number_texts(pairs).responses
    ['4', '5', '6']
    """
    text_id: dict[tuple[str, str], int] = {}
    prompt_id: dict[str, int] = {}
    normalized_id: dict[str, int] = {}
    for pairs in groups:
        for pair in pairs:
            text_id.setdefault((pair.prompt, pair.chosen), len(text_id))
        for pair in pairs:
            text_id.setdefault((pair.prompt, pair.rejected), len(text_id))
        for pair in pairs:
            if pair.prompt not in prompt_id:
                same = normalized_id.setdefault(normalize(pair.prompt), len(normalized_id))
                prompt_id[pair.prompt] = same
    prompts = [prompt for prompt, _ in text_id]
    responses = [response for _, response in text_id]
    return Texts(prompts, responses, text_id, prompt_id)


def make_part(pairs: Sequence[PreferencePair], texts: Texts, balance: bool = False) -> Part:
    """The pairs as tensors of the numbers that `number_texts` gave to their texts.

    balance: weight the pairs so that all subsets count the same, the small as much as the large.
    """
    sizes = Counter(pair.subset for pair in pairs)
    chosen, rejected, chosen_rating, rejected_rating, weight, prompt = ([], [], [], [], [], [])
    for pair in pairs:
        chosen.append(texts.text_id[pair.prompt, pair.chosen])
        rejected.append(texts.text_id[pair.prompt, pair.rejected])
        chosen_rating.append(math.nan if pair.chosen_rating is None else pair.chosen_rating)
        rejected_rating.append(
            math.nan if pair.rejected_rating is None else pair.rejected_rating
        )
        fair_share = len(pairs) / len(sizes) / sizes[pair.subset]
        weight.append(fair_share if balance else 1.0)
        prompt.append(texts.prompt_id[pair.prompt])
    return Part(
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.tensor(chosen_rating),
        torch.tensor(rejected_rating),
        torch.tensor(weight),
        torch.tensor(prompt),
    )


# ---- reading one row

Turn = tuple[str, str]  # (role, text)


def find_columns(found: Sequence[str], **columns: str | None) -> dict[str, str | None]:
    """Which column plays which role; None for one that is absent.

    found: the names of the data's columns; columns: what the caller calls a role, if unusual.
    Raises ValueError if a column that was named is absent, or if there are no pairs in the data.
    """
    listed = repr(", ".join(found))[1:-1][:300]  # a tab in a name is written as \t
    names: dict[str, str | None] = {}
    for role, usual in COLUMNS.items():
        given = columns.get(role)
        if given and given not in found:
            raise ValueError(f"no column {given!r}; the data has: {listed}")
        present = [name for name in usual if name in found]
        names[role] = given or (present[0] if present else None)

    if not (names["chosen"] and names["rejected"]):
        expected = "; ".join(f"{role}: {' or '.join(usual)}" for role, usual in COLUMNS.items())
        raise ValueError(
            f"these are no preference pairs. Columns found: {listed}. Expected: {expected} "
            f"(all but chosen and rejected may be absent). A good row: {GOOD_ROW}"
        )
    if bool(names["chosen_rating"]) != bool(names["rejected_rating"]):
        raise ValueError("ratings for one side only; name both rating columns or neither")
    return names


def read_pair(row: dict, names: dict[str, str | None]) -> PreferencePair:
    """The pair in a row. Raises UnusableRow, with the reason, if the row holds no pair.

    names: what `find_columns` returned.
    """
    chosen = turns_of(row.get(names["chosen"]))
    rejected = turns_of(row.get(names["rejected"]))
    if not chosen or not rejected:
        raise UnusableRow("empty or not text")
    if names["prompt"]:
        prompt = turns_of(row.get(names["prompt"]), role="user")
        if not prompt:
            raise UnusableRow("empty or not text")
        if len(prompt) > 1 and not prompt[-1][1].strip():
            prompt.pop()  # a prompt that ends with an empty "Assistant:"
        chosen = with_prompt(prompt, chosen)
        rejected = with_prompt(prompt, rejected)

    shared = shared_turns(chosen, rejected)
    if not shared:
        raise UnusableRow("the two sides share no prompt")
    prompt_text = as_text(chosen[:shared])
    chosen_text = as_text(chosen[shared:])
    rejected_text = as_text(rejected[shared:])
    for text in (prompt_text, chosen_text, rejected_text):
        half_a_surrogate_pair = re.search(r"[\ud800-\udfff]", text)
        if not text.strip() or half_a_surrogate_pair:
            raise UnusableRow("empty or not text")
    if chosen_text == rejected_text:
        raise UnusableRow("chosen equals rejected")

    chosen_rating = read_rating(row.get(names["chosen_rating"]))
    rejected_rating = read_rating(row.get(names["rejected_rating"]))
    if chosen_rating is None or rejected_rating is None:
        chosen_rating, rejected_rating = None, None
    subset = row.get(names["subset"])
    subset = "all" if subset is None else " ".join(str(subset).split())
    return PreferencePair(
        prompt_text, chosen_text, rejected_text, chosen_rating, rejected_rating, subset
    )


def turns_of(value, role: str = "assistant") -> list[Turn]:
    """The turns of a conversation; an empty list if the value is not text.

    value: a string, a transcript of Human and Assistant, or a list of messages.
    role: whose turn a bare string is.
    """
    if isinstance(value, str):
        parts = re.split(r"\n\n(Human|Assistant): ?", "\n\n" + value.strip())
        if len(parts) == 1 or parts[0].strip():
            return [(role, value)]
        roles = {"Human": "user", "Assistant": "assistant"}
        speakers = parts[1::2]
        texts = parts[2::2]
        return [(roles[s], text.strip()) for s, text in zip(speakers, texts, strict=True)]

    if not isinstance(value, (list, tuple)):
        return []
    turns = []
    for place, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return []
        is_last = place == len(value) - 1
        usual_role = role if is_last else "user"  # where the data names none
        turns.append((str(message.get("role") or usual_role), message["content"]))
    return turns


def with_prompt(prompt: list[Turn], side: list[Turn]) -> list[Turn]:
    """A side with the prompt before it, unless the side has the prompt inside already."""
    if side[0][0] == "user" or prompt[-1] in side:
        return side
    return prompt + side


def shared_turns(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many turns at the beginning are the prompt: those that the sides share.

    Each side keeps a turn of its own, and the prompt ends with a turn of the user.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1][0] == "assistant":
        shared -= 1
    return shared


def as_text(turns: Sequence[Turn]) -> str:
    """One turn is its text; several are written out with their speakers, so that none is lost."""
    if len(turns) == 1:
        return turns[0][1]
    speakers = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "\n\n".join(f"{speakers.get(role, role)}: {text}" for role, text in turns)


def read_rating(value) -> float | None:
    """A rating as a number; None if it is missing or not a number."""
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not abs(rating) < 1e9:  # NaN, or so large that its square is no float32
        return None
    return rating
