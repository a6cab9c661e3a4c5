"""From rows to preference pairs, and from pairs to the three parts of an experiment.

    build_pairs    rows -> PreferencePairs, and a report of what was dropped and why
    split          pairs -> train, validation and test, by prompt
    number_texts   pairs -> the distinct texts, each with a number
    make_part      pairs -> tensors of these numbers, ready for training

The split is made by a hash of the prompt. It is therefore the same on every machine and for every
approach, it does not change when rows are added, and no prompt is in two parts. Splitting by row
is the classic leak: where a prompt has several pairs, the model has read most of the test
questions, and their good answers, in training.

The many layouts of public data are read by `layouts.py`. Copy the two together; they need torch.
Read next: `tokens.py` (or `layouts.py`, for the forms of a conversation).

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
from collections.abc import Hashable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from minirlhf.layouts import (
    GOOD_ROW,
    UnusableRow,
    find_columns,
    read_prompt,
    unread_columns,
    write_texts,
)

# The finished model's training accuracy is counted on about so many training pairs. All of them
# would take as long as the test.
TRAIN_SAMPLE_PAIRS = 500

# How a sample of pairs is drawn.
FEWEST_PROMPTS = 50  # in a sample, if there are so many
USUAL_PAIRS_OF_A_PROMPT = 20  # a prompt with no more than these is taken whole

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


class Dropped:
    """What was dropped: how often for each reason, and the first row of each."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, reason: str, row_number: int, found: object) -> None:
        """Count a drop; row_number: 1 for the first row; found: what it held."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"row {row_number}: {shortened(found)}")

    def __str__(self) -> str:
        """All reasons in one line."""
        parts = []
        for reason, count in self.counts.items():
            parts.append(f"{reason}: {count} (first {self.first[reason]})")
        return ", ".join(parts)


def shortened(value: object, width: int = 70) -> str:
    """A value as Python writes it, in one line of at most `width` characters."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 3] + "..."


def build_pairs(
    rows: Iterable[dict], limit: int | None = None, **columns: str | None
) -> tuple[list[PreferencePair], dict]:
    """Turn rows into pairs, and report what was dropped or not read: (pairs, report).

    limit: keep this many pairs at most, the first ones. Rows and drops are counted over all data.
    columns: names for `prompt`, `chosen`, `rejected`, `chosen_rating`, `rejected_rating` or
        `subset`, for data whose own names are unusual.

    A row compares one chosen response with one rejected response. If a side is a list of
    responses, each of them is compared with each of the other side.

    Pairs of equal ratings are kept, because a regression learns from them; `usable` drops them
    where a preference is needed. Raises ValueError if the columns are unknown or no pair is left.
    """
    total = 0
    compared = 0
    names: dict[str, str | None] = {}
    not_read: dict[str, str] = {}
    dropped = Dropped()
    found: list[tuple[int, PreferencePair]] = []  # each with the number of its row
    for row in rows:
        total += 1
        if not names:
            names = find_columns(list(row), **columns)
            not_read = unread_columns(list(row), names)
        for comparison in comparisons(row, names):
            compared += 1
            try:
                found.append((total, read_pair(row, comparison, names)))
            except UnusableRow as reason:
                dropped.add(str(reason), total, reason.found)

    pairs = without_repeats(found, dropped)
    if not pairs:
        raise ValueError(f"no pair is left of {total} rows; {dropped}. A good row: {GOOD_ROW}")

    pairs = pairs[:limit]
    report = {"rows": total, "comparisons": compared}
    report |= describe(pairs, dropped, names)
    report["not_read"] = not_read
    return pairs, report


def without_repeats(
    found: Sequence[tuple[int, PreferencePair]], dropped: Dropped
) -> list[PreferencePair]:
    """The pairs without duplicates, and without those that are preferred both ways.

    found: pairs, each with the number of its row. dropped: what was left out is counted there.
    The exact texts are compared. 5² and 52 look alike to the split, but are different questions.
    """
    first: dict[tuple[str, str, str], tuple[int, PreferencePair]] = {}
    for row_number, pair in found:
        texts = (pair.prompt, pair.chosen, pair.rejected)
        if texts in first:
            dropped.add("duplicate", row_number, pair.prompt)
        else:
            first[texts] = (row_number, pair)

    pairs = []
    for row_number, pair in first.values():
        if (pair.prompt, pair.rejected, pair.chosen) in first:
            dropped.add("contradiction: preferred both ways", row_number, pair.prompt)
        else:
            pairs.append(pair)
    return pairs


