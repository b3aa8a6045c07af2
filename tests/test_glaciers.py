from __future__ import annotations

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import UsageError
from catalog.glaciers import COLUMNS, read_reference

DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data"))
HERE = shapely.box(10.70, 46.80, 10.72, 46.82)
THERE = shapely.box(10.80, 46.80, 10.82, 46.82)


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real outlines are not at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    return path


def written(
    folder: Path, rows: dict, geometries: list, crs: object = 4326, name: str = "ref.gpkg"
) -> Path:
    path = folder / name
    gpd.GeoDataFrame(rows, geometry=geometries, crs=crs).to_file(path)
    return path


@pytest.mark.real_data
def test_rgi7_glaciers_of_a_complex_keep_their_area_and_attributes():
    inventory = read_reference(real("hintereisferner/rgi7g_hef_complex.shp"))
    frame = inventory.frame
    area = frame.to_crs("+proj=laea +lat_0=46.8 +lon_0=10.7").area.sum() / 1e6
    complex_area = gpd.read_file(real("hintereisferner/rgi7c_hef.shp"))["area_km2"].sum()
    assert len(frame) == 23
    assert area == pytest.approx(complex_area, rel=1e-7)
    assert inventory.set_aside == ()
    assert tuple(frame.columns) == COLUMNS
    hef = frame.set_index("ref_id").loc["RGI2000-v7.0-G-11-03116"]
    assert (hef.glac_name, hef.o2region, hef.src_date) == (
        "Hintereisferner",
        "11-01",
        "2003-07-30T00:00:00",
    )


@pytest.mark.real_data
def test_rgi6_attributes_are_recoded_to_rgi7():
    frame = read_reference(real("khumbu/outlines_rgi60.gpkg")).frame
    first = frame.iloc[0]
    assert len(frame) == 8
    assert first.ref_id.startswith("RGI60-15.")
    assert (first.o1region, first.o2region) == ("15", "15-02")
    assert first.src_date == "2000-10-30T00:00:00"
    assert first.surge_type == 9


@pytest.mark.real_data
def test_of_two_glims_dates_the_later_is_used_and_the_earlier_named():
    path = real("rhone/glims_polygons.shp")
    inventory = read_reference(path)
    raw = gpd.read_file(path)
    bounds = raw[raw.line_type == "glac_bound"]
    twice = bounds.groupby("glac_id").src_date.nunique().gt(1).sum()
    superseded = [note for note in inventory.set_aside if note.kind == "superseded-outline"]
    assert len(inventory.frame) == bounds.glac_id.nunique() == 101
    assert len(superseded) == twice == 44
    latest = bounds.groupby("glac_id").src_date.max()
    assert inventory.frame.set_index("ref_id").src_date.eq(latest).all()


@pytest.mark.real_data
def test_glims_internal_rock_becomes_holes():
    path = real("rhone/glims_polygons.shp")
    frame = read_reference(path).frame.set_index("ref_id")
    raw = gpd.read_file(path).to_crs("+proj=cea")
    mine = raw[(raw.glac_id == "G008426E46612N") & (raw.anlys_id == 166976)]
    outer = mine[mine.line_type == "glac_bound"].area.sum()
    rock = mine[mine.line_type == "intrnl_rock"].area.sum()
    area = frame.loc[["G008426E46612N"]].to_crs("+proj=cea").area.iloc[0]
    assert rock > 1000
    assert area == pytest.approx(outer - rock, rel=1e-6)


@pytest.mark.real_data
def test_names_in_an_old_dos_code_page_are_read():
    names = read_reference(real("rhone/glims_polygons.shp")).frame.glac_name
    assert "Deierenälpetli-W" in set(names)


@pytest.mark.real_data
def test_a_national_inventory_in_utm_is_read_by_its_id_field():
    inventory = read_reference(real("svalbard/svalbard.gpkg"), id_field="name")
    frame = inventory.frame
    assert frame.ref_id.tolist() == sorted(frame.ref_id) and len(frame) == 5
    assert set(frame.src_date.str[:4]) == {"2007"}
    assert frame.crs.to_epsg() == 4326
    assert {note.kind for note in inventory.set_aside} == {"superseded-outline"}


@pytest.mark.real_data
def test_a_file_without_a_known_id_names_the_columns_it_has():
    with pytest.raises(UsageError, match=r"rgi_id or RGIId or glac_id; found name, year") as error:
        read_reference(real("svalbard/svalbard.gpkg"))
    assert error.value.kind == "reference-id"


@pytest.mark.real_data
def test_invalid_rgi5_outlines_are_repaired():
    path = real("oetztal/rgi_oetztal.shp")
    assert not gpd.read_file(path).is_valid.all()
    inventory = read_reference(path)
    assert inventory.frame.is_valid.all() and len(inventory.frame) == 20


def test_missing_files_and_other_formats_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"no reference inventory at .*nowhere\.gpkg"):
        read_reference(tmp_path / "nowhere.gpkg")
    (tmp_path / "text.gpkg").write_text("this is no database")
    with pytest.raises(UsageError, match="cannot read"):
        read_reference(tmp_path / "text.gpkg")


