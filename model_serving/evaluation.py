"""Out-of-fold scores of an ensemble: every region mapped only by members that never saw it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from catalog.cube import CLASSES, ICE_CLASSES
from model_serving.ensemble import load_ensemble
from model_serving.inference import MAP_HALO_PX, map_features, with_ice_offset
from model_serving.metrics import Overlaps, confusion_matrix, iou, ratio_masks
from model_serving.patches import WindowPlan
from model_serving.regions import PreparedRegion

__all__ = ["area_calibration", "evaluate_out_of_fold"]

Array = npt.NDArray[Any]
_OFFSETS = (0.2, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5)
# ^ offsets tried: rare classes weigh more in the loss, so untouched logits may see too much ice
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
        ``ice_offsets``: fold -> offset on the ice logits with the best mean IoU in the regions of
        all *other* folds, so that no region takes part in choosing how it is mapped;
        ``metrics``: IoU of ice, per class and per map, with those offsets, beside the band ratio
        tuned on the truth; ``area_calibration``: see :func:`area_calibration`.
    """
    jobs = [(folder, region, k) for region in regions for k in range(len(region.seasons))]
    tried = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, scores in enumerate(pool.map(_score_season, *zip(*jobs, strict=True)), 1):
            tried.append(scores)
            if report:
                report(done, len(jobs))
    offsets = _choose_offsets(tried)
    results = [scores[_OFFSETS.index(offsets[scores[0]["fold"]])] for scores in tried]
    return {
        "ice_offsets": offsets,
        "metrics": _summary(results),
        "area_calibration": area_calibration(results),
    }


def _choose_offsets(tried: Sequence[list[dict[str, Any]]]) -> dict[int, float]:
    folds = sorted({scores[0]["fold"] for scores in tried})
    chosen = {}
    for fold in folds:
        others = [[s["iou"] for s in scores] for scores in tried if scores[0]["fold"] != fold]
        chosen[fold] = _OFFSETS[int(np.mean(others, axis=0).argmax())]
    return chosen


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    table = np.sum([r["confusion"] for r in results], axis=0)
    hit = np.diag(table)
    of_class = hit / (table.sum(axis=0) + table.sum(axis=1) - hit)
    ious = [r["iou"] for r in results]
    return {
        "ice_iou_mean": round(float(np.mean(ious)), 4),
        "ice_iou_worst": round(float(np.min(ious)), 4),
        "ice_iou_single_member": round(float(np.mean([r["single"] for r in results])), 4),
        "band_ratio_iou_mean": round(float(np.mean([r["ratio"] for r in results])), 4),
        "class_iou": {n: round(float(v), 4) for n, v in zip(CLASSES, of_class, strict=True)},
        "confusion": table.tolist(),
        "maps": [{k: r[k] for k in ("region", "season", "iou", "ratio")} for r in results],
    }


def _score_season(folder: Path, region: PreparedRegion, season: int) -> list[dict[str, Any]]:
    """Scores of one map, one for each of the offsets tried."""
    torch.set_num_threads(1)
    ensemble = load_ensemble(folder)
    plan = WindowPlan(ensemble.window_px, ensemble.window_px - 2 * MAP_HALO_PX)
    fold = {r.name: r.fold for r in ensemble.regions}[region.name]
    raw = np.asarray(region.features()[season], np.float32)
    label = region.labels()[season]
    known = np.isfinite(raw[0]) & (label < len(CLASSES))
    members = [replace(m, ice_offset=0.0) for m in ensemble.members if m.fold == fold]
    maps = [map_features(ensemble.network(m), raw, m, plan=plan)[:, known] for m in members]
    label, owners = label[known], region.owners()[known]
    truth = np.isin(label, ICE_CLASSES)
    ratio = Overlaps()
    ratio.add(ratio_masks(*(raw[[2, 4]][:, known] ** 2)), truth)
    same = {
        "region": region.name,
        "season": region.seasons[season],
        "fold": fold,
        "ratio": round(max(ratio.ious), 4),
    }

    def areas(mask: Array) -> Array:
        count = np.bincount(owners[mask], minlength=region.glaciers + 1)[1:]
        return count * region.grid.pixel_area_km2

    return [same | _scored([with_ice_offset(p, o) for p in maps], label, areas) for o in _OFFSETS]


def _scored(maps: list[Array], label: Array, areas: Callable[[Array], Array]) -> dict[str, Any]:
    mean = np.mean(maps, axis=0)
    truth = np.isin(label, ICE_CLASSES)
    single = [p[list(ICE_CLASSES)].sum(axis=0) >= 0.5 for p in maps]
    best = mean[list(ICE_CLASSES)].sum(axis=0) >= 0.5
    return {
        "iou": round(iou(best, truth), 4),
        "single": float(np.mean([iou(mask, truth) for mask in single])),
        "confusion": confusion_matrix(mean.argmax(axis=0), label, classes=len(CLASSES)),
        "member_km2": np.stack([areas(mask) for mask in single]),
        "true_km2": areas(truth),
        "mapped_km2": areas(best),
    }


def area_calibration(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare the errors of mapped change with the spread of the members' change.

    Parameters
    ----------
    results
        Scores of every season of every region, in the order of time; any two seasons of a region
        make a pair. Each holds ``member_km2`` ``(member, glacier)``, ``true_km2`` and
        ``mapped_km2`` ``(glacier,)``.

    Returns
    -------
    dict
        ``scale``: the quantile (68.27 %) of |error| / spread over glaciers, so that spread times
        scale covers that share of them; ``regional_scale``: the same ratio of root mean squares for
        regional totals; ``glaciers``, ``pairs``: how many there were; ``source``: in words.
    """
    ratios: list[float] = []
    errors, spreads = [], []
    for a, b in combinations(results, 2):
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
            f"{len(ratios)} out-of-fold changes of glaciers, between {len(errors)} pairs of "
            "seasons of simulated regions; not verified on real regions"
        ),
    }
