"""BERT from and to transformers: same weights, same hidden states, logits, losses and gradients, both ways."""

import pytest
import torch
from models_cases import VARIANTS, config_of, ids_of

from models import Encoder, MaskedLM, SequenceClassifier, build, from_hf, n_params, preset, to_hf

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "initializer_range": 0.2,  # a wrong bias, norm or order would show
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def theirs_of(kind="BertModel", seed=0, **changes):
    torch.manual_seed(seed)
    options = {"add_pooling_layer": changes.pop("pooler")} if "pooler" in changes else {}
    model = getattr(transformers, kind)(transformers.BertConfig(**{**SIZES, **changes}), **options).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases that are not 0 and norm weights that are not 1
            parameter.data.uniform_(-0.5, 1.5)
    return model


def texts(n=24):
    """Ids (0 is padding), the mask of a batch padded on the right, token types."""
    ids = ids_of(3, n, vocab=95) + 1
    mask = torch.ones_like(ids)
    mask[0, 15:], mask[2, 5:] = 0, 0
    types = ids_of(3, n, seed=5, vocab=3)
    return ids * mask, mask, types


def assert_equal_states(ours, theirs):
    """Bit-equal weights after a round trip."""
    again = to_hf(ours).state_dict()
    assert again.keys() == theirs.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize("pooler", [True, False])
@torch.no_grad()
def test_hidden_states_attentions_and_pooler_agree(pooler):
    theirs = theirs_of(pooler=pooler)
    theirs.set_attn_implementation("eager")
    ours = from_hf(theirs)
    assert type(ours) is Encoder
    ids, mask, types = texts()
    want = theirs(ids, mask, types, output_hidden_states=True, output_attentions=True)
    got = ours(ids, mask, types, output_hidden_states=True, output_attentions=True)
    real = mask.bool()
    assert len(got.hidden_states) == len(want.hidden_states) == 4
    for a, b in zip(got.hidden_states, want.hidden_states, strict=True):
        assert b.std() > 0.1
        torch.testing.assert_close(a[real], b[real], atol=1e-5, rtol=0)
    for a, b in zip(got.attentions, want.attentions, strict=True):
        torch.testing.assert_close(a.transpose(1, 2)[real], b.transpose(1, 2)[real], atol=1e-5, rtol=0)
    if pooler:
        torch.testing.assert_close(got.pooled, want.pooler_output, atol=1e-5, rtol=0)
    else:
        assert got.pooled is None
    assert_equal_states(ours, theirs)


@torch.no_grad()
def test_without_mask_and_types_too():
    theirs = theirs_of()
    ids = ids_of(2, 40, vocab=96)
    want = theirs(ids).last_hidden_state
    torch.testing.assert_close(from_hf(theirs)(ids).last_hidden_state, want, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padded_on_the_left_it_is_theirs_with_positions_counted_from_the_text():
    theirs = theirs_of()
    ids, mask, types = (x.flip(1) for x in texts())
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    want = theirs(ids, mask, types, position_ids=positions).last_hidden_state
    got = from_hf(theirs)(ids, mask, types).last_hidden_state
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], atol=1e-5, rtol=0)


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def assert_equal_gradients(ours, theirs):
    """Every gradient of ours is theirs: read through the conversion, which is exact."""
    for parameter in ours.parameters():
        parameter.data.copy_(parameter.grad)
    moved = to_hf(ours).state_dict()
    norm = torch.stack([p.grad.norm() for p in theirs.parameters()]).norm()
    for name, parameter in theirs.named_parameters():
        if parameter.grad.norm() < 1e-6 * norm:  # keys' biases: nothing but rounding
            assert name.endswith("key.bias")
            assert moved[name].norm() < 1e-6 * norm
        else:
            assert relative(moved[name], parameter.grad) < 1e-5, name


