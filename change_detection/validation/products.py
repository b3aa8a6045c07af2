"""Rules on complexes and intersects, against the glaciers they were made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from change_detection.topology import (
    Geometries,
    shared_lines,
    touching_pairs,
    utm_lengths_m,
    utm_zones,
)
from change_detection.validation.layer import Layer
from change_detection.validation.rules import Finding

__all__ = ["MEMBER_FRACTION", "check_complexes", "check_intersects", "check_members"]

MEMBER_FRACTION = 0.999
"""A glacier lies in a complex where more than this part of it does (RGI 7.0)."""
_SUM_TOLERANCE = 1e-6
_LENGTH_M = 0.1
_ON_BORDER_DEG = 1e-8
# ^ a millimetre: far more than the rounding of coordinates, far less than any digitising
_PIECE_VERTICES = 512
_BATCH = 20_000
# ^ pairs whose intersections are in memory together
Indices = npt.NDArray[np.intp]


def check_complexes(glaciers: Layer, complexes: Layer) -> list[Finding]:
    """Whether complexes are the glaciers dissolved: sum of areas, members, and no borders left."""
    found: list[Finding] = []
    total, dissolved = float(glaciers.area_km2.sum()), float(complexes.area_km2.sum())
    if abs(dissolved - total) > _SUM_TOLERANCE * max(total, dissolved):
        text = f"complexes sum to {dissolved:.6f} km2, glaciers to {total:.6f} km2"
        found += complexes.report_file("complex-sum", text)
    glacier, complex_, fraction = _fractions(glaciers, complexes)
    inside = fraction > MEMBER_FRACTION
    count = np.bincount(glacier[inside], minlength=len(glaciers.names))
    most = np.zeros(len(glaciers.names))
    np.maximum.at(most, glacier, fraction)
    off = np.flatnonzero(glaciers.sound & (count != 1))
    texts = [
        f"lies in {count[i]} complexes"
        if count[i]
        else f"lies in no complex; {most[i]:.2%} of it lies in one"
        for i in off
    ]
    found += glaciers.report("complex-members", off, texts)
    empty = complexes.sound & (np.bincount(complex_[inside], minlength=len(complexes.names)) == 0)
    found += complexes.report("complex-members", empty, "holds no glacier")
    first, second = touching_pairs(complexes.polygons)
    lines = shared_lines(complexes.polygons, first, second)
    some = ~shapely.is_empty(lines)
    lengths = utm_lengths_m(lines[some])
    texts = [
        f"shares {length:.1f} m of border with {complexes.names[j]}: they are one complex"
        for j, length in zip(second[some], lengths, strict=True)
    ]
    places = _middle(lines[some])
    return found + complexes.report("complex-border", first[some], texts, at=places)


def check_members(
    glaciers: Layer, links: Mapping[str, Iterable[str]], complexes: Layer | None = None
) -> list[Finding]:
    """Whether the lists of members (``CtoG_links``) name each glacier once, where it lies.

    Parameters
    ----------
    glaciers
        The inventory.
    links
        Ids of the glaciers of each complex.
    complexes
        Where there are any, ids and places are compared with them too.
    """
    pairs = [(str(c), str(g)) for c, members in links.items() for g in members]
    listed = pd.Series([c for c, _ in pairs], index=[g for _, g in pairs], dtype=object)
    counts = listed.index.value_counts().reindex(glaciers.names, fill_value=0).to_numpy()
    off = np.flatnonzero(counts != 1)
    texts = [f"is a member of {counts[i]} complexes in the lists, expected of one" for i in off]
    found = glaciers.report("complex-links", off, texts)
    unknown = sorted(set(listed.index) - set(glaciers.names))
    if unknown:
        text = f"{len(unknown)} members are not in the inventory, the first is {unknown[0]}"
        found += glaciers.report_file("complex-links", text)
    if complexes is None:
        return found
    differing = sorted(set(links) ^ set(complexes.names))
    if differing:
        text = f"{len(differing)} complexes are in the lists or the file only, first {differing[0]}"
        found += glaciers.report_file("complex-links", text)
    pieces, owner = _pieces(complexes.polygons)
    placed = np.flatnonzero(np.isfinite(glaciers.lon))
    points = shapely.points(glaciers.lon[placed], glaciers.lat[placed])
    glacier, piece = shapely.STRtree(pieces).query(points, predicate="intersects")
    where: dict[str, set[str]] = {}
    for g, c in zip(placed[glacier], owner[piece], strict=True):
        where.setdefault(str(glaciers.names[g]), set()).add(str(complexes.names[c]))
    lost = [
        i
        for i, name in enumerate(glaciers.names)
        if counts[i] == 1 and listed[name] not in where.get(str(name), set())
    ]
    texts = [
        f"is listed as a member of {listed[glaciers.names[i]]}, but lies outside it" for i in lost
    ]
    return found + glaciers.report("complex-links", np.array(lost, dtype=np.intp), texts)


def _fractions(
    glaciers: Layer, complexes: Layer
) -> tuple[Indices, Indices, npt.NDArray[np.float64]]:
    """Glacier, complex, and the part of the glacier in it, for all that share some area.

    Complexes are cut into pieces of few vertices first: each glacier is compared with the ice
    around it, not with a whole ice cap.
    """
    pieces, owner = _pieces(complexes.polygons)
    glacier, piece = shapely.STRtree(pieces).query(glaciers.polygons, predicate="intersects")
    common = np.zeros(len(glacier))
    for part in np.array_split(np.arange(len(glacier)), max(1, len(glacier) // _BATCH)):
        shares = shapely.intersection(glaciers.polygons[glacier[part]], pieces[piece[part]])
        common[part] = shapely.area(shares)
    table = pd.DataFrame({"g": glacier, "c": owner[piece], "area": common})
    sums = table[table["area"] > 0].groupby(["g", "c"], sort=True)["area"].sum()
    g, c = (sums.index.get_level_values(i).to_numpy(np.intp) for i in (0, 1))
    return g, c, sums.to_numpy() / shapely.area(glaciers.polygons)[g]


def _pieces(polygons: Geometries) -> tuple[Geometries, Indices]:
    """Quarter polygons until none has many vertices; also whose piece each is."""
    owner = np.arange(len(polygons), dtype=np.intp)
    done: list[tuple[Geometries, Indices]] = []
    while len(polygons):
        large = shapely.get_num_coordinates(polygons) > _PIECE_VERTICES
        done.append((polygons[~large], owner[~large]))
        polygons, owner = polygons[large], owner[large]
        west, south, east, north = shapely.bounds(polygons).T
        x, y = (west + east) / 2, (south + north) / 2
        quarters = [
            shapely.intersection(polygons, shapely.box(*corners))
            for corners in (
                (west, south, x, y),
                (x, south, east, y),
                (west, y, x, north),
                (x, y, east, north),
            )
        ]
        polygons, index = shapely.get_parts(np.concatenate(quarters), return_index=True)
        owner = np.tile(owner, 4)[index]
        flat = shapely.get_dimensions(polygons) == 2
        polygons, owner = polygons[flat], owner[flat]
    return np.concatenate([p for p, _ in done]), np.concatenate([o for _, o in done])


def check_intersects(glaciers: Layer, lines: Layer) -> list[Finding]:
    """Whether the lines are the borders that glaciers share, whole, and as long as they say."""
    if not {"rgi_g_id_1", "rgi_g_id_2"} <= set(lines.frame.columns):
        return []
    row = pd.Series(np.arange(len(glaciers.names)), index=glaciers.names)
    row = row[~row.index.duplicated()]
    one, two = (
        row.reindex(lines.text(name)).fillna(-1).to_numpy(np.intp)
        for name in ("rgi_g_id_1", "rgi_g_id_2")
    )
    stray = (one < 0) | (two < 0) | (one == two)
    texts = [
        f"names {a or 'nothing'} and {b or 'nothing'}, expected two glaciers of the inventory"
        for a, b in zip(
            lines.text("rgi_g_id_1")[stray], lines.text("rgi_g_id_2")[stray], strict=True
        )
    ]
    found = lines.report("intersect-glaciers", stray, texts)
    is_line = shapely.get_type_id(lines.raw) == 1
    texts = [
        f"is a {'missing geometry' if g is None else g.geom_type}, expected a LineString"
        for g in lines.raw[~is_line]
    ]
    found += lines.report("intersect-line", ~is_line, texts)
    good = np.flatnonzero(~stray & is_line & np.isfinite(lines.lon))
    found += _lengths(glaciers, lines, good, one=one, two=two)
    return found + _borders(glaciers, lines, good, one=one, two=two)


def _lengths(
    glaciers: Layer, lines: Layer, good: Indices, *, one: Indices, two: Indices
) -> list[Finding]:
    """Compare ``length_m`` with the line, in its own UTM zone or that of one of its glaciers."""
    told = lines.number("length_m")[good]
    flat = shapely.force_2d(lines.raw[good])
    lengths = utm_lengths_m(flat)
    off = np.flatnonzero(np.isfinite(told) & (np.abs(told - lengths) > _LENGTH_M))
    zones = glaciers.number("utm_zone")
    fits = np.zeros(len(off), dtype=bool)
    for side in (one, two):
        zone = np.nan_to_num(zones[side[good[off]]])
        fits |= np.abs(told[off] - utm_lengths_m(flat[off], zone)) <= _LENGTH_M
    off = off[~fits]
    texts = [f"length_m is {told[i]:.3f}, the line is {lengths[i]:.3f} m long" for i in off]
    return lines.report("intersect-length", good[off], texts)


def _borders(
    glaciers: Layer, lines: Layer, good: Indices, *, one: Indices, two: Indices
) -> list[Finding]:
    """Compare the lines of each pair with the border that the two glaciers share."""
    first, second = touching_pairs(glaciers.polygons)
    border = shared_lines(glaciers.polygons, first, second)
    some = ~shapely.is_empty(border)
    first, second, border = first[some], second[some], border[some]
    place = {
        (a, b): i for i, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True))
    }
    low, high = np.minimum(one, two)[good], np.maximum(one, two)[good]
    pair = np.array(
        [place.get(p, -1) for p in zip(low.tolist(), high.tolist(), strict=True)], dtype=np.intp
    )
    flat = shapely.force_2d(lines.raw[good])
    on = pair >= 0
    on[on] = _reach(flat[on], border[pair[on]]) <= _ON_BORDER_DEG
    off = ~on
    found = lines.report("intersect-line", good[off], "does not run along a border of its glaciers")
    whole = utm_lengths_m(border)
    told = np.bincount(
        pair[on], weights=_lengths_in(flat[on], border[pair[on]]), minlength=len(border)
    )
    differing = np.flatnonzero(np.abs(whole - told) > _LENGTH_M)
    texts = [
        f"shares {whole[i]:.3f} m of border with {glaciers.names[second[i]]}, "
        f"the lines have {told[i]:.3f} m"
        for i in differing
    ]
    places = _middle(border[differing])
    return found + glaciers.report("intersect-border", first[differing], texts, at=places)


def _reach(lines: Geometries, borders: Geometries) -> npt.NDArray[np.float64]:
    """Largest distance of a line's vertices from a border, degrees."""
    points, owner = shapely.get_coordinates(lines, return_index=True)
    away = shapely.distance(borders[owner], shapely.points(points))
    reach = np.zeros(len(lines))
    np.maximum.at(reach, owner, away)
    return reach


def _lengths_in(lines: Geometries, borders: Geometries) -> npt.NDArray[np.float64]:
    """Lengths of lines in the UTM zones of their borders, so that the two can be compared."""
    west, south, east, north = shapely.bounds(borders).T
    return utm_lengths_m(lines, utm_zones((west + east) / 2, (south + north) / 2))


def _middle(lines: Geometries) -> Any:
    """A point on each line: the middle of its longest part."""
    parts, owner = shapely.get_parts(lines, return_index=True)
    if not len(parts):
        return np.empty(0, dtype=object)
    longest = pd.Series(shapely.length(parts)).groupby(owner).idxmax().to_numpy()
    return shapely.line_interpolate_point(parts[longest], 0.5, normalized=True)
