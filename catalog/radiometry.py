"""Radiometry: whether the pixels of a scene agree with what its item says of them. Pure, no I/O.

Since processing baseline 04.00 the pixels of Sentinel-2 hold their reflectance plus 0.1, and
catalogues are at times wrong about whether this is so still
(https://github.com/Element84/earth-search/issues/66 and /71). Taken off twice, all is 0.1 too dark;
not at all, 0.1 too bright. Both show in the darkest pixels. Wherever there are glaciers some band
is dark somewhere: the short-wave infrared of snow, ice and water, everything in shade.

The limits come from four seasons over Khumbu and from labelled pixels of Gulkana and South Cascade.
In every square of 10 km2 over Khumbu 1.8 % or more of the pixels have a band below 0.06, of the
labelled snow and ice 86 % and more, of bare rock alone 1.6 % to 28 %. In squares of 2 km2 there may
be hardly any: so the absence of dark pixels says something on a wide view only. False alarms were
none in 16 squares of 10 km2, 4 whole scenes and 40 simulated ones. Neither source keeps reflectance
below 0, so how many negative pixels deep shade gives is not measured; simulated scenes have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from catalog.scenes import Scene

__all__ = ["DarkPixels", "count_dark", "judge_offset"]

_OFFSET_SINCE = 4.0
_NEGATIVE, _DARK = -0.04, 0.06
# ^ as far apart as the two readings of one pixel: what is dark with the right offset is negative
#   with the offset taken off twice, and what is dark without it taken off is negative with it
_MAX_NEGATIVE = 0.01
_MIN_DARK = 0.002
_MIN_PIXELS = 1000
_MIN_KM2 = 10.0


@dataclass(frozen=True, slots=True)
class DarkPixels:
    """How many pixels of a scene are clear, and how dark they are in their darkest band."""

    clear: int
    negative: int
    """Those darker than any surface."""
    dark: int
    """Those as dark as shade, water, and snow in the short-wave infrared."""


def count_dark(
    stored: npt.NDArray[np.uint16],
    clear: npt.NDArray[np.bool_],
    *,
    scale: float,
    offset: float,
) -> DarkPixels:
    """Count the dark pixels of a window.

    Parameters
    ----------
    stored : ``(band, y, x)``
        Reflectance = stored x scale + offset.
    clear : ``(y, x)``
        Which pixels count.
    scale, offset
        Of the stored values.
    """
    darkest = stored.min(axis=0)[clear]
    negative, dark = (
        int(np.count_nonzero(darkest < round((limit - offset) / scale)))
        for limit in (_NEGATIVE, _DARK)
    )
    return DarkPixels(darkest.size, negative, dark)


def judge_offset(scene: Scene, windows: Iterable[DarkPixels], *, resolution_m: float) -> str | None:
    """Say what is wrong with a Sentinel-2 scene's offset, or None where nothing speaks against it.

    Only the lie that is possible is looked for: what has no offset taken off cannot have it taken
    off twice, and before baseline 04.00 there was none.

    Parameters
    ----------
    scene
        What its item promises.
    windows
        Counts over parts of it that do not overlap.
    resolution_m
        Edge of the counted pixels in metres.
    """
    parts = list(windows)
    clear = sum(part.clear for part in parts)
    negative, dark = sum(part.negative for part in parts), sum(part.dark for part in parts)
    if clear < _MIN_PIXELS:
        return None
    if any(band.offset < 0 for band in scene.bands):
        if negative <= _MAX_NEGATIVE * clear:
            return None
        return (
            f"{negative / clear:.0%} of its pixels have a reflectance below {_NEGATIVE}, expected "
            "hardly any: the offset was already taken off"
        )
    shifted = scene.baseline is None or float(scene.baseline) >= _OFFSET_SINCE
    wide = clear * resolution_m**2 >= _MIN_KM2 * 1e6
    if not shifted or not wide or dark >= _MIN_DARK * clear:
        return None
    return (
        f"{dark / clear:.2%} of its pixels have a band below {_DARK}, expected at least "
        f"{_MIN_DARK:.1%} (shade, water, snow in the short-wave infrared): the offset was not "
        "taken off, or haze lies over all of it"
    )
