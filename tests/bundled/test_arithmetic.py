"""The bundled data set: every text is read back and must show the flaws that its rating claims."""

import hashlib
import json
import random
import re
from collections import Counter

import pytest

from minirlhf.bundled import arithmetic
from minirlhf.bundled.arithmetic import (
    FILLERS,
    FLAWS,
    STYLES,
    TEMPLATES,
    TONES,
    draw_answer,
    generate,
    make_answer,
    make_problem,
)

CALCULATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
COLUMNS = ["prompt", "chosen", "rejected", "chosen_rating", "rejected_rating", "subset"]

# The right answers, written a second time and another way: one line per template, in its order.
SOLUTIONS = [
    lambda a, b, c: a + b - c,
    lambda a, b, c: c - a * b,
    lambda a, b, c: a * b / c,
    lambda a, b, c: (a - b) / c,
    lambda a, b, c: a / b * c,
    lambda a, b, c, d: a * b + c * d,
    lambda a, b, c: (a + b) * c,
    lambda a, b, c: a + a * b - c,
]


@pytest.fixture(scope="module")
def draws():
    """[(problem, answer)]: 4000 random draws, one problem each."""
    rng = random.Random(123)
    problems = [make_problem(rng) for _ in range(4000)]
    return [(problem, draw_answer(problem, rng)) for problem in problems]


def sentences(text):
    return re.split(r"(?<=[.?]) ", text)


def is_true(calculation):
    left, operation, right, result = calculation
    values = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}
    return values[operation] == result


def read_calculations(text):
    """The lines of working, a repeated line once."""
    once = " ".join(dict.fromkeys(sentences(text)))
    return [(int(a), op, int(b), int(c)) for a, op, b, c in CALCULATION.findall(once)]


def read_ending(text):
    """(number, thing) of the final statement, or None: the last line with a number and no sum."""
    lines = [line for line in sentences(text) if "=" not in line and not line.endswith("?")]
    found = [re.search(r"(\d+) ([a-z]+)", line) for line in lines]
    found = [(int(match[1]), match[2]) for match in found if match]
    return found[-1] if found else None


def read_flaws(problem, text):
    """The flaws as a careful reader would find them, knowing the problem and nothing else."""
    lines, calculations, ending = (
        sentences(text),
        read_calculations(text),
        read_ending(text),
    )
    flaws = set()
    if any(line in TONES for line in lines):
        flaws.add("bad_tone")
    repeats = len(set(lines)) < len(lines)
    if repeats or problem.question in text or any(line in FILLERS for line in lines):
        flaws.add("rambling")

    values = dict(zip("abcd", problem.numbers, strict=False))
    misread, swapped, slipped = {}, 0, 0
    for (formula, _), (left, operation, right, result), name in zip(
        problem.steps, calculations, "xyz", strict=False
    ):
        first, right_operation, second = formula.split()
        for letter, value in ((first, left), (second, right)):
            if values[letter] != value:
                misread[letter] = value
        swapped += operation != right_operation
        slipped += not is_true((left, operation, right, result))
        values[name] = result  # as written, so that an error must be carried on
    if len(misread) + swapped + slipped > 1 or misread.keys() & set("xyz"):
        return {"off_topic"}  # no single flaw makes so much go wrong
    if set(misread.values()) - set(problem.numbers):  # a number that the question does not have
        flaws.add("miscopied_number")
    if swapped:
        flaws.add("wrong_operation")
    if slipped:
        flaws.add("arithmetic_slip")
    if not calculations:
        flaws.add("missing_working")
    if ending is None:
        assert len(calculations) < len(problem.steps)
        return flaws | {"unfinished"}
    assert len(calculations) in (0, len(problem.steps))
    if ending[0] != (calculations[-1][-1] if calculations else problem.answer):
        flaws.add("answer_not_derived")
    if ending[1] != problem.unit:
        assert ending[1] in problem.wrong_units
        flaws.add("wrong_unit")
    return flaws


