"""Terrain: what the elevation model says about each pixel.

The one law: a hole in the elevation model stays a hole, in every band. That goes for the sea too:
where the product has no tile nothing tells open sea from a tile that was lost, so no sea level is
made up, and every degree cell without a tile is reported by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
from catalog.errors import SetAside
from catalog.grid import RegionGrid, Shard, convergence
from catalog.lattices import read_joined
from catalog.looks import scenes_over
from catalog.scenes import Scene, lon_spans

__all__ = ["build_terrain_shard", "create_terrain", "describe_terrain", "terrain_halo"]

_RGI_NAMES = {
    "cop-dem-glo-30": "COPDEM30",
    "cop-dem-glo-90": "COPDEM90",
    "nasadem": "NASADEM",
}
_ACQUIRED = {
    "cop-dem-glo-30": "2010-12/2015-01",
    "cop-dem-glo-90": "2010-12/2015-01",
    "nasadem": "2000-02-11/2000-02-22",
}
# ^ when the radars of TanDEM-X (Copernicus DEM Product Handbook; TanDEM-X 90 m DEM data guide of
#   the German Aerospace Center) and of the Shuttle Radar Topography Mission (NASADEM User Guide)
#   saw the ground; holes in both are filled from models of other years. The items of these products
#   only say when they were published, in `datetime`
_BOX_M = 1000.0
_SIGMA_M = 30.0
_TRUNCATE = 4.0
_PLAUSIBLE_M = (-500.0, 9000.0)
# ^ beyond these there is no land: fill values that no field announced
_RIM_DEG = 0.0015
# ^ half a pixel of ten arc seconds, the widest there is: tiles are shifted by half a pixel from the
#   degrees they are named by, and the strip between belongs to their rim
_FLAT = 1e-4
# ^ a centimetre in a hundred metres: below, float32 elevations have no direction

_Elevation = npt.NDArray[np.float64]


def create_terrain(
    workspace: Workspace,
    grid: RegionGrid,
    *,
    collections: Sequence[str] = (),
    dem: Sequence[Scene] = (),
) -> None:
    """Create the terrain layer, unless it is there already.

    Parameters
    ----------
    workspace, grid
        Where, and on which pixels.
    collections
        Elevation collections it will be made of; kept as the array's attribute ``dem_source``, in
        the names of RGI 7.0 where there is one.
    dem
        The elevation model's scenes: when they were acquired is kept as the attribute ``dem_date``,
        an interval of ISO 8601. Without them it is the period that was published for the
        collections; empty where nothing is known.
    """
    source = "+".join(_RGI_NAMES.get(name, name) for name in collections)
    when = _dem_date(dem) or _envelope(_ACQUIRED.get(name, "") for name in collections)
    attributes = {"dem_source": source, "dem_date": when}
    create_layer(workspace, terrain_name(grid), grid, attributes=attributes)


def _dem_date(dem: Sequence[Scene]) -> str:
    """When the scenes were acquired: what they say, or what is published of their product."""
    return _envelope(
        scene.period or _ACQUIRED.get(scene.collection) or scene.datetime[:10] for scene in dem
    )


def _envelope(periods: Iterable[str]) -> str:
    """Smallest interval over days, months or intervals of them; empty ones do not count."""
    bounds = [period.split("/") for period in periods if period]
    if not bounds:
        return ""
    start, end = min(first for first, *_ in bounds), max(last for *_, last in bounds)
    return start if start == end else f"{start}/{end}"


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
        ``facts``: ``dem_scenes``, ``dem_scene_ids``, ``dem_date`` (see :func:`create_terrain`),
        ``valid_fraction``. ``set_aside``: scenes that cannot be used, and as ``dem-incomplete`` the
        degree cells, named by their south-western corner (``N46E010``), in which pixels lie beyond
        all scenes that can.

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
        elevation, names, faults = read_joined(
            assets,
            [(scene.id, scene.bands[0]) for scene in scenes],
            shard,
            limits=_PLAUSIBLE_M,
            halo=halo,
        )
    sound = [scene for scene in scenes if scene.id in names]
    bands = describe_terrain(
        elevation,
        resolution_m=shard.grid.resolution_m,
        convergence_deg=convergence(shard.grid, *shard.window),
    )
    faults += _cells_without_tile(shard, sound, hole=np.isnan(bands[0]))
    name = terrain_name(shard.grid)
    checksum = write_shard(workspace, name, shard, bands)
    facts = {
        "dem_scenes": len(sound),
        "dem_scene_ids": [scene.id for scene in sound],
        "dem_date": _dem_date(sound),
        "valid_fraction": round(float(np.isfinite(bands[0]).mean()), 6),
    }
    return Outcome({f"{name}/{shard.id}": checksum}, tuple(sorted(faults)), facts)


def _cells_without_tile(
    shard: Shard, scenes: Sequence[Scene], *, hole: npt.NDArray[np.bool_]
) -> list[SetAside]:
    """Degree cells with pixels ``hole`` ``(y, x)`` of the shard that lie beyond all scenes."""
    rows, cols = np.nonzero(hole)
    lon, lat = shard.grid.lonlat(rows + shard.window[0].start, cols + shard.window[1].start)
    beyond = np.ones(lon.shape, bool)
    for scene in scenes:
        south, north = scene.bbox[1] - _RIM_DEG, scene.bbox[3] + _RIM_DEG
        for west, east in lon_spans(scene.bbox):
            inside = (lon >= west - _RIM_DEG) & (lon <= east + _RIM_DEG)
            beyond &= ~(inside & (lat >= south) & (lat <= north))
    cells = np.floor(np.stack([lat[beyond], lon[beyond]])).astype(int)
    corners, counts = np.unique(cells, axis=1, return_counts=True)
    return [
        SetAside(
            f"{'NS'[y < 0]}{abs(y):02d}{'EW'[x < 0]}{abs(x):03d}",
            "dem-incomplete",
            f"{count} pixels of shard {shard.id} have no elevation: no readable tile covers them; "
            "nothing is wrong where the product has no tile at sea, else one is missing",
        )
        for (y, x), count in zip(corners.T.tolist(), counts.tolist(), strict=True)
    ]


def terrain_halo(resolution_m: float) -> int:
    """Pixels around a window that :func:`describe_terrain` must see so that no seam shows."""
    return max(_box_radius(resolution_m), math.ceil(_TRUNCATE * _SIGMA_M / resolution_m) + 1) + 1


def _box_radius(resolution_m: float) -> int:
    return max(1, round(_BOX_M / resolution_m / 2))


def describe_terrain(
    elevation: npt.ArrayLike, *, resolution_m: float, convergence_deg: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Terrain bands from an elevation model.

    Parameters
    ----------
    elevation : ``(y, x)`` metres
        With :func:`terrain_halo` pixels on every side; NaN where it is not known.
    resolution_m
        Pixel edge in metres.
    convergence_deg : ``(y, x)`` degrees, without the halo, or one number
        Angle from true north to grid north, see :func:`catalog.grid.convergence`.

    Returns
    -------
    ``(band, y, x)`` float32, without the halo
        In the order of :data:`catalog.cube.TERRAIN_BANDS`: elevation in metres; slope in degrees
        after Horn (1981); elevation above the mean of a square kilometre around the pixel, metres;
        Laplacian of the elevation smoothed by a Gaussian of 30 m, in 1/(100 m), that is the change
        of slope over a hundred metres summed over both axes (positive in hollows); sine and cosine
        of the azimuth of steepest descent, clockwise from true north, from Horn's gradient, both 0
        on flat ground, which faces nowhere; plan and profile curvature, the Laplacian's parts
        across and along the slope of the same smoothed surface, after Zevenbergen and Thorne
        (1987, "Quantitative analysis of land surface topography", equations 10 to 16), in
        1/(100 m). Unlike there both are positive in hollows (plan: where water gathers; profile:
        where the slope eases downhill), so that they sum to the Laplacian; on flat ground, which
        has no direction, each is half of it. A hole is a hole in every band.
    """
    z = np.asarray(elevation, np.float64)
    known = np.isfinite(z)
    halo = terrain_halo(resolution_m)
    inner = (slice(halo, -halo), slice(halo, -halo))
    out = np.empty((len(TERRAIN_BANDS), *z[inner].shape), np.float32)

    def put(name: str, values: _Elevation) -> None:
        sound = known[inner] & np.isfinite(values)
        out[TERRAIN_BANDS.index(name)] = np.where(sound, values, np.nan)
        # ^ one NaN for all: the sign of one that was computed depends on how the loop was unrolled

    put("elevation", z[inner])
    put("relative_elevation", (z - _box_mean(z, known, radius=_box_radius(resolution_m)))[inner])
    south, east = (rise[inner] for rise in _gradient(z, resolution_m))
    put("slope", np.degrees(np.arctan(np.hypot(south, east))))
    for name, values in _aspect(south, east, convergence_deg).items():
        put(name, values)
    for name, values in _curvatures(z, known, resolution_m).items():
        put(name, values[inner])
    return out


