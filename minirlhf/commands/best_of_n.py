"""How good is a run at choosing the best of several responses? The second half of `evaluate`.

A verifier is a reward model whose only job is to choose: several candidates are sampled for each
prompt, and the one with the highest reward is taken (Cobbe et al. 2021, section 4.2,
https://arxiv.org/abs/2110.14168). If it is known which candidates are correct, the choice can be
judged, and so can other ways to choose: at random, by the majority of the final answers, always the
same author, or by an oracle that takes a correct response wherever there is one.

All of them are compared by one trick. Each way to choose gives a number to each candidate, and the
candidate with the highest number is taken; equal numbers share equally. So `best_of` serves all.

What to copy: `best_of`, which needs nothing else of this file. What is left out: ways to combine
rewards and votes.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from math import comb
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf import data, layouts, metrics
from minirlhf.report.results import prompts_of
from minirlhf.report.tables import interval, table
from minirlhf.score import Scorer

# A number at the end of a text whose thousands have no commas. Signs may follow it: "$1800.50." or
# "(72 %)". It is not the 2 of 1/2, x2, \frac{1}{2} or 1,2.
FINAL_NUMBER = re.compile(r"((?<!\w)-)?(?<![\w./])(?<!\}\{)(?<!\d,)(\d+(\.\d+)?|\.\d+)(?=\W*$)")
THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
MINUS = "\u2212"  # the sign of typography, in place of the hyphen of programmers


class Candidates(NamedTuple):
    """K responses to one prompt, and which of them are correct."""

    prompt: str
    responses: list[str]  # K
    correct: list[bool]  # K
    models: list[str | None] | None = None  # K, who wrote them; None where the data do not say
    answers: list | None = None  # K, the final answers
    subset: str = "all"


Numbers = Sequence[Sequence[float]]  # for each of N prompts, a number for each candidate


class Choice(NamedTuple):
    """A way to choose: take the candidate with the highest number."""

    name: str
    numbers: Numbers
    note: str | None = None


# ---- reading candidates


def read_candidates(rows: Iterable[dict], **columns: str | None) -> list[Candidates]:
    """Rows -> Candidates. Raises ValueError with the number of the first row that is not sound.

    columns: names for `prompt` or `subset`, for data whose own names are unusual.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(read_row(row, **columns))
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
    return found


def read_row(row: dict, **columns: str | None) -> Candidates:
    """Raises ValueError with the reason if the row is not sound."""
    lists = {name: row.get(name) for name in ("responses", "correct", "models", "answers")}
    check_lists(lists)
    names = layouts.name_columns(list(row), **columns)
    prompt, lists["responses"] = read_texts(row, lists["responses"], names)
    return Candidates(prompt, **lists, subset=data.subset_of(row, names))


def read_texts(
    row: dict, responses: Sequence, names: dict[str, str | None]
) -> tuple[str, list[str]]:
    """The prompt and the responses as in training. Raises ValueError if they are no text.

    A response may be empty, as that of a model that says nothing.
    """
    try:
        prompt, texts = layouts.write_texts(layouts.read_prompt(row, names), responses)
    except layouts.UnusableRow as reason:
        raise ValueError(f"`prompt` or a response is empty or no text: {reason}") from None
    if not prompt.strip():
        raise ValueError("`prompt` or a response is empty or no text: the prompt is empty")
    return prompt, texts


def check_lists(lists: dict[str, list | None]) -> None:
    """Raise ValueError unless the lists are sound and of one length; the last two may be None."""
    for name, values in lists.items():
        if values is not None and not isinstance(values, list):
            raise ValueError(f"`{name}` is no list")

    responses = lists["responses"]
    if not responses or not all(isinstance(item, (str, list, dict)) for item in responses):
        raise ValueError("`responses` is no list of texts")
    correct = lists["correct"]
    if not correct or not all(value in (0, 1) for value in correct):
        raise ValueError("`correct` is no list of true and false")
    authors = lists["models"] or []
    if not all(author is None or isinstance(author, str) for author in authors):
        raise ValueError("`models` is no list of names")

    for name, values in lists.items():
        if values is not None and len(values) != len(responses):
            sizes = f"{len(responses)} in `responses`, {len(values)} in `{name}`"
            raise ValueError(f"{sizes}; both need one for each candidate")


