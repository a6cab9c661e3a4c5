"""How good is a run on other data? Pairs, or several graded candidates for each prompt.

    python -m minirlhf evaluate runs/bt-finetune --dataset candidates.jsonl
    python -m minirlhf evaluate runs/bt-finetune --dataset allenai/reward-bench \\
        --split filtered --output rewardbench.json

Pairs, in any layout that `train.py` reads: what `metrics.json` says of a test part, and a table of
the subsets. RewardBench (https://arxiv.org/abs/2403.13787) has a layout that fits, one subset for
each of its tests; its leaderboard weighs them by section, which the mean over subsets does not.

Candidates, rows with `prompt`, `responses` (K texts) and `correct` (K booleans), and if they are
known `models` (K authors) and `answers` (K final answers): how often is the response correct that
the model likes best of n? That is what a verifier is for (Cobbe et al. 2021, section 4.2,
https://arxiv.org/abs/2110.14168). Beside it stand a random choice, the majority of the final
answers, each author alone, and an oracle that takes a correct response wherever there is one.

Only prompts outside the run's training are judged. `data.split` gives a prompt to a part by its
text and the fold alone, so the part is the same in every file, of pairs or of candidates. If the
data share any prompt with the run's training or validation part, the test part is kept, and a
prompt of another fold that training never had goes too: had it only had the hard ones, what it left
over would be the easy ones, no fair sample. What the base model has read before is not known.

Exit code: 0, or 2 for bad input. What to copy: `best_of`. What is left out: the sections of
benchmarks, and the rating errors of a regression, since other data have another scale.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from math import comb, isfinite
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minirlhf import data, loops, metrics, score
from minirlhf.bundled.arithmetic import PAIRS, generate
from minirlhf.report.words import interval, near_duplicates, table_head, table_row
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line

# A number at the end of a text that has lost its commas; signs may follow: "$1800.50." or "(72 %)".
# Not the 2 of 1/2, x2, \frac{1}{2} or 1,2. A comma before three digits was taken out before.
FINAL_NUMBER = re.compile(r"((?<!\w)-)?(?<![\w./])(?<!\}\{)(?<!\d,)(\d+(\.\d+)?|\.\d+)(?=\W*$)")


class Candidates(NamedTuple):
    """K responses to one prompt, and which of them are correct."""

    prompt: str
    responses: list[str]  # K
    correct: list[bool]  # K
    models: list[str] | None = None  # K, who wrote them; None where the data do not say
    answers: list | None = None  # K


def read(dataset: str, split: str = "train", limit: int | None = None):
    """Rows as train.py reads them, of the bundled data too. Raises ValueError."""
    return generate(limit or PAIRS) if dataset == "arithmetic" else data.load_rows(dataset, split)


def read_candidates(rows: Iterable[dict]) -> list[Candidates]:
    """Rows -> Candidates. Raises ValueError with the number of the first row that is not sound.

    Prompt and responses become what `data.build_pairs` makes of them, as in training.
    """
    found = []
    for number, row in enumerate(rows, 1):
        lists = {name: row.get(name) for name in Candidates._fields[1:]}
        responses, correct = lists["responses"], lists["correct"]
        for name, values in lists.items():
            if values is not None and not isinstance(values, list):
                raise ValueError(f"row {number}: `{name}` is no list")
        if not responses or not all(isinstance(text, str) for text in responses):
            raise ValueError(f"row {number}: `responses` is no list of texts")
        if not correct or not all(value in (0, 1) for value in correct):
            raise ValueError(f"row {number}: `correct` is no list of true and false")
        if not all(name is None or isinstance(name, str) for name in lists["models"] or ()):
            raise ValueError(f"row {number}: `models` is no list of names")
        for name, values in lists.items():
            if values is not None and len(values) != len(responses):
                sizes = f"{len(responses)} in `responses`, {len(values)} in `{name}`"
                raise ValueError(f"row {number}: {sizes}; both need one for each candidate")
        try:
            sides = [{"chosen": text or " ", "rejected": f"{text}\nno"} for text in responses]
            built = [data.build_pairs([{"prompt": row.get("prompt")} | side])[0] for side in sides]
        except ValueError:
            said = "`prompt` or a response is empty or no text"
            raise ValueError(f"row {number}: {said}") from None
        lists["responses"] = [pairs[0].chosen for pairs in built]
        found.append(Candidates(built[0][0].prompt, **lists))
    return found


def prompts_of(items: Iterable) -> list[str]:
    """The normalised prompts of pairs or Candidates: equal for what `data.split` holds together."""
    return [data.normalize(item.prompt) for item in items]


def questions(item) -> set[str]:
    """The normalised prompt, and its last turn: earlier turns and a system's words aside."""
    return {data.normalize(item.prompt), data.normalize(item.prompt.rpartition("\n\nHuman: ")[2])}


