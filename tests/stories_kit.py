"""stories260K (karpathy/tinyllamas, MIT), a real pretrained model of 0.26 M weights, from llama2.c's first format."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import torch

from models import ModelConfig
from models.decoder import uninitialised

STORIES = Path(os.environ.get("FABRIC_DATA", "absent")) / "model-stories260K"
SPACE = "▁"
N_BYTE_IDS = 3, 259  # these ids are single bytes


def stories(path: Path):
    """The model."""
    d, d_ff, n_layers, n_heads, n_kv, vocab, length = struct.unpack("<7i", path.read_bytes()[:28])
    mixer = {"kind": "gqa", "n_heads": n_heads, "n_kv_heads": n_kv}
    config = ModelConfig.model_validate(
        {
            "vocab_size": vocab,
            "d_model": d,
            "n_layers": n_layers,
            "max_seq_len": length,
            "mixer": mixer,
            "ffn": {"kind": "swiglu", "d_ff": d_ff},
        }
    )
    numbers = torch.from_numpy(np.fromfile(path, "<f4", offset=28))
    model, at = uninitialised(config), 0
    width_kv = d // n_heads * n_kv
    per_layer = (
        ("mixer_norm_in", (d,)), ("mixer.q", (d, d)), ("mixer.k", (width_kv, d)), ("mixer.v", (width_kv, d)),
        ("mixer.o", (d, d)), ("ffn_norm_in", (d,)), ("ffn.gate", (d_ff, d)), ("ffn.down", (d, d_ff)),
        ("ffn.up", (d_ff, d)),
    )  # fmt: skip
    wanted = [("embed.weight", (vocab, d))]
    wanted += [(f"layers.{i}.{name}.weight", shape) for name, shape in per_layer for i in range(n_layers)]
    wanted += [("final_norm.weight", (d,))]
    weights = {}
    for name, shape in wanted:
        tensor = numbers[at : at + int(np.prod(shape))].reshape(shape)
        at += tensor.numel()
        if name.endswith(("mixer.q.weight", "mixer.k.weight")):  # neighbouring pairs there, halves here
            tensor = tensor.view(-1, d // n_heads // 2, 2, d).transpose(1, 2).reshape(shape)
        weights[name] = tensor.clone()
    model.load_state_dict(weights)
    return model


def pieces(path: Path) -> list[tuple[float, bytes]]:
    """Every id's score and bytes."""
    data, at, found = path.read_bytes(), 4, []
    while at < len(data):
        score, n_bytes = struct.unpack_from("<fi", data, at)
        found.append((score, data[at + 8 : at + 8 + n_bytes]))
        at += 8 + n_bytes
    return found


def stories_tokenizer(path: Path):
    """Its tokenizer as transformers', which puts <s> before a text: of neighbours, the pair of the best score joins."""
    from tokenizers import Tokenizer, decoders, normalizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    low, high = N_BYTE_IDS
    all_pieces = pieces(path)
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(high - low))]
    names += [text.decode().replace(" ", SPACE) for _, text in all_pieces[high:]]
    vocab = {name: i for i, name in enumerate(names)}
    assert len(vocab) == len(all_pieces)
    by_score = sorted(range(high, len(names)), key=lambda i: -all_pieces[i][0])
    merges = [
        (names[i][:n], names[i][n:])
        for i in by_score
        for n in range(1, len(names[i]))
        if names[i][:n] in vocab and names[i][n:] in vocab
    ]
    core = Tokenizer(BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    core.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
