"""stac-fastapi-pgstac on PostgreSQL with PostGIS for tests: installed, started and ended here.

PostgreSQL comes from the system's packages, the servers in Python from a virtual environment of
their own in the user's cache: the engine needs neither. What cannot be had is said by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from servers import free_port

REQUIREMENTS = Path(__file__).with_name("pgstac.txt")
PACKAGES = ("postgresql", "postgresql-postgis")
READER = "reader"


def _programs() -> Path | None:
    """Folder of PostgreSQL's programs, where PostGIS is there as well."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        shared = Path("/usr/share/postgresql", folder.parent.name, "extension")
        if (shared / "postgis.control").exists() and (folder / "initdb").exists():
            return folder
    return None


def _install_postgresql() -> Path:
    found = _programs()
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet: dict[str, Any] = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "-qq", *command], capture_output=True, check=False, **quiet)
        found = _programs()
    if found is None:
        pytest.skip(f"PostgreSQL with PostGIS is not here: apt-get install {' '.join(PACKAGES)}")
    return found


def _install_servers() -> Path:
    """Virtual environment with the pinned servers, made once for all checkouts of one user."""
    wanted = REQUIREMENTS.read_bytes() + sys.version.encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = cache / "glacier-inventory-engine" / f"pgstac-{hashlib.sha256(wanted).hexdigest()[:16]}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "complete").exists():
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            pip = [str(home / "bin" / "pip"), "install", "-q", "--disable-pip-version-check"]
            done = subprocess.run(
                [*pip, "-r", str(REQUIREMENTS)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                pytest.skip(f"the packages of {REQUIREMENTS.name} cannot be had: {last}")
            (home / "complete").touch()
    return home / "bin"


@dataclass(frozen=True)
class PgStac:
    """A database server with an empty pgstac in the database ``template``."""

    python: Path
    port: int
    password: str
    programs: Path

    def environment(self, database: str, user: str = "postgres") -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": user,
            "PGPASSWORD": self.password,
            "PGDATABASE": database,
        }

    def sql(self, database: str, *statements: str) -> None:
        for statement in statements:
            command = [str(self.programs / "psql"), "-q", "-v", "ON_ERROR_STOP=1", "-c", statement]
            _run(command, env=self.environment(database))

    def load(self, database: str, *arguments: str) -> None:
        _run([str(self.python / "pypgstac"), *arguments], env=self.environment(database))

    @contextlib.contextmanager
    def serve(self, items: Path, *, timeout_s: float = 60) -> Iterator[str]:
        """Load a FeatureCollection into a database of its own; yields the URL of its API."""
        database = f"t{secrets.token_hex(4)}"
        self.sql("postgres", f"CREATE DATABASE {database} TEMPLATE template")
        with tempfile.TemporaryDirectory() as folder:
            for table, documents in _tables(json.loads(items.read_text())["features"]).items():
                path = Path(folder) / f"{table}.ndjson"
                path.write_text("".join(json.dumps(document) + "\n" for document in documents))
                self.load(database, "load", table, str(path), "--method", "upsert")
        url = f"http://127.0.0.1:{free_port()}"
        api = [str(self.python / "uvicorn"), "--factory", "stac_fastapi.pgstac.app:create_app"]
        process = subprocess.Popen(
            [*api, "--host", "127.0.0.1", "--port", url.rpartition(":")[2]],
            env=self.environment(database, READER),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(process, lambda: urllib.request.urlopen(url, timeout=5).close(), timeout_s)
            yield url
        finally:
            process.terminate()
            process.wait(20)


def _tables(items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What pgstac is to load: collections that say nothing of their own, and their items."""
    everywhere = {
        "spatial": {"bbox": [[-180, -90, 180, 90]]},
        "temporal": {"interval": [[None] * 2]},
    }
    collections = [
        {
            "type": "Collection",
            "stac_version": "1.0.0",
            "id": name,
            "description": name,
            "license": "other",
            "extent": everywhere,
            "links": [],
        }
        for name in sorted({item["collection"] for item in items})
    ]
    return {"collections": collections, "items": items}


def _run(command: list[str], **how: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr[-2000:]}")


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], None], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return ready()
        except (OSError, RuntimeError) as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args} did not start: {error}") from None
            time.sleep(0.1)


@contextlib.contextmanager
def pgstac_server() -> Iterator[PgStac]:
    """Start PostgreSQL on a free loopback port, in a folder that is removed afterwards."""
    programs, python = _install_postgresql(), _install_servers()
    account = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    user = pwd.getpwnam(account)
    who: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    home = Path(tempfile.mkdtemp(prefix="pgstac-"))
    server = PgStac(python, free_port(), secrets.token_hex(16), programs)
    try:
        secret = home / "password"
        secret.write_text(server.password)
        for path in (home, secret):
            os.chown(path, user.pw_uid, user.pw_gid)
        data = str(home / "data")
        make = [str(programs / "initdb"), "-D", data, "-U", "postgres", "--no-sync"]
        safe = ["--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=UTF8", "--locale=C"]
        _run([*make, *safe], cwd=home, **who)
        process = subprocess.Popen(
            [
                *(str(programs / "postgres"), "-D", data, "-h", "127.0.0.1", "-k", str(home)),
                *("-p", str(server.port), "-F", "-c", "shared_buffers=64MB"),
            ],
            cwd=home,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **who,
        )
        try:
            _wait(process, lambda: server.sql("postgres", "SELECT 1"), 60)
            server.sql("postgres", "CREATE DATABASE template")
            server.load("template", "migrate")
            server.sql(
                "template",
                f"CREATE ROLE {READER} LOGIN PASSWORD '{server.password}' IN ROLE pgstac_read",
                f"ALTER ROLE {READER} SET search_path TO pgstac, public",
                "UPDATE pgstac.pgstac_settings SET value = 'on' WHERE name = 'context'",
            )
            yield server
        finally:
            process.send_signal(signal.SIGQUIT)  # at once: nothing is to be kept
            process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)
