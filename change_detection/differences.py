"""What two maps of one batch of glaciers differ in, pixel by pixel: gains, losses, and where.

One law: only pixels that were seen at both dates are compared, and on the coarser of their grids.
"""

from __future__ import annotations

import math
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import ndimage
from skimage.measure import label

from catalog.cube import Outcome, Workspace
from catalog.grid import RegionGrid
from change_detection import zonal
from change_detection.accounts import Territory, own_ice, territory_of
from change_detection.divides import GlacierBatch
from change_detection.files import parquet_bytes, put_files
from change_detection.flowlines import main_centreline
from change_detection.fronts import WATER_TERMINATING, front_change_m
from change_detection.hypsometry import band_counts
from change_detection.scene import Scene, read_elevation, read_scene

__all__ = [
    "AREA_COLUMNS",
    "DIFFERENCE_SCHEMA",
    "END_COLUMNS",
    "difference_rows",
    "trace_differences",
]

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]

_CONTACT_EDGES = 2
# ^ one pixel edge is where two outlines meet in a corner
AREA_COLUMNS = (
    "area_gained_km2",
    "area_lost_km2",
    "area_to_water_km2",
    "area_to_debris_km2",
    "area_to_clean_km2",
)
"""Areas of what differs, which may be summed."""
_TERMINUS = ("terminus_from_m", "terminus_to_m", "terminus_change_m")
_FRONT = ("front_width_m", "front_change_m")
END_COLUMNS = (*_TERMINUS, *_FRONT)
"""Where a glacier ends, and how far that moved."""

DIFFERENCE_SCHEMA = pa.schema(
    [("ref_id", pa.string())]
    + [(name, pa.float64()) for name in (*AREA_COLUMNS, *END_COLUMNS)]
    + [("neighbours_from", pa.list_(pa.string())), ("neighbours_to", pa.list_(pa.string()))]
    + [("band_first", pa.int64())]
    + [(name, pa.list_(pa.float64())) for name in ("band_from_km2", "band_to_km2")]
)
"""Columns of the differences of a batch, one row a reference glacier; missing numbers are null.

``area_gained_km2`` and ``area_lost_km2`` are ice at one date only, of what was seen at both;
``area_to_water_km2`` is the part of the loss that is water now, ``area_to_debris_km2`` clean ice
that is covered now, and ``area_to_clean_km2`` the reverse. ``terminus_from_m`` and
``terminus_to_m`` are the lowest elevation of ice of the largest piece at either date,
``terminus_change_m`` by how much it advanced along its centreline (retreat is negative), in the
horizontal plane. ``front_width_m`` and ``front_change_m`` are those of the front of a marine- or
lake-terminating glacier (:func:`change_detection.fronts.front_change_m`).
``neighbours_from`` are the glaciers that its ice touched at the first date, or may have touched
where it was not seen, ``neighbours_to`` those that it touches at the second where both dates were
seen. ``band_from_km2`` and ``band_to_km2`` are the ice of either date, of what was seen at both, by
elevation: bins of 50 m from ``50 band_first`` on.
"""


def trace_differences(
    workspace: Workspace,
    seasons: tuple[str, str],
    batch: GlacierBatch,
    *,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
    multiples: tuple[int, int],
    growth_m: float,
) -> Outcome:
    """Compare the maps of two seasons for the glaciers of one batch.

    Parameters
    ----------
    workspace
        Holds the maps and, if there is one, the terrain; takes
        ``change/<from>_<to>/parts/<batch>.parquet``.
    seasons
        Names of the two, the earlier one first.
    batch, frame
        The window on ``grid``, and the reference inventory.
    grid
        The coarser one of the grids of the two seasons.
    multiples
        How many pixels of each season make the edge of one of ``grid``.
    growth_m
        How far beyond its outline a glacier may have advanced, metres.

    Raises
    ------
    StoreError
        Where a layer is missing or damaged.
    DataError
        Where a glacier of the batch is not in ``frame``.
    """
    elevation, _ = read_elevation(workspace, batch, grid)
    old, new = (
        _coarsened(read_scene(workspace, season, _finer(batch, multiple)), multiple)
        for season, multiple in zip(seasons, multiples, strict=True)
    )
    kinds = frame.set_index("ref_id")["term_type"].reindex(list(batch.ref_ids))
    rows = difference_rows(
        batch,
        old,
        new,
        wet_ends=kinds.isin(WATER_TERMINATING).to_numpy(),
        territory=territory_of(batch, frame, grid, growth_m=growth_m, elevation=elevation),
        elevation=elevation,
        grid=grid,
    )
    table = pa.Table.from_pylist(rows, schema=DIFFERENCE_SCHEMA)
    name = f"change/{'_'.join(seasons)}/parts/{batch.id}.parquet"
    sums = put_files(workspace, {name: parquet_bytes(table)})
    return Outcome(sums, (), {"glaciers": len(rows)})


