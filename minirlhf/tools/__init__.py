"""Commands beside the library: `python -m minirlhf.tools.NAME`. The library imports none of them;
`train.py` runs `compare` for its `--approach all` and `--folds`, and `python -m minirlhf.score` is
`score_lines`: a feature of one flag is no part of the book. In every run `train.py` also calls
`resume` (the lock and the saved state) and `report` (numbers into words).

selfcheck    padding, order, loss at start, save and load: is this model's plumbing sound?
benchmark    speed, memory and start-up on this machine, beside TRL and others
overoptimize best-of-n by reward against the true rating, honest and with a planted shortcut
evaluate     a run on other data: pairs, or the best of n graded candidates; never on its training
export       a run as a model folder of sentence-transformers or transformers, rewards compared
mistakes     from a recipe full of the classic bugs to an honest one, a bug a row, measured
pictures     the pictures of README.md, drawn from committed results
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager


def command(name: str, about: str) -> ArgumentParser:
    """The parser of a tool's flags: a mistake in them is one line and exit code 2."""
    parser = ArgumentParser(prog=f"python -m minirlhf.{name}", description=about)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    return parser


@contextmanager
def one_line(parser: ArgumentParser) -> Iterator[None]:
    """What goes wrong inside is said in one line: bad input with exit code 2, Ctrl-C with 130."""
    try:
        yield
    except KeyboardInterrupt:
        parser.exit(130, "\ninterrupted\n")
    except (ValueError, OSError, FloatingPointError) as error:
        parser.error(" ".join(str(error).split()))
