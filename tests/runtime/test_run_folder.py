"""Who may write to a run folder, and whether there is room for a run."""

from pathlib import Path

import pytest
from test_resume import flags

import train
from minirlhf.runtime import checkpoint, run_folder


def test_two_runs_in_one_folder_are_refused(tiny_encoder, pairs_file, capsys):
    with run_folder.locked(Path("taken")), pytest.raises(SystemExit) as exit:
        train.main(flags(tiny_encoder, "--output", "taken"))
    assert exit.value.code == 2
    assert "another run is writing to taken" in capsys.readouterr().err
    assert not Path("taken").exists()
    train.main(flags(tiny_encoder, "--output", "taken"))
    # A folder that appears after the flags were read is not replaced either.
    with (
        pytest.raises(ValueError, match="taken exists"),
        checkpoint.whole_folder(Path("taken"), overwrite=False),
    ):
        pass
    assert Path("taken/metrics.json").exists()


def test_too_small_a_disk_is_noticed_before_training(
    tiny_encoder, pairs_file, monkeypatch, capsys
):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(SystemExit) as exit:
        train.main(flags(tiny_encoder, "--output", "run"))
    assert exit.value.code == 2
    assert "MB on this disk" in capsys.readouterr().err
    assert not Path("run").exists()
