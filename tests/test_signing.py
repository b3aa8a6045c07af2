"""Signed links: against a loopback service that gives tokens and lends files only against them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from rasters import dem_item, small_grid, utm_frame, write_tif
from servers import (
    Answer,
    Request,
    ScriptedServer,
    file_script,
    json_answer,
    scripted_server,
    stac_server,
)

from catalog.assets import AssetPolicy, OpenAssets
from catalog.cube import Workspace
from catalog.errors import DataError, EngineError, SourceError, UsageError
from catalog.saved_search import save_search
from catalog.scenes import BandSource
from catalog.search import open_source
from catalog.sensors import describe_item
from catalog.signing import TokenSource
from catalog.terrain import create_terrain
from inventory_engine.work import TaskMaker

from rasterio.windows import Window  # isort: skip

CANARY = "CANARY"
BLOB = "https://account.blob.core.windows.net/container/deep/red.tif"
WHOLE = Window(0, 0, 800, 800)


def no_wait(_: float) -> None:
    pass


def token_answer(query: str, *, minutes: float = 45, now: datetime | None = None) -> Answer:
    now = now or datetime.now(UTC)
    answer = json_answer(
        {"token": query, "msft:expiry": (now + timedelta(minutes=minutes)).isoformat()}
    )
    answer.headers["date"] = format_datetime(now, usegmt=True)
    return answer


@dataclass
class Lender:
    """Gives numbered tokens and lends files against the last one; see :meth:`script`."""

    folder: Path
    minutes: float = 45
    uses: int = 10**9
    """How many requests for files one token is good for."""
    spoil_token: Callable[[], Answer | None] = lambda: None
    spoil_file: Callable[[Request], Answer | None] = lambda _: None
    given: int = 0
    left: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def script(self, request: Request) -> Answer:
        path = urlsplit(request.path)
        with self.lock:
            if path.path.startswith("/token/"):
                return self.spoil_token() or self._give()
            signature = parse_qs(path.query).get("sig", [""])[0]
            if signature != f"{CANARY}{self.given}" or self.left <= 0:
                return Answer(403, b"AuthenticationFailed")
            self.left -= 1
        request = Request(request.method, path.path, request.headers, request.body)
        return file_script(self.folder, self.spoil_file)(request)

    def _give(self) -> Answer:
        self.given += 1
        self.left = self.uses
        return token_answer(f"sv=2025&se=later&sp=r&sig={CANARY}{self.given}", minutes=self.minutes)


@dataclass
class Lent:
    """A lender at work, and the policy and band to read its raster with."""

    server: ScriptedServer
    lender: Lender

    @property
    def policy(self) -> AssetPolicy:
        return AssetPolicy((self.server.host,), f"{self.server.url}/token", (self.server.host,))

    def band(self, query: str = "") -> BandSource:
        return BandSource("red", "red", self.href(query), 1e-4, -0.1, 0.0)

    def href(self, query: str = "", name: str = "red.tif") -> str:
        return f"{self.server.url}/container/{name}{query}"

    def asked(self, start: str) -> list[Request]:
        return [r for r in self.server.requests if r.path.startswith(start)]


@pytest.fixture
def pixels(tmp_path: Path) -> np.ndarray:
    frame, edge = utm_frame(size_m=8000)
    noise = np.random.default_rng(1).integers(1, 9000, (edge, edge)).astype(np.uint16)
    small = {"blockxsize": 32, "blockysize": 32}
    write_tif(tmp_path / "container" / "red.tif", noise, frame, nodata=0, **small)
    return noise


@contextlib.contextmanager
def lending(folder: Path, **how: object) -> Iterator[Lent]:
    lender = Lender(folder, **how)  # type: ignore[arg-type]
    with scripted_server(lender.script) as server:
        yield Lent(server, lender)


def read(lent: Lent, query: str = "") -> np.ndarray:
    with OpenAssets(lent.policy, sleep=no_wait) as assets:
        return assets.read(lent.band(query), WHOLE)


# --- the source of tokens ------------------------------------------------------------------------


def test_a_token_is_asked_for_once_by_many_threads_and_once_for_each_container() -> None:
    def slow(request: Request) -> Answer:
        time.sleep(0.05)
        return token_answer(f"sig={request.path}")

    with scripted_server(slow) as server:
        source = TokenSource(f"{server.url}/token/")
        found: list[str] = []
        threads = [
            threading.Thread(target=lambda: found.append(source.token(BLOB).sign(BLOB)))
            for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [f"{BLOB}?sig=/token/account/container"] * 16
        source.token(BLOB.replace("/container", "/another"))
        source.token(BLOB.replace("//account", "//another"))
        paths = [r.path for r in server.requests]
    places = ["account/container", "account/another", "another/container"]
    assert paths == [f"/token/{place}" for place in places]


@pytest.mark.parametrize(
    ("life_min", "kept_min", "renewed_min"), [(45, 39.9, 40.1), (11, 5.9, 6.1), (4, 1.9, 2.1)]
)
def test_a_token_is_renewed_with_less_than_five_minutes_or_half_a_short_life_to_live(
    life_min: float, kept_min: float, renewed_min: float
) -> None:
    count = itertools.count()
    now = datetime(2031, 5, 1, 12, tzinfo=UTC)
    # ^ years off this machine's clock, which must not matter

    def script(_: Request) -> Answer:
        return token_answer(f"sig={next(count)}", minutes=life_min, now=now)

    clock = [1000.0]
    with scripted_server(script) as server:
        source = TokenSource(server.url, clock=lambda: clock[0])
        first = source.token(BLOB)
        clock[0] += kept_min * 60
        assert source.token(BLOB) is first
        clock[0] = 1000 + renewed_min * 60
        assert source.token(BLOB).sign("x") == "x?sig=1"


def test_a_refused_token_is_replaced_once_for_all_who_were_refused() -> None:
    count = itertools.count()
    with scripted_server(lambda _: token_answer(f"sig={next(count)}")) as server:
        source = TokenSource(server.url)
        old = source.token(BLOB)
        new = source.token(BLOB, refused=old)
        assert new is not old
        assert source.token(BLOB, refused=old) is new
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("href", "signed"),
    [
        (BLOB, f"{BLOB}?sig=new"),
        (f"{BLOB}?st=2020&se=2020-01-01T00%3A00%3A00Z&sp=r&sig=old", f"{BLOB}?sig=new"),
        (f"{BLOB}?sig=old&se=2020-01-01", f"{BLOB}?sig=new"),
        (f"{BLOB}?versionid=7", f"{BLOB}?versionid=7&sig=new"),
    ],
)
def test_a_signature_takes_the_place_of_an_older_one(href: str, signed: str) -> None:
    with scripted_server(lambda _: token_answer("?sig=new")) as server:
        assert TokenSource(server.url).token(href).sign(href) == signed


def test_a_subscription_key_goes_to_the_service_alone(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "subscription-canary")
    with lending(tmp_path) as lent:
        read(lent)
        keyed = [
            r.path.startswith("/token/")
            for r in lent.server.requests
            if "subscription-canary" in str(r.headers)
        ]
    assert keyed == [True]


def test_without_a_subscription_key_none_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PC_SDK_SUBSCRIPTION_KEY", raising=False)
    with scripted_server(lambda _: token_answer("sig=1")) as server:
        TokenSource(server.url).token(BLOB)
        assert "ocp-apim-subscription-key" not in server.requests[0].headers


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_burst_of_bad_answers_of_the_service_does_not_show(status: int) -> None:
    bad = iter([Answer(status, headers={"retry-after": "0"})] * 3)
    with scripted_server(lambda _: next(bad, token_answer("sig=1"))) as server:
        assert TokenSource(server.url, backoff_s=0).token(BLOB).sign("x") == "x?sig=1"


@pytest.mark.parametrize(
    ("answer", "error", "kind"),
    [
        (Answer(503), SourceError, "signing-unavailable"),
        (Answer(403), SourceError, "signing-unavailable"),
        (Answer(302, headers={"location": "/elsewhere"}), SourceError, "signing-unavailable"),
        (Answer(200, b"<html>"), SourceError, "signing-unavailable"),
        (Answer(200, b"\xff"), SourceError, "signing-unavailable"),
        (json_answer([]), SourceError, "signing-unavailable"),
        (json_answer({"token": f"sig={CANARY}"}), SourceError, "signing-unavailable"),
        (
            json_answer({"token": f"sig={CANARY}", "msft:expiry": "soon"}),
            SourceError,
            "signing-unavailable",
        ),
        (
            json_answer({"token": f"sig={CANARY}", "msft:expiry": "2031-01-01T00:00:00"}),
            SourceError,
            "signing-unavailable",
        ),
        (token_answer(f"sig={CANARY}", minutes=-1), SourceError, "signing-unavailable"),
        (token_answer(f"sig={CANARY}\r\nHost: evil"), SourceError, "signing-unavailable"),
        (token_answer(f"nothing={CANARY}"), SourceError, "signing-unavailable"),
        (Answer(404), DataError, "asset-forbidden"),
        (Answer(400), DataError, "asset-forbidden"),
        (Answer(401), UsageError, "subscription-refused"),
    ],
)
def test_what_the_service_does_wrong_is_a_typed_error(
    answer: Answer, error: type[EngineError], kind: str
) -> None:
    with scripted_server(lambda _: answer) as server:
        source = TokenSource(server.url, backoff_s=0)
        with pytest.raises(error) as caught:
            source.token(BLOB)
        assert all(r.path == "/account/container" for r in server.requests)
    assert caught.value.kind == kind
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_a_service_that_is_not_there_is_a_source_error() -> None:
    with pytest.raises(SourceError, match="cannot be reached") as caught:
        TokenSource("http://127.0.0.1:9", backoff_s=0).token(BLOB)
    assert caught.value.kind == "signing-unavailable"


@pytest.mark.parametrize(
    "href",
    [
        "https://account.blob.core.windows.net/red.tif",
        "https://account.blob.core.windows.net/",
        "https://account.blob.core.windows.net/Upper/red.tif",
        "https://account.blob.core.windows.net/%2e%2e/red.tif",
    ],
)
def test_a_link_into_no_container_is_refused_before_anyone_is_asked(href: str) -> None:
    with scripted_server(lambda _: token_answer("sig=1")) as server:
        with pytest.raises(DataError) as caught:
            TokenSource(server.url).token(href)
        assert server.requests == []
    assert caught.value.kind == "href-refused"


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/token",
        "ftp://example.org/token",
        "example.org/token",
        "https://user:hunter2@example.org/token",
        "https://example.org/token?key=hunter2",
    ],
)
def test_tokens_are_asked_for_over_https_alone(url: str) -> None:
    with pytest.raises(UsageError, match="gives no tokens") as caught:
        AssetPolicy((), url)
    assert "hunter2" not in str(caught.value)


# --- rasters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?se=2020-01-01&sp=r&sig=expired"])
def test_a_lent_raster_is_read_with_one_token(
    tmp_path: Path, pixels: np.ndarray, query: str
) -> None:
    with lending(tmp_path) as lent:
        np.testing.assert_array_equal(read(lent, query), pixels)
        assert len(lent.asked("/token/")) == 1
        assert not any("expired" in r.path for r in lent.server.requests)


def test_tasks_of_one_process_share_a_token(tmp_path: Path, pixels: np.ndarray) -> None:
    with lending(tmp_path) as lent:
        for _ in range(5):
            read(lent)
        assert len(lent.asked("/token/")) == 1


def test_a_policy_that_signs_survives_the_way_to_a_worker() -> None:
    policy = AssetPolicy(("127.0.0.1:8080",), "http://127.0.0.1:8080/token", ("127.0.0.1:8080",))
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert AssetPolicy.from_dict(json.loads(json.dumps(policy.to_dict()))) == policy


def test_links_to_other_hosts_see_no_token(tmp_path: Path, pixels: np.ndarray) -> None:
    with (
        lending(tmp_path) as lent,
        scripted_server(file_script(tmp_path)) as other,
        OpenAssets(
            AssetPolicy((other.host, lent.server.host), lent.policy.token_url, (lent.server.host,)),
            sleep=no_wait,
        ) as assets,
    ):
        assets.read(lent.band(), WHOLE)
        plain = BandSource("red", "red", f"{other.url}/container/red.tif", 1e-4, -0.1, 0.0)
        np.testing.assert_array_equal(assets.read(plain, WHOLE), pixels)
        assert other.requests
        assert not any("?" in r.path for r in other.requests)


def test_a_container_that_is_not_lent_is_forbidden_at_once(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    with lending(tmp_path, spoil_token=lambda: Answer(404)) as lent:
        with pytest.raises(DataError) as caught:
            read(lent)
        assert len(lent.server.requests) == 1
    assert caught.value.kind == "asset-forbidden"


def test_a_refusal_renews_the_token_once_and_is_then_final(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    with lending(tmp_path, uses=0) as lent:
        with pytest.raises(DataError) as caught:
            read(lent)
        paths = [urlsplit(r.path).path for r in lent.server.requests]
    assert caught.value.kind == "asset-forbidden"
    assert paths == ["/token/127/container", "/container/red.tif"] * 2


@pytest.mark.parametrize("count", [8, pytest.param(20, marks=pytest.mark.chaos)])
def test_a7_tokens_that_run_out_during_a_task_do_not_show(
    tmp_path: Path, pixels: np.ndarray, count: int
) -> None:
    """A7: the storage refuses the token at hand, again and again."""
    with lending(tmp_path) as lent, OpenAssets(lent.policy, sleep=no_wait) as assets:
        for row in range(0, count * 32, 32):
            lent.lender.left = 0  # expired between two windows
            found = assets.read(lent.band(), Window(0, row, 800, 32))
            np.testing.assert_array_equal(found, pixels[row : row + 32])
        assert lent.lender.given == count  # one for each window


@pytest.mark.parametrize("which", range(1, 5))
def test_a_refusal_in_the_middle_of_opening_does_not_show(
    tmp_path: Path, pixels: np.ndarray, which: int
) -> None:
    count = itertools.count()

    def once(_: Request) -> Answer | None:
        return Answer(403, b"AuthenticationFailed") if next(count) == which else None

    with lending(tmp_path, spoil_file=once) as lent:
        np.testing.assert_array_equal(read(lent), pixels)


def test_a_long_task_signs_anew_before_a_token_runs_out(tmp_path: Path, pixels: np.ndarray) -> None:
    with (
        lending(tmp_path, minutes=0.05) as lent,  # half of its three seconds is soon over
        OpenAssets(lent.policy, sleep=no_wait) as assets,
    ):
        assets.read(lent.band(), Window(0, 0, 100, 32))
        before = len(lent.server.requests)
        time.sleep(2.1)
        np.testing.assert_array_equal(assets.read(lent.band(), WHOLE), pixels)
        later = lent.server.requests[before:]
    assert later[0].path == "/token/127/container"
    files = [r.path for r in later if not r.path.startswith("/token")]
    assert files and not any(f"{CANARY}1" in path for path in files)


# --- secrets (A11) -------------------------------------------------------------------------------

TELL_ALL = """
import logging, pickle, sys, traceback
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from catalog.assets import AssetPolicy, OpenAssets
from catalog.scenes import BandSource
from catalog.signing import token_source
from rasterio.windows import Window
for fault, host, href in zip(sys.argv[1::3], sys.argv[2::3], sys.argv[3::3]):
    policy = AssetPolicy((host,), f"http://{host}/token", (host,))
    band = BandSource("red", "red", href, 1e-4, -0.1, 0.0)
    assets = OpenAssets(policy, sleep=lambda s: None)
    outcome = "read"
    try:
        with assets:
            assets.read(band, Window(0, 0, 800, 800))
    except Exception as error:
        traceback.print_exc(file=sys.stdout)
        print(repr(error), pickle.loads(pickle.dumps(error)))
        outcome = error.kind
    print(policy, list(assets._tokens.values()), policy.to_dict())
    print(token_source(policy.token_url), vars(token_source(policy.token_url)))
    print("OUTCOME", fault, outcome)