def difference_rows(
    batch: GlacierBatch,
    old: Scene,
    new: Scene,
    *,
    wet_ends: Mask,
    territory: Territory,
    elevation: npt.NDArray[np.float32] | None,
    grid: RegionGrid,
) -> list[dict[str, Any]]:
    """Account for what differs between two dates, glacier by glacier.

    ``wet_ends`` tells of each glacier whether the reference has it end in water.

    Returns
    -------
    list of dict
        One row a glacier in the order of ``batch.ref_ids``, columns of :data:`DIFFERENCE_SCHEMA`.
    """
    both = old.seen & new.seen
    filled = [_owned(scene, territory) for scene in (old, new)]
    before, after = (
        np.where(scene.seen, zone, 0).astype(np.int32)
        for scene, zone in zip((old, new), filled, strict=True)
    )
    neighbours = (
        _neighbours(filled[0], count=territory.count),
        _neighbours(np.where(both, after, 0), count=territory.count),
    )
    count, px = territory.count, grid.pixel_area_km2

    def area(zone: Labels, where: Mask) -> npt.NDArray[np.float64]:
        return np.asarray(zonal.counts(zone, count, where=both & where) * px, dtype=np.float64)

    same = (before == after) & (before > 0)
    columns: dict[str, npt.NDArray[Any]] = {
        "area_gained_km2": area(after, before != after),
        "area_lost_km2": area(before, before != after),
        "area_to_water_km2": area(before, (before != after) & new.water),
        "area_to_debris_km2": area(after, same & ~old.debris & new.debris),
        "area_to_clean_km2": area(after, same & old.debris & ~new.debris),
    }
    bands = [
        band_counts(np.where(both, zone, 0), count, elevation=elevation) for zone in (before, after)
    ]
    windows = _windows((before, after), count)
    rows = []
    for i, ref_id in enumerate(batch.ref_ids):
        row: dict[str, Any] = {"ref_id": ref_id}
        row |= {name: float(values[i]) for name, values in columns.items()}
        row |= _terminus(
            (before, after),
            i + 1,
            window=windows[i],
            water=(old.water, new.water) if wet_ends[i] else None,
            elevation=elevation,
            both=both,
            resolution_m=grid.resolution_m,
        )
        for name, found in zip(("neighbours_from", "neighbours_to"), neighbours, strict=True):
            row[name] = [batch.ref_ids[k] for k in found[i]]
        row |= _bands_of([(first[i], pixels[i] * px) for first, pixels in bands])
        rows.append(row)
    return rows


def _owned(scene: Scene, territory: Territory) -> Labels:
    """Glacier of each pixel of ice; what was not seen counts as the ice of the reference."""
    ice = scene.ice | (~scene.seen & (territory.inside > 0))
    patches, _ = own_ice(ice, territory)
    return np.where(patches > 0, territory.owners, 0).astype(np.int32)


def _neighbours(zones: Labels, *, count: int) -> list[list[int]]:
    """Numbers from 0 of the glaciers that each one shares at least two pixel edges with."""
    ends = []
    for one, two in ((zones[:-1], zones[1:]), (zones[:, :-1], zones[:, 1:])):
        border = (one != two) & (one > 0) & (two > 0)
        ends.append(np.sort(np.stack([one[border], two[border]]), axis=0))
    pairs, edges = np.unique(np.concatenate(ends, axis=1), axis=1, return_counts=True)
    found: list[list[int]] = [[] for _ in range(count)]
    for one, two in (pairs[:, edges >= _CONTACT_EDGES].T - 1).tolist():
        found[one].append(two)
        found[two].append(one)
    return [sorted(others) for others in found]


def _bands_of(pair: list[tuple[np.int64, npt.NDArray[Any]]]) -> dict[str, Any]:
    """Both dates' ice by elevation, from the lowest bin of either to the highest."""
    known = [(int(first), values) for first, values in pair if len(values)]
    if not known:
        return {"band_first": None, "band_from_km2": None, "band_to_km2": None}
    low = min(first for first, _ in known)
    high = max(first + len(values) for first, values in known)
    spread = []
    for first, values in pair:
        row = np.zeros(high - low)
        if len(values):
            row[int(first) - low : int(first) - low + len(values)] = values
        spread.append(row.tolist())
    return {"band_first": low, "band_from_km2": spread[0], "band_to_km2": spread[1]}


