"""A small made-up package in RGI 7's form that keeps every rule, to be broken by tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

from change_detection.attributes import RGI_ATTRIBUTES
from change_detection.topology import areas_km2, dissolve_complexes, shared_borders
from change_detection.validation.inventory import Package
from change_detection.validation.rules import Profile

WEST, SOUTH, STEP = 10.70, 46.80, 0.01
CELLS = ((0, 0), (1, 0), (0, 1), (4, 0), (4, 1))
# ^ columns and rows of boxes of about 0.76 by 1.11 km: three glaciers touch, then two
NUNATAK = (7, 0)
PREFIX: dict[Profile, str] = {"rgi7": "RGI2000-v7.0", "derived": "ALPS2024-v1"}


def cell(col: float, row: float, width: float = 1.0, height: float = 1.0) -> shapely.Polygon:
    """Box in units of cells; neighbours have the same corners bit for bit."""
    lon = [WEST + STEP * c for c in (col, col + width)]
    lat = [SOUTH + STEP * r for r in (row, row + height)]
    return shapely.box(lon[0], lat[0], lon[1], lat[1])


def outlines() -> list[shapely.Polygon]:
    """Six glaciers: three and two that touch, and one with a nunatak, alone."""
    alone = cell(*NUNATAK) - cell(NUNATAK[0] + 0.2, NUNATAK[1] + 0.2, 0.3, 0.3)
    return [*(cell(*place) for place in CELLS), alone]


def glaciers(
    polygons: Sequence[Any] | None = None, *, profile: Profile = "rgi7"
) -> gpd.GeoDataFrame:
    """Outlines with all attributes of RGI 7, each as it should be."""
    shapes = np.array(outlines() if polygons is None else list(polygons), dtype=object)
    centre = shapely.point_on_surface(shapes)
    parts = shapely.get_geometry(shapes, 0)
    end = shapely.get_point(shapely.get_exterior_ring(parts), 0)
    lon, lat = shapely.get_x(centre), shapely.get_y(centre)
    columns: dict[str, Any] = {
        "rgi_id": [f"{PREFIX[profile]}-G-11-{i + 1:05d}" for i in range(len(shapes))],
        "o1region": "11",
        "o2region": "11-01",
        "glims_id": [
            f"G{round(1000 * x):06d}E{round(1000 * y):05d}N" for x, y in zip(lon, lat, strict=True)
        ],
        "anlys_id": 755531,
        "subm_id": 731,
        "src_date": "2003-07-30T00:00:00",
        "cenlon": lon,
        "cenlat": lat,
        "utm_zone": 32,
        "area_km2": areas_km2(shapes),
        "primeclass": 0,
        "conn_lvl": 0,
        "surge_type": 0,
        "term_type": 9,
        "glac_name": "Hintereisferner",
        "is_rgi6": 0,
        "termlon": shapely.get_x(end),
        "termlat": shapely.get_y(end),
        "zmin_m": 2413.3,
        "zmax_m": 3694.6,
        "zmed_m": 3043.0,
        "zmean_m": 3013.5,
        "slope_deg": 18.1,
        "aspect_deg": 77.1,
        "aspect_sec": 3,
        "dem_source": "COPDEM30",
        "lmax_m": 1111,
    }
    frame = pd.DataFrame(columns, index=range(len(shapes)))[list(RGI_ATTRIBUTES)]
    return gpd.GeoDataFrame(frame, geometry=list(shapes), crs=4326)


def whole_package(profile: Profile = "rgi7") -> Package:
    """Glaciers with complexes, lists of members, intersects, hypsometry and links."""
    frame = glaciers(profile=profile)
    dissolved = dissolve_complexes(frame)
    ids = [f"{PREFIX[profile]}-C-11-{i + 1:05d}" for i in range(len(dissolved.frame))]
    complexes = dissolved.frame.copy()
    complexes.insert(0, "rgi_id", ids)
    borders = shared_borders(frame)
    borders.insert(
        0, "rgi_id", [f"{PREFIX[profile]}-I-11-{i + 1:05d}" for i in range(len(borders))]
    )
    return Package(
        frame,
        complexes,
        dict(zip(ids, dissolved.members, strict=True)),
        borders,
        hypsometry(frame),
        (links(frame),),
    )


def hypsometry(frame: gpd.GeoDataFrame) -> pd.DataFrame:
    """A quarter of each glacier in each of four bins."""
    bins = dict.fromkeys(("2425", "2475", "2525", "2575"), 250)
    return frame[["rgi_id", "area_km2"]].assign(**bins)


def links(frame: gpd.GeoDataFrame) -> pd.DataFrame:
    """Every glacier has been half of one in an older inventory, but the first two were one."""
    count = len(frame)
    older = [f"RGI60-11.{max(i, 1):05d}" for i in range(count)]
    return pd.DataFrame(
        {
            "rgi7_id": frame["rgi_id"],
            "rgi6_id": older,
            "rgi7_reg": "11",
            "rgi6_reg": "11",
            "overlap_area_km2": frame["area_km2"],
            "rgi7_area_fraction": 1.0,
            "rgi6_area_fraction": 0.5,
            "n_rgi7": [2, 2, *[1] * (count - 2)],
            "n_rgi6": 1,
            "cluster_id": [0, 0, *range(1, count - 1)],
        }
    )
