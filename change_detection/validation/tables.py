"""Rules on the tables beside the outlines: hypsometry, and links to another inventory."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from change_detection.validation.layer import Layer, same_area, text_of
from change_detection.validation.rules import Finding

__all__ = ["check_hypsometry", "check_links"]

_BIN_M = 50
_PER_MILLE = 1000
_LEAST_OVERLAP_KM2 = 200e-6
_FRACTION = 1e-3
# ^ areas and fractions of links are rounded in files


def check_hypsometry(glaciers: Layer, table: pd.DataFrame) -> list[Finding]:
    """Whether every glacier has one row of bins with the sum 1000.

    Parameters
    ----------
    glaciers
        The inventory.
    table
        ``rgi_id``, ``area_km2``, then a column each bin, named by its middle in metres.
    """
    bins = [str(c) for c in table.columns if str(c) not in ("rgi_id", "area_km2")]
    if "rgi_id" not in table:
        return glaciers.report_file("hypsometry-columns", "there is no column rgi_id")
    found = _bins(glaciers, table, bins)
    row = _rows_of(glaciers, text_of(table["rgi_id"]))
    found += _one_row_each(glaciers, text_of(table["rgi_id"]), row)
    values = table[bins].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    known = row >= 0
    whole = (np.isfinite(values) & (values >= 0) & (values == np.round(values))).all(axis=1)
    texts = ["a bin is negative, empty or no whole number"] * int((known & ~whole).sum())
    found += glaciers.report("hypsometry-sum", row[known & ~whole], texts)
    sums = np.nansum(values, axis=1)
    off = known & whole & (sums != _PER_MILLE)
    texts = [f"bins sum to {s:.0f} per mille, expected {_PER_MILLE}" for s in sums[off]]
    found += glaciers.report("hypsometry-sum", row[off], texts)
    if "area_km2" in table:
        area = pd.to_numeric(table["area_km2"], errors="coerce").to_numpy(np.float64)
        off = known & glaciers.sound[row] & ~same_area(area, glaciers.area_km2[row])
        texts = [
            f"area_km2 of the hypsometry is {a:.6f}, the outline has {b:.6f} km2"
            for a, b in zip(area[off], glaciers.area_km2[row[off]], strict=True)
        ]
        found += glaciers.report("hypsometry-area", row[off], texts)
    return found


def _bins(glaciers: Layer, table: pd.DataFrame, bins: list[str]) -> list[Finding]:
    if not all(re.fullmatch(r"-?\d+(\.0)?", name) for name in bins) or not bins:
        odd = next((b for b in bins if not re.fullmatch(r"-?\d+(\.0)?", b)), "none")
        text = f"expected columns named by elevations, found {odd!r}"
        return glaciers.report_file("hypsometry-columns", text)
    steps = np.diff([float(name) for name in bins])
    if (steps != _BIN_M).any():
        i = int(np.flatnonzero(steps != _BIN_M)[0])
        text = f"bins {bins[i]} and {bins[i + 1]} are {steps[i]:g} m apart, expected {_BIN_M} m"
        return glaciers.report_file("hypsometry-columns", text)
    if "area_km2" not in table:
        return glaciers.report_file("hypsometry-columns", "there is no column area_km2")
    return []


def _rows_of(glaciers: Layer, ids: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Row of each id in the inventory, -1 where it is not there."""
    rows = pd.Series(np.arange(len(glaciers.names)), index=glaciers.names)
    rows = rows[~rows.index.duplicated()]
    return np.asarray(rows.reindex(ids).fillna(-1), dtype=np.intp)


def _one_row_each(
    glaciers: Layer, ids: npt.NDArray[Any], row: npt.NDArray[np.intp]
) -> list[Finding]:
    counts = np.bincount(row[row >= 0], minlength=len(glaciers.names))
    off = np.flatnonzero(counts != 1)
    texts = [f"has {counts[i]} rows in the hypsometry, expected one" for i in off]
    found = glaciers.report("hypsometry-rows", off, texts)
    unknown = ids[row < 0]
    if len(unknown):
        text = f"{len(unknown)} rows name no glacier of the inventory, the first {unknown[0]!r}"
        found += glaciers.report_file("hypsometry-rows", text)
    return found


