"""Import torchvision beside any torch, for the libraries that insist on it.

No network here uses torchvision, but timm, segmentation-models-pytorch and transformers import it.
Its wheels on the registry are built for CUDA: beside another torch its operators are not
registered, and the import stops for want of two names.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch

__all__ = ["import_library"]

_FOREIGN = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []
# ^ a declaration lives as long as its library


def import_library(name: str) -> ModuleType:
    """Import a package that imports torchvision, where this is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        _import_torchvision()
    return importlib.import_module(name)


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # What a failed import leaves behind would be taken for the whole package.
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in _FOREIGN:
            library.define(operator)  # type: ignore[no-untyped-call]
        _declared.append(library)
        importlib.import_module("torchvision")
