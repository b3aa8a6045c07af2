"""The shipped ensemble on made-up regions of a style it never saw, beside what sees single pixels.

    python benchmarks/heldout.py ENSEMBLE --work FOLDER [--terrain FILE,LON,LAT]

Maps every season of the held-out regions by each member. Prints IoU of glacier (clean and
debris-covered ice together), of clean and of debris-covered ice: of members, of the members of a
fold together, of all together; beside a band ratio and an NDSI whose thresholds are tuned on the
truth of each map, and a random forest that learnt from pixels of all training regions. Needs the
extra ``peers`` for the forest. Regions that are prepared already in the folder are taken as they
are; real terrains are told in the order of the training, those beyond what it used are held out.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, table

from catalog.cube import CLASSES, ICE_CLASSES
from catalog.simulation import (
    RegionSpec,
    heldout_specs,
    terrain_shape,
    terrain_specs,
    training_specs,
)
from model_serving.benchmarking import train_pixels
from model_serving.calibration import ProbabilityCounts, calibration_error
from model_serving.ensemble import load_ensemble
from model_serving.inference import map_features
from model_serving.metrics import iou, mapped_classes
from model_serving.parallel import run_jobs
from model_serving.peers.pixels import build_pixel_classifier
from model_serving.regions import PreparedRegion, prepare_region
from model_serving.runtimes import choose_runtime

_TARGETS = {"glacier": ICE_CLASSES, "clean ice": ICE_CLASSES[:1], "debris": ICE_CLASSES[1:]}
_ROWS = 2**16
_FOREST = "forest.pickle"
_STEP = 5
# ^ every fifth row and column of a map are enough to count calibration


def main() -> None:
    """Prepare, map, print."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("ensemble", type=Path)
    asked.add_argument("--work", type=Path, required=True)
    asked.add_argument("--terrain", action="append", default=[])
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--pixels", type=int, default=100_000)
    given = asked.parse_args()
    shapes = terrain_specs([terrain_shape(text) for text in given.terrain])
    trained = {region.name for region in load_ensemble(given.ensemble).regions}
    beyond = [spec for spec in shapes if spec.name not in trained]
    taught = [spec for spec in (*training_specs(), *shapes) if spec.name in trained]
    regions = _prepared([*heldout_specs(), *beyond], given.work, given.workers)
    seen = _prepared(taught, given.work, given.workers)
    forest = given.work / _FOREST
    if not forest.exists():
        model = build_pixel_classifier("random-forest")
        rng = np.random.default_rng(0)
        model.fit(*train_pixels(seen, given.pixels, rng), rng)
        forest.write_bytes(pickle.dumps(model))
    jobs = [
        {"folder": given.ensemble, "region": r, "season": k, "forest": forest}
        for r in regions
        for k in range(len(r.seasons))
    ]
    found = run_jobs(
        map_season,
        jobs,
        workers=given.workers,
        executor="processes",
        report=lambda done, total: print(f"{done} of {total} maps", end="\r", flush=True),
    )
    print(", ".join(f"{k} {v}" for k, v in machine(("numpy", "torch", "scikit-learn")).items()))
    _print(found)


def _prepared(specs: Sequence[RegionSpec], work: Path, workers: int) -> list[PreparedRegion]:
    jobs = [
        {"spec": spec, "folder": work / "regions" / spec.name, "resolution_m": 20.0}
        for spec in specs
    ]
    regions = run_jobs(prepare_region, jobs, workers=workers, executor="processes")
    return sorted(regions, key=lambda region: region.name)


def map_season(folder: Path, region: PreparedRegion, season: int, forest: Path) -> dict[str, Any]:
    """Scores of every map of one season of a region."""
    torch.set_num_threads(1)
    ensemble = load_ensemble(folder)
    runtime = choose_runtime(config=ensemble.config)
    raw = np.asarray(region.features()[season], np.float32)
    label = region.labels()[season]
    known = np.isfinite(raw[0]) & (label < len(CLASSES))
    truth = label[known]
    scores: dict[str, dict[str, float]] = {}
    together: dict[str, list[Any]] = {}
    for member in ensemble.members:
        predict = ensemble.predictor(member, runtime)
        mapped = map_features(predict, raw, member, plan=ensemble.window_plan)[:, known]
        scores[f"member/{member.folds[0]}/{member.name}"] = _scores(mapped_classes(mapped), truth)
        for group in (f"fold/{member.folds[0]}", "ensemble"):
            total = together.setdefault(group, [np.zeros_like(mapped), 0])
            total[0] += mapped
            total[1] += 1
    means = {group: total / count for group, (total, count) in together.items()}
    scores |= {group: _scores(mapped_classes(mean), truth) for group, mean in means.items()}
    for name in ("band-ratio", "ndsi"):
        index = build_pixel_classifier(name)
        index.fit(raw[:, known].T, truth, np.random.default_rng(0))
        scores[name] = _scores(index.predict(raw[:, known].T).argmax(axis=1), truth)
    model = pickle.loads(forest.read_bytes())
    pixels = raw[:, known].T
    parts = [model.predict(pixels[i : i + _ROWS]) for i in range(0, len(pixels), _ROWS)]
    scores["forest"] = _scores(mapped_classes(np.concatenate(parts).T), truth)
    some = slice(None, None, _STEP)
    stated = ProbabilityCounts.of_map(means["ensemble"][:, some], truth[some], of="ice")
    return {"region": region.name, "season": season, "scores": scores, "stated": stated}


def _scores(classes: Any, truth: Any) -> dict[str, float]:
    return {
        name: iou(np.isin(classes, wanted), np.isin(truth, wanted))
        for name, wanted in _TARGETS.items()
    }


def _print(found: list[dict[str, Any]]) -> None:
    names = list(found[0]["scores"])
    mean = {
        name: {t: float(np.nanmean([f["scores"][name][t] for f in found])) for t in _TARGETS}
        for name in names
    }
    members = [name for name in names if name.startswith("member/")]
    folds = [name for name in names if name.startswith("fold/")]
    rows = [
        ["ensemble", *(f"{mean['ensemble'][t]:.3f}" for t in _TARGETS)],
        ["members of one fold", *_spread(mean, folds)],
        ["single members", *_spread(mean, members)],
        *(
            [title, *(f"{mean[name][t]:.3f}" for t in _TARGETS)]
            for name, title in (
                ("forest", "random forest"),
                ("band-ratio", "Red/SWIR1, tuned on each map"),
                ("ndsi", "NDSI, tuned on each map"),
            )
        ),
    ]
    print(f"{len(found)} maps of {len({f['region'] for f in found})} regions, mean IoU over maps")
    print(table(["", *_TARGETS], rows))
    seeds = [
        np.std([mean[m]["glacier"] for m in members if m.startswith(f"member/{fold[5:]}/")], ddof=1)
        for fold in folds
    ]
    print(f"standard deviation over seeds, mean of folds: {np.mean(seeds):.4f}")
    error = calibration_error(ProbabilityCounts.total([f["stated"] for f in found]))
    print(f"expected calibration error of the probability of glacier: {error:.4f}")
    for f in sorted(found, key=lambda f: (f["region"], f["season"])):
        one = f["scores"]
        told = " ".join(f"{one[n]['glacier']:.3f}" for n in ("ensemble", "forest", "band-ratio"))
        print(f"  {f['region']} {f['season']}: {told}")


def _spread(mean: dict[str, dict[str, float]], names: list[str]) -> list[str]:
    out = []
    for target in _TARGETS:
        values = [mean[name][target] for name in names]
        out.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}")
    return out


if __name__ == "__main__":
    main()
