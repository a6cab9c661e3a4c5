"""What must hold for any input, tried on inputs that nobody thought of (hypothesis)."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minirlhf import data, model, tokens
from minirlhf.pooling import POOLERS
from minirlhf.runtime.files import load_rows

# The fixtures that are not made anew for each example hold nothing that an example changes.
modest = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,  # the same examples on every machine: a failure is about the code
)

# Any Unicode text, with what the transcripts of HH-RLHF are told by, and line ends of all kinds.
piece = st.sampled_from(
    ["\n\nHuman: ", "\n\nAssistant:", "Human:", "\n", "\r\n", "\u2028", ",", '"']
)
text = (
    st.lists(st.text(max_size=8) | piece, min_size=1, max_size=5).map("".join).filter(str.strip)
)
bare = text.filter(lambda t: not re.match(r"(Human|Assistant):", t.strip()))


def is_one_turn(t):
    return not re.search(r"\n\n(Human|Assistant):", t)


# ---- data.py: the layouts of rows


def said(*texts, **more):
    """Message lists of a user and an assistant in turn."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": t} | more for i, t in enumerate(texts)]


def transcript(prompt, response):
    return f"\n\nHuman: {prompt}\n\nAssistant: {response}"


def plain(q, a, b):
    return {"prompt": q, "chosen": a, "rejected": b}


