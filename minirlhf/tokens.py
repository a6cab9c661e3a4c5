"""From texts to token ids, and from token ids to batches.

Training, evaluation and scoring all call the one function `encode`, so a text gets the same ids in
all three. Truncation keeps the end of the response: what does not fit is cut from the left, so the
question is lost first and, in a very long text, the beginning of the response after it. The usual
cut from the right loses the end of the response, where the result stands, and can leave the two
sides of a pair identical.

Batches are padded on the right, with a mask that marks the real tokens; the poolers read the mask.
Texts of similar length go through the encoder together, so that little of the work is padding.

A tokenizer's chat template is a program, and its author may be a stranger. So it is rendered within
bounds, and it prints the same on every day.

Copy this file alone; it needs torch, and transformers where a tokenizer has a chat template. Read
next: `encoders.py`.

>>> ids, mask = pad([[5, 6, 7], [8]], pad_id=0, multiple=4)
>>> ids.tolist(), mask.tolist()
([[5, 6, 7, 0], [8, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]])
"""

import datetime
import operator
from array import array
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# Other ways to separate question and answer were worse on validation; see experiments/README.md.
TEMPLATE = "Question: {prompt}\n\nAnswer: {response}"
TEXTS_AT_ONCE = 1000  # for the tokenizer, whose own lists of ids take much memory

# The day on which every chat template is rendered: a reward must not change from day to day.
DAY = datetime.datetime(2025, 1, 1)
MOST_PASSES = 10_000  # through the loops of a chat template; two turns take a handful
LARGEST = 10**6  # number that a chat template may compute, or text that it may repeat


class Encoded(NamedTuple):
    """The token ids of U texts."""

    token_rows: list[array]  # U rows of ids, each at most `max_length` long
    cut: int  # how many of the texts were too long


def render(prompt: str, response: str, tokenizer) -> str:
    """The text an encoder reads: the tokenizer's chat template if it has one, else `TEMPLATE`."""
    if not getattr(tokenizer, "chat_template", None):
        return TEMPLATE.format(prompt=prompt, response=response)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return fill_template(turns, tokenizer)


def fill_template(
    turns: list[dict[str, str]], tokenizer, add_generation_prompt: bool = False
) -> str:
    """The turns of a conversation as the tokenizer's chat template writes them.

    turns: dictionaries with a "role" and a "content".
    add_generation_prompt: end with what stands before an answer, so that a policy can write one.
    Raises ValueError if the template fails or does not end.
    """
    try:
        template = bounded_template(tokenizer.get_chat_template())
        template.environment.passes = 0
        return template.render(
            messages=turns,
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            date_string="1 January 2025",
            **tokenizer.special_tokens_map,
        )
    except Exception as error:  # a stranger's template may do anything
        reason = str(error) or type(error).__name__
        raise ValueError(f"the tokenizer's chat template cannot be used: {reason}") from error


# ---- chat templates


@lru_cache
def bounded_template(source: str):
    """A chat template as a jinja2 template that ends, and that prints the same on every day.

    source: the template's text. What it sees is what transformers' `apply_chat_template` shows it,
    and it runs in the same sandbox. But the sandbox lets loops inside of loops run for ever, and
    gives templates the day (`strftime_now`) and chance (`random`, `lipsum`). Here the passes
    through all loops and macros are counted, the day is `DAY`, and there is no chance.
    Set `environment.passes` to 0 before each rendering.
    """
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment = _compile_jinja_template("").environment.overlay()
    environment.globals = {**environment.globals, "strftime_now": strftime_on_the_day}
    del environment.globals["lipsum"]
    environment.filters = dict(environment.filters)
    del environment.filters["random"]
    environment.intercepted_binops = frozenset(["*", "**"])
    environment.binop_table = {**environment.binop_table, "*": multiply, "**": power}

    def count_pass() -> bool:
        environment.passes += 1
        if environment.passes > MOST_PASSES:
            raise ValueError(f"its loops take more than {MOST_PASSES:,} passes")
        return True

    environment.count_pass = count_pass
    tree = environment.parse(source)
    for block in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        call = nodes.Call(nodes.EnvironmentAttribute("count_pass"), [], [], None, None)
        block.body.insert(0, nodes.ExprStmt(call))
        if isinstance(block, nodes.For) and block.test is not None:
            block.test = nodes.And(call, block.test)
    tree.set_environment(environment)
    code = environment.compile(tree)
    shared = environment.make_globals(None)
    return environment.template_class.from_code(environment, code, shared)


