"""What may differ between equal runs: timings, memory, messages, as JSON lines; and the redactor.

One law: no line leaves this module with a query string, a user name in a URL, or a known secret.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import psutil

from catalog.assets import public_href
from catalog.cube import Workspace, store_error
from inventory_engine.settings import environment_secrets

__all__ = ["MemoryWatch", "RunLog", "quiet", "redact"]

_URL = re.compile(r"(?:/vsicurl/)?[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>)\]}]+")
_FLUSH_S = 30.0
_NOISY = ("distributed", "ray", "rasterio", "botocore", "urllib3", "asyncio", "pyogrio")


def redact(text: str) -> str:
    """Text without query strings, user names in URLs, or secrets of the environment.

    Parameters
    ----------
    text
        Anything on its way to a log, a receipt, a report or the terminal.
    """
    for secret in environment_secrets():
        text = text.replace(secret, "***")
    return _URL.sub(lambda match: public_href(match.group()), text)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return value


def quiet() -> None:
    """Keep libraries from writing to the terminal; errors reach the user through the engine."""
    logging.disable(logging.WARNING)
    # ^ Ray Data sets its loggers' levels anew at each use, so levels alone do not hold
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(distributed|dask|ray|zarr|pyproj)\b.*")


class MemoryWatch:
    """Samples the memory of this process and everything it started."""

    def __init__(self, *, interval_s: float = 0.5) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._interval_s = interval_s
        self._thread = threading.Thread(target=self._sample, name="memory", daemon=True)

    @property
    def peak_gib(self) -> float:
        """Largest sum of resident memory seen, GiB; pages shared by processes count in each."""
        return self.peak_bytes / 2**30

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(self._interval_s):
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(me))

    def __enter__(self) -> MemoryWatch:
        self.peak_bytes = _tree_bytes(psutil.Process())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2)


def _tree_bytes(process: psutil.Process) -> int:
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += int(member.memory_info().rss)
        except psutil.Error:
            continue
    return total


class RunLog:
    """The log of one run: ``runs/<n>.jsonl``, one JSON object a line.

    Parameters
    ----------
    workspace
        Where. On a local disk every line is appended at once; on an object store the file is
        replaced from time to time.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        numbers = [int(n) for name in workspace.names("runs") if (n := _number(name)) is not None]
        self.name = f"runs/{max(numbers, default=0) + 1:04d}.jsonl"
        self._began = time.monotonic()
        self._lines: list[str] = []
        self._put_at = self._began
        self._lock = threading.Lock()

    def event(self, what: str, **fields: Any) -> None:
        """Write one line: what happened, when, how long after the start, and the given fields."""
        line = {
            "event": what,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "elapsed_s": round(time.monotonic() - self._began, 3),
            **{k: _clean(v) for k, v in fields.items()},
        }
        text = json.dumps(line, sort_keys=True, default=str) + "\n"
        with self._lock:
            self._append(text)

    def _append(self, text: str) -> None:
        if self._workspace.local is not None:
            path = self._workspace.path(self.name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
            except OSError as error:
                raise store_error(self._workspace, self.name, error) from error
            return
        self._lines.append(text)
        if time.monotonic() - self._put_at > _FLUSH_S:
            self._put()

    def _put(self) -> None:
        self._workspace.put(self.name, "".join(self._lines).encode())
        self._put_at = time.monotonic()

    def close(self) -> None:
        """Write what is still held back."""
        with self._lock:
            if self._lines:
                self._put()


def _number(name: str) -> str | None:
    match = re.fullmatch(r"runs/(\d+)\.jsonl", name)
    return match.group(1) if match else None
