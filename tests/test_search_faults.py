"""Rows S1 to S12 of the fault matrix: what a catalogue can do wrong, and what must come of it.

Each row injects its fault into a real server; the full counts run with ``-m chaos``.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from catalogues import HERE, NOWHERE, bare_item, find, ids, recorded_items
from hypothesis import given, settings
from hypothesis import strategies as st
from rasters import landsat_item, write_items
from servers import Answer, Request, api, page, paged, scripted_server

import catalog.search
from catalog.errors import DataError, EngineError, SourceError, UsageError
from catalog.grid import region_grid, split_box
from catalog.search import open_source

ITEMS = [bare_item(f"item{n}") for n in range(7)]
PAGES = [ITEMS[:3], ITEMS[3:5], ITEMS[5:]]
ALL = sorted(item["id"] for item in ITEMS)


def counts(few: int, many: int) -> pytest.MarkDecorator:
    """Seeds: a few in every run, all with ``-m chaos``."""
    return pytest.mark.parametrize(
        "seed",
        [pytest.param(n, marks=() if n < few else pytest.mark.chaos) for n in range(many)],
    )


def paged_by_get(pages: list[list[dict]]) -> Callable[[Request, str], Answer]:
    """A search whose further pages are links to GET."""

    def answer(request: Request, root: str) -> Answer:
        asked = parse_qs(urlsplit(request.path).query)
        number = int(asked.get("token", ["0"])[0])
        following = None
        if number + 1 < len(pages):
            following = {"href": f"{root}/search?token={number + 1}", "method": "GET"}
        return page(pages[number], following, numberMatched=sum(map(len, pages)))

    return answer


@counts(4, 40)
def test_s1_bursts_of_bad_answers_lose_nothing(seed: int) -> None:
    dice = random.Random(seed)
    good = paged_by_get(PAGES) if seed % 2 else paged(PAGES, numberMatched=len(ITEMS))
    burst_left = {number: dice.randint(0, 5) for number in range(3)}
    served: list[str] = []

    def flaky(request: Request, root: str) -> Answer:
        number = len(served)
        if burst_left[number] > 0:
            burst_left[number] -= 1
            return Answer(dice.choice([500, 502, 503, 504]), b"<html>")
        served.append(request.method)
        return good(request, root)

    with scripted_server(api(flaky)) as server:
        assert ids(find(server.url)) == ALL
    assert served == (["POST", "GET", "GET"] if seed % 2 else ["POST"] * 3)


@counts(2, 20)
def test_s2_a_catalogue_that_asks_for_patience_is_given_it(seed: int) -> None:
    asked_at: list[float] = []

    def busy(request: Request, root: str) -> Answer:
        asked_at.append(time.monotonic())
        if len(asked_at) == 1:
            return Answer(429, headers={"retry-after": "1"})
        return page([bare_item("a")])

    with scripted_server(api(busy)) as server:
        assert ids(find(server.url)) == ["a"]
    assert asked_at[1] - asked_at[0] >= 1.0


def test_s2_patience_ends_at_a_minute() -> None:
    with scripted_server(api(paged([[]]))) as server:
        io = open_source(server.url, policy=NOWHERE)._items._io
        assert io.session.get_adapter(server.url).max_retries.parse_retry_after("86400") == 60


@contextmanager
def rude_server(behave: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """A server below HTTP: `behave` has the connection, and the request's first line."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    polite = api(lambda *_: page([bare_item("a")]))

    def serve(connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(65536)
                if not part:
                    return
                head += part
            if head.startswith(b"GET / "):
                root = Request("GET", "/", {"host": urlsplit(url).netloc}, b"")
                connection.sendall(as_http(polite(root)))
            else:
                behave(connection, head)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=quietly, args=(serve, connection), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield url
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def quietly(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    try:
        serve(connection)
    except OSError:
        connection.close()


def as_http(answer: Answer, length: int | None = None) -> bytes:
    length = len(answer.body) if length is None else length
    head = f"HTTP/1.1 {answer.status} OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    return head.encode() + answer.body


def reset(connection: socket.socket, _: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def half(connection: socket.socket, _: bytes) -> None:
    whole = page([bare_item("a")])
    connection.sendall(as_http(Answer(200, whole.body[:200]), len(whole.body)))


def hang(connection: socket.socket, _: bytes) -> None:
    time.sleep(0.6)


def drip(connection: socket.socket, _: bytes) -> None:
    connection.sendall(as_http(Answer(200), 10_000))
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.05)


RUDE = {"reset": reset, "half": half, "hang": hang, "drip": drip}


@pytest.mark.parametrize("how", RUDE)
@counts(1, 10)
def test_s3_a_connection_that_fails_a_few_times_does_not_show(how: str, seed: int) -> None:
    left = iter(range(1 + seed % 3))

    def rude(connection: socket.socket, head: bytes) -> None:
        if next(left, None) is None:
            connection.sendall(as_http(page([bare_item("a")])))
        else:
            RUDE[how](connection, head)

    with rude_server(rude) as url:
        source = open_source(url, policy=NOWHERE, backoff_s=0, read_s=0.3)
        found = source.search(
            collections=["sentinel-2-l2a"], boxes=HERE, start="2024-07-01", end=None
        )
    assert ids(found) == ["a"]


@pytest.mark.parametrize("how", RUDE)
def test_s3_a_connection_that_always_fails_is_unreachable_within_its_deadline(how: str) -> None:
    with rude_server(RUDE[how]) as url:
        source = open_source(url, policy=NOWHERE, backoff_s=0, read_s=0.3)
        began = time.monotonic()
        with pytest.raises(SourceError) as caught:
            source.search(collections=["sentinel-2-l2a"], boxes=HERE, start=None, end=None)
    assert caught.value.kind == "catalog-unreachable"
    assert time.monotonic() - began < 30  # six tries of 0.3 s, or four of 0.6 s, and a slow machine


@counts(2, 20)
def test_s4_empty_pages_lose_nothing_and_missing_items_are_an_error(seed: int) -> None:
    dice = random.Random(seed)
    pages = [list(part) for part in PAGES]
    for _ in range(dice.randint(1, 4)):
        pages.insert(dice.randint(0, len(pages) - 1), [])
    with scripted_server(api(paged(pages, numberMatched=len(ITEMS)))) as server:
        assert ids(find(server.url)) == ALL
    with (
        scripted_server(api(paged(pages, numberMatched=len(ITEMS) + 1))) as server,
        pytest.raises(SourceError) as caught,
    ):
        find(server.url)
    assert caught.value.kind == "catalog-incomplete"


@counts(3, 50)
def test_s5_items_repeated_across_pages_count_once_in_one_order(seed: int) -> None:
    dice = random.Random(seed)
    shuffled = ITEMS * 3
    dice.shuffle(shuffled)
    pages = [shuffled[n : n + 4] for n in range(0, len(shuffled), 4)]
    with scripted_server(api(paged(pages, numberMatched=len(ITEMS)))) as server:
        assert ids(find(server.url)) == ALL


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_s6_pages_that_go_in_circles_stop_at_the_first_repetition(length: int, method: str) -> None:
    def circle(request: Request, root: str) -> Answer:
        asked = parse_qs(urlsplit(request.path).query)
        body = json.loads(request.body or b"{}")
        token = (int(asked.get("token", [body.get("token", 0)])[0]) + 1) % length
        following = {"href": f"{root}/search?token={token}", "method": method}
        if method == "POST":
            following = {"href": f"{root}/search", "method": method, "body": {"token": token}}
        return page([bare_item("a")], following)

    with scripted_server(api(circle)) as server:
        with pytest.raises(SourceError, match="in circles") as caught:
            find(server.url)
        assert len([r for r in server.requests if r.path.startswith("/search")]) <= length + 1
    assert caught.value.kind == "catalog-incomplete"


def test_s6_pages_without_end_stop_at_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog.search, "_MAX_PAGES", 20)
    numbers = itertools.count()

    def endless(request: Request, root: str) -> Answer:
        return page([], {"href": f"{root}/search?token={next(numbers)}", "method": "GET"})

    with scripted_server(api(endless)) as server:
        with pytest.raises(SourceError, match="more than 20 pages") as caught:
            find(server.url)
        assert len([r for r in server.requests if r.path.startswith("/search")]) == 20
    assert caught.value.kind == "catalog-incomplete"


FOREIGN = {
    "another port": "http://{other}/search",
    "another port by its name": "http://localhost:{port}/search",
    "another scheme": "https://{home}/search",
    "no scheme": "//{other}/search",
    "a file": "file:///etc/passwd",
    "ftp": "ftp://{home}/search",
    "a user name": "http://{home}@{other}/search",
    "a port that is a name": "http://{home}:search@{other}/",
}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("where", FOREIGN)
def test_s7_a_link_to_another_host_or_scheme_is_refused_unseen(where: str, method: str) -> None:
    with scripted_server(lambda _: page([bare_item("b")])) as other:

        def lead_away(request: Request, root: str) -> Answer:
            home = root.removeprefix("http://")
            port = other.host.partition(":")[2]
            href = FOREIGN[where].format(home=home, other=other.host, port=port)
            return page([bare_item("a")], {"href": href, "method": method})

        with scripted_server(api(lead_away)) as server, pytest.raises(DataError) as caught:
            find(server.url)
        assert caught.value.kind == "href-refused"
        assert other.requests == []


def test_s7_a_link_that_would_change_something_is_not_followed() -> None:
    def destroy(request: Request, root: str) -> Answer:
        return page([bare_item("a")], {"href": f"{root}/collections/all", "method": "DELETE"})

    with scripted_server(api(destroy)) as server:
        with pytest.raises(SourceError, match="DELETE"):
            find(server.url)
        assert {r.method for r in server.requests} == {"GET", "POST"}


PATHS = [
    ("id",),
    ("type",),
    ("bbox",),
    ("bbox", 0),
    ("geometry",),
    ("collection",),
    ("properties",),
    ("properties", "datetime"),
    ("properties", "s2:processing_baseline"),
    ("properties", "eo:cloud_cover"),
    ("assets",),
    ("assets", "red"),
    ("assets", "red", "href"),
    ("assets", "scl"),
    ("links",),
    ("stac_version",),
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JUNK = (
    SCALARS
    | st.lists(SCALARS, max_size=4)
    | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
)
GONE = object()


def mutate(item: dict, path: tuple, value: object) -> dict:
    item = copy.deepcopy(item)
    holder = item
    for step in path[:-1]:
        holder = holder[step]
    if value is GONE:
        holder.pop(path[-1])
    else:
        holder[path[-1]] = value
    return item


def survives(path: Path, where: tuple, value: object) -> None:
    """Search a file with one mutated item among good ones: those stay, it is named or used."""
    odd = mutate(bare_item("odd", **{"eo:cloud_cover": 5.0}), where, value)
    write_items(path, [bare_item("a"), odd, bare_item("b")])
    try:
        found = find(path, start=None, end=None)
    except EngineError as error:
        pytest.fail(f"one bad item ended the search: {error}")
    assert {"a", "b"} <= set(ids(found))
    assert len(found.scenes) + len(found.set_aside) <= 3


@pytest.fixture(scope="module")
def items_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s8") / "items.json"


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATHS), st.just(GONE) | JUNK)
def test_s8_a_mutated_item_never_ends_a_search(
    items_file: Path, where: tuple, value: object
) -> None:
    survives(items_file, where, value)


