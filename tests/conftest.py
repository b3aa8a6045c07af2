"""What the engine's tests share: a small made-up region, a small ensemble, settings for them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ensembles import write_ensemble
from servers import stac_server

from catalog.simulation import RegionSpec, SeasonSpec, SimulatedRegion, simulate_region
from inventory_engine.pipeline import run_pipeline
from inventory_engine.settings_file import load_settings

COMMAND = [sys.executable, "-m", "inventory_engine.cli"]


SMALL = RegionSpec(
    name="SMALL",
    seed=11,
    style="alpine",
    lon=-29.43,
    lat=46.55,
    size_km=4.0,
    seasons=(
        SeasonSpec("2018", 2018, 0.0, 2, 0.1, 0.1),
        SeasonSpec("2024", 2024, 80.0, 2, 0.1, 0.1),
    ),
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long chaos tests to those who ask for them by their marker."""
    if "chaos" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("chaos"):
                item.add_marker(
                    pytest.mark.skip(reason="full counts and process kills: run with -m chaos")
                )


@dataclass(frozen=True)
class Small:
    """A small region, and how to describe it to the engine."""

    region: SimulatedRegion
    ensemble: Path

    def settings(self, folder: Path, url: str | None = None, **changes: object) -> Path:
        """Write a settings file for the region into a folder; returns its path."""
        values: dict[str, object] = {
            "name": "small",
            "outlines": str(self.region.reference),
            "catalog": {
                "url": url or str(self.region.items),
                "collections": {
                    "optical": ["sentinel-2-l2a"],
                    "sar": ["sentinel-1-rtc"],
                    "dem": ["cop-dem-glo-30"],
                },
                "allowed": [str(self.region.out)],
            },
            "seasons": {
                "2018": {"start": "2018-07-01", "end": "2018-10-15"},
                "2024": {"start": "2024-07-01", "end": "2024-10-15"},
            },
            "grid": {"resolution_m": 40, "margin_m": 100, "shard_px": 64, "chunk_px": 32},
            "model": {"ensemble": str(self.ensemble)},
            "workspace": "work",
            "compute": {"dask": {"address": "serial"}, "ray": {"address": "serial"}},
        }
        values |= changes
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "region.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return path


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A made-up region of 4 km with two seasons, and an untrained ensemble."""
    root = tmp_path_factory.mktemp("small")
    return Small(
        simulate_region(SMALL, root / "region"), write_ensemble(root / "ensemble", folds=3, seeds=1)
    )


@pytest.fixture(scope="session")
def finished(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run over the small region; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("finished")
    summary = run_pipeline(load_settings(small.settings(folder)))
    assert not summary.failed
    return folder


@pytest.fixture
def stac(small: Small) -> Iterator[str]:
    """The small region behind a real STAC API."""
    with stac_server(small.region.items) as url:
        yield url


@pytest.fixture
def engine() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command line in a process group of its own; ends what is left."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,  # type: ignore[call-overload]
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what tests measured, and how many met real data: a run without must not look like one."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")
    counts = {
        outcome: sum(
            "real_data" in report.keywords for report in terminalreporter.stats.get(key, [])
        )
        for outcome, key in (("passed", "passed"), ("failed", "failed"), ("skipped", "skipped"))
    }
    told = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    terminalreporter.write_line(f"real-data tests: {told}")
    rows = {
        outcome: {
            row[1].upper()
            for report in terminalreporter.stats.get(outcome, [])
            if (row := re.search(r"::test_([sacdgmzv]\d+)_", getattr(report, "nodeid", "")))
        }
        for outcome in ("passed", "failed", "error")
    }
    if rows["passed"]:
        broken = rows["failed"] | rows["error"]
        held = sorted(rows["passed"] - broken, key=lambda row: (row[0], int(row[1:])))
        terminalreporter.write_line(
            f"rows of the fault matrix: {len(held)} held ({' '.join(held)}), "
            f"{len(broken)} broken{' (' + ' '.join(sorted(broken)) + ')' if broken else ''}"
        )
