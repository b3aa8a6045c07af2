"""Random fields with a chosen spectrum, each from its own named stream of the seed."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["fractal", "ridged", "stream"]


def stream(seed: int, *names: object) -> np.random.Generator:
    """Return the generator of one layer; the same names always give the same numbers."""
    keys = tuple(zlib.crc32(str(name).encode()) for name in names)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=keys))


def fractal(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    exponent: float = 2.0,
    longest_px: float = 1e9,
    shortest_px: float = 2.0,
) -> NDArray[np.float32]:
    """Draw a Gaussian field with a power-law spectrum, mean 0 and variance 1.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        (y, x) size.
    exponent
        Amplitude falls with wavenumber to the power ``-exponent / 2 - 1 / 2``; 2 looks like relief.
    longest_px, shortest_px
        Wavelengths outside these are damped.

    Returns
    -------
    NDArray[np.float32]
        (y, x) field.
    """
    size = (
        scipy.fft.next_fast_len(shape[0], real=True),
        scipy.fft.next_fast_len(shape[1], real=True),
    )
    white = rng.standard_normal(size, dtype=np.float32)
    spectrum = scipy.fft.rfft2(white)
    fy = np.fft.fftfreq(size[0]).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(size[1]).astype(np.float32)[None, :]
    wave = np.sqrt(fy * fy + fx * fx)
    wave[0, 0] = 1.0
    gain = wave ** np.float32(-exponent / 2.0 - 0.5)
    gain *= np.exp(-((wave * np.float32(shortest_px) / 2.0) ** 2))
    gain *= 1.0 - np.exp(-((wave * np.float32(longest_px)) ** 2))
    gain[0, 0] = 0.0
    field = scipy.fft.irfft2(spectrum * gain, s=size)[: shape[0], : shape[1]]
    field -= field.mean()
    field /= max(float(field.std()), 1e-12)
    return np.ascontiguousarray(field, dtype=np.float32)


def ridged(
    rng: np.random.Generator, shape: tuple[int, int], *, longest_px: float, octaves: int = 4
) -> NDArray[np.float32]:
    """Draw a ridged multifractal in 0..1: each octave is strong only on the crests of the last."""
    total = np.zeros(shape, dtype=np.float32)
    weight = np.ones(shape, dtype=np.float32)
    amplitude = 1.0
    norm = 0.0
    for octave in range(octaves):
        wavelength = longest_px / 2.0**octave
        if wavelength < 3.0:
            break
        field = fractal(
            rng, shape, exponent=1.0, longest_px=wavelength, shortest_px=wavelength * 0.7
        )
        signal = (1.0 - np.minimum(np.abs(field), 1.5) / 1.5) ** 2
        total += np.float32(amplitude) * signal * weight
        norm += amplitude
        weight = np.clip(signal * 1.6, 0.0, 1.0)
        amplitude *= 0.5
    return total / np.float32(max(norm, 1e-6))
