"""Strategies: how the clear looks at a pixel become one. Pure, no I/O.

The one law: each strategy is a function of the looks alone, pixel by pixel; no look is taken where
it was not clear, and a pixel without any clear look stays unseen (0).

``least_snow``
    Of the clear looks, ordered by green reflectance, the one at the 30th percentile (nearest rank),
    all bands from that one look. Cloud that the mask missed and seasonal snow are bright and lose;
    shadow that the mask missed is darkest and loses too wherever there are four looks or more.
``best_scene``
    The look that ranks first for the glacier the pixel belongs to, filled from the next best where
    that one is not clear; see :mod:`catalog.ranking`. Far from any glacier as ``least_snow``.
``median``
    The median of each band (nearest rank); it mixes looks, its day is the median day.
``medoid``
    The look nearest to the median in all bands together (Kennedy et al. 2018, "Implementation of
    the LandTrendr algorithm on Google Earth Engine"; after Flood 2013), all bands from that look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from catalog.cube import DATE_MISSING, OPTICAL_BANDS

__all__ = ["Chosen", "Looks", "LooksOrder", "Strategy", "choose"]

Strategy = Literal["least_snow", "best_scene", "median", "medoid"]

_PERCENTILE = 30
_MEDIAN = 50
_GREEN = OPTICAL_BANDS.index("green")
_NONE = 2**32 - 1

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Looks:
    """All looks at a window, in the order of time."""

    pixels: npt.NDArray[np.uint16]
    """Stored reflectance ``(look, band, y, x)``."""
    clear: _Mask
    """``(look, y, x)``: seen, and clear of cloud and shadow."""
    days: npt.NDArray[np.int32]
    """Days since 1970-01-01, ``(look,)``."""


@dataclass(frozen=True, slots=True)
class LooksOrder:
    """In which order ``best_scene`` takes the looks."""

    glacier: npt.NDArray[np.int32]
    """``(y, x)``: number of the glacier a pixel belongs to; 0: none is near."""
    ranks: npt.NDArray[np.int32]
    """``(glacier, look)``: the lowest is taken first; row 0 is not used."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """One look made of many."""

    pixels: npt.NDArray[np.uint16]
    """Stored reflectance ``(band, y, x)``; 0 where nothing was seen."""
    day: npt.NDArray[np.int32]
    """Day it was acquired ``(y, x)``."""


def choose(strategy: Strategy, looks: Looks, order: LooksOrder | None = None) -> Chosen:
    """Make one look of many.

    Parameters
    ----------
    strategy
        See the module.
    looks
        At least one look.
    order
        For ``best_scene`` only.
    """
    count = looks.clear.sum(axis=0, dtype=np.int64)
    if strategy == "median":
        return _median_look(looks, count)
    if strategy == "medoid":
        return _taken(looks, _medoid(looks, count))
    index = _least_snow(looks, count)
    if strategy == "best_scene" and order is not None:
        index = np.where(order.glacier > 0, _best_scene(looks, order), index)
    return _taken(looks, index)


def _rank(count: npt.NDArray[np.int64], percentile: int) -> npt.NDArray[np.int64]:
    """Nearest rank, counted from 0."""
    return np.maximum(-(-count * percentile // 100) - 1, 0)


def _least_snow(looks: Looks, count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index of the look to take at each pixel, -1 where there is none."""
    keys = np.full(looks.clear.shape, _NONE, np.uint32)
    for index, clear in enumerate(looks.clear):
        keys[index][clear] = (looks.pixels[index, _GREEN][clear].astype(np.uint32) << 16) | index
    # ^ brightness first, then date: equal brightness has one order
    keys.sort(axis=0)
    key = np.take_along_axis(keys, _rank(count, _PERCENTILE)[np.newaxis], axis=0)[0]
    return np.where(count > 0, (key & 0xFFFF).astype(np.int64), -1)


def _best_scene(looks: Looks, order: LooksOrder) -> npt.NDArray[np.int64]:
    best = np.full(looks.clear.shape[1:], np.iinfo(np.int32).max, np.int32)
    index = np.full(best.shape, -1, np.int64)
    for number, clear in enumerate(looks.clear):
        rank = order.ranks[:, number][order.glacier]
        better = clear & (rank < best)
        best[better], index[better] = rank[better], number
    return index


def _medians(looks: Looks, count: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """Median of each band over the clear looks, nearest rank; 0 where there is none."""
    rank = _rank(count, _MEDIAN)[np.newaxis]
    out = np.zeros(looks.pixels.shape[1:], np.uint16)
    for band in range(len(out)):
        values = np.where(looks.clear, looks.pixels[:, band], np.uint16(65535))
        values.sort(axis=0)
        out[band] = np.where(count > 0, np.take_along_axis(values, rank, axis=0)[0], 0)
    return out


def _median_look(looks: Looks, count: npt.NDArray[np.int64]) -> Chosen:
    # The looks are in the order of time, so the median day is that of the middle clear look.
    passed = looks.clear.cumsum(axis=0, dtype=np.int32)
    middle = (passed > _rank(count, _MEDIAN)).argmax(axis=0)
    day = np.where(count > 0, looks.days[middle], DATE_MISSING).astype(np.int32)
    return Chosen(_medians(looks, count), day)


def _medoid(looks: Looks, count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    medians = _medians(looks, count).astype(np.int64)
    best = np.full(count.shape, np.iinfo(np.int64).max, np.int64)
    index = np.full(count.shape, -1, np.int64)
    for number, clear in enumerate(looks.clear):
        distance = ((looks.pixels[number] - medians) ** 2).sum(axis=0)
        nearer = clear & (distance < best)
        best[nearer], index[nearer] = distance[nearer], number
    return index


def _taken(looks: Looks, index: npt.NDArray[Any]) -> Chosen:
    """Take all bands and the day of each pixel from its look."""
    pixels = np.zeros(looks.pixels.shape[1:], np.uint16)
    day = np.full(index.shape, DATE_MISSING, np.int32)
    for number in np.unique(index[index >= 0]).tolist():
        here = index == number
        pixels[:, here] = looks.pixels[number][:, here]
        day[here] = looks.days[number]
    return Chosen(pixels, day)
