"""The report: what it says, what it refuses to say, and that it can be read safely anywhere."""

from __future__ import annotations

import base64
import functools
import io
import itertools
import json
import re
import tracemalloc
from dataclasses import dataclass
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio.features import shapes
from scipy import ndimage
from skimage.segmentation import watershed

from catalog.cube import (
    CLASSES,
    DATE_MISSING,
    NOT_SEEN,
    TERRAIN_BANDS,
    Workspace,
    create_layer,
    write_shard,
)
from catalog.errors import StoreError
from catalog.grid import RegionGrid, region_grid
from change_detection.accounts import ACCOUNT_SCHEMA
from change_detection.change import change_between
from change_detection.uncertainty import AreaCalibration, boundary_sigma_km2, ensemble_sd
from inventory_engine.report import maps, rasters, words, write_report
from inventory_engine.report.numbers import size_class

HOSTILE = "<script>alert('name')</script>"
DOLLARS = "Großes $ferner & Söhne \\frac{"
CALIBRATION = AreaCalibration(1.3, 1.6, "held-out folds of the <b>training</b> regions")


# --- a painted region ----------------------------------------------------------------------------


@dataclass
class World:
    """A made-up massif: terrain, basins with glaciers, and what each season shows."""

    grid: RegionGrid
    heights: np.ndarray
    basins: np.ndarray
    names: dict[int, str]


@functools.lru_cache
def make_world(*, shard_px: int = 256, seed: int = 7) -> World:
    grid = region_grid(
        [10.62, 10.78], [46.75, 46.83], resolution_m=20.0, shard_px=shard_px, chunk_px=64
    )
    rng = np.random.default_rng(seed)
    heights = np.zeros(grid.shape)
    for scale, amount in ((90, 900), (35, 420), (14, 150), (5, 40)):
        noise = ndimage.gaussian_filter(rng.standard_normal(grid.shape), scale, mode="wrap")
        heights += amount * noise / noise.std()
    heights = 2750 + 0.62 * heights
    smooth = ndimage.gaussian_filter(heights, 9)
    basins = watershed(-ndimage.gaussian_filter(heights, 14), mask=smooth > 2900)
    sizes = np.bincount(basins.ravel())
    keep = [b for b in np.argsort(-sizes[1:])[:26] + 1 if sizes[b] > 60]
    out = np.zeros_like(basins)
    for number, basin in enumerate(keep, start=1):
        out[basins == basin] = number
    names = {1: HOSTILE, 2: DOLLARS, 3: "Vernagtferner", 5: "Gepatschferner"}
    return World(grid, heights.astype(np.float32), out, names)


def ref_id(number: int) -> str:
    return f"RGI2000-v7.0-G-11-{number:05d}"


def ice_of(world: World, retreat: float) -> np.ndarray:
    """Glacier number of each pixel (y, x); ice ends higher after more retreat."""
    smooth = ndimage.gaussian_filter(world.heights, 4)
    limit = 2960 + retreat * (0.6 + 0.05 * (world.basins % 9))
    ice = np.where(smooth > limit, world.basins, 0)
    if retreat > 50:
        ice[ice == max(10, int(world.basins.max()) - 2)] = 0
    return ice


