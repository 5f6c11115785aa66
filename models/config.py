"""The configuration of a language model: what `build` needs to know, checked before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from models.ffns.base import FFNConfig
from models.mixers.base import MixerConfig
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
MOST_IDS, MOST_WIDTH, MOST_LAYERS, MOST_POSITIONS = 2**24, 2**18, 10_000, 2**22

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

    @model_validator(mode="after")
    def _suits_its_direction(self) -> ModelConfig:
        if self.causal:
            if self.token_types:
                raise ValueError(
                    f"token_types={self.token_types} belongs to encoders; leave it out, or set causal to false"
                )
            return self
        if self.mixer.CAUSAL_ONLY:
            raise ValueError(
                f"causal=False: mixer {self.mixer.kind!r} reads a text in one direction only; leave causal at true, or "
                "take an attention mixer"
            )
        if not self.tie_embeddings:
            raise ValueError(
                "tie_embeddings=False has no effect on an encoder, which has no output matrix of its own; leave it at "
                "true"
            )
        return self

    @model_validator(mode="after")
    def _mixer_fits_width(self) -> ModelConfig:
        self.mixer.check(self.d_model)
        return self

    def replace(self, **changes: Any) -> ModelConfig:
        """A validated copy with fields changed; a dict for `mixer` or `ffn` replaces that part whole."""
        return ModelConfig.model_validate({**self.model_dump(), **changes})


def warnings(config: ModelConfig, seq_len: int) -> list[str]:
    """What a configuration says that has no effect on texts of `seq_len` tokens, or hardly what was meant; one
    sentence each.
    """
    found, window = [], config.mixer.window
    if window is not None and window >= seq_len:
        found.append(
            f"mixer.window={window} has no effect: texts have {seq_len} tokens, so every "
            f"{'earlier ' if config.causal else ''}token is visible; use a window below {seq_len} or longer texts"
        )
    if not config.causal and config.positions == "none" and not config.mixer.rotated_width(config.d_model):
        found.append(
            "the encoder knows no order: its mixer has no positions and positions is none; set positions to learned"
        )
    return found
