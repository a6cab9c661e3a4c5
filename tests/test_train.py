"""`train.py` as a user runs it: the four approaches, the run folder, and bad input."""

import csv
import json
import math
import shutil
from pathlib import Path

import pytest
from conftest import MINILM

import minirlhf
import train
from minirlhf import data, loops, pooling
from minirlhf.bundled.arithmetic import generate
from minirlhf.commands import score as score_lines
from minirlhf.runtime.files import load_rows
from minirlhf.settings import APPROACHES, flag_parser, read_flags

QUIET = ["--tracking-uri", "none", "--device", "cpu"]


def run(*flags):
    train.main([*QUIET, *flags])


def metrics(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def config(folder):
    return json.loads((Path(folder) / "config.json").read_text())


@pytest.mark.parametrize("approach", APPROACHES)
def test_each_approach_end_to_end(approach, tiny_encoder, pairs_file, capsys):
    flags = ["--approach", approach, "--dataset", pairs_file, "--model", tiny_encoder]
    run(*flags, "--max-length", "96", "--epochs", "2", "--batch-size", "8")
    folder = Path("runs") / approach
    result = metrics(folder)
    for key in (
        "approach",
        "dataset",
        "encoder",
        "seed",
        "fold",
        "seconds",
        "train",
        "validation",
    ):
        assert key in result
    test = result["test"]
    for key in (
        "n",
        "n_prompts",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "balanced_accuracy",
    ):
        assert math.isfinite(test[key])
    assert test["accuracy_low"] <= test["accuracy"] <= test["accuracy_high"]
    assert sum(subset["n"] for subset in test["subsets"].values()) == test["n"]
    about = config(folder)
    assert about["arguments"]["approach"] == approach
    assert about["data"]["pairs"] == 120
    assert about["data"]["parts"]["test"] == test["n"]
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in history] == [1, 2]
    pictures = {"learning_curves.png", "rewards.png", "reliability.png", "subsets.png"}
    assert pictures <= {file.name for file in (folder / "figures").iterdir()}
    assert ("mae" in test) == (approach == "regression")
    assert math.isfinite(test["nll_calibrated"]) and test["temperature"] > 0
    said = capsys.readouterr().out
    for words in (
        "test accuracy",
        "95 % interval",
        "seconds, features included",
        "next: python -m",
    ):
        assert words in said
    # What was saved gives the accuracy that was printed.
    scorer = minirlhf.load(folder, "cpu")
    pairs, _ = data.build_pairs(load_rows(pairs_file))
    _, _, tested = data.split(pairs)
    right = [scorer.rank(p.prompt, [p.rejected, p.chosen])[0][1] == p.chosen for p in tested]
    assert sum(right) / len(right) == pytest.approx(test["accuracy"], abs=1e-6)
    # And its probabilities are those whose likelihood is in metrics.json.
    likelihood = [-math.log(scorer.probability(p.prompt, p.chosen, p.rejected)) for p in tested]
    assert sum(likelihood) / len(tested) == pytest.approx(test["nll_calibrated"], abs=1e-4)
    # The same command gives the same numbers, in the next free folder.
    run(*flags, "--max-length", "96", "--epochs", "2", "--batch-size", "8")
    again = metrics(f"runs/{approach}-2")
    del again["seconds"], result["seconds"]
    assert again == result


def test_a_decoder_end_to_end(tiny_decoder, pairs_file):
    flags = ["--dataset", pairs_file, "--model", tiny_decoder, "--max-length", "96"]
    run(*flags, "--epochs", "1", "--output", "out")
    assert json.loads(Path("out/model/reward.json").read_text())["pooling"] == "last"


def test_the_bundled_data_and_the_packaged_weights_are_the_default():
    run("--approach", "bt-frozen", "--limit", "200", "--output", "out", "--epochs", "3")
    result = metrics("out")
    assert (result["dataset"], result["encoder"]) == ("arithmetic", MINILM)
    assert len(result["test"]["subsets"]) > 5


