from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from painted_world import store_layers
from pyproj import Geod, Transformer
from scipy import ndimage

from catalog.cube import (
    DATE_MISSING,
    Outcome,
    Workspace,
    create_layer,
    read_shard,
    write_shard,
)
from catalog.errors import StoreError, UsageError
from catalog.grid import RegionGrid, convergence
from catalog.illumination import (
    RELIEF_M,
    build_illumination_shard,
    cast_shadow,
    create_illumination,
    hillshade,
    shadow_halo,
)
from catalog.sun import Sun, SunOver
from catalog.terrain import describe_terrain, terrain_halo

SIZE = 10.0
EVERYWHERE = (-180.0, -90.0, 180.0, 90.0)
DAY = 19952  # 2024-08-17
SEASON = "2024"
azimuths = st.sampled_from([0.0, 45.0, 90.0, 180.0, 225.0, 270.0, 359.9]) | st.floats(0, 360)


# --- the angle of incidence -----------------------------------------------------------------------


@given(st.floats(0, 80), azimuths, azimuths, st.floats(1, 90))
def test_hillshade_is_the_cosine_between_the_sun_and_the_normal(
    slope: float, aspect: float, azimuth: float, elevation: float
) -> None:
    a, s, z, e = np.radians([aspect, slope, azimuth, elevation])
    normal = np.array([math.sin(s) * math.sin(a), math.sin(s) * math.cos(a), math.cos(s)])
    sun = np.array([math.cos(e) * math.sin(z), math.cos(e) * math.cos(z), math.sin(e)])
    found = hillshade(slope, math.sin(a), math.cos(a), sun_azimuth=azimuth, sun_elevation=elevation)
    assert float(found) == pytest.approx(float(normal @ sun), abs=1e-12)


def test_flat_ground_is_lit_by_the_height_of_the_sun_and_holes_stay_holes() -> None:
    found = hillshade([0, np.nan], [0, 0], [0, 0], sun_azimuth=123.0, sun_elevation=30.0)
    assert found[0] == pytest.approx(0.5)
    assert np.isnan(found[1])


# --- cast shadows ---------------------------------------------------------------------------------


Surface = Callable[[np.ndarray, np.ndarray], np.ndarray]


def hidden_by(surface: Surface, shape: tuple[int, int], *, azimuth: float, rise: float):
    """Metres by which rays from each pixel are blocked, walked in half pixels; negative: clear.

    The surface takes metres east and south.
    """
    y, x = np.mgrid[: shape[0], : shape[1]] * SIZE
    z, sun = surface(x, y), math.radians(azimuth)
    depth = np.full(shape, -np.inf)
    for far in np.arange(SIZE / 2, (z.max() - z.min()) / rise + SIZE, SIZE / 2):
        there = surface(x + far * math.sin(sun), y - far * math.cos(sun))
        np.maximum(depth, there - z - far * rise, out=depth)
    return depth


def agree_to_a_pixel(found: np.ndarray, depth: np.ndarray, *, rise: float) -> bool:
    """Whether shadows are as walked but for a pixel at their edges, and but for grazing rays."""
    square = np.ones((3, 3), bool)
    surely_dark = ndimage.binary_erosion(depth > 0, square, border_value=1)
    perhaps_dark = ndimage.binary_dilation(depth > 0, square)
    grazing = np.abs(depth) < 2 * rise * SIZE
    wrong = ((surely_dark & ~found) | (found & ~perhaps_dark)) & ~grazing
    return not wrong[2:-2, 2:-2].any()


def relief(seed: int, n: int = 70) -> np.ndarray:
    """Smooth mountains of some 600 m."""
    rng = np.random.default_rng(seed)
    return 2000 + 2500 * ndimage.gaussian_filter(rng.normal(0, 1, (n, n)), 6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), azimuths, st.floats(5, 60))
