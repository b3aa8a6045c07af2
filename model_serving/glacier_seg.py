"""Glacier-Seg: a 0.68 M-parameter Mamba-Transformer-CNN for glacier segmentation.

Four stages halve the image and mix tokens by a selective scan; a SegFormer-like head fuses them at
half resolution. Built from the published description (embedding widths 16, 32, 64, 128, one block a
stage, Mamba with state 16, kernel 4, expansion 2, MLP ratio 4, RMS normalisation, head width 128)
with hyper-parameters that reproduce its parameter counts: 677,077 with involution embeddings in the
first two stages at 11 channels and one class, 682,369 with convolutions everywhere.

A token sees all tokens before it in scan order and none after. So the receptive field of a pixel is
everything above it in its window and, through convolutions and upsampling, some 30 pixels below;
with two or four directions, or stages that take turns, it is the whole window.

The defaults are the published form. Two things it lacks can be had: stages that scan in ways of
their own, which costs nothing, and classes drawn at full resolution, see :class:`Detail`. The form
that has both is ``glacier-seg`` in :mod:`model_serving.networks`.

Needs torch and numpy only.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from model_serving.selective_scan import Backend, available_backends, selective_scan

__all__ = ["GlacierSeg", "GlacierSegConfig"]

Embedding = Literal["involution", "convolution"]
_WAYS = "><v^"
# ^ along the rows and back, along the columns and back


@dataclass(frozen=True, slots=True)
class GlacierSegConfig:
    """Shape of a Glacier-Seg network. The defaults are the published form."""

    channels: int = 11
    """Input channels."""
    classes: int = 4
    """Output classes."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of each stage."""
    embeddings: tuple[Embedding, ...] = ("involution", "involution", "convolution", "convolution")
    """How each stage halves its input."""
    state: int = 16
    """States of the selective scan per channel."""
    expand: int = 2
    """Inner channels of the scan per outer channel."""
    kernel: int = 4
    """Length of the causal convolution before the scan, tokens."""
    mlp_ratio: int = 4
    """Hidden width of the MLP per channel."""
    head_width: int = 128
    """Channels of the head."""
    directions: int | tuple[str, ...] = 1
    """Ways the tokens of each stage are scanned, as arrows: ``>`` along the rows, ``<`` backwards,
    ``v`` along the columns, ``^`` backwards. All ways of a stage share their weights and are
    averaged, so that the parameters stay the same. A number, 1, 2 or 4, stands for the first so
    many of ``><v^`` in every stage."""
    detail: int = 0
    """Channels in which the outlines are redrawn at full resolution; 0 for none."""
    drop_path: float = 0.2
    """Rate at which the last stage drops a residual branch in training; earlier stages less."""

    def __post_init__(self) -> None:
        if isinstance(self.directions, int):
            if self.directions not in (1, 2, 4):
                raise ValueError(f"directions {self.directions} are none of 1, 2 and 4")
        elif len(self.directions) != len(self.widths) or not all(map(_is_ways, self.directions)):
            raise ValueError(
                f"directions {self.directions} are not some of {_WAYS} for each of "
                f"{len(self.widths)} stages"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready description, the inverse of :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GlacierSegConfig:
        """Rebuild a configuration from :meth:`to_dict` or its JSON.

        Raises
        ------
        KeyError
            Where it does not say how wide the stages are: an empty description is no network.
        """
        values = values | {"widths": values["widths"]}
        for name in ("widths", "embeddings", "directions"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return cls(**values)

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways each stage is scanned, as arrows."""
        if isinstance(self.directions, int):
            return (_WAYS[: self.directions],) * len(self.widths)
        return self.directions

    @property
    def stride(self) -> int:
        """Height and width of an input must be multiples of this many pixels."""
        return 1 << len(self.widths)


def _is_ways(ways: object) -> bool:
    """Whether these are arrows, each at most once."""
    return isinstance(ways, str) and 0 < len(ways) == len(set(ways)) and set(ways) <= set(_WAYS)


class Involution(nn.Module):
    """Halve an image by an involution: one kernel a place, shared by all channels.

    Li et al. (2021), "Involution: Inverting the Inherence of Convolution for Visual Recognition",
    with one group, a 3 x 3 kernel, reduction 4 and stride 2, followed by a pointwise convolution.
    """

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        hidden = max(1, inside // 4)
        self.reduce = nn.Conv2d(inside, hidden, 1)
        self.span = nn.Conv2d(hidden, 9, 1)
        self.mix = nn.Conv2d(inside, outside, 1)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inside, y, x)`` to ``(batch, outside, y / 2, x / 2)``."""
        kernels = self.span(torch.relu(self.reduce(functional.avg_pool2d(x, 2))))
        if _compiled(x, "auto"):
            from model_serving.compiled.involution import NumbaGather

            gathered: torch.Tensor = NumbaGather.apply(x, kernels)  # type: ignore[no-untyped-call]
            return self.norm(self.mix(gathered))  # type: ignore[no-any-return]
        padded = functional.pad(x, (1, 1, 1, 1))
        height, width = kernels.shape[-2:]
        total = torch.zeros(())
        # Nine shifted views instead of an unfolded copy nine times the size of the image.
        for k in range(9):
            row, col = divmod(k, 3)
            view = padded[..., row : row + 2 * height : 2, col : col + 2 * width : 2]
            total = total + view * kernels[:, k : k + 1]
        out: torch.Tensor = self.norm(self.mix(total))
        return out


class Convolution(nn.Module):
    """Halve an image by a 3 x 3 convolution of stride 2."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(inside, outside, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(batch, inside, y, x)`` to ``(batch, outside, y / 2, x / 2)``."""
        out: torch.Tensor = self.norm(self.mix(x))
        return out


class Mamba(nn.Module):
    """Selective state-space mixer over a token sequence (Gu and Dao 2023, section 3.4)."""

    def __init__(self, width: int, config: GlacierSegConfig) -> None:
        super().__init__()
        inner, self.state = config.expand * width, config.state
        self.rank = math.ceil(width / 16)
        self.inwards = nn.Linear(width, 2 * inner, bias=False)
        # A depthwise causal convolution over the tokens, one row of taps a channel.
        self.taps = nn.Parameter(torch.empty(inner, config.kernel))
        self.taps_bias = nn.Parameter(torch.empty(inner))
        self.select = nn.Linear(inner, self.rank + 2 * config.state, bias=False)
        self.step = nn.Linear(self.rank, inner)
        self.log_rate = nn.Parameter(
            torch.arange(1.0, config.state + 1).log().repeat(inner, 1).contiguous()
        )
        self.direct = nn.Parameter(torch.ones(inner))
        self.outwards = nn.Linear(inner, width, bias=False)
        # Steps start log-uniform in [0.001, 0.1] (ibid., appendix); the bias inverts the softplus.
        steps = torch.exp(torch.rand(inner) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3))
        with torch.no_grad():
            nn.init.uniform_(self.taps, -(config.kernel**-0.5), config.kernel**-0.5)
            nn.init.uniform_(self.taps_bias, -(config.kernel**-0.5), config.kernel**-0.5)
            nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
            self.step.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
        """Mix ``(batch, token, channel)`` along the tokens; each sees itself and earlier ones."""
        both = self.inwards(x)
        if both.shape[-1] % 32 == 0 and _compiled(both, backend):
            return self._mixed_compiled(both)
        u, gate = both.chunk(2, dim=-1)
        count, length = self.taps.shape[1], u.shape[1]
        padded = functional.pad(u, (0, 0, count - 1, 0))
        mixed: torch.Tensor = self.taps_bias
        for k in range(count):
            mixed = mixed + padded[:, k : k + length] * self.taps[:, k]
        u = functional.silu(mixed)
        low, B, C = self.select(u).split([self.rank, self.state, self.state], dim=-1)
        delta = functional.softplus(self.step(low))
        y = selective_scan(
            u, delta, A=-torch.exp(self.log_rate), B=B, C=C, D=self.direct, backend=backend
        )
        out: torch.Tensor = self.outwards(y * functional.silu(gate))
        return out

    def _mixed_compiled(self, both: torch.Tensor) -> torch.Tensor:
        """The same in one compiled function, whose way back does not go through every slice."""
        from model_serving.compiled.mixing import NumbaMixer

        select, step = self.select.weight, self.step
        rates, direct = -torch.exp(self.log_rate), self.direct
        y = NumbaMixer.apply(  # type: ignore[no-untyped-call]
            both, self.taps, self.taps_bias, select, step.weight, step.bias, rates, direct
        )
        out: torch.Tensor = self.outwards(y)
        return out


def _compiled(x: torch.Tensor, backend: Backend) -> bool:
    """Whether compiled code can be given this tensor."""
    return (
        backend in ("auto", "numba")
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and "numba" in available_backends()
    )


def _normalised(tokens: torch.Tensor, norm: nn.RMSNorm, backend: Backend) -> torch.Tensor:
    """Normalise ``(batch, token, channel)``."""
    if tokens.shape[-1] % 16 or not _compiled(tokens, backend):
        return norm(tokens)  # type: ignore[no-any-return]
    from model_serving.compiled.norm import NumbaRMSNorm

    return NumbaRMSNorm.apply(tokens, norm.weight, norm.eps)  # type: ignore[no-any-return,no-untyped-call]


class Stage(nn.Module):
    """Halve the image, then one Mamba block and one MLP block with residuals."""

    def __init__(
        self,
        inside: int,
        outside: int,
        *,
        embedding: Embedding,
        ways: str,
        drop: float,
        config: GlacierSegConfig,
    ) -> None:
        super().__init__()
        self.embed = (Involution if embedding == "involution" else Convolution)(inside, outside)
        self.norm_scan = nn.RMSNorm(outside, eps=1e-6)
        self.scan = Mamba(outside, config)
        self.norm_mlp = nn.RMSNorm(outside, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(outside, config.mlp_ratio * outside),
            nn.GELU(),
            nn.Linear(config.mlp_ratio * outside, outside),
        )
        self.drop = drop
        self.ways = ways

    def forward(self, x: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
        """``(batch, inside, y, x)`` to ``(batch, outside, y / 2, x / 2)``."""
        x = self.embed(x)
        batch, channels, height, width = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        normal = _normalised(tokens, self.norm_scan, backend).reshape(
            batch, height, width, channels
        )
        tokens = tokens + self._dropped(self._scanned(normal, backend))
        normal = _normalised(tokens, self.norm_mlp, backend)
        tokens = tokens + self._dropped(self.mlp(normal))
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)

    def _scanned(self, image: torch.Tensor, backend: Backend) -> torch.Tensor:
        """Mix ``(batch, y, x, channel)`` along each way; the mean of all, as tokens."""
        ways = []
        for way in self.ways:
            turned = image.transpose(1, 2) if way in "v^" else image
            tokens = turned.flatten(1, 2)
            tokens = self.scan(tokens.flip(1) if way in "<^" else tokens, backend=backend)
            mixed = (tokens.flip(1) if way in "<^" else tokens).reshape(turned.shape)
            ways.append(mixed.transpose(1, 2) if way in "v^" else mixed)
        mean = ways[0] if len(ways) == 1 else torch.stack(ways).mean(dim=0)
        return mean.flatten(1, 2)

    def _dropped(self, branch: torch.Tensor) -> torch.Tensor:
        """Drop whole samples of a residual branch in training (stochastic depth)."""
        if not self.training or self.drop == 0.0:
            return branch
        keep = 1.0 - self.drop
        mask = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
        return branch * mask / keep


class Head(nn.Module):
    """Fuse all stages at half resolution and classify.

    The 1 x 1 fusion is linear, so each stage is projected at its own resolution and only the sum is
    upsampled: the same numbers as fusing the upsampled stages, at a fraction of the work. And all
    that happens to a stage before the sum, projection, normalisation and fusion, is one matrix.
    """

    def __init__(self, config: GlacierSegConfig) -> None:
        super().__init__()
        wide = config.head_width
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, wide, 1, bias=False), nn.BatchNorm2d(wide))
            for w in config.widths
        )
        self.fuse = nn.ModuleList(nn.Conv2d(wide, wide, 1, bias=False) for _ in config.widths)
        self.fuse_norm = nn.BatchNorm2d(wide)
        self.smooth = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.smooth_norm = nn.BatchNorm2d(wide)
        self.classify = nn.Conv2d(wide, config.detail or config.classes, 1)

    def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
        """Logits ``(batch, class, y, x)`` at the resolution of the first stage.

        Where the network redraws them, what it redraws instead of the logits.
        """
        size = stages[0].shape[-2:]
        parts = []
        for x, project, fuse in zip(stages, self.project, self.fuse, strict=True):
            with torch.autocast(x.device.type, enabled=False):
                matrix, shift = _projected(x, project, fuse)
            part = functional.conv2d(x, matrix[..., None, None], shift)
            if part.shape[-2:] != size:
                part = functional.interpolate(part, size, mode="bilinear", align_corners=False)
            parts.append(part)
        total = functools.reduce(torch.add, parts)
        fused = torch.relu(self.fuse_norm(total))
        out: torch.Tensor = self.classify(torch.relu(self.smooth_norm(self.smooth(fused))))
        return out


