"""Glacier outlines as other inventories give them: RGI 7.0, RGI 6.0, GLIMS and national files.

One law: an outline is used as it is, repaired within one percent of its area, or set aside by name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from pyproj import CRS

from catalog.errors import SetAside, UsageError
from catalog.vectors import read_vectors

__all__ = [
    "COLUMNS",
    "NO_GEOMETRY",
    "SIZE_CLASSES_KM2",
    "OutlineRows",
    "ReferenceInventory",
    "iso_date",
    "latest_outlines",
    "polygons_of",
    "read_outlines",
    "read_reference",
]

COLUMNS = (
    "ref_id",
    "o1region",
    "o2region",
    "glims_id",
    "src_date",
    "glac_name",
    "term_type",
    "surge_type",
    "conn_lvl",
    "primeclass",
    "geometry",
)
"""Columns of a reference inventory; the names and values are those of RGI 7.0."""

NO_GEOMETRY = "the geometry is empty"
"""Reason of a row that is set aside because it has an id and no outline."""
SIZE_CLASSES_KM2 = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 50.0, 100.0)
"""Lower limits of the classes of glaciers by area, km2. They cut those of the RGI 7.0 (user guide,
global statistics: 1, 10 and 100 km2) more finely, and begin at the smallest glacier it holds."""

_NOT_ASSIGNED = 9
_EQUAL_AREA = CRS.from_user_input("+proj=cea +datum=WGS84 +units=m")
_MAX_AREA_CHANGE = 0.01
_KNOWN_IDS = {"rgi_id": "RGI 7.0", "RGIId": "RGI 6.0", "glac_id": "GLIMS"}
_RGI6_TERMINUS = {0: 0, 1: 1, 2: 2, 5: 3}
# ^ RGI 6 dry calving (3) and regenerated (4) have no counterpart in RGI 7: not assigned
_RGI6_FORM = {0: 0, 1: 3, 2: 7}
# ^ RGI 6 form 1 is an ice cap, 2 a perennial snowfield; numbers on the right are GLIMS' classes
_PLACE = "place id"
_DATE_FIELDS = ("src_date", "date", "BgnDate", "year", "YEAR_", "YEAR")
_NAME_FIELDS = ("glac_name", "Name", "name", "NAME")


@dataclass(frozen=True, slots=True)
class ReferenceInventory:
    """The outlines whose glaciers and divides are kept in every season."""

    frame: gpd.GeoDataFrame
    """EPSG:4326, :data:`COLUMNS`, sorted by the unique ``ref_id``; Polygon or MultiPolygon."""
    set_aside: tuple[SetAside, ...]
    """Rows that were not used as they stood, and why; sorted."""
    fingerprint: str
    """SHA-256 of the content of ``frame``."""


@dataclass(frozen=True, slots=True)
class OutlineRows:
    """What a file of outlines holds, row by row, of all its dates."""

    frame: gpd.GeoDataFrame
    """EPSG:4326, :data:`COLUMNS`, in the order of the file; an id may be there several times."""
    set_aside: tuple[SetAside, ...]
    """Rows that were not used, and why; sorted."""
    repaired: tuple[SetAside, ...]
    """Rows whose outline is not as the file has it, and what was wrong; sorted."""
    without_ice: tuple[tuple[str, str], ...]
    """Id and source date of the rows without a geometry; sorted."""
    imprecise_dates: int
    """Rows whose date lacks the day or the month."""


def read_outlines(
    path: Path | str,
    *,
    id_field: str | None = None,
    date_field: str | None = None,
    needs_ids: bool = True,
) -> OutlineRows:
    """Read every usable outline of a file of any of the common schemas.

    RGI 7.0 is known by ``rgi_id``, RGI 6.0 by ``RGIId`` and GLIMS by ``glac_id``; any other file
    needs ``id_field``. GLIMS' internal rock becomes holes of the outlines it was digitised with.
    Invalid geometries are repaired; where that changes the area by more than 1 %, the row is set
    aside.

    Parameters
    ----------
    path
        GeoPackage, Shapefile, GeoJSON or GeoParquet, in any coordinate reference system.
    id_field
        Column that names the glaciers.
    date_field
        Column of source dates, where it is not one of the usual names.
    needs_ids
        Whether a file without ids is refused; else a glacier is named by its place, as GLIMS does.

    Raises
    ------
    UsageError
        Where the file cannot be read, has no coordinate reference system, or lacks a column that
        was asked for.
    """
    path = Path(path)
    raw = read_vectors(path)
    if date_field and date_field not in raw.columns:
        raise UsageError(
            f"{path} has no date column {date_field}; found {_columns_of(raw)}",
            kind="reference-date",
        )
    if not needs_ids and not id_field and not set(_KNOWN_IDS) & set(raw.columns):
        raw = raw.assign(**{_PLACE: _place_ids(raw)})
        id_field = _PLACE
    field, schema = _id_column(raw, path, id_field)
    notes: list[SetAside] = []
    repaired: list[SetAside] = []
    rows = _usable_rows(raw, field, notes, repaired)
    if schema == "GLIMS" and "line_type" in rows:
        rows = _cut_internal_rock(rows, field, notes)
    dates = (date_field,) if date_field else _DATE_FIELDS
    bare = raw[raw.geometry.isna() | raw.geometry.is_empty]
    without = zip(
        [_text(value) for value in bare[field]], _column(bare, dates, iso_date), strict=True
    )
    texts = _column(rows, dates, _text)
    return OutlineRows(
        _to_rgi7(rows, field, schema, dates),
        tuple(sorted(notes)),
        tuple(sorted(repaired)),
        tuple(sorted((ident, day) for ident, day in without if ident)),
        sum(bool(iso_date(text)) and not _has_day(text) for text in texts),
    )


def read_reference(path: Path | str, *, id_field: str | None = None) -> ReferenceInventory:
    """Read a reference inventory: one outline a glacier, the latest.

    As :func:`read_outlines`; of several rows with one id those of the latest source date are kept
    and dissolved into one glacier, the earlier ones are set aside (``superseded-outline``).

    Parameters
    ----------
    path
        GeoPackage, Shapefile, GeoJSON or GeoParquet, in any coordinate reference system.
    id_field
        Column that names the glaciers.

    Returns
    -------
    ReferenceInventory

    Raises
    ------
    UsageError
        Where the file cannot be read, has no coordinate reference system, no id column or no
        usable outline.
    """
    rows = read_outlines(path, id_field=id_field)
    notes = list(rows.set_aside)
    frame = latest_outlines(rows.frame, notes)
    if frame.empty:
        raise UsageError(
            f"{path} holds no usable glacier outline: {len(notes)} rows were set aside, the first "
            f"because {notes[0].reason if notes else 'there are none'}",
            kind="reference-empty",
        )
    return ReferenceInventory(frame, tuple(sorted(notes)), _fingerprint(frame))


def _id_column(raw: gpd.GeoDataFrame, path: Path, id_field: str | None) -> tuple[str, str]:
    wanted = [id_field] if id_field else list(_KNOWN_IDS)
    for name in wanted:
        if name in raw.columns:
            return name, _KNOWN_IDS.get(name, "national")
    raise UsageError(
        f"{path} has no id column {' or '.join(wanted)}; found {_columns_of(raw)}. "
        "Name the id column of this inventory with id_field",
        kind="reference-id",
    )


def _columns_of(raw: gpd.GeoDataFrame) -> str:
    return ", ".join(str(c) for c in raw.columns if c != raw.geometry.name)


def _place_ids(raw: gpd.GeoDataFrame) -> list[str]:
    """Names by place, thousandths of a degree east and north; a letter where two are as near."""
    shapes = shapely.force_2d(raw.to_crs(4326).geometry.to_numpy())
    names = [_place_id(shape, i) for i, shape in enumerate(shapes)]
    order = sorted(
        range(len(names)), key=lambda i: (names[i], shapely.to_wkb(shapely.normalize(shapes[i])))
    )
    seen: dict[str, int] = {}
    unique = list(names)
    for i in order:
        count = seen[names[i]] = seen.get(names[i], 0) + 1
        unique[i] = names[i] if count == 1 else f"{names[i]}-{count}"
    return unique


def _place_id(shape: Any, row: int) -> str:
    if shape is None or shapely.is_empty(shape):
        return f"row {row}"
    lon, lat = shapely.get_coordinates(shapely.point_on_surface(shape))[0]
    if not (np.isfinite(lon) and np.isfinite(lat)):
        return f"row {row}"
    half = "N" if lat >= 0 else "S"
    return f"G{round(1000 * (lon % 360)):06d}E{round(1000 * abs(lat)):05d}{half}"


def _usable_rows(
    raw: gpd.GeoDataFrame, field: str, notes: list[SetAside], mended: list[SetAside]
) -> gpd.GeoDataFrame:
    """Rows with an id and a polygon, in plain 2-D, valid in EPSG:4326."""
    rows = raw.rename_geometry("geometry") if raw.geometry.name != "geometry" else raw
    ids = rows[field].map(_text)
    keep, geometries = [], []
    lonlat = shapely.force_2d(rows.to_crs(4326).geometry.to_numpy())
    for i, (ident, geometry) in enumerate(zip(ids, lonlat, strict=True)):
        if not ident:
            notes.append(SetAside(f"row {i}", "missing-id", f"column {field} is empty"))
            continue
        repaired, fault = _repair(geometry)
        if repaired is None:
            notes.append(SetAside(ident, "bad-geometry", fault))
            continue
        if repaired is not geometry:
            before, after = _area_km2([geometry, repaired])
            reason = f"{shapely.is_valid_reason(geometry)}; {before:.6f} became {after:.6f} km2"
            mended.append(SetAside(ident, "repaired-geometry", reason))
        keep.append(i)
        geometries.append(repaired)
    rows = rows.iloc[keep].reset_index(drop=True)
    rows[field] = ids.iloc[keep].to_numpy()
    return rows.set_geometry(gpd.GeoSeries(geometries, crs=4326))


def _repair(geometry: Any) -> tuple[Any, str]:
    """Make one outline a valid Polygon or MultiPolygon, or say why it cannot be used."""
    if geometry is None or shapely.is_empty(geometry):
        return None, NO_GEOMETRY
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        return None, "a vertex is not a finite longitude and latitude"
    if geometry.geom_type in {"Polygon", "MultiPolygon"} and shapely.is_valid(geometry):
        return geometry, ""
    polygons = polygons_of(shapely.make_valid(geometry))
    if polygons is None:
        return None, f"expected a polygon, found a {geometry.geom_type}"
    before, after = _area_km2([geometry, polygons])
    if abs(after - before) > _MAX_AREA_CHANGE * max(before, after):
        return None, (
            f"{shapely.is_valid_reason(geometry)}; a repair would change its area from "
            f"{before:.4f} to {after:.4f} km2, more than {_MAX_AREA_CHANGE:.0%}"
        )
    return polygons, ""


def polygons_of(geometry: Any) -> Any:
    """Take the polygons of any geometry as a Polygon or MultiPolygon; None where it has none."""
    parts = [
        p
        for p in shapely.get_parts(shapely.get_parts(geometry))
        if p.geom_type == "Polygon" and not p.is_empty
    ]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)


def _area_km2(geometries: Iterable[Any]) -> npt.NDArray[np.float64]:
    projected = gpd.GeoSeries(list(geometries), crs=4326).to_crs(_EQUAL_AREA)
    return np.asarray(projected.area, dtype=np.float64) / 1e6


def _cut_internal_rock(
    rows: gpd.GeoDataFrame, field: str, notes: list[SetAside]
) -> gpd.GeoDataFrame:
    """Subtract GLIMS' internal rock from the boundaries of the same glacier and analysis."""
    analysis = ["anlys_id"] if "anlys_id" in rows else []
    keys = list(zip(*(rows[c] for c in [field, *analysis]), strict=True))
    kinds = rows["line_type"].to_numpy()
    rock: dict[Any, list[Any]] = {}
    for key, kind, geometry in zip(keys, kinds, rows.geometry, strict=True):
        if kind == "intrnl_rock":
            rock.setdefault(key, []).append(geometry)
        elif kind != "glac_bound":
            reason = f"line_type is {kind}, not the boundary of a glacier"
            notes.append(SetAside(key[0], "other-line-type", reason))
    bounded = {key for key, kind in zip(keys, kinds, strict=True) if kind == "glac_bound"}
    for key in rock.keys() - bounded:
        reason = "internal rock of a glacier whose boundary is not in the file"
        notes.append(SetAside(key[0], "other-line-type", reason))
    geometries = [
        polygons_of(shapely.difference(g, shapely.union_all(rock[key]))) if key in rock else g
        for key, g in zip(keys, rows.geometry, strict=True)
    ]
    rows = rows.set_geometry(gpd.GeoSeries(geometries, crs=4326))
    keep = (kinds == "glac_bound") & rows.geometry.notna().to_numpy()
    return rows[keep].reset_index(drop=True)


