"""Small untrained ensembles in the engine's own format, for tests of everything around them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from catalog.cube import CLASSES
from model_serving.ensemble import CARD, pack_member
from model_serving.features import CHANNELS
from model_serving.folds import TrainingRegion
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig


def write_ensemble(
    folder: Path,
    *,
    folds: int = 2,
    seeds: int = 3,
    window_px: int = 128,
    regions: tuple[TrainingRegion, ...] = (),
) -> Path:
    """Write ``folds * seeds`` members with random weights; different seeds, different maps."""
    folder.mkdir(parents=True, exist_ok=True)
    members = []
    for fold in range(folds):
        for seed in range(seeds):
            torch.manual_seed(100 * fold + seed)
            data = pack_member(GlacierSeg(GlacierSegConfig()).eval())
            name = f"member-f{fold}-s{seed}"
            (folder / f"{name}.safetensors").write_bytes(data)
            members.append(
                {
                    "name": name,
                    "fold": fold,
                    "seed": seed,
                    "mean": [0.5] * 6 + [-12.0, -18.0, 25.0, 0.0, 0.0],
                    "std": [0.2] * 6 + [4.0, 4.0, 12.0, 100.0, 1.0],
                    "sha256": hashlib.sha256(data).hexdigest(),
                }
            )
    card = {
        "format": 1,
        "name": "untrained",
        "channels": list(CHANNELS),
        "classes": list(CLASSES),
        "network": GlacierSegConfig().to_dict(),
        "window_px": window_px,
        "members": members,
        "regions": [r.to_dict() for r in regions],
        "area_calibration": {"scale": 1.0, "regional_scale": 1.0, "source": "not calibrated"},
    }
    (folder / CARD).write_text(json.dumps(card))
    return folder
