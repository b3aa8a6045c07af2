"""Temperatures of an ensemble's members, and how well its probabilities are shares.

The one law: what a fold's members are given is fitted on the maps of all other folds, so that no
region's own truth takes part in how sure its map is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from model_serving.calibration import (
    ProbabilityCounts,
    calibration_error,
    fit_temperature,
    with_temperature,
)

__all__ = ["MapSample", "calibration_counts", "calibration_errors", "choose_temperatures"]

Array = npt.NDArray[Any]

_LEAST = 1e-6
_TARGETS: dict[str, Literal["top", "ice"]] = {
    "calibration_error": "top",
    "ice_calibration_error": "ice",
}


@dataclass(frozen=True, slots=True)
class MapSample:
    """Some pixels of one map, and what each of its voters says of them."""

    fold: int
    """Which fold held the map's region out."""
    probability: Array
    """``(voter, class, pixel)`` float, after the offsets and before any temperature."""
    labels: Array
    """True classes ``(pixel,)``."""

    def mean(self, temperature: float) -> Array:
        """Mean of the voters at a temperature, ``(class, pixel)``."""
        served = [with_temperature(p, temperature) for p in self.probability]
        return np.asarray(np.mean(served, axis=0))


def choose_temperatures(samples: Sequence[MapSample]) -> dict[int, float]:
    """Fit one temperature a fold, for all its members.

    Parameters
    ----------
    samples
        Of maps of at least two folds.

    Returns
    -------
    dict
        Fold -> the temperature with the least log-loss of single members over the maps of all
        other folds; 1 where these members are never wrong, for then none is best.

    Raises
    ------
    ValueError
        Where all maps are of one fold.
    """
    folds = sorted({sample.fold for sample in samples})
    if len(folds) < 2:
        raise ValueError(f"temperatures need maps of two folds, found {folds}")
    chosen = {}
    for fold in folds:
        others = [sample for sample in samples if sample.fold != fold]
        logits = [np.log(np.maximum(p, _LEAST)).T for s in others for p in s.probability]
        labels = [s.labels for s in others for _ in s.probability]
        found = fit_temperature(np.concatenate(logits), np.concatenate(labels))
        chosen[fold] = 1.0 if found.at_bound == "low" else round(found.value, 4)
    return chosen


def calibration_counts(
    samples: Sequence[MapSample], temperatures: Mapping[int, float]
) -> dict[str, list[ProbabilityCounts]]:
    """Count what the voters' mean states and what came true.

    Parameters
    ----------
    samples
        Maps.
    temperatures
        Of the members of each fold.

    Returns
    -------
    dict
        ``calibration_error``: of the most probable class; ``ice_calibration_error``: of ice
        against not. Each one histogram a map, in the order of the maps.
    """
    maps = [(s.mean(temperatures[s.fold]), s.labels) for s in samples]
    return {
        name: [ProbabilityCounts.of_map(p, y, of=of) for p, y in maps]
        for name, of in _TARGETS.items()
    }


def calibration_errors(counts: Mapping[str, Sequence[ProbabilityCounts]]) -> dict[str, float]:
    """Expected calibration error over all maps, by the names of :func:`calibration_counts`."""
    return {
        name: round(calibration_error(ProbabilityCounts.total(parts)), 4)
        for name, parts in counts.items()
    }
