from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_world import (
    ALL_MEMBERS,
    LEFT,
    SIZE,
    SUMMER_2016,
    TOP,
    cone,
    mask,
    new_workspace,
    package_facts,
    paint_season,
    paint_terrain,
    reference,
    store_layers,
    world_grid,
)
from skimage.measure import label

from catalog.cube import create_layer
from catalog.errors import StoreError, UsageError
from catalog.glaciers import read_reference
from catalog.grid import region_grid
from change_detection.attributes import RGI_ATTRIBUTES
from change_detection.divides import glacier_batches, reference_owners
from change_detection.outlines import _shares, trace_batch
from change_detection.polygons import trace_polygons
from change_detection.publishing import publish_season

DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data"))
GROWTH = 200.0
WINDOW = ("2016-07-15", "2016-09-30")
RECTANGLES = {"A": (40, 40, 100, 100), "B": (40, 140, 100, 30), "C": (200, 200, 20, 20)}
# 1.00, 0.30 and 0.04 km2; A and B share a divide
PIXEL = 1e-4


class World:
    """A workspace with painted seasons, and what the stage makes of them."""

    def __init__(self, folder, *, grid=None, frame=None, block_px=0):
        self.grid = world_grid() if grid is None else grid
        self.workspace = new_workspace(folder)
        self.frame = reference(RECTANGLES, self.grid) if frame is None else frame
        self.batches = glacier_batches(self.frame, self.grid, growth_m=GROWTH, block_px=block_px)

    def paint(self, season="2016", **layers):
        paint_season(self.workspace, self.grid, season, **layers)

    def trace(self, season="2016", **settings):
        settings = {"growth_m": GROWTH, "season_window": WINDOW} | settings
        self.outcomes = [
            trace_batch(self.workspace, season, batch, frame=self.frame, grid=self.grid, **settings)
            for batch in self.batches
        ]
        self.published = publish_season(
            self.workspace, self.batches, frame=self.frame, facts=package_facts(season)
        )
        folder = self.workspace.path(f"inventory/{season}")
        self.outlines = gpd.read_parquet(folder / "outlines.parquet")
        self.accounts = pd.read_parquet(folder / "accounts.parquet").set_index("ref_id")
        return self

    def facts(self, name):
        return sum(outcome.facts[name] for outcome in self.outcomes)


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def equal_area(geometries, grid):
    return gpd.GeoSeries(geometries, crs=4326).to_crs(grid.proj4).area.to_numpy() / 1e6


# --- pixels become polygons ---------------------------------------------------------------------


def traced(labels, grid=None):
    return trace_polygons(labels.astype(np.int32), row0=3, col0=5, grid=grid or world_grid())


def assert_exact(labels):
    grid = world_grid()
    found = traced(labels, grid)
    pixels = np.bincount(labels.ravel(), minlength=int(labels.max()) + 1)[1:]
    geometries = [polygon for _, polygon in found]
    assert [number for number, _ in found] == list(range(1, int(labels.max()) + 1))
    assert all(g.geom_type == "Polygon" and g.is_valid for g in geometries)
    np.testing.assert_allclose(equal_area(geometries, grid), pixels * PIXEL, rtol=1e-6)
    return geometries


@pytest.mark.parametrize(
    "painted",
    [
        np.zeros((5, 5)),
        np.pad([[1]], 2),
        np.ones((6, 4)),
        np.indices((8, 8)).sum(axis=0) % 2,
        np.eye(6),
        np.pad(1 - np.pad(1 - np.pad([[1]], 1), 1), 2),
        np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]),
    ],
    ids=[
        "empty",
        "one pixel",
        "all ice",
        "checkerboard",
        "touching corners",
        "hole in a hole",
        "holes that touch",
    ],
)
def test_every_shape_of_ice_becomes_valid_polygons_of_its_area(painted):
    assert_exact(label(painted.astype(np.int32), connectivity=1))


