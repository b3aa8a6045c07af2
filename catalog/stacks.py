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
from typing import Any

import dask
import numpy as np
import numpy.typing as npt
import stackstac.raster_spec
import stackstac.reader_protocol
import stackstac.to_dask
from stackstac.prepare import ASSET_TABLE_DT

from catalog.assets import OpenAssets  # before rasterio: it sets GDAL's drivers
from catalog.errors import DataError
from catalog.grid import RegionGrid, Shard
from catalog.sensors import BandSource

from affine import Affine  # isort: skip
from rasterio.crs import CRS  # isort: skip
from rasterio.enums import Resampling  # isort: skip
from rasterio.errors import RasterioError  # isort: skip
from rasterio.warp import reproject, transform_bounds  # isort: skip
from rasterio.windows import Window  # isort: skip

__all__ = ["Tile", "read_bands", "shard_tiles"]

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

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in grid metres."""
        size = self.grid.resolution_m
        left, top = self.grid.left + self.col * size, self.grid.top - self.row * size
        return left, top - self.height * size, left + self.width * size, top


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
    bands: Sequence[BandSource],
    tile: Tile,
    *,
    dtype: str,
    categories: bool = False,
) -> npt.NDArray[Any]:
    """Bands of one scene on the pixels of a tile.

    Parameters
    ----------
    assets
        The task's open rasters.
    bands
        Which bands.
    tile
        Which pixels.
    dtype
        Type of the result; 0 stands for no data in an integer type, NaN in a float one.
    categories
        Whether pixel values are names of classes: then the nearest is taken, or the most frequent
        where pixels are merged. Otherwise pixels are interpolated, or averaged where merged.

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
        table[0, index] = (band, tile.bounds, (1.0, 0.0))
    fill: Any = np.dtype(dtype).type(np.nan if np.dtype(dtype).kind == "f" else 0)
    stack = stackstac.to_dask.items_to_dask(
        table,
        spec,
        chunksize=(1, 1, tile.height, tile.width),
        resampling=Resampling.nearest if categories else Resampling.bilinear,
        dtype=np.dtype(dtype),
        fill_value=fill,
        rescale=False,
        reader=functools.partial(GridReader, assets=assets),
    )
    with dask.config.set(scheduler="synchronous"):
        pixels: npt.NDArray[Any] = stack[0].compute()
    return pixels


