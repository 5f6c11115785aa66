"""`fabric generate` and `fabric export`: use a trained trial's weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.planning.trial import TrialSpec
from fabric.store import Store, TrialRecord

if TYPE_CHECKING:
    from fabric.data.tokenizer import Tokenizer
    from models import CausalLM


@dataclass(frozen=True)
class Trained:
    """A trained trial: its record, specification, model (in eval mode) and tokenizer."""

    record: TrialRecord
    spec: TrialSpec
    model: CausalLM
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
    """Load a finished trial's last weights and its tokenizer.

    Raises ValueError when the trial or its checkpoint is missing.
    """
    from fabric.data import TokenCache
    from fabric.train.checkpoint import load_model, newest_checkpoint

    store, record = find_trial(target)
    body, found = record.spec(), newest_checkpoint(record)
    if body is None or found is None:
        raise ValueError(f"trial {record.id} has no complete checkpoint; run its sweep again")
    # Wherever it was trained, it is used here: on the CPU.
    spec = TrialSpec.model_validate({**body, "device": "cpu"})
    tokens = store.root.parent / ".cache" / "tokens" / spec.data_key
    return Trained(record, spec, load_model(spec, found[1]), TokenCache.open(tokens).tokenizer())


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

    `temperature=0` is greedy. Raises ValueError for a target without a finished trial.
    """
    import torch

    import models

    trained = load_trained(target)
    ids = trained.tokenizer.encode(prompt) or [trained.tokenizer.eos_id]
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


def export(target: str | Path, out: str | Path) -> Path:
    """Write a trained trial as a Hugging Face folder: config, weights, tokenizer and a card with its metrics.

    Returns the folder. Raises ValueError when the architecture has no transformers class (the message says which do).
    """
    import models

    trained = load_trained(target)
    converted = models.to_hf(trained.model)
    eos_id = trained.tokenizer.eos_id
    converted.config.bos_token_id = converted.config.eos_token_id = eos_id
    converted.generation_config.bos_token_id = converted.generation_config.eos_token_id = eos_id
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    converted.save_pretrained(folder)
    store, record = find_trial(target)
    tokens = store.root.parent / ".cache" / "tokens" / trained.spec.data_key
    (folder / "tokenizer.json").write_text((tokens / "tokenizer.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    status = record.status()
    (folder / "README.md").write_text(_card(store, record, (status.final or {}) if status else {}))
    return folder


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
