"""`evaluate`: what is kept from training, the numbers of pairs and candidates, the command."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_best_of_n import accuracies

import train
from minirlhf import data, score
from minirlhf.bundled.arithmetic import generate
from minirlhf.commands import evaluate
from minirlhf.commands.best_of_n import read_candidates
from minirlhf.commands.unseen import items_to_test
from minirlhf.report.results import prompts_of
from minirlhf.settings import APPROACHES

TINY = [
    "--max-length",
    "96",
    "--epochs",
    "2",
    "--tracking-uri",
    "none",
    "--device",
    "cpu",
]


@pytest.mark.parametrize("fold", range(5))
def test_the_test_part_is_that_of_split_also_for_few_prompts(fold):
    pairs = data.build_pairs(generate(300))[0]
    expected = data.split(pairs, fold)[2]
    assert items_to_test(pairs, fold) == expected
    assert items_to_test(expected[:1], fold) == expected[:1]  # split alone would refuse these
    assert items_to_test(data.split(pairs, fold)[0], fold) == []


def make_candidates(path: str, rows: list[dict]) -> list[dict]:
    """A candidates file with the prompts of pairs, in other case and spacing."""
    prompts = {row["prompt"]: [row["chosen"], row["rejected"]] for row in rows}
    made = []
    for prompt, responses in prompts.items():
        made.append(
            {
                "prompt": f" {prompt.upper()}\n",
                "responses": [*responses, "I do not know."],
                "correct": [True, False, False],
                "models": ["a", "b", "c"],
            }
        )
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in made))
    return made


@pytest.fixture(scope="module")
def runs(tiny_encoder, tmp_path_factory) -> dict[str, Path]:
    """A run of train.py of each approach on 120 bundled pairs, fold 1."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.chdir(folder)
        patch.setenv("MINIRLHF_CACHE", str(folder / "cache"))
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in generate(120)))
        for approach in APPROACHES:
            flags = ["--approach", approach, "--dataset", str(folder / "pairs.jsonl")]
            flags += ["--model", tiny_encoder, "--fold", "1", "--output", approach]
            train.main([*flags, *TINY])
    return {approach: folder / approach for approach in APPROACHES}


@contextmanager
def judged_prompts():
    """The set of every prompt that the loaded model reads in this block, normalised."""
    seen = set()
    real_load = score.load

    def load(*arguments):
        scorer = real_load(*arguments)
        encode = scorer.model.encode

        def spy(prompts, responses):
            seen.update(data.normalize(prompt) for prompt in prompts)
            return encode(prompts, responses)

        scorer.model.encode = spy
        return scorer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "load", load)
        yield seen


def run(capsys, *flags) -> tuple[dict, str]:
    evaluate.main([*map(str, flags), "--device", "cpu", "--output", "found.json"])
    text = Path("found.json").read_text()
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return found, capsys.readouterr().out


@pytest.mark.parametrize("approach", APPROACHES)
def test_a_runs_own_data_gives_the_numbers_of_its_metrics(approach, runs, capsys):
    found, said = run(
        capsys, runs[approach], "--dataset", runs[approach].parent / "pairs.jsonl"
    )
    summary = json.loads((runs[approach] / "metrics.json").read_text())
    for subset in found["subsets"].values():
        assert subset.pop("accuracy_low") <= subset["accuracy"] <= subset.pop("accuracy_high")
        assert 0 <= subset.pop("longer") <= 1
    for key in summary["test"].keys() - {"mae", "rmse", "r2"}:
        expected = summary["test"][key]
        if isinstance(expected, float):
            expected = pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert found[key] == expected, key
    assert found["baselines"] == summary["baselines"]
    lead = found["accuracy"] - found["baselines"]["longer response"]["accuracy"]
    assert found["minus_longer"] == pytest.approx(lead, abs=1e-6)
    assert f"accuracy {found['accuracy']:.3f} [" in said and "a coin has 0.500" in said
    for name, subset in found["subsets"].items():
        assert f"| {name} | {subset['n']} | {subset['accuracy']:.3f} [" in said


