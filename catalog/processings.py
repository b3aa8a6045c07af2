"""Processings: of several versions of one acquisition, which one counts. Pure, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from catalog.errors import SetAside
from catalog.scenes import Scene

__all__ = ["landsat_processed", "newest_processings", "tile_of"]

_LANDSAT_PRODUCT = re.compile(r"(L[A-Z]\d\d)_L2S[PR]_(\d{6})_(\d{8})_(\d{8})_\d\d_(RT|T1|T2)")
# ^ satellite, path and row, day of acquisition, day of processing and tier in the identifier of a
#   Collection 2 product (USGS LSDS-1619); catalogues leave the day of processing out of their item
#   ids, so it is read from the names of the files
_LANDSAT_PLACE = re.compile(r"L[A-Z]\d\d_L2S[PR]_(\d{6})_\d{8}_")
_TIERS = ("RT", "T2", "T1")


class _Version(NamedTuple):
    """One processing of an acquisition: the larger, the newer."""

    number: float
    """Processing baseline of Sentinel-2, day of processing of Landsat."""
    tier: int = 0

    def __str__(self) -> str:
        return f"{self.number:05.2f}" if self.number < 100 else f"{self.number:.0f}"


def newest_processings(scenes: Iterable[Scene]) -> tuple[list[Scene], list[SetAside]]:
    """Of several processings of one acquisition of one tile keep the newest.

    Sentinel-2 scenes are told apart by their processing baseline, Landsat scenes by the day they
    were processed and then by their tier. Scenes that are equally new are all kept.

    Returns
    -------
    kept
        Scenes in the order given.
    superseded
        One fault for each that is not kept; it names both.
    """
    versions = [(scene, *_version(scene)) for scene in scenes]
    best: dict[str, tuple[_Version, str]] = {}
    for scene, granule, version in versions:
        if version > best.setdefault(granule, (version, scene.id))[0]:
            best[granule] = version, scene.id
    kept, superseded = [], []
    for scene, granule, version in versions:
        newest, other = best[granule]
        if granule and version < newest:
            reason = f"processing {version}; {other} is the same granule with {newest}"
            superseded.append(SetAside(scene.id, "superseded", reason))
        else:
            kept.append(scene)
    return kept, superseded


def _version(scene: Scene) -> tuple[str, _Version]:
    """Name that all processings of the acquisition share, empty where unknown, and which it is."""
    for name in (scene.id, *(band.href for band in scene.bands[:1])):
        product = _LANDSAT_PRODUCT.search(name)
        if product:
            satellite, place, day, processed, tier = product.groups()
            return f"{satellite}/{place}/{day}", _Version(float(processed), _TIERS.index(tier))
    return scene.granule, _Version(float(scene.baseline or 0))


def landsat_processed(href: str) -> str | None:
    """Day on which a Landsat file was processed, ``YYYYMMDD``; None where its name does not say."""
    product = _LANDSAT_PRODUCT.search(href)
    return product[4] if product else None


def tile_of(scene: Scene) -> str:
    """MGRS tile of a Sentinel-2 scene, path and row of a Landsat scene; empty where unknown."""
    named = scene.granule.rpartition("/")[2]
    if named or not scene.sensor.startswith("landsat"):
        return named
    for name in (scene.id, *(band.href for band in scene.bands[:1])):
        place = _LANDSAT_PLACE.search(name)
        if place:
            return place[1]
    return ""
