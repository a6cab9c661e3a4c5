"""How good is a run on other data? Pairs, or several graded candidates for each prompt.

    python -m minirlhf evaluate runs/bt-finetune --dataset candidates.jsonl
    python -m minirlhf evaluate runs/bt-finetune --dataset allenai/reward-bench-2 \\
        --split test --output rewardbench2.json

A run's own `metrics.json` says how good it is on data like its training data. This command tells
how good it is on any other data that `train.py` could read, and on a second kind:

Pairs        The numbers are those that `metrics.json` has of a test part, with a table of the
             subsets. RewardBench (https://arxiv.org/abs/2403.13787) has a layout that fits, with
             one subset for each of its tests. Its leaderboard weights them by section, which the
             mean over subsets does not.
Candidates   Rows with `prompt`, `responses` (K texts), `correct` (K booleans) and, if they are
             known, `models` (K authors) and `answers` (K final answers). How often is the response
             correct that the model likes best? See `best_of_n.py`. Rows whose `chosen` and
             `rejected` are lists, as those of RewardBench 2, are candidates, too.

Columns of unusual names are named by the same flags as for `train.py`. What was dropped or not read
is said.

Only prompts that the run did not learn from are judged. See `unseen.py`.

Exit code: 0, or 2 for bad input.

What to copy: `evaluate_pairs`, for the questions that belong beside an accuracy. What is left out:
the sections of benchmarks, and the rating errors of a regression, since other data have another
scale.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minirlhf import data, layouts, loops, metrics, score, tokens
from minirlhf.commands.best_of_n import (
    candidates_text,
    evaluate_candidates,
    has_lists,
    left_out_text,
    read_candidates,
    read_lists,
)
from minirlhf.commands.unseen import read_rows, unseen
from minirlhf.report import results
from minirlhf.report.tables import interval, table
from minirlhf.report.verdict import reading_text
from minirlhf.runtime import checkpoint
from minirlhf.runtime.command_line import command, one_line, quiet_transformers
from minirlhf.settings import Settings, add_flag


def evaluate_pairs(scorer: score.Scorer, pairs: Sequence[data.PreferencePair]) -> dict:
    """How often the chosen response gets the larger reward; the numbers for `--output`.

    They are `metrics.summarize` of the pairs, what a coin and "the longer response" would earn,
    how much better the model is than the latter, and both accuracies in each subset.
    Raises ValueError if a reward is not finite.
    """
    texts = data.number_texts(pairs)
    token_rows = scorer.model.encode(texts.prompts, texts.responses).token_rows
    count = len(pairs)
    pairs = tokens.drop_identical_pairs(pairs, texts.text_id, token_rows)
    judged = loops.evaluate_texts(scorer.model, token_rows, data.make_part(pairs, texts))
    if not judged.margins.isfinite().all():
        raise ValueError("the model gives rewards that are not finite")

    prompts = results.prompts_of(pairs)
    subsets = results.subsets_of(pairs)
    lengths = results.response_lengths(pairs)  # (N, 2)
    temperature = scorer.model.info["temperature"]
    found = metrics.summarize(
        judged.margins, prompts, subsets, lengths, judged.rewards, temperature
    )
    found["same_tokens"] = count - len(pairs)  # dropped: their sides became one text
    found["baselines"] = results.baselines(pairs)

    right = metrics.credit(judged.margins)  # (N,)
    longer_right = metrics.credit(lengths[:, 0] - lengths[:, 1])  # (N,)
    lead = metrics.bootstrap(right - longer_right, prompts, ends=(-1, 1))
    found.update(metrics.named("minus_longer", lead))
    for name, numbers in found["subsets"].items():
        inside = [i for i, subset in enumerate(subsets) if subset == name]
        numbers.update(of_subset(right, longer_right, prompts, inside))
    return found


def of_subset(
    right: Tensor, longer_right: Tensor, prompts: Sequence[str], inside: list[int]
) -> dict[str, float]:
    """The accuracy in a subset with its interval, and that of "the longer response".

    right, longer_right (N,): the credits of all pairs; inside: the numbers of the subset's pairs.
    """
    prompts_inside = [prompts[i] for i in inside]
    accuracy = metrics.bootstrap(right[inside], prompts_inside, ends=(0, 1))
    numbers = metrics.named("accuracy", accuracy)
    numbers["longer"] = longer_right[inside].mean().item()
    return numbers


def pairs_text(found: dict) -> str:
    """What `evaluate_pairs` found, in words, with a table of the subsets, the worst first."""
    longer = interval(found["baselines"]["longer response"])
    lead = interval(found, "minus_longer")
    text = f"""accuracy {interval(found)}, the 95 % interval from resampling prompts
