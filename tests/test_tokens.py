import pytest
import torch
from transformers import AutoTokenizer

from minirlhf import tokens


@pytest.fixture
def tokenizer(tiny_encoder):
    return AutoTokenizer.from_pretrained(tiny_encoder)


def test_encode_is_what_the_tokenizer_says(tokenizer):
    rows, cut = tokens.encode(["2 + 2?"], ["4"], tokenizer, 128)
    assert list(rows[0]) == tokenizer("Question: 2 + 2?\n\nAnswer: 4")["input_ids"]
    assert cut == 0


def test_truncation_cuts_the_question_first_and_keeps_the_end(tokenizer):
    prompt, response = "why " * 60, "because " * 5 + "so the result is 42"
    (row,), cut = tokens.encode([prompt], [response], tokenizer, 40)
    assert (len(row), cut) == (40, 1)
    text = tokenizer.decode(row, skip_special_tokens=True)
    assert text.endswith(response)
    assert row[0] == tokenizer.cls_token_id
    assert row[-1] == tokenizer.sep_token_id
    # A response that is too long by itself loses its beginning, so two answers that differ only
    # at the end stay different.
    long = "step " * 80
    rows, cut = tokens.encode(["why"] * 2, [long + "yes", long + "no"], tokenizer, 40)
    assert cut == 2
    assert rows[0] != rows[1]


def test_a_chat_template_is_used_and_its_special_tokens_are_not_doubled(tiny_decoder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    tokenizer.chat_template = (
        "{{ eos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    )
    assert tokens.render("a", "b", tokenizer) == "<|endoftext|><user>a<assistant>b"
    rows, _ = tokens.encode(["a"], ["b"], tokenizer, 64)
    assert list(rows[0]).count(tokenizer.eos_token_id) == 1


def test_pad_is_on_the_right_and_shapes_are_few():
    ids, mask = tokens.pad([[7] * n for n in (3, 17)], pad_id=9)
    assert ids.shape == mask.shape == (2, 24)
    assert ids[0].tolist() == [7] * 3 + [9] * 21
    assert mask.sum(1).tolist() == [3, 17]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_shuffled_batches_hold_every_example_once_and_keep_prompts_together(batch_size):
    prompts = [i // 3 for i in range(203)]
    lengths = torch.randint(5, 200, (203,)).tolist()
    generator = torch.Generator().manual_seed(0)
    batches = tokens.shuffled_batches(prompts, lengths, batch_size, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(203))
    assert max(map(len, batches)) <= batch_size
    assert min(map(len, batches)) > 0
    if batch_size >= 3:
        homes = [{b for b, batch in enumerate(batches) if i in batch} for i in range(0, 201)]
        assert all(homes[i] == homes[i + 1] == homes[i + 2] for i in range(0, 201, 3))
    assert batches != tokens.shuffled_batches(prompts, lengths, batch_size, generator)


def test_a_batch_holds_pairs_of_like_length():
    prompts = [i // 3 for i in range(1500)]
    lengths = torch.randint(5, 200, (500,)).repeat_interleave(3).tolist()  # alike for a prompt
    generator = torch.Generator().manual_seed(0)
    batches = tokens.shuffled_batches(prompts, lengths, 30, generator)
    spread = sum(max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in batches)
    assert spread / len(batches) < 20  # at random about 160
    starts = [min(lengths[i] for i in b) for b in batches]
    assert starts != sorted(starts)


def test_texts_of_like_length_go_together_and_save_padding():
    lengths = torch.randint(5, 200, (60,)).tolist()  # those of one batch of pairs
    batches = tokens.length_batches(lengths, 1024)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    waste = sum(max(lengths[i] for i in b) * len(b) for b in batches) / sum(lengths)
    assert waste < 1.2  # in one forward of all 60 texts it is about 2


def test_an_id_beyond_two_bytes_is_kept():
    class Tokenizer:
        def __call__(self, texts, **_):
            return {"input_ids": [[1, 2], [1, 70_000]]}

    rows, _ = tokens.encode(["a", "b"], ["c", "d"], Tokenizer(), max_length=8)
    assert [list(row) for row in rows] == [[1, 2], [1, 70_000]]
    assert tokens.pad(rows, 0, multiple=1)[0].tolist() == [[1, 2], [1, 70_000]]
