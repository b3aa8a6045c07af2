"""What a worker does with one job: the stage's function, then the receipt. Nothing else writes.

A job is a JSON-ready dict; so is the answer, which never carries an array. The four kinds of error
are told apart here and nowhere else.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import psutil

from catalog.assets import AssetPolicy
from catalog.composites import build_cube_shard
from catalog.cube import Outcome, Workspace
from catalog.errors import EngineError, SourceError, StoreError, UsageError
from catalog.grid import RegionGrid, Shard
from catalog.sensors import Scene
from catalog.terrain import build_terrain_shard
from inventory_engine.logs import redact
from inventory_engine.receipts import Ledger, Receipt

if TYPE_CHECKING:
    from model_serving.ensemble import Ensemble
    from model_serving.runtimes import Runtime

__all__ = [
    "Job",
    "MapTaskMaker",
    "Task",
    "TaskMaker",
    "describe_fatal",
    "map_fingerprint",
    "pack_frame",
    "perform",
    "raise_fatal",
    "unpack_frame",
]

Job = dict[str, Any]
Task = Callable[[Job], Job]

_WAITS_S = (2.0, 8.0)
# ^ between the tries of a unit whose source did not answer; each read has its own retries below


@dataclass(frozen=True, slots=True)
class TaskMaker:
    """Builds the task of the stages that keep nothing between units."""

    workspace: Workspace
    grid: RegionGrid

    def __call__(self) -> Task:
        """Return the function that does one job."""
        ledger = Ledger(self.workspace, self.grid)
        return lambda job: perform(job, ledger, _WORK[job["stage"]])


@dataclass(frozen=True, slots=True)
class MapTaskMaker:
    """Builds the task of the map stage, which keeps the networks in memory between units."""

    workspace: Workspace
    grid: RegionGrid
    ensemble: str
    fingerprint: str
    """Of the ensemble and the runtime that the run was planned with."""
    runtime: Runtime

    def __call__(self) -> Task:
        """Return the function that does one job."""
        from model_serving.ensemble import load_ensemble
        from model_serving.inference import ShardMapper

        ensemble = load_ensemble(self.ensemble)
        found = map_fingerprint(ensemble, self.runtime)
        if found != self.fingerprint:
            raise UsageError(
                "this worker has another ensemble, runtime or processor type than the run was "
                f"planned with (found {found}, planned {self.fingerprint}); use like workers",
                kind="version-skew",
            )
        mapper = ShardMapper(self.workspace, ensemble, runtime=self.runtime)
        ledger = Ledger(self.workspace, self.grid)
        return lambda job: perform(
            job, ledger, lambda led, j: mapper.map(j["season"], _shard(led, j))
        )


def map_fingerprint(ensemble: Ensemble, runtime: Runtime) -> str:
    """Everything besides the cube that decides a map's bytes, as one readable line."""
    facts = runtime.fingerprint(brings_onnx=ensemble.brings_onnx)
    return json.dumps({"ensemble": ensemble.fingerprint} | facts, sort_keys=True)


def perform(job: Job, ledger: Ledger, work: Callable[[Ledger, Job], Outcome]) -> Job:
    """Do one job and write its receipt.

    Parameters
    ----------
    job
        See :meth:`inventory_engine.stages.Unit.job`.
    ledger
        Where receipts are written.
    work
        The stage's function.

    Returns
    -------
    dict
        ``key``, ``seconds``, ``rss_mib``, ``set_aside`` (a count), and one of ``failed`` (a kind
        and a reason: recorded, the run goes on) and ``fatal`` (the run must stop), or neither.
    """
    began = time.perf_counter()
    receipt = _draft(job)
    answer: Job = {"key": job["key"], "set_aside": 0, "failed": None, "fatal": None}
    try:
        outcome = _with_patience(lambda: work(ledger, job))
        done = _draft(job, outcome)
        ledger.write(done)
        answer["set_aside"] = len(outcome.set_aside)
    except (StoreError, UsageError) as error:
        answer["fatal"] = describe_fatal(error)
    except Exception as error:
        failed = ledger.record(receipt, error).failed
        if failed is None:
            raise
        answer["failed"] = {"kind": failed.kind, "reason": redact(failed.reason)}
        if not isinstance(error, EngineError):
            answer["trace"] = redact("".join(traceback.format_exception(error)))
    answer["seconds"] = round(time.perf_counter() - began, 3)
    answer["rss_mib"] = psutil.Process().memory_info().rss >> 20
    return answer


