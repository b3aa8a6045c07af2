"""A file server on loopback that answers byte ranges and counts what it sends."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["sent", "served"]

_COUNTS = "/counts"


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder from a process of its own; yields the server's URL."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline()) if process.stdout else 0
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def sent(url: str) -> tuple[int, float]:
    """Requests answered and MiB sent since this was last asked."""
    with urllib.request.urlopen(url + _COUNTS) as answer:
        requests, size = json.load(answer)
    return requests, size / 2**20


class _Files(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    folder = Path()
    lock = threading.Lock()
    counts = [0, 0]  # noqa: RUF012  shared by all requests on purpose

    def do_HEAD(self) -> None:
        """Answer with the headers alone."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Answer with a range of a file."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.path == _COUNTS:
            with self.lock:
                data, self.counts[:] = json.dumps(self.counts).encode(), [0, 0]
            self._send(200, data, {}, body=body)
            return
        path = (self.folder / self.path.lstrip("/")).resolve()
        if not path.is_relative_to(self.folder) or not path.is_file():
            self._send(404, b"", {}, body=body)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(wanted[1]) if wanted else 0
        last = min(int(wanted[2]), size - 1) if wanted and wanted[2] else size - 1
        with path.open("rb") as file:
            file.seek(first)
            data = file.read(last - first + 1) if body else b""
        with self.lock:
            self.counts[0] += 1
            self.counts[1] += len(data)
        headers = {"Accept-Ranges": "bytes"}
        if wanted:
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self._send(206 if wanted else 200, data, headers, body=body, length=last - first + 1)

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        *,
        body: bool,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    _Files.folder = Path(sys.argv[1]).resolve()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    print(server.server_port, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
