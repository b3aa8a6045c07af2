"""Rows V1 to V6 of the fault matrix: outlines, seams, overlaps, broken outlines, files, divides."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from made_packages import cell, glaciers
from painted_world import world_grid
from shapely.affinity import rotate, translate

from catalog.errors import UsageError
from catalog.glaciers import read_reference
from catalog.grid import region_grid
from catalog.vectors import read_vectors
from change_detection.accounts import territory_of
from change_detection.divides import extend_owners, glacier_batches
from change_detection.polygons import trace_polygons
from change_detection.topology import (
    areas_km2,
    overlap_areas_m2,
    remove_overlaps,
    touching_pairs,
)
from change_detection.validation.inventory import Package, validate_package
from inventory_engine.validation import validate_files

FULL = pytest.mark.chaos
GRID = world_grid()
PIXEL_KM2 = GRID.pixel_area_km2


def counts(few: int, many: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=FULL)])


def geometry_findings(polygons: list[shapely.Polygon]) -> list[str]:
    """What the validator says of outlines, but for their size."""
    found = validate_package(Package(glaciers(polygons, profile="derived")), profile="derived")
    kinds = ("geometry", "coordinates", "overlap", "duplicate", "area", "centre", "terminus")
    return [f.line for f in found if f.rule.startswith(kinds)]


# --- V1: any mask becomes valid outlines of its area ---------------------------------------------


def mask_of(seed: int) -> np.ndarray:
    """Random glaciers, or one of the shapes that break tracers."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 24, 2))
    kind = seed % 6
    if kind == 0:
        return np.full(shape, seed // 6 % 2, np.int32)
    if kind == 1:
        return np.pad([[1]], rng.integers(0, 4)).astype(np.int32)
    if kind == 2:
        return (np.indices(shape).sum(axis=0) % 2).astype(np.int32)
    if kind == 3:
        rings = np.minimum.reduce(np.indices((17, 17)))
        return (np.minimum(rings, rings[::-1, ::-1]) % 2).astype(np.int32)
    return (rng.random(shape) < rng.uniform(0.2, 0.9)) * rng.integers(1, 4, shape, dtype=np.int32)


@counts(60, 1000)
def test_v1_every_mask_becomes_valid_outlines_of_its_area(count: int):
    invalid = 0
    for seed in range(count):
        mask = mask_of(seed)
        traced = trace_polygons(mask, row0=3, col0=5, grid=GRID)
        polygons = [polygon for _, polygon in traced]
        area = gpd.GeoSeries(polygons, crs=4326).to_crs(GRID.proj4).area.sum() / 1e6
        assert area == pytest.approx((mask > 0).sum() * PIXEL_KM2, rel=1e-9, abs=1e-12)
        invalid += len(geometry_findings(polygons)) if polygons else 0
    assert invalid == 0


# --- V2: seams ----------------------------------------------------------------------------------


@counts(8, 100)
def test_v2_area_does_not_depend_on_the_tiling(count: int):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        frame = reference_boxes(rng)
        areas = []
        for shard_px in (64, 128, 256):
            grid = world_grid(shard_px)
            total = 0.0
            for batch in glacier_batches(frame, grid, growth_m=50.0):
                owners = territory_of(batch, frame, grid, growth_m=50.0, elevation=None).owners
                traced = trace_polygons(owners, row0=batch.row0, col0=batch.col0, grid=grid)
                total += areas_km2(np.array([p for _, p in traced], dtype=object)).sum()
            areas.append(total)
        assert areas == pytest.approx([areas[0]] * 3, rel=1e-6)


def reference_boxes(rng: np.random.Generator, count: int = 5) -> gpd.GeoDataFrame:
    """Boxes of 200 to 900 m anywhere in the painted world, some over each other."""
    west, south = GRID.left + 300, GRID.top - 2300
    corners = rng.uniform(0, 1400, (count, 2))
    sizes = rng.uniform(200, 600, (count, 2))
    boxes = shapely.box(
        *(west + corners[:, 0], south + corners[:, 1]),
        *(west + corners[:, 0] + sizes[:, 0], south + corners[:, 1] + sizes[:, 1]),
    )
    shapes = gpd.GeoSeries(boxes, crs=GRID.proj4).to_crs(4326)
    return gpd.GeoDataFrame({"ref_id": [f"G{i}" for i in range(count)]}, geometry=shapes, crs=4326)


@counts(5, 50)
def test_v2_an_outline_over_the_antimeridian_keeps_its_area_in_two_valid_parts(count: int):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        lat = float(rng.uniform(-80, 80))
        grid = region_grid([179.99, -179.99], [lat, lat], resolution_m=20.0, margin_m=2000.0)
        x, y = -grid.left / 20, grid.top / 20
        mask = (rng.random((30, 60)) < 0.8).astype(np.int32)
        traced = trace_polygons(mask, row0=int(y) - 15, col0=int(x) - 30, grid=grid)
        polygons = [polygon for _, polygon in traced]
        bounds = shapely.bounds(np.array(polygons, dtype=object))
        assert (bounds[:, 2] - bounds[:, 0] < 1).all()
        assert {np.sign(b) for b in bounds[:, 0]} == {-1.0, 1.0}
        total = areas_km2(np.array(polygons, dtype=object)).sum()
        assert total == pytest.approx(mask.sum() * grid.pixel_area_km2, rel=1e-6)
        assert geometry_findings(polygons) == []


# --- V3: overlapping neighbours -------------------------------------------------------------------


def rough(rng: np.random.Generator, lon: float, lat: float, vertices: int = 40) -> shapely.Polygon:
    """A star-shaped outline of about a kilometre."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radius = rng.uniform(0.6, 1.0, vertices) * 0.006
    ring = np.column_stack([lon + 1.4 * radius * np.cos(angle), lat + radius * np.sin(angle)])
    return shapely.make_valid(shapely.Polygon(ring)).buffer(0)


def pair_of(seed: int) -> np.ndarray:
    """Two outlines that overlap, touch, hold one another, or are one and the same."""
    rng = np.random.default_rng(seed)
    first = rough(rng, 10.7, 46.8)
    kind = seed % 5
    second = (
        translate(first, 0.008, 0.001),
        rotate(first, float(rng.uniform(0.001, 0.1))),
        first,
        rough(rng, 10.71, 46.803),
        first.buffer(-0.001),
    )[kind]
    return np.array([first, second], dtype=object)


@counts(100, 1000)
def test_v3_overlaps_are_told_and_removed_and_no_area_is_lost(count: int):
    for seed in range(count):
        pair = pair_of(seed)
        before = overlap_areas_m2(pair, *touching_pairs(pair))[0].sum()
        told = [line for line in geometry_findings(list(pair)) if "dup" in line or "overl" in line]
        assert bool(told) == (before > 1e-6)
        kept = remove_overlaps(pair)
        assert overlap_areas_m2(kept, *touching_pairs(kept))[0].sum() <= 1e-6
        union = areas_km2(np.array([shapely.union_all(pair)]))[0]
        assert areas_km2(kept).sum() == pytest.approx(union, rel=1e-4)


# --- V4: outlines that are none -------------------------------------------------------------------


def broken_outline(seed: int) -> object:
    """An outline with one of nine faults."""
    rng = np.random.default_rng(seed)
    good = rough(rng, 10.7, 46.8)
    ring = np.asarray(good.exterior.coords)
    x, y = 10.7, 46.8
    kind = seed % 9
    if kind == 0:
        return shapely.Polygon(rng.uniform([x, y], [x + 0.01, y + 0.01], (9, 2)))
    if kind == 1:
        return shapely.Polygon([(x, y), (x + 0.01, y + 0.01), (x + 0.01, y), (x, y + 0.01)])
    if kind == 2:
        tip = ring[3] + (ring[3] - [x, y]) * 0.5
        return shapely.Polygon(np.concatenate([ring[:4], [tip], ring[3:]]))
    if kind == 3:
        return shapely.Polygon(np.concatenate([ring, ring]))
    if kind == 4:
        return shapely.MultiPolygon([good, translate(good, 0.0005, 0.0)])
    if kind == 5:
        spoiled = ring.copy()
        spoiled[rng.integers(1, len(ring) - 1)] = np.nan
        with np.errstate(invalid="ignore"):
            return shapely.Polygon(spoiled)
    if kind == 6:
        return shapely.GeometryCollection([good, shapely.Point(x, y), shapely.LineString(ring[:5])])
    if kind == 7:
        return shapely.force_3d(good, 2500.0)
    return shapely.Polygon(ring, [ring[::-1]])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@counts(90, 990)
def test_v4_a_broken_outline_is_told_by_its_id_repaired_within_a_percent_or_left_out(
    count: int, tmp_path: Path
):
    shapes = [translate(cell(0, 0), 0.0, 1.0), *(broken_outline(seed) for seed in range(count))]
    ids = ["good", *(f"B{i:04d}" for i in range(count))]
    frame = gpd.GeoDataFrame({"rgi_id": ids}, geometry=shapes, crs=4326)
    path = tmp_path / "broken.parquet"
    frame.to_parquet(path)
    read = read_reference(path)
    assert read.frame.is_valid.all() and set(read.frame.geom_type) <= {"Polygon", "MultiPolygon"}
    used, aside = set(read.frame.ref_id), {note.what for note in read.set_aside}
    assert used | aside == set(ids) and not used & aside
    before = frame.set_index("rgi_id").geometry
    for name, shape in read.frame.set_index("ref_id").geometry.items():
        old, new = areas_km2(shapely.force_2d(np.array([before[name], shape], dtype=object)))
        assert abs(new - old) <= 0.01 * max(old, new)
    kinds = ("geometry-invalid", "geometry-type", "geometry-heights", "coordinates")
    found = [f for f in validate_package(Package(frame)) if f.rule in kinds]
    simple = {f"B{i:04d}" for i in range(count) if i % 9 == 0 and before[f"B{i:04d}"].is_valid}
    assert {f.glacier for f in found} == set(ids) - {"good"} - simple


def test_v4_a_ring_that_is_not_closed_is_told_and_not_closed_by_guessing(tmp_path: Path):
    path = tmp_path / "open.geojson"
    glaciers().to_file(path)
    features = json.loads(path.read_text())
    features["features"][2]["geometry"]["coordinates"][0].pop()
    path.write_text(json.dumps(features))
    found = validate_package(Package(read_vectors(path)))
    assert [(f.rule, f.glacier) for f in found] == [("geometry-missing", "RGI2000-v7.0-G-11-00003")]


def test_v4_outlines_that_cannot_be_decoded_make_the_file_unreadable(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "open.parquet"
    glaciers().iloc[:1].to_parquet(path)
    table = pq.read_table(path)
    ring = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    wkb = struct.pack("<BIII", 1, 3, 1, 4) + b"".join(struct.pack("<dd", *p) for p in ring)
    place = table.schema.get_field_index("geometry")
    table = table.set_column(place, table.schema.field(place), pa.array([wkb]))
    pq.write_table(table, path)
    with pytest.raises(UsageError, match="do not form a closed linestring") as error:
        validate_files(path)
    assert error.value.kind == "inventory-unreadable"


# --- V5: files that are not what they should be ---------------------------------------------------

RENAMED = {"rgi_id": "RGIId", "area_km2": "Area", "cenlon": "CenLon", "src_date": "BgnDate"}
SPOILS = {
    **{
        f"without {name}": (lambda f, n=name: f.drop(columns=n), "columns")
        for name in glaciers().columns.drop("geometry")
    },
    "RGI 6 names": (lambda f: f.rename(columns=RENAMED), "columns"),
    "upper-case names": (lambda f: f.rename(columns=str.upper).set_geometry("GEOMETRY"), "columns"),
    "in UTM": (lambda f: f.to_crs(32632), "projection"),
    "in Web Mercator": (lambda f: f.to_crs(3857), "projection"),
    "UTM metres called degrees": (
        lambda f: f.to_crs(32632).set_crs(4326, allow_override=True),
        "coordinates",
    ),
    "latitude first": (
        lambda f: f.set_geometry(
            gpd.GeoSeries(shapely.transform(f.geometry.to_numpy(), np.fliplr), crs=4326)
        ),
        "utm-zone",
    ),
    "an id twice": (lambda f: f.assign(rgi_id=f.rgi_id[0]), "id-duplicate"),
    "ids of RGI 6": (lambda f: f.assign(rgi_id="RGI60-11.00001"), "id-pattern"),
    "code page 437 read as Latin-1": (
        lambda f: f.assign(glac_name="Hint. Tierberg \x84"),
        "encoding",
    ),
    "UTF-8 read as Latin-1": (
        lambda f: f.assign(glac_name="Breiðamerkurjökull".encode().decode("latin-1")),
        "encoding",
    ),
    "numbers as text": (lambda f: f.assign(area_km2=f.area_km2.astype(str)), "column-type"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_v5_a_file_that_is_not_as_described_is_told_what_is_wrong(name: str, tmp_path: Path):
    spoil, rule = SPOILS[name]
    path = tmp_path / "spoiled.gpkg"
    frame = spoil(glaciers())
    frame.to_file(path)
    found, count = validate_files(path)
    told = {f.rule: f.message for f in found}
    if name == "latitude first":
        # Such outlines lie elsewhere on the Earth: centre, terminus, area contradict them.
        assert {"centre", "terminus", "area"} <= set(told)
        return
    assert rule in told and count == len(frame)
    if rule == "columns":
        missing = set(glaciers().columns) - set(frame.columns) - {"geometry"}
        assert all(column in told["columns"] for column in missing)


def test_v5_a_file_without_projection_rows_or_sense_is_refused(tmp_path: Path):
    frame = glaciers()
    frame.to_file(tmp_path / "bare.shp")
    (tmp_path / "bare.prj").unlink()
    frame.iloc[:0].to_file(tmp_path / "empty.gpkg")
    (tmp_path / "text.shp").write_text("no shapes")
    pd.DataFrame(frame.drop(columns="geometry")).to_parquet(tmp_path / "table.parquet")
    for name, kind in (
        ("bare.shp", "crs"),
        ("empty.gpkg", "empty"),
        ("text.shp", "unreadable"),
        ("table.parquet", "unreadable"),
        ("nowhere.gpkg", "unreadable"),
    ):
        with pytest.raises(UsageError, match=name) as error:
            validate_files(tmp_path / name)
        assert error.value.kind == f"inventory-{kind}"


# --- V6: divides ----------------------------------------------------------------------------------


@counts(10, 50)
def test_v6_every_pixel_of_a_complex_has_one_glacier_on_any_terrain_and_tiling(count: int):
    for seed in range(count):
        rng = np.random.default_rng(seed)
        frame = reference_boxes(rng)
        row, col = np.mgrid[:256, :256]
        terrain = 3000.0 - np.hypot(row - 128, col - 128)
        if seed % 4 == 0:
            terrain = np.zeros_like(terrain)
        if seed % 4 == 1:
            terrain[rng.random(terrain.shape) < 0.2] = np.nan
        if seed % 4 == 2:
            terrain[100:140, 100:140] = -500.0
        found = []
        for shard_px in (64, 128):
            grid = world_grid(shard_px)
            kept = {}
            for batch in glacier_batches(frame, grid, growth_m=80.0):
                window = np.full(batch.shape, np.nan, np.float32)
                r, c = max(batch.row0, 0), max(batch.col0, 0)
                part = terrain[r : batch.row0 + batch.height, c : batch.col0 + batch.width]
                window[r - batch.row0 :, c - batch.col0 :][: part.shape[0], : part.shape[1]] = part
                owners = territory_of(batch, frame, grid, growth_m=80.0, elevation=window).owners
                nearest = territory_of(batch, frame, grid, growth_m=80.0, elevation=None).owners
                assert ((owners > 0) == (nearest > 0)).all()
                traced = trace_polygons(owners, row0=batch.row0, col0=batch.col0, grid=grid)
                assert geometry_findings([polygon for _, polygon in traced]) == []
                kept[batch.ref_ids] = owners.tobytes()
            found.append(kept)
        assert found[0] == found[1]


def test_v6_a_glacier_of_unknown_heights_keeps_its_ice():
    inside = np.zeros((20, 20), np.int32)
    inside[5:15, 2:10], inside[5:15, 10:18] = 1, 2
    unknown = np.full(inside.shape, np.nan, np.float32)
    owners = extend_owners(inside, resolution_m=10.0, growth_m=20.0, elevation=unknown)
    assert (owners[inside > 0] == inside[inside > 0]).all()
