"""The stages in order: which units each has, where they run, and when they are done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from catalog.cube import LAYERS
from catalog.looks import SceneIndex
from inventory_engine import imagery
from inventory_engine.finish import DriverTaskMaker, run_facts
from inventory_engine.imagery import residual_m, season_shifts
from inventory_engine.plan import REGION, Context
from inventory_engine.receipts import Ledger, State, fingerprint, unit_key
from inventory_engine.units import (
    Made,
    ShardPlaces,
    Unit,
    batch_boxes,
    checksums,
    outputs_of,
    season_keys,
    shard_unit,
)
from inventory_engine.work import MapTaskMaker, Task, TaskMaker, pack_frame

if TYPE_CHECKING:
    from change_detection.divides import GlacierBatch

__all__ = [
    "STAGES",
    "Stage",
    "change_unit",
    "difference_units",
    "states",
]

Place = Literal["dask", "ray", "driver"]

_CUBE_LAYERS = ("optical", "date", "span", "observations", "sar")
_MAP_LAYERS = ("probability", "spread", "votes", "voters")


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


def _map_units(c: Context) -> list[Unit]:
    from model_serving.inference import map_halo_px

    settings = {"runtime": c.map_fingerprint}
    units = []
    for season in c.region.settings.season_labels:
        shards = c.region.shards_of(season)
        known = outputs_of(c, season_keys(c, season, shards, stages=("cube", "terrain")))
        places = ShardPlaces(shards)
        reach = map_halo_px(c.ensemble.window_px, shards[0].grid.shard_px)
        for shard in shards:
            if known[unit_key("cube", season, shard.id)].failed:
                continue
                # ^ its cube failed and is recorded: there is nothing to map
            keys = season_keys(c, season, places.around(shard, reach), stages=("cube", "terrain"))
            units.append(
                shard_unit(
                    c,
                    "map",
                    season,
                    shard,
                    inputs=checksums(known, keys),
                    payload={},
                    settings=settings,
                    upstream=keys,
                )
            )
    return units


def _outline_units(c: Context) -> list[Unit]:
    from change_detection.uncertainty import AreaCalibration

    inventory = c.region.settings.inventory
    calibration = AreaCalibration.from_dict(c.ensemble.area_calibration)
    wanted = inventory.model_dump(mode="json") | {"area_scale": calibration.for_areas.scale}
    by_id = c.region.reference.frame.set_index("ref_id", drop=False)
    frames = {b.id: pack_frame(by_id.loc[list(b.ref_ids)]) for b in c.region.batches[1]}
    units = []
    for season in c.region.settings.season_labels:
        places = ShardPlaces(c.region.shards_of(season))
        stages = ("map", "cube", "terrain")
        known = outputs_of(c, season_keys(c, season, places.shards, stages=stages))
        shifts, scenes = season_shifts(c, season), SceneIndex(c.scenes.optical[season])
        interval, grid = c.interval(season), c.region.grid_of(season)
        settings = wanted | {"grid": grid.to_dict()}
        for batch in c.region.batches_of(season):
            shards = places.within(batch.row0, batch.col0, batch.shape)
            keys = season_keys(c, season, shards, stages=stages)
            boxes = batch_boxes(grid, batch)
            residual = residual_m(shifts[scene.id] for scene in scenes.over(boxes))
            digest = hashlib.sha256(frames[batch.id].encode()).hexdigest()
            inputs = checksums(known, keys) | {"reference": digest}
            known_settings = settings | {
                "batch": asdict(batch),
                "interval": interval,
                "residual_m": residual,
            }
            units.append(
                Unit(
                    "outlines",
                    season,
                    batch.id,
                    fingerprint(
                        "outlines", known_settings, [f"{k}={v}" for k, v in inputs.items()]
                    ),
                    inputs,
                    boxes,
                    interval,
                    {
                        "batch": asdict(batch),
                        "multiple": grid.multiple,
                        "frame": frames[batch.id],
                        "residual_m": residual,
                        **wanted,
                    },
                    keys,
                    batch.height * batch.width,
                )
            )
    return units


def _publish_units(c: Context) -> list[Unit]:
    settings = c.region.settings
    units = []
    for season in settings.season_labels:
        told = _package_facts(c, season)
        known = {"name": settings.name, "reference": c.region.reference.fingerprint, "told": told}
        keys = tuple(
            unit_key("outlines", season, batch.id) for batch in c.region.batches_of(season)
        )
        units.append(
            _region_unit(c, "publish", season, keys, settings=known, payload={"told": told})
        )
    return units


def _package_facts(c: Context, season: str) -> dict[str, Any]:
    """What the package of a season says of itself, besides names; JSON-ready."""
    settings = c.region.settings
    window = settings.seasons[season]
    optical = ", ".join(settings.catalog.collections.optical)
    days = window.start.isoformat(), window.end.isoformat()
    description = (
        f"Mapped by inventory-engine from {optical}, {days[0]} to {days[1]} "
        f"({window.composite}), with the ensemble {c.ensemble.name} "
        f"({c.ensemble.fingerprint[:12]}); ice divides of {Path(settings.outlines).name}"
    )
    return {"description": description, "interval": days} | settings.publication.model_dump()


def _difference_units(c: Context) -> list[Unit]:
    return [u for pair in c.region.settings.pairs for u in difference_units(c, *pair)]


def difference_units(c: Context, first: str, last: str) -> list[Unit]:
    """Describe the comparison of two seasons' pixels, batch by batch.

    Nothing where the pixels of the coarser season are no whole number of those of the finer one.
    """
    settings = c.region.settings
    own = [settings.multiple(season) for season in (first, last)]
    coarse = max(own)
    batches = _compared_batches(c, first, last)
    if not batches:
        return []
    grid = c.region.grid.coarsened(coarse)
    by_id = c.region.reference.frame.set_index("ref_id", drop=False)
    places = [ShardPlaces(c.region.shards_of(season)) for season in (first, last)]
    stages = ("map", "cube", "terrain")
    made: dict[str, Made] = {}
    for season, place in zip((first, last), places, strict=True):
        made |= outputs_of(c, season_keys(c, season, place.shards, stages=stages))
    units = []
    for batch in batches:
        frame = pack_frame(by_id.loc[list(batch.ref_ids)])
        keys: tuple[str, ...] = ()
        for season, place, multiple in zip((first, last), places, own, strict=True):
            n = coarse // multiple
            shape = (n * batch.height, n * batch.width)
            shards = place.within(n * batch.row0, n * batch.col0, shape)
            keys += season_keys(c, season, shards, stages=stages)
        keys = tuple(dict.fromkeys(keys))
        digest = hashlib.sha256(frame.encode()).hexdigest()
        inputs = checksums(made, keys) | {"reference": digest}
        known = {
            "batch": asdict(batch),
            "grid": grid.to_dict(),
            "growth_m": settings.inventory.growth_m,
            "multiples": [coarse // multiple for multiple in own],
        }
        pair = f"{first}_{last}"
        units.append(
            Unit(
                "differences",
                pair,
                batch.id,
                fingerprint("differences", known, [f"{k}={v}" for k, v in inputs.items()]),
                inputs,
                batch_boxes(grid, batch),
                _span(c, pair),
                {
                    "batch": known["batch"],
                    "multiple": coarse,
                    "multiples": known["multiples"],
                    "growth_m": known["growth_m"],
                    "frame": frame,
                    "seasons": [first, last],
                },
                keys,
                batch.height * batch.width,
            )
        )
    return units


def _compared_batches(c: Context, first: str, last: str) -> tuple[GlacierBatch, ...]:
    """Batches on the coarser pixels of two seasons; none where the finer ones do not fill them."""
    own = [c.region.settings.multiple(season) for season in (first, last)]
    coarse = max(own)
    return () if any(coarse % multiple for multiple in own) else c.region.batches[coarse]


def _change_units(c: Context) -> list[Unit]:
    units = (change_unit(c, first, last) for first, last in c.region.settings.pairs)
    return [unit for unit in units if unit is not None]


def change_unit(c: Context, first: str, last: str) -> Unit | None:
    """Describe the change between two seasons; None where one of them could not be published."""
    keys = (unit_key("publish", first, REGION), unit_key("publish", last, REGION))
    if any((r := c.ledger.read(*key.split("/"))) and r.failed for key in keys):
        return None
    pair = f"{first}_{last}"
    multiples = {c.region.settings.multiple(season) for season in (first, last)}
    batches = [batch.id for batch in _compared_batches(c, first, last)]
    return _region_unit(
        c,
        "change",
        pair,
        (*keys, *(unit_key("differences", pair, batch) for batch in batches)),
        settings={"from": first, "to": last, "calibration": c.ensemble.area_calibration},
        payload={"from": first, "to": last, "unlike": len(multiples) > 1, "batches": batches},
    )


def _trend_units(c: Context) -> list[Unit]:
    """One, where there are three seasons or more."""
    seasons = c.region.settings.season_labels
    keys = tuple(unit_key("publish", season, REGION) for season in seasons)
    failed = any((r := c.ledger.read(*key.split("/"))) and r.failed for key in keys)
    if len(seasons) < 3 or failed:
        return []
    known = {"seasons": list(seasons), "calibration": c.ensemble.area_calibration}
    return [
        _region_unit(c, "trend", REGION, keys, settings=known, payload={"seasons": list(seasons)})
    ]


def _region_unit(
    c: Context,
    stage: str,
    season: str,
    keys: tuple[str, ...],
    *,
    settings: dict[str, Any],
    payload: dict[str, Any] | None = None,
) -> Unit:
    inputs = checksums(outputs_of(c, keys), keys)
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
        + [unit.key for unit in _trend_units(c)]
    )
    facts = hashlib.sha256(json.dumps(run_facts(c), sort_keys=True).encode()).hexdigest()
    return [_region_unit(c, "report", REGION, keys, settings={"facts": facts})]


# --- their preparation and tasks -----------------------------------------------------------------


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
        imagery.terrain_units,
        imagery.prepare_terrain,
        _plain_task,
        lambda _c: _layer_bytes(["terrain"]),
    ),
    Stage(
        "layers",
        "layers of your own",
        "dask",
        imagery.layer_units,
        imagery.prepare_layers,
        _plain_task,
        lambda _c: _layer_bytes(["dhdt"]),
    ),
    Stage(
        "shifts",
        "co-registration",
        "dask",
        imagery.shift_units,
        imagery.prepare_outlines,
        _plain_task,
    ),
    Stage(
        "scenes",
        "scene ranks",
        "dask",
        imagery.ranking_units,
        _prepare_nothing,
        _plain_task,
    ),
    Stage(
        "cube",
        "cubes",
        "dask",
        imagery.cube_units,
        imagery.prepare_cube,
        _plain_task,
        _cube_bytes,
    ),
    Stage(
        "illumination",
        "illumination",
        "dask",
        imagery.illumination_units,
        imagery.prepare_illumination,
        _plain_task,
        lambda _c: _layer_bytes(["illumination"]),
    ),
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
    Stage("differences", "differences", "dask", _difference_units, _prepare_map, _plain_task),
    Stage("change", "change", "driver", _change_units, _prepare_nothing, _driver_task),
    Stage("trend", "trend", "driver", _trend_units, _prepare_nothing, _driver_task),
    Stage("report", "report", "driver", _report_units, _prepare_nothing, _driver_task),
)
"""All stages, in the order in which they hand over."""
