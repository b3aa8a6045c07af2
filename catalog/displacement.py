"""Displacement of one image against another, to a fraction of a pixel. Pure, no I/O.

Two steps, each where it is strong. Orientation correlation (Fitch et al. 2002, "Orientation
correlation", BMVC; judged best on glaciated mountains by Heid & Kaeaeb 2012, Remote Sens. Environ.
118) finds the whole pixels: it looks at the direction of gradients, so other light, another sensor
and masked pixels do not lead it astray. A least-squares fit of the band-passed images (Lucas &
Kanade 1981, with gain and bias; mean of both gradients after Benhimane & Malis 2004) finds the
fraction. Only the finest structure is used for it: shading moves with the sun the more, the larger
the slopes that cast it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import fft, ndimage

__all__ = ["WindowShift", "measure_shift"]

_MIN_USABLE = 0.25
# ^ part of a window that both images must show
_FINE_PX, _COARSE_PX = 0.7, 4.0
# ^ Gaussians between which the band-pass lies
_GRADIENT_PX = 1.0
_REACH_PX = 3
# ^ pixels nearer than this to a masked one have gradients that the mask made
_MIN_OVERLAP = 0.3
_MIN_PEAK = 0.3
_MAX_RIVAL = 0.8
# ^ the second peak against the first; repeated patterns have several of one height
_RIVAL_PX = 3
_MIN_CORRELATION = 0.5
_MIN_ISOTROPY = 0.02
# ^ smallest against largest eigenvalue of the structure tensor: along a single edge nothing can be
#   measured
_MIN_FITTED = 400
# ^ pixels; with fewer the fraction is uncertain by more than a tenth
_STEPS, _STOP_PX, _MAX_FRACTION_PX = 30, 1e-4, 1.0
_HUBER = 1.5

_Image = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class WindowShift:
    """How far one window's image lies from the other."""

    dx_m: float
    """Eastwards along the rows, metres."""
    dy_m: float
    """Northwards against the columns, metres."""
    quality: float
    """Correlation of the band-passed images once they lie on each other, 0 to 1."""


def measure_shift(
    reference: npt.ArrayLike, moving: npt.ArrayLike, usable: npt.ArrayLike, resolution_m: float
) -> WindowShift | None:
    """Measure how far what ``moving`` shows lies from where ``reference`` shows it.

    Parameters
    ----------
    reference, moving : ``(y, x)``
        Images on the same pixels; gain, offset and light may differ.
    usable : ``(y, x)`` bool
        Pixels that both show, on ground that does not move.
    resolution_m
        Pixel edge in metres.

    Returns
    -------
    WindowShift or None
        None where less than a quarter is usable, where there is too little texture or only along
        one direction, where several displacements are alike, or where the two steps disagree. Up
        to a quarter of the window's edge can be found.
    """
    a, b = np.asarray(reference, np.float64), np.asarray(moving, np.float64)
    ok = np.asarray(usable, bool) & np.isfinite(a) & np.isfinite(b)
    if ok.mean() < _MIN_USABLE:
        return None
    a, b = np.where(ok, a, 0.0), np.where(ok, b, 0.0)
    whole = _whole_pixels(a, b, ok)
    if whole is None:
        return None
    found = _fraction(*_overlapping(a, b, ok, whole))
    if found is None:
        return None
    row, col, quality = found
    return WindowShift(
        (whole[1] + col) * resolution_m, -(whole[0] + row) * resolution_m, float(quality)
    )


def _whole_pixels(a: _Image, b: _Image, ok: _Mask) -> tuple[int, int] | None:
    """Rows and columns at the single peak of the orientation correlation."""
    inner = ndimage.binary_erosion(ok, iterations=_REACH_PX)
    f, g = _orientation(a, inner), _orientation(b, inner)
    if f is None or g is None:
        return None
    reach = min(a.shape) // 4
    surface = _correlation(f, g, inner, reach)
    row, col = (int(i) for i in np.unravel_index(surface.argmax(), surface.shape))
    peak = surface[row, col]
    if peak < _MIN_PEAK or not (0 < row < 2 * reach and 0 < col < 2 * reach):
        return None
    surface[
        max(row - _RIVAL_PX, 0) : row + _RIVAL_PX + 1, max(col - _RIVAL_PX, 0) : col + _RIVAL_PX + 1
    ] = -1.0
    if surface.max() > _MAX_RIVAL * peak:
        return None
    return row - reach, col - reach


def _orientation(image: _Image, inner: _Mask) -> npt.NDArray[np.complex128] | None:
    """Gradients whose length hardly counts any more; 0 beyond the mask; None where all are flat."""
    gradient = ndimage.gaussian_filter(image, _GRADIENT_PX, order=(0, 1)) + 1j * (
        ndimage.gaussian_filter(image, _GRADIENT_PX, order=(1, 0))
    )
    length = np.abs(gradient)
    usual = float(np.median(length[inner])) if inner.any() else 0.0
    if not usual > np.finfo(np.float32).tiny:
        return None
    return np.where(inner, gradient / np.hypot(length, usual), 0.0)


