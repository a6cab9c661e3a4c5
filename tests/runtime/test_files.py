"""Rows out of files of each kind: nothing is guessed, nothing is lost, nothing outside is read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import threading
from pathlib import Path

import pytest

from minirlhf import data
from minirlhf.runtime import files, rows
from minirlhf.runtime.files import SHORT_NAMES, load_rows

ROWS = [
    {"prompt": f"Is {i} even?", "chosen": f"{i} it is.", "rejected": f"no idea {i}"}
    for i in range(40)
]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def zstd(content: bytes) -> bytes:
    import pyarrow

    target = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(target, "zstd") as file:
        file.write(content)
    return target.getvalue().to_pybytes()


def as_csv(delimiter: str = ",") -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(ROWS[0])
    writer.writerows(row.values() for row in ROWS)
    return text.getvalue()


def write(name, content: str | bytes = LINES) -> str:
    """The file with that content, in folders that are made."""
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(dataset, split="train", config=None) -> str:
    """The sentence with which data are refused."""
    with pytest.raises(ValueError) as refused:
        list(load_rows(str(dataset), split, config))
    sentence = str(refused.value)
    assert sentence.startswith(f"cannot read {str(dataset)!r}: ") and "\n" not in sentence
    return sentence


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_each_kind(tmp_path, suffix):
    import datasets

    row = {"prompt": "How many are left?", "chosen": "None", "rejected": "It is 5."}
    rows = datasets.Dataset.from_list([row, row | {"prompt": "And now?"}])
    path = tmp_path / f"pairs.{suffix}"
    if suffix in ("json", "jsonl"):
        rows.to_json(path)
    else:
        getattr(rows, f"to_{suffix}")(path)
    assert len(data.build_pairs(load_rows(str(path)))[0]) == 2


def test_a_parquet_file_is_read_as_named_and_as_it_is_now(tmp_path):
    import datasets

    def write(name, answer):
        row = {"prompt": "2 + 2?", "chosen": answer, "rejected": "5"}
        datasets.Dataset.from_list([row]).to_parquet(tmp_path / name)
        os.utime(tmp_path / name, (10**9, 10**9))  # as an archive or rsync leaves it

    def read(name):
        return next(iter(load_rows(str(tmp_path / name))))["chosen"]

    write("p[1].parquet", "this one")
    write("p1.parquet", "another one")  # what the name above matches as a pattern
    assert read("p[1].parquet") == "this one"
    write("p[1].parquet", "the new content")
    assert read("p[1].parquet") == "the new content"


def test_a_folder_laid_out_as_the_hub_lays_out_argilla_math(tmp_path):
    import datasets

    question = {"role": "user", "content": "2 + 2?"}
    row = {
        "chosen": [question, {"role": "assistant", "content": "4"}],
        "rejected": [question, {"role": "assistant", "content": "5"}],
        "chosen_rating": 9.0,
        "rejected_rating": 3.0,
        "metadata": json.dumps({"source": "x"}),
    }
    (tmp_path / "argilla" / "data").mkdir(parents=True)
    file = tmp_path / "argilla" / "data" / "train-00000-of-00001.parquet"
    datasets.Dataset.from_list([row]).to_parquet(file)
    (tmp_path / "argilla" / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n"
        "    path: data/train-*\n---\n"
    )
    (pair,), _ = data.build_pairs(load_rows(str(tmp_path / "argilla")))
    assert pair == data.PreferencePair("2 + 2?", "4", "5", 9.0, 3.0)
    with pytest.raises(ValueError, match="test"):
        load_rows(str(tmp_path / "argilla"), split="test")
    assert SHORT_NAMES["argilla-math"] == "RLHFlow/Argilla-Math-DPO-standard"


def test_unreadable_data_is_one_clear_sentence(tmp_path):
    (tmp_path / "half.jsonl").write_text('{"prompt": "a", "cho')
    (tmp_path / "pairs.txt").write_text("x")
    for name, words in {
        "half.jsonl": "Unterminated string starting at: line 1 column 17; mend the file",
        "pairs.txt": "unknown file type '.txt'; write its rows as JSON lines",
        "pairs": "Couldn't reach 'pairs' on the Hub",
        "missing.jsonl": "no such file or folder",
        "no-such/dataset": r"Couldn't reach 'no-such/dataset' on the Hub .+ Give a .jsonl",
        "no/such/folder": "no such file or folder",
        "./here": "no such file or folder",
        "": "no name of data; give a .jsonl",
    }.items():
        with pytest.raises(ValueError, match=f"cannot read '{name}': {words}"):
            load_rows(name)


def pairs_of(name, content):
    Path(name).write_text(content, newline="")
    return data.build_pairs(load_rows(name))[0]


def test_csv_cells_stay_as_they_are_written():
    text = (
        'prompt,chosen,rejected\n2.05 * 2?,4.10,"4,1"\nNone?,None,NA\nTwo lines?,"a\nb",007\n'
    )
    assert [pair[:3] for pair in pairs_of("p.csv", text)] == [
        ("2.05 * 2?", "4.10", "4,1"),
        ("None?", "None", "NA"),
        ("Two lines?", "a\nb", "007"),
    ]
    long = "x" * 5_000_000
    assert pairs_of("p.csv", f"prompt,chosen,rejected\nLong?,{long},short\n")[0].chosen == long


# ---- compressed files: read as the file inside

PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_compressed_file_is_read_as_the_file_inside(kind, ending):
    if kind == "parquet":
        import datasets

        datasets.Dataset.from_list(ROWS).to_parquet("plain.parquet")
        content = Path("plain.parquet").read_bytes()
    else:
        content = {"jsonl": LINES, "json": json.dumps(ROWS), "csv": as_csv()}[kind].encode()
    name = f"pairs.{kind}.{ending}"
    assert list(load_rows(write(name, PACKERS[ending](content)))) == ROWS
    assert list(load_rows(write(name.upper(), PACKERS[ending](content)))) == ROWS


def test_the_first_bytes_tell_that_a_file_is_compressed_and_not_its_name():
    assert list(load_rows(write("unpacked.jsonl.gz", LINES))) == ROWS  # as browsers leave it
    assert list(load_rows(write("packed.jsonl", gzip.compress(LINES.encode())))) == ROWS
    half = len(LINES) // 2
    two = gzip.compress(LINES[:half].encode()) + gzip.compress(LINES[half:].encode())
    assert list(load_rows(write("two.jsonl.gz", two))) == ROWS  # as `cat` joins them


def test_a_damaged_compressed_file_is_a_sentence():
    for ending, pack in PACKERS.items():
        packed = pack(LINES.encode())
        assert "damaged, cut short" in refusal(write(f"cut.jsonl.{ending}", packed[:-20]))
        middle = len(packed) // 2
        flipped = packed[:middle] + bytes(8) + packed[middle + 8 :]
        assert "damaged, cut short" in refusal(write(f"flipped.jsonl.{ending}", flipped))
        assert "no row like" in refusal(write(f"empty.jsonl.{ending}", ""))
    assert "no text in UTF-8" in refusal(write("noise.jsonl.gz", bytes(range(128, 256))))
    packed_twice = gzip.compress(gzip.compress(LINES.encode()))
    assert "compressed twice; unpack it" in refusal(write("twice.jsonl.gz", packed_twice))


# ---- other ways to write rows


def test_spellings_and_separators_of_text_files():
    for name, content in {
        "pairs.ndjson": LINES,
        "PAIRS.TSV": as_csv("\t"),
        "tabs.csv": as_csv("\t"),
        "semicolons.csv": as_csv(";"),
        "mark.csv": as_csv().encode("utf-8-sig"),
        "mark.jsonl.gz": gzip.compress(LINES.encode("utf-8-sig")),
        "carriage-returns.jsonl": LINES.replace("\n", "\r"),
        "gaps.jsonl": "\n\n" + LINES.replace("\n", "\n\n \n"),
        "without-lines.jsonl": LINES.replace("\n", " "),
    }.items():
        assert list(load_rows(write(name, content))) == ROWS, name


def test_json_is_read_in_pieces_whatever_its_form(monkeypatch):
    monkeypatch.setattr(rows, "CHARACTERS_AT_ONCE", 50)  # less than a row
    pretty = "\n".join(json.dumps(row, indent=2) for row in ROWS)
    listed = json.dumps(ROWS, indent=2)
    for content in (LINES, pretty, listed, LINES + listed + pretty):
        assert list(load_rows(write("p.json", content))) == ROWS * (len(content) // 3000 or 1)
    late = LINES + '{"prompt": "x",\n"chosen" "y"}\n' + LINES
    assert "Expecting ':' delimiter: line 42 column 10" in refusal(write("p.jsonl", late))


def test_json_lines_with_commas_after_the_rows():
    content = LINES.replace("}\n", "},\n")
    said = refusal(write("commas.jsonl", content))
    assert "a comma between two rows: line 1 column" in said and "remove the commas" in said


def test_tables_by_columns_name_the_way_to_write_rows():
    table = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    numbers = [str(number) for number in range(len(ROWS))]
    for content in (
        table,
        {name: dict(zip(numbers, cells, strict=True)) for name, cells in table.items()},
        dict(zip(numbers, ROWS, strict=True)),
        {"columns": list(table), "index": numbers, "data": [list(r.values()) for r in ROWS]},
        {"schema": {"fields": []}, "data": ROWS},
    ):
        assert 'orient="records"' in refusal(write("table.json", json.dumps(content)))
    # One row is no table, although its values are lists.
    messages = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    row = {"chosen": messages, "rejected": messages}
    assert list(load_rows(write("row.json", json.dumps(row)))) == [row]


def test_csv_with_two_columns_of_one_name():
    said = refusal(write("p.csv", "prompt,chosen,chosen,rejected\na,b,c,d\n"))
    assert "two columns are called 'chosen'; rename one" in said


def test_what_a_file_really_is_decides_over_its_name():
    for content, words in {
        b"PK\x03\x04....": "a zip archive or an Excel file; unpack it",
        b"\xd0\xcf\x11\xe0....": "an old or encrypted Office file",
        b"PAR1....": "a Parquet file; give it the ending .parquet",
        LINES.encode("utf-16"): "UTF-16, not UTF-8",
        LINES.encode("utf-16-le"): "no text in UTF-8 but binary data or UTF-16",
        b"version https://git-lfs.github.com/spec/v1\noid ...": "git lfs pull",
    }.items():
        assert words in refusal(write("p.jsonl", content))
        assert words in refusal(write("p.csv", content))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    assert "git lfs pull" in refusal(write("p.parquet", pointer))
    for name, words in {
        "a.zip": "unpack it and give the file inside",
        "a.tar.gz": "unpack it and give the file inside",
        "a.xlsx": 'save the sheet as "CSV UTF-8"',
        "a.pkl": "loading a pickle can run code",
        "a.gz": "its name has no ending",
    }.items():
        assert words in refusal(write(name, b"..."))


# ---- Arrow, and what `save_to_disk` writes


def test_a_saved_data_set_is_read():
    import datasets

    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk("one", num_shards=3)
    write("one/cache-0123456789abcdef.arrow", "what `map` keeps there")
    assert list(load_rows("one")) == ROWS
    assert list(load_rows("one/data-00001-of-00003.arrow")) == ROWS[14:27]
    assert "choose one with --split: train" in refusal("one", "test")

    datasets.DatasetDict({"train_prefs": saved, "train_sft": saved.select([3])}).save_to_disk(
        "two"
    )
    assert list(load_rows("two", "train_sft")) == [ROWS[3]]
    assert "no split 'train'; choose one with --split: train_prefs, train_sft" in refusal("two")


def test_both_forms_of_arrow_files_and_their_damage():
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file("file.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    assert list(load_rows("file.arrow")) == ROWS
    whole = Path("file.arrow").read_bytes()
    for content in (
        b"",
        b"ARROW1",
        whole[:700],
        whole[:300] + bytes(100) + whole[400:],
        b"?" * 99,
    ):
        assert "damaged, cut short" in refusal(write("bad.arrow", content))


def test_a_parquet_file_that_is_damaged_in_the_middle_is_a_sentence():
    import datasets

    datasets.Dataset.from_list(ROWS).to_parquet("p.parquet")
    whole = Path("p.parquet").read_bytes()
    write("p.parquet", whole[:100] + b"\xaa" * 60 + whole[160:])
    assert "damaged, cut short" in refusal("p.parquet")


def test_values_that_datasets_keeps_as_json_are_decoded():
    import datasets

    if not hasattr(datasets, "Json"):
        pytest.skip("this version of datasets writes no JSON values")
    contents = ["2 + 2?", [{"type": "text", "text": "2 + 2?"}]]
    json_type = datasets.Json()
    message = {"role": datasets.Value("string"), "content": json_type}
    features = datasets.Features({"prompt": datasets.List(message), "more": json_type})
    rows = [
        {"prompt": [{"role": "user", "content": content}], "more": {"score": 1}}
        for content in contents
    ]
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.save_to_disk("saved")
    saved.to_parquet("saved.parquet")
    assert list(load_rows("saved")) == list(load_rows("saved.parquet")) == rows


# ---- folders


def test_splits_are_found_in_the_names_of_files_and_folders():
    packed = gzip.compress(LINES.encode())
    other = json.dumps(ROWS[5])
    for folder in ("folders", "files", "dashes"):
        names = {
            "folders": ("train/a.jsonl.gz", "TEST/a.jsonl.gz", "dev/a.jsonl.gz"),
            "files": ("train.jsonl.gz", "test.jsonl.gz", "validation.jsonl.gz"),
            "dashes": ("pairs-train-1.jsonl.gz", "pairs_eval.jsonl.gz", "pairs.val.jsonl.gz"),
        }[folder]
        write(f"{folder}/{names[0]}", packed)
        write(f"{folder}/{names[1]}", gzip.compress(other.encode()))
        write(f"{folder}/{names[2]}", gzip.compress(other.encode()))
        assert list(load_rows(folder)) == ROWS
        assert list(load_rows(folder, "test")) == [ROWS[5]]
        assert "choose one with --split: test, train, validation" in refusal(folder, "dev")
    write("named/data/filtered-00000-of-00001.jsonl", LINES)
    write("named/data/raw-00000-of-00001.jsonl", other)
    assert list(load_rows("named", "raw")) == [ROWS[5]]


def test_a_folder_of_one_kind_is_read_whole_and_nothing_is_guessed():
    write("d/a.jsonl", '{"prompt": "1?", "chosen": "2.0", "rejected": "3"}\nnull\n')
    write("d/b/c.json.xz", lzma.compress(b'[{"chosen": "x", "more": 1}]'))
    write("d/.hidden/x.jsonl", "{")
    write("d/dataset_infos.json", "{}")
    write("d/LICENSE", "free")
    assert list(load_rows("d")) == [
        {"prompt": "1?", "chosen": "2.0", "rejected": "3", "more": None},
        dict.fromkeys(("prompt", "chosen", "rejected", "more")),
        {"prompt": None, "chosen": "x", "rejected": None, "more": 1},
    ]
    write("d/e.csv", as_csv())
    assert "files of several kinds, such as" in refusal("d")
    write("csv/pairs.csv", "prompt,chosen,rejected\n4.10?,4.10,007\n")
    assert list(load_rows("csv")) == [{"prompt": "4.10?", "chosen": "4.10", "rejected": "007"}]


def test_folders_without_data_are_a_sentence():
    Path("pairs.jsonl").mkdir()
    write("notes/a.txt", "dear diary")
    for folder in ("pairs.jsonl", "notes"):
        assert "no data file in this folder; give a .jsonl" in refusal(folder)
    write("empty/train.jsonl", "")
    assert "no row like" in refusal("empty")


def test_a_folder_of_too_many_files_is_not_searched_for_ever(monkeypatch):
    monkeypatch.setattr(files, "MOST_ENTRIES", 5)
    for number in range(6):
        write(f"many/{number}.txt", "")
    assert "more than 5 files" in refusal("many")


# ---- a folder is read from inside itself only


def with_readme(folder: str, *configs: dict) -> None:
    """The folder's README.md lists these configurations; JSON is YAML, too."""
    write(f"{folder}/README.md", f"---\nconfigs: {json.dumps(configs)}\n---\nAbout the data.\n")