def has_lists(row: dict, **columns: str | None) -> bool:
    """Whether both `chosen` and `rejected` are lists of responses, as in RewardBench 2."""
    names = layouts.name_columns(list(row), **columns)
    return all(data.is_list_of_responses(row.get(names[r])) for r in ("chosen", "rejected"))


def read_lists(
    rows: Iterable[dict], **columns: str | None
) -> tuple[list[Candidates], dict[str, int]]:
    """Rows with one response in `chosen` and several in `rejected` -> Candidates.

    This is the layout of RewardBench 2 (https://arxiv.org/abs/2506.01937), whose score is the
    accuracy of best of 4, by subset. Its subset Ties has a score of its own, since several answers
    are right there, and is left out, like any other row with several chosen responses. The second
    result says how many rows of which subset were left out.
    Raises ValueError with the number of the first row that is not sound, or if none is left.
    """
    found = []
    left_out: Counter[str] = Counter()
    for number, row in enumerate(rows, start=1):
        names = layouts.find_columns(list(row), **columns)
        subset = data.subset_of(row, names)
        chosen = data.responses_of(row.get(names["chosen"]))
        rejected = data.responses_of(row.get(names["rejected"]))
        if subset == "Ties" or len(chosen) != 1:
            left_out[subset] += 1
            continue
        try:
            prompt, texts = read_texts(row, [*chosen, *rejected], names)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        correct = [True] + [False] * len(rejected)
        found.append(Candidates(prompt, texts, correct, subset=subset))
    if not found:
        raise ValueError("no row has one chosen response; " + left_out_text(left_out))
    return found, dict(left_out)


def left_out_text(left_out: dict[str, int]) -> str:
    """The subsets that `read_lists` left out, by name; "" if there is none."""
    if not left_out:
        return ""
    named = ", ".join(f"{count} rows of the subset {name}" for name, count in left_out.items())
    return f"left out, since more than one response may be right: {named}"


# ---- a number for each candidate


def judge(scorer: Scorer, rows: Sequence[Candidates]) -> Numbers:
    """The model's number for each candidate: its reward, or for a classification its win rate.

    Raises ValueError if a number is not finite.
    """
    if scorer.approach == "classification":
        numbers = [win_rates(scorer, row) for row in rows]
    else:
        numbers = rewards(scorer, rows)
    for of_one_prompt in numbers:
        if not all(math.isfinite(number) for number in of_one_prompt):
            raise ValueError("the model gives rewards that are not finite")
    return numbers


def rewards(scorer: Scorer, rows: Sequence[Candidates]) -> Numbers:
    """The reward of each candidate. A distinct text is scored once, so equal texts tie exactly."""
    texts = {}  # the distinct texts as keys, in the order in which they come
    for row in rows:
        for response in row.responses:
            texts[row.prompt, response] = None
    prompts = [prompt for prompt, response in texts]
    responses = [response for prompt, response in texts]
    reward = dict(zip(texts, scorer.score_texts(prompts, responses), strict=True))
    return [[reward[row.prompt, response] for response in row.responses] for row in rows]


def win_rates(scorer: Scorer, row: Candidates) -> list[float]:
    """For each candidate, the mean probability of being preferred to one of the others."""
    (rates,) = scorer.judge_texts([(row.prompt, row.responses)])
    rate_of = dict(zip(row.responses, rates, strict=True))  # equal texts tie exactly
    return [rate_of[response] for response in row.responses]


def votes(row: Candidates) -> list[int]:
    """How many candidates give the same final answer as each: (K,); 0 where it cannot be told.

    The answer is that of the column `answers`, or else the number at the very end of the response.
    Numbers are equal however they are written: 1,000 and 1000.0.
    """
    answers = row.answers
    if answers is None:
        answers = [number_at_end(response) for response in row.responses]
    answers = [in_one_form(answer) for answer in answers]
    count = Counter(answers)
    return [count[answer] if answer else 0 for answer in answers]


def number_at_end(text: str) -> str | None:
    """The number at the very end of a text, or None if there is none."""
    text = THOUSANDS_COMMA.sub("", text).replace(MINUS, "-")
    found = FINAL_NUMBER.search(text)
    return found[0] if found else None


