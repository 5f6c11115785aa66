"""Streams: every document in one unit, held-out text apart, rows dealt once, places restored, URLs."""

import json
import random
from itertools import islice

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import DataConfig, data_key, prepare
from fabric.data.corpus import CorpusError, Source
from fabric.data.deal import Deal, Places, row_order, unit_at
from fabric.data.rules import RULES
from fabric.data.stream import StreamedBatches
from fabric.data.units import cut_units, read_piece

WORDS = ["the", "cat", "sat", "naïve", "café", "🙂", "dog"]


def texts_of(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for i in range(n)]


@pytest.fixture
def folder(tmp_path):
    """600 documents as text, JSON Lines and Parquet of many row groups."""
    documents = texts_of(600)
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "a.txt").write_text("\n\n".join(documents[:200]), encoding="utf-8")
    (root / "b.jsonl").write_text("\n".join(json.dumps({"text": d}) for d in documents[200:400]))
    pq.write_table(
        pa.table({"n": range(200), "text": documents[400:]}), root / "c.parquet", row_group_size=30
    )
    return root, documents


def config_for(corpus, unit_bytes=1024, held_out_bytes=2048, **more):
    stream = {"unit_bytes": unit_bytes, "held_out_bytes": held_out_bytes}
    return DataConfig(corpus=str(corpus), seq_len=16, stream=stream, **more)


def documents_in(cache, split):
    ids, end = cache.tokens(split), cache.tokenizer().eos_id
    parts = np.split(ids, np.flatnonzero(ids == end) + 1)
    return [cache.tokenizer().decode(p.tolist()).strip() for p in parts if len(p)]


@pytest.mark.parametrize("unit_bytes", [1024, 5000, 10**7])
def test_every_document_is_in_one_unit(folder, unit_bytes):
    root, documents = folder
    sources = config_for(root).corpus.streamed(root)
    sizes = [(root / name).stat().st_size for name in ("a.txt", "b.jsonl", "c.parquet")]
    units = cut_units(sources, sizes, unit_bytes)
    assert len(units) == (1 if unit_bytes > sum(sizes) else pytest.approx(sum(sizes) / unit_bytes, rel=0.7))
    found = [text.strip() for unit in units for p in unit for text in read_piece(sources[p.source], p)]
    assert found == documents


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    text=st.lists(st.sampled_from(["a", "é", " ", "\t", "\r", "\n", "\n\n", " = T = \n", "<|endoftext|>"]), min_size=1),
    rule=st.sampled_from(sorted(RULES)),
    n=st.integers(1, 6),
)  # fmt: skip
def test_no_byte_is_lost_or_doubled_at_a_unit_s_border(tmp_path_factory, text, rule, n):
    path = tmp_path_factory.getbasetemp() / "borders.txt"
    whole = "x" + "".join(text) + "y"
    path.write_bytes(whole.encode())
    source = Source(str(path), "text", RULES[rule])
    size = path.stat().st_size
    units = cut_units([source], [size], max(1, size // n))
    found = "".join(t for unit in units for p in unit for t in read_piece(source, p))
    if rule == "endoftext":
        whole, found = (
            w.replace("<|endoftext|>", "").translate({ord(c): None for c in " \t\r\n"})
            for w in (whole, found)
        )
    assert found == whole


def test_held_out_text_is_never_trained_on(folder, tmp_path):
    root, documents = folder
    with (root / "a.txt").open("a") as file:
        file.write("\n\n" + "\n\n".join(documents[100:300]))  # copies
    config = config_for(root)
    cache = prepare(config, tmp_path / "cache")
    held = {split: documents_in(cache, split) for split in ("validation", "test")}
    assert all(len(found) > 1 and set(found) <= set(documents) for found in held.values())
    assert not set(held["validation"]) & set(held["test"])
    stream = StreamedBatches(config, cache, 1, seed=0)
    trained = {text for unit in range(stream.n_units) for text in unit_texts(stream, unit)}
    assert not trained & {*held["validation"], *held["test"]}
    assert len(trained) > 0.8 * len(documents)
    assert cache.manifest["token_bytes_exact"]
    assert prepare(config, tmp_path / "cache").manifest_hash == cache.manifest_hash


def unit_texts(stream, unit):
    """The training documents of a unit, whole."""
    items = islice(stream._items(), stream.n_units)
    item = next(i for i in items if i.unit == unit)
    ids = stream.work._tokens(item)
    parts = np.split(ids, np.flatnonzero(ids == 256) + 1)
    return [bytes(p[:-1].tolist()).decode().strip() for p in parts if len(p)]


def test_published_splits_are_kept_and_their_copies_left_out(tmp_path):
    documents = texts_of(90)
    root = tmp_path / "corpus"
    root.mkdir()
    (root / "train.txt").write_text("\n\n".join([*documents[:60], documents[61], documents[80]]))
    (root / "valid.txt").write_text("\n\n".join(documents[60:75]))
    (root / "test.txt").write_text("\n\n".join(documents[75:]))
    cache = prepare(config_for(root, held_out_bytes=10**6), tmp_path / "cache")
    assert documents_in(cache, "validation") == documents[60:75]
    assert documents_in(cache, "test") == documents[75:]
    stream = StreamedBatches(config_for(root, held_out_bytes=10**6), cache, 1, seed=0)
    trained = [text for unit in range(stream.n_units) for text in unit_texts(stream, unit)]
    assert sorted(trained) == sorted(documents[:60])


@settings(deadline=None, derandomize=True, max_examples=100)
@given(
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=7),
    runs=st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(0, 6), min_size=4, max_size=4)), max_size=6),
)  # fmt: skip
def test_no_row_is_dealt_twice_or_skipped_when_the_number_of_ranks_changes(rows, runs):
    """`rows`: of the first positions; later ones have two. A run: a number of ranks, how many rows each takes."""

    def n_rows(position):
        return rows[position] if position < len(rows) else 2

    taken, places = [], Places.first(1)
    for world, wanted in runs:
        places = places.for_world(world)
        stands = []
        for rank in range(world):
            here, missing = places.ranks[rank], wanted[rank]
            for number, position, first in places.items_of(rank):
                part = min(missing, n_rows(position) - first)
                taken += [(position, first + i) for i in range(part)]
                here, missing = (number, first + part), missing - part
                if not missing:
                    break
            stands.append(here)
        places = Places.from_dict(Places(places.deal, tuple(stands)).to_dict())
    assert len(set(taken)) == len(taken)
    left = places.deal.after(places.ranks)
    unfinished = dict(left.begun)
    for position in range(max([p for p, _ in taken], default=0) + 1):
        done = sorted(row for p, row in taken if p == position)
        expected = unfinished.get(position, 0 if position >= left.rest else n_rows(position))
        assert done == list(range(expected)), position
    assert Deal().item(3) == (3, 0)