def test_a_readme_cannot_name_files_outside():
    secret = Path(write("secret.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "secret"}'))
    write("d/own.jsonl", LINES)
    outside = [str(secret.resolve()), "../secret.jsonl", "x/../../secret.jsonl", "../*"]
    for pattern in [*outside, "https://example.com/a.jsonl", "file://" + outside[0], "/**"]:
        for data_files in (
            pattern,
            [pattern],
            [{"split": "train", "path": pattern}],
            [{"split": "train", "path": ["own.jsonl", pattern]}],
        ):
            with_readme("d", {"config_name": "default", "data_files": data_files})
            assert "a folder is read from inside itself only" in refusal("d")
    for place in ("..", str(secret.parent.resolve()), "elsewhere"):
        with_readme("d", {"config_name": "default", "data_dir": place})
        assert "a folder is read from inside itself only" in refusal("d")
    write("d/README.md", f"---\ndata_files: {outside[0]}\n---\n")
    assert list(load_rows("d")) == ROWS


def test_links_out_of_a_folder_are_refused_and_those_inside_are_not():
    secret = write("secrets/secret.jsonl")
    for link, target in {
        "relative/own.jsonl": "../secrets/secret.jsonl",
        "absolute/own.jsonl": str(Path(secret).resolve()),
        "by-folder/more": "../secrets",
        "gone/own.jsonl": "../nowhere",
    }.items():
        Path(link).parent.mkdir()
        Path(link).symlink_to(target)
        assert "is a link that leaves the folder" in refusal(Path(link).parent)
    write("inside/.parts/a.jsonl", LINES)
    Path("inside/train.jsonl").symlink_to(".parts/a.jsonl")
    Path("inside/round").symlink_to(".")
    with_readme("inside", {"config_name": "default", "data_files": "**/train.jsonl"})
    assert list(load_rows("inside")) == ROWS


def test_the_links_of_the_hubs_cache_are_followed_to_its_own_files_only():
    write("cache/blobs/0123abcd")
    snapshot = Path("cache/snapshots/abc")
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../blobs/0123abcd")
    assert list(load_rows(str(snapshot))) == ROWS
    write("secret.jsonl")
    (snapshot / "train.jsonl").unlink()
    (snapshot / "train.jsonl").symlink_to("../../../secret.jsonl")
    assert "is a link that leaves the folder" in refusal(snapshot)


def test_pipes_are_refused_and_never_waited_for():
    os.mkfifo("pipe.jsonl")
    Path("d").mkdir()
    os.mkfifo("d/train.jsonl")
    said = []
    places = ("pipe.jsonl", "d", "/dev/zero", "/dev/null")
    reader = threading.Thread(target=lambda: said.extend(map(refusal, places)), daemon=True)
    reader.start()
    reader.join(timeout=60)  # reading one would wait for ever
    assert not reader.is_alive()
    for sentence in said:
        assert "is no plain file" in sentence
    assert len(said) == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_passed_over():
    write("d/a.jsonl")
    write("d/locked/b.jsonl")
    Path("d/locked").chmod(0)
    assert "Permission denied" in refusal("d")
    Path("d/locked").chmod(0o700)


# ---- configurations


def test_a_folder_with_several_configurations():
    write("d/easy/pairs.jsonl", LINES)
    write("d/hard/deep/pairs.jsonl", json.dumps(ROWS[5]))
    easy = {"config_name": "easy", "data_files": "easy/*"}
    hard = {"config_name": "hard", "data_files": [{"split": "test", "path": "hard/**"}]}
    by_folder = {"config_name": "by-folder", "data_dir": "hard/deep"}
    with_readme("d", easy, hard, by_folder)
    said = refusal("d")
    assert "several configurations; choose one with --config: easy, hard, by-folder" in said
    assert "no configuration 'none'; choose one with --config: easy" in refusal(
        "d", config="none"
    )
    assert list(load_rows("d", config="easy")) == ROWS
    assert list(load_rows("d", "test", "hard")) == [ROWS[5]]
    assert "choose one with --split: test" in refusal("d", config="hard")
    assert list(load_rows("d", config="by-folder")) == [ROWS[5]]
    with_readme("d", hard, easy | {"default": True})
    assert list(load_rows("d")) == ROWS
    assert "a file has no configuration 'easy'" in refusal("d/easy/pairs.jsonl", config="easy")


def test_a_readme_of_another_form_is_a_sentence():
    write("d/pairs.jsonl")
    for top in (
        "configs: [a: b: c",
        "configs: 7",
        "configs: [7]",
        "configs: [{config_name: [x]}]",
        "configs: [{data_files: x}]",
        "configs: [{config_name: x, data_files: [{split: train}]}]",
        "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nconfigs: [{config_name: *b}]",
    ):
        write("d/README.md", f"---\n{top}\n---\n")
        assert "README.md are not written as the hub wants them" in refusal("d")
    for text in ("# Data", "---\nlicense: mit\n---\n", ""):
        write("d/README.md", text)
        assert list(load_rows("d")) == ROWS


def test_a_pattern_of_many_stars_takes_no_time():
    write("/".join(["d", *"abcdefghijklmnopqrst", "pairs.jsonl"]))
    with_readme("d", {"config_name": "x", "data_files": "**/*/" * 60 + "none.jsonl"})
    assert "inside itself only" in refusal("d")


def test_the_hub_lists_its_configurations_and_splits(monkeypatch):
    # `datasets` treats a folder as it treats the hub, which no test may reach.
    write("d/easy/train.jsonl")
    write("d/hard/train.jsonl")
    with_readme(
        "d",
        {"config_name": "easy", "data_files": "easy/*"},
        {"config_name": "hard", "data_files": "hard/*"},
    )
    with pytest.raises(ValueError, match="choose one with --config: easy, hard"):
        files.rows_of_hub("./d", "train", None)
    with pytest.raises(
        ValueError, match="no configuration 'none'; choose one with --config: eas"
    ):
        files.rows_of_hub("./d", "train", "none")
    # A data set on the hub whose README.md names a file of this machine is refused.
    with pytest.raises(ValueError, match="easy/train.jsonl', a file of this machine, as data"):
        files.rows_of_hub("./d", "train", "easy")
    monkeypatch.setattr(files, "refuse_local_files", lambda data_files: None)
    assert list(files.rows_of_hub("./d", "train", "easy")) == ROWS
    assert len(files.rows_of_hub("./d", "train[:3]", "hard")) == 3
    with pytest.raises(ValueError, match="no split 'test'; choose one with --split: train"):
        files.rows_of_hub("./d", "test", "easy")


def test_files_of_the_hub_and_the_web_are_not_files_of_this_machine():
    hub = "hf://datasets/a/b@main/train.jsonl"
    files.refuse_local_files({"train": [hub, f"zip://x.jsonl::{hub}", "https://x.org/a.jsonl"]})
    for place in ("/etc/passwd", "file:///etc/passwd", "zip://x::/home/a.zip"):
        with pytest.raises(ValueError, match="a file of this machine"):
            files.refuse_local_files({"train": [hub], "test": [place]})


def test_no_data_set_runs_code():
    import datasets

    write("d/d.py", "open('ran', 'w')")
    write("d/train.jsonl")
    assert list(load_rows("d")) == ROWS
    assert not Path("ran").exists()
    # The library runs none either, not even if it is told that code may run.
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.load_dataset("./d", trust_remote_code=True)
    assert not Path("ran").exists()
