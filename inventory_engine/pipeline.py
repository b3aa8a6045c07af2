"""The conductor's one score: hold the workspace, search, go through the stages, sum up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from catalog.errors import SourceError, StoreError, UsageError
from inventory_engine.executors import DaskExecutor, Executor, RayExecutor, SerialExecutor
from inventory_engine.lock import hold
from inventory_engine.logs import MemoryWatch, RunLog
from inventory_engine.plan import (
    Context,
    Scenes,
    Search,
    check_workspace,
    claim_workspace,
    open_region,
    search_scenes,
)
from inventory_engine.receipts import Failure, Ledger, Receipt, State
from inventory_engine.settings import Settings, set_process_environment, settings_json
from inventory_engine.stages import STAGES, Stage, change_unit, difference_units, states
from inventory_engine.units import Unit
from inventory_engine.work import raise_fatal

__all__ = ["Preview", "Show", "Summary", "open_context", "preview", "run_change", "run_pipeline"]


class Show(Protocol):
    """Where a run tells how far it is."""

    def stage(self, title: str, *, total: int, skipped: int) -> Callable[[], None]:
        """Begin a stage; call what is returned after each finished unit."""

    def note(self, text: str) -> None:
        """Tell one line."""


class Silent:
    """Tells nothing."""

    def stage(self, title: str, *, total: int, skipped: int) -> Callable[[], None]:
        """Begin a stage silently."""
        del title, total, skipped
        return lambda: None

    def note(self, text: str) -> None:
        """Tell nothing."""


@dataclass
class Summary:
    """What a run did."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, Failure] = field(default_factory=dict)
    """Key of each unit that could not be done, and why."""
    set_aside: int = 0
    seconds: float = 0.0
    peak_gib: float = 0.0


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do in one stage and season."""

    stage: str
    season: str
    counts: dict[State, int]
    bytes: int
    """Uncompressed bytes of the units that are to be done."""
    scenes: int | None = None
    """Scenes the stage reads in this season; None for stages that read none."""
    set_aside: int = 0
    """Scenes that the search found but that cannot be used."""


def open_context(settings: Settings) -> Context:
    """Read everything a run depends on except the catalogue.

    Raises
    ------
    UsageError
        Where outlines, ensemble, runtime, or an existing workspace do not fit the settings.
    """
    from model_serving.ensemble import load_ensemble
    from model_serving.runtimes import choose_runtime

    set_process_environment()
    ensemble = load_ensemble(settings.model.ensemble)
    finest, coarsest = ensemble.resolution_m
    for label in settings.season_labels:
        size = settings.grid.resolution_m * settings.multiple(label)
        if not finest <= size <= coarsest:
            raise UsageError(
                f"season {label} has pixels of {size:g} m, but ensemble {ensemble.name} was "
                f"trained for {finest:g} to {coarsest:g} m; change its resolution or the ensemble",
                kind="ensemble-mismatch",
            )
    runtime = choose_runtime(
        settings.model.runtime,
        config=ensemble.config,
        threads=settings.compute.threads_per_task,
        precision=settings.model.precision,
    )
    region = open_region(settings)
    ledger = Ledger(region.workspace, region.grid)
    return Context(region, Scenes({}, {}, None, ()), ensemble, runtime, ledger)


def _with_scenes(context: Context, search: Search = "ask") -> Context:
    return replace(context, scenes=search_scenes(context.region, search))


def run_pipeline(
    settings: Settings,
    *,
    show: Show | None = None,
    only: Sequence[str] | None = None,
    search: bool = True,
) -> Summary:
    """Do everything that is not done yet.

    Parameters
    ----------
    settings
        The region.
    show
        Where progress is told.
    only
        Names of the stages to run; all by default.
    search
        Whether the catalogue is asked; otherwise the scenes are those of the last run that asked.

    Raises
    ------
    UsageError
        Before any work, where something impossible was asked for.
    BusyError
        Where another run holds the workspace.
    SourceError
        Where the catalogue or a cluster cannot be reached.
    StoreError
        Where the workspace cannot be written; nothing unfinished is marked as done.
    """
    show = show or Silent()
    context = open_context(settings)
    with _session(context) as (log, check):
        context = _with_scenes(context, "ask and keep" if search else "kept")
        counts = {s: len(found) for s, found in context.scenes.optical.items()}
        log.event("searched", scenes=counts, set_aside=len(context.scenes.set_aside))
        for season, count in counts.items():
            if not count:
                show.note(f"season {season}: the catalogue has no scenes; nothing can be seen")
        for season, tile in context.scenes.sparse:
            show.note(
                f"season {season}: the catalogue has {tile.found} of about {tile.expected} days of "
                f"{tile.sensor} over {tile.tile}; it may lack scenes"
            )
        summary, began = Summary(), time.monotonic()
        with MemoryWatch() as memory:
            for stage in STAGES:
                if only is None or stage.name in only:
                    _run_stage(stage, context, summary, log=log, show=show, check=check)
        summary.seconds, summary.peak_gib = time.monotonic() - began, memory.peak_gib
        log.event(
            "finished",
            done=summary.done,
            skipped=summary.skipped,
            failed=len(summary.failed),
            peak_gib=round(memory.peak_gib, 3),
        )
    return summary


@contextmanager
def _session(context: Context) -> Iterator[tuple[RunLog, Callable[[], None]]]:
    """Hold the workspace, open the run's log, and write there how the run ended."""
    workspace = context.region.workspace
    with hold(workspace) as check:
        claim_workspace(context.region)
        _sweep(context)
        log = RunLog(workspace)
        log.event("started", settings=settings_json(context.region.settings))
        try:
            yield log, check
        except BaseException as error:
            with suppress(StoreError):  # the log may be what cannot be written
                log.event("stopped", error=type(error).__name__, reason=str(error))
            raise
        finally:
            log.close()


