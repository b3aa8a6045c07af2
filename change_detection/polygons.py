"""Pixels become polygons: exact outlines on the grid, carried to longitude and latitude.

Every pixel corner along an outline is a vertex. So neighbours share the same vertices bit for bit,
and the polygons leave neither gaps nor overlaps in any projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import shapes

from catalog.grid import RegionGrid, lonlat_from

__all__ = ["trace_polygons"]


def trace_polygons(
    labels: npt.NDArray[np.int32], *, row0: int, col0: int, grid: RegionGrid
) -> list[tuple[int, shapely.Polygon]]:
    """Outline the 4-connected patches of equal label.

    Parameters
    ----------
    labels : ``(y, x)`` int32
        0 is left out. Enclosed pixels of another label become holes.
    row0, col0
        Position of the upper-left pixel in the region's grid.
    grid
        The region's grid.

    Returns
    -------
    list of (label, polygon)
        Valid polygons in EPSG:4326, sorted by label, exteriors counter-clockwise. A patch over the
        antimeridian gives one polygon on either side.
    """
    found = [
        (int(label), shapely.Polygon(rings["coordinates"][0], rings["coordinates"][1:]))
        for rings, label in shapes(labels, mask=labels > 0, connectivity=4)
    ]
    if not found:
        return []
    order = sorted(range(len(found)), key=lambda i: found[i][0])
    lonlat = _to_lonlat([found[i][1] for i in order], row0=row0, col0=col0, grid=grid)
    traced = []
    for i, polygon in zip(order, lonlat, strict=True):
        traced += [(found[i][0], part) for part in _split_at_antimeridian(polygon)]
    return traced


def _to_lonlat(
    polygons: list[shapely.Polygon], *, row0: int, col0: int, grid: RegionGrid
) -> npt.NDArray[Any]:
    """Polygons in pixel corners (x, y) of the window -> polygons in degrees."""
    kind, corners, (rings, parts) = shapely.to_ragged_array(polygons)
    corners, rings = _every_corner(corners.astype(np.int64), rings)
    x, y = grid.transform @ (corners[:, 0] + col0, corners[:, 1] + row0)
    lon, lat = lonlat_from(grid.proj4).transform(x, y)
    lonlat = shapely.from_ragged_array(kind, np.column_stack([lon, lat]), (rings, parts))
    return np.asarray(shapely.orient_polygons(lonlat))


def _every_corner(
    corners: npt.NDArray[np.int64], rings: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Insert the pixel corners that lie on straight runs; integer arithmetic, so exact."""
    step = np.diff(corners, axis=0, append=corners[-1:])
    length = np.abs(step).sum(axis=1)
    length[rings[1:] - 1] = 1
    # ^ the closing vertex of a ring stands for itself; the step after it leads to another ring
    step[rings[1:] - 1] = 0
    start = np.concatenate([[0], np.cumsum(length)])
    along = np.arange(start[-1]) - np.repeat(start[:-1], length)
    dense = np.repeat(corners, length, axis=0)
    dense += np.repeat(np.sign(step), length, axis=0) * along[:, None]
    return dense, start[rings]


def _split_at_antimeridian(polygon: shapely.Polygon) -> list[shapely.Polygon]:
    west, _, east, _ = polygon.bounds
    if east - west <= 180.0:
        return [polygon]
    eastward = shapely.transform(polygon, _unwrap)
    halves = []
    for left in (0.0, 180.0):
        half = shapely.intersection(eastward, shapely.box(left, -90.0, left + 180.0, 90.0))
        if left:
            half = shapely.transform(half, _wrap)
        halves += [p for p in shapely.get_parts(half) if p.geom_type == "Polygon"]
    return halves


def _unwrap(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.column_stack([lonlat[:, 0] % 360.0, lonlat[:, 1]])


def _wrap(lonlat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.column_stack([lonlat[:, 0] - 360.0, lonlat[:, 1]])
