"""The darkest pixels tell whether the catalogue says the truth about Sentinel-2's offset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rasters import KEYS, optical_item, small_grid

from catalog.assets import AssetPolicy, gdal_env  # noqa: F401  before rasterio
from catalog.composites import build_cube_shard, create_season
from catalog.cube import Workspace
from catalog.masks import mask_halo, usable_pixels
from catalog.radiometry import DarkPixels, count_dark, judge_offset
from catalog.scenes import Scene
from catalog.sensors import describe_item
from catalog.simulation import RegionSpec, SeasonSpec
from catalog.simulation.ground import cover_ground
from catalog.simulation.ice import grow_ice
from catalog.simulation.light import sun_position
from catalog.simulation.scene import plan_acquisitions, render_optical
from catalog.simulation.spectra import BANDS
from catalog.simulation.terrain import make_bed

import rasterio  # isort: skip

KHUMBU = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data")) / "khumbu"
SNOW = {"blue": 0.95, "green": 0.95, "red": 0.93, "nir": 0.85, "swir1": 0.05, "swir2": 0.03}
ROCK = {"blue": 0.10, "green": 0.13, "red": 0.16, "nir": 0.20, "swir1": 0.28, "swir2": 0.25}
HAZE = {role: value + 0.12 for role, value in SNOW.items()}


@pytest.fixture(scope="module")
def promise(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return describe_item(optical_item(tmp_path_factory.mktemp("s2"), "S2A", when="2024-08-12"))


def promising(scene: Scene, offset: float, baseline: str | None = "05.11") -> Scene:
    bands = tuple(replace(band, offset=offset) for band in scene.bands)
    return replace(scene, bands=bands, baseline=baseline)


def as_read(reflectance: np.ndarray, clear: np.ndarray) -> DarkPixels:
    stored = np.clip(np.rint(reflectance * 1e4) + 1000, 1, 65534).astype(np.uint16)
    return count_dark(stored, clear, scale=1e-4, offset=-0.1)


def simulated_scenes() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Twenty acquisitions of 25 km2 as they are, and which pixels their classification leaves."""
    season = SeasonSpec("2024", 2024, 0.0, 20, 0.3, 0.08)
    spec = RegionSpec(
        name="R", seed=3, style="alpine", lon=11.0, lat=46.5, size_km=5.0, seasons=(season,)
    )
    bed = make_bed(spec)
    (state,) = grow_ice(spec, bed)
    ground = cover_ground(spec, bed, state, first=state)
    halo = mask_halo(10)
    for acquisition in plan_acquisitions(spec, season):
        sun = sun_position(acquisition.when, lon=spec.lon, lat=spec.lat)
        scene = render_optical(spec, ground, acquisition, sun=sun, convergence_deg=0.0)
        numbers = np.stack(
            [
                band if band.shape == ground.ela.shape else np.kron(band, np.ones((2, 2)))
                for band in (scene.bands[name] for name in BANDS)
            ]
        )
        classes = np.kron(scene.scl, np.ones((2, 2), np.uint8))
        clear = usable_pixels(np.pad(classes, halo, mode="edge"), resolution_m=10)
        clear &= (numbers > 0).all(axis=0)
        yield numbers * 1e-4 - acquisition.offset * 1e-4, clear


def test_of_forty_scenes_the_twenty_lying_ones_are_found_and_no_other(promise: Scene) -> None:
    found, expected = [], []
    for index, (truth, clear) in enumerate(simulated_scenes()):
        assert clear.sum() * 100 > 10e6
        says_taken_off = index % 2 == 0
        scene = promising(promise, 0.0 if says_taken_off else -0.1)
        lie = 0.1 if says_taken_off else -0.1
        for error in (0.0, lie):
            found.append(judge_offset(scene, [as_read(truth + error, clear)], resolution_m=10))
            expected.append(error)
    assert len(found) == 40
    assert [text is not None for text in found] == [error != 0 for error in expected]
    for text, error in zip(found, expected, strict=True):
        if error:
            assert text
            assert ("already taken off" if error < 0 else "not taken off") in text