def strftime_on_the_day(format: str) -> str:
    """What `strftime_now` of a chat template prints: always the same day."""
    return DAY.strftime(format)


def multiply(left, right):
    """`left * right` for a chat template; `"ab" * 3` is "ababab". Raises ValueError if large."""
    sizes = [len(side) if hasattr(side, "__len__") else abs(side) for side in (left, right)]
    if sizes[0] * sizes[1] > LARGEST:
        raise ValueError(f"it multiplies beyond {LARGEST:,}")
    return operator.mul(left, right)


def power(left, right):
    """`left ** right` for a chat template. Raises ValueError if large."""
    if abs(left) > LARGEST or abs(right) > 64:
        raise ValueError(f"it multiplies beyond {LARGEST:,}")
    return operator.pow(left, right)


# ---- token ids


def encode(
    prompts: Sequence[str], responses: Sequence[str], tokenizer, max_length: int
) -> Encoded:
    """Token ids of each (prompt, response), cut from the left to at most `max_length`.

    `tokenizer` is one of `transformers`. A row of ids is an `array` of integers of 2 bytes, or of 4
    where an id needs them, because a Python list would take many times the memory.
    """
    # A chat template writes its own special tokens; adding them again would double the first one.
    special = not getattr(tokenizer, "chat_template", None)
    tokenizer.truncation_side = "left"
    token_rows = []
    cut = 0
    for start in range(0, max(len(prompts), len(responses)), TEXTS_AT_ONCE):
        some = slice(start, start + TEXTS_AT_ONCE)
        texts = []
        for prompt, response in zip(prompts[some], responses[some], strict=True):
            texts.append(without_surrogates(render(prompt, response, tokenizer)))
        whole = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) > max_length:
                cut += 1
                ids = tokenizer(
                    text, truncation=True, max_length=max_length, add_special_tokens=special
                )["input_ids"]
            token_rows.append(compact(ids))
    return Encoded(token_rows, cut)


def without_surrogates(text: str) -> str:
    """The text with "?" for half a surrogate pair, which no tokenizer takes."""
    return text.encode(errors="replace").decode()


def count_lost_questions(
    prompts: Sequence[str],
    responses: Sequence[str],
    token_rows: Sequence[Sequence[int]],
    tokenizer,
    max_length: int,
) -> int:
    """How many of U texts were cut so much that nothing of their question is left.

    The response fills such a text: even without a question, it would be `max_length` long.
    token_rows: what `encode` made of the texts.
    """
    special = not getattr(tokenizer, "chat_template", None)
    lost = 0
    for prompt, response, ids in zip(prompts, responses, token_rows, strict=True):
        if len(ids) < max_length or not prompt:
            continue
        alone = without_surrogates(render("", response, tokenizer))
        row = tokenizer(alone, add_special_tokens=special, verbose=False)["input_ids"]
        if len(row) >= max_length:
            lost += 1
    return lost


