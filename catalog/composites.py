"""Composites: the looks of one season become one analysis-ready shard.

The one law: the result depends neither on the order of the scenes nor on how the region is cut
into shards, and a scene that cannot be trusted is set aside by name for the whole shard.

Strategy ``snow_free``: of the clear looks at a pixel, ordered by green reflectance, the one at the
30th percentile (nearest rank) is taken, all bands from that one look. Cloud that the mask missed
and seasonal snow are bright and lose; shadow that the mask missed is darkest and loses too wherever
there are four looks or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import groupby
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from catalog.assets import AssetPolicy, OpenAssets
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
from catalog.errors import DataError, SetAside
from catalog.grid import RegionGrid, Shard
from catalog.masks import MASK_DTYPES, MaskKind, mask_halo, usable_pixels
from catalog.sensors import BandSource, Scene, boxes_meet
from catalog.stacks import Tile, read_bands, shard_tiles

__all__ = ["build_cube_shard", "create_season", "scenes_over"]

_PERCENTILE = 30
_GREEN = OPTICAL_BANDS.index("green")
_HELD_LOOKS = 64
# ^ looks of one chunk kept in memory: 64 x 6 bands x 512 x 512 x 2 bytes = 200 MB; where there are
#   more, those that are taken are read twice
_STORED_MIN, _STORED_MAX = 1, 65534
_DOUBTFUL_REFLECTANCE = -0.04
_DOUBTFUL_FRACTION = 0.05
# ^ darker than nothing in one pixel of twenty: the offset was taken off twice
_DOUBTFUL_PIXELS = 1000
_EPOCH = date(1970, 1, 1)

_Pixels = npt.NDArray[np.uint16]
_Mask = npt.NDArray[np.bool_]


@dataclass
class _Tally:
    """What is learnt about the scenes of a shard while its pixels are read."""

    faults: dict[str, SetAside] = field(default_factory=dict)
    """Scene id -> why it was set aside."""
    valid: dict[str, int] = field(default_factory=dict)
    """Scene id -> number of valid pixels."""
    dark: dict[str, int] = field(default_factory=dict)
    """Scene id -> number of pixels darker than any surface."""
    clipped: int = 0


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

    Returns
    -------
    Outcome
        ``facts``: ``optical_scenes``, ``looks``, ``scene_ids``, ``without_mask``,
        ``valid_fraction``, ``clipped`` (values at either end of what can be stored), and with
        radar ``sar_scenes``, ``sar_scene_ids``, ``sar_valid_fraction``.

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    StoreError
        Where the shard cannot be written.
    """
    with OpenAssets(policy) as assets:
        layers, facts, faults = _without_faults(
            assets, scenes_over(optical, shard), lambda s, t: _compose(assets, shard, s, t)
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


def scenes_over(scenes: Sequence[Scene], shard: Shard) -> list[Scene]:
    """Scenes whose box meets the shard, each once, ordered by time and id."""
    boxes = shard.lonlat_boxes
    found = {
        (scene.datetime, scene.id, scene.collection): scene
        for scene in scenes
        if any(boxes_meet(scene.bbox, box) for box in boxes)
    }
    return [found[key] for key in sorted(found)]


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
    assets: OpenAssets, shard: Shard, scenes: list[Scene], tally: _Tally
) -> tuple[_Layers, dict[str, Any]]:
    looks = [list(group) for _, group in groupby(scenes, key=lambda scene: scene.datetime[:10])]
    n = shard.grid.shard_px
    layers: _Layers = {
        "optical": np.zeros((len(OPTICAL_BANDS), n, n), np.uint16),
        "date": np.full((n, n), DATE_MISSING, np.int32),
        "span": np.full((n, n), 65535, np.uint16),
        "observations": np.zeros((n, n), np.uint8),
    }
    days = np.array([_day(look[0]) for look in looks], np.int32)
    for tile in shard_tiles(shard):
        rows, cols = _place(shard, tile)
        for name, values in _compose_tile(assets, tile, looks, days, tally).items():
            layers[name][..., rows, cols] = values
    for scene in scenes:
        if scene.sensor == "sentinel-2-msi":  # only there the offset is a matter of the scene
            _judge_radiometry(scene, tally)
    seen = layers["observations"] > 0
    facts = {
        "optical_scenes": len(scenes),
        "scene_ids": sorted(scene.id for scene in scenes),
        "looks": len(looks),
        "without_mask": sorted(scene.id for scene in scenes if scene.mask is None),
        "valid_fraction": round(float(seen.mean()), 6),
        "clipped": tally.clipped,
    }
    return layers, facts


def _place(shard: Shard, tile: Tile) -> tuple[slice, slice]:
    row, col = tile.row - shard.window[0].start, tile.col - shard.window[1].start
    return slice(row, row + tile.height), slice(col, col + tile.width)


def _day(scene: Scene) -> int:
    return (date.fromisoformat(scene.datetime[:10]) - _EPOCH).days


