"""Decimated views of the store's arrays, read shard by shard so that memory stays bounded.

Only shards that were written are read; the rest of a view is "no data".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
import zarr

from catalog.cube import (
    CLASSES,
    DATE_MISSING,
    LAYERS,
    NOT_SEEN,
    OPTICAL_BANDS,
    OPTICAL_OFFSET,
    OPTICAL_SCALE,
    PROBABILITY_SCALE,
    TERRAIN_BANDS,
    Workspace,
    read_window,
)
from catalog.grid import RegionGrid, region_grid

__all__ = [
    "View",
    "dates",
    "debris_cover",
    "elevation",
    "hillshade",
    "ice_probability",
    "observations",
    "optical",
    "spread",
    "view_around",
    "view_of",
]

Floats = npt.NDArray[np.float32]
_VIEW_PX = 1600
_SHARD_PX = 64


@dataclass(frozen=True, slots=True)
class View:
    """A rectangle of the region's grid seen at one pixel in ``step`` in each direction."""

    grid: RegionGrid
    row0: int
    """First grid row."""
    col0: int
    """First grid column."""
    shape: tuple[int, int]
    """Pixels of the view ``(y, x)``."""
    step: int
    """Grid pixels a view pixel is wide."""

    @property
    def pixel_m(self) -> float:
        """Edge of a view pixel in metres."""
        return self.grid.resolution_m * self.step

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top in grid metres: the order matplotlib takes."""
        left = self.grid.left + self.col0 * self.grid.resolution_m
        top = self.grid.top - self.row0 * self.grid.resolution_m
        height, width = self.shape
        return left, left + width * self.pixel_m, top - height * self.pixel_m, top


def view_of(
    grid: RegionGrid,
    bounds: tuple[float, float, float, float],
    *,
    max_px: int,
    pad: float = 0.03,
    inside: bool = True,
) -> View:
    """Choose the view that shows the given bounds with at most ``max_px`` on its longer side.

    Parameters
    ----------
    grid
        The region's grid.
    bounds
        Left, bottom, right, top in grid metres.
    max_px
        Largest number of view pixels on a side.
    pad
        Added on every side, as a share of the longer side.
    inside
        Whether the view ends where the grid does; else it may reach beyond, where nothing is.
    """
    left, bottom, right, top = bounds
    extra = pad * max(right - left, top - bottom) + grid.resolution_m
    row0 = math.floor((grid.top - top - extra) / grid.resolution_m)
    row1 = math.ceil((grid.top - bottom + extra) / grid.resolution_m)
    col0 = math.floor((left - extra - grid.left) / grid.resolution_m)
    col1 = math.ceil((right + extra - grid.left) / grid.resolution_m)
    if inside:
        rows, cols = grid.shape
        row0, row1, col0, col1 = max(0, row0), min(rows, row1), max(0, col0), min(cols, col1)
    height, width = max(1, row1 - row0), max(1, col1 - col0)
    step = max(1, math.ceil(max(height, width) / max_px))
    return View(grid, row0, col0, (max(1, height // step), max(1, width // step)), step)


def view_around(frame: gpd.GeoDataFrame) -> View:
    """Frame around outlines of any projection, in an equal-area grid fine enough to be drawn."""
    lonlat = shapely.get_coordinates(frame.geometry.to_crs(4326).to_numpy())
    coarse = region_grid(lonlat[:, 0], lonlat[:, 1], resolution_m=1000.0)
    bounds = frame.geometry.to_crs(coarse.proj4).total_bounds
    span = max(bounds[2] - bounds[0], bounds[3] - bounds[1])
    grid = region_grid(
        lonlat[:, 0],
        lonlat[:, 1],
        resolution_m=max(span / _VIEW_PX, 1.0),
        margin_m=0.1 * span,
        shard_px=_SHARD_PX,
        chunk_px=_SHARD_PX,
    )
    west, south, east, north = bounds
    # A slim inventory gets some ground beside it: the scale bar needs a place.
    short = max(0.0, 0.3 * span - min(east - west, north - south)) / 2
    extra = (0.0, short) if east - west >= north - south else (short, 0.0)
    wanted = (west - extra[0], south - extra[1], east + extra[0], north + extra[1])
    return view_of(grid, wanted, max_px=_VIEW_PX, pad=0.05, inside=False)


def optical(workspace: Workspace, season: str, view: View, bands: tuple[str, ...]) -> Floats:
    """Reflectance ``(band, y, x)`` float32, NaN where nothing was seen."""
    index = [OPTICAL_BANDS.index(band) for band in bands]

    def reduce(block: npt.NDArray[Any]) -> Floats:
        stored = block[index].astype(np.float32)
        stored[stored == LAYERS["optical"].fill] = np.nan
        return _block_mean(stored * np.float32(OPTICAL_SCALE) + np.float32(OPTICAL_OFFSET), view)

    return _collect(workspace, f"cube.zarr/{season}/optical", view, reduce, lead=(len(bands),))


def ice_probability(workspace: Workspace, season: str, view: View) -> Floats:
    """Probability of ice, clean or debris-covered, ``(y, x)`` in [0, 1]; NaN where not seen."""

    def reduce(block: npt.NDArray[Any]) -> Floats:
        ice = block[1].astype(np.float32) + block[2]
        ice[(block == NOT_SEEN).all(axis=0)] = np.nan
        return _block_mean(np.minimum(ice * np.float32(PROBABILITY_SCALE), 1), view)

    return _collect(workspace, f"map.zarr/{season}/probability", view, reduce)


def debris_cover(workspace: Workspace, season: str, view: View) -> Floats:
    """Share of each view pixel mapped as debris-covered ice, ``(y, x)``; NaN where not seen."""
    debris = CLASSES.index("debris-covered ice")

    def reduce(block: npt.NDArray[Any]) -> Floats:
        share = (block.argmax(axis=0) == debris).astype(np.float32)
        share[(block == NOT_SEEN).all(axis=0)] = np.nan
        return _block_mean(share, view)

    return _collect(workspace, f"map.zarr/{season}/probability", view, reduce)


def spread(workspace: Workspace, season: str, view: View) -> Floats:
    """Standard deviation of the members' ice probability ``(y, x)``; NaN = not available."""

    def reduce(block: npt.NDArray[Any]) -> Floats:
        values = block.astype(np.float32)
        values[block == NOT_SEEN] = np.nan
        return _block_mean(values * np.float32(PROBABILITY_SCALE), view)

    return _collect(workspace, f"map.zarr/{season}/spread", view, reduce)


