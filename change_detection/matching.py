"""Whose ice is whose, from outlines to outlines: the divides of the first date are kept.

One law: every square metre of a later outline goes to exactly one glacier.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from catalog.glaciers import polygons_of
from change_detection.epochs import Epoch, Problem, Series

__all__ = ["Ice", "share_out"]

_KNOWN_SHARE = 0.1
# ^ an outline that lies less than this on known glaciers is another glacier's
_NAMED_KM2 = 0.01
_NAMED_SHARE = 0.05
# ^ an outline that covers this much of a second glacier is told of; less is drawing
_TOUCH_M = 0.05
# ^ pieces cut from one outline share vertices but for rounding


@dataclass(frozen=True, slots=True)
class Ice:
    """Whose ice there is at one date, in the series' projection."""

    geometry: dict[str, shapely.Geometry]
    """Valid, normalised Polygon or MultiPolygon of each glacier that has ice; disjoint."""
    day: dict[str, float]
    """Day of the outline that gave the glacier most of its ice; NaN unknown."""
    outlines: dict[str, tuple[str, ...]]
    """Ids of the outlines that the ice was taken from."""


@dataclass(frozen=True, slots=True)
class _Outline:
    ident: str
    day: float
    geometry: shapely.Geometry


def share_out(series: Series, *, by_id: bool) -> tuple[list[Ice], dict[str, int], list[Problem]]:
    """Give the ice of every date to the glaciers of the first, and to new ones.

    Ice inside an outline of the first date is that glacier's, whatever the later file calls it.
    Ice beyond goes, piece by piece, to the glacier whose part of the same later outline it shares
    the longest border with; a piece on its own goes to the glacier of that id (``by_id``), or to
    the one that the later outline covers most of. A later outline with less than a tenth of its
    area on known glaciers is a glacier of its own: the known one of that id (``by_id``), or a new
    one, which keeps its ground from then on.

    Parameters
    ----------
    series
        Clean outlines in the order of time.
    by_id
        Whether ids mean the same glacier in all files.

    Returns
    -------
    tuple
        The ice of each date; the date at which each glacier is first seen, by id; and problems.
    """
    first = series.epochs[0]
    ground = dict(zip(first.frame["glacier_id"], first.frame.geometry, strict=True))
    days = dict(zip(first.frame["glacier_id"], first.frame["day"], strict=True))
    known = dict.fromkeys(ground, 0)
    shared = [Ice(dict(ground), days, {name: (name,) for name in ground})]
    problems: list[Problem] = []
    for number, epoch in enumerate(series.epochs[1:], 1):
        ice = _share_one(epoch, ground, known, by_id=by_id, problems=problems)
        for name in ice.geometry.keys() - known.keys():
            known[name] = number
            ground[name] = ice.geometry[name]
        shared.append(ice)
    return shared, known, problems


def _share_one(
    epoch: Epoch,
    ground: Mapping[str, Any],
    known: Mapping[str, int],
    *,
    by_id: bool,
    problems: list[Problem],
) -> Ice:
    names = sorted(ground)
    shapes = np.array([ground[name] for name in names], dtype=object)
    tree = shapely.STRtree(shapes)
    pieces: dict[str, list[tuple[float, float, str, Any]]] = defaultdict(list)
    used = set(known)
    for ident, day, geometry in zip(
        epoch.frame["glacier_id"], epoch.frame["day"], epoch.frame.geometry, strict=True
    ):
        outline = _Outline(ident, day, geometry)
        near = np.sort(tree.query(geometry, "intersects"))
        parts = _on_ground(geometry, [names[i] for i in near], shapes[near])
        own = ident if by_id and ident in known else None
        new = "" if own else _free_name(ident, used, by_id)
        divided = _divide(outline, parts, own=own, new=new)
        _tell(epoch, outline, parts, divided, own=own, by_id=by_id, problems=problems)
        used |= divided.keys()
        for name, part in divided.items():
            pieces[name].append((-part.area, day, ident, part))
    geometry, days, outlines = {}, {}, {}
    for name in sorted(pieces):
        mine = sorted(pieces[name], key=lambda piece: (piece[0], piece[2]))
        geometry[name] = _joined([part for *_, part in mine])
        days[name] = mine[0][1]
        outlines[name] = tuple(sorted(ident for _, _, ident, _ in mine))
    if by_id:
        _tell_missing(epoch, outlines, problems)
    return Ice(geometry, days, outlines)


