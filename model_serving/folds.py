"""Regional cross-validation: who may map what.

Whole training regions are held out together, so no window of a training region ever touches a
held-out glacier, and every pixel of a training region takes the fold of its region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
import shapely.geometry
from pyproj import Geod, Transformer
from rasterio.features import rasterize

from catalog.grid import LonLatBox, Shard

__all__ = ["OUTSIDE", "TrainingRegion", "assign_folds", "fold_map", "smallest_gap_km"]

OUTSIDE = -1
# ^ value of a fold map where no member has seen anything: all may vote


@dataclass(frozen=True, slots=True)
class TrainingRegion:
    """One region that members were trained on, and the fold that holds it out."""

    name: str
    seed: int
    fold: int
    bbox: LonLatBox
    """Everything of the region that any window could contain, degrees."""
    glaciers: int
    ice_km2: float
    area: dict[str, Any] | None = None
    """GeoJSON geometry in degrees, where the fold holds out a part of a region and not all within
    ``bbox``."""

    @property
    def polygons(self) -> tuple[shapely.Polygon, ...]:
        """Where the fold holds out, in degrees."""
        if self.area is None:
            return (shapely.box(*self.bbox),)
        return tuple(shapely.get_parts(shapely.geometry.shape(self.area)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {k: v for k, v in asdict(self).items() if k != "area" or v is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingRegion:
        """Rebuild from :meth:`to_dict` or its JSON."""
        west, south, east, north = values["bbox"]
        return cls(**{**values, "bbox": (west, south, east, north)})


def assign_folds(ice_km2: Sequence[float], folds: int) -> list[int]:
    """Share out regions so that the folds hold out similar ice areas.

    The largest region goes first, each to the fold with the least ice so far (ties: fewest
    regions, then lowest number).

    Raises
    ------
    ValueError
        Where there are fewer regions than folds.
    """
    if len(ice_km2) < folds:
        raise ValueError(f"{folds} folds need at least as many regions, found {len(ice_km2)}")
    load = [(0.0, 0)] * folds
    fold_of = [0] * len(ice_km2)
    for region in sorted(range(len(ice_km2)), key=lambda i: (-ice_km2[i], i)):
        fold = min(range(folds), key=lambda f: (load[f], f))
        fold_of[region] = fold
        load[fold] = (load[fold][0] + ice_km2[region], load[fold][1] + 1)
    return fold_of


def fold_map(shard: Shard, regions: Sequence[TrainingRegion]) -> npt.NDArray[np.int16]:
    """Fold of every pixel of a shard, ``(y, x)`` int16; :data:`OUTSIDE` beyond all regions."""
    grid = shard.grid
    height = width = grid.shard_px
    to_grid = Transformer.from_crs(4326, grid.proj4, always_xy=True)
    here = [shapely.box(*box) for box in shard.lonlat_boxes]
    shapes = []
    for region in sorted(regions, key=lambda r: r.name):
        if any(shapely.box(*region.bbox).intersects(part) for part in here):
            for polygon in region.polygons:
                fine = shapely.segmentize(polygon, 0.02)
                laid = shapely.transform(fine, to_grid.transform, interleaved=False)
                shapes.append((laid, region.fold))
    if not shapes:
        return np.full((height, width), OUTSIDE, np.int16)
    transform = shard.geobox().transform
    return np.asarray(
        rasterize(
            shapes,
            out_shape=(height, width),
            fill=OUTSIDE,
            transform=transform,
            dtype="int16",
            all_touched=True,
        )
    )


def smallest_gap_km(regions: Sequence[TrainingRegion]) -> float:
    """Least distance between what two different folds hold out, km on the ellipsoid.

    0 where two touch or overlap; infinite where all are of one fold. The nearest points are looked
    for in the azimuthal equidistant projection half-way between the two.
    """
    gaps = [float("inf")]
    for i, a in enumerate(regions):
        gaps += [_gap_km(a, b) for b in regions[i + 1 :] if a.fold != b.fold]
    return min(gaps)


def _gap_km(one: TrainingRegion, other: TrainingRegion) -> float:
    geod = Geod(ellps="WGS84")
    (west, south, east, north), (west2, south2, east2, north2) = one.bbox, other.bbox
    ends = ((west + east) / 2, (south + north) / 2, (west2 + east2) / 2, (south2 + north2) / 2)
    ((lon, lat),) = geod.npts(*ends, 1)
    plane = Transformer.from_crs(4326, f"+proj=aeqd +lat_0={lat} +lon_0={lon}", always_xy=True)
    laid = [
        shapely.transform(
            shapely.segmentize(shapely.MultiPolygon(list(region.polygons)), 0.02),
            plane.transform,
            interleaved=False,
        )
        for region in (one, other)
    ]
    nearest = shapely.get_coordinates(shapely.shortest_line(*laid))
    return float(geod.line_length(*plane.transform(*nearest.T, direction="INVERSE")) / 1000)
