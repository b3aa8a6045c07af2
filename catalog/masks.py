"""Masks: which pixels of a look may be used. Pure, no I/O.

Each kind of mask band is read into two layers: what must not be used, and what of it spreads,
because its rim is missed by the classification. The kinds are the Sentinel-2 scene classification
(``scl``), the ``QA_PIXEL`` band of Landsat Collection 2 (``qa_pixel``; USGS LSDS-1619, Landsat 8-9
Collection 2 Level 2 Science Product Guide, table 6-3, and LSDS-1618 for Landsat 4-7), and its
``QA_RADSAT`` band in the band numbers of TM and ETM+ (``radsat_tm``; LSDS-1415, LSDS-1414) and of
OLI (``radsat_oli``; LSDS-1619). Two more, ``values`` and ``bits``, come with the rule of a user.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from catalog.scenes import MaskRule

__all__ = ["MASK_DTYPES", "MaskKind", "mask_halo", "usable_pixels"]

MaskKind = Literal["scl", "qa_pixel", "radsat_tm", "radsat_oli", "values", "bits"]
MASK_DTYPES: dict[str, str] = {
    "scl": "uint8",
    "qa_pixel": "uint16",
    "radsat_tm": "uint16",
    "radsat_oli": "uint16",
    "values": "uint16",
    "bits": "uint16",
}
"""Kinds of mask bands and the type of their pixels."""

_NO_DATA, _SATURATED, _SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS = 0, 1, 3, 8, 9, 10
# ^ classes of the Sentinel-2 scene classification (SCL); 1 is saturated or defective; 2 (dark area)
#   and 11 (snow and ice) stay: much of a glacier is one or the other
_UNUSABLE = (_NO_DATA, _SATURATED)
_SPREADING = (_SHADOW, _CLOUD_MEDIUM, _CLOUD_HIGH, _CIRRUS)
_FILL, _DILATED_CLOUD, _CLOUD, _CLOUD_SHADOW = 1 << 0, 1 << 1, 1 << 3, 1 << 4
# ^ bits of QA_PIXEL; bit 2 (cirrus) stays out: its band sees the ground of high, dry mountains, and
#   snow there is flagged by the thousand
_RADSAT_UNUSABLE = {
    "radsat_tm": 1 << 4 | 1 << 6 | 1 << 9,  # bands 5 and 7, and pixels the detector dropped
    "radsat_oli": 1 << 5 | 1 << 6 | 1 << 11,  # bands 6 and 7, and ground hidden behind a mountain
}
# ^ Of the six bands only the two of the short-wave infrared make a pixel unusable. TM and ETM+ clip
#   sunlit snow in bands 1 to 4, above all in band 1 (Dozier 1984, "Snow reflectance from Landsat-4
#   Thematic Mapper"): with the sun at 48 degrees TM reaches its largest radiance (Chander et al.
#   2009, table 3) at a reflectance of 0.41, 0.85, 0.72 and 0.90 in bands 1 to 4. There the value is
#   a lower bound which is bright still, and against the short-wave infrared, where snow and ice
#   stay below 0.3, it tells them from all else; without these pixels accumulation areas would be
#   full of holes. Bands 5 and 7 clip at 0.57 and 0.83: whatever does so is cloud, fire or glint,
#   and rock whose short-wave infrared is cut off would look like ice.
_REACH_M = 60.0
# ^ three pixels of Sentinel-2's classification, two of Landsat's: they miss the rims of clouds
_SPECK_M = 20.0
# ^ a pixel of Sentinel-2's classification. It takes bright snow for cloud, and dark ground for
#   shadow, in specks of a pixel or two; clouds and their shadows are larger. What is nowhere more
#   than a pixel away from clear ground is passed over before the rest is grown: a morphological
#   opening, without which every such speck would cost more than a hectare


def mask_halo(resolution_m: float) -> int:
    """Pixels around a window that :func:`usable_pixels` must see so that no seam shows."""
    return math.ceil((_REACH_M + 2 * _SPECK_M) / resolution_m) + 1


def usable_pixels(
    flags: npt.NDArray[np.unsignedinteger],
    *,
    resolution_m: float,
    kind: MaskKind = "scl",
    rule: MaskRule | None = None,
) -> npt.NDArray[np.bool_]:
    """Pixels that are seen, not saturated and clear of cloud and shadow, as far as a mask tells.

    Parameters
    ----------
    flags : ``(y, x)`` of the type in :data:`MASK_DTYPES`
        Mask band on the grid, with :func:`mask_halo` pixels on every side; 0 = not seen, or in
        QA_RADSAT nothing to tell.
    resolution_m
        Pixel edge in metres.
    kind
        What the numbers mean.
    rule
        Needed by the kinds ``values`` and ``bits``, and by no other.

    Returns
    -------
    ``(y, x)`` bool, without the halo
    """
    halo = mask_halo(resolution_m)
    usable: npt.NDArray[np.bool_]
    hazard, reach = np.zeros(flags.shape, np.bool_), _REACH_M
    if kind == "scl":
        usable = ~np.isin(flags, _UNUSABLE)
        hazard, reach = _without_specks(np.isin(flags, _SPREADING), resolution_m)
    elif kind == "qa_pixel":
        hazard = (flags & (_CLOUD | _CLOUD_SHADOW)) > 0
        usable = (flags > 0) & ((flags & (_FILL | _DILATED_CLOUD)) == 0)
    elif rule is not None:
        usable, hazard = _by_rule(flags, rule, bits=kind == "bits")
    else:
        usable = (flags & _RADSAT_UNUSABLE[kind]) == 0
    if hazard.any():
        distance = ndimage.distance_transform_edt(~hazard) * resolution_m
        usable &= distance > reach
    return usable[halo:-halo, halo:-halo].copy()


def _without_specks(
    hazard: npt.NDArray[np.bool_], resolution_m: float
) -> tuple[npt.NDArray[np.bool_], float]:
    """The inner pixels of patches wider than a speck, and how far from them their reach ends."""
    if resolution_m > _SPECK_M or hazard.all():  # scipy knows no distance to what is not there
        return hazard, _REACH_M
    inner = ndimage.distance_transform_edt(hazard) * resolution_m > _SPECK_M
    return inner, _REACH_M + _SPECK_M


def _by_rule(
    flags: npt.NDArray[np.unsignedinteger], rule: MaskRule, *, bits: bool
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """What may be used, and what of the rest spreads."""
    if bits:
        unusable, spreading = (sum(1 << b for b in of) for of in (rule.unusable, rule.spreading))
        return (flags & unusable) == 0, (flags & spreading) > 0
    usable = np.isin(flags, rule.clear) if rule.clear else ~np.isin(flags, rule.unusable)
    return usable, np.isin(flags, rule.spreading)