def read_style(text):
    """Index of the style whose patterns the lines of a text follow; the loosest are tried last."""
    fields = {
        "label": "[A-Za-z ]+",
        "calculation": CALCULATION.pattern,
        "answer": r"\d+ [a-z]+",
    }
    for index, style in reversed(list(enumerate(STYLES))):
        for pattern in style.first_steps + style.later_steps + style.endings:
            expression = re.sub(
                r"\\{(\w+)\\}", lambda m: fields.get(m[1], ".+"), re.escape(pattern)
            )
            if any(re.fullmatch(expression, line) for line in sentences(text)):
                return index
    raise AssertionError(f"no style fits: {text}")


def longer_is_chosen(rows):
    """Accuracy of "prefer the longer answer"; a tie counts one half."""
    score = 0.0
    for row in rows:
        chosen, rejected = len(row["chosen"]), len(row["rejected"])
        score += (chosen > rejected) + 0.5 * (chosen == rejected)
    return score / len(rows)


def test_a_seed_gives_the_same_rows_everywhere():
    # Pinned on Python 3.11, equal on 3.12. If you changed the data on purpose, pin the new value
    # and say so: every published figure on this set then stands for other rows.
    text = json.dumps(generate(200, seed=0))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "e7f3298455c10f0398e3210f24c04bc854232bfefcce2910cd862db25a2a392f"
    )
    assert generate(50, seed=1) != generate(50, seed=0)


def test_fewer_pairs_are_a_prefix():
    assert generate(500, seed=4)[:123] == generate(123, seed=4)
    assert generate(0) == []


def test_problems_are_right_and_every_template_comes_up(draws):
    assert len(SOLUTIONS) == len(TEMPLATES)
    for problem, _ in draws:
        assert problem.answer == SOLUTIONS[problem.template](*problem.numbers)
        in_prompt = [int(number) for number in re.findall(r"\d+", problem.prompt)]
        assert sorted(in_prompt) == sorted(problem.numbers)
        assert len(set(in_prompt)) == len(in_prompt)
        assert problem.prompt.endswith(problem.question)
        assert problem.unit not in problem.wrong_units
        assert not re.search(r"[{}]", problem.prompt + problem.closing.replace("{answer}", ""))
    assert min(Counter(problem.template for problem, _ in draws).values()) > 150  # of about 235


def test_flawless_answers_show_true_working_and_state_the_answer():
    rng = random.Random(5)
    for _ in range(500):
        problem = make_problem(rng)
        answer = make_answer(problem, (), rng)
        calculations = read_calculations(answer.text)
        assert len(calculations) == len(problem.steps) and all(map(is_true, calculations))
        assert read_ending(answer.text) == (problem.answer, problem.unit)
        assert (answer.flaws, answer.rating) == ((), 10.0)


def test_every_drawn_answer_shows_its_flaws_and_no_other(draws):
    for problem, answer in draws:
        if answer.flaws != ("off_topic",):
            assert read_flaws(problem, answer.text) == set(answer.flaws), (
                problem,
                answer,
            )


def test_off_topic_answers_are_flawless_answers_to_something_else(draws):
    off_topic = [(p, a.text) for p, a in draws if a.flaws == ("off_topic",)]
    assert off_topic
    for problem, text in off_topic:
        calculations = read_calculations(text)
        assert all(map(is_true, calculations))
        assert read_ending(text)[0] == calculations[-1][-1] != problem.answer
    found = [read_flaws(problem, text) == {"off_topic"} for problem, text in off_topic]
    assert sum(found) > 0.97 * len(found)  # the working rarely fits the problem even by chance


@pytest.mark.parametrize(
    "flaw",
    ["wrong_operation", "answer_not_derived", "miscopied_number", "arithmetic_slip"],
)
def test_wrong_results_are_wrong(flaw):
    rng = random.Random(6)
    for _ in range(300):
        problem = make_problem(rng)
        number, unit = read_ending(make_answer(problem, [flaw], rng).text)
        assert number != problem.answer and unit == problem.unit


