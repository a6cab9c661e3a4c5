import pytest
import torch

from minirlhf import metrics
from minirlhf.data import PreferencePair
from minirlhf.report.tables import interval
from minirlhf.report.verdict import pair_text, verdict, worst_mistakes

LONGER = {"accuracy": 0.55, "accuracy_low": 0.45, "accuracy_high": 0.65}


def summary_of(right: int, wrong: int, train: float = 0.8, subsets=None, **more) -> dict:
    margins = torch.tensor([1.0] * right + [-1.0] * wrong)
    n = len(margins)
    prompts, lengths = [str(i) for i in range(n)], torch.tensor([[2, 1]] * n)
    test = metrics.summarize(margins, prompts, subsets or ["all"] * n, lengths)
    longer = {"chance": 0.5, "longer response": LONGER}
    return {"test": test | more, "train": {"accuracy": train}, "baselines": longer}


def test_a_verdict_gives_the_numbers_and_the_baselines():
    summary = summary_of(80, 20)
    text = verdict(summary)
    for said in (interval(summary["test"]), interval(LONGER), "100 pairs", "0.800"):
        assert said in text


@pytest.mark.parametrize(("right", "wrong"), [(55, 45), (50, 50), (45, 55)])
def test_a_verdict_says_where_a_model_is_no_more_than_a_coin(right, wrong):
    assert "tells this model from a coin" in verdict(summary_of(right, wrong))


def test_a_verdict_does_not_call_a_good_model_a_coin():
    assert "tells this model from a coin" not in verdict(summary_of(90, 10))


@pytest.mark.parametrize(
    ("train", "overfitted"),
    [(0.5, False), (0.8, False), (0.85, False), (0.95, True), (1.0, True)],
)
def test_a_verdict_speaks_of_overfitting_only_where_the_gap_is_large(train, overfitted):
    text = verdict(summary_of(800, 200, train))
    assert ("learned by heart" in text) == overfitted
    assert f"{train:.3f}" in text
    assert (f"{train - 0.8:.3f} above test" in text) == overfitted


def test_a_verdict_names_the_worst_subset_first():
    subsets = ["easy"] * 50 + ["hard"] * 50
    lines = verdict(summary_of(70, 30, subsets=subsets)).splitlines()
    easy, hard = (next(i for i, x in enumerate(lines) if s in x) for s in ("easy", "hard"))
    assert hard == easy - 1
    assert ("0.400" in lines[hard], "1.000" in lines[easy]) == (True, True)
    assert "mean over subsets" not in verdict(summary_of(70, 30))  # there is one only


def test_a_verdict_speaks_of_ratings_only_where_there_are_some():
    assert "MAE" not in verdict(summary_of(8, 2))
    text = verdict(summary_of(8, 2, mae=1.234, rmse=2.0, r2=-0.5))
    assert "MAE 1.23, RMSE 2.00, R² -0.50" in text


def test_a_verdict_gives_the_accuracy_without_near_duplicates_where_there_are_some():
    assert "nearly repeat" not in verdict(summary_of(80, 20))
    new = {"n": 30, "n_prompts": 25, "accuracy": 0.7, "accuracy_low": 0.5, "accuracy_high": 0.8}
    text = verdict(summary_of(80, 20, new_prompts=new))
    assert "75 of the test prompts nearly repeat a training prompt" in text
    assert "on the 30 pairs of the others 0.700 [0.500, 0.800]" in text
    none = verdict(summary_of(80, 20, new_prompts={"n": 0, "n_prompts": 0}))
    assert "100 of the test prompts" in none and "on the 0 pairs of the others –" in none


def test_a_pair_is_shown_on_three_lines_with_its_ratings():
    pair = PreferencePair("How\n many?", "1234567890", "no", 9.0, 2.5)
    assert pair_text(pair, width=5) == (
        "prompt    How m\nchosen    12345  [rated 9]\nrejected  no  [rated 2.5]"
    )
    assert "rated" not in pair_text(pair._replace(chosen_rating=None, rejected_rating=None))


def pair_of(name: str, text: str = "text") -> PreferencePair:
    return PreferencePair(f"prompt {name}", f"chosen {text}", f"rejected {text}", subset=name)


def test_mistakes_are_the_most_confident_errors_in_order():
    pairs = [pair_of(name) for name in "abcdef"]
    margins = torch.tensor([-1.0, 2.0, -3.5, 0.0, -2.0, -0.5])
    headings = [
        x for x in worst_mistakes(pairs, margins, 3).splitlines() if x.startswith("## ")
    ]
    expected = ["c, margin -3.500", "e, margin -2.000", "a, margin -1.000"]
    assert headings == [f"## {i}. {x}" for i, x in enumerate(expected, 1)]


def test_what_is_right_or_a_tie_is_no_mistake():
    text = worst_mistakes([pair_of("a"), pair_of("b")], torch.tensor([0.0, 1.0]))
    assert "##" not in text and "prompt" not in text


@pytest.mark.parametrize("fence", ["`" * 3, "`" * 9, "~~~", "# not a heading", "</details>"])
def test_no_text_can_break_the_markdown(fence):
    # Each line of a text is indented by four spaces, after a blank line: code, whatever it holds.
    text = f"look:\n{fence}\n\n# not a heading\n{fence}"
    page = worst_mistakes([pair_of("a", text)], torch.tensor([-2.0]))
    lines = page.splitlines()
    outside = [line for line in lines if line and not line.startswith("    ")]
    assert [line for line in outside if not line.startswith("#")] == [
        "prompt:",
        "chosen:",
        "rejected:",
    ]
    assert all(lines[lines.index(f"{role}:") + 1] == "" for role in ("prompt", "chosen"))
    assert page.count(fence) == 4 + 2 * (fence == "# not a heading")
