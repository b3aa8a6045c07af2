"""Whether a workspace still holds what its receipts promise: every byte is read back.

Nothing but the workspace is needed, and nothing is written. What is found here is what the next
run does again; it compares the same checksums.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from catalog.composites import create_season
from catalog.cube import LAYERS, Workspace, terrain_name
from catalog.errors import StoreError
from catalog.extra_layers import create_extra_layer
from catalog.grid import RegionGrid
from catalog.illumination import create_illumination
from catalog.shards import damaged_chunks
from catalog.terrain import create_terrain
from inventory_engine.lock import holder_of
from inventory_engine.plan import REGION, stored_grid, stored_identity
from inventory_engine.receipts import Ledger, Receipt, stored_name
from inventory_engine.settings import Settings
from inventory_engine.work import OUTLINES

__all__ = ["Finding", "Verdict", "finding_table", "verdict_line", "verify"]

_THREADS = 8
# ^ each holds one stored object in memory
_SHOWN_CHUNKS = 6
_UNCHECKED = ("region.json", "run.lock", "runs/", OUTLINES)
# ^ no products: the workspace's identity (read before), its lock, its logs, and the outlines that
#   every run lays out anew for its workers


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One thing that is not as it should be."""

    name: str
    """Stored object: a file, or ``<array>/<shard>``."""
    kind: str
    """``output-missing``, ``output-damaged``, ``output-changed``, ``orphan``,
    ``receipt-unreadable``, ``metadata-damaged`` or ``search-damaged``."""
    reason: str
    unit: str = ""
    """Key of the unit that promised it; the next run does that unit again."""
    chunks: tuple[str, ...] = ()
    """Damaged chunks of a shard as ``<index in the array>: <fault>``."""


@dataclass
class Verdict:
    """What was read, and what was found."""

    workspace: str
    receipts: int = 0
    failed: int = 0
    """Receipts that tell of a failure; they promise nothing."""
    objects: int = 0
    """Stored objects that were compared."""
    bytes: int = 0
    running: str | None = None
    """Who is at work; what a run has not yet booked looks like a fault."""
    findings: list[Finding] = field(default_factory=list)
    """Sorted."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the findings counted by kind."""
        return asdict(self) | {"kinds": dict(Counter(f.kind for f in self.findings))}


Progress = Callable[[str, int, int], None]
"""Called with a label, how many are done and how many there are."""


def verify(settings: Settings, *, progress: Progress | None = None) -> Verdict:
    """Read every stored object back and compare it with what was promised.

    Parameters
    ----------
    settings
        Of the region; only its workspace is used, no catalogue, outlines or ensemble.
    progress
        Told how far it is.

    Raises
    ------
    UsageError
        Where nothing was ever run in the workspace, or its layout is another version's.
    StoreError
        Where the workspace cannot be read.
    """
    workspace, grid = stored_grid(settings)
    holder = holder_of(workspace)
    verdict = Verdict(workspace.url, running=str(holder) if holder else None)
    names = workspace.names("")
    known: set[str] = set()
    seasons: dict[str, set[str]] = {}
    records = [name for name in names if name.startswith("records/")]
    ledger = Ledger(workspace, grid)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        checked = pool.map(lambda name: _check_receipt(ledger, name), records)
        for done, found in enumerate(checked, 1):
            verdict.receipts += 1
            verdict.objects += len(found.stored)
            verdict.bytes += found.bytes
            verdict.findings += found.findings
            known.update(found.stored)
            if found.receipt is not None:
                verdict.failed += found.receipt.failed is not None
                if found.receipt.outcome.outputs:
                    seasons.setdefault(found.receipt.stage, set()).add(found.receipt.season)
            if progress is not None:
                progress("receipts", done, len(records))
    metadata = _expected_metadata(workspace, grid, seasons, settings=settings)
    searches = [name for name in names if name.startswith("search/")]
    verdict.findings += _check_metadata(workspace, metadata)
    verdict.findings += _check_searches(workspace, searches)
    verdict.objects += len(metadata) + len(searches)
    known.update(metadata, searches, records)
    verdict.findings += _orphans(name for name in names if name not in known)
    verdict.findings.sort()
    return verdict


