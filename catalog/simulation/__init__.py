"""A made-up glacier region with known truth, delivered like the real thing."""

from __future__ import annotations

from .region import SimulatedRegion, simulate_region
from .spec import (
    RegionSpec,
    SeasonSpec,
    TerrainShape,
    calibration_specs,
    demo_spec,
    heldout_specs,
    terrain_shape,
    terrain_specs,
    training_specs,
)

__all__ = [
    "RegionSpec",
    "SeasonSpec",
    "SimulatedRegion",
    "TerrainShape",
    "calibration_specs",
    "demo_spec",
    "heldout_specs",
    "simulate_region",
    "terrain_shape",
    "terrain_specs",
    "training_specs",
]