def test_shadows_are_those_of_a_march_along_every_ray(
    seed: int, azimuth: float, elevation: float
) -> None:
    z, rise = relief(seed), math.tan(math.radians(elevation))

    def surface(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(z, [y / SIZE, x / SIZE], order=1, cval=-1e9)

    found = cast_shadow(z, resolution_m=SIZE, sun_azimuth_grid=azimuth, sun_elevation=elevation)
    depth = hidden_by(surface, z.shape, azimuth=azimuth, rise=rise)
    assert agree_to_a_pixel(found, depth, rise=rise)
    assert ((depth > 0) != found).mean() < 0.05
    if 0.2 < found.mean() < 0.8:
        assert not agree_to_a_pixel(np.zeros_like(found), depth, rise=rise)
        assert not agree_to_a_pixel(~found, depth, rise=rise)


@pytest.mark.parametrize("azimuth", range(0, 360, 15))
@pytest.mark.parametrize("elevation", [10.0, 30.0, 60.0])
def test_a_tower_casts_a_shadow_as_long_as_the_sun_is_low(azimuth: int, elevation: float) -> None:
    z = np.zeros((201, 201))
    z[98:103, 98:103] = 100.0
    found = cast_shadow(z, resolution_m=SIZE, sun_azimuth_grid=azimuth, sun_elevation=elevation)
    y, x = (np.mgrid[:201, :201] - 100) * SIZE
    sun = math.radians(azimuth)
    away = -(x * math.sin(sun) - y * math.cos(sun))
    aside = x * math.cos(sun) + y * math.sin(sun)
    half = 25 * (abs(math.sin(sun)) + abs(math.cos(sun)))
    length = 100 / math.tan(math.radians(elevation))
    assert not found[
        (np.abs(aside) > half + SIZE) | (away > length + half + SIZE) | (away < -half)
    ].any()
    axis = (np.abs(aside) < SIZE) & (away > 45) & (away < length + 15)
    assert found[axis].all()


@pytest.mark.parametrize("azimuth", [0.0, 20.0, -45.0, 59.0])
@pytest.mark.parametrize("elevation", [5.0, 20.0, 45.0])
def test_a_wall_casts_a_shadow_of_its_height(azimuth: float, elevation: float) -> None:
    z = np.zeros((120, 301))
    z[:5] = 50.0
    found = cast_shadow(z, resolution_m=SIZE, sun_azimuth_grid=azimuth, sun_elevation=elevation)
    length = 50 / math.tan(math.radians(elevation)) * math.cos(math.radians(azimuth))
    widths = found[:, 130:170].sum(axis=0) * SIZE
    assert np.abs(widths - length).max() <= 1.5 * SIZE


@settings(max_examples=25, deadline=None)
@given(azimuths, st.floats(20, 42), st.booleans())
def test_a_mountain_casts_the_shadow_that_geometry_says(
    azimuth: float, elevation: float, pointed: bool
) -> None:
    """The surface itself is walked, not its pixels: a cone as steep as 45 degrees, and a dome."""
    rise = math.tan(math.radians(elevation))

    def surface(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        away = np.hypot(x - 60.2 * SIZE, y - 60.7 * SIZE)
        return np.maximum(0, 200 - away) if pointed else 400 * np.exp(-((away / 200) ** 2) / 2)

    y, x = np.mgrid[:121, :121] * SIZE
    found = cast_shadow(
        surface(x, y), resolution_m=SIZE, sun_azimuth_grid=azimuth, sun_elevation=elevation
    )
    depth = hidden_by(surface, x.shape, azimuth=azimuth, rise=rise)
    assert found.any()
    assert agree_to_a_pixel(found, depth, rise=rise)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    azimuths,
    st.floats(10, 60),
    st.tuples(*[st.integers(0, 30)] * 4),
    st.booleans(),
)
def test_the_window_does_not_matter_beyond_the_halo(
    seed: int, azimuth: float, elevation: float, more: tuple[int, int, int, int], holes: bool
) -> None:
    z = relief(seed, 200).astype(np.float32)
    if holes:
        z[np.random.default_rng(seed).random(z.shape) < 0.05] = np.nan
    sun = {"resolution_m": SIZE, "sun_azimuth_grid": azimuth, "sun_elevation": elevation}
    inner = (slice(90, 110), slice(85, 112))
    height = float(np.nanmax(z) - np.nanmin(z[inner]))
    halo = shadow_halo(height, sun_elevation=elevation, resolution_m=SIZE)
    assume(halo < 80)
    top, left, bottom, right = 90 - halo, 85 - halo, 110 + halo, 112 + halo
    top, left = max(0, top - more[0]), max(0, left - more[1])
    part = z[top : bottom + more[2], left : right + more[3]]
    whole = cast_shadow(z, **sun, inner=inner, origin=(5000, -300))
    found = cast_shadow(
        part,
        **sun,
        inner=(slice(90 - top, 110 - top), slice(85 - left, 112 - left)),
        origin=(5000 + top, -300 + left),
    )
    assert found.tobytes() == whole.tobytes()
    assert whole.tobytes() == cast_shadow(z, **sun, origin=(5000, -300))[inner].tobytes()


def test_what_is_not_known_casts_no_shadow_and_lies_in_none() -> None:
    z = np.zeros((40, 60))
    z[:, 30] = 200.0
    sun = {"resolution_m": SIZE, "sun_azimuth_grid": 90.0, "sun_elevation": 45.0}
    whole = cast_shadow(z, **sun)
    assert whole[:, 10:30].all()
    assert not whole[:, :10].any()
    z[10:20, 25:29] = np.nan
    z[30:, 30] = np.nan
    found = cast_shadow(z, **sun)
    assert not found[np.isnan(z)].any()
    assert not found[30:].any()
    assert found[10:20, 10:25].all()
    assert not cast_shadow(np.full((5, 5), np.nan), **sun).any()


@pytest.mark.parametrize("elevation", [0.0, -5.0, 91.0, math.nan])
def test_a_sun_below_the_horizon_is_refused(elevation: float) -> None:
    with pytest.raises(UsageError, match="above the horizon"):
        shadow_halo(100, sun_elevation=elevation, resolution_m=SIZE)
    with pytest.raises(UsageError, match="above the horizon"):
        cast_shadow(
            np.zeros((3, 3)), resolution_m=SIZE, sun_azimuth_grid=0, sun_elevation=elevation
        )


# --- the layer ------------------------------------------------------------------------------------


def a_grid(shard_px: int = 64, size: int = 128, **changes: float) -> RegionGrid:
    values = {"lat_0": 46.5, "lon_0": 11.0, "resolution_m": SIZE, "shard_px": shard_px}
    values |= {"chunk_px": 32, "left": 10_240.0, "top": -20_480.0}
    n = size // shard_px
    return RegionGrid(**(values | {"rows": n, "cols": n} | changes))


def painted(
    folder: Path,
    grid: RegionGrid,
    surface: Surface,
    *,
    days: np.ndarray | int = DAY,
    looks: Mapping[int, tuple[float, float]],
    seen_from: tuple[float, float] | None = None,
) -> tuple[np.ndarray, list[Outcome]]:
    """Illumination of a whole grid; the surface takes metres east and south of its corner."""
    workspace = Workspace(folder)
    halo = terrain_halo(SIZE)
    y, x = (np.mgrid[-halo : grid.shape[0] + halo, -halo : grid.shape[1] + halo] + 0.5) * SIZE
    bands = describe_terrain(
        surface(x, y),
        resolution_m=SIZE,
        convergence_deg=convergence(grid, slice(0, grid.shape[0]), slice(0, grid.shape[1])),
    )
    dates = np.broadcast_to(np.int32(days), grid.shape).astype(np.int32)
    store_layers(workspace, grid, {"cube.zarr/terrain": bands, f"cube.zarr/{SEASON}/date": dates})
    create_illumination(workspace, SEASON, grid)
    place = seen_from or tuple(float(v) for v in grid.lonlat(64, 64))
    suns = [SunOver(day, EVERYWHERE, Sun(*sun, *place)) for day, sun in looks.items()]
    outcomes, out = [], np.empty(grid.shape, np.uint8)
    for shard in grid.shards():
        outcomes.append(build_illumination_shard(workspace, SEASON, shard, looks=suns))
        out[shard.window] = read_shard(workspace, f"cube.zarr/{SEASON}/illumination", shard)
    return out, outcomes


def peak(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1000 + np.maximum(0, 400 - 1.2 * np.hypot(x - 640, y - 640))


def test_flat_ground_shows_the_height_of_the_sun(tmp_path: Path) -> None:
    out, outcomes = painted(
        tmp_path, a_grid(), lambda x, y: 0 * x + 1000, looks={DAY: (170.0, 30.0)}
    )
    assert np.unique(out).tolist() == [125]
    assert outcomes[0].facts == {
        "suns": 1,
        "valid_fraction": 1.0,
        "shaded_fraction": 0.0,
        "horizon_known_fraction": outcomes[0].facts["horizon_known_fraction"],
    }
    assert 0 < outcomes[0].facts["horizon_known_fraction"] < 1  # the grid ends


def test_a_mountain_throws_its_shadow_over_the_shards_beyond(tmp_path: Path) -> None:
    out, outcomes = painted(tmp_path, a_grid(), peak, looks={DAY: (135.0, 35.0)})
    assert (out[:64, :64] == 0).mean() > 0.05
    assert out[64:, 64:].min() > 0  # the sunny side
    assert out[60, 60] == 0
    assert out[70, 70] > out[5, 5] > 0
    assert outcomes[0].facts["shaded_fraction"] == pytest.approx((out[:64, :64] == 0).mean())
    array = Workspace(tmp_path).array(f"cube.zarr/{SEASON}/illumination")
    assert array.attrs["scale_factor"] * 250 == 1
    assert array.attrs["_FillValue"] == 255


def test_the_tiling_into_shards_changes_no_byte_of_illumination(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    days = rng.choice([DAY, DAY + 5, DAY + 9, DATE_MISSING], (128, 128))
    looks = {DAY: (160.0, 25.0), DAY + 5: (200.0, 15.0), DAY + 9: (20.0, 40.0)}
    images = [
        painted(tmp_path / str(px), a_grid(px), peak, days=days, looks=looks)[0]
        for px in (32, 64, 128)
    ]
    assert images[0].tobytes() == images[1].tobytes() == images[2].tobytes()
    assert ((images[0] == 255) == (days == DATE_MISSING)).all()
    alone, _ = painted(tmp_path / "alone", a_grid(), peak, days=DAY + 5, looks=looks)
    here = days == DAY + 5
    assert (images[0][here] == alone[here]).all()


@pytest.mark.parametrize("lat", [46.5, 79.0, -75.0])
def test_the_shadow_falls_away_from_the_sun_as_seen_from_true_north(
    tmp_path: Path, lat: float
) -> None:
    """The tip of a shadow, found in the image, lies on the ellipsoid where geometry says."""
    lon = 20.0
    draft = a_grid(lat_0=lat, lon_0=lon - 15.0)
    x, y = Transformer.from_crs(4326, draft.crs, always_xy=True).transform(lon, lat)
    grid = replace(
        draft, left=math.floor(x / SIZE) * SIZE - 640, top=math.ceil(y / SIZE) * SIZE + 640
    )
    azimuth = 300.0
    out, _ = painted(tmp_path, grid, peak, looks={DAY: (azimuth, 40.0)})
    shaded = np.argwhere(out == 0)
    summit = np.array([63.5, 63.5])
    tip = shaded[np.argmax(np.hypot(*(shaded - summit).T))]
    lons, lats = grid.lonlat(np.array([summit[0], tip[0]]), np.array([summit[1], tip[1]]))
    bearing, _, length = Geod(ellps="WGS84").inv(lons[0], lats[0], lons[1], lats[1])
    assert abs(convergence(grid, slice(0, 1), slice(0, 1))[0, 0]) > 10
    assert (bearing - (azimuth - 180)) % 360 == pytest.approx(0, abs=2) or (
        (azimuth - 180) - bearing
    ) % 360 == pytest.approx(0, abs=2)
    assert length == pytest.approx(400 / math.tan(math.radians(40)), abs=20)


@settings(deadline=None)
@given(st.floats(-180, 180), st.floats(-85, 85), azimuths, st.floats(1, 89))
def test_a_sun_is_the_same_from_everywhere(
    lon: float, lat: float, azimuth: float, elevation: float
) -> None:
    sun = Sun(azimuth, elevation, lon, lat)
    back = sun.seen_from(15.0, 46.0).seen_from(lon, lat)
    assert back.elevation == pytest.approx(elevation, abs=1e-6)
    assert math.cos(math.radians(back.azimuth - azimuth)) == pytest.approx(1, abs=1e-9)
    # a degree along the great circle towards it, the sun stands a degree higher
    x, y, z = (math.radians(v) for v in (lon, lat, azimuth))
    y1 = math.asin(
        math.sin(y) * math.cos(math.radians(1))
        + math.cos(y) * math.sin(math.radians(1)) * math.cos(z)
    )
    x1 = x + math.atan2(
        math.sin(z) * math.sin(math.radians(1)) * math.cos(y),
        math.cos(math.radians(1)) - math.sin(y) * math.sin(y1),
    )
    nearer = sun.seen_from(math.degrees(x1), math.degrees(y1))
    assert nearer.elevation == pytest.approx(elevation + 1, abs=1e-6)


def test_a_sun_given_for_the_rim_of_a_scene_lights_the_ground_alike(tmp_path: Path) -> None:
    """At 79 degrees and 100 km to the east the azimuth is another by five degrees."""
    grid = a_grid(lat_0=79.0)
    lon, lat = (float(v) for v in grid.lonlat(64, 64))
    there = Sun(170.0, 30.0, lon, lat).seen_from(lon + 5, lat)
    assert there.azimuth - 170 == pytest.approx(5, abs=1)
    here, _ = painted(tmp_path / "here", grid, peak, looks={DAY: (170.0, 30.0)})
    moved, _ = painted(
        tmp_path / "moved",
        grid,
        peak,
        looks={DAY: (there.azimuth, there.elevation)},
        seen_from=(there.lon, there.lat),
    )
    assert (here == 0).any()
    assert (here == moved).mean() > 0.999  # but for the rounding of the way there and back


def test_a_look_without_a_usable_sun_stays_unknown_and_is_named(tmp_path: Path) -> None:
    days = np.full((128, 128), DAY)
    days[:, :40] = DAY + 1
    days[:, 40:50] = DAY + 2
    looks = {DAY: (170.0, 30.0), DAY + 2: (170.0, 2.0)}
    out, outcomes = painted(tmp_path, a_grid(), peak, days=days, looks=looks)
    assert (out[:, :50] == 255).all()
    assert (out[:, 50:] < 251).all()
    assert [(f.what, f.kind) for f in outcomes[0].set_aside] == [
        ("2024-08-18", "sun-unknown"),
        ("2024-08-19", "sun-unknown"),
    ]
    assert "2560 pixels of shard r000c000" in outcomes[0].set_aside[0].reason
    assert outcomes[1].set_aside == ()
    assert outcomes[0].facts["suns"] == 1
    assert outcomes[0].facts["valid_fraction"] == pytest.approx(14 / 64, abs=1e-6)


def test_unknown_terrain_is_unknown_illumination(tmp_path: Path) -> None:
    def torn(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(x < 320, np.nan, peak(x, y))

    out, outcomes = painted(tmp_path, a_grid(), torn, looks={DAY: (170.0, 30.0)})
    assert (out[:, :32] == 255).all()
    assert (out[:, 34:] != 255).all()
    assert outcomes[0].facts["valid_fraction"] < 0.51


def test_without_terrain_or_dates_nothing_is_made_up(tmp_path: Path) -> None:
    grid, workspace = a_grid(), Workspace(tmp_path)
    create_illumination(workspace, SEASON, grid)
    with pytest.raises(StoreError, match="run the stage"):
        build_illumination_shard(workspace, SEASON, grid.shard(0, 0), looks=[])
    create_layer(workspace, f"cube.zarr/{SEASON}/date", grid)
    create_layer(workspace, "cube.zarr/terrain", grid)
    outcome = build_illumination_shard(workspace, SEASON, grid.shard(0, 0), looks=[])
    stored = read_shard(workspace, f"cube.zarr/{SEASON}/illumination", grid.shard(0, 0))
    assert (stored == 255).all()
    assert outcome.facts["valid_fraction"] == outcome.facts["shaded_fraction"] == 0.0


def test_a_shard_of_full_size_is_swept_in_seconds(
    record_property: Callable[[str, object], None],
) -> None:
    halo = shadow_halo(RELIEF_M, sun_elevation=15, resolution_m=SIZE)
    n = 2048 + 2 * halo
    z = np.kron(relief(1, n // 32 + 1), np.ones((32, 32), np.float32))[:n, :n].astype(np.float32)
    inner = (slice(halo, halo + 2048),) * 2
    tracemalloc.start()
    start = time.perf_counter()
    cast_shadow(z, resolution_m=SIZE, sun_azimuth_grid=160, sun_elevation=15, inner=inner)
    seconds = time.perf_counter() - start
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    record_property("cast shadow", f"{n} x {n} px in {seconds:.2f} s, {peak_bytes / 2**20:.0f} MiB")
    assert peak_bytes + z.nbytes < 2**30


@pytest.mark.chaos
@pytest.mark.parametrize("elevation", [15.0, 3.0])
def test_a_whole_shard_is_lit_within_a_gibibyte(tmp_path: Path, elevation: float) -> None:
    grid = a_grid(2048, 2048 * 3, chunk_px=512, lat_0=79.0)
    workspace, shard = Workspace(tmp_path), grid.shard(1, 1)
    y, x = np.mgrid[:2048, :2048] * SIZE
    for each in grid.shards():
        east, south = x + each.col * 20480, y + each.row * 20480
        z = 1500 + 1500 * np.sin(east / 4000) * np.cos(south / 5000)
        halo = terrain_halo(SIZE)
        bands = describe_terrain(np.pad(z, halo, mode="edge"), resolution_m=SIZE, convergence_deg=0)
        create_layer(workspace, "cube.zarr/terrain", grid)
        write_shard(workspace, "cube.zarr/terrain", each, bands)
    create_layer(workspace, f"cube.zarr/{SEASON}/date", grid)
    days = np.indices((2048, 2048)).sum(axis=0, dtype=np.int32) % 8
    write_shard(workspace, f"cube.zarr/{SEASON}/date", shard, days)
    create_illumination(workspace, SEASON, grid)
    place = tuple(float(v) for v in grid.lonlat(3072, 3072))
    looks = [SunOver(day, EVERYWHERE, Sun(45.0 * day, elevation + 0.2, *place)) for day in range(8)]
    tracemalloc.start()
    outcome = build_illumination_shard(workspace, SEASON, shard, looks=looks)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcome.facts["valid_fraction"] == 1.0
    assert peak_bytes < 2**30
