"""What happened to a glacier that a difference of areas does not tell; each with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from change_detection.accounts import MIN_AREA_KM2
from change_detection.matching import Ice

__all__ = ["EVENTS", "Event", "find_events"]

EVENTS: dict[str, str] = {
    "unobserved": "one of the files does not cover the glacier",
    "vanished": "observed, no ice left",
    "new": "ice where the earlier file, which covers the place, has none",
    "below-minimum": "fell below 0.01 km2, the least of RGI 7.0; still counted",
    "merged": "touches a glacier that it was apart from",
    "split": "in more pieces of at least 0.01 km2, none with three quarters of the ice",
    "tributary-detached": "in more pieces, the largest with at least three quarters of the ice",
    "advanced": "grew by more than two standard deviations, at least 0.01 km2 beyond its outline",
}
"""Events, the first that holds first, and what they mean."""

_TRUNK = 0.75
_TOUCH_M = 1.0

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, order=True)
class Event:
    """Something that happened to a glacier, and by what it is known."""

    glacier_id: str
    rank: int
    """Place of the event in :data:`EVENTS`."""
    event: str
    evidence: str


def find_events(
    names: Sequence[str],
    ice: tuple[Ice, Ice],
    *,
    areas: tuple[Floats, Floats],
    sigma: Floats,
    errors_m: tuple[float, float],
    labels: tuple[str, str],
) -> tuple[Event, ...]:
    """Find all events between two dates.

    Parameters
    ----------
    names
        Sorted glaciers.
    ice
        What ice is counted at the two dates.
    areas : ``(glacier,)`` each
        km2; 0 no ice, NaN not observed.
    sigma : ``(glacier,)``
        Standard deviation of the change, km2.
    errors_m
        Standard deviation of the outlines' position at the two dates, metres: pieces that are not
        farther apart than the larger one are one piece.
    labels
        Of the two dates.

    Returns
    -------
    tuple of Event
        Sorted by glacier, then by their order in :data:`EVENTS`.
    """
    apart = max(*errors_m, _TOUCH_M)
    found: list[tuple[str, str, str]] = _merged(names, ice, apart, labels)
    for name, old, new, error in zip(names, *areas, sigma, strict=True):
        before, after = (one.geometry.get(name) for one in ice)
        if not (np.isfinite(old) and np.isfinite(new)):
            missing = [label for label, a in zip(labels, (old, new), strict=True) if np.isnan(a)]
            found.append((name, "unobserved", f"not covered in {' and '.join(missing)}"))
            continue
        found += _of_areas(name, old, new, labels)
        if before is None or after is None:
            continue
        found += _parted(name, before, after, apart, labels)
        found += _advanced(name, before, after, (new - old, error))
    ranks = {name: i for i, name in enumerate(EVENTS)}
    return tuple(sorted(Event(name, ranks[what], what, why) for name, what, why in found))


def _of_areas(
    name: str, old: float, new: float, labels: tuple[str, str]
) -> list[tuple[str, str, str]]:
    story = f"{old:.4f} km2 in {labels[0]}, {new:.4f} km2 in {labels[1]}"
    least = MIN_AREA_KM2 * (1 - 1e-9)
    if old > 0 and new == 0:
        return [(name, "vanished", f"{old:.4f} km2 in {labels[0]}, no ice in {labels[1]}")]
    if old == 0 and new > 0:
        return [(name, "new", f"no ice in {labels[0]}, {new:.4f} km2 in {labels[1]}")]
    if old >= least > new:
        return [(name, "below-minimum", story)]
    return []


def _parted(
    name: str, before: Any, after: Any, apart: float, labels: tuple[str, str]
) -> list[tuple[str, str, str]]:
    old, new = _pieces(before, apart), _pieces(after, apart)
    if len(new) <= max(len(old), 1):
        return []
    event = "tributary-detached" if new[0] >= _TRUNK * sum(new) else "split"
    areas = ", ".join(f"{area:.3f}" for area in new)
    once = ", ".join(f"{area:.3f}" for area in old) or "none"
    why = f"pieces of {areas} km2 in {labels[1]}, of {once} km2 in {labels[0]}"
    why += f"; pieces are more than {apart:g} m apart"
    return [(name, event, why)]


def _pieces(shape: Any, apart: float) -> list[float]:
    """Areas of the pieces of at least 0.01 km2, the largest first, in km2."""
    parts = shapely.get_parts(shape)
    areas = shapely.area(parts) / 1e6
    if len(parts) > 1:
        pairs = shapely.STRtree(parts).query(parts, "dwithin", apart)
        links = coo_array((np.ones(pairs.shape[1], bool), tuple(pairs)), shape=(len(parts),) * 2)
        _, group = connected_components(links, directed=False)
        areas = np.bincount(group, weights=areas)
    kept = areas[areas >= MIN_AREA_KM2 * (1 - 1e-9)]
    return sorted((float(area) for area in kept), reverse=True)


def _advanced(
    name: str, before: Any, after: Any, change: tuple[float, float]
) -> list[tuple[str, str, str]]:
    grown, sigma = change
    if not grown > 2 * sigma or shapely.covers(before, after):
        return []
    beyond = float(shapely.area(shapely.difference(after, before))) / 1e6
    if beyond < MIN_AREA_KM2 * (1 - 1e-9):
        return []
    why = f"grew by {grown:.4f} ± {sigma:.4f} km2, {beyond:.4f} km2 beyond the earlier outline"
    return [(name, "advanced", why)]


def _merged(
    names: Sequence[str], ice: tuple[Ice, Ice], apart: float, labels: tuple[str, str]
) -> list[tuple[str, str, str]]:
    """Glaciers that touch now and were farther apart than outlines can err."""
    before, after = (one.geometry for one in ice)
    both = [name for name in names if name in before and name in after]
    shapes = np.array([after[name] for name in both], dtype=object)
    first, second = shapely.STRtree(shapes).query(shapes, "dwithin", _TOUCH_M)
    found = []
    for i, j in sorted(zip(first.tolist(), second.tolist(), strict=True)):
        gap = shapely.distance(before[both[i]], before[both[j]]) if i != j else 0.0
        if gap > apart:
            why = f"touches {both[j]} in {labels[1]}, {gap:.0f} m apart in {labels[0]}"
            found.append((both[i], "merged", why))
    return found