def test_epochs_have_every_unit_and_every_row_once_in_another_order():
    first, second = ([unit_at(p, 11, seed=3) for p in range(11 * e, 11 * e + 11)] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second != [unit_at(p, 11, seed=4) for p in range(11)]
    order = row_order(50, seed=1, position=2)
    assert sorted(order) == list(range(50))
    assert order.tolist() != row_order(50, seed=1, position=3).tolist()


def rows_of(log):
    return [(unit, row) for rank in log for _, unit, first, end in rank for row in range(first, end)]


def test_two_ranks_read_what_one_reads_and_never_the_same(folder, tmp_path):
    config = config_for(folder[0])
    cache = prepare(config, tmp_path / "cache")
    with_all = StreamedBatches(config, cache, 4, seed=1)
    pair = [StreamedBatches(config, cache, 4, 1, rank, 2) for rank in range(2)]
    for step in range(30):
        assert with_all.batch(step).shape == (4, 17)
        assert [s.batch(step).shape for s in pair] == [(2, 17)] * 2
    mine, theirs = (rows_of(stream.taken()) for stream in pair)
    assert len(set(mine) | set(theirs)) == len(mine) + len(theirs) == 120
    assert len(set(rows_of(with_all.taken()))) == 120
    for stream in (with_all, *pair):
        stream.close()


@pytest.mark.parametrize("step", [1, 17, 29])
def test_a_restored_stream_goes_on_with_the_next_row(folder, tmp_path, step):
    config = config_for(folder[0])
    cache = prepare(config, tmp_path / "cache")
    whole = StreamedBatches(config, cache, 4, seed=1)
    wanted = [whole.batch(s).tolist() for s in range(30)]
    begun = StreamedBatches(config, cache, 4, seed=1)
    for s in range(step):
        begun.batch(s)
    saved, seen = begun.saved(step), begun.taken()
    again = StreamedBatches(config, cache, 4, seed=1)
    again.restore(json.loads(json.dumps(saved)))
    assert again.data_hash(step - 1) == saved["data_hash"] != ""
    assert [again.batch(s).tolist() for s in range(step, 30)] == wanted[step:]
    assert again.data_hash(29) == whole.data_hash(29)
    assert rows_of(seen) + rows_of(again.taken()) == rows_of(whole.taken())
    for stream in (whole, begun, again):
        stream.close()


def test_a_url_gives_the_same_stream_and_the_same_cache(folder, tmp_path):
    root, _ = folder
    memory = fsspec.filesystem("memory")
    for file in root.iterdir():
        memory.pipe(f"/stream-test/{file.name}", file.read_bytes())
    try:
        local, remote = config_for(root), config_for("memory://stream-test")
        assert data_key(local, tmp_path) == data_key(remote, tmp_path)
        cache = prepare(remote, tmp_path / "cache")
        ours, theirs = (StreamedBatches(c, cache, 4, seed=1) for c in (local, remote))
        for step in range(20):
            assert (ours.batch(step) == theirs.batch(step)).all()
        ours.close()
        theirs.close()
        exact = remote.model_copy(update={"stream": None})
        here = local.model_copy(update={"stream": None})
        assert prepare(exact, tmp_path / "cache").key == data_key(here, tmp_path)
        memory.rm("/stream-test", recursive=True)
        assert prepare(exact, tmp_path / "cache").key == data_key(here, tmp_path), "kept when first read"
    finally:
        memory.store.clear()


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("memory://nothing-there", ["memory://nothing-there holds no text", ".parquet"]),
        ("nosuch://bucket/x", ["nosuch://bucket/x cannot be opened", "Protocol not known"]),
    ],
)
def test_a_url_that_cannot_be_read_is_one_clear_error(tmp_path, corpus, words):
    with pytest.raises(CorpusError) as error:
        prepare(config_for(corpus), tmp_path / "cache")
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_column_of_lists_is_no_text(tmp_path):
    pq.write_table(pa.table({"text": [["a", "b"], ["c"]]}), tmp_path / "a.parquet")
    with pytest.raises(
        CorpusError, match=r"a.parquet: field 'text' holds list<.*>, not text; set text_field"
    ):
        prepare(config_for(tmp_path), tmp_path / "cache")


