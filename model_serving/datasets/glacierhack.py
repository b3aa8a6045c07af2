"""GlacierHack 2025: small Landsat 8 tiles of five bands with masks of four values.

No paper and no page of the organisers could be found. What the format rules rest on is what the
programs of two participants read, github.com/SS070/glacierhack-2025-frost-fusion at b868622 and
eff73e5, and github.com/Biswajitnahak2003/GlacierHack2025-Solution at e8d3ce6:

* folders ``Band1`` to ``Band5``, one single-band TIFF a tile in each, and ``labels`` or ``label``.
* names ``img001.tif`` in all folders (second phase), or ``B2_B2_masked_02_07.tif`` in ``Band1``,
  then B3, B4, B6 and B10 in the others, with ``Y_output_resized_02_07.tif`` or ``Y02_07.tif``
  (first phase). After these names the bands are Landsat 8's blue, green, red, first shortwave
  infrared, and a thermal one that has no channel here.
* masks hold 0, 85, 170 and 255.

Not established: which class a value of a mask is (by default in the order of the engine's classes,
which fits that 255 is by far the rarest), the scale of the bands (so the caller states it), which
tiles are neighbours (so each is a group of its own, and glaciers may run from one to another), and
what 0 in all bands is; "masked" in the names says no data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from catalog.cube import CLASSES, UNKNOWN
from catalog.errors import UsageError
from model_serving.datasets.channels import BandRule, in_channels, reflectance_roots, stated_rule
from model_serving.datasets.patch import Patch, PatchDataset, Place, bad_file, windows
from model_serving.datasets.rasters import read_values, read_window, size_of

__all__ = ["open_glacierhack"]

_FOLDERS = tuple(f"Band{n}" for n in range(1, 6))
_CHANNELS = ("blue", "green", "red", "swir1")
_TILE = re.compile(r"img(\d+)\.tif|.*?(\d{2}_\d{2})\.tif")
_VALUES = (0, 85, 170, 255)
_DTYPES = ("uint8", "uint16", "int16", "float32", "float64")


def open_glacierhack(
    folder: Path,
    *,
    reflectance: BandRule | None = None,
    classes: Mapping[int, int] | None = None,
    patch_px: int = 512,
) -> PatchDataset:
    """Open GlacierHack's tiles.

    Parameters
    ----------
    folder
        Holds ``Band1`` to ``Band5`` and ``labels``.
    reflectance
        From stored numbers to reflectance, for blue, green, red and shortwave infrared.
    classes
        Index into :data:`catalog.cube.CLASSES`, or 255 = unknown, of each value of the masks; by
        default 0, 1, 2, 3 for 0, 85, 170, 255.
    patch_px
        Edge of the patches that tiles are cut into.

    Returns
    -------
    PatchDataset
        Grouped by tile. Channels ``blue``, ``green``, ``red`` and ``swir1``.

    Raises
    ------
    UsageError
        ``rule-missing``; or where ``classes`` does not tell of each value.
    DataError
        ``dataset-empty``, or ``dataset-format`` where a band or a mask is missing, or, when a patch
        is read, damaged or of another form.
    """
    rule = stated_rule(
        reflectance,
        bands=len(_CHANNELS),
        what="GlacierHack",
        remedy="for Landsat 8 surface reflectance of collection 2 it is BandRule.uniform(2.75e-5, "
        "-0.2, bands=4)",
    )
    known = dict(zip(_VALUES, range(len(CLASSES)), strict=True)) if classes is None else classes
    if set(known) != set(_VALUES) or not set(known.values()) <= {*range(len(CLASSES)), UNKNOWN}:
        raise UsageError(
            f"expected classes for {', '.join(map(str, _VALUES))}, each below {len(CLASSES)} or "
            f"{UNKNOWN}, found {dict(known)}"
        )
    lookup = np.full(256, UNKNOWN, np.uint8)
    lookup[list(known)] = list(known.values())
    places = [
        Place(path, window, tile, str(folder))
        for path in sorted((folder / _FOLDERS[0]).glob("*.tif"))
        for tile in [_tile_of(path)]
        for _ in [_paths(folder, tile)]
        for window in windows(*size_of(path), patch_px)
    ]
    return PatchDataset("GlacierHack", places, partial(_read, rule=rule, lookup=lookup))


def _tile_of(path: Path) -> str:
    match = _TILE.fullmatch(path.name)
    if match is None:
        raise bad_file(path, "a name like img001.tif or B2_B2_masked_02_07.tif", path.name)
    return match[1] or match[2]


def _paths(folder: Path, tile: str) -> tuple[list[Path], Path]:
    """Files of the five bands of a tile, and its mask."""
    bands = [_file_of(folder / name, tile) for name in _FOLDERS]
    labels = folder / "labels"
    return bands, _file_of(labels if labels.is_dir() else folder / "label", tile)


def _file_of(folder: Path, tile: str) -> Path:
    endings = (f"img{tile}.tif", f"_{tile}.tif", f"Y{tile}.tif")
    found = [path for path in sorted(folder.glob(f"*{tile}.tif")) if path.name.endswith(endings)]
    if len(found) != 1:
        raise bad_file(folder, f"one file of tile {tile}", [path.name for path in found])
    return found[0]


def _read(
    place: Place, *, rule: BandRule, lookup: np.ndarray[tuple[int], np.dtype[np.uint8]]
) -> Patch:
    size = size_of(place.path)
    bands, mask = _paths(Path(place.part), place.group)
    stored = np.concatenate(
        [read_window(path, place.window, bands=1, dtypes=_DTYPES, size=size) for path in bands]
    ).astype(np.float32)[: len(_CHANNELS)]
    # ^ the thermal band is read too: a tile whose files are damaged is no tile
    stored[:, (stored == 0).all(axis=0)] = np.nan
    values = reflectance_roots(rule.apply(stored), _CHANNELS, where=place.path)
    labels = lookup[read_values(mask, place.window, values=_VALUES, size=size)]
    labels = np.where(np.isfinite(values["blue"]), labels, np.uint8(UNKNOWN))
    return Patch(in_channels(values, place.window.shape), labels, place.group)