def test_part(items: Sequence, fold: int) -> list:
    """Those that `data.split` leaves for testing a run of that fold; it reads prompts only."""
    # It refuses to leave a part empty, as few prompts may: the numbers to 100 are in every part.
    more = [data.PreferencePair(str(number), "", "") for number in range(100)]
    return data.split([*items, *more], fold)[2][: -len(data.split(more, fold)[2])]


def learned_from(config: dict) -> list[data.PreferencePair] | None:
    """The pairs that a run was trained or validated on; None if its data cannot be had again.

    config: the run's `config.json`, whose digest tells whether the data are still the same.
    """
    args = config.get("arguments", {})
    columns = {role: args.get(f"{role}_column") for role in data.COLUMNS}
    try:
        rows = read(args["dataset"], args["split"], args["limit"])
        pairs, report = data.build_pairs(rows, args["limit"], **columns)
        train, validation, _ = data.split(pairs, args["fold"])
        return train + validation if report["sha256"] == config["data"]["sha256"] else None
    except (KeyError, ValueError):
        return None


def unseen(
    config: dict, items: Sequence, fold: int | None = None, everything: bool = False
) -> tuple[list, dict, str]:
    """The pairs or Candidates to judge, how many prompts that keeps, and why, in words.

    config: the run's `config.json`, or {}; fold: the run's, if the config does not say, or to keep
        the test part even if training had none of these prompts; everything: keep all prompts.
    Raises ValueError if the fold is not known or not the run's, or if nothing is left.
    """
    own, asked = config.get("arguments", {}).get("fold"), fold is not None
    fold = fold if asked else own
    if own not in (None, fold):
        raise ValueError(f"the run left out fold {own}: it was trained on prompts of fold {fold}")
    if fold is None and not everything:
        raise ValueError("the run has no config.json that names its fold; give --fold")
    prompts, learned = set(prompts_of(items)), learned_from(config)
    test = [] if fold is None else test_part(items, fold)
    # Without its data, all that is not in its test part may have been trained on.
    known = {question for pair in learned or () for question in questions(pair)}
    shared = {data.normalize(item.prompt) for item in items if questions(item) & known}
    shared = prompts - set(prompts_of(test)) if learned is None else shared
    words = f"{len(shared):,} of {len(prompts):,} prompts "
    words += "were" if learned is not None else "may, since its data cannot be had again, have been"
    words += " in the run's training or validation part;\n"
    kept = items if everything or not (shared or asked) else test
    where = "" if kept is items else f", the test part of fold {fold}"
    if not everything:
        kept = [item for item in kept if not questions(item) & known]
    left = len(set(prompts_of(kept)))
    words += f"{left:,} are kept{where}, and {len(prompts) - left:,} dropped"
    if everything:
        words = f"WARNING: --all-prompts keeps what may have been trained on: {words}"
    if not kept:
        raise ValueError(f"no prompt is left: {words}; --all-prompts would judge them all the same")
    counts = {"fold": fold, "prompts": len(prompts), "kept": left, "maybe_trained_on": len(shared)}
    if learned:  # reworded copies, which the split does not see
        counts["near_duplicates"] = near_duplicates(learned, kept)
        words += "; half or more of the 8-word runs in {most:,} of the kept are in training too"
        words = words.format(**counts["near_duplicates"])
    return kept, counts, words


