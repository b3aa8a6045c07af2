"""Units of the stages that bring imagery and terrain onto the grid, up to finished cubes."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import shapely

from catalog.assets import OpenAssets, public_href
from catalog.best_scene import REACH_M
from catalog.checksums import file_digest
from catalog.composites import create_season
from catalog.coregistration import Shift, aligned, choose_references, not_measured, tried_references
from catalog.extra_layers import create_extra_layer, layer_boxes, layer_policy, layer_source
from catalog.grid import LonLatBox, Shard, split_box
from catalog.illumination import LOWEST_SUN_DEG, RELIEF_M, create_illumination, shadow_halo
from catalog.looks import SceneIndex
from catalog.scenes import Scene, boxes_meet
from catalog.sun import SunOver, suns_of
from catalog.surroundings import neighbours
from catalog.terrain import create_terrain
from inventory_engine.plan import Context, terrain_season
from inventory_engine.receipts import fingerprint, unit_key
from inventory_engine.units import (
    ShardPlaces,
    Unit,
    batch_boxes,
    checksums,
    outputs_of,
    season_keys,
    shard_unit,
)
from inventory_engine.work import OUTLINES, pack_frame

__all__ = [
    "cube_units",
    "illumination_units",
    "layer_units",
    "prepare_cube",
    "prepare_illumination",
    "prepare_layers",
    "prepare_outlines",
    "prepare_terrain",
    "ranking_units",
    "residual_m",
    "season_shifts",
    "shift_units",
    "terrain_units",
]

_AROUND_M = 2000.0
_SUN_VARIES_DEG = 2.0
# ^ between the middle of a scene, where its height is given, and its rim


def terrain_units(c: Context) -> list[Unit]:
    """One a shard and pixel size."""
    if c.scenes.dem is None:
        return []
    dem, units = SceneIndex(c.scenes.dem), []
    for multiple in c.region.settings.multiples:
        grid = c.region.grid.coarsened(multiple)
        for fine in c.region.shards:
            shard = grid.shard(fine.row, fine.col)
            scenes = dem.over(shard.lonlat_boxes)
            units.append(
                shard_unit(
                    c,
                    "terrain",
                    terrain_season(grid),
                    shard,
                    inputs=_scene_inputs(scenes),
                    payload={
                        "dem": dem.described(scenes),
                        "policy": c.region.policy.to_dict(),
                    },
                )
            )
    return units


def layer_units(c: Context) -> list[Unit]:
    """One a shard and layer of the user's."""
    units = []
    for name, layer in c.region.settings.layers.items():
        policy = layer_policy(layer.files)
        bands = [
            layer_source(file, scale=layer.scale, offset=layer.offset, nodata=layer.nodata)
            for file in layer.files
        ]
        with OpenAssets(policy) as assets:
            boxes = [layer_boxes(assets, band) for band in bands]
        versions = [_file_version(band.href) for band in bands]
        for shard in c.region.shards:
            here = shard.lonlat_boxes
            near = [n for n, known in enumerate(boxes) if known is None or _meet(known, here)]
            described = [asdict(bands[n]) for n in near]
            units.append(
                shard_unit(
                    c,
                    "layers",
                    name,
                    shard,
                    inputs={f"{n} {bands[n].asset}": versions[n] for n in near},
                    payload={"rasters": described, "policy": policy.to_dict()},
                    settings={"rasters": [{**band, "href": ""} for band in described]},
                )
            )
    return units


def _meet(one: Sequence[LonLatBox], other: Sequence[LonLatBox]) -> bool:
    return any(boxes_meet(a, b) for a in one for b in other)


def _file_version(href: str) -> str:
    """What tells one version of a user's file from the next: the content of a local one."""
    if "://" in href:
        return public_href(href)
    path = Path(href)
    return file_digest(path) if path.is_file() else "missing"


def shift_units(c: Context) -> list[Unit]:
    """One an optical scene: how far it lies from the reference season's."""
    settings = c.region.settings
    if not settings.coregistration.measure:
        return []
    references = choose_references(c.scenes.optical[c.region.reference_season])
    near = _outlines_by_place(c)
    units = []
    for season in settings.season_labels:
        grid = c.region.grid_of(season)
        for scene in c.scenes.optical[season]:
            tried = tried_references(scene, references)
            inputs = _scene_inputs([scene, *tried]) | {"reference": near(scene)}
            known = {"grid": grid.to_dict(), "tried": [r.id for r in tried]}
            units.append(
                Unit(
                    "shifts",
                    season,
                    scene.id,
                    fingerprint("shifts", known, [f"{k}={v}" for k, v in inputs.items()]),
                    inputs,
                    scene.boxes,
                    c.interval(season),
                    {
                        "scene": scene.to_dict(),
                        "references": [r.to_dict() for r in tried],
                        "multiple": grid.multiple,
                        "outlines": c.region.reference.fingerprint,
                        "policy": c.region.policy.to_dict(),
                    },
                )
            )
    return units


