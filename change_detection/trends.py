"""Straight lines through the areas of three or more dates."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from change_detection.epochs import decimal_years

__all__ = ["trend_of"]

Floats = npt.NDArray[np.float64]


def trend_of(
    glaciers: Sequence[str], area: Floats, day: Floats, sigma: Floats
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Fit a straight line to each glacier's areas by least squares.

    Parameters
    ----------
    glaciers
        Ids.
    area, day, sigma : ``(date, glacier)``
        km2, days since 1970-01-01 and km2; NaN where not observed.

    Returns
    -------
    tuple
        One row a glacier with at least three dated areas: ``trend_km2_per_year``, its standard
        error from the scatter about the line (n - 2 degrees of freedom), and
        ``trend_outline_sigma_km2_per_year``, what the outlines' own errors amount to if those of
        different dates are independent. And the same for the sum over the glaciers observed at
        all dates, whose outline errors are taken as one error at each date.
    """
    rows = []
    for i, name in enumerate(glaciers):
        line = _line(decimal_years(day[:, i]), area[:, i], sigma[:, i])
        if line is not None:
            rows.append({"glacier_id": name} | line)
    columns = ["glacier_id", "dates", "trend_km2_per_year", "trend_standard_error_km2_per_year"]
    table = pd.DataFrame(rows, columns=[*columns, "trend_outline_sigma_km2_per_year"])
    always = np.isfinite(area).all(axis=0)
    weight = np.where(always & np.isfinite(day).all(axis=0), np.nan_to_num(area).max(axis=0), 0.0)
    none: dict[str, float] = dict.fromkeys(table.columns[1:], math.nan)
    if not weight.any():
        return table, none | {"glaciers": 0}
    when = decimal_years(np.average(np.nan_to_num(day), axis=1, weights=weight))
    total = area[:, always].sum(axis=1)
    line = _line(when, total, sigma[:, always].sum(axis=1))
    return table, (line or none) | {"glaciers": int(always.sum())}


def _line(years: Floats, area: Floats, sigma: Floats) -> dict[str, float] | None:
    known = np.isfinite(years) & np.isfinite(area)
    count = int(known.sum())
    if count < 3:
        return None
    t = years[known] - years[known][0]
    t = t - t.mean()
    # Areas relative to the first: equal areas have a trend of exactly zero.
    a = area[known] - area[known][0]
    a = a - a.mean()
    spread = float((t**2).sum())
    slope = error = drawn = 0.0 if not a.any() else math.nan
    if spread > 0:
        slope = float((t * a).sum()) / spread
        error = math.sqrt(float(((a - slope * t) ** 2).sum()) / (count - 2) / spread)
        drawn = math.sqrt(float(((t * sigma[known]) ** 2).sum())) / spread
    return {
        "dates": count,
        "trend_km2_per_year": slope,
        "trend_standard_error_km2_per_year": error,
        "trend_outline_sigma_km2_per_year": drawn,
    }
