"""Co-registration: shifts are measured to a tenth of a pixel, and taken off where they matter."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from conftest import Small
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from painted_world import new_workspace
from pyproj import Transformer
from rasters import CENTRE, UTM, landsat_item, optical_item, sar_item, small_grid
from scipy import ndimage

from catalog.assets import AssetPolicy
from catalog.composites import build_cube_shard, create_season
from catalog.coregistration import Shift, aligned, build_shift, coregister, reference_order
from catalog.cube import Workspace, read_shard
from catalog.displacement import measure_shift
from catalog.errors import UsageError
from catalog.glaciers import read_reference
from catalog.grid import RegionGrid, region_grid
from catalog.scenes import Scene
from catalog.sensors import describe_item

import rasterio  # isort: skip

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", ROOT.parent / "shared" / "data"))
KHUMBU = DATA / "khumbu"
PIXEL = 10.0
X0, Y0 = Transformer.from_crs(4326, UTM, always_xy=True).transform(*CENTRE)
GLACIER = shapely.box(X0 - 400, Y0 - 400, X0 + 400, Y0 + 400)


def rough(edge: int, *, seed: int, power: float) -> np.ndarray:
    """Periodic fractal surface of mean 0 and standard deviation 1."""
    k = np.hypot(*np.meshgrid(np.fft.fftfreq(edge), np.fft.fftfreq(edge)))
    k[0, 0] = 1.0
    noise = np.fft.fft2(np.random.default_rng(seed).normal(size=(edge, edge)))
    surface = np.fft.ifft2(noise * k**-power).real
    return (surface - surface.mean()) / surface.std()


def lit(heights: np.ndarray, *, azimuth: float, elevation: float) -> np.ndarray:
    """Lambertian shading of a surface; rows run south."""
    a, e = np.radians([azimuth, elevation])
    south, east = np.gradient(heights)
    light = -east * np.sin(a) * np.cos(e) + south * np.cos(a) * np.cos(e) + np.sin(e)
    return np.maximum(0.05, light / np.sqrt(1 + east**2 + south**2))


FINE = 4
# ^ points of the ground along a pixel
EDGE = 64
HEIGHTS = 60 * rough((EDGE + 32) * FINE, seed=1, power=2.2)
ALBEDO = 0.2 + 0.03 * rough((EDGE + 32) * FINE, seed=2, power=1.2)


def photograph(
    dx: float = 0, dy: float = 0, *, azimuth: float = 150, elevation: float = 50, noise: int = 0
) -> np.ndarray:
    """Ground as a sensor sees it whose pixels lie dx to the east and dy to the north, pixels."""
    ground = ndimage.uniform_filter(
        ALBEDO * lit(HEIGHTS, azimuth=azimuth, elevation=elevation), FINE, mode="wrap"
    )
    at = (16 + np.arange(EDGE)) * FINE
    rows, cols = np.meshgrid(at + dy * FINE, at - dx * FINE, indexing="ij")
    seen = ndimage.map_coordinates(ground, [rows, cols], order=3, mode="grid-wrap")
    return seen + np.random.default_rng(noise).normal(0, 0.002, seen.shape)


def patches(seed: int, part: float) -> np.ndarray:
    blobs = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(EDGE, EDGE)), 8)
    return blobs > np.quantile(blobs, 1 - part)


EVERYWHERE = np.ones((EDGE, EDGE), bool)
REFERENCE = photograph()


@settings(max_examples=25, deadline=None)
@given(
    dx=st.floats(-6, 6),
    dy=st.floats(-6, 6),
    gain=st.floats(0.4, 3),
    bias=st.floats(-0.1, 0.3),
    seed=st.integers(0, 1000),
)
def test_a_shift_is_measured_to_a_tenth_of_a_pixel_whatever_gain_bias_and_mask(
    dx, dy, gain, bias, seed
):
    usable = patches(seed, 0.7)
    moving = gain * photograph(dx, dy, noise=seed) + bias
    moving[~usable] = np.random.default_rng(seed).normal(size=np.count_nonzero(~usable))
    found = measure_shift(REFERENCE, moving, usable, PIXEL)
    assert found is not None
    assert abs(found.dx_m - dx * PIXEL) <= 0.1 * PIXEL
    assert abs(found.dy_m - dy * PIXEL) <= 0.1 * PIXEL


@pytest.mark.parametrize(("azimuth", "elevation"), [(170, 50), (130, 50), (160, 35), (150, 65)])
def test_other_sun_moves_it_by_less_than_a_fifth_of_a_pixel(azimuth, elevation):
    for dx, dy in ((0, 0), (0.5, -0.3), (-3.2, 1.7)):
        moving = photograph(dx, dy, azimuth=azimuth, elevation=elevation, noise=1)
        found = measure_shift(REFERENCE, moving, EVERYWHERE, PIXEL)
        assert found is not None
        assert abs(found.dx_m - dx * PIXEL) <= 0.2 * PIXEL
        assert abs(found.dy_m - dy * PIXEL) <= 0.2 * PIXEL


def test_exchanging_the_images_turns_the_shift_around():
    there = measure_shift(REFERENCE, photograph(1.3, -0.4), EVERYWHERE, PIXEL)
    back = measure_shift(photograph(1.3, -0.4), REFERENCE, EVERYWHERE, PIXEL)
    assert there is not None
    assert back is not None
    assert (back.dx_m, back.dy_m) == pytest.approx((-there.dx_m, -there.dy_m), abs=0.3)


STRIPES = np.sin(np.arange(EDGE) / 2.0)
RANDOM = np.random.default_rng(3)


@pytest.mark.parametrize(
    ("reference", "moving", "usable"),
    [
        pytest.param(np.ones((EDGE, EDGE)), np.ones((EDGE, EDGE)), EVERYWHERE, id="flat"),
        pytest.param(
            RANDOM.normal(size=(EDGE, EDGE)),
            RANDOM.normal(size=(EDGE, EDGE)),
            EVERYWHERE,
            id="noise",
        ),
        pytest.param(
            np.tile(np.arange(EDGE) > 30, (EDGE, 1)) + RANDOM.normal(0, 0.01, (EDGE, EDGE)),
            np.tile(np.arange(EDGE) > 31, (EDGE, 1)) + RANDOM.normal(0, 0.01, (EDGE, EDGE)),
            EVERYWHERE,
            id="one edge",
        ),
        pytest.param(
            np.add.outer(STRIPES, STRIPES),
            np.add.outer(STRIPES, STRIPES),
            EVERYWHERE,
            id="repeated",
        ),
        pytest.param(REFERENCE, REFERENCE, patches(1, 0.2), id="hardly anything in common"),
        pytest.param(REFERENCE, -REFERENCE, EVERYWHERE, id="reversed"),
        pytest.param(REFERENCE, np.full((EDGE, EDGE), np.nan), EVERYWHERE, id="no data"),
    ],
)
def test_what_cannot_be_measured_is_rejected(reference, moving, usable):
    assert measure_shift(reference, moving, usable, PIXEL) is None


@settings(max_examples=25, deadline=None)
@given(arrays(np.float64, (EDGE, EDGE), elements=st.floats(-1e6, 1e6)))
def test_nothing_is_found_where_the_scene_shows_something_else(pixels):
    assert measure_shift(REFERENCE, pixels, EVERYWHERE, PIXEL) is None


# Scenes: files on a disk, shifted on purpose.

GROUND = rough(2048, seed=5, power=1.6)
STEP = 5.0


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rock around a glacier of snow, reflectance."""
    rows, cols = (Y0 - y) / STEP + 1024, (x - X0) / STEP + 1024
    rock = ndimage.map_coordinates(GROUND, [rows, cols], order=1, mode="grid-wrap")
    on_ice = (abs(x - X0) < 400) & (abs(y - Y0) < 400)
    return np.where(on_ice, 0.8, 0.25 + 0.04 * rock)


