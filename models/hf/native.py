"""Our decoder as a `transformers` class, for every architecture that transformers lacks.

`AutoConfig` and `AutoModelForCausalLM` know both classes once this module (or `models.hf`) is imported. The weights
are those of `models.CausalLM` under the prefix `model.`. Shapes: B batch, T tokens, N vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache as HFCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from models.cache import Cache
from models.config import ModelConfig
from models.decoder import CausalLM, initialise
from models.rope import RotaryTable

LEAST_ROOM = 64  # tokens a cache starts with; it doubles when they are used up
# Names that tools look for, and write back into the file; they are read from the architecture.
DERIVED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


class FabricConfig(PreTrainedConfig):
    """`model` is a `models.ModelConfig` as a dict (fields at their default may be missing); the names that tools look
    for are read from it.

    Raises ValueError for a `model` that is not one, and for such a name beside it with another value.
    """

    model_type = "fabric"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' way to say it)

    model: dict[str, Any] | None = None
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.model is not None:
            self.model = self.architecture.model_dump(mode="json", exclude_defaults=True)
            self.tie_word_embeddings = self.architecture.tie_embeddings
        for name in DERIVED:
            if name in kwargs and (given := kwargs.pop(name)) != (found := getattr(self, name)):
                raise ValueError(f"{name}={given!r} is not what model has ({found}); leave {name} out")
        super().__post_init__(**kwargs)

    @property
    def architecture(self) -> ModelConfig:
        """The configuration `models.build` takes."""
        if self.model is None:
            raise ValueError(
                "this FabricConfig names no architecture; give model=config.model_dump() of a models.ModelConfig"
            )
        return ModelConfig.model_validate(self.model)

    @property
    def vocab_size(self) -> int:
        return self.architecture.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.architecture.d_model

    @property
    def num_hidden_layers(self) -> int:
        return self.architecture.n_layers

    @property
    def num_attention_heads(self) -> int | None:
        return getattr(self.architecture.mixer, "n_heads", None)

    @property
    def max_position_embeddings(self) -> int:
        return self.architecture.max_seq_len


class FabricCache(HFCache):
    """Our cache behind transformers' interface: the model's first pass makes it, it grows with the text."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.ours: Cache | None = None

    def admit(self, model: CausalLM, batch_size: int, n_new: int) -> Cache:
        """Our cache with room for the new tokens, as far as the model's longest text goes."""
        longest = model.config.max_seq_len
        if self.ours is None:
            self.ours = model.new_cache(batch_size, min(longest, max(LEAST_ROOM, n_new)))
        needed = self.ours.n_tokens + n_new
        if self.ours.capacity < needed <= longest:
            self.ours.grow(min(longest, max(needed, 2 * self.ours.capacity)))
        return self.ours

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0 if self.ours is None else self.ours.n_tokens

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.ours is not None:
            self.ours.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.reorder_cache(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        # transformers gives what is to go, as a negative number or not.
        if self.ours is not None:
            self.ours.forget_last(abs(tokens_to_remove))

    def reset(self) -> None:
        self.ours = None

    @property
    def is_initialized(self) -> bool:
        return self.ours is not None

    @property
    def batch_size(self) -> int:
        return -1 if self.ours is None else self.ours.batch_size


class FabricForCausalLM(PreTrainedModel, GenerationMixin):
    """`models.CausalLM` with the methods of a transformers model; `model` is ours, and shares its weights.

    Built from a config alone it gets our initial values, from a seed drawn by torch's global generator.
    """

    config_class = FabricConfig
    config: FabricConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False

    def __init__(self, config: FabricConfig, model: CausalLM | None = None) -> None:
        super().__init__(config)
        self.model = CausalLM(config.architecture) if model is None else model
        for parameter in () if model is None else model.parameters():
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
        self.post_init()

    @classmethod
    def wrap(cls, model: CausalLM) -> FabricForCausalLM:
        """A model of ours as one of transformers', on the same weights."""
        config = FabricConfig(
            model=model.config.model_dump(exclude_defaults=True), architectures=[cls.__name__]
        )
        config.dtype = model.embed.weight.dtype
        return cls(config, model).train(model.training)

    def _prepare_cache_for_generation(  # type: ignore[override]  # what else it is told changes with the version
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Called by `generate`: transformers' own caches hold keys and values only, no latents."""
        asked = generation_config.cache_implementation
        if asked is not None:
            raise ValueError(
                f"cache_implementation={asked!r} is one of transformers' caches; leave it out: this model "
                "remembers windows and latents in a cache of its own"
            )
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = FabricCache()

    def _init_weights(self, module: nn.Module) -> None:
        """Called for every module with weights or buffers of its own that were not loaded."""
        if isinstance(module, RotaryTable):
            module.fill()
        blank = {id(p) for p in module.parameters(False) if not getattr(p, "_is_hf_initialized", False)}
        if blank:
            names = [name for name, p in self.model.named_parameters() if id(p) in blank]
            initialise(self.model, int(torch.randint(2**31, (1,))), names)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed

    def get_output_embeddings(self) -> nn.Module | None:
        return self.model.lm_head

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Any:
        """Raises ValueError for another size than the model's: the vocabulary is part of its architecture."""
        size = wanted = self.config.vocab_size
        if new_num_tokens is not None:
            wanted = new_num_tokens
        if pad_to_multiple_of is not None:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted != size:
            raise ValueError(
                f"the vocabulary of {size} cannot be resized to {wanted}; build the architecture anew with vocab_size "
                "changed, and copy what stays"
            )
        return self.model.embed

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: FabricCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T or `logits_to_keep`, N), and the mean loss of labels (-100: none), which are shifted here.

        The loss is the sum over `num_items_in_batch` where that is given. `attention_mask` (B, tokens so far), 1 for
        text; positions follow from it. With `use_cache` (by default outside of autograd), ids follow on what
        `past_key_values` holds. Raises ValueError for another library's cache, a mask of other form, labels beside
        `logits_to_keep`, and texts longer than `max_position_embeddings`.
        """
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("labels need the logits of every token; leave logits_to_keep out beside them")
        cache = self._cache_for(past_key_values, use_cache)
        wants_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        wants_weights = self.config.output_attentions if output_attentions is None else output_attentions
        ours = None if cache is None else cache.admit(self.model, *input_ids.shape)
        mask = _padding(attention_mask, ours)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        states = attentions = None
        if wants_states or wants_weights:
            out = self.model(input_ids, mask, ours, wants_states, wants_weights)
            logits, states, attentions = out.logits[:, keep], out.hidden_states, out.attentions
        else:
            x_BTD = self.model.hidden(input_ids, mask, ours)
            logits = F.linear(x_BTD[:, keep], self.model.lm_head_weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=cache, hidden_states=states, attentions=attentions
        )

    def _cache_for(self, given: FabricCache | None, use_cache: bool | None) -> FabricCache | None:
        """The cache to write to; None for a pass without one."""
        if given is not None and not isinstance(given, FabricCache):
            raise ValueError(
                f"past_key_values is a {type(given).__name__}; pass what an earlier call returned, or None: this "
                "model remembers windows and latents in a cache of its own"
            )
        if use_cache is None:
            use_cache = given is not None or (self.config.use_cache and not torch.is_grad_enabled())
        if not use_cache and given is not None:
            raise ValueError("use_cache=False and past_key_values exclude each other; pass one of them")
        if not use_cache:
            return None
        return FabricCache() if given is None else given


def _padding(mask: Tensor | None, cache: Cache | None) -> Tensor | None:
    """The mask where it masks anything: without padding the faster causal paths apply."""
    if mask is None:
        return None
    if mask.ndim != 2:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}; give (batch, tokens), 1 for text and 0 for padding"
        )
    padded_before = cache is not None and cache.key_mask_BS is not None
    return mask if padded_before or not bool(mask.all()) else None


AutoConfig.register(FabricConfig.model_type, FabricConfig, exist_ok=True)
AutoModelForCausalLM.register(FabricConfig, FabricForCausalLM, exist_ok=True)
