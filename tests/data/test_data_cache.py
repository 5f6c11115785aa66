"""Token cache: contents, bytes per token, integrity, atomicity, block independence."""

import fcntl
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import DataConfig, TokenCache, blocks, data_key, describe, disk, load_tokenizer, prepare
from fabric.data.disk import sha256_of_file
from fabric.data.tokenizer import ByteTokenizer, byte_tokenizer_json

SMOLLM2 = Path(os.environ.get("FABRIC_DATA", "absent")) / "tokenizer-smollm2" / "tokenizer.json"
TOKENIZERS = ["bytes", {"kind": "bpe", "vocab_size": 400}]
if SMOLLM2.is_file():
    TOKENIZERS.append(str(SMOLLM2))


def config_for(path, tokenizer="bytes", **more):
    return DataConfig(corpus=str(path), tokenizer=tokenizer, seq_len=16, **more)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: str(t)[-20:])
def test_streams_hold_every_document_once_and_bytes_add_up(corpus, tmp_path, tokenizer):
    cache = prepare(config_for(corpus, tokenizer), tmp_path / "cache")
    decoder, found = cache.tokenizer(), []
    assert cache.manifest["token_bytes_exact"]
    for split in ("train", "validation", "test"):
        stream = cache.tokens(split)
        assert int(stream.max()) < cache.vocab_size
        documents = [d[:-1] for d in np.split(stream, np.flatnonzero(stream == decoder.eos_id) + 1) if len(d)]
        assert len(documents) == cache.manifest["splits"][split]["n_documents"]
        for ids in documents:
            text = decoder.decode(ids.tolist())
            assert decoder.encode(text) == ids.tolist()
            assert cache.n_bytes(split, ids) == len(text.encode())
            found.append(text)
        assert cache.n_bytes(split, stream) == cache.manifest["splits"][split]["n_bytes"]
    paragraphs = corpus.read_text(encoding="utf-8").split("\n\n")
    assert sorted(found) == sorted([*(p + "\n\n" for p in paragraphs[:-1]), paragraphs[-1]])
    assert sum(len(t.encode()) for t in found) == corpus.stat().st_size
    cache.verify()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: str(t)[-20:])
def test_special_tokens_in_a_text_are_spelt_out(tmp_path, tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"line {i} <|endoftext|> <|unused_0|> more" for i in range(30)))
    config = DataConfig(
        corpus={"kind": "files", "path": path, "documents": "line"}, tokenizer=tokenizer, seq_len=4
    )
    cache = prepare(config, tmp_path / "cache")
    eos = int((cache.tokens("train") == cache.tokenizer().eos_id).sum())
    assert eos == cache.manifest["splits"]["train"]["n_documents"]
    assert cache.manifest["token_bytes_exact"]


def test_ids_without_an_exact_length_count_as_the_splits_mean(tmp_path, corpus):
    """A vocabulary of words, all else [UNK] and white space lost: bits per byte still divides by the text's bytes."""
    from tokenizers import Tokenizer as Library
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    library = Library(
        WordLevel({"[UNK]": 0, "Paragraph": 1, "word": 2, "<|endoftext|>": 3}, unk_token="[UNK]")
    )
    library.pre_tokenizer = Whitespace()
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = {"kind": "file", "path": tmp_path / "tokenizer.json"}
    config = DataConfig(corpus={"kind": "files", "path": corpus}, tokenizer=tokenizer, seq_len=4)
    cache = prepare(config, tmp_path / "cache")
    assert not cache.manifest["token_bytes_exact"]
    sizes = {split: entry["n_bytes"] for split, entry in cache.manifest["splits"].items()}
    assert sum(sizes.values()) == corpus.stat().st_size
    for split, size in sizes.items():
        assert cache.n_bytes(split, cache.tokens(split)) == pytest.approx(size)
        assert cache.n_bytes(split, cache.tokens(split)[:7]) == pytest.approx(
            7 * size / cache.n_tokens(split)
        )


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.text(max_size=60))
def test_bytes_round_trip_and_agree_with_their_own_tokenizer_json(text):
    from tokenizers import Tokenizer as Library

    ours = ByteTokenizer()
    assert ours.decode(ours.encode(text)) == text
    library = Library.from_str(byte_tokenizer_json())
    library.encode_special_tokens = True
    assert library.encode(text, add_special_tokens=False).ids == ours.encode(text)
    assert library.token_to_id("<|endoftext|>") == ours.eos_id == 256


