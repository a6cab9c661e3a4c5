"""Train one reward model from preferences, start to end, in one flat script.

Examples:
    python train.py                                     the bundled data, the best approach
    python train.py --approach regression               one of the three frozen ones: seconds
    python train.py --dataset pairs.jsonl --epochs 3    your own data

Read it top to bottom: the flags, the data, the model, the loop, the result. Each section calls one
file of `minirlhf/` and names it; you only need to go there to see how. The run writes a run folder:
`config.json`, `history.jsonl`, `metrics.json`, `model/` and `README.md`.
"""

import argparse
import shlex
import sys
import time
from pathlib import Path

APPROACHES = ("regression", "classification", "bt-frozen", "bt-finetune")
BUNDLED_PAIRS = 5000  # what two CPU cores learn from in under three minutes

# The flags whose default depends on the approach: their type and range, the default for each
# approach in the order above, what they do, and why. Defaults were compared on validation data.
# None means that the approach has no use for the flag, and typing it is an error.
# fmt: off
TUNED = {
    "epochs": (int, 1, 10**6, (100, 100, 100, 3), "passes over the training pairs"),
    "batch-size": (int, 1, 10**6, (64, 64, 64, 32), "pairs in one forward"),
    "accumulate": (int, 1, 10**6, (None, None, None, 1), "forwards in one step, to save memory"),
    "lr": (float, 0, 10, (1e-3, 1e-3, 1e-3, 1e-4), "peak learning rate of AdamW; pretrained "
        "weights move little, a new head much (bt-finetune's at ten times this rate)"),
    "weight-decay": (float, 0, 10, (0.1, 0.1, 0.1, 0.01), "AdamW's; a head on few pairs overfits"),
    "warmup": (float, 0, 1, (None, None, None, 0.1), "share of the steps in which the rate rises "
        "(Adam's first steps are badly informed); then it falls to 0"),
    "clip": (float, 1e-9, 1e9, (None, None, None, 1.0), "longer gradients are scaled down"),
    "dropout": (float, 0, 0.9, (None, None, None, 0.0), "off: noise as large as the margins"),
    "label-smoothing": (float, 0, 0.5, (None, 0.0, 0.0, 0.0), "share of wrong pairs"),
    "margin": (float, 0, 100, (None, None, 0.0, 0.0), "reward gap asked per point of rating gap"),
    "patience": (int, 1, 10**6, (10, 10, 10, 3), "epochs without a better one before it stops"),
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
    parser.error = lambda message: parser.exit(2, f"train.py: error: {message}\n")
    add = parser.add_argument_group("what to learn").add_argument
    add("--approach", choices=APPROACHES, default="bt-finetune",
        help="regression: MSE to ratings. classification: BCE on pairs. bt-frozen: Bradley-Terry "
        "on frozen hidden states. bt-finetune: the same, encoder trained (default: %(default)s)")
    add = parser.add_argument_group("data").add_argument
    add("--dataset", default="arithmetic",
        help="arithmetic (bundled), argilla-math, a .jsonl, .json, .csv or .parquet file, a folder "
        "of them, or a hub id (default: %(default)s)")
    add("--split", default="train", help="of a folder or hub id (default: %(default)s)")
    for role in ("prompt", "chosen", "rejected", "chosen-rating", "rejected-rating"):
        add(f"--{role}-column", metavar="NAME", help="(default: by its name)")
    add("--limit", type=number(int, 1, 10**9), metavar="N", help="the first N pairs (default: all)")
    add("--fold", type=number(int, 0, 4), default=0, metavar="0..4",
        help="which fifth of the prompts is the test part (default: %(default)s)")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2",
        help="a folder or a hub id: an encoder, or for bt-* also a decoder (default: %(default)s)")
    add("--pooling", choices=("mean", "last", "cls"),
        help="bt-*: hidden states to vector (default: mean for encoders, last for decoders)")
    add("--max-length", type=number(int, 8, 10**6), default=256, metavar="N",
        help="tokens of question and answer; the question is cut first (default: %(default)s)")
    add = parser.add_argument_group("training").add_argument
    for flag, (kind, low, high, values, text) in TUNED.items():
        used = {a: v for a, v in zip(APPROACHES, values, strict=True) if v is not None}
        said = ", ".join(f"{a} {v:g}" for a, v in used.items())
        if len(used) == 4 and len(set(values[:3])) == 1:
            said = f"{values[0]:g}, bt-finetune {values[3]:g}"
        add(f"--{flag}", type=number(kind, low, high), metavar="N" if kind is int else "X",
            help=f"{text} (default: {said})")
    add = parser.add_argument_group("the run").add_argument
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (default: %(default)s)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N",
        help="of the head and the order of pairs (default: %(default)s)")
    add("--output", metavar="FOLDER", help="run folder (default: runs/APPROACH)")
    add("--overwrite", action="store_true", help="replace the run in the folder typed as --output")
    add("--no-cache", action="store_true", help="do not keep frozen features on disk")
    add("--tracking-uri", metavar="URI", help="MLflow's; none for no tracking (default: local)")
    add("--experiment", default="minirlhf", help="MLflow's (default: %(default)s)")
    args = parser.parse_args(argv)
    # fmt: on

    users_of = {"pooling": ("bt-frozen", "bt-finetune"), "no_cache": APPROACHES[:3]}
    for flag, (_, _, _, values, _) in TUNED.items():
        name = flag.replace("-", "_")
        users_of[name] = [a for a, v in zip(APPROACHES, values, strict=True) if v is not None]
        default = values[APPROACHES.index(args.approach)]
        setattr(args, name, default if getattr(args, name) is None else getattr(args, name))
    for name, users in users_of.items():
        if args.approach not in users and str(getattr(args, name)) not in ("None", "False"):
            flag = name.replace("_", "-")
            parser.error(f"{args.approach} does not use --{flag}; only {', '.join(users)} do")
    if args.overwrite and not args.output:
        parser.error("--overwrite goes with --output FOLDER")
    if args.output and Path(args.output).exists():
        folder = Path(args.output)
        if not args.overwrite:
            parser.error(f"{folder} exists; give another --output, or --overwrite to replace it")
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} is no run folder, so it is not overwritten")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the script. Bad input ends with one sentence on stderr and exit code 2."""
    try:
        run(parse(argv))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted; the best model so far, if there is one, is in the folder named above")
        raise SystemExit(130) from None


