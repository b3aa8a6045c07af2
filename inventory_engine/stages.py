"""The stages in order: which units each has, what a unit reads, and when it is done.

A unit's fingerprint covers the checksums of everything it reads, so a changed input redoes exactly
the units it touches and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from catalog.composites import create_season
from catalog.cube import LAYERS
from catalog.grid import LonLatBox, RegionGrid, Shard, lonlat_boxes
from catalog.looks import scenes_over
from catalog.sensors import Scene
from catalog.terrain import create_terrain
from inventory_engine.finish import DriverTaskMaker, run_facts
from inventory_engine.plan import REGION, Context, terrain_season
from inventory_engine.receipts import Ledger, State, fingerprint, unit_key
from inventory_engine.work import MapTaskMaker, Task, TaskMaker, pack_frame

if TYPE_CHECKING:
    from change_detection.divides import GlacierBatch

__all__ = [
    "STAGES",
    "Stage",
    "Unit",
    "change_unit",
    "states",
]

Place = Literal["dask", "ray", "driver"]

_CUBE_LAYERS = ("optical", "date", "span", "observations", "sar")
_MAP_LAYERS = ("probability", "spread", "votes", "voters")


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work: named, placed, and identified by its inputs."""

    stage: str
    season: str
    unit: str
    fingerprint: str
    inputs: dict[str, str]
    boxes: tuple[LonLatBox, ...]
    interval: tuple[str, str] | None
    payload: dict[str, Any] = field(default_factory=dict)
    upstream: tuple[str, ...] = ()
    """Keys of the units it reads from."""
    pixels: int = 0

    @property
    def key(self) -> str:
        """Name within the region, for example ``cube/2024/r000c001``."""
        return unit_key(self.stage, self.season, self.unit)

    def job(self) -> dict[str, Any]:
        """Describe the unit to a worker, JSON-ready."""
        return {
            "key": self.key,
            "stage": self.stage,
            "season": self.season,
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "boxes": [list(box) for box in self.boxes],
            "interval": list(self.interval) if self.interval else None,
            "payload": self.payload,
        }


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its units, where they run and what must exist before."""

    name: str
    title: str
    place: Place
    units: Callable[[Context], list[Unit]]
    prepare: Callable[[Context], None]
    """Creates the stage's layers; called only where there is work."""
    make_task: Callable[[Context], Callable[[], Task]]
    bytes_per_pixel: Callable[[Context], float] = lambda _context: 0.0
    """Uncompressed bytes that a pixel of output takes."""


