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
        assert stages[-2:] == [("tokenise", 1.0), ("place", 1.0)]
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
