"""The training of one network: a plain loop, which can be cut off and go on at any step.

Plain, and not Lightning's: the recipe fits on a page and can be read where it runs, one member is
one process, a resumed training has to meet the uninterrupted one bit by bit (every random state is
in the checkpoint), and the engine needs no further dependency.

One law: what a step does follows from the state before it alone. That state is weights, their
average, the optimiser's moments, the place in the schedule, and two random states: the sampler's
generator and torch's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, NoReturn, Protocol, get_args

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from catalog.cube import ICE_CLASSES, UNKNOWN
from catalog.errors import DataError, UsageError
from model_serving.checkpoints import Checkpoint, Checkpoints
from model_serving.glacier_seg import GlacierSeg
from model_serving.metrics import confusion_matrix

__all__ = [
    "Fit",
    "FitSettings",
    "FixedWindows",
    "History",
    "Loss",
    "Precision",
    "Sampler",
    "Validate",
    "fit",
]

Batch = tuple[torch.Tensor, torch.Tensor]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Validate = Callable[[nn.Module], dict[str, float]]
Precision = Literal["bfloat16", "float32"]

_LONELY = 50
# ^ batches in a row with one class only, after which there is nothing to tell apart


class Sampler(Protocol):
    """Where batches come from."""

    rng: np.random.Generator
    """Source of all its random numbers; its state is its only state."""
    drawn: Sequence[str]
    """What the windows of the last batch were cut from, in words."""

    def batch(self) -> Batch:
        """Inputs ``(batch, channel, y, x)`` float32, labels ``(batch, y, x)`` int64."""


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How one network is trained: AdamW, one cycle, an average of the weights."""

    steps: int = 600
    learning_rate: float = 3e-3
    """At the peak of the cycle."""
    weight_decay: float = 0.01
    warm_up: float = 0.2
    """Share of the steps in which the rate rises."""
    ema_decay: float = 0.98
    """Of the moving average of the weights, which is what is served."""
    restraint: float = 1e-3
    """Weight of the mean square of what the stages put out (Merity et al. 2017)."""
    checkpoint_every: int = 100
    """Steps; what is lost at most when a training is cut off."""
    validate_every: int = 0
    """Steps; 0 = never."""
    patience: int = 0
    """Validations without a better score after which training ends; 0 = it never ends early."""
    keep_statistics: bool = False
    """Leave mean and variance of batch normalisations as they are: for fine-tuning."""
    precision: Precision = "bfloat16"
    """Of what autocast may halve; a processor without bfloat16 is faster with ``float32``."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(
                f"no training has the precision {self.precision!r}; choose one of "
                f"{', '.join(get_args(Precision))}"
            )
        if (
            self.steps < 1
            or self.checkpoint_every < 1
            or min(self.validate_every, self.patience) < 0
        ):
            raise UsageError(
                f"steps {self.steps} and checkpoint_every {self.checkpoint_every} must be at "
                f"least 1, validate_every {self.validate_every} and patience {self.patience} not "
                "negative"
            )


@dataclass(slots=True)
class History:
    """What happened in a training so far."""

    losses: list[float] = field(default_factory=list)
    """Of each step."""
    seconds: list[float] = field(default_factory=list)
    """That each step took."""
    validations: list[dict[str, float]] = field(default_factory=list)
    """Scores, each with the ``step`` after which it was measured."""
    best_step: int = 0
    """Steps done by the weights that scored best; 0 where nothing was validated."""
    lonely: int = 0
    """Batches in a row, up to now, with one and the same class only."""

    def tenths(self) -> list[float]:
        """Mean loss of each tenth of the steps."""
        tenth = max(1, math.ceil(len(self.losses) / 10))
        return [
            float(np.mean(self.losses[i : i + tenth])) for i in range(0, len(self.losses), tenth)
        ]


@dataclass(frozen=True, slots=True)
class Fit:
    """A trained network and how it came about."""

    network: nn.Module
    """The averaged weights, in evaluation mode, on the CPU: the best validated, else the last."""
    history: History


def fit(
    network: nn.Module,
    sampler: Sampler,
    settings: FitSettings,
    *,
    loss: Loss,
    validate: Validate | None = None,
    checkpoints: Checkpoints | None = None,
    record: Callable[[History], None] | None = None,
) -> Fit:
    """Train a network, or go on where its last checkpoint was written.

    On a GPU and on a CPU alike the network runs under autocast to bfloat16 unless the settings say
    otherwise, which needs no scaling of the loss; Glacier-Seg lets it reach its head and its detail
    only.

    Early stopping and the one cycle go together like this. The cycle is laid out for all
    ``steps``. What is validated is the moving average of the weights, which is smooth at any rate.
    Scores count from the peak of the cycle on: before it the rate still rises, and a score that
    falls tells nothing. From there on the best average is kept, and ``patience`` validations
    without a better one end the training with it.

    Parameters
    ----------
    network
        With the weights to start from; drawn after the caller has seeded torch.
    sampler
        Where batches come from.
    settings
        How.
    loss
        Of logits ``(b, class, y, x)`` and labels ``(b, y, x)``.
    validate
        Scores of a network in evaluation mode on data of the training side that no batch shows;
        ``score`` among them is the higher the better. It must not draw random numbers.
    checkpoints
        Where the state is kept every ``checkpoint_every`` steps; the caller deletes it.
    record
        Called with the history at every checkpoint and at the end.

    Raises
    ------
    DataError
        ``loss-not-finite``, ``input-not-finite``, ``labels-strange``, ``empty-batch`` or
        ``one-class``, with the step and what its batch was cut from; the last checkpoint stays.
    StoreError
        Where a checkpoint cannot be written or read.
    """
    run = _Run(network, settings, loss)
    if checkpoints is not None:
        run.restore(checkpoints.load(), sampler)
    peak = settings.warm_up * settings.steps
    while run.step < settings.steps and not _worn_out(run.history, settings):
        began = time.perf_counter()
        run.advance(sampler, checkpoints)
        last = run.step == settings.steps
        if (
            validate is not None
            and settings.validate_every
            and (last or run.step % settings.validate_every == 0)
        ):
            run.compare(validate(run.average.module), counts=run.step > peak)
        run.history.seconds.append(round(time.perf_counter() - began, 4))
        if last or run.step % settings.checkpoint_every == 0:
            if checkpoints is not None:
                checkpoints.save(run.state(sampler))
            if record is not None:
                record(run.history)
    if record is not None:
        record(run.history)
    return Fit(run.result(), run.history)


def _worn_out(history: History, settings: FitSettings) -> bool:
    since = sum(v["step"] > history.best_step > 0 for v in history.validations)
    return bool(settings.patience) and since >= settings.patience


class _Run:
    """The state of a training."""

    def __init__(self, network: nn.Module, settings: FitSettings, loss: Loss) -> None:
        self.settings, self.loss, self.history = settings, loss, History()
        self.device = torch.device(settings.device)
        self.network = network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = AveragedModel(
            self.network,
            multi_avg_fn=get_ema_multi_avg_fn(settings.ema_decay),  # type: ignore[no-untyped-call]
            use_buffers=True,
        )
        self.trained = [p for p in self.network.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.trained,
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=self.device.type == "cpu",
        )
        rise = settings.warm_up
        if math.isclose(rise * settings.steps, 1.0):
            rise = 2.0 / settings.steps
            # ^ torch divides by the steps of the rise but one
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser,
            settings.learning_rate,
            total_steps=settings.steps,
            pct_start=rise,
        )
        self.best: dict[str, torch.Tensor] = {}
        self._learning()

    def _learning(self) -> None:
        """Put the network into training mode, as far as its statistics may change."""
        self.network.train()
        self.average.eval()
        if self.settings.keep_statistics:
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.history.losses)

    def advance(self, sampler: Sampler, checkpoints: Checkpoints | None) -> None:
        """One step of the optimiser."""
        x, labels = sampler.batch()
        stop = _Stop(self.step, sampler.drawn, checkpoints)
        self._check(x, labels, stop)
        x, labels = x.to(self.device), labels.to(self.device)
        x = x.contiguous(memory_format=torch.channels_last)
        half = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            logits, stages = _outputs(self.network, x)
        _check_labels(labels, logits.shape[1], stop)
        loss = self.loss(logits, labels)
        if not torch.isfinite(loss):
            stop.because(f"the loss became {loss.item()}", kind="loss-not-finite")
        total = loss
        if stages:
            squares = torch.stack([_mean_square(stage) for stage in stages]).sum()
            total = loss + self.settings.restraint * squares
        self.optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        length = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        if not torch.isfinite(length):
            stop.because(f"the gradient became {length.item()}", kind="loss-not-finite")
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.network)
        self.history.losses.append(float(loss.detach()))

    def _check(self, x: torch.Tensor, labels: torch.Tensor, stop: _Stop) -> None:
        if not len(x) or not labels.numel():
            stop.because("the batch holds no pixel", kind="empty-batch")
        if not torch.stack(x.aminmax()).isfinite().all():
            stop.because("inputs are not finite", kind="input-not-finite")
        unknown = labels == UNKNOWN
        least = labels.masked_fill(unknown, UNKNOWN + 1).min()
        alone = bool(labels.masked_fill(unknown, -1).max() <= least)
        self.history.lonely = self.history.lonely + 1 if alone else 0
        if self.history.lonely >= _LONELY:
            stop.because(f"{_LONELY} batches in a row hold one class at most", kind="one-class")

    def compare(self, scores: dict[str, float], *, counts: bool) -> None:
        """Note a validation, and keep the average where it is the best so far."""
        kept = {v["step"]: v["score"] for v in self.history.validations}
        best = kept.get(self.history.best_step, -math.inf)
        self.history.validations.append({"step": self.step} | scores)
        if counts and scores["score"] > best:
            self.history.best_step = self.step
            self.best = {k: v.clone() for k, v in self.average.module.state_dict().items()}

    def result(self) -> nn.Module:
        """The average that was best, else the last."""
        if self.best:
            self.average.module.load_state_dict(self.best)
        network: nn.Module = self.average.module
        return network.cpu().eval()

    # --- what a checkpoint holds ---

    def _modules(self) -> dict[str, dict[str, torch.Tensor]]:
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
        }

    def state(self, sampler: Sampler) -> Checkpoint:
        """Everything that the next step follows from."""
        tensors = {f"{p}/{k}": v for p, state in self._modules().items() for k, v in state.items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for i, parameter in enumerate(self.trained):
            moments = self.optimiser.state[parameter]
            tensors |= {f"moments/{i}/{k}": v for k, v in moments.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(self.device)
        groups = [
            {k: v for k, v in group.items() if k != "params"}
            for group in self.optimiser.param_groups
        ]
        facts = {
            "sampler": sampler.rng.bit_generator.state,
            "optimiser": groups,
            "schedule": self.schedule.state_dict(),
            "history": asdict(self.history),
        }
        return Checkpoint(self.step, tensors, facts)

    def restore(self, saved: Checkpoint | None, sampler: Sampler) -> None:
        """Take up a checkpoint; nothing happens where there is none."""
        if saved is None:
            return
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in saved.tensors.items():
            part, _, rest = name.partition("/")
            parts.setdefault(part, {})[rest] = tensor
        self.network.load_state_dict(parts["network"])
        self.average.load_state_dict(parts["average"])
        self.best = {k: v.to(self.device) for k, v in parts.get("best", {}).items()}
        for name, tensor in parts["moments"].items():
            number, _, key = name.partition("/")
            parameter = self.trained[int(number)]
            # In the parameter's own layout: other strides would sum in another order.
            same = tensor.shape == parameter.shape and key != "step"
            moment = torch.empty_like(parameter).copy_(tensor) if same else tensor
            self.optimiser.state[parameter][key] = moment
        for group, values in zip(
            self.optimiser.param_groups, saved.facts["optimiser"], strict=True
        ):
            group.update(values)
        self.schedule.load_state_dict(saved.facts["schedule"])
        self.history = History(**saved.facts["history"])
        sampler.rng.bit_generator.state = saved.facts["sampler"]
        torch.set_rng_state(parts["random"]["cpu"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(parts["random"]["cuda"], self.device)


def _outputs(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and what the stages put out where the network has stages that can run away."""
    if isinstance(network, GlacierSeg):
        stages = network.features(x)
        return network.classified(stages), stages
    logits: torch.Tensor = network(x)
    return logits, []


