"""Where units of work run: in this process, on Dask, or on Ray; each through the same door.

An executor takes a ``make_task`` that builds the task once per worker, and jobs as small dicts; it
yields small dicts as they finish. Whatever a driver starts ends with it, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import psutil

from catalog.errors import EngineError, SourceError, UsageError
from inventory_engine import __version__
from inventory_engine.settings import DaskSettings, RaySettings, Workers, set_process_environment
from inventory_engine.work import Job, Task, describe_fatal

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = [
    "DaskExecutor",
    "Executor",
    "RayExecutor",
    "SerialExecutor",
    "Stopped",
    "end_children",
    "stop_on_signals",
]

_GIB_PER_WORKER = 1.5


class Stopped(BaseException):
    """The run was asked to stop by Ctrl-C or SIGTERM."""


class Executor(Protocol):
    """Runs one task on many jobs."""

    def run(self, make_task: Callable[[], Task], jobs: list[Job]) -> Iterator[Job]:
        """Yield the task's answer to each job, in the order they finish."""

    def close(self) -> None:
        """End everything that was started."""


# --- life and death of processes -----------------------------------------------------------------


def _driver() -> Job:
    me = psutil.Process()
    return {"host": socket.gethostname(), "pid": me.pid, "born": me.create_time()}


_guarded: set[int] = set()


def guard(driver: Job) -> None:
    """End this worker process soon after its driver is gone, if both are on one machine."""
    if driver["host"] != socket.gethostname() or driver["pid"] in (os.getpid(), *_guarded):
        return
    _guarded.add(driver["pid"])

    def watch() -> None:
        while True:
            try:
                alive = psutil.Process(driver["pid"]).create_time() == driver["born"]
            except psutil.NoSuchProcess:
                alive = False
            if not alive:
                os._exit(1)
            time.sleep(0.25)

    threading.Thread(target=watch, name="driver-guard", daemon=True).start()


