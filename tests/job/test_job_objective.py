"""What a job says of its objective: which model it wants, and what cannot be measured under it."""

from __future__ import annotations

import pytest
from job_kit import BASE

from fabric.job.document import JobError
from fabric.job.load import load_job

JOB = (
    BASE.replace("    preset: smollm-tiny\n", "    preset: smollm-tiny\n    causal: false\n")
    + """\
    objective: {kind: denoise}
  evaluate: {times: 2}
search:
  mode: grid
  axes:
    - {path: model.norm_placement, values: [pre, post]}
"""
)


def load(tmp_path, text=JOB, **options):
    (tmp_path / "job.yaml").write_text(text)
    return load_job(tmp_path / "job.yaml", **options)


def test_a_denoising_job_gets_an_id_for_the_mask_and_measures_what_an_encoder_has(tmp_path):
    found = load(tmp_path).configure()
    assert found.train.objective.kind == "denoise"
    assert (found.model.causal, found.model.vocab_size) == (False, 257 + 1)
    assert (found.evaluate.recall, found.evaluate.samples) == (False, None)
    roomy = load(tmp_path, overrides=["model.vocab_size=300"]).configure()
    assert roomy.model.vocab_size == 300
    said = load(tmp_path, overrides=["evaluate.recall=false", "evaluate.samples=null"]).configure()
    assert said.evaluate == found.evaluate


def test_a_bert_preset_is_a_job_s_model(tmp_path):
    text = JOB.replace("preset: smollm-tiny\n    causal: false", "preset: bert-tiny")
    text = text.replace("    mixer: {kind: gqa, n_heads: 4, n_kv_heads: 2}\n", "")
    found = load(tmp_path, text).configure().model
    assert (found.causal, found.mixer.bias, found.vocab_size) == (False, True, 258)


def test_next_token_is_what_a_job_means_that_names_no_objective(tmp_path):
    text = BASE + "search: {mode: grid, axes: [{path: model.norm_placement, values: [pre, post]}]}\n"
    assert load(tmp_path, text).configure().train.objective.kind == "next_token"
    said = load(tmp_path, text, overrides=["train.objective.kind=next_token"]).configure()
    assert said == load(tmp_path, text).configure()


# old text, new text, line, words of the message
MISTAKES = [
    ("    causal: false\n", "", 13, ["base.train.objective", "trains encoders", "set model.causal to false"]),
    ("    objective: {kind: denoise}\n", "", 6, ["base.model.causal", "language-model loss", "{kind: denoise}"]),
    ("kind: denoise", "kind: next_token", 6, ["base.model.causal", "language-model loss"]),
    ("kind: denoise", "kind: denoising", 14, ["base.train.objective.kind", "did you mean 'denoise'?", "next_token"]),
    ("kind: denoise", "kind: denoise, mask_rate: 1.5", 14, ["base.train.objective.mask_rate", "less than 1"]),
    ("kind: denoise", "kind: denoise, mask_share: 0.95", 14, ["mask_share=0.95", "random_share=0.1", "at most 1"]),
    ("causal: false", "causal: false\n    vocab_size: 257", 7,
     ["base.model.vocab_size", "257 and 1 for objective denoise", "leave it out or raise it"]),
    ("causal: false", "causal: false\n    tie_embeddings: false", 7, ["tie_embeddings=False", "no output matrix"]),
    ("times: 2", "recall: true", 15, ["base.evaluate.recall", "needs a causal language model", "leave it out"]),
    ("times: 2", "samples: {n: 4}", 15, ["base.evaluate.samples", "objective denoise trains an encoder"]),
    ("times: 2", "minimal_pairs: .", 15, ["base.evaluate.minimal_pairs", "needs a causal language model"]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "line", "words"), MISTAKES)
def test_a_mistake_is_found_at_its_line(tmp_path, old, new, line, words):
    assert JOB.count(old) == 1
    with pytest.raises(JobError) as caught:
        load(tmp_path, JOB.replace(old, new))
    message = caught.value.messages[0]
    assert message.startswith(f"{tmp_path / 'job.yaml'}:{line}: "), message
    for word in words:
        assert word in message, (word, message)


def test_a_causal_mixer_is_refused_at_the_line_of_causal(tmp_path, monkeypatch):
    from models.mixers.gqa import GQAConfig

    monkeypatch.setattr(GQAConfig, "CAUSAL_ONLY", True)
    with pytest.raises(
        JobError, match=r"job.yaml:6: base.model: causal=False: mixer 'gqa' reads a text in one"
    ):
        load(tmp_path)
