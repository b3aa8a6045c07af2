"""Lattices: rasters whose pixels continue one another's, so that they are read as one.

The one law: a raster that cannot be read somewhere in a shard is left out of all of that shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.assets import OpenAssets
from catalog.errors import DataError, SetAside
from catalog.grid import Shard
from catalog.scenes import BandSource
from catalog.stacks import read_bands, shard_tile, shard_tiles

__all__ = ["read_joined"]


def read_joined(
    assets: OpenAssets,
    rasters: Sequence[tuple[str, BandSource]],
    shard: Shard,
    *,
    limits: tuple[float, float],
    halo: int = 0,
) -> tuple[npt.NDArray[np.float32], list[str], list[SetAside]]:
    """Values of rasters of one quantity on the pixels of a shard.

    Parameters
    ----------
    assets
        The task's open rasters.
    rasters
        Name and raster; where they overlap, the first counts.
    shard
        Which shard.
    limits
        Values mean something between these two only, both excluded.
    halo
        Pixels around the shard that are read as well.

    Returns
    -------
    values : ``(y, x)`` float32
        Scale and offset applied; NaN where no raster has a value.
    sound
        Names of the rasters that could be read, in their order.
    faults
        The others.

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    """
    try:
        values = _joined(assets, [band for _, band in rasters], shard, limits, halo)
    except DataError:
        # Only now each is tried by itself, for that costs as much as reading them all.
        found = [_fault(assets, name, band, shard, halo) for name, band in rasters]
        sound = [raster for raster, fault in zip(rasters, found, strict=True) if fault is None]
        if len(sound) == len(rasters):
            raise
        values = _joined(assets, [band for _, band in sound], shard, limits, halo)
        return values, [name for name, _ in sound], [fault for fault in found if fault]
    return values, [name for name, _ in rasters], []


def _joined(
    assets: OpenAssets,
    bands: Sequence[BandSource],
    shard: Shard,
    limits: tuple[float, float],
    halo: int,
) -> npt.NDArray[np.float32]:
    lattices = _lattices(assets, bands)
    whole = shard_tile(shard, halo=halo)
    out = np.full((whole.height, whole.width), np.nan, np.float32)
    for tile in shard_tiles(shard, halo=halo):
        values = np.full((tile.height, tile.width), np.nan, np.float32)
        for group in lattices:
            scale, offset = group[0].scale, group[0].offset
            low, high = sorted((limit - offset) / scale for limit in limits)
            (new,) = read_bands(assets, [group], tile, dtype="float32", within=(low, high))
            np.copyto(values, new * scale + offset, where=np.isnan(values), casting="same_kind")
        shared = tile.overlap(whole)
        out[shared.within(whole)] = values[shared.within(tile)]
    return out


def _fault(
    assets: OpenAssets, name: str, band: BandSource, shard: Shard, halo: int
) -> SetAside | None:
    try:
        for tile in shard_tiles(shard, halo=halo):
            read_bands(assets, [band], tile, dtype="float32")
    except DataError as error:
        return SetAside(name, error.kind, str(error))
    return None


def _lattices(assets: OpenAssets, bands: Sequence[BandSource]) -> list[list[BandSource]]:
    """Rasters that are neighbours on one lattice and mean the same, in the place of one band."""
    groups: dict[tuple[Any, ...], list[BandSource]] = {}
    for band in bands:
        dataset = assets.dataset(band)
        step_x, step_y = dataset.transform.a, -dataset.transform.e
        phase = (dataset.transform.c / step_x % 1, dataset.transform.f / step_y % 1)
        key = (
            dataset.crs.to_wkt(),
            *(round(step, 12) for step in (step_x, step_y)),
            *(round(part, 2) % 1 for part in phase),
            band.scale,
            band.offset,
        )
        groups.setdefault(key, []).append(band)
    return list(groups.values())
