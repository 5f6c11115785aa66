"""What decoders and encoders share: embeddings, blocks, final norm, positions. Shapes: B batch, T tokens, S all
positions so far, D model width.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from models.cache import Cache
from models.config import ModelConfig
from models.linear import Embedding
from models.mixers.base import Step
from models.norms import before_products
from models.residual import Block
from models.rope import RotaryTable
from models.shared_rows import SharedRows


class Trunk(nn.Module):
    """Token ids in, final hidden states out; which tokens see which is `config.causal`'s to say."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        D = config.d_model
        self.embed = Embedding(config.vocab_size, D)
        self.token_type_embed = Embedding(config.token_types, D) if config.token_types else None
        self.position_embed = Embedding(config.max_seq_len, D) if config.positions == "learned" else None
        self.embedding_norm = config.norm.build(D) if config.embedding_norm else None
        self.layers = nn.ModuleList(Block(config, mixer) for mixer in config.mixers)
        self.final_norm = None if config.norm_placement == "postln" else config.norm.build(D)
        rotaries = [mixer.rotary(D) for mixer in config.mixers]
        distinct = list(dict.fromkeys(r for r in rotaries if r is not None))
        self.ropes = nn.ModuleList(RotaryTable(rotary, config.max_seq_len) for rotary in distinct)
        # The table of every layer, by its place; None: no rotation.
        self.rope_of = [None if r is None else distinct.index(r) for r in rotaries]

    def run(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor | None = None,
        cache: Cache | None = None,
        token_type_ids_BT: Tensor | None = None,
        states: list[Tensor] | None = None,
        attentions: list[Tensor] | None = None,
        shared: SharedRows | None = None,
    ) -> Tensor:
        """The final (normed) hidden states_BTD; the lists collect each layer's input and attention weights_BHTS.

        `shared`: the ids are a line of the distinct tokens of these rows, (1, N), and so are the hidden states; a cache
        is the rows'. Raises ValueError for texts longer than `max_seq_len` or than the cache, and for a mask or token
        types that do not fit the ids.
        """
        B, T = input_ids_BT.shape if shared is None else shared.places_RT.shape
        start = 0 if cache is None else cache.n_tokens
        if start + T > self.config.max_seq_len:
            raise ValueError(
                f"{start + T} tokens are more than max_seq_len={self.config.max_seq_len}; "
                "give shorter texts or build the model with a larger max_seq_len"
            )
        if cache is None:
            key_mask = attention_mask_BT
            if key_mask is not None and key_mask.shape != input_ids_BT.shape:
                raise ValueError(
                    f"attention_mask has shape {tuple(key_mask.shape)}, the ids {tuple(input_ids_BT.shape)}"
                )
        else:
            key_mask = cache.admit(B, T, attention_mask_BT)
        positions_BS = _positions(key_mask)
        assert shared is None or key_mask is None, "rows that share tokens are padded on the right only"
        remembers = cache is not None
        steps = self._steps(start, T, key_mask, positions_BS, attentions, remembers, shared)
        x_BTD = self._embedded(input_ids_BT, token_type_ids_BT, start, positions_BS, shared)
        for i, layer in enumerate(self.layers):
            if states is not None:
                states.append(x_BTD)
            x_BTD = layer(x_BTD, steps[self.rope_of[i]], None if cache is None else cache.layers[i])
        if cache is not None:
            cache.n_tokens, cache.key_mask_BS = start + T, key_mask
        return before_products(self.final_norm, x_BTD)

    def _embedded(
        self,
        ids_BT: Tensor,
        token_type_ids_BT: Tensor | None,
        start: int,
        positions_BS: Tensor | None,
        shared: SharedRows | None,
    ) -> Tensor:
        x_BTD = self.embed(ids_BT)
        if self.token_type_embed is not None:
            # One row for all tokens when no types are given: those of type 0.
            types = self.token_type_embed
            x_BTD = x_BTD + (types.weight[0] if token_type_ids_BT is None else types(token_type_ids_BT))
        elif token_type_ids_BT is not None:
            raise ValueError(
                "token_type_ids were given to a model without segment embeddings; leave them out or set "
                "token_types to their number"
            )
        if self.position_embed is not None:
            table = self.position_embed
            if shared is not None:
                x_BTD = x_BTD + table(start + shared.positions_N)
            elif positions_BS is not None:
                x_BTD = x_BTD + table(positions_BS[:, start:])
            else:
                x_BTD = x_BTD + table.weight[start : start + ids_BT.shape[1]]
        return x_BTD if self.embedding_norm is None else self.embedding_norm(x_BTD)

    def _steps(
        self,
        start: int,
        n: int,
        key_mask_BS: Tensor | None,
        positions_BS: Tensor | None,
        attentions: list[Tensor] | None,
        remembers: bool,
        shared: SharedRows | None,
    ) -> dict[int | None, Step]:
        """What to tell the layers of every table (None: those without one)."""
        plain = Step(
            start, key_mask_BS=key_mask_BS, attentions=attentions, causal=self.config.causal, shared=shared
        )
        steps: dict[int | None, Step] = {None: plain}
        for i, rope in enumerate(self.ropes):
            assert isinstance(rope, RotaryTable)
            if positions_BS is None:
                rotation = rope.at(start, n)
                all_rotation = rope.at(0, start + n) if remembers else None
            else:
                rotation = rope.at_positions(positions_BS[:, start:])
                all_rotation = rope.at_positions(positions_BS) if remembers else None
            steps[i] = replace(plain, rotation=rotation, all_rotation=all_rotation)
        return steps


def _positions(key_mask_BS: Tensor | None) -> Tensor | None:
    """The first token of a text stands at 0 however much padding is left of it; None: as the tokens lie."""
    return None if key_mask_BS is None else (key_mask_BS.long().cumsum(-1) - 1).clamp_min(0)