def evaluate_pairs(scorer: score.Scorer, pairs: Sequence[data.PreferencePair]) -> tuple[dict, str]:
    """`metrics.summarize` of the pairs, with baselines and intervals by subset; and it in words."""
    prompts, responses, (part,) = data.index_texts(pairs)
    rows, _ = scorer.model.encode(prompts, responses)
    _, margins, rewards = loops.evaluate(scorer.model, rows, part)
    if not margins.isfinite().all():
        raise ValueError("the model gives rewards that are not finite")
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs]).float()  # (N, 2)
    labels = prompts_of(pairs), [p.subset for p in pairs]
    temperature = scorer.model.info["temperature"]
    found = metrics.summarize(margins, *labels, lengths, rewards, temperature)
    right, by_length = metrics.credit(margins), metrics.credit(lengths[:, 0] - lengths[:, 1])
    longer = metrics.accuracies(by_length, *labels)
    found["baselines"] = {"chance": {"accuracy": 0.5}, "longer response": longer}
    found |= metrics.named("minus_longer", metrics.bootstrap(right - by_length, labels[0]))
    for name, row in found["subsets"].items():
        inside = [i for i, pair in enumerate(pairs) if pair.subset == name]
        own = metrics.bootstrap(right[inside], [labels[0][i] for i in inside])
        row |= metrics.named("accuracy", own) | {"longer": by_length[inside].mean().item()}
    text = f"""accuracy {interval(found)}, the 95 % interval from resampling prompts
on {found["n"]} pairs over {found["n_prompts"]} prompts
a coin has 0.500; "the longer response" {interval(longer)}, \
and the model minus it {interval(found, "minus_longer")}
so many prompts show a true accuracy of {0.5 + found["detectable"]:.3f} four times in five
"""
    if found["accuracy_low"] <= 0.5 <= found["accuracy_high"]:
        text += "the interval holds 0.5: nothing here tells this model from a coin\n"
    text += f"mean over subsets {interval(found, 'balanced_accuracy')}\n\n"
    worst_first = sorted(found["subsets"].items(), key=lambda item: item[1]["accuracy"])
    cells = [[name, r["n"], interval(r), interval(r, "longer")] for name, r in worst_first]
    return found, text + table(["subset", "pairs", "accuracy [95 %]", "the longer"], cells)


def best_of(rewards: Sequence[float], correct: Sequence[bool], n: int) -> float:
    """Chance that the highest reward of n candidates, drawn out of K, is that of a correct one.

    Exact, over all C(K, n) subsets: C(left, n) of them hold none with a higher reward. Equal
    rewards share equally. With `correct` as the rewards it is the oracle's chance. WebGPT too
    estimates best of n from K samples (https://arxiv.org/abs/2112.09332, appendix I); the oracle's
    chance is pass@n (https://arxiv.org/abs/2107.03374, equation 1).

    >>> best_of([3.0, 2.0, 1.0], [False, True, True], 2)  # one of three subsets is without the 3.0
    0.3333333333333333
    """
    left, chance = len(rewards), 0.0
    for reward in sorted(set(rewards), reverse=True):
        tied = [good for other, good in zip(rewards, correct, strict=True) if other == reward]
        subsets = comb(left, n) - comb(left - len(tied), n)  # whose highest reward is this one
        chance += subsets * sum(tied) / len(tied)
        left -= len(tied)
    return chance / comb(len(rewards), n)


