"""Long and large (slow, asked for with `-m slow -s`): memory, and times to be read.

Times are printed, not asserted: on a machine that others use they say nothing about the code.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minirlhf import model
from minirlhf.bundled.arithmetic import generate

ROOT = Path(__file__).parents[1]


def measured(*command: str) -> tuple[float, float]:
    """Seconds of CPU and peak memory (MB) of `python COMMAND`, in a process of its own."""
    code = "import resource, runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, {!r})\n"
    code += "try: runpy.run_{}\nfinally:\n used = resource.getrusage(resource.RUSAGE_SELF)\n"
    code += " print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)"
    what = "module(sys.argv[0], run_name='__main__', alter_sys=True)"
    if command[0].endswith(".py"):
        what = "path(sys.argv[0], run_name='__main__')"
    run = subprocess.run(
        [sys.executable, "-c", code.format(str(ROOT), what), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    scale = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    seconds, most = run.stderr.split()[-2:]
    return float(seconds), int(most) / scale


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
        seen[count] = measured("minirlhf", "score", *command)
        with open(out) as file:
            assert sum(json.loads(line)["id"] == i for i, line in enumerate(file)) == count
    print(seen)
    assert seen[100_000][1] < seen[20_000][1] + 50


@pytest.mark.slow
def test_a_hundred_thousand_pairs_take_three_kilobytes_each_at_most(tiny_encoder):
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
    # Texts, token rows and features, each once: 1.7 kB measured. A copy of all would be too much.
    assert seen[100_000][1] - seen[20_000][1] < 80_000 * 0.003
