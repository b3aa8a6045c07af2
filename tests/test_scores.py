"""The table of scores says of every group what counting its pixels one by one says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.cube import CLASSES
from catalog.errors import UsageError
from model_serving.metrics import (
    class_scores,
    confusion_matrix,
    iou,
    overall_scores,
)
from model_serving.scores import COLUMNS, MapCounts, count_map, scores

PIXEL_KM2 = 0.0004


def made(seed: int, *, edge: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map, its reference and the owners of three glaciers; some pixels not seen."""
    rng = np.random.default_rng(seed)
    owners = np.zeros((edge, edge), np.int32)
    owners[2:6, 2:9], owners[10:25, 5:22], owners[27:29, 20:29] = 1, 2, 3
    reference = np.where(owners > 0, rng.integers(0, 3, owners.shape), 0).astype(np.uint8)
    reference[0] = 3
    predicted = np.where(
        rng.random(owners.shape) < 0.2, rng.integers(0, 4, owners.shape), reference
    ).astype(np.uint8)
    predicted[rng.random(owners.shape) < 0.1] = 255
    reference[rng.random(owners.shape) < 0.1] = 255
    return predicted, reference, owners


def counted(seed: int, *, margin_px: int = 0, **changes: object) -> MapCounts:
    predicted, reference, owners = made(seed)
    named = {"region": f"r{seed}", "season": "2020", "fold": seed % 2} | changes
    return count_map(
        predicted, reference, owners=owners, pixel_km2=PIXEL_KM2, margin_px=margin_px, **named
    )


def value(table: pd.DataFrame, **wanted: str) -> float:
    """The one row that has these values."""
    rows = table[np.logical_and.reduce([table[k] == v for k, v in wanted.items()])]
    assert len(rows) == 1, wanted
    return float(rows.value.iloc[0])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True))
@settings(deadline=None, max_examples=15)
def test_scores_of_all_pixels_are_those_of_one_long_map(seeds):
    table = scores([counted(seed) for seed in seeds])
    predicted, reference, _ = (np.concatenate(a) for a in zip(*map(made, seeds), strict=True))
    whole = confusion_matrix(predicted, reference, classes=4)
    pixels = {"scope": "all", "group": "all", "mean": "pixels"}
    for name, wanted in overall_scores(whole).items():
        assert value(table, **pixels, target="all", score=name) == pytest.approx(float(wanted))
    for name, wanted in class_scores(whole).items():
        found = [value(table, **pixels, target=c, score=name) for c in CLASSES]
        assert found == pytest.approx(wanted.tolist(), nan_ok=True)
    known = (predicted < 4) & (reference < 4)
    ice = [np.isin(m, (1, 2)) & known for m in (predicted, reference)]
    assert value(table, **pixels, target="ice", score="iou") == pytest.approx(iou(*ice))
    bias = (ice[0].sum() - ice[1].sum()) * PIXEL_KM2
    assert value(table, **pixels, target="ice", score="bias_km2") == pytest.approx(bias, abs=1e-12)


def test_means_over_glaciers_count_each_alike_or_by_its_area():
    table = scores([counted(1), counted(4)])
    ious, areas, percents = [], [], []
    for seed in (1, 4):
        predicted, reference, owners = made(seed)
        for glacier in (1, 2, 3):
            of = (owners == glacier) & (predicted < 4) & (reference < 4)
            a, b = np.isin(predicted, (1, 2)) & of, np.isin(reference, (1, 2)) & of
            ious.append(iou(a, b))
            percents.append(100 * (a.sum() - b.sum()) / b.sum())
            areas.append((owners == glacier).sum())
    every = {"scope": "all", "group": "all", "target": "ice"}
    for name, values in (("iou", ious), ("bias_percent", percents)):
        plain = value(table, **every, mean="glaciers", score=name)
        weighted = value(table, **every, mean="area", score=name)
        assert plain == pytest.approx(np.mean(values))
        assert weighted == pytest.approx(np.average(values, weights=areas))


