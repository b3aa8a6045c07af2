"""Scores are what their definitions say, on known pixels alone, and NaN where undefined."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model_serving.metrics import (
    against_rest,
    auc_roc,
    auc_roc_of_counts,
    boundary_distance,
    class_scores,
    confusion_matrix,
    iou,
    mapped_classes,
    matthews,
    overall_scores,
)

maps = arrays(np.uint8, st.tuples(st.just(2), st.integers(1, 60)), elements=st.integers(0, 3))


def by_definition(predicted: np.ndarray, reference: np.ndarray) -> float:
    """Gorodkin's R_K as the correlation of the indicator vectors of map and reference."""
    x, y = (np.eye(4)[values] for values in (predicted, reference))

    def cov(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - a.mean(axis=0)) * (b - b.mean(axis=0))).mean(axis=0).sum())

    return cov(x, y) / np.sqrt(cov(x, x) * cov(y, y))


@given(maps)
def test_the_matthews_coefficient_is_the_correlation_of_the_classes(pair):
    predicted, reference = pair
    found = float(matthews(confusion_matrix(predicted, reference, classes=4)))
    if len(set(predicted)) == 1 or len(set(reference)) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(by_definition(predicted, reference), abs=1e-12)


@given(maps)
def test_of_two_classes_it_is_the_plain_correlation_with_its_square_root(pair):
    predicted, reference = pair % 2
    assume(len(set(predicted)) == len(set(reference)) == 2)
    table = confusion_matrix(predicted, reference, classes=2)
    wanted = np.corrcoef(predicted, reference)[0, 1]
    assert float(matthews(table)) == pytest.approx(wanted, abs=1e-12)
    assert class_scores(table)["mcc"] == pytest.approx([wanted, wanted], abs=1e-12)
    (tn, fp), (fn, tp) = table.tolist()
    formula = (tp * tn - fp * fn) / ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert float(matthews(table)) == pytest.approx(formula, abs=1e-12)


