"""The bundled data set: answers to word problems, with flaws that are put in on purpose.

A preference data set usually tells which of two answers people liked better, but not why. Here the
reason is known. Each answer is first written correctly. Then flaws are put into it on purpose, and
its rating follows from them by one open rule:

    rating = 10 - (the sum of the costs of its flaws), but never below 1.

    flaw                 cost  what it does to the text
    off_topic            9.0   answers a different problem, from beginning to end
    wrong_operation      6.0   uses + for -, * for + and so on in one step, and carries on
    answer_not_derived   5.5   states a final number that differs from the one worked out
    miscopied_number     5.0   misreads a number of the question, and carries on
    arithmetic_slip      4.5   gets one calculation wrong, and carries on
    unfinished           4.0   stops before the last step and states no answer
    wrong_unit           3.0   names the wrong thing in the last line: dollars for apples
    missing_working      2.0   states the answer and nothing else
    rambling             1.5   restates the question, repeats a line or adds a useless one
    bad_tone             1.0   is rude to the reader or doubts itself

A wrong result costs more than bad manners, and answers that are of little use stand in between. No
two costs are equal, so in most pairs one answer is better. Two answers to the same prompt that have
different ratings make a row. The row's `subset` names the costliest flaw that the rejected answer
has and the chosen one does not have. There always is such a flaw: if the chosen answer had all the
flaws of the rejected one, its rating could not be higher.

The wording does not give the flaws away: whether an answer is terse, normal or wordy is drawn
independently of its flaws. The length does not give them away either. The flaws that shorten a text
are about as frequent as those that lengthen it, so the rule "prefer the longer answer" is right in
about half of the rows. Please keep that true when you edit this file. What this data set is not is
natural language. It is made from a few patterns, so a score on it says how well a reward model
learns a known rule, and not how well it would judge what people write.

What to copy: use `generate` for a preference data set that needs no download, and `draw_answer` to
judge any reward model against ratings that are correct by construction. `blind_accuracies` says
what accuracy on a subset a rater has who sees everything but that flaw. To make a data set of your
own, change TEMPLATES. A seed gives the same rows on every machine, and asking for fewer pairs gives
the first of them.

>>> rng = random.Random(28)
>>> problem = make_problem(rng)
>>> print(problem.prompt)
Emma buys 5 toys for 10 dollars each and pays with 73 dollars. How much change does Emma get?
>>> print(make_answer(problem, [], rng).text)
5 * 10 = 50. Then 73 - 50 = 23. Answer: 23 dollars.
>>> wrong = make_answer(problem, ["wrong_operation"], rng)
>>> print(wrong.text, wrong.rating)
5 + 10 = 15. Then 73 - 15 = 58. Answer: 58 dollars. 4.0
>>> row = generate(pairs=3, seed=0)[0]
>>> row["chosen_rating"], row["rejected_rating"], row["subset"]
(7.0, 4.0, 'miscopied_number')
"""

import operator
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple

PAIRS = 4000  # as many as the first run can learn from while one waits for it
COLUMNS = ("prompt", "chosen", "rejected", "chosen_rating", "rejected_rating", "subset")

# Every number of a question and of a correct or wrong working lies in this range. No number is 1,
# so every noun can be a plural.
LOW, HIGH = 2, 999


# ---- the flaws


class Flaw(NamedTuple):
    """A kind of flaw that an answer can have."""

    name: str
    cost: float  # how much it takes from the rating
    weight: int  # how often it is drawn, compared with the other flaws
    parts: set[str]  # the parts of the answer that it touches


