"""The fault matrix of the store, row by row: Z2 to Z6. Row Z1, rot, stands in `test_verify`."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COMMAND, Small
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.cube import LAYOUT, Outcome, Workspace, create_layer, read_shard, write_shard
from catalog.errors import StoreError, UsageError
from catalog.grid import RegionGrid
from inventory_engine import __version__
from inventory_engine.pipeline import run_pipeline
from inventory_engine.receipts import Ledger
from inventory_engine.settings_file import load_settings
from inventory_engine.verify import verify
from inventory_engine.work import Job, perform

GRID = RegionGrid(46.5, 10.5, 20.0, 64, 32, 0.0, 2560.0, 2, 2)
NAME = "cube.zarr/2024/optical"
NOBODY = 65534


def noise(seed: int, grid: RegionGrid = GRID) -> np.ndarray:
    shape = (6, grid.shard_px, grid.shard_px)
    return np.random.default_rng(seed).integers(1, 9000, shape).astype(np.uint16)


def stored(workspace: Workspace) -> list[str]:
    return [name for name in workspace.names("cube.zarr") if "/c/" in name.split("2024/")[-1]]


# --- Z2: a region that is not aligned ------------------------------------------------------------


def other_grids() -> st.SearchStrategy[RegionGrid]:
    """Grids that differ from the store's in at least one respect."""
    changed = st.fixed_dictionaries(
        {},
        optional={
            "shard_px": st.sampled_from([32, 96, 128]),
            "chunk_px": st.sampled_from([16, 64]),
            "resolution_m": st.sampled_from([10.0, 30.0]),
            "left": st.floats(-5000, 5000).filter(bool),
            "top": st.floats(-5000, 5000).filter(lambda v: v != GRID.top),
            "rows": st.integers(3, 5),
            "cols": st.integers(3, 5),
            "lat_0": st.sampled_from([0.0, 46.0]),
        },
    )

    def build(changes: dict[str, Any]) -> RegionGrid:
        side = changes.get("shard_px", GRID.shard_px)
        if side % changes.get("chunk_px", GRID.chunk_px):
            changes = changes | {"chunk_px": side}
        return replace(GRID, **changes)

    return changed.filter(bool).map(build).filter(lambda grid: grid != GRID)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, bytes]]:
    """A store with all its shards, and their bytes."""
    workspace = Workspace(tmp_path_factory.mktemp("aligned"))
    create_layer(workspace, NAME, GRID)
    for shard in GRID.shards():
        write_shard(workspace, NAME, shard, noise(0))
    return workspace, {name: workspace.get(name) or b"" for name in workspace.names("")}


def write_with_other_grid(
    aligned: tuple[Workspace, dict[str, bytes]], grid: RegionGrid, row: int, col: int
) -> None:
    workspace, before = aligned
    with pytest.raises(StoreError):
        write_shard(workspace, NAME, grid.shard(row, col), noise(1, grid))
    assert {name: workspace.get(name) for name in workspace.names("")} == before


@settings(max_examples=60, deadline=None)
@given(grid=other_grids(), row=st.integers(0, 1), col=st.integers(0, 1))
def test_z2_a_shard_of_another_grid_is_refused_before_a_byte_is_written(aligned, grid, row, col):
    write_with_other_grid(aligned, grid, row, col)


@pytest.mark.chaos
@settings(max_examples=1000, deadline=None)
@given(grid=other_grids(), row=st.integers(0, 1), col=st.integers(0, 1))
def test_z2_of_1000_misaligned_writes_none_goes_through(aligned, grid, row, col):
    write_with_other_grid(aligned, grid, row, col)


@pytest.mark.parametrize("shape", [(6, 63, 64), (6, 64, 65), (5, 64, 64), (64, 64), (6, 32, 32)])
def test_z2_values_that_are_not_one_whole_shard_are_refused(aligned, shape) -> None:
    workspace, before = aligned
    with pytest.raises(StoreError, match="takes shards of"):
        write_shard(workspace, NAME, GRID.shard(0, 0), np.zeros(shape, np.uint16))
    assert {name: workspace.get(name) for name in workspace.names("")} == before


