"""One cube, whatever serves its scenes: a folder, an HTTP server with ranges, a bucket on S3."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasters import optical_item, small_grid, utm_frame, write_tif
from servers import Answer, Request, file_script, s3_server, scripted_server

from catalog.assets import AssetPolicy, OpenAssets
from catalog.composites import build_cube_shard, create_season
from catalog.cube import Workspace
from catalog.errors import DataError, SourceError, UsageError
from catalog.scenes import BandSource
from catalog.sensors import describe_item

from rasterio.windows import Window  # isort: skip

GRID = small_grid()
SEASON = "2024"
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


def no_wait(_: float) -> None:
    pass


def signed(monkeypatch: pytest.MonkeyPatch, endpoint: str, **more: str) -> None:
    """Put credentials for a server of our own into the environment."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        **more,
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with two scenes, and their items."""
    folder = tmp_path_factory.mktemp("scenes")
    paint = {"first": 0.3, "second": lambda x, _y: 0.2 + (x % 500) / 5000}
    items = [
        optical_item(folder, name, when=f"2024-08-{day}T10:00:00Z", paint=how)
        for (name, how), day in zip(paint.items(), ("10", "20"), strict=True)
    ]
    return folder, items


def moved(items: list[dict[str, Any]], folder: Path, root: str) -> list[dict[str, Any]]:
    """The same items with their assets elsewhere."""
    return json.loads(json.dumps(items).replace(str(folder), root))


def cube(folder: Path, items: list[dict[str, Any]], allowed: str) -> dict[str, str]:
    """Checksums of every layer of one shard that is composed from the items."""
    workspace = Workspace(folder)
    create_season(workspace, SEASON, GRID, sar=False)
    outcome = build_cube_shard(
        workspace,
        SEASON,
        GRID.shard(0, 0),
        optical=[describe_item(item) for item in items],
        sar=None,
        policy=AssetPolicy((allowed,)),
    )
    assert outcome.set_aside == ()
    assert outcome.facts["optical_scenes"] == 2
    return outcome.outputs


@pytest.fixture(scope="module")
def expected(scenes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, items = scenes
    return cube(tmp_path_factory.mktemp("local"), items, str(folder))


def served(requests: list[Request], folder: Path) -> int:
    """Bytes of the ranges that were asked for."""
    total = 0
    for request in requests:
        size = (folder / request.path.split("?")[0].lstrip("/")).stat().st_size
        if request.method == "HEAD":
            continue
        first, _, last = request.headers["range"].removeprefix("bytes=").partition("-")
        total += min(int(last), size - 1) - int(first) + 1
    return total


def test_a_cube_from_an_http_server_equals_the_one_from_a_folder(
    scenes, expected: dict[str, str], tmp_path: Path
) -> None:
    folder, items = scenes
    with scripted_server(file_script(folder)) as server:
        found = cube(tmp_path, moved(items, folder, server.url), server.host)
        requests = list(server.requests)
    assert found == expected
    assert all(r.headers.get("range") for r in requests if r.method == "GET")


def test_a_cube_from_a_bucket_equals_the_one_from_a_folder(
    scenes, expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, items = scenes
    with s3_server("scenes") as url:
        signed(monkeypatch, url)
        bucket = Workspace("s3://scenes")
        for path in folder.rglob("*.tif"):
            bucket.put(path.relative_to(folder).as_posix(), path.read_bytes())
        found = cube(tmp_path, moved(items, folder, "s3://scenes"), "s3://scenes")
    assert found == expected


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A raster of which a small window is a small part; in the folder of a bucket."""
    frame, edge = utm_frame(size_m=20_000)
    noise = np.random.default_rng(1).integers(1, 9000, (edge, edge)).astype(np.uint16)
    return write_tif(tmp_path / "scenes" / "a" / "red.tif", noise, frame, nodata=0)


def band(href: str) -> BandSource:
    return BandSource("red", "red", href, 1e-4, -0.1, 0.0)


def read(href: str, allowed: str, window: Window | None = None) -> np.ndarray:
    with OpenAssets(AssetPolicy((allowed,)), sleep=no_wait) as assets:
        return assets.read(band(href), window or Window(300, 300, 100, 100))


