import math

import pytest

from minirlhf import data

ROW = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}


def messages(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def one(row, **columns):
    (pair,), report = data.build_pairs([row], **columns)
    return pair, report


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        {"instruction": "2 + 2?", "chosen_response": "4", "rejected_response": "5"},
        {"chosen": messages("2 + 2?", "4"), "rejected": messages("2 + 2?", "5")},
        {
            "prompt": messages("2 + 2?"),
            "chosen": messages("2 + 2?", "4")[1:],
            "rejected": "5",
        },
        {
            "prompt": "2 + 2?",
            "chosen": messages("2 + 2?", "4"),
            "rejected": messages("2 + 2?", "5"),
        },
        {
            "chosen": "\n\nHuman: 2 + 2?\n\nAssistant: 4",
            "rejected": "\n\nHuman: 2 + 2?\n\nAssistant: 5",
        },
    ],
)
def test_layouts_give_the_same_pair(row):
    assert one(row)[0] == data.PreferencePair("2 + 2?", "4", "5")


def test_a_prompt_that_ends_where_the_assistant_begins():
    row = {"prompt": "\n\nHuman: 2 + 2?\n\nAssistant:", "chosen": "4", "rejected": "5"}
    assert one(row)[0] == data.PreferencePair("2 + 2?", "4", "5")


@pytest.mark.parametrize("inside", [False, True])
def test_a_prompt_in_its_own_column_is_said_once_and_never_lost(inside):
    def side(answer):
        turns = [
            ("assistant", "Which Bob?"),
            ("user", "Hi, I am Bob." if inside else "Bob Lee."),
        ]
        return [{"role": r, "content": t} for r, t in (*turns, ("assistant", answer))]

    pair, _ = one({"prompt": "Hi, I am Bob.", "chosen": side("4"), "rejected": side("5")})
    asked = "Assistant: Which Bob?\n\nHuman: "
    whole = f"{asked}Hi, I am Bob." if inside else f"Human: Hi, I am Bob.\n\n{asked}Bob Lee."
    assert pair[:3] == (whole, "4", "5")
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "4"},
    ]
    pair, _ = one(
        {
            "prompt": "2 + 2?",
            "chosen": turns,
            "rejected": [turns[0], turns[1] | {"content": "5"}],
        }
    )
    assert "2 + 2?" in pair.prompt


def test_several_turns_are_kept_whole():
    turns = ("hi", "hello", "2 + 2?")
    pair, _ = one({"chosen": messages(*turns, "4"), "rejected": messages(*turns, "5")})
    assert pair[:3] == ("Human: hi\n\nAssistant: hello\n\nHuman: 2 + 2?", "4", "5")
    # HH-RLHF: the two sides may part before the last turn; what follows is the response.
    chosen = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: 2 + 2?\n\nAssistant: 4"
    rejected = "\n\nHuman: hi\n\nAssistant: go away"
    pair, _ = one({"chosen": chosen, "rejected": rejected})
    assert pair.prompt == "hi"
    assert pair.chosen == "Assistant: yes?\n\nHuman: 2 + 2?\n\nAssistant: 4"
    assert pair.rejected == "go away"


def test_ratings_under_their_usual_names_and_under_others():
    for names in (
        ("chosen_rating", "rejected_rating"),
        ("score_chosen", "score_rejected"),
    ):
        pair, _ = one(ROW | dict(zip(names, ("9.5", 2), strict=True)))
        assert (pair.chosen_rating, pair.rejected_rating) == (9.5, 2.0)
    row = {"q": "2 + 2?", "good": "4", "bad": "5", "g": 3, "b": 1}
    names = {"prompt": "q", "chosen": "good", "rejected": "bad", "chosen_rating": "g"}
    pair, _ = one(row, **names, rejected_rating="b")
    assert pair == data.PreferencePair("2 + 2?", "4", "5", 3.0, 1.0)
    pair, _ = one(ROW | {"chosen_rating": math.nan, "rejected_rating": 1})
    assert pair.chosen_rating is pair.rejected_rating is None


def test_what_cannot_be_learned_from_is_dropped_and_counted():
    rows = [
        ROW,
        ROW,
        {"prompt": "a?", "chosen": "x", "rejected": "y"},
        {"prompt": "a?", "chosen": "y", "rejected": "x"},
        ROW | {"chosen": "5"},
        ROW | {"chosen": " "},
        ROW | {"rejected": None},
        ROW | {"rejected": 7},
        ROW | {"prompt": ""},
        ROW | {"prompt": "A?", "chosen": "y", "rejected": "x"},  # differs in case only
    ]
    pairs, report = data.build_pairs(rows)
    assert pairs == [data.PreferencePair("2 + 2?", "4", "5")]
    assert report["dropped"] == {
        "duplicate": 2,
        "contradiction: preferred both ways": 2,
        "chosen equals rejected": 1,
        "empty or not text": 4,
    }
    assert report["rows"] == len(pairs) + sum(report["dropped"].values())


