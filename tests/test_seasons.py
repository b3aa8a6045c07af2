"""Seasons of different sensors, pixels and composites in one store."""

from __future__ import annotations

import json
import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import xarray
import yaml
from ensembles import write_ensemble

from catalog.cube import OPTICAL_SCALE, Workspace, read_shard
from catalog.errors import UsageError
from catalog.grid import region_grid
from catalog.simulation import RegionSpec, SeasonSpec, SimulatedRegion, simulate_region
from inventory_engine.pipeline import run_pipeline
from inventory_engine.plan import open_region, search_scenes
from inventory_engine.settings_file import load_settings
from inventory_engine.verify import verify

MIXED = RegionSpec(
    name="MIXED",
    seed=12,
    style="alpine",
    lon=-29.43,
    lat=46.55,
    size_km=4.0,
    seasons=(
        SeasonSpec("2014", 2014, 0.0, 3, 0.05, 0.1, sensor="landsat-8"),
        SeasonSpec("2024", 2024, 60.0, 3, 0.05, 0.1),
    ),
)


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> SimulatedRegion:
    return simulate_region(MIXED, tmp_path_factory.mktemp("mixed") / "region")


def settings_file(region: SimulatedRegion, folder: Path, **seasons: dict) -> Path:
    landsat = {
        "start": "2014-07-01",
        "end": "2014-10-15",
        "optical": ["landsat-c2-l2"],
        "sar": [],
        "resolution_m": 30,
        "composite": "median",
    }
    values = {
        "name": "mixed",
        "outlines": str(region.reference),
        "catalog": {
            "url": str(region.items),
            "collections": {
                "optical": ["sentinel-2-l2a"],
                "sar": ["sentinel-1-rtc"],
                "dem": ["cop-dem-glo-30"],
            },
        },
        "seasons": {
            "2014": landsat | seasons.get("landsat", {}),
            "2024": {"start": "2024-07-01", "end": "2024-10-15"} | seasons.get("sentinel", {}),
        },
        "grid": {"resolution_m": 15, "margin_m": 100, "shard_px": 128, "chunk_px": 64},
        "model": {"ensemble": str(write_ensemble(folder / "ensemble", folds=3, seeds=1))},
        "workspace": "work",
        "compute": {"dask": {"address": "serial"}, "ray": {"address": "serial"}},
    }
    path = folder / "region.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def mapped(region: SimulatedRegion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mapped")
    summary = run_pipeline(load_settings(settings_file(region, folder)))
    assert not summary.failed
    return folder


def test_both_sensors_lie_in_one_store_each_with_its_own_pixels(mapped: Path) -> None:
    fine, coarse = (
        xarray.open_zarr(mapped / "work" / "cube.zarr", group=label, consolidated=False)
        for label in ("2024", "2014")
    )
    assert fine.sizes["x"] == 2 * coarse.sizes["x"]
    assert "sar" in fine and "sar" not in coarse
    edge = {
        name: float(ds.x[0]) - abs(float(ds.x[1] - ds.x[0])) / 2
        for name, ds in {"fine": fine, "coarse": coarse}.items()
    }
    assert edge["fine"] == edge["coarse"]


def test_landsat_and_sentinel_2_show_the_same_rock_alike(mapped: Path) -> None:
    """Stable ground: dark rock that neither sensor's season covers with snow."""
    opened = open_region(load_settings(mapped / "region.yaml"))
    differences = []
    for fine, coarse in zip(opened.shards_of("2024"), opened.shards_of("2014"), strict=True):
        new = read_shard(opened.workspace, "cube.zarr/2024/optical", fine).astype(float)
        old = read_shard(opened.workspace, "cube.zarr/2014/optical", coarse).astype(float)
        new[new == 0] = np.nan
        old[old == 0] = np.nan
        blocks = new.reshape(6, 64, 2, 64, 2).mean(axis=(2, 4))
        dark = (blocks[1] < 3000) & (old[1] < 3000)
        differences.append((blocks - old)[:, dark] * OPTICAL_SCALE)
    median = np.nanmedian(np.concatenate(differences, axis=1), axis=1)
    assert np.abs(median).max() < 0.02, median


def test_areas_agree_where_the_pixels_do_not(mapped: Path) -> None:
    """Reference outlines counted in pixels of either size give the same area."""
    accounts = {
        label: pd.read_parquet(mapped / "work" / "inventory" / label / "accounts.parquet")
        for label in ("2014", "2024")
    }
    old, new = (accounts[label]["area_reference_km2"].sum() for label in ("2014", "2024"))
    assert old == pytest.approx(new, rel=0.01)
    assert (mapped / "work" / "change" / "2014_2024" / "glaciers.parquet").exists()


