"""Exact order: a bijection per epoch, pure in (seed, step), the same for any number of workers."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import Batches, DataConfig, prepare
from fabric.data.order import permute


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.integers(1, 3000), st.integers(-5, 2**40), st.integers(0, 1000))
def test_the_permutation_is_a_bijection(n, seed, epoch):
    image = permute(np.arange(n), n, seed, epoch)
    assert (np.sort(image) == np.arange(n)).all()


def test_the_permutation_of_a_huge_range_stays_inside_and_does_not_collide():
    n = 10**15 + 7
    positions = np.linspace(0, n - 1, 20_000).astype(np.int64)
    image = permute(positions, n, 1, 2)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == len(np.unique(positions))


def test_the_permutation_is_even_over_seeds_and_keeps_no_neighbours():
    n, seeds = 12, 3000
    counts = np.zeros((n, n))
    for seed in range(seeds):
        counts[np.arange(n), permute(np.arange(n), n, seed, 0)] += 1
    chi_square = ((counts - seeds / n) ** 2 / (seeds / n)).sum()
    assert chi_square < 121 + 5 * (2 * 121) ** 0.5  # 121 degrees of freedom, five deviations
    image = permute(np.arange(5000), 5000, 3, 1)
    assert (np.abs(np.diff(image)) == 1).sum() < 15  # expected 2
    assert abs(np.corrcoef(np.arange(5000), image)[0, 1]) < 0.06
    assert abs(np.corrcoef(permute(np.arange(5000), 5000, 3, 2), image)[0, 1]) < 0.06


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    (folder / "a.txt").write_text("\n\n".join(f"paragraph {i} of the text" for i in range(400)))
    return prepare(DataConfig(corpus=str(folder / "a.txt"), tokenizer="bytes", seq_len=8), folder / "cache")


def test_an_epoch_sees_every_row_once_and_the_next_in_another_order(cache):
    batches = Batches(cache, "train", 50, 7, seed=3)
    n, whole = batches.n_rows, 7
    assert n % 7
    order = np.concatenate([batches.indices(step) for step in range(n)])  # seven epochs exactly
    assert len(order) == n * whole
    epochs = order.reshape(whole, n)
    assert (np.sort(epochs, axis=1) == np.arange(n)).all()
    assert len({tuple(e) for e in epochs.tolist()}) == whole
    assert batches.steps_per_epoch == n // 7


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_ranks_together_read_the_same_batch(cache, world):
    whole = Batches(cache, "train", 50, 6, seed=1)
    ranks = [Batches(cache, "train", 50, 6, seed=1).shard(rank, world) for rank in range(world)]
    for step in [0, 1, whole.steps_per_epoch, 1000]:
        assert (np.concatenate([r.batch(step) for r in ranks]) == whole.batch(step)).all()
        assert {r.data_hash(step) for r in ranks} == {whole.data_hash(step)}


def test_a_batch_is_a_pure_function_of_seed_and_step(cache):
    first, second = Batches(cache, "train", 50, 4, 0), Batches(cache, "train", 50, 4, 0)
    late = first.batch(500)
    for step in range(20):
        first.batch(step)
    assert (second.batch(500) == late).all()
    assert (first.batch(500) == late).all()
    assert first.data_hash(500) == second.data_hash(500) != first.data_hash(501)
    assert (Batches(cache, "train", 50, 4, 1).batch(500) != late).any()
    assert late.shape == (4, 51)
    assert late.dtype == np.int64
    assert (late == cache.rows("train", 50, first.indices(500))).all()


def test_the_order_of_a_seed_is_fixed_for_good():
    assert permute(np.arange(10), 10, 0, 0).tolist() == [5, 4, 9, 7, 1, 6, 8, 0, 3, 2]
    assert permute(np.arange(3), 10**9, 1, 2).tolist() == [789843125, 472362095, 277957124]


def test_wrong_sizes_are_errors(cache):
    with pytest.raises(
        ValueError, match=r"corpus smaller than one batch: split 'test' has \d+ tokens, \d+ row"
    ):
        Batches(cache, "test", 50, 10_000, 0)
    with pytest.raises(ValueError, match="multiple of the number of workers"):
        Batches(cache, "train", 50, 6, 0).shard(0, 4)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Batches(cache, "train", 50, 6, 0).shard(2, 2)
    with pytest.raises(ValueError, match="step -1"):
        Batches(cache, "train", 50, 6, 0).batch(-1)


def test_a_batch_costs_little(cache):
    batches = Batches(cache, "train", 128, 32, 0)
    batches.batch(0)
    times = []
    for step in range(200):
        begin = time.perf_counter()
        batches.batch(step)
        times.append(time.perf_counter() - begin)
    assert np.median(times) < 1e-3  # a small model's step on a CPU takes tens of milliseconds
