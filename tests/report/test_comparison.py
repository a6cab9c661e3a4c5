"""The table of several approaches on the same folds."""

import re

import numpy as np
import pytest
import torch
from scipy import stats

from minirlhf.report import comparison
from minirlhf.report.tables import interval


def run_of(
    margins, lengths, prompts, subsets, seconds=1.0, train_accuracy=0.9
) -> comparison.TestedRun:
    """A finished run of one fold."""
    return comparison.TestedRun(
        trained=1234,
        seconds=seconds,
        train_accuracy=train_accuracy,
        margins=torch.tensor(margins),
        lengths=torch.tensor(lengths, dtype=torch.float32),
        prompts=list(prompts),
        subsets=list(subsets),
    )


def two_folds() -> dict[str, list[comparison.TestedRun]]:
    """Two approaches on two folds of three pairs and one: the worse approach comes first."""
    first = {"lengths": [[7, 2], [3, 5], [4, 4]], "prompts": "ppq", "subsets": "aaa"}
    second = {"lengths": [[2, 1]], "prompts": "r", "subsets": "b"}
    return {
        "worse": [run_of([1.0, -1.0, -1.0], **first), run_of([0.0], **second)],
        "better": [
            run_of([1.0, 1.0, -1.0], **first, seconds=2.0, train_accuracy=1.0),
            run_of([1.0], **second, seconds=3.0),
        ],
    }


