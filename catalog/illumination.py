"""Illumination: how the sun stood on each pixel at the look that was taken.

The one law: what a pixel shows depends on the terrain within :func:`shadow_halo` of it and on the
sun of its look, never on how the region is cut into shards. So every chunk of the grid is lit by
itself, from the terrain on its sunny side.

A catalogue tells where the sun stood in the middle of a scene. Seen from true north it stands
elsewhere at its rim: half a Sentinel-2 tile to the east by 0.5 degrees at 47 and by 2.8 degrees at
80 degrees of latitude. But its rays are parallel, so that its place in the sky of every chunk
follows.

The sun is a point at its centre and its rays are straight lines of the grid. Left out are the half
degree of the sun's disk (a shadow's edge is blurred by 1 % of the distance it is cast over), the
curvature of the earth (10 m of height over 11 km, a fifth of that disk) and the grid's own bending
of straight lines. Within a chunk the sun stands where it does at its centre. Half a chunk away,
2.6 km, its azimuth differs by 0.025 degrees at 47 and by 0.13 degrees at 80 degrees of latitude,
and its elevation by up to 0.023 degrees: 0.1 % of the cosine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from catalog.cube import (
    DATE_MISSING,
    ILLUMINATION_SCALE,
    LAYERS,
    TERRAIN_BANDS,
    Outcome,
    Workspace,
    create_layer,
    read_window,
    terrain_name,
    write_shard,
)
from catalog.errors import SetAside, UsageError
from catalog.grid import RegionGrid, Shard, convergence, lonlat_boxes
from catalog.scenes import Scene, boxes_meet
from catalog.stacks import Tile, shard_tile, shard_tiles
from catalog.sun import Sun, SunOver, sun_of

__all__ = [
    "LOWEST_SUN_DEG",
    "RELIEF_M",
    "build_illumination_shard",
    "cast_shadow",
    "create_illumination",
    "hillshade",
    "shadow_halo",
    "terrain_shadow",
]

RELIEF_M = 3000.0
"""Shadows are followed as far as terrain this much higher than a pixel casts them: 5.2 km under a
sun 30 degrees high, 11.2 km at 15. Further away only a mountain counts that rises still more than
that above the pixel, and at a steeper angle than the sun's over all that distance."""

_UNKNOWN = int(LAYERS["illumination"].fill)
_ELEVATION = TERRAIN_BANDS.index("elevation")
_EPOCH = date(1970, 1, 1)
LOWEST_SUN_DEG = 3.0
"""Lowest sun that is followed: below, the air bends the light by a quarter of a degree and shadows
reach over half a hundred kilometres."""
_HELD_BLOCKS = 1024
# ^ blocks of elevation of 128 x 128 pixels: 64 MB
_RIM_PX = 2
# ^ across the rays, heights and horizons are each interpolated from the next pixel


def create_illumination(workspace: Workspace, season: str, grid: RegionGrid) -> None:
    """Create the illumination layer of one season, unless it is there already."""
    create_layer(workspace, _name(season), grid)


def _name(season: str) -> str:
    return f"cube.zarr/{season}/illumination"


def hillshade(
    slope: npt.ArrayLike,
    aspect_sin: npt.ArrayLike,
    aspect_cos: npt.ArrayLike,
    *,
    sun_azimuth: float,
    sun_elevation: float,
) -> npt.NDArray[np.float64]:
    """Cosine of the angle between the sun and the normal of the surface.

    Parameters
    ----------
    slope
        Degrees.
    aspect_sin, aspect_cos
        Sine and cosine of the downslope azimuth; from the same north as the sun's azimuth.
    sun_azimuth, sun_elevation
        Degrees clockwise from north, and above the horizon.

    Returns
    -------
    Array of the inputs' shape
        1 where the sun stands on the surface, below 0 where the surface turns away from it; NaN
        where an input is.
    """
    tilt = np.radians(np.asarray(slope, np.float64))
    azimuth, height = math.radians(sun_azimuth), math.radians(sun_elevation)
    facing = np.asarray(aspect_sin, np.float64) * math.sin(azimuth)
    facing += np.asarray(aspect_cos, np.float64) * math.cos(azimuth)
    cosine: npt.NDArray[np.float64] = (
        np.cos(tilt) * math.sin(height) + np.sin(tilt) * math.cos(height) * facing
    )
    return cosine


