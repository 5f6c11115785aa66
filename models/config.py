"""The configuration of a language model: what `build` needs to know, checked before anything is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from models.ffns.base import FFNConfig
from models.mixers.base import ROPE_FIELDS, MixerConfig
from models.norms import NormConfig
from models.parts import Config, union_of

__all__ = ["FFNConfig", "InitConfig", "MixerConfig", "ModelConfig", "NormConfig", "NormPlacement", "warnings"]

# A pydantic union at run time; for the type checker, its base class.
if TYPE_CHECKING:
    AnyMixer = MixerConfig
    AnyFFN = FFNConfig
else:
    AnyMixer = union_of("models.mixers", MixerConfig)
    AnyFFN = union_of("models.ffns", FFNConfig)

# Far beyond any decoder that was built; without them a slip of the pen reaches torch's allocator.
MOST_TAPS = 64
MOST_IDS, MOST_WIDTH, MOST_LAYERS, MOST_POSITIONS = 2**24, 2**18, 10_000, 2**22

_MIXER: TypeAdapter[MixerConfig] = TypeAdapter(AnyMixer)

NormPlacement = Literal["pre", "post", "sandwich", "postln"]


class InitConfig(Config):
    """Initial values: matrices and embeddings normal(0, std), norm weights 1, biases 0.

    `std` None: 1/sqrt(d_model) (SmolLM2). `depth_scaled`: the two projections that write to the residual
    stream get std / sqrt(2 n_layers) (GPT-2). Each parameter is drawn by a generator keyed (seed, parameter
    name).
    """

    std: float | None = Field(default=0.02, gt=0)
    depth_scaled: bool = False


class ModelConfig(Config):
    """A decoder: token embedding, `n_layers` blocks of mixer and feed-forward layer, final norm, output head.
    With `causal` false an encoder: every token sees those before and after it, and there is no output head.

    `norm_placement`, with F the mixer or feed-forward layer and N a norm: "pre" x + F(N(x)); "post" x +
    N(F(x)) (OLMo 2, arXiv 2501.00656); "sandwich" x + N(F(N(x))) (arXiv 2105.13290); "postln" N(x + F(x))
    (arXiv 1706.03762; the only one without a final norm).

    `positions` "learned" adds an embedding of each token's place, counted from the text's first token (GPT-2, BERT);
    `token_types` embeds that many kinds of segment (BERT; encoders only); `embedding_norm` puts a norm after all of
    them.
    `mixer_pattern`: mixers that differ between layers, layer i has entry i mod its length. An entry is a
    whole mixer with a `kind`, or overrides laid on `mixer`; stored are whole mixers.
    `short_conv`: taps of a causal depthwise convolution in front of every mixer (arXiv 2312.04927); None: none.
    """

    vocab_size: int = Field(gt=0, le=MOST_IDS)
    d_model: int = Field(gt=0, le=MOST_WIDTH)
    n_layers: int = Field(gt=0, le=MOST_LAYERS)
    max_seq_len: int = Field(default=2048, gt=0, le=MOST_POSITIONS)
    mixer: AnyMixer
    ffn: AnyFFN
    norm: NormConfig = NormConfig()
    norm_placement: NormPlacement = "pre"
    tie_embeddings: bool = True
    init: InitConfig = InitConfig()
    causal: bool = True
    positions: Literal["none", "learned"] = "none"
    embedding_norm: bool = False
    token_types: int = Field(default=0, ge=0, le=MOST_WIDTH)
    mixer_pattern: tuple[AnyMixer, ...] | None = Field(default=None, min_length=1)
    short_conv: int | None = Field(default=None, ge=2, le=MOST_TAPS)

    @model_validator(mode="before")
    @classmethod
    def _lay_pattern_on_mixer(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not isinstance(data.get("mixer_pattern"), list | tuple):
            return data
        try:
            mixer = _MIXER.validate_python(data.get("mixer")).model_dump(exclude_unset=True)
        except ValidationError:  # reported for the mixer itself; every entry would repeat it
            return {key: value for key, value in data.items() if key != "mixer_pattern"}
        return {**data, "mixer_pattern": [_laid_on(mixer, entry) for entry in data["mixer_pattern"]]}

    @model_validator(mode="after")
    def _suits_its_direction(self) -> ModelConfig:
        if not self.causal and self.short_conv:
            raise ValueError(
                f"short_conv={self.short_conv} reads a text in one direction only, and causal=False: leave short_conv "
                "out, or causal at true"
            )
        if self.causal:
            if self.token_types:
                raise ValueError(
                    f"token_types={self.token_types} belongs to encoders; leave it out, or set causal to false"
                )
            return self
        for mixer in (self.mixer, *self.mixers):
            if mixer.CAUSAL_ONLY:
                raise ValueError(
                    f"causal=False: mixer {mixer.kind!r} reads a text in one direction only; leave causal at true, or "
                    "take an attention mixer"
                )
        if not self.tie_embeddings:
            raise ValueError(
                "tie_embeddings=False has no effect on an encoder, which has no output matrix of its own; leave it at "
                "true"
            )
        return self

    @model_validator(mode="after")
    def _mixers_fit_width(self) -> ModelConfig:
        self.mixer.check(self.d_model)
        for i, mixer in enumerate(self.mixer_pattern or ()):
            try:
                mixer.check(self.d_model)
            except ValueError as error:  # it speaks of the model's one mixer
                raise ValueError(str(error).replace("mixer.", f"mixer_pattern[{i}].")) from None
        return self

    @property
    def mixers(self) -> tuple[MixerConfig, ...]:
        """The mixer of every layer."""
        pattern = self.mixer_pattern or (self.mixer,)
        return tuple(pattern[i % len(pattern)] for i in range(self.n_layers))

    def replace(self, **changes: Any) -> ModelConfig:
        """A validated copy with fields changed; a dict for `mixer` or `ffn` replaces that part whole.

        Raises ValueError for a new `mixer` beside an old `mixer_pattern`, whose entries are whole.
        """
        if "mixer" in changes and self.mixer_pattern and "mixer_pattern" not in changes:
            raise ValueError(
                "a new mixer would reach no layer: mixer_pattern holds whole mixers; give mixer_pattern too "
                "(None for the same mixer everywhere)"
            )
        return ModelConfig.model_validate({**self.model_dump(), **changes})


def _laid_on(mixer: dict[str, Any], entry: Any) -> Any:
    """An entry of a pattern with what it leaves out taken from the mixer; whole mixers stay as they are."""
    if not isinstance(entry, Mapping) or "kind" in entry:
        return entry
    if entry.get("position") == "nope":  # the mixer's rotation is meant for the layers that rotate
        mixer = {name: value for name, value in mixer.items() if name not in ROPE_FIELDS}
    return {**mixer, **entry}


def warnings(config: ModelConfig, seq_len: int) -> list[str]:
    """What a configuration says that has no effect on texts of `seq_len` tokens, or hardly what was meant; one
    sentence each.
    """
    found = []
    windows: dict[int, list[str]] = {}
    for i, mixer in enumerate(config.mixers[: len(config.mixer_pattern or (0,))]):
        if mixer.window is not None and mixer.window >= seq_len:
            windows.setdefault(mixer.window, []).append(f"mixer_pattern[{i}]")
    for window, entries in windows.items():
        name = (
            f"window={window} of {', '.join(entries)}" if config.mixer_pattern else f"mixer.window={window}"
        )
        found.append(
            f"{name} has no effect: texts have {seq_len} tokens, so every "
            f"{'earlier ' if config.causal else ''}token is visible; use a window below {seq_len} or longer texts"
        )
    rotates = any(mixer.rotary(config.d_model) for mixer in config.mixers)
    if not config.causal and config.positions == "none" and not rotates:
        found.append(
            "the encoder knows no order: no layer has positions and positions is none; set positions to learned"
        )
    return found + _unused_by_pattern(config)


def _unused_by_pattern(config: ModelConfig) -> list[str]:
    """Entries beyond the last layer, and fields of the mixer that every entry in use overrides."""
    if config.mixer_pattern is None:
        return []
    found = []
    n_used, n_entries = min(config.n_layers, len(config.mixer_pattern)), len(config.mixer_pattern)
    if n_used < n_entries:
        found.append(
            f"mixer_pattern has {n_entries} entries for {n_used} layers: those from [{n_used}] on have no "
            "effect; leave them out or use more layers"
        )
    used = config.mixer_pattern[:n_used]
    for name, field in type(config.mixer).model_fields.items():
        value = getattr(config.mixer, name)
        if value != field.default and not any(getattr(mixer, name, None) == value for mixer in used):
            found.append(
                f"mixer.{name}={value} has no effect: every entry of mixer_pattern has its own {name}"
            )
    return found
