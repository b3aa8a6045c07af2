"""What the simulator renders holds what two real glaciers look like."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from catalog.simulation import training_specs
from catalog.simulation.ground import KINDS, cover_ground
from catalog.simulation.ice import grow_ice
from catalog.simulation.light import light_ground, snow_cover, sun_position
from catalog.simulation.scene import plan_acquisitions, render_optical
from catalog.simulation.spectra import BANDS
from catalog.simulation.terrain import make_bed

DATA = Path(
    os.environ.get(
        "INVENTORY_ENGINE_TEST_DATA", Path(__file__).parents[1].parent / "shared" / "data"
    )
)
SPECTRA = DATA / "spectra" / "Sentinel-2_SR_training_data.csv"
COLUMNS = ["B2", "B3", "B4", "B8", "B11", "B12"]
SITES = ("Gulkana", "SouthCascade")
STYLES = ("alpine", "himalaya", "arctic", "karakoram", "patagonia", "alaska")
ROCKS = ("rock", "granite", "dark", "red", "moraine", "gravel", "creeping", "debris")

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.slow,
    pytest.mark.skipif(not SPECTRA.is_file(), reason=f"no real data in {DATA}"),
]


def rendered(style: str) -> dict[str, np.ndarray]:
    """Reflectance ``(pixel, band)`` of one sunlit clear scene of a small region, by class."""
    first = next(spec for spec in training_specs() if spec.style == style)
    spec = dataclasses.replace(first, size_km=6.0)
    bed = make_bed(spec)
    state = grow_ice(spec, bed)[0]
    ground = cover_ground(spec, bed, state, first=state)
    plan = dataclasses.replace(
        plan_acquisitions(spec, spec.seasons[0])[1], cloud=0.0, snowiness=0.25
    )
    sun = sun_position(plan.when, lon=spec.lon, lat=spec.lat)
    scene = render_optical(spec, ground, plan, sun=sun, convergence_deg=0.0)
    light = light_ground(ground.height, azimuth_deg=sun[0], elevation_deg=sun[1])
    snow = snow_cover(spec, ground, name=plan.name, snowiness=plan.snowiness)
    half = slice(None, None, 2), slice(None, None, 2)
    sunny = (light.lit[half] == 1.0) & (light.direct[half] > 0.4)
    layers = [
        scene.bands[b][half] if scene.bands[b].shape == bed.shape else scene.bands[b] for b in BANDS
    ]
    seen = (np.stack(layers, axis=-1).astype(float) - plan.offset) / 1e4
    bare, white = snow[half] < 0.02, snow[half] > 0.97
    kind = ground.kind[half]
    return {
        "snow": seen[sunny & white],
        "ice": seen[sunny & bare & (kind == KINDS.index("ice"))],
        "rock": seen[sunny & bare & np.isin(kind, [KINDS.index(k) for k in ROCKS])],
        "water": seen[bare & np.isin(kind, [KINDS.index(k) for k in ("water", "turbid")])],
    }


def test_measured_pixels_lie_within_what_is_rendered(
    record_property: Callable[[str, object], None],
) -> None:
    """By class and band: the middle half of the measured pixels within 98 % of the rendered ones.

    And the median of the rendered ones within 98 % of the measured ones: neither is a caricature
    of the other. Regions differ, so the rendered spread may be wider than that of two glaciers.
    Water was measured on one lake; rendered lakes are clear to turbid, and only have to hold it.
    """
    made = [rendered(style) for style in STYLES]
    table = pd.read_csv(SPECTRA)
    table = table[table["site_name"].isin(SITES)]
    for name, number in {"snow": 1, "ice": 3, "rock": 4, "water": 5}.items():
        real = table.loc[table["class"] == number, COLUMNS].to_numpy(float)
        drawn = np.concatenate([regions[name] for regions in made])
        assert len(real) > 100
        assert len(drawn) > 300, (name, len(drawn))
        low, high = np.percentile(drawn, [1, 99], axis=0)
        first, middle, third = np.percentile(real, [25, 50, 75], axis=0)
        record_property(
            "Simulated spectra",
            f"{name}: median real {np.round(middle, 3)}, rendered "
            f"{np.round(np.median(drawn, axis=0), 3)} [{np.round(low, 3)} {np.round(high, 3)}]",
        )
        assert (low <= first).all(), name
        assert (third <= high).all(), name
        if name == "water":
            continue
        floor, ceiling = np.percentile(real, [1, 99], axis=0)
        median = np.median(drawn, axis=0)
        assert (floor <= median).all(), name
        assert (median <= ceiling).all(), name
