"""Real pretrained models through our decoder write what they write elsewhere."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fabric.data.smollm2 import GGUF_NAME
from kernels.folders import default_cache_root
from models import ModelConfig, generate
from models.decoder import uninitialised

STORIES = Path(os.environ.get("FABRIC_DATA", "absent")) / "model-stories260K"


def smollm2() -> Path | None:
    """SmolLM2's file: where FABRIC_SMOLLM2 says, or in the user's cache folder."""
    named = os.environ.get("FABRIC_SMOLLM2")
    places = [Path(named)] if named else [default_cache_root() / "downloads" / GGUF_NAME]
    return next((p for p in places if p.is_file()), None)


@pytest.mark.slow
@pytest.mark.skipif(
    smollm2() is None,
    reason="SmolLM2's file is not here: `fabric data get smollm2` fetches it and prints its path; "
    "set FABRIC_SMOLLM2 to that",
)
def test_smollm2_writes_the_text_transformers_writes():
    from transformers import AutoModelForCausalLM

    from models.hf.files import read_pretrained, read_tokenizer

    path = smollm2()
    assert path is not None
    ours, tokenizer = read_pretrained(path).eval(), read_tokenizer(path)
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    batch = tokenizer("The capital of France is", return_tensors="pt")
    expected = theirs.generate(**batch, max_new_tokens=16, do_sample=False)
    found = generate(ours, batch["input_ids"], 16, temperature=0, eos_id=tokenizer.eos_token_id)
    assert torch.equal(found, expected)
    assert tokenizer.decode(found[0]).startswith("The capital of France is Paris.")
    with torch.inference_mode():
        torch.testing.assert_close(ours(expected).logits, theirs(expected).logits, atol=1e-3, rtol=0)


@pytest.mark.skipif(not STORIES.is_dir(), reason="FABRIC_DATA names no folder with model-stories260K/")
def test_a_tiny_storyteller_tells_its_story_and_is_the_same_after_a_trip_through_transformers(tmp_path):
    from models.hf import to_transformers
    from models.hf.files import read_pretrained

    model = stories(STORIES / "stories260K.bin").eval()
    text = told(model, 48)
    assert text.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
    to_transformers(model).save_pretrained(tmp_path)
    assert told(read_pretrained(tmp_path).eval(), 48) == text


def told(model, n_tokens: int) -> str:
    """What it writes greedily, from the beginning of a text."""
    ids = generate(model, torch.tensor([[1]]), n_tokens, temperature=0)[0, 1:].tolist()
    data = (STORIES / "tok512.bin").read_bytes()
    pieces, at = [], 4
    while at < len(data):
        _, n_bytes = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + n_bytes])
        at += 8 + n_bytes
    return b"".join(pieces[i] for i in ids).decode().strip()


def stories(path: Path):
    """stories260K (karpathy/tinyllamas, MIT) from llama2.c's first format, as our model."""
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
