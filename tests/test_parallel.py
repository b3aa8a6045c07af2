"""Jobs give the same answers wherever they run, and the first error ends them with its own kind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from catalog.errors import DataError, UsageError
from model_serving.parallel import EXECUTORS, run_jobs


@pytest.fixture(autouse=True)
def _found_by_workers(monkeypatch: pytest.MonkeyPatch):
    """Let the processes of Ray, which do not know the tests' folder, import `job` by its name."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{here.parent}{os.pathsep}{here}")


def job(number: int, folder: Path) -> dict[str, int]:
    """Answer, fail, or die once."""
    if number == 13:
        raise DataError("thirteen brings no luck", kind="one-class")
    if number == 7 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"number": number, "pid": os.getpid()}


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_every_job_is_answered_once_outside_this_process(executor: str, tmp_path: Path):
    told: list[tuple[int, int]] = []
    answers = run_jobs(
        job,
        [{"number": n, "folder": tmp_path} for n in range(5)],
        workers=2,
        executor=executor,
        report=lambda done, total: told.append((done, total)),
    )
    assert sorted(a["number"] for a in answers) == [0, 1, 2, 3, 4]
    assert os.getpid() not in {a["pid"] for a in answers}
    assert told == [(n, 5) for n in range(6)]


@pytest.mark.slow
@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_error_keeps_its_kind_and_ends_the_rest(executor: str, tmp_path: Path):
    jobs = [{"number": n, "folder": tmp_path} for n in (13, 1, 2)]
    with pytest.raises(DataError, match="thirteen brings no luck") as caught:
        run_jobs(job, jobs, workers=1, executor=executor)
    assert caught.value.kind == "one-class"


@pytest.mark.slow
def test_on_ray_a_job_whose_process_died_is_started_again(tmp_path: Path):
    jobs = [{"number": n, "folder": tmp_path} for n in (6, 7, 8)]
    answers = run_jobs(job, jobs, workers=2, executor="ray")
    assert sorted(a["number"] for a in answers) == [6, 7, 8]


def test_an_executor_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no executor 'dask'; known are processes, ray") as caught:
        run_jobs(job, [{"number": 1, "folder": tmp_path}], workers=1, executor="dask")
    assert caught.value.kind == "executor-unknown"
