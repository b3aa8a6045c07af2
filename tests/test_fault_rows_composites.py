"""Rows C1 to C4 of the fault matrix: cloud, snow, too few or too many scenes, any order."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import Small
from rasters import optical_item, small_grid
from test_composites import CLOUD, VEGETATION, compose, day, middle, textured_season

from catalog.assets import AssetPolicy
from catalog.composites import build_cube_shard, create_season
from catalog.cube import DATE_MISSING, Workspace
from catalog.scenes import Scene
from catalog.sensors import describe_item
from catalog.simulation import RegionSpec, SeasonSpec, simulate_region
from inventory_engine.pipeline import run_pipeline
from inventory_engine.plan import open_region
from inventory_engine.scenes import rank_region
from inventory_engine.scoring import score_season
from inventory_engine.settings_file import load_settings

STRATEGIES = ["least_snow", "median", "medoid"]
FULL = pytest.mark.chaos


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("scenes", [1, 3])
def test_c1_under_cloud_nothing_is_observed(tmp_path: Path, strategy: str, scenes: int) -> None:
    items = [
        optical_item(tmp_path, f"S2A_{i}", when=day(i + 1), paint=0.6, classes=CLOUD)
        for i in range(scenes)
    ]
    layers, outcome = compose(tmp_path, items, strategy=strategy)
    assert (layers["optical"] == 0).all() and (layers["observations"] == 0).all()
    assert (layers["date"] == DATE_MISSING).all() and (layers["span"] == 65535).all()
    assert outcome.facts["valid_fraction"] == 0 and outcome.facts["scene_ids"]


def cloud_over(small: Small, season: str, folder: Path) -> Path:
    """Copy of the small region whose scenes of one season lie under cloud from end to end."""
    shutil.copytree(small.region.out, folder)
    text = (folder / "items.json").read_text().replace(str(small.region.out), str(folder))
    (folder / "items.json").write_text(text)
    for item in json.loads(text)["features"]:
        if item["collection"] == "sentinel-2-l2a" and item["properties"]["datetime"][:4] == season:
            with rasterio.open(item["assets"]["scl"]["href"]) as source:
                profile, classes = source.profile, source.read(1)
            profile |= {"driver": "GTiff"}
            with rasterio.open(item["assets"]["scl"]["href"], "w", **profile) as out:
                out.write(np.where(classes > 0, 9, 0).astype(np.uint8), 1)
    return folder / "items.json"


def test_c1_no_glacier_shrinks_or_vanishes_in_a_season_under_cloud(
    small: Small, tmp_path: Path
) -> None:
    items = cloud_over(small, "2024", tmp_path / "region")
    path = small.settings(tmp_path)
    path.write_text(
        path.read_text()
        .replace(str(small.region.items), str(items))
        .replace(str(small.region.out), str(tmp_path / "region"))
    )
    assert not run_pipeline(load_settings(path)).failed
    accounts = pd.read_parquet(tmp_path / "work" / "inventory" / "2024" / "accounts.parquet")
    assert len(accounts) and (accounts["obs_fraction"] == 0).all()
    assert (accounts["area_km2"] == accounts["area_reference_km2"]).all()
    assert accounts["flags"].map(lambda flags: "low-observation" in list(flags)).all()
    change = pd.read_parquet(tmp_path / "work" / "change" / "2018_2024" / "glaciers.parquet")
    assert not change["event"].astype(str).str.contains("vanished|below").any()


@pytest.mark.slow
def test_c2_a_season_under_fresh_snow_is_scored_and_told_and_nothing_breaks(
    small: Small, tmp_path: Path
) -> None:
    spec = RegionSpec(
        name="SNOWY",
        seed=11,
        style="alpine",
        lon=-29.43,
        lat=46.55,
        size_km=4.0,
        sar=False,
        seasons=(
            SeasonSpec("2018", 2018, 0.0, 2, course=((0.05, 0.0), (0.05, 0.0))),
            SeasonSpec("2024", 2024, 80.0, 2, course=((1.0, 0.0), (1.0, 0.5))),
        ),
    )
    made = simulate_region(spec, tmp_path / "region")
    catalog = {
        "url": str(made.items),
        "collections": {"optical": ["sentinel-2-l2a"], "dem": ["cop-dem-glo-30"]},
    }
    path = small.settings(tmp_path, catalog=catalog, outlines=str(made.reference))
    wanted = load_settings(path)
    assert not run_pipeline(wanted).failed
    region = open_region(wanted)
    scores = {
        label: score_season(region.workspace, label, region.shards, classes=made.classes[label])
        for label in ("2018", "2024")
    }
    assert all(0 <= score.band_ratio_iou <= 1 and score.pixels > 0 for score in scores.values())
    assert scores["2024"].ratio_ious[5] < scores["2018"].ratio_ious[5]
    from inventory_engine.plan import search_scenes

    scenes = search_scenes(region).optical
    snow = {
        label: rank_region(region, scenes[label]).frame["snow_around"].mean() for label in scenes
    }
    assert snow["2024"] > snow["2018"]


@pytest.mark.parametrize("count", [0, 1, 40])
def test_c3_any_number_of_scenes_goes_the_same_way(tmp_path: Path, count: int) -> None:
    items = textured_season(tmp_path, n=min(count, 4))
    scenes = many(items, count)
    outcome = build(tmp_path / "work", scenes, tmp_path)
    assert outcome.facts["looks"] == count
    assert (outcome.facts["valid_fraction"] > 0) == (count > 0)


def many(items: list[dict], count: int) -> list[Scene]:
    """As many scenes as are asked for, of the pixels of a few, one a day."""
    scenes = [describe_item(item) for item in items]
    days = [str(np.datetime64("2024-01-01") + n) for n in range(count)]
    return [
        replace(scenes[n % len(scenes)], id=f"S{n:03d}", datetime=f"{day}T10:00:00Z")
        for n, day in enumerate(days)
    ]


def build(work: Path, scenes: list[Scene], allowed: Path, *, shard_px: int = 128):
    grid = small_grid(shard_px=shard_px, chunk_px=shard_px // 2)
    workspace = Workspace(work)
    create_season(workspace, "2024", grid, sar=False)
    return build_cube_shard(
        workspace,
        "2024",
        middle(grid),
        optical=scenes,
        sar=None,
        policy=AssetPolicy((str(allowed),)),
    )


@FULL
@pytest.mark.parametrize("count", [1, 400])
def test_c3_four_hundred_scenes_fit_into_memory(tmp_path: Path, count: int) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from test_fault_rows_composites import build, many, peak_gib\n"
        "from test_composites import textured_season\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"build(folder / 'work', many(textured_season(folder), {count}), folder, shard_px=2048)\n"
        "print(peak_gib())\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=1800, check=True
    )
    assert float(found.stdout.split()[-1]) < 1.5


def peak_gib() -> float:
    """Most memory of this process, GiB; ``ru_maxrss`` holds that of its parent too."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("shuffles", [3, pytest.param(50, marks=FULL)])
def test_c4_the_order_of_scenes_changes_no_byte(
    tmp_path: Path, strategy: str, shuffles: int
) -> None:
    items = textured_season(tmp_path, n=5)
    items.append(
        optical_item(tmp_path, "S2B_4", when=day(5), paint=0.31, classes=VEGETATION)
    )  # of the same day as another
    _, first = compose(tmp_path, items, strategy=strategy)
    for seed in range(shuffles):
        random.Random(seed).shuffle(items)
        _, again = compose(tmp_path, items, name=f"w{seed}", strategy=strategy)
        assert again.outputs == first.outputs and again.facts == first.facts
