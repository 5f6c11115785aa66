"""What must hold for every encoder: all see all, padding is invisible, windows reach both ways, nothing next-token."""

import pytest
import torch
from models_cases import MIXERS, PLACEMENTS, VARIANTS, VOCAB, config_of, ids_of

from fabric.train import loss
from models import Encoder, MaskedLM, SequenceClassifier, build, generate

KINDS = {
    name: v for name, v in VARIANTS.items() if not MIXERS[v["kind"]].CAUSAL_ONLY and "short_conv" not in v
}
BERT_LIKE = {"positions": "learned", "embedding_norm": True, "token_types": 2, "norm": {"kind": "layernorm"}}
GRID = [
    pytest.param({**mixer, "window": window}, placement, id=f"{name}-{placement}-w{window}")
    for name, mixer in KINDS.items()
    for window in (None, 5)
    for placement in (PLACEMENTS if name in MIXERS else ("postln",))
]
everywhere = pytest.mark.parametrize(("mixer", "placement"), GRID)


def encoder_of(mixer, placement="pre", **changes):
    return build(config_of(mixer, norm_placement=placement, causal=False, **changes), seed=1).eval()


def changed_at(ids, t):
    changed = ids.clone()
    changed[:, t] = (changed[:, t] + 1) % VOCAB
    return changed


@everywhere
@torch.no_grad()
def test_each_token_reaches_those_on_both_sides_as_far_as_the_window(mixer, placement):
    model, ids = encoder_of(mixer, placement), ids_of(2, 24)
    before = model.hidden(ids)
    reach = sum((m.window or 24) - 1 for m in model.config.mixers)
    for t in (0, 11, 23):
        difference = (model.hidden(changed_at(ids, t)) - before).abs().amax(dim=(0, 2))
        distance = (torch.arange(24) - t).abs()
        assert (difference[distance <= reach] > 0).all()
        assert (difference[distance > reach] == 0).all()
        assert difference[t] > 1e-3


@everywhere
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(mixer, placement):
    model, ids = encoder_of(mixer, placement, **BERT_LIKE), ids_of(3, 16)
    mask = torch.ones_like(ids)
    mask[0, :6], mask[1, 10:] = 0, 0
    padded = model.hidden(ids, mask)
    assert torch.isfinite(padded).all()
    torch.testing.assert_close(padded[:1, 6:], model.hidden(ids[:1, 6:]), atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[1:2, :10], model.hidden(ids[1:2, :10]), atol=1e-5, rtol=0)
    torch.testing.assert_close(padded[2:], model.hidden(ids[2:]), atol=1e-5, rtol=0)
    other = torch.where(mask.bool(), ids, (ids + 7) % VOCAB)
    assert torch.equal(model.hidden(other, mask)[mask.bool()], padded[mask.bool()])


@everywhere
@torch.no_grad()
def test_attentions_and_hidden_states_are_those_used(mixer, placement):
    model, ids = encoder_of(mixer, placement), ids_of(2, 12)
    shown = model(ids, output_attentions=True, output_hidden_states=True)
    torch.testing.assert_close(shown.last_hidden_state, model.hidden(ids), atol=1e-5, rtol=0)
    assert torch.equal(shown.hidden_states[-1], shown.last_hidden_state)
    assert len(shown.hidden_states) == 3
    assert len(shown.attentions) == 2
    for weights, layer in zip(shown.attentions, model.config.mixers, strict=True):
        assert weights.shape == (2, 4, 12, 12)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 12))
        distance = (torch.arange(12)[:, None] - torch.arange(12)).abs()
        seen = distance < (layer.window or 12)
        assert ((weights > 0) == seen).all()


@pytest.mark.parametrize("name", KINDS)
def test_gradients_reach_every_parameter(name):
    # Without RoPE a bias of the keys moves all of a query's scores alike, and softmax takes it out again.
    model = MaskedLM(encoder_of(KINDS[name], "postln", **BERT_LIKE))
    ids = ids_of(2, 12)
    types = torch.arange(24).reshape(2, 12) % 2
    model.loss(ids, None, ids.roll(1, 0), types).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


@torch.no_grad()
def test_token_types_tell_segments_apart_and_default_to_the_first():
    model, ids = encoder_of(VARIANTS["mha"], **BERT_LIKE), ids_of(2, 8)
    first, second = torch.zeros_like(ids), torch.ones_like(ids)
    assert torch.equal(model.hidden(ids), model.hidden(ids, None, first))
    assert (model.hidden(ids) - model.hidden(ids, None, second)).abs().max() > 1e-2
    with pytest.raises(ValueError, match="token_type_ids were given to a model without segment embeddings"):
        encoder_of(VARIANTS["mha"]).hidden(ids, None, first)


def test_a_decoder_and_an_encoder_share_the_values_of_equal_names():
    decoder = build(config_of(VARIANTS["gqa"]), seed=1)
    encoder = encoder_of(VARIANTS["gqa"])
    assert isinstance(encoder, Encoder)
    assert decoder.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(decoder.parameters(), encoder.parameters(), strict=True))


