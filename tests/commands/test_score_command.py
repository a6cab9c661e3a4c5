"""The command `score`: one prompt, or a file of them, line by line."""

import json
import os
from pathlib import Path

import pytest
from test_data import EARLIER, FORMS, LIST
from test_score import PROMPT, RESPONSES, write_run

import minirlhf
from minirlhf import data
from minirlhf.approaches import STEPS
from minirlhf.commands import score

GOOD_LINE = json.dumps({"prompt": PROMPT, "response": "4"})


@pytest.fixture(scope="module")
def runs(tiny_encoder, tmp_path_factory) -> dict[str, str]:
    """A run folder of each approach."""
    folder = tmp_path_factory.mktemp("runs")
    return {a: str(write_run(folder / a, a, tiny_encoder)) for a in STEPS}


def rows_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def refused(*flags: str) -> None:
    """The command ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        score.main([*flags, "--device", "cpu"])
    assert stopped.value.code == 2


def test_the_responses_to_a_prompt_are_ranked(runs, capsys):
    flags = ["--prompt", PROMPT, "--response", "4", "--response", "5", "--device", "cpu"]
    for approach, title in (("bt-frozen", "  reward"), ("classification", "win rate")):
        score.main([runs[approach], *flags])
        head, *lines = capsys.readouterr().out.splitlines()
        assert head == f"{title}  response"
        ranked = minirlhf.load(runs[approach], "cpu").rank(PROMPT, ["4", "5"])
        assert lines == [f"{number:8.3f}  {text}" for number, text in ranked]


def test_a_file_is_scored_line_by_line(runs, capfd):
    rows = [{"prompt": PROMPT, "response": r, "id": i} for i, r in enumerate(RESPONSES)]
    rows.append({"prompt": PROMPT, "responses": RESPONSES})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = runs["bt-frozen"]
    score.main([run, "--input", "rows.jsonl", "--output", "scored.jsonl", "--device", "cpu"])
    scored = rows_of(Path("scored.jsonl").read_text())
    expected = minirlhf.load(run, "cpu").score_many([PROMPT] * 3, RESPONSES)
    assert [row.pop("score") for row in scored[:3]] == pytest.approx(expected, abs=1e-5)
    assert scored[3].pop("scores") == pytest.approx(expected, abs=1e-5)
    assert scored == rows
    assert capfd.readouterr().out == ""

    # A file that exists is not replaced.
    refused(run, "--input", "rows.jsonl", "--output", "scored.jsonl")
    assert "scored.jsonl" in capfd.readouterr().err

    # To the screen.
    score.main([run, "--input", "rows.jsonl", "--device", "cpu"])
    assert len(rows_of(capfd.readouterr().out)) == 4


@pytest.mark.parametrize("form", FORMS)
def test_a_line_may_have_any_form_that_training_reads(form):
    _, row, question, *sides = FORMS[form]
    (pair,), _ = data.build_pairs([row])
    is_row = isinstance(question, dict) and not {"role", "content"} & question.keys()
    columns = question if is_row else {"prompt": question}
    read = score.read_line(json.dumps(columns | {"responses": sides}), compares=True)
    assert (read.prompt, *read.responses) == pair[:3]
    read = score.read_line(json.dumps(columns | {"response": sides[0]}), compares=False)
    assert (read.prompt, *read.responses) == pair[:2]


def test_a_whole_conversation_is_scored_by_what_comes_last(runs):
    answer = {"role": "assistant", "content": "4"}
    scorer = minirlhf.load(runs["bt-frozen"], "cpu")
    lines = [json.dumps({"messages": [*LIST, answer]}), json.dumps({"messages": LIST})]
    found = score.score_lines(scorer, lines, keep_going=True)
    assert next(found)["score"] == pytest.approx(scorer.score(LIST, "4"), abs=1e-6)
    assert "needs prompt and response" in next(found).reason
    assert EARLIER[0][1] in score.read_line(lines[0], compares=False).prompt


BAD = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ('{"prompt": "a", "answer": "b"}', "has prompt, answer"),
    ('{"prompt": "a", "responses": "b"}', "not a list"),
    ('{"prompt": "a", "responses": []}', "not a list"),
    ('{"prompt": "a", "response": null}', "must be text"),
    ('{"prompt": 3, "response": "b"}', "must be text"),
    ('{"prompt": 3, "response": "b"}', "`prompt` is a number"),
    ('{"prompt": [{"role": "user"}], "response": "b"}', "`content` of a message is missing"),
    ('{"messages": [{"role": "user", "content": "a"}]}', "has messages"),
    ('{"prompt": "a", "response": ' + "[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_named_by_its_number(line, reason, runs, capfd):
    Path("rows.jsonl").write_text(f"{GOOD_LINE}\n{line}\n{GOOD_LINE}\n")
    flags = [runs["bt-frozen"], "--input", "rows.jsonl"]
    refused(*flags)
    said = capfd.readouterr().err
    assert "line 2: " in said
    assert reason in said
    assert len(said.strip().splitlines()) == 1

    score.main([*flags, "--keep-going", "--device", "cpu"])
    out, said = capfd.readouterr()
    assert len(rows_of(out)) == 2
    assert "line 2: " in said
    assert "1 lines" in said


@pytest.mark.parametrize(
    "more", [["--output", "o"], ["--keep-going"], ["--input", "rows.jsonl"]]
)
def test_flags_that_would_do_nothing_are_refused(more, capsys):
    refused("runs/x", "--prompt", "2 + 2?", "--response", "4", *more)
    assert "--input" in capsys.readouterr().err


def test_a_classification_compares_lines_and_does_not_score_them(runs):
    scorer = minirlhf.load(runs["classification"], "cpu")
    lines = [json.dumps({"prompt": PROMPT, "responses": RESPONSES})]
    (row,) = score.score_lines(scorer, lines)
    assert sum(row["scores"]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"line 1: a classification compares"):
        list(score.score_lines(scorer, [GOOD_LINE]))


def test_lines_are_read_as_they_are_needed(runs):
    scorer = minirlhf.load(runs["bt-frozen"], "cpu")
    taken = []

    def lines():
        for i in range(10**9):
            taken.append(i)
            yield json.dumps({"prompt": PROMPT, "response": str(i % 7)})

    scored = score.score_lines(scorer, lines())
    assert len([next(scored) for _ in range(300)]) == 300
    assert len(taken) <= 1024


def test_standard_input_is_read(runs, capfd):
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write(GOOD_LINE + "\n")
    kept = os.dup(0)
    os.dup2(read, 0)
    try:
        score.main([runs["bt-frozen"], "--input", "-", "--device", "cpu"])
    finally:
        os.dup2(kept, 0)
    assert rows_of(capfd.readouterr().out)[0]["prompt"] == PROMPT


@pytest.mark.parametrize(
    "flags", [[], ["--prompt", "a"], ["--prompt", "a", "--response", "b", "--input", "c"]]
)
def test_either_a_prompt_or_a_file(flags, capsys):
    refused("run", *flags)
    assert "--input" in capsys.readouterr().err


def test_one_bad_byte_is_one_bad_line(runs, capfd):
    """A BOM is no part of the text, half a surrogate pair is scored, lines keep their numbers."""
    byte_order_mark = b"\xef\xbb\xbf"
    half = b'{"prompt": "2 + 2?", "response": "\\ud800"}'
    lines = [*[GOOD_LINE.encode()] * 300, b"\xff", half]
    Path("rows.jsonl").write_bytes(byte_order_mark + b"\n".join(lines))
    flags = [runs["bt-frozen"], "--input", "rows.jsonl"]
    refused(*flags, "--output", "out.jsonl")
    said = capfd.readouterr().err
    assert "line 301: not UTF-8; the lines before it are in out.jsonl.part" in said
    assert len(rows_of(Path("out.jsonl.part").read_text())) == 300

    refused(*flags, "--output", "out.jsonl")  # what was scored is not overwritten
    assert "out.jsonl.part exists" in capfd.readouterr().err

    score.main([*flags, "--output", "again.jsonl", "--keep-going", "--device", "cpu"])
    rows = rows_of(Path("again.jsonl").read_text())
    assert len(rows) == 301
    assert rows[-1]["response"] == "\ud800"
    assert not Path("again.jsonl.part").exists()


def test_the_source_is_never_written_to(runs, capfd):
    Path("x.part").write_text(GOOD_LINE)
    refused(runs["bt-frozen"], "--input", "x.part", "--output", "x")
    assert "x.part exists and is not replaced" in capfd.readouterr().err
    assert Path("x.part").read_text()


def test_a_reward_that_is_no_number_is_an_error(runs):
    scorer = minirlhf.load(runs["bt-frozen"], "cpu")
    for parameter in scorer.model.head.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        list(score.score_lines(scorer, [GOOD_LINE]))
