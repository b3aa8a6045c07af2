"""The ways to one shard of a cube that ``cube.py`` compares; each runs in a process of its own.

Those called reads bring all rasters onto the shard's pixels and do no more; the others mask,
compose and write Zarr too.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from made_scenes import BANDS, Season
from scipy import ndimage

from catalog.assets import AssetPolicy, OpenAssets, gdal_env
from catalog.composites import build_cube_shard, create_season
from catalog.cube import Workspace, read_shard, write_shard
from catalog.masks import mask_halo
from catalog.sensors import describe_item
from catalog.stacks import read_bands, shard_tile, shard_tiles

import rasterio  # isort: skip  (after catalog.assets, which sets GDAL's drivers)
from rasterio.enums import Resampling  # isort: skip
from rasterio.vrt import WarpedVRT  # isort: skip

__all__ = ["JOBS", "Cost", "differences", "layers_of", "measured"]

Array = npt.NDArray[Any]

_SEASON = "2024"
_LAYER = f"cube.zarr/{_SEASON}"
_WRITTEN = ("optical", "date", "observations")
_HIDDEN = (0, 1, 3, 8, 9, 10)
_SPREADING = (3, 8, 9, 10)
_REACH_M = 60.0
_PERCENTILE = 30
_STRIP_PX = 256
# ^ rows of the shard that are composed at once from what odc-stac has loaded
_SAMPLE_S = 0.02
_EXACT_PX = 0.001
_RIM_PX = 16


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job took in its process."""

    seconds: float
    cpu_s: float
    peak_mib: float
    """Largest resident memory while it ran, all libraries included."""


def measured(job: Callable[[], object]) -> Cost:
    """Run a job and measure it; imports and the reading of the items are done before."""
    me = psutil.Process()
    peak, done = [me.memory_info().rss], threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            peak[0] = max(peak[0], me.memory_info().rss)

    # Sampled: the system's own record would begin with what was held before the job.
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, cpu = time.perf_counter(), time.process_time()
    job()
    took = time.perf_counter() - start, time.process_time() - cpu
    done.set()
    watcher.join()
    return Cost(*took, peak[0] / 2**20)


# --- plain rasterio ------------------------------------------------------------------------------


def read_floor(
    season: Season, key: str, item: dict[str, Any], *, tolerance: float = 0.125
) -> Array:
    """One raster on the pixels of the shard, ``(y, x)``."""
    shard = season.the_shard()
    box = shard.geobox()
    with (
        rasterio.open(item["assets"][key]["href"]) as file,
        WarpedVRT(
            file,
            crs=shard.grid.wkt,
            transform=box.transform,
            height=box.height,
            tolerance=tolerance,
            width=box.width,
            resampling=Resampling.nearest if key == "scl" else Resampling.bilinear,
        ) as view,
    ):
        pixels: Array = view.read(1)
    return pixels


def _floor_reads(season: Season, _folder: Path, _policy: AssetPolicy) -> None:
    keys = [key for key, _, _ in BANDS.values()] + ["scl"]
    with rasterio.Env(**gdal_env()):
        for item in season.items:
            for key in keys:
                read_floor(season, key, item)


# --- odc-stac ------------------------------------------------------------------------------------


