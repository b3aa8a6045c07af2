"""One run at a time: who holds a workspace, and how the hold ends with its holder.

On a local disk the kernel keeps the lock and frees it when the holder dies. On an object store a
lease is created conditionally and renewed; clocks of two machines are never compared: a lease is
stale when it did not change while we watched it for two heartbeats.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

from catalog.cube import Workspace, store_error
from catalog.errors import EngineError, StoreError

__all__ = ["BusyError", "Holder", "Lease", "hold", "holder_of"]

_NAME = "run.lock"
_BEAT_S = 10.0


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a workspace."""

    user: str
    host: str
    pid: int
    since: str
    """ISO 8601, UTC."""

    @classmethod
    def me(cls) -> Holder:
        """Describe this process."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = "unknown"
        return cls(user, socket.gethostname(), os.getpid(), _now())

    def __str__(self) -> str:
        return f"{self.user} on {self.host}, process {self.pid}, since {self.since}"


class BusyError(EngineError):
    """Another run holds the workspace: nothing is wrong, there is nothing to do."""

    default_kind = "already-running"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _parse(data: bytes) -> Holder | None:
    try:
        values = json.loads(data)
        return Holder(**{k: values[k] for k in ("user", "host", "pid", "since")})
    except (ValueError, KeyError, TypeError):
        return None


def _busy(workspace: Workspace, holder: Holder | None) -> BusyError:
    who = str(holder) if holder else "another run that has just started"
    return BusyError(f"already running in {workspace.url}: {who}")


def holder_of(workspace: Workspace) -> Holder | None:
    """Who holds the workspace now; None where nobody does, as far as can be told from here."""
    data = workspace.get(_NAME)
    if data is None or workspace.local is None:
        return _parse(data) if data else None
    with workspace.path(_NAME).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(data)
    return None


@contextmanager
def hold(workspace: Workspace) -> Iterator[Callable[[], None]]:
    """Hold the workspace for one run.

    Yields
    ------
    callable
        Raises StoreError ``lease-lost`` where the hold was lost; call it before each write.

    Raises
    ------
    BusyError
        Where another run holds it; the message says who, where and since when.
    StoreError
        Where the lock cannot be written.
    """
    if workspace.local is not None:
        with _flock(workspace):
            yield lambda: None
    else:
        lease = Lease(workspace)
        lease.acquire()
        try:
            yield lease.check
        finally:
            lease.release()


@contextmanager
def _flock(workspace: Workspace) -> Iterator[None]:
    path = workspace.path(_NAME)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise store_error(workspace, _NAME, error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(workspace, _parse(os.pread(fd, 4096, 0))) from None
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(asdict(Holder.me())).encode(), 0)
        except OSError as error:
            raise store_error(workspace, _NAME, error) from error
        try:
            yield
        finally:
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def _tag(meta: Any) -> dict[str, Any]:
    """Say which state of an object is meant, as a conditional write wants it: without blanks."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


class Lease:
    """A lock on an object store: created conditionally, renewed by a thread, fenced by its tag.

    Parameters
    ----------
    workspace
        A workspace on an object store.
    beat_s
        Seconds between renewals; a lease unchanged for two of them may be taken over.
    """

    def __init__(self, workspace: Workspace, *, beat_s: float = _BEAT_S) -> None:
        self._workspace = workspace
        self._store = workspace._store
        self._beat_s = beat_s
        self._holder = Holder.me()
        self._beats = 0
        self._tag: dict[str, Any] = {}
        self._lost = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease, or take over one whose holder no longer renews it.

        Raises
        ------
        BusyError
            Where its holder is alive.
        """
        if not self._put("create"):
            held = self._read()
            time.sleep(2 * self._beat_s if held else 0)
            now = self._read()
            if now and held and now[0] != held[0]:
                raise _busy(self._workspace, now[1])
            if not self._put(now[0] if now else "create"):
                raise _busy(self._workspace, None)
        self._thread.start()

    def check(self) -> None:
        """Raise where the lease was lost to another run.

        Raises
        ------
        StoreError
            ``lease-lost``.
        """
        if self._lost:
            raise StoreError(
                f"another run took over {self._workspace.url}, because this one did not answer "
                "for a while; nothing more is written",
                kind="lease-lost",
            )

    def release(self) -> None:
        """Stop renewing and remove the lease, if it is still ours."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=self._beat_s)
        found = self._read()
        if not self._lost and found and found[0] == self._tag:
            obstore.delete(self._store, _NAME)

    def _read(self) -> tuple[dict[str, Any], Holder | None] | None:
        try:
            found = obstore.get(self._store, _NAME)
        except (FileNotFoundError, NotFoundError):
            return None
        return _tag(found.meta), _parse(bytes(found.bytes()))

    def _put(self, mode: Any) -> bool:
        """Write the lease if nobody else did; False where somebody else did."""
        self._beats += 1
        data = json.dumps(asdict(self._holder) | {"beat": self._beats}).encode()
        try:
            done = obstore.put(self._store, _NAME, data, mode=mode)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError, NotFoundError):
            return False
        except obstore.exceptions.BaseError as error:
            raise StoreError(f"cannot write {_NAME} in {self._workspace.url}: {error}") from error
        self._tag = _tag(done)
        return True

    def _renew(self) -> None:
        while not self._stop.wait(self._beat_s):
            try:
                kept = self._put(self._tag)
            except StoreError:
                continue
                # ^ the store may be back for the next beat; if not, another run finds it stale
            if not kept:
                self._lost = True
                return