def check_links(glaciers: Layer, table: pd.DataFrame) -> list[Finding]:
    """Whether links to another inventory name known glaciers, true fractions and true counts.

    The columns are those of RGI 7.0's ``rgi6_links``. In derived inventories the names of the two
    inventories stand in place of ``rgi7`` and ``rgi6``: ``<new>_id``, ``<old>_id``, ``<new>_reg``,
    ``n_<new>`` and so on, the validated one first.

    Parameters
    ----------
    glaciers
        The inventory.
    table
        One row an overlap.
    """
    ends = [m[1] for c in table.columns if (m := re.fullmatch(r"(?!cluster)(\w+)_id", str(c)))]
    new, old = ("rgi7", "rgi6") if glaciers.profile == "rgi7" or len(ends) < 2 else ends[:2]
    wanted = [
        *(f"{new}_id", f"{old}_id", f"{new}_reg", f"{old}_reg", "overlap_area_km2"),
        *(f"{new}_area_fraction", f"{old}_area_fraction", f"n_{new}", f"n_{old}", "cluster_id"),
    ]
    missing = [name for name in wanted if name not in table]
    if missing:
        text = f"missing columns: {', '.join(missing)}; found {', '.join(map(str, table.columns))}"
        return glaciers.report_file("links-columns", text)
    ids = text_of(table[f"{new}_id"])
    row = _rows_of(glaciers, ids)
    found: list[Finding] = []
    unknown = sorted(set(ids[row < 0]))
    if unknown:
        text = (
            f"links name {len(unknown)} ids that are not in the inventory, the first {unknown[0]!r}"
        )
        found += glaciers.report_file("links-glaciers", text)
    found += _overlaps(glaciers, table, row, new=new, old=old)
    return found + _counts(glaciers, table, row, new=new, old=old)


def _overlaps(
    glaciers: Layer, table: pd.DataFrame, row: npt.NDArray[np.intp], *, new: str, old: str
) -> list[Finding]:
    names = ("overlap_area_km2", f"{new}_area_fraction", f"{old}_area_fraction")
    km2, mine, theirs = (
        pd.to_numeric(table[n], errors="coerce").to_numpy(np.float64) for n in names
    )
    known = row >= 0
    fraction = km2 / glaciers.area_km2[row]
    odd = ~(km2 > _LEAST_OVERLAP_KM2) | ~_is_fraction(mine) | ~_is_fraction(theirs)
    texts = [
        f"a link of {a:.6f} km2 and fractions {b:.4f} and {c:.4f}; "
        "expected more than 0.0002 km2, and 0 to 1"
        for a, b, c in zip(km2[known & odd], mine[known & odd], theirs[known & odd], strict=True)
    ]
    found = glaciers.report("links-values", row[known & odd], texts)
    off = known & ~odd & glaciers.sound[row] & (np.abs(fraction - mine) > _FRACTION)
    texts = [
        f"a link says {a:.4f} of it, its {b:.6f} km2 are {c:.4f}"
        for a, b, c in zip(mine[off], km2[off], fraction[off], strict=True)
    ]
    return found + glaciers.report("links-values", row[off], texts)


def _is_fraction(values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.asarray((values > 0) & (values <= 1 + _FRACTION))


def _counts(
    glaciers: Layer, table: pd.DataFrame, row: npt.NDArray[np.intp], *, new: str, old: str
) -> list[Finding]:
    """Counts are at least those of the file (a link may cross regions); clusters hold together."""
    found: list[Finding] = []
    known = row >= 0
    for count, by in ((f"n_{new}", f"{old}_id"), (f"n_{old}", f"{new}_id")):
        told = pd.to_numeric(table[count], errors="coerce").to_numpy(np.float64)
        seen = table.groupby(by)[by].transform("size").to_numpy()
        off = known & ~(told >= seen)
        texts = [
            f"{count} is {a:g}, the table has {b} rows of {c}"
            for a, b, c in zip(told[off], seen[off], table[by][off], strict=True)
        ]
        found += glaciers.report("links-counts", row[off], texts)
    for by in (f"{new}_id", f"{old}_id"):
        torn = table.groupby(by)["cluster_id"].transform("nunique").to_numpy() > 1
        texts = [f"the rows of {i} lie in several clusters" for i in table[by][known & torn]]
        found += glaciers.report("links-counts", row[known & torn], texts)
    return found
