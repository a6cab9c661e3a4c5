"""Several approaches on the same folds: what `train.py --approach all` and `--folds N` do.

    python train.py --approach all --folds 5

Each pair is tested once with five folds. Every run gets a folder and a log of its own, in the
comparison's folder, and in MLflow it is a child of the comparison's run. `comparison.md`, `.json`
and `.png` hold the table: accuracies with their intervals, and the paired differences, for which
all approaches see the same pairs.
"""

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch

from minirlhf.data import normalize
from minirlhf.metrics import accuracies, bootstrap, credit, named
from minirlhf.report import figures
from minirlhf.report.words import interval, table_head, table_row
from minirlhf.runtime import checkpoint
from minirlhf.runtime.resume import locked
from minirlhf.runtime.tracking import track


def compare(args: Namespace, approaches: Sequence[str], run: Callable[..., None]) -> None:
    """Train and test each approach on each fold, and print one table of all.

    args: what `train.parse` made of the flags; approaches: those there are.
    run: `train.run`, called with the settings that differ from `args`.
    """
    output = Path(args.output)
    folds = range(args.folds) if args.folds else (args.fold,)
    jobs = {a: {"approach": a} for a in approaches if args.approach in (a, "all")}
    if args.approach == "all":
        jobs["response only"] = {"approach": "bt-finetune", "response_only": True}
    results = {}
    again = bool(args.resume)
    with track(args.tracking_uri, args.experiment, output, {}, again) as log:
        if not again:
            config = {"arguments": vars(args), "command": shlex.join(["python", *sys.argv])}
            with checkpoint.whole_folder(output, args.overwrite) as folder:
                checkpoint.write_json(folder / "config.json", config)
        log({}, step=0)
        print(f"folder    {output}")
        for name, job in jobs.items():
            results[name] = []
            for fold in folds:
                child = output / f"{name.replace(' ', '-')}-{fold}"
                before = Path(args.resume or output, child.name)  # torchrun's first process's
                if (before / "metrics.json").exists():
                    results[name].append(read(before))
                else:
                    job |= {"fold": fold, "folds": None, "output": str(child), "overwrite": False}
                    job["resume"] = str(before) if (before / "config.json").exists() else None
                    if job["resume"]:  # torchrun's other processes have none yet
                        child.mkdir(exist_ok=True)
                    log_file = open(f"{child}.log", "a", 1, "utf-8")  # noqa: SIM115
                    with locked(child), log_file, redirect_stdout(log_file):
                        run(**job)
                    results[name].append(read(child))
                print(f"{name:15} fold {fold}  test accuracy {interval(results[name][-1]['test'])}")
            rows = compared(results)
            checkpoint.write_json(output / "comparison.json", rows)
            checkpoint.write_text(output / "comparison.md", table(rows) + warning(rows))
        figures.draw_comparison(output / "comparison.png", rows)
        for row in rows:
            log({f"{row['name'].replace(' ', '_')}_{k}": v for k, v in row.items()}, step=0)
    print("\n" + table(rows) + warning(rows))
    print(f"everything is in {output}")


def read(folder: Path) -> dict:
    """A finished run's `metrics.json`, with the margins, lengths and labels of its test part."""
    pairs = checkpoint.read_jsonl(folder / "predictions.jsonl")
    summary = checkpoint.read_json(folder / "metrics.json")
    summary["margins"] = torch.tensor([pair["margin"] for pair in pairs])  # (N,)
    summary["lengths"] = torch.tensor([pair["lengths"] for pair in pairs])  # (N, 2)
    labels = [normalize(pair["prompt"]) for pair in pairs], [pair["subset"] for pair in pairs]
    return summary | {"labels": labels}


def compared(results: dict[str, list[dict]]) -> list[dict]:
    """One row for each approach, best first, then the baselines (response-only first).

    results: of each approach, what `read` returns for each fold, all in one order of folds.
    The test parts are pooled before anything is counted (`metrics.accuracies`): a mean of five
    accuracies has no interval of its own. `minus_better_accuracy` is the difference to the row
    above (for response-only: to bt-finetune, of which it is the copy that reads no prompt), pair
    by pair, and so is `minus_better_balanced_accuracy`. `seconds` are those of one fold, as if it
    were run alone: the embedding is counted, cached or not.
    """
    first = next(iter(results.values()))
    labels = [[name for run in first for name in run["labels"][i]] for i in (0, 1)]
    lengths = torch.cat([run["lengths"] for run in first])  # (N, 2)
    right = {a: credit(torch.cat([run["margins"] for run in results[a]])) for a in results}
    rows = []
    for name, runs in results.items():
        row = {"name": name, "trained": runs[0]["trained"]}
        row["seconds"] = sum(run["seconds"] for run in runs) / len(runs)
        row["train_accuracy"] = sum(run["train"]["accuracy"] for run in runs) / len(runs)
        row |= accuracies(right[name], *labels)
        rows.append(row | {"gap": row["train_accuracy"] - row["accuracy"]})
    rows.sort(key=lambda row: (row["name"] == "response only", -row["accuracy"]))
    for better, row in zip(rows, rows[1:], strict=False):
        other = "bt-finetune" if row["name"] == "response only" else better["name"]
        difference = right[row["name"]] - right[other]  # (N,)
        for name, subsets in (("accuracy", None), ("balanced_accuracy", labels[1])):
            row |= named(f"minus_better_{name}", bootstrap(difference, labels[0], subsets))
    longer = accuracies(credit(lengths[:, 0] - lengths[:, 1]), *labels)
    coin = {"name": "chance", "accuracy": 0.5, "balanced_accuracy": 0.5}
    return [*rows, {"name": "longer response"} | longer, coin]


def table(rows: Sequence[dict]) -> str:
    """The rows of `compared` as a Markdown table."""
    head = ["approach", "parameters", "seconds a fold", "train accuracy", "test accuracy [95 %]"]
    head += ["train - test", "minus the better", "mean over subsets [95 %]", "minus the better"]
    lines = [table_head(head)]
    names = ["train_accuracy", "accuracy", "gap", "minus_better_accuracy", "balanced_accuracy"]
    for row in rows:
        cells = [f"{row[key]:,.0f}" if key in row else "–" for key in ("trained", "seconds")]
        cells += [interval(row, name) for name in (*names, "minus_better_balanced_accuracy")]
        lines.append(table_row([row["name"], *cells]))
    return "\n".join(lines) + "\n"


def warning(rows: Sequence[dict]) -> str:
    """What a reader of the table must not miss, or "": bt-finetune may do without the prompts.

    If it is not shown to be worse without them, who wrote a response, or how, may be all it sees.
    """
    for row in rows:
        if row["name"] == "response only" and row["minus_better_accuracy_high"] >= 0:
            difference = interval(row, "minus_better_accuracy")
            said = f"trained without the prompts it is not shown to be worse ({difference})"
            return f"\nWARNING: bt-finetune may not read the prompts: {said}\n"
    return ""
