"""Receipts: "done" means that the bytes are still there and came from the same inputs."""

from __future__ import annotations

import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.cube import Outcome, Workspace, create_layer, shard_checksum, write_shard
from catalog.errors import DataError, SetAside, StoreError
from catalog.grid import RegionGrid
from inventory_engine.lock import BusyError, Lease, hold, holder_of
from inventory_engine.receipts import STAGE_VERSIONS, Ledger, Receipt, fingerprint

GRID = RegionGrid(46.5, 10.5, 20.0, 32, 16, 0.0, 640.0, 2, 2)
NAME = "cube.zarr/2024/observations"


def write_unit(ledger: Ledger, *, value: int = 3) -> Receipt:
    """Write one shard, one file and the receipt that promises both."""
    shard = ledger.grid.shard(1, 0)
    create_layer(ledger.workspace, NAME, ledger.grid)
    checksum = write_shard(ledger.workspace, NAME, shard, np.full((32, 32), value, np.uint8))
    ledger.workspace.put("inventory/a.csv", b"a,b\n")
    digest = ledger.checksum("inventory/a.csv")
    assert digest is not None
    receipt = Receipt(
        "cube",
        "2024",
        shard.id,
        "f" * 64,
        {"scene-1": "1" * 64},
        Outcome(
            {f"{NAME}/{shard.id}": checksum, "inventory/a.csv": digest},
            (SetAside("scene-2", "unsupported-sensor", "GET https://x.org/a?sig=1 is none"),),
            {"looks": 2},
        ),
        tuple(shard.lonlat_boxes),
        ("2024-08-01", "2024-09-30"),
    )
    ledger.write(receipt)
    return receipt


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(Workspace(tmp_path / "work"), GRID)


def state(ledger: Ledger, *, name: str = "f" * 64) -> str:
    return ledger.state("cube", "2024", "r001c000", fingerprint=name)


def test_a_unit_without_receipt_is_new(ledger: Ledger):
    assert state(ledger) == "new"


def test_a_unit_with_its_outputs_is_skipped(ledger: Ledger):
    write_unit(ledger)
    assert state(ledger) == "skip"


@pytest.mark.parametrize("kind", ["raster-truncated", "asset-missing", "href-refused"])
def test_a_unit_that_could_not_use_a_file_is_tried_again(ledger: Ledger, kind: str):
    done = write_unit(ledger)
    fault = SetAside("scene-2", kind, "not to be had")
    ledger.write(replace(done, outcome=replace(done.outcome, set_aside=(fault,))))
    assert state(ledger) == "retry"


def test_other_inputs_make_it_recompute(ledger: Ledger):
    write_unit(ledger)
    assert state(ledger, name="e" * 64) == "recompute"