def _mean_square(x: torch.Tensor) -> torch.Tensor:
    """Mean square of all numbers.

    By way of the norm, whose gradient lies in memory as ``x`` does: that of a mean does not, and
    every pass over it from there on would jump through memory.
    """
    length: torch.Tensor = torch.linalg.vector_norm(x, dtype=torch.float32)
    return length.square() / x.numel()


def _check_labels(labels: torch.Tensor, classes: int, stop: _Stop) -> None:
    strange = labels[(labels != UNKNOWN) & ((labels < 0) | (labels >= classes))]
    if len(strange):
        stop.because(
            f"labels {', '.join(map(str, sorted(set(strange.tolist()))))} are none of 0 to "
            f"{classes - 1}",
            kind="labels-strange",
        )


@dataclass(frozen=True, slots=True)
class _Stop:
    """Says where a training stopped."""

    step: int
    drawn: Sequence[str]
    checkpoints: Checkpoints | None

    def because(self, reason: str, *, kind: str) -> NoReturn:
        """Stop.

        Raises
        ------
        DataError
            Always.
        """
        kept = None if self.checkpoints is None else self.checkpoints.last_step()
        end = "there is no checkpoint"
        if self.checkpoints is not None and kept is not None:
            end = f"the checkpoint after {kept} steps is kept in {self.checkpoints.folder}"
        raise DataError(
            f"{reason} at step {self.step}, batch {self.step}: windows "
            f"{'; '.join(self.drawn) or 'none'}; {end}",
            kind=kind,
        )