def test_slips_come_early_and_late_and_are_carried_on():
    rng = random.Random(11)
    wrong_lines = Counter()
    for _ in range(300):
        problem = make_problem(rng)
        calculations = read_calculations(make_answer(problem, ["arithmetic_slip"], rng).text)
        wrong = [i for i, calculation in enumerate(calculations) if not is_true(calculation)]
        assert len(wrong) == 1  # the lines after it are true to the number they were handed
        wrong_lines[wrong[0] == len(calculations) - 1] += 1
    assert min(wrong_lines[True], wrong_lines[False]) > 60, wrong_lines


def test_wrong_unit_has_the_right_number_and_missing_working_no_calculation():
    rng = random.Random(7)
    for _ in range(300):
        problem = make_problem(rng)
        number, unit = read_ending(make_answer(problem, ["wrong_unit"], rng).text)
        assert number == problem.answer and unit != problem.unit
        bare = make_answer(problem, ["missing_working"], rng).text
        assert "=" not in bare and len(sentences(bare)) == 1
        assert read_ending(bare) == (problem.answer, problem.unit)


def test_ratings_follow_the_table_in_the_docstring(draws):
    rows = re.findall(r"^    (\w+) +(\d\.\d)   ", arithmetic.__doc__, flags=re.MULTILINE)
    assert {name: float(cost) for name, cost in rows} == FLAWS
    assert len(set(FLAWS.values())) == len(FLAWS)  # else `subset` could be a toss-up
    for _, answer in draws:
        assert answer.rating == max(1.0, 10.0 - sum(FLAWS[flaw] for flaw in answer.flaws))
        assert answer.flaws == tuple(flaw for flaw in FLAWS if flaw in answer.flaws)


def test_impossible_requests_are_errors():
    rng = random.Random(8)
    problem = make_problem(rng)
    for flaws in (
        ["spelling"],
        ["unfinished", "wrong_unit"],
        ["off_topic", "bad_tone"],
        ["rambling"] * 2,
    ):
        with pytest.raises(ValueError, match="unknown flaws|same part"):
            make_answer(problem, flaws, rng)
    with pytest.raises(ValueError, match="2 to 100"):
        generate(10, answers_per_prompt=1)


def test_draws_are_spread_over_all_flaws(draws):
    count = Counter(len(answer.flaws) for _, answer in draws)
    assert 0.27 < count[0] / len(draws) < 0.33
    assert count[1] > count[0] > count[2] > 0.1 * len(draws)
    flawed = len(draws) - count[0]
    shares = Counter(flaw for _, answer in draws for flaw in answer.flaws)
    assert all(0.05 < shares[flaw] / flawed < 0.20 for flaw in FLAWS), shares


def test_style_does_not_tell_the_flaw(draws):
    styles = {flaw: Counter() for flaw in ("none", *FLAWS)}
    for _, answer in draws:
        for flaw in answer.flaws or ("none",):
            styles[flaw][read_style(answer.text)] += 1
    for flaw, count in styles.items():
        for index in range(len(STYLES)):
            # There are at least 200 answers per flaw: 0.10 is 3 standard deviations or more.
            assert abs(count[index] / count.total() - 1 / 3) < 0.10, (flaw, count)


def test_one_problem_has_many_answers_and_no_text_has_two_ratings():
    rng = random.Random(9)
    for _ in range(10):
        problem = make_problem(rng)
        flaws_of = {}
        for _ in range(256):
            answer = draw_answer(problem, rng)
            assert flaws_of.setdefault(answer.text, answer.flaws) == answer.flaws
        assert len(flaws_of) > 150


def test_rows_are_distinct_and_the_chosen_answer_has_the_higher_rating():
    rows = generate(3000, seed=2)
    assert len(rows) == 3000 and all(list(row) == COLUMNS for row in rows)
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    assert len({(row["prompt"], row["chosen"], row["rejected"]) for row in rows}) == len(rows)
    for row in rows:
        assert 1.0 <= row["rejected_rating"] < row["chosen_rating"] <= 10.0
    # All rows of a prompt stand together: at most 4 * 3 / 2 of them, and the prompt never returns.
    blocks = [
        row["prompt"] for i, row in enumerate(rows) if row["prompt"] != rows[i - 1]["prompt"]
    ]
    assert len(set(blocks)) == len(blocks)
    assert max(Counter(row["prompt"] for row in rows).values()) == 6