def states(ledger: Ledger, units: Sequence[Unit]) -> dict[str, State]:
    """Decide for each unit whether it is done; outputs are read back and compared."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = pool.map(
            lambda u: ledger.state(u.stage, u.season, u.unit, fingerprint=u.fingerprint), units
        )
        return dict(zip((u.key for u in units), found, strict=True))


# --- the stages' units ---------------------------------------------------------------------------


def _terrain_units(c: Context) -> list[Unit]:
    if c.scenes.dem is None:
        return []
    units = []
    for multiple in c.region.settings.multiples:
        grid = c.region.grid.coarsened(multiple)
        for fine in c.region.shards:
            shard = grid.shard(fine.row, fine.col)
            scenes = scenes_over(c.scenes.dem, shard)
            payload = {
                "dem": [scene.to_dict() for scene in scenes],
                "policy": c.region.policy.to_dict(),
            }
            units.append(
                _shard_unit(
                    c,
                    "terrain",
                    terrain_season(grid),
                    shard,
                    inputs=_scene_inputs(scenes),
                    payload=payload,
                )
            )
    return units


def _cube_units(c: Context) -> list[Unit]:
    units = []
    for season in c.region.settings.season_labels:
        radar = c.scenes.sar.get(season)
        strategy = c.region.settings.seasons[season].composite
        for shard in c.region.shards_of(season):
            optical = scenes_over(c.scenes.optical[season], shard)
            sar = None if radar is None else scenes_over(radar, shard)
            inputs = _scene_inputs([*optical, *(sar or [])])
            payload = {
                "strategy": strategy,
                "optical": [scene.to_dict() for scene in optical],
                "sar": None if sar is None else [scene.to_dict() for scene in sar],
                "policy": c.region.policy.to_dict(),
            }
            units.append(
                _shard_unit(
                    c,
                    "cube",
                    season,
                    shard,
                    inputs=inputs,
                    payload=payload,
                    settings={"strategy": strategy},
                )
            )
    return units


def _scene_inputs(scenes: Sequence[Scene]) -> dict[str, str]:
    return {f"{scene.collection}/{scene.id}": scene.fingerprint for scene in scenes}


def _shard_unit(
    c: Context,
    stage: str,
    season: str,
    shard: Shard,
    *,
    inputs: dict[str, str],
    payload: dict[str, Any],
    settings: dict[str, Any] | None = None,
    upstream: tuple[str, ...] = (),
) -> Unit:
    known = {"grid": shard.grid.to_dict(), "shard": shard.id} | (settings or {})
    place = {"shard": [shard.row, shard.col], "multiple": shard.grid.multiple}
    return Unit(
        stage,
        season,
        shard.id,
        fingerprint(stage, known, [f"{k}={v}" for k, v in inputs.items()]),
        inputs,
        tuple(shard.lonlat_boxes),
        c.interval(season),
        payload | place,
        upstream,
        shard.grid.shard_px**2,
    )


def _map_units(c: Context) -> list[Unit]:
    from model_serving.inference import map_halo_px

    settings = {"runtime": c.map_fingerprint}
    units = []
    for season in c.region.settings.season_labels:
        known = _upstream_outputs(c, season, ("cube", "terrain"))
        shards = c.region.shards_of(season)
        side = shards[0].grid.shard_px
        reach = map_halo_px(c.ensemble.window_px, side)
        for shard in shards:
            made = known[unit_key("cube", season, shard.id)]
            if made is None and c.ledger.read("cube", season, shard.id):
                continue
                # ^ its cube failed and is recorded: there is nothing to map
            near = _within(shards, shard.row * side, shard.col * side, (side, side), reach)
            keys = _keys(c, season, near, stages=("cube", "terrain"))
            units.append(
                _shard_unit(
                    c,
                    "map",
                    season,
                    shard,
                    inputs=_checksums(known, keys),
                    payload={},
                    settings=settings,
                    upstream=keys,
                )
            )
    return units


def _within(
    shards: Sequence[Shard], row0: int, col0: int, shape: tuple[int, int], reach: int
) -> list[Shard]:
    """Shards that a window, widened by ``reach`` pixels, touches."""
    n = shards[0].grid.shard_px
    rows = range((row0 - reach) // n, (row0 + shape[0] + reach - 1) // n + 1)
    cols = range((col0 - reach) // n, (col0 + shape[1] + reach - 1) // n + 1)
    return [s for s in shards if s.row in rows and s.col in cols]


def _keys(
    c: Context, season: str, shards: Sequence[Shard], *, stages: Sequence[str]
) -> tuple[str, ...]:
    kept = [stage for stage in stages if stage != "terrain" or c.scenes.dem is not None]
    return tuple(
        unit_key(stage, terrain_season(shard.grid) if stage == "terrain" else season, shard.id)
        for stage in kept
        for shard in shards
    )


def _upstream_outputs(
    c: Context, season: str, stages: Sequence[str]
) -> dict[str, dict[str, str] | None]:
    """Outputs that the receipts of one season's shards promise, by the key of the unit."""
    keys = _keys(c, season, c.region.shards_of(season), stages=stages)
    return {key: c.ledger.outputs(*key.split("/")) for key in keys}


