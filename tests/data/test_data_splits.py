"""Splits: by document, equal texts together, independent of document order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.data import DataConfig, prepare
from fabric.data.corpus import CorpusError
from fabric.data.splits import NOT_GIVEN, TEST, TRAIN, VALIDATION, Groups


def assign(digests, sizes, published=None, validation=0.1, test=0.1, seed=0):
    """The split of each document, added to the groups one by one."""
    given = [NOT_GIVEN] * len(digests) if published is None else list(published)
    digests, groups = np.array(digests, np.uint64), Groups()
    for digest, size, split in zip(digests, sizes, given, strict=True):
        groups.add(digest[None], np.array([size]), int(split))
    table = groups.assign(validation, test, seed)
    return np.concatenate(
        [table.splits(d[None], int(split)) for d, split in zip(digests, given, strict=True)]
    )


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 500)), min_size=60, max_size=200), st.integers(0, 5)
)
def test_equal_texts_are_never_parted_and_order_does_not_matter(documents, seed):
    digests = [d for d, _ in documents]
    sizes = [100 + d for d in digests]  # equal digest, equal size
    if len(set(digests)) < 3:
        return
    splits = assign(digests, sizes, seed=seed)
    homes = {}
    for digest, split in zip(digests, splits):
        assert homes.setdefault(digest, split) == split
    assert set(splits.tolist()) == {TRAIN, VALIDATION, TEST}
    shuffled = np.random.default_rng(seed).permutation(len(digests))
    again = assign(np.array(digests)[shuffled], np.array(sizes)[shuffled], seed=seed)
    assert (again == splits[shuffled]).all()


def test_fractions_are_met_to_half_a_document_and_seeds_differ():
    rng = np.random.default_rng(0)
    digests, sizes = rng.integers(0, 2**63, 2000), rng.integers(10, 1000, 2000)
    seen = []
    for seed in range(3):
        splits = assign(digests, sizes, validation=0.05, test=0.2, seed=seed)
        for split, fraction in [(VALIDATION, 0.05), (TEST, 0.2)]:
            assert abs(sizes[splits == split].sum() - fraction * sizes.sum()) <= 1000
        seen.append(splits)
    assert (seen[0] != seen[1]).any()


def test_a_fraction_of_zero_leaves_a_split_empty():
    assert set(assign(range(10), [5] * 10, validation=0.0, test=0.0).tolist()) == {TRAIN}
    assert set(assign(range(10), [5] * 10, validation=0.3, test=0.0).tolist()) == {TRAIN, VALIDATION}


def test_too_few_documents_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(
        ValueError, match=r"2 distinct training document\(s\), too few to cut train, validation, test"
    ):
        assign([1, 2, 2, 1], [5] * 4)
    (tmp_path / "one.txt").write_text("only one paragraph")
    with pytest.raises(CorpusError, match="finer document rule.* give more text, or publish the splits"):
        prepare(DataConfig(corpus=str(tmp_path / "one.txt"), seq_len=4), tmp_path / "cache")


def test_repeated_documents_do_not_leak_into_other_splits(tmp_path):
    repeated = [f"paragraph {i % 40}" for i in range(200)]
    (tmp_path / "a.txt").write_text("\n\n".join(repeated))
    config = DataConfig(corpus=str(tmp_path / "a.txt"), seq_len=4, validation_fraction=0.2, test_fraction=0.2)
    cache = prepare(config, tmp_path / "cache")
    eos = cache.tokenizer().eos_id
    found = {}
    for split in ("train", "validation", "test"):
        stream = cache.tokens(split).tolist()
        assert stream[-1] == eos
        text = "".join(chr(i) if i != eos else "\0" for i in stream)
        found[split] = {d.strip() for d in text.split("\0") if d}
    assert sum(len(d) for d in found.values()) == 40 == len(set.union(*found.values()))
