"""Whether the look ranked first is the one to map by: against a known truth, and on real scenes."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from pyproj import Transformer
from rasters import write_tif
from scipy import ndimage

from catalog.assets import AssetPolicy
from catalog.candidates import rank_looks
from catalog.composites import build_cube_shard, create_season
from catalog.cube import DATE_MISSING, Workspace, read_shard
from catalog.glaciers import read_reference
from catalog.grid import RegionGrid, region_grid
from catalog.sensors import describe_item
from catalog.simulation import RegionSpec, SeasonSpec, SimulatedRegion, simulate_region
from catalog.simulation.ground import Ground, cover_ground
from catalog.simulation.ice import IceState, divide_glaciers, grow_ice
from catalog.simulation.light import make_clouds, snow_cover, sun_position
from catalog.simulation.places import frame_of
from catalog.simulation.scene import plan_acquisitions
from catalog.simulation.terrain import make_bed

import rasterio  # isort: skip
from rasterio.features import rasterize  # isort: skip
from rasterio.merge import merge  # isort: skip

ROOT = Path(__file__).parents[1]
BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", ROOT.parent / "shared" / "data"))
KHUMBU = DATA / "khumbu"
SNOWY_THEN_CLOUDY = ((1.0, 0.0), (0.9, 0.0), (0.1, 0.06), (0.1, 0.6), (0.1, 0.85))
PLACES = (("plain", -31.2, 46.6), ("plain", -45.1, 31.0), ("plain", -2.0, 71.0))
NEAR = 0.01
# ^ of what must be seen: looks that differ by less are as good as one another
MARGIN_M = 300.0
# ^ how far from its outline of some years ago the ice or what it left must be seen


def spec_of(number: int) -> RegionSpec:
    style, lon, lat = PLACES[number]
    return RegionSpec(
        name=f"CHOICE{number}",
        seed=500 + number,
        style=style,
        lon=lon,
        lat=lat,
        size_km=8.0,
        seasons=(
            SeasonSpec("2024", 2024, scenes=len(SNOWY_THEN_CLOUDY), course=SNOWY_THEN_CLOUDY),
        ),
        sar=False,
        dem=False,
    )


def ground_of(spec: RegionSpec) -> Ground:
    bed = make_bed(spec)
    (state,) = grow_ice(spec, bed)
    _, kept = divide_glaciers(spec, bed, state.ice)
    surface = np.where(state.ice & ~kept, bed, state.surface).astype(np.float32)
    ice = IceState(state.ice & kept, state.debris & kept, surface, state.ela)
    return cover_ground(spec, bed, ice, first=ice)


def seen_by(region: SimulatedRegion, day: str, shape: tuple[int, int]) -> np.ndarray:
    """Where the day's granules have pixels."""
    items = json.loads(region.items.read_text())["features"]
    paths = [
        item["assets"]["green"]["href"]
        for item in items
        if item["properties"]["datetime"].startswith(day)
    ]
    pixels, _ = merge(paths)
    assert pixels.shape[1:] == shape
    return pixels[0] > 0


