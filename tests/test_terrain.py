from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasters import CENTRE, Paint, dem_item, small_grid

from catalog.assets import AssetPolicy
from catalog.cube import TERRAIN_BANDS, Outcome, Workspace, read_shard
from catalog.errors import DataError
from catalog.grid import RegionGrid, Shard, convergence
from catalog.sensors import describe_item
from catalog.terrain import build_terrain_shard, create_terrain, describe_terrain, terrain_halo

REAL = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data")) / "stac"
NAN = float("nan")
SIZE = 10.0
HALO = terrain_halo(SIZE)
LON, LAT = CENTRE


def bands_of(
    elevation: np.ndarray, resolution_m: float = SIZE, *, turn: float = 0.0
) -> dict[str, np.ndarray]:
    bands = describe_terrain(elevation, resolution_m=resolution_m, convergence_deg=turn)
    return dict(zip(TERRAIN_BANDS, bands, strict=True))


def places(n: int = 40, halo: int = HALO) -> tuple[np.ndarray, np.ndarray]:
    """Metres east and north of the middle of a window."""
    steps = (np.arange(n + 2 * halo) - (n + 2 * halo - 1) / 2) * SIZE
    x, y = np.meshgrid(steps, -steps)
    return x, y


def inner(values: np.ndarray) -> np.ndarray:
    return values[HALO:-HALO, HALO:-HALO]


@pytest.mark.parametrize(("east", "north"), [(0.0, 0.0), (0.3, 0.0), (0.0, -1.0), (0.2, 0.4)])
def test_a_plane_has_its_slope_and_no_curvature(east: float, north: float) -> None:
    x, y = places()
    bands = bands_of(2000 + east * x + north * y)
    np.testing.assert_allclose(
        bands["slope"], np.degrees(np.arctan(np.hypot(east, north))), atol=1e-4
    )
    np.testing.assert_allclose(bands["curvature"], 0, atol=1e-5)
    np.testing.assert_allclose(bands["relative_elevation"], 0, atol=1e-3)


def test_a_bowl_is_a_hollow_of_known_curvature_and_lies_below_its_surroundings() -> None:
    x, y = places()
    bands = bands_of(2000 + 0.0005 * (x**2 + y**2))
    np.testing.assert_allclose(bands["curvature"], 100 * 4 * 0.0005, rtol=1e-4)
    box = np.arange(-50, 51) * SIZE
    mean_square = np.mean(box**2)
    np.testing.assert_allclose(bands["relative_elevation"], -0.0005 * 2 * mean_square, rtol=1e-4)


@pytest.mark.parametrize("turn", [0.0, 7.5, -120.0])
@pytest.mark.parametrize("downslope", [0.0, 30.0, 90.0, 135.0, 180.0, 255.0, 359.0])
def test_a_plane_faces_downslope_as_seen_from_true_north(downslope: float, turn: float) -> None:
    x, y = places(10)
    azimuth = np.radians(downslope)
    bands = bands_of(2000 - 0.3 * (x * np.sin(azimuth) + y * np.cos(azimuth)), turn=turn)
    true = np.radians(downslope + turn)
    np.testing.assert_allclose(bands["aspect_sin"], np.sin(true), atol=1e-6)
    np.testing.assert_allclose(bands["aspect_cos"], np.cos(true), atol=1e-6)


def test_flat_ground_faces_nowhere_and_bends_nowhere() -> None:
    x, _ = places(10)
    bands = bands_of(np.float32(2000) + np.float32(1e-4) * np.sign(np.sin(x)), turn=40.0)
    for name in ("aspect_sin", "aspect_cos"):
        assert not bands[name].any()
    for name in ("plan_curvature", "profile_curvature"):
        np.testing.assert_allclose(bands[name], bands["curvature"] / 2, atol=1e-6)


