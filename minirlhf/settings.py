"""Every setting of a run, with its range, its default and the reason for it.

`Settings` is one frozen dataclass. `train.py` makes a flag of each field (`batch_size` becomes
`--batch-size`), the run folder keeps them in its `config.json`, and a test or a tool that needs
other settings writes `replace(FINETUNE, epochs=1)`.

How to train depends on the approach, so there are two presets: `FINETUNE` for bt-finetune, and
`FROZEN` for the three approaches whose encoder is frozen, so that they train nothing but a head.
None stands for a setting that was not given. A setting that an approach does not use keeps its
default or is None. Its value in `config.json` then means nothing (see `used_by`), and typing its
flag is an error. Most defaults were compared with others on validation data; what was tried is in
`minirlhf/experiments/README.md`.

Copy this file alone; it needs nothing but Python. Read next: `train.py`, then `data.py`.

>>> FINETUNE.lr, FROZEN.lr
(0.0001, 0.001)
>>> read_flags(flag_parser(), ["--approach", "regression", "--epochs", "5"]).epochs
5
"""

import argparse
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields, replace

FROZEN_APPROACHES = ("regression", "classification", "bt-frozen")
BRADLEY_TERRY = ("bt-frozen", "bt-finetune")
APPROACHES = (*FROZEN_APPROACHES, "bt-finetune")
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
AS_FINETUNE = object()  # stands for: the default does not depend on the approach


def setting(default, text: str, if_frozen=AS_FINETUNE, used_by=APPROACHES, **argparse_options):
    """A field of `Settings`: its default, what its flag does, and who uses it.

    if_frozen: the default of the approaches with a frozen encoder, where it is another one.
    used_by: the approaches that understand the flag; for the others it is an error.
    argparse_options: what `ArgumentParser.add_argument` is told, such as `type` and `choices`.
    """
    about = {
        "text": text,
        "if_frozen": default if if_frozen is AS_FINETUNE else if_frozen,
        "used_by": used_by,
        "argparse": argparse_options,
    }
    return field(default=default, metadata=about)


