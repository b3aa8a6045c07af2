"""The card in words says what the card holds, and calls unmeasured what was not measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from ensembles import write_ensemble

from model_serving.ensemble import CARD, load_ensemble
from model_serving.folds import TrainingRegion
from model_serving.model_card import model_card

HEADINGS = [
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Training data",
    "Evaluation data",
    "Quantitative analyses",
    "Caveats and recommendations",
]
PLACE = TrainingRegion("SOMEWHERE", 4, 1, (9.5, 45.5, 10.0, 46.0), 12, 34.5)


def untrained(folder: Path) -> dict[str, object]:
    return json.loads((write_ensemble(folder, regions=(PLACE,)) / CARD).read_text())


def test_the_shipped_ensemble_is_described_under_all_headings_with_its_own_numbers():
    card = load_ensemble().card
    text = model_card(card)
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == HEADINGS
    for key in ("ice_iou_mean", "ice_iou_worst", "band_ratio_iou_mean"):
        assert f"{card['metrics'][key]:.3f}" in text
        assert f"{card['calibration_metrics'][key]:.3f}" in text
    for region in card["regions"]:
        assert f"| {region['name']} | {region['fold']} | {region['glaciers']} |" in text
    for region in card["calibration_regions"]:
        assert region["name"] in text
    assert card["area_calibration"]["source"] in text
    assert "not measured" in text


def test_what_was_not_measured_is_called_so(tmp_path: Path):
    text = model_card(untrained(tmp_path))
    assert text.count("Nothing was measured.") == 2
    assert "| IoU" not in text
    assert "SOMEWHERE | 1 | 12 | 34.5 | 9.5, 45.5, 10, 46 |" in text
    assert "All regions it was trained and measured on are simulated" not in text


def test_scores_of_groups_and_the_spread_over_seeds_stand_in_tables_of_their_own(tmp_path: Path):
    group = {"ice_iou": 0.8123, "ice_iou_glaciers": 0.7, "ice_iou_area": None}
    group |= {"area_bias_percent": -3.21, "glaciers": 17}
    spread = {"ice_iou_mean": 0.79, "ice_iou_deviation": 0.0123, "members": 3}
    found = {
        "ice_iou_mean": 0.8,
        "groups": {"fold": {"0": group, "-1": group}, "size_km2": {"0.1-0.5": group}},
        "members": {"0": spread, "all": spread},
    }
    card = untrained(tmp_path) | {"metrics": found, "calibration_metrics": found}
    text = model_card(card)
    told = "| 0.812 | 0.700 | not measured | -3.2 | 17 |"
    assert text.count(f"| 0 {told} 0.790 ± 0.012 (3) |") == 2
    assert text.count(f"| 0.1-0.5 {told}") == 2
    assert "| -1 |" not in text
    assert text.count("| Fold, out of fold |") == text.count("| Fold, unseen |") == 1
    assert text.count("0.790 ± 0.012 (3).") == 1


def test_what_it_was_trained_on_is_told_exactly(tmp_path: Path):
    card = untrained(tmp_path) | {"region_source": "simulated"}
    for member in card["members"]:
        member |= {"trained_on": ["SOMEWHERE"], "validated_on": ["ELSEWHERE"]}
    text = model_card(card)
    assert "those it does not hold out of: SOMEWHERE." in text
    assert "Training was stopped by: ELSEWHERE" in text
    assert "are simulated. On real images nothing was measured here." in text


@pytest.mark.parametrize("lost", ["summary", "network", "channel_transform", "recipe", "metrics"])
def test_a_card_without_what_is_optional_is_described_all_the_same(lost: str):
    card = copy.deepcopy(load_ensemble().card)
    card.pop(lost)
    assert [x[3:] for x in model_card(card).splitlines() if x.startswith("## ")] == HEADINGS
