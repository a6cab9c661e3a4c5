"""Long and large (slow, asked for with `-m slow -s`): memory, and times to be read.

Times are printed, not asserted: on a machine that others use they say nothing about the code.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from minirlhf import model
from minirlhf.bundled.arithmetic import generate

ROOT = Path(__file__).parents[1]


class Cost(NamedTuple):
    """What a process took."""

    seconds: float  # of CPU
    megabytes: float  # at its peak


# Runs what its arguments say as `python` would, and writes at last what that took.
MEASURE = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, {root!r})
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""


def measured(*command: str) -> Cost:
    """What `python COMMAND` takes, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(root=str(ROOT)), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    seconds, most = run.stderr.split()[-2:]
    return Cost(float(seconds), int(most) / scale)


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_scored_in_flat_memory(tiny_encoder):
    Path("run").mkdir()
    model.save(model.build("bt-finetune", tiny_encoder, max_length=64), Path("run/model"))
    rows = generate(1000)
    costs = {}
    for count in (1000, 20_000, 100_000):
        with open("rows.jsonl", "w") as file:
            for i in range(count):
                row = rows[i % 1000]
                asked = {"id": i, "prompt": row["prompt"], "response": row["chosen"]}
                print(json.dumps(asked), file=file)
        out = f"scored-{count}.jsonl"
        flags = ["--input", "rows.jsonl", "--output", out, "--device", "cpu"]
        costs[count] = measured("minirlhf", "score", "run", *flags)
        with open(out) as file:
            ids = [json.loads(line)["id"] for line in file]
        assert ids == list(range(count))
    print(costs)
    assert costs[100_000].megabytes < costs[20_000].megabytes + 50


@pytest.mark.slow
def test_a_hundred_thousand_pairs_take_three_kilobytes_each_at_most(tiny_encoder):
    costs = {}
    for count in (1000, 20_000, 100_000):
        with open("pairs.jsonl", "w") as file:
            for row in generate(count):
                print(json.dumps(row), file=file)
        flags = [
            "--approach",
            "bt-frozen",
            "--dataset",
            "pairs.jsonl",
            "--model",
            tiny_encoder,
        ]
        flags += [
            "--max-length",
            "64",
            "--epochs",
            "2",
            "--tracking-uri",
            "none",
            "--no-cache",
        ]
        costs[count] = measured(str(ROOT / "train.py"), *flags, "--output", f"run-{count}")
        config = json.loads(Path(f"run-{count}/config.json").read_text())
        assert config["data"]["pairs"] == count
    print(costs)
    # Texts, token rows and features, each once: 1.7 kB measured. A copy of all would be too much.
    more = costs[100_000].megabytes - costs[20_000].megabytes
    assert more < 80_000 * 0.003
