"""Train one member: draw its windows, fit its network, write its weights and how it went.

One law: everything of a member follows from its fold, its seed, the recipe and the regions it may
see. What is finished is kept, and what was cut off goes on, if it was made by the same code from
the same of these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from catalog.cube import CLASSES, Workspace
from catalog.errors import DataError, UsageError
from model_serving.augmentation import Augmentation, augment
from model_serving.checkpoints import Checkpoints
from model_serving.datasets.sampling import Draw, WindowSource
from model_serving.ensemble import pack_member
from model_serving.features import CHANNELS, STATISTICS_STEP, Normalisation
from model_serving.fitting import (
    FitSettings,
    FixedWindows,
    History,
    Loss,
    Precision,
    Validate,
    fit,
)
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.losses import class_weights_from_counts, make_loss
from model_serving.networks import build_network
from model_serving.regions import PreparedRegion, identity_of

__all__ = [
    "METRICS",
    "Recipe",
    "WindowSampler",
    "finish_member",
    "fit_member",
    "kept_member",
    "metrics_lines",
    "served_config",
    "train_member",
    "validation_windows",
]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

METRICS = "metrics.jsonl"
_CODE = (
    "member_training",
    "fitting",
    "losses",
    "augmentation",
    "features",
    "networks",
    "glacier_seg",
    "selective_scan",
    "compiled",
    "datasets/sampling",
)
# ^ modules whose sources decide what a member becomes
_VALIDATION_WINDOWS = 32


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides what training makes, besides the regions."""

    folds: int = 5
    seeds: int = 3
    steps: int = 1100
    batch: int = 4
    window_px: int = 192
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.99
    restraint: float = 1e-3
    """Weight of the mean square of what the stages put out (Merity et al. 2017, activation
    regularisation). The head normalises these numbers, so nothing else keeps them from growing,
    and a selective scan grows with the cube of its input: some members would end with a deepest
    stage of which single windows are a hundred thousand times the rest."""
    resolution_m: float = 20.0
    serve_window_px: int = 320
    """Edge of the windows the members are served with, pixels."""
    network: str = "glacier-seg"
    """One that an ensemble can hold, see :func:`model_serving.networks.build_network`."""
    network_options: Mapping[str, Any] = field(default_factory=dict)
    loss: str = "ce_dice"
    """See :func:`model_serving.losses.make_loss`, which also tells the options."""
    loss_options: Mapping[str, float] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)
    validation_regions: int = 0
    """Regions that a member may see and that are set aside to stop its training by."""
    validate_every: int = 0
    """Steps; 0 = never, and the last weights are taken."""
    patience: int = 0
    """Validations without a better score that end a training; 0 = none does."""
    checkpoint_every: int = 100
    keep_statistics: bool = False
    """Of batch normalisations: for fine-tuning."""
    precision: Precision = "bfloat16"
    """See :class:`model_serving.fitting.FitSettings`."""
    device: str = "cpu"

    @property
    def settings(self) -> FitSettings:
        """The part that the loop of one network reads."""
        return FitSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            ema_decay=self.ema_decay,
            restraint=self.restraint,
            checkpoint_every=self.checkpoint_every,
            validate_every=self.validate_every,
            patience=self.patience,
            keep_statistics=self.keep_statistics,
            precision=self.precision,
            device=self.device,
        )


def train_member(
    *,
    fold: int,
    seed: int,
    recipe: Recipe,
    seen: Sequence[PreparedRegion],
    folder: Path,
    validating: Sequence[PreparedRegion] = (),
) -> dict[str, Any]:
    """Train the member that holds out ``fold`` on the regions it may see.

    Parameters
    ----------
    fold, seed
        Which member.
    recipe
        How.
    seen
        What windows are drawn from.
    folder
        For the weights, the member's entry of the card, its metrics, and its checkpoint until then.
    validating
        What its training is stopped by; of the training side too, and none of ``seen``.

    Returns
    -------
    dict
        Its entry of the card.

    Raises
    ------
    DataError
        ``empty-fold`` where there is no region to train on, and as
        :func:`model_serving.fitting.fit`.
    """
    name = f"member-f{fold}-s{seed}"
    if not seen:
        raise DataError(f"{name}: no region is left to train on", kind="empty-fold")
    data = [(r.name, r.fingerprint) for r in seen], [(r.name, r.fingerprint) for r in validating]
    identity = identity_of(fold, seed, asdict(recipe), data, torch.__version__, code=_CODE)
    kept = kept_member(folder, name, identity)
    if kept is not None:
        return kept
    torch.set_num_threads(1)
    torch.manual_seed(1000 * fold + seed)
    sampler = WindowSampler(seen, recipe, np.random.default_rng([fold, seed]))
    network = _built(recipe)
    fixed = validation_windows(
        validating, sampler.normalisation, recipe, np.random.default_rng([fold, seed, 1])
    )
    entry = {
        "name": name,
        "fold": fold,
        "seed": seed,
        "orientation": seed % 3,
        "trained_on": sorted(r.name for r in seen),
    }
    if validating:
        entry["validated_on"] = sorted(r.name for r in validating)
    loss = make_loss(recipe.loss, class_weights=sampler.class_weights, **recipe.loss_options)
    return fit_member(
        network,
        sampler,
        recipe,
        loss=loss,
        validate=FixedWindows(fixed, loss) if fixed else None,
        entry=entry,
        folder=folder,
        identity=identity,
    )