@settings(max_examples=250, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 14),
    st.integers(1, 14),
    st.floats(0.05, 0.95),
    st.integers(1, 3),
)
def test_random_ice_becomes_valid_disjoint_polygons_of_its_area(seed, rows, cols, share, owners):
    rng = np.random.default_rng(seed)
    painted = rng.integers(1, owners + 1, (rows, cols)) * (rng.random((rows, cols)) < share)
    geometries = assert_exact(label(painted, background=0, connectivity=1))
    if geometries:
        together = shapely.union_all(geometries)
        total = equal_area([together], world_grid())[0]
        assert total == pytest.approx((painted > 0).sum() * PIXEL, rel=1e-9)
        tree = shapely.STRtree(geometries)
        left, right = tree.query(geometries, "overlaps")
        shared = shapely.intersection(np.take(geometries, left), np.take(geometries, right))
        assert (equal_area(shared, world_grid()) < 1e-12).all()  # 1e-6 m2


def test_neighbours_share_their_border_bit_for_bit():
    labels = np.ones((200, 300), np.int32)
    labels[:, 150:] = 2
    labels[100:, 200:] = 3
    polygons = [polygon for _, polygon in traced(labels)]
    corners = [set(map(tuple, shapely.get_coordinates(p))) for p in polygons]
    assert len(corners[0] & corners[1]) == 201
    assert shapely.intersection(polygons[0], polygons[1]).area == 0.0
    assert shapely.union_all(polygons).geom_type == "Polygon"


def test_a_glacier_over_the_antimeridian_becomes_one_valid_polygon_on_either_side():
    grid = world_grid(lat_0=71.0, lon_0=180.0, left=-640.0, top=640.0)
    labels = np.zeros((SIZE, SIZE), np.int32)
    labels[50:80, 30:90] = 1
    labels[60:65, 50:60] = 0
    found = trace_polygons(labels, row0=0, col0=0, grid=grid)
    assert [number for number, _ in found] == [1, 1]
    for _, polygon in found:
        west, _, east, _ = polygon.bounds
        assert polygon.is_valid and -180.0 <= west < east <= 180.0 and east - west < 1.0
    area = equal_area([polygon for _, polygon in found], grid).sum()
    assert area == pytest.approx((labels > 0).sum() * PIXEL, rel=1e-6)


def test_a_piece_that_the_antimeridian_cuts_is_counted_once():
    west = shapely.box(179.99, 70.0, 180.0, 70.01)
    east = shapely.box(-180.0, 70.0, -179.97, 70.01)
    whole = shapely.box(20.0, 70.0, 20.01, 70.01)
    geometry = gpd.GeoSeries([west, whole, east], crs=4326)
    shares = _shares(np.array([0, 1, 0]), geometry)
    assert shares == pytest.approx([0.25, 1.0, 0.75], abs=1e-6)
    assert _shares(np.array([1, 0]), geometry.iloc[:2]).tolist() == [1.0, 1.0]


# --- glaciers keep their ice --------------------------------------------------------------------


def test_a_map_equal_to_the_reference_gives_its_areas_back(world):
    world.paint(ice=mask(*RECTANGLES.values()))
    world.trace()
    assert world.accounts.area_km2.tolist() == pytest.approx([1.0, 0.3, 0.04], abs=1e-9)
    assert world.accounts.area_reference_km2.equals(world.accounts.area_km2)
    assert world.outlines.ref_id.tolist() == ["A", "B", "C"]
    np.testing.assert_allclose(
        equal_area(world.outlines.geometry, world.grid), world.outlines.area_km2, rtol=1e-6
    )


def test_merged_ice_is_cut_at_the_reference_divide(world):
    world.paint(ice=mask((40, 40, 100, 130)))
    world.trace()
    left, right = world.outlines.geometry[:2]
    assert world.outlines.area_km2[:2].tolist() == pytest.approx([1.0, 0.3])
    assert left.intersection(right).area == 0.0 and left.touches(right)


