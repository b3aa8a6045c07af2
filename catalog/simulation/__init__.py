"""A made-up glacier region with known truth, delivered like the real thing."""

from __future__ import annotations

from .region import SimulatedRegion, simulate_region
from .spec import RegionSpec, SeasonSpec, calibration_specs, demo_spec, training_specs

__all__ = [
    "RegionSpec",
    "SeasonSpec",
    "SimulatedRegion",
    "calibration_specs",
    "demo_spec",
    "simulate_region",
    "training_specs",
]
