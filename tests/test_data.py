import json
import math

import numpy as np
import pytest

from minirlhf import data, layouts
from minirlhf.bundled import arithmetic

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
    # Both sides in the same form: a speaker's name on one side only would tell them apart.
    assert pair.rejected == "Assistant: go away"


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
        ROW | {"prompt": "A?", "chosen": "y", "rejected": "x"},  # differs in case: another text
    ]
    pairs, report = data.build_pairs(rows)
    assert pairs == [
        data.PreferencePair("2 + 2?", "4", "5"),
        data.PreferencePair("A?", "y", "x"),
    ]
    assert report["dropped"] == {
        "duplicate": 1,
        "chosen equals rejected": 1,
        "the response in `chosen` is empty": 1,
        "`rejected` is null": 1,
        "`rejected` is a number": 1,
        "the prompt is empty": 1,
        "contradiction: preferred both ways": 2,
    }
    assert report["rows"] == len(pairs) + sum(report["dropped"].values())
    assert report["first_dropped"] == {
        "duplicate": "row 2: '2 + 2?'",
        "chosen equals rejected": "row 5: '5'",
        "the response in `chosen` is empty": "row 6: ' '",
        "`rejected` is null": "row 7: None",
        "`rejected` is a number": "row 8: 7",
        "the prompt is empty": "row 9: ''",
        "contradiction: preferred both ways": "row 3: 'a?'",
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [("5²?", "52?"), ("10⁶?", "106?"), ("1 Mm?", "1 mm?"), ("P(X<x)?", "P(x<x)?")],
)
def test_prompts_that_only_look_alike_keep_their_pairs(one, other):
    rows = [
        {"prompt": one, "chosen": "a", "rejected": "b"},
        {"prompt": other, "chosen": "a", "rejected": "b"},
        {"prompt": one, "chosen": "c", "rejected": "d"},
        {"prompt": other, "chosen": "d", "rejected": "c"},
    ]
    pairs, report = data.build_pairs(rows)
    assert len(pairs) == 4 and report["dropped"] == {}
    assert data.normalize(one) == data.normalize(other)  # the split holds them together


# ---- the forms of a conversation


def sides(chosen, rejected, **more):
    return more | {"chosen": chosen, "rejected": rejected}


def said(role, text, who="role", what="content"):
    return {who: role, what: text}


def parts(text):
    return [{"type": "text", "text": text}]


EARLIER = [("user", "Hi."), ("assistant", "Yes?")]
SEVERAL = "Human: Hi.\n\nAssistant: Yes?\n\nHuman: 2 + 2?"
SYSTEM = "System: Be brief.\n\nHuman: 2 + 2?"
HH = "\n\nHuman: Hi.\n\nAssistant: Yes?\n\nHuman: 2 + 2?\n\nAssistant:"
LIST = [said(*turn) for turn in EARLIER] + [said("user", "2 + 2?")]
GPT = [said("human", "Hi.", "from", "value"), said("gpt", "Yes?", "from", "value")]
GPT += [said("human", "2 + 2?", "from", "value")]

