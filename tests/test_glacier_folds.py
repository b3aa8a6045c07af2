"""Folds over glaciers: balanced, in both directions, whole complexes, behind a barrier."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_inventories import Box, boxes, grid_of, inventory, owners_of

from catalog.errors import UsageError
from catalog.glaciers import read_reference
from catalog.grid import RegionGrid
from model_serving.fold_measures import measure_folds
from model_serving.fold_pixels import (
    HELD_OUT,
    TRAIN,
    VALIDATION,
    grid_roles,
    owner_roles,
    window_corners,
)
from model_serving.glacier_folds import (
    FOLDS,
    GlacierFolds,
    _blocks,
    barrier_for,
    divide_glaciers,
    equal_area,
    read_folds,
)

DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
SMALL = {"window_m": 400.0, "buffer_m": 100.0}


def divided(places: list[Box], **how: object) -> tuple[gpd.GeoDataFrame, GlacierFolds]:
    frame = inventory(places)
    try:
        return frame, divide_glaciers(frame, **SMALL | how)
    except UsageError as error:
        assume(error.kind != "fold-empty")
        raise


LATTICE = [
    (x * 1000.0, y * 1000.0, x * 1000.0 + 400, y * 1000.0 + 400) for x in range(9) for y in range(6)
]


@settings(max_examples=100, deadline=None)
@given(boxes(), st.integers(2, 7))
def test_no_fold_is_farther_from_its_share_than_the_largest_complex(places, count):
    _, folds = divided(places, folds=count)
    assert sum(folds.shares) == pytest.approx(1)
    off = max(abs(share - 1 / count) for share in folds.shares)
    assert off <= folds.largest_complex_share + 1e-9


@pytest.mark.parametrize("count", range(2, 14))
def test_errors_of_the_cuts_do_not_add_up(count):
    """Equal complexes in a row, as many as do not divide well: cut by cut, errors would grow."""
    for n in range(count, 60):
        row = np.column_stack([np.arange(n), np.zeros(n)])
        held = np.bincount(_blocks(row, np.ones(n), folds=count), minlength=count)
        assert np.abs(held - n / count).max() < 1


@settings(max_examples=50, deadline=None)
@given(boxes(), st.integers(2, 5))
def test_glaciers_that_touch_are_held_out_together(places, count):
    frame, folds = divided(places, folds=count)
    shapes, fold_of = equal_area(frame).to_numpy(), folds.fold_of
    for i, j in np.argwhere(np.triu(shapely.distance(shapes[:, None], shapes[None]) < 1, 1)):
        assert fold_of[frame["ref_id"][i]] == fold_of[frame["ref_id"][j]]
    assert not folds.split_complexes


@settings(max_examples=30, deadline=None)
@given(boxes(), st.sampled_from(["blocks", "slabs"]), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(places, method, random):
    frame, folds = divided(places, folds=3, method=method)
    order = list(range(len(frame)))
    random.shuffle(order)
    assert divide_glaciers(frame.iloc[order], folds=3, method=method, **SMALL) == folds


def test_blocks_are_compact_in_both_directions_and_slabs_are_not():
    frame, folds = divided(LATTICE, folds=4)
    shapes = equal_area(frame)
    centres = np.column_stack([shapes.centroid.x, shapes.centroid.y])

    def slimness(folds: GlacierFolds) -> float:
        """Long side over short side of the folds' extents, the mean."""
        fold = np.array([folds.fold_of[name] for name in frame["ref_id"]])
        sides = [np.ptp(centres[fold == f], axis=0) for f in range(4)]
        return float(np.mean([max(s) / min(s) for s in sides]))

    slabs = divide_glaciers(frame, folds=4, method="slabs", **SMALL)
    assert slimness(folds) < 2 < slimness(slabs)


