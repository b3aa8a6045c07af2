"""Standard deviations of areas and of their changes, for one glacier and for a region.

One law: an interval that cannot be estimated is missing, never zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import MIN_MEMBERS
from catalog.errors import UsageError

__all__ = [
    "AreaCalibration",
    "RegionalSigma",
    "boundary_sigma_km2",
    "change_sigma_km2",
    "ensemble_sd",
    "regional_sigma_km2",
]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AreaCalibration:
    """Factors that make the ensemble's standard deviations cover as often as they should."""

    scale: float
    """Multiplies the standard deviation of one glacier's area change."""
    regional_scale: float
    """Multiplies the standard deviation of a region's area change."""
    source: str
    """Where the factors were measured, and what was not verified; printed beside every result."""

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("regional_scale", self.regional_scale)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"calibration {name} must be positive, found {value}")


@dataclass(frozen=True, slots=True)
class RegionalSigma:
    """Standard deviation of the sum of many glaciers' changes, km2; NaN where not available."""

    sigma: float
    """Members' common errors and the glaciers' own errors in quadrature, between the bounds."""
    members: float
    """Standard deviation over members of the regional change, after ``regional_scale``."""
    independent: float
    """Lower bound: the glaciers' errors share nothing."""
    correlated: float
    """Upper bound: the glaciers' errors are one error."""
    area_fraction: float
    """Part of the area whose glaciers have an interval; below 95 % there is none for the sum."""


def ensemble_sd(member_areas: npt.ArrayLike) -> Floats:
    """Sample standard deviation over members (axis 0), NaN with fewer than three of them."""
    values = np.asarray(member_areas, dtype=np.float64)
    known = np.isfinite(values)
    n = known.sum(axis=0)
    enough = n >= MIN_MEMBERS
    mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(n, 1)
    squares = np.where(known, values - mean, 0.0) ** 2
    variance = squares.sum(axis=0) / np.maximum(n - 1, 1)
    return np.asarray(np.where(enough, np.sqrt(variance), np.nan))


def boundary_sigma_km2(margin_m: npt.ArrayLike, resolution_m: float) -> Floats:
    """Area error of deciding mixed pixels along the ice margin as a whole.

    Each of the margin's ``margin_m / resolution_m`` pixels is wrong by a fraction that is uniform
    in ±1/2 (standard deviation 1/sqrt(12)), independent of the others. A small term: errors of
    the map itself are the ensemble's.
    """
    pixels = np.asarray(margin_m, dtype=np.float64) / resolution_m
    return np.asarray(resolution_m**2 / 1e6 * np.sqrt(pixels / 12.0))


def change_sigma_km2(
    member_changes: npt.ArrayLike,
    boundary_from: npt.ArrayLike,
    boundary_to: npt.ArrayLike,
    *,
    scale: float,
) -> Floats:
    """Estimate the standard deviation of each glacier's area change.

    Parameters
    ----------
    member_changes : ``(member, glacier)``
        Each member's change of area, km2; NaN where it was not eligible at both dates.
    boundary_from, boundary_to : ``(glacier,)``
        :func:`boundary_sigma_km2` of the two dates, km2.
    scale
        Factor of :class:`AreaCalibration`.

    Returns
    -------
    ``(glacier,)`` float64
        NaN with fewer than three common members.
    """
    spread = scale * ensemble_sd(member_changes)
    margins = np.hypot(np.asarray(boundary_from), np.asarray(boundary_to))
    return np.asarray(np.hypot(spread, margins), dtype=np.float64)


def regional_sigma_km2(
    member_changes: npt.NDArray[Any],
    sigma: npt.NDArray[Any],
    area: npt.NDArray[Any],
    *,
    calibration: AreaCalibration,
) -> RegionalSigma:
    """Estimate the standard deviation of the sum of the glaciers' changes.

    What the members have in common (one of them sees more ice everywhere) is taken from the
    standard deviation over members of the summed change; glaciers mapped by different members
    (other folds) form separate sums, added in quadrature. The glaciers' own errors are added as
    independent. As both hold the members' own scatter, the sum is cut at the upper bound.

    Parameters
    ----------
    member_changes : ``(member, glacier)``
        As in :func:`change_sigma_km2`.
    sigma, area : ``(glacier,)``
        Standard deviation of the change (:func:`change_sigma_km2`) and area, km2.
    calibration
        ``regional_scale`` multiplies what the members have in common. Where it is larger than
        ``scale``, the upper bound grows with it: sums were found to be less certain than single
        glaciers say.
    """
    known = np.isfinite(sigma)
    total = float(area.sum())
    fraction = float(area[known].sum()) / total if total > 0 else math.nan
    if not known.any() or not fraction >= 0.95:
        return RegionalSigma(math.nan, math.nan, math.nan, math.nan, fraction)
    independent = float(np.sqrt((sigma[known] ** 2).sum()))
    widening = max(1.0, calibration.regional_scale / calibration.scale)
    correlated = max(independent, float(sigma[known].sum())) * widening
    members = calibration.regional_scale * math.sqrt(_summed_variance(member_changes[:, known]))
    combined = min(math.hypot(members, independent), correlated)
    return RegionalSigma(combined, members, independent, correlated, fraction)


def _summed_variance(member_changes: npt.NDArray[Any]) -> float:
    """Variance over members of the summed change, one sum for each set of eligible members."""
    sets, which = np.unique(np.isfinite(member_changes), axis=1, return_inverse=True)
    variance = 0.0
    for i in range(sets.shape[1]):
        sums = member_changes[:, which.ravel() == i][sets[:, i]].sum(axis=1)
        if sums.size >= MIN_MEMBERS:
            variance += float(np.var(sums, ddof=1))
    return variance
