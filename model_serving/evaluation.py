"""Out-of-fold scores of an ensemble: every region mapped only by members that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from catalog.cube import CLASSES
from model_serving.ensemble import load_ensemble
from model_serving.inference import ICE, MAP_HALO_PX, map_features
from model_serving.metrics import best_ratio_iou, confusion_matrix, iou
from model_serving.patches import WindowPlan
from model_serving.regions import PreparedRegion

__all__ = ["area_calibration", "evaluate_out_of_fold"]

Array = npt.NDArray[Any]
_NOMINAL = 0.6827
# ^ coverage of one standard deviation of a normal distribution


def evaluate_out_of_fold(
    folder: Path,
    regions: Sequence[PreparedRegion],
    *,
    workers: int = 2,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Map every training region by the members that hold it out and score the maps.

    Returns
    -------
    dict
        ``metrics``: IoU of ice, per class and per region, beside the band ratio tuned on the truth;
        ``area_calibration``: factors on the ensemble's area spread, see :func:`area_calibration`.
    """
    jobs = [(folder, region, k) for region in regions for k in range(len(region.seasons))]
    results = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, result in enumerate(pool.map(_score_season, *zip(*jobs, strict=True)), 1):
            results.append(result)
            if report:
                report(done, len(jobs))
    table = np.sum([r["confusion"] for r in results], axis=0)
    by_class = {
        name: round(float(table[k, k] / (table[k].sum() + table[:, k].sum() - table[k, k])), 4)
        for k, name in enumerate(CLASSES)
    }
    ious = [r["iou"] for r in results]
    return {
        "metrics": {
            "ice_iou_mean": round(float(np.mean(ious)), 4),
            "ice_iou_worst": round(float(np.min(ious)), 4),
            "ice_iou_single_member": round(float(np.mean([r["single"] for r in results])), 4),
            "band_ratio_iou_mean": round(float(np.mean([r["ratio"] for r in results])), 4),
            "class_iou": by_class,
            "confusion": table.tolist(),
            "maps": [{k: r[k] for k in ("region", "season", "iou", "ratio")} for r in results],
        },
        "area_calibration": area_calibration(results),
    }


def _score_season(folder: Path, region: PreparedRegion, season: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    ensemble = load_ensemble(folder)
    plan = WindowPlan(ensemble.window_px, ensemble.window_px - 2 * MAP_HALO_PX)
    fold = {r.name: r.fold for r in ensemble.regions}[region.name]
    raw = np.asarray(region.features()[season], np.float32)
    label, owners = region.labels()[season], region.owners()
    known = np.isfinite(raw[0]) & (label < len(CLASSES))
    truth = np.isin(label, ICE)
    mean = np.zeros((len(CLASSES), *label.shape), np.float32)
    area, singles = [], []
    members = [m for m in ensemble.members if m.fold == fold]
    for member in members:
        probability = map_features(ensemble.network(member), raw, member.normalisation, plan=plan)
        mean += probability / len(members)
        ice = (probability[list(ICE)].sum(axis=0) >= 0.5) & known
        area.append(np.bincount(owners[ice], minlength=region.glaciers + 1)[1:])
        singles.append(iou(ice[known], truth[known]))
    best = mean[list(ICE)].sum(axis=0) >= 0.5
    classes = np.where(known, mean.argmax(axis=0), 255)
    reflectance = raw[[2, 4]][:, known] ** 2
    ratio, _ = best_ratio_iou(reflectance[0], reflectance[1], truth[known])
    pixel = region.grid.pixel_area_km2

    def per_glacier(mask: Array) -> Array:
        return np.bincount(owners[mask & known], minlength=region.glaciers + 1)[1:] * pixel

    return {
        "region": region.name,
        "season": region.seasons[season],
        "iou": round(iou(best[known], truth[known]), 4),
        "single": float(np.mean(singles)),
        "ratio": round(ratio, 4),
        "confusion": confusion_matrix(classes, label, classes=len(CLASSES)),
        "member_km2": np.stack(area) * pixel,
        "true_km2": per_glacier(truth),
        "mapped_km2": per_glacier(best),
    }


def area_calibration(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare the errors of mapped change with the spread of the members' change.

    Parameters
    ----------
    results
        Scores of every season of every region; consecutive seasons of a region make a pair. Each
        holds ``member_km2`` ``(member, glacier)``, ``true_km2`` and ``mapped_km2`` ``(glacier,)``.

    Returns
    -------
    dict
        ``scale``: the quantile (68.27 %) of |error| / spread over glaciers, so that spread times
        scale covers that share of them; ``regional_scale``: the same ratio of root mean squares for
        regional totals; ``glaciers``, ``pairs``: how many there were; ``source``: in words.
    """
    ratios: list[float] = []
    errors, spreads = [], []
    for a, b in pairwise(results):
        if a["region"] != b["region"]:
            continue
        change = b["member_km2"] - a["member_km2"]
        error = (b["mapped_km2"] - a["mapped_km2"]) - (b["true_km2"] - a["true_km2"])
        spread = change.std(axis=0, ddof=1)
        used = (a["true_km2"] > 0.01) & (spread > 0)
        ratios.extend(np.abs(error[used]) / spread[used])
        errors.append(float(error.sum()))
        spreads.append(float(change.sum(axis=1).std(ddof=1)))
    if not ratios:
        raise ValueError("no glacier was seen in two seasons: nothing to calibrate on")
    regional = np.sqrt(np.mean(np.square(errors)) / np.mean(np.square(spreads)))
    return {
        "scale": round(float(np.quantile(ratios, _NOMINAL)), 3),
        "regional_scale": round(float(max(regional, 1.0)), 3),
        "glaciers": len(ratios),
        "pairs": len(errors),
        "source": (
            f"out-of-fold change of {len(ratios)} glaciers in {len(errors)} simulated regions; "
            "not verified on real regions"
        ),
    }
