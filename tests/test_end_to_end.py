"""From a STAC server to a report, on a made-up region whose truth is known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
import psutil
import pytest
import xarray as xr
from conftest import SMALL, Small
from rich.table import Table

from catalog.cube import Workspace
from inventory_engine.demo import run_demo, serve_items
from inventory_engine.pipeline import Silent, run_pipeline
from inventory_engine.plan import open_region
from inventory_engine.receipts import Ledger
from inventory_engine.scoring import score_season
from inventory_engine.settings_file import load_settings
from inventory_engine.stages import STAGES as ALL_STAGES
from inventory_engine.validation import validate_files

pytestmark = pytest.mark.slow

STAGES = {stage.name for stage in ALL_STAGES} - {"layers", "scenes", "trend"}
# ^ nobody asks for layers, or for the best scene of each glacier; two seasons have no trend


@pytest.fixture(scope="module")
def mapped(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workspace of a run against a real STAC server."""
    folder = tmp_path_factory.mktemp("mapped")
    with serve_items(small.region.items) as url:
        summary = run_pipeline(load_settings(small.settings(folder, url)))
    assert not summary.failed
    return folder


def test_every_stage_leaves_receipts_whose_outputs_are_intact(mapped: Path):
    region = open_region(load_settings(static(mapped)))
    ledger = Ledger(Workspace(mapped / "work"), region.grid)
    receipts = list(ledger.read_all())
    assert {r.stage for r in receipts} == STAGES
    assert all(ledger.intact(r) for r in receipts)
    assert all(r.failed is None for r in receipts)


def static(folder: Path) -> Path:
    """Settings without the server, which has ended."""
    path = folder / "static.yaml"
    text = (folder / "region.yaml").read_text()
    (folder / "items.json").write_text('{"type": "FeatureCollection", "features": []}')
    lines = [
        "  url: items.json" if line.startswith("  url: ") else line for line in text.splitlines()
    ]
    path.write_text("\n".join(lines))
    return path


def test_the_cube_opens_in_xarray_with_coordinates_and_physical_values(mapped: Path):
    folder = mapped / "work" / "cube.zarr" / "2024"
    cube = xr.open_zarr(folder, consolidated=False, drop_variables=["sar"])
    assert {"x", "y"} <= set(cube.coords)
    values = cube["optical"].values
    assert 0 < np.nanmedian(values) < 1


def test_a_season_with_radar_opens_in_xarray_as_one_dataset(mapped: Path):
    cube = xr.open_zarr(mapped / "work" / "cube.zarr" / "2024", consolidated=False)
    assert {"optical", "sar"} <= set(cube)


def test_outlines_and_accounts_tell_the_same_area(mapped: Path):
    for season in ("2018", "2024"):
        folder = mapped / "work" / "inventory" / season
        accounts = pd.read_parquet(folder / "accounts.parquet")
        outlines = gpd.read_parquet(folder / "outlines.parquet")
        assert outlines.geometry.is_valid.all()
        # Parts below 0.01 km2 have no outline but stay in the account.
        summed = outlines.groupby("ref_id")["area_km2"].sum()
        full = accounts.set_index("ref_id")["area_km2"]
        assert (full - summed.reindex(full.index).fillna(0)).min() > -1e-6


def test_change_is_the_difference_of_the_accounts(mapped: Path):
    folder = mapped / "work"
    change = pd.read_parquet(folder / "change" / "2018_2024" / "glaciers.parquet")
    first, last = (
        pd.read_parquet(folder / "inventory" / s / "accounts.parquet").set_index("ref_id")
        for s in ("2018", "2024")
    )
    told = change.set_index("glacier_id")["area_change_km2"]
    expected = last["area_km2"] - first["area_km2"]
    known = told.notna()
    assert known.any()
    assert np.allclose(told[known], expected[told[known].index], atol=1e-9)


def test_the_package_of_each_season_keeps_every_rule(mapped: Path):
    for season in ("2018", "2024"):
        folder = mapped / "work" / "inventory" / season / "package"
        stems = {letter: f"SMALL{season}-v1-{letter}-00" for letter in "GCI"}
        files = {letter: folder / stem / stem for letter, stem in stems.items()}
        findings, count = validate_files(
            Path(f"{files['G']}.shp"),
            profile="derived",
            complexes=Path(f"{files['C']}.shp"),
            intersects=Path(f"{files['I']}.shp") if files["I"].parent.is_dir() else None,
            hypsometry=Path(f"{files['G']}-hypsometry.csv"),
            links=(
                Path(f"{files['C']}-CtoG_links.json"),
                Path(f"{files['G']}-reference_links.csv"),
            ),
        )
        assert count > 0
        assert [f.line for f in findings] == []


def test_pixels_tell_what_the_change_of_areas_is_made_of(mapped: Path):
    folder = mapped / "work"
    table = pd.read_parquet(folder / "change" / "2018_2024" / "glaciers.parquet")
    table = table.set_index("glacier_id")
    unseen = sum(
        pd.read_parquet(folder / "inventory" / s / "accounts.parquet")
        .set_index("ref_id")["area_unseen_km2"]
        .reindex(table.index)
        for s in ("2018", "2024")
    )
    whole = table[table["area_change_km2"].notna() & (unseen == 0) & (table["flags"] == "")]
    net = whole["area_gained_km2"] - whole["area_lost_km2"]
    assert table["area_lost_km2"].sum() > 0
    assert np.allclose(net, whole["area_change_km2"], atol=0.004)
    # ^ two pixels of 40 m: ice beyond an outline that was not seen at one of the dates


def test_the_report_is_one_file_that_loads_nothing(mapped: Path):
    text = (mapped / "work" / "report" / "index.html").read_text(encoding="utf-8")
    assert "2018" in text
    assert "2024" in text
    assert 'src="http' not in text
    assert str(mapped) not in text


