from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasters import utm_frame, write_tif
from servers import Answer, Request, file_script, scripted_server

from catalog import assets as assets_module
from catalog.assets import AssetPolicy, OpenAssets, gdal_env, public_href, retrying
from catalog.errors import DataError, SourceError, UsageError
from catalog.scenes import BandSource

from rasterio.windows import Window  # isort: skip

EVERYTHING = Window(0, 0, 800, 800)
SECRET = "sig=hunter2"


def no_wait(_: float) -> None:
    pass


def band(href: object, **promises: object) -> BandSource:
    return BandSource("red", "red", str(href), 1e-4, -0.1, 0.0, **promises)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    frame, edge = utm_frame(size_m=8000)
    noise = np.random.default_rng(1).integers(1, 9000, (edge, edge)).astype(np.uint16)
    return write_tif(tmp_path / "red.tif", noise, frame, nodata=0)


def read_local(path: Path, **promises: object) -> np.ndarray:
    with OpenAssets(AssetPolicy((str(path.parent),)), sleep=no_wait) as assets:
        return assets.read(band(path, **promises), EVERYTHING)


@pytest.mark.parametrize(
    "href",
    [
        "http://good.example/a.tif",
        "ftp://good.example/a.tif",
        "file:///etc/passwd",
        "https://evil.example/a.tif",
        "https://good.example.evil.example/a.tif",
        "https://evilgood.example/a.tif",
        "https://good.example:8443/a.tif",
        "https://good.example@evil.example/a.tif",
        "https://user@good.example/a.tif",
        "https://user:secret@good.example/a.tif",
        "https://evil.example/?https://good.example/a.tif",
        "https://evil.example#good.example/a.tif",
        "https://evil.example\\@good.example/a.tif",
        "https://good.example/../../a.tif",
        "https://good.example/%2e%2e/a.tif",
        "https://good.example/a.tif\nHost: evil",
        "https://good.example/a tif",
        "https://wild.example/a.tif",
        "https://127.0.0.1/a.tif",
        "https://2130706433/a.tif",
        "https://[::ffff:127.0.0.1]/a.tif",
        "https://[bad/a.tif",
        "https://good.example:99999/a.tif",
        "https://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:8081/a.tif",
        "http://localhost:8080/a.tif",
        "s3://elsewhere/a.tif",
        "/vsicurl/https://good.example/a.tif",
        "/vsizip//data/a.zip/a.tif",
        "vrt://a.tif",
        "GTIFF_DIR:1:/data/a.tif",
        "<VRTDataset/>",
        "a.tif",
        "../a.tif",
        "/etc/passwd",
        "/data/../etc/passwd",
        "/data/a.vrt",
        "/data/a\0.tif",
        "/database/a.tif",
        "",
        " /data/a.tif",
        "https://gооd.example/a.tif",  # Cyrillic
    ],
)
def test_what_the_policy_does_not_name_is_refused_before_anything_is_contacted(href: str) -> None:
    policy = AssetPolicy(("good.example", "*.wild.example", "127.0.0.1:8080", "/data"))
    with pytest.raises(DataError, match="is not opened") as caught:
        policy.check(href)
    assert caught.value.kind == "href-refused"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("https://good.example/a.tif?x=1", "/vsicurl/https://good.example/a.tif?x=1"),
        ("https://GOOD.example:443/a.tif", "/vsicurl/https://GOOD.example:443/a.tif"),
        ("https://a.b.wild.example/a.tif", "/vsicurl/https://a.b.wild.example/a.tif"),
        ("http://127.0.0.1:8080/a.tif", "/vsicurl/http://127.0.0.1:8080/a.tif"),
        ("s3://dem/k/a.tif", "/vsicurl/https://dem.s3.amazonaws.com/k/a.tif"),
        ("/data/deep/a.tif", "/data/deep/a.tif"),
    ],
)
def test_what_the_policy_names_may_be_opened(href: str, path: str) -> None:
    hosts = ("good.example", "*.wild.example", "127.0.0.1:8080", "dem.s3.amazonaws.com", "/data")
    assert AssetPolicy(hosts).check(href) == path


