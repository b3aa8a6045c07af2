"""Networks that others segment such images with, at any number of channels and classes.

One law: every peer maps normalised inputs ``(batch, channel, y, x)`` to class logits
``(batch, class, y, x)`` of the same height and width, multiples of 32, and starts from random
weights: nothing is downloaded. Those of libraries need the extra ``peers``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from catalog.errors import UsageError
from model_serving.extras import require

__all__ = ["PEERS", "Peer", "build_peer"]

_SMP = ("segmentation_models_pytorch", "timm", "torchvision")


@dataclass(frozen=True, slots=True)
class Peer:
    """A network to compare with."""

    title: str
    paper: str
    """Where it is described."""
    module: str
    """Module of this package that builds it, by its function or class :attr:`maker`."""
    maker: str
    needs: tuple[str, ...] = ()
    """Packages it is built with, besides torch."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What its maker is told, besides channels and classes."""


def _encoded(title: str, paper: str, architecture: str, encoder: str) -> Peer:
    """A network of segmentation-models-pytorch."""
    options = {"architecture": architecture, "encoder": encoder}
    return Peer(title, paper, "convolutional", "from_library", _SMP, options)


_RONNEBERGER, _CHEN = "Ronneberger et al. 2015", "Chen et al. 2018"
_HE = "He et al. 2016"

PEERS: dict[str, Peer] = {
    "unet": Peer("U-Net", _RONNEBERGER, "convolutional", "UNet"),
    "unet-resnet34": _encoded("U-Net ResNet-34", f"{_RONNEBERGER}, {_HE}", "Unet", "resnet34"),
    "unet-vgg19": _encoded(
        "U-Net VGG-19", f"{_RONNEBERGER}, Simonyan and Zisserman 2015", "Unet", "vgg19"
    ),
    "unet-resnet50": _encoded("U-Net ResNet-50", f"{_RONNEBERGER}, {_HE}", "Unet", "resnet50"),
    "unet-efficientnet-b3": _encoded(
        "U-Net EfficientNet-B3", f"{_RONNEBERGER}, Tan and Le 2019", "Unet", "efficientnet-b3"
    ),
    "deeplabv3plus-resnet34": _encoded(
        "DeepLabV3+ ResNet-34", f"{_CHEN}, {_HE}", "DeepLabV3Plus", "resnet34"
    ),
    "deeplabv3plus-resnet50": _encoded(
        "DeepLabV3+ ResNet-50", f"{_CHEN}, {_HE}", "DeepLabV3Plus", "resnet50"
    ),
    "segformer-b0": Peer(
        "SegFormer-B0", "Xie et al. 2021", "segformer", "SegFormer", ("transformers",)
    ),
    "vision-mamba": Peer("Vision Mamba tiny", "Zhu et al. 2024", "vision_mamba", "VisionMamba"),
    "glavitu": Peer("GlaViTU", "Maslov et al. 2023, 2025", "glavitu", "GlaViTU"),
}
"""Networks by name."""


def build_peer(name: str, *, channels: int, classes: int, **options: Any) -> nn.Module:
    """Build a network with fresh weights, in training mode.

    Parameters
    ----------
    name
        One of :data:`PEERS`.
    channels, classes
        Of its input and of its logits.
    options
        Keyword arguments of its maker, which go before those of :data:`PEERS`.

    Raises
    ------
    UsageError
        ``network-unknown`` where there is no such peer, ``network-unfit`` where it has no such
        option, ``runtime-missing`` where its library is not installed.
    """
    if name not in PEERS:
        raise UsageError(
            f"there is no peer {name!r}; known are {', '.join(PEERS)}", kind="network-unknown"
        )
    peer = PEERS[name]
    require(peer.title, *peer.needs, extra="peers")
    make: Callable[..., nn.Module] = getattr(import_module(f"{__name__}.{peer.module}"), peer.maker)
    try:
        return make(channels=channels, classes=classes, **{**peer.options, **options})
    except TypeError as error:
        raise UsageError(f"{name} cannot have these options: {error}", kind="network-unfit") from (
            error
        )
