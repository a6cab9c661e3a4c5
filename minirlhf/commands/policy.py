"""Train a policy on a reward, and see what the reward was worth.

    python -m minirlhf policy --reward runs/bt-finetune                  GRPO on a trained reward
    python -m minirlhf policy --reward runs/bt-finetune --method all     four ways, and the picture
    python -m minirlhf policy --reward truth                             what a perfect reward gives
    python -m minirlhf policy --policy FOLDER --dataset prompts.jsonl --reward runs/bt-finetune

The chapter `minirlhf/policy/README.md` explains what happens. Results are in the run folder:
`history.jsonl`, `metrics.json`, `samples.md`, `figures/` and `model/`, for each method.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minirlhf.policy.settings import METHODS, TOY, TRUTH, PolicySettings
from minirlhf.runtime import run_folder
from minirlhf.runtime.command_line import command, one_line, quiet_transformers
from minirlhf.settings import add_flag

if TYPE_CHECKING:  # they import torch, and --help should answer at once
    from minirlhf.policy.loop import PolicyState
    from minirlhf.policy.policies import Policy
    from minirlhf.policy.questions import Questions
    from minirlhf.policy.rewards import Reward
    from minirlhf.runtime.device import Device


@dataclass
class Shared:
    """What all methods of a run share."""

    device: "Device"
    questions: "Questions"
    reward: "Reward"


def run(settings: PolicySettings, folder: Path) -> None:
    """Train with one method, or with all of them in turn."""
    from minirlhf.policy import report
    from minirlhf.runtime import checkpoint

    quiet_transformers()
    shared = prepare(settings)
    if settings.resume is None:
        with checkpoint.whole_folder(folder, settings.overwrite) as unfinished:
            checkpoint.write_json(unfinished / "config.json", describe(settings, shared))

    methods = METHODS if settings.method == "all" else (settings.method,)
    finished = []
    for method in methods:
        own_folder = folder / method if settings.method == "all" else folder
        own_folder.mkdir(exist_ok=True)
        metrics_file = own_folder / "metrics.json"
        if metrics_file.exists():
            print(f"{method} is finished already")
        elif method == "best-of-n":
            run_best_of_n(settings, shared, own_folder)
        else:
            train(settings, shared, method, own_folder)
        finished.append(checkpoint.read_json(metrics_file))

    if settings.method == "all":
        curves = {}
        for metrics in finished:
            curves[metrics["method"]] = checkpoint.read_jsonl(
                folder / metrics["method"] / "history.jsonl"
            )
        report.draw_curves(folder / "figures/policy.png", title_of(settings), curves)
        text = report.methods_table(finished)
        checkpoint.write_text(folder / "policy.md", text)
        print(f"\n{text}\nthe picture is {folder / 'figures/policy.png'}")


def prepare(settings: PolicySettings) -> Shared:
    """The questions and the reward. Raises ValueError if they do not go together."""
    from minirlhf.policy.rewards import RunReward, true_ratings
    from minirlhf.runtime.device import pick_device

    device = pick_device(settings.device)
    print(f"device     {device.device} ({device.reason})")
    is_truth = TRUTH in settings.reward
    reward = true_ratings if is_truth else RunReward(settings.reward, device)
    is_toy = settings.policy == TOY
    questions = bundled_questions(settings) if is_toy else other_questions(settings)
    sizes = ", ".join(f"{len(part):,} {name}" for name, part in questions._asdict().items())
    print(f"questions  {sizes}")
    return Shared(device, questions, reward)


def bundled_questions(settings: PolicySettings) -> "Questions":
    """The questions of the toy, without those that the reward was trained on."""
    from minirlhf.commands.unseen import prompts_seen
    from minirlhf.policy.questions import toy_questions

    seen = set()
    for name in settings.reward:
        if name != TRUTH:
            seen |= prompts_seen(Path(name))
    count = settings.steps * settings.questions
    return toy_questions(count, settings.validation, settings.test, settings.seed, seen)


def other_questions(settings: PolicySettings) -> "Questions":
    """The questions of `--dataset`, no more of each part than are needed."""
    from minirlhf.policy.questions import dataset_questions

    questions = dataset_questions(
        settings.dataset,
        settings.split,
        settings.config,
        settings.prompt_column,
        fold_of(settings.reward),
        settings.seed,
    )
    return questions._replace(
        validation=questions.validation[: settings.validation],
        test=questions.test[: settings.test],
    )


def fold_of(runs: Sequence[str]) -> int:
    """The fold that the reward's runs left out for testing.

    Raises ValueError if they left out different ones: then no prompt is new to all of them.
    """
    from minirlhf.commands.evaluate import read_config

    folds = {read_config(run).get("arguments", {}).get("fold") for run in runs}
    if None in folds:
        raise ValueError("a run of --reward has no config.json that names the fold it left out")
    if len(folds) > 1:
        raise ValueError("the runs of --reward left out different folds, so no test is left")
    return folds.pop()


def start_policy(settings: PolicySettings, shared: Shared) -> "Policy":
    """The policy before any reward."""
    from minirlhf.policy.policies import load_policy
    from minirlhf.policy.start import start_of_the_toy

    if settings.policy != TOY:
        return load_policy(settings.policy, shared.device.device, shared.device.dtype)
    policy = start_of_the_toy(settings.start_seed, settings.start_steps)
    policy.model.to(shared.device.device)
    return policy


def describe(settings: PolicySettings, shared: Shared) -> dict:
    """What `config.json` holds."""
    from minirlhf.encoders import versions

    return {
        "arguments": asdict(settings),
        "command": shlex.join(["python", "-m", "minirlhf", "policy", *sys.argv[2:]]),
        "device": f"{shared.device.device}, {shared.device.dtype}: {shared.device.reason}",
        "versions": versions(),
    }


def train(settings: PolicySettings, shared: Shared, method: str, folder: Path) -> None:
    """Train a policy with one method, and judge it."""
    from minirlhf.policy import loop, report
    from minirlhf.policy.resume import load_state, save_state
    from minirlhf.runtime import checkpoint
    from minirlhf.runtime.tracking import console_row, set_description, track

    begin = time.perf_counter()
    policy = start_policy(settings, shared)
    start = policy.frozen_copy()
    state = loop.new_state(policy, settings.rate(method))
    state_file = folder / "state.safetensors"
    load_state(state_file, policy, state)
    last = state.step if state.step > 0 else -1  # the row before the first step is made again
    history = checkpoint.cut_jsonl(folder / "history.jsonl", "step", last)

    print(f"\n{method}, rate {settings.rate(method):g}")
    about = for_mlflow(settings, shared, method)
    again = state.step > 0
    with track(settings.tracking_uri, settings.experiment, folder, about, again) as log:
        seconds_before = state.seconds
        rows = loop.fit(policy, start, shared.reward, method, shared.questions, settings, state)
        for row in rows:
            print(console_row(shown(row)))
            history.append(row)
            checkpoint.write_jsonl(folder / "history.jsonl", history)
            log(row, step=row["step"])
            save_state(state_file, policy, start, state)

        metrics = {
            "method": method,
            "reward": list(settings.reward),
            "unit": "step",
            "seed": settings.seed,
            **judge(policy, start, shared, settings, state, folder),
            "seconds": seconds_before + time.perf_counter() - begin,
        }
        draw_pictures(settings, method, history, folder)
        numbers = {f"test_{name}": value for name, value in metrics["end"].items()}
        log(numbers, step=0)
        checkpoint.write_json(folder / "metrics.json", metrics)  # the mark of a finished method
        state_file.unlink(missing_ok=True)

    text = report.verdict(metrics)
    set_description(settings.tracking_uri, folder, f"```text\n{text}\n```")
    print(f"\n{text}\nanswers before and after are in {folder / 'samples.md'}")


def judge(
    policy: "Policy",
    start: "Policy",
    shared: Shared,
    settings: PolicySettings,
    state: "PolicyState",
    folder: Path,
) -> dict[str, dict]:
    """The points "start", "end" and, if the truth is known, "best", judged on the test questions.

    Writes `model/` and `samples.md` too. Afterwards the policy has its best weights.
    """
    from minirlhf.policy import loop, report
    from minirlhf.runtime import checkpoint, precision

    def answers_of(one: "Policy") -> loop.Answers:
        seed = loop.seed_of(settings, loop.TEST)
        return loop.answer(one, start, shared.reward, shared.questions.test, settings, seed)

    before = answers_of(start)
    after = answers_of(policy)
    policy.save(folder / "model")
    checkpoint.write_text(folder / "samples.md", report.samples(before, after))
    points = {
        "start": {"at": 0, **report.judged(before)},
        "end": {"at": state.step, **report.judged(after)},
    }
    if state.best_weights:
        policy.model.load_state_dict(state.best_weights)
        precision.hand_weights(policy.model, policy.worker)
        points["best"] = {"at": state.best_step, **report.judged(answers_of(policy))}
    return points


def run_best_of_n(settings: PolicySettings, shared: Shared, folder: Path) -> None:
    """What the best of n draws of the policy is worth, for n up to `settings.draws`."""
    from minirlhf.policy import best_of_n, loop, report
    from minirlhf.runtime import checkpoint
    from minirlhf.runtime.tracking import set_description, track

    begin = time.perf_counter()
    policy = start_policy(settings, shared)
    print(f"\nbest-of-n, up to n = {settings.draws}")
    about = for_mlflow(settings, shared, "best-of-n")
    with track(settings.tracking_uri, settings.experiment, folder, about) as log:
        questions = shared.questions
        drawn = best_of_n.draw_many(
            policy, shared.reward, questions.validation, settings, loop.VALIDATION
        )
        history = best_of_n.curve(drawn)
        draws = best_of_n.draw_many(policy, shared.reward, questions.test, settings, loop.TEST)
        on_test = best_of_n.curve(draws)
        checkpoint.write_jsonl(folder / "history.jsonl", history)
        for row in history:
            log(row, step=row["at"])
        metrics = {
            "method": "best-of-n",
            "reward": list(settings.reward),
            "unit": "n =",
            "seed": settings.seed,
            "start": on_test[0],
            "end": on_test[-1],
        }
        ratings = [row["rating"] for row in history if "rating" in row]
        if ratings:
            metrics["best"] = on_test[ratings.index(max(ratings))]
        metrics["seconds"] = time.perf_counter() - begin
        seed = loop.seed_of(settings, loop.TEST)
        before = loop.answer(policy, policy, shared.reward, draws.questions, settings, seed)
        after = best_of_n.best_answers(draws)
        checkpoint.write_text(folder / "samples.md", report.samples(before, after))
        report.draw_curves(
            folder / "figures/curve.png", title_of(settings), {"best-of-n": history}
        )
        checkpoint.write_json(folder / "metrics.json", metrics)
    text = report.verdict(metrics)
    set_description(settings.tracking_uri, folder, f"```text\n{text}\n```")
    print(f"\n{text}")


def shown(row: dict) -> dict:
    """What the console shows of a row; everything is in `history.jsonl`."""
    names = ("step", "reward", "rating", "kl", "flawless", "tokens", "distinct", "seconds")
    return {name: row[name] for name in names if name in row}


def for_mlflow(settings: PolicySettings, shared: Shared, method: str):
    """What MLflow is told of a run before it has numbers."""
    from minirlhf.runtime.tracking import About

    tags = {
        "method": method,
        "reward": " ".join(settings.reward),
        "policy": settings.policy,
        "dataset": settings.dataset or "arithmetic",
    }
    return About(params={**asdict(settings), "method": method}, tags=tags)


def draw_pictures(
    settings: PolicySettings, method: str, history: list[dict], folder: Path
) -> None:
    """The pictures of one method."""
    from minirlhf.policy import report

    report.draw_curves(folder / "figures/curve.png", title_of(settings), {method: history})
    if "rating" in history[0]:
        report.draw_flaws(folder / "figures/flaws.png", history)


def title_of(settings: PolicySettings) -> str:
    """The title of the picture."""
    return "Optimised against " + ", ".join(Path(one).name for one in settings.reward)


# ---- flags


def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, PolicySettings]:
    """The flags, checked, and the parser, which reports later errors."""
    parser = command("policy", "Train a policy on a reward, and see what the reward was worth.")
    for one in fields(PolicySettings):
        add_flag(parser, one)
    typed = vars(parser.parse_args(argv))
    if "reward" in typed:
        typed["reward"] = tuple(typed["reward"])
    if "resume" in typed and len(typed) > 1:
        parser.error("--resume takes no other flag: the run's settings are in its folder")
    if "overwrite" in typed and "output" not in typed:
        parser.error("--overwrite goes with --output FOLDER")
    settings = PolicySettings(**typed)
    problem = contradiction(settings)
    if problem:
        parser.error(problem)
    return parser, settings


def contradiction(settings: PolicySettings) -> str:
    """What does not go together in the settings; an empty text if all does."""
    if TRUTH in settings.reward and len(settings.reward) > 1:
        return "--reward truth stands alone"
    if settings.policy == TOY:
        if settings.dataset is not None:
            return "the toy has questions of its own; --dataset goes with another --policy"
        return ""
    if settings.dataset is None:
        return f"--policy {settings.policy} needs --dataset, where its questions are"
    if TRUTH in settings.reward:
        return "the truth is known of the toy's answers only; name a run with --reward"
    if settings.method in ("dpo-data", "all"):
        return "dpo-data has pairs for the toy only; take another --method"
    return ""


def choose_folder(settings: PolicySettings) -> tuple[PolicySettings, Path]:
    """The folder of a run, and its settings: for a resumed run those that its folder holds."""
    from minirlhf.runtime import checkpoint

    if settings.resume is not None:
        folder = Path(settings.resume)
        try:
            arguments = checkpoint.read_json(folder / "config.json")["arguments"]
            arguments["reward"] = tuple(arguments["reward"])
            kept = PolicySettings(**arguments)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} holds no run of this version to go on with") from error
        return replace(kept, resume=settings.resume, overwrite=False), folder
    if settings.output is None:
        return settings, run_folder.free_name(Path("runs", f"policy-{settings.method}"))
    folder = Path(settings.output)
    run_folder.check_may_be_written(folder, settings.overwrite)
    return settings, folder


def main(argv: Sequence[str] | None = None) -> None:
    """Train a policy. Bad input ends with one sentence on stderr and exit code 2."""
    parser, settings = parse(argv)
    with one_line(parser):
        settings, folder = choose_folder(settings)

    def how_to_go_on() -> str:
        if not (folder / "config.json").exists():
            return ""
        return f"; go on with: python -m minirlhf policy --resume {shlex.quote(str(folder))}"

    with one_line(parser, how_to_go_on), run_folder.locked(folder):
        run(settings, folder)
