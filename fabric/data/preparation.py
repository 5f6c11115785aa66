"""From a `DataConfig` to a token cache on disk, or to a description of what it would hold.

    <cache_root>/tokens/<key>/   manifest.json tokenizer.json token_bytes.npy {train,validation,test}.bin

The folder is content-addressed, built under another name and renamed, so it is whole or not there. That of a stream
holds no training tokens (see `fabric.data.streaming`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from fabric.data.blocks import BLOCK_BYTES
from fabric.data.build import PACKING_VERSION, Build, Progress, shares_of, split_counts
from fabric.data.building import WORK, building, remove_abandoned
from fabric.data.cache import TokenCache
from fabric.data.config import DataConfig, vocab_size
from fabric.data.corpus import CorpusError, Source, reading
from fabric.data.disk import beside, remembered_sha256, sha256_of
from fabric.data.example_cache import ExampleBuild, examples_key, examples_of
from fabric.data.index import Index
from fabric.data.streaming import StreamBuild, stream_identities, stream_key
from fabric.paths import real_path
from kernels.folders import default_cache_root


def data_key(config: DataConfig, cache_root: Path | str | None = None) -> str:
    """The content address of a config's tokens: sha256 (hex) over text, document rule, tokenizer and splits; of
    examples, over their identity and `seq_len`.

    Left out: paths and names (the same bytes elsewhere are the same data), and `seq_len`, because rows of any
    length are windows on one flat stream. Hashes of large files are remembered in `cache_root` (default:
    `default_cache_root()`) under path, size and change time.
    """
    root = Path(cache_root) if cache_root else default_cache_root()
    return _key(config, _identities(config, _sources(config, root), root), root)


def prepare(
    config: DataConfig,
    cache_root: Path | str,
    backend: str = "auto",
    n_blocks: int | None = None,
    progress: Progress | None = None,
) -> TokenCache:
    """The token cache of a config, built when it is not there yet.

    `backend`: `inline` works in this process; `ray` spreads the blocks with Ray Data over the session the
    caller started; `auto` is `ray` from 50 MB of text when there is a session with a free CPU, else `inline`.
    `n_blocks` cuts the work otherwise than by 8 MiB; it never changes the result. `progress(stage, fraction)` is
    called as work is done. What a killed or interrupted build had done is not done again. Of a stream only the
    held-out text and the tokenizer are prepared, always in this process. Raises ValueError naming the file or setting
    at fault. Safe to run several times at once on one folder.
    """
    if backend not in ("auto", "inline", "ray"):
        raise ValueError(f"backend {backend!r} is not known; allowed: auto, inline, ray")
    if n_blocks is not None and n_blocks < 1:
        raise ValueError(f"n_blocks {n_blocks} must be at least 1")
    root = real_path(Path(cache_root))
    sources = _sources(config, root)
    identities = _identities(config, sources, root)
    key = _key(config, identities, root)
    final = root / "tokens" / key
    if (found := _open_or_set_aside(final, key, root)) is not None:
        return found
    remove_abandoned(final.parent)
    with building(final) as temp:
        what = (config, root, sources, identities, key, temp, progress or (lambda _stage, _part: None))
        if config.examples is not None:
            ExampleBuild(*what).run()
        elif config.stream is None:
            Build(*what).run(backend, n_blocks)
        else:
            StreamBuild(*what).run()
        if _identities(config, sources, root) != identities:
            raise CorpusError("the corpus changed while it was being read; run again when it is complete")
        return _publish(temp, final, key)


def describe(config: DataConfig, cache_root: Path | str) -> dict[str, Any]:
    """What a config's data is, as plain values: key, state of the cache (built | absent | damaged), path,
    vocabulary, and per split documents, bytes, and (when built) tokens and bytes per token.
    """
    root = real_path(Path(cache_root))
    if config.examples is not None:
        return describe_examples(config, root)
    sources = _sources(config, root)
    identities = _identities(config, sources, root)
    key = _key(config, identities, root)
    path = root / "tokens" / key
    about: dict[str, Any] = {
        "key": key,
        "path": str(path),
        "corpus": config.corpus.kind,
        "files": len(sources),
        "order": config.order,
    }
    about |= {"tokenizer": config.tokenizer.kind, "vocab_size": config.tokenizer.vocab_size_in(root)}
    try:
        manifest = _open_sound(path, key, root).manifest
    except ValueError as error:
        if config.stream is None:
            with tempfile.TemporaryDirectory(prefix="fabric-index-") as folder:
                index = Index.write(Path(folder), sources, BLOCK_BYTES, shares_of(config))
                counts: dict[str, Any] = split_counts(index)
        else:
            counts = {"train": {"n_bytes": sum(i["bytes"] for i in identities)}}
        return about | {
            "state": "damaged" if path.is_dir() else "absent",
            "reason": str(error),
            "splits": counts,
        }
    splits = {name: dict(entry) for name, entry in manifest["splits"].items()}
    for entry in splits.values():
        entry["bytes_per_token"] = entry["n_bytes"] / entry["n_tokens"] if entry["n_tokens"] else None
    return about | {
        "state": "built",
        "splits": splits,
        "n_dropped_documents": manifest["n_dropped_documents"],
    }


def describe_examples(config: DataConfig, root: Path) -> dict[str, Any]:
    """What a config's examples are, as plain values: key, state and path of their cache, examples of each split."""
    examples = examples_of(config)
    key = examples_key(config, root)
    about: dict[str, Any] = {"key": key, "path": str(root / "tokens" / key), "examples": examples.kind}
    about |= {"order": config.order, "vocab_size": vocab_size(config, root), "seq_len": config.seq_len}
    try:
        return about | {
            "state": "built",
            "splits": _open_sound(root / "tokens" / key, key, root).manifest["splits"],
        }
    except ValueError as error:
        state = "damaged" if (root / "tokens" / key).is_dir() else "absent"
        return about | {"state": state, "reason": str(error), "splits": {}}