# Two flaws can meet in one answer only if they touch different parts. Otherwise one could hide the
# other, and the text would no longer show what its rating says. rambling and bad_tone go with most
# other flaws and are often the second one, so their weights are a little lower. The flaws that make
# a text shorter (unfinished, missing_working) balance those that make it longer (rambling,
# bad_tone): this is what keeps the length from telling the better answer.
# fmt: off
FLAW_TABLE = (
    #     name                 cost  weight  parts
    Flaw("off_topic",          9.0,  8,      {"working", "ending", "filler", "tone"}),
    Flaw("wrong_operation",    6.0,  13,     {"working"}),
    Flaw("answer_not_derived", 5.5,  9,      {"ending"}),
    Flaw("miscopied_number",   5.0,  12,     {"working"}),
    Flaw("arithmetic_slip",    4.5,  11,     {"working"}),
    Flaw("unfinished",         4.0,  13,     {"working", "ending"}),
    Flaw("wrong_unit",         3.0,  9,      {"ending"}),
    Flaw("missing_working",    2.0,  9,      {"working"}),
    Flaw("rambling",           1.5,  9,      {"filler"}),
    Flaw("bad_tone",           1.0,  7,      {"tone"}),
)
# fmt: on
FLAWS: dict[str, float] = {flaw.name: flaw.cost for flaw in FLAW_TABLE}
WEIGHTS = {flaw.name: flaw.weight for flaw in FLAW_TABLE}
PARTS = {flaw.name: flaw.parts for flaw in FLAW_TABLE}

# These flaws change a step of the working, and with it all that follows.
REWORKED = ("wrong_operation", "miscopied_number", "arithmetic_slip")

# The shares of answers without a flaw and with one. The others get two, if two can meet.
FLAWLESS = 0.30
ONE_FLAW = 0.52

OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,  # only used where nothing is left over
}
CONFUSED = {"+": "-*", "-": "+/", "*": "+/", "/": "-*"}  # what a wrong operation can be
SLIPS = (-10, -2, -1, 1, 2, 10)  # how far off the result of a slip can be


# ---- the problems


class Step(NamedTuple):
    """One calculation on the way to the answer."""

    formula: str  # such as "a + b", in the names below
    label: str  # what it works out, in words that can follow "the"


class Template(NamedTuple):
    """A family of problems. Its stories, questions and items can be mixed freely."""

    stories: tuple[str, ...]
    questions: tuple[str, ...]
    steps: tuple[Step, ...]
    closing: str  # a sentence that states the answer
    unit: str
    wrong_units: tuple[str, ...]
    items: tuple[str, ...]  # nouns for {item}
    ranges: tuple[tuple[int, int], ...]  # lowest and highest value of a, b, c and perhaps d


NUMBER_NAMES = "abcd"  # the numbers of the question, in a formula
RESULT_NAMES = "xyz"  # the results of the first, second and third step