def test_subset_is_the_costliest_flaw_that_only_the_rejected_answer_has(monkeypatch):
    flaws_of = {}

    def remember(problem, rng):
        answer = draw_answer(problem, rng)
        flaws_of[problem.prompt, answer.text] = set(answer.flaws)
        return answer

    monkeypatch.setattr(arithmetic, "draw_answer", remember)
    rows = generate(3000, seed=3)
    for row in rows:
        chosen = flaws_of[row["prompt"], row["chosen"]]
        rejected = flaws_of[row["prompt"], row["rejected"]]
        assert row["subset"] in rejected - chosen
        assert all(FLAWS[row["subset"]] >= FLAWS[flaw] for flaw in rejected - chosen)
    counts = Counter(row["subset"] for row in rows)
    assert set(counts) == set(FLAWS) and min(counts.values()) >= 60, counts


def test_a_blind_rater_is_perfect_but_for_one_flaw(monkeypatch):
    flaws_of = {}

    def remember(problem, rng):
        answer = draw_answer(problem, rng)
        flaws_of[problem.prompt, answer.text] = set(answer.flaws)
        return answer

    monkeypatch.setattr(arithmetic, "draw_answer", remember)
    credits = {}
    for row in generate(1500, seed=6):
        blind_to = row["subset"]
        rated = []
        for side in ("chosen", "rejected"):
            seen = flaws_of[row["prompt"], row[side]] - {blind_to}
            rated.append(max(1.0, 10.0 - sum(FLAWS[flaw] for flaw in seen)))
        chosen, rejected = rated
        credit = ((chosen > rejected) + (chosen >= rejected)) / 2
        credits.setdefault(blind_to, []).append(credit)
    by_hand = {flaw: sum(of_flaw) / len(of_flaw) for flaw, of_flaw in credits.items()}
    assert arithmetic.blind_accuracies(1500, seed=6) == pytest.approx(by_hand)
    assert by_hand["bad_tone"] == 0.5  # the cheapest flaw: there is nothing else to go by
    assert by_hand["arithmetic_slip"] < 0.45  # so an accuracy below one half is no dislike


def test_a_blind_rater_by_hand(monkeypatch):
    problem = make_problem(random.Random(0))

    def pair(chosen, rejected):
        answers = [
            make_answer(problem, flaws, random.Random(0)) for flaws in (chosen, rejected)
        ]
        return arithmetic.GradedPair(problem, *answers)

    pairs = [
        pair([], ["arithmetic_slip"]),  # without the slip 10 and 10, a tie
        pair(["missing_working"], ["arithmetic_slip"]),  # 8 and 10, wrong
        pair(["rambling"], ["arithmetic_slip", "wrong_unit"]),  # 8.5 and 7, right
        pair(["missing_working"], ["unfinished"]),  # 8 and 10, wrong
    ]
    assert [one.subset for one in pairs] == ["arithmetic_slip"] * 3 + ["unfinished"]
    monkeypatch.setattr(arithmetic, "_draw_pairs", lambda count, seed: pairs)
    assert arithmetic.blind_accuracies() == {"arithmetic_slip": 0.5, "unfinished": 0.0}


def test_length_alone_tells_nothing():
    for seed in range(4):
        rows = generate(6000, seed=seed)
        for pairs in (1000, 3000, 6000):
            assert 0.45 < longer_is_chosen(rows[:pairs]) < 0.55, (seed, pairs)


def test_numbers_stay_small():
    rows = generate(2000, seed=5)
    texts = [row[column] for row in rows for column in ("prompt", "chosen", "rejected")]
    numbers = [int(number) for text in texts for number in re.findall(r"\d+", text)]
    assert min(numbers) >= 2 and max(numbers) <= 999
    assert sum(number < 100 for number in numbers) > 0.75 * len(numbers)
