"""Train one reward model from preferences, start to end, in one flat script.

Examples:
    python train.py                                     the bundled data, bt-finetune
    python train.py --approach regression               one of the three on frozen features
    python train.py --dataset pairs.jsonl --epochs 3    your own data
    python train.py --resume runs/bt-finetune           go on with a run that was stopped
    python -m minirlhf compare --folds 5                all four approaches, and a table

Read `run` from top to bottom: device, data, model, texts, features, run folder, training,
evaluation. Each step calls files of `minirlhf/`; you only need to go there to see how it is done.
The results are in the run folder: `config.json`, `history.jsonl`, `metrics.json`,
`predictions.jsonl`, `mistakes.md`, `README.md`, `model/` and `figures/`.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minirlhf.runtime import run_folder
from minirlhf.runtime.command_line import one_line, print_at_once, quiet_transformers
from minirlhf.settings import Settings, flag_parser, from_config, read_flags


def run(settings: Settings) -> None:
    """One approach on one fold, from rows to a run folder."""
    # Imported here, after the flags are known to be good, so that --help answers at once.
    from minirlhf import data, loops, tokens
    from minirlhf import model as models
    from minirlhf.bundled import arithmetic
    from minirlhf.report import results, verdict
    from minirlhf.report.duplicates import near_duplicates
    from minirlhf.runtime import checkpoint, files, ranks, resume
    from minirlhf.runtime.device import pick_device, seed_everything
    from minirlhf.runtime.tracking import console_row, set_description, track

    start = time.perf_counter()
    quiet_transformers()
    is_frozen = settings.approach != "bt-finetune"

    # ---- device and seed. The seed comes before the head is built.
    device = pick_device(ranks.join(settings.device))
    seed_everything(settings.seed)
    print(f"device    {device.device} ({device.reason}), processes: {ranks.count()}")

    # ---- data: rows -> pairs -> three parts that share no prompt
    if settings.dataset == "arithmetic":
        rows = arithmetic.generate(settings.limit or arithmetic.PAIRS)
    else:
        rows = files.load_rows(settings.dataset, settings.split, settings.config)
    pairs, counts = data.build_pairs(rows, settings.limit, **column_names(settings))
    is_regression = settings.approach == "regression"
    rated = is_regression or settings.margin > 0
    parts = data.split_usable(pairs, settings.fold, rated, ties=is_regression)
    counts["parts"] = data.sizes(parts)
    counts["near_duplicates"] = near_duplicates(parts.train, parts.test)
    print(verdict.data_text(settings.dataset, counts, parts.train))

    # ---- model: a pretrained encoder, a pooler and a new head
    model = models.build(
        settings.approach,
        settings.model,
        settings.pooling,
        settings.max_length,
        device.attention,
        device.device,
        settings.depth or 1.0,
    )
    model.info["response_only"] = settings.response_only
    encoder = models.describe_encoder(model, settings.model)
    print(f"\nencoder   {settings.model} ({encoder['source']})")
    print(f"model     {encoder['trained']:,} parameters learn, {models.shape_of(model)}")

    # ---- texts: each distinct one is tokenised once, and pairs become tensors of their numbers.
    # All pairs are numbered, whatever the fold, so that every fold finds the same cached features.
    texts = data.number_texts(pairs)
    encoded = model.encode(texts.prompts, texts.responses)
    token_rows = encoded.token_rows
    counts |= model.count_truncation(pairs, texts, encoded)
    print(tokens.describe_truncation(counts, settings.max_length))
    # Pairs whose two sides have the same token ids are dropped from every part.
    parts = models.drop_identical_pairs(parts, texts, token_rows)
    counts["parts"] = data.sizes(parts)
    train, train_sample, validation, test = [
        data.make_part(part, texts, settings.balance) for part in parts
    ]

    # ---- frozen vectors: of an encoder that does not learn they are computed once for training
    seconds_saved = 0.0  # by the cache; they are counted as if there were none
    if is_frozen:
        frozen = models.frozen_features(model, token_rows, device, keep=not settings.no_cache)
        seconds_saved = frozen.seconds_saved
        features = frozen.vectors.to(device.device)  # (U, D)
        print(f"features  {frozen.seconds:.0f} seconds, {frozen.origin}")

    # ---- run folder, and MLflow
    output = Path(settings.output)
    is_resumed = settings.resume is not None
    config = results.describe_run(settings, device, encoder, counts)
    about = results.for_mlflow(config)
    with track(settings.tracking_uri, settings.experiment, output, about, is_resumed) as log:
        if is_resumed:
            config = run_folder.resumed_config(Path(settings.resume), config)
        else:
            run_folder.check_disk(output, resume.bytes_needed(model))
            with checkpoint.whole_folder(output, settings.overwrite) as folder:
                checkpoint.write_json(folder / "config.json", config)
        # There are no numbers yet, but the first call writes the id of MLflow's run to the folder.
        log({}, step=0)
        print(f"folder    {output}")

        # ---- training: a record of each epoch is printed, logged and saved, and so is the model
        # A helper process of torchrun writes to a scratch folder, but reads the state of the run
        # that is resumed.
        state_file = Path(settings.resume or output) / "state.safetensors"
        state = loops.new_state(model, settings)

        def log_step(record: dict) -> None:
            checkpoint.append_jsonl(output / "steps.jsonl", record)
            log(record, step=record["step"])

        if is_frozen:
            epochs = loops.fit_frozen(model, features, train, validation, settings, state)
        else:
            resume.load_state(state_file, state)
            epochs = loops.fit_finetune(
                model, token_rows, train, validation, settings, device.dtype, state, log_step
            )
        seconds_before = state.seconds
        history = checkpoint.cut_jsonl(output / "history.jsonl", "epoch", state.epoch)
        checkpoint.cut_jsonl(output / "steps.jsonl", "step", state.step)
        for record in epochs:
            print(console_row(record))
            history.append(record)
            checkpoint.write_jsonl(output / "history.jsonl", history)
            log(record, step=record["epoch"])
            if is_frozen or ranks.rank() > 0:  # only torchrun's first process saves
                continue
            if record["best"]:
                models.save(model, output / "model")
            state.seconds = seconds_before + time.perf_counter() - start
            resume.save_state(state_file, state)  # a crash costs one epoch at most
        if is_frozen:
            models.save(model, output / "model")

        # ---- evaluation. The test pairs are scored once, here, in float32, as a user will score
        # texts, and nothing depends on the result. The other parts are scored in the precision of
        # training. Frozen features computed in float32 serve for both. The validation result of
        # the best epoch was kept by the loop.
        if is_frozen:
            on_train = loops.evaluate(model, features, train_sample)
            on_validation = loops.evaluate(model, features, validation)
        else:
            working_copy = model.in_precision(device.dtype)
            on_train = loops.evaluate_texts(working_copy, token_rows, train_sample)
            on_validation = loops.Evaluation(**state.validation)
        if is_frozen and device.computes_in_float32:
            on_test = loops.evaluate(model, features, test)
        else:
            on_test = loops.evaluate_texts(model, token_rows, test)
        summary = results.summarize_run(
            settings, encoder, model.info, parts, on_train, on_validation, on_test
        )
        summary["seconds"] = seconds_before + seconds_saved + time.perf_counter() - start
        results.write_report(output, summary, config, parts.test, on_test)
        test_numbers = {f"test_{name}": value for name, value in summary["test"].items()}
        log(test_numbers, step=0)  # MLflow draws bars, not curves, of what has only this step
        checkpoint.write_json(output / "metrics.json", summary)  # the mark of a finished run
        if ranks.rank() == 0:
            state_file.unlink(missing_ok=True)

    # ---- what came out
    print("\n" + verdict.verdict(summary))
    set_description(settings.tracking_uri, output, results.description(summary))
    print(verdict.what_next(summary, settings.output))


def column_names(settings: Settings) -> dict[str, str | None]:
    """What the data call their columns, where the user had to say it."""
    return {
        "prompt": settings.prompt_column,
        "chosen": settings.chosen_column,
        "rejected": settings.rejected_column,
        "chosen_rating": settings.chosen_rating_column,
        "rejected_rating": settings.rejected_rating_column,
    }


def choose_folder(settings: Settings) -> Settings:
    """Decide which folder the run writes to.

    The result is the settings with that folder as their output. A resumed run gets the settings
    that its folder holds. Raises ValueError if the folder is taken, or if no run in it can go on.
    """
    if settings.resume is not None:
        config = run_folder.reopen(Path(settings.resume))
        settings = replace(
            from_config(config["arguments"]),
            resume=settings.resume,
            output=settings.resume,
            overwrite=False,
        )
    elif settings.output is None:
        folder = run_folder.free_name(Path("runs", settings.approach))
        settings = replace(settings, output=str(folder))
    else:
        run_folder.check_may_be_written(Path(settings.output), settings.overwrite)

    if run_folder.is_helper():  # one of torchrun's processes, and not the first
        scratch = run_folder.silent_scratch_folder(exists=settings.resume is not None)
        settings = replace(settings, output=str(scratch), tracking_uri="none")
    return settings


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script. Bad input ends with one sentence on stderr and exit code 2."""
    about, examples = __doc__.split("\n\n")[:2]
    parser = flag_parser(about, examples)
    print_at_once()
    settings = read_flags(parser, argv)
    with one_line(parser):
        settings = choose_folder(settings)
    folder = Path(settings.output)

    def how_to_go_on() -> str:
        if not run_folder.can_go_on(folder):
            return ""
        return f"; go on with: python train.py --resume {shlex.quote(settings.output)}"

    with one_line(parser, how_to_go_on), run_folder.locked(folder):
        run(settings)


if __name__ == "__main__":
    main()
