"""Texts of one batch that begin alike: every distinct token goes through what looks at single tokens only once.

Norms, feed-forward layers, projections and the output matrix see a line of distinct tokens; only where tokens look at
each other do the rows of the batch exist, padded. Shapes: N distinct tokens, R rows, T tokens of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SharedRows:
    """Where the tokens of R rows stand on the line, and where on the rows a token of the line is found.

    `places_RT`: of each row's tokens the place on the line (padding, on the right: any). `cells_N`: row * T + position
    of one copy of each token.
    """

    places_RT: Tensor
    cells_N: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], device: torch.device | None = None) -> SharedRows:
        """From the places of every row's tokens, which number all tokens of the line."""
        T = max(map(len, rows))
        places_RT = torch.tensor([[*row, *[0] * (T - len(row))] for row in rows])
        cells: dict[int, int] = {}
        for r, row in enumerate(rows):
            for t, place in enumerate(row):
                cells.setdefault(place, r * T + t)
        cells_N = torch.tensor([cells[place] for place in range(len(cells))])
        return cls(places_RT.to(device), cells_N.to(device))

    @property
    def positions_N(self) -> Tensor:
        """The place of each token of the line in its rows."""
        return self.cells_N % self.places_RT.shape[1]

    def spread(self, x_1N: Tensor) -> Tensor:
        """What the line holds, (1, N, …), as rows (R, T, …)."""
        return x_1N[0].index_select(0, self.places_RT.flatten()).unflatten(0, self.places_RT.shape)

    def line(self, y_RT: Tensor) -> Tensor:
        """What the rows hold, (R, T, …), as a line (1, N, …)."""
        return y_RT.flatten(0, 1).index_select(0, self.cells_N)[None]
