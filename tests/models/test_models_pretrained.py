"""Real pretrained models through our decoder write what they write elsewhere."""

from __future__ import annotations

import pytest
import torch
from smollm2_kit import SMOLLM2_IS_HERE, smollm2
from stories_kit import STORIES, pieces, stories

from models import generate


@pytest.mark.slow
@SMOLLM2_IS_HERE
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
    of = pieces(STORIES / "tok512.bin")
    return b"".join(of[i][1] for i in ids).decode().strip()
