"""A long piece of work shows that it is alive, with and without a terminal."""

import io
import sys

from minirlhf.runtime import progress
from minirlhf.runtime.progress import Progress


class Clock:
    """A clock that stands still, unless somebody works."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def work(monkeypatch, seconds_an_item: float, items: int, **options) -> list[str]:
    """What is said on the standard error while the items are worked on."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    said = io.StringIO()  # no terminal
    monkeypatch.setattr(sys, "stderr", said)
    bar = Progress(list(range(items)), [32] * items, "epoch 1 of 3", "pairs", **options)
    seen = []
    for item in bar:
        seen.append(item)
        clock.now += seconds_an_item
        bar.note = f"loss {1 / (item + 1):.3f}"
    assert seen == list(range(items))
    return [line for line in said.getvalue().splitlines() if line]


def test_without_a_terminal_there_is_a_line_at_least_every_thirty_seconds(monkeypatch):
    lines = work(monkeypatch, seconds_an_item=9, items=100)
    # Nine seconds an item, so a line comes every 27 seconds, after three items each.
    assert len(lines) == 33
    assert lines[0] == (
        "epoch 1 of 3: 3% done, 3.6 pairs a second, 15 minutes left, loss 0.333"
    )
    assert lines[-1] == "epoch 1 of 3: 99% done, 3.6 pairs a second, 9 seconds left, loss 0.010"


def test_short_work_needs_no_line(monkeypatch):
    assert work(monkeypatch, seconds_an_item=1, items=19) == []


def test_the_estimate_comes_once_within_ten_seconds(monkeypatch):
    lines = work(monkeypatch, seconds_an_item=2, items=9, epochs_left=3, advice="take less")
    assert lines == ["epoch 1 of 3: the training will take about 54 seconds"]


def test_a_long_estimate_says_how_to_shorten_it(monkeypatch):
    lines = work(monkeypatch, seconds_an_item=2, items=200, epochs_left=3, advice="take less")
    assert lines[0] == "epoch 1 of 3: the training will take about 20 minutes; take less"
    assert sum("will take" in line for line in lines) == 1


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys, "stderr", terminal)
    for _ in Progress(list(range(5)), [1] * 5, "encoding", "texts"):
        clock.now += 30
    said = terminal.getvalue()
    assert "encoding" in said and "5/5" not in said.splitlines()[-1:]
    assert "a second" not in said


def test_a_time_in_words():
    assert progress.duration(0.4) == "0 seconds"
    assert progress.duration(1.2) == "a second"
    assert progress.duration(119) == "119 seconds"
    assert progress.duration(121) == "2 minutes"
    assert progress.duration(7300) == "2.0 hours"


def test_only_the_first_process_of_torchrun_shows_progress(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setenv("RANK", "1")
    assert list(Progress([1, 2], [1, 1], "reading", "texts")) == [1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert list(Progress([1, 2], [1, 1], "reading", "texts")) == [1, 2]
    assert "50% done" in capsys.readouterr().err
