"""Windows to run networks on: of a file, of a small simulated region, or smooth random fields.

All are raw features as the engine makes them, before a member's normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Windows", "region_windows", "saved_windows", "smooth_fields"]

Array = npt.NDArray[Any]

_SIZE_KM, _RESOLUTION_M = 13.0, 20.0


@dataclass(frozen=True, slots=True)
class Windows:
    """Raw features ``(window, channel, y, x)`` float32, and what they are."""

    raw: Array
    source: str


def saved_windows(path: Path, size: int) -> Windows:
    """Cut the middle out of the array ``windows`` of a NumPy archive.

    Raises
    ------
    ValueError
        Where its windows are smaller than asked for.
    """
    with np.load(path) as archive:
        raw = archive["windows"]
    if min(raw.shape[-2:]) < size:
        raise ValueError(f"{path} has windows of {raw.shape[-2:]} px, needed are {size}")
    top, left = ((edge - size) // 2 for edge in raw.shape[-2:])
    cut = raw[..., top : top + size, left : left + size]
    return Windows(np.ascontiguousarray(cut, np.float32), f"windows of {path.name}")


def region_windows(folder: Path, size: int) -> Windows:
    """Four windows of a simulated region, which is made on first use (about 20 s) and kept.

    Parameters
    ----------
    folder
        Where the region is kept.
    size
        Edge of the windows; they overlap where the region is less than twice as large.

    Raises
    ------
    ValueError
        Where the windows are larger than the region.
    """
    kept = folder / "region.npy"
    if not kept.exists():
        from catalog.simulation import RegionSpec, SeasonSpec
        from model_serving.regions import prepare_region

        spec = RegionSpec(
            name="BENCHMARK",
            seed=23,
            style="alpine",
            lon=-29.43,
            lat=46.55,
            size_km=_SIZE_KM,
            seasons=(SeasonSpec("2024", 2024, 0.0, 2, 0.1, 0.1),),
        )
        features = prepare_region(spec, folder / "region", resolution_m=_RESOLUTION_M).features()[0]
        seen = np.isfinite(features[0].astype(np.float32))
        middle = [slice(*np.flatnonzero(seen.mean(axis=a) > 0.3)[[0, -1]]) for a in (1, 0)]
        np.save(kept, features[:, *middle])
    region = np.load(kept).astype(np.float32)
    height, width = region.shape[-2:]
    if size > min(height, width):
        raise ValueError(f"the region has {height} x {width} px, needed are {size}; give windows")
    places = [(y, x) for y in (0, height - size) for x in (0, width - size)]
    raw = np.stack([region[:, y : y + size, x : x + size] for y, x in places])
    return Windows(raw, "windows of a simulated alpine region")


def smooth_fields(
    count: int, size: int, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Windows:
    """Random fields, smooth over some ten pixels, with the mean and spread of real inputs."""
    rng = np.random.default_rng(0)
    wave = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))
    spectrum = np.fft.rfft2(rng.normal(size=(count, len(mean), size, size)))
    fields = np.fft.irfft2(spectrum / (wave + 0.02) ** 1.5, s=(size, size))
    fields /= fields.std(axis=(-2, -1), keepdims=True)
    raw = fields * np.asarray(std)[:, None, None] + np.asarray(mean)[:, None, None]
    return Windows(raw.astype(np.float32), "smooth random fields")
