"""Masks: which pixels of a look may be used. Pure, no I/O."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["mask_halo", "usable_pixels"]

_NO_DATA, _SATURATED, _SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS = 0, 1, 3, 8, 9, 10
# ^ classes of the Sentinel-2 scene classification (SCL); 2 (dark area) and 11 (snow and ice) stay:
#   much of a glacier is one or the other
_UNUSABLE = (_NO_DATA, _SATURATED, _SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS)
_SPREADING = (_SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS)
_REACH_M = 60.0
# ^ three pixels of the classification: the rims of clouds and shadows are missed by it


def mask_halo(resolution_m: float) -> int:
    """Pixels around a window that :func:`usable_pixels` must see so that no seam shows."""
    return math.ceil(_REACH_M / resolution_m) + 1


def usable_pixels(classes: npt.NDArray[np.uint8], *, resolution_m: float) -> npt.NDArray[np.bool_]:
    """Pixels that are seen and lie clear of cloud and shadow.

    Parameters
    ----------
    classes : ``(y, x)`` uint8
        Sentinel-2 scene classification on the grid, with :func:`mask_halo` pixels on every side.
    resolution_m
        Pixel edge in metres.

    Returns
    -------
    ``(y, x)`` bool, without the halo
    """
    halo = mask_halo(resolution_m)
    usable: npt.NDArray[np.bool_] = ~np.isin(classes, _UNUSABLE)
    hazard = np.isin(classes, _SPREADING)
    if hazard.any():
        distance = ndimage.distance_transform_edt(~hazard) * resolution_m
        usable &= distance > _REACH_M
    return usable[halo:-halo, halo:-halo].copy()
