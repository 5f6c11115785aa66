"""Reading and writing config.json: every trap of the classes, and what ours lacks is refused by name."""

import pytest
import torch
from hf_cases import CASES, config_of_case
from hf_published import PUBLISHED
from models_cases import config_of

from models import PRESETS, build, from_hf, n_params, preset, to_hf
from models.hf import FAMILIES, convert_config, export_config, family_of
from models.hf.writing import settings_of

transformers = pytest.importorskip("transformers")

TINY = {name: export_config(config_of_case(name)) for name in CASES}


def read(name, *without, **changes):
    settings = {**TINY[name], **changes}
    return convert_config({key: value for key, value in settings.items() if key not in without})


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.model_type)
def test_defaults_are_those_of_the_class(family):
    config = getattr(transformers, family.config_class)
    assert config.model_type == family.model_type
    for name, value in family.defaults.items():
        if name == "rope_theta":
            theirs = config.default_theta
        elif name == "partial_rotary_factor":
            theirs = config().rope_parameters[name]
        else:
            theirs = getattr(config, name, None)  # some read what they do not declare
        assert theirs == value, name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_are_the_presets(name):
    assert convert_config(PUBLISHED[name]).replace(init={}) == preset(name).replace(init={})


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_mean_the_same_to_transformers(name):
    body = dict(PUBLISHED[name])
    theirs = transformers.AutoConfig.for_model(body.pop("model_type"), **body)
    assert convert_config(theirs.to_dict()) == convert_config(PUBLISHED[name])


@pytest.mark.parametrize(
    "name", [n for n, p in PRESETS.items() if not n.endswith("-tiny") and p.get("causal", True)]
)
def test_published_sizes_are_those_of_the_class(name):
    config = preset(name)
    family = family_of(config)
    settings = getattr(transformers, family.config_class)(**settings_of(config, family))
    with torch.device("meta"):
        theirs = getattr(transformers, family.model_class)(settings)
    theirs.tie_weights()
    assert sum(p.numel() for p in theirs.parameters()) == n_params(config)


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("smollm2-360m", 361_821_120),
        ("smollm2-1.7b", 1_711_376_384),
        ("smollm3-3b", 3_075_098_624),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen3-1.7b", 1_720_574_976),
        ("olmo3-7b", 7_298_011_136),
        ("exaone4-1.2b", 1_279_391_488),
        ("exaone4-32b", 32_003_216_384),
        ("mistral-7b", 7_241_732_096),
        ("glm4-32b", 32_566_081_536),
        ("glm4-9b", 9_400_279_040),
    ],
)
def test_published_totals(name, total):
    assert n_params(preset(name)) == total


LEFT_OUT = [
    (name, key)
    for name, settings in TINY.items()
    for key in sorted(settings.keys() - {"model_type", "architectures"})
    if not key.endswith("_token_id")
]


@pytest.mark.parametrize(("name", "key"), LEFT_OUT)
def test_what_a_file_leaves_out_is_what_the_class_makes_of_it(name, key):
    body = {k: v for k, v in TINY[name].items() if k not in (key, "model_type")}
    try:
        ours = read(name, key)
    except ValueError:  # a size without which nothing can be said, or a default that ours lacks: both named
        return
    if (name, key) == ("exaone4-tiny", "layer_types"):
        with pytest.raises(ZeroDivisionError):
            transformers.Exaone4Config(**body)
        return
    theirs = transformers.AutoConfig.for_model(TINY[name]["model_type"], **body)
    assert convert_config(theirs.to_dict()) == ours


def test_one_in_no_rope_layers_means_that_the_layer_rotates():
    config = read("smollm3-tiny", no_rope_layers=[0, 1, 1, 1])
    assert [m.position for m in config.mixers] == ["nope", "rope", "rope", "rope"]
    by_interval = read("smollm3-tiny", "no_rope_layers", no_rope_layer_interval=2)
    assert [m.position for m in by_interval.mixers] == ["rope", "nope"] * 2
    assert len(by_interval.mixer_pattern) == 2


def test_olmo3_rotations_are_keyed_by_layer_type():
    flat = {"rope_type": "default", "rope_theta": 10000.0}
    with pytest.raises(ValueError, match=r"rope_parameters=.*rope_theta.*one mapping for each layer type"):
        read("olmo3-tiny", rope_parameters=flat)
    # What transformers makes of the flat mapping is refused too: it would rotate with another theta.
    small = {k: v for k, v in TINY["olmo3-tiny"].items() if k not in ("model_type", "architectures")}
    theirs = transformers.Olmo3ForCausalLM(transformers.Olmo3Config(**{**small, "rope_parameters": flat}))
    assert theirs.config.rope_parameters["full_attention"]["rope_theta"] == 500000.0
    with pytest.raises(ValueError, match="one mapping for each layer type"):
        from_hf(theirs)
    scaling = {"rope_type": "linear", "factor": 2.0}
    old = read("olmo3-tiny", "rope_parameters", rope_theta=500000.0, rope_scaling=scaling)
    assert {m.rope_theta for m in old.mixers} == {500000.0}
    assert [m.rope_scaling is not None for m in old.mixers] == [False, False, False, True]


