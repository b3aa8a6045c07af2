"""What the maps of some regions say of an ensemble: scores, reliability, and what its card keeps.

One law: every figure comes from one count of the maps, so that table, card and page agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from catalog.cube import CLASSES, Workspace
from model_serving.calibration import ProbabilityCounts, reliability
from model_serving.member_calibration import calibration_errors
from model_serving.scores import COLUMNS, MapCounts, scores

__all__ = ["RELIABILITY", "SCORES", "Measured", "write_measured"]

SCORES = "scores.csv"
"""All scores of a training, one a row."""
RELIABILITY = "reliability.csv"
"""What share of the pixels came true, for each step of what was stated."""
_HEADLINES = {
    "ice_iou": ("pixels", "ice", "iou"),
    "ice_precision": ("pixels", "ice", "precision"),
    "ice_recall": ("pixels", "ice", "recall"),
    "ice_mcc": ("pixels", "ice", "mcc"),
    "mcc": ("pixels", "all", "mcc"),
    "ice_iou_glaciers": ("glaciers", "ice", "iou"),
    "ice_iou_area": ("area", "ice", "iou"),
    "area_bias_percent": ("pixels", "ice", "bias_percent"),
    "boundary_m": ("maps", "ice", "boundary_m"),
    "boundary_hausdorff95_m": ("maps", "ice", "boundary_hausdorff95_m"),
}
_OF_A_GROUP = ("ice_iou", "ice_iou_glaciers", "ice_iou_area", "area_bias_percent")
_GROUPED = ("fold", "size_km2", "debris_share")
_TARGETS = {"ice_calibration_error": "ice", "calibration_error": "most probable class"}


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Scores of some maps, and how often what they state came true."""

    maps: tuple[MapCounts, ...]
    table: pd.DataFrame
    """See :func:`model_serving.scores.scores`; with rows for each glacier."""
    before: Mapping[str, Sequence[ProbabilityCounts]]
    """What ``member_calibration.calibration_counts`` gives at temperature 1."""
    after: Mapping[str, Sequence[ProbabilityCounts]]
    """The same at the temperatures the members are served with."""

    @classmethod
    def of(
        cls,
        maps: Sequence[MapCounts],
        *,
        before: Mapping[str, Sequence[ProbabilityCounts]],
        after: Mapping[str, Sequence[ProbabilityCounts]],
    ) -> Measured:
        """Score maps.

        Raises
        ------
        UsageError
            As :func:`model_serving.scores.scores`.
        """
        return cls(tuple(maps), scores(maps, glaciers=True), before, after)

    def headline(self) -> dict[str, Any]:
        """What a card keeps: main scores, those of groups, calibration errors; None = no value."""
        table = self.table[self.table["scope"] != "glacier"][list(COLUMNS)]
        rows: list[tuple[Any, ...]] = list(table.itertuples(index=False, name=None))
        value = {row[:5]: row[5] for row in rows}
        number = {row[:5]: int(row[6]) for row in rows}

        def told(scope: str, group: str, names: Iterable[str]) -> dict[str, Any]:
            return {n: _rounded(value.get((scope, group, *_HEADLINES[n]), math.nan)) for n in names}

        groups: dict[str, dict[str, Any]] = {scope: {} for scope in _GROUPED}
        members: dict[str, dict[str, Any]] = {}
        for scope, group, *rest in value:
            at = (scope, group, *rest)
            if rest == ["glaciers", "ice", "iou"] and scope in groups:
                glaciers = {"glaciers": number[at]}
                groups[scope][group] = told(scope, group, _OF_A_GROUP) | glaciers
            elif rest == ["members", "ice", "iou"] and scope in ("all", "fold"):
                members[group] = {
                    "ice_iou_mean": _rounded(value[at]),
                    "ice_iou_deviation": _rounded(value[(*at[:4], "iou_deviation")]),
                    "members": number[at],
                }
        return {
            **told("all", "all", _HEADLINES),
            "class_iou": {
                name: _rounded(value["all", "all", "pixels", name, "iou"]) for name in CLASSES
            },
            "confusion": sum(m.tables.sum(axis=0) for m in self.maps).tolist(),
            "groups": groups,
            "members": members,
            **calibration_errors(self.after),
            **{f"{k}_at_1": v for k, v in calibration_errors(self.before).items()},
        }

    def reliability(self) -> pd.DataFrame:
        """Reliability in 15 bins, of ice and of the most probable class, before and after.

        Columns of :func:`model_serving.calibration.reliability`, after ``of`` and ``temperatures``.
        """
        tables = []
        for when, counts in (("before", self.before), ("after", self.after)):
            for name, parts in counts.items():
                table = reliability(ProbabilityCounts.total(parts))
                table.insert(0, "temperatures", when)
                table.insert(0, "of", _TARGETS[name])
                tables.append(table)
        return pd.concat(tables, ignore_index=True)


def write_measured(work: Workspace, measured: Mapping[str, Measured]) -> None:
    """Write :data:`SCORES` and :data:`RELIABILITY`; the column ``maps`` names the maps.

    Parameters
    ----------
    work
        Folder of the training.
    measured
        What was measured, by the name of the maps: ``out of fold``, ``unseen``.
    """
    for name, tables in (
        (SCORES, {k: m.table for k, m in measured.items()}),
        (RELIABILITY, {k: m.reliability() for k, m in measured.items()}),
    ):
        work.put(name, _csv(_named(tables)))


def _named(tables: Mapping[str, pd.DataFrame]) -> Iterator[pd.DataFrame]:
    for maps, table in tables.items():
        named = table.copy()
        named.insert(0, "maps", maps)
        yield named


def _csv(tables: Iterator[pd.DataFrame]) -> bytes:
    whole = pd.concat(list(tables), ignore_index=True)
    return whole.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def _rounded(value: float) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None