def test_slabs_run_from_east_to_west_by_cumulative_area_with_validation_beside_them():
    """The published split, worked by hand: ten glaciers of one size, five folds of two."""
    places = [(i * 1000.0, 0.0, i * 1000.0 + 500, 500.0) for i in range(10)]
    _, folds = divided(places, folds=5, method="slabs", validation_share=0.2)
    # Cumulative shares from the east are 0.1, 0.2, ..., 1.0; a fold holds [i/5, (i+1)/5).
    by_fold = [sorted(folds.held_out(f)) for f in range(5)]
    assert by_fold == [
        ["G009"],
        ["G007", "G008"],
        ["G005", "G006"],
        ["G003", "G004"],
        ["G000", "G001", "G002"],
    ]
    assert sorted(folds.validating(0)) == ["G007", "G008"]
    assert sorted(folds.validating(2)) == ["G004", "G007"]
    assert sorted(folds.validating(4)) == ["G003", "G004"]


def training_squares(roles: np.ndarray, grid: RegionGrid) -> np.ndarray:
    rows, cols = np.nonzero(roles == TRAIN)
    left, top = grid.left + cols * grid.resolution_m, grid.top - rows * grid.resolution_m
    return shapely.box(left, top - grid.resolution_m, left + grid.resolution_m, top)


@settings(max_examples=25, deadline=None)
@given(boxes(), st.integers(0, 2))
def test_training_pixels_lie_behind_the_barrier_from_held_out_and_validating_ground(places, fold):
    frame, folds = divided(places, folds=3)
    grid = grid_of(frame)
    roles = grid_roles(folds, frame, grid, fold=fold)
    shapes = frame.geometry.to_crs(grid.proj4)
    away = frame["ref_id"].isin(folds.held_out(fold) | folds.validating(fold))
    squares = training_squares(roles, grid)
    assume(len(squares))
    gap = shapely.distance(squares, shapely.union_all(shapes[away].to_numpy()))
    assert gap.min() > folds.barrier_m + folds.buffer_m


@settings(max_examples=25, deadline=None)
@given(boxes())
def test_a_window_over_a_held_out_glacier_shares_no_pixel_with_a_training_window(places):
    frame, folds = divided(places, folds=3)
    grid = grid_of(frame)
    size = int(folds.window_m / grid.resolution_m)
    for fold in range(3):
        usable = grid_roles(folds, frame, grid, fold=fold) == TRAIN
        held = np.isin(
            owners_of(frame, grid) - 1, np.flatnonzero(frame["ref_id"].isin(folds.held_out(fold)))
        )
        near = np.zeros_like(held)
        for row, col in np.argwhere(held):
            near[max(row - size + 1, 0) : row + size, max(col - size + 1, 0) : col + size] = True
        assert not (near & usable).any()


def test_roles_split_a_region_and_validation_is_no_neighbour_of_held_out_ground():
    frame, folds = divided(LATTICE, folds=5, window_m=500.0)
    grid = grid_of(frame)
    owners = owners_of(frame, grid)
    for fold in range(5):
        roles = grid_roles(folds, frame, grid, fold=fold)
        held = frame["ref_id"].isin(folds.held_out(fold)).to_numpy()
        validating = frame["ref_id"].isin(folds.validating(fold)).to_numpy()
        assert validating.any()
        of_pixel = np.where(owners > 0, held[owners - 1], False)
        assert (roles[of_pixel] == HELD_OUT).all()
        assert (roles[np.where(owners > 0, validating[owners - 1], False)] == VALIDATION).all()
        assert {TRAIN, VALIDATION, HELD_OUT} <= set(np.unique(roles))
        gap = np.min(
            shapely.distance(
                equal_area(frame).to_numpy()[held][:, None],
                equal_area(frame).to_numpy()[validating][None],
            )
        )
        assert gap > folds.barrier_m
        same = owner_roles(
            folds, owners, fold=fold, ref_ids=list(frame["ref_id"]), resolution_m=50.0
        )
        inner = (slice(30, -30), slice(30, -30))
        assert (same[inner] == roles[inner]).mean() > 0.95


