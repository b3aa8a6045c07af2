"""How images of benchmarks are opened: plain TIFF and PNG files on a local disk, window by window.

They are given by the user as a folder, and never by a catalogue, so they do not pass the gate of
:mod:`catalog.assets`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterWindow

from model_serving.datasets.patch import Window, bad_file

__all__ = ["read_values", "read_window", "size_of"]

Array = npt.NDArray[Any]

_DRIVERS = {".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG"}
# ^ no other reader of GDAL is let near a file that a stranger wrote
_PNG_END = b"IEND\xaeB`\x82"


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    driver = _DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise bad_file(path, f"a name that ends in {', '.join(_DRIVERS)}", path.name)
    try:
        if path.suffix.lower() == ".png" and not path.read_bytes().endswith(_PNG_END):
            raise bad_file(path, "a whole TIFF or PNG image", "a PNG file without its end")
            # ^ GDAL reads the lost rows as zeros and says nothing
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, driver=driver) as src:
                yield src
    except (OSError, RasterioError) as error:
        raise bad_file(path, "a whole TIFF or PNG image", error) from error


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Raises
    ------
    DataError
        ``dataset-format`` where it is missing or damaged.
    """
    with _opened(path) as src:
        return src.height, src.width


def read_window(
    path: Path, window: Window, *, bands: int, dtypes: tuple[str, ...], size: tuple[int, int]
) -> Array:
    """Read a window ``(band, y, x)`` of an image of a known form.

    Parameters
    ----------
    path
        The image.
    window
        Which pixels.
    bands
        Bands it must have.
    dtypes
        Types it may be of.
    size
        Height and width it must have, pixels.

    Raises
    ------
    DataError
        ``dataset-format`` where it is missing, damaged, or of another form.
    """
    with _opened(path) as src:
        found = {*src.dtypes}
        if src.count != bands or not found <= {*dtypes} or (src.height, src.width) != size:
            raise bad_file(
                path,
                f"{bands} band{'s' * (bands > 1)} of {' or '.join(dtypes)}, {size[0]} x {size[1]}",
                f"{src.count} of {', '.join(sorted(found))}, {src.height} x {src.width}",
            )
        part = RasterWindow(window.col, window.row, window.width, window.height)
        values: Array = src.read(window=part)
        return values


def read_values(
    path: Path, window: Window, *, values: tuple[int, ...], size: tuple[int, int]
) -> Array:
    """Read a window ``(y, x)`` of a mask of uint8 that may hold only some values.

    Raises
    ------
    DataError
        ``dataset-format`` as :func:`read_window`, or where there are other values.
    """
    mask: Array = read_window(path, window, bands=1, dtypes=("uint8",), size=size)[0]
    strange = sorted(set(np.unique(mask).tolist()) - set(values))
    if strange:
        raise bad_file(path, f"values {', '.join(map(str, values))}", f"also {strange[:8]}")
    return mask
