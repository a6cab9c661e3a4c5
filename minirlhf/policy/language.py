"""The language of the toy policy: words, and slots in which numbers are filled in.

A transformer of a few hundred thousand parameters learns to write the bundled answers in a minute,
but not to copy digits or to calculate: after the same training on digits none of its answers was
right (`minirlhf/experiments/README.md`, entry 9.3). Therefore no number is a word here. Where a
text has a number, the policy writes what the number is, and the renderer fills it in. The same is
done for the person and the thing that the question is about:

    text     Then 73 - 50 = 23. Emma gets 23 dollars back.
    tokens   Then <number 3> - <result 1> = <result> . <name> gets <result 2> dollars back .

So the policy has a calculator, and chooses what to calculate. It can still make all the mistakes of
the bundled data: it can take the wrong number or operation, ask for a wrong result or misread a
number, state another answer, break off, ramble and be rude. What is lost is only the chance of
getting a calculation wrong without wanting to.

    <name>         the first name in the question
    <item>         its first thing that problems are about, such as toys; <items> is that with an s
    <number i>     the i-th number of the question, in the order of its text
    <misread i>    the same with a digit misread; one reading for the whole answer
    <result>       what the calculation just written gives
    <slip>         that, a little off
    <result k>     the result of the answer's k-th calculation, as it was printed
    <near>         the last result, or the right answer if there is none, a little off
    <answer>       the right answer, for an answer without a working
    <new>          a number out of nowhere

`render` draws the numbers of <misread i>, <slip>, <near> and <new> from a generator that is seeded
by question and tokens, so the same tokens are always the same text. A slot in a place where it
means nothing becomes a question mark, and hardly any text with one can be graded.

>>> problem = arithmetic.make_problem(random.Random(28))
>>> problem.prompt
'Emma buys 5 toys for 10 dollars each and pays with 73 dollars. How much change does Emma get?'
>>> words = read_answer(problem, "5 * 10 = 50. Then 73 - 50 = 23. Emma gets 23 dollars back.")
>>> print(*words[:6])
<number 1> * <number 2> = <result> .
>>> render(problem, words)
'5 * 10 = 50. Then 73 - 50 = 23. Emma gets 23 dollars back.'
"""

import random
import re
from dataclasses import dataclass, field
from functools import cache

from minirlhf.bundled import arithmetic
from minirlhf.bundled.arithmetic import HIGH, LOW, OPERATIONS, SLIPS, Problem

PAD = "<pad>"
START = "<start>"  # stands between question and answer
END = "<end>"
NUMBERS = ("<number 1>", "<number 2>", "<number 3>", "<number 4>")
MISREAD = ("<misread 1>", "<misread 2>", "<misread 3>", "<misread 4>")
RESULTS = ("<result 1>", "<result 2>", "<result 3>", "<result 4>")  # a line may come twice
SLOTS = (*NUMBERS, *MISREAD, *RESULTS, "<result>", "<slip>", "<near>", "<answer>", "<new>")
WORD_SLOTS = ("<name>", "<item>", "<items>")
MEANINGLESS = "?"  # is printed for a slot in a place where it means nothing
DRAWN = {*MISREAD, "<slip>", "<near>", "<new>"}  # whose numbers `render` draws
ATTEMPTS = 200  # to draw numbers that come out whole
NEW_NUMBERS = range(2, 100)  # out of nowhere


# ---- words and token ids


def split_words(text: str) -> list[str]:
    """A text as words, numbers and single punctuation marks."""
    return re.findall(r"\d+|[A-Za-z]+|[^\sA-Za-z\d]", text)


