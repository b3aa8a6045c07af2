"""Candidates: the looks of a season at each glacier, measured on a coarse grid and ranked.

The one law: what is told of a glacier depends on its outline, its neighbours and the scenes, never
on the order of the scenes or on which glaciers are measured together.

A look is all granules that one sensor took on one day. Pixels are read on a lattice of chunks that
is fixed to the region, and each glacier adds up its own; a scene that cannot be read over one of a
glacier's chunks is left out for that glacier altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from catalog.assets import AssetPolicy, OpenAssets
from catalog.errors import DataError, SetAside
from catalog.grid import LonLatBox, RegionGrid, lonlat_boxes
from catalog.looks import looks_of
from catalog.ranking import (
    COMPONENTS,
    broadband_albedo,
    days_from_ablation_end,
    is_cloud,
    is_snow,
    rank,
)
from catalog.scenes import Scene, boxes_meet
from catalog.stacks import Tile, given, read_bands, read_usable
from catalog.surroundings import Chunk, coarse_grid, glacier_chunks, glacier_windows

__all__ = [
    "RANKING_SCHEMA",
    "Ranking",
    "ShadowOf",
    "rank_looks",
    "read_look",
]

ShadowOf = Callable[[Tile, Scene], npt.NDArray[np.bool_]]
"""Where a tile lies in shadow when a scene is taken, ``(y, x)``."""

RANKING_SCHEMA = pa.schema(
    [
        ("ref_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float64()),
        ("day", pa.string()),
        ("sensor", pa.string()),
        ("scene_ids", pa.list_(pa.string())),
        *((name, pa.float64()) for name in COMPONENTS),
        ("has_mask", pa.bool_()),
    ]
)
"""Columns of a ranking, one row a glacier and look; see :data:`catalog.ranking.COMPONENTS`.
``has_mask`` tells whether all its scenes bring a cloud mask; otherwise cloud is judged by colour.
"""

_LAYERS = ("valid", "clear", "fair", "snow", "albedo", "shadow")
_ROLES = ("green", "nir", "swir1")
_DECIMALS = 6
_MASK_M = 20.0
# ^ pixels of the Sentinel-2 scene classification; Landsat's have 30 m

_Mask = npt.NDArray[np.bool_]
_Sums = npt.NDArray[np.float64]
_Banned = frozenset[str]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranked looks of some glaciers, and what could not be used."""

    frame: pd.DataFrame
    """Columns of :data:`RANKING_SCHEMA`, ordered by ``ref_id`` and ``rank``."""
    set_aside: tuple[SetAside, ...]


def rank_looks(
    outlines: gpd.GeoDataFrame,
    *,
    others: gpd.GeoDataFrame,
    grid: RegionGrid,
    scenes: Sequence[Scene],
    policy: AssetPolicy,
    shadow: ShadowOf | None = None,
) -> Ranking:
    """Measure every look of a season at every glacier, and rank each glacier's looks.

    Parameters
    ----------
    outlines
        The glaciers: columns ``ref_id`` and ``geometry``, EPSG:4326.
    others
        All glaciers nearby, with the same columns (:func:`catalog.surroundings.neighbours`): the
        ring around a glacier lies outside of them. May hold those of ``outlines`` too.
    grid
        The region's grid; pixels of about 60 m are read in its projection.
    scenes
        Optical scenes of one season, in any order.
    policy
        Which rasters may be opened.
    shadow
        Tells which pixels lie in shadow, where that is known; those count neither for albedo nor
        for snow.

    Returns
    -------
    Ranking
        One row for each glacier and look whose box meets the surroundings of the glacier.

    Raises
    ------
    SourceError
        Where a source cannot be reached.

    Notes
    -----
    A scene's overviews are read where they are fine enough, so damage that only its full pixels
    have is not seen here. A look is in memory one chunk at a time.
    """
    outlines = outlines.sort_values("ref_id", kind="stable").reset_index(drop=True)
    coarse = coarse_grid(grid)
    windows = glacier_windows(outlines, coarse).values()
    boxes = [lonlat_boxes(window.bounds, coarse) for window in windows]
    chunks = glacier_chunks(outlines, others, coarse)
    size = np.zeros((2, len(outlines)))
    for chunk in chunks:
        size += [chunk.inside.sum(axis=1), chunk.around.sum(axis=1)]
    latitudes = outlines.geometry.representative_point().y.to_numpy()
    rows: list[pd.DataFrame] = []
    faults: dict[str, SetAside] = {}
    for look in looks_of(scenes):
        near = [scene for scene in look if any(_meets(scene, b) for b in boxes)]
        if not near:
            continue
        lit = all(s.sun_elevation is not None and s.sun_azimuth is not None for s in near)
        here = shadow if lit else None
        with OpenAssets(policy) as assets:
            # ^ one a look, so that the number of open rasters has a bound
            sums, banned = _measure(assets, near, chunks, shadow=here, faults=faults)
        used = [
            [s for s in near if s.id not in b and _meets(s, box)]
            for b, box in zip(banned, boxes, strict=True)
        ]
        found = _rows(outlines["ref_id"], latitudes, look=used, sums=sums, size=size)
        rows.append(found.assign(shadow=np.nan) if here is None else found)
    frame = pd.concat(rows, ignore_index=True) if rows else _rows_of_nothing()
    ranked = rank(frame)[RANKING_SCHEMA.names]
    return Ranking(ranked, tuple(sorted(faults.values())))


