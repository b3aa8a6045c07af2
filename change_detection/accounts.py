"""One row of account for every reference glacier: what is ice, what was not seen, how sure.

Nothing is left out: a glacier without ice or without a look has its row too. Area that was not seen
is never counted as lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from skimage.measure import label

from catalog.cube import MIN_MEMBERS
from catalog.errors import UsageError
from catalog.grid import RegionGrid
from change_detection import zonal
from change_detection.attributes import iso_day, topography
from change_detection.divides import GlacierBatch, extend_owners, reference_owners
from change_detection.misregistration import divide_vectors, shift_sigma_km2
from change_detection.scene import Scene
from change_detection.uncertainty import boundary_sigma_km2, ensemble_sd

__all__ = [
    "ACCOUNT_SCHEMA",
    "MIN_AREA_KM2",
    "MIN_OBSERVED",
    "Territory",
    "account_rows",
    "own_ice",
    "territory_of",
]

MIN_OBSERVED = 0.8
# ^ below this observed fraction of the reference outline no change is reported
MIN_AREA_KM2 = 0.01
# ^ the smallest polygon of RGI 7.0
_ELIGIBLE_FRACTION = 0.99
# ^ a member counts for a glacier if it voted on this part of its seen pixels; outlines of
#   neighbouring folds may share a pixel or two along a divide
_STAIRCASE = np.pi / 4
# ^ mean ratio of a smooth line's length to its length along pixel edges
_WIDE_SPAN_DAYS = 60

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int32]

_FLOATS = (
    ("day", "date_span_days", "area_km2", "area_clean_km2", "area_debris_km2", "area_water_km2"),
    ("area_reference_km2", "area_unseen_km2", "area_beyond_km2", "obs_fraction"),
)
_LATER = ("area_ensemble_sd_km2", "boundary_sigma_km2", "perimeter_km", "largest_part_km2")

ACCOUNT_SCHEMA = pa.schema(
    [("ref_id", pa.string()), ("src_date", pa.string())]
    + [(name, pa.float64()) for group in _FLOATS for name in group]
    + [("member_area_km2", pa.list_(pa.float64())), ("n_members", pa.int32())]
    + [(name, pa.float64()) for name in (*_LATER, "zmin_m", "zmax_m", "zmed_m")]
    + [("inputs", pa.string()), ("n_parts", pa.int32()), ("flags", pa.list_(pa.string()))]
    + [("look_days", pa.list_(pa.string())), ("look_shares", pa.list_(pa.float64()))]
)
"""Columns of the accounts; missing numbers are null.

``area_km2`` is the glacier's seen ice plus ``area_unseen_km2``, the part of its reference outline
that was not seen in this season. ``area_clean_km2`` and ``area_debris_km2`` are seen ice only,
``area_water_km2`` is water inside the reference outline, ``area_beyond_km2`` is the ice outside of
it. ``day`` is the median day of the seen pixels, ``date_span_days`` the days between the first and
the last. ``perimeter_km`` is the length of the ice margin without divides; ``boundary_sigma_km2``
is what mixed pixels along it and a shift of the ice against the divides may amount to. ``n_parts``
counts separate pieces of at least 0.01 km2, ``largest_part_km2`` is the largest of all.
``member_area_km2`` has an entry for each member by its bit.
``look_days`` are the days of the looks that the glacier was mapped from, ``look_shares`` what part
of its seen pixels came from each; the largest first.
"""


@dataclass(frozen=True, slots=True)
class Territory:
    """Whose pixels are whose in a batch's window; the same in every season."""

    inside: Labels
    """``(y, x)`` owner inside the reference outlines, 0 outside."""
    owners: Labels
    """``(y, x)`` owner inside and around the outlines, 0 none."""
    count: int
    """Number of glaciers; owners are 1 to ``count``."""