def _compose_tile(
    assets: OpenAssets,
    tile: Tile,
    looks: list[list[Scene]],
    days: npt.NDArray[np.int32],
    tally: _Tally,
) -> _Layers:
    shape = (tile.height, tile.width)
    looked = lru_cache(maxsize=_HELD_LOOKS)(lambda i: _mosaic(assets, tile, looks[i], tally))
    keys = np.full((len(looks), *shape), 2**32 - 1, np.uint32)
    for index in range(len(looks)):
        pixels, clear = looked(index)
        keys[index][clear] = (pixels[_GREEN][clear].astype(np.uint32) << 16) | index
    # ^ brightness first, then date: equal brightness has one order
    seen = keys != 2**32 - 1
    count = seen.sum(axis=0, dtype=np.int64)
    keys.sort(axis=0)
    chosen = _choose(keys, count)
    layers: _Layers = {
        "optical": np.zeros((len(OPTICAL_BANDS), *shape), np.uint16),
        "date": np.full(shape, DATE_MISSING, np.int32),
        "span": _span(seen, days),
        "observations": np.minimum(count, 255).astype(np.uint8),
    }
    for index in np.unique(chosen[chosen >= 0]).tolist():
        pixels, _ = looked(index)
        here = chosen == index
        layers["optical"][:, here] = pixels[:, here]
        layers["date"][here] = days[index]
    optical = layers["optical"]
    tally.clipped += int(np.count_nonzero((optical == _STORED_MIN) | (optical == _STORED_MAX)))
    return layers


def _choose(keys: npt.NDArray[np.uint32], count: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Index of the look to take at each pixel, -1 where there is none."""
    if not len(keys):
        return np.full(count.shape, -1, np.int64)
    rank = np.maximum(-(-count * _PERCENTILE // 100) - 1, 0)
    key = np.take_along_axis(keys, rank[np.newaxis], axis=0)[0]
    return np.where(count > 0, (key & 0xFFFF).astype(np.int64), -1)


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
    raw = read_bands(assets, bands, tile, dtype="uint16")
    usable: _Mask = (raw != 0).all(axis=0)
    if not usable.any():
        return raw, usable
    pixels, dark = _stored(raw, bands)
    tally.valid[scene.id] = tally.valid.get(scene.id, 0) + int(np.count_nonzero(usable))
    tally.dark[scene.id] = tally.dark.get(scene.id, 0) + int(np.count_nonzero(dark & usable))
    if scene.mask is not None:
        size = tile.grid.resolution_m
        wide = tile.widened(mask_halo(size))
        kind = cast(MaskKind, scene.mask.role)
        dtype = MASK_DTYPES[kind]
        (classes,) = read_bands(assets, [scene.mask], wide, dtype=dtype, categories=True)
        usable &= usable_pixels(classes, resolution_m=size, kind=kind)
    return pixels, usable


def _stored(raw: _Pixels, bands: Sequence[BandSource]) -> tuple[_Pixels, _Mask]:
    """Pixels as the store keeps them, and where one is darker than any surface can be."""
    out = np.empty_like(raw)
    dark = np.zeros(raw.shape[1:], np.bool_)
    limit = round((_DOUBTFUL_REFLECTANCE - OPTICAL_OFFSET) / OPTICAL_SCALE)
    for index, band in enumerate(bands):
        gain = round(band.scale / OPTICAL_SCALE, 9)
        shift = round((band.offset - OPTICAL_OFFSET) / OPTICAL_SCALE, 6)
        # ^ rounded, so that a scale of 0.0001 keeps whole numbers whole
        values = np.rint(raw[index] * gain + shift)
        out[index] = np.clip(values, _STORED_MIN, _STORED_MAX)
        dark |= values < limit
    return out, dark


def _judge_radiometry(scene: Scene, tally: _Tally) -> None:
    """Set a scene aside whose pixels say that the catalogue's offset flag is wrong."""
    valid, dark = tally.valid.get(scene.id, 0), tally.dark.get(scene.id, 0)
    if valid >= _DOUBTFUL_PIXELS and dark > _DOUBTFUL_FRACTION * valid:
        tally.faults[scene.id] = SetAside(
            scene.id,
            "radiometry-doubtful",
            f"{dark / valid:.0%} of its pixels have a reflectance below {_DOUBTFUL_REFLECTANCE}, "
            "expected hardly any: the offset was already taken off",
        )


def _average_sar(
    assets: OpenAssets, shard: Shard, scenes: list[Scene], tally: _Tally
) -> tuple[_Layers, dict[str, Any]]:
    """Mean of the linear backscatter of all scenes, stored in dB."""
    n = shard.grid.shard_px
    out = np.zeros((len(SAR_BANDS), n, n), np.uint16)
    for tile in shard_tiles(shard):
        rows, cols = _place(shard, tile)
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
