"""Hindu Kush Himalaya: Landsat 7 scenes with outlines of clean and debris-covered ice.

Baraka et al. (2020), "Machine Learning for Glacier Monitoring in the Hindu Kush Himalaya"
(arXiv:2012.05013); data: lila.science/datasets/hkh-glacier-mapping.

What the format rules rest on, file by file of github.com/krisrs1128/glacier_mapping at e6864c4:

* patches ``slice_<scene>_img_<n>.npy`` ``(y, x, 15)`` and ``slice_<scene>_mask_<n>.npy``
  ``(y, x, 3)``, 512 pixels wide, six of which overlap: ``data/slice.py``. Scenes ``<name>.tif`` of
  15 bands with ``mask_<k>.npy``, ``border_<k>.npy`` and ``mask_metadata.csv`` (columns: number,
  image, mask, border): ``data/mask.py``. Images are floats, beyond the region's border NaN.
* bands, counted from 1: blue, green, red, near and first shortwave infrared (data page), then as
  Earth Engine orders this collection both thermal gains, B7, B8 and the quality band, which are
  "the Landsat channels" 0 to 9 of ``conf/channel_exp/Readme.md``; then three indices, named in
  different orders and not read here, and elevation and slope (``ee.Terrain.slope``, degrees) of
  SRTM 90, as ``scripts/ee_code`` appends them.
* masks 0 or 1: any glacier, clean ice, debris-covered ice: ``conf/masking_paths.yaml``.
* numbers are those of ``LANDSAT/LE07/C01/T1_RT``, 8-bit levels of radiance at the sensor; gaps are
  filled by a linear fit to another date (``scripts/ee_code``), so some are not whole. They become
  reflectance at the top of the atmosphere, haze included, by the scene's own rule
  (:func:`landsat_rule`), and the quality band means nothing in the gaps.

Not established: whether the layout in folders is that of the archive; so files are looked for in
all folders below. SRTM lay on 90 m pixels, so neither relative elevation nor curvature is made from
it. The glaciers were outlined in other years than some scenes were taken in.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import UNKNOWN
from catalog.errors import DataError, UsageError
from model_serving.datasets.channels import BandRule, in_channels, reflectance_roots, stated_rule
from model_serving.datasets.patch import Patch, PatchDataset, Place, bad_file, windows
from model_serving.datasets.rasters import read_window, size_of
from model_serving.features import CHANNELS, GROUPS

__all__ = ["landsat_rule", "open_hkh"]

Array = npt.NDArray[Any]

_BANDS = 15
_OPTICAL = (0, 1, 2, 3, 4, 7)
_SLOPE = 14
_LANDSAT_NUMBERS = (1, 2, 3, 4, 5, 7)
_LEVELS = (0.0, 300.0)
# ^ 8 bit; what fills the gaps goes a little beyond
_STRAY = 0.01
_SLICE = re.compile(r"(?P<scene>.+)_img_\d+\.npy")
_REMEDY = (
    "read it from the scene's metadata file with landsat_rule (LE07_*_MTL.txt): the patches hold "
    "levels of radiance, which mean nothing without gain and height of the sun"
)


def landsat_rule(metadata: str) -> BandRule:
    """Rule from levels to reflectance at the top of the atmosphere, of one Landsat 7 scene.

    Parameters
    ----------
    metadata
        Content of the scene's ``*_MTL.txt``.

    Returns
    -------
    BandRule
        Bands 1, 2, 3, 4, 5 and 7: ``(REFLECTANCE_MULT_BAND_n * level + REFLECTANCE_ADD_BAND_n) /
        sin(SUN_ELEVATION)``, as in the Landsat 7 Data Users Handbook (LSDS-1927).

    Raises
    ------
    DataError
        ``dataset-format`` where one of these fields is missing, or the sun is not up.
    """
    fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\"?([^\"\n]+?)\"?\s*$", metadata, re.MULTILINE))
    try:
        sine = float(np.sin(np.radians(float(fields["SUN_ELEVATION"]))))
        scale = [float(fields[f"REFLECTANCE_MULT_BAND_{n}"]) for n in _LANDSAT_NUMBERS]
        offset = [float(fields[f"REFLECTANCE_ADD_BAND_{n}"]) for n in _LANDSAT_NUMBERS]
    except (KeyError, ValueError) as error:
        raise DataError(
            f"no metadata of a Landsat 7 scene: expected SUN_ELEVATION, REFLECTANCE_MULT_BAND_n "
            f"and REFLECTANCE_ADD_BAND_n for bands 1 to 5 and 7 ({error})",
            kind="dataset-format",
        ) from error
    if sine <= 0:
        raise DataError(f"SUN_ELEVATION {fields['SUN_ELEVATION']}: night", kind="dataset-format")
    return BandRule(tuple(v / sine for v in scale), tuple(v / sine for v in offset))


def open_hkh(
    folder: Path, *, rules: Mapping[str, BandRule] | None = None, patch_px: int = 512
) -> PatchDataset:
    """Open patches (``*_img_*.npy``) and scenes (``*.tif``) of the HKH data.

    Parameters
    ----------
    folder
        Searched with all folders below.
    rules
        Rule of each scene, see :func:`landsat_rule`: by the beginning of its patches' names
        (``slice_07``) or the name of its TIFF file (``LE07_149037_20041024``).
    patch_px
        Edge of the patches that images are cut into.

    Returns
    -------
    PatchDataset
        Grouped by scene. Channels: the six optical ones and slope. Clean ice is 1, debris-covered
        ice 2; ice that is neither or both, and what was not seen, is unknown.

    Raises
    ------
    UsageError
        ``rule-missing``, naming the scenes without one.
    DataError
        ``dataset-empty``, or ``dataset-format`` where a mask is missing or damaged; the same when a
        patch is read that is damaged or of another form.
    """
    places = [
        *(_slice_places(path, patch_px) for path in sorted(folder.rglob("*_img_*.npy"))),
        *(_scene_places(table, patch_px) for table in sorted(folder.rglob("mask_metadata.csv"))),
    ]
    flat = [place for found in places for place in found]
    known = rules or {}
    without = sorted({place.group for place in flat} - set(known))
    if without:
        raise UsageError(
            f"HKH: no rule for {', '.join(without[:5])}{' ...' * (len(without) > 5)}; {_REMEDY}",
            kind="rule-missing",
        )
    for scene, rule in known.items():
        stated_rule(rule, bands=len(_OPTICAL), what=f"HKH scene {scene}", remedy=_REMEDY)
    return PatchDataset("HKH", flat, partial(_read, rules=dict(known)))


def _slice_places(path: Path, patch_px: int) -> Iterator[Place]:
    match = _SLICE.fullmatch(path.name)
    if match is None:
        raise bad_file(path, "a name like slice_07_img_012.npy", path.name)
    image = _mapped(path, depth=_BANDS, kind="f")
    mask = path.with_name(path.name.replace("_img_", "_mask_"))
    height, width = image.shape[:2]
    for window in windows(height, width, patch_px):
        yield Place(path, window, match["scene"], str(mask))


def _scene_places(table: Path, patch_px: int) -> Iterator[Place]:
    """Scenes of a ``mask_metadata.csv``; files are looked for beside it, by their names alone."""
    here = {path.name: path for path in sorted(table.parent.rglob("*.*"))}
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    for row in rows:
        image, mask, border = ([*row, "", "", ""][i].rpartition("/")[2] for i in (1, 2, 3))
        for name in (image, mask):
            if name not in here:
                raise bad_file(table, f"{name or 'an image and a mask'} beside it", row)
        beyond = here.get(border)
        part = "\n".join(map(str, (here[mask], *([beyond] if beyond else []))))
        for window in windows(*size_of(here[image]), patch_px):
            yield Place(here[image], window, here[image].stem, part)


def _mapped(path: Path, *, depth: int, kind: str) -> Array:
    """A stored array ``(y, x, depth)``, mapped from disk."""
    try:
        found: Array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise bad_file(path, "a whole .npy file", error) from error
    if found.ndim != 3 or found.shape[2] != depth or found.dtype.kind not in kind:
        names = {"f": "floats", "u": "unsigned integers"}
        raise bad_file(
            path, f"{names[kind]} of shape (y, x, {depth})", f"{found.dtype} {found.shape}"
        )
    return found


def _read(place: Place, *, rules: Mapping[str, BandRule]) -> Patch:
    mask_path, *border = map(Path, place.part.split("\n"))
    mask = _mapped(mask_path, depth=3, kind="u")
    if place.path.suffix == ".npy":
        image = _mapped(place.path, depth=_BANDS, kind="f")
        size = image.shape[:2]
        stored = np.moveaxis(np.asarray(image[place.window.slices], np.float32), 2, 0)
    else:
        size = mask.shape[:2]
        stored = read_window(
            place.path, place.window, bands=_BANDS, dtypes=("float32", "float64"), size=size
        ).astype(np.float32)
    if mask.shape[:2] != size:
        raise bad_file(mask_path, f"shape {(*size, 3)}", mask.shape)
    for path in border:
        inside = _mapped(path, depth=1, kind="u")[place.window.slices][..., 0]
        stored[:, inside == 0] = np.nan
    values = _channels(stored, rules[place.group], path=place.path)
    seen = np.isfinite(values["blue"])
    labels = _labels(np.asarray(mask[place.window.slices]), path=mask_path)
    return Patch(
        in_channels(values, place.window.shape),
        np.where(seen, labels, np.uint8(UNKNOWN)),
        place.group,
    )


def _channels(stored: Array, rule: BandRule, *, path: Path) -> dict[str, Array]:
    levels = stored[list(_OPTICAL)]
    levels[:, (levels == 0).all(axis=0)] = np.nan
    # ^ 0 in all bands is fill
    known = levels[np.isfinite(levels)]
    strange = ((known < _LEVELS[0]) | (known > _LEVELS[1])).mean() if known.size else 0
    if strange > _STRAY:
        raise bad_file(
            path,
            f"8-bit levels of Landsat 7 in bands {', '.join(str(i + 1) for i in _OPTICAL)}",
            f"{strange:.0%} beyond {_LEVELS[0]:g} to {_LEVELS[1]:g}, as after normalisation",
        )
    values: dict[str, Array] = dict(
        reflectance_roots(rule.apply(levels), CHANNELS[GROUPS["optical"]], where=path)
    )
    slope = stored[_SLOPE]
    if ((slope < 0) | (slope > 90)).any():
        raise bad_file(
            path, "slope in degrees in band 15", f"{np.nanmin(slope)} to {np.nanmax(slope)}"
        )
    return values | {"slope": slope}


def _labels(mask: Array, *, path: Path) -> npt.NDArray[np.uint8]:
    if mask.max(initial=0) > 1:
        raise bad_file(path, "values 0 and 1", f"up to {mask.max()}")
    glacier, clean, debris = np.moveaxis(mask.astype(bool), 2, 0)
    if ((mask.sum(axis=2) == 1).all()) and mask.size:
        raise bad_file(
            path, "glacier, clean ice, debris", "one class in every pixel, as after post-processing"
        )
    labels = np.select(
        [clean & ~debris, debris & ~clean, ~(glacier | clean | debris)], [1, 2, 0], UNKNOWN
    )
    return labels.astype(np.uint8)
