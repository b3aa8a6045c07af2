"""The fault matrix of the assets, row by row: A1 to A6 and A8 to A11."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMAND, Small
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import KEYS, optical_item, small_grid, utm_frame, write_tif
from servers import Answer, Request, file_script, scripted_server

from catalog.assets import AssetPolicy, OpenAssets
from catalog.composites import build_cube_shard, create_season
from catalog.cube import Outcome, Workspace, read_shard
from catalog.errors import DataError, EngineError
from catalog.scenes import BandSource
from catalog.sensors import describe_item

from affine import Affine  # isort: skip
from rasterio.windows import Window  # isort: skip

EDGE = 800
EVERYTHING = Window(0, 0, EDGE, EDGE)
FRAME, _ = utm_frame(size_m=10 * EDGE)
GRID = small_grid()
SEASON = "2024"


def no_wait(_: float) -> None:
    pass


def noise(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 9000, (EDGE, EDGE)).astype(np.uint16)


def band(href: object, **promises: object) -> BandSource:
    return BandSource("red", "red", str(href), 1e-4, -0.1, 0.0, **promises)


@pytest.fixture
def raster(tmp_path: Path) -> Path:
    return write_tif(tmp_path / "red.tif", noise(), FRAME, nodata=0)


def read(
    href: object, allowed: object, window: Window = EVERYTHING, **promises: object
) -> np.ndarray:
    with OpenAssets(AssetPolicy((str(allowed),)), sleep=no_wait) as assets:
        return assets.read(band(href, **promises), window)


def compose(folder: Path, items: list[dict], allowed: str) -> tuple[np.ndarray, Outcome]:
    """Optical layer of one shard, and what was told of it."""
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
    return read_shard(workspace, f"cube.zarr/{SEASON}/optical", GRID.shard(0, 0)), outcome


# --- A1: a band is missing -----------------------------------------------------------------------


def missing_band(folder: Path, key: str, status: int) -> None:
    first = optical_item(folder, "first", when="2024-08-10T10:00:00Z", paint=0.3)
    second = optical_item(folder, "second", when="2024-08-20T10:00:00Z", paint=0.5)
    expected, _ = compose(folder / "alone", [first], str(folder))
    with scripted_server(
        file_script(folder, lambda r: Answer(status) if f"second/{key}.tif" in r.path else None)
    ) as server:
        served = json.loads(json.dumps([first, second]).replace(str(folder), server.url))
        found, outcome = compose(folder / "both", served, server.host)
    np.testing.assert_array_equal(found, expected)
    (fault,) = outcome.set_aside
    kind = "asset-forbidden" if status == 403 else "asset-missing"
    assert (fault.what, fault.kind) == ("second", kind)
    assert f"second/{key}.tif" in fault.reason


@pytest.mark.parametrize("key", [*KEYS.values(), "scl"])
def test_a1_a_scene_with_a_missing_band_is_not_used_and_recorded(tmp_path: Path, key: str) -> None:
    missing_band(tmp_path, key, 404)


@pytest.mark.chaos
@pytest.mark.parametrize("status", [403, 410])
@pytest.mark.parametrize("key", [*KEYS.values(), "scl"])
def test_a1_also_where_the_band_is_refused_or_gone(tmp_path: Path, key: str, status: int) -> None:
    missing_band(tmp_path, key, status)


# --- A2: a server that fails in passing ----------------------------------------------------------


def flaky(answer: Answer, seed: int, *, share: float = 0.35) -> Callable[[Request], Answer | None]:
    """Spoil a share of the requests, but never five in a row: that is an outage."""
    chance, row, lock = random.Random(seed), itertools.count(), threading.Lock()

    def spoil(_: Request) -> Answer | None:
        with lock:
            if chance.random() > share or next(row) % 4 == 3:
                return None
            return answer

    return spoil


@pytest.mark.parametrize("answer", [Answer(503), Answer(cut=True)], ids=["503", "cut"])
def test_a2_of_40_reads_from_a_failing_server_all_are_right(
    raster: Path, answer: Answer, record_property: Callable[[str, object], None]
) -> None:
    windows = [Window(*divmod(17 * n, 500)[::-1], 300, 300) for n in range(40)]
    expected = noise()

    def right(number: int) -> bool:
        w = windows[number]
        with scripted_server(file_script(raster.parent, flaky(answer, number))) as server:
            found = read(f"{server.url}/red.tif", server.host, w)
        part = expected[w.row_off : w.row_off + 300, w.col_off : w.col_off + 300]
        return np.array_equal(found, part)

    with ThreadPoolExecutor(8) as pool:
        good = sum(pool.map(right, range(40)))
    record_property(f"reads from a failing server ({answer.status}, cut {answer.cut})", good)
    assert good == 40


# --- A3: cut files -------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True], ids=["local", "served"])
def test_a3_at_20_cuts_a_truncated_file_is_told_as_such(raster: Path, served: bool) -> None:
    data = raster.read_bytes()
    header = 4096  # the directory of a raster of this size ends before
    cuts = np.linspace(header, len(data) - 1, 20, dtype=int)
    for cut in cuts:
        raster.write_bytes(data[:cut])
        with pytest.raises(DataError) as caught:
            if served:
                with scripted_server(file_script(raster.parent)) as server:
                    read(f"{server.url}/red.tif", server.host)
            else:
                read(raster, raster.parent)
        assert caught.value.kind == "raster-truncated", cut


# --- A4: flipped bits ----------------------------------------------------------------------------


CODECS = ("none", "deflate", "lzw", "zstd", "lzma")


def multihash(data: bytes, algorithm: str = "sha256") -> str:
    code = {"sha1": "11", "sha256": "12", "sha512": "13", "md5": "d501"}[algorithm]
    digest = hashlib.new(algorithm, data).digest()
    return f"{code}{len(digest):02x}{digest.hex()}"


def flip_and_read(folder: Path, codec: str, flips: int) -> tuple[int, int]:
    """Of flips in a raster: found by its checksum, and read without an error if there is none."""
    path = write_tif(folder / "red.tif", noise(), FRAME, nodata=0, compress=codec)
    data, expected = path.read_bytes(), noise()
    checksum, chance = multihash(data), random.Random(codec)
    found = silent = 0
    for _ in range(flips):
        broken = bytearray(data)
        broken[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(broken)
        try:
            read(path, folder, checksum=checksum)
        except DataError as error:
            found += error.kind == "checksum-mismatch"
        try:
            silent += not np.array_equal(read(path, folder), expected)
        except DataError:
            continue
    return found, silent


@pytest.mark.parametrize("codec", CODECS)
def test_a4_every_flipped_bit_is_found_where_there_is_a_checksum(
    tmp_path: Path, codec: str, record_property: Callable[[str, object], None]
) -> None:
    found, silent = flip_and_read(tmp_path, codec, 20)
    record_property(f"flips in {codec}", f"{found} of 20 by checksum, {silent} silent without")
    assert found == 20


@pytest.mark.chaos
@pytest.mark.parametrize("codec", CODECS)
def test_a4_of_1500_flips_in_five_codecs_all_are_found(
    tmp_path: Path, codec: str, record_property: Callable[[str, object], None]
) -> None:
    found, silent = flip_and_read(tmp_path, codec, 300)
    record_property(f"flips in {codec}", f"{found} of 300 by checksum, {silent} silent without")
    assert found == 300


@pytest.mark.parametrize("algorithm", ["sha1", "sha256", "sha512", "md5"])
def test_a4_a_sound_file_passes_whatever_the_algorithm(raster: Path, algorithm: str) -> None:
    good = multihash(raster.read_bytes(), algorithm)
    np.testing.assert_array_equal(read(raster, raster.parent, checksum=good), noise())
    with pytest.raises(DataError, match=algorithm):
        read(raster, raster.parent, checksum=multihash(b"another file", algorithm))


@pytest.mark.parametrize("text", ["", "12", "1220", "xyz", "ff2000", "1210" + "0" * 32, "8" * 40])
def test_a4_what_is_no_multihash_promises_nothing(raster: Path, text: str) -> None:
    np.testing.assert_array_equal(read(raster, raster.parent, checksum=text), noise())


def test_a4_a_scene_whose_file_was_replaced_is_set_aside(tmp_path: Path) -> None:
    item = optical_item(tmp_path, "first", when="2024-08-10T10:00:00Z")
    red = Path(item["assets"]["red"]["href"])
    item["assets"]["red"]["file:checksum"] = multihash(red.read_bytes())
    _, outcome = compose(tmp_path / "before", [item], str(tmp_path))
    assert outcome.set_aside == ()
    red.write_bytes(Path(item["assets"]["nir"]["href"]).read_bytes() + b"\0")
    _, outcome = compose(tmp_path / "after", [item], str(tmp_path))
    assert [fault.kind for fault in outcome.set_aside] == ["checksum-mismatch"]


# --- A5: nothing to see --------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["no data", "sparse"])
def test_a5_a_tile_without_pixels_is_not_seen(tmp_path: Path, sparse: bool) -> None:
    item = optical_item(tmp_path, "first", when="2024-08-10T10:00:00Z", paint=float("nan"))
    if sparse:
        for key in KEYS.values():
            path = Path(item["assets"][key]["href"])
            empty = np.zeros((480, 480), np.uint16)
            write_tif(path, empty, utm_frame()[0], sparse_ok=True, nodata=None)
            assert path.stat().st_size < 4000  # no tile is stored
    optical, outcome = compose(tmp_path / "work", [item], str(tmp_path))
    assert not optical.any()  # 0 is no data
    assert outcome.facts["valid_fraction"] == 0
    looks = read_shard(
        Workspace(tmp_path / "work"), f"cube.zarr/{SEASON}/observations", GRID.shard(0, 0)
    )
    assert not looks.any()


# --- A6: in another place than promised ----------------------------------------------------------


def mismatches() -> Iterator[tuple[str, dict[str, object], dict[str, object]]]:
    """Sixty rasters: what is wrong, how it is written, what its item promises."""
    honest = {"crs": "EPSG:32632", "shape": (64, 64), "transform": tuple(FRAME)[:6]}
    a, _, c, _, e, f = honest["transform"]
    for n in range(10):
        zone = f"EPSG:{32601 + n if n < 5 else 32720 + n}"
        yield f"zone {zone}", {"crs": zone}, honest
        angle = 0.5 + 9 * n
        yield f"rotated {angle}", {"transform": FRAME @ Affine.rotation(angle)}, honest
        shift = (1, -1, 2, 10, 100)[n // 2] * a * (1 if n % 2 else 0.5)
        yield f"shifted {shift} m", {"transform": Affine(a, 0, c + shift, 0, e, f - shift)}, honest
        size = a * (0.5, 0.9, 0.99, 1.01, 1.1, 1.5, 2, 3, 6, 10)[n]
        yield f"pixels of {size} m", {"transform": Affine(size, 0, c, 0, -size, f)}, honest
        south_up = Affine(a, 0, c, 0, a * (n + 1) / 10, f - 640)
        yield f"south-up {n}", {"transform": south_up}, honest
        yield f"{n + 2} bands in one file", {"count": n + 2}, honest


MISMATCHES = list(mismatches())


def test_a6_sixty_rasters_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    assert len(MISMATCHES) == 60
    path, accepted = tmp_path / "red.tif", []
    for what, written, promised in MISMATCHES:
        write_stack(path, **written)
        try:
            read(path, tmp_path, Window(0, 0, 64, 64), **promised)
        except DataError as error:
            if error.kind != "geo-mismatch":
                accepted.append((what, error.kind))
        else:
            accepted.append((what, "read"))
    assert accepted == []
    write_stack(path)
    read(path, tmp_path, Window(0, 0, 64, 64), **MISMATCHES[0][2])


def write_stack(
    path: Path, *, crs: str = "EPSG:32632", transform: Affine = FRAME, count: int = 1
) -> None:
    import rasterio

    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=64,
        height=64,
        count=count,
        dtype="uint16",
        crs=crs,
        transform=transform,
    ) as file:
        file.write(np.ones((count, 64, 64), np.uint16))


# --- A8: hostile links ---------------------------------------------------------------------------


def hostile(port: int) -> list[str]:
    here = f"127.0.0.1:{port}"
    return [
        f"http://{here}/a.tif",
        f"https://{here}/a.tif",
        f"http://localhost:{port}/a.tif",
        f"http://[::1]:{port}/a.tif",
        f"http://[::ffff:127.0.0.1]:{port}/a.tif",
        f"http://2130706433:{port}/a.tif",
        f"http://0x7f000001:{port}/a.tif",
        f"http://0177.0.0.1:{port}/a.tif",
        f"http://127.1:{port}/a.tif",
        f"http://0:{port}/a.tif",
        f"http://0.0.0.0:{port}/a.tif",
        f"http://127.0.0.1.:{port}/a.tif",
        f"http://good.example@{here}/a.tif",
        f"https://good.example:443@{here}/a.tif",
        f"https://good.example%40{here}/a.tif",
        f"https://{here}#good.example/a.tif",
        f"https://{here}?good.example/a.tif",
        f"https://{here}\\@good.example/a.tif",
        f"https://good.example\\@{here}/a.tif",
        f"http://{here}/https://good.example/a.tif",
        f"//{here}/a.tif",
        f"http:/{here}/a.tif",
        f"http:\\\\{here}\\a.tif",
        f"HTTP://{here}/a.tif",
        f"ftp://{here}/a.tif",
        f"gopher://{here}/a.tif",
        f"dict://{here}/a.tif",
        f"file://{here}/a.tif",
        f"ws://{here}/a.tif",
        f"/vsicurl/http://{here}/a.tif",
        f"/vsicurl?url=http%3A%2F%2F{here}%2Fa.tif",
        f"/vsicurl_streaming/http://{here}/a.tif",
        f"/vsizip/vsicurl/http://{here}/a.zip/a.tif",
        f"/vsizip/{{/vsicurl/http://{here}/a.zip}}/a.tif",
        f"/vsitar//vsicurl/http://{here}/a.tar/a.tif",
        f"/vsigzip//vsicurl/http://{here}/a.tif.gz",
        f"/vsisubfile/0_9,/vsicurl/http://{here}/a.tif",
        f"/vsicached?file=/vsicurl/http://{here}/a.tif",
        f"/vsisparse//vsicurl/http://{here}/a.xml",
        f"/vsicrypt/key=a,file=/vsicurl/http://{here}/a.tif",
        f"/vsiwebhdfs/http://{here}/webhdfs/v1/a.tif",
        f"/vsis3/{here}/a.tif",
        "/vsis3_streaming/bucket/a.tif",
        "/vsigs/bucket/a.tif",
        "/vsiaz/container/a.tif",
        "/vsiswift/bucket/a.tif",
        "/vsihdfs/hdfs://host/a.tif",
        "/vsimem/a.tif",
        "/vsistdin/",
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>http://{here}/</ServerUrl></Service></GDAL_WMS>',
        f"WMS:http://{here}/?",
        f"WCS:http://{here}/?",
        f"vrt:///vsicurl/http://{here}/a.tif",
        f"GTIFF_DIR:1:/vsicurl/http://{here}/a.tif",
        f"NETCDF:http://{here}/a.nc:red",
        f"ZARR:/vsicurl/http://{here}/a.zarr",
        f"COG:/vsicurl/http://{here}/a.tif",
        "s3://elsewhere/a.tif",
        "https://169.254.169.254/latest/meta-data/iam",
        "file:///etc/passwd",
        "/etc/passwd",
        "/proc/self/environ",
    ]


@pytest.fixture(scope="module")
def contacts() -> Iterator[list[object]]:
    """Every address that Python looks up or connects to."""
    seen: list[object] = []
    watching = [True]

    def watch(event: str, details: tuple[object, ...]) -> None:
        if watching[0] and event in ("socket.connect", "socket.getaddrinfo"):
            seen.append(details)

    sys.addaudithook(watch)  # cannot be taken off again, so it is told to sleep
    yield seen
    watching[0] = False


def test_a8_of_more_than_sixty_hostile_links_none_is_followed(
    contacts: list[object], record_property: Callable[[str, object], None]
) -> None:
    with scripted_server(lambda _: Answer(200, b"II*\0")) as server:
        hrefs = hostile(int(server.host.split(":")[1]))
        assert len(set(hrefs)) == len(hrefs) >= 60
        contacts.clear()
        accepted = []
        for href in hrefs:
            try:
                read(href, "good.example")
            except DataError as error:
                if error.kind != "href-refused":
                    accepted.append(href)
            else:
                accepted.append(href)
        assert accepted == []
        assert server.requests == []
        assert contacts == []
    record_property("hostile links", f"{len(hrefs)}, followed 0")


# --- A9: ids -------------------------------------------------------------------------------------

ODD_IDS = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="./\\%2fe~\0\n :", max_size=40),
    st.sampled_from(
        ["..", "../..", "/etc/passwd", "a/../../b", "a\0b", "a\nb", "%2e%2e%2f", "a" * 300]
    ),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", fullmatch=True),
)
GOOD_ITEM: dict = {}


def id_is_safe_or_refused(folder: Path, name: str) -> None:
    if not GOOD_ITEM:
        GOOD_ITEM.update(optical_item(folder, "first", when="2024-08-10T10:00:00Z"))
    try:
        scene = describe_item(GOOD_ITEM | {"id": name})
    except DataError as error:
        assert error.kind == "bad-item"
        return
    inside = Path("/store") / scene.id
    assert inside.parent == Path("/store")
    assert os.path.normpath(inside) == str(inside)
    assert len(os.fsencode(scene.id)) <= 128
    assert scene.id.isprintable()


@settings(max_examples=300, deadline=None)
@given(name=ODD_IDS)
def test_a9_an_id_is_a_plain_name_or_the_item_is_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    id_is_safe_or_refused(tmp_path_factory.getbasetemp() / "ids", name)


@pytest.mark.chaos
@settings(max_examples=10_000, deadline=None)
@given(name=ODD_IDS)
def test_a9_of_10000_ids_none_leads_outside(
    tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    id_is_safe_or_refused(tmp_path_factory.getbasetemp() / "ids", name)


# --- A10: headers that lie -----------------------------------------------------------------------

LIAR = """
import re, sys
from pathlib import Path
from catalog.assets import AssetPolicy, OpenAssets
from catalog.errors import DataError
from catalog.scenes import BandSource
from rasterio.windows import Window

