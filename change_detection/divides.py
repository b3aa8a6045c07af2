"""Which glacier a pixel belongs to: the reference inventory's divides, carried to new ice.

One law: owners depend on the reference outlines, the grid and the terrain only, never on a season,
so ice keeps its glacier from one date to the next.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize
from scipy.ndimage import binary_dilation, distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, dijkstra

from catalog.errors import DataError
from catalog.grid import RegionGrid

__all__ = ["GlacierBatch", "extend_owners", "glacier_batches", "reference_owners"]

_PAD_PX = 2
# ^ around the growth margin, so that no owned pixel lies on the edge of a window
_BLOCK_PX = 512
_CLIMB = 5.0
# ^ metres on the level that one metre up or down counts for: a slope of 11 degrees doubles the way
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@dataclass(frozen=True, slots=True)
class GlacierBatch:
    """Glaciers whose outlines, widened by the growth margin, touch; and the window around them."""

    id: str
    """First characters of the SHA-256 of the glaciers' ids."""
    ref_ids: tuple[str, ...]
    """Sorted ids in the reference inventory."""
    row0: int
    """Upper row of the window in the region's arrays; may lie outside of them."""
    col0: int
    """Left column of the window in the region's arrays; may lie outside of them."""
    height: int
    """Rows of the window."""
    width: int
    """Columns of the window."""

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels ``(y, x)`` of the window."""
        return self.height, self.width


def glacier_batches(
    frame: gpd.GeoDataFrame, grid: RegionGrid, *, growth_m: float, block_px: int = _BLOCK_PX
) -> list[GlacierBatch]:
    """Group the glaciers that could meet, and small groups nearby, and cut a window for each.

    What is made of a glacier does not depend on which others are in its batch, as long as all that
    it could meet are: batches of one small glacier each would cost more to open than to fill.

    Parameters
    ----------
    frame
        The reference inventory (``catalog.glaciers.ReferenceInventory.frame``).
    grid
        The region's grid.
    growth_m
        How far beyond its outline a glacier may have advanced, metres.
    block_px
        Groups that fit into a square of so many pixels of the region's finest grid are one batch
        with those whose middle lies in the same such square; 0: none are.

    Returns
    -------
    list of GlacierBatch
        Sorted by their first glacier; equal for any order of the rows of ``frame``.
    """
    frame = frame.sort_values("ref_id", kind="stable").reset_index(drop=True)
    outlines = frame.geometry.to_crs(grid.proj4).to_numpy()
    # Two widened outlines touch where the outlines come within twice the margin.
    near = shapely.STRtree(outlines).query(outlines, "dwithin", 2 * growth_m)
    links = coo_array((np.ones(near.shape[1], bool), tuple(near)), shape=(len(frame),) * 2)
    count, component = connected_components(links, directed=False)
    bounds = shapely.bounds(outlines)
    block_m = block_px * grid.resolution_m / grid.multiple
    component = _with_neighbours(component, bounds, count=count, grid=grid, block_m=block_m)
    ids = frame["ref_id"].to_numpy()
    batches = []
    for number in np.unique(component):
        members = np.flatnonzero(component == number)
        batches.append(_batch(tuple(ids[members]), bounds[members], grid=grid, growth_m=growth_m))
    return sorted(batches, key=lambda b: b.ref_ids)


def _with_neighbours(
    component: npt.NDArray[np.int32],
    bounds: npt.NDArray[np.float64],
    *,
    count: int,
    grid: RegionGrid,
    block_m: float,
) -> npt.NDArray[np.int64]:
    """Number of each glacier's batch: that of its group, or of the block its small group is in."""
    if block_m <= 0 or not count:
        return component.astype(np.int64)
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, component, bounds[:, :2])
    np.maximum.at(high, component, bounds[:, 2:])
    small = (high - low <= block_m).all(axis=1)
    block = np.floor(((low + high) / 2 - [grid.left, grid.top]) / block_m).astype(np.int64)
    _, place = np.unique(block, axis=0, return_inverse=True)
    number = np.where(small, count + place.ravel(), np.arange(count))
    return np.asarray(number[component], dtype=np.int64)


def _batch(
    ref_ids: tuple[str, ...], bounds: npt.NDArray[np.float64], *, grid: RegionGrid, growth_m: float
) -> GlacierBatch:
    res = grid.resolution_m
    west, south = bounds[:, :2].min(axis=0) - growth_m
    east, north = bounds[:, 2:].max(axis=0) + growth_m
    row0 = math.floor((grid.top - north) / res) - _PAD_PX
    col0 = math.floor((west - grid.left) / res) - _PAD_PX
    row1 = math.ceil((grid.top - south) / res) + _PAD_PX
    col1 = math.ceil((east - grid.left) / res) + _PAD_PX
    name = hashlib.sha256("\n".join(ref_ids).encode()).hexdigest()[:12]
    return GlacierBatch(name, ref_ids, row0, col0, row1 - row0, col1 - col0)