def dark(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Short-wave infrared: snow is dark, rock is not."""
    seen = texture(x, y)
    return np.where(seen > 0.7, 0.05, seen)


def make(
    folder: Path, name: str, dx: float = 0, dy: float = 0, *, when: str = "2024-08-10", **options
) -> Scene:
    """Scene whose pixels lie dx metres to the east and dy to the north of where they belong."""

    def moved(paint):
        return lambda x, y: paint(x - dx, y - dy)

    paint = {
        role: moved(dark if role.startswith("swir") else texture)
        for role in ("blue", "green", "red", "nir", "swir1", "swir2")
    }
    item = optical_item(folder, name, when=f"{when}T10:00:00Z", paint=paint, **options)
    return describe_item(item)


def outlines(*shapes: shapely.Geometry) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame(geometry=list(shapes), crs=UTM).to_crs(4326)


def in_grid(grid: RegionGrid, dx: float, dy: float) -> tuple[float, float]:
    """What a shift along UTM's axes is along the grid's."""
    to_grid = Transformer.from_crs(UTM, grid.proj4, always_xy=True)
    (x0, x1), (y0, y1) = to_grid.transform([X0, X0 + dx], [Y0, Y0 + dy])
    return x1 - x0, y1 - y0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="module")
def still(folder: Path) -> Scene:
    return make(folder, "still", when="2024-08-01")


@pytest.fixture(scope="module")
def policy(folder: Path) -> AssetPolicy:
    return AssetPolicy((str(folder),))


SNOW = {
    "blue": 0.8,
    "green": lambda x, y: 0.5 + texture(x, y),
    "red": 0.8,
    "nir": texture,
    "swir1": 0.1,
    "swir2": 0.1,
}
GRID = small_grid()
ICE = outlines(GLACIER)


@pytest.mark.parametrize(
    ("dx", "dy", "state"),
    [
        (0.0, 0.0, "kept"),
        (3.0, 0.0, "kept"),
        (-7.0, 0.0, "corrected"),
        (25.0, -12.0, "corrected"),
        (0.0, 100.0, "misregistered"),
    ],
)
def test_a_scene_shifted_on_purpose_is_measured_to_a_tenth_of_a_pixel(
    folder, still, policy, dx, dy, state
):
    scene = make(folder, f"moved{dx:g}_{dy:g}", dx, dy)
    found = coregister(policy, scene, [still], ICE, GRID)
    assert found.state == state
    assert found.reference_id == "still"
    assert (found.dx_m, found.dy_m) == pytest.approx(in_grid(GRID, dx, dy), abs=0.1 * PIXEL)
    assert found.error_m <= 0.2 * PIXEL
    assert found.windows >= 3
    if state == "kept":
        assert found.residual_m == pytest.approx(
            np.sqrt(found.error_m**2 + (found.dx_m**2 + found.dy_m**2) / 2), abs=0.002
        )
    if state == "corrected":
        assert found.residual_m == found.error_m


def test_a_coarser_sensor_is_measured_against_a_finer_one(folder, still, policy):
    def paint(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return sum(texture(x - 12 + i, y + j) for i in (-10, 0, 10) for j in (-10, 0, 10)) / 9

    item = landsat_item(folder, "landsat", when="2024-08-05T10:00:00Z", paint=paint)
    found = coregister(policy, describe_item(item), [still], outlines(), GRID)
    assert found.state == "not-measured"
    assert "0 of 0 windows" in found.reason
    found = coregister(policy, describe_item(item), [still], ICE, GRID)
    assert (found.dx_m, found.dy_m) == pytest.approx(in_grid(GRID, 12, 0), abs=0.1 * 30)
    assert found.state == "corrected"


def test_a_shift_depends_on_neither_shards_nor_chunks_nor_the_order_of_outlines(
    folder, still, policy
):
    scene = make(folder, "once", 7, 3)
    other = shapely.box(X0 + 900, Y0 + 900, X0 + 1200, Y0 + 1100)
    cases = [
        (small_grid(shard_px=64, chunk_px=32), outlines(GLACIER, other)),
        (small_grid(shard_px=256, chunk_px=256), outlines(GLACIER, other)),
        (small_grid(shard_px=128, chunk_px=64), outlines(other, GLACIER)),
    ]
    found = {coregister(policy, scene, [still], frame, grid) for grid, frame in cases}
    assert len(found) == 1


def test_a_coarser_grid_changes_what_is_corrected_but_not_what_is_measured(folder, still, policy):
    scene = make(folder, "coarse", 12, 0)
    fine, coarse = (
        coregister(policy, scene, [still], ICE, small_grid(resolution_m=size)) for size in (10, 30)
    )
    assert (fine.state, coarse.state) == ("corrected", "kept")
    assert (fine.dx_m, fine.dy_m, fine.windows) == (coarse.dx_m, coarse.dy_m, coarse.windows)


def test_stable_ground_alone_is_compared(folder, still, policy):
    """What moves inside outlines and under snow or cloud says nothing about the scene."""

    def sliding(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(y > Y0, texture(x - 40, y), texture(x, y))

    item = optical_item(folder, "sliding", when="2024-08-12T10:00:00Z", paint=sliding)
    north = shapely.box(X0 - 3000, Y0 - 50, X0 + 3000, Y0 + 3000)
    found = coregister(policy, describe_item(item), [still], outlines(north), GRID)
    assert found.state == "kept"
    assert (found.dx_m, found.dy_m) == pytest.approx((0, 0), abs=0.1 * PIXEL)


@pytest.mark.parametrize(
    ("name", "paint", "classes", "frame"),
    [
        ("cloud", texture, 9, ICE),
        ("snow", SNOW, 5, ICE),
        ("ice", texture, 5, outlines(shapely.box(X0 - 5000, Y0 - 5000, X0 + 5000, Y0 + 5000))),
    ],
)
def test_too_little_stable_ground_leaves_a_scene_not_measured(
    folder, still, policy, name, paint, classes, frame
):
    item = optical_item(
        folder, f"hidden-{name}", when="2024-08-12T10:00:00Z", paint=paint, classes=classes
    )
    found = coregister(policy, describe_item(item), [still], frame, GRID)
    assert found.state == "not-measured"
    assert "expected 3 at least" in found.reason
    assert found.dx_m is None
    assert found.residual_m == 6.4
    assert found.looks == (0 if name == "ice" else 24)
    kept, faults = aligned([describe_item(item)], {found.scene_id: found})
    assert kept == [describe_item(item)]
    assert not faults


def test_windows_that_disagree_leave_a_scene_not_measured(folder, still, policy):
    def torn(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        part = np.floor((x - X0) / 320).astype(int) % 4
        return texture(x - 30 * part, y + 25 * (part % 2))

    item = optical_item(folder, "torn", when="2024-08-12T10:00:00Z", paint=torn)
    found = coregister(policy, describe_item(item), [still], ICE, GRID)
    assert found.state == "not-measured"


def test_a_broken_reference_gives_way_to_the_next(folder, still, policy):
    broken = make(folder, "broken", when="2024-08-02")
    Path(next(b.href for b in broken.bands if b.role == "nir")).write_bytes(b"no raster")
    scene = make(folder, "late", 7, 0)
    found = coregister(policy, scene, [broken, still], ICE, GRID)
    assert found.reference_id == "still"
    alone = coregister(policy, scene, [broken], ICE, GRID)
    assert alone.state == "not-measured"
    assert "nir.tif is not a readable GeoTIFF" in alone.reason


def test_a_reference_stands_still_and_radar_has_no_shift(folder, still, policy):
    found = coregister(policy, still, [still], ICE, GRID)
    assert (found.state, found.dx_m, found.residual_m) == ("reference", 0.0, 0.0)
    assert coregister(policy, still, [], ICE, GRID).reason == "no reference scene overlaps it"
    radar = describe_item(sar_item(folder, "radar", when="2024-08-12T10:00:00Z", paint=0.2))
    with pytest.raises(UsageError, match="only optical scenes"):
        coregister(policy, radar, [still], ICE, GRID)


def test_the_same_sensor_comes_first_then_the_larger_overlap_then_the_callers_order(still):
    west, south, east, north = still.bbox
    wide = east - west

    def at(name: str, **changes: object) -> Scene:
        return replace(still, id=name, **changes)

    references = [
        at("landsat", sensor="landsat-oli"),
        at("half", bbox=(west + wide / 2, south, east + wide / 2, north)),
        at("elsewhere", bbox=(west + 2 * wide, south, east + 2 * wide, north)),
        at("whole"),
        at("whole-too"),
        at("radar", kind="sar"),
    ]
    scene = at("scene")
    assert [r.id for r in reference_order(scene, references)] == [
        "whole",
        "whole-too",
        "half",
        "landsat",
    ]
    over = at("over", bbox=(179.9, 10.0, -179.9, 10.2))
    assert [r.id for r in reference_order(over, [at("there", bbox=(-180.0, 10.1, -179, 11))])] == [
        "there"
    ]


# Reading with a shift.


SMALL_GRID = small_grid(shard_px=128, chunk_px=128, size_m=1000)
# ^ lies well inside of every scene, however it is shifted


def season(folder: Path, scene: Scene, policy: AssetPolicy) -> dict[str, np.ndarray]:
    workspace = new_workspace(folder)
    create_season(workspace, "2024", SMALL_GRID, sar=False)
    layers: dict[str, list[np.ndarray]] = {"optical": [], "observations": []}
    for shard in SMALL_GRID.shards():
        build_cube_shard(workspace, "2024", shard, optical=[scene], sar=None, policy=policy)
        for name, found in layers.items():
            found.append(read_shard(workspace, f"cube.zarr/2024/{name}", shard))
    return {name: np.stack(found) for name, found in layers.items()}


def corrected(scene: Scene, still: Scene, policy: AssetPolicy) -> Scene:
    found = coregister(policy, scene, [still], ICE, GRID)
    (kept,), faults = aligned([scene], {scene.id: found})
    assert not faults
    return kept


def test_a_corrected_scene_composes_like_one_that_was_never_shifted(
    folder, still, policy, tmp_path
):
    shifted = make(folder, "composed", 25, -12)
    read = corrected(shifted, still, policy)
    right = season(tmp_path / "right", still, policy)["optical"].astype(float)
    wrong = season(tmp_path / "wrong", shifted, policy)["optical"].astype(float)
    mended = season(tmp_path / "mended", read, policy)["optical"].astype(float)
    (exact,), _ = aligned(
        [shifted], {shifted.id: Shift(shifted.id, "corrected", 1.0, *in_grid(GRID, 25, -12))}
    )
    best = season(tmp_path / "best", exact, policy)["optical"].astype(float)
    rock = np.all([a < 5000 for a in (right, wrong, mended, best)], axis=0)
    off, left, least = (np.sqrt(np.mean((a - right)[rock] ** 2)) for a in (wrong, mended, best))
    assert left < 0.4 * off
    assert left < 1.05 * least
    # ^ least is what interpolating half-way between pixels costs where the shift is known
    ice = [np.count_nonzero(a[:, 1] > 5000) for a in (right, mended)]
    assert ice[1] == pytest.approx(ice[0], rel=0.005)
    assert np.count_nonzero((right[:, 1] > 5000) != (mended[:, 1] > 5000)) < 0.02 * ice[0]


def test_a_whole_pixel_shift_is_taken_off_without_a_trace(folder, still, policy, tmp_path):
    """Grid axes are UTM's nearly, so the raster's own lattice is met again by less than a pixel."""
    shift = Shift("whole", "corrected", 1.0, *in_grid(GRID, 30, -20))
    shifted = make(folder, "whole", 30, -20)
    (read,), _ = aligned([shifted], {"whole": shift})
    right, mended = (season(tmp_path / s.id, s, policy)["optical"] for s in (still, read))
    assert np.abs(right.astype(int) - mended).max() <= 5
    # ^ the warper's own tolerance of a hundredth of a pixel


def test_below_half_a_pixel_nothing_is_changed(folder, still, policy):
    scene = make(folder, "near", 3, 0)
    assert corrected(scene, still, policy) == scene


def test_the_mask_moves_with_the_bands(folder, policy, tmp_path):
    """Cloud covers the western half of what is shown, wherever the scene says it lies."""

    def clouds(offset: float):
        return lambda x, _y: np.where(x - offset < X0, 9, 5)

    still = make(folder, "cloudy-still", classes=clouds(0))
    moved = make(folder, "cloudy-moved", 60, 0, classes=clouds(60))
    shift = Shift("cloudy-moved", "corrected", 1.0, *in_grid(GRID, 60, 0))
    (read,), _ = aligned([moved], {moved.id: shift})
    seen = [season(tmp_path / s.id, s, policy)["observations"] for s in (still, read)]
    np.testing.assert_array_equal(*seen)


def test_the_header_is_held_against_the_unshifted_promise(folder, still, policy, tmp_path):
    """A shift must not make a misplaced raster pass, nor a right one fail."""
    green = still.bands[1]
    promise = list(green.transform)
    promise[2] += 30.0
    lying = replace(green, transform=tuple(promise), shift_m=(30.0, 0.0))
    scene = replace(still, bands=(still.bands[0], lying, *still.bands[2:]))
    workspace = new_workspace(tmp_path)
    create_season(workspace, "2024", GRID, sar=False)
    shard = next(GRID.shards())
    outcome = build_cube_shard(workspace, "2024", shard, optical=[scene], sar=None, policy=policy)
    assert [fault.kind for fault in outcome.set_aside] == ["geo-mismatch"]
    honest = replace(green, shift_m=(30.0, 0.0))
    scene = replace(still, bands=(still.bands[0], honest, *still.bands[2:]))
    outcome = build_cube_shard(workspace, "2024", shard, optical=[scene], sar=None, policy=policy)
    assert not outcome.set_aside


def test_a_shift_survives_being_written_down(still):
    (moved,), _ = aligned([still], {"still": Shift("still", "corrected", 1.0, 12.5, -7.25)})
    assert {band.shift_m for band in moved.rasters} == {(12.5, -7.25)}
    assert Scene.from_dict(json.loads(json.dumps(moved.to_dict()))) == moved
    assert moved.fingerprint == still.fingerprint


# The stage.


def test_the_stage_writes_what_it_found_and_sets_a_misregistered_scene_aside(
    folder, still, policy, tmp_path
):
    scene = make(folder, "far", 0, 100)
    first, second = Workspace(tmp_path / "a"), Workspace(tmp_path / "b")
    outcomes = [
        build_shift(
            workspace, "2024", scene, references=[still], outlines=ICE, grid=GRID, policy=policy
        )
        for workspace in (first, second)
    ]
    assert outcomes[0] == outcomes[1]
    (fault,) = outcomes[0].set_aside
    assert (fault.what, fault.kind) == ("far", "misregistered")
    assert "100 m north) from still, plausible are 50 m" in fault.reason
    data = first.get("shifts/2024/far.json")
    assert data == second.get("shifts/2024/far.json")
    found = Shift.from_dict(json.loads(data))
    assert found.to_dict() == outcomes[0].facts
    assert aligned([scene, still], {"far": found}) == ([still], [fault])


# Simulated mountains and real ones: seasons and suns differ, places do not.


def test_simulated_seasons_lie_on_each_other_whatever_the_sun(small: Small):
    region = small.region
    items = json.loads(region.items.read_text())["features"]
    scenes = [s for s in map(describe_item, items) if s.kind == "optical"]
    frame = read_reference(region.reference).frame
    west, south, east, north = frame.total_bounds
    grid = region_grid([west, east], [south, north], resolution_m=20, shard_px=64, chunk_px=64)
    policy = AssetPolicy((str(region.out),))
    suns = {scene.sun_azimuth for scene in scenes}
    assert max(suns) - min(suns) > 5
    for scene in scenes[1:]:
        found = coregister(policy, scene, scenes[:1], frame, grid)
        assert found.state == "kept", found.reason
        assert abs(found.dx_m) < 0.2 * PIXEL
        assert abs(found.dy_m) < 0.2 * PIXEL
        assert found.looks <= 24


@pytest.mark.real_data
@pytest.mark.skipif(not KHUMBU.is_dir(), reason=f"no real data in {DATA}")
class TestKhumbu:
    """Four seasons of one frame in pixels of 27 m by 22 m, all of them brought to one lattice."""

    @pytest.fixture
    def scenes(self, folder: Path) -> list[Scene]:
        from test_khumbu import DATES, wrap_scene

        return [describe_item(wrap_scene(folder, season)) for season in DATES]

    def test_four_seasons_lie_within_a_third_of_a_pixel(self, scenes, policy, record_property):
        west, south, east, north = scenes[0].bbox
        grid = region_grid(
            [west, east], [south, north], resolution_m=20, shard_px=256, chunk_px=128
        )
        frame = read_reference(KHUMBU / "outlines_rgi60.gpkg").frame
        shifts = {}
        for i, j in itertools.combinations(range(4), 2):
            found = coregister(policy, scenes[j], [scenes[i]], frame, grid)
            assert found.state == "kept", found.reason
            shifts[i, j] = np.array([found.dx_m, found.dy_m])
        record_property(
            "khumbu shifts",
            "; ".join(f"{i}-{j} {d[0]:+.1f} {d[1]:+.1f} m" for (i, j), d in shifts.items()),
        )
        assert max(np.hypot(*d) for d in shifts.values()) < 22 / 3
        for i, j, k in itertools.combinations(range(4), 3):
            assert np.hypot(*(shifts[i, j] + shifts[j, k] - shifts[i, k])) < 0.25 * 22
        back = coregister(policy, scenes[0], [scenes[3]], frame, grid)
        assert np.hypot(*(shifts[0, 3] + (back.dx_m, back.dy_m))) < 0.15 * 22

    def test_radar_without_terrain_correction_has_no_shift_against_an_optical_image(self):
        """What displaces it differs from slope to slope: an answer would be a wrong one."""
        for when in ("winter", "spring", "summer", "autumn"):
            with rasterio.open(KHUMBU / f"s1_{when}_2024.tif") as file:
                radar = file.read(1)
            with rasterio.open(KHUMBU / f"s2_{when}_2024.tif") as file:
                near_infrared = file.read(4)
            everywhere = np.ones(radar.shape, bool)
            assert measure_shift(near_infrared, radar, everywhere, 22.0) is None


def test_the_asset_policy_holds_here_too(folder, still):
    elsewhere = AssetPolicy(("/nowhere",))
    found = coregister(elsewhere, make(folder, "refused"), [still], ICE, GRID)
    assert found.state == "not-measured"
    assert "is not opened" in found.reason