def _on_ground(geometry: Any, names: list[str], shapes: Any) -> dict[str, Any]:
    """Parts of an outline on each known glacier's ground; the outline itself where it is inside."""
    for name, shape in zip(names, shapes, strict=True):
        if shapely.covers(shape, geometry):
            return {name: geometry}
    cut = shapely.intersection(shapes, geometry)
    found = {name: polygons_of(part) for name, part in zip(names, cut, strict=True)}
    return {name: part for name, part in found.items() if part is not None and part.area > 0}


def _divide(
    outline: _Outline, parts: Mapping[str, Any], *, own: str | None, new: str
) -> dict[str, Any]:
    """Divide one outline among the glaciers on whose ground it lies, and itself."""
    inside = sum(part.area for part in parts.values())
    whole = outline.geometry.area
    apart = inside < _KNOWN_SHARE * whole
    if not apart and len(parts) == 1:
        return {next(iter(parts)): outline.geometry}
    if not parts:
        return {own or new: outline.geometry}
    known = shapely.union_all(list(parts.values()))
    rest = polygons_of(shapely.difference(outline.geometry, known))
    divided = {name: [part] for name, part in parts.items()}
    if rest is not None:
        lone = own or (new if apart else max(parts, key=lambda name: (parts[name].area, name)))
        borders = {} if apart else {n: shapely.buffer(p, _TOUCH_M) for n, p in parts.items()}
        for piece in shapely.get_parts(shapely.normalize(rest)):
            divided.setdefault(_neighbour(piece, borders) or lone, []).append(piece)
    return {name: _joined(pieces) for name, pieces in divided.items()}


def _neighbour(piece: Any, borders: Mapping[str, Any]) -> str | None:
    """Name whose border the piece shares most of; None where it touches none."""
    lengths = {
        name: shapely.length(shapely.intersection(piece.boundary, around))
        for name, around in borders.items()
        if shapely.intersects(piece, around)
    }
    return max(sorted(lengths), key=lambda name: lengths[name], default=None)


def _joined(pieces: list[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    return shapely.normalize(polygons_of(shapely.union_all(pieces)))


def _free_name(ident: str, used: set[str], by_id: bool) -> str:
    """Name of a new glacier: its own, or with a number where another glacier has it."""
    if by_id or ident not in used:
        return ident
    number = 2
    while f"{ident} ({number})" in used:
        number += 1
    return f"{ident} ({number})"


def _tell(
    epoch: Epoch,
    outline: _Outline,
    parts: Mapping[str, Any],
    divided: Mapping[str, Any],
    *,
    own: str | None,
    by_id: bool,
    problems: list[Problem],
) -> None:
    """Name outlines that do not show the glacier that their id or place promises."""
    source = f"{epoch.label}: {epoch.source}"
    large = [
        name
        for name, part in parts.items()
        if part.area / 1e6 >= _NAMED_KM2 and part.area >= _NAMED_SHARE * outline.geometry.area
    ]
    if len(large) > 1:
        found = f"one outline covers {_areas({name: parts[name] for name in large})}"
        done = "cut at the divides of the first date"
        problems.append(Problem(source, outline.ident, "undivided", found, done))
    done = f"its ice went to {_areas(divided)}"
    if own is not None:
        share = parts[own].area / outline.geometry.area if own in parts else 0.0
        kept = divided[own].area / outline.geometry.area if own in divided else 0.0
        found = f"{share:.0%} of it lies on the ground of the glacier of that id"
        if share < 0.5:
            kind = "little-overlap" if kept >= 0.5 else "id-elsewhere"
            problems.append(Problem(source, outline.ident, kind, found, done))
    elif by_id and outline.ident not in divided:
        found = "no earlier glacier has this id, but others lie there"
        problems.append(Problem(source, outline.ident, "id-unknown", found, done))


def _tell_missing(
    epoch: Epoch, outlines: Mapping[str, tuple[str, ...]], problems: list[Problem]
) -> None:
    """Name glaciers whose ice is there under other ids."""
    ids = set(epoch.frame["glacier_id"])
    for name in sorted(outlines.keys() - ids):
        found = f"its id is missing, but outlines {', '.join(outlines[name])} lie on its ground"
        problem = Problem(
            f"{epoch.label}: {epoch.source}", name, "id-missing", found, "their ice counted as its"
        )
        problems.append(problem)


def _areas(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{n} {shape.area / 1e6:.3f} km2" for n, shape in sorted(shapes.items()))
