from __future__ import annotations

import json
import math

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyproj import Geod, Proj, Transformer

from catalog.errors import UsageError
from catalog.grid import RegionGrid, convergence, lonlat_boxes, region_grid

PLACES = {
    "Alps": (10.8, 46.8),
    "Everest": (86.9, 28.0),
    "Svalbard": (16.0, 78.5),
    "Norway 32V": (4.0, 61.0),
    "Kilimanjaro": (37.35, -3.07),
    "Patagonia": (-73.3, -49.3),
    "Fiji side": (179.9, -17.0),
    "Wrangel": (-179.5, 71.2),
    "northernmost": (-33.0, 83.6),
    "Antarctic Peninsula": (-63.0, -66.0),
    "South Pole": (0.0, -89.9),
}
lon_lat = st.tuples(st.floats(-180, 180), st.floats(-89, 89))


def grid_at(lon: float, lat: float, **settings_: float) -> RegionGrid:
    spread = 0.05 / max(0.02, math.cos(math.radians(lat)))
    return region_grid(
        [lon - spread, lon + spread], [max(-90, lat - 0.05), min(90, lat + 0.05)], **settings_
    )


@pytest.mark.parametrize("place", PLACES)
def test_an_area_is_a_pixel_count_true_to_a_hundred_thousandth(place: str) -> None:
    grid = grid_at(*PLACES[place])
    geod = Geod(ellps="WGS84")
    to_lonlat = Transformer.from_crs(grid.crs, 4326, always_xy=True)
    rng = np.random.default_rng(0)
    for shard in list(grid.shards())[:4]:
        left, bottom, right, top = shard.bounds
        edge = 5000.0
        x0, y0 = rng.uniform(left, right - edge), rng.uniform(bottom, top - edge)
        t = np.linspace(0, edge, 200)
        ring_x = np.concatenate([x0 + t, np.full(200, x0 + edge), x0 + t[::-1], np.full(200, x0)])
        ring_y = np.concatenate([np.full(200, y0), y0 + t, np.full(200, y0 + edge), y0 + t[::-1]])
        lon, lat = to_lonlat.transform(ring_x, ring_y)
        area, _ = geod.polygon_area_perimeter(lon, lat)
        pixels = (edge / grid.resolution_m) ** 2
        assert abs(area) / 1e6 == pytest.approx(pixels * grid.pixel_area_km2, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(lon_lat, st.sampled_from([5.0, 10.0, 30.0]), st.sampled_from([256, 1024]))
def test_every_point_lies_in_exactly_one_shard(
    place: tuple[float, float], resolution: float, shard_px: int
) -> None:
    grid = grid_at(*place, resolution_m=resolution, shard_px=shard_px, chunk_px=256)
    to_grid = Transformer.from_crs(4326, grid.crs, always_xy=True)
    x, y = to_grid.transform(*place)
    holders = [
        shard
        for shard in grid.shards()
        if shard.bounds[0] <= x < shard.bounds[2] and shard.bounds[1] < y <= shard.bounds[3]
    ]
    assert len(holders) == 1
    rows, cols = holders[0].window
    col, row = ~grid.transform @ (x, y)
    assert rows.start - 1e-6 <= row <= rows.stop + 1e-6
    assert cols.start - 1e-6 <= col <= cols.stop + 1e-6


@settings(max_examples=60, deadline=None)
@given(lon_lat)
def test_boxes_in_degrees_cover_their_shard_and_stay_on_the_globe(
    place: tuple[float, float],
) -> None:
    grid = grid_at(*place)
    to_lonlat = Transformer.from_crs(grid.crs, 4326, always_xy=True)
    for shard in list(grid.shards())[:3]:
        boxes = shard.lonlat_boxes
        assert 1 <= len(boxes) <= 2
        for west, south, east, north in boxes:
            assert -180 <= west <= east <= 180
            assert -90 <= south <= north <= 90
        left, bottom, right, top = shard.bounds
        x, y = np.meshgrid(np.linspace(left, right, 25), np.linspace(bottom, top, 25))
        lon, lat = to_lonlat.transform(x, y)
        covered = np.zeros(lon.shape, bool)
        for west, south, east, north in boxes:
            covered |= (west <= lon) & (lon <= east) & (south <= lat) & (lat <= north)
        assert covered.all()


def test_a_shard_over_the_antimeridian_has_two_boxes_that_meet_there() -> None:
    grid = grid_at(180.0, 68.0)
    crossing = [shard for shard in grid.shards() if len(shard.lonlat_boxes) == 2]
    assert crossing
    for shard in crossing:
        first, second = sorted(shard.lonlat_boxes, reverse=True)
        assert first[2] == 180.0
        assert second[0] == -180.0
        assert (first[2] - first[0]) + (second[2] - second[0]) < 3


@pytest.mark.parametrize(("lat", "end"), [(90.0, 3), (-90.0, 1)])
def test_a_shard_with_a_pole_has_one_box_over_all_longitudes(lat: float, end: int) -> None:
    grid = region_grid([0, 90, 180, 270], [lat * 0.999] * 4)
    to_grid = Transformer.from_crs(4326, grid.crs, always_xy=True)
    x, y = to_grid.transform(0.0, lat)
    for shard in grid.shards():
        left, bottom, right, top = shard.bounds
        if left <= x <= right and bottom <= y <= top:
            (box,) = shard.lonlat_boxes
            assert (box[0], box[2]) == (-180.0, 180.0)
            assert box[end] == lat


@settings(max_examples=60, deadline=None)
@given(lon_lat, st.integers(-2, 2))
def test_the_wrapping_of_longitudes_does_not_matter(place: tuple[float, float], turns: int) -> None:
    lon, lat = place
    lons, lats = np.array([lon - 0.2, lon + 0.2]), np.array([lat - 0.1, lat + 0.1])
    first, second = region_grid(lons, lats), region_grid(lons + 360 * turns, lats)
    assume(abs(first.lon_0) != 180.0)
    assert second == first


def test_small_edits_of_the_inventory_keep_the_grid() -> None:
    base = region_grid([10.0, 11.0], [46.0, 47.0], margin_m=1000)
    moved = region_grid([10.00001, 11.0], [46.0, 46.99999], margin_m=1000)
    assert moved == base
    assert base.lat_0 % 0.5 == 0
    edge = base.shard_px * base.resolution_m
    assert base.left % edge == 0
    assert base.top % edge == 0


def test_windows_shards_and_geoboxes_agree() -> None:
    grid = grid_at(10.8, 46.8, shard_px=1024)
    shard = grid.shard(1, 0)
    assert shard.id == "r001c000"
    assert shard.geobox().boundingbox.bbox == shard.bounds
    wide = shard.geobox(halo=16)
    assert wide.shape == (1024 + 32, 1024 + 32)
    assert wide.boundingbox.left == shard.bounds[0] - 16 * grid.resolution_m
    assert grid.geobox.shape == grid.shape
    window = grid.window_transform(shard.window[0].start, shard.window[1].start)
    assert (window.c, window.f) == (shard.bounds[0], shard.bounds[3])


def test_shards_near_ice_are_found_and_no_others() -> None:
    grid = grid_at(10.8, 46.8, shard_px=256, chunk_px=256)
    target = grid.shard(1, 1)
    left, bottom, right, top = target.bounds
    point = shapely.Point((left + right) / 2, (bottom + top) / 2)
    assert [s.id for s in grid.shards_near([point], 0)] == [target.id]
    reach = (right - left) / 2 + 1
    near = {s.id for s in grid.shards_near([point], reach)}
    assert near == {"r001c001", "r000c001", "r002c001", "r001c000", "r001c002"}
    assert grid.shards_near([], 1000) == []


def true_convergence(grid: RegionGrid, row: int, col: int) -> float:
    """By a step of 20 m to the true north on the ellipsoid."""
    x, y = grid.transform @ (col + 0.5, row + 0.5)
    lon, lat = Transformer.from_crs(grid.crs, 4326, always_xy=True).transform(x, y)
    lon, lat, _ = Geod(ellps="WGS84").fwd(lon, lat, 0.0, 20.0)
    x1, y1 = Transformer.from_crs(4326, grid.crs, always_xy=True).transform(lon, lat)
    return math.degrees(math.atan2(x - x1, y1 - y))


def turned(a: npt.ArrayLike, b: npt.ArrayLike) -> np.ndarray:
    """Angle between two directions, degrees."""
    return np.abs((np.asarray(a) - b + 180) % 360 - 180)


WIDE = {"Alps": (5, 17, 44, 48), "83 N": (-80, -20, 79, 83.6), "Antarctica": (-75, -55, -80, -62)}
WIDE |= {"antimeridian": (170, 190, 60, 71), "equator": (-5, 35, -3, 1)}


@pytest.mark.parametrize("place", WIDE)
def test_convergence_at_the_corners_of_a_region_is_that_of_the_geodesic(place: str) -> None:
    west, east, south, north = WIDE[place]
    grid = region_grid([west, east, east, west], [south, south, north, north])
    for row in (0, grid.shape[0] - 1):
        for col in (0, grid.shape[1] - 1):
            found = convergence(grid, slice(row, row + 1), slice(col, col + 1))
            assert turned(found[0, 0], true_convergence(grid, row, col)) < 0.01


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(
        st.sampled_from([-180.0, 0.0, 10.8, 179.9]) | st.floats(-180, 180),
        st.sampled_from([83.0, -80.0, 0.0]) | st.floats(-89.5, 89.5),
    ),
    st.sampled_from([5.0, 10.0, 90.0]),
    st.tuples(st.integers(0, 800), st.integers(0, 800)),
)
def test_convergence_is_within_a_hundredth_of_a_degree_of_projs(
    place: tuple[float, float], resolution: float, corner: tuple[int, int]
) -> None:
    grid = grid_at(*place, resolution_m=resolution, shard_px=1024, margin_m=20_000)
    rows, cols = (slice(start, start + 70) for start in corner)
    found = convergence(grid, rows, cols)[::23, ::23]
    lon, lat = grid.lonlat(np.arange(70)[::23, None] + corner[0], np.arange(70)[::23] + corner[1])
    assume(np.abs(lat).max() < 89.999)
    factors = Proj(grid.proj4).get_factors(lon, lat)
    assert turned(found, factors.meridian_convergence).max() < 0.01


