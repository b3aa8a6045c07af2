"""Tables and totals of a comparison of outline files, as they are written and shown. Pure."""

from __future__ import annotations

import math
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd

from change_detection.attributes import iso_day
from change_detection.comparison import Comparison, PairChange
from change_detection.transitions import EVENTS
from change_detection.uncertainty import bounds_of_sum_km2
from inventory_engine.report.figures import class_label
from inventory_engine.report.numbers import SIZE_CLASSES, size_class
from inventory_engine.report.words import finite

__all__ = [
    "area_table",
    "change_table",
    "class_table",
    "classes_of",
    "event_table",
    "labels_of",
    "outline_table",
    "problem_table",
    "summary_of",
]


def labels_of(comparison: Comparison, pair: PairChange) -> tuple[str, str]:
    """Labels of a pair's two dates."""
    epochs = comparison.series.epochs
    return epochs[pair.start].label, epochs[pair.end].label


def change_table(comparison: Comparison) -> pd.DataFrame:
    """Changes from each date to the next, one pair after the other."""
    return pd.concat([pair.table for pair in comparison.pairs], ignore_index=True)


def area_table(comparison: Comparison) -> pd.DataFrame:
    """One row a glacier and date: area, its error, and the outlines it was taken from."""
    rows = []
    for i, identity in enumerate(comparison.glaciers):
        for date, epoch in enumerate(comparison.series.epochs):
            ice = comparison.ice[date]
            rows.append(
                {
                    "glacier_id": identity,
                    "name": comparison.names.get(identity, ""),
                    "label": epoch.label,
                    "date": iso_day(comparison.day[date, i])[:10],
                    "area_km2": comparison.area_km2[date, i],
                    "area_sigma_km2": comparison.sigma_km2[date, i],
                    "outlines": ";".join(ice.outlines.get(identity, ())),
                }
            )
    return pd.DataFrame(rows)


def outline_table(comparison: Comparison) -> gpd.GeoDataFrame:
    """The ice that was counted, one row a glacier and date, EPSG:4326."""
    rows = [
        (identity, epoch.label, iso_day(ice.day[identity])[:10], shape.area / 1e6, shape)
        for epoch, ice in zip(comparison.series.epochs, comparison.ice, strict=True)
        for identity, shape in sorted(ice.geometry.items())
    ]
    columns = ["glacier_id", "label", "date", "area_km2", "geometry"]
    table = pd.DataFrame(rows, columns=columns)
    frame = gpd.GeoDataFrame(table, geometry="geometry", crs=comparison.series.proj4)
    return frame.to_crs(4326)


def event_table(comparison: Comparison) -> pd.DataFrame:
    """All events with their evidence, also those that a change table has no room for."""
    rows = []
    for pair in comparison.pairs:
        start, end = labels_of(comparison, pair)
        known = pair.table.set_index("glacier_id")
        rows += [
            {
                "glacier_id": event.glacier_id,
                "name": comparison.names.get(event.glacier_id, ""),
                "from": start,
                "to": end,
                "event": event.event,
                "evidence": event.evidence,
                "area_from_km2": known.at[event.glacier_id, "area_from_km2"],
                "area_to_km2": known.at[event.glacier_id, "area_to_km2"],
            }
            for event in pair.events
        ]
    columns = ["glacier_id", "name", "from", "to", "event", "evidence"]
    return pd.DataFrame(rows, columns=[*columns, "area_from_km2", "area_to_km2"])


def problem_table(comparison: Comparison) -> pd.DataFrame:
    """What was wrong with the files, and what was done about it."""
    rows = [(p.source, p.glacier_id, p.kind, p.found, p.done) for p in comparison.problems]
    return pd.DataFrame(rows, columns=["source", "glacier_id", "kind", "found", "done"])


def classes_of(table: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Size class of each row: by its area at the first date, or what it has where it is new."""
    old, new = table["area_from_km2"].to_numpy(), table["area_to_km2"].to_numpy()
    return size_class(np.where(old > 0, old, np.nan_to_num(new)))


def class_table(comparison: Comparison) -> pd.DataFrame:
    """Change by size class for every pair, over the glaciers observed at both dates."""
    rows = []
    spans = comparison.pairs
    if comparison.period not in spans:
        spans = (*spans, comparison.period)
    for pair in spans:
        start, end = labels_of(comparison, pair)
        table = pair.table[np.isfinite(pair.table["area_change_km2"].to_numpy())]
        kinds = classes_of(table)
        for number in range(len(SIZE_CLASSES) - 1):
            mine = table[kinds == number]
            if len(mine):
                rows.append({"from": start, "to": end} | _class_row(mine, number))
    return pd.DataFrame(rows)


def _class_row(rows: pd.DataFrame, number: int) -> dict[str, Any]:
    old, change = (float(rows[name].sum()) for name in ("area_from_km2", "area_change_km2"))
    low, high = bounds_of_sum_km2(rows["area_change_sigma_km2"].to_numpy())
    return {
        "class_km2": class_label(number),
        "glaciers": len(rows),
        "area_from_km2": old,
        "area_to_km2": float(rows["area_to_km2"].sum()),
        "area_change_km2": change,
        "area_change_sigma_independent_km2": low,
        "area_change_sigma_correlated_km2": high,
        "area_change_percent": 100 * change / old if old > 0 else math.nan,
        "area_change_percent_sigma": 100 * high / old if old > 0 else math.nan,
    }


def summary_of(comparison: Comparison, *, settings: dict[str, Any]) -> dict[str, Any]:
    """Totals of every date and pair, JSON-ready; None stands for what is not available."""
    problems = [problem.kind for problem in comparison.problems]
    events = [event.event for pair in comparison.pairs for event in pair.events]
    summary = {
        "dates": [_date_facts(comparison, date) for date in range(len(comparison.ice))],
        "pairs": [_pair_facts(comparison, pair) for pair in comparison.pairs],
        "period": _pair_facts(comparison, comparison.period),
        "trend": comparison.total_trend,
        "glaciers": len(comparison.glaciers),
        "events": {name: events.count(name) for name in EVENTS if name in events},
        "problems": {kind: problems.count(kind) for kind in sorted(set(problems))},
        "projection": comparison.series.proj4,
        "settings": settings,
    }
    facts: dict[str, Any] = finite(summary)
    return facts


def _pair_facts(comparison: Comparison, pair: PairChange) -> dict[str, Any]:
    start, end = labels_of(comparison, pair)
    return {"from": start, "to": end} | pair.totals


def _date_facts(comparison: Comparison, date: int) -> dict[str, Any]:
    epoch, ice = comparison.series.epochs[date], comparison.ice[date]
    low, high = bounds_of_sum_km2(np.nan_to_num(comparison.sigma_km2[date]))
    days = epoch.frame["day"]
    return {
        "label": epoch.label,
        "file": epoch.source,
        "sha256": epoch.sha256,
        "outlines": epoch.rows,
        "glaciers_with_ice": len(ice.geometry),
        "date_first": iso_day(float(days.min()))[:10],
        "date_median": iso_day(epoch.day)[:10],
        "date_last": iso_day(float(days.max()))[:10],
        "area_km2": float(np.nansum(comparison.area_km2[date])),
        "area_sigma_independent_km2": low,
        "area_sigma_correlated_km2": high,
        "area_not_counted_no_growth_km2": comparison.clipped_km2[date],
        "outline_error_m": epoch.outline_error_m,
    }
