"""Map many shards on a Ray cluster: one actor a worker, one block and one batch a shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

__all__ = ["run_on_ray"]

Task = Callable[[dict[str, Any]], dict[str, Any]]


class _Actor:
    """Holds one task function (and the networks it loaded) between units."""

    def __init__(self, make_task: Callable[[], Task]) -> None:
        self.task = make_task()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"item": np.array([json.dumps(self.task(json.loads(u))) for u in batch["item"]])}


def run_on_ray(
    make_task: Callable[[], Task], units: list[dict[str, Any]], *, workers: int, tries: int = 3
) -> Iterator[dict[str, Any]]:
    """Run a task over units by Ray Data with an actor pool.

    Parameters
    ----------
    make_task
        Called once in each actor; returns the function that handles one unit. The function must
        return a JSON-ready dict also for failures it can survive: an exception ends the run.
    units
        JSON-ready descriptions of the units; each becomes a block of its own.
    workers
        Number of actors.
    tries
        How often a unit is begun whose actor dies at it.

    Yields
    ------
    dict
        Results, as they finish; none for a unit that ended its actor every time.
    """
    if not units:
        return
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    # ^ one unit that ends its actors must not end the others
    # Text, not dicts: Ray Data would turn a dict into columns and give every unit every key.
    rows = [{"item": json.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    mapped = dataset.map_batches(
        _Actor,
        fn_constructor_args=(make_task,),
        batch_size=1,
        zero_copy_batch=False,
        concurrency=min(workers, len(units)),
        num_cpus=1,
        max_restarts=-1,
        max_task_retries=tries - 1,
    )
    for row in mapped.iter_rows():
        yield json.loads(row["item"])