@given(st.text(max_size=40))
def test_no_text_gets_past_an_empty_policy(href: str) -> None:
    with pytest.raises(DataError):
        AssetPolicy(()).check(href)


def test_a_symlink_that_leaves_the_allowed_folder_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "a.tif").touch()
    (inside / "a.tif").symlink_to(outside / "a.tif")
    (inside / "folder").symlink_to(outside)
    policy = AssetPolicy((str(inside),))
    for name in ("a.tif", "folder/a.tif"):
        with pytest.raises(DataError, match="none of the allowed folders"):
            policy.check(str(inside / name))


def test_an_entry_that_is_neither_host_nor_folder_is_a_bad_setting() -> None:
    with pytest.raises(UsageError, match="neither a host name nor a folder"):
        AssetPolicy(("https://good.example/",))


def test_a_policy_survives_the_way_to_a_worker() -> None:
    policy = AssetPolicy(("good.example",))
    assert pickle.loads(pickle.dumps(policy)) == policy


def test_a_wildcard_does_not_reach_private_addresses() -> None:
    policy = AssetPolicy(("*.0.0.1:8443",))
    with (
        OpenAssets(policy, sleep=no_wait) as assets,
        pytest.raises(DataError, match="private address") as caught,
    ):
        assets.dataset(band("https://127.0.0.1:8443/a.tif"))
    assert caught.value.kind == "href-refused"


@pytest.mark.parametrize(
    "href",
    [
        f"https://host.example/a.tif?{SECRET}",
        f"/vsicurl/https://host.example/a.tif?{SECRET}#x",
        "https://user:hunter2@host.example/a.tif",
    ],
)
def test_public_hrefs_carry_no_secret(href: str) -> None:
    assert public_href(href) == "https://host.example/a.tif"


