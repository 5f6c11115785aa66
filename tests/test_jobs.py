"""Every job file in `jobs/` is real: it loads at every scale, plans, and runs to its end at scale smoke."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import fabric
from fabric.job.load import load_job, scale_names
from fabric.planning.expand import arms_of_phase
from fabric.planning.study import Machine, Study
from fabric.store import Store

JOBS = sorted((Path(__file__).resolve().parents[1] / "jobs").glob("*.yaml"))
SCALES = [(job, scale) for job in JOBS for scale in [None, *scale_names(job)]]


# What a scale reads that its users fetch or make first: a model stands for it here.
FETCHED = {("evaluation", "lora"): ("model.from", "data.tokenizer")}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with its tokenizer, as a Hugging Face folder."""
    from fabric.data.tokenizer import ByteTokenizer
    from models import ModelConfig, build
    from models.hf import to_transformers

    body = {"vocab_size": 258, "d_model": 16, "n_layers": 1, "max_seq_len": 512}
    parts = {"mixer": {"kind": "gqa", "n_heads": 2, "n_kv_heads": 1}, "ffn": {"kind": "swiglu", "d_ff": 16}}
    folder = tmp_path_factory.mktemp("pretrained")
    to_transformers(build(ModelConfig.model_validate({**body, **parts}))).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(ByteTokenizer().json)
    return folder


@pytest.mark.parametrize(("job", "scale"), SCALES, ids=[f"{j.stem}-{s or 'default'}" for j, s in SCALES])
def test_every_scale_loads_and_every_phase_configures(
    job: Path, scale: str | None, tmp_path: Path, pretrained: Path
) -> None:
    changes = [f"{path}={pretrained}" for path in FETCHED.get((job.stem, str(scale)), ())]
    loaded = load_job(job, scale, changes, cache=tmp_path / "cache")
    # The data's content key is the one thing that may need a network (scale cluster); any text stands for it here.
    study = Study(loaded, Store(tmp_path / loaded.name), lambda config: "0" * 64, Machine(), dry=True)
    assert study.trials
    assert not (tmp_path / loaded.name).exists(), "a dry study writes nothing"


@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.stem)
def test_plan_is_json(job: Path, tmp_path: Path) -> None:
    body = json.loads(json.dumps(fabric.plan(job, scale="smoke", out=tmp_path).as_dict()))
    assert body["trials"]
    assert all(t["state"] in ("new", "duplicate") for t in body["trials"])
    assert body["detectable"] is None


def test_a_corpus_that_is_not_fetched_is_planned_without_fetching_it(tmp_path: Path) -> None:
    found = fabric.plan(JOBS[0], scale="cluster", out=tmp_path)
    assert any("not fetched yet" in w for w in found.warnings)
    assert {t.state for t in found.trials} <= {"new", "duplicate"}
    assert found.arms[0].n_params > 130_000_000
    assert list(tmp_path.iterdir()) == []


def test_recall_is_asked_at_three_sizes_in_as_many_steps_with_and_without_the_convolution() -> None:
    job = load_job(next(j for j in JOBS if j.stem == "recall"), "hour")
    found = {}
    for i, phase in enumerate(job.config.search.phases):
        for arm in arms_of_phase(job, i, phase):
            c = job.configure(arm.overrides)
            assert (c.model.n_layers, c.model.d_model) == (2, 64)
            assert c.train.n_steps(c.data.seq_len, 0) == 1500
            assert c.data.seq_len <= c.model.max_seq_len
            found[arm.name] = (c.data.seq_len, c.data.examples.n_pairs, c.model.short_conv)
    sizes = ((64, 4), (128, 8), (256, 16))
    assert found == {
        f"{name}-{n}": (n, pairs, taps)
        for n, pairs in sizes
        for name, taps in (("attention", None), ("conv", 3))
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all jobs are run: what two of them read is prepared once."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda j: j.stem)
def test_smoke_scale_runs_to_its_end(job: Path, out: Path, ray_session: None) -> None:
    end = fabric.sweep(job, scale="smoke", out=out)
    assert not end.interrupted
    assert not end.failed
    found = fabric.results(end.root)
    search = load_job(job, "smoke").config.search
    assert found.decisions, "every phase ends in a decision"
    for row in found.arms:
        assert row.n == len(search.seeds), (row.phase, row.arm)
        assert row.result is not None
        # Below the loss of guessing: something was learned in every arm.
        assert row.result.mean < math.log(load_job(job, "smoke").configure().model.vocab_size)
        assert row.means["test_loss"] > 0
    before = {s.id: s.attempts for s in fabric.status(end.root)}
    again = fabric.sweep(job, scale="smoke", out=out)
    assert not again.interrupted
    assert {s.id: s.attempts for s in fabric.status(end.root)} == before, (
        "a finished sweep trains nothing again"
    )
