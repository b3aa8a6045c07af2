"""Looks: what was seen of a place on one day. Pure, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from catalog.grid import Shard
from catalog.sensors import Scene, boxes_meet

__all__ = ["look_name", "looks_of", "scenes_over"]


def scenes_over(scenes: Sequence[Scene], shard: Shard) -> list[Scene]:
    """Scenes whose box meets the shard, each once, ordered by time and id."""
    boxes = shard.lonlat_boxes
    found = {
        (scene.datetime, scene.id, scene.collection): scene
        for scene in scenes
        if any(boxes_meet(scene.bbox, box) for box in boxes)
    }
    return [found[key] for key in sorted(found)]


def look_name(scene: Scene) -> tuple[str, str]:
    """Day and sensor: what all scenes of one look share."""
    return scene.datetime[:10], scene.sensor


def looks_of(scenes: Sequence[Scene]) -> list[list[Scene]]:
    """Scenes of each look, each once, in the order of time; of a day by the sensor's name."""
    once = {(*look_name(s), s.datetime, s.id, s.collection): s for s in scenes}
    return [list(group) for _, group in groupby((once[k] for k in sorted(once)), key=look_name)]
