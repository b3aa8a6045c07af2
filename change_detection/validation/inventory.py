"""All rules on an inventory and what belongs to it, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

import geopandas as gpd
import pandas as pd

from change_detection.validation.attributes import check_attributes, check_columns, check_ids
from change_detection.validation.geometry import check_outlines, check_pairs, check_places
from change_detection.validation.layer import Layer, layer_of
from change_detection.validation.products import (
    check_complexes,
    check_intersects,
    check_members,
)
from change_detection.validation.rules import Finding, Profile
from change_detection.validation.tables import check_hypsometry, check_links

__all__ = ["Package", "Progress", "validate_package"]

Progress = Callable[[str, int, int], None]
"""Called with a label, how many checks are done and how many there are."""


@dataclass(frozen=True, slots=True)
class Package:
    """An inventory and what belongs to it; only the glaciers are needed."""

    glaciers: gpd.GeoDataFrame
    complexes: gpd.GeoDataFrame | None = None
    members: Mapping[str, Iterable[str]] | None = None
    """Ids of the glaciers of each complex (RGI's ``CtoG_links``)."""
    intersects: gpd.GeoDataFrame | None = None
    hypsometry: pd.DataFrame | None = None
    links: tuple[pd.DataFrame, ...] = field(default=())
    """Tables of overlaps with other inventories (RGI's ``rgi6_links``)."""


def validate_package(
    package: Package, *, profile: Profile = "rgi7", progress: Progress | None = None
) -> list[Finding]:
    """Check every rule of :data:`change_detection.validation.rules.RULES`.

    Parameters
    ----------
    package
        Frames in any coordinate reference system that they name.
    profile
        Whose rules are to be kept.
    progress
        Told before each check.

    Returns
    -------
    list of Finding
        Errors first, then by rule, in the order of the rows; empty where all is well.
    """
    glaciers = layer_of(package.glaciers, profile=profile)
    checks: list[Callable[[], list[Finding]]] = _own_checks(glaciers)
    if package.complexes is not None:
        complexes = layer_of(package.complexes, profile=profile, product="C")
        checks += [*_own_checks(complexes), partial(check_complexes, glaciers, complexes)]
    else:
        complexes = None
    if package.members is not None:
        checks.append(partial(check_members, glaciers, package.members, complexes))
    if package.intersects is not None:
        lines = layer_of(package.intersects, profile=profile, product="I")
        checks += [partial(check, lines) for check in (check_columns, check_ids, check_attributes)]
        checks.append(partial(check_intersects, glaciers, lines))
    if package.hypsometry is not None:
        checks.append(partial(check_hypsometry, glaciers, package.hypsometry))
    checks += [partial(check_links, glaciers, table) for table in package.links]
    found: list[Finding] = []
    for done, check in enumerate(checks):
        if progress:
            progress("checks", done, len(checks))
        found += check()
    if progress:
        progress("checks", len(checks), len(checks))
    return sorted(found, key=lambda f: (f.severity, f.rule))


def _own_checks(layer: Layer) -> list[Callable[[], list[Finding]]]:
    """Checks of a product of outlines by itself."""
    checks = (
        *(check_columns, check_ids, check_attributes),
        *(check_outlines, check_places, check_pairs),
    )
    return [partial(check, layer) for check in checks]
