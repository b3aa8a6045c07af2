"""Surroundings: the pixels of each glacier, and of the ground beside it, on a coarse grid. No I/O.

The one law: the pixels are those of a lattice of chunks that is fixed to the region, so that what
is read for a glacier does not depend on which others are looked at with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_array

from catalog.grid import LonLatBox, RegionGrid, lonlat_boxes
from catalog.stacks import Tile

from rasterio.features import rasterize  # isort: skip

__all__ = ["Chunk", "coarse_grid", "glacier_chunks", "glacier_windows", "neighbours"]

_COARSE_M = 60.0
# ^ a glacier of 0.1 km2 has 28 such pixels, and Sentinel-2's overview of 40 m can be read for them
_RING_M = 500.0
# ^ holds all that a glacier may have left or reached in some decades, and ground of its own height:
#   farther off, snow lies longer or shorter than at the margin
_CHUNK_PX = 128

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Chunk:
    """One chunk of the fixed lattice, and which of its pixels belong to which glacier."""

    tile: Tile
    glaciers: npt.NDArray[np.int64]
    """Positions of the glaciers that have pixels here, sorted."""
    inside: csr_array
    """(all glaciers, pixels of the chunk): 1 on the glacier."""
    around: csr_array
    """The same for the ring around the glacier."""

    @cached_property
    def boxes(self) -> list[LonLatBox]:
        """Boxes in degrees that cover the chunk."""
        return lonlat_boxes(self.tile.bounds, self.tile.grid)


def coarse_grid(grid: RegionGrid, *, target_m: float = _COARSE_M) -> RegionGrid:
    """Grid of the region's projection and corner with pixels of about ``target_m`` metres.

    A pixel is a whole number of the region's own.
    """
    size = grid.resolution_m * max(1, round(target_m / grid.resolution_m))
    rows, cols = (math.ceil(n * grid.resolution_m / (size * _CHUNK_PX)) for n in grid.shape)
    return RegionGrid(
        grid.lat_0, grid.lon_0, size, _CHUNK_PX, _CHUNK_PX, grid.left, grid.top, rows, cols
    )


def glacier_windows(
    outlines: gpd.GeoDataFrame, grid: RegionGrid, *, margin_m: float = _RING_M
) -> dict[str, Tile]:
    """Window of a grid around each glacier.

    Parameters
    ----------
    outlines
        Columns ``ref_id`` and ``geometry``, EPSG:4326.
    grid
        Whose pixels, for example :func:`coarse_grid`.
    margin_m
        Metres seen around an outline.
    """
    shapes = outlines.geometry.to_crs(grid.proj4)
    bounds = zip(outlines["ref_id"], shapely.bounds(shapes.to_numpy()), strict=True)
    return {str(ref_id): _window(box, grid, margin_m) for ref_id, box in bounds}


def _window(box: npt.NDArray[np.float64], grid: RegionGrid, margin_m: float) -> Tile:
    west, south, east, north = box
    size = grid.resolution_m
    row0 = math.floor((grid.top - north - margin_m) / size)
    col0 = math.floor((west - margin_m - grid.left) / size)
    row1 = math.ceil((grid.top - south + margin_m) / size)
    col1 = math.ceil((east + margin_m - grid.left) / size)
    return Tile(grid, row0, col0, row1 - row0, col1 - col0)


def neighbours(
    outlines: gpd.GeoDataFrame, inventory: gpd.GeoDataFrame, grid: RegionGrid
) -> gpd.GeoDataFrame:
    """Rows of an inventory that may come near enough to some glaciers to meet their rings.

    Parameters
    ----------
    outlines, inventory
        Columns ``ref_id`` and ``geometry``, EPSG:4326.
    grid
        The region's grid.
    """
    coarse = coarse_grid(grid)
    found: set[int] = set()
    for window in glacier_windows(outlines, coarse).values():
        for box in lonlat_boxes(window.bounds, coarse):
            found.update(inventory.sindex.query(shapely.box(*box)).tolist())
    return inventory.iloc[sorted(found)]


def glacier_chunks(
    outlines: gpd.GeoDataFrame, others: gpd.GeoDataFrame, grid: RegionGrid
) -> list[Chunk]:
    """Pixels of each glacier and of the ring around it, by chunk.

    The ring is the ground within 500 m of a glacier that lies on no glacier.

    Parameters
    ----------
    outlines
        The glaciers: columns ``ref_id`` and ``geometry``, EPSG:4326.
    others
        All glaciers nearby; may hold those of ``outlines`` too.
    grid
        Whose pixels, see :func:`coarse_grid`.

    Returns
    -------
    list of Chunk
        Row by row from the north-west; glaciers are counted as in ``outlines``.
    """
    windows = list(glacier_windows(outlines, grid).values())
    if not windows:
        return []
    shapes = outlines.geometry.to_crs(grid.proj4).to_numpy()
    rest = others[~others["ref_id"].isin(outlines["ref_id"])]
    ice = np.concatenate([shapes, rest.geometry.to_crs(grid.proj4).to_numpy()])
    tree = shapely.STRtree(ice)
    found: list[npt.NDArray[np.int64]] = []
    for index, (shape, window) in enumerate(zip(shapes, windows, strict=True)):
        near = ice[tree.query(shapely.box(*window.bounds))]
        for kind, mask in enumerate(_inside_and_around(shape, near, window)):
            row, col = np.nonzero(mask)
            here = (np.full(row.size, n) for n in (index, kind))
            found.append(np.stack([*here, row + window.row, col + window.col]))
    glacier, kind, row, col = np.concatenate(found, axis=1)
    place = np.stack([row // _CHUNK_PX, col // _CHUNK_PX])
    pixel = row % _CHUNK_PX * _CHUNK_PX + col % _CHUNK_PX
    places, which = np.unique(place, axis=1, return_inverse=True)
    chunks = []
    for number, (down, right) in enumerate(places.T.tolist()):
        here = which == number
        layers = [
            _membership(glacier[here & (kind == k)], pixel[here & (kind == k)], len(shapes))
            for k in (0, 1)
        ]
        tile = Tile(grid, down * _CHUNK_PX, right * _CHUNK_PX, _CHUNK_PX, _CHUNK_PX)
        chunks.append(Chunk(tile, np.unique(glacier[here]), *layers))
    return chunks


def _inside_and_around(
    shape: shapely.Geometry, ice: npt.NDArray[Any], window: Tile
) -> tuple[_Mask, _Mask]:
    """Pixels whose centre is on a glacier, and those beside it that are on no glacier."""
    transform = window.grid.window_transform(window.row, window.col)

    def burn(shapes: Sequence[Any], *, touched: bool = False) -> _Mask:
        burnt = rasterize(
            shapes,
            out_shape=(window.height, window.width),
            transform=transform,
            dtype="uint8",
            all_touched=touched,
        )
        return np.asarray(burnt, bool)

    inside = burn([shape])
    if not inside.any():
        inside = burn([shape], touched=True)
        # ^ smaller than a pixel: those it touches stand for it
    away = distance_transform_edt(~inside, sampling=window.grid.resolution_m)
    # ^ of pixel centres; a buffer of an outline with thousands of vertices takes seconds
    return inside, (away <= _RING_M) & ~burn(list(ice)) & ~inside


def _membership(
    glacier: npt.NDArray[np.int64], pixel: npt.NDArray[np.int64], count: int
) -> csr_array:
    ones = np.ones(glacier.size, np.uint8)
    return csr_array((ones, (glacier, pixel)), shape=(count, _CHUNK_PX**2))
