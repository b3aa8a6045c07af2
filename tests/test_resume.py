"""A run that is killed at any instant and started again ends with the bytes of an unbroken run."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Small
from servers import stac_server

pytestmark = pytest.mark.slow

PRODUCTS = ("cube.zarr", "map.zarr", "inventory", "change", "report", "records")
Engine = Callable[..., subprocess.Popen[str]]


def products(folder: Path) -> dict[str, str]:
    """Checksum of every product and receipt of a workspace, by name."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for name in PRODUCTS
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and not path.name.endswith(".partial")
    }


def stage_reached(folder: Path) -> str:
    """Stage of the newest receipt."""
    records = [p for p in (folder / "records").rglob("*.json") if p.is_file()]
    newest = max(records, key=lambda p: p.stat().st_mtime_ns, default=None)
    return newest.relative_to(folder / "records").parts[0] if newest else "start"


def run_to_the_end(engine: Engine, path: Path) -> None:
    process = engine("run", path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def kill_group_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """SIGKILL the driver and all it started; False where it had ended before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        return True
    return False


def kill_and_resume(
    small: Small, engine: Engine, tmp_path: Path, *, kills: int, seed: int, compute: dict
) -> tuple[dict[str, str], dict[str, str], Counter[str]]:
    """Products of an unbroken run, of a killed and resumed one, and where the kills fell."""
    with stac_server(small.region.items) as url:
        whole = small.settings(tmp_path / "whole", url, compute=compute)
        began = time.monotonic()
        run_to_the_end(engine, whole)
        length = time.monotonic() - began
        expected = products(tmp_path / "whole" / "work")
        chance = random.Random(seed)
        reached: Counter[str] = Counter()
        result = expected
        done = trial = 0
        while done < kills:
            folder = tmp_path / f"broken-{trial}"
            path = small.settings(folder, url, compute=compute)
            trial += 1
            for _ in range(min(4, kills - done)):
                # Each life is a random part of a whole run, so the kills spread over all stages.
                if not kill_group_after(engine("run", path), chance.uniform(0.25, 0.9) * length):
                    break
                reached[stage_reached(folder / "work")] += 1
                done += 1
            run_to_the_end(engine, path)
            result = products(folder / "work")
            if result != expected:
                break
    return expected, result, reached


def differing(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    names = expected.keys() | found.keys()
    return sorted(name for name in names if expected.get(name) != found.get(name))


SERIAL = {"dask": {"address": "serial"}, "ray": {"address": "serial"}}
LOCAL = {"dask": {"address": "local", "workers": 2}, "ray": {"address": "local", "workers": 2}}


def test_a_killed_and_resumed_run_leaves_the_bytes_of_an_unbroken_one(
    small: Small, engine: Engine, tmp_path: Path
):
    expected, found, reached = kill_and_resume(
        small, engine, tmp_path, kills=3, seed=1, compute=SERIAL
    )
    assert len(expected) > 40
    assert differing(expected, found) == []
    assert reached.total() == 3


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_twenty_kills_over_all_stages_lose_and_change_nothing(
    small: Small, engine: Engine, tmp_path: Path, record_property: Callable[[str, object], None]
):
    expected, found, reached = kill_and_resume(
        small, engine, tmp_path, kills=20, seed=2026, compute=SERIAL
    )
    lost = differing(expected, found)
    record_property(
        "kills", f"{reached.total()}, newest receipt {dict(reached)}, files lost {len(lost)}"
    )
    assert lost == []
    assert reached.total() == 20


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_kills_with_workers_on_dask_and_ray_lose_and_change_nothing(
    small: Small, engine: Engine, tmp_path: Path
):
    expected, found, reached = kill_and_resume(
        small, engine, tmp_path, kills=4, seed=7, compute=LOCAL
    )
    assert differing(expected, found) == []
    assert reached.total() == 4


def test_workers_on_dask_and_ray_leave_the_bytes_of_a_serial_run(
    small: Small, engine: Engine, tmp_path: Path
):
    with stac_server(small.region.items) as url:
        for name, compute in (("serial", SERIAL), ("local", LOCAL)):
            run_to_the_end(engine, small.settings(tmp_path / name, url, compute=compute))
    serial, local = (products(tmp_path / name / "work") for name in ("serial", "local"))
    assert len(serial) > 40
    assert differing(serial, local) == []
