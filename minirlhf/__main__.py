"""`python -m minirlhf` lists the commands and experiments; `python -m minirlhf score ...` runs one.

The console script `minirlhf` is the same.
"""

import importlib
import sys
from collections.abc import Sequence

from minirlhf.runtime.command_line import print_at_once

COMMANDS = {
    "score": "score responses, rank them, or score a file line by line",
    "evaluate": "judge a run on other data: pairs, or the best of several graded candidates",
    "compare": "train and test all approaches on the same folds, and make one table",
    "selfcheck": "check a reward model's plumbing: padding, order, save and load",
    "policy": "train a policy on a reward, four ways, and see what the reward was worth",
    "export": "write a run as a model folder of sentence-transformers or transformers",
}
EXPERIMENTS = {
    "mistakes": "what each of eight classic mistakes costs, mended one by one",
    "overoptimize": "choose the best of n by reward, and watch what it is really worth",
    "turn": "how far a policy rises on a reward before it turns, over several runs",
    "coverage": "how often the 95 % intervals hold the truth, by simulation",
    "peers": "train with TRL and sentence-transformers on the same pairs, and compare results",
    "benchmark": "speed, memory and start-up on this machine, beside other libraries",
    "pictures": "draw the pictures of the README from committed results",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command named by the first argument; without one, list them all."""
    argv = list(sys.argv[1:] if argv is None else argv)
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        print(overview())
        return
    if name in COMMANDS:
        module = importlib.import_module(f"minirlhf.commands.{name}")
    elif name in EXPERIMENTS:
        module = importlib.import_module(f"minirlhf.experiments.{name}")
    else:
        known = ", ".join([*COMMANDS, *EXPERIMENTS])
        print(f"minirlhf: error: there is no command {name!r}, only {known}", file=sys.stderr)
        raise SystemExit(2)
    print_at_once()
    module.main(argv[1:])


def overview() -> str:
    """All commands and experiments, a line each."""
    lines = [
        "usage: python -m minirlhf COMMAND [flags]; COMMAND --help lists a command's flags"
    ]
    for title, entries in (("commands", COMMANDS), ("experiments", EXPERIMENTS)):
        lines.append(f"\n{title}:")
        lines += [f"  {name:13} {text}" for name, text in entries.items()]
    lines.append("\nTo train a model: python train.py --help")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