def observations(workspace: Workspace, season: str, view: View) -> Floats:
    """Mean number of clear looks ``(y, x)``; NaN where no shard was written."""
    return _collect(
        workspace,
        f"cube.zarr/{season}/observations",
        view,
        lambda block: _block_mean(block.astype(np.float32), view),
    )


def dates(workspace: Workspace, season: str, view: View) -> Floats:
    """Acquisition day since 1970-01-01 ``(y, x)``, averaged over the view pixel; NaN = none."""

    def reduce(block: npt.NDArray[Any]) -> Floats:
        days = block.astype(np.float32)
        days[block == DATE_MISSING] = np.nan
        return _block_mean(days, view)

    return _collect(workspace, f"cube.zarr/{season}/date", view, reduce)


def elevation(workspace: Workspace, view: View) -> Floats:
    """Elevation ``(y, x)`` in metres, NaN where there is no terrain."""
    index = TERRAIN_BANDS.index("elevation")
    return _collect(
        workspace, "cube.zarr/terrain", view, lambda block: _block_mean(block[index], view)
    )


def hillshade(heights: Floats, pixel_m: float) -> Floats:
    """Shaded relief in [0, 1] of heights ``(y, x)``, lit from the upper left; NaN stays NaN.

    Notes
    -----
    Four lights around the north-west soften ridges that run along a single light's direction.
    """
    south, east = (
        np.gradient(heights.astype(np.float64), pixel_m)
        if min(heights.shape) > 1
        else (
            np.zeros_like(heights, dtype=np.float64),
            np.zeros_like(heights, dtype=np.float64),
        )
    )
    length = np.sqrt(1 + (2 * south) ** 2 + (2 * east) ** 2)
    shade = np.zeros(heights.shape)
    for azimuth, weight in ((225, 0.15), (270, 0.2), (315, 0.45), (360, 0.2)):
        angle, up = math.radians(azimuth), math.radians(45)
        light_x, light_y = math.sin(angle) * math.cos(up), math.cos(angle) * math.cos(up)
        lit = (-2 * east * light_x + 2 * south * light_y + math.sin(up)) / length
        shade += weight * np.clip(lit, 0, 1)
    return shade.astype(np.float32)


