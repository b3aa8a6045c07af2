"""What the report reads: the tables of a finished run, checked before anything is drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow

from catalog.cube import Workspace
from catalog.errors import StoreError
from catalog.grid import RegionGrid
from change_detection.change import CHANGE_SCHEMA
from change_detection.series import SERIES
from change_detection.uncertainty import AreaCalibration

__all__ = ["Pair", "RegionData", "Season", "joined", "read_region"]

_ACCOUNT_COLUMNS = [
    "ref_id",
    "src_date",
    "day",
    "date_span_days",
    "area_km2",
    "area_clean_km2",
    "area_debris_km2",
    "area_water_km2",
    "area_reference_km2",
    "area_unseen_km2",
    "obs_fraction",
    "area_ensemble_sd_km2",
    "boundary_sigma_km2",
    "zmed_m",
    "inputs",
    "flags",
    "look_days",
    "look_shares",
]
_OUTLINE_COLUMNS = [
    "ref_id",
    "glac_name",
    "area_clean_km2",
    "area_debris_km2",
    "area_sigma_km2",
    "inputs",
    "geometry",
]
_SUMMARY_KEYS = [
    "area_reference_km2",
    "area_reference_compared_km2",
    "mean_interval_years",
    "area_from_km2",
    "area_to_km2",
    "area_change_km2",
    "area_change_sigma_km2",
    "area_change_sigma_independent_km2",
    "area_change_sigma_correlated_km2",
    "rate_km2_per_year",
    "rate_sigma_km2_per_year",
    "rate_percent_per_year",
    "rate_percent_sigma",
    "area_debris_from_km2",
    "area_debris_to_km2",
    *("area_gained_km2", "area_lost_km2", "area_to_water_km2"),
    *("area_to_debris_km2", "area_to_clean_km2"),
]
_EVENT_COLUMNS = ("glacier_id", "event", "evidence")


@dataclass(frozen=True, slots=True)
class Season:
    """One mapped season."""

    label: str
    start: str
    end: str
    accounts: pd.DataFrame
    """One row a reference glacier, sorted by ``ref_id``."""
    outlines: gpd.GeoDataFrame
    """One row a polygon, in the grid's projection, sorted by ``ref_id``."""
    scenes: tuple[dict[str, Any], ...]
    """Scenes searched out for this season, sorted by date and id."""
    composite: str = ""
    """How its looks became one, see ``catalog.strategies``."""
    resolution_m: float = 0.0
    """Pixel edge in metres."""


@dataclass(frozen=True, slots=True)
class Pair:
    """What became of every glacier between two seasons."""

    start: str
    end: str
    glaciers: pd.DataFrame
    """One row a glacier, sorted by ``glacier_id``."""
    summary: dict[str, Any]
    events: pd.DataFrame
    """All events with their evidence, in the order of the file."""


@dataclass(frozen=True, slots=True)
class RegionData:
    """Everything the report shows, still as tables."""

    grid: RegionGrid
    seasons: tuple[Season, ...]
    """In the order of time."""
    pairs: tuple[Pair, ...]
    names: dict[str, str]
    """Glacier id -> name, where the reference inventory has one."""
    missing: tuple[str, ...]
    """Seasons and pairs that were asked for but whose tables do not exist."""
    trend: dict[str, Any] | None
    """Summary of the lines through three seasons or more, see ``change_detection.series``."""
    calibration: AreaCalibration | None
    """Factors the change tables were made with; None where they name none."""

    def season(self, label: str) -> Season:
        """Season of the given label."""
        return next(season for season in self.seasons if season.label == label)


def read_region(workspace: Workspace, run: dict[str, Any]) -> RegionData:
    """Read the tables of a run.

    Parameters
    ----------
    workspace
        The region's store.
    run
        The run's description, see :func:`inventory_engine.report.write_report`.

    Raises
    ------
    StoreError
        ``report-input`` where no season has tables, or one is unreadable or lacks columns.
    """
    grid = RegionGrid.from_dict(run["grid"])
    spans = run["seasons"]
    labels = sorted(spans, key=lambda label: (str(spans[label]["start"]), label))
    if not labels:
        raise StoreError("the run has no seasons, so there is nothing to report", kind=_KIND)
    made = [label for label in labels if workspace.get(_accounts_name(label)) is not None]
    seasons = tuple(_read_season(workspace, label, run, grid) for label in made or labels)
    asked = [(str(a), str(b)) for a, b in run["pairs"]]
    known = [p for p in asked if workspace.get(f"{_pair_folder(*p)}/glaciers.parquet") is not None]
    pairs = tuple(_read_pair(workspace, a, b) for a, b in known if {a, b} <= set(made))
    read = {(pair.start, pair.end) for pair in pairs}
    missing = [f"season {label}" for label in labels if label not in made]
    missing += [f"change from {a} to {b}" for a, b in asked if (a, b) not in read]
    return RegionData(
        grid,
        seasons,
        pairs,
        _names(seasons),
        tuple(missing),
        _trend(workspace, labels),
        _calibration(pairs, run),
    )


_KIND = "report-input"


def _trend(workspace: Workspace, labels: list[str]) -> dict[str, Any] | None:
    """The trend of these seasons; None where there is none, or one of other seasons."""
    data = workspace.get(f"{SERIES}/summary.json")
    if data is None:
        return None
    found: dict[str, Any] = json.loads(data)
    return found if sorted(found["seasons"]) == sorted(labels) else None


