"""The leak audit: whether anything that was held out took part in making a member.

One law: a leak is told with its evidence, and what could not be looked at is told as well. Nothing
is believed that pixels can show: statistics are computed again, windows are laid on the map.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import Workspace
from catalog.errors import UsageError
from model_serving.ensemble import CARD
from model_serving.fold_pixels import distance_m
from model_serving.folds import TrainingRegion
from model_serving.glacier_folds import (
    FOLDS,
    JOIN_M,
    WINDOW_M,
    GlacierFolds,
    barrier_for,
    read_folds,
)
from model_serving.leak_case import Case
from model_serving.leak_pixels import (
    class_counts,
    content_keys,
    label_like_name,
    label_targets,
    normalisation,
    one_channel_agreement,
    place_of,
    pooled,
    shared_keys,
)
from model_serving.training_record import Ground, Training, Window, grounds_of, trainings_of

__all__ = [
    "KINDS",
    "Audit",
    "Leak",
    "audit",
    "audit_ensemble",
    "refuse_leaks",
]

KINDS = {
    "label-like-channel": "an input channel holds the labels or the outlines",
    "held-out-pixels": "a training window holds held-out pixels",
    "held-out-neighbour": "a glacier of a held-out complex was trained on",
    "barrier": "training comes nearer to held-out ground than the barrier",
    "normalisation": "means and deviations are not those of the training pixels",
    "class-weights": "class weights are not those of the training pixels",
    "duplicate": "the same pixels are trained on and held out",
    "validation": "what chose the member is held out, or was trained on",
    "trained-on-held-out": "the card names a held-out region as trained on",
    "tuned-on-held-out": "an offset or a calibration was chosen on held-out ground",
}
"""What the audit looks for; the names never change their meaning."""

_SAME = 1e-3
# ^ of a standard deviation, or of all pixels: cards round, and pixels are stored in half precision

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, order=True)
class Leak:
    """One finding."""

    kind: str
    """One of :data:`KINDS`."""
    member: str
    """Member, or members of one fold, that are concerned."""
    where: str
    """Channel, region, glacier or window."""
    evidence: str
    """What was found, in a sentence with its figures."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found and what it could not look at."""

    leaks: tuple[Leak, ...]
    unseen: Mapping[str, str]
    """Kind -> why it was looked at not at all or in part only."""


