"""What planning and handing out a region's work costs, by its number of shards.

The source is made up: every 100 km a tile of scenes as Sentinel-2's, on twenty dates. Units of the
cube and map stages are planned as in a run, looked up in an empty workspace, and the cube's jobs go
through the Dask executor to a task that does nothing. Where costs grow in proportion to the shards,
the exponent is 1::

    python benchmarks/task_graph.py           # 100, 1,000 and 10,000 shards: some minutes
    python benchmarks/task_graph.py --quick   # up to 1,000
"""

from __future__ import annotations

import argparse
import math
import pickle
import tempfile
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from measure import machine, table

from catalog.assets import AssetPolicy
from catalog.cube import OPTICAL_BANDS, Workspace
from catalog.grid import RegionGrid, lonlat_boxes
from catalog.scenes import BandSource, Scene
from inventory_engine.executors import DaskExecutor
from inventory_engine.plan import Context, Region, Scenes
from inventory_engine.receipts import Ledger
from inventory_engine.settings import DaskSettings, Settings
from inventory_engine.stages import STAGES, states

_SEASON = "2024"
_DATES = 20
_TILE_M, _TILE_STEP_M = 109_800, 100_000
_STAGES = {stage.name: stage for stage in STAGES}


def region_of(shards: int, folder: Path, *, shard_px: int = 2048) -> Context:
    """Square region of about so many shards, all of them near ice."""
    side = max(1, round(math.sqrt(shards)))
    edge = shard_px * 10.0
    half = side * edge / 2
    grid = RegionGrid(46.5, 10.5, 10.0, shard_px, 512, -half, half, side, side)
    settings = Settings.model_validate(
        {
            "name": "squares",
            "outlines": "none.gpkg",
            "catalog": {"url": "none.json", "collections": {"optical": ["sentinel-2-l2a"]}},
            "seasons": {_SEASON: {"start": "2024-07-01", "end": "2024-09-30"}},
            "grid": {"shard_px": shard_px},
            "workspace": str(folder),
        }
    )
    workspace = Workspace(folder)
    stub: Any = SimpleNamespace(window_px=256, brings_onnx=False, fingerprint="none")
    runtime: Any = SimpleNamespace(fingerprint=lambda **_: {})
    policy = AssetPolicy(("example.org",))
    region = Region(settings, workspace, stub, grid, tuple(grid.shards()), {1: ()}, policy)
    scenes = Scenes({_SEASON: tuple(_scenes(grid))}, {}, None, ())
    return Context(region, scenes, stub, runtime, Ledger(workspace, grid))


def _scenes(grid: RegionGrid) -> list[Scene]:
    found = []
    edge = grid.rows * grid.shard_px * grid.resolution_m
    steps = np.arange(0, edge, _TILE_STEP_M)
    for row, y in enumerate(grid.top - steps):
        for col, x in enumerate(grid.left + steps):
            box = lonlat_boxes((x, y - _TILE_M, x + _TILE_M, y), grid)[0]
            found += [_scene(f"T{row:02d}{col:02d}", day, box) for day in range(_DATES)]
    return found


def _scene(tile: str, number: int, box: tuple[float, float, float, float]) -> Scene:
    day = date(2024, 7, 1) + timedelta(days=3 * number)
    name = f"S2A_{tile}_{day:%Y%m%d}_0_L2A"
    bands = [
        BandSource(
            role,
            role,
            f"https://example.org/{tile}/{name}/{role}.tif",
            scale=1e-4,
            offset=-0.1,
            nodata=0.0,
            crs="EPSG:32632",
            transform=(10.0, 0.0, 600000.0, 0.0, -10.0, 5200020.0),
            shape=(10980, 10980),
        )
        for role in (*OPTICAL_BANDS, "scl")
    ]
    return Scene(
        id=name,
        collection="sentinel-2-l2a",
        kind="optical",
        sensor="sentinel-2-msi",
        datetime=f"{day.isoformat()}T10:10:00Z",
        bands=tuple(bands[:-1]),
        masks=(bands[-1],),
        bbox=box,
        sun_azimuth=150.0,
        sun_elevation=50.0,
        cloud_percent=10.0,
        baseline="05.11",
        fingerprint=f"{hash_of(name):064x}",
    )


def hash_of(name: str) -> int:
    """Number that tells names apart."""
    return int.from_bytes(name.encode()[-24:], "big")


class Nothing:
    """Builds the task that does nothing."""

    def __call__(self) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """Return it."""
        return lambda job: {"key": job["key"], "failed": None, "fatal": None}


def costs(shards: int, executor: DaskExecutor) -> dict[str, float]:
    """Seconds of each step, and what is handed out."""
    took: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        took[name] = time.perf_counter() - start
        return result

    with tempfile.TemporaryDirectory() as folder:
        context = region_of(shards, Path(folder))
        cubes = timed("plan cubes", lambda: _STAGES["cube"].units(context))
        timed("plan maps", lambda: _STAGES["map"].units(context))
        timed("look up", lambda: states(context.ledger, cubes))
        jobs = [unit.job() for unit in cubes]
        took["KiB a job"] = float(np.mean([len(pickle.dumps(j)) for j in jobs[:100]])) / 1024
        answers = timed("run", lambda: list(executor.run(Nothing(), jobs)))
    if sorted(a["key"] for a in answers) != sorted(j["key"] for j in jobs):
        raise SystemExit("not every job was answered once")
    took["tasks"] = float(len(answers))
    took["driver MiB"] = psutil.Process().memory_info().rss / 2**20
    return took


def exponent(counts: list[float], seconds: list[float]) -> float:
    """Slope of the logarithm of the time over that of the number of shards, of the larger half."""
    kept = slice(max(0, len(counts) - 2), None)
    return float(np.polyfit(np.log(counts[kept]), np.log(seconds[kept]), 1)[0])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--workers", type=int, default=2, help="processes of the Dask cluster")
    parser.add_argument("--quick", action="store_true", help="100 and 1,000 shards")
    arguments = parser.parse_args()
    counts = [100, 1000] if arguments.quick else arguments.shards
    print(", ".join(f"{k} {v}" for k, v in machine(("dask", "distributed", "shapely")).items()))
    executor = DaskExecutor(DaskSettings(workers=arguments.workers))
    try:
        costs(4, executor)
        # ^ starts the cluster
        found = [costs(count, executor) for count in counts]
    finally:
        executor.close()
    steps = ["plan cubes", "plan maps", "look up", "run"]
    rows = [
        [
            f"{took['tasks']:,.0f}",
            *(f"{took[step]:.2f}" for step in steps),
            f"{took['KiB a job']:.1f}",
            f"{took['driver MiB']:.0f}",
        ]
        for took in found
    ]
    if len(found) > 1:
        tasks = [took["tasks"] for took in found]
        slopes = [f"{exponent(tasks, [took[s] for took in found]):.2f}" for s in steps]
        rows.append(["exponent", *slopes, "", ""])
    headers = [
        "shards = tasks",
        *(f"{step}, s" for step in steps),
        "KiB a job",
        "driver MiB",
    ]
    print("\n" + table(headers, rows))


if __name__ == "__main__":
    main()
