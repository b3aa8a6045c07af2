from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import UsageError
from change_detection.uncertainty import (
    AreaCalibration,
    area_sigma_km2,
    boundary_sigma_km2,
    change_sigma_km2,
    ensemble_sd,
    regional_sigma_km2,
)

PLAIN = AreaCalibration(1.0, 1.0, "not calibrated")
NAN = float("nan")


def test_fewer_than_three_members_have_no_standard_deviation():
    areas = np.array([[1.0, 1.0, NAN], [2.0, 2.0, NAN], [3.0, NAN, NAN]])
    assert ensemble_sd(areas).tolist() == pytest.approx([1.0, NAN, NAN], nan_ok=True)
    assert np.isnan(ensemble_sd(np.empty((0, 2)))).all()


def test_the_boundary_term_grows_with_the_root_of_the_margin():
    one, four = boundary_sigma_km2([1000.0, 4000.0], 10.0)
    assert one == pytest.approx(1e-4 * np.sqrt(100 / 12))
    assert four == pytest.approx(2 * one)


def test_change_adds_the_scaled_members_and_both_margins_in_quadrature():
    changes = np.array([[-1.0], [0.0], [1.0]])
    sigma = change_sigma_km2(changes, [3.0], [4.0], scale=12.0)
    assert sigma[0] == pytest.approx(13.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, NAN, float("inf")])
def test_a_calibration_that_is_no_factor_is_refused(bad):
    with pytest.raises(UsageError, match="must be positive"):
        AreaCalibration(bad, 1.0, "nowhere")


def test_a_region_without_intervals_has_none():
    found = regional_sigma_km2(np.full((2, 3), NAN), np.full(3, NAN), np.ones(3), calibration=PLAIN)
    assert np.isnan(found.sigma) and found.area_fraction == 0.0


def test_a_region_with_a_gap_of_more_than_five_percent_has_no_interval():
    changes = np.random.default_rng(0).normal(size=(3, 2))
    sigma = np.array([1.0, NAN])
    for share, available in ((0.04, True), (0.06, False)):
        area = np.array([1 - share, share])
        found = regional_sigma_km2(changes, sigma, area, calibration=PLAIN)
        assert np.isfinite(found.sigma) == available


def test_members_that_err_together_make_the_region_less_certain_than_members_that_do_not():
    rng = np.random.default_rng(1)
    area = np.ones(50)
    common = np.repeat(rng.normal(size=(5, 1)), 50, axis=1)
    alone = rng.normal(size=(5, 50))
    together, apart = (
        regional_sigma_km2(m, ensemble_sd(m), area, calibration=PLAIN) for m in (common, alone)
    )
    assert together.sigma == pytest.approx(together.correlated, rel=1e-6)
    assert apart.sigma < 0.4 * apart.correlated


def test_glaciers_mapped_by_other_members_do_not_share_errors():
    one_fold = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    two_folds = np.full((6, 2), NAN)
    two_folds[:3, 0] = two_folds[3:, 1] = [-1.0, 0.0, 1.0]
    sigma, area = np.ones(2), np.ones(2)
    shared = regional_sigma_km2(one_fold, sigma, area, calibration=PLAIN)
    separate = regional_sigma_km2(two_folds, sigma, area, calibration=PLAIN)
    assert shared.members == pytest.approx(2.0)
    assert separate.members == pytest.approx(np.sqrt(2.0))


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(3, 8),
    st.floats(0.0, 1.0),
    st.floats(0.2, 5.0),
    st.floats(0.2, 5.0),
)
def test_the_region_lies_between_its_bounds_and_never_below_a_part(
    seed, glaciers, members, common, scale, regional_scale
):
    rng = np.random.default_rng(seed)
    changes = common * rng.normal(size=(members, 1)) + (1 - common) * rng.normal(
        size=(members, glaciers)
    )
    boundary = rng.random(glaciers) * 0.1
    calibration = AreaCalibration(scale, regional_scale, "made up")
    sigma = change_sigma_km2(changes, boundary, boundary, scale=scale)
    found = regional_sigma_km2(changes, sigma, np.ones(glaciers), calibration=calibration)
    slack = 1 + 1e-9
    assert found.independent <= found.sigma * slack <= found.correlated * slack**2
    assert found.sigma * slack >= found.members
    assert found.sigma * slack >= sigma.max()


def test_the_interval_of_one_glacier_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(7)
    members, glaciers = 20, 4000
    # The truth is one more draw from what the members are drawn from.
    changes = rng.normal(size=(members, glaciers))
    truth = rng.normal(size=glaciers)
    sigma = change_sigma_km2(changes, np.zeros(glaciers), np.zeros(glaciers), scale=1.0)
    covered = np.mean(np.abs(truth) <= sigma)
    assert 0.63 <= covered <= 0.73


def test_an_area_is_as_uncertain_as_its_members_its_margin_and_what_was_not_seen():
    sigma = area_sigma_km2([0.1, 0.0, np.nan], [0.3, 0.0, 0.1], [0.0, 0.6, 0.0], scale=4.0)
    assert sigma[0] == pytest.approx(np.hypot(0.4, 0.3))
    assert np.isnan(sigma[2])
    # Any part of 0.6 km2 may have melted: the root mean square of a uniform error.
    assert sigma[1] == pytest.approx(np.sqrt(np.mean(np.linspace(0, 0.6, 10_001) ** 2)), rel=1e-3)


def test_a_calibration_is_read_from_a_card_and_has_factors_of_its_own_for_areas():
    card = {"scale": 2, "regional_scale": 3.0, "source": "x", "pairs": 9}
    plain = AreaCalibration.from_dict(card)
    assert plain.for_areas == plain
    full = AreaCalibration.from_dict(card | {"areas": {"scale": 4.0, "regional_scale": 5.0}})
    assert (full.for_areas.scale, full.for_areas.regional_scale) == (4.0, 5.0)
    assert AreaCalibration.from_dict(full.to_dict()) == full


@pytest.mark.parametrize(
    "card",
    [
        {},
        {"scale": 1},
        {"scale": "x", "regional_scale": 1},
        {"scale": 1, "regional_scale": 1, "areas": 3},
    ],
)
def test_a_card_without_usable_factors_is_refused(card: dict):
    with pytest.raises(UsageError, match="calibration"):
        AreaCalibration.from_dict(card)
