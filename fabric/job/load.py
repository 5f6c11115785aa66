"""Load a job: read the file, lay its scale and the overrides on, validate, and turn arms into configurations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fabric.data import vocab_size
from fabric.data.config import DataConfig, parts_of
from fabric.evaluate.config import PLACES, EvaluateConfig
from fabric.job.document import Document, JobError, Mark, from_data, read_yaml
from fabric.job.errors import explain, unknown_keys, validate
from fabric.job.overlay import check_form, lay_scale, lay_set
from fabric.job.schema import SECTIONS, BaseSection, JobConfig, base_path
from fabric.job.start import Start, check_agreement, find_start
from fabric.paths import real_path, there
from fabric.train.config import TrainConfig
from fabric.train.objectives.base import ObjectiveConfig
from kernels.folders import at_home, default_cache_root
from models.config import ModelConfig
from models.parts import meant, nearest
from models.presets import PRESETS


@dataclass(frozen=True)
class Override:
    """One value put at one path, and where it was written."""

    path: str
    value: Any
    mark: Mark


@dataclass(frozen=True)
class Configuration:
    """One arm's complete settings, before a seed and a data key make trials of it; `start`: weights it begins with.

    `auto`: fields of `train` that the job left to the machine, decided by now.
    """

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    start: Start | None = None
    auto: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Job:
    """A validated job with the document it came from (every value still knows its line)."""

    config: JobConfig
    document: Document
    source: Path | None
    scale: str | None
    cache: Path

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def threads(self) -> int:
        """Threads a trial: its CPUs, one unless the job says otherwise."""
        given = self.config.resources.cpus_per_worker
        return 1 if given == "auto" else given

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """What a trial computes on."""
        return "cuda" if self.config.resources.gpus_per_worker else "cpu"

    def configure(self, overrides: Sequence[Override] = ()) -> Configuration:
        """The configuration of an arm: the base with overrides laid on, in order.

        Raises JobError with the line of whatever is wrong, be it in the base, a preset or an override.
        """
        base = self.document.sub(("base",))
        for override in overrides:
            path = base_path(override.path)
            if path[0] != "base":
                message = (
                    f"{override.path!r} is not below {', '.join(SECTIONS)}{meant(str(path[0]), SECTIONS)}"
                )
                raise JobError([f"{override.mark}: {message}"])
            base.put(path[1:], from_data(override.value, override.mark))
        section = validate(BaseSection, base, ("base",))
        folder = self.source.parent if self.source else Path.cwd()
        data = _with_paths(section.data, folder, base)
        evaluate = _evaluate_paths(section.evaluate, folder, base)
        start, objective = self._start(base, folder), section.train.objective
        if start is None:
            model = self._model(base, data, objective)
        else:
            model = _started_model(base, data, start, objective)
        try:
            objective = objective.for_data(data)
        except ValueError as error:
            named = ("train", "objective") if base.has(("train", "objective")) else ("data", "examples")
            raise explain(base, named, str(error), ("base",)) from None
        evaluate = _measurable(evaluate, objective, base)
        _check_lengths(base, model.max_seq_len, data.seq_len, evaluate)
        train = section.train.model_copy(update={"objective": objective})
        _check_lora(base, train, model, start)
        auto = tuple(name for name in ("precision", "compile") if getattr(train, name) == "auto")
        if auto:
            from fabric.planning.machine_speed import resolved

            train = resolved(train, model, data.seq_len, self.device, self.threads, data.n_asked)
        try:
            self.config.resources.check(train, self.device)
            self.config.resources.cpus_for_data(data.stream is not None)
        except ValueError as error:
            raise explain(self.document, ("resources",), str(error)) from None
        return Configuration(model, data, train, evaluate, start, auto)

    def _start(self, base: Document, folder: Path) -> Start | None:
        """The weights that `model.from` names."""
        name = base.sub(("model",)).data.get("from")
        if name is None:
            return None
        if not isinstance(name, str):
            message = f"{name!r} is no text; give a path, or hub:OWNER/NAME"
            raise explain(base, ("model", "from"), message, ("base",))
        try:
            return find_start(name, folder, self.cache)
        except ValueError as error:
            raise explain(base, ("model", "from"), str(error), ("base",)) from None

    def _model(self, base: Document, data: DataConfig, objective: ObjectiveConfig) -> ModelConfig:
        document = _model_document(base)
        given_vocabulary = base.sub(("model",)).data.get("vocab_size")
        size = _vocab_size(base, data)
        needed = size + objective.EXTRA_IDS
        if given_vocabulary is None:
            document.data["vocab_size"] = needed
        elif isinstance(given_vocabulary, int) and given_vocabulary < needed:
            extra = (
                f" and {objective.EXTRA_IDS} for objective {objective.kind}" if objective.EXTRA_IDS else ""
            )
            whose = "the tokenizer's" if data.examples is None else "the examples'"
            raise explain(
                base, ("model", "vocab_size"),
                f"{given_vocabulary} is smaller than {whose} {size}{extra}; leave it out or raise it",
                ("base",),
            )  # fmt: skip
        model: ModelConfig = validate(ModelConfig, document, ("base", "model"))
        try:
            objective.check_model(model)
        except ValueError as error:
            if model.causal:  # the objective is what was written
                raise explain(base, ("train", "objective"), str(error), ("base",)) from None
            raise explain(document, ("causal",), str(error), ("base", "model")) from None
        return model


def _model_document(base: Document, whole: bool = False) -> Document:
    """What is said about the model, laid on its preset; `whole`: on all the preset says of weights that exist."""
    given = base.sub(("model",))
    name = given.data.pop("preset", None)
    given.data.pop("from", None)
    document = Document({})
    if name is not None:
        if not isinstance(name, str) or name not in PRESETS:
            message = f"no preset {name!r}{meant(str(name), list(PRESETS))} (allowed: {', '.join(PRESETS)})"
            raise explain(base, ("model", "preset"), message, ("base",))
        preset = PRESETS[name]
        body = preset if isinstance(preset, Mapping) else preset.model_dump()
        if whole:
            body = ModelConfig.model_validate(body).model_dump(mode="json", exclude={"init"})
        mark = base.mark(("model", "preset"))
        document = from_data(dict(body), Mark(f"{mark} (preset {name})"))
    for key in given.data if name is None else ():
        known = [*ModelConfig.model_fields, "preset", "from"]
        if key not in known and nearest(key, known) in ("preset", "from"):
            message = f"unknown key {key!r}{meant(key, known)}"
            raise explain(base, ("model", key), message, ("base",))
    document.merge(given)
    return document


def _started_model(base: Document, data: DataConfig, start: Start, objective: ObjectiveConfig) -> ModelConfig:
    """The architecture of the weights, with the job's `max_seq_len`; whatever else is written must agree with it."""
    document = _model_document(base, whole=True)
    longest = document.data.pop("max_seq_len", start.model.max_seq_len)
    check_agreement(document, start)
    size = _vocab_size(base, data)
    if data.examples is not None and size > start.model.vocab_size:
        raise explain(
            base, ("data", "examples"),
            f"its {size} ids are more than the {start.model.vocab_size} of the weights in {start.source}; take fewer",
            ("base",),
        )  # fmt: skip
    if size > start.model.vocab_size:
        raise explain(
            base, ("data", "tokenizer"),
            f"its {size} ids are more than the {start.model.vocab_size} of the weights in {start.source}; use the "
            "tokenizer they were trained with: tokenizer: {kind: file, path: its tokenizer.json}", ("base",),
        )  # fmt: skip
    body = Document({**start.model.model_dump(exclude_unset=True), "max_seq_len": longest}, document.marks)
    model: ModelConfig = validate(ModelConfig, body, ("base", "model"))
    try:
        objective.check_model(model)
    except ValueError as error:
        raise explain(base, ("train", "objective"), str(error), ("base",)) from None
    return model