class GridReader:
    """Reader of stackstac that takes pixels from the task's open rasters.

    Unlike stackstac's own, it opens nothing but GeoTIFFs that the policy allows and whose header
    keeps its item's promises, tries again on a fresh handle, raises typed errors, and cleans what
    is not a number before pixels are interpolated.
    """

    def __init__(
        self,
        *,
        url: BandSource,
        spec: stackstac.raster_spec.RasterSpec,
        resampling: Resampling,
        dtype: np.dtype[Any],
        fill_value: float,
        scale_offset: tuple[float, float],  # noqa: ARG002
        gdal_env: object,  # noqa: ARG002
        errors_as_nodata: tuple[Exception, ...] = (),  # noqa: ARG002
        assets: OpenAssets,
    ) -> None:
        self._band = url
        self._spec = spec
        self._categories = resampling is Resampling.nearest
        self._dtype = dtype
        self._fill = fill_value
        self._assets = assets

    def read(self, window: Window) -> npt.NDArray[Any]:
        """Pixels of a window of the spec; the fill value beyond the raster."""
        height, width = int(window.height), int(window.width)
        out = np.full((height, width), self._fill, dtype=self._dtype)
        target = self._spec.transform @ Affine.translation(window.col_off, window.row_off)
        dataset = self._assets.dataset(self._band)
        grid_crs = _crs(self._spec.epsg)
        ratio = self._spec.resolutions_xy[0] / _pixel_metres(dataset)
        bounds = _bounds(target, height, width)
        source = _source_window(dataset, grid_crs, bounds=bounds, pad=3 + math.ceil(2 * ratio))
        if source is None:
            return out
        pixels = self._clean(self._assets.read(self._band, source))
        try:
            reproject(
                pixels,
                out,
                src_transform=dataset.window_transform(source),
                src_crs=dataset.crs,
                src_nodata=self._fill,
                dst_transform=target,
                dst_crs=grid_crs,
                dst_nodata=self._fill,
                resampling=self._resampling(ratio),
                num_threads=1,
                tolerance=_WARP_TOLERANCE_PX,
                XSCALE=min(1.0, 1.0 / ratio),
                YSCALE=min(1.0, 1.0 / ratio),
                # ^ else GDAL guesses the kernel from the window, and seams would show
            )
        except RasterioError as error:
            raise DataError(
                f"asset {self._band.asset} cannot be warped to the grid: {error}",
                kind="geo-mismatch",
            ) from error
        return out

    def close(self) -> None:
        """Nothing: the rasters belong to the task."""

    def __getstate__(self) -> None:
        raise TypeError("a reader holds open rasters and stays in its task")

    def __setstate__(self, state: object) -> None:
        raise TypeError("a reader holds open rasters and stays in its task")

    def _clean(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Pixels of the wanted type in which only the fill value means no data."""
        if self._dtype.kind != "f" and not np.can_cast(pixels.dtype, self._dtype):
            raise DataError(
                f"asset {self._band.asset} holds {pixels.dtype}, expected {self._dtype}",
                kind="type-mismatch",
            )
        values = pixels.astype(self._dtype)
        if self._band.nodata is not None and self._band.nodata != self._fill:
            values[pixels == pixels.dtype.type(self._band.nodata)] = self._fill
        if self._dtype.kind == "f":
            values[~np.isfinite(values)] = self._fill
        return values

    def _resampling(self, ratio: float) -> Resampling:
        if self._categories:
            return Resampling.mode if ratio >= _COARSENING else Resampling.nearest
        return Resampling.average if ratio >= _COARSENING else Resampling.bilinear


_: type[stackstac.reader_protocol.Reader[Any]] = GridReader


@functools.lru_cache(maxsize=8)
def _crs(text: str) -> CRS:
    return CRS.from_user_input(text)


def _pixel_metres(dataset: Any) -> float:
    """Pixel height in metres, the same all over the raster."""
    step = -float(dataset.transform.e)
    if dataset.crs.is_geographic:
        return step * _METRES_PER_DEGREE
    return step * float(dataset.crs.linear_units_factor[1])


def _bounds(transform: Affine, height: int, width: int) -> tuple[float, float, float, float]:
    left, top = transform @ (0, 0)
    right, bottom = transform @ (width, height)
    return left, bottom, right, top


def _source_window(
    dataset: Any, crs: CRS, *, bounds: tuple[float, float, float, float], pad: int
) -> Window | None:
    """Pixels of a raster that a rectangle of the grid needs, or None where they do not meet."""
    try:
        left, bottom, right, top = transform_bounds(crs, dataset.crs, *bounds)
    except RasterioError:
        return None
    if not all(math.isfinite(v) for v in (left, bottom, right, top)):
        return None
    if left > right:
        # The rectangle crosses the antimeridian: keep the side the raster is on.
        left, right = (left, left + 360) if dataset.bounds.left >= 0 else (right - 360, right)
    inverse = ~dataset.transform
    col0, row0 = inverse @ (left, top)
    col1, row1 = inverse @ (right, bottom)
    rows, cols = dataset.shape
    col0, row0 = max(0, math.floor(col0) - pad), max(0, math.floor(row0) - pad)
    col1, row1 = min(cols, math.ceil(col1) + pad), min(rows, math.ceil(row1) + pad)
    if col1 <= col0 or row1 <= row0:
        return None
    return Window(col0, row0, col1 - col0, row1 - row0)