def shadow_halo(relief_m: float, *, sun_elevation: float, resolution_m: float) -> int:
    """Pixels around a window beyond which terrain of a certain relief casts no shadow into it.

    Raises
    ------
    UsageError
        Where the sun is not above the horizon.
    """
    return math.ceil(relief_m / _rise(sun_elevation) / resolution_m) + _RIM_PX


def _rise(sun_elevation: float) -> float:
    """Metres that a ray of the sun rises over each metre."""
    if not 0 < sun_elevation <= 90:
        raise UsageError(
            f"the sun must stand above the horizon to cast shadows, found {sun_elevation} degrees"
        )
    return math.tan(math.radians(sun_elevation))


def cast_shadow(
    elevation: npt.ArrayLike,
    *,
    resolution_m: float,
    sun_azimuth_grid: float,
    sun_elevation: float,
    inner: tuple[slice, slice] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> npt.NDArray[np.bool_]:
    """Pixels to which other terrain hides the centre of the sun.

    Rays are lines of a grid that is sheared until they run along its columns. There the horizon of
    a pixel is a running maximum of the heights it passes, each lowered by the fall of the ray; the
    cost is a few operations a pixel however long the shadows are. Heights are interpolated linearly
    across the rays, twice: an edge is true to about a pixel, but where a ray passes over smooth
    ground so closely that it clears or misses it by less than it rises over two pixels.

    Parameters
    ----------
    elevation : ``(y, x)`` metres
        NaN where it is not known: that casts no shadow and lies in none.
    resolution_m
        Pixel edge in metres.
    sun_azimuth_grid
        Degrees clockwise from the grid's north: the azimuth from true north less the convergence.
    sun_elevation
        Degrees above the horizon.
    inner
        Window whose shadows are asked for, by default the whole array.
    origin
        Row and column of the grid at the upper-left pixel. Rays are counted from the grid's own
        corner, so that two windows cut them alike.

    Returns
    -------
    ``(y, x)`` bool, of the inner window
        Equal for all windows that reach :func:`shadow_halo` beyond it towards the sun, and two
        pixels on its other sides.

    Raises
    ------
    UsageError
        Where the sun is not above the horizon.
    """
    z = np.asarray(elevation)
    rows, cols = inner or (slice(0, z.shape[0]), slice(0, z.shape[1]))
    azimuth = math.radians(sun_azimuth_grid)
    down, right = -math.cos(azimuth), math.sin(azimuth)
    numbers = [start + np.arange(n) for start, n in zip(origin, z.shape, strict=True)]
    swap = abs(right) > abs(down)
    if swap:
        z, rows, cols, down, right, numbers = z.T, cols, rows, right, down, numbers[::-1]
    flip = down > 0
    if flip:  # now the sun stands towards lower rows, and at least as much as sideways
        z, down = z[::-1], -down
        numbers[0] = -numbers[0][::-1]
        rows = slice(len(z) - rows.stop, len(z) - rows.start)
    fall = _rise(sun_elevation) * resolution_m / -down
    z = np.ascontiguousarray(z)
    dark = _sweep(
        z,
        (rows, cols),
        numbers=(int(numbers[0][0]), int(numbers[1][0])),
        drift=right / -down,
        fall=fall,
    )
    dark = dark[::-1] if flip else dark
    return np.ascontiguousarray(dark.T if swap else dark)


def _sweep(
    z: npt.NDArray[Any],
    inner: tuple[slice, slice],
    *,
    numbers: tuple[int, int],
    drift: float,
    fall: float,
) -> npt.NDArray[np.bool_]:
    """Shadows of a sun towards lower rows.

    ``numbers`` are the row and column of the grid at the upper-left pixel; each row towards the sun
    a ray moves ``drift`` columns and rises by ``fall`` metres.
    """
    rows, cols = inner
    row0, col0 = numbers
    # A ray keeps its line: column + row x drift. Heights are kept on the whole-numbered lines that
    # the inner window touches, raised by row x fall, so that along a ray they can be compared.
    ends = [(row0 + row) * drift for row in (rows.start, rows.stop - 1)]
    line0 = col0 + cols.start + math.floor(min(ends))
    count = cols.stop - cols.start + math.floor(max(ends)) - math.floor(min(ends)) + 1
    horizon = np.full(count, np.nan)
    dark = np.zeros((rows.stop - rows.start, cols.stop - cols.start), bool)
    for row in range(rows.stop):
        lift = (row0 + row) * fall
        if row >= rows.start:
            shift = (row0 + row) * drift
            at = col0 + cols.start + math.floor(shift) - line0
            ahead = _between(horizon[at : at + dark.shape[1] + 1], shift - math.floor(shift))
            dark[row - rows.start] = ahead > z[row, cols] + lift
        shift = -(row0 + row) * drift
        first = line0 + math.floor(shift) - col0
        low, high = max(first, 0), min(first + count + 1, z.shape[1])
        if low < high:
            passed = np.full(count + 1, np.nan)
            passed[low - first : high - first] = z[row, low:high]
            np.fmax(horizon, _between(passed, shift - math.floor(shift)) + lift, out=horizon)
    return dark


def _between(values: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """Values between neighbours, one less than there are; where one is unknown, the nearer."""
    left, right = values[:-1], values[1:]
    mixed = left + share * (right - left)
    gaps = np.isnan(mixed)
    if gaps.any():
        np.copyto(mixed, left if share < 0.5 else right, where=gaps)
    return mixed


def build_illumination_shard(
    workspace: Workspace, season: str, shard: Shard, *, looks: Sequence[SunOver]
) -> Outcome:
    """Light every pixel of a shard by the sun of the look that was taken there, and write it.

    Reads ``cube.zarr/<season>/date`` of the shard and ``cube.zarr/terrain`` as far as
    :func:`shadow_halo` of :data:`RELIEF_M` towards the suns, beyond the shard. The elevations held
    for that take 75 MB for a shard of 2048 pixels of 10 m under suns from all sides 15 degrees
    high, and 730 MB under the lowest that are used, 3 degrees.

    Parameters
    ----------
    workspace
        Where; the layer exists, see :func:`create_illumination`.
    season
        Name of the season.
    shard
        Which shard.
    looks
        Where the sun stood over the season's scenes, in the order in which they count; those
        elsewhere are passed over. Of a day's scenes that meet a chunk, the first that lies over its
        middle lights it.

    Returns
    -------
    Outcome
        ``facts``: ``suns`` (looks of the shard whose sun is known), ``valid_fraction`` (share of
        pixels that are not unknown), ``shaded_fraction`` (of these, in cast or own shadow) and
        ``horizon_known_fraction`` (share of the terrain read whose elevation is known: what is not
        known casts no shadow). ``set_aside``: as ``sun-unknown`` the days whose pixels stay
        unknown, as there is no sun for them in ``looks`` or it stands lower than 3 degrees.

    Raises
    ------
    StoreError
        Where the store cannot be read or written.
    """
    dates = workspace.array(f"cube.zarr/{season}/date")
    terrain = workspace.array(terrain_name(shard.grid))
    whole = shard_tile(shard)
    days = read_window(dates, whole.row, whole.col, shape=(whole.height, whole.width))
    suns: dict[Tile, dict[int, Sun]] = {}
    without: Counter[int] = Counter()
    for tile in shard_tiles(shard):
        found, counts = np.unique(days[tile.within(whole)], return_counts=True)
        suns[tile] = _suns_over(tile, [look for look in looks if look.day in found])
        for day, count in zip(found.tolist(), counts.tolist(), strict=True):
            if day != DATE_MISSING and day not in suns[tile]:
                without[day] += count
    reach = [
        _sunny_side(tile, sun, relief_m=RELIEF_M)
        for tile, above in suns.items()
        for sun in above.values()
    ]
    ground = _read_ground(terrain, _hull([whole, *reach]))
    out = np.full(days.shape, _UNKNOWN, np.uint8)
    for tile, above in suns.items():
        here = tile.within(whole)
        out[here] = _light(terrain, tile, days[here], suns=above, ground=ground)
    known = out != _UNKNOWN
    facts = {
        "suns": len({day for above in suns.values() for day in above}),
        "valid_fraction": round(float(known.mean()), 6),
        "shaded_fraction": round(float((out == 0).sum() / max(1, known.sum())), 6),
        "horizon_known_fraction": round(ground.known, 6),
    }
    faults = [
        SetAside(
            (_EPOCH + timedelta(days=day)).isoformat(),
            "sun-unknown",
            f"{count} pixels of shard {shard.id} were seen on this day, for which no sun higher "
            f"than {LOWEST_SUN_DEG:g} degrees is given: their illumination is unknown",
        )
        for day, count in without.items()
    ]
    checksum = write_shard(workspace, _name(season), shard, out)
    return Outcome({f"{_name(season)}/{shard.id}": checksum}, tuple(sorted(faults)), facts)


@dataclass(frozen=True, slots=True)
class _Ground:
    """Elevation of a window of the grid."""

    area: Tile
    height: npt.NDArray[np.float32]

    @property
    def known(self) -> float:
        """Share of its pixels whose elevation is known."""
        return float(np.mean([np.isfinite(row).mean() for row in self.height]))

    def of(self, tile: Tile) -> npt.NDArray[np.float32]:
        """Elevation of a window within."""
        return self.height[tile.within(self.area)]


def _hull(tiles: Sequence[Tile]) -> Tile:
    """Smallest window that holds all."""
    row, col = min(tile.row for tile in tiles), min(tile.col for tile in tiles)
    bottom = max(tile.row + tile.height for tile in tiles)
    right = max(tile.col + tile.width for tile in tiles)
    return Tile(tiles[0].grid, row, col, bottom - row, right - col)


def _suns_over(tile: Tile, looks: Sequence[SunOver]) -> dict[int, Sun]:
    """Suns as seen from the middle of a tile, where they stand high enough."""
    # A day's scenes may be of two tracks, hours apart where these overlap much.
    lon, lat = (float(v) for v in _middle(tile))
    boxes = lonlat_boxes(tile.bounds, tile.grid)
    near = [look for look in looks if any(boxes_meet(look.box, box) for box in boxes)]
    over = [look for look in near if boxes_meet(look.box, (lon, lat, lon, lat))]
    local: dict[int, Sun] = {}
    for look in (*over, *near):
        local.setdefault(look.day, look.sun.seen_from(lon, lat))
    return {day: sun for day, sun in local.items() if sun.elevation >= LOWEST_SUN_DEG}


def _middle(tile: Tile) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Longitude and latitude of the middle of a tile."""
    return tile.grid.lonlat(tile.row + tile.height // 2, tile.col + tile.width // 2)


def _azimuth_in_grid(tile: Tile, sun: Sun) -> float:
    """Azimuth from the grid's north of a sun as seen from the middle of a tile, degrees."""
    row, col = tile.row + tile.height // 2, tile.col + tile.width // 2
    turn = convergence(tile.grid, slice(row, row + 1), slice(col, col + 1))[0, 0]
    return sun.azimuth - float(turn)


def _sunny_side(tile: Tile, sun: Sun, *, relief_m: float) -> Tile:
    """Window in which terrain may lie that casts its shadow on a tile."""
    azimuth = math.radians(_azimuth_in_grid(tile, sun))
    halo = shadow_halo(relief_m, sun_elevation=sun.elevation, resolution_m=tile.grid.resolution_m)
    north, south, east, west = (
        _RIM_PX + math.ceil(halo * max(0.0, part))
        for part in (math.cos(azimuth), -math.cos(azimuth), math.sin(azimuth), -math.sin(azimuth))
    )
    return Tile(
        tile.grid,
        tile.row - north,
        tile.col - west,
        tile.height + north + south,
        tile.width + west + east,
    )


def terrain_shadow(
    workspace: Workspace, grid: RegionGrid
) -> Callable[[Tile, Scene], npt.NDArray[np.bool_]]:
    """Cast shadow of a scene on tiles of a coarse copy of the region's grid.

    Parameters
    ----------
    workspace, grid
        Where the terrain is, and its grid.

    Returns
    -------
    function
        Of a tile whose pixels are a whole number of the grid's and begin where they do, and of a
        scene whose sun is known: ``(y, x)`` bool. What is not known casts no shadow.
    """
    terrain = workspace.array(terrain_name(grid))

    @lru_cache(maxsize=_HELD_BLOCKS)
    def block(coarse: RegionGrid, row: int, col: int) -> npt.NDArray[np.float32]:
        n, k = coarse.chunk_px, round(coarse.resolution_m / grid.resolution_m)
        fine = read_window(terrain, row * k, col * k, shape=(n * k, n * k))[_ELEVATION]
        parts = fine.reshape(n, k, n, k)
        known = np.isfinite(parts)
        total = np.where(known, parts, 0).sum(axis=(1, 3), dtype=np.float64)
        count = known.sum(axis=(1, 3))
        mean = np.divide(total, count, out=np.full((n, n), np.nan), where=count > 0)
        return np.asarray(mean, np.float32)

    def shadow(tile: Tile, scene: Scene) -> npt.NDArray[np.bool_]:
        there = sun_of(scene)
        if there is None:
            raise UsageError(f"{scene.id} does not say where the sun stood")
        sun = there.seen_from(*(float(v) for v in _middle(tile)))
        sun = replace(sun, elevation=max(sun.elevation, LOWEST_SUN_DEG))
        area = _sunny_side(tile, sun, relief_m=RELIEF_M)
        ground = _Ground(area, np.full((area.height, area.width), np.nan, np.float32))
        for part, row, col in _blocks(area):
            top, left = part.row - row, part.col - col
            values = block(tile.grid, row, col)
            ground.of(part)[...] = values[top : top + part.height, left : left + part.width]
        if not np.isfinite(ground.height).any():
            return np.zeros((tile.height, tile.width), np.bool_)
        return _shadow(tile, sun, ground)

    return shadow


def _blocks(area: Tile) -> Iterator[tuple[Tile, int, int]]:
    """Parts of a window by chunk of its grid, and where the chunk begins."""
    n = area.grid.chunk_px
    bottom, right = area.row + area.height, area.col + area.width
    for row in range(area.row // n * n, bottom, n):
        for col in range(area.col // n * n, right, n):
            top, left = max(row, area.row), max(col, area.col)
            height, width = min(row + n, bottom) - top, min(col + n, right) - left
            yield Tile(area.grid, top, left, height, width), row, col


def _read_ground(terrain: zarr.Array[Any], area: Tile) -> _Ground:
    """Elevation alone, chunk by chunk: the other bands of so wide a window are not to be held."""
    ground = _Ground(area, np.full((area.height, area.width), np.nan, np.float32))
    for part, _, _ in _blocks(area):
        window = read_window(terrain, part.row, part.col, shape=(part.height, part.width))
        ground.of(part)[...] = window[_ELEVATION]
    return ground


def _light(
    terrain: zarr.Array[Any],
    tile: Tile,
    days: npt.NDArray[np.int32],
    *,
    suns: Mapping[int, Sun],
    ground: _Ground,
) -> npt.NDArray[np.uint8]:
    """Illumination of a tile as it is stored."""
    stored = read_window(terrain, tile.row, tile.col, shape=days.shape)
    bands = dict(zip(TERRAIN_BANDS, stored, strict=True))
    out = np.full(days.shape, _UNKNOWN, np.uint8)
    for day, sun in suns.items():
        here = days == day
        if not here.any():
            continue
        slope, sine, cosine = (bands[b][here] for b in ("slope", "aspect_sin", "aspect_cos"))
        light = hillshade(slope, sine, cosine, sun_azimuth=sun.azimuth, sun_elevation=sun.elevation)
        dark = _shadow(tile, sun, ground)[here] | (light <= 0)
        steps = np.where(dark, 0, np.maximum(np.rint(light / ILLUMINATION_SCALE), 1))
        out[here] = np.where(np.isnan(light), _UNKNOWN, steps)
    return out


def _shadow(tile: Tile, sun: Sun, ground: _Ground) -> npt.NDArray[np.bool_]:
    """Cast shadow on a tile."""
    highest = np.fmax.reduce(ground.of(_sunny_side(tile, sun, relief_m=RELIEF_M)), axis=None)
    relief = float(highest - np.fmin.reduce(ground.of(tile), axis=None))
    if not relief > 0:  # flat, or not known
        return np.zeros((tile.height, tile.width), bool)
    near = _sunny_side(tile, sun, relief_m=min(relief, RELIEF_M))
    # ^ no terrain here is high enough to reach the tile from further away
    return cast_shadow(
        ground.of(near),
        resolution_m=tile.grid.resolution_m,
        sun_azimuth_grid=_azimuth_in_grid(tile, sun),
        sun_elevation=sun.elevation,
        inner=tile.within(near),
        origin=(near.row, near.col),
    )
