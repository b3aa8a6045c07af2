"""`inventory-engine compare`: account for glaciers between outline files, and write it all down."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import shapely

from catalog.cube import Workspace
from catalog.errors import UsageError
from catalog.glaciers import read_outlines
from change_detection.change import parquet_bytes
from change_detection.comparison import COMPARISON_SCHEMA, Comparison, compare_series
from change_detection.epochs import OUTLINE_ERROR_M, OutlineFile, read_series
from change_detection.files import geoparquet_bytes
from inventory_engine.logs import redact
from inventory_engine.report import comparison_tables as tables
from inventory_engine.report.comparison import build_comparison_page

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Request",
    "compare_files",
    "comparison_lines",
    "listed",
    "numbers",
    "pair_table",
]

SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be compared, and how."""

    files: tuple[Path, ...]
    """In the order of time; or one that holds several years."""
    id_fields: tuple[str, ...] = ()
    """Columns of ids that mean the same glacier in all files: one, or one a file. None: glaciers
    are matched by overlap."""
    date_fields: tuple[str, ...] = ()
    """Columns of dates: one, or one a file."""
    dates: tuple[str, ...] = ()
    """Date of each file, instead of columns."""
    outline_errors_m: tuple[float, ...] = (OUTLINE_ERROR_M,)
    """Standard deviation of the outlines' position, metres: one, or one a date."""
    coverage: str = "hull"
    """``hull``, ``same``, or a file of polygons; see
    :func:`change_detection.comparison.compare_series`."""
    growth: bool = True
    """Whether a glacier may grow."""


def compare_files(request: Request, out: Path) -> dict[str, Any]:
    """Compare outline files and write tables, figures and the report.

    Into ``out`` go ``change.csv`` and ``change.parquet`` (columns
    :data:`change_detection.comparison.COMPARISON_SCHEMA`), ``outlines.parquet``, ``report.html``,
    ``tables/*.csv``, ``figures/*`` and, last, ``summary.json`` with the checksums of all others: a
    folder without it is not a result. Equal inputs give equal bytes.

    Returns
    -------
    dict
        The summary.

    Raises
    ------
    UsageError
        Where a file cannot be used or the request does not fit the files.
    StoreError
        Where a file cannot be written.
    """
    by_id = bool(request.id_fields)
    series = read_series(_outline_files(request), by_id=by_id)
    comparison = compare_series(
        series,
        by_id=by_id,
        coverage=_coverage(request.coverage, series.proj4),
        complete=request.coverage == "same",
        growth=request.growth,
    )
    settings = {
        "match": "id" if by_id else "overlap",
        "id_fields": list(request.id_fields),
        "date_fields": list(request.date_fields),
        "dates": list(request.dates),
        "coverage": request.coverage
        if request.coverage in {"hull", "same"}
        else Path(request.coverage).name,
        "growth": request.growth,
    }
    summary = tables.summary_of(comparison, settings=settings)
    title = redact(", ".join(dict.fromkeys(path.name for path in request.files)))
    page = build_comparison_page(comparison, summary, title=title)
    files = _table_files(comparison) | page.figures | {"report.html": page.html.encode()}
    return _write(files, summary, out)


def _outline_files(request: Request) -> list[OutlineFile]:
    """One description a file; what is given once holds for all of them."""
    count = len(request.files)
    ids = _spread("--id-field", request.id_fields, count)
    date_fields = _spread("--date-field", request.date_fields, count)
    errors: Sequence[tuple[float, ...]] = [request.outline_errors_m]
    if count > 1:
        given = _spread("--outline-error", request.outline_errors_m, count)
        errors = [(OUTLINE_ERROR_M,) if error is None else (error,) for error in given]
    if request.dates and len(request.dates) != count:
        raise UsageError(
            f"--dates needs one date for each of the {count} files, found {len(request.dates)}"
        )
    if any(not 0 <= error < math.inf for error in request.outline_errors_m):
        raise UsageError(
            f"--outline-error is in metres, not below 0; found {request.outline_errors_m}"
        )
    dates: Sequence[Any] = request.dates or [None] * count
    return [
        OutlineFile(path, ident, field, day, error)
        for path, ident, field, day, error in zip(
            request.files, ids, date_fields, dates, errors, strict=True
        )
    ]


