"""Ice becomes glaciers: cut along the divides of a reference inventory, or along the terrain's.

Outlines stay as they are to the last vertex; only divides are added. So what is cut adds up to what
there was, and a divide that is copied has the reference's own coordinates in every season.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from affine import Affine
from rasterio.features import rasterize, shapes
from scipy.ndimage import distance_transform_edt

from catalog.grid import lonlat_from, lonlat_into
from change_detection.divides import extend_owners
from change_detection.flowsheds import FlowshedSettings, divide_by_terrain
from change_detection.topology import (
    Geometries,
    areas_km2,
    dissolve_complexes,
    polygons_only,
    shared_lines,
    touching_pairs,
)

__all__ = ["Frame", "ReadElevation", "cut_by_reference", "cut_by_terrain"]

Labels = npt.NDArray[np.int32]

_TERRAIN_M = 40.0
# ^ cells on which flowsheds are found (Kienholz et al. 2013)
_NEW_ICE_M = 20.0
# ^ cells on which new ice between glaciers is given to one of them
_FARTHEST_M = 20_000.0
_AROUND = 4
# ^ cells around a complex that its window holds
_STAIRS = 1.5
# ^ corners of the cells that stand out by less than so many cells are taken off a divide


@dataclass(frozen=True, slots=True)
class Frame:
    """A window of square cells in a local equal-area projection."""

    proj4: str
    transform: Affine
    shape: tuple[int, int]
    resolution_m: float


ReadElevation = Callable[[Frame], npt.NDArray[np.float32]]
"""Gives the elevation in the cells of a window, metres, NaN where it is not known."""


def cut_by_terrain(
    ice: gpd.GeoDataFrame,
    elevation: ReadElevation,
    *,
    settings: FlowshedSettings | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Divide complexes into glaciers where no inventory says how.

    Parameters
    ----------
    ice
        Valid polygons in EPSG:4326; those that share a border are one complex.
    elevation
        Source of the terrain.
    settings
        Numbers of the method, see :func:`change_detection.flowsheds.divide_by_terrain`.
    progress
        Called with a label, the number done and the number in all.

    Returns
    -------
    GeoDataFrame
        EPSG:4326, one Polygon a row: ``glacier_id`` (``new-00001``), ``ref_id`` (empty), ``origin``
        (``terrain``), ``area_km2``; from west to east. The sum of areas is that of the ice.

    Raises
    ------
    DataError
        ``bad-geometry`` where an outline is missing or invalid, ``no-elevation`` where the
        elevation on or beside the ice is not known.
    """
    whole = _complexes(ice)
    found: list[Any] = []
    for done, outline in enumerate(whole):
        frame = _frame_around(outline, _TERRAIN_M)
        mask = _burnt([(outline, 1)], frame) > 0
        if not mask.any():
            found.append(outline)
        else:
            labels = divide_by_terrain(
                mask, elevation(frame), resolution_m=frame.resolution_m, settings=settings
            )
            found += [piece for _, piece in _cut(outline, labels, frame)]
        if progress:
            progress("complexes", done + 1, len(whole))
    return _glaciers(found, [""] * len(found), origin="terrain")


