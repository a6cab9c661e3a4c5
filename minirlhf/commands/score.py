"""Score responses with a trained model, from the command line.

    python -m minirlhf score runs/bt-finetune --prompt "2 + 2?" --response 4 --response 5
    python -m minirlhf score runs/bt-finetune --input rows.jsonl --output scored.jsonl
    cat rows.jsonl | python -m minirlhf score runs/bt-finetune --input - --keep-going

The first form ranks the responses to one prompt, best first. The others score a file line by line,
for whoever wants rewards for many texts without writing Python. To score from Python, see
`minirlhf/score.py`.

Each line of the file is a JSON object. One with `prompt` and `response` gets a `score`. One with
`prompt` and a list `responses` gets a list `scores`; for a classification, which cannot score a
response by itself, these are the mean probabilities of being preferred to the others. Everything
else in the object is passed on unchanged.

The prompt may have any form and columns that `train.py` reads: a string, a transcript, `messages`,
`system` and `question`, and so on. A response may be a string, a message or a list of messages.
A line with `messages` and no response is a whole conversation; what comes after the last turn of
the user is scored.

Memory does not grow with the number of lines. The file named by `--output` appears when everything
is done. Until then, and after an error, what has been scored is in a file whose name ends in
`.part`.

Exit code: 0, or 2 for bad input.

What to copy: `score_lines`, which scores an endless stream of lines and reports the bad ones.
"""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TextIO

from minirlhf.layouts import Turn, UnusableRow, name_columns, read_prompt, write_texts
from minirlhf.runtime.command_line import command, one_line, quiet_transformers
from minirlhf.score import Scorer, load

# Enough lines to fill batches of texts of like length, and few enough to hold in memory.
LINES_AT_ONCE = 256


class Request(NamedTuple):
    """What one line asks for: the scores of some responses to a prompt."""

    row: dict  # the whole JSON object of the line
    prompt: str  # the texts as the model reads them
    responses: list[str]


class BadLine(NamedTuple):
    """A line that could not be read."""

    number: int  # 1 for the first line of the file
    reason: str


def read_line(line: str, compares: bool) -> Request:
    """Read one line. Raises ValueError with the reason if it cannot be scored.

    compares: whether the model is a classification, which cannot score one response by itself.
    """
    # `open_input` replaces bytes that are not UTF-8 by these characters.
    if re.search("[\udc80-\udcff]", line):
        raise ValueError("not UTF-8")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")

    try:
        prompt, responses = texts_of(row)
    except UnusableRow as reason:
        words = "prompt and responses must be text, or messages"
        raise ValueError(f"{reason}; {words}") from reason
    if compares and "responses" not in row:
        raise ValueError("a classification compares: give it several `responses`")
    return Request(row, prompt, responses)


def texts_of(row: dict) -> tuple[str, list[str]]:
    """The prompt and the responses of a row. Raises ValueError if it lacks one of them."""
    names = name_columns([name for name in row if name not in ("response", "responses")])
    question = read_prompt(row, names)
    if "responses" in row:
        responses = row["responses"]
        if not isinstance(responses, list) or not responses:
            raise ValueError("`responses` is not a list of texts")
    elif "response" in row:
        responses = [row["response"]]
    elif is_answered(question) and isinstance(row[names["prompt"]], list):
        responses = [row[names["prompt"]]]  # a whole conversation
    else:
        responses = []

    if not question or not responses:
        found = ", ".join(row) or "none"
        raise ValueError(f"needs prompt and response or responses; has {found}")
    return write_texts(question, responses)


def is_answered(turns: Sequence[Turn]) -> bool:
    """Whether the assistant has the last word."""
    return bool(turns) and turns[-1].role == "assistant"


def score_lines(
    scorer: Scorer, lines: Iterable[str], keep_going: bool = False
) -> Iterator[dict | BadLine]:
    """Yield each line's object with its score or scores added, in the order of the lines.

    The lines are read and scored `LINES_AT_ONCE` at a time. A line that cannot be read raises
    ValueError with its number, after the lines before it have been scored. With `keep_going` it
    is yielded as a `BadLine` instead. Also raises ValueError if a reward is not finite.
    """
    compares = scorer.approach == "classification"
    waiting: list[Request | BadLine] = []
    for number, line in enumerate(lines, start=1):
        try:
            waiting.append(read_line(line, compares))
        except ValueError as error:
            if not keep_going:
                yield from score_requests(scorer, waiting)
                raise ValueError(f"line {number}: {error}") from error
            waiting.append(BadLine(number, str(error)))

        if len(waiting) == LINES_AT_ONCE:
            yield from score_requests(scorer, waiting)
            waiting = []
    yield from score_requests(scorer, waiting)


