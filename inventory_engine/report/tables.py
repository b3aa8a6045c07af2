"""Rows of the report's tables: text to show beside numbers to sort by. Pure."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from catalog.scenes import boxes_meet
from inventory_engine.report.numbers import PairTotals, SeasonTotals
from inventory_engine.report.reading import Pair, RegionData, Season, joined
from inventory_engine.report.words import plain, signed, with_sigma

__all__ = [
    "TABLE_ROWS",
    "Cell",
    "change_rows",
    "day_range",
    "event_rows",
    "inventory_rows",
    "look_rows",
    "pair_rows",
    "scene_rows",
    "season_rows",
    "set_aside_rows",
    "turnover_rows",
]

TABLE_ROWS = 1000
# ^ more rows make the page slow; the full tables lie beside it
_SCENE_ROWS = 200
_SHOWN_SHARE = 0.005

Cell = tuple[str, float | str]
"""What a table shows, and by what it sorts."""


def change_rows(
    pair: Pair, region: RegionData, measured: npt.NDArray[np.bool_], *, comparable: bool
) -> list[dict[str, Any]]:
    """One row a glacier, largest first; numbers of change only where they mean change."""
    inputs = _inputs(pair, region)
    table = pair.glaciers.assign(measured=measured, inputs=pair.glaciers["glacier_id"].map(inputs))
    order = table.sort_values(
        ["area_from_km2", "glacier_id"], ascending=[False, True], na_position="last"
    )
    return [
        _change_row(row, region.names, comparable=comparable)
        for row in order.head(TABLE_ROWS).to_dict("records")
    ]


def _change_row(row: dict[Any, Any], names: dict[str, str], *, comparable: bool) -> dict[str, Any]:
    show = comparable and bool(row["measured"])
    change, sigma = row["area_change_km2"], row["area_change_sigma_km2"]
    rate, rate_sigma = row["rate_percent_per_year"], row["rate_percent_sigma"]
    identity = str(row["glacier_id"])
    return {
        "id": identity,
        "name": names.get(identity, ""),
        "inputs": joined(row["inputs"]).replace("+", " + "),
        "event": joined(row["event"]),
        "flags": joined(row["flags"]),
        "beyond": bool(show and math.isfinite(sigma) and abs(change) > sigma),
        "cells": [
            (_span(row["date_from"], row["date_to"]), _span(row["date_from"], row["date_to"])),
            _area(row["area_from_km2"], row["area_from_sigma_km2"]),
            _area(row["area_to_km2"], row["area_to_sigma_km2"]),
            _change(change, sigma, show=show),
            _change(rate, rate_sigma, show=show, digits=2),
            _moved(row["terminus_change_m"], show=show),
            (_debris(row), _key(row["area_debris_to_km2"])),
            _number(row["zmed_m"], 0),
        ],
    }


def inventory_rows(season: Season, names: dict[str, str]) -> list[dict[str, Any]]:
    """One row a glacier of a single season, for a run without any pair."""
    order = season.accounts.sort_values(["area_km2", "ref_id"], ascending=[False, True])
    rows = []
    for row in order.head(TABLE_ROWS).to_dict("records"):
        day = str(row["src_date"] or "")[:10]
        rows.append(
            {
                "id": str(row["ref_id"]),
                "name": names.get(str(row["ref_id"]), ""),
                "inputs": joined(row["inputs"]).replace("+", " + "),
                "event": "",
                "flags": joined(row["flags"]),
                "beyond": False,
                "cells": [
                    (day, day),
                    _number(row["area_reference_km2"]),
                    _number(row["area_km2"]),
                    ("–", ""),
                    ("–", ""),
                    ("–", ""),
                    _number(row["area_debris_km2"]),
                    _number(row["zmed_m"], 0),
                ],
            }
        )
    return rows


def event_rows(
    region: RegionData, totals: list[PairTotals], *, limit: int = TABLE_ROWS
) -> list[dict[str, str]]:
    """Glaciers to which something happened that a rate does not tell."""
    rows = []
    for pair, total in zip(region.pairs, totals, strict=True):
        for row in pair.events.to_dict("records"):
            identity = str(row["glacier_id"])
            rows.append(
                {
                    "pair": f"{pair.start} to {pair.end}",
                    "id": identity,
                    "name": region.names.get(identity, ""),
                    "event": str(row["event"]),
                    "evidence": str(row["evidence"]),
                    "note": "" if total.comparable else "seasons not comparable",
                }
            )
    return rows[:limit]


def season_rows(totals: list[SeasonTotals]) -> list[dict[str, str]]:
    """Totals of the seasons as text."""
    return [
        {
            "label": total.label,
            "dates": day_range(total),
            "median": total.date_median or "no date",
            "area": with_sigma(total.area_km2, total.sigma_km2),
            "bounds": _bounds(total.sigma_independent_km2, total.sigma_correlated_km2),
            "clean": plain(total.clean_km2),
            "debris": plain(total.debris_km2),
            "unseen": plain(total.unseen_km2),
            "seen": f"{100 * total.obs_fraction:.1f} %"
            if math.isfinite(total.obs_fraction)
            else "not available",
            "glaciers": f"{total.with_ice} of {total.glaciers}",
            "without_interval": str(total.without_interval),
        }
        for total in totals
    ]


def day_range(total: SeasonTotals) -> str:
    """First to last date of a season's outlines, one date where they are equal."""
    if not total.date_first:
        return "no date"
    if total.date_first == total.date_last:
        return total.date_first
    return f"{total.date_first} to {total.date_last}"