def _sources(config: DataConfig, root: Path) -> list[Source]:
    if config.examples is not None:
        return []
    return config.corpus.sources(root) if config.stream is None else config.corpus.streamed(root)


def _identities(config: DataConfig, sources: list[Source], root: Path) -> list[dict[str, Any]]:
    if config.stream is not None:
        return stream_identities(sources)
    found = []
    for source in sources:
        with reading(source.path):
            found.append(source.identity(remembered_sha256(Path(source.path), root)))
    return found


def _key(config: DataConfig, identities: list[dict[str, Any]], root: Path) -> str:
    if config.examples is not None:
        return examples_key(config, root)
    if config.stream is not None:
        return stream_key(config, identities, root)
    return sha256_of(
        {
            "packing": PACKING_VERSION,
            "corpus": identities,
            "tokenizer": config.tokenizer.identity(root),
            "splits": [config.validation_fraction, config.test_fraction, config.split_seed],
        }
    )


def _open_sound(path: Path, key: str, root: Path) -> TokenCache:
    """The cache after comparing every file's hash; those of large files are remembered in `root`.

    Raises ValueError naming what is missing or damaged.
    """
    found = TokenCache.open(path, key)
    found.verify(lambda file: remembered_sha256(file, root))
    return found


def _open_or_set_aside(final: Path, key: str, root: Path) -> TokenCache | None:
    """The cache if it is there and sound; a damaged one is removed, with a warning, to be built again."""
    if not final.is_dir():
        return None
    try:
        return _open_sound(final, key, root)
    except ValueError as error:
        warnings.warn(f"{error} (building it again now)", stacklevel=3)
    aside = beside(final, "damaged")
    os.rename(final, aside)
    shutil.rmtree(aside, ignore_errors=True)
    return None


def _publish(temp: Path, final: Path, key: str) -> TokenCache:
    shutil.rmtree(temp / WORK)
    for file in temp.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    try:
        os.rename(temp, final)
    except OSError:
        if not final.is_dir():  # else another process was first, with the same bytes
            raise
    return TokenCache.open(final, key)