def territory_of(
    batch: GlacierBatch,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
    *,
    growth_m: float,
    elevation: npt.NDArray[np.float32] | None,
) -> Territory:
    """Owners of a batch's pixels, see :func:`change_detection.divides.extend_owners`.

    Raises
    ------
    DataError
        Where a glacier of the batch is not in ``frame``.
    """
    inside = reference_owners(batch, frame, grid)
    owners = extend_owners(
        inside, resolution_m=grid.resolution_m, growth_m=growth_m, elevation=elevation
    )
    return Territory(inside, owners, len(batch.ref_ids))


def own_ice(ice: Mask, territory: Territory) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Label the ice that a glacier can claim, patch by patch.

    Ice inside a reference outline is that glacier's. Ice beyond belongs to the owner of the pixel
    if a path of the owner's ice (over pixel edges) leads to ice inside the outline.

    Returns
    -------
    tuple
        ``(y, x)`` int32 number of the patch, 0 where no glacier has ice; and the owner of each
        patch, from patch 1 on. A patch is 4-connected ice of one owner; numbers follow row order.
    """
    patches = label(np.where(ice, territory.owners, 0), background=0, connectivity=1)
    core = np.zeros(int(patches.max()) + 1, dtype=bool)
    core[patches[ice & (territory.inside > 0)]] = True
    core[0] = False
    number = np.cumsum(core) * core
    claimed = number[patches].astype(np.int32)
    owner = np.zeros(int(core.sum()) + 1, dtype=np.int64)
    owner[claimed] = territory.owners
    return claimed, owner[1:]


def account_rows(
    batch: GlacierBatch,
    scene: Scene,
    territory: Territory,
    *,
    frame: gpd.GeoDataFrame,
    grid: RegionGrid,
    elevation: npt.NDArray[np.float32] | None,
    season_window: tuple[str, str],
    residual_m: float = 0.0,
) -> list[dict[str, Any]]:
    """Account for every glacier of a batch in one season.

    ``residual_m`` is the standard deviation along one axis by which the season's scenes may lie off
    the reference's divides, metres; NaN where it is not known, and then there is no interval.

    Returns
    -------
    list of dict
        One row a glacier in the order of ``batch.ref_ids``, columns of :data:`ACCOUNT_SCHEMA`.
    """
    unseen = ~scene.seen & (territory.inside > 0)
    patches, patch_owner = own_ice(scene.ice | unseen, territory)
    mine = np.where(patches > 0, territory.owners, 0)
    members = _member_areas(scene, territory, unseen=unseen, grid=grid)
    columns = _areas(scene, territory, mine=mine, grid=grid)
    zone = np.maximum(territory.inside, mine)
    columns |= _days(scene, territory, zone)
    looks = zonal.shares(scene.day, zone, territory.count, where=scene.dated & (zone > 0))
    columns |= _margin(mine, territory.count, grid)
    columns["boundary_sigma_km2"] = np.hypot(
        columns["boundary_sigma_km2"], _shift_sigma(batch, frame, grid, residual_m)
    )
    columns["area_ensemble_sd_km2"] = ensemble_sd(members)
    columns["n_members"] = np.isfinite(members).sum(axis=0)
    columns |= _parts(patches, patch_owner, count=territory.count, grid=grid)
    terrain = topography(mine, territory.count, elevation=elevation, resolution_m=grid.resolution_m)
    for name in ("zmin_m", "zmax_m", "zmed_m"):
        columns[name] = getattr(terrain, name)
    inputs = _inputs(scene, territory, elevation)
    latitudes = _latitudes(batch, frame)
    window = _window_days(season_window)
    rows = []
    for i, ref_id in enumerate(batch.ref_ids):
        row = {name: _number(values[i]) for name, values in columns.items()}
        row |= {"ref_id": ref_id, "src_date": iso_day(columns["day"][i]), "inputs": inputs[i]}
        row["member_area_km2"] = members[:, i].tolist()
        row["look_days"] = [iso_day(float(day))[:10] for day, _ in looks[i]]
        row["look_shares"] = [round(share, 6) for _, share in looks[i]]
        row["flags"] = _flags(row, latitudes[i], window)
        rows.append(row)
    return rows


def _number(value: Any) -> Any:
    value = value.item()
    return None if value != value else value  # noqa: PLR0124 (NaN is the number unlike itself)


def _areas(
    scene: Scene, territory: Territory, *, mine: Labels, grid: RegionGrid
) -> dict[str, npt.NDArray[Any]]:
    inside, n, px = territory.inside, territory.count, grid.pixel_area_km2
    reference = zonal.counts(inside, n)
    unseen = zonal.counts(inside, n, where=~scene.seen)
    debris = zonal.counts(mine, n, where=scene.debris)
    seen_ice = zonal.counts(mine, n, where=scene.ice)
    fraction = np.full(n, np.nan)
    np.divide(reference - unseen, reference, out=fraction, where=reference > 0)
    return {
        "area_km2": (seen_ice + unseen) * px,
        "area_clean_km2": (seen_ice - debris) * px,
        "area_debris_km2": debris * px,
        "area_water_km2": zonal.counts(inside, n, where=scene.water) * px,
        "area_reference_km2": reference * px,
        "area_unseen_km2": unseen * px,
        "area_beyond_km2": zonal.counts(mine, n, where=inside == 0) * px,
        "obs_fraction": fraction,
    }


def _days(scene: Scene, territory: Territory, zone: Labels) -> dict[str, npt.NDArray[Any]]:
    """Days of the seen pixels that decided the glacier's area: its old outline and its ice."""
    days = zonal.ranked(scene.day, zone, territory.count, where=scene.dated)
    return {"day": days.median, "date_span_days": days.highest - days.lowest}