def pair_rows(totals: list[PairTotals]) -> list[dict[str, Any]]:
    """Totals of the pairs as text; a pair that cannot be compared shows why, and no change."""
    rows = []
    for total in totals:
        percent = with_sigma(
            total.rate_percent_per_year, total.rate_percent_sigma, sign=True, digits=2
        )
        rows.append(
            {
                "pair": f"{total.start} to {total.end}",
                "problems": list(total.problems),
                "cautions": list(total.cautions),
                "comparable": total.comparable,
                "measured": f"{total.measured} of {total.glaciers}",
                "years": plain(total.years),
                "change": with_sigma(total.change_km2, total.sigma_km2, sign=True),
                "bounds": _bounds(total.sigma_independent_km2, total.sigma_correlated_km2),
                "rate": with_sigma(
                    total.rate_km2_per_year, total.rate_sigma_km2_per_year, sign=True
                ),
                "percent": percent,
                "beyond": f"{total.beyond_loss} lost, {total.beyond_gain} gained",
                "debris": signed(total.debris_to_km2 - total.debris_from_km2),
            }
        )
    return rows


def turnover_rows(region: RegionData, totals: list[PairTotals]) -> list[dict[str, str]]:
    """What became of the ground that was seen at both dates, for the pairs that are comparable."""
    rows = []
    for pair, total in zip(region.pairs, totals, strict=True):
        if total.comparable and math.isfinite(pair.summary["area_lost_km2"]):
            rows.append(
                {"pair": f"{pair.start} to {pair.end}"}
                | {
                    name: plain(pair.summary[f"area_{name}_km2"], 3)
                    for name in ("lost", "gained", "to_water", "to_debris", "to_clean")
                }
            )
    return rows


def scene_rows(season: Season) -> tuple[list[dict[str, str]], int]:
    """Scenes of a season as text (capped), and how many there are."""
    rows = []
    for scene in season.scenes[:_SCENE_ROWS]:
        cloud = scene.get("cloud_percent")
        known = isinstance(cloud, (int, float)) and math.isfinite(cloud)
        rows.append(
            {
                "id": str(scene.get("id", "")),
                "date": str(scene.get("datetime") or "")[:10],
                "kind": str(scene.get("kind") or ""),
                "cloud": f"{cloud:.0f} %" if known else "–",
            }
        )
    return rows, len(season.scenes)


