"""Where ice ends in water: the calving front, and how far it went.

Mean retreat is area over width (Moon and Joughin 2008, Journal of Geophysical Research 113, F02022:
the area that the front swept over, divided by the width of the glacier there), which a single line
along the glacier would not tell of a front that does not move as one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy import ndimage

__all__ = ["WATER_TERMINATING", "front_change_m", "front_line"]

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

WATER_TERMINATING = frozenset({1, 2, 3})
"""Values of RGI 7.0's ``term_type``: marine, lake, shelf."""

_ALL_ROUND = np.ones((3, 3), dtype=bool)
_REACH_M = 500.0
# ^ of the lower centreline, whose direction is the direction of flow at the front


def front_line(ice: Mask, water: Mask) -> Any:
    """Pixel edges between ice and water as lines.

    Parameters
    ----------
    ice, water : ``(y, x)`` bool
        Of one glacier, and all water.

    Returns
    -------
    shapely.MultiLineString
        In pixel corners (x, y), (0, 0) the upper left one; empty where ice meets no water.
    """
    edges = []
    for axis in (0, 1):
        ahead = tuple(slice(1, None) if k == axis else slice(None) for k in (0, 1))
        behind = tuple(slice(None, -1) if k == axis else slice(None) for k in (0, 1))
        meets = (ice[behind] & water[ahead]) | (water[behind] & ice[ahead])
        row, col = np.nonzero(meets)
        corner = np.stack([col, row], axis=1) + (np.array([0, 1]) if axis == 0 else [1, 0])
        step = np.array([1, 0]) if axis == 0 else np.array([0, 1])
        edges.append(np.stack([corner, corner + step], axis=1))
    lines = shapely.linestrings(np.concatenate(edges).astype(np.float64))
    merged = shapely.line_merge(shapely.multilinestrings(lines))
    return shapely.multilinestrings(shapely.get_parts(merged))


def front_change_m(
    before: Mask,
    after: Mask,
    water: tuple[Mask, Mask],
    *,
    seen: Mask,
    way: Floats,
    resolution_m: float,
) -> tuple[float, float]:
    """Width of a front and its mean advance.

    Parameters
    ----------
    before, after : ``(y, x)`` bool
        Ice of one glacier at the two dates.
    water
        Water at the two dates.
    seen : ``(y, x)`` bool
        What was seen at both.
    way : ``(point, y-x)``
        Centreline from the terminus up, see
        :func:`change_detection.flowlines.main_centreline`.
    resolution_m
        Pixel edge.

    Returns
    -------
    tuple of float
        Width across the flow in metres, the mean of the two dates; and the mean advance in metres
        (retreat is negative): ice that took the place of water less ice whose place water took,
        where it hangs together with the front, over the width. NaN where a date has no front, or
        water or ice beside it was not seen.
    """
    fronts = [_beside(ice, wet) for ice, wet in zip((before, after), water, strict=True)]
    if not all(front.any() for front in fronts):
        return math.nan, math.nan
    lost = _touching(before & water[1], fronts[0])
    gained = _touching(after & water[0], fronts[1])
    around = ndimage.binary_dilation(fronts[0] | fronts[1] | lost | gained, _ALL_ROUND)
    if not seen[around].all():
        return math.nan, math.nan
    across = _across(way, resolution_m)
    width = float(np.mean([_extent(front, across) for front in fronts])) * resolution_m
    swept = (int(gained.sum()) - int(lost.sum())) * resolution_m**2
    return width, swept / width


def _beside(ice: Mask, water: Mask) -> Mask:
    return np.asarray(ice & ndimage.binary_dilation(water))


def _touching(pixels: Mask, front: Mask) -> Mask:
    """Parts of some pixels that hang together with the front."""
    labels, _ = ndimage.label(pixels, _ALL_ROUND)
    near = np.unique(labels[ndimage.binary_dilation(front, _ALL_ROUND) & pixels])
    return np.isin(labels, near[near > 0])


def _across(way: Floats, resolution_m: float) -> Floats:
    """Unit vector (y, x) across the flow at the lower end of a centreline."""
    along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))]) * resolution_m
    upper = way[np.searchsorted(along, min(_REACH_M, along[-1]))]
    flow = upper - way[0]
    length = float(np.hypot(*flow))
    return np.array([-flow[1], flow[0]]) / length if length else np.array([0.0, 1.0])


def _extent(front: Mask, across: Floats) -> float:
    place = np.argwhere(front) @ across
    return float(place.max() - place.min()) + 1.0
