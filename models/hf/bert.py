"""BERT (arXiv 1810.04805) from and to `transformers`: BertModel, BertForMaskedLM, BertForSequenceClassification.

Weights are kept bit for bit; hidden states agree to rounding (1e-5 in fp32), without dropout, which ours does not
have. transformers is imported only when a model is exported.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.config import ModelConfig
from models.decoder import uninitialised
from models.encoder import Encoder
from models.heads import MaskedLM, SequenceClassifier, add_pooler
from models.hf.weights import check_tied

BERT_CLASSES = ("BertModel", "BertForMaskedLM", "BertForSequenceClassification")
_EMBEDDING_NAMES = {
    "embed.weight": "embeddings.word_embeddings.weight",
    "position_embed.weight": "embeddings.position_embeddings.weight",
    "token_type_embed.weight": "embeddings.token_type_embeddings.weight",
    "embedding_norm": "embeddings.LayerNorm",
}
_LAYER_NAMES = {
    "mixer.q": "attention.self.query",
    "mixer.k": "attention.self.key",
    "mixer.v": "attention.self.value",
    "mixer.o": "attention.output.dense",
    "mixer_norm_out": "attention.output.LayerNorm",
    "ffn.up": "intermediate.dense",
    "ffn.down": "output.dense",
    "ffn_norm_out": "output.LayerNorm",
}
_MASKED_LM_NAMES = {
    "transform.dense": "cls.predictions.transform.dense",
    "transform.norm": "cls.predictions.transform.LayerNorm",
    "output.bias": "cls.predictions.bias",
}


def bert_from_hf(hf_model: Any) -> Encoder | MaskedLM | SequenceClassifier:
    """Our model with a BERT's weights, same dtype and device: an `Encoder` (with its pooler, if it has one), or the
    head on it.

    Dropout is left out. Positions are counted from a text's first token, theirs from the left edge: the two differ
    where padding is on the left. Raises ValueError for settings that ours does not have, each named.
    """
    name, hf = type(hf_model).__name__, hf_model.config
    _refuse_unknown_settings(hf, name)
    source: dict[str, Tensor] = hf_model.state_dict()
    prefix = "" if name == "BertModel" else "bert."
    weight = source[f"{prefix}embeddings.word_embeddings.weight"]
    encoder: Encoder = uninitialised(_config_from_hf(hf), weight.device).to(weight.dtype)
    if f"{prefix}pooler.dense.weight" in source:
        add_pooler(encoder)
    model: Encoder | MaskedLM | SequenceClassifier = encoder
    if name == "BertForMaskedLM":
        check_tied(source, "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight")
        model = MaskedLM(encoder)
    elif name == "BertForSequenceClassification":
        problem: Literal["classification", "regression"] = (
            "regression" if _is_regression(hf) else "classification"
        )
        model = SequenceClassifier(encoder, hf.num_labels, problem=problem)
    names = _weight_names(model)
    model.load_state_dict({ours: source[theirs] for ours, theirs in names.items()}, strict=True)
    return model.train(hf_model.training)


def bert_to_hf(model: nn.Module) -> Any:
    """The same model as a `transformers` one, with copied weights, same dtype and device.

    Raises ValueError for an encoder that is no BERT, and for a head that BERT does not have.
    """
    import transformers

    theirs: Any
    encoder = model if isinstance(model, Encoder) else model.encoder
    assert isinstance(encoder, Encoder)
    fields = _config_to_hf(encoder.config)
    if isinstance(model, MaskedLM):
        if model.transform is None:
            raise ValueError(
                "BertForMaskedLM has a dense layer before its output matrix, this MaskedLM has none "
                "(transform=False); convert its .encoder"
            )
        theirs = transformers.BertForMaskedLM(transformers.BertConfig(**fields))
    elif isinstance(model, SequenceClassifier):
        if model.pooling != "first":
            raise ValueError(
                f"BertForSequenceClassification pools the first token, this classifier has pooling={model.pooling!r}; "
                "convert its .encoder"
            )
        kind = "regression" if model.problem == "regression" else "single_label_classification"
        fields |= {"num_labels": model.n_labels, "problem_type": kind}
        theirs = transformers.BertForSequenceClassification(transformers.BertConfig(**fields))
    else:
        has_pooler = encoder.pooler is not None
        theirs = transformers.BertModel(transformers.BertConfig(**fields), add_pooling_layer=has_pooler)
    return _with_weights(theirs, model, encoder.embed.weight)


def _with_weights(theirs: Any, model: nn.Module, weight: Tensor) -> Any:
    source: dict[str, Tensor] = model.state_dict()
    weights = {name: source[ours] for ours, name in _weight_names(model).items()}
    if isinstance(model, MaskedLM):
        weights["cls.predictions.decoder.weight"] = weight
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
    theirs.to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        theirs.load_state_dict(weights, strict=True)
    return theirs.train(model.training)


def _weight_names(model: nn.Module) -> dict[str, str]:
    """Our parameter names → theirs."""
    if isinstance(model, Encoder):
        return _encoder_names(model, "", "")
    assert isinstance(model, MaskedLM | SequenceClassifier)
    names = _encoder_names(model.encoder, "encoder.", "bert.")
    own = _MASKED_LM_NAMES if isinstance(model, MaskedLM) else {"classifier": "classifier"}
    return names | _spelt_out(own, "", "")


def _encoder_names(encoder: Encoder, ours: str, theirs: str) -> dict[str, str]:
    names = _spelt_out(_EMBEDDING_NAMES, ours, theirs)
    if encoder.pooler is not None:
        names |= _spelt_out({"pooler": "pooler.dense"}, ours, theirs)
    for i in range(encoder.config.n_layers):
        names |= _spelt_out(_LAYER_NAMES, f"{ours}layers.{i}.", f"{theirs}encoder.layer.{i}.")
    return names


def _spelt_out(names: dict[str, str], ours: str, theirs: str) -> dict[str, str]:
    """Both prefixed; a module's name stands for its weight and its bias."""
    found = {}
    for a, b in names.items():
        for end in ("",) if a.endswith((".weight", ".bias")) else (".weight", ".bias"):
            found[f"{ours}{a}{end}"] = f"{theirs}{b}{end}"
    return found


