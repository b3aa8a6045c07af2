"""Convolutional peers: a U-Net of our own, and those of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from model_serving.peers.libraries import import_library

__all__ = ["UNet", "convolve", "from_library"]


def convolve(inside: int, outside: int, *, times: int = 1) -> nn.Sequential:
    """3 x 3 convolutions that keep the size, each with batch normalisation and ReLU."""
    parts: list[nn.Module] = []
    for width in [inside, *[outside] * (times - 1)]:
        parts += [
            nn.Conv2d(width, outside, 3, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*parts)


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. (2015), fig. 1, at half its widths.

    Convolutions are padded, so that a map is as large as its image, and batch-normalised, as is
    usual since; all else is the paper's: five levels of two 3 x 3 convolutions, 2 x 2 pooling,
    transposed convolutions, concatenation. With 3 channels and 1 class it has 7,763,041 parameters;
    ``widths=(64, 128, 256, 512, 1024)`` are those of the paper (31 M).

    Parameters
    ----------
    channels, classes
        Of its input and of its logits.
    widths
        Channels of each level.
    """

    def __init__(
        self, *, channels: int, classes: int, widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    ) -> None:
        super().__init__()
        insides = (channels, *widths[:-1])
        self.down = nn.ModuleList(
            convolve(i, o, times=2) for i, o in zip(insides, widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])
        )
        self.join = nn.ModuleList(convolve(2 * w, w, times=2) for w in reversed(widths[:-1]))
        self.classify = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, class, y, x)``."""
        levels: list[torch.Tensor] = []
        for i, down in enumerate(self.down):
            x = down(functional.max_pool2d(x, 2) if i else x)
            levels.append(x)
        levels.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([levels.pop(), up(x)], dim=1))
        out: torch.Tensor = self.classify(x)
        return out


def from_library(*, channels: int, classes: int, architecture: str, encoder: str) -> nn.Module:
    """Build a network of segmentation-models-pytorch, without anything of ImageNet.

    Parameters
    ----------
    channels, classes
        Of its input and of its logits.
    architecture
        Name of its class there.
    encoder
        Name of its encoder there.
    """
    smp = import_library("segmentation_models_pytorch")
    build: Callable[..., nn.Module] = getattr(smp, architecture)
    return build(encoder, encoder_weights=None, in_channels=channels, classes=classes)
