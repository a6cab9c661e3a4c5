"""Which prompts of other data may a run be judged on? Those that it never learned from.

A file of pairs or candidates often shares prompts with the data that a run was trained on. An
accuracy on those says nothing about new prompts. So `evaluate` asks `unseen` what to keep:

- If no prompt was in the run's training or validation part, everything is kept.
- Otherwise only the test part of the run's fold is kept. `data.split` assigns a prompt to a part
  by its text and the fold alone, so the part is the same in every file. Prompts outside this part
  are dropped even if training never had them. If, for instance, training had only the hard prompts,
  then those it left over would be the easy ones, which are no fair sample.
- If the run's data cannot be read again, every prompt outside the test part may have been learned
  from, and is dropped.

What the encoder read when it was pretrained is not known.

What to copy: the idea of `questions`, which finds a known question in a longer conversation.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from minirlhf import data, layouts
from minirlhf.bundled import arithmetic
from minirlhf.report.duplicates import near_duplicates
from minirlhf.report.results import prompts_of
from minirlhf.runtime import checkpoint, files

MOST_PAIRS = 1_000_000  # that are made again to see which prompts a run learned from


class Unseen(NamedTuple):
    """What `unseen` decides."""

    kept: list  # the pairs or candidates to judge
    counts: (
        dict  # how many prompts there are, how many are kept, how many may have been learned
    )
    words: str  # the same as a text


def read_rows(
    dataset: str,
    split: str = "train",
    limit: int | None = None,
    configuration: str | None = None,
) -> Iterable[dict]:
    """The rows that `train.py` reads. Raises ValueError if there is nothing to read.

    dataset: "arithmetic", a file, a folder or a hub id; limit: matters for "arithmetic" only;
    configuration: which one of a folder or hub id that has several.
    """
    if dataset == "arithmetic":
        return arithmetic.generate(limit or arithmetic.PAIRS)
    return files.load_rows(dataset, split, configuration)


def check_limit(limit) -> None:
    """Raise ValueError unless the `limit` in a run's `config.json` is None or a usual number.

    The file may be a stranger's, and the bundled data have as many rows as they are asked for.
    """
    if limit is not None and (not isinstance(limit, int) or not 1 <= limit <= MOST_PAIRS):
        raise ValueError(
            f"config.json says that the run used {limit!r:.40} pairs; at most {MOST_PAIRS:,} are "
            "made again"
        )


def prompts_seen(run: Path) -> set[str]:
    """All prompts of the bundled data that the run has used; none if it has used other data.

    Raises ValueError if the folder's config.json is not what train.py writes.
    """
    config = run / "config.json"
    if not config.is_file():
        raise ValueError(f"there is no {config}, which would say what the run was trained on")
    try:
        arguments = checkpoint.read_json(config)["arguments"]
        dataset = arguments["dataset"]
        limit = arguments["limit"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{config} does not say what the run was trained on") from error
    check_limit(limit)
    if dataset != "arithmetic":
        return set()
    return {row["prompt"] for row in arithmetic.generate(limit or arithmetic.PAIRS)}


def questions(item) -> set[str]:
    """The normalised prompt of a pair or candidates, and the normalised last turn of the prompt.

    With the last turn a question is found again although other turns, or the words of a system,
    stand before it.
    """
    last_turn = item.prompt.rpartition("\n\nHuman: ")[2]
    return {data.normalize(item.prompt), data.normalize(last_turn)}


def items_to_test(items: Sequence, fold: int) -> list:
    """The items whose prompts `data.split` leaves for testing a run of that fold."""
    # `split` refuses to leave a part empty, which can happen with few prompts. Of these hundred
    # prompts, some are in every part.
    fillers = [data.PreferencePair(str(number), "", "") for number in range(100)]
    train, validation, test = data.split([*items, *fillers], fold)
    return [item for item in test if item not in fillers]


def learned_from(config: dict) -> list[data.PreferencePair] | None:
    """The pairs that a run was trained or validated on; None if its data cannot be read again.

    config: the run's `config.json`. Its digest tells whether the data are still the same.
    Raises ValueError if it asks for more pairs than anybody has trained on.
    """
    settings = config.get("arguments", {})
    check_limit(settings.get("limit"))
    columns = {role: settings.get(f"{role}_column") for role in layouts.COLUMNS}
    try:
        limit = settings["limit"]
        configuration = settings.get("config")
        rows = read_rows(settings["dataset"], settings["split"], limit, configuration)
        pairs, report = data.build_pairs(rows, limit, **columns)
        train, validation, test = data.split(pairs, settings["fold"])
        digest = config["data"]["sha256"]
    except (KeyError, ValueError):
        return None
    if report["sha256"] != digest:
        return None
    return train + validation


def unseen(
    config: dict, items: Sequence, fold: int | None = None, everything: bool = False
) -> Unseen:
    """Choose the pairs or candidates to judge a run on.

    config: the run's `config.json`, or {} if it has none.
    fold: the fold of the run, for a run without `config.json`. If it is given, only the test part
        is kept, even if the run learned from none of these prompts.
    everything: keep all prompts.
    Raises ValueError if the fold is not known or not the run's, or if nothing is left.
    """
    run_fold = fold_of_run(config, fold, everything)
    test = [] if run_fold is None else items_to_test(items, run_fold)
    learned = learned_from(config)
    known = set()
    for pair in learned or []:
        known |= questions(pair)

    prompts = set(prompts_of(items))
    if learned is None:
        shared = prompts - set(prompts_of(test))
    else:
        shared = {data.normalize(item.prompt) for item in items if questions(item) & known}

    only_test = not everything and (bool(shared) or fold is not None)
    kept = items
    if only_test:
        kept = [item for item in test if not questions(item) & known]

    counts = {
        "fold": run_fold,
        "prompts": len(prompts),
        "kept": len(set(prompts_of(kept))),
        "maybe_trained_on": len(shared),
    }
    words = in_words(counts, data_known=learned is not None, only_test=only_test)
    if everything:
        words = f"WARNING: --all-prompts keeps what may have been trained on: {words}"
    if not kept:
        raise ValueError(
            f"no prompt is left: {words}; --all-prompts would judge them all the same"
        )
    if learned:
        # Reworded copies, which the split does not recognise.
        counts["near_duplicates"] = near_duplicates(learned, kept)
        words += f"; half or more of the 8-word runs in {counts['near_duplicates']['most']:,} "
        words += "of the kept are in training too"
    return Unseen(kept, counts, words)


def fold_of_run(config: dict, given: int | None, everything: bool) -> int | None:
    """The fold that a run left out for testing; None only if `everything` is kept.

    given: what the user says. Raises ValueError if it contradicts `config`, or if nothing is known.
    """
    recorded = config.get("arguments", {}).get("fold")
    if recorded is None:
        if given is None and not everything:
            raise ValueError("the run has no config.json that names its fold; give --fold")
        return given
    if given is not None and given != recorded:
        raise ValueError(
            f"the run left out fold {recorded}: it was trained on prompts of fold {given}"
        )
    return recorded


def in_words(counts: dict, data_known: bool, only_test: bool) -> str:
    """The counts as a text.

    data_known: whether the run's data could be read again; only_test: whether only the test part of
    the run's fold is kept.
    """
    were = "were" if data_known else "may, since its data cannot be had again, have been"
    where = f", the test part of fold {counts['fold']}" if only_test else ""
    dropped = counts["prompts"] - counts["kept"]
    return (
        f"{counts['maybe_trained_on']:,} of {counts['prompts']:,} prompts {were} "
        "in the run's training or validation part;\n"
        f"{counts['kept']:,} are kept{where}, and {dropped:,} dropped"
    )