def test_no_training_prompt_is_judged_in_either_file(runs, capsys):
    fold = 1
    rows = generate(240)  # the first 120 pairs are those of the run
    train_part, validation, test = data.split(data.build_pairs(rows[:120])[0], fold)
    trained = set(prompts_of(train_part + validation))
    Path("more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = {data.normalize(row["prompt"]) for row in make_candidates("some.jsonl", rows)}
    kept = set(prompts_of(data.split(data.build_pairs(rows)[0], fold)[2]))
    assert trained and kept > set(prompts_of(test))
    for file in ("more.jsonl", "some.jsonl"):
        with judged_prompts() as seen:
            found, said = run(capsys, runs["bt-frozen"], "--dataset", file)
        assert seen == kept and not seen & trained
        assert found["prompts"]["kept"] == len(kept)
        assert f"{len(trained & prompts)} of {len(prompts)} prompts were in the run's" in said
        dropped = (
            f"{len(kept)} are kept, the test part of fold 1, and {len(prompts - kept)} dropped"
        )
        assert dropped in said


def test_a_training_prompt_after_other_turns_is_not_unseen(runs, capsys):
    rows = generate(120)
    asked = data.split(data.build_pairs(rows)[0], 1)[0][0].prompt  # the run was trained on it
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": asked},
    ]
    made = [{"prompt": turns, "chosen": "It is 1.", "rejected": "It is 2."}]
    made += [row | {"prompt": f"New {i}?"} for i, row in enumerate(rows[:40])]
    Path("turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    with judged_prompts() as seen:
        run(capsys, runs["bt-frozen"], "--dataset", "turns.jsonl")
    assert not any(data.normalize(asked) in prompt for prompt in seen)
    assert seen


def test_ctrl_c_ends_a_tool_without_a_stack_trace(runs, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "evaluate", interrupt)
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(runs["bt-frozen"]), "--dataset", "arithmetic"])
    assert stop.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_all_prompts_judges_them_all_and_warns(runs, capsys):
    rows = generate(120)
    prompts = {data.normalize(row["prompt"]) for row in make_candidates("some.jsonl", rows)}
    train_part, validation, _ = data.split(data.build_pairs(rows)[0], 1)
    trained = set(prompts_of(train_part + validation))
    with judged_prompts() as seen:
        _, said = run(capsys, runs["bt-frozen"], "--dataset", "some.jsonl", "--all-prompts")
    assert seen == prompts
    (warning,) = [line for line in said.splitlines() if "WARNING" in line]
    assert f"{len(trained)} of {len(prompts)} prompts were in the run's training" in warning


def test_other_data_is_kept_whole_unless_a_fold_is_asked_for(runs, capsys):
    rows = [
        {
            "prompt": f"Is {i} even?",
            "chosen": "yes",
            "rejected": "no",
            "subset": f"s{i % 2}",
        }
        for i in range(40)
    ]
    Path("other.json").write_text(json.dumps(rows))
    found, said = run(capsys, runs["bt-frozen"], "--dataset", "other.json")
    assert (found["n"], found["prompts"]["maybe_trained_on"]) == (40, 0)
    assert "40 are kept, and 0 dropped" in said and set(found["subsets"]) == {"s0", "s1"}
    found, _ = run(capsys, runs["bt-frozen"], "--dataset", "other.json", "--fold", "1")
    expected = len(items_to_test(data.build_pairs(rows)[0], 1))
    assert found["n"] == expected and 0 < expected < 40
    assert (
        run(capsys, runs["bt-frozen"], "--dataset", "other.json", "--limit", "7")[0]["n"] == 7
    )


def test_without_the_runs_own_data_only_its_test_part_is_safe(runs, capsys, tmp_path):
    made = make_candidates("some.jsonl", generate(120))
    copied = shutil.copytree(runs["bt-frozen"], tmp_path / "copied")
    config = json.loads((copied / "config.json").read_text())
    items = read_candidates(made)
    test = items_to_test(items, 1)
    # The file is gone, or another one lies in its place.
    for other in ("gone.jsonl", "changed.jsonl"):
        if other == "changed.jsonl":
            rows = generate(120, seed=1)
            Path(other).write_text("".join(json.dumps(row) + "\n" for row in rows))
        config["arguments"]["dataset"] = other
        (copied / "config.json").write_text(json.dumps(config))
        found, said = run(capsys, copied, "--dataset", "some.jsonl")
        assert (found["n"], len(items)) == (len(test), found["prompts"]["prompts"])
        assert "its data cannot be had again" in said
    # A run without its config keeps what the fold that is named leaves, and no guess is made.
    (copied / "config.json").unlink()
    assert run(capsys, copied, "--dataset", "some.jsonl", "--fold", "1")[0]["n"] == len(test)
    assert "give --fold" in refused(capsys, copied, "--dataset", "some.jsonl")


