"""How long a glacier's margin is where it may be wrong: without divides, without copied lines.

One law: a line that two outlines have in common errs in both alike, so it has no part in the error
of their difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from pyproj import Geod

from catalog.grid import lonlat_from

__all__ = ["Margins", "trace_margins"]

_STEP_M = 20.0
# ^ margins are judged in pieces of this length at most
_DIVIDE_M = 1.0
# ^ ice of two glaciers that is nearer has a divide between it, not ground
_SAME_M = 0.05
# ^ lines drawn twice are not that near over any length; copies are, but for rounding
_GEOD = Geod(ellps="WGS84")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Margins:
    """The margins of all glaciers at one date, in short pieces."""

    names: tuple[str, ...]
    """Glaciers that the pieces' numbers mean."""
    middle: npt.NDArray[Any]
    """``(piece,)`` points in the series' projection."""
    length_m: Floats
    """``(piece,)`` geodesic length on WGS84, metres."""
    glacier: npt.NDArray[np.int64]
    """``(piece,)`` number of the glacier."""
    free: npt.NDArray[np.bool_]
    """``(piece,)`` whether there is ground beyond, not the ice of another glacier."""
    edges: shapely.STRtree
    """The margins' lines from vertex to vertex."""
    edge_glacier: npt.NDArray[np.int64]

    def free_length_m(self) -> dict[str, float]:
        """Length of each glacier's margin without divides, metres."""
        return self._sum(self.free)

    def changed_length_m(self, other: Margins) -> dict[str, float]:
        """Length of each glacier's margin without divides and lines it shares with ``other``."""
        piece, edge = other.edges.query(self.middle, "dwithin", _SAME_M)
        here = np.array(self.names, dtype=object)[self.glacier[piece]]
        there = np.array(other.names, dtype=object)[other.edge_glacier[edge]]
        changed = self.free.copy()
        changed[piece[here == there]] = False
        return self._sum(changed)

    def _sum(self, where: npt.NDArray[np.bool_]) -> dict[str, float]:
        total = np.bincount(
            self.glacier[where], weights=self.length_m[where], minlength=len(self.names)
        )
        return dict(zip(self.names, total.tolist(), strict=True))


def trace_margins(ice: Mapping[str, shapely.Geometry], proj4: str) -> Margins:
    """Cut the margins of all glaciers of one date into pieces, and find their divides.

    Parameters
    ----------
    ice
        Disjoint outlines by glacier, in the projection ``proj4``.
    proj4
        Any projection in metres; lengths are geodesic.
    """
    names = tuple(sorted(ice))
    rings, owner = _rings([ice[name] for name in names])
    starts, ends, number = _edges(rings)
    edges = shapely.STRtree(shapely.linestrings(np.stack([starts, ends], axis=1)))
    edge_glacier = owner[number]
    starts, ends, number = _edges(shapely.segmentize(rings, _STEP_M))
    middle, glacier = shapely.points((starts + ends) / 2), owner[number]
    piece, edge = edges.query(middle, "dwithin", _DIVIDE_M)
    free = np.ones(len(middle), dtype=bool)
    free[piece[glacier[piece] != edge_glacier[edge]]] = False
    to_lonlat = lonlat_from(proj4)
    lonlat = (*to_lonlat.transform(*starts.T), *to_lonlat.transform(*ends.T))
    length = np.asarray(_GEOD.inv(*lonlat)[2], dtype=np.float64)
    return Margins(names, middle, length, glacier, free, edges, edge_glacier)


def _rings(shapes: list[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    parts, whose = shapely.get_parts(np.array(shapes, dtype=object), return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    return rings, whose[part]


def _edges(rings: npt.NDArray[Any]) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """Starts and ends ``(edge, 2)`` of the lines from vertex to vertex, and each one's ring."""
    corners, ring = shapely.get_coordinates(rings, return_index=True)
    inside = ring[:-1] == ring[1:]
    return corners[:-1][inside], corners[1:][inside], ring[:-1][inside]
