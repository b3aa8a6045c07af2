"""How good a map is where the truth is known; a plain band ratio is scored beside it.

Everything is counted on the same pixels: those that were observed and whose truth is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import rioxarray
from rasterio.enums import Resampling

from catalog.cube import (
    ICE_CLASSES,
    NOT_SEEN,
    OPTICAL_BANDS,
    OPTICAL_OFFSET,
    OPTICAL_SCALE,
    UNKNOWN,
    Workspace,
    read_shard,
)
from catalog.grid import Shard
from model_serving.metrics import RATIO_THRESHOLDS, Overlaps, ratio_masks

__all__ = ["SeasonScore", "score_glaciers", "score_season", "true_area_km2"]


Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SeasonScore:
    """Intersection over union of ice, of the map and of the best band ratio."""

    iou: float
    band_ratio_iou: float
    band_ratio: float
    """The threshold that was best."""
    pixels: int
    """How many pixels were compared."""
    ratio_ious: tuple[float, ...]
    """Intersection over union of each of :data:`model_serving.metrics.RATIO_THRESHOLDS`."""


def score_season(
    workspace: Workspace, season: str, shards: Sequence[Shard], *, classes: Path
) -> SeasonScore:
    """Compare a season's map with the true classes.

    Parameters
    ----------
    workspace
        Holds the cube and the map.
    season
        Which season.
    shards
        The mapped shards.
    classes
        Raster of the true classes, numbered like :data:`catalog.cube.CLASSES`; resampled to the
        grid by the most frequent class.
    """
    counted, pixels = Overlaps(), 0
    for shard in shards:
        truth, known = _truth(classes, shard)
        mapped, seen = _mapped_ice(workspace, season, shard)
        red, swir, lit = _red_and_swir(workspace, season, shard)
        used = known & seen & lit
        pixels += int(used.sum())
        counted.add(chain([mapped[used]], ratio_masks(red[used], swir[used])), truth[used])
    iou, *ratios = counted.ious
    best = int(np.nanargmax(ratios))
    return SeasonScore(iou, ratios[best], RATIO_THRESHOLDS[best], pixels, tuple(ratios))


def _truth(classes: Path, shard: Shard) -> tuple[Mask, Mask]:
    """Where the truth is ice, and where it is known, ``(y, x)``."""
    with rioxarray.open_rasterio(classes) as source:
        box = shard.geobox()
        found = source.astype("uint8").rio.write_nodata(UNKNOWN)
        here = found.rio.reproject(
            box.crs.to_wkt(),
            shape=box.shape,
            transform=box.transform,
            resampling=Resampling.mode,
            nodata=UNKNOWN,
        ).to_numpy()[0]
    return np.isin(here, ICE_CLASSES), here != UNKNOWN


def _mapped_ice(workspace: Workspace, season: str, shard: Shard) -> tuple[Mask, Mask]:
    probability = read_shard(workspace, f"map.zarr/{season}/probability", shard)
    ice = probability[list(ICE_CLASSES)].astype(np.int16).sum(axis=0)
    return 2 * ice >= NOT_SEEN - 1, probability[0] != NOT_SEEN


def _red_and_swir(
    workspace: Workspace, season: str, shard: Shard
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], Mask]:
    """Reflectances of two bands, and where both were observed, ``(y, x)``."""
    stored = read_shard(workspace, f"cube.zarr/{season}/optical", shard)
    red, swir = (stored[OPTICAL_BANDS.index(name)] for name in ("red", "swir1"))
    values = [b.astype(np.float32) * OPTICAL_SCALE + OPTICAL_OFFSET for b in (red, swir)]
    return values[0], values[1], (red > 0) & (swir > 0)


def score_glaciers(
    workspace: Workspace, seasons: Sequence[str], truth: dict[str, Path]
) -> list[dict[str, Any]]:
    """Put true and mapped areas side by side, glacier by glacier, sorted by id.

    Returns
    -------
    list of dict
        ``id``; ``area_true_km2`` and ``area_mapped_km2`` by season; ``true_change_km2`` and
        ``mapped_change_km2`` from the first season to the last one. None where not known.
    """
    true = pd.DataFrame({s: _areas(gpd.read_file(truth[s])) for s in seasons})
    mapped = pd.DataFrame(
        {s: _areas(_table(workspace, f"inventory/{s}/accounts.parquet")) for s in seasons}
    )
    rows = []
    first, last = seasons[0], seasons[-1]
    for ref_id in sorted(mapped.index):
        known = true.reindex([ref_id]).iloc[0].fillna(0.0)
        # ^ a glacier without an outline in the truth has melted
        found = mapped.loc[ref_id]
        rows.append(
            {
                "id": ref_id,
                "area_true_km2": {s: _number(known[s]) for s in seasons},
                "area_mapped_km2": {s: _number(found[s]) for s in seasons},
                "true_change_km2": _number(known[last] - known[first]),
                "mapped_change_km2": _number(found[last] - found[first]),
            }
        )
    return rows


def _table(workspace: Workspace, name: str) -> pd.DataFrame:
    return pd.read_parquet(workspace.path(name))


def _areas(table: pd.DataFrame) -> pd.Series[float]:
    return table.groupby("ref_id")["area_km2"].sum()


def _number(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def true_area_km2(path: Path) -> float:
    """Sum of the true outlines' areas."""
    return float(_areas(gpd.read_file(path)).sum())