def describe_truncation(counts: dict[str, int], max_length: int) -> str:
    """What became of some texts as tokens; with a warning where most of them lost something.

    counts: `texts`, how many there are; `texts_cut`, how many were too long; `questions_lost`, how
    many lost their whole question; `same_tokens`, of how many pairs both sides became the same.
    """
    texts = counts["texts"]
    cut = counts["texts_cut"]
    lost = counts["questions_lost"]
    lines = [f"texts     {texts:,} distinct, {cut} cut to {max_length} tokens"]
    if counts["same_tokens"]:
        lines.append(f"dropped   {counts['same_tokens']} pairs whose sides are the same tokens")
    if max(cut, lost) > texts / 2:
        lines.append(
            f"WARNING   {cut:,} of {texts:,} texts are cut, and {lost:,} have lost their whole "
            f"question; raise --max-length above {max_length}"
        )
    return "\n".join(lines)


def drop_identical_pairs(
    pairs: Sequence, text_id: dict[tuple[str, str], int], token_rows: Sequence
) -> list:
    """The pairs whose two sides are different token rows; the others show no model any difference.

    Two responses become one text where a chat template drops what they differ in, or where it is
    cut off. text_id: the number of each (prompt, response), as `data.number_texts` gives it.
    Raises ValueError if no pair is left.
    """
    kept = []
    for pair in pairs:
        chosen = token_rows[text_id[pair.prompt, pair.chosen]]
        rejected = token_rows[text_id[pair.prompt, pair.rejected]]
        if list(chosen) != list(rejected):
            kept.append(pair)
    if pairs and not kept:
        raise ValueError(
            f"the two sides of all {len(pairs)} pairs become the same tokens, so no model can tell "
            "them apart; raise --max-length, or take a model without a chat template"
        )
    return kept


def compact(ids: Sequence[int]) -> array:
    """A row of token ids as an array of the smallest integers that hold them."""
    two_bytes = max(ids, default=0) < 2**16
    return array("H" if two_bytes else "i", ids)


def pad(
    token_rows: Sequence[Sequence[int]],
    pad_id: int,
    multiple: int = 8,
    limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Pad on the right to one length: N rows -> ids (N, T) and mask (N, T), both int64.

    T is rounded up to a multiple of `multiple`, but not beyond `limit`, because a model may have no
    position for a PAD token there. That leaves few distinct shapes, so the allocator and the
    kernels can reuse what they hold.
    """
    longest = max(len(ids) for ids in token_rows)
    length = round_up(longest, multiple)
    if limit is not None:
        length = max(longest, min(length, limit))
    ids = torch.full((len(token_rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(token_rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below the number: 9 becomes 16 if the multiple is 8."""
    return (number + multiple - 1) // multiple * multiple


def length_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Batches of rows of similar length, the longest first: lists of row numbers.

    lengths: of each row, in tokens; budget: how many padded tokens a batch may have.
    The longest come first so that memory peaks, and fails if it must, in the first batch.
    """
    longest_first = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[list[int]] = []
    for row in longest_first:
        if batches:
            batch = batches[-1]
            longest = lengths[batch[0]]
            padded = (len(batch) + 1) * (longest + 7)  # `pad` adds up to 7 to round up
            if padded <= budget:
                batch.append(row)
                continue
        batches.append([row])
    return batches


def shuffled_batches(
    groups: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """One epoch of batches, at most `batch_size` examples each: lists of example numbers.

    groups: which group each example belongs to, such as the number of a pair's prompt.

    The groups are shuffled, and the examples of a group stay together as far as they fit. The pairs
    of a prompt share responses, so a batch has fewer distinct texts to encode, and all comparisons
    of a response enter one step instead of being learned by heart one by one (InstructGPT, section
    3.5, https://arxiv.org/abs/2203.02155). Every example comes once.
    """
    members: dict[int, list[int]] = {}
    for example, group in enumerate(groups):
        members.setdefault(group, []).append(example)
    chunks = []  # of one group each, none larger than a batch
    for group in members.values():
        for start in range(0, len(group), batch_size):
            chunks.append(group[start : start + batch_size])

    batches: list[list[int]] = [[]]
    for i in torch.randperm(len(chunks), generator=generator).tolist():
        if len(batches[-1]) + len(chunks[i]) > batch_size:
            batches.append([])
        batches[-1].extend(chunks[i])
    return batches