def _checksums(known: dict[str, dict[str, str] | None], keys: Sequence[str]) -> dict[str, str]:
    """Checksum of every output of the given units; ``absent`` where a unit is not done."""
    found: dict[str, str] = {}
    for key in keys:
        outputs = known[key]
        found |= {key: "absent"} if outputs is None else outputs
    return found


def _outline_units(c: Context) -> list[Unit]:
    from change_detection.uncertainty import AreaCalibration

    inventory = c.region.settings.inventory
    calibration = AreaCalibration.from_dict(c.ensemble.area_calibration)
    wanted = inventory.model_dump(mode="json") | {"area_scale": calibration.for_areas.scale}
    by_id = c.region.reference.frame.set_index("ref_id", drop=False)
    frames = {b.id: pack_frame(by_id.loc[list(b.ref_ids)]) for b in c.region.batches[1]}
    units = []
    for season in c.region.settings.season_labels:
        known = _upstream_outputs(c, season, ("map", "cube", "terrain"))
        interval, grid = c.interval(season), c.region.grid_of(season)
        settings = wanted | {"grid": grid.to_dict()}
        for batch in c.region.batches_of(season):
            shards = _within(c.region.shards_of(season), batch.row0, batch.col0, batch.shape, 0)
            keys = _keys(c, season, shards, stages=("map", "cube", "terrain"))
            digest = hashlib.sha256(frames[batch.id].encode()).hexdigest()
            inputs = _checksums(known, keys) | {"reference": digest}
            known_settings = settings | {"batch": asdict(batch), "interval": interval}
            units.append(
                Unit(
                    "outlines",
                    season,
                    batch.id,
                    fingerprint(
                        "outlines", known_settings, [f"{k}={v}" for k, v in inputs.items()]
                    ),
                    inputs,
                    _batch_boxes(grid, batch),
                    interval,
                    {
                        "batch": asdict(batch),
                        "multiple": grid.multiple,
                        "frame": frames[batch.id],
                        **wanted,
                    },
                    keys,
                    batch.height * batch.width,
                )
            )
    return units


def _batch_boxes(grid: RegionGrid, batch: GlacierBatch) -> tuple[LonLatBox, ...]:
    left = grid.left + batch.col0 * grid.resolution_m
    top = grid.top - batch.row0 * grid.resolution_m
    right = left + batch.width * grid.resolution_m
    bottom = top - batch.height * grid.resolution_m
    return tuple(lonlat_boxes((left, bottom, right, top), grid))


def _publish_units(c: Context) -> list[Unit]:
    settings = {"name": c.region.settings.name, "reference": c.region.reference.fingerprint}
    units = []
    for season in c.region.settings.season_labels:
        keys = tuple(
            unit_key("outlines", season, batch.id) for batch in c.region.batches_of(season)
        )
        units.append(_region_unit(c, "publish", season, keys, settings=settings))
    return units


def _change_units(c: Context) -> list[Unit]:
    units = (change_unit(c, first, last) for first, last in c.region.settings.pairs)
    return [unit for unit in units if unit is not None]


def change_unit(c: Context, first: str, last: str) -> Unit | None:
    """Describe the change between two seasons; None where one of them could not be published."""
    keys = (unit_key("publish", first, REGION), unit_key("publish", last, REGION))
    if any((r := c.ledger.read(*key.split("/"))) and r.failed for key in keys):
        return None
    return _region_unit(
        c,
        "change",
        f"{first}_{last}",
        keys,
        settings={"from": first, "to": last, "calibration": c.ensemble.area_calibration},
        payload={"from": first, "to": last},
    )


def _region_unit(
    c: Context,
    stage: str,
    season: str,
    keys: tuple[str, ...],
    *,
    settings: dict[str, Any],
    payload: dict[str, Any] | None = None,
) -> Unit:
    inputs = _checksums({key: c.ledger.outputs(*key.split("/")) for key in keys}, keys)
    return Unit(
        stage,
        season,
        REGION,
        fingerprint(stage, settings, [f"{k}={v}" for k, v in inputs.items()]),
        inputs,
        tuple(c.region.boxes),
        _span(c, season),
        payload or {},
        keys,
    )