def test_masked_language_model_agrees_with_its_loss_and_gradients():
    theirs = theirs_of("BertForMaskedLM")
    ours = from_hf(theirs)
    assert type(ours) is MaskedLM
    ids, mask, types = texts()
    labels = torch.where((ids_of(3, 24, seed=8, vocab=4) == 0) & mask.bool(), ids, -100)
    want = theirs(ids, mask, types, labels=labels)
    real = mask.bool()
    logits = ours(ids, mask, types)
    torch.testing.assert_close(logits[real], want.logits[real], atol=3e-5, rtol=1e-5)  # of size 10
    loss = ours.loss(ids, mask, labels, types)
    torch.testing.assert_close(loss, want.loss, atol=1e-5, rtol=1e-6)
    assert_equal_states(ours, theirs)
    want.loss.backward()
    loss.backward()
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize(
    ("n_labels", "problem"), [(3, "classification"), (1, "regression"), (2, "regression")]
)
def test_classifier_agrees_with_its_loss_and_gradients(n_labels, problem):
    said = {} if n_labels != 2 else {"problem_type": problem}
    theirs = theirs_of("BertForSequenceClassification", num_labels=n_labels, **said)
    ours = from_hf(theirs)
    assert type(ours) is SequenceClassifier
    assert (ours.n_labels, ours.problem, ours.pooling) == (n_labels, problem, "first")
    ids, mask, types = texts()
    labels = torch.tensor([0, 2, 1]) if problem == "classification" else torch.randn(3, n_labels)
    want = theirs(ids, mask, types, labels=labels)
    torch.testing.assert_close(ours(ids, mask, types), want.logits, atol=1e-5, rtol=0)
    loss = ours.loss(ids, mask, labels, types)
    torch.testing.assert_close(loss, want.loss, atol=1e-5, rtol=1e-6)
    assert_equal_states(ours, theirs)
    want.loss.backward()
    loss.backward()
    assert_equal_gradients(ours, theirs)


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-tiny"])
def test_presets_have_transformers_number_of_parameters(name):
    config = preset(name)
    encoder = build(config, device="meta")
    fields = to_hf(encoder).config if name == "bert-tiny" else transformers.BertConfig()
    heads = {
        "BertModel": SequenceClassifier(build(config, device="meta"), 2).encoder,
        "BertForMaskedLM": MaskedLM(encoder),
        "BertForSequenceClassification": SequenceClassifier(build(config, device="meta"), 2),
    }
    for kind, ours in heads.items():
        with torch.device("meta"):
            theirs = getattr(transformers, kind)(fields)
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()), kind
    with torch.device("meta"):
        bare = transformers.BertModel(fields, add_pooling_layer=False)
    assert n_params(config) == sum(p.numel() for p in bare.parameters())
    if name == "bert-base-uncased":
        assert n_params(config) == 108_891_648


def test_preset_is_the_published_configuration():
    with torch.device("meta"):
        theirs = transformers.BertModel(transformers.BertConfig())
    assert from_hf(theirs).config == preset("bert-base-uncased")


@torch.no_grad()
def test_an_exported_folder_reloads_equal(tmp_path):
    ours = MaskedLM(build(preset("bert-tiny", init={"std": 0.1}))).eval()
    to_hf(ours).save_pretrained(tmp_path)
    reloaded = from_hf(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, dtype=torch.float32))
    ids = ids_of(2, 12, vocab=512)
    assert torch.equal(reloaded(ids), ours(ids))
    assert reloaded.config == ours.config


def test_dtype_is_kept_and_weights_are_copied():
    ours = MaskedLM(build(preset("bert-tiny")).bfloat16())
    theirs = to_hf(ours)
    assert theirs.dtype == torch.bfloat16
    assert from_hf(theirs).encoder.embed.weight.dtype == torch.bfloat16
    ours.encoder.embed.weight.data.zero_()
    assert theirs.bert.embeddings.word_embeddings.weight.abs().max() > 0


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("BertModel", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("BertModel", {"is_decoder": True}, "is_decoder=True"),
        ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        (
            "BertForSequenceClassification",
            {"problem_type": "multi_label_classification"},
            "multi_label_classification",
        ),
    ],
)
def test_their_settings_that_ours_lacks_are_refused_by_name(kind, changes, words):
    with pytest.raises(ValueError, match=f"{kind} cannot be converted.*{words}"):
        from_hf(theirs_of(kind, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixer": VARIANTS["mha"]}, r"mixer.position='rope' \(BERT: 'nope'\).*mixer.bias=False"),
        (
            {"mixer": {**VARIANTS["mha_nope"], "window": 4, "qk_norm": "head"}},
            "mixer.window=4.*qk_norm='head'",
        ),
        ({"mixer": VARIANTS["mla"]}, "mixer.kind='mla'"),
        ({"mixer": VARIANTS["mha"], "token_types": 0}, "token_types=0"),
    ],
)
def test_an_encoder_that_is_no_bert_is_refused_by_name(changes, words):
    with pytest.raises(ValueError, match=f"which is no BERT: .*{words}"):
        to_hf(build(config_of(causal=False, **changes)))


def test_heads_that_bert_lacks_are_refused():
    encoder = build(preset("bert-tiny"))
    with pytest.raises(ValueError, match=r"transform=False.*convert its \.encoder"):
        to_hf(MaskedLM(encoder, transform=False))
    with pytest.raises(ValueError, match=r"pooling='mean'.*convert its \.encoder"):
        to_hf(SequenceClassifier(encoder, 2, pooling="mean"))