folder, kinds = Path(sys.argv[1]), {}
for path in sorted(folder.glob("*.tif")):
    band = BandSource("red", "red", str(path), 1.0, 0.0, None)
    try:
        with OpenAssets(AssetPolicy((str(folder),)), sleep=lambda _: None) as assets:
            assets.read(band, Window(0, 0, 64, 64))
    except DataError as error:
        kinds[error.kind] = kinds.get(error.kind, 0) + 1
    else:
        kinds["read"] = kinds.get("read", 0) + 1
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(kinds, int(peak[1]) // 1024)
"""


def lie(path: Path, edge: int, block: int | None) -> None:
    """Let the header of a small raster claim an edge in pixels, in strips or in tiles."""
    tiles = {} if block is None else {"blockxsize": 16, "blockysize": 16}
    pixels = np.ones((16, 16), np.uint16)
    write_tif(path, pixels, FRAME, tiled=block is not None, compress="none", **tiles)
    data = bytearray(path.read_bytes())
    claims = {256: edge, 257: edge, 278: edge}
    if block is not None:
        claims |= {322: block, 323: block}
    for entry in range(int.from_bytes(data[8:10], "little")):
        at = 10 + 12 * entry
        tag = int.from_bytes(data[at : at + 2], "little")
        if tag in claims:
            data[at + 2 : at + 4] = (4).to_bytes(2, "little")
            data[at + 8 : at + 12] = claims[tag].to_bytes(4, "little")
    path.write_bytes(data + b"\0" * 500_000)


def test_a10_forty_headers_that_claim_too_much_are_refused_within_300_mb(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    edges = np.geomspace(4_000, 2_000_000, 20, dtype=int)
    for number, edge in enumerate(edges):
        lie(tmp_path / f"strips{number}.tif", int(edge), None)
        lie(tmp_path / f"tiles{number}.tif", int(edge), int(edge) // 16 * 16)
    told = subprocess.run(
        [sys.executable, "-c", LIAR, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    kinds, _, peak = told.strip().rpartition(" ")
    record_property("header lies", f"{kinds}, peak {peak} MB")
    assert "read" not in kinds
    assert sum(map(int, "".join(c if c.isdigit() else " " for c in kinds).split())) == 40
    assert int(peak) < 300


# --- A11: secrets --------------------------------------------------------------------------------

CANARIES = ("sig-canary-1f3a", "user-canary-9c2b", "env-canary-77aa-secret")


def answers() -> dict[str, Answer]:
    return {
        "red": Answer(404),
        "green": Answer(403),
        "blue": Answer(200, b"no raster"),
        "nir": Answer(302, headers={"location": f"http://127.0.0.1:9/?{CANARIES[0]}"}),
    }


@pytest.mark.parametrize("key", sorted(answers()))
def test_a11_no_fault_tells_a_secret(raster: Path, key: str) -> None:
    with scripted_server(lambda _: answers()[key]) as server:
        hrefs = [
            f"{server.url}/red.tif?sig={CANARIES[0]}",
            f"{server.url.replace('//', f'//{CANARIES[1]}:{CANARIES[0]}@')}/red.tif",
            f"{server.url}/red.tif#{CANARIES[0]}",
        ]
        for href in hrefs:
            with pytest.raises(EngineError) as caught:
                read(href, server.host)
            error: BaseException | None = caught.value
            while error is not None:
                assert not any(canary in str(error) for canary in CANARIES)
                error = None if error.__suppress_context__ else error.__context__
    assert raster.exists()


CUBES_ONLY = """
import sys
from inventory_engine.logs import quiet
from inventory_engine.pipeline import run_pipeline
from inventory_engine.settings_file import load_settings

quiet()
run_pipeline(load_settings(sys.argv[1]), only=["terrain", "cube"])
"""


def run_over_failing_links(small: Small, folder: Path, command: list[str]) -> list[str]:
    """Names of all outputs of a run that hold a secret: files, standard output and error."""
    items = json.loads(small.region.items.read_text())
    faults = itertools.cycle(["red", "green", "nir"])  # those that are not tried again
    with scripted_server(lambda r: answers()[r.path.split("?")[0].strip("/")]) as server:
        for item in items["features"]:
            for asset in item["assets"].values():
                asset["href"] = f"{server.url}/{next(faults)}?sig={CANARIES[0]}"
        folder.mkdir(exist_ok=True)
        (folder / "items.json").write_text(json.dumps(items))
        collections = {"optical": ["sentinel-2-l2a"], "dem": ["cop-dem-glo-30"]}
        catalog = {"url": "items.json", "collections": collections, "allowed": [server.host]}
        path = small.settings(folder, catalog=catalog)
        loud = {"CPL_DEBUG": "ON", "CPL_CURL_VERBOSE": "YES"}
        done = subprocess.run(
            [*command, str(path)],
            capture_output=True,
            env=os.environ | loud | {"AWS_SECRET_ACCESS_KEY": CANARIES[2]},
            timeout=300,
            check=True,  # every scene is set aside, nothing fails
        )
        assert any(CANARIES[0] in request.path for request in server.requests)
    written = [p for p in (folder / "work").rglob("*") if p.is_file()]
    receipts = [p for p in written if "records" in p.parts]
    assert sum(b"href-refused" in p.read_bytes() for p in receipts)
    texts = {str(p): p.read_bytes() for p in written}
    texts |= {"standard output": done.stdout, "standard error": done.stderr}
    return [n for n, text in texts.items() if any(c.encode() in text for c in CANARIES)]


@pytest.mark.slow
def test_a11_cubes_from_signed_links_that_fail_leave_no_secret_anywhere(
    small: Small, tmp_path: Path
) -> None:
    """Receipts, logs, kept searches, the terminal, and the libraries at their loudest."""
    assert run_over_failing_links(small, tmp_path, [sys.executable, "-c", CUBES_ONLY]) == []


@pytest.mark.chaos
@pytest.mark.slow
def test_a11_nor_does_a_whole_run_with_its_report(small: Small, tmp_path: Path) -> None:
    assert run_over_failing_links(small, tmp_path, [*COMMAND, "run"]) == []
    assert (tmp_path / "work" / "report" / "index.html").exists()
