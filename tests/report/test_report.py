import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from minirlhf import metrics
from minirlhf.commands import compare
from minirlhf.data import PreferencePair
from minirlhf.report import words as report

LONGER = {"accuracy": 0.55, "accuracy_low": 0.45, "accuracy_high": 0.65}


def summary_of(right: int, wrong: int, train: float = 0.8, subsets=None, **more) -> dict:
    margins = torch.tensor([1.0] * right + [-1.0] * wrong)
    n = len(margins)
    prompts, lengths = [str(i) for i in range(n)], torch.tensor([[2, 1]] * n)
    test = metrics.summarize(margins, prompts, subsets or ["all"] * n, lengths)
    longer = {"chance": 0.5, "longer response": LONGER}
    return {"test": test | more, "train": {"accuracy": train}, "baselines": longer}


def test_near_duplicates_across_parts_are_found():
    train = [PreferencePair("A farmer has ten cows and sells four of them. How many?", "6", "5")]
    near = train[0]._replace(prompt="A farmer has ten cows and sells four of them, how much?")
    far = train[0]._replace(prompt="How many days will nine apples last for three people in all?")
    assert report.near_duplicates(train, [far]) == {"prompts": 1, "any": 0, "most": 0}
    assert report.near_duplicates(train, [near, far]) == {"prompts": 2, "any": 1, "most": 1}


def run_of(margins, lengths, prompts, subsets, **more) -> dict:
    """What `train.run` returns of a fold, as far as it is compared."""
    run = {"margins": torch.tensor(margins), "labels": (list(prompts), list(subsets))}
    run["lengths"] = torch.tensor(lengths, dtype=torch.float32)  # (N, 2)
    return run | {"trained": 1234, "seconds": 1.0, "train": {"accuracy": 0.9}} | more


def two_folds() -> dict[str, list[dict]]:
    """Two approaches on two folds of three pairs and one: the worse approach comes first."""
    first = {"lengths": [[7, 2], [3, 5], [4, 4]], "prompts": "ppq", "subsets": "aaa"}
    second = {"lengths": [[2, 1]], "prompts": "r", "subsets": "b"}
    return {
        "worse": [run_of([1.0, -1.0, -1.0], **first), run_of([0.0], **second)],
        "better": [
            run_of([1.0, 1.0, -1.0], **first, seconds=2.0, train={"accuracy": 1.0}),
            run_of([1.0], **second, seconds=3.0),
        ],
    }


def table_cells(text: str) -> list[list[str]]:
    """The cells of a Markdown table, which must all be in rows between two bars."""
    lines = text.splitlines()
    assert all(line.startswith("|") and line.endswith("|") for line in lines)
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


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


def test_an_interval_as_text():
    row = {"accuracy": 0.76249, "accuracy_low": 0.73, "accuracy_high": 0.7914, "gap": -0.1}
    assert report.interval(row) == "0.762 [0.730, 0.791]"
    assert report.interval(row, "gap") == "-0.100"
    assert report.interval(row, "balanced_accuracy") == "–"
    assert report.interval({"accuracy": None}) == "–"


