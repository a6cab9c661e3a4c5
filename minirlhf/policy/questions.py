"""What a policy is asked: the questions to learn from, to look at while learning, and to judge by.

The questions of the toy are made by the bundled generator, so there are always new ones: no
question is learned from twice. Those to look at and to judge by come from one pool, which depends
on no seed or method. Prompts that the reward was trained on are taken out first, so two rewards may
be judged on slightly different questions. The supervised start has seen none of the pool.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from minirlhf import data
from minirlhf.bundled.arithmetic import Problem, make_problem
from minirlhf.layouts import listed, name_columns, read_prompt, write_texts
from minirlhf.runtime import files

POOL = 4000  # problems that nothing is trained on


@dataclass(frozen=True)
class Question:
    """What a policy is asked."""

    text: str
    problem: Problem | None = None  # for the toy, whose truth is known


class Questions(NamedTuple):
    """The questions of a run, in three parts that share none."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


@cache
def held_out_problems() -> list[Problem]:
    """The pool of problems that no policy learns from."""
    return distinct_problems(random.Random("held out"), POOL, avoid=set())


def distinct_problems(rng: random.Random, count: int, avoid: set[str]) -> list[Problem]:
    """So many problems with different prompts, none of which is in `avoid`."""
    problems: dict[str, Problem] = {}
    while len(problems) < count:
        problem = make_problem(rng)
        if problem.prompt not in avoid:
            problems.setdefault(problem.prompt, problem)
    return list(problems.values())


def toy_questions(
    train: int, validation: int, test: int, seed: int, seen: set[str]
) -> Questions:
    """Bundled problems, so many in each part.

    seed: of the training part only. seen: prompts that the reward was trained on; they are in no
    part to look at or to judge by. Raises ValueError if the pool is too small.
    """
    pool = held_out_problems()
    unseen = [problem for problem in pool if problem.prompt not in seen]
    if len(unseen) < validation + test:
        raise ValueError(
            f"there are {len(unseen)} unseen problems; lower --validation or --test"
        )
    rng = random.Random(f"policy {seed}")
    learned = distinct_problems(rng, train, avoid={problem.prompt for problem in pool})
    return Questions(
        train=as_questions(learned),
        validation=as_questions(unseen[test : test + validation]),
        test=as_questions(unseen[:test]),
    )


def as_questions(problems: list[Problem]) -> list[Question]:
    """The problems as questions."""
    return [Question(problem.prompt, problem) for problem in problems]


def dataset_questions(
    name: str, split: str, config: str | None, column: str | None, fold: int, seed: int
) -> Questions:
    """The prompts of other data, split as `data.split` does it for a run of that fold.

    Raises ValueError if there is no column of prompts, or if there are too few to split.
    """
    texts: dict[str, None] = {}  # in their order, each once
    for row in files.load_rows(name, split, config):
        columns = name_columns(list(row), prompt=column)
        if not columns["prompt"]:
            raise ValueError(f"no column of prompts in {name}; it has: {listed(list(row))}")
        text, _ = write_texts(read_prompt(row, columns), ["?"])
        texts.setdefault(text)
    pairs = [data.PreferencePair(text, "", "") for text in texts]
    parts = data.split(pairs, fold)
    train, validation, test = [[Question(pair.prompt) for pair in part] for part in parts]
    random.Random(f"policy {seed}").shuffle(train)
    return Questions(train, validation, test)


def questions_of_step(train: list[Question], step: int, count: int) -> list[Question]:
    """The questions of a training step, the first step being 1; after the last comes the first."""
    first = (step - 1) * count
    return [train[i % len(train)] for i in range(first, first + count)]
