"""Ray Data gives the same cache as this process alone."""

import json

import pytest

from fabric.data import DataConfig, build, prepare
from fabric.data.tokenizers.bytes import BytesConfig

pytestmark = pytest.mark.ray


@pytest.fixture
def config(corpus):
    lines = [json.dumps({"text": f"row {i} é"}) for i in range(40)]
    (corpus.parent / "more.jsonl").write_text("\n".join(lines))
    return DataConfig(corpus=str(corpus.parent), tokenizer={"kind": "bpe", "vocab_size": 300}, seq_len=8)


def test_one_two_and_seven_ray_blocks_equal_inline(ray_session, config, tmp_path, capfd):
    inline = prepare(config, tmp_path / "inline", backend="inline")
    for n_blocks in (1, 2, 7):
        stages = []
        cache = prepare(
            config,
            tmp_path / f"ray{n_blocks}",
            backend="ray",
            n_blocks=n_blocks,
            progress=lambda *args: stages.append(args),  # noqa: B023 (called before the loop goes on)
        )
        assert cache.manifest_hash == inline.manifest_hash
        assert [s for s in stages if s[1] == 1.0][-2:] == [("tokenise", 1.0), ("place", 1.0)]
        cache.verify()
    out, err = capfd.readouterr()
    assert "Running" not in out + err, out + err


def test_a_task_error_is_the_same_clear_sentence(ray_session, config, corpus, tmp_path):
    def spoil(stage, part):
        if stage == "index" and part == 1.0:
            corpus.write_bytes(corpus.read_bytes()[:-200] + b"\xff" * 200)

    config = config.model_copy(
        update={"tokenizer": BytesConfig(kind="bytes")}
    )  # BPE training would read it first
    with pytest.raises(ValueError, match=r"corpus.txt is not UTF-8: byte 0xff at offset \d+"):
        prepare(config, tmp_path / "cache", backend="ray", n_blocks=2, progress=spoil)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_auto_takes_ray_for_large_text_when_there_is_a_session(ray_session, config, tmp_path, monkeypatch):
    import fabric.runtime.data as spread

    used = []
    monkeypatch.setattr(build, "RAY_FROM_BYTES", 1000)
    original = spread.tokenize_with_ray
    monkeypatch.setattr(spread, "tokenize_with_ray", lambda *a: used.append(a) or original(*a))
    first = prepare(config, tmp_path / "a")
    assert len(used) == 1
    monkeypatch.setattr(spread, "is_connected", lambda: False)
    assert prepare(config, tmp_path / "b").manifest_hash == first.manifest_hash
    assert len(used) == 1
    with pytest.raises(ValueError, match="needs a running Ray session"):
        prepare(config, tmp_path / "c", backend="ray")
    with pytest.raises(ValueError, match="allowed: auto, inline, ray"):
        prepare(config, tmp_path / "c", backend="spark")


@pytest.fixture
def stream_config(corpus):
    lines = [json.dumps({"text": f"row {i} é"}) for i in range(400)]
    (corpus.parent / "more.jsonl").write_text("\n".join(lines))
    stream = {"unit_bytes": 1024, "held_out_bytes": 1024}
    return DataConfig(corpus=str(corpus.parent), tokenizer="bytes", seq_len=8, stream=stream)


def test_a_stream_read_by_ray_data_is_the_one_read_here(ray_session, stream_config, tmp_path):
    from fabric.data.stream import StreamedBatches
    from fabric.runtime import stream as spread

    cache = prepare(stream_config, tmp_path / "cache")
    here = StreamedBatches(stream_config, cache, 4, seed=2)
    for step in range(40):
        here.batch(step)
    saved = here.saved(40)
    there = StreamedBatches(stream_config, cache, 4, seed=2, read=spread.read_with_ray)
    there.restore(saved)
    for step in range(40, 300):
        assert (there.batch(step) == here.batch(step)).all()
    there.close()
    here.close()


def test_a_damaged_text_is_the_same_clear_sentence_from_ray(ray_session, stream_config, corpus, tmp_path):
    from fabric.data.stream import StreamedBatches
    from fabric.runtime.stream import read_with_ray

    cache = prepare(stream_config, tmp_path / "cache")
    corpus.write_bytes(b"\xff" * corpus.stat().st_size)
    stream = StreamedBatches(stream_config, cache, 4, seed=2, read=read_with_ray)
    with pytest.raises(ValueError, match=r"^[^\n]*corpus.txt is not UTF-8: byte 0xff at offset \d+"):
        [stream.batch(step) for step in range(300)]
    stream.close()