def paint_season(
    workspace: Workspace, world: World, label: str, *, retreat: float, day: int, members: int
) -> None:
    rng = np.random.default_rng(int(retreat) + 1)
    ice = ice_of(world, retreat)
    debris = (ice > 0) & (ice % 4 == 1) & (ndimage.gaussian_filter(world.heights, 4) < 3060)
    light = rasters.hillshade(world.heights, world.grid.resolution_m)
    optical = optical_of(world, ice, debris, light, rng)
    edge = ndimage.gaussian_filter((ice > 0).astype(float), 1.5)
    probability = np.zeros((len(CLASSES), *world.grid.shape), np.uint8)
    total = np.clip(np.where(ice > 0, np.maximum(edge, 0.55), np.minimum(edge, 0.45)), 0.02, 0.98)
    probability[1] = np.where(debris, 0.1, 0.95) * total * 254
    probability[2] = np.where(debris, 0.9, 0.05) * total * 254
    probability[0] = 254 - probability[1] - probability[2]
    spread = np.clip(254 * 0.28 * 4 * edge * (1 - edge) + 3, 0, 254).astype(np.uint8)
    cloud = ndimage.gaussian_filter(rng.standard_normal(world.grid.shape), 30, mode="wrap")
    unseen = cloud > 3.0 * cloud.std()
    probability[:, unseen], spread[unseen], optical[:, unseen] = NOT_SEEN, NOT_SEEN, 0
    if members < 3:
        spread[:] = NOT_SEEN
    days = (day + 16 * (cloud > 0)).astype(np.int32)
    days[unseen] = DATE_MISSING
    looks = np.clip(4 - 2 * cloud / cloud.std(), 0, 12).astype(np.uint8)
    layers = {
        f"cube.zarr/{label}/optical": optical,
        f"cube.zarr/{label}/date": days,
        f"cube.zarr/{label}/observations": looks,
        f"map.zarr/{label}/probability": probability,
        f"map.zarr/{label}/spread": spread,
    }
    for name, values in layers.items():
        paint(workspace, world.grid, name, values)
    write_tables(workspace, world, label, ice=ice, debris=debris, day=day, members=members)


def optical_of(world, ice, debris, light, rng) -> np.ndarray:
    texture = ndimage.gaussian_filter(rng.standard_normal(world.grid.shape), 1) * 0.02
    green = np.clip((2500 - world.heights) / 400, 0, 1)
    bands = np.empty((6, *world.grid.shape))
    rock = (0.10, 0.13, 0.16, 0.22, 0.28, 0.25)
    grass = (0.04, 0.07, 0.05, 0.36, 0.20, 0.10)
    snow = (0.72, 0.70, 0.66, 0.56, 0.07, 0.05)
    bare = np.clip((world.heights - 2950) / 400, 0.25, 1)
    for band in range(6):
        ground = rock[band] * (1 - green) + grass[band] * green
        frozen = snow[band] * (bare if band < 4 else 1)
        value = np.where(debris, rock[band] * 0.9, np.where(ice > 0, frozen, ground))
        bands[band] = np.clip(value * (0.35 + 0.9 * light) + texture, 0.005, 1.2)
    return np.round(bands * 10000 + 1000).astype(np.uint16)


def paint(workspace: Workspace, grid: RegionGrid, name: str, values: np.ndarray) -> None:
    create_layer(workspace, name, grid)
    for shard in grid.shards():
        write_shard(workspace, name, shard, np.ascontiguousarray(values[(..., *shard.window)]))


