"""A trained model to be used: a trial of ours, or a folder or GGUF file in the field's formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from fabric.planning.trial import TrialSpec
from fabric.store import FINISHED, Place, Store, TrialRecord, Url, cache_of, fetch, located

if TYPE_CHECKING:
    from fabric.data import TokenCache
    from fabric.data.tokenizer import Tokenizer
    from models import CausalLM, ModelConfig

_NO_CHECKPOINT = "trial {} has no complete checkpoint; run its sweep again"


@dataclass(frozen=True)
class Trial:
    """Where a model of ours comes from: its store, record and specification."""

    store: Store
    record: TrialRecord
    spec: TrialSpec

    def cache(self) -> Any:
        """Its token cache, or that of its examples; one that is gone is built again."""
        return _token_cache(self.store, self.spec)


@dataclass(frozen=True)
class Trained:
    """A model with its tokenizer; `read` reads the weights, when `model` is first asked for.

    One that was not trained here has no `trial`, but a tokenizer of transformers (what it puts before a prompt counts).
    One that was trained on examples with ids of their own has no tokenizer.
    """

    source: Place
    config: ModelConfig
    tokenizer: Any
    read: Callable[[], CausalLM]
    trial: Trial | None = None
    hf_tokenizer: Any = None

    @cached_property
    def model(self) -> CausalLM:
        """In eval mode, on the CPU. Raises ValueError where its weights cannot be read."""
        return self.read().eval()

    @property
    def is_language_model(self) -> bool:
        """Whether it is a causal language model, known without its weights."""
        readout = self.trial is not None and not self.trial.spec.train.objective.KEEPS_LM_HEAD
        return self.config.causal and not readout and self.tokenizer is not None

    def check_language_model(self) -> None:
        """Raise ValueError where it is none."""
        if self.is_language_model:
            return
        spec = None if self.trial is None else self.trial.spec
        kind = "an encoder" if spec is None else f"objective {spec.train.objective.kind}"
        if self.tokenizer is None:
            kind = (
                "its examples make ids of their own: there is no tokenizer, and no text to generate or score"
            )
        hint = (
            ""
            if spec is None or spec.data.examples is None
            else "; `fabric eval --tasks examples` asks it what it was trained to answer"
        )
        raise ValueError(
            f"{self.source} is no causal language model ({kind}): it neither continues a text nor tells how likely one "
            f"is{hint}"
        )

    def prompt_ids(self, prompt: str) -> list[int]:
        """The ids a continuation starts from, at least one."""
        if self.hf_tokenizer is not None:
            ids = list(self.hf_tokenizer(prompt)["input_ids"])
        else:
            ids = self.tokenizer.encode(prompt)
        return ids or [self.tokenizer.eos_id]


def is_foreign(path: Place) -> TypeGuard[Path]:
    """Whether a path holds a model in the field's formats: a folder with a config.json, or a GGUF file."""
    if isinstance(path, Url):
        return False
    return path.suffix == ".gguf" or (path / "config.json").is_file()


def load_trained(target: str | Path | Url) -> Trained:
    """A model and its tokenizer: a trial's folder, a job's (then its best trial), a Hugging Face folder, a GGUF file.

    Of a trial it is the last weights; a token cache that is gone is built again. Raises ValueError when the trial or
    its checkpoint is missing, or its text too, and for a foreign model that ours cannot be.
    """
    found = find_trained(target)
    assert found.model is not None  # reads the weights
    return found


def find_trained(target: str | Path | Url) -> Trained:
    """As `load_trained`, but the weights are read when they are first asked for."""
    path = _target(target)
    return _find_foreign(path) if is_foreign(path) else _find_trial(path)


def _target(given: str | Path | Url) -> Place:
    return located(given)


def _find_foreign(path: Path) -> Trained:
    from models.hf.files import read_config, read_pretrained

    config = read_config(path)
    tokenizer, theirs = _foreign_tokenizer(path)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{path}'s tokenizer has {tokenizer.vocab_size} ids, its model {config.vocab_size}: they are not of "
            "one model; put the tokenizer it was trained with there"
        )
    return Trained(path, config, tokenizer, lambda: read_pretrained(path), hf_tokenizer=theirs)