def _meets(scene: Scene, boxes: list[LonLatBox]) -> bool:
    return any(boxes_meet(scene.bbox, box) for box in boxes)


def _measure(
    assets: OpenAssets,
    look: Sequence[Scene],
    chunks: Sequence[Chunk],
    *,
    shadow: ShadowOf | None,
    faults: dict[str, SetAside],
) -> tuple[_Sums, list[_Banned]]:
    """Add up a look over each glacier and its ring.

    Returns
    -------
    ``(2, glacier, layer)`` sums over the glacier and over the ring, and for each glacier the ids of
    the scenes that could not be read over it, which the sums leave out
    """
    count = chunks[0].inside.shape[0]
    sums = np.zeros((2, count, len(_LAYERS)))
    banned: list[_Banned] = [frozenset()] * count
    waiting = set(range(count))
    while waiting:
        without = min((banned[g] for g in waiting), key=sorted)
        group = np.array(sorted(g for g in waiting if banned[g] == without))
        scenes = [scene for scene in look if scene.id not in without]
        total, spoilt = _add_up(assets, scenes, chunks, group, shadow=shadow, faults=faults)
        for glacier in group.tolist():
            if spoilt[glacier]:
                banned[glacier] |= spoilt[glacier]
            else:
                sums[:, glacier] = total[:, glacier]
                waiting.discard(glacier)
    return sums, banned


def _add_up(
    assets: OpenAssets,
    scenes: Sequence[Scene],
    chunks: Sequence[Chunk],
    group: npt.NDArray[np.int64],
    *,
    shadow: ShadowOf | None,
    faults: dict[str, SetAside],
) -> tuple[_Sums, list[_Banned]]:
    """Sums over the chunks of a group of glaciers, and the scenes found faulty over each."""
    count = chunks[0].inside.shape[0]
    sums = np.zeros((2, count, len(_LAYERS)))
    spoilt: list[_Banned] = [frozenset()] * count
    for chunk in chunks:
        if not np.isin(chunk.glaciers, group).any():
            continue
        here = [scene for scene in scenes if _meets(scene, chunk.boxes)]
        layers, broken = _mosaic(assets, here, chunk.tile, shadow=shadow)
        sums[0] += chunk.inside @ layers
        sums[1] += chunk.around @ layers
        for fault in broken:
            faults[fault.what] = fault
        for glacier in chunk.glaciers.tolist() if broken else ():
            spoilt[glacier] |= {fault.what for fault in broken}
    return sums, spoilt


def _mosaic(
    assets: OpenAssets, scenes: Sequence[Scene], tile: Tile, *, shadow: ShadowOf | None
) -> tuple[_Sums, list[SetAside]]:
    """One look at a tile, ``(pixel, layer)``, and the scenes that cannot be read there.

    Where granules overlap the first that is clear counts, else the first that sees anything.
    """
    layers = np.zeros((len(_LAYERS), tile.height, tile.width))
    broken = []
    for scene in scenes:
        try:
            pixels, valid, clear = _read_scene(assets, scene, tile)
        except DataError as error:
            broken.append(SetAside(scene.id, error.kind, str(error)))
            continue
        if not valid.any():
            continue
        shaded = np.zeros_like(valid) if shadow is None else shadow(tile, scene) & valid
        fair = clear & ~shaded
        green, nir, _ = pixels
        albedo = np.where(fair, broadband_albedo(green, nir), 0.0)
        new = np.stack([valid, clear, fair, is_snow(*pixels) & fair, albedo, shaded])
        better = (clear & (layers[1] == 0)) | (valid & (layers[0] == 0))
        np.copyto(layers, new, where=better)
    return layers.reshape(len(_LAYERS), -1).T, broken


def _read_scene(
    assets: OpenAssets, scene: Scene, tile: Tile
) -> tuple[npt.NDArray[np.float32], _Mask, _Mask]:
    """Reflectance of the bands that are judged, where the scene sees the ground, where clearly."""
    pixels, valid = _reflectance(assets, scene, tile, _ROLES)
    if not valid.any():
        return pixels, valid, valid
    if not scene.masks:
        return pixels, valid, valid & ~is_cloud(*pixels)
    return pixels, valid, valid & _mostly_usable(assets, scene, tile)