TEMPLATES = (
    Template(
        stories=(
            "{name} has {a} {item} and gets {b} more. Then {name} gives {c} to a friend.",
            "{name} finds {a} {item} on Monday and {b} on Tuesday, but then loses {c} of them.",
        ),
        questions=("How many {item} does {name} have left?", "How many {item} are left?"),
        steps=(Step("a + b", "total"), Step("x - c", "number left")),
        closing="{name} has {answer} left",
        unit="{item}",
        wrong_units=("dollars", "days"),
        items=("apples", "shells", "stamps", "marbles", "stickers", "coins"),
        ranges=((11, 60), (5, 40), (3, 30)),
    ),
    Template(
        stories=(
            "{name} buys {a} {item} for {b} dollars each and pays with {c} dollars.",
            "At a shop, {name} takes {a} {item} at {b} dollars each and hands over {c} dollars.",
        ),
        questions=(
            "How much change does {name} get?",
            "How much money does {name} get back?",
        ),
        steps=(Step("a * b", "price of the {item}"), Step("c - x", "change")),
        closing="{name} gets {answer} back",
        unit="dollars",
        wrong_units=("{item}",),
        items=("pens", "cups", "plants", "tickets", "toys", "books"),
        ranges=((3, 12), (3, 12), (20, 100)),
    ),
    Template(
        stories=(
            "{name} bakes {a} trays of {b} {item}. Then {c} friends share them equally.",
            "There are {a} trays with {b} {item} on each. They are shared equally by {c} friends.",
        ),
        questions=(
            "How many {item} does each friend get?",
            "How many {item} are there for each friend?",
        ),
        steps=(
            Step("a * b", "total number of {item}"),
            Step("x / c", "share of each friend"),
        ),
        closing="each friend gets {answer}",
        unit="{item}",
        wrong_units=("trays", "friends"),
        items=("cookies", "rolls", "muffins", "pies", "buns"),
        ranges=((3, 12), (4, 15), (3, 12)),
    ),
    Template(
        stories=(
            "A {item} has {a} pages. {name} has read {b} pages so far and now reads {c} a day.",
            "{name} reads {c} pages a day and has read {b} of the {a} pages of a {item}.",
        ),
        questions=(
            "How many days will the rest take?",
            "How many days does {name} need for the rest?",
        ),
        steps=(Step("a - b", "number of pages left"), Step("x / c", "number of days")),
        closing="the rest takes {answer}",
        unit="days",
        wrong_units=("pages",),
        items=("book", "novel", "report", "diary"),
        ranges=((40, 180), (10, 90), (4, 20)),
    ),
    Template(
        stories=(
            "A farmer packs {a} {item} in boxes of {b} and sells each box for {c} dollars.",
            "{name} has {a} {item}, puts {b} in each box and gets {c} dollars per box.",
        ),
        questions=(
            "How much money do the boxes bring in?",
            "How many dollars is that in all?",
        ),
        steps=(Step("a / b", "number of boxes"), Step("x * c", "money for all boxes")),
        closing="the boxes bring in {answer}",
        unit="dollars",
        wrong_units=("boxes", "{item}"),
        items=("eggs", "onions", "lemons", "peppers"),
        ranges=((24, 99), (4, 12), (3, 12)),
    ),
    Template(
        stories=(
            "{name} buys {a} {item} at {b} dollars each and {c} books at {d} dollars each.",
            "{name} gets {a} {item} for {b} dollars each, and {c} books for {d} dollars each.",
        ),
        questions=("How much does {name} pay?", "What is the total price?"),
        steps=(
            Step("a * b", "price of the {item}"),
            Step("c * d", "price of the books"),
            Step("x + y", "total"),
        ),
        closing="{name} pays {answer}",
        unit="dollars",
        wrong_units=("{item}", "books"),
        items=("pens", "cards", "maps", "caps"),
        ranges=((2, 9), (2, 9), (2, 9), (4, 15)),
    ),
    Template(
        stories=(
            "One {item} needs {a} grams of flour and {b} grams of sugar.",
            "A cook takes {a} grams of flour and {b} grams of sugar for each {item}.",
        ),
        questions=(
            "How many grams are needed for {c} {item}s?",
            "How many grams do {c} {item}s take?",
        ),
        steps=(
            Step("a + b", "weight for one {item}"),
            Step("x * c", "weight for all {item}s"),
        ),
        closing="all the {item}s together take {answer}",
        unit="grams",
        wrong_units=("{item}s",),
        items=("cake", "tart", "pie", "waffle"),
        ranges=((20, 90), (10, 60), (2, 7)),
    ),
    Template(
        stories=(
            "A farm has {a} cows and {b} times as many {item}. Then {c} {item} are sold.",
            "A farmer has {a} cows and {b} times as many {item}, and sells {c} of the {item}.",
        ),
        questions=(
            "How many animals are left on the farm?",
            "How many animals does the farm have now?",
        ),
        steps=(
            Step("a * b", "number of {item}"),
            Step("x - c", "number of {item} left"),
            Step("a + y", "number of animals"),
        ),
        closing="the farm now has {answer}",
        unit="animals",
        wrong_units=("cows", "{item}"),
        items=("hens", "ducks", "goats", "sheep", "geese"),
        ranges=((5, 20), (2, 6), (3, 30)),
    ),
)

# fmt: off
NAMES = (
    "Ada", "Ben", "Cleo", "Dan", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jack",
    "Kate", "Leo", "Maya", "Nina", "Omar", "Paul", "Rosa", "Sam", "Tom", "Zoe",
)
# fmt: on


# ---- the wording of the answers


class Style(NamedTuple):
    """A way of writing: the patterns to choose from for each line of an answer."""

    openings: tuple[str, ...]  # "" for none
    first_steps: tuple[str, ...]
    later_steps: tuple[str, ...]
    endings: tuple[str, ...]