def bucket_script(
    root: Path, spoil: Callable[[Request], Answer | None] | None = None
) -> Callable[[Request], Answer]:
    """The part of the S3 protocol that reading needs."""
    files = file_script(root, spoil)

    def script(request: Request) -> Answer:
        answer = files(request)
        tag = hashlib.sha256(request.path.encode()).hexdigest()[:32]
        answer.headers |= {"etag": f'"{tag}"', "last-modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        return answer

    return script


def test_over_http_only_the_ranges_of_the_window_are_read(large: Path, tmp_path: Path) -> None:
    with scripted_server(file_script(tmp_path)) as server:
        pixels = read(f"{server.url}/scenes/a/red.tif", server.host)
    np.testing.assert_array_equal(pixels, read(str(large), str(tmp_path)))
    assert served(server.requests, tmp_path) < large.stat().st_size / 5


def test_from_a_bucket_only_the_ranges_of_the_window_are_read_signed(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_server(bucket_script(tmp_path)) as server:
        signed(monkeypatch, server.url)
        pixels = read("s3://scenes/a/red.tif", "s3://scenes")
    np.testing.assert_array_equal(pixels, read(str(large), str(tmp_path)))
    assert served(server.requests, tmp_path) < large.stat().st_size / 5
    for request in server.requests:
        assert request.headers["authorization"].startswith("AWS4-HMAC-SHA256")
        assert "x-amz-request-payer" not in request.headers
        assert SECRET not in str(request)


def test_who_pays_is_told_with_every_request_where_the_environment_says_so(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scripted_server(bucket_script(tmp_path)) as server:
        signed(monkeypatch, server.url, AWS_REQUEST_PAYER="requester")
        read("s3://scenes/a/red.tif", "s3://scenes")
    assert large.exists()
    assert server.requests
    assert {r.headers.get("x-amz-request-payer") for r in server.requests} == {"requester"}


def test_an_endpoint_without_credentials_is_read_unsigned(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with scripted_server(bucket_script(tmp_path)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        pixels = read("s3://scenes/a/red.tif", "s3://scenes")
    np.testing.assert_array_equal(pixels, read(str(large), str(tmp_path)))
    assert not any("authorization" in r.headers for r in server.requests)


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (403, DataError, "asset-forbidden"),
        (401, DataError, "asset-forbidden"),
        (404, DataError, "asset-missing"),
        (500, SourceError, "source-unreachable"),
        (503, SourceError, "source-unreachable"),
        (301, SourceError, "source-unreachable"),
    ],
)
def test_what_a_bucket_refuses_has_a_kind_and_tells_no_secret(
    monkeypatch: pytest.MonkeyPatch, status: int, error: type[Exception], kind: str
) -> None:
    body = f"<Error><Code>No</Code><AWSAccessKeyId>{KEY}</AWSAccessKeyId></Error>".encode()
    with scripted_server(lambda _: Answer(status, body)) as server:
        signed(monkeypatch, server.url)
        with pytest.raises(error) as caught:
            read("s3://scenes/a/red.tif", "s3://scenes")
    assert caught.value.kind == kind
    assert KEY not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert len(server.requests) == (5 if error is SourceError else 1)


def test_a_bucket_that_is_not_there_is_asked_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    signed(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="AWS_ENDPOINT_URL"):
        read("s3://scenes/a/red.tif", "s3://scenes")


def every(n: int, answer: Answer) -> Callable[[Request], Answer | None]:
    count = iter(range(10**6))
    return lambda _: answer if next(count) % n == 1 else None


@pytest.mark.parametrize("answer", [Answer(503), Answer(cut=True)], ids=["503", "cut"])
def test_passing_faults_of_a_bucket_do_not_show(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    with scripted_server(bucket_script(tmp_path, every(3, answer))) as server:
        signed(monkeypatch, server.url)
        pixels = read("s3://scenes/a/red.tif", "s3://scenes")
    np.testing.assert_array_equal(pixels, read(str(large), str(tmp_path)))


def test_a_truncated_object_is_told_from_an_outage(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large.write_bytes(large.read_bytes()[: large.stat().st_size // 2])
    with scripted_server(bucket_script(tmp_path)) as server:
        signed(monkeypatch, server.url)
        with pytest.raises(DataError) as caught:
            read("s3://scenes/a/red.tif", "s3://scenes", Window(0, 1900, 100, 100))
    assert caught.value.kind == "raster-truncated"
    assert "s3://scenes/a/red.tif" in str(caught.value)


def test_a_bucket_that_the_policy_does_not_name_is_never_signed_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signed(monkeypatch, "http://127.0.0.1:9")
    named = AssetPolicy(("s3://scenes", "open.s3.amazonaws.com"))
    assert named.check("s3://scenes/a.tif") == "/vsis3/scenes/a.tif"
    assert named.check("s3://open/a.tif") == "/vsicurl/https://open.s3.amazonaws.com/a.tif"
    for href in (
        "s3://elsewhere/a.tif",
        "s3://scenes",
        "s3://scenes/",
        "s3://scenes/../elsewhere/a.tif",
        "s3://scenes/%2e%2e/elsewhere/a.tif",
        "s3://scenes/a.tif?versionId=1",
        "s3://scenes.elsewhere/a.tif",
        "s3://Scenes/a.tif",
        "s3://user@scenes/a.tif",
        "/vsis3/scenes/a.tif",
        "/vsis3_streaming/scenes/a.tif",
    ):
        with pytest.raises(DataError) as caught:
            named.check(href)
        assert caught.value.kind == "href-refused"


def test_without_credentials_a_named_bucket_is_read_as_the_public_sees_it() -> None:
    policy = AssetPolicy(("s3://scenes",))
    assert policy.check("s3://scenes/a.tif") == "/vsicurl/https://scenes.s3.amazonaws.com/a.tif"


@pytest.mark.parametrize("entry", ["s3://", "s3://a", "s3://bucket/prefix", "s3://Bucket", "s3:/b"])
def test_an_entry_that_names_no_bucket_is_a_bad_setting(entry: str) -> None:
    with pytest.raises(UsageError, match="nor a bucket"):
        AssetPolicy((entry,))


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever this machine's own environment says about S3 is put aside."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    yield