def judge(scorer: score.Scorer, rows: Sequence[Candidates]) -> list[list[float]]:
    """A number for each candidate: its reward, or for a classification `Scorer.rank`'s win rate.

    A reward is computed once for each distinct text, so equal texts tie exactly. Raises ValueError
    if a number is not finite.
    """
    if scorer.approach == "classification":
        ranked = [{text: n for n, text in scorer.rank(r.prompt, r.responses)} for r in rows]
    else:
        texts = list({(row.prompt, text): None for row in rows for text in row.responses})
        number = dict(zip(texts, scorer.score_many(*zip(*texts, strict=True)), strict=True))
        ranked = [{text: number[row.prompt, text] for text in row.responses} for row in rows]
    numbers = [
        [of_one[text] for text in r.responses] for r, of_one in zip(rows, ranked, strict=True)
    ]
    if not all(map(isfinite, chain.from_iterable(numbers))):
        raise ValueError("the model gives rewards that are not finite")
    return numbers


def votes(row: Candidates) -> list[int]:
    """How many candidates give the same final answer as each: (K,); 0 where it cannot be told.

    The answer is that of the column `answers`, or else the number at the very end of the response.
    Numbers are equal whatever they look like: 1,000 and 1000.0.
    """
    plain = str.maketrans({"−": "-"})
    answers = row.answers
    if answers is None:
        texts = [re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) for text in row.responses]
        ends = [FINAL_NUMBER.search(text.translate(plain)) for text in texts]
        answers = [end and end[0] for end in ends]
    answers = [None if answer is None else str(answer).strip() for answer in answers]
    for i, answer in enumerate(answers):
        with suppress(ValueError, AttributeError):  # no number, None
            answers[i] = str(float(answer.translate(plain)))
    return [Counter(answers)[answer] if answer else 0 for answer in answers]


