"""Train one reward model from preferences, start to end, in one flat script.

Examples:
    python train.py                                     the bundled data, bt-finetune
    python train.py --approach regression               one of the three on frozen features
    python train.py --approach all --folds 5            all four on the same pairs, and a table
    python train.py --dataset pairs.jsonl --epochs 3    your own data

Read it top to bottom: the flags, the data, the model, the loop, the result. Each section calls one
file of `minirlhf/` and names it; you only need to go there to see how. The run writes a run folder:
`config.json`, `history.jsonl`, `metrics.json`, `predictions.jsonl`, `mistakes.md`, `README.md`,
`model/` and `figures/`; a run that was stopped goes on with `--resume FOLDER`, and
`--approach all` and `--folds` write a run folder for each, and `comparison.md`, `.json` and `.png`.
"""

import argparse
import atexit
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from safetensors import SafetensorError

APPROACHES = ("regression", "classification", "bt-frozen", "bt-finetune")

# How to train: for each flag its type and range, the default of the three frozen approaches and
# that of bt-finetune, what it does, and why. Defaults were compared on validation data. None: the
# frozen approaches have no use for the flag, and typing it for one of them is an error.
# fmt: off
TUNED = {
    "epochs": (int, 1, 10**6, 100, 3, "passes over the training pairs"),
    "batch_size": (int, 1, 10**6, 64, 32, "pairs in one batch"),
    "accumulate": (int, 1, 10**6, None, 1, "batches in one step, to save memory"),
    "lr": (float, 0, 10, 1e-3, 1e-4, "AdamW's; the highest, where it rises and falls"),
    "weight_decay": (float, 0, 10, 0.1, 0.01, "AdamW's; a head on few pairs overfits"),
    "warmup": (float, 0, 1, None, 0.1, "share of the steps in which the rate rises (Adam's first "
        "steps are badly informed); then it falls to 0"),
    "clip": (float, 1e-9, 1e9, None, 1.0, "largest norm of a gradient; longer ones shrink to it"),
    "dropout": (float, 0, 0.9, None, 0.0, "0: its noise is as large as the margins"),
    "label_smoothing": (float, 0, 0.5, 0.0, 0.0, "share of pairs taken to be labelled wrong"),
    "margin": (float, 0, 100, 0.0, 0.0, "reward gap asked per point of rating gap"),
    "patience": (int, 1, 10**6, 10, 3, "stop after so many epochs without a lower calibrated loss"),
}
# fmt: on


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Flags to settings: what was typed, and for the rest the approach's defaults."""

    def number(kind, low, high):
        def check(text: str):
            if not low <= kind(text) <= high:  # also False for NaN
                raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
            return kind(text)

        check.__name__ = "whole number" if kind is int else "number"  # for argparse's own message
        return check

    # fmt: off
    about, examples = __doc__.split("\n\n")[:2]
    parser = argparse.ArgumentParser(usage="python train.py [flags]", description=about,
        epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    # An error is one line, without argparse's usage.
    parser.error = lambda text: parser.exit(2, f"train.py: error: {text}\n")
    add = parser.add_argument_group("what to learn").add_argument
    add("--approach", choices=(*APPROACHES, "all"), default="bt-finetune",
        help="regression: MSE to ratings. classification: BCE on pairs. bt-frozen: Bradley-Terry "
        "on frozen hidden states. bt-finetune: the same, encoder trained. all: the "
        "four, and bt-finetune without prompts, on the same pairs (default: %(default)s)")
    add("--response-only", action="store_true", help="blank the prompts: what do answers tell?")
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="arithmetic",
        help="arithmetic (bundled), argilla-math, a .jsonl, .json, .csv or .parquet file, a folder "
        "of one kind, or a hub id (default: %(default)s)")
    add("--split", default="train", help="the split to read of a folder or hub id (default: train)")
    for role in ("prompt", "chosen", "rejected", "chosen-rating", "rejected-rating"):
        add(f"--{role}-column", metavar="NAME", help="name of this column, if unusual")
    add("--limit", type=number(int, 1, 10**9), metavar="N", help="first N pairs (arithmetic 5000)")
    add("--balance", action="store_true",
        help="weigh pairs so that all values of the column `subset` count the same in the loss")
    add("--fold", type=number(int, 0, 4), default=0, metavar="0..4",
        help="which fifth of the prompts is the test part (default: %(default)s)")
    add("--folds", type=number(int, 1, 5), metavar="1..5",
        help="run folds 0 to N - 1; with 5 every pair is tested once")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2",
        help="a folder or a hub id: an encoder, or for bt-* also a decoder (default: %(default)s)")
    add("--pooling", choices=("mean", "last", "cls"),
        help="bt-*: hidden states to vector (default: mean for encoders, last for decoders)")
    add("--max-length", type=number(int, 8, 10**6), default=256, metavar="N",
        help="tokens of question and answer; the question is cut first (default: %(default)s)")
    add = parser.add_argument_group("training").add_argument
    for name, (kind, low, high, frozen, finetune, text) in TUNED.items():
        said = f"bt-finetune {finetune:g}" if frozen != finetune else f"{finetune:g}"
        said = f"{frozen:g}, {said}" if frozen not in (None, finetune) else said
        add("--" + name.replace("_", "-"), type=number(kind, low, high),
            metavar="N" if kind is int else "X", help=f"{text} (default: {said})")
    add = parser.add_argument_group("the run").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N", help="(default: 0)")
    add("--output", metavar="FOLDER", help="run folder (default: runs/APPROACH, or -2, -3 ...)")
    add("--overwrite", action="store_true", help="replace the run in --output as this one starts")
    add("--resume", metavar="FOLDER", help="go on with a run that was stopped, from its last whole "
        "epoch; takes no other flag, since the settings are in the folder")
    add("--no-cache", action="store_true", help="do not keep frozen features on disk")
    add("--tracking-uri", metavar="URI", help="MLflow's; none for no tracking (default: local)")
    add("--experiment", default="minirlhf", help="MLflow's (default: %(default)s)")
    args = parser.parse_args(argv)
    # fmt: on

    if args.resume is not None and vars(args) != vars(parser.parse_args(["--resume", args.resume])):
        parser.error("--resume takes no other flag: the run's settings are in its folder")
    frozen, best, some = APPROACHES[:3], ("bt-finetune", "all"), ("bt-frozen", "bt-finetune", "all")
    users_of = {name: best for name, (*_, default, _, _) in TUNED.items() if default is None}
    users_of |= {"no_cache": (*frozen, "all"), "pooling": some, "margin": some}
    users_of |= {"label_smoothing": ("classification", *some), "response_only": APPROACHES}
    for name, users in users_of.items():
        if args.approach not in users and str(getattr(args, name)) not in ("None", "False"):
            flag = name.replace("_", "-")
            parser.error(f"{args.approach} does not use --{flag}; only {', '.join(users)} do")
    if args.fold and args.folds:
        parser.error("give --fold for one fold or --folds for several, not both")
    if args.overwrite and not args.output:
        parser.error("--overwrite goes with --output FOLDER")
    if "LOCAL_RANK" in os.environ and int(os.environ["RANK"]):  # torchrun's first process reports
        args.output, args.tracking_uri = f"{tempfile.mkdtemp()}/run", "none"
        atexit.register(shutil.rmtree, Path(args.output).parent, ignore_errors=True)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    free = (f"runs/{args.approach}" + f"-{i}" * (i > 1) for i in range(1, 10**6))
    args.output = args.output or next(name for name in free if not Path(name).exists())
    if (folder := Path(args.output)).exists() and not args.overwrite:
        parser.error(f"{folder} exists; give another --output, or --overwrite to replace it")
    config = folder / "config.json"  # a folder with any model in it has one, too
    if folder.exists() and not (config.is_file() and '"arguments"' in config.read_text("utf-8")):
        parser.error(f"{folder} is no run folder, so it is not overwritten")
    return args


