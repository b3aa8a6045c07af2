"""Stacks: bands of scenes on the pixels of the region's grid, read through stackstac.

The one law: the pixels of a window depend on the window and the rasters only, never on the shard,
its neighbours or the order of scenes. So windows are asked for in absolute grid metres, and the
warper's own approximation is held to a hundredth of a pixel.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import stackstac.raster_spec
import stackstac.reader_protocol
import stackstac.to_dask
from stackstac.prepare import ASSET_TABLE_DT

from catalog.assets import OpenAssets  # before rasterio: it sets GDAL's drivers
from catalog.errors import DataError
from catalog.grid import RegionGrid, Shard
from catalog.masks import MASK_DTYPES, MaskKind, mask_halo, usable_pixels
from catalog.scenes import BandSource

from affine import Affine  # isort: skip
from rasterio.crs import CRS  # isort: skip
from rasterio.enums import Resampling  # isort: skip
from rasterio.errors import RasterioError  # isort: skip
from rasterio.warp import reproject, transform_bounds  # isort: skip
from rasterio.windows import Window  # isort: skip

__all__ = [
    "Tile",
    "given",
    "pixel_metres",
    "read_bands",
    "read_usable",
    "shard_tile",
    "shard_tiles",
]

_COARSENING = 1.5
# ^ from this ratio of pixel sizes on, several source pixels are averaged into one
_WARP_TOLERANCE_PX = 0.01
_METRES_PER_DEGREE = 111_195.0


@dataclass(frozen=True, slots=True)
class Tile:
    """A window of the region's grid, in absolute grid metres."""

    grid: RegionGrid
    row: int
    """First row, counted in pixels from the grid's ``top``; may be negative."""
    col: int
    """First column, counted from the grid's ``left``."""
    height: int
    width: int

    def widened(self, halo: int) -> Tile:
        """Add ``halo`` pixels on every side."""
        return Tile(
            self.grid,
            self.row - halo,
            self.col - halo,
            self.height + 2 * halo,
            self.width + 2 * halo,
        )

    def within(self, area: Tile) -> tuple[slice, slice]:
        """Rows and columns of another window that holds this one."""
        row, col = self.row - area.row, self.col - area.col
        return slice(row, row + self.height), slice(col, col + self.width)

    def overlap(self, other: Tile) -> Tile:
        """What two windows of one grid share; of no pixels where that is nothing."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        bottom = min(self.row + self.height, other.row + other.height)
        right = min(self.col + self.width, other.col + other.width)
        return Tile(self.grid, row, col, max(0, bottom - row), max(0, right - col))

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in grid metres."""
        size = self.grid.resolution_m
        left, top = self.grid.left + self.col * size, self.grid.top - self.row * size
        return left, top - self.height * size, left + self.width * size, top


def shard_tile(shard: Shard, *, halo: int = 0) -> Tile:
    """The window of a shard and ``halo`` pixels around it."""
    rows, cols = shard.window
    n = shard.grid.shard_px
    return Tile(shard.grid, rows.start, cols.start, n, n).widened(halo)