def truth_of(
    spec: RegionSpec, region: SimulatedRegion, glaciers: gpd.GeoDataFrame, mapped: np.ndarray
) -> pd.DataFrame:
    """Share of what must be seen to map each glacier that each look shows, glacier x day.

    That is the glacier, where neither cloud nor its shadow lies on it, and the ground within 300 m
    of it, where no seasonal snow does either; all from the fields the scenes were made of. The last
    column is what a composite shows of it that took each pixel from the day in ``mapped``.
    """
    frame, ground = frame_of(spec), ground_of(spec)
    shape = ground.ela.shape
    clear, bare = {}, {}
    for plan in plan_acquisitions(spec, spec.seasons[0]):
        day = plan.when.strftime("%Y-%m-%d")
        azimuth, elevation = sun_position(plan.when, lon=spec.lon, lat=spec.lat)
        snow = snow_cover(spec, ground, name=plan.name, snowiness=plan.snowiness)
        clouds = make_clouds(
            spec,
            shape,
            name=plan.name,
            cover=plan.cloud,
            azimuth_deg=azimuth - frame.convergence_deg,
            elevation_deg=elevation,
        )
        clear[day] = (clouds.cloud < 0.15) & (clouds.shade < 0.5) & seen_by(region, day, shape)
        # ^ a cloud of this opacity is one in the simulator's own count of cloud
        bare[day] = clear[day] & (snow < 0.5)
    outlines = list(glaciers.geometry.to_crs(frame.epsg))

    def burn(shapes: list[shapely.Geometry]) -> np.ndarray:
        return rasterize(shapes, out_shape=shape, transform=frame.transform).astype(bool)

    ice = burn(outlines)
    rows = {}
    for ref_id, outline in zip(glaciers["ref_id"], outlines, strict=True):
        inside = burn([outline])
        beside = (ndimage.distance_transform_edt(~inside) * 10 <= MARGIN_M) & ~ice
        wanted = np.count_nonzero(inside | beside)
        shown = {day: (clear[day] & inside) | (bare[day] & beside) for day in clear}
        rows[ref_id] = {day: np.count_nonzero(right) / wanted for day, right in shown.items()}
        taken = [right & (mapped == number_of(day)) for day, right in shown.items()]
        rows[ref_id]["composite"] = np.count_nonzero(np.any(taken, axis=0)) / wanted
    return pd.DataFrame(rows).T


def number_of(day: str) -> int:
    return int(np.datetime64(day, "D").astype(int))


def least_snow_days(
    spec: RegionSpec, region: SimulatedRegion, grid: RegionGrid, items: list[dict]
) -> np.ndarray:
    """From which day the composite took each pixel, on the pixels of the truth."""
    workspace = Workspace(region.out / "work")
    create_season(workspace, "2024", grid, sar=False)
    days = np.full(grid.shape, DATE_MISSING, np.int32)
    for shard in grid.shards():
        build_cube_shard(
            workspace,
            "2024",
            shard,
            optical=[describe_item(item) for item in items],
            sar=None,
            policy=AssetPolicy((str(region.out),)),
            strategy="least_snow",
        )
        days[shard.window] = read_shard(workspace, "cube.zarr/2024/date", shard)
    frame = frame_of(spec)
    row, col = np.indices(ground_of(spec).ela.shape)
    x, y = frame.transform @ (col + 0.5, row + 0.5)
    to_grid = Transformer.from_crs(frame.epsg, grid.proj4, always_xy=True)
    col, row = ~grid.transform @ to_grid.transform(x, y)
    row, col = (
        np.clip(np.floor(v).astype(int), 0, n - 1)
        for v, n in zip((row, col), grid.shape, strict=True)
    )
    return days[row, col]


def grid_over(glaciers: gpd.GeoDataFrame, resolution_m: float) -> RegionGrid:
    lon, lat = shapely.get_coordinates(glaciers.geometry.to_numpy()).T
    return region_grid(lon, lat, resolution_m=resolution_m, shard_px=512, chunk_px=256)


def rank_scenes(
    folder: Path, glaciers: gpd.GeoDataFrame, items: list[dict], resolution_m: float
) -> pd.DataFrame:
    return rank_looks(
        glaciers,
        others=glaciers,
        grid=grid_over(glaciers, resolution_m),
        scenes=[describe_item(item) for item in items],
        policy=AssetPolicy((str(folder),)),
    ).frame