def test_groups_hold_their_own_pixels_alone():
    maps = [counted(seed) for seed in range(4)]
    table = scores(maps)
    some = {"mean": "pixels", "target": "ice", "score": "iou"}
    for fold in (0, 1):
        alone = scores([m for m in maps if m.fold == fold])
        for row in alone[alone.scope == "all"].itertuples():
            same = {"mean": row.mean, "target": row.target, "score": row.score}
            found = value(table, scope="fold", group=str(fold), **same)
            assert found == pytest.approx(row.value, nan_ok=True)
    one = value(scores([maps[2]]), scope="all", group="all", **some)
    assert value(table, scope="region", group="r2", **some) == pytest.approx(one)
    assert value(table, scope="season", group="2020", **some) == value(
        table, scope="all", group="all", **some
    )


def test_glaciers_are_grouped_by_the_area_of_their_outline_and_the_debris_seen_on_them():
    table = scores([counted(1)])
    assert table[table.scope == "size_km2"].group.unique().tolist() == [
        "0-0.01",
        "0.01-0.1",
        "0.1-0.5",
    ]
    predicted, reference, owners = made(1)
    shares = [
        ((reference == 2) & of).sum() / (np.isin(reference, (1, 2)) & of).sum()
        for of in ((owners == g) & (predicted < 4) & (reference < 4) for g in (1, 2, 3))
    ]
    wanted = {"0.3-0.6" if 0.3 <= s < 0.6 else "0.6-1" if s >= 0.6 else "0.1-0.3" for s in shares}
    assert set(table[table.scope == "debris_share"].group) == wanted
    by_size = table[(table.scope == "size_km2") & (table["mean"] == "glaciers")]
    assert (by_size[by_size.score == "iou"].n <= 1).all()
    clean = np.zeros((9, 9), np.uint8)
    clean[2:5, 2:5] = 1
    owners = (clean > 0).astype(np.int32)
    named = {"region": "a", "season": "b", "fold": 0, "pixel_km2": 0.1}
    free = scores([count_map(clean, clean, owners=owners, **named)])
    assert set(free[free.scope == "debris_share"].group) == {"0-0.01"}
    assert set(free[free.scope == "size_km2"].group) == {"0.5-1"}


def test_ice_just_beyond_an_outline_counts_against_its_glacier_and_farther_ice_against_none():
    reference = np.zeros((20, 20), np.uint8)
    reference[5:10, 5:10] = 1
    owners = (reference > 0).astype(np.int32)
    predicted = reference.copy()
    predicted[10:12, 5:10] = 1
    predicted[17:, 17:] = 1
    named = {"owners": owners, "pixel_km2": 1.0, "region": "a", "season": "b", "fold": 0}
    narrow = scores([count_map(predicted, reference, margin_px=0, **named)])
    wide = scores([count_map(predicted, reference, margin_px=2, **named)])
    of_glacier = {"scope": "all", "mean": "glaciers", "target": "ice", "score": "iou"}
    assert value(narrow, **of_glacier) == 1
    assert value(wide, **of_glacier) == pytest.approx(25 / 35)
    everything = of_glacier | {"mean": "pixels"}
    assert value(narrow, **everything) == value(wide, **everything) == pytest.approx(25 / 44)
    area = {"scope": "all", "mean": "area", "target": "ice", "score": "reference_km2"}
    assert value(wide, **area) == 25  # the widened zone is not the glacier's area


@given(st.permutations(range(5)))
@settings(deadline=None, max_examples=10)
def test_the_order_of_maps_does_not_matter(order):
    maps = [counted(seed, figures={"boundary_m": seed / 3}) for seed in range(5)]
    table = scores(maps, glaciers=True)
    pd.testing.assert_frame_equal(scores([maps[i] for i in order], glaciers=True), table)
    assert tuple(table.columns) == COLUMNS
    assert not table.duplicated(["scope", "group", "mean", "target", "score"]).any()


