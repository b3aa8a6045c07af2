"""Temperatures of members: fitted where their fold is not, and better than none."""

from __future__ import annotations

import numpy as np
import pytest

from model_serving.ensemble import Member
from model_serving.features import CHANNELS
from model_serving.inference import map_features
from model_serving.member_calibration import (
    MapSample,
    calibration_counts,
    calibration_errors,
    choose_temperatures,
)
from model_serving.patches import WindowPlan


def softmax(logits: np.ndarray, axis: int) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=axis, keepdims=True))
    return raised / raised.sum(axis=axis, keepdims=True)


def sample_of(fold: int, *, overstated: float, voters: int = 3, pixels: int = 4000) -> MapSample:
    """Voters whose logits are ``overstated`` times what the labels were drawn from."""
    rng = np.random.default_rng(fold)
    logits = rng.normal(0, 1.5, (4, pixels))
    share = softmax(logits, 0)
    labels = (rng.random(pixels) > share.cumsum(axis=0)).sum(axis=0).clip(0, 3).astype(np.uint8)
    told = softmax(overstated * logits, 0).astype(np.float32)
    return MapSample(fold, np.stack([told] * voters), labels)


def test_members_that_are_too_sure_are_cooled_by_what_they_overstate():
    samples = [sample_of(fold, overstated=2.5) for fold in range(5)]
    temperatures = choose_temperatures(samples)
    assert list(temperatures) == list(range(5))
    assert all(t == pytest.approx(2.5, rel=0.05) for t in temperatures.values())
    before = calibration_errors(calibration_counts(samples, dict.fromkeys(range(5), 1.0)))
    after = calibration_errors(calibration_counts(samples, temperatures))
    for target in ("calibration_error", "ice_calibration_error"):
        assert before[target] > 0.1
        assert after[target] < 0.01


def test_the_temperature_of_a_fold_does_not_depend_on_its_own_maps():
    samples = [sample_of(fold, overstated=2.0) for fold in range(4)]
    other = [sample_of(0, overstated=9.0), *samples[1:]]
    assert choose_temperatures(samples)[0] == choose_temperatures(other)[0]
    assert choose_temperatures(samples)[1] != choose_temperatures(other)[1]


def test_maps_of_one_fold_alone_give_no_temperature():
    with pytest.raises(ValueError, match="two folds"):
        choose_temperatures([sample_of(3, overstated=1.0)])


def card_entry(**more: object) -> dict:
    ones = [1.0] * len(CHANNELS)
    return {"name": "m", "fold": 0, "mean": ones, "std": ones, "sha256": "0", **more}


def test_a_member_is_served_with_its_offset_first_and_then_its_temperature():
    logits = np.random.default_rng(0).normal(0, 2, (4, 32, 32)).astype(np.float32)
    raw = np.zeros((len(CHANNELS), 32, 32), np.float32)
    member = Member.from_card(card_entry(ice_offset=-0.4, temperature=1.7))
    served = map_features(lambda _: logits, raw, member, plan=WindowPlan(32, 32))
    shifted = logits.copy()
    shifted[[1, 2]] -= 0.4
    assert served == pytest.approx(softmax(shifted / 1.7, 0), abs=1e-6)


@pytest.mark.parametrize(
    "bad", [{"temperature": 0.0}, {"temperature": float("nan")}, {"temperature": 50.0}]
)
def test_a_temperature_that_makes_no_sense_is_refused(bad: dict):
    with pytest.raises(ValueError, match="temperature"):
        Member.from_card(card_entry(**bad))


def test_a_member_that_gives_probabilities_has_no_temperature():
    entry = card_entry(
        file="m.onnx", output="probabilities", temperature=1.5, classes=["background", "clean ice"]
    )
    with pytest.raises(ValueError, match="gives logits"):
        Member.from_card(entry)