def _margin(mine: Labels, count: int, grid: RegionGrid) -> dict[str, npt.NDArray[Any]]:
    edges = np.zeros(count, dtype=np.int64)
    padded = np.pad(mine, 1)
    for axis in (0, 1):
        before = padded[:-1] if axis == 0 else padded[:, :-1]
        after = padded[1:] if axis == 0 else padded[:, 1:]
        edges += zonal.counts(before, count, where=after == 0)
        edges += zonal.counts(after, count, where=before == 0)
    length_m = edges * grid.resolution_m * _STAIRCASE
    return {
        "perimeter_km": length_m / 1e3,
        "boundary_sigma_km2": boundary_sigma_km2(length_m, grid.resolution_m),
    }


def _shift_sigma(
    batch: GlacierBatch, frame: gpd.GeoDataFrame, grid: RegionGrid, residual_m: float
) -> npt.NDArray[np.float64]:
    if residual_m == 0:
        return np.zeros(len(batch.ref_ids))
    rows = frame[frame["ref_id"].isin(batch.ref_ids)].set_index("ref_id")
    outlines = rows.loc[list(batch.ref_ids)].geometry.to_crs(grid.proj4).to_numpy()
    return shift_sigma_km2(divide_vectors(outlines), residual_m)


def _member_areas(
    scene: Scene, territory: Territory, *, unseen: Mask, grid: RegionGrid
) -> npt.NDArray[np.float64]:
    """Area of each glacier as each member sees it, by the rules of the ensemble's own area.

    Returns
    -------
    ``(member, glacier)`` float64
        km2; NaN where the member was not eligible for the glacier. Where it was not allowed to
        vote on single pixels of a glacier, the ensemble's decision stands.
    """
    looked = scene.seen & (territory.inside > 0)
    seen = zonal.counts(territory.inside, territory.count, where=looked)
    bits = int(np.bitwise_or.reduce(scene.voters[looked], initial=0)).bit_length()
    areas = np.full((bits, territory.count), np.nan)
    for bit in range(bits):
        allowed = (scene.voters >> np.uint32(bit) & 1).astype(bool)
        voted = zonal.counts(territory.inside, territory.count, where=looked & allowed)
        eligible = (seen > 0) & (voted >= _ELIGIBLE_FRACTION * seen)
        if not eligible.any():
            continue
        sees_ice = (scene.votes >> np.uint32(bit) & 1).astype(bool)
        ice = np.where(allowed, sees_ice, scene.ice) & scene.seen
        patches, _ = own_ice(ice | unseen, territory)
        pixels = zonal.counts(territory.owners, territory.count, where=patches > 0)
        areas[bit, eligible] = pixels[eligible] * grid.pixel_area_km2
    return areas