@pytest.mark.chaos
@settings(max_examples=200, deadline=None)
@given(st.sampled_from(PATHS), st.just(GONE) | JUNK)
def test_s8_two_hundred_mutated_items_never_end_a_search(
    items_file: Path, where: tuple, value: object
) -> None:
    survives(items_file, where, value)


def test_s8_a_page_without_end_is_not_read_to_its_end() -> None:
    sent: list[int] = []

    def flood(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(200):
            connection.sendall(b"100000\r\n" + b" " * 2**20 + b"\r\n")
            sent.append(2**20)

    with rude_server(flood) as url, pytest.raises(SourceError, match="more than") as caught:
        find(url)
    assert caught.value.kind == "catalog-bad-answer"
    assert sum(sent) < 100 * 2**20


@counts(3, 30)
def test_s9_of_a_reprocessed_granule_the_newest_is_kept_and_both_are_named(
    seed: int, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    old, new = sorted(dice.sample([2.05, 2.12, 3.0, 4.0, 5.09, 5.1, 5.11], 2))
    tile = f"{dice.randint(1, 60):02d}TPS"

    def processing(name: str, baseline: float) -> dict:
        text = f"{baseline:05.2f}"
        datatake = f"GS2B_20240812T101019_035759_N{text}"
        return bare_item(
            name,
            **{
                "s2:processing_baseline": text,
                "s2:datatake_id": datatake,
                "s2:mgrs_tile": tile,
            },
        )

    items = [processing("b-old", old), processing("a-new", new)]
    dice.shuffle(items)
    found = find(write_items(tmp_path / "items.json", items))
    assert ids(found) == ["a-new"]
    (fault,) = found.set_aside
    assert (fault.what, fault.kind) == ("b-old", "superseded")
    assert "a-new" in fault.reason


def landsat(item_id: str, product: str, tmp: Path) -> dict:
    item = landsat_item(tmp, item_id, when="2023-10-08T17:37:26Z")
    for key, asset in item["assets"].items():
        asset["href"] = f"https://assets.example/{product}/{product}_{key}.TIF"
    return item


@counts(3, 30)
def test_s9_of_a_landsat_scene_processed_again_the_newest_is_kept(
    seed: int, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    first, second = (f"202311{day:02d}" for day in sorted(dice.sample(range(1, 31), 2)))
    scene = f"LC08_L2SP_{dice.randint(1, 233):03d}032_20231008"
    old_tier = dice.choice(["T1", "T2"])
    items = [
        # The catalogue's own ids leave the day of processing out.
        landsat(f"{scene}_02_{old_tier}-a", f"{scene}_{first}_02_{old_tier}", tmp_path),
        landsat(f"{scene}_02_T1-b", f"{scene}_{second}_02_T1", tmp_path),
        landsat("next-row", f"{scene.replace('032_', '033_')}_{first}_02_T1", tmp_path),
        landsat("next-day", f"{scene[:-1]}9_{first}_02_T1", tmp_path),
    ]
    dice.shuffle(items)
    found = find(
        write_items(tmp_path / "items.json", items),
        collections=["landsat-c2-l2"],
        start=None,
        end=None,
    )
    assert ids(found) == [f"{scene}_02_T1-b", "next-day", "next-row"]
    (fault,) = found.set_aside
    assert (fault.what, fault.kind) == (f"{scene}_02_{old_tier}-a", "superseded")
    assert f"{scene}_02_T1-b" in fault.reason
    assert first in fault.reason
    assert second in fault.reason


def test_s9_of_one_day_of_processing_the_better_tier_is_kept(tmp_path: Path) -> None:
    scene = "LC08_L2SP_033032_20231008_20231017_02"
    items = [landsat(f"{scene}_{tier}", f"{scene}_{tier}", tmp_path) for tier in ("T2", "T1")]
    for order in (items, items[::-1]):
        path = write_items(tmp_path / "items.json", order)
        found = find(path, collections=["landsat-c2-l2"], start=None, end=None)
        assert ids(found) == [f"{scene}_T1"]


@pytest.mark.real_data
def test_s9_recorded_landsat_scenes_are_all_different(tmp_path: Path) -> None:
    items = [i for i in recorded_items() if i["collection"] == "landsat-c2-l2"]
    assert len(items) > 5
    path = write_items(tmp_path / "items.json", items)
    whole = [(-180.0, -90.0, 180.0, 90.0)]
    found = find(path, collections=["landsat-c2-l2"], boxes=whole, start=None, end=None)
    assert "superseded" not in {fault.kind for fault in found.set_aside}
    products = {re.search(r"/(L[^/]+_\d{8}_\d{8}_02_T\d)/", s.bands[0].href) for s in found.scenes}
    assert None not in products


@counts(4, 40)
def test_s10_a_scene_whose_fields_contradict_each_other_is_not_used(
    seed: int, tmp_path: Path
) -> None:
    """What no field tells, the pixels do: see the offsets in ``test_composites``."""
    lying = bool(seed % 2)
    late = bool(seed // 2 % 2)
    item = bare_item("scene", **{"s2:processing_baseline": "05.11" if late else "02.12"})
    item["properties"]["earthsearch:boa_offset_applied"] = False
    for asset in item["assets"].values():
        asset["raster:bands"] = [{"offset": -0.1 if late != lying else 0}]
    found = find(write_items(tmp_path / "items.json", [item, bare_item("good")]))
    assert ids(found) == (["good"] if lying else ["good", "scene"])
    assert [fault.kind for fault in found.set_aside] == ["radiometry-doubtful"] * lying


@st.composite
def any_box(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """Boxes as people write them: over 180 degrees, 0 to 360, at poles, without area."""
    west = draw(st.floats(-540, 540) | st.sampled_from([-180.0, 0.0, 179.5, 180.0, 359.0, 360.0]))
    width = draw(st.floats(0, 400) | st.sampled_from([0.0, 1e-9, 1.0, 180.0, 360.0]))
    south, north = sorted(
        draw(st.floats(-90, 90) | st.sampled_from([-90.0, 90.0])) for _ in range(2)
    )
    return west, south, west + width, north


def area(box: tuple[float, float, float, float]) -> float:
    """Steradians."""
    west, south, east, north = box
    return math.radians(east - west) * (
        math.sin(math.radians(north)) - math.sin(math.radians(south))
    )


def is_kept(box: tuple[float, float, float, float]) -> None:
    parts = split_box(*box)
    assert 1 <= len(parts) <= 2
    for west, south, east, north in parts:
        assert -180 <= west <= east <= 180
        assert -90 <= south <= north <= 90
    west, south, east, north = box
    wanted = (west, south, min(east, west + 360), north)
    assert sum(map(area, parts)) == pytest.approx(area(wanted), abs=1e-9)
    for share in (0, 0.3, 0.7, 1):  # each place of the box is in a part, whole turns away
        lon = west + share * (wanted[2] - west)
        assert any(
            part[0] - 1e-9 <= lon + turn <= part[2] + 1e-9
            for part in parts
            for turn in range(-1080, 1081, 360)
        )


@settings(max_examples=60, deadline=None)
@given(any_box())
def test_s12_any_box_becomes_valid_ones_of_the_same_area(
    box: tuple[float, float, float, float],
) -> None:
    is_kept(box)


@pytest.mark.chaos
@settings(max_examples=500, deadline=None)
@given(any_box())
def test_s12_five_hundred_boxes_become_valid_ones_of_the_same_area(
    box: tuple[float, float, float, float],
) -> None:
    is_kept(box)


@pytest.mark.parametrize(
    ("box", "parts"),
    [
        ((179.0, -17.0, -179.0, -16.0), [(179, -17, 180, -16), (-180, -17, -179, -16)]),
        ((350.0, 60.0, 10.0, 61.0), [(-10, 60, 10, 61)]),
        ((190.0, 60.0, 200.0, 61.0), [(-170, 60, -160, 61)]),
        ((10.0, 46.0, 11.0, 47.0), [(10, 46, 11, 47)]),
        ((-180.0, 80.0, 180.0, 90.0), [(-180, 80, 180, 90)]),
        ((0.0, -90.0, 360.0, -80.0), [(-180, -90, 180, -80)]),
        ((10.0, 46.0, 10.0, 46.0), [(10, 46, 10, 46)]),
        ((370.0, 46.0, 370.0, 46.0), [(10, 46, 10, 46)]),
    ],
)
def test_s12_catalogues_are_asked_for_valid_boxes_alone(box: tuple, parts: list[tuple]) -> None:
    with scripted_server(api(paged([[]]))) as server:
        find(server.url, boxes=[box])
        asked = [json.loads(r.body)["bbox"] for r in server.requests if r.path == "/search"]
    assert asked == [list(part) for part in parts]


@pytest.mark.parametrize(
    "box",
    [
        (0, 10, 1, 5),
        (0, -91, 1, 5),
        (0, 0, 1, 91),
        (float("nan"), 0, 1, 1),
        (0, 0, float("inf"), 1),
    ],
)
def test_s12_what_is_no_box_is_a_bad_question(box: tuple, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no box in degrees"):
        find(write_items(tmp_path / "items.json", []), boxes=[box])


@pytest.mark.parametrize("lon", [-179.4, -179.0, 179.3, 180.0])
@pytest.mark.parametrize("lat", [-16.5, 68.0, 83.0])
def test_s12_every_shard_of_a_region_at_the_antimeridian_has_valid_boxes(
    lon: float, lat: float
) -> None:
    grid = region_grid([lon - 0.6, lon + 0.6], [lat, lat + 0.5], margin_m=30_000)
    for shard in grid.shards():
        for west, south, east, north in shard.lonlat_boxes:
            assert -180 <= west <= east <= 180
            assert east - west < 20
            assert south <= north
