"""How HDF5 files are opened, NetCDF-4 among them: lazily, and with errors that name the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_serving.datasets.patch import bad_file
from model_serving.extras import require

__all__ = ["array_of", "opened"]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file for reading.

    Raises
    ------
    UsageError
        ``runtime-missing`` where h5py is not installed.
    DataError
        ``dataset-format`` where the file is missing or damaged.
    """
    require("reading HDF5 and NetCDF files", "h5py", extra="train")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise bad_file(path, "a whole HDF5 file", error) from error


def array_of(parent: Any, name: str, *, path: Path, shape: Sequence[int], kinds: str) -> Any:
    """An array inside a file, not read yet.

    Parameters
    ----------
    parent
        File or group.
    name
        Name of the array in it.
    path
        File, for the error.
    shape
        What its shape must be.
    kinds
        Kinds of dtype it may have, as of :attr:`numpy.dtype.kind`.

    Raises
    ------
    DataError
        ``dataset-format`` where there is none of this form.
    """
    where = f"{parent.name.rstrip('/')}/{name}"
    found = parent.get(name)
    if found is None or not hasattr(found, "dtype"):
        raise bad_file(path, f"an array {where}", sorted(parent))
    dtype: npt.DTypeLike = found.dtype
    if found.shape != tuple(shape) or np.dtype(dtype).kind not in kinds:
        names = {"f": "floats", "i": "integers", "u": "unsigned integers", "b": "booleans"}
        raise bad_file(
            path,
            f"{where} as {' or '.join(names[kind] for kind in kinds)} of shape {tuple(shape)}",
            f"{dtype} of shape {found.shape}",
        )
    return found
