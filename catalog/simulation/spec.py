"""What a made-up region is asked to be: place, look, seasons. Pure values, no input or output."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from catalog.errors import UsageError

__all__ = [
    "RegionSpec",
    "SeasonSpec",
    "Style",
    "calibration_specs",
    "demo_spec",
    "style_of",
    "training_specs",
]

StyleName = Literal["alpine", "himalaya", "arctic"]


@dataclass(frozen=True, slots=True)
class SeasonSpec:
    """One mapping season.

    Parameters
    ----------
    label
        Name of the season in file names, for example ``"2016"``.
    year
        Calendar year of the scenes.
    ela_rise_m
        Rise of the equilibrium line above that of the first season, metres.
    scenes
        Number of optical acquisitions (each may be several granules).
    snowiness
        0 = bare rock and ice in every scene, 1 = deep seasonal snow.
    cloudiness
        Mean cloud cover of the season's scenes, 0 to 1.
    sensor
        Who takes them: Sentinel-2, or Landsat 8, which does since 2013.
    course
        Snowiness and cloud cover of each scene in order of time, in the place of what is drawn from
        the two above; empty, or ``scenes`` pairs.
    """

    label: str
    year: int
    ela_rise_m: float = 0.0
    scenes: int = 3
    snowiness: float = 0.2
    cloudiness: float = 0.2
    sensor: Literal["sentinel-2", "landsat-8"] = "sentinel-2"
    course: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A made-up region; equal specs give byte-equal rasters.

    Parameters
    ----------
    name
        Short name, used in glacier ids.
    seed
        Seed of everything random.
    style
        Kind of mountains.
    lon, lat
        Centre, degrees (EPSG:4326).
    size_km
        Side of the square region.
    seasons
        Seasons in order of time.
    sar, dem
        Whether radar scenes and an elevation model are delivered.
    """

    name: str
    seed: int
    style: StyleName
    lon: float
    lat: float
    size_km: float = 20.0
    seasons: tuple[SeasonSpec, ...] = ()
    sar: bool = True
    dem: bool = True

    def __post_init__(self) -> None:
        if not self.seasons:
            raise UsageError(f"region {self.name!r} has no seasons: give at least one SeasonSpec")
        labels = [season.label for season in self.seasons]
        if len(set(labels)) != len(labels):
            raise UsageError(f"season labels of region {self.name!r} repeat: {labels}")
        if not -80.0 < self.lat < 80.0 or not -180.0 <= self.lon <= 180.0:
            raise UsageError(f"region {self.name!r} lies at {self.lon}, {self.lat}: outside UTM")
        if not 2.0 <= self.size_km <= 60.0:
            raise UsageError(f"size_km is {self.size_km}; 2 to 60 are supported")
        for season in self.seasons:
            if not 1 <= season.scenes <= 30:
                raise UsageError(
                    f"season {season.label!r} asks for {season.scenes} scenes: 1 to 30"
                )
            if season.sensor == "landsat-8" and season.year < 2013:
                raise UsageError(f"season {season.label!r}: Landsat 8 delivers since 2013")
            if season.course and len(season.course) != season.scenes:
                raise UsageError(
                    f"season {season.label!r} has {season.scenes} scenes and a course of "
                    f"{len(season.course)}: give one pair a scene"
                )
        if self.style not in _STYLES:
            raise UsageError(f"style is {self.style!r}; known styles are {sorted(_STYLES)}")

    @property
    def side_px(self) -> int:
        """Side of the 10 m grid in pixels, a multiple of 16."""
        return 16 * round(self.size_km * 100.0 / 16.0)

    def as_json(self) -> str:
        """Canonical text of the spec; what is as usual is not said, so names outlive additions."""
        values = asdict(self)
        usual = asdict(SeasonSpec("", 0))
        for season in values["seasons"]:
            for name in ("sensor", "course"):
                if season[name] == usual[name]:
                    del season[name]
        return json.dumps(values, sort_keys=True, indent=1)

    def digest(self) -> str:
        """Return the first 12 hex digits of the sha256 of the canonical text."""
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Style:
    """Numbers behind a style name; lengths in metres, shares of area in 0..1."""

    relief_m: float
    base_m: float
    repose: float
    """Tangent of the steepest slope that stands before detail is added."""
    ice_share: float
    debris_share: float
    balance_gradient: float
    """Mass balance per metre of elevation, m w.e. per year per m."""
    max_balance: float
    treeline_m: float
    """Height of the upper limit of vegetation below the equilibrium line."""
    rock_brightness: float
    moraine_m: float