def join_words(words: list[str]) -> str:
    """The text that `split_words` would split into these words."""
    return re.sub(r" (?=[.,:?])", "", " ".join(words))


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token: the marks, the slots, and all words of the bundled questions and answers."""
    words = set("+-*/=.,:?")
    for style in arithmetic.STYLES:
        for patterns in style:
            for pattern in patterns:
                words.update(split_words(pattern))
    for line in (*arithmetic.RESTATEMENTS, *arithmetic.FILLERS, *arithmetic.TONES):
        words.update(split_words(line))
    for template in arithmetic.TEMPLATES:
        lines = [*template.stories, *template.questions, template.closing, template.unit]
        lines += template.wrong_units
        for step in template.steps:
            lines += [step.label, step.label.capitalize()]
        for item in template.items:
            for line in lines:
                words.update(split_words(line.replace("{item}", item)))
    words.update(arithmetic.NAMES)
    # The names of fields are no words, but for "a" and "answer", which are both.
    fields = {"b", "c", "d", "name", "label", "calculation"}
    words -= {"{", "}"} | fields
    return (PAD, START, END, *SLOTS, *WORD_SLOTS, *sorted(words))


@cache
def ids_of_words() -> dict[str, int]:
    """The id of each token."""
    return {word: i for i, word in enumerate(vocabulary())}


def to_ids(words: list[str]) -> list[int]:
    """The ids of words. Raises ValueError for a word that the language does not have."""
    ids = ids_of_words()
    unknown = [word for word in words if word not in ids]
    if unknown:
        raise ValueError(f"the toy's language has no word {unknown[0]!r}")
    return [ids[word] for word in words]


def to_words(ids: list[int]) -> list[str]:
    """The words of ids."""
    return [vocabulary()[i] for i in ids]


# ---- text -> words with slots


def numbers_of(problem: Problem) -> list[int]:
    """The numbers of the question, in the order of its text."""
    return [int(number) for number in re.findall(r"\d+", problem.prompt)]


def words_of(problem: Problem) -> dict[str, str]:
    """What the slots for words stand for in this problem."""
    items = {item for template in arithmetic.TEMPLATES for item in template.items}
    found = {}
    for word in split_words(problem.prompt):
        if word in arithmetic.NAMES:
            found.setdefault("<name>", word)
        if word in items and "<item>" not in found:
            found["<item>"] = word
            found["<items>"] = f"{word}s"
    return found


def with_slots(problem: Problem, words: list[str]) -> list[str]:
    """The words, with slots in place of those of the question's person and thing."""
    slots = {word: slot for slot, word in words_of(problem).items()}
    return [slots.get(word, word) for word in words]


def read_question(problem: Problem) -> list[str]:
    """The question as words and slots, with START at its end."""
    words = []
    count = 0
    for word in with_slots(problem, split_words(problem.prompt)):
        if word.isdigit():
            words.append(NUMBERS[count])
            count += 1
        else:
            words.append(word)
    return [*words, START]


def read_answer(problem: Problem, text: str) -> list[str]:
    """An answer of the generator as words and slots.

    Where a number can be read in several ways, the likeliest is taken. Rendered again, the words
    give the same text, but for the numbers that are drawn.
    """
    context = Context(numbers_of(problem), problem.answer)
    words = []
    parts = with_slots(problem, split_words(text))
    for i, part in enumerate(parts):
        if not part.isdigit():
            context.see(part)
            words.append(part)
            continue
        value = int(part)
        is_left_side = parts[i + 1] in OPERATIONS
        words.append(slot_of(value, context, is_left_side))
        context.see_number(value)
    return words


@dataclass
class Context:
    """What an answer has said so far, on which the meaning of a slot depends."""

    numbers: list[int]  # of the question
    answer: int  # the right one
    words: dict[str, str] = field(default_factory=dict)  # what <name> and <item> stand for
    results: list[int] = field(default_factory=list)  # as printed
    readings: dict[str, int] = field(default_factory=dict)  # of <misread i>
    # What a number became that is a little off.
    slips: dict[int, int] = field(default_factory=dict)
    left: int | None = None  # of the calculation that is being written
    operation: str = ""
    right: int | None = None
    last_number: int | None = None
    after_equals: bool = False
    # All results lie in the generator's range, and no division has a remainder.
    comes_out: bool = True

    def see(self, word: str) -> None:
        """Note a word that is no number."""
        self.after_equals = word == "="
        if word in OPERATIONS:
            self.left = self.last_number
            self.last_number = None  # the other side has to be written
            self.operation = word
        elif word == "=":
            self.right = self.last_number
        else:
            self.operation = ""

    def see_number(self, value: int | None) -> None:
        """Note a number; None for a slot that means nothing."""
        if self.after_equals and value is not None:
            self.results.append(value)
            is_in_range = LOW <= value <= HIGH
            if not is_in_range or self.has_remainder():
                self.comes_out = False
        self.after_equals = False
        self.last_number = value

    def has_remainder(self) -> bool:
        """True if the calculation is a division that does not come out whole."""
        if self.operation != "/" or self.left is None or not self.right:
            return False
        return self.left % self.right != 0

    def result(self) -> int | None:
        """What the calculation gives whose "=" was written last; None if there is none."""
        has_both_sides = self.left is not None and self.right is not None
        is_complete = self.operation != "" and has_both_sides
        if not self.after_equals or not is_complete:
            return None
        if self.operation == "/" and self.right == 0:
            return None
        return OPERATIONS[self.operation](self.left, self.right)


