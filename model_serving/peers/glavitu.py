"""GlaViTU (Maslov et al. 2023, IGARSS; 2025): a transformer, then a U-Net, of glaciers.

Built from what the papers say, not from their code. Each source of data (optical, radar, terrain)
is looked at by convolutions of its own and weighed channel by channel (squeeze and excitation, Hu
et al. 2018), and the sources are fused; a transformer over patches sees the wide context (SETR,
Zheng et al. 2021, with its progressive upsampling); a residual U-Net (Zhang et al. 2018) sees the
fused image beside what the transformer makes of it, and draws the classes.

The papers give a size (a tenth of SETR-B/16, a third of ResU-Net: about 10 M) and not all widths.
Those of the U-Net are of Zhang et al., patch and number of blocks of SETR-B/16; the width of the
transformer is chosen so that the size comes out. The auxiliary output by which the authors
supervise the transformer as well is left out: all networks here are trained by one loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from catalog.errors import UsageError
from model_serving.features import CHANNELS, GROUPS
from model_serving.peers.convolutional import convolve

__all__ = ["GlaViTU"]

_GRID = 24
# ^ positions are learnt for so many patches an axis (384 px, the papers' tiles)
_SQUEEZE = 16
# ^ reduction of squeeze and excitation (Hu et al. 2018, section 3.3)


class _Source(nn.Module):
    """One source of data: convolved, its channels weighed by what the whole window shows."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.look = convolve(channels, width, times=2)
        hidden = max(1, width // _SQUEEZE)
        self.weigh = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1), nn.Sigmoid()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.look(x)
        weighed: torch.Tensor = x * self.weigh(functional.adaptive_avg_pool2d(x, 1))
        return weighed


class _Context(nn.Module):
    """SETR: a transformer over patches, drawn at full resolution by doubling four times."""

    def __init__(self, inside: int, outside: int, *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(inside, width, 16, stride=16)
        self.place = nn.Parameter(torch.zeros(1, width, _GRID, _GRID))
        nn.init.trunc_normal_(self.place, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        insides = (width, *[outside] * 3)
        self.draw = nn.ModuleList(convolve(i, outside) for i in insides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = self.embed(x)
        places = functional.interpolate(
            self.place, image.shape[-2:], mode="bicubic", align_corners=False
        )
        image = image + places
        tokens = image.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        drawn: torch.Tensor = self.norm(tokens).transpose(1, 2).reshape(image.shape)
        for draw in self.draw:
            drawn = functional.interpolate(
                draw(drawn), scale_factor=2.0, mode="bilinear", align_corners=False
            )
        return drawn


class _Residual(nn.Module):
    """A residual unit with identity mapping (Zhang et al. 2018, fig. 1b)."""

    def __init__(self, inside: int, outside: int, *, stride: int = 1) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.BatchNorm2d(inside),
            nn.ReLU(),
            nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
        )
        self.skip = nn.Conv2d(inside, outside, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.way(x) + self.skip(x)
        return out


class _ResUNet(nn.Module):
    """Deep residual U-Net (Zhang et al. 2018, table 1): three levels and a bridge."""

    def __init__(self, channels: int, classes: int, widths: Sequence[int]) -> None:
        super().__init__()
        insides = (channels, *widths[:-1])
        self.down = nn.ModuleList(
            _Residual(i, o, stride=2 if k else 1)
            for k, (i, o) in enumerate(zip(insides, widths, strict=True))
        )
        pairs = list(zip(widths[1:], widths[:-1], strict=True))
        self.up = nn.ModuleList(_Residual(deep + flat, flat) for deep, flat in reversed(pairs))
        self.classify = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = []
        for down in self.down:
            x = down(x)
            levels.append(x)
        levels.pop()
        for up in self.up:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = up(torch.cat([levels.pop(), x], dim=1))
        out: torch.Tensor = self.classify(x)
        return out


class GlaViTU(nn.Module):
    """The network.

    Parameters
    ----------
    channels, classes
        Of its input and of its logits.
    sources
        How many channels each source of data has, in their order; by default those of
        :data:`model_serving.features.GROUPS`, or one source where there are not as many channels.
    fused
        Channels of the fused image.
    width, depth, heads
        Of the transformer.
    widths
        Channels of the levels of the U-Net.

    Raises
    ------
    UsageError
        Where the sources do not have as many channels as the input.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        sources: Sequence[int] | None = None,
        fused: int = 32,
        width: int = 96,
        depth: int = 12,
        heads: int = 4,
        widths: Sequence[int] = (64, 128, 256, 512),
    ) -> None:
        super().__init__()
        if sources is None:
            usual = [part.stop - part.start for part in GROUPS.values()]
            sources = usual if channels == len(CHANNELS) else [channels]
        if sum(sources) != channels:
            raise UsageError(
                f"sources of {list(sources)} channels do not make {channels}", kind="network-unfit"
            )
        self.split = list(sources)
        self.sources = nn.ModuleList(_Source(count, fused) for count in sources)
        self.fuse = nn.Conv2d(fused * len(self.split), fused, 1)
        self.context = _Context(fused, fused, width=width, depth=depth, heads=heads)
        self.draw = _ResUNet(2 * fused, classes, widths)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, class, y, x)``."""
        parts = zip(self.sources, torch.split(x, self.split, dim=1), strict=True)
        fused = self.fuse(torch.cat([source(part) for source, part in parts], dim=1))
        out: torch.Tensor = self.draw(torch.cat([fused, self.context(fused)], dim=1))
        return out
