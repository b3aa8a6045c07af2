"""The form into which every benchmark is brought: labelled patches, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from catalog.cube import CLASSES, UNKNOWN
from catalog.errors import DataError, UsageError
from model_serving.features import CHANNELS

__all__ = ["Patch", "PatchDataset", "Place", "Window", "bad_file", "windows"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Patch:
    """One labelled window of a benchmark.

    Raises
    ------
    DataError
        ``patch`` where shapes, dtypes or values are not as said here.
    """

    features: npt.NDArray[np.float32]
    """``(channel, y, x)`` in the order and units of :data:`model_serving.features.CHANNELS`,
    NaN = missing."""
    labels: npt.NDArray[np.uint8]
    """``(y, x)`` index into :data:`catalog.cube.CLASSES`, 255 = unknown."""
    group: str
    """What must stay in one fold: a scene, a tile or a glacier."""

    def __post_init__(self) -> None:
        faults = []
        if self.features.dtype != np.float32 or self.features.ndim != 3:
            faults.append(f"features are {self.features.ndim}-d {self.features.dtype}")
        elif self.features.shape != (len(CHANNELS), *self.labels.shape):
            faults.append(f"features {self.features.shape} beside labels {self.labels.shape}")
        elif np.isinf(self.features).any():
            faults.append("features hold infinite values")
        if self.labels.dtype != np.uint8:
            faults.append(f"labels are {self.labels.dtype}")
        elif not np.isin(self.labels, (*range(len(CLASSES)), UNKNOWN)).all():
            faults.append(f"labels hold {np.unique(self.labels).tolist()}")
        if not self.group:
            faults.append("the group has no name")
        if faults:
            raise DataError(
                f"no patch of {len(CHANNELS)} float32 channels and uint8 labels below "
                f"{len(CLASSES)} or {UNKNOWN}: {'; '.join(faults)}",
                kind="patch",
            )


class Window(NamedTuple):
    """A rectangle of pixels."""

    row: int
    col: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """The rectangle as slices ``(y, x)``."""
        return (
            slice(self.row, self.row + self.height),
            slice(self.col, self.col + self.width),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Pixels ``(y, x)``."""
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class Place:
    """Where a patch is read from."""

    path: Path
    window: Window
    group: str
    part: str = ""
    """Which of several images of one file."""


class PatchDataset:
    """The patches of a benchmark in a fixed order; each is read when it is asked for.

    Parameters
    ----------
    name
        Name of the benchmark.
    places
        Where the patches lie.
    read
        Reads the patch of a place; may raise :class:`catalog.errors.DataError`.

    Raises
    ------
    DataError
        ``dataset-empty`` where there is none.
    """

    def __init__(self, name: str, places: Iterable[Place], read: Callable[[Place], Patch]) -> None:
        self.name, self.places, self._read = name, tuple(places), read
        if not self.places:
            raise DataError(f"nothing to read for {name}", kind="dataset-empty")

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each patch, known without reading any."""
        return tuple(place.group for place in self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Patch:
        return self._read(self.places[index])

    def __iter__(self) -> Iterator[Patch]:
        return map(self._read, self.places)

    def only(self, groups: Iterable[str]) -> PatchDataset:
        """Patches of some groups alone, in the same order."""
        kept = set(groups)
        return PatchDataset(
            self.name, (place for place in self.places if place.group in kept), self._read
        )


def windows(height: int, width: int, patch_px: int) -> Iterator[Window]:
    """Cut an image into squares, row by row; those at the far edges may be smaller.

    Raises
    ------
    UsageError
        Where the squares have no pixel.
    """
    if patch_px < 1:
        raise UsageError(f"expected patches of at least one pixel, found patch_px {patch_px}")
    for row in range(0, height, patch_px):
        for col in range(0, width, patch_px):
            yield Window(row, col, min(patch_px, height - row), min(patch_px, width - col))


def bad_file(path: Path, expected: str, found: object) -> DataError:
    """Error of a file that is not of its benchmark's format; tells what was expected."""
    return DataError(f"{path}: expected {expected}, found {found}", kind="dataset-format")
