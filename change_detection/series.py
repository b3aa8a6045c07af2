"""Every glacier's area over all seasons of a region, and the line through it."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from catalog.cube import Outcome, Workspace
from catalog.errors import StoreError
from change_detection.change import DOUBTFUL, MIN_YEARS
from change_detection.epochs import decimal_years
from change_detection.files import put_files
from change_detection.trends import trend_of
from change_detection.uncertainty import AreaCalibration, area_sigma_km2

__all__ = ["SERIES", "series_between"]

SERIES = "change/trend"
"""Folder of the result in a workspace."""
_COLUMNS = ("ref_id", "day", "flags", "area_km2", "area_debris_km2", "area_unseen_km2")
_ERRORS = ("area_ensemble_sd_km2", "boundary_sigma_km2")

Floats = npt.NDArray[np.float64]


def series_between(
    workspace: Workspace, seasons: Sequence[str], *, calibration: AreaCalibration
) -> Outcome:
    """Fit a line to each glacier's areas of three or more seasons.

    A season in which a glacier was too little observed, undated, or seen out of the ablation season
    (the flags that forbid a change, see :data:`change_detection.change.CHANGE_SCHEMA`) does not
    count for it.

    Parameters
    ----------
    workspace
        Holds ``inventory/<season>/accounts.parquet``; takes ``areas.csv`` (one row a glacier and
        season) and ``trend.csv``, ``trend.parquet`` (one row a glacier with three usable seasons,
        :func:`change_detection.trends.trend_of`) and ``summary.json`` in ``change/trend``.
    seasons
        Their names in the order of time.
    calibration
        Factors for the ensemble's standard deviations.

    Returns
    -------
    Outcome
        Checksums of the files; the trend of the sum of the glaciers that count in every season as
        ``facts``.

    Raises
    ------
    StoreError
        Where the accounts of a season are missing or of another reference.
    """
    tables = [_accounts(workspace, season) for season in seasons]
    glaciers = tables[0]["ref_id"].tolist()
    for season, table in zip(seasons, tables, strict=True):
        if table["ref_id"].tolist() != glaciers:
            raise StoreError(
                f"seasons {seasons[0]} and {season} account for different glaciers: map both with "
                "the same reference inventory",
                kind="different-reference",
            )
    usable = np.array([[not DOUBTFUL & set(flags) for flags in t["flags"]] for t in tables])
    area, day = (
        np.where(usable, np.array([t[name].to_numpy(np.float64) for t in tables]), np.nan)
        for name in ("area_km2", "day")
    )
    years = decimal_years(day)
    known = np.isfinite(years)
    span = np.where(known, years, -np.inf).max(axis=0) - np.where(known, years, np.inf).min(axis=0)
    area[:, ~(span >= MIN_YEARS)] = np.nan
    # ^ seasons of one year tell of the time of the year
    sigma = np.array(
        [
            area_sigma_km2(
                *(t[name].to_numpy(np.float64) for name in (*_ERRORS, "area_unseen_km2")),
                scale=calibration.for_areas.scale,
            )
            for t in tables
        ]
    )
    trend, total = trend_of(glaciers, area, day, sigma)
    told: dict[str, Any] = {"seasons": list(seasons), "total": _finite(total)}
    told["glaciers_with_trend"] = len(trend)
    areas = _long_table(tables, seasons, sigma=sigma, usable=usable)
    sink = io.BytesIO()
    trend.to_parquet(sink, index=False, compression="zstd")
    files = {
        f"{SERIES}/areas.csv": areas.to_csv(index=False, lineterminator="\n").encode(),
        f"{SERIES}/trend.csv": trend.to_csv(index=False, lineterminator="\n").encode(),
        f"{SERIES}/trend.parquet": sink.getvalue(),
        f"{SERIES}/summary.json": json.dumps(told, indent=1, sort_keys=True).encode() + b"\n",
    }
    return Outcome(put_files(workspace, files), (), told)


def _accounts(workspace: Workspace, season: str) -> pd.DataFrame:
    name = f"inventory/{season}/accounts.parquet"
    data = workspace.get(name)
    if data is None:
        raise StoreError(f"{name} is missing; publish the inventory of {season} first")
    columns = [*_COLUMNS, *_ERRORS, "src_date"]
    frame: pd.DataFrame = pq.read_table(io.BytesIO(data), columns=columns).to_pandas()
    return frame.sort_values("ref_id", ignore_index=True)


def _long_table(
    tables: Sequence[pd.DataFrame],
    seasons: Sequence[str],
    *,
    sigma: Floats,
    usable: npt.NDArray[np.bool_],
) -> pd.DataFrame:
    rows = [
        pd.DataFrame(
            {
                "glacier_id": table["ref_id"],
                "season": season,
                "date": table["src_date"].str[:10],
                "area_km2": table["area_km2"],
                "area_sigma_km2": sigma[k],
                "area_debris_km2": table["area_debris_km2"],
                "counts": usable[k],
            }
        )
        for k, (season, table) in enumerate(zip(seasons, tables, strict=True))
    ]
    return pd.concat(rows).sort_values(["glacier_id", "season"], kind="stable", ignore_index=True)


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