def test_new_ice_that_hangs_together_with_a_glacier_is_its_own(world):
    world.paint(ice=mask(RECTANGLES["A"], (140, 60, 15, 40)))
    world.trace()
    account = world.accounts.loc["A"]
    assert account.area_km2 == pytest.approx(1.06)
    assert account.area_beyond_km2 == pytest.approx(0.06)


def test_isolated_new_ice_is_reported_but_given_to_nobody(world):
    world.paint(ice=mask(RECTANGLES["A"], (145, 60, 10, 10)))
    world.trace()
    assert world.accounts.area_km2["A"] == pytest.approx(1.0)
    assert world.facts("unassigned_km2") == pytest.approx(0.01)
    assert world.outlines.area_km2.sum() == pytest.approx(1.0)


def test_ice_beyond_the_growth_margin_is_not_the_glaciers(world):
    world.paint(ice=mask(RECTANGLES["A"], (140, 60, 50, 10)))
    world.trace()
    # 200 m are twenty pixels below the outline
    assert world.accounts.area_beyond_km2["A"] == pytest.approx(20 * 10 * PIXEL)


def test_a_glacier_without_ice_keeps_its_account(world):
    world.paint(ice=mask(RECTANGLES["A"]))
    world.trace()
    assert world.accounts.index.tolist() == ["A", "B", "C"]
    gone = world.accounts.loc["C"]
    assert gone.area_km2 == 0.0 and gone.obs_fraction == 1.0 and "no-ice" in gone["flags"]
    assert gone.day == SUMMER_2016 and gone.n_members == 3
    assert "C" not in set(world.outlines.ref_id)


def test_an_all_cloud_season_never_shrinks_a_glacier(world):
    nothing = np.zeros((SIZE, SIZE), bool)
    world.paint(ice=nothing, seen=nothing)
    world.trace()
    accounts = world.accounts
    assert accounts.area_km2.tolist() == pytest.approx([1.0, 0.3, 0.04])
    assert accounts.area_unseen_km2.tolist() == pytest.approx([1.0, 0.3, 0.04])
    assert accounts.obs_fraction.tolist() == [0.0, 0.0, 0.0]
    assert accounts.day.isna().all() and (accounts.src_date == "").all()
    assert accounts.area_ensemble_sd_km2.isna().all() and (accounts.n_members == 0).all()
    assert all({"low-observation", "undated"} <= set(f) for f in accounts["flags"])
    assert len(world.outlines) == 3
    assert set(world.outlines.src_date) == {"2003-07-30T00:00:00"}


def test_a_cloud_over_a_third_keeps_the_old_outline_under_it(world):
    ice = mask(RECTANGLES["A"])
    ice[40:140, 90:140] = False
    seen = ~mask((40, 120, 100, 20))
    world.paint(ice=ice, seen=seen)
    world.trace()
    account = world.accounts.loc["A"]
    # seen ice 50 columns, unseen reference 20 columns, seen and ice-free 30 columns
    assert account.area_km2 == pytest.approx(0.7)
    assert account.area_clean_km2 == pytest.approx(0.5)
    assert account.obs_fraction == pytest.approx(0.8)
    assert account.n_parts == 2 and "multi-part" in account["flags"]


def test_debris_and_water_are_accounted_apart(world):
    lake = mask((100, 60, 10, 20))
    ice = mask(RECTANGLES["A"]) & ~lake
    world.paint(ice=ice, debris=mask((120, 40, 20, 100)), water=lake)
    world.trace()
    account = world.accounts.loc["A"]
    assert account.area_debris_km2 == pytest.approx(0.2)
    assert account.area_clean_km2 == pytest.approx(0.78)
    assert account.area_water_km2 == pytest.approx(0.02)
    polygon = world.outlines.set_index("ref_id").geometry["A"]
    assert len(polygon.interiors) == 1