@pytest.mark.real_data
@pytest.mark.parametrize("season", ["winter", "spring", "summer", "autumn"])
def test_real_mountains_are_believed_with_the_right_offset_only(
    promise: Scene, season: str
) -> None:
    """Squares of 10 km2 of glacier, debris, lakes and rock: each is judged by itself."""
    path = KHUMBU / f"s2_{season}_2024.tif"
    if not path.exists():
        pytest.skip(f"no real scene at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    with rasterio.open(path) as file:
        truth = file.read().astype(np.float64)
    for rows in (slice(0, 128), slice(128, 256)):
        for cols in (slice(0, 128), slice(128, 256)):
            part = truth[:, rows, cols]
            clear = np.isfinite(part).all(axis=0)
            for offset, lie in ((0.0, 0.1), (-0.1, -0.1)):
                scene = promising(promise, offset)
                for error in (0.0, lie):
                    counts = as_read(np.nan_to_num(part) + error, clear)
                    wrong = judge_offset(scene, [counts], resolution_m=25)
                    assert (wrong is not None) == (error != 0.0)


@pytest.mark.parametrize(
    ("offset", "baseline", "counts", "wrong"),
    [
        (0.0, "05.11", DarkPixels(200_000, 0, 100), True),
        (0.0, None, DarkPixels(200_000, 0, 100), True),
        (0.0, "03.01", DarkPixels(200_000, 0, 100), False),  # no offset to be taken off
        (-0.1, "05.11", DarkPixels(200_000, 0, 100), False),  # it was taken off
        (0.0, "05.11", DarkPixels(200_000, 0, 500), False),
        (0.0, "05.11", DarkPixels(90_000, 0, 0), False),  # 9 km2: there may be no shade
        (0.0, "05.11", DarkPixels(200_000, 9000, 200_000), False),  # nothing was taken off
        (-0.1, "05.11", DarkPixels(200_000, 2100, 200_000), True),
        (-0.1, "05.11", DarkPixels(200_000, 1900, 200_000), False),  # deep shade
        (-0.1, "05.11", DarkPixels(1000, 1000, 1000), True),
        (-0.1, "05.11", DarkPixels(999, 999, 999), False),
        (0.0, "05.11", DarkPixels(0, 0, 0), False),  # all cloud
    ],
)
def test_only_the_possible_lie_is_looked_for_and_only_where_it_would_show(
    promise: Scene, offset: float, baseline: str | None, counts: DarkPixels, wrong: bool
) -> None:
    scene = promising(promise, offset, baseline)
    assert (judge_offset(scene, [counts], resolution_m=10) is not None) == wrong
    half = DarkPixels(*(n // 2 for n in (counts.clear, counts.negative, counts.dark)))
    rest = DarkPixels(
        counts.clear - half.clear, counts.negative - half.negative, counts.dark - half.dark
    )
    assert judge_offset(scene, [half, rest], resolution_m=10) == judge_offset(
        scene, [counts], resolution_m=10
    )


def test_only_clear_pixels_count() -> None:
    reflectance = np.full((6, 4, 4), 0.5)
    reflectance[4, :2] = 0.02
    reflectance[5, 0] = -0.05
    everywhere = np.ones((4, 4), bool)
    assert as_read(reflectance, everywhere) == DarkPixels(16, 4, 8)
    assert as_read(reflectance, np.arange(16).reshape(4, 4) >= 4) == DarkPixels(12, 0, 4)
    assert as_read(reflectance, ~everywhere) == DarkPixels(0, 0, 0)


@pytest.mark.parametrize(
    ("ground", "offset", "error", "kind"),
    [
        (SNOW, 0.0, 0.0, None),
        (SNOW, -0.1, 0.0, None),
        (SNOW, 0.0, 0.1, "radiometry-doubtful"),
        (SNOW, -0.1, -0.1, "radiometry-doubtful"),
        (ROCK, -0.1, 0.0, None),
        (HAZE, 0.0, 0.0, "radiometry-doubtful"),
    ],
)
def test_a_lying_scene_is_set_aside_from_the_cube_by_name(
    tmp_path: Path, ground: dict[str, float], offset: float, error: float, kind: str | None
) -> None:
    """A shard of 23 km2 of one surface alone, all snow for example, is enough."""
    paint = {
        role: (lambda x, y, value=ground[role] + error: np.full(x.shape, value)) for role in KEYS
    }
    grid = small_grid(resolution_m=40, size_m=4800)
    (shard,) = [s for s in grid.shards() if s.row == grid.rows // 2 and s.col == grid.cols // 2]
    item = optical_item(tmp_path, "S2A", when="2024-08-12", paint=paint, offset=offset)
    workspace = Workspace(tmp_path / "workspace")
    create_season(workspace, "2024", grid, sar=False)
    outcome = build_cube_shard(
        workspace,
        "2024",
        shard,
        optical=[describe_item(item)],
        sar=None,
        policy=AssetPolicy((str(tmp_path),)),
    )
    assert [(f.what, f.kind) for f in outcome.set_aside] == ([("S2A", kind)] if kind else [])
    assert (outcome.facts["valid_fraction"] > 0) == (kind is None)