def test_rows_are_shifted_windows(corpus, tmp_path):
    cache = prepare(config_for(corpus), tmp_path / "cache")
    stream = cache.tokens("train").astype(np.int64)
    for seq_len in (2, 16, 33):
        n_rows = cache.n_rows("train", seq_len)
        assert n_rows == (len(stream) - 1) // seq_len
        rows = cache.rows("train", seq_len, np.arange(n_rows))
        assert rows.dtype == np.int64
        assert (rows[:-1, -1] == rows[1:, 0]).all()
        assert (rows[:, 1:].ravel() == stream[1 : n_rows * seq_len + 1]).all()
        assert (rows[:, :-1].ravel() == stream[: n_rows * seq_len]).all()
    with pytest.raises(ValueError, match="asked for; train has"):
        cache.rows("train", 16, [cache.n_rows("train", 16)])
    with pytest.raises(ValueError, match="unknown split 'dev'; allowed: train"):
        cache.n_tokens("dev")


@pytest.mark.parametrize("tokenizer", TOKENIZERS[:2], ids=["bytes", "bpe"])
def test_the_manifest_does_not_depend_on_the_number_of_blocks(corpus, tmp_path, tokenizer):
    (corpus.parent / "more.jsonl").write_text("\n".join(json.dumps({"text": f"row {i}"}) for i in range(20)))
    config = config_for(corpus.parent, tokenizer)
    hashes = {prepare(config, tmp_path / f"c{n}", n_blocks=n).manifest_hash for n in (1, 2, 7, 1000)}
    hashes.add(prepare(config, tmp_path / "default").manifest_hash)
    assert len(hashes) == 1


def test_bpe_training_is_the_same_in_another_process_and_sees_the_train_split_only(corpus, tmp_path):
    config = config_for(corpus, {"kind": "bpe", "vocab_size": 400})
    ours = prepare(config, tmp_path / "here")
    code = f"""
from fabric.data import DataConfig, prepare
config = DataConfig.model_validate_json({config.model_dump_json()!r})
print(prepare(config, {str(tmp_path / "there")!r}).manifest_hash)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ours.manifest_hash
    other = config_for(corpus, {"kind": "bpe", "vocab_size": 400}, split_seed=5)
    assert prepare(other, tmp_path / "here").tokenizer().json != ours.tokenizer().json


def test_a_second_prepare_reuses_and_damage_is_found_and_repaired(corpus, tmp_path):
    config, root = config_for(corpus), tmp_path / "cache"
    stages = []
    cache = prepare(config, root, progress=lambda stage, part: stages.append((stage, part)))
    assert ("tokenise", 1.0) in stages
    assert describe(config, root)["state"] == "built"
    before = (cache.path / "train.bin").stat().st_mtime_ns
    assert (prepare(config, root).path / "train.bin").stat().st_mtime_ns == before
    assert sorted(p.name for p in (root / "tokens").iterdir()) == [data_key(config, root)]

    with (cache.path / "train.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match=r"train.bin has 100 bytes, the manifest says \d+"):
        TokenCache.open(cache.path)
    assert describe(config, root)["state"] == "damaged"
    with pytest.warns(UserWarning, match="building it again"):
        assert prepare(config, root).manifest_hash == cache.manifest_hash

    (cache.path / "tokenizer.json").write_text(cache.tokenizer().json.replace("0", "1", 1), encoding="utf-8")
    with pytest.raises(ValueError, match="does not match the cache"):
        TokenCache.open(cache.path)
    with pytest.raises(ValueError, match="was built for other text"):
        TokenCache.open(prepare(config_for(corpus, split_seed=3), root).path, key=data_key(config, root))
    with pytest.raises(ValueError, match="not a token cache"):
        TokenCache.open(tmp_path)


def test_changed_contents_of_the_right_size_are_found_by_verify(corpus, tmp_path):
    cache = prepare(config_for(corpus), tmp_path / "cache")
    with (cache.path / "test.bin").open("r+b") as file:
        file.write(b"\x07")
    with pytest.raises(ValueError, match=r"contents of test\.bin changed"):
        TokenCache.open(cache.path).verify()


def test_changed_contents_of_the_right_size_are_repaired_and_told(corpus, tmp_path):
    config, root = config_for(corpus), tmp_path / "cache"
    cache = prepare(config, root)
    with (cache.path / "test.bin").open("r+b") as file:
        file.write(b"\x07")
    about = describe(config, root)
    assert about["state"] == "damaged"
    assert "contents of test.bin changed" in about["reason"]
    with pytest.warns(UserWarning, match=r"contents of test.bin changed.*building it again"):
        prepare(config, root).verify()
    assert describe(config, root)["state"] == "built"


def test_an_unchanged_large_cache_is_hashed_once(tmp_path, monkeypatch):
    (tmp_path / "big.txt").write_text("\n\n".join(f"paragraph {i} of a large text" for i in range(40_000)))
    config, root = config_for(tmp_path / "big.txt"), tmp_path / "cache"
    prepare(config, root)
    later = time.time_ns() + 60 * 10**9
    monkeypatch.setattr(disk.time, "time_ns", lambda: later)  # what was changed just now is not remembered
    prepare(config, root)
    read = []
    monkeypatch.setattr(disk, "sha256_of_file", lambda path: read.append(path.name) or sha256_of_file(path))
    prepare(config, root)
    assert "train.bin" not in read
    assert "test.bin" in read, "small files are read in no time"


def test_two_processes_at_once_both_end_with_a_sound_cache(corpus, tmp_path):
    config = config_for(corpus)
    code = f"""
