"""How well a map agrees with a reference.

Counted where both are known. A score that has nothing to be measured on, such as the recall of a
class that the reference does not have, is NaN: never 0, never 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage, stats
from scipy.spatial import cKDTree

from catalog.cube import CLASSES, ICE_CLASSES

__all__ = [
    "RATIO_THRESHOLDS",
    "BoundaryDistance",
    "Overlaps",
    "against_rest",
    "auc_roc",
    "auc_roc_of_counts",
    "boundary_distance",
    "class_scores",
    "confusion_matrix",
    "iou",
    "mapped_classes",
    "matthews",
    "overall_scores",
    "ratio_masks",
]

Array = npt.NDArray[Any]


def iou(predicted: Array, reference: Array) -> float:
    """Intersection over union of two boolean masks of equal shape; NaN where both are empty."""
    union = int(np.count_nonzero(predicted | reference))
    return int(np.count_nonzero(predicted & reference)) / union if union else float("nan")


def mapped_classes(probability: Array) -> Array:
    """Class of every pixel as it is mapped, ``(...)`` uint8.

    Ice is what has at least half of the probability in both its classes together, so that it is
    the ice of the outlines; then the more probable class of ice, or of the rest.

    Parameters
    ----------
    probability : ``(class, ...)`` float, summing to 1
    """
    ice = np.asarray(ICE_CLASSES, np.uint8)
    rest = np.asarray([c for c in range(len(CLASSES)) if c not in ICE_CLASSES], np.uint8)
    of_ice, other = (part[probability[part].argmax(axis=0)] for part in (ice, rest))
    return np.asarray(np.where(probability[ice].sum(axis=0) >= 0.5, of_ice, other))


def confusion_matrix(predicted: Array, reference: Array, *, classes: int) -> Array:
    """Count pixels, ``(class, class)`` int64: row = reference, column = prediction.

    Pixels where either is not below ``classes`` (not seen, unknown) are left out.
    """
    known = (predicted < classes) & (reference < classes)
    index = reference[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(index, minlength=classes * classes).reshape(classes, classes)


def against_rest(table: Array, classes: Sequence[int]) -> Array:
    """Join some classes to one and all others to another, ``(..., 2, 2)``; the joined ones last.

    Parameters
    ----------
    table : ``(..., class, class)`` int
        Row = reference, column = prediction.
    """
    chosen = np.zeros((table.shape[-1], 2), table.dtype)
    chosen[:, 0] = 1
    chosen[list(classes)] = (0, 1)
    return np.asarray(chosen.T @ table @ chosen)


def class_scores(table: Array) -> dict[str, Array]:
    """Scores of each class against all others.

    Parameters
    ----------
    table : ``(..., class, class)`` int
        Row = reference, column = prediction; leading axes hold several tables.

    Returns
    -------
    dict of ``(..., class)`` float64
        ``iou`` and ``dice``: NaN where neither has the class. ``precision``: where nothing is
        mapped as it. ``recall``: where the reference has none. ``accuracy``: share of all pixels
        on which both agree whether it is this class; where there is no pixel. ``mcc``: see
        :func:`matthews`.
    """
    table = np.asarray(table, np.float64)
    hit = np.diagonal(table, axis1=-2, axis2=-1)
    true, mapped = table.sum(axis=-1), table.sum(axis=-2)
    every = true.sum(axis=-1, keepdims=True)
    share, claimed = _ratio(true, every), _ratio(mapped, every)
    spread = share * (1 - share) * claimed * (1 - claimed)
    return {
        "iou": _ratio(hit, true + mapped - hit),
        "dice": _ratio(2 * hit, true + mapped),
        "precision": _ratio(hit, mapped),
        "recall": _ratio(hit, true),
        "accuracy": _ratio(every - true - mapped + 2 * hit, every),
        "mcc": _ratio(_ratio(hit, every) - share * claimed, np.sqrt(np.maximum(spread, 0))),
    }


def overall_scores(table: Array) -> dict[str, Array]:
    """Scores over all classes together.

    Parameters
    ----------
    table : ``(..., class, class)`` int
        Row = reference, column = prediction.

    Returns
    -------
    dict of ``(...,)`` float64
        ``accuracy``; ``balanced_accuracy``: mean recall over the classes the reference has;
        ``mean_iou``: over the classes either has; ``mcc``: see :func:`matthews`. NaN where there is
        no pixel.
    """
    each = class_scores(table)
    table = np.asarray(table, np.float64)
    return {
        "accuracy": _ratio(np.trace(table, axis1=-2, axis2=-1), table.sum(axis=(-2, -1))),
        "balanced_accuracy": _mean_of_finite(each["recall"]),
        "mean_iou": _mean_of_finite(each["iou"]),
        "mcc": matthews(table),
    }


def matthews(table: Array) -> Array:
    """Correlation of map and reference, R_K of Gorodkin (2004), -1 to 1.

    For two classes this is the correlation coefficient of Matthews (1975). NaN where the map or the
    reference holds one class only: what does not vary correlates with nothing.

    Parameters
    ----------
    table : ``(..., class, class)`` int
        Row = reference, column = prediction.

    Returns
    -------
    ``(...,)`` float64
    """
    table = np.asarray(table, np.float64)
    share = _ratio(table, table.sum(axis=(-2, -1), keepdims=True))
    true, mapped = share.sum(axis=-1), share.sum(axis=-2)
    together = np.trace(share, axis1=-2, axis2=-1) - (true * mapped).sum(axis=-1)
    spread = (1 - (true**2).sum(axis=-1)) * (1 - (mapped**2).sum(axis=-1))
    single = ((table.sum(axis=-1) > 0).sum(axis=-1) < 2) | (
        (table.sum(axis=-2) > 0).sum(axis=-1) < 2
    )
    # ^ asked of the counts: shares that sum to one but for rounding would leave a spread
    return np.where(single, np.nan, _ratio(together, np.sqrt(np.maximum(spread, 0))))


def auc_roc(score: Array, truth: Array) -> float:
    """Probability that a pixel of the class scores higher than one of the rest; ties count half.

    This is the area under the receiver operating characteristic (Hanley & McNeil 1982).

    Parameters
    ----------
    score : ``(pixel,)`` float
        NaN = not seen; such pixels are left out.
    truth : ``(pixel,)`` bool

    Returns
    -------
    float
        NaN where one of the two is absent. For maps too large for memory see
        :func:`auc_roc_of_counts`.
    """
    seen = ~np.isnan(score)
    rank, truth = stats.rankdata(score[seen]), truth[seen]
    yes = int(truth.sum())
    no = truth.size - yes
    return float((rank[truth].sum() - yes * (yes + 1) / 2) / (yes * no)) if yes and no else np.nan


def auc_roc_of_counts(rest: Array, of_class: Array) -> float:
    """Area under the receiver operating characteristic from histograms of the score.

    Parameters
    ----------
    rest, of_class : ``(bin,)`` int
        Pixels of the rest and of the class in each bin of the score, which grows with the bin.
        Pixels of one bin count as ties.
    """
    rest, of_class = np.asarray(rest, np.float64), np.asarray(of_class, np.float64)
    below = np.cumsum(rest) - rest / 2
    pairs = rest.sum() * of_class.sum()
    return float((of_class * below).sum() / pairs) if pairs else float("nan")


@dataclass(frozen=True, slots=True)
class BoundaryDistance:
    """How far apart two outlines lie, metres; NaN where one of them is absent."""

    mean_m: float
    """Mean over the edge pixels of both of the distance to the other's nearest edge pixel."""
    hausdorff95_m: float
    """The larger of the two directed distances at their 95 % quantile (Huttenlocher et al. 1993):
    a lone wrong patch does not decide it, as it does the plain Hausdorff distance."""


