"""The benches against transformers and datasets at their smallest size, what they refuse, and the costs of breadth."""

from __future__ import annotations

import json
import math

import pytest
import torch

from fabric.bench import bench
from fabric.bench.breadth import beyond_torch, checkpoint_seconds
from fabric.bench.cache import MAP, OURS, _check, write_text
from fabric.bench.evaluate import check_likelihoods
from fabric.bench.generate import agreement, error
from fabric.bench.memory import _check as check_losses
from fabric.bench.training import decoder
from fabric.bench.work import job, seeds_of_one_arm


def finite(found):
    assert found == json.loads(json.dumps(found))
    assert all(math.isfinite(f["value"]) and f["value"] > 0 for f in found["figures"].values())
    return found["figures"]


@pytest.mark.slow
def test_generate_runs(tmp_path):
    found = bench("generate", repeats=1, out=tmp_path, quick=True, only=["fp32"])
    assert set(finite(found)) == {"fp32: ours over theirs"}
    assert found["same_tokens"] == {"fp32": found["new"]}


def test_texts_that_part():
    assert agreement("fp32", [1, 2, 3], [1, 2, 3], 0.0, 0.0) == 3
    assert agreement("bf16", [1, 2, 3], [1, 4, 5], 0.03, 0.03) == 1
    with pytest.raises(RuntimeError, match=r"fp32: the texts part at new token 2 \(2 against 4\)"):
        agreement("fp32", [1, 2, 3], [1, 4, 5], 0.0, 0.0)
    with pytest.raises(RuntimeError, match="our logits are 0.06 off, theirs 0.03"):
        agreement("bf16", [1, 2, 3], [1, 4, 5], 0.06, 0.03)


def test_errors_are_distances_from_fp32():
    from models import build, preset

    model = build(preset("smollm-tiny", init={"std": None})).eval()
    text = torch.randint(0, 512, (1, 14), generator=torch.Generator().manual_seed(1))
    assert error(model, model, text) == 0.0
    rounded = model.bfloat16()
    assert 1e-4 < error(rounded, rounded, text) < 0.1


@pytest.mark.slow
def test_memory_runs(tmp_path):
    found = bench("memory", repeats=1, out=tmp_path, quick=True, only=["fp32"])
    sides = finite(found)["fp32: ours over theirs"]["sides"]
    logits = 2 * 128 * 4096 * 4 / 2**20
    assert sides["theirs"]["median"] > logits, "in MiB, and the step is in it"


