"""Who may see what, as the leak audit asks it: folds, distances, pixels, each worked out once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from model_serving.fold_pixels import HELD_OUT, TRAIN, owner_roles
from model_serving.folds import TrainingRegion, smallest_gap_km
from model_serving.glacier_folds import GlacierFolds
from model_serving.training_record import Ground, Training

__all__ = ["Case"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """Everything the checks look at, with what is computed once."""

    regions: Mapping[str, TrainingRegion]
    glacier_folds: GlacierFolds | None
    grounds: Mapping[str, Ground]
    barrier_m: float
    fresh: frozenset[str]
    parts: Mapping[int, frozenset[str]]
    """Fold -> glaciers that it holds out of a region shared out among the folds."""
    kept: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made at the first call with this key."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def is_whole(self, region: str) -> bool:
        """Whether a region is held out as a whole, not glacier by glacier."""
        return region in self.regions

    def holds_out(self, training: Training, name: str) -> bool:
        """Whether a member's folds hold out a region or a glacier of that name."""
        if name in self.regions:
            return self.regions[name].fold in training.folds
        return name in self.held_glaciers(training) or self.is_in_part(training, name)

    def is_in_part(self, training: Training, glacier: str) -> bool:
        """Whether a glacier lies in a member's part of a region that folds share out."""
        return any(glacier in self.parts.get(fold, ()) for fold in training.folds)

    def gaps(self, training: Training) -> Iterator[tuple[str, str, float]]:
        """Each region trained on, each that is held out, and the metres between the two."""
        for name in training.regions:
            for held in self.regions:
                apart = not (self.holds_out(training, name) or self.are_parts(name, held))
                if self.is_whole(name) and self.holds_out(training, held) and apart:
                    yield name, held, self.gap_m(name, held)

    def glaciers_in(self, region: str) -> set[str]:
        """Glaciers that own pixels of a region."""
        return self.once(("present", region), self.grounds[region].glaciers_in)  # type: ignore[no-any-return]

    def gap_m(self, one: str, other: str) -> float:
        """Metres between what two folds hold out; infinite within one fold."""
        pair = sorted((one, other))
        return self.once(  # type: ignore[no-any-return]
            ("gap", *pair), lambda: 1000 * smallest_gap_km([self.regions[n] for n in pair])
        )

    def are_parts(self, one: str, other: str) -> bool:
        """Whether two folds share out one region: their parts lie side by side."""
        a, b = self.regions.get(one), self.regions.get(other)
        return a is not None and b is not None and a.area is not None and a.bbox == b.bbox

    def held_glaciers(self, training: Training) -> frozenset[str]:
        """Glaciers that a member's folds of glaciers hold out."""
        if self.glacier_folds is None:
            return frozenset()
        folds = [f for f in training.folds if f < self.glacier_folds.folds]
        return frozenset().union(*(self.glacier_folds.held_out(f) for f in folds))

    def masks(self, training: Training, name: str) -> tuple[Array, Array]:
        """Pixels of a region that a member may train on, and those held out from it."""
        return self.once(  # type: ignore[no-any-return]
            ("masks", name, training.folds, name in training.regions),
            lambda: self._masks(training, name),
        )

    def _masks(self, training: Training, name: str) -> tuple[Array, Array]:
        ground = self.grounds[name]
        none = np.zeros(ground.owners.shape, bool)
        trained = ~none if name in training.regions else none
        if name in self.fresh:
            return none, ~none
        if self.is_whole(name):
            held = self.holds_out(training, name)
            return (none, ~none) if held else (trained, none)
        if self.glacier_folds is None or not training.folds:
            return trained, none
        roles = [
            owner_roles(
                self.glacier_folds,
                ground.owners,
                fold=fold,
                ref_ids=ground.glaciers,
                resolution_m=ground.resolution_m,
            )
            for fold in training.folds
        ]
        allowed = np.all([r == TRAIN for r in roles], axis=0)
        return trained & allowed, np.any([r == HELD_OUT for r in roles], axis=0)

    def held_ice(self, training: Training, name: str) -> Array:
        """Pixels of held-out glaciers in a region, ``(y, x)`` bool."""
        ground, held = self.grounds[name], self.held_glaciers(training)
        known = np.array([False, *(g in held for g in ground.glaciers)])
        return np.asarray(known[ground.owners])