def test_ice_is_clean_and_debris_covered_ice_against_the_rest(world):
    probability = np.zeros((4, SIZE, SIZE), np.uint8)
    probability[:, :, :] = np.array([120, 67, 67, 0])[:, None, None]
    probability[:, 40:140, 90:140] = np.array([128, 100, 26, 0])[:, None, None]
    world.paint(ice=mask())
    store_layers(world.workspace, world.grid, {"map.zarr/2016/probability": probability})
    world.trace()
    # 67 + 67 of 254 is a majority though background is the likeliest class; 126 of 254 is none
    assert world.accounts.area_km2["A"] >= 0.5
    inside = world.accounts.area_km2["A"] - world.accounts.area_beyond_km2["A"]
    assert inside == pytest.approx(0.5)


def test_small_pieces_have_no_outline_but_stay_in_the_account(world):
    world.paint(ice=mask((40, 40, 10, 10), (60, 60, 9, 11), (100, 100, 30, 30)))
    world.trace()
    assert world.outlines.area_km2.tolist() == pytest.approx([0.09, 0.01])
    account = world.accounts.loc["A"]
    assert account.area_km2 == pytest.approx(0.09 + 0.01 + 0.0099)
    assert account.n_parts == 2


# --- members ------------------------------------------------------------------------------------


def test_each_members_area_is_counted_by_the_rules_of_the_ensemble(world):
    full = mask(RECTANGLES["A"])
    less = mask((50, 40, 90, 100))
    more = full | mask((140, 60, 10, 10), (150, 200, 10, 10))
    world.paint(ice=full, members=[full, less, more])
    world.trace()
    account = world.accounts.loc["A"]
    assert account.member_area_km2.tolist() == pytest.approx([1.0, 0.9, 1.01])
    assert account.area_ensemble_sd_km2 == pytest.approx(np.std([1.0, 0.9, 1.01], ddof=1))


def test_a_member_that_may_not_vote_for_a_glacier_has_no_area_for_it(world):
    voters = np.full((SIZE, SIZE), ALL_MEMBERS | 0b1000, np.uint32)
    voters[:, 138:] &= ~np.uint32(0b0011)  # two columns short of the divide
    ice = mask(*RECTANGLES.values())
    world.paint(ice=ice, members=[ice] * 4, voters=voters)
    world.trace()
    a, b = world.accounts.loc["A"], world.accounts.loc["B"]
    assert np.isnan(b.member_area_km2[:2]).all()
    assert b.member_area_km2[2:].tolist() == pytest.approx([0.3, 0.3])
    assert b.n_members == 2 and np.isnan(b.area_ensemble_sd_km2)
    assert "few-members" in b["flags"]
    # two of A's hundred columns are too many for a stray pixel on a divide
    assert a.n_members == 2
    voters[:, 138:] |= np.uint32(0b0011)
    voters[:, 140:] &= ~np.uint32(0b0011)
    voters[40, 139] = 0b1100
    world.paint(ice=ice, members=[ice] * 4, voters=voters)
    world.trace()
    assert world.accounts.n_members["A"] == 4
    assert world.accounts.member_area_km2["A"].tolist() == pytest.approx([1.0] * 4)


# --- dates and flags ----------------------------------------------------------------------------


def test_the_date_is_the_median_day_of_the_glaciers_own_pixels(world):
    day = np.full((SIZE, SIZE), SUMMER_2016, np.int32)
    day[40:140, 40:70] = SUMMER_2016 - 16
    day[200:] = SUMMER_2016 - 40
    world.paint(ice=mask(*RECTANGLES.values()), day=day)
    world.trace()
    accounts = world.accounts
    assert accounts.day.tolist() == [SUMMER_2016, SUMMER_2016, SUMMER_2016 - 40]
    assert accounts.date_span_days.tolist() == [16, 0, 0]
    dates = world.outlines.set_index("ref_id").src_date
    assert dates.to_dict() == {
        "A": "2016-08-17T00:00:00",
        "B": "2016-08-17T00:00:00",
        "C": "2016-07-08T00:00:00",
    }
    assert "outside-window" in accounts["flags"]["C"]
    assert "outside-window" not in accounts["flags"]["A"]


