"""The command line of `minirlhf.score`: rank some responses, or score a file line by line.

    python -m minirlhf score runs/bt-finetune --prompt "2 + 2?" --response 4 --response 5
    python -m minirlhf score runs/bt-finetune --input rows.jsonl --output scored.jsonl
    cat rows.jsonl | python -m minirlhf score runs/bt-finetune --input - --keep-going

A line is a JSON object with `prompt` and `response`, and gets a `score`; or with `prompt` and a
list `responses`, and gets `scores` (of a classification: mean probabilities of being preferred).
What else it holds is handed on. Memory does not grow with the number of lines. The file named by
`--output` appears when all is done; until then, and after an error, what there is stands in a file
whose name ends in `.part`.
"""

import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from minirlhf.runtime.command_line import command, one_line
from minirlhf.score import Scorer, load


def read_line(line: str, compares: bool) -> tuple[dict, str, list[str]]:
    """The row, its prompt and its responses. Raises ValueError with the reason if it is not one.

    compares: the model is a classification, which cannot score one response by itself.
    """
    if re.search("[\udc80-\udcff]", line):  # what `surrogateescape` made of bytes
        raise ValueError("not UTF-8")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    if "prompt" not in row or not {"response", "responses"} & set(row):
        raise ValueError(f"needs prompt and response or responses; has {', '.join(row) or 'none'}")
    many = row["responses"] if "responses" in row else [row["response"]]
    if not isinstance(many, list) or not many:
        raise ValueError("`responses` is not a list of texts")
    if not all(isinstance(text, str) for text in (row["prompt"], *many)):
        raise ValueError("prompt and responses must be text")
    if compares and "responses" not in row:
        raise ValueError("a classification compares: give it several `responses`")
    return row, row["prompt"], many


def score_lines(scorer: Scorer, lines: Iterable[str], keep_going: bool = False) -> Iterator[dict]:
    """The rows with their scores, as they come, 256 at a time.

    A line that cannot be read raises ValueError with its number, after the rows before it; if
    `keep_going`, it comes back as {"line": number, "error": reason}.
    """
    numbered, failed = enumerate(lines, 1), None
    while not failed and (chunk := list(islice(numbered, 256))):
        rows, items = [], []
        for number, line in chunk:
            try:
                row, *item = read_line(line, scorer.approach == "classification")
            except ValueError as error:
                if not keep_going:
                    failed = ValueError(f"line {number}: {error}")
                    break
                rows.append({"line": number, "error": str(error)})
                continue
            rows.append(row)
            items.append(item)
        found = iter(scorer.judge(items))
        for row in rows:
            if row.keys() != {"line", "error"}:
                numbers = next(found)
                if not all(map(math.isfinite, numbers)):
                    raise ValueError("the model gives rewards that are not finite")
                row |= {"scores": numbers} if "responses" in row else {"score": numbers[0]}
            yield row
    if failed:
        raise failed


def score_file(scorer: Scorer, source: str, target: str | None, keep_going: bool) -> None:
    """Score the lines of `source` into `target`; "-" and None are standard input and output.

    Raises ValueError at a bad line unless `keep_going`, OSError if a file cannot be opened; a
    `target` that exists is not replaced.
    """
    bad, part = 0, f"{target}.part"
    for name in (target, part) if target else ():
        if os.path.exists(name):
            raise ValueError(f"{name} exists and is not replaced")
    # A byte that is no UTF-8 is one line's fault; half a surrogate pair is written as JSON has it.
    read, write = {"errors": "surrogateescape"}, {"errors": "backslashreplace"}
    with (
        open(0 if source == "-" else source, encoding="utf-8-sig", **read) as lines,
        open(part if target else 1, "w", encoding="utf-8", closefd=bool(target), **write) as file,
    ):
        try:
            for row in score_lines(scorer, lines, keep_going):
                if row.keys() == {"line", "error"}:
                    bad += 1
                    print("line {line}: {error}".format(**row), file=sys.stderr)
                else:
                    print(json.dumps(row, ensure_ascii=False), file=file)
        except ValueError as error:
            kept = f"; the lines before it are in {part}" if target else ""
            raise ValueError(f"{error}{kept}") from error
    if target:
        os.rename(part, target)
    if bad:
        print(f"{bad} lines could not be read and were passed over", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    about = "Score responses, or rank those to one prompt, best first."
    parser = command("score", about)
    add = parser.add_argument
    add("run", help="a run folder, such as runs/bt-finetune")
    add("--prompt")
    add("--response", action="append", help="give it several times")
    add("--input", metavar="FILE", help="instead: JSON lines of `prompt` and `response` or a list "
        "`responses`; - reads the standard input")  # fmt: skip
    add("--output", metavar="FILE", help="where the scored lines go (default: standard output)")
    add("--keep-going", action="store_true", help="pass over lines that cannot be read")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    args = parser.parse_args(argv)
    typed = [bool(args.prompt), bool(args.response), bool(args.input)]
    if typed not in ([True, True, False], [False, False, True]):
        parser.error("give --prompt and --response, or --input")
    if (args.output or args.keep_going) and not args.input:
        parser.error("--output and --keep-going go with --input")
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with one_line(parser):
        scorer = load(args.run, args.device)
        if args.input:
            return score_file(scorer, args.input, args.output, args.keep_going)
        print("win rate" if scorer.approach == "classification" else "  reward", " response")
        for number, response in scorer.rank(args.prompt, args.response):
            print(f"{number:8.3f}  {response}")
