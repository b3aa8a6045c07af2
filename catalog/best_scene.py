"""Best scene: which look each pixel takes first, from the ranks of the glacier it belongs to.

The one law: a pixel's order depends on the chunk of the grid it lies in and on the outlines near
that chunk, never on the shard or on which other glaciers are known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize
from scipy.ndimage import distance_transform_edt

from catalog.looks import look_name
from catalog.scenes import Scene
from catalog.stacks import Tile
from catalog.strategies import LooksOrder

__all__ = ["REACH_M", "GlacierOrders"]

REACH_M = 1000.0
"""How far around a glacier its own order of looks holds, metres."""
_LAST = 10**6


@dataclass(frozen=True, slots=True)
class GlacierOrders:
    """For each glacier near a shard, its looks from best to worst."""

    ids: tuple[str, ...]
    """Sorted ids of the glaciers."""
    outlines: tuple[shapely.Geometry, ...]
    """Their outlines in grid metres."""
    ranks: tuple[Mapping[tuple[str, str], int], ...]
    """Of each glacier: day and sensor of a look -> its rank, 1 is best."""

    def on(self, tile: Tile, looks: Sequence[Sequence[Scene]]) -> LooksOrder:
        """The order of looks on the pixels of a tile.

        A look that was not ranked for a glacier comes after all that were, in the order of time.
        """
        names = [look_name(look[0]) for look in looks]
        ranks = np.zeros((len(self.ids) + 1, len(looks)), np.int32)
        for number, known in enumerate(self.ranks, start=1):
            ranks[number] = [known.get(n, _LAST + i) for i, n in enumerate(names)]
        # Pixels as far from one glacier as from another are told apart the same way by all strips
        # of a chunk only if they look at the same window.
        size = tile.grid.chunk_px
        row, col = tile.row // size * size, tile.col // size * size
        nearest = self._nearest(Tile(tile.grid, row, col, size, size))
        top, left = tile.row - row, tile.col - col
        return LooksOrder(nearest[top : top + tile.height, left : left + tile.width], ranks)

    def _nearest(self, tile: Tile) -> npt.NDArray[np.int32]:
        """Number of the nearest glacier within reach, 0 where there is none."""
        reach = math.ceil(REACH_M / tile.grid.resolution_m)
        wide = tile.widened(reach + 1)
        shape = (wide.height, wide.width)
        frame = shapely.box(*wide.bounds)
        near = [
            (outline, number)
            for number, outline in enumerate(self.outlines, start=1)
            if shapely.intersects(outline, frame)
        ]
        if not near:
            return np.zeros((tile.height, tile.width), np.int32)
        burnt: npt.NDArray[np.int32] = rasterize(
            near,
            out_shape=shape,
            transform=tile.grid.window_transform(wide.row, wide.col),
            all_touched=True,
            dtype="int32",
        )
        distance, (rows, cols) = distance_transform_edt(burnt == 0, return_indices=True)
        found: npt.NDArray[Any] = np.where(distance <= reach, burnt[rows, cols], 0)
        inner = slice(reach + 1, -reach - 1)
        return np.ascontiguousarray(found[inner, inner], dtype=np.int32)
