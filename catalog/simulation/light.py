"""Sun, shade, snow and cloud of one acquisition. Pure functions of arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .noise import fractal, stream
from .routing import cast_shadow

if TYPE_CHECKING:
    import datetime as dt

    from numpy.typing import NDArray

    from .ground import Ground
    from .spec import RegionSpec

__all__ = ["Clouds", "Light", "light_ground", "make_clouds", "snow_cover", "sun_position"]


@dataclass(frozen=True, slots=True)
class Light:
    """Illumination of one acquisition, (y, x) float32.

    ``direct`` is cos(incidence) over cos(sun zenith), 0 where the ground turns away; ``lit`` is 0
    in cast shadow and 1 in the sun; ``sky`` the share of the sky seen.
    """

    direct: NDArray[np.float32]
    lit: NDArray[np.float32]
    sky: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clouds:
    """Opacity 0..1 of cloud and of cloud shadow, (y, x) float32."""

    cloud: NDArray[np.float32]
    shade: NDArray[np.float32]


def sun_position(when: dt.datetime, *, lon: float, lat: float) -> tuple[float, float]:
    """Return azimuth (clockwise from true north) and elevation of the sun in degrees.

    Low-precision formula of the Astronomical Almanac, good to about 0.1 degrees.
    """
    day = when.timetuple().tm_yday + (when.hour + when.minute / 60.0) / 24.0
    turn = 2.0 * np.pi * (day - 81.0) / 365.25
    tilt = np.radians(23.44) * np.sin(turn)
    drift = 9.87 * np.sin(2 * turn) - 7.53 * np.cos(turn) - 1.5 * np.sin(turn)
    solar_hour = when.hour + when.minute / 60.0 + when.second / 3600.0 + lon / 15.0 + drift / 60.0
    angle = np.radians(15.0 * (solar_hour - 12.0))
    phi = np.radians(lat)
    up = np.sin(phi) * np.sin(tilt) + np.cos(phi) * np.cos(tilt) * np.cos(angle)
    east = -np.cos(tilt) * np.sin(angle)
    north = np.cos(phi) * np.sin(tilt) - np.sin(phi) * np.cos(tilt) * np.cos(angle)
    return float(np.degrees(np.arctan2(east, north)) % 360.0), float(np.degrees(np.arcsin(up)))


def light_ground(height: NDArray[np.float32], *, azimuth_deg: float, elevation_deg: float) -> Light:
    """Light the surface from ``azimuth_deg``, clockwise from the grid's north (10 m cells)."""
    azimuth, elevation = np.radians(azimuth_deg), np.radians(elevation_deg)
    south, east = np.gradient(height, 10.0)
    norm = 1.0 / np.sqrt(1.0 + south * south + east * east)
    facing = np.sin(elevation) + np.cos(elevation) * (
        -east * np.sin(azimuth) + south * np.cos(azimuth)
    )
    direct = np.clip(facing * norm / np.sin(elevation), 0.0, 2.2).astype(np.float32)
    depth = cast_shadow(height, float(azimuth), float(np.tan(elevation)), 10.0)
    lit = np.clip(1.0 - depth / 3.0, 0.0, 1.0).astype(np.float32)
    lit[depth <= 0.5] = 1.0
    hollow = ndimage.gaussian_filter(height[::4, ::4], 12.0) - height[::4, ::4]
    sky = np.clip(
        0.5 * (1.0 + norm)
        - np.repeat(np.repeat(hollow, 4, 0), 4, 1)[: norm.shape[0], : norm.shape[1]] / 900.0,
        0.3,
        1.0,
    )
    return Light(direct, lit, sky.astype(np.float32))


def snow_cover(
    spec: RegionSpec, ground: Ground, *, name: str, snowiness: float
) -> NDArray[np.float32]:
    """Return the share of each pixel under seasonal snow, (y, x) float32 in 0..1.

    Snow lies higher on sunny and steep ground, lower on ice and in hollows.
    """
    shape = ground.ela.shape
    south, east = np.gradient(ndimage.gaussian_filter(ground.height, 2.0), 10.0)
    slope = np.hypot(south, east)
    poleward = np.tanh(1.5 * south) * (1.0 if spec.lat >= 0 else -1.0)
    patch = fractal(
        stream(spec.seed, "snow", name), shape, exponent=1.5, longest_px=140.0, shortest_px=2.0
    )
    fixed = fractal(
        stream(spec.seed, "drifts"), shape, exponent=1.2, longest_px=40.0, shortest_px=2.0
    )
    line = ground.ela + 340.0 - 520.0 * snowiness - 110.0 * poleward
    on_ice = (ground.classes == 1) | (ground.classes == 2)
    line = line - np.where(on_ice, 240.0, 0.0) + 340.0 * np.clip(slope - 0.55, 0.0, 2.0)
    score = (ground.height - line + 60.0 * patch + 70.0 * fixed) / 22.0
    cover = 1.0 / (1.0 + np.exp(-np.clip(score, -30.0, 30.0)))
    frozen = (ground.height > ground.ela - 300.0) & (fixed + 2.0 * snowiness > 0.8)
    # ^ high lakes keep a lid of snow-covered ice in some scenes
    cover[ground.classes == 3] = 0.0
    cover[(ground.classes == 3) & frozen] = 0.8
    return np.where(cover < 0.03, 0.0, cover).astype(np.float32)


def make_clouds(
    spec: RegionSpec,
    shape: tuple[int, int],
    *,
    name: str,
    cover: float,
    azimuth_deg: float,
    elevation_deg: float,
) -> Clouds:
    """Make clouds that cover about ``cover`` of the scene, with soft edges, and their shadows."""
    if cover < 0.004:
        nothing = np.zeros(shape, dtype=np.float32)
        return Clouds(nothing, nothing)
    rng = stream(spec.seed, "cloud", name)
    field = fractal(rng, shape, exponent=1.9, longest_px=700.0, shortest_px=4.0)
    limit = np.float32(np.quantile(field[::8, ::8], 1.0 - cover))
    cloud = np.clip((field - limit + 0.1) / 0.75, 0.0, 1.0)
    veil = fractal(rng, shape, exponent=2.4, longest_px=900.0, shortest_px=30.0)
    cloud = np.maximum(cloud, np.clip((veil - 1.3) * 0.22, 0.0, 0.3) * (cover > 0.05))
    far = float(rng.uniform(1200.0, 3000.0)) / np.tan(np.radians(elevation_deg)) / 10.0
    move = (far * np.cos(np.radians(azimuth_deg)), -far * np.sin(np.radians(azimuth_deg)))
    # ^ the shadow falls away from the sun: south of the cloud when the sun is north
    shade = ndimage.shift(cloud[::4, ::4], (move[0] / 4.0, move[1] / 4.0), order=1, mode="reflect")
    shade = np.repeat(np.repeat(shade, 4, 0), 4, 1)[: shape[0], : shape[1]]
    return Clouds(cloud.astype(np.float32), np.clip(shade, 0.0, 1.0).astype(np.float32))