def test_a_file_without_a_projection_is_refused(tmp_path):
    path = written(tmp_path, {"rgi_id": ["a"]}, [HERE], name="ref.shp")
    path.with_suffix(".prj").unlink()
    with pytest.raises(UsageError, match="no coordinate reference system") as error:
        read_reference(path)
    assert error.value.kind == "reference-crs"


@pytest.mark.parametrize("name", ["ref.gpkg", "ref.shp", "ref.geojson", "ref.parquet"])
def test_every_format_gives_the_same_fingerprint(tmp_path, name):
    rows = gpd.GeoDataFrame({"rgi_id": ["b", "a"]}, geometry=[HERE, THERE], crs=4326)
    reference = tmp_path / "first.gpkg"
    rows.to_file(reference)
    path = tmp_path / name
    rows.to_parquet(path) if name.endswith("parquet") else rows.to_file(path)
    assert read_reference(path).fingerprint == read_reference(reference).fingerprint
    assert read_reference(path).frame.ref_id.tolist() == ["a", "b"]


def test_the_fingerprint_follows_the_content_not_the_order(tmp_path):
    one = written(tmp_path, {"rgi_id": ["a", "b"]}, [HERE, THERE], name="1.gpkg")
    two = written(tmp_path, {"rgi_id": ["b", "a"]}, [THERE, HERE], name="2.gpkg")
    moved = shapely.affinity.translate(HERE, xoff=1e-6)
    other = written(tmp_path, {"rgi_id": ["a", "b"]}, [moved, THERE], name="3.gpkg")
    assert read_reference(one).fingerprint == read_reference(two).fingerprint
    assert read_reference(one).fingerprint != read_reference(other).fingerprint


def test_rows_of_one_id_and_date_are_dissolved_and_named(tmp_path):
    path = written(tmp_path, {"rgi_id": ["a", "a"]}, [HERE, THERE])
    inventory = read_reference(path)
    assert inventory.frame.geometry.iloc[0].equals(shapely.union(HERE, THERE))
    assert [(n.what, n.kind) for n in inventory.set_aside] == [("a", "duplicate-id")]


def test_a_crossed_outline_is_set_aside_not_halved(tmp_path):
    bow_tie = shapely.Polygon([(10, 46), (10.1, 46.1), (10.1, 46), (10, 46.1)])
    inventory = read_reference(written(tmp_path, {"rgi_id": ["a", "x"]}, [HERE, bow_tie]))
    assert inventory.frame.ref_id.tolist() == ["a"]
    note = inventory.set_aside[0]
    assert (note.what, note.kind) == ("x", "bad-geometry")
    assert "Self-intersection" in note.reason


def test_points_empty_outlines_and_missing_ids_are_set_aside(tmp_path):
    rows = {"rgi_id": ["a", "p", "e", None]}
    geometries = [HERE, shapely.Point(10, 46), shapely.Polygon(), THERE]
    inventory = read_reference(written(tmp_path, rows, geometries, name="ref.geojson"))
    assert inventory.frame.ref_id.tolist() == ["a"]
    assert sorted(n.kind for n in inventory.set_aside) == [
        "bad-geometry",
        "bad-geometry",
        "missing-id",
    ]


def test_an_inventory_with_nothing_usable_is_refused(tmp_path):
    path = written(tmp_path, {"rgi_id": ["p"]}, [shapely.Point(10, 46)])
    with pytest.raises(UsageError, match=r"no usable glacier outline.*found a Point"):
        read_reference(path)


@pytest.mark.parametrize(
    ("given", "iso"),
    [
        ("20030730", "2003-07-30T00:00:00"),
        ("20030799", "2003-07-15T00:00:00"),
        ("20039999", "2003-07-15T00:00:00"),
        ("-9999999", ""),
    ],
)
def test_rgi6_dates_with_unknown_days_become_mid_month(tmp_path, given, iso):
    path = written(tmp_path, {"RGIId": ["RGI60-11.1"], "BgnDate": [given]}, [HERE])
    assert read_reference(path).frame.src_date.iloc[0] == iso


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 12))
def test_no_outline_comes_out_invalid_and_none_loses_area_silently(seed, corners):
    from catalog.glaciers import _area_km2, _repair

    rng = np.random.default_rng(seed)
    ring = rng.uniform([10.0, 46.0], [10.1, 46.1], (corners, 2))
    ring = np.concatenate([ring, ring[rng.integers(0, corners, 1)], ring[:1]])
    outline = shapely.force_3d(shapely.Polygon(ring)) if seed % 2 else shapely.Polygon(ring)
    repaired, fault = _repair(shapely.force_2d(outline))
    if repaired is None:
        assert fault
        return
    before, after = _area_km2([shapely.force_2d(outline), repaired])
    assert shapely.is_valid(repaired) and repaired.geom_type in {"Polygon", "MultiPolygon"}
    assert abs(after - before) <= 0.01 * max(before, after)
