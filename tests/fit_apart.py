"""Trains one tiny network in a process of its own, for tests that kill it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model_serving.checkpoints import Checkpoints
from model_serving.fitting import Fit, FitSettings, FixedWindows, History, fit
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.losses import make_loss

SETTINGS = FitSettings(steps=24, checkpoint_every=1, validate_every=6, ema_decay=0.8)
SHAPE = GlacierSegConfig(channels=3, widths=(8, 8), embeddings=("involution", "convolution"))


class Blobs:
    """Bright ice, dark water, ground between: windows of random numbers that can be learnt."""

    def __init__(self, seed: int, *, window: int = 16, batch: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        self.window, self.batch_size = window, batch
        self.drawn: tuple[str, ...] = ()

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and labels."""
        y = np.kron(self.rng.integers(0, 4, (self.batch_size, 2, 2)), np.ones((8, 8), np.int64))
        x = self.rng.normal(0, 0.3, (self.batch_size, 3, self.window, self.window))
        x += (y[:, None] - 1.5) * np.array([1.0, 0.5, -1.0])[:, None, None]
        self.drawn = tuple(
            f"blob {self.rng.bit_generator.state['state']['state'] % 1000}" for _ in y
        )
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def network(seed: int = 0) -> nn.Module:
    """A Glacier-Seg of a few thousand parameters, which drops branches at random."""
    torch.manual_seed(seed)
    return GlacierSeg(SHAPE)


def train(folder: Path, settings: FitSettings = SETTINGS, *, slowly: bool = False) -> Fit:
    """Train, or go on."""
    torch.set_num_threads(1)
    made, sampler = network(), Blobs(1)
    loss = make_loss("ce_dice", class_weights=np.ones(4, np.float32))
    fixed = FixedWindows([Blobs(2).batch()], loss)

    def record(history: History) -> None:
        if slowly:
            print(len(history.losses), flush=True)

    return fit(
        made,
        sampler,
        settings,
        loss=loss,
        validate=fixed,
        checkpoints=Checkpoints(folder, name="blobs", identity="one"),
        record=record,
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]), slowly=True)
