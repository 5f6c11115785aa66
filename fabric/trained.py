"""A trained model to be used: a trial of ours, or a folder or GGUF file in the field's formats."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric.planning.trial import TrialSpec
from fabric.store import FINISHED, Store, TrialRecord

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.data.tokenizer import Tokenizer
    from models import CausalLM


@dataclass(frozen=True)
class Trial:
    """Where a model of ours comes from: its store, record and specification."""

    store: Store
    record: TrialRecord
    spec: TrialSpec


@dataclass(frozen=True)
class Trained:
    """A model (in eval mode, on the CPU) with its tokenizer.

    One that was not trained here has no `trial`, but a tokenizer of transformers (what it puts before a prompt counts).
    """

    source: Path
    model: CausalLM
    tokenizer: Tokenizer
    trial: Trial | None = None
    hf_tokenizer: Any = None

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids a continuation starts from, at least one."""
        if self.hf_tokenizer is not None:
            ids = list(self.hf_tokenizer(prompt)["input_ids"])
        else:
            ids = self.tokenizer.encode(prompt)
        return ids or [self.tokenizer.eos_id]


def is_foreign(path: Path) -> bool:
    """Whether a path holds a model in the field's formats: a folder with a config.json, or a GGUF file."""
    return path.suffix == ".gguf" or (path / "config.json").is_file()


def load_trained(target: str | Path) -> Trained:
    """A model and its tokenizer: a trial's folder, a job's (then its best trial), a Hugging Face folder, a GGUF file.

    Of a trial it is the last weights; a token cache that is gone is built again. Raises ValueError when the trial or
    its checkpoint is missing, or its text too, and for a foreign model that ours cannot be.
    """
    path = Path(target).expanduser().resolve()
    return _load_foreign(path) if is_foreign(path) else _load_trial(path)


def _load_foreign(path: Path) -> Trained:
    from fabric.data.tokenizer import tokenizer_from_json
    from models.hf.files import read_pretrained, read_tokenizer

    model = read_pretrained(path)
    theirs = read_tokenizer(path)
    tokenizer = tokenizer_from_json(
        theirs.backend_tokenizer.to_str(), theirs.eos_token, f"{path}'s tokenizer"
    )
    return Trained(path, model.eval(), tokenizer, hf_tokenizer=theirs)


def _load_trial(path: Path) -> Trained:
    store, record = find_trial(path)
    spec, model = _last_weights(record)
    tokenizer = _token_cache(spec, store.root.parent / ".cache").tokenizer()
    return Trained(path, model.eval(), tokenizer, Trial(store, record, spec))


def load_trial_model(path: Path) -> CausalLM:
    """The model of a finished trial's folder, with its last weights. Raises ValueError where it is not finished."""
    _, record = find_trial(path)
    status = record.status()
    if status is None or status.state != FINISHED:
        raise ValueError(
            f"trial {record.id} is not finished: its weights would still change; run its sweep first"
        )
    return _last_weights(record)[1]


def _last_weights(record: TrialRecord) -> tuple[TrialSpec, CausalLM]:
    from fabric.train.checkpoint import load_model, newest_checkpoint

    body, found = record.spec(), newest_checkpoint(record)
    if body is None or found is None:
        raise ValueError(f"trial {record.id} has no complete checkpoint; run its sweep again")
    # Wherever it was trained, it is used here: on the CPU.
    spec = TrialSpec.model_validate({**body, "device": "cpu"})
    return spec, load_model(spec, found[1])


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
            f"{path} is neither a trial (<out>/<job>/trials/<id>), a job with a finished trial, a Hugging Face folder "
            "(with a config.json), nor a .gguf file"
        )
    return store, store.trial(min(losses)[1])


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