def _foreign_tokenizer(source: Path | str) -> tuple[Tokenizer, Any]:
    """The tokenizer of a model in the field's formats, as ours and as transformers'."""
    from fabric.data.tokenizer import tokenizer_from_json
    from models.hf.files import read_tokenizer

    theirs = read_tokenizer(source)
    text = theirs.backend_tokenizer.to_str()
    return tokenizer_from_json(text, theirs.eos_token, f"{source}'s tokenizer"), theirs


def own_tokenizer(source: Path | str) -> Tokenizer | None:
    """The tokenizer of a trial, of a model in the field's formats, or of an id on the hub (text).

    None where none lies there that can be read.
    """
    try:
        if isinstance(source, Path) and not is_foreign(source):
            store, record = find_trial(source)
            spec = _spec_of(record)
            return None if spec is None else _open_cache(store, spec).tokenizer()
        if isinstance(source, Path) and source.is_dir() and not (source / "tokenizer.json").is_file():
            return None
        return _foreign_tokenizer(source)[0]
    except ValueError:
        return None


def _find_trial(path: Place) -> Trained:
    store, record = find_trial(path)
    spec = _spec_of(record)
    if spec is None or not record.checkpoints():
        raise ValueError(_NO_CHECKPOINT.format(record.id))
    examples = spec.data.examples
    has_text = examples is None or examples.READS_TEXT
    tokenizer = _token_cache(store, spec).tokenizer() if has_text else None
    return Trained(path, spec.model, tokenizer, lambda: _last_weights(record)[1], Trial(store, record, spec))


def load_trial_model(path: Path) -> CausalLM:
    """The model of a finished trial's folder, with its last weights. Raises ValueError where it is not finished."""
    _, record = find_trial(path)
    status = record.status()
    if status is None or status.state != FINISHED:
        raise ValueError(
            f"trial {record.id} is not finished: its weights would still change; run its sweep first"
        )
    spec, model = _last_weights(record)
    if not spec.train.objective.KEEPS_LM_HEAD:
        raise ValueError(
            f"trial {record.id} was trained to answer (objective {spec.train.objective.kind}), and its weights are no "
            "language model's; start from what it started from"
        )
    return model


def _last_weights(record: TrialRecord) -> tuple[TrialSpec, CausalLM]:
    from fabric.train.checkpoint import load_model, newest_checkpoint
    from models.lora import merge_lora

    spec, found = _spec_of(record), newest_checkpoint(record)
    if spec is None or found is None:
        raise ValueError(_NO_CHECKPOINT.format(record.id))
    model = load_model(spec, found[1])
    if spec.train.lora is not None:
        merge_lora(model)
    return spec, model


def _spec_of(record: TrialRecord) -> TrialSpec | None:
    """What a trial was; wherever it was trained, it is used here: on the CPU."""
    body = record.spec()
    return None if body is None else TrialSpec.model_validate({**body, "device": "cpu"})


def find_trial(target: str | Path | Url) -> tuple[Store, TrialRecord]:
    """The trial of a path: a trial's folder, or a job's folder (then its best finished trial by validation loss).

    Raises ValueError when there is no finished trial there.
    """
    path = _target(target)
    if path.parent.name == "trials":
        store = Store(path.parent.parent)
        if (record := store.trial(path.name)).is_there():
            return store, record
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


def _source(spec: TrialSpec) -> str:
    """What a trial read, in words."""
    examples = spec.data.examples
    return (
        f"the text of {spec.data.corpus.kind}"
        if examples is None
        else f"what examples {examples.kind} are made of"
    )


def _open_cache(store: Store, spec: TrialSpec) -> TokenCache:
    from fabric.data import TokenCache

    root = cache_of(store.root.parent)
    fetch(store.root.parent, root, f"tokens/{spec.data_key}")
    return TokenCache.open(root / "tokens" / spec.data_key, spec.data_key)


def _token_cache(store: Store, spec: TrialSpec) -> TokenCache:
    """The trial's token cache, which holds its tokenizer; one that is gone is built again."""
    from fabric.data import prepare

    try:
        return _open_cache(store, spec)
    except ValueError as error:
        lost = str(error)
    try:
        cache = prepare(spec.data, cache_of(store.root.parent))
    except ValueError as error:
        raise ValueError(f"{lost}; it cannot be built again: {error}") from None
    if cache.key != spec.data_key:
        raise ValueError(
            f"{lost}; it cannot be built again: {_source(spec)} is not what it was then. "
            "Put the text back as it was, or train again"
        )
    return cache
