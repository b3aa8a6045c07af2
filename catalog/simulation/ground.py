"""What covers the ground in one season and how bright each piece is, before snow, light and air."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .noise import fractal, stream
from .routing import fill_depressions
from .spec import RegionSpec, style_of
from .spectra import Spectrum, draw, load_spectra, vary
from .terrain import enlarge, slope_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .ice import IceState

__all__ = ["Ground", "cover_ground", "end_members", "texture_fields"]

KINDS = (
    "rock",
    "granite",
    "dark",
    "red",
    "moraine",
    "grass",
    "ice",
    "firn",
    "debris",
    "pond",
    "cliff",
    "water",
    "turbid",
)


@dataclass(frozen=True, slots=True)
class Ground:
    """Snow-free look of one season on the 10 m grid.

    Parameters
    ----------
    classes
        (y, x) uint8: 0 background, 1 clean ice, 2 debris-covered ice, 3 water.
    reflectance
        (6, y, x) float32 in the order of ``spectra.BANDS``, evenly lit.
    height
        (y, x) float32 surface with moraines and hummocks, m.
    ela
        (y, x) float32, m.
    kind
        (y, x) uint8 index into ``KINDS``.
    """

    classes: NDArray[np.uint8]
    reflectance: NDArray[np.float32]
    height: NDArray[np.float32]
    ela: NDArray[np.float32]
    kind: NDArray[np.uint8]


def end_members(brightness: float) -> dict[str, Spectrum]:
    """Return the spectrum of every kind of surface.

    Measured: rock, ice, snow (firn: measured snow, darker and dirtier), water. Extrapolated: other
    lithologies and debris are the measured rock scaled per band (debris is wetter and cooler: less
    SWIR), grass is a textbook spectrum, turbid water is water with rock flour.
    """
    measured = load_spectra()
    rock, water = measured["rock"], measured["water"]
    grass_mean = np.array([0.035, 0.062, 0.050, 0.270, 0.200, 0.110])
    grass = (grass_mean, np.outer(grass_mean, grass_mean) * (0.06 * np.eye(6) + 0.03))
    return {
        "rock": vary(rock, brightness, spread=0.8),
        "granite": vary(
            rock, tuple(brightness * f for f in (1.45, 1.4, 1.38, 1.32, 1.25, 1.25)), spread=0.7
        ),
        "dark": vary(
            rock, tuple(brightness * f for f in (0.72, 0.68, 0.66, 0.66, 0.68, 0.66)), spread=0.8
        ),
        "red": vary(
            rock, tuple(brightness * f for f in (0.82, 0.90, 1.18, 1.20, 1.15, 1.10)), spread=0.8
        ),
        "moraine": vary(
            rock, tuple(brightness * f for f in (1.20, 1.18, 1.16, 1.12, 1.08, 1.08)), spread=0.6
        ),
        "grass": grass,
        "ice": measured["ice"],
        "firn": vary(measured["snow"], (0.86, 0.87, 0.87, 0.86, 1.3, 1.3)),
        "pond": vary(water, (1.1, 1.25, 1.5, 2.0, 1.6, 1.6)),
        "cliff": vary(measured["ice"], (0.42, 0.42, 0.42, 0.42, 1.8, 1.8)),
        "water": water,
        "turbid": vary(water, (1.7, 1.6, 2.4, 3.0, 1.2, 1.2)),
        "snow": measured["snow"],
    }


_DEBRIS_FACTORS = (0.98, 0.97, 0.95, 0.90, 0.82, 0.78)
# ^ debris on ice is moister and colder than the same rock beside it; the ranges overlap widely


def texture_fields(spec: RegionSpec, shape: tuple[int, int], name: str) -> NDArray[np.float32]:
    """Return six standard normal fields (6, y, x), smooth structure first, grain last."""
    fields = np.empty((6, *shape), dtype=np.float32)
    for k in range(6):
        rng = stream(spec.seed, name, k)
        longest, shortest = ((120.0, 3.0), (200.0, 3.0), (90.0, 2.0))[min(k, 2)]
        smooth = fractal(rng, shape, exponent=1.4, longest_px=longest, shortest_px=shortest)
        grain = rng.standard_normal(shape, dtype=np.float32)
        fields[k] = np.float32(0.95) * smooth + np.float32(0.0975**0.5) * grain
        fields[k] /= fields[k].std()
    return fields


def _lakes(
    bed: NDArray[np.float32], blocked: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Standing water: pits of the ground and flat hollows, and its level on the 10 m grid."""
    rows, cols = bed.shape
    coarse = bed.reshape(rows // 4, 4, cols // 4, 4).mean(axis=(1, 3)).astype(np.float64)
    coarse = ndimage.gaussian_filter(coarse, 1.0)
    filled = fill_depressions(coarse, 0.0)
    depth = enlarge(filled - coarse, rows, order=1)
    level = enlarge(filled, rows, order=0)
    wet = (depth > 2.0) & ~blocked
    labels, count = ndimage.label(ndimage.binary_opening(wet, iterations=2))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    keep = sizes >= 60
    keep[0] = False
    return np.asarray(keep[labels]), level


def _hummocks(spec: RegionSpec, shape: tuple[int, int]) -> NDArray[np.float32]:
    lumps = fractal(
        stream(spec.seed, "hummocks"), shape, exponent=0.8, longest_px=16.0, shortest_px=5.0
    )
    return (3.2 * (1.0 - np.abs(lumps)) + 1.2 * lumps).astype(np.float32)


def _rock_kinds(spec: RegionSpec, shape: tuple[int, int]) -> NDArray[np.uint8]:
    province = fractal(
        stream(spec.seed, "province"), shape, exponent=2.4, longest_px=900.0, shortest_px=6.0
    )
    band = fractal(
        stream(spec.seed, "strata"), shape, exponent=2.0, longest_px=500.0, shortest_px=5.0
    )
    kind = np.zeros(shape, dtype=np.uint8)
    kind[province > 0.7] = 1
    kind[province < -0.7] = 2
    kind[band > 1.5] = 3
    return kind


def _pick_kinds(
    spec: RegionSpec, state: IceState, first: IceState, water: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    style = style_of(spec)
    shape = state.ice.shape
    kind = _rock_kinds(spec, shape)
    slope = slope_of(ndimage.gaussian_filter(state.surface, 1.5), 10.0)
    reach = ndimage.distance_transform_edt(~first.ice).astype(np.float32) * 10.0
    patch = fractal(
        stream(spec.seed, "patch"), shape, exponent=1.5, longest_px=150.0, shortest_px=2.0
    )
    low = state.ela - style.treeline_m - state.surface
    kind[(reach < 220.0 + 60.0 * patch) & (slope < 0.75)] = KINDS.index("moraine")
    meadow = (low + 110.0 * patch - 160.0 * np.clip(slope - 0.45, 0, None) * 4 > 0) & (
        reach > 250.0
    )
    kind[meadow & (slope < 1.1)] = KINDS.index("grass")
    kind[water] = KINDS.index("water")
    near = ndimage.distance_transform_edt(~state.ice).astype(np.float32) * 10.0
    labels, count = ndimage.label(water)
    if count:
        closest = ndimage.minimum(near, labels, np.arange(1, count + 1))
        murky = np.concatenate([[False], np.asarray(closest) < 600.0])
        kind[murky[labels]] = KINDS.index("turbid")
    kind[state.ice] = KINDS.index("ice")
    bare = state.surface - state.ela + 25.0 * patch
    kind[state.ice & (bare > 0.0)] = KINDS.index("firn")
    kind[state.debris] = KINDS.index("debris")
    holes = fractal(
        stream(spec.seed, "ponds"), shape, exponent=1.0, longest_px=22.0, shortest_px=5.0
    )
    flat = state.debris & (slope < 0.22)
    kind[flat & (holes > 2.25)] = KINDS.index("pond")
    rim = flat & (holes > 1.95) & (holes <= 2.25) & (patch > 0.2)
    kind[rim] = KINDS.index("cliff")
    return kind


def cover_ground(
    spec: RegionSpec, bed: NDArray[np.float32], state: IceState, *, first: IceState
) -> Ground:
    """Give one season's ground its cover, fine relief and reflectance.

    Parameters
    ----------
    spec
        The region.
    bed
        (y, x) float32 ground without ice, m.
    state
        Ice of the season.
    first
        Ice of the first season: where moraines lie.
    """
    style = style_of(spec)
    shape = bed.shape
    water, level = _lakes(bed, state.ice)
    kind = _pick_kinds(spec, state, first, water)
    height = state.surface.copy()
    reach = ndimage.distance_transform_edt(~first.ice).astype(np.float32) * 10.0
    below = np.clip((first.ela - bed) / 80.0, 0.0, 1.0)
    ridge = np.exp(-(((reach - 70.0) / 28.0) ** 2)) * below * ~first.ice
    height += np.float32(style.moraine_m) * ridge.astype(np.float32)
    inside = np.clip(ndimage.distance_transform_edt(state.debris) / 6.0, 0.0, 1.0).astype(
        np.float32
    )
    height += inside * _hummocks(spec, shape)
    height = np.where(water, level, height).astype(np.float32)
    classes = np.zeros(shape, dtype=np.uint8)
    classes[water] = 3
    classes[state.ice] = 1
    classes[state.debris] = 2
    return Ground(classes, _reflectance(spec, kind), height, state.ela, kind)


def _reflectance(spec: RegionSpec, kind: NDArray[np.uint8]) -> NDArray[np.float32]:
    members = end_members(style_of(spec).rock_brightness)
    fields = texture_fields(spec, (kind.shape[0], kind.shape[1]), "texture")
    stone = _rock_kinds(spec, (kind.shape[0], kind.shape[1]))
    stripes = _hummocks(spec, (kind.shape[0], kind.shape[1]))
    stripes = (stripes - stripes.mean()) / stripes.std()
    out = np.empty((6, kind.size), dtype=np.float32)
    flat = fields.reshape(6, -1)
    source = np.where(kind == KINDS.index("debris"), 20 + stone, kind).ravel()
    for number in np.unique(source):
        cells = np.flatnonzero(source == number)
        part = flat[:, cells]
        if number >= 20:
            spectrum = vary(members[KINDS[number - 20]], _DEBRIS_FACTORS)
            part[0] = np.float32(0.8) * part[0] + np.float32(0.6) * stripes.ravel()[cells]
        else:
            spectrum = members[KINDS[number]]
        out[:, cells] = np.minimum(draw(spectrum, part), 1.2)
    return out.reshape(6, *kind.shape)
