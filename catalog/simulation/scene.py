"""One acquisition as a sensor would deliver it: optical digital numbers, scene classes, radar."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .character import character_of
from .ground import KINDS
from .light import Clouds, light_ground, make_clouds, snow_cover
from .noise import fractal, stream
from .spectra import BANDS, draw, load_spectra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .ground import Ground
    from .light import Light
    from .spec import RegionSpec, SeasonSpec

__all__ = [
    "Acquisition",
    "OpticalScene",
    "plan_acquisitions",
    "render_optical",
    "render_radar",
    "snow_age",
]

_OFFSET_FROM = dt.date(2022, 1, 25)
# ^ processing baseline 04.00 and its radiometric offset of 1000 begin with this acquisition day
_DIFFUSE = (0.30, 0.24, 0.18, 0.12, 0.07, 0.05)
# ^ share of sky light per band; in shade snow then has the measured ratios of shaded to sunlit snow
_HAZE = (0.020, 0.012, 0.008, 0.004, 0.001, 0.0)


@dataclass(frozen=True, slots=True)
class Acquisition:
    """When and under what sky one scene is taken."""

    season: str
    index: int
    when: dt.datetime
    snowiness: float
    cloud: float
    platform: str

    @property
    def name(self) -> str:
        """Name of the scene's random streams."""
        return f"{self.season}/{self.index}"

    @property
    def offset(self) -> int:
        """Digital-number offset of the processing baseline: 1000 or 0."""
        return 1000 if self.when.date() >= _OFFSET_FROM else 0

    @property
    def baseline(self) -> str:
        """Processing baseline, for example ``"05.10"``."""
        year = self.when.year
        if self.offset:
            return "04.00" if year == 2022 else ("05.09" if year == 2023 else "05.11")
        return {2015: "02.01", 2016: "02.04", 2017: "02.06", 2018: "02.08"}.get(year, "02.14")


@dataclass(frozen=True, slots=True)
class OpticalScene:
    """Digital numbers of one acquisition over the whole region, 0 = no data.

    ``bands`` maps B02..B08 to (y, x) uint16 at 10 m and B11, B12 to (y/2, x/2) at 20 m; ``scl``
    is (y/2, x/2) uint8 with the Sentinel-2 scene classes; ``cloud_share`` is the true share under
    cloud, percent.
    """

    bands: dict[str, NDArray[np.uint16]]
    scl: NDArray[np.uint8]
    cloud_share: float


def plan_acquisitions(spec: RegionSpec, season: SeasonSpec) -> list[Acquisition]:
    """Choose day, snow and cloud of a season's scenes: late summer, about 10:40 solar time.

    In a region of its own character the season begins up to two weeks earlier or later, and the
    sensor passes up to an hour earlier or later: other heights of the sun.
    """
    rng = stream(spec.seed, "plan", season.label)
    first = dt.date(season.year, 7, 18) if spec.lat >= 0 else dt.date(season.year, 1, 22)
    varied = character_of(spec) is not None
    sky = stream(spec.seed, "sky", season.label)
    hour = 10.6 + (float(sky.uniform(-0.9, 0.9)) if varied else 0.0)
    if varied:
        first += dt.timedelta(days=int(sky.integers(-14, 15)))
    gap = 66.0 / max(season.scenes, 1)
    plans = []
    for index in range(season.scenes):
        day = first + dt.timedelta(days=int(gap * index + rng.integers(0, max(int(gap * 0.7), 1))))
        seconds = (hour - spec.lon / 15.0) % 24.0 * 3600.0 + float(rng.integers(-400, 400))
        when = dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC) + dt.timedelta(
            seconds=int(seconds) % 86400
        )
        melt = 0.16 * (1.0 - index / max(season.scenes - 1, 1))
        fresh = 0.25 if index == season.scenes - 1 and season.scenes > 2 else 0.0
        snow = (
            season.snowiness * float(rng.uniform(0.6, 1.3))
            + (melt + fresh) * season.snowiness / 0.3
        )
        cloud = season.cloudiness * float(rng.choice([0.05, 0.5, 1.1, 1.7]))
        if index == max(season.scenes - 2, 0):
            cloud = min(cloud, 0.25 * season.cloudiness)
        if season.course:
            snow, cloud = season.course[index]
        platform = "B" if season.year >= 2018 and rng.random() < 0.5 else "A"
        plans.append(
            Acquisition(season.label, index, when, min(snow, 1.0), min(cloud, 0.9), platform)
        )
    return plans


