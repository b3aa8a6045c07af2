"""Masks: which pixels of a look may be used. Pure, no I/O.

Each kind of mask band is read into two layers: what must not be used, and what of it spreads,
because its rim is missed by the classification. The kinds are the Sentinel-2 scene classification
(``scl``) and the ``QA_PIXEL`` band of Landsat Collection 2 (``qa_pixel``; USGS LSDS-1619, Landsat
8-9 Collection 2 Level 2 Science Product Guide, table 6-3, and LSDS-1618 for Landsat 4-7).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["MASK_DTYPES", "MaskKind", "mask_halo", "usable_pixels"]

MaskKind = Literal["scl", "qa_pixel"]
MASK_DTYPES: dict[str, str] = {"scl": "uint8", "qa_pixel": "uint16"}
"""Kinds of mask bands and the type of their pixels; 0 is no data in all of them."""

_NO_DATA, _SATURATED, _SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS = 0, 1, 3, 8, 9, 10
# ^ classes of the Sentinel-2 scene classification (SCL); 2 (dark area) and 11 (snow and ice) stay:
#   much of a glacier is one or the other
_UNUSABLE = (_NO_DATA, _SATURATED, _SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS)
_SPREADING = (_SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS)
_FILL, _DILATED_CLOUD, _CLOUD, _CLOUD_SHADOW = 1 << 0, 1 << 1, 1 << 3, 1 << 4
# ^ bits of QA_PIXEL; bit 2 (cirrus) stays out: its band sees the ground of high, dry mountains, and
#   snow there is flagged by the thousand
_REACH_M = 60.0
# ^ three pixels of Sentinel-2's classification, two of Landsat's: they miss the rims of clouds


def mask_halo(resolution_m: float) -> int:
    """Pixels around a window that :func:`usable_pixels` must see so that no seam shows."""
    return math.ceil(_REACH_M / resolution_m) + 1


def usable_pixels(
    classes: npt.NDArray[np.unsignedinteger], *, resolution_m: float, kind: MaskKind = "scl"
) -> npt.NDArray[np.bool_]:
    """Pixels that are seen and lie clear of cloud and shadow.

    Parameters
    ----------
    classes : ``(y, x)`` of the type in :data:`MASK_DTYPES`
        Mask band on the grid, with :func:`mask_halo` pixels on every side; 0 = not seen.
    resolution_m
        Pixel edge in metres.
    kind
        What the numbers mean.

    Returns
    -------
    ``(y, x)`` bool, without the halo
    """
    halo = mask_halo(resolution_m)
    usable: npt.NDArray[np.bool_]
    if kind == "scl":
        usable, hazard = ~np.isin(classes, _UNUSABLE), np.isin(classes, _SPREADING)
    else:
        hazard = (classes & (_CLOUD | _CLOUD_SHADOW)) > 0
        usable = (classes > 0) & ((classes & (_FILL | _DILATED_CLOUD)) == 0)
    if hazard.any():
        distance = ndimage.distance_transform_edt(~hazard) * resolution_m
        usable &= distance > _REACH_M
    return usable[halo:-halo, halo:-halo].copy()