on {found["n"]} pairs over {found["n_prompts"]} prompts
a coin has 0.500; "the longer response" {longer}, and the model minus it {lead}
with this many prompts, a true accuracy of {0.5 + found["detectable"]:.3f} would be detected \
four times in five
"""
    if found["same_tokens"]:
        text += (
            f"{found['same_tokens']} pairs are left out: their sides became the same tokens\n"
        )
    if found["accuracy_low"] <= 0.5 <= found["accuracy_high"]:
        text += "the interval holds 0.5: nothing here tells this model from a coin\n"
    text += f"mean over subsets {interval(found, 'balanced_accuracy')}\n\n"

    lines = []
    for name in sorted(found["subsets"], key=lambda name: found["subsets"][name]["accuracy"]):
        numbers = found["subsets"][name]
        lines.append([name, numbers["n"], interval(numbers), interval(numbers, "longer")])
    return text + table(["subset", "pairs", "accuracy [95 %]", "the longer"], lines)


class Items(NamedTuple):
    """What there is to judge a run on."""

    kind: str  # "pairs" or "candidates"
    items: list
    words: str  # what was dropped, left out or not read
    reading: dict  # the same for `--output`


def read_items(rows: Iterable[dict], dataset: str, columns: dict[str, str | None]) -> Items:
    """The pairs or candidates in the rows; the first row tells which they are.

    columns: what the data call a column, where it is unusual. Raises ValueError if there is none.
    """
    first, rows = peek(rows, dataset)
    if "responses" in first and "chosen" not in first:
        return Items("candidates", read_candidates(rows, **columns), "", {})
    if has_lists(first, **columns):
        candidates, left_out = read_lists(rows, **columns)
        words = left_out_text(left_out)
        return Items("candidates", candidates, words, {"left_out": left_out})

    pairs, report = data.build_pairs(rows, **columns)
    pairs = data.usable(pairs)
    if not pairs:
        raise ValueError("all pairs have equal ratings, so none is preferred")
    kept = ("rows", "comparisons", "dropped", "first_dropped", "not_read")
    reading = {name: report[name] for name in kept}
    return Items("pairs", pairs, reading_text(report), reading)


def evaluate(args: argparse.Namespace) -> dict:
    """Judge a run and print what was found. Returns the numbers for `--output`.

    args: what `parse` returned. Raises ValueError for bad input.
    """
    scorer = score.load(args.run, args.device)
    config = read_config(args.run)
    typed = vars(args)
    split = typed.get("split", Settings.split)
    rows = read_rows(args.dataset, split, configuration=typed.get("config"))
    columns = {role: typed.get(f"{role}_column") for role in layouts.COLUMNS}
    read = read_items(rows, args.dataset, columns)
    if read.words:
        print(read.words)

    judged = unseen(config, read.items, args.fold, args.all_prompts)
    print(judged.words, flush=True)
    kept = judged.kept[: args.limit]
    if read.kind == "candidates":
        found = evaluate_candidates(scorer, kept)
        text = candidates_text(found)
    else:
        found = evaluate_pairs(scorer, kept)
        text = pairs_text(found)
    print(f"\n{text}")
    return {
        "run": args.run,
        "dataset": args.dataset,
        "split": split,
        "limit": args.limit,
        "all_prompts": args.all_prompts,
        "approach": scorer.approach,
        "prompts": judged.counts,
        "reading": read.reading,
        **found,
    }


def read_config(run: str) -> dict:
    """The `config.json` of a run folder, or {} if it has none."""
    path = Path(run) / "config.json"
    return checkpoint.read_json(path) if path.is_file() else {}


def peek(rows: Iterable[dict], dataset: str) -> tuple[dict, Iterable[dict]]:
    """The first row, and all rows. Raises ValueError if there is none."""
    rows = iter(rows)
    first = next(rows, None)
    if not first:
        raise ValueError(f"{dataset} has no rows")
    return first, chain([first], rows)


def parse(
    argv: Sequence[str] | None,
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags, checked, and the parser, which reports later errors."""
    parser = command("evaluate", "Judge a run on other data.")
    parser.add_argument("run", help="a run folder, such as runs/bt-finetune")
    parser.add_argument(
        "--dataset",
        required=True,
        help="arithmetic (bundled), a file, a folder or a hub id: pairs, "
        "or rows with prompt, responses and correct",
    )
    for one in fields(Settings):  # the flags of `train.py` that say how to read the data
        if one.name in ("config", "split") or one.name.endswith("_column"):
            add_flag(parser, one)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--fold", type=int, choices=range(5), help="the run's; keep only its test part"
    )
    which.add_argument(
        "--all-prompts",
        action="store_true",
        help="also those that the run was trained on",
    )
    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="only the first N pairs, or N rows of candidates",
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)"
    )
    parser.add_argument("--output", metavar="FILE.json", help="write all numbers to this file")
    args = parser.parse_args(argv)

    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.output:
        output = Path(args.output)
        if output.is_dir() or not output.parent.is_dir():
            parser.error(f"cannot write {args.output}: it is a folder, or lies in none")
    return parser, args


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run and print tables."""
    parser, args = parse(argv)
    quiet_transformers()
    with one_line(parser):
        found = evaluate(args)
        if args.output:
            checkpoint.write_json(Path(args.output), found)
            print(f"all numbers are in {args.output}")
