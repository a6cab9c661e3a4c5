"""The results of a run: the numbers of each part, and the files of its folder that people read."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import fill

import torch
from torch import Tensor

from minirlhf import metrics
from minirlhf.bundled import arithmetic
from minirlhf.data import Parts, PreferencePair, normalize
from minirlhf.encoders import versions
from minirlhf.loops import Evaluation
from minirlhf.report import figures
from minirlhf.report.card import model_card
from minirlhf.report.duplicates import new_to
from minirlhf.report.verdict import verdict, worst_mistakes
from minirlhf.runtime import checkpoint, files
from minirlhf.runtime.device import Device
from minirlhf.runtime.tracking import About
from minirlhf.settings import Settings


def describe_run(settings: Settings, device: Device, encoder: dict, counts: dict) -> dict:
    """What `config.json` holds: all that the numbers of a run depend on.

    encoder: what `model.describe_encoder` says; counts: the report on the data.
    """
    return {
        "arguments": asdict(settings),
        "command": shlex.join(["python", *sys.argv]),
        "encoder": encoder,
        "data": counts,
        "device": f"{device.device}, {device.dtype}: {device.reason}",
        "versions": versions(),
    }


def for_mlflow(config: dict) -> About:
    """What MLflow is told of a run before it has numbers.

    config: what `describe_run` returns.
    """
    arguments = config["arguments"]
    tags = {
        "approach": arguments["approach"],
        "encoder": arguments["model"],
        "dataset": arguments["dataset"],
    }
    return About(params=arguments, tags=tags, data=data_for_mlflow(arguments, config["data"]))


def data_for_mlflow(arguments: dict, counts: dict) -> dict[str, str]:
    """The data set of a run, as the fields of `mlflow.entities.Dataset`.

    All are the same for every fold, because MLflow keeps one record for a name and digest.
    """
    dataset = arguments["dataset"]
    if dataset == "arithmetic":
        source_type = "code"
        source = {"tags": {"mlflow.source.name": "minirlhf/bundled/arithmetic.py"}}
    elif Path(dataset).exists():
        source_type = "local"
        source = {"uri": str(Path(dataset).resolve())}
    else:
        source_type = "hugging_face"
        source = {
            "path": files.SHORT_NAMES.get(dataset, dataset),
            "config_name": arguments["config"],
            "split": arguments["split"],
        }
    columns = []
    for role in counts["columns"]:
        kind = "double" if role.endswith("rating") else "string"
        columns.append({"name": role, "type": kind})
    profile = {name: counts[name] for name in ("pairs", "prompts", "rated")}
    return {
        "name": Path(dataset).name if source_type == "local" else dataset,
        "digest": counts["sha256"][:8],  # as short as MLflow's own
        "source_type": source_type,
        "source": json.dumps(source),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps(profile),
    }


def description(summary: dict) -> str:
    """The verdict as Markdown: as a block, because Markdown would join other lines.

    A block's lines are not wrapped where they are shown, so they are wrapped here.
    """
    lines = []
    for line in verdict(summary).splitlines():
        lines.append(fill(line, width=80, subsequent_indent="  "))
    text = "\n".join(lines)
    return f"```text\n{text}\n```"


def summarize_run(
    settings: Settings,
    encoder: dict,
    info: dict,
    parts: Parts,
    train: Evaluation,
    validation: Evaluation,
    test: Evaluation,
) -> dict:
    """What `metrics.json` holds, but for the seconds.

    encoder: what `model.describe_encoder` says; info: the model's own.
    train, validation, test: the evaluations of these parts.
    """
    numbers_of_test = of_part(parts.test, test, info)
    numbers_of_test |= on_new_prompts(parts, test)
    return {
        "approach": settings.approach,
        "dataset": settings.dataset,
        "seed": settings.seed,
        "fold": settings.fold,
        "encoder": settings.model,
        "trained": encoder["trained"],
        "train": of_part(parts.train_sample, train, info),
        "validation": of_part(parts.validation, validation, info),
        "test": numbers_of_test,
        "baselines": baselines(parts.test),
    }


def of_part(pairs: Sequence[PreferencePair], evaluation: Evaluation, info: dict) -> dict:
    """What `metrics.json` says of one part, from the evaluation of its N pairs.

    info: the model's, with its approach and the temperature that was fitted on validation.
    """
    numbers = metrics.summarize(
        evaluation.margins,
        prompts_of(pairs),
        subsets_of(pairs),
        response_lengths(pairs),
        evaluation.rewards,
        info["temperature"],
    )
    ratings = ratings_of(pairs)  # (N, 2)
    known = ratings.isfinite()
    if info["approach"] == "regression" and known.any():
        numbers |= metrics.rating_errors(evaluation.rewards[known], ratings[known])
    return numbers


def on_new_prompts(parts: Parts, test: Evaluation) -> dict:
    """The accuracy on those test prompts that do not nearly repeat a training prompt.

    `new_prompts` holds the numbers of pairs and of prompts, and the accuracy with its interval if
    there is any pair. The result is empty if no test prompt repeats one.
    """
    is_new = torch.tensor(new_to(parts.train, parts.test))  # (N,)
    if is_new.all():
        return {}
    new_pairs = [pair for pair, new in zip(parts.test, is_new.tolist(), strict=True) if new]
    prompts = prompts_of(new_pairs)
    numbers: dict = {"n": len(new_pairs), "n_prompts": len(set(prompts))}
    if new_pairs:
        right = metrics.credit(test.margins[is_new])
        numbers |= metrics.named("accuracy", metrics.bootstrap(right, prompts, ends=(0, 1)))
    return {"new_prompts": numbers}


def ratings_of(pairs: Sequence[PreferencePair]) -> Tensor:
    """The ratings of the chosen and the rejected response of each pair: (N, 2), NaN if unknown."""
    ratings = torch.full((len(pairs), 2), torch.nan)
    for i, pair in enumerate(pairs):
        if pair.chosen_rating is not None:
            ratings[i, 0] = pair.chosen_rating
            ratings[i, 1] = pair.rejected_rating
    return ratings


def baselines(pairs: Sequence[PreferencePair]) -> dict:
    """The accuracy that one gets on these pairs without a model."""
    lengths = response_lengths(pairs)
    prefers_longer = metrics.credit(lengths[:, 0] - lengths[:, 1])  # (N,)
    longer = metrics.accuracies(prefers_longer, prompts_of(pairs), subsets_of(pairs))
    return {"chance": {"accuracy": 0.5}, "longer response": longer}


def prompts_of(pairs: Sequence[PreferencePair]) -> list[str]:
    """The prompt of each pair, normalised: equal for those that the split holds together."""
    return [normalize(pair.prompt) for pair in pairs]


def subsets_of(pairs: Sequence[PreferencePair]) -> list[str]:
    """The subset of each pair."""
    return [pair.subset for pair in pairs]


def response_lengths(pairs: Sequence[PreferencePair]) -> Tensor:
    """Characters of the chosen and the rejected response of each pair: (N, 2) float32."""
    return torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in pairs]).float()


def write_report(
    folder: Path,
    summary: dict,
    config: dict,
    pairs: Sequence[PreferencePair],
    evaluation: Evaluation,
) -> None:
    """Write what people read of a run: its model card, worst mistakes, pictures and predictions.

    folder: the run's, with its `history.jsonl`, and `steps.jsonl` if it has one.
    summary and config: the run's `metrics.json` and `config.json`.
    pairs and evaluation: the test part and its evaluation.
    """
    history = checkpoint.read_jsonl(folder / "history.jsonl")
    steps = checkpoint.read_jsonl(folder / "steps.jsonl")
    lengths = response_lengths(pairs)
    blind = None
    if summary["dataset"] == "arithmetic":  # the one data set whose rule is known
        blind = arithmetic.blind_accuracies()
    checkpoint.write_text(folder / "README.md", model_card(summary, config, folder))
    checkpoint.write_text(folder / "mistakes.md", worst_mistakes(pairs, evaluation.margins))
    figures.draw_run(
        folder / "figures",
        history,
        steps,
        evaluation.margins,
        evaluation.rewards,
        lengths,
        summary["test"],
        blind,
    )
    predictions = []
    for pair, margin, length in zip(
        pairs, evaluation.margins.tolist(), lengths.tolist(), strict=True
    ):
        predictions.append(
            {
                "prompt": pair.prompt,
                "subset": pair.subset,
                "margin": margin,
                "lengths": length,
            }
        )
    checkpoint.write_jsonl(folder / "predictions.jsonl", predictions)