def _spread(option: str, values: Sequence[Any], count: int) -> list[Any]:
    if len(values) <= 1:
        return [values[0] if values else None] * count
    if len(values) != count:
        raise UsageError(
            f"{option} takes one value, or one for each of the {count} files; found {len(values)}"
        )
    return list(values)


def _coverage(wanted: str, proj4: str) -> shapely.Geometry | None:
    if wanted in {"hull", "same"}:
        return None
    path = Path(wanted)
    if not path.is_file():
        raise UsageError(
            f"--coverage must be hull, same, or a file of polygons; there is no file {path}"
        )
    rows = read_outlines(path, needs_ids=False)
    shapes = rows.frame.geometry.to_crs(proj4).to_numpy()
    if not len(shapes):
        raise UsageError(f"{path} holds no usable polygon of what the files cover")
    return shapely.union_all(shapely.make_valid(shapes))


def _table_files(comparison: Comparison) -> dict[str, bytes]:
    change = tables.change_table(comparison)
    files = {
        "change.csv": _csv(change),
        "change.parquet": parquet_bytes(change, COMPARISON_SCHEMA),
        "outlines.parquet": geoparquet_bytes(tables.outline_table(comparison)),
        "tables/areas.csv": _csv(tables.area_table(comparison)),
        "tables/events.csv": _csv(tables.event_table(comparison)),
        "tables/problems.csv": _csv(tables.problem_table(comparison)),
        "tables/size_classes.csv": _csv(tables.class_table(comparison)),
    }
    if comparison.trend is not None:
        files["tables/period.csv"] = _csv(comparison.period.table)
        files["tables/trend.csv"] = _csv(comparison.trend)
    return files


def _csv(table: pd.DataFrame) -> bytes:
    return table.to_csv(index=False, lineterminator="\n").encode()


def _write(files: dict[str, bytes], summary: dict[str, Any], out: Path) -> dict[str, Any]:
    """Write every file whole, the summary last; what an earlier comparison left is taken away."""
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    whole = summary | {"files": sums}
    workspace = Workspace(out)
    earlier = workspace.get(SUMMARY)
    workspace.delete(SUMMARY)
    for name in _named(earlier) - files.keys():
        workspace.delete(name)
    for name, data in files.items():
        workspace.put(name, data)
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    workspace.put(SUMMARY, (text + "\n").encode())
    return whole


def _named(summary: bytes | None) -> set[str]:
    """Files that an earlier comparison says it wrote into this folder."""
    try:
        found = json.loads(summary or b"{}")
        names = found.get("files", {}) if isinstance(found, dict) else {}
    except ValueError:
        return set()
    ours = ("tables/", "figures/")
    return {name for name in names if name.startswith(ours) and ".." not in name}


def pair_table(summary: dict[str, Any]) -> Table:
    """Lay out the totals of every pair of dates."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("dates", "glaciers", "km2 from", "km2 to", "change km2", "% a year"):
        table.add_column(name, justify="left" if name == "dates" else "right")
    pairs = summary["pairs"] + ([summary["period"]] if len(summary["pairs"]) > 1 else [])
    for pair in pairs:
        rate = pair["rate_percent_per_year"]
        table.add_row(
            f"{pair['from']} to {pair['to']}",
            f"{pair['glaciers_compared']} of {pair['glaciers']}",
            f"{pair['area_from_km2']:.3f}",
            f"{pair['area_to_km2']:.3f}",
            f"{pair['area_change_km2']:+.3f} ± {pair['area_change_sigma_km2']:.3f}",
            "not available" if rate is None else f"{rate:+.2f}",
        )
    return table


def comparison_lines(summary: dict[str, Any]) -> list[str]:
    """Say in sentences what happened and what was wrong with the files."""
    lines = []
    for name, words in (("events", "events"), ("problems", "problems in the files")):
        counts = summary[name]
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines.append(f"{words}: {told or 'none'}")
    return lines


def listed(text: str) -> tuple[str, ...]:
    """Values with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises
    ------
    UsageError
        Where one is not a number.
    """
    try:
        return tuple(float(part) for part in listed(text))
    except ValueError as error:
        raise UsageError(f"{option} takes numbers with commas between, found {text!r}") from error
