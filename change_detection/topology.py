"""How outlines of glaciers meet: shared borders, complexes, and overlaps given to one of two.

Pure geometry in longitude and latitude, with a spatial index: costs grow with the number of
outlines that touch, not with its square. Lengths are in the UTM zone of the line and areas in an
equal-area projection, as in RGI 7.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalog.errors import DataError
from catalog.glaciers import polygons_of
from catalog.grid import lonlat_into
from change_detection.attributes import utm_zone

__all__ = [
    "MAX_OVERLAP_M2",
    "PRECISION_DEG",
    "Complexes",
    "Geometries",
    "areas_km2",
    "dissolve_complexes",
    "overlap_areas_m2",
    "polygons_only",
    "remove_overlaps",
    "shared_borders",
    "shared_lines",
    "touching_pairs",
    "utm_lengths_m",
    "utm_zones",
]

Geometries = npt.NDArray[Any]
"""One-dimensional array of shapely geometries."""
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

PRECISION_DEG = 1e-9
"""Outlines that are nearer than this (0.1 mm) touch; RGI 7.0 rounds its intersects to it."""
MAX_OVERLAP_M2 = 1e-6
"""Largest overlap of two outlines that RGI 7.0 leaves (rgi_user_guide, "Revisions")."""
_EQUAL_AREA = "+proj=cea +datum=WGS84 +units=m"
_BATCH = 20_000
# ^ pairs whose intersections are in memory together


def areas_km2(geometries: Geometries) -> Floats:
    """Areas of geometries in EPSG:4326, km2, in the cylindrical equal-area projection of RGI 7.0.

    Edges are straight in longitude and latitude, as those of the outlines are.
    """
    plane = shapely.transform(geometries, lonlat_into(_EQUAL_AREA).transform, interleaved=False)
    return np.asarray(shapely.area(plane), np.float64) / 1e6


def utm_zones(lon: npt.ArrayLike, lat: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """UTM zone of each place, see :func:`change_detection.attributes.utm_zone`; 0 where NaN."""
    places = zip(np.atleast_1d(lon), np.atleast_1d(lat), strict=True)
    zones = [utm_zone(x, y) if np.isfinite(x) and np.isfinite(y) else 0 for x, y in places]
    return np.array(zones, dtype=np.int64)


def utm_lengths_m(lines: Geometries, zones: npt.ArrayLike | None = None) -> Floats:
    """Lengths of lines in EPSG:4326, metres in the plane of their UTM zones.

    Parameters
    ----------
    lines
        LineString or MultiLineString.
    zones
        Zone of each line; that of the middle of its bounds where None. North or south makes no
        difference to lengths.
    """
    if zones is None:
        west, south, east, north = shapely.bounds(lines).T
        zones = utm_zones((west + east) / 2, (south + north) / 2)
    zones = np.asarray(zones)
    lengths = np.full(len(lines), np.nan)
    for zone in np.unique(zones):
        if 1 <= zone <= 60:
            here = zones == zone
            to_utm = lonlat_into(f"EPSG:{32600 + zone}")
            plane = shapely.transform(lines[here], to_utm.transform, interleaved=False)
            lengths[here] = shapely.length(plane)
    return lengths


def polygons_only(geometries: Geometries) -> Geometries:
    """Polygon or MultiPolygon of what is polygonal in each geometry; empty where nothing is."""
    result = np.array(geometries, dtype=object)
    mixed = ~np.isin(shapely.get_type_id(result), (3, 6))
    # ^ 3 is a Polygon and 6 a MultiPolygon
    for i in np.flatnonzero(mixed):
        result[i] = polygons_of(result[i])
    result[shapely.is_missing(result)] = shapely.Polygon()
    return result


def touching_pairs(polygons: Geometries) -> tuple[Indices, Indices]:
    """Pairs of valid polygons with a point in common: each once, ``first < second``, sorted."""
    tree = shapely.STRtree(polygons)
    first, second = tree.query(polygons, predicate="intersects")
    once = first < second
    first, second = first[once], second[once]
    order = np.lexsort((second, first))
    return first[order], second[order]


def overlap_areas_m2(
    polygons: Geometries, first: Indices, second: Indices
) -> tuple[Floats, Geometries]:
    """Area that each pair has in common, m2, and a point in it (None where there is no area)."""
    areas = np.zeros(len(first))
    places = np.full(len(first), None, dtype=object)
    deep = np.flatnonzero(~shapely.touches(polygons[first], polygons[second]))
    # ^ whether interiors meet is found sooner than where
    for part in np.array_split(deep, max(1, -(-len(deep) // _BATCH))):
        common = shapely.intersection(polygons[first[part]], polygons[second[part]])
        flat = polygons_only(common)
        areas[part] = 1e6 * areas_km2(flat)
        places[part] = shapely.point_on_surface(flat)
    places[areas == 0] = None
    return areas, places


def shared_lines(polygons: Geometries, first: Indices, second: Indices) -> Geometries:
    """Border that each pair shares: a MultiLineString of its connected lines, or an empty one.

    Nunataks count: a glacier inside a hole of another shares that hole's outline. Vertices of one
    outline may lie on an edge of the other to within :data:`PRECISION_DEG`.
    """
    lines = np.full(len(first), shapely.MultiLineString(), dtype=object)
    boundaries = shapely.boundary(polygons)
    for start in range(0, len(first), _BATCH):
        part = slice(start, start + _BATCH)
        common = shapely.intersection(
            boundaries[first[part]], boundaries[second[part]], grid_size=PRECISION_DEG
        )
        pieces, owner = shapely.get_parts(common, return_index=True)
        is_line = shapely.get_dimensions(pieces) == 1
        bundles = shapely.multilinestrings(
            pieces[is_line],
            indices=np.unique(owner[is_line], return_inverse=True)[1],
        )
        lines[start + np.unique(owner[is_line])] = shapely.line_merge(bundles)
    return lines


def shared_borders(frame: gpd.GeoDataFrame, *, id_field: str = "rgi_id") -> gpd.GeoDataFrame:
    """Borders between adjacent glaciers, as RGI 7.0's intersects product has them.

    Parameters
    ----------
    frame
        Valid polygons in EPSG:4326.
    id_field
        Column of their ids.

    Returns
    -------
    GeoDataFrame
        EPSG:4326; ``rgi_g_id_1`` < ``rgi_g_id_2``, ``length_m`` in UTM, ``geometry`` a LineString:
        one row a connected line, sorted by the ids and from west to east. Numbering the lines
        (``rgi_id``) is left to the writer of a package.

    Raises
    ------
    DataError
        ``bad-geometry`` where an outline is missing or invalid.
    """
    polygons = _valid_outlines(frame, id_field)
    first, second = touching_pairs(polygons)
    lines, pair = shapely.get_parts(shared_lines(polygons, first, second), return_index=True)
    ids = frame[id_field].to_numpy()
    one, two = ids[first[pair]], ids[second[pair]]
    swapped = one > two
    rows = gpd.GeoDataFrame(
        {
            "rgi_g_id_1": np.where(swapped, two, one),
            "rgi_g_id_2": np.where(swapped, one, two),
            "length_m": utm_lengths_m(lines),
        },
        geometry=list(lines),
        crs=4326,
    )
    west, south, _, _ = shapely.bounds(lines).T if len(lines) else np.empty((4, 0))
    order = np.lexsort((south, west, rows["rgi_g_id_2"], rows["rgi_g_id_1"]))
    return rows.iloc[order].reset_index(drop=True)


@dataclass(frozen=True, slots=True)
class Complexes:
    """Glaciers that hang together, dissolved."""

    frame: gpd.GeoDataFrame
    """EPSG:4326, one Polygon a row; ``o1region``, ``o2region`` (of the largest glacier, where the
    glaciers have them), ``cenlon``, ``cenlat`` (a point inside), ``utm_zone``, ``area_km2``."""
    members: tuple[tuple[str, ...], ...]
    """Ids of the glaciers of each row, sorted; rows are sorted by the first of them."""


def dissolve_complexes(frame: gpd.GeoDataFrame, *, id_field: str = "rgi_id") -> Complexes:
    """Dissolve the glaciers that share a border, however short, or overlap.

    Glaciers that meet in single points stay apart: dissolved, they would be no single polygon.

    Parameters
    ----------
    frame
        Valid polygons in EPSG:4326.
    id_field
        Column of their ids.

    Raises
    ------
    DataError
        ``bad-geometry`` where an outline is missing or invalid.
    """
    polygons = _valid_outlines(frame, id_field)
    first, second = touching_pairs(polygons)
    joined = ~shapely.is_empty(shared_lines(polygons, first, second))
    apart = np.flatnonzero(~joined)
    joined[apart] = overlap_areas_m2(polygons, first[apart], second[apart])[0] > 0
    label = _components(len(polygons), first[joined], second[joined])
    ids = frame[id_field].astype(str).to_numpy()
    found = [
        (tuple(sorted(ids[rows])), rows, shape)
        for group in _groups(label)
        for rows, shape in _dissolved(polygons, group)
    ]
    found.sort(key=lambda item: item[0])
    shapes = np.array([shape for _, _, shape in found], dtype=object)
    km2 = areas_km2(polygons)
    largest = [rows[np.argmax(km2[rows])] for _, rows, _ in found]
    centre = shapely.point_on_surface(shapes)
    lon, lat = shapely.get_x(centre), shapely.get_y(centre)
    columns: dict[str, Any] = {
        name: frame[name].to_numpy()[largest] for name in ("o1region", "o2region") if name in frame
    }
    columns |= {
        "cenlon": lon,
        "cenlat": lat,
        "utm_zone": utm_zones(lon, lat),
        "area_km2": areas_km2(shapes),
    }
    rows = gpd.GeoDataFrame(columns, geometry=list(shapes), crs=4326)
    return Complexes(rows, tuple(members for members, _, _ in found))


def _valid_outlines(frame: gpd.GeoDataFrame, id_field: str) -> Geometries:
    polygons = np.asarray(shapely.force_2d(frame.geometry.to_numpy()))
    for i in np.flatnonzero(~shapely.is_valid(polygons))[:1]:
        raise DataError(
            f"the outline of {frame[id_field].iloc[i]} is not valid: "
            f"{shapely.is_valid_reason(polygons[i])}; repair it first",
            kind="bad-geometry",
        )
    return polygons


def _components(count: int, first: Indices, second: Indices) -> Indices:
    graph = coo_array((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.intp)


def _groups(label: Indices) -> list[Indices]:
    order = np.argsort(label, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(label[order])) + 1)) if len(order) else []


def _dissolved(polygons: Geometries, group: Indices) -> list[tuple[Indices, Any]]:
    """Rows and outline of each complex of a group; more than one where they meet in points."""
    if len(group) == 1:
        return [(group, polygons[group[0]])]
    whole = shapely.union_all(polygons[group])
    if whole.geom_type != "Polygon":
        # Vertices of one outline lie beside an edge of the other: close the gaps between them.
        whole = shapely.union_all(polygons[group], grid_size=PRECISION_DEG)
    if whole.geom_type == "Polygon":
        return [(group, whole)]
    parts = shapely.get_parts(whole)
    inside = shapely.STRtree(parts).query(
        shapely.point_on_surface(polygons[group]), predicate="intersects"
    )
    return [(group[inside[0][inside[1] == i]], part) for i, part in enumerate(parts)]


def remove_overlaps(polygons: Geometries) -> Geometries:
    """Give what two outlines have in common to one of them, so that all are disjoint.

    An overlap goes to the outline that leaves the two with the shorter total perimeter (on equal
    ones to the first) and is cut from the other, pair by pair in the order of the rows. The area of
    the union is kept.

    Parameters
    ----------
    polygons
        Valid Polygon or MultiPolygon in EPSG:4326.

    Returns
    -------
    array of Polygon or MultiPolygon
        Empty where an outline lay inside another one.
    """
    result = np.array(polygons, dtype=object)
    first, second = touching_pairs(result)
    for i, j in zip(first, second, strict=True):
        if shapely.relate_pattern(result[i], result[j], "T********"):
            cut_j, cut_i = result[j] - result[i], result[i] - result[j]
            keep_i = result[i].length + cut_j.length <= result[j].length + cut_i.length
            if keep_i:
                result[j] = polygons_only(np.array([cut_j], dtype=object))[0]
            else:
                result[i] = polygons_only(np.array([cut_i], dtype=object))[0]
    return result
