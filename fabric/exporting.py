"""`fabric generate` and `fabric export`: use a trained model's weights."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fabric.data.disk import beside
from fabric.paths import real_path
from fabric.store import Url, local
from fabric.trained import Trained, find_trained
from kernels.folders import at_home

# Below it, logits over temperature leave fp32's range; long before, the text is the greedy one.
LEAST_TEMPERATURE = 1e-6
# What an export writes, beside the card by which it is known.
EXPORTED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|chat_template\.jinja|merges\.txt"
    r"|tokenizer\.model|README\.md"
)
CARD_MARK = "- experiment-fabric"  # among the tags of its front matter


def generate(
    target: str | Path | Url,
    prompt: str = "",
    *,
    tokens: int = 128,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> str:
    """Continue a prompt with a trained model and return both; `temperature=0` is greedy.

    `target` is a trial's folder or URL, a job's (then its best trial), a Hugging Face folder, or a GGUF file. Raises
    ValueError for a target that is none of them, and for options out of range.
    """
    import torch

    import models

    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed}: allowed are 0 to 2**63 - 1")
    if 0 < temperature < LEAST_TEMPERATURE:
        raise ValueError(
            f"temperature={temperature}: allowed are 0 (greedy), and {LEAST_TEMPERATURE} or more"
        )
    _check_text(prompt)
    trained = find_trained(target)
    trained.check_language_model()
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


def export(target: str | Path | Url, out: str | Path) -> Path:
    """Write a trained model as a Hugging Face folder: config, weights, tokenizer, and a card with what is known of it.

    The class is transformers' own where it has the architecture, else ours (`import models.hf` loads it). An encoder is
    written without the head it was trained with, which has no weights of its own. The folder appears whole or not at
    all; an earlier export there is replaced. Returns the folder. Raises ValueError for a target that is no trained
    model, an encoder that is no BERT, and an `out` that is no folder, holds anything else, or lies in a job's records.
    """
    import models
    from fabric.model_card import model_card
    from models.hf import to_transformers
    from models.hf.files import only_errors

    folder = _target_folder(out)
    trained = find_trained(target)
    if trained.tokenizer is None:
        trained.check_language_model()
    if isinstance(trained.model, models.Readout):
        raise ValueError(
            f"{target} answers by a readout ({trained.trial.spec.train.objective.kind}), for which the field's formats "
            "have no class; `fabric eval --tasks examples` asks it"
        )
    is_causal = trained.model.config.causal
    converted: Any = to_transformers(trained.model if is_causal else trained.model.encoder)
    eos_id = trained.tokenizer.eos_id
    for config in (converted.config, *((converted.generation_config,) if is_causal else ())):
        config.eos_token_id = eos_id
        config.bos_token_id = trained.hf_tokenizer.bos_token_id if trained.hf_tokenizer else eos_id
    if is_causal:
        # In the model's own config it would keep the token's embedding from being trained.
        converted.generation_config.pad_token_id = eos_id
    with _replacing(folder) as new:
        with only_errors():
            converted.save_pretrained(new)
        if trained.hf_tokenizer is not None:
            trained.hf_tokenizer.save_pretrained(new)
        else:
            (new / "tokenizer.json").write_text(trained.tokenizer.json, encoding="utf-8")
            (new / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(trained), indent=2))
        card = model_card(trained, type(converted).__name__, converted.config.model_type)
        (new / "README.md").write_text(card, encoding="utf-8")
    return folder


def _target_folder(out: str | Path) -> Path:
    """Where an export goes, absolute. Raises ValueError where it would mix with, or overwrite, what is there."""
    if not str(out):
        raise ValueError("--out is empty; name the folder to write")
    given = at_home(local(out, "--out")).absolute()
    folder = real_path(given)
    if given.is_symlink() and not folder.exists():
        raise ValueError(f"{given} is a link to {folder}, which is not there; give another --out")
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise ValueError(f"{taken} is a file: export writes a folder; give another --out, or remove the file")
    records = next((p for p in (folder, *folder.parents) if _holds_records(p)), None)
    if records is not None:
        raise ValueError(f"{folder} lies in the records of {records}; give an --out outside of them")
    if folder == Path.cwd():
        raise ValueError(f"{folder} is the current folder; give --out a folder in it")
    if folder.exists() and any(folder.iterdir()) and not _is_export(folder):
        raise ValueError(
            f"{folder} is not empty, and holds more than an earlier export; give another --out, or empty it"
        )
    return folder


def _holds_records(folder: Path) -> bool:
    """Whether a folder is a job's, a trial's, or that of the caches."""
    job = (folder / "trials").is_dir() and (folder / "studies").is_dir()
    return (
        job or (folder / "trial.json").is_file() or (folder.name == ".cache" and (folder / "tokens").is_dir())
    )


def _is_export(folder: Path) -> bool:
    """Whether all of a folder was written by an earlier export."""
    card = folder / "README.md"
    if not card.is_file() or not all(p.is_file() and EXPORTED.fullmatch(p.name) for p in folder.iterdir()):
        return False
    front = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    return len(front) == 3 and not front[0] and CARD_MARK in front[1].splitlines()


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside, which becomes this one at the block's end; on any error it goes, and the old one stays."""
    new, old = beside(folder, "exporting"), beside(folder, "replaced")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        yield new
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written: {error.strerror or error}; give another --out, or make room"
        ) from None
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


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
