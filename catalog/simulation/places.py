"""Where things lie: the region's UTM grid, the granules that cut it, elevation-model cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyproj
from affine import Affine

if TYPE_CHECKING:
    from .spec import RegionSpec

__all__ = ["Granule", "RegionFrame", "dem_cells", "frame_of", "granules_of"]

_TILE_M = 109_800
_SQUARE_M = 100_000


@dataclass(frozen=True, slots=True)
class RegionFrame:
    """The 10 m UTM grid of a region: north-up, ``left`` and ``top`` are outer edges in metres."""

    epsg: int
    left: int
    top: int
    side_px: int
    convergence_deg: float

    @property
    def transform(self) -> Affine:
        """Pixel corner to UTM metres."""
        return Affine(10.0, 0.0, float(self.left), 0.0, -10.0, float(self.top))

    @property
    def zone(self) -> int:
        """UTM zone number."""
        return self.epsg % 100

    def lonlat_ring(self, window: tuple[int, int, int, int]) -> list[list[float]]:
        """Corners of a (row0, row1, col0, col1) window as a closed lon/lat ring."""
        row0, row1, col0, col1 = window
        to_lonlat = pyproj.Transformer.from_crs(self.epsg, 4326, always_xy=True)
        corners = ((row0, col0), (row1, col0), (row1, col1), (row0, col1), (row0, col0))
        points = [
            to_lonlat.transform(self.left + 10.0 * col, self.top - 10.0 * row)
            for row, col in corners
        ]
        return [[round(float(lon), 7), round(float(lat), 7)] for lon, lat in points]


@dataclass(frozen=True, slots=True)
class Granule:
    """Part of the region in one tile: code such as ``"25TGM"``, (row0, row1, col0, col1)."""

    code: str
    window: tuple[int, int, int, int]


def frame_of(spec: RegionSpec) -> RegionFrame:
    """Lay the region's grid: UTM zone of the centre, edges on multiples of 20 m."""
    zone = int((spec.lon + 180.0) // 6.0) % 60 + 1
    epsg = (32600 if spec.lat >= 0 else 32700) + zone
    x, y = pyproj.Transformer.from_crs(4326, epsg, always_xy=True).transform(spec.lon, spec.lat)
    half = spec.side_px * 5
    left = 20 * round((x - half) / 20.0)
    top = 20 * round((y + half) / 20.0)
    to_grid = pyproj.Transformer.from_crs(4326, epsg, always_xy=True)
    (x0, x1), (y0, y1) = to_grid.transform([spec.lon] * 2, [spec.lat, spec.lat + 1e-3])
    convergence = -float(np.degrees(np.arctan2(x1 - x0, y1 - y0)))
    # ^ east of the central meridian, north of the equator: grid north points east of true north
    return RegionFrame(epsg, left, top, spec.side_px, convergence)


def _square_code(zone: int, lat: float, east: int, north: int) -> str:
    """Military-grid code of the 100 km square with the given lower-left corner, km index."""
    columns = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")[zone % 3]
    rows = "ABCDEFGHJKLMNPQRSTUV"
    shift = 0 if zone % 2 else 5
    bands = "CDEFGHJKLMNPQRSTUVWXX"
    band = bands[int((lat + 80.0) // 8.0)]
    return f"{zone:02d}{band}{columns[(east - 1) % 8]}{rows[(north + shift) % 20]}"


def granules_of(spec: RegionSpec, frame: RegionFrame) -> list[Granule]:
    """Cut the region by Sentinel-2 tiles: 109.8 km from the upper-left corner of each square."""
    size = frame.side_px * 10
    right, bottom = frame.left + size, frame.top - size
    found = []
    for east in range(frame.left // _SQUARE_M - 1, right // _SQUARE_M + 1):
        for north in range(bottom // _SQUARE_M, frame.top // _SQUARE_M + 2):
            x0, y1 = east * _SQUARE_M, (north + 1) * _SQUARE_M
            col0 = max(0, (x0 - frame.left) // 10)
            col1 = min(frame.side_px, (x0 + _TILE_M - frame.left) // 10)
            row0 = max(0, (frame.top - y1) // 10)
            row1 = min(frame.side_px, (frame.top - (y1 - _TILE_M)) // 10)
            if min(col1 - col0, row1 - row0) < 64:
                continue
            code = _square_code(frame.zone, spec.lat, east, north)
            found.append(Granule(code, (row0, row1, col0, col1)))
    return sorted(_useful(found), key=lambda granule: granule.code)


def _useful(granules: list[Granule]) -> list[Granule]:
    # A tile whose part of the region lies inside another tile's part adds nothing.
    kept = []
    for one in granules:
        a = one.window
        inside = any(
            b.window != a
            and b.window[0] <= a[0]
            and b.window[1] >= a[1]
            and b.window[2] <= a[2]
            and b.window[3] >= a[3]
            for b in granules
        )
        if not inside:
            kept.append(one)
    return kept


def dem_cells(frame: RegionFrame) -> list[tuple[int, int, Affine, tuple[int, int]]]:
    """List 1-degree cells clipped to the region: lat, lon of the corner, transform, (rows, cols).

    Corners are lower-left. Spacing is that of Copernicus GLO-30: 1 arc-second in latitude, 1 to 10
    in longitude.
    """
    side = frame.side_px
    edge = np.linspace(0, side, 41)
    cols = np.concatenate([edge, edge, np.zeros(41), np.full(41, side)])
    rows = np.concatenate([np.zeros(41), np.full(41, side), edge, edge])
    to_lonlat = pyproj.Transformer.from_crs(frame.epsg, 4326, always_xy=True)
    lon, lat = to_lonlat.transform(frame.left + 10.0 * cols, frame.top - 10.0 * rows)
    cells = []
    for south in range(int(np.floor(lat.min())), int(np.floor(lat.max())) + 1):
        steps = _lon_step(south)
        for west in range(int(np.floor(lon.min())), int(np.floor(lon.max())) + 1):
            dy, dx = 1.0 / 3600.0, steps / 3600.0
            row0 = max(0, int(np.floor((south + 1 - lat.max()) / dy)) - 2)
            row1 = min(3600, int(np.ceil((south + 1 - lat.min()) / dy)) + 2)
            col0 = max(0, int(np.floor((lon.min() - west) / dx)) - 2)
            col1 = min(round(3600 / steps), int(np.ceil((lon.max() - west) / dx)) + 2)
            if row1 - row0 < 1 or col1 - col0 < 1:
                continue
            corner_x = west - dx / 2 + col0 * dx
            corner_y = south + 1 + dy / 2 - row0 * dy
            transform = Affine(dx, 0.0, corner_x, 0.0, -dy, corner_y)
            cells.append((south, west, transform, (row1 - row0, col1 - col0)))
    return cells


def _lon_step(south: int) -> float:
    away = abs(south + 0.5)
    for limit, step in ((50.0, 1.0), (60.0, 1.5), (70.0, 2.0), (80.0, 3.0), (85.0, 5.0)):
        if away < limit:
            return step
    return 10.0
