"""Folders are written whole or not at all."""

import pytest

from minirlhf.runtime import checkpoint


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    def write(text, fail=False):
        with checkpoint.whole_folder(tmp_path / "model") as folder:
            (folder / "a.txt").write_text(text)
            if fail:
                raise KeyboardInterrupt

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("half", fail=True)
    assert (tmp_path / "model" / "a.txt").read_text() == "old"
    write("new")
    assert (tmp_path / "model" / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir() if "model" in p.name] == ["model"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")  # which is not there yet
    for text in ("first", "second", "third"):
        with checkpoint.whole_folder(tmp_path / "link") as folder:
            (folder / "a.txt").write_text(text)
        assert (tmp_path / "real" / "a.txt").read_text() == text
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2