def _correlation(
    f: npt.NDArray[np.complex128], g: npt.NDArray[np.complex128], inner: _Mask, reach: int
) -> _Image:
    """Normalised over the pixels that overlap (Padfield 2012); lags from -reach to reach."""
    shape = [fft.next_fast_len(n + reach) for n in f.shape]
    mask = fft.fft2(inner.astype(np.float64), shape)
    energy_f, energy_g = fft.fft2(np.abs(f) ** 2, shape), fft.fft2(np.abs(g) ** 2, shape)
    products = [
        (fft.fft2(f, shape), fft.fft2(g, shape)),
        (energy_f, mask),
        (mask, energy_g),
        (mask, mask),
    ]
    lags = np.ix_(*[np.arange(-reach, reach + 1)] * 2)
    both, of_f, of_g, overlap = (fft.ifft2(np.conj(u) * v).real[lags] for u, v in products)
    enough = overlap > _MIN_OVERLAP * inner.sum()
    norm = np.sqrt(np.maximum(of_f, 1e-9) * np.maximum(of_g, 1e-9))
    return np.where(enough, both / norm, -1.0)


def _overlapping(
    a: _Image, b: _Image, ok: _Mask, shift: tuple[int, int]
) -> tuple[_Image, _Image, _Mask]:
    """Both images, and what both show, where they overlap once ``b`` is moved back by pixels."""
    here, there = [], []
    for size, step in zip(a.shape, shift, strict=True):
        here.append(slice(max(-step, 0), size - max(step, 0)))
        there.append(slice(max(step, 0), size - max(-step, 0)))
    return a[tuple(here)], b[tuple(there)], ok[tuple(here)] & ok[tuple(there)]


def _fraction(a: _Image, b: _Image, ok: _Mask) -> tuple[float, float, float] | None:
    """Rows and columns below a pixel by which ``b`` lies off, and the correlation then."""
    a, b = _band_pass(a, ok), _band_pass(b, ok)
    spline = ndimage.spline_filter(b, 3)
    inner = ndimage.binary_erosion(ok, iterations=_REACH_PX)
    if inner.sum() < _MIN_FITTED:
        return None
    rows, cols = np.indices(a.shape, dtype=np.float64)
    slope_a = [s[inner] for s in _slopes(a)]
    shift = np.zeros(2)
    for _ in range(_STEPS):
        moved = ndimage.map_coordinates(
            spline, [rows + shift[0], cols + shift[1]], order=3, prefilter=False, mode="nearest"
        )
        step = _step(a[inner], moved[inner], slope_a, [s[inner] for s in _slopes(moved)])
        if step is None:
            return None
        shift += step
        if np.abs(shift).max() > _MAX_FRACTION_PX:
            return None
        if np.abs(step).max() < _STOP_PX:
            break
    else:
        return None
    correlation = float(np.corrcoef(a[inner], moved[inner])[0, 1])
    if not correlation >= _MIN_CORRELATION:
        return None
    return float(shift[0]), float(shift[1]), correlation


def _slopes(image: _Image) -> list[_Image]:
    return [np.asarray(np.gradient(image, axis=axis)) for axis in (0, 1)]


def _band_pass(image: _Image, ok: _Mask) -> _Image:
    """Structure between the two Gaussians, over usable pixels only."""
    weight = ok.astype(np.float64)
    fine, coarse = (
        ndimage.gaussian_filter(np.where(ok, image, 0.0), size)
        / np.maximum(ndimage.gaussian_filter(weight, size), 1e-6)
        for size in (_FINE_PX, _COARSE_PX)
    )
    return np.where(ok, fine - coarse, 0.0)


def _step(
    a: _Image, moved: _Image, slope_a: Sequence[_Image], slope_moved: Sequence[_Image]
) -> _Image | None:
    """One Gauss-Newton step of moved(shift + step) = gain * a + bias, far-off pixels weighed down.

    Sums are numpy's own, not those of a matrix library: they must not depend on threads.
    """
    a0, m0 = a - a.mean(), moved - moved.mean()
    power = float(np.sum(a0 * a0))
    if not power > 0:
        return None
    gain = float(np.sum(a0 * m0)) / power
    rest = m0 - gain * a0
    spread = 1.4826 * float(np.median(np.abs(rest))) + 1e-12
    weight = 1.0 / np.maximum(1.0, np.abs(rest) / (_HUBER * spread))
    columns = [
        -0.5 * (slope_moved[0] + gain * slope_a[0]),
        -0.5 * (slope_moved[1] + gain * slope_a[1]),
        a,
        np.ones_like(a),
    ]
    normal = np.array([[np.sum(weight * p * q) for q in columns] for p in columns])
    right = np.array([np.sum(weight * p * moved) for p in columns])
    low, high = np.linalg.eigvalsh(normal[:2, :2])
    if not (high > 0 and low > _MIN_ISOTROPY * high):
        return None
    try:
        solved: _Image = np.linalg.solve(normal, right)
    except np.linalg.LinAlgError:
        return None
    return np.clip(solved[:2], -0.5, 0.5)