def _vocab_size(base: Document, data: DataConfig) -> int:
    try:
        return vocab_size(data)
    except ValueError as error:
        raise explain(base, ("data", "tokenizer"), str(error), ("base",)) from None


def _check_lengths(base: Document, longest: int, seq_len: int, evaluate: EvaluateConfig) -> None:
    """Every text a trial was told to read or write must fit its model; what the job leaves out may not fit."""
    asked: list[tuple[tuple[str | int, ...], int]] = [(("data", "seq_len"), seq_len)]
    asked += [(("evaluate", "lengths", i), n) for i, n in enumerate(evaluate.lengths)]
    path = ("evaluate", "samples", "tokens")
    if evaluate.samples is not None and base.has(path):
        asked.append((path, evaluate.samples.tokens + 1))
    for where, length in asked:
        if length > longest:
            raise explain(
                base, where,
                f"{length} tokens are more than the model's max_seq_len={longest}; shorten it or raise "
                "model.max_seq_len", ("base",),
            )  # fmt: skip


def _measurable(evaluate: EvaluateConfig, objective: ObjectiveConfig, base: Document) -> EvaluateConfig:
    """Measurements of a causal model of text only: off for any other, and an error where the job asks for one."""
    labelled = objective.ROWS == "examples"
    if objective.CAUSAL and not labelled:
        return evaluate
    why = f"needs a causal language model, and objective {objective.kind} trains an encoder; leave it out"
    if labelled:
        why = f"needs a text, and objective {objective.kind} is trained on labelled examples; leave it out"
    for name in ("recall", "samples", "minimal_pairs", "tasks", *(("lengths",) if labelled else ())):
        if base.has(("evaluate", name)) and getattr(evaluate, name) not in (None, False, ()):
            raise explain(base, ("evaluate", name), why, ("base",))
    off = {"recall": False, "samples": None, **({"lengths": ()} if labelled else {})}
    return evaluate.model_copy(update=off)


