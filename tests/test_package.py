"""An inventory in the form of RGI 7.0: what its files say, and that they agree with one another."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st
from painted_world import (
    cone,
    mask,
    new_workspace,
    package_facts,
    paint_season,
    paint_terrain,
    reference,
    world_grid,
)
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import Resampling, reproject

from catalog.errors import DataError
from change_detection.attributes import RGI_ATTRIBUTES
from change_detection.divides import glacier_batches
from change_detection.flowlines import longest_centrelines
from change_detection.hypsometry import band_counts, hypsometry_table, per_mille
from change_detection.links import link_table
from change_detection.outlines import trace_batch
from change_detection.package.fields import (
    COMPLEX_FIELDS,
    GLACIER_FIELDS,
    INTERSECT_FIELDS,
    SUBMISSION_FIELDS,
)
from change_detection.package.ids import id_prefix, numbered_ids
from change_detection.package.write import package_files
from change_detection.publishing import publish_season
from inventory_engine.validation import validate_files

DATA = Path(
    os.environ.get(
        "INVENTORY_ENGINE_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)
RGI = DATA / "hintereisferner"
GLACIERS = {"A": (40, 40, 100, 100), "B": (40, 140, 100, 30), "C": (200, 200, 20, 20)}
# A and B share a divide of 1 km; C lies apart


# --- how long a glacier is -----------------------------------------------------------------------


def plane(shape, *, fall=0.3, resolution_m=10.0):
    """Ground that falls towards the last row."""
    rows = np.arange(shape[0], dtype=np.float32)[:, None]
    return np.broadcast_to(3000.0 - fall * resolution_m * rows, shape).astype(np.float32)


def test_a_tongue_is_as_long_as_the_slope_it_lies_on():
    labels = np.zeros((220, 60), np.int32)
    labels[10:210, 20:40] = 1
    (length,) = longest_centrelines(labels, 1, elevation=plane(labels.shape), resolution_m=10.0)
    assert length == pytest.approx(2000.0, rel=0.05)


def test_the_longest_of_several_branches_counts():
    labels = np.zeros((200, 200), np.int32)
    labels[100:190, 90:110] = 1
    labels[10:101, 90:110] = 1
    labels[80:100, 20:100] = 1
    # ^ a trunk, a long branch straight up, and a short one to the west
    height = plane(labels.shape)
    (length,) = longest_centrelines(labels, 1, elevation=height, resolution_m=20.0)
    assert length == pytest.approx(180 * 20.0, rel=0.06)


def test_a_bent_glacier_is_measured_along_its_bend():
    labels = np.zeros((200, 200), np.int32)
    labels[20:40, 20:180] = 1
    labels[20:180, 160:180] = 1
    col, row = np.meshgrid(np.arange(200), np.arange(200))
    height = (4000.0 - 2.0 * (col + row)).astype(np.float32)
    (length,) = longest_centrelines(labels, 1, elevation=height, resolution_m=10.0)
    assert 2700.0 < length < 3100.0


def test_a_glacier_without_elevation_everywhere_has_no_length():
    labels = np.zeros((60, 60), np.int32)
    labels[5:25, 5:25], labels[30:50, 30:50] = 1, 3
    height = plane(labels.shape)
    height[10, 10] = np.nan
    found = longest_centrelines(labels, 3, elevation=height, resolution_m=10.0)
    assert np.isnan(found).tolist() == [True, True, False]
    assert np.isnan(longest_centrelines(labels, 3, elevation=None, resolution_m=10.0)).all()


@pytest.mark.real_data
@pytest.mark.skipif(not RGI.is_dir(), reason=f"no real data in {DATA}")
def test_lengths_of_real_glaciers_are_those_of_the_rgi():
    """23 glaciers of the Oetztal Alps: ours on SRTM, the RGI's by OGGM on the Copernicus DEM."""
    frame = gpd.read_file(RGI / "rgi7g_hef_complex.shp").to_crs(32632)
    left, _, _, top = frame.total_bounds
    transform = from_origin(left - 200, top + 200, 20, 20)
    height = np.full((700, 800), np.nan, np.float32)
    with rasterio.open(RGI / "hef_srtm.tif") as src:
        reproject(
            rasterio.band(src, 1),
            height,
            dst_transform=transform,
            dst_crs=32632,
            dst_nodata=np.nan,
            resampling=Resampling.bilinear,
        )
    labels = rasterize(
        ((g, i + 1) for i, g in enumerate(frame.geometry)),
        out_shape=height.shape,
        transform=transform,
        dtype="int32",
    )
    found = longest_centrelines(labels, len(frame), elevation=height, resolution_m=20.0)
    known = np.isfinite(found)
    assert known.sum() == 16
    # ^ the others reach beyond the elevation model
    ratio = found[known] / frame["lmax_m"].to_numpy()[known]
    assert np.median(ratio) == pytest.approx(1.0, abs=0.03)
    assert np.abs(ratio - 1.0).max() < 0.15


