"""Near duplicates: prompts of one part that nearly repeat a prompt of another part.

`data.split` keeps equal prompts in one part, but a reworded copy of a prompt may end up in another.
Two prompts are compared by the runs of eight words in a row (8-grams) that they share.
"""

import re
from collections.abc import Sequence

from minirlhf.data import PreferencePair, normalize

RUN = 8  # words in a row


def near_duplicates(
    train: Sequence[PreferencePair], other: Sequence[PreferencePair]
) -> dict[str, int]:
    """How many prompts of `other` share eight words in a row with some prompt of `train`.

    The result holds `prompts`, the number of distinct prompts of `other`; `any`, how many of them
    share at least one 8-gram, for which a common phrase is enough; and `most`, how many share at
    least half of their 8-grams, as a reworded copy does. Prompts of fewer than eight words are
    compared whole.
    """
    other_prompts = {pair.prompt for pair in other}
    train_prompts = {pair.prompt for pair in train}
    grams_of_prompt = [_grams(prompt) for prompt in other_prompts]

    # Only training grams that `other` has too are kept, because there may be very many.
    wanted = set().union(*grams_of_prompt)
    known = set()
    for prompt in train_prompts:
        known |= _grams(prompt) & wanted

    any_shared = 0
    most_shared = 0
    for grams in grams_of_prompt:
        share = len(grams & known) / len(grams)
        if share > 0:
            any_shared += 1
        if share >= 0.5:
            most_shared += 1
    return {"prompts": len(other_prompts), "any": any_shared, "most": most_shared}


def _grams(prompt: str) -> set[int]:
    """The 8-grams of a prompt, as hashes, which take a tenth of the memory of the words."""
    words = re.findall(r"\w+", normalize(prompt))
    grams = set()
    for start in range(max(1, len(words) - RUN + 1)):
        gram = tuple(words[start : start + RUN])
        grams.add(hash(gram))
    return grams