def _parts(
    patches: Labels, owner: npt.NDArray[np.int64], *, count: int, grid: RegionGrid
) -> dict[str, npt.NDArray[Any]]:
    size = zonal.counts(patches, owner.size) * grid.pixel_area_km2
    large = size >= MIN_AREA_KM2 * (1 - 1e-9)
    largest = np.zeros(count + 1)
    np.maximum.at(largest, owner, size)
    return {
        "n_parts": np.bincount(owner[large], minlength=count + 1)[1:],
        "largest_part_km2": largest[1:],
    }


def _inputs(
    scene: Scene, territory: Territory, elevation: npt.NDArray[np.float32] | None
) -> list[str]:
    """What there was to look at inside each reference outline, for example ``optical+terrain``.

    ``none`` where no pixel was seen: without optical bands nothing is mapped.
    """
    seen = _any_inside(territory, scene.seen)
    radar = _any_inside(territory, scene.sar)
    terrain = _any_inside(territory, None if elevation is None else np.isfinite(elevation))
    return [
        "optical" + "+sar" * has_radar + "+terrain" * has_terrain if has_seen else "none"
        for has_seen, has_radar, has_terrain in zip(seen, radar, terrain, strict=True)
    ]


def _any_inside(territory: Territory, where: Mask | None) -> list[bool]:
    if where is None:
        return [False] * territory.count
    return [bool(n) for n in zonal.counts(territory.inside, territory.count, where=where)]


def _latitudes(batch: GlacierBatch, frame: gpd.GeoDataFrame) -> list[float]:
    rows = frame[frame["ref_id"].isin(batch.ref_ids)].set_index("ref_id")
    points = rows.loc[list(batch.ref_ids)].geometry.representative_point()
    return [float(y) for y in points.y]


def _window_days(season_window: tuple[str, str]) -> tuple[float, float]:
    try:
        first, last = (date.fromisoformat(text[:10]) for text in season_window)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"a season needs its first and last day as YYYY-MM-DD, found {season_window!r}"
        ) from error
    epoch = date(1970, 1, 1)
    return float((first - epoch).days), float((last - epoch).days)


def _flags(row: dict[str, Any], latitude: float, window: tuple[float, float]) -> list[str]:
    day, observed = row["day"], row["obs_fraction"]
    span = row["date_span_days"] or 0.0
    faults = {
        "low-observation": observed is None or observed < MIN_OBSERVED,
        "undated": day is None,
        "out-of-season": day is not None and not _late_in_ablation_season(day, latitude),
        "outside-window": day is not None and not window[0] <= day <= window[1],
        "wide-date-span": span > _WIDE_SPAN_DAYS,
        "few-members": row["n_members"] < MIN_MEMBERS,
        "multi-part": row["n_parts"] > 1,
        "no-ice": row["area_km2"] == 0,
        "below-minimum": 0 < row["area_km2"] < MIN_AREA_KM2 * (1 - 1e-9),
    }
    return sorted(name for name, found in faults.items() if found)


def _late_in_ablation_season(day: float, latitude: float) -> bool:
    """Whether seasonal snow can be expected to be gone.

    North of the tropics from 1 July to 15 October, south of them from 1 January to 15 April; within
    23.5 degrees of the equator there is no such season and every day counts.
    """
    if abs(latitude) < 23.5:
        return True
    when = date(1970, 1, 1) + timedelta(days=int(day // 1))
    if latitude > 0:
        return (7, 1) <= (when.month, when.day) <= (10, 15)
    return (1, 1) <= (when.month, when.day) <= (4, 15)