def test_outlines_of_the_coarse_season_lie_where_those_of_the_fine_one_do(mapped: Path) -> None:
    bounds = [
        gpd.read_parquet(mapped / "work" / "inventory" / label / "outlines.parquet").total_bounds
        for label in ("2014", "2024")
    ]
    assert np.abs(bounds[0] - bounds[1]).max() < 0.02


def test_every_glacier_tells_the_looks_it_was_mapped_from(mapped: Path) -> None:
    for label in ("2014", "2024"):
        accounts = pd.read_parquet(mapped / "work" / "inventory" / label / "accounts.parquet")
        for row in accounts[accounts["obs_fraction"] > 0].itertuples():
            assert sum(row.look_shares) == pytest.approx(1, abs=1e-4)
            assert list(row.look_shares) == sorted(row.look_shares, reverse=True)
            assert all(day.startswith(label) for day in row.look_days)
    html = (mapped / "work" / "report" / "index.html").read_text()
    assert "median, pixels of 30 m" in html
    assert re.search(r"\d+% 2014-\d\d-\d\d: LC08_L2SP_", html)
    assert re.search(r"\d+% 2024-\d\d-\d\d: S2[AB]_", html)
    assert not re.search(r"\d+% 20\d\d-\d\d-\d\d: unknown", html)
    assert "the looks each glacier was mapped from" in html


def test_every_array_of_either_pixel_size_is_verified(mapped: Path) -> None:
    assert verify(load_settings(mapped / "region.yaml")).findings == []


def test_a_second_run_finds_nothing_to_do(mapped: Path) -> None:
    summary = run_pipeline(load_settings(mapped / "region.yaml"))
    assert summary.done == 0 and not summary.failed


def test_one_season_may_mix_both_sensors(region: SimulatedRegion, tmp_path: Path) -> None:
    both = {"optical": ["sentinel-2-l2a", "landsat-c2-l2"], "start": "2014-07-01"}
    wanted = load_settings(settings_file(region, tmp_path, sentinel=both))
    found = search_scenes(open_region(wanted)).optical["2024"]
    assert {scene.sensor for scene in found} == {"sentinel-2-msi", "landsat-oli"}


def test_a_season_cannot_change_its_pixels_or_lose_its_radar(
    region: SimulatedRegion, mapped: Path
) -> None:
    path = mapped / "region.yaml"
    kept = path.read_text()
    try:
        for season, change, words in (
            ("2014", {"resolution_m": 15}, "pixels there"),
            ("2024", {"sar": []}, "radar there and none here"),
        ):
            values = yaml.safe_load(kept)
            values["seasons"][season] |= change
            path.write_text(yaml.safe_dump(values, sort_keys=False))
            with pytest.raises(UsageError, match=words):
                run_pipeline(load_settings(path))
    finally:
        path.write_text(kept)


@pytest.mark.parametrize(
    ("season", "words"),
    [
        ({"resolution_m": 20}, "whole multiple"),
        ({"resolution_m": 45}, "with chunk_px 63 and shard_px 126 they are"),
        ({"optical": []}, "seasons.2014.optical"),
        ({"composite": "best"}, "seasons.2014.composite"),
    ],
)
def test_a_season_that_cannot_be_laid_out_is_refused_with_what_would_do(
    region: SimulatedRegion, tmp_path: Path, season: dict, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        load_settings(settings_file(region, tmp_path, landsat=season))


def test_coarser_pixels_fill_the_same_shards() -> None:
    grid = region_grid([7.0, 7.1], [46.0, 46.1], shard_px=96, chunk_px=48)
    coarse = grid.coarsened(3)
    assert coarse.geobox.extent == grid.geobox.extent
    assert [s.bounds for s in coarse.shards()] == [s.bounds for s in grid.shards()]
    assert coarse.resolution_m == 30
    assert grid.coarsened(1) is grid
    with pytest.raises(UsageError, match="cannot be cut"):
        grid.coarsened(5)
    with pytest.raises(UsageError, match="finest grid"):
        coarse.coarsened(2)


def test_the_store_tells_what_a_workspace_was_made_with(mapped: Path) -> None:
    region = json.loads(Workspace(mapped / "work").get("region.json") or b"{}")
    assert region["grid"]["multiple"] == 1
