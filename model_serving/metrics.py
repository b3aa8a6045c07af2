"""How well a map agrees with a reference."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["RATIO_THRESHOLDS", "Overlaps", "confusion_matrix", "iou", "ratio_masks"]

Array = npt.NDArray[Any]


def iou(predicted: Array, reference: Array) -> float:
    """Intersection over union of two boolean masks of equal shape; NaN where both are empty."""
    union = int(np.count_nonzero(predicted | reference))
    return int(np.count_nonzero(predicted & reference)) / union if union else float("nan")


def confusion_matrix(predicted: Array, reference: Array, *, classes: int) -> Array:
    """Count pixels, ``(class, class)`` int64: row = reference, column = prediction.

    Pixels where either is not below ``classes`` (not seen, unknown) are left out.
    """
    known = (predicted < classes) & (reference < classes)
    index = reference[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


class Overlaps:
    """Intersection and union of several masks with one reference, added up piece by piece."""

    def __init__(self) -> None:
        self._shared: Array = np.zeros(1, np.int64)
        self._either: Array = np.zeros(1, np.int64)

    def add(self, masks: Iterable[Array], reference: Array) -> None:
        """Count one piece; every piece brings equally many masks, in the same order."""
        counts = [(np.count_nonzero(m & reference), np.count_nonzero(m | reference)) for m in masks]
        shared, either = np.array(counts, np.int64).T
        self._shared, self._either = self._shared + shared, self._either + either

    @property
    def ious(self) -> tuple[float, ...]:
        """Intersection over union of each mask; NaN where mask and reference are empty."""
        with np.errstate(invalid="ignore"):
            return tuple(float(v) for v in self._shared / self._either)


RATIO_THRESHOLDS = tuple(round(0.5 + 0.1 * i, 1) for i in range(51))
"""Thresholds of red / SWIR among which the best is chosen, knowing the truth (DL4GAM's grid)."""

_DARKEST = 1e-4
# ^ reflectance below this is noise: keeps the ratio finite and positive


def ratio_masks(red: Array, swir: Array) -> Iterator[Array]:
    """Where red / SWIR exceeds each of :data:`RATIO_THRESHOLDS`.

    Parameters
    ----------
    red, swir : float, of one shape
        Reflectances of observed pixels.
    """
    ratio = np.maximum(red, _DARKEST) / np.maximum(swir, _DARKEST)
    for threshold in RATIO_THRESHOLDS:
        yield ratio > threshold
