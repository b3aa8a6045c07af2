"""The report of a run: one self-contained page a regional study can be written from."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from catalog.cube import Outcome, Workspace
from inventory_engine.report.page import build_page

__all__ = ["write_report"]


def write_report(workspace: Workspace, *, run: dict[str, Any]) -> Outcome:
    """Write ``report/index.html`` and the numbers it shows, ``report/data.json``.

    Parameters
    ----------
    workspace
        The region's store; read stage by stage, shard by shard.
    run
        JSON-ready description of the run: ``name``, ``seasons`` (label -> start, end), ``pairs``,
        ``settings``, ``ensemble`` (name, fingerprint, card), ``scenes`` (label -> list of id,
        datetime, kind, cloud_percent), ``set_aside`` (list of what, kind, reason, stage, unit),
        ``grid`` (:meth:`catalog.grid.RegionGrid.to_dict`), ``versions`` and ``catalog``.

    Returns
    -------
    Outcome
        Checksums of the two files. Equal inputs give equal bytes.

    Raises
    ------
    StoreError
        ``report-input`` where a table is missing or unreadable; where the store is damaged.
    """
    page = build_page(workspace, run)
    data = json.dumps(page.data, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    files = {
        "report/data.json": (data + "\n").encode(),
        "report/index.html": page.html.encode(),
    }
    for name, content in files.items():
        workspace.put(name, content)
    checksums = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return Outcome(checksums, facts={"bytes": len(files["report/index.html"])})
