"""Which windows a network is shown: around rare classes, and never beyond what it may see.

Every random number comes from the caller's generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from catalog.cube import CLASSES, UNKNOWN
from catalog.errors import UsageError
from model_serving.datasets.patch import Patch, Window
from model_serving.features import GROUPS
from model_serving.regions import PreparedRegion

__all__ = ["ANYWHERE", "EXPOSED", "Draw", "ModalityShares", "WindowSource", "drop_modalities"]

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

EXPOSED = len(CLASSES)
"""Stands among the classes for ground that ice has left: most often taken for debris on ice."""
ANYWHERE = EXPOSED + 1
"""Stands for a window around any pixel."""
_WANTED = (ANYWHERE, 1, 2, 2, EXPOSED, 3)
_ZOOM = (0.5, 1.5)
# ^ zooming teaches other pixel sizes: 0.5 shows 10 m pixels to a network trained at 20 m
_CENTRES = 1024
# ^ kept a class and patch, evenly: tens of thousands of patches must leave room in memory
_GOLDEN = (math.sqrt(5) - 1) / 2


class _Patches(Protocol):
    """A list of patches, or a :class:`model_serving.datasets.PatchDataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Patch: ...


@dataclass(frozen=True, slots=True)
class Draw:
    """A window that was drawn."""

    source: int
    """Number among the regions, then the lists of patches."""
    layer: int
    """Season of a region, or patch of a list."""
    window: Window


@dataclass(frozen=True, slots=True)
class ModalityShares:
    """How often a window loses inputs; otherwise it keeps all that it has."""

    optical_only: float = 0.35
    without_sar: float = 0.3
    without_terrain: float = 0.1

    def __post_init__(self) -> None:
        parts = (self.optical_only, self.without_sar, self.without_terrain)
        if min(parts) < 0 or sum(parts) > 1 + 1e-9:
            raise UsageError(f"expected shares of at least 0 that sum to at most 1, found {parts}")


def drop_modalities(
    raw: Array, *, rng: np.random.Generator, shares: ModalityShares | None = None
) -> Array:
    """Take radar, terrain or both from a window, as where there are none.

    Parameters
    ----------
    raw : ``(channel, y, x)`` float
        Raw features; not changed.
    rng
        Draws one number.
    shares
        How often; one window in three keeps optical bands alone by default.

    Returns
    -------
    Array
        A copy with NaN in what was taken. A window keeps what is its only input.
    """
    shares = shares or ModalityShares()
    taken = (shares.optical_only, shares.without_sar, shares.without_terrain)
    lost = rng.choice(4, p=(*taken, max(0.0, 1 - sum(taken))))
    out = raw.copy()
    for group, when in (("sar", (0, 1)), ("terrain", (0, 2))):
        if lost in when:
            rest = [out[part] for name, part in GROUPS.items() if name != group]
            if any(np.isfinite(values).any() for values in rest):
                out[GROUPS[group]] = np.nan
    return out


@dataclass(slots=True)
class _Layer:
    """What may be drawn from one season of a region or one patch."""

    shape: tuple[int, int]
    centres: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    """Flat indices of the pixels a window may be laid around, by class."""
    allowed: Mask | None = None
    """None: everywhere."""
    inner: npt.NDArray[np.int64] | None = None
    """Flat indices of all pixels that a smallest window around may hold; None: all."""


class WindowSource:
    """Draws windows around rare classes from regions and lists of patches.

    A source is drawn first, each region and each list equally often; then what the window is laid
    around; in a list, then one of the patches that hold it. Where there is none of it, the window
    is laid around any pixel.

    Parameters
    ----------
    regions
        Prepared regions.
    patches
        Lists of patches; all are read once here, for their labels.
    window_px
        Edge of a window before zooming, pixels.
    wanted
        What windows are laid around, equally often: classes, :data:`EXPOSED`, :data:`ANYWHERE`.
        What stands twice is wanted twice as often.
    zoom
        Least and largest ratio of a window's edge to ``window_px``; the ratio's logarithm is drawn
        evenly.
    allowed
        For each region ``(y, x)`` bool, or None = everywhere: a window lies wholly in allowed
        pixels, and is made smaller where it does not fit, down to the least zoom.

    Raises
    ------
    UsageError
        ``nothing-to-draw`` where a region has no room for the smallest window, or there is nothing
        to draw from.
    """

    def __init__(
        self,
        regions: Sequence[PreparedRegion] = (),
        patches: Sequence[_Patches] = (),
        *,
        window_px: int,
        wanted: Sequence[int] = _WANTED,
        zoom: tuple[float, float] = _ZOOM,
        allowed: Sequence[Mask | None] | None = None,
    ) -> None:
        self.window_px, self.wanted, self.zoom = window_px, tuple(wanted), zoom
        strange = sorted(set(self.wanted) - {*range(ANYWHERE + 1)})
        if strange or not self.wanted:
            raise UsageError(f"no such classes to lay windows around: {strange or 'none'}")
        self._smallest = max(1, int(window_px * zoom[0]))
        self._features = [region.features() for region in regions]
        self._labels = [region.labels() for region in regions]
        self._patches = list(patches)
        masks = [None] * len(self._labels) if allowed is None else list(allowed)
        self._sources = [
            self._region_layers(region, labels, mask)
            for region, labels, mask in zip(regions, self._labels, masks, strict=True)
        ]
        for some in self._patches:
            layers = (_layer_of(some[i].labels, wanted=self.wanted) for i in range(len(some)))
            self._sources.append([_thinned(layer) for layer in layers])
        self._holding = [
            {kind: _holding(layers, kind) for kind in set(self.wanted)}
            for layers in self._sources[len(self._labels) :]
        ]
        if not self._sources or not all(self._sources):
            raise UsageError("no region and no patch to draw windows from", kind="nothing-to-draw")

    def _region_layers(
        self, region: PreparedRegion, labels: Array, allowed: Mask | None
    ) -> list[_Layer]:
        if allowed is not None and allowed.shape != labels.shape[1:]:
            raise UsageError(
                f"{region.name}: expected allowed pixels {labels.shape[1:]}, found {allowed.shape}"
            )
        if allowed is not None and allowed.all():
            allowed = None
        inner = None if allowed is None else _roomy(allowed, min(self._smallest, *allowed.shape))
        if inner is not None and not inner.any():
            raise UsageError(
                f"{region.name}: no window of {self._smallest} pixels lies in allowed pixels",
                kind="nothing-to-draw",
            )
        owned = region.owners() > 0
        return [
            _layer_of(
                truth,
                wanted=self.wanted,
                exposed=owned if season else None,
                allowed=allowed,
                inner=inner,
            )
            for season, truth in enumerate(labels)
        ]

    def draw(self, rng: np.random.Generator) -> Draw:
        """Draw a window; the same for the same state of the generator."""
        source = int(rng.integers(len(self._sources)))
        layers = self._sources[source]
        if source < len(self._labels):
            number = int(rng.integers(len(layers)))
            kind = int(rng.choice(self.wanted))
        else:
            kind = int(rng.choice(self.wanted))
            number = int(rng.choice(self._holding[source - len(self._labels)][kind]))
        layer = layers[number]
        where = layer.centres.get(kind, np.empty(0, np.int64))
        if len(where):
            pixel = int(rng.choice(where))
        elif layer.inner is None:
            pixel = int(rng.integers(math.prod(layer.shape)))
        else:
            pixel = int(rng.choice(layer.inner))
        row, col = divmod(pixel, layer.shape[1])
        least, most = self.zoom
        size = int(self.window_px * math.exp(rng.uniform(math.log(least), math.log(most))))
        size = max(1, min(size, *layer.shape))
        return Draw(source, number, _window_around(row, col, size, layer, rng))

    def read(self, draw: Draw) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        """Raw features ``(channel, y, x)`` and labels ``(y, x)``, 255 where nothing was seen."""
        cut = draw.window.slices
        if draw.source < len(self._labels):
            raw = self._features[draw.source][(draw.layer, slice(None), *cut)].astype(np.float32)
            labels = self._labels[draw.source][(draw.layer, *cut)]
            return raw, np.where(np.isfinite(raw[0]), labels, np.uint8(UNKNOWN))
        patch = self._patches[draw.source - len(self._labels)][draw.layer]
        return patch.features[(slice(None), *cut)].copy(), patch.labels[cut].copy()


def _layer_of(
    labels: Array,
    *,
    wanted: Sequence[int],
    exposed: Mask | None = None,
    allowed: Mask | None = None,
    inner: Mask | None = None,
) -> _Layer:
    centres = {}
    for kind in sorted(set(wanted) - {ANYWHERE}):
        if kind == EXPOSED:
            found = None if exposed is None else (labels == 0) & exposed
        else:
            found = labels == kind
        if found is not None:
            centres[kind] = np.flatnonzero(found if inner is None else found & inner)
    free = None if inner is None else np.flatnonzero(inner)
    height, width = labels.shape
    return _Layer((height, width), centres, allowed, free)


def _thinned(layer: _Layer) -> _Layer:
    """The same with no more than so many centres a class."""
    for kind, found in layer.centres.items():
        if len(found) > _CENTRES:
            turn = np.arange(_CENTRES)
            place = (turn + turn * _GOLDEN % 1) / _CENTRES
            # ^ one in each of so many equal parts, at places that are in step with no row's length
            layer.centres[kind] = found[(place * len(found)).astype(np.int64)]
    return layer


def _holding(layers: Sequence[_Layer], kind: int) -> npt.NDArray[np.int64]:
    """Layers that hold a kind; all where none does."""
    found = [i for i, layer in enumerate(layers) if len(layer.centres.get(kind, ()))]
    return np.array(found or range(len(layers)), np.int64)


def _window_around(
    row: int, col: int, size: int, layer: _Layer, rng: np.random.Generator
) -> Window:
    """Window of at most ``size`` that holds a pixel, at a place drawn among those allowed."""
    height, width = layer.shape
    if layer.allowed is None:
        row = int(np.clip(row - rng.integers(size), 0, height - size))
        col = int(np.clip(col - rng.integers(size), 0, width - size))
        return Window(row, col, size, size)
    least, most = 1, size + 1
    # ^ in every window that fits lie smaller ones that hold the pixel too: so sizes are bisected
    while most - least > 1:
        middle = (least + most) // 2
        if len(_corners(row, col, middle, layer.allowed)):
            least = middle
        else:
            most = middle
    corners = _corners(row, col, least, layer.allowed)
    row, col = corners[int(rng.integers(len(corners)))]
    return Window(int(row), int(col), least, least)


def _corners(row: int, col: int, size: int, allowed: Mask) -> Array:
    """Upper left pixels ``(n, 2)`` of the allowed windows of a size that hold a pixel."""
    top, left = max(0, row - size + 1), max(0, col - size + 1)
    near = allowed[top : row + size, left : col + size]
    if min(near.shape) < size:
        return np.empty((0, 2), np.int64)
    return np.asarray(np.argwhere(_fits(near, size)) + np.array([top, left]))


def _fits(allowed: Mask, size: int) -> Mask:
    """Whether the window whose upper left pixel this is is allowed: ``(y - size + 1, ...)``."""
    sums = np.zeros((allowed.shape[0] + 1, allowed.shape[1] + 1), np.int64)
    sums[1:, 1:] = allowed.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    inside = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    return np.asarray(inside == size * size)


def _roomy(allowed: Mask, size: int) -> Mask:
    """Pixels that some allowed window of a size holds: the morphological opening."""
    fits = _fits(allowed, size)
    spread = np.zeros((allowed.shape[0] + 1, allowed.shape[1] + 1), np.int64)
    for rows, cols, sign in (
        (slice(None, -size), slice(None, -size), 1),
        (slice(size, None), slice(None, -size), -1),
        (slice(None, -size), slice(size, None), -1),
        (slice(size, None), slice(size, None), 1),
    ):
        spread[rows, cols] += sign * fits
    return np.asarray(spread.cumsum(axis=0).cumsum(axis=1)[:-1, :-1] > 0)