def _collect(
    workspace: Workspace,
    name: str,
    view: View,
    reduce: Callable[[npt.NDArray[Any]], Floats],
    *,
    lead: tuple[int, ...] = (),
) -> Floats:
    """Fill a view from the shards that exist, one after the other; each is reduced and let go.

    A view pixel across a seam is read whole with each of its shards, to the same value.
    """
    out = np.full((*lead, *view.shape), np.nan, dtype=np.float32)
    if not workspace.has_array(name):
        return out
    array = workspace.array(name)
    n = view.grid.shard_px
    for row, col in _written_shards(workspace, name):
        rows = _view_range(row * n, (row + 1) * n, view.row0, view.shape[0], view.step)
        cols = _view_range(col * n, (col + 1) * n, view.col0, view.shape[1], view.step)
        if len(rows) == 0 or len(cols) == 0:
            continue
        block = _read_fine(
            array,
            view.grid,
            view.row0 + rows.start * view.step,
            view.col0 + cols.start * view.step,
            shape=(len(rows) * view.step, len(cols) * view.step),
        )
        out[..., rows.start : rows.stop, cols.start : cols.stop] = reduce(block)
    return out


def _read_fine(
    array: zarr.Array[Any], grid: RegionGrid, row0: int, col0: int, *, shape: tuple[int, int]
) -> npt.NDArray[Any]:
    """Read a window counted in the region's finest pixels; coarser ones are repeated."""
    multiple = grid.shape[0] // array.shape[-2]
    if multiple == 1:
        return read_window(array, row0, col0, shape=shape)
    top, left = row0 // multiple, col0 // multiple
    bottom, right = -(-(row0 + shape[0]) // multiple), -(-(col0 + shape[1]) // multiple)
    coarse = read_window(array, top, left, shape=(bottom - top, right - left))
    fine = coarse.repeat(multiple, axis=-2).repeat(multiple, axis=-1)
    down, over = row0 - top * multiple, col0 - left * multiple
    return fine[..., down : down + shape[0], over : over + shape[1]]


def _written_shards(workspace: Workspace, name: str) -> list[tuple[int, int]]:
    keys = (key.split("/")[-2:] for key in workspace.names(f"{name}/c"))
    return sorted((int(row), int(col)) for row, col in keys)


def _view_range(start: int, stop: int, origin: int, length: int, step: int) -> range:
    """View pixels that hold a grid pixel of ``[start, stop)``."""
    first = max(0, (start - origin) // step)
    last = min(length, -(-(stop - origin) // step))
    return range(first, max(first, last))


def _block_mean(values: Floats, view: View) -> Floats:
    """Mean of the valid pixels of each block of ``step`` x ``step``; NaN where there is none."""
    step = view.step
    height, width = values.shape[-2] // step, values.shape[-1] // step
    blocks = values.reshape(*values.shape[:-2], height, step, width, step)
    valid = np.isfinite(blocks)
    total = np.where(valid, blocks, 0).sum(axis=(-3, -1), dtype=np.float64)
    count = valid.sum(axis=(-3, -1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / count, dtype=np.float32)
