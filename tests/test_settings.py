"""Settings and flags: what was typed, the defaults of the approach, and what contradicts itself."""

from dataclasses import asdict

import pytest
import torch

from minirlhf.runtime.device import pick_device
from minirlhf.settings import (
    APPROACHES,
    FINETUNE,
    FROZEN,
    flag_parser,
    from_config,
    preset,
    read_flags,
    to_flags,
    typed_flags,
    used_by,
)


def read(*flags):
    return read_flags(flag_parser(), flags)


@pytest.mark.parametrize("approach", APPROACHES)
def test_what_was_not_typed_is_the_default_of_the_approach(approach):
    assert read("--approach", approach) == preset(approach)
    typed = read("--approach", approach, "--epochs", "7", "--lr", "0.5")
    assert (typed.epochs, typed.lr) == (7, 0.5)
    assert typed.batch_size == preset(approach).batch_size


def test_without_an_approach_it_is_bt_finetune():
    assert read() == FINETUNE
    assert read().approach == "bt-finetune"


def test_a_setting_that_an_approach_has_no_use_for_is_none():
    unused = [name for name in asdict(FROZEN) if used_by(name) == ("bt-finetune",)]
    assert unused == ["accumulate", "warmup", "clip", "dropout"]
    for name in unused:
        assert getattr(FROZEN, name) is None
        assert getattr(FINETUNE, name) is not None


def test_flags_written_from_settings_are_read_as_the_same_settings():
    typed = [
        "--approach",
        "bt-frozen",
        "--lr",
        "3e-05",
        "--balance",
        "--prompt-column",
        "a b",
    ]
    assert to_flags(typed_flags(flag_parser(), typed)) == typed


def test_settings_survive_in_a_run_folder_and_missing_ones_are_named():
    arguments = asdict(read("--approach", "classification", "--seed", "3"))
    assert from_config(arguments) == read("--approach", "classification", "--seed", "3")
    assert from_config(arguments | {"folds": None}) == from_config(arguments)  # of version 0.1
    del arguments["clip"]
    with pytest.raises(ValueError, match="settings lack clip; start it again"):
        from_config(arguments)


def test_the_configuration_of_the_data_is_a_setting_of_every_approach():
    for approach in APPROACHES:
        assert read("--approach", approach).config is None
        assert read("--approach", approach, "--config", "easy").config == "easy"


def test_contradictory_flags_are_refused(capsys):
    for flags, words in (
        (["--fold", "2", "--folds", "3"], "python -m minirlhf compare --folds 5"),
        (["--folds", "6"], "python -m minirlhf compare --folds 5"),
        (
            ["--approach", "all", "--response-only"],
            "python -m minirlhf compare --folds 5",
        ),
        (
            ["--approach", "regression", "--no-cache", "--clip", "1"],
            "does not use --clip",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            read(*flags)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


def test_mps_is_parsed_and_chosen_where_there_is_one(monkeypatch):
    settings = read("--approach", "bt-finetune", "--device", "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device(settings.device).device.type == "mps"


def test_an_approach_that_reads_the_published_encoder_has_no_depth():
    assert preset("regression").depth is None
    assert preset("classification").depth is None
    assert preset("bt-frozen").depth == preset("bt-finetune").depth == 0.67
