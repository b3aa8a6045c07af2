from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer
from rasters import CENTRE, Paint, dem_item, small_grid

from catalog.assets import AssetPolicy
from catalog.cube import TERRAIN_BANDS, Outcome, Workspace, read_shard
from catalog.grid import RegionGrid, Shard
from catalog.sensors import describe_item
from catalog.terrain import build_terrain_shard, create_terrain, describe_terrain, terrain_halo

NAN = float("nan")
SIZE = 10.0
HALO = terrain_halo(SIZE)
LON, LAT = CENTRE


def bands_of(elevation: np.ndarray, resolution_m: float = SIZE) -> dict[str, np.ndarray]:
    return dict(
        zip(TERRAIN_BANDS, describe_terrain(elevation, resolution_m=resolution_m), strict=True)
    )


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
    for name in ("slope", "curvature"):
        assert np.isfinite(bands[name][~inner(near)]).all()
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
    whole = describe_terrain(z, resolution_m=resolution)
    part = describe_terrain(z[halo:-halo, halo:-halo], resolution_m=resolution)
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
    assert outcome.facts == {"dem_scenes": 1, "dem_scene_ids": ["DEM"], "valid_fraction": 1.0}


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