def _is_regression(hf: Any) -> bool:
    return hf.problem_type == "regression" or (hf.problem_type is None and hf.num_labels == 1)


def _refuse_unknown_settings(hf: Any, name: str) -> None:
    wanted = {"hidden_act": "gelu", "is_decoder": False, "add_cross_attention": False}
    if name == "BertForMaskedLM":
        wanted["tie_word_embeddings"] = True
    problems = [
        f"{key}={getattr(hf, key)!r} (only {value!r})"
        for key, value in wanted.items()
        if getattr(hf, key) != value
    ]
    if name == "BertForSequenceClassification" and hf.problem_type == "multi_label_classification":
        problems.append("problem_type='multi_label_classification' (only one label a text, or regression)")
    if problems:
        raise ValueError(
            f"this {name} cannot be converted, it has settings ours lacks: " + "; ".join(problems)
        )


def _config_from_hf(hf: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "vocab_size": hf.vocab_size,
            "d_model": hf.hidden_size,
            "n_layers": hf.num_hidden_layers,
            "max_seq_len": hf.max_position_embeddings,
            "mixer": {"kind": "mha", "n_heads": hf.num_attention_heads, "position": "nope", "bias": True},
            "ffn": {"kind": "gelu", "d_ff": hf.intermediate_size, "bias": True},
            "norm": {"kind": "layernorm", "eps": hf.layer_norm_eps},
            "norm_placement": "postln",
            "init": {"std": hf.initializer_range},
            "causal": False,
            "positions": "learned",
            "embedding_norm": True,
            "token_types": hf.type_vocab_size,
        }
    )


def _refuse_what_is_no_bert(config: ModelConfig) -> None:
    mixer: Any = config.mixer
    ffn: Any = config.ffn
    wanted_and_found = {
        "causal": (False, config.causal),
        "mixer.kind": ("mha", mixer.kind),
        "mixer.position": ("nope", getattr(mixer, "position", None)),
        "mixer.bias": (True, getattr(mixer, "bias", None)),
        "mixer.window": (None, mixer.window),
        "mixer.qk_norm": ("none", getattr(mixer, "qk_norm", None)),
        "mixer.head_dim": (None, getattr(mixer, "head_dim", None)),
        "ffn.kind": ("gelu", ffn.kind),
        "ffn.approximate": ("none", getattr(ffn, "approximate", None)),
        "ffn.bias": (True, getattr(ffn, "bias", None)),
        "norm.kind": ("layernorm", config.norm.kind),
        "norm_placement": ("postln", config.norm_placement),
        "positions": ("learned", config.positions),
        "embedding_norm": (True, config.embedding_norm),
    }
    problems = [f"{k}={found!r} (BERT: {w!r})" for k, (w, found) in wanted_and_found.items() if found != w]
    if not config.token_types:
        problems.append("token_types=0 (BERT: 1 or more)")
    if problems:
        raise ValueError("no transformers class for this encoder, which is no BERT: " + "; ".join(problems))


def _config_to_hf(config: ModelConfig) -> dict[str, Any]:
    _refuse_what_is_no_bert(config)
    mixer: Any = config.mixer
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": mixer.n_heads,
        "intermediate_size": config.ffn.d_ff,
        "max_position_embeddings": config.max_seq_len,
        "type_vocab_size": config.token_types,
        "layer_norm_eps": config.norm.eps,
        "initializer_range": config.d_model**-0.5 if config.init.std is None else config.init.std,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        # The id of padding belongs to the tokenizer; the class's default may be a word of another vocabulary.
        "pad_token_id": None,
    }
