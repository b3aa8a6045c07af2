"""Looks of a season at a glacier: what is measured of them on painted scenes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from pyproj import Transformer
from rasters import CENTRE, UTM, landsat_item, optical_item, small_grid, utm_frame, write_tif
from servers import file_script, scripted_server

from catalog.assets import AssetPolicy, OpenAssets
from catalog.candidates import (
    RANKING_SCHEMA,
    Ranking,
    rank_looks,
    read_look,
)
from catalog.cube import Workspace
from catalog.errors import StoreError
from catalog.grid import RegionGrid
from catalog.looks import looks_of
from catalog.ranking import broadband_albedo
from catalog.saved_ranking import build_ranking, read_rankings
from catalog.scenes import BandSource, Scene
from catalog.sensors import describe_item
from catalog.stacks import Tile, read_bands
from catalog.surroundings import coarse_grid, glacier_windows, neighbours

import rasterio  # isort: skip

X0, Y0 = Transformer.from_crs(4326, UTM, always_xy=True).transform(*CENTRE)
CLOUD, GROUND_CLASS = 9, 5
ICE = {"green": 0.45, "nir": 0.4, "swir1": 0.05}
GROUND = {"green": 0.12, "nir": 0.2, "swir1": 0.25}
WHITE = {"green": 0.85, "nir": 0.75, "swir1": 0.08}
THICK_CLOUD = {"green": 0.7, "nir": 0.7, "swir1": 0.5}
ROLES = ("blue", "green", "red", "nir", "swir1", "swir2")

Colour = dict[str, float]
Where = Callable[[np.ndarray, np.ndarray], np.ndarray]


def squares(**places: tuple[float, float, float]) -> gpd.GeoDataFrame:
    """Square glaciers: metres east and north of the middle of the scenes, and the edge."""
    boxes = [shapely.box(X0 + x, Y0 + y, X0 + x + e, Y0 + y + e) for x, y, e in places.values()]
    frame = gpd.GeoDataFrame({"ref_id": list(places)}, geometry=boxes, crs=UTM)
    return frame.set_geometry(frame.geometry.segmentize(100)).to_crs(4326)


ONE = squares(A=(-600, -600, 1200))
TWO = squares(A=(-1500, -300, 600), B=(900, -300, 600))


def on_ice(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (abs(x - X0) < 600) & (abs(y - Y0) < 600)


def everywhere(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.isfinite(x + y)


def nowhere(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.isnan(x + y)


def western(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x < X0


def look(
    folder: Path,
    name: str,
    *,
    day: str = "2024-09-15",
    beside: Colour = GROUND,
    ice: Colour = ICE,
    seen: Where = everywhere,
    cloudy: Where = nowhere,
    **options: Any,
) -> dict[str, Any]:
    """A scene of one glacier of 1.2 km and of the ground beside it."""

    def paint(role: str) -> Where:
        return lambda x, y: np.where(
            seen(x, y), np.where(on_ice(x, y), ice.get(role, 0.3), beside.get(role, 0.2)), np.nan
        )

    return optical_item(
        folder,
        name,
        when=f"{day}T10:00:00Z",
        paint={role: paint(role) for role in ROLES},
        classes=lambda x, y: np.where(cloudy(x, y), CLOUD, GROUND_CLASS),
        **options,
    )


def rank_all(
    folder: Path,
    items: Sequence[dict[str, Any] | Scene],
    *,
    outlines: gpd.GeoDataFrame = ONE,
    others: gpd.GeoDataFrame | None = None,
    grid: RegionGrid | None = None,
    allowed: str = "",
    **options: Any,
) -> Ranking:
    return rank_looks(
        outlines,
        others=outlines if others is None else others,
        grid=grid or small_grid(),
        scenes=[i if isinstance(i, Scene) else describe_item(i) for i in items],
        policy=AssetPolicy((allowed or str(folder),)),
        **options,
    )


def test_a_clear_look_at_ice_on_bare_ground_is_measured_as_it_was_painted(tmp_path: Path):
    item = look(tmp_path, "S2A_one", properties={"view:sun_elevation": 47.5})
    frame = rank_all(tmp_path, [item]).frame
    assert list(frame) == RANKING_SCHEMA.names
    row = frame.iloc[0]
    assert (row["ref_id"], row["rank"], row["day"]) == ("A", 1, "2024-09-15")
    assert row["scene_ids"] == ["S2A_one"]
    assert row["coverage"] == 1
    assert row[["cloud", "hidden_around", "snow_around"]].tolist() == [0, 0, 0]
    expected = broadband_albedo(np.array([0.45]), np.array([0.4]))[0]
    assert row["albedo"] == pytest.approx(expected, abs=0.02)  # pixels of the rim are mixed
    assert abs(row["season_days"]) < 3
    assert row["sun_elevation"] == 47.5
    assert np.isnan(row["shadow"])
    assert row["has_mask"]


def test_cloud_over_half_of_the_glacier_is_told_apart_from_what_no_scene_covers(tmp_path: Path):
    cloudy = look(tmp_path, "S2A_cloud", day="2024-09-01", cloudy=western)
    narrow = look(tmp_path, "S2A_half", day="2024-09-11", seen=western)
    first, second = (rank_all(tmp_path, [item]).frame.iloc[0] for item in (cloudy, narrow))
    assert first["coverage"] == 1
    assert first["cloud"] == pytest.approx(0.5 + 60 / 1200, abs=0.06)  # the mask grows by 60 m
    assert (second["coverage"], second["cloud"]) == (pytest.approx(0.5, abs=0.06), 0)
    for row in (first, second):
        assert row["hidden_around"] == pytest.approx(0.5, abs=0.05)


def test_the_snow_that_counts_lies_beside_the_glacier_and_on_no_other_glacier(tmp_path: Path):
    white = look(tmp_path, "S2A_white", beside=WHITE)
    assert rank_all(tmp_path, [white]).frame["snow_around"].item() == 1
    # Here the painted ice belongs to a neighbour: it is as white as snow, and does not count.
    bare = look(tmp_path, "S2A_bare", day="2024-09-02")
    small = squares(B=(700, -200, 400))
    alone = rank_all(tmp_path, [bare], outlines=small).frame["snow_around"].item()
    known = rank_all(tmp_path, [bare], outlines=small, others=ONE).frame["snow_around"].item()
    assert alone > 0.2
    assert known == 0


def test_the_snow_free_look_wins_over_the_snowy_one_and_both_over_cloud(tmp_path: Path):
    items = [
        look(tmp_path, "S2A_snow", day="2024-07-01", beside=WHITE, ice=WHITE),
        look(tmp_path, "S2A_bare", day="2024-09-10"),
        look(tmp_path, "S2A_cloud", day="2024-09-15", cloudy=everywhere),
    ]
    frame = rank_all(tmp_path, items).frame
    assert frame["scene_ids"].str[0].tolist() == ["S2A_bare", "S2A_snow", "S2A_cloud"]
    assert frame["score"].iloc[-1] == 0


def test_cloud_in_a_scene_without_a_mask_is_judged_by_its_colour(tmp_path: Path):
    items = []
    for name, day, beside, ice in (
        ("S2A_ice", "2024-09-01", GROUND, ICE),
        ("S2A_snow", "2024-09-02", WHITE, WHITE),
        ("S2A_cloud", "2024-09-03", THICK_CLOUD, THICK_CLOUD),
    ):
        item = look(tmp_path, name, day=day, beside=beside, ice=ice)
        del item["assets"]["scl"]
        items.append(item)
    frame = rank_all(tmp_path, items).frame.sort_values("day")
    assert frame["cloud"].tolist() == [0, 0, 1]
    assert frame["hidden_around"].tolist() == [0, 0, 1]
    assert not frame["has_mask"].any()


def test_a_look_is_a_day_of_one_sensor_and_its_granules_fill_each_others_gaps(tmp_path: Path):
    east = look(tmp_path, "S2A_east", seen=lambda x, y: ~western(x, y))
    west = look(tmp_path, "S2A_west", seen=western)
    landsat = landsat_item(tmp_path, "LC08_one", when="2024-09-15T10:03:00Z")
    frame = rank_all(tmp_path, [east, landsat, west]).frame.sort_values("sensor")
    assert frame["sensor"].tolist() == ["landsat-oli", "sentinel-2-msi"]
    assert frame["scene_ids"].tolist() == [["LC08_one"], ["S2A_east", "S2A_west"]]
    assert frame["coverage"].tolist() == [1, 1]
    scenes = [describe_item(item) for item in (east, landsat, west)]
    assert looks_of(scenes) == looks_of([*scenes[::-1], scenes[0]])


def test_the_first_clear_granule_of_a_look_counts(tmp_path: Path):
    clouded = look(tmp_path, "S2A_a", cloudy=western)
    clear = look(tmp_path, "S2A_b")
    assert rank_all(tmp_path, [clouded, clear]).frame["cloud"].item() == 0


def test_the_order_of_scenes_and_the_company_of_glaciers_change_nothing(tmp_path: Path):
    items = [
        look(tmp_path, f"S2A_{n}", day=f"2024-09-{10 + n // 2:02d}", cloudy=cloudy, seen=seen)
        for n, (cloudy, seen) in enumerate(
            [
                (lambda x, y: (x + y) % 900 < 300, lambda x, y: x < X0 + 700),
                (lambda x, y: (x - y) % 700 < 200, lambda x, y: x > X0 - 800),
                (western, lambda x, y: y < Y0 + 100),
            ]
        )
    ]
    shuffled = items[:]
    random.Random(4).shuffle(shuffled)
    whole = rank_all(tmp_path, items, outlines=TWO).frame
    assert whole["cloud"].nunique() > 2
    pd.testing.assert_frame_equal(
        whole, rank_all(tmp_path, shuffled, outlines=TWO.iloc[::-1]).frame
    )
    alone = [
        rank_all(tmp_path, items, outlines=TWO.iloc[[n]], others=TWO).frame for n in range(len(TWO))
    ]
    pd.testing.assert_frame_equal(whole, pd.concat(alone, ignore_index=True))


def test_a_broken_scene_is_named_and_its_look_made_of_what_is_left(tmp_path: Path):
    sound = look(tmp_path, "S2A_sound", day="2024-09-10", seen=western)
    broken = look(tmp_path, "S2A_broken", day="2024-09-10")
    path = Path(broken["assets"]["nir"]["href"])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    ranking = rank_all(tmp_path, [sound, broken])
    assert [(fault.what, fault.kind) for fault in ranking.set_aside] == [
        ("S2A_broken", "raster-truncated")
    ]
    assert ranking.frame["scene_ids"].tolist() == [["S2A_sound"]]
    pd.testing.assert_frame_equal(ranking.frame, rank_all(tmp_path, [sound]).frame)


def test_a_scene_broken_in_one_place_is_left_out_for_the_glaciers_there_only(tmp_path: Path):
    far = squares(A=(-2300, -300, 500), B=(900, -300, 600))
    damaged = look(tmp_path, "S2A_damaged", day="2024-09-10")
    sound = look(tmp_path, "S2A_sound", day="2024-09-10", cloudy=western)
    path = Path(damaged["assets"]["nir"]["href"])
    with rasterio.open(path) as source:
        spots = [
            [int(source.get_tag_item(f"BLOCK_{what}_1_{row}", "TIFF", bidx=1)) for row in (0, 1)]
            for what in ("OFFSET", "SIZE")
        ]
    data = bytearray(path.read_bytes())
    for offset, size in zip(*spots, strict=True):
        data[offset : offset + size] = bytes(size)
    path.write_bytes(data)
    grid = small_grid()
    line = far.geometry.to_crs(grid.proj4).bounds["minx"].iloc[1] - 1200
    grid = replace(grid, left=line - 128 * coarse_grid(grid).resolution_m)
    # ^ so that a border of the lattice of chunks runs between the two
    ranking = rank_all(tmp_path, [damaged, sound], outlines=far, grid=grid)
    assert [fault.what for fault in ranking.set_aside] == ["S2A_damaged"]
    assert ranking.frame["scene_ids"].tolist() == [["S2A_damaged", "S2A_sound"], ["S2A_sound"]]
    alone = rank_all(tmp_path, [sound], outlines=far.iloc[[1]], others=far, grid=grid).frame
    pd.testing.assert_frame_equal(
        ranking.frame[ranking.frame["ref_id"] == "B"].reset_index(drop=True), alone
    )


def test_known_shadow_counts_and_darkens_neither_albedo_nor_snow(tmp_path: Path):
    item = look(
        tmp_path,
        "S2A_one",
        beside=WHITE,
        properties={"view:sun_azimuth": 170.0, "view:sun_elevation": 20.0},
    )

    def west_in_shadow(tile: Tile, scene: Scene) -> np.ndarray:
        assert scene.id == "S2A_one"
        left, _, right, _ = tile.bounds
        x = np.linspace(left, right, tile.width, endpoint=False)
        return np.broadcast_to(x < x_middle, (tile.height, tile.width))

    grid = small_grid()
    x_middle = ONE.geometry.to_crs(grid.proj4).centroid.x.item()
    row = rank_all(tmp_path, [item], grid=grid, shadow=west_in_shadow).frame.iloc[0]
    lit = rank_all(tmp_path, [item], grid=grid).frame.iloc[0]
    assert row["shadow"] == pytest.approx(0.5, abs=0.06)
    assert row["albedo"] == pytest.approx(lit["albedo"], abs=0.01)
    assert row["snow_around"] == lit["snow_around"] == 1
    assert np.isnan(lit["shadow"])


def test_a_glacier_smaller_than_a_pixel_is_measured_by_the_pixels_it_touches(tmp_path: Path):
    tiny = squares(T=(10, 10, 12))
    row = rank_all(tmp_path, [look(tmp_path, "S2A_one")], outlines=tiny).frame.iloc[0]
    assert (row["coverage"], row["cloud"]) == (1, 0)
    assert row["albedo"] > 0.3


def test_only_looks_whose_box_meets_the_surroundings_have_a_row(tmp_path: Path):
    here = look(tmp_path, "S2A_here")
    far = look(tmp_path, "S2A_far", day="2024-09-16", centre=(CENTRE[0] + 1, CENTRE[1]))
    assert rank_all(tmp_path, [here, far]).frame["scene_ids"].tolist() == [["S2A_here"]]
    nothing = rank_all(tmp_path, [far]).frame
    assert list(nothing) == RANKING_SCHEMA.names
    assert nothing.empty


def test_windows_hold_the_glacier_and_its_ring_on_whole_pixels_of_the_coarse_grid():
    grid = small_grid()
    coarse = coarse_grid(grid)
    assert coarse.resolution_m == 60
    assert coarse_grid(small_grid(resolution_m=25)).resolution_m == 50
    assert coarse_grid(small_grid(resolution_m=100)).resolution_m == 100
    assert (coarse.left, coarse.top, coarse.proj4) == (grid.left, grid.top, grid.proj4)
    window = glacier_windows(ONE, coarse)["A"]
    left, bottom, right, top = window.bounds
    west, south, east, north = ONE.geometry.to_crs(grid.proj4).total_bounds
    for outside in (west - left, south - bottom, right - east, top - north):
        assert 500 <= outside < 500 + coarse.resolution_m


def test_neighbours_are_those_that_can_meet_the_ring():
    places = {"A": (0, 0, 300), "B": (700, 0, 300), "C": (8000, 0, 300)}
    inventory = squares(**places)
    near = neighbours(inventory.iloc[[0]], inventory, small_grid())
    assert near["ref_id"].tolist() == ["A", "B"]


def test_a_ranking_is_written_and_read_back_the_same(tmp_path: Path):
    workspace = Workspace(tmp_path / "workspace")
    items = [
        look(tmp_path, "S2A_one", day="2024-09-01"),
        look(tmp_path, "S2A_two", day="2024-09-08", cloudy=western),
    ]
    del items[1]["assets"]["scl"]
    options: dict[str, Any] = {
        "others": TWO,
        "grid": small_grid(),
        "scenes": [describe_item(item) for item in items],
        "policy": AssetPolicy((str(tmp_path),)),
    }
    outcomes = [
        build_ranking(workspace, "2024", name, outlines=TWO[TWO["ref_id"] == glacier], **options)
        for name, glacier in (("beef", "B"), ("feed", "A"))
    ]
    assert [list(o.outputs) for o in outcomes] == [
        ["scenes/2024/beef.parquet"],
        ["scenes/2024/feed.parquet"],
    ]
    assert outcomes[0].facts == {
        "glaciers": 1,
        "looks": 2,
        "without_mask": ["S2A_two"],
        "unseen": 0,
    }
    table = pq.read_table(workspace.path("scenes/2024/beef.parquet"))
    assert table.schema.equals(RANKING_SCHEMA)
    frame = read_rankings(workspace, "2024")
    expected = rank_all(tmp_path, items, outlines=TWO).frame
    assert frame.drop(columns="scene_ids").equals(expected.drop(columns="scene_ids"))
    assert [list(ids) for ids in frame["scene_ids"]] == expected["scene_ids"].tolist()
    again = build_ranking(workspace, "2024", "beef", outlines=TWO[TWO["ref_id"] == "B"], **options)
    assert again == outcomes[0]
    with pytest.raises(StoreError, match="no scenes of season 2020"):
        read_rankings(workspace, "2020")


def test_a_season_without_looks_is_an_empty_table_and_all_glaciers_are_unseen(tmp_path: Path):
    workspace = Workspace(tmp_path)
    outcome = build_ranking(
        workspace,
        "2024",
        "beef",
        outlines=TWO,
        others=TWO,
        grid=small_grid(),
        scenes=[],
        policy=AssetPolicy((str(tmp_path),)),
    )
    assert outcome.facts == {"glaciers": 2, "looks": 0, "without_mask": [], "unseen": 2}
    assert read_rankings(workspace, "2024").empty


def test_a_picture_shows_the_clear_granule_and_nothing_where_no_scene_sees(tmp_path: Path):
    clouded = look(tmp_path, "S2A_a", ice=THICK_CLOUD, cloudy=on_ice, seen=western)
    clear = look(tmp_path, "S2A_b", seen=western)
    grid = small_grid()
    tile = glacier_windows(ONE, coarse_grid(grid), margin_m=300)["A"]
    pixels, seen = read_look(
        [describe_item(clear), describe_item(clouded)],
        tile,
        ("nir", "green"),
        policy=AssetPolicy((str(tmp_path),)),
    )
    height, width = tile.height, tile.width
    assert pixels.shape == (2, height, width)
    middle = pixels[:, height // 2, width // 3]
    assert middle.tolist() == pytest.approx([0.4, 0.45], abs=0.01)
    assert seen[height // 2, width // 3]
    assert np.isnan(pixels[:, :, -2]).all()


def cog(folder: Path) -> BandSource:
    """A smooth cloud-optimised raster of 10 m with overviews."""
    frame, edge = utm_frame(size_m=20480)
    rows, cols = np.mgrid[:edge, :edge]
    noise = np.random.default_rng(1).integers(0, 40, (edge, edge))
    pixels = (4000 + 2000 * np.sin(rows / 90) * np.cos(cols / 70) + noise).astype(np.uint16)
    path = write_tif(
        folder / "green.tif",
        pixels,
        frame,
        driver="COG",
        nodata=0,
        tiled=None,
        blockxsize=None,
        blockysize=None,
        zlevel=None,
        blocksize=512,
        overview_resampling="average",
    )
    return BandSource("green", "green", str(path), 1e-4, -0.1, 0.0)


def test_overviews_give_the_same_means_for_far_fewer_bytes(tmp_path: Path):
    band = cog(tmp_path)
    fine = small_grid(size_m=12000)
    tile = Tile(coarse_grid(fine), 20, 20, 128, 128)
    found, sizes = {}, {}
    with scripted_server(file_script(tmp_path)) as server:
        served = replace(band, href=f"{server.url}/green.tif")
        for overviews in (False, True):
            before = len(server.requests)
            with OpenAssets(AssetPolicy((server.host,))) as assets:
                (found[overviews],) = read_bands(
                    assets, [served], tile, dtype="uint16", overviews=overviews
                )
            sizes[overviews] = sum(asked(r.headers) for r in server.requests[before:])
    differences = found[True].astype(int) - found[False]
    assert (found[True] > 0).all()
    assert abs(differences).max() < 40
    assert abs(differences.mean()) < 1
    assert sizes[True] < sizes[False] / 5


def asked(headers: dict[str, str]) -> int:
    first, _, last = headers.get("range", "bytes=0-0").removeprefix("bytes=").partition("-")
    return int(last) - int(first) + 1


def test_overviews_keep_the_place_of_things_wherever_the_window_begins(tmp_path: Path):
    band = cog(tmp_path)
    grid = coarse_grid(small_grid(size_m=12000))
    with OpenAssets(AssetPolicy((str(tmp_path),))) as assets:
        (whole,) = read_bands(
            assets, [band], Tile(grid, 20, 20, 60, 60), dtype="uint16", overviews=True
        )
        for row, col in ((0, 0), (1, 2), (7, 5), (23, 11)):
            part = Tile(grid, 20 + row, 20 + col, 30, 30)
            (pixels,) = read_bands(assets, [band], part, dtype="uint16", overviews=True)
            expected = whole[row : row + 30, col : col + 30]
            assert abs(pixels.astype(int) - expected).max() <= 1


def test_classes_and_grids_as_fine_as_the_raster_never_come_from_overviews(tmp_path: Path):
    band = cog(tmp_path)
    fine = small_grid(size_m=12000)
    for grid, categories in ((fine, False), (coarse_grid(fine), True)):
        tile = Tile(grid, 20, 20, 64, 64)
        with OpenAssets(AssetPolicy((str(tmp_path),))) as assets:
            same = [
                read_bands(assets, [band], tile, dtype="uint16", categories=categories, overviews=o)
                for o in (False, True)
            ]
        np.testing.assert_array_equal(*same)
