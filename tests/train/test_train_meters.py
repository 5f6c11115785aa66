import math

import numpy as np
import pytest
import torch

from fabric.job.metrics import METRICS
from fabric.train import meters
from fabric.train.memory import PeakMemory, is_out_of_memory
from fabric.train.meters import History


def history(losses, norms=None, seconds=None, exposed=None):
    none = [math.nan] * len(losses)
    norms = norms if norms is not None else [1.0] * len(losses)
    return History((losses, norms, seconds or none, exposed or none))


def test_history_survives_its_state_bit_for_bit():
    h = History()
    h.append(0.1, 2.0, math.nan, math.nan)
    h.append(math.inf, 3.5, 0.25, 0.125)
    again = History.restore(h.state())
    assert again.loss == h.loss
    assert again.grad_norm == h.grad_norm
    assert again.seconds[1] == 0.25
    assert again.exposed[1] == 0.125
    assert math.isnan(again.seconds[0])
    assert len(History.restore(History().state())) == 0


def test_a_history_from_before_exchanges_were_timed():
    before = torch.tensor([[4.0, 3.0], [1.0, 2.0], [math.nan, 0.5]])
    found = History.restore(before)
    found.append(2.5, 1.0, 0.5, 0.25)
    assert list(found.loss) == [4.0, 3.0, 2.5]
    assert meters.exposed_seconds(found) == 0.25


def test_the_exposed_exchange_is_the_mean_of_the_ranks_medians_over_the_median_step():
    nan = math.nan
    h = history([1.0] * 4, seconds=[nan, 0.5, 0.25, 9.0], exposed=[nan, 0.125, 8.0, 0.0625])
    assert meters.exposed_seconds(h) == 0.125
    assert meters.exchange(h, [0.125, 0.0, None]) == {
        "exposed_allreduce_seconds": 0.0625,
        "exposed_allreduce_fraction": 0.125,
    }
    assert meters.exposed_seconds(history([1.0])) is None
    nothing = meters.exchange(history([1.0]), [None, None])
    assert set(nothing.values()) == {None}
    assert set(nothing) <= set(METRICS)


def test_smoothness_and_spikes_by_the_definition():
    n, rng = 400, np.random.default_rng(0)
    loss = (5 - np.arange(n) / 200 + 0.01 * rng.standard_normal(n)).astype(np.float32)
    loss[[120, 300]] += 1.0
    got = meters.stability(history(loss), None)
    assert got["loss_spikes"] == 2
    r = [loss[t] - np.median(loss[t - 25 : t + 26]) for t in range(n // 2, n - 25)]
    assert got["loss_smoothness"] == pytest.approx(np.std(r), rel=1e-4)
    steady = meters.stability(history(np.linspace(5, 3, 100)), None)
    assert steady["loss_spikes"] == 0
    assert steady["loss_smoothness"] < 1e-6
    assert steady["loss_total_variation"] == pytest.approx(1.0, rel=1e-5)


def test_total_variation_and_gradient_figures():
    got = meters.stability(history([4.0, 2.0, 3.0, 1.0], [1.0, 1.0, 4.0, 2.0]), clip_norm=1.5)
    assert got["loss_total_variation"] == pytest.approx(5 / 3)
    assert got["grad_norm_median"] == 1.5
    assert got["grad_norm_max_ratio"] == pytest.approx(4 / 1.5)
    assert got["clip_fraction"] == 0.5
    assert meters.stability(history([4.0, 2.0]), None)["clip_fraction"] == 0


def test_figures_that_do_not_exist_are_none():
    short = meters.stability(history([3.0, 3.5]), 1.0)
    assert short["loss_smoothness"] is None
    assert short["loss_spikes"] is None
    assert short["loss_total_variation"] is None
    empty = meters.stability(History(), 1.0)
    assert set(empty.values()) == {None}
    assert set(meters.stability(history([1.0, math.nan]), 1.0)) <= set(METRICS)


def test_speed_is_the_batch_over_the_median_step_after_warm_up():
    h = history([1.0] * 5, seconds=[math.nan, math.nan, 0.5, 9.0, 0.25])
    got = meters.speed(h, tokens_per_step=100, flops_per_token=7, peak_flops=None)
    assert got == {"tokens_per_second": 200.0, "flops_per_second": 1400.0, "mfu": None}
    assert meters.speed(h, 100, 7, 14000)["mfu"] == pytest.approx(0.1)
    assert meters.speed(history([1.0]), 100, 7, None)["tokens_per_second"] is None
    assert meters.peak_flops("cpu", "bf16") is None


def test_peak_memory_is_the_trial_s_not_an_earlier_one_s():
    size = 200 * 2**20
    earlier = PeakMemory("cpu")
    block = torch.ones(size // 4)
    high = earlier.read()
    del block
    later = PeakMemory("cpu")
    if high is None:
        pytest.skip("the system does not let the high-water mark be cleared")
    assert later.read() < high - size // 2


def test_what_counts_as_out_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
