"""How far a long piece of work is: a bar on a terminal, and elsewhere a line now and then.

A bar needs a terminal to move in. Where there is none, as in a log file or a notebook, a line is
printed every twenty seconds, so that nobody has to guess whether anything happens. Both go to the
standard error, because the standard output is for results.

Copy this file alone; it needs tqdm when called.

>>> for letter in Progress(["a", "b"], [1, 1], "reading", "letters"):
...     print(letter)
a
b
>>> duration(130)
'2 minutes'
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SECONDS_BETWEEN_LINES = 20
SECONDS_TO_ESTIMATE = 5  # of work, on which the estimate of the whole is based
LONG = 600  # seconds; above this, `advice` is printed with the estimate


@dataclass
class Progress:
    """An iterable over `items` that shows how much of the work is done."""

    items: Sequence
    sizes: Sequence[int]  # of each item, counted in `unit`
    title: str  # what the work is called
    unit: str  # a plural noun
    epochs_left: int | None = None  # if given, the time for this many is estimated once
    advice: str = ""  # how to shorten them, if they take long
    note: str = ""  # shown beside the share that is done; may be set anew for each item

    def __iter__(self) -> Iterator:
        """The items. What is done is shown whenever the next one is asked for."""
        from tqdm import tqdm

        total = sum(self.sizes)
        self.done = 0
        self.start = time.monotonic()
        self.next_line = SECONDS_BETWEEN_LINES
        self.estimate_is_due = self.epochs_left is not None

        # Of torchrun's processes the first one speaks for all.
        self.is_silent = os.environ.get("RANK", "0") != "0"

        # None: there is no bar where the standard error is no terminal.
        disable = True if self.is_silent else None
        unit = f" {self.unit}"
        with tqdm(total=total, desc=self.title, unit=unit, leave=False, disable=disable) as bar:
            for item, size in zip(self.items, self.sizes, strict=True):
                yield item
                self.done += size
                self.show(bar, size, total)

    def show(self, bar, size: int, total: int) -> None:
        """Show what is done after an item: on the bar, or in a line if there is none.

        bar: tqdm's; size: of the item; total: the size of all items.
        """
        if self.is_silent:
            return
        bar.set_postfix_str(self.note, refresh=False)
        bar.update(size)

        seconds = time.monotonic() - self.start
        if self.estimate_is_due and seconds >= SECONDS_TO_ESTIMATE:
            bar.write(self.estimate(seconds * total / self.done), file=sys.stderr)
            self.estimate_is_due = False
        if bar.disable and seconds >= self.next_line and self.done < total:
            print(self.line(self.done, total, seconds), file=sys.stderr)
            self.next_line = seconds + SECONDS_BETWEEN_LINES

    def estimate(self, seconds: float) -> str:
        """How long all epochs will take, if one takes so many seconds."""
        whole = seconds * self.epochs_left
        text = f"{self.title}: the training will take about {duration(whole)}"
        return f"{text}; {self.advice}" if whole > LONG else text

    def line(self, done: int, total: int, seconds: float) -> str:
        """What is shown where there is no terminal, after so many seconds of work."""
        speed = done / seconds
        left = duration((total - done) / speed)
        text = f"{self.title}: {done / total:.0%} done, {speed:.1f} {self.unit} a second"
        text = f"{text}, {left} left"
        return f"{text}, {self.note}" if self.note else text


def duration(seconds: float) -> str:
    """A time in words: in seconds below two minutes, in minutes below two hours, or in hours."""
    if round(seconds) == 1:
        return "a second"
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
