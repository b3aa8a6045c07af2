"""What can be compared: networks, pixel classifiers, and networks with one part ablated.

One law: a variant differs from the model it is named after in what its name says, and in nothing
else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catalog.errors import UsageError
from model_serving.extras import require
from model_serving.features import CHANNELS, GROUPS
from model_serving.losses import LOSSES
from model_serving.networks import FORMS
from model_serving.peers import PEERS
from model_serving.peers.indices import INDICES
from model_serving.peers.pixels import PIXEL_CLASSIFIERS

__all__ = ["ABLATIONS", "MODELS", "Variant", "choose_variants"]

_OURS, _PAPER = "glacier-seg", "glacier-seg-paper"
_USUAL_LOSS = "ce_dice"


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of the table."""

    name: str
    title: str
    model: str
    """A network (see :func:`model_serving.networks.build_network`) or a pixel classifier."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the network."""
    channels: tuple[str, ...] = CHANNELS
    """Inputs it is given."""
    loss: str = _USUAL_LOSS
    learning_rate: float | None = None
    """That of the recipe where None."""
    on_truth: bool = False
    """Whether it is tuned on the truth of each map itself: a bound that no model can claim."""

    @property
    def is_network(self) -> bool:
        """Whether it is trained on windows, not on pixels."""
        return self.model not in PIXEL_CLASSIFIERS


def _networks() -> list[Variant]:
    ours = {_OURS: "Glacier-Seg", _PAPER: "Glacier-Seg, published form"}
    titles = {name: ours.get(name, name) for name in FORMS} | {n: p.title for n, p in PEERS.items()}
    return [Variant(name, title, name) for name, title in titles.items()]


def _pixel_classifiers() -> list[Variant]:
    fair = [Variant(name, title, name) for name, title in PIXEL_CLASSIFIERS.items()]
    bounds = [
        Variant(f"{name}-on-truth", f"{index.title}, tuned on the truth", name, on_truth=True)
        for name, index in INDICES.items()
    ]
    return fair + bounds


MODELS: dict[str, Variant] = {v.name: v for v in (*_networks(), *_pixel_classifiers())}
"""Models by name, as they are compared by default."""


def _modalities() -> list[Variant]:
    kept = {
        "optical": ("optical",),
        "optical+sar": ("optical", "sar"),
        "optical+terrain": ("optical", "terrain"),
    }
    return [
        Variant(
            f"{_OURS} {name}",
            f"{MODELS[_OURS].title}, {name.replace('+', ' and ')} only",
            _OURS,
            channels=tuple(c for group in groups for c in CHANNELS[GROUPS[group]]),
        )
        for name, groups in kept.items()
    ]


def _embeddings() -> list[Variant]:
    return [
        Variant(
            f"{_PAPER} {kind}s",
            f"{MODELS[_PAPER].title}, {kind}s in all stages",
            _PAPER,
            {"embeddings": (kind,) * 4},
        )
        for kind in ("convolution", "involution")
    ]


def _directions() -> list[Variant]:
    return [
        Variant(
            f"{_PAPER} {count} directions",
            f"{MODELS[_PAPER].title}, {count} scan directions",
            _PAPER,
            {"directions": count},
        )
        for count in (2, 4)
    ]


def _losses() -> list[Variant]:
    return [
        Variant(f"{_OURS} {loss}", f"{MODELS[_OURS].title}, loss {loss}", _OURS, loss=loss)
        for loss in LOSSES
        if loss != _USUAL_LOSS
    ]


def _rates() -> list[Variant]:
    """One rate for all is fair in form only: what suits one network may be too fast for another."""
    return [
        Variant(f"{name} rate 1e-3", f"{MODELS[name].title}, rate 0.001", name, learning_rate=1e-3)
        for name in (_OURS, "unet-resnet34", "segformer-b0")
    ]


ABLATIONS: dict[str, tuple[Variant, ...]] = {
    "modalities": (MODELS[_OURS], *_modalities()),
    "embeddings": (MODELS[_PAPER], *_embeddings()),
    "directions": (MODELS[_PAPER], *_directions()),
    "loss": (MODELS[_OURS], *_losses()),
    "rates": (MODELS[_OURS], MODELS["unet-resnet34"], MODELS["segformer-b0"], *_rates()),
}
"""Sets of variants, each with what it is compared with."""


def choose_variants(models: Sequence[str], ablations: Sequence[str] = ()) -> list[Variant]:
    """Look up variants, each once, in the order they are named.

    Parameters
    ----------
    models
        Of :data:`MODELS`.
    ablations
        Of :data:`ABLATIONS`.

    Raises
    ------
    UsageError
        ``benchmark-unknown`` where a name is not known or none is given, ``runtime-missing`` where
        a library that one needs is not installed.
    """
    for kind, names, known in (("model", models, MODELS), ("ablation", ablations, ABLATIONS)):
        strange = [name for name in names if name not in known]
        if strange:
            raise UsageError(
                f"there is no {kind} {', '.join(strange)}; known are {', '.join(known)}",
                kind="benchmark-unknown",
            )
    variants = [MODELS[name] for name in models]
    variants += [variant for name in ablations for variant in ABLATIONS[name]]
    if not variants:
        raise UsageError("there is nothing to compare: name models, ablations, or both",
                         kind="benchmark-unknown")  # fmt: skip
    chosen = {variant.name: variant for variant in variants}
    for variant in chosen.values():
        _require_libraries(variant)
    return list(chosen.values())


def _require_libraries(variant: Variant) -> None:
    if variant.model in PEERS:
        require(variant.title, *PEERS[variant.model].needs, extra="peers")
    elif not variant.is_network and variant.model not in INDICES:
        require(variant.title, "sklearn", extra="peers")