def table_cells(text: str) -> list[list[str]]:
    """The cells of a Markdown table, which must all be in lines between two bars."""
    lines = text.splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def test_folds_are_pooled_before_anything_is_counted():
    better, worse, longer, chance = comparison.compared(two_folds())
    # 3 of 4 pairs. The mean of the folds' accuracies would be (2/3 + 1) / 2 = 0.833.
    assert (better["name"], better["accuracy"]) == ("better", 0.75)
    assert better["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    of_subsets = {name: subset["accuracy"] for name, subset in better["subsets"].items()}
    assert of_subsets == pytest.approx({"a": 2 / 3, "b": 1})
    assert (better["trained"], better["seconds"]) == (1234, 2.5)
    assert better["train_accuracy"] == pytest.approx(0.95)
    assert better["gap"] == pytest.approx(0.2)
    # 1 of 4 pairs and a tie. The difference is to the line above, so the worse one's is negative.
    assert (worse["name"], worse["accuracy"]) == ("worse", 0.375)
    assert worse["balanced_accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert worse["minus_better_accuracy"] == pytest.approx(-0.375)
    assert worse["minus_better_balanced_accuracy"] == pytest.approx((-1 / 3 - 1 / 2) / 2)
    assert "minus_better_accuracy" not in better
    # Longer in two of four, as long in one.
    assert (longer["name"], longer["accuracy"]) == ("longer response", 0.625)
    assert longer["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert (chance["name"], chance["accuracy"]) == ("chance", 0.5)


def folds_of(right: list[int], n: int = 100) -> list[comparison.TestedRun]:
    """A run for each fold of n pairs over n prompts, of which so many are right."""
    runs = []
    for fold, count in enumerate(right):
        prompts = [f"{fold} {i}" for i in range(n)]
        margins = [1.0] * count + [-1.0] * (n - count)
        runs.append(run_of(margins, [[1, 2]] * n, prompts, "a" * n))
    return runs


def test_how_much_the_folds_differ_is_shown_beside_the_intervals_over_prompts():
    runs = {"steady": folds_of([80, 82, 81]), "shaky": folds_of([60, 80, 79])}
    steady, shaky, _, chance = comparison.compared(runs)
    assert steady["fold_accuracies"] == pytest.approx([0.8, 0.82, 0.81])
    assert steady["fold_spread"] == pytest.approx(0.01)
    assert shaky["better"] == "steady"
    differences = np.array([-0.2, -0.02, -0.02])
    theirs = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
    assert shaky["minus_better_fold_mean"] == pytest.approx(-0.08)
    low, high = shaky["minus_better_fold_mean_low"], shaky["minus_better_fold_mean_high"]
    assert (low, high) == pytest.approx(theirs, rel=1e-5)
    # Over prompts the lead seems to be certain, and over folds it is one lucky training.
    assert shaky["minus_better_accuracy_high"] < 0 < high
    text = comparison.table([steady, shaky, chance])
    head, _, *body = table_cells(text)
    place = head.index("the same, over folds")
    expected = ["–", interval(shaky, "minus_better_fold_mean"), "–"]
    assert [cells[place] for cells in body] == expected
    place = head.index("spread of the folds")
    assert [cells[place] for cells in body] == ["0.010", f"{shaky['fold_spread']:.3f}", "–"]
    assert comparison.supported_differences([steady, shaky]).endswith("alike: none.\n")


def test_only_what_survives_prompts_and_folds_is_claimed():
    runs = {
        "best": folds_of([90, 91, 92, 90, 91]),
        "good": folds_of([80, 81, 80, 82, 81]),
        "same": folds_of([80, 80, 81, 81, 80]),
    }
    text = comparison.supported_differences(comparison.compared(runs))
    assert text.endswith("over prompts and over folds alike: best over good.\n")
    one_fold = {name: of_one[:1] for name, of_one in runs.items()}
    text = comparison.supported_differences(comparison.compared(one_fold))
    assert "none is shown between the approaches" in text
    assert comparison.supported_differences(comparison.compared({"best": runs["best"]})) == ""


def test_a_copy_without_prompts_that_is_better_is_claimed_too():
    runs = {
        "bt-finetune": folds_of([80, 81, 80]),
        "response only": folds_of([90, 91, 91]),
    }
    text = comparison.supported_differences(comparison.compared(runs))
    assert text.endswith("alike: response only over bt-finetune.\n")


def test_the_warning_asks_the_folds_as_well():
    steady, shaky = folds_of([80, 82, 81]), folds_of([60, 80, 79])
    rows = comparison.compared({"bt-finetune": steady, "response only": shaky})
    assert "not shown to be worse" in comparison.warning(rows)


def test_a_comparison_that_was_written_before_there_were_folds_in_it_has_no_such_columns():
    rows = comparison.compared(two_folds())
    for row in rows:
        for name in [name for name in row if "fold" in name or name == "better"]:
            del row[name]
    head, *_ = table_cells(comparison.table(rows))
    assert not [title for title in head if title.endswith("folds")]
    assert comparison.supported_differences(rows) == ""


def test_pairs_of_one_prompt_stay_together_in_a_comparison():
    agreeing = run_of(
        [1.0] * 100 + [-1.0] * 100, [[1, 2]] * 200, "p" * 100 + "q" * 100, "a" * 200
    )
    row = comparison.compared({"one": [agreeing]})[0]
    # Two prompts, not 200 pairs: a resample holds one of them twice every other time.
    assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == (0.5, 0, 1)


def test_a_lead_on_the_same_pairs_is_seen_though_the_intervals_overlap():
    prompts = [str(i) for i in range(200)]
    part = {"lengths": [[1, 2]] * 200, "prompts": prompts, "subsets": "a" * 200}
    margins = [1.0, -1.0] * 100
    runs = {
        "better": [run_of(margins, **part)],
        "worse": [run_of([-1.0] * 20 + margins[20:], **part)],
    }
    better, worse, _, _ = comparison.compared(runs)
    assert worse["accuracy_high"] > better["accuracy_low"]
    assert worse["minus_better_accuracy_low"] < worse["minus_better_accuracy_high"] < 0


def test_response_only_is_last_and_held_against_bt_finetune():
    folds = two_folds()
    runs = {"response only": folds["better"], "bt-finetune": folds["better"]}
    runs["bt-frozen"] = folds["worse"]
    rows = comparison.compared(runs)
    names = ["bt-finetune", "bt-frozen", "response only", "longer response", "chance"]
    assert [row["name"] for row in rows] == names
    assert rows[1]["minus_better_accuracy"] == pytest.approx(-0.375)
    assert rows[2]["minus_better_accuracy"] == 0  # to bt-finetune, not to the line above


def test_response_only_without_bt_finetune_is_held_against_nothing():
    folds = two_folds()
    rows = comparison.compared({"response only": folds["better"], "bt-frozen": folds["worse"]})
    assert [row["name"] for row in rows[:2]] == ["bt-frozen", "response only"]
    assert "minus_better_accuracy" not in rows[1]
    assert comparison.warning(rows) == ""


def test_a_model_that_does_as_well_without_the_prompts_is_told():
    part = {
        "lengths": [[1, 2]] * 40,
        "prompts": [str(i) for i in range(40)],
        "subsets": "a" * 40,
    }
    right = run_of([1.0] * 40, **part)
    wrong = run_of([-1.0] * 40, **part)
    found = {}
    for name, blank in (("same", right), ("worse", wrong)):
        runs = {"bt-finetune": [right], "response only": [blank]}
        found[name] = comparison.warning(comparison.compared(runs))
    assert "not shown to be worse (0.000 [-0.071, 0.071])" in found["same"]
    assert found["worse"] == ""
    without = comparison.compared(two_folds())  # response only was not run
    assert comparison.warning(without) == ""


def test_runs_on_other_pairs_are_not_compared():
    runs = two_folds()
    changed = runs["worse"][1]._replace(prompts=["s"])
    runs["worse"][1] = changed
    with pytest.raises(ValueError, match="not all runs were tested on the same pairs"):
        comparison.compared(runs)


def test_the_comparison_is_a_markdown_table():
    rows = comparison.compared(two_folds())
    head, rule, *body = table_cells(comparison.table(rows))
    assert {len(cells) for cells in (head, rule, *body)} == {len(head)}
    assert all(re.fullmatch("-{3,}", cell) for cell in rule)
    assert [cells[0] for cells in body] == [
        "better",
        "worse",
        "longer response",
        "chance",
    ]
    better, worse, _, chance = body
    assert better[1:4] == ["1,234", "2", "0.950"]
    assert interval(rows[0]) in better
    assert interval(rows[1], "minus_better_accuracy") in worse
    assert chance.count("0.500") == 2 and set(chance[1:]) <= {"0.500", "0", "–"}


def test_runs_of_different_data_are_not_compared():
    runs = two_folds()
    comparison.check_same_data(runs)
    runs["worse"][1] = runs["worse"][1]._replace(data="of another file")
    with pytest.raises(ValueError, match="the data changed between two runs"):
        comparison.check_same_data(runs)