def _projected(x: torch.Tensor, project: Any, fuse: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix ``(out, in)`` and shift of a projection, its normalisation and its fusion.

    Mean and variance of what is projected follow from mean and covariance of its input, which has
    fewer channels: ``W m`` and the diagonal of ``W S W^T``. So it need not be made.

    ``project`` is a 1 x 1 convolution and its batch normalisation, ``fuse`` a 1 x 1 convolution.
    """
    linear, norm = project
    weight = linear.weight[..., 0, 0]
    if norm.training:
        pixels = x.movedim(1, -1).flatten(0, 2)
        count, centre = len(pixels), pixels.mean(dim=0)
        apart = pixels - centre
        mean = weight @ centre
        variance = (weight @ (apart.T @ apart / count) * weight).sum(dim=1)
        with torch.no_grad():
            norm.num_batches_tracked += 1
            share = norm.momentum
            if share is None:
                share = 1.0 / float(norm.num_batches_tracked)
            # ^ without a momentum, statistics are means over all batches
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * count / max(1, count - 1), share)
    else:
        mean, variance = norm.running_mean, norm.running_var
    scale = norm.weight * torch.rsqrt(variance + norm.eps)
    spread = fuse.weight[..., 0, 0]
    return spread @ (scale[:, None] * weight), spread @ (norm.bias - scale * mean)


class Detail(nn.Module):
    """Draw the classes at the resolution of the input.

    The head sees squares of two pixels. Here each pixel is looked at once more, and what the head
    says around it is added before the sum is bent: it decides what the look of the pixel means.
    """

    def __init__(self, config: GlacierSegConfig) -> None:
        super().__init__()
        width = config.detail
        self.look = nn.Conv2d(config.channels, width, 3, padding=1, bias=False)
        self.look_norm = nn.BatchNorm2d(width)
        self.draw = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.draw_norm = nn.BatchNorm2d(width)
        self.classify = nn.Conv2d(width, config.classes, 1)

    def looked(self, image: torch.Tensor) -> torch.Tensor:
        """``(batch, channel, y, x)`` to ``(batch, detail, y, x)``, as of a stage 0."""
        out: torch.Tensor = self.look_norm(self.look(image))
        return out

    def forward(self, look: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, class, y, x)`` from :meth:`looked` and what the head says, doubled."""
        drawn = torch.relu(self.draw_norm(self.draw(torch.relu(look + said))))
        out: torch.Tensor = self.classify(drawn)
        return out


class GlacierSeg(nn.Module):
    """The network: ``(batch, channel, y, x)`` normalised inputs to class logits.

    Parameters
    ----------
    config
        Shape of the network.
    """

    def __init__(self, config: GlacierSegConfig | None = None) -> None:
        super().__init__()
        self.config = config or GlacierSegConfig()
        insides = (self.config.channels, *self.config.widths[:-1])
        last = max(1, len(self.config.widths) - 1)
        shapes = zip(
            insides, self.config.widths, self.config.embeddings, self.config.ways, strict=True
        )
        self.stages = nn.ModuleList(
            Stage(
                inside,
                outside,
                embedding=embedding,
                ways=ways,
                drop=self.config.drop_path * k / last,
                config=self.config,
            )
            for k, (inside, outside, embedding, ways) in enumerate(shapes)
        )
        self.head = Head(self.config)
        self.detail = Detail(self.config) if self.config.detail else None

    def forward(self, x: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
        """Class logits ``(batch, class, y, x)`` at the resolution of the input.

        Raises
        ------
        ValueError
            Where height or width is not a multiple of ``config.stride``.
        """
        return self.classified(self.features(x, backend=backend))

    def features(self, x: torch.Tensor, *, backend: Backend = "auto") -> list[torch.Tensor]:
        """What each stage makes of the input, ``(batch, width, y, x)``, finest first.

        The first is at full resolution where the network has a detail.
        """
        height, width = x.shape[-2:]
        if height % self.config.stride or width % self.config.stride:
            raise ValueError(
                f"windows must be multiples of {self.config.stride} px, found {height} x {width}"
            )
        features = []
        if self.detail is not None:
            # In training it may be as coarse as what is added to it in the head's precision.
            half = self.training and torch.is_autocast_enabled(x.device.type)
            with torch.autocast(x.device.type, enabled=half):
                features.append(self.detail.looked(x))
        # Normalisation and scan stay in the input's precision; autocast reaches head and detail,
        # which hold nine tenths of the arithmetic.
        with torch.autocast(x.device.type, enabled=False):
            for stage in self.stages:
                x = stage(x, backend=backend)
                features.append(x)
        return features

    def classified(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Class logits ``(batch, class, y, x)`` from :meth:`features`."""
        stages = features if self.detail is None else features[1:]
        doubled = functional.interpolate(
            self.head(stages), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        return doubled if self.detail is None else self.detail(features[0], doubled)