# Of each form: the prompt that it means, a row to train on, and the same conversation to score: its
# question, and one response for the chosen side and one for the rejected.
FORMS = {
    "strings": ("2 + 2?", ROW, "2 + 2?", "4", "5"),
    "messages": (
        SEVERAL,
        sides([*LIST, said("assistant", "4")], [*LIST, said("assistant", "5")]),
        *(LIST, [said("assistant", "4")], [said("assistant", "5")]),
    ),
    "one message a side": (
        SEVERAL,
        sides(said("assistant", "4"), said("assistant", "5"), messages=LIST),
        *({"messages": LIST}, said("assistant", "4"), said("assistant", "5")),
    ),
    "one message for a prompt": (
        "2 + 2?",
        sides("4", "5", prompt=said("user", "2 + 2?")),
        *(said("user", "2 + 2?"), "4", "5"),
    ),
    "from and value": (
        SEVERAL,
        sides(*(said("gpt", a, "from", "value") for a in "45"), conversations=GPT),
        *({"conversations": GPT}, *(said("gpt", a, "from", "value") for a in "45")),
    ),
    "content parts": (
        "2 + 2?",
        sides(*([said("user", parts("2 + 2?")), said("assistant", parts(a))] for a in "45")),
        *([said("user", parts("2 + 2?"))], *(said("assistant", parts(a)) for a in "45")),
    ),
    "a system column": (
        SYSTEM,
        sides("4", "5", system="Be brief.", question="2 + 2?"),
        *({"system": "Be brief.", "question": "2 + 2?"}, "4", "5"),
    ),
    "an instruction and its input": (
        "Add up.\n2 + 2",
        sides("4", "5", instruction="Add up.", input="2 + 2"),
        *({"instruction": "Add up.", "input": "2 + 2"}, "4", "5"),
    ),
    "earlier turns in context": (
        SEVERAL,
        sides("4", "5", context=LIST[:2], prompt="2 + 2?"),
        *({"context": LIST[:2], "prompt": "2 + 2?"}, "4", "5"),
    ),
    "history of question and answer": (
        SEVERAL,
        sides("4", "5", history=[["Hi.", "Yes?"]], instruction="2 + 2?"),
        *({"history": [["Hi.", "Yes?"]], "instruction": "2 + 2?"}, "4", "5"),
    ),
    "history in a CSV cell": (
        SEVERAL,
        sides("4", "5", history="[['Hi.', 'Yes?']]", instruction="2 + 2?"),
        *({"history": "[['Hi.', 'Yes?']]", "instruction": "2 + 2?"}, "4", "5"),
    ),
    "nothing in context": (
        "2 + 2?",
        sides("4", "5", history="[]", system="", prompt="2 + 2?"),
        *({"history": [], "prompt": "2 + 2?"}, "4", "5"),
    ),
    "a text in context": (
        "Two is 2.\n\nTwo and two?",
        sides("4", "5", context="Two is 2.", question="Two and two?"),
        *({"context": "Two is 2.", "question": "Two and two?"}, "4", "5"),
    ),
    "context alone": (
        SEVERAL,
        sides("4", "5", context=LIST),
        *({"context": LIST}, "4", "5"),
    ),
    "transcripts": (SEVERAL, sides(f"{HH} 4", f"{HH} 5"), HH, "4", "5"),
    "transcripts of Windows": (
        SEVERAL,
        sides(*(f"{HH} {a}".replace("\n", "\r\n") for a in "45")),
        *(HH.replace("\n", "\r\n"), "4", "5"),
    ),
    "transcripts of H and A": (
        SEVERAL,
        sides(*(f"{HH} {a}".replace("Human", "H").replace("Assistant", "A") for a in "45")),
        *(HH.replace("Human", "H").replace("Assistant", "A"), "4", "5"),
    ),
    "transcripts with marks": (
        SEVERAL,
        sides(*(f"{HH} {a}".replace("\n\n", "\n### ") for a in "45")),
        *(HH.replace("\n\n", "\n### "), "4", "5"),
    ),
    "messages as JSON": (
        SEVERAL,
        sides(*(json.dumps([*LIST, said("assistant", a)]) for a in "45")),
        *(json.dumps(LIST), "4", "5"),
    ),
    "messages as Python": (
        SEVERAL,
        sides("4", "5", prompt=str(LIST)),
        *(str(LIST), "4", "5"),
    ),
    "columns of messages": (
        "2 + 2?",
        sides(*({"role": ["user", "assistant"], "content": ["2 + 2?", a]} for a in "45")),
        *({"role": ["user"], "content": ["2 + 2?"]}, "4", "5"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_is_the_same_text_in_training_and_in_scoring(form):
    prompt, row, question, chosen, rejected = FORMS[form]
    pair, report = one(row)
    assert pair == data.PreferencePair(prompt, "4", "5")
    assert report["not_read"] == {}
    turns = layouts.read_question(question)
    assert layouts.write_texts(turns, [chosen, rejected]) == (prompt, ["4", "5"])
    assert layouts.write_texts(turns, [chosen]) == (prompt, ["4"])


def test_a_system_is_said_once_and_kept_where_the_prompt_is_inside():
    whole = [[said("user", "2 + 2?"), said("assistant", a)] for a in "45"]
    assert one(sides(*whole, system="Be brief."))[0].prompt == SYSTEM
    assert one(sides(*whole, system="Be brief.", prompt="2 + 2?"))[0].prompt == SYSTEM
    inside = [[said("system", "Be brief."), *turns] for turns in whole]
    assert one(sides(*inside, system="Be brief."))[0].prompt == SYSTEM
    assert one(sides(*whole, system="", prompt="2 + 2?"))[0].prompt == "2 + 2?"


def test_a_column_with_the_chosen_conversation_does_not_give_the_answer_away():
    whole = [[*LIST, said("assistant", a)] for a in "45"]
    pair, report = one(sides(*whole, prompt="2 + 2?", messages=whole[0]))
    assert pair == data.PreferencePair(SEVERAL, "4", "5")
    assert "--prompt-column" in report["not_read"]["messages"]
    pair, _ = one(sides(*whole, messages=whole[0]))
    assert pair == data.PreferencePair(SEVERAL, "4", "5")


@pytest.mark.parametrize("begins", ["Human:", "Assistant:", "Human: so?\n\nAssistant:"])
def test_with_a_prompt_column_an_answer_is_an_answer(begins):
    for answers in ((f"{begins} 4", "5"), ("4", f"{begins} 5"), (f"{begins} 4", f"{begins} 5")):
        pair, _ = one({"prompt": "2 + 2?", "chosen": answers[0], "rejected": answers[1]})
        assert pair == data.PreferencePair("2 + 2?", *answers)


def test_an_answer_that_says_what_was_said_before_is_still_an_answer():
    hello = [said("assistant", "Hello."), said("user", "Say it again.")]
    prompt = "Assistant: Hello.\n\nHuman: Say it again."
    for answer in ("Hello.", said("assistant", "Hello."), [said("assistant", "Hello.")]):
        pair, _ = one(sides(answer, "No.", prompt=hello))
        assert pair == data.PreferencePair(prompt, "Hello.", "No.")
    # One side asks the question again later; the other does not.
    again = [said("assistant", "5?"), said("user", "2 + 2?"), said("assistant", "5!")]
    pair, _ = one(sides("4", again, prompt="2 + 2?"))
    assert pair.prompt == "2 + 2?"
    assert pair.chosen == "Assistant: 4"
    assert pair.rejected == "Assistant: 5?\n\nHuman: 2 + 2?\n\nAssistant: 5!"


def test_transcripts_that_repeat_the_prompt_column():
    pair, _ = one(sides(f"{HH} 4", f"{HH} 5", prompt=HH))
    assert pair == data.PreferencePair(SEVERAL, "4", "5")


def test_each_response_of_a_list_is_compared_with_each_of_the_other_side():
    row = {"prompt": "2 + 2?", "chosen": ["4", "four"], "rejected": ["5", "6", "5"]}
    pairs, report = data.build_pairs([row])
    expected = [("4", "5"), ("4", "6"), ("four", "5"), ("four", "6")]
    assert [pair[1:3] for pair in pairs] == expected
    assert (report["rows"], report["comparisons"]) == (1, 6)
    assert report["dropped"] == {"duplicate": 2}

    messages_of_each = [[said("assistant", a)] for a in ("5", "6")]
    pairs, report = data.build_pairs([ROW | {"rejected": [*messages_of_each, None]}])
    assert [pair.rejected for pair in pairs] == ["5", "6"]
    assert report["dropped"] == {"`rejected` is null": 1}

    ratings = {"chosen_rating": 9, "rejected_rating": [1, 2]}
    pairs, _ = data.build_pairs([ROW | {"rejected": ["5", "6"]} | ratings])
    assert [pair[3:5] for pair in pairs] == [(9, 1), (9, 2)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": ["2 + 2?", "3?"]}, "`prompt` is a list of texts"),
        ({"prompt": "", "system": "Be brief."}, "the prompt is empty"),
        ({"prompt": messages("2 + 2?", "4")}, "the prompt ends with one of the responses"),
        ({"chosen": None}, "`chosen` is null"),
        ({"chosen": True}, "`chosen` is true or false"),
        ({"chosen": []}, "`chosen` is an empty list"),
        ({"chosen": [["a", "b"]]}, "`chosen` is a list of texts"),
        ({"chosen": {"role": "assistant"}}, "`content` of a message is missing"),
        ({"chosen": [said("gpt", None, "from", "value")]}, "`value` of a message is null"),
        ({"chosen": said("user", [{"type": "image_url"}])}, "a part of a message is image_url"),
        ({"chosen": said("user", [7])}, "a part of a message is a number"),
        (
            {"chosen": "[{'role': 'user', 'content': 'a'} {}]"},
            "`chosen` looks like a list of m",
        ),
    ],
)
def test_a_dropped_row_is_counted_under_its_true_reason(change, reason):
    pairs, report = data.build_pairs([ROW | {"system": None}, ROW | change])
    (counted,) = report["dropped"]
    assert counted.startswith(reason)
    assert report["first_dropped"][counted].startswith("row 2: ")


def test_what_a_row_held_is_shortened():
    _, report = data.build_pairs([ROW, ROW | {"chosen": {"x": "y" * 10_000}}])
    (held,) = report["first_dropped"].values()
    assert len(held) < 90


def test_columns_that_nobody_reads_are_named():
    more = {"question": "3?", "margin": 2, "source": "x", "score_chosen": 4.0}
    _, report = one(ROW | more)
    assert report["not_read"] == {
        "question": "--prompt-column would read it in place of prompt",
        "margin": "margins of the data are not learned from",
        "source": "",
        "score_chosen": "a rating of one side; name the other with --rejected-rating-column",
    }
    assert report["rated"] == 0
    _, report = one(ROW | {"input": "x"})
    assert report["not_read"] == {"input": "--prompt-column would read it in place of prompt"}


@pytest.mark.parametrize(
    "name", ["{}-rating", "{}_score", "score-{}", "rating {}", "{}.score", "reward_{}"]
)
def test_other_spellings_of_ratings(name):
    pair, report = one(ROW | {name.format("chosen"): 3, name.format("rejected"): 1})
    assert (pair.chosen_rating, pair.rejected_rating) == (3, 1)
    assert report["not_read"] == {}


# ---- two responses and a label: what a label means differs, so the user makes the pairs


def pairs_of_labelled(rows, first, second, prefers):
    """The lines of README: `prefers` returns 1, 2, or None for a tie."""
    made = []
    for row in rows:
        preferred = prefers(row)
        if preferred is None:  # a tie says nothing
            continue
        better, worse = (first, second) if preferred == 1 else (second, first)
        more = {name: value for name, value in row.items() if name not in (first, second)}
        made.append(more | {"chosen": row[better], "rejected": row[worse]})
    return made


def prefers_pku(row):
    return {0: 1, 1: 2}.get(row["better_response_id"])


def prefers_helpsteer3(row):  # -3 ... 3: below zero, the first is better
    overall = row["overall_preference"]
    return None if overall == 0 else 1 if overall < 0 else 2


def prefers_shp(row):
    return 1 if row["labels"] == 1 else 2


def prefers_arena(row):
    return {"model_a": 1, "model_b": 2}.get(row["winner"])


def prefers_webgpt(row):
    return None if row["score_0"] == row["score_1"] else 1 if row["score_0"] > 0 else 2


QUESTION = [said("user", "2 + 2?")]
LABELLED = {  # two responses, who prefers, and labels: the first is better, the second, a tie
    "PKU-SafeRLHF": (
        *("response_0", "response_1", prefers_pku, {"prompt": "2 + 2?"}, "4", "5"),
        *({"better_response_id": 0}, {"better_response_id": 1}, {"better_response_id": -1}),
    ),
    "HelpSteer3": (
        *("response1", "response2", prefers_helpsteer3, {"context": QUESTION}, "4", "5"),
        *({"overall_preference": -2}, {"overall_preference": 1}, {"overall_preference": 0}),
    ),
    "SHP": (
        *("human_ref_A", "human_ref_B", prefers_shp, {"history": "2 + 2?"}, "4", "5"),
        *({"labels": 1}, {"labels": 0}, None),
    ),
    "arena": (
        *("conversation_a", "conversation_b", prefers_arena, {}),
        *([*QUESTION, said("assistant", "4")], [*QUESTION, said("assistant", "5")]),
        *({"winner": "model_a"}, {"winner": "model_b"}, {"winner": "tie (bothbad)"}),
    ),
    "WebGPT": (
        *("answer_0", "answer_1", prefers_webgpt, {"question": "2 + 2?"}, "4", "5"),
        *({"score_0": 1, "score_1": -1}, {"score_0": -1, "score_1": 1}),
        {"score_0": 0, "score_1": 0},
    ),
}


@pytest.mark.parametrize("name", LABELLED)
def test_two_responses_and_a_label_become_pairs_by_a_few_lines(name):
    first, second, prefers, question, four, five, *labels = LABELLED[name]
    rows = [
        question | {first: four, second: five} | labels[0],
        question | {first: five, second: four} | labels[1],
    ]
    if labels[2]:
        rows.append(question | {first: "3", second: four} | labels[2])
    with pytest.raises(
        ValueError, match=f"Of {first} and {second}, make the one that the label"
    ):
        data.build_pairs(rows)
    pairs, report = data.build_pairs(pairs_of_labelled(rows, first, second, prefers))
    assert pairs == [data.PreferencePair("2 + 2?", "4", "5")]
    assert report["dropped"] == {"duplicate": 1}


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
        (
            [ROW | {"chosen_rating": 1}],
            {"chosen_rating": "chosen_rating"},
            "ratings for one side only",
        ),
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


def test_a_list_of_one_response_keeps_the_rating_of_its_list():
    row = {"prompt": "2 + 2?", "chosen": ["4"], "chosen_rating": [5.0]}
    row |= {"rejected": ["5", "6"], "rejected_rating": [1.0, 2.0]}
    pairs, _ = data.build_pairs([row])
    ratings = [(pair.chosen_rating, pair.rejected_rating) for pair in pairs]
    assert ratings == [(5.0, 1.0), (5.0, 2.0)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "side": [("system", "S"), ("user", "q"), ("assistant", "{}")]},
        {
            "prompt": "q2",
            "side": [("user", "q1"), ("assistant", "x"), ("user", "q2"), ("assistant", "{}")],
        },
    ],
)
def test_a_response_that_repeats_the_conversation_is_the_same_text_alone(row):
    """The prompt column holds the last question only, and each side the whole conversation."""
    a, b = (
        [{"role": role, "content": text.format(answer)} for role, text in row["side"]]
        for answer in ("one", "two")
    )
    question = layouts.read_question(row["prompt"])
    prompt, texts = layouts.write_texts(question, [a, b])
    assert texts == ["one", "two"]
    assert layouts.write_texts(question, [a]) == (prompt, ["one"])


