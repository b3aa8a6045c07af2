"""Row M7 of the fault matrix: one glacier, or the ground around it, in two folds is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_inventories import boxes, grid_of, inventory, owners_of

from catalog.errors import UsageError
from model_serving.fold_pixels import HELD_OUT, TRAIN, grid_roles, window_corners
from model_serving.glacier_folds import GlacierFolds, divide_glaciers
from model_serving.leaks import audit, refuse_leaks
from model_serving.training_record import Ground, Training, Window

RESOLUTION, SIZE = 50.0, 6


def split(places, count: int):
    frame = inventory(places)
    try:
        folds = divide_glaciers(
            frame, folds=count, window_m=SIZE * RESOLUTION, buffer_m=2 * RESOLUTION
        )
    except UsageError as error:
        assume(error.kind != "fold-empty")
        raise
    grid = grid_of(frame, resolution_m=RESOLUTION)
    owners = owners_of(frame, grid)
    ground = Ground(
        "MADE",
        np.random.default_rng(1).random((1, 6, *grid.shape)),
        (owners > 0)[None].astype(np.uint8),
        owners,
        tuple(frame["ref_id"]),
        RESOLUTION,
    )
    return frame, folds, grid, ground


def trained(folds: GlacierFolds, fold: int, rows_cols: np.ndarray) -> Training:
    return Training(
        "member",
        (fold,),
        ("MADE",),
        channels=tuple("abcdef"),
        windows=tuple(Window("MADE", 0, int(r), int(c), SIZE) for r, c in rows_cols),
        validated_on=tuple(sorted(folds.validating(fold))),
    )


@settings(max_examples=200, deadline=None)
@given(boxes(), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_m7_no_random_split_lets_a_glacier_or_its_ground_into_two_folds(places, count, seed):
    frame, folds, grid, ground = split(places, count)
    fold = seed % count
    roles = grid_roles(folds, frame, grid, fold=fold)
    corners = np.argwhere(window_corners(roles == TRAIN, SIZE))
    rng = np.random.default_rng(seed)
    chosen = corners[rng.choice(len(corners), min(20, len(corners)), replace=False)]
    assert audit([trained(folds, fold, chosen)], glacier_folds=folds, grounds=[ground]) == []
    # Beside the audit, by geometry alone: no window comes near a held-out outline.
    shapes = frame.geometry.to_crs(grid.proj4)[frame["ref_id"].isin(folds.held_out(fold))]
    edge = SIZE * RESOLUTION
    left, top = grid.left + chosen[:, 1] * RESOLUTION, grid.top - chosen[:, 0] * RESOLUTION
    gaps = shapely.distance(
        shapely.box(left, top - edge, left + edge, top), shapely.union_all(shapes.to_numpy())
    )
    assert (gaps > folds.barrier_m + folds.buffer_m).all()


@settings(max_examples=50, deadline=None)
@given(boxes(), st.integers(2, 6), st.data())
def test_m7_a_glacier_or_half_a_complex_put_into_a_second_fold_is_refused(places, count, data):
    _, folds, _, _ = split(places, count)
    number = data.draw(st.integers(0, len(folds.glaciers) - 1))
    glacier = folds.glaciers[number]
    elsewhere = replace(glacier, fold=(glacier.fold + 1) % count)
    with pytest.raises(UsageError, match=f"{glacier.ref_id} lies in two folds") as found:
        replace(folds, glaciers=(*folds.glaciers, elsewhere), validation=((),) * count)
    assert found.value.kind == "fold-leak"
    alone = sum(g.complex == glacier.complex for g in folds.glaciers) == 1
    last = sum(g.fold == glacier.fold for g in folds.glaciers) == 1
    if not alone and not last:
        moved = (*folds.glaciers[:number], elsewhere, *folds.glaciers[number + 1 :])
        with pytest.raises(UsageError, match="glaciers that touch are held out together"):
            replace(folds, glaciers=moved, validation=((),) * count)


@settings(max_examples=50, deadline=None)
@given(boxes(), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_m7_a_window_on_held_out_ground_or_within_its_barrier_is_refused(places, count, seed):
    frame, folds, grid, ground = split(places, count)
    fold = seed % count
    roles = grid_roles(folds, frame, grid, fold=fold)
    held = np.isin(ground.owners, 1 + np.flatnonzero(frame["ref_id"].isin(folds.held_out(fold))))
    row, col = np.argwhere(held)[seed % held.sum()]
    limit = np.array(grid.shape) - SIZE
    on_ice = np.clip([[row - SIZE // 2, col - SIZE // 2]], 0, limit)
    leaks = audit([trained(folds, fold, on_ice)], glacier_folds=folds, grounds=[ground])
    assert {leak.kind for leak in leaks} >= {"held-out-pixels"}
    with pytest.raises(UsageError, match="are held-out glaciers and their ground") as found:
        refuse_leaks(leaks)
    assert found.value.kind == "fold-leak"
    # Aside by one barrier less a pixel: on no held-out pixel, but too near to some.
    aside = int((folds.barrier_m + folds.buffer_m) / RESOLUTION) - 1
    columns = np.flatnonzero(held.any(axis=0))
    beside = np.array([[np.flatnonzero(held[:, columns[-1]])[0], columns[-1] + aside]])
    assume((beside <= limit).all())
    assert not (roles[beside[0, 0] :, beside[0, 1] :][:SIZE, :SIZE] == HELD_OUT).any()
    leaks = audit([trained(folds, fold, beside)], glacier_folds=folds, grounds=[ground])
    assert "barrier" in {leak.kind for leak in leaks}
