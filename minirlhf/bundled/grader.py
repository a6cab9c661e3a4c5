"""The grader: it reads any text as an answer to a bundled problem, and says what it is worth.

`arithmetic.py` writes answers with flaws that it knows, because it put them in. A policy that is
trained on a reward writes answers of its own. Here they are read line by line and rated by the same
rule, so that the true rating of whatever a policy writes is known:

    rating = 10 - (the sum of the costs of its flaws), but never below 1.

How the text is read, with the name of each flaw beside what is found:

    a calculation is compared with the step whose turn it is
        another operation                                           wrong_operation
        one number that is not the expected one                     miscopied_number
        a wrong result; later steps go on from it                   arithmetic_slip
    the answer
        fewer calculations than steps before it                     missing_working
        not what the working leads to                               answer_not_derived
        a wrong unit that the generator also uses                   wrong_unit
        no answer after a calculation                               unfinished
    other lines
        useless, or the same line again, each time                  rambling
        rude, each time                                             bad_tone
        the same answer again in other words, each time             rambling
        opening words before a calculation                          free once, at the beginning

What the working leads to is the result of the last calculation, or what the rest of the steps would
make of it.

An answer that the generator can write gets the generator's flaws and rating. Other texts need
rules of their own, and all of these are low:

    two or more numbers of the question or of the working are wrong     off_topic, rating 1
    more calculations than steps, words of another problem              off_topic, rating 1
    a line that is none of the generator's, an empty text, a text       unreadable, rating 1
      without a calculation and an answer, work after the answer

The wording is free: the lines of the terse, normal and wordy style may be mixed, and the two sides
of a sum or a product may be swapped.

>>> import random
>>> from minirlhf.bundled.arithmetic import make_problem
>>> problem = make_problem(random.Random(28))
>>> print(problem.prompt)
Emma buys 5 toys for 10 dollars each and pays with 73 dollars. How much change does Emma get?
>>> grade(problem, "5 * 10 = 50. Then 73 - 50 = 23. Answer: 23 dollars.")
Grade(rating=10.0, flaws=())
>>> grade(problem, "5 * 10 = 50. 73 - 50 = 24. This is only a guess. Answer: 24 dollars.")
Grade(rating=4.5, flaws=('arithmetic_slip', 'bad_tone'))
>>> grade(problem, "Trust me, it is 23.")
Grade(rating=1.0, flaws=('unreadable',))
"""

import re
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from minirlhf.bundled.arithmetic import (
    FILLERS,
    FLAWS,
    NAMES,
    NUMBER_NAMES,
    OPERATIONS,
    RESTATEMENTS,
    RESULT_NAMES,
    STYLES,
    TEMPLATES,
    TONES,
    Calculation,
    Problem,
    rate,
)

UNREADABLE = "unreadable"  # the flaw of a text that is no answer
LOWEST = 1.0  # the rating of such a text, and of one that is off topic

NUMBER = r"(-?[1-9][0-9]{0,8}|0)"  # no leading zeros, and no digits of other scripts
CALCULATION = re.compile(rf"{NUMBER} ([-+*/]) {NUMBER} = {NUMBER}(?![0-9])")
STATEMENT = re.compile(rf"(?<![0-9]){NUMBER} (\w+)")  # a number and its unit
END_OF_LINE = re.compile(r"(?<=[.?]) ")
OPENINGS = {opening for style in STYLES for opening in style.openings if opening}


class Grade(NamedTuple):
    """What a text is worth as an answer to a problem."""

    rating: float  # 1 to 10
    flaws: tuple[str, ...]  # in the order of FLAWS, each kind once


def grade(problem: Problem, text: str) -> Grade:
    """Read `text` as an answer to the problem; see the top of this file for the rule."""
    reading = Reading(problem)
    for line in END_OF_LINE.split(text.strip()):
        read_line(reading, line)
        if reading.fatal_flaw:
            return Grade(LOWEST, (reading.fatal_flaw,))
    return conclude(reading)