@pytest.mark.parametrize("victim", [f"{NAME}/c/1/0", "inventory/a.csv"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty", "delete"])
def test_a_damaged_output_is_never_taken_for_done(ledger: Ledger, victim: str, how: str):
    write_unit(ledger)
    path = ledger.workspace.path(victim)
    data = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    else:
        data[len(data) // 2] ^= 1
        kept = {"flip": bytes(data), "cut": bytes(data[:-1]), "empty": b""}[how]
        path.write_bytes(kept)
    assert state(ledger) == "recompute"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"properties": {}}', b"\xff\xfe"])
def test_a_receipt_that_cannot_be_read_counts_as_absent(ledger: Ledger, text: bytes):
    write_unit(ledger)
    ledger.workspace.put("records/cube/2024/r001c000.json", text)
    assert state(ledger) == "new"
    assert list(ledger.read_all()) == []


def test_a_failed_unit_is_tried_again_and_tells_no_secret(ledger: Ledger):
    receipt = write_unit(ledger)
    ledger.record(receipt, DataError("GET https://x.org/a?sig=secret1 is no raster", kind="x-y"))
    assert state(ledger) == "retry"
    text = (ledger.workspace.get("records/cube/2024/r001c000.json") or b"").decode()
    assert "secret1" not in text
    assert '"x-y"' in text
    assert ledger.outputs("cube", "2024", "r001c000") is None


def test_equal_work_leaves_equal_receipts(ledger: Ledger, tmp_path: Path):
    write_unit(ledger)
    other = Ledger(Workspace(tmp_path / "elsewhere"), GRID)
    time.sleep(0.01)
    write_unit(other)
    name = "records/cube/2024/r001c000.json"
    assert ledger.workspace.get(name) == other.workspace.get(name)


def test_a_receipt_is_a_valid_stac_item_and_reads_back(ledger: Ledger):
    receipt = write_unit(ledger)
    values = json.loads(ledger.workspace.get("records/cube/2024/r001c000.json") or b"")
    item = pystac.Item.from_dict(values)
    west, south, east, north = item.bbox or (0, 0, 0, 0)
    assert west < east
    assert south < north
    assert item.properties["start_datetime"] == "2024-08-01T00:00:00Z"
    back = ledger.read("cube", "2024", "r001c000")
    assert back is not None
    assert back.outcome.outputs == receipt.outcome.outputs
    assert back.outcome.set_aside[0].reason == "GET https://x.org/a is none"


def test_a_shard_is_checked_by_its_stored_object(ledger: Ledger):
    write_unit(ledger)
    shard = GRID.shard(1, 0)
    expected = shard_checksum(ledger.workspace, NAME, shard)
    assert ledger.checksum(f"{NAME}/{shard.id}") == expected
    assert ledger.checksum(f"{NAME}/r009c000") is None


@given(st.lists(st.text(min_size=1), min_size=2, max_size=6, unique=True), st.randoms())
def test_a_fingerprint_depends_on_the_inputs_but_not_on_their_order(inputs, random):
    shuffled = list(inputs)
    random.shuffle(shuffled)
    name = fingerprint("cube", {"a": 1}, inputs)
    assert name == fingerprint("cube", {"a": 1}, shuffled)
    assert name != fingerprint("cube", {"a": 1}, inputs[1:])
    assert name != fingerprint("cube", {"a": 2}, inputs)
    assert name != fingerprint("map", {"a": 1}, inputs)


def test_a_new_code_version_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch):
    before = fingerprint("cube", {}, [])
    monkeypatch.setitem(STAGE_VERSIONS, "cube", STAGE_VERSIONS["cube"] + 1)
    assert fingerprint("cube", {}, []) != before


# --- the lock ------------------------------------------------------------------------------------


def _try_to_hold(folder: str, start: float, kept_s: float, answers) -> None:
    time.sleep(max(0.0, start - time.time()))
    try:
        with hold(Workspace(folder)):
            answers.put("held")
            time.sleep(kept_s)
    except BusyError as error:
        answers.put(str(error))


@pytest.mark.parametrize("trial", range(5))
def test_of_four_runs_at_once_exactly_one_holds_the_workspace(tmp_path: Path, trial: int):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    start = time.time() + 0.2
    runs = [
        context.Process(target=_try_to_hold, args=(str(tmp_path), start, 0.5, answers))
        for _ in range(4)
    ]
    for run in runs:
        run.start()
    told = sorted(answers.get(timeout=20) for _ in runs)
    for run in runs:
        run.join(10)
    assert sum(answer == "held" for answer in told) == 1
    assert sum("already running" in answer for answer in told) == 3


def test_the_holder_is_named_and_gone_afterwards(tmp_path: Path):
    workspace = Workspace(tmp_path)
    with hold(workspace):
        found = holder_of(workspace)
        assert found is not None
        with pytest.raises(BusyError, match=f"process {found.pid}, since"), hold(workspace):
            pass
    assert holder_of(workspace) is None


def test_a_lease_on_an_object_store_has_one_holder():
    workspace = Workspace("memory:///")
    first, second = Lease(workspace, beat_s=0.1), Lease(workspace, beat_s=0.1)
    first.acquire()
    with pytest.raises(BusyError, match="already running"):
        second.acquire()
    first.check()
    first.release()
    second.acquire()
    second.release()


def test_a_lease_whose_holder_died_is_taken_over_and_the_old_one_is_fenced():
    workspace = Workspace("memory:///")
    dead, heir = Lease(workspace, beat_s=0.1), Lease(workspace, beat_s=0.1)
    dead.acquire()
    dead._stop.set()
    dead._thread.join()
    heir.acquire()
    assert not dead._put(dead._tag)
    dead._stop.clear()
    dead._renew()
    with pytest.raises(StoreError, match="took over"):
        dead.check()
    dead.release()
    heir.check()
    assert heir._read() is not None
    heir.release()
