"""Glaciers from climate: ice flow on the made-up bed, one state per season, with fixed divides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .noise import fractal, stream
from .routing import accumulate, flow_ice, trace_exits
from .spec import RegionSpec, Style, style_of
from .terrain import drain, enlarge, slope_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["IceState", "blocks", "divide_glaciers", "grow_ice"]

_CELL = 8
# ^ the flow model runs on 80 m cells: 8 pixels of 10 m
_LEAST_PX = 100
# ^ 0.01 km2, the smallest glacier an inventory holds
_NUNATAK_PX = 200
# ^ 0.02 km2: smaller patches of rock inside a glacier are not drawn by analysts either
_SPECK_PX, _FIELD_PX = 6, 100
# ^ smaller fields of debris, and gaps in them, are not drawn
_NARROW_PX = 4
# ^ rock ribs narrower than 80 m between two snow fields are mapped as glacier


@dataclass(frozen=True, slots=True)
class IceState:
    """Ice of one season on the 10 m grid.

    Parameters
    ----------
    ice
        (y, x) bool, clean or debris-covered.
    debris
        (y, x) bool, debris-covered part of ``ice``.
    surface
        (y, x) float32 elevation of ground or ice, m.
    ela
        (y, x) float32 equilibrium line altitude, m.
    """

    ice: NDArray[np.bool_]
    debris: NDArray[np.bool_]
    surface: NDArray[np.float32]
    ela: NDArray[np.float32]


def blocks(field: NDArray[np.floating], size: int) -> NDArray[np.float64]:
    """Mean over ``size`` by ``size`` blocks, (y, x) float64."""
    rows, cols = field.shape
    shaped = field.reshape(rows // size, size, cols // size, size)
    return np.asarray(shaped.mean(axis=(1, 3)), dtype=np.float64)


def _climate(
    spec: RegionSpec, bed: NDArray[np.float64], style: Style
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Equilibrium line of the first season and the factor on accumulation, on 80 m cells."""
    cell_m = 10.0 * _CELL
    smooth = ndimage.gaussian_filter(bed, 1.0)
    slope = slope_of(smooth.astype(np.float32), cell_m).astype(np.float64)
    angle = np.degrees(np.arctan(slope))
    hold = np.clip((54.0 - angle) / 14.0, 0.0, 1.0)
    # ^ snow slides off faces steeper than about 45 degrees and feeds what lies below
    _, target, _ = drain(bed)
    slid = ((1.0 - hold) * 0.8).ravel().copy()
    holds = hold.ravel()
    landed = _avalanche(target, slid, holds).reshape(bed.shape)
    factor = hold + np.minimum(ndimage.gaussian_filter(landed, 0.8), 1.0)
    gy, _ = np.gradient(ndimage.gaussian_filter(bed, 3.0), cell_m)
    # ^ gy > 0: the ground rises southwards, so it faces north
    poleward = np.tanh(gy * 2.5) * (1.0 if spec.lat >= 0 else -1.0)
    height = float(
        np.percentile(bed[holds.reshape(bed.shape) > 0.3], 100.0 * (1.0 - 0.46 * style.ice_share))
    )
    drift = fractal(stream(spec.seed, "climate"), bed.shape, exponent=2.0, longest_px=80.0)
    ela = height - 110.0 * poleward + 75.0 * drift.astype(np.float64)
    return ela, factor


def _avalanche(
    target: NDArray[np.int64],
    slid: NDArray[np.float64],
    holds: NDArray[np.float64],
) -> NDArray[np.float64]:
    # Carry sliding snow down until the ground can hold it; a few sweeps are enough.
    landed = np.zeros_like(slid)
    moving = slid
    for _ in range(12):
        following = np.zeros_like(moving)
        np.add.at(following, target, moving)
        landed += following * holds
        moving = following * (1.0 - holds)
    return landed