"""
FAULTS: dict[str, tuple[str, dict[str, object]]] = {
    "none": ("read", {}),
    "refused": ("asset-forbidden", {"uses": 0}),
    "refused-later": ("source-unreachable", {"uses": 2}),
    "down": ("source-unreachable", {"spoil_file": lambda _: Answer(503)}),
    "cut": ("source-unreachable", {"spoil_file": lambda _: Answer(cut=True)}),
    "gone": ("asset-missing", {"spoil_file": lambda _: Answer(404)}),
    "moved": (
        "href-refused",
        {"spoil_file": lambda _: Answer(302, headers={"location": f"/x?sig={CANARY}"})},
    ),
    "no-raster": ("not-a-geotiff", {"spoil_file": lambda _: Answer(200, b"<html>")}),
    "short": (
        "source-unreachable",
        {"spoil_file": lambda _: Answer(206, b"II*\0", {"content-range": "bytes 0-3/9999"})},
    ),
    "no-token": ("asset-forbidden", {"spoil_token": lambda: Answer(404)}),
    "odd-token": (
        "signing-unavailable",
        {"spoil_token": lambda: json_answer({"token": f"{CANARY} {CANARY}"})},
    ),
}


def test_a11_no_fault_tells_a_token_even_where_everything_is_logged(
    tmp_path: Path, pixels: np.ndarray
) -> None:
    with contextlib.ExitStack() as stack:
        arguments: list[str] = []
        for fault, (_, how) in FAULTS.items():
            lent = stack.enter_context(lending(tmp_path, **how))
            arguments += [fault, lent.server.host, lent.href(f"?sig={CANARY}0")]
        told = subprocess.run(
            [sys.executable, "-c", TELL_ALL, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "CPL_DEBUG": "ON", "PC_SDK_SUBSCRIPTION_KEY": f"{CANARY}-key"},
        )
    text = told.stdout + told.stderr
    assert "DEBUG:urllib3.connectionpool" in text
    shown = [line for line in text.splitlines() if CANARY in line]
    assert not shown, shown[0]
    outcomes = dict(re.findall(r"^OUTCOME (\S+) (\S+)$", text, re.MULTILINE))
    assert outcomes == {fault: outcome for fault, (outcome, _) in FAULTS.items()}


def test_a11_a_token_is_in_no_receipt_search_or_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", f"{CANARY}-key")
    item = dem_item(
        tmp_path / "container", "DEM", paint=lambda x, y: 1e3 + x + y, west=10.75, south=46.75
    )
    grid = small_grid()
    workspace = Workspace(str(tmp_path / "work"))
    create_terrain(workspace, grid)
    with lending(tmp_path) as lent:
        plain = describe_item(item).fingerprint
        item["assets"]["data"]["href"] = lent.href(f"?sig={CANARY}0", "DEM/dem.tif")
        items = tmp_path / "items.json"
        items.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
        with stac_server(items) as url:
            found = open_source(url, policy=lent.policy).search(
                collections=["cop-dem-glo-30"],
                boxes=[(10.7, 46.7, 10.9, 46.9)],
                start=None,
                end=None,
            )
        save_search(workspace, "region-dem", found, question={})
        scene = found.scenes[0]
        assert scene.fingerprint == plain
        job = {
            "key": "terrain/region/r000c000",
            "stage": "terrain",
            "season": "region",
            "unit": "r000c000",
            "fingerprint": "f" * 64,
            "inputs": {scene.id: scene.fingerprint},
            "boxes": [],
            "interval": None,
            "payload": {
                "shard": [0, 0],
                "multiple": 1,
                "dem": [scene.to_dict()],
                "policy": lent.policy.to_dict(),
            },
        }
        answer = TaskMaker(workspace, grid)()(job)
        assert answer["failed"] is None
        assert answer["fatal"] is None
        lent.lender.spoil_file = lambda _: Answer(404)
        failed = TaskMaker(workspace, grid)()(job | {"unit": "r000c001"})
    assert CANARY not in json.dumps([answer, failed])
    written = [p for p in (tmp_path / "work").rglob("*") if p.is_file()]
    assert len(written) > 3
    assert not [p for p in written if CANARY.encode() in p.read_bytes()]


def test_a11_a_token_stays_in_its_process() -> None:
    with scripted_server(lambda _: token_answer(f"sig={CANARY}")) as server:
        source = TokenSource(server.url)
        token = source.token(BLOB)
    assert CANARY not in f"{token!r} {token} {source!r} {vars(source)}"
    with pytest.raises(TypeError, match="stays in its process"):
        pickle.dumps(token)
