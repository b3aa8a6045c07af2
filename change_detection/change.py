"""What became of each glacier between two seasons, and of the region as a whole.

One law: no change is reported that was not observed. What cannot be said is missing, never zero.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.cube import Outcome, Workspace
from catalog.errors import StoreError
from change_detection.attributes import iso_day
from change_detection.differences import AREA_COLUMNS, DIFFERENCE_SCHEMA, END_COLUMNS
from change_detection.events import map_events
from change_detection.files import put_files
from change_detection.hypsometry import BIN_M
from change_detection.uncertainty import (
    AreaCalibration,
    area_sigma_km2,
    change_sigma_km2,
    regional_sigma_km2,
    unseen_sigma_km2,
)

__all__ = ["CHANGE_SCHEMA", "DOUBTFUL", "MIN_YEARS", "change_between", "parquet_bytes"]

_DAYS_A_YEAR = 365.2425
MIN_YEARS = 0.9
"""Shorter intervals compare different times of the year more than different years."""
DOUBTFUL = frozenset({"low-observation", "out-of-season", "undated"})
"""Flags of an account that forbid a statement about change."""

_NUMBERS = (
    "area_from_km2",
    "area_from_sigma_km2",
    "area_to_km2",
    "area_to_sigma_km2",
    "area_change_km2",
    "area_change_sigma_km2",
    "rate_km2_per_year",
    "rate_sigma_km2_per_year",
    "rate_percent_per_year",
    "rate_percent_sigma",
    "area_debris_from_km2",
    "area_debris_to_km2",
    "zmed_m",
    *AREA_COLUMNS,
    *END_COLUMNS,
)

CHANGE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("glacier_id", "date_from", "date_to")]
    + [(name, pa.float64()) for name in _NUMBERS]
    + [("event", pa.string()), ("flags", pa.string())]
)
"""Columns of the change table, one row a reference glacier; missing numbers are null.

