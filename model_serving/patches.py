"""Windows: how a raster is cut for the network and put together again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAP_HALO_PX", "WindowPlan"]

MAP_HALO_PX = 32
# ^ how far beyond a shard its windows look: the overlap in which neighbouring windows are blended


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """Square windows that cover a raster with overlap, and the weights that blend them."""

    window: int
    """Edge of a window, pixels."""
    stride: int
    """Distance between neighbouring windows, pixels; at most ``window``."""

    def __post_init__(self) -> None:
        if not 0 < self.stride <= self.window:
            raise ValueError(f"stride {self.stride} does not fit a window of {self.window} px")

    def starts(self, length: int) -> list[int]:
        """First pixels of the windows along an axis; the last one ends with the raster.

        Raises
        ------
        ValueError
            Where the raster is smaller than a window.
        """
        if length < self.window:
            raise ValueError(f"a raster of {length} px is smaller than a window of {self.window}")
        last = length - self.window
        return [*range(0, last, self.stride), last]

    def windows(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Slices ``(y, x)`` of all windows, row by row."""
        for row in self.starts(height):
            for col in self.starts(width):
                yield slice(row, row + self.window), slice(col, col + self.window)

    def weights(self) -> npt.NDArray[Any]:
        """Blending weights ``(window, window)`` float32 in (0, 1].

        They fall off linearly over the overlap towards the edge, where a window knows least, and
        never reach zero, so that every covered pixel has an answer.
        """
        overlap = max(1, self.window - self.stride)
        edge = np.minimum(np.arange(self.window), np.arange(self.window)[::-1]) + 0.5
        ramp = np.minimum(edge / overlap, 1.0).astype(np.float32)
        return np.asarray(np.outer(ramp, ramp), np.float32)
