"""What a shifted scene does to areas, held against areas of shifted ice."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_world import RESOLUTION, mask
from shapely.affinity import translate
from test_outlines import DATA, RECTANGLES, World

from catalog.glaciers import read_reference
from catalog.grid import region_grid
from change_detection.divides import reference_owners
from change_detection.misregistration import divide_vector, divide_vectors, shift_sigma_km2

FAR = 1e5
metres = st.floats(-5, 5)


def complex_of(radii: list[float]) -> shapely.Polygon:
    """Ice without divides: a polygon around the origin."""
    turns = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return shapely.Polygon(np.c_[np.cos(turns) * radii, np.sin(turns) * radii])


def half_planes(azimuth: float, offset: float) -> tuple[shapely.Polygon, shapely.Polygon]:
    """The world on either side of a straight divide."""
    along = np.array([np.cos(azimuth), np.sin(azimuth)])
    across = np.array([-along[1], along[0]])
    ends = [across * offset - along * FAR, across * offset + along * FAR]
    return tuple(
        shapely.Polygon([*ends, ends[1] + side * FAR * across, ends[0] + side * FAR * across])
        for side in (1, -1)
    )


@settings(max_examples=60, deadline=None)
@given(
    radii=st.lists(st.floats(800, 1200), min_size=8, max_size=16),
    azimuth=st.floats(0, 2 * np.pi),
    offset=st.floats(-200, 200),
    dx=metres,
    dy=metres,
)
def test_area_changes_by_what_a_shift_carries_across_the_divide(radii, azimuth, offset, dx, dy):
    ice = complex_of(radii)
    worlds = half_planes(azimuth, offset)
    glaciers = [ice & world for world in worlds]
    shifted = translate(ice, dx, dy)
    for glacier, other, world in zip(glaciers, glaciers[::-1], worlds, strict=True):
        vector = np.array(divide_vector(glacier, [other]))
        found = (shifted & world).area - glacier.area
        assert found == pytest.approx(-vector @ (dx, dy), abs=200)
        # ^ m2, where 5 m move 10000: what is of second order at either end of the divide


def test_a_straight_divide_is_as_long_as_its_vector_and_at_a_right_angle_to_it():
    west, east = shapely.box(0, 0, 1000, 700), shapely.box(1000, -300, 1800, 700)
    assert divide_vector(west, [east]) == pytest.approx((700, 0), abs=10)
    assert divide_vector(east, [west]) == pytest.approx((-700, 0), abs=10)


def test_a_glacier_without_divides_has_no_vector():
    alone = shapely.box(0, 0, 1000, 700)
    assert divide_vector(alone, []) == (0.0, 0.0)
    assert divide_vector(alone, [shapely.box(1020, 0, 2000, 700)]) == (0.0, 0.0)
    assert divide_vectors([]).shape == (0, 2)


def test_a_glacier_enclosed_by_others_has_no_vector():
    """Whatever goes out on one side comes in on the other."""
    inner = shapely.box(0, 0, 1000, 700)
    around = shapely.box(-500, -500, 1500, 1200) - inner
    assert divide_vector(inner, [around]) == pytest.approx((0, 0), abs=1e-6)
    assert divide_vector(around, [inner]) == pytest.approx((0, 0), abs=1e-6)


def test_neither_direction_of_rings_nor_parts_nor_nunataks_matter():
    west, east = shapely.box(0, 0, 1000, 700), shapely.box(1000, 0, 1800, 700)
    hole = shapely.box(300, 300, 400, 400)
    turned = shapely.Polygon(west.exterior.coords[::-1], [hole.exterior.coords])
    both = shapely.MultiPolygon([turned, shapely.box(-900, 0, -500, 200)])
    assert divide_vector(both, [east]) == pytest.approx(divide_vector(west, [east]))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_the_vectors_of_a_complex_add_up_to_zero(seed):
    points = np.random.default_rng(seed).uniform(0, 3000, (8, 2))
    ice = shapely.box(0, 0, 3000, 3000)
    cells = shapely.voronoi_polygons(shapely.MultiPoint(points), extend_to=ice)
    glaciers = [cell & ice for cell in cells.geoms]
    vectors = divide_vectors(glaciers)
    assert np.abs(vectors).max() > 100
    np.testing.assert_allclose(vectors.sum(axis=0), 0, atol=15.0 * len(glaciers))


def test_sigma_is_the_vectors_length_times_the_residual():
    assert shift_sigma_km2([[300, 400], [0, 0]], 20) == pytest.approx([0.01, 0])
    assert np.isnan(shift_sigma_km2([[300, 400]], np.nan)).all()


# In the accounts: A and B share a divide of 1 km from north to south, C stands alone.


def test_ice_mapped_three_pixels_off_is_counted_as_the_vector_says(tmp_path):
    world = World(tmp_path)
    outlines = world.frame.set_index("ref_id").geometry.to_crs(world.grid.proj4)
    vectors = dict(zip(outlines.index, divide_vectors(list(outlines)), strict=True))
    ice = mask(*RECTANGLES.values())
    world.paint("right", ice=ice)
    world.paint("off", ice=np.roll(ice, (2, 3), axis=(0, 1)))
    shift = np.array([3 * RESOLUTION, -2 * RESOLUTION])
    right, off = (world.trace(name).accounts["area_km2"] for name in ("right", "off"))
    for name in RECTANGLES:
        expected = -vectors[name] @ shift / 1e6
        assert off[name] - right[name] == pytest.approx(expected, abs=2e-3)
    assert off["A"] - right["A"] == pytest.approx(-0.03, abs=2e-3)
    assert off["C"] == right["C"]


def test_the_residual_widens_the_boundary_error_of_glaciers_with_divides_only(tmp_path):
    world = World(tmp_path)
    world.paint(ice=mask(*RECTANGLES.values()))
    none, some, unknown = (
        world.trace(residual_m=residual).accounts["boundary_sigma_km2"]
        for residual in (0.0, 6.0, np.nan)
    )
    assert some["A"] == pytest.approx(np.hypot(none["A"], 0.006), rel=0.02)
    assert some["B"] == pytest.approx(np.hypot(none["B"], 0.006), rel=0.02)
    assert some["C"] == none["C"]
    assert unknown.isna().all()


@pytest.mark.real_data
def test_a_real_complex_exchanges_area_as_the_vectors_say(tmp_path):
    path = DATA / "hintereisferner" / "rgi7g_hef_complex.shp"
    if not path.exists():
        pytest.skip(f"the real outlines are not at {path} (set INVENTORY_ENGINE_TEST_DATA)")
    frame = read_reference(path).frame
    lon, lat = shapely.get_coordinates(frame.geometry.to_numpy()).T
    grid = region_grid(lon, lat, resolution_m=20.0, margin_m=400.0, shard_px=1024)
    world = World(tmp_path, grid=grid, frame=frame)
    (batch,) = world.batches
    ice = np.zeros(grid.shape, bool)
    window = np.s_[batch.row0 : batch.row0 + batch.height, batch.col0 : batch.col0 + batch.width]
    ice[window] = reference_owners(batch, frame, grid) > 0
    world.paint("right", ice=ice)
    world.paint("off", ice=np.roll(ice, (1, 2), axis=(0, 1)))
    right, off = (world.trace(name).accounts["area_km2"] for name in ("right", "off"))
    outlines = frame.set_index("ref_id").geometry.to_crs(grid.proj4)
    expected = -divide_vectors(list(outlines.loc[right.index])) @ (40.0, -20.0) / 1e6
    change = (off - right).to_numpy()
    assert np.abs(change).max() > 0.1
    assert np.std(change - expected) < 0.1 * np.std(change)
