"""The numbers the report shows, worked out from the tables. Pure: no reading, no drawing.

NaN means "not available" all the way through; it is never replaced by zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from catalog.glaciers import SIZE_CLASSES_KM2
from change_detection.uncertainty import (
    AreaCalibration,
    area_sigma_km2,
    regional_sigma_km2,
)
from inventory_engine.report.reading import Pair, Season

__all__ = [
    "MAX_DAY_OF_YEAR_SHIFT",
    "MIN_COMPARED_SHARE",
    "SIZE_CLASSES",
    "PairTotals",
    "SeasonTotals",
    "class_medians",
    "headline_pair",
    "measured_in_both",
    "most_changed",
    "pair_totals",
    "season_totals",
    "size_class_areas",
]

MIN_COMPARED_SHARE = 0.5
# ^ a sample of less than half the area does not speak for a region
MAX_DAY_OF_YEAR_SHIFT = 45
# ^ days; a season more than six weeks off may compare two states of the snow cover
SIZE_CLASSES = (*SIZE_CLASSES_KM2, math.inf)
# ^ km2; the first is drawn with what is smaller, of which inventories have little
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeasonTotals:
    """Totals of one season over all reference glaciers."""

    label: str
    area_km2: float
    sigma_km2: float
    """Standard deviation of the total; NaN where there is no interval."""
    sigma_independent_km2: float
    """Lower bound: the glaciers' errors share nothing."""
    sigma_correlated_km2: float
    """Upper bound: the glaciers' errors are one error."""
    clean_km2: float
    debris_km2: float
    reference_km2: float
    unseen_km2: float
    glaciers: int
    with_ice: int
    without_interval: int
    """Glaciers with ice whose area has no interval."""
    date_first: str
    date_median: str
    date_last: str
    obs_fraction: float
    """Area-weighted share of the reference area that was seen."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PairTotals:
    """Change between two seasons, over the glaciers the change stage could compare."""

    start: str
    end: str
    problems: tuple[str, ...]
    """Why no regional change is reported; empty where it is."""
    cautions: tuple[str, ...]
    """What a reader must know beside the numbers."""
    glaciers: int
    measured: int
    measured_area_share: float
    """Reference area of the compared glaciers over that of all."""
    years: float
    """Area-weighted mean interval of the compared glaciers."""
    area_from_km2: float
    area_to_km2: float
    change_km2: float
    sigma_km2: float
    """Standard deviation of the regional change; NaN where there is no interval."""
    sigma_independent_km2: float
    """Lower bound: the glaciers' errors share nothing."""
    sigma_correlated_km2: float
    """Upper bound: the glaciers' errors are one error."""
    rate_km2_per_year: float
    rate_sigma_km2_per_year: float
    rate_percent_per_year: float
    rate_percent_sigma: float
    beyond_loss: int
    """Glaciers that lost more than one standard deviation."""
    beyond_gain: int
    median_rate_percent: float
    debris_from_km2: float
    debris_to_km2: float

    @property
    def comparable(self) -> bool:
        """Whether the difference may be called the region's glacier change."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy."""
        return asdict(self)


def season_totals(season: Season, *, calibration: AreaCalibration) -> SeasonTotals:
    """Total a season over its glaciers.

    The uncertainty of the total is that of
    :func:`change_detection.uncertainty.regional_sigma_km2`, with areas in the place of changes.
    """
    accounts = season.accounts
    area = accounts["area_km2"].to_numpy()
    sigma = glacier_sigmas(accounts, scale=calibration.scale)
    iced = area > 0
    total = regional_sigma_km2(
        member_areas(accounts)[:, iced], sigma[iced], area[iced], calibration=calibration
    )
    days = pd.to_numeric(accounts["day"], errors="coerce").where(iced).dropna().to_numpy(float)
    reference = accounts["area_reference_km2"].to_numpy()
    seen = accounts["obs_fraction"].to_numpy()
    ends = np.percentile(days, (0, 50, 100)) if days.size else np.full(3, np.nan)
    return SeasonTotals(
        label=season.label,
        area_km2=float(np.nansum(area)),
        sigma_km2=total.sigma,
        sigma_independent_km2=total.independent,
        sigma_correlated_km2=total.correlated,
        clean_km2=float(np.nansum(accounts["area_clean_km2"])),
        debris_km2=float(np.nansum(accounts["area_debris_km2"])),
        reference_km2=float(np.nansum(reference)),
        unseen_km2=float(np.nansum(accounts["area_unseen_km2"])),
        glaciers=len(accounts),
        with_ice=int(iced.sum()),
        without_interval=int((iced & ~np.isfinite(sigma)).sum()),
        date_first=iso_day(ends[0]),
        date_median=iso_day(ends[1]),
        date_last=iso_day(ends[2]),
        obs_fraction=_weighted_mean(seen, reference),
    )