# --- area by elevation ---------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=60).filter(any))
def test_per_mille_add_up_to_a_thousand_and_each_is_within_one_of_its_share(pixels):
    whole = per_mille(pixels)
    exact = 1000.0 * np.array(pixels) / sum(pixels)
    assert whole.sum() == 1000
    assert (np.abs(whole - exact) < 1.0).all()
    assert (whole[np.array(pixels) == 0] == 0).all()


def test_bins_are_fifty_metres_high_and_named_by_their_middle():
    labels = np.array([[1, 1, 1, 2], [0, 1, 2, 2]], np.int32)
    height = np.array([[2510, 2549, 2550, 2700], [9, np.nan, 2700, np.nan]], np.float32)
    first, bands = band_counts(labels, 3, elevation=height)
    table = hypsometry_table(["a", "b", "c"], [4.0, 3.0, 1.0], first, bands)
    assert table.columns.tolist() == [
        "rgi_id",
        "area_km2",
        "2525.0",
        "2575.0",
        "2625.0",
        "2675.0",
        "2725.0",
    ]
    assert table.to_numpy().tolist() == [
        ["a", 4.0, 667, 333, 0, 0, 0],
        ["b", 3.0, 0, 0, 0, 0, 1000],
    ]


def test_bins_below_the_sea_are_named_too():
    first, bands = band_counts(
        np.ones((1, 2), np.int32), 1, elevation=np.array([[-10, 10]], np.float32)
    )
    table = hypsometry_table(["a"], [1.0], first, bands)
    assert table.columns.tolist()[2:] == ["-25.0", "25.0"]


# --- which glacier is which ----------------------------------------------------------------------


def squares(boxes, **columns):
    shapes = [shapely.box(*box) for box in boxes]
    return gpd.GeoDataFrame(columns, geometry=shapes, crs=4326)


def test_links_tell_who_became_whom():
    old = squares([(0, 0, 2, 1), (5, 0, 6, 1)], ref_id=["o1", "o2"])
    new = squares([(0, 0, 1, 1), (1, 0, 2, 1), (9, 0, 10, 1)], rgi_id=["n1", "n2", "n3"])
    table = link_table(new, old)
    assert table["this_id"].tolist() == ["n1", "n2"]
    assert table["reference_id"].tolist() == ["o1", "o1"]
    assert table["n_this"].tolist() == [2, 2] and table["n_reference"].tolist() == [1, 1]
    np.testing.assert_allclose(table["this_area_fraction"], 1.0)
    np.testing.assert_allclose(table["reference_area_fraction"], 0.5)
    assert table["cluster_id"].tolist() == [0, 0]


def test_overlaps_of_less_than_200_square_metres_are_no_links():
    old = squares([(0, 0, 1, 1)], ref_id=["o"])
    sliver = 100.0 / 110_570.0 / 111_320.0
    # ^ degrees: 100 square metres where it is a degree high
    new = squares([(1 - sliver, 0, 2, 1), (-1, 0, 3 * sliver, 1)], rgi_id=["thin", "thick"])
    assert link_table(new, old)["this_id"].tolist() == ["thick"]


def test_an_id_that_is_there_twice_cannot_be_linked():
    twice = squares([(0, 0, 1, 1), (2, 0, 3, 1)], rgi_id=["n", "n"])
    with pytest.raises(DataError, match="two outlines have the id n"):
        link_table(twice, squares([(0, 0, 1, 1)], ref_id=["o"]))


@pytest.mark.real_data
@pytest.mark.skipif(not RGI.is_dir(), reason=f"no real data in {DATA}")
def test_an_inventory_is_linked_to_itself_one_to_one():
    frame = gpd.read_file(RGI / "rgi7g_hef_complex.shp")
    table = link_table(frame, frame, names=("rgi7", "same"), id_fields=("rgi_id", "rgi_id"))
    assert (table["rgi7_id"] == table["same_id"]).all() and len(table) == 23
    np.testing.assert_allclose(table["rgi7_area_fraction"], 1.0, atol=1e-9)
    assert table["cluster_id"].tolist() == list(range(23))