def settle(args: argparse.Namespace, **changes) -> argparse.Namespace:
    """The settings of one approach: what was typed, else its default. None where it has no use."""
    settled = argparse.Namespace(**vars(args) | changes)
    if not settled.approach.startswith("bt-"):
        settled.pooling, settled.margin = None, 0.0
    for name, (*_, frozen, finetune, _) in TUNED.items():
        default = finetune if settled.approach == "bt-finetune" else frozen
        if default is None or getattr(settled, name) is None:
            setattr(settled, name, default)
    return settled


def main(argv: list[str] | None = None) -> None:
    """Run the script. Bad input ends with one sentence on stderr and exit code 2."""
    try:
        args = parse(argv)
        from minirlhf.runtime import resume

        args = resume.reopen(args) if args.resume is not None else args
        with resume.locked(Path(args.output)):
            if args.approach == "all" or args.folds:
                from minirlhf.commands.compare import compare

                compare(args, APPROACHES, lambda **changes: run(settle(args, **changes)))
            else:
                run(settle(args))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends at once
        again = f"; go on with: python train.py --resume {shlex.quote(args.output)}"
        # To stderr: what reads the output through a pipe may have been interrupted, too.
        there = [Path(args.output, f"{name}.json").exists() for name in ("config", "metrics")]
        print("\ninterrupted" + again * (there == [True, False]), file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        text = str(error)
        short = "memory" in text or "start new thread" in text  # a thread needs memory, too
        if isinstance(error, MemoryError) or short and isinstance(error, RuntimeError):
            text = "out of memory; lower --batch-size (raise --accumulate instead) or --max-length"
        elif not isinstance(error, (ValueError, OSError, FloatingPointError, SafetensorError)):
            raise
        print(f"train.py: error: {text}", file=sys.stderr)
        raise SystemExit(2) from None


def run(args: argparse.Namespace) -> None:
    """One approach on one fold. All that it finds out is in its run folder."""
    start = time.perf_counter()
    # Imported here, after the flags are known to be good, so that --help answers at once.
    import torch
    from transformers.utils import logging

    from minirlhf import data, encoders, loops, metrics
    from minirlhf import model as models
    from minirlhf.approaches import Options
    from minirlhf.report import figures
    from minirlhf.report import words as report
    from minirlhf.runtime import checkpoint, resume
    from minirlhf.runtime.device import join_ranks, pick_device, ranks, seed_everything
    from minirlhf.runtime.tracking import console_row, progress_bar, track

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is wrong ends the run with a sentence of our own

    # ---- device and seed (device.py). The seed comes before the head is built.
    device, dtype, attention, reason = pick_device(join_ranks(args.device))
    print(f"device    {device} ({reason}), processes: {ranks()[1]}")
    seed_everything(args.seed)

    # ---- data (data.py): rows -> pairs -> three parts that share no prompt
    if args.dataset == "arithmetic":
        from minirlhf.bundled.arithmetic import PAIRS, generate

        table = generate(args.limit or PAIRS)
    else:
        table = data.load_rows(args.dataset, args.split)
    columns = {role: getattr(args, f"{role}_column", None) for role in data.COLUMNS}
    pairs, counts = data.build_pairs(table, args.limit, **columns)
    del table  # the pairs hold their own texts
    # Equal ratings teach a regression something; as preferences, and in any evaluation, nothing.
    # The test part does not depend on the approach, so that all are tested on the same pairs.
    rated = args.approach == "regression" or bool(args.margin)
    train, validation, test = data.split(pairs, args.fold)
    learned = data.usable(train, rated, ties=args.approach == "regression")
    parts = {"train": data.usable(train, rated), "validation": data.usable(validation, rated)}
    parts["test"] = data.usable(test)
    if not all(parts.values()):
        said = "{rated} of {pairs} rated, {rating_ties} of them equal".format(**counts)
        raise ValueError(f"too few pairs ({said}); regression and --margin need ratings")
    counts["parts"] = {name: len(part) for name, part in parts.items()} | {"train": len(learned)}
    counts["near_duplicates"] = report.near_duplicates(learned, parts["test"])
    print(f"data      {args.dataset}")
    for key, value in counts.items():
        print(f"  {key:26} {value}")
    print("\n" + "\n\n".join(map(report.pair_text, learned[:2])))

    # ---- model (model.py) and tokens (tokens.py): each distinct text once
    _, why = encoders.resolve(args.model)
    settings = args.pooling, args.max_length, attention, device
    model = models.build(args.approach, args.model, *settings)
    frozen = args.approach != "bt-finetune"
    digest = encoders.fingerprint(model.encoder.state_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"\nencoder   {args.model} ({why})")
    print(f"model     pooling: {model.info['pooling']}; {trained:,} parameters are trained")
    # Numbered over all pairs, not over the parts: every fold finds the same cached features.
    texts = data.index_texts(pairs, learned, *parts.values(), balance=args.balance)
    prompts, responses, (_, to_learn, *indexed) = texts
    model.info["response_only"] = args.response_only
    rows, cut = model.encode(prompts, responses)
    inputs = rows
    print(f"texts     {len(rows):,} distinct, {cut} of them cut to {args.max_length} tokens")

    # ---- frozen features (encoders.py): computed once, kept on disk
    if frozen:
        configs = [m.config for m in model.encoder.modules() if hasattr(m, "config")]
        how = f"{device} {dtype} {attention} {model.info['pooling']} {model.encoder} {configs}"
        code = encoders.sha256(models.pooling.__file__)
        key = {"weights": digest, "how": how, "code": code} | encoders.versions()
        worker, begun = model.in_precision(dtype), time.perf_counter()
        embed = partial(worker.map, worker.vectors, progress=progress_bar)
        folder = None if args.no_cache else encoders.cache_folder()
        features, took, origin = encoders.cached(embed, rows, folder, **key)
        # As if nothing had been cached, so that approaches can be compared.
        start += time.perf_counter() - begun - took
        inputs = features.to(device)  # (U, D) takes the place of the U token rows
        print(f"features  {tuple(features.shape)}, {took:.0f} seconds, {origin}")

    # ---- the run folder (checkpoint.py) and MLflow (tracking.py)
    output = Path(args.output)
    config = {"arguments": vars(args), "command": shlex.join(["python", *sys.argv])}
    config["encoder"] = {"name": args.model, "source": why, "sha256": digest, "trained": trained}
    config["data"] = counts | {"texts": len(inputs), "texts_cut": cut}
    config |= {"device": f"{device}, {dtype}: {reason}", "versions": encoders.versions()}
    config = resume.started(args, config, model)
    with track(args.tracking_uri, args.experiment, output, vars(args), bool(args.resume)) as log:
        if not args.resume:
            with checkpoint.whole_folder(output, args.overwrite) as folder:
                checkpoint.write_json(folder / "config.json", config)
        log({}, step=0)  # no number yet: it keeps the id of MLflow's run in the folder
        print(f"folder    {output}")

        # ---- training (loops.py), saved after each epoch (runtime/resume.py)
        fit = loops.fit_frozen if frozen else loops.fit_finetune
        state = resume.State(Path(args.resume or output) / "state.safetensors")
        options = Options(args.label_smoothing, args.margin, dtype, progress_bar, state)
        history = checkpoint.read_jsonl(output / "history.jsonl") if state.path.exists() else []
        start -= sum(row["seconds"] for row in history)  # what was done before a resumption
        for row in fit(model, inputs, to_learn, indexed[1], args, options):
            print(console_row(row))
            # A resumed run's first row is the last one that was saved.
            history = [old for old in history if old["epoch"] < row["epoch"]] + [row]
            checkpoint.write_jsonl(output / "history.jsonl", history)
            log(row, step=row["epoch"])
            if row["best"] and not frozen and ranks()[0] == 0:
                models.save(model, output / "model")  # a crash costs one epoch at most
        if frozen:
            models.save(model, output / "model")

        # ---- evaluation (metrics.py), in pictures and words (report/): the test part is read once
        results, worker = {}, model.in_precision(dtype)
        for (name, pairs), part in zip(parts.items(), indexed, strict=True):
            # The test part goes the way of scoring, from tokens in float32; the rest as trained.
            judge, seen = (model, rows) if name == "test" else (worker, inputs)
            _, margins, rewards = loops.evaluate(judge, seen, part, progress_bar)
            lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs]).float()
            labels = [data.normalize(p.prompt) for p in pairs], [p.subset for p in pairs]
            temperature = model.info["temperature"]  # fitted on validation, at the best epoch
            results[name] = metrics.summarize(margins, *labels, lengths, rewards, temperature)
            ratings = torch.stack([part.chosen_rating, part.rejected_rating], dim=1)
            if args.approach == "regression" and (known := ratings.isfinite()).any():
                results[name] |= metrics.rating_errors(rewards[known], ratings[known])
        # From here on pairs, margins, rewards, lengths and labels are the test part's, the last.
        seconds = time.perf_counter() - start
        summary = {key: vars(args)[key] for key in ("approach", "dataset", "seed", "fold")}
        summary |= {"encoder": args.model, "trained": trained, "seconds": seconds, **results}
        longer = metrics.accuracies(metrics.credit(lengths[:, 0] - lengths[:, 1]), *labels)
        summary["baselines"] = {"chance": {"accuracy": 0.5}, "longer response": longer}
        checkpoint.write_text(output / "README.md", report.model_card(summary, config, output))
        checkpoint.write_text(output / "mistakes.md", report.mistakes(pairs, margins))
        figures.draw_run(output / "figures", history, margins, rewards, lengths, results["test"])
        judged = zip(pairs, margins.tolist(), lengths.tolist(), strict=True)
        tested = [dict(prompt=p.prompt, subset=p.subset, margin=m, lengths=n) for p, m, n in judged]
        checkpoint.write_jsonl(output / "predictions.jsonl", tested)
        log({f"test_{k}": v for k, v in results["test"].items()}, step=row["epoch"])
        checkpoint.write_json(output / "metrics.json", summary)  # the mark of a finished run
        state.remove()

    # ---- what came out
    print("\n" + report.verdict(summary))
    print(f"{seconds:.0f} seconds, features included; all is in {output}, see its mistakes.md")
    print("next: python -m minirlhf score", shlex.quote(args.output), "--prompt 2+2 --response 4")


if __name__ == "__main__":
    main()