def _odc_load(season: Season) -> tuple[Any, Array]:
    """Bands as a dataset of all dates, and the masks with their halo."""
    import odc.stac
    import pystac

    shard = season.the_shard()
    halo = mask_halo(shard.grid.resolution_m)
    items = [pystac.Item.from_dict(item) for item in season.items]
    common = {"chunks": None, "pool": 1, "groupby": "solar_day", "fail_on_error": True}
    with rasterio.Env(**gdal_env()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bands = odc.stac.load(
            items,
            bands=[key for key, _, _ in BANDS.values()],
            geobox=shard.geobox(),
            resampling="bilinear",
            dtype="uint16",
            nodata=0,
            **common,
        )
        classes = odc.stac.load(
            items,
            bands=["scl"],
            geobox=shard.geobox(halo),
            resampling="nearest",
            dtype="uint8",
            nodata=0,
            **common,
        )["scl"].to_numpy()
    return bands, classes


def _odc_reads(season: Season, _folder: Path, _policy: AssetPolicy) -> None:
    _odc_load(season)


def _odc_job(season: Season, folder: Path, _policy: AssetPolicy) -> None:
    shard = season.the_shard()
    halo = mask_halo(shard.grid.resolution_m)
    bands, classes = _odc_load(season)
    looks = [bands[key].to_numpy() for key, _, _ in BANDS.values()]
    days = bands["time"].to_numpy().astype("datetime64[D]").astype(np.int32)
    usable = np.stack([_clear(c, halo, shard.grid.resolution_m) for c in classes])
    n = shard.grid.shard_px
    optical = np.zeros((len(looks), n, n), np.uint16)
    dates = np.full((n, n), np.iinfo(np.int32).min, np.int32)
    count = np.zeros((n, n), np.uint8)
    for row in range(0, n, _STRIP_PX):
        rows = slice(row, row + _STRIP_PX)
        optical[:, rows], dates[rows], count[rows] = _composed(
            [look[:, rows] for look in looks], usable[:, rows], days
        )
    workspace = Workspace(folder)
    create_season(workspace, _SEASON, shard.grid, sar=False)
    for name, values in zip(_WRITTEN, (optical, dates, count), strict=True):
        write_shard(workspace, f"{_LAYER}/{name}", shard, values)


def _clear(classes: Array, halo: int, resolution_m: float) -> Array:
    hazard = np.isin(classes, _SPREADING)
    usable: Array = ~np.isin(classes, _HIDDEN)
    if hazard.any():
        usable &= ndimage.distance_transform_edt(~hazard) * resolution_m > _REACH_M
    return usable[halo:-halo, halo:-halo]


def _composed(looks: Sequence[Array], usable: Array, days: Array) -> tuple[Array, Array, Array]:
    """Take the clear look at the 30th percentile of green, nearest rank; the earlier of equals."""
    clear = usable & np.logical_and.reduce([look != 0 for look in looks])
    green = np.where(clear, looks[1].astype(np.int64), 2**20)
    count = clear.sum(axis=0)
    rank = np.maximum(-(-count * _PERCENTILE // 100) - 1, 0)
    order = np.argsort(green, axis=0, kind="stable")
    chosen = np.take_along_axis(order, rank[np.newaxis], axis=0)
    seen = count > 0
    optical = np.stack([np.take_along_axis(look, chosen, axis=0)[0] for look in looks])
    dates = np.where(seen, days[chosen[0]], np.iinfo(np.int32).min).astype(np.int32)
    return np.where(seen, optical, 0).astype(np.uint16), dates, count.astype(np.uint8)


# --- the engine ----------------------------------------------------------------------------------


def _engine_job(season: Season, folder: Path, policy: AssetPolicy) -> None:
    workspace, shard = Workspace(folder), season.the_shard()
    create_season(workspace, _SEASON, shard.grid, sar=False)
    build_cube_shard(
        workspace,
        _SEASON,
        shard,
        optical=[describe_item(item) for item in season.items],
        sar=None,
        policy=policy,
    )


def _engine_reads(season: Season, _folder: Path, policy: AssetPolicy) -> None:
    shard = season.the_shard()
    halo = mask_halo(shard.grid.resolution_m)
    with OpenAssets(policy) as assets:
        for scene in map(describe_item, season.items):
            for tile in shard_tiles(shard):
                read_bands(assets, scene.bands, tile, dtype="uint16")
                wide = tile.widened(halo)
                read_bands(assets, scene.masks, wide, dtype="uint8", categories=True)


def read_engine(season: Season, key: str, item: dict[str, Any], policy: AssetPolicy) -> Array:
    """One raster on the pixels of the shard, as the engine reads it, ``(y, x)``."""
    shard = season.the_shard()
    out = np.zeros((shard.grid.shard_px,) * 2, np.uint8 if key == "scl" else np.uint16)
    scene = describe_item(item)
    (band,) = (b for b in scene.rasters if b.asset == key)
    with OpenAssets(policy) as assets:
        for tile in shard_tiles(shard):
            (out[tile.within(shard_tile(shard))],) = read_bands(
                assets, [band], tile, dtype=str(out.dtype), categories=key == "scl"
            )
    return out


JOBS: dict[str, Callable[[Season, Path, AssetPolicy], None]] = {
    "rasterio, reads": _floor_reads,
    "odc-stac, reads": _odc_reads,
    "engine, reads": _engine_reads,
    "odc-stac": _odc_job,
    "engine": _engine_job,
}
"""Name -> job, given the season, a folder for its workspace, and which rasters may be opened."""


def layers_of(season: Season, folder: Path) -> dict[str, Array]:
    """Layers that a job wrote."""
    workspace, shard = Workspace(folder), season.the_shard()
    return {name: read_shard(workspace, f"{_LAYER}/{name}", shard) for name in _WRITTEN}


def differences(
    season: Season, policy: AssetPolicy, *, peer: Path, engine: Path
) -> Iterator[tuple[str, float, float]]:
    """What differs, by how much, and by how much it may."""
    inner = (slice(_RIM_PX, -_RIM_PX),) * 2
    with rasterio.Env(**gdal_env()):
        for key in ("blue", "swir16", "scl"):
            ours = read_engine(season, key, season.items[-1], policy).astype(np.int64)
            plain = read_floor(season, key, season.items[-1], tolerance=_EXACT_PX)
            off = np.abs(ours - plain)[inner]
            if key == "scl":
                yield "pixels of other class than rasterio's", float((off > 0).mean()), 1e-3
            else:
                yield f"{key} against rasterio's, stored units", float(off.max()), 2
    theirs, ours = layers_of(season, peer), layers_of(season, engine)
    counts = theirs["observations"] != ours["observations"]
    yield "pixels with another number of clear looks", float(counts[inner].mean()), 1e-3
    dates = theirs["date"] != ours["date"]
    yield "pixels with another date", float(dates[inner].mean()), 1e-2
    off = np.abs(theirs["optical"].astype(np.int64) - ours["optical"])[:, ~dates]
    yield "optical on pixels of one date, median", float(np.median(off)), 2
    yield "the same, 99.9th percentile", float(np.percentile(off, 99.9)), 20
