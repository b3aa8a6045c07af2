"""The demonstration: a made-up region behind a real STAC server, mapped and scored.

The pipeline is the one that maps real regions, unchanged; only the scenes are made up.
"""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from catalog.cube import Workspace
from catalog.errors import SourceError, UsageError
from catalog.simulation import RegionSpec, SimulatedRegion, demo_spec, simulate_region
from inventory_engine.logs import MemoryWatch
from inventory_engine.pipeline import Show, Summary, run_pipeline
from inventory_engine.plan import open_region
from inventory_engine.scoring import SeasonScore, score_glaciers, score_season, true_area_km2
from inventory_engine.settings import Settings
from inventory_engine.settings_file import load_settings

__all__ = ["run_demo", "serve_items"]

_START_S = 30.0
_KEEPER = 'trap : INT TERM; "$@" & read -r _; kill $!; wait'
# ^ ends the server when our end of the pipe closes, however we end
_SEASON = ("07-01", "10-15")


def run_demo(
    out: Path, *, show: Show, spec: RegionSpec | None = None, ensemble: str = "default"
) -> tuple[Summary, Table]:
    """Make a region, map it, score it; what is done already is kept.

    Parameters
    ----------
    out
        Folder for everything: ``region``, ``workspace``, ``report``, ``truth``, ``mapped`` and
        ``summary.json``.
    show
        Where progress is told.
    spec
        The region; by default the engine's demonstration region.
    ensemble
        Who maps it.

    Returns
    -------
    Summary, Table
        What the run did, and the scores to print.
    """
    began = time.monotonic()
    spec = spec or demo_spec()
    out = out.resolve()
    with MemoryWatch() as memory:
        region = _simulate(spec, out / "region", show)
        with serve_items(region.items) as url:
            settings = load_settings(_write_settings(out, spec, url, ensemble=ensemble))
            summary = run_pipeline(settings, show=show)
        scores = _score(settings, region) if not summary.failed else {}
        facts = _summarise(settings, region, scores) if scores else {}
        if facts:
            _collect(out, settings, region)
    facts |= {
        "wall_s": round(time.monotonic() - began, 1),
        "peak_rss_gib": round(memory.peak_gib, 2),
    }
    text = json.dumps(facts, indent=1, allow_nan=False)
    Workspace(out).put("summary.json", text.encode() + b"\n")
    return summary, _table(facts)


def _simulate(spec: RegionSpec, folder: Path, show: Show) -> SimulatedRegion:
    advance = None

    def progress(_name: str, _done: int, total: int) -> None:
        nonlocal advance
        advance = advance or show.stage("region", total=total, skipped=0)
        advance()

    return simulate_region(spec, folder, progress=progress)


@contextmanager
def serve_items(items: Path) -> Iterator[str]:
    """Serve an item collection by ``rustac serve`` on a free loopback port.

    Yields
    ------
    str
        URL of the STAC API. The server ends with the block, and with this process.

    Raises
    ------
    UsageError
        Where rustac is not installed.
    SourceError
        Where it does not come up.
    """
    beside = Path(sys.executable).parent / "rustac"
    command = str(beside) if beside.exists() else shutil.which("rustac")
    if command is None:
        raise UsageError("the demonstration needs `rustac`; install the package's dependencies")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = [command, "serve", "--create-collections", "--addr", address, str(items)]
    process = subprocess.Popen(
        ["/bin/sh", "-c", _KEEPER, "keeper", *server],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_healthy(address)
        yield f"http://{address}"
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait(10)


def _wait_until_healthy(address: str) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, timeout=1)
        try:
            connection.request("GET", "/")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except (OSError, http.client.HTTPException):
            time.sleep(0.05)
        finally:
            connection.close()
    raise SourceError("the local STAC server did not start", kind="server-not-started")


