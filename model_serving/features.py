"""From the stored cube to the named input channels of a network.

Label-like layers (outlines, inventories, other maps) are never among them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import TERRAIN_BANDS

__all__ = ["CHANNELS", "GROUPS", "STATISTICS_STEP", "Normalisation", "raw_features"]

Array = npt.NDArray[Any]

CHANNELS = (
    "blue",
    "green",
    "red",
    "nir",
    "swir1",
    "swir2",
    "vv",
    "vh",
    "slope",
    "relative_elevation",
    "curvature",
)
STATISTICS_STEP = 7
"""Normalisation is measured on every seventh row and column of a training region."""
GROUPS = {"optical": slice(0, 6), "sar": slice(6, 8), "terrain": slice(8, 11)}
_TERRAIN = [TERRAIN_BANDS.index(name) for name in CHANNELS[GROUPS["terrain"]]]
_LIMIT = 6.0
# ^ normalised inputs are clipped here: one saturated pixel must not shake its whole row


def raw_features(optical: Array, sar: Array | None, terrain: Array | None) -> Array:
    """Turn stored layers into physical channels.

    Parameters
    ----------
    optical : ``(6, y, x)`` uint16
        Stored reflectance (times 10000 plus 1000), 0 = no data.
    sar : ``(2, y, x)`` uint16, optional
        Stored backscatter ((dB + 50) times 1000), 0 = no data.
    terrain : ``(band, y, x)`` float32, optional
        In the order of :data:`catalog.cube.TERRAIN_BANDS`; NaN or infinite = no data.

    Returns
    -------
    ``(11, y, x)`` float32 in the order of :data:`CHANNELS`
        Square root of reflectance, dB, degrees, metres, 1/100 m; NaN = no data. A pixel that misses
        one optical band misses all.
    """
    height, width = optical.shape[-2:]
    out = np.full((len(CHANNELS), height, width), np.nan, np.float32)
    seen = (optical > 0).all(axis=0)
    reflectance = optical.astype(np.float32) * np.float32(1e-4) - np.float32(0.1)
    # The root spreads out the dark surfaces that are hard to tell apart: debris, rock, shadow.
    out[GROUPS["optical"]] = np.where(seen, np.sqrt(np.maximum(reflectance, 0)), np.nan)
    if sar is not None:
        level = sar.astype(np.float32) * np.float32(1e-3) - np.float32(50)
        out[GROUPS["sar"]] = np.where((sar > 0).all(axis=0), level, np.nan)
    if terrain is not None:
        bands = terrain[_TERRAIN]
        out[GROUPS["terrain"]] = np.where(np.isfinite(bands), bands, np.nan)
    return out


@dataclass(frozen=True, slots=True)
class Normalisation:
    """Mean and standard deviation of each channel, measured on training pixels only."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def measured(cls, samples: Array) -> Normalisation:
        """Measure on ``(channel, pixel)`` raw features; missing values are left out.

        Raises
        ------
        ValueError
            Where a channel has no value at all.
        """
        empty = [CHANNELS[i] for i in np.flatnonzero(~np.isfinite(samples).any(axis=1))]
        if empty:
            raise ValueError(f"no training pixel has a value of {', '.join(empty)}")
        wide = samples.astype(np.float64)
        return cls(
            tuple(float(v) for v in np.nanmean(wide, axis=1).round(6)),
            tuple(float(v) for v in np.maximum(np.nanstd(wide, axis=1), 1e-3).round(6)),
        )

    def apply(self, raw: Array) -> Array:
        """Normalise ``(..., channel, y, x)``; what is missing becomes 0, the training mean."""
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        out = np.asarray(raw - mean, np.float32)
        out /= std
        np.clip(out, -_LIMIT, _LIMIT, out=out)
        np.copyto(out, 0, where=np.isnan(out))
        return out
