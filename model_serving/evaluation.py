"""Scores of an ensemble, and its uncertainty, where no member that maps a region has seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from catalog.cube import CLASSES, ICE_CLASSES
from model_serving.ensemble import load_ensemble
from model_serving.folds import OUTSIDE
from model_serving.inference import map_features, with_ice_offset
from model_serving.member_calibration import MapSample, calibration_errors, choose_temperatures
from model_serving.metrics import Overlaps, confusion_matrix, iou, ratio_masks
from model_serving.regions import PreparedRegion
from model_serving.runtimes import choose_runtime

__all__ = ["area_calibration", "evaluate_calibration", "evaluate_out_of_fold"]

Array = npt.NDArray[Any]
_OFFSETS = (0.2, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5)
# ^ offsets tried: rare classes weigh more in the loss, so untouched logits may see too much ice
_NOMINAL = 0.6827
# ^ coverage of one standard deviation of a normal distribution
_LEAST_KM2 = 0.01
# ^ smaller glaciers are left out: the smallest polygon of RGI 7.0
_SAMPLE_STEP = 7
# ^ every seventh row and column of a map are enough to fit one number and to count calibration


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
        all *other* folds, so that no region's own truth takes part in choosing how it is mapped;
        ``temperatures``: fold -> temperature with the least log-loss there; ``metrics``: IoU of
        ice, per class and per map, with those offsets, beside the band ratio tuned on the truth,
        and the expected calibration error of the members' mean, with the temperatures and
        (``_at_1``) without.
    """
    tried = _score(folder, regions, _OFFSETS, workers=workers, report=report)
    offsets = _choose_offsets(tried)
    results = [scores[_OFFSETS.index(offsets[scores[0]["fold"]])] for scores in tried]
    samples = [
        MapSample(
            s["fold"],
            np.stack([with_ice_offset(p, offsets[s["fold"]]) for p in s["sampled"]]),
            s["sampled_labels"],
        )
        for s in results
    ]
    temperatures = choose_temperatures(samples)
    untempered = calibration_errors(samples, dict.fromkeys(temperatures, 1.0))
    return {
        "ice_offsets": offsets,
        "temperatures": temperatures,
        "metrics": _summary(results)
        | calibration_errors(samples, temperatures)
        | {f"{name}_at_1": v for name, v in untempered.items()},
    }