TERSE = Style(
    openings=("",),
    first_steps=("{calculation}.", "First {calculation}.", "Take {calculation}."),
    later_steps=("{calculation}.", "Then {calculation}.", "And {calculation}."),
    endings=("Answer: {answer}.", "Result: {answer}.", "So: {answer}."),
)
NORMAL = Style(
    openings=("",),
    first_steps=("{label}: {calculation}.", "First, the {label}: {calculation}."),
    later_steps=("{label}: {calculation}.", "Then the {label}: {calculation}."),
    endings=(
        "The answer is {answer}.",
        "The result is {answer}.",
        "In the end, {closing}.",
    ),
)
WORDY = Style(
    openings=("", "", "Let us do this in steps.", "We can work this out."),
    first_steps=(
        "First of all we need the {label}: {calculation}.",
        "We start with the {label}, which is {calculation}.",
    ),
    later_steps=(
        "Now we can find the {label}: {calculation}.",
        "After that comes the {label}, which is {calculation}.",
    ),
    endings=("So the final answer is {answer}.", "From all this we see that {closing}."),
)
STYLES = (TERSE, NORMAL, WORDY)

RESTATEMENTS = (
    "You ask the following: {question}",
    "The question here is this: {question}",
)
FILLERS = (
    "Problems like this one come up in daily life.",
    "Numbers are useful to many people.",
    "There are many ways to look at a question.",
    "It is good to read every problem with care.",
)
TONES = (
    "What a silly question.",
    "Anyone could have done this alone.",
    "Do not waste my time with this.",
    "I am not sure about any of this.",
    "I may well be wrong here.",
    "This is only a guess.",
)


# ---- what is drawn: problems, answers and rows


@dataclass(frozen=True)
class Problem:
    """A word problem, with all that is needed to write correct and flawed answers to it."""

    prompt: str
    question: str  # the last sentence of the prompt
    template: int  # index in TEMPLATES
    numbers: tuple[int, ...]  # a, b, c and perhaps d, all different
    steps: tuple[Step, ...]
    closing: str  # a sentence with {answer} in it
    unit: str
    wrong_units: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class GradedAnswer:
    """An answer, its flaws in the order of FLAWS, and the rating (1 to 10) that follows."""

    text: str
    flaws: tuple[str, ...]
    rating: float


class GradedPair(NamedTuple):
    """Two answers to one problem that have different ratings."""

    problem: Problem
    chosen: GradedAnswer
    rejected: GradedAnswer

    @property
    def subset(self) -> str:
        """The costliest flaw that the rejected answer has and the chosen one does not have."""
        only_rejected = [flaw for flaw in self.rejected.flaws if flaw not in self.chosen.flaws]
        return max(only_rejected, key=FLAWS.__getitem__)


class Calculation(NamedTuple):
    """One line of working, which need not be true."""

    left: int
    operation: str
    right: int
    result: int


Working = list[Calculation]


def make_problem(rng: random.Random) -> Problem:
    """Draw a problem that comes out even in every step and that every flaw can be put into."""
    index = rng.randrange(len(TEMPLATES))
    template = TEMPLATES[index]
    words = {"name": rng.choice(NAMES), "item": rng.choice(template.items)}
    story = rng.choice(template.stories)
    question = rng.choice(template.questions)

    numbers = _draw_numbers(template, rng)
    for letter, number in zip(NUMBER_NAMES, numbers, strict=False):
        words[letter] = str(number)

    question = question.format(**words)
    steps = [Step(step.formula, step.label.format(**words)) for step in template.steps]
    return Problem(
        prompt=story.format(**words) + " " + question,
        question=question,
        template=index,
        numbers=numbers,
        steps=tuple(steps),
        closing=template.closing.format(answer="{answer}", **words),
        unit=template.unit.format(**words),
        wrong_units=tuple(unit.format(**words) for unit in template.wrong_units),
        answer=_work(template.steps, numbers)[-1].result,
    )


def make_answer(problem: Problem, flaws: Iterable[str], rng: random.Random) -> GradedAnswer:
    """Write an answer that has exactly these flaws. The wording is drawn from `rng`.

    Raises ValueError for an unknown flaw and for two flaws that touch the same part of the answer.
    """
    requested = tuple(flaws)
    _check_flaws(requested)
    flaws = tuple(flaw for flaw in FLAWS if flaw in requested)  # in the order of FLAWS

    if "off_topic" in flaws:
        text = _answer_another_problem(problem, rng)
    else:
        text = _write_text(problem, flaws, rng)
    return GradedAnswer(text, flaws, rate(flaws))