def _to_rgi7(
    rows: gpd.GeoDataFrame, field: str, schema: str, dates: Iterable[str]
) -> gpd.GeoDataFrame:
    """Rename and recode what the source has; the rest stands as RGI 7.0 writes missing values."""
    rgi6 = schema == "RGI 6.0"
    o1 = _column(rows, ("o1region", "O1Region"), _region)
    o2 = _column(rows, ("o2region", "O2Region"), _region)
    columns = {
        "ref_id": rows[field].tolist(),
        "o1region": o1,
        "o2region": [
            f"{a}-{b}" if a and b and "-" not in b else b for a, b in zip(o1, o2, strict=True)
        ],
        "glims_id": _column(rows, ("glims_id", "GLIMSId", "glac_id"), _text),
        "src_date": _column(rows, dates, iso_date),
        "glac_name": _column(rows, _NAME_FIELDS, _name),
        "term_type": _column(rows, ("term_type", "TermType"), _code(_RGI6_TERMINUS, rgi6)),
        "surge_type": _column(rows, ("surge_type", "Surging"), _code({}, False)),
        "conn_lvl": _column(rows, ("conn_lvl", "Connect"), _code({}, False)),
        "primeclass": _column(rows, ("primeclass", "Form"), _code(_RGI6_FORM, rgi6)),
    }
    return gpd.GeoDataFrame(columns, geometry=rows.geometry.to_numpy(), crs=4326)


