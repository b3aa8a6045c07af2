"""Ice becomes glaciers: by the divides of an inventory, or by the terrain."""

from __future__ import annotations

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin
from scipy.ndimage import label
from typer.testing import CliRunner

from catalog.errors import DataError, UsageError
from change_detection.cutting import cut_by_reference, cut_by_terrain
from change_detection.flowsheds import divide_by_terrain
from change_detection.links import link_table
from change_detection.topology import areas_km2
from inventory_engine.cli import app
from inventory_engine.divides import divide_files, elevation_from

DATA = Path(
    os.environ.get(
        "INVENTORY_ENGINE_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)
RGI = DATA / "hintereisferner"
DEM = DATA / "oetztal" / "srtm_oetztal.tif"


def frame(*shapes, **columns):
    return gpd.GeoDataFrame(columns, geometry=list(shapes), crs=4326)


# --- by the terrain, on pixels -------------------------------------------------------------------


def roof(rows=60, cols=80, *, fall=25.0):
    """Two slopes that meet in a ridge along the middle column, metres."""
    return np.broadcast_to(3500.0 - fall * np.abs(np.arange(cols) - cols / 2 + 0.5), (rows, cols))


def test_two_sides_of_a_ridge_are_two_glaciers():
    ice = np.zeros((60, 80), bool)
    ice[10:50, 10:70] = True
    found = divide_by_terrain(ice, roof(), resolution_m=40.0)
    assert (found > 0).sum() == ice.sum() and not found[~ice].any()
    assert found.max() == 2
    assert (found[10:50, 10:40] == found[20, 12]).all()
    assert (found[10:50, 40:70] == found[20, 60]).all()


def test_a_low_swell_does_not_divide_a_glacier():
    ice = np.zeros((60, 80), bool)
    ice[10:50, 10:70] = True
    swell = roof(fall=1.5) - 10.0 * np.arange(60)[:, None]
    assert divide_by_terrain(ice, swell, resolution_m=40.0).max() == 1


def test_ice_apart_is_never_one_glacier_however_small():
    ice = np.zeros((60, 80), bool)
    ice[5:20, 5:20] = ice[40:55, 60:75] = ice[30, 30] = True
    slope = np.broadcast_to(3000.0 - 10.0 * np.arange(80), (60, 80))
    assert divide_by_terrain(ice, slope, resolution_m=40.0).max() == 3


def test_divides_need_the_elevation_beside_the_ice_too():
    ice = np.zeros((20, 20), bool)
    ice[5:15, 5:15] = True
    height = np.full((20, 20), 3000.0)
    height[4, 4] = np.nan
    with pytest.raises(DataError, match="elevation of 1 pixels on or beside the ice"):
        divide_by_terrain(ice, height, resolution_m=40.0)
    height[4, 4], height[2, 2] = 3000.0, np.nan
    assert divide_by_terrain(ice, height, resolution_m=40.0).max() == 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_pixel_of_ice_has_one_connected_glacier(seed):
    rng = np.random.default_rng(seed)
    ice = rng.random((40, 40)) < 0.8
    height = 3000.0 + 40.0 * rng.standard_normal((40, 40)).cumsum(0).cumsum(1) / 10.0
    found = divide_by_terrain(ice, height, resolution_m=40.0)
    assert ((found > 0) == ice).all()
    for number in range(1, found.max() + 1):
        assert label(found == number)[1] == 1


# --- by the terrain, on outlines -----------------------------------------------------------------


def write_dem(path, height, *, west=10.0, north=47.0, step=0.0005, crs=4326):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=height.shape[1],
        height=height.shape[0],
        count=1,
        dtype="float32",
        crs=crs,
        transform=from_origin(west, north, step, step),
        nodata=-9999.0,
    ) as made:
        made.write(height.astype(np.float32), 1)
    return path


@pytest.fixture
def ridge(tmp_path):
    """Elevation of 0.05 by 0.05 degrees with a ridge from north to south in the middle."""
    return write_dem(tmp_path / "dem.tif", roof(100, 100, fall=20.0))


def test_outlines_are_cut_along_the_ridge_and_add_up(ridge):
    ice = frame(shapely.box(10.01, 46.96, 10.04, 46.99))
    found = cut_by_terrain(ice, elevation_from([str(ridge)]))
    assert found["glacier_id"].tolist() == ["new-00001", "new-00002"]
    assert (found.geom_type == "Polygon").all() and found.is_valid.all()
    assert found["area_km2"].sum() == pytest.approx(areas_km2(ice.geometry.to_numpy())[0])
    divide = found.geometry[0].intersection(found.geometry[1])
    assert divide.length > 0
    assert abs(np.array(divide.bounds)[[0, 2]] - 10.025).max() < 0.001


def test_pieces_of_one_complex_are_divided_together(ridge):
    """A border that an inventory has drawn across a glacier is no divide of the terrain."""
    ice = frame(shapely.box(10.01, 46.96, 10.04, 46.975), shapely.box(10.01, 46.975, 10.04, 46.99))
    assert len(cut_by_terrain(ice, elevation_from([str(ridge)]))) == 2


# --- by a reference ------------------------------------------------------------------------------


LEFT, RIGHT = shapely.box(0.0, 0.0, 0.01, 0.02), shapely.box(0.01, 0.0, 0.02, 0.02)
REFERENCE = frame(LEFT, RIGHT, ref_id=["L", "R"])


def test_a_divide_keeps_the_coordinates_of_the_reference():
    crooked = shapely.Polygon([(0, 0), (0.01, 0), (0.0123, 0.0101), (0.01, 0.02), (0, 0.02)])
    other = shapely.box(0, 0, 0.02, 0.02) - crooked
    reference = frame(crooked, other, ref_id=["L", "R"])
    seasons = [shapely.box(-0.001, 0.001, 0.021, 0.019), shapely.box(0.002, 0.003, 0.018, 0.019)]
    borders = []
    for ice in seasons:
        found = cut_by_reference(frame(ice), reference).set_index("glacier_id").geometry
        borders.append(found["L"] & found["R"])
    assert all([0.0123, 0.0101] in shapely.get_coordinates(border).tolist() for border in borders)
    common = shapely.intersection(*borders, grid_size=1e-13)
    # ^ where ice ends within an edge of the divide, the end is rounded to what a double holds
    assert common.length == pytest.approx(borders[1].length, rel=1e-9)


def test_new_ice_goes_to_the_glacier_that_it_touches():
    ice = shapely.box(-0.005, 0.0, 0.02, 0.02)
    found = cut_by_reference(frame(ice), REFERENCE).set_index("glacier_id")
    assert found.loc["L"].geometry.equals(shapely.box(-0.005, 0, 0.01, 0.02))
    assert found.loc["R"].geometry.equals(RIGHT)
    assert found["origin"].tolist() == ["reference", "reference"]


def test_a_glacier_met_in_a_point_alone_does_not_take_part():
    hook = shapely.box(-0.02, 0.01, -0.01, 0.03) | shapely.box(-0.02, 0.02, 0.01, 0.03)
    tongue, patch = shapely.box(0.0, 0.0, 0.01, 0.02), shapely.box(-0.01, 0.0, 0.0, 0.01)
    # ^ the patch has a side in common with the tongue, and a corner with the hook
    reference = frame(hook, tongue, ref_id=["A", "L"])
    ice = shapely.union_all([hook, tongue, patch])
    found = cut_by_reference(frame(ice), reference).set_index("glacier_id").geometry
    assert found["A"].equals(hook) and found["L"].equals(tongue | patch)


def test_new_ice_between_two_glaciers_is_divided():
    ice = shapely.box(0.0, 0.0, 0.02, 0.03)
    found = cut_by_reference(frame(ice), REFERENCE).set_index("glacier_id")
    assert found["area_km2"].sum() == pytest.approx(areas_km2(np.array([ice]))[0], rel=1e-9)
    assert found.loc["L", "area_km2"] == pytest.approx(found.loc["R", "area_km2"], rel=0.02)


def test_ice_that_touches_no_glacier_is_a_new_candidate():
    far = shapely.box(0.03, 0.0, 0.04, 0.01)
    found = cut_by_reference(frame(LEFT, far), REFERENCE)
    assert found[["glacier_id", "ref_id", "origin"]].to_numpy().tolist() == [
        ["L", "L", "reference"],
        ["new-00001", "", "new"],
    ]


def test_a_glacier_that_fell_apart_has_a_row_for_each_piece():
    ice = frame(shapely.box(0.0, 0.0, 0.01, 0.005), shapely.box(0.0, 0.01, 0.01, 0.02))
    found = cut_by_reference(ice, REFERENCE)
    assert found["ref_id"].tolist() == ["L", "L"]
    assert found["area_km2"].is_monotonic_decreasing


# --- real glaciers -------------------------------------------------------------------------------


def rgi():
    glaciers = gpd.read_file(RGI / "rgi7g_hef_complex.shp")
    return glaciers.set_geometry(glaciers.geometry.force_2d()).assign(ref_id=glaciers["rgi_id"])


@pytest.mark.real_data
@pytest.mark.skipif(not RGI.is_dir(), reason=f"no real data in {DATA}")
def test_copied_divides_give_the_glaciers_of_the_rgi_back():
    whole = gpd.read_file(RGI / "rgi7c_hef.shp")
    whole = whole.set_geometry(whole.geometry.force_2d())
    found = cut_by_reference(whole, rgi())
    assert len(found) == 23 and (found["origin"] == "reference").all()
    areas = found.set_index("ref_id")["area_km2"]
    wanted = rgi().set_index("rgi_id")["area_km2"]
    assert (areas / wanted - 1.0).abs().max() < 5e-3


@pytest.mark.real_data
@pytest.mark.skipif(not RGI.is_dir(), reason=f"no real data in {DATA}")
def test_the_terrain_gives_most_glaciers_of_the_rgi_back():
    """22 of the 23 glaciers, all but one of 0.03 km2, share more than half with one of ours."""
    whole = gpd.read_file(RGI / "rgi7c_hef.shp")
    whole = whole.set_geometry(whole.geometry.force_2d())
    found = cut_by_terrain(whole, elevation_from([str(DEM)]))
    assert found["area_km2"].sum() == pytest.approx(77.670226, abs=1e-5)
    table = link_table(found, rgi(), names=("ours", "rgi"), id_fields=("glacier_id", "rgi_id"))
    ours = table["overlap_area_km2"] / table["ours_area_fraction"]
    theirs = table["overlap_area_km2"] / table["rgi_area_fraction"]
    iou = table["overlap_area_km2"] / (ours + theirs - table["overlap_area_km2"])
    best = iou.groupby(table["rgi_id"]).max()
    assert (best > 0.5).sum() >= 22
    assert len(found) <= 35


# --- the commands --------------------------------------------------------------------------------


def test_the_command_writes_what_it_tells(tmp_path, ridge):
    ice = tmp_path / "ice.gpkg"
    frame(shapely.box(10.01, 46.96, 10.04, 46.99)).to_file(ice)
    out = tmp_path / "made" / "glaciers.gpkg"
    done = CliRunner().invoke(app, ["divides", str(ice), "--dem", str(ridge), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "2 glaciers by the terrain" in done.output
    assert len(gpd.read_file(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({}, "from an inventory .* or from the terrain"),
        (
            {"dem": ["nowhere.tif"]},
            r"model cannot be read: .*/nowhere\.tif does not exist",
        ),
        ({"out": Path("glaciers.doc")}, r"expected a name ending in \.gpkg or \.parquet"),
    ],
)
def test_bad_input_is_named(tmp_path, arguments, told):
    ice = tmp_path / "ice.gpkg"
    frame(LEFT).to_file(ice)
    values = {"out": tmp_path / "out.gpkg"} | arguments
    with pytest.raises(UsageError, match=told):
        divide_files(ice, values.pop("out"), **values)


def test_terrain_that_does_not_cover_the_ice_is_bad_input(tmp_path, ridge):
    ice = tmp_path / "ice.gpkg"
    frame(shapely.box(10.01, 46.93, 10.04, 46.99)).to_file(ice)
    with pytest.raises(UsageError, match=r"is not known.*name more of it with --dem"):
        divide_files(ice, tmp_path / "out.gpkg", dem=[str(ridge)])


def test_links_between_two_files_are_written(tmp_path):
    REFERENCE.rename(columns={"ref_id": "rgi_id"}).to_file(tmp_path / "old.gpkg")
    frame(LEFT, ref_id=["mine"]).rename(columns={"ref_id": "rgi_id"}).to_file(tmp_path / "new.gpkg")
    out = tmp_path / "links.csv"
    done = CliRunner().invoke(
        app, ["links", str(tmp_path / "new.gpkg"), str(tmp_path / "old.gpkg"), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert out.read_text().splitlines()[1].startswith('"mine","L","","",')
