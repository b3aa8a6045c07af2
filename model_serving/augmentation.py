"""Vary in a training window what varies between scenes: light, radar, inputs, and how it lies.

Features and labels always move together, by one affine resampling a window. Nothing is made up:
what a moved window shows beyond its source is missing, and its label unknown. The channels hold no
directions (slope, relative elevation and curvature are the same however a window is turned; there
is no aspect), so no value needs turning; a channel that holds the component of a vector would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from catalog.cube import UNKNOWN
from catalog.errors import UsageError
from model_serving.datasets.sampling import ModalityShares, drop_modalities
from model_serving.features import GROUPS

__all__ = ["Augmentation", "augment"]

Array = npt.NDArray[Any]
_OPTICAL, _SAR = GROUPS["optical"], GROUPS["sar"]
_HAZE = np.array([1, 0.8, 0.6, 0.4, 0.1, 0.05])
# ^ share of the haze in each optical band: short waves scatter most


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far each property of a window is varied; 0, None or False leaves it as it is.

    The defaults are those the shipped ensemble is trained with. ``_sd`` is the standard deviation
    of a normal distribution; other ranges are uniform and lie on both sides of no change.
    """

    zoom: tuple[float, float] = (0.5, 1.5)
    """Edge of the ground shown, in windows, log-uniform; used by :meth:`cut_px`."""
    quarter_turns: bool = True
    flip: float = 0.5
    """Probability of mirroring; with quarter turns all eight orientations are equally likely."""
    rotation_deg: float = 0.0
    shear: float = 0.0
    """Pixels moved along a row for each row."""
    shift: float = 0.0
    """Along rows and columns, in edges of the window."""
    gain_sd: float = 0.12
    """Logarithm of a factor of all reflectances: sun and atmosphere."""
    band_gain_sd: float = 0.05
    """Logarithm of a factor of each band: sensors and snow grains."""
    brightness: float = 0.0
    """Added to all reflectances."""
    contrast: float = 0.15
    """Relative change of each reflectance's distance from its band's mean in the window."""
    haze_sd: float = 0.02
    """Reflectance added to blue, less to longer waves; never negative."""
    noise_sd: float = 0.004
    """Reflectance added to each pixel and band."""
    sar_gain_db: float = 0.7
    """Standard deviation of what is added to the backscatter of a window, dB."""
    looks: float | None = None
    """Number of looks of the speckle that is multiplied into the backscatter; None = no speckle."""
    lost: tuple[float, float, float] = (0.35, 0.3, 0.1)
    """Probability that a window loses radar and terrain, radar alone, terrain alone."""

    def __post_init__(self) -> None:
        sizes = "flip rotation_deg shear shift gain_sd band_gain_sd brightness contrast haze_sd"
        ranges = (*sizes.split(), "noise_sd", "sar_gain_db")
        bad = [name for name in ranges if not getattr(self, name) >= 0]
        bad += ["flip"] * (self.flip > 1) + ["contrast"] * (self.contrast >= 1)
        bad += ["zoom"] * (not 0 < self.zoom[0] <= self.zoom[1])
        bad += ["looks"] * (self.looks is not None and not self.looks >= 1)
        bad += ["lost"] * (min(self.lost) < 0 or sum(self.lost) > 1 + 1e-9)
        if bad:
            found = ", ".join(f"{name}={getattr(self, name)!r}" for name in bad)
            raise UsageError(f"no augmentation has {found}; see the fields of Augmentation")

    @classmethod
    def none(cls) -> Augmentation:
        """Leave windows as they are."""
        return cls(
            zoom=(1.0, 1.0),
            quarter_turns=False,
            flip=0.0,
            gain_sd=0.0,
            band_gain_sd=0.0,
            contrast=0.0,
            haze_sd=0.0,
            noise_sd=0.0,
            sar_gain_db=0.0,
            lost=(0.0, 0.0, 0.0),
        )

    @classmethod
    def of_the_papers(cls) -> Augmentation:
        """Add to the defaults the geometric and photometric changes of the founding papers.

        Rotation by up to 30 degrees, shear up to 0.2, shifts up to a tenth, speckle as of a
        multi-looked scene, brightness and contrast.
        """
        return cls(
            rotation_deg=30.0, shear=0.2, shift=0.1, looks=16.0, brightness=0.03, contrast=0.2
        )

    def cut_px(self, window_px: int, *, rng: np.random.Generator) -> int:
        """Edge of the ground to be cut out and resampled into a window, pixels.

        Zooming teaches other pixel sizes: 0.5 shows 10 m pixels to a network trained at 20 m.
        """
        low, high = self.zoom
        return int(window_px * math.exp(rng.uniform(math.log(low), math.log(high))))


