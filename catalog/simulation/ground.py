"""What covers the ground in one season and how bright each piece is, before snow, light and air."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from .character import WARM, Character, character_of, plant_spectrum
from .noise import fractal, stream
from .routing import fill_depressions
from .rubble import creeping_rock, gravel_plains
from .spec import RegionSpec, style_of
from .spectra import BANDS, Spectrum, draw, load_spectra, vary
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
    "wood",
    "gravel",
    "creeping",
)
_STONES = ("rock", "granite", "dark", "red")


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


def end_members(spec: RegionSpec, character: Character | None = None) -> dict[str, Spectrum]:
    """Return the spectrum of every kind of surface.

    Measured: rock, ice, snow (firn: measured snow, darker and dirtier), water. Extrapolated: other
    lithologies and debris are the measured rock scaled per band (debris is wetter and cooler: less
    SWIR), plants are textbook spectra, turbid water is water with rock flour.

    Parameters
    ----------
    spec
        The region.
    character
        Its own colours, where it has any.
    """
    style = style_of(spec)
    brightness = style.rock_brightness
    measured = load_spectra()
    rock, water = measured["rock"], measured["water"]
    members = {
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
    }
    if character is not None:
        for name, tone in zip(_STONES, character.rocks, strict=True):
            members[name] = vary(members[name], tuple(tone))
    moraine = (1.20, 1.18, 1.16, 1.12, 1.08, 1.08)
    common = members["rock"] if character is not None else rock
    return members | {
        "moraine": vary(common, moraine, spread=0.6),
        "grass": plant_spectrum(style.plants[0]),
        "wood": plant_spectrum(style.plants[1]),
        "gravel": vary(common, tuple(1.15 * f for f in moraine), spread=0.5),
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


def _hummocks(
    spec: RegionSpec, shape: tuple[int, int], character: Character | None
) -> NDArray[np.float32]:
    longest = 16.0 if character is None else character.hummock_px
    lumps = fractal(
        stream(spec.seed, "hummocks"), shape, exponent=0.8, longest_px=longest, shortest_px=5.0
    )
    height: NDArray[np.float32] | np.float32 = np.float32(1.0)
    if character is not None:
        calm = fractal(stream(spec.seed, "calm"), shape, exponent=2.2, longest_px=220.0)
        height = np.float32(character.hummock_m / 3.2) * np.clip(1.0 + 0.5 * calm, 0.3, 2.0)
        # ^ some tongues are rough and their neighbours smooth
    return height * (3.2 * (1.0 - np.abs(lumps)) + 1.2 * lumps).astype(np.float32)


def _rock_kinds(spec: RegionSpec, shape: tuple[int, int]) -> NDArray[np.uint8]:
    longest = 350.0 if style_of(spec).varied else 900.0
    province = fractal(
        stream(spec.seed, "province"), shape, exponent=2.4, longest_px=longest, shortest_px=6.0
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
    spec: RegionSpec,
    state: IceState,
    first: IceState,
    *,
    water: NDArray[np.bool_],
    character: Character | None,
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
    if character is not None:
        lower = (low + 90.0 * patch > 350.0) & (slope < 1.0)
        kind[meadow & lower] = KINDS.index("wood")
        bare = ~(state.ice | water)
        gravel = gravel_plains(spec, state, character.outwash)
        kind[bare & gravel] = KINDS.index("gravel")
        creeping = creeping_rock(spec, state, character.rock_glaciers)
        kind[bare & creeping] = KINDS.index("creeping")
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
    limit = 2.25 if character is None else character.pond_limit
    kind[flat & (holes > limit)] = KINDS.index("pond")
    rim = flat & (holes > limit - 0.3) & (holes <= limit) & (patch > 0.2)
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
    character = character_of(spec)
    kind = _pick_kinds(spec, state, first, water=water, character=character)
    height = state.surface.copy()
    reach = ndimage.distance_transform_edt(~first.ice).astype(np.float32) * 10.0
    below = np.clip((first.ela - bed) / 80.0, 0.0, 1.0)
    ridge = np.exp(-(((reach - 70.0) / 28.0) ** 2)) * below * ~first.ice
    height += np.float32(style.moraine_m) * ridge.astype(np.float32)
    inside = np.clip(ndimage.distance_transform_edt(state.debris) / 6.0, 0.0, 1.0).astype(
        np.float32
    )
    hummocks = _hummocks(spec, shape, character)
    height += inside * hummocks
    if character is not None:
        height += np.where(kind == KINDS.index("creeping"), 0.6 * hummocks, np.float32(0.0))
    height = np.where(water, level, height).astype(np.float32)
    classes = np.zeros(shape, dtype=np.uint8)
    classes[water] = 3
    classes[state.ice] = 1
    classes[state.debris] = 2
    look = _reflectance(spec, kind, hummocks=hummocks, character=character)
    if character is not None:
        _weather(spec, state, look, kind=kind, character=character)
    return Ground(classes, look, height, state.ela, kind)


def _reflectance(
    spec: RegionSpec,
    kind: NDArray[np.uint8],
    *,
    hummocks: NDArray[np.float32],
    character: Character | None,
) -> NDArray[np.float32]:
    shape = (kind.shape[0], kind.shape[1])
    members = end_members(spec, character)
    fields = texture_fields(spec, shape, "texture")
    stone = _rock_kinds(spec, shape)
    stripes = (hummocks - hummocks.mean()) / hummocks.std()
    factors = _DEBRIS_FACTORS if character is None else tuple(character.debris)
    tones = None if character is None else _tones_of_debris(spec, shape)
    out = np.empty((6, kind.size), dtype=np.float32)
    flat = fields.reshape(6, -1)
    source = np.where(kind == KINDS.index("debris"), 20 + stone, kind)
    source = np.where(kind == KINDS.index("creeping"), 30 + stone, source).ravel()
    for number in np.unique(source):
        cells = np.flatnonzero(source == number)
        part = flat[:, cells]
        if number >= 20:
            share = 1.0 if number < 30 else 0.5
            # ^ creeping rock lies longer than debris on ice: half as unlike the rock it is made of
            spectrum = vary(
                members[_STONES[number % 10]], tuple(float(f) ** share for f in factors)
            )
            part[0] = np.float32(0.8) * part[0] + np.float32(0.6) * stripes.ravel()[cells]
        else:
            spectrum = members[KINDS[number]]
        out[:, cells] = draw(spectrum, part)
        if tones is not None and number >= 20:
            out[:, cells] *= tones.reshape(6, -1)[:, cells]
    np.minimum(out, 1.2, out=out)
    return out.reshape(6, *kind.shape)


def _tones_of_debris(spec: RegionSpec, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Factors (6, y, x) on debris: what falls on one glacier has not the colour of the next."""
    bright, warm = (
        fractal(stream(spec.seed, name), shape, exponent=2.4, longest_px=250.0)
        for name in ("bright-debris", "warm-debris")
    )
    return np.exp(0.12 * bright + 0.06 * WARM[:, None, None] * warm).astype(np.float32)


