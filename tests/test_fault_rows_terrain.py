"""Rows D1, D2, D3, G1 and G2 of the fault matrix: broken elevation models, and the whole globe.

Each runs on a few cases by default and on all of them with ``-m chaos``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from painted_world import RESOLUTION, cone, mask, paint_terrain
from pyproj import Geod, Transformer
from rasters import dem_item
from servers import Answer, Request, scripted_server
from shapely import Polygon
from test_outlines import RECTANGLES, World
from test_search import api, find, page

from catalog.assets import AssetPolicy
from catalog.cube import TERRAIN_BANDS, Outcome, Workspace, read_shard
from catalog.errors import SourceError
from catalog.grid import RegionGrid, region_grid
from catalog.sensors import describe_item
from catalog.terrain import build_terrain_shard, create_terrain
from change_detection.attributes import utm_zone

NAN = float("nan")
Paint = Callable[[np.ndarray, np.ndarray], np.ndarray]


def few_and_all(few: int, every: int) -> list[object]:
    """Numbers of cases: some by default, the others for those who ask."""
    return [*range(few), *(pytest.param(n, marks=pytest.mark.chaos) for n in range(few, every))]


def grid_around(lon: float, lat: float, *, shard_px: int = 128) -> RegionGrid:
    """One shard of 10 m pixels with a place in its middle."""
    grid = RegionGrid(lat, lon, 10.0, shard_px, 64, 0.0, 0.0, 1, 1)
    half = shard_px * grid.resolution_m / 2
    return replace(grid, left=-half, top=half)


def build(folder: Path, grid: RegionGrid, items: list[dict]) -> tuple[dict, Outcome]:
    workspace, shard = Workspace(folder / "workspace"), grid.shard(0, 0)
    create_terrain(workspace, grid)
    outcome = build_terrain_shard(
        workspace,
        shard,
        dem=[describe_item(item) for item in items],
        policy=AssetPolicy((str(folder),)),
    )
    stored = read_shard(workspace, "cube.zarr/terrain", shard)
    return dict(zip(TERRAIN_BANDS, stored, strict=True)), outcome


# --- D1: holes and fill values --------------------------------------------------------------------

LON, LAT = 10.8, 46.8
FILLS = {"nan": NAN, "untagged": -9999.0, "spike": 30_000.0, "abyss": -1e5, "infinite": math.inf}


def hills(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
    return 2000 + 100 * np.sin(lon * 300) + 80 * np.cos(lat * 500)


def spoiling(fill: float, seed: int) -> Callable[[Paint], Paint]:
    """Puts a fill value on some disks of 100 to 400 m."""
    rng = np.random.default_rng(seed)
    disks = [(*rng.uniform(-0.006, 0.006, 2), rng.uniform(0.001, 0.004)) for _ in range(4)]

    def spoil(paint: Paint) -> Paint:
        def painted(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
            values = paint(lon, lat)
            for east, north, radius in disks:
                away = np.hypot((lon - LON - east) * math.cos(math.radians(LAT)), lat - LAT - north)
                values = np.where(away < radius, fill, values)
            return values

        return painted

    return spoil


@pytest.mark.parametrize("fault", FILLS)
@pytest.mark.parametrize("seed", few_and_all(1, 10))
def test_d1_no_number_comes_from_a_fill_value(tmp_path: Path, fault: str, seed: int) -> None:
    frame = {"west": LON - 0.06, "south": LAT - 0.05, "size": 0.12}
    grid, spoil = grid_around(LON, LAT), spoiling(FILLS[fault], seed)
    clean, _ = build(
        tmp_path / "clean", grid, [dem_item(tmp_path / "clean", "D", paint=hills, **frame)]
    )
    item = dem_item(tmp_path / "bad", "D", paint=spoil(hills), **frame)
    bands, outcome = build(tmp_path / "bad", grid, [item])
    hole = np.isnan(bands["elevation"])
    assert 0 < hole.mean() < 1
    assert outcome.facts["valid_fraction"] == pytest.approx(1 - hole.mean(), abs=1e-6)
    for name, values in bands.items():
        assert np.isnan(values[hole]).all(), name
        # smoothing sees less at a rim; a fill value would show a hundredfold
        assert np.nanmax(np.abs(values)) <= 4 * np.abs(clean[name]).max(), name
    heights = bands["elevation"][~hole]
    assert np.abs(heights - clean["elevation"][~hole]).max() < 15  # half a DEM pixel at the rim


@pytest.mark.parametrize("seed", few_and_all(1, 5))
def test_d1_the_sea_is_at_zero_and_faces_nowhere(tmp_path: Path, seed: int) -> None:
    shore = np.random.default_rng(seed).uniform(-0.003, 0.003)

    def coast(lon: np.ndarray, lat: np.ndarray) -> np.ndarray:
        return np.maximum(0.0, (lon - LON - shore) * 40_000)

    item = dem_item(tmp_path, "D", paint=coast, west=LON - 0.06, south=LAT - 0.05, size=0.12)
    bands, outcome = build(tmp_path, grid_around(LON, LAT), [item])
    assert outcome.facts["valid_fraction"] == 1.0
    assert outcome.set_aside == ()
    sea = bands["elevation"] == 0
    assert 0.1 < sea.mean() < 0.9
    flat = bands["slope"] == 0
    assert flat.any()
    assert not bands["aspect_sin"][flat].any()
    assert all(np.isfinite(values).all() for values in bands.values())


@pytest.mark.parametrize("seed", few_and_all(1, 5))
def test_d1_attributes_are_those_of_the_part_that_is_known(tmp_path: Path, seed: int) -> None:
    world, elevation = World(tmp_path), cone()
    elevation[np.random.default_rng(seed).random(elevation.shape) < 0.3] = NAN
    paint_terrain(world.workspace, world.grid, elevation)
    world.paint(ice=mask(RECTANGLES["C"]))
    row = world.trace().outlines.iloc[0]
    mine = elevation[200:220, 200:220]
    assert (row.zmin_m, row.zmax_m) == (np.nanmin(mine), np.nanmax(mine))
    assert row.zmean_m == pytest.approx(np.nanmean(mine), rel=1e-6)


def test_d1_without_any_elevation_attributes_are_null_and_the_outline_is_kept(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    paint_terrain(world.workspace, world.grid, np.full_like(cone(), NAN))
    world.paint(ice=mask(RECTANGLES["C"]))
    row = world.trace().outlines.iloc[0]
    assert math.isnan(row.zmed_m)
    assert math.isnan(row.zmin_m)
    assert row.area_km2 == pytest.approx(400 * RESOLUTION**2 / 1e6, rel=0.05)


# --- D2: a tile is missing ------------------------------------------------------------------------

CORNERS = {"Alps": (11, 47), "Andes": (-70, -33), "null island": (0, 0), "Chukotka": (180, 68)}


def cell_name(lon: int, lat: int) -> str:
    lon = (lon + 180) % 360 - 180
    return f"{'NS'[lat < 0]}{abs(lat):02d}{'EW'[lon < 0]}{abs(lon):03d}"


@pytest.mark.parametrize("place", CORNERS)
@pytest.mark.parametrize("seed", few_and_all(1, 5))
def test_d2_a_missing_tile_is_a_hole_with_a_name_and_the_sea_is_not_made_up(
    tmp_path: Path, place: str, seed: int
) -> None:
    """Four tiles meet in the middle of a shard; some are missing, whether at sea or on land."""
    lon, lat = CORNERS[place]
    rng = np.random.default_rng([seed, lat + 90, lon + 180])
    pixel, size = 1 / 3600, 0.06
    cells = {
        cell_name(lon + east, lat + north): (east, north) for east in (-1, 0) for north in (-1, 0)
    }
    missing = sorted(rng.choice(sorted(cells), rng.integers(1, 4), replace=False).tolist())
    items = []
    for name, (east, north) in cells.items():
        if name in missing:
            continue
        west = lon + (size * east if east else 0.0) - pixel / 2
        west = west - 360 if east == 0 and lon == 180 else west
        south = lat + size * north + pixel / 2
        items.append(
            dem_item(
                tmp_path, name, paint=lambda x, y: 0 * x + 100, west=west, south=south, size=size
            )
        )
        items[-1]["bbox"] = [west, south, west + size, south + size]
    grid = grid_around(float(lon), float(lat))
    bands, outcome = build(tmp_path, grid, items)
    named = {f.what: f.reason for f in outcome.set_aside if f.kind == "dem-incomplete"}
    assert sorted(named) == missing
    lons, lats = grid.lonlat(np.arange(128)[:, None], np.arange(128))
    hole = np.isnan(bands["elevation"])
    eastward, northward = (lons - lon + 180) % 360 - 180, lats - lat
    for name, (east, north) in cells.items():
        inside = eastward < -0.0004 if east else eastward > 0.0004
        inside &= northward < -0.0004 if north else northward > 0.0004
        assert inside.sum() > 1000
        assert hole[inside].all() == (name in missing)
        assert hole[inside].any() == (name in missing)
    counted = sum(int(reason.split(" ", 1)[0]) for reason in named.values())
    assert 0.5 * hole.sum() < counted <= hole.sum()  # a strip of 160 m belongs to the rim of tiles
    for values in bands.values():
        assert np.isnan(values[hole]).all()


def test_d2_a_shard_without_any_tile_names_all_its_cells(tmp_path: Path) -> None:
    bands, outcome = build(tmp_path, grid_around(15.0, 79.0), [])
    assert [f.what for f in outcome.set_aside] == ["N78E014", "N78E015", "N79E014", "N79E015"]
    assert {f.kind for f in outcome.set_aside} == {"dem-incomplete"}
    assert all(np.isnan(values).all() for values in bands.values())


# --- D3: the catalogue pages for ever -------------------------------------------------------------


def elevation_item(name: str) -> dict:
    ring = [[10, 46], [11, 46], [11, 47], [10, 47], [10, 46]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "cop-dem-glo-30",
        "bbox": [10, 46, 11, 47],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": "2021-04-22T00:00:00Z"},
        "assets": {"data": {"href": f"./{name}.tif"}},
        "links": [],
    }


@pytest.mark.parametrize("period", [1, 2])
def test_d3_elevation_tiles_that_page_for_ever_are_a_typed_error_at_once(period: int) -> None:
    def endless(request: Request, root: str) -> Answer:
        token = int(request.path.partition("token=")[2] or 0)
        link = {"href": f"{root}/search?token={(token + 1) % period}", "method": "GET"}
        return page([elevation_item("N46E010")], link)

    with scripted_server(api(endless)) as server, pytest.raises(SourceError) as caught:
        find(server.url, collections=["cop-dem-glo-30"], start=None, end=None)
    assert caught.value.kind == "catalog-incomplete"
    assert len(server.requests) < 10


def test_d3_pages_without_end_are_a_typed_error_even_where_each_has_a_new_link() -> None:
    def endless(request: Request, root: str) -> Answer:
        token = int(request.path.partition("token=")[2] or 0)
        return page(
            [elevation_item("N46E010")],
            {"href": f"{root}/search?token={token + 1}", "method": "GET"},
        )

    with scripted_server(api(endless)) as server, pytest.raises(SourceError) as caught:
        find(server.url, collections=["cop-dem-glo-30"], start=None, end=None)
    assert caught.value.kind == "catalog-incomplete"


# --- G1: each point in exactly one shard ----------------------------------------------------------

REGIONS = {
    "UTM 31/32": (5.0, 7.0, 45.0, 46.0),
    "Norway 32V": (2.0, 7.0, 60.0, 62.0),
    "Svalbard 31X/33X": (7.5, 11.0, 78.0, 79.0),
    "Svalbard 33X/35X": (19.0, 23.0, 79.0, 80.0),
    "Svalbard 35X/37X": (31.0, 35.0, 79.5, 80.5),
    "antimeridian": (178.5, 181.5, 67.0, 68.5),
    "equator": (36.0, 38.0, -1.0, 1.0),
    "Greenwich": (-0.7, 0.7, 42.4, 43.0),
    "northernmost": (-40.0, -25.0, 82.8, 83.7),
    "Antarctica": (-66.0, -60.0, -68.0, -65.0),
}
SPECIAL = {
    (6.0, 45.5): 32,
    (5.999999, 45.5): 31,
    (3.0, 61.0): 32,
    (9.0, 78.5): 33,
    (21.0, 79.5): 35,
    (33.0, 80.0): 37,
    (180.0, 67.5): 1,
}


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("region", REGIONS)
def test_g1_each_point_lies_in_exactly_one_shard(region: str, count: int) -> None:
    west, east, south, north = REGIONS[region]
    grid = region_grid([west, east, east, west], [south, south, north, north])
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(west, east, count), rng.uniform(south, north, count)
    edges = [p for p in SPECIAL if west <= p[0] <= east and south <= p[1] <= north]
    lon = np.append(lon, [x for x, _ in edges])
    lat = np.append(lat, [y for _, y in edges])
    x, y = Transformer.from_crs(4326, grid.crs, always_xy=True).transform(lon, lat)
    corner = grid.top - grid.resolution_m * np.arange(0, grid.shape[0] + 1, grid.shard_px)
    on_edge = rng.choice(corner[1:-1], count) if len(corner) > 2 else np.full(count, corner[0])
    x, y = np.append(x, rng.uniform(x.min(), x.max(), count)), np.append(y, on_edge)
    # ^ points on the edges of shards too
    holders = np.zeros(x.shape, int)
    for shard in grid.shards():
        left, bottom, right, top = shard.bounds
        holders += (left <= x) & (x < right) & (bottom < y) & (y <= top)
    assert (holders == 1).all()


@pytest.mark.parametrize("place", SPECIAL)
def test_g1_only_the_utm_zone_follows_that_of_the_satellites_tiles(
    place: tuple[float, float],
) -> None:
    assert utm_zone(*place) == SPECIAL[place]


# --- G2: areas ------------------------------------------------------------------------------------

AREAS = {
    "83.6 N": (-33.0, 83.6),
    "Antarctica": (-63.0, -78.0),
    "180 deg": (180.0, 68.0),
    "0 lon": (0.0, 42.7),
    "equator": (37.3, 0.0),
}


@pytest.mark.parametrize("count", [10, pytest.param(400, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("place", AREAS)
def test_g2_areas_are_those_of_the_ellipsoid(place: str, count: int) -> None:
    lon, lat = AREAS[place]
    spread = 1.5 / max(0.1, math.cos(math.radians(lat)))
    grid = region_grid(
        [lon - spread, lon + spread] * 2,
        [lat - 1.5, lat - 1.5, min(lat + 1.5, 90), min(lat + 1.5, 90)],
    )
    to_lonlat = Transformer.from_crs(grid.crs, 4326, always_xy=True)
    centre = Transformer.from_crs(4326, grid.crs, always_xy=True).transform(lon, lat)
    geod, rng = Geod(ellps="WGS84"), np.random.default_rng(0)
    for _ in range(count):
        turn = np.linspace(0, 2 * math.pi, rng.integers(5, 200), endpoint=False)
        size = 10 ** rng.uniform(2, 4.5)
        reach = size * (1 + 0.4 * np.sin(rng.integers(2, 7) * turn + rng.uniform(0, 6)))
        middle = np.array(centre) + rng.uniform(-1e5, 1e5, 2)
        outline = Polygon(
            np.stack([middle[0] + reach * np.cos(turn), middle[1] + reach * np.sin(turn)], axis=1)
        )
        assert outline.is_valid
        ring = outline.segmentize(size / 50).exterior.coords.xy
        area, _ = geod.polygon_area_perimeter(*to_lonlat.transform(*map(np.asarray, ring)))
        assert outline.area == pytest.approx(abs(area), rel=1e-5)