def run(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    # Imported here, after the flags are known to be good, so that --help answers at once.
    import shutil

    from transformers.utils import logging

    from minirlhf import checkpoint, data, encoders, loops, metrics, tokens, tracking
    from minirlhf import model as models
    from minirlhf.approaches import Options
    from minirlhf.device import pick_device, seed_everything
    from minirlhf.tracking import progress_bar as bar

    logging.disable_progress_bar()

    # ---- device and seed (device.py). The seed comes before the head is built.
    device, dtype, attention, reason = pick_device(args.device)
    print(f"device    {device} ({reason})")
    seed_everything(args.seed)

    # ---- data (data.py): rows -> pairs -> three parts that share no prompt
    if args.dataset == "arithmetic":
        from minirlhf.bundled.arithmetic import generate

        rows = generate(args.limit or BUNDLED_PAIRS)
    else:
        rows = data.load_rows(args.dataset, args.split)
    roles = ("prompt", "chosen", "rejected", "chosen_rating", "rejected_rating")
    columns = {role: getattr(args, f"{role}_column") for role in roles}
    pairs, report = data.build_pairs(rows, args.limit, **columns)
    # Equal ratings teach a regression something; as preferences, and in any evaluation, nothing.
    # The test part does not depend on the approach, so that all are tested on the same pairs.
    rated = args.approach == "regression" or bool(args.margin)
    train, validation, test = data.split(pairs, args.fold)
    train = data.usable(train, rated, ties=args.approach == "regression")
    parts = train, validation, test = train, data.usable(validation, rated), data.usable(test)
    if not all(parts):
        raise ValueError(
            "too few pairs: regression and --margin need ratings, the rest unequal ones"
        )
    names = ("train", "validation", "test")
    report["parts"] = dict(zip(names, map(len, parts), strict=True))
    report["near_duplicates"] = data.near_duplicates(train, test)
    print(f"data      {args.dataset}")
    for key, value in report.items():
        print(f"  {key:26} {value}")
    for pair in train[:2]:
        print("\n" + data.show(pair))

    # ---- model (model.py) and tokens (tokens.py): each distinct text once
    _, why = encoders.resolve(args.model)
    model = models.build(
        args.approach, args.model, args.pooling, args.max_length, attention, device
    )
    frozen = args.approach != "bt-finetune"
    weights = encoders.fingerprint(model.encoder)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(f"\nencoder   {args.model} ({why})")
    print(f"model     pooling: {model.info['pooling']}; {trained:,} parameters are trained")
    prompts, responses, indexed = data.index_texts(*parts)
    inputs, cut = tokens.encode(prompts, responses, model.tokenizer, args.max_length)
    print(f"texts     {len(inputs):,} distinct, {cut} of them cut to {args.max_length} tokens")

    # ---- frozen features (encoders.py): computed once, kept on disk
    if frozen:
        folder = None if args.no_cache else encoders.cache_folder()

        def embed():
            return tokens.map_batches(model.vectors, inputs, model.pad_id, device, progress=bar)

        configs = [m.config for m in model.encoder.modules() if hasattr(m, "config")]
        key = {"weights": weights, "how": f"{model.info['pooling']} {model.encoder} {configs}"}
        features, origin = encoders.cached(embed, inputs, folder, **key, **encoders.versions())
        inputs = features.to(device)  # (U, D) takes the place of the U token rows
        print(f"features  {tuple(features.shape)}, {origin}")

    # ---- the run folder (checkpoint.py) and MLflow (tracking.py)
    output, number = Path(args.output or f"runs/{args.approach}"), 2
    while not args.output and output.exists():
        output, number = Path(f"runs/{args.approach}-{number}"), number + 1
    config = {"arguments": vars(args), "command": shlex.join(["python", *sys.argv])}
    config["encoder"] = {"name": args.model, "source": why, "sha256": weights, "trained": trained}
    config["data"] = report | {"texts": len(inputs), "texts_cut": cut}
    config |= {"device": f"{device}, {dtype}: {reason}", "versions": encoders.versions()}
    used = {key: value for key, value in vars(args).items() if value is not None}
    with tracking.track(args.tracking_uri, args.experiment, output.name, used, output) as log:
        if args.overwrite and output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True)
        checkpoint.write_json(output / "config.json", config)
        print(f"folder    {output}")

        # ---- training (loops.py): a row of numbers after each epoch
        fit = loops.fit_frozen if frozen else loops.fit_finetune
        evaluate = loops.evaluate_frozen if frozen else loops.evaluate_finetune
        options = Options(args.label_smoothing or 0.0, args.margin or 0.0, dtype, bar)
        for row in fit(model, inputs, *indexed[:2], args, options):
            print(tracking.console_row(row))
            checkpoint.append_jsonl(output / "history.jsonl", row)
            log(row, step=row["epoch"])
            if row["best"] and not frozen:
                models.save(model, output / "model")  # a crash costs one epoch at most
        if frozen:
            models.save(model, output / "model")

        # ---- evaluation (metrics.py): the test part is read once, here
        results = {}
        for name, part, index in zip(names, parts, indexed, strict=True):
            # In float32, as in scoring; the large training part as it was trained.
            _, margins = evaluate(model, inputs, index, options if name == "train" else Options())
            prompts = [data.normalize(pair.prompt) for pair in part]
            results[name] = metrics.summarize(margins, prompts, [pair.subset for pair in part])
        test_result = results["test"]
        summary = {key: vars(args)[key] for key in ("approach", "dataset", "seed", "fold")}
        summary |= {"encoder": args.model, "seconds": time.perf_counter() - start, **results}
        summary["baselines"] = {"chance": 0.5, "longer response": data.longer_is_chosen(test)}
        checkpoint.write_json(output / "metrics.json", summary)
        checkpoint.write_text(output / "README.md", model_card(summary, config, output))
        log({f"test_{k}": v for k, v in test_result.items() if k != "subsets"}, step=row["epoch"])

    # ---- what came out
    low, high = test_result["accuracy_low"], test_result["accuracy_high"]
    print(f"\ntest accuracy {test_result['accuracy']:.3f}, 95 % interval {low:.3f} to {high:.3f},")
    print(f"on {len(test)} pairs over {test_result['n_prompts']} prompts that training never saw")
    if low <= 0.5 <= high:
        print("the interval holds 0.5: nothing here tells this model from a coin")
    if len(test_result["subsets"]) > 1:
        print(f"mean over subsets {test_result['balanced_accuracy']:.3f}:")
        for name, subset in sorted(test_result["subsets"].items(), key=lambda s: s[1]["accuracy"]):
            print(f"  {subset['accuracy']:.3f}  {name} ({subset['n']})")
    train_accuracy, longer = results["train"]["accuracy"], summary["baselines"]["longer response"]
    print(f"train accuracy {train_accuracy:.3f}; the longer response {longer:.3f}; a coin 0.500")
    print(f"{summary['seconds']:.0f} seconds; everything is in {output}")
    print(f"next: python -m minirlhf.score {output} --prompt '2 + 2?' --response 4 --response 5")


def model_card(summary: dict, config: dict, output: Path) -> str:
    """The run folder's README: what the model is, how good, and how to use it."""
    test, longer = summary["test"], summary["baselines"]["longer response"]
    interval = f"{test['accuracy_low']:.3f} to {test['accuracy_high']:.3f}"
    use = 'rank("2 + 2?", ["4", "5"])'
    use = use if summary["approach"] == "classification" else 'score("2 + 2?", "4")'
    return f"""# {output.name}

A reward model made by minirlhf with the approach `{summary["approach"]}`
from `{summary["encoder"]}` on `{summary["dataset"]}`, fold {summary["fold"]}: `{config["command"]}`

Test accuracy {test["accuracy"]:.3f}, 95 % interval {interval} (bootstrap over prompts),
on {test["n"]} pairs over {test["n_prompts"]} prompts.
Mean over subsets {test["balanced_accuracy"]:.3f}; a coin 0.5; the longer response {longer:.3f}.
All figures are in `metrics.json`, all settings in `config.json`.

    import minirlhf
    minirlhf.load("{output}").{use}
"""


if __name__ == "__main__":
    main()