def test_drivers_that_read_other_files_are_switched_off_in_the_process() -> None:
    code = (
        "import catalog.assets, rasterio\n"
        "with rasterio.Env() as env:\n"
        "    print(sorted({'VRT', 'GTI', 'STACIT', 'WMS', 'WCS'} & set(env.drivers())))\n"
        "    print(sorted({'GTiff', 'MEM'} & set(env.drivers())))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert found.stdout.split("\n")[:2] == ["[]", "['GTiff', 'MEM']"]


def test_side_car_files_cannot_change_a_raster() -> None:
    assert gdal_env()["GDAL_PAM_ENABLED"] == "NO"
    assert gdal_env()["GDAL_DISABLE_READDIR_ON_OPEN"] == "EMPTY_DIR"


def test_a_vrt_in_disguise_reads_nothing(tmp_path: Path, raster: Path) -> None:
    fake = tmp_path / "fake.tif"
    fake.write_text(
        '<VRTDataset rasterXSize="800" rasterYSize="800"><VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>{raster}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(DataError) as caught:
        read_local(fake)
    assert caught.value.kind == "not-a-geotiff"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tif does not exist") as caught:
        read_local(tmp_path / "gone.tif")
    assert caught.value.kind == "asset-missing"


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.001, 0.02, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_always_an_error(raster: Path, part: float) -> None:
    data = raster.read_bytes()
    raster.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(DataError) as caught:
        read_local(raster)
    assert caught.value.kind in ("raster-truncated", "not-a-geotiff")


def test_an_intact_file_reads_as_it_is(raster: Path) -> None:
    expected = np.random.default_rng(1).integers(1, 9000, (800, 800)).astype(np.uint16)
    np.testing.assert_array_equal(read_local(raster), expected)


def test_only_so_many_rasters_stay_open_and_all_of_them_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets_module, "_MOST_OPEN", 2)
    frame, edge = utm_frame()
    paths = [
        write_tif(tmp_path / f"{i}.tif", np.full((edge, edge), i, np.uint16), frame)
        for i in range(1, 6)
    ]
    with OpenAssets(AssetPolicy((str(tmp_path),))) as assets:
        for _ in range(2):
            for value, path in enumerate(paths, 1):
                assert (assets.read(band(path), Window(0, 0, 8, 8)) == value).all()
                held = [f for f in psutil.Process().open_files() if f.path.endswith(".tif")]
                assert len(held) <= 2


def test_promises_that_hold_are_no_obstacle(raster: Path) -> None:
    frame, edge = utm_frame(size_m=8000)
    read_local(raster, crs="EPSG:32632", shape=(edge, edge), transform=tuple(frame)[:6])


@pytest.mark.parametrize(
    "lie",
    [
        {"crs": "EPSG:32633"},
        {"crs": "nonsense"},
        {"shape": (800, 801)},
        {"transform": (10.0, 0.0, 0.0, 0.0, -10.0, 0.0)},
        {
            "transform": (
                20.0,
                0.0,
                *tuple(utm_frame(size_m=8000)[0])[2:5],
                tuple(utm_frame(size_m=8000)[0])[5],
            )
        },
    ],
    ids=["zone", "no projection", "shape", "place", "pixel size"],
)
def test_a_raster_that_breaks_its_items_promise_is_refused(raster: Path, lie: dict) -> None:
    with pytest.raises(DataError) as caught:
        read_local(raster, **lie)
    assert caught.value.kind == "geo-mismatch"


def test_a_shift_of_one_pixel_is_noticed(raster: Path) -> None:
    frame, edge = utm_frame(size_m=8000)
    shifted = (frame.a, 0.0, frame.c + 10, 0.0, frame.e, frame.f)
    with pytest.raises(DataError, match="lies at"):
        read_local(raster, transform=shifted, shape=(edge, edge))


def test_rotated_and_south_up_rasters_are_refused(tmp_path: Path) -> None:
    frame, _ = utm_frame(size_m=8000)
    pixels = np.ones((256, 256), np.uint16)
    for name, transform in (
        ("rotated.tif", frame @ type(frame).rotation(5)),
        ("south_up.tif", type(frame)(10, 0, frame.c, 0, 10, frame.f)),
    ):
        path = write_tif(tmp_path / name, pixels, transform)
        with pytest.raises(DataError, match="north-up"):
            read_local(path)


def test_a_header_that_claims_too_much_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = write_tif(
        tmp_path / "lie.tif",
        np.ones((1, 1), np.uint16),
        utm_frame(size_m=8000)[0],
        tiled=False,
        compress="none",
    )
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[8:10], "little")
    for entry in range(entries):
        at = 10 + 12 * entry
        if int.from_bytes(data[at : at + 2], "little") in (256, 257):  # width and height
            data[at + 2 : at + 4] = (4).to_bytes(2, "little")
            data[at + 8 : at + 12] = (400_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_local(path)
    assert caught.value.kind == "raster-too-large"


def read_served(folder: Path, spoil: object = None) -> tuple[object, list[Request]]:
    with scripted_server(file_script(folder, spoil)) as server:
        policy = AssetPolicy((server.host,))
        try:
            with OpenAssets(policy, sleep=no_wait) as assets:
                result = assets.read(band(f"{server.url}/red.tif?{SECRET}"), EVERYTHING)
        except (DataError, SourceError) as error:
            result = error
        return result, server.requests


def once_in(n: int, answer: Answer, *, only_pixels: bool = False):
    """Spoil every n-th request, or only every n-th of those for pixels."""
    counter = itertools.count()

    def spoil(request: Request) -> Answer | None:
        if only_pixels and request.headers.get("range", "bytes=0-").startswith("bytes=0-"):
            return None
        return answer if next(counter) % n == 0 else None

    return spoil


def test_a_served_raster_reads_like_the_file(raster: Path) -> None:
    result, requests = read_served(raster.parent)
    np.testing.assert_array_equal(result, read_local(raster))
    assert len(requests) <= 6


@pytest.mark.parametrize(
    "spoil",
    [
        once_in(2, Answer(503)),
        once_in(3, Answer(502)),
        once_in(2, Answer(cut=True), only_pixels=True),
        once_in(2, Answer(503), only_pixels=True),
    ],
    ids=["503", "502", "cut pixels", "503 for pixels"],
)
def test_passing_faults_of_a_server_do_not_show(raster: Path, spoil: object) -> None:
    result, _ = read_served(raster.parent, spoil)
    np.testing.assert_array_equal(result, read_local(raster))


@pytest.mark.parametrize("answer", [Answer(503), Answer(429), Answer(500)])
def test_a_server_that_stays_down_is_a_source_error_after_five_tries(
    raster: Path, answer: Answer
) -> None:
    result, requests = read_served(raster.parent, lambda _: answer)
    assert isinstance(result, SourceError)
    assert len(requests) == 5
    assert SECRET not in str(result)


def test_pixels_that_are_always_cut_are_a_source_error(raster: Path) -> None:
    result, _ = read_served(raster.parent, once_in(1, Answer(cut=True), only_pixels=True))
    assert isinstance(result, SourceError)
    assert SECRET not in str(result)


def test_a_server_that_is_not_there_is_a_source_error() -> None:
    with (
        OpenAssets(AssetPolicy(("127.0.0.1:9",)), sleep=no_wait) as assets,
        pytest.raises(SourceError, match="cannot be reached"),
    ):
        assets.dataset(band("http://127.0.0.1:9/red.tif"))


@pytest.mark.parametrize(
    ("status", "kind"), [(404, "asset-missing"), (410, "asset-missing"), (403, "asset-forbidden")]
)
def test_an_asset_that_is_refused_is_not_asked_for_again(
    raster: Path, status: int, kind: str
) -> None:
    result, requests = read_served(raster.parent, lambda _: Answer(status))
    assert isinstance(result, DataError)
    assert result.kind == kind
    assert len(requests) == 1


def test_a_redirect_is_not_followed(raster: Path) -> None:
    with scripted_server(lambda _: Answer(200)) as elsewhere:
        moved = Answer(302, headers={"location": f"{elsewhere.url}/red.tif"})
        result, _ = read_served(raster.parent, lambda _: moved)
        assert isinstance(result, DataError)
        assert result.kind == "href-refused"
        assert elsewhere.requests == []


def test_a_served_raster_that_is_truncated_is_told_from_an_outage(raster: Path) -> None:
    data = raster.read_bytes()
    raster.write_bytes(data[: len(data) // 2])
    result, requests = read_served(raster.parent)
    assert isinstance(result, DataError)
    assert result.kind == "raster-truncated"
    assert len(requests) < 10
    raster.write_bytes(data[:100])
    result, _ = read_served(raster.parent)
    assert isinstance(result, DataError)
    assert result.kind == "not-a-geotiff"


def test_each_raster_is_opened_once_for_many_windows(raster: Path) -> None:
    with scripted_server(file_script(raster.parent)) as server:
        with OpenAssets(AssetPolicy((server.host,)), sleep=no_wait) as assets:
            for row in range(0, 800, 100):
                assets.read(band(f"{server.url}/red.tif"), Window(0, row, 800, 100))
        probes = [r for r in server.requests if r.headers.get("range") == "bytes=0-0"]
    assert len(probes) == 1


def test_retrying_waits_longer_each_time_and_raises_the_last_error() -> None:
    waits: list[float] = []
    dropped: list[int] = []
    count = itertools.count()

    def work() -> None:
        raise SourceError(f"try {next(count)}")

    with pytest.raises(SourceError, match="try 4"):
        retrying(work, sleep=waits.append, before_retry=lambda: dropped.append(1), first_wait_s=1)
    assert len(waits) == len(dropped) == 4
    for step, wait in enumerate(waits):
        assert 0.5 * 2**step <= wait <= 1.5 * 2**step


def test_retrying_returns_what_a_later_try_gives_and_lets_other_errors_through() -> None:
    count = itertools.count()

    def work() -> str:
        if next(count) < 2:
            raise SourceError("not yet")
        return "done"

    assert retrying(work, sleep=no_wait) == "done"
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise DataError("for good")

    with pytest.raises(DataError):
        retrying(broken, sleep=no_wait)
    assert calls == [1]


def test_waiting_is_real_by_default() -> None:
    start = time.monotonic()
    with pytest.raises(SourceError):
        retrying(lambda: (_ for _ in ()).throw(SourceError("x")), tries=2, first_wait_s=0.05)
    assert time.monotonic() - start >= 0.025