def glacier_sigmas(accounts: pd.DataFrame, *, scale: float) -> Floats:
    """Standard deviation of each glacier's area in km2; NaN where there is no interval."""
    return area_sigma_km2(
        accounts["area_ensemble_sd_km2"],
        accounts["boundary_sigma_km2"],
        accounts["area_unseen_km2"],
        scale=scale,
    )


def member_areas(accounts: pd.DataFrame) -> Floats:
    """Area mapped by each member ``(member, glacier)`` in km2; NaN where it had no vote."""
    if "member_area_km2" not in accounts.columns:
        return np.empty((0, len(accounts)))
    rows = [
        np.asarray(row if row is not None else [], float) for row in accounts["member_area_km2"]
    ]
    count = max((len(row) for row in rows), default=0)
    out = np.full((count, len(rows)), np.nan)
    for index, row in enumerate(rows):
        out[: len(row), index] = row
    return out


def pair_totals(pair: Pair) -> PairTotals:
    """Total the change of a pair as its summary has it, and say whether it is change at all."""
    summary = pair.summary
    kept = pair.glaciers[measured_in_both(pair)]
    sigma, change = kept["area_change_sigma_km2"], kept["area_change_km2"]
    rates = kept["rate_percent_per_year"].dropna().to_numpy()
    total, compared = (summary["area_reference_km2"], summary["area_reference_compared_km2"])
    share = compared / total if total > 0 else math.nan
    return PairTotals(
        start=pair.start,
        end=pair.end,
        problems=tuple(_problems(pair, share)),
        cautions=tuple(_cautions(kept, share)),
        glaciers=len(pair.glaciers),
        measured=len(kept),
        measured_area_share=share,
        years=summary["mean_interval_years"],
        area_from_km2=summary["area_from_km2"],
        area_to_km2=summary["area_to_km2"],
        change_km2=summary["area_change_km2"],
        sigma_km2=summary["area_change_sigma_km2"],
        sigma_independent_km2=summary["area_change_sigma_independent_km2"],
        sigma_correlated_km2=summary["area_change_sigma_correlated_km2"],
        rate_km2_per_year=summary["rate_km2_per_year"],
        rate_sigma_km2_per_year=summary["rate_sigma_km2_per_year"],
        rate_percent_per_year=summary["rate_percent_per_year"],
        rate_percent_sigma=summary["rate_percent_sigma"],
        beyond_loss=int((change < -sigma).sum()),
        beyond_gain=int((change > sigma).sum()),
        median_rate_percent=float(np.median(rates)) if rates.size else math.nan,
        debris_from_km2=summary["area_debris_from_km2"],
        debris_to_km2=summary["area_debris_to_km2"],
    )


def measured_in_both(pair: Pair) -> npt.NDArray[np.bool_]:
    """Rows of the pair's table for which the change stage reports a change."""
    return np.asarray(np.isfinite(pair.glaciers["area_change_km2"].to_numpy(float)))


_SILENCERS = {
    "low-observation": "less than 80 % of the reference outline was seen",
    "out-of-season": "seen outside the end of the ablation season",
    "short-interval": "the two dates are less than 0.9 years apart",
    "undated": "no date",
}
# ^ flags for which change_detection.change reports no change, in words


def _problems(pair: Pair, share: float) -> list[str]:
    flags = pair.glaciers["flags"].str.split(", ").explode().value_counts()
    why = [
        f"{words} ({flags[name]} of {len(pair.glaciers)} glaciers)"
        for name, words in _SILENCERS.items()
        if name in flags.index
    ]
    if not measured_in_both(pair).any():
        return why or ["no glacier could be compared"]
    if not share >= MIN_COMPARED_SHARE:
        least = f"less than {MIN_COMPARED_SHARE:.0%} of the reference area could be compared"
        return [least.replace("%", " %"), *why]
    if pair.summary["mean_interval_years"] == 0:
        return ["both seasons took the same images"]
    return []