def evaluate_candidates(scorer: score.Scorer, rows: Sequence[Candidates]) -> tuple[dict, str]:
    """The choices from all K candidates, and from n of them up to the smallest K; and in words.

    Every way to choose is a number for each candidate, of which the highest is taken: a reward, 0
    for all (a random choice), the votes for its answer (https://arxiv.org/abs/2203.11171), 1 for an
    author's, 1 for a correct one. So `best_of` serves all, and two are compared prompt by prompt.
    A classification has no curve over n: how it ranks two depends on which others are there.
    """

    def chance(numbers: Sequence[Sequence[float]], n: int | None = None) -> Tensor:  # (N,)
        each = [best_of(x, c, n or len(x)) for x, c in zip(numbers, correct, strict=True)]
        return torch.tensor(each, dtype=torch.float64)

    def estimate(name: str, values: Tensor) -> dict[str, float]:
        return metrics.named(name, metrics.bootstrap(values, prompts))

    prompts, correct = prompts_of(rows), [row.correct for row in rows]
    numbers = judge(scorer, rows)
    choices = {"the model": numbers, "a random choice": [[0] * len(row) for row in correct]}
    counted = [votes(row) for row in rows]
    told, total = sum(n > 0 for of_one in counted for n in of_one), sum(map(len, counted))
    notes = {"the majority": f"{told:,} of {total:,} answers told"}
    if told > total / 2:  # below, it would be a random choice for the most part
        choices["the majority"] = counted
    # Authors who wrote for every prompt, so that all are compared on the same prompts.
    authors = sorted(set.intersection(*(set(row.models or []) - {None} for row in rows)))
    alone = {a: [[model == a for model in row.models] for row in rows] for a in authors}
    choices |= {f"only {author}": chosen for author, chosen in alone.items()}
    best = max(alone, key=lambda author: chance(alone[author]).mean(), default=None)
    notes[f"only {best}"] = "the best, known with hindsight"
    choices["the oracle"] = correct
    model, every = chance(numbers), []
    for name, chosen in choices.items():
        every.append({"choice": name, "note": notes.get(name)})
        every[-1] |= estimate("accuracy", chance(chosen))
        if chosen is not numbers:
            every[-1] |= estimate("model_minus", model - chance(chosen))
    sizes = [f(map(len, correct)) for f in (min, max)]
    curve = [
        {"n": n} | estimate("accuracy", chance(numbers, n)) | estimate("oracle", chance(correct, n))
        for n in range(1, sizes[0] + 1 if scorer.approach != "classification" else 1)
    ]
    found = {"n": len(rows), "n_prompts": len(set(prompts)), "candidates": sizes}
    found |= {"choices": every, "best_of_n": curve}
    text = f"{len(rows)} rows of {' to '.join(map(str, sorted(set(sizes))))} candidates: "
    text += "how often is the choice correct? 95 % intervals from resampling prompts\n\n"
    text += "chosen from all candidates:\n\n"
    head = ["choice", "accuracy [95 %]", "the model minus it [95 %]"]
    titles = [f"{row['choice']} ({row['note']})" if row["note"] else row["choice"] for row in every]
    cells = [[interval(row), interval(row, "model_minus")] for row in every]
    text += table(head, [[title, *two] for title, two in zip(titles, cells, strict=True)])
    if not curve:
        return found, text + "\nno curve over n: a classification compares and has no rewards\n"
    cells = [[r["n"], interval(r), interval(r, "oracle")] for r in curve]
    text += "\nchosen from n of them, over all subsets of n:\n\n"
    return found, text + table(["n", "best of n [95 %]", "the oracle's"], cells)


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table."""
    return "\n".join([table_head(head), *map(table_row, rows)]) + "\n"


def evaluate(args: argparse.Namespace) -> dict:
    """What the command does once its flags are read; all the numbers. Raises ValueError."""
    scorer, file = score.load(args.run, args.device), Path(args.run) / "config.json"
    config = checkpoint.read_json(file) if file.is_file() else {}
    rows = iter(read(args.dataset, args.split))
    if not (first := next(rows, {})):
        raise ValueError(f"{args.dataset} has no rows")
    rows = chain([first], rows)
    if "responses" in first and "chosen" not in first:
        items, judged = read_candidates(rows), evaluate_candidates
    else:
        items, judged = data.usable(data.build_pairs(rows)[0]), evaluate_pairs
    if not items:
        raise ValueError("all pairs have equal ratings, so none is preferred")
    kept, counts, words = unseen(config, items, args.fold, args.all_prompts)
    print(words, flush=True)
    found, text = judged(scorer, kept[: args.limit])
    print(f"\n{text}")
    about = {key: vars(args)[key] for key in ("run", "dataset", "split", "limit", "all_prompts")}
    return about | {"approach": scorer.approach, "prompts": counts} | found


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run and print tables. Bad input: one sentence on stderr and exit code 2."""
    parser = command("evaluate", "Judge a run on other data.")
    add = parser.add_argument
    add("run", help="a run folder, such as runs/bt-finetune")
    add(
        "--dataset",
        required=True,
        help="arithmetic (bundled), a file, a folder or a hub id: pairs, "
        "or rows with prompt, responses and correct",
    )
    add("--split", default="train", help="which one of a folder or hub id (default: %(default)s)")
    which = parser.add_mutually_exclusive_group().add_argument
    which("--fold", type=int, choices=range(5), help="the run's; keep only its test part")
    which("--all-prompts", action="store_true", help="also those that the run was trained on")
    add("--limit", type=int, metavar="N", help="only the first N pairs, or N rows of candidates")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add("--output", metavar="FILE.json", help="write all numbers to this file")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.output and (Path(args.output).is_dir() or not Path(args.output).parent.is_dir()):
        parser.error(f"cannot write {args.output}: it is a folder, or lies in none")
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    with one_line(parser):
        found = evaluate(args)
        if args.output:
            checkpoint.write_json(Path(args.output), found)
            print(f"all numbers are in {args.output}")


if __name__ == "__main__":
    main()