def rate(flaws: Iterable[str]) -> float:
    """The rating of an answer that has these flaws, by the rule at the top of this file."""
    return max(1.0, 10.0 - sum(FLAWS[flaw] for flaw in flaws))


def draw_answer(problem: Problem, rng: random.Random) -> GradedAnswer:
    """Draw flaws (none in 30 %, one in about half, two in the rest) and write such an answer."""
    share = rng.random()
    if share < FLAWLESS:
        count = 0
    elif share < FLAWLESS + ONE_FLAW:
        count = 1
    else:
        count = 2

    flaws: list[str] = []
    for _ in range(count):
        free = [flaw for flaw in FLAWS if _can_join(flaw, flaws)]
        if free:  # there is none to join off_topic, which touches every part
            flaws += rng.choices(free, weights=[WEIGHTS[flaw] for flaw in free])
    return make_answer(problem, flaws, rng)


def generate(pairs: int = PAIRS, seed: int = 0, answers_per_prompt: int = 4) -> list[dict]:
    """Make preference rows: prompt, chosen, rejected, chosen_rating, rejected_rating, subset.

    Each prompt gets `answers_per_prompt` distinct answers, and every two of them with different
    ratings make a row. No prompt comes twice. Raises ValueError for fewer than 2 answers, which
    make no pair, and for more than 100, since a problem has only so many distinct answers.
    """
    graded_pairs = _draw_pairs(pairs, seed, answers_per_prompt)
    return [_make_row(pair) for pair in graded_pairs]


def blind_accuracies(pairs: int = PAIRS, seed: int = 0) -> dict[str, float]:
    """The accuracy on each subset of a rater who is perfect, but blind to that subset's flaw.

    The rater sees all other flaws and rates by the rule at the top of this file; a tie counts one
    half. The pairs are those of `generate`, and a subset of which there is no pair is left out.

    Most of these accuracies are below one half. An answer that is rejected for one costly flaw
    often has fewer other flaws than the chosen one, and a rater who cannot see the costly flaw then
    prefers it. A model whose accuracy on a subset is near this number ranks its pairs as if it did
    not see the flaw. Only an accuracy clearly below this number says that it came to like the flaw.
    """
    credits: dict[str, list[float]] = {flaw: [] for flaw in FLAWS}
    for pair in _draw_pairs(pairs, seed):
        chosen = rate(flaw for flaw in pair.chosen.flaws if flaw != pair.subset)
        rejected = rate(flaw for flaw in pair.rejected.flaws if flaw != pair.subset)
        if chosen == rejected:
            credits[pair.subset].append(0.5)
        else:
            credits[pair.subset].append(float(chosen > rejected))
    return {flaw: sum(of_flaw) / len(of_flaw) for flaw, of_flaw in credits.items() if of_flaw}


def _draw_pairs(pairs: int, seed: int, answers_per_prompt: int = 4) -> list[GradedPair]:
    """What `generate` makes rows of."""
    if not 2 <= answers_per_prompt <= 100:
        raise ValueError(f"answers_per_prompt is {answers_per_prompt}; it must be 2 to 100")

    rng = random.Random(seed)
    drawn: list[GradedPair] = []
    prompts: set[str] = set()  # never iterated over, since the order of a set is not stable
    while len(drawn) < pairs:
        problem = make_problem(rng)
        if problem.prompt in prompts:
            continue
        prompts.add(problem.prompt)

        answers = _draw_distinct_answers(problem, answers_per_prompt, rng)
        for one, two in combinations(answers, 2):
            if one.rating > two.rating:
                drawn.append(GradedPair(problem, chosen=one, rejected=two))
            elif two.rating > one.rating:
                drawn.append(GradedPair(problem, chosen=two, rejected=one))
    return drawn[:pairs]


def _draw_distinct_answers(
    problem: Problem, count: int, rng: random.Random
) -> list[GradedAnswer]:
    """Draw answers until `count` of them have different texts."""
    answers: dict[str, GradedAnswer] = {}
    while len(answers) < count:
        answer = draw_answer(problem, rng)
        answers.setdefault(answer.text, answer)
    return list(answers.values())