@pytest.mark.parametrize("old", [{"rope_theta": 77.0}, {"rope_scaling": {"type": "linear", "factor": 2.0}}])
def test_olmo3_rotations_that_two_versions_read_differently_are_refused(old):
    with pytest.raises(ValueError, match="read differently by transformers 4 and 5"):
        read("olmo3-tiny", "rope_parameters", **old)
    theirs = transformers.Olmo3Config(num_hidden_layers=4, **old).rope_parameters
    said = (
        theirs["sliding_attention"]["rope_theta"] == 77.0 or theirs["full_attention"]["rope_type"] == "linear"
    )
    assert not said, "transformers reads it now as it was meant: read it here too"


def test_exaone_rotates_everywhere_only_without_a_window():
    assert {m.position for m in read("exaone4-tiny").mixers} == {"rope"}
    hybrid = read("exaone4-hybrid-tiny")
    assert [(m.position, m.window) for m in hybrid.mixers] == [("rope", 16)] * 3 + [("nope", None)]
    # A window that no layer has still takes the rotations away.
    none_local = read("exaone4-hybrid-tiny", layer_types=["full_attention"] * 4)
    assert {(m.position, m.window) for m in none_local.mixers} == {("nope", None)}
    assert read("exaone4-hybrid-tiny", "layer_types", sliding_window_pattern="LG").mixer_pattern == (
        hybrid.mixers[0],
        hybrid.mixers[3],
    )
    assert read("exaone4-tiny", "layer_types", sliding_window_pattern=4) == read("exaone4-tiny")


def test_windows_count_only_where_the_class_uses_them():
    assert read("qwen3-tiny", use_sliding_window=False, sliding_window=8).mixer.window is None
    late = read("qwen3-tiny", "layer_types", use_sliding_window=True, sliding_window=8, max_window_layers=3)
    assert [m.window for m in late.mixers] == [None, None, None, 8]
    smol = read("smollm3-tiny", "layer_types", use_sliding_window=True, sliding_window=8)
    assert [m.window for m in smol.mixers] == [None, None, None, 8]
    assert read("mistral-tiny", sliding_window=None).mixer.window is None
    assert read("mistral-tiny", "sliding_window").mixer.window == 4096


def test_widths_of_heads_that_a_file_leaves_out():
    assert read("qwen3-tiny", "head_dim").mixer.head_dim == 128
    assert read("mistral-tiny", "head_dim").mixer.head_dim is None
    assert read("smollm-tiny", "num_key_value_heads").mixer.kind == "mha"


def test_yarn_with_what_a_file_leaves_out():
    rope = {"rope_type": "yarn", "original_max_position_embeddings": 64, "rope_theta": 100.0, "mscale": None}
    scaling = read("smollm-tiny", rope_parameters=rope).mixer.rope_scaling
    assert scaling.factor == 256 / 64
    rope = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert (
        read("smollm-tiny", rope_parameters=rope).mixer.rope_scaling.original_max_position_embeddings == 256
    )


