"""The flags of a command, and its errors in one line."""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager


def command(name: str, about: str) -> ArgumentParser:
    """The parser of a tool's flags: a mistake in them is one line and exit code 2."""
    parser = ArgumentParser(prog=f"python -m minirlhf {name}", description=about)
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
