from __future__ import annotations

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from painted_world import RESOLUTION, SIZE, cone, mask, reference, reference_of, world_grid

from catalog.errors import DataError
from change_detection.accounts import territory_of
from change_detection.divides import (
    GlacierBatch,
    extend_owners,
    glacier_batches,
    reference_owners,
)

GRID = world_grid()
WHOLE = GlacierBatch("whole", ("A", "B"), 0, 0, SIZE, SIZE)
PAIR = {"A": (80, 60, 60, 60), "B": (80, 120, 60, 60)}


def test_glaciers_whose_widened_outlines_touch_share_a_batch():
    frame = reference({"A": (10, 10, 20, 20), "B": (10, 60, 20, 20), "C": (150, 10, 20, 20)}, GRID)
    apart = glacier_batches(frame, GRID, growth_m=140.0, block_px=0)
    together = glacier_batches(frame, GRID, growth_m=160.0, block_px=0)
    # A and B are 300 m apart
    assert [b.ref_ids for b in apart] == [("A",), ("B",), ("C",)]
    assert [b.ref_ids for b in together] == [("A", "B"), ("C",)]


def test_batches_do_not_depend_on_the_order_of_the_reference():
    frame = reference(PAIR | {"C": (200, 200, 20, 20)}, GRID)
    shuffled = frame.iloc[[2, 0, 1]]
    assert glacier_batches(frame, GRID, growth_m=100.0) == glacier_batches(
        shuffled, GRID, growth_m=100.0
    )


def test_a_window_holds_every_pixel_that_can_get_an_owner():
    frame = reference({"A": (0, 0, 30, 30)}, GRID)
    (batch,) = glacier_batches(frame, GRID, growth_m=200.0)
    owners = territory_of(batch, frame, GRID, growth_m=200.0, elevation=None).owners
    assert batch.row0 < 0 and batch.col0 < 0
    edge = np.concatenate([owners[0], owners[-1], owners[:, 0], owners[:, -1]])
    assert not edge.any()
    assert (owners == 1).sum() > 30 * 30


def test_a_pixel_on_no_side_goes_to_the_glacier_whose_outline_holds_its_centre():
    left, right = (shapely.box(-20400, 9000, x, 9400) for x in (-20153.0, -20400.0))
    right = shapely.box(-20153.0, 9000, -19900, 9400)
    frame = reference_of({"A": left, "B": right}, GRID)
    owners = reference_owners(WHOLE, frame, GRID)
    # the divide at x = -20153 cuts the pixel from -20160 to -20150, whose centre is in A
    row = owners[100]
    assert row[32] == 1 and row[33] == 2


def test_overlapping_outlines_give_every_pixel_one_owner():
    frame = reference({"A": (50, 50, 40, 40), "B": (50, 70, 40, 40)}, GRID)
    owners = reference_owners(WHOLE, frame, GRID)
    assert (owners == 1).sum() == 40 * 40
    assert (owners == 2).sum() == 20 * 40


def valleys() -> tuple[np.ndarray, np.ndarray]:
    """Two valleys that run south, A in the western and B in the eastern, a ridge between them."""
    row, col = np.mgrid[:60, :60]
    elevation = 3000.0 - 3.0 * row + 16.0 * np.minimum(np.abs(col - 15), np.abs(col - 40))
    inside = np.zeros((60, 60), np.int32)
    inside[2:10, 10:20] = 1
    inside[20:40, 30:50] = 2
    return inside, elevation.astype(np.float32)


def test_new_ice_stays_in_its_valley_even_if_the_glacier_behind_the_ridge_is_nearer():
    inside, elevation = valleys()
    near = extend_owners(inside, resolution_m=10.0, growth_m=400.0, elevation=None)
    by_terrain = extend_owners(inside, resolution_m=10.0, growth_m=400.0, elevation=elevation)
    below_a = (30, 19)
    assert near[below_a] == 2
    assert by_terrain[below_a] == 1


def test_ice_above_a_glacier_belongs_to_it_and_not_to_the_higher_one_behind_the_ridge():
    inside, elevation = valleys()
    elevation[inside == 1] += 300.0
    owners = extend_owners(inside, resolution_m=10.0, growth_m=400.0, elevation=elevation)
    assert (owners[20:40, 28:30] == 2).all()
    assert (owners[30, 40:60] == 2).all()


