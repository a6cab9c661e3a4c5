from minirlhf.data import PreferencePair
from minirlhf.report.duplicates import near_duplicates


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
