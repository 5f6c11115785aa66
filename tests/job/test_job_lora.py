"""`train.lora` and readouts in a job file: what is missing or unknown is told with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fabric.job.document import JobError
from fabric.job.load import load_job
from models import ModelConfig, build
from models.hf import to_transformers

ROWS = Path(__file__).parents[1] / "evaluate" / "rows"
JOB = """schema: 1
name: adapted
base:
  model: {from: there}
  data:
    examples: {kind: labelled_texts, dataset: sst2, folder: ROWS}
    tokenizer: bytes
    seq_len: 64
  train:
    tokens: 4k
    batch_size: 4
    objective: {kind: classify}
    lora: {rank: 2, targets: [q, v]}
    optimizer: {kind: adamw, lr: 1e-3}
    schedule: {kind: constant}
search: {mode: grid, axes: [{path: train.lora.rank, values: [1, 2]}]}
""".replace("ROWS", str(ROWS))


@pytest.fixture
def job(tmp_path):
    body = {"vocab_size": 257, "d_model": 16, "n_layers": 1, "max_seq_len": 64}
    parts = {"mixer": {"kind": "gqa", "n_heads": 2, "n_kv_heads": 1}, "ffn": {"kind": "swiglu", "d_ff": 16}}
    to_transformers(build(ModelConfig.model_validate({**body, **parts}))).save_pretrained(tmp_path / "there")

    def load(*changes, text=JOB):
        (tmp_path / "job.yaml").write_text(text)
        return load_job(tmp_path / "job.yaml", overrides=changes, cache=tmp_path / "cache").configure()

    return load


def test_outputs_are_as_many_as_there_are_classes(job):
    found = job()
    assert found.train.objective.n_outputs == 2
    assert found.train.lora.targets == ("q", "v")
    assert job("train.objective.n_outputs=2").train.objective.n_outputs == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            ["train.lora.targets=[q, w]"],
            r"base.train.lora.targets.*no matrix of the model is called 'w' \(allowed: q,",
        ),
        (["train.lora.rank=0"], r"base.train.lora.rank"),
        (["train.objective.n_outputs=3"], r"n_outputs=3: examples of kind labelled_texts have 2"),
        (["train.objective.kind=tag"], r"asked for tags, and examples of kind labelled_texts ask for class"),
        (["data.examples.dataset=sst"], r"no data set is called 'sst'; did you mean 'sst2'"),
    ],
)
def test_mistakes_are_told(job, changes, said):
    with pytest.raises(JobError, match=said):
        job(*changes)


def test_weights_that_are_drawn_are_not_adapted(job):
    model = "{d_model: 16, n_layers: 1, max_seq_len: 64, mixer: {kind: mha, n_heads: 2}, ffn: {kind: swiglu, d_ff: 16}}"
    with pytest.raises(JobError, match=r"job.yaml:13: base.train.lora: adapts weights that exist"):
        job(text=JOB.replace("{from: there}", model))
