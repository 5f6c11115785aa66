"""Generation: greedy equals repeated full forwards; the filters keep what they should."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_cases import VARIANTS, config_of, ids_of

from models import build, generate
from models.sampling import sample


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_greedy_equals_full_forwards(name, window):
    model = build(config_of({**VARIANTS[name], "window": window}), seed=1)
    ids = ids_of(2, 5)
    expected = ids
    for _ in range(8):
        expected = torch.cat((expected, model(expected).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(generate(model, ids, 8, temperature=0), expected)


@torch.no_grad()
def test_padded_prompts_generate_as_alone():
    model = build(config_of(VARIANTS["gqa"]), seed=1)
    ids, mask = ids_of(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    together = generate(model, ids, 6, temperature=0, attention_mask=mask)
    assert torch.equal(together[0, 4:], generate(model, ids[:1, 4:], 6, temperature=0)[0])
    assert torch.equal(together[1], generate(model, ids[1:], 6, temperature=0)[0])


def test_a_generator_makes_it_repeatable():
    model = build(config_of(VARIANTS["gqa"]), seed=1)
    ids = ids_of(2, 4)
    a, b, c = (generate(model, ids, 12, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a[:, :4], ids)


def test_ended_texts_are_filled_up_and_the_loop_stops():
    model = build(config_of(VARIANTS["gqa"]), seed=1)
    ids = ids_of(2, 4)
    free = generate(model, ids, 10, temperature=0)
    eos = int(free[0, 4])
    out = generate(model, ids, 10, temperature=0, eos_id=eos)
    assert (out[0, 4:] == eos).all()
    alone = generate(model, ids[:1], 10, temperature=0, eos_id=eos)
    assert alone.shape == (1, 5)
    assert generate(model, ids, 0) is ids


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    top_k=st.one_of(st.none(), st.integers(1, 12)),
    top_p=st.one_of(st.none(), st.floats(0.05, 1.0)),
    temperature=st.floats(0.2, 3.0),
)
def test_samples_come_from_the_kept_tokens(seed, top_k, top_p, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(10, generator=generator) * 3
    order = logits.argsort(descending=True).tolist()
    kept = order[: top_k or 10]
    if top_p is not None:
        probs = (logits[kept].double() / temperature).softmax(-1).tolist()
        total, n = 0.0, 0
        while n < len(kept) and total < top_p - 1e-6:
            total, n = total + probs[n], n + 1
        kept = kept[: max(1, n)]
    drawn = sample(logits.expand(400, 10), temperature, top_k, top_p, generator)
    assert set(drawn.tolist()) <= set(kept)


def test_frequencies_follow_the_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0])
    drawn = sample(logits.expand(40_000, 3), 2.0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        drawn.bincount(minlength=3) / 40_000, (logits / 2).softmax(-1), atol=0.01, rtol=0
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new_tokens": -1}, "negative"),
        ({"temperature": -1.0}, "0 is greedy"),
        ({"top_k": 0}, "keeps no token"),
        ({"top_p": 0.0}, r"outside \(0, 1\]"),
        ({"max_new_tokens": 61}, "use max_new_tokens=60"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]])}, "pad on the left"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    model = build(config_of(VARIANTS["mha"]))
    with pytest.raises(ValueError, match=words):
        generate(model, ids_of(1, 4), **{"max_new_tokens": 2, **arguments})
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), 2)