LAYOUTS = {
    "prompt and two texts": (bare, plain),
    "the other names": (
        bare,
        lambda q, a, b: {"rejected_response": b, "instruction": q, "chosen_response": a},
    ),
    "messages with the prompt inside": (
        text,
        lambda q, a, b: {"chosen": said(q, a), "rejected": said(q, b)},
    ),
    "messages without roles": (
        text,
        lambda q, a, b: {
            k: [{"content": q}, {"content": t}] for k, t in (("chosen", a), ("rejected", b))
        },
    ),
    "the prompt in messages of its own": (
        text,
        lambda q, a, b: {
            "prompt": said(q),
            "chosen": said(q, a)[1:],
            "rejected": said(q, b)[1:],
        },
    ),
    "the prompt in a column and inside": (
        text,
        lambda q, a, b: {
            "prompt": q,
            "chosen": said(q, a),
            "rejected": said(q, b, extra=1),
        },
    ),
    "transcripts": (
        text.filter(is_one_turn),
        lambda q, a, b: {"chosen": transcript(q, a), "rejected": transcript(q, b)},
    ),
    "a transcript and two texts": (
        bare.filter(is_one_turn),
        lambda q, a, b: {
            "prompt": f"Human: {q}\n\nAssistant:",
            "chosen": a,
            "rejected": b,
        },
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@modest
@given(d=st.data())
def test_every_layout_gives_the_texts_back(layout, d):
    kind, row_of = LAYOUTS[layout]
    q, a, b = (d.draw(kind) for _ in range(3))
    assume(a.strip() != b.strip())
    ((prompt, chosen, rejected, *_),), report = data.build_pairs([row_of(q, a, b)])
    if "transcript" in layout:  # its turns are told apart by white space, so theirs is none
        q = q.strip()
    if layout == "transcripts":
        a, b = a.strip(), b.strip()
    assert (prompt, chosen, rejected) == (q, a, b)
    assert report["rows"] == report["pairs"] == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
names = ["prompt", "chosen", "rejected", "chosen_rating", "rejected_rating", "subset"]
usual = [text, text, text, st.floats(), st.floats() | st.integers(), text]
any_row = st.fixed_dictionaries(
    {n: st.one_of(u, anything) for n, u in zip(names, usual, strict=True)}
)


@modest
@given(st.lists(any_row, max_size=9))
def test_of_any_rows_each_is_a_pair_or_counted(found):
    rows = [*found, plain("2 + 2?", "4", "5")]
    rows[0] = dict.fromkeys(names) | rows[0]
    pairs, report = data.build_pairs(rows)
    assert report["rows"] == len(rows)
    assert report["comparisons"] == len(pairs) + sum(report["dropped"].values())
    assert report["first_dropped"].keys() == report["dropped"].keys()
    for pair in pairs:
        assert (
            all(type(t) is str and t.strip() for t in pair[:3]) and pair.chosen != pair.rejected
        )
        assert (pair.chosen_rating is None) == (pair.rejected_rating is None)
        assert all(r is None or abs(r) < 1e9 for r in pair[3:5])


@modest
@given(st.lists(st.tuples(text, text, text), min_size=1, max_size=5))
def test_files_give_back_what_was_written(found):
    rows = [plain(*texts) for texts in found]
    Path("list.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), newline="")
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Path("lines.jsonl").write_text(lines, newline="")
    with open("table.csv", "w", newline="") as file:
        csv.writer(file).writerows([rows[0], *(row.values() for row in rows)])
    for name in ("list.json", "lines.jsonl", "table.csv"):
        assert list(load_rows(name)) == rows


# ---- data.py: the split

FIXED = [
    data.PreferencePair(f"{i} + {i}?", "a", "b") for i in range(60)
]  # so that no part is empty


def part_of(pairs, fold=0):
    """The part that each prompt is in; a prompt in two parts fails."""
    places = {}
    for name, part in zip(
        ("train", "validation", "test"), data.split(pairs, fold), strict=True
    ):
        for pair in part:
            assert places.setdefault(data.normalize(pair.prompt), name) == name
    assert places.keys() == {data.normalize(pair.prompt) for pair in pairs}
    return places


@modest
@given(prompts=st.lists(text, min_size=1, max_size=30), d=st.data())
def test_where_a_prompt_goes_depends_on_nothing_else(prompts, d):
    pairs = [data.PreferencePair(p, str(i % 3), "b") for i, p in enumerate(prompts)]
    together = part_of(FIXED + pairs)
    some = d.draw(st.permutations(pairs))[: d.draw(st.integers(1, len(pairs)))]
    assert part_of(some + FIXED).items() <= together.items()
    # Other spacing and letters of another form are the same prompt.
    varied = [p._replace(prompt=f"  {p.prompt}\t".replace("a", "\uff21")) for p in pairs]
    assert part_of(FIXED + pairs + varied) == together
    tested = [p for fold in range(5) for p in data.split(FIXED + pairs, fold)[2]]
    assert sorted(tested) == sorted(FIXED + pairs)


# ---- tokens.py


@pytest.fixture(scope="module")
def tokenizers(tiny_encoder, tiny_decoder):
    return [AutoTokenizer.from_pretrained(folder) for folder in (tiny_encoder, tiny_decoder)]


@pytest.mark.parametrize("which", [0, 1])
@modest
@given(
    found=st.lists(
        st.tuples(st.text(max_size=80), st.text(max_size=80)), min_size=1, max_size=4
    ),
    max_length=st.integers(8, 60),
)
def test_a_cut_row_is_the_end_of_the_whole_one(which, found, max_length, tokenizers):
    tokenizer, around = tokenizers[which], 1 - which  # special tokens on each side
    prompts, responses = zip(*((p, r + " END") for p, r in found), strict=True)
    whole, none_cut = tokens.encode(prompts, responses, tokenizer, 10_000)
    rows, cut = tokens.encode(prompts, responses, tokenizer, max_length)
    assert (none_cut, cut) == (0, sum(len(row) > max_length for row in whole))
    for row, full in zip(rows, whole, strict=True):
        assert len(row) == min(len(full), max_length)
        assert row[:around] == full[:around]
        assert row[around:] == full[len(full) - len(row) + around :]
        assert tokenizer.decode(row, skip_special_tokens=True).endswith("END")


@modest
@given(
    rows=st.lists(
        st.lists(st.integers(0, 599), min_size=1, max_size=40), min_size=1, max_size=9
    ),
    pad_id=st.integers(0, 599),
    multiple=st.sampled_from([1, 4, 8]),
)
def test_pad_adds_only_what_the_mask_hides(rows, pad_id, multiple):
    ids, mask = tokens.pad(rows, pad_id, multiple)
    assert [row[m].tolist() for row, m in zip(ids, mask.bool(), strict=True)] == rows
    assert (ids[mask == 0] == pad_id).all()
    assert ids.shape[1] % multiple == 0 and ids.shape[1] - max(map(len, rows)) < multiple


@modest
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    budget=st.integers(1, 300),
)
def test_batches_by_length_hold_every_row_once_within_the_budget(lengths, budget):
    batches = tokens.length_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        _, mask = tokens.pad([[0] * lengths[i] for i in batch], 0)
        assert mask.numel() <= budget or len(batch) == 1
    longest = [lengths[i] for batch in batches for i in batch]
    assert longest == sorted(lengths, reverse=True)


@modest
@given(
    groups=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 999),
)
def test_shuffled_batches_hold_every_example_once(groups, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    batches = tokens.shuffled_batches(groups, batch_size, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(len(groups)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    for group in set(groups):  # together, if they fit
        homes = [n for n, batch in enumerate(batches) if any(groups[i] == group for i in batch)]
        assert len(homes) == -(-groups.count(group) // batch_size)


# ---- model.py


@pytest.fixture(scope="module")
def built(tiny_encoder):
    built = model.build("bt-finetune", tiny_encoder, max_length=96)
    built.pad_id = 7  # what the mask does not hide would be seen in a sum
    return built


@modest
@given(
    token_rows=st.lists(
        st.lists(st.integers(0, 99), min_size=1, max_size=30), min_size=1, max_size=12
    ),
    budget=st.integers(1, 300),
)
def test_batches_answer_in_the_order_of_the_rows(token_rows, budget, built):
    def sum_of_ids(ids, mask):
        return (ids * mask).sum(1)

    sums = built.in_batches(sum_of_ids, token_rows, tokens_at_once=budget)
    assert sums.tolist() == [sum(ids) for ids in token_rows]


# ---- pooling.py


@pytest.mark.parametrize("name", POOLERS)
@modest
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    d=st.data(),
    seed=st.integers(0, 999),
)
def test_padding_on_any_side_of_any_text_changes_no_vector(name, lengths, d, seed):
    generator = torch.Generator().manual_seed(seed)
    states = [torch.randn(length, 4, generator=generator) for length in lengths]
    lone = [POOLERS[name](s[None], torch.ones(1, len(s)).long()) for s in states]
    width = max(lengths) + d.draw(st.integers(0, 6))
    hidden = 1000 * torch.randn(
        len(states), width, 4, generator=generator
    )  # noise in the padding
    mask = torch.zeros(len(states), width).long()
    for i, s in enumerate(states):  # each text at a place of its own
        start = d.draw(st.integers(0, width - len(s)))
        hidden[i, start : start + len(s)], mask[i, start : start + len(s)] = s, 1
    torch.testing.assert_close(POOLERS[name](hidden, mask), torch.cat(lone))
