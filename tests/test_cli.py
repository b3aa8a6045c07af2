"""The command line: exit codes, what is told, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import COMMAND, Small
from rich.console import Console

from catalog.cube import Workspace
from inventory_engine import __version__
from inventory_engine.display import RichShow
from inventory_engine.lock import hold

Engine = Callable[..., subprocess.Popen[str]]


def call(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def told(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join((result.stdout + result.stderr).split())


def test_the_version_is_told():
    result = call("--version")
    assert result.returncode == 0
    assert result.stdout.strip() == f"inventory-engine {__version__}"


def test_every_command_explains_itself():
    commands = ["demo", "run", "plan", "status", "change", "train", "simulate", "init", "report"]
    listing = told(call("--help"))
    for name in commands:
        assert name in listing


def test_init_writes_an_example_once(tmp_path: Path):
    (tmp_path / "mine.gpkg").write_bytes(b"")
    path = tmp_path / "region.yaml"
    assert call("init", path, "--outlines", "mine.gpkg").returncode == 0
    assert yaml.safe_load(path.read_text())["outlines"] == "mine.gpkg"
    again = call("init", path)
    assert again.returncode == 2
    assert "exists already" in told(again)


def test_a_region_that_nobody_knows_cannot_be_simulated(tmp_path: Path):
    result = call("simulate", tmp_path / "out", "--region", "atlantis")
    assert result.returncode == 2
    assert "known are demo, TRAIN00" in told(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_step_tells_how_far_it_is_with_or_without_a_terminal(terminal: bool):
    written = io.StringIO()
    with RichShow(Console(file=written, force_terminal=terminal, width=100)) as show:
        tell = show.counter()
        for done in range(6):
            tell("members", done, 5)
        show.counter("region")("optical 2018 1", 1, 2)
    text = written.getvalue()
    if terminal:
        assert "5/5" in text
        assert "1/2" in text
    else:
        assert text.splitlines() == ["members: 5 to do", "region: 2 to do"]


@pytest.mark.parametrize("command", ["run", "plan", "status", "change", "report"])
def test_bad_settings_stop_before_any_work_with_code_2(small: Small, tmp_path: Path, command: str):
    path = small.settings(tmp_path, colour="red")
    result = call(command, path)
    assert result.returncode == 2
    assert "colour: unknown key" in told(result)
    assert "Traceback" not in told(result)
    assert not (tmp_path / "work").exists()


def test_a_missing_settings_file_is_code_2_and_points_to_init(tmp_path: Path):
    result = call("run", tmp_path / "nothing.yaml")
    assert result.returncode == 2
    assert "inventory-engine init" in told(result)


def test_outlines_that_cannot_be_read_are_code_2(small: Small, tmp_path: Path):
    bad = tmp_path / "bad.gpkg"
    bad.write_bytes(b"not a database")
    result = call("run", small.settings(tmp_path, outlines=str(bad)))
    assert result.returncode == 2
    assert "bad.gpkg" in told(result).replace(" ", "")
    # ^ a long path is broken over two lines


def test_an_ensemble_or_a_runtime_that_cannot_map_this_grid_is_code_2(small: Small, tmp_path: Path):
    trained_for = {"model": {"ensemble": "default"}}
    result = call("run", small.settings(tmp_path / "a", **trained_for))
    assert result.returncode == 2
    assert "has pixels of 40 m, but ensemble default was trained for 10 to 30 m" in told(result)
    model = {"ensemble": str(small.ensemble), "precision": "bfloat16"}
    result = call("run", small.settings(tmp_path / "b", model=model))
    assert result.returncode == 2
    assert "float32 only" in told(result)
    model = {"ensemble": str(small.ensemble), "runtime": "quick"}
    result = call("run", small.settings(tmp_path / "c", model=model))
    assert result.returncode == 2
    assert "runtime" in told(result)
    assert not list(tmp_path.glob("*/work"))


def test_the_doctor_says_what_runs_here():
    result = call("doctor")
    assert result.returncode == 0
    assert "used where model.runtime is auto" in told(result)


def test_a_catalogue_that_does_not_answer_is_code_4(small: Small, tmp_path: Path):
    result = call("run", small.settings(tmp_path, url="http://127.0.0.1:9/stac"))
    assert result.returncode == 4
    assert "the same command goes on" in told(result)
    assert "Traceback" not in told(result)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workspace_that_cannot_be_written_is_code_4(small: Small, tmp_path: Path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    result = call("run", small.settings(tmp_path, workspace=str(closed / "work")))
    assert result.returncode == 4


def test_a_workspace_under_a_file_is_code_4_and_names_it(small: Small, tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = call("run", small.settings(tmp_path, workspace="file/work"))
    assert result.returncode == 4
    assert "file/work" in told(result).replace(" ", "")  # a long path is broken over lines


def test_a_second_run_leaves_with_code_0_and_says_who_is_at_it(small: Small, tmp_path: Path):
    path = small.settings(tmp_path)
    with hold(Workspace(tmp_path / "work")):
        result = call("run", path)
    assert result.returncode == 0
    assert "already running" in told(result)
    assert f"process {os.getpid()}" in told(result)
    assert not (tmp_path / "work" / "records").exists()


@pytest.mark.slow
def test_a_run_with_a_failed_unit_is_code_3_and_the_next_one_repairs_it(
    small: Small, tmp_path: Path
):
    path = small.settings(tmp_path)
    assert call("run", path).returncode == 0
    stored = tmp_path / "work" / "cube.zarr" / "2024" / "optical" / "c" / "0" / "0" / "0"
    good = stored.read_bytes()
    # A folder stands where the shard belongs: this unit cannot be written or read.
    stored.unlink()
    stored.mkdir()
    result = call("run", path)
    assert result.returncode in {3, 4}
    stored.rmdir()
    assert call("run", path).returncode == 0
    assert stored.read_bytes() == good


@pytest.mark.slow
def test_status_counts_what_is_done(small: Small, tmp_path: Path):
    path = small.settings(tmp_path)
    before = call("status", path)
    assert before.returncode == 2
    assert "nothing was run" in told(before)
    assert call("run", path).returncode == 0
    after = told(call("status", path))
    assert "cube" in after
    assert "no run is going on" in after
    change = call("change", path, "--from", "2018", "--to", "2024")
    assert change.returncode == 0
    assert "2018 to 2024: " in told(change)
    assert "glaciers compared" in told(change)
    backwards = call("change", path, "--from", "2024", "--to", "2018")
    assert backwards.returncode == 2
    assert "an earlier and a later season" in told(backwards)
    assert call("report", path).returncode == 0
    again = call("run", path, "--no-search")
    assert again.returncode == 0
    other = path.read_text().replace("2024-", "2023-")
    path.write_text(other)
    elsewhere = call("run", path, "--no-search")
    assert elsewhere.returncode == 2
    assert "the search of another catalogue, place or time is kept for" in told(elsewhere)
    path.write_text(other.replace("2023-", "2024-"))
    unknown = call("change", path, "--from", "1999")
    assert unknown.returncode == 2
    assert "known are 2018, 2024" in told(unknown)


@pytest.mark.slow
def test_the_log_of_a_run_is_json_lines_without_secrets(small: Small, tmp_path: Path):
    path = small.settings(tmp_path)
    secret = "canary-9876543210"
    result = call("run", path, env={**os.environ, "MY_SECRET_TOKEN": secret})
    assert result.returncode == 0
    text = (tmp_path / "work" / "runs" / "0001.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[0]["event"] == "started"
    assert lines[-1]["event"] == "finished"
    units = [line for line in lines if line["event"] == "unit"]
    assert all(line["seconds"] >= 0 and line["rss_mib"] > 0 for line in units)
    everything = b"".join(p.read_bytes() for p in (tmp_path / "work").rglob("*") if p.is_file())
    assert secret.encode() not in everything


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("address", ["serial", "local"])
def test_a_stopped_run_ends_within_10_s_with_code_4_and_leaves_no_process(
    small: Small, tmp_path: Path, engine: Engine, number: int, address: str
):
    compute = {
        "dask": {"address": address, "workers": 1},
        "ray": {"address": address, "workers": 1},
    }
    path = small.settings(tmp_path, compute=compute)
    process = engine("run", path)
    records = tmp_path / "work" / "records"
    deadline = time.monotonic() + 120
    while not list(records.rglob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    family = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(number)
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - began < 10
    assert process.returncode == 4
    assert "goes on from here" in " ".join(output.split())
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert call("run", small.settings(tmp_path)).returncode == 0
