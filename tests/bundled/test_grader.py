"""The grader gives the generator's own rating, and cannot be talked into a better one."""

import random

import pytest

from minirlhf.bundled.arithmetic import FLAWS, draw_answer, make_problem
from minirlhf.bundled.grader import LOWEST, UNREADABLE, grade

PROBLEM = make_problem(random.Random(28))
# Emma buys 5 toys for 10 dollars each and pays with 73 dollars. How much change does Emma get?


def test_every_answer_of_the_generator_gets_its_rating_and_its_flaws():
    rng = random.Random(11)
    for _ in range(5000):
        problem = make_problem(rng)
        for _ in range(4):
            answer = draw_answer(problem, rng)
            found = grade(problem, answer.text)
            assert found == (answer.rating, answer.flaws), (problem.prompt, answer.text)


RIGHT = "5 * 10 = 50. Then 73 - 50 = 23. Answer: 23 dollars."
GRADES = [
    (RIGHT, 10.0, ()),
    # The wording is free.
    ("Price of the toys: 10 * 5 = 50. Now we can find the change: 73 - 50 = 23. So: 23 dollars.",
     10.0, ()),
    # One flaw, and the price of each.
    ("5 + 10 = 15. Then 73 - 15 = 58. Answer: 58 dollars.", 4.0, ("wrong_operation",)),
    ("5 * 10 = 50. Then 78 - 50 = 28. Answer: 28 dollars.", 5.0, ("miscopied_number",)),
    ("5 * 10 = 51. Then 73 - 51 = 22. Answer: 22 dollars.", 5.5, ("arithmetic_slip",)),
    ("5 * 10 = 50. Then 73 - 50 = 23. Answer: 24 dollars.", 4.5, ("answer_not_derived",)),
    ("5 * 10 = 50. Then 73 - 50 = 23.", 6.0, ("unfinished",)),
    ("5 * 10 = 50.", 6.0, ("unfinished",)),
    ("Answer: 23 dollars.", 8.0, ("missing_working",)),
    ("Answer: 50 dollars.", 2.5, ("answer_not_derived", "missing_working")),
    ("5 * 10 = 50. Answer: 23 dollars.", 8.0, ("missing_working",)),
    ("5 * 10 = 50. Then 73 - 50 = 23. Answer: 23 toys.", 7.0, ("wrong_unit",)),
    # Each useless and each rude line costs its price.
    (RIGHT + " " + "Answer: 23 dollars.", 8.5, ("rambling",)),
    (RIGHT + " Answer: 23 dollars." * 3, 5.5, ("rambling",)),
    (RIGHT + " This is only a guess." * 4, 6.0, ("bad_tone",)),
    ("Numbers are useful to many people. " * 9 + RIGHT, 1.0, ("rambling",)),
    ("Let us do this in steps. We can work this out. " + RIGHT, 8.5, ("rambling",)),
    (RIGHT + " The answer is 23 dollars.", 8.5, ("rambling",)),
    (RIGHT + " So: 23 dollars. In the end, Emma gets 23 dollars back.", 7.0, ("rambling",)),
    ("Let us do this in steps. Answer: 23 dollars.", 6.5, ("missing_working", "rambling")),
    ("Answer: 23 dollars. Let us do this in steps.", 6.5, ("missing_working", "rambling")),
    # What no generator writes.
    ("", LOWEST, (UNREADABLE,)),
    ("   ", LOWEST, (UNREADABLE,)),
    ("23", LOWEST, (UNREADABLE,)),
    ("Answer: 23 dollars", LOWEST, (UNREADABLE,)),
    ("Let us do this in steps.", LOWEST, (UNREADABLE,)),
    ("This is only a guess.", LOWEST, (UNREADABLE,)),
    ("The answer is surely very good, and I give it 10 of 10.", LOWEST, (UNREADABLE,)),
    (RIGHT + " Answer: 24 dollars.", LOWEST, (UNREADABLE,)),
    (RIGHT + " So: 23 toys.", LOWEST, (UNREADABLE,)),
    ("05 * 0010 = 00050. Then 73 - 50 = 23. Answer: 23 dollars.", LOWEST, (UNREADABLE,)),
    ("5 * 10 = 50. Then 73 - ٥٠ = 23. Answer: 23 dollars.", LOWEST, (UNREADABLE,)),
    ("Answer: 23 dollars. " + RIGHT, LOWEST, (UNREADABLE,)),
    ("5 * 10 = 50. Then 73 - 50 = 23. Answer: 23", LOWEST, (UNREADABLE,)),
    ("5 * 10 = 50. Then 73 - ? = 23. Answer: 23 dollars.", LOWEST, (UNREADABLE,)),
    ("5 * 10 = 50. Then 73 - 50 = 9999999999. Answer: 23 dollars.", LOWEST, (UNREADABLE,)),
    # Another problem's answer, and numbers out of nowhere.
    ("20 + 30 = 50. Then 50 - 7 = 43. Answer: 43 dollars.", LOWEST, ("off_topic",)),
    ("5 * 10 = 50. Then 73 - 50 = 23. Answer: 23 grams.", LOWEST, ("off_topic",)),
    ("First, the total: 5 * 10 = 50. 73 - 50 = 23. So: 23 dollars.", LOWEST, ("off_topic",)),
    ("5 * 10 = 50. 73 - 50 = 23. In the end, Tom gets 23 dollars back.", LOWEST, ("off_topic",)),
    ("5 * 10 = 50. 73 - 50 = 23. 23 * 1 = 23. Answer: 23 dollars.", LOWEST, ("off_topic",)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "rating", "flaws"), GRADES)
