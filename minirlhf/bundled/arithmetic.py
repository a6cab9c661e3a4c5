"""Stage 0 of the data's path, bundled: word problems, and answers whose flaws are known.

A preference set usually tells which of two answers people liked better, and never why. Here the
why is known: an answer is written right first, then flaws are put in on purpose, and its rating
follows from the flaws by one open rule,

    rating = 10 - (the sum of the costs of its flaws), never below 1.

    flaw                 cost  what it does to the text
    off_topic            9.0   answers some other problem, in full
    wrong_operation      6.0   uses + for -, * for + and so on in one step, and carries on
    answer_not_derived   5.5   the last line states another number than the one worked out
    miscopied_number     5.0   misreads a number of the question, and carries on
    arithmetic_slip      4.5   gets one right calculation wrong, and carries on
    unfinished           4.0   stops before the last step and states no answer
    wrong_unit           3.0   the last line has the wrong thing: dollars for apples
    missing_working      2.0   states the answer and nothing else
    rambling             1.5   restates the question, repeats a line or fills space
    bad_tone             1.0   is rude to the reader or doubts itself

A wrong result costs more than poor manners; between them stand answers that are of little use. No
two costs are equal, so most pairs have a better side. Two answers to one prompt with different
ratings make a row. Its `subset` is the costliest flaw of the rejected answer that the chosen one
lacks. There always is one: if the chosen answer had all those flaws too, it could not have the
higher rating.

Wording says nothing about the flaws: an answer draws a terse, normal or wordy style whatever its
flaws are. Nor does length: the flaws that shorten a text are about as frequent as those that
lengthen it, so "prefer the longer one" is right in about half of the rows. Keep that true when you
edit. What this set is not: natural language. Its patterns are few, so scores on it say how well a
reward model learns a known rule, not how well it would judge people's texts.

What to copy: `generate` for a preference set that needs no download; `draw_answer` to judge any
reward model against ratings that are right by construction. For a set of your own, change
TEMPLATES. A seed gives the same rows on every machine, and fewer pairs are a prefix of more.

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

# One row per flaw: its cost, how often it is drawn, and the parts of the answer that it touches.
# Two flaws meet in one answer only if they touch different parts: else one would hide the other,
# and the text would no longer show what its rating says. rambling and bad_tone go with most others
# and so are often the second flaw; their weights are a little low for that reason. Against the
# length shortcut, unfinished and missing_working (short) balance rambling and bad_tone (long).
# fmt: off
FLAW_TABLE = (
    # name                 cost  weight  parts touched
    ("off_topic",          9.0,   8, {"working", "ending", "filler", "tone"}),
    ("wrong_operation",    6.0,  13, {"working"}),
    ("answer_not_derived", 5.5,   9, {"ending"}),
    ("miscopied_number",   5.0,  12, {"working"}),
    ("arithmetic_slip",    4.5,  11, {"working"}),
    ("unfinished",         4.0,  13, {"working", "ending"}),
    ("wrong_unit",         3.0,   9, {"ending"}),
    ("missing_working",    2.0,   9, {"working"}),
    ("rambling",           1.5,   9, {"filler"}),
    ("bad_tone",           1.0,   7, {"tone"}),
)
# fmt: on
FLAWS: dict[str, float] = {name: cost for name, cost, _, _ in FLAW_TABLE}
WEIGHTS = {name: weight for name, _, weight, _ in FLAW_TABLE}
PARTS = {name: parts for name, _, _, parts in FLAW_TABLE}
REWORKED = ("wrong_operation", "miscopied_number", "arithmetic_slip")  # these change the working

PAIRS = 5000  # what two CPU cores learn from in three minutes
COLUMNS = ("prompt", "chosen", "rejected", "chosen_rating", "rejected_rating", "subset")

FLAWLESS, ONE_FLAW = 0.30, 0.52  # shares of the draws; the rest gets two flaws, where two can meet

LOW, HIGH = 2, 999  # every number on the way; nothing is ever 1, so every noun can be a plural
SLIPS = (-10, -2, -1, 1, 2, 10)
Steps = tuple[tuple[str, str], ...]  # (formula, label) of each step
Numbers = tuple[int, ...]
Working = list[tuple[int, str, int, int]]  # left, operation, right and result of each line
# "/" is only ever used where nothing is left over.
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
CONFUSED = {"+": "-*", "-": "+/", "*": "+/", "/": "-*"}  # what a wrong operation writes instead


# Families of problems: stories, questions, steps, closing, unit, wrong units, items, ranges.
# Stories, questions and items are mixed freely. In a step the numbers of the question are a, b, c,
# d, the results of the steps x, y, z, and the label reads well after "the".
# fmt: off
TEMPLATES = (
    (("{name} has {a} {item} and gets {b} more. Then {name} gives {c} to a friend.",
      "{name} finds {a} {item} on Monday and {b} on Tuesday, but then loses {c} of them."),
     ("How many {item} does {name} have left?", "How many {item} are left?"),
     (("a + b", "total"), ("x - c", "number left")), "{name} has {answer} left", "{item}",
     ("dollars", "days"), ("apples", "shells", "stamps", "marbles", "stickers", "coins"),
     ((11, 60), (5, 40), (3, 30))),
    (("{name} buys {a} {item} for {b} dollars each and pays with {c} dollars.",
      "At a shop, {name} takes {a} {item} at {b} dollars each and hands over {c} dollars."),
     ("How much change does {name} get?", "How much money does {name} get back?"),
     (("a * b", "price of the {item}"), ("c - x", "change")), "{name} gets {answer} back",
     "dollars", ("{item}",), ("pens", "cups", "plants", "tickets", "toys", "books"),
     ((3, 12), (3, 12), (20, 100))),
    (("{name} bakes {a} trays of {b} {item}. Then {c} friends share them equally.",
      "There are {a} trays with {b} {item} on each. They are shared equally by {c} friends."),
     ("How many {item} does each friend get?", "How many {item} are there for each friend?"),
     (("a * b", "total number of {item}"), ("x / c", "share of each friend")),
     "each friend gets {answer}", "{item}", ("trays", "friends"),
     ("cookies", "rolls", "muffins", "pies", "buns"), ((3, 12), (4, 15), (3, 12))),
    (("A {item} has {a} pages. {name} has read {b} pages so far and now reads {c} a day.",
      "{name} reads {c} pages a day and has read {b} of the {a} pages of a {item}."),
     ("How many days will the rest take?", "How many days does {name} need for the rest?"),
     (("a - b", "number of pages left"), ("x / c", "number of days")), "the rest takes {answer}",
     "days", ("pages",), ("book", "novel", "report", "diary"), ((40, 180), (10, 90), (4, 20))),
    (("A farmer packs {a} {item} in boxes of {b} and sells each box for {c} dollars.",
      "{name} has {a} {item}, puts {b} in each box and gets {c} dollars per box."),
     ("How much money do the boxes bring in?", "How many dollars is that in all?"),
     (("a / b", "number of boxes"), ("x * c", "money for all boxes")),
     "the boxes bring in {answer}", "dollars", ("boxes", "{item}"),
     ("eggs", "onions", "lemons", "peppers"), ((24, 99), (4, 12), (3, 12))),
    (("{name} buys {a} {item} at {b} dollars each and {c} books at {d} dollars each.",
      "{name} gets {a} {item} for {b} dollars each, and {c} books for {d} dollars each."),
     ("How much does {name} pay?", "What is the total price?"),
     (("a * b", "price of the {item}"), ("c * d", "price of the books"), ("x + y", "total")),
     "{name} pays {answer}", "dollars", ("{item}", "books"), ("pens", "cards", "maps", "caps"),
     ((2, 9), (2, 9), (2, 9), (4, 15))),
    (("One {item} needs {a} grams of flour and {b} grams of sugar.",
      "A cook takes {a} grams of flour and {b} grams of sugar for each {item}."),
     ("How many grams are needed for {c} {item}s?", "How many grams do {c} {item}s take?"),
     (("a + b", "weight for one {item}"), ("x * c", "weight for all {item}s")),
     "all the {item}s together take {answer}", "grams", ("{item}s",),
     ("cake", "tart", "pie", "waffle"), ((20, 90), (10, 60), (2, 7))),
    (("A farm has {a} cows and {b} times as many {item}. Then {c} {item} are sold.",
      "A farmer has {a} cows and {b} times as many {item}, and sells {c} of the {item}."),
     ("How many animals are left on the farm?", "How many animals does the farm have now?"),
     (("a * b", "number of {item}"), ("x - c", "number of {item} left"),
      ("a + y", "number of animals")), "the farm now has {answer}", "animals", ("cows", "{item}"),
     ("hens", "ducks", "goats", "sheep", "geese"), ((5, 20), (2, 6), (3, 30))),
)
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jack", "Kate",
         "Leo", "Maya", "Nina", "Omar", "Paul", "Rosa", "Sam", "Tom", "Zoe")
# Three styles: patterns for an opening line ("" for none), the first step, later steps, the ending.
STYLES = (
    (("",), ("{calculation}.", "First {calculation}.", "Take {calculation}."),
     ("{calculation}.", "Then {calculation}.", "And {calculation}."),
     ("Answer: {answer}.", "Result: {answer}.", "So: {answer}.")),
    (("",), ("{label}: {calculation}.", "First, the {label}: {calculation}."),
     ("{label}: {calculation}.", "Then the {label}: {calculation}."),
     ("The answer is {answer}.", "The result is {answer}.", "In the end, {closing}.")),
    (("", "", "Let us do this in steps.", "We can work this out."),
     ("First of all we need the {label}: {calculation}.",
      "We start with the {label}, which is {calculation}."),
     ("Now we can find the {label}: {calculation}.",
      "After that comes the {label}, which is {calculation}."),
     ("So the final answer is {answer}.", "From all this we see that {closing}.")),
)
RESTATEMENTS = ("You ask the following: {question}", "The question here is this: {question}")
FILLERS = ("Problems like this one come up in daily life.", "Numbers are useful to many people.",
           "There are many ways to look at a question.",
           "It is good to read every problem with care.")
TONES = ("What a silly question.", "Anyone could have done this alone.",
         "Do not waste my time with this.", "I am not sure about any of this.",
         "I may well be wrong here.", "This is only a guess.")
# fmt: on


@dataclass(frozen=True)
class Problem:
    """A word problem: its text, and all that is needed to write answers to it, right or wrong."""

    prompt: str
    question: str  # the last sentence of the prompt
    template: int  # index in TEMPLATES
    numbers: Numbers  # a, b, c and perhaps d, all different
    steps: Steps  # (formula, label) of each step
    closing: str  # a sentence with {answer} in it
    unit: str
    wrong_units: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class GradedAnswer:
    """An answer with its flaws, in the order of FLAWS, and the rating (1 to 10) they leave it."""

    text: str
    flaws: tuple[str, ...]
    rating: float


def make_problem(rng: random.Random) -> Problem:
    """Draw a problem whose steps all come out even and which every flaw can be put into."""
    index = rng.randrange(len(TEMPLATES))
    stories, questions, steps, closing, unit, wrong_units, items, ranges = TEMPLATES[index]
    words = {"name": rng.choice(NAMES), "item": rng.choice(items)}
    story, question = rng.choice(stories), rng.choice(questions)
    while True:  # most draws fail on a division; the ranges keep this to some tens of turns
        numbers = tuple(rng.randrange(low, high + 1) for low, high in ranges)
        working = _work(steps, numbers)
        # All numbers differ, so each number in an answer has only one place it can come from.
        distinct = {*numbers, *(result for *_, result in working)}
        if not working or len(distinct) < len(numbers) + len(working):
            continue
        if all(_wrong_workings(steps, numbers, flaw) for flaw in REWORKED):
            break
    words |= {letter: str(number) for letter, number in zip("abcd", numbers, strict=False)}
    question = question.format(**words)
    return Problem(
        prompt=story.format(**words) + " " + question,
        question=question,
        template=index,
        numbers=numbers,
        steps=tuple((formula, label.format(**words)) for formula, label in steps),
        closing=closing.format(answer="{answer}", **words),
        unit=unit.format(**words),
        wrong_units=tuple(wrong.format(**words) for wrong in wrong_units),
        answer=working[-1][-1],
    )


def make_answer(problem: Problem, flaws: Iterable[str], rng: random.Random) -> GradedAnswer:
    """Write an answer with exactly these flaws; the wording is drawn from `rng`.

    Raises ValueError for an unknown flaw and for two flaws that touch the same part of the answer.
    """
    flaws = tuple(flaws)
    if unknown := [flaw for flaw in flaws if flaw not in FLAWS]:
        raise ValueError(f"unknown flaws {unknown}; known: {list(FLAWS)}")
    for one, two in combinations(flaws, 2):
        if PARTS[one] & PARTS[two]:
            raise ValueError(f"{one} and {two} touch the same part of an answer")
    flaws = tuple(flaw for flaw in FLAWS if flaw in flaws)
    rating = max(1.0, 10.0 - sum(FLAWS[flaw] for flaw in flaws))

    if "off_topic" in flaws:
        other = make_problem(rng)
        while other.template == problem.template or other.answer == problem.answer:
            other = make_problem(rng)
        return GradedAnswer(make_answer(other, (), rng).text, flaws, rating)

    openers, first, later, endings = rng.choice(STYLES)
    working = _work(problem.steps, problem.numbers)
    for flaw in REWORKED:
        if flaw in flaws:
            working = rng.choice(_wrong_workings(problem.steps, problem.numbers, flaw))
    stated = working[-1][-1]
    if "answer_not_derived" in flaws:
        others = [stated + slip for slip in SLIPS]
        others += [*problem.numbers, *(result for *_, result in working)]  # a number lying about
        others = [n for n in others if LOW <= n <= HIGH and n not in (stated, problem.answer)]
        stated = rng.choice(others)
    unit = rng.choice(problem.wrong_units) if "wrong_unit" in flaws else problem.unit
    if "unfinished" in flaws:
        working = working[: rng.randrange(1, len(working))]

    lines = []
    if "missing_working" not in flaws:
        lines.append(rng.choice(openers))
        for i, (line, (_, label)) in enumerate(zip(working, problem.steps, strict=False)):
            pattern = rng.choice(later if i else first)
            lines.append(pattern.format(label=label, calculation="{} {} {} = {}".format(*line)))
    if "unfinished" not in flaws:
        answer = f"{stated} {unit}"
        closing = problem.closing.format(answer=answer)
        lines.append(rng.choice(endings).format(answer=answer, closing=closing))
    lines = [line[0].upper() + line[1:] for line in lines if line]
    if "rambling" in flaws:
        _ramble(lines, problem.question, rng)
    if "bad_tone" in flaws:
        lines.insert(rng.choice((0, len(lines))), rng.choice(TONES))
    return GradedAnswer(" ".join(lines), flaws, rating)


def draw_answer(problem: Problem, rng: random.Random) -> GradedAnswer:
    """Draw flaws (about 30 % none, half one, the rest two) and write an answer that has them."""
    share = rng.random()
    flaws: list[str] = []
    for _ in range((share >= FLAWLESS) + (share >= FLAWLESS + ONE_FLAW)):
        free = [new for new in FLAWS if not any(PARTS[new] & PARTS[old] for old in flaws)]
        if free:  # nothing goes with off_topic
            flaws += rng.choices(free, weights=[WEIGHTS[flaw] for flaw in free])
    return make_answer(problem, flaws, rng)


def generate(pairs: int = PAIRS, seed: int = 0, answers_per_prompt: int = 4) -> list[dict]:
    """Make preference rows: prompt, chosen, rejected, chosen_rating, rejected_rating, subset.

    Each prompt gets `answers_per_prompt` distinct answers, and every two of different rating make a
    row. No prompt comes twice. `subset` is the costliest flaw that only the rejected answer has.
    Raises ValueError for fewer than 2 answers (no pair) or more than 100 (too few distinct texts).
    """
    if not 2 <= answers_per_prompt <= 100:
        raise ValueError(f"answers_per_prompt is {answers_per_prompt}; it must be 2 to 100")
    rng = random.Random(seed)
    rows: list[dict] = []
    prompts: set[str] = set()  # only ever asked "is it in?": the order of a set is not stable
    while len(rows) < pairs:
        problem = make_problem(rng)
        if problem.prompt in prompts:
            continue
        prompts.add(problem.prompt)
        answers: dict[str, GradedAnswer] = {}
        while len(answers) < answers_per_prompt:
            answer = draw_answer(problem, rng)
            answers.setdefault(answer.text, answer)
        for one, two in combinations(answers.values(), 2):
            if one.rating == two.rating:
                continue
            rejected, chosen = sorted((one, two), key=lambda answer: answer.rating)
            only_rejected = [flaw for flaw in rejected.flaws if flaw not in chosen.flaws]
            row = (problem.prompt, chosen.text, rejected.text, chosen.rating, rejected.rating)
            subset = max(only_rejected, key=FLAWS.__getitem__)
            rows.append(dict(zip(COLUMNS, (*row, subset), strict=True)))
    return rows[:pairs]


def _work(steps: Steps, numbers: Numbers, swap=(-1, ""), slip=(-1, 0)) -> Working:
    """Do the steps, with step `swap[0]` by another operation and step `slip[0]` off by `slip[1]`.

    Empty if a division leaves a remainder or a result lies outside LOW..HIGH.
    """
    values = dict(zip("abcd", numbers, strict=False))
    working = []
    for i, (formula, _) in enumerate(steps):
        first, operation, second = formula.split()
        left, right = values[first], values[second]
        if i == swap[0]:
            operation = swap[1]
        if operation == "/" and left % right:
            return []
        result = OPERATIONS[operation](left, right) + (slip[1] if i == slip[0] else 0)
        if not LOW <= result <= HIGH:
            return []
        values["xyz"[i]] = result
        working.append((left, operation, right, result))
    return working


def _wrong_workings(steps: Steps, numbers: Numbers, flaw: str) -> list[Working]:
    """All the workings that one flaw of REWORKED can lead to and that end in a wrong result."""
    places = enumerate(formula.split()[1] for formula, _ in steps)
    if flaw == "wrong_operation":
        workings = [_work(steps, numbers, (i, new)) for i, old in places for new in CONFUSED[old]]
    elif flaw == "arithmetic_slip":
        workings = [_work(steps, numbers, slip=(i, by)) for i, _ in places for by in SLIPS]
    else:
        copies = [
            (*numbers[:i], wrong, *numbers[i + 1 :])
            for i, number in enumerate(numbers)
            for wrong in _misreadings(number)
            if wrong not in numbers
        ]
        workings = [_work(steps, copy) for copy in copies]
    answer = _work(steps, numbers)[-1][-1]
    return [working for working in workings if working and working[-1][-1] != answer]


@cache
def _misreadings(number: int) -> tuple[int, ...]:
    """The numbers one gets by one wrong digit, or by reading the digits backwards."""
    digits = str(number)
    others = [str(other) for other in range(LOW, HIGH + 1) if len(str(other)) == len(digits)]
    differ = {other: sum(a != b for a, b in zip(digits, other, strict=True)) for other in others}
    return tuple(int(o) for o, n in differ.items() if n == 1 or (n and o == digits[::-1]))


def _ramble(lines: list[str], question: str, rng: random.Random) -> None:
    """Put one useless line into `lines`: the question, a line once more, or filler."""
    kind, place = rng.choice(("restate", "repeat", "fill")), rng.randrange(len(lines))
    if kind == "restate":
        lines.insert(0, rng.choice(RESTATEMENTS).format(question=question))
    elif kind == "repeat":
        lines.insert(place, lines[place])
    else:
        lines.insert(place, rng.choice(FILLERS))
