"""Stages and executors: what is redone, what is kept, and how faults are told apart."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from conftest import Small
from pandas.testing import assert_frame_equal

from catalog.cube import Outcome, Workspace, read_shard
from catalog.errors import DataError, SourceError, StoreError, UsageError
from catalog.glaciers import read_reference
from catalog.grid import RegionGrid
from inventory_engine import work
from inventory_engine.executors import DaskExecutor, RayExecutor, SerialExecutor
from inventory_engine.pipeline import preview, run_change, run_pipeline
from inventory_engine.plan import open_region
from inventory_engine.receipts import Ledger
from inventory_engine.settings import DaskSettings, RaySettings
from inventory_engine.settings_file import load_settings

pytestmark = pytest.mark.slow

GRID = RegionGrid(46.5, 10.5, 20.0, 32, 16, 0.0, 640.0, 2, 2)


def job(key: str = "cube/2024/r000c000") -> dict[str, object]:
    stage, season, unit = key.split("/")
    return {
        "key": key,
        "stage": stage,
        "season": season,
        "unit": unit,
        "fingerprint": "f" * 64,
        "inputs": {},
        "boxes": [[10.0, 46.0, 10.1, 46.1]],
        "interval": ["2024-08-01", "2024-09-30"],
        "payload": {},
    }


def raising(error: BaseException) -> Callable[..., Outcome]:
    def fail(*_: object) -> Outcome:
        raise error

    return fail


# --- the four kinds of error ---------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Workspace(tmp_path / "work"), GRID)


def test_bad_data_is_recorded_and_the_run_goes_on(ledger: Ledger):
    answer = work.perform(job(), ledger, raising(DataError("torn", kind="raster-truncated")))
    assert answer["failed"] == {"kind": "raster-truncated", "reason": "torn"}
    assert answer["fatal"] is None
    receipt = ledger.read("cube", "2024", "r000c000")
    assert receipt is not None
    assert receipt.failed is not None


@pytest.mark.parametrize("error", [StoreError("full", kind="disk-full"), UsageError("no")])
def test_a_store_or_usage_fault_stops_and_marks_nothing(ledger: Ledger, error: Exception):
    answer = work.perform(job(), ledger, raising(error))
    assert answer["fatal"]["kind"] == error.kind
    assert ledger.read("cube", "2024", "r000c000") is None
    with pytest.raises(type(error)):
        work.raise_fatal(answer["fatal"])


def test_a_source_fault_is_tried_again_before_it_is_recorded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(work, "_WAITS_S", (0.0, 0.0))
    tries = []

    def flaky(*_: object) -> Outcome:
        tries.append(1)
        if len(tries) < 3:
            raise SourceError("away")
        return Outcome({})

    assert work.perform(job(), ledger, flaky)["failed"] is None
    assert len(tries) == 3
    answer = work.perform(job(), ledger, raising(SourceError("gone")))
    assert answer["failed"]["kind"] == "source-unreachable"


def test_an_unexpected_fault_of_one_unit_is_recorded_with_its_trace(ledger: Ledger):
    answer = work.perform(job(), ledger, raising(ZeroDivisionError("by zero")))
    assert answer["failed"]["kind"] == "unexpected"
    assert "ZeroDivisionError" in answer["trace"]


def test_rows_of_the_reference_travel_without_loss(small: Small):
    frame = read_reference(small.region.reference).frame
    back = work.unpack_frame(work.pack_frame(frame))
    assert_frame_equal(pd.DataFrame(frame), pd.DataFrame(back))
    assert back.crs == frame.crs


# --- executors -----------------------------------------------------------------------------------


class Scripted:
    """Makes a task that does what each job says; travels to workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self):
        def task(job):
            marker = self.folder / f"{job['key']}.{time.monotonic_ns()}"
            marker.write_text(str(os.getpid()))
            earlier = len(list(self.folder.glob(f"{job['key']}.*")))
            if job["do"] == "die" or (job["do"] == "die once" and earlier == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            return {"key": job["key"], "failed": None, "fatal": None}

        return task


class Refusing:
    """Makes no task, like a worker that has other weights."""

    def __call__(self):
        raise UsageError("other weights", kind="version-skew")


EXECUTORS = {
    "serial": SerialExecutor,
    "dask": lambda: DaskExecutor(DaskSettings(workers=2)),
    "ray": lambda: RayExecutor(RaySettings(workers=2)),
}


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets Ray's workers import this module, which defines the tasks."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", EXECUTORS)
def test_every_executor_answers_every_job_once_and_leaves_no_process(name: str, tmp_path: Path):
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    executor = EXECUTORS[name]()
    try:
        jobs = [{"key": f"k{i}", "do": "work"} for i in range(7)]
        answers = [a["key"] for a in executor.run(Scripted(tmp_path), jobs)]
        told = next(executor.run(Refusing(), jobs[:1])) if name != "serial" else None
    finally:
        executor.close()
    assert sorted(answers) == [f"k{i}" for i in range(7)]
    if told:
        assert told["fatal"]["kind"] == "version-skew"
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    _, alive = psutil.wait_procs(left, timeout=15)
    assert not [p for p in alive if "resource_tracker" not in " ".join(p.cmdline())]


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_killed_worker_is_replaced_and_its_job_done(name: str, tmp_path: Path):
    executor = EXECUTORS[name]()
    try:
        jobs = [{"key": f"k{i}", "do": "die once" if i == 2 else "work"} for i in range(6)]
        answers = [a["key"] for a in executor.run(Scripted(tmp_path), jobs)]
    finally:
        executor.close()
    assert sorted(answers) == [f"k{i}" for i in range(6)]
    assert len(list(tmp_path.glob("k2.*"))) >= 2


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_job_that_always_kills_its_worker_is_recorded_and_blames_no_other(
    name: str, tmp_path: Path
):
    executor = EXECUTORS[name]()
    try:
        jobs = [{"key": f"k{i}", "do": "die" if i == 1 else "work"} for i in range(4)]
        answers = {a["key"]: a["failed"] for a in executor.run(Scripted(tmp_path), jobs)}
    finally:
        executor.close()
    assert answers["k1"]["kind"] == "worker-killed"
    assert [answers[k] for k in ("k0", "k2", "k3")] == [None] * 3


ORPHANS = """
import sys, time
from pathlib import Path
from inventory_engine.executors import DaskExecutor, RayExecutor
from inventory_engine.settings import DaskSettings, RaySettings

class Beat:
    def __init__(self, folder):
        self.folder = folder
    def __call__(self):
        def task(job):
            while True:
                (Path(self.folder) / job["key"]).write_text(str(time.time()))
                time.sleep(0.05)
        return task

if __name__ == "__main__":
    which = {"dask": lambda: DaskExecutor(DaskSettings(workers=2)),
             "ray": lambda: RayExecutor(RaySettings(workers=2))}
    executor = which[sys.argv[1]]()
    list(executor.run(Beat(sys.argv[2]), [{"key": "a"}, {"key": "b"}]))
"""


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_workers_stop_writing_soon_after_their_driver_is_killed(name: str, tmp_path: Path):
    script = tmp_path / "driver.py"
    script.write_text(ORPHANS)
    beats = tmp_path / "beats"
    beats.mkdir()
    driver = subprocess.Popen(
        [sys.executable, str(script), name, str(beats)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not list(beats.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(beats.iterdir())
    family = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    time.sleep(3)
    marks = {p.name: p.read_text() for p in beats.iterdir()}
    time.sleep(1)
    assert marks == {p.name: p.read_text() for p in beats.iterdir()}
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive


# --- what is redone, and what is kept ------------------------------------------------------------


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def todo(folder: Path) -> dict[str, int]:
    """Units that a run would do, by stage."""
    counts: dict[str, int] = {}
    for row in preview(load_settings(folder / "region.yaml")):
        for state, count in row.counts.items():
            if state != "skip":
                counts[row.stage] = counts.get(row.stage, 0) + count
    return counts


def test_a_finished_run_has_nothing_to_do_and_touches_nothing(copy: Path):
    assert todo(copy) == {}
    before = {p: p.stat().st_mtime_ns for p in (copy / "work").rglob("*") if p.is_file()}
    summary = run_pipeline(load_settings(copy / "region.yaml"))
    assert summary.done == 0
    after = {p: p.stat().st_mtime_ns for p in (copy / "work").rglob("*") if p.is_file()}
    changed = {p.name for p in after if before.get(p) != after[p]}
    assert changed <= {"run.lock", "0002.jsonl"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_repaired_and_nothing_else_is_touched(copy: Path):
    stored = copy / "work" / "cube.zarr" / "2018" / "date" / "c" / "0" / "1"
    good = stored.read_bytes()
    others = {
        p: p.stat().st_mtime_ns
        for p in (copy / "work" / "cube.zarr" / "2024").rglob("*")
        if p.is_file()
    }
    flip(stored)
    assert todo(copy)["cube"] == 1
    summary = run_pipeline(load_settings(copy / "region.yaml"))
    assert summary.done == 1
    # ^ the bytes are the same again, so nothing after it has new inputs
    assert stored.read_bytes() == good
    assert all(p.stat().st_mtime_ns == then for p, then in others.items())


def test_a_deleted_inventory_is_published_again_with_the_same_bytes(copy: Path):
    outlines = copy / "work" / "inventory" / "2024" / "outlines.parquet"
    good = outlines.read_bytes()
    outlines.unlink()
    assert todo(copy)["publish"] == 1
    run_pipeline(load_settings(copy / "region.yaml"))
    assert outlines.read_bytes() == good


def test_one_new_scene_redoes_its_season_only(small: Small, tmp_path: Path):
    items = json.loads(small.region.items.read_text())
    optical = [f for f in items["features"] if f["collection"] == "sentinel-2-l2a"]
    late = max(optical, key=lambda f: f["properties"]["datetime"])
    fewer = {**items, "features": [f for f in items["features"] if f is not late]}
    # Beside the scenes, where relative hrefs lead to them.
    catalog = small.region.out / "fewer.json"
    catalog.write_text(json.dumps(fewer))
    path = small.settings(tmp_path, url=str(catalog))
    run_pipeline(load_settings(path))
    catalog.write_text(json.dumps(items))
    counts = todo(tmp_path)
    catalog.unlink()
    assert counts["cube"] == 4
    assert counts["map"] == 4
    assert counts["outlines"] == 1
    assert "terrain" not in counts


def test_another_ensemble_redoes_maps_but_no_cube(small: Small, copy: Path, tmp_path: Path):
    ensemble = tmp_path / "other"
    shutil.copytree(small.ensemble, ensemble)
    card = json.loads((ensemble / "card.json").read_text())
    (ensemble / "card.json").write_text(json.dumps(card | {"name": "other"}))
    path = copy / "region.yaml"
    path.write_text(path.read_text().replace(str(small.ensemble), str(ensemble)))
    counts = todo(copy)
    assert counts["map"] == 8
    assert "cube" not in counts
    assert "terrain" not in counts


def test_another_runtime_redoes_maps_and_changes_no_probability_by_more_than_a_step(copy: Path):
    before = Workspace(copy / "work")
    path = copy / "region.yaml"
    text = yaml.safe_load(path.read_text())
    name = "map.zarr/2018/probability"
    grid = open_region(load_settings(path)).grid
    first = [read_shard(before, name, s).astype(int) for s in grid.shards()]
    text["model"]["runtime"] = "torch"
    path.write_text(yaml.safe_dump(text, sort_keys=False))
    assert todo(copy)["map"] == 8
    run_pipeline(load_settings(path))
    again = [read_shard(before, name, s).astype(int) for s in grid.shards()]
    assert max(np.abs(a - b).max() for a, b in zip(first, again, strict=True)) <= 1
    assert todo(copy) == {}


def test_a_changed_grid_is_refused_and_named(copy: Path):
    path = copy / "region.yaml"
    path.write_text(path.read_text().replace("resolution_m: 40", "resolution_m: 50"))
    with pytest.raises(UsageError, match=r"resolution_m is 40\.0 there and 50\.0 here") as caught:
        run_pipeline(load_settings(path))
    assert caught.value.kind == "workspace-mismatch"


def test_change_needs_published_seasons(small: Small, tmp_path: Path):
    settings = load_settings(small.settings(tmp_path))
    with pytest.raises(UsageError, match="not published yet"):
        run_change(settings, "2018", "2024")
    with pytest.raises(UsageError, match="known are 2018, 2024"):
        run_change(settings, "2017", "2024")


def test_the_plan_counts_scenes_and_refuses_another_workspace(copy: Path, small: Small):
    items = json.loads(small.region.items.read_text())["features"]
    found = Counter(i["collection"] for i in items)
    rows = {(r.stage, r.season): r for r in preview(load_settings(copy / "region.yaml"))}
    of_cubes = sum(rows["cube", season].scenes or 0 for season in ("2018", "2024"))
    assert of_cubes == found["sentinel-2-l2a"] + found["sentinel-1-rtc"]
    assert rows["terrain", "region"].scenes == found["cop-dem-glo-30"]
    assert rows["map", "2018"].scenes is None
    path = copy / "region.yaml"
    path.write_text(path.read_text().replace("name: small", "name: other"))
    with pytest.raises(UsageError, match="name is small there and other here"):
        preview(load_settings(path))


def test_a_file_that_was_missing_is_tried_again_by_the_next_run(small: Small, tmp_path: Path):
    items = json.loads(small.region.items.read_text())
    late = next(f for f in items["features"] if f["collection"] == "sentinel-2-l2a")
    source = Path(late["assets"]["red"]["href"])
    late["assets"]["red"]["href"] = str(tmp_path / source.name)
    (tmp_path / "items.json").write_text(json.dumps(items))
    path = small.settings(tmp_path, url=str(tmp_path / "items.json"))
    values = yaml.safe_load(path.read_text())
    values["catalog"]["allowed"].append(str(tmp_path))
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    settings = load_settings(path)
    first = run_pipeline(settings, only=["cube"])
    assert first.set_aside > 0
    again = run_pipeline(settings, only=["cube"])
    assert 0 < again.done == first.set_aside
    shutil.copy(source, tmp_path / source.name)
    third = run_pipeline(settings, only=["cube"])
    assert (third.done, third.set_aside) == (again.done, 0)
    assert run_pipeline(settings, only=["cube"]).done == 0


def test_a_season_whose_cubes_all_fail_is_unseen_and_the_failures_are_told(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = work._WORK["cube"]

    def broken(ledger: Ledger, job: dict) -> Outcome:
        if job["season"] == "2024":
            raise DataError("made to fail", kind="made-to-fail")
        return whole(ledger, job)

    monkeypatch.setitem(work._WORK, "cube", broken)
    summary = run_pipeline(load_settings(small.settings(tmp_path)))
    assert {key.split("/")[1] for key in summary.failed} == {"2024"}
    assert {failure.kind for failure in summary.failed.values()} == {"made-to-fail"}
    accounts = pd.read_parquet(tmp_path / "work" / "inventory" / "2024" / "accounts.parquet")
    assert (accounts["obs_fraction"] == 0).all()
    assert (accounts["inputs"] == "none").all()
    assert (tmp_path / "work" / "report" / "index.html").exists()