# ---- reading an answer, line by line


@dataclass
class Reading:
    """What has been understood of an answer so far."""

    problem: Problem
    values: dict[str, int] = field(default_factory=dict)  # printed results, by x, y, z
    # (name of the number, such as a or x; what the answer has in its place)
    misread: set[tuple[str, int]] = field(default_factory=set)
    flaws: list[str] = field(default_factory=list)  # with repetitions
    lines: set[str] = field(default_factory=set)
    calculations: int = 0
    has_opening: bool = False  # at its beginning
    stated: int | None = None  # the answer
    unit: str = ""  # of the answer
    fatal_flaw: str = ""  # UNREADABLE or off_topic, once that is clear

    def __post_init__(self):
        self.values.update(zip(NUMBER_NAMES, self.problem.numbers, strict=False))


def read_line(reading: Reading, line: str) -> None:
    """Understand one line, and note it in `reading`."""
    is_repeated = line in reading.lines
    reading.lines.add(line)
    calculation = CALCULATION.search(line)
    statement = STATEMENT.search(line)

    if line in TONES:
        reading.flaws.append("bad_tone")
    elif is_repeated or is_useless(reading.problem, line):
        reading.flaws.append("rambling")
    elif line in OPENINGS:
        read_opening(reading)
    elif says_answer_again(reading, line):
        reading.flaws.append("rambling")
    elif reading.stated is not None:  # what follows the answer cannot be new work
        reading.fatal_flaw = UNREADABLE
    elif calculation:
        wording = line.replace(calculation.group(), "{calculation}")
        left, operation, right, result = calculation.groups()
        read = Calculation(int(left), operation, int(right), int(result))
        read_calculation(reading, read, wording)
    elif statement:
        wording = line.replace(statement.group(), "{answer}")
        read_statement(reading, int(statement.group(1)), statement.group(2), wording)
    else:
        reading.fatal_flaw = UNREADABLE


def is_useless(problem: Problem, line: str) -> bool:
    """True for a filler, and for the question once more."""
    restated = [pattern.format(question=problem.question) for pattern in RESTATEMENTS]
    return line in FILLERS or line in restated


def says_answer_again(reading: Reading, line: str) -> bool:
    """True if the answer was given before, and this line gives the same one in other words."""
    if reading.stated is None:
        return False
    answer = f"{reading.stated} {reading.unit}"
    return line.replace(answer, "{answer}") in ending_wordings(reading.problem.closing)


def read_opening(reading: Reading) -> None:
    """Opening words are free before the first calculation; a second one is one too many."""
    comes_late = reading.calculations > 0 or reading.stated is not None
    if reading.has_opening or comes_late:
        reading.flaws.append("rambling")
    else:
        reading.has_opening = True


def read_calculation(reading: Reading, read: Calculation, wording: str) -> None:
    """Compare a calculation with the step of the problem whose turn it is."""
    index = reading.calculations
    steps = reading.problem.steps
    if index == len(steps):
        reading.fatal_flaw = "off_topic"
        return
    if wording not in step_wordings(steps[index].label):
        reading.fatal_flaw = "off_topic" if wording in all_wordings() else UNREADABLE
        return

    first, operation, second = steps[index].formula.split()
    if read.operation != operation:
        reading.flaws.append("wrong_operation")

    expected = [(first, read.left), (second, read.right)]
    swapped = [(first, read.right), (second, read.left)]
    if read.operation in "+*" and not misread_numbers(reading, swapped):
        expected = swapped
    reading.misread |= misread_numbers(reading, expected)

    if not is_true(read):
        reading.flaws.append("arithmetic_slip")
    reading.values[RESULT_NAMES[index]] = read.result
    reading.calculations += 1


def misread_numbers(reading: Reading, operands: list[tuple[str, int]]) -> set[tuple[str, int]]:
    """Those of the operands (name, what was read) that are not what the name stands for."""
    return {(name, number) for name, number in operands if reading.values[name] != number}


