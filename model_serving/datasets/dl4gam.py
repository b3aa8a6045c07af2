"""DL4GAM-Alps: a NetCDF cube around each glacier, Sentinel-2 with terrain and masks.

Diaconu et al. (2025), "DL4GAM: a multi-modal Deep Learning-based framework for Glacier Area
Monitoring, trained and validated on the European Alps"
(doi.org/10.22541/essoar.173557607.70204641); data: huggingface.co/datasets/dcodrut/dl4gam_alps.

What the format rules rest on, file by file of github.com/dcodrut/dl4gam_alps at 9bb9499:

* ``glacier_wide/<glacier>/*.nc``, NetCDF-4: ``band_data`` ``(band, y, x)`` with the bands' names
  in its attribute ``long_name``: ``B`` (B2), ``G`` (B3), ``R`` (B4), ``NIR`` (B8), ``SWIR`` (B11)
  and the others under their own: ``dl4gam/config.py``, ``utils/data_prep.py``.
* ``mask_nok`` 1 = cloud, shadow or no data; ``mask_all_g_id`` number of the glacier, -1 = none;
  ``mask_crt_g`` 1 = the cube's own glacier; ``mask_debris`` 1 = debris, where it is there:
  ``utils/data_prep.py``.
* ``dem`` (Copernicus, 30 m, brought to 10 m) in metres, ``dhdt`` and ``v``; -9999 = no data.

Slope, relative elevation and curvature are derived from ``dem`` as for the engine's own cubes, not
taken from the stored ones, which were smoothed in another way. ``dhdt``, ``v`` and the other masks
are not read: the first two have no channel, and the masks are drawn from the labels.

Not established: the scale of ``band_data`` (Earth Engine's top-of-atmosphere products hold
reflectance times 10000, since 2022 in some collections plus 1000), so the caller states it. Cubes
of neighbours overlap; each glacier is labelled in its own cube alone and unknown in the others, so
that no ice is in two groups. Background is, and a fold should still be cut along the divides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import TERRAIN_BANDS, UNKNOWN
from catalog.terrain import describe_terrain, terrain_halo
from model_serving.datasets.channels import BandRule, in_channels, reflectance_roots, stated_rule
from model_serving.datasets.hdf import array_of, opened
from model_serving.datasets.patch import Patch, PatchDataset, Place, Window, bad_file, windows
from model_serving.features import CHANNELS, GROUPS

__all__ = ["open_dl4gam"]

Array = npt.NDArray[Any]

_BANDS = {"blue": "B", "green": "G", "red": "R", "nir": "NIR", "swir1": "SWIR", "swir2": "B12"}
_DEM_FILL = -9999.0


def open_dl4gam(
    folder: Path, *, reflectance: BandRule | None = None, patch_px: int = 512
) -> PatchDataset:
    """Open the glaciers' cubes.

    Parameters
    ----------
    folder
        Searched for ``*.nc`` with all folders below; a cube's folder is named after its glacier.
    reflectance
        From stored numbers to reflectance, six bands.
    patch_px
        Edge of the patches that cubes are cut into.

    Returns
    -------
    PatchDataset
        Grouped by glacier. Channels: the optical ones and terrain. The cube's own glacier is 1, and
        2 under debris; other glaciers, and what was not seen, are unknown.

    Raises
    ------
    UsageError
        ``rule-missing``; ``runtime-missing`` where h5py is not installed.
    DataError
        ``dataset-empty``, or ``dataset-format`` where a cube is damaged, lacks a band, or, when a
        patch is read, a mask holds other values.
    """
    rule = stated_rule(
        reflectance,
        bands=len(_BANDS),
        what="DL4GAM",
        remedy="for the inventory's year (2015 to 2017) it is BandRule.uniform(1e-4); scenes since "
        "2022 may need an offset of -0.1",
    )
    places = [place for path in sorted(folder.rglob("*.nc")) for place in _places(path, patch_px)]
    return PatchDataset("DL4GAM", places, partial(_read, rule=rule))


def _places(path: Path, patch_px: int) -> Iterator[Place]:
    with opened(path) as file:
        _band_numbers(file, path)
        height, width = _size(file, path)
    for window in windows(height, width, patch_px):
        yield Place(path, window, path.parent.name)


def _size(file: Any, path: Path) -> tuple[int, int]:
    cube = file.get("band_data")
    if cube is None or getattr(cube, "ndim", 0) != 3:
        raise bad_file(path, "an array band_data (band, y, x)", sorted(file))
    height, width = cube.shape[1:]
    return int(height), int(width)


def _band_numbers(file: Any, path: Path) -> list[int]:
    """Where the six bands stand in the cube."""
    cube = file.get("band_data")
    stored: Array = np.atleast_1d([] if cube is None else cube.attrs.get("long_name", []))
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in stored]
    missing = [band for band in _BANDS.values() if band not in names]
    if missing:
        raise bad_file(path, f"bands {', '.join(missing)} in long_name of band_data", names)
    return [names.index(band) for band in _BANDS.values()]


def _read(place: Place, *, rule: BandRule) -> Patch:
    with opened(place.path) as file:
        size = _size(file, place.path)
        numbers = _band_numbers(file, place.path)
        count = file["band_data"].shape[0]
        cube = array_of(file, "band_data", path=place.path, shape=(count, *size), kinds="fiu")
        stored = np.stack([cube[(n, *place.window.slices)] for n in numbers]).astype(np.float32)
        fill = cube.attrs.get("_FillValue")
        if fill is not None:
            stored[stored == np.float32(np.ravel(fill)[0])] = np.nan
        hidden = _mask(file, "mask_nok", place, size=size)
        own, debris = (
            _mask(file, "mask_crt_g", place, size=size),
            np.zeros(place.window.shape, bool),
        )
        if "mask_debris" in file:
            debris = _mask(file, "mask_debris", place, size=size)
        owner = array_of(file, "mask_all_g_id", path=place.path, shape=size, kinds="i")
        others = (owner[place.window.slices] >= 0) & ~own
        terrain = _terrain(file, place, size=size)
    stored[:, hidden] = np.nan
    roots = reflectance_roots(rule.apply(stored), CHANNELS[GROUPS["optical"]], where=place.path)
    unknown = others | ~np.isfinite(roots["blue"])
    labels = np.select([unknown, own & debris, own], [UNKNOWN, 2, 1], 0).astype(np.uint8)
    return Patch(in_channels({**roots, **terrain}, place.window.shape), labels, place.group)


def _mask(file: Any, name: str, place: Place, *, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    stored = array_of(file, name, path=place.path, shape=size, kinds="iub")
    window = np.asarray(stored[place.window.slices])
    strange = sorted(set(np.unique(window).tolist()) - {0, 1})
    if strange:
        raise bad_file(place.path, f"values 0 and 1 in {name}", f"also {strange[:8]}")
    return np.asarray(window == 1)


def _terrain(file: Any, place: Place, *, size: tuple[int, int]) -> dict[str, Array]:
    """Slope, relative elevation and curvature of a window, from the elevation around it."""
    x = array_of(file, "x", path=place.path, shape=size[1:], kinds="fi")[:]
    steps = np.abs(np.diff(np.asarray(x, np.float64)))
    if not (len(steps) and steps[0] > 0 and np.allclose(steps, steps[0], rtol=1e-6)):
        raise bad_file(place.path, "evenly spaced coordinates x in metres", x[:3])
    resolution_m = float(steps[0])
    halo, window = terrain_halo(resolution_m), place.window
    dem = array_of(file, "dem", path=place.path, shape=size, kinds="f")
    row, col = window.row - halo, window.col - halo
    wide = Window(row, col, window.height + 2 * halo, window.width + 2 * halo)
    inside = tuple(
        slice(max(cut.start, 0), min(cut.stop, length))
        for cut, length in zip(wide.slices, size, strict=True)
    )
    elevation = np.full(wide.shape, np.nan)
    elevation[
        tuple(slice(s.start - o, s.stop - o) for s, o in zip(inside, (row, col), strict=True))
    ] = dem[inside]
    elevation[elevation == _DEM_FILL] = np.nan
    bands = describe_terrain(elevation, resolution_m=resolution_m, convergence_deg=0.0)
    names = CHANNELS[GROUPS["terrain"]]
    return {name: bands[TERRAIN_BANDS.index(name)] for name in names}
