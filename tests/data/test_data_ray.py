"""Ray Data gives the same cache as this process alone."""

import json

import pytest

from fabric.data import DataConfig, prepare
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