def test_a_perfect_map_scores_one_and_no_map_scores_none(small: Small, mapped: Path):
    region = open_region(load_settings(static(mapped)))
    classes = small.region.classes["2024"]
    score = score_season(region.workspace, "2024", region.shards, classes=classes)
    assert 0 <= score.iou <= 1
    assert score.pixels > 1000
    assert score.band_ratio_iou == max(score.ratio_ious)
    perfect = paint_truth(region, mapped, classes)
    assert perfect == pytest.approx(1.0)


def paint_truth(region, mapped: Path, classes: Path) -> float:
    """Write the truth into a copy of the map and score it."""
    from catalog.cube import NOT_SEEN, Workspace, create_layer, read_shard, write_shard
    from inventory_engine.scoring import _truth

    copy = Workspace(mapped / "painted")
    for name in ("map.zarr/2024/probability", "cube.zarr/2024/optical"):
        create_layer(copy, name, region.grid)
    for shard in region.shards:
        optical = read_shard(region.workspace, "cube.zarr/2024/optical", shard)
        write_shard(copy, "cube.zarr/2024/optical", shard, optical)
        truth, known = _truth(classes, shard)
        probability = np.zeros((4, *truth.shape), np.uint8)
        probability[1] = np.where(truth, 254, 0)
        probability[0] = 254 - probability[1]
        probability[:, ~known] = NOT_SEEN
        write_shard(copy, "map.zarr/2024/probability", shard, probability)
    return score_season(copy, "2024", region.shards, classes=classes).iou


def test_a_season_without_scenes_shrinks_no_glacier(small: Small, tmp_path: Path):
    seasons = {
        "2018": {"start": "2018-07-01", "end": "2018-10-15"},
        "2021": {"start": "2021-07-01", "end": "2021-10-15"},
    }
    notes: list[str] = []

    class Noting(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    path = small.settings(tmp_path, seasons=seasons)
    summary = run_pipeline(load_settings(path), show=Noting())
    assert not summary.failed
    assert any("2021" in note for note in notes)
    work = tmp_path / "work"
    accounts = pd.read_parquet(work / "inventory" / "2021" / "accounts.parquet")
    assert (accounts["obs_fraction"] == 0).all()
    change = pd.read_parquet(work / "change" / "2018_2021" / "glaciers.parquet")
    assert change["area_change_km2"].isna().all()


def test_a_broken_scene_is_set_aside_by_name_and_the_run_goes_on(small: Small, tmp_path: Path):
    items = json.loads(small.region.items.read_text())
    broken = next(f for f in items["features"] if f["collection"] == "sentinel-2-l2a")
    stump = tmp_path / "stump.tif"
    stump.write_bytes(b"II*\0 this is no image")
    broken["assets"]["red"]["href"] = str(stump)
    catalog = small.region.out / "broken.json"
    catalog.write_text(json.dumps(items))
    path = small.settings(tmp_path, url=str(catalog))
    text = path.read_text().replace(
        f"  - {small.region.out}\n", f"  - {small.region.out}\n  - {tmp_path}\n"
    )
    path.write_text(text)
    summary = run_pipeline(load_settings(path))
    catalog.unlink()
    assert not summary.failed
    assert summary.set_aside > 0
    region = open_region(load_settings(small.settings(tmp_path / "again")))
    ledger = Ledger(Workspace(tmp_path / "work"), region.grid)
    named = {fault.what for r in ledger.read_all("cube") for fault in r.outcome.set_aside}
    assert named == {broken["id"]}
    assert broken["id"] in (tmp_path / "work" / "report" / "index.html").read_text()


def test_the_demonstration_scores_itself_and_skips_what_is_done(small: Small, tmp_path: Path):
    out = tmp_path / "demo"
    first, table = run_demo(out, show=Silent(), spec=SMALL, ensemble=str(small.ensemble))
    assert not first.failed
    assert isinstance(table, Table)
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary) == {
        "seasons",
        "change",
        "glaciers",
        "band_ratio_iou",
        "wall_s",
        "peak_rss_gib",
    }
    assert set(summary["seasons"]["2018"]) == {"iou", "area_true_km2", "area_mapped_km2"}
    assert set(summary["change"]) == {
        "from",
        "to",
        "true_km2",
        "mapped_km2",
        "sigma_km2",
        "rate_percent_per_year",
    }
    truth = gpd.read_file(out / "truth" / "2018.gpkg")
    assert summary["seasons"]["2018"]["area_true_km2"] == pytest.approx(
        truth["area_km2"].sum(), abs=1e-3
    )
    assert summary["change"]["true_km2"] < 0
    reference = gpd.read_file(out / "region" / "reference.gpkg")
    assert len(summary["glaciers"]) == len(reference)
    mapped = set(gpd.read_file(out / "mapped" / "2018.gpkg")["ref_id"])
    assert mapped <= {glacier["id"] for glacier in summary["glaciers"]}
    assert (out / "report" / "index.html").stat().st_size > 10_000
    again, _ = run_demo(out, show=Silent(), spec=SMALL, ensemble=str(small.ensemble))
    assert again.done == 0
    kept = json.loads((out / "summary.json").read_text())
    assert {k: v for k, v in kept.items() if k[0] not in "wp"} == {
        k: v for k, v in summary.items() if k[0] not in "wp"
    }


def test_the_local_server_ends_with_its_block(small: Small):
    with serve_items(small.region.items):
        family = psutil.Process(os.getpid()).children(recursive=True)
        servers = [p for p in family if "rustac" in " ".join(p.cmdline())]
        assert servers
    _, alive = psutil.wait_procs(servers, timeout=5)
    assert not alive
