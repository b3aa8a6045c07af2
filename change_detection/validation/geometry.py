"""Rules on single outlines and on pairs of them, with a spatial index."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from change_detection.topology import (
    MAX_OVERLAP_M2,
    Geometries,
    overlap_areas_m2,
    touching_pairs,
)
from change_detection.validation.layer import Layer, same_area
from change_detection.validation.rules import Finding

__all__ = ["MIN_AREA_KM2", "check_outlines", "check_pairs", "check_places"]

MIN_AREA_KM2 = 0.01
"""The recommended minimum of the World Glacier Inventory, and RGI 7.0's."""
_METRES_A_DEGREE = 111_320.0
_TERMINUS_M = 1.0


def check_outlines(layer: Layer) -> list[Finding]:
    """Whether each outline is there, one valid polygon on the Earth, and large enough."""
    raw = layer.raw
    missing = shapely.is_missing(raw) | shapely.is_empty(raw)
    found = layer.report(
        "geometry-missing", missing, "there is no outline, or none that can be read"
    )
    kinds = shapely.get_type_id(raw)
    other = ~missing & (kinds != 3)
    texts = [_told_kind(g) for g in raw[other]]
    found += layer.report("geometry-type", other, texts)
    off, told, places = _off_the_earth(layer, ~missing)
    found += layer.report("coordinates", off, told, at=places)
    valid = shapely.is_valid(raw)
    crossed = np.flatnonzero(~missing & ~valid & ~np.isin(np.arange(len(raw)), off))
    reasons = shapely.is_valid_reason(raw[crossed])
    where = _reason_points(reasons)
    found += layer.report("geometry-invalid", crossed, [r.split("[")[0] for r in reasons], at=where)
    found += _heights(layer, ~missing)
    small = layer.sound & (layer.area_km2 < MIN_AREA_KM2)
    texts = [f"area is {a:.6f} km2, the minimum is {MIN_AREA_KM2}" for a in layer.area_km2[small]]
    return found + layer.report("minimum-area", small, texts)


def _told_kind(geometry: Any) -> str:
    parts = shapely.get_num_geometries(geometry)
    many = f" of {parts} parts" if parts > 1 or geometry.geom_type.startswith("Multi") else ""
    return f"the outline is a {geometry.geom_type}{many}, expected one Polygon"


def _off_the_earth(
    layer: Layer, present: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.intp], list[str], Geometries]:
    """Rows with vertices that are not on the Earth, or that span more than half of it."""
    lonlat, owner = shapely.get_coordinates(layer.raw, return_index=True)
    with np.errstate(invalid="ignore"):
        fine = (np.abs(lonlat[:, 0]) <= 180.0) & (np.abs(lonlat[:, 1]) <= 90.0)
    rows, first, count = np.unique(owner[~fine], return_index=True, return_counts=True)
    samples = lonlat[~fine][first]
    told = [
        f"{n} of its vertices are not on the Earth, the first at {x:g} {y:g}"
        for n, (x, y) in zip(count, samples, strict=True)
    ]
    west, _, east, _ = shapely.bounds(layer.raw).T
    wide = np.setdiff1d(np.flatnonzero(present & (east - west > 180.0)), rows)
    told += [f"it spans {east[i] - west[i]:.1f} degrees: cut it at the antimeridian" for i in wide]
    at = shapely.points(np.full((len(told), 2), np.nan))
    return np.concatenate([rows, wide]).astype(np.intp), told, at


def _reason_points(reasons: Geometries) -> Geometries:
    """Points that GEOS names in square brackets behind its reasons."""
    numbers = [re.search(r"\[(\S+) (\S+)\]", reason) for reason in reasons]
    places = [(float(m[1]), float(m[2])) if m else (np.nan, np.nan) for m in numbers]
    return np.asarray(shapely.points(np.array(places).reshape(-1, 2)))


def _heights(layer: Layer, present: npt.NDArray[np.bool_]) -> list[Finding]:
    solid = np.flatnonzero(present & shapely.has_z(layer.raw))
    xyz, owner = shapely.get_coordinates(layer.raw[solid], include_z=True, return_index=True)
    high = np.isfinite(xyz[:, 2]) & (xyz[:, 2] != 0.0)
    rows, first = np.unique(owner[high], return_index=True)
    texts = [f"a vertex has the height {z:g}; outlines are flat" for z in xyz[high][first, 2]]
    return layer.report("geometry-heights", solid[rows], texts)