def in_one_form(answer) -> str | None:
    """An answer as a text that is the same for equal numbers; None for None."""
    if answer is None:
        return None
    text = str(answer).strip()
    try:
        return str(float(text.replace(MINUS, "-")))
    except ValueError:  # an answer in words
        return text


# ---- from numbers to choices


def best_of(numbers: Sequence[float], correct: Sequence[bool], n: int) -> float:
    """Chance that the highest number of n candidates, drawn out of K, is that of a correct one.

    The chance is exact: all C(K, n) subsets are counted, of which C(left, n) hold none of the
    candidates with a higher number. Equal numbers share equally. With `correct` as the numbers it
    is the oracle's chance, which is pass@n (https://arxiv.org/abs/2107.03374, equation 1). WebGPT,
    too, estimates best of n from K samples (https://arxiv.org/abs/2112.09332, appendix I).

    >>> best_of([3.0, 2.0, 1.0], [False, True, True], 2)  # one of three subsets lacks the 3.0
    0.3333333333333333
    """
    left = len(numbers)
    subsets_won = 0.0
    for highest in sorted(set(numbers), reverse=True):
        tied = [
            good for number, good in zip(numbers, correct, strict=True) if number == highest
        ]
        subsets = comb(left, n) - comb(left - len(tied), n)  # those in which it is the highest
        subsets_won += subsets * sum(tied) / len(tied)
        left -= len(tied)
    return subsets_won / comb(len(numbers), n)


def chances(rows: Sequence[Candidates], numbers: Numbers, n: int | None = None) -> Tensor:
    """For each of N prompts, the chance that the choice is correct: (N,) in float64.

    n: how many of the candidates there are to choose from; None for all of them.
    """
    found = []
    for row, of_one_prompt in zip(rows, numbers, strict=True):
        found.append(best_of(of_one_prompt, row.correct, n or len(of_one_prompt)))
    return torch.tensor(found, dtype=torch.float64)


def ways_to_choose(rows: Sequence[Candidates], model: Numbers) -> list[Choice]:
    """All ways to choose, the model's first; model: its number for each candidate."""
    same_for_all = [[0] * len(row.correct) for row in rows]
    choices = [Choice("the model", model), Choice("a random choice", same_for_all)]

    counted = [votes(row) for row in rows]
    total = sum(len(of_one_prompt) for of_one_prompt in counted)
    told = sum(vote > 0 for of_one_prompt in counted for vote in of_one_prompt)
    if told > total / 2:  # with fewer it would mostly be a random choice
        note = f"{told:,} of {total:,} answers told"
        choices.append(
            Choice("the majority", counted, note)
        )  # https://arxiv.org/abs/2203.11171

    choices += author_choices(rows)
    choices.append(Choice("the oracle", [row.correct for row in rows]))
    return choices


def author_choices(rows: Sequence[Candidates]) -> list[Choice]:
    """One way to choose for each author: always that author's response.

    An author must have written for every prompt, so that all are compared on the same prompts. The
    best one is marked.
    """
    authors_of_each = [set(row.models or []) - {None} for row in rows]
    choices = []
    accuracies = []
    for author in sorted(set.intersection(*authors_of_each)):
        numbers = [[model == author for model in row.models] for row in rows]
        choices.append(Choice(f"only {author}", numbers))
        accuracies.append(chances(rows, numbers).mean().item())
    if choices:
        best = accuracies.index(max(accuracies))
        choices[best] = choices[best]._replace(note="the best, known with hindsight")
    return choices


# ---- all of it


def evaluate_candidates(scorer: Scorer, rows: Sequence[Candidates]) -> dict:
    """How often the choice is correct, for all ways to choose; the numbers for `--output`.

    `choices` are made from all candidates, and compared with the model's prompt by prompt.
    `best_of_n` is the model's and the oracle's choice from n candidates, up to the smallest K. It
    is empty for a classification: how that ranks two responses depends on which others are there.
    `subsets` holds the model's accuracy in each, and `balanced_accuracy` is their mean.
    """
    prompts = prompts_of(rows)
    sizes = [len(row.correct) for row in rows]
    model = judge(scorer, rows)
    compares = scorer.approach == "classification"
    return {
        "n": len(rows),
        "n_prompts": len(set(prompts)),
        "candidates": [min(sizes), max(sizes)],
        "choices": compare_choices(rows, ways_to_choose(rows, model), prompts),
        "best_of_n": [] if compares else curve(rows, model, prompts),
        **by_subset(rows, model, prompts),
    }