def shard_tiles(shard: Shard, *, halo: int = 0) -> list[Tile]:
    """Chunks of the grid that cover a shard and ``halo`` pixels around it, row by row."""
    n = shard.grid.chunk_px
    rows, cols = shard.window
    return [
        Tile(shard.grid, row * n, col * n, n, n)
        for row in range((rows.start - halo) // n, -(-(rows.stop + halo) // n))
        for col in range((cols.start - halo) // n, -(-(cols.stop + halo) // n))
    ]


def read_bands(
    assets: OpenAssets,
    bands: Sequence[BandSource | Sequence[BandSource]],
    tile: Tile,
    *,
    dtype: str,
    categories: bool = False,
    within: tuple[float, float] | None = None,
    overviews: bool = False,
) -> npt.NDArray[Any]:
    """Bands on the pixels of a tile.

    Parameters
    ----------
    assets
        The task's open rasters.
    bands
        Which bands. Several rasters in the place of one are neighbours on one lattice of pixels:
        they are joined before pixels are interpolated, so that no seam shows; where they overlap
        the first counts, and its shift is that of all.
    tile
        Which pixels.
    dtype
        Type of the result; 0 stands for no data in an integer type, NaN in a float one.
    categories
        Whether pixel values are names of classes: then the nearest is taken, or the most frequent
        where pixels are merged. Otherwise pixels are interpolated, or averaged where merged.
    within
        Pixel values mean something between these two only, both excluded; what lies outside is no
        data before pixels are interpolated.
    overviews
        Whether a raster's own overview may stand in for its pixels where it is at least as fine as
        the tile: far fewer bytes, and nearly the same means. Not for classes, which some producers
        average.

    Returns
    -------
    ``(band, y, x)`` array, scale and offset not applied

    Raises
    ------
    DataError, SourceError
        As :meth:`catalog.assets.OpenAssets.read`.
    """
    spec = stackstac.raster_spec.RasterSpec(
        epsg=tile.grid.wkt,
        # ^ stackstac hands it on to rasterio as it is; the grid's projection has no EPSG code
        bounds=tile.bounds,
        resolutions_xy=(tile.grid.resolution_m, tile.grid.resolution_m),
    )
    table = np.empty((1, len(bands)), dtype=ASSET_TABLE_DT)
    for index, band in enumerate(bands):
        rasters = (band,) if isinstance(band, BandSource) else tuple(band)
        table[0, index] = (rasters, tile.bounds, (1.0, 0.0))
    fill: Any = np.dtype(dtype).type(np.nan if np.dtype(dtype).kind == "f" else 0)
    stack = stackstac.to_dask.items_to_dask(
        table,
        spec,
        chunksize=(1, len(bands), tile.height, tile.width),
        # ^ one task for all bands: they are read one by one anyway
        resampling=Resampling.nearest if categories else Resampling.bilinear,
        dtype=np.dtype(dtype),
        fill_value=fill,
        rescale=False,
        reader=functools.partial(
            GridReader, assets=assets, within=within, overviews=overviews and not categories
        ),
    )
    # The scheduler is named here and not in dask's configuration, which all threads share.
    pixels: npt.NDArray[Any] = stack[0].compute(scheduler="synchronous")
    return pixels


def given(pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where pixels as :func:`read_bands` returns them hold data."""
    found: npt.NDArray[np.bool_] = np.isfinite(pixels) if pixels.dtype.kind == "f" else pixels != 0
    return found


def read_usable(
    assets: OpenAssets, masks: Sequence[BandSource], tile: Tile
) -> npt.NDArray[np.bool_]:
    """Pixels of a tile that all masks of a scene call usable, ``(y, x)``; all without any mask.

    Raises
    ------
    DataError, SourceError
        As :meth:`catalog.assets.OpenAssets.read`.
    """
    size = tile.grid.resolution_m
    wide = tile.widened(mask_halo(size))
    usable = np.ones((tile.height, tile.width), np.bool_)
    for mask in masks:
        kind = cast(MaskKind, mask.role)
        (flags,) = read_bands(assets, [mask], wide, dtype=MASK_DTYPES[kind], categories=True)
        usable &= usable_pixels(flags, resolution_m=size, kind=kind, rule=mask.rule)
    return usable


class GridReader:
    """Reader of stackstac that takes pixels from the task's open rasters.

    Unlike stackstac's own, it opens nothing but GeoTIFFs that the policy allows and whose header
    keeps its item's promises, tries again on a fresh handle, raises typed errors, and cleans what
    is not a number before pixels are interpolated.
    """

    def __init__(
        self,
        *,
        url: tuple[BandSource, ...],
        spec: stackstac.raster_spec.RasterSpec,
        resampling: Resampling,
        dtype: np.dtype[Any],
        fill_value: float,
        scale_offset: tuple[float, float],  # noqa: ARG002
        gdal_env: object,  # noqa: ARG002
        errors_as_nodata: tuple[Exception, ...] = (),  # noqa: ARG002
        assets: OpenAssets,
        within: tuple[float, float] | None = None,
        overviews: bool = False,
    ) -> None:
        self._bands = url
        self._spec = spec
        self._categories = resampling is Resampling.nearest
        self._dtype = dtype
        self._fill = fill_value
        self._assets = assets
        self._within = within
        self._overviews = overviews

    def read(self, window: Window) -> npt.NDArray[Any]:
        """Pixels of a window of the spec; the fill value beyond the rasters."""
        height, width = int(window.height), int(window.width)
        out = np.full((height, width), self._fill, dtype=self._dtype)
        target = (
            Affine.translation(*self._bands[0].shift_m)
            @ self._spec.transform
            @ Affine.translation(window.col_off, window.row_off)
        )
        # ^ a raster whose pixels lie too far east is asked for pixels further east
        grid_crs = _crs(self._spec.epsg)
        datasets = [self._assets.dataset(band) for band in self._bands]
        ratio = self._spec.resolutions_xy[0] / pixel_metres(datasets[0])
        bounds = _source_bounds(self._spec.epsg, datasets[0].crs, target, (height, width))
        if bounds is None:
            return out
        shrink = self._shrink(datasets, ratio)
        ratio /= shrink
        pad = (3 + math.ceil(2 * ratio)) * shrink
        pixels, transform = self._source_pixels(datasets, bounds, pad, shrink=shrink)
        unseen = self._unseen(pixels)
        if unseen.all():
            return out
        nodata = self._fill if unseen.any() or self._dtype.kind not in "uf" else None
        # ^ GDAL warps twice as fast, to the same bytes, where it need not ask each pixel whether it
        #   is one; a signed 0 between -1 and 1 would have to be told from no data
        try:
            reproject(
                pixels,
                out,
                src_transform=transform,
                src_crs=datasets[0].crs,
                src_nodata=nodata,
                dst_transform=target,
                dst_crs=grid_crs,
                dst_nodata=nodata,
                init_dest_nodata=False,
                resampling=self._resampling(ratio),
                num_threads=1,
                tolerance=_WARP_TOLERANCE_PX,
                XSCALE=min(1.0, 1.0 / ratio),
                YSCALE=min(1.0, 1.0 / ratio),
                # ^ else GDAL guesses the kernel from the window, and seams would show
            )
        except RasterioError as error:
            raise DataError(
                f"asset {self._bands[0].asset} cannot be warped to the grid: {error}",
                kind="geo-mismatch",
            ) from error
        return out

    def _shrink(self, datasets: list[Any], ratio: float) -> int:
        """Pixels on a side that one pixel to be read stands for: 1, or the factor of an overview.

        Only overviews whose pixels hold whole numbers of the raster's own keep the place of things.
        """
        if not self._overviews or len(datasets) > 1:
            return 1
        rows, cols = datasets[0].shape
        factors = datasets[0].overviews(1)
        return max((f for f in factors if f <= ratio and not (rows % f or cols % f)), default=1)

    def _source_pixels(
        self,
        datasets: list[Any],
        bounds: tuple[float, float, float, float],
        pad: int,
        *,
        shrink: int,
    ) -> tuple[npt.NDArray[Any], Affine]:
        """Pixels of all rasters within bounds of their own projection, on their common lattice."""
        origins = [_near(dataset, (bounds[0] + bounds[2]) / 2) for dataset in datasets]
        inverse = ~origins[0]
        places = []
        for dataset, origin in zip(datasets, origins, strict=True):
            col, row = inverse @ (origin.c, origin.f)
            places.append((round(row), round(col), *dataset.shape))
        wanted = _snapped(_pixel_box(inverse, bounds, pad), shrink)
        boxes = [_overlap(wanted, (r, c, r + h, c + w)) for r, c, h, w in places]
        found = [box for box in boxes if box is not None]
        if not found:
            return np.empty((0, 0), self._dtype), origins[0]
        top, left = min(box[0] for box in found), min(box[1] for box in found)
        bottom, right = max(box[2] for box in found), max(box[3] for box in found)
        shape = ((bottom - top) // shrink, (right - left) // shrink)
        canvas = np.full(shape, self._fill, self._dtype)
        for band, box, (row, col, _, _) in zip(self._bands, boxes, places, strict=True):
            if box is None:
                continue
            r0, c0, r1, c1 = box
            window = Window(c0 - col, r0 - row, c1 - c0, r1 - r0)
            new = self._clean(self._assets.read(band, window, shrink=shrink), band)
            part = canvas[
                (r0 - top) // shrink : (r1 - top) // shrink,
                (c0 - left) // shrink : (c1 - left) // shrink,
            ]
            np.copyto(part, new, where=self._unseen(part))
        return canvas, origins[0] @ Affine.translation(left, top) @ Affine.scale(shrink)

    def _unseen(self, pixels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Where the fill value stands."""
        unseen: npt.NDArray[np.bool_] = (
            np.isnan(pixels) if self._dtype.kind == "f" else pixels == self._fill
        )
        return unseen

    def close(self) -> None:
        """Nothing: the rasters belong to the task."""

    def __getstate__(self) -> None:
        raise TypeError("a reader holds open rasters and stays in its task")

    def __setstate__(self, state: object) -> None:
        raise TypeError("a reader holds open rasters and stays in its task")

    def _clean(self, pixels: npt.NDArray[Any], band: BandSource) -> npt.NDArray[Any]:
        """Pixels of the wanted type in which only the fill value means no data."""
        if self._dtype.kind != "f" and not np.can_cast(pixels.dtype, self._dtype):
            raise DataError(
                f"asset {band.asset} holds {pixels.dtype}, expected {self._dtype}",
                kind="type-mismatch",
            )
        values = pixels.astype(self._dtype)
        if band.nodata is not None and band.nodata != self._fill:
            values[pixels == band.nodata] = self._fill
        if self._dtype.kind == "f":
            values[~np.isfinite(values)] = self._fill
        if self._within is not None:
            low, high = self._within
            values[(values <= low) | (values >= high)] = self._fill
        return values

    def _resampling(self, ratio: float) -> Resampling:
        if self._categories:
            return Resampling.mode if ratio >= _COARSENING else Resampling.nearest
        return Resampling.average if ratio >= _COARSENING else Resampling.bilinear


_: type[stackstac.reader_protocol.Reader[Any]] = GridReader


@functools.lru_cache(maxsize=8)
def _crs(text: str) -> CRS:
    return CRS.from_user_input(text)


def pixel_metres(dataset: Any) -> float:
    """Measure the pixel height in metres, the same all over the raster."""
    step = -float(dataset.transform.e)
    if dataset.crs.is_geographic:
        return step * _METRES_PER_DEGREE
    return step * float(dataset.crs.linear_units_factor[1])


@functools.lru_cache(maxsize=256)
def _source_bounds(
    grid_crs: str, crs: CRS, transform: Affine, shape: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Window of the grid in the projection of a raster; east of 180 where it crosses it."""
    left, top = transform @ (0, 0)
    right, bottom = transform @ (shape[1], shape[0])
    try:
        west, south, east, north = transform_bounds(_crs(grid_crs), crs, left, bottom, right, top)
    except RasterioError:
        return None
    if not all(math.isfinite(v) for v in (west, south, east, north)):
        return None
    return west, south, east + (360.0 if east < west else 0.0), north


def _near(dataset: Any, x: float) -> Affine:
    """Transform of a raster; one in degrees is turned around the globe to where ``x`` is."""
    transform = dataset.transform
    if not dataset.crs.is_geographic:
        return transform
    middle = transform.c + transform.a * dataset.width / 2
    turns = round((x - middle) / 360.0)
    return Affine(transform.a, transform.b, transform.c + 360.0 * turns, *tuple(transform)[3:6])


_Box = tuple[int, int, int, int]


def _pixel_box(inverse: Affine, bounds: tuple[float, float, float, float], pad: int) -> _Box:
    """First row and column, last row and column (excluded) of bounds, padded."""
    left, bottom, right, top = bounds
    col0, row0 = inverse @ (left, top)
    col1, row1 = inverse @ (right, bottom)
    return (
        math.floor(row0) - pad,
        math.floor(col0) - pad,
        math.ceil(row1) + pad,
        math.ceil(col1) + pad,
    )


def _snapped(box: _Box, factor: int) -> _Box:
    """Widen a box to whole multiples of a factor."""
    row0, col0, row1, col1 = box
    return (
        row0 // factor * factor,
        col0 // factor * factor,
        -(-row1 // factor) * factor,
        -(-col1 // factor) * factor,
    )


def _overlap(a: _Box, b: _Box) -> _Box | None:
    row0, col0, row1, col1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (row0, col0, row1, col1) if row0 < row1 and col0 < col1 else None
