"""The attributes of an outline, with the names, types and missing values of RGI 7.0 glaciers.

Directions are relative to true north: the grid's north deviates from it away from the central
meridian.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from catalog.grid import RegionGrid, lonlat_from, lonlat_into
from change_detection import zonal

__all__ = [
    "RGI_ATTRIBUTES",
    "Topography",
    "aspect_sector",
    "iso_day",
    "to_lonlat",
    "topography",
    "true_north_deg",
    "utm_zone",
]

RGI_ATTRIBUTES: dict[str, str] = {
    "rgi_id": "str",
    "o1region": "str",
    "o2region": "str",
    "glims_id": "str",
    "anlys_id": "int",
    "subm_id": "int",
    "src_date": "str",
    "cenlon": "float",
    "cenlat": "float",
    "utm_zone": "int",
    "area_km2": "float",
    "primeclass": "int",
    "conn_lvl": "int",
    "surge_type": "int",
    "term_type": "int",
    "glac_name": "str",
    "is_rgi6": "int",
    "termlon": "float",
    "termlat": "float",
    "zmin_m": "float",
    "zmax_m": "float",
    "zmed_m": "float",
    "zmean_m": "float",
    "slope_deg": "float",
    "aspect_deg": "float",
    "aspect_sec": "int",
    "dem_source": "str",
    "lmax_m": "int",
}
"""The attributes of the glacier product (rgi_user_guide, v7.0, "Glacier product"), in order.

Missing: empty text, NaN, -999; 9 in the class attributes and in ``aspect_sec``.
"""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Topography:
    """Terrain of each zone; NaN where the zone has no elevation."""

    zmin_m: Floats
    zmax_m: Floats
    zmed_m: Floats
    zmean_m: Floats
    slope_deg: Floats
    aspect_grid_deg: Floats
    """Mean downslope direction, clockwise from the grid's north."""
    lowest: npt.NDArray[np.int64]
    """Flat index of the lowest pixel along the zone's outline, or -1."""


def topography(
    labels: npt.NDArray[np.int32],
    count: int,
    *,
    elevation: npt.NDArray[np.float32] | None,
    resolution_m: float,
) -> Topography:
    """Elevation, slope and aspect of each zone.

    Slope is the mean over the pixels; aspect is the direction of the sum of the pixels' unit
    downslope vectors, as in RGI 7.0. Pixels without elevation are left out.

    Parameters
    ----------
    labels : ``(y, x)`` int32
        Zones 1 to ``count``; 0 is left out.
    count
        Number of zones.
    elevation : ``(y, x)`` float32 or None
        Metres; NaN where unknown.
    resolution_m
        Pixel edge in metres.
    """
    none = np.full(count, np.nan)
    if elevation is None:
        lost = np.full(count, -1, dtype=np.int64)
        return Topography(none, none, none, none, none, none, lost)
    known = np.isfinite(elevation) & (labels > 0)
    heights = zonal.ranked(elevation, labels, count, where=known)
    south, east = np.gradient(elevation, resolution_m)
    steep = np.hypot(south, east)
    sloped = known & np.isfinite(steep)
    slope = zonal.means(np.degrees(np.arctan(steep)), labels, count, where=sloped)
    moving = sloped & (steep > 0)
    norm = np.where(moving, steep, 1.0)
    to_east = zonal.means(-east / norm, labels, count, where=moving)
    to_north = zonal.means(south / norm, labels, count, where=moving)
    return Topography(
        heights.lowest,
        heights.highest,
        heights.median,
        zonal.means(elevation, labels, count, where=known),
        slope,
        np.degrees(np.arctan2(to_east, to_north)) % 360.0,
        zonal.ranked(elevation, labels, count, where=known & _on_outline(labels)).where_lowest,
    )


def _on_outline(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Pixels with an edge to a pixel of another zone, or to none."""
    padded = np.pad(labels, 1)
    inner = padded[1:-1, 1:-1]
    beside = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    return np.asarray(np.any([inner != other for other in beside], axis=0))


def to_lonlat(col: Floats, row: Floats, grid: RegionGrid) -> tuple[Floats, Floats]:
    """Longitude and latitude of positions in the region's pixels; (0, 0) is a corner."""
    x, y = grid.transform @ (col, row)
    lon, lat = lonlat_from(grid.proj4).transform(x, y)
    return np.asarray(lon, np.float64), np.asarray(lat, np.float64)


def true_north_deg(lon: npt.ArrayLike, lat: npt.ArrayLike, grid: RegionGrid) -> Floats:
    """Direction of true north at a place, clockwise from the grid's north, degrees.

    Subtract it from a direction on the grid to get a true azimuth.
    """
    to_grid = lonlat_into(grid.proj4)
    step = 1e-4
    lon, lat = np.asarray(lon, np.float64), np.asarray(lat, np.float64)
    x0, y0 = to_grid.transform(lon, lat - step)
    x1, y1 = to_grid.transform(lon, np.minimum(lat + step, 90.0))
    return np.asarray(np.degrees(np.arctan2(x1 - x0, y1 - y0)), np.float64)


def aspect_sector(aspect_deg: float) -> int:
    """Eight sectors: 1 north, 2 north-east, ... 8 north-west; 9 where the aspect is unknown."""
    return 9 if math.isnan(aspect_deg) else int((aspect_deg + 22.5) % 360.0 // 45.0) + 1


def utm_zone(lon: float, lat: float) -> int:
    """UTM zone of a place, with the exceptions of south-west Norway and Svalbard."""
    if 56.0 <= lat < 64.0 and 3.0 <= lon < 12.0:
        return 32
    if 72.0 <= lat < 84.0 and 0.0 <= lon < 42.0:
        return 31 + 2 * int((lon + 3.0) // 12.0)
    return int((lon + 180.0) % 360.0 // 6.0) + 1


def iso_day(day: float) -> str:
    """Day since 1970-01-01 as RGI writes dates; empty where there is none."""
    if math.isnan(day):
        return ""
    return f"{np.datetime64(math.floor(day), 'D')}T00:00:00"
