"""Stated probabilities are held against what came true, map by map, exactly."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from catalog.errors import DataError, UsageError
from model_serving.calibration import (
    ProbabilityCounts,
    calibration_error,
    expected_calibration_error,
    fit_temperature,
    reliability,
    with_temperature,
)
from model_serving.calibration_figure import reliability_diagram
from model_serving.metrics import auc_roc

BINS = st.sampled_from([1, 10, 15, 20, 40])
stated = arrays(np.float32, 80, elements=st.floats(0, 1, width=32))
came_true = arrays(np.bool_, 80)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def drawn(
    temperature: float, *, seed: int = 0, pixels: int = 40_000
) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``temperature`` times too large for how often their classes come true."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (pixels, 4))
    chance = rng.random((pixels, 1))
    labels = (softmax(honest).cumsum(axis=1) < chance).sum(axis=1).clip(max=3)
    return honest * temperature, labels


def fields(counts: ProbabilityCounts) -> list[bytes]:
    return [c.tobytes() for c in (counts.count, counts.true, counts.units)]


@given(stated, came_true, BINS)
def test_the_error_is_that_of_the_definition(probability, outcome, bins):
    wide = probability.astype(float)
    index = np.minimum((wide * bins).astype(int), bins - 1)
    step = np.minimum((wide * 5040).astype(int), 5039)
    assume((step // (5040 // bins) == index).all())  # none lies on a limit but for rounding
    wanted = 0.0
    for b in range(bins):
        of = index == b
        if of.any():
            wanted += of.mean() * abs(outcome[of].mean() - wide[of].mean())
    counts = ProbabilityCounts.of(probability, outcome)
    assert calibration_error(counts, bins=bins) == pytest.approx(wanted, abs=1e-7)
    table = reliability(counts, bins=bins)
    assert len(table) == bins
    assert table["count"].sum() == 80
    filled = table.dropna()
    assert (filled.probability >= filled.low - 1e-6).all()
    assert (filled.probability <= filled.high + 1e-6).all()


@given(stated, came_true, st.lists(st.integers(0, 80), max_size=5), st.randoms())
def test_parts_add_up_to_exactly_the_whole_in_any_order(probability, outcome, cuts, random):
    whole = ProbabilityCounts.of(probability, outcome)
    limits = [0, *sorted(cuts), 80]
    pieces = [slice(a, b) for a, b in pairwise(limits)]
    parts = [ProbabilityCounts.of(probability[p], outcome[p]) for p in pieces]
    random.shuffle(parts)
    total = ProbabilityCounts.total(parts)
    assert fields(total) == fields(whole)
    assert total.pixels == 80


def test_more_pixels_than_are_counted_at_a_time_are_counted_exactly():
    probability = np.full(2**22 + 7, 0.3, np.float32)
    counts = ProbabilityCounts.of(probability, np.zeros(probability.shape, bool))
    assert counts.pixels == probability.size
    assert int(counts.units.sum()) == round(float(np.float32(0.3)) * 2**28) * probability.size
    large = ProbabilityCounts(counts.count * 400, counts.true, counts.units * 400)  # 1.7e9 pixels
    assert calibration_error(large) == pytest.approx(0.3, abs=1e-6)


@given(stated, came_true, BINS)
def test_adaptive_bins_hold_about_equally_many_pixels_and_every_pixel_once(
    probability, outcome, bins
):
    counts = ProbabilityCounts.of(probability, outcome)
    table = reliability(counts, bins=bins, adaptive=True)
    assert table["count"].sum() == 80
    assert len(table) <= bins
    assert (table["count"] > 0).all()
    assert table.low.iloc[0] == 0
    assert table.high.iloc[-1] == 1
    assert (table.low.iloc[1:].to_numpy() == table.high.iloc[:-1].to_numpy()).all()
    largest_step = counts.count.max()
    assert table["count"].max() <= 80 / bins + largest_step


def test_of_spread_out_probabilities_adaptive_bins_are_quantiles():
    probability = np.random.default_rng(0).beta(0.5, 3, 50_000)
    counts = ProbabilityCounts.of(probability, probability > 0.4)
    table = reliability(counts, bins=10, adaptive=True)
    assert table["count"].to_numpy() == pytest.approx(np.full(10, 5000), rel=0.05)
    assert table.low.to_numpy()[1:] == pytest.approx(
        np.quantile(probability, np.arange(0.1, 1, 0.1)), abs=2e-3
    )


@given(stated, came_true)
def test_the_area_under_the_curve_comes_out_of_the_same_counts(probability, outcome):
    steps = np.rint(probability * 100) / 101
    found = ProbabilityCounts.of(steps, outcome).auc_roc
    assert found == pytest.approx(auc_roc(steps, outcome), nan_ok=True)


def test_of_a_map_the_top_class_and_all_ice_are_counted_where_both_are_known():
    probability = np.array(
        [[0.1, 0.2, 0.7, 0.0, 0.6], [0.5, 0.3, 0.1, 0.0, 0.1], [0.3, 0.4, 0.1, 0.0, 0.2],
         [0.1, 0.1, 0.1, 0.0, 0.1]]
    )  # fmt: skip
    labels = np.array([1, 1, 0, 1, 255], np.uint8)
    top = ProbabilityCounts.of_map(probability, labels, of="top")
    ice = ProbabilityCounts.of_map(probability, labels, of="ice")
    assert top.pixels == ice.pixels == 3
    assert top.true.sum() == 2  # the second pixel is taken for debris-covered ice
    assert ice.true.sum() == 2
    assert top.units.sum() / 2**28 == pytest.approx(0.5 + 0.4 + 0.7)
    assert ice.units.sum() / 2**28 == pytest.approx(0.8 + 0.7 + 0.2)
    wanted = (abs(1 - 0.5) + abs(0 - 0.4) + abs(1 - 0.7)) / 3
    assert expected_calibration_error(probability, labels) == pytest.approx(wanted)
    gone = probability.copy()
    gone[:, 3] = np.nan
    assert fields(ProbabilityCounts.of_map(gone, labels, of="top")) == fields(top)


def test_honest_probabilities_have_no_error_and_sure_ones_have():
    for temperature, low, high in ((1.0, 0, 0.01), (3.0, 0.1, 0.5), (0.3, 0.1, 0.5)):
        logits, labels = drawn(temperature)
        p = softmax(logits).T
        for of in ("top", "ice"):
            assert low <= expected_calibration_error(p, labels, of=of) <= high
            assert low <= expected_calibration_error(p, labels, of=of, adaptive=True) <= high


@given(st.floats(0.2, 6), st.integers(0, 20))
@settings(deadline=None, max_examples=12)
def test_the_temperature_that_made_logits_too_large_is_found_again(temperature, seed):
    logits, labels = drawn(temperature, seed=seed, pixels=20_000)
    found = fit_temperature(logits, labels)
    assert found.value == pytest.approx(temperature, rel=0.06)
    assert found.at_bound is None
    assert found.log_loss_after <= found.log_loss_before + 1e-9
    for other in (0.97, 1.03):
        own = softmax(logits / (found.value * other))[np.arange(len(labels)), labels]
        assert -np.log(own).mean() > found.log_loss_after


def test_temperature_takes_the_error_out_of_pixels_it_was_not_fitted_on():
    logits, labels = drawn(2.5, seed=1)
    found = fit_temperature(*drawn(2.5, seed=2))
    before = softmax(logits).T
    after = with_temperature(before, found.value)
    assert expected_calibration_error(before, labels) > 0.1
    assert expected_calibration_error(after, labels) < 0.01
    assert (after.argmax(axis=0) == before.argmax(axis=0)).all()
    assert after == pytest.approx(softmax(logits / found.value).T, abs=1e-9)


def test_logarithms_of_probabilities_are_as_good_as_logits():
    logits, labels = drawn(2.0)
    p = softmax(logits)
    assert fit_temperature(np.log(p), labels).value == pytest.approx(
        fit_temperature(logits, labels).value, rel=1e-4
    )
    p[:5] = 0  # nothing was seen there
    with np.errstate(divide="ignore"):
        found = fit_temperature(np.log(p), labels)
    assert found.pixels == len(labels) - 5
    assert np.isfinite(found.log_loss_after)


def test_pixels_that_cannot_calibrate_are_said_to_by_the_bound():
    logits, _ = drawn(1.0)
    right = logits.argmax(axis=1)
    for scale in (1.0, 50.0, 5000.0):  # at the last even the loss at temperature 1 is zero
        found = fit_temperature(logits * scale, right)
        assert (found.value, found.at_bound) == (pytest.approx(0.05), "low")
        assert np.isfinite(found.log_loss_after)
    wrong = fit_temperature(logits * 5, logits.argmin(axis=1), bounds=(0.5, 5.0))
    assert (wrong.value, wrong.at_bound) == (pytest.approx(5.0), "high")
    even = fit_temperature(np.zeros((50, 4)), right[:50])
    assert (even.value, even.at_bound) == (1.0, None)
    unknown = fit_temperature(logits, np.where(np.arange(len(right)) % 2, right, 255))
    assert unknown.pixels == len(right) // 2
    with pytest.raises(DataError, match="found none"):
        fit_temperature(logits, np.full(len(logits), 255))


def test_a_temperature_leaves_what_was_not_seen_and_the_sums_as_they_are():
    p = softmax(drawn(3.0, pixels=100)[0]).T.astype(np.float32)
    p[:, :10] = 0
    assert with_temperature(p, 1.0) is p
    for temperature in (0.05, 0.5, 7.0):
        after = with_temperature(p, temperature)
        assert after.dtype == np.float32
        assert (after[:, :10] == 0).all()
        assert after[:, 10:].sum(axis=0) == pytest.approx(np.ones(90), abs=1e-5)


def test_what_is_no_probability_and_bins_that_do_not_divide_are_named():
    with pytest.raises(DataError, match=r"from 0\.2 to 1\.5"):
        ProbabilityCounts.of(np.array([0.2, 1.5, np.nan]), np.ones(3, bool))
    nothing = ProbabilityCounts.of(np.array([np.nan]), np.ones(1, bool))
    assert nothing.pixels == 0
    assert np.isnan(calibration_error(nothing))
    assert np.isnan(calibration_error(nothing, adaptive=True))
    with pytest.raises(UsageError, match="11 bins asked for; choose a divisor of 5040"):
        reliability(nothing, bins=11)


def test_the_diagram_is_drawn_alike_each_time_and_says_what_it_shows():
    before, after = [], []
    for seed in range(4):
        logits, labels = drawn(2.5, seed=seed, pixels=4000)
        p = softmax(logits).T
        before.append(ProbabilityCounts.of_map(p, labels, of="ice"))
        after.append(ProbabilityCounts.of_map(with_temperature(p, 2.5), labels, of="ice"))
    picture = reliability_diagram(before, after)
    image = Image.open(io.BytesIO(picture))
    assert image.size == (2160, 1440)
    assert picture == reliability_diagram(before, after)
    text = reliability_diagram(before, after, kind="svg", what="glacier").decode()
    assert (
        f"expected calibration error {calibration_error(ProbabilityCounts.total(before)):.3f}"
        in text
    )
    assert "Observed share of glacier" in text
    assert "4 maps" in text
    assert text == reliability_diagram(before, after, kind="svg", what="glacier").decode()
    nothing = ProbabilityCounts.of(np.empty(0), np.empty(0, bool))
    with pytest.raises(UsageError, match="no pixel"):
        reliability_diagram([nothing], after)
