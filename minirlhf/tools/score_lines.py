"""Score a file line by line: what `python -m minirlhf.score RUN --input FILE` does.

    python -m minirlhf.score runs/bt-finetune --input rows.jsonl --output scored.jsonl
    cat rows.jsonl | python -m minirlhf.score runs/bt-finetune --input - --keep-going

A line is a JSON object with `prompt` and `response`, and gets a `score`; or with `prompt` and a
list `responses`, and gets `scores` (of a classification: mean probabilities of being preferred).
What else it holds is handed on. Memory does not grow with the number of lines.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

from minirlhf.score import Scorer


def read_line(line: str, compares: bool) -> tuple[dict, str, list[str]]:
    """The row, its prompt and its responses. Raises ValueError with the reason if it is not one.

    compares: the model is a classification, which cannot score one response by itself.
    """
    try:
        row = json.loads(line)
    except ValueError as error:
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

    A line that cannot be read raises ValueError with its number; if `keep_going`, it comes back as
    {"line": number, "error": reason}.
    """
    numbered = enumerate(lines, 1)
    while chunk := list(islice(numbered, 256)):
        rows, items = [], []
        for number, line in chunk:
            try:
                row, *item = read_line(line, scorer.approach == "classification")
            except ValueError as error:
                if not keep_going:
                    raise ValueError(f"line {number}: {error}") from error
                rows.append({"line": number, "error": str(error)})
                continue
            rows.append(row)
            items.append(item)
        found = iter(scorer.judge(items))
        for row in rows:
            if row.keys() != {"line", "error"}:
                numbers = next(found)
                row |= {"scores": numbers} if "responses" in row else {"score": numbers[0]}
            yield row


def main(scorer: Scorer, source: str, target: str | None, keep_going: bool) -> None:
    """Score the lines of `source` into `target`; "-" and None are standard input and output.

    Raises ValueError at a bad line unless `keep_going`, OSError if a file cannot be opened; a
    `target` that exists is not replaced.
    """
    bad = 0
    with (
        open(0 if source == "-" else source, encoding="utf-8") as lines,
        open(target or 1, "x" if target else "w", encoding="utf-8", closefd=bool(target)) as file,
    ):
        for row in score_lines(scorer, lines, keep_going):
            if row.keys() == {"line", "error"}:
                bad += 1
                print("line {line}: {error}".format(**row), file=sys.stderr)
            else:
                print(json.dumps(row, ensure_ascii=False), file=file)
    if bad:
        print(f"{bad} lines could not be read and were passed over", file=sys.stderr)
