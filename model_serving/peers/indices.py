"""Glaciers by the threshold of one band index, tuned on pixels of known class.

What inventories were made with: Red/SWIR1 (Paul et al. 2002, Remote Sensing of Environment 89) and
NDSI, (green - SWIR1) / (green + SWIR1) (Dozier 1989). An index knows glacier and not glacier alone:
all that it calls glacier counts as clean ice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import CLASSES, ICE_CLASSES
from catalog.errors import DataError
from model_serving.features import CHANNELS
from model_serving.metrics import RATIO_THRESHOLDS

__all__ = ["INDICES", "Index", "IndexClassifier"]

Array = npt.NDArray[Any]

_DARKEST = 1e-4
# ^ reflectance below this is noise: keeps indices finite


@dataclass(frozen=True, slots=True)
class Index:
    """A number of two bands that is high over snow and ice."""

    title: str
    bands: tuple[str, str]
    """Names of channels."""
    value: Callable[[Array, Array], Array]
    """Of their reflectances."""
    thresholds: tuple[float, ...]
    """Among which the best is chosen."""


INDICES: dict[str, Index] = {
    "band-ratio": Index(
        "Band ratio Red/SWIR1", ("red", "swir1"), lambda a, b: a / b, RATIO_THRESHOLDS
    ),
    "ndsi": Index(
        "NDSI",
        ("green", "swir1"),
        lambda a, b: (a - b) / (a + b),
        tuple(round(-0.5 + 0.02 * i, 2) for i in range(76)),
    ),
}
"""Indices by name."""


class IndexClassifier:
    """Calls a pixel glacier where its index exceeds a threshold.

    Parameters
    ----------
    index
        One of :data:`INDICES`.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        self.threshold = float("nan")
        """What was found; NaN before."""

    def fit(self, features: Array, labels: Array, rng: np.random.Generator) -> None:
        """Choose the threshold with the best IoU of glacier (of several equal ones the lowest).

        Parameters
        ----------
        features : ``(pixel, 11)`` float
            Raw features, NaN = missing; pixels without optical bands are left out.
        labels : ``(pixel,)`` uint8
            Classes; all known.
        rng
            Not used: nothing is drawn.

        Raises
        ------
        DataError
            ``one-class`` where no pixel is glacier.
        """
        del rng
        value = self._value(features)
        truth = np.isin(labels, ICE_CLASSES)
        if not (truth & np.isfinite(value)).any():
            raise DataError(
                f"{self.index.title} cannot be tuned on {len(labels)} pixels without glacier",
                kind="one-class",
            )
        # All thresholds at once: how many pixels, and how many of glacier, lie above each.
        edges = np.array(self.index.thresholds)

        def above(values: Array) -> Array:
            return len(values) - np.searchsorted(np.sort(values), edges, side="right")

        shared, mapped = above(value[truth & np.isfinite(value)]), above(value[np.isfinite(value)])
        union = np.count_nonzero(truth & np.isfinite(value)) + mapped - shared
        self.threshold = float(edges[int((shared / union).argmax())])

    def predict(self, features: Array) -> Array:
        """Certainties ``(pixel, class)`` float32: 0 or 1. What was not seen is background."""
        ice = self._value(features) > self.threshold
        out = np.zeros((len(features), len(CLASSES)), np.float32)
        out[:, ICE_CLASSES[0]], out[:, 0] = ice, ~ice
        return out

    def _value(self, features: Array) -> Array:
        """The index of each pixel; NaN where a band is missing."""
        # Raw optical features are square roots of reflectance, see model_serving.features.
        first, second = (
            np.maximum(features[:, CHANNELS.index(band)].astype(np.float64) ** 2, _DARKEST)
            for band in self.index.bands
        )
        return self.index.value(first, second)
