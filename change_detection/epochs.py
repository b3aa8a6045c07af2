"""Outline files of any origin become clean tables, one a date; what was wrong with them is named.

One law: nothing is mended or left out in silence.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from catalog.errors import SetAside, UsageError
from catalog.glaciers import NO_GEOMETRY, iso_date, latest_outlines, polygons_of, read_outlines
from catalog.grid import region_grid

__all__ = [
    "OUTLINE_ERROR_M",
    "Epoch",
    "OutlineFile",
    "Problem",
    "Series",
    "decimal_years",
    "read_series",
]

OUTLINE_ERROR_M = 15.0
"""Default standard deviation of an outline's position, metres: half a pixel of Landsat."""

_DAYS_A_YEAR = 365.2425
_SLIVER_M2 = 1e-6
# ^ RGI 7.0 tolerates overlaps below this
_NAMED_OVERLAP_M2 = 1.0
# ^ smaller overlaps come from rounded coordinates; they are cut too, and told of in one line
_DUPLICATE = 0.95
_MAX_AREA_CHANGE = 0.01

_DONE = {
    "missing-id": "set aside",
    "bad-geometry": "set aside",
    "other-line-type": "set aside",
    "repaired-geometry": "repaired",
    "duplicate-id": "dissolved into one glacier",
    "superseded-outline": "the latest outline is used",
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """Something in the files that is not as it should be, and what was done about it."""

    source: str
    """Label of the date and name of the file."""
    glacier_id: str
    """The glacier, or empty where it is not one glacier's."""
    kind: str
    """Stable name of the fault."""
    found: str
    done: str


@dataclass(frozen=True, slots=True)
class OutlineFile:
    """A file of outlines and how it is to be read."""

    path: Path
    id_field: str | None = None
    """Column of ids; None: a known one, or names by place."""
    date_field: str | None = None
    """Column of dates; None: one of the usual names."""
    date: str | None = None
    """Date of all its outlines (YYYY, YYYY-MM or YYYY-MM-DD), instead of a column."""
    outline_errors_m: tuple[float, ...] = (OUTLINE_ERROR_M,)
    """Standard deviation of the position of its outlines, metres: one, or one for each year of a
    file of several."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The outlines of one date, clean: one row a glacier, disjoint, valid."""

    label: str
    """The year, or what else tells it from the other dates."""
    source: str
    """Name of the file."""
    sha256: str
    """Of the file's bytes."""
    rows: int
    """Outlines that were used, before those of one id were dissolved."""
    frame: gpd.GeoDataFrame
    """``glacier_id``, ``name``, ``day`` (since 1970-01-01, NaN unknown) and the outlines in the
    series' projection; sorted by id."""
    without_ice: dict[str, float]
    """Glaciers that the file has without an outline, observed as gone, and their day."""
    outline_error_m: float
    """Standard deviation of the position of the outlines, metres."""

    @property
    def day(self) -> float:
        """Median day of the outlines since 1970-01-01; NaN where none has a date."""
        days = self.frame["day"].dropna()
        return float(days.median()) if len(days) else float("nan")


@dataclass(frozen=True, slots=True)
class Series:
    """Outlines of two or more dates in one equal-area projection, in the order of time."""

    epochs: tuple[Epoch, ...]
    problems: tuple[Problem, ...]
    """Sorted."""
    proj4: str
    """Lambert azimuthal equal-area on WGS84, centred on the outlines; metres."""


def decimal_years(day: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Years since 1970-01-01 of days since then; a year has 365.2425 days."""
    return np.asarray(day, dtype=np.float64) / _DAYS_A_YEAR


def read_series(files: Sequence[OutlineFile], *, by_id: bool) -> Series:
    """Read the outlines of two or more dates and clean them.

    A single file is divided into the years of its dates; of several files each is one date, the
    latest outline of each id. Rows of one id become one glacier. Where outlines of one date
    overlap, the glacier whose id sorts first keeps the ground; of two that cover the same ground
    the second is set aside.

    Parameters
    ----------
    files
        In the order of time; one file with several years, or one file a date.
    by_id
        Whether glaciers will be matched by their ids: then rows without a geometry are glaciers
        that were observed to be gone.

    Raises
    ------
    UsageError
        ``outlines-date`` where a date is missing or the files are not in the order of time;
        ``outlines-empty`` where a file has no usable outline; ``outlines-apart`` where the files
        show different places; otherwise as :func:`catalog.glaciers.read_outlines`.
    """
    drafts: list[_Draft] = []
    for file in files:
        drafts += _read_file(file, alone=len(files) == 1)
    if len(drafts) < 2:
        found = drafts[0].label if drafts else "none"
        raise UsageError(
            f"a comparison needs outlines of two dates; {files[0].path} has one ({found}). Give "
            "another file, or the column of dates with --date-field",
            kind="outlines-date",
        )
    _check_order(drafts)
    drafts = _told_apart(drafts)
    lonlat = np.concatenate([shapely.get_coordinates(d.frame.geometry.to_numpy()) for d in drafts])
    proj4 = region_grid(lonlat[:, 0], lonlat[:, 1], resolution_m=1000.0).proj4
    problems = [problem for draft in drafts for problem in draft.problems]
    epochs = tuple(_clean(draft, proj4, by_id, problems) for draft in drafts)
    _check_place(epochs)
    return Series(epochs, tuple(sorted(problems)), proj4)


@dataclass(frozen=True, slots=True)
class _Draft:
    """One date as read, EPSG:4326."""

    label: str
    file: OutlineFile
    sha256: str
    rows: int
    frame: gpd.GeoDataFrame
    without_ice: dict[str, str]
    problems: list[Problem]
    outline_error_m: float

    @property
    def source(self) -> str:
        return f"{self.label}: {self.file.path.name}"


def _read_file(file: OutlineFile, *, alone: bool) -> list[_Draft]:
    if not file.path.is_file():
        raise UsageError(f"there is no file of outlines at {file.path}", kind="outlines-missing")
    read = read_outlines(
        file.path, id_field=file.id_field, date_field=file.date_field, needs_ids=False
    )
    frame, without = _dated(read.frame, file), list(read.without_ice)
    if file.date is not None:
        day = _given_date(file)
        without = [(ident, day) for ident, _ in without]
    notes = [note for note in read.set_aside if note.reason != NO_GEOMETRY]
    notes += read.repaired
    sha256 = hashlib.sha256(file.path.read_bytes()).hexdigest()
    if frame.empty:
        raise UsageError(
            f"{file.path} has no usable glacier outline: {len(notes)} rows were set aside, the "
            f"first because {notes[0].reason if notes else 'there are none'}",
            kind="outlines-empty",
        )
    general = [Problem(file.path.name, n.what, n.kind, n.reason, _DONE[n.kind]) for n in notes]
    if file.date is None and read.imprecise_dates:
        found = f"{read.imprecise_dates} rows have a date without its day or month"
        general.append(
            Problem(
                file.path.name, "", "imprecise-date", found, "15th of the month, 15 July of a year"
            )
        )
    years = frame["src_date"].str[:4] if alone else pd.Series("", index=frame.index)
    if alone and (years == "").any():
        lost = sorted(frame["ref_id"][years == ""])
        general += [
            Problem(file.path.name, name, "undated", "the outline has no date", "set aside")
            for name in lost
        ]
    drafts: list[_Draft] = []
    wanted = sorted(set(years) - {""}) if alone else [""]
    errors = file.outline_errors_m
    if len(errors) not in {1, len(wanted)}:
        raise UsageError(
            f"{file.path} has {len(wanted)} dates ({', '.join(wanted)}) and {len(errors)} outline "
            "errors: give one, or one for each date",
            kind="outlines-error",
        )
    for year, error in zip(wanted, errors * (1 if len(errors) > 1 else len(wanted)), strict=True):
        rows = frame[years == year]
        problems = general if not drafts else []
        gone = {ident: day for ident, day in without if not alone or day[:4] == year}
        draft = _one_date(file, rows, sha256=sha256, without=gone, problems=problems)
        drafts.append(replace(draft, outline_error_m=error))
    return drafts


def _dated(frame: gpd.GeoDataFrame, file: OutlineFile) -> gpd.GeoDataFrame:
    """Rows in an order of their own, whatever the file's, with canonical geometries."""
    shapes = shapely.normalize(frame.geometry.to_numpy())
    frame = frame.set_geometry(gpd.GeoSeries(shapes, crs=4326))
    if file.date is not None:
        frame = frame.assign(src_date=_given_date(file))
    order = np.argsort(np.array([shapely.to_wkb(shape) for shape in shapes], dtype=object))
    return frame.iloc[order].reset_index(drop=True)


def _given_date(file: OutlineFile) -> str:
    text = (file.date or "").strip()
    if re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?", text):
        try:
            date.fromisoformat(f"{text}-01-01"[:10])
        except ValueError:
            pass
        else:
            found = iso_date(text)
            if found:
                return found
    raise UsageError(
        f"the date of {file.path} must be a year, a month or a day (1998, 1998-08, 1998-08-31) "
        f"from 1800 on, found {text!r}",
        kind="outlines-date",
    )


def _one_date(
    file: OutlineFile,
    rows: gpd.GeoDataFrame,
    *,
    sha256: str,
    without: dict[str, str],
    problems: list[Problem],
) -> _Draft:
    notes: list[SetAside] = []
    frame = latest_outlines(rows, notes)
    days = sorted(day for day in frame["src_date"] if day)
    label = days[len(days) // 2][:4] if days else file.path.stem
    draft = _Draft(label, file, sha256, len(rows), frame, without, list(problems), math.nan)
    draft.problems.extend(
        Problem(draft.source, n.what, n.kind, n.reason, _DONE[n.kind]) for n in notes
    )
    if not days:
        raise UsageError(
            f"the outlines of {file.path} have no date: name their column with --date-field, or "
            "give the date of each file with --dates",
            kind="outlines-date",
        )
    undated = frame["ref_id"][frame["src_date"] == ""]
    draft.problems.extend(
        Problem(draft.source, name, "undated", "the outline has no date", "no rate of change")
        for name in undated
    )
    return draft


def _check_order(drafts: Sequence[_Draft]) -> None:
    for one, two in itertools.pairwise(drafts):
        first, second = (_median_day(draft) for draft in (one, two))
        if second < first:
            raise UsageError(
                f"give the files in the order of time: {two.file.path} ({second}) is older than "
                f"{one.file.path} ({first}), whose divides would be kept",
                kind="outlines-date",
            )


def _median_day(draft: _Draft) -> str:
    days = sorted(str(day)[:10] for day in draft.frame["src_date"] if day)
    return days[len(days) // 2]


def _told_apart(drafts: Sequence[_Draft]) -> list[_Draft]:
    """Give the dates labels that differ: the year, the day, or the day and a number."""
    labels = [draft.label for draft in drafts]
    if len(set(labels)) < len(labels):
        labels = [_median_day(draft) for draft in drafts]
    if len(set(labels)) < len(labels):
        labels = [f"{label} ({i})" for i, label in enumerate(labels, 1)]
    told = []
    for draft, label in zip(drafts, labels, strict=True):
        problems = [
            replace(p, source=p.source.replace(draft.source, f"{label}: {draft.file.path.name}"))
            for p in draft.problems
        ]
        told.append(replace(draft, label=label, problems=problems))
    return told


def _clean(draft: _Draft, proj4: str, by_id: bool, problems: list[Problem]) -> Epoch:
    """Project the outlines, make them valid there and disjoint."""
    ids = draft.frame["ref_id"].to_numpy()
    shapes = draft.frame.geometry.to_crs(proj4).to_numpy()
    valid = [_valid(shape, i, draft, problems) for i, shape in zip(ids, shapes, strict=True)]
    shapes = _disjoint(ids, np.array(valid, dtype=object), draft.source, problems)
    keep = ~shapely.is_empty(shapes)
    day = _days(draft.frame["src_date"])
    frame = gpd.GeoDataFrame(
        {"glacier_id": ids, "name": draft.frame["glac_name"].to_numpy(), "day": day},
        geometry=shapely.normalize(shapes),
        crs=proj4,
    )
    gone = {} if not by_id else {k: v for k, v in draft.without_ice.items() if k not in set(ids)}
    for ident in sorted(draft.without_ice):
        done = "taken as observed without ice" if ident in gone else "set aside"
        problems.append(Problem(draft.source, ident, "empty-geometry", NO_GEOMETRY, done))
    days = dict(zip(gone, _days(list(gone.values())), strict=True))
    return Epoch(
        draft.label,
        draft.file.path.name,
        draft.sha256,
        draft.rows,
        frame[keep].reset_index(drop=True),
        {name: float(days[name]) for name in sorted(days)},
        draft.outline_error_m,
    )


def _valid(shape: Any, ident: str, draft: _Draft, problems: list[Problem]) -> Any:
    if shapely.is_valid(shape):
        return shape
    made = polygons_of(shapely.make_valid(shape)) or shapely.Polygon()
    before, after = shape.area / 1e6, made.area / 1e6
    found = (
        f"invalid when projected ({shapely.is_valid_reason(shape)}); "
        f"{before:.6f} became {after:.6f} km2"
    )
    lost = abs(after - before) > _MAX_AREA_CHANGE * max(before, after)
    kind = "bad-geometry" if lost else "repaired-geometry"
    problems.append(Problem(draft.source, ident, kind, found, _DONE[kind]))
    return shapely.Polygon() if lost else made


def _disjoint(
    ids: npt.NDArray[Any], shapes: npt.NDArray[Any], source: str, problems: list[Problem]
) -> npt.NDArray[Any]:
    """Give ground that two outlines claim to the one whose id sorts first."""
    shapes = shapes.copy()
    first, second = shapely.STRtree(shapes).query(shapes, "intersects")
    pairs = np.unique(np.stack([first, second], axis=1)[first < second], axis=0)
    # ^ ids are sorted, so the first of a pair keeps its ground
    small, small_m2 = 0, 0.0
    for one, two in pairs:
        overlap = shapely.area(shapely.intersection(shapes[one], shapes[two]))
        if overlap <= _SLIVER_M2:
            continue
        share = overlap / shapely.area(shapes[two])
        if share >= _DUPLICATE:
            found = f"{share:.0%} of it is also glacier {ids[one]}"
            problems.append(Problem(source, ids[two], "duplicate-outline", found, "set aside"))
            shapes[two] = shapely.Polygon()
            continue
        shapes[two] = polygons_of(shapely.difference(shapes[two], shapes[one])) or shapely.Polygon()
        if overlap < _NAMED_OVERLAP_M2:
            small, small_m2 = small + 1, small_m2 + overlap
            continue
        found = f"{overlap:.0f} m2 are also glacier {ids[one]}, whose id sorts first"
        problems.append(Problem(source, ids[two], "overlap", found, "cut off"))
    if small:
        found = f"{small} pairs overlap by less than 1 m2, {small_m2:.3f} m2 together"
        problems.append(Problem(source, "", "overlap-sliver", found, "cut off"))
    return shapes


def _days(dates: Any) -> npt.NDArray[np.float64]:
    """Days since 1970-01-01 of ISO dates, NaN where there is none."""
    found = [float(np.datetime64(d[:10], "D").astype(int)) if d else np.nan for d in dates]
    return np.array(found, dtype=np.float64)


def _check_place(epochs: Sequence[Epoch]) -> None:
    """Refuse files of different places: most often one has the wrong coordinate system."""
    first = epochs[0].frame.geometry.to_numpy()
    tree = shapely.STRtree(first)
    for epoch in epochs[1:]:
        if not tree.query(epoch.frame.geometry.to_numpy(), "intersects").size:
            raise UsageError(
                f"no outline of {epoch.source} ({epoch.label}) meets one of {epochs[0].source} "
                f"({epochs[0].label}): compare their coordinate reference systems and regions",
                kind="outlines-apart",
            )
