"""CaFFe: radar images of calving glaciers with zones of rock, glacier and ocean.

Gourmelon et al. (2022), "Calving fronts and where to find them" (Earth System Science Data 14,
4287-4313); data: doi.org/10.1594/PANGAEA.940950.

What the format rules rest on, file by file of
github.com/Nora-Go/Calving_Fronts_and_Where_to_Find_Them at ddfb397:

* ``sar_images/<split>/<name>.png`` and ``zones/<split>/<name>_zones.png``, splits ``train`` and
  ``test``; 8-bit greys of equal size: ``data_processing/check_raw_data_is_correct.py``.
* zones: 0 = not available, 64 = rock, 127 = glacier, 254 = ocean with ice melange: there, and
  ``glacier_zones_data.py``.
* names ``Glacier_Date_Satellite_Resolution_Quality_Orbit``: ``validate_or_test.py``.

Not established: how grey levels came from calibrated backscatter (so the caller states it), and the
polarisation, which differs between the satellites. It is co-polarised in all, VV or HH, and stands
in the channel ``vv``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from catalog.cube import UNKNOWN
from catalog.errors import UsageError
from model_serving.datasets.channels import BandRule, in_channels, stated_rule
from model_serving.datasets.patch import Patch, PatchDataset, Place, bad_file, windows
from model_serving.datasets.rasters import read_values, read_window, size_of

__all__ = ["open_caffe"]

_SPLITS = ("train", "test")
_NAME = re.compile(
    r"(?P<glacier>[A-Za-z]+)_(?P<date>\d{4}-\d{2}-\d{2})_(?P<satellite>[A-Za-z0-9-]+)"
    r"_(?P<resolution>\d+)_(?P<quality>\d+)_(?P<orbit>\w+)\.png",
    re.IGNORECASE,
)
_ZONES = {0: UNKNOWN, 64: 0, 127: 1, 254: 3}
_LOOKUP = np.full(256, UNKNOWN, np.uint8)
_LOOKUP[list(_ZONES)] = list(_ZONES.values())


def open_caffe(
    folder: Path,
    *,
    decibels: BandRule | None = None,
    splits: Sequence[str] = _SPLITS,
    patch_px: int = 512,
) -> PatchDataset:
    """Open CaFFe's images and zones.

    Parameters
    ----------
    folder
        Holds ``sar_images`` and ``zones``.
    decibels
        From grey levels to gamma0 in dB, one band.
    splits
        Which of ``train`` and ``test``; the published test set holds two glaciers of its own.
    patch_px
        Edge of the patches that images are cut into.

    Returns
    -------
    PatchDataset
        Grouped by glacier. One channel, ``vv``. Rock is background, glacier clean ice (what covers
        it is not told), ocean with ice melange water; what is not available is unknown.

    Raises
    ------
    UsageError
        ``rule-missing``; or where a split is not known.
    DataError
        ``dataset-empty``, or ``dataset-format`` where a name is another, zones are missing, or,
        when a patch is read, an image is damaged or of another form.
    """
    unknown = sorted(set(splits) - set(_SPLITS))
    if unknown:
        raise UsageError(f"CaFFe has the splits {', '.join(_SPLITS)}, not {', '.join(unknown)}")
    rule = stated_rule(
        decibels,
        bands=1,
        what="CaFFe",
        remedy="state what grey 0 and 255 stand for, as BandRule(((high - low) / 255,), (low,))",
    )
    places = []
    for split in sorted(splits):
        for path in sorted((folder / "sar_images" / split).glob("*.png")):
            match = _NAME.fullmatch(path.name)
            if match is None:
                raise bad_file(
                    path, "a name like COL_2011-11-13_TDX_7_1_092.png", "another: no glacier in it"
                )
            zones = folder / "zones" / split / f"{path.stem}_zones.png"
            size = size_of(path)
            if size_of(zones) != size:
                raise bad_file(zones, f"{size[0]} x {size[1]} pixels", size_of(zones))
            places += [
                Place(path, window, match["glacier"], str(zones))
                for window in windows(*size, patch_px)
            ]
    return PatchDataset("CaFFe", places, partial(_read, rule=rule))


def _read(place: Place, *, rule: BandRule) -> Patch:
    size = size_of(place.path)
    grey = read_window(place.path, place.window, bands=1, dtypes=("uint8",), size=size)
    zones = read_values(Path(place.part), place.window, values=tuple(_ZONES), size=size)
    level = rule.apply(grey)[0]
    level[(grey[0] == 0) & (zones == 0)] = np.nan
    # ^ beyond the image; grey 0 elsewhere is calm water
    return Patch(in_channels({"vv": level}, place.window.shape), _LOOKUP[zones], place.group)
