"""Patterns of mixers in a job: laid on the base's mixer, and each mistake at its own line."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_kit import BASE

from fabric.job.document import JobError
from fabric.job.load import load_job

MIXER = "    mixer: {kind: gqa, n_heads: 4, n_kv_heads: 2}\n"
LATENT = (
    "    mixer: {kind: mla, n_heads: 4, kv_latent_dim: 8, qk_nope_dim: 8, qk_rope_dim: 4, v_head_dim: 8}\n"
)
SEARCH = """\
search:
  mode: grid
  axes:
    - {path: model.norm_placement, values: [pre, post]}
"""


def write(folder: Path, *entries: str, mixer: str = MIXER) -> Path:
    """A job whose pattern has one entry a line, from line 8 on."""
    lines = "    mixer_pattern:\n" + "".join(f"      - {entry}\n" for entry in entries)
    path = folder / "job.yaml"
    path.write_text(BASE.replace(MIXER, mixer + lines) + SEARCH)
    return path


def test_overrides_are_laid_on_the_mixer_and_whole_mixers_stand_alone(tmp_path):
    mla = "{kind: mla, n_heads: 2, kv_latent_dim: 8, qk_nope_dim: 8, qk_rope_dim: 4, v_head_dim: 8}"
    model = load_job(write(tmp_path, "{}", "{window: 8, position: nope}", mla)).configure().model
    plain, nope, latent, again = model.mixers
    assert plain == again == model.mixer
    assert (nope.window, nope.position, nope.n_kv_heads) == (8, "nope", 2)
    assert (latent.kind, latent.n_heads) == ("mla", 2)


def test_what_an_arm_changes_in_the_mixer_reaches_the_entries(tmp_path):
    job = load_job(write(tmp_path, "{}", "{position: nope}"), overrides=["model.mixer.n_kv_heads=4"])
    assert [m.n_kv_heads for m in job.configure().model.mixers] == [4] * 4
    job = load_job(write(tmp_path, "{}", "{position: nope}"), overrides=["model.mixer_pattern.1.window=4"])
    assert [m.window for m in job.configure().model.mixers] == [None, 4] * 2
    job = load_job(write(tmp_path, "{}", "{position: nope}"), overrides=["model.mixer.rope_theta=500"])
    assert [m.rope_theta for m in job.configure().model.mixers] == [500.0, 10000.0] * 2


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{windw: 8}", ["mixer_pattern[1].windw", "did you mean 'window'", "n_kv_heads"]),
        ("{kind: gpa}", ["mixer_pattern[1].kind = 'gpa'", "did you mean 'gqa'"]),
        ("{n_kv_heads: 3}", ["mixer_pattern[1]", "n_heads=4", "n_kv_heads=3", "1, 2 or 4"]),
        (
            "{n_heads: 6}",
            ["mixer_pattern[1].n_heads=6 does not divide d_model=64", "set mixer_pattern[1].head_dim"],
        ),
        ("{rotary_fraction: 0.05}", ["mixer_pattern[1].rotary_fraction=0.05", "turns 0 of 16", "use 0.125"]),
        ("{rotary_fraction: 1.5}", ["mixer_pattern[1].rotary_fraction = 1.5", "less than or equal to 1"]),
        ("nope", ["mixer_pattern[1] = 'nope'", "must be a mapping"]),
        ("{window: true}", ["mixer_pattern[1].window", "no number"]),
        ("{position: nop}", ["mixer_pattern[1].position = 'nop'", "did you mean 'nope'"]),
        (
            "{position: nope, rope_theta: 5.0}",
            ["mixer_pattern[1]", "rope_theta has no effect with position='nope'"],
        ),
        (
            "{rope_scaling: {kind: yarm}}",
            ["mixer_pattern[1].rope_scaling.kind = 'yarm'", "did you mean 'yarn'"],
        ),
        ("{rope_scaling: {kind: linear, factr: 4}}", ["rope_scaling.factr", "did you mean 'factor'"]),
    ],
)
def test_a_mistake_in_an_entry_names_its_line(tmp_path, entry, words):
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, "{}", entry))
    (message,) = caught.value.messages
    assert message.startswith(f"{tmp_path}/job.yaml:9: base.model"), message
    assert all(word in message for word in words), message


def test_a_misspelt_override_is_looked_up_in_the_mixer_it_is_laid_on(tmp_path):
    with pytest.raises(JobError, match="v_head_dmi.*did you mean 'v_head_dim'"):
        load_job(write(tmp_path, "{v_head_dmi: 8}", mixer=LATENT))


def test_a_mistake_in_the_mixer_is_told_once(tmp_path):
    with pytest.raises(JobError) as caught:
        load_job(write(tmp_path, "{}", "{}", mixer=MIXER.replace("n_kv_heads", "n_kv_heds")))
    (message,) = caught.value.messages
    assert "job.yaml:6: base.model.mixer.n_kv_heds" in message


def test_an_empty_pattern_is_refused(tmp_path):
    with pytest.raises(JobError, match="at least 1 item"):
        load_job(write(tmp_path, "{}"), overrides=["model.mixer_pattern=[]"])
