"""The ground of a region shared out among its glaciers, and the glaciers among folds.

One law: every pixel belongs to the glaciers that are nearest, and these lie in one fold together:
a complex of glaciers that touch, or a single glacier where complexes are cut along their divides.
So whoever holds out a fold has a place on the map, glaciers and the ground around them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import shapely.geometry
from pyproj import Transformer
from rasterio.features import shapes
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalog.cube import UNKNOWN
from catalog.errors import UsageError
from catalog.grid import RegionGrid
from model_serving.regions import PreparedRegion

__all__ = ["MaskedRegion", "Territories", "divide_region"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_JOIN_PX = 3
# ^ glaciers that touch are often drawn apart, either outline off by a pixel
_COARSE_PX = 4
# ^ the outlines of territories are drawn with blocks of this edge, far finer than any buffer


@dataclass(frozen=True, slots=True)
class Territories:
    """Complexes of glaciers, the ground nearest to each, and the fold that holds it out."""

    nearest: Array
    """``(y, x)`` int32: number of the nearest complex."""
    folds: tuple[int, ...]
    """Of each complex."""
    ice_px: tuple[int, ...]
    """Of each complex."""
    glaciers: tuple[tuple[int, ...], ...]
    """Of each complex, as the region counts them, from 1."""

    @property
    def identity(self) -> str:
        """SHA-256 of who holds out what."""
        digest = hashlib.sha256(np.ascontiguousarray(self.nearest).tobytes())
        digest.update(repr((self.folds, self.glaciers)).encode())
        return digest.hexdigest()

    @property
    def fold_map(self) -> Array:
        """``(y, x)`` int: the fold that holds out each pixel."""
        return np.asarray(self.folds)[self.nearest]

    def validating(self, fold: int, *, share: float, rng: np.random.Generator) -> tuple[int, ...]:
        """Draw complexes of the other folds that make up a share of their ice, sorted.

        One that is too large is passed over; where all are, it is the smallest. One at least is
        left to train on.

        Raises
        ------
        UsageError
            ``empty-fold`` where the other folds have fewer than two complexes.
        """
        side = [c for c, f in enumerate(self.folds) if f != fold]
        if len(side) < 2:
            raise UsageError(
                f"without fold {fold} there are {len(side)} complexes of glaciers: too few to "
                "train on one and stop by another",
                kind="empty-fold",
            )
        wanted = share * sum(self.ice_px[c] for c in side)
        chosen: list[int] = []
        for c in rng.permutation(side)[:-1].tolist():
            have = sum(self.ice_px[c] for c in chosen)
            if have < wanted and have + self.ice_px[c] <= 2 * wanted:
                chosen.append(c)
        smallest = min(side, key=lambda c: (self.ice_px[c], c))
        return tuple(sorted(chosen)) or (smallest,)

    def seen(self, fold: int, aside: Sequence[int], *, buffer_px: float) -> Mask:
        """``(y, x)``: ground to train on, beyond a buffer of what is held out or aside."""
        hidden = (self.fold_map == fold) | np.isin(self.nearest, list(aside))
        return _farther(hidden, buffer_px)

    def validation_ground(self, fold: int, aside: Sequence[int], *, buffer_px: float) -> Mask:
        """``(y, x)``: ground of the complexes aside, beyond the buffer of what a fold holds out."""
        return _farther(self.fold_map == fold, buffer_px) & np.isin(self.nearest, list(aside))

    def of(self, complexes: Sequence[int]) -> list[int]:
        """Glaciers of some complexes."""
        return sorted(g for c in complexes for g in self.glaciers[c])

    def held_out(self, fold: int) -> list[int]:
        """Glaciers that a fold holds out."""
        return self.of([c for c, f in enumerate(self.folds) if f == fold])

    def ice_of(self, fold: int) -> int:
        """Pixels of the glaciers that a fold holds out."""
        return sum(px for px, f in zip(self.ice_px, self.folds, strict=True) if f == fold)

    def taught(self, fold: int, aside: Sequence[int]) -> list[int]:
        """Glaciers that neither a fold holds out nor training is stopped by."""
        return self.of([c for c, f in enumerate(self.folds) if f != fold and c not in aside])

    def outline(self, fold: int, grid: RegionGrid) -> dict[str, Any]:
        """Where a fold holds out: GeoJSON MultiPolygon in degrees."""
        thin = self.fold_map[::_COARSE_PX, ::_COARSE_PX]
        framed = np.pad(thin, 1, mode="edge").astype(np.int32)
        # ^ a frame around the grid: no pixel at its border may lie outside all territories
        edge = _COARSE_PX * grid.resolution_m
        place = type(grid.transform)(edge, 0.0, grid.left - edge, 0.0, -edge, grid.top + edge)
        found = shapes(framed, mask=framed == fold, transform=place)
        whole = shapely.union_all([shapely.geometry.shape(part) for part, _ in found])
        whole = shapely.segmentize(whole, 1000.0)
        to_degrees = Transformer.from_crs(grid.proj4, 4326, always_xy=True)
        laid = shapely.transform(whole, to_degrees.transform, interleaved=False)
        laid = shapely.transform(laid, lambda xy: xy.round(6))
        parts = shapely.get_parts(laid)
        out: dict[str, Any] = shapely.geometry.mapping(shapely.MultiPolygon(list(parts)))
        return out


@dataclass(frozen=True, slots=True)
class MaskedRegion(PreparedRegion):
    """A region of which some ground is hidden: its inputs are missing, its labels unknown."""

    shown: Mask
    """``(y, x)``."""

    @classmethod
    def of(cls, region: PreparedRegion, shown: Mask) -> MaskedRegion:
        """Hide what is not shown."""
        return cls(**{f.name: getattr(region, f.name) for f in fields(region)}, shown=shown)

    def features(self) -> Array:
        """As the region's, NaN where hidden."""
        whole = np.load(self.folder / "features.npy", mmap_mode="r")
        return np.where(self.shown, whole, np.float16(np.nan))

    def labels(self) -> Array:
        """As the region's, 255 where hidden."""
        return np.where(self.shown, np.load(self.folder / "labels.npy"), np.uint8(UNKNOWN))

    def owners(self) -> Array:
        """As the region's, 0 where hidden."""
        return np.where(self.shown, np.load(self.folder / "owners.npy"), np.int32(0))


