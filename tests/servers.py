"""Real servers for tests: a STAC API, and a file server with ranges that can misbehave."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

RUSTAC = Path(sys.executable).parent / "rustac"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def stac_server(items: Path, *, timeout_s: float = 20) -> Iterator[str]:
    """Serve a FeatureCollection with `rustac serve`; yields the URL of the API."""
    port = free_port()
    process = subprocess.Popen(
        [str(RUSTAC), "serve", "--create-collections", "--addr", f"127.0.0.1:{port}", str(items)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("rustac serve did not start") from None
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def s3_server(bucket: str, *, timeout_s: float = 30) -> Iterator[str]:
    """Serve one empty bucket by the S3 protocol; yields the server's URL."""
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rsplit(":", 1)[1]]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                make = urllib.request.Request(f"{url}/{bucket}", method="PUT")
                urllib.request.urlopen(make, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("the S3 server did not start") from None
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Answer:
    """What a scripted server says to one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    """Send half of the body and hang up."""


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    url: str
    requests: list[Request]

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")


@contextlib.contextmanager
def scripted_server(script: Callable[[Request], Answer]) -> Iterator[ScriptedServer]:
    """A loopback server that answers each request as the script says, and remembers them."""
    requests: list[Request] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # it makes each answer wait for 40 ms

        def _serve(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            request = Request(
                self.command,
                self.path,
                {k.lower(): v for k, v in self.headers.items()},
                self.rfile.read(length),
            )
            requests.append(request)
            answer = script(request)
            if "date" in answer.headers:
                self.send_response_only(answer.status)
            else:
                self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if answer.cut:
                self.wfile.write(answer.body[: len(answer.body) // 2])
                self.close_connection = True
            else:
                self.wfile.write(answer.body)

        do_GET = do_POST = do_HEAD = _serve  # noqa: N815

        def handle_one_request(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle_one_request()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ScriptedServer(f"http://127.0.0.1:{server.server_port}", requests)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def file_script(folder: Path, spoil: Callable[[Request], Answer | None] | None = None):
    """Script of a file server with ranges; `spoil` may answer instead of it."""

    def script(request: Request) -> Answer:
        spoilt = spoil(request) if spoil else None
        if spoilt is not None:
            if spoilt.cut:
                spoilt = _file_answer(folder, request)
                spoilt.cut = True
            return spoilt
        return _file_answer(folder, request)

    return script


def _file_answer(folder: Path, request: Request) -> Answer:
    path = folder / request.path.split("?")[0].lstrip("/")
    if not path.is_file():
        return Answer(404)
    data = path.read_bytes()
    wanted = request.headers.get("range")
    if not wanted:
        return Answer(200, data, {"accept-ranges": "bytes"})
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last or len(data) - 1), len(data) - 1)
    if start >= len(data):
        return Answer(416, b"", {"content-range": f"bytes */{len(data)}"})
    part = data[start : stop + 1]
    return Answer(206, part, {"content-range": f"bytes {start}-{stop}/{len(data)}"})


def json_answer(document: object, status: int = 200) -> Answer:
    return Answer(status, json.dumps(document).encode(), {"content-type": "application/json"})


def api(pages: Callable[[Request, str], Answer]) -> Callable[[Request], Answer]:
    """Script of a STAC API whose search answers as `pages` says; it is given its own URL."""

    def script(request: Request) -> Answer:
        root = f"http://{request.headers['host']}"
        if urlsplit(request.path).path == "/":
            conforms = ["https://api.stacspec.org/v1.0.0/core"]
            conforms.append("https://api.stacspec.org/v1.0.0/item-search")
            return json_answer(
                {
                    "type": "Catalog",
                    "stac_version": "1.0.0",
                    "id": "scripted",
                    "description": "scripted",
                    "conformsTo": conforms,
                    "links": [
                        {
                            "rel": "search",
                            "href": f"{root}/search",
                            "method": "POST",
                            "type": "application/geo+json",
                        },
                    ],
                }
            )
        return pages(request, root)

    return script


def page(items: list[dict], following: dict | None = None, **extra: object) -> Answer:
    links = [{"rel": "next", **following}] if following else []
    return json_answer({"type": "FeatureCollection", "features": items, "links": links, **extra})


def paged(pages: list[list[dict]], **extra: object) -> Callable[[Request, str], Answer]:
    """A search whose pages follow each other by a token in the body."""

    def answer(request: Request, root: str) -> Answer:
        body = json.loads(request.body)
        number = int(body.get("token", 0))
        following = None
        if number + 1 < len(pages):
            following = {
                "href": f"{root}/search",
                "method": "POST",
                "body": body | {"token": number + 1},
            }
        return page(pages[number], following, **extra)

    return answer