def write_tables(workspace, world, label, *, ice, debris, day, members) -> None:
    rng = np.random.default_rng(day)
    pixel = world.grid.pixel_area_km2
    reference = np.bincount(ice_of(world, -40.0).ravel(), minlength=world.basins.max() + 1)
    bias = 1 + 0.012 * rng.standard_normal(5)
    accounts, outlines = [], []
    geometry = {int(v): [] for v in np.unique(ice) if v}
    for shape, value in shapes(
        ice.astype(np.int32), mask=ice > 0, transform=world.grid.transform, connectivity=4
    ):
        geometry[int(value)].append(shapely.geometry.shape(shape))
    for number in range(1, int(world.basins.max()) + 1):
        mine = ice == number
        parts = [p for p in geometry.get(number, []) if p.area > 1e4]
        area = float(mine.sum()) * pixel
        perimeter = sum(p.length for p in parts) * np.pi / 4
        voters = np.array([i < members for i in range(5)])
        if number == 20:
            voters[:] = [True, True, False, False, False]
        areas = np.where(voters, area * bias * (1 + 0.01 * rng.standard_normal(5)), np.nan)
        boundary = float(boundary_sigma_km2(perimeter, world.grid.resolution_m))
        heights = world.heights[mine]
        seen = 0.42 if number == 8 and label.endswith("0") else 1.0
        flags = ["low-observation"] if seen < 0.8 else []
        month = int(str(np.datetime64(day, "D"))[5:7])
        flags += [] if 7 <= month <= 10 else ["out-of-season"]
        flags += ["few-members"] if voters.sum() < 3 else []
        flags += ["no-ice"] if area == 0 else []
        flags += ["multi-part"] if len(parts) > 1 else []
        sd = float(ensemble_sd(areas[:, None])[0])
        covered = float((mine & debris).sum()) * pixel
        accounts.append(
            {
                "ref_id": ref_id(number),
                "src_date": f"{np.datetime64(day, 'D')}T00:00:00",
                "day": float(day),
                "date_span_days": 16.0,
                "area_km2": area,
                "area_clean_km2": area - covered,
                "area_debris_km2": covered,
                "area_water_km2": 0.0,
                "area_reference_km2": float(reference[number]) * pixel,
                "area_unseen_km2": (1 - seen) * float(reference[number]) * pixel,
                "area_beyond_km2": 0.0,
                "obs_fraction": seen,
                "member_area_km2": areas.tolist(),
                "n_members": int(voters.sum()),
                "area_ensemble_sd_km2": sd if np.isfinite(sd) else None,
                "boundary_sigma_km2": boundary,
                "perimeter_km": perimeter / 1e3,
                "zmin_m": float(heights.min()) if area else None,
                "zmax_m": float(heights.max()) if area else None,
                "zmed_m": float(np.median(heights)) if area else None,
                "inputs": "optical+sar+terrain" if number % 3 else "optical+terrain",
                "n_parts": len(parts),
                "flags": sorted(flags),
                "look_days": [f"{np.datetime64(day, 'D')}", f"{np.datetime64(day + 16, 'D')}"],
                "look_shares": [0.75, 0.25],
            }
        )
        whole = sum(p.area for p in parts)
        outlines += [
            {
                "ref_id": ref_id(number),
                "glac_name": world.names.get(number, ""),
                "area_km2": part.area / 1e6,
                "area_clean_km2": (area - covered) * part.area / whole,
                "area_debris_km2": covered * part.area / whole,
                "area_sigma_km2": float(np.hypot(sd, boundary)) * part.area / whole,
                "obs_fraction": seen,
                "inputs": "optical+terrain",
                "geometry": part,
            }
            for part in sorted(parts, key=lambda p: p.bounds)
        ]
    frame = gpd.GeoDataFrame(outlines, crs=world.grid.crs).to_crs(4326)
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    workspace.put(f"inventory/{label}/outlines.parquet", buffer.getvalue())
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(accounts, schema=ACCOUNT_SCHEMA), buffer)
    workspace.put(f"inventory/{label}/accounts.parquet", buffer.getvalue())


SEASONS = {
    "2016": ("2016-08-01", "2016-09-30", 0.0, "2016-08-28"),
    "2020": ("2020-08-01", "2020-09-30", 32.0, "2020-09-05"),
    "2024": ("2024-08-01", "2024-09-30", 75.0, "2024-08-30"),
}
ONE_YEAR = {
    "2024-02": ("2024-01-15", "2024-03-15", 10.0, "2024-02-10"),
    "2024-05": ("2024-04-15", "2024-06-15", 5.0, "2024-05-12"),
    "2024-08": ("2024-07-15", "2024-09-15", 60.0, "2024-08-11"),
    "2024-11": ("2024-10-16", "2024-12-15", 20.0, "2024-11-09"),
}


def day_number(text: str) -> int:
    return (date.fromisoformat(text) - date(1970, 1, 1)).days


def paint_run(folder: Path, seasons: dict, *, terrain: bool = True, members: int = 5):
    """Paint a whole finished workspace and describe its run."""
    workspace, world = Workspace(folder), make_world()
    if terrain:
        heights = np.zeros((len(TERRAIN_BANDS), *world.grid.shape), np.float32)
        heights[0] = world.heights
        paint(workspace, world.grid, "cube.zarr/terrain", heights)
    for label, (_, _, retreat, day) in seasons.items():
        paint_season(workspace, world, label, retreat=retreat, day=day_number(day), members=members)
    labels = list(seasons)
    pairs = [[a, b] for a, b in itertools.pairwise(labels)]
    if len(labels) > 2:
        pairs.append([labels[0], labels[-1]])
    for first, second in pairs:
        change_between(workspace, first, second, calibration=CALIBRATION)
    return workspace, describe(world, seasons, pairs)