def _with_patience(work: Callable[[], Outcome]) -> Outcome:
    for wait in _WAITS_S:
        try:
            return work()
        except SourceError:
            time.sleep(wait)
    return work()


def describe_fatal(error: EngineError) -> dict[str, str]:
    """Put an error that must stop the run into an answer."""
    message = redact(str(error))
    return {"type": type(error).__name__, "kind": error.kind, "message": message}


def raise_fatal(fatal: dict[str, str]) -> None:
    """Raise in the driver what stopped a worker.

    Raises
    ------
    UsageError, StoreError
        As it was there.
    """
    kinds: dict[str, type[EngineError]] = {"UsageError": UsageError}
    raise kinds.get(fatal["type"], StoreError)(fatal["message"], kind=fatal["kind"])


def _draft(job: Job, outcome: Outcome | None = None) -> Receipt:
    return Receipt(
        stage=job["stage"],
        season=job["season"],
        unit=job["unit"],
        fingerprint=job["fingerprint"],
        inputs=job["inputs"],
        outcome=outcome or Outcome({}),
        boxes=tuple(tuple(box) for box in job["boxes"]),
        interval=tuple(job["interval"]) if job["interval"] else None,
    )


def _shard(ledger: Ledger, job: Job) -> Shard:
    row, col = job["payload"]["shard"]
    return _grid(ledger, job).shard(row, col)


def _grid(ledger: Ledger, job: Job) -> RegionGrid:
    return ledger.grid.coarsened(job["payload"]["multiple"])


def _scenes(values: list[dict[str, Any]] | None) -> list[Scene] | None:
    return None if values is None else [Scene.from_dict(v) for v in values]


def _terrain(ledger: Ledger, job: Job) -> Outcome:
    payload = job["payload"]
    return build_terrain_shard(
        ledger.workspace,
        _shard(ledger, job),
        dem=_scenes(payload["dem"]) or [],
        policy=AssetPolicy.from_dict(payload["policy"]),
    )


def _cube(ledger: Ledger, job: Job) -> Outcome:
    payload = job["payload"]
    return build_cube_shard(
        ledger.workspace,
        job["season"],
        _shard(ledger, job),
        optical=_scenes(payload["optical"]) or [],
        sar=_scenes(payload["sar"]),
        policy=AssetPolicy.from_dict(payload["policy"]),
        strategy=payload["strategy"],
    )


def pack_frame(frame: gpd.GeoDataFrame) -> str:
    """Put rows of the reference inventory into a job; exact, geometry as hexadecimal WKB."""
    plain = frame.drop(columns="geometry").copy()
    plain["geometry"] = frame.geometry.to_wkb(hex=True)
    return str(plain.to_json(orient="split", date_format="iso", double_precision=15))


def unpack_frame(text: str) -> gpd.GeoDataFrame:
    """Take rows of the reference inventory out of a job; the inverse of :func:`pack_frame`."""
    values = json.loads(text)
    frame = gpd.pd.DataFrame(values["data"], columns=values["columns"])
    shapes = gpd.GeoSeries.from_wkb(frame.pop("geometry"))
    return gpd.GeoDataFrame(frame, geometry=shapes, crs=4326)


def _outlines(ledger: Ledger, job: Job) -> Outcome:
    from change_detection.divides import GlacierBatch
    from change_detection.outlines import trace_batch

    payload = job["payload"]
    batch = dict(payload["batch"])
    batch["ref_ids"] = tuple(batch["ref_ids"])
    start, end = job["interval"]
    return trace_batch(
        ledger.workspace,
        job["season"],
        GlacierBatch(**batch),
        frame=unpack_frame(payload["frame"]),
        grid=_grid(ledger, job),
        growth_m=payload["growth_m"],
        season_window=(start, end),
        min_area_km2=payload["min_area_km2"],
        area_scale=payload["area_scale"],
    )


_WORK: dict[str, Callable[[Ledger, Job], Outcome]] = {
    "terrain": _terrain,
    "cube": _cube,
    "outlines": _outlines,
}
