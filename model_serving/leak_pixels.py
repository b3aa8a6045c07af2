"""What pixels show of a leak: channels that hold labels, statistics, copies of the same ground.

Pure arithmetic on arrays; who may see what is decided in ``leaks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_cdt, distance_transform_edt

from catalog.cube import CLASSES, ICE_CLASSES
from model_serving.features import GROUPS, STATISTICS_STEP

__all__ = [
    "AGREEMENT",
    "ContentKeys",
    "class_counts",
    "content_keys",
    "label_like_name",
    "label_targets",
    "normalisation",
    "one_channel_agreement",
    "place_of",
    "pooled",
    "shared_keys",
]

AGREEMENT = 0.95
"""IoU above which a single channel is taken for a copy of what is to be learnt. Analysts who draw
the same clean ice differ by about 5 % of its area, of debris-covered ice by up to 30 % (Paul et al.
2013, Annals of Glaciology 54(63), 171-182): no measured quantity agrees better than they do."""

_WORDS = re.compile(
    "annotations?|class|classes|glims|gt|inventory|labels?|outlines?|predictions?|reference|rgi|"
    "segmentation|targets?|truth"
)
_MASKED = re.compile("debris|glaciers?|ice")
_DILATIONS_PX = (-3, -2, -1, 0, 1, 2, 3, 5, 10)
_RINGS_PX = (1, 2, 3)
_BINS = 256
_SAMPLE_PX = 20_000
# ^ pixels of a region and season that the test of single channels looks at
_LEAST_PX = 50
_ONE_IN = 4
_LEAST_SHARED = 16
# ^ of 64 bits each: no two different grounds agree by chance in even one

Array = npt.NDArray[Any]
Side = Sequence[tuple[Array, dict[str, Array], Array]]
"""Features ``(season, channel, y, x)``, targets, and the pixels ``(y, x)`` used, of each region."""


class _Labelled(Protocol):
    """A region with its labels."""

    @property
    def labels(self) -> Array: ...
    @property
    def owners(self) -> Array: ...


def label_like_name(channel: str) -> str:
    """Word of a channel's name that speaks of labels; empty where there is none.

    ``debris_mask`` and ``rgi_outlines`` are suspect, ``cloud_mask`` is not.
    """
    words = re.findall(r"[a-z]+", channel.lower())
    known = [w for w in words if _WORDS.fullmatch(w)]
    if not known and any(w.startswith("mask") for w in words):
        known = [w for w in words if _MASKED.fullmatch(w)]
    return known[0] if known else ""


def label_targets(ground: _Labelled) -> dict[str, Array]:
    """What a label-like channel would hold, each ``(season or 1, y, x)`` uint8: 0, 1, 255 unknown.

    On the sample of rows and columns that :func:`one_channel_agreement` looks at.
    The ice classes, together and each; the reference outlines, grown or shrunk; and their lines.
    """
    labels = _thinned(np.asarray(ground.labels))
    known = labels < len(CLASSES)
    wanted = {"ice": ICE_CLASSES} | {CLASSES[c]: (c,) for c in ICE_CLASSES}
    out = {
        name: np.where(known, np.isin(labels, classes), 255).astype(np.uint8)
        for name, classes in wanted.items()
    }
    inside = ground.owners > 0
    if inside.any() and not inside.all():
        out |= _outline_targets(inside)
    return out


def _outline_targets(inside: Array) -> dict[str, Array]:
    """Outlines grown by discs and by squares of pixels, and the lines along them."""
    squares = partial(distance_transform_cdt, metric="chessboard")
    out: dict[str, Array] = {}
    for way, distance in (("", distance_transform_edt), (" of squares", squares)):
        signed = distance(~inside) - distance(inside)
        grown = {
            f"the outlines grown by {px} px{way}" if px else "the outlines": signed <= px
            for px in _DILATIONS_PX
        }
        lines = {
            f"lines of {2 * px} px along the outlines{way}": np.abs(signed) <= px
            for px in _RINGS_PX
        }
        out |= {
            name: _thinned(mask).astype(np.uint8)[None] for name, mask in (grown | lines).items()
        }
    return out


def one_channel_agreement(
    channel: int, trained: Side, held: Side
) -> Iterator[tuple[str, float, float]]:
    """Find targets that one channel tells almost without error, by a decision table.

    The channel's values are sorted into quantiles of the training pixels, missing ones into a class
    of their own; each quantile answers with its majority among the training pixels.

    Yields
    ------
    name of the target, IoU on training pixels, IoU on held-out pixels
        The best one, where both are at least :data:`AGREEMENT`.
    """
    values = [_sampled(channel, side) for side in (trained, held)]
    finite = values[0][0][np.isfinite(values[0][0])]
    if not len(finite):
        return
    edges = np.unique(np.quantile(finite, np.linspace(0, 1, _BINS + 1), method="nearest"))
    bins = [
        np.where(np.isfinite(v), np.searchsorted(edges, v, side="right"), len(edges) + 1)
        for v, _ in values
    ]
    best = ("", 0.0, 0.0)
    for name in sorted(values[0][1].keys() & values[1][1].keys()):
        truth = [targets[name] for _, targets in values]
        yes, no = (
            np.bincount(bins[0][truth[0] == side], minlength=len(edges) + 2) for side in (1, 0)
        )
        answer = yes > no
        found = [_agreement(answer[b], t) for b, t in zip(bins, truth, strict=True)]
        if min(found) > max(AGREEMENT, min(best[1:])):
            best = (name, found[0], found[1])
    if best[0]:
        yield best


def _sampled(channel: int, side: Side) -> tuple[Array, dict[str, Array]]:
    """One channel's values and all targets on a sample of a side's pixels, ``(pixel,)`` each."""
    values, targets = [], []
    for features, named, mask in side:
        chosen = _thinned(mask)
        used = np.broadcast_to(chosen, (len(features), *chosen.shape))
        values.append(np.asarray(_thinned(features[:, channel]), np.float64)[used])
        targets.append({k: np.broadcast_to(t, used.shape)[used] for k, t in named.items()})
    shared = set.intersection(*(set(t) for t in targets))
    return np.concatenate(values), {k: np.concatenate([t[k] for t in targets]) for k in shared}


def _thinned(layer: Array) -> Array:
    """Every so-manieth row and column of ``(..., y, x)``, so that no region weighs too much."""
    height, width = layer.shape[-2:]
    step = max(1, int(np.sqrt(height * width / _SAMPLE_PX)))
    return layer[..., ::step, ::step]


def _agreement(answer: Array, truth: Array) -> float:
    """IoU of a target or of what it is not, the smaller: on an ice cap all is ice, say what may."""
    known = truth != 255
    yes, wanted = answer[known], truth[known] == 1
    if min(wanted.sum(), (~wanted).sum()) < _LEAST_PX:
        return 0.0
    both = (yes & wanted).sum() / (yes | wanted).sum()
    neither = (~yes & ~wanted).sum() / max((~yes | ~wanted).sum(), 1)
    return float(min(both, neither))


def normalisation(grounds: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Mean and standard deviation of each channel over training pixels, as training takes them.

    Parameters
    ----------
    grounds
        Features ``(season, channel, y, x)`` and the pixels ``(y, x)`` that are trained on.

    Returns
    -------
    mean, std : ``(channel,)`` float64
        NaN where a channel has no value; a deviation is at least 0.001.
    """
    thin = slice(None, None, STATISTICS_STEP)
    parts = []
    for features, mask in grounds:
        chosen = mask[thin, thin]
        parts += [np.asarray(season[:, thin, thin], np.float64)[:, chosen] for season in features]
    values = np.concatenate(parts, axis=1)
    count = np.maximum(np.isfinite(values).sum(axis=1), 1e-300)
    mean = np.nansum(values, axis=1) / count
    deviation = np.sqrt(np.nansum((values - mean[:, None]) ** 2, axis=1) / count)
    return mean, np.maximum(deviation, 1e-3)


