"""The layouts of public preference data: which column is which, and how a conversation is written.

Public data write a conversation in many forms: a string, a list of messages, a transcript, a
question and a column of earlier turns. All of them become one prompt and its responses in one
place, `write_texts`. Training, evaluation and scoring all go through it, so a prompt with a
response of one turn is the same text in all three. (Where the responses of a pair have several
turns, the text depends on both: score them together to get the text of training.) The plainest
layout has a prompt and two responses, and you may skip this file at the first reading.

Copy this file alone; it needs nothing but Python. Read next: `tokens.py`.

>>> question = [{"role": "user", "content": "2 + 2?"}]
>>> write_texts(read_question(question), ["4", "5"])
('2 + 2?', ['4', '5'])
"""

import ast
import json
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

# The usual names of each column, where "_" also stands for "-". The first one that is present
# counts.
COLUMNS = {
    "prompt": [
        "prompt", "instruction", "question", "query", "input",
        "conversations", "conversation", "messages",
    ],
    "input": ["input"],  # what an instruction is to be applied to
    "system": ["system", "system_prompt", "system_message"],
    "context": ["context", "history"],  # what comes before the prompt
    "chosen": ["chosen", "chosen_response", "chosen_messages"],
    "rejected": ["rejected", "rejected_response", "rejected_messages"],
    "chosen_rating": [
        "chosen_rating", "chosen_score", "score_chosen", "rating_chosen",
        "chosen_reward", "reward_chosen",
    ],
    "rejected_rating": [
        "rejected_rating", "rejected_score", "score_rejected", "rating_rejected",
        "rejected_reward", "reward_rejected",
    ],
    "subset": ["subset"],
}  # fmt: skip
HAVE_A_FLAG = ("prompt", "chosen", "rejected", "chosen_rating", "rejected_rating")
GOOD_ROW = '{"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "chosen_rating": 10, ...}'


class UnusableRow(ValueError):
    """A row that holds no preference pair.

    The message is the reason that the report counts; `found` is what the row held instead.
    """

    def __init__(self, reason: str, found: object = ""):
        super().__init__(reason)
        self.found = found


class Turn(NamedTuple):
    """What one speaker says: "user", "assistant", "system", or whoever else the data have."""

    role: str
    text: str


# ---- which column is which


def find_columns(found: Sequence[str], **columns: str | None) -> dict[str, str | None]:
    """Which column plays which role; None for one that is absent.

    found: the names of the data's columns; columns: what the caller calls a role, if unusual.
    Raises ValueError if a column that was named is absent, or if there are no pairs in the data.
    """
    names = name_columns(found, **columns)
    if not (names["chosen"] and names["rejected"]):
        expected = "; ".join(f"{role}: {' or '.join(COLUMNS[role])}" for role in HAVE_A_FLAG)
        raise ValueError(
            f"these are no preference pairs. Columns found: {listed(found)}. "
            f"{rule_for_two_responses(found)}Expected: {expected} "
            f"(all but chosen and rejected may be absent). A good row: {GOOD_ROW}"
        )
    if bool(names["chosen_rating"]) != bool(names["rejected_rating"]):
        if columns.get("chosen_rating") or columns.get("rejected_rating"):
            raise ValueError("ratings for one side only; name both rating columns or neither")
        names["chosen_rating"] = None
        names["rejected_rating"] = None
    return names


def name_columns(found: Sequence[str], **columns: str | None) -> dict[str, str | None]:
    """As `find_columns`, for rows that need not be pairs, such as rows to be scored."""
    by_spelling: dict[str, str] = {}
    for name in found:
        by_spelling.setdefault(usual_spelling(name), name)

    names: dict[str, str | None] = {}
    for role, usual in COLUMNS.items():
        given = columns.get(role)
        if given and given not in found:
            raise ValueError(f"no column {given!r}; the data has: {listed(found)}")
        present = [by_spelling[name] for name in usual if name in by_spelling]
        names[role] = given or (present[0] if present else None)

    # `input` belongs to an instruction. By itself it is the prompt, and beside a prompt of another
    # name nobody knows what it is.
    if usual_spelling(names["prompt"]) != "instruction":
        names["input"] = None
    for role in ("input", "system", "context"):  # read once, if a flag gave it another role
        if names[role] in columns.values():
            names[role] = None
    return names