def _seasons_thickness(
    spec: RegionSpec, bed: NDArray[np.float64], style: Style
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    ela, factor = _climate(spec, bed, style)
    melt, slow = style.melt, 1.0 / style.melt
    # ^ ice that melts slowly also takes longer to reach its length

    def run(start: NDArray[np.float64], rise: float, years: float) -> NDArray[np.float64]:
        settings = np.array(
            [10.0 * _CELL, years, 1.5e-4, style.balance_gradient, style.max_balance, melt]
        )
        return flow_ice(bed, start, factor, ela + rise, settings)

    first = spec.seasons[0].ela_rise_m
    thick = run(np.zeros_like(bed), first - 60.0, 80.0 * slow)
    thick = run(thick, first, 40.0)
    # ^ a colder spell first: the glaciers have retreated from fresh moraines when the story begins
    states = [thick]
    for earlier, later in zip(spec.seasons[:-1], spec.seasons[1:], strict=True):
        rise = later.ela_rise_m - earlier.ela_rise_m
        thick = run(thick, later.ela_rise_m, 30.0 if rise > 0 else 1.0)
        states.append(thick)
    return states, ela


def _mask_from(
    spec: RegionSpec,
    bed: NDArray[np.float32],
    thick: NDArray[np.float64],
    *,
    wasted: NDArray[np.float32] | None,
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Cut the smooth thickness with the fine ground: outline and ice surface on 10 m.

    ``wasted`` (y, x) float32, m, is taken off the thickness: niche ice too thin for the flow model.
    """
    side = bed.shape[0]
    deep = enlarge(ndimage.gaussian_filter(thick, 0.6), side, order=3)
    broad = enlarge(blocks(bed, _CELL), side, order=3)
    edge = fractal(
        stream(spec.seed, "edge"), bed.shape, exponent=1.6, longest_px=60.0, shortest_px=4.0
    )
    room = deep + np.clip(0.75 * (broad - bed), -80.0, 25.0) - (9.0 + 2.5 * edge)
    if wasted is not None:
        room -= wasted
    if style_of(spec).varied:
        room = ndimage.gaussian_filter(room, 4.0)
        # ^ outlines are drawn in bends of a hundred metres, not around every crag
    ice = ndimage.binary_opening(room > 0, iterations=3)
    ice = ndimage.binary_closing(ice, iterations=_NARROW_PX) | ice
    surface = broad + deep - 4.0
    surface = np.where(ice, np.maximum(bed + 1.0, surface), bed)
    return ice, surface.astype(np.float32)


def _wasting(first: NDArray[np.bool_], rise_m: float) -> NDArray[np.float32]:
    """Thickness lost by thin ice, m: most on small isolated glaciers, little on large ones."""
    labels, count = ndimage.label(first)
    area_km2 = np.bincount(labels.ravel(), minlength=count + 1) * 1e-4
    loss = rise_m * (0.012 + 0.15 * np.exp(-area_km2 / 0.25))
    return np.asarray(loss[labels], dtype=np.float32)


def _drop_small(mask: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= least
    keep[0] = False
    return np.asarray(keep[labels])


def _fill_holes(mask: NDArray[np.bool_], largest: int) -> NDArray[np.bool_]:
    return ~_drop_small(~mask, largest)


def debris_score(
    spec: RegionSpec, surface: NDArray[np.float32], ice: NDArray[np.bool_], ela: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Score how likely ice is under rock: wall supply carried along the flow, melt-out, margins.

    Returns
    -------
    NDArray[np.float32]
        (y, x) on the 10 m grid; higher is more debris.
    """
    side = ice.shape[0]
    coarse = blocks(surface, 4)
    on_ice = blocks(ice.astype(np.float32), 4)
    slope = slope_of(coarse.astype(np.float32), 40.0)
    wall = np.clip((slope - 0.62) / 0.5, 0.0, 1.0) * (1.0 - on_ice)
    _, target, order = drain(ndimage.gaussian_filter(coarse, 0.8), stream(spec.seed, "stripes"))
    supply = accumulate(order, target, wall.ravel().copy())
    carried = accumulate(order, target, on_ice.ravel().copy() + 0.5)
    share = ndimage.gaussian_filter((supply / carried).reshape(coarse.shape), 0.6)
    spread = ndimage.gaussian_filter(share, 4.0)
    supply_score = np.log(0.02 + 0.75 * share + 0.25 * spread) + 2.0
    wobble = stream(spec.seed, "stripe-warp")
    warp = 0.8 * np.stack(
        [
            fractal(wobble, ice.shape, exponent=2.5, longest_px=150.0, shortest_px=30.0)
            for _ in (0, 1)
        ]
    )
    fine = enlarge(supply_score, side, order=1, warp=warp.astype(np.float32))
    below = (ela - surface) / 160.0
    inside = ndimage.distance_transform_edt(ice).astype(np.float32) * 10.0
    patchy = fractal(
        stream(spec.seed, "patchy"), ice.shape, exponent=1.3, longest_px=90.0, shortest_px=2.0
    )
    friable = fractal(
        stream(spec.seed, "friable"), ice.shape, exponent=2.5, longest_px=420.0, shortest_px=120.0
    )
    # ^ some valleys have rotten rock and buried tongues, their neighbours stay clean
    score = 1.1 * fine + 0.8 * np.clip(below, -3.0, 3.0) + 0.7 * friable
    varied = style_of(spec).varied
    fringe, patches = (0.1, 0.1) if varied else (0.6, 0.3)
    # ^ debris as maps show it lies in fields, not in seams a pixel or two wide
    score += fringe * np.exp(-inside / 60.0) + patches * patchy
    score -= 2.0 * np.clip(1.0 - below / 0.8, 0.0, 2.0)
    # ^ near the equilibrium line rock is still buried in snow and melts out only in patches
    tongues = style_of(spec).tongues
    if tongues > 0.0:
        ice_km2 = accumulate(order, target, on_ice.ravel() * 1.6e-3).reshape(coarse.shape)
        trunk = np.log1p(ndimage.maximum_filter(ice_km2, 15)).astype(np.float32)
        # ^ ice that has come together upstream, within 300 m of the middle of its valley
        score += tongues * enlarge(trunk, side, order=1) * np.clip(below - 1.0, 0.0, 1.5)
    return np.asarray(np.where(below > -0.2, score, -99.0), dtype=np.float32)


def grow_ice(spec: RegionSpec, bed: NDArray[np.float32]) -> list[IceState]:
    """Let glaciers grow, settle and retreat; one state per season, later ice inside earlier ice.

    Parameters
    ----------
    spec
        The region.
    bed
        (y, x) float32 ground elevation on the 10 m grid, m.
    """
    style = style_of(spec)
    thickness, ela80 = _seasons_thickness(spec, blocks(bed, _CELL), style)
    base_ela = enlarge(ela80, bed.shape[0], order=1)
    states: list[IceState] = []
    before: NDArray[np.bool_] | None = None
    covered: NDArray[np.bool_] | None = None
    origin: NDArray[np.bool_] | None = None
    limit = 0.0
    for season, thick in zip(spec.seasons, thickness, strict=True):
        rise_m = season.ela_rise_m - spec.seasons[0].ela_rise_m
        wasted = None if origin is None else _wasting(origin, rise_m)
        ice, surface = _mask_from(spec, bed, thick, wasted=wasted)
        ice = _fill_holes(_drop_small(ice, 700 if before is None else 25), _NUNATAK_PX)
        if before is not None:
            ice = _drop_small(ice & before, 25)
        surface = np.where(ice, surface, bed)
        ela = (base_ela + np.float32(season.ela_rise_m)).astype(np.float32)
        score = debris_score(spec, surface, ice, ela)
        if before is None:
            limit = float(np.quantile(score[ice], 1.0 - style.debris_share)) if ice.any() else 0.0
        debris = ice & (score > limit)
        if covered is not None:
            debris |= covered & ice
        least = _FIELD_PX if style_of(spec).varied else _SPECK_PX
        debris = ice & ~_drop_small(~_drop_small(debris, least), least)
        states.append(IceState(ice, debris, surface.astype(np.float32), ela))
        before, covered = ice, debris
        origin = ice if origin is None else origin
    return states


def divide_glaciers(
    spec: RegionSpec, bed: NDArray[np.float32], ice: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Cut the first season's ice into glaciers by the valley each part drains to.

    Returns
    -------
    labels
        (y, x) int32, 0 off ice, else 1..n; every label is one 4-connected piece of 0.01 km2 or
        more.
    kept
        (y, x) bool: ``ice`` without the crumbs that belong to no glacier.
    """
    coarse = blocks(bed, 4)
    on_ice = blocks(ice.astype(np.float32), 4) > 0.25
    _, target, order = drain(ndimage.gaussian_filter(coarse, 1.0))
    exits = trace_exits(target, order, on_ice.ravel(), 12).reshape(coarse.shape)
    near = ndimage.distance_transform_edt(exits < 0, return_distances=False, return_indices=True)
    exits = exits[near[0], near[1]]
    side = ice.shape[0]
    wobble = stream(spec.seed, "divide-warp")
    warp = [
        fractal(wobble, ice.shape, exponent=2.2, longest_px=60.0, shortest_px=6.0) for _ in (0, 1)
    ]
    axis = (np.arange(side) + 0.5) / 4.0
    iy = np.clip((axis[:, None] + 0.5 * warp[0]).astype(np.int64), 0, coarse.shape[0] - 1)
    ix = np.clip((axis[None, :] + 0.5 * warp[1]).astype(np.int64), 0, coarse.shape[1] - 1)
    basins = np.where(ice, exits[iy, ix], -1)
    labels = _pieces(basins)
    labels = _absorb(labels, least=5000)
    sizes = np.bincount(labels.ravel())
    keep = sizes >= _LEAST_PX
    keep[0] = False
    labels = np.where(keep[labels], labels, 0)
    _, flat = np.unique(labels, return_inverse=True)
    numbers: NDArray[np.int32] = flat.reshape(ice.shape).astype(np.int32)
    return numbers, numbers > 0


def _pieces(basins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Label 4-connected pieces of equal basin number; -1 is nothing."""
    out = np.zeros(basins.shape, dtype=np.int64)
    offset = 0
    _, dense = np.unique(basins, return_inverse=True)
    dense = dense.reshape(basins.shape) + (0 if (basins < 0).any() else 1)
    for number, window in enumerate(ndimage.find_objects(dense), start=1):
        if window is None:
            continue
        part = dense[window] == number
        labels, count = ndimage.label(part)
        out[window] = np.where(part, labels + offset, out[window])
        offset += count
    return out


def _absorb(labels: NDArray[np.int64], *, least: int) -> NDArray[np.int64]:
    """Join pieces smaller than ``least`` pixels to the neighbour with the longest common border."""
    for _ in range(6):
        sizes = np.bincount(labels.ravel())
        pairs = []
        for one, two in ((labels[:-1], labels[1:]), (labels[:, :-1], labels[:, 1:])):
            edge = (one != two) & (one > 0) & (two > 0)
            pairs.append(np.stack([one[edge], two[edge]], axis=1))
        both = np.concatenate(pairs)
        both = np.concatenate([both, both[:, ::-1]])
        both = both[sizes[both[:, 0]] < least]
        if both.size == 0:
            break
        found, length = np.unique(both, axis=0, return_counts=True)
        rename = np.arange(sizes.size)
        for number in np.unique(found[:, 0]):
            rows = np.flatnonzero(found[:, 0] == number)
            other = int(found[rows[np.argmax(length[rows])], 1])
            if sizes[other] > sizes[number] or (sizes[other] == sizes[number] and other < number):
                rename[number] = other
        if (rename == np.arange(sizes.size)).all():
            break
        for _ in range(4):
            rename = rename[rename]
        labels = rename[labels]
    return labels
