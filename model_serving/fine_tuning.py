"""Go on training an ensemble on a user's own region, glacier by glacier held out.

The region conditions the network by its normalisation layers: their scales and shifts, one pair a
channel, are what is learnt (a conditional affine as in Perez et al. 2018, "FiLM", with the region
as condition). Inputs, statistics, the other weights and the form of the network stay as they are:
a region is 2,496 numbers in the published form, which few glaciers are enough to learn, and a
member is served like any other. Statistics measured again without labels (Li et al. 2016,
"Revisiting batch normalization for practical domain adaptation") and the training of all weights
are the other choices. Reflectance is physical, so inputs keep
the parent's normalisation: another mean would take from the network what snow looks like. An
embedding of the region (Maslov et al. 2025) needs many regions with labels while the parent is
trained; here there is one.

One law: no member maps a glacier that it has seen. Each fold holds out the ground nearest to its
glaciers, with a buffer; those that stop the training are taken from the other folds' ground.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from catalog.cube import CLASSES, ICE_CLASSES, UNKNOWN
from catalog.errors import UsageError
from model_serving.ensemble import Ensemble, load_ensemble
from model_serving.fitting import FixedWindows, Loss, Sampler, Validate
from model_serving.folds import TrainingRegion
from model_serving.inference import map_features
from model_serving.losses import make_loss
from model_serving.member_training import (
    Recipe,
    WindowSampler,
    finish_member,
    fit_member,
    kept_member,
    validation_windows,
)
from model_serving.metrics import confusion_matrix, mapped_classes
from model_serving.parallel import run_jobs
from model_serving.regions import PreparedRegion, identity_of
from model_serving.runtimes import choose_runtime
from model_serving.territories import MaskedRegion, Territories, divide_region
from model_serving.training import write_ensemble

__all__ = ["CONDITIONS", "Tuning", "evaluate_territories", "fine_tune", "tune_member"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], None]

CONDITIONS = ("statistics", "affine", "all")
_CODE = (
    "fine_tuning",
    "territories",
    "member_training",
    "fitting",
    "losses",
    "augmentation",
    "features",
    "datasets/sampling",
)
_HALO_PX = 64
# ^ around a territory that is mapped for its scores
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How an ensemble is fine-tuned."""

    condition: str = "affine"
    """What the region changes: ``statistics`` of the normalisation layers alone, which needs no
    labels; ``affine``, also their scales and shifts; ``all`` weights."""
    steps: int = 60
    learning_rate: float = 5e-3
    """At the peak; a fifth of it suits ``all`` weights."""
    batch: int = 4
    window_px: int = 128
    statistics_batches: int = 25
    """From which the statistics are measured again."""
    buffer_m: float = 500.0
    """No member sees ground nearer than this to what it holds out."""
    cut_complexes: bool = False
    """Whether glaciers that touch may be held out by different folds."""
    validation_share: float = 0.15
    """Share of the training side's ice by which training is stopped."""
    validate_every: int = 15
    patience: int = 0
    loss: str = "ce_dice"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise UsageError(
                f"condition {self.condition!r} is none of {', '.join(CONDITIONS)}",
                kind="tuning-unfit",
            )

    @property
    def recipe(self) -> Recipe:
        """What the training of a member reads."""
        return Recipe(
            steps=self.steps,
            batch=self.batch,
            window_px=self.window_px,
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            # ^ it would pull the scales towards nothing, not towards the parent
            ema_decay=0.95,
            loss=self.loss,
            validate_every=self.validate_every,
            patience=self.patience,
            checkpoint_every=20,
            keep_statistics=True,
            device=self.device,
        )


