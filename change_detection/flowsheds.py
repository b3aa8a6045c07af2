"""Glacier complexes become glaciers by the terrain alone, where no inventory says how.

After Kienholz et al. (2013, Journal of Glaciology 59, 925-937, "A new semi-automatic approach for
dividing glacier complexes into individual glaciers"): ice drains into a gutter around the complex,
what drains to one low place of the gutter is a flowshed, flowsheds of one glacier are joined, and
slivers join a neighbour. Which flowsheds are of one glacier is told by the ridge between them, not
by the distance of their low places as in the paper: the distance was fitted to Alaska, and joins
half of the glaciers of the Alps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import csr_array
from skimage.measure import label
from skimage.segmentation import watershed

from catalog.errors import DataError

__all__ = ["FlowshedSettings", "divide_by_terrain"]

Labels = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_ALL_ROUND = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True, slots=True)
class FlowshedSettings:
    """Numbers of the method; lengths in metres, areas in m2."""

    smoothing_m: float = 60.0
    """Standard deviation of the Gaussian that smooths the surface."""
    gutter_m: float = 100.0
    """How much deeper than the ground the gutter is."""
    ridge_m: float = 150.0
    """Flowsheds are one glacier where the lowest saddle between them is less than this above the
    higher one's low place..."""
    ridge_share: float = 0.5
    """... or less than this part of the height of the higher one..."""
    near_m: float = 1500.0
    """... if their low places are within this distance."""
    sliver_m2: float = 1e5
    """Smaller pieces join the neighbour with the longest common border..."""
    thin_m2: float = 2e5
    """... and so do pieces smaller than this..."""
    thinness: float = 0.5
    """... whose circle of equal area has less than this part of their perimeter."""


def divide_by_terrain(
    ice: Mask,
    elevation: npt.NDArray[np.floating],
    *,
    resolution_m: float,
    settings: FlowshedSettings | None = None,
) -> Labels:
    """Divide ice into glaciers.

    Parameters
    ----------
    ice : ``(y, x)`` bool
        Connected pixels are a complex.
    elevation : ``(y, x)``
        Metres; known on the ice and in the pixels around it.
    resolution_m
        Pixel edge.
    settings
        Numbers of the method.

    Returns
    -------
    ``(y, x)`` int32
        0 off ice; glaciers from 1 on, numbered by their first pixel in row order.

    Raises
    ------
    DataError
        ``no-elevation`` where the elevation of ice or of the gutter is not known.
    """
    how = settings or FlowshedSettings()
    ice = np.pad(np.asarray(ice, dtype=bool), 1)
    ground = np.pad(np.asarray(elevation, dtype=np.float64), 1, mode="edge")
    gutter = ndimage.binary_dilation(ice, _ALL_ROUND) & ~ice
    unknown = (ice | gutter) & ~np.isfinite(ground)
    if unknown.any():
        raise DataError(
            f"the elevation of {int(unknown.sum())} pixels on or beside the ice is not known, "
            "and divides by terrain need all of it",
            kind="no-elevation",
        )
    smooth = _smoothed(ground, how.smoothing_m / resolution_m)
    deep = np.where(gutter, smooth - how.gutter_m, smooth)
    sheds = _flowsheds(deep, ice, gutter)
    sheds = _without_low_ridges(
        sheds, smooth, ice=ice, gutter=gutter, resolution_m=resolution_m, how=how
    )
    found = _pieces(np.where(ice, sheds, 0))
    found = _without_slivers(found, resolution_m=resolution_m, how=how)
    return _in_row_order(found)[1:-1, 1:-1]


def _smoothed(ground: Floats, sigma_px: float) -> Floats:
    """Gaussian mean over the pixels whose elevation is known."""
    known = np.isfinite(ground)
    weight = ndimage.gaussian_filter(known.astype(np.float64), sigma_px)
    total = ndimage.gaussian_filter(np.where(known, ground, 0.0), sigma_px)
    return np.where(known, total / np.maximum(weight, 1e-12), np.nan)


def _flowsheds(deep: Floats, ice: Mask, gutter: Mask) -> Labels:
    """What drains to each low place of the gutter, gutter and ice; numbered from 1."""
    ring = np.where(gutter, deep, np.inf)
    low = gutter & (ring <= ndimage.minimum_filter(ring, footprint=_ALL_ROUND))
    places = label(low, connectivity=2)
    return np.asarray(
        watershed(
            np.where(np.isfinite(deep), deep, np.inf),
            markers=places,
            mask=ice | gutter,
            connectivity=2,
        ),
        dtype=np.int32,
    )


