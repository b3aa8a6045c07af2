"""Rules on columns, ids, dates, classes and numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from change_detection.attributes import RGI_ATTRIBUTES
from change_detection.topology import utm_zones
from change_detection.validation.layer import Layer, Product, is_lonlat
from change_detection.validation.rules import Finding, Profile

__all__ = ["COLUMNS", "check_attributes", "check_columns", "check_ids", "id_pattern"]

COLUMNS: dict[Product, dict[str, str]] = {
    "G": RGI_ATTRIBUTES,
    "C": {
        "rgi_id": "str",
        "o1region": "str",
        "o2region": "str",
        "cenlon": "float",
        "cenlat": "float",
        "utm_zone": "int",
        "area_km2": "float",
    },
    "I": {"rgi_id": "str", "rgi_g_id_1": "str", "rgi_g_id_2": "str", "length_m": "float"},
}
"""Columns of each product beside its geometry, and their types (rgi_user_guide, v7.0)."""

_OTHER_NAMES = {
    "RGIId": "rgi_id",
    "O1Region": "o1region",
    "O2Region": "o2region",
    "GLIMSId": "glims_id",
    "glac_id": "glims_id",
    "BgnDate": "src_date",
    "CenLon": "cenlon",
    "CenLat": "cenlat",
    "Area": "area_km2",
    "Connect": "conn_lvl",
    "Surging": "surge_type",
    "TermType": "term_type",
    "Name": "glac_name",
    "Zmin": "zmin_m",
    "Zmax": "zmax_m",
    "Zmed": "zmed_m",
    "Slope": "slope_deg",
    "Aspect": "aspect_deg",
    "Lmax": "lmax_m",
}
# ^ what RGI 6 and GLIMS call the columns of RGI 7 (rgi_user_guide, "rgi6_name")
_CLASSES: dict[str, frozenset[int]] = {
    "primeclass": frozenset(range(10)),
    "conn_lvl": frozenset({0, 1, 9}),
    "surge_type": frozenset({0, 1, 2, 3, 9}),
    "term_type": frozenset({0, 1, 2, 3, 9}),
    "is_rgi6": frozenset({0, 1}),
    "aspect_sec": frozenset(range(1, 10)),
}
_RANGES = {
    "cenlon": (-180.0, 180.0),
    "cenlat": (-90.0, 90.0),
    "termlon": (-180.0, 180.0),
    "termlat": (-90.0, 90.0),
    "utm_zone": (1.0, 60.0),
    "area_km2": (0.0, 2e6),
    "zmin_m": (-500.0, 9000.0),
    "zmax_m": (-500.0, 9000.0),
    "zmed_m": (-500.0, 9000.0),
    "zmean_m": (-500.0, 9000.0),
    "slope_deg": (0.0, 90.0),
    "aspect_deg": (0.0, 360.0),
    "lmax_m": (0.0, 1e6),
    "anlys_id": (0.0, np.inf),
    "subm_id": (0.0, np.inf),
    "length_m": (0.0, 1e7),
}
# ^ no ice lies higher than Everest, and none much below the sea
_NO_REGION = "00"
# ^ in derived ids, where the reference names no region
_ISO = "%Y-%m-%dT%H:%M:%S"
_FIRST_DATE = pd.Timestamp("1800-01-01")
_GARBLED = re.compile("[\x80-\x9f\ufffd]|[\u00c2\u00c3][\x80-\xbf]")
# ^ control characters, the sign of replacement, and UTF-8 that was read as Latin-1
_SHOWN = 8


def check_columns(layer: Layer) -> list[Finding]:
    """Projection, columns and their types."""
    found: list[Finding] = []
    frame, wanted = layer.frame, COLUMNS[layer.product]
    if not is_lonlat(frame.crs):
        text = f"coordinates are in {frame.crs.name}, expected EPSG:4326; checked after conversion"
        found += layer.report_file("projection", text)
    columns = [str(c) for c in frame.columns if c != frame.geometry.name]
    missing = [name for name in wanted if name not in columns]
    if missing:
        found += layer.report_file("columns", _told_missing(missing, columns))
    extra = [name for name in columns if name not in wanted]
    if extra and not missing:
        found += layer.report_file("extra-columns", f"no columns of RGI 7: {_listed(extra)}")
    for name, kind in wanted.items():
        if name in columns and not _is_kind(frame[name], kind):
            text = f"column {name} holds {_kind_of(frame[name])}, expected {kind}"
            found += layer.report_file("column-type", text)
    return found


def _told_missing(missing: list[str], columns: list[str]) -> str:
    known = _OTHER_NAMES | {c: c.lower() for c in columns if c.lower() in missing}
    mapped = {known[c]: c for c in columns if known.get(c) in missing}
    renamed = ", ".join(f"{theirs} is {ours}" for ours, theirs in mapped.items())
    hint = f"; others have another name, rename them: {renamed}" if mapped else ""
    lost = [name for name in missing if name not in mapped]
    return f"missing columns: {', '.join(lost) or 'none'}{hint}"


def _listed(names: list[str], shown: int = _SHOWN) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _is_kind(column: pd.Series[Any], kind: str) -> bool:
    if kind == "str":
        return pd.api.types.infer_dtype(column, skipna=True) in {"string", "empty"}
    if kind == "int":
        return pd.api.types.is_integer_dtype(column)
    number = pd.api.types.is_float_dtype(column) or pd.api.types.is_integer_dtype(column)
    return number or (kind == "float" and bool(column.isna().all()))


def _kind_of(column: pd.Series[Any]) -> str:
    dtype = str(column.dtype)
    return str(pd.api.types.infer_dtype(column, skipna=True)) if dtype == "object" else dtype


def id_pattern(profile: Profile, product: Product) -> re.Pattern[str]:
    """Pattern of the ids of a product; its group is the first-order region."""
    prefix = r"RGI2000-v7\.\d" if profile == "rgi7" else r"(?!RGI\d*-)[A-Z0-9]+-v\d+(?:\.\d+)*"
    return re.compile(rf"{prefix}-{product}-(\d\d)-\d{{5}}")


def check_ids(layer: Layer) -> list[Finding]:
    """Pattern, uniqueness and region of the ids of a product."""
    if "rgi_id" not in layer.frame:
        return []
    column = layer.frame["rgi_id"]
    ids = column.astype(object).where(column.notna(), "").astype(str).to_numpy()
    pattern = id_pattern(layer.profile, layer.product)
    matches = [pattern.fullmatch(i) for i in ids]
    bad = np.array([m is None for m in matches], dtype=bool)
    found = layer.report("id-pattern", bad, [_told_id(layer, i) for i in ids[bad]])
    number = pd.Series(ids).duplicated(keep=False).to_numpy() & (ids != "")
    first = pd.Series(np.arange(len(ids))).groupby(ids).transform("first").to_numpy()
    again = np.flatnonzero(number & (first != np.arange(len(ids))))
    texts = [f"row {i} has the id of row {first[i]}" for i in again]
    found += layer.report("id-duplicate", again, texts)
    if "o1region" in layer.frame:
        region = layer.text("o1region")
        region[region == ""] = _NO_REGION
        named = np.array(["" if m is None else m[1] for m in matches], dtype=object)
        off = ~bad & (named != region)
        texts = [
            f"the id says region {a}, o1region {b}"
            for a, b in zip(named[off], region[off], strict=True)
        ]
        found += layer.report("id-region", off, texts)
    return found


def _told_id(layer: Layer, ident: str) -> str:
    if layer.profile == "derived":
        wanted = f"<PREFIX>-v<X>-{layer.product}-<o1>-<nnnnn>"
        if ident.startswith("RGI"):
            return f"{ident} is an id of the RGI itself; a derived inventory has its own: {wanted}"
    else:
        wanted = f"RGI2000-v7.x-{layer.product}-<o1>-<nnnnn>"
    return (
        f"the id is {ident!r}, expected {wanted}" if ident else f"there is no id, expected {wanted}"
    )


def check_attributes(layer: Layer, *, today: pd.Timestamp | None = None) -> list[Finding]:
    """Regions, dates, classes, ranges, and what one attribute says of another.

    Parameters
    ----------
    layer
        Glaciers or complexes; columns that are not there are not checked.
    today
        No outline is of a later day; the day of the clock where None.
    """
    found = _regions(layer)
    if "glims_id" in layer.frame:
        ids = layer.text("glims_id")
        bad = ~_matches(ids, r"G\d{6}E\d{5}[NS]") & ~((ids == "") & (layer.profile == "derived"))
        texts = [f"glims_id is {i!r}, expected as in G010752E46802N" for i in ids[bad]]
        found += layer.report("glims-id", bad, texts)
    if "src_date" in layer.frame:
        found += _dates(layer, today or pd.Timestamp.now(tz="UTC").tz_localize(None))
    found += _classes_and_ranges(layer)
    found += _elevations(layer)
    found += _aspects(layer)
    found += _zones(layer)
    found += _encodings(layer)
    return found


def _matches(values: npt.NDArray[Any], pattern: str) -> npt.NDArray[np.bool_]:
    compiled = re.compile(pattern)
    return np.array([compiled.fullmatch(v) is not None for v in values], dtype=bool)


def _regions(layer: Layer) -> list[Finding]:
    if not {"o1region", "o2region"} <= set(layer.frame.columns):
        return []
    o1, o2 = layer.text("o1region"), layer.text("o2region")
    fine = _matches(o1, r"0[1-9]|1\d|20") & _matches(o2, r"\d\d-\d\d")
    fine &= np.array([b.startswith(f"{a}-") for a, b in zip(o1, o2, strict=True)], dtype=bool)
    if layer.profile == "derived":
        fine |= (o1 == "") & (o2 == "")
    bad = ~fine
    texts = [
        f"o1region is {a!r} and o2region {b!r}, expected as in '11' and '11-01'"
        for a, b in zip(o1[bad], o2[bad], strict=True)
    ]
    return layer.report("region", bad, texts)


def _dates(layer: Layer, today: pd.Timestamp) -> list[Finding]:
    column = layer.frame["src_date"]
    if pd.api.types.is_datetime64_any_dtype(column):
        column = column.dt.strftime(_ISO)
    texts = pd.Series(np.where(column.notna(), column, "").astype(str)).str.strip()
    # A whole day is ISO 8601 too.
    whole = texts.where(~texts.str.fullmatch(r"\d{4}-\d\d-\d\d"), texts + "T00:00:00")
    days = pd.to_datetime(whole, format=_ISO, errors="coerce")
    known = (texts != "").to_numpy()
    bad = known & ~((days >= _FIRST_DATE) & (days <= today)).to_numpy()
    told = [
        f"src_date is {t!r}, expected as in 2003-07-30T00:00:00, from 1800 to today"
        for t in texts[bad]
    ]
    return layer.report("date", bad, told) + layer.report(
        "date-missing", ~known, "src_date is empty"
    )


def _classes_and_ranges(layer: Layer) -> list[Finding]:
    found: list[Finding] = []
    for name in COLUMNS[layer.product]:
        values = layer.number(name)
        if name in _CLASSES:
            allowed: Iterable[int] = sorted(_CLASSES[name])
            bad = np.isfinite(values) & ~np.isin(values, list(allowed))
            expected = "one of " + ", ".join(map(str, allowed))
        elif name in _RANGES:
            low, high = _RANGES[name]
            bad = ~np.isnan(values) & ~((values >= low) & (values <= high))
            expected = f"{low:g} to {high:g}"
        else:
            continue
        texts = [f"{name} is {v:g}, expected {expected}" for v in values[bad]]
        found += layer.report("range", bad, texts)
    return found


def _elevations(layer: Layer) -> list[Finding]:
    low, high = layer.number("zmin_m"), layer.number("zmax_m")
    found: list[Finding] = []
    for name, values in (("zmed_m", layer.number("zmed_m")), ("zmean_m", layer.number("zmean_m"))):
        bad = (values < low) | (values > high)
        texts = [
            f"{name} is {v:.1f}, not between zmin_m {a:.1f} and zmax_m {b:.1f}"
            for v, a, b in zip(values[bad], low[bad], high[bad], strict=True)
        ]
        found += layer.report("elevations", bad, texts)
    bad = (
        (low > high) & ~np.isfinite(layer.number("zmed_m")) & ~np.isfinite(layer.number("zmean_m"))
    )
    texts = [
        f"zmin_m {a:.1f} exceeds zmax_m {b:.1f}" for a, b in zip(low[bad], high[bad], strict=True)
    ]
    return found + layer.report("elevations", bad, texts)


def _aspects(layer: Layer) -> list[Finding]:
    aspect, sector = layer.number("aspect_deg"), layer.number("aspect_sec")
    middle = (sector - 1) * 45.0
    away = np.abs((aspect - middle + 180.0) % 360.0 - 180.0)
    bad = (sector >= 1) & (sector <= 8) & (away > 22.5 + 1e-6)
    bad |= (sector == 9) & np.isfinite(aspect)
    texts = [
        f"aspect_sec is {s:.0f}, aspect_deg {a:.1f} lies in sector {(a + 22.5) % 360 // 45 + 1:.0f}"
        for s, a in zip(sector[bad], aspect[bad], strict=True)
    ]
    return layer.report("aspect-sector", bad, texts)


def _zones(layer: Layer) -> list[Finding]:
    zone, lon, lat = (layer.number(name) for name in ("utm_zone", "cenlon", "cenlat"))
    known = (zone >= 1) & (zone <= 60) & (np.abs(lon) <= 180) & (np.abs(lat) <= 90)
    plain = np.full(len(zone), np.nan)
    plain[known] = (lon[known] + 180.0) % 360.0 // 6.0 + 1.0
    off = np.flatnonzero(known & (zone != plain))
    # Norway and Svalbard have zones of their own, which not every source heeds: both are right.
    official = utm_zones(lon[off], lat[off])
    off, official = off[zone[off] != official], official[zone[off] != official]
    texts = [
        f"utm_zone is {zone[i]:.0f}, the centre {lon[i]:.4f} {lat[i]:.4f} lies in zone {z}"
        for i, z in zip(off, official, strict=True)
    ]
    return layer.report("utm-zone", off, texts)


def _encodings(layer: Layer) -> list[Finding]:
    found: list[Finding] = []
    for name in ("glac_name", "Name"):
        texts = layer.text(name)
        bad = np.array([_GARBLED.search(t) is not None for t in texts], dtype=bool)
        told = [
            f"{name} reads {t!a}: the file's text was read in another encoding" for t in texts[bad]
        ]
        found += layer.report("encoding", bad, told)
    return found