def test_a_higher_glacier_keeps_the_valley_it_ends_in_down_to_a_tributary():
    inside = np.zeros((80, 60), np.int32)
    inside[0:10, 25:35] = 1
    inside[50:56, 45:60] = 2
    row, col = np.mgrid[:80, :60]
    trunk = 3000.0 - 2.0 * row + 10.0 * np.maximum(np.abs(col - 30) - 5, 0)
    elevation = np.where((row >= 50) & (row < 56) & (col > 30), 3000.0 - 2.0 * row, trunk)
    owners = extend_owners(
        inside, resolution_m=10.0, growth_m=700.0, elevation=elevation.astype(np.float32)
    )
    assert (owners[10:30, 30] == 1).all()
    assert (owners[51:55, 38:45] == 2).all()


def test_without_terrain_the_nearest_outline_decides():
    frame = reference({"A": (80, 40, 60, 60), "B": (80, 120, 60, 60)}, GRID)
    owners = territory_of(WHOLE, frame, GRID, growth_m=500.0, elevation=None).owners
    assert (owners[100, 100:110] == 1).all() and (owners[100, 110:120] == 2).all()


@pytest.mark.parametrize(
    "elevation",
    [
        np.zeros((SIZE, SIZE), np.float32),
        np.full((SIZE, SIZE), np.nan, np.float32),
        np.where(mask((0, 115, SIZE, 10)), np.nan, cone()).astype(np.float32),
        np.where(mask((150, 110, 5, 5)), -500.0, cone()).astype(np.float32),
    ],
    ids=["flat", "unknown", "unknown on the divide", "pit"],
)
def test_a_strange_terrain_leaves_no_pixel_without_an_owner(elevation):
    frame = reference(PAIR, GRID)
    owners = territory_of(WHOLE, frame, GRID, growth_m=100.0, elevation=elevation).owners
    nearest = territory_of(WHOLE, frame, GRID, growth_m=100.0, elevation=None).owners
    assert ((owners > 0) == (nearest > 0)).all()
    assert (owners[80:140, 60:120] == 1).all() and (owners[80:140, 120:180] == 2).all()


def test_owners_do_not_depend_on_the_cut_into_shards():
    frame = reference(PAIR, GRID)
    found = []
    for shard_px in (64, 128, 256):
        grid = world_grid(shard_px)
        (batch,) = glacier_batches(frame, grid, growth_m=150.0)
        found.append(territory_of(batch, frame, grid, growth_m=150.0, elevation=None).owners)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


def test_a_glacier_missing_from_the_reference_is_named():
    frame = reference({"A": (10, 10, 20, 20)}, GRID)
    with pytest.raises(DataError, match="glaciers B of batch whole"):
        reference_owners(WHOLE, frame, GRID)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 30.0, 85.0]))
def test_owners_are_the_reference_inside_and_within_the_margin_outside(seed, growth_m):
    rng = np.random.default_rng(seed)
    inside = np.zeros((40, 40), np.int32)
    for owner in range(1, 5):
        row, col = rng.integers(0, 34, 2)
        inside[row : row + rng.integers(1, 7), col : col + rng.integers(1, 7)] = owner
    elevation = rng.normal(size=(40, 40)).astype(np.float32)
    elevation[rng.random((40, 40)) < 0.1] = np.nan
    owners = extend_owners(inside, resolution_m=RESOLUTION, growth_m=growth_m, elevation=elevation)
    distance = np.hypot(
        *(g[:, :, None] - np.nonzero(inside)[i] for i, g in enumerate(np.mgrid[:40, :40]))
    ).min(axis=2)
    assert (owners[inside > 0] == inside[inside > 0]).all()
    assert ((owners > 0) == (distance * RESOLUTION <= growth_m)).all()


def test_the_reference_may_be_empty_of_pixels():
    tiny = gpd.GeoSeries([shapely.box(-20399, 9001, -20398, 9002)], crs=GRID.proj4)
    frame = reference_of({"A": tiny.iloc[0]}, GRID)
    (batch,) = glacier_batches(frame, GRID, growth_m=50.0)
    owners = territory_of(batch, frame, GRID, growth_m=50.0, elevation=None).owners
    assert not owners.any()
