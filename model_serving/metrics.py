"""How well a map agrees with a reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["best_ratio_iou", "confusion_matrix", "iou"]

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


def best_ratio_iou(
    red: Array, swir: Array, reference: Array, *, thresholds: Array | None = None
) -> tuple[float, float]:
    """Best IoU that a band ratio red / SWIR can reach when its threshold is tuned on the truth.

    Parameters
    ----------
    red, swir : ``(pixel,)`` float
        Reflectances of observed pixels.
    reference : ``(pixel,)`` bool
        Ice.
    thresholds
        Thresholds to try; by default 0.5 to 5.5 in steps of 0.1 (as DL4GAM's baseline).

    Returns
    -------
    IoU and the threshold that reaches it.
    """
    ratio = red / np.maximum(swir, 1e-4)
    tries = np.round(np.arange(0.5, 5.51, 0.1), 1) if thresholds is None else thresholds
    scores = [iou(ratio > t, reference) for t in tries]
    best = int(np.nanargmax(scores))
    return float(scores[best]), float(tries[best])