def audit(
    trainings: Sequence[Training],
    *,
    regions: Sequence[TrainingRegion] = (),
    glacier_folds: GlacierFolds | None = None,
    grounds: Sequence[Ground] = (),
    barrier_m: float | None = None,
    fresh: Sequence[str] = (),
    parts: Mapping[int, Sequence[str]] | None = None,
) -> list[Leak]:
    """Look for everything held out that took part in making the members.

    Parameters
    ----------
    trainings
        What each member was made from.
    regions
        Regions that are held out whole, with their folds.
    glacier_folds
        Folds of glaciers; they rule in every region that is not in ``regions``.
    grounds
        Pixels of the regions, as far as there are any.
    barrier_m
        Least distance of training from held-out ground; by default that of the folds of glaciers,
        else :func:`barrier_for` the widest training window.
    fresh
        Regions on which the uncertainty was measured: no member may have seen them.
    parts
        Fold -> glaciers that it holds out of a region that was fine-tuned on.

    Returns
    -------
    list of Leak
        Sorted; empty where nothing was found.
    """
    if barrier_m is None:
        barrier_m = glacier_folds.barrier_m if glacier_folds else barrier_for(WINDOW_M)
    case = Case(
        {r.name: r for r in regions},
        glacier_folds,
        {g.name: g for g in grounds},
        barrier_m,
        frozenset(fresh),
        {fold: frozenset(names) for fold, names in (parts or {}).items()},
    )
    found = {leak for training in trainings for check in _CHECKS for leak in check(training, case)}
    found |= set(_region_gaps(case)) | set(_not_fresh(trainings, fresh))
    return sorted(found)


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Stop before any work where there is a leak.

    Raises
    ------
    UsageError
        ``fold-leak``, with the first leaks and how many there are.
    """
    if leaks:
        first = "; ".join(f"{x.member}: {x.where}: {x.evidence}" for x in leaks[:3])
        more = f" (and {len(leaks) - 3} more)" if len(leaks) > 3 else ""
        raise UsageError(f"held-out ground takes part in training: {first}{more}", kind="fold-leak")


def _label_like_channels(training: Training, case: Case) -> Iterator[Leak]:
    for name in training.channels:
        word = label_like_name(name)
        if word:
            yield Leak("label-like-channel", training.member, name, f"its name speaks of {word!r}")
    leaks = case.once(
        ("content", training.folds, training.regions, training.channels),
        lambda: list(_label_like_content(training, case)),
    )
    yield from (replace(leak, member=training.member) for leak in leaks)


def _label_like_content(training: Training, case: Case) -> Iterator[Leak]:
    sides: tuple[list[Any], list[Any]] = ([], [])
    for name, ground in sorted(case.grounds.items()):
        trained, held = case.masks(training, name)
        # Around held-out glaciers all counts that is not trained on: outlines may have been grown.
        for side, mask in zip(sides, (trained, ~trained & held.any()), strict=True):
            if mask.any():
                targets = case.once(("targets", name), partial(label_targets, ground))
                side.append((ground.features, targets, mask))
    if not all(sides):
        return
    for channel, name in enumerate(training.channels):
        for target, fitted, judged in one_channel_agreement(channel, *sides):
            yield Leak(
                "label-like-channel",
                training.member,
                name,
                f"alone it tells {target} with an IoU of {fitted:.3f} where it was fitted and "
                f"{judged:.3f} on held-out pixels: better than analysts agree with each other",
            )


def _windows(training: Training, case: Case) -> Iterator[Leak]:
    if training.windows is None:
        yield from _overlaps(training, case)
    for window in training.windows or ():
        where = f"{window.region} row {window.row} column {window.col}, {window.size} px"
        if case.is_whole(window.region):
            if case.holds_out(training, window.region):
                yield Leak(
                    "held-out-pixels",
                    training.member,
                    where,
                    f"the whole region is held out by fold {case.regions[window.region].fold}",
                )
        elif window.region in case.grounds and case.glacier_folds:
            yield from _window_on_map(training, case, window, where)


def _overlaps(training: Training, case: Case) -> Iterator[Leak]:
    """Where windows are not told, each region trained on counts as one."""
    for name, held, gap_m in case.gaps(training):
        if gap_m == 0:
            yield Leak(
                "held-out-pixels",
                training.member,
                f"{name} and {held}",
                f"windows were cut from all of {name}, which meets held-out {held}",
            )


def _window_on_map(training: Training, case: Case, window: Window, where: str) -> Iterator[Leak]:
    name = window.region
    ground = case.grounds[name]
    inside = int(case.masks(training, name)[1][window.cut].sum())
    if inside:
        yield Leak(
            "held-out-pixels",
            training.member,
            where,
            f"{inside} of its {window.size**2} pixels are held-out glaciers and their ground",
        )
        return
    away = case.once(
        ("away", name, training.folds),
        lambda: distance_m(case.held_ice(training, name), resolution_m=ground.resolution_m),
    )
    nearest = float(away[window.cut].min())
    buffer = case.glacier_folds.buffer_m if case.glacier_folds else 0.0
    if nearest <= case.barrier_m + buffer:
        yield Leak(
            "barrier",
            training.member,
            where,
            f"it lies {max(nearest - buffer, 0):.0f} m from held-out ground, the barrier is "
            f"{case.barrier_m:.0f} m wide",
        )


def _neighbours(training: Training, case: Case) -> Iterator[Leak]:
    if case.glacier_folds is None:
        yield from _shared_glaciers(training, case)
        return
    held = case.held_glaciers(training)
    complex_of = {g.ref_id: g.complex for g in case.glacier_folds.glaciers}
    held_complexes = {complex_of[name]: name for name in sorted(held, reverse=True)}
    for name in sorted(_trained_glaciers(training, case)):
        if name in held and name in (training.glaciers or ()):
            text = "it is held out itself"
        elif name in held:
            continue  # a window lies on it, which is told as such
        elif complex_of.get(name) in held_complexes:
            text = f"it touches held-out {held_complexes[complex_of[name]]}, or a complex with it"
        else:
            continue
        yield Leak("held-out-neighbour", training.member, name, text)


def _shared_glaciers(training: Training, case: Case) -> Iterator[Leak]:
    """Glaciers that lie in two regions, or may touch from one to the other."""
    for name, held, gap_m in case.gaps(training):
        if gap_m <= JOIN_M:
            text = f"the regions lie {gap_m:.0f} m apart: glaciers of the two may be one complex"
        elif {name, held} <= case.grounds.keys():
            both = case.glaciers_in(name) & case.glaciers_in(held)
            if not both:
                continue
            more = f" and {len(both) - 1} more" if len(both) > 1 else ""
            text = f"both hold {min(both)}{more}"
        else:
            continue
        yield Leak("held-out-neighbour", training.member, f"{name} and {held}", text)


def _trained_glaciers(training: Training, case: Case) -> set[str]:
    """Glaciers that a member says it was trained on, and those that lie in its windows."""
    names = set(training.glaciers or ())
    for window in training.windows or ():
        ground = case.grounds.get(window.region)
        if ground is not None:
            names |= ground.glaciers_in(window.cut)
    return names


def _region_gaps(case: Case) -> Iterator[Leak]:
    regions = sorted(case.regions.values(), key=lambda r: r.name)
    for i, one in enumerate(regions):
        for other in regions[i + 1 :]:
            gap_m = case.gap_m(one.name, other.name)
            if gap_m <= case.barrier_m and not case.are_parts(one.name, other.name):
                yield Leak(
                    "barrier",
                    f"folds {one.fold} and {other.fold}",
                    f"{one.name} and {other.name}",
                    f"the regions lie {gap_m:.0f} m apart, the barrier is "
                    f"{case.barrier_m:.0f} m wide",
                )


def _seen_grounds(training: Training, case: Case) -> bool:
    return bool(training.regions) and set(training.regions) <= case.grounds.keys()


def _normalisation(training: Training, case: Case) -> Iterator[Leak]:
    if training.mean is None or training.std is None or not _seen_grounds(training, case):
        return
    mean, std = case.once(("norm", training.folds, training.regions), lambda: _norm(training, case))
    off = np.maximum(
        np.abs(np.subtract(training.mean, mean)) / std, np.abs(np.divide(training.std, std) - 1)
    )
    worst = int(np.nanargmax(off))
    if not off[worst] <= _SAME:
        yield Leak(
            "normalisation",
            training.member,
            training.channels[worst],
            f"mean {training.mean[worst]:.6g} and deviation {training.std[worst]:.6g}; the pixels "
            f"that may be trained on have {mean[worst]:.6g} and {std[worst]:.6g}",
        )


def _norm(training: Training, case: Case) -> tuple[Array, Array]:
    return normalisation(
        (case.grounds[name].features, case.masks(training, name)[0])
        for name in sorted(training.regions)
    )


def _class_weights(training: Training, case: Case) -> Iterator[Leak]:
    if training.class_counts is None or not _seen_grounds(training, case):
        return
    names = sorted(training.regions)
    wanted = class_counts((case.grounds[n].labels, case.masks(training, n)[0]) for n in names)
    told = np.asarray(training.class_counts)
    if told.shape != wanted.shape or np.abs(told - wanted).max() > _SAME * wanted.sum():
        yield Leak(
            "class-weights",
            training.member,
            "class counts",
            f"weighed by {told.tolist()} pixels of the classes; the pixels that may be trained on "
            f"are {wanted.tolist()}",
        )


def _duplicates(training: Training, case: Case) -> Iterator[Leak]:
    leaks = case.once(
        ("duplicates", training.folds, training.regions),
        lambda: list(_duplicates_of_fold(training, case)),
    )
    yield from (replace(leak, member=training.member) for leak in leaks)


def _duplicates_of_fold(training: Training, case: Case) -> Iterator[Leak]:
    sides: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name in sorted(case.grounds):
        features = case.grounds[name].features
        keys = case.once(("keys", name), partial(content_keys, features))
        for side, mask in zip(sides, case.masks(training, name), strict=True):
            if mask.any():
                side[name] = keys.within(mask)
    pool = pooled(sides[0].values())
    for held_name, held in sides[1].items():
        if shared_keys(pool, held) is None:
            continue
        for name, trained in sides[0].items():
            shared = shared_keys(pooled([trained]), held)
            if shared is not None:
                yield Leak(
                    "duplicate",
                    training.member,
                    f"{name} and {held_name}",
                    f"{len(shared)} of the sampled pixels of {name} have the same values and the "
                    f"same neighbours as held-out ones of {held_name}, {place_of(shared)}",
                )


def _names(training: Training, case: Case) -> Iterator[Leak]:
    """What the card itself says: regions trained on, validated on and tuned on."""
    for name in training.regions:
        if case.is_whole(name) and case.holds_out(training, name):
            yield Leak(
                "trained-on-held-out",
                training.member,
                name,
                f"it claims to hold out fold {case.regions[name].fold}, and was trained on "
                "a region of it",
            )
    for name in sorted(training.glaciers or ()):
        if case.is_in_part(training, name):
            yield Leak("trained-on-held-out", training.member, name, "it is held out itself")
    for name in training.validated_on or ():
        if case.holds_out(training, name):
            yield Leak("validation", training.member, name, "it validates and is held out")
        elif name in (training.glaciers or ()) or (
            case.is_whole(name) and name in training.regions
        ):
            yield Leak("validation", training.member, name, "it validates and was trained on")
    for what, names in sorted((training.tuned_on or {}).items()):
        for name in names:
            if case.holds_out(training, name):
                yield Leak("tuned-on-held-out", training.member, name, f"{what} was chosen on it")


def _not_fresh(trainings: Sequence[Training], fresh: Sequence[str]) -> Iterator[Leak]:
    for training in trainings:
        for name in sorted(set(fresh) & {*training.regions, *(training.validated_on or ())}):
            yield Leak(
                "tuned-on-held-out",
                training.member,
                name,
                "the uncertainty was measured on it as a region that no member has seen",
            )


_CHECKS: tuple[Callable[[Training, Case], Iterator[Leak]], ...] = (
    _label_like_channels,
    _windows,
    _neighbours,
    _normalisation,
    _class_weights,
    _duplicates,
    _names,
)


def audit_ensemble(folder: Path | str, *, work: Path | str | None = None) -> Audit:
    """Audit a finished ensemble by its card, its folds and, where they still lie, its regions.

    Parameters
    ----------
    folder
        Folder of the ensemble.
    work
        Folder of its training, see :func:`model_serving.training_record.grounds_of`.

    Raises
    ------
    UsageError
        Where there is no card or it cannot be understood, or ``work`` holds no region.
    """
    data = Workspace(folder).get(CARD)
    if data is None:
        raise UsageError(f"there is no ensemble in {folder}: no {CARD}", kind="ensemble-missing")
    try:
        card = json.loads(data)
        regions = [TrainingRegion.from_dict(r) for r in card["regions"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{Path(folder) / CARD} cannot be understood: {error!r}", kind="ensemble-mismatch"
        ) from error
    has_folds = Workspace(folder).get(FOLDS) is not None
    folds = read_folds(folder) if has_folds else None
    trainings = trainings_of(card)
    held = card.get("fine_tuning", {}).get("held_out", {})
    grounds = [] if work is None else grounds_of(Path(work))
    leaks = audit(
        trainings,
        regions=regions,
        glacier_folds=folds,
        grounds=grounds,
        fresh=[r["name"] for r in card.get("calibration_regions", ())],
        parts={int(fold): names for fold, names in held.items()},
    )
    return Audit(tuple(leaks), _unseen(trainings, regions, folds, grounds))


def _unseen(
    trainings: Sequence[Training],
    regions: Sequence[TrainingRegion],
    folds: GlacierFolds | None,
    grounds: Sequence[Ground],
) -> dict[str, str]:
    """Tell what was not looked at, and why."""
    names = {g.name for g in grounds}
    cut = {window.region for t in trainings for window in t.windows or ()}
    lacking = sorted(({name for t in trainings for name in t.regions} | cut) - names)
    out = {}
    if lacking:
        lost = f"there are no pixels of {', '.join(lacking[:3])}"
        lost += f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        for kind in ("label-like-channel", "normalisation", "class-weights", "duplicate"):
            out[kind] = lost + (": names only" if kind == "label-like-channel" else "")
    if folds is None and lacking:
        out["held-out-neighbour"] = f"{lost}: how far apart they lie only"
    whole = {r.name for r in regions if r.area is None}
    untold = {name for t in trainings if t.windows is None for name in t.regions} - whole
    if untold or any(t.windows is None and not t.regions for t in trainings):
        for kind in ("held-out-pixels", *(["barrier"] if untold else [])):
            out[kind] = "the card does not list the training windows"
            out[kind] += f" in {', '.join(sorted(untold)[:3])}" if untold else ""
    told = {"class_counts": "class-weights", "validated_on": "validation"}
    told |= {"tuned_on": "tuned-on-held-out"}
    for attribute, kind in told.items():
        if any(getattr(t, attribute) is None for t in trainings):
            out.setdefault(kind, f"the card does not tell {attribute}")
    return out
