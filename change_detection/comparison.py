"""Areas of every glacier in outline files of several dates, and what became of them, with errors.

One law: a glacier that a file does not cover is not a glacier that vanished.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import shapely

from catalog.glaciers import polygons_of
from change_detection.accounts import MIN_OBSERVED
from change_detection.attributes import iso_day
from change_detection.epochs import Problem, Series, decimal_years
from change_detection.margins import Margins, trace_margins
from change_detection.matching import Ice, share_out
from change_detection.transitions import Event, find_events
from change_detection.trends import trend_of
from change_detection.uncertainty import bounds_of_sum_km2

__all__ = [
    "COMPARISON_SCHEMA",
    "Comparison",
    "PairChange",
    "compare_series",
]

Floats = npt.NDArray[np.float64]

COMPARISON_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("glacier_id", "date_from", "date_to")]
    + [
        (name, pa.float64())
        for name in (
            "area_from_km2",
            "area_to_km2",
            "area_change_km2",
            "area_change_sigma_km2",
            "rate_km2_per_year",
            "rate_percent_per_year",
        )
    ]
    + [("event", pa.string())]
)
"""Columns of the change table, one row a glacier and pair of dates; missing numbers are null.

``event`` is the first that holds of ``unobserved``, ``vanished``, ``new``, ``below-minimum``,
``merged``, ``split``, ``tributary-detached`` and ``advanced``, or empty.
"""


@dataclass(frozen=True, slots=True)
class PairChange:
    """What became of every glacier between two of the dates."""

    start: int
    """Number of the first date."""
    end: int
    """Number of the second date."""
    table: pd.DataFrame
    """Columns of :data:`COMPARISON_SCHEMA`, sorted by glacier."""
    events: tuple[Event, ...]
    """All events with their evidence, sorted."""
    totals: dict[str, Any]
    """Sums over the glaciers observed at both dates; NaN not available."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The whole account."""

    series: Series
    glaciers: tuple[str, ...]
    """Sorted ids: of the first date, and new ones."""
    names: dict[str, str]
    """Names of glaciers that have one."""
    ice: tuple[Ice, ...]
    """Whose ice there is at each date; with no growth, what is counted of it."""
    area_km2: Floats
    """``(date, glacier)``: 0 no ice, NaN not observed."""
    sigma_km2: Floats
    """``(date, glacier)`` standard deviation of the area."""
    day: Floats
    """``(date, glacier)`` day of the outline, or the file's median day; NaN unknown."""
    pairs: tuple[PairChange, ...]
    """From each date to the next."""
    period: PairChange
    """From the first date to the last."""
    trend: pd.DataFrame | None
    """For three or more dates, one row a glacier: see :func:`change_detection.trends.trend_of`."""
    total_trend: dict[str, float] | None
    """The trend of the sum of the glaciers that were observed at all dates."""
    clipped_km2: tuple[float, ...]
    """Ice of each date that is not counted because no growth is assumed."""
    problems: tuple[Problem, ...]
    """Sorted."""


