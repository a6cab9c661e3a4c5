import math
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from minirlhf import metrics
from minirlhf.bundled.arithmetic import blind_accuracies
from minirlhf.loops import Evaluation
from minirlhf.report import figures, results

SCORER = ["learning_curves.png", "reliability.png", "reward_length.png", "rewards.png"]


@pytest.fixture(autouse=True)
def no_warning():
    """A picture that matplotlib warns about (a missing glyph, a layout) is not finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The figures, by the name of the file they were written to."""
    kept, write = {}, Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, p: (kept.update({p.name: f}), write(f, p)))
    return kept


def draw(
    best=(True, True, False), subsets=("a", "b"), compares=False, scale=1.0
) -> torch.Tensor:
    """Draw a made-up run of 200 pairs into the folder "run"; give its rewards (N, 2)."""
    generator = torch.Generator().manual_seed(0)
    rewards = scale * (torch.randn(200, 2, generator=generator) + torch.tensor([1.0, 0.0]))
    lengths = torch.randint(20, 900, (200, 2), generator=generator).float()
    margins, shown = rewards[:, 0] - rewards[:, 1], None if compares else rewards
    names = [subsets[i % len(subsets)] for i in range(200)]
    summary = metrics.summarize(margins, list(map(str, range(200))), names, lengths, shown, 1.7)
    keys = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy")
    history = [
        {"epoch": i + 1, "best": b} | dict.fromkeys(keys, 0.6) for i, b in enumerate(best)
    ]
    steps = []
    for i in range(1, 30):
        steps.append({"epochs_done": i / 10, "step_loss": 1 / i, "step_accuracy": 1 - 1 / i})
    figures.draw_run(Path("run"), history, steps, margins, shown, lengths, summary)
    return rewards


def written() -> list[str]:
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in Path("run").iterdir())
    return sorted(path.name for path in Path("run").iterdir())


def entries(axes) -> dict:
    """What the legend explains: label -> artist."""
    artists, labels = axes.get_legend_handles_labels()
    assert len(set(labels)) == len(labels)
    return dict(zip(labels, artists, strict=True))


def test_a_model_that_scores_gets_every_picture():
    draw()
    assert written() == [*SCORER, "subsets.png"]


def test_a_classification_gets_its_margins_and_no_reward_by_length(drawn):
    draw(compares=True)
    assert written() == [
        "learning_curves.png",
        "reliability.png",
        "rewards.png",
        "subsets.png",
    ]
    (axes,) = drawn["rewards.png"].axes
    assert axes.get_xlabel() == "margin"
    assert list(entries(axes)["a tie"].get_xdata()) == [0, 0]


def test_one_subset_needs_no_picture_of_subsets():
    draw(subsets=("only",))
    assert written() == SCORER


def test_the_histogram_holds_every_reward_in_bins_that_both_share(drawn):
    rewards = draw()
    edges = torch.linspace(rewards.min(), rewards.max(), 31)
    outlines = entries(drawn["rewards.png"].axes[0])
    for name, values in zip(("chosen", "rejected"), rewards.unbind(1), strict=True):
        counts = outlines[name].get_xy()[1:61:2, 1]  # every second corner begins a bar's top
        assert counts.tolist() == torch.histogram(values, edges).hist.tolist()
        assert counts.sum() == 200


@pytest.mark.parametrize("epochs, kept", [(1, 1), (7, 4), (100, 57)])
def test_learning_curves_show_every_epoch_and_mark_the_last_best_one(drawn, epochs, kept):
    draw(best=[epoch in (1, kept) for epoch in range(1, epochs + 1)])
    for axes in drawn["learning_curves.png"].axes:
        shown = entries(axes)
        assert list(shown["kept epoch"].get_xdata()) == [kept, kept]
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert len(ticks) >= min(2, epochs) and all(tick == int(tick) for tick in ticks)
        for part in ("train", "validation"):
            assert list(shown[part].get_xdata()) == list(range(1, epochs + 1))
            # A run of one epoch is a point, which only a marker shows.
            assert 0 < math.ceil(epochs / shown[part].get_markevery()) <= 11


def test_reliability_is_drawn_before_and_after_the_temperature(drawn):
    margins = draw() @ torch.tensor([1.0, -1.0])
    (axes,) = drawn["reliability.png"].axes
    before, after, _ = entries(axes).values()
    for line, temperature in ((before, 1.0), (after, 1.7)):
        table = metrics.reliability(margins, temperature)
        assert line.get_xydata().tolist() == [pytest.approx(list(row[:2])) for row in table]
        error = metrics.calibration_error(margins, temperature)
        assert line.get_label() == f"T = {temperature:.3g}: error {error:.3f}"


