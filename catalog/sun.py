"""Sun: where it stood when a scene was taken, at its middle and seen from elsewhere. Pure, no I/O.

A catalogue tells where the sun stood in the middle of a scene; half a scene away it stands some
degrees elsewhere near a pole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from catalog.grid import LonLatBox
from catalog.scenes import Scene

__all__ = ["Sun", "SunOver", "sun_of", "suns_of"]


@dataclass(frozen=True, slots=True)
class Sun:
    """Where the sun stood at one moment in the sky of one place."""

    azimuth: float
    """Degrees clockwise from true north."""
    elevation: float
    """Degrees above the horizon."""
    lon: float
    """Degrees east, of the place."""
    lat: float
    """Degrees north."""

    def seen_from(self, lon: float, lat: float) -> Sun:
        """The same sun at the same moment in the sky of another place."""
        azimuth, height = math.radians(self.azimuth), math.radians(self.elevation)
        level = math.cos(height)
        ray = _axes(self.lon, self.lat).T @ (
            level * math.sin(azimuth),
            level * math.cos(azimuth),
            math.sin(height),
        )
        east, north, up = _axes(lon, lat) @ ray
        return Sun(
            math.degrees(math.atan2(east, north)) % 360,
            math.degrees(math.atan2(up, math.hypot(east, north))),
            lon,
            lat,
        )


def _axes(lon: float, lat: float) -> npt.NDArray[np.float64]:
    """Unit vectors to the east, the north and up at a place, as rows, in geocentric coordinates."""
    x, y = math.radians(lon), math.radians(lat)
    return np.array(
        [
            [-math.sin(x), math.cos(x), 0.0],
            [-math.sin(y) * math.cos(x), -math.sin(y) * math.sin(x), math.cos(y)],
            [math.cos(y) * math.cos(x), math.cos(y) * math.sin(x), math.sin(y)],
        ]
    )


class SunOver(NamedTuple):
    """Where the sun stood over a scene."""

    day: int
    """Day of acquisition, days since 1970-01-01."""
    box: LonLatBox
    """Where the scene lies; west > east over the antimeridian."""
    sun: Sun


def suns_of(scenes: Sequence[Scene]) -> list[SunOver]:
    """Where the sun stood over each scene that says it; in the order of time."""
    found = []
    for scene in sorted(scenes, key=lambda s: (s.datetime, s.id)):
        sun = sun_of(scene)
        if sun is not None:
            found.append(SunOver(scene.day, scene.bbox, sun))
    return found


def sun_of(scene: Scene) -> Sun | None:
    """Where the sun stood in the middle of a scene."""
    if scene.sun_azimuth is None or scene.sun_elevation is None:
        return None
    west, south, east, north = scene.bbox
    middle = (west + east + (360.0 if east < west else 0.0)) / 2
    return Sun(scene.sun_azimuth, scene.sun_elevation, middle, (south + north) / 2)
