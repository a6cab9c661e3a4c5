import pytest
import torch

from minirlhf import metrics
from minirlhf.data import Parts, PreferencePair
from minirlhf.loops import Evaluation
from minirlhf.report import results
from minirlhf.report.duplicates import near_duplicates, new_to


def test_near_duplicates_across_parts_are_found():
    train = [
        PreferencePair("A farmer has ten cows and sells four of them. How many?", "6", "5")
    ]
    near = train[0]._replace(prompt="A farmer has ten cows and sells four of them, how much?")
    far = train[0]._replace(
        prompt="How many days will nine apples last for three people in all?"
    )
    assert near_duplicates(train, [far]) == {"prompts": 1, "any": 0, "most": 0}
    assert near_duplicates(train, [near, far]) == {"prompts": 2, "any": 1, "most": 1}
    assert new_to(train, [near, far, near]) == [False, True, False]


def parts_of(train, test) -> Parts:
    return Parts(train=train, train_sample=train, validation=train, test=test)


def evaluation_of(margins: list[float]) -> Evaluation:
    return Evaluation(loss=0.0, margins=torch.tensor(margins), rewards=None)


def test_the_accuracy_on_new_prompts_is_given_beside_that_on_all():
    cows = "A farmer has ten cows and sells four of them. How many are left now?"
    train = [PreferencePair(cows, "6", "5")]
    test = []
    for number in range(4):
        test.append(train[0]._replace(prompt=f"{cows} Say it in {number} words."))
    for thing in ("apples", "pears", "plums"):
        test.append(
            train[0]._replace(
                prompt=f"Three people want to share nine {thing}. How? Explain it."
            )
        )
    test.append(test[-1])  # a second pair of the last prompt
    margins = [1.0, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0]
    found = results.on_new_prompts(parts_of(train, test), evaluation_of(margins))
    new = found["new_prompts"]
    assert (new["n"], new["n_prompts"], new["accuracy"]) == (4, 3, 0.5)
    right = torch.tensor([0.0, 1.0, 1.0, 0.0])
    interval = metrics.bootstrap(right, ["a", "b", "c", "c"], ends=(0, 1))
    assert new["accuracy_low"] == pytest.approx(interval.low)
    # Where all test prompts are new, or none is, there is nothing to set beside.
    assert results.on_new_prompts(parts_of(train, test[4:]), evaluation_of(margins[4:])) == {}
    none_new = results.on_new_prompts(parts_of(train, test[:4]), evaluation_of(margins[:4]))
    assert none_new == {"new_prompts": {"n": 0, "n_prompts": 0}}