@pytest.mark.parametrize("approach", APPROACHES)
def test_candidates_are_chosen_as_rank_chooses(approach, runs, capsys):
    make_candidates("some.jsonl", generate(120))
    found, said = run(capsys, runs[approach], "--dataset", "some.jsonl")
    scorer = score.load(runs[approach], "cpu")
    rows = read_candidates(map(json.loads, Path("some.jsonl").read_text().splitlines()))
    rows = items_to_test(rows, 1)
    first = [scorer.rank(row.prompt, row.responses)[0][1] for row in rows]
    right = [
        row.correct[row.responses.index(text)] for row, text in zip(rows, first, strict=True)
    ]
    by_name = accuracies(found)
    assert by_name["the model"] == pytest.approx(sum(right) / len(rows), abs=1e-6)
    assert by_name["a random choice"] == pytest.approx(1 / 3, abs=1e-6)
    assert (by_name["only a"], by_name["only b"], by_name["the oracle"]) == (1, 0, 1)
    for row in found["choices"]:
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        note = f" ({row['note']})" if row["note"] else ""
        assert f"| {row['choice']}{note} | {row['accuracy']:.3f} [" in said
        if row["choice"] != "the model":
            difference = by_name["the model"] - row["accuracy"]
            assert row["model_minus"] == pytest.approx(difference, abs=1e-6)
    if approach == "classification":
        assert found["best_of_n"] == [] and "no curve over n" in said
    else:
        assert [row["n"] for row in found["best_of_n"]] == [1, 2, 3]
        assert found["best_of_n"][0]["accuracy"] == pytest.approx(1 / 3, abs=1e-6)
        assert found["best_of_n"][2]["accuracy"] == pytest.approx(by_name["the model"])