@given(st.floats(-1, 1), st.floats(-1, 1), *(st.floats(-1e-3, 1e-3) for _ in "xyz"))
@settings(max_examples=40, deadline=None)
def test_curvature_is_that_of_the_surface_across_and_along_the_slope(
    east: float, north: float, bend_x: float, bend_y: float, twist: float
) -> None:
    """On a quadratic surface all derivatives are known; smoothing only lifts it."""
    x, y = places(6)
    z = 2000 + east * x + north * y + bend_x / 2 * x**2 + bend_y / 2 * y**2 + twist * x * y
    bands = bands_of(z)
    gx, gy = inner(east + bend_x * x + twist * y), inner(north + bend_y * y + twist * x)
    square = gx**2 + gy**2
    steep = square > 1e-4
    hessian = bend_x * gx**2 + 2 * twist * gx * gy + bend_y * gy**2
    np.testing.assert_allclose(
        bands["profile_curvature"][steep],
        (100 * hessian / np.maximum(square, 1e-9))[steep],
        atol=2e-5,
    )
    np.testing.assert_allclose(
        bands["plan_curvature"] + bands["profile_curvature"], bands["curvature"], atol=1e-6
    )


def test_water_gathers_where_plan_curvature_is_positive() -> None:
    x, y = places(10)
    valley = bands_of(2000 - 0.3 * y + 0.002 * x**2)
    np.testing.assert_allclose(valley["plan_curvature"][:, 4:6], 0.4, rtol=1e-2)
    np.testing.assert_allclose(valley["profile_curvature"][:, 4:6], 0, atol=1e-2)
    foot = bands_of(2000 + 0.3 * x + 0.0005 * x**2)
    np.testing.assert_allclose(foot["profile_curvature"], 0.1, rtol=1e-3)
    np.testing.assert_allclose(foot["plan_curvature"], 0, atol=1e-5)


def test_small_bumps_are_smoothed_away_in_curvature_only() -> None:
    x, _ = places()
    wave = np.sin(2 * np.pi * x / 40)
    bands = bands_of(2000 + wave)
    raw = 100 * (2 * np.pi / 40) ** 2
    assert np.abs(bands["curvature"]).max() < raw * 0.01
    assert bands["slope"].max() > 3


def test_relative_elevation_is_the_mean_of_what_is_known_within_a_kilometre() -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(1000, 3000, (20 + 2 * HALO, 20 + 2 * HALO))
    z[rng.random(z.shape) < 0.3] = NAN
    found = bands_of(z)["relative_elevation"]
    for row, col in ((0, 0), (7, 13), (19, 19), (3, 18)):
        r, c = row + HALO, col + HALO
        if np.isnan(z[r, c]):
            assert np.isnan(found[row, col])
        else:
            expected = z[r, c] - np.nanmean(z[r - 50 : r + 51, c - 50 : c + 51])
            assert found[row, col] == pytest.approx(expected, abs=1e-3)


def test_holes_stay_holes_and_spoil_no_more_than_their_rim() -> None:
    x, y = places()
    z = 2000 + 0.3 * x + 0.1 * y
    hole = np.hypot(x, y) < 55
    z[hole] = NAN
    bands = bands_of(z)
    for values in bands.values():
        assert np.isnan(values[inner(hole)]).all()
    near = np.hypot(x, y) < 55 + 2 * SIZE
    for name in set(TERRAIN_BANDS) - {"elevation", "relative_elevation"}:
        assert np.isfinite(bands[name][~inner(near)]).all(), name
    for name in ("elevation", "relative_elevation"):
        assert np.isfinite(bands[name][~inner(hole)]).all()
    np.testing.assert_allclose(
        bands["slope"][~inner(near)], np.degrees(np.arctan(np.hypot(0.3, 0.1))), atol=1e-4
    )


