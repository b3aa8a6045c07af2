"""The stages before the cube, as a run makes them: shifts, ranks, illumination, layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
from conftest import Small

from catalog.cube import DATE_MISSING, Workspace, read_shard
from catalog.errors import UsageError
from catalog.saved_ranking import read_rankings
from inventory_engine.pipeline import open_context, run_pipeline
from inventory_engine.plan import open_region, search_scenes
from inventory_engine.receipts import Ledger
from inventory_engine.settings import CoregistrationSettings
from inventory_engine.settings_file import load_settings
from inventory_engine.stages import STAGES
from inventory_engine.verify import verify

SEASONS = {
    "2018": {"start": "2018-07-01", "end": "2018-10-15", "composite": "best_scene"},
    "2024": {"start": "2024-07-01", "end": "2024-10-15"},
}


def raster(path: Path, small: Small, value: float) -> Path:
    """A raster over the whole region, in its UTM zone."""
    with rasterio.open(small.region.classes["2024"]) as truth:
        profile = truth.profile | {"driver": "GTiff", "dtype": "float32", "nodata": -9999.0}
        profile.pop("blockxsize", None)
        profile.pop("blockysize", None)
        values = np.full(truth.shape, value, np.float32)
    with rasterio.open(path, "w", **profile) as out:
        out.write(values, 1)
    return path


@pytest.fixture(scope="module")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run that asks for everything."""
    folder = tmp_path_factory.mktemp("imagery")
    raster(folder / "dhdt.tif", small, -0.8)
    layers = {"dhdt": {"files": ["dhdt.tif"], "nodata": -9999.0}}
    summary = run_pipeline(load_settings(small.settings(folder, seasons=SEASONS, layers=layers)))
    assert not summary.failed
    return folder


def test_all_that_a_run_leaves_is_verified(run: Path) -> None:
    assert verify(load_settings(run / "region.yaml")).findings == []


def test_the_second_run_finds_nothing_to_do(run: Path) -> None:
    assert run_pipeline(load_settings(run / "region.yaml")).done == 0


def test_each_glacier_shows_the_look_that_ranks_first_for_it_where_that_is_clear(run: Path) -> None:
    region = open_region(load_settings(run / "region.yaml"))
    ranks = read_rankings(region.workspace, "2018")
    assert set(ranks["ref_id"]) == set(region.reference.frame["ref_id"])
    first = ranks[ranks["rank"] == 1].set_index("ref_id")
    accounts = pd.read_parquet(run / "work" / "inventory" / "2018" / "accounts.parquet")
    clear = 0
    for row in accounts.itertuples():
        best = first.loc[row.ref_id]
        if best["coverage"] > 0.95 and best["cloud"] < 0.05:
            assert row.look_days[0] == best["day"]
            assert row.look_shares[0] > 0.8
            clear += 1
    assert clear


def test_every_scene_has_its_shift_and_the_reference_season_stands_still(run: Path) -> None:
    shifts = {
        path.parent.name + "/" + path.stem: json.loads(path.read_text())
        for path in (run / "work" / "shifts").rglob("*.json")
    }
    states = {name: shift["state"] for name, shift in shifts.items()}
    assert {name.split("/")[0] for name in states} == {"2018", "2024"}
    assert "reference" in {state for name, state in states.items() if name.startswith("2024")}
    measured = [s for s in shifts.values() if s["state"] in ("kept", "corrected")]
    assert all(abs(s["dx_m"]) < 5 and abs(s["dy_m"]) < 5 for s in measured)


def test_what_is_left_of_a_shift_reaches_the_outlines(run: Path) -> None:
    """And from there the areas of glaciers with divides, see the tests of misregistration."""
    wanted = load_settings(run / "region.yaml")
    context = open_context(wanted)
    context = replace(context, scenes=search_scenes(context.region, "kept"))
    outlines = next(stage for stage in STAGES if stage.name == "outlines")
    residual = {
        unit.season: unit.payload["residual_m"] for unit in outlines.units(context)
    }  # of the last batch; all lie under the same scenes
    shifts = context.ledger.read_all("shifts")
    told = [r.outcome.facts["residual_m"] for r in shifts if r.season == "2018"]
    assert residual["2018"] == pytest.approx(np.sqrt(np.mean(np.square(told))), abs=1e-3)
    assert residual["2018"] > 0


def test_every_seen_pixel_has_its_illumination(run: Path) -> None:
    region = open_region(load_settings(run / "region.yaml"))
    shaded = []
    for shard in region.shards:
        light = read_shard(region.workspace, "cube.zarr/2024/illumination", shard)
        seen = read_shard(region.workspace, "cube.zarr/2024/date", shard) != DATE_MISSING
        known = np.isfinite(read_shard(region.workspace, "cube.zarr/terrain", shard)).all(axis=0)
        assert (light[seen & known] != 255).all()
        assert (light[~seen] == 255).all()
        shaded.append((light[seen & known] == 0).mean() if (seen & known).any() else 0.0)
    assert 0 < max(shaded) < 0.9