_DUST = (1.0, 0.95, 0.85, 0.75, -0.3, -0.3)
# ^ what dust takes from ice in each band: most from blue, while rock is brighter in the SWIR


def _weather(
    spec: RegionSpec,
    state: IceState,
    look: NDArray[np.float32],
    *,
    kind: NDArray[np.uint8],
    character: Character,
) -> None:
    """Dirty and crack clean ice, band firn, age rock, thin debris; ``look`` is changed."""
    shape = (kind.shape[0], kind.shape[1])
    patch = fractal(
        stream(spec.seed, "weather"), shape, exponent=1.8, longest_px=160.0, shortest_px=3.0
    )
    clean = state.ice & ~state.debris
    below = np.clip((state.ela - state.surface) / 250.0, 0.0, 1.0)
    dust = character.dirt * np.clip(0.7 * below + 0.35 * patch, 0.0, 1.0) * clean
    slope = slope_of(ndimage.gaussian_filter(state.surface, 4.0), 10.0)
    torn = np.clip((slope - 0.12) / 0.25 + 0.6 * patch - 0.3, 0.0, 1.0) * (slope < 0.8)
    layers = np.sin(2.0 * np.pi * (state.surface / 14.0 + 0.35 * patch))
    # ^ crevasses lie across the slope, and so do the edges of the years' firn
    dark = character.crevasses * torn * np.clip(layers - 0.1, 0.0, 1.0) * clean
    firn = kind == KINDS.index("firn")
    old = 0.12 * firn * np.clip(np.sin(2.0 * np.pi * state.surface / 55.0 + patch), 0.0, 1.0)
    for band in range(len(BANDS)):
        look[band] *= (1.0 - np.float32(_DUST[band]) * dust) * (1.0 - dark) * (1.0 - old)
    lain = (kind < len(_STONES)) & ~state.ice
    long = np.clip((1.0 - slope) / 0.5, 0.0, 1.0) * np.clip(0.9 + 0.4 * patch, 0.0, 1.3)
    age = np.where(lain, character.patina * long, 0.0).astype(np.float32)
    # ^ soil, lichen and varnish: steep walls shed them, and what lies on ice has none yet
    for band in range(len(BANDS)):
        look[band] *= np.exp(-age * (1.0 - np.float32(0.6) * WARM[band]))
    _thin_debris(state, look, patch=patch, character=character)


def _thin_debris(
    state: IceState,
    look: NDArray[np.float32],
    *,
    patch: NDArray[np.float32],
    character: Character,
) -> None:
    """Let ice show through debris near clean ice, and stones lie on the ice beside it.

    More than half of a pixel of debris is stones, and less than half of one of clean ice.
    """
    clean = state.ice & ~state.debris
    if not clean.any() or not state.debris.any():
        return
    inside = ndimage.distance_transform_edt(~clean).astype(np.float32) * 10.0
    beyond, there = ndimage.distance_transform_edt(~state.debris, return_indices=True)
    stones = np.clip(0.62 + 0.38 * inside / character.thin_m + 0.12 * patch, 0.55, 1.0)
    few = np.clip(0.38 - 0.38 * 10.0 * beyond / character.thin_m + 0.12 * patch, 0.0, 0.45)
    cover = np.where(state.debris, stones, np.where(clean, few, 1.0)).astype(np.float32)
    thin = (cover < 1.0) & state.debris
    stony = (cover > 0.0) & clean
    near = ndimage.distance_transform_edt(~clean, return_distances=False, return_indices=True)
    before = look.copy()
    for band in range(len(BANDS)):
        ice, rock = before[band][near[0], near[1]], before[band][there[0], there[1]]
        whole, part = before[band], cover
        look[band][thin] = (part * whole + (1.0 - part) * ice)[thin]
        look[band][stony] = ((1.0 - part) * whole + part * rock)[stony]