@dataclass(frozen=True, slots=True)
class _Checked:
    """One receipt, and what became of what it promises."""

    receipt: Receipt | None
    findings: list[Finding]
    stored: list[str]
    bytes: int


def _check_receipt(ledger: Ledger, name: str) -> _Checked:
    parts = tuple(name.removeprefix("records/").removesuffix(".json").split("/"))
    receipt = ledger.read(*parts) if len(parts) == 3 else None
    if receipt is None or receipt.key != "/".join(parts):
        found = Finding(name, "receipt-unreadable", "it is no receipt of a unit of this name")
        return _Checked(None, [found], [], 0)
    findings, stored, size = [], [], 0
    for output, expected in receipt.outcome.outputs.items():
        file = stored_name(output)
        data = ledger.workspace.get(file)
        stored.append(file)
        size += len(data or b"")
        if data is None or hashlib.sha256(data).hexdigest() != expected:
            findings.append(_damage(ledger.grid, output, data, unit=receipt.key))
    return _Checked(receipt, findings, stored, size)


def _damage(grid: RegionGrid, output: str, data: bytes | None, *, unit: str) -> Finding:
    """Tell what is wrong with an output, and for a shard in which chunks."""
    chunks: tuple[str, ...] = ()
    if stored_name(output) != output:
        chunks = _damaged_chunks(grid, output, data)
    if data is None:
        return Finding(output, "output-missing", "it is gone", unit, chunks)
    if not data:
        return Finding(output, "output-damaged", "it is empty", unit, chunks)
    if chunks:
        return Finding(output, "output-damaged", "chunks cannot be read", unit, chunks)
    reason = "its SHA-256 is not the one in the receipt"
    return Finding(output, "output-changed", reason, unit)


def _damaged_chunks(grid: RegionGrid, output: str, data: bytes | None) -> tuple[str, ...]:
    array, _, shard = output.rpartition("/")
    row, col = (int(number) for number in shard[1:].split("c"))
    side = grid.shard_px // grid.chunk_px
    lead = (1,) if LAYERS[array.rsplit("/", 1)[-1]].bands else ()
    found = damaged_chunks(data, (*lead, side, side))
    told = []
    for (*first, y, x), fault in found.items():
        index = (*first, row * side + y, col * side + x)
        told.append(f"{'/'.join(map(str, index))}: {fault}")
    return tuple(told)


def _expected_metadata(
    workspace: Workspace, grid: RegionGrid, seasons: dict[str, set[str]], *, settings: Settings
) -> dict[str, bytes]:
    """Every metadata and coordinate file that the engine would write for what was made.

    The engine itself writes them, into a folder that is thrown away.
    """
    from model_serving.inference import create_map

    identity = stored_identity(workspace) or {}
    with tempfile.TemporaryDirectory(prefix="gie-verify-") as folder:
        fresh = Workspace(folder)
        for label in sorted(seasons.get("terrain", ())):
            coarse = _terrain_grid(grid, label)
            create_terrain(fresh, coarse, collections=identity.get("dem") or ())
            _keep_date(workspace, fresh, terrain_name(coarse))
        for layer in sorted(seasons.get("layers", ())):
            create_extra_layer(fresh, layer, grid)
        for season in sorted(seasons.get("cube", ())):
            own, sar = _season_layout(workspace, grid, season, settings=settings)
            create_season(fresh, season, own, sar=sar)
        for season in sorted(seasons.get("illumination", ())):
            own, _ = _season_layout(workspace, grid, season, settings=settings)
            create_illumination(fresh, season, own)
        for season in sorted(seasons.get("map", set()) | seasons.get("outlines", set())):
            own, _ = _season_layout(workspace, grid, season, settings=settings)
            create_map(fresh, season, own)
        return {name: (Path(folder) / name).read_bytes() for name in fresh.names("")}


def _terrain_grid(grid: RegionGrid, label: str) -> RegionGrid:
    """Grid of a terrain layer, by what stands in the place of a season in its receipts."""
    if label == REGION:
        return grid
    return grid.coarsened(round(float(label.removesuffix("m")) / grid.resolution_m))


