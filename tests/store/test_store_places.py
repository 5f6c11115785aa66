"""Where records are kept: the five operations mean the same everywhere, and a wrong URL is one clear sentence."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.store import Store, StoreUnavailableError, Url, fetch, is_url, local, located, remote, share
from fabric.store.remote import RemoteObjects
from fabric.store.snapshot import Snapshot
from fabric.store.store import objects_at

KEYS = st.sampled_from(["x", "d/x", "d/y", "d/e/z", "dd/x"])
PREFIXES = st.sampled_from(["d", "d/", "d/e", "d/x", "dd", "x", "nothing"])
DATA = st.binary(max_size=3)
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, DATA),
    st.tuples(st.just("create"), KEYS, DATA),
    st.tuples(st.just("delete"), PREFIXES, DATA),
)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(STEPS, min_size=1, max_size=6), st.sampled_from(["memory", "folder"]))
def test_objects_are_a_mapping_of_keys_to_bytes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, bytes]], kind: str
) -> None:
    folder = f"memory://{uuid.uuid4().hex}" if kind == "memory" else str(tmp_path_factory.mktemp("objects"))
    assert_mapping(f"{folder}/job", steps)


@settings(deadline=None, derandomize=True, max_examples=6)
@given(st.lists(STEPS, min_size=6, max_size=6))
def test_objects_on_s3_are_the_same_mapping(s3, steps: list[tuple[str, str, bytes]]) -> None:
    assert_mapping(s3.new(), steps)


def assert_mapping(place: str, steps: list[tuple[str, str, bytes]]) -> None:
    root = located(place)
    writes, reads = objects_at(root), objects_at(root)  # as two processes would
    expected: dict[str, bytes] = {}
    for what, key, data in steps:
        if what == "put":
            writes.put(key, data)
            expected[key] = data
        elif what == "create":
            assert writes.create(key, data) == (key not in expected)
            expected.setdefault(key, data)
        else:
            writes.delete(key)
            gone = key.strip("/")
            expected = {k: v for k, v in expected.items() if k != gone and not k.startswith(f"{gone}/")}
        assert reads.list("") == sorted(expected)
    for prefix in ("d", "d/", "dd", "x", "nothing"):
        assert reads.list(prefix) == sorted(k for k in expected if k.startswith(f"{prefix.strip('/')}/"))
    assert {k: reads.get(k) for k in ("x", "d/x", "d/y", "d/e/z", "dd/x", "d", "no")} == {
        k: expected.get(k) for k in ("x", "d/x", "d/y", "d/e/z", "dd/x", "d", "no")
    }


def test_objects_larger_than_a_request_are_whole_or_not_there(s3, monkeypatch) -> None:
    """Two pieces and more are sent one by one; the condition is asked when they are put together."""
    objects, large = RemoteObjects(located(s3.new())), bytes(range(256)) * (45 * 2**10)
    smaller = partial(objects._fs.pipe_file, chunksize=5 * 2**20)  # than its 50 MB
    monkeypatch.setattr(objects._fs, "pipe_file", smaller)
    assert objects.create("w", large)
    assert not objects.create("w", large[:-1])
    assert objects.get("w") == large


def test_a_snapshot_reads_what_was_there(s3) -> None:
    objects = RemoteObjects(located(s3.new()))
    for key in ("a", "d/x", "d/y", "dd"):
        objects.put(key, key.encode())
    seen = Snapshot(objects)
    objects.put("d/z", b"later")
    assert seen.list("") == ["a", "d/x", "d/y", "dd"]
    assert seen.list("d") == seen.list("d/") == ["d/x", "d/y"]
    assert [seen.get(k) for k in ("a", "d/z", "d", "d/x")] == [b"a", None, None, b"d/x"]
    objects.delete("a")
    assert seen.get("a") == b"a"


# -- URLs ---------------------------------------------------------------------------------------------------------


def test_urls_have_the_manners_of_paths() -> None:
    root = located("s3://bucket/some/prefix/")
    assert str(root / "job") == "s3://bucket/some/prefix/job"
    assert (root / "job").name == "job"
    assert (root / "job").parent == root
    assert located("s3://bucket") / "job" == Url("s3://bucket/job")
    assert located("s3://bucket").parent == Url("s3://bucket")
    assert located("file:///tmp/x") == Path("/tmp/x")
    assert located("runs") == Path.cwd() / "runs"
    assert not is_url("s3:/bucket")


@pytest.mark.parametrize(
    ("given_", "said"),
    [
        ("ftp://host/x", "ftp://host/x: records are kept in a folder, or at s3://, .*choose one"),
        ("s3://", "s3:// names no bucket; write s3://BUCKET/PREFIX"),
        (Path("s3://bucket/x"), "a Path cannot hold a URL; give it as text"),
    ],
)
def test_what_is_no_place_for_records_is_said(given_: str | Path, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        located(given_)


def test_files_are_written_to_local_paths_only() -> None:
    assert local("a/b", "--out") == Path("a/b")
    for given_ in ("s3://bucket/x", Path("s3://bucket/x")):
        with pytest.raises(ValueError, match="URL"):
            local(given_, "--out")


def test_a_missing_package_is_named() -> None:
    with pytest.raises(
        StoreUnavailableError, match=r"^gs://bucket/x needs the package gcsfs.*pip install gcsfs$"
    ):
        Store("gs://bucket/x")


# -- trouble ------------------------------------------------------------------------------------------------------


def asked(objects: RemoteObjects) -> list[Callable[[], object]]:
    """Every operation."""
    return [
        lambda: objects.put("a", b"1"),
        lambda: objects.create("a", b"1"),
        lambda: objects.get("a"),
        lambda: objects.list("a"),
        lambda: objects.delete("a"),
    ]


def assert_refused(url: str, said: str) -> None:
    objects = RemoteObjects(Url(url))
    for operation in asked(objects):
        with pytest.raises(StoreUnavailableError, match=said):
            operation()


def test_a_bucket_that_is_not_there_is_named(s3) -> None:
    assert_refused("s3://nowhere/x", "^the bucket of s3://nowhere/x does not exist: create it")


def test_missing_credentials_are_asked_for(s3, monkeypatch, tmp_path) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        url = s3.new()
        assert_refused(url, f"^{url} refuses access .*AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_store_that_was_never_there_is_not_waited_for(s3, monkeypatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    began = time.monotonic()
    try:
        assert_refused("s3://records/x", "^s3://records/x cannot be reached .*the same command goes on")
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
    assert time.monotonic() - began < sum(remote.WAITS)


def test_a_store_that_is_away_for_a_while_is_waited_for(s3, monkeypatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.2,) * 20)
    objects = RemoteObjects(Url(s3.new()))
    objects.put("a", b"0")
    s3.is_away = True
    back = threading.Timer(0.5, lambda: setattr(s3, "is_away", False))
    back.start()
    try:
        objects.put("a", b"1")
        assert not s3.is_away
        assert objects.get("a") == b"1"
        s3.is_away = True
        monkeypatch.setattr(remote, "WAITS", (0.01,))
        for operation in asked(objects):
            with pytest.raises(StoreUnavailableError, match="cannot be reached"):
                operation()
    finally:
        back.cancel()
        s3.is_away = False


# -- what machines share --------------------------------------------------------------------------------------------


def test_a_shared_cache_is_fetched_once_and_whole(s3, tmp_path) -> None:
    out, here, there = located(s3.new()), tmp_path / "here", tmp_path / "there"
    (here / "tokens" / "k").mkdir(parents=True)
    (here / "tokens" / "k" / "train.bin").write_bytes(b"1234")
    fetch(out, there, "tokens/k")
    assert not there.exists(), "nothing is shared yet"
    share(out, here, "tokens/k")
    fetch(out, there, "tokens/k")
    assert (there / "tokens" / "k" / "train.bin").read_bytes() == b"1234"
    objects_at(out / ".cache").put("tokens/k/train.bin", b"1239")
    fetch(out, there, "tokens/k")
    assert (there / "tokens" / "k" / "train.bin").read_bytes() == b"1234", "it has it"
    with pytest.raises(ValueError, match=f"{out}/.cache/tokens/k/train.bin is damaged"):
        fetch(out, tmp_path / "third", "tokens/k")
    assert list((tmp_path / "third" / "tokens").iterdir()) == []
