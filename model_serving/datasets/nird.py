"""The tiles of GlaViTU, kept at the Norwegian research data archive (NIRD).

Maslov et al. (2025), "Globally scalable glacier mapping by deep learning matches manual
delineation accuracy" (arXiv:2401.15113).

What the format rules rest on, file by file of
github.com/konstantin-a-maslov/towards_global_glacier_mapping at 3980042:

* one HDF5 file a subset; a group a tile, with arrays ``(y, x, band)`` named ``optical`` (6: blue,
  green, red, near and two shortwave infrared bands at the top of the atmosphere), ``dem`` (2:
  elevation, slope), and where there are such ``co_pol_sar``, ``cross_pol_sar``, ``in_sar`` (2 each:
  both directions of orbit) and ``thermal`` (1): ``utils/utils.py``, ``README.md``.
* labels one-hot: ``outlines`` (2, glacier last) and ``bright_dark_outlines`` (3):
  ``utils/utils.py``. Both are LABELS. A network that was given the second as an input
  reached an IoU of 0.95 with it and 0.72 without: here neither can be an input.
* attributes of a tile: ``region``, ``subregion``, ``height`` and ``width`` of the arrays,
  ``padding_height`` and ``padding_width`` before the first true pixel, ``original_height`` and
  ``original_width`` of what is true: ``dataloaders/plugins``, ``dataloaders/samplers``.
* numbers lie between 0 and 1 after min-max normalisation; radar was the decimal logarithm of
  sigma0, linear, plus 1e-6: ``compile_features.py``. Its limits are not in the tiles, so the caller
  states them; radar comes as sigma0 where the engine's cubes hold gamma0.

Not established: which of the three classes is which (taken in the order of the name: neither,
bright, dark; that the first is "neither" is checked against ``outlines``), the polarisation
(co-polarised is VV, or HH in the polar regions), what stands for missing values, and which tiles
share a glacier; so a whole subregion is one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from catalog.cube import UNKNOWN
from catalog.errors import UsageError
from model_serving.datasets.channels import BandRule, in_channels, reflectance_roots, stated_rule
from model_serving.datasets.hdf import array_of, opened
from model_serving.datasets.patch import Patch, PatchDataset, Place, bad_file, windows
from model_serving.features import CHANNELS, GROUPS

__all__ = ["open_nird"]

Array = npt.NDArray[Any]

_LABELS = {"outlines": 2, "bright_dark_outlines": 3}
_DEPTH = {"optical": 6, "dem": 2, "co_pol_sar": 2, "cross_pol_sar": 2}
_RADAR = {"co_pol_sar": "vv", "cross_pol_sar": "vh"}
_WITHOUT_CHANNEL = ("in_sar", "thermal")
_TRUE = ("padding_height", "padding_width", "original_height", "original_width")


def open_nird(
    folder: Path,
    *,
    rules: Mapping[str, BandRule] | None = None,
    inputs: Sequence[str] = ("optical", "dem"),
    labels: Literal["outlines", "bright_dark_outlines"] = "outlines",
    patch_px: int = 512,
) -> PatchDataset:
    """Open tiles of GlaViTU's data.

    Parameters
    ----------
    folder
        An HDF5 file, or a folder of such (``.h5``, ``.hdf5``).
    rules
        For each input, from stored to physical numbers, see :meth:`BandRule.between`: reflectance
        for ``optical``, metres and degrees for ``dem``, decimal logarithm of sigma0 for the two of
        radar.
    inputs
        Arrays to take: ``optical``, ``dem``, ``co_pol_sar``, ``cross_pol_sar``.
    labels
        ``outlines``: glacier is class 1, debris-covered or not. ``bright_dark_outlines``: bright is
        1, dark is 2. Unknown where nothing was seen.
    patch_px
        Edge of the patches that tiles are cut into.

    Returns
    -------
    PatchDataset
        Grouped by subregion, without the padding. Channels: the optical ones, ``slope``, and with
        radar ``vv`` and ``vh``, each the mean power of both orbits, NaN in tiles without radar.

    Raises
    ------
    UsageError
        ``label-as-input`` where an input is a set of labels; ``rule-missing``; where an input has
        no channel; ``runtime-missing`` where h5py is not installed.
    DataError
        ``dataset-empty``, or ``dataset-format`` where a file or a tile is damaged or of another
        form; of labels and inputs when a patch is read.
    """
    known = {name: _checked(name, rules or {}) for name in inputs}
    if labels not in _LABELS:
        raise UsageError(f"labels are {' or '.join(_LABELS)}, not {labels!r}")
    files = [folder] if folder.is_file() else sorted({*folder.glob("*.h5"), *folder.glob("*.hdf5")})
    places = [place for path in files for place in _places(path, patch_px)]
    return PatchDataset("NIRD", places, partial(_read, rules=known, labels=labels))


def _checked(name: str, rules: Mapping[str, BandRule]) -> BandRule:
    if name in _LABELS or "outline" in name:
        raise UsageError(
            f"{name!r} holds labels and must never be an input: a network would read the answer "
            "from it",
            kind="label-as-input",
        )
    if name not in _DEPTH:
        why = (
            "has no channel here" if name in _WITHOUT_CHANNEL else "is not among the tiles' arrays"
        )
        raise UsageError(f"input {name!r} {why}; choose from {', '.join(_DEPTH)}")
    bands = 1 if name in _RADAR else _DEPTH[name]
    return stated_rule(
        rules.get(name),
        bands=bands,
        what=f"NIRD input {name!r}",
        remedy="state the limits of the min-max normalisation, BandRule.between(low, high); they "
        "come with the authors' programs",
    )


def _places(path: Path, patch_px: int) -> Iterator[Place]:
    with opened(path) as file:
        for name in sorted(file):
            tile = file[name]
            missing = [
                key for key in (*_TRUE, "height", "width", "subregion") if key not in tile.attrs
            ]
            if missing:
                raise bad_file(path, f"attributes {', '.join(missing)} of tile {name}", "none")
            top, left, height, width = (int(tile.attrs[key]) for key in _TRUE)
            group = tile.attrs["subregion"]
            group = group.decode() if isinstance(group, bytes) else str(group)
            for window in windows(height, width, patch_px):
                moved = window._replace(row=window.row + top, col=window.col + left)
                yield Place(path, moved, group, name)


def _read(place: Place, *, rules: Mapping[str, BandRule], labels: str) -> Patch:
    values: dict[str, Array] = {}
    with opened(place.path) as file:
        tile = file[place.part]
        size = (int(tile.attrs["height"]), int(tile.attrs["width"]))
        truth = _one_hot(tile, labels, place, size=size)
        for name, rule in rules.items():
            if name in _RADAR and name not in tile:
                continue
            stored = array_of(tile, name, path=place.path, shape=(*size, _DEPTH[name]), kinds="f")[
                place.window.slices
            ]
            values |= _channels(name, np.moveaxis(stored, 2, 0), rule, path=place.path)
        if labels != "outlines" and "outlines" in tile:
            _check_same_ice(truth, _one_hot(tile, "outlines", place, size=size), place)
    features = in_channels(values, place.window.shape)
    needed = features[GROUPS["optical"]] if "optical" in rules else features
    truth[~np.isfinite(needed).any(axis=0)] = UNKNOWN
    return Patch(features, truth, place.group)


def _channels(name: str, stored: Array, rule: BandRule, *, path: Path) -> dict[str, Array]:
    if name == "optical":
        return dict(reflectance_roots(rule.apply(stored), CHANNELS[GROUPS["optical"]], where=path))
    if name == "dem":
        return {"slope": rule.apply(stored)[1]}
    power = 10.0 ** rule.apply(stored)
    return {_RADAR[name]: 10 * np.log10(power.mean(axis=0))}


def _one_hot(tile: Any, name: str, place: Place, *, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    depth = _LABELS[name]
    stored = array_of(tile, name, path=place.path, shape=(*size, depth), kinds="fiub")
    window = np.asarray(stored[place.window.slices], np.float64)
    if not (np.isin(window, (0, 1)).all() and (window.sum(axis=2) == 1).all()):
        raise bad_file(
            place.path,
            f"one of {depth} classes in each pixel of {tile.name}/{name}",
            f"values {np.unique(window)[:5].tolist()}, "
            f"sums {np.unique(window.sum(axis=2))[:5].tolist()}",
        )
    return np.asarray(window.argmax(axis=2), np.uint8)


def _check_same_ice(truth: Array, outlines: Array, place: Place) -> None:
    if ((truth > 0) != (outlines > 0)).any():
        raise bad_file(
            place.path,
            f"the same ice in both sets of labels of tile {place.part}",
            f"{int(((truth > 0) != (outlines > 0)).sum())} pixels where they differ",
        )