def test_next_token_use_is_refused():
    encoder, ids = encoder_of(VARIANTS["mha"]), ids_of(2, 8)
    for model in (encoder, MaskedLM(encoder)):
        with pytest.raises(ValueError, match="is bidirectional .*cannot continue a text"):
            generate(model, ids, 4)
        for score in (loss.sum_nll, loss.nll_per_token):
            with pytest.raises(ValueError, match="no next-token head and no language-model loss.*MaskedLM"):
                score(model, ids[:, :-1], ids[:, 1:])
    with pytest.raises(ValueError, match="has no cache"):
        encoder.new_cache(2)
    with pytest.raises(ValueError, match="causal=True is a decoder"):
        Encoder(config_of(VARIANTS["mha"]))
    with pytest.raises(ValueError, match="CausalLM is no encoder"):
        MaskedLM(build(config_of(VARIANTS["mha"])))
    with pytest.raises(ValueError, match="9 tokens are more than max_seq_len=8"):
        encoder_of(VARIANTS["mha"], max_seq_len=8).hidden(ids_of(1, 9))


def head_of(pooling="first", problem="classification", n_labels=3, seed=0):
    return SequenceClassifier(encoder_of(VARIANTS["gqa"]), n_labels, pooling, problem, seed).eval()


@pytest.mark.parametrize("pooling", ["first", "mean"])
@torch.no_grad()
def test_a_classifier_does_not_see_padding(pooling):
    model, ids = head_of(pooling), ids_of(3, 16)
    mask = torch.ones_like(ids)
    mask[0, :6], mask[1, 10:] = 0, 0
    padded = model(ids, mask)
    alone = torch.cat([model(ids[:1, 6:]), model(ids[1:2, :10]), model(ids[2:])])
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
    assert padded.std() > 1e-2


@torch.no_grad()
def test_a_classifier_s_losses():
    ids, labels = ids_of(4, 8), torch.tensor([0, 2, 1, 1])
    model = head_of()
    picked = model(ids).log_softmax(-1)[torch.arange(4), labels]
    torch.testing.assert_close(model.loss(ids, None, labels), -picked.mean())
    for n_labels in (1, 2):
        model = head_of("mean", "regression", n_labels)
        wanted = torch.linspace(-1, 1, 4 * n_labels).reshape(4, n_labels)
        given = wanted.squeeze(-1)
        torch.testing.assert_close(model.loss(ids, None, given), (model(ids) - wanted).pow(2).mean())


def test_a_classifier_learns():
    model = head_of("first", n_labels=2)
    ids = ids_of(32, 8)
    labels = (ids == 3).any(1).long()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        last = model.loss(ids, None, labels)
        last.backward()
        optimizer.step()
    assert 0 < labels.float().mean() < 1
    assert last < 0.1


def test_heads_start_as_their_seed_says():
    for make in (head_of, lambda seed: MaskedLM(encoder_of(VARIANTS["mha"]), seed=seed)):
        one, same, other = make(seed=0), make(seed=0), make(seed=5)
        new = [n for n, p in one.named_parameters() if "encoder." not in n or "pooler" in n]
        values = [dict(m.named_parameters()) for m in (one, same, other)]
        assert all(torch.equal(values[0][n], values[1][n]) for n in new)
        matrices = [n for n in new if values[0][n].ndim == 2]
        assert matrices
        assert not any(torch.equal(values[0][n], values[2][n]) for n in matrices)


def test_an_encoder_keeps_the_pooler_it_has():
    encoder = encoder_of(VARIANTS["mha"])
    first = SequenceClassifier(encoder, 2)
    pooler = encoder.pooler
    assert SequenceClassifier(encoder, 3, seed=9).encoder.pooler is pooler
    ids = ids_of(2, 8)
    torch.testing.assert_close(first(ids), first.classifier(encoder(ids).pooled))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_labels": 1}, "n_labels=1: a classification has at least 2"),
        ({"n_labels": 0, "problem": "regression"}, "at least 1"),
        ({"pooling": "max"}, "pooling='max'.*'first' or 'mean'"),
        ({"problem": "ranking"}, "problem='ranking'.*'classification'"),
    ],
)
def test_a_classifier_s_mistakes(changes, words):
    with pytest.raises(ValueError, match=words):
        head_of(**changes)


@pytest.mark.parametrize("transform", [True, False])
@torch.no_grad()
def test_masked_loss_counts_selected_positions_only(transform):
    model, ids = MaskedLM(encoder_of(VARIANTS["mha"]), transform), ids_of(2, 12)
    labels = torch.full_like(ids, -100)
    labels[0, 3], labels[1, 7], labels[1, 11] = 5, 6, 7
    logp = model(ids).log_softmax(-1)
    wanted = -torch.stack([logp[0, 3, 5], logp[1, 7, 6], logp[1, 11, 7]])
    torch.testing.assert_close(model.nll(ids, labels), wanted)
    torch.testing.assert_close(model.loss(ids, None, labels), wanted.mean())
    n_own = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("encoder."))
    assert n_own == (32 * 32 + 32 + 32 + VOCAB if transform else 0)