def usual_spelling(name: str | None) -> str:
    """A column's name as `COLUMNS` would write it."""
    return re.sub("[-. ]", "_", str(name))


def listed(names: Sequence[str]) -> str:
    """Names of columns for an error message. A tab in a name is written as \\t."""
    return repr(", ".join(names))[1:-1][:300]


def unread_columns(found: Sequence[str], names: dict[str, str | None]) -> dict[str, str]:
    """The columns that nobody reads, each with a remark, which may be empty.

    names: what `find_columns` returned.
    """
    remarks = {}
    for name in found:
        if name in names.values():
            continue
        remarks[name] = ""
        if usual_spelling(name) == "margin":
            remarks[name] = "margins of the data are not learned from"
        for role in HAVE_A_FLAG:
            if usual_spelling(name) not in COLUMNS[role]:
                continue
            flag = f"--{role}-column".replace("_", "-")
            if names[role]:
                remarks[name] = f"{flag} would read it in place of {names[role]}"
            else:
                other_role = "rejected" if role.startswith("chosen") else "chosen"
                other_flag = f"--{other_role}-rating-column"
                remarks[name] = f"a rating of one side; name the other with {other_flag}"
    return remarks


def rule_for_two_responses(found: Sequence[str]) -> str:
    """What to do with data that have two responses and a label; "" for other data.

    No reader can know what a label means: in HelpSteer3 -3 prefers the first response, in PKU's
    data 0 does, and elsewhere 0 is a tie. So the user has to make the pairs. README shows how.
    """
    kinds = "response|answer|completion|output|conversation|human_ref|summary"
    for first, second in ("01", "12", "ab", "AB"):
        for name in found:
            other = name[:-1] + second
            if re.fullmatch(f"({kinds})_?{first}", name) and other in found:
                return (
                    f"Of {name} and {other}, make the one that the label prefers `chosen` and "
                    "the other `rejected`, and leave ties out (README shows how). "
                )
    return ""


# ---- from a conversation to a prompt and its responses


def read_question(question) -> list[Turn]:
    """The turns of a prompt in any form: what `write_texts` takes.

    question: a string, a transcript, a message, a list of messages, or a row with the columns of
    a prompt, such as {"system": ..., "question": ...}. Raises UnusableRow if it is none of these.
    """
    if isinstance(question, dict):
        names = name_columns(list(question))
        if names["prompt"] or names["context"]:
            return read_prompt(question, names)
    return without_empty_end(read_turns(question, "user", "prompt"))


def read_prompt(row: dict, names: dict[str, str | None]) -> list[Turn]:
    """The turns before the response, out of all columns of a row that hold some of them.

    They are empty if the prompt stands in the responses' own columns. names: what `find_columns`
    or `name_columns` returned. Raises UnusableRow if a column holds no conversation.
    """
    turns: list[Turn] = []
    if names["prompt"]:
        turns = read_turns(row.get(names["prompt"]), "user", names["prompt"])
        turns = without_empty_end(turns)
    given = optional(row, names["input"])
    if given is not None:
        given_text = as_text(read_turns(given, "user", names["input"]), with_speakers=False)
        instruction = turns.pop().text
        turns.append(Turn("user", f"{instruction}\n{given_text}".strip()))
    context = optional(row, names["context"])
    if context is not None:
        turns = read_context(context, turns, names["context"])
    system = optional(row, names["system"])
    if system is not None:
        said = read_turns(system, "system", names["system"])
        turns = said + [turn for turn in turns if turn not in said]
    return turns


def without_empty_end(turns: list[Turn]) -> list[Turn]:
    """The turns of a prompt without an "Assistant:" at the end, after which nothing is said."""
    ends_empty = len(turns) > 1 and not turns[-1].text.strip()
    return turns[:-1] if ends_empty else turns


def optional(row: dict, name: str | None):
    """What a column holds that may be empty; None for nothing, white space and NaN."""
    value = row.get(name)
    if isinstance(value, str) and not value.strip():
        return None
    is_nan = isinstance(value, float) and math.isnan(value)
    is_empty = isinstance(value, (list, tuple)) and not value
    return None if is_nan or is_empty else value


