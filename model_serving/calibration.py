"""Whether probabilities mean what they say, and the temperature that makes them.

Maps are counted one by one into histograms of a fixed size, in whole numbers: whatever the number
and order of maps and workers, parts add up to exactly the whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special

from catalog.cube import ICE_CLASSES
from catalog.errors import DataError, UsageError
from model_serving.metrics import auc_roc_of_counts

__all__ = [
    "ProbabilityCounts",
    "Temperature",
    "calibration_error",
    "expected_calibration_error",
    "fit_temperature",
    "reliability",
    "with_temperature",
]

Array = npt.NDArray[Any]
Of = Literal["top", "ice"]

_FINE = 5040
# ^ fine bins: divisible by most numbers of bins that anyone asks for
_UNIT = 2**28
# ^ sums of probabilities are kept in whole numbers of 1 / _UNIT: no order of adding changes them
_CHUNK = 2**22
# ^ pixels counted at a time; their sum in units is exact in double precision
_BOUNDS = (0.05, 20.0)
_LEAST_LOG = -80.0
# ^ stands for the logarithm of a probability of zero


@dataclass(frozen=True, slots=True, eq=False)
class ProbabilityCounts:
    """Histogram of a probability, and of how often it came true; 120 kB whatever it counts.

    Add two to get that of both.
    """

    count: Array
    """``(5040,)`` int64, pixels in each of as many equal steps from 0 to 1."""
    true: Array
    """``(5040,)`` int64, those of them on which it came true."""
    units: Array
    """``(5040,)`` int64, sum of their probabilities in units of 2^-28."""

    @classmethod
    def of(cls, probability: Array, outcome: Array) -> ProbabilityCounts:
        """Count a probability of yes or no.

        Parameters
        ----------
        probability : ``(...)`` float in [0, 1]
            NaN = not seen, left out.
        outcome : ``(...)`` bool

        Raises
        ------
        DataError
            Of kind ``not-a-probability``, where a value lies outside of [0, 1].
        """
        flat, came_true = probability.ravel(), outcome.ravel()
        sums = np.zeros((3, _FINE), np.int64)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK].astype(np.float64)
            seen = ~np.isnan(part)
            part, yes = part[seen], came_true[start : start + _CHUNK][seen]
            if part.size and not (part.min() >= -1e-6 and part.max() <= 1 + 1e-6):
                raise DataError(
                    f"probabilities from {part.min():g} to {part.max():g} do not lie in 0 to 1",
                    kind="not-a-probability",
                )
            part = np.clip(part, 0, 1)
            index = np.minimum((part * _FINE).astype(np.int64), _FINE - 1)
            sums[0] += np.bincount(index, minlength=_FINE)
            sums[1] += np.bincount(index[yes], minlength=_FINE)
            whole = np.bincount(index, weights=np.rint(part * _UNIT), minlength=_FINE)
            sums[2] += whole.astype(np.int64)
        return cls(*sums)

    @classmethod
    def of_map(cls, probability: Array, labels: Array, *, of: Of) -> ProbabilityCounts:
        """Count one map of class probabilities.

        Parameters
        ----------
        probability : ``(class, ...)`` float
            Summing to 1; where they are 0 or NaN in every class, nothing was seen.
        labels : ``(...)`` int
            Classes; what is not below the number of classes is unknown and left out.
        of
            ``top``: the probability of the most probable class, true where the pixel is of that
            class. ``ice``: the probability of clean and debris-covered ice together, true where the
            pixel is either.
        """
        known = (labels < len(probability)) & (np.nansum(probability, axis=0) > 0)
        chosen, label = probability[:, known], labels[known]
        if of == "top":
            return cls.of(chosen.max(axis=0), chosen.argmax(axis=0) == label)
        ice = chosen[list(ICE_CLASSES)].sum(axis=0, dtype=np.float64)
        return cls.of(ice, np.isin(label, ICE_CLASSES))

    def __add__(self, other: ProbabilityCounts) -> ProbabilityCounts:
        return ProbabilityCounts(
            self.count + other.count, self.true + other.true, self.units + other.units
        )

    @classmethod
    def total(cls, parts: Sequence[ProbabilityCounts]) -> ProbabilityCounts:
        """Add up any number of parts."""
        out = cls.of(np.empty(0), np.empty(0, bool))
        for part in parts:
            out = out + part
        return out

    @property
    def pixels(self) -> int:
        """Number of pixels counted."""
        return int(self.count.sum())

    @property
    def auc_roc(self) -> float:
        """Area under the receiver operating characteristic; ties within a fine bin count half."""
        return auc_roc_of_counts(self.count - self.true, self.true)


def reliability(
    counts: ProbabilityCounts, *, bins: int = 15, adaptive: bool = False
) -> pd.DataFrame:
    """Observed share against stated probability.

    Parameters
    ----------
    counts
        From maps.
    bins
        How many; a divisor of 5040, such as 10, 15, 20 or 40.
    adaptive
        Bins that hold about equally many pixels (Nguyen & O'Connor 2015), instead of equally wide
        ones. Their limits are steps of 1/5040, so fewer come back where many pixels share a step.

    Returns
    -------
    DataFrame
        A row for each bin: its limits ``low`` and ``high``, the mean ``probability`` and the
        ``observed`` share within it (NaN where it is empty) and the ``count`` of pixels.

    Raises
    ------
    UsageError
        Where 5040 is no multiple of ``bins``.
    """
    if bins < 1 or _FINE % bins:
        raise UsageError(f"{bins} bins asked for; choose a divisor of {_FINE}, such as 15 or 20")
    starts = np.arange(0, _FINE, _FINE // bins)
    if adaptive and counts.pixels:
        middle = np.cumsum(counts.count) - counts.count / 2
        wanted = np.minimum(middle * bins / counts.pixels, bins - 0.5).astype(np.int64)
        filled = np.flatnonzero(counts.count)
        first = filled[np.flatnonzero(np.diff(wanted[filled], prepend=-1))]
        starts = np.concatenate(([0], first[1:]))
    count, true, units = (
        np.add.reduceat(column, starts) for column in (counts.count, counts.true, counts.units)
    )
    some = np.where(count, count, 1)
    return pd.DataFrame(
        {
            "low": starts / _FINE,
            "high": np.append(starts[1:], _FINE) / _FINE,
            "probability": np.where(count, units / _UNIT / some, np.nan),
            "observed": np.where(count, true / some, np.nan),
            "count": count,
        }
    )


def calibration_error(
    counts: ProbabilityCounts, *, bins: int = 15, adaptive: bool = False
) -> float:
    """Mean distance of observed share and stated probability, each bin weighing as its pixels.

    The expected calibration error of Naeini et al. (2015); with 15 equal bins of the top class as
    in Guo et al. (2017). NaN where nothing was counted. Parameters as of :func:`reliability`.
    """
    table = reliability(counts, bins=bins, adaptive=adaptive).dropna()
    if table.empty:
        return math.nan
    off = (table["observed"] - table["probability"]).abs()
    return float((off * table["count"]).sum() / table["count"].sum())


def expected_calibration_error(
    probability: Array, labels: Array, *, bins: int = 15, of: Of = "top", adaptive: bool = False
) -> float:
    """Calibration error of one map in memory: :func:`calibration_error` of its counts.

    Parameters
    ----------
    probability : ``(class, ...)`` float
    labels : ``(...)`` int
    of
        See :meth:`ProbabilityCounts.of_map`.
    bins, adaptive
        See :func:`reliability`.
    """
    counts = ProbabilityCounts.of_map(probability, labels, of=of)
    return calibration_error(counts, bins=bins, adaptive=adaptive)


@dataclass(frozen=True, slots=True)
class Temperature:
    """What a member's logits are divided by, and what that does to its log-loss."""

    value: float
    """Above 1 where the member is too sure of itself."""
    log_loss_before: float
    """Mean of minus the logarithm of the probability of the true class, at temperature 1."""
    log_loss_after: float
    pixels: int
    at_bound: Literal["low", "high"] | None
    """Whether the value is a bound of the search, as the best one lies there or beyond. ``low``:
    the pixels hold no error that limits how sure the member may be (all are right, or nearly), so
    they cannot calibrate it: keep 1. ``high``: its probabilities are no better than chance."""


def fit_temperature(
    logits: Array, labels: Array, *, bounds: tuple[float, float] = _BOUNDS
) -> Temperature:
    """Find the temperature with the least log-loss (Guo et al. 2017, section 4.2).

    Parameters
    ----------
    logits : ``(pixel, class)`` float
        Of pixels the member was not trained on. Logarithms of probabilities will do: logits are
        defined but for a constant.
    labels : ``(pixel,)`` int
        Classes; pixels with another label, or without finite logits, are left out.
    bounds
        Of the temperature.

    Notes
    -----
    The log-loss is convex in 1 / temperature, so it has one minimum; it is searched for on a
    logarithmic scale.

    Raises
    ------
    DataError
        Of kind ``no-known-pixels``.
    """
    scores = np.maximum(
        logits, _LEAST_LOG + np.max(logits, axis=1, keepdims=True), dtype=np.float64
    )
    known = (labels < logits.shape[1]) & np.isfinite(scores).all(axis=1)
    scores, truth = scores[known], labels[known].astype(np.int64)
    if not truth.size:
        raise DataError(
            "a temperature needs pixels of known class, found none: look at the labels",
            kind="no-known-pixels",
        )
    above = scores - scores[np.arange(truth.size), truth][:, None]
    # ^ only how far the other logits lie above the true one's matters

    def log_loss(log_temperature: float) -> float:
        return float(special.logsumexp(above / math.exp(log_temperature), axis=1).mean())

    low, high = (math.log(b) for b in bounds)
    found = optimize.minimize_scalar(
        log_loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5}
    )
    best = min((low, float(found.x), high), key=log_loss)
    # ^ the search never tries the bounds themselves
    if 0 < log_loss(0.0) <= log_loss(best) and low <= 0 <= high:
        best = 0.0
        # ^ nothing is gained, as where all classes are equally likely everywhere
    at_bound: Literal["low", "high"] | None = None
    if best - low < 1e-3:
        best, at_bound = low, "low"
    elif high - best < 1e-3:
        best, at_bound = high, "high"
    return Temperature(math.exp(best), log_loss(0.0), log_loss(best), truth.size, at_bound)


def with_temperature(probability: Array, temperature: float) -> Array:
    """Apply a temperature to class probabilities, ``(class, ...)`` float32 summing to 1.

    Where nothing was seen all classes are 0, and stay so. The most probable class stays the same.
    """
    if temperature == 1.0:
        return probability
    top = probability.max(axis=0)
    scaled = (probability / np.where(top > 0, top, 1)) ** (1 / temperature)
    # ^ relative to the largest: powers of small numbers alone would vanish
    total = scaled.sum(axis=0)
    return np.asarray(scaled / np.where(total > 0, total, 1), probability.dtype)