_STYLES: dict[str, Style] = {
    "alpine": Style(2100.0, 900.0, 0.95, 0.22, 0.33, 0.0075, 2.2, 650.0, 1.0, 12.0),
    "himalaya": Style(3100.0, 3300.0, 1.05, 0.23, 0.40, 0.0080, 1.8, 1100.0, 1.1, 20.0),
    "arctic": Style(1250.0, 40.0, 0.75, 0.30, 0.27, 0.0055, 1.3, 480.0, 0.85, 8.0),
}


def style_of(spec: RegionSpec) -> Style:
    """Return the numbers behind the spec's style name."""
    return _STYLES[spec.style]


def demo_spec() -> RegionSpec:
    """Return the demonstration region: three seasons, ice loss between them."""
    return RegionSpec(
        name="DEMO",
        seed=20161,
        style="alpine",
        lon=-28.24,
        lat=46.55,
        size_km=20.0,
        seasons=(
            SeasonSpec("2016", 2016, 0.0, 4, 0.15, 0.22),
            SeasonSpec("2020", 2020, 40.0, 4, 0.2, 0.22),
            SeasonSpec("2024", 2024, 86.0, 4, 0.15, 0.22),
        ),
    )


def training_specs() -> tuple[RegionSpec, ...]:
    """Return fifteen regions to train on; none shares seed or place with the demonstration.

    The ice of each retreats over three seasons, so that ground which ice has left is as common
    among what is learnt as it is among what will be mapped.
    """
    places: tuple[_Place, ...] = (
        ("alpine", -36.2, 43.8, 15.0, 2017),
        ("himalaya", -45.4, 30.5, 16.0, 2018),
        ("arctic", -1.8, 72.3, 15.0, 2019),
        ("alpine", -128.6, -45.2, 15.0, 2016),
        ("himalaya", 161.3, 33.7, 15.0, 2020),
        ("alpine", -150.5, 50.4, 16.0, 2018),
        ("arctic", -113.7, -62.4, 15.0, 2020),
        ("himalaya", 86.2, -33.4, 15.0, 2017),
        ("alpine", -21.3, 58.6, 15.0, 2019),
        ("himalaya", -158.2, 38.3, 15.0, 2018),
        ("alpine", 52.7, -46.9, 15.0, 2017),
        ("arctic", -38.5, 57.1, 15.0, 2016),
        ("himalaya", -60.8, 35.6, 15.0, 2019),
        ("alpine", 170.4, 46.1, 15.0, 2020),
        ("arctic", 96.3, -58.2, 15.0, 2018),
    )
    return _retreating("TRAIN", 7100, places)


def calibration_specs() -> tuple[RegionSpec, ...]:
    """Return six regions on which an ensemble's uncertainty is measured; no member sees them."""
    return _retreating(
        "CALIB",
        9200,
        (
            ("alpine", -24.9, 40.2, 12.0, 2018),
            ("himalaya", 178.4, 31.2, 12.0, 2017),
            ("arctic", -11.6, 67.8, 12.0, 2020),
            ("alpine", -98.3, -47.4, 12.0, 2019),
            ("himalaya", -52.1, 33.9, 12.0, 2020),
            ("alpine", -140.7, 48.6, 12.0, 2016),
        ),
    )


_Place = tuple[StyleName, float, float, float, int]
# ^ style, longitude and latitude of the centre, side in km, first year


def _retreating(name: str, seed: int, places: tuple[_Place, ...]) -> tuple[RegionSpec, ...]:
    """Regions of three seasons, three years apart, in which the equilibrium line rises."""
    return tuple(
        RegionSpec(
            name=f"{name}{index:02d}",
            seed=seed + 37 * index,
            style=style,
            lon=lon,
            lat=lat,
            size_km=size_km,
            seasons=tuple(
                SeasonSpec(
                    label=str(year + 3 * step),
                    year=year + 3 * step,
                    ela_rise_m=(45.0 + 8.0 * (index % 3)) * step,
                    scenes=3,
                    snowiness=0.1 + 0.05 * ((index + 2 * step) % 4),
                    cloudiness=0.15 + 0.05 * step,
                )
                for step in range(3)
            ),
        )
        for index, (style, lon, lat, size_km, year) in enumerate(places)
    )