@pytest.mark.slow
def test_what_is_chosen_of_a_season_that_is_snowy_first_and_cloudy_later_is_what_is_best(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    lost, gained, days = [], [], set()
    for number in range(len(PLACES)):
        spec = spec_of(number)
        region = simulate_region(spec, tmp_path / spec.name)
        glaciers = read_reference(region.reference).frame
        items = json.loads(region.items.read_text())["features"]
        frame = rank_scenes(region.out, glaciers, items, 10)
        first = frame[frame["rank"] == 1].set_index("ref_id")["day"]
        mapped = least_snow_days(spec, region, grid_over(glaciers, 10), items)
        truth = truth_of(spec, region, glaciers, mapped)
        looks = truth.drop(columns="composite")
        lost += [looks.loc[i].max() - looks.loc[i, day] for i, day in first.items()]
        gained += list(truth["composite"] - looks.max(axis=1))
        days |= {(number, looks.columns.get_loc(day)) for day in looks.idxmax(axis=1)}
    off, over = np.array(lost), np.array(gained)
    record_property(
        "scene choice",
        f"of {len(off)} glaciers the look ranked first is the best for {np.mean(off == 0):.1%}, "
        f"within {NEAR:.0%} of it for {np.mean(off <= NEAR):.1%}, and loses at most {off.max():.1%}"
        f"; least_snow shows as much as the best look, within {NEAR:.0%}, of "
        f"{np.mean(over >= -NEAR):.1%}, and {over.mean():+.1%} on average",
    )
    assert len({index for _, index in days}) >= 2  # the best look is not the same everywhere
    assert np.mean(over >= -NEAR) >= 0.95
    assert np.mean(off <= 5 * NEAR) >= 0.95
    assert off.mean() < 0.01


DAYS = {
    "winter": "2024-01-15",
    "spring": "2024-04-15",
    "summer": "2024-07-15",
    "autumn": "2024-10-15",
}
# ^ the files say only the season; the days are its middle


def khumbu_item(folder: Path, season: str) -> dict:
    """One scene as a catalogue would deliver it: one file a band, the sun's height, no mask."""
    with rasterio.open(KHUMBU / f"s2_{season}_2024.tif") as source:
        reflectance, frame, bounds = source.read(), source.transform, source.bounds
    when = dt.datetime.fromisoformat(f"{DAYS[season]}T04:57:11+00:00")
    _, elevation = sun_position(when, lon=bounds.left, lat=bounds.bottom)
    assets = {}
    for key, band in zip(BANDS, reflectance, strict=True):
        pixels = np.clip(np.rint(band * 10000) + 1000, 1, 65535).astype(np.uint16)
        path = write_tif(folder / season / f"{key}.tif", pixels, frame, crs="EPSG:4326", nodata=0)
        assets[key] = {
            "href": str(path),
            "proj:shape": list(pixels.shape),
            "proj:transform": list(frame)[:6],
            "raster:bands": [{"nodata": 0, "scale": 0.0001, "offset": -0.1}],
        }
    return {
        "id": f"S2A_{season}",
        "collection": "sentinel-2-l2a",
        "bbox": list(bounds),
        "properties": {
            "datetime": when.isoformat(),
            "proj:epsg": 4326,
            "s2:processing_baseline": "05.10",
            "earthsearch:boa_offset_applied": False,
            "view:sun_elevation": elevation,
        },
        "assets": assets,
    }


@pytest.mark.real_data
@pytest.mark.skipif(not KHUMBU.is_dir(), reason=f"no real data in {DATA}")
def test_of_four_real_seasons_of_khumbu_the_summer_is_ranked_first(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    glaciers = read_reference(KHUMBU / "outlines_rgi60.gpkg").frame
    items = [khumbu_item(tmp_path, season) for season in DAYS]
    frame = rank_scenes(tmp_path, glaciers, items, 20)
    area = glaciers.set_index("ref_id").to_crs(grid_over(glaciers, 20).proj4).area
    share = frame["ref_id"].map(area / area.sum())
    whole = (frame["score"] * share).groupby(frame["scene_ids"].str[0]).sum()
    first = frame[frame["rank"] == 1]["scene_ids"].str[0]
    record_property(
        "Khumbu scene choice",
        ", ".join(f"{name[4:]} {score:.3f}" for name, score in whole.items())
        + f"; the summer is first for {(first == 'S2A_summer').sum()} of {len(glaciers)} glaciers",
    )
    assert len(frame) == 4 * len(glaciers)
    assert whole.idxmax() == "S2A_summer"
    assert (first == "S2A_summer").mean() > 0.5