def test_grades(text, rating, flaws):
    assert grade(PROBLEM, text) == (rating, flaws)


def test_a_division_that_leaves_a_remainder_has_no_right_result():
    problem = next(
        problem
        for problem in (make_problem(random.Random(seed)) for seed in range(1000))
        if problem.steps[0].formula == "a / b"
    )
    a, b, c = problem.numbers
    wrong = a + 1  # one number misread, so that something is left over
    result = wrong // b
    text = f"{wrong} / {b} = {result}. {result} * {c} = {result * c}."
    found = grade(problem, f"{text} Answer: {result * c} dollars.")
    assert found.flaws == ("miscopied_number", "arithmetic_slip")
    zero = grade(problem, f"{a} / 0 = 0. 0 * {c} = 0. Answer: 0 dollars.")
    assert "arithmetic_slip" in zero.flaws


def test_only_a_right_and_clean_answer_gets_full_marks():
    """Lines of many answers, put together at random: what a policy tries."""
    rng = random.Random(5)
    full_marks = 0
    for _ in range(300):
        problem = make_problem(rng)
        lines = []
        for _ in range(6):
            text = draw_answer(problem, rng).text
            lines += text.replace("? ", "?|").replace(". ", ".|").split("|")
        for _ in range(60):
            text = " ".join(rng.choices(lines, k=rng.randint(1, 5)))
            found = grade(problem, text)
            assert 1.0 <= found.rating <= 10.0
            assert set(found.flaws) <= {*FLAWS, UNREADABLE}
            if found.rating == 10.0:
                full_marks += 1
                assert f" {problem.answer} " in f" {text} "
                assert text.count("=") == len(problem.steps)
                assert not found.flaws
    assert full_marks > 20  # so the test has seen what it asserts


def test_no_word_makes_a_wrong_answer_right():
    wrong = "5 * 10 = 50. Then 73 - 50 = 24. Answer: 24 dollars."
    for extra in (
        "Well done.",
        "10",
        "Answer: 23 dollars.",
        "= 23",
        "23 dollars.",
        "\n\n",
        ".",
    ):
        for text in (f"{extra} {wrong}", f"{wrong} {extra}"):
            assert grade(PROBLEM, text).rating <= 5.5
