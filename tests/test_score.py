"""Scoring through Python and through the command line, one response or a file of them."""

import json
import os
from pathlib import Path

import pytest
import torch

import minirlhf
from minirlhf import model
from minirlhf.approaches import STEPS
from minirlhf.commands import score as score_lines

PROMPT, RESPONSES = "2 + 2?", ["4", "It is 5, I think.", "2 + 2 = 4. Answer: 4."]


@pytest.fixture(scope="module")
def runs(tiny_encoder, tmp_path_factory) -> Path:
    """A run folder for each approach, its head not trained but drawn."""
    folder = tmp_path_factory.mktemp("runs")
    for approach in STEPS:
        torch.manual_seed(0)
        built = model.build(approach, tiny_encoder, max_length=64)
        for parameter in built.head.parameters():
            torch.nn.init.normal_(parameter)
        (folder / approach).mkdir()
        model.save(built, folder / approach / "model")
    return folder


def rows_of(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("approach", STEPS)
def test_rank_judge_and_best_of_n_agree(approach, runs):
    scorer = minirlhf.load(runs / approach, "cpu")
    ranked = scorer.rank(PROMPT, RESPONSES)
    numbers = scorer.judge([(PROMPT, RESPONSES), ("Why?", ["So."]), ("Why?", [])])
    assert [len(found) for found in numbers] == [3, 1, 0]
    assert [number for number, _ in ranked] == pytest.approx(sorted(numbers[0], reverse=True))
    assert [text for _, text in ranked] == sorted(
        RESPONSES, key=lambda text: -numbers[0][RESPONSES.index(text)]
    )
    assert scorer.best_of_n(PROMPT, RESPONSES) == ranked[0][1]
    with pytest.raises(ValueError, match="at least one"):
        scorer.best_of_n(PROMPT, [])
    if approach == "classification":
        assert sum(numbers[0]) == pytest.approx(1.5)  # of three, each pair shares one win
        assert numbers[1] == [0.5]
    else:
        assert numbers[0] == pytest.approx(scorer.score_many([PROMPT] * 3, RESPONSES))


def test_a_file_is_scored_line_by_line(runs, capfd):
    rows = [{"prompt": PROMPT, "response": r, "id": i} for i, r in enumerate(RESPONSES)]
    rows.append({"prompt": PROMPT, "responses": RESPONSES})
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = str(runs / "bt-frozen")
    score_lines.main([run, "--input", "rows.jsonl", "--output", "scored.jsonl", "--device", "cpu"])
    scored = rows_of(Path("scored.jsonl").read_text())
    expected = minirlhf.load(run, "cpu").score_many([PROMPT] * 3, RESPONSES)
    assert [row.pop("score") for row in scored[:3]] == pytest.approx(expected, abs=1e-5)
    assert scored[3].pop("scores") == pytest.approx(expected, abs=1e-5)
    assert scored == rows
    assert capfd.readouterr().out == ""
    # A file that exists is not replaced.
    with pytest.raises(SystemExit) as exit:
        score_lines.main(
            [run, "--input", "rows.jsonl", "--output", "scored.jsonl", "--device", "cpu"]
        )
    assert exit.value.code == 2
    assert "scored.jsonl" in capfd.readouterr().err
    # To the screen.
    score_lines.main([run, "--input", "rows.jsonl", "--device", "cpu"])
    assert len(rows_of(capfd.readouterr().out)) == 4


BAD = [
    ("{", "not JSON"),
    ("[1]", "not a JSON object"),
    ('{"prompt": "a", "answer": "b"}', "has prompt, answer"),
    ('{"prompt": "a", "responses": "b"}', "not a list"),
    ('{"prompt": "a", "responses": []}', "not a list"),
    ('{"prompt": "a", "response": null}', "must be text"),
    ('{"prompt": 3, "response": "b"}', "must be text"),
    ('{"prompt": "a", "response": ' + "[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_a_bad_line_is_named_by_its_number(line, reason, runs, capfd):
    good = json.dumps({"prompt": PROMPT, "response": "4"})
    Path("rows.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    command = [str(runs / "bt-frozen"), "--input", "rows.jsonl", "--device", "cpu"]
    with pytest.raises(SystemExit) as exit:
        score_lines.main(command)
    said = capfd.readouterr().err
    assert exit.value.code == 2
    assert "line 2: " in said
    assert reason in said
    assert len(said.strip().splitlines()) == 1
    score_lines.main([*command, "--keep-going"])
    out, said = capfd.readouterr()
    assert len(rows_of(out)) == 2
    assert "line 2: " in said
    assert "1 lines" in said


@pytest.mark.parametrize("more", [["--output", "o"], ["--keep-going"], ["--input", "rows.jsonl"]])
def test_flags_that_would_do_nothing_are_refused(more, capsys):
    with pytest.raises(SystemExit) as stop:
        score_lines.main(["runs/x", "--prompt", "2 + 2?", "--response", "4", *more])
    assert stop.value.code == 2
    assert "--input" in capsys.readouterr().err


def test_a_classification_compares_lines_and_does_not_score_them(runs):
    scorer = minirlhf.load(runs / "classification", "cpu")
    lines = [json.dumps({"prompt": PROMPT, "responses": RESPONSES})]
    (row,) = score_lines.score_lines(scorer, lines)
    assert sum(row["scores"]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match=r"line 1: a classification compares"):
        list(score_lines.score_lines(scorer, [json.dumps({"prompt": PROMPT, "response": "4"})]))


def test_lines_are_read_as_they_are_needed(runs):
    scorer = minirlhf.load(runs / "bt-frozen", "cpu")
    taken = []

    def lines():
        for i in range(10**9):
            taken.append(i)
            yield json.dumps({"prompt": PROMPT, "response": str(i % 7)})

    scored = score_lines.score_lines(scorer, lines())
    assert len([next(scored) for _ in range(300)]) == 300
    assert len(taken) <= 1024


def test_standard_input_is_read(runs, capfd):
    read, write = os.pipe()
    with os.fdopen(write, "w") as file:
        file.write(json.dumps({"prompt": PROMPT, "response": "4"}) + "\n")
    kept = os.dup(0)
    os.dup2(read, 0)
    try:
        score_lines.main([str(runs / "bt-frozen"), "--input", "-", "--device", "cpu"])
    finally:
        os.dup2(kept, 0)
    assert rows_of(capfd.readouterr().out)[0]["prompt"] == PROMPT


@pytest.mark.parametrize(
    "flags", [[], ["--prompt", "a"], ["--prompt", "a", "--response", "b", "--input", "c"]]
)
def test_either_a_prompt_or_a_file(flags, capsys):
    with pytest.raises(SystemExit) as exit:
        score_lines.main(["run", *flags])
    assert exit.value.code == 2
    assert "--input" in capsys.readouterr().err


def test_one_bad_byte_is_one_bad_line(runs, capfd):
    """A BOM is no part of the text, half a surrogate pair is scored, lines keep their numbers."""
    good = json.dumps({"prompt": PROMPT, "response": "4"}).encode()
    half = b'{"prompt": "2 + 2?", "response": "\\ud800"}'
    Path("rows.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join([good] * 300 + [b"\xff", half]))
    command = [str(runs / "bt-frozen"), "--input", "rows.jsonl", "--device", "cpu"]
    with pytest.raises(SystemExit):
        score_lines.main([*command, "--output", "out.jsonl"])
    assert (
        "line 301: not UTF-8; the lines before it are in out.jsonl.part" in capfd.readouterr().err
    )
    assert len(rows_of(Path("out.jsonl.part").read_text())) == 300
    with pytest.raises(SystemExit):  # what was scored is not overwritten
        score_lines.main([*command, "--output", "out.jsonl"])
    assert "out.jsonl.part exists" in capfd.readouterr().err
    score_lines.main([*command, "--output", "again.jsonl", "--keep-going"])
    rows = rows_of(Path("again.jsonl").read_text())
    assert len(rows) == 301 and rows[-1]["response"] == "\ud800"
    assert not Path("again.jsonl.part").exists()


def test_the_source_is_never_written_to(runs, capfd):
    Path("x.part").write_text(json.dumps({"prompt": PROMPT, "response": "4"}))
    with pytest.raises(SystemExit):
        score_lines.main([str(runs / "bt-frozen"), "--input", "x.part", "--output", "x"])
    assert "x.part exists and is not replaced" in capfd.readouterr().err
    assert Path("x.part").read_text()


def test_a_reward_that_is_no_number_is_an_error(runs):
    scorer = minirlhf.load(runs / "bt-frozen", "cpu")
    for parameter in scorer.model.head.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        list(score_lines.score_lines(scorer, [json.dumps({"prompt": PROMPT, "response": "4"})]))
