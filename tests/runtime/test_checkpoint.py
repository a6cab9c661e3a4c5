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


def test_what_a_stopped_run_wrote_too_much_is_cut_off(tmp_path):
    path = tmp_path / "steps.jsonl"
    for step in (10, 20, 30):
        checkpoint.append_jsonl(path, {"step": step})
    assert checkpoint.read_jsonl(path) == [{"step": 10}, {"step": 20}, {"step": 30}]
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"step": 4')  # killed in the middle of a line
    assert checkpoint.cut_jsonl(path, "step", 20) == [{"step": 10}, {"step": 20}]
    assert checkpoint.read_jsonl(path) == [{"step": 10}, {"step": 20}]
    assert checkpoint.cut_jsonl(tmp_path / "none.jsonl", "step", 20) == []
    assert not (tmp_path / "none.jsonl").exists()
