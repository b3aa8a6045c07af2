"""Real imagery end to end: four Sentinel-2 scenes of Khumbu, served and mapped like any region."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import COMMAND
from rasters import write_items, write_tif
from servers import stac_server

from inventory_engine.plan import open_region
from inventory_engine.scoring import score_season
from inventory_engine.settings_file import load_settings
from model_serving.ensemble import CARD
from model_serving.metrics import RATIO_THRESHOLDS

import rasterio  # isort: skip
from rasterio.features import rasterize  # isort: skip

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", ROOT.parent / "shared" / "data"))
KHUMBU = DATA / "khumbu"
DEFAULT = ROOT / "model_serving" / "weights" / "default" / CARD
BANDS = ("blue", "green", "red", "nir", "swir16", "swir22")
DATES = {
    "winter": "2024-01-15",
    "spring": "2024-04-15",
    "summer": "2024-07-15",
    "autumn": "2024-10-15",
}
# ^ the files say only the season; the days are its middle
USUAL_RATIO = 2.8

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not KHUMBU.is_dir(), reason=f"no real data in {DATA}"),
    pytest.mark.skipif(not DEFAULT.exists(), reason="the default ensemble is not trained yet"),
]


def wrap_scene(folder: Path, season: str) -> dict:
    """Store one scene as Earth Search delivers it: uint16, one file a band, offset -0.1."""
    with rasterio.open(KHUMBU / f"s2_{season}_2024.tif") as source:
        reflectance, frame, bounds = source.read(), source.transform, source.bounds
    name = f"S2A_45RVL_{DATES[season].replace('-', '')}_0_L2A"
    assets = {}
    for key, band in zip(BANDS, reflectance, strict=True):
        pixels = np.clip(np.rint(band * 10000) + 1000, 1, 65535).astype(np.uint16)
        path = write_tif(folder / name / f"{key}.tif", pixels, frame, crs="EPSG:4326", nodata=0)
        assets[key] = {
            "href": str(path),
            "type": "image/tiff; application=geotiff; profile=cloud-optimized",
            "proj:shape": list(pixels.shape),
            "proj:transform": list(frame)[:6],
            "raster:bands": [{"nodata": 0, "data_type": "uint16", "scale": 0.0001, "offset": -0.1}],
        }
    west, south, east, north = bounds
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": list(bounds),
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {
            "datetime": f"{DATES[season]}T04:57:11Z",
            "proj:epsg": 4326,
            "eo:cloud_cover": 5.0,
            "s2:processing_baseline": "05.10",
            "earthsearch:boa_offset_applied": False,
        },
        "assets": assets,
        "links": [],
    }


@pytest.fixture(scope="module")
def khumbu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run over the real scenes; the engine's own ensemble, no elevation."""
    folder = tmp_path_factory.mktemp("khumbu")
    items = write_items(folder / "items.json", [wrap_scene(folder, s) for s in DATES])
    with stac_server(items) as url:
        values = {
            "name": "khumbu",
            "outlines": str(KHUMBU / "outlines_rgi60.gpkg"),
            "catalog": {
                "url": url,
                "collections": {"optical": ["sentinel-2-l2a"]},
                "allowed": [str(folder)],
            },
            "seasons": {
                season: {
                    "start": str(np.datetime64(day) - 20),
                    "end": str(np.datetime64(day) + 20),
                }
                for season, day in DATES.items()
            },
            "grid": {"resolution_m": 25, "margin_m": 0, "shard_px": 512, "chunk_px": 256},
            "workspace": "work",
            "compute": {"dask": {"address": "serial"}, "ray": {"address": "serial"}},
        }
        (folder / "region.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        result = subprocess.run(
            [*COMMAND, "run", str(folder / "region.yaml")],
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_every_season_of_real_scenes_becomes_an_inventory_with_the_rgi_divides(khumbu: Path):
    reference = set(gpd.read_file(KHUMBU / "outlines_rgi60.gpkg")["RGIId"])
    for season in DATES:
        outlines = gpd.read_parquet(khumbu / "work" / "inventory" / season / "outlines.parquet")
        accounts = pd.read_parquet(khumbu / "work" / "inventory" / season / "accounts.parquet")
        assert set(accounts["ref_id"]) == reference
        assert outlines.geometry.is_valid.all()
        assert set(outlines["ref_id"]) <= reference
        # The outlines reach beyond the frame: what was not seen is told, not taken for rock.
        assert accounts["obs_fraction"].between(0, 1).all()
        assert accounts["obs_fraction"].min() < 0.9
        assert accounts["area_km2"].sum() > 1


def test_the_report_names_the_scenes_that_have_no_cloud_mask_and_the_inputs(khumbu: Path):
    text = (khumbu / "work" / "report" / "index.html").read_text(encoding="utf-8")
    assert f"{len(DATES)} scenes have no cloud mask" in text
    for season in DATES:
        accounts = pd.read_parquet(khumbu / "work" / "inventory" / season / "accounts.parquet")
        told = np.where(accounts["obs_fraction"] > 0, "optical", "none")
        assert (accounts["inputs"] == told).all()


def test_seasons_of_one_year_report_no_change_and_say_why(khumbu: Path):
    folder = khumbu / "work" / "change"
    assert json.loads((folder / "trend" / "summary.json").read_text())["glaciers_with_trend"] == 0
    folders = sorted(p for p in folder.iterdir() if p.name != "trend")
    assert len(folders) == 4
    for folder in folders:
        table = pd.read_parquet(folder / "glaciers.parquet")
        assert table["area_change_km2"].isna().all()
        assert table["flags"].str.contains("short-interval").all()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["area_change_km2"] is None
        assert summary["glaciers_compared"] == 0


def snow_beside_the_glaciers(season: str) -> float:
    """Fraction of the ground outside of all outlines that is snow (NDSI > 0.4)."""
    with rasterio.open(KHUMBU / f"s2_{season}_2024.tif") as source:
        green, swir = source.read(2), source.read(5)
        ice = glacier_mask(source.transform, green.shape)
    return float((((green - swir) / (green + swir + 1e-6)) > 0.4)[ice == 0].mean())


def glacier_mask(transform: object, shape: tuple[int, int]) -> np.ndarray:
    outlines = gpd.read_file(KHUMBU / "outlines_rgi60.gpkg")
    return rasterize(outlines.geometry, out_shape=shape, transform=transform, dtype="uint8")


def test_the_ensemble_is_measured_beside_band_ratios_on_the_same_real_pixels(
    khumbu: Path, tmp_path: Path, record_property: Callable[[str, object], None]
):
    season = min(DATES, key=snow_beside_the_glaciers)
    with rasterio.open(KHUMBU / f"s2_{season}_2024.tif") as source:
        mask = glacier_mask(source.transform, source.shape)
        classes = write_tif(tmp_path / "classes.tif", mask, source.transform, crs="EPSG:4326")
    region = open_region(load_settings(without_server(khumbu)))
    score = score_season(region.workspace, season, region.shards, classes=classes)
    usual = score.ratio_ious[RATIO_THRESHOLDS.index(USUAL_RATIO)]
    record_property(
        "Khumbu",
        f"{season}, {score.pixels} pixels: IoU ensemble {score.iou:.3f} | "
        f"Red/SWIR > {USUAL_RATIO} {usual:.3f} | "
        f"Red/SWIR > {score.band_ratio} (tuned on this scene) {score.band_ratio_iou:.3f}",
    )
    assert score.pixels > 50_000
    assert 0 < score.iou < 1
    assert 0 < usual <= score.band_ratio_iou


def without_server(folder: Path) -> Path:
    """Settings of the finished run with the static catalogue in place of the server."""
    values = yaml.safe_load((folder / "region.yaml").read_text())
    values["catalog"]["url"] = str(folder / "items.json")
    path = folder / "static.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