def is_true(calculation: Calculation) -> bool:
    """True if the result is right. A division that leaves a remainder has no right result."""
    left, operation, right, result = calculation
    if operation == "/":
        return right != 0 and result * right == left
    return OPERATIONS[operation](left, right) == result


def read_statement(reading: Reading, number: int, unit: str, wording: str) -> None:
    """Note the answer, and compare its unit with the problem's."""
    problem = reading.problem
    if wording not in ending_wordings(problem.closing):
        reading.fatal_flaw = "off_topic" if wording in all_wordings() else UNREADABLE
    elif unit in problem.wrong_units:
        reading.flaws.append("wrong_unit")
    elif unit != problem.unit:
        reading.fatal_flaw = "off_topic" if unit in all_units() else UNREADABLE
    reading.stated = number
    reading.unit = unit


def conclude(reading: Reading) -> Grade:
    """The grade of an answer that has been read to its end."""
    if reading.stated is None and reading.calculations == 0:
        return Grade(LOWEST, (UNREADABLE,))
    if len(reading.misread) > 1:
        return Grade(LOWEST, ("off_topic",))

    flaws = list(reading.flaws)
    if reading.has_opening and reading.calculations == 0:
        flaws.append("rambling")  # it opens nothing
    if reading.misread:
        flaws.append("miscopied_number")
    if reading.stated is None:
        flaws.append("unfinished")
    else:
        if reading.calculations < len(reading.problem.steps):
            flaws.append("missing_working")
        if reading.stated != worked_out(reading):
            flaws.append("answer_not_derived")

    # Of the flaws in the working each kind counts once, as in the generator. A useless or rude line
    # counts each time: otherwise a policy could add as many as it likes for the price of one.
    kinds = [flaw for flaw in FLAWS if flaw in flaws]
    again = [flaw for flaw in flaws if flaw in ("rambling", "bad_tone")]
    for flaw in set(again):
        again.remove(flaw)  # the first one is among the kinds
    return Grade(rate(kinds + again), tuple(kinds))


def worked_out(reading: Reading) -> int | None:
    """What the last step gives, if the steps that are not shown are done right; None if nothing."""
    values = dict(reading.values)
    for index, step in enumerate(reading.problem.steps):
        name = RESULT_NAMES[index]
        if index >= reading.calculations:
            first, operation, second = step.formula.split()
            if operation == "/" and values[second] == 0:
                return None
            values[name] = OPERATIONS[operation](values[first], values[second])
    return values[name]


# ---- the wordings that the generator has


def step_wordings(label: str) -> set[str]:
    """All lines with {calculation} in them for a step of this label."""
    wordings = set()
    for style in STYLES:
        for pattern in style.first_steps + style.later_steps:
            line = pattern.format(label=label, calculation="{calculation}")
            wordings.add(with_capital(line))
    return wordings


def ending_wordings(closing: str) -> set[str]:
    """All lines with {answer} in them that can end an answer with this closing."""
    wordings = set()
    for style in STYLES:
        for pattern in style.endings:
            line = pattern.format(answer="{answer}", closing=closing)
            wordings.add(with_capital(line))
    return wordings


def with_capital(line: str) -> str:
    """The line as it begins in a text."""
    return line if line.startswith("{") else line[0].upper() + line[1:]


@cache
def all_wordings() -> set[str]:
    """The wordings of all steps and endings, with every item and every name."""
    wordings = set()
    for template in TEMPLATES:
        for item in template.items:
            for step in template.steps:
                wordings |= step_wordings(step.label.format(item=item))
            for name in NAMES:
                closing = template.closing.format(name=name, item=item, answer="{answer}")
                wordings |= ending_wordings(closing)
    return wordings


@cache
def all_units() -> set[str]:
    """The units of all problems."""
    units = set()
    for template in TEMPLATES:
        for item in template.items:
            for unit in (template.unit, *template.wrong_units):
                units.add(unit.format(item=item))
    return units