# --- Z3: killed while it writes ------------------------------------------------------------------


def _write_for_ever(folder: str) -> None:
    workspace, shard = Workspace(folder), GRID.shard(0, 0)
    while True:
        for seed in (1, 2):
            write_shard(workspace, NAME, shard, noise(seed))


def kill_writers(folder: Path, kills: int) -> tuple[int, int]:
    """How often a shard was neither old nor new after a SIGKILL; drafts left behind."""
    workspace, shard = Workspace(folder), GRID.shard(0, 0)
    create_layer(workspace, NAME, GRID)
    write_shard(workspace, NAME, shard, noise(1))
    context, mixed = multiprocessing.get_context("fork"), 0
    chance = np.random.default_rng(kills)
    for _ in range(kills):
        writer = context.Process(target=_write_for_ever, args=(str(folder),))
        writer.start()
        time.sleep(chance.uniform(0.02, 0.12))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        found = read_shard(workspace, NAME, shard)
        mixed += not any(np.array_equal(found, noise(seed)) for seed in (1, 2))
    return mixed, len(list(folder.rglob("*.partial")))


def test_z3_a_killed_writer_leaves_an_old_shard_or_a_new_one(tmp_path: Path) -> None:
    mixed, _ = kill_writers(tmp_path, 8)
    assert mixed == 0