def _span(c: Context, season: str) -> tuple[str, str] | None:
    """Days a product spans: its season, or from the first season to the last one."""
    labels = season.split("_") if season != REGION else c.region.settings.season_labels
    windows = [c.interval(label) for label in labels]
    known = [w for w in windows if w]
    return (min(w[0] for w in known), max(w[1] for w in known)) if known else None


def _report_units(c: Context) -> list[Unit]:
    settings = c.region.settings
    keys = tuple(
        [unit_key("publish", s, REGION) for s in settings.season_labels]
        + [unit_key("change", f"{a}_{b}", REGION) for a, b in settings.pairs]
    )
    facts = hashlib.sha256(json.dumps(run_facts(c), sort_keys=True).encode()).hexdigest()
    return [_region_unit(c, "report", REGION, keys, settings={"facts": facts})]


# --- their preparation and tasks -----------------------------------------------------------------


def _prepare_terrain(c: Context) -> None:
    dem = c.region.settings.catalog.collections.dem
    for multiple in c.region.settings.multiples:
        grid = c.region.grid.coarsened(multiple)
        create_terrain(c.region.workspace, grid, collections=dem)


def _prepare_cube(c: Context) -> None:
    for season in c.region.settings.season_labels:
        grid = c.region.grid_of(season)
        create_season(c.region.workspace, season, grid, sar=season in c.scenes.sar)


def _prepare_map(c: Context) -> None:
    from model_serving.inference import create_map

    for season in c.region.settings.season_labels:
        create_map(c.region.workspace, season, c.region.grid_of(season))


def _prepare_nothing(_context: Context) -> None:
    """Files need no preparation."""


def _plain_task(c: Context) -> Callable[[], Task]:
    return TaskMaker(c.region.workspace, c.region.grid)


def _map_task(c: Context) -> Callable[[], Task]:
    settings = c.region.settings
    return MapTaskMaker(
        c.region.workspace,
        c.region.grid,
        settings.model.ensemble,
        c.map_fingerprint,
        c.runtime,
    )


def _driver_task(c: Context) -> Callable[[], Task]:
    return DriverTaskMaker(c)


def _layer_bytes(names: Sequence[str]) -> float:
    widths = {"uint8": 1, "uint16": 2, "int32": 4, "uint32": 4, "float32": 4}
    return float(sum(widths[LAYERS[n].dtype] * max(1, len(LAYERS[n].bands)) for n in names))


def _cube_bytes(c: Context) -> float:
    return _layer_bytes([n for n in _CUBE_LAYERS if n != "sar" or c.scenes.sar])


STAGES: tuple[Stage, ...] = (
    Stage(
        "terrain",
        "terrain",
        "dask",
        _terrain_units,
        _prepare_terrain,
        _plain_task,
        lambda _c: _layer_bytes(["terrain"]),
    ),
    Stage("cube", "cubes", "dask", _cube_units, _prepare_cube, _plain_task, _cube_bytes),
    Stage(
        "map",
        "maps",
        "ray",
        _map_units,
        _prepare_map,
        _map_task,
        lambda _c: _layer_bytes(_MAP_LAYERS),
    ),
    Stage("outlines", "outlines", "dask", _outline_units, _prepare_map, _plain_task),
    # ^ a season without any map has an empty one: nothing was seen
    Stage("publish", "inventories", "driver", _publish_units, _prepare_nothing, _driver_task),
    Stage("change", "change", "driver", _change_units, _prepare_nothing, _driver_task),
    Stage("report", "report", "driver", _report_units, _prepare_nothing, _driver_task),
)
"""All stages, in the order in which they hand over."""
