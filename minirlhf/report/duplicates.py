"""Near duplicates: prompts of one part that nearly repeat a prompt of another part.

`data.split` keeps equal prompts in one part, but a reworded copy of a prompt may end up in another.
Two prompts are compared by the runs of eight words in a row (8-grams) that they share.

Prompts that were generated from templates often differ in little more than their numbers. Most of a
test prompt then stands in the training part, and nothing is wrong with the split. But the accuracy
on such prompts says how well the model does on new numbers in questions that it knows, and not how
well it would do on new questions. The accuracy on the other prompts is therefore given beside it.
"""

import re
from collections.abc import Sequence

from minirlhf.data import PreferencePair, normalize

RUN = 8  # words in a row
MOST = 0.5  # of its 8-grams; a prompt that shares so many is called a near duplicate


def near_duplicates(
    train: Sequence[PreferencePair], other: Sequence[PreferencePair]
) -> dict[str, int]:
    """How many prompts of `other` share eight words in a row with some prompt of `train`.

    The result holds `prompts`, the number of distinct prompts of `other`; `any`, how many of them
    share at least one 8-gram, for which a common phrase is enough; and `most`, how many share at
    least half of their 8-grams, as a reworded copy does. Prompts of fewer than eight words are
    compared whole.
    """
    shares = shared_runs(train, other).values()
    any_shared = sum(1 for share in shares if share > 0)
    most_shared = sum(1 for share in shares if share >= MOST)
    return {"prompts": len(shares), "any": any_shared, "most": most_shared}


def new_to(train: Sequence[PreferencePair], other: Sequence[PreferencePair]) -> list[bool]:
    """For each pair of `other`, whether its prompt is no near duplicate of one of `train`."""
    shares = shared_runs(train, other)
    return [shares[pair.prompt] < MOST for pair in other]


def shared_runs(
    train: Sequence[PreferencePair], other: Sequence[PreferencePair]
) -> dict[str, float]:
    """Of each distinct prompt of `other`, the share of its 8-grams that stand in `train`, too."""
    train_prompts = {pair.prompt for pair in train}
    grams_of_prompt = {pair.prompt: _grams(pair.prompt) for pair in other}

    # Only training grams that `other` has too are kept, because there may be very many.
    wanted = set().union(*grams_of_prompt.values())
    known = set()
    for prompt in train_prompts:
        known |= _grams(prompt) & wanted

    shares = {}
    for prompt, grams in grams_of_prompt.items():
        shares[prompt] = len(grams & known) / len(grams)
    return shares


def _grams(prompt: str) -> set[int]:
    """The 8-grams of a prompt, as hashes, which take a tenth of the memory of the words."""
    words = re.findall(r"\w+", normalize(prompt))
    grams = set()
    for start in range(max(1, len(words) - RUN + 1)):
        gram = tuple(words[start : start + RUN])
        grams.add(hash(gram))
    return grams