def _write_settings(out: Path, spec: RegionSpec, url: str, *, ensemble: str) -> Path:
    collections = {"optical": ["sentinel-2-l2a"]}
    if spec.sar:
        collections["sar"] = ["sentinel-1-rtc"]
    if spec.dem:
        collections["dem"] = ["cop-dem-glo-30"]
    values = {
        "name": spec.name.lower(),
        "outlines": "region/reference.gpkg",
        "catalog": {"url": url, "collections": collections, "allowed": ["./region"]},
        "seasons": {
            s.label: {"start": f"{s.year}-{_SEASON[0]}", "end": f"{s.year}-{_SEASON[1]}"}
            for s in spec.seasons
        },
        "grid": {"resolution_m": 20, "margin_m": 500, "shard_px": 512, "chunk_px": 128},
        "model": {"ensemble": ensemble},
        "workspace": "workspace",
    }
    text = yaml.safe_dump(values, sort_keys=False)
    Workspace(out).put("region.yaml", text.encode())
    return out / "region.yaml"


def _score(settings: Settings, region: SimulatedRegion) -> dict[str, SeasonScore]:
    opened = open_region(settings)
    return {
        season: score_season(
            opened.workspace, season, opened.shards_of(season), classes=region.classes[season]
        )
        for season in settings.season_labels
    }


def _summarise(
    settings: Settings, region: SimulatedRegion, scores: dict[str, SeasonScore]
) -> dict[str, Any]:
    labels = settings.season_labels
    workspace = Workspace(settings.workspace)
    glaciers = score_glaciers(workspace, labels, region.truth)
    true = {s: true_area_km2(region.truth[s]) for s in labels}
    first, last = labels[0], labels[-1]
    told = workspace.get(f"change/{first}_{last}/summary.json") or b"{}"
    change = json.loads(told)
    return {
        "seasons": {
            s: {
                "iou": round(scores[s].iou, 4),
                "area_true_km2": round(true[s], 4),
                "area_mapped_km2": round(sum(g["area_mapped_km2"][s] or 0.0 for g in glaciers), 4),
            }
            for s in labels
        },
        "change": {
            "from": first,
            "to": last,
            "true_km2": round(true[last] - true[first], 4),
            "mapped_km2": change["area_change_km2"],
            "sigma_km2": change["area_change_sigma_km2"],
            "rate_percent_per_year": change["rate_percent_per_year"],
        },
        "glaciers": glaciers,
        "band_ratio_iou": {s: round(scores[s].band_ratio_iou, 4) for s in labels},
    }


def _collect(out: Path, settings: Settings, region: SimulatedRegion) -> None:
    """Put what a visitor wants to open into folders of its own."""
    workspace = Path(settings.workspace)
    wanted = {out / "report" / "index.html": workspace / "report" / "index.html"}
    for season in settings.season_labels:
        wanted[out / "truth" / f"{season}.gpkg"] = region.truth[season]
        mapped = workspace / "inventory" / season / "outlines.gpkg"
        wanted[out / "mapped" / f"{season}.gpkg"] = mapped
    for target, source in wanted.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _table(facts: dict[str, Any]) -> Table:
    table = Table(title="mapped against the truth", title_justify="left")
    for name in ("season", "IoU", "best Red/SWIR1", "true km²", "mapped km²"):
        table.add_column(name, justify="left" if name == "season" else "right")
    for label, season in facts.get("seasons", {}).items():
        table.add_row(
            label,
            f"{season['iou']:.3f}",
            f"{facts['band_ratio_iou'][label]:.3f}",
            f"{season['area_true_km2']:.2f}",
            f"{season['area_mapped_km2']:.2f}",
        )
    change = facts.get("change")
    if change:
        sigma, rate = change["sigma_km2"], change["rate_percent_per_year"]
        told = "change not available"
        if change["mapped_km2"] is not None:
            told = f"mapped change {change['mapped_km2']:+.2f} km²"
        told += f" ± {sigma:.2f}" if sigma is not None else ""
        told += f", {rate:+.2f} % per year" if rate is not None else ""
        table.caption = f"{told}; true change {change['true_km2']:+.2f} km²"
    return table