def look_rows(season: Season, names: dict[str, str]) -> list[dict[str, str]]:
    """Looks that each glacier was mapped from: share, day and scenes; the largest glacier first."""
    boxes = season.outlines.set_index("ref_id").geometry.to_crs(4326).bounds
    rows = []
    order = season.accounts.sort_values(["area_km2", "ref_id"], ascending=[False, True])
    for row in order.head(TABLE_ROWS).to_dict("records"):
        identity = str(row["ref_id"])
        known = boxes.loc[[identity]].to_numpy() if identity in boxes.index else np.empty((0, 4))
        days = [] if row["look_days"] is None else list(row["look_days"])
        shares = [] if row["look_shares"] is None else list(row["look_shares"])
        looks = [
            f"{share:.0%} {day}: {', '.join(_scenes_of(season, day, known)) or 'unknown'}"
            for day, share in zip(days, shares, strict=True)
            if share >= _SHOWN_SHARE
        ]
        rows.append(
            {"id": identity, "name": names.get(identity, ""), "looks": "\n".join(looks) or "none"}
        )
    return rows


def _scenes_of(season: Season, day: str, boxes: npt.NDArray[np.float64]) -> list[str]:
    """Ids of the optical scenes of a day that meet a glacier."""
    return [
        str(scene["id"])
        for scene in season.scenes
        if scene["kind"] == "optical"
        and str(scene["datetime"])[:10] == day
        and (not len(boxes) or any(boxes_meet(tuple(scene["bbox"]), tuple(b)) for b in boxes))
    ]


def set_aside_rows(run: dict[str, Any]) -> tuple[list[dict[str, str]], list[tuple[str, int]]]:
    """What was set aside (capped), and how often each kind of fault was found."""
    keys = ("stage", "unit", "what", "kind", "reason")
    rows = sorted(
        ({key: str(entry.get(key) or "") for key in keys} for entry in run["set_aside"]),
        key=lambda row: tuple(row[key] for key in keys),
    )
    counts = Counter(row["kind"] for row in rows)
    return rows[:TABLE_ROWS], sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _inputs(pair: Pair, region: RegionData) -> dict[str, str]:
    """Inputs each glacier had: one text where both seasons agree, else both."""
    start, end = (
        dict(zip(accounts["ref_id"].astype(str), accounts["inputs"], strict=True))
        for accounts in (region.season(pair.start).accounts, region.season(pair.end).accounts)
    )
    both = {}
    for identity in sorted(set(start) | set(end)):
        texts = [str(start.get(identity, "")) or "none", str(end.get(identity, "")) or "none"]
        both[identity] = texts[0] if texts[0] == texts[1] else " → ".join(texts)
    return both


def _change(value: float, sigma: float, *, show: bool, digits: int | None = None) -> Cell:
    if not show:
        return "–", ""
    text = with_sigma(value, sigma, sign=True, digits=digits, missing="no interval")
    return text.replace(" (", "\n("), _key(value)


def _moved(value: float, *, show: bool) -> Cell:
    if not show or not math.isfinite(value):
        return "–", ""
    return signed(value, 0), value


def _area(value: float, sigma: float) -> Cell:
    if not math.isfinite(value):
        return "–", ""
    return with_sigma(value, sigma, missing="no interval").replace(" (", "\n("), _key(value)


def _debris(row: dict[Any, Any]) -> str:
    return f"{plain(row['area_debris_from_km2'], 2)} → {plain(row['area_debris_to_km2'], 2)}"


def _span(first: Any, second: Any) -> str:
    days = [f"{day:%Y-%m-%d}" if not pd.isna(day) else "no date" for day in (first, second)]
    return "\n".join(days)


def _number(value: float, digits: int = 3) -> Cell:
    return plain(float(value), digits).replace("not available", "–"), _key(float(value))


def _key(value: float) -> float | str:
    return round(value, 6) if math.isfinite(value) else ""


def _bounds(low: float, high: float) -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not available"
    digits = min(4, max(0, 1 - math.floor(math.log10(max(low, 1e-4)))))
    return f"{plain(low, digits)} to {plain(high, digits)}"
