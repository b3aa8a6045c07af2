"""One table of scores of many maps: by class, fold, region, size of glacier and share of debris.

Every map is counted once, into one confusion matrix a glacier, and all scores come from these: maps
of any size and number take little memory, and their order does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import ndimage

from catalog.cube import CLASSES, ICE_CLASSES
from catalog.errors import UsageError
from catalog.glaciers import SIZE_CLASSES_KM2
from model_serving.metrics import (
    against_rest,
    class_scores,
    overall_scores,
)

__all__ = [
    "COLUMNS",
    "DEBRIS_SHARES",
    "MARGIN_PX",
    "MapCounts",
    "count_map",
    "glacier_zones",
    "scores",
]

Array = npt.NDArray[Any]

DEBRIS_SHARES = (0.01, 0.1, 0.3, 0.6)
"""Limits between the classes of glaciers by the share of their ice that debris covers."""
COLUMNS = ("scope", "group", "mean", "target", "score", "value", "n")
"""Columns of :func:`scores`."""
MARGIN_PX = 2
"""Ground so near to an outline counts with its glacier."""
_ICE = "ice"
# ^ clean and debris-covered together: what an inventory calls glacier
_TARGETS = {name: (i,) for i, name in enumerate(CLASSES)} | {_ICE: ICE_CLASSES}
_DEBRIS = ICE_CLASSES[1]


@dataclass(frozen=True, slots=True, eq=False)
class MapCounts:
    """What one map and its reference have in common, glacier by glacier."""

    region: str
    season: str
    fold: int
    tables: Array
    """``(glacier + 1, class, class)`` int64, row = reference, column = map; the first is of ground
    that belongs to no glacier."""
    outline_km2: Array
    """``(glacier + 1,)`` area within the reference outlines, seen or not; of the first, 0."""
    pixel_km2: float
    figures: Mapping[str, float] = field(default_factory=dict)
    """Further numbers measured on the whole map, such as the distance of outlines."""
    members: Mapping[str, float] = field(default_factory=dict)
    """IoU of ice of the maps that single members make of the same, by member."""

    @property
    def name(self) -> tuple[str, str, int]:
        """By what maps are told apart and sorted."""
        return (self.region, self.season, self.fold)


def count_map(
    predicted: Array,
    reference: Array,
    *,
    owners: Array,
    pixel_km2: float,
    region: str,
    season: str,
    fold: int,
    margin_px: int = MARGIN_PX,
    zones: Array | None = None,
    figures: Mapping[str, float] | None = None,
    members: Mapping[str, float] | None = None,
) -> MapCounts:
    """Count one map.

    Parameters
    ----------
    predicted, reference : ``(y, x)`` uint8
        Classes; 255 where not seen or not known, which is left out.
    owners : ``(y, x)`` int32
        Glacier of each pixel, from 1; 0 = none.
    pixel_km2
        Area of a pixel.
    region, season, fold
        What the map is of, and the fold that held it out. Where one raster holds several folds,
        count it once for each, with the pixels of the others set to 255.
    margin_px
        Ground so near to an outline is scored with the nearest glacier: else what is mapped beyond
        its outline would count against none.
    zones
        What :func:`glacier_zones` gives, where many maps of one region are counted; then
        ``margin_px`` is not looked at.
    figures
        Numbers measured on the whole map by the caller.
    members
        IoU of ice of each member's own map, measured by the caller.

    Raises
    ------
    UsageError
        Where the rasters differ in shape.
    """
    if not predicted.shape == reference.shape == owners.shape:
        raise UsageError(
            f"map {predicted.shape}, reference {reference.shape} and owners {owners.shape} "
            "differ in shape"
        )
    classes, glaciers = len(CLASSES), int(owners.max(initial=0))
    known = (predicted < classes) & (reference < classes)
    zone = (glacier_zones(owners, margin_px) if zones is None else zones)[known].astype(np.int64)
    # A class of its own for each glacier makes one count of them all.
    index = (zone * classes + reference[known]) * classes + predicted[known]
    tables = np.bincount(index, minlength=(glaciers + 1) * classes**2)
    outline = np.bincount(owners.ravel(), minlength=glaciers + 1) * pixel_km2
    outline[0] = 0.0
    return MapCounts(
        region,
        season,
        fold,
        tables.reshape(glaciers + 1, classes, classes),
        outline,
        pixel_km2,
        dict(figures or {}),
        dict(members or {}),
    )


def glacier_zones(owners: Array, margin_px: int = MARGIN_PX) -> Array:
    """Give ground near an outline to the glacier that is nearest, ``(y, x)`` as ``owners``."""
    if not margin_px or not owners.any():
        return owners
    away, nearest = ndimage.distance_transform_edt(owners == 0, return_indices=True)
    return np.where(away <= margin_px, owners[tuple(nearest)], 0)


def scores(maps: Sequence[MapCounts], *, glaciers: bool = False) -> pd.DataFrame:
    """Score maps, all together and in groups.

    Parameters
    ----------
    maps
        In any order; a glacier that several of them show counts once for each.
    glaciers
        Whether each glacier of each map gets rows of its own.

    Returns
    -------
    DataFrame
        One score a row. ``scope``: ``all``, ``fold``, ``region``, ``season``, ``size_km2``,
        ``debris_share`` or ``glacier``, and ``group`` which of them. ``mean``: ``pixels`` (all
        pixels of the group in one confusion matrix), ``glaciers`` (mean over glaciers, each counts
        alike), ``area`` (mean over glaciers weighted by the area of their outlines), ``maps`` (mean
        of a figure measured on whole maps) or ``members`` (``iou``, each member's mean over maps,
        averaged over members, and ``iou_deviation``, its standard deviation over them; only where
        the same members made all maps of the group, as those that share a fold do). ``target``: a
        class, ``ice`` (clean and debris-covered), or ``all`` classes. ``score``: see
        :mod:`model_serving.metrics`; and ``reference_km2``, ``mapped_km2``, ``bias_km2`` and
        ``bias_percent`` of areas. ``value`` is NaN where there is nothing to measure on. ``n``: how
        many glaciers (in ``pixels``: and pieces of ground without glacier), maps or members have a
        value.

    Raises
    ------
    UsageError
        Where there is no map, or one is there twice.
    """
    ordered = sorted(maps, key=lambda m: m.name)
    names = [m.name for m in ordered]
    if not names or len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise UsageError(f"every map is to be counted once; found {len(names)}, twice: {twice}")
    cases = _Cases.of(ordered)
    rows: list[tuple[Any, ...]] = []
    for scope, groups in _groups(cases).items():
        for group, of in groups.items():
            rows += ((scope, group, *row) for row in _pooled(cases.chosen(of)))
            rows += ((scope, group, *row) for row in _averaged(cases.chosen(of & cases.is_glacier)))
            if scope in ("all", "fold", "region", "season"):
                rows += ((scope, group, *row) for row in _figures(cases.maps(of)))
                rows += ((scope, group, *row) for row in _members(cases.maps(of)))
    if glaciers:
        rows += _each(cases.chosen(cases.is_glacier))
    return pd.DataFrame(rows, columns=list(COLUMNS))


@dataclass(frozen=True, slots=True, eq=False)
class _Cases:
    """Glaciers of maps, and ground that belongs to none, one after the other."""

    ordered: Sequence[MapCounts]
    which: Array
    """``(case,)`` index of the map."""
    glacier: Array
    """``(case,)`` number within the map, 0 = ground that belongs to no glacier."""
    tables: Array
    """``(case, class, class)``."""
    outline_km2: Array
    pixel_km2: Array

    @classmethod
    def of(cls, ordered: Sequence[MapCounts]) -> _Cases:
        counts = [len(m.tables) for m in ordered]
        return cls(
            ordered,
            np.repeat(np.arange(len(ordered)), counts),
            np.concatenate([np.arange(n) for n in counts]),
            np.concatenate([m.tables for m in ordered]),
            np.concatenate([m.outline_km2 for m in ordered]),
            np.repeat([m.pixel_km2 for m in ordered], counts),
        )

    def chosen(self, of: Array) -> _Cases:
        columns = (self.which, self.glacier, self.tables, self.outline_km2, self.pixel_km2)
        return _Cases(self.ordered, *(column[of] for column in columns))

    def maps(self, of: Array) -> list[MapCounts]:
        return [self.ordered[i] for i in np.unique(self.which[of])]

    @property
    def is_glacier(self) -> Array:
        """Glaciers of which something was seen."""
        return np.asarray((self.glacier > 0) & (self.tables.sum(axis=(1, 2)) > 0))

    @property
    def debris_share(self) -> Array:
        """Of the reference's ice that was seen; NaN where there is none."""
        of_class = self.tables.sum(axis=2)
        ice = of_class[:, list(ICE_CLASSES)].sum(axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(of_class[:, _DEBRIS] / ice)


def _groups(cases: _Cases) -> dict[str, dict[str, Array]]:
    """Name the groups of each scope, and which cases belong to them."""

    def by(values: Sequence[Any]) -> dict[str, Array]:
        mine = np.asarray(values)[cases.which]
        return {str(v): mine == v for v in sorted(set(values))}

    return {
        "all": {"all": np.ones(len(cases.which), bool)},
        "fold": by([m.fold for m in cases.ordered]),
        "region": by([m.region for m in cases.ordered]),
        "season": by([m.season for m in cases.ordered]),
        "size_km2": _between(cases.outline_km2, SIZE_CLASSES_KM2, cases.is_glacier, math.inf),
        "debris_share": _between(cases.debris_share, DEBRIS_SHARES, cases.is_glacier, 1.0),
    }


def _between(values: Array, limits: Sequence[float], used: Array, most: float) -> dict[str, Array]:
    """Cases between neighbouring limits, the lower one included; classes without any left out."""
    edges = (0.0, *limits, most)
    index = np.searchsorted(limits, values, side="right")
    groups = {}
    for i in range(len(edges) - 1):
        of = used & np.isfinite(values) & (index == i)
        if of.any():
            groups[f"{edges[i]:g}-{edges[i + 1]:g}"] = of
    return groups


def _areas(table: Array, pixel_km2: Array) -> dict[str, Array]:
    """Areas of a class from tables ``(case, 2, 2)`` of it against the rest, km2."""
    true = table[:, 1].sum(axis=1) * pixel_km2
    mapped = table[:, :, 1].sum(axis=1) * pixel_km2
    return _biases(true, mapped)


def _biases(true: Array, mapped: Array) -> dict[str, Array]:
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = np.where(true > 0, 100 * (mapped - true) / true, np.nan)
    return {
        "reference_km2": true,
        "mapped_km2": mapped,
        "bias_km2": mapped - true,
        "bias_percent": percent,
    }


def _scored(cases: _Cases, target: str) -> dict[str, Array]:
    """Scores and areas of one target in each case, ``(case,)``."""
    table = against_rest(cases.tables, _TARGETS[target])
    each = {name: values[..., 1] for name, values in class_scores(table).items()}
    return each | _areas(table, cases.pixel_km2)


def _pooled(cases: _Cases) -> Iterator[tuple[Any, ...]]:
    count = len(cases.which)
    whole = cases.tables.sum(axis=0)
    for name, value in overall_scores(whole).items():
        yield "pixels", "all", name, float(value), count
    for target, classes in _TARGETS.items():
        table = against_rest(whole, classes)
        areas = _areas(against_rest(cases.tables, classes), cases.pixel_km2)
        sums = _biases(areas["reference_km2"].sum(), areas["mapped_km2"].sum())
        found = {name: values[1] for name, values in class_scores(table).items()} | sums
        for name, value in found.items():
            yield "pixels", target, name, float(value), count


def _averaged(cases: _Cases) -> Iterator[tuple[Any, ...]]:
    for target in _TARGETS:
        for name, values in _scored(cases, target).items():
            good = np.isfinite(values)
            found, area = values[good], cases.outline_km2[good]
            for mean, weights in (("glaciers", np.ones_like(area)), ("area", area)):
                total = weights.sum()
                value = float((found * weights).sum() / total) if total else math.nan
                yield mean, target, name, value, found.size


def _figures(maps: Sequence[MapCounts]) -> Iterator[tuple[Any, ...]]:
    for name in sorted({name for m in maps for name in m.figures}):
        values = np.array([m.figures.get(name, math.nan) for m in maps], float)
        good = values[np.isfinite(values)]
        yield "maps", _ICE, name, float(good.mean()) if good.size else math.nan, good.size


def _members(maps: Sequence[MapCounts]) -> Iterator[tuple[Any, ...]]:
    names = {tuple(sorted(m.members)) for m in maps}
    if len(names) > 1 or len(min(names)) < 2:
        return
    each = [[m.members[name] for name in min(names)] for m in maps]
    measured = np.array([row for row in each if np.isfinite(row).all()])
    count = measured.shape[-1] if len(measured) else 0
    means = measured.mean(axis=0) if count else np.full(2, math.nan)
    yield "members", _ICE, "iou", float(means.mean()), count
    yield "members", _ICE, "iou_deviation", float(means.std(ddof=1)), count


def _each(cases: _Cases) -> Iterator[tuple[Any, ...]]:
    names = [
        f"{cases.ordered[i].region}/{cases.ordered[i].season}/{glacier}"
        for i, glacier in zip(cases.which, cases.glacier, strict=True)
    ]
    for target in _TARGETS:
        found = _scored(cases, target) | {"outline_km2": cases.outline_km2}
        for name, values in found.items():
            for group, value in zip(names, values, strict=True):
                yield "glacier", group, "pixels", target, name, float(value), 1
