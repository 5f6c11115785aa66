"""Configuration errors name the field, what was given and what is allowed."""

import subprocess
import sys

import pytest
from models_cases import MIXERS, VARIANTS, config_of
from pydantic import ValidationError

import models
from models import CausalLM, MixerConfig, ModelConfig, build, n_params, preset
from models.config import warnings
from models.registry import parts

MHA = {"kind": "mha", "n_heads": 4}


@pytest.mark.parametrize(
    ("changes", "location", "words"),
    [
        (
            {"mixer": {"kind": "gqa", "n_heads": 8, "n_kv_heads": 3}},
            ("mixer", "gqa"),
            "n_heads=8 is not divisible by n_kv_heads=3; use 1, 2, 4 or 8",
        ),
        ({"mixer": {"kind": "mha", "n_heads": 5}}, (), "mixer.n_heads=5 does not divide d_model=32; use"),
        ({"mixer": {"kind": "mha", "n_heads": 32}}, (), "mixer.head_dim=1 is odd"),
        ({"mixer": {"kind": "mha", "n_heads": 4, "head_dim": 7}}, ("mixer", "mha"), "head_dim=7 is odd"),
        ({"mixer": {**MHA, "window": 0}}, ("mixer", "mha", "window"), "greater than 0"),
        ({"mixer": {**MHA, "windw": 4}}, ("mixer", "mha", "windw"), "Extra inputs"),
        ({"mixer": {**MHA, "qk_norm": "heads"}}, ("mixer", "mha", "qk_norm"), "'none', 'head' or 'full'"),
        ({"mixer": {"kind": "mhq", "n_heads": 4}}, ("mixer",), "'gqa', 'mha', 'mla', 'mla_simple'"),
        (
            {
                "mixer": {
                    "kind": "mla_simple",
                    "n_heads": 4,
                    "latent_dim": 8,
                    "position": "nope",
                    "rope_theta": 5.0,
                }
            },
            ("mixer", "mla_simple"),
            "rope_theta has no effect with position='nope'",
        ),
        (
            {"mixer": {**MHA, "position": "nope", "rope_theta": 5.0}},
            ("mixer", "mha"),
            "rope_theta has no effect with position='nope'",
        ),
        ({"positions": "sinus"}, ("positions",), "'none' or 'learned'"),
        ({"norm_placement": "before"}, ("norm_placement",), "'pre', 'post', 'sandwich' or 'postln'"),
        ({"d_model": 0}, ("d_model",), "greater than 0"),
        ({"norm": {"eps": float("nan")}}, ("norm", "eps"), "finite"),
    ],
)
def test_errors_say_where_and_what(changes, location, words):
    with pytest.raises(ValidationError) as error:
        config_of(**{"mixer": MHA, **changes})
    (problem,) = error.value.errors()
    assert problem["loc"] == location
    assert words in problem["msg"]


def test_odd_rotated_width_of_mla():
    mixer = {
        "kind": "mla",
        "n_heads": 4,
        "kv_latent_dim": 8,
        "qk_nope_dim": 8,
        "qk_rope_dim": 3,
        "v_head_dim": 8,
    }
    with pytest.raises(ValidationError, match="qk_rope_dim=3 is odd, RoPE turns pairs; use 4"):
        config_of(mixer)


def test_a_bidirectional_language_model_is_refused():
    with pytest.raises(ValueError, match="causal=False cannot be built as a language model"):
        CausalLM(config_of(MHA, causal=False))


def test_what_does_not_go_with_a_direction_is_refused_by_name(monkeypatch):
    with pytest.raises(ValidationError, match="token_types=2 belongs to encoders"):
        config_of(MHA, token_types=2)
    with pytest.raises(ValidationError, match="tie_embeddings=False has no effect on an encoder"):
        config_of(MHA, causal=False, tie_embeddings=False)
    monkeypatch.setattr(MIXERS["mha"], "CAUSAL_ONLY", True)
    with pytest.raises(ValidationError, match="causal=False: mixer 'mha' reads a text in one direction only"):
        config_of(MHA, causal=False)


def test_a_mixer_that_says_nothing_about_its_direction_is_causal_only():
    assert MixerConfig.CAUSAL_ONLY
    assert [kind for kind, part in MIXERS.items() if not part.CAUSAL_ONLY] == [
        "gqa",
        "mha",
        "mla",
        "mla_simple",
    ]


@pytest.mark.parametrize(("window", "warns"), [(None, False), (15, False), (16, True), (17, True)])
def test_a_window_as_long_as_the_text_warns(window, warns):
    found = warnings(config_of({**MHA, "window": window}), seq_len=16)
    assert bool(found) is warns
    assert all(f"mixer.window={window} has no effect" in line for line in found)


def test_an_encoder_that_knows_no_order_warns():
    nope = {**MHA, "position": "nope"}
    assert any("knows no order" in line for line in warnings(config_of(nope, causal=False), 16))
    for config in (
        config_of(nope),
        config_of(MHA, causal=False),
        config_of(nope, causal=False, positions="learned"),
    ):
        assert warnings(config, 16) == []