from fabric.data import DataConfig, prepare
config = DataConfig.model_validate_json({config.model_dump_json()!r})
print(prepare(config, {str(tmp_path / "cache")!r}).manifest_hash)
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    hashes = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert hashes == {prepare(config, tmp_path / "cache").manifest_hash}
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_a_build_that_fails_leaves_nothing_behind(corpus, tmp_path):
    def stop(stage, part):
        if stage == "tokenise":
            raise RuntimeError("stop here")

    root = tmp_path / "cache"
    built = prepare(config_for(corpus), root).path
    with pytest.raises(RuntimeError, match="stop here"):
        prepare(config_for(corpus, split_seed=1), root, progress=stop)
    assert list((root / "tokens").iterdir()) == [built]


KILLED = """
import os, signal
from fabric.data import DataConfig, prepare
config = DataConfig.model_validate_json({config!r})
def stop(stage, part):
    if stage == {stage!r} and part >= {part}:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(config, {root!r}, progress=stop, n_blocks=9)
"""


def killed_build(config, root, stage, part=0.0):
    code = KILLED.format(config=config.model_dump_json(), root=str(root), stage=stage, part=part)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    (left,) = (root / "tokens").iterdir()
    assert left.name.startswith(".building-")
    return left


@pytest.mark.parametrize(("stage", "part"), [("index", 0.5), ("tokenise", 0.5), ("place", 0.5)])
def test_a_killed_build_goes_on_with_the_blocks_it_had_not_done(corpus, tmp_path, monkeypatch, stage, part):
    (corpus.parent / "more.jsonl").write_text("\n".join(json.dumps({"text": f"row {i}"}) for i in range(20)))
    config = config_for(corpus.parent, {"kind": "bpe", "vocab_size": 300})
    whole = prepare(config, tmp_path / "whole")
    killed_build(config, tmp_path / "cache", stage, part)
    read = []
    original = blocks.read_documents
    monkeypatch.setattr(blocks, "read_documents", lambda *a: read.append(len(a[1])) or original(*a))
    again = prepare(config, tmp_path / "cache")
    again.verify()
    assert again.manifest_hash == whole.manifest_hash
    assert list((tmp_path / "cache" / "tokens").iterdir()) == [again.path]
    n = sum(entry["n_documents"] for entry in whole.manifest["splits"].values())
    done = {"index": 0, "tokenise": n / 2, "place": n}[stage]
    assert sum(read) == pytest.approx(n - done, abs=n / 6)


def test_a_build_at_work_is_not_taken_over_and_an_abandoned_one_is_swept_up(corpus, tmp_path):
    config, root = config_for(corpus), tmp_path / "cache"
    left = killed_build(config, root, "tokenise")
    with (left / "work" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(config, root).verify()
        assert left.exists()
    for folder in (left, left / "work", left / "work" / "parts"):
        os.utime(folder, (1, 1))
    other = prepare(config_for(corpus, split_seed=1), root)
    assert not left.exists()
    assert len(list((root / "tokens").iterdir())) == 2
    other.verify()


def test_an_interrupted_build_goes_on_too(corpus, tmp_path):
    def stop(stage, part):
        if stage == "tokenise":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config_for(corpus), tmp_path / "cache", progress=stop)
    (left,) = (tmp_path / "cache" / "tokens").iterdir()
    cache = prepare(config_for(corpus), tmp_path / "cache")
    assert not left.exists()
    assert cache.manifest_hash == prepare(config_for(corpus), tmp_path / "other").manifest_hash


