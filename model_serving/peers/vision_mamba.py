"""Vision Mamba (Zhu et al. 2024): image patches mixed by selective scans in both directions.

The tiny form of the paper (section 3.4 and table 1): patches of 16 px, 24 blocks of width 192,
expansion 2, 16 states. What it takes from Mamba is as there (Gu and Dao 2023): a causal convolution
of 4 tokens, step sizes of rank width / 16. There is no class token, for there is no class of an
image. As in the paper's section 4.2 the patches are segmented by UPerNet (Xiao et al. 2018), fed
from four depths brought to strides 4, 8, 16 and 32; how wide that is the paper does not state: here
as wide as the blocks.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from model_serving.peers.convolutional import convolve
from model_serving.selective_scan import selective_scan

__all__ = ["VisionMamba"]

_TAPS, _EXPAND = 4, 2
_GRID = 14
# ^ positions are learnt for so many patches an axis (224 px) and stretched over others
_POOLED = (1, 2, 3, 6)
# ^ cells an axis of the pyramid pooling (Zhao et al. 2017)


class _Direction(nn.Module):
    """What each direction of a block has of its own: convolution, selection and scan."""

    def __init__(self, inner: int, state: int, rank: int) -> None:
        super().__init__()
        self.rank, self.state = rank, state
        self.mix = nn.Conv1d(inner, inner, _TAPS, padding=_TAPS - 1, groups=inner)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.step = nn.Linear(rank, inner)
        self.log_rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.direct = nn.Parameter(torch.ones(inner))
        # Steps start log-uniform in [0.001, 0.1] (Gu and Dao); the bias inverts the softplus.
        steps = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
        with torch.no_grad():
            nn.init.uniform_(self.step.weight, -(rank**-0.5), rank**-0.5)
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix ``(batch, token, channel)``; each token sees itself and earlier ones."""
        mixed = self.mix(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        u = functional.silu(mixed).contiguous()
        low, B, C = self.select(u).split([self.rank, self.state, self.state], dim=-1)
        delta = functional.softplus(self.step(low))
        return selective_scan(u, delta, A=-torch.exp(self.log_rate), B=B, C=C, D=self.direct)


class _Block(nn.Module):
    """Algorithm 1 of the paper: forward and backward scan, gated, summed, with a residual."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        inner = _EXPAND * width
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.inwards = nn.Linear(width, 2 * inner, bias=False)
        self.forwards = _Direction(inner, state, math.ceil(width / 16))
        self.backwards = _Direction(inner, state, math.ceil(width / 16))
        self.outwards = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """``(batch, token, width)``."""
        x, z = self.inwards(self.norm(tokens)).chunk(2, dim=-1)
        both = self.forwards(x) + self.backwards(x.flip(1)).flip(1)
        out: torch.Tensor = tokens + self.outwards(both * functional.silu(z))
        return out


class _Encoder(nn.Module):
    """Patches, their positions and the blocks; tells what four depths say."""

    def __init__(self, channels: int, *, width: int, depth: int, state: int, patch: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(torch.zeros(1, width, _GRID, _GRID))
        nn.init.trunc_normal_(self.place, std=0.02)
        self.blocks = nn.ModuleList(_Block(width, state) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.told = [depth * k // 4 - 1 for k in (1, 2, 3, 4)]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Four maps ``(batch, width, y / patch, x / patch)``, shallow first."""
        image = self.embed(x)
        places = functional.interpolate(
            self.place, image.shape[-2:], mode="bicubic", align_corners=False
        )
        image = image + places
        tokens = image.flatten(2).transpose(1, 2)
        out = []
        for k, block in enumerate(self.blocks):
            tokens = block(tokens)
            if k in self.told:
                out.append(self.norm(tokens).transpose(1, 2).reshape(image.shape))
        return out


class _UPerHead(nn.Module):
    """UPerNet: pyramid pooling of the deepest map, then a feature pyramid (Xiao et al. 2018)."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.scale = nn.ModuleList(
            [
                nn.Sequential(
                    nn.ConvTranspose2d(width, width, 2, stride=2),
                    nn.BatchNorm2d(width),
                    nn.GELU(),
                    nn.ConvTranspose2d(width, width, 2, stride=2),
                ),
                nn.ConvTranspose2d(width, width, 2, stride=2),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )
        self.pool = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in _POOLED)
        self.pooled = convolve((len(_POOLED) + 1) * width, width)
        self.across = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        self.smooth = nn.ModuleList(convolve(width, width) for _ in range(3))
        self.fuse = convolve(4 * width, width)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Logits at the resolution of the finest level."""
        levels = [scale(x) for scale, x in zip(self.scale, maps, strict=True)]
        deepest = levels[-1]
        pooled = [
            _sized(pool(functional.adaptive_avg_pool2d(deepest, cells)), deepest)
            for cells, pool in zip(_POOLED, self.pool, strict=True)
        ]
        pyramid = [self.pooled(torch.cat([deepest, *pooled], dim=1))]
        for x, across in zip(reversed(levels[:-1]), self.across, strict=True):
            pyramid.append(across(x) + _sized(pyramid[-1], x))
        finest = pyramid[-1]
        smooth = [f(x) for f, x in zip(self.smooth, pyramid[1:], strict=True)]
        stack = torch.cat([_sized(x, finest) for x in (pyramid[0], *smooth)], dim=1)
        out: torch.Tensor = self.classify(self.fuse(stack))
        return out


def _sized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


class VisionMamba(nn.Module):
    """Vision Mamba with a UPerNet head.

    Parameters
    ----------
    channels, classes
        Of its input and of its logits.
    width, depth, state
        Of the blocks; the defaults are the paper's tiny form.
    patch
        Edge of a patch, pixels; a power of two, at least 4.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        width: int = 192,
        depth: int = 24,
        state: int = 16,
        patch: int = 16,
    ) -> None:
        super().__init__()
        self.encoder = _Encoder(channels, width=width, depth=depth, state=state, patch=patch)
        self.head = _UPerHead(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, class, y, x)``."""
        # Scans stay in the input's precision, as in Glacier-Seg; autocast reaches the head.
        with torch.autocast(x.device.type, enabled=False):
            maps = self.encoder(x.contiguous())
        return _sized(self.head(maps), x)