def _mostly_usable(assets: OpenAssets, scene: Scene, tile: Tile) -> _Mask:
    """Where more than half of a pixel is usable, by its masks in pixels near their own size.

    A mask says where a cloud's rim begins, and growing that by coarse pixels would hide much more
    than a composite leaves out.
    """
    n = max(1, round(tile.grid.resolution_m / _MASK_M))
    grid = replace(
        tile.grid,
        resolution_m=tile.grid.resolution_m / n,
        shard_px=tile.grid.shard_px * n,
        chunk_px=tile.grid.chunk_px * n,
    )
    fine = Tile(grid, tile.row * n, tile.col * n, tile.height * n, tile.width * n)
    usable = read_usable(assets, scene.masks, fine)
    share = usable.reshape(tile.height, n, tile.width, n).mean(axis=(1, 3))
    return np.asarray(share > 0.5, bool)


def _reflectance(
    assets: OpenAssets, scene: Scene, tile: Tile, roles: Sequence[str]
) -> tuple[npt.NDArray[np.float32], _Mask]:
    by_role = {band.role: band for band in scene.bands}
    bands = [by_role[role] for role in roles]
    raw = read_bands(assets, bands, tile, dtype=scene.dtype, overviews=True)
    scale, offset = (
        np.array([getattr(band, name) for band in bands], np.float32)[:, None, None]
        for name in ("scale", "offset")
    )
    return (raw * scale + offset).astype(np.float32), np.asarray(given(raw).all(axis=0), np.bool_)


def read_look(
    scenes: Sequence[Scene], tile: Tile, roles: Sequence[str], *, policy: AssetPolicy
) -> tuple[npt.NDArray[np.float32], _Mask]:
    """Read bands of one look, and where it is clear, for a picture of it.

    Parameters
    ----------
    scenes
        The granules of the look; where they overlap the first that is clear counts.
    tile
        Which pixels.
    roles
        Bands, for example ``("swir1", "nir", "red")``.
    policy
        Which rasters may be opened.

    Returns
    -------
    ``(band, y, x)`` float32 surface reflectance, NaN where nothing was seen; ``(y, x)`` bool

    Raises
    ------
    DataError, SourceError
        As :meth:`catalog.assets.OpenAssets.read`.
    """
    out = np.full((len(roles), tile.height, tile.width), np.nan, np.float32)
    seen = np.zeros(out.shape[1:], bool)
    with OpenAssets(policy) as assets:
        for scene in sorted(scenes, key=lambda s: (s.datetime, s.id)):
            pixels, valid = _reflectance(assets, scene, tile, roles)
            _, _, clear = _read_scene(assets, scene, tile)
            better = (valid & np.isnan(out[0])) | (valid & clear & ~seen)
            np.copyto(out, pixels, where=better)
            seen |= clear & valid
    return out, seen


def _rows(
    ref_ids: pd.Series,
    latitudes: npt.NDArray[np.float64],
    *,
    look: list[list[Scene]],
    sums: _Sums,
    size: _Sums,
) -> pd.DataFrame:
    """One row for each glacier that has scenes in a look."""
    has = np.array([bool(scenes) for scenes in look])
    if not has.any():
        return _rows_of_nothing()
    looked = [scenes for scenes in look if scenes]
    first = looked[0][0]
    day = date.fromisoformat(first.datetime[:10])
    on, around = (dict(zip(_LAYERS, layer[has].T, strict=True)) for layer in sums)
    columns = {
        "coverage": on["valid"] / size[0][has],
        "cloud": _share(on["valid"] - on["clear"], on["valid"]),
        "hidden_around": 1.0 - _share(around["clear"], size[1][has]),
        "snow_around": _share(around["snow"], around["fair"]),
        "albedo": _share(on["albedo"], on["fair"]),
        "season_days": [days_from_ablation_end(day, lat) for lat in latitudes[has]],
        "shadow": _share(on["shadow"], on["valid"]),
        "sun_elevation": [_mean([s.sun_elevation for s in scenes]) for scenes in looked],
    }
    values = {name: np.round(columns[name], _DECIMALS) for name in COMPONENTS}
    return pd.DataFrame(
        {
            "ref_id": ref_ids[has].astype(str),
            "day": day.isoformat(),
            "sensor": first.sensor,
            "scene_ids": [sorted(s.id for s in scenes) for scenes in looked],
            **values,
            "has_mask": [all(s.masks for s in scenes) for scenes in looked],
        }
    )


def _rows_of_nothing() -> pd.DataFrame:
    frame: pd.DataFrame = RANKING_SCHEMA.empty_table().to_pandas()
    return frame.drop(columns=["rank", "score"])


def _share(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> _Sums:
    out = np.full(part.shape, np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")
