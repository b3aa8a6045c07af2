"""What a training measures is what mapping each region by hand and counting it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ensembles import write_ensemble
from test_territories import region_of, squares

from catalog.cube import ICE_CLASSES, Workspace
from model_serving.calibration import ProbabilityCounts, calibration_error
from model_serving.ensemble import CARD, Ensemble, load_ensemble
from model_serving.evaluation import evaluate_calibration, evaluate_out_of_fold
from model_serving.folds import OUTSIDE, TrainingRegion
from model_serving.inference import map_features
from model_serving.measured import RELIABILITY, SCORES, Measured, write_measured
from model_serving.metrics import boundary_distance, confusion_matrix, iou, mapped_classes
from model_serving.regions import PreparedRegion
from model_serving.runtimes import choose_runtime

SIDE = 128


def made(folder: Path, name: str, seed: int) -> PreparedRegion:
    """Two seasons of three glaciers, in bands that tell them from the rest, and a dark corner."""
    folder.mkdir()
    owners = squares((10, 10), (10, 70), (70, 30), side=30)
    region = replace(region_of(folder, owners), name=name, seasons=("2017", "2020"))
    rng = np.random.default_rng(seed)
    labels = np.zeros((2, SIDE, SIDE), np.uint8)
    labels[:, owners > 0] = 1
    labels[:, (owners == 3) & (np.arange(SIDE) % 2 == 0)] = 2
    labels[1, 10:14] = 0  # the ice retreats
    labels[:, -5:] = 255
    level = np.array([0.3, 0.9, 0.5])[np.minimum(labels, 2)]
    features = level[:, None] + rng.normal(0, 0.1, (2, 11, SIDE, SIDE))
    features[:, :, :20, -20:] = np.nan
    np.save(folder / "features.npy", features.astype(np.float16))
    np.save(folder / "labels.npy", labels)
    return region


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ensemble, list[PreparedRegion]]:
    """Two folds of three members each with random weights, and the regions they hold out."""
    root = tmp_path_factory.mktemp("case")
    regions = [made(root / n, n, seed) for seed, n in enumerate("AB")]
    listed = tuple(
        TrainingRegion(r.name, 0, fold, (10.0 * fold, 45.0, 10.0 * fold + 0.5, 45.5), 3, 1.0)
        for fold, r in enumerate(regions)
    )
    folder = write_ensemble(root / "ensemble", regions=listed)
    card = json.loads((folder / CARD).read_text())
    for i, member in enumerate(card["members"]):
        member |= {"temperature": 3.0 + 0.2 * i, "ice_offset": 0.1}
    (folder / CARD).write_text(json.dumps(card))
    return load_ensemble(folder), regions


@pytest.fixture(scope="module")
def out_of_fold(case) -> tuple[dict, Measured]:
    """What the evaluation says of them."""
    ensemble, regions = case
    return evaluate_out_of_fold(ensemble.folder, regions, workers=1)


def maps_of(
    ensemble: Ensemble, region: PreparedRegion, season: int, fold: int, **how: float
) -> dict[str, np.ndarray]:
    """Each voter's map of a season."""
    raw = np.asarray(region.features()[season], np.float32)
    runtime = choose_runtime(config=ensemble.config)
    return {
        m.name: map_features(
            ensemble.predictor(m, runtime), raw, replace(m, **how), plan=ensemble.window_plan
        )
        for m in ensemble.members
        if fold in (OUTSIDE, *m.folds)
    }


def known_of(region: PreparedRegion, season: int) -> np.ndarray:
    return np.isfinite(region.features()[season, 0]) & (region.labels()[season] < 4)


def is_ice(classes: np.ndarray) -> np.ndarray:
    return np.isin(classes, ICE_CLASSES)


