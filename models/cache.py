"""What a model remembers of a text while decoding: the key/value cache.

Shapes: B batch, S remembered positions. Each layer keeps tensors (B, capacity, …), allocated once. A sliding
window W keeps min(capacity, W) positions in a ring: position p lives in slot p mod W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from models.config import ModelConfig


class LayerState:
    """The remembered tensors of one layer; `conv` is the state of the short convolution in front of its mixer."""

    def __init__(self, tensors: Sequence[Tensor], window: int | None, conv: LayerState | None = None) -> None:
        self.tensors = tuple(tensors)
        self.conv = conv
        self.n_slots = self.tensors[0].shape[1] if self.tensors else 0
        self.is_ring = window is not None and window <= self.n_slots

    def append(self, new: Sequence[Tensor], start: int, ordered: bool) -> tuple[Tensor, ...]:
        """Store tensors (B, T, …) of positions start … start+T-1; return all (B, S, …) that the T queries may
        see.

        They come in order of position, so that the queries are the last T of S. Only one query over a full
        ring without `ordered` gets the slots as they lie: all of them are visible, their order does not
        matter.
        """
        n_new = new[0].shape[1]
        if not self.is_ring:
            for kept, x in zip(self.tensors, new, strict=True):
                kept[:, start : start + n_new] = x
            return tuple(kept[:, : start + n_new] for kept in self.tensors)
        if n_new == 1 and not (ordered and start >= self.n_slots):
            slot = start % self.n_slots
            for kept, x in zip(self.tensors, new, strict=True):
                kept[:, slot : slot + 1] = x
            return tuple(kept[:, : start + 1] for kept in self.tensors)
        return self._append_to_ring(new, start, n_new)

    def _append_to_ring(self, new: Sequence[Tensor], start: int, n_new: int) -> tuple[Tensor, ...]:
        device = new[0].device
        n_old = min(start, self.n_slots - 1)
        old_slots = torch.arange(start - n_old, start, device=device) % self.n_slots
        n_stored = min(n_new, self.n_slots)
        new_slots = torch.arange(start + n_new - n_stored, start + n_new, device=device) % self.n_slots
        seen = []
        for kept, x in zip(self.tensors, new, strict=True):
            seen.append(torch.cat((kept[:, old_slots], x), dim=1))
            kept[:, new_slots] = x[:, n_new - n_stored :].to(kept.dtype)
        return tuple(seen)


class Cache:
    """The states of all layers for a batch of texts of up to `capacity` tokens.

    Written by the model it is passed to; `n_tokens` is how many tokens it has seen. `capacity` defaults to
    the config's `max_seq_len`. Raises ValueError for a capacity outside 1 … max_seq_len.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int = 1,
        capacity: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        capacity = config.max_seq_len if capacity is None else capacity
        if not 1 <= capacity <= config.max_seq_len:
            raise ValueError(f"cache capacity {capacity} is outside 1 … max_seq_len={config.max_seq_len}")
        self.config, self.batch_size, self.capacity, self.n_tokens = config, batch_size, capacity, 0
        self.key_mask_BS: Tensor | None = None
        self.layers = [
            LayerState(
                [
                    torch.zeros(batch_size, mixer.n_slots(capacity), *shape, dtype=dtype, device=device)
                    for shape in mixer.state_shapes(config.d_model)
                ],
                mixer.window,
                self._conv_state(dtype, device),
            )
            for mixer in config.mixers
        ]

    def _conv_state(self, dtype: torch.dtype, device: torch.device | str | None) -> LayerState | None:
        """The last inputs of a short convolution, in a ring as a window's."""
        n_taps = self.config.short_conv
        if n_taps is None:
            return None
        shape = (self.batch_size, min(self.capacity, n_taps), self.config.d_model)
        return LayerState([torch.zeros(shape, dtype=dtype, device=device)], n_taps)

    @property
    def _states(self) -> list[LayerState]:
        """The mixers' states, then the convolutions'."""
        return [*self.layers, *(layer.conv for layer in self.layers if layer.conv is not None)]

    def nbytes(self) -> int:
        """Bytes allocated for the states (the padding mask, one byte a token where one was given, is not
        counted).
        """
        return sum(x.nbytes for state in self._states for x in state.tensors)

    def grow(self, capacity: int) -> None:
        """Make room for texts of up to `capacity` tokens; what is remembered stays. Smaller ones change nothing.

        Raises ValueError for a capacity above `max_seq_len`.
        """
        if capacity <= self.capacity:
            return
        tensors = [x for state in self._states for x in state.tensors]
        if tensors:
            larger = Cache(self.config, self.batch_size, capacity, tensors[0].dtype, tensors[0].device)
            for old, new in zip(tensors, (x for state in larger._states for x in state.tensors), strict=True):
                new[:, : old.shape[1]] = old  # a ring has its final size from the start
            self.layers = larger.layers
        self.capacity = capacity

    def taken(self, rows: Tensor, capacity: int) -> Cache:
        """A cache of its own with these texts of the batch, in this order, and room for `capacity` tokens.

        Raises ValueError for less room than the texts take, or for more than `max_seq_len`.
        """
        if capacity < self.n_tokens:
            raise ValueError(f"{self.n_tokens} tokens do not fit in a cache of {capacity}")
        tensors = [x for state in self._states for x in state.tensors]
        like = tensors[0] if tensors else torch.empty(0)
        new = Cache(self.config, len(rows), capacity, like.dtype, like.device)
        for kept, state in zip(new._states, self._states, strict=True):
            for to, x in zip(kept.tensors, state.tensors, strict=True):
                n = min(self.n_tokens, x.shape[1])
                to[:, :n] = x[rows, :n]
        new.n_tokens = self.n_tokens
        new.key_mask_BS = None if self.key_mask_BS is None else self.key_mask_BS[rows]
        return new

    def select(self, rows: Tensor) -> None:
        """Keep these texts of the batch, in this order; a text may be taken more than once (beam search)."""
        for state in self._states:
            state.tensors = tuple(x[rows] for x in state.tensors)
        if self.key_mask_BS is not None:
            self.key_mask_BS = self.key_mask_BS[rows]
        self.batch_size = len(rows)

    def forget_last(self, n: int) -> None:
        """Take the last `n` tokens back. Raises ValueError where a window's ring has overwritten earlier ones."""
        if not 0 <= n <= self.n_tokens:
            raise ValueError(f"{n} tokens cannot be taken back: the cache holds {self.n_tokens}")
        if n and any(state.is_ring and self.n_tokens > state.n_slots for state in self._states):
            raise ValueError(
                "a sliding window or a short convolution keeps no tokens outside it, so none can be taken back; decode "
                "without speculation (no assistant model, no prompt lookup), or without a cache (use_cache=False)"
            )
        self.n_tokens -= n
        if self.key_mask_BS is not None:
            self.key_mask_BS = self.key_mask_BS[:, : self.n_tokens]

    def admit(self, batch_size: int, n_new: int, mask_BT: Tensor | None) -> Tensor | None:
        """Check that a chunk fits and return the padding mask (B, tokens so far + T), or None when nothing is
        padded.

        `mask_BT` covers the new tokens or all tokens so far. Raises ValueError when the chunk does not fit.
        """
        if batch_size != self.batch_size:
            raise ValueError(
                f"the cache was made for batches of {self.batch_size}, this one has {batch_size}"
            )
        total = self.n_tokens + n_new
        if total > self.capacity:
            raise ValueError(
                f"the cache has room for {self.capacity} tokens, {total} are needed: give it a larger capacity"
            )
        if mask_BT is None:
            if self.key_mask_BS is None:
                return None
            mask_BT = self.key_mask_BS.new_ones(batch_size, n_new)
        mask_BT = mask_BT.bool()
        if mask_BT.shape[1] == total:
            return mask_BT
        if mask_BT.shape[1] != n_new:
            raise ValueError(
                f"attention_mask has {mask_BT.shape[1]} columns; give {n_new} (the new tokens) or {total} "
                "(all tokens so far)"
            )
        earlier = self.key_mask_BS
        if earlier is None:
            earlier = mask_BT.new_ones(batch_size, self.n_tokens)
        return torch.cat((earlier, mask_BT), dim=1)
