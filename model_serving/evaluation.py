"""Scores of an ensemble, and its uncertainty, where no member that maps a region has seen it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from catalog.cube import CLASSES, ICE_CLASSES, UNKNOWN
from model_serving.calibration import ProbabilityCounts, with_temperature
from model_serving.ensemble import Member, load_ensemble
from model_serving.folds import OUTSIDE
from model_serving.inference import map_features, with_ice_offset
from model_serving.measured import Measured
from model_serving.member_calibration import MapSample, calibration_counts, choose_temperatures
from model_serving.metrics import Overlaps, boundary_distance, iou, mapped_classes, ratio_masks
from model_serving.parallel import run_jobs
from model_serving.regions import PreparedRegion
from model_serving.runtimes import choose_runtime
from model_serving.scores import MapCounts, count_map, glacier_zones

__all__ = ["area_calibration", "evaluate_calibration", "evaluate_out_of_fold"]

Array = npt.NDArray[Any]
Report = Callable[[int, int], None]

_OFFSETS = (0.2, 0.1, 0.0, -0.1, -0.2, -0.3, -0.4, -0.5, -0.6, -0.8, -1.0)
# ^ offsets tried: rare classes weigh more in the loss, so untouched logits may see too much ice
_NOMINAL = 0.6827
# ^ coverage of one standard deviation of a normal distribution
_LEAST_KM2 = 0.01
# ^ smaller glaciers are left out: the smallest polygon of RGI 7.0
_SAMPLE_STEP = 7
# ^ every seventh row and column of a map are enough to fit one number and to count calibration
_SAMPLE_MOST = 200_000
# ^ pixels of a large map that are enough too


def evaluate_out_of_fold(
    folder: Path,
    regions: Sequence[PreparedRegion],
    *,
    workers: int = 2,
    executor: str = "processes",
    report: Report | None = None,
) -> tuple[dict[str, Any], Measured]:
    """Map every training region by the members that hold it out and score the maps.

    Parameters
    ----------
    folder
        Of the ensemble.
    regions
        Training regions; each map is made, counted and forgotten in a job of its own.
    workers, executor, report
        See :func:`model_serving.parallel.run_jobs`.

    Returns
    -------
    found : dict
        ``ice_offsets``: fold -> offset on the ice logits with the best mean IoU in the regions of
        all *other* folds, so that no region's own truth takes part in choosing how it is mapped;
        ``temperatures``: fold -> temperature with the least log-loss there; ``metrics``: for the
        card, with those offsets, beside the band ratio tuned on the truth; calibration errors
        with the temperatures and (``_at_1``) without.
    measured : Measured
        All scores behind these. Maps are scored before the temperatures, which change no member's
        most probable class.
    """
    tried = _score(folder, regions, _OFFSETS, workers=workers, executor=executor, report=report)
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
    measured = Measured.of(
        [s["counts"] for s in results],
        before=calibration_counts(samples, dict.fromkeys(temperatures, 1.0)),
        after=calibration_counts(samples, temperatures),
    )
    found = {"ice_offsets": offsets, "temperatures": temperatures}
    return found | {"metrics": _summary(results, measured)}, measured


def evaluate_calibration(
    folder: Path,
    regions: Sequence[PreparedRegion],
    *,
    workers: int = 2,
    executor: str = "processes",
    report: Report | None = None,
) -> tuple[dict[str, Any], Measured]:
    """Map regions that no member has seen by all members, as any new region is mapped.

    Parameters
    ----------
    folder, regions, workers, executor, report
        As of :func:`evaluate_out_of_fold`.

    Returns
    -------
    found : dict
        ``calibration_metrics``: as ``metrics`` there; ``area_calibration``: see
        :func:`area_calibration`.
    measured : Measured
        All scores behind these.
    """
    scores = _score(folder, regions, (None,), workers=workers, executor=executor, report=report)
    results = [score for (score,) in scores]

    def counts(which: int) -> dict[str, list[ProbabilityCounts]]:
        samples = [
            MapSample(s["fold"], s["sampled"][which, None], s["sampled_labels"]) for s in results
        ]
        return calibration_counts(samples, {OUTSIDE: 1.0})

    measured = Measured.of([s["counts"] for s in results], before=counts(0), after=counts(1))
    found = {
        "calibration_metrics": _summary(results, measured),
        "area_calibration": area_calibration(results),
    }
    return found, measured


def _score(
    folder: Path,
    regions: Sequence[PreparedRegion],
    offsets: tuple[float | None, ...],
    *,
    workers: int,
    executor: str,
    report: Report | None,
) -> list[list[dict[str, Any]]]:
    """Scores of every season of every region, in their order."""
    maps = [(region, k) for region in regions for k in range(len(region.seasons))]
    jobs = [{"folder": folder, "region": r, "season": k, "offsets": offsets} for r, k in maps]
    scores = run_jobs(_score_season, jobs, workers=workers, executor=executor, report=report)
    order = {(r.name, r.seasons[k]): i for i, (r, k) in enumerate(maps)}
    return sorted(scores, key=lambda s: order[s[0]["region"], s[0]["season"]])


def _choose_offsets(tried: Sequence[list[dict[str, Any]]]) -> dict[int, float]:
    folds = sorted({scores[0]["fold"] for scores in tried})
    chosen = {}
    for fold in folds:
        others = [[s["iou"] for s in scores] for scores in tried if scores[0]["fold"] != fold]
        told = [ious for ious in others if np.isfinite(ious).all()]
        # ^ where a map and its truth hold no ice there is nothing to choose by
        chosen[fold] = _OFFSETS[int(np.mean(told, axis=0).argmax())] if told else 0.0
    return chosen


def _summary(results: Sequence[dict[str, Any]], measured: Measured) -> dict[str, Any]:
    maps = [{k: _told(r[k]) for k in ("region", "season", "iou", "ratio")} for r in results]
    ious, single, ratio = (
        [r[k] for r in results if np.isfinite(r[k])] for k in ("iou", "single", "ratio")
    )
    return measured.headline() | {
        "ice_iou_mean": _told(np.mean(ious)) if ious else None,
        "ice_iou_worst": min(ious, default=None),
        "ice_iou_single_member": _told(np.mean(single)) if single else None,
        "band_ratio_iou_mean": _told(np.mean(ratio)) if ratio else None,
        "maps": maps,
    }


def _told(value: Any) -> Any:
    """A figure as a card holds it: four digits, None where there is none."""
    if isinstance(value, str):
        return value
    return round(float(value), 4) if np.isfinite(value) else None


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
    some = _some_of(known)
    ratio = Overlaps()
    ratio.add(ratio_masks(*(raw[[2, 4]][:, known] ** 2)), np.isin(label[known], ICE_CLASSES))
    same = {
        "region": region.name,
        "season": region.seasons[season],
        "fold": fold,
        "ratio": round(max(ratio.ious), 4),
        "sampled": np.stack([p[:, some] for p in maps]),
        "sampled_labels": label[known][some],
    }
    if not trying:
        same["sampled"] = _means(same["sampled"], members)
    truth = _Truth.of(region, season, fold=fold, known=known, members=[m.name for m in members])
    return [
        same | truth.scored([p if offset is None else with_ice_offset(p, offset) for p in maps])
        for offset in offsets
    ]


def _some_of(known: Array) -> Array:
    """Every few rows and columns of the known pixels, ``(known,)`` bool."""
    step = max(_SAMPLE_STEP, math.ceil(math.sqrt(known.size / _SAMPLE_MOST)))
    some = np.zeros_like(known)
    some[::step, ::step] = True
    return np.asarray(some[known])


def _means(served: Array, members: Sequence[Member]) -> Array:
    """Mean of the members without their temperatures, and as served, ``(2, class, pixel)``."""
    plain = [with_temperature(p, 1 / m.temperature) for p, m in zip(served, members, strict=True)]
    # ^ exact but where windows overlap: there it undoes the mean of what was tempered
    return np.stack([np.mean(plain, axis=0), np.mean(served, axis=0)])


@dataclass(frozen=True, slots=True)
class _Truth:
    """What one map is held against."""

    region: PreparedRegion
    season: str
    fold: int
    known: Array
    """``(y, x)`` bool: seen, and of known class."""
    labels: Array
    """``(y, x)`` uint8, 255 where not known."""
    owners: Array
    """``(y, x)`` int32."""
    zones: Array
    """Owners with the ground just beyond their outlines."""
    members: Sequence[str]

    @classmethod
    def of(
        cls,
        region: PreparedRegion,
        season: int,
        *,
        fold: int,
        known: Array,
        members: Sequence[str],
    ) -> _Truth:
        labels = np.where(known, region.labels()[season], np.uint8(UNKNOWN))
        owners = region.owners()
        return cls(
            region,
            region.seasons[season],
            fold,
            known,
            labels,
            owners,
            glacier_zones(owners),
            members,
        )

    def areas(self, mask: Array) -> Array:
        """Area of each glacier in a mask ``(known,)``, km2."""
        owners = self.owners[self.known]
        count = np.bincount(owners[mask], minlength=self.region.glaciers + 1)[1:]
        return np.asarray(count * self.region.grid.pixel_area_km2)

    def scored(self, maps: list[Array]) -> dict[str, Any]:
        """Scores of the members' mean, and of each, ``(class, known)``."""
        mean = np.mean(maps, axis=0)
        truth = np.isin(self.labels[self.known], ICE_CLASSES)
        single = [p[list(ICE_CLASSES)].sum(axis=0) >= 0.5 for p in maps]
        ious = [iou(mask, truth) for mask in single]
        classes = np.full(self.known.shape, UNKNOWN, np.uint8)
        classes[self.known] = mapped_classes(mean)
        best = np.isin(classes[self.known], ICE_CLASSES)
        return {
            "iou": round(iou(best, truth), 4),
            "single": float(np.mean(ious)),
            "counts": self._counted(classes, dict(zip(self.members, ious, strict=True))),
            "member_km2": np.stack([self.areas(mask) for mask in single]),
            "true_km2": self.areas(truth),
            "mapped_km2": self.areas(best),
        }

    def _counted(self, classes: Array, members: dict[str, float]) -> MapCounts:
        edges = boundary_distance(
            np.isin(classes, ICE_CLASSES),
            np.isin(self.labels, ICE_CLASSES),
            pixel_m=self.region.grid.resolution_m,
            known=self.known,
        )
        return count_map(
            classes,
            self.labels,
            owners=self.owners,
            pixel_km2=self.region.grid.pixel_area_km2,
            region=self.region.name,
            season=self.season,
            fold=self.fold,
            zones=self.zones,
            figures={
                "boundary_m": edges.mean_m,
                "boundary_hausdorff95_m": edges.hausdorff95_m,
            },
            members=members,
        )


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
