"""Train an ensemble by regional cross-validation on simulated regions, reproducibly.

A plain loop: the whole recipe fits on a page, runs on one core a member, and every random number
comes from the member's own seed. Finished members and prepared regions are kept, so an interrupted
training goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from catalog.cube import CLASSES, MIN_MEMBERS, Workspace
from catalog.errors import UsageError
from model_serving.ensemble import CARD, pack_member
from model_serving.evaluation import evaluate_calibration, evaluate_out_of_fold
from model_serving.features import CHANNELS, GROUPS, Normalisation
from model_serving.folds import TrainingRegion, assign_folds
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.losses import cross_entropy_dice
from model_serving.regions import PreparedRegion, identity_of, prepare_region

__all__ = ["Recipe", "train_ensemble"]

Array = npt.NDArray[Any]
_EXPOSED = len(CLASSES)
# ^ stands among the classes for ground that ice has left: most often taken for debris on ice
_ANYWHERE = _EXPOSED + 1
_WANTED = (_ANYWHERE, 1, 2, 2, _EXPOSED, 3)
# ^ what windows are laid around, equally often
Progress = Callable[[str, int, int], None]

_CODE = ("training", "losses", "features", "glacier_seg", "selective_scan", "compiled")
# ^ modules whose sources decide what a member becomes


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what training makes, besides the regions."""

    folds: int = 5
    seeds: int = 3
    steps: int = 600
    batch: int = 4
    window_px: int = 192
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.98
    restraint: float = 1e-3
    """Weight of the mean square of what the stages put out (Merity et al. 2017, activation
    regularisation). The head normalises these numbers, so nothing else keeps them from growing,
    and a selective scan grows with the cube of its input: some members would end with a deepest
    stage of which single windows are a hundred thousand times the rest."""
    resolution_m: float = 20.0
    serve_window_px: int = 320
    """Edge of the windows the members are served with, pixels."""