# --- ids -----------------------------------------------------------------------------------------


@given(st.text())
def test_no_name_makes_an_id_of_the_rgi(text):
    prefix = id_prefix(text)
    assert prefix and prefix.isascii() and prefix.isalnum() and prefix == prefix.upper()
    assert not prefix.startswith("RGI")


def test_rows_are_counted_within_their_region():
    ids = numbered_ids(pd.Series(["11", "", "11"]), prefix="ALPS2020", letter="G")
    assert ids.tolist() == [
        "ALPS2020-v1-G-11-00001",
        "ALPS2020-v1-G-00-00001",
        "ALPS2020-v1-G-11-00002",
    ]


# --- the package ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Workspace of a painted season with terrain, published."""
    workspace, grid = new_workspace(tmp_path_factory.mktemp("package")), world_grid()
    frame = reference(GLACIERS, grid)
    frame["o1region"] = ["11", "11", ""]
    frame["o2region"] = ["11-01", "11-01", ""]
    paint_terrain(workspace, grid, cone())
    paint_season(workspace, grid, "2016", ice=mask(*GLACIERS.values()))
    batches = glacier_batches(frame, grid, growth_m=200.0)
    for batch in batches:
        trace_batch(
            workspace,
            "2016",
            batch,
            frame=frame,
            grid=grid,
            growth_m=200.0,
            season_window=("2016-07-15", "2016-09-30"),
        )
    outcome = publish_season(workspace, batches, frame=frame, facts=package_facts("2016"))
    return workspace.path("inventory/2016/package"), outcome, frame


def test_every_file_of_the_package_is_there(published):
    folder, outcome, _ = published
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    told = {n.split("/package/")[1] for n in outcome.outputs if "/package/" in n}
    assert found == told
    shape = [".shp", ".shx", ".dbf", ".prj", ".cpg", "-attributes.csv", "-attributes_metadata.json"]
    ends = {
        "G": [
            *("-hypsometry.csv", "-submission_info.csv", "-submission_info_metadata.json"),
            "-reference_links.csv",
        ],
        "C": ["-CtoG_links.json"],
        "I": [],
    }
    stems = [f"MADEUP2016-v1-{letter}-{region}" for letter in "GC" for region in ("00", "11")]
    wanted = {
        f"{stem}/{stem}{end}"
        for stem in [*stems, "MADEUP2016-v1-I-11"]
        for end in [*shape, *ends[stem[14]]]
    }
    wanted |= {f"MADEUP2016-v1-{letter}.parquet" for letter in "GCI"}
    assert found == wanted | {"MADEUP2016-v1.gpkg", "item.json"}


def test_the_package_keeps_every_rule(published):
    folder, _, _ = published

    def of(letter, region, end):
        stem = f"MADEUP2016-v1-{letter}-{region}"
        return folder / stem / f"{stem}{end}"

    findings, count = validate_files(
        of("G", "11", ".shp"),
        profile="derived",
        complexes=of("C", "11", ".shp"),
        intersects=of("I", "11", ".shp"),
        hypsometry=of("G", "11", "-hypsometry.csv"),
        links=(of("C", "11", "-CtoG_links.json"), of("G", "11", "-reference_links.csv")),
    )
    assert count == 2
    assert [f.line for f in findings] == []
    alone, count = validate_files(of("G", "00", ".shp"), profile="derived")
    assert count == 1 and [f.line for f in alone] == []


def test_the_tables_say_what_the_outlines_are(published):
    folder, _, _ = published
    stem = folder / "MADEUP2016-v1-G-11" / "MADEUP2016-v1-G-11"
    shapes = gpd.read_file(f"{stem}.shp")
    table = pd.read_csv(f"{stem}-attributes.csv", dtype={"o1region": str})
    assert list(shapes.columns) == [*RGI_ATTRIBUTES, "geometry"]
    assert list(table.columns) == list(RGI_ATTRIBUTES)
    assert table["area_km2"].tolist() == pytest.approx([1.0, 0.3])
    assert (table["lmax_m"] > 0).all() and (table["subm_id"] == 1).all()
    submission = pd.read_csv(f"{stem}-submission_info.csv")
    assert submission["n_outlines"].tolist() == [2]
    assert submission["area_km2"].tolist() == pytest.approx([1.3])
    assert submission["proc_desc"].tolist() == ["painted pixel by pixel"]
    links = pd.read_csv(f"{stem}-reference_links.csv")
    assert links["reference_id"].tolist() == ["A", "B"]
    assert links["this_area_fraction"].tolist() == pytest.approx([1.0, 1.0], abs=1e-3)
    heights = pd.read_csv(f"{stem}-hypsometry.csv")
    bins = heights.columns[2:]
    middle = (heights[bins].to_numpy() * bins.astype(float).to_numpy()).sum(axis=1) / 1000.0
    np.testing.assert_allclose(middle, table["zmean_m"], atol=25.0)


