import pytest
import torch
from transformers import AutoTokenizer

from minirlhf import data, tokens


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


def test_nothing_is_padded_beyond_the_limit():
    ids, mask = tokens.pad([[7] * n for n in (3, 17)], pad_id=9, limit=20)
    assert ids.shape == (2, 20)
    ids, mask = tokens.pad([[7] * 17], pad_id=9, limit=10)  # a row is never cut here
    assert ids.shape == (1, 17)


# ---- chat templates


@pytest.fixture
def chat(tiny_decoder):
    """A function that renders "a" and "b" with a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)

    def render(template: str) -> str:
        tokenizer.chat_template = template
        return tokens.render("a", "b", tokenizer)

    return render


def test_a_chat_template_prints_the_same_on_every_day(chat):
    said = chat("{{ strftime_now('%d %b %Y, %H:%M:%S.%f') }} {{ date_string }}")
    assert said == "01 Jan 2025, 00:00:00.000000 1 January 2025"
    assert (
        chat("{% if strftime_now is defined %}{{ strftime_now('%Y')|int }}{% endif %}")
        == "2025"
    )


@pytest.mark.parametrize("by_chance", ["{{ [1, 2, 3]|random }}", "{{ lipsum() }}"])
def test_a_chat_template_that_draws_lots_is_refused(by_chance, chat):
    with pytest.raises(ValueError, match="chat template cannot be used: "):
        chat(by_chance)


FOR_EVER = {
    "loops in loops": "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3,
    "loops that keep nothing": "{% for a in range(9999) %}{% for b in range(9999) if false %}"
    "{% endfor %}{% endfor %}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(99) }}",
    "a macro without an end": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a tower of powers": "{{ 9 ** 9 ** 9 }}",
    "a long product": "{{ 'a' * 999999 * 999999 }}",
}


@pytest.mark.parametrize("kind", FOR_EVER)
def test_a_chat_template_ends(kind, chat):
    with pytest.raises(
        ValueError, match="chat template cannot be used: .*(passes|beyond|depth)"
    ):
        chat(FOR_EVER[kind])


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ raise_exception('no system') }}", "no system"), ("{% bad", "unknown tag 'bad'")],
)
def test_a_chat_template_that_fails_is_one_sentence(template, reason, chat):
    with pytest.raises(ValueError, match=reason):
        chat(template)


USUAL = [
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m.content|trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
    "{%- set ns = namespace(turns=0) %}\n{%- for m in messages %}\n  "
    "{%- set ns.turns = ns.turns + 1 %}\n{%- if loop.first %}{% continue %}{% endif %}"
    "{% generation %}{{ m.content }}{% endgeneration %}\n{%- endfor %}{{ ns.turns }}"
    "{% if tools is not none %}tools{% endif %}{{ messages|tojson }}",
    "{% macro show(m) %}[{{ m.role }}]{{ m.content.split('x')[-1] }}{% endmacro %}"
    "{% for m in messages[::-1] if m.role != 'system' %}{{ show(m) }}{{ loop.index }}{% else %}none"
    "{% endfor %}{{ '=' * 3 }}{{ 2 ** 3 }}{{ dict(a=1) }}{% if documents %}{% endif %}",
]


@pytest.mark.parametrize("template", USUAL)
def test_usual_chat_templates_give_what_transformers_gives(template, chat, tiny_decoder):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer = AutoTokenizer.from_pretrained(tiny_decoder)
    expected = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False)
    assert chat(template) == expected
    assert chat(template) == expected  # the count of passes begins anew


# ---- what truncation and templates take away


def test_texts_that_lost_their_whole_question_are_counted(tokenizer):
    prompts = ["why " * 40, "why " * 40, "", "why"]
    responses = ["no", "because " * 90, "because " * 90, "no"]
    rows, cut = tokens.encode(prompts, responses, tokenizer, 40)
    assert cut == 3
    assert tokens.count_lost_questions(prompts, responses, rows, tokenizer, 40) == 1


def counts(**changes) -> dict[str, int]:
    return {"texts": 10, "texts_cut": 0, "questions_lost": 0, "same_tokens": 0} | changes


def test_a_warning_says_what_most_texts_lost_and_the_flag_to_raise():
    assert (
        tokens.describe_truncation(counts(texts_cut=5), 40)
        == "texts     10 distinct, 5 cut to 40 tokens"
    )
    said = tokens.describe_truncation(counts(texts_cut=6, questions_lost=1, same_tokens=3), 40)
    assert "3 pairs whose sides are the same tokens" in said
    assert "6 of 10 texts are cut, and 1 have lost their whole question" in said
    assert "raise --max-length above 40" in said


def test_pairs_whose_sides_became_the_same_tokens_are_dropped():
    pairs = [
        data.PreferencePair("q", "a", "b"),
        data.PreferencePair("q", "a", "c"),
        data.PreferencePair("r", "a", "b"),
    ]
    texts = data.number_texts(pairs)
    rows = {("q", "a"): [1], ("q", "b"): [1], ("q", "c"): [2], ("r", "a"): [3], ("r", "b"): [1]}
    token_rows = [rows[text] for text in texts.text_id]
    assert tokens.drop_identical_pairs(pairs, texts.text_id, token_rows) == pairs[1:]
    assert tokens.drop_identical_pairs([], texts.text_id, token_rows) == []
    with pytest.raises(ValueError, match="of all 1 pairs .* raise --max-length"):
        tokens.drop_identical_pairs(pairs[:1], texts.text_id, token_rows)


# ---- batches


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_shuffled_batches_hold_every_example_once_and_keep_prompts_together(batch_size):
    prompts = [i // 3 for i in range(203)]
    generator = torch.Generator().manual_seed(0)
    batches = tokens.shuffled_batches(prompts, batch_size, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(203))
    assert max(map(len, batches)) <= batch_size
    assert min(map(len, batches)) > 0
    if batch_size >= 3:
        homes = [{b for b, batch in enumerate(batches) if i in batch} for i in range(0, 201)]
        assert all(homes[i] == homes[i + 1] == homes[i + 2] for i in range(0, 201, 3))
    assert batches != tokens.shuffled_batches(prompts, batch_size, generator)


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