def _gradient(z: _Elevation, resolution_m: float) -> tuple[_Elevation, _Elevation]:
    """Rise towards the south and the east; NaN where one of the eight neighbours is."""
    across, along = np.array([-1.0, 0.0, 1.0]), np.array([1.0, 2.0, 1.0])
    south, east = (
        _correlate(_correlate(z, along, axis=1 - axis), across, axis=axis) / (8 * resolution_m)
        for axis in (0, 1)
    )
    return south, east


def _aspect(
    south: _Elevation, east: _Elevation, convergence_deg: npt.ArrayLike
) -> dict[str, _Elevation]:
    """Sine and cosine of the downslope azimuth from true north, of the rise in the grid."""
    steepness = np.hypot(south, east)
    length = np.where(steepness < _FLAT, np.inf, steepness)
    sine, cosine = -east / length, south / length
    turn = np.radians(np.asarray(convergence_deg, np.float64))
    return {
        "aspect_sin": sine * np.cos(turn) + cosine * np.sin(turn),
        "aspect_cos": cosine * np.cos(turn) - sine * np.sin(turn),
    }


def _box_mean(z: _Elevation, known: npt.NDArray[np.bool_], *, radius: int) -> _Elevation:
    weights = np.ones(2 * radius + 1)
    return _weighted(z, known, [weights, weights])


def _curvatures(
    z: _Elevation, known: npt.NDArray[np.bool_], resolution_m: float
) -> dict[str, _Elevation]:
    """Laplacian of the smoothed surface, and its parts across and along the slope."""
    sigma = _SIGMA_M / resolution_m
    reach = math.ceil(_TRUNCATE * sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    smooth = np.where(known, _weighted(z, known, [weights, weights]), np.nan)
    second = np.array([1.0, -2.0, 1.0]) / resolution_m**2
    first = np.array([-1.0, 0.0, 1.0]) / (2 * resolution_m)
    bends = [_correlate(smooth, second, axis=axis) for axis in (0, 1)]
    total: _Elevation = 100 * sum(bends)
    south, east = (_correlate(smooth, first, axis=axis) for axis in (0, 1))
    twist = _correlate(south, first, axis=1)
    square = south**2 + east**2
    with np.errstate(invalid="ignore", divide="ignore"):
        along = 100 * (bends[0] * south**2 + bends[1] * east**2 + 2 * twist * south * east) / square
    profile = np.where(square < _FLAT**2, total / 2, along)
    return {
        "curvature": total,
        "plan_curvature": total - profile,
        "profile_curvature": profile,
    }


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