def divide_region(
    region: PreparedRegion,
    folds: Sequence[int],
    *,
    cut_complexes: bool = False,
    fold_of: Mapping[int, int] | None = None,
) -> Territories:
    """Share out a region's glaciers among folds.

    Parameters
    ----------
    region
        Its glaciers are those that own pixels.
    folds
        Numbers of the folds.
    cut_complexes
        Let glaciers that touch lie in different folds, where most of the ice is one complex. What
        is held out has its buffer on both sides of a divide.
    fold_of
        Glacier -> fold; by default by recursive coordinate bisection (Berger and Bokhari 1987)
        across the longer side so that folds hold similar ice areas.

    Raises
    ------
    UsageError
        ``empty-fold`` where there are fewer complexes than folds or a fold holds out nothing;
        ``one-complex`` where one complex has more than half of the ice; ``fold-leak`` where
        glaciers of one complex lie in two folds.
    """
    owners = region.owners()
    number = _alone(owners) if cut_complexes else _complexes(owners)
    ids = np.unique(owners[owners > 0])
    count = int(number.max()) + 1 if len(ids) else 0
    if count < len(folds):
        raise UsageError(
            f"{region.name} has {count} complexes of glaciers, fewer than {len(folds)} folds: "
            "take a larger region",
            kind="empty-fold",
        )
    glaciers: list[list[int]] = [[] for _ in range(count)]
    for glacier in ids.tolist():
        glaciers[number[glacier]].append(glacier)
    of_pixel = np.where(owners > 0, number[owners], -1)
    ice = np.bincount(of_pixel[of_pixel >= 0], minlength=count)
    if 2 * ice.max() > ice.sum() and not cut_complexes:
        raise UsageError(
            f"one complex of {len(glaciers[int(ice.argmax())])} glaciers that touch has "
            f"{100 * ice.max() / ice.sum():.0f} % of the ice of {region.name}: take a larger "
            "region, or let complexes be cut along their divides",
            kind="one-complex",
        )
    if fold_of is None:
        centres = np.array(ndimage.center_of_mass(of_pixel >= 0, of_pixel, range(count)))
        chosen = _bisected(centres, ice, folds)
    else:
        chosen = _given(glaciers, fold_of, folds)
    rows, cols = ndimage.distance_transform_edt(
        of_pixel < 0, return_distances=False, return_indices=True
    )
    nearest = of_pixel[rows, cols].astype(np.int32)
    return Territories(
        nearest, tuple(chosen), tuple(ice.tolist()), tuple(tuple(g) for g in glaciers)
    )


