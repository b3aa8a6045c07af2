"""Terrain: what the elevation model says about each pixel.

The one law: a hole in the elevation model stays a hole, in every band.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from catalog.assets import AssetPolicy, OpenAssets
from catalog.cube import (
    TERRAIN_BANDS,
    Outcome,
    Workspace,
    create_layer,
    terrain_name,
    write_shard,
)
from catalog.errors import DataError, SetAside
from catalog.grid import RegionGrid, Shard
from catalog.lattices import join_lattices
from catalog.looks import scenes_over
from catalog.sensors import Scene
from catalog.stacks import read_bands, shard_tiles

__all__ = ["build_terrain_shard", "create_terrain", "describe_terrain", "terrain_halo"]

_RGI_NAMES = {
    "cop-dem-glo-30": "COPDEM30",
    "cop-dem-glo-90": "COPDEM90",
    "nasadem": "NASADEM",
}
_BOX_M = 1000.0
_SIGMA_M = 30.0
_TRUNCATE = 4.0
_PLAUSIBLE_M = (-500.0, 9000.0)
# ^ beyond these there is no land: fill values that no field announced

_Elevation = npt.NDArray[np.float64]


def create_terrain(
    workspace: Workspace, grid: RegionGrid, *, collections: Sequence[str] = ()
) -> None:
    """Create the terrain layer, unless it is there already.

    Parameters
    ----------
    workspace, grid
        Where, and on which pixels.
    collections
        Elevation collections it will be made of; kept as the array's attribute ``dem_source``, in
        the names of RGI 7.0 where there is one.
    """
    source = "+".join(_RGI_NAMES.get(name, name) for name in collections)
    create_layer(workspace, terrain_name(grid), grid, attributes={"dem_source": source})


def build_terrain_shard(
    workspace: Workspace, shard: Shard, *, dem: Sequence[Scene], policy: AssetPolicy
) -> Outcome:
    """Read the elevation of one shard, derive the terrain bands and write them.

    Parameters
    ----------
    workspace
        Where; the layer exists, see :func:`create_terrain`.
    shard
        Which shard.
    dem
        The elevation model's scenes in any order; those elsewhere are passed over. Where they
        overlap, the first by id counts.
    policy
        Which rasters may be opened.

    Returns
    -------
    Outcome
        ``facts``: ``dem_scenes``, ``dem_scene_ids``, ``valid_fraction``.

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    StoreError
        Where the shard cannot be written.
    """
    halo = terrain_halo(shard.grid.resolution_m)
    scenes = sorted(scenes_over(dem, shard), key=lambda scene: scene.id)
    with OpenAssets(policy) as assets:
        sound, faults = _readable(assets, scenes, shard, halo=halo)
        elevation = _elevation(assets, shard, sound, halo=halo)
    bands = describe_terrain(elevation, resolution_m=shard.grid.resolution_m)
    name = terrain_name(shard.grid)
    checksum = write_shard(workspace, name, shard, bands)
    facts = {
        "dem_scenes": len(sound),
        "dem_scene_ids": [scene.id for scene in sound],
        "valid_fraction": round(float(np.isfinite(bands[0]).mean()), 6),
    }
    return Outcome({f"{name}/{shard.id}": checksum}, tuple(sorted(faults)), facts)


def _readable(
    assets: OpenAssets, scenes: list[Scene], shard: Shard, *, halo: int
) -> tuple[list[Scene], list[SetAside]]:
    """Scenes all of whose pixels near the shard can be read, and the others by name."""
    sound, faults = [], []
    for scene in scenes:
        try:
            for tile in shard_tiles(shard, halo=halo):
                read_bands(assets, scene.bands, tile, dtype="float32")
        except DataError as error:
            faults.append(SetAside(scene.id, error.kind, str(error)))
        else:
            sound.append(scene)
    return sound, faults


def terrain_halo(resolution_m: float) -> int:
    """Pixels around a window that :func:`describe_terrain` must see so that no seam shows."""
    return max(_box_radius(resolution_m), math.ceil(_TRUNCATE * _SIGMA_M / resolution_m) + 1) + 1


def _box_radius(resolution_m: float) -> int:
    return max(1, round(_BOX_M / resolution_m / 2))


def _elevation(assets: OpenAssets, shard: Shard, scenes: list[Scene], *, halo: int) -> _Elevation:
    """Elevation of the shard and its halo."""
    n = shard.grid.shard_px + 2 * halo
    row0, col0 = (side.start - halo for side in shard.window)
    out = np.full((n, n), np.nan, np.float64)
    lattices = join_lattices(assets, [scene.bands[0] for scene in scenes])
    for tile in shard_tiles(shard, halo=halo):
        values = np.full((tile.height, tile.width), np.nan, np.float32)
        for bands in lattices:
            new = read_bands(assets, [bands], tile, dtype="float32", within=_PLAUSIBLE_M)[0]
            np.copyto(values, new, where=np.isnan(values))
        top, left = tile.row - row0, tile.col - col0
        rows = slice(max(top, 0), min(top + tile.height, n))
        cols = slice(max(left, 0), min(left + tile.width, n))
        out[rows, cols] = values[
            rows.start - top : rows.stop - top, cols.start - left : cols.stop - left
        ]
    return out


def describe_terrain(elevation: npt.ArrayLike, *, resolution_m: float) -> npt.NDArray[np.float32]:
    """Terrain bands from an elevation model.

    Parameters
    ----------
    elevation : ``(y, x)`` metres
        With :func:`terrain_halo` pixels on every side; NaN where it is not known.
    resolution_m
        Pixel edge in metres.

    Returns
    -------
    ``(band, y, x)`` float32, without the halo
        In the order of :data:`catalog.cube.TERRAIN_BANDS`: elevation in metres; slope in degrees
        after Horn (1981); elevation above the mean of a square kilometre around the pixel, metres;
        Laplacian of the elevation smoothed by a Gaussian of 30 m, in 1/(100 m), that is the change
        of slope over a hundred metres summed over both axes (positive in hollows).
    """
    z = np.asarray(elevation, np.float64)
    known = np.isfinite(z)
    bands = {
        "elevation": z,
        "slope": _slope(z, resolution_m),
        "relative_elevation": z - _box_mean(z, known, radius=_box_radius(resolution_m)),
        "curvature": _curvature(z, known, resolution_m),
    }
    halo = terrain_halo(resolution_m)
    inner = (slice(halo, -halo), slice(halo, -halo))
    out: npt.NDArray[np.float32] = np.stack(
        [np.where(known, bands[name], np.nan)[inner] for name in TERRAIN_BANDS]
    ).astype(np.float32)
    return out


def _slope(z: _Elevation, resolution_m: float) -> _Elevation:
    """Slope in degrees; NaN where one of the eight neighbours is."""
    across, along = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0])
    rise = [
        _correlate(_correlate(z, along, axis=1 - axis), across, axis=axis) / (8 * resolution_m)
        for axis in (0, 1)
    ]
    slope: _Elevation = np.degrees(np.arctan(np.hypot(*rise)))
    return slope


def _box_mean(z: _Elevation, known: npt.NDArray[np.bool_], *, radius: int) -> _Elevation:
    weights = np.ones(2 * radius + 1)
    return _weighted(z, known, [weights, weights])


def _curvature(z: _Elevation, known: npt.NDArray[np.bool_], resolution_m: float) -> _Elevation:
    sigma = _SIGMA_M / resolution_m
    reach = math.ceil(_TRUNCATE * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth = np.where(known, _weighted(z, known, [weights, weights]), np.nan)
    second = np.array([1.0, -2.0, 1.0]) / resolution_m**2
    bend: _Elevation = 100 * sum(_correlate(smooth, second, axis=axis) for axis in (0, 1))
    return bend


def _weighted(
    z: _Elevation, known: npt.NDArray[np.bool_], weights: Sequence[npt.NDArray[np.float64]]
) -> _Elevation:
    """Weighted mean over the known pixels of a separable window."""
    total, mass = np.where(known, z, 0.0), known.astype(np.float64)
    for axis, line in enumerate(weights):
        total, mass = _correlate(total, line, axis=axis), _correlate(mass, line, axis=axis)
    return np.divide(total, mass, out=np.full_like(total, np.nan), where=mass > 0)


def _correlate(values: _Elevation, weights: npt.NDArray[np.float64], *, axis: int) -> Any:
    # Not scipy's uniform_filter: its running sum makes a pixel depend on where the window begins.
    return ndimage.correlate1d(values, weights, axis=axis, mode="nearest")