def check_pairs(layer: Layer) -> list[Finding]:
    """Duplicates and overlaps among outlines; an overlap of duplicates is told once."""
    polygons, names = layer.polygons, layer.names
    first, second = touching_pairs(polygons)
    areas, places = overlap_areas_m2(polygons, first, second)
    large = areas > MAX_OVERLAP_M2
    first, second, areas, places = first[large], second[large], areas[large], places[large]
    points = shapely.points(layer.lon, layer.lat)
    held_2 = shapely.contains(polygons[first], points[second])
    held_1 = shapely.contains(polygons[second], points[first]) & ~held_2
    share = 100 * areas / 1e6 / np.minimum(layer.area_km2[first], layer.area_km2[second])
    found: list[Finding] = []
    for held, inner, outer in ((held_2, second, first), (held_1, first, second)):
        texts = [
            f"its representative point lies in {names[o]}{row}; "
            f"{_m2(a)} m2 are common, {p:.3g} % of the smaller"
            for o, row, a, p in zip(
                outer[held],
                _same_name(names, inner[held], outer[held]),
                areas[held],
                share[held],
                strict=True,
            )
        ]
        found += layer.report("duplicate", inner[held], texts)
    plain = ~held_1 & ~held_2
    texts = [
        f"overlaps {names[j]}{row} by {_m2(a)} m2, {p:.3g} % of the smaller"
        for j, row, a, p in zip(
            second[plain],
            _same_name(names, first[plain], second[plain]),
            areas[plain],
            share[plain],
            strict=True,
        )
    ]
    return found + layer.report("overlap", first[plain], texts, at=places[plain])


def _m2(area: float) -> str:
    return f"{area:.0f}" if area >= 100 else f"{area:.3g}"


def _same_name(
    names: npt.NDArray[Any], one: npt.NDArray[np.intp], other: npt.NDArray[np.intp]
) -> list[str]:
    """Tell rows apart where two have one id."""
    return [
        f" (rows {i} and {j})" if names[i] == names[j] else ""
        for i, j in zip(one, other, strict=True)
    ]


def check_places(layer: Layer) -> list[Finding]:
    """Whether area, centre and terminus are those of the outline."""
    told = layer.number("area_km2")
    off = layer.sound & np.isfinite(told) & ~same_area(told, layer.area_km2)
    texts = [
        f"area_km2 is {a:.6f}, the outline has {b:.6f} km2 ({100 * (a / b - 1):+.3f} %)"
        for a, b in zip(told[off], layer.area_km2[off], strict=True)
    ]
    found = layer.report("area", off, texts)
    lon, lat = layer.number("cenlon"), layer.number("cenlat")
    given = layer.sound & np.isfinite(lon) & np.isfinite(lat)
    out = np.flatnonzero(given)
    out = out[~shapely.intersects_xy(layer.polygons[out], lon[out], lat[out])]
    away = _metres_from(layer.polygons[out], lon[out], lat[out])
    texts = [
        f"the centre {lon[i]:.6f} {lat[i]:.6f} lies {d:.1f} m outside the outline"
        for i, d in zip(out, away, strict=True)
    ]
    found += layer.report("centre", out, texts, at=shapely.points(lon[out], lat[out]))
    lon, lat = layer.number("termlon"), layer.number("termlat")
    rows = np.flatnonzero(layer.sound & np.isfinite(lon) & np.isfinite(lat))
    away = _metres_from(shapely.boundary(layer.polygons[rows]), lon[rows], lat[rows])
    rows, away = rows[away > _TERMINUS_M], away[away > _TERMINUS_M]
    texts = [
        f"the terminus {lon[i]:.6f} {lat[i]:.6f} lies {d:.1f} m off the outline"
        for i, d in zip(rows, away, strict=True)
    ]
    return found + layer.report("terminus", rows, texts, at=shapely.points(lon[rows], lat[rows]))


def _metres_from(
    geometries: Geometries, lon: npt.NDArray[np.float64], lat: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Distance of points from geometries near them, on a sphere's tangent plane."""
    line = shapely.shortest_line(geometries, shapely.points(lon, lat))
    ends = shapely.get_coordinates(line).reshape(-1, 2, 2)
    step = (ends[:, 1] - ends[:, 0]) * _METRES_A_DEGREE
    return np.asarray(np.hypot(step[:, 0] * np.cos(np.radians(lat)), step[:, 1]))
