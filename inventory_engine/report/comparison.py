"""The page of a comparison of outline files, and its figures as files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from change_detection.comparison import Comparison
from change_detection.transitions import EVENTS
from inventory_engine.report import comparison_figures as draw
from inventory_engine.report.comparison_tables import class_table, event_table, problem_table
from inventory_engine.report.style import figure_style, jpeg_uri, png_bytes, svg_bytes, svg_uri
from inventory_engine.report.tables import TABLE_ROWS
from inventory_engine.report.template import environment
from inventory_engine.report.words import plain, signed, with_sigma

__all__ = ["ComparisonPage", "build_comparison_page"]

_MAP_BYTES = 900_000
_SHOWN = 6
_EXTREMES = 5
_LARGE_KM2 = 0.1


@dataclass(frozen=True, slots=True)
class ComparisonPage:
    """A finished page and its figures."""

    html: str
    figures: dict[str, bytes]
    """Files by their names, ``figures/<name>.png`` and ``.svg``."""


@dataclass(frozen=True, slots=True)
class _Picture:
    uri: str
    alt: str
    kind: str
    caption: str


def build_comparison_page(
    comparison: Comparison, summary: dict[str, Any], *, title: str
) -> ComparisonPage:
    """Draw the figures and fill in the page; equal comparisons give equal bytes.

    Parameters
    ----------
    comparison
        The account.
    summary
        :func:`inventory_engine.report.comparison_tables.summary_of` of it.
    title
        What was compared, in words.
    """
    files: dict[str, bytes] = {}
    with figure_style():
        pictures = list(_pictures(comparison, files))
    events, problems = event_table(comparison), problem_table(comparison)
    html = (
        environment()
        .get_template("comparison.html")
        .render(
            title=title,
            facts=summary,
            first=summary["dates"][0],
            last=summary["dates"][-1],
            text=_texts(summary),
            pictures=pictures,
            pairs=_pair_rows(summary),
            classes=_class_rows(comparison),
            extremes=_extremes(comparison),
            rows=_glacier_rows(comparison),
            total=len(comparison.period.table),
            events=_event_rows(events.head(TABLE_ROWS)),
            event_total=len(events),
            event_counts=sorted(summary["events"].items()),
            meanings=list(EVENTS.items()),
            problems=problems.head(TABLE_ROWS).to_dict("records"),
            problem_total=len(problems),
            dates=_date_rows(summary),
            settings=sorted((name, str(value)) for name, value in summary["settings"].items()),
            matching=_MATCHING[summary["settings"]["match"]],
            coverage=_COVERAGE.get(summary["settings"]["coverage"], _COVERAGE["file"]),
        )
    )
    return ComparisonPage(html, files)


_MATCHING = {
    "id": "Glaciers are matched by their ids, which mean the same glacier in all files.",
    "overlap": "Glaciers are matched by where they lie, not by their ids.",
}
_COVERAGE = {
    "hull": "A file is taken to cover a glacier that it has no outline of where 80 % of the "
    "glacier's ground lies in the convex hull of the file's outlines; beyond, the glacier is not "
    "compared. A gap inside a file's region is so taken for ice that vanished.",
    "same": "Every file was said to show all ice of the region: a glacier that it lacks is counted "
    "as vanished or new.",
    "file": "What the files cover was given as polygons; glaciers with less than 80 % of their "
    "ground inside are not compared.",
}


def _pictures(comparison: Comparison, files: dict[str, bytes]) -> Iterator[_Picture]:
    """Draw every figure; each is let go before the next is drawn."""
    yield _picture(
        files,
        "change_map",
        draw.change_map(comparison),
        "map",
        "Relative area change of every glacier. Hatched, changes smaller than one standard "
        "deviation; glaciers narrower than a few pixels have a dot. The arrow points to true "
        "north.",
    )
    chosen = draw.most_changed(comparison.period, _SHOWN)
    if chosen:
        yield _picture(
            files,
            "most_changed",
            draw.outline_figure(comparison, chosen),
            "plot",
            "Outlines of all dates of the glaciers whose area changed most. Each frame has a "
            "scale of its own.",
        )
    yield _picture(
        files,
        "size_classes",
        draw.class_figure(comparison),
        "plot",
        "(a) Relative change against size, bars one standard deviation; the orange line is that "
        "of all glaciers together. (b) Change by size class, bars the larger bound of one "
        "standard deviation.",
    )
    if len(comparison.ice) > 2:
        yield _picture(
            files,
            "through_time",
            draw.time_figure(comparison),
            "plot",
            "(a) Area of the glaciers observed at all dates, bars the larger bound of one "
            "standard deviation. (b) Area of each glacier relative to its first.",
        )


def _picture(
    files: dict[str, bytes], name: str, figure: Figure, kind: str, caption: str
) -> _Picture:
    files[f"figures/{name}.png"] = png_bytes(figure)
    files[f"figures/{name}.svg"] = svg_bytes(figure)
    uri = svg_uri(figure) if kind == "plot" else jpeg_uri(figure, budget_bytes=_MAP_BYTES)
    return _Picture(uri, caption.split(".", maxsplit=1)[0], kind, caption)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _texts(summary: dict[str, Any]) -> dict[str, str]:
    """Headline numbers as words."""
    facts = {name: _number(v) for name, v in summary["period"].items() if not _is_label(v)}
    change, sigma = facts["area_change_km2"], facts["area_change_sigma_correlated_km2"]
    old, new = facts["area_from_at_both_dates_km2"], facts["area_to_at_both_dates_km2"]
    trend = {name: _number(value) for name, value in (summary["trend"] or {}).items()}
    start = facts["area_from_km2"]
    one_sided = summary["period"]["events"]
    return {
        "change": with_sigma(change, sigma, sign=True),
        "percent": with_sigma(
            facts["area_change_percent"], 100 * sigma / start if start else math.nan, sign=True
        ),
        "independent": plain(facts["area_change_sigma_independent_km2"], 3),
        "years": plain(facts["mean_interval_years"], 1),
        "rate": with_sigma(
            facts["rate_km2_per_year"], facts["rate_sigma_correlated_km2_per_year"], sign=True
        ),
        "rate_percent": with_sigma(
            facts["rate_percent_per_year"], facts["rate_percent_sigma"], sign=True
        ),
        "area_from": plain(start),
        "area_to": plain(facts["area_to_km2"]),
        "events": ", ".join(
            f"{one_sided.get(name, 0)} {name}" for name in ("vanished", "new", "advanced")
        ),
        "area_not_compared": f"{plain(facts['area_not_compared_from_km2'], 3)} km² at the first "
        f"date, {plain(facts['area_not_compared_to_km2'], 3)} km² at the last",
        "one_sided": _one_sided(facts, one_sided),
        "both_change": signed(new - old, 3),
        "both_percent": signed(100 * (new - old) / old if old else math.nan, 1),
        "clipped": ", ".join(
            f"{plain(date['area_not_counted_no_growth_km2'], 3)} km² in {date['label']}"
            for date in summary["dates"][1:]
        ),
        "trend": with_sigma(
            trend.get("trend_km2_per_year", math.nan),
            trend.get("trend_standard_error_km2_per_year", math.nan),
            sign=True,
        ),
        "trend_outlines": plain(trend.get("trend_outline_sigma_km2_per_year", math.nan), 4),
    }


def _is_label(value: Any) -> bool:
    return isinstance(value, str | dict)


def _one_sided(facts: dict[str, float], events: dict[str, int]) -> str:
    parts = []
    if events.get("vanished"):
        parts.append(f"{events['vanished']} vanished")
    if events.get("new"):
        lone = facts["area_to_km2"] - facts["area_to_at_both_dates_km2"]
        parts.append(f"{events['new']} new ({signed(lone, 3)} km²)")
    return " and ".join(parts)


def _pair_rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    pairs = list(summary["pairs"])
    if len(pairs) > 1:
        pairs.append(summary["period"])
    return [_pair_row({k: v if _is_label(v) else _number(v) for k, v in p.items()}) for p in pairs]


def _pair_row(facts: dict[str, Any]) -> dict[str, str]:
    low, high = (facts[f"area_change_sigma_{name}_km2"] for name in ("independent", "correlated"))
    return {
        "dates": f"{facts['from']} to {facts['to']}",
        "glaciers": f"{facts['glaciers_compared']:.0f} of {facts['glaciers']:.0f}",
        "years": plain(facts["mean_interval_years"], 2),
        "area_from": plain(facts["area_from_km2"], 3),
        "area_to": plain(facts["area_to_km2"], 3),
        "change": signed(facts["area_change_km2"], 3),
        "bounds": f"{plain(low, 3)} to {plain(high, 3)}",
        "rate": with_sigma(
            facts["rate_km2_per_year"], facts["rate_sigma_correlated_km2_per_year"], sign=True
        ),
        "percent": with_sigma(
            facts["rate_percent_per_year"], facts["rate_percent_sigma"], sign=True
        ),
    }


def _class_rows(comparison: Comparison) -> list[dict[str, str]]:
    table = class_table(comparison)
    labels = [comparison.series.epochs[i].label for i in (0, -1)]
    rows = table[(table["from"] == labels[0]) & (table["to"] == labels[1])]
    return [
        {
            "name": row["class_km2"],
            "glaciers": str(row["glaciers"]),
            "area_from": plain(row["area_from_km2"], 3),
            "area_to": plain(row["area_to_km2"], 3),
            "change": with_sigma(
                row["area_change_km2"], row["area_change_sigma_correlated_km2"], sign=True
            ),
            "percent": with_sigma(
                row["area_change_percent"], row["area_change_percent_sigma"], sign=True
            ),
        }
        for row in rows.to_dict("records")
    ]


def _extremes(comparison: Comparison) -> list[tuple[str, list[dict[str, str]]]]:
    """Glaciers that lost or gained most of their area, and those that changed least."""
    table = comparison.period.table
    table = table[table["area_change_km2"].notna() & (table["area_from_km2"] > 0)]
    large = table[table["area_from_km2"] >= _LARGE_KM2]
    table = large if len(large) else table
    percent = 100 * table["area_change_km2"] / table["area_from_km2"]
    table = table.assign(percent=percent, size=percent.abs())
    most = table.sort_values(["size", "glacier_id"], ascending=[False, True]).head(_EXTREMES)
    rest = table.drop(most.index).sort_values(["size", "glacier_id"]).head(_EXTREMES)
    groups = (("Most changed, relative to their size", most), ("Least changed", rest))
    return [
        (title, [_extreme(comparison, row) for row in rows.to_dict("records")])
        for title, rows in groups
        if len(rows)
    ]


def _extreme(comparison: Comparison, row: dict[Any, Any]) -> dict[str, str]:
    identity, old, sigma = row["glacier_id"], row["area_from_km2"], row["area_change_sigma_km2"]
    name = comparison.names.get(identity, "")
    return {
        "id": identity if name != identity else "",
        "name": name,
        "area_from": plain(old, 3),
        "area_to": plain(row["area_to_km2"], 3),
        "change": with_sigma(row["area_change_km2"], sigma, sign=True),
        "percent": with_sigma(row["percent"], 100 * sigma / old, sign=True),
    }


def _glacier_rows(comparison: Comparison) -> list[dict[str, Any]]:
    order = comparison.period.table.sort_values(
        ["area_from_km2", "glacier_id"], ascending=[False, True], na_position="last"
    )
    return [_glacier_row(comparison, row) for row in order.head(TABLE_ROWS).to_dict("records")]


def _glacier_row(comparison: Comparison, row: dict[Any, Any]) -> dict[str, Any]:
    change, sigma = row["area_change_km2"], row["area_change_sigma_km2"]
    dates = f"{row['date_from'] or 'no date'}\n{row['date_to'] or 'no date'}"
    beyond = math.isfinite(change) and abs(change) > sigma
    return {
        "id": row["glacier_id"],
        "name": comparison.names.get(row["glacier_id"], ""),
        "event": row["event"],
        "beyond": beyond,
        "cells": [
            (dates, dates),
            _cell(row["area_from_km2"], plain(row["area_from_km2"], 4)),
            _cell(row["area_to_km2"], plain(row["area_to_km2"], 4)),
            _cell(change, with_sigma(change, sigma, sign=True)),
            _cell(row["rate_km2_per_year"], signed(row["rate_km2_per_year"], 4)),
            _cell(row["rate_percent_per_year"], signed(row["rate_percent_per_year"], 2)),
        ],
    }


def _cell(value: float, text: str) -> tuple[str, float | str]:
    return (text, round(value, 9)) if math.isfinite(value) else ("–", "")


def _event_rows(events: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "dates": f"{row['from']} to {row['to']}",
            "id": row["glacier_id"],
            "name": row["name"],
            "event": row["event"],
            "evidence": row["evidence"],
        }
        for row in events.to_dict("records")
    ]


def _date_rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {
            "label": date["label"],
            "file": date["file"],
            "days": date["date_first"]
            if date["date_first"] == date["date_last"]
            else f"{date['date_first']} to {date['date_last']}",
            "outlines": str(date["outlines"]),
            "glaciers": str(date["glaciers_with_ice"]),
            "area": with_sigma(_number(date["area_km2"]), date["area_sigma_correlated_km2"]),
            "error": f"{date['outline_error_m']:g}",
            "sha256": date["sha256"],
        }
        for date in summary["dates"]
    ]
