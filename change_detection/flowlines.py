"""How long a glacier is: the longest centreline from its head to its terminus.

After Kienholz et al. (2014, The Cryosphere 8, 503-519, "A new method for deriving glacier
centerlines applied to glaciers in Alaska and northwest Canada"): from heads, the summits along the
outline, the cheapest way leads down to the terminus, where it is dear to be near the margin and
high above the glacier's lowest point. The longest of these ways is the length.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree
from skimage.graph import MCP_Geometric
from skimage.measure import block_reduce

__all__ = ["Centreline", "grid_spacing_m", "longest_centrelines", "main_centreline"]

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_MARGIN_WEIGHT, _MARGIN_POWER = 1000.0, 4.25
_HEIGHT_WEIGHT, _HEIGHT_POWER = 3000.0, 3.7
# ^ f1, a, f2 and b of Kienholz et al. (2014), table 3
_HEAD_SLOPE, _HEAD_LEAST_M, _HEAD_MOST_M = 2e-6, 500.0, 1000.0
# ^ heads are at least so far apart: q1, q2 and r_max of their equation 1, area in m2
_SNOUT = 0.01
# ^ of a glacier's height: the terminus is the middle of the outline as low as that, so that a broad
#   snout ends in its middle and a noisy elevation model decides nothing
_SMOOTHING_CELLS = 3.0
# ^ a way over cells goes in eight directions only and so is too long; smoothed, it is not


@dataclass(frozen=True, slots=True)
class Centreline:
    """The longest way of a glacier."""

    way: Floats
    """``(point, y-x)`` in pixels of the window, (0, 0) the centre of the first: from the terminus
    to the head."""
    length_m: float
    """In the horizontal plane."""


def grid_spacing_m(area_km2: float) -> float:
    """Spacing at which the terrain of a glacier is looked at, metres: 14 sqrt(A) + 10, at most 100.

    As for the topography of RGI 7.0 (user guide, "Topography").
    """
    return min(14.0 * math.sqrt(area_km2) + 10.0, 100.0)


def longest_centrelines(
    labels: Labels, count: int, *, elevation: npt.NDArray[np.float32] | None, resolution_m: float
) -> Floats:
    """Length of the longest centreline of each zone in the horizontal plane, metres.

    Parameters
    ----------
    labels : ``(y, x)`` int32
        Zones 1 to ``count``, each of them one piece; 0 is left out.
    count
        Number of zones.
    elevation : ``(y, x)`` float32 or None
        Metres; NaN where unknown.
    resolution_m
        Pixel edge.

    Returns
    -------
    ``(count,)`` float64
        NaN where the elevation of a zone is not known everywhere.
    """
    lengths = np.full(count, np.nan)
    if elevation is None:
        return lengths
    for i, window in enumerate(ndimage.find_objects(labels, max_label=count)):
        if window is not None:
            zone = labels[window] == i + 1
            line = main_centreline(zone, elevation[window], resolution_m=resolution_m)
            lengths[i] = math.nan if line is None else line.length_m
    return lengths


def main_centreline(
    zone: Mask, elevation: npt.NDArray[np.float32], *, resolution_m: float
) -> Centreline | None:
    """Longest centreline of one glacier.

    Parameters
    ----------
    zone : ``(y, x)`` bool
        The glacier, one piece.
    elevation : ``(y, x)`` float32
        Metres.
    resolution_m
        Pixel edge.

    Returns
    -------
    Centreline or None
        None where its elevation is not known everywhere.
    """
    if not np.isfinite(elevation[zone]).all():
        return None
    spacing = grid_spacing_m(int(zone.sum()) * resolution_m**2 / 1e6)
    step = max(1, round(spacing / resolution_m))
    way = _longest(*_coarsened(zone, elevation, step), cell_m=step * resolution_m)
    length_m = float(np.hypot(*np.diff(way, axis=0).T).sum()) * step * resolution_m
    return Centreline((way - 0.5) * step - 0.5, length_m)


def _coarsened(zone: Mask, height: npt.NDArray[np.float32], step: int) -> tuple[Mask, Floats]:
    """Cells of ``step`` pixels: zone where any pixel is, its mean height; one cell around."""
    if step > 1:
        inside = block_reduce(zone.astype(np.float64), step, np.sum)
        total = block_reduce(np.where(zone, height, 0.0).astype(np.float64), step, np.sum)
        zone, height = inside > 0, total / np.maximum(inside, 1.0)
    return np.pad(zone, 1), np.pad(np.where(zone, height, np.inf).astype(np.float64), 1)


def _longest(zone: Mask, height: Floats, *, cell_m: float) -> Floats:
    """Way of the longest centreline in cells, from the terminus to the head."""
    inner = ndimage.distance_transform_edt(zone, sampling=cell_m)
    margin = zone & (inner <= cell_m)
    cells = np.argwhere(margin)
    heights = height[margin]
    low, high = float(height[zone].min()), float(height[zone].max())
    terminus = _middle_of(cells[heights <= heights.min() + _SNOUT * (high - low)])
    centred = (inner.max() - inner) / inner.max() * _MARGIN_WEIGHT
    lifted = (height - low) / max(high - low, 1e-6) * _HEIGHT_WEIGHT
    cost = np.full(zone.shape, np.inf)
    cost[zone] = centred[zone] ** _MARGIN_POWER + lifted[zone] ** _HEIGHT_POWER
    cost[zone] = cost[zone] / cost[zone].max() + 1e-9
    ways = MCP_Geometric(cost)
    ways.find_costs([terminus])
    area_m2 = float(zone.sum()) * cell_m**2
    apart_m = min(_HEAD_SLOPE * area_m2 + _HEAD_LEAST_M, _HEAD_MOST_M)
    heads = _heads(cells, heights, reach=apart_m / cell_m)
    found = [_smoothed(np.array(ways.traceback(tuple(head)), float)) for head in heads]
    return max(found, key=lambda way: float(np.hypot(*np.diff(way, axis=0).T).sum()))


def _middle_of(cells: npt.NDArray[np.intp]) -> tuple[int, int]:
    """The cell nearest to the mean place of all, the first of equal ones."""
    row, col = cells[np.argmin(((cells - cells.mean(axis=0)) ** 2).sum(axis=1))].tolist()
    return row, col


def _heads(cells: npt.NDArray[np.intp], heights: Floats, *, reach: float) -> npt.NDArray[np.intp]:
    """Cells of the margin than which none within ``reach`` cells is higher, ``(head, y-x)``."""
    first = np.full(len(cells), False)
    near = KDTree(cells).query_ball_point(cells, reach)
    for i, others in enumerate(near):
        first[i] = heights[i] >= heights[others].max()
    return np.asarray(cells[first])


def _smoothed(way: Floats) -> Floats:
    smooth = ndimage.gaussian_filter1d(way, _SMOOTHING_CELLS, axis=0, mode="nearest")
    smooth[[0, -1]] = way[[0, -1]]
    return np.asarray(smooth)