def _check_lora(base: Document, train: TrainConfig, model: ModelConfig, start: Start | None) -> None:
    """Raise JobError for an adaptation of nothing, or of matrices that are not there."""
    if train.lora is None:
        return
    if start is None:
        message = (
            "adapts weights that exist, and the model's are drawn; name some (model.from), or leave lora out"
        )
        raise explain(base, ("train", "lora"), message, ("base",))
    from models.decoder import uninitialised  # with torch
    from models.lora import adaptable

    known = adaptable(uninitialised(model, "meta"))
    for i, name in enumerate(train.lora.targets):
        if name not in known:
            message = (
                f"no matrix of the model is called {name!r} (allowed: {', '.join(known)}){meant(name, known)}"
            )
            raise explain(base, ("train", "lora", "targets", i), message, ("base",))


def _with_paths(data: DataConfig, folder: Path, base: Document) -> DataConfig:
    found = {}
    for part in parts_of(data):
        try:
            found[part] = getattr(data, part).resolved(folder)
        except ValueError as error:
            raise explain(base, ("data", part), str(error), ("base",)) from None
    return data.model_copy(update=found)


def _evaluate_paths(evaluate: EvaluateConfig, folder: Path, base: Document) -> EvaluateConfig:
    for name in PLACES:
        given = getattr(evaluate, name)
        if given is not None:
            evaluate = evaluate.model_copy(update={name: _found(given, name, folder, base)})
    if evaluate.tasks and there(folder.absolute()) is None:
        from fabric.evaluate.in_trial import load_tasks  # with scipy

        try:
            load_tasks(evaluate)
        except ValueError as error:
            raise explain(base, ("evaluate", "tasks"), str(error), ("base",)) from None
    return evaluate


def _found(given: Path, name: str, folder: Path, base: Document) -> Path:
    """A path of the evaluate section, looked up beside the job file, then in the current folder."""
    try:
        if there(at_home(given)) is not None:
            return given
    except ValueError as error:
        raise explain(base, ("evaluate", name), str(error), ("base",)) from None
    places = [folder / at_home(given), at_home(given)]
    for place in places:
        if place.exists():
            return real_path(place)
    message = f"nothing is at {' or '.join(dict.fromkeys(str(p.absolute()) for p in places))}"
    raise explain(base, ("evaluate", name), message, ("base",))


def load_job(
    source: str | Path | Mapping[str, Any],
    scale: str | None = None,
    overrides: Iterable[str] = (),
    cache: Path | None = None,
) -> Job:
    """Load a job file (or a mapping of the same form) at a scale, with `--set path=value` overrides.

    `cache` is where weights that `model.from` names are kept (the user's own cache folder by default).
    Raises JobError: one line a mistake, with file, line, key, what is allowed and the nearest valid name.
    """
    if isinstance(source, Mapping):
        path, document = None, from_data(source, Mark("job"))
    else:
        path = Path(source)
        document = read_yaml(path)
    scales = document.sub(("scales",))
    document.data.pop("scales", None)
    document.marks = {p: m for p, m in document.marks.items() if p[:1] != ("scales",)}
    if not isinstance(scales.data, dict):
        raise explain(scales, (), "must be a mapping of scale names to overrides", ("scales",))
    check_form(scales)
    others = [n for n in scales.data if n != scale and scales.data[n]]
    written = document.copy() if others else document
    lay_scale(document, scales, scale)
    for text in overrides:
        lay_set(document, text)
    config = validate(JobConfig, document)
    job = Job(config, document, path, scale, cache or default_cache_root())
    job.configure()
    for name in others:
        _check_paths(written.copy(), scales, name)
    return job


def scale_names(source: str | Path) -> list[str]:
    """The names of a job file's scales."""
    scales = read_yaml(Path(source)).data.get("scales") or {}
    return list(scales)


def _check_paths(document: Document, scales: Document, name: str) -> None:
    """A scale that was not asked for must point somewhere too; its values are looked at when it is."""
    lay_scale(document, scales, name)
    lines = unknown_keys(JobConfig, document)
    base = document.sub(("base",))
    if isinstance(base.data, dict) and isinstance(base.data.get("model"), dict):
        lines += unknown_keys(ModelConfig, _model_document(base), ("base", "model"))
    if lines:
        raise JobError(lines)
