"""`precision: auto` and `compile: auto`: decided when the job is read, by a measurement that is kept."""

import json

import pytest
from planning_kit import BASE, job_of, memory_store, study_of

from fabric.planning import machine_speed
from fabric.planning.machine_speed import Products, resolved
from fabric.planning.trial import TrialSpec

AXIS = {"mode": "grid", "axes": [{"path": "model.norm_placement", "values": ["pre"]}]}


@pytest.fixture
def speeds(monkeypatch):
    """Let a test say how fast products are."""

    def say(fp32, bf16, own_kernels=True):
        monkeypatch.setattr(
            machine_speed, "products", lambda device, threads: Products(fp32, bf16, own_kernels)
        )

    return say


def train_of(**train):
    job = job_of(AXIS)
    configured = job.configure()
    section = configured.train.model_copy(update=train)
    return resolved(section, configured.model, configured.data.seq_len, "cpu", 1)


@pytest.mark.parametrize(("bf16", "wanted"), [(1.4e11, "fp32"), (1.6e11, "bf16")])
def test_precision_is_bf16_where_its_products_are_half_as_fast_again(speeds, bf16, wanted):
    speeds(1e11, bf16)
    assert train_of(precision="auto").precision == wanted
    assert train_of(precision="fp16").precision == "fp16"


@pytest.mark.parametrize(
    ("tokens", "own_kernels", "wanted"),
    [
        (10**4, True, False),
        (10**4, False, False),
        (10**10, True, False),  # nothing is left to save
        (10**10, False, True),
        (10**7, False, True),
    ],
)
def test_compiling_is_for_runs_that_win_back_its_time(speeds, tokens, own_kernels, wanted):
    speeds(1e10, 1e10, own_kernels)
    assert train_of(compile="auto", tokens=tokens).compile is wanted
    assert train_of(compile=True, tokens=10**4).compile is True


@pytest.mark.slow
def test_the_measurement_is_kept_for_the_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("FABRIC_CACHE", str(tmp_path))
    machine_speed.products.cache_clear()
    monkeypatch.setattr(machine_speed, "SECONDS_EACH", 0.01)
    try:
        found = machine_speed.products("cpu", 1)
        (memo,) = (tmp_path / "machine").glob("products-*-cpu-1-*.json")
        assert json.loads(memo.read_text()) == found.__dict__
        assert found.fp32 > 1e8
        memo.write_text(json.dumps({"fp32": 1.0, "bf16": 7.0, "own_kernels": False}))
        machine_speed.products.cache_clear()
        assert machine_speed.products("cpu", 1) == Products(1.0, 7.0, False)
        for damaged in (
            "not json",
            '{"fp32": "x", "bf16": 7.0, "own_kernels": false}',
            '{"fp32": NaN, "bf16": 7.0, "own_kernels": false}',
            "[]",
            "{}",
        ):
            memo.write_text(damaged)
            machine_speed.products.cache_clear()
            assert machine_speed.products("cpu", 1).fp32 > 1e8
    finally:
        machine_speed.products.cache_clear()


def test_a_job_with_auto_has_the_identity_of_what_it_became(speeds):
    speeds(1e11, 9e11)
    ids = []
    for precision in ("auto", "bf16"):
        train = {**BASE["train"], "precision": precision, "compile": "auto"}
        study = study_of(job_of(AXIS, {**BASE, "train": train}), memory_store())
        assert {t.spec.train.precision for t in study.trials.values()} == {"bf16"}
        ids.append({t.spec.id for t in study.trials.values()})
    assert ids[0] == ids[1]


def test_a_trial_itself_is_never_undecided():
    spec = next(iter(study_of(job_of(AXIS), memory_store()).trials.values())).spec
    body = spec.model_dump()
    with pytest.raises(ValueError, match="decided before it is planned"):
        TrialSpec.model_validate({**body, "train": {**body["train"], "precision": "auto"}})