def _keep_date(workspace: Workspace, fresh: Workspace, name: str) -> None:
    """Take over when the elevation was measured: the scenes tell that, and are not asked here."""
    document = _parsed(workspace.get(f"{name}/zarr.json")) or {}
    told = (document.get("attributes") or {}).get("dem_date")
    if isinstance(told, str):
        fresh.array(name, mode="r+").attrs["dem_date"] = told


def _season_layout(
    workspace: Workspace, grid: RegionGrid, season: str, *, settings: Settings
) -> tuple[RegionGrid, bool]:
    """Grid of a season and whether it has radar; of one no longer asked for, as it is found."""
    if season in settings.seasons:
        asked = settings.collections_of(season)
        return grid.coarsened(settings.multiple(season)), bool(asked.sar)
    name = f"cube.zarr/{season}/optical"
    try:
        rows = workspace.array(name).shape[-2]
    except StoreError:
        rows = grid.shape[0]
        # ^ gone or damaged, which the comparison finds
    return grid.coarsened(grid.shape[0] // rows), workspace.has_array(f"cube.zarr/{season}/sar")


def _check_metadata(workspace: Workspace, expected: dict[str, bytes]) -> Iterator[Finding]:
    for name, wanted in expected.items():
        found = workspace.get(name)
        if found == wanted or _parsed(found) == (_parsed(wanted) or ()):
            continue
            # ^ two versions of Zarr may order or indent the same document in two ways
        reason = "it is gone" if found is None else "it is not what the engine writes"
        yield Finding(name, "metadata-damaged", reason)


def _check_searches(workspace: Workspace, names: Sequence[str]) -> Iterator[Finding]:
    """Hold each kept search against the note beside it."""
    stems = sorted({Path(name).with_suffix("").as_posix() for name in names})
    for stem in stems:
        note = _parsed(workspace.get(f"{stem}.json"))
        if note is None or not {"question", "scenes", "sha256", "set_aside"} <= note.keys():
            yield Finding(f"{stem}.json", "search-damaged", "it cannot be read")
        elif note["scenes"]:
            data = workspace.get(f"{stem}.parquet")
            if data is None:
                yield Finding(f"{stem}.parquet", "search-damaged", "it is gone")
            elif hashlib.sha256(data).hexdigest() != note["sha256"]:
                reason = f"its SHA-256 is not the one in {stem}.json"
                yield Finding(f"{stem}.parquet", "search-damaged", reason)


def _parsed(data: bytes | None) -> dict[str, Any] | None:
    try:
        values = json.loads(data or b"")
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def _orphans(names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        if not name.startswith(_UNCHECKED):
            yield Finding(name, "orphan", "no receipt promises it")


def verdict_line(verdict: Verdict) -> str:
    """Say in one line what was read and found."""
    told = f"{verdict.receipts} receipts, {verdict.objects} objects, {verdict.bytes / 1e6:.1f} MB"
    failed = f", {verdict.failed} units failed before" if verdict.failed else ""
    if not verdict.findings:
        return f"{told} read back{failed}: all as promised"
    kinds = Counter(finding.kind for finding in verdict.findings)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return f"{told} read back{failed}: {counts}"


def finding_table(verdict: Verdict) -> Table:
    """Lay out the findings."""
    table = Table(title="not as promised", title_justify="left")
    for name in ("object", "kind", "reason", "unit"):
        table.add_column(name, overflow="fold")
    for f in verdict.findings:
        more = len(f.chunks) - _SHOWN_CHUNKS
        where = ", ".join(f.chunks[:_SHOWN_CHUNKS]) + (f" and {more} more" if more > 0 else "")
        reason = f"{f.reason} ({where})" if where else f.reason
        table.add_row(Text(f.name), f.kind, Text(reason), f.unit)
    table.caption = (
        "`inventory-engine run` does the named units again, mends metadata and searches anew; "
        "an orphan is overwritten where its unit is still to be done, else it may be deleted"
    )
    return table
