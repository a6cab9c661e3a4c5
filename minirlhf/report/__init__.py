"""What a run reports: its numbers as words and pictures.

The files, from the small pieces to the whole:

    tables.py       numbers with intervals as text, and Markdown tables
    verdict.py      pairs as text, the result in a few lines, the worst mistakes
    card.py         the run folder's README, a model card; `card.md` is its template
    duplicates.py   how many prompts of one part nearly repeat a prompt of another
    figures.py      the pictures of a run, and what to look for in each
    comparison.py   several approaches on the same folds in one table
    results.py      the numbers of each part, and a finished run's files that people read
"""