def test_reading_a_cache_imports_numpy_and_ours_only(corpus, tmp_path):
    config = config_for(corpus, {"kind": "bpe", "vocab_size": 300})
    path = prepare(config, tmp_path / "cache").path
    code = f"""
import sys
from fabric.data import Batches, DataConfig, TokenCache, data_key
config = DataConfig.model_validate_json({config.model_dump_json()!r})
cache = TokenCache.open({str(path)!r}, key=data_key(config))
Batches(cache, "train", 16, 4, 0).batch(3), cache.n_bytes("test", cache.tokens("test"))
heavy = ["ray", "tokenizers", "transformers", "datasets", "pyarrow", "torch", "pandas"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_corpus_rewritten_while_it_is_read_is_not_cached(corpus, tmp_path):
    def rewrite(stage, part):
        if stage == "tokenise":
            corpus.write_bytes(corpus.read_bytes().replace(b"Paragraph", b"paragraph"))

    with pytest.raises(ValueError, match="changed while it was being read"):
        prepare(config_for(corpus), tmp_path / "cache", progress=rewrite)


def test_a_cache_can_be_pickled_by_its_path(corpus, tmp_path):
    cache = prepare(config_for(corpus), tmp_path / "cache")
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    assert (pickle.loads(packed).tokens("train") == cache.tokens("train")).all()


def test_wide_vocabularies_take_four_bytes(corpus, tmp_path):
    wide = prepare(config_for(corpus, {"kind": "bpe", "vocab_size": 70_000}), tmp_path / "cache")
    assert wide.tokens("train").dtype == np.uint32
    assert prepare(config_for(corpus), tmp_path / "cache").tokens("train").dtype == np.uint16


def test_an_id_outside_the_vocabulary_is_an_error(corpus, tmp_path, monkeypatch):
    narrow = (ByteTokenizer(), ByteTokenizer().token_bytes()[:200].astype(np.int64))
    monkeypatch.setattr(blocks, "tokenizer_in", lambda *_: narrow)
    with pytest.raises(ValueError, match=r"vocabulary overflow: the tokenizer gave id 256 for .*corpus.txt"):
        prepare(config_for(corpus), tmp_path / "cache")


def test_file_tokenizers_need_an_end_of_text_token_and_ignore_stored_truncation(corpus, tmp_path):
    from tokenizers import Tokenizer as Library

    stored = (
        prepare(config_for(corpus, {"kind": "bpe", "vocab_size": 300}), tmp_path / "cache").tokenizer().json
    )
    library = Library.from_str(stored)
    library.enable_truncation(4)
    library.enable_padding(length=64)
    (tmp_path / "cut.json").write_text(library.to_str())
    cut = load_tokenizer(tmp_path / "cut.json")
    assert cut.decode(cut.encode("a long enough text")) == "a long enough text"
    assert len(cut.encode_documents(["a long enough text", "short"])[1]) < 10
    (tmp_path / "strange.json").write_text(stored.replace("<|endoftext|>", "<|done|>"))
    with pytest.raises(ValueError, match=r"no end-of-text token.*<\|done\|>"):
        load_tokenizer(tmp_path / "strange.json")
    config = config_for(corpus, {"kind": "file", "path": tmp_path / "strange.json", "eos": "<|done|>"})
    cache = prepare(config, tmp_path / "cache")
    assert cache.tokenizer().eos_id == 0
    assert int((cache.tokens("train") == 0).sum()) == cache.manifest["splits"]["train"]["n_documents"]


def test_a_local_model_folder_through_the_hub_tokenizer(corpus, tmp_path):
    trained = prepare(config_for(corpus, {"kind": "bpe", "vocab_size": 300}), tmp_path / "cache").tokenizer()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(trained.json)
    settings_ = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    config = config_for(corpus, {"kind": "hub", "name": str(folder)})
    cache = prepare(config, tmp_path / "cache")
    assert cache.tokenizer().encode("Paragraph 3") == trained.encode("Paragraph 3")
    assert cache.tokenizer().eos_token == "<|endoftext|>"