def _without_low_ridges(
    sheds: Labels,
    smooth: Floats,
    *,
    ice: Mask,
    gutter: Mask,
    resolution_m: float,
    how: FlowshedSettings,
) -> Labels:
    """Join flowsheds over the saddles between them, the lowest saddle first."""
    number = np.arange(1, int(sheds.max()) + 1)
    outlets = np.where(gutter, sheds, 0)
    place = np.array(ndimage.minimum_position(smooth, outlets, number), dtype=np.float64)
    low = np.asarray(ndimage.minimum(smooth, outlets, number))
    top = np.maximum(ndimage.maximum(smooth, np.where(ice, sheds, 0), number), low)
    # ^ a low place into which no ice drains has a top of 0
    group = np.arange(len(number))
    for height, one, two in _saddles(np.where(ice, sheds, 0), smooth):
        a, b = group[one], group[two]
        if a == b:
            continue
        upper, lower = (a, b) if low[a] > low[b] else (b, a)
        ridge, relief = height - low[upper], top[upper] - low[upper]
        apart_m = float(np.hypot(*(place[a] - place[b]))) * resolution_m
        beside = apart_m < how.near_m and ridge < how.ridge_share * relief
        if ridge < how.ridge_m or beside:
            group[group == upper] = lower
            top[lower] = max(top[lower], top[upper])
    return np.concatenate([[0], group + 1])[sheds].astype(np.int32)


def _saddles(sheds: Labels, smooth: Floats) -> list[tuple[float, int, int]]:
    """Lowest place of the border of each two flowsheds: height, and the two from 0; ascending."""
    ends, heights = [], []
    for axis in (0, 1):
        ahead = tuple(slice(1, None) if k == axis else slice(None) for k in (0, 1))
        behind = tuple(slice(None, -1) if k == axis else slice(None) for k in (0, 1))
        one, two = sheds[behind], sheds[ahead]
        border = (one != two) & (one > 0) & (two > 0)
        pair = np.sort(np.stack([one[border], two[border]]), axis=0)
        ends.append(pair.astype(np.int64) - 1)
        heights.append(np.maximum(smooth[behind][border], smooth[ahead][border]))
    pairs, number = np.unique(np.concatenate(ends, axis=1), axis=1, return_inverse=True)
    lowest = np.full(pairs.shape[1], np.inf)
    np.minimum.at(lowest, number, np.concatenate(heights))
    order = np.argsort(lowest, kind="stable")
    return [(float(lowest[k]), int(pairs[0, k]), int(pairs[1, k])) for k in order]


def _pieces(sheds: Labels) -> Labels:
    """Pieces of equal number that hang together over edges, numbered from 1."""
    return np.asarray(label(sheds, background=0, connectivity=1), dtype=np.int32)


def _without_slivers(found: Labels, *, resolution_m: float, how: FlowshedSettings) -> Labels:
    """Give slivers to the neighbour with the longest common border, slivers of slivers last.

    A piece without neighbours stays: it is a glacier of its own, however small.
    """
    while True:
        size, perimeter, borders = _shape_of(found)
        area = size * resolution_m**2
        round_share = 2.0 * np.sqrt(np.pi * area) / np.maximum(perimeter * resolution_m, 1e-9)
        thin = (area < how.thin_m2) & (round_share < how.thinness)
        small = ((area < how.sliver_m2) | thin) & (borders.sum(axis=1) > 0)
        slivers = np.flatnonzero(small)
        if not slivers.size:
            return found
        target = np.asarray(borders[slivers].argmax(axis=1)).ravel()
        settled = ~small[target]
        if not settled.any():
            settled = slivers == slivers[np.argmin(area[slivers])]
        name = np.arange(len(size), dtype=np.int32)
        name[slivers[settled]] = target[settled]
        found = name[found]


def _shape_of(found: Labels) -> tuple[Floats, Floats, csr_array]:
    """Pixels, perimeter in pixel edges (as of a smooth line), and common borders of pieces."""
    count = int(found.max()) + 1
    size = np.bincount(found.ravel(), minlength=count).astype(np.float64)
    size[0] = 0.0
    ends = []
    for one, two in ((found[:-1], found[1:]), (found[:, :-1], found[:, 1:])):
        differ = one != two
        ends.append(np.stack([one[differ], two[differ]]))
    edge = np.concatenate(ends, axis=1)
    perimeter = np.bincount(edge.ravel(), minlength=count).astype(np.float64) * (np.pi / 4)
    inner = edge[:, (edge > 0).all(axis=0)]
    both = np.concatenate([inner, inner[::-1]], axis=1)
    borders = csr_array((np.ones(both.shape[1]), tuple(both)), shape=(count, count))
    return size, perimeter, borders


def _in_row_order(found: Labels) -> Labels:
    names, first = np.unique(found[found > 0], return_index=True)
    order = np.zeros(int(found.max()) + 1, dtype=np.int32)
    order[names[np.argsort(first)]] = np.arange(1, len(names) + 1)
    return order[found]
