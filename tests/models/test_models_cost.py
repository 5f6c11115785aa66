"""Closed-form costs against what is built and measured."""

import pytest
import torch
from models_cases import FFNS, MIXERS, PLACEMENTS, QK_NORMS, VARIANTS, config_of, example, ids_of
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.native import attention_dtypes
from models import Cache, build, flops_per_token, n_params, preset, state_bytes
from models.cost import saved_bytes

SHAPES = [(name, placement, qk_norm) for name in VARIANTS for placement in PLACEMENTS for qk_norm in QK_NORMS]


@pytest.mark.parametrize(("name", "placement", "qk_norm"), SHAPES)
def test_parameters(name, placement, qk_norm):
    ffns = [*(example(part) for part in FFNS.values()), {"kind": "gelu", "d_ff": 20, "bias": True}]
    for ffn in ffns if name in MIXERS else ffns[:1]:
        for norm, tied in (("rmsnorm", True), ("layernorm", False)):
            config = config_of(
                {**VARIANTS[name], "qk_norm": qk_norm},
                ffn=ffn,
                norm={"kind": norm},
                norm_placement=placement,
                tie_embeddings=tied,
                n_layers=1 + tied,
            )
            model = build(config, device="meta")
            assert n_params(config) == sum(p.numel() for p in model.parameters())


EMBEDDINGS = [
    {"positions": "learned"},
    {"embedding_norm": True, "norm": {"kind": "layernorm"}},
    {"positions": "learned", "embedding_norm": True, "token_types": 2, "causal": False},
]


@pytest.mark.parametrize("changes", EMBEDDINGS)
def test_embeddings_besides_the_tokens(changes):
    config = config_of(VARIANTS["gqa_bias"], **changes)
    model = build(config)
    assert n_params(config) == sum(p.numel() for p in model.parameters())
    assert kept_for_backward(model, ids_of(2, 24)) == saved_bytes(config, 2, 24)


@pytest.mark.parametrize(
    ("mixer", "attention_params", "total"),
    [
        ({"kind": "mha", "n_heads": 9}, 1_327_104, 147_786_048),
        ({"kind": "gqa", "n_heads": 9, "n_kv_heads": 3}, 884_736, 134_515_008),
        ({"kind": "gqa", "n_heads": 9, "n_kv_heads": 1}, 737_280, 130_091_328),
        ({"kind": "mla_simple", "n_heads": 9, "latent_dim": 144}, 912_528, 135_348_768),
        ({"kind": "mla_simple", "n_heads": 9, "latent_dim": 288}, 1_161_504, 142_818_048),
        ({"kind": "mla_simple", "n_heads": 9, "latent_dim": 432}, 1_410_480, 150_287_328),
        (
            {
                "kind": "mla",
                "n_heads": 9,
                "kv_latent_dim": 288,
                "qk_nope_dim": 64,
                "qk_rope_dim": 32,
                "v_head_dim": 64,
            },
            1_345_824,
            148_347_648,
        ),
    ],
)
def test_parameters_of_attention_variants_at_135m(mixer, attention_params, total):
    config = preset("smollm-135m", mixer=mixer)
    assert config.mixer.n_params(576) == attention_params
    assert n_params(config) == total


def test_multi_head_with_a_narrower_ffn_matches_smollm():
    config = preset("smollm-135m", mixer={"kind": "mha", "n_heads": 9}, ffn={"kind": "swiglu", "d_ff": 1280})
    assert n_params(config) == 134_515_008