def describe(world: World, seasons: dict, pairs: list) -> dict:
    scenes = {
        label: [
            {
                "id": f"S2A_32TPT_{start.replace('-', '')}_{i}_L2A",
                "datetime": str(np.datetime64(start) + np.timedelta64(6 * i + 1, "D"))
                + "T10:10:31Z",
                "kind": "optical" if i % 3 else "sar",
                "cloud_percent": float((i * 37) % 90) if i % 3 else None,
                "sensor": "sentinel-2-msi" if i % 3 else "sentinel-1-rtc",
                "bbox": [-180.0, -90.0, 180.0, 90.0],
            }
            for i in range(10)
        ]
        for label, (start, *_) in seasons.items()
    }
    scenes[next(iter(seasons))][1]["id"] = "<img src=x onerror=alert(1)>"
    return {
        "name": "Ötztal & <i>made up</i>",
        "seasons": {
            k: {"start": v[0], "end": v[1], "composite": "least_snow", "resolution_m": 20.0}
            for k, v in seasons.items()
        },
        "pairs": pairs,
        "settings": {
            "name": "oetztal",
            "catalog": {"url": "https://user:pass@stac.example.org/v1?token=SECRETTOKEN"},
            "grid": {"resolution_m": 20.0},
        },
        "ensemble": {
            "name": "default",
            "fingerprint": "3f9a" * 16,
            "card": {"members": [f"member-{i}" for i in range(5)], "classes": 4},
        },
        "scenes": scenes,
        "set_aside": [
            {
                "what": "S2B_broken",
                "kind": "raster-truncated",
                "reason": "read 10 of 20 bytes of https://x.org/a.tif?sig=SECRETTOKEN <b>bold</b>",
                "stage": "cube",
                "unit": "r000c001",
            }
        ],
        "grid": world.grid.to_dict(),
        "versions": {"glacier-inventory-engine": "0.1.0", "numpy": np.__version__},
        "catalog": "https://stac.example.org/v1",
    }


@dataclass
class Written:
    workspace: Workspace
    run: dict
    html: str
    data: dict
    outputs: dict


def written(folder: Path, seasons: dict, **options) -> Written:
    workspace, run = paint_run(folder, seasons, **options)
    outcome = write_report(workspace, run=run)
    html = workspace.get("report/index.html")
    data = workspace.get("report/data.json")
    assert html is not None
    assert data is not None
    return Written(workspace, run, html.decode(), json.loads(data), outcome.outputs)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Written:
    return written(tmp_path_factory.mktemp("three"), SEASONS)


@pytest.fixture(scope="module")
def one_year(tmp_path_factory) -> Written:
    return written(tmp_path_factory.mktemp("year"), ONE_YEAR, terrain=False, members=2)


# --- the page as a document ----------------------------------------------------------------------