``event`` is the first that holds of :data:`change_detection.events.MAP_EVENTS`, or empty; all but
``unobserved`` only where a change is reported. ``events.csv`` tells all of them, and by what.
``area_gained_km2`` to ``front_change_m`` are pixels that were seen at both dates, see
:data:`change_detection.differences.DIFFERENCE_SCHEMA`; with seasons of unlike pixels the change is
gain less loss on the coarser ones (flag ``coarser-comparison``).
``flags`` joins with ``;`` what the accounts of either date note and why no change is reported.
"""

Floats = npt.NDArray[np.float64]


def change_between(
    workspace: Workspace,
    season_from: str,
    season_to: str,
    *,
    calibration: AreaCalibration,
    batches: Sequence[str] = (),
    unlike: bool = False,
) -> Outcome:
    """Compare the accounts of two seasons, glacier by glacier.

    Parameters
    ----------
    workspace
        Holds ``inventory/<season>/accounts.parquet`` of both seasons; takes ``glaciers.parquet``,
        ``glaciers.csv`` and ``summary.json`` in ``change/<from>_<to>``.
    season_from, season_to
        Names of the seasons, the earlier one first.
    calibration
        Factors for the ensemble's standard deviations, and where they come from.
    batches
        Those whose pixels were compared (:func:`change_detection.differences.trace_differences`).
    unlike
        Whether the pixels of the seasons are of unlike size.

    Returns
    -------
    Outcome
        Checksums of these files, of ``events.csv``, and where pixels were compared of
        ``elevation.csv`` (ice of both dates in bins of 50 m); the summary as ``facts``.

    Raises
    ------
    StoreError
        Where the accounts of a season are missing or the two are of different references.
    """
    old, new = _accounts(workspace, season_from), _accounts(workspace, season_to)
    if old.index.tolist() != new.index.tolist():
        differing = sorted(set(old.index) ^ set(new.index))
        raise StoreError(
            f"seasons {season_from} and {season_to} account for different glaciers, the first: "
            f"{', '.join(differing[:3])}. Map both with the same reference inventory",
            kind="different-reference",
        )
    member_changes = _members(new, old) - _members(old, new)
    same = _same_observation(old, new)
    pixels = _differences(workspace, f"{season_from}_{season_to}", batches, old.index)
    table, comparable, events = _table(
        old,
        new,
        member_changes=member_changes,
        same=same,
        calibration=calibration,
        pixels=pixels,
        unlike=unlike,
    )
    summary: dict[str, Any] = {"season_from": season_from, "season_to": season_to}
    summary |= _summary(
        table,
        comparable,
        events,
        old=old,
        new=new,
        members=member_changes,
        calibration=calibration,
    )
    folder = f"change/{season_from}_{season_to}"
    files = {
        f"{folder}/glaciers.parquet": parquet_bytes(table, CHANGE_SCHEMA),
        f"{folder}/glaciers.csv": table.to_csv(index=False, lineterminator="\n").encode(),
        f"{folder}/events.csv": events.to_csv(index=False, lineterminator="\n").encode(),
        f"{folder}/summary.json": json.dumps(
            summary, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False
        ).encode(),
    }
    bands = _by_elevation(pixels[comparable])
    if len(bands):
        text = bands.to_csv(index=False, lineterminator="\n")
        files[f"{folder}/elevation.csv"] = text.encode()
    return Outcome(put_files(workspace, files), (), summary)


def _accounts(workspace: Workspace, season: str) -> pd.DataFrame:
    name = f"inventory/{season}/accounts.parquet"
    data = workspace.get(name)
    if data is None:
        raise StoreError(f"{name} is missing; publish the inventory of {season} first")
    frame: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
    return frame.set_index("ref_id").sort_index()


def _differences(
    workspace: Workspace, pair: str, batches: Sequence[str], glaciers: pd.Index[str]
) -> pd.DataFrame:
    """Differences of the pixels, one row a glacier; missing where they were not compared."""
    parts = [DIFFERENCE_SCHEMA.empty_table()]
    for batch in batches:
        name = f"change/{pair}/parts/{batch}.parquet"
        data = workspace.get(name)
        if data is None:
            raise StoreError(f"{name} is missing; compare the maps of {pair} first")
        parts.append(pq.read_table(io.BytesIO(data)))
    found: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    return found.set_index("ref_id").reindex(glaciers)


def _by_elevation(pixels: pd.DataFrame) -> pd.DataFrame:
    """Ice of both dates in bins of 50 m, summed over glaciers; empty where none has elevation."""
    known = pixels[pixels["band_first"].notna()]
    if known.empty:
        return pd.DataFrame()
    first = known["band_first"].astype(int)
    low, high = first.min(), (first + known["band_from_km2"].str.len()).max()
    sums = np.zeros((2, int(high - low)))
    for start, *bands in zip(first, known["band_from_km2"], known["band_to_km2"], strict=True):
        for total, band in zip(sums, bands, strict=True):
            total[start - low : start - low + len(band)] += band
    lower = BIN_M * np.arange(int(low), int(high))
    return pd.DataFrame(
        {
            "elevation_from_m": lower,
            "elevation_to_m": lower + BIN_M,
            "area_from_km2": sums[0],
            "area_to_km2": sums[1],
            "area_change_km2": sums[1] - sums[0],
        }
    )


def _members(frame: pd.DataFrame, other: pd.DataFrame) -> Floats:
    """Areas by ``(member, glacier)``, as many members as either date has; NaN if not eligible."""
    lists = frame["member_area_km2"].tolist()
    longest = max(map(len, [*lists, *other["member_area_km2"]]), default=0)
    areas = np.full((longest, len(lists)), np.nan)
    for i, values in enumerate(lists):
        areas[: len(values), i] = values
    return areas


def _same_observation(old: pd.DataFrame, new: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether both dates are one and the same look: equal days and areas, by every member too."""
    members_old, members_new = _members(old, new), _members(new, old)
    equal = ((members_old == members_new) | np.isnan(members_old) & np.isnan(members_new)).all(0)
    for name in ("day", "area_km2", "area_debris_km2", "area_unseen_km2"):
        equal &= (old[name] == new[name]).to_numpy()
    return np.asarray(equal)


