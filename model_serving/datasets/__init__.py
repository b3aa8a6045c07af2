"""Public benchmarks of glacier mapping, brought into the engine's channels and classes.

Label-like layers are never among the inputs, and no number becomes reflectance or dB but by a rule
that the caller states.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from catalog.errors import UsageError
from model_serving.datasets.caffe import open_caffe
from model_serving.datasets.channels import BandRule
from model_serving.datasets.dl4gam import open_dl4gam
from model_serving.datasets.glacierhack import open_glacierhack
from model_serving.datasets.hkh import landsat_rule, open_hkh
from model_serving.datasets.nird import open_nird
from model_serving.datasets.patch import Patch, PatchDataset

__all__ = ["BandRule", "Patch", "PatchDataset", "landsat_rule", "open_dataset"]

_READERS: dict[str, Callable[..., PatchDataset]] = {
    "caffe": open_caffe,
    "dl4gam": open_dl4gam,
    "glacierhack": open_glacierhack,
    "hkh": open_hkh,
    "nird": open_nird,
}


def open_dataset(name: str, folder: Path, **options: Any) -> PatchDataset:
    """Open a public benchmark.

    Parameters
    ----------
    name
        ``caffe``, ``dl4gam``, ``glacierhack``, ``hkh`` or ``nird``.
    folder
        Where it lies, as its authors give it away.
    options
        Of the reader: what each needs and returns is told by the module of its name.

    Raises
    ------
    UsageError
        Where there is no such reader, or an option is missing or wrong.
    DataError
        Where the folder does not hold the benchmark.
    """
    if name not in _READERS:
        raise UsageError(f"no reader for {name!r}; there are {', '.join(_READERS)}")
    return _READERS[name](Path(folder), **options)
