"""Lattices: rasters whose pixels continue one another's, so that they are read as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catalog.assets import OpenAssets
from catalog.scenes import BandSource

__all__ = ["join_lattices"]


def join_lattices(assets: OpenAssets, bands: Sequence[BandSource]) -> list[list[BandSource]]:
    """Rasters that are neighbours on one lattice of pixels and mean the same, together.

    Parameters
    ----------
    assets
        The task's open rasters.
    bands
        In the order in which they count where they overlap, which is kept.

    Returns
    -------
    list
        Groups that :func:`catalog.stacks.read_bands` takes in the place of one band.

    Raises
    ------
    DataError, SourceError
        As :meth:`catalog.assets.OpenAssets.dataset`.
    """
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
