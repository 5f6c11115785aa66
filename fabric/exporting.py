"""`fabric generate` and `fabric export`: use a trained trial's weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.planning.trial import TrialSpec
from fabric.store import Store, TrialRecord

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Trained:
    """A trained trial: its store, record, specification, model (in eval mode) and tokenizer."""

    store: Store
    record: TrialRecord
    spec: TrialSpec
    model: Any
    tokenizer: Tokenizer


def find_trial(target: str | Path) -> tuple[Store, TrialRecord]:
    """The trial of a path: a trial's folder, or a job's folder (then its best finished trial by validation loss).

    Raises ValueError when there is no finished trial there.
    """
    path = Path(target).expanduser().resolve()
    if path.parent.name == "trials" and (path / "trial.json").exists():
        store = Store(path.parents[1])
        return store, store.trial(path.name)
    store = Store(path)
    losses: list[tuple[float, str]] = []
    for trial_id in store.trial_ids():
        status = store.trial(trial_id).status()
        loss = (status.final or {}).get("val_loss") if status and status.state == "finished" else None
        if loss is not None:
            losses.append((loss, trial_id))
    if not losses:
        raise ValueError(
            f"{path} is neither a trial (<out>/<job>/trials/<id>) nor a job with a finished trial"
        )
    return store, store.trial(min(losses)[1])


def load_trained(target: str | Path) -> Trained:
    """Load a finished trial's last weights and its tokenizer; a token cache that is gone is built again.

    Raises ValueError when the trial or its checkpoint is missing, or its text too.
    """
    from fabric.train.checkpoint import load_model, newest_checkpoint

    store, record = find_trial(target)
    body, found = record.spec(), newest_checkpoint(record)
    if body is None or found is None:
        raise ValueError(f"trial {record.id} has no complete checkpoint; run its sweep again")
    # Wherever it was trained, it is used here: on the CPU.
    spec = TrialSpec.model_validate({**body, "device": "cpu"})
    tokenizer = _token_cache(spec, store.root.parent / ".cache").tokenizer()
    return Trained(store, record, spec, load_model(spec, found[1]), tokenizer)


def _token_cache(spec: TrialSpec, root: Path) -> TokenCache:
    """The trial's token cache, which holds its tokenizer."""
    from fabric.data import TokenCache, prepare

    path = root / "tokens" / spec.data_key
    try:
        return TokenCache.open(path, spec.data_key)
    except ValueError as error:
        lost = str(error)
    try:
        cache = prepare(spec.data, root)
    except ValueError as error:
        raise ValueError(f"{lost}; it cannot be built again: {error}") from None
    if cache.key != spec.data_key:
        raise ValueError(
            f"{lost}; it cannot be built again: the text of {spec.data.corpus.kind} is not what it was then. "
            "Put the text back as it was, or train again"
        )
    return cache


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
    """Continue a prompt with a trained trial (a trial's folder, or a job's: then its best). Returns prompt and text.

    `temperature=0` is greedy. Raises ValueError for a target without a finished trial, and for options out of range.
    """
    import torch

    import models

    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed}: allowed are 0 to 2**63 - 1")
    _check_text(prompt)
    trained = load_trained(target)
    ids = trained.tokenizer.encode(prompt) or [trained.tokenizer.eos_id]
    _check_room(len(ids), tokens, trained.spec.model.max_seq_len)
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
    """Write a trained trial as a Hugging Face folder: config, weights, tokenizer and a card with its metrics.

    An encoder is written without the head it was trained with, which has no weights of its own. Returns the folder.
    Raises ValueError when the architecture has no transformers class (the message says which do), or `out` is no
    folder.
    """
    import models

    folder = Path(out).expanduser()
    taken = next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None)
    if taken is not None:
        raise ValueError(f"{taken} is a file: export writes a folder; give another --out, or remove the file")
    trained = load_trained(target)
    is_causal = trained.spec.model.causal
    converted = models.to_hf(trained.model if is_causal else trained.model.encoder)
    eos_id = trained.tokenizer.eos_id
    for config in [converted.config, *([converted.generation_config] if is_causal else [])]:
        config.bos_token_id = config.eos_token_id = eos_id
    folder.mkdir(parents=True, exist_ok=True)
    converted.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(trained.tokenizer.json, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config(trained), indent=2))
    status = trained.record.status()
    final = (status.final or {}) if status else {}
    (folder / "README.md").write_text(_card(trained.store, trained.record, final))
    return folder


def _tokenizer_config(trained: Trained) -> dict[str, Any]:
    """What `AutoTokenizer` must be told beside tokenizer.json."""
    eos = trained.tokenizer.eos_token
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": eos,
        "eos_token": eos,
        "model_max_length": trained.spec.model.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }


def _card(store: Store, record: TrialRecord, final: Any) -> str:
    lines = [
        f"# {store.root.name} / {record.id}",
        "",
        "Trained with experiment-fabric.",
        "",
        "| metric | value |",
        "| --- | --- |",
    ]
    lines += [f"| {k} | {v:.6g} |" for k, v in final.items() if isinstance(v, int | float)]
    return "\n".join([*lines, "", "A small research model: it knows only its training corpus."]) + "\n"
