"""What a division into folds is worth: balance, gaps, shared boundaries, ice left to train on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely

from model_serving.glacier_folds import GlacierFolds, equal_area

__all__ = ["FoldMeasures", "measure_folds"]

_TOUCH_M = 1.0
# ^ nearer outlines share their boundary: neighbours are rarely drawn with the same vertices
_SIMPLER_M = 20.0
# ^ a coastline of vertices is not needed for a barrier of kilometres


@dataclass(frozen=True, slots=True)
class FoldMeasures:
    """Figures of one division, by which methods are compared."""

    shares: tuple[float, ...]
    """Share of the ice area that each fold holds out."""
    largest_complex_share: float
    """The bound on how far blocks may be from equal shares."""
    smallest_gap_m: float
    """Least distance between two glaciers of different folds; 0 where folds share a boundary."""
    longest_shared_boundary_m: float
    """Length of the ice divides between the two folds that share most; 0 where none do."""
    split_complexes: int
    """Complexes that lie in more than one fold."""
    validation_km2: tuple[float, ...]
    """Ice that validates, of each fold."""
    training_km2: tuple[float, ...]
    """Ice outside the barriers, of each fold: what may be trained on."""

    @property
    def largest_imbalance(self) -> float:
        """Largest difference of a share from equal shares."""
        return max(abs(share - 1 / len(self.shares)) for share in self.shares)


def measure_folds(folds: GlacierFolds, frame: gpd.GeoDataFrame) -> FoldMeasures:
    """Measure a division on the outlines that were divided.

    Parameters
    ----------
    folds
        The division.
    frame
        ``ref_id`` and outlines in EPSG:4326.

    Notes
    -----
    Distances are those of the equal-area projection centred on the inventory, which are true within
    0.3 % up to 1000 km from the centre.
    """
    known = folds.fold_of
    shapes = equal_area(frame).to_numpy()
    fold = np.array([known[name] for name in frame["ref_id"]])
    training = [_training_km2(folds, frame, shapes, fold=f) for f in range(folds.folds)]
    area = {g.ref_id: g.area_km2 for g in folds.glaciers}
    return FoldMeasures(
        shares=folds.shares,
        largest_complex_share=folds.largest_complex_share,
        smallest_gap_m=_smallest_gap(shapes, fold),
        longest_shared_boundary_m=_longest_boundary(shapes, fold),
        split_complexes=len(folds.split_complexes),
        validation_km2=tuple(sum(area[name] for name in names) for names in folds.validation),
        training_km2=tuple(training),
    )


def _smallest_gap(shapes: npt.NDArray[Any], fold: npt.NDArray[Any]) -> float:
    gaps = []
    for number in np.unique(fold)[:-1]:
        tree = shapely.STRtree(shapes[fold == number])
        later = shapes[fold > number]
        gaps.append(tree.query_nearest(later, return_distance=True, all_matches=False)[1].min())
    return float(min(gaps))


def _longest_boundary(shapes: npt.NDArray[Any], fold: npt.NDArray[Any]) -> float:
    one, other = shapely.STRtree(shapes).query(shapes, "dwithin", _TOUCH_M)
    apart = fold[one] < fold[other]
    one, other = one[apart], other[apart]
    beside = shapely.buffer(shapely.boundary(shapes[other]), _TOUCH_M)
    lengths = shapely.length(shapely.intersection(shapely.boundary(shapes[one]), beside))
    total = dict.fromkeys(combinations(range(int(fold.max()) + 1), 2), 0.0)
    for a, b, length in zip(fold[one], fold[other], lengths, strict=True):
        total[int(a), int(b)] += float(length)
    return max(total.values())


def _training_km2(
    folds: GlacierFolds, frame: gpd.GeoDataFrame, shapes: npt.NDArray[Any], *, fold: int
) -> float:
    away = folds.held_out(fold) | folds.validating(fold)
    out = frame["ref_id"].isin(away).to_numpy()
    simple = shapely.simplify(shapes[out], _SIMPLER_M)
    zone = shapely.union_all(shapely.buffer(simple, folds.barrier_m + folds.buffer_m))
    shapely.prepare(zone)
    rest = shapes[~out]
    cut = shapely.intersects(zone, rest) & ~shapely.contains_properly(zone, rest)
    whole = ~shapely.intersects(zone, rest)
    km2 = shapely.area(rest[whole]).sum() + shapely.area(shapely.difference(rest[cut], zone)).sum()
    return float(km2 / 1e6)