def test_a_path_may_not_be_a_url(tmp_path):
    with pytest.raises(ValueError, match="kind: url"):
        DataConfig(corpus={"kind": "files", "path": "s3://bucket/x"}, seq_len=8)
    with pytest.raises(ValueError, match="is no URL"):
        DataConfig(corpus={"kind": "url", "url": "bucket/x"}, seq_len=8)


def test_a_changed_corpus_and_one_without_rows_are_told(folder, tmp_path):
    root, _ = folder
    config = config_for(root)
    cache = prepare(config, tmp_path / "cache")
    longer = config.model_copy(update={"seq_len": 100_000})
    with pytest.raises(CorpusError, match="no unit of the training text fills a row of 100000 tokens"):
        StreamedBatches(longer, cache, 4, seed=1).batch(0)
    (root / "a.txt").write_text("other text")
    assert data_key(config, tmp_path) != cache.key
    with pytest.raises(CorpusError, match=r"a\.txt has another size"):
        StreamedBatches(config, cache, 4, seed=1)
    (root / "a.txt").write_text("one document alone")
    for name in ("b.jsonl", "c.parquet"):
        (root / name).unlink()
    with pytest.raises(CorpusError, match="no document of the corpus falls into the validation split"):
        prepare(config, tmp_path / "cache")


def test_an_empty_text_is_called_empty(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(CorpusError, match=r"a\.txt is empty \(0 bytes\)"):
        prepare(config_for(tmp_path / "a.txt"), tmp_path / "cache")


def test_a_damaged_text_fails_the_reader_by_name(folder, tmp_path):
    root, _ = folder
    config = config_for(root, held_out_bytes=1024)
    cache = prepare(config, tmp_path / "cache")
    text = root / "a.txt"
    text.write_bytes(b"\xff" * text.stat().st_size)
    stream = StreamedBatches(config, cache, 4, seed=1)
    with pytest.raises(CorpusError, match=r"a\.txt is not UTF-8|no document begins"):
        [stream.batch(step) for step in range(200)]
    stream.close()
