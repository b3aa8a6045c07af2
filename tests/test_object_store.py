"""A workspace on an object store holds the bytes that a folder would, and resumes as one does."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Small
from servers import s3_server

from catalog.cube import Workspace
from inventory_engine.lock import holder_of
from inventory_engine.pipeline import run_pipeline
from inventory_engine.settings_file import load_settings

pytestmark = pytest.mark.slow

PRODUCTS = ("cube.zarr", "map.zarr", "inventory", "change", "report", "records")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket on a real S3 server."""
    with s3_server("glaciers") as url:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something-secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
        }.items():
            monkeypatch.setenv(name, value)
        yield "s3://glaciers"


def products(workspace: Workspace) -> dict[str, str]:
    """Checksum of every product and receipt, by name."""
    names = [name for folder in PRODUCTS for name in workspace.names(folder)]
    return {name: hashlib.sha256(workspace.get(name) or b"").hexdigest() for name in names}


def test_a_run_on_s3_leaves_the_bytes_of_a_run_on_a_disk_and_is_resumed(
    small: Small, finished: Path, bucket: str, tmp_path: Path
):
    path = small.settings(tmp_path, workspace=f"{bucket}/alps/small")
    first = run_pipeline(load_settings(path))
    assert not first.failed
    remote = Workspace(f"{bucket}/alps/small")
    assert products(remote) == products(Workspace(finished / "work"))
    assert holder_of(remote) is None
    again = run_pipeline(load_settings(path))
    assert (again.done, again.skipped) == (0, first.done)
    damaged = remote.names("map.zarr/2018/spread/c")[0]
    remote.put(damaged, b"not what was written")
    repaired = run_pipeline(load_settings(path))
    assert repaired.done == 1
    assert products(remote) == products(Workspace(finished / "work"))
    logs = [remote.get(name) or b"" for name in remote.names("runs")]
    assert not any(b"something-secret" in log for log in logs)