def _accounts_name(label: str) -> str:
    return f"inventory/{label}/accounts.parquet"


def _pair_folder(start: str, end: str) -> str:
    return f"change/{start}_{end}"


def _read_season(workspace: Workspace, label: str, run: dict[str, Any], grid: RegionGrid) -> Season:
    folder = f"inventory/{label}"
    accounts = _table(workspace, _accounts_name(label), _ACCOUNT_COLUMNS)
    outlines = _outlines(workspace, f"{folder}/outlines.parquet", grid)
    scenes = sorted(
        run["scenes"].get(label, []), key=lambda s: (str(s.get("datetime")), str(s.get("id")))
    )
    span = run["seasons"][label]
    accounts["ref_id"] = accounts["ref_id"].astype(str)
    return Season(
        label,
        str(span["start"]),
        str(span["end"]),
        accounts.sort_values("ref_id", kind="stable", ignore_index=True),
        outlines,
        tuple(scenes),
        str(span.get("composite", "")),
        float(span.get("resolution_m", grid.resolution_m)),
    )


def _read_pair(workspace: Workspace, start: str, end: str) -> Pair:
    folder = _pair_folder(start, end)
    glaciers = _table(workspace, f"{folder}/glaciers.parquet", CHANGE_SCHEMA.names)
    glaciers["glacier_id"] = glaciers["glacier_id"].astype(str)
    for column in ("date_from", "date_to"):
        glaciers[column] = pd.to_datetime(glaciers[column], errors="coerce")
    raw = _bytes(workspace, f"{folder}/summary.json")
    try:
        summary = json.loads(raw)
    except ValueError as error:
        raise _unreadable(workspace, f"{folder}/summary.json", error) from error
    _require(workspace, f"{folder}/summary.json", summary, _SUMMARY_KEYS)
    for key in _SUMMARY_KEYS:
        summary[key] = float("nan") if summary[key] is None else float(summary[key])
    try:
        events = pd.read_csv(io.BytesIO(_bytes(workspace, f"{folder}/events.csv")), dtype=str)
    except ValueError as error:
        raise _unreadable(workspace, f"{folder}/events.csv", error) from error
    _require(workspace, f"{folder}/events.csv", events.columns, _EVENT_COLUMNS)
    ordered = glaciers.sort_values("glacier_id", kind="stable", ignore_index=True)
    return Pair(start, end, ordered, summary, events)


def _outlines(workspace: Workspace, name: str, grid: RegionGrid) -> gpd.GeoDataFrame:
    data = _bytes(workspace, name)
    try:
        frame = gpd.read_parquet(io.BytesIO(data))
    except (ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(workspace, name, error) from error
    _require(workspace, name, frame.columns, _OUTLINE_COLUMNS)
    frame["ref_id"] = frame["ref_id"].astype(str)
    frame["inputs"] = frame["inputs"].map(joined)
    frame = frame.to_crs(grid.crs).sort_values("ref_id", kind="stable", ignore_index=True)
    return frame[~(frame.geometry.isna() | frame.geometry.is_empty)].reset_index(drop=True)


def _table(workspace: Workspace, name: str, columns: Iterable[str]) -> pd.DataFrame:
    data = _bytes(workspace, name)
    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except (ValueError, pyarrow.ArrowException) as error:
        raise _unreadable(workspace, name, error) from error
    _require(workspace, name, frame.columns, columns)
    for column in ("flags", "inputs"):
        if column in frame.columns:
            frame[column] = frame[column].map(joined).str.replace(";", ", ")
    for column in frame.columns:
        if column.endswith(("_km2", "_m", "_year", "_sigma", "_fraction")) and (
            not column.startswith("member_")
        ):
            frame[column] = pd.to_numeric(frame[column], errors="coerce").astype(float)
    return frame


def joined(value: object) -> str:
    """Text of a cell that may hold a list, a single name or nothing."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return ", ".join(sorted(str(item) for item in value))
    return str(value)


def _calibration(pairs: tuple[Pair, ...], run: dict[str, Any]) -> AreaCalibration | None:
    """Area calibration, as the change stage wrote it down, else as the ensemble's card has it."""
    card = run["ensemble"].get("card") or {}
    for holder in (*(pair.summary for pair in pairs), card):
        for key in ("calibration", "area_calibration"):
            values = holder.get(key)
            if isinstance(values, dict) and {"scale", "regional_scale"} <= set(values):
                return AreaCalibration.from_dict(values)
    return None


def _names(seasons: tuple[Season, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for season in seasons:
        for ref_id, name in zip(
            season.outlines["ref_id"], season.outlines["glac_name"].map(joined), strict=True
        ):
            if name.strip():
                names.setdefault(ref_id, name.strip())
    return names


def _bytes(workspace: Workspace, name: str) -> bytes:
    data = workspace.get(name)
    if data is None:
        raise StoreError(
            f"there is no {name} in {workspace!r}; run the stages before the report first",
            kind=_KIND,
        )
    return data


def _require(workspace: Workspace, name: str, found: Iterable[str], columns: Iterable[str]) -> None:
    missing = sorted(set(columns) - set(found))
    if missing:
        raise StoreError(
            f"{name} of {workspace!r} lacks {', '.join(missing)}; "
            "it was written by another version, use a new workspace",
            kind=_KIND,
        )


def _unreadable(workspace: Workspace, name: str, error: Exception) -> StoreError:
    return StoreError(f"{name} of {workspace!r} cannot be read: {error}", kind=_KIND)