def _cautions(kept: pd.DataFrame, share: float) -> list[str]:
    out = []
    if MIN_COMPARED_SHARE <= share < 0.9:
        out.append(f"{100 * share:.0f} % of the reference area could be compared")
    shift = _day_of_year_shift(kept["date_from"], kept["date_to"]) if len(kept) else 0.0
    if shift > MAX_DAY_OF_YEAR_SHIFT:
        out.append(
            f"the dates of a typical glacier lie {shift:.0f} days apart in the year: "
            "part of the difference may be seasonal snow"
        )
    return out


def _day_of_year_shift(first: pd.Series[Any], second: pd.Series[Any]) -> float:
    """Median circular difference of the days of the year."""
    gap = (second.dt.dayofyear - first.dt.dayofyear).abs().to_numpy(float)
    return float(np.median(np.minimum(gap, 365.25 - gap)))


def headline_pair(totals: list[PairTotals]) -> PairTotals | None:
    """Choose the comparable pair with the longest interval, or None."""
    usable = [pair for pair in totals if pair.comparable]
    return max(usable, key=lambda pair: (pair.years, pair.end), default=None)


def most_changed(pair: Pair, keep: npt.NDArray[np.bool_], count: int) -> list[str]:
    """Ids of the glaciers with the largest absolute change, those beyond one sigma first."""
    table = pair.glaciers[keep]
    size = table["area_change_km2"].abs()
    ranked = pd.DataFrame(
        {
            "id": table["glacier_id"],
            "beyond": size > table["area_change_sigma_km2"],
            "size": size,
        }
    )
    ranked = ranked[ranked["size"] > 0]
    ranked = ranked.sort_values(["beyond", "size", "id"], ascending=[False, False, True])
    return [str(name) for name in ranked["id"].head(count)]


def size_class_areas(
    season: Season, *, scale: float
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Area (km2), number and summed sigma (km2) of the glaciers in each size class.

    The class of a glacier is that of its reference area, so it keeps its class in all seasons.
    """
    accounts = season.accounts
    classes = size_class(accounts["area_reference_km2"].to_numpy())
    area = accounts["area_km2"].to_numpy()
    sigma = np.where(area > 0, glacier_sigmas(accounts, scale=scale), 0.0)
    count = len(SIZE_CLASSES) - 1
    areas = np.array([np.nansum(area[classes == c]) for c in range(count)])
    numbers = np.array([int(((classes == c) & (area > 0)).sum()) for c in range(count)])
    sigmas = np.array([sigma[classes == c].sum() for c in range(count)])
    return areas, numbers, sigmas


def size_class(area_km2: Floats) -> npt.NDArray[np.int64]:
    """Index of the size class; areas below the first limit go to the first class."""
    index = np.searchsorted(np.array(SIZE_CLASSES[1:-1]), area_km2, side="right")
    return index.astype(np.int64)


def class_medians(area_km2: Floats, values: Floats) -> list[tuple[float, float, float, float, int]]:
    """Geometric-mean size, median, lower and upper quartile and number for each filled class."""
    classes = size_class(area_km2)
    rows = []
    for index in range(len(SIZE_CLASSES) - 1):
        inside = (classes == index) & np.isfinite(values) & (area_km2 > 0)
        if inside.sum() >= 3:
            low, middle, high = np.percentile(values[inside], (25, 50, 75))
            size = float(np.exp(np.log(area_km2[inside]).mean()))
            rows.append((size, float(middle), float(low), float(high), int(inside.sum())))
    return rows


def _weighted_mean(values: Floats, weights: Floats) -> float:
    good = np.isfinite(values) & np.isfinite(weights) & (weights > 0)
    return float(np.average(values[good], weights=weights[good])) if good.any() else math.nan


def iso_day(day: float) -> str:
    """ISO date of a day number since 1970-01-01; empty where there is none."""
    return "" if not np.isfinite(day) else str(np.datetime64(int(day), "D"))