@pytest.mark.parametrize(
    ("lat_0", "day", "flagged"),
    [
        (46.5, "2016-08-17", False),
        (46.5, "2016-06-30", True),
        (46.5, "2016-10-15", False),
        (46.5, "2016-10-16", True),
        (-46.5, "2016-02-01", False),
        (-46.5, "2016-08-17", True),
        (-9.0, "2016-06-01", False),
    ],
)
def test_out_of_season_depends_on_the_hemisphere(tmp_path, lat_0, day, flagged):
    world = World(tmp_path, grid=world_grid(lat_0=lat_0))
    days = int(np.datetime64(day).astype(int))
    world.paint(ice=mask(*RECTANGLES.values()), day=days)
    world.trace(season_window=("2016-01-01", "2016-12-31"))
    assert all(("out-of-season" in f) == flagged for f in world.accounts["flags"])


def test_a_season_window_that_is_no_pair_of_days_is_refused(world):
    world.paint(ice=mask())
    with pytest.raises(UsageError, match="YYYY-MM-DD, found"):
        world.trace(season_window=("July", "August"))


# --- terrain ------------------------------------------------------------------------------------


def test_topography_comes_from_the_terrain_layer(world):
    elevation = cone()
    paint_terrain(world.workspace, world.grid, elevation)
    world.paint(ice=mask(RECTANGLES["C"]))
    world.trace()
    row = world.outlines.iloc[0]
    mine = elevation[200:220, 200:220]
    assert (row.zmin_m, row.zmax_m) == (mine.min(), mine.max())
    assert row.zmean_m == pytest.approx(mine.mean(), rel=1e-6)
    assert row.zmed_m == pytest.approx(np.median(mine))
    assert row.slope_deg == pytest.approx(np.degrees(np.arctan(0.5)), abs=0.1)
    # C lies south-east of the top; its lowest corner is the farthest one
    assert row.aspect_sec == 4
    lowest = gpd.GeoSeries.from_xy([row.termlon], [row.termlat], crs=4326).to_crs(world.grid.proj4)
    assert (lowest.x[0], lowest.y[0]) == pytest.approx((LEFT + 2195, TOP - 2195), abs=5.01)
    assert row.geometry.boundary.distance(shapely.Point(row.termlon, row.termlat)) < 1e-9
    assert row.inputs == "optical+terrain"


def test_without_terrain_nothing_is_made_up(world):
    world.paint(ice=mask(*RECTANGLES.values()))
    world.trace()
    assert world.outlines[["zmin_m", "slope_deg", "aspect_deg", "termlon"]].isna().all(axis=None)
    assert (world.outlines.aspect_sec == 9).all() and (world.outlines.dem_source == "").all()
    assert (world.outlines.inputs == "optical").all()


def test_radar_is_named_among_the_inputs_where_there_is_some(world):
    name = "cube.zarr/2016/sar"
    values = np.zeros((2, SIZE, SIZE), np.uint16)
    values[:, :, :150] = 30000
    store_layers(world.workspace, world.grid, {name: values})
    world.paint(ice=mask(*RECTANGLES.values()))
    world.trace()
    assert world.outlines.inputs.tolist() == ["optical+sar", "optical+sar", "optical"]


# --- the inventory ------------------------------------------------------------------------------