def test_length_is_shown_against_reward_within_pairs(drawn):
    margins = torch.tensor([2.0, -1.0, 0.5, -3.0, 0.0, 1.0])
    lengths = torch.tensor([[9, 4], [3, 8], [2, 6], [7, 5], [5, 1], [4, 4]]).float()
    correlation = metrics.length_preference(margins, lengths[:, 0] - lengths[:, 1])
    test = {"length_correlation": correlation}
    figures._reward_length(Path("reward_length.png"), margins, lengths, test)
    figure = drawn["reward_length.png"]
    assert figure.get_suptitle().endswith(f"{correlation:.2f}")
    (axes,) = figure.axes
    points = {name: dots.get_offsets().tolist() for name, dots in entries(axes).items()}
    assert points == {
        "longer preferred": [[5, 2], [-5, -1]],
        "shorter preferred": [[-4, 0.5], [2, -3]],
    }
    neither = axes.collections[-1].get_offsets().tolist()
    assert neither == [[4, 0], [0, 1]]


def test_an_untrained_model_is_drawn_too():
    draw(scale=0.0)
    draw(scale=0.0, compares=True)


def test_subsets_are_sorted_and_their_names_are_no_formulas(drawn):
    subsets = {"$x_$": 0.2, "costs $5 or $6_$": 0.9, "a-very-" * 20: 0.5}
    subsets |= {f"a subset of a rather long name {i}": 0.5 + i / 100 for i in range(27)}
    counted = {name: {"n": 10, "accuracy": value} for name, value in subsets.items()}
    figures._subsets(Path("subsets.png"), counted, 0.6)
    (axes,) = drawn["subsets.png"].axes
    points = entries(axes)["accuracy"]
    assert list(points.get_xdata()) == sorted(subsets.values(), reverse=True)
    assert axes.yaxis_inverted()  # row 0 on top
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert (names[0], names[-1]) == ("costs $5 or $6_$ (10)", "$x_$ (10)")
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert all(below.y1 <= above.y0 for above, below in zip(boxes, boxes[1:], strict=False))


def test_a_blind_rater_stands_beside_the_model_on_each_subset(drawn):
    accuracies = {"slip": 0.39, "tone": 0.67, "other": 0.9}
    counted = {name: {"n": 10, "accuracy": value} for name, value in accuracies.items()}
    figures._subsets(Path("subsets.png"), counted, 0.6, {"slip": 0.36, "tone": 0.5})
    (axes,) = drawn["subsets.png"].axes
    shown = entries(axes)
    assert list(shown) == ["accuracy", "blind rater", "a coin", "mean, 0.60"]
    model, blind = shown["accuracy"], shown["blind rater"]
    assert list(model.get_xdata()) == [0.9, 0.67, 0.39]
    assert list(blind.get_xdata()) == [None, 0.5, 0.36]  # that of "other" is not known
    assert list(model.get_ydata()) == [0, 1, 2]
    assert list(blind.get_ydata()) == [0.25, 1.25, 2.25]
    figures._subsets(Path("subsets.png"), counted, 0.6)
    assert "blind rater" not in entries(drawn["subsets.png"].axes[0])


@pytest.mark.parametrize("dataset", ["arithmetic", "pairs.jsonl"])
def test_only_the_bundled_data_have_a_blind_rater(dataset, monkeypatch):
    given = []
    monkeypatch.setattr(results, "model_card", lambda *args: "")
    monkeypatch.setattr(figures, "draw_run", lambda *args: given.append(args[-1]))
    nothing = Evaluation(loss=0.0, margins=torch.zeros(0), rewards=None)
    results.write_report(Path("."), {"dataset": dataset, "test": {}}, {}, [], nothing)
    assert given == [blind_accuracies() if dataset == "arithmetic" else None]


def test_a_comparison_draws_what_each_row_has(drawn):
    whole = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8}
    whole |= {f"balanced_{key}": value - 0.1 for key, value in whole.items()}
    coin = {"name": "coin", "accuracy": 0.5, "balanced_accuracy": None}
    path = Path("new/folder/comparison.png")
    figures.draw_comparison(path, [coin, whole | {"name": "model"}])
    (axes,) = drawn[path.name].axes
    assert path.is_file() and list(entries(axes)) == [
        "accuracy",
        "balanced accuracy",
        "a coin",
    ]
    ends = [
        line.get_xdata(orig=False) for line in axes.get_lines() if line.get_linestyle() == "-"
    ]
    assert {(0.6, 0.8), (0.5, 0.7)} <= {tuple(x.round(9).tolist()) for x in ends}
    figures.draw_comparison(path, [coin])
    assert list(entries(drawn[path.name].axes[0])) == ["accuracy", "a coin"]


def test_matplotlib_is_imported_when_a_picture_is_drawn_and_pyplot_never():
    code = "import sys, pathlib; from minirlhf.report import figures;"
    code += "print('matplotlib' in sys.modules);"
    code += "figures.draw_comparison(pathlib.Path('a.png'), [{'name': 'a', 'accuracy': 0.5}]);"
    code += "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    root = Path(figures.__file__).parents[2]
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(root)!r}); {code}",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "True", "False"]