def read_context(context, turns: list[Turn], name: str) -> list[Turn]:
    """The turns with what comes before them.

    context: earlier turns, in any form or as a list of texts, the user's and the assistant's in
    turn; or a string, which is a text that the question is about.
    """
    if isinstance(context, str) and context.lstrip().startswith("["):  # a list in a CSV cell
        listing = read_literal(context)
        context = context if listing is None else listing
    if isinstance(context, (list, tuple)):
        texts = []
        for item in context:  # [["hi", "hello"], ["2 + 2?", "4"]] or ["hi", "hello", ...]
            texts.extend(item if isinstance(item, (list, tuple)) else [item])
        if all(isinstance(text, str) for text in texts):
            roles = ["assistant", "user"] if turns else ["user", "assistant"]
            backwards = [Turn(roles[i % 2], text) for i, text in enumerate(reversed(texts))]
            return joined(backwards[::-1], turns)

    earlier = read_turns(context, "user", name)
    is_a_text = isinstance(context, str) and earlier == [Turn("user", context)]
    if is_a_text and turns and turns[0].role == "user":
        first = Turn("user", f"{context}\n\n{turns[0].text}")
        return [first, *turns[1:]]
    return joined(earlier, turns)


def write_texts(
    before: list[Turn],
    responses: Sequence,
    names: Sequence[str] | None = None,
    may_be_empty: bool = True,
) -> tuple[str, list[str]]:
    """The prompt and the responses as the texts that a model reads: (prompt, texts).

    Training, evaluation and scoring all use it. Responses of one turn each are the same text
    together and alone; of responses with several turns that holds only for the same group.

    before: the turns before the responses; without any, each response holds the conversation.
    responses: strings, messages, or lists of messages.
    names: the column of each response, for an error message.
    may_be_empty: whether a prompt or a response of white space is a text, too.
    Raises UnusableRow if a response is no text, or if there is no prompt.

    >>> write_texts(read_question("Human: Hi.\\n\\nAssistant: Yes?\\n\\nHuman: 2 + 2?"), ["4"])
    ('Human: Hi.\\n\\nAssistant: Yes?\\n\\nHuman: 2 + 2?', ['4'])
    """
    names = names or ["response"] * len(responses)
    sides = read_sides(before, responses, names)
    shared = shared_turns(sides)
    if len(sides) == 1 and before and sides[0][: len(before)] == before:
        shared = min(shared, len(before))  # one response says nothing of where the prompt ends
    if not shared:
        raise UnusableRow("the two sides share no prompt", responses[0])
    if before and before[-1].role == "assistant":
        check_not_given_away(before, sides)
    if not may_be_empty:
        check_not_empty(sides, shared, names)

    # If one side has more turns than one, all are written out with their speakers: a speaker's
    # name on one side only would tell the sides apart.
    one_turn_each = all(len(side) == shared + 1 for side in sides)
    texts = [as_text(side[shared:], with_speakers=not one_turn_each) for side in sides]
    prompt = sides[0][:shared]
    return as_text(prompt, with_speakers=len(prompt) > 1), texts


def check_not_empty(sides: Sequence[list[Turn]], shared: int, names: Sequence[str]) -> None:
    """Raise UnusableRow if the prompt, or what a side says after it, is white space."""
    prompt = sides[0][:shared]
    if not any(turn.text.strip() for turn in prompt if turn.role != "system"):
        raise UnusableRow("the prompt is empty", prompt[-1].text)
    for side, name in zip(sides, names, strict=True):
        if not any(turn.text.strip() for turn in side[shared:]):
            raise UnusableRow(f"the response in `{name}` is empty", side[-1].text)


def check_not_given_away(before: list[Turn], sides: Sequence[list[Turn]]) -> None:
    """Raise UnusableRow if the prompt ends with what one of the sides answers."""
    for side in sides:
        if len(side) > len(before) and side[-1] == before[-1]:
            raise UnusableRow("the prompt ends with one of the responses", side[-1].text)