def boundary_distance(
    predicted: Array, reference: Array, *, pixel_m: float, known: Array | None = None
) -> BoundaryDistance:
    """Measure the distance between the edges of two masks.

    Parameters
    ----------
    predicted, reference : ``(y, x)`` bool
    pixel_m
        Edge of a pixel, metres.
    known : ``(y, x)`` bool, optional
        Where both are known. An edge is a pixel of a mask beside a known pixel that is not of it:
        the rim of the raster and of what was not seen are no edges.
    """
    seen = np.ones(reference.shape, bool) if known is None else known
    edges = [_edge(mask, seen) for mask in (predicted, reference)]
    if not all(edge.any() for edge in edges):
        return BoundaryDistance(float("nan"), float("nan"))
    one, other = (pixel_m * np.argwhere(edge) for edge in edges)
    there, back = cKDTree(other).query(one)[0], cKDTree(one).query(other)[0]
    # ^ edges are thin: looking among them takes less than a distance for every pixel
    return BoundaryDistance(
        float((there.sum() + back.sum()) / (there.size + back.size)),
        float(max(np.quantile(there, 0.95), np.quantile(back, 0.95))),
    )


def _edge(mask: Array, known: Array) -> Array:
    return np.asarray(mask & known & ndimage.binary_dilation(known & ~mask))


def _ratio(part: Array, whole: Array) -> Array:
    """Divide, NaN where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(part, whole)
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def _mean_of_finite(values: Array) -> Array:
    """Mean along the last axis of what is not NaN."""
    return _ratio(np.nansum(values, axis=-1), np.isfinite(values).sum(axis=-1))


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
