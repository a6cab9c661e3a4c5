"""Numbers as text: an estimate with its interval, and Markdown tables.

>>> interval({"accuracy": 0.762, "accuracy_low": 0.73, "accuracy_high": 0.791})
'0.762 [0.730, 0.791]'
>>> print(table(["approach", "accuracy"], [["bt-finetune", 0.8], ["bt-frozen", 0.7]]), end="")
| approach | accuracy |
|---|---|
| bt-finetune | 0.8 |
| bt-frozen | 0.7 |
"""

from collections.abc import Iterable, Sequence


def interval(numbers: dict, name: str = "accuracy", form: str = ".3f") -> str:
    """The number `name` with its interval as text: `0.762 [0.730, 0.791]`.

    numbers: holds `name` and, where there is an interval, `name_low` and `name_high`
        (`metrics.named`). Without an interval the text is the number alone, and without the number
        it is a dash.
    form: how each number is written, as in an f-string.
    """
    estimate = numbers.get(name)
    low = numbers.get(f"{name}_low")
    high = numbers.get(f"{name}_high")
    if estimate is None:
        return "–"
    if low is None:
        return f"{estimate:{form}}"
    return f"{estimate:{form}} [{low:{form}}, {high:{form}}]"


def table_row(cells: Iterable) -> str:
    """One line of a Markdown table. A "|" in a cell is escaped, since it would end the cell."""
    escaped = [str(cell).replace("|", "\\|") for cell in cells]
    return "| " + " | ".join(escaped) + " |"


def table_head(titles: Sequence[str]) -> str:
    """The first two lines of a Markdown table: the titles and the rule below them."""
    rule = "|---" * len(titles) + "|"
    return table_row(titles) + "\n" + rule


def table(head: Sequence[str], lines: Iterable[Iterable]) -> str:
    """A whole Markdown table: the titles of its columns, and the cells of each line."""
    text = table_head(head) + "\n"
    for cells in lines:
        text += table_row(cells) + "\n"
    return text
