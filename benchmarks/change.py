"""From rasters to a table of change: cost a glacier, memory, and a geopandas overlay as the peer.

    python benchmarks/change.py --glaciers 1000 10000 --work FOLDER

Makes inventories of ellipses whose areas follow a log-normal law with the mean of RGI 7.0 and 84 %
under 1 km2, every second one cut in two by a divide; paints their maps of three dates, in which
they shrink; then outlines, accounts, differences, change and trend are made as a run makes them, by
so many workers. The peer makes the areas of the same three dates in one process: it turns each map
into polygons, cuts them by the outlines of the inventory (``geopandas.overlay``) and sums by
glacier. ``areas`` is what the engine takes for just that, on the rasters, by as many workers.
Painting is not counted. Memory is the largest of any worker, libraries included.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely
from measure import machine, table
from rasterio.features import rasterize, shapes

from catalog.cube import Workspace, create_layer, read_window, write_shard
from catalog.glaciers import COLUMNS
from catalog.grid import RegionGrid
from change_detection import zonal
from change_detection.accounts import own_ice, territory_of
from change_detection.change import change_between
from change_detection.differences import trace_differences
from change_detection.divides import GlacierBatch, glacier_batches
from change_detection.outlines import trace_batch
from change_detection.package.write import PackageFacts
from change_detection.publishing import publish_season
from change_detection.scene import read_scene
from change_detection.series import series_between
from change_detection.uncertainty import AreaCalibration

_RESOLUTION_M, _SHARD_PX, _GROWTH_M = 30.0, 1024, 150.0
_SEASONS = ("2004", "2014", "2024")
_SHRINK = (1.0, 0.97, 0.93)
# ^ of the axes of every glacier
_MEDIAN_KM2, _SIGMA = 0.069, 2.69
_LEAST_KM2, _MOST_KM2 = 0.01, 500.0
_CALIBRATION = AreaCalibration(1.0, 1.0, "made up for a benchmark")
_MEMBERS = 3
_RGI7 = 274_531
_WINDOW = ("2000-01-01", "2030-12-31")


@dataclass(frozen=True, slots=True)
class World:
    """An inventory on its grid."""

    workspace: Workspace
    grid: RegionGrid
    centres: npt.NDArray[np.float64]
    """``(glacier, x-y)`` metres; two neighbours of one ellipse have the same."""
    axes: npt.NDArray[np.float64]
    frame: gpd.GeoDataFrame


def make_world(count: int, folder: Path) -> World:
    """Lay ellipses out in shelves, large ones first, and cut every second one in two."""
    rng = np.random.default_rng(count)
    ellipses = -(-2 * count // 3)
    area = np.clip(
        _MEDIAN_KM2 * np.exp(_SIGMA * rng.standard_normal(ellipses)), _LEAST_KM2, _MOST_KM2
    )
    area = np.sort(area)[::-1]
    ratio = rng.uniform(1.2, 3.0, ellipses)
    axes = np.sqrt(area[:, None] * 1e6 / np.pi) * np.stack([ratio**-0.5, ratio**0.5], axis=1)
    cells = 2 * axes + 3 * _GROWTH_M
    edge = float(np.sqrt((cells[:, 0] * cells[:, 1]).sum()) * 1.05)
    centres = np.empty((ellipses, 2))
    x = y = shelf = 0.0
    for i, (wide, high) in enumerate(cells):
        if x + wide > edge and x > 0:
            x, y, shelf = 0.0, y + shelf, 0.0
        centres[i] = x + wide / 2, y + high / 2
        x, shelf = x + wide, max(shelf, high)
    side = _SHARD_PX * _RESOLUTION_M
    rows, cols = (int(np.ceil(n / side)) + 1 for n in (y + shelf, edge))
    grid = RegionGrid(
        lat_0=45.0,
        lon_0=10.0,
        resolution_m=_RESOLUTION_M,
        left=-cols * side / 2,
        top=rows * side / 2,
        rows=rows,
        cols=cols,
        shard_px=_SHARD_PX,
        chunk_px=_SHARD_PX // 2,
    )
    centres += [grid.left + side / 2, 0.0]
    centres[:, 1] = grid.top - side / 2 - centres[:, 1]
    shapes_ = _outlines(centres, axes)
    frame = gpd.GeoDataFrame(
        {name: "" for name in COLUMNS if name != "geometry"} | {"ref_id": _ids(len(shapes_))},
        geometry=shapes_,
        crs=grid.proj4,
    ).to_crs(4326)
    for name in ("term_type", "surge_type", "conn_lvl", "primeclass"):
        frame[name] = 0
    return World(Workspace(folder), grid, centres, axes, frame.iloc[:count])


def _ids(count: int) -> list[str]:
    return [f"G{i:06d}" for i in range(count)]


def _outlines(centres: npt.NDArray[np.float64], axes: npt.NDArray[np.float64]) -> list[Any]:
    turn = np.linspace(0.0, 2 * np.pi, 49)[:-1]
    found = []
    for i, ((x, y), (a, b)) in enumerate(zip(centres, axes, strict=True)):
        ring = np.stack([x + a * np.cos(turn), y + b * np.sin(turn)], axis=1)
        if i % 2:
            found.append(shapely.Polygon(ring))
            continue
        right = np.concatenate([ring[:13], ring[36:]])
        left = ring[12:37]
        found += [shapely.Polygon(right), shapely.Polygon(left)]
    return found


def paint(world: World) -> None:
    """Write the maps of the three dates shard by shard."""
    day = {
        s: (np.datetime64(f"{s}-08-15") - np.datetime64("1970-01-01")).astype(int) for s in _SEASONS
    }
    for season, factor in zip(_SEASONS, _SHRINK, strict=True):
        shrunk = np.array(
            [
                shapely.Polygon(
                    np.stack(
                        [
                            x + factor * a * np.cos(np.linspace(0, 2 * np.pi, 49)),
                            y + factor * b * np.sin(np.linspace(0, 2 * np.pi, 49)),
                        ],
                        axis=1,
                    )
                )
                for (x, y), (a, b) in zip(world.centres, world.axes, strict=True)
            ]
        )
        tree = shapely.STRtree(shrunk)
        names = [f"map.zarr/{season}/{n}" for n in ("probability", "spread", "votes", "voters")]
        names.append(f"cube.zarr/{season}/date")
        for name in names:
            create_layer(world.workspace, name, world.grid)
        for shard in world.grid.shards():
            near = shrunk[tree.query(shapely.box(*shard.bounds))]
            ice = np.zeros((_SHARD_PX, _SHARD_PX), bool)
            if len(near):
                ice = rasterize(near, out_shape=ice.shape, transform=shard.geobox().affine) > 0
            zero = np.zeros_like(ice, dtype=np.uint8)
            votes = np.where(ice, np.uint32(2**_MEMBERS - 1), np.uint32(0))
            layers: tuple[npt.NDArray[Any], ...] = (
                np.stack([~ice * np.uint8(254), ice * np.uint8(254), zero, zero]),
                zero,
                votes,
                np.full_like(votes, 2**_MEMBERS - 1),
                np.full(ice.shape, day[season], np.int32),
            )
            for name, values in zip(names, layers, strict=True):
                write_shard(world.workspace, name, shard, values)


def work(job: dict[str, Any]) -> int:
    """Outline, account and compare the glaciers of some batches; peak memory in KiB."""
    workspace, grid = Workspace(job["url"]), RegionGrid.from_dict(job["grid"])
    for batch, frame in job["batches"]:
        for season in _SEASONS:
            trace_batch(
                workspace,
                season,
                batch,
                frame=frame,
                grid=grid,
                growth_m=_GROWTH_M,
                season_window=_WINDOW,
            )
        for pair in pairwise(_SEASONS):
            trace_differences(
                workspace,
                pair,
                batch,
                frame=frame,
                grid=grid,
                multiples=(1, 1),
                growth_m=_GROWTH_M,
            )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def count(job: dict[str, Any]) -> int:
    """Count the areas of some batches at the three dates; nothing is written."""
    workspace, grid = Workspace(job["url"]), RegionGrid.from_dict(job["grid"])
    rows = 0
    for batch, frame in job["batches"]:
        territory = territory_of(batch, frame, grid, growth_m=_GROWTH_M, elevation=None)
        for season in _SEASONS:
            scene = read_scene(workspace, season, batch)
            patches, _ = own_ice(scene.ice, territory)
            mine = np.where(patches > 0, territory.owners, 0)
            rows += len(zonal.counts(mine, territory.count))
    return rows


def jobs_of(world: World, workers: int) -> tuple[list[GlacierBatch], list[dict[str, Any]]]:
    """Batches, and the same shared out among the workers."""
    batches = glacier_batches(world.frame, world.grid, growth_m=_GROWTH_M)
    by_id = world.frame.set_index("ref_id", drop=False)
    whole = [(batch, by_id.loc[list(batch.ref_ids)]) for batch in batches]
    parts = [whole[i :: 8 * workers] for i in range(8 * workers)]
    shared = {"url": str(world.workspace.local), "grid": world.grid.to_dict()}
    return batches, [shared | {"batches": part} for part in parts]


def areas(world: World, workers: int) -> float:
    """Seconds for the areas alone."""
    began = time.perf_counter()
    _, jobs = jobs_of(world, workers)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        list(pool.map(count, jobs))
    return time.perf_counter() - began


def ours(world: World, workers: int) -> tuple[float, float, pd.DataFrame]:
    """Seconds, MiB of the largest worker, and the change from the first date to the second."""
    began = time.perf_counter()
    batches, jobs = jobs_of(world, workers)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        peak = max(pool.map(work, jobs), default=0)
    _finish(world, batches)
    seconds = time.perf_counter() - began
    made = pd.read_parquet(
        world.workspace.path(f"change/{_SEASONS[0]}_{_SEASONS[1]}/glaciers.parquet")
    )
    return seconds, peak / 1024, made


def _finish(world: World, batches: list[GlacierBatch]) -> None:
    for season in _SEASONS:
        publish_season(
            world.workspace,
            batches,
            frame=world.frame,
            facts=PackageFacts(
                "bench", season, "a benchmark", (f"{season}-07-01", f"{season}-09-30")
            ),
        )
    ids = [batch.id for batch in batches]
    for old, new in pairwise(_SEASONS):
        change_between(world.workspace, old, new, calibration=_CALIBRATION, batches=ids)
    series_between(world.workspace, _SEASONS, calibration=_CALIBRATION)


def overlay(world: World) -> tuple[float, pd.DataFrame]:
    """Seconds of the peer, and its areas: one row a glacier, a column a date."""
    began = time.perf_counter()
    divides = world.frame[["ref_id", "geometry"]].to_crs(world.grid.proj4)
    by_date = {}
    for season in _SEASONS:
        array = world.workspace.array(f"map.zarr/{season}/probability")
        share = read_window(array, 0, 0, shape=world.grid.shape)
        ice = share[1].astype(np.uint16) + share[2] >= 127
        found = [
            shapely.geometry.shape(shape)
            for shape, _ in shapes(ice.astype(np.uint8), mask=ice, transform=world.grid.transform)
        ]
        mapped = gpd.GeoDataFrame(geometry=found, crs=world.grid.proj4)
        pieces = gpd.overlay(divides, mapped, how="intersection")
        by_date[season] = pieces.area.groupby(pieces["ref_id"]).sum() / 1e6
    table_ = pd.DataFrame(by_date).reindex(divides["ref_id"]).fillna(0.0)
    return time.perf_counter() - began, table_


def main() -> None:
    """Make, measure, print."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--glaciers", type=int, nargs="+", default=[1000, 10_000])
    asked.add_argument("--peer", type=int, default=10_000, help="up to how many it is run for")
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--work", type=Path, required=True)
    given = asked.parse_args()
    rows = []
    for glaciers in given.glaciers:
        folder = given.work / str(glaciers)
        shutil.rmtree(folder, ignore_errors=True)
        world = make_world(glaciers, folder)
        paint(world)
        seconds, mib, change = ours(world, given.workers)
        row = {
            "glaciers": str(glaciers),
            "km2": f"{change['area_from_km2'].sum():.0f}",
            "s": f"{seconds:.0f}",
            "ms a glacier": f"{1000 * seconds / glaciers:.1f}",
            "MiB a worker": f"{mib:.0f}",
            "RGI 7.0, h": f"{seconds / glaciers * _RGI7 / 3600:.1f}",
            "areas, s": "",
            "overlay, s": "",
            "times faster": "",
            "areas differ by": "",
        }
        if glaciers <= given.peer:
            alone = areas(world, given.workers)
            theirs, found = overlay(world)
            mine = change.set_index("glacier_id")["area_from_km2"].reindex(found.index)
            differ = (mine - found[_SEASONS[0]]).abs().sum() / found[_SEASONS[0]].sum()
            row |= {
                "areas, s": f"{alone:.0f}",
                "overlay, s": f"{theirs:.0f}",
                "times faster": f"{theirs / alone:.1f}",
                "areas differ by": f"{100 * differ:.2f} %",
            }
        rows.append(row)
    for name, value in machine(("geopandas", "shapely", "rasterio", "zarr", "numpy")).items():
        print(f"{name}: {value}")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
