"""Long and large (slow, asked for with `-m slow`): memory stays flat and time grows with N only."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minirlhf import model
from minirlhf.bundled.arithmetic import generate

ROOT = Path(__file__).parents[1]


def measured(*command: str) -> tuple[float, float]:
    """Seconds and peak memory (MB) of `python COMMAND`, in a process of its own."""
    code = "import resource, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, {!r})\n"
    code += "try: runpy.run_{}\nfinally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,"
    code += " file=sys.stderr)"
    what = "module(sys.argv[0], run_name='__main__', alter_sys=True)"
    if command[0].endswith(".py"):
        what = "path(sys.argv[0], run_name='__main__')"
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", code.format(str(ROOT), what), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return time.perf_counter() - start, int(run.stderr.split()[-1]) / scale


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_scored_in_flat_memory(tiny_encoder):
    Path("run").mkdir()
    model.save(model.build("bt-finetune", tiny_encoder, max_length=64), Path("run/model"))
    rows, seen = generate(1000), {}
    for count in (1000, 20_000, 100_000):
        with open("rows.jsonl", "w") as file:
            for i in range(count):
                row = rows[i % 1000]
                row = {"id": i, "prompt": row["prompt"], "response": row["chosen"]}
                print(json.dumps(row), file=file)
        out = f"scored-{count}.jsonl"
        command = ["run", "--input", "rows.jsonl", "--output", out, "--device", "cpu"]
        seen[count] = measured("minirlhf.score", *command)
        with open(out) as file:
            assert sum(json.loads(line)["id"] == i for i, line in enumerate(file)) == count
    print(seen)
    start = seen[1000][0]
    assert seen[100_000][1] < seen[20_000][1] + 50
    assert (seen[100_000][0] - start) < 7 * (seen[20_000][0] - start)


@pytest.mark.slow
def test_a_hundred_thousand_pairs_are_loaded_and_learned_from_in_linear_time(tiny_encoder):
    seen = {}
    for count in (1000, 20_000, 100_000):
        with open("pairs.jsonl", "w") as file:
            for row in generate(count):
                print(json.dumps(row), file=file)
        flags = ["--approach", "bt-frozen", "--dataset", "pairs.jsonl", "--model", tiny_encoder]
        flags += ["--max-length", "64", "--epochs", "2", "--tracking-uri", "none", "--no-cache"]
        seen[count] = measured(str(ROOT / "train.py"), *flags, "--output", f"run-{count}")
        config = json.loads(Path(f"run-{count}/config.json").read_text())
        assert config["data"]["pairs"] == count
    print(seen)
    start = seen[1000][0]
    assert (seen[100_000][0] - start) < 7 * (seen[20_000][0] - start)
