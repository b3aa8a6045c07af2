"""Standard deviations of areas and of their changes, for one glacier and for a region.

One law: an interval that cannot be estimated is missing, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import MIN_MEMBERS
from catalog.errors import UsageError

__all__ = [
    "AreaCalibration",
    "RegionalSigma",
    "area_sigma_km2",
    "boundary_sigma_km2",
    "bounds_of_sum_km2",
    "change_sigma_km2",
    "ensemble_sd",
    "regional_sigma_km2",
    "unseen_sigma_km2",
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
    areas: Mapping[str, float] | None = None
    """The two factors for the area of one date, where they were measured."""

    def __post_init__(self) -> None:
        for name, value in (("scale", self.scale), ("regional_scale", self.regional_scale)):
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"calibration {name} must be positive, found {value}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AreaCalibration:
        """Take the factors from a card or a summary; other keys are left out.

        Raises
        ------
        UsageError
            Where a factor is missing or not a positive number.
        """
        try:
            areas = values.get("areas")
            return cls(
                float(values["scale"]),
                float(values["regional_scale"]),
                str(values.get("source", "not stated")),
                areas and {k: float(areas[k]) for k in ("scale", "regional_scale")},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"the area calibration cannot be used: {error!r}") from error

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the inverse of :meth:`from_dict`."""
        return {**asdict(self), "areas": dict(self.areas) if self.areas else None}

    @property
    def for_areas(self) -> AreaCalibration:
        """The calibration to use on areas instead of on their changes."""
        if self.areas is None:
            return self
        return AreaCalibration(self.areas["scale"], self.areas["regional_scale"], self.source)


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


def unseen_sigma_km2(unseen_km2: npt.ArrayLike) -> Floats:
    """Area error of counting what was not seen as the ice that the reference inventory has there.

    Any part of it may have melted, from none to all: the root mean square of an error that is
    uniform between 0 and the unseen area, which is that area over sqrt(3).
    """
    return np.asarray(unseen_km2, dtype=np.float64) / math.sqrt(3.0)


def area_sigma_km2(
    spread: npt.ArrayLike, boundary: npt.ArrayLike, unseen_km2: npt.ArrayLike, *, scale: float
) -> Floats:
    """Estimate the standard deviation of each glacier's area at one date.

    Parameters
    ----------
    spread, boundary, unseen_km2 : ``(glacier,)``
        :func:`ensemble_sd` and :func:`boundary_sigma_km2` of the areas, and what was not seen, km2.
    scale
        Factor of :attr:`AreaCalibration.for_areas`.

    Returns
    -------
    ``(glacier,)`` float64
        Their quadratic sum; NaN with fewer than three members.
    """
    own = np.hypot(scale * np.asarray(spread, dtype=np.float64), boundary)
    return np.asarray(np.hypot(own, unseen_sigma_km2(unseen_km2)))


def change_sigma_km2(
    member_changes: npt.ArrayLike,
    other_from: npt.ArrayLike,
    other_to: npt.ArrayLike,
    *,
    scale: float,
) -> Floats:
    """Estimate the standard deviation of each glacier's area change.

    Parameters
    ----------
    member_changes : ``(member, glacier)``
        Each member's change of area, km2; NaN where it was not eligible at both dates.
    other_from, other_to : ``(glacier,)``
        What the members do not show at the two dates, km2: :func:`boundary_sigma_km2` and
        :func:`unseen_sigma_km2` in quadrature.
    scale
        Factor of :class:`AreaCalibration`.

    Returns
    -------
    ``(glacier,)`` float64
        NaN with fewer than three common members.
    """
    spread = scale * ensemble_sd(member_changes)
    others = np.hypot(np.asarray(other_from), np.asarray(other_to))
    return np.asarray(np.hypot(spread, others), dtype=np.float64)


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
    independent, one_error = bounds_of_sum_km2(sigma[known])
    correlated = one_error * max(1.0, calibration.regional_scale / calibration.scale)
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


def bounds_of_sum_km2(sigma: npt.ArrayLike) -> tuple[float, float]:
    """Give the bounds of the standard deviation of a sum: independent parts, and one error in all.

    Parameters
    ----------
    sigma : ``(glacier,)``
        Standard deviations, km2.

    Returns
    -------
    tuple of float
        The root of the sum of squares, never below the largest part, and the sum.
    """
    values = np.asarray(sigma, dtype=np.float64)
    largest = float(values.max(initial=0.0))
    independent = max(float(np.sqrt((values**2).sum())), largest)
    return independent, max(float(values.sum()), independent)
