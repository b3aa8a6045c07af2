"""What a made-up region is asked to be: place, look, seasons. Pure values, no input or output."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from catalog.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "RegionSpec",
    "SeasonSpec",
    "Style",
    "TerrainShape",
    "calibration_specs",
    "demo_spec",
    "heldout_specs",
    "style_of",
    "terrain_shape",
    "terrain_specs",
    "training_specs",
]

StyleName = Literal[
    "plain", "alpine", "himalaya", "arctic", "karakoram", "patagonia", "alaska", "tien-shan"
]
Sensor = Literal["sentinel-2", "landsat-7", "landsat-8"]
_SINCE: dict[str, int] = {"landsat-7": 1999, "landsat-8": 2013}
# ^ first year a sensor delivers


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
        Who takes them: Sentinel-2, Landsat 8 since 2013, or Landsat 7 since 1999, whose scenes have
        stripes of nothing since June 2003.
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
    sensor: Sensor = "sentinel-2"
    course: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TerrainShape:
    """A square of a real elevation model whose shape a region takes.

    Parameters
    ----------
    path
        Raster of heights, m, in any CRS.
    lon, lat
        Middle of the square, degrees (EPSG:4326).
    """

    path: str
    lon: float
    lat: float


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
    terrain
        Real mountains under the made-up ice; None: the mountains are made up too.
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
    terrain: TerrainShape | None = None

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
            since = _SINCE.get(season.sensor, 0)
            if season.year < since:
                raise UsageError(f"season {season.label!r}: {season.sensor} delivers since {since}")
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
        if self.terrain is None:
            del values["terrain"]
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
    melt: float = 1.0
    """Factor on all melt: below 1 where debris shields long tongues."""
    tongues: float = 0.0
    """How much debris prefers the low ends of large glaciers."""
    plants: tuple[str, str] = ("meadow", "meadow")
    """What grows below the upper limit of vegetation, and what grows 350 m lower."""
    varied: bool = False
    """Whether each region has colours, roughness, dirt and sky of its own, see ``character``."""


_STYLES: dict[str, Style] = {
    "plain": Style(2100.0, 900.0, 0.95, 0.22, 0.33, 0.0075, 2.2, 650.0, 1.0, 12.0),
    "alpine": Style(
        2100.0, 900.0, 0.95, 0.22, 0.27, 0.0075, 2.2, 650.0, 1.0, 16.0,
        melt=0.85, tongues=0.2, plants=("meadow", "forest"), varied=True,
    ),
    "himalaya": Style(
        3100.0, 3300.0, 1.05, 0.23, 0.34, 0.0080, 1.8, 1100.0, 1.1, 28.0,
        melt=0.6, tongues=0.8, plants=("meadow", "shrub"), varied=True,
    ),
    "arctic": Style(
        1250.0, 40.0, 0.75, 0.30, 0.18, 0.0055, 1.3, 480.0, 0.85, 10.0,
        melt=0.9, plants=("tundra", "tundra"), varied=True,
    ),
    "karakoram": Style(
        3300.0, 2900.0, 1.05, 0.24, 0.38, 0.0080, 1.8, 1300.0, 1.1, 34.0,
        melt=0.5, tongues=1.0, plants=("steppe", "meadow"), varied=True,
    ),
    "patagonia": Style(
        1900.0, 250.0, 0.90, 0.26, 0.20, 0.0095, 3.0, 500.0, 0.9, 14.0,
        melt=0.9, plants=("shrub", "forest"), varied=True,
    ),
    "alaska": Style(
        2300.0, 300.0, 0.90, 0.27, 0.28, 0.0080, 2.4, 600.0, 0.9, 18.0,
        melt=0.7, tongues=0.5, plants=("tundra", "forest"), varied=True,
    ),
    "tien-shan": Style(
        2500.0, 2300.0, 1.00, 0.23, 0.34, 0.0070, 1.6, 900.0, 1.0, 18.0,
        melt=0.8, tongues=0.4, plants=("steppe", "forest"), varied=True,
    ),
}  # fmt: skip


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
            SeasonSpec("2020", 2020, 30.0, 4, 0.2, 0.22),
            SeasonSpec("2024", 2024, 65.0, 4, 0.15, 0.22),
        ),
    )


def training_specs() -> tuple[RegionSpec, ...]:
    """Return twenty regions to train on; none shares seed or place with the demonstration.

    The ice of each retreats over three seasons, so that ground which ice has left is as common
    among what is learnt as it is among what will be mapped. Two regions in three have a season of
    Landsat.
    """
    places: tuple[_Place, ...] = (
        ("alpine", -36.2, 43.8, 14.0, 2017),
        ("himalaya", -45.4, 30.5, 16.0, 2018),
        ("arctic", -1.8, 72.3, 14.0, 2019),
        ("karakoram", -128.6, 35.2, 16.0, 2016),
        ("patagonia", 161.3, -47.7, 14.0, 2020),
        ("alaska", -150.5, 50.4, 15.0, 2018),
        ("alpine", -113.7, -43.4, 14.0, 2020),
        ("himalaya", 86.2, -33.4, 16.0, 2017),
        ("karakoram", -21.3, 38.6, 16.0, 2019),
        ("arctic", -158.2, -60.3, 14.0, 2018),
        ("alaska", 52.7, 60.9, 15.0, 2017),
        ("patagonia", -38.5, -52.1, 14.0, 2016),
        ("himalaya", -60.8, 35.6, 16.0, 2019),
        ("alpine", 170.4, 46.1, 14.0, 2020),
        ("karakoram", 96.3, -38.2, 16.0, 2018),
        ("alaska", -140.6, -55.3, 15.0, 2019),
        ("arctic", -30.9, 63.4, 14.0, 2017),
        ("himalaya", 148.8, 36.2, 16.0, 2016),
        ("karakoram", -170.3, 33.1, 16.0, 2020),
        ("alpine", -15.7, -46.6, 14.0, 2018),
    )
    return _retreating("TRAIN", 7100, places)


def terrain_shape(text: str) -> TerrainShape:
    """Read ``FILE,LON,LAT``.

    Raises
    ------
    UsageError
        Where it says something else, or there is no such file.
    """
    path, _, place = text.partition(",")
    lon, _, lat = place.partition(",")
    try:
        shape = TerrainShape(path, float(lon), float(lat))
    except ValueError:
        raise UsageError(f"expected FILE,LON,LAT of an elevation model, found {text!r}") from None
    if not Path(path).is_file():
        raise UsageError(f"there is no elevation model {path!r}")
    return shape


def terrain_specs(shapes: Sequence[TerrainShape]) -> tuple[RegionSpec, ...]:
    """Return regions to train on, 14 km wide, whose mountains are squares of real elevation models.

    Glaciers, cover and light are made up; the regions lie where no other does, not where the
    mountains are. Squares must not overlap: folds would share mountains.
    """
    styles: tuple[StyleName, ...] = ("alpine", "himalaya", "alaska", "karakoram")
    places: tuple[_Place, ...] = tuple(
        (styles[i % 4], 20.5 + 7.0 * i, -36.0 - 3.0 * i, 14.0, 2016 + i % 5)
        for i in range(len(shapes))
    )
    return tuple(
        replace(spec, terrain=shape)
        for spec, shape in zip(_retreating("SHAPE", 8300, places), shapes, strict=True)
    )


def calibration_specs() -> tuple[RegionSpec, ...]:
    """Return eight regions on which an ensemble's uncertainty is measured; no member sees them."""
    return _retreating(
        "CALIB",
        9200,
        (
            ("alpine", -24.9, 40.2, 12.0, 2018),
            ("himalaya", 178.4, 31.2, 13.0, 2017),
            ("arctic", -11.6, 67.8, 12.0, 2020),
            ("karakoram", -98.3, -37.4, 13.0, 2019),
            ("patagonia", -52.1, -49.9, 12.0, 2020),
            ("alaska", -134.7, 55.6, 12.0, 2016),
            ("himalaya", 65.3, -30.8, 13.0, 2018),
            ("alpine", -83.2, 47.3, 12.0, 2019),
        ),
    )