@pytest.mark.slow
def test_evaluate_runs(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed (the extra eval)")
    for name in ("FABRIC_DATA", "FABRIC_SMOLLM2"):
        monkeypatch.delenv(name, raising=False)
    found = bench("evaluate", repeats=1, out=tmp_path, quick=True, only=["blimp"])
    assert set(found["figures"]) == {"blimp: ours over their best", "blimp: ours over their batch 1"}
    assert found["model"] == "random"
    with pytest.raises(RuntimeError, match="differ by up to 0.1 nats"):
        check_likelihoods("blimp", [1.0, 2.0], [1.0, 2.1])


def test_losses_that_differ():
    check_losses("fp32", {"ours": [8.0, 7.0], "theirs": [8.0, 7.0]})
    with pytest.raises(RuntimeError, match="their memory says nothing"):
        check_losses("fp32", {"ours": [8.0, 7.0], "theirs": [8.0, 7.1]})
    with pytest.raises(RuntimeError, match="bf16"):
        check_losses("bf16", {"ours": [math.nan], "theirs": [8.0]})


def test_token_counts_that_differ():
    _check({OURS: 110, MAP: 100}, n_documents=10)
    with pytest.raises(RuntimeError, match="counts 111 tokens, datasets.map 100 and 10"):
        _check({OURS: 111, MAP: 100}, n_documents=10)


def test_a_generated_text_has_its_size_and_distinct_documents(tmp_path):
    file = tmp_path / "text.jsonl"
    n = write_text(file, 6_000_000)  # more than the plays: paragraphs come again, documents do not
    lines = file.read_text().splitlines()
    assert 6_000_000 <= file.stat().st_size < 6_100_000
    assert len({json.loads(line)["text"] for line in lines}) == len(lines) == n


@pytest.mark.ray
def test_the_cache_side_counts_what_the_inline_cache_has(ray_session, tmp_path):
    from fabric.bench.cache import make_tokenizer, with_ray
    from fabric.data import DataConfig, prepare

    tokenizer = make_tokenizer(tmp_path, 300)
    n = write_text(tmp_path / "text.jsonl", 100_000)
    paths = {"text": str(tmp_path / "text.jsonl"), "tokenizer": str(tokenizer)}
    side = with_ray(**paths, n=2, folder=str(tmp_path / "ours"))
    next(side)
    found = side.send(None)
    side.close()
    corpus, tokens = {"kind": "files", "path": paths["text"]}, {"kind": "file", "path": paths["tokenizer"]}
    config = DataConfig.model_validate({"corpus": corpus, "tokenizer": tokens, "seq_len": 256})
    cache = prepare(config, tmp_path / "inline", backend="inline")
    assert found["tokens"] == sum(cache.n_tokens(split) for split in ("train", "validation", "test"))
    assert found["seconds"] > 0
    assert sum(s["n_documents"] for s in cache.manifest["splits"].values()) == n


@pytest.mark.slow
def test_the_map_side_runs(tmp_path):
    from fabric.bench.cache import make_tokenizer
    from fabric.bench.process import Child
    from fabric.data.tokenizer import load_tokenizer

    tokenizer, text = make_tokenizer(tmp_path, 300), tmp_path / "text.jsonl"
    write_text(text, 100_000)
    task = {"text": str(text), "tokenizer": str(tokenizer), "n": 1, "folder": str(tmp_path / "theirs")}
    with Child("fabric.bench.cache:with_map", task) as child:
        found = child.ask()
    ours = load_tokenizer(tokenizer)
    wanted = sum(len(ours.encode(json.loads(line)["text"])) for line in text.read_text().splitlines())
    assert found["tokens"] == wanted
    assert 0 < found["seconds"] < found["whole"][0]


IMPORTTIME = """\
import time: self [us] | cumulative | imported package
import time:       100 |        100 |   numpy.core
import time:       200 |        300 | torch
import time:      5000 |       5000 |   torch._dynamo.utils
import time:      2000 |       7000 | torch._dynamo
import time:    300000 |     300000 |       sympy.core
import time:      1000 |     301000 | fabric.runtime.worker
"""


def test_imports_beyond_torch():
    found = beyond_torch(IMPORTTIME)
    assert list(found) == ["sympy", "torch._dynamo", "fabric"]
    assert found == pytest.approx({"sympy": 0.3, "torch._dynamo": 0.007, "fabric": 0.001})


def test_checkpoints_are_timed(tmp_path):
    found = checkpoint_seconds(str(tmp_path), decoder(64, 1, 64, 256), times=2)
    assert len(found["seconds"]) == 2
    assert found["bytes"] > 3 * 4 * found["n_params"], "weights and two moments; older ones are gone"
    assert found["bytes"] < 4 * 4 * found["n_params"]


@pytest.mark.ray
def test_trials_leave_their_times(ray_session, tmp_path):
    from fabric.runtime.probe import _trials

    evaluate = {"times": 2, "val_tokens": 64}
    body = job(
        "probe-times",
        steps=2,
        search=seeds_of_one_arm(2),
        quick=True,
        evaluate=evaluate,
        resources={"max_concurrent": 1},
    )
    asked, trials = _trials(body, tmp_path)
    first, second = trials
    assert asked[0] < first["called"] < asked[1] < second["called"]
    for trial in trials:
        assert trial["steps"] > 0
        assert trial["first_step"] > 0
        assert len(trial["reports"]) >= 1
    assert second["called"] - first["called"] > first["steps"]