def compare_series(
    series: Series,
    *,
    by_id: bool,
    coverage: shapely.Geometry | None = None,
    complete: bool = False,
    growth: bool = True,
) -> Comparison:
    """Account for every glacier at every date.

    Parameters
    ----------
    series
        Clean outlines in the order of time.
    by_id
        Match glaciers by their ids, not by overlap.
    coverage
        What all later files show, in the series' projection. Without it a glacier without an
        outline counts as observed if 80 % of its ground lies in the convex hull of the outlines.
    complete
        Every file shows all ice there is: what it lacks has vanished.
    growth
        False: ice beyond a glacier's outline of the date before is not counted.
    """
    ice, known, problems = share_out(series, by_id=by_id)
    lost: list[Problem] = []
    accounted, clipped = ice, (0.0,) * len(ice)
    if not growth:
        accounted, clipped, lost = _without_growth(series, ice)
        known = {name: date for name, date in known.items() if date == 0}
    glaciers = tuple(sorted(known))
    ground = {name: ice[date].geometry[name] for name, date in known.items()}
    seen = _observed(series, ice, ground, coverage=coverage, complete=complete)
    area = np.array([[_km2(one.geometry.get(g)) for g in glaciers] for one in accounted])
    area[~seen] = np.nan
    margins = [trace_margins(one.geometry, series.proj4) for one in ice]
    errors = [epoch.outline_error_m for epoch in series.epochs]
    sigma = np.array(
        [_sigmas(m.free_length_m(), glaciers, e) for m, e in zip(margins, errors, strict=True)]
    )
    sigma[~seen] = np.nan
    day = _days(series, ice, glaciers)
    names = {
        str(ident): str(name)
        for epoch in reversed(series.epochs)
        for ident, name in zip(epoch.frame["glacier_id"], epoch.frame["name"], strict=True)
        if name
    }
    since = np.array([known[name] for name in glaciers])
    draft = _Accounts(series, glaciers, since, tuple(accounted), area, day, tuple(margins))
    last = len(ice) - 1
    pairs = tuple(_pair(draft, i, i + 1) for i in range(last))
    period = pairs[0] if last == 1 else _pair(draft, 0, last)
    told = [p for pair in pairs for p in _one_sided(draft, pair, seen) + _same(draft, pair)]
    trend = total = None
    if last > 1:
        trend, total = trend_of(draft.glaciers, area, day, sigma)
    return Comparison(
        series,
        glaciers,
        names,
        tuple(accounted),
        area,
        sigma,
        day,
        pairs,
        period,
        trend,
        total,
        clipped,
        tuple(sorted({*series.problems, *problems, *lost, *told})),
    )


@dataclass(frozen=True, slots=True)
class _Accounts:
    series: Series
    glaciers: tuple[str, ...]
    since: npt.NDArray[np.int64]
    """Date at which each glacier is first known."""
    ice: tuple[Ice, ...]
    area: Floats
    day: Floats
    margins: tuple[Margins, ...]


def _km2(geometry: Any) -> float:
    return 0.0 if geometry is None else float(geometry.area) / 1e6


def _sigmas(length_m: Mapping[str, float], glaciers: Sequence[str], error_m: float) -> Floats:
    return np.array([length_m.get(name, 0.0) * error_m / 1e6 for name in glaciers])


def _without_growth(
    series: Series, ice: Sequence[Ice]
) -> tuple[list[Ice], tuple[float, ...], list[Problem]]:
    """Clip each glacier to what it was at the date before."""
    before = dict(ice[0].geometry)
    counted, clipped, problems = [ice[0]], [0.0], []
    for epoch, one in zip(series.epochs[1:], ice[1:], strict=True):
        source, kept, lost = f"{epoch.label}: {epoch.source}", {}, 0.0
        for name, shape in one.geometry.items():
            old = before.get(name)
            inside = shape if old is not None and shapely.covers(old, shape) else None
            if old is not None and inside is None:
                inside = polygons_of(shapely.intersection(old, shape))
            gone = (shape.area - (0.0 if inside is None else inside.area)) / 1e6
            lost += max(gone, 0.0)
            if inside is not None:
                kept[name] = shapely.normalize(inside)
            if name not in ice[0].geometry:
                found = f"{shape.area / 1e6:.6f} km2 where there was no ice"
                problems.append(
                    Problem(source, name, "new-not-counted", found, "not counted: no growth")
                )
        before |= kept
        counted.append(replace(one, geometry=kept))
        clipped.append(lost)
        if lost:
            found = f"{lost:.6f} km2 lie beyond the outlines of the date before"
            problems.append(
                Problem(source, "", "growth-not-counted", found, "not counted: no growth")
            )
    return counted, tuple(clipped), problems


def _observed(
    series: Series,
    ice: Sequence[Ice],
    ground: Mapping[str, Any],
    *,
    coverage: Any,
    complete: bool,
) -> npt.NDArray[np.bool_]:
    """Whether each date's file tells about each glacier ``(date, glacier)``."""
    names = sorted(ground)
    shapes = np.array([ground[name] for name in names], dtype=object)
    rows = []
    for epoch, one in zip(series.epochs, ice, strict=True):
        here = np.array([n in one.geometry or n in epoch.without_ice for n in names])
        if complete:
            rows.append(np.ones_like(here))
            continue
        if coverage is not None:
            rows.append(_covered(shapes, coverage))
            continue
        outlines = shapely.geometrycollections(epoch.frame.geometry.to_numpy())
        around = shapely.convex_hull(outlines)
        missing = np.flatnonzero(~here)
        here[missing] = _covered(shapes[missing], around)
        rows.append(here)
    return np.array(rows)


