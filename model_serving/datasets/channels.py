"""From stored numbers to the channels of a network.

One law: a number becomes reflectance, dB or degrees by a rule that the caller states, or not at
all. No benchmark writes its scale into its files, and a wrong one would go unseen in training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.errors import DataError, UsageError
from model_serving.features import CHANNELS

__all__ = ["BandRule", "in_channels", "reflectance_roots", "stated_rule"]

Array = npt.NDArray[Any]

_PLAUSIBLE = (-0.2, 2.0)
# ^ reflectance: slopes that face a low sun exceed 1, haze that was taken off too well goes below 0
_STRAY = 0.01
# ^ share of pixels that may lie beyond: saturated ones, edges of gaps


@dataclass(frozen=True, slots=True)
class BandRule:
    """How stored numbers become physical ones, band by band: ``stored * scale + offset``."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            len(self.scale) != len(self.offset)
            or not np.isfinite([*self.scale, *self.offset]).all()
        ):
            raise UsageError(
                f"expected one finite scale and offset a band, found {self.scale} and {self.offset}"
            )

    @classmethod
    def uniform(cls, scale: float, offset: float = 0.0, *, bands: int = 6) -> BandRule:
        """Scale and offset that all bands share."""
        return cls((scale,) * bands, (offset,) * bands)

    @classmethod
    def between(cls, low: Sequence[float], high: Sequence[float]) -> BandRule:
        """Undo min-max normalisation: 0 stands for ``low``, 1 for ``high``."""
        pairs = zip(low, high, strict=True)
        return cls(tuple(end - start for start, end in pairs), tuple(low))

    def apply(self, stored: Array) -> npt.NDArray[np.float32]:
        """Physical values of ``(band, y, x)``."""
        scale, offset = (
            np.asarray(v, np.float64)[:, None, None] for v in (self.scale, self.offset)
        )
        return np.asarray(stored * scale + offset, np.float32)


def stated_rule(rule: BandRule | None, *, bands: int, what: str, remedy: str) -> BandRule:
    """The caller's rule, or a refusal that says what it has to state.

    Raises
    ------
    UsageError
        ``rule-missing`` where there is none, or it is for another number of bands.
    """
    if rule is None or len(rule.scale) != bands:
        found = "none" if rule is None else f"one for {len(rule.scale)}"
        raise UsageError(
            f"{what}: expected a BandRule for {bands} bands, found {found}; {remedy}",
            kind="rule-missing",
        )
    return rule


def reflectance_roots(
    reflectance: Array, names: Sequence[str], *, where: Path
) -> dict[str, npt.NDArray[np.float32]]:
    """Square roots of reflectance by channel, as :func:`model_serving.features.raw_features`.

    Parameters
    ----------
    reflectance : ``(band, y, x)``
        NaN = missing; a pixel that misses one of these bands misses all.
    names
        Channel of each band; channels that a sensor does not have are not among them.
    where
        File, for the error.

    Raises
    ------
    DataError
        ``reflectance-implausible`` where more than one pixel in a hundred lies beyond
        [-0.2, 2]: then the rule does not fit the file.
    """
    seen = np.isfinite(reflectance).all(axis=0)
    values = reflectance[:, seen]
    stray = float(((values < _PLAUSIBLE[0]) | (values > _PLAUSIBLE[1])).mean()) if seen.any() else 0
    if stray > _STRAY:
        raise DataError(
            f"{where}: {stray:.0%} of the values are no reflectance (expected "
            f"{_PLAUSIBLE[0]} to {_PLAUSIBLE[1]}, median {np.median(values):.4g}): the stated rule "
            "is not that of this file",
            kind="reflectance-implausible",
        )
    roots = np.where(seen, np.sqrt(np.maximum(reflectance, 0)), np.nan).astype(np.float32)
    return dict(zip(names, roots, strict=True))


def in_channels(values: Mapping[str, Array], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Features ``(channel, y, x)`` float32 from what there is; the other channels are NaN."""
    out = np.full((len(CHANNELS), *shape), np.nan, np.float32)
    for name, channel in values.items():
        out[CHANNELS.index(name)] = np.where(np.isfinite(channel), channel, np.nan)
    return out
