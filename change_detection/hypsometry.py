"""Area of a glacier by elevation: bins of 50 metres in whole per mille, as in RGI 7.0."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

__all__ = ["BIN_M", "PER_MILLE", "band_counts", "hypsometry_table", "per_mille"]

BIN_M = 50
"""Height of a bin (rgi_user_guide, v7.0, "Hypsometry")."""
PER_MILLE = 1000

Counts = npt.NDArray[np.int64]


def band_counts(
    labels: npt.NDArray[np.int32],
    count: int,
    *,
    elevation: npt.NDArray[np.float32] | None,
) -> tuple[npt.NDArray[np.int64], list[Counts]]:
    """Pixels of each zone by elevation.

    Parameters
    ----------
    labels : ``(y, x)`` int32
        Zones 1 to ``count``; 0 is left out.
    count
        Number of zones.
    elevation : ``(y, x)`` float32 or None
        Metres; pixels where it is NaN are left out.

    Returns
    -------
    tuple
        Number of each zone's lowest bin (bin b reaches from 50 b to 50 b + 50 m), and its pixels
        bin by bin from there on; none where a zone has no elevation.
    """
    first = np.zeros(count, dtype=np.int64)
    bands: list[Counts] = [np.zeros(0, dtype=np.int64)] * count
    if elevation is None:
        return first, bands
    known = np.isfinite(elevation) & (labels > 0)
    zone = labels[known].astype(np.int64) - 1
    band = np.floor(elevation[known] / BIN_M).astype(np.int64)
    pairs, pixels = np.unique(np.stack([zone, band]), axis=1, return_counts=True)
    start = np.searchsorted(pairs[0], np.arange(count + 1))
    for i in range(count):
        part = slice(start[i], start[i + 1])
        found = pairs[1, part]
        if found.size:
            first[i] = found[0]
            bands[i] = np.zeros(found[-1] - found[0] + 1, dtype=np.int64)
            bands[i][found - found[0]] = pixels[part]
    return first, bands


def per_mille(pixels: npt.ArrayLike) -> Counts:
    """Whole per mille with the sum 1000, by the method of the largest remainder.

    Every bin is within one of its exact share (Balinski and Young 1975, American Mathematical
    Monthly 82, 701-730); of equal remainders the lower bin's is rounded up.

    Parameters
    ----------
    pixels : ``(bin,)``
        Not negative, not all zero.
    """
    values = np.asarray(pixels, dtype=np.int64)
    whole, rest = np.divmod(values * PER_MILLE, values.sum())
    lacking = PER_MILLE - int(whole.sum())
    whole[np.argsort(-rest, kind="stable")[:lacking]] += 1
    return whole


def hypsometry_table(
    ids: Sequence[str],
    area_km2: npt.ArrayLike,
    first: Sequence[int],
    bands: Sequence[npt.ArrayLike],
) -> pd.DataFrame:
    """Table of the hypsometry of glaciers as RGI 7.0 publishes it.

    Parameters
    ----------
    ids, area_km2
        Of each glacier.
    first, bands
        Of each glacier, see :func:`band_counts`; glaciers without any are left out.

    Returns
    -------
    DataFrame
        ``rgi_id``, ``area_km2``, then a column a bin, named by its middle in metres (``2525.0``),
        whole per mille; from the lowest bin of all glaciers to the highest.
    """
    counts = [np.asarray(band, dtype=np.int64) for band in bands]
    rows = [i for i, band in enumerate(counts) if band.sum()]
    table = pd.DataFrame(
        {
            "rgi_id": [ids[i] for i in rows],
            "area_km2": np.asarray(area_km2, dtype=np.float64)[rows],
        }
    )
    if not rows:
        return table
    low = min(first[i] for i in rows)
    high = max(first[i] + len(counts[i]) for i in rows)
    values = np.zeros((len(rows), high - low), dtype=np.int64)
    for row, i in enumerate(rows):
        values[row, first[i] - low : first[i] - low + len(counts[i])] = per_mille(counts[i])
    middles = [f"{BIN_M * (low + k) + BIN_M / 2:.1f}" for k in range(high - low)]
    return pd.concat([table, pd.DataFrame(values, columns=middles)], axis=1)