def _table(
    old: pd.DataFrame,
    new: pd.DataFrame,
    *,
    member_changes: Floats,
    same: npt.NDArray[np.bool_],
    calibration: AreaCalibration,
    pixels: pd.DataFrame,
    unlike: bool,
) -> tuple[pd.DataFrame, npt.NDArray[np.bool_], pd.DataFrame]:
    years = (new["day"] - old["day"]).to_numpy() / _DAYS_A_YEAR
    flags = _flags(old, new, years=years, same=same)
    comparable = np.array([not _silencing(row) for row in flags])
    change = (new["area_km2"] - old["area_km2"]).to_numpy()
    net = (pixels["area_gained_km2"] - pixels["area_lost_km2"]).to_numpy()
    if unlike:
        counted = np.isfinite(net)
        change = np.where(counted, net, change)
        flags = [
            sorted([*row, "coarser-comparison"]) if one else row
            for row, one in zip(flags, counted, strict=True)
        ]
    change = np.where(comparable, change, np.nan)
    sigma = change_sigma_km2(
        member_changes,
        *(
            np.hypot(f["boundary_sigma_km2"], unseen_sigma_km2(f["area_unseen_km2"]))
            for f in (old, new)
        ),
        scale=calibration.scale,
    )
    sigma = np.where(comparable, np.where(same & np.isfinite(sigma), 0.0, sigma), np.nan)
    # One look compared with itself has no error: the boundary is wrong in the same way twice.
    span = np.where(same, 1.0, years)
    percent = 100.0 / old["area_km2"].where(old["area_km2"] > 0).to_numpy()
    events = map_events(old, new, pixels, change=change, sigma=sigma, years=span)
    first = events.drop_duplicates("glacier_id").set_index("glacier_id")["event"]
    columns = {
        "glacier_id": old.index.to_numpy(),
        "date_from": [iso_day(d)[:10] for d in old["day"]],
        "date_to": [iso_day(d)[:10] for d in new["day"]],
        "area_from_km2": old["area_km2"].to_numpy(),
        "area_from_sigma_km2": _area_sigma(old, calibration),
        "area_to_km2": new["area_km2"].to_numpy(),
        "area_to_sigma_km2": _area_sigma(new, calibration),
        "area_change_km2": change,
        "area_change_sigma_km2": sigma,
        "rate_km2_per_year": change / span,
        "rate_sigma_km2_per_year": sigma / span,
        "rate_percent_per_year": change / span * percent,
        "rate_percent_sigma": sigma / span * percent,
        "area_debris_from_km2": old["area_debris_km2"].to_numpy(),
        "area_debris_to_km2": new["area_debris_km2"].to_numpy(),
        "zmed_m": old["zmed_m"].fillna(new["zmed_m"]).to_numpy(),
        **{
            name: np.where(comparable, pixels[name].to_numpy(np.float64), np.nan)
            for name in (*AREA_COLUMNS, *END_COLUMNS)
        },
        "event": first.reindex(old.index).fillna("").to_numpy(),
        "flags": [";".join(row) for row in flags],
    }
    return pd.DataFrame(columns), comparable, events


def _area_sigma(accounts: pd.DataFrame, calibration: AreaCalibration) -> Floats:
    return area_sigma_km2(
        accounts["area_ensemble_sd_km2"],
        accounts["boundary_sigma_km2"],
        accounts["area_unseen_km2"],
        scale=calibration.for_areas.scale,
    )


