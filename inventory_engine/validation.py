"""`inventory-engine validate`: read an inventory, check it, tell and draw what was found."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import geopandas as gpd
import pandas as pd
from rich.table import Table
from rich.text import Text

from catalog.errors import StoreError, UsageError
from catalog.vectors import read_vectors
from change_detection.validation.inventory import Package, Progress, validate_package
from change_detection.validation.rules import RULES, Finding, Profile

__all__ = [
    "has_errors",
    "read_package",
    "rule_table",
    "validate_files",
    "verdict",
    "write_findings",
]

LISTING, PLACES, MAP = "findings.csv", "findings.geojson", "findings.png"
_KIND = "inventory"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# ^ a spreadsheet computes cells that begin so


def validate_files(
    file: Path,
    *,
    profile: str = "rgi7",
    complexes: Path | None = None,
    intersects: Path | None = None,
    hypsometry: Path | None = None,
    links: Sequence[Path] = (),
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[list[Finding], int]:
    """Check the files of an inventory, and write findings and a map of them where asked.

    Parameters
    ----------
    file
        Outlines of the glaciers: GeoPackage, Shapefile, GeoParquet or GeoJSON.
    profile
        ``rgi7`` or ``derived``.
    complexes, intersects
        Of the same formats.
    hypsometry
        CSV.
    links
        JSON: members of each complex; CSV: overlaps with another inventory.
    out
        Folder for ``findings.csv``, ``findings.geojson`` and ``findings.png``.
    progress
        Told how far it is.

    Returns
    -------
    list of Finding, number of glaciers
        As :func:`change_detection.validation.inventory.validate_package`.

    Raises
    ------
    UsageError
        Where there is no such profile, or a file is empty, cannot be read, or does not say its
        coordinate reference system.
    StoreError
        Where a file cannot be written.
    """
    known: dict[str, Profile] = {name: name for name in get_args(Profile)}
    if profile not in known:
        raise UsageError(f"there is no profile {profile!r}; known are {', '.join(known)}")
    package = read_package(
        file, complexes=complexes, intersects=intersects, hypsometry=hypsometry, links=links
    )
    found = validate_package(package, profile=known[profile], progress=progress)
    if out is not None:
        title = f"{file.name}: {verdict(found, len(package.glaciers))}"
        write_findings(found, out, glaciers=package.glaciers, title=title)
    return found, len(package.glaciers)


def read_package(
    file: Path,
    *,
    complexes: Path | None = None,
    intersects: Path | None = None,
    hypsometry: Path | None = None,
    links: Sequence[Path] = (),
) -> Package:
    """Read what :func:`validate_files` checks; a link file is told apart by its suffix.

    Raises
    ------
    UsageError
        As :func:`validate_files`.
    """
    members = [path for path in links if path.suffix.lower() == ".json"]
    if len(members) > 1:
        raise UsageError(f"{len(members)} lists of members (JSON) were given, expected one")
    return Package(
        _outlines(file, "inventory"),
        None if complexes is None else _outlines(complexes, "file of complexes"),
        _members(members[0]) if members else None,
        None if intersects is None else _outlines(intersects, "file of intersects"),
        None if hypsometry is None else _table(hypsometry, "hypsometry"),
        tuple(_table(path, "table of links") for path in links if path not in members),
    )


def _outlines(path: Path, what: str) -> gpd.GeoDataFrame:
    frame = read_vectors(path, what=what, kind=_KIND)
    if frame.empty:
        raise UsageError(f"{path} is empty: the {what} has no rows", kind=f"{_KIND}-empty")
    return frame


def _table(path: Path, what: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, encoding="utf-8", keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read the {what} {path} as CSV: {error}", kind=f"{_KIND}-unreadable"
        ) from error


def _members(path: Path) -> dict[str, list[str]]:
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"cannot read the members of complexes {path} as JSON: {error}",
            kind=f"{_KIND}-unreadable",
        ) from error
    if not isinstance(lists, dict) or not all(isinstance(ids, list) for ids in lists.values()):
        raise UsageError(
            f"{path} holds no lists of members: expected {{complex id: [glacier id, ...]}}",
            kind=f"{_KIND}-unreadable",
        )
    return lists


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether a finding is more than a warning."""
    return any(finding.severity == "error" for finding in findings)


def verdict(findings: Sequence[Finding], glaciers: int) -> str:
    """Say in one line how it stands."""
    counts = Counter(finding.severity for finding in findings)
    if not counts:
        return f"{glaciers} glaciers, every rule is kept"
    told = (f"{n} {s}{'s' if n > 1 else ''}" for s, n in sorted(counts.items()))
    return f"{glaciers} glaciers, {', '.join(told)}"


def rule_table(findings: Sequence[Finding]) -> Table:
    """One row a broken rule: how often, how grave, and what it asks for."""
    table = Table(box=None, pad_edge=False)
    table.add_column("findings", justify="right")
    for name in ("severity", "rule", "what must hold"):
        table.add_column(name)
    counts = Counter((finding.severity, finding.rule) for finding in findings)
    for (severity, rule), count in sorted(counts.items()):
        style = "red" if severity == "error" else "yellow"
        table.add_row(str(count), Text(severity, style=style), rule, Text(RULES[rule].what))
    return table


def write_findings(
    findings: Sequence[Finding], out: Path, *, glaciers: gpd.GeoDataFrame, title: str
) -> None:
    """Write findings as a table, as points in EPSG:4326, and as a map.

    Raises
    ------
    StoreError
        Where a file cannot be written.
    """
    from inventory_engine.report.style import figure_style
    from inventory_engine.validation_map import draw_findings

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / LISTING).write_text(_csv(findings), encoding="utf-8")
        (out / PLACES).write_text(_geojson(findings), encoding="utf-8")
        with figure_style():
            figure = draw_findings(glaciers, findings, title=title)
            figure.savefig(out / MAP, dpi=200, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"cannot write into {out}: {error}") from error


def _csv(findings: Sequence[Finding]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(["severity", "rule", "glacier", "message", "lon", "lat"])
    for f in findings:
        place = ["" if math.isnan(v) else round(v, 7) for v in (f.lon, f.lat)]
        writer.writerow([f.severity, f.rule, _cell(f.glacier), _cell(f.message), *place])
    return text.getvalue()


def _cell(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _geojson(findings: Sequence[Finding]) -> str:
    features: list[dict[str, Any]] = [
        {
            "type": "Feature",
            "geometry": None
            if math.isnan(f.lon)
            else {"type": "Point", "coordinates": [round(f.lon, 7), round(f.lat, 7)]},
            "properties": {
                "severity": f.severity,
                "rule": f.rule,
                "glacier": f.glacier,
                "message": f.message,
            },
        }
        for f in findings
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=1) + "\n"
