"""Composites: the looks of one season become one analysis-ready shard.

The one law: the result depends neither on the order of the scenes nor on how the region is cut
into shards, and a scene that cannot be trusted is set aside by name for the whole shard.

How the clear looks at a pixel become one is said in :mod:`catalog.strategies`. A look is all
granules of one kind of sensor on one day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.assets import AssetPolicy, OpenAssets
from catalog.best_scene import GlacierOrders
from catalog.cube import (
    DATE_MISSING,
    OPTICAL_BANDS,
    OPTICAL_OFFSET,
    OPTICAL_SCALE,
    SAR_BANDS,
    SAR_OFFSET_DB,
    SAR_SCALE_DB,
    Outcome,
    Workspace,
    create_layer,
    write_shard,
)
from catalog.errors import DataError, SetAside, UsageError
from catalog.grid import RegionGrid, Shard
from catalog.looks import looks_of, scenes_over
from catalog.radiometry import DarkPixels, count_dark, judge_offset
from catalog.scenes import BandSource, Scene
from catalog.stacks import Tile, given, read_bands, read_usable, shard_tile, shard_tiles
from catalog.strategies import Looks, Strategy, choose

__all__ = ["build_cube_shard", "create_season"]

_HELD_PIXELS = 160 * 512 * 512
# ^ of looks kept in memory: 160 chunks x 6 bands x 512 x 512 x 2 bytes = 500 MB; where the looks at
#   one chunk are more, it is composed in strips; where they are fewer, chunks are read together
_STORED_MIN, _STORED_MAX = 1, 65534

_Pixels = npt.NDArray[np.uint16]
_Mask = npt.NDArray[np.bool_]


@dataclass
class _Tally:
    """What is learnt about the scenes of a shard while its pixels are read."""

    faults: dict[str, SetAside] = field(default_factory=dict)
    """Scene id -> why it was set aside."""
    dark: dict[str, dict[Tile, DarkPixels]] = field(default_factory=dict)
    """Scene id -> tile -> how dark its clear pixels are; a tile that is read twice counts once."""
    clipped: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the looks of a season become one."""

    strategy: Strategy
    orders: GlacierOrders | None


def create_season(workspace: Workspace, season: str, grid: RegionGrid, *, sar: bool) -> None:
    """Create the cube's layers for one season, unless they are there already.

    Parameters
    ----------
    workspace
        Where.
    season
        Name of the season, for example ``2024``.
    grid
        The region's grid.
    sar
        Whether radar is asked for.
    """
    layers = ["optical", "date", "span", "observations", *(["sar"] if sar else [])]
    for layer in layers:
        create_layer(workspace, f"cube.zarr/{season}/{layer}", grid)


def build_cube_shard(
    workspace: Workspace,
    season: str,
    shard: Shard,
    *,
    optical: Sequence[Scene],
    sar: Sequence[Scene] | None,
    policy: AssetPolicy,
    strategy: Strategy = "least_snow",
    orders: GlacierOrders | None = None,
) -> Outcome:
    """Compose one shard of one season and write it.

    Parameters
    ----------
    workspace
        Where; the layers exist, see :func:`create_season`.
    season
        Name of the season.
    shard
        Which shard.
    optical
        The season's optical scenes, in any order; those elsewhere are passed over.
    sar
        The season's radar scenes, or None where radar is not asked for.
    policy
        Which rasters may be opened.
    strategy
        Which look is taken at each pixel, see :mod:`catalog.strategies`.
    orders
        In which order each glacier's looks are taken; for ``best_scene``.

    Returns
    -------
    Outcome
        ``facts``: ``composite``, ``optical_scenes``, ``looks``, ``scene_ids``, ``without_mask``,
        ``valid_fraction``, ``clipped`` (values at either end of what can be stored), and with
        radar ``sar_scenes``, ``sar_scene_ids``, ``sar_valid_fraction``.

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    StoreError
        Where the shard cannot be written.
    UsageError
        Where ``best_scene`` is asked for without orders.
    """
    if strategy == "best_scene" and orders is None:
        raise UsageError("best_scene needs the order of each glacier's looks: rank them first")
    plan = _Plan(strategy, orders)
    with OpenAssets(policy) as assets:
        layers, facts, faults = _without_faults(
            assets,
            scenes_over(optical, shard),
            lambda s, t: _compose(assets, shard, s, plan=plan, tally=t),
        )
        if sar is not None:
            radar, radar_facts, radar_faults = _without_faults(
                assets, scenes_over(sar, shard), lambda s, t: _average_sar(assets, shard, s, t)
            )
            layers, facts, faults = layers | radar, facts | radar_facts, faults + radar_faults
    outputs = {}
    for layer, values in layers.items():
        name = f"cube.zarr/{season}/{layer}"
        outputs[f"{name}/{shard.id}"] = write_shard(workspace, name, shard, values)
    return Outcome(outputs, tuple(sorted(faults)), facts)