def _halve(field: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, cols = field.shape
    return np.asarray(field.reshape(rows // 2, 2, cols // 2, 2).mean(axis=(1, 3)), dtype=np.float32)


def _snow_reflectance(spec: RegionSpec, shape: tuple[int, int], name: str) -> NDArray[np.float32]:
    fields = np.empty((6, shape[0] * shape[1]), dtype=np.float32)
    for k in range(6):
        rng = stream(spec.seed, "snow-texture", name, k)
        if k < 2:
            fields[k] = fractal(rng, shape, exponent=1.0, longest_px=100.0, shortest_px=3.0).ravel()
        else:
            fields[k] = rng.standard_normal(shape, dtype=np.float32).ravel()
    return draw(load_spectra()["snow"], fields).reshape(6, *shape)


def render_optical(
    spec: RegionSpec,
    ground: Ground,
    acquisition: Acquisition,
    *,
    sun: tuple[float, float],
    convergence_deg: float,
) -> OpticalScene:
    """Render one optical acquisition of the whole region.

    Parameters
    ----------
    spec, ground, acquisition
        Where, what and when.
    sun
        Azimuth from true north and elevation, degrees.
    convergence_deg
        Grid convergence: true north minus grid north seen from the grid, degrees clockwise.
    """
    shape = (ground.ela.shape[0], ground.ela.shape[1])
    azimuth = sun[0] - convergence_deg
    light = light_ground(ground.height, azimuth_deg=azimuth, elevation_deg=sun[1])
    snow = snow_cover(spec, ground, name=acquisition.name, snowiness=acquisition.snowiness)
    clouds = make_clouds(
        spec,
        shape,
        name=acquisition.name,
        cover=acquisition.cloud,
        azimuth_deg=azimuth,
        elevation_deg=sun[1],
    )
    white = _snow_reflectance(spec, shape, acquisition.name)
    rng = stream(spec.seed, "noise", acquisition.name)
    haze = float(rng.uniform(0.2, 1.0))
    character = character_of(spec)
    if character is not None:
        haze *= character.haze
        clouds = _veiled(spec, clouds, name=acquisition.name, opacity=character.veil)
        white *= snow_age(spec, acquisition)[:, None, None]
    thin = 1.0 - 0.35 * np.clip((ground.height - ground.height.min()) / 2500.0, 0.0, 1.0)
    bands: dict[str, NDArray[np.uint16]] = {}
    halves: dict[str, NDArray[np.float32]] = {}
    for k, band in enumerate(BANDS):
        value = ground.reflectance[k] * (1.0 - snow) + white[k] * snow
        value *= _illumination(light, clouds, _DIFFUSE[k])
        value += np.float32(haze * _HAZE[k]) * thin
        top = _cloud_brightness(k)
        value += clouds.cloud * (top * (0.9 + 0.1 * light.direct) - value)
        if k >= 4:
            value = _halve(value)
        value += rng.standard_normal(value.shape, dtype=np.float32) * np.float32(0.0025)
        halves[band] = value if k >= 4 else _halve(value)
        number = np.rint(value * 10000.0) + acquisition.offset
        bands[band] = np.clip(number, 1, 65534).astype(np.uint16)
    scl = _classify(spec, acquisition, halves, light=light, clouds=clouds)
    gone = _swath_edge(spec, acquisition, shape)
    if gone is not None:
        for numbers in bands.values():
            numbers[gone if numbers.shape == shape else gone[::2, ::2]] = 0
        scl[gone[::2, ::2]] = 0
    return OpticalScene(bands, scl, float(100.0 * (clouds.cloud > 0.15).mean()))


def _veiled(spec: RegionSpec, clouds: Clouds, *, name: str, opacity: float) -> Clouds:
    """Cirrus over a part of the scene, thin enough to see the ground through."""
    rng = stream(spec.seed, "veil", name)
    field = fractal(rng, clouds.cloud.shape, exponent=2.4, longest_px=700.0, shortest_px=25.0)
    veil = opacity * np.clip(0.5 * (field - float(rng.uniform(0.3, 1.6))), 0.0, 1.0)
    return Clouds(np.maximum(clouds.cloud, veil.astype(np.float32)), clouds.shade)


def snow_age(spec: RegionSpec, acquisition: Acquisition) -> NDArray[np.float32]:
    """Factors (6,) on snow: old wet snow is darker, most where grains absorb (Warren 1982)."""
    rng = stream(spec.seed, "wet", acquisition.name)
    wet, dust = float(rng.uniform(0.0, 1.0)), float(rng.uniform(0.0, 0.05))
    age = 1.0 - wet * np.array([0.01, 0.02, 0.04, 0.16, 0.35, 0.35])
    soil = 1.0 - dust * np.array([1.0, 0.9, 0.7, 0.4, 0.0, 0.0])
    return np.asarray(age * soil, dtype=np.float32)


def _cloud_brightness(k: int) -> np.float32:
    return np.float32((0.78, 0.78, 0.79, 0.80, 0.52, 0.40)[k])


def _illumination(light: Light, clouds: Clouds, diffuse: float) -> NDArray[np.float32]:
    beam = (1.0 - diffuse) * light.direct * light.lit * (1.0 - 0.85 * clouds.shade)
    return np.asarray(beam + diffuse * light.sky, dtype=np.float32)


def _swath_edge(
    spec: RegionSpec, acquisition: Acquisition, shape: tuple[int, int]
) -> NDArray[np.bool_] | None:
    # One acquisition in eight sees only part of the region.
    rng = stream(spec.seed, "swath", acquisition.name)
    if rng.random() > 0.125:
        return None
    y, x = np.ogrid[: shape[0], : shape[1]]
    cut = float(rng.uniform(0.1, 0.4)) * shape[1]
    edge = x + 0.21 * y - 0.1 * shape[0] < cut
    return np.asarray(edge if rng.random() < 0.5 else edge[:, ::-1])


def _classify(
    spec: RegionSpec,
    acquisition: Acquisition,
    half: dict[str, NDArray[np.float32]],
    *,
    light: Light,
    clouds: Clouds,
) -> NDArray[np.uint8]:
    """Imitate the Sentinel-2 scene classification with its usual errors."""
    shape = half["B04"].shape
    rng = stream(spec.seed, "scl", acquisition.name)
    wobble = fractal(rng, (shape[0], shape[1]), exponent=1.4, longest_px=40.0, shortest_px=2.0)
    green, red, nir, swir = (half[b] for b in ("B03", "B04", "B08", "B11"))
    ndsi = (green - swir) / np.maximum(green + swir, 0.01)
    ndvi = (nir - red) / np.maximum(nir + red, 0.01)
    out = np.full(shape, 5, dtype=np.uint8)
    out[ndvi > 0.42] = 4
    out[(ndsi > 0.35) & (nir > 0.11)] = 11
    out[(nir < 0.06) & (green > red) & (green > 0.05) & (ndsi > 0.2)] = 6
    out[(green < 0.055) & (nir < 0.07)] = 2
    cloud = _halve(clouds.cloud)
    shade = _halve(clouds.shade)
    character = character_of(spec)
    if character is not None and rng.random() < character.missed:
        blind = ndimage.gaussian_filter(wobble, 6.0) * 12.0 > float(rng.uniform(-0.5, 1.5))
        cloud, shade = cloud * ~blind, shade * ~blind
        # ^ real masks miss whole banks of cloud, not single pixels
    out[(shade > 0.4 + 0.1 * wobble) & (nir < 0.4)] = 3
    out[(cloud > 0.16 + 0.05 * wobble) & (cloud <= 0.4) & (wobble > -0.4)] = 10
    out[cloud > 0.38 + 0.10 * wobble] = 8
    out[cloud > 0.62 + 0.10 * wobble] = 9
    false = (out == 11) & (wobble > 2.0) & (_halve(light.direct) > 1.05)
    out[false] = 8
    # ^ bright sun-facing snow taken for cloud, the commonest error of the real product
    odd = (out == 5) & (wobble > 2.6)
    out[odd] = 7
    return out


_BACKSCATTER = {
    "rock": (-9.5, -16.5),
    "granite": (-9.0, -16.0),
    "dark": (-10.0, -17.0),
    "red": (-9.5, -16.5),
    "moraine": (-8.8, -15.5),
    "grass": (-10.5, -16.0),
    "ice": (-11.5, -19.0),
    "firn": (-9.5, -17.5),
    "debris": (-8.6, -15.2),
    "pond": (-15.0, -23.0),
    "cliff": (-8.0, -15.5),
    "water": (-18.5, -26.0),
    "turbid": (-17.5, -25.0),
    "wood": (-10.0, -15.0),
    "gravel": (-10.0, -17.5),
    "creeping": (-8.7, -15.4),
}


def render_radar(
    spec: RegionSpec, ground: Ground, *, name: str, ascending: bool
) -> dict[str, NDArray[np.float32]]:
    """Render terrain-corrected backscatter: ``vv`` and ``vh`` gamma0, linear power, (y, x) float32.

    Speckle is gamma with 4.4 looks; layover and shadow of the right-looking beam are no data
    (-32768).
    """
    shape = (ground.ela.shape[0], ground.ela.shape[1])
    rng = stream(spec.seed, "radar", name)
    south, east = np.gradient(ndimage.gaussian_filter(ground.height, 1.0), 10.0)
    towards = east if ascending else -east
    # ^ an ascending pass looks east: ground rising eastwards faces the beam
    lost = (towards > np.tan(np.radians(38.0)) * 1.6) | (towards < -np.tan(np.radians(56.0)))
    texture = fractal(rng, shape, exponent=1.0, longest_px=60.0, shortest_px=2.0)
    wet = float(rng.normal(0.0, 0.4))
    rough = np.hypot(south, east)
    out = {}
    for column, polarisation in enumerate(("vv", "vh")):
        table = np.array([_BACKSCATTER[kind][column] for kind in KINDS], dtype=np.float32)
        level = table[ground.kind]
        level = (
            level
            + 1.3 * texture
            + 1.1 * np.clip(towards, -1.0, 1.0)
            + 1.2 * np.minimum(rough, 1.0)
            + wet
        )
        power = 10.0 ** (level / 10.0)
        looks = np.float32(4.4)
        power *= rng.standard_gamma(4.4, size=shape, dtype=np.float32) / looks
        power[lost] = -32768.0
        out[polarisation] = power.astype(np.float32)
    return out
