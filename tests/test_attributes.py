from __future__ import annotations

import math
import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_world import world_grid
from pyproj import Geod

from change_detection import zonal
from change_detection.attributes import (
    RGI_ATTRIBUTES,
    aspect_sector,
    iso_day,
    to_lonlat,
    topography,
    true_north_deg,
    utm_zone,
)

DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data"))
ONE = np.ones((40, 40), np.int32)


def plane(*, azimuth_deg: float, slope_deg: float) -> np.ndarray:
    """Elevation that falls towards an azimuth of the grid."""
    row, col = np.mgrid[:40, :40] * 10.0
    azimuth = math.radians(azimuth_deg)
    along = col * math.sin(azimuth) - row * math.cos(azimuth)
    return (3000.0 - along * math.tan(math.radians(slope_deg))).astype(np.float32)


@pytest.mark.real_data
def test_the_attributes_are_those_of_a_real_rgi7_file():
    path = DATA / "hintereisferner" / "rgi7g_hef_complex.shp"
    if not path.exists():
        pytest.skip(f"the real outlines are not at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    real = gpd.read_file(path)
    kinds = {"O": "str", "i": "int", "f": "float"}
    found = {n: kinds[t.kind] for n, t in real.drop(columns="geometry").dtypes.items()}
    assert list(found.items()) == list(RGI_ATTRIBUTES.items())
    sectors = [aspect_sector(a) for a in real.aspect_deg]
    zones = [utm_zone(x, y) for x, y in zip(real.cenlon, real.cenlat, strict=True)]
    assert sectors == real.aspect_sec.tolist()
    assert zones == real.utm_zone.tolist()


@pytest.mark.parametrize("azimuth", [0.0, 45.0, 90.0, 200.0, 359.0])
def test_a_plane_has_the_slope_and_aspect_it_was_made_with(azimuth):
    found = topography(
        ONE, 1, elevation=plane(azimuth_deg=azimuth, slope_deg=20.0), resolution_m=10.0
    )
    assert found.slope_deg[0] == pytest.approx(20.0, abs=0.01)
    assert found.aspect_grid_deg[0] == pytest.approx(azimuth, abs=0.05)


def test_aspect_crosses_north_without_averaging_to_south():
    elevation = np.concatenate(
        [
            plane(azimuth_deg=350.0, slope_deg=20.0),
            plane(azimuth_deg=10.0, slope_deg=20.0),
        ]
    )
    labels = np.ones(elevation.shape, np.int32)
    labels[38:42] = 0
    aspect = topography(labels, 1, elevation=elevation, resolution_m=10.0).aspect_grid_deg[0]
    assert min(aspect, 360.0 - aspect) < 1.0


def test_holes_in_the_elevation_never_become_numbers():
    elevation = plane(azimuth_deg=90.0, slope_deg=10.0)
    elevation[:, :20] = np.nan
    labels = ONE.copy()
    labels[:, :10] = 2
    found = topography(labels, 2, elevation=elevation, resolution_m=10.0)
    assert found.zmax_m[0] == elevation[0, 20]
    assert found.zmin_m[0] == elevation[0, 39]
    for name in ("zmin_m", "zmax_m", "zmed_m", "zmean_m", "slope_deg", "aspect_grid_deg"):
        assert math.isnan(getattr(found, name)[1])
    assert found.lowest[1] == -1


def test_a_flat_glacier_has_no_aspect():
    found = topography(ONE, 1, elevation=np.full((40, 40), 5.0, np.float32), resolution_m=10.0)
    assert found.slope_deg[0] == 0.0
    assert math.isnan(found.aspect_grid_deg[0])
    assert aspect_sector(found.aspect_grid_deg[0]) == 9


def test_the_lowest_pixel_of_the_outline_is_found_once_and_the_same_way():
    zone = np.zeros((40, 40), np.int32)
    zone[5:35, 5:35] = 1
    elevation = np.full((40, 40), 100.0, np.float32)
    elevation[[5, 20], [9, 5]] = 50.0
    elevation[20, 20] = 10.0
    # ^ a pit in the middle is the lowest place, but no terminus
    found = topography(zone, 1, elevation=elevation, resolution_m=10.0)
    assert found.lowest[0] == 5 * 40 + 9
    assert found.zmin_m[0] == 10.0


@pytest.mark.parametrize(
    ("lon", "lat", "zone"),
    [
        (10.75, 46.8, 32),
        (5.0, 61.0, 32),
        (5.0, 55.0, 31),
        (8.0, 78.0, 31),
        (9.0, 78.0, 33),
        (21.0, 78.0, 35),
        (33.0, 78.0, 37),
        (180.0, 70.0, 1),
        (-180.0, 70.0, 1),
        (179.99, 10.0, 60),
        (-73.0, -50.0, 18),
    ],
)
def test_utm_zones_follow_the_exceptions_of_norway_and_svalbard(lon, lat, zone):
    assert utm_zone(lon, lat) == zone


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-75.0, 75.0),
    st.floats(-180.0, 180.0),
    st.floats(-300e3, 300e3),
    st.floats(-300e3, 300e3),
)
def test_true_north_on_the_grid_is_the_direction_of_the_meridian(lat_0, lon_0, x, y):
    grid = world_grid(lat_0=lat_0, lon_0=lon_0)
    col, row = ~grid.transform @ (x, y)
    lon, lat = to_lonlat(np.array([col]), np.array([row]), grid)
    north = true_north_deg(lon, lat, grid)
    # A pixel to the grid's north lies, by the ellipsoid, at the azimuth minus that direction.
    up = to_lonlat(np.array([col]), np.array([row - 1.0]), grid)
    azimuth = Geod(ellps="WGS84").inv(lon[0], lat[0], up[0][0], up[1][0])[0]
    difference = (azimuth + north[0] + 180.0) % 360.0 - 180.0
    assert abs(difference) < 0.15  # LAEA keeps areas, so angles are a little off


def test_days_are_written_as_rgi_writes_dates():
    assert iso_day(0.0) == "1970-01-01T00:00:00"
    assert iso_day(17030.5) == "2016-08-17T00:00:00"
    assert iso_day(math.nan) == ""


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_statistics_by_zone_agree_with_numpy(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (9, 9)).astype(np.int32)
    values = rng.integers(0, 20, (9, 9)).astype(np.float32)
    where = rng.random((9, 9)) < 0.7
    found = zonal.ranked(values, labels, 5, where=where)
    mean = zonal.means(values, labels, 5, where=where)
    for zone in range(1, 6):
        mine = values[where & (labels == zone)]
        if mine.size == 0:
            assert math.isnan(found.median[zone - 1]) and math.isnan(mean[zone - 1])
            assert found.where_lowest[zone - 1] == -1
            continue
        assert found.lowest[zone - 1] == mine.min()
        assert found.median[zone - 1] == np.median(mine)
        assert found.highest[zone - 1] == mine.max()
        assert mean[zone - 1] == pytest.approx(mine.mean(), rel=1e-6)
        index = found.where_lowest[zone - 1]
        assert values.ravel()[index] == mine.min() and labels.ravel()[index] == zone