@pytest.mark.parametrize("resolution", [5.0, 10.0, 30.0, 90.0])
def test_the_halo_is_wide_enough_that_no_seam_shows(resolution: float) -> None:
    halo = terrain_halo(resolution)
    rng = np.random.default_rng(1)
    z = rng.uniform(0, 4000, (30 + 4 * halo, 30 + 4 * halo))
    z[rng.random(z.shape) < 0.02] = NAN
    turn = rng.uniform(-180, 180, z[halo:-halo, halo:-halo].shape)
    whole = describe_terrain(z, resolution_m=resolution, convergence_deg=turn)
    inside = (slice(halo, -halo), slice(halo, -halo))
    part = describe_terrain(z[inside], resolution_m=resolution, convergence_deg=turn[inside])
    assert part.tobytes() == whole[:, halo:-halo, halo:-halo].tobytes()


def build(
    tmp_path: Path,
    items: Sequence[dict],
    *,
    grid: RegionGrid | None = None,
    shard: Shard | None = None,
    name: str = "workspace",
) -> tuple[dict[str, np.ndarray], Outcome]:
    grid = grid or small_grid()
    shard = shard or grid.shard(grid.rows // 2, grid.cols // 2)
    workspace = Workspace(tmp_path / name)
    create_terrain(workspace, grid)
    outcome = build_terrain_shard(
        workspace,
        shard,
        dem=[describe_item(item) for item in items],
        policy=AssetPolicy((str(tmp_path),)),
    )
    stored = read_shard(workspace, "cube.zarr/terrain", shard)
    return dict(zip(TERRAIN_BANDS, stored, strict=True)), outcome


def hills(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    return 2000 + 300 * np.sin(lon * 500) + 200 * np.cos(lat * 900)


def dem(folder: Path, name: str = "DEM", paint: Paint = hills, **at: float) -> dict:
    frame = {"west": LON - 0.06, "south": LAT - 0.05, "size": 0.12, **at}
    return dem_item(folder, name, paint=paint, **frame)


def test_elevation_in_degrees_lands_where_the_projection_says(tmp_path: Path) -> None:
    def paint(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return 2000 + (lon - LON) * 20000 + (lat - LAT) * 30000

    grid = small_grid()
    shard = grid.shard(1, 1)
    bands, outcome = build(tmp_path, [dem(tmp_path, paint=paint)], grid=grid, shard=shard)
    left, _, _, top = shard.bounds
    steps = (np.arange(grid.shard_px) + 0.5) * SIZE
    x, y = np.meshgrid(left + steps, top - steps)
    lon, lat = Transformer.from_crs(grid.crs, 4326, always_xy=True).transform(x, y)
    np.testing.assert_allclose(bands["elevation"], paint(lon, lat), atol=0.06)  # 0.02 pixels
    assert outcome.set_aside == ()
    assert outcome.facts == {
        "dem_scenes": 1,
        "dem_scene_ids": ["DEM"],
        "dem_date": "2010-12/2015-01",
        "valid_fraction": 1.0,
    }


@pytest.mark.parametrize("lat", [46.8, 78.5, -70.0])
def test_aspect_is_the_azimuth_on_the_ellipsoid(tmp_path: Path, lat: float) -> None:
    """A hill that falls to the true south-east faces there in a grid whose north leans."""
    lon = 10.8
    metre = 1 / 111_195.0

    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return 1000 - 0.3 / metre * ((x - lon) * np.cos(np.radians(lat)) - (y - lat))

    size = {"west": lon - 0.15, "south": lat - 0.1, "size": 0.3}
    grid = RegionGrid(lat, lon - 12.0, 10.0, 128, 64, 0.0, 0.0, 1, 1)
    to_grid = Transformer.from_crs(4326, grid.crs, always_xy=True)
    left, top = (np.array(to_grid.transform(lon, lat)) // 1280 * 1280).tolist()
    grid = replace(grid, left=left, top=top)
    item = dem_item(tmp_path, "DEM", paint=paint, **size)
    bands, _ = build(tmp_path, [item], grid=grid, shard=grid.shard(0, 0))
    aspect = np.degrees(np.arctan2(bands["aspect_sin"], bands["aspect_cos"]))
    assert abs(convergence(grid, slice(0, 1), slice(0, 1))[0, 0]) > 8
    np.testing.assert_allclose(aspect, 135, atol=0.5)


def test_the_tiling_into_shards_changes_no_byte(tmp_path: Path) -> None:
    item = dem(tmp_path)
    coarse = small_grid(shard_px=256, size_m=1000)
    place = coarse.shard(coarse.rows // 2, coarse.cols // 2)
    whole, _ = build(tmp_path, [item], grid=coarse, shard=place, name="whole")
    grid = replace(coarse, shard_px=64, rows=coarse.rows * 4, cols=coarse.cols * 4)
    for row, col in ((0, 0), (1, 2), (3, 3)):
        shard = grid.shard(place.row * 4 + row, place.col * 4 + col)
        part, _ = build(tmp_path, [item], grid=grid, shard=shard, name="parts")
        window = (slice(64 * row, 64 * row + 64), slice(64 * col, 64 * col + 64))
        for name, values in part.items():
            assert values.tobytes() == whole[name][window].tobytes(), name


def test_tiles_of_the_elevation_model_join_without_a_seam(tmp_path: Path) -> None:
    one, _ = build(tmp_path, [dem(tmp_path)], name="one")
    pixel = 1 / 3600
    middle = round(LON / pixel) * pixel
    halves = [
        dem(tmp_path, "west", west=middle - 0.12 + 2 * pixel),
        dem(tmp_path, "east", west=middle - 2 * pixel),
    ]
    two, outcome = build(tmp_path, halves[::-1], name="two")
    assert outcome.facts["valid_fraction"] == 1.0
    assert outcome.facts["dem_scene_ids"] == ["east", "west"]
    np.testing.assert_allclose(two["elevation"], one["elevation"], atol=1.5)


def test_where_tiles_overlap_the_first_by_id_counts_whatever_their_order(tmp_path: Path) -> None:
    items = [
        dem(tmp_path, name, paint=lambda x, y, z=height: np.full(x.shape, z))
        for name, height in (("b", 2000.0), ("a", 1000.0), ("c", 3000.0))
    ]
    first, outcome = build(tmp_path, items, name="w0")
    assert np.unique(first["elevation"]).tolist() == [1000.0]
    _, again = build(tmp_path, items[::-1], name="w1")
    assert again == outcome


def test_an_elevation_model_over_the_antimeridian_is_whole(tmp_path: Path) -> None:
    centre = (180.0, 68.0)
    pixel = 1 / 3600
    items = [
        dem_item(tmp_path, "E179", paint=lambda x, y: y * 20, west=179.9 - pixel / 2, south=67.95),
        dem_item(tmp_path, "W180", paint=lambda x, y: y * 20, west=-180 - pixel / 2, south=67.95),
    ]
    items[0]["bbox"] = [179.9 - pixel / 2, 67.95, 180 - pixel / 2, 68.05]
    items[1]["bbox"] = [-180 - pixel / 2, 67.95, -179.9 - pixel / 2, 68.05]
    grid = small_grid(centre=centre, epsg=32601, size_m=1000)
    shard = min(grid.shards(), key=lambda s: abs(s.bounds[0] + s.bounds[2]))
    bands, outcome = build(tmp_path, items, grid=grid, shard=shard)
    assert outcome.set_aside == ()
    assert outcome.facts["dem_scenes"] == 2
    assert outcome.facts["valid_fraction"] == 1.0
    assert bands["elevation"].min() > 1300


@pytest.mark.parametrize("fill", [-9999.0, 32767.0, -32768.0, 1e30, NAN, float("inf")])
def test_fill_values_that_no_field_announces_are_holes(tmp_path: Path, fill: float) -> None:
    grid = small_grid()
    shard = grid.shard(1, 1)
    west, _, east, _ = shard.lonlat_boxes[0]

    def paint(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return np.where(lon > (west + east) / 2, fill, 2000.0)

    bands, outcome = build(tmp_path, [dem(tmp_path, paint=paint)], grid=grid, shard=shard)
    assert 0.2 < outcome.facts["valid_fraction"] < 0.8
    assert np.unique(bands["elevation"][np.isfinite(bands["elevation"])]).tolist() == [2000.0]
    assert np.nanmax(bands["slope"]) < 0.01
    assert np.nanmax(np.abs(bands["relative_elevation"])) < 0.01


def test_the_sea_is_at_zero_and_no_hole(tmp_path: Path) -> None:
    item = dem(tmp_path, paint=lambda x, y: np.zeros(x.shape))
    bands, outcome = build(tmp_path, [item])
    assert not bands["elevation"].any()
    assert outcome.facts["valid_fraction"] == 1.0


def test_a_missing_tile_is_named_and_the_others_are_used(tmp_path: Path) -> None:
    good, gone = dem(tmp_path, "good"), dem(tmp_path, "gone")
    _, without = build(tmp_path, [good], name="without")
    Path(gone["assets"]["data"]["href"]).unlink()
    _, outcome = build(tmp_path, [gone, good], name="with")
    assert [(fault.what, fault.kind) for fault in outcome.set_aside] == [("gone", "asset-missing")]
    assert outcome.outputs == without.outputs


def test_without_any_elevation_every_band_is_a_hole(tmp_path: Path) -> None:
    bands, outcome = build(tmp_path, [])
    assert all(np.isnan(values).all() for values in bands.values())
    assert outcome.facts["valid_fraction"] == 0.0
    assert outcome.facts["dem_date"] == ""


def test_the_period_of_acquisition_is_that_of_the_item_or_of_the_product(tmp_path: Path) -> None:
    published, stated, single = (dem(tmp_path, name) for name in ("a", "b", "c"))
    stated["properties"] |= {
        "start_datetime": "2009-07-14T10:00:00Z",
        "end_datetime": "2012-08-01T00:00:00Z",
    }
    grid = small_grid()
    scenes = [describe_item(item) for item in (published, stated)]
    survey = replace(describe_item(single), collection="lidar", datetime="2019-09-30T12:00:00Z")

    def kept(name: str, **asked: object) -> str:
        workspace = Workspace(tmp_path / name)
        create_terrain(workspace, grid, **asked)
        return workspace.array("cube.zarr/terrain").attrs["dem_date"]

    assert kept("product", collections=["cop-dem-glo-30"]) == "2010-12/2015-01"
    assert kept("nasa", collections=["nasadem"]) == "2000-02-11/2000-02-22"
    assert kept("both", dem=scenes) == "2009-07-14/2015-01"
    assert kept("stated", dem=scenes[1:]) == "2009-07-14/2012-08-01"
    assert kept("survey", dem=[survey]) == "2019-09-30"
    assert kept("unknown", collections=["somebody"]) == ""


def test_a_period_that_is_none_is_refused(tmp_path: Path) -> None:
    item = dem(tmp_path)
    item["properties"] |= {"start_datetime": "soon", "end_datetime": "2012-08-01T00:00:00Z"}
    with pytest.raises(DataError, match="'soon'"):
        describe_item(item)


def test_only_a_stated_period_changes_the_fingerprint(tmp_path: Path) -> None:
    item = dem(tmp_path)
    plain = describe_item(item).fingerprint
    item["properties"] |= {"created": "2023-03-28T00:00:00Z"}
    assert describe_item(item).fingerprint == plain
    item["properties"] |= {"start_datetime": "2009-07-14T10:00:00Z"}
    assert describe_item(item).fingerprint == plain
    item["properties"] |= {"end_datetime": "2012-08-01T00:00:00Z"}
    assert describe_item(item).fingerprint != plain


@pytest.mark.real_data
def test_real_elevation_items_do_not_pass_off_publication_as_acquisition() -> None:
    if not REAL.exists():
        pytest.skip(f"the real STAC items are not at {REAL} (set INVENTORY_ENGINE_TEST_DATA)")
    for path in sorted(REAL.glob("*cop-dem*.json")):
        document = json.loads(path.read_text())
        for item in document["features"] if isinstance(document, dict) else document:
            scene = describe_item(item)
            assert scene.datetime == "2021-04-22T00:00:00Z"
            assert scene.period == ""