def augment(
    raw: Array,
    labels: Array,
    *,
    rng: np.random.Generator,
    how: Augmentation,
    window_px: int | None = None,
) -> tuple[Array, Array]:
    """Vary one window.

    Parameters
    ----------
    raw : ``(channel, n, n)`` float
        See :func:`model_serving.features.raw_features`; NaN = missing.
    labels : ``(n, n)`` uint8
        Classes, 255 = unknown.
    rng
        Source of every random number.
    how
        Ranges.
    window_px
        Edge of the result, which shows the same ground; as large as the input if not given.

    Returns
    -------
    ``(channel, m, m)`` float32 and ``(m, m)`` uint8
        The inputs are not changed. Values are interpolated linearly among those that are there;
        labels, and what is missing, go by the nearest pixel, so that missing ground neither grows
        nor shrinks.

    Raises
    ------
    UsageError
        Where the window is not a square.
    """
    height, width = labels.shape
    if raw.shape[-2:] != (height, width) or height != width:
        raise UsageError(
            f"features {raw.shape} and labels {labels.shape} are no square window of one size"
        )
    x = raw.astype(np.float32)
    for vary in (_vary_light, _vary_radar, _lose_inputs):
        x = vary(x, rng, how)
    x, y = _moved(x, labels, _affine(rng, how), window_px or width)
    turns = int(rng.integers(4)) if how.quarter_turns else 0
    x, y = np.rot90(x, turns, (1, 2)), np.rot90(y, turns)
    if how.flip and rng.random() < how.flip:
        x, y = x[:, :, ::-1], y[:, ::-1]
    return np.ascontiguousarray(x), np.ascontiguousarray(y)


def _vary_light(raw: Array, rng: np.random.Generator, how: Augmentation) -> Array:
    """Vary the reflectance, whose square root the optical channels hold; ``raw`` is changed."""
    sizes = (how.gain_sd, how.band_gain_sd, how.haze_sd, how.noise_sd)
    if not any((*sizes, how.contrast, how.brightness)):
        return raw
    light = raw[_OPTICAL]
    np.square(light, out=light)
    gain = math.exp(rng.normal(0, how.gain_sd)) * np.exp(
        rng.normal(0, how.band_gain_sd, len(light))
    )
    haze = abs(rng.normal(0, how.haze_sd)) * _HAZE
    light *= gain.astype(np.float32)[:, None, None]
    light += haze.astype(np.float32)[:, None, None]
    if how.contrast:
        count = np.maximum(np.isfinite(light).sum(axis=(1, 2), keepdims=True), 1)
        mean = np.nansum(light, axis=(1, 2), keepdims=True) / count
        light[:] = mean + (light - mean) * (1 + rng.uniform(-how.contrast, how.contrast))
    if how.brightness:
        light += rng.uniform(-how.brightness, how.brightness)
    if how.noise_sd:
        light += np.float32(how.noise_sd) * rng.standard_normal(light.shape, np.float32)
    np.sqrt(np.maximum(light, 0, out=light), out=light)
    return raw


def _vary_radar(raw: Array, rng: np.random.Generator, how: Augmentation) -> Array:
    """Vary the backscatter, dB; ``raw`` is changed.

    Speckle of L looks multiplies the power by a gamma variate of mean 1 and variance 1 / L
    (Goodman 1976), independently in each pixel and polarisation.
    """
    if how.sar_gain_db:
        raw[_SAR] += rng.normal(0, how.sar_gain_db)
    if how.looks is not None:
        speckle = rng.gamma(how.looks, 1 / how.looks, raw[_SAR].shape)
        raw[_SAR] += 10 * np.log10(np.maximum(speckle, 1e-9))
    return raw


def _lose_inputs(raw: Array, rng: np.random.Generator, how: Augmentation) -> Array:
    """Lose what a region may not have, so that one network maps with or without it."""
    if not any(how.lost):
        return raw
    return drop_modalities(raw, rng=rng, shares=ModalityShares(*how.lost))


def _affine(rng: np.random.Generator, how: Augmentation) -> Array:
    """Where each pixel of the result comes from, ``(2, 3)``, in half edges from the centre, x y."""
    turned = rng.uniform(-how.rotation_deg, how.rotation_deg) if how.rotation_deg else 0.0
    shear = rng.uniform(-how.shear, how.shear) if how.shear else 0.0
    shift = 2 * rng.uniform(-how.shift, how.shift, 2) if how.shift else np.zeros(2)
    cos, sin = math.cos(math.radians(turned)), math.sin(math.radians(turned))
    turn, slant = np.array([[cos, -sin], [sin, cos]]), np.array([[1.0, shear], [0.0, 1.0]])
    return np.column_stack((turn @ slant, shift))


def _moved(raw: Array, labels: Array, affine: Array, edge: int) -> tuple[Array, Array]:
    """Resample features and labels in one go."""
    if edge == len(labels) and np.array_equal(affine, np.eye(2, 3)):
        return raw, labels
    count, there = len(raw), np.isfinite(raw)
    layers = np.zeros((2 * count, *labels.shape), np.float32)
    np.copyto(layers[:count], raw, where=there)
    layers[count:] = there
    whole = np.concatenate((layers[count:], np.float32(UNKNOWN) - labels[None]))
    # ^ beyond the source all is 0: nothing there, and label 255
    theta = torch.from_numpy(affine)[None].float()
    grid = functional.affine_grid(theta, [1, 1, edge, edge], align_corners=False)

    def sampled(layers: Array, mode: str) -> Array:
        wanted = torch.from_numpy(layers)[None]
        out = functional.grid_sample(wanted, grid, mode, "zeros", align_corners=False)
        return np.asarray(out[0].numpy())

    x, weight = np.split(sampled(layers, "bilinear"), 2)
    nearest = sampled(whole, "nearest")
    present = (nearest[:-1] > 0) & (weight > 0)
    np.divide(x, weight, out=x, where=present)
    np.copyto(x, np.nan, where=~present)
    return x, (UNKNOWN - nearest[-1]).astype(np.uint8)
