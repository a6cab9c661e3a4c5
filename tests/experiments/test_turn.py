"""Many runs of the command policy, put together."""

import json
from pathlib import Path

import pytest

from minirlhf.experiments import turn
from minirlhf.metrics import t_interval
from minirlhf.policy.settings import PolicySettings


def write_run(name: str, seed: int, ratings: tuple, **arguments) -> str:
    """A finished run with these ratings at start, best point and end."""
    folder = Path(name)
    folder.mkdir()
    settings = vars(PolicySettings()) | {"reward": ["runs/bt"], "seed": seed} | arguments
    (folder / "config.json").write_text(json.dumps({"arguments": settings}))
    metrics = {}
    for i, point in enumerate(("start", "best", "end")):
        numbers = {"reward": i, "rating": ratings[i], "kl": i, "flawless": 0.5, "tokens": 30}
        metrics[point] = {"at": 5 * i, **numbers}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [{"kl": 0.0, "reward": 1.0, "rating": ratings[0]}]
    rows.append({"kl": 4.0, "reward": 2.0, "rating": ratings[2]})
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_runs_that_differ_in_the_seed_are_one_kind(capsys):
    folders = [
        write_run("a0", 0, (6, 7, 3)),
        write_run("a1", 1, (6, 8, 2)),
        write_run("b0", 0, (6, 7.5, 5), kl_weight=0.5),
        write_run("b1", 1, (6, 8.7, 5), kl_weight=0.5),
    ]
    turn.main([*folders, "--output", "found"])
    first, second = json.loads(Path("found/turn.json").read_text())
    assert first["kind"] == "grpo on bt" and second["kind"] == "grpo on bt, kl weight 0.5"
    assert first["best"]["rating"] == 7.5
    expected = t_interval([7.0, 8.0])
    assert first["best"]["rating_low"] == pytest.approx(expected.low)
    assert second["minus_first_best"]["difference"] == pytest.approx(0.6)
    assert second["minus_first_end"]["difference"] == pytest.approx(2.5)
    assert [row["rating"] for row in first["curve"]] == [6, 2.5]
    assert Path("found/turn.md").read_text() in capsys.readouterr().out
    assert Path("found/turn.png").stat().st_size > 1000


def test_a_folder_without_a_finished_run_is_one_sentence(capsys):
    folder = write_run("a0", 0, (6, 7, 3))
    Path("a0/metrics.json").unlink()
    for name, sentence in ((folder, "is not finished"), (".", "is no run folder")):
        with pytest.raises(SystemExit) as stop:
            turn.main([name])
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err


def test_runs_that_were_looked_at_at_other_steps_are_one_sentence(capsys):
    folders = [write_run("a0", 0, (6, 7, 3)), write_run("a1", 1, (6, 8, 2))]
    with open("a1/history.jsonl", "a") as file:
        file.write(json.dumps({"kl": 5.0, "reward": 2.0, "rating": 2.0}) + "\n")
    with pytest.raises(SystemExit) as stop:
        turn.main(folders)
    assert stop.value.code == 2
    assert "histories of different lengths" in capsys.readouterr().err


def test_a_classification_has_no_reward_and_is_drawn_by_its_rating(capsys):
    folders = [
        write_run("a0", 0, (6, 7, 3)),
        write_run("b0", 0, (6, 8, 2), reward=["runs/pair"]),
    ]
    for name in ("metrics.json", "history.jsonl"):
        file = Path("b0", name)
        file.write_text(file.read_text().replace('"reward"', '"not_reward"'))
    turn.main([*folders, "--output", "found"])
    text = capsys.readouterr().out
    assert "| grpo on pair | end, 10 | – | 2.00 |" in text
    assert Path("found/turn.png").stat().st_size > 1000