def test_patterns_are_reduced_to_their_shortest_period():
    types = ["full_attention", "sliding_attention"]
    even = read("olmo3-tiny", layer_types=types * 2)
    assert len(even.mixer_pattern) == 2
    odd = read("olmo3-tiny", layer_types=types * 2 + types[:1], num_hidden_layers=5)
    assert len(odd.mixer_pattern) == 2
    assert [m.window for m in odd.mixers] == [None, 16, None, 16, None]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("smollm-tiny", {"mlp_bias": True}, "mlp_bias=True .only False."),
        ("smollm-tiny", {"attention_dropout": 0.1}, "attention_dropout=0.1 .only 0.0."),
        ("smollm-tiny", {"hidden_act": "gelu"}, "hidden_act='gelu' .only 'silu'."),
        ("smollm-tiny", {"sliding_window": 8}, "sliding_window=8 .unknown."),
        ("smollm-tiny", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 .only 1.0."),
        ("smollm-tiny", {"quantization_config": {"bits": 4}}, "quantization_config=.*unknown"),
        ("smollm-tiny", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ("smollm-tiny", {"rope_scaling": {"type": "longrope"}}, "rope_type='longrope'"),
        ("smollm-tiny", {"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "only rope_theta"),
        ("smollm-tiny", {"rope_parameters": {"rope_type": "linear", "factr": 2.0}}, "factr"),
        ("smollm-tiny", {"rope_parameters": [1]}, "only a mapping"),
        ("deepseek-v3-tiny", {"attention_bias": True}, "attention_bias=True .only False."),
        ("qwen3-tiny", {"is_causal": False}, "is_causal=False .only True."),
        ("glm4-tiny", {"rope_interleave": False}, "rope_interleave=False .only True."),
        ("mistral-tiny", {"attention_bias": True}, "attention_bias=True .only False."),
        ("qwen3-tiny", {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
        ("qwen3-tiny", {"layer_types": ["sliding_attention"] * 4}, "beside use_sliding_window false"),
        ("olmo3-tiny", {"sliding_window": None}, "beside sliding_window null"),
        ("olmo3-tiny", {"layer_types": ["full_attention"]}, "of 1 layers .* for each of 4"),
        ("smollm3-tiny", {"no_rope_layers": [1]}, "no_rope_layers with 1 entries for 4 layers"),
        ("deepseek-v3-tiny", {"first_k_dense_replace": 3}, "first_k_dense_replace=3 for 4 layers"),
        ("deepseek-v3-tiny", {"num_key_value_heads": 3}, "num_key_value_heads=3 .only"),
    ],
)
def test_settings_that_ours_lacks_are_refused_by_name(name, changes, words):
    with pytest.raises(ValueError, match=words):
        read(name, **changes)


def test_values_of_another_type_are_named_at_once():
    with pytest.raises(
        ValueError, match=r"damaged: .*head_dim=-4 .*at least 1.*; layer_types='x' .only a list."
    ):
        read("qwen3-tiny", head_dim=-4, layer_types="x")
    with pytest.raises(ValueError, match=r"rope_parameters=.*rope_theta.*only numbers"):
        read("smollm-tiny", rope_parameters={"rope_theta": "1e4"})
    rope = {"rope_type": "yarn", "original_max_position_embeddings": 0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match=r"original_max_position_embeddings.*at least 1"):
        read("smollm-tiny", rope_parameters=rope)
    assert read("smollm-tiny", hidden_act="swish") == read("smollm-tiny")


def test_all_refused_settings_are_named_at_once():
    with pytest.raises(ValueError, match=r"LlamaForCausalLM cannot be converted.*mlp_bias.*softcap=3"):
        read("smollm-tiny", mlp_bias=True, softcap=3)


def test_attention_biases_are_those_of_the_class():
    assert read("glm4-tiny", "attention_bias").mixer.bias == "qkv"  # true where a file leaves it out
    assert read("smollm-tiny", attention_bias=True).mixer.bias is True
    assert read("smollm-tiny").mixer.bias is False
    assert family_of(preset("smollm-tiny", mixer={"kind": "mha", "n_heads": 4, "bias": "qkv"})) is None


def test_other_architectures_are_refused_with_what_there_is():
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=16)
    with pytest.raises(
        ValueError, match=r"GPT2LMHeadModel cannot be converted.*Llama.*DeepseekV3ForCausalLM"
    ):
        from_hf(transformers.GPT2LMHeadModel(config))
    with pytest.raises(ValueError, match=r"model_type 'gpt2'.* these can: llama .LlamaForCausalLM."):
        convert_config(config.to_dict())
    with pytest.raises(ValueError, match="LlamaForSequenceClassification"):
        read("smollm-tiny", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM lacks hidden_size, vocab_size|vocab_size, hidden_size"
    ):
        read("smollm-tiny", "hidden_size", "vocab_size")


MHA = {"kind": "mha", "n_heads": 4}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mixer": {"kind": "mla_simple", "n_heads": 4, "latent_dim": 8}}, r"Llama\w+ .mixer mla_simple."),
        ({"ffn": {"kind": "gelu", "d_ff": 8}}, r"Llama\w+ .ffn gelu."),
        ({"norm": {"kind": "layernorm"}}, r"Llama\w+ .layernorm."),
        ({"norm_placement": "postln"}, r"Olmo2\w+ .norm_placement postln, qk_norm none."),
        ({"mixer": {**MHA, "qk_norm": "full"}, "norm_placement": "sandwich"}, r"Glm4\w+ .qk_norm full."),
        ({"mixer": {**MHA, "rotary_fraction": 0.5}}, r"Llama\w+ .rotary_fraction."),
        (
            {"mixer": {**MHA, "head_dim": 12}, "mixer_pattern": [{"window": 8}, {}]},
            r"SmolLM3\w+ .head_dim 12",
        ),
        ({"mixer_pattern": [{"window": 8}, {"window": 9}]}, r"SmolLM3\w+ .windows 8, 9."),
        (
            {"mixer_pattern": [{}, {"kind": "gqa", "n_heads": 4, "n_kv_heads": 2}]},
            "layers that differ in more",
        ),
        ({"mixer_pattern": [{}, {"rope_theta": 5.0}]}, r"Llama\w+ .rope_theta or rope_scaling that differ"),
        (
            {
                "mixer": {**MHA, "qk_norm": "head"},
                "norm_placement": "post",
                "mixer_pattern": [{}, {"window": 8}],
            },
            "",
        ),
        (
            {
                "mixer": {**MHA, "qk_norm": "head"},
                "norm_placement": "post",
                "mixer_pattern": [{}, {"position": "nope"}],
            },
            r"Exaone4\w+ .position nope.",
        ),
    ],
)
def test_what_transformers_lacks_is_refused_with_the_reasons(changes, reason):
    changes = {"mixer": MHA, **changes}
    model = build(config_of(changes.pop("mixer"), **changes))
    with pytest.raises(ValueError, match=f"no transformers class for mixer .*{reason}"):
        to_hf(model)
    assert family_of(model.config) is None
