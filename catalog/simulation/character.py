"""What is drawn once for a region: its colours, how rough, dirty and overgrown it is, its sky."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from .noise import stream
from .spec import RegionSpec, style_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .spectra import Spectrum

__all__ = ["PLANTS", "WARM", "Character", "character_of", "plant_spectrum"]

PLANTS: Final = {
    "meadow": (0.035, 0.062, 0.050, 0.270, 0.200, 0.110),
    "steppe": (0.055, 0.085, 0.110, 0.210, 0.280, 0.200),
    "shrub": (0.028, 0.048, 0.040, 0.230, 0.160, 0.080),
    "forest": (0.020, 0.034, 0.024, 0.210, 0.105, 0.048),
    "tundra": (0.038, 0.058, 0.062, 0.190, 0.205, 0.130),
}
"""Textbook mean reflectance of what grows, in the order of ``spectra.BANDS``."""
WARM: Final = np.array([-1.0, -0.6, -0.1, 0.25, 0.7, 0.75], dtype=np.float32)
"""Along the bands of ``spectra.BANDS``: how a surface turns from grey to rusty."""


@dataclass(frozen=True, slots=True)
class Character:
    """Numbers of one region; lengths in metres unless they say pixels (of 10 m).

    Parameters
    ----------
    rocks
        (4, 6) factors on the reflectance of rock, granite, dark and red rock.
    debris
        (6,) factors of debris on the reflectance of the rock it fell from.
    hummock_m, hummock_px
        Height and greatest wavelength of hummocks on debris.
    pond_limit
        Standard deviations above which a hollow in debris holds a pond.
    crevasses, dirt
        Greatest darkening of clean ice by crevasses and by dust and cryoconite, 0 to 1.
    thin_m
        Breadth of the zone in which debris thins out towards clean ice.
    patina
        How much ground that has lain long is darker and rustier than what falls fresh, 0 to 1.
    outwash, rock_glaciers
        Shares of the ice-free ground that is gravel plain and creeping rock.
    haze, veil, missed
        Factor on haze, opacity of cirrus, and share of scenes whose mask misses cloud.
    """

    rocks: NDArray[np.float64]
    debris: NDArray[np.float64]
    hummock_m: float
    hummock_px: float
    pond_limit: float
    crevasses: float
    dirt: float
    thin_m: float
    patina: float
    outwash: float
    rock_glaciers: float
    haze: float
    veil: float
    missed: float


def character_of(spec: RegionSpec) -> Character | None:
    """Draw the character of a region; None where its style has none."""
    if not style_of(spec).varied:
        return None
    rng = stream(spec.seed, "character")
    rocks = [_tone(rng, brightness=0.22, warmth=0.16) for _ in range(4)]
    debris = _tone(rng, brightness=0.12, warmth=0.05)
    wet = np.array([1.0, 1.0, 0.99, 0.97, *(float(rng.uniform(0.68, 0.90)) for _ in range(2))])
    return Character(
        rocks=np.stack(rocks),
        debris=1.03 * debris * wet,
        hummock_m=float(rng.uniform(8.0, 20.0)),
        hummock_px=float(rng.uniform(14.0, 38.0)),
        pond_limit=float(rng.uniform(1.5, 2.2)),
        crevasses=float(rng.uniform(0.1, 0.45)),
        dirt=float(rng.uniform(0.0, 0.55)),
        thin_m=float(rng.uniform(20.0, 160.0)),
        patina=float(rng.uniform(0.15, 0.5)),
        outwash=float(rng.uniform(0.0, 0.05)),
        rock_glaciers=float(rng.uniform(0.0, 0.015)),
        haze=float(rng.uniform(0.5, 2.0)),
        veil=float(rng.uniform(0.0, 0.35)),
        missed=float(rng.uniform(0.1, 0.6)),
    )


def _tone(rng: np.random.Generator, *, brightness: float, warmth: float) -> NDArray[np.float64]:
    """Factors (6,) of a brightness and a colour, and a little of each band's own."""
    bright, warm = rng.normal(0.0, brightness), rng.normal(0.0, warmth)
    tone = np.exp(bright + warm * WARM + rng.normal(0.0, 0.04, 6))
    return np.asarray(np.clip(tone, 0.45, 2.0), dtype=np.float64)


def plant_spectrum(name: str) -> Spectrum:
    """Spectrum of what grows: bands vary together by a sixth, and each a little more alone."""
    mean = np.array(PLANTS[name])
    return mean, np.outer(mean, mean) * (0.06 * np.eye(6) + 0.03)
