"""The validator: every rule is broken by something made for it, and by nothing else."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from made_packages import SOUTH, STEP, WEST, cell, glaciers, outlines, whole_package
from pyproj import Geod

from change_detection.topology import areas_km2, dissolve_complexes, shared_borders
from change_detection.validation.inventory import Package, validate_package
from change_detection.validation.rules import RULES, Finding, Profile

DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data"))
PROFILES = get_args(Profile)
Break = Callable[[Package], Package]


def real(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real outlines are not at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    return path


# --- ways to break exactly one rule --------------------------------------------------------------


def attribute(name: str, value: object, row: int = 2) -> Break:
    """Change one attribute of one glacier, and have nothing but the glaciers."""

    def change(package: Package) -> Package:
        frame = package.glaciers.copy()
        if isinstance(value, str):
            frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
        return Package(frame)

    return change


def column(name: str, convert: Callable[[pd.Series], object]) -> Break:
    def change(package: Package) -> Package:
        return Package(package.glaciers.assign(**{name: convert(package.glaciers[name])}))

    return change


def outline(shape: object, *, measured: bool = True) -> Break:
    """Put another outline in place of the last glacier, with attributes that fit it."""

    def change(package: Package) -> Package:
        profile = "rgi7" if package.glaciers.rgi_id[0].startswith("RGI") else "derived"
        if measured:
            return Package(glaciers([*outlines()[:-1], shape], profile=profile))
        frame = package.glaciers.copy()
        shapes = [*frame.geometry[:-1], shape]
        return Package(frame.set_geometry(gpd.GeoSeries(shapes, crs=4326)))

    return change


def product(name: str, convert: Callable[[gpd.GeoDataFrame], object]) -> Break:
    """Change one product beside the glaciers, and keep the lists of members out of it."""

    def change(package: Package) -> Package:
        return replace(package, members=None, **{name: convert(getattr(package, name).copy())})

    return change


def with_cell(table: pd.DataFrame, row: int, name: str, value: object) -> pd.DataFrame:
    if isinstance(value, str):
        table[name] = table[name].astype(object)
    elif isinstance(value, float):
        table[name] = table[name].astype(float)
    table.loc[row, name] = value
    return table


def with_shape(frame: gpd.GeoDataFrame, row: int, shape: object) -> gpd.GeoDataFrame:
    shapes = list(frame.geometry)
    shapes[row] = shape
    frame = frame.set_geometry(gpd.GeoSeries(shapes, crs=4326))
    if "area_km2" in frame:
        frame["area_km2"] = areas_km2(frame.geometry.to_numpy())
    return frame


def with_line(frame: gpd.GeoDataFrame, **changes: object) -> gpd.GeoDataFrame:
    """One line more, made of the first one."""
    number = f"{frame.rgi_id[0][:-5]}{len(frame) + 1:05d}"
    row = frame.iloc[[0]].assign(**({"rgi_id": number} | changes))
    return pd.concat([frame, row], ignore_index=True)


def torn(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """The complex of three glaciers as two complexes with a border between them."""
    first = shapely.union_all([cell(0, 0), cell(1, 0)])
    frame = with_shape(frame, 0, first)
    frame.loc[0, ["cenlon", "cenlat"]] = first.representative_point().coords[0]
    shape = gpd.GeoSeries([cell(0, 1)], crs=4326)
    row = frame.iloc[[0]].assign(
        rgi_id=f"{frame.rgi_id[0][:-5]}00009", area_km2=areas_km2(shape.to_numpy())
    )
    row = row.set_geometry(shape.set_axis(row.index))
    point = shape.representative_point()[0]
    return pd.concat([frame, row.assign(cenlon=point.x, cenlat=point.y)], ignore_index=True)


def swapped(package: Package) -> Package:
    first, second, *rest = package.members.items()
    members = {first[0]: second[1], second[0]: first[1]} | dict(rest)
    return replace(package, members=members)


def linked(row: int, name: str, value: object) -> Break:
    def change(package: Package) -> Package:
        return replace(package, links=(with_cell(package.links[0].copy(), row, name, value),))

    return change


BOW_TIE = shapely.Polygon([(10.80, 46.80), (10.81, 46.81), (10.81, 46.80), (10.80, 46.81)])
TWO = shapely.MultiPolygon([cell(7, 0), cell(9, 0)])
BREAKS: dict[str, list[Break]] = {
    "projection": [lambda p: Package(p.glaciers.to_crs(32632))],
    "columns": [lambda p: Package(p.glaciers.drop(columns="lmax_m"))],
    "extra-columns": [lambda p: Package(p.glaciers.assign(comment="x"))],
    "column-type": [
        column("utm_zone", lambda c: c.astype(float)),
        column("slope_deg", lambda c: c.astype(str)),
        column("glac_name", lambda c: np.arange(len(c))),
        column("src_date", pd.to_datetime),
    ],
    "id-pattern": [
        attribute("rgi_id", "RGI60-11.00003"),
        attribute("rgi_id", ""),
        attribute("rgi_id", "ALPS2024-v1-G-11-3"),
        attribute("rgi_id", "RGI2000-v7.0-C-11-00003"),
        attribute("rgi_id", "RGI2000-v7.0-G-11-00003\n"),
    ],
    "id-duplicate": [lambda p: attribute("rgi_id", p.glaciers.rgi_id[0])(p)],
    "id-region": [lambda p: attribute("o2region", "12-01")(attribute("o1region", "12")(p))],
    "region": [attribute("o2region", "12-01"), attribute("o2region", "1")],
    "glims-id": [attribute("glims_id", "G010752E468020N")],
    "date": [
        attribute("src_date", "2003-13-30T00:00:00"),
        attribute("src_date", "30.07.2003"),
        attribute("src_date", "20030799"),
        attribute("src_date", "1492-10-12T00:00:00"),
        attribute("src_date", "2999-01-01T00:00:00"),
    ],
    "date-missing": [attribute("src_date", ""), attribute("src_date", None)],
    "range": [
        attribute("slope_deg", 90.5),
        attribute("surge_type", 7),
        attribute("term_type", 4),
        attribute("primeclass", 10),
        attribute("is_rgi6", 2),
        attribute("lmax_m", -1),
        attribute("conn_lvl", 3),
        attribute("zmax_m", 9500.0),
    ],
    "elevations": [attribute("zmed_m", 2400.0), attribute("zmean_m", 3700.0)],
    "aspect-sector": [attribute("aspect_sec", 4), attribute("aspect_sec", 9)],
    "utm-zone": [attribute("utm_zone", 33)],
    "encoding": [
        attribute("glac_name", "Deieren\x84lpetli"),
        attribute("glac_name", "Brøggerbreen".encode().decode("latin-1")),
        attribute("glac_name", "Deieren\ufffdlpetli"),
    ],
    "geometry-missing": [
        outline(None, measured=False),
        outline(shapely.Polygon(), measured=False),
    ],
    "geometry-type": [
        outline(TWO),
        outline(shapely.LineString([(10.8, 46.8), (10.9, 46.9)]), measured=False),
    ],
    "geometry-invalid": [
        outline(BOW_TIE, measured=False),
        outline(
            shapely.Polygon([(10.8, 46.8), (10.81, 46.8), (10.81, 46.81), (10.81, 46.79)]),
            measured=False,
        ),
    ],
    "geometry-heights": [outline(shapely.force_3d(outlines()[-1], 2500.0))],
    "coordinates": [
        outline(shapely.box(200.0, 46.8, 200.1, 46.9), measured=False),
        outline(shapely.Polygon([(10.8, 46.8), (10.9, 46.8), (np.inf, 46.9)]), measured=False),
        outline(shapely.box(-179.9, 46.8, 179.9, 46.9), measured=False),
    ],
    "minimum-area": [outline(cell(7, 0, 0.1, 0.1))],
    "duplicate": [outline(cell(0, 0)), outline(cell(0, 0, 0.9, 0.9)), outline(cell(0, 1, 1, 2))],
    "overlap": [outline(cell(-0.9, 0)), outline(cell(-1 + 1e-8, 0))],
    "area": [lambda p: attribute("area_km2", p.glaciers.area_km2[2] * 1.0002)(p)],
    "centre": [attribute("cenlon", 10.9)],
    "terminus": [attribute("termlon", WEST - 1e-4), attribute("termlat", SOUTH + 0.5 * STEP)],
    "complex-sum": [
        product("complexes", lambda f: with_shape(f, 2, shapely.buffer(f.geometry[2], 1e-4)))
    ],
    "complex-members": [
        product(
            "complexes",
            lambda f: with_shape(f, 2, shapely.affinity.translate(f.geometry[2], 2e-5)),
        )
    ],
    "complex-border": [product("complexes", torn)],
    "complex-links": [
        swapped,
        lambda p: replace(p, members={k: v[1:] for k, v in p.members.items()}),
        lambda p: replace(p, members=p.members | {"X": ()}),
        lambda p: replace(p, members={k: (*v, "X") for k, v in p.members.items()}),
    ],
    "intersect-glaciers": [
        product("intersects", lambda f: with_line(f, rgi_g_id_2="nobody")),
        product("intersects", lambda f: with_line(f, rgi_g_id_2=f.rgi_g_id_1[0])),
    ],
    "intersect-line": [
        product(
            "intersects",
            lambda f: with_line(f, geometry=shapely.affinity.translate(f.geometry[0], 1e-7)),
        ),
        product(
            "intersects",
            lambda f: with_line(f, geometry=shapely.MultiLineString([f.geometry[0]])),
        ),
    ],
    "intersect-length": [
        product("intersects", lambda f: with_cell(f, 1, "length_m", float(f.length_m[1] + 0.11)))
    ],
    "intersect-border": [
        product("intersects", lambda f: f.iloc[1:].reset_index(drop=True)),
        product("intersects", with_line),
    ],
    "hypsometry-columns": [
        product("hypsometry", lambda t: t.rename(columns={"2475": "2480"})),
        product("hypsometry", lambda t: t.rename(columns={"2475": "low"})),
        product("hypsometry", lambda t: t.drop(columns="area_km2")),
        product("hypsometry", lambda t: t.drop(columns="rgi_id")),
    ],
    "hypsometry-rows": [
        product("hypsometry", lambda t: t.iloc[1:]),
        product("hypsometry", lambda t: pd.concat([t, t.iloc[:1]])),
        product("hypsometry", lambda t: pd.concat([t, t.iloc[:1].assign(rgi_id="nobody")])),
    ],
    "hypsometry-sum": [
        product("hypsometry", lambda t: with_cell(t, 3, "2475", 249)),
        product("hypsometry", lambda t: with_cell(t, 3, "2475", 250.5)),
        product("hypsometry", lambda t: with_cell(with_cell(t, 3, "2475", -1), 3, "2525", 501)),
    ],
    "hypsometry-area": [
        product("hypsometry", lambda t: with_cell(t, 3, "area_km2", float(t.area_km2[3] + 0.001)))
    ],
    "links-columns": [lambda p: replace(p, links=(p.links[0].drop(columns="n_rgi6"),))],
    "links-glaciers": [linked(4, "rgi7_id", "nobody")],
    "links-values": [
        linked(4, "rgi7_area_fraction", 0.9),
        linked(4, "rgi6_area_fraction", 1.2),
        linked(4, "overlap_area_km2", 0.0001),
    ],
    "links-counts": [linked(0, "n_rgi7", 1), linked(0, "cluster_id", 7), linked(4, "n_rgi6", 0)],
}
CASES = [(rule, number) for rule, ways in BREAKS.items() for number in range(len(ways))]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_package_that_keeps_every_rule_has_no_finding(profile: Profile):
    assert validate_package(whole_package(profile), profile=profile) == []


def test_every_rule_is_broken_by_something():
    assert set(BREAKS) == set(RULES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("rule", "number"), CASES)
def test_what_breaks_a_rule_is_found_and_breaks_no_other(rule: str, number: int, profile: Profile):
    broken = BREAKS[rule][number](whole_package(profile))
    found = validate_package(broken, profile=profile)
    severity = RULES[rule].severity(profile)
    assert {f.rule for f in found} == ({rule} if severity else set()), [f.line for f in found]
    assert {f.severity for f in found} <= {severity}
    assert all(f.message and "\n" not in f.line for f in found)


# --- what a finding says -------------------------------------------------------------------------


def only(package: Package, profile: Profile = "rgi7") -> Finding:
    (finding,) = validate_package(package, profile=profile)
    return finding


def test_an_overlap_names_both_its_area_and_a_place_inside_it():
    found = only(outline(cell(-0.9, 0))(whole_package()))
    common = cell(-0.9, 0) & cell(0, 0)
    area = abs(Geod(ellps="WGS84").geometry_area_perimeter(common)[0])
    assert found.glacier.endswith("00001") and "overlaps RGI2000-v7.0-G-11-00006" in found.message
    assert float(found.message.split(" by ")[1].split()[0]) == pytest.approx(area, rel=1e-3)
    assert common.contains(shapely.Point(found.lon, found.lat))


def test_a_crossing_is_told_where_it_is():
    found = only(outline(BOW_TIE, measured=False)(whole_package()))
    assert found.message == "Self-intersection"
    assert (found.lon, found.lat) == pytest.approx((10.805, 46.805))


def test_a_derived_inventory_must_not_take_ids_of_the_rgi():
    frame = glaciers(profile="rgi7")
    found = validate_package(Package(frame), profile="derived")
    assert Counter(f.rule for f in found) == {"id-pattern": 6}
    assert "is an id of the RGI itself; a derived inventory has its own" in found[0].message


def test_a_derived_inventory_may_have_columns_of_its_own_and_no_region():
    frame = glaciers(profile="derived").assign(ref_id="x", o1region="", o2region="", glims_id="")
    frame["rgi_id"] = frame["rgi_id"].str.replace("-11-", "-00-")
    assert validate_package(Package(frame), profile="derived") == []
    assert {f.rule for f in validate_package(Package(frame), profile="rgi7")} >= {"region"}


def test_missing_numbers_are_no_faults():
    frame = glaciers()
    for name in ("termlon", "termlat", "zmin_m", "zmed_m", "slope_deg", "aspect_deg"):
        frame[name] = np.nan
    frame = frame.assign(aspect_sec=9, lmax_m=-999, anlys_id=-999, dem_source="", glac_name=None)
    assert validate_package(Package(frame)) == []


@pytest.mark.parametrize(
    ("lon", "lat", "zone"), [(7.0, 61.0, 31), (7.0, 61.0, 32), (8.0, 78.0, 31), (10.0, 78.0, 33)]
)
def test_zones_of_norway_and_svalbard_may_be_heeded_or_not(lon: float, lat: float, zone: int):
    frame = glaciers([shapely.box(lon - 0.1, lat, lon + 0.1, lat + 0.1)])
    right = zone in {int((lon + 180) // 6) + 1, {61.0: 32, 78.0: 31 if lon < 9 else 33}[lat]}
    found = validate_package(Package(frame.assign(utm_zone=zone)))
    assert [f.rule for f in found] == ([] if right else ["utm-zone"])


def test_an_rgi6_file_is_told_the_rgi7_names_of_its_columns():
    frame = glaciers().rename(columns={"rgi_id": "RGIId", "area_km2": "Area"})
    found = only(Package(frame.drop(columns="lmax_m")))
    assert found.message.startswith("missing columns: lmax_m;")
    assert "RGIId is rgi_id" in found.message and "Area is area_km2" in found.message


def test_without_an_id_column_rows_are_named_by_number():
    found = validate_package(outline(BOW_TIE, measured=False)(whole_package()))
    frame = outline(BOW_TIE, measured=False)(whole_package()).glaciers.drop(columns="rgi_id")
    nameless = validate_package(Package(frame))
    assert [f.glacier for f in found] == ["RGI2000-v7.0-G-11-00006"]
    assert [(f.rule, f.glacier) for f in nameless] == [
        ("columns", ""),
        ("geometry-invalid", "row 5"),
    ]


def test_findings_come_errors_first_and_the_same_for_any_order_of_the_rows():
    frame = attribute("slope_deg", 99.0)(whole_package()).glaciers
    frame.loc[1, "src_date"] = ""
    forward, backward = (
        validate_package(Package(f)) for f in (frame, frame.iloc[::-1].reset_index(drop=True))
    )
    assert [f.severity for f in forward] == ["error", "warning"]
    assert forward == backward


# --- geometry: any outlines ----------------------------------------------------------------------

steps = st.integers(0, 40)
sizes = st.integers(1, 12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(steps, steps, sizes, sizes), min_size=2, max_size=12))
def test_overlaps_and_duplicates_are_those_of_every_pair_by_itself(places):
    boxes = [cell(x / 4, y / 4, w / 4, h / 4) for x, y, w, h in places]
    found = validate_package(Package(glaciers(boxes)))
    told = Counter(
        frozenset((f.glacier, f.message.split("RGI2000")[1].split()[0].rstrip(";")))
        for f in found
        if f.rule in ("overlap", "duplicate")
    )
    wanted = sum(
        areas_km2(np.array([a & b]))[0] * 1e6 > 1e-6
        for i, a in enumerate(boxes)
        for b in boxes[i + 1 :]
    )
    assert sum(told.values()) == wanted == len(told)
    points = [b.representative_point() for b in boxes]
    held = sum(
        boxes[i].contains(points[j]) or boxes[j].contains(points[i])
        for i in range(len(boxes))
        for j in range(i)
    )
    assert sum(f.rule == "duplicate" for f in found) == held


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 14))
def test_an_outline_is_told_invalid_where_geos_says_so(seed: int, corners: int):
    rng = np.random.default_rng(seed)
    shape = shapely.Polygon(rng.uniform([10.8, 46.8], [10.9, 46.9], (corners, 2)))
    found = validate_package(outline(shape, measured=False)(whole_package()))
    invalid = [f for f in found if f.rule == "geometry-invalid"]
    assert len(invalid) == (not shape.is_valid)
    assert all(shape.distance(shapely.Point(f.lon, f.lat)) < 1e-9 for f in invalid)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30))
def test_no_outline_below_the_minimum_passes(size: int):
    shape = cell(7, 0, size / 100, size / 100)
    found = validate_package(Package(glaciers([shape])))
    km2 = abs(Geod(ellps="WGS84").geometry_area_perimeter(shape)[0]) / 1e6
    assert [f.rule for f in found] == (["minimum-area"] if km2 < 0.01 else [])


# --- real files ----------------------------------------------------------------------------------


def hintereisferner() -> Package:
    folder = real("hintereisferner")
    return Package(
        gpd.read_file(folder / "rgi7g_hef_complex.shp"),
        gpd.read_file(folder / "rgi7c_hef.shp"),
        json.loads((folder / "hef-CtoG_links.json").read_text()),
        gpd.read_file(folder / "rgi7g_hef_intersects.shp"),
    )


@pytest.mark.real_data
def test_rgis_own_glaciers_complex_and_members_have_no_finding():
    package = hintereisferner()
    assert len(package.glaciers) == 23
    assert validate_package(replace(package, intersects=None)) == []
    assert validate_package(Package(gpd.read_file(real("hintereisferner/rgi7g_hef.shp")))) == []


@pytest.mark.real_data
def test_rgis_excerpt_of_intersects_lacks_just_the_borders_of_other_glaciers():
    package = hintereisferner()
    found = validate_package(package)
    outlines = package.glaciers.set_index("rgi_id").geometry
    told = set(zip(package.intersects.rgi_g_id_1, package.intersects.rgi_g_id_2, strict=True))
    lengths = {}
    for i, a in enumerate(outlines.index):
        for b in outlines.index[i + 1 :]:
            line = shapely.force_2d(outlines[a].boundary & outlines[b].boundary)
            length = gpd.GeoSeries([line], crs=4326).to_crs(32632).length[0]
            if length > 0 and (a, b) not in told:
                lengths[a, b] = length
    assert {f.rule for f in found} == {"intersect-border"} and len(found) == len(lengths) == 29
    for finding in found:
        words = finding.message.split()
        assert words[-2] == "0.000"
        assert float(words[1]) == pytest.approx(lengths[finding.glacier, words[6][:-1]], abs=0.1)


@pytest.mark.real_data
def test_our_intersects_are_rgis():
    package = hintereisferner()
    ours = shared_borders(package.glaciers)
    theirs = package.intersects
    assert len(ours) > 2 * len(theirs) == 10
    for _, pair in theirs.groupby(["rgi_g_id_1", "rgi_g_id_2"]):
        row = pair.iloc[0]
        same = ours[(ours.rgi_g_id_1 == row.rgi_g_id_1) & (ours.rgi_g_id_2 == row.rgi_g_id_2)]
        assert sorted(same.length_m) == pytest.approx(sorted(pair.length_m), abs=0.1)
        lines = shapely.union_all(shapely.force_2d(pair.geometry.to_numpy()))
        assert shapely.hausdorff_distance(shapely.union_all(same.geometry), lines) < 1e-9


@pytest.mark.real_data
def test_our_complex_is_rgis():
    package = hintereisferner()
    ours = dissolve_complexes(package.glaciers)
    assert len(ours.frame) == 1
    row, theirs = ours.frame.iloc[0], package.complexes.iloc[0]
    assert row.geometry.equals(shapely.force_2d(theirs.geometry))
    assert sorted(ours.members[0]) == sorted(package.members[theirs.rgi_id])
    assert (row.o1region, row.o2region, row.utm_zone) == ("11", "11-01", 32)
    assert row.area_km2 == pytest.approx(theirs.area_km2, abs=1e-9)
    assert row.area_km2 == pytest.approx(package.glaciers.area_km2.sum(), abs=1e-9)
    assert round(ours.frame.to_crs(32632).area.sum() / 1e6, 3) == 77.644
    assert round(row.area_km2, 3) == 77.670
    # the first is the area in the plane of UTM, the second that on the ellipsoid


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "rules"),
    [
        (
            "svalbard/svalbard.gpkg",
            {"projection": 1, "columns": 1, "geometry-type": 3, "duplicate": 15},
        ),
        ("oetztal/rgi_oetztal.shp", {"columns": 1, "geometry-invalid": 3}),
        ("khumbu/outlines_rgi60.gpkg", {"columns": 1}),
        ("everest/15_rgi60_glacier_outlines.gpkg", {"columns": 1, "overlap": 7}),
        ("alpine_divides/divides_alps.shp", {"columns": 1, "geometry-invalid": 8, "overlap": 2}),
    ],
)
def test_faults_of_real_files_are_those_that_geos_finds_pair_by_pair(name: str, rules: dict):
    frame = gpd.read_file(real(name))
    found = validate_package(Package(frame))
    assert Counter(f.rule for f in found) == rules
    lonlat = shapely.force_2d(frame.geometry.to_crs(4326).to_numpy())
    assert (~shapely.is_valid(lonlat)).sum() == rules.get("geometry-invalid", 0)
    assert (shapely.get_type_id(lonlat) == 6).sum() == rules.get("geometry-type", 0)
    whole = shapely.make_valid(lonlat)
    pairs = [
        (i, j)
        for i in range(len(whole))
        for j in range(i)
        if whole[i].intersects(whole[j])
        and 1e6
        * areas_km2(
            np.array(
                [shapely.union_all([p for p in shapely.get_parts(whole[i] & whole[j]) if p.area])]
            )
        )[0]
        > 1e-6
    ]
    assert len(pairs) == rules.get("overlap", 0) + rules.get("duplicate", 0)


@pytest.mark.real_data
def test_glims_outlines_of_two_dates_are_duplicates_of_each_other():
    frame = gpd.read_file(real("rhone/glims_polygons.shp"))
    found = validate_package(Package(frame))
    counts = Counter(f.rule for f in found)
    assert counts["geometry-invalid"] == (~frame.is_valid).sum() == 1
    assert counts["encoding"] == frame.glac_name.str.contains("[\x80-\x9f]", na=False).sum() > 0
    assert counts["duplicate"] >= 44
    small = frame.to_crs("+proj=cea").area < 10_000
    assert counts["minimum-area"] == (small & frame.is_valid).sum()


def test_the_documentation_lists_every_rule_as_it_is():
    text = (Path(__file__).parents[1] / "docs" / "validation.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{code}` | {rule.what.replace('|', chr(92) + '|')} | {rule.rgi7 or '-'} | "
        f"{rule.derived or '-'} | {rule.source} |"
        for code, rule in RULES.items()
    ]
