"""`model.from`: the weights a job's trials start from, read once and kept by their hash.

The original is a Hugging Face folder, a GGUF file, a trial's folder of ours, or an id on the hub. What was read from
where is remembered below the cache root, so that the original is read again only when it has changed; with it, the
ids its own tokenizer gives two sentences, so that a job with another tokenizer is warned of.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fabric.data import DataConfig, TokenCache
from fabric.data.corpus import neither
from fabric.data.disk import canonical_json, remembered_sha256, sha256_of, write_atomic
from fabric.job.document import Document, Path_
from fabric.job.errors import explain
from fabric.paths import real_path, there
from kernels.folders import at_home
from models.config import InitConfig, ModelConfig

if TYPE_CHECKING:
    from models import CausalLM

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
KINDS = "a Hugging Face folder, a .gguf file, a trial's folder (<out>/<job>/trials/<id>), or hub:OWNER/NAME"
# Tokenizers of one vocabulary agree on them, whatever they do with digits and line ends.
SENTENCES = ("The quick brown fox jumps over the lazy dog.", "To be, or not to be: that is the question")
_SEEN: dict[tuple[str, ...], Start] = {}


@dataclass(frozen=True)
class Start:
    """Weights to start from: their architecture, their hash (`fabric.train.start`), and where they come from.

    `ids` are those of `SENTENCES` by the tokenizer that lies beside them; None where there is none.
    """

    model: ModelConfig
    key: str
    source: str
    ids: tuple[tuple[int, ...], ...] | None = None


def find_start(name: str, folder: Path, cache_root: Path) -> Start:
    """What a job's `from` names: a path (relative to the job's folder, or to the current one), or an id on the hub.

    A file or folder that is there is read again when its content has changed; one that is gone, and an id on the hub,
    is what it was when it was last read. Raises ValueError saying what was looked for.
    """
    if not name.strip():
        raise ValueError(f"an empty name; give {KINDS}")
    if "://" in name:
        raise ValueError(
            f"{name!r} is a URL: `fabric export {name} --out FOLDER` fetches it; then give {KINDS}"
        )
    hub = name.removeprefix("hub:")
    path = at_home(Path(name))
    places = [path] if path.is_absolute() else [folder / path, Path.cwd() / path]
    places = [] if hub != name else list(dict.fromkeys(map(real_path, places)))
    for place in places:
        if place.exists():
            there(path)  # read here, and again where the job runs
            return _read(place, cache_root)
    for place in places:
        if (known := _remembered(str(place), None, cache_root)) is not None:
            return known
    if HUB_ID.fullmatch(hub):
        try:
            return _remembered(f"hub:{hub}", None, cache_root) or _keep(hub, f"hub:{hub}", "", cache_root)
        except ValueError as error:
            no_path = f"{name!r} is no path ({neither(places)}), and as an id on the hub: " if places else ""
            raise ValueError(f"{no_path}{error}") from None
    if not places:
        raise ValueError(f"{name!r} is no id on the hub; give {KINDS}")
    raise ValueError(f"{name!r} is nowhere: {neither(places)}; give {KINDS}")


def check_agreement(document: Document, start: Start) -> None:
    """Raise JobError at the first setting of a model that is not what its weights have."""
    actual = start.model.model_dump(mode="json", exclude={"init"})
    for path, given in _leaves(document.data):
        found: Any = actual
        for key in path:
            found = found.get(key, "no such setting") if isinstance(found, Mapping) else "no such setting"
        if not _same(given, found):
            message = f"{given} is not what the weights of {start.source} have ({found})"
            if path[0] == "init":
                message = f"{given} has no effect: the weights of {start.source} are there, nothing is drawn"
            message += "; leave it out (beside from, only max_seq_len may differ)"
            raise explain(document, path, message, ("base", "model"))


def vocabulary_warning(start: Start, data: DataConfig, key: str, cache_root: Path) -> str | None:
    """What to say where a job's tokenizer gives text other ids than the one the weights were trained with.

    `key` is the data's. A tokenizer that the job trains is known once its token cache is built.
    """
    if start.ids is None or (data.examples is not None and not data.examples.READS_TEXT):
        return None
    fix = f"; use the tokenizer of {start.source}: tokenizer: {{kind: file, path: its tokenizer.json}}"
    what = f"the tokenizer ({data.tokenizer.kind}) is not the one the weights were trained with"
    try:
        tokenizer = data.tokenizer.build(_untrained, cache_root)
    except _NotTrainedYet:
        try:
            tokenizer = TokenCache.open(cache_root / "tokens" / key, key).tokenizer()
        except ValueError:
            return f"{what}, unless it was trained on the same text{fix}"
    same = tuple(tuple(tokenizer.encode(text)) for text in SENTENCES) == start.ids
    return None if same else f"{what}: it gives text other ids{fix}"


class _NotTrainedYet(Exception):
    """A tokenizer asked for the text it is trained on."""


def _untrained() -> NoReturn:
    raise _NotTrainedYet


def _leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _same(given: Any, found: Any) -> bool:
    """Whether two values are one setting; numbers have many spellings (1e5 is text in YAML, a GGUF file's are fp32)."""
    if given == found or isinstance(given, bool) or isinstance(found, bool):
        return bool(given == found)
    try:
        return math.isclose(float(given), float(found), rel_tol=1e-6)
    except (TypeError, ValueError):
        return False


def _read(place: Path, cache_root: Path) -> Start:
    """The weights of a path that exists, converted unless this content was before."""
    try:
        return _unless_seen(place, cache_root)
    except OSError as error:
        raise ValueError(f"{error.filename or place} cannot be read: {error.strerror or error}") from None


def _unless_seen(place: Path, cache_root: Path) -> Start:
    files = _files(place)
    stamps = [str(place), str(cache_root)]
    stamps += [f"{f}:{s.st_size}:{s.st_mtime_ns}:{s.st_ctime_ns}" for f in files if (s := f.stat())]
    if (seen := _SEEN.get(tuple(stamps))) is None or _remembered(str(place), None, cache_root) is None:
        content = sha256_of([[f.name, remembered_sha256(f, cache_root)] for f in files])
        seen = _remembered(str(place), content, cache_root) or _keep(place, str(place), content, cache_root)
        _SEEN[tuple(stamps)] = seen
    return seen


def _files(place: Path) -> list[Path]:
    """The files whose content decides what a path's weights are. Raises ValueError where it holds no model."""
    if place.suffix == ".gguf" and place.is_file():
        return [place]
    if (place / "config.json").is_file():
        beside = [place / name for name in ("adapter_config.json", "tokenizer.json")]
        files = [place / "config.json", *(f for f in beside if f.is_file())]
        return [*files, *sorted(place.glob("*.safetensors*"))]
    if (place / "trial.json").is_file():
        return [place / "trial.json", *sorted(place.glob("attempts/*/checkpoints/*/manifest.json"))]
    if (place / "adapter_config.json").is_file():
        from models.hf.checking import check_folder

        check_folder(place)
    raise ValueError(
        f"{place} holds no model: it has no config.json (Hugging Face), is no trial's folder "
        "(<out>/<job>/trials/<id>), and no .gguf file"
    )


def _remembered(source: str, content: str | None, cache_root: Path) -> Start | None:
    """What was read from a source before, if that content (None: whatever it was then) is still kept."""
    from fabric.train.start import kept_config

    try:
        known = json.loads(_memo(source, cache_root).read_text())
        if content not in (None, known["content"]):
            return None
        config = kept_config(cache_root, known["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if config is None else _start(config, known["weights"], source, known.get("ids"))


def _start(config: ModelConfig, key: str, source: str, ids: Iterable[Iterable[int]] | None) -> Start:
    # Nothing is drawn: how it once was is no part of what is trained here.
    undrawn = config.model_copy(update={"init": InitConfig()})
    return Start(undrawn, key, source, None if ids is None else tuple(tuple(row) for row in ids))


def _keep(source: Path | str, name: str, content: str, cache_root: Path) -> Start:
    from fabric.train.start import keep_weights

    model = _model_of(source)
    key = keep_weights(model, cache_root)
    ids = _own_ids(source)
    body = {"source": name, "content": content, "weights": key, "ids": ids}
    write_atomic(_memo(name, cache_root), canonical_json(body).encode())
    return _start(model.config, key, name, ids)


def _own_ids(source: Path | str) -> list[list[int]] | None:
    """The ids of `SENTENCES` by a source's own tokenizer; None where it has none that can be read."""
    from fabric.trained import own_tokenizer

    tokenizer = own_tokenizer(source)
    return None if tokenizer is None else [tokenizer.encode(text) for text in SENTENCES]


def _model_of(source: Path | str) -> CausalLM:
    """Our model of a source. Raises ValueError where it cannot be read or converted."""
    if isinstance(source, Path) and not (source / "config.json").is_file() and source.suffix != ".gguf":
        from fabric.trained import load_trial_model

        return load_trial_model(source)
    from models.hf.files import read_pretrained

    return read_pretrained(source)


def _memo(source: str, cache_root: Path) -> Path:
    return cache_root / "weights" / "sources" / f"{sha256_of(source)[:32]}.json"
