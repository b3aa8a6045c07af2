"""What a worker does with one job: the stage's function, then the receipt. Nothing else writes.

A job is a JSON-ready dict; so is the answer, which never carries an array. The four kinds of error
are told apart here and nowhere else.
"""

from __future__ import annotations

import io
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import geopandas as gpd
import psutil

from catalog.assets import AssetPolicy
from catalog.best_scene import GlacierOrders
from catalog.composites import build_cube_shard
from catalog.coregistration import build_shift
from catalog.cube import Outcome, Workspace, terrain_name
from catalog.errors import DataError, EngineError, SourceError, StoreError, UsageError
from catalog.extra_layers import build_layer_shard
from catalog.grid import RegionGrid, Shard
from catalog.illumination import build_illumination_shard, terrain_shadow
from catalog.saved_ranking import build_ranking, read_rankings
from catalog.scenes import Scene, band_from_dict
from catalog.sun import Sun, SunOver
from catalog.terrain import build_terrain_shard
from inventory_engine.logs import redact
from inventory_engine.receipts import Ledger, Receipt

if TYPE_CHECKING:
    from change_detection.divides import GlacierBatch
    from model_serving.ensemble import Ensemble
    from model_serving.runtimes import Runtime

__all__ = [
    "OUTLINES",
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

OUTLINES = "reference.parquet"
"""Outlines of the reference inventory, for workers that need all of them."""

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


def _layers(ledger: Ledger, job: Job) -> Outcome:
    payload = job["payload"]
    return build_layer_shard(
        ledger.workspace,
        job["season"],
        _shard(ledger, job),
        rasters=[band_from_dict(values) for values in payload["rasters"]],
        policy=AssetPolicy.from_dict(payload["policy"]),
    )


@lru_cache(maxsize=1)
def _reference(url: str, fingerprint: str) -> gpd.GeoDataFrame:
    """Reference outlines of a workspace; read once by each worker."""
    del fingerprint
    data = Workspace(url).get(OUTLINES)
    if data is None:
        raise StoreError(f"there is no {OUTLINES} in {url}; run the engine again")
    return gpd.read_parquet(io.BytesIO(data))


def _shifts(ledger: Ledger, job: Job) -> Outcome:
    payload = job["payload"]
    return build_shift(
        ledger.workspace,
        job["season"],
        Scene.from_dict(payload["scene"]),
        references=_scenes(payload["references"]) or [],
        outlines=_reference(
            str(ledger.workspace.local or ledger.workspace.url), payload["outlines"]
        ),
        grid=_grid(ledger, job),
        policy=AssetPolicy.from_dict(payload["policy"]),
    )


def _ranking(ledger: Ledger, job: Job) -> Outcome:
    payload, workspace = job["payload"], ledger.workspace
    lit = workspace.has_array(terrain_name(ledger.grid))
    return build_ranking(
        workspace,
        job["season"],
        job["unit"],
        outlines=unpack_frame(payload["frame"]),
        others=unpack_frame(payload["others"]),
        grid=ledger.grid,
        scenes=_scenes(payload["scenes"]) or [],
        policy=AssetPolicy.from_dict(payload["policy"]),
        shadow=terrain_shadow(workspace, ledger.grid) if lit else None,
    )


def _orders(ledger: Ledger, job: Job) -> GlacierOrders | None:
    """In which order the looks at each glacier near a shard are taken."""
    payload = job["payload"]
    if "glaciers" not in payload:
        return None
    frame = unpack_frame(payload["glaciers"]).sort_values("ref_id", ignore_index=True)
    ranks: dict[str, dict[tuple[str, str], int]] = {ref_id: {} for ref_id in frame["ref_id"]}
    missing = [
        batch
        for batch in payload["batches"]
        if ledger.outputs("scenes", job["season"], batch) is None
    ]
    if missing:
        raise DataError(
            f"the scenes of {len(missing)} groups of glaciers near this shard could not be ranked "
            f"({', '.join(missing[:3])}), see the failed units of the stage `scenes`",
            kind="incomplete",
        )
    if payload["batches"]:
        ranked = read_rankings(ledger.workspace, job["season"], batches=payload["batches"])
        for row in ranked.itertuples():
            if row.ref_id in ranks:
                ranks[str(row.ref_id)][str(row.day), str(row.sensor)] = int(row.rank)  # type: ignore[arg-type]
    shapes = frame.geometry.to_crs(ledger.grid.proj4)
    return GlacierOrders(tuple(frame["ref_id"]), tuple(shapes), tuple(ranks.values()))


def _illumination(ledger: Ledger, job: Job) -> Outcome:
    suns = job["payload"]["suns"]
    looks = [SunOver(day, tuple(box), Sun(*sun)) for day, box, sun in suns]
    return build_illumination_shard(
        ledger.workspace, job["season"], _shard(ledger, job), looks=looks
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
        orders=_orders(ledger, job),
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


def _batch(job: Job) -> GlacierBatch:
    from change_detection.divides import GlacierBatch

    values = job["payload"]["batch"]
    return GlacierBatch(**values | {"ref_ids": tuple(values["ref_ids"])})


def _outlines(ledger: Ledger, job: Job) -> Outcome:
    from change_detection.outlines import trace_batch

    payload = job["payload"]
    start, end = job["interval"]
    return trace_batch(
        ledger.workspace,
        job["season"],
        _batch(job),
        frame=unpack_frame(payload["frame"]),
        grid=_grid(ledger, job),
        growth_m=payload["growth_m"],
        season_window=(start, end),
        min_area_km2=payload["min_area_km2"],
        area_scale=payload["area_scale"],
        residual_m=payload["residual_m"],
    )


def _differences(ledger: Ledger, job: Job) -> Outcome:
    from change_detection.differences import trace_differences

    payload = job["payload"]
    first, last = payload["seasons"]
    old, new = payload["multiples"]
    return trace_differences(
        ledger.workspace,
        (first, last),
        _batch(job),
        frame=unpack_frame(payload["frame"]),
        grid=_grid(ledger, job),
        multiples=(old, new),
        growth_m=payload["growth_m"],
    )


_WORK: dict[str, Callable[[Ledger, Job], Outcome]] = {
    "terrain": _terrain,
    "layers": _layers,
    "shifts": _shifts,
    "scenes": _ranking,
    "cube": _cube,
    "illumination": _illumination,
    "outlines": _outlines,
    "differences": _differences,
}