def _column(
    rows: gpd.GeoDataFrame, names: Iterable[str], convert: Callable[[Any], Any]
) -> list[Any]:
    name = next((n for n in names if n in rows.columns), None)
    return [convert(None)] * len(rows) if name is None else [convert(v) for v in rows[name]]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NaT:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    return "" if text.lower() in {"none", "nan"} else text


def _name(value: Any) -> str:
    text = _text(value)
    if re.search(r"[\x80-\x9f]", text):
        # Control characters here are letters of an old DOS code page read as Latin-1.
        text = text.encode("latin-1", "replace").decode("cp850")
    return text


def _region(value: Any) -> str:
    text = _text(value)
    return text.zfill(2) if text.isdigit() else text


def _code(recode: dict[int, int], mapped: bool) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        text = _text(value)
        if not re.fullmatch(r"\d", text):
            return _NOT_ASSIGNED
        return recode.get(int(text), _NOT_ASSIGNED) if mapped else int(text)

    return convert


def _has_day(text: str) -> bool:
    """Whether a date says its month and day."""
    digits = re.sub(r"[-/]", "", text)[:8]
    return len(digits) == 8 and iso_date(digits)[:10].replace("-", "") == digits


def iso_date(value: Any) -> str:
    """ISO 8601 as in RGI 7.0; an unknown day becomes the 15th and an unknown month July.

    Empty where there is no year between 1800 and 2099.
    """
    digits = re.sub(r"[-/]", "", _text(value))[:8]
    match = re.fullmatch(r"((?:18|19|20)\d\d)(\d\d)?(\d\d)?", digits)
    if match is None:
        return ""
    year, month, day = (int(g) if g else 99 for g in match.groups())
    month, day = (month, day) if 1 <= month <= 12 else (7, 99)
    days = pd.Period(year=year, month=month, freq="M").days_in_month
    return f"{year:04d}-{month:02d}-{day if 1 <= day <= days else 15:02d}T00:00:00"