_Layers = dict[str, npt.NDArray[Any]]
_Work = Callable[[list[Scene], _Tally], tuple[_Layers, dict[str, Any]]]


def _without_faults(
    assets: OpenAssets, scenes: list[Scene], work: _Work
) -> tuple[_Layers, dict[str, Any], list[SetAside]]:
    """Work on the scenes that are sound all over the shard, and name the others.

    A fault found half-way through means that the whole shard is worked again without that scene:
    what a shard shows must not depend on where in it the fault was met.
    """
    faults: dict[str, SetAside] = {}
    for scene in scenes:
        try:
            for band in scene.rasters:
                assets.dataset(band)
        except DataError as error:
            faults[scene.id] = SetAside(scene.id, error.kind, str(error))
    while True:
        tally = _Tally()
        layers, facts = work([scene for scene in scenes if scene.id not in faults], tally)
        if not tally.faults:
            return layers, facts, list(faults.values())
        faults |= tally.faults


def _compose(
    assets: OpenAssets, shard: Shard, scenes: list[Scene], *, plan: _Plan, tally: _Tally
) -> tuple[_Layers, dict[str, Any]]:
    looks = looks_of(scenes)
    n, whole = shard.grid.shard_px, shard_tile(shard)
    layers: _Layers = {
        "optical": np.zeros((len(OPTICAL_BANDS), n, n), np.uint16),
        "date": np.full((n, n), DATE_MISSING, np.int32),
        "span": np.full((n, n), 65535, np.uint16),
        "observations": np.zeros((n, n), np.uint8),
    }
    for tiles in _read_together(shard, len(looks)) if looks else ():
        for tile, found in _compose_tiles(assets, tiles, looks, plan=plan, tally=tally):
            rows, cols = tile.within(whole)
            for name, values in found.items():
                layers[name][..., rows, cols] = values
    for scene in scenes:
        if scene.sensor == "sentinel-2-msi":  # only there the offset is a matter of the scene
            windows = tally.dark.get(scene.id, {}).values()
            wrong = judge_offset(scene, windows, resolution_m=shard.grid.resolution_m)
            if wrong:
                tally.faults[scene.id] = SetAside(scene.id, "radiometry-doubtful", wrong)
    seen = layers["observations"] > 0
    facts = {
        "composite": plan.strategy,
        "optical_scenes": len(scenes),
        "scene_ids": sorted(scene.id for scene in scenes),
        "looks": len(looks),
        "without_mask": sorted(scene.id for scene in scenes if not scene.masks),
        "valid_fraction": round(float(seen.mean()), 6),
        "clipped": tally.clipped,
    }
    return layers, facts


