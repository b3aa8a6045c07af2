"""Ray runs every unit exactly once, in actors that load their members once."""

from __future__ import annotations

import os

import pytest

ray = pytest.importorskip("ray")

from catalog.errors import SourceError  # noqa: E402
from model_serving.serving import run_on_ray  # noqa: E402


def task_maker():
    """A nested function travels to the actors by value: they need not import this file."""

    def make_task():
        loaded = {"pid": os.getpid(), "calls": 0}

        def task(unit):
            loaded["calls"] += 1
            if unit["shard"] == "bad":
                return {"shard": "bad", "failed": {"kind": "bad-data", "reason": "all NaN"}}
            return {"shard": unit["shard"], "value": unit["n"] ** 2, **loaded}

        return task

    return make_task


@pytest.fixture(scope="module")
def local_ray():
    ray.init(
        num_cpus=2,
        num_gpus=1,  # Ray counts what it is told of, and assigns by number
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        object_store_memory=100 * 2**20,
    )
    yield
    ray.shutdown()


@pytest.mark.slow
def test_every_unit_comes_back_once_and_a_failure_does_not_stop_the_others(local_ray):
    units = [{"shard": f"r000c{i:03d}", "n": i} for i in range(6)] + [{"shard": "bad", "n": 0}]
    results = list(run_on_ray(task_maker(), units, workers=2))
    assert sorted(r["shard"] for r in results) == sorted(u["shard"] for u in units)
    assert {r["shard"]: r["value"] for r in results if "value" in r} == {
        f"r000c{i:03d}": i * i for i in range(6)
    }
    assert [r["failed"]["kind"] for r in results if "failed" in r] == ["bad-data"]
    actors = {r["pid"] for r in results if "pid" in r}
    assert len(actors) <= 2


@pytest.mark.slow
def test_a_unit_that_ends_its_actors_does_not_end_the_others(local_ray):
    def make_task():
        def task(unit):
            if unit["n"] == 3:
                os._exit(1)
            return unit

        return task

    units = [{"n": n} for n in range(6)]
    results = list(run_on_ray(make_task, units, workers=2))
    assert sorted(r["n"] for r in results) == [0, 1, 2, 4, 5]


@pytest.mark.slow
def test_actors_share_the_gpus_there_are(local_ray):
    def make_task():
        import ray

        return lambda unit: unit | {"pid": os.getpid(), "gpus": ray.get_gpu_ids()}

    units = [{"n": n} for n in range(4)]
    results = list(run_on_ray(make_task, units, workers=2, gpus=1.0))
    assert sorted(r["n"] for r in results) == [0, 1, 2, 3]
    assert len({r["pid"] for r in results}) == 1  # one GPU: one actor, though two were asked for
    assert [r["gpus"] for r in results] == [[0]] * 4
    shared = list(run_on_ray(make_task, units, workers=2, gpus=0.5))
    assert [r["gpus"] for r in shared] == [[0]] * 4
    alone = list(run_on_ray(make_task, units, workers=2, gpus=0.6))
    assert len({r["pid"] for r in alone}) == 1


@pytest.mark.slow
def test_a_cluster_without_a_gpu_is_named(local_ray, monkeypatch):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    with pytest.raises(SourceError, match="no node of the Ray cluster has a GPU") as caught:
        list(run_on_ray(task_maker(), [{"shard": "a", "n": 1}], workers=2, gpus=1.0))
    assert caught.value.kind == "no-gpu"


@pytest.mark.slow
def test_nothing_to_do_is_no_work(local_ray):
    assert list(run_on_ray(task_maker(), [], workers=2)) == []