def cut_by_reference(
    ice: gpd.GeoDataFrame,
    reference: gpd.GeoDataFrame,
    *,
    elevation: ReadElevation | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> gpd.GeoDataFrame:
    """Give ice the glaciers of a reference inventory, divided by its own lines.

    Ice inside a reference outline is that glacier's. Ice beyond belongs to the glacier whose ice it
    touches; where it touches several, to the one that is nearest over the ground
    (:func:`change_detection.divides.extend_owners`). Ice that touches none is a new candidate: it
    is never given to a stranger.

    Parameters
    ----------
    ice
        Valid polygons in EPSG:4326.
    reference
        Valid polygons in EPSG:4326 with ``ref_id``.
    elevation
        Source of the terrain; without one the nearest outline decides.
    progress
        Called with a label, the number done and the number in all.

    Returns
    -------
    GeoDataFrame
        EPSG:4326, one Polygon a row: ``glacier_id`` (the reference's, or ``new-00001``), ``ref_id``
        (empty where new), ``origin`` (``reference`` or ``new``), ``area_km2``. A glacier in several
        pieces has several rows. The sum of areas is that of the ice.

    Raises
    ------
    DataError
        ``bad-geometry`` where an outline is missing or invalid.
    """
    theirs = reference.geometry.to_numpy()
    ids = reference["ref_id"].astype(str).to_numpy()
    tree = shapely.STRtree(theirs)
    whole = _complexes(ice)
    rows: list[tuple[str, Any]] = []
    for done, outline in enumerate(whole):
        near = np.sort(tree.query(outline, predicate="intersects"))
        inside, beyond = _split(outline, theirs[near])
        owned, lonely = _with_new_ice(inside, beyond, elevation)
        rows += [(ids[near[k]], piece) for k, piece in owned] + [("", piece) for piece in lonely]
        if progress:
            progress("outlines of ice", done + 1, len(whole))
    old = [row for row in rows if row[0]]
    new = [row for row in rows if not row[0]]
    both = [
        _glaciers([shape for _, shape in part], [i for i, _ in part], origin=origin)
        for part, origin in ((old, "reference"), (new, "new"))
    ]
    return pd.concat(both, ignore_index=True)


def _complexes(ice: gpd.GeoDataFrame) -> Geometries:
    rows = ice.assign(_row=[str(i) for i in range(len(ice))])
    return np.asarray(dissolve_complexes(rows, id_field="_row").frame.geometry.to_numpy())


def _glaciers(shapes_: Sequence[Any], ref_ids: Sequence[str], *, origin: str) -> gpd.GeoDataFrame:
    """Rows by reference glacier, the largest piece first; new ones from west to east."""
    polygons = np.array(shapes_, dtype=object)
    frame = gpd.GeoDataFrame(
        {
            "ref_id": pd.Series(ref_ids, dtype=object),
            "origin": origin,
            "area_km2": areas_km2(polygons) if len(polygons) else np.zeros(0),
        },
        geometry=list(polygons),
        crs=4326,
    )
    west, south, _, _ = shapely.bounds(polygons).T if len(polygons) else np.empty((4, 0))
    frame = frame.assign(_west=west, _south=south, _size=-frame["area_km2"])
    keys = ["ref_id", "_size"] if origin == "reference" else ["_west", "_south"]
    frame = frame.sort_values(keys, kind="stable", ignore_index=True)
    names = [i or f"new-{k + 1:05d}" for k, i in enumerate(frame["ref_id"])]
    frame.insert(0, "glacier_id", pd.Series(names, dtype=object))
    return frame.drop(columns=["_west", "_south", "_size"])


def _frame_around(outline: Any, resolution_m: float) -> Frame:
    centre = outline.representative_point()
    proj4 = f"+proj=laea +lat_0={centre.y:.3f} +lon_0={centre.x:.3f} +datum=WGS84 +units=m +no_defs"
    left, bottom, right, top = shapely.bounds(_to_plane(outline, proj4))
    margin = _AROUND * resolution_m
    cols = int(np.ceil((right - left + 2 * margin) / resolution_m))
    rows = int(np.ceil((top - bottom + 2 * margin) / resolution_m))
    transform = Affine(resolution_m, 0.0, left - margin, 0.0, -resolution_m, top + margin)
    return Frame(proj4, transform, (rows, cols), resolution_m)


def _to_plane(geometry: Any, proj4: str) -> Any:
    to_plane = lonlat_into(proj4)
    return shapely.transform(geometry, to_plane.transform, interleaved=False)


def _burnt(numbered: Sequence[tuple[Any, int]], frame: Frame) -> Labels:
    """Number of the geometry (in degrees) that holds the centre of each cell, 0 where none does."""
    plane = [(_to_plane(g, frame.proj4), n) for g, n in numbered if not g.is_empty]
    if not plane:
        return np.zeros(frame.shape, dtype=np.int32)
    burnt = rasterize(plane, out_shape=frame.shape, transform=frame.transform, dtype="int32")
    return np.asarray(burnt, dtype=np.int32)


def _cut(outline: Any, labels: Labels, frame: Frame) -> list[tuple[int, Any]]:
    """Cut an outline (in degrees) along the borders of labels; every piece one Polygon.

    What an outline reaches beyond the labels goes to the nearest one. Crumbs that come off a piece
    join the neighbour with the longest common border.
    """
    nearest = distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    filled = labels[nearest[0], nearest[1]]
    traced = [
        (int(n), shapely.geometry.shape(shape))
        for shape, n in shapes(filled, connectivity=4, transform=frame.transform)
    ]
    cells = np.array([shape for _, shape in traced], dtype=object)
    smooth = shapely.coverage_simplify(cells, _STAIRS * frame.resolution_m, simplify_boundary=False)
    to_degrees = lonlat_from(frame.proj4)
    smooth = shapely.transform(smooth, to_degrees.transform, interleaved=False)
    parts, owner = shapely.get_parts(
        polygons_only(shapely.intersection(smooth, outline)), return_index=True
    )
    some = ~shapely.is_empty(parts)
    numbers = np.array([n for n, _ in traced], dtype=np.int64)[owner]
    return _without_crumbs(parts[some], numbers[some])


def _without_crumbs(parts: Geometries, numbers: npt.NDArray[np.int64]) -> list[tuple[int, Any]]:
    """Join every piece but the largest of its number to the neighbour of the longest border."""
    size = areas_km2(parts)
    main = np.zeros(len(parts), dtype=bool)
    for number in np.unique(numbers):
        rows = np.flatnonzero(numbers == number)
        main[rows[np.argmax(size[rows])]] = True
    first, second = touching_pairs(parts)
    length = shapely.length(shared_lines(parts, first, second))
    home = np.where(main, np.arange(len(parts)), -1)
    while (home < 0).any():
        known = (home[first] >= 0) != (home[second] >= 0)
        known &= length > 0
        if not known.any():
            home[home < 0] = np.flatnonzero(home < 0)
            # ^ crumbs that touch nothing by a line stay as they are
            break
        lost = np.where(home[first] < 0, first, second)[known]
        host = np.where(home[first] < 0, second, first)[known]
        for row in np.unique(lost):
            mine = lost == row
            home[row] = home[host[mine][np.argmax(length[known][mine])]]
    return [(int(numbers[row]), shapely.union_all(parts[home == row])) for row in np.unique(home)]


def _split(outline: Any, reference: Geometries) -> tuple[list[Any], list[Any]]:
    """Part of the outline in each reference glacier, and the pieces outside of all of them."""
    inside, left = [], outline
    for glacier in reference:
        inside.append(polygons_only(np.array([left & glacier], dtype=object))[0])
        left = polygons_only(np.array([left - glacier], dtype=object))[0]
        # ^ where two reference outlines overlap, the first has what they share
    return inside, [p for p in shapely.get_parts(left) if not p.is_empty]


def _with_new_ice(
    inside: Sequence[Any], beyond: Sequence[Any], elevation: ReadElevation | None
) -> tuple[list[tuple[int, Any]], list[Any]]:
    """Join new ice to the glaciers it touches.

    Returns
    -------
    tuple
        Pieces with the position of their glacier; and the new ice that touches none.
    """
    parts, owner = shapely.get_parts(np.array(inside, dtype=object), return_index=True)
    parts, owner = parts[~shapely.is_empty(parts)], owner[~shapely.is_empty(parts)]
    joined: dict[int, list[Any]] = {}
    lonely = []
    tree = shapely.STRtree(parts)
    for patch in beyond:
        near = np.sort(tree.query(patch, predicate="intersects"))
        borders = _borders_with(patch, parts[near])
        hosts = near[borders > 0]
        if not len(hosts):
            lonely.append(patch)
        elif len(np.unique(owner[hosts])) == 1:
            joined.setdefault(int(near[np.argmax(borders)]), []).append(patch)
        else:
            for host, piece in _shared_out(patch, hosts, parts, elevation):
                joined.setdefault(host, []).append(piece)
    grown = [
        (int(owner[k]), shapely.union_all(np.array([part, *joined.get(k, [])], dtype=object)))
        for k, part in enumerate(parts)
    ]
    pieces = [(k, piece) for k, shape in grown for piece in shapely.get_parts(shape)]
    return pieces, lonely


def _borders_with(patch: Any, others: Geometries) -> npt.NDArray[np.float64]:
    """Length of the border of a patch with each of some pieces, degrees; 0 where there is none."""
    second = np.arange(1, len(others) + 1, dtype=np.intp)
    lines = shared_lines(np.concatenate([[patch], others]), np.zeros_like(second), second)
    return np.asarray(shapely.length(lines), dtype=np.float64)


def _shared_out(
    patch: Any, hosts: npt.NDArray[np.intp], parts: Geometries, elevation: ReadElevation | None
) -> list[tuple[int, Any]]:
    """Divide new ice among the pieces of glaciers it touches: nearest over the ground."""
    frame = _frame_around(patch, _NEW_ICE_M)
    burnt = _burnt([(parts[k], n + 1) for n, k in enumerate(hosts)], frame)
    if len(np.unique(burnt[burnt > 0])) < 2:
        # A patch too small for cells goes to the glacier with which it shares most.
        return [(int(hosts[np.argmax(_borders_with(patch, parts[hosts]))]), patch)]
    owners = extend_owners(
        burnt,
        resolution_m=frame.resolution_m,
        growth_m=_FARTHEST_M,
        elevation=None if elevation is None else elevation(frame),
    )
    return [(int(hosts[n - 1]), piece) for n, piece in _cut(patch, owners, frame)]
