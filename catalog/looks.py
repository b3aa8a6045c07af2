"""Looks: what was seen of a place on one day. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import shapely

from catalog.grid import LonLatBox, Shard
from catalog.scenes import Scene

__all__ = ["SceneIndex", "look_name", "looks_of", "scenes_over"]


class SceneIndex:
    """Finds the scenes of a place among many.

    Parameters
    ----------
    scenes
        In any order; one that is there twice counts once.
    """

    def __init__(self, scenes: Sequence[Scene]) -> None:
        once = {(scene.datetime, scene.id, scene.collection): scene for scene in scenes}
        self._scenes = [once[key] for key in sorted(once)]
        spans = [
            (number, shapely.box(*box))
            for number, scene in enumerate(self._scenes)
            for box in scene.boxes
        ]
        self._numbers = np.array([number for number, _ in spans], np.int64)
        self._tree = shapely.STRtree([box for _, box in spans])
        self._described: dict[int, dict[str, Any]] = {}

    def over(self, boxes: Sequence[LonLatBox]) -> list[Scene]:
        """Scenes whose box meets any of some boxes, ordered by time and id."""
        hits = self._tree.query([shapely.box(*box) for box in boxes])[1]
        return [self._scenes[number] for number in np.unique(self._numbers[hits])]

    def described(self, scenes: Sequence[Scene]) -> list[dict[str, Any]]:
        """Scenes of this index, JSON-ready; places share what is said of a scene: change none."""
        found = []
        for scene in scenes:
            if id(scene) not in self._described:
                self._described[id(scene)] = scene.to_dict()
            found.append(self._described[id(scene)])
        return found


def scenes_over(scenes: Sequence[Scene], shard: Shard) -> list[Scene]:
    """Scenes whose box meets the shard, each once, ordered by time and id."""
    return SceneIndex(scenes).over(shard.lonlat_boxes)


def look_name(scene: Scene) -> tuple[str, str]:
    """Day and sensor: what all scenes of one look share."""
    return scene.datetime[:10], scene.sensor


def looks_of(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Scenes of each look, each once, in the order of time; of a day by the sensor's name."""
    once = {(*look_name(s), s.datetime, s.id, s.collection): s for s in scenes}
    return [list(group) for _, group in groupby((once[k] for k in sorted(once)), key=look_name)]
