"""The model card: the README of a run's folder. Its text stands in `card.md` beside this file."""

import json
import shlex
from pathlib import Path

from minirlhf.report.tables import interval
from minirlhf.report.verdict import verdict


def model_card(summary: dict, config: dict, output: Path) -> str:
    """What the model is, how good it is, how to use it, and its limits, as Markdown.

    summary and config are the run's `metrics.json` and `config.json`, and `output` is its folder.

    The card begins with the metadata that the hub reads from a model's README
    (https://huggingface.co/docs/hub/model-cards).
    """
    test = summary["test"]
    if summary["approach"] == "classification":  # it compares, so there is no score
        use = 'rank("2 + 2?", ["4", "5"])'
    else:
        use = 'score("2 + 2?", "4")'

    template = (Path(__file__).parent / "card.md").read_text("utf-8")
    return template.format(
        # the metadata
        name_yaml=_yaml(output.name),
        dataset_yaml=_yaml(summary["dataset"]),
        encoder_yaml=_yaml(summary["encoder"]),
        accuracy=round(test["accuracy"], 4),
        accuracy_interval=interval(test, "accuracy"),
        balanced_accuracy=round(test["balanced_accuracy"], 4),
        balanced_accuracy_interval=interval(test, "balanced_accuracy"),
        # the text
        name=output.name,
        approach=summary["approach"],
        encoder=summary["encoder"],
        dataset=summary["dataset"],
        fold=summary["fold"],
        command=config["command"],
        verdict=verdict(summary).strip(),
        use=use,
        output=shlex.quote(str(output)),
        output_text=json.dumps(str(output)),
    )


def _yaml(text: str) -> str:
    """A text as a quoted YAML string.

    A JSON string is one, except for characters that are not printable: YAML wants those as
    \\UXXXXXXXX.
    """
    quoted = json.dumps(text, ensure_ascii=False)
    escaped = ""
    for character in quoted:
        escaped += character if character.isprintable() else f"\\U{ord(character):08x}"
    return escaped
