"""Map many shards on a Ray cluster: one actor a worker, one block and one batch a shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from catalog.errors import SourceError

__all__ = ["run_on_ray"]

Task = Callable[[dict[str, Any]], dict[str, Any]]

_TRIES = 3
# ^ how often a unit is tried alone whose process ends each time


class _Actor:
    """Holds one task function (and the networks it loaded) between units."""

    def __init__(self, make_task: Callable[[], Task]) -> None:
        self.task = make_task()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = [json.dumps(self.task(json.loads(unit))) for unit in batch["unit"]]
        return {"number": batch["number"], "answer": np.array(answers)}


def run_on_ray(
    make_task: Callable[[], Task],
    units: list[dict[str, Any]],
    *,
    workers: int,
    gpus: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Run a task over units by Ray Data with an actor pool.

    A unit that was lost with its actor is tried again in a process of its own, so that it ends no
    other unit and no other unit ends it.

    Parameters
    ----------
    make_task
        Called once in each actor; returns the function that handles one unit. The function must
        return a JSON-ready dict also for failures it can survive: an exception ends the run.
    units
        JSON-ready descriptions of the units; each becomes a block of its own.
    workers
        Number of actors, at most.
    gpus
        What share of a GPU each actor holds, at most 1; with a half, two share one. There are no
        more actors than the GPUs of the cluster hold.

    Yields
    ------
    dict
        Results, as they finish; none for a unit whose process ended every time.

    Raises
    ------
    SourceError
        ``no-gpu`` where actors shall hold GPUs and the cluster has none.
    ray.exceptions.RayError
        Where the cluster is gone or the task itself raised.
    """
    if not units:
        return
    import ray.data

    if gpus:
        room = int(ray.cluster_resources().get("GPU", 0)) * int(1 / gpus)
        if not room:
            raise SourceError("no node of the Ray cluster has a GPU", kind="no-gpu")
        workers = min(workers, room)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    # Text, not dicts: Ray Data would turn a dict into columns and give every unit every key.
    rows = [{"number": i, "unit": json.dumps(unit)} for i, unit in enumerate(units)]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    mapped = dataset.map_batches(
        _Actor,
        fn_constructor_args=(make_task,),
        batch_size=1,
        zero_copy_batch=False,
        concurrency=min(workers, len(units)),
        num_cpus=1,
        num_gpus=gpus or None,
        max_restarts=-1,
        max_task_retries=0,
        # ^ an actor takes the units that wait at it along when it dies: blame is found out below
    )
    lost = set(range(len(units)))
    for row in mapped.iter_rows():
        lost.remove(row["number"])
        yield json.loads(row["answer"])
    yield from _each_alone(make_task, [units[i] for i in sorted(lost)], gpus=gpus)


def _each_alone(
    make_task: Callable[[], Task], units: list[dict[str, Any]], *, gpus: float
) -> Iterator[dict[str, Any]]:
    import ray

    def once(unit: dict[str, Any]) -> dict[str, Any]:
        return make_task()(unit)

    remote = ray.remote(num_cpus=1, num_gpus=gpus or None, max_retries=_TRIES - 1)(once)
    waiting = [remote.remote(unit) for unit in units]
    while waiting:
        (done, *_), waiting = ray.wait(waiting, num_returns=1)
        try:
            yield ray.get(done)
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            continue
