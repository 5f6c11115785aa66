"""`fabric generate` and `fabric export`: use a trained model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fabric.trained import Trained, load_trained


def generate(
    target: str | Path,
    prompt: str = "",
    *,
    tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """Continue a prompt with a trained model and return both; `temperature=0` is greedy.

    `target` is a trial's folder, a job's (then its best trial), a Hugging Face folder, or a GGUF file. Raises
    ValueError for a target that is none of them, and for options out of range.
    """
    import torch

    import models

    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed}: allowed are 0 to 2**63 - 1")
    _check_text(prompt)
    trained = load_trained(target)
    ids = trained.prompt_ids(prompt)
    _check_room(len(ids), tokens, trained.model.config.max_seq_len)
    with torch.inference_mode():
        out = models.generate(
            trained.model,
            torch.tensor([ids]),
            tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            eos_id=trained.tokenizer.eos_id,
            generator=torch.Generator().manual_seed(seed),
        )
    new = [i for i in out[0, len(ids) :].tolist() if i != trained.tokenizer.eos_id]
    return prompt + trained.tokenizer.decode(new)


def _check_text(prompt: str) -> None:
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the prompt is not UTF-8: its character {error.start} is {prompt[error.start]!r}, a byte that is no "
            "text; give the prompt in UTF-8"
        ) from None


def _check_room(n_prompt: int, tokens: int, longest: int) -> None:
    if tokens < 1:
        raise ValueError(f"tokens={tokens}: at least 1")
    if n_prompt + tokens > longest:
        room = longest - n_prompt
        fix = (
            f"use tokens={room} (--tokens {room}) or a shorter prompt" if room > 0 else "use a shorter prompt"
        )
        raise ValueError(
            f"a prompt of {n_prompt} tokens and {tokens} new ones are more than the model's "
            f"max_seq_len={longest}: {fix}"
        )


def export(target: str | Path, out: str | Path) -> Path:
    """Write a trained model as a Hugging Face folder: config, weights, tokenizer, and a card with what is known of it.

    The class is transformers' own where it has the architecture, else ours (`import models.hf` loads it). An encoder is
    written without the head it was trained with, which has no weights of its own. Returns the folder. Raises ValueError
    for a target that is no trained model, an encoder that is no BERT, or when `out` is no folder.
    """
    from fabric.model_card import model_card
    from models.hf import to_transformers

    folder = Path(out).expanduser()
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise ValueError(f"{taken} is a file: export writes a folder; give another --out, or remove the file")
    trained = load_trained(target)
    is_causal = trained.model.config.causal
    converted: Any = to_transformers(trained.model if is_causal else trained.model.encoder)
    eos_id = trained.tokenizer.eos_id
    for config in (converted.config, *((converted.generation_config,) if is_causal else ())):
        config.eos_token_id = eos_id
        config.bos_token_id = trained.hf_tokenizer.bos_token_id if trained.hf_tokenizer else eos_id
    if is_causal:
        # In the model's own config it would keep the token's embedding from being trained.
        converted.generation_config.pad_token_id = eos_id
    folder.mkdir(parents=True, exist_ok=True)
    converted.save_pretrained(folder)
    if trained.hf_tokenizer is not None:
        trained.hf_tokenizer.save_pretrained(folder)
    else:
        (folder / "tokenizer.json").write_text(trained.tokenizer.json, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(trained), indent=2))
    card = model_card(trained, type(converted).__name__, converted.config.model_type)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def _tokenizer_config(trained: Trained) -> dict[str, Any]:
    """What `AutoTokenizer` must be told beside tokenizer.json."""
    eos = trained.tokenizer.eos_token
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,
        "eos_token": eos,
        "pad_token": eos,
        "model_max_length": trained.model.config.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