def fine_tune(
    parent: Ensemble,
    region: PreparedRegion,
    out: Path,
    *,
    work: Path,
    tuning: Tuning | None = None,
    fold_of: Mapping[int, int] | None = None,
    workers: int = 2,
    executor: str = "processes",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fine-tune every member of an ensemble on the part of a region that it may see.

    Parameters
    ----------
    parent
        Cross-validated, of at least two folds.
    region
        Of the user's own, labelled with its inventory
        (:func:`model_serving.cube_regions.region_from_workspace`). Where no pixel of it is
        debris-covered ice, ice means either kind; where none is water, background may be water.
    out
        Folder of the new ensemble.
    work
        For finished members and checkpoints; may be kept to resume.
    tuning
        How.
    fold_of
        Glacier (its number in the region, from 1) -> fold of the parent that holds it out; whole
        complexes in blocks of similar ice area by default.
    workers, executor, progress
        As :func:`model_serving.training.train_ensemble`.

    Returns
    -------
    dict
        The card: it names the parent and the checksums of its members, and tells how both map the
        glaciers that they have not seen.

    Raises
    ------
    UsageError
        Where the parent has fewer than two folds or ONNX members (``tuning-unfit``), the region
        meets one the parent was trained on (``region-seen``), or has fewer complexes of glaciers
        than folds (``empty-fold``).
    DataError
        As :func:`model_serving.fitting.fit`.
    """
    tuning = tuning or Tuning()
    folds = _check(parent, region)
    report = progress or (lambda _label, _done, _total: None)
    territories = divide_region(region, folds, cut_complexes=tuning.cut_complexes, fold_of=fold_of)
    entries = run_jobs(
        tune_member,
        [
            {
                "parent": parent.folder,
                "number": i,
                "region": region,
                "territories": territories,
                "tuning": tuning,
                "folder": work / "members",
            }
            for i in range(len(parent.members))
        ],
        workers=workers,
        executor=executor,
        report=lambda done, total: report("members", done, total),
    )
    entries.sort(key=lambda entry: int(entry.pop("number")))
    card = _card(parent, region, entries, tuning, territories)
    write_ensemble(work / "drafts", card, work / "members")
    card["fine_tuning"] |= {
        "before": evaluate_territories(parent, region, territories),
        "after": evaluate_territories(load_ensemble(work / "drafts"), region, territories),
    }
    write_ensemble(out, card, work / "members")
    return card


def _check(parent: Ensemble, region: PreparedRegion) -> list[int]:
    folds = sorted({fold for m in parent.members for fold in m.folds})
    if parent.brings_onnx or len(folds) < 2 or any(len(m.folds) != 1 for m in parent.members):
        raise UsageError(
            f"ensemble {parent.name} cannot be fine-tuned: each member must be a network of this "
            "package that holds out one of at least two folds",
            kind="tuning-unfit",
        )
    west, south, east, north = region.bbox
    met = [
        r.name
        for r in parent.regions
        if r.bbox[0] < east and west < r.bbox[2] and r.bbox[1] < north and south < r.bbox[3]
    ]
    if met:
        raise UsageError(
            f"ensemble {parent.name} was trained on {', '.join(met)}, which {region.name} meets: "
            "what its members have seen there cannot be held out again",
            kind="region-seen",
        )
    return folds


def tune_member(
    *,
    parent: Path,
    number: int,
    region: PreparedRegion,
    territories: Territories,
    tuning: Tuning,
    folder: Path,
) -> dict[str, Any]:
    """Fine-tune one member; return its entry of the new card, with its ``number``."""
    ensemble = load_ensemble(parent)
    member, before = ensemble.members[number], ensemble.card["members"][number]
    (fold,) = member.folds
    facts = (member.sha256, region.fingerprint, territories.identity, asdict(tuning))
    identity = identity_of(*facts, torch.__version__, code=_CODE)
    kept = kept_member(folder, member.name, identity)
    if kept is not None:
        return kept | {"number": number}
    torch.set_num_threads(1)
    torch.manual_seed(1000 * fold + member.seed)
    rng = np.random.default_rng([fold, member.seed])
    aside = territories.validating(fold, share=tuning.validation_share, rng=rng)
    buffer_px = tuning.buffer_m / region.grid.resolution_m
    shown = territories.seen(fold, aside, buffer_px=buffer_px)
    sampler = WindowSampler(
        [MaskedRegion.of(region, shown)],
        tuning.recipe,
        rng,
        normalisation=member.normalisation,
    )
    network = ensemble.network(member)
    if tuning.condition == "statistics":
        _measure_statistics(network, sampler, tuning.statistics_batches)
    entry = {k: v for k, v in before.items() if k not in ("loss", "validation", "tuned_on")} | {
        "parent_sha256": member.sha256,
        "trained_on": sorted(
            {*before.get("trained_on", ())}
            | {_part(region, f) for f in territories.folds if f != fold}
        ),
        "tuned_glaciers": territories.taught(fold, aside),
    }
    if tuning.condition == "statistics":
        made = finish_member(network, sampler, entry=entry, folder=folder, identity=identity)
        return made | {"number": number}
    _let_learn(network, tuning.condition)
    groups = _groups(region)
    loss = _coarse(tuning.loss, sampler.class_weights, groups)
    ground = territories.validation_ground(fold, aside, buffer_px=buffer_px)
    fixed = validation_windows(
        [MaskedRegion.of(region, ground)], member.normalisation, tuning.recipe, rng
    )
    made = fit_member(
        network,
        sampler,
        tuning.recipe,
        loss=loss,
        validate=_scored(FixedWindows(fixed, loss), groups),
        entry=entry | {"validated_on": [_glacier(region, g) for g in territories.of(aside)]},
        folder=folder,
        identity=identity,
    )
    return made | {"number": number}


def _glacier(region: PreparedRegion, number: int) -> str:
    """Name of a glacier among those of all regions."""
    return f"{region.name}/{number}"


def _part(region: PreparedRegion, fold: int) -> str:
    """Name of the part of a region that a fold holds out."""
    return f"{region.name}/fold{fold}"


@torch.no_grad()
def _measure_statistics(network: nn.Module, sampler: Sampler, batches: int) -> None:
    """Measure mean and variance of each batch normalisation anew: the plain mean over batches."""
    layers = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        # ^ torch's sign for the plain mean
    network.train()
    for _ in range(batches):
        x, _ = sampler.batch()
        network(x.contiguous(memory_format=torch.channels_last))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def _let_learn(network: nn.Module, condition: str) -> None:
    """Let scales and shifts of the normalisations learn, or all weights."""
    network.requires_grad_(condition == "all")
    for module in network.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(True)


def _groups(region: PreparedRegion) -> tuple[tuple[int, ...], ...]:
    """Classes that the region's labels do not tell apart.

    An inventory without outlines of debris has ice of either kind as one, and one without lakes
    has water in the background.
    """
    found = set(np.unique(region.labels()).tolist())
    ground = (0,) if 3 in found else (0, 3)
    ice = ((1,), (2,)) if 2 in found else ((1, 2),)
    return (ground, *ice) if 3 not in found else (ground, *ice, (3,))


def _coarse(name: str, class_weights: Array, groups: Sequence[Sequence[int]]) -> Loss:
    """A loss on groups of classes: the probability of a group is the sum of its classes'."""
    loss = make_loss(name, class_weights=class_weights[[group[0] for group in groups]])
    of_class = torch.full((256,), UNKNOWN)
    for number, group in enumerate(groups):
        of_class[list(group)] = number

    def coarse(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        parts = [logits[:, list(group)].float().logsumexp(dim=1) for group in groups]
        return loss(torch.stack(parts, dim=1), of_class.to(labels.device)[labels])

    return loss if len(groups) == len(class_weights) else coarse


def _scored(fixed: FixedWindows, groups: Sequence[Sequence[int]]) -> Validate:
    """Score by all classes where labels tell all apart, else by ice."""
    if len(groups) == len(CLASSES):
        return fixed

    def by_ice(network: nn.Module) -> dict[str, float]:
        scores = fixed(network)
        return scores | {"score": scores.get("ice_iou", 0.0)}

    return by_ice


def evaluate_territories(
    ensemble: Ensemble, region: PreparedRegion, territories: Territories
) -> dict[str, Any]:
    """Map every territory by the members that hold it out and compare with the labels.

    Returns
    -------
    dict
        ``ice_iou``: glacier against not, all seasons and territories together;
        ``ice_iou_single_member``: mean over members of the IoU in their own territory;
        ``fold_ice_iou``: of each fold; ``class_iou`` of the classes that are among the labels.
    """
    torch.set_num_threads(1)
    runtime, plan = choose_runtime(config=ensemble.config), ensemble.window_plan
    features, labels = region.features(), region.labels()
    tables, singles, folds = np.zeros((len(CLASSES),) * 2, np.int64), [], {}
    for fold in sorted(set(territories.folds)):
        voters = [m for m in ensemble.members if fold in m.folds]
        predictors = [ensemble.predictor(m, runtime) for m in voters]
        held, cut = _crop(territories.fold_map == fold, least=plan.window)
        table = np.zeros_like(tables)
        for season in range(len(labels)):
            raw = np.asarray(features[(season, slice(None), *cut)], np.float32)
            truth = np.where(held & np.isfinite(raw[0]), labels[(season, *cut)], np.uint8(UNKNOWN))
            maps = [
                map_features(predict, raw, m, plan=plan)
                for predict, m in zip(predictors, voters, strict=True)
            ]
            singles += [_ice_iou(_counted(each, truth)) for each in maps]
            table += _counted(np.mean(maps, axis=0), truth)
        folds[str(fold)] = _ice_iou(table)
        tables += table
    hit = np.diag(tables)
    there = tables.sum(axis=1) > 0
    of_class = hit / np.maximum(1, tables.sum(axis=0) + tables.sum(axis=1) - hit)
    return {
        "ice_iou": _ice_iou(tables),
        "ice_iou_single_member": round(float(np.mean(singles)), 4),
        "fold_ice_iou": folds,
        "class_iou": {
            n: round(float(v), 4) for n, v, t in zip(CLASSES, of_class, there, strict=True) if t
        },
    }


def _crop(held: Mask, *, least: int) -> tuple[Mask, tuple[slice, slice]]:
    """A territory's mask in the rectangle around it, at least as wide as a window."""
    cuts = []
    for axis in (1, 0):
        inside = np.flatnonzero(held.any(axis=axis))
        length = held.shape[1 - axis]
        start = max(0, min(inside[0] - _HALO_PX, length - least))
        stop = min(length, max(inside[-1] + 1 + _HALO_PX, start + least))
        cuts.append(slice(int(start), int(stop)))
    return held[cuts[0], cuts[1]], (cuts[0], cuts[1])


def _counted(probability: Array, truth: Array) -> Array:
    return confusion_matrix(mapped_classes(probability), truth, classes=len(CLASSES))


def _ice_iou(table: Array) -> float:
    ice = list(ICE_CLASSES)
    hit = table[np.ix_(ice, ice)].sum()
    return round(float(hit / max(1, table[ice].sum() + table[:, ice].sum() - hit)), 4)


def _card(
    parent: Ensemble,
    region: PreparedRegion,
    entries: list[dict[str, Any]],
    tuning: Tuning,
    territories: Territories,
) -> dict[str, Any]:
    measured = ("metrics", "calibration_metrics", "calibration_regions", "recipe", "command")
    card = {k: v for k, v in parent.card.items() if k not in measured}
    held = [
        TrainingRegion(
            name=_part(region, fold),
            seed=region.seed,
            fold=fold,
            bbox=region.bbox,
            glaciers=len(territories.held_out(fold)),
            ice_km2=round(territories.ice_of(fold) * region.grid.pixel_area_km2, 3),
            area=territories.outline(fold, region.grid),
        )
        for fold in sorted(set(territories.folds))
    ]
    return card | {
        "name": f"{parent.name}-{region.name}",
        "summary": f"{parent.name}, fine-tuned on {region.name}; folds hold out glaciers of it.",
        "members": entries,
        "regions": [*parent.card["regions"], *(r.to_dict() for r in held)],
        "parent": {
            "name": parent.name,
            "fingerprint": parent.fingerprint,
            "members": {m.name: m.sha256 for m in parent.members},
            **{k: parent.card[k] for k in measured if k in parent.card},
        },
        "fine_tuning": {
            "region": region.name,
            "fingerprint": region.fingerprint,
            "seasons": list(region.seasons),
            "tuning": asdict(tuning),
            "held_out": {
                str(part.fold): [_glacier(region, g) for g in territories.held_out(part.fold)]
                for part in held
            },
        },
        "area_calibration": parent.area_calibration
        | {
            "source": f"factors of {parent.name}, not measured again after fine-tuning: "
            f"{parent.area_calibration.get('source', 'source not told')}"
        },
    }
