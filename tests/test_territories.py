"""Glaciers of a region are shared out whole, with the ground around them, and never seen twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from catalog.errors import UsageError
from catalog.grid import RegionGrid
from model_serving.folds import OUTSIDE, TrainingRegion, fold_map
from model_serving.regions import PreparedRegion
from model_serving.territories import MaskedRegion, Territories, divide_region

SIDE = 128
GRID = RegionGrid(46.0, 10.0, 20.0, 64, 32, -1280.0, 1280.0, 2, 2)


def region_of(folder: Path, owners: np.ndarray) -> PreparedRegion:
    labels = (owners > 0).astype(np.uint8)[None]
    features = np.full((1, 11, *owners.shape), 0.5, np.float16)
    for name, values in (("features", features), ("labels", labels), ("owners", owners)):
        np.save(folder / f"{name}.npy", values)
    grid = replace(GRID, rows=owners.shape[0] // 64, cols=owners.shape[1] // 64)
    return PreparedRegion(
        "own", 0, folder, grid, (9.9, 45.9, 10.1, 46.1), ("2020",), int(owners.max()), 1.0, "print"
    )


def squares(*corners: tuple[int, int], side: int = 12) -> np.ndarray:
    owners = np.zeros((SIDE, SIDE), np.int32)
    for number, (row, col) in enumerate(corners, 1):
        owners[row : row + side, col : col + side] = number
    return owners


@pytest.fixture
def region(tmp_path: Path) -> PreparedRegion:
    """Six glaciers; the third and fourth touch."""
    return region_of(tmp_path, squares((5, 5), (5, 50), (60, 30), (60, 43), (100, 10), (100, 100)))


@pytest.mark.parametrize("folds", [[0, 1], [0, 1, 2], [3, 5, 6, 9, 11]])
def test_every_fold_holds_out_whole_complexes(region: PreparedRegion, folds: list[int]):
    shared = divide_region(region, folds)
    assert set(shared.folds) == set(folds)
    assert sorted(shared.glaciers) == [(1,), (2,), (3, 4), (5,), (6,)]
    owners = region.owners()
    for glacier in range(1, 7):
        assert len(np.unique(shared.fold_map[owners == glacier])) == 1
    assert sum(shared.ice_of(f) for f in folds) == np.count_nonzero(owners)


def test_folds_hold_similar_ice_areas(tmp_path: Path):
    rng = np.random.default_rng(4)
    owners = np.zeros((SIDE, SIDE), np.int32)
    places = [(r, c) for r in range(4, 120, 16) for c in range(4, 120, 16)]
    for number, (row, col) in enumerate(places, 1):
        side = int(rng.integers(3, 9))
        owners[row : row + side, col : col + side] = number
    shared = divide_region(region_of(tmp_path, owners), [0, 1, 2, 3, 4])
    shares = np.array([shared.ice_of(f) for f in range(5)]) / np.count_nonzero(owners)
    assert abs(shares - 0.2).max() < 0.04


@settings(max_examples=40, deadline=None)
@given(data=st.data(), buffer_px=st.floats(0, 20))
def test_nothing_that_is_held_out_or_aside_is_seen_nor_ground_nearer_than_the_buffer(
    data: st.DataObject, buffer_px: float, tmp_path_factory: pytest.TempPathFactory
):
    corners = data.draw(
        st.lists(
            st.tuples(st.integers(0, SIDE - 8), st.integers(0, SIDE - 8)), min_size=6, max_size=12
        )
    )
    region = region_of(tmp_path_factory.mktemp("own"), squares(*corners, side=6))
    try:
        shared = divide_region(region, [0, 1, 2], cut_complexes=True)
    except UsageError as error:
        assert error.kind == "empty-fold"  # later squares may hide earlier ones
        return
    for fold in (0, 1, 2):
        try:
            aside = shared.validating(fold, share=0.2, rng=np.random.default_rng(1))
        except UsageError as error:
            assert error.kind == "empty-fold"
            continue
        seen = shared.seen(fold, aside, buffer_px=buffer_px)
        judged = shared.validation_ground(fold, aside, buffer_px=buffer_px)
        hidden = np.isin(region.owners(), shared.held_out(fold) + shared.of(aside))
        near = ndimage.distance_transform_edt(~hidden) <= buffer_px
        assert not (seen & near).any()
        assert not (seen & judged).any()
        held = np.isin(region.owners(), shared.held_out(fold))
        assert not (judged & (ndimage.distance_transform_edt(~held) <= buffer_px)).any()
        three = [shared.held_out(fold), shared.of(aside), shared.taught(fold, aside)]
        assert sorted(g for part in three for g in part) == shared.of(range(len(shared.folds)))
        assert three[2]


def test_the_outlines_of_the_folds_cover_the_region_and_meet_within_the_buffer(
    region: PreparedRegion,
):
    shared = divide_region(region, [0, 1, 2])
    west, south, east, north = region.bbox
    listed = [
        TrainingRegion(
            f"own/fold{f}", 0, f, (west, south, east, north), 1, 1.0, shared.outline(f, region.grid)
        )
        for f in (0, 1, 2)
    ]
    again = [TrainingRegion.from_dict(r.to_dict()) for r in listed]
    for shard in region.grid.shards():
        found = fold_map(shard, again)
        rows, cols = (
            slice(shard.row * 64, shard.row * 64 + 64),
            slice(shard.col * 64, shard.col * 64 + 64),
        )
        wanted = shared.fold_map[rows, cols]
        assert (found != OUTSIDE).all()
        for fold in (0, 1, 2):
            # A pixel that is given to a fold lies in its territory or a few pixels beside it.
            beside = ndimage.distance_transform_edt(shared.fold_map != fold)[rows, cols]
            assert beside[found == fold].max(initial=0) < 8
        assert (found == wanted).mean() > 0.9


def test_a_masked_region_shows_nothing_of_what_is_hidden(region: PreparedRegion):
    shown = np.zeros((SIDE, SIDE), bool)
    shown[:64] = True
    masked = MaskedRegion.of(region, shown)
    assert np.isnan(masked.features()[..., 64:, :]).all()
    assert (masked.labels()[:, 64:] == 255).all()
    assert not masked.owners()[64:].any()
    assert (masked.features()[..., :64, :] == region.features()[..., :64, :]).all()
    assert masked.name == region.name
    assert masked.seasons == region.seasons


def test_too_few_complexes_one_great_complex_and_cut_complexes_are_refused(
    region: PreparedRegion, tmp_path: Path
):
    with pytest.raises(UsageError, match="5 complexes of glaciers, fewer than 6 folds") as few:
        divide_region(region, range(6))
    assert few.value.kind == "empty-fold"
    assert isinstance(divide_region(region, range(6), cut_complexes=True), Territories)
    with pytest.raises(UsageError, match="glaciers 3, 4 touch, and are held out by 0, 1") as cut:
        divide_region(region, [0, 1], fold_of={1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1})
    assert cut.value.kind == "fold-leak"
    with pytest.raises(UsageError, match="fold 1 holds out no glacier"):
        divide_region(region, [0, 1], fold_of=dict.fromkeys(range(1, 7), 0))
    folder = tmp_path / "great"
    folder.mkdir()
    great = region_of(folder, squares((5, 5), (18, 5), (31, 5), (44, 5), (100, 100)))
    with pytest.raises(UsageError, match="one complex of 4 glaciers that touch has 80 %") as one:
        divide_region(great, [0, 1])
    assert one.value.kind == "one-complex"


def test_folds_given_by_the_caller_are_taken(region: PreparedRegion):
    wanted = {1: 0, 2: 1, 3: 1, 4: 1, 5: 0, 6: 1}
    shared = divide_region(region, [0, 1], fold_of=wanted)
    assert shared.held_out(0) == [1, 5]
    assert shared.held_out(1) == [2, 3, 4, 6]