def _covered(shapes: npt.NDArray[Any], area: Any) -> npt.NDArray[np.bool_]:
    if not len(shapes):
        return np.zeros(0, dtype=bool)
    share = shapely.area(shapely.intersection(shapes, area)) / shapely.area(shapes)
    return np.asarray(share >= MIN_OBSERVED)


def _days(series: Series, ice: Sequence[Ice], glaciers: Sequence[str]) -> Floats:
    rows = []
    for epoch, one in zip(series.epochs, ice, strict=True):
        median = epoch.day
        rows.append([one.day.get(n, epoch.without_ice.get(n, median)) for n in glaciers])
    return np.array(rows)


def _pair(accounts: _Accounts, start: int, end: int) -> PairChange:
    """Compare two dates."""
    names, epochs = accounts.glaciers, accounts.series.epochs
    old, new = accounts.area[start], accounts.area[end]
    change = new - old
    lengths = (
        accounts.margins[start].changed_length_m(accounts.margins[end]),
        accounts.margins[end].changed_length_m(accounts.margins[start]),
    )
    errors = (epochs[start].outline_error_m, epochs[end].outline_error_m)
    sigma = np.hypot(*(_sigmas(n, names, e) for n, e in zip(lengths, errors, strict=True)))
    sigma[~np.isfinite(change)] = np.nan
    years = decimal_years(accounts.day[end]) - decimal_years(accounts.day[start])
    rate = np.array([_rate(*row) for row in zip(change, sigma, years, strict=True)])
    percent = np.full(len(names), np.nan)
    np.divide(100 * rate, old, out=percent, where=old > 0)
    events = find_events(
        names,
        (accounts.ice[start], accounts.ice[end]),
        areas=(old, new),
        sigma=sigma,
        errors_m=errors,
        labels=(epochs[start].label, epochs[end].label),
    )
    first: dict[str, str] = {}
    for event in events:
        first.setdefault(event.glacier_id, event.event)
    table = pd.DataFrame(
        {
            "glacier_id": names,
            "date_from": [iso_day(d)[:10] for d in accounts.day[start]],
            "date_to": [iso_day(d)[:10] for d in accounts.day[end]],
            "area_from_km2": old,
            "area_to_km2": new,
            "area_change_km2": change,
            "area_change_sigma_km2": sigma,
            "rate_km2_per_year": rate,
            "rate_percent_per_year": percent,
            "event": [first.get(name, "") for name in names],
        }
    )
    known = accounts.since <= end
    table, here = table[known].reset_index(drop=True), set(table["glacier_id"][known])
    events = tuple(event for event in events if event.glacier_id in here)
    return PairChange(start, end, table, events, _totals(table, years[known]))


def _rate(change: float, sigma: float, years: float) -> float:
    """Change a year; 0 for one outline compared with itself, NaN without two dates in order."""
    if change == 0 and sigma == 0:
        return 0.0
    return change / years if years > 0 else math.nan