def evaluate_calibration(
    folder: Path,
    regions: Sequence[PreparedRegion],
    *,
    workers: int = 2,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Map regions that no member has seen by all members, as any new region is mapped.

    Returns
    -------
    dict
        ``calibration_metrics``: IoU of ice, per class and per map, and the expected calibration
        error; ``area_calibration``: see :func:`area_calibration`.
    """
    scores = _score(folder, regions, (None,), workers=workers, report=report)
    results = [score for (score,) in scores]
    samples = [MapSample(s["fold"], s["sampled"], s["sampled_labels"]) for s in results]
    errors = calibration_errors(samples, {OUTSIDE: 1.0})
    return {
        "calibration_metrics": _summary(results) | errors,
        "area_calibration": area_calibration(results),
    }


def _score(
    folder: Path,
    regions: Sequence[PreparedRegion],
    offsets: tuple[float | None, ...],
    *,
    workers: int,
    report: Callable[[int, int], None] | None,
) -> list[list[dict[str, Any]]]:
    jobs = [(folder, region, k, offsets) for region in regions for k in range(len(region.seasons))]
    scores = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, score in enumerate(pool.map(_score_season, *zip(*jobs, strict=True)), 1):
            scores.append(score)
            if report:
                report(done, len(jobs))
    return scores


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


def _score_season(
    folder: Path, region: PreparedRegion, season: int, offsets: tuple[float | None, ...]
) -> list[dict[str, Any]]:
    """Scores of one map, one for each of the offsets tried; None maps as members are served."""
    torch.set_num_threads(1)
    ensemble = load_ensemble(folder)
    plan = ensemble.window_plan
    fold = {r.name: r.fold for r in ensemble.regions}.get(region.name, OUTSIDE)
    raw = np.asarray(region.features()[season], np.float32)
    label = region.labels()[season]
    known = np.isfinite(raw[0]) & (label < len(CLASSES))
    voters = [m for m in ensemble.members if fold in (OUTSIDE, *m.folds)]
    trying = offsets != (None,)
    members = [replace(m, ice_offset=0.0, temperature=1.0) if trying else m for m in voters]
    runtime = choose_runtime(config=ensemble.config)
    maps = [
        map_features(ensemble.predictor(m, runtime), raw, m, plan=plan)[:, known] for m in members
    ]
    some = np.zeros_like(known)
    some[::_SAMPLE_STEP, ::_SAMPLE_STEP] = True
    some = some[known]
    label, owners = label[known], region.owners()[known]
    truth = np.isin(label, ICE_CLASSES)
    ratio = Overlaps()
    ratio.add(ratio_masks(*(raw[[2, 4]][:, known] ** 2)), truth)
    same = {
        "region": region.name,
        "season": region.seasons[season],
        "fold": fold,
        "ratio": round(max(ratio.ious), 4),
        "sampled": np.stack([p[:, some] for p in maps]),
        "sampled_labels": label[some],
    }

    def areas(mask: Array) -> Array:
        count = np.bincount(owners[mask], minlength=region.glaciers + 1)[1:]
        return count * region.grid.pixel_area_km2

    scores = []
    for offset in offsets:
        shifted = [p if offset is None else with_ice_offset(p, offset) for p in maps]
        scores.append(same | _scored(shifted, label, areas))
    return scores


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
    """Compare the errors of mapped areas and of their changes with the spread of the members.

    Parameters
    ----------
    results
        Scores of every season of every region, in the order of time; any two seasons of a region
        make a pair. Each holds ``region``, ``member_km2`` ``(member, glacier)``, ``true_km2`` and
        ``mapped_km2`` ``(glacier,)``.

    Returns
    -------
    dict
        ``scale``, ``regional_scale``: factors on the spread of a change, see :func:`_factors`;
        ``areas``: the same two for the area of one date; ``coverage``: the share of glaciers and
        of regional totals whose true change lies within one and within 1.96 standard deviations,
        each region judged by factors from all other regions; ``glaciers``, ``pairs``, ``regions``:
        how many there were; ``source``: in words.

    Raises
    ------
    ValueError
        Where no glacier was seen in two seasons, or the members do not differ.
    """
    changes = [
        _Case(
            a["region"],
            (b["mapped_km2"] - a["mapped_km2"]) - (b["true_km2"] - a["true_km2"]),
            b["member_km2"] - a["member_km2"],
        ).of(a["true_km2"] > _LEAST_KM2)
        for a, b in combinations(results, 2)
        if a["region"] == b["region"]
    ]
    areas = [
        _Case(r["region"], r["mapped_km2"] - r["true_km2"], r["member_km2"]).of(
            r["true_km2"] > _LEAST_KM2
        )
        for r in results
    ]
    scale, regional = _factors(changes)
    area_scale, area_regional = _factors(areas)
    glaciers, regions = sum(c.error.size for c in changes), {c.region for c in changes}
    return {
        "scale": round(scale, 3),
        "regional_scale": round(regional, 3),
        "areas": {"scale": round(area_scale, 3), "regional_scale": round(area_regional, 3)},
        "coverage": _coverage(changes),
        "glaciers": glaciers,
        "pairs": len(changes),
        "regions": len(regions),
        "source": (
            f"{glaciers} changes of glaciers between {len(changes)} pairs of seasons of "
            f"{len(regions)} simulated regions that no member has seen; "
            "not verified on real regions"
        ),
    }


@dataclass(frozen=True, slots=True)
class _Case:
    """Errors of one region's areas or changes, and what the members say of them, km2."""

    region: str
    error: Array
    """``(glacier,)``."""
    members: Array
    """``(member, glacier)``."""

    def of(self, used: Array) -> _Case:
        """Keep some of the glaciers."""
        return _Case(self.region, self.error[used], self.members[:, used])

    @property
    def spread(self) -> Array:
        """Standard deviation over members, of each glacier."""
        return np.asarray(self.members.std(axis=0, ddof=1))

    @property
    def off(self) -> Array:
        """Error in spreads, of each glacier; infinite where members agree but are wrong."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.error == 0, 0.0, np.abs(self.error) / self.spread)

    @property
    def common(self) -> float:
        """Standard deviation over members of the sum over glaciers."""
        return float(self.members.sum(axis=1).std(ddof=1))


def _factors(cases: Sequence[_Case]) -> tuple[float, float]:
    """Fit the factors that turn spreads into standard deviations.

    The first is the quantile (68.27 %) of |error| / spread over glaciers; a glacier on which the
    members agree but are wrong counts as infinitely far off. The second multiplies the spread of
    the members' sums so that, with the glaciers' own errors in quadrature as in
    ``change_detection.uncertainty``, it meets the root mean square error of the totals; at least 1.
    """
    if not cases or not sum(c.error.size for c in cases):
        raise ValueError("no glacier was seen in two seasons: nothing to calibrate on")
    off = np.concatenate([c.off for c in cases])
    scale = float(np.quantile(off, _NOMINAL, method="higher"))
    totals = np.mean([c.error.sum() ** 2 for c in cases])
    own = np.mean([((scale * c.spread) ** 2).sum() for c in cases])
    common = np.mean([c.common**2 for c in cases])
    if not np.isfinite(scale) or common == 0:
        raise ValueError("the members do not differ: their spread tells nothing of their error")
    return scale, float(max(1.0, np.sqrt(max(0.0, totals - own) / common)))


def _coverage(cases: Sequence[_Case]) -> dict[str, float]:
    regions = sorted({c.region for c in cases})
    if len(regions) < 2:
        return {}
    off_glacier: list[float] = []
    off_total: list[float] = []
    for region in regions:
        scale, regional = _factors([c for c in cases if c.region != region])
        for case in (c for c in cases if c.region == region):
            off_glacier.extend(case.off / scale)
            own = np.sqrt(((scale * case.spread) ** 2).sum())
            total = np.hypot(regional * case.common, own)
            off_total.append(abs(case.error.sum()) / total)
    return {
        f"{name}_{level}": round(float(np.mean(np.asarray(off) <= width)), 3)
        for name, off in (("glaciers", off_glacier), ("totals", off_total))
        for level, width in (("68", 1.0), ("95", 1.96))
    }