def test_rating_ties_are_kept_and_counted():
    pairs, report = data.build_pairs([ROW | {"chosen_rating": 5, "rejected_rating": 5}])
    assert data.is_tie(pairs[0])
    assert report["rating_ties"] == 1


def test_usable_leaves_out_ties_and_where_asked_unrated_pairs():
    plain = data.PreferencePair("q", "a", "b")
    tie, rated = (
        plain._replace(chosen_rating=1, rejected_rating=1),
        plain._replace(chosen_rating=2, rejected_rating=1),
    )
    assert data.usable([plain, tie, rated]) == [plain, rated]
    assert data.usable([plain, tie, rated], rated=True) == [rated]
    assert data.usable([plain, tie, rated], rated=True, ties=True) == [tie, rated]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"text": "a", "label": 1}],
            {},
            "found: text, label.*Expected: prompt.*good row",
        ),
        (
            [ROW],
            {"chosen": "best"},
            "no column 'best'; the data has: prompt, chosen, rejected",
        ),
        ([ROW | {"chosen_rating": 1}], {}, "one side only"),
        ([], {}, "no pair is left of 0 rows"),
        ([{"chosen": "a", "rejected": "b"}], {}, "share no prompt"),
    ],
)
def test_bad_data_is_one_clear_sentence(rows, columns, message):
    with pytest.raises(ValueError, match=message):
        data.build_pairs(rows, **columns)


def many(n):
    rows = [
        {"prompt": f"What is {i} + {i}?", "chosen": str(2 * i), "rejected": side}
        for i in range(n)
        for side in ("no idea", "ask me later")
    ]
    return data.build_pairs(rows)[0]


def test_split_is_by_prompt_stable_and_every_prompt_is_tested_once():
    pairs = many(1000)
    tested = []
    for fold in range(5):
        parts = data.split(pairs, fold)
        prompts = [{pair.prompt for pair in part} for part in parts]
        assert not (
            prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2]
        )
        assert sum(map(len, parts)) == 2000
        assert [len(p) / 1000 for p in prompts] == pytest.approx([0.7, 0.1, 0.2], abs=0.04)
        tested += parts[2]
    assert sorted(tested) == sorted(pairs)
    # More rows move no prompt to another part.
    assert set(data.split(many(500), 0)[2]) <= set(data.split(pairs, 0)[2])


def test_prompts_that_differ_in_nothing_that_matters_go_together():
    assert data.normalize("What  is\nＡ?") == data.normalize("what is a?")


def test_too_few_prompts_to_split():
    with pytest.raises(ValueError, match="1 prompts are too few to split by prompt"):
        data.split(many(1))


def test_each_text_is_numbered_once():
    pairs = [data.PreferencePair("q", "a", "b", 2, 1), data.PreferencePair("q", "a", "c")]
    texts = data.number_texts(pairs, pairs[:1])
    part = data.make_part(pairs, texts)
    other = data.make_part(pairs[:1], texts)
    in_order = list(zip(texts.prompts, texts.responses, strict=True))
    assert in_order == [("q", "a"), ("q", "b"), ("q", "c")]
    assert [texts.responses[i] for i in part.chosen] == ["a", "a"]
    assert [texts.responses[i] for i in part.rejected] == ["b", "c"]
    assert part.prompt.tolist() == [0, 0]
    assert part.chosen_rating[0] == 2
    assert part.chosen_rating[1].isnan()
    assert len(other.chosen) == 1


def test_what_is_not_seen_does_not_distinguish_prompts():
    plain = data.normalize("What is 2 + 2?")
    for hidden in "\u00ad\u200b\u200d\u2060\ufeff":
        assert data.normalize(f"What is{hidden} 2 + 2?{hidden}") == plain


def test_balance_gives_every_subset_the_same_weight():
    pairs = [data.PreferencePair(str(i), "a", "b", subset="xy"[i > 7]) for i in range(10)]
    texts = data.number_texts(pairs)
    plain = data.make_part(pairs, texts)
    balanced = data.make_part(pairs, texts, balance=True)
    assert plain.weight.tolist() == [1.0] * 10
    assert balanced.weight[:8].sum() == balanced.weight[8:].sum() == 5