def _totals(table: pd.DataFrame, years: Floats) -> dict[str, Any]:
    """Sums over the glaciers observed at both dates, with both bounds of their error."""
    compared = np.isfinite(table["area_change_km2"].to_numpy())
    rows = table[compared]
    old, change = rows["area_from_km2"].to_numpy(), rows["area_change_km2"].to_numpy()
    sigma = bounds_of_sum_km2(rows["area_change_sigma_km2"].to_numpy())
    span = _mean_interval(old, rows["area_to_km2"].to_numpy(), years[compared])
    total, start = float(change.sum()), float(old.sum())
    rate = _rate(total, sigma[1], span)
    finite = table[["area_from_km2", "area_to_km2"]].to_numpy()
    both = (finite > 0).all(axis=1)
    return {
        "glaciers": len(table),
        "glaciers_compared": int(compared.sum()),
        "glaciers_not_compared": int((~compared).sum()),
        "area_not_compared_from_km2": float(np.nansum(finite[~compared, 0])),
        "area_not_compared_to_km2": float(np.nansum(finite[~compared, 1])),
        "area_from_km2": start,
        "area_to_km2": float(rows["area_to_km2"].sum()),
        "area_change_km2": total,
        "area_change_percent": 100 * total / start if start > 0 else math.nan,
        "area_loss_km2": float(change[change < 0].sum()),
        "area_gain_km2": float(change[change > 0].sum()),
        "glaciers_at_both_dates": int(both.sum()),
        "area_from_at_both_dates_km2": float(finite[both, 0].sum()),
        "area_to_at_both_dates_km2": float(finite[both, 1].sum()),
        "area_change_sigma_km2": sigma[1],
        "area_change_sigma_independent_km2": sigma[0],
        "area_change_sigma_correlated_km2": sigma[1],
        "mean_interval_years": span,
        "rate_km2_per_year": rate,
        "rate_sigma_independent_km2_per_year": sigma[0] / span if span > 0 else math.nan,
        "rate_sigma_correlated_km2_per_year": sigma[1] / span if span > 0 else math.nan,
        "rate_percent_per_year": 100 * rate / start if start > 0 else math.nan,
        "rate_percent_sigma": 100 * sigma[1] / span / start if start * span > 0 else math.nan,
        "events": {str(k): int(n) for k, n in sorted(_counted(table["event"]).items())},
    }


def _mean_interval(old: Floats, new: Floats, years: Floats) -> float:
    """Mean interval of the dated glaciers, weighted by the larger of their areas."""
    weight = np.maximum(old, new)
    dated = np.isfinite(years) & (weight > 0)
    return float(np.average(years[dated], weights=weight[dated])) if dated.any() else math.nan


def _counted(events: pd.Series[Any]) -> dict[str, int]:
    return dict(events[events != ""].value_counts())


def _one_sided(accounts: _Accounts, pair: PairChange, seen: npt.NDArray[np.bool_]) -> list[Problem]:
    """Name the glaciers that only one of two files in a row has."""
    old, new = (accounts.series.epochs[date] for date in (pair.start, pair.end))
    found = []
    for i, name in enumerate(accounts.glaciers):
        before, after = (name in accounts.ice[k].geometry for k in (pair.start, pair.end))
        if before == after or name in new.without_ice:
            continue
        kind, lacks = ("only-earlier", new) if before else ("only-later", old)
        covered = seen[pair.end if before else pair.start, i]
        counted = "vanished" if before else "new"
        done = f"counted as {counted}" if covered else "set aside: not observed at both dates"
        where = "within" if covered else "outside"
        text = f"no ice in the file of {lacks.label}, {where} the ground that it covers"
        found.append(Problem(f"{lacks.label}: {lacks.source}", name, kind, text, done))
    return found


def _same(accounts: _Accounts, pair: PairChange) -> list[Problem]:
    """Name what cannot be a change in time: copied outlines, dates in the wrong order."""
    epochs = accounts.series.epochs
    old, new = (accounts.ice[date].geometry for date in (pair.start, pair.end))
    days = (accounts.day[date] for date in (pair.start, pair.end))
    source = f"{epochs[pair.end].label}: {epochs[pair.end].source}"
    copied, found = 0, []
    for name, before, after in zip(accounts.glaciers, *days, strict=True):
        if name not in old or name not in new:
            continue
        same = bool(shapely.equals_exact(old[name], new[name]))
        copied += same and before != after
        if after <= before and not same:
            text = f"dated {iso_day(after)[:10]}, not after {iso_day(before)[:10]}"
            found.append(Problem(source, name, "date-order", text, "no rate of change"))
    if copied:
        text = f"{copied} outlines are those of {epochs[pair.start].label} to the last vertex"
        found.append(Problem(source, "", "copied", text, "no change and no error of it"))
    return found