def _read_together(shard: Shard, looks: int) -> Iterator[list[Tile]]:
    """Cut a shard into groups of tiles of which all looks fit into memory together.

    Blocks of rasters are larger than chunks: a day is read for several chunks before the next day
    is, so that its blocks are fetched and decoded once for all of them. Where the looks at one
    chunk are too many, it is cut into strips.
    """
    tiles, side = shard_tiles(shard), shard.grid.shard_px // shard.grid.chunk_px
    held = _HELD_PIXELS // shard.grid.chunk_px**2
    if looks > held:
        height = max(1, _HELD_PIXELS // (looks * shard.grid.chunk_px))
        for tile in tiles:
            for top in range(0, tile.height, height):
                rows = min(height, tile.height - top)
                yield [replace(tile, row=tile.row + top, height=rows)]
        return
    together = held // max(1, looks)
    together -= together % side if together > side else 0
    # ^ whole rows, where there is room for one
    for start in range(0, len(tiles), together):
        yield tiles[start : start + together]


def _compose_tiles(
    assets: OpenAssets,
    tiles: list[Tile],
    looks: list[list[Scene]],
    *,
    plan: _Plan,
    tally: _Tally,
) -> Iterator[tuple[Tile, _Layers]]:
    """Compose tiles that are read together."""
    days = np.array([look[0].day for look in looks], np.int32)
    found = [
        Looks(
            np.empty((len(looks), len(OPTICAL_BANDS), tile.height, tile.width), np.uint16),
            np.empty((len(looks), tile.height, tile.width), np.bool_),
            days,
        )
        for tile in tiles
    ]
    for index, scenes in enumerate(looks):
        for tile, seen in zip(tiles, found, strict=True):
            seen.pixels[index], seen.clear[index] = _mosaic(assets, tile, scenes, tally)
    for tile in tiles:
        seen = found.pop(0)
        order = None if plan.orders is None else plan.orders.on(tile, looks)
        chosen = choose(plan.strategy, seen, order)
        optical, count = chosen.pixels, seen.clear.sum(axis=0, dtype=np.int64)
        tally.clipped += int(np.count_nonzero((optical == _STORED_MIN) | (optical == _STORED_MAX)))
        yield (
            tile,
            {
                "optical": optical,
                "date": chosen.day,
                "span": _span(seen.clear, days),
                "observations": np.minimum(count, 255).astype(np.uint8),
            },
        )


def _span(seen: _Mask, days: npt.NDArray[np.int32]) -> npt.NDArray[np.uint16]:
    """Days between the first and the last clear look; looks are in order of time."""
    out = np.full(seen.shape[1:], 65535, np.uint16)
    if len(days):
        first, last = seen.argmax(axis=0), len(days) - 1 - seen[::-1].argmax(axis=0)
        spans = np.minimum(days[last] - days[first], 65534)
        out = np.where(seen.any(axis=0), spans, 65535).astype(np.uint16)
    return out


def _mosaic(
    assets: OpenAssets, tile: Tile, scenes: list[Scene], tally: _Tally
) -> tuple[_Pixels, _Mask]:
    """One day's look: stored reflectance ``(band, y, x)`` and where it is clear.

    Where granules of the day overlap, the first that is clear counts.
    """
    pixels = np.zeros((len(OPTICAL_BANDS), tile.height, tile.width), np.uint16)
    clear = np.zeros((tile.height, tile.width), np.bool_)
    for scene in scenes:
        if scene.id in tally.faults:
            continue
        try:
            new, usable = _read_scene(assets, tile, scene, tally)
        except DataError as error:
            tally.faults[scene.id] = SetAside(scene.id, error.kind, str(error))
            continue
        usable &= ~clear
        np.copyto(pixels, new, where=usable)
        clear |= usable
    return pixels, clear


def _read_scene(
    assets: OpenAssets, tile: Tile, scene: Scene, tally: _Tally
) -> tuple[_Pixels, _Mask]:
    by_role = {band.role: band for band in scene.bands}
    bands = [by_role[role] for role in OPTICAL_BANDS]
    raw = read_bands(assets, bands, tile, dtype=scene.dtype)
    there = given(raw)
    usable = np.asarray(there.all(axis=0), np.bool_)
    if not usable.any():
        return np.zeros(raw.shape, np.uint16), usable
    pixels = _stored(np.nan_to_num(raw, copy=False), bands)
    usable &= read_usable(assets, scene.masks, tile)
    tally.dark.setdefault(scene.id, {})[tile] = count_dark(
        pixels, usable, scale=OPTICAL_SCALE, offset=OPTICAL_OFFSET
    )
    return pixels, usable


def _stored(raw: npt.NDArray[Any], bands: Sequence[BandSource]) -> _Pixels:
    """Pixels as the store keeps them."""
    out = np.empty(raw.shape, np.uint16)
    for index, band in enumerate(bands):
        gain = round(band.scale / OPTICAL_SCALE, 9)
        shift = round((band.offset - OPTICAL_OFFSET) / OPTICAL_SCALE, 6)
        # ^ rounded, so that a scale of 0.0001 keeps whole numbers whole
        values = np.rint(raw[index] * gain + shift)
        out[index] = np.clip(values, _STORED_MIN, _STORED_MAX)
    return out


def _average_sar(
    assets: OpenAssets, shard: Shard, scenes: list[Scene], tally: _Tally
) -> tuple[_Layers, dict[str, Any]]:
    """Mean of the linear backscatter of all scenes, stored in dB."""
    n, whole = shard.grid.shard_px, shard_tile(shard)
    out = np.zeros((len(SAR_BANDS), n, n), np.uint16)
    for tile in shard_tiles(shard):
        rows, cols = tile.within(whole)
        out[:, rows, cols] = _average_sar_tile(assets, tile, scenes, tally)
    facts = {
        "sar_scenes": len(scenes),
        "sar_scene_ids": sorted(scene.id for scene in scenes),
        "sar_valid_fraction": round(float((out > 0).all(axis=0).mean()), 6),
    }
    return {"sar": out}, facts


def _average_sar_tile(
    assets: OpenAssets, tile: Tile, scenes: list[Scene], tally: _Tally
) -> _Pixels:
    total = np.zeros((len(SAR_BANDS), tile.height, tile.width), np.float64)
    count = np.zeros_like(total)
    for scene in scenes:
        if scene.id in tally.faults:
            continue
        by_role = {band.role: band for band in scene.bands}
        bands = [by_role[role] for role in SAR_BANDS]
        try:
            gamma = read_bands(assets, bands, tile, dtype="float32", within=(0, np.inf))
        except DataError as error:
            tally.faults[scene.id] = SetAside(scene.id, error.kind, str(error))
            continue
        valid = gamma > 0
        total += np.where(valid, gamma, 0)
        count += valid
    valid = count > 0
    mean = np.divide(total, count, out=np.ones_like(total), where=valid)
    stored = np.rint((10 * np.log10(mean) - SAR_OFFSET_DB) / SAR_SCALE_DB)
    return np.where(valid, np.clip(stored, _STORED_MIN, _STORED_MAX), 0).astype(np.uint16)
