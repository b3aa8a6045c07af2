"""One shard of a season's cube: the engine against odc-stac and against plain reads.

Each job assembles the same shard, from six bands and a mask on each date, in as many processes at
a time as there are cores, each process on its own, as the engine's workers are. Jobs take turns
round by round, so that a noisy machine slows all of them. The floor is what none of them can do
without: rasterio's warped reads of the same rasters. Then results are compared::

    python benchmarks/cube.py           # some ten minutes; 1.1 GB of rasters, kept for later
    python benchmarks/cube.py --quick
    python benchmarks/cube.py --http    # rasters over loopback HTTP; counts what is fetched

Memory is that of one process, all libraries included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, ratio, spread, table

_FLOOR, _PEER = "rasterio, reads", "odc-stac"
_PACKAGES = ("rasterio", "stackstac", "odc-stac", "odc-loader", "zarr", "numpy")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_NEEDED_GIB = 2.0
# ^ of memory for each process: odc-stac holds all dates of the shard
_LEGEND = """
s: wall seconds of all processes together. MPix/s: pixels of all bands, masks and dates on the grid,
of all processes. / floor, / odc-stac: throughput over that of rasterio's reads, and over that of
the same work by odc-stac, median of the ratios within a round: more is better."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does."""

    job: str
    season: str
    """File with the season, see :class:`made_scenes.Season`."""
    prefix: str
    """Where the rasters are: a folder, or a URL."""
    made_at: str
    """Folder that the season names."""
    out: str
    """Folder for the workspace; whatever is in it is removed."""

    def do(self) -> dict[str, float]:
        """Run the job in this process."""
        from cube_jobs import JOBS, measured

        season, policy = self.moved(), self.policy()
        shutil.rmtree(self.out, ignore_errors=True)
        return asdict(measured(lambda: JOBS[self.job](season, Path(self.out), policy)))

    def policy(self) -> Any:
        """Which rasters may be opened."""
        from catalog.assets import AssetPolicy

        return AssetPolicy((self.prefix.removeprefix("http://"),))

    def moved(self) -> Any:
        """Season whose rasters are where they are read from."""
        from made_scenes import Season

        values = json.loads(Path(self.season).read_text())
        season = Season(**(values | {"shard": tuple(values["shard"])}))
        return season.moved(self.made_at, self.prefix)


def run_together(tasks: Sequence[Task]) -> list[dict[str, float]]:
    """Run tasks at the same time, each in a process of its own with one thread."""
    environment = os.environ | dict.fromkeys(_THREADS, "1")
    with ExitStack() as stack:
        files = [
            Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cost.json" for _ in tasks
        ]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--task", json.dumps(asdict(task)), str(file)],
                env=environment,
            )
            for task, file in zip(tasks, files, strict=True)
        ]
        for process, task in zip(processes, tasks, strict=True):
            if process.wait():
                raise SystemExit(f"{task.job} failed, see above")
        return [json.loads(file.read_text()) for file in files]


def compare(engine: Task, peer: Task) -> list[str]:
    """Say how far results agree; stops where they do not.

    The engine's reads against rasterio's with an exact warp, and what the engine and odc-stac
    wrote, away from the rim of the shard. odc-stac lets GDAL approximate positions to an eighth of
    a pixel.
    """
    from cube_jobs import differences

    found = differences(
        engine.moved(), engine.policy(), peer=Path(peer.out), engine=Path(engine.out)
    )
    lines, failed = [], []
    for what, value, limit in found:
        lines.append(f"{what}: {value:.3g} (at most {limit:g})")
        if value > limit:
            failed.append(lines[-1])
    if failed:
        raise SystemExit("\n".join(["results differ:", *failed]))
    return lines


def _jobs(only: Sequence[str]) -> list[str]:
    from cube_jobs import JOBS

    found = [name for name in JOBS if not only or name == _FLOOR or any(o in name for o in only)]
    if importlib.util.find_spec("odc") and importlib.util.find_spec("odc.stac"):
        return found
    print("odc-stac is not installed: left out")
    return [name for name in found if not name.startswith(_PEER)]


def _rows(
    rounds: dict[str, list[list[dict[str, float]]]], megapixels: float
) -> Iterator[list[str]]:
    seconds = {name: [max(c["seconds"] for c in r) for r in all_] for name, all_ in rounds.items()}
    for name, runs in rounds.items():
        peer = "odc-stac, reads" if name.endswith("reads") else _PEER
        rates = [megapixels * len(r) / s for r, s in zip(runs, seconds[name], strict=True)]
        yield [
            name,
            spread(seconds[name]).text(),
            f"{float(np.median([np.mean([c['cpu_s'] for c in r]) for r in runs])):.1f}",
            f"{float(np.median(rates)):.1f}",
            f"{ratio(seconds[_FLOOR], seconds[name]):.2f}",
            f"{ratio(seconds[peer], seconds[name]):.2f}" if peer in seconds else "-",
            f"{max(c['peak_mib'] for r in runs for c in r):.0f}",
        ]