@pytest.mark.chaos
def test_z3_100_kills_leave_no_mixed_shard(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    mixed, drafts = kill_writers(tmp_path, 100)
    record_property("kills while writing a shard", f"100, mixed {mixed}, drafts left {drafts}")
    assert mixed == 0


@pytest.mark.slow
def test_z3_drafts_of_a_killed_run_are_swept_by_the_next(
    small: Small, finished: Path, tmp_path: Path
) -> None:
    wanted = load_settings(small.settings(tmp_path))
    work = Path(shutil.copytree(finished / "work", wanted.workspace))
    drafts = [
        work / "records/map/2024/.r000c000.json.0123.partial",
        work / "cube.zarr/2024/optical/c/0/0/0.4567.partial",
    ]
    for draft in drafts:
        draft.write_bytes(b"half")
    assert verify(wanted).findings == []  # nobody reads a draft
    assert run_pipeline(wanted).done == 0
    assert not list(work.rglob("*.partial"))


# --- Z4: the disk is full ------------------------------------------------------------------------


def two_shards(ledger: Ledger, _job: Job) -> Outcome:
    """A unit of work that writes two shards and a file."""
    outputs = {}
    for shard in (GRID.shard(0, 0), GRID.shard(0, 1)):
        outputs[f"{NAME}/{shard.id}"] = write_shard(ledger.workspace, NAME, shard, noise(shard.col))
    ledger.workspace.put("inventory/notes.csv", b"a,b\n" * 5000)
    outputs["inventory/notes.csv"] = ledger.checksum("inventory/notes.csv") or ""
    return Outcome(outputs)


JOB: Job = {
    "key": "cube/2024/r000c000",
    "stage": "cube",
    "season": "2024",
    "unit": "r000c000",
    "fingerprint": "f" * 64,
    "inputs": {"scene": "1" * 64},
    "boxes": [[10.0, 46.0, 10.1, 46.1]],
    "interval": ["2024-07-01", "2024-09-30"],
}


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size: writes fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    workspace = Workspace(folder)
    return {name: workspace.get(name) or b"" for name in workspace.names("")}


@pytest.mark.parametrize("place", range(20))
def test_z4_a_unit_that_finds_no_space_is_not_done_and_later_leaves_equal_bytes(
    tmp_path: Path, place: int
) -> None:
    for name in ("sound", "full"):
        create_layer(Workspace(tmp_path / name), NAME, GRID)
    sound, full = (Ledger(Workspace(tmp_path / name), GRID) for name in ("sound", "full"))
    assert perform(JOB, sound, two_shards)["fatal"] is None
    sizes = sorted({len(data) for data in contents(tmp_path / "sound").values()})
    largest = sizes[-1]
    with largest_file(1 + place * (largest - 2) // 19):
        answer = perform(JOB, full, two_shards)
    assert answer["fatal"]["kind"] == "disk-full"
    assert str(tmp_path / "full") in answer["fatal"]["message"]
    assert "free some space" in answer["fatal"]["message"]
    assert full.read("cube", "2024", "r000c000") is None
    assert not list((tmp_path / "full").rglob("*.partial"))
    assert perform(JOB, full, two_shards)["fatal"] is None
    assert contents(tmp_path / "full") == contents(tmp_path / "sound")


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """A file system of its own in memory; yields what changes its options."""

    def mount(changed: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", changed, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a small disk")

    folder.mkdir(parents=True, exist_ok=True)
    mount(options)
    try:
        yield lambda changed: mount(f"remount,{changed}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_and_resume(small: Small, finished: Path, folder: Path, size_kb: int) -> None:
    path = small.settings(folder)
    wanted = load_settings(path)
    with small_disk(Path(wanted.workspace), f"size={size_kb}k") as change:
        with pytest.raises(StoreError) as caught:
            run_pipeline(wanted)
        assert caught.value.kind == "disk-full"
        assert str(wanted.workspace) in str(caught.value)
        change("size=64m")
        kinds = {finding.kind for finding in verify(wanted).findings}
        assert kinds <= {"orphan"}  # what is booked is sound
        assert not run_pipeline(wanted).failed
        assert products(Path(wanted.workspace)) == products(finished / "work")
        assert verify(wanted).findings == []


def products(work: Path) -> dict[str, bytes]:
    return {
        name: data
        for name, data in contents(work).items()
        if not name.startswith(("runs/", "run.lock", "search/"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("size_kb", [1200])
def test_z4_a_run_on_a_full_disk_stops_and_goes_on_when_there_is_space(
    small: Small, finished: Path, tmp_path: Path, size_kb: int
) -> None:
    fill_and_resume(small, finished, tmp_path, size_kb)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("size_kb", np.linspace(200, 3400, 20, dtype=int).tolist())
def test_z4_a_disk_may_be_full_at_any_stage(
    small: Small, finished: Path, tmp_path: Path, size_kb: int
) -> None:
    fill_and_resume(small, finished, tmp_path, size_kb)


# --- Z5: read-only, no permission, no rename -----------------------------------------------------


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that every user may reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere: act as another user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


ACTIONS: dict[str, Callable[[Workspace], object]] = {
    "create a layer": lambda w: create_layer(w, "cube.zarr/2024/date", GRID),
    "write a shard": lambda w: write_shard(w, NAME, GRID.shard(0, 0), noise(2)),
    "write a file": lambda w: w.put("region.json", b"{}"),
    "delete a file": lambda w: w.delete("region.json"),
}


def prepared(folder: Path) -> Workspace:
    workspace = Workspace(folder)
    create_layer(workspace, NAME, GRID)
    write_shard(workspace, NAME, GRID.shard(0, 0), noise(1))
    workspace.put("region.json", b"before")
    return workspace


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_z5_where_a_user_may_not_write_the_place_and_the_remedy_are_told(
    public_folder: Path, action: str
) -> None:
    workspace = prepared(public_folder)
    for path in [public_folder, *public_folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(public_folder)
    with without_privileges(), pytest.raises(StoreError) as caught:
        ACTIONS[action](workspace)
    told = str(caught.value)
    assert caught.value.kind == "not-writable"
    assert str(public_folder) in told
    assert os.strerror(errno.EACCES) in told
    assert "the right to write there" in told
    public_folder.chmod(0o755)
    for path in public_folder.rglob("*"):
        path.chmod(0o755)
    assert contents(public_folder) == before


@pytest.mark.parametrize("action", sorted(ACTIONS))
def test_z5_a_read_only_disk_stops_with_its_path(tmp_path: Path, action: str) -> None:
    with small_disk(tmp_path / "disk", "size=4m") as change:
        workspace = prepared(tmp_path / "disk")
        change("ro")
        with pytest.raises(StoreError) as caught:
            ACTIONS[action](workspace)
        assert caught.value.kind == "not-writable"
        assert str(tmp_path / "disk") in str(caught.value)
        assert os.strerror(errno.EROFS) in str(caught.value)


@pytest.mark.parametrize("action", ["write a shard", "write a file"])
def test_z5_where_a_file_cannot_be_put_in_its_place_nothing_is_left_over(
    tmp_path: Path, action: str
) -> None:
    """The draft is written, but renaming it fails: a folder stands in the way."""
    workspace = prepared(tmp_path)
    for name in ("region.json", f"{NAME}/c/0/0/0"):
        (tmp_path / name).unlink()
        (tmp_path / name / "in the way").mkdir(parents=True)
    with pytest.raises(StoreError) as caught:
        ACTIONS[action](workspace)
    assert str(tmp_path) in str(caught.value)
    assert "run again" in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_z5_the_command_tells_it_in_one_line_and_ends_with_4(small: Small, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file where the workspace should be")
    path = small.settings(tmp_path)
    done = subprocess.run(
        [*COMMAND, "run", str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 4
    assert str(tmp_path / "work") in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


# --- Z6: a workspace of another version ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("layout", [LAYOUT + 1, LAYOUT - 1, None, "two", 1.5])
def test_z6_a_workspace_of_another_layout_is_refused_with_the_version_that_wrote_it(
    small: Small, finished: Path, tmp_path: Path, layout: object
) -> None:
    wanted = load_settings(small.settings(tmp_path))
    work = Path(shutil.copytree(finished / "work", wanted.workspace))
    identity = json.loads((work / "region.json").read_text())
    assert (identity["layout"], identity["engine"]) == (LAYOUT, __version__)
    identity |= {"layout": layout, "engine": "7.8.9"}
    if layout is None:
        del identity["layout"]
    (work / "region.json").write_text(json.dumps(identity))
    before = contents(work)
    for refused in (run_pipeline, verify):
        with pytest.raises(UsageError, match=r"written by inventory-engine 7\.8\.9") as caught:
            refused(wanted)
        assert caught.value.kind == "workspace-layout"
        assert __version__ in str(caught.value)
    assert {k: v for k, v in contents(work).items() if k != "run.lock"} == {
        k: v for k, v in before.items() if k != "run.lock"
    }


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "[]", '{"layout": 1}'])
def test_z6_an_identity_that_cannot_be_read_is_never_guessed(
    small: Small, finished: Path, tmp_path: Path, text: str
) -> None:
    wanted = load_settings(small.settings(tmp_path))
    work = Path(shutil.copytree(finished / "work", wanted.workspace))
    before = (work / "region.json").read_text()
    (work / "region.json").write_text(text)
    for refused in (run_pipeline, verify):
        with pytest.raises(UsageError, match="delete that file") as caught:
            refused(wanted)
        assert caught.value.kind == "workspace-damaged"
    (work / "region.json").unlink()
    assert run_pipeline(wanted).done == 0
    assert (work / "region.json").read_text() == before


def test_z6_an_array_without_what_the_engine_writes_is_no_array(tmp_path: Path) -> None:
    workspace = prepared(tmp_path)
    name = f"{NAME}/zarr.json"
    for text in (b"", b"{}", b"[]", b'{"zarr_format": 3, "node_type": "array"}'):
        workspace.put(name, text)
        with pytest.raises(StoreError, match=r"zarr\.json") as caught:
            read_shard(workspace, NAME, GRID.shard(0, 0))
        assert caught.value.kind == "metadata-damaged"
    create_layer(workspace, NAME, GRID)
    np.testing.assert_array_equal(read_shard(workspace, NAME, GRID.shard(0, 0)), noise(1))
