"""From texts to token ids, and from token ids to batches.

Training, evaluation and scoring all call the one function `encode`, so a text gets the same ids in
all three. Truncation keeps the end of the response: what does not fit is cut from the left, so the
question is lost first and, in a very long text, the beginning of the response after it. The usual
cut from the right loses the end of the response, where the result stands, and can leave the two
sides of a pair identical.

Batches are padded on the right, with a mask that marks the real tokens; the poolers read the mask.
Texts of similar length go through the encoder together, so that little of the work is padding.

Copy this file alone; it needs torch. Read next: `encoders.py`.

>>> ids, mask = pad([[5, 6, 7], [8]], pad_id=0, multiple=4)
>>> ids.tolist(), mask.tolist()
([[5, 6, 7, 0], [8, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]])
"""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Other ways to separate question and answer were worse on validation; see experiments/README.md.
TEMPLATE = "Question: {prompt}\n\nAnswer: {response}"
TEXTS_AT_ONCE = 1000  # for the tokenizer, whose own lists of ids take much memory


class Encoded(NamedTuple):
    """The token ids of U texts."""

    token_rows: list[array]  # U rows of ids, each at most `max_length` long
    cut: int  # how many of the texts were too long


def render(prompt: str, response: str, tokenizer) -> str:
    """The text an encoder reads: the tokenizer's chat template if it has one, else `TEMPLATE`."""
    if not getattr(tokenizer, "chat_template", None):
        return TEMPLATE.format(prompt=prompt, response=response)
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    # Some templates print today's date, and the reward must not change from day to day.
    return tokenizer.apply_chat_template(turns, tokenize=False, date_string="1 January 2025")


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
            text = render(prompt, response, tokenizer)
            texts.append(
                text.encode(errors="replace").decode()
            )  # half a surrogate pair becomes "?"
        whole = tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        for text, ids in zip(texts, whole, strict=True):
            if len(ids) > max_length:
                cut += 1
                ids = tokenizer(
                    text, truncation=True, max_length=max_length, add_special_tokens=special
                )["input_ids"]
            token_rows.append(compact(ids))
    return Encoded(token_rows, cut)


def compact(ids: Sequence[int]) -> array:
    """A row of token ids as an array of the smallest integers that hold them."""
    two_bytes = max(ids, default=0) < 2**16
    return array("H" if two_bytes else "i", ids)


def pad(
    token_rows: Sequence[Sequence[int]], pad_id: int, multiple: int = 8
) -> tuple[Tensor, Tensor]:
    """Pad on the right to one length: N rows -> ids (N, T) and mask (N, T), both int64.

    T is rounded up to a multiple of `multiple`. That leaves few distinct shapes, so the allocator
    and the kernels can reuse what they hold.
    """
    longest = max(len(ids) for ids in token_rows)
    length = round_up(longest, multiple)
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
    groups: Sequence[int], lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """One epoch of batches, at most `batch_size` examples each: lists of example numbers.

    groups: which group each example belongs to, such as the number of a pair's prompt.
    lengths: of each example, such as the number of tokens of its longer side.

    The examples of a group stay together as far as they fit. The pairs of a prompt share responses,
    so a batch has fewer distinct texts to encode, and all comparisons of a response enter one step
    instead of being learned by heart one by one (InstructGPT, section 3.5,
    https://arxiv.org/abs/2203.02155). Every example comes once.

    The groups are shuffled. Then as many of them as fill twenty batches are sorted by length and
    cut into batches, then the next twenty batches, and so on. At last the batches are shuffled.
    """
    members: dict[int, list[int]] = {}
    for example, group in enumerate(groups):
        members.setdefault(group, []).append(example)
    chunks = []  # of one group each, none larger than a batch
    for group in members.values():
        for start in range(0, len(group), batch_size):
            chunks.append(group[start : start + batch_size])

    def longest(chunk: list[int]) -> int:
        return max(lengths[example] for example in chunk)

    shuffled = [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]
    stretch = (
        20 * batch_size * len(chunks) // len(groups) + 1
    )  # chunks that fill twenty batches
    batches: list[list[int]] = [[]]
    for start in range(0, len(shuffled), stretch):
        for chunk in sorted(shuffled[start : start + stretch], key=longest):
            if len(batches[-1]) + len(chunk) > batch_size:
                batches.append([])
            batches[-1].extend(chunk)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