class FixedWindows:
    """Scores of a network on windows that are the same every time.

    Parameters
    ----------
    batches
        Inputs and labels, of the training side, shown by no batch of the training.
    loss
        The training's own.

    Raises
    ------
    DataError
        ``empty-validation`` where no pixel of them is known.
    """

    def __init__(self, batches: Sequence[Batch], loss: Loss) -> None:
        self.batches, self.loss = list(batches), loss
        if not any(bool((labels != UNKNOWN).any()) for _, labels in self.batches):
            raise DataError("no pixel of the validation windows is known", kind="empty-validation")

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Mean loss, ``score`` = mean IoU of the classes there, IoU of ice where there is any."""
        losses, table = [], np.zeros((0, 0), np.int64)
        device = next(network.parameters()).device
        for x, labels in self.batches:
            logits = network(x.to(device, memory_format=torch.channels_last))
            losses.append(float(self.loss(logits, labels.to(device))))
            classes = logits.shape[1]
            found = logits.argmax(dim=1).cpu().numpy()
            counted = confusion_matrix(found, labels.numpy(), classes=classes)
            table = counted if not table.size else table + counted
        either = table.sum(axis=0) + table.sum(axis=1) - np.diag(table)
        there = table.sum(axis=1) > 0
        ice = [c for c in ICE_CLASSES if c < len(table)]
        hit = table[np.ix_(ice, ice)].sum()
        union = table[ice].sum() + table[:, ice].sum() - hit
        scores = {
            "loss": round(float(np.mean(losses)), 6),
            "score": round(float((np.diag(table)[there] / either[there]).mean()), 6),
        }
        return scores | ({"ice_iou": round(float(hit / union), 6)} if union else {})
