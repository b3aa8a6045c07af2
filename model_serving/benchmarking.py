"""Compare models on the same folds, pixels and steps: one table, however often it is cut off.

One law: of two models nothing differs but the model. Networks see the same windows (same sampler,
same seed) in the same number of steps of the engine's own training loop; pixel classifiers learn
from pixels of the same regions; all are scored on every pixel of the regions of the fold that was
held out. A run (one model, fold and seed) that is finished is kept, and an interrupted training
goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from catalog.cube import CLASSES, ICE_CLASSES, Workspace
from catalog.errors import UsageError
from model_serving.benchmark_costs import (
    latency_ms,
    multiply_accumulates,
    one_thread,
    parameters,
)
from model_serving.benchmark_table import summarise, write_tables
from model_serving.benchmark_variants import Variant
from model_serving.calibration import ProbabilityCounts, calibration_error
from model_serving.checkpoints import Checkpoints
from model_serving.ensemble import Member
from model_serving.features import CHANNELS, Normalisation
from model_serving.fitting import Fit, fit
from model_serving.folds import assign_folds
from model_serving.inference import map_features
from model_serving.losses import make_loss
from model_serving.member_training import Recipe, WindowSampler
from model_serving.networks import build_network
from model_serving.parallel import run_jobs
from model_serving.patches import MAP_HALO_PX, WindowPlan
from model_serving.peers.pixels import PixelClassifier, build_pixel_classifier
from model_serving.regions import PreparedRegion, identity_of
from model_serving.runtimes import TorchPredictor
from model_serving.scores import COLUMNS as SCORE_COLUMNS
from model_serving.scores import MapCounts, count_map, scores

__all__ = ["Plan", "benchmark_models", "train_pixels"]

Array = npt.NDArray[Any]
Map = Callable[[Array, Array], Array]
"""From raw features ``(channel, y, x)`` and true classes to probabilities ``(class, y, x)``. Only
what is tuned on the truth looks at the latter."""

_CODE = (
    "benchmarking", "benchmark_variants", "member_training", "fitting", "losses", "features",
    "networks", "glacier_seg", "selective_scan", "compiled", "datasets/sampling", "peers",
    "inference", "scores", "metrics", "calibration", "folds",
)  # fmt: skip
# ^ modules whose sources decide what a run finds
_LATENCY_PX = 256
_TRIAL_STEPS = 8
_ROWS = 2**16
# ^ pixels that a classifier is asked of at a time
_KEPT = ("iou", "precision", "recall", "mean_iou")


@dataclass(frozen=True, slots=True)
class Plan:
    """How models are compared."""

    recipe: Recipe
    """Folds, seeds, steps, windows and rates. Network and loss are those of each variant."""
    run_folds: int | None = None
    """Of the folds, so many are run; all where None."""
    seconds: float | None = None
    """If given, each network is trained about so long, instead of the steps of the recipe: on this
    machine, by the time of a few trial steps."""
    pixels: int = 100_000
    """That a pixel classifier learns from."""
    latency_repeats: int = 10

    def __post_init__(self) -> None:
        folds, run = self.recipe.folds, self.run_folds
        if self.recipe.seeds < 1 or (run is not None and not 1 <= run <= folds):
            raise UsageError(
                f"{run} of {folds} folds and {self.recipe.seeds} seeds cannot be run: give 1 to "
                f"{folds} folds and at least one seed"
            )


def benchmark_models(
    variants: Sequence[Variant],
    regions: Sequence[PreparedRegion],
    *,
    plan: Plan,
    out: Path,
    workers: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> pd.DataFrame:
    """Train, map and score every variant in every fold with every seed; write the table.

    Parameters
    ----------
    variants
        See :func:`model_serving.benchmark_variants.choose_variants`.
    regions
        Divided into folds as whole regions, as in training.
    plan
        How.
    out
        Folder of the tables (``table.csv``, ``table.md``, ``table.json``) and of finished runs.
    workers
        Runs at the same time, one core each; a single one runs in this process.
    progress
        Called with a label, the number done and the number in all.

    Returns
    -------
    DataFrame
        See :func:`model_serving.benchmark_table.summarise`.

    Raises
    ------
    UsageError
        Where there are fewer regions than folds.
    """
    if len(regions) < plan.recipe.folds:
        raise UsageError(f"{plan.recipe.folds} folds need as many regions, found {len(regions)}")
    report = progress or (lambda _label, _done, _total: None)
    ordered = sorted(regions, key=lambda r: r.name)
    held_out = assign_folds([r.ice_km2 for r in ordered], plan.recipe.folds)
    jobs = [
        _Job(
            variant=variant,
            fold=fold,
            seed=seed,
            plan=plan,
            seen=[r for r, f in zip(ordered, held_out, strict=True) if f != fold],
            unseen=[r for r, f in zip(ordered, held_out, strict=True) if f == fold],
            folder=out / "runs",
        )
        for variant in variants
        for fold in range(plan.run_folds or plan.recipe.folds)
        for seed in range(plan.recipe.seeds)
    ]
    runs = _run_all(jobs, workers, lambda done: report("runs", done, len(jobs)))
    order = {variant.name: i for i, variant in enumerate(variants)}
    runs.sort(key=lambda r: (order[r["variant"]], r["fold"], r["seed"]))
    # Times are taken last, when nothing else of ours is running.
    costs = {}
    for done, variant in enumerate(variants):
        report("costs", done, len(variants))
        costs[variant.name] = _cost(variant, ordered, plan, out / "costs")
    report("costs", len(variants), len(variants))
    table = summarise(runs, costs)
    write_tables(Workspace(out), table, runs=runs, facts=_facts(plan, ordered, held_out))
    return table


def _facts(plan: Plan, regions: Sequence[PreparedRegion], folds: Sequence[int]) -> dict[str, Any]:
    recipe = plan.recipe
    budget = f"{recipe.steps} steps" if plan.seconds is None else f"about {plan.seconds:g} s"
    return {
        "plan": asdict(plan),
        "torch": torch.__version__,
        "regions": {r.name: fold for r, fold in zip(regions, folds, strict=True)},
        "note": (
            f"Mean over {plan.run_folds or recipe.folds} of {recipe.folds} folds of "
            f"{len(regions)} regions; ± is the standard deviation over {recipe.seeds} seeds. Each "
            f"network: {budget} of {recipe.batch} windows of {recipe.window_px} px at a rate of "
            f"{recipe.learning_rate:g}; each pixel classifier: {plan.pixels} pixels. MACs and ms: "
            f"one window of {_LATENCY_PX} px, ms in torch, float32, on one core."
        ),
    }


# --- one run ---


@dataclass(frozen=True, slots=True)
class _Job:
    """One model, fold and seed."""

    variant: Variant
    fold: int
    seed: int
    plan: Plan
    seen: Sequence[PreparedRegion]
    unseen: Sequence[PreparedRegion]
    folder: Path

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{_file_name(self.variant)}-f{self.fold}-s{self.seed}"

    @property
    def identity(self) -> str:
        """Of all that decides what it finds: how many folds and seeds are run does not."""
        data = [[(r.name, r.fingerprint) for r in part] for part in (self.seen, self.unseen)]
        recipe = asdict(replace(self.plan.recipe, folds=0, seeds=0))
        facts = asdict(self.variant), self.fold, self.seed, recipe, data, torch.__version__
        return identity_of(facts, self.plan.seconds, self.plan.pixels, code=_CODE)


def _file_name(variant: Variant) -> str:
    return variant.name.replace(" ", "-")


def _kept(folder: Path, name: str, identity: str) -> dict[str, Any] | None:
    """What was found before, by the same code from the same data."""
    note = Workspace(folder).get(f"{name}.json")
    found: dict[str, Any] = json.loads(note) if note is not None else {}
    return found if found.get("identity") == identity else None


def _keep(folder: Path, name: str, found: dict[str, Any]) -> dict[str, Any]:
    Workspace(folder).put(f"{name}.json", json.dumps(found, indent=1).encode())
    return found


def _run_all(
    jobs: Sequence[_Job], workers: int, report: Callable[[int], None]
) -> list[dict[str, Any]]:
    """Do what is not done yet; return all runs, in any order."""
    kept = [(job, _kept(job.folder, job.name, job.identity)) for job in jobs]
    runs = [found for _, found in kept if found is not None]
    waiting = [job for job, found in kept if found is None]
    report(len(runs))
    if workers == 1:
        for job in waiting:
            with one_thread():
                runs.append(_run(job))
            report(len(runs))
    elif waiting:
        before = len(runs)
        runs += run_jobs(
            _run,
            [{"job": job} for job in waiting],
            workers=workers,
            report=lambda done, _: report(before + done),
        )
    return runs


def _run(job: _Job) -> dict[str, Any]:
    """Train a variant without a fold and score its maps of it."""
    torch.set_num_threads(1)
    identity = job.identity
    checkpoints = Checkpoints(job.folder, name=job.name, identity=identity)
    told: dict[str, Any] = {}
    if job.variant.is_network:
        make_map, told = _trained(job, checkpoints)
    else:
        make_map = _learnt(job)
    run = {
        "variant": job.variant.name,
        "title": job.variant.title,
        "fold": job.fold,
        "seed": job.seed,
        "identity": identity,
        "held_out": [r.name for r in job.unseen],
        "scores": _scored(make_map, job.unseen, job.fold),
        **told,
    }
    _keep(job.folder, job.name, run)
    checkpoints.delete()
    return run


def _trained(job: _Job, checkpoints: Checkpoints) -> tuple[Map, dict[str, Any]]:
    """Train a network; return how it maps, and what is told of its training."""
    variant, recipe = job.variant, job.plan.recipe
    if variant.learning_rate is not None:
        recipe = replace(recipe, learning_rate=variant.learning_rate)
    if job.plan.seconds is not None:
        recipe = replace(recipe, steps=_affordable_steps(job, recipe, job.plan.seconds))
    made, measured = _fitted(job, recipe, checkpoints)
    places = [CHANNELS.index(name) for name in variant.channels]
    member = Member(
        name=variant.name,
        folds=(job.fold,),
        seed=job.seed,
        normalisation=Normalisation(
            tuple(measured.mean[i] for i in places), tuple(measured.std[i] for i in places)
        ),
        sha256="",
        channels=variant.channels,
    )
    window = recipe.serve_window_px
    windows = WindowPlan(window, window - 2 * MAP_HALO_PX)
    predict = _predictor(made.network)
    told = {
        "steps": recipe.steps,
        "training_s": round(sum(made.history.seconds), 1),
        "loss": [round(v, 4) for v in made.history.tenths()],
    }
    return lambda raw, _truth: map_features(predict, raw, member, plan=windows), told


def _affordable_steps(job: _Job, recipe: Recipe, seconds: float) -> int:
    """How many steps take so long here; found once, so that a resumed training has as many."""
    name = f"{job.name}-steps"
    kept = _kept(job.folder, name, job.identity)
    if kept is None:
        trial, _ = _fitted(job, replace(recipe, steps=_TRIAL_STEPS), None)
        steps = max(_TRIAL_STEPS, round(seconds / median(trial.history.seconds)))
        kept = _keep(job.folder, name, {"identity": job.identity, "steps": steps})
    return int(kept["steps"])


def _fitted(
    job: _Job, recipe: Recipe, checkpoints: Checkpoints | None
) -> tuple[Fit, Normalisation]:
    """Run the engine's own training loop: same windows and same steps for every network."""
    variant = job.variant
    torch.manual_seed(1000 * job.fold + job.seed)
    sampler = WindowSampler(job.seen, recipe, np.random.default_rng([job.fold, job.seed]))
    network = build_network(
        variant.model, channels=len(variant.channels), classes=len(CLASSES), **variant.options
    )
    loss = make_loss(variant.loss, class_weights=sampler.class_weights)
    shown = _Shown(sampler, variant.channels)
    made = fit(network, shown, recipe.settings, loss=loss, checkpoints=checkpoints)
    return made, sampler.normalisation