def _make_row(pair: GradedPair) -> dict:
    return {
        "prompt": pair.problem.prompt,
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "chosen_rating": pair.chosen.rating,
        "rejected_rating": pair.rejected.rating,
        "subset": pair.subset,
    }


def _check_flaws(flaws: tuple[str, ...]) -> None:
    """Raise ValueError if one answer cannot have all these flaws."""
    unknown = [flaw for flaw in flaws if flaw not in FLAWS]
    if unknown:
        raise ValueError(f"unknown flaws {unknown}; known: {list(FLAWS)}")
    for one, two in combinations(flaws, 2):
        if not _can_join(one, [two]):
            raise ValueError(f"{one} and {two} touch the same part of an answer")


def _can_join(flaw: str, others: Iterable[str]) -> bool:
    """True if `flaw` touches no part of an answer that one of the others touches."""
    return all(PARTS[flaw].isdisjoint(PARTS[other]) for other in others)


# ---- the text of an answer


def _answer_another_problem(problem: Problem, rng: random.Random) -> str:
    """Write a flawless answer to a problem of another template that has another result."""
    other = make_problem(rng)
    while other.template == problem.template or other.answer == problem.answer:
        other = make_problem(rng)
    return make_answer(other, (), rng).text


def _write_text(problem: Problem, flaws: tuple[str, ...], rng: random.Random) -> str:
    """Write the text of an answer that has these flaws; off_topic is not one of them."""
    style = rng.choice(STYLES)
    working = _draw_working(problem, flaws, rng)

    stated = working[-1].result
    if "answer_not_derived" in flaws:
        stated = _draw_other_number(problem, working, rng)
    unit = problem.unit
    if "wrong_unit" in flaws:
        unit = rng.choice(problem.wrong_units)
    if "unfinished" in flaws:
        working = working[: rng.randrange(1, len(working))]

    lines = []
    if "missing_working" not in flaws:
        lines += _working_lines(problem.steps, working, style, rng)
    if "unfinished" not in flaws:
        answer = f"{stated} {unit}"
        closing = problem.closing.format(answer=answer)
        lines.append(rng.choice(style.endings).format(answer=answer, closing=closing))
    lines = [line[0].upper() + line[1:] for line in lines]

    if "rambling" in flaws:
        _insert_useless_line(lines, problem.question, rng)
    if "bad_tone" in flaws:
        place = rng.choice((0, len(lines)))
        lines.insert(place, rng.choice(TONES))
    return " ".join(lines)


def _draw_working(problem: Problem, flaws: tuple[str, ...], rng: random.Random) -> Working:
    """The correct working, or a wrong one if a flaw of REWORKED is asked for."""
    for flaw in REWORKED:
        if flaw in flaws:
            return rng.choice(_wrong_workings(problem.steps, problem.numbers, flaw))
    return _work(problem.steps, problem.numbers)


def _draw_other_number(problem: Problem, working: Working, rng: random.Random) -> int:
    """Draw a number that is neither the right answer nor the one that was worked out.

    It is a little off, or it is another number of the question or of the working.
    """
    worked_out = working[-1].result
    candidates = [worked_out + slip for slip in SLIPS]
    candidates += problem.numbers
    candidates += [calculation.result for calculation in working]

    taken = (worked_out, problem.answer)
    return rng.choice([n for n in candidates if LOW <= n <= HIGH and n not in taken])


def _working_lines(
    steps: tuple[Step, ...], working: Working, style: Style, rng: random.Random
) -> list[str]:
    """The opening, if there is one, and a line for each calculation."""
    opening = rng.choice(style.openings)
    lines = [opening] if opening else []

    patterns = style.first_steps
    for step, (left, operation, right, result) in zip(steps, working, strict=False):
        calculation = f"{left} {operation} {right} = {result}"
        lines.append(rng.choice(patterns).format(label=step.label, calculation=calculation))
        patterns = style.later_steps
    return lines


