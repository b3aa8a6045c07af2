"""SegFormer-B0 of the library transformers (Xie et al. 2021)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from model_serving.peers.libraries import import_library

__all__ = ["SegFormer"]


class SegFormer(nn.Module):
    """SegFormer with its logits brought up to the resolution of the image, bilinearly.

    The defaults of the library are the B0 of the paper: widths 32, 64, 160, 256, two blocks a
    stage, decoder 256; 3,752,694 parameters with 3 channels and the 150 classes of ADE20K.

    Parameters
    ----------
    channels, classes
        Of its input and of its logits.
    """

    def __init__(self, *, channels: int, classes: int) -> None:
        super().__init__()
        transformers = import_library("transformers")
        config = transformers.SegformerConfig(num_channels=channels, num_labels=classes)
        self.inner = transformers.SegformerForSemanticSegmentation(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``(batch, class, y, x)``."""
        logits = self.inner(pixel_values=x).logits
        return functional.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=False)