def test_a_layer_of_ones_own_lies_on_the_grid_and_follows_its_file(run: Path, small: Small) -> None:
    wanted = load_settings(run / "region.yaml")
    region = open_region(wanted)
    found = [read_shard(region.workspace, "cube.zarr/layers/dhdt", s) for s in region.shards]
    values = np.concatenate([v[np.isfinite(v)] for v in found])
    assert values.size and np.allclose(values, -0.8)
    raster(run / "dhdt.tif", small, 0.3)
    summary = run_pipeline(wanted)
    assert summary.done == len(region.shards)
    again = read_shard(region.workspace, "cube.zarr/layers/dhdt", region.shards[0])
    assert np.allclose(again[np.isfinite(again)], 0.3)


def test_switching_co_registration_off_measures_nothing(small: Small, tmp_path: Path) -> None:
    wanted = load_settings(small.settings(tmp_path, coregistration={"measure": False}))
    assert not run_pipeline(wanted, only=["terrain", "shifts", "cube"]).failed
    assert Workspace(wanted.workspace).names("shifts") == []


def test_a_reference_that_is_no_season_is_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"coregistration\.reference.*known are 2018, 2024"):
        load_settings(small.settings(tmp_path, coregistration={"reference": "1999"}))


def test_radar_under_the_heading_of_optical_is_refused(small: Small, tmp_path: Path) -> None:
    catalog = {"url": str(small.region.items), "collections": {"optical": ["sentinel-1-rtc"]}}
    with pytest.raises(UsageError, match="is sar, but the settings name it under optical"):
        run_pipeline(load_settings(small.settings(tmp_path, catalog=catalog)))


def test_the_command_tells_the_best_scenes(run: Path, engine) -> None:
    process = engine("scenes", run / "region.yaml", "--season", "2018", "--top", "1")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "2018-" in out


def test_a_ranking_that_is_missing_spoils_its_shards_only(run: Path) -> None:
    """What could not be ranked is told, and made good when it can."""
    wanted = load_settings(run / "region.yaml")
    region = open_region(wanted)
    ledger = Ledger(region.workspace, region.grid)
    lost = region.batches[1][0]
    record = f"records/scenes/2018/{lost.id}.json"
    kept = region.workspace.get(record)
    cube = next(r for r in ledger.read_all("cube") if r.season == "2018" and lost.id in str(r))
    region.workspace.delete(record)
    region.workspace.delete(f"records/{cube.key}.json")
    summary = run_pipeline(wanted, only=["cube"])
    assert {failure.kind for failure in summary.failed.values()} == {"incomplete"}
    region.workspace.put(record, kept or b"")
    assert not run_pipeline(wanted).failed


def test_a_season_more_measures_only_its_own_shifts(small: Small, tmp_path: Path) -> None:
    first = {"2018": {"start": "2018-07-01", "end": "2018-10-15"}}
    stages = ["terrain", "shifts"]
    run_pipeline(load_settings(small.settings(tmp_path, seasons=first)), only=stages)
    both = first | {"2024": {"start": "2024-07-01", "end": "2024-10-15"}}
    wanted = load_settings(small.settings(tmp_path, seasons=both))
    summary = run_pipeline(wanted, only=stages)
    region = open_region(wanted)
    assert region.reference_season == "2018"
    assert summary.done == len(search_scenes(region).optical["2024"])


def test_a_sensor_of_the_users_own_is_laid_on_the_others_too(small: Small, tmp_path: Path) -> None:
    """Its promise of how well it lies is not known; that must stop nothing."""
    text = Path(small.region.items).read_text().replace('"sentinel-2-l2a"', '"my-sensor"')
    (tmp_path / "items.json").write_text(text)
    keys = {"blue": "blue", "green": "green", "red": "red", "nir": "nir"}
    keys |= {"swir1": "swir16", "swir2": "swir22"}
    sensor = {
        "kind": "optical",
        "bands": {role: {"asset": key} for role, key in keys.items()},
        "mask": {"asset": "scl", "kind": "scl"},
    }
    catalog = {
        "url": str(tmp_path / "items.json"),
        "collections": {"optical": ["my-sensor"]},
        "allowed": [str(small.region.out)],
    }
    wanted = load_settings(small.settings(tmp_path, catalog=catalog, sensors={"my-sensor": sensor}))
    summary = run_pipeline(wanted, only=["shifts", "cube"])
    assert not summary.failed and summary.done
    off = wanted.model_copy(update={"coregistration": CoregistrationSettings(measure=False)})
    assert not run_pipeline(off, only=["shifts", "cube"]).failed