def slot_of(value: int, context: Context, is_left_side: bool) -> str:
    """The slot that stands for a number in its place."""
    if context.after_equals:
        return slot_of_result(value, context)
    if is_left_side or context.operation:
        return slot_of_operand(value, context)
    return slot_of_statement(value, context)


def slot_of_result(value: int, context: Context) -> str:
    """The slot of a number after "="."""
    right_result = context.result()
    if value == right_result:
        return "<result>"
    if right_result is not None and value - right_result in SLIPS:
        return "<slip>"
    return "<new>"


def slot_of_operand(value: int, context: Context) -> str:
    """The slot of a number on one side of an operation. A new misreading is noted in `context`."""
    if value in context.results:
        return RESULTS[context.results.index(value)]
    if value in context.numbers:
        return NUMBERS[context.numbers.index(value)]
    for i, number in enumerate(context.numbers):
        readings = arithmetic.misreadings(number)
        if context.readings.get(MISREAD[i]) == value:
            return MISREAD[i]
        if value in readings and MISREAD[i] not in context.readings:
            context.readings[MISREAD[i]] = value
            return MISREAD[i]
    return "<new>"


def slot_of_statement(value: int, context: Context) -> str:
    """The slot of a number outside a calculation: the stated answer, or one in a restatement."""
    if context.results and value == context.results[-1]:
        return RESULTS[len(context.results) - 1]
    if value == context.answer:
        return "<answer>"
    if value in context.numbers:
        return NUMBERS[context.numbers.index(value)]
    if value in context.results:
        return RESULTS[context.results.index(value)]
    if value - base_of_near(context) in SLIPS:
        return "<near>"
    return "<new>"


def base_of_near(context: Context) -> int:
    """The number that <near> is near to."""
    return context.results[-1] if context.results else context.answer


# ---- words with slots -> text


def render(problem: Problem, words: list[str]) -> str:
    """The text of words and slots, numbers filled in.

    Like the generator, it draws numbers again until all results come out whole and lie in its
    range. It gives up after `ATTEMPTS` draws and keeps the last.
    """
    rng = random.Random(problem.prompt + " ".join(words))
    is_drawn = not DRAWN.isdisjoint(words)
    for _ in range(ATTEMPTS if is_drawn else 1):
        context = Context(numbers_of(problem), problem.answer, words_of(problem))
        text = fill_in(words, context, rng)
        if context.comes_out:
            break
    return text


def fill_in(words: list[str], context: Context, rng: random.Random) -> str:
    """One attempt of `render`."""
    parts = []
    for word in words:
        if word in WORD_SLOTS:
            context.see(word)
            parts.append(context.words.get(word, MEANINGLESS))
        elif word in SLOTS:
            value = value_of(word, context, rng)
            context.see_number(value)
            parts.append(MEANINGLESS if value is None else str(value))
        else:
            context.see(word)
            parts.append(word)
    return join_words(parts)


def value_of(slot: str, context: Context, rng: random.Random) -> int | None:
    """The number that a slot stands for in its place; None if it means nothing there."""
    if slot in NUMBERS:
        return value_at(context.numbers, NUMBERS.index(slot))
    if slot in RESULTS:
        return value_at(context.results, RESULTS.index(slot))
    if slot in MISREAD:
        number = value_at(context.numbers, MISREAD.index(slot))
        if number is not None and slot not in context.readings:
            free = [n for n in arithmetic.misreadings(number) if n not in context.numbers]
            context.readings[slot] = rng.choice(free)
        return context.readings.get(slot)
    if slot == "<result>":
        return context.result()
    if slot == "<slip>":
        return a_little_off(context.result(), context, rng)
    if slot == "<near>":
        return a_little_off(base_of_near(context), context, rng)
    if slot == "<answer>":
        return context.answer
    taken = {*context.numbers, *context.results, context.answer, context.result()}
    for number in context.numbers:
        taken.update(arithmetic.misreadings(number))
    return rng.choice([n for n in NEW_NUMBERS if n not in taken])


def a_little_off(value: int | None, context: Context, rng: random.Random) -> int | None:
    """The value with a slip, the same one whenever the answer comes back to it; None for None."""
    if value is None:
        return None
    if value not in context.slips:
        candidates = [value + slip for slip in SLIPS]
        usual = [n for n in candidates if LOW <= n <= HIGH and n != context.answer]
        context.slips[value] = rng.choice(usual or candidates)
    return context.slips[value]


def value_at(values: list[int], index: int) -> int | None:
    """values[index]; None if there is no such value."""
    return values[index] if index < len(values) else None