def test_a_map_counted_fold_by_fold_is_the_map_counted_whole():
    predicted, reference, owners = made(3)
    folds = np.arange(30)[:, None] // 10 + np.zeros((1, 30), int)
    named = {"owners": owners, "pixel_km2": PIXEL_KM2, "region": "a", "season": "b"}
    parts = [
        count_map(np.where(folds == f, predicted, np.uint8(255)), reference, fold=f, **named)
        for f in range(3)
    ]
    whole = count_map(predicted, reference, fold=0, **named)
    assert (sum(p.tables for p in parts) == whole.tables).all()
    table, alone = scores(parts), scores([whole])
    same = {"scope": "all", "mean": "pixels", "target": "ice", "score": "mcc"}
    assert value(table, **same) == pytest.approx(value(alone, **same))


def test_figures_of_whole_maps_are_averaged_over_maps_that_have_them():
    maps = [counted(s, figures={"boundary_m": f}) for s, f in ((0, 10.0), (1, 30.0), (2, np.nan))]
    table = scores(maps)
    rows = table[(table["mean"] == "maps") & (table.scope == "all")]
    assert rows[["score", "value", "n"]].values.tolist() == [["boundary_m", 20.0, 2]]
    assert value(table, scope="fold", group="1", mean="maps", score="boundary_m") == 30


def test_each_glacier_can_have_rows_of_its_own():
    table = scores([counted(1)], glaciers=True)
    predicted, reference, owners = made(1)
    of = (owners == 2) & (predicted < 4) & (reference < 4)
    wanted = iou(np.isin(predicted, (1, 2)) & of, np.isin(reference, (1, 2)) & of)
    mine = {"scope": "glacier", "group": "r1/2020/2", "target": "ice"}
    assert value(table, **mine, score="iou") == pytest.approx(wanted)
    assert value(table, **mine, score="outline_km2") == pytest.approx(15 * 17 * PIXEL_KM2)


def test_maps_without_a_glacier_or_without_a_known_pixel_are_scored_as_far_as_they_go():
    empty = np.zeros((5, 5), np.int32)
    unseen = np.full((5, 5), 255, np.uint8)
    named = {"owners": empty, "pixel_km2": 1.0, "season": "b", "fold": 0}
    one = count_map(unseen, unseen, region="dark", **named)
    two = count_map(empty.astype(np.uint8), empty.astype(np.uint8), region="bare", **named)
    table = scores([one, two])
    same = {"scope": "all", "mean": "pixels"}
    assert value(table, **same, target="all", score="accuracy") == 1
    assert np.isnan(value(table, **same, target="ice", score="iou"))
    assert value(table, **same, target="ice", score="bias_km2") == 0
    assert (table[table["mean"] == "glaciers"].n == 0).all()


def test_maps_counted_twice_and_rasters_that_do_not_match_are_named():
    with pytest.raises(UsageError, match=r"twice: \[\('r1', '2020', 1\)\]"):
        scores([counted(1), replace(counted(1), pixel_km2=1.0)])
    with pytest.raises(UsageError, match="found 0"):
        scores([])
    predicted, reference, owners = made(0)
    with pytest.raises(UsageError, match="differ in shape"):
        count_map(
            predicted[1:], reference, owners=owners, pixel_km2=1, region="", season="", fold=0
        )


def test_the_spread_over_members_is_that_of_their_means_over_the_maps_they_share():
    members = {0: {"a": (0.8, 0.6), "b": (0.9, 0.9)}, 1: {"c": (0.5, 0.5), "d": (0.7, 0.3)}}
    maps = [
        counted(seed, members={n: v[seed // 2] for n, v in members[seed % 2].items()})
        for seed in range(4)
    ]
    table = scores(maps)
    some = {"scope": "fold", "mean": "members", "target": "ice"}
    for fold, means in (("0", (0.7, 0.9)), ("1", (0.5, 0.5))):
        assert value(table, **some, group=fold, score="iou") == pytest.approx(np.mean(means))
        spread = value(table, **some, group=fold, score="iou_deviation")
        assert spread == pytest.approx(np.std(means, ddof=1))
    assert not ((table["mean"] == "members") & (table.scope == "all")).any()
    (number,) = table[(table["mean"] == "members") & (table.group == "0")].n.unique()
    assert number == 2
    bare = scores([counted(0, members={"a": np.nan, "b": np.nan})])
    assert np.isnan(value(bare, **some, group="0", score="iou"))
