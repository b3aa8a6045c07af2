"""Regional cross-validation over the glaciers of an inventory: who is held out when.

One law: glaciers that touch are one complex, and a complex lies in one fold.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from catalog.cube import Workspace
from catalog.errors import UsageError
from catalog.grid import region_grid

__all__ = [
    "BUFFER_M",
    "FOLDS",
    "JOIN_M",
    "METHODS",
    "VALIDATION_SHARE",
    "WINDOW_M",
    "FoldedGlacier",
    "GlacierFolds",
    "barrier_for",
    "divide_glaciers",
    "equal_area",
    "read_folds",
]

FOLDS = "folds.json"
METHODS = ("blocks", "slabs")
WINDOW_M = 192 * 20.0 * 1.5
# ^ the largest training window: 192 pixels of 20 m, shown 1.5 times as wide
BUFFER_M = 500.0
# ^ ground that belongs to a glacier: ice mapped there by error is that glacier's error
VALIDATION_SHARE = 0.1
JOIN_M = 60.0
# ^ two Landsat pixels: glaciers that touch are often drawn apart, either outline off by a pixel
_FORMAT = 1

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class FoldedGlacier:
    """One glacier of the inventory and where it stands in the cross-validation."""

    ref_id: str
    fold: int
    """The fold that holds it out, from 0."""
    complex: int
    """Number of its complex: glaciers that touch, directly or through others."""
    area_km2: float


@dataclass(frozen=True, slots=True)
class GlacierFolds:
    """Which fold holds out which glacier, and how far training keeps away from it.

    Raises
    ------
    UsageError
        ``fold-leak`` where a glacier or a complex lies in two folds, where a glacier that is held
        out validates, or where the barrier is not wider than a window; ``fold-empty`` where a fold
        holds out nothing; ``folds-damaged`` where a number is out of range.
    """

    method: str
    folds: int
    window_m: float
    """Edge of the widest training window."""
    barrier_m: float
    """Training windows stay farther than this from the ground of held-out glaciers."""
    buffer_m: float
    """Ground around a glacier that belongs to it."""
    validation_share: float
    """Share of ice that validates: of the training side (blocks), of all (slabs)."""
    inventory: str
    """Checksum of the inventory's ids and areas."""
    glaciers: tuple[FoldedGlacier, ...]
    """Sorted by ``ref_id``."""
    validation: tuple[tuple[str, ...], ...]
    """Of each fold the glaciers by which its training is stopped; none, where none lies far
    enough from those held out."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_whole(self)
        _check_validation(self)

    @property
    def fold_of(self) -> dict[str, int]:
        """Glacier -> fold."""
        return {g.ref_id: g.fold for g in self.glaciers}

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the inventory's ice area that each fold holds out."""
        held = [math.fsum(g.area_km2 for g in self.glaciers if g.fold == f) for f in self._all]
        return tuple(area / math.fsum(held) for area in held)

    @property
    def largest_complex_share(self) -> float:
        """Share of ice of the largest complex: no fold of blocks is farther from ``1 / folds``."""
        areas: dict[int, float] = {}
        for glacier in self.glaciers:
            areas[glacier.complex] = areas.get(glacier.complex, 0.0) + glacier.area_km2
        return max(areas.values()) / math.fsum(areas.values())

    @property
    def split_complexes(self) -> tuple[tuple[str, ...], ...]:
        """Complexes with glaciers in more than one fold; none but with slabs."""
        members: dict[int, list[FoldedGlacier]] = {}
        for glacier in self.glaciers:
            members.setdefault(glacier.complex, []).append(glacier)
        return tuple(
            tuple(g.ref_id for g in group)
            for _, group in sorted(members.items())
            if len({g.fold for g in group}) > 1
        )

    def held_out(self, fold: int) -> frozenset[str]:
        """Glaciers that the members of a fold never see.

        Raises
        ------
        UsageError
            Where there is no such fold.
        """
        self._check_fold(fold)
        return frozenset(g.ref_id for g in self.glaciers if g.fold == fold)

    def validating(self, fold: int) -> frozenset[str]:
        """Glaciers of the training side by which the training of a fold is stopped.

        Raises
        ------
        UsageError
            Where there is no such fold.
        """
        self._check_fold(fold)
        return frozenset(self.validation[fold])

    def neighbours(self, fold: int) -> frozenset[str]:
        """Glaciers that share a complex with a held-out one and are not held out themselves."""
        held = self.held_out(fold)
        complexes = {g.complex for g in self.glaciers if g.ref_id in held}
        return frozenset(g.ref_id for g in self.glaciers if g.complex in complexes) - held

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"format": _FORMAT} | asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> GlacierFolds:
        """Rebuild from :meth:`to_dict` or its JSON.

        Raises
        ------
        UsageError
            ``folds-damaged`` where something is missing or cannot be understood, and as the
            class itself.
        """
        try:
            _check_format(values["format"])
            rest = {k: v for k, v in values.items() if k != "format"}
            return cls(
                **rest
                | {
                    "glaciers": tuple(FoldedGlacier(**g) for g in values["glaciers"]),
                    "validation": tuple(tuple(v) for v in values["validation"]),
                }
            )
        except KeyError as error:
            raise UsageError(f"the folds lack {error}", kind="folds-damaged") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise UsageError(f"these are no folds: {error}", kind="folds-damaged") from error

    def save(self, folder: Path | str) -> None:
        """Write :data:`FOLDS` into a folder, in place of what is there."""
        text = json.dumps(self.to_dict(), indent=1, sort_keys=True)
        Workspace(folder).put(FOLDS, text.encode() + b"\n")

    @property
    def _all(self) -> range:
        return range(self.folds)

    def _check_fold(self, fold: int) -> None:
        if fold not in self._all:
            raise UsageError(f"there is no fold {fold}; the inventory has 0 to {self.folds - 1}")