def _outlines_by_place(c: Context) -> Callable[[Scene], str]:
    """Tells the digest of the outlines a scene lies over: only these are stable ground's limits."""
    frame = c.region.reference.frame
    shapes = frame.geometry.to_wkb().to_numpy()

    def digest(scene: Scene) -> str:
        boxes = [shapely.box(*box) for box in scene.boxes]
        found = np.unique(frame.sindex.query(boxes)[1])
        return hashlib.sha256(b"".join(shapes[found])).hexdigest()

    return digest


def season_shifts(c: Context, season: str) -> dict[str, Shift]:
    """Shift of each optical scene of a season by its id, as far as it has been measured."""
    scenes = c.scenes.optical[season]
    if not c.region.settings.coregistration.measure:
        off = "co-registration is switched off"
        return {scene.id: not_measured(scene, off) for scene in scenes}
    receipts = c.ledger.read_many([("shifts", season, scene.id) for scene in scenes])
    found = {}
    for scene, receipt in zip(scenes, receipts, strict=True):
        if receipt is None or receipt.failed:
            shift = not_measured(scene, "its shift could not be measured")
        else:
            shift = Shift.from_dict(receipt.outcome.facts)
        found[scene.id] = shift
    return found


def residual_m(shifts: Iterable[Shift]) -> float:
    """Root mean square of how far the scenes over a place may still lie off, metres."""
    squares = [shift.residual_m**2 for shift in shifts if shift.state != "misregistered"]
    return round(math.sqrt(sum(squares) / len(squares)), 3) if squares else 0.0


def ranking_units(c: Context) -> list[Unit]:
    """One a batch of glaciers, in the seasons whose composite asks for the best scene."""
    settings = c.region.settings
    wanted = [s for s in settings.season_labels if settings.seasons[s].composite == "best_scene"]
    return [unit for season in wanted for unit in _season_ranking_units(c, season)]


def _season_ranking_units(c: Context, season: str) -> list[Unit]:
    """One a batch of glaciers."""
    frame, grid = c.region.reference.frame, c.region.grid
    scenes, places = SceneIndex(c.scenes.optical[season]), ShardPlaces(c.region.shards)
    keys = season_keys(c, season, places.shards, stages=("terrain",))
    known = outputs_of(c, keys)
    units = []
    for batch in c.region.batches[1]:
        own = frame[frame["ref_id"].isin(batch.ref_ids)]
        packed = pack_frame(own), pack_frame(neighbours(own, frame, grid))
        boxes = batch_boxes(grid, batch)
        seen = scenes.over(_around(boxes))
        suns = suns_of(seen)
        reach = _shadow_reach(suns, grid.resolution_m)
        near = places.within(batch.row0, batch.col0, batch.shape, reach)
        upstream = season_keys(c, season, near, stages=("terrain",))
        digest = hashlib.sha256("".join(packed).encode()).hexdigest()
        inputs = _scene_inputs(seen) | checksums(known, upstream) | {"reference": digest}
        units.append(
            Unit(
                "scenes",
                season,
                batch.id,
                fingerprint(
                    "scenes",
                    {
                        "grid": grid.to_dict(),
                        "suns": [[over.day, *astuple(over.sun)] for over in suns],
                    },
                    [f"{k}={v}" for k, v in inputs.items()],
                ),
                inputs,
                boxes,
                c.interval(season),
                {
                    "frame": packed[0],
                    "others": packed[1],
                    "scenes": scenes.described(seen),
                    "multiple": 1,
                    "policy": c.region.policy.to_dict(),
                },
                upstream,
            )
        )
    return units


def _shadow_reach(suns: Sequence[SunOver], resolution_m: float) -> int:
    """Pixels as far as terrain is looked at for the shadows of some suns."""
    lowest = min((over.sun.elevation for over in suns), default=90.0) - _SUN_VARIES_DEG
    lowest = min(90.0, max(LOWEST_SUN_DEG, lowest))
    return shadow_halo(RELIEF_M, sun_elevation=lowest, resolution_m=resolution_m)


def _around(boxes: Iterable[LonLatBox]) -> list[LonLatBox]:
    """Boxes widened by two kilometres, more than the surroundings of a glacier that are judged."""
    wide = []
    for west, south, east, north in boxes:
        lat = _AROUND_M / 111_195.0
        lon = lat / max(0.01, math.cos(math.radians(max(abs(south), abs(north)))))
        wide += split_box(west - lon, max(-90.0, south - lat), east + lon, min(90.0, north + lat))
    return wide