def class_counts(grounds: Iterable[tuple[Array, Array]]) -> npt.NDArray[np.int64]:
    """Pixels of each class, ``(class,)``, from labels ``(season, y, x)`` and pixels ``(y, x)``."""
    counts = np.zeros(len(CLASSES), np.int64)
    for labels, mask in grounds:
        inside = labels[:, mask]
        counts += np.bincount(inside[inside < len(CLASSES)], minlength=len(CLASSES))
    return counts


@dataclass(frozen=True, slots=True)
class ContentKeys:
    """Keys of sampled pixels and where they lie; equal content has equal keys."""

    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.intp]
    cols: npt.NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.keys)

    def within(self, mask: Array) -> ContentKeys:
        """Those that lie in a mask ``(y, x)``."""
        inside = mask[self.rows, self.cols]
        return ContentKeys(self.keys[inside], self.rows[inside], self.cols[inside])


def content_keys(features: Array) -> ContentKeys:
    """Name pixels by their own values and those around them, whichever way the picture is turned.

    The optical bands of a pixel, of its four neighbours and of its four diagonal neighbours, each
    four summed up, make a key; sums do not change when a picture is turned or mirrored. One key in
    four is kept, chosen by the key itself, so that copies keep the same ones (Broder 1997, sampling
    by content). Even ground, where neighbours are all alike, has no key, nor has what was not seen.

    Parameters
    ----------
    features : ``(season, channel, y, x)``
        The optical bands come first, as in :data:`model_serving.features.CHANNELS`.
    """
    found = [_season_keys(np.asarray(season[GROUPS["optical"]], np.float64)) for season in features]
    return ContentKeys(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _season_keys(bands: Array) -> tuple[Array, Array, Array]:
    if min(bands.shape[1:]) < 3:
        return np.empty(0, np.uint64), np.empty(0, np.intp), np.empty(0, np.intp)
    centre = bands[:, 1:-1, 1:-1]
    beside = bands[:, :-2, 1:-1] + bands[:, 2:, 1:-1] + bands[:, 1:-1, :-2] + bands[:, 1:-1, 2:]
    across = bands[:, :-2, :-2] + bands[:, 2:, 2:] + bands[:, :-2, 2:] + bands[:, 2:, :-2]
    even = ((beside == 4 * centre) & (across == 4 * centre)).all(axis=0)
    usable = np.isfinite(centre + beside + across).all(axis=0) & ~even
    rows, cols = np.nonzero(usable)
    key = np.zeros(len(rows), np.uint64)
    for layer in (*centre, *beside, *across):
        bits = (layer[rows, cols].round(6) + 0.0).view(np.uint64)
        # ^ rounded: a sum of four numbers may depend on their order in its last digits
        key = _mixed(key ^ bits)
    chosen = key % np.uint64(_ONE_IN) == 0
    return key[chosen], rows[chosen] + 1, cols[chosen] + 1


def _mixed(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Spread the bits of keys (the finaliser of SplitMix64, Steele et al. 2014)."""
    key = (key + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(key ^ (key >> np.uint64(31)))


def pooled(several: Iterable[ContentKeys]) -> npt.NDArray[np.uint64]:
    """Every key of several pictures once, sorted."""
    return np.unique(np.concatenate([np.empty(0, np.uint64), *(one.keys for one in several)]))


def shared_keys(pool: npt.NDArray[np.uint64], other: ContentKeys) -> ContentKeys | None:
    """Pixels of ``other`` whose keys stand in a sorted pool; None where too few for a copy."""
    place = np.minimum(np.searchsorted(pool, other.keys), max(len(pool) - 1, 0))
    inside = pool[place] == other.keys if len(pool) else np.zeros(len(other.keys), bool)
    if inside.sum() < _LEAST_SHARED:
        return None
    return ContentKeys(other.keys[inside], other.rows[inside], other.cols[inside])


def place_of(keys: ContentKeys) -> str:
    """Rows and columns between which some pixels lie, in words."""
    return (
        f"rows {keys.rows.min()} to {keys.rows.max()}, columns {keys.cols.min()} to "
        f"{keys.cols.max()}"
    )
