"""The cache of frozen vectors: computed once, never out of date, and never trusted blindly."""

from pathlib import Path

import pytest
import torch

from minirlhf.runtime.features import cached


def test_features_are_computed_once_and_again_when_anything_changes(tmp_path):
    calls = []

    def compute(rows):
        calls.append(1)
        return torch.randn(len(rows), 3)

    rows = [[1, 2], [3]]
    first = cached(compute, rows, tmp_path, weights="a")
    assert first.origin == "computed"
    again = cached(compute, rows, tmp_path, weights="a")
    assert torch.equal(first.vectors, again.vectors)
    assert again.origin.endswith(".float32")
    assert len(calls) == 1
    # What the cache saved are the seconds of the call that filled it.
    assert (first.seconds_saved, again.seconds_saved) == (0, first.seconds)
    cached(compute, rows, tmp_path, weights="b")
    cached(compute, [[1], [2, 3]], tmp_path, weights="a")
    cached(compute, rows, None, weights="a")
    assert len(calls) == 4


def test_features_of_many_texts_are_those_of_each(tmp_path):
    rows = [[i, -i] for i in range(20_003)]
    for folder in (
        tmp_path,
        tmp_path,
        None,
    ):  # computed in pieces; found again; in memory
        found = cached(torch.tensor, rows, folder)
        assert torch.equal(found.vectors, torch.tensor(rows).float())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_features_are_mapped(tmp_path):
    found = cached(torch.tensor, [[1]], tmp_path)
    (file,) = tmp_path.glob("*.float32")
    assert found.vectors.shape == (1, 1)
    assert str(file) in Path("/proc/self/maps").read_text()


def test_a_damaged_cache_is_noticed_said_and_made_again(tmp_path):
    def compute(rows):
        return torch.arange(6.0).view(2, 3)

    arguments = compute, [[1, 2], [3]], tmp_path / "features"
    assert cached(*arguments).origin == "computed"
    numbers, checksum = sorted((tmp_path / "features").iterdir())  # .float32 and .sha256
    assert cached(*arguments).origin == str(numbers)
    for file in (numbers, checksum):
        sound = file.read_bytes()
        for damage in (
            sound[:5],  # half-written
            b"",
            b"\xff" * 20,
            sound + b"..",
            sound[1:],
            bytes([sound[0] ^ 1]) + sound[1:],  # one bit
            None,
        ):
            assert damage != sound
            file.unlink() if damage is None else file.write_bytes(damage)
            found = cached(*arguments)
            assert torch.equal(found.vectors, compute([]))
            if damage is None and file == numbers:
                assert found.origin == "computed"
            else:
                assert found.origin == f"computed again, since {numbers} was damaged"
            assert cached(*arguments).origin == str(numbers)