def latest_outlines(frame: gpd.GeoDataFrame, notes: list[SetAside]) -> gpd.GeoDataFrame:
    """Keep the latest outline of each id; dissolve what is left of one id into one row.

    Parameters
    ----------
    frame
        Columns :data:`COLUMNS`.
    notes
        Takes what was superseded (``superseded-outline``) or dissolved (``duplicate-id``).

    Returns
    -------
    GeoDataFrame
        :data:`COLUMNS`, sorted by the unique ``ref_id``.
    """
    frame = frame.sort_values(["ref_id", "src_date"], kind="stable").reset_index(drop=True)
    if not frame["ref_id"].duplicated().any():
        return frame[list(COLUMNS)]
    rows = []
    for ident, group in frame.groupby("ref_id", sort=True):
        latest = group["src_date"].iloc[-1]
        older = group[group["src_date"] < latest]["src_date"].tolist()
        current = group[group["src_date"] == latest]
        if older:
            dates = ", ".join(d[:10] or "no date" for d in older)
            reason = f"outlines of {dates} are older than the one of {latest[:10]} that is used"
            notes.append(SetAside(str(ident), "superseded-outline", reason))
        row = current.iloc[0].copy()
        if len(current) > 1:
            reason = f"{len(current)} rows of one date share this id: dissolved into one glacier"
            notes.append(SetAside(str(ident), "duplicate-id", reason))
            row["geometry"] = polygons_of(shapely.union_all(current.geometry.to_numpy()))
        rows.append(row)
    return gpd.GeoDataFrame(rows, crs=4326)[list(COLUMNS)].reset_index(drop=True)


def _fingerprint(frame: gpd.GeoDataFrame) -> str:
    digest = hashlib.sha256()
    geometries = shapely.to_wkb(shapely.normalize(frame.geometry.to_numpy()), byte_order=1)
    attributes = frame[list(COLUMNS[:-1])].itertuples(index=False, name=None)
    for values, wkb in zip(attributes, geometries, strict=True):
        digest.update("\x1f".join(map(str, values)).encode() + b"\x1e" + wkb)
    return digest.hexdigest()
