"""A token through the whole model in one call: what the modules compute, and where it steps back for them."""

import pytest
import torch
from models_cases import PLACEMENTS, QK_NORMS, VARIANTS, config_of, ids_of
from torch import nn

from kernels import native
from models import build, generate
from models.decoding import TokenStep

pytestmark = pytest.mark.skipif(
    native.library() is None, reason="no C++ compiler, or no AVX2: no kernels of ours here"
)
GROUPED = [
    name
    for name, mixer in VARIANTS.items()
    if mixer.get("kind") in ("mha", "gqa")
    and "mla" not in str(mixer)
    and not mixer.get("bias")
    and "short_conv" not in mixer
]


def model_of(name, placement="pre", seed=1, **mixer):
    model = build(config_of({**VARIANTS[name], **mixer}, norm_placement=placement), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize("window", [None, 3, 30])
@pytest.mark.parametrize("qk_norm", QK_NORMS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", GROUPED)
@torch.no_grad()
def test_logits_and_cache_are_the_modules(name, placement, qk_norm, window):
    if "mixer_pattern" in VARIANTS[name] and window is not None:
        pytest.skip("the pattern has windows of its own")
    model = model_of(name, placement, qk_norm=qk_norm, window=window)
    ids = ids_of(1, 12)
    caches = [model.new_cache(1, 12), model.new_cache(1, 12)]
    for cache in caches:
        model(ids[:, :4], cache=cache)
    step = TokenStep.of(model, caches[0])
    assert step is not None
    for t in range(4, 12):
        wanted = model(ids[:, t : t + 1], cache=caches[1]).logits[0, 0]
        torch.testing.assert_close(step(int(ids[0, t])), wanted, atol=1e-5, rtol=0)
    assert caches[0].n_tokens == 12
    for ours, theirs in zip(*(c.layers for c in caches), strict=True):
        for got, kept in zip(ours.tensors, theirs.tensors, strict=True):
            torch.testing.assert_close(got, kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize("n_threads", [1, 3])
@torch.no_grad()
def test_numbers_do_not_depend_on_threads(n_threads):
    model, before = model_of("gqa"), torch.get_num_threads()
    ids = ids_of(1, 6)
    results = []
    try:
        for n in (2, n_threads):
            torch.set_num_threads(n)
            cache = model.new_cache(1, 8)
            model(ids, cache=cache)
            results.append(TokenStep(model, cache)(3))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, atol=1e-6, rtol=0)


@torch.no_grad()
def test_bf16_is_as_close_to_fp32_as_the_modules_are():
    exact = model_of("gqa", qk_norm="head")
    model = model_of("gqa", qk_norm="head").bfloat16()
    exact.load_state_dict(model.state_dict())
    ids = ids_of(1, 20)
    results = []
    for used, by_step in ((model, True), (model, False), (exact, False)):
        cache = used.new_cache(1, 20)
        used(ids[:, :19], cache=cache)
        last = int(ids[0, 19])
        results.append(
            TokenStep(used, cache)(last) if by_step else used(ids[:, 19:], cache=cache).logits[0, 0]
        )
    ours, modules, wanted = (x.float() for x in results)
    assert results[0].dtype == torch.bfloat16
    assert (ours - wanted).norm() <= 1.5 * (modules - wanted).norm()


def test_generated_tokens_are_those_of_the_modules(monkeypatch):
    model = model_of("gqa", window=9)
    ids = ids_of(1, 5)
    draw = [generate(model, ids, 30, temperature=0), generate(model, ids, 30, generator=torch.manual_seed(1))]
    monkeypatch.setattr(TokenStep, "of", staticmethod(lambda model, cache: None))
    slow = [generate(model, ids, 30, temperature=0), generate(model, ids, 30, generator=torch.manual_seed(1))]
    assert all(torch.equal(a, b) for a, b in zip(draw, slow, strict=True))


@torch.no_grad()
def test_what_is_left_to_the_modules():
    model = model_of("gqa")
    assert TokenStep.of(model, model.new_cache(1, 8)) is not None
    assert TokenStep.of(model, model.new_cache(2, 8)) is None
    assert TokenStep.of(model, model.new_cache(1, 8, torch.bfloat16)) is None
    with torch.enable_grad():
        assert TokenStep.of(model, model.new_cache(1, 8)) is None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TokenStep.of(model, model.new_cache(1, 8)) is None
    padded = model.new_cache(1, 8)
    model(ids_of(1, 4), torch.tensor([[0, 1, 1, 1]]), cache=padded)
    assert TokenStep.of(model, padded) is None
    hook = model.layers[0].ffn.register_forward_hook(lambda *args: None)
    assert TokenStep.of(model, model.new_cache(1, 8)) is None
    hook.remove()
    assert TokenStep.of(model.double(), model.new_cache(1, 8)) is None
    for other in ("mla", "mla_simple"):
        strange = model_of(other)
        assert TokenStep.of(strange, strange.new_cache(1, 8)) is None
    gelu = build(config_of(VARIANTS["mha"], ffn={"kind": "gelu", "d_ff": 16}))
    assert TokenStep.of(gelu, gelu.new_cache(1, 8)) is None


class Adapted(nn.Module):
    """A layer with something added, as adapters do it: its `weight` is still the layer's own."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added = base, nn.Linear(base.in_features, base.out_features, bias=False)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + self.added(x)


def _adapted(layer, name):
    setattr(layer, name, Adapted(getattr(layer, name)))


def _parametrised(layer, name):
    nn.utils.parametrizations.weight_norm(getattr(layer, name)).parametrizations.weight.original0.data.mul_(2)


def _biased(layer, name):
    linear = getattr(layer, name)
    linear.bias = nn.Parameter(torch.linspace(-1, 1, linear.out_features))


def _replaced(layer, name):
    linear = getattr(layer, name)
    linear.forward = lambda x: 2 * nn.Linear.forward(linear, x)


def _watched(layer, name):
    getattr(layer, name).register_forward_hook(lambda module, args, out: 2 * out)


@pytest.mark.parametrize("change", [_adapted, _parametrised, _biased, _replaced, _watched])
@pytest.mark.parametrize("name", [*"qkvo", "gate", "up", "down"])
@torch.no_grad()
def test_changed_layers_are_called(name, change):
    model = model_of("gqa")
    ids = ids_of(1, 5)
    before = model(ids).logits
    layer = model.layers[0]
    change(layer.mixer if name in "qkvo" else layer.ffn, name)
    assert (model(ids).logits - before).abs().max() > 1e-3
    written = generate(model, ids, 4, temperature=0)
    for _ in range(4):
        ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), 1)
    assert torch.equal(written, ids)