def test_out_of_fold_scores_are_those_of_maps_made_by_hand(case, out_of_fold):
    ensemble, regions = case
    found, measured = out_of_fold
    metrics = found["metrics"]
    assert [(m.region, m.season, m.fold) for m in measured.maps] == [
        (r.name, season, fold) for fold, r in enumerate(regions) for season in r.seasons
    ]
    singles: dict[int, dict[str, list[float]]] = {0: {}, 1: {}}
    edges, total = [], np.zeros((4, 4), int)
    for fold, region in enumerate(regions):
        how = {"ice_offset": found["ice_offsets"][fold], "temperature": 1.0}
        for season in (0, 1):
            maps = maps_of(ensemble, region, season, fold, **how)
            known, truth = known_of(region, season), region.labels()[season]
            classes = np.where(known, mapped_classes(np.mean(list(maps.values()), axis=0)), 255)
            total += confusion_matrix(classes, truth, classes=4)
            for name, probability in maps.items():
                one = is_ice(mapped_classes(probability)) & known
                singles[fold].setdefault(name, []).append(iou(one, is_ice(truth) & known))
            edges.append(
                boundary_distance(
                    is_ice(classes), is_ice(truth), pixel_m=region.grid.resolution_m, known=known
                ).mean_m
            )
    assert metrics["confusion"] == total.tolist()
    for fold, members in singles.items():
        means = [np.mean(values) for values in members.values()]
        told = metrics["members"][str(fold)]
        assert told["members"] == 3
        assert told["ice_iou_mean"] == pytest.approx(np.mean(means), abs=1e-4)
        assert told["ice_iou_deviation"] == pytest.approx(np.std(means, ddof=1), abs=1e-4)
    assert "all" not in metrics["members"]  # members of different folds mapped different regions
    assert metrics["boundary_m"] == pytest.approx(np.nanmean(edges), abs=1e-3)
    hit = sum(total[i, j] for i in ICE_CLASSES for j in ICE_CLASSES)
    either = total[list(ICE_CLASSES)].sum() + total[:, list(ICE_CLASSES)].sum() - hit
    assert metrics["ice_iou"] == pytest.approx(hit / either, abs=1e-4)
    assert set(metrics["groups"]["fold"]) == {"0", "1"}
    assert sum(g["glaciers"] for g in metrics["groups"]["size_km2"].values()) == 12
    json.dumps(metrics, allow_nan=False)


def test_unseen_maps_are_scored_as_served_and_without_their_temperatures(case):
    ensemble, regions = case
    unseen = [replace(r, name=f"NEW{r.name}") for r in regions]
    found, measured = evaluate_calibration(ensemble.folder, unseen, workers=1)
    metrics = found["calibration_metrics"]
    counts: dict[str, list[ProbabilityCounts]] = {"served": [], "plain": []}
    for region in unseen:
        for season in (0, 1):
            truth = np.where(known_of(region, season), region.labels()[season], 255)[::7, ::7]
            served = maps_of(ensemble, region, season, OUTSIDE)
            plain = {
                m.name: map_features(
                    ensemble.predictor(m, choose_runtime(config=ensemble.config)),
                    np.asarray(region.features()[season], np.float32),
                    replace(m, temperature=1.0),
                    plan=ensemble.window_plan,
                )
                for m in ensemble.members
            }
            for name, maps in (("served", served), ("plain", plain)):
                mean = np.mean(list(maps.values()), axis=0)[:, ::7, ::7]
                counts[name].append(ProbabilityCounts.of_map(mean, truth, of="ice"))
    errors = {k: calibration_error(ProbabilityCounts.total(v)) for k, v in counts.items()}
    assert abs(errors["served"] - errors["plain"]) > 0.005
    assert metrics["ice_calibration_error"] == pytest.approx(errors["served"], abs=1e-4)
    assert metrics["ice_calibration_error_at_1"] == pytest.approx(errors["plain"], abs=1e-4)
    assert metrics["members"]["all"]["members"] == 6
    assert [m.fold for m in measured.maps] == [OUTSIDE] * 4


def test_the_tables_that_are_written_hold_every_score_and_every_bin(out_of_fold, tmp_path: Path):
    _, measured = out_of_fold
    write_measured(Workspace(tmp_path), {"out of fold": measured, "unseen": measured})
    table = pd.read_csv(tmp_path / SCORES)
    assert table.maps.value_counts().to_dict() == {
        "out of fold": len(measured.table),
        "unseen": len(measured.table),
    }
    assert set(table.scope) >= {"all", "fold", "region", "size_km2", "debris_share", "glacier"}
    assert set(table["mean"]) == {"pixels", "glaciers", "area", "maps", "members"}
    written = table[table.maps == "unseen"].value.to_numpy()
    np.testing.assert_allclose(written, measured.table.value, rtol=1e-5)
    bins = pd.read_csv(tmp_path / RELIABILITY)
    assert len(bins) == 2 * 2 * 2 * 15  # maps, targets, before and after, bins
    pixels = bins.groupby(["maps", "of", "temperatures"])["count"].sum()
    assert pixels.nunique() == 1