def _windows(zones: tuple[Labels, Labels], count: int) -> list[tuple[slice, slice] | None]:
    """Window around each glacier's ice of both dates and a pixel more; None where there is none."""
    pairs = zip(*(ndimage.find_objects(zone, max_label=count) for zone in zones), strict=True)
    found: list[tuple[slice, slice] | None] = []
    for pair in pairs:
        known = [window for window in pair if window is not None]
        if not known:
            found.append(None)
            continue
        rows, cols = (
            slice(max(0, min(w[k].start for w in known) - 1), max(w[k].stop for w in known) + 1)
            for k in (0, 1)
        )
        found.append((rows, cols))
    return found


def _terminus(
    zones: tuple[Labels, Labels],
    number: int,
    *,
    window: tuple[slice, slice] | None,
    water: tuple[Mask, Mask] | None,
    elevation: npt.NDArray[np.float32] | None,
    both: Mask,
    resolution_m: float,
) -> dict[str, float | None]:
    """Lowest ice and advance of a glacier's largest piece; nothing where its end was not seen."""
    found: dict[str, float | None] = dict.fromkeys(END_COLUMNS)
    if elevation is None or window is None:
        return found
    height, seen = elevation[window], both[window]
    ice = tuple(zone[window] == number for zone in zones)
    pieces = [_largest(zone) for zone in ice]
    old, new = (
        main_centreline(piece, height, resolution_m=resolution_m) if piece.any() else None
        for piece in pieces
    )
    for name, piece, line in zip(_TERMINUS, pieces, (old, new), strict=False):
        found[name] = float(height[piece].min()) if line else None
    if old is None or new is None:
        return found
    lost = _first_within(old.way, pieces[0], ice[1], seen)
    gained = _first_within(new.way, pieces[1], ice[0], seen)
    if lost is not None and gained is not None:
        found["terminus_change_m"] = (gained - lost) * resolution_m
    if water is not None:
        wet = (water[0][window], water[1][window])
        width, change = front_change_m(
            ice[0], ice[1], wet, seen=seen, way=old.way, resolution_m=resolution_m
        )
        if math.isfinite(change):
            found |= {"front_width_m": width, "front_change_m": change}
    return found


def _largest(zone: Mask) -> Mask:
    pieces, count = label(zone, connectivity=1, return_num=True)
    if count <= 1:
        return zone
    return np.asarray(pieces == 1 + np.argmax(np.bincount(pieces.ravel())[1:]))


def _first_within(
    way: npt.NDArray[np.float64], mine: Mask, other: Mask, seen: Mask
) -> float | None:
    """Pixels along a way from where ice begins to where the other date's ice begins.

    None where the way leaves what was seen at both dates before that, or never meets the other ice.
    """
    steps = np.hypot(*np.diff(way, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if along[-1] == 0:
        return 0.0
    at = np.linspace(0.0, along[-1], 2 * math.ceil(along[-1]) + 1)
    rows, cols = (
        np.clip(np.rint(np.interp(at, along, way[:, k])).astype(np.intp), 0, mine.shape[k] - 1)
        for k in (0, 1)
    )
    begins = np.flatnonzero(mine[rows, cols])
    meets = np.flatnonzero(other[rows, cols])
    if not begins.size or not meets.size:
        return None
    start, end = int(begins[0]), int(meets[0])
    if end <= start:
        return 0.0
    return float(at[end] - at[start]) if seen[rows[start:end], cols[start:end]].all() else None


def _finer(batch: GlacierBatch, multiple: int) -> GlacierBatch:
    """The same window in pixels of which ``multiple`` make the edge of one."""
    if multiple == 1:
        return batch
    size = (batch.row0, batch.col0, batch.height, batch.width)
    return GlacierBatch(batch.id, batch.ref_ids, *(n * multiple for n in size))


def _coarsened(scene: Scene, multiple: int) -> Scene:
    """A scene on pixels of ``multiple`` times the edge: seen where half was, the rest by majority.

    Votes and days are not compared and are those of the first pixel.
    """
    if multiple == 1:
        return scene
    rows, cols = (n // multiple for n in scene.seen.shape)

    def count(values: Mask) -> npt.NDArray[np.int64]:
        blocks = values.reshape(rows, multiple, cols, multiple)
        return np.asarray(blocks.sum(axis=(1, 3), dtype=np.int64))

    looked = count(scene.seen)
    seen = 2 * looked >= multiple**2
    ice = seen & (2 * count(scene.ice) >= looked)
    thin = (slice(None, None, multiple),) * 2
    return Scene(
        seen=seen,
        ice=ice,
        debris=ice & (2 * count(scene.debris) > count(scene.ice)),
        water=seen & ~ice & (2 * count(scene.water) > looked - count(scene.ice)),
        votes=scene.votes[thin],
        voters=scene.voters[thin],
        day=scene.day[thin],
        sar=None if scene.sar is None else scene.sar[thin],
    )