def cube_units(c: Context) -> list[Unit]:
    """One a season and shard."""
    units = []
    for season in c.region.settings.season_labels:
        moved, _ = aligned(c.scenes.optical[season], season_shifts(c, season))
        optical, radar = SceneIndex(moved), c.scenes.sar.get(season)
        sars = None if radar is None else SceneIndex(radar)
        strategy = c.region.settings.seasons[season].composite
        orders = _Orders(c, season) if strategy == "best_scene" else None
        for shard in c.region.shards_of(season):
            boxes = shard.lonlat_boxes
            scenes = optical.over(boxes)
            looks = [] if sars is None else sars.over(boxes)
            inputs = _scene_inputs([*scenes, *looks]) | _shift_inputs(scenes)
            payload: dict[str, Any] = {
                "strategy": strategy,
                "optical": optical.described(scenes),
                "sar": None if sars is None else sars.described(looks),
                "policy": c.region.policy.to_dict(),
            }
            upstream = tuple(
                unit_key("shifts", season, scene.id)
                for scene in scenes
                if c.region.settings.coregistration.measure
            )
            if orders is not None:
                added, orders_inputs, keys = orders.of(shard)
                payload, inputs, upstream = payload | added, inputs | orders_inputs, upstream + keys
            units.append(
                shard_unit(
                    c,
                    "cube",
                    season,
                    shard,
                    inputs=inputs,
                    payload=payload,
                    settings={"strategy": strategy},
                    upstream=upstream,
                )
            )
    return units


class _Orders:
    """What a shard needs to take the best scene of each glacier."""

    def __init__(self, c: Context, season: str) -> None:
        frame = c.region.reference.frame
        self._season = season
        self._frame = frame
        self._shapes = frame.geometry.to_crs(c.region.grid.proj4)
        self._batch = {ref_id: b.id for b in c.region.batches[1] for ref_id in b.ref_ids}
        keys = [unit_key("scenes", season, b.id) for b in c.region.batches[1]]
        self._known = outputs_of(c, keys)

    def of(self, shard: Shard) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
        """Payload, inputs and keys upstream."""
        left, bottom, right, top = shard.bounds
        reach = REACH_M + 2 * shard.grid.resolution_m
        box = (left - reach, bottom - reach, right + reach, top + reach)
        near = self._frame.iloc[np.sort(self._shapes.sindex.query(shapely.box(*box)))]
        batches = sorted({self._batch[ref_id] for ref_id in near["ref_id"]})
        keys = tuple(unit_key("scenes", self._season, name) for name in batches)
        packed = pack_frame(near)
        inputs = checksums(self._known, keys)
        inputs["reference"] = hashlib.sha256(packed.encode()).hexdigest()
        return {"glaciers": packed, "batches": batches}, inputs, keys


def illumination_units(c: Context) -> list[Unit]:
    """One a season and shard, where there is an elevation model."""
    if c.scenes.dem is None:
        return []
    units = []
    for season in c.region.settings.season_labels:
        shards = c.region.shards_of(season)
        places, scenes = ShardPlaces(shards), SceneIndex(c.scenes.optical[season])
        known = outputs_of(c, season_keys(c, season, shards, stages=("cube", "terrain")))
        for shard in shards:
            cube = unit_key("cube", season, shard.id)
            if known[cube].failed:
                continue
            suns = suns_of(scenes.over(shard.lonlat_boxes))
            reach = _shadow_reach(suns, shard.grid.resolution_m)
            described = [[over.day, list(over.box), list(astuple(over.sun))] for over in suns]
            ground = season_keys(c, season, places.around(shard, reach), stages=("terrain",))
            made = checksums(known, [cube])
            dates = {k: v for k, v in made.items() if "/date/" in k} or made
            units.append(
                shard_unit(
                    c,
                    "illumination",
                    season,
                    shard,
                    inputs=dates | checksums(known, ground),
                    payload={"suns": described},
                    settings={"suns": described},
                    upstream=(cube, *ground),
                )
            )
    return units


def _scene_inputs(scenes: Iterable[Scene]) -> dict[str, str]:
    return {f"{scene.collection}/{scene.id}": scene.fingerprint for scene in scenes}


def _shift_inputs(scenes: Iterable[Scene]) -> dict[str, str]:
    moved = ((s.collection, s.id, s.bands[0].shift_m) for s in scenes)
    return {f"{c}/{name}/shift": f"{x:g},{y:g}" for c, name, (x, y) in moved if x or y}


def prepare_terrain(c: Context) -> None:
    """Create the terrain layer of each pixel size."""
    dem = c.region.settings.catalog.collections.dem
    for multiple in c.region.settings.multiples:
        grid = c.region.grid.coarsened(multiple)
        create_terrain(c.region.workspace, grid, collections=dem, dem=c.scenes.dem or ())


def prepare_layers(c: Context) -> None:
    """Create the layers that the user supplies."""
    for name in c.region.settings.layers:
        create_extra_layer(c.region.workspace, name, c.region.grid)


def prepare_outlines(c: Context) -> None:
    """Put the reference outlines where the workers find them."""
    sink = io.BytesIO()
    kept = c.region.reference.frame[["ref_id", "geometry"]]
    gpd.GeoDataFrame(kept, geometry="geometry", crs=4326).to_parquet(sink)
    c.region.workspace.renew(OUTLINES, sink.getvalue())


def prepare_cube(c: Context) -> None:
    """Create the layers of each season."""
    for season in c.region.settings.season_labels:
        grid = c.region.grid_of(season)
        create_season(c.region.workspace, season, grid, sar=season in c.scenes.sar)


def prepare_illumination(c: Context) -> None:
    """Create the illumination layer of each season."""
    for season in c.region.settings.season_labels:
        create_illumination(c.region.workspace, season, c.region.grid_of(season))