@given(maps)
@settings(deadline=None)
def test_scores_are_those_of_scikit_learn_where_it_defines_them(pair):
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted, reference = pair
    table = confusion_matrix(predicted, reference, classes=4)
    assert (table == sklearn.confusion_matrix(reference, predicted, labels=range(4))).all()
    each, every = class_scores(table), overall_scores(table)
    options = {"labels": range(4), "average": None, "zero_division": np.nan}
    for name, function in (
        ("precision", sklearn.precision_score),
        ("recall", sklearn.recall_score),
        ("dice", sklearn.f1_score),
    ):
        wanted = function(reference, predicted, **options)
        np.testing.assert_allclose(each[name], wanted, err_msg=name)
    present = np.isfinite(each["iou"])
    wanted = sklearn.jaccard_score(
        reference, predicted, labels=range(4), average=None, zero_division=0
    )
    np.testing.assert_allclose(each["iou"][present], wanted[present])
    assert float(every["accuracy"]) == pytest.approx(sklearn.accuracy_score(reference, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        balanced = sklearn.balanced_accuracy_score(reference, predicted)
        mcc = sklearn.matthews_corrcoef(reference, predicted)
    assert float(every["balanced_accuracy"]) == pytest.approx(balanced)
    if np.isfinite(every["mcc"]):
        assert float(every["mcc"]) == pytest.approx(mcc, abs=1e-9)


@given(maps)
def test_scores_of_a_class_are_those_of_its_mask(pair):
    predicted, reference = pair
    table = confusion_matrix(predicted, reference, classes=4)
    ice = class_scores(against_rest(table, (1, 2)))["iou"][1]
    masks = np.isin(predicted, (1, 2)), np.isin(reference, (1, 2))
    assert ice == pytest.approx(iou(*masks), nan_ok=True)
    for c in range(4):
        alone = {k: v[1] for k, v in class_scores(against_rest(table, (c,))).items()}
        whole = {k: v[c] for k, v in class_scores(table).items()}
        assert alone == pytest.approx(whole, nan_ok=True, abs=1e-12)


def test_what_cannot_be_measured_is_not_a_number():
    absent = class_scores(np.array([[5, 2, 0], [0, 0, 0], [0, 0, 0]]))
    assert absent["recall"].tolist() == pytest.approx([5 / 7, np.nan, np.nan], nan_ok=True)
    assert absent["precision"].tolist() == pytest.approx([1, 0, np.nan], nan_ok=True)
    assert absent["iou"].tolist() == pytest.approx([5 / 7, 0, np.nan], nan_ok=True)
    nothing = np.zeros((3, 3), int)
    for scores in (class_scores(nothing), overall_scores(nothing)):
        assert all(np.isnan(v).all() for v in scores.values())
    unseen = confusion_matrix(np.array([255, 1, 0]), np.array([1, 255, 0]), classes=2)
    assert unseen.tolist() == [[1, 0], [0, 0]]


def test_a_thousand_million_pixels_do_not_overflow():
    table = np.array([[9, 1], [1, 9]], np.int64) * 10**9
    assert float(matthews(table)) == pytest.approx(0.8)
    assert class_scores(table)["mcc"] == pytest.approx([0.8, 0.8])


def test_many_tables_are_scored_at_once():
    rng = np.random.default_rng(0)
    tables = rng.integers(0, 50, (7, 4, 4))
    for name, values in (class_scores(tables) | overall_scores(tables)).items():
        for table, value in zip(tables, values, strict=True):
            alone = class_scores(table).get(name) if value.ndim else overall_scores(table)[name]
            np.testing.assert_allclose(value, alone)


@given(
    arrays(np.float32, 40, elements=st.sampled_from([0, 0.25, 0.5, 0.75, 1, np.nan])),
    arrays(np.bool_, 40),
)
def test_the_area_under_the_curve_counts_pairs(score, truth):
    yes = score[truth & ~np.isnan(score)]
    no = score[~truth & ~np.isnan(score)]
    found = auc_roc(score, truth)
    counts = [np.bincount((4 * part).astype(int), minlength=5) for part in (no, yes)]
    if not yes.size or not no.size:
        assert np.isnan(found)
        assert np.isnan(auc_roc_of_counts(*counts))
        return
    pairs = [(a > b) + (a == b) / 2 for a in yes for b in no]
    assert found == pytest.approx(np.mean(pairs))
    assert auc_roc_of_counts(*counts) == pytest.approx(found)


def disc(radius: float, centre: tuple[float, float] = (40, 40)) -> np.ndarray:
    y, x = np.mgrid[:81, :81]
    return np.hypot(y - centre[0], x - centre[1]) <= radius


@given(st.integers(6, 20), st.integers(1, 10))
@settings(deadline=None, max_examples=20)
def test_a_disc_grown_by_some_pixels_lies_as_far_out_everywhere(radius, more):
    found = boundary_distance(disc(radius + more), disc(radius), pixel_m=20)
    assert found.mean_m == pytest.approx(20 * more, abs=10)
    assert found.hausdorff95_m == pytest.approx(20 * more, abs=15)
    assert boundary_distance(disc(radius), disc(radius + more), pixel_m=20) == found


def test_equal_outlines_are_no_distance_apart_and_absent_ones_have_none():
    zero = boundary_distance(disc(9), disc(9), pixel_m=10)
    assert (zero.mean_m, zero.hausdorff95_m) == (0, 0)
    for a, b in ((disc(-1), disc(9)), (disc(9), disc(-1)), (disc(200), disc(200))):
        none = boundary_distance(a, b, pixel_m=10)
        assert np.isnan(none.mean_m)
        assert np.isnan(none.hausdorff95_m)


def test_a_lone_wrong_patch_moves_the_mean_but_not_the_95_percent_distance():
    wrong = disc(20)
    wrong[2, 2] = True
    found = boundary_distance(wrong, disc(20), pixel_m=10)
    assert found.hausdorff95_m == 0
    assert 1 < found.mean_m < 3


def test_the_rim_of_what_was_not_seen_is_no_edge():
    known = np.ones((81, 81), bool)
    known[:, 40:] = False
    shifted = disc(20)
    shifted[:, 40:] = False  # the map has nothing where nothing was seen
    found = boundary_distance(shifted, disc(20), pixel_m=10, known=known)
    assert (found.mean_m, found.hausdorff95_m) == (0, 0)
    assert boundary_distance(shifted, disc(20), pixel_m=10).hausdorff95_m > 50


def test_ice_is_what_has_half_of_the_probability_in_both_kinds_together():
    probability = np.array(
        [
            # background, clean, debris, water
            [0.4, 0.3, 0.3, 0.0],  # ice, though the background is the most probable class
            [0.1, 0.2, 0.3, 0.4],  # ice again, the more probable kind
            [0.3, 0.2, 0.25, 0.25],
            [0.2, 0.4, 0.0, 0.4],
        ]
    ).T
    assert mapped_classes(probability).tolist() == [1, 2, 0, 3]
