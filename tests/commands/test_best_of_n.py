"""Best of n: its arithmetic, the ways to choose, and reading candidates."""

import math
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from test_data import FORMS

from minirlhf import data
from minirlhf.commands import best_of_n
from minirlhf.commands.best_of_n import Candidates, best_of, evaluate_candidates, votes


def brute_force(rewards, correct, n) -> float:
    """The mean over all subsets of the mean over those of a subset that share its best reward."""
    chances = []
    for subset in combinations(range(len(rewards)), n):
        highest = max(rewards[i] for i in subset)
        best = [i for i in subset if rewards[i] == highest]
        chances.append(sum(correct[i] for i in best) / len(best))
    return sum(chances) / len(chances)


@pytest.mark.parametrize("levels", [1, 2, 3, 100])  # of reward: all tied, many ties, hardly any
def test_best_of_n_is_the_mean_over_all_subsets(levels):
    generator = torch.Generator().manual_seed(levels)

    def draw(high, size):
        return torch.randint(high, (size,), generator=generator).tolist()

    for size in range(1, 8):
        for _ in range(5):
            rewards = draw(levels, size)
            correct = draw(2, size)
            for n in range(1, size + 1):
                expected = brute_force(rewards, correct, n)
                assert best_of(rewards, correct, n) == pytest.approx(expected, abs=1e-12)