def _insert_useless_line(lines: list[str], question: str, rng: random.Random) -> None:
    """Put one useless line into `lines`: the question, a line once more, or a filler."""
    kind = rng.choice(("restate", "repeat", "fill"))
    place = rng.randrange(len(lines))
    if kind == "restate":
        lines.insert(0, rng.choice(RESTATEMENTS).format(question=question))
    elif kind == "repeat":
        lines.insert(place, lines[place])
    else:
        lines.insert(place, rng.choice(FILLERS))


# ---- numbers and workings, right and wrong


def _draw_numbers(template: Template, rng: random.Random) -> tuple[int, ...]:
    """Draw the numbers of a problem until they suit it.

    Most draws fail because a division leaves a remainder. The ranges of the templates are such that
    a few dozen draws are enough.
    """
    while True:
        numbers = tuple(rng.randint(low, high) for low, high in template.ranges)
        if _are_suitable(numbers, template.steps):
            return numbers


def _are_suitable(numbers: tuple[int, ...], steps: tuple[Step, ...]) -> bool:
    """True if the steps come out even, all numbers differ and every wrong working is possible."""
    working = _work(steps, numbers)
    if not working:
        return False

    # As all numbers differ, each number of an answer can have come from one place only.
    results = [calculation.result for calculation in working]
    distinct = {*numbers, *results}
    if len(distinct) < len(numbers) + len(results):
        return False

    return all(_wrong_workings(steps, numbers, flaw) for flaw in REWORKED)


def _work(
    steps: Iterable[Step],
    numbers: tuple[int, ...],
    slip_at: int | None = None,
    slip: int = 0,
) -> Working:
    """Do the steps one after the other; the result of step `slip_at` is off by `slip`.

    The working is empty if a division leaves a remainder or a result lies outside LOW to HIGH.
    """
    values = dict(zip(NUMBER_NAMES, numbers, strict=False))
    working = []
    for i, step in enumerate(steps):
        first, operation, second = step.formula.split()
        left = values[first]
        right = values[second]
        if operation == "/" and left % right != 0:
            return []

        result = OPERATIONS[operation](left, right)
        if i == slip_at:
            result += slip
        if not LOW <= result <= HIGH:
            return []

        values[RESULT_NAMES[i]] = result
        working.append(Calculation(left, operation, right, result))
    return working


def _wrong_workings(
    steps: tuple[Step, ...], numbers: tuple[int, ...], flaw: str
) -> list[Working]:
    """All workings that one flaw of REWORKED can lead to and that end in a wrong result."""
    if flaw == "wrong_operation":
        workings = [_work(wrong_steps, numbers) for wrong_steps in _confuse_operation(steps)]
    elif flaw == "miscopied_number":
        workings = [_work(steps, wrong_numbers) for wrong_numbers in _misread_one(numbers)]
    else:
        places = range(len(steps))
        workings = [_work(steps, numbers, i, slip) for i in places for slip in SLIPS]

    answer = _work(steps, numbers)[-1].result
    return [working for working in workings if working and working[-1].result != answer]


def _confuse_operation(steps: tuple[Step, ...]) -> list[list[Step]]:
    """The steps with one operation replaced, in every way that CONFUSED allows."""
    found = []
    for i, step in enumerate(steps):
        first, operation, second = step.formula.split()
        for wrong in CONFUSED[operation]:
            wrong_steps = list(steps)
            wrong_steps[i] = Step(f"{first} {wrong} {second}", step.label)
            found.append(wrong_steps)
    return found


def _misread_one(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The numbers with one of them misread, in every way that is not another of them."""
    found = []
    for i, number in enumerate(numbers):
        for wrong in misreadings(number):
            if wrong not in numbers:
                wrong_numbers = list(numbers)
                wrong_numbers[i] = wrong
                found.append(tuple(wrong_numbers))
    return found


@cache
def misreadings(number: int) -> tuple[int, ...]:
    """What a number becomes if one digit is misread or the digits are read backwards."""
    digits = str(number)
    found = []
    for other in range(LOW, HIGH + 1):
        other_digits = str(other)
        if other == number or len(other_digits) != len(digits):
            continue
        same = [a == b for a, b in zip(digits, other_digits, strict=True)]
        if same.count(False) == 1 or other_digits == digits[::-1]:
            found.append(other)
    return tuple(found)
