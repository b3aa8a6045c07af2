"""How a look is scored: bounded, monotone, and in numbers that add up."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.ranking import (
    CAUSES,
    COMPONENTS,
    WEIGHTS,
    ablation_end,
    broadband_albedo,
    days_from_ablation_end,
    is_cloud,
    is_snow,
    losses,
    rank,
)

ROOT = Path(__file__).parents[1]
SPECTRA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", ROOT.parent / "shared" / "data"))
SNOW, SHADED_SNOW, ICE, ROCK = 1, 2, 3, 4
PERFECT = {
    "coverage": 1.0,
    "cloud": 0.0,
    "hidden_around": 0.0,
    "snow_around": 0.0,
    "albedo": 0.15,
    "season_days": 0.0,
    "shadow": 0.0,
    "sun_elevation": 60.0,
}
WORSE = {
    "coverage": -1,
    "cloud": 1,
    "hidden_around": 1,
    "snow_around": 1,
    "albedo": 1,
    "shadow": 1,
    "sun_elevation": -1,
}
# ^ the direction in which each of them is bad for mapping

few = settings(max_examples=30, deadline=None)
share = st.floats(0, 1)
unknown_or = share | st.just(float("nan"))
look = st.fixed_dictionaries(
    {
        "coverage": share,
        "cloud": share,
        "hidden_around": unknown_or,
        "snow_around": unknown_or,
        "albedo": unknown_or,
        "season_days": st.floats(-183, 183) | st.just(float("nan")),
        "shadow": unknown_or,
        "sun_elevation": st.floats(-5, 90) | st.just(float("nan")),
    }
)


def frame_of(*looks: dict[str, float], ref_id: str = "A") -> pd.DataFrame:
    days = [f"2024-08-{n + 1:02d}" for n in range(len(looks))]
    return pd.DataFrame(list(looks)).assign(ref_id=ref_id, day=days, sensor="sentinel-2-msi")


def score(look: dict[str, float]) -> float:
    return float(rank(frame_of(look))["score"].item())


def test_a_look_without_fault_scores_one_and_the_weights_leave_nothing_over():
    assert set(PERFECT) == set(COMPONENTS)
    assert score(PERFECT) == 1
    assert sum(WEIGHTS.values()) == pytest.approx(1)


@few
@given(look)
def test_score_and_losses_add_up_to_one(one: dict[str, float]):
    lost = losses(frame_of(one))
    assert list(lost) == list(CAUSES)
    assert (lost >= 0).all(axis=None)
    assert score(one) == pytest.approx(1 - lost.sum(axis=1).item(), abs=1e-6)
    assert 0 <= score(one) <= 1


@few
@given(look)
def test_a_look_that_sees_nothing_scores_nothing(one: dict[str, float]):
    assert score(one | {"coverage": 0.0, "cloud": float("nan")}) == 0
    assert score(one | {"cloud": 1.0}) == 0


@few
@given(look, st.sampled_from(sorted(WORSE)), share)
def test_the_score_falls_with_each_fault(one: dict[str, float], name: str, by: float):
    top = 90.0 if name == "sun_elevation" else 1.0
    base = np.nan_to_num(one[name], nan=top / 2)
    end = top if WORSE[name] > 0 else 0.0
    worse = base + by * (end - base)
    assert score(one | {name: worse}) <= score(one | {name: float(base)}) + 1e-6


@few
@given(look, st.floats(0, 183), st.floats(0, 183))
def test_the_score_falls_with_the_days_to_the_end_of_ablation_on_either_side(
    one: dict[str, float], a: float, b: float
):
    near, far = sorted((a, b))
    for side in (-1, 1):
        far_off = score(one | {"season_days": side * far})
        assert far_off <= score(one | {"season_days": side * near}) + 1e-6


@few
@given(look, st.sampled_from(["hidden_around", "snow_around", "albedo", "shadow"]))
def test_what_is_not_known_lies_between_the_best_and_the_worst(one: dict[str, float], name: str):
    best, worst = (score(one | {name: value}) for value in (0.0, 1.0))
    nothing = one | {name: float("nan"), "sun_elevation": float("nan")}
    assert worst - 1e-6 <= score(nothing) <= best + 1e-6


def test_snow_all_around_costs_more_than_a_quarter_of_cloud_and_less_than_all_of_it():
    snowy = score(PERFECT | {"snow_around": 1.0, "albedo": 0.6})
    assert 0 < snowy < score(PERFECT | {"cloud": 0.25})


@few
@given(st.lists(look, min_size=1, max_size=6), st.randoms())
def test_ranks_do_not_depend_on_the_order_of_rows(looks: list[dict[str, float]], chance: object):
    frame = pd.concat([frame_of(*looks, ref_id=name) for name in ("B", "A")], ignore_index=True)
    order = list(range(len(frame)))
    chance.shuffle(order)
    first, second = rank(frame), rank(frame.iloc[order])
    pd.testing.assert_frame_equal(first, second)
    assert first["ref_id"].is_monotonic_increasing
    for _, group in first.groupby("ref_id"):
        assert group["rank"].tolist() == list(range(1, len(looks) + 1))
        assert group["score"].is_monotonic_decreasing


def test_of_equal_looks_the_earlier_ranks_first_and_then_the_sensors_name():
    frame = frame_of(PERFECT, PERFECT, PERFECT)
    frame["day"] = ["2024-09-02", "2024-09-01", "2024-09-01"]
    frame["sensor"] = ["a", "sentinel-2-msi", "landsat-oli"]
    ranked = rank(frame)
    assert ranked["day"].tolist() == ["2024-09-01", "2024-09-01", "2024-09-02"]
    assert ranked["sensor"].tolist() == ["landsat-oli", "sentinel-2-msi", "a"]


@pytest.mark.parametrize(
    ("place", "latitude", "day"),
    [
        ("Khumbu", 28.0, "2024-10-31"),
        ("the Alps", 46.0, "2024-09-14"),
        ("Svalbard", 78.5, "2024-08-14"),
        ("New Zealand", -46.0, "2024-03-15"),
    ],
)
def test_the_ablation_season_ends_when_inventories_are_made(place: str, latitude: float, day: str):
    assert abs(days_from_ablation_end(date.fromisoformat(day), latitude)) < 1, place


def test_the_tropics_have_no_ablation_season_and_no_day_is_better():
    assert ablation_end(-9.1) is None
    assert np.isnan(days_from_ablation_end(date(2024, 7, 1), -9.1))
    assert score(PERFECT | {"season_days": float("nan")}) == 1


@given(st.floats(23.5, 90), st.dates(date(1984, 1, 1), date(2030, 12, 31)))
def test_the_southern_hemisphere_is_half_a_year_off(latitude: float, day: date):
    north, south = (days_from_ablation_end(day, side * latitude) for side in (1, -1))
    assert -183 < north <= 183
    assert abs(north - south) == pytest.approx(365.25 / 2, abs=1e-6)


def test_the_end_of_a_year_is_near_the_beginning_of_the_next():
    late, early = (days_from_ablation_end(d, -80.0) for d in (date(2023, 12, 31), date(2024, 1, 1)))
    assert early - late == pytest.approx(1, abs=1)


@given(st.floats(0.1, 1.2), st.floats(0.0, 1.2), st.floats(0.0, 0.6))
def test_nothing_is_both_snow_and_cloud(green: float, nir: float, swir1: float):
    bands = [np.array([v], np.float32) for v in (green, nir, swir1)]
    assert not (is_snow(*bands) & is_cloud(*bands)).any()
    assert 0 <= broadband_albedo(bands[0], bands[1])[0] <= 1


def test_albedo_is_that_of_the_formula_and_orders_what_glaciers_are_made_of():
    assert broadband_albedo(np.array([0.4]), np.array([0.3]))[0] == pytest.approx(
        0.726 * 0.4 - 0.322 * 0.16 - 0.051 * 0.3 + 0.581 * 0.09
    )
    debris, ice, snow = broadband_albedo(np.array([0.12, 0.4, 0.9]), np.array([0.18, 0.3, 0.8]))
    assert debris < 0.15 < ice < 0.4 < 0.7 < snow


@pytest.mark.real_data
@pytest.mark.skipif(not (SPECTRA / "spectra").is_dir(), reason=f"no real data in {SPECTRA}")
def test_real_snow_ice_and_rock_are_told_apart_and_none_is_taken_for_cloud():
    table = pd.read_csv(SPECTRA / "spectra" / "Sentinel-2_SR_training_data.csv")
    table = table[table["site_name"].isin(["Sperry", "Wolverine"])]
    bands = [table[name].to_numpy() for name in ("B3", "B8", "B11")]
    kind = table["class"].to_numpy()
    snow, cloud = is_snow(*bands), is_cloud(*bands)
    assert snow[np.isin(kind, (SNOW, ICE))].mean() > 0.95
    assert snow[kind == ROCK].mean() < 0.01
    for one in (SNOW, SHADED_SNOW, ICE, ROCK):
        assert cloud[kind == one].mean() < 0.02
    albedo = broadband_albedo(bands[0], bands[1])
    assert albedo[kind == ROCK].mean() < albedo[kind == ICE].mean() < albedo[kind == SNOW].mean()
