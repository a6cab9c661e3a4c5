"""The flags of a command, and its errors in one line.

Bad input ends a command with one sentence on stderr and exit code 2, Ctrl-C with exit code 130, and
neither with a stack trace. An error of any other kind is a fault of ours and keeps its trace.

Copy this file alone. It needs safetensors, and transformers for `quiet_transformers`.

>>> parser = command("score", "Score responses.")
>>> parser.prog
'python -m minirlhf score'
"""

import signal
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def command(name: str, about: str) -> ArgumentParser:
    """The parser of a command's flags. A mistake in them is one line and exit code 2."""
    parser = ArgumentParser(prog=f"python -m minirlhf {name}", description=about)
    parser.error = lambda message: parser.exit(2, f"{parser.prog}: error: {message}\n")
    return parser


def print_at_once() -> None:
    """Show each line when it is printed; where there is no terminal, Python would hold it back."""
    sys.stdout.reconfigure(line_buffering=True)


def quiet_transformers() -> None:
    """No bars and warnings of transformers: we say in one sentence what is wrong."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def no_hint() -> str:
    """The default hint, which is empty."""
    return ""


@contextmanager
def one_line(parser: ArgumentParser, hint: Callable[[], str] = no_hint) -> Iterator[None]:
    """Turn Ctrl-C, and errors that a user can mend, into one line on stderr and an exit code.

    Any other error is raised again, with its trace.

    parser: the command's; its name stands before the error.
    hint: called after Ctrl-C; what it returns is added to "interrupted".
    """
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends at once
        print(f"\ninterrupted{hint()}", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        sentence = in_words(error)
        if sentence is None:
            raise
        print(f"{parser.prog}: error: {sentence}", file=sys.stderr)
        raise SystemExit(2) from None


def in_words(error: Exception) -> str | None:
    """What a user can understand of an error, in one line; None for a fault of ours."""
    text = " ".join(str(error).split())
    # A thread that cannot be started lacks memory, too.
    short_of_memory = "memory" in text or "start new thread" in text
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and short_of_memory):
        return "out of memory; lower --batch-size (raise --accumulate instead) or --max-length"
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        return text

    # `SafetensorError` is raised where a file is damaged or the disk is full.
    from safetensors import SafetensorError

    return text if isinstance(error, SafetensorError) else None