def read_sides(before: list[Turn], responses: Sequence, names: Sequence[str]) -> list[list]:
    """Each response as a whole conversation, from the first turn of the prompt."""
    question = [turn for turn in before if turn.role != "system"]
    spoken = []
    for response, name in zip(responses, names, strict=True):
        is_answer = isinstance(response, str) and question and not read_cell(response, name)
        if is_answer:
            spoken.append([Turn("assistant", response)])
        else:
            spoken.append(read_turns(response, "assistant", name))

    # An answer is an answer, even if it begins with "Human:". But if all of them are transcripts
    # that begin with the question, then they repeat it.
    if question and all(isinstance(response, str) for response in responses):
        transcripts = [read_transcript(response) for response in responses]
        length = len(question)
        if all(turns[:length] == question and turns[length:] for turns in transcripts):
            spoken = transcripts

    repeated = bool(question) and all(question[-1] in turns for turns in spoken)
    return [with_prompt(before, turns, repeated) for turns in spoken]


def with_prompt(before: list[Turn], side: list[Turn], repeated: bool) -> list[Turn]:
    """A side with the prompt before it, unless the side has the prompt inside already.

    repeated: whether all sides hold the last turn of the prompt, wherever it stands.
    """
    question = [turn for turn in before if turn.role != "system"]
    body = [turn for turn in side if turn.role != "system"]
    is_answer = all(turn.role != "user" for turn in side)
    if question and is_answer:
        return before + side

    system = [turn for turn in before if turn.role == "system" and turn not in side]
    if not question or body[0] == question[0]:  # the side is the whole conversation
        return system + side
    overlapping = joined(before, side)
    if len(overlapping) < len(before) + len(side):  # it begins with the end of the prompt
        return overlapping
    starts_anew = side[0].role == "user" and question[-1].role == "user"
    if starts_anew or repeated:
        return system + side
    return before + side


def joined(before: list[Turn], after: list[Turn]) -> list[Turn]:
    """The turns of both. Those at the end of `before` that `after` repeats are said once."""
    for count in range(min(len(before), len(after)), 0, -1):
        if before[-count:] == after[:count]:
            return before + after[count:]
    return before + after


def shared_turns(sides: Sequence[Sequence[Turn]]) -> int:
    """How many turns at the beginning are the prompt: those that all sides share.

    Each side keeps a turn of its own, and the prompt does not end with a turn of the assistant.
    """
    first = sides[0]
    most = min(len(side) for side in sides) - 1
    shared = 0
    while shared < most and all(side[shared] == first[shared] for side in sides):
        shared += 1
    while shared and first[shared - 1].role == "assistant":
        shared -= 1
    return shared


def as_text(turns: Sequence[Turn], with_speakers: bool) -> str:
    """The turns as one text, with the name of the speaker before each or without."""
    if not with_speakers:
        return "\n\n".join(turn.text for turn in turns)
    speakers = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "\n\n".join(f"{speakers.get(turn.role, turn.role)}: {turn.text}" for turn in turns)


# ---- the forms of a conversation

# What the data call a user and an assistant, other than so.
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant",
         "chatgpt": "assistant", "model": "assistant"}  # fmt: skip
TEXT_KEYS = ["content", "value", "text"]  # of a message: what is said
ROLE_KEYS = {"role", "from"}  # who says it
# Speakers of transcripts. "###" may stand before their names.
SPEAKERS = [("Human", "Assistant"), ("H", "A"), ("User", "Assistant"), ("USER", "ASSISTANT")]
BLANK_LINE, LINE_END = r"\r?\n\r?\n", r"\r?\n"


def read_turns(value, role: str, name: str) -> list[Turn]:
    """The turns of a conversation in any of its forms.

    value: a string, a transcript, a message, a list of messages, or one of those as JSON.
    role: whose turn a bare string is; name: the column, for the reason of UnusableRow.
    """
    if isinstance(value, str):
        messages = read_cell(value, name)
        if not messages:
            return read_transcript(value) or [Turn(role, value)]
        value = messages
    if isinstance(value, dict):
        value = as_messages(value)
    if not isinstance(value, (list, tuple)):
        raise UnusableRow(f"`{name}` is {kind(value)}", value)
    if not value:
        raise UnusableRow(f"`{name}` is an empty list", value)
    if any(not isinstance(item, dict) for item in value):
        raise UnusableRow(f"`{name}` is a list of {kind(value[0], several=True)}", value)
    if all("type" in item and not (ROLE_KEYS & item.keys()) for item in value):
        return [Turn(role, read_content(value))]

    turns = []
    for place, message in enumerate(value):
        is_last = place == len(value) - 1
        usual_role = role if is_last else "user"  # where the data names none
        turn = read_message(message, usual_role)
        says_nothing = turn.role == "system" and not turn.text.strip()
        if not says_nothing:
            turns.append(turn)
    return turns