def number(kind: type, low: float, high: float):
    """A reader of numbers from `low` to `high`, for argparse. NaN lies outside of every range."""

    def read(text: str):
        if not low <= kind(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return kind(text)

    # argparse calls the kind of number by this name in its own message.
    read.__name__ = "whole number" if kind is int else "number"
    return read


def whole(default, low: int, high: int, text: str, **more):
    """A setting that is a whole number from `low` to `high`."""
    return setting(default, text, type=number(int, low, high), **{"metavar": "N"} | more)


def real(default, low: float, high: float, text: str, **more):
    """A setting that is a real number from `low` to `high`."""
    return setting(default, text, type=number(float, low, high), metavar="X", **more)


def switch(text: str, **more):
    """A setting that is off unless its flag is typed."""
    return setting(False, text, action="store_true", **more)


def column(role: str):
    """The name of a column of the data, for data that call it something unusual."""
    return setting(None, f"name of the column with the {role}, if unusual", metavar="NAME")


@dataclass(frozen=True)
class Settings:
    """Everything that a run can be told. Each field is a flag of `train.py`."""

    # ---- what to learn
    approach: str = setting(
        "bt-finetune",
        "regression: MSE to ratings. classification: BCE on pairs. bt-frozen: Bradley-Terry on "
        "frozen hidden states. bt-finetune: the same, and the encoder is trained, too",
        metavar="{" + ",".join(APPROACHES) + "}",
    )
    response_only: bool = switch("blank the prompts: how much do the responses alone tell?")

    # ---- data
    dataset: str = setting(
        "arithmetic",
        "arithmetic (the bundled data), argilla-math, a .jsonl, .json, .csv, .tsv or .parquet "
        "file, also as .gz, .xz or .zst, a folder of one such kind, or a hub id",
    )
    config: str | None = setting(
        None,
        "the configuration to read, of a folder or a hub id that has several",
        metavar="NAME",
    )
    split: str = setting("train", "the split to read of a folder or a hub id")
    prompt_column: str | None = column("prompt")
    chosen_column: str | None = column("chosen response")
    rejected_column: str | None = column("rejected response")
    chosen_rating_column: str | None = column("chosen response's rating")
    rejected_rating_column: str | None = column("rejected response's rating")
    limit: int | None = whole(
        None, 1, 10**9, "use the first N pairs only (arithmetic: 4000, unless told otherwise)"
    )
    balance: bool = switch(
        "weight the pairs so that all values of the column `subset` count the same in the loss"
    )
    fold: int = whole(0, 0, 4, "which fifth of the prompts is the test part", metavar="0..4")

    # ---- model
    model: str = setting(
        ENCODER, "a folder or a hub id: an encoder, or for the bt approaches also a decoder"
    )
    pooling: str | None = setting(
        None,
        "how hidden states become one vector (default: mean for encoders, last for decoders)",
        used_by=BRADLEY_TERRY,
        choices=("mean", "last", "cls"),
    )
    depth: float | None = real(
        0.67, 0.01, 1,
        "share of the encoder's layers that is used, the lowest ones: the upper ones cost time, "
        "and on the bundled data nothing was lost without them",
        used_by=BRADLEY_TERRY,
    )  # fmt: skip
    max_length: int = whole(
        256, 8, 10**6, "tokens of question and answer together; the question is cut first"
    )

    # ---- training
    epochs: int = whole(2, 1, 10**6, "passes over the training pairs", if_frozen=100)
    batch_size: int = whole(16, 1, 10**6, "pairs in one batch", if_frozen=64)
    accumulate: int | None = whole(
        1,
        1,
        10**6,
        "batches in one step, to save memory",
        if_frozen=None,
        used_by=("bt-finetune",),
    )
    lr: float = real(
        1e-4, 0, 10, "AdamW's learning rate; for bt-finetune its peak, because it rises and falls",
        if_frozen=1e-3,
    )  # fmt: skip
    weight_decay: float = real(
        0.01, 0, 10, "AdamW's; larger for a head on few pairs, which overfits", if_frozen=0.1
    )
    warmup: float | None = real(
        0.1, 0, 1,
        "share of the steps in which the learning rate rises, because Adam's estimates are "
        "poor at first; after that it falls to 0",
        if_frozen=None, used_by=("bt-finetune",),
    )  # fmt: skip
    clip: float | None = real(
        1.0, 1e-9, 1e9, "largest norm of a gradient; a longer one is shortened to it",
        if_frozen=None, used_by=("bt-finetune",),
    )  # fmt: skip
    dropout: float | None = real(
        0.0, 0, 0.9,
        "0 turns it off: the two sides of a pair would see two dropout masks, and the margin is a "
        "difference of the two",
        if_frozen=None, used_by=("bt-finetune",),
    )  # fmt: skip
    label_smoothing: float = real(
        0.0, 0, 0.5, "share of the pairs that is taken to be labelled wrong",
        used_by=("classification", *BRADLEY_TERRY),
    )  # fmt: skip
    margin: float = real(
        0.0, 0, 100, "reward gap asked for each point of rating gap", used_by=BRADLEY_TERRY
    )
    patience: int = whole(
        3,
        1,
        10**6,
        "stop after this many epochs without a better one on validation",
        if_frozen=10,
    )

    # ---- the run
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    seed: int = whole(0, 0, 2**63 - 1, "seed of everything that is drawn at random")
    output: str | None = setting(
        None, "the run folder (default: runs/APPROACH, or -2, -3 ...)", metavar="FOLDER"
    )
    overwrite: bool = switch("replace the run in --output when this one starts")
    resume: str | None = setting(
        None,
        "go on with a run that was stopped: bt-finetune from its last whole epoch, the others "
        "from the start, which takes seconds; takes no other flag, because the settings are in "
        "the folder",
        metavar="FOLDER",
    )
    no_cache: bool = switch("do not keep frozen features on disk", used_by=FROZEN_APPROACHES)
    tracking_uri: str | None = setting(
        None, "MLflow's; none for no tracking (default: a local store)", metavar="URI"
    )
    experiment: str = setting("minirlhf", "the name of MLflow's experiment")


FINETUNE = Settings()
FROZEN = replace(
    Settings(**{one.name: one.metadata["if_frozen"] for one in fields(Settings)}),
    approach="bt-frozen",
)

GROUPS = {  # the first field of each group in the help text
    "approach": "what to learn",
    "dataset": "data",
    "model": "model",
    "epochs": "training",
    "device": "the run",
}


def preset(approach: str) -> Settings:
    """The defaults of an approach."""
    base = FINETUNE if approach == "bt-finetune" else FROZEN
    if approach not in used_by("depth"):  # it reads the encoder as it was published
        return replace(base, approach=approach, depth=None)
    return replace(base, approach=approach)


def read_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Settings:
    """Flags to settings: what was typed, and for the rest the defaults of the approach.

    parser: what `flag_parser` made; argv: the flags, or None for those of the command line.
    A mistake ends the program with one line and exit code 2.
    """
    typed = typed_flags(parser, argv)
    approach = typed.get("approach", FINETUNE.approach)
    refuse_unused(parser, typed, approach)
    return replace(preset(approach), **typed)


def typed_flags(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> dict:
    """The settings that were typed, and no others, by name."""
    typed = vars(parser.parse_args(argv))  # defaults leave no trace: see `add_flag`
    if "folds" in typed or typed.get("approach") == "all":
        parser.error(
            "one run trains one approach on one fold; to compare several, type: "
            "python -m minirlhf compare --folds 5"
        )
    approach = typed.get("approach", FINETUNE.approach)
    if approach not in APPROACHES:
        parser.error(f"--approach {approach} is none of {', '.join(APPROACHES)}")
    if "resume" in typed and len(typed) > 1:
        parser.error("--resume takes no other flag: the run's settings are in its folder")
    if "overwrite" in typed and not typed.get("output"):
        parser.error("--overwrite goes with --output FOLDER")
    return typed


def refuse_unused(parser: argparse.ArgumentParser, typed: dict, approach: str) -> None:
    """End the program with one line if a flag was typed that the approach does not understand."""
    for name in typed:
        users = used_by(name)
        if approach not in users:
            flag = flag_name(name)
            verb = "does" if len(users) == 1 else "do"
            parser.error(f"{approach} does not use {flag}; only {', '.join(users)} {verb}")


def from_config(arguments: dict) -> Settings:
    """The settings that a run folder's `config.json` holds under "arguments".

    Raises ValueError if one is missing: the run is of an earlier version.
    """
    names = [one.name for one in fields(Settings)]
    missing = [name for name in names if name not in arguments]
    if missing:
        raise ValueError(f"the run's settings lack {', '.join(missing)}; start it again")
    return Settings(**{name: arguments[name] for name in names})


def flag_parser(about: str = "", examples: str = "") -> argparse.ArgumentParser:
    """An argument parser with a flag for each setting, in groups; about, examples: for `--help`."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [flags]",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # An error is one line, without argparse's usage.
    parser.error = lambda text: parser.exit(2, f"train.py: error: {text}\n")
    for one in fields(Settings):
        if one.name in GROUPS:
            group = parser.add_argument_group(GROUPS[one.name])
        add_flag(group, one)
    # Known only so that `typed_flags` can say what to type instead.
    parser.add_argument("--folds", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def add_flag(parser, one: Field) -> None:
    """Add the flag of a field of `Settings` to a parser or to a group of one.

    A flag that is not typed leaves no trace in the result, so that defaults can depend on the
    approach.
    """
    text = one.metadata["text"]
    if "(default" not in text:
        text += default_text(one)
    options = one.metadata["argparse"]
    parser.add_argument(flag_name(one.name), default=argparse.SUPPRESS, help=text, **options)


def default_text(one: Field) -> str:
    """The default of a field in words, and that of the frozen approaches where it differs."""
    frozen = one.metadata["if_frozen"]
    if one.default is None or one.default is False:
        return ""
    if frozen == one.default:
        return f" (default: {shown(one.default)})"
    if frozen is None:
        return f" (default: bt-finetune {shown(one.default)})"
    return f" (default: {shown(frozen)}, bt-finetune {shown(one.default)})"


def shown(value) -> str:
    """A default as a person would type it: 0.0001 and not 1e-04, but 0 and not 0.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def to_flags(typed: dict) -> list[str]:
    """The flags that one would type for these settings."""
    flags = []
    for name, value in typed.items():
        if value is True:
            flags.append(flag_name(name))
        else:
            flags += [flag_name(name), str(value)]
    return flags


def flag_name(name: str) -> str:
    """The flag of a setting: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


def used_by(name: str) -> tuple[str, ...]:
    """The approaches that understand the setting of that name."""
    for one in fields(Settings):
        if one.name == name:
            return one.metadata["used_by"]
    raise KeyError(name)