def heldout_specs() -> tuple[RegionSpec, ...]:
    """Return four regions of a style that no training region has, to measure an ensemble by."""
    return _retreating(
        "HELD",
        9700,
        (
            ("tien-shan", -5.2, 42.9, 13.0, 2017),
            ("tien-shan", 121.6, 40.7, 13.0, 2018),
            ("tien-shan", -72.4, -41.6, 13.0, 2019),
            ("tien-shan", 35.1, 44.8, 13.0, 2016),
        ),
    )


_Place = tuple[StyleName, float, float, float, int]
# ^ style, longitude and latitude of the centre, side in km, first year
_SENSORS: tuple[tuple[Sensor, Sensor, Sensor], ...] = (
    ("sentinel-2", "sentinel-2", "sentinel-2"),
    ("landsat-8", "sentinel-2", "sentinel-2"),
    ("landsat-7", "sentinel-2", "landsat-8"),
)


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
                    ela_rise_m=(35.0 + 5.0 * (index % 3)) * step,
                    scenes=3,
                    snowiness=0.05 + 0.09 * ((index + 2 * step) % 5),
                    cloudiness=0.15 + 0.05 * step,
                    sensor=_SENSORS[index % 3][step],
                )
                for step in range(3)
            ),
        )
        for index, (style, lon, lat, size_km, year) in enumerate(places)
    )