def test_outlines_have_every_rgi7_attribute_and_our_own_ids(world):
    world.paint(ice=mask(*RECTANGLES.values()))
    world.trace()
    outlines = world.outlines
    assert list(outlines.columns[:28]) == list(RGI_ATTRIBUTES)
    assert outlines.rgi_id.tolist() == [f"MADEUP2016-v1-G-11-{n:05d}" for n in (1, 2, 3)]
    assert outlines.crs.to_epsg() == 4326
    centres = gpd.GeoSeries.from_xy(outlines.cenlon, outlines.cenlat, crs=4326)
    assert outlines.geometry.contains(centres).all()
    kinds = {"str": "O", "int": "i", "float": "f"}
    for name, kind in RGI_ATTRIBUTES.items():
        assert outlines[name].dtype.kind == kinds[kind], name


def test_the_geopackage_holds_the_same_outlines(world):
    world.paint(ice=mask(*RECTANGLES.values()))
    world.trace()
    other = gpd.read_file(world.workspace.path("inventory/2016/outlines.gpkg"), layer="outlines")
    assert other.geometry.geom_equals_exact(world.outlines.geometry, 0.0).all()
    assert other.drop(columns="geometry").equals(world.outlines.drop(columns="geometry"))


def test_a_season_without_any_ice_is_an_empty_inventory_with_full_accounts(world):
    world.paint(ice=mask())
    world.trace()
    assert len(world.outlines) == 0 and list(world.outlines.columns[:28]) == list(RGI_ATTRIBUTES)
    assert len(world.accounts) == 3
    assert len(gpd.read_file(world.workspace.path("inventory/2016/outlines.gpkg"))) == 0


def test_a_missing_batch_stops_the_inventory_and_is_named(world):
    world.paint(ice=mask())
    world.trace()
    part = world.workspace.path(f"inventory/2016/parts/{world.batches[1].id}.parquet")
    part.unlink()
    with pytest.raises(StoreError, match=f"{world.batches[1].id}.parquet is missing"):
        publish_season(
            world.workspace, world.batches, frame=world.frame, facts=package_facts("2016")
        )
    with pytest.raises(StoreError, match="accounts for 2 glaciers, the reference has 3"):
        publish_season(
            world.workspace, world.batches[:1], frame=world.frame, facts=package_facts("2016")
        )


def test_a_season_that_was_not_mapped_says_which_layer_is_missing(world):
    with pytest.raises(StoreError, match=r"no array map\.zarr/2031/probability"):
        world.trace("2031")


def test_chunks_that_were_never_written_count_as_not_seen(world):
    names = ("probability", "spread", "votes", "voters")
    for name in [f"map.zarr/2016/{n}" for n in names] + ["cube.zarr/2016/date"]:
        create_layer(world.workspace, name, world.grid)
    world.trace()
    assert (world.accounts.obs_fraction == 0).all()
    assert world.accounts.area_km2.tolist() == pytest.approx([1.0, 0.3, 0.04])