def test_a_sample_has_whole_prompts_from_everywhere():
    prompts = [f"prompt {i // 4}" for i in range(4000)]
    some = data.sample_by_prompt(prompts, 500)
    assert len(some) == 500
    assert some == sorted(some)
    taken = {prompts[i] for i in some}
    assert [i for i, prompt in enumerate(prompts) if prompt in taken] == some  # whole prompts
    places = np.array(some) / len(prompts)
    assert places.min() < 0.01 and places.max() > 0.98
    assert np.diff(places).max() < 0.01


def test_a_small_part_is_its_own_sample():
    assert data.sample_by_prompt(["a", "b", "a"], 500) == [0, 1, 2]
    assert data.sample_by_prompt([], 500) == []


def test_training_accuracy_is_counted_on_some_of_the_training_pairs():
    pairs, _ = data.build_pairs(arithmetic.generate(2000))
    parts = data.split_usable(pairs, fold=0)
    assert 300 < len(parts.train_sample) < 700 < len(parts.train)
    assert set(parts.train_sample) < set(parts.train)


def test_a_sample_of_few_large_prompts_is_not_of_one_prompt():
    prompts = [f"prompt {i // 1000}" for i in range(5000)]
    some = data.sample_by_prompt(prompts, 500)
    assert len(some) == 500
    assert len({prompts[i] for i in some}) == 5


def test_one_large_prompt_does_not_fill_a_sample():
    prompts = ["large"] * 3000 + [f"prompt {i}" for i in range(3000)]
    some = data.sample_by_prompt(prompts, 500)
    assert sum(prompts[i] == "large" for i in some) <= 20
