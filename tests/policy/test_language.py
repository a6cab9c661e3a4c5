"""The language of the toy: texts become words with slots and come back."""

import random

import pytest

from minirlhf.bundled.arithmetic import draw_answer, make_problem
from minirlhf.bundled.grader import UNREADABLE, grade
from minirlhf.policy import language
from minirlhf.policy.language import END, read_answer, read_question, render, to_ids, to_words


def answers(count: int):
    """Problems and answers of the generator."""
    rng = random.Random(3)
    for _ in range(count):
        problem = make_problem(rng)
        yield problem, draw_answer(problem, rng)


def test_every_text_of_the_generator_has_words():
    for problem, answer in answers(3000):
        for words in (read_question(problem), [*read_answer(problem, answer.text), END]):
            assert to_words(to_ids(words)) == words


def test_a_text_without_drawn_numbers_comes_back_as_it_was():
    for problem, answer in answers(2000):
        words = read_answer(problem, answer.text)
        if language.DRAWN.isdisjoint(words):
            assert render(problem, words) == answer.text


def test_a_text_comes_back_with_its_rating():
    """But for one in a thousand, in which a number can be read as another one."""
    same = 0
    for problem, answer in answers(3000):
        text = render(problem, read_answer(problem, answer.text))
        same += grade(problem, text) == (answer.rating, answer.flaws)
    assert same >= 2990


def test_the_same_words_are_always_the_same_text():
    for problem, answer in answers(200):
        words = read_answer(problem, answer.text)
        assert render(problem, words) == render(problem, list(words))


def test_words_come_back_from_their_text():
    """But for a few in a hundred, off topic, where a number out of nowhere is found somewhere."""
    same = 0
    for problem, answer in answers(2000):
        words = read_answer(problem, answer.text)
        same += read_answer(problem, render(problem, words)) == words
    assert same >= 1960


PROBLEM = make_problem(random.Random(28))
# Emma buys 5 toys for 10 dollars each and pays with 73 dollars. How much change does Emma get?


def test_numbers_are_counted_in_the_order_of_the_question():
    words = " ".join(read_question(PROBLEM))
    assert words.startswith(
        "<name> buys <number 1> <item> for <number 2> dollars each and pays"
    )


def test_a_misread_number_is_misread_once():
    line = ["<misread 1>", "*", "<number 2>", "=", "<result>", "."]
    first, second = render(PROBLEM, line + line).split(". ")
    assert first == second.rstrip(".")
    assert not first.startswith("5 ")


@pytest.mark.parametrize(
    "text",
    [
        "<result>",
        "Answer : <result 1> dollars .",
        "<number 1> * <number 2> = <result 1> .",
        "Answer : <number 4> dollars .",
        "<number 1> * = <result> .",
    ],
)
def test_a_slot_in_the_wrong_place_is_unreadable(text):
    words = text.replace("<", "|<").replace(">", ">|").split("|")
    parts = []
    for word in words:
        parts += [word] if word.startswith("<") else word.split()
    rendered = render(PROBLEM, parts)
    assert language.MEANINGLESS in rendered
    assert grade(PROBLEM, rendered).flaws == (UNREADABLE,)


def test_a_word_of_no_bundled_text_is_refused():
    with pytest.raises(ValueError, match="has no word 'zebra'"):
        to_ids(["zebra"])