def describe(
    pairs: Sequence[PreferencePair], dropped: Dropped, names: dict[str, str | None]
) -> dict:
    """The counts of the report that `build_pairs` gives.

    Rows and pairs, pairs dropped by reason, rated pairs and their ties, the columns that were used,
    subsets, median lengths, and a checksum of the pairs.
    """
    rated = [pair for pair in pairs if pair.chosen_rating is not None]
    against = [pair for pair in rated if pair.chosen_rating < pair.rejected_rating]
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr(pair).encode())
    return {
        "pairs": len(pairs),
        "prompts": len({normalize(pair.prompt) for pair in pairs}),  # as the split sees them
        "dropped": dict(dropped.counts),
        "first_dropped": dropped.first,
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
    train = []
    validation = []
    test = []
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
    # Some of `train`, without ties: the finished model's training accuracy is counted on these.
    train_sample: list[PreferencePair]
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
        train_sample=sample_pairs(usable(train, rated)),
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


def sample_pairs(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """A sample of the pairs, on which the training accuracy is counted: see `sample_by_prompt`."""
    prompts = [normalize(pair.prompt) for pair in pairs]
    return [pairs[i] for i in sample_by_prompt(prompts, TRAIN_SAMPLE_PAIRS)]


def sample_by_prompt(prompts: Sequence[Hashable], most: int) -> list[int]:
    """The indices of the pairs of every k-th prompt.

    prompts: that of each pair.
    most: k is the smallest number for which at most `most` pairs are expected. The result may hold
        as few as half of `most`, and a few more than `most` where the prompts differ in how many
        pairs they have.

    All pairs of a prompt are taken, because they share responses, and the prompts are spread over
    the data, which may be sorted by source. Only where there are few prompts with very many pairs
    each, more of the prompts are taken, and of each the first pairs: one prompt alone would say
    little about the others.
    """
    if len(prompts) <= most:
        return list(range(len(prompts)))
    distinct = list(dict.fromkeys(prompts))
    k = min(math.ceil(len(prompts) / most), max(1, len(distinct) // FEWEST_PROMPTS))
    taken = distinct[::k]
    most_of_each = max(USUAL_PAIRS_OF_A_PROMPT, math.ceil(most / len(taken)))
    left = dict.fromkeys(taken, most_of_each)
    picked = []
    for i, prompt in enumerate(prompts):
        if left.get(prompt, 0) > 0:
            left[prompt] -= 1
            picked.append(i)
    return picked


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
    """N pairs as tensors, a whole part or one batch of it: the texts of each side, and ratings."""

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


class Comparison(NamedTuple):
    """Two sides as they stand in a row, with the ratings."""

    chosen: object
    rejected: object
    chosen_rating: object
    rejected_rating: object


def comparisons(row: dict, names: dict[str, str | None]) -> list[Comparison]:
    """The comparisons in a row: one, or more where a side is a list of responses.

    names: what `find_columns` returned.
    """
    chosen = row.get(names["chosen"])
    rejected = row.get(names["rejected"])
    chosen_ratings = ratings_of(row.get(names["chosen_rating"]), chosen)
    rejected_ratings = ratings_of(row.get(names["rejected_rating"]), rejected)
    chosen_responses = responses_of(chosen)
    rejected_responses = responses_of(rejected)
    found = []
    for better, better_rating in zip(chosen_responses, chosen_ratings, strict=True):
        for worse, worse_rating in zip(rejected_responses, rejected_ratings, strict=True):
            found.append(Comparison(better, worse, better_rating, worse_rating))
    return found


def is_list_of_responses(value) -> bool:
    """True for a list of texts or of conversations; a list of messages is one conversation."""
    if not isinstance(value, (list, tuple)):
        return False
    return any(not isinstance(item, dict) for item in value)


def responses_of(value) -> Sequence:
    """The responses of a side, each in whatever form it has."""
    return value if is_list_of_responses(value) else [value]


def ratings_of(value, side) -> Sequence:
    """A rating for each response of a side: those of a list that is as long, or one for all."""
    responses = responses_of(side)
    if is_list_of_responses(side) and isinstance(value, list) and len(value) == len(responses):
        return value
    return [value] * len(responses)


def read_pair(
    row: dict, comparison: Comparison, names: dict[str, str | None]
) -> PreferencePair:
    """The pair of one comparison in a row. Raises UnusableRow, with the reason, if it is none.

    names: what `find_columns` returned.
    """
    before = read_prompt(row, names)
    responses = [comparison.chosen, comparison.rejected]
    called = [names["chosen"], names["rejected"]]
    prompt, (chosen, rejected) = write_texts(before, responses, called, may_be_empty=False)
    for text in (prompt, chosen, rejected):
        half_a_surrogate_pair = re.search(r"[\ud800-\udfff]", text)
        if half_a_surrogate_pair:
            raise UnusableRow("half of a surrogate pair, which is no text", text)
    if chosen == rejected:
        raise UnusableRow("chosen equals rejected", chosen)

    chosen_rating = read_rating(comparison.chosen_rating)
    rejected_rating = read_rating(comparison.rejected_rating)
    if chosen_rating is None or rejected_rating is None:
        chosen_rating = None
        rejected_rating = None
    return PreferencePair(
        prompt, chosen, rejected, chosen_rating, rejected_rating, subset_of(row, names)
    )


def read_rating(value) -> float | None:
    """A rating as a number; None if it is missing or not a number."""
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if not abs(rating) < 1e9:  # NaN, or so large that its square is no float32
        return None
    return rating


def subset_of(row: dict, names: dict[str, str | None]) -> str:
    """The name of the kind of pair, in one line; "all" where the data have none."""
    subset = row.get(names["subset"])
    return "all" if subset is None else " ".join(str(subset).split())