@pytest.mark.parametrize(
    ("mixer", "mebibytes"),
    [
        ({"kind": "gqa", "n_heads": 9, "n_kv_heads": 3}, 45.0),
        ({"kind": "mha", "n_heads": 9}, 135.0),
        (
            {
                "kind": "mla",
                "n_heads": 9,
                "kv_latent_dim": 288,
                "qk_nope_dim": 64,
                "qk_rope_dim": 32,
                "v_head_dim": 64,
            },
            37.5,
        ),
        ({"kind": "gqa", "n_heads": 9, "n_kv_heads": 3, "window": 256}, 5.625),
    ],
)
def test_state_bytes_predicted_and_allocated(mixer, mebibytes):
    config = preset("smollm-135m", mixer=mixer)
    assert state_bytes(config, 2048, dtype_bytes=2) == mebibytes * 2**20
    assert Cache(config, 1, 2048, torch.bfloat16, "meta").nbytes() == mebibytes * 2**20


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("ffn", FFNS)
def test_flops_of_one_token_are_those_counted(name, ffn):
    config = config_of(VARIANTS[name], ffn=example(FFNS[ffn]))
    model = build(config)
    # The counter knows the unfused attention only, and PyTorch's products (ours, for decoding, take no gradients).
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(ids_of(1, 1))
    conv = (
        2 * 2 * (config.short_conv or 0) * config.d_model
    )  # of two layers; no product, so not seen by the counter
    assert counter.get_total_flops() + conv == flops_per_token(config, seq_len=1)


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("name", [n for n in VARIANTS if "short_conv" not in VARIANTS[n]])
def test_flops_of_an_encoder_are_those_counted(name, window):
    T = 16
    config = config_of({**VARIANTS[name], "window": window}, causal=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        build(config)(ids_of(1, T))
    # The counter takes all pairs for visible, and MLA's heads for as wide as their wider side.
    invisible = 0
    for mixer in config.mixers:
        seen = sum(abs(i - j) < (mixer.window or T) for i in range(T) for j in range(T))
        one_pair = counted = mixer.flops_per_pair(config.d_model)
        if mixer.kind == "mla":
            counted = 4 * mixer.n_heads * max(mixer.qk_width, mixer.v_head_dim)
        invisible += counted * T * T - one_pair * seen
    assert flops_per_token(config, T) * T == pytest.approx(counter.get_total_flops() - invisible, rel=1e-12)
    assert state_bytes(config, T) == 0


@pytest.mark.parametrize("window", [None, 1, 7, 16, 30])
def test_mean_visible_keys_counts_the_mask(window):
    mixer = config_of({**VARIANTS["mha"], "window": window}).mixer
    counted = sum(min(t + 1, window or 16) for t in range(16)) / 16
    assert mixer.mean_visible_keys(16) == counted


def kept_for_backward(model, ids):
    """Bytes of the distinct storages autograd keeps, and the output's, without parameters and tables."""
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden = model.hidden(ids)
    kept[hidden.untyped_storage().data_ptr()] = (hidden.untyped_storage().nbytes(), hidden)
    return sum(n for n, _ in kept.values())


def kept_by_torch(config, batch, seq_len):
    """Bytes PyTorch's attention keeps more than ours, where a CPU is without our kernels: a mask for each window, and
    narrow values and outputs as wide as keys. None: its own paddings too."""
    if torch.float32 in attention_dtypes():
        return 0
    total = 4 * seq_len**2 * len({m.window for m in config.mixers if m.window and m.window < seq_len})
    for mixer in config.mixers:
        if mixer.kind == "mla":
            if mixer.qk_width % 8 or mixer.v_head_dim % 8 or mixer.v_head_dim > mixer.qk_width:
                return None
            total += 4 * batch * seq_len * 2 * mixer.n_heads * (mixer.qk_width - mixer.v_head_dim)
    return total


def assert_kept(config, batch, seq_len):
    kept, more = (
        kept_for_backward(build(config), ids_of(batch, seq_len)),
        kept_by_torch(config, batch, seq_len),
    )
    ours = saved_bytes(config, batch, seq_len)
    assert kept > ours if more is None else kept == ours + more


@pytest.mark.parametrize(("name", "placement", "qk_norm"), SHAPES)
def test_bytes_kept_for_backward(name, placement, qk_norm):
    for window, norm, causal in ((None, "rmsnorm", True), (6, "layernorm", True), (6, "rmsnorm", False)):
        if not causal and "short_conv" in VARIANTS[name]:
            continue
        mixer = {**VARIANTS[name], "qk_norm": qk_norm, "window": window}
        config = config_of(mixer, norm_placement=placement, norm={"kind": norm}, causal=causal)
        assert_kept(config, 2, 40)


def test_bytes_kept_for_backward_where_layers_have_several_windows():
    mixer = {**VARIANTS["gqa"], "mixer_pattern": [{"window": 4}, {"window": 6}, {"window": 8}, {}]}
    config = config_of(mixer, n_layers=7)
    assert_kept(config, 2, 40)
