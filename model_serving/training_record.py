"""What a member was made from: regions, glaciers, windows, statistics, as its card tells.

One law: what is not told is None, never an empty list. The audit (``leaks``) reads nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.cube import Workspace
from catalog.errors import UsageError
from model_serving.features import CHANNELS
from model_serving.regions import PreparedRegion, read_region

__all__ = [
    "GLACIERS",
    "REGIONS",
    "Ground",
    "Training",
    "Window",
    "grounds_of",
    "note_regions",
    "trainings_of",
]

GLACIERS = "glaciers.json"
"""Beside a prepared region: ids of its glaciers as a list, in the order of its owners."""

REGIONS = "regions.json"
"""In the folder of a training: name of each of its prepared regions -> folder."""

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Window:
    """A training window as it was cut, before zoom and turn."""

    region: str
    season: int
    row: int
    col: int
    size: int
    """Edge in pixels of the region."""

    @property
    def cut(self) -> tuple[slice, slice]:
        """Rows and columns of the region."""
        return slice(self.row, self.row + self.size), slice(self.col, self.col + self.size)


@dataclass(frozen=True, slots=True)
class Training:
    """What one member was made from, as its card or its training tells. None: it does not tell."""

    member: str
    folds: tuple[int, ...]
    """Folds that it claims to hold out."""
    regions: tuple[str, ...]
    """Regions in which it was trained."""
    channels: tuple[str, ...] = CHANNELS
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    """Pixels of each class from which its class weights come."""
    glaciers: frozenset[str] | None = None
    """Glaciers trained on, where folds are of glaciers."""
    windows: tuple[Window, ...] | None = None
    validated_on: tuple[str, ...] | None = None
    """Regions or glaciers by which its training was stopped or its steps were chosen."""
    tuned_on: Mapping[str, tuple[str, ...]] | None = None
    """What was chosen after training (``ice_offset``, ``temperature``) -> regions or glaciers."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The pixels of a region, for the audit to look at."""

    name: str
    features: Array
    """``(season, channel, y, x)`` as a member gets them, before normalisation; NaN = missing."""
    labels: Array
    """``(season, y, x)`` uint8, 255 = unknown."""
    owners: Array
    """``(y, x)`` int, 0 = none, ``i + 1`` = ``glaciers[i]``."""
    glaciers: tuple[str, ...]
    resolution_m: float

    def glaciers_in(self, cut: tuple[slice, slice] = (slice(None), slice(None))) -> set[str]:
        """Names of the glaciers that own pixels in some rows and columns."""
        return {self.glaciers[i - 1] for i in np.unique(self.owners[cut]) if i}

    @classmethod
    def of(cls, region: PreparedRegion, *, glaciers: Sequence[str] | None = None) -> Ground:
        """Take a prepared region.

        Its glaciers have the names given, those of :data:`GLACIERS` in its folder, or are numbered.
        """
        told = Workspace(region.folder).get(GLACIERS)
        numbered = [f"{region.name}/{i + 1}" for i in range(region.glaciers)]
        names = glaciers or (numbered if told is None else json.loads(told))
        return cls(
            region.name,
            region.features(),
            region.labels(),
            region.owners(),
            tuple(names),
            region.grid.resolution_m,
        )


def note_regions(work: Path, regions: Sequence[PreparedRegion]) -> None:
    """Write down where the regions of a training lie."""
    inside, folders = work.resolve(), {}
    for region in regions:
        folder = region.folder.resolve()
        kept = folder.relative_to(inside) if folder.is_relative_to(inside) else folder
        # ^ so that a training can be moved with its regions
        folders[region.name] = str(kept)
    Workspace(work).put(REGIONS, json.dumps(folders, indent=1).encode() + b"\n")


def grounds_of(work: Path) -> list[Ground]:
    """Take the prepared regions of a training: those it noted, else all that lie in ``regions``.

    Raises
    ------
    UsageError
        ``regions-missing`` where there is none, or one is not where it was.
    """
    noted = Workspace(work).get(REGIONS)
    if noted is None:
        folders = sorted(path.parent for path in (work / "regions").glob("*/prepared.json"))
    else:
        folders = [work / folder for _, folder in sorted(json.loads(noted).items())]
    if not folders:
        raise UsageError(
            f"there is no prepared region in {work / 'regions'}", kind="regions-missing"
        )
    return [Ground.of(read_region(folder)) for folder in folders]


def trainings_of(card: Mapping[str, Any]) -> list[Training]:
    """Read from an ensemble's card what each member was made from.

    Beside what every card holds, a member's entry may tell ``class_counts``, ``glaciers`` (after
    fine-tuning ``tuned_glaciers``, by their numbers in that region), ``windows`` (lists of region,
    season, row, column, size), ``validated_on`` and ``tuned_on``.

    Raises
    ------
    UsageError
        ``ensemble-mismatch`` where an entry cannot be understood.
    """
    try:
        return [_training(entry, card) for entry in card["members"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the card does not tell what its members were trained on: {error!r}",
            kind="ensemble-mismatch",
        ) from error


def _training(entry: Mapping[str, Any], card: Mapping[str, Any]) -> Training:
    def listed(key: str) -> tuple[Any, ...] | None:
        return tuple(entry[key]) if key in entry else None

    fold = entry["fold"]
    windows, tuned = listed("windows"), entry.get("tuned_on")
    return Training(
        member=str(entry["name"]),
        folds=(fold,) if isinstance(fold, int) else tuple(fold or ()),
        regions=tuple(entry.get("trained_on", ())),
        channels=tuple(entry.get("channels", card.get("channels", CHANNELS))),
        mean=listed("mean"),
        std=listed("std"),
        class_counts=listed("class_counts"),
        glaciers=_glaciers(entry, card),
        windows=None if windows is None else tuple(Window(*w) for w in windows),
        validated_on=listed("validated_on"),
        tuned_on=None if tuned is None else {k: tuple(v) for k, v in tuned.items()},
    )


def _glaciers(entry: Mapping[str, Any], card: Mapping[str, Any]) -> frozenset[str] | None:
    if "tuned_glaciers" in entry:
        region = card["fine_tuning"]["region"]
        return frozenset(f"{region}/{number}" for number in entry["tuned_glaciers"])
    return frozenset(entry["glaciers"]) if "glaciers" in entry else None
