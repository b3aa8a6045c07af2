"""Real pixels of two glaciers nothing was built on: what the ensemble makes of them one by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from catalog.cube import ICE_CLASSES
from model_serving.ensemble import load_ensemble
from model_serving.features import CHANNELS, raw_features
from model_serving.inference import map_features
from model_serving.patches import WindowPlan
from model_serving.runtimes import choose_runtime

DATA = Path(
    os.environ.get(
        "INVENTORY_ENGINE_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)
SPECTRA = DATA / "spectra" / "Sentinel-2_SR_training_data.csv"
BANDS = ["B2", "B3", "B4", "B8", "B11", "B12"]
TUNED_ON = ("Gulkana", "SouthCascade")
TESTED_ON = ("Sperry", "Wolverine")
SNOW_AND_ICE, ROCK = (1, 2, 3), 4
PATCH_PX = 32

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not SPECTRA.is_file(), reason=f"no real data in {DATA}"),
]


def pixels_of(sites: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Reflectance ``(pixel, band)`` of snow, ice and rock, and which of them are snow or ice."""
    table = pd.read_csv(SPECTRA)
    table = table[table["site_name"].isin(sites) & table["class"].isin((*SNOW_AND_ICE, ROCK))]
    return table[BANDS].to_numpy(np.float64), table["class"].isin(SNOW_AND_ICE).to_numpy()


def snow_index(reflectance: np.ndarray) -> np.ndarray:
    green, swir = reflectance[:, 1], reflectance[:, 4]
    return (green - swir) / np.maximum(green + swir, 1e-6)


def balanced_accuracy(found: np.ndarray, true: np.ndarray) -> float:
    return float((found[true].mean() + (~found[~true]).mean()) / 2)


def tuned_threshold() -> float:
    reflectance, ice = pixels_of(TUNED_ON)
    index = snow_index(reflectance)
    tried = np.round(np.arange(-0.5, 0.95, 0.01), 2)
    return float(max(tried, key=lambda t: balanced_accuracy(index > t, ice)))


def ice_probability(reflectance: np.ndarray) -> np.ndarray:
    """Of the ensemble, in the middle of a patch of nothing but one pixel's spectrum."""
    ensemble = load_ensemble()
    runtime = choose_runtime(config=ensemble.config)
    torch.set_num_threads(1)
    plan = WindowPlan(PATCH_PX, PATCH_PX)
    stored = np.clip(np.rint(reflectance * 10000) + 1000, 1, 65535).astype(np.uint16)
    raw = raw_features(stored.T[:, :, None], None, None)
    total = np.zeros(len(reflectance))
    for member in ensemble.members:
        predict = ensemble.predictor(member, runtime)
        upright = replace(member, orientation=0)
        for i in range(len(reflectance)):
            patch = np.broadcast_to(raw[:, i, :, None], (len(CHANNELS), PATCH_PX, PATCH_PX))
            mapped = map_features(predict, patch, upright, plan=plan)
            total[i] += mapped[list(ICE_CLASSES), PATCH_PX // 2, PATCH_PX // 2].sum()
    return total / len(ensemble.members)


def test_the_ensemble_tells_snow_and_ice_from_rock_about_as_well_as_a_tuned_snow_index(
    record_property: Callable[[str, object], None],
):
    reflectance, ice = pixels_of(TESTED_ON)
    threshold = tuned_threshold()
    by_index = balanced_accuracy(snow_index(reflectance) > threshold, ice)
    by_ensemble = balanced_accuracy(ice_probability(reflectance) >= 0.5, ice)
    record_property(
        "Spectra",
        f"{len(ice)} pixels of {' and '.join(TESTED_ON)}: balanced accuracy ensemble "
        f"{by_ensemble:.3f} | NDSI > {threshold} {by_index:.3f}",
    )
    assert by_index > 0.95
    assert by_ensemble > 0.95
