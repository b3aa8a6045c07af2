"""Counts, medians and extremes of pixel values by label. Pure, no geometry.

Labels are ``(y, x)`` int32 with 0 for "no zone"; results hold zones 1 to ``count`` in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Ranked", "counts", "means", "ranked", "shares"]

Floats = npt.NDArray[np.float64]


def counts(
    labels: npt.NDArray[np.int32], count: int, *, where: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Count the pixels of each zone, of those in ``where`` if given."""
    chosen = labels.ravel() if where is None else labels[where]
    return np.bincount(chosen, minlength=count + 1)[1:]


def means(
    values: npt.NDArray[Any],
    labels: npt.NDArray[np.int32],
    count: int,
    *,
    where: npt.NDArray[np.bool_],
) -> Floats:
    """Mean of each zone over ``where``; NaN for a zone without such pixels."""
    zone = labels[where]
    total = np.bincount(zone, weights=values[where].astype(np.float64), minlength=count + 1)[1:]
    number = np.bincount(zone, minlength=count + 1)[1:]
    mean = np.full(count, np.nan)
    np.divide(total, number, out=mean, where=number > 0)
    return mean


def shares(
    values: npt.NDArray[Any],
    labels: npt.NDArray[np.int32],
    count: int,
    *,
    where: npt.NDArray[np.bool_],
) -> list[list[tuple[int, float]]]:
    """Each zone's distinct integer values with their share of it, the most frequent first."""
    pairs, pixels = np.unique(
        np.stack([labels[where].astype(np.int64), values[where].astype(np.int64)]),
        axis=1,
        return_counts=True,
    )
    found: list[list[tuple[int, float]]] = [[] for _ in range(count + 1)]
    for (zone, value), number in zip(pairs.T.tolist(), pixels.tolist(), strict=True):
        found[zone].append((value, float(number)))
    return [
        sorted(((v, n / sum(m for _, m in zone)) for v, n in zone), key=lambda p: (-p[1], p[0]))
        for zone in found[1:]
    ]


@dataclass(frozen=True, slots=True)
class Ranked:
    """Order statistics of each zone; NaN (and index -1) for a zone without pixels."""

    lowest: Floats
    median: Floats
    highest: Floats
    where_lowest: npt.NDArray[np.int64]
    """Flat index of the lowest pixel; the first in row order where several are lowest."""


def ranked(
    values: npt.NDArray[Any],
    labels: npt.NDArray[np.int32],
    count: int,
    *,
    where: npt.NDArray[np.bool_],
) -> Ranked:
    """Lowest, median and highest value of each zone over ``where``."""
    flat = np.flatnonzero(where & (labels > 0))
    zone = labels.ravel()[flat]
    value = values.ravel()[flat].astype(np.float64)
    order = np.lexsort((value, zone))
    value, zone = value[order], zone[order]
    start = np.searchsorted(zone, np.arange(1, count + 1), side="left")
    stop = np.searchsorted(zone, np.arange(1, count + 1), side="right")
    there = stop > start
    low, high, middle = (np.full(count, np.nan) for _ in range(3))
    where_low = np.full(count, -1, dtype=np.int64)
    low[there], high[there] = value[start[there]], value[stop[there] - 1]
    lower, upper = (start + stop - 1)[there] // 2, (start + stop)[there] // 2
    middle[there] = (value[lower] + value[upper]) / 2
    where_low[there] = flat[order[start[there]]]
    return Ranked(low, middle, high, where_low)
