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

__all__ = ["COLUMNS", "ReferenceInventory", "read_reference"]

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

_NOT_ASSIGNED = 9
_EQUAL_AREA = CRS.from_user_input("+proj=cea +datum=WGS84 +units=m")
_MAX_AREA_CHANGE = 0.01
_KNOWN_IDS = {"rgi_id": "RGI 7.0", "RGIId": "RGI 6.0", "glac_id": "GLIMS"}
_RGI6_TERMINUS = {0: 0, 1: 1, 2: 2, 5: 3}
# ^ RGI 6 dry calving (3) and regenerated (4) have no counterpart in RGI 7: not assigned
_RGI6_FORM = {0: 0, 1: 3, 2: 7}
# ^ RGI 6 form 1 is an ice cap, 2 a perennial snowfield; numbers on the right are GLIMS' classes
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


def read_reference(path: Path | str, *, id_field: str | None = None) -> ReferenceInventory:
    """Read a reference inventory of any of the common schemas.

    RGI 7.0 is known by ``rgi_id``, RGI 6.0 by ``RGIId`` and GLIMS by ``glac_id``; any other file
    needs ``id_field``. Of several rows with one id those of the latest source date are kept and
    dissolved into one glacier, the earlier ones are set aside (``superseded-outline``). GLIMS'
    internal rock becomes holes of the outlines it was digitised with. Invalid geometries are
    repaired; where that changes the area by more than 1 %, the row is set aside.

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
    path = Path(path)
    raw = read_vectors(path)
    field, schema = _id_column(raw, path, id_field)
    notes: list[SetAside] = []
    rows = _usable_rows(raw, field, notes)
    if schema == "GLIMS" and "line_type" in rows:
        rows = _cut_internal_rock(rows, field)
    frame = _one_row_a_glacier(_to_rgi7(rows, field, schema), notes)
    if frame.empty:
        raise UsageError(
            f"{path} holds no usable glacier outline: {len(raw)} rows were read and "
            f"{len(notes)} set aside, the first because {notes[0].reason if notes else 'none'}",
            kind="reference-empty",
        )
    return ReferenceInventory(frame, tuple(sorted(notes)), _fingerprint(frame))


def _id_column(raw: gpd.GeoDataFrame, path: Path, id_field: str | None) -> tuple[str, str]:
    wanted = [id_field] if id_field else list(_KNOWN_IDS)
    for name in wanted:
        if name in raw.columns:
            return name, _KNOWN_IDS.get(name, "national")
    found = ", ".join(str(c) for c in raw.columns if c != raw.geometry.name)
    raise UsageError(
        f"{path} has no id column {' or '.join(wanted)}; found {found}. "
        "Name the id column of this inventory with id_field",
        kind="reference-id",
    )


def _usable_rows(raw: gpd.GeoDataFrame, field: str, notes: list[SetAside]) -> gpd.GeoDataFrame:
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
        keep.append(i)
        geometries.append(repaired)
    rows = rows.iloc[keep].reset_index(drop=True)
    rows[field] = ids.iloc[keep].to_numpy()
    return rows.set_geometry(gpd.GeoSeries(geometries, crs=4326))


def _repair(geometry: Any) -> tuple[Any, str]:
    """Make one outline a valid Polygon or MultiPolygon, or say why it cannot be used."""
    if geometry is None or shapely.is_empty(geometry):
        return None, "the geometry is empty"
    if not np.isfinite(shapely.get_coordinates(geometry)).all():
        return None, "a vertex is not a finite longitude and latitude"
    if geometry.geom_type in {"Polygon", "MultiPolygon"} and shapely.is_valid(geometry):
        return geometry, ""
    polygons = _polygons_of(shapely.make_valid(geometry))
    if polygons is None:
        return None, f"expected a polygon, found a {geometry.geom_type}"
    before, after = _area_km2([geometry, polygons])
    if abs(after - before) > _MAX_AREA_CHANGE * max(before, after):
        return None, (
            f"{shapely.is_valid_reason(geometry)}; a repair would change its area from "
            f"{before:.4f} to {after:.4f} km2, more than {_MAX_AREA_CHANGE:.0%}"
        )
    return polygons, ""


def _polygons_of(geometry: Any) -> Any:
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


def _cut_internal_rock(rows: gpd.GeoDataFrame, field: str) -> gpd.GeoDataFrame:
    """Subtract GLIMS' internal rock from the boundaries of the same glacier and analysis."""
    analysis = ["anlys_id"] if "anlys_id" in rows else []
    keys = list(zip(*(rows[c] for c in [field, *analysis]), strict=True))
    kinds = rows["line_type"].to_numpy()
    rock: dict[Any, list[Any]] = {}
    for key, kind, geometry in zip(keys, kinds, rows.geometry, strict=True):
        if kind == "intrnl_rock":
            rock.setdefault(key, []).append(geometry)
    geometries = [
        _polygons_of(shapely.difference(g, shapely.union_all(rock[key]))) if key in rock else g
        for key, g in zip(keys, rows.geometry, strict=True)
    ]
    rows = rows.set_geometry(gpd.GeoSeries(geometries, crs=4326))
    keep = (kinds == "glac_bound") & rows.geometry.notna().to_numpy()
    return rows[keep].reset_index(drop=True)


def _to_rgi7(rows: gpd.GeoDataFrame, field: str, schema: str) -> gpd.GeoDataFrame:
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
        "src_date": _column(rows, _DATE_FIELDS, _iso_date),
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


def _iso_date(value: Any) -> str:
    """ISO 8601 as in RGI 7.0; an unknown day becomes the 15th and an unknown month July."""
    digits = re.sub(r"[-/]", "", _text(value))[:8]
    match = re.fullmatch(r"((?:18|19|20)\d\d)(\d\d)?(\d\d)?", digits)
    if match is None:
        return ""
    year, month, day = (int(g) if g else 99 for g in match.groups())
    month, day = (month, day) if 1 <= month <= 12 else (7, 99)
    days = pd.Period(year=year, month=month, freq="M").days_in_month
    return f"{year:04d}-{month:02d}-{day if 1 <= day <= days else 15:02d}T00:00:00"


def _one_row_a_glacier(frame: gpd.GeoDataFrame, notes: list[SetAside]) -> gpd.GeoDataFrame:
    """Keep the latest outline of each id; dissolve what is left of one id into one row."""
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
            row["geometry"] = _polygons_of(shapely.union_all(current.geometry.to_numpy()))
        rows.append(row)
    return gpd.GeoDataFrame(rows, crs=4326)[list(COLUMNS)].reset_index(drop=True)


def _fingerprint(frame: gpd.GeoDataFrame) -> str:
    digest = hashlib.sha256()
    geometries = shapely.to_wkb(shapely.normalize(frame.geometry.to_numpy()), byte_order=1)
    attributes = frame[list(COLUMNS[:-1])].itertuples(index=False, name=None)
    for values, wkb in zip(attributes, geometries, strict=True):
        digest.update("\x1f".join(map(str, values)).encode() + b"\x1e" + wkb)
    return digest.hexdigest()