def _sweep(context: Context) -> None:
    """Remove drafts that a killed run left on a local disk."""
    root = context.region.workspace.local
    if root is not None:
        for path in root.rglob("*.partial"):
            path.unlink(missing_ok=True)


def _run_stage(
    stage: Stage,
    context: Context,
    summary: Summary,
    *,
    log: RunLog,
    show: Show,
    check: Callable[[], None],
) -> None:
    units = stage.units(context)
    found = states(context.ledger, units)
    waiting = {unit.key: unit for unit in units if found[unit.key] != "skip"}
    summary.skipped += len(units) - len(waiting)
    log.event("stage", stage=stage.name, units=len(units), waiting=len(waiting))
    if not units:
        return
    advance = show.stage(stage.title, total=len(units), skipped=len(units) - len(waiting))
    stage.prepare(context)
    # ^ also where nothing waits: it mends damaged metadata, and leaves what is sound untouched
    if not waiting:
        return
    jobs = [unit.job() for unit in waiting.values()]
    with closing(_executor(stage, context.region.settings)) as executor:
        for answer in executor.run(stage.make_task(context), jobs):
            check()
            _take(answer, waiting[answer["key"]], context, summary=summary, log=log)
            advance()


def _executor(stage: Stage, settings: Settings) -> Executor:
    compute = settings.compute
    if stage.place == "dask" and compute.dask.address != "serial":
        return DaskExecutor(compute.dask)
    if stage.place == "ray" and compute.ray.address != "serial":
        return RayExecutor(compute.ray, on_gpu=settings.model.runtime == "cuda")
    return SerialExecutor()


def _take(
    answer: dict[str, Any], unit: Unit, context: Context, *, summary: Summary, log: RunLog
) -> None:
    """Book the answer to one unit.

    Raises
    ------
    UsageError, StoreError
        Where the worker says that the run must stop.
    """
    log.event("unit", **answer)
    if answer["fatal"]:
        raise_fatal(answer["fatal"])
    summary.set_aside += answer.get("set_aside", 0)
    if not answer["failed"]:
        summary.done += 1
        return
    failure = Failure(**answer["failed"])
    summary.failed[unit.key] = failure
    if failure.kind == "worker-killed":
        context.ledger.record(draft(unit), SourceError(failure.reason, kind=failure.kind))
        # ^ the worker could not write its own receipt


def draft(unit: Unit) -> Receipt:
    """Receipt of a unit that has not been done."""
    from catalog.cube import Outcome

    return Receipt(
        unit.stage,
        unit.season,
        unit.unit,
        unit.fingerprint,
        unit.inputs,
        Outcome({}),
        unit.boxes,
        unit.interval,
    )


def run_change(settings: Settings, first: str, last: str, *, show: Show | None = None) -> Summary:
    """Report the change between any two published seasons; no catalogue is needed.

    Raises
    ------
    UsageError
        Where a season is not known, or not published yet.
    """
    for label in (first, last):
        if label not in settings.seasons:
            known = ", ".join(settings.season_labels)
            raise UsageError(f"there is no season {label!r}; known are {known}")
    labels = settings.season_labels
    if labels.index(first) >= labels.index(last):
        raise UsageError(f"change needs an earlier and a later season, found {first} and {last}")
    context = open_context(settings)
    for label in (first, last):
        if context.ledger.outputs("publish", label, "region") is None:
            raise UsageError(f"season {label} is not published yet: `inventory-engine run` first")

    def compared(c: Context) -> list[Unit]:
        return difference_units(c, first, last)

    def changed(c: Context) -> list[Unit]:
        unit = change_unit(c, first, last)
        return [unit] if unit else []

    asked = {"differences": compared, "change": changed}
    stages = [replace(s, units=asked[s.name]) for s in STAGES if s.name in asked]
    summary = Summary()
    with _session(context) as (log, check):
        for stage in stages:
            _run_stage(stage, context, summary, log=log, show=show or Silent(), check=check)
    return summary


def preview(settings: Settings) -> list[Preview]:
    """Tell what a run would do, without doing any of it or writing anything.

    Raises
    ------
    UsageError, SourceError
        As in :func:`run_pipeline`.
    """
    context = open_context(settings)
    check_workspace(context.region)
    context = _with_scenes(context)
    rows: dict[tuple[str, str], tuple[dict[State, int], int]] = {}
    pending: set[str] = set()
    for stage in STAGES:
        units = stage.units(context)
        found = states(context.ledger, units)
        for unit in units:
            state = found[unit.key]
            if state == "skip" and pending.intersection(unit.upstream):
                state = "recompute"
            counts, size = rows.setdefault((stage.name, unit.season), ({}, 0))
            counts[state] = counts.get(state, 0) + 1
            if state != "skip":
                pending.add(unit.key)
                size += round(unit.pixels * stage.bytes_per_pixel(context))
            rows[stage.name, unit.season] = (counts, size)
    return [
        Preview(stage, season, *value, *_scenes_read(context, stage, season))
        for (stage, season), value in rows.items()
    ]


def _scenes_read(context: Context, stage: str, season: str) -> tuple[int | None, int]:
    """How many scenes a stage reads in a season, and how many were found but set aside."""
    scenes = context.scenes
    read = {"terrain": [scenes.dem], "cube": [scenes.optical.get(season)]}.get(stage)
    if read is None:
        return None, 0
    if stage == "cube":
        read.append(scenes.sar.get(season))
    aside = sum(label == season for label, _ in scenes.set_aside)
    return sum(len(found or ()) for found in read), aside