def refused(capsys, *flags) -> str:
    """The one sentence of an exit with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([*map(str, flags), "--device", "cpu"])
    said = capsys.readouterr()
    assert (stopped.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    return said.err.removeprefix("python -m minirlhf evaluate: error: ")


GOOD = {"prompt": "2 + 2?", "responses": ["4", "5"], "correct": [True, False]}
BAD = [
    ({"correct": [True]}, "row 2: 2 in `responses`, 1 in `correct`"),
    ({"correct": None}, "row 2: `correct` is no list of true and false"),
    ({"correct": [1, 7]}, "row 2: `correct` is no list of true and false"),
    ({"responses": []}, "row 2: `responses` is no list of texts"),
    ({"responses": ["4", None]}, "row 2: `responses` is no list of texts"),
    ({"prompt": " "}, "row 2: `prompt` or a response is empty or no text"),
    ({"models": ["a", "b", "c"]}, "row 2: 2 in `responses`, 3 in `models`"),
    ({"answers": ["4"]}, "row 2: 2 in `responses`, 1 in `answers`"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=lambda v: str(v)[:40])
def test_a_bad_row_is_named(change, message, runs, capsys):
    Path("bad.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (GOOD, GOOD | change))
    )
    assert message in refused(capsys, runs["regression"], "--dataset", "bad.jsonl")


def test_bad_input_is_one_sentence_and_exit_code_2(runs, capsys):
    rows = generate(120)
    good = runs["bt-frozen"]
    Path("pairs.json").write_text(json.dumps(rows))
    Path("unknown.json").write_text(json.dumps([{"question": "?", "reply": "!"}]))
    Path("empty.jsonl").write_text("")
    trained = [pair._asdict() for pair in data.split(data.build_pairs(rows)[0], 1)[0]]
    Path("trained.json").write_text(json.dumps(trained))
    tied = [rows[0] | {"chosen_rating": 1.0, "rejected_rating": 1.0}]
    Path("tied.json").write_text(json.dumps(tied))
    Path("ungraded.json").write_text(json.dumps([{"prompt": "?", "responses": ["a"]}]))
    for message, *flags in (
        ("no trained model", "nowhere", "--dataset", "pairs.json"),
        ("no such file", good, "--dataset", "missing.jsonl"),
        ("Columns found: question, reply", good, "--dataset", "unknown.json"),
        ("row 1: `correct` is no list", good, "--dataset", "ungraded.json"),
        ("empty.jsonl", good, "--dataset", "empty.jsonl"),
        ("equal ratings", good, "--dataset", "tied.json"),
        ("no prompt is left: ", good, "--dataset", "trained.json"),
        (
            "fold 1: it was trained on prompts of fold 2",
            good,
            "--dataset",
            "a",
            "--fold",
            "2",
        ),
        ("invalid choice", good, "--dataset", "pairs.json", "--fold", "5"),
        ("not allowed with", good, "--dataset", "a", "--fold", "1", "--all-prompts"),
        ("at least 1", good, "--dataset", "pairs.json", "--limit", "0"),
        (
            "cannot write",
            good,
            "--dataset",
            "pairs.json",
            "--output",
            "no/such/file.json",
        ),
        ("cannot write", good, "--dataset", "pairs.json", "--output", "."),
        ("required", good),
    ):
        flags = [flag if flag != "a" else "pairs.json" for flag in flags]
        assert message in refused(capsys, *flags), flags


def test_columns_are_named_as_for_training_and_what_was_not_read_is_said(runs, capsys):
    rows = []
    for i in range(30):
        row = {"q": f"Is {i} even?", "good": "yes", "bad": "no", "margin": 1}
        rows.append(row | {"system": "Be brief."})
    rows.append(rows[0] | {"bad": None})
    Path("odd.json").write_text(json.dumps(rows))
    flags = ["--prompt-column", "q", "--chosen-column", "good", "--rejected-column", "bad"]
    with judged_prompts() as seen:
        found, said = run(capsys, runs["bt-frozen"], "--dataset", "odd.json", *flags)
    assert found["n"] == 30
    assert all(prompt.startswith("system: be brief. human: is") for prompt in seen)
    assert "dropped   1: `bad` is null (first row 31: None)" in said
    assert "not read  the columns margin (margins of the data are not learned from)" in said
    assert found["reading"]["dropped"] == {"`bad` is null": 1}
    assert "no column 'x'" in refused(
        capsys, runs["bt-frozen"], "--dataset", "odd.json", "--prompt-column", "x"
    )

    made = [{"q": f"{i}?", "responses": ["4", "5"], "correct": [True, False]} for i in range(9)]
    Path("candidates.json").write_text(json.dumps(made))
    flags = ["--dataset", "candidates.json", "--prompt-column", "q"]
    assert run(capsys, runs["bt-frozen"], *flags)[0]["n"] == 9


@pytest.mark.parametrize("approach", ["bt-frozen", "classification"])
def test_lists_of_chosen_and_rejected_are_best_of_n_by_subset(approach, runs, capsys):
    rows = []
    for i in range(12):
        row = {"prompt": f"Is {i} even?", "chosen": ["yes"], "rejected": ["no", "why", "so"]}
        rows.append(row | {"subset": f"s{i % 2}"})
    rows.append({"prompt": "A month?", "chosen": ["May", "June"], "rejected": ["No"]})
    rows[-1]["subset"] = "Ties"
    Path("lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, said = run(capsys, runs[approach], "--dataset", "lists.jsonl")
    assert (found["n"], found["candidates"]) == (12, [4, 4])
    assert set(found["subsets"]) == {"s0", "s1"}
    assert accuracies(found)["a random choice"] == pytest.approx(0.25)
    assert "1 rows of the subset Ties" in said and "mean over subsets" in said
    assert found["reading"] == {"left_out": {"Ties": 1}}


def test_the_bundled_data_can_be_named(runs, capsys):
    found, _ = run(capsys, runs["bt-frozen"], "--dataset", "arithmetic", "--limit", "20")
    assert found["n"] == 20 and found["prompts"]["maybe_trained_on"] > 0
