"""`inventory-engine benchmark-models`: the regions it compares models on, and its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from model_serving.benchmark_table import COLUMNS, with_spread
from model_serving.regions import PreparedRegion, prepare_region, read_region

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["comparison_regions", "comparison_table", "names_of"]

_SHOWN = ("iou ice", "iou debris-covered ice", "mean_iou all", "error ice")


def comparison_regions(
    work: Path, *, resolution_m: float, progress: Callable[[str, int, int], None]
) -> list[PreparedRegion]:
    """Take the regions that a training has prepared; simulate its own where there are none.

    The engine's calibration and held-out regions are left out: nothing is ever chosen by them.

    Parameters
    ----------
    work
        Folder of a training.
    resolution_m
        Pixel edge of regions that are simulated.
    progress
        Called with a label, the number done and the number in all.
    """
    from catalog.simulation import calibration_specs, heldout_specs, training_specs

    held_back = {spec.name for spec in (*calibration_specs(), *heldout_specs())}
    notes = sorted((work / "regions").glob("*/prepared.json"))
    found = [read_region(note.parent) for note in notes]
    regions = [region for region in found if region.name not in held_back]
    if regions:
        return regions
    specs = training_specs()
    for done, spec in enumerate(specs):
        progress("regions", done, len(specs))
        folder = work / "regions" / spec.name
        regions.append(prepare_region(spec, folder, resolution_m=resolution_m))
    progress("regions", len(specs), len(specs))
    return regions


def comparison_table(scores: pd.DataFrame) -> Table:
    """The scores and costs that tell most, for a terminal."""
    from rich.table import Table

    table = Table(title="models on held-out regions")
    table.add_column("model")
    for heading in (*(COLUMNS[name] for name in _SHOWN), "parameters, M", "MACs, G", "ms"):
        table.add_column(heading, justify="right")
    for row in scores.to_dict("records"):
        costs = ((row["parameters"], 1e6), (row["macs"], 1e9), (row["ms"], 1.0))
        table.add_row(
            row["title"],
            *(with_spread(row, name) for name in _SHOWN),
            *("–" if pd.isna(value) else f"{value / scale:.3g}" for value, scale in costs),
        )
    return table


def names_of(text: str, everything: Sequence[str]) -> list[str]:
    """Names in a list with commas; all where it says ``all``."""
    return list(everything) if text == "all" else [n.strip() for n in text.split(",") if n.strip()]