@pytest.mark.real_data
def test_a_real_complex_mapped_as_it_was_gives_its_glaciers_back(tmp_path):
    path = DATA / "hintereisferner" / "rgi7g_hef_complex.shp"
    if not path.exists():
        pytest.skip(f"the real outlines are not at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    frame = read_reference(path).frame
    vertices = shapely.get_coordinates(frame.geometry.to_numpy())
    grid = region_grid(
        vertices[:, 0], vertices[:, 1], resolution_m=20.0, margin_m=400.0, shard_px=1024
    )
    world = World(tmp_path, grid=grid, frame=frame)
    (batch,) = world.batches
    ice = np.zeros(grid.shape, bool)
    window = np.s_[batch.row0 : batch.row0 + batch.height, batch.col0 : batch.col0 + batch.width]
    ice[window] = reference_owners(batch, frame, grid) > 0
    world.paint(ice=ice)
    world.trace()
    rgi = gpd.read_file(path).set_index("rgi_id")
    counted = world.accounts.area_km2
    assert len(counted) == 23
    assert counted.sum() == pytest.approx(rgi.area_km2.sum(), rel=1e-3)
    assert ((counted - rgi.area_km2).abs() < 4 * world.accounts.boundary_sigma_km2 + 2e-3).all()
    # exact pixel outlines next to the digitised ones: half a pixel along the margin at most
    mine = world.outlines.dissolve("ref_id").to_crs(grid.proj4).geometry
    theirs = rgi.to_crs(grid.proj4).geometry
    overlap = mine.intersection(theirs).area / mine.union(theirs).area
    assert overlap[rgi.area_km2 > 1].min() > 0.95


# --- the same answer anywhere -------------------------------------------------------------------


def checksums(workspace, prefix):
    return {n: hashlib.sha256(workspace.get(n)).hexdigest() for n in workspace.names(prefix)}


def random_season(seed):
    rng = np.random.default_rng(seed)
    ice = mask(*RECTANGLES.values()) & (rng.random((SIZE, SIZE)) < 0.97)
    ice |= mask((140, 50, 12, 60)) & (rng.random((SIZE, SIZE)) < 0.8)
    return {
        "ice": ice,
        "debris": ice & (rng.random((SIZE, SIZE)) < 0.2),
        "seen": rng.random((SIZE, SIZE)) < 0.95,
        "day": (SUMMER_2016 + rng.integers(-9, 9, (SIZE, SIZE))).astype(np.int32),
        "members": [ice & (rng.random((SIZE, SIZE)) < 0.99) for _ in range(4)],
        "voters": 0b1111,
    }


def test_the_inventory_does_not_depend_on_the_cut_into_shards(tmp_path):
    found = []
    for shard_px in (64, 128, 256):
        world = World(tmp_path / str(shard_px), grid=world_grid(shard_px))
        paint_terrain(world.workspace, world.grid, cone())
        world.paint(**random_season(5))
        world.trace()
        found.append(checksums(world.workspace, "inventory"))
    assert "inventory/2016/outlines.gpkg" in found[0] and len(found[0]) > 9
    # ^ three files a batch, three of the season, and the package
    assert found[0] == found[1] == found[2]


def test_the_inventory_does_not_depend_on_which_glaciers_share_a_batch(tmp_path):
    found = []
    for block_px in (0, 64, 512):
        world = World(tmp_path / str(block_px), block_px=block_px)
        paint_terrain(world.workspace, world.grid, cone())
        world.paint(**random_season(5))
        world.trace()
        sums = checksums(world.workspace, "inventory")
        found.append({n: c for n, c in sums.items() if n.count("/") == 2 or "/package/" in n})
    assert len(found[0]) > 10
    assert found[0] == found[1] == found[2]


def test_the_same_season_again_gives_the_same_bytes(world):
    world.paint(**random_season(6))
    world.trace()
    first = checksums(world.workspace, "inventory")
    assert world.published.outputs.items() <= first.items()
    time.sleep(1.1)  # a GeoPackage would store the second it was written in
    world.batches = world.batches[::-1]
    world.trace()
    assert checksums(world.workspace, "inventory") == first


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_ice_pixel_is_counted_once(tmp_path_factory, seed):
    world = World(tmp_path_factory.mktemp("world"))
    season = random_season(seed)
    world.paint(**season)
    world.trace(min_area_km2=PIXEL)
    unseen = ~season["seen"] & mask(*RECTANGLES.values())
    painted = (season["ice"] & season["seen"]) | unseen
    counted = world.accounts.area_km2.sum() + world.facts("unassigned_km2")
    assert counted == pytest.approx(painted.sum() * PIXEL, abs=1e-9)
    parts = world.outlines.groupby("ref_id").area_km2.sum()
    assert parts.to_dict() == pytest.approx(
        world.accounts.area_km2[world.accounts.area_km2 > 0].to_dict()
    )
    assert world.outlines.is_valid.all()
    total = equal_area([shapely.union_all(world.outlines.geometry.to_numpy())], world.grid)[0]
    assert total == pytest.approx(world.outlines.area_km2.sum(), rel=1e-9)