def train_ensemble(
    out: Path,
    *,
    work: Path,
    specs: Sequence[Any] | None = None,
    calibration: Sequence[Any] | None = None,
    recipe: Recipe | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Simulate the training regions, train every member, measure out of fold, write the card.

    Parameters
    ----------
    out
        Folder of the ensemble: ``card.json`` and one ``.safetensors`` a member.
    work
        Folder for regions, cubes and finished members; may be kept to resume.
    specs
        Regions (``catalog.simulation.RegionSpec``); by default the engine's training regions.
    calibration
        Regions on which the uncertainty is measured; by default the engine's calibration regions.
    recipe
        How to train.
    workers
        Members trained at the same time, one core each.
    progress
        Called with a label, the number done and the number in all.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    UsageError
        Where there are fewer regions than folds or fewer than three seeds.
    """
    from catalog.simulation import calibration_specs, training_specs

    recipe = recipe or Recipe()
    specs = tuple(training_specs() if specs is None else specs)
    held_back = tuple(calibration_specs() if calibration is None else calibration)
    if len(specs) < recipe.folds:
        raise UsageError(f"{recipe.folds} folds need as many regions, found {len(specs)}")
    if recipe.seeds < MIN_MEMBERS:
        raise UsageError(
            f"{recipe.seeds} seeds a fold: with fewer than {MIN_MEMBERS} members a region of "
            "training could not be mapped with an uncertainty"
        )
    report = progress or (lambda _label, _done, _total: None)
    everything = _in_processes(
        prepare_region,
        [
            {
                "spec": spec,
                "folder": work / "regions" / spec.name,
                "resolution_m": recipe.resolution_m,
            }
            for spec in (*specs, *held_back)
        ],
        workers=workers,
        report=lambda done, total: report("regions", done, total),
    )
    everything.sort(key=lambda region: region.name)
    names = {spec.name for spec in specs}
    prepared = [region for region in everything if region.name in names]
    unseen = [region for region in everything if region.name not in names]
    held_out = assign_folds([r.ice_km2 for r in prepared], recipe.folds)
    jobs = [
        {
            "fold": fold,
            "seed": seed,
            "recipe": recipe,
            "seen": [r for r, f in zip(prepared, held_out, strict=True) if f != fold],
            "folder": work / "members",
        }
        for fold in range(recipe.folds)
        for seed in range(recipe.seeds)
    ]
    members = _in_processes(
        train_member,
        jobs,
        workers=workers,
        report=lambda done, total: report("members", done, total),
    )
    members.sort(key=lambda m: (m["fold"], m["seed"]))
    regions = [
        TrainingRegion(r.name, r.seed, f, r.bbox, r.glaciers, round(r.ice_km2, 3))
        for r, f in zip(prepared, held_out, strict=True)
    ]
    card = _card(recipe, members, regions)
    card["calibration_regions"] = [{"name": r.name, "seed": r.seed} for r in unseen]
    finished = Workspace(work / "members")
    finished.put(CARD, _dumped(card))
    scores = evaluate_out_of_fold(
        work / "members",
        prepared,
        workers=workers,
        report=lambda d, t: report("out-of-fold maps", d, t),
    )
    offsets = scores.pop("ice_offsets")
    for member in card["members"]:
        member["ice_offset"] = offsets[member["fold"]]
    finished.put(CARD, _dumped(card))
    card |= scores | evaluate_calibration(
        work / "members",
        unseen,
        workers=workers,
        report=lambda d, t: report("calibration maps", d, t),
    )
    made = Workspace(out)
    for member in members:
        name = f"{member['name']}.safetensors"
        made.put(name, finished.get(name) or b"")
    made.put(CARD, _dumped(card))
    # ^ last: an ensemble without its measured uncertainty must not be found
    return card


def _card(
    recipe: Recipe, members: list[dict[str, Any]], regions: list[TrainingRegion]
) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "default",
        "summary": (
            "Glacier-Seg, published form, trained on simulated mountain regions whose surface "
            "spectra follow measured end-members; five folds of whole regions."
        ),
        "channels": list(CHANNELS),
        "channel_transform": "sqrt(reflectance), dB, degrees, m, 1/100 m; then (x - mean) / std",
        "missing_inputs": "0 after normalisation; SAR and terrain may be absent",
        "classes": list(CLASSES),
        "network": GlacierSegConfig().to_dict(),
        "window_px": recipe.serve_window_px,
        "resolution_m": [10, 30],
        "command": "inventory-engine train FOLDER",
        "trained_with": {"torch": torch.__version__}
        | {"kernels": torch.backends.cpu.get_cpu_capability()},
        "recipe": asdict(recipe),
        "regions": [r.to_dict() for r in regions],
        "members": members,
        "area_calibration": {
            "scale": 1.0,
            "regional_scale": 1.0,
            "source": "not calibrated yet",
        },
    }


def _dumped(card: dict[str, Any]) -> bytes:
    return json.dumps(card, indent=1, sort_keys=True).encode() + b"\n"


def _in_processes(
    function: Callable[..., Any],
    jobs: Sequence[dict[str, Any]],
    *,
    workers: int,
    report: Callable[[int, int], None],
) -> list[Any]:
    """Run jobs in fresh processes, so that no job inherits another's random state or threads."""
    results = []
    report(0, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, future in enumerate(as_completed([pool.submit(function, **j) for j in jobs]), 1):
            results.append(future.result())
            report(done, len(jobs))
    return results


def train_member(
    *, fold: int, seed: int, recipe: Recipe, seen: Sequence[PreparedRegion], folder: Path
) -> dict[str, Any]:
    """Train the member that holds out ``fold`` on the regions it may see.

    Returns
    -------
    dict
        Its entry of the card; the weights lie in ``folder``.
    """
    name = f"member-f{fold}-s{seed}"
    seen_data = [(r.name, r.fingerprint) for r in seen]
    identity = identity_of(fold, seed, asdict(recipe), seen_data, torch.__version__, code=_CODE)
    finished = Workspace(folder)
    kept = _kept(finished, name, identity)
    if kept is not None:
        return kept
    torch.set_num_threads(1)
    torch.manual_seed(1000 * fold + seed)
    rng = np.random.default_rng([fold, seed])
    sampler = WindowSampler(seen, recipe, rng)
    network, losses = _fit(sampler, recipe)
    data = pack_member(network)
    entry = {
        "name": name,
        "fold": fold,
        "seed": seed,
        "orientation": seed % 3,
        "mean": list(sampler.normalisation.mean),
        "std": list(sampler.normalisation.std),
        "trained_on": sorted(r.name for r in seen),
        "loss": [round(v, 4) for v in losses],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    finished.put(f"{name}.safetensors", data)
    finished.put(f"{name}.json", json.dumps(entry | {"identity": identity}).encode())
    return entry


def _kept(finished: Workspace, name: str, identity: str) -> dict[str, Any] | None:
    """Entry of a member that was trained before, by the same code on the same data."""
    note, weights = finished.get(f"{name}.json"), finished.get(f"{name}.safetensors")
    if note is None or weights is None:
        return None
    entry: dict[str, Any] = json.loads(note)
    same = entry.pop("identity") == identity
    return entry if same and entry["sha256"] == hashlib.sha256(weights).hexdigest() else None


def _fit(sampler: WindowSampler, recipe: Recipe) -> tuple[GlacierSeg, list[float]]:
    """Run the training loop; return the averaged network and the mean loss of each tenth."""
    network = GlacierSeg(GlacierSegConfig()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedModel(
        network,
        multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.2
    )
    weights = torch.from_numpy(sampler.class_weights)
    losses = []
    network.train()
    for step in range(recipe.steps):
        x, labels = sampler.batch()
        # Half precision reaches the head only, see GlacierSeg.features.
        with torch.autocast("cpu", torch.bfloat16):
            features = network.features(x.contiguous(memory_format=torch.channels_last))
            logits = network.classified(features)
        loss = cross_entropy_dice(logits, labels, weights=weights)
        restraint = torch.stack([feature.square().mean() for feature in features]).sum()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss became {loss.item()} at step {step}")
        optimiser.zero_grad()
        (loss + recipe.restraint * restraint).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
        losses.append(float(loss.detach()))
    tenth = max(1, math.ceil(len(losses) / 10))
    means = [float(np.mean(losses[i : i + tenth])) for i in range(0, len(losses), tenth)]
    return cast(GlacierSeg, average.module).eval(), means


class WindowSampler:
    """Draws augmented, class-balanced training windows from prepared regions.

    Parameters
    ----------
    regions
        Regions a member may see; normalisation and class weights come from these alone.
    recipe
        Window and batch size.
    rng
        Source of every random choice.
    """

    def __init__(
        self, regions: Sequence[PreparedRegion], recipe: Recipe, rng: np.random.Generator
    ) -> None:
        self.recipe, self.rng = recipe, rng
        self.features = [region.features() for region in regions]
        self.labels = [region.labels() for region in regions]
        samples, counts = [], np.zeros(len(CLASSES), np.int64)
        self.centres: dict[tuple[int, int, int], Array] = {}
        """Flat indices of the pixels a window may be laid around: (region, season, wanted)."""
        for i, (x, y) in enumerate(zip(self.features, self.labels, strict=True)):
            owned = regions[i].owners() > 0
            samples.append(
                x[:, :, ::7, ::7].astype(np.float32).swapaxes(0, 1).reshape(len(x[0]), -1)
            )
            counts += np.bincount(y[y < len(CLASSES)].ravel(), minlength=len(CLASSES))
            for season in range(len(y)):
                for label in range(1, len(CLASSES)):
                    self.centres[i, season, label] = np.flatnonzero(y[season] == label)
                if season:
                    self.centres[i, season, _EXPOSED] = np.flatnonzero((y[season] == 0) & owned)
        self.normalisation = Normalisation.measured(np.concatenate(samples, axis=1))
        share = counts / counts.sum()
        weights = 1 / np.sqrt(np.maximum(share, 1e-3))
        self.class_weights = (weights / (weights * share).sum()).astype(np.float32)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs ``(batch, channel, y, x)`` float32 and labels ``(batch, y, x)`` int64."""
        drawn = [self._window() for _ in range(self.recipe.batch)]
        return torch.stack([x for x, _ in drawn]), torch.stack([y for _, y in drawn])

    def _window(self) -> tuple[torch.Tensor, torch.Tensor]:
        rng, window = self.rng, self.recipe.window_px
        region, season, row, col = self._centre()
        features, labels = self.features[region], self.labels[region]
        height, width = labels.shape[-2:]
        # Zooming teaches other pixel sizes: 0.5 shows 10 m pixels to a network trained at 20 m.
        size = int(window * math.exp(rng.uniform(math.log(0.5), math.log(1.5))))
        size = min(size, height, width)
        row = int(np.clip(row - rng.integers(size), 0, height - size))
        col = int(np.clip(col - rng.integers(size), 0, width - size))
        cut = (slice(row, row + size), slice(col, col + size))
        raw = features[(season, slice(None), *cut)].astype(np.float32)
        y = labels[(season, *cut)]
        y = np.where(np.isfinite(raw[0]), y, np.uint8(255))
        x = torch.from_numpy(self.normalisation.apply(self._shaken(raw)))
        target = torch.from_numpy(y.astype(np.int64))
        if size != window:
            x = functional.interpolate(x[None], (window, window), mode="bilinear")[0]
            target = functional.interpolate(
                target[None, None].float(), (window, window), mode="nearest-exact"
            )[0, 0].long()
            # ^ "nearest" would lay labels half a pixel beside their inputs
        turns = int(rng.integers(4))
        x, target = torch.rot90(x, turns, (1, 2)), torch.rot90(target, turns, (0, 1))
        if rng.random() < 0.5:
            x, target = x.flip(2), target.flip(1)
        return x, target

    def _centre(self) -> tuple[int, int, int, int]:
        """Region, season, row, column of a pixel that the window is to hold."""
        rng = self.rng
        region = int(rng.integers(len(self.features)))
        season = int(rng.integers(len(self.labels[region])))
        height, width = self.labels[region].shape[-2:]
        where = self.centres.get((region, season, int(rng.choice(_WANTED))), np.empty(0))
        pixel = rng.choice(where) if len(where) else rng.integers(height * width)
        row, col = divmod(int(pixel), width)
        return region, season, row, col

    def _shaken(self, raw: Array) -> Array:
        """Vary what varies between scenes: gain, haze, noise, and which inputs there are."""
        rng = self.rng
        optical = raw[GROUPS["optical"]]
        gain = math.exp(rng.normal(0, 0.08)) * np.exp(rng.normal(0, 0.04, 6))
        haze = abs(rng.normal(0, 0.02)) * np.array([1, 0.8, 0.6, 0.4, 0.1, 0.05])
        light = optical**2 * gain[:, None, None] + haze[:, None, None]
        light += rng.normal(0, 0.004, optical.shape)
        raw[GROUPS["optical"]] = np.sqrt(np.maximum(light, 0))
        raw[GROUPS["sar"]] += rng.normal(0, 0.7)
        # One window in three has optical bands alone, as where there is neither DEM nor radar.
        lost = rng.choice(4, p=(0.35, 0.3, 0.1, 0.25))
        if lost in (0, 1):
            raw[GROUPS["sar"]] = np.nan
        if lost in (0, 2):
            raw[GROUPS["terrain"]] = np.nan
        return raw