def as_messages(value: dict) -> list[dict]:
    """A message as a list of one; {"role": [...], "content": [...]} as a list of several."""
    columns = {key: column for key, column in value.items() if isinstance(column, list)}
    if not (ROLE_KEYS & columns.keys()):
        return [value]
    rows = zip(*columns.values(), strict=False)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def read_message(message: dict, usual_role: str) -> Turn:
    """The turn of a message. Raises UnusableRow if nothing is said in it."""
    said = [key for key in TEXT_KEYS if key in message]
    if not said:
        raise UnusableRow("`content` of a message is missing", message)
    role = str(message.get("role") or message.get("from") or usual_role)
    role = ROLES.get(role.lower(), role.lower())
    return Turn(role, read_content(message[said[0]], said[0]))


def read_content(content, name: str = "content") -> str:
    """What is said in a message: a text, or a list of parts, of which all must be text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise UnusableRow(f"`{name}` of a message is {kind(content)}", content)
    texts = []
    for part in content:
        if isinstance(part, dict):
            part_type = part.get("type")
            part = part.get("text") if part_type in (None, "text") else None
            if part is None:
                raise UnusableRow(f"a part of a message is {part_type}, not text", content)
        if not isinstance(part, str):
            raise UnusableRow(f"a part of a message is {kind(part)}", content)
        texts.append(part)
    return "\n".join(texts)


def kind(value, several: bool = False) -> str:
    """What a value is, in a user's words."""
    if isinstance(value, str):
        return "texts" if several else "a text"
    if isinstance(value, (list, tuple)):
        return "lists" if several else "a list"
    if value is None:
        return "nulls" if several else "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "numbers" if several else "a number"
    return f"objects of type {type(value).__name__}" if several else "an object"


def read_cell(text: str, name: str) -> list | dict | None:
    """The messages that a string holds as JSON or as Python writes them, as CSV cells do.

    None if it holds other text. Raises UnusableRow if it looks like messages and is cut or damaged.
    """
    first_key = r"""\[?\s*\{\s*["'](role|from|content|value)["']\s*:"""
    begins_so = re.match(first_key, text.lstrip())
    has_role = re.search(r"""["'](role|from)["']\s*:""", text)
    if not (begins_so and has_role):
        return None
    messages = read_literal(text)
    if messages is None:
        raise UnusableRow(f"`{name}` looks like a list of messages and cannot be read", text)
    return messages


def read_literal(text: str):
    """The value that a text writes down, in JSON or in Python; None if it is neither."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def read_transcript(text: str) -> list[Turn]:
    """The turns of a transcript such as HH-RLHF's, "Human: ...\\n\\nAssistant: ...".

    They are empty if the text is no transcript: it must begin with a speaker, and both must speak,
    unless there is nothing but the question after "Human:". A blank line stands before a speaker,
    or at least a line end.
    """
    text = text.strip()
    for user, assistant in SPEAKERS:
        speaker = rf"(?:### ?)?({user}|{assistant}): ?"
        if not re.match(speaker, text):
            continue
        for gap in (BLANK_LINE, LINE_END):
            nothing, *parts = re.split(gap + speaker, f"\n\n{text}")
            speakers = parts[0::2]
            texts = parts[1::2]
            if user in speakers and assistant in speakers:
                roles = {user: "user", assistant: "assistant"}
                spoken = zip(speakers, texts, strict=True)
                return [Turn(roles[name], said.strip()) for name, said in spoken]

    if text.startswith("Human:"):
        return [Turn("user", text.removeprefix("Human:").strip())]
    return []
