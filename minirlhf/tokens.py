"""From text to token ids, and from ids to batches: stage 2 of the data's path.

One `encode` serves training, evaluation and scoring, so a text gets the same ids in all three.
Truncation keeps the response: what does not fit is cut from the left, the question first, then the
beginning of the response. The usual cut from the right takes the end of the answer, where the
result stands, and can leave the two sides of a pair identical.

Batches are padded on the right, with the mask beside the ids; the poolers read the mask. Texts of
like length go together, so that little of the work is padding.

Copy this file alone; it needs torch only. Read next: `encoders.py`.

>>> ids, mask = pad([[5, 6, 7], [8]], pad_id=0, multiple=4)
>>> ids.tolist(), mask.tolist()
([[5, 6, 7, 0], [8, 0, 0, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]])
"""

from array import array
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TEMPLATE = "Question: {prompt}\n\nAnswer: {response}"


def render(prompt: str, response: str, tokenizer) -> str:
    """The text an encoder reads: the tokenizer's chat template if it has one, else `TEMPLATE`."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        # Some templates print today's date, and the reward must not change from day to day.
        return tokenizer.apply_chat_template(turns, tokenize=False, date_string="1 January 2025")
    return TEMPLATE.format(prompt=prompt, response=response)


def encode(
    prompts: Sequence[str], responses: Sequence[str], tokenizer, max_length: int
) -> tuple[list[array], int]:
    """Token ids of each (prompt, response), at most `max_length` each, and how many were cut.

    `tokenizer` is a `transformers` tokenizer. A row is an `array` of 4-byte integers: a list of
    Python's own integers would take eight times the memory.
    """
    texts = [render(*pair, tokenizer) for pair in zip(prompts, responses, strict=True)]
    # A chat template writes its own special tokens; adding them again would double the first one.
    special = not getattr(tokenizer, "chat_template", None)
    tokenizer.truncation_side = "left"
    rows = []
    for start in range(0, len(texts), 1000):
        batch = tokenizer(texts[start : start + 1000], add_special_tokens=special, verbose=False)
        rows += [array("i", ids) for ids in batch["input_ids"]]
    cut = [i for i, ids in enumerate(rows) if len(ids) > max_length]
    fit = {"truncation": True, "max_length": max_length, "add_special_tokens": special}
    for i in cut:
        rows[i] = array("i", tokenizer(texts[i], **fit)["input_ids"])
    return rows, len(cut)


def pad(rows: Sequence[Sequence[int]], pad_id: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Right-pad to one length: N rows -> ids (N, T) and mask (N, T), both int64.

    T is rounded up to a multiple of 8: few distinct shapes, so the allocator and the kernels can
    reuse what they hold.
    """
    longest = max(len(row) for row in rows)
    length = -(-longest // multiple) * multiple
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def map_batches(
    function: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device | str = "cpu",
    tokens: int = 8192,
    progress: Callable = lambda batches, name: batches,
) -> Tensor:
    """Apply `function(ids, mask)` to all rows without gradient and return its results in row order.

    Rows are taken longest first, as many at a time as fill `tokens` padded tokens, so memory peaks
    (and fails, if it must) in the first batch. `progress` may wrap the iteration, as tqdm does.
    Returns one float32 tensor on the CPU, (N,) or (N, D).
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    batches: list[list[int]] = []
    for i in order:  # a batch's first row is its longest; + 7, since `pad` rounds up to 8
        if not batches or (len(batches[-1]) + 1) * (len(rows[batches[-1][0]]) + 7) > tokens:
            batches.append([])
        batches[-1].append(i)
    results = []
    with torch.inference_mode():
        for batch in progress(batches, "encoding"):
            ids, mask = pad([rows[i] for i in batch], pad_id)
            results.append(function(ids.to(device), mask.to(device)).float().cpu())
    # clone: a tensor made in inference mode cannot enter a graph that is trained
    return torch.cat(results)[torch.tensor(order).argsort()].clone()


def bucketed_batches(
    lengths: Sequence[int],
    groups: Sequence[int],
    batch_size: int,
    generator: torch.Generator,
    window: int = 20,
) -> list[list[int]]:
    """One epoch of shuffled batches, at most `batch_size` examples each: lists of indices.

    Examples of one group (the pairs of one prompt) stay together as far as they fit: they share
    responses, so a batch has fewer distinct texts to encode, and the comparisons of one response
    are averaged into one step instead of being learned by heart one by one (InstructGPT, section
    3.5, https://arxiv.org/abs/2203.02155). Groups are shuffled; within each window of `window`
    batches they are sorted by length; the batches are shuffled again. Every example comes once.
    """
    members: dict[int, list[int]] = {}
    for example, group in enumerate(groups):
        members.setdefault(group, []).append(example)
    chunks = [m[i : i + batch_size] for m in members.values() for i in range(0, len(m), batch_size)]
    chunks = [chunks[i] for i in torch.randperm(len(chunks), generator=generator).tolist()]
    batches: list[list[int]] = []
    while chunks:
        count, near = 0, []
        while chunks and count < window * batch_size:
            near.append(chunks.pop())
            count += len(near[-1])
        batch: list[int] = []
        for chunk in sorted(near, key=lambda chunk: max(lengths[i] for i in chunk)):
            if len(batch) + len(chunk) > batch_size:
                batches.append(batch)
                batch = []
            batch = batch + chunk
        batches.append(batch)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