@pytest.mark.parametrize(
    ("pattern", "n_layers", "expected"),
    [
        ([{}, {"window": None}], 2, ["window=8 of mixer_pattern[0] has no effect: texts have 8 tokens"]),
        (
            [{}, {"qk_norm": "head"}, {"window": 3}],
            3,
            ["window=8 of mixer_pattern[0], mixer_pattern[1] has no"],
        ),
        ([{}, {"window": 9}], 2, ["window=8 of mixer_pattern[0]", "window=9 of mixer_pattern[1]"]),
        ([{"window": 3}, {"window": 4}], 2, ["mixer.window=8 has no effect: every entry"]),
        (
            [{"window": 3}, {"window": 4}, {}],
            2,
            ["mixer_pattern has 3 entries for 2 layers: those from [2] on have no effect", "mixer.window=8"],
        ),
        (
            [{"window": 3}, {"window": None, "position": "nope"}, {"window": 3}],
            2,
            ["3 entries for 2", "mixer.window"],
        ),
    ],
)
def test_parts_of_a_pattern_without_effect_warn(pattern, n_layers, expected):
    config = config_of({**MHA, "window": 8}, mixer_pattern=pattern, n_layers=n_layers)
    found = warnings(config, seq_len=8)
    assert len(found) == len(expected)
    assert all(words in line for words, line in zip(expected, found, strict=True))


def test_a_pattern_holds_whole_mixers_in_turn():
    mixer = {**MHA, "rope_theta": 500.0, "window": 8}
    latent = {"kind": "mla_simple", "n_heads": 2, "latent_dim": 4}
    config = config_of(mixer, mixer_pattern=[{}, {"position": "nope", "window": None}, latent], n_layers=5)
    assert [m.kind for m in config.mixers] == ["mha", "mha", "mla_simple", "mha", "mha"]
    plain, nope = config.mixers[:2]
    assert plain == config.mixer
    # What only rotating layers use is not laid on one that does not rotate.
    assert (nope.position, nope.window, nope.rope_theta) == ("nope", None, 10000.0)
    assert config_of(mixer).mixers == (plain, plain)
    assert config_of(mixer).mixer_pattern is None
    assert config.replace(d_model=64).mixer_pattern == config.mixer_pattern


def test_a_new_mixer_beside_an_old_pattern_is_refused():
    config = config_of(MHA, mixer_pattern=[{}, {"window": 4}])
    with pytest.raises(ValueError, match="a new mixer would reach no layer"):
        config.replace(mixer={**MHA, "window": 2})
    assert config.replace(mixer={**MHA, "window": 2}, mixer_pattern=None).mixers[1].window == 2


@pytest.mark.parametrize(
    ("entry", "location", "words"),
    [
        ({"windw": 4}, ("mixer_pattern", 1, "mha", "windw"), "Extra inputs"),
        ({"kind": "mhq"}, ("mixer_pattern", 1), "'gqa', 'mha', 'mla', 'mla_simple'"),
        ({"n_heads": 5}, (), "mixer_pattern[1].n_heads=5 does not divide d_model=32"),
        ({"rotary_fraction": 0.4}, (), "mixer_pattern[1].rotary_fraction=0.4 turns 3 of 8 components"),
        ({"head_dim": 7}, ("mixer_pattern", 1, "mha"), "head_dim=7 is odd"),
    ],
)
def test_mistakes_in_a_pattern_say_where_and_what(entry, location, words):
    with pytest.raises(ValidationError) as error:
        config_of(MHA, mixer_pattern=[{}, entry])
    (problem,) = error.value.errors()
    assert problem["loc"] == location
    assert words in problem["msg"]


def test_odd_heads_are_fine_without_rotation():
    model = build(config_of({**MHA, "head_dim": 7, "position": "nope"}))
    assert model.layers[0].mixer.width == 7


@pytest.mark.parametrize("name", ["qwen3-tiny", "olmo3-tiny", "exaone4-hybrid-tiny", "deepseek-v3-tiny"])
def test_configs_are_frozen_and_survive_json(name):
    config = preset(name)
    with pytest.raises(ValidationError):
        config.d_model = 3
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    assert config.replace() == config
    wider = config.replace(d_model=144)
    assert (wider.d_model, wider.mixer) == (144, config.mixer)
    with pytest.raises(ValidationError):
        config.replace(d_modl=128)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_form_of_a_mixer_survives_being_written_out_whole(name):
    config = config_of(VARIANTS[name])
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm-135m", 134_515_008),
        ("smollm2-135m", 134_515_008),
        ("qwen3", 596_049_920),
        ("olmo2", 1_484_916_736),
    ],
)
def test_published_sizes(name, expected):
    model = build(preset(name), device="meta")
    assert sum(p.numel() for p in model.parameters()) == expected == n_params(preset(name))


@pytest.mark.parametrize("name", [n for n in models.PRESETS if n.endswith("-tiny")])
def test_tiny_presets_are_tiny(name):
    assert n_params(preset(name)) <= 300_000


def test_unknown_preset_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'smollm-tiny'"):
        preset("smolm-tiny")


def test_parts_lists_every_kind_with_a_source():
    listed = parts()
    assert [line.kind for line in listed["mixer"]] == ["gqa", "mha", "mla", "mla_simple"]
    assert [line.kind for line in listed["ffn"]] == ["gelu", "swiglu"]
    for line in listed["mixer"] + listed["ffn"]:
        assert line.arxiv
        assert line.summary.endswith(".")


def test_importing_models_does_not_import_torch():
    code = "import sys, models; assert 'torch' not in sys.modules; models.n_params; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_exported_name_exists():
    for name in models.__all__:
        assert getattr(models, name) is not None
    with pytest.raises(AttributeError):
        models.nothing  # noqa: B018
    assert callable(models.generate)