def _farther(hidden: Mask, buffer_px: float) -> Mask:
    if not hidden.any():
        return ~hidden
    return np.asarray(ndimage.distance_transform_edt(~hidden) > buffer_px)


def _alone(owners: Array) -> Array:
    """A number of its own for each glacier."""
    ids = np.unique(owners[owners > 0])
    number = np.full(int(owners.max()) + 1, -1)
    number[ids] = np.arange(len(ids))
    return number


def _complexes(owners: Array) -> Array:
    """Complex of each glacier number: glaciers that touch, directly or through others."""
    grown = ndimage.binary_dilation(owners > 0, iterations=_JOIN_PX)
    patches, count = ndimage.label(grown, structure=np.ones((3, 3)))
    ids = np.unique(owners[owners > 0])
    pairs = np.unique(np.stack([owners[owners > 0], patches[owners > 0]]), axis=1)
    size = int(owners.max()) + 1
    links = coo_array(
        (np.ones(pairs.shape[1]), (pairs[0], size + pairs[1])), shape=(size + count + 1,) * 2
    )
    _, group = connected_components(links, directed=False)
    number = np.full(size, -1)
    number[ids] = np.unique(group[ids], return_inverse=True)[1]
    return number


def _bisected(centres: Array, ice: Array, folds: Sequence[int]) -> list[int]:
    """Fold of each complex."""
    chosen = np.full(len(ice), folds[0])

    def cut(members: Array, numbers: Sequence[int]) -> None:
        if len(numbers) == 1:
            chosen[members] = numbers[0]
            return
        half = len(numbers) // 2
        sides = np.ptp(centres[members], axis=0)
        along = members[np.lexsort((members, centres[members, int(sides.argmax())]))]
        share = ice[along].cumsum() / ice[along].sum()
        last = len(along) - (len(numbers) - half)
        at = half + int(np.abs(share[half - 1 : last] - half / len(numbers)).argmin())
        cut(along[:at], numbers[:half])
        cut(along[at:], numbers[half:])

    cut(np.arange(len(ice)), list(folds))
    return [int(fold) for fold in chosen]


def _given(
    glaciers: Sequence[Sequence[int]], fold_of: Mapping[int, int], folds: Sequence[int]
) -> list[int]:
    chosen = []
    for group in glaciers:
        found = {fold_of.get(glacier, -1) for glacier in group}
        if len(found) > 1 or not found <= set(folds):
            raise UsageError(
                f"glaciers {', '.join(map(str, group))} touch, and are held out by "
                f"{', '.join(map(str, sorted(found)))} (-1: by none); they need one of the folds "
                f"{', '.join(map(str, folds))}",
                kind="fold-leak",
            )
        chosen.append(found.pop())
    empty = sorted(set(folds) - set(chosen))
    if empty:
        raise UsageError(f"fold {empty[0]} holds out no glacier", kind="empty-fold")
    return chosen
