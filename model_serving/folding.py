"""Weights as they are applied: normalisation folded into the layers beside it, in float64.

Every form of the network other than the trained one starts from these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from model_serving.glacier_seg import Head

__all__ = ["as_array", "folded", "folded_fusion"]

Array = npt.NDArray[np.float64]


def as_array(tensor: Any) -> Array:
    """Values of a parameter or buffer, float64."""
    values: Array = tensor.detach().double().cpu().numpy()
    return values


def _scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Array, Array]:
    """What a batch normalisation is in evaluation."""
    scale = as_array(norm.weight) / np.sqrt(as_array(norm.running_var) + norm.eps)
    return scale, as_array(norm.bias) - as_array(norm.running_mean) * scale


def folded(layer: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Array, Array]:
    """Kernel ``(out, in, y, x)`` and bias of a convolution with its batch normalisation."""
    scale, shift = _scale_and_shift(norm)
    if layer.bias is not None:
        shift = shift + as_array(layer.bias) * scale
    return as_array(layer.weight) * scale[:, None, None, None], shift


def folded_fusion(head: Head) -> tuple[list[Array], Array]:
    """What fuses the stages: a matrix ``(out, in)`` for each, and one bias of the sum."""
    scale, shift = _scale_and_shift(head.fuse_norm)
    matrices = []
    project: Any
    for project, fuse in zip(head.project, head.fuse, strict=True):
        weight, own_shift = folded(project[0], project[1])
        onto = as_array(fuse.weight)[:, :, 0, 0] * scale[:, None]
        matrices.append(onto @ weight[:, :, 0, 0])
        shift = shift + onto @ own_shift
    return matrices, shift