def reference_owners(
    batch: GlacierBatch, frame: gpd.GeoDataFrame, grid: RegionGrid
) -> npt.NDArray[np.int32]:
    """Burn the reference outlines: a pixel belongs to the glacier that holds its centre.

    Where two outlines overlap, the glacier whose id sorts first has the pixel.

    Returns
    -------
    ``(y, x)`` int32
        0 outside all outlines, i + 1 inside glacier ``batch.ref_ids[i]``.

    Raises
    ------
    DataError
        Where a glacier of the batch is not in ``frame``.
    """
    rows = frame[frame["ref_id"].isin(batch.ref_ids)].set_index("ref_id")
    missing = sorted(set(batch.ref_ids) - set(rows.index))
    if missing:
        raise DataError(
            f"glaciers {', '.join(missing[:3])} of batch {batch.id} are not in the reference "
            "inventory: plan the batches again",
            kind="unknown-glacier",
        )
    outlines = rows.loc[list(batch.ref_ids)].geometry.to_crs(grid.proj4)
    burnt = [(g, i + 1) for i, g in enumerate(outlines)]
    owners: npt.NDArray[np.int32] = rasterize(
        burnt[::-1],
        out_shape=batch.shape,
        transform=grid.window_transform(batch.row0, batch.col0),
        fill=0,
        dtype="int32",
    )
    return owners


def extend_owners(
    inside: npt.NDArray[np.int32],
    *,
    resolution_m: float,
    growth_m: float,
    elevation: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.int32]:
    """Give the pixels around the outlines to the glacier that is nearest over the ground.

    Ice neither crosses a ridge nor climbs out of its valley, so height counts: the owner is the
    glacier with the shortest way, where a metre up or down is as long as five on the level. A slope
    that leads down to a glacier is that glacier's, however near another one lies behind the ridge;
    a valley floor belongs to the glacier that ends in it. (A plain watershed does one of the two:
    of the elevation, it gives a valley to the lowest glacier in it; of the inverted elevation, it
    lets the higher glacier spill over the ridge.) Pits and flats need no treatment.

    Parameters
    ----------
    inside : ``(y, x)`` int32
        Owners inside the outlines, see :func:`reference_owners`.
    resolution_m
        Pixel edge, metres.
    growth_m
        Pixels whose centres are at most this far from an inside pixel's centre get an owner.
    elevation : ``(y, x)`` float, metres
        Where it is NaN the height of the nearest known pixel stands in; if it is None, or NaN
        everywhere, the way is level: the nearest outline decides.

    Returns
    -------
    ``(y, x)`` int32
        As ``inside``, widened.
    """
    core = inside > 0
    if not core.any() or growth_m <= 0:
        return inside.copy()
    distance, nearest = distance_transform_edt(~core, sampling=resolution_m, return_indices=True)
    ring = (distance <= growth_m) & ~core
    owners: npt.NDArray[np.int32] = np.where(ring, inside[nearest[0], nearest[1]], inside)
    if elevation is None or np.unique(owners[ring]).size < 2 or np.isnan(elevation).all():
        return owners
    start = core & binary_dilation(ring, np.ones((3, 3), bool))
    unknown = np.isnan(elevation)
    if unknown[start | ring].any():
        rows, cols = distance_transform_edt(unknown, return_distances=False, return_indices=True)
        elevation = elevation[rows, cols]
    reached, source = _nearest_over_ground(start, ring, elevation, resolution_m=resolution_m)
    owners.ravel()[reached] = inside.ravel()[source]
    return owners


def _nearest_over_ground(
    start: npt.NDArray[np.bool_],
    ring: npt.NDArray[np.bool_],
    elevation: npt.NDArray[np.float32],
    *,
    resolution_m: float,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Flat indices of the ring's pixels that can be reached, and of the start nearest to each."""
    pixel = np.flatnonzero(start | ring)
    node = np.full(start.shape, -1, dtype=np.int32)
    node.ravel()[pixel] = np.arange(pixel.size)
    ends, ways = [], []
    for down, right in _NEIGHBOURS:
        here, there = _neighbours(node, down, right)
        both = (here >= 0) & (there >= 0)
        z_here, z_there = _neighbours(elevation, down, right)
        level = resolution_m * math.hypot(down, right)
        climb = np.abs(z_there[both].astype(np.float64) - z_here[both])
        ends.append((here[both], there[both]))
        ways.append(level + _CLIMB * climb)
    links = tuple(np.concatenate(side) for side in zip(*ends, strict=True))
    graph = coo_array((np.concatenate(ways), links), shape=(pixel.size,) * 2).tocsr()
    far, _, source = dijkstra(
        graph,
        directed=False,
        indices=node[start],
        return_predecessors=True,
        min_only=True,
    )
    reached = np.isfinite(far) & ring.ravel()[pixel]
    return pixel[reached], pixel[source[reached]]


def _neighbours(
    values: npt.NDArray[Any], down: int, right: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Views of the pixels that have a neighbour so far down and to the right, and of those."""
    height, width = values.shape
    left = max(0, -right)
    here = values[: height - down, left : width - max(0, right)]
    there = values[down:, left + right : width - max(0, right) + right]
    return here, there
