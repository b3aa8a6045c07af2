"""The pixels of a fold: trained on, validating, held out, or left out because too near.

One law: what is trained on lies behind the barrier from all ground that is held out or validates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize
from scipy.ndimage import distance_transform_edt

from catalog.errors import UsageError
from catalog.grid import RegionGrid
from model_serving.glacier_folds import GlacierFolds

__all__ = [
    "HELD_OUT",
    "LEFT_OUT",
    "TRAIN",
    "VALIDATION",
    "distance_m",
    "grid_roles",
    "owner_roles",
    "window_corners",
]

LEFT_OUT, TRAIN, VALIDATION, HELD_OUT = range(4)

Mask = npt.NDArray[np.bool_]
Roles = npt.NDArray[np.uint8]


def owner_roles(
    folds: GlacierFolds,
    owners: npt.NDArray[np.integer],
    *,
    fold: int,
    ref_ids: Sequence[str],
    resolution_m: float,
) -> Roles:
    """Role of every pixel of a region in the training of a fold.

    Parameters
    ----------
    folds
        Who is held out.
    owners : ``(y, x)`` int
        Glacier of each pixel, 0 = none, ``i + 1`` = ``ref_ids[i]``. It must hold every glacier that
        is nearer to it than the barrier; :func:`grid_roles` sees to that.
    fold
        Which fold.
    ref_ids
        Names of the owners.
    resolution_m
        Pixel edge.

    Returns
    -------
    ``(y, x)`` uint8
        :data:`TRAIN`: farther than the barrier from the ground of every held-out and validating
        glacier. :data:`HELD_OUT`, :data:`VALIDATION`: such a glacier and the ground within the
        buffer that is nearest to it; of validation only what lies behind the barrier from held-out
        ground. :data:`LEFT_OUT`: the rest.

    Raises
    ------
    UsageError
        ``unknown-glacier`` where a glacier of the raster is in no fold.
    """
    known = folds.fold_of
    present = np.unique(owners[owners > 0])
    strange = [ref_ids[i - 1] for i in present if ref_ids[i - 1] not in known]
    if strange:
        raise _unknown(strange[0])
    held, validating = folds.held_out(fold), folds.validating(fold)
    kind = np.zeros(len(ref_ids) + 1, np.uint8)
    kind[1:] = [_role(name, held, validating) for name in ref_ids]
    of_pixel = kind[owners]
    masks = [of_pixel == role for role in (HELD_OUT, VALIDATION, TRAIN)]
    return _roles(masks, folds, resolution_m=resolution_m)


def grid_roles(
    folds: GlacierFolds, frame: gpd.GeoDataFrame, grid: RegionGrid, *, fold: int
) -> Roles:
    """Role of every pixel of a grid, as :func:`owner_roles`; outlines beyond its edge count too.

    Parameters
    ----------
    folds
        Who is held out.
    frame
        The inventory that was divided: ``ref_id`` and outlines in EPSG:4326.
    grid
        The grid.
    fold
        Which fold.

    Raises
    ------
    UsageError
        ``unknown-glacier`` where the inventory holds a glacier that is in no fold, or lacks one.
    """
    strange = sorted(folds.fold_of.keys() ^ set(frame["ref_id"]))
    if strange:
        raise _unknown(strange[0])
    halo = math.ceil(_reach_m(folds, grid.resolution_m) / grid.resolution_m)
    rows, cols = grid.shape
    shape = (rows + 2 * halo, cols + 2 * halo)
    transform = grid.window_transform(-halo, -halo)
    held, validating = folds.held_out(fold), folds.validating(fold)
    role = np.array([_role(name, held, validating) for name in frame["ref_id"]])
    outlines = frame.geometry.to_crs(grid.proj4).to_numpy()
    masks = [
        _burnt(outlines[role == wanted], shape, transform)
        for wanted in (HELD_OUT, VALIDATION, TRAIN)
    ]
    return _roles(masks, folds, resolution_m=grid.resolution_m)[
        halo : halo + rows, halo : halo + cols
    ]


def window_corners(usable: Mask, size_px: int) -> Mask:
    """Find the windows that lie wholly in usable pixels.

    Returns
    -------
    ``(y - size_px + 1, x - size_px + 1)`` bool
        True where a window with its upper left pixel here holds usable pixels only; empty where
        the raster is smaller than a window.
    """
    height, width = usable.shape
    if size_px > min(height, width):
        return np.zeros((max(height - size_px + 1, 0), max(width - size_px + 1, 0)), bool)
    sums = np.zeros((height + 1, width + 1), np.int64)
    np.cumsum(np.cumsum(usable, axis=0), axis=1, out=sums[1:, 1:])
    n = size_px
    inside = sums[n:, n:] - sums[:-n, n:] - sums[n:, :-n] + sums[:-n, :-n]
    return np.asarray(inside == n * n)


def distance_m(mask: Mask, *, resolution_m: float) -> npt.NDArray[np.float64]:
    """Distance of every pixel's centre from the nearest of a mask, metres; infinite without one."""
    if not mask.any():
        return np.full(mask.shape, np.inf)
    return np.asarray(distance_transform_edt(~mask, sampling=resolution_m))


def _role(name: str, held: frozenset[str], validating: frozenset[str]) -> int:
    return HELD_OUT if name in held else VALIDATION if name in validating else TRAIN


def _reach_m(folds: GlacierFolds, resolution_m: float) -> float:
    """How far from ice nothing is trained on, between the centres of pixels."""
    return folds.barrier_m + folds.buffer_m + math.sqrt(2) * resolution_m
    # ^ a diagonal more: the edges of two pixels are nearer than their centres


def _roles(masks: Sequence[Mask], folds: GlacierFolds, *, resolution_m: float) -> Roles:
    to_held, to_validating, to_training = (
        distance_m(mask, resolution_m=resolution_m) for mask in masks
    )
    reach, buffer = _reach_m(folds, resolution_m), folds.buffer_m
    free = to_held > reach
    out = np.full(to_held.shape, LEFT_OUT, np.uint8)
    out[free & (to_validating > reach)] = TRAIN
    out[free & (to_validating <= np.minimum(to_training, buffer))] = VALIDATION
    out[to_held <= np.minimum(np.minimum(to_training, to_validating), buffer)] = HELD_OUT
    return out


def _burnt(outlines: npt.NDArray[np.object_], shape: tuple[int, int], transform: object) -> Mask:
    """Pixels that any of the outlines touches: also of glaciers that hold no pixel's centre."""
    if not len(outlines) or shapely.is_empty(outlines).all():
        return np.zeros(shape, bool)
    burnt = rasterize(outlines, out_shape=shape, transform=transform, all_touched=True)
    return np.asarray(burnt, bool)


def _unknown(name: str) -> UsageError:
    return UsageError(
        f"glacier {name} is not both in the inventory and in its folds: divide this inventory anew",
        kind="unknown-glacier",
    )
