import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from test_verdict import summary_of

from minirlhf.report.card import model_card
from minirlhf.report.tables import interval
from minirlhf.report.verdict import verdict


def fenced(markdown: str) -> tuple[str, list[str]]:
    """Text outside of fenced code blocks, and the blocks, as CommonMark 0.31 has it (section 4.5).

    A block ends at a line of at least as many backticks as opened it, and at no other.
    """
    outside, blocks, fence = [], [], ""
    for line in markdown.splitlines():
        ticks = re.match(r" {0,3}(`{3,})([^`]*)$", line)
        if fence and ticks and len(ticks[1]) >= len(fence) and not ticks[2].strip():
            fence = ""
        elif fence:
            blocks[-1].append(line)
        elif ticks:
            fence = ticks[1]
            blocks.append([])
        else:
            outside.append(line)
    assert not fence, "a block is never closed"
    return "\n".join(outside), ["\n".join(block) for block in blocks]


@pytest.mark.parametrize(
    ("approach", "use"),
    [("bt-frozen", "score"), ("regression", "score"), ("classification", "rank")],
)
def test_a_model_card_holds_the_verdict_and_how_to_use_the_model(approach, use):
    summary = summary_of(80, 20)
    summary |= {"approach": approach, "encoder": "e", "dataset": "d", "fold": 2}
    command = "python train.py --fold 2"
    card = model_card(summary, {"command": command}, Path("runs/one"))
    outside, blocks = fenced(card.split("\n---\n", 1)[1])
    assert [block.strip() for block in blocks] == [verdict(summary).strip()]
    assert "\n# one\n" in outside
    for said in (approach, "`e`", "`d`", "fold 2", f"`{command}`"):
        assert said in outside
    code = [line.strip() for line in outside.splitlines() if line.startswith("    ")]
    assert code[0] == "import minirlhf"
    assert code[1].startswith(f'minirlhf.load("runs/one").{use}(')
    compile("\n".join(code), "README.md", "exec")
    # The hub's own library reads the metadata.
    data = ModelCard(card).data
    assert data.base_model == "e"
    accuracy, _ = data.eval_results
    assert (accuracy.metric_type, accuracy.metric_value) == ("accuracy", 0.8)
    assert interval(summary["test"]) in accuracy.metric_name


@pytest.mark.parametrize("name", ["😀.jsonl", 'a "b" \\c.jsonl', "x: #y\u2028\x7f", "no", "四"])
def test_a_model_cards_metadata_is_yaml_whatever_the_names(name):
    summary = summary_of(80, 20)
    summary |= {"approach": "bt-frozen", "encoder": name, "dataset": name, "fold": 0}
    card = model_card(summary, {"command": "python train.py"}, Path("runs", name))
    data = ModelCard(card).data
    assert (data.base_model, data.eval_results[0].dataset_name) == (name, name)
    (line,) = [line for line in card.splitlines() if "minirlhf.load(" in line]
    compile(line.strip(), "README.md", "exec")