@contextmanager
def _source(folder: Path, *, http: bool) -> Iterator[str]:
    if not http:
        yield str(folder)
        return
    from range_server import served

    with served(folder) as url:
        yield url


def _fetched(prefix: str) -> tuple[int, float]:
    from range_server import sent

    return sent(prefix) if prefix.startswith("http") else (0, 0.0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--dates", type=int, default=20, help="scenes of the season")
    add("--shard", type=int, default=2048, help="edge of the shard, pixels of 10 m")
    add("--chunk", type=int, default=512, help="edge of a chunk of the cube")
    add("--block", type=int, default=1024, help="edge of a block of a raster")
    add("--workers", type=int, help="processes at a time; one a core where not told")
    add("--rounds", type=int, default=5, help="how often each job is timed")
    add("--only", nargs="+", default=[], metavar="NAME", help="words of the jobs to keep")
    add("--http", action="store_true", help="read over loopback HTTP instead of from the disk")
    add("--quick", action="store_true", help="6 dates, 1024 px, two rounds")
    add("--cache", type=Path, default=Path(tempfile.gettempdir()) / "cube-benchmark",
        help="where rasters are kept")  # fmt: skip
    add("--json", type=Path, help="write all numbers to this file")
    return parser


def _workers(wanted: int | None) -> int:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    room = int(psutil.virtual_memory().available / 2**30 / _NEEDED_GIB)
    return wanted or max(1, min(cores or 1, room))


def main() -> None:
    """Measure, compare, and print a table."""
    if sys.argv[1:2] == ["--task"]:
        Path(sys.argv[3]).write_text(json.dumps(Task(**json.loads(sys.argv[2])).do()))
        return
    arguments = _parser().parse_args()
    if arguments.quick:
        arguments.dates, arguments.shard, arguments.rounds = 6, 1024, 2
    from made_scenes import BANDS, made_season

    season = made_season(arguments.cache, dates=arguments.dates, shard_px=arguments.shard,
                         chunk_px=arguments.chunk, block_px=arguments.block)  # fmt: skip
    workers = _workers(arguments.workers)
    megapixels = arguments.shard**2 * arguments.dates * (len(BANDS) + 1) / 1e6
    facts = machine(_PACKAGES)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"{arguments.shard} px, {arguments.dates} dates of {len(BANDS)} bands and a mask:"
          f" {megapixels:.0f} MPix; rasters of {season.stored_mib:.0f} MiB in blocks of"
          f" {arguments.block} px; {workers} processes")  # fmt: skip
    names = _jobs(arguments.only)
    rounds: dict[str, list[list[dict[str, float]]]] = {name: [] for name in names}
    fetched: dict[str, tuple[int, float]] = {}
    rng = np.random.default_rng(0)
    made_at = arguments.cache.absolute() / season.folder
    with tempfile.TemporaryDirectory() as out, _source(made_at, http=arguments.http) as prefix:

        def task(name: str, number: int = 0) -> Task:
            listing = str(made_at / "season.json")
            return Task(name, listing, prefix, str(made_at), f"{out}/{name}-{number}")

        run_together([task(_FLOOR)])
        # ^ brings the rasters into the memory of the system
        for index in range(arguments.rounds):
            for name in rng.permutation(names).tolist():
                print(f"round {index + 1} of {arguments.rounds}: {name} ...", file=sys.stderr)
                _fetched(prefix)
                rounds[name].append(run_together([task(name, n) for n in range(workers)]))
                fetched[name] = _fetched(prefix)
        both = {"engine", _PEER} <= set(names)
        agreement = compare(task("engine"), task(_PEER)) if both else []
    headers = ("job", "s", "CPU s each", "MPix/s", "/ floor", "/ odc-stac", "peak MiB")
    print(f"\nmedian of {arguments.rounds} rounds [10th-90th percentile]\n")
    print(table(headers, list(_rows(rounds, megapixels))))
    print(_LEGEND)
    if arguments.http:
        print()
        for name, (requests, size) in fetched.items():
            print(f"{name}: {requests / workers:.0f} requests and {size / workers:.0f} MiB each")
    print("\n".join(["", *agreement]))
    if arguments.json:
        values = {"machine": facts, "workers": workers, "rounds": rounds, "fetched": fetched}
        arguments.json.write_text(json.dumps(values, indent=1))


if __name__ == "__main__":
    main()
