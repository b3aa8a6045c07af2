"""Independent jobs side by side: in fresh processes of this machine, or as tasks on Ray.

One law: a job gets everything by its arguments and answers with a small value, so that where it
runs changes nothing in what it makes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

from catalog.errors import EngineError, SourceError, UsageError

__all__ = ["EXECUTORS", "run_jobs"]

EXECUTORS = ("processes", "ray")
_TRIES = 3
# ^ how often Ray starts a task whose process ended
_QUIET = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}

Function = Callable[..., Any]
Report = Callable[[int, int], None]


def run_jobs(
    function: Function,
    jobs: Sequence[dict[str, Any]],
    *,
    workers: int,
    executor: str = "processes",
    gpus: float = 0.0,
    report: Report | None = None,
) -> list[Any]:
    """Call a function with each job's arguments; the first error ends all.

    Parameters
    ----------
    function
        Found by its name in another process.
    jobs
        Keyword arguments of each call.
    workers
        Calls at the same time.
    executor
        ``processes``, or ``ray``: the cluster this process has joined, else a private node.
    gpus
        What share of a GPU each call holds on Ray.
    report
        Called with the number done and the number in all.

    Returns
    -------
    list
        Answers in the order in which they came.

    Raises
    ------
    UsageError
        ``executor-unknown``.
    SourceError
        ``cluster-lost`` where Ray is gone or a task's process ended every time.
    """
    if executor not in EXECUTORS:
        raise UsageError(
            f"there is no executor {executor!r}; known are {', '.join(EXECUTORS)}",
            kind="executor-unknown",
        )
    on_ray = executor == "ray"
    answers = (
        _on_ray(function, jobs, workers=workers, gpus=gpus)
        if on_ray
        else _in_processes(function, jobs, workers=workers)
    )
    results: list[Any] = []
    report = report or (lambda _done, _total: None)
    report(0, len(jobs))
    for answer in answers:
        results.append(answer)
        report(len(results), len(jobs))
    return results


def _in_processes(
    function: Function, jobs: Sequence[dict[str, Any]], *, workers: int
) -> Iterator[Any]:
    """Fresh processes, so that no job inherits this one's random state or threads."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(function, **job) for job in jobs]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


def _on_ray(
    function: Function, jobs: Sequence[dict[str, Any]], *, workers: int, gpus: float
) -> Iterator[Any]:
    import ray

    with _cluster(workers):
        task = ray.remote(num_cpus=1, num_gpus=gpus or None, max_retries=_TRIES - 1)(function)
        left = list(jobs)[::-1]
        running = [task.remote(**left.pop()) for _ in range(min(workers, len(left)))]
        try:
            while running:
                (done, *_), running = ray.wait(running, num_returns=1)
                yield ray.get(done)
                if left:
                    running.append(task.remote(**left.pop()))
        except ray.exceptions.RayTaskError as error:
            raise _own(error) from error
        except ray.exceptions.RayError as error:
            raise SourceError(f"the Ray cluster was lost: {error}", kind="cluster-lost") from error


def _own(error: Any) -> BaseException:
    """What the task itself raised, without Ray's wrapping."""
    cause = error.cause
    if isinstance(cause, EngineError):
        return type(cause)(str(cause), kind=cause.kind)
    return cause if isinstance(cause, BaseException) else RuntimeError(str(error))


@contextmanager
def _cluster(workers: int) -> Iterator[None]:
    """The cluster this process has joined, or a quiet private node that ends with the jobs."""
    import ray

    if ray.is_initialized():
        yield
        return
    folder = tempfile.mkdtemp(prefix="gie-ray-")
    try:
        ray.init(
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            # ^ only small values travel; the default takes a third of the memory
            runtime_env={"env_vars": _QUIET},
            log_to_driver=False,
            logging_level="critical",
            _temp_dir=folder,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