def _check_format(found: Any) -> None:
    if found != _FORMAT:
        raise ValueError(f"format is {found!r}, this engine reads {_FORMAT}")


def _check_numbers(folds: GlacierFolds) -> None:
    numbers = {
        "window_m": folds.window_m,
        "barrier_m": folds.barrier_m,
        "buffer_m": folds.buffer_m,
        "validation_share": folds.validation_share,
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e7:
            raise _damaged(f"{name} is {value!r}")
    if not isinstance(folds.folds, int) or folds.folds < 2 or folds.method not in METHODS:
        raise _damaged(
            f"found {folds.folds!r} folds by method {folds.method!r}; there are at least two, "
            f"by one of {', '.join(METHODS)}"
        )
    if folds.barrier_m <= folds.window_m:
        raise UsageError(
            f"a barrier of {folds.barrier_m:g} m is not wider than a training window of "
            f"{folds.window_m:g} m: a window beside it could reach a held-out glacier",
            kind="fold-leak",
        )
    if len(folds.validation) != folds.folds:
        raise _damaged(f"{folds.folds} folds have {len(folds.validation)} lists of validation")


def _check_whole(folds: GlacierFolds) -> None:
    """Every glacier in one fold, every fold with glaciers, every complex in one piece."""
    seen: dict[str, int] = {}
    for glacier in folds.glaciers:
        if not isinstance(glacier.fold, int) or not 0 <= glacier.fold < folds.folds:
            raise _damaged(f"glacier {glacier.ref_id} lies in fold {glacier.fold!r}")
        if not isinstance(glacier.area_km2, int | float) or not 0 < glacier.area_km2 < 1e8:
            raise _damaged(f"glacier {glacier.ref_id} has {glacier.area_km2!r} km2")
        if glacier.ref_id in seen:
            raise UsageError(
                f"glacier {glacier.ref_id} lies in two folds, {seen[glacier.ref_id]} and "
                f"{glacier.fold}: a glacier is held out once",
                kind="fold-leak",
            )
        seen[glacier.ref_id] = glacier.fold
    empty = sorted(set(range(folds.folds)) - set(seen.values()))
    if empty:
        raise UsageError(
            f"fold {empty[0]} of {folds.folds} holds out no glacier: take fewer folds",
            kind="fold-empty",
        )
    if folds.method == "blocks" and folds.split_complexes:
        torn = folds.split_complexes[0]
        raise UsageError(
            f"the complex of glaciers {', '.join(torn[:4])} lies in folds "
            f"{', '.join(map(str, sorted({seen[g] for g in torn})))}: glaciers that touch are "
            "held out together",
            kind="fold-leak",
        )


def _check_validation(folds: GlacierFolds) -> None:
    known = folds.fold_of
    for fold, names in enumerate(folds.validation):
        strange = sorted(set(names) - known.keys())
        if strange:
            raise _damaged(f"fold {fold} validates on {strange[0]!r}, which is in no fold")
        inside = sorted(name for name in names if known[name] == fold)
        if inside:
            raise UsageError(
                f"glacier {inside[0]} validates fold {fold}, which holds it out: what chooses a "
                "member must not be what judges it",
                kind="fold-leak",
            )


def _damaged(fault: str) -> UsageError:
    return UsageError(f"these are no folds: {fault}", kind="folds-damaged")


def read_folds(path: Path | str) -> GlacierFolds:
    """Read what :meth:`GlacierFolds.save` wrote.

    Parameters
    ----------
    path
        The file, or the folder in which :data:`FOLDS` lies.

    Raises
    ------
    UsageError
        Where there is no such file (``folds-missing``), or as :meth:`GlacierFolds.from_dict`.
    """
    path = Path(path)
    file = path if path.suffix == ".json" else path / FOLDS
    data = Workspace(file.parent).get(file.name)
    if data is None:
        raise UsageError(f"there are no folds at {file}", kind="folds-missing")
    try:
        return GlacierFolds.from_dict(json.loads(data))
    except ValueError as error:
        raise UsageError(f"{file} is no JSON: {error}", kind="folds-damaged") from error
    except UsageError as error:
        raise UsageError(f"{file}: {error}", kind=error.kind) from error


def barrier_for(window_m: float) -> float:
    """Width of the barrier for a window: its diagonal, metres.

    A window that holds a pixel of a held-out glacier reaches no farther than its diagonal, so it
    shares no pixel with a window behind the barrier.
    """
    return math.sqrt(2) * window_m * (1 + 1e-6)


def equal_area(frame: gpd.GeoDataFrame) -> gpd.GeoSeries:
    """Outlines in metres, in the equal-area projection that is centred on them.

    Raises
    ------
    UsageError
        Where they span more than a quarter of the globe: divide such inventories by region.
    """
    lonlat = shapely.get_coordinates(frame.geometry.to_numpy())
    return frame.geometry.to_crs(region_grid(lonlat[:, 0], lonlat[:, 1]).proj4)


def divide_glaciers(
    frame: gpd.GeoDataFrame,
    *,
    folds: int = 5,
    method: str = "blocks",
    window_m: float = WINDOW_M,
    barrier_m: float | None = None,
    buffer_m: float = BUFFER_M,
    validation_share: float = VALIDATION_SHARE,
) -> GlacierFolds:
    """Divide the glaciers of an inventory into folds of similar ice area.

    Parameters
    ----------
    frame
        ``ref_id`` and outlines in EPSG:4326, see :func:`catalog.glaciers.read_reference`; the order
        of its rows does not matter.
    folds
        How many.
    method
        ``blocks``: recursive coordinate bisection (Berger and Bokhari 1987, IEEE Transactions on
        Computers C-36, 570-580) of whole complexes by ice area, across the longer side of what is
        left to cut; see :func:`_blocks` for its bound. ``slabs``: glaciers in strips from east to
        west, the split of DL4GAM, for comparison: it cuts complexes.
    window_m
        Edge of the widest training window.
    barrier_m
        Training windows stay farther than this from held-out ground; by default
        :func:`barrier_for` the window.
    buffer_m
        Ground around a glacier that belongs to it.
    validation_share
        Share of ice that validates.

    Raises
    ------
    UsageError
        Where ids are not unique, there are fewer complexes than folds (``fold-empty``), or as
        :class:`GlacierFolds`.
    """
    if method not in METHODS:
        raise UsageError(f"there is no method {method!r}; known are {', '.join(METHODS)}")
    if folds < 2:
        raise UsageError(f"cross-validation needs at least two folds, asked for {folds}")
    doubled = frame["ref_id"][frame["ref_id"].duplicated()]
    if len(doubled):
        raise UsageError(f"glacier {doubled.iloc[0]} stands twice in the inventory")
    frame = frame.sort_values("ref_id", ignore_index=True)
    ref_ids = frame["ref_id"].astype(str).to_numpy()
    shapes = equal_area(frame).to_numpy()
    km2 = shapely.area(shapes) / 1e6
    complexes = _complexes(shapes)
    barrier_m = barrier_for(window_m) if barrier_m is None else barrier_m
    if method == "blocks":
        fold_of = _block_folds(shapes, km2, complexes, folds=folds)
        validating = [
            _validation_block(
                shapes,
                km2,
                complexes,
                held=fold_of == fold,
                away_m=barrier_m + 2 * buffer_m,
                share=validation_share,
            )
            for fold in range(folds)
        ]
    else:
        east = frame.geometry.bounds["maxx"].to_numpy()
        fold_of, validating = _slabs(east, km2, folds=folds, share=validation_share)
    return GlacierFolds(
        method=method,
        folds=folds,
        window_m=float(window_m),
        barrier_m=float(barrier_m),
        buffer_m=float(buffer_m),
        validation_share=float(validation_share),
        inventory=_fingerprint(ref_ids, km2),
        glaciers=tuple(
            FoldedGlacier(str(name), int(fold), int(number), round(float(area), 6))
            for name, fold, number, area in zip(ref_ids, fold_of, complexes, km2, strict=True)
        ),
        validation=tuple(tuple(str(name) for name in ref_ids[mask]) for mask in validating),
    )


def _fingerprint(ref_ids: Array, km2: Array) -> str:
    rows = [f"{name} {area:.6f}" for name, area in zip(ref_ids, km2, strict=True)]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def _complexes(shapes: Array) -> npt.NDArray[np.intp]:
    """Number of each glacier's complex, counted in the order of the glaciers."""
    one, other = shapely.STRtree(shapes).query(shapes, "dwithin", JOIN_M)
    touching = coo_array((np.ones(len(one)), (one, other)), shape=(len(shapes), len(shapes)))
    _, label = connected_components(touching, directed=False)
    _, first = np.unique(label, return_index=True)
    return np.asarray(np.argsort(np.argsort(first))[label])


def _block_folds(shapes: Array, km2: Array, complexes: Array, *, folds: int) -> Array:
    count = int(complexes.max()) + 1
    if count < folds:
        raise UsageError(
            f"{folds} folds need as many glacier complexes, the inventory has {count}: take fewer "
            "folds or a larger inventory",
            kind="fold-empty",
        )
    ice, centres = _weighed(shapes, km2, complexes)
    return _blocks(centres, ice, folds=folds)[complexes]


def _weighed(shapes: Array, km2: Array, complexes: Array) -> tuple[Array, Array]:
    """Ice area of each complex, km2, and its centre of area ``(complex, xy)``, metres."""
    ice = np.bincount(complexes, km2)
    points = shapely.get_coordinates(shapely.centroid(shapes))
    sums = [np.bincount(complexes, km2 * points[:, i]) for i in (0, 1)]
    return ice, np.column_stack(sums) / ice[:, None]


def _blocks(centres: Array, ice: Array, *, folds: int) -> npt.NDArray[np.intp]:
    """Fold of each complex by recursive bisection.

    A part that is to become ``n`` folds holds ``n`` shares of ice and an error. It is cut where its
    first half comes nearest to its own shares and half the error. The cut misses that place by at
    most half of the largest complex, so with an error of at most one largest complex in the part,
    each half has no more either: no fold is farther from its share than the largest complex.
    """
    fold_of = np.zeros(len(ice), np.intp)
    share = ice.sum() / folds
    waiting = [(np.arange(len(ice)), 0, folds)]
    while waiting:
        part, first, count = waiting.pop()
        if count == 1:
            fold_of[part] = first
            continue
        half = count // 2
        along = int(np.ptp(centres[part], axis=0).argmax())
        order = part[np.lexsort((part, centres[part, 1 - along], centres[part, along]))]
        taken = np.cumsum(ice[order])
        wanted = half * share + (taken[-1] - count * share) / 2
        allowed = slice(half - 1, len(part) - (count - half))
        # ^ no fold must go empty: as many complexes on either side as folds
        cut = half + int(np.abs(taken[allowed] - wanted).argmin())
        waiting += [(order[:cut], first, half), (order[cut:], first + half, count - half)]
    return fold_of


def _validation_block(
    shapes: Array, km2: Array, complexes: Array, *, held: Array, away_m: float, share: float
) -> npt.NDArray[np.bool_]:
    """Choose the glaciers that validate beside a held-out block, behind the barrier.

    The complex that is nearest to the held-out glaciers, but farther than ``away_m``, begins;
    others join in the order of their distance from it wherever that brings the share nearer. So
    validation is one patch, and the barrier around it costs training little.
    """
    near = shapely.STRtree(shapes[held]).query_nearest(
        shapes, return_distance=True, all_matches=False
    )[1]
    gap = np.full(int(complexes.max()) + 1, np.inf)
    np.minimum.at(gap, complexes, near)
    ice, centres = _weighed(shapes, km2, complexes)
    wanted = share * km2[~held].sum()
    candidates = np.flatnonzero((gap > away_m) & (ice < 2 * wanted))
    if not len(candidates):
        return np.zeros(len(km2), bool)
    start = candidates[gap[candidates].argmin()]
    away = np.hypot(*(centres[candidates] - centres[start]).T)
    chosen, total = [], 0.0
    for number in candidates[np.lexsort((candidates, away))]:
        if abs(total + ice[number] - wanted) < abs(total - wanted):
            chosen.append(number)
            total += ice[number]
    return np.isin(complexes, chosen)


def _slabs(
    east: Array, km2: Array, *, folds: int, share: float
) -> tuple[npt.NDArray[np.intp], list[npt.NDArray[np.bool_]]]:
    """Folds and validation glaciers of strips from east to west, after DL4GAM.

    Glaciers are sorted by their eastern edge; ``F`` is the cumulative share of area, and fold ``i``
    holds ``F`` from ``i / folds`` on. Validation is the strip beside it: past the first fold,
    before the last, half on either side of the others.
    """
    order = np.lexsort((np.arange(len(east)), -east))
    reached = np.empty(len(east))
    reached[order] = np.cumsum(km2[order]) / km2.sum()
    reached = np.minimum(reached, 1 - 1e-9)
    fold_of = np.asarray((reached * folds).astype(np.intp))
    validating = []
    for fold in range(folds):
        start, end = fold / folds, (fold + 1) / folds
        before = {0: 0.0, folds - 1: share}.get(fold, share / 2)
        after = {0: share, folds - 1: 0.0}.get(fold, share / 2)
        beside = (reached >= start - before) & (reached < end + after)
        validating.append(beside & (fold_of != fold))
    return fold_of, validating