class _Shown:
    """Windows of a sampler, of which only some channels are shown."""

    def __init__(self, sampler: WindowSampler, channels: Sequence[str]) -> None:
        self._sampler, self.rng = sampler, sampler.rng
        self.drawn: Sequence[str] = ()
        self._places = [CHANNELS.index(name) for name in channels]

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs ``(batch, channel, y, x)`` and labels ``(batch, y, x)``."""
        x, labels = self._sampler.batch()
        self.drawn = self._sampler.drawn
        return x[:, self._places], labels


def _predictor(network: nn.Module) -> TorchPredictor:
    """Any network as it is; nothing of it is special to Glacier-Seg."""
    return TorchPredictor(cast(Any, network), threads=1, device="cpu", precision="float32")


def _learnt(job: _Job) -> Map:
    """Fit a pixel classifier; return how it maps."""
    rng = np.random.default_rng([job.fold, job.seed])
    model = build_pixel_classifier(job.variant.model)
    if job.variant.on_truth:
        return lambda raw, truth: _mapped_knowing(model, raw, truth, rng)
    model.fit(*train_pixels(job.seen, job.plan.pixels, rng), rng)
    return lambda raw, _truth: _mapped(model, raw)


def _mapped_knowing(
    model: PixelClassifier, raw: Array, truth: Array, rng: np.random.Generator
) -> Array:
    known = np.isfinite(raw[0]) & (truth < len(CLASSES))
    if np.isin(truth[known], ICE_CLASSES).any():
        model.fit(raw[:, known].T, truth[known], rng)
    return _mapped(model, raw)


def _mapped(model: PixelClassifier, raw: Array) -> Array:
    """Probabilities ``(class, y, x)`` of all pixels, some at a time."""
    pixels = raw.reshape(len(raw), -1).T
    parts = [model.predict(pixels[i : i + _ROWS]) for i in range(0, len(pixels), _ROWS)]
    return np.concatenate(parts).T.reshape(-1, *raw.shape[1:])


def train_pixels(
    regions: Sequence[PreparedRegion], count: int, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Draw pixels of known class, equally many from each season of each region.

    Parameters
    ----------
    regions
        In the order in which they are drawn from.
    count
        Pixels in all; fewer where there are not as many.
    rng
        Source of the choice.

    Returns
    -------
    features : ``(pixel, channel)`` float32
        Raw, NaN = missing.
    labels : ``(pixel,)`` uint8
    """
    each = -(-count // sum(len(r.seasons) for r in regions))
    features, labels = [], []
    for region in regions:
        for x, y in zip(region.features(), region.labels(), strict=True):
            known = np.flatnonzero(np.isfinite(x[0]).ravel() & (y.ravel() < len(CLASSES)))
            taken = np.sort(rng.choice(known, min(each, len(known)), replace=False))
            features.append(x.reshape(len(x), -1)[:, taken].T.astype(np.float32))
            labels.append(y.ravel()[taken])
    return np.concatenate(features), np.concatenate(labels)


# --- scores ---


def _scored(make_map: Map, regions: Sequence[PreparedRegion], fold: int) -> dict[str, float | None]:
    """Score the maps of every season of held-out regions, all pixels together."""
    maps: list[MapCounts] = []
    stated: dict[str, list[ProbabilityCounts]] = {"ice": [], "top": []}
    for region in regions:
        owners, labels = region.owners(), region.labels()
        for k, season in enumerate(region.seasons):
            raw = np.asarray(region.features()[k], np.float32)
            probability = make_map(raw, labels[k])
            truth = np.where(np.isfinite(raw[0]), labels[k], np.uint8(255))
            maps.append(
                count_map(
                    probability.argmax(axis=0).astype(np.uint8),
                    truth,
                    owners=owners,
                    pixel_km2=region.grid.pixel_area_km2,
                    region=region.name,
                    season=season,
                    fold=fold,
                )
            )
            for of, counts in stated.items():
                counts.append(ProbabilityCounts.of_map(probability, truth, of=cast(Any, of)))
    found = _figures(maps)
    for of, counts in stated.items():
        found[f"error {of}"] = calibration_error(ProbabilityCounts.total(counts))
    return {k: round(v, 5) if np.isfinite(v) else None for k, v in found.items()}


def _figures(maps: Sequence[MapCounts]) -> dict[str, float]:
    """Scores by name: of what, and, where not of all, of which group."""
    table = scores(maps)
    table = table[(table["mean"] == "pixels") & table["score"].isin(_KEPT)]
    out: dict[str, float] = {}
    for scope, group, _, target, score, value, _ in table[list(SCORE_COLUMNS)].to_numpy():
        if scope == "all":
            out[f"{score} {target}"] = float(value)
        elif scope in ("size_km2", "debris_share") and (score, target) == ("iou", "ice"):
            out[f"iou ice {scope} {group}"] = float(value)
    debris = sum(m.tables.sum(axis=0) for m in maps)[ICE_CLASSES[1]]
    covered = int(debris.sum())
    out["found debris-covered ice"] = (
        float(debris[list(ICE_CLASSES)].sum() / covered) if covered else float("nan")
    )
    return out


# --- costs ---


def _cost(
    variant: Variant, regions: Sequence[PreparedRegion], plan: Plan, folder: Path
) -> dict[str, Any]:
    """Parameters, multiply-accumulates and time of one window on one core; kept, like runs."""
    data = [(r.name, r.fingerprint) for r in regions]
    identity = identity_of(
        asdict(variant), plan.pixels, plan.latency_repeats, data, torch.__version__, code=_CODE
    )
    name = _file_name(variant)
    kept = _kept(folder, name, identity)
    if kept is not None:
        return kept["cost"]  # type: ignore[no-any-return]
    if variant.is_network:
        call, counted = _network_call(variant)
    else:
        call, counted = _classifier_call(variant, regions, plan.pixels), {}
    with one_thread():
        taken = latency_ms(call, repeats=plan.latency_repeats)
    cost = {"parameters": None, "macs": None, **counted, "ms": round(taken, 2)}
    _keep(folder, name, {"identity": identity, "cost": cost})
    return cost


def _network_call(variant: Variant) -> tuple[Callable[[], object], dict[str, int]]:
    """A call on one window, and what is counted of the network."""
    channels = len(variant.channels)
    torch.manual_seed(0)
    network = build_network(
        variant.model, channels=channels, classes=len(CLASSES), **variant.options
    ).eval()
    counted = {
        "parameters": parameters(network),
        "macs": multiply_accumulates(network, channels=channels, px=_LATENCY_PX),
    }
    predict = _predictor(network)
    shape = (channels, _LATENCY_PX, _LATENCY_PX)
    window = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return lambda: predict(window), counted


def _classifier_call(
    variant: Variant, regions: Sequence[PreparedRegion], count: int
) -> Callable[[], object]:
    """A call on as many pixels as a window has: real ones, for noise would grow other trees."""
    rng = np.random.default_rng(0)
    model = build_pixel_classifier(variant.model)
    features, labels = train_pixels(regions, count, rng)
    model.fit(features, labels, rng)
    drawn = features[rng.integers(len(features), size=_LATENCY_PX**2)]
    window = np.ascontiguousarray(drawn.T.reshape(-1, _LATENCY_PX, _LATENCY_PX))
    return lambda: _mapped(model, window)