def test_neighbours_share_their_border_and_make_one_complex(published):
    folder, _, _ = published
    lines = gpd.read_parquet(folder / "MADEUP2016-v1-I.parquet")
    assert len(lines) == 1
    assert lines["length_m"].iloc[0] == pytest.approx(1000.0, rel=2e-3)
    complexes = gpd.read_parquet(folder / "MADEUP2016-v1-C.parquet")
    assert sorted(complexes["area_km2"]) == pytest.approx([0.04, 1.3], rel=1e-6)
    stem = "MADEUP2016-v1-C-11"
    members = json.loads((folder / stem / f"{stem}-CtoG_links.json").read_text())
    assert members == {
        "MADEUP2016-v1-C-11-00001": ["MADEUP2016-v1-G-11-00001", "MADEUP2016-v1-G-11-00002"]
    }


def test_the_geopackage_has_three_layers_and_a_style_of_each(published):
    folder, _, _ = published
    path = folder / "MADEUP2016-v1.gpkg"
    sizes = {
        name: len(gpd.read_file(path, layer=name))
        for name in ("glaciers", "complexes", "intersects")
    }
    assert sizes == {"glaciers": 3, "complexes": 2, "intersects": 1}
    with sqlite3.connect(path) as base:
        styles = dict(base.execute("SELECT f_table_name, styleQML FROM layer_styles"))
    assert styles.keys() == sizes.keys()
    assert all("<qgis" in text and "renderer-v2" in text for text in styles.values())


def test_every_column_is_described():
    assert list(GLACIER_FIELDS) == list(RGI_ATTRIBUTES)
    for fields in (GLACIER_FIELDS, COMPLEX_FIELDS, INTERSECT_FIELDS, SUBMISSION_FIELDS):
        assert all(
            kind in {"str", "int", "float"} and meaning for kind, _, meaning in fields.values()
        )
    assert [GLACIER_FIELDS[n][0] for n in GLACIER_FIELDS] == list(RGI_ATTRIBUTES.values())


def test_the_item_names_every_other_file_with_its_checksum(published):
    folder, outcome, _ = published
    item = json.loads((folder / "item.json").read_text())
    sums = {n.split("/package/")[1]: s for n, s in outcome.outputs.items() if "/package/" in n}
    del sums["item.json"]
    assert {n: a["file:checksum"] for n, a in item["assets"].items()} == {
        n: f"1220{s}" for n, s in sums.items()
    }
    assert item["id"] == "MADEUP2016" and item["properties"]["glaciers"] == 3
    assert item["properties"]["start_datetime"].startswith("2016-")
    outline = shapely.geometry.shape(item["geometry"])
    west, south, east, north = item["bbox"]
    assert shapely.box(west, south, east, north).buffer(1e-9).covers(outline)


def test_equal_outlines_make_equal_files(published):
    folder, _, frame = published
    rows = gpd.read_parquet(folder / "MADEUP2016-v1-G.parquet")
    heights = hypsometry_table([], [], [], [])
    made = [
        package_files(rows, facts=package_facts("2016"), hypsometry=heights, reference=frame)
        for _ in range(2)
    ]
    assert made[0] == made[1]
    assert made[0]["MADEUP2016-v1-G.parquet"] == (folder / "MADEUP2016-v1-G.parquet").read_bytes()


def test_an_inventory_without_glaciers_is_a_package_without_rows(published):
    folder, _, frame = published
    rows = gpd.read_parquet(folder / "MADEUP2016-v1-G.parquet").iloc[:0]
    heights = hypsometry_table([], [], [], [])
    files = package_files(rows, facts=package_facts("2031"), hypsometry=heights, reference=frame)
    assert sorted(files) == [
        *(f"MADEUP2031-v1-{letter}.parquet" for letter in "CGI"),
        *("MADEUP2031-v1.gpkg", "item.json"),
    ]
    assert json.loads(files["item.json"])["properties"]["start_datetime"] == "2016-07-15T00:00:00Z"
