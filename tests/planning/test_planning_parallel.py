"""The ring model: hand-worked values, its limits and its monotonicity; the fit that finds alpha and beta again."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fabric.planning import machine_workers
from fabric.planning.machine_workers import Timed, fit
from fabric.planning.parallel import (
    CLAIMED,
    ClusterConfig,
    Link,
    Step,
    predict,
    speedup,
    step_seconds,
    weak_speedup,
)


def test_hand_worked_rings():
    """124.1 M fp32 gradients over 100 GB/s and 10 us: 20 us + 496.4 MB / B, and 140 us + 1.75 * 496.4 MB / B."""
    link = Link(10e-6, 1 / 100e9)
    assert link.ring(1, 496.4e6) == 0
    assert link.ring(2, 496.4e6) == pytest.approx(4.984e-3, rel=1e-12)
    assert link.ring(8, 496.4e6) == pytest.approx(8.827e-3, rel=1e-12)


def test_a_hand_worked_hierarchy():
    """Two nodes of 4: a ring of 4 inside (6 + 1.5 s), then a ring of 2 over the nodes for a quarter (20 + 2.5 s)."""
    cluster = ClusterConfig(
        gpus_per_node=4, node_seconds=1, node_bytes_per_second=10, network_seconds=10, network_bytes_per_second=1
    )  # fmt: skip
    assert cluster.exchange(4, 10) == pytest.approx(6 + 1.5)
    assert cluster.exchange(8, 10) == pytest.approx(7.5 + 20 + 2.5)
    with pytest.raises(
        ValueError, match="6 workers do not fill nodes of 4; use one node, or a multiple of 4"
    ):
        cluster.exchange(6, 10)
    assert cluster.counts() == [1, 2, 4, 8, 16, 32, 64, 128]
    assert ClusterConfig(gpus_per_node=6).counts() == [1, 2, 4]


def test_a_hand_worked_step():
    assert step_seconds(3.0, 1.0, overlap=0.0) == 4.0
    assert step_seconds(3.0, 1.0, overlap=0.25) == 3.5  # the backward pass takes 2 of the 3 seconds
    assert step_seconds(3.0, 1.0, overlap=1.0) == 3.0, "no more is hidden than there is"
    cluster = ClusterConfig(node_seconds=0, node_bytes_per_second=1)
    assert speedup(2, 8.0, 4.0, cluster) == 8 / (4 + 4)
    assert weak_speedup(2, 8.0, 4.0, cluster) == 2 * 8 / (8 + 4)


clusters = st.builds(
    ClusterConfig,
    gpus_per_node=st.sampled_from([1, 2, 4, 8]),
    node_bytes_per_second=st.floats(1e6, 1e13),
    node_seconds=st.floats(0, 1e-2),
    network_bytes_per_second=st.floats(1e6, 1e13),
    network_seconds=st.floats(0, 1e-2),
    overlap=st.floats(0, 1),
)
seconds, sizes = st.floats(1e-4, 1e3), st.floats(1, 1e12)
GAINS = (speedup, weak_speedup)


@settings(deadline=None, derandomize=True)
@given(clusters, seconds, sizes)
def test_one_worker_gains_nothing_and_none_more_than_all(cluster, alone, n_bytes):
    for gain in GAINS:
        assert gain(1, alone, n_bytes, cluster) == 1
        for n in cluster.counts():
            assert 0 < gain(n, alone, n_bytes, cluster) <= n * (1 + 1e-12)


@settings(deadline=None, derandomize=True)
@given(seconds, sizes, st.sampled_from([1, 2, 4, 8, 16, 128]))
def test_without_latency_and_with_endless_bandwidth_n_workers_are_n_times_as_fast(alone, n_bytes, n):
    free = ClusterConfig(
        node_seconds=0, network_seconds=0, node_bytes_per_second=1e30, network_bytes_per_second=1e30
    )
    for gain in GAINS:
        assert gain(n, alone, n_bytes, free) == pytest.approx(n, rel=1e-9)


@settings(deadline=None, derandomize=True)
@given(clusters, seconds, sizes, st.floats(1, 100))
def test_slower_links_and_more_bytes_never_help_and_efficiency_never_rises(cluster, alone, n_bytes, factor):
    worse = [
        cluster.model_copy(update={key: getattr(cluster, key) * factor})
        for key in ("node_seconds", "network_seconds")
    ]
    worse += [
        cluster.model_copy(update={key: getattr(cluster, key) / factor})
        for key in ("node_bytes_per_second", "network_bytes_per_second", "overlap")
    ]
    for gain in GAINS:
        gains = {n: gain(n, alone, n_bytes, cluster) for n in cluster.counts()}
        efficiencies = [g / n for n, g in gains.items()]
        assert all(a >= b * (1 - 1e-9) for a, b in itertools.pairwise(efficiencies))
        for n, found in gains.items():
            assert gain(n, alone, n_bytes * factor, cluster) <= found * (1 + 1e-9)
            assert all(gain(n, alone, n_bytes, w) <= found * (1 + 1e-9) for w in worse)


def test_a_prediction_has_every_count_and_the_claims_beside_it():
    step = Step("the base", 110_000_000, 1.0, 12, 2)
    found = predict("GPUs", step, ClusterConfig(), claimed=True)
    assert [p.workers for p in found.points] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert {p.workers: p.claimed for p in found.points if p.claimed} == CLAIMED
    first, *_, last = found.points
    assert (first.speedup, first.weak_speedup, first.exchange, first.step) == (1, 1, 0, 1.0)
    assert (last.speedup, last.step) == (None, None), "12 sequences cannot be divided among 128"
    eight = found.points[3].exchange
    assert eight == pytest.approx(14 * 3.4e-6 + 1.75 * 440e6 / 235e9)
    two = found.points[1]
    assert two.weak_speedup == pytest.approx(2 * 0.5 / (0.5 + two.exchange)), "half of the batch a worker"
    assert "published figures" in found.assumptions[-1]
    assert "none measured here" in found.assumptions[-1]
    own = ClusterConfig(mfu=0.5, node_seconds=1e-6).assumptions()
    assert own[-1].startswith("the job's own mfu, node_seconds; for the rest published")
    assert "computes 0.5 of 312 TFLOP/s" in own[0]
    assert "1 us a message" in own[2]
    assert not any(p.claimed for p in predict("here", step, ClusterConfig(), claimed=False).points)


def test_settings_that_make_no_sense():
    for name, value in (("mfu", 1.5), ("node_bytes_per_second", 0), ("gpus_per_node", 0), ("overlap", -0.1)):
        with pytest.raises(ValidationError, match=name):
            ClusterConfig(**{name: value})


def measured(alpha, beta, noise=0.0, cores=2, workers=(1, 2, 4)):
    computing = {"small": (0.02, 1e6), "middle": (0.1, 4e6), "large": (0.4, 16e6)}
    return [
        Timed(name, int(b), n, (1 + noise * (-1) ** (i + n)) * (c / min(n, cores) + Link(alpha, beta).ring(n, b)))
        for i, (name, (c, b)) in enumerate(computing.items())
        for n in workers
    ]  # fmt: skip


def test_the_fit_finds_what_the_times_were_made_of():
    found = fit(measured(300e-6, 2e-9), cores=2)
    assert found.alpha.value == pytest.approx(300e-6, rel=1e-6)
    assert found.beta.value == pytest.approx(2e-9, rel=1e-6)
    assert {k: round(v.value, 6) for k, v in found.computing.items()} == {
        "small": 0.02, "middle": 0.1, "large": 0.4,
    }  # fmt: skip
    assert found.worst < 1e-9
    assert (found.workers, found.cores, found.n) == ((1, 2, 4), 2, 9)
    wrong = fit(measured(300e-6, 2e-9), cores=4)
    assert wrong.worst > 0.05, "four workers do not compute at once on two cores"


def test_noise_widens_the_intervals_and_they_hold_the_truth():
    found = fit(measured(300e-6, 2e-9, noise=0.02), cores=2)
    for estimate, true in ((found.alpha, 300e-6), (found.beta, 2e-9)):
        assert estimate.low < true < estimate.high
        assert estimate.high - estimate.low > 0.01 * true
    unseen = fit(measured(0.0, 0.0, noise=0.02), cores=2)
    assert unseen.alpha.low < 0 < unseen.alpha.high
    assert unseen.exchange(4, 1e6) >= 0


def test_all_reduces_alone_have_no_computing():
    found = fit([Timed(None, b, n, Link(1e-4, 1e-9).ring(n, b)) for n in (2, 4) for b in (10**3, 10**7)], 2)
    assert (found.alpha.value, found.beta.value) == (pytest.approx(1e-4), pytest.approx(1e-9))
    assert found.computing == {}


@pytest.mark.parametrize("workers", [(1,), (2,)])
def test_too_little_to_fit(workers):
    with pytest.raises(ValueError, match="do not determine alpha and beta"):
        fit(measured(1e-4, 1e-9, workers=workers), cores=2)
    with pytest.raises(ValueError, match="0 measurements"):
        fit([], cores=2)


def test_a_machine_remembers_its_fit_and_forgets_a_damaged_one(tmp_path, monkeypatch):
    monkeypatch.setenv("FABRIC_CACHE", str(tmp_path))
    assert machine_workers.remembered() is None
    found = fit(measured(300e-6, 2e-9, noise=0.01), cores=2)
    file = machine_workers.remember(found)
    assert machine_workers.remembered() == found
    body = json.loads(file.read_text())
    for damaged in ({**body, "alpha": {**body["alpha"], "value": math.nan}}, {}, {**body, "cores": None}):
        file.write_text(json.dumps(damaged))
        assert machine_workers.remembered() is None


def test_workers_beyond_the_cores_gain_nothing_by_computing():
    here = fit(measured(0.0, 1e-15), cores=2)
    assert here.at_once(4) == 2
    assert speedup(4, 1.0, 0.0, here) == pytest.approx(2, rel=1e-3)
    assert weak_speedup(4, 1.0, 0.0, here) == pytest.approx(2, rel=1e-3)