def test_convergence_does_not_depend_on_the_window() -> None:
    for lon, lat in ((10.8, 46.8), (-33.0, 83.6), (0.0, 89.9)):
        grid = grid_at(lon, lat)
        whole = convergence(grid, slice(100, 400), slice(-50, 250))
        part = convergence(grid, slice(190, 333), slice(-7, 201))
        assert part.tobytes() == np.ascontiguousarray(whole[90:233, 43:251]).tobytes()


def test_around_a_pole_grid_north_points_everywhere() -> None:
    grid = RegionGrid(90.0, 0.0, 10.0, 256, 64, -1280.0, 1280.0, 1, 1)
    angle = convergence(grid, slice(0, 256), slice(0, 256))
    y, x = np.mgrid[127.5:-128.5:-1, -127.5:128.5]
    assert turned(angle, np.degrees(np.arctan2(x, -y))).max() < 1e-4


def test_a_grid_survives_json() -> None:
    grid = grid_at(-73.3, -49.3)
    assert RegionGrid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


def test_what_makes_no_grid_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="no finite coordinates"):
        region_grid([math.nan], [46.0])
    with pytest.raises(UsageError, match="too much of the globe"):
        region_grid([-120.0, 0.0, 120.0], [0.0, 0.0, 0.0])
    with pytest.raises(UsageError, match="whole number of chunks"):
        region_grid([10.0], [46.0], shard_px=1000, chunk_px=512)
    with pytest.raises(UsageError, match="resolution must be positive"):
        region_grid([10.0], [46.0], resolution_m=0)
    grid = grid_at(10.8, 46.8)
    for row, col in ((-1, 0), (0, -1), (grid.rows, 0), (0, grid.cols)):
        with pytest.raises(UsageError, match="no shard in row"):
            grid.shard(row, col)


def test_boxes_are_found_for_any_rectangle_of_the_grid() -> None:
    grid = grid_at(10.8, 46.8)
    (box,) = lonlat_boxes((-1000.0, -1000.0, 1000.0, 1000.0), grid)
    west, south, east, north = box
    assert west < grid.lon_0 < east
    assert south < grid.lat_0 < north
    assert north - south < 0.05