def score_requests(
    scorer: Scorer, entries: Sequence[Request | BadLine]
) -> Iterator[dict | BadLine]:
    """Score all requests at once, and yield the results in the order of the entries."""
    requests = [entry for entry in entries if isinstance(entry, Request)]
    questions = [(request.prompt, request.responses) for request in requests]
    all_scores = iter(scorer.judge_texts(questions))

    for entry in entries:
        if isinstance(entry, BadLine):
            yield entry
            continue
        scores = next(all_scores)
        check_finite(scores)
        if "responses" in entry.row:
            entry.row["scores"] = scores
        else:
            entry.row["score"] = scores[0]
        yield entry.row


def check_finite(scores: Sequence[float]) -> None:
    """Raise ValueError if a score is NaN or infinite."""
    if not all(math.isfinite(score) for score in scores):
        raise ValueError("the model gives rewards that are not finite")


def score_file(scorer: Scorer, source: str, target: str | None, keep_going: bool) -> None:
    """Score the lines of the file `source` and write them to the file `target`.

    source: "-" reads the standard input. target: None writes to the standard output.
    Raises ValueError at a bad line, unless `keep_going` is set, and if `target` exists, which is
    never replaced. Raises OSError if a file cannot be opened.
    """
    part = None
    if target is not None:
        part = f"{target}.part"
        check_absent(target)
        check_absent(part)

    bad_lines = 0
    with open_input(source) as lines, open_output(part) as file:
        try:
            for result in score_lines(scorer, lines, keep_going):
                if isinstance(result, BadLine):
                    bad_lines += 1
                    print(f"line {result.number}: {result.reason}", file=sys.stderr)
                else:
                    print(json.dumps(result, ensure_ascii=False), file=file)
        except ValueError as error:
            if part is None:
                raise
            raise ValueError(f"{error}; the lines before it are in {part}") from error

    if target is not None:
        os.rename(part, target)
    if bad_lines:
        print(f"{bad_lines} lines could not be read and were passed over", file=sys.stderr)


def check_absent(path: str) -> None:
    """Raise ValueError if there is a file or folder of that name."""
    if os.path.exists(path):
        raise ValueError(f"{path} exists and is not replaced")


def open_input(source: str) -> TextIO:
    """Open a file of lines, or the standard input for "-".

    A byte that is not UTF-8 spoils its own line only: "surrogateescape" turns it into a character
    that `read_line` recognises, where the default would end the reading.
    """
    file = 0 if source == "-" else source
    return open(file, encoding="utf-8-sig", errors="surrogateescape")


def open_output(path: str | None) -> TextIO:
    """Open a file to write, or the standard output for None.

    JSON can hold half of a surrogate pair, which UTF-8 cannot. It is written as JSON escapes it.
    """
    if path is None:
        return open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    return open(path, "w", encoding="utf-8", errors="backslashreplace")


def print_ranking(scorer: Scorer, prompt: str, responses: Sequence[str]) -> None:
    """Print the responses, best first, each after its reward or win rate."""
    title = "win rate" if scorer.approach == "classification" else "reward"
    print(f"{title:>8}  response")
    for score, response in scorer.rank(prompt, responses):
        print(f"{score:8.3f}  {response}")


def parse(
    argv: Sequence[str] | None,
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The flags, checked, and the parser, which reports later errors."""
    parser = command("score", "Score responses, or rank those to one prompt, best first.")
    parser.add_argument("run", help="a run folder, such as runs/bt-finetune")
    parser.add_argument("--prompt", help="the prompt that the responses answer")
    parser.add_argument("--response", action="append", help="a response; give it several times")
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="instead: JSON lines of `prompt` and `response` or a list `responses`, of text or "
        "messages; - reads the standard input",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="where the scored lines go (default: standard output)",
    )
    parser.add_argument("--keep-going", action="store_true", help="pass over unreadable lines")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda or mps (default: auto)"
    )
    args = parser.parse_args(argv)

    if args.input:
        complete = not args.prompt and not args.response
    else:
        complete = args.prompt and args.response
    if not complete:
        parser.error("give --prompt and --response, or --input")
    if not args.input and (args.output or args.keep_going):
        parser.error("--output and --keep-going go with --input")
    return parser, args


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the responses on the command line, or score a file."""
    parser, args = parse(argv)
    quiet_transformers()
    with one_line(parser):
        scorer = load(args.run, args.device)
        if args.input:
            score_file(scorer, args.input, args.output, args.keep_going)
        else:
            print_ranking(scorer, args.prompt, args.response)