def test_folds_are_pooled_before_anything_is_counted():
    better, worse, longer, chance = compare.compared(two_folds())
    # 3 of 4 pairs. The mean of the folds' accuracies would be (2/3 + 1) / 2 = 0.833.
    assert (better["name"], better["accuracy"]) == ("better", 0.75)
    assert better["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert {k: v["accuracy"] for k, v in better["subsets"].items()} == pytest.approx(
        {"a": 2 / 3, "b": 1}
    )
    assert (better["trained"], better["seconds"]) == (1234, 2.5)
    assert better["train_accuracy"] == pytest.approx(0.95)
    assert better["gap"] == pytest.approx(0.2)
    # 1 of 4 pairs and a tie. The difference is to the row above, so the worse one's is negative.
    assert (worse["name"], worse["accuracy"]) == ("worse", 0.375)
    assert worse["balanced_accuracy"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert worse["minus_better_accuracy"] == pytest.approx(-0.375)
    assert worse["minus_better_balanced_accuracy"] == pytest.approx((-1 / 3 - 1 / 2) / 2)
    assert "minus_better_accuracy" not in better
    # Longer in two of four, as long in one.
    assert (longer["name"], longer["accuracy"]) == ("longer response", 0.625)
    assert longer["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert (chance["name"], chance["accuracy"]) == ("chance", 0.5)


def test_pairs_of_one_prompt_stay_together_in_a_comparison():
    agreeing = run_of([1.0] * 100 + [-1.0] * 100, [[1, 2]] * 200, "p" * 100 + "q" * 100, "a" * 200)
    row = compare.compared({"one": [agreeing]})[0]
    # Two prompts, not 200 pairs: a resample holds one of them twice every other time.
    assert (row["accuracy"], row["accuracy_low"], row["accuracy_high"]) == (0.5, 0, 1)


def test_a_lead_on_the_same_pairs_is_seen_though_the_intervals_overlap():
    margins = torch.tensor([1.0, -1.0] * 100)
    runs = {
        "better": margins.tolist(),
        "worse": torch.where(torch.arange(200) < 20, -1.0, margins).tolist(),
    }
    prompts = [str(i) for i in range(200)]
    results = {k: [run_of(m, [[1, 2]] * 200, prompts, "a" * 200)] for k, m in runs.items()}
    better, worse, *_ = compare.compared(results)
    assert worse["accuracy_high"] > better["accuracy_low"]
    assert worse["minus_better_accuracy_low"] < worse["minus_better_accuracy_high"] < 0


def test_response_only_is_last_and_held_against_bt_finetune():
    folds = two_folds()
    results = {"response only": folds["better"], "bt-finetune": folds["better"]}
    results["bt-frozen"] = folds["worse"]
    rows = compare.compared(results)
    names = ["bt-finetune", "bt-frozen", "response only", "longer response", "chance"]
    assert [row["name"] for row in rows] == names
    assert rows[1]["minus_better_accuracy"] == pytest.approx(-0.375)
    assert rows[2]["minus_better_accuracy"] == 0  # to bt-finetune, not to the row above


def test_a_model_that_does_as_well_without_the_prompts_is_told():
    right, wrong = ([sign] * 40 for sign in (1.0, -1.0))
    part = {"lengths": [[1, 2]] * 40, "prompts": [str(i) for i in range(40)], "subsets": "a" * 40}
    blank = {"same": run_of(right, **part), "worse": run_of(wrong, **part)}
    found = {}
    for name, run in blank.items():
        results = {"bt-finetune": [run_of(right, **part)], "response only": [run]}
        found[name] = compare.warning(compare.compared(results))
    assert "not shown to be worse (0.000 [0.000, 0.000])" in found["same"]
    assert found["worse"] == ""
    assert compare.warning(compare.compared(two_folds())) == ""  # response only was not run


def test_the_comparison_is_a_markdown_table():
    rows = compare.compared(two_folds())
    head, rule, *body = table_cells(compare.table(rows))
    assert {len(cells) for cells in (head, rule, *body)} == {len(head)}
    assert all(re.fullmatch("-{3,}", cell) for cell in rule)
    assert [cells[0] for cells in body] == ["better", "worse", "longer response", "chance"]
    better, worse, _, chance = body
    assert better[1:4] == ["1,234", "2", "0.950"]
    assert report.interval(rows[0]) in better
    assert report.interval(rows[1], "minus_better_accuracy") in worse
    assert chance.count("0.500") == 2 and set(chance[1:]) <= {"0.500", "0", "–"}


def test_a_verdict_gives_the_numbers_and_the_baselines():
    summary = summary_of(80, 20)
    text = report.verdict(summary)
    for said in (report.interval(summary["test"]), report.interval(LONGER), "100 pairs", "0.800"):
        assert said in text


@pytest.mark.parametrize(("right", "wrong"), [(55, 45), (50, 50), (45, 55)])
def test_a_verdict_says_where_a_model_is_no_more_than_a_coin(right, wrong):
    assert "tells this model from a coin" in report.verdict(summary_of(right, wrong))


def test_a_verdict_does_not_call_a_good_model_a_coin():
    assert "tells this model from a coin" not in report.verdict(summary_of(90, 10))


@pytest.mark.parametrize(
    ("train", "overfitted"), [(0.5, False), (0.8, False), (0.85, False), (0.95, True), (1.0, True)]
)
def test_a_verdict_speaks_of_overfitting_only_where_the_gap_is_large(train, overfitted):
    text = report.verdict(summary_of(800, 200, train))
    assert ("learned by heart" in text) == overfitted
    assert f"{train:.3f}" in text
    assert (f"{train - 0.8:.3f} above test" in text) == overfitted


def test_a_verdict_names_the_worst_subset_first():
    subsets = ["easy"] * 50 + ["hard"] * 50
    lines = report.verdict(summary_of(70, 30, subsets=subsets)).splitlines()
    easy, hard = (next(i for i, x in enumerate(lines) if s in x) for s in ("easy", "hard"))
    assert hard == easy - 1
    assert ("0.400" in lines[hard], "1.000" in lines[easy]) == (True, True)
    assert "mean over subsets" not in report.verdict(summary_of(70, 30))  # there is one only


def test_a_verdict_speaks_of_ratings_only_where_there_are_some():
    assert "MAE" not in report.verdict(summary_of(8, 2))
    text = report.verdict(summary_of(8, 2, mae=1.234, rmse=2.0, r2=-0.5))
    assert "MAE 1.23, RMSE 2.00, R² -0.50" in text


def pair_of(name: str, text: str = "text") -> PreferencePair:
    return PreferencePair(f"prompt {name}", f"chosen {text}", f"rejected {text}", subset=name)


def test_mistakes_are_the_most_confident_errors_in_order():
    pairs = [pair_of(name) for name in "abcdef"]
    margins = torch.tensor([-1.0, 2.0, -3.5, 0.0, -2.0, -0.5])
    headings = [x for x in report.mistakes(pairs, margins, 3).splitlines() if x.startswith("## ")]
    expected = ["c, margin -3.500", "e, margin -2.000", "a, margin -1.000"]
    assert headings == [f"## {i}. {x}" for i, x in enumerate(expected, 1)]


def test_what_is_right_or_a_tie_is_no_mistake():
    text = report.mistakes([pair_of("a"), pair_of("b")], torch.tensor([0.0, 1.0]))
    assert "##" not in text and "prompt" not in text


@pytest.mark.parametrize("fence", ["`" * 3, "`" * 9, "~~~", "# not a heading", "</details>"])
def test_no_text_can_break_the_markdown(fence):
    # Each line of a text is indented by four spaces, after a blank line: code, whatever it holds.
    text = f"look:\n{fence}\n\n# not a heading\n{fence}"
    page = report.mistakes([pair_of("a", text)], torch.tensor([-2.0]))
    lines = page.splitlines()
    outside = [line for line in lines if line and not line.startswith("    ")]
    assert [line for line in outside if not line.startswith("#")] == [
        "prompt:",
        "chosen:",
        "rejected:",
    ]
    assert all(lines[lines.index(f"{role}:") + 1] == "" for role in ("prompt", "chosen"))
    assert page.count(fence) == 4 + 2 * (fence == "# not a heading")


@pytest.mark.parametrize(
    ("approach", "use"),
    [("bt-frozen", "score"), ("regression", "score"), ("classification", "rank")],
)
def test_a_model_card_holds_the_verdict_and_how_to_use_the_model(approach, use):
    summary = summary_of(80, 20)
    summary |= {"approach": approach, "encoder": "e", "dataset": "d", "fold": 2}
    command = "python train.py --fold 2"
    card = report.model_card(summary, {"command": command}, Path("runs/one"))
    outside, blocks = fenced(card.split("\n---\n", 1)[1])
    assert [block.strip() for block in blocks] == [report.verdict(summary).strip()]
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
    assert report.interval(summary["test"]) in accuracy.metric_name


@pytest.mark.parametrize("name", ["😀.jsonl", 'a "b" \\c.jsonl', "x: #y\u2028\x7f", "no", "四"])
def test_a_model_cards_metadata_is_yaml_whatever_the_names(name):
    summary = summary_of(80, 20)
    summary |= {"approach": "bt-frozen", "encoder": name, "dataset": name, "fold": 0}
    card = report.model_card(summary, {"command": "python train.py"}, Path("runs", name))
    data = ModelCard(card).data
    assert (data.base_model, data.eval_results[0].dataset_name) == (name, name)
    (line,) = [line for line in card.splitlines() if "minirlhf.load(" in line]
    compile(line.strip(), "README.md", "exec")