class Page(HTMLParser):
    """Everything a test asks of the page: tags, links and the text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br", "input", "link", "hr"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def uris(page: Page) -> list[str]:
    return [attrs["src"] for tag, attrs in page.tags if tag == "img"]


def test_every_element_is_closed_and_the_page_is_smaller_than_8_mb(report):
    page = Page(report.html)
    assert page.open == []
    assert len(report.html.encode()) < 8_000_000


def test_the_page_loads_nothing_from_outside(report):
    page = Page(report.html)
    for tag, attrs in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            value = attrs.get(name, "#")
            assert value.startswith(("#", "data:image/")), (tag, name, value[:60])
    assert "@import" not in report.html
    assert not re.search(r"url\(", report.html.split("</style>")[0])
    policy = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy
    assert policy[0].startswith("default-src 'none'")


def test_hostile_names_are_text_and_only_our_own_script_runs(report):
    page = Page(report.html)
    assert HOSTILE in page.words
    assert "<img src=x onerror=alert(1)>" in page.words
    assert "<b>bold</b>" in page.words
    assert page.count("script") == 1
    assert all(not name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert report.html.count("<script>") == 1


def test_a_name_that_looks_like_a_formula_stays_a_name(report):
    assert DOLLARS in Page(report.html).words


def test_secrets_in_urls_never_reach_the_page(report):
    stored = report.html + json.dumps(report.data)
    assert "SECRETTOKEN" not in stored
    assert "user:pass" not in stored
    assert "https://stac.example.org/v1" in report.html


def test_every_figure_can_be_decoded(report):
    found = uris(Page(report.html))
    assert len(found) >= 12
    for uri in found:
        head, _, body = uri.partition(",")
        data = base64.b64decode(body, validate=True)
        if "svg" in head:
            assert b"<svg" in data
            assert b"<dc:date" not in data
        else:
            image = Image.open(io.BytesIO(data))
            assert max(image.size) >= 400
            assert np.asarray(image.convert("L")).std() > 10


# --- what it says --------------------------------------------------------------------------------


def test_the_headline_is_the_longest_comparable_pair_and_equals_the_change_summary(report):
    raw = report.workspace.get("change/2016_2024/summary.json")
    assert raw is not None
    summary = json.loads(raw)
    assert report.data["headline"] == {"start": "2016", "end": "2024"}
    total = next(p for p in report.data["pairs"] if (p["start"], p["end"]) == ("2016", "2024"))
    assert total["change_km2"] == summary["area_change_km2"]
    assert total["sigma_km2"] == summary["area_change_sigma_km2"]
    percent, sigma = summary["rate_percent_per_year"], summary["rate_percent_sigma"]
    shown = f"{percent:.2f} ± {sigma:.2f}".replace("-", "−")
    assert shown in Page(report.html).words


def test_season_totals_are_the_sums_of_the_accounts(report):
    for season in report.data["seasons"]:
        raw = report.workspace.get(f"inventory/{season['label']}/accounts.parquet")
        assert raw is not None
        accounts = pd.read_parquet(io.BytesIO(raw))
        assert season["area_km2"] == pytest.approx(accounts["area_km2"].sum())
        assert season["debris_km2"] == pytest.approx(accounts["area_debris_km2"].sum())
        assert season["with_ice"] == int((accounts["area_km2"] > 0).sum())
        low, high = season["sigma_independent_km2"], season["sigma_correlated_km2"]
        assert low <= season["sigma_km2"] <= high


def test_each_glacier_has_its_row_with_inputs_flags_and_events(report):
    page = Page(report.html)
    accounts = report.data["seasons"][0]["glaciers"]
    rows = [a for t, a in page.tags if t == "tr" and "data-event" in a]
    assert len(rows) == accounts
    assert {row["data-event"] for row in rows} >= {"", "vanished"}
    assert "optical + sar + terrain" in page.words
    assert "low-observation" in page.words or "few-members" in page.words


def test_events_name_the_vanished_and_the_unobserved_glacier(report):
    events = {(e["pair"], e["id"]): e["event"] for e in report.data["events"]}
    assert events["2016 to 2020", ref_id(8)] == "unobserved"
    assert "vanished" in events.values()


def test_what_was_set_aside_is_listed_with_its_reason(report):
    words_ = Page(report.html).words
    assert "raster-truncated" in words_
    assert "S2B_broken" in words_
    assert report.data["set_aside"] == {"raster-truncated": 1}


def test_seasons_of_one_year_are_never_presented_as_change(one_year):
    page = Page(one_year.html)
    assert one_year.data["headline"] is None
    assert all(not pair["comparable"] for pair in one_year.data["pairs"])
    assert "No glacier change is reported." in page.words
    assert "less than 0.9 years apart" in page.words
    assert "seen outside the end of the ablation season" in page.words
    assert "Rate of area change of every glacier" not in page.words
    assert "Glaciers that changed most" not in page.words
    assert not [a for t, a in page.tags if t == "tr" and a.get("data-beyond") == "1"]


def test_a_missing_interval_is_said_and_never_zero(one_year):
    page = Page(one_year.html)
    assert "(interval not available)" in page.words
    assert "± 0" not in page.words
    assert all(season["sigma_km2"] is None for season in one_year.data["seasons"])


def test_without_terrain_the_report_still_stands_on_a_grey_composite(one_year):
    assert "Hypsometry" not in Page(one_year.html).words
    assert "Outlines of all seasons" in Page(one_year.html).words


def test_equal_inputs_give_equal_bytes_whatever_their_order(report):
    run = json.loads(json.dumps(report.run))
    run["seasons"] = dict(reversed(run["seasons"].items()))
    run["scenes"] = {k: v[::-1] for k, v in reversed(run["scenes"].items())}
    run["settings"] = dict(reversed(run["settings"].items()))
    assert write_report(report.workspace, run=run).outputs == report.outputs


def test_a_single_season_gives_an_inventory_without_change(report):
    run = json.loads(json.dumps(report.run))
    run["seasons"] = {"2016": run["seasons"]["2016"]}
    run["pairs"] = []
    copy = Workspace(report.workspace.path("").parent / "single")
    for name in report.workspace.names("inventory/2016"):
        copy.put(name, report.workspace.get(name) or b"")
    write_report(copy, run=run)
    page = Page((copy.get("report/index.html") or b"").decode())
    assert "the run has a single season" in page.words
    assert "inventory/2016/accounts.parquet" in page.words


def test_a_season_and_a_pair_that_could_not_be_made_are_named_and_the_rest_is_reported(report):
    copy = Workspace(report.workspace.path("").parent / "partial")
    for name in report.workspace.names(""):
        if name.startswith(("inventory/2016", "inventory/2020", "change/2016_2020")):
            copy.put(name, report.workspace.get(name) or b"")
    write_report(copy, run=report.run)
    data = json.loads(copy.get("report/data.json") or b"")
    assert data["missing"] == [
        "season 2024",
        "change from 2020 to 2024",
        "change from 2016 to 2024",
    ]
    page = Page((copy.get("report/index.html") or b"").decode())
    assert "Not everything that was asked for could be made: season 2024" in page.words
    assert data["headline"] == {"start": "2016", "end": "2020"}


# --- what it refuses -----------------------------------------------------------------------------


def test_a_missing_table_is_named(tmp_path, report):
    with pytest.raises(StoreError, match=r"inventory/2016/accounts\.parquet") as caught:
        write_report(Workspace(tmp_path), run=report.run)
    assert caught.value.kind == "report-input"


def test_a_table_of_another_version_is_refused_with_its_columns(tmp_path, report):
    workspace = Workspace(tmp_path)
    buffer = io.BytesIO()
    pd.DataFrame({"ref_id": ["a"], "area_km2": [1.0]}).to_parquet(buffer)
    workspace.put("inventory/2016/accounts.parquet", buffer.getvalue())
    with pytest.raises(StoreError, match=r"lacks .*area_debris_km2"):
        write_report(workspace, run=report.run)


def test_a_damaged_table_is_named(tmp_path, report):
    workspace = Workspace(tmp_path)
    workspace.put("inventory/2016/accounts.parquet", b"PAR1 this is not parquet")
    with pytest.raises(StoreError, match=r"accounts\.parquet .*cannot be read"):
        write_report(workspace, run=report.run)


# --- parts ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """One layer whose every pixel is known, written in two of four shards."""
    workspace = Workspace(tmp_path_factory.mktemp("painted"))
    grid = RegionGrid(46.5, 10.5, 10.0, 64, 32, 0.0, 0.0, 2, 2)
    name = "cube.zarr/2020/optical"
    create_layer(workspace, name, grid)
    values = np.zeros((6, 128, 128), np.uint16)
    rows, cols = np.mgrid[:128, :128]
    values[2] = 1000 + rows * 10 + cols
    for shard in (grid.shard(0, 0), grid.shard(1, 1)):
        write_shard(workspace, name, shard, values[(slice(None), *shard.window)])
    values[:, :64, 64:] = values[:, 64:, :64] = 0
    return workspace, grid, values


@given(step=st.integers(1, 23), row0=st.integers(-9, 60), col0=st.integers(-9, 60))
def test_a_decimated_view_is_the_block_mean_wherever_it_starts(painted, step, row0, col0):
    workspace, grid, values = painted
    height, width = (128 - max(row0, 0)) // step, (128 - max(col0, 0)) // step
    view = rasters.View(grid, row0, col0, (height, width), step)
    padded = np.pad(values[2].astype(float), 32)
    window = padded[32 + row0 :, 32 + col0 :][: height * step, : width * step]
    window[window == 0] = np.nan
    blocks = (window * 1e-4 - 0.1).reshape(height, step, width, step)
    with np.errstate(invalid="ignore"):
        seen = np.isfinite(blocks)
        expected = np.where(seen, blocks, 0).sum((1, 3)) / seen.sum((1, 3))
    found = rasters.optical(workspace, "2020", view, ("red",))[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_memory_of_a_view_is_bounded_by_a_shard_and_not_by_the_region(tmp_path):
    workspace = Workspace(tmp_path)
    grid = RegionGrid(46.5, 10.5, 10.0, 256, 64, 0.0, 0.0, 6, 6)
    name = "cube.zarr/2020/optical"
    create_layer(workspace, name, grid)
    block = np.full((6, 256, 256), 2000, np.uint16)
    for shard in grid.shards():
        write_shard(workspace, name, shard, block)
    view = rasters.View(grid, 0, 0, (128, 128), 12)
    tracemalloc.start()
    rasters.optical(workspace, "2020", view, ("red", "nir", "swir1"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole = 6 * grid.shape[0] * grid.shape[1] * 2
    assert peak < whole / 2


def test_a_missing_array_is_a_view_without_data(painted):
    workspace, grid, _ = painted
    view = rasters.View(grid, 0, 0, (16, 16), 8)
    assert np.isnan(rasters.elevation(workspace, view)).all()
    assert np.isnan(rasters.spread(workspace, "2020", view)).all()


def test_a_damaged_shard_stops_the_report(tmp_path):
    workspace = Workspace(tmp_path)
    grid = RegionGrid(46.5, 10.5, 10.0, 64, 32, 0.0, 0.0, 1, 1)
    name = "cube.zarr/2020/observations"
    create_layer(workspace, name, grid)
    write_shard(workspace, name, grid.shard(0, 0), np.full((64, 64), 3, np.uint8))
    path = workspace.path(f"{name}/c/0/0")
    data = bytearray(path.read_bytes())
    data[10] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        rasters.observations(workspace, "2020", rasters.View(grid, 0, 0, (8, 8), 8))


def test_relief_is_bright_towards_the_north_west_and_dark_away_from_it():
    rows, cols = np.mgrid[:20, :20].astype(np.float32)
    towards, away = (
        rasters.hillshade(10 * (rows + cols), 10),
        rasters.hillshade(-10 * (rows + cols), 10),
    )
    assert towards.mean() > 2 * away.mean()
    assert rasters.hillshade(np.full((5, 5), 7.0, np.float32), 10).std() < 1e-6


def test_the_north_arrow_follows_true_north_away_from_the_central_meridian():
    grid = RegionGrid(70.0, 0.0, 100.0, 64, 32, 600_000.0, 100_000.0, 2, 2)
    x, y = 606_400.0, 93_600.0
    angle = np.degrees(maps.true_north(grid, x, y))
    assert 60 < angle < 80 or 100 < angle < 120
    assert np.degrees(maps.true_north(grid, 0.0, y)) == pytest.approx(90, abs=1e-6)


@pytest.mark.parametrize(
    ("value", "sigma", "text"),
    [
        (-12.345, 1.234, "−12.3 ± 1.2"),
        (1234.5, 87.0, "1,234 ± 87"),
        (0.01234, 0.00056, "0.0123 ± 0.0006"),
        (5.0, float("nan"), "5.000 (interval not available)"),
        (float("nan"), 1.0, "not available"),
    ],
)
def test_a_value_is_rounded_to_two_digits_of_its_uncertainty(value, sigma, text):
    assert words.with_sigma(value, sigma) == text


def test_a_value_that_rounds_to_zero_has_no_sign():
    assert words.signed(-0.001) == "0.00"
    assert words.signed(-0.01) == "−0.01"


def test_size_classes_are_closed_below():
    areas = np.array([0.005, 0.0999, 0.1, 1.0, 49.9, 50.0, 100.0])
    assert size_class(areas).tolist() == [0, 0, 1, 3, 5, 6, 7]