def test_mlflow_gets_parameters_curves_and_artifacts(tiny_encoder, pairs_file):
    import mlflow

    flags = ["--approach", "bt-frozen", "--dataset", pairs_file, "--model", tiny_encoder]
    flags += [
        "--max-length",
        "96",
        "--epochs",
        "3",
        "--tracking-uri",
        "sqlite:///tracked.db",
    ]
    train.main([*flags, "--experiment", "an experiment", "--output", "out"])
    client = mlflow.MlflowClient("sqlite:///tracked.db")
    experiment = client.get_experiment_by_name("an experiment")
    (tracked,) = client.search_runs([experiment.experiment_id])
    assert tracked.data.params["approach"] == "bt-frozen"
    assert tracked.data.params["lr"] == "0.001"
    assert len(client.get_metric_history(tracked.info.run_id, "validation_accuracy")) == 3
    assert tracked.data.metrics["test_accuracy"] == pytest.approx(
        metrics("out")["test"]["accuracy"]
    )
    files = {file.path for file in client.list_artifacts(tracked.info.run_id)}
    assert {
        "config.json",
        "metrics.json",
        "history.jsonl",
        "mistakes.md",
        "figures",
    } <= files
    assert "model" not in files


def test_other_column_names_and_csv(tiny_encoder):
    with open("pairs.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["q", "good", "bad", "g", "b"])
        for row in generate(120):
            writer.writerow(list(row.values())[:5])
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad", "chosen-rating": "g"}
    columns["rejected-rating"] = "b"
    flags = [text for role, name in columns.items() for text in (f"--{role}-column", name)]
    flags += ["--dataset", "pairs.csv", "--model", tiny_encoder, "--max-length", "96"]
    run("--approach", "regression", *flags, "--epochs", "1")
    assert metrics("runs/regression")["test"]["n"] > 0


def test_unrated_pairs_are_tested_like_all_others(tiny_encoder):
    rows = generate(160)
    for row in rows[::3]:
        row["chosen_rating"] = row["rejected_rating"] = None
    Path("pairs.json").write_text(json.dumps(rows))
    flags = ["--dataset", "pairs.json", "--model", tiny_encoder, "--max-length", "96"]
    counts = {}
    for approach in ("regression", "classification"):
        run("--approach", approach, *flags, "--epochs", "1")
        result = metrics(f"runs/{approach}")
        counts[approach] = (result["train"]["n"], result["test"]["n"])
    assert counts["regression"][0] < counts["classification"][0]
    assert counts["regression"][1] == counts["classification"][1]


def test_a_tracking_server_that_dies_costs_a_warning_not_the_run(
    tiny_encoder, pairs_file, monkeypatch, capsys
):
    import mlflow

    def dead(*args, **kwargs):
        raise mlflow.exceptions.MlflowException("gone")

    monkeypatch.setattr(mlflow, "log_metrics", dead)
    monkeypatch.setattr(mlflow, "log_artifact", dead)
    flags = ["--approach", "bt-frozen", "--dataset", pairs_file, "--model", tiny_encoder]
    flags += ["--max-length", "96", "--epochs", "2", "--tracking-uri", "sqlite:///t.db"]
    train.main([*flags, "--output", "out"])
    assert "warning: MLflow did not take it (gone)" in capsys.readouterr().out
    assert metrics("out")["test"]["n"] > 0


def test_rating_ties_teach_a_regression_and_are_tested_nowhere(tiny_encoder):
    rows = generate(120)
    ties = [{**row, "rejected_rating": row["chosen_rating"]} for row in rows[::2]]
    Path("pairs.json").write_text(json.dumps(ties + rows[1::2]))
    flags = ["--dataset", "pairs.json", "--model", tiny_encoder, "--max-length", "96"]
    learned, counted = {}, {}
    for approach in ("regression", "bt-frozen"):
        run("--approach", approach, *flags, "--epochs", "1")
        result = metrics(f"runs/{approach}")
        learned[approach] = config(f"runs/{approach}")["data"]["parts"]["train"]
        counted[approach] = [result[part]["n"] for part in ("train", "validation", "test")]
    assert learned["regression"] > learned["bt-frozen"]
    assert counted["regression"] == counted["bt-frozen"]


COMPARE = "to compare several, type: python -m minirlhf compare --folds 5"
BAD = [
    (["--approach", "all"], COMPARE),
    (["--approach", "all", "--resume", "runs/all"], COMPARE),
    (["--approach", "regression", "--folds", "2"], COMPARE),
    (
        ["--approach", "bt"],
        "--approach bt is none of regression, classification, bt-frozen, bt-",
    ),
    (
        ["--approach", "regression", "--dropout", "0.1"],
        "regression does not use --dropout",
    ),
    (
        ["--approach", "regression", "--pooling", "mean"],
        "regression does not use --pooling",
    ),
    (["--approach", "regression", "--margin", "1"], "does not use --margin"),
    (["--approach", "bt-frozen", "--warmup", "0.1"], "does not use --warmup"),
    (["--no-cache"], "bt-finetune does not use --no-cache"),
    (["--fold", "5"], "5 is not between 0 and 4"),
    (
        ["--approach", "regression", "--label-smoothing", "0"],
        "does not use --label-smoothing",
    ),
    (["--device", "cpu:"], "no device 'cpu:'"),
    (["--dataset", ""], "cannot read"),
    (["--lr", "fast"], "invalid number value: 'fast'"),
    (["--lr", "nan"], "not between"),
    (["--epochs", "0"], "0 is not between 1"),
    (["--limit", "-3"], "not between"),
    (["--device", "quantum"], "no device 'quantum' on this machine; there is: "),
    (["--model", "no-such/model"], "Three ways out"),
    (["--model", "."], "without config.json"),
    (["--dataset", "missing.jsonl"], "no such file"),
    (["--dataset", "empty"], "cannot read"),
    (["--limit", "3"], "too few to split"),
    (["--max-length", "100000"], "more than"),
    (["--prompt-column", "question"], "no column 'question'; the data has: prompt"),
    (["--overwrite"], "--overwrite goes with --output"),
    (["--output", "here"], "here exists"),
    (["--output", "here", "--overwrite"], "no run folder, so it is not overwritten"),
    (["--tracking-uri", "nonsense://x"], "cannot reach the tracking store"),
    (["--tracking-uri", "http://127.0.0.1:9"], "cannot reach the tracking store"),
]


@pytest.mark.parametrize(
    ("flags", "message"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_input_is_one_sentence_and_exit_code_2(flags, message, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("here").mkdir()
    Path("here/thesis.txt").write_text("years of work")
    Path("empty").mkdir()
    defaults = (
        [] if "--approach" in flags or "--no-cache" in flags else ["--approach", "bt-frozen"]
    )
    if "--limit" not in flags:
        defaults += ["--limit", "200"]
    with pytest.raises(SystemExit) as stop:
        train.main([*defaults, *flags])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message in error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("train.py: error: ")
    assert Path("here/thesis.txt").read_text() == "years of work"
    assert not Path("runs").exists()  # nothing is left behind that the next run would trip over


def test_ratings_are_asked_for_where_they_are_needed(pairs_file, capsys):
    rows = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in generate(200)]
    Path("unrated.json").write_text(json.dumps(rows))
    for flags in (
        ["--approach", "regression"],
        ["--approach", "bt-frozen", "--margin", "0.1"],
    ):
        with pytest.raises(SystemExit):
            run(*flags, "--dataset", "unrated.json")
        assert "regression and --margin need ratings" in capsys.readouterr().err


def test_features_of_another_pooling_are_not_taken_for_these(tiny_encoder, pairs_file, capsys):
    flags = ["--approach", "bt-frozen", "--dataset", pairs_file, "--model", tiny_encoder]
    flags += ["--max-length", "96", "--epochs", "1"]
    origins = []
    for more in (
        ["--pooling", "mean"],
        ["--pooling", "cls"],
        ["--pooling", "mean"],
        ["--no-cache"],
    ):
        run(*flags, *more)
        origins.append(".float32" in capsys.readouterr().out)
    assert origins == [False, False, True, False]


def test_features_made_by_other_code_are_not_taken_for_these(
    tiny_encoder, pairs_file, capsys, monkeypatch, tmp_path
):
    flags = ["--approach", "bt-frozen", "--dataset", pairs_file, "--model", tiny_encoder]
    flags += ["--max-length", "96", "--epochs", "1"]
    run(*flags)
    edited = tmp_path / "pooling.py"
    edited.write_text(Path(pooling.__file__).read_text() + "# another mean\n")
    monkeypatch.setattr(pooling, "__file__", str(edited))
    capsys.readouterr()
    run(*flags)
    assert "seconds, computed" in capsys.readouterr().out


def test_a_model_folder_is_no_run_and_is_not_overwritten(tiny_encoder, pairs_file, capsys):
    shutil.copytree(tiny_encoder, "mine")
    with pytest.raises(SystemExit) as stop:
        run("--dataset", pairs_file, "--model", "mine", "--output", "mine", "--overwrite")
    assert stop.value.code == 2
    assert "mine is no run folder, so it is not overwritten" in capsys.readouterr().err
    assert Path("mine/tokenizer.json").is_file()


def test_a_rank_without_torchrun_means_nothing(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # some batch systems set it for their own use
    settings = train.choose_folder(read_flags(flag_parser(), []))
    assert settings.output == "runs/bt-finetune"


def test_overwrite_replaces_a_run_and_only_a_run(tiny_encoder, pairs_file):
    flags = ["--approach", "bt-frozen", "--dataset", pairs_file, "--model", tiny_encoder]
    flags += ["--max-length", "96", "--epochs", "1", "--output", "out"]
    run(*flags)
    Path("out/left-over.txt").write_text("x")
    run(*flags, "--overwrite")
    assert not Path("out/left-over.txt").exists()
    assert Path("out/metrics.json").exists()


def test_ctrl_c_keeps_the_best_model_so_far(tiny_encoder, pairs_file, monkeypatch, capsys):
    real = loops.evaluate_texts
    calls = []

    def second_time_interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loops, "evaluate_texts", second_time_interrupted)
    flags = ["--dataset", pairs_file, "--model", tiny_encoder, "--max-length", "96"]
    with pytest.raises(SystemExit) as stop:
        run(*flags, "--output", "out")
    assert stop.value.code == 130
    said = capsys.readouterr()
    assert "folder    out" in said.out
    assert "interrupted; go on with: python train.py --resume out\n" in said.err
    assert isinstance(minirlhf.load("out", "cpu").score("2 + 2?", "4"), float)


def test_the_score_command_prints_the_best_first(tiny_encoder, pairs_file, capsys):
    for approach in ("bt-finetune", "classification"):
        run(
            *["--approach", approach, "--dataset", pairs_file, "--model", tiny_encoder],
            *["--max-length", "96", "--epochs", "1", "--output", approach],
        )
        capsys.readouterr()
        score_lines.main(
            [approach, "--prompt", "2 + 2?", "--response", "4", "--response", "It is 5."]
        )
        lines = capsys.readouterr().out.splitlines()
        numbers = [float(line.split()[0]) for line in lines[1:]]
        assert numbers == sorted(numbers, reverse=True)
        assert len(numbers) == 2
    with pytest.raises(SystemExit) as stop:
        score_lines.main(["nowhere", "--prompt", "a", "--response", "b"])
    assert stop.value.code == 2
    assert "no trained model" in capsys.readouterr().err


def test_response_only_reads_no_prompt(tiny_encoder, pairs_file):
    rows = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    for row in rows:  # another question of the same split: only its spacing and case differ
        row["prompt"] = row["prompt"].upper().replace(" ", "  ")
    Path("shouted.json").write_text(json.dumps(rows))
    flags = ["--approach", "bt-frozen", "--model", tiny_encoder, "--max-length", "96"]
    results = []
    for dataset in (pairs_file, "shouted.json"):
        for more in ([], ["--response-only"]):
            run(*flags, "--dataset", dataset, "--epochs", "3", *more, "--output", "out")
            results.append(metrics("out")["test"]["nll"])
            scorer = minirlhf.load("out", "cpu")
            assert (scorer.score("a?", "b") == scorer.score("c?", "b")) == bool(more)
            shutil.rmtree("out")
    assert results[1] == results[3]
    assert len({results[0], results[1], results[2]}) == 3