def _flags(
    old: pd.DataFrame, new: pd.DataFrame, *, years: Floats, same: npt.NDArray[np.bool_]
) -> list[list[str]]:
    rows = []
    for before, after, span, one in zip(old["flags"], new["flags"], years, same, strict=True):
        found = {*before, *after}
        if span < MIN_YEARS and not one:
            found.add("short-interval")
        rows.append(sorted(found))
    return rows


def _silencing(flags: list[str]) -> bool:
    return bool((DOUBTFUL | {"short-interval"}) & set(flags))


def _summary(
    table: pd.DataFrame,
    comparable: npt.NDArray[np.bool_],
    events: pd.DataFrame,
    *,
    old: pd.DataFrame,
    new: pd.DataFrame,
    members: Floats,
    calibration: AreaCalibration,
) -> dict[str, Any]:
    """Totals over the glaciers that can be compared, and how much is left out."""
    compared = table[comparable]
    weight = _total(compared["area_from_km2"])
    change = _total(compared["area_change_km2"])
    sigma = regional_sigma_km2(
        members[:, comparable],
        compared["area_change_sigma_km2"].to_numpy(),
        compared["area_from_km2"].to_numpy(),
        calibration=calibration,
    )
    days = (new["day"] - old["day"]).to_numpy()[comparable]
    years = _total(compared["area_from_km2"] * days) / weight / _DAYS_A_YEAR if weight else math.nan
    rate, rate_sigma = (_rate(value, years) for value in (change, sigma.sigma))
    reference = old["area_reference_km2"]
    facts = {
        "glaciers": len(table),
        "glaciers_compared": int(comparable.sum()),
        "glaciers_with_interval": int(table["area_change_sigma_km2"].notna().sum()),
        "glaciers_not_compared": int((~comparable).sum()),
        "area_from_km2": weight,
        "area_to_km2": _total(compared["area_to_km2"]),
        "area_change_km2": change,
        "area_change_sigma_km2": sigma.sigma,
        "area_change_sigma_independent_km2": sigma.independent,
        "area_change_sigma_correlated_km2": sigma.correlated,
        "area_change_sigma_members_km2": sigma.members,
        "area_fraction_with_interval": sigma.area_fraction,
        "area_not_compared_km2": float(table["area_from_km2"][~comparable].sum()),
        "area_reference_km2": float(reference.sum()),
        "area_reference_compared_km2": float(reference.to_numpy()[comparable].sum()),
        "area_debris_from_km2": _total(compared["area_debris_from_km2"]),
        "area_debris_to_km2": _total(compared["area_debris_to_km2"]),
        **{name: _total(compared[name]) for name in AREA_COLUMNS},
        "mean_interval_years": years,
        "rate_km2_per_year": rate,
        "rate_sigma_km2_per_year": rate_sigma,
        "rate_percent_per_year": 100 * rate / weight if weight else math.nan,
        "rate_percent_sigma": 100 * rate_sigma / weight if weight else math.nan,
        "events": _counted(events["event"]),
        "flags": _counted(table["flags"].str.split(";").explode()),
        "calibration": calibration.to_dict(),
    }
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }


def _total(values: pd.Series[float]) -> float:
    """Sum in row order; NaN where there is nothing to sum."""
    return float(values.sum(skipna=False)) if len(values) else math.nan


def _rate(value: float, years: float) -> float:
    if years == 0:
        # Only one look compared with itself has no interval: it has no change and no error.
        return value
    return value / years


def _counted(names: pd.Series[Any]) -> dict[str, int]:
    counted = names[names != ""].value_counts()
    return {str(name): int(n) for name, n in sorted(counted.items())}


def parquet_bytes(table: pd.DataFrame, schema: pa.Schema) -> bytes:
    """Bytes of a Parquet file; equal tables give equal bytes."""
    sink = io.BytesIO()
    arrow = pa.Table.from_pandas(table, schema=schema, preserve_index=False)
    pq.write_table(arrow.replace_schema_metadata(None), sink, compression="zstd")
    return sink.getvalue()