def end_children(*, grace_s: float = 2.0) -> None:
    """End every process this one has started: first politely, then for certain."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with suppress(psutil.Error):
            child.terminate()
    _, alive = psutil.wait_procs(children, timeout=grace_s)
    for child in alive:
        with suppress(psutil.Error):
            child.kill()


def stop_on_signals() -> None:
    """Turn the first Ctrl-C or SIGTERM into :class:`Stopped`; later ones change nothing."""

    def stop(number: int, _frame: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(signal.Signals(number).name)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def build_task(make_task: Callable[[], Task]) -> Task:
    """Build a task; where that cannot be, a task that answers every job with the reason."""
    try:
        return make_task()
    except EngineError as error:
        fatal = describe_fatal(error)
    return lambda job: {"key": job["key"], "failed": None, "fatal": fatal}


def worker_count(wanted: Workers) -> int:
    """How many worker processes: as told, or as many as cores and memory allow."""
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    room = int(psutil.virtual_memory().total / 2**30 / _GIB_PER_WORKER)
    return max(1, min(cores or 1, room))


# --- in this process -----------------------------------------------------------------------------


class SerialExecutor:
    """One job after the other, here: for debugging and tests."""

    def run(self, make_task: Callable[[], Task], jobs: list[Job]) -> Iterator[Job]:
        """Yield each answer in the order of the jobs."""
        if jobs:
            task = make_task()
            yield from map(task, jobs)

    def close(self) -> None:
        """Nothing was started."""


# --- Dask ----------------------------------------------------------------------------------------

_made: dict[str, Task] = {}


def _on_worker(make_task: Callable[[], Task], token: str, driver: Job, text: str) -> Job:
    """Run one job in a Dask worker; the task is built once per worker."""
    guard(driver)
    if token not in _made:
        _made.clear()
        _made[token] = build_task(make_task)
    return _made[token](json.loads(text))


def _worker_version() -> str:
    return __version__


class DaskExecutor:
    """Jobs on a local cluster of processes, or on the scheduler at an address.

    Parameters
    ----------
    settings
        The ``compute.dask`` section.
    """

    def __init__(self, settings: DaskSettings) -> None:
        self._settings = settings
        self._cluster: Any = None
        self._client: Client | None = None
        self._folder: Path | None = None

    def _connect(self) -> Client:
        from distributed import Client, LocalCluster

        set_process_environment()
        if self._settings.address != "local":
            return self._connect_outside()
        self._folder = Path(tempfile.mkdtemp(prefix="gie-dask-"))
        self._cluster = LocalCluster(
            n_workers=worker_count(self._settings.workers),
            threads_per_worker=self._settings.threads_per_worker,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=str(self._folder),
            silence_logs=50,
        )
        return Client(self._cluster)

    def _connect_outside(self) -> Client:
        from distributed import Client

        address = self._settings.address
        try:
            client = Client(address, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise SourceError(
                f"no Dask scheduler answers at {address}", kind="cluster-unreachable"
            ) from error
        found = set(client.run(_worker_version).values())
        if found - {__version__}:
            raise UsageError(
                f"workers at {address} run {', '.join(sorted(found))}, this is {__version__}",
                kind="version-skew",
            )
        return client

    def run(self, make_task: Callable[[], Task], jobs: list[Job]) -> Iterator[Job]:
        """Yield answers as they finish; a job whose worker always dies answers with that."""
        if not jobs:
            return
        self._client = self._client or self._connect()
        suspects: list[Job] = []
        yield from self._run(make_task, jobs, lost=suspects)
        for job in suspects:
            lost: list[Job] = []
            yield from self._run(make_task, [job], lost=lost)
            yield from map(worker_died, lost)

    def _run(
        self, make_task: Callable[[], Task], jobs: list[Job], *, lost: list[Job]
    ) -> Iterator[Job]:
        """Yield answers; jobs that ended with their worker several times are put into ``lost``."""
        from distributed import KilledWorker, as_completed

        client = cast("Client", self._client)
        token, driver = f"task-{time.monotonic_ns()}", _driver()
        waiting = list(enumerate(jobs))[::-1]
        known: dict[str, Job] = {}

        def submit() -> Future:
            number, job = waiting.pop()
            text = json.dumps(job)
            # ^ not the job itself: Dask takes a dict apart, and packs it several times over
            future = client.submit(
                _on_worker, make_task, token, driver, text, pure=False, key=f"{token}-{number}"
            )
            known[future.key] = job
            return future

        ahead = 4 * max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
        finished = as_completed([submit() for _ in range(min(ahead, len(waiting)))])
        for future in finished:
            job = known.pop(future.key)
            answer: Job | None = None
            try:
                answer = future.result()
            except KilledWorker:
                lost.append(job)
            future.release()
            if waiting:
                finished.add(submit())
            if answer is not None:
                yield answer

    def close(self) -> None:
        """End the workers and remove their folder."""
        with suppress(OSError, TimeoutError):
            if self._client is not None:
                self._client.close(timeout=5)
            if self._cluster is not None:
                self._cluster.close(timeout=5)
        self._client = self._cluster = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def worker_died(job: Job) -> Job:
    """Answer for a job that ended its worker every time, also when it was tried alone.

    Clusters blame all jobs that wait at a worker when it dies, so only the last tries, with nothing
    beside them, tell who did it.
    """
    return {
        "key": job["key"],
        "fatal": None,
        "failed": {
            "kind": "worker-killed",
            "reason": "its worker process died every time it was tried, perhaps for want of memory",
        },
    }


# --- Ray -----------------------------------------------------------------------------------------


class _Guarded:
    """Builds a task that guards its own process first; travels to the workers."""

    def __init__(self, make_task: Callable[[], Task], driver: Job) -> None:
        self._make_task = make_task
        self._driver = driver

    def __call__(self) -> Task:
        """Build the task in the worker."""
        guard(self._driver)
        return build_task(self._make_task)


class RayExecutor:
    """Jobs on Ray Data actors: a private local node, or the cluster at an address.

    Parameters
    ----------
    settings
        The ``compute.ray`` section.
    on_gpu
        Whether each worker holds its share of a GPU.
    """

    def __init__(self, settings: RaySettings, *, on_gpu: bool = False) -> None:
        self._settings = settings
        self._gpus = settings.gpus_per_worker if on_gpu else 0.0
        self._folder: Path | None = None
        self._started = False
        self._stderr = -1

    def _mute(self) -> None:
        """Lead this process's stderr away: Ray's own code writes to it past every logger."""
        self._stderr = os.dup(2)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)

    def _unmute(self) -> None:
        if self._stderr >= 0:
            os.dup2(self._stderr, 2)
            os.close(self._stderr)
            self._stderr = -1

    def _connect(self) -> None:
        set_process_environment(reuse_memory=True)
        self._mute()
        import ray

        quiet = {"log_to_driver": False, "logging_level": "critical", "configure_logging": True}
        if self._settings.address != "local":
            try:
                ray.init(address=self._settings.address, **quiet)
            except (ConnectionError, ValueError) as error:
                raise SourceError(
                    f"no Ray cluster answers at {self._settings.address}",
                    kind="cluster-unreachable",
                ) from error
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="gie-ray-"))
            ray.init(
                address="local",
                num_cpus=worker_count(self._settings.workers),
                include_dashboard=False,
                object_store_memory=200 * 2**20,
                # ^ only small dicts travel; the default takes a third of the memory
                _temp_dir=str(self._folder),
                **quiet,
            )
        self._started = True

    def run(self, make_task: Callable[[], Task], jobs: list[Job]) -> Iterator[Job]:
        """Yield answers as they finish; a job whose worker always dies answers with that.

        Raises
        ------
        SourceError
            Where the cluster is gone.
        """
        from model_serving.serving import run_on_ray

        if not jobs:
            return
        if not self._started:
            self._connect()
        import ray

        workers = worker_count(self._settings.workers)
        maker = _Guarded(make_task, _driver())
        silent = {job["key"]: job for job in jobs}
        try:
            for answer in run_on_ray(maker, jobs, workers=workers, gpus=self._gpus):
                silent.pop(answer["key"])
                yield answer
        except ray.exceptions.RayError as error:
            raise SourceError(f"the Ray cluster was lost: {error}", kind="cluster-lost") from error
        yield from map(worker_died, silent.values())

    def close(self) -> None:
        """Leave or end the cluster and remove its folder."""
        if self._started:
            import ray

            ray.shutdown()
            self._started = False
        self._unmute()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