def test_best_of_n_by_hand():
    assert best_of([3.0, 2.0, 1.0], [0, 1, 1], 1) == pytest.approx(2 / 3)
    assert best_of([3.0, 2.0, 1.0], [0, 1, 1], 2) == pytest.approx(1 / 3)
    assert best_of([2.0, 2.0, 1.0], [1, 0, 0], 2) == pytest.approx((1 / 2 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("responses", "answers", "expected"),
    [
        (["so A: 1,800", "= $1800.", "it is 17.50", "18 dollars"], None, [2, 2, 1, 0]),
        (["x = -3", "5-3", "3", "(3.0)"], None, [1, 3, 3, 3]),
        ([".5", "0.5", "It is 5", "= −5"], None, [2, 2, 1, 1]),
        (["1/2", r"\frac{1}{2}", "1e2", "x2"], None, [0, 0, 0, 0]),
        (["1,2", "(1, 2)", r"\boxed{2}", "2,000.5"], None, [0, 2, 2, 1]),
        (["", "", "", ""], [72, 72.0, "72 ", "−72"], [3, 3, 3, 1]),
        (["a", "b", "c", "d"], [" 4", "4", None, ""], [2, 2, 0, 0]),
        (
            ["1", "1", "2", "3"],
            [7, 8, 8, 9],
            [1, 2, 2, 1],
        ),  # the column counts, not the text
    ],
)
def test_votes_for_the_final_answer(responses, answers, expected):
    assert votes(Candidates("?", responses, [True] * 4, None, answers)) == expected


# ---- the ways to choose


def planted(reward) -> SimpleNamespace:
    """A scorer whose reward is a function of the response."""

    def score_texts(prompts, responses):
        return [reward(response) for response in responses]

    return SimpleNamespace(approach="bt-frozen", score_texts=score_texts)


@pytest.fixture
def graded() -> list[Candidates]:
    """60 prompts with four candidates, right with chance 0.4; the text tells which are right."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for i in range(60):
        right = (torch.rand(4, generator=generator) < 0.4).tolist()
        texts = [f"try {j}, {'right' if good else 'wrong'}" for j, good in enumerate(right)]
        rows.append(Candidates(f"prompt {i}", texts, right, ["a", "b", "c", "d"]))
    return rows


def accuracies(found: dict) -> dict[str, float]:
    return {line["choice"]: line["accuracy"] for line in found["choices"]}


def assert_no_difference_is_shown(choice: dict) -> None:
    """Equal on every prompt that was seen: 0, but others may differ, so the width is not 0."""
    assert choice["model_minus"] == 0
    assert choice["model_minus_low"] < 0 < choice["model_minus_high"]


def test_a_perfect_scorer_reaches_the_oracle_for_every_n(graded):
    found = evaluate_candidates(planted(lambda text: "right" in text), graded)
    assert [point["n"] for point in found["best_of_n"]] == [1, 2, 3, 4]
    for point in found["best_of_n"]:
        for end in ("", "_low", "_high"):
            assert point[f"accuracy{end}"] == point[f"oracle{end}"]
    curve = [point["accuracy"] for point in found["best_of_n"]]
    assert curve == sorted(set(curve))
    by_name = accuracies(found)
    assert by_name["the model"] == by_name["the oracle"] == curve[-1]
    assert by_name["the model"] == sum(any(row.correct) for row in graded) / 60
    assert_no_difference_is_shown(found["choices"][-1])


def test_a_constant_scorer_is_a_random_choice_for_every_n(graded):
    found = evaluate_candidates(planted(lambda text: 7.0), graded)
    chance = sum(sum(row.correct) for row in graded) / 240
    for point in found["best_of_n"]:
        assert point["accuracy"] == pytest.approx(chance, abs=1e-6)
    assert accuracies(found)["a random choice"] == pytest.approx(chance, abs=1e-6)
    assert_no_difference_is_shown(found["choices"][1])


def test_each_author_alone_and_the_best_is_marked(graded):
    found = evaluate_candidates(planted(lambda text: "try 1" in text), graded)
    text = best_of_n.candidates_text(found)
    by_name = accuracies(found)
    own = {a: sum(row.correct[i] for row in graded) / 60 for i, a in enumerate("abcd")}
    assert {a: by_name[f"only {a}"] for a in own} == pytest.approx(own, abs=1e-6)
    best = max(own, key=own.get)
    assert text.count("known with hindsight") == 1
    assert f"only {best} (the best, known with hindsight)" in text
    assert by_name["the model"] == by_name["only b"]  # the planted scorer always takes b


def test_an_author_who_did_not_write_for_every_prompt_is_not_compared(graded):
    fewer = [row._replace(models=["a", None, "c", "d"]) for row in graded]
    fewer[7] = graded[7]._replace(models=["a", None, "c", None])
    found = evaluate_candidates(planted(len), fewer)
    assert [name for name in accuracies(found) if "only" in name] == ["only a", "only c"]


def test_the_majority_is_counted_where_answers_can_be_told(graded):
    assert "the majority" not in accuracies(evaluate_candidates(planted(len), graded))
    # Right candidates agree on 5, wrong ones have an answer each.
    answered = []
    for row in graded:
        answers = [5 if good else 10 + i for i, good in enumerate(row.correct)]
        answered.append(row._replace(answers=answers))
    found = evaluate_candidates(planted(len), answered)
    rights = [sum(row.correct) for row in graded]
    expected = sum(1 if n > 1 else n / 4 for n in rights) / 60  # one right of four: all tie
    assert accuracies(found)["the majority"] == pytest.approx(expected, abs=1e-6)


def test_rows_may_have_different_numbers_of_candidates(graded):
    short = graded[0]._replace(responses=["x", "y"], correct=[True, False], models=["a", "b"])
    found = evaluate_candidates(planted(len), [short, *graded[1:]])
    assert [point["n"] for point in found["best_of_n"]] == [1, 2]
    assert "60 rows of 2 to 4 candidates" in best_of_n.candidates_text(found)


def test_a_text_that_comes_twice_is_scored_once():
    asked = []

    def score_texts(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return [float(len(asked))] * len(responses)

    rows = [
        Candidates("p", ["a", "b", "a"], [1, 0, 0]),
        Candidates("q", ["a", "b"], [1, 0]),
    ]
    scorer = SimpleNamespace(approach="regression", score_texts=score_texts)
    numbers = best_of_n.judge(scorer, rows)
    assert asked == [("p", "a"), ("p", "b"), ("q", "a"), ("q", "b")]
    assert [len(of_one) for of_one in numbers] == [3, 2]
    with pytest.raises(ValueError, match="not finite"):
        best_of_n.judge(planted(lambda text: math.nan), rows)


# ---- reading candidates


def test_candidates_are_read_as_pairs_are():
    turns = [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "Let me see:"},
    ]
    row = {"prompt": turns, "responses": ["4", "5"], "correct": [True, False]}
    (found,) = best_of_n.read_candidates([row])
    (pair,), _ = data.build_pairs([{"prompt": turns, "chosen": "4", "rejected": "5"}])
    assert (found.prompt, *found.responses) == (pair.prompt, pair.chosen, pair.rejected)


@pytest.mark.parametrize("form", FORMS)
def test_candidates_may_have_any_form_that_training_reads(form):
    _, row, question, *sides = FORMS[form]
    (pair,), _ = data.build_pairs([row])
    is_row = isinstance(question, dict) and not {"role", "content"} & question.keys()
    columns = question if is_row else {"prompt": question}
    made = columns | {"responses": sides, "correct": [True, False]}
    (found,) = best_of_n.read_candidates([made])
    assert (found.prompt, *found.responses) == pair[:3]


def ranked_row(i, subset, chosen=("right",), rejected=("wrong", "worse", "no")):
    return {
        "prompt": f"prompt {i}",
        "chosen": list(chosen),
        "rejected": list(rejected),
        "subset": subset,
    }


def test_lists_of_one_right_and_several_wrong_are_best_of_n_by_subset():
    rows = [ranked_row(i, "Math") for i in range(6)]
    rows += [ranked_row(i, "Focus", rejected=["right?", "wrong", "no"]) for i in range(6, 9)]
    ties = [ranked_row(9, "Ties"), ranked_row(10, "Ties", chosen=["right", "also"])]
    assert best_of_n.has_lists(rows[0])
    assert not best_of_n.has_lists(rows[0] | {"chosen": "right"})
    found, left_out = best_of_n.read_lists([*rows, *ties])
    assert left_out == {"Ties": 2}
    assert "2 rows of the subset Ties" in best_of_n.left_out_text(left_out)
    assert [len(row.responses) for row in found] == [4] * 9
    assert all(row.correct == [True, False, False, False] for row in found)

    # This one prefers "right?" to "right", which costs it the subset Focus.
    scorer = planted(lambda text: ("right" in text) + ("?" in text))
    numbers = evaluate_candidates(scorer, found)
    accuracy = {name: numbers["subsets"][name]["accuracy"] for name in numbers["subsets"]}
    assert accuracy == {"Math": 1, "Focus": 0}
    assert numbers["subsets"]["Focus"]["random"] == 0.25
    assert numbers["subsets"]["Math"]["n"] == 6
    assert numbers["balanced_accuracy"] == 0.5
    text = best_of_n.candidates_text(numbers)
    assert "mean over subsets 0.500" in text and "| Focus | 3 | 0.000 [" in text

    with pytest.raises(ValueError, match="2 rows of the subset Ties"):
        best_of_n.read_lists(ties)
    with pytest.raises(ValueError, match="row 2: .*`response` is null"):
        best_of_n.read_lists([rows[0], ranked_row(1, "Math", chosen=[None])])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"responses": 5}, "`responses` is no list"),
        ({"responses": "ab"}, "`responses` is no list"),
        ({"responses": {"a": 1, "b": 2}}, "`responses` is no list"),
        ({"responses": []}, "`responses` is no list of texts"),
        ({"correct": True}, "`correct` is no list"),
        ({"correct": [True, "no"]}, "`correct` is no list of true and false"),
        ({"models": 5}, "`models` is no list"),
        ({"models": [["a"], ["b"]]}, "`models` is no list of names"),
        ({"answers": "ab"}, "`answers` is no list"),
    ],
)
def test_unsound_candidates_are_named_by_their_row(change, said):
    row = {"prompt": "2 + 2?", "responses": ["4", "5"], "correct": [True, False]}
    assert len(best_of_n.read_candidates([row, row | {"models": ["a", None]}])) == 2
    with pytest.raises(ValueError, match=f"row 2: {said}"):
        best_of_n.read_candidates([row, row | change])