def compare_choices(
    rows: Sequence[Candidates], choices: Sequence[Choice], prompts: Sequence[str]
) -> list[dict]:
    """The accuracy of each way to choose, and the first one's minus it, with intervals."""
    model = chances(rows, choices[0].numbers)  # (N,)
    lines = []
    for choice in choices:
        own = chances(rows, choice.numbers)  # (N,)
        line = {"choice": choice.name, "note": choice.note}
        line.update(estimate("accuracy", own, prompts))
        if choice is not choices[0]:
            line.update(estimate("model_minus", model - own, prompts, ends=(-1, 1)))
        lines.append(line)
    return lines


def by_subset(rows: Sequence[Candidates], model: Numbers, prompts: Sequence[str]) -> dict:
    """The accuracy of the model's choice in each subset, that of a random one, and the mean."""
    own = chances(rows, model)  # (N,)
    at_random = chances(rows, [[0] * len(row.correct) for row in rows])  # (N,)
    names = [row.subset for row in rows]
    subsets = {}
    for name in sorted(set(names)):
        inside = [i for i, subset in enumerate(names) if subset == name]
        numbers = estimate("accuracy", own[inside], [prompts[i] for i in inside])
        chance = at_random[inside].mean().item()
        subsets[name] = {"n": len(inside), **numbers, "random": chance}
    mean = metrics.bootstrap(own, prompts, names, ends=(0, 1))
    return {"subsets": subsets, **metrics.named("balanced_accuracy", mean)}


def curve(rows: Sequence[Candidates], model: Numbers, prompts: Sequence[str]) -> list[dict]:
    """Best of n for n = 1, 2, ... up to the smallest K: the model's accuracy and the oracle's."""
    correct = [row.correct for row in rows]
    smallest = min(len(of_one_prompt) for of_one_prompt in correct)
    lines = []
    for n in range(1, smallest + 1):
        line = {"n": n}
        line.update(estimate("accuracy", chances(rows, model, n), prompts))
        line.update(estimate("oracle", chances(rows, correct, n), prompts))
        lines.append(line)
    return lines


def estimate(
    name: str, values: Tensor, prompts: Sequence[str], ends: tuple[float, float] = (0, 1)
) -> dict[str, float]:
    """The mean of values (N,) with its interval, as {name, name_low, name_high}.

    ends: the smallest and the largest value there can be, as for `metrics.bootstrap`.
    """
    return metrics.named(name, metrics.bootstrap(values, prompts, ends=ends))


def candidates_text(found: dict) -> str:
    """What `evaluate_candidates` found, as two tables."""
    smallest, largest = found["candidates"]
    sizes = f"{smallest}" if smallest == largest else f"{smallest} to {largest}"
    text = f"{found['n']} rows of {sizes} candidates: how often is the choice correct? "
    text += "95 % intervals from resampling prompts\n\n"

    text += "chosen from all candidates:\n\n"
    lines = []
    for choice in found["choices"]:
        name = choice["choice"]
        if choice["note"]:
            name += f" ({choice['note']})"
        lines.append([name, interval(choice), interval(choice, "model_minus")])
    text += table(["choice", "accuracy [95 %]", "the model minus it [95 %]"], lines)

    text += subsets_text(found)
    if not found["best_of_n"]:
        return text + "\nno curve over n: a classification compares and has no rewards\n"
    text += "\nchosen from n of them, over all subsets of n:\n\n"
    lines = []
    for point in found["best_of_n"]:
        lines.append([point["n"], interval(point), interval(point, "oracle")])
    return text + table(["n", "best of n [95 %]", "the oracle's"], lines)


def subsets_text(found: dict) -> str:
    """The model's choice in each subset as a table, the worst first; "" if there is only one."""
    subsets = found["subsets"]
    if len(subsets) < 2:
        return ""
    lines = []
    for name in sorted(subsets, key=lambda name: subsets[name]["accuracy"]):
        numbers = subsets[name]
        lines.append([name, numbers["n"], interval(numbers), f"{numbers['random']:.3f}"])
    heads = ["subset", "rows", "the model [95 %]", "a random choice"]
    mean = interval(found, "balanced_accuracy")
    return f"\nmean over subsets {mean}\n\n{table(heads, lines)}"
