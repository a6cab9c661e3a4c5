import json
import re
import struct
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from minirlhf import losses, pooling
from minirlhf.experiments import pictures
from minirlhf.report import figures

WITHOUT_RESULTS = ["gradient.png", "losses.png", "pooling.png"]
OTHERS = ["policy.png", "turn.png", "work.png"]
MODULE = "minirlhf.experiments.mistakes"


@pytest.fixture(autouse=True)
def no_warning():
    """A picture that matplotlib warns about (a missing glyph, a layout) is not finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """Made-up results, and a made-up tool that draws the second kind of them."""
    ends = {"accuracy_low": 0.6, "accuracy_high": 0.8}
    rows = [
        {"name": "bt-finetune", "accuracy": 0.7} | ends,
        {"name": "chance", "accuracy": 0.5},
    ]
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "bundled.json").write_text(json.dumps(rows))
    (folder / "mistakes.json").write_text(json.dumps({"seconds": 1.0, "rows": rows}))
    trials = []
    for layers in (6, 4, 3, 2):
        trial = {"gflop": 1000.0 * layers, "accuracy": 0.7, "layers": layers}
        trials.append(trial | {"default": layers == 4})
    (folder / "work.json").write_text(json.dumps({"rows": trials}))
    kinds = []
    for reward in ("bt-finetune", "truth"):
        curve = [{"kl": kl, "reward": 1 + kl, "rating": 6 - kl} for kl in (0.0, 1.0, 40.0)]
        kinds.append({"kind": f"grpo on {reward}", "curve": curve})
    (folder / "policy.json").write_text(json.dumps(kinds))
    (folder / "turn.json").write_text(json.dumps(kinds))
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(draw=figures.draw_comparison))
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The figures, by the name of the file they were written to."""
    kept = {}
    write = Figure.savefig

    def keep_and_write(figure, path):
        kept[path.name] = figure
        write(figure, path)

    monkeypatch.setattr(Figure, "savefig", keep_and_write)
    return kept


def draw(output="images") -> list[str]:
    pictures.main(["--results", "results", "--output", output])
    return sorted(path.name for path in Path(output).iterdir())


def test_every_picture_is_written_wide_small_and_opaque(capsys):
    names = draw()
    assert names == sorted([*WITHOUT_RESULTS, "comparison.png", "mistakes.png", *OTHERS])
    assert sorted(capsys.readouterr().out.split()) == [f"images/{name}" for name in names]
    for name in names:
        content = Path("images", name).read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG") and len(content) < 150_000
        assert width == 900 and 300 < height < 1000


def test_the_background_is_white_and_opaque():
    for name in draw():
        pixels = imread(f"images/{name}")  # (height, width, 4), from 0 to 1
        assert (pixels[..., 3] == 1).all() and (
            pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 1
        ).all()


def test_two_runs_write_the_same_pixels():
    assert draw("once") == draw("twice")
    for path in Path("once").iterdir():
        assert path.read_bytes() == Path("twice", path.name).read_bytes()


def test_no_text_is_cut_or_runs_into_another_or_over_an_edge(monkeypatch, drawn):
    seen = {}
    write = Text.draw

    def spy(text, renderer):
        write(text, renderer)  # called for what is drawn only: no ticks beyond the axes
        if text.get_text().strip() and text.get_visible():
            seen.setdefault(text.get_figure(), {})[text] = Text.get_window_extent(
                text, renderer
            )

    monkeypatch.setattr(Text, "draw", spy)
    draw()
    for name in WITHOUT_RESULTS:
        page = drawn[name].bbox
        boxes = list(seen[drawn[name]].items())
        assert len(boxes) > 10
        for i, (text, box) in enumerate(boxes):
            assert box.x0 >= page.x0 + 4 and box.x1 <= page.x1 - 4, (name, text)
            assert box.y0 >= page.y0 + 4 and box.y1 <= page.y1 - 4, (name, text)
            for other, of_other in boxes[:i]:
                assert not box.overlaps(of_other), (name, text, other)
            for patch in drawn[name].axes[0].patches:
                edge = patch.get_window_extent()
                inside = edge.contains(box.x0, box.y0) and edge.contains(box.x1, box.y1)
                assert inside or not box.overlaps(edge), (name, text)


def test_the_pooling_picture_marks_what_the_poolers_read(drawn):
    draw()
    (axes,) = drawn["pooling.png"].axes
    marked = {}  # marker and color -> the columns of each text, from left to right
    columns = sorted({t.get_position()[0] for t in axes.texts if t.get_text() in ("0", "1")})
    for line in axes.get_lines():
        if line.get_marker() != "None":
            key = "mistake" if line.get_color() == figures.RED else line.get_marker()
            marked.setdefault(key, []).append([columns.index(x) for x in line.get_xdata()])
    ids = torch.arange(7.0).reshape(1, 7, 1).repeat(2, 1, 1)  # each state tells its own place
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    shown = re.findall(
        r"[01]", "".join(t.get_text() for t in axes.texts if t.get_text() in "01")
    )
    assert [int(bit) for bit in shown] == mask.flatten().tolist()
    for name, marker in (("mean", "o"), ("last", "s"), ("cls", "^")):
        vectors = pooling.POOLERS[name](ids, mask).flatten().tolist()
        assert [sum(read) / len(read) for read in marked[marker]] == vectors
    assert marked["mistake"] == [[column] for column in ids[:, -1].int().flatten().tolist()]


def test_the_losses_are_the_library_s(drawn):
    draw()
    right, wrong = drawn["losses.png"].axes[0].get_lines()[:2]
    points = zip(right.get_xdata(), right.get_ydata(), wrong.get_ydata(), strict=True)
    for x, y, mistaken in points:
        pair = torch.tensor([x, -x]) / 2
        for value, rewards in ((y, pair), (mistaken, pair.sigmoid())):
            loss = losses.bradley_terry_loss(*rewards.split(1)).item()
            assert value == pytest.approx(loss, abs=1e-6)
    notes = " ".join(text.get_text() for text in drawn["losses.png"].axes[0].texts)
    assert "ln 2 = 0.6931" in notes and "0.3133" in notes
    assert min(wrong.get_ydata()) > 0.3133 > min(right.get_ydata())


def test_missing_results_are_skipped_with_a_line(results, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, MODULE, None)  # the tool is not there
    (results / "bundled.json").unlink()
    assert draw() == sorted([*WITHOUT_RESULTS, *OTHERS])
    (line, other) = (s for s in capsys.readouterr().out.splitlines() if "skipped" in s)
    assert line == "images/comparison.png skipped: there is no results/bundled.json"
    assert "images/mistakes.png skipped" in other and MODULE in other
    (results / "mistakes.json").unlink()
    assert draw() == sorted([*WITHOUT_RESULTS, *OTHERS])
    assert "there is no results/mistakes.json" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "3", "[3]", '[{"accuracy": 0.5}]', '{"a": 1}'])
def test_bad_rows_are_one_sentence(content, results, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "WITHOUT_RESULTS", {})
    (results / "bundled.json").write_text(content)
    with pytest.raises(SystemExit) as stop:
        draw()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and "results/bundled.json" in error


def test_a_missing_folder_is_one_sentence(capsys):
    for flags in (
        ["--results", "nowhere"],
        ["--results", "results", "--output", "a file"],
    ):
        Path("a file").touch()
        with pytest.raises(SystemExit) as stop:
            pictures.main(flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1 and flags[-1] in error