def test_outlines_beyond_the_edge_of_a_grid_are_kept_away_from_too():
    frame, folds = divided(LATTICE, folds=2)
    part = frame[frame["ref_id"].isin(folds.held_out(0))]
    grid, whole = grid_of(part), grid_of(frame)
    ours = grid_roles(folds, frame, grid, fold=1)
    theirs = grid_roles(folds, frame, whole, fold=1)
    assert (ours == TRAIN).any()
    assert (ours == TRAIN).sum() < ours.size
    lon, lat = grid.lonlat(*np.nonzero(ours == TRAIN))
    there = gpd.points_from_xy(lon, lat, crs=4326).to_crs(whole.proj4)
    place = ~whole.transform @ (np.asarray(there.x), np.asarray(there.y))
    col, row = np.floor(place).astype(int)
    inside = (row >= 0) & (row < whole.shape[0]) & (col >= 0) & (col < whole.shape[1])
    assert (
        theirs[row[inside], col[inside]] == TRAIN
    ).mean() > 0.97  # the grids are turned a little


@given(st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_window_corners_are_those_of_windows_wholly_inside(size, seed):
    usable = np.random.default_rng(seed).random((12, 15)) < 0.9
    corners = window_corners(usable, size)
    for row, col in np.ndindex(corners.shape):
        assert corners[row, col] == usable[row : row + size, col : col + size].all()
    assert not window_corners(usable, 40).any()


def test_folds_are_read_as_they_were_written(tmp_path: Path):
    _, folds = divided(LATTICE)
    folds.save(tmp_path)
    assert read_folds(tmp_path) == read_folds(tmp_path / FOLDS) == folds


DAMAGES = {
    "format is 7": lambda v: v.update(format=7),
    "lack 'validation'": lambda v: v.pop("validation"),
    "barrier_m is -1": lambda v: v.update(barrier_m=-1),
    "window_m is nan": lambda v: v.update(window_m=float("nan")),
    "glacier G000 lies in two folds": lambda v: v["glaciers"].append(
        v["glaciers"][0] | {"fold": 4}
    ),
    "glacier G000 lies in fold 9": lambda v: v["glaciers"][0].update(fold=9),
    "glacier G000 has -2 km2": lambda v: v["glaciers"][0].update(area_km2=-2),
    "which is in no fold": lambda v: v["validation"][0].append("nobody"),
    "2 lists of validation": lambda v: v.update(validation=[[], []]),
    "by method 'guess'": lambda v: v.update(method="guess"),
    "not wider than a training window": lambda v: v.update(barrier_m=v["window_m"]),
    "unexpected keyword argument 'colour'": lambda v: v.update(colour="red"),
    "no folds": lambda v: v.update(glaciers="G000"),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_damaged_folds_are_refused_and_the_damage_is_named(tmp_path: Path, told: str):
    _, folds = divided(LATTICE)
    values = folds.to_dict()
    values = json.loads(json.dumps(values))
    DAMAGES[told](values)
    (tmp_path / FOLDS).write_text(json.dumps(values))
    with pytest.raises(UsageError, match=told):
        read_folds(tmp_path)


def test_files_that_are_no_folds_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="no folds at"):
        read_folds(tmp_path)
    for text, told in (("{", "is no JSON"), ("[]", "no folds"), ("3", "no folds")):
        (tmp_path / FOLDS).write_text(text)
        with pytest.raises(UsageError, match=told):
            read_folds(tmp_path)


def test_impossible_divisions_are_refused():
    frame = inventory(LATTICE)
    touching = inventory([(i * 500.0, 0.0, i * 500.0 + 500, 500.0) for i in range(10)])
    with pytest.raises(UsageError, match="3 folds need as many glacier complexes") as found:
        divide_glaciers(touching, folds=3)
    assert found.value.kind == "fold-empty"
    with pytest.raises(UsageError, match="at least two folds"):
        divide_glaciers(frame, folds=1)
    with pytest.raises(UsageError, match="no method 'guess'"):
        divide_glaciers(frame, method="guess")
    with pytest.raises(UsageError, match="stands twice"):
        divide_glaciers(inventory(LATTICE[:2], ["A", "A"]), folds=2)
    with pytest.raises(UsageError, match="not wider than a training window"):
        divide_glaciers(frame, window_m=400, barrier_m=400)
    folds = divide_glaciers(frame, **SMALL)
    with pytest.raises(UsageError, match="no fold 5"):
        folds.held_out(5)
    with pytest.raises(UsageError, match="divide this inventory anew"):
        grid_roles(folds, frame.iloc[1:], grid_of(frame), fold=0)


def test_measures_are_those_of_a_lattice_worked_by_hand():
    """Four boxes in a row; the middle two touch along 400 m, the others stand 600 m apart."""
    places = [(0, 0, 400, 400), (1000, 0, 1400, 400), (1400, 0, 1800, 400), (2400, 0, 2800, 400)]
    frame = inventory([tuple(map(float, p)) for p in places])
    slabs = divide_glaciers(frame, folds=2, method="slabs", **SMALL)
    cut = measure_folds(slabs, frame)
    assert cut.shares == pytest.approx((0.25, 0.75), abs=1e-4)
    whole = measure_folds(divide_glaciers(frame, folds=2, **SMALL), frame)
    assert whole.split_complexes == 0
    assert whole.longest_shared_boundary_m == 0
    assert whole.smallest_gap_m == pytest.approx(600, rel=1e-3)
    assert whole.largest_imbalance == pytest.approx(0.25, abs=1e-4)
    torn = replace(
        slabs,
        glaciers=tuple(replace(g, fold=int(g.ref_id < "G002")) for g in slabs.glaciers),
        validation=((), ()),
    )
    assert torn.split_complexes == (("G001", "G002"),)
    measured = measure_folds(torn, frame)
    assert measured.smallest_gap_m == 0
    assert measured.longest_shared_boundary_m == pytest.approx(400, abs=5)


def test_the_ice_left_to_train_on_is_what_lies_behind_the_barrier():
    places = [(x * 2000.0, 0.0, x * 2000.0 + 400, 400.0) for x in range(6)]
    frame, folds = divided(places, folds=2, window_m=1000.0)
    fold = next(f for f in range(2) if "G000" in folds.held_out(f))
    barrier = folds.barrier_m + folds.buffer_m
    assert 1400 < barrier < 1600  # it ends on the first glacier beyond, a gap of 1600 m away
    measured = measure_folds(folds, frame)
    validating = 0.16 * len(folds.validating(fold))
    assert measured.validation_km2[fold] == pytest.approx(validating, abs=1e-4)
    assert measured.training_km2[fold] == pytest.approx(3 * 0.16 - validating, rel=1e-3)
    assert barrier_for(1000.0) == pytest.approx(1414.2, abs=0.1)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("file", "count"),
    [("alpine_divides/divides_alps.shp", 5), ("everest/15_rgi60_glacier_outlines.gpkg", 2)],
)
def test_real_inventories_are_divided_better_by_blocks_than_by_slabs(file, count):
    if not (DATA / file).exists():
        pytest.skip(f"the real outlines are not at {DATA / file} (set INVENTORY_ENGINE_TEST_DATA)")
    frame = read_reference(DATA / file).frame
    blocks, slabs = (
        measure_folds(divide_glaciers(frame, folds=count, method=m, window_m=1280.0), frame)
        for m in ("blocks", "slabs")
    )
    assert blocks.largest_imbalance <= blocks.largest_complex_share
    assert blocks.split_complexes == 0 < slabs.split_complexes
    assert blocks.smallest_gap_m > 0 == slabs.smallest_gap_m
    assert blocks.longest_shared_boundary_m == 0 < slabs.longest_shared_boundary_m