def fit_member(
    network: nn.Module,
    sampler: WindowSampler,
    recipe: Recipe,
    *,
    loss: Loss,
    validate: Validate | None,
    entry: dict[str, Any],
    folder: Path,
    identity: str,
) -> dict[str, Any]:
    """Fit a member's network; write its metrics as it goes, its weights, last its entry."""
    files = Workspace(folder)
    checkpoints = Checkpoints(folder, name=entry["name"], identity=identity)

    def record(history: History) -> None:
        files.put(f"{entry['name']}.{METRICS}", metrics_lines(entry, history))

    made = fit(
        network,
        sampler,
        recipe.settings,
        loss=loss,
        validate=validate,
        checkpoints=checkpoints,
        record=record,
    )
    told: dict[str, Any] = {"loss": [round(v, 4) for v in made.history.tenths()]}
    if made.history.validations:
        best, scores = made.history.best_step, made.history.validations
        told["validation"] = next((v for v in scores if v["step"] == best), scores[-1])
    entry = finish_member(
        made.network, sampler, entry=entry | told, folder=folder, identity=identity
    )
    checkpoints.delete()
    return entry


def finish_member(
    network: nn.Module,
    sampler: WindowSampler,
    *,
    entry: dict[str, Any],
    folder: Path,
    identity: str,
) -> dict[str, Any]:
    """Write a member's weights and, last, its entry of the card; return the entry."""
    weights = pack_member(_served(network))
    entry = entry | {
        "mean": list(sampler.normalisation.mean),
        "std": list(sampler.normalisation.std),
        "class_counts": sampler.class_counts.tolist(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }
    files = Workspace(folder)
    files.put(f"{entry['name']}.safetensors", weights)
    files.put(f"{entry['name']}.json", json.dumps(entry | {"identity": identity}).encode())
    return entry


def _built(recipe: Recipe) -> GlacierSeg:
    """The recipe's network, if an ensemble can hold it.

    Raises
    ------
    UsageError
        ``network-unfit`` where it is another kind.
    """
    network = build_network(
        recipe.network, channels=len(CHANNELS), classes=len(CLASSES), **recipe.network_options
    )
    return _served(network)


def _served(network: nn.Module) -> GlacierSeg:
    if not isinstance(network, GlacierSeg):
        raise UsageError(
            f"an ensemble holds forms of Glacier-Seg, not {type(network).__name__}",
            kind="network-unfit",
        )
    return network


def served_config(recipe: Recipe) -> GlacierSegConfig:
    """Shape of the recipe's network, without making its weights.

    Raises
    ------
    UsageError
        Where there is no such network, or no ensemble can hold it.
    """
    with torch.device("meta"):
        return _built(recipe).config


def kept_member(folder: Path, name: str, identity: str) -> dict[str, Any] | None:
    """Entry of a member that was trained before, by the same code on the same data."""
    finished = Workspace(folder)
    note, weights = finished.get(f"{name}.json"), finished.get(f"{name}.safetensors")
    if note is None or weights is None:
        return None
    entry: dict[str, Any] = json.loads(note)
    same = entry.pop("identity") == identity
    return entry if same and entry["sha256"] == hashlib.sha256(weights).hexdigest() else None


def metrics_lines(entry: Mapping[str, Any], history: History) -> bytes:
    """One JSON object a step: member, fold, seed, step, loss, seconds, and scores where measured.

    Steps count from 1: a line tells of the weights after so many.
    """
    who = {"member": entry["name"], "fold": entry["fold"], "seed": entry["seed"]}
    scores = {
        v["step"]: {f"validation_{k}": s for k, s in v.items() if k != "step"}
        for v in history.validations
    }
    steps = zip(history.losses, [*history.seconds, None], strict=False)
    return b"".join(
        json.dumps(
            who | {"step": step, "loss": round(loss, 6), "seconds": seconds} | scores.get(step, {})
        ).encode()
        + b"\n"
        for step, (loss, seconds) in enumerate(steps, 1)
    )


def validation_windows(
    regions: Sequence[PreparedRegion],
    normalisation: Normalisation,
    recipe: Recipe,
    rng: np.random.Generator,
    *,
    count: int = _VALIDATION_WINDOWS,
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Windows as they are, neither zoomed nor shaken, drawn around what training draws around."""
    if not regions:
        return []
    source = WindowSource(regions, window_px=recipe.window_px, zoom=(1.0, 1.0))
    out = []
    for start in range(0, count, recipe.batch):
        cuts = [source.read(source.draw(rng)) for _ in range(min(recipe.batch, count - start))]
        x = np.stack([normalisation.apply(raw) for raw, _ in cuts])
        y = np.stack([labels for _, labels in cuts]).astype(np.int64)
        out.append((torch.from_numpy(x), torch.from_numpy(y)))
    return out


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
    allowed
        For each region ``(y, x)`` bool, or None = everywhere: windows lie in allowed pixels.
    normalisation
        Taken instead of one measured on the regions.

    Raises
    ------
    DataError
        ``one-class`` where fewer than two classes are known in the regions.
    """

    def __init__(
        self,
        regions: Sequence[PreparedRegion],
        recipe: Recipe,
        rng: np.random.Generator,
        *,
        allowed: Sequence[Mask | None] | None = None,
        normalisation: Normalisation | None = None,
    ) -> None:
        self.recipe, self.rng = recipe, rng
        self.regions = list(regions)
        self.source = WindowSource(
            regions, window_px=recipe.window_px, zoom=recipe.augmentation.zoom, allowed=allowed
        )
        self.drawn: Sequence[str] = ()
        samples, counts = [], np.zeros(len(CLASSES), np.int64)
        masks = [None] * len(self.regions) if allowed is None else list(allowed)
        for region, mask in zip(regions, masks, strict=True):
            x, y = region.features(), region.labels()
            few = (slice(None, None, STATISTICS_STEP),) * 2
            thin = x[(..., *few)].astype(np.float32).swapaxes(0, 1)
            if mask is not None:
                thin, y = thin[..., mask[few]], y[:, mask]
            samples.append(thin.reshape(len(thin), -1))
            counts += np.bincount(y[y < len(CLASSES)].ravel(), minlength=len(CLASSES))
        names = ", ".join(r.name for r in self.regions)
        if np.count_nonzero(counts) < 2:
            found = [CLASSES[i] for i in np.flatnonzero(counts)] or ["nothing known"]
            raise DataError(
                f"nothing can be told apart in {names}: all of it is {found[0]}", kind="one-class"
            )
        self.normalisation = normalisation or Normalisation.measured(
            np.concatenate(samples, axis=1)
        )
        self.class_counts = counts
        self.class_weights = class_weights_from_counts(counts)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs ``(batch, channel, y, x)`` float32 and labels ``(batch, y, x)`` int64."""
        drawn = [self._window() for _ in range(self.recipe.batch)]
        self.drawn = tuple(self._told(draw) for draw, _, _ in drawn)
        return torch.stack([x for _, x, _ in drawn]), torch.stack([y for _, _, y in drawn])

    def _window(self) -> tuple[Draw, torch.Tensor, torch.Tensor]:
        draw = self.source.draw(self.rng)
        raw, labels = augment(
            *self.source.read(draw),
            rng=self.rng,
            how=self.recipe.augmentation,
            window_px=self.recipe.window_px,
        )
        x = torch.from_numpy(self.normalisation.apply(raw))
        return draw, x, torch.from_numpy(labels.astype(np.int64))

    def _told(self, draw: Draw) -> str:
        region, cut = self.regions[draw.source], draw.window
        return (
            f"{region.name} {region.seasons[draw.layer]} row {cut.row} column {cut.col} "
            f"{cut.height} x {cut.width} px"
        )
