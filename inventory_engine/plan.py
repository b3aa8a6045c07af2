"""What there is to do: the region, its scenes, and the identity of a workspace.

Nothing here computes a product; the only thing written is ``region.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import shapely

from catalog.assets import AssetPolicy
from catalog.cube import LAYOUT, Workspace
from catalog.errors import SetAside, StoreError, UsageError
from catalog.glaciers import ReferenceInventory, read_reference
from catalog.grid import LonLatBox, RegionGrid, Shard, lonlat_boxes, region_grid
from catalog.revisit import Revisit
from catalog.saved_search import read_search, save_search
from catalog.scenes import Scene
from catalog.search import open_source
from inventory_engine import __version__
from inventory_engine.receipts import Ledger
from inventory_engine.sensor_settings import sensor_specs
from inventory_engine.settings import Settings
from inventory_engine.work import map_fingerprint

if TYPE_CHECKING:
    from change_detection.divides import GlacierBatch
    from model_serving.ensemble import Ensemble
    from model_serving.runtimes import Runtime

__all__ = [
    "REGION",
    "Context",
    "Region",
    "Scenes",
    "Search",
    "check_workspace",
    "claim_workspace",
    "open_region",
    "search_scenes",
    "stored_grid",
    "stored_identity",
    "terrain_season",
    "versions",
]

REGION = "region"
"""The season of stages that have none, and the unit of stages that have one."""

_FILE = "region.json"
_SHOWN_VERSIONS = ("numpy", "rasterio", "scipy", "shapely", "stackstac", "torch", "zarr")


@dataclass(frozen=True, slots=True)
class Region:
    """One region as its settings describe it."""

    settings: Settings
    workspace: Workspace
    reference: ReferenceInventory
    grid: RegionGrid
    shards: tuple[Shard, ...]
    """Shards near the reference outlines: the only ones that are touched."""
    batches: Mapping[int, tuple[GlacierBatch, ...]]
    """Groups of glaciers and their windows, by the multiple of the finest pixel they count in."""
    policy: AssetPolicy

    @property
    def reference_season(self) -> str:
        """Season whose scenes the others are laid on.

        Where the settings name none, the one that was last when the workspace was new: a season
        more must not measure all others anew.
        """
        kept = (stored_identity(self.workspace) or {}).get("reference_season")
        known = self.settings.seasons
        first_choice = self.settings.coregistration.reference
        return first_choice or (kept if kept in known else self.settings.season_labels[-1])

    def grid_of(self, season: str) -> RegionGrid:
        """Grid of a season: the region's own, or one of coarser pixels in the same shards."""
        return self.grid.coarsened(self.settings.multiple(season))

    def shards_of(self, season: str) -> list[Shard]:
        """The region's shards in a season's pixels."""
        grid = self.grid_of(season)
        return [grid.shard(shard.row, shard.col) for shard in self.shards]

    def batches_of(self, season: str) -> tuple[GlacierBatch, ...]:
        """Groups of glaciers, their windows in a season's pixels."""
        return self.batches[self.settings.multiple(season)]

    @property
    def boxes(self) -> list[LonLatBox]:
        """Boxes in degrees that cover all shards."""
        sides = [shard.bounds for shard in self.shards]
        lefts, bottoms, rights, tops = zip(*sides, strict=True)
        return lonlat_boxes((min(lefts), min(bottoms), max(rights), max(tops)), self.grid)


def terrain_season(grid: RegionGrid) -> str:
    """What stands in the place of a season for terrain: each pixel size has its own."""
    return REGION if grid.multiple == 1 else f"{grid.resolution_m:g}m"


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes of all seasons, and what the catalogue offered that could not be used."""

    optical: dict[str, tuple[Scene, ...]]
    sar: dict[str, tuple[Scene, ...]]
    """Only for the seasons that ask for radar."""
    dem: tuple[Scene, ...] | None
    """None where terrain is not asked for."""
    set_aside: tuple[tuple[str, SetAside], ...]
    """Season (``region`` for elevation) and fault; sorted."""
    sparse: tuple[tuple[str, Revisit], ...] = ()
    """Season and tile of which the catalogue seems to lack scenes; sorted."""


@dataclass(frozen=True, slots=True)
class Context:
    """Everything the stages need to know of one run."""

    region: Region
    scenes: Scenes
    ensemble: Ensemble
    runtime: Runtime
    ledger: Ledger

    @property
    def map_fingerprint(self) -> str:
        """Ensemble and runtime of the map stage."""
        return map_fingerprint(self.ensemble, self.runtime)

    def interval(self, season: str) -> tuple[str, str] | None:
        """First and last day of a season."""
        window = self.region.settings.seasons.get(season)
        return (window.start.isoformat(), window.end.isoformat()) if window else None


def open_region(settings: Settings) -> Region:
    """Read the reference outlines and lay the grid over them.

    Raises
    ------
    UsageError
        Where the outlines cannot be used, or a setting asks for something impossible.
    """
    from change_detection.divides import glacier_batches

    reference = read_reference(settings.outlines, id_field=settings.outlines_id_field)
    lon, lat = shapely.get_coordinates(reference.frame.geometry.to_numpy()).T
    wanted = settings.grid
    grid = region_grid(
        lon,
        lat,
        resolution_m=wanted.resolution_m,
        margin_m=wanted.margin_m,
        shard_px=wanted.shard_px,
        chunk_px=wanted.chunk_px,
    )
    outlines = list(reference.frame.geometry.to_crs(grid.proj4))
    shards = grid.shards_near(outlines, max(wanted.margin_m, settings.inventory.growth_m))
    growth = settings.inventory.growth_m
    batches = {
        multiple: tuple(glacier_batches(reference.frame, grid.coarsened(multiple), growth_m=growth))
        for multiple in settings.multiples
    }
    return Region(
        settings,
        Workspace(settings.workspace),
        reference,
        grid,
        tuple(shards),
        batches,
        AssetPolicy(settings.catalog.policy_allowed, settings.catalog.token_url),
    )


def _identity(region: Region) -> dict[str, Any]:
    """Facts about a workspace that no later run may change."""
    return {
        "name": region.settings.name,
        "grid": region.grid.to_dict(),
        "dem": region.settings.catalog.collections.dem,
        "growth_m": region.settings.inventory.growth_m,
    }


def claim_workspace(region: Region) -> None:
    """Write ``region.json``, or check that the workspace belongs to this region.

    Raises
    ------
    UsageError
        As :func:`check_workspace`.
    """
    if not check_workspace(region):
        wanted = _identity(region) | {
            "engine": __version__,
            "layout": LAYOUT,
            "reference_season": region.reference_season,
            "crs": region.grid.wkt,
        }
        region.workspace.put(_FILE, json.dumps(wanted, indent=1).encode() + b"\n")


def check_workspace(region: Region) -> bool:
    """Whether the workspace belongs to this region; False where it is still new.

    Raises
    ------
    UsageError
        ``workspace-mismatch`` where the workspace was made with other settings,
        ``workspace-layout`` where by an engine of another layout, ``workspace-damaged`` where its
        ``region.json`` cannot be read.
    """
    found = stored_identity(region.workspace)
    if found is None:
        return False
    differing = sorted([*_differences(found, _identity(region)), *_season_differences(region)])
    if differing:
        raise UsageError(
            f"the workspace {region.workspace.url} was made with other settings: "
            + "; ".join(differing)
            + ". Restore the former outlines and settings, or name a new workspace.",
            kind="workspace-mismatch",
        )
    return True


def stored_grid(settings: Settings) -> tuple[Workspace, RegionGrid]:
    """Open a workspace that exists, with the grid it was made with.

    Raises
    ------
    UsageError
        Where nothing was run in it yet, and as :func:`stored_identity`.
    """
    workspace = Workspace(settings.workspace)
    identity = stored_identity(workspace)
    if identity is None:
        raise UsageError(f"nothing was run in {workspace.url} yet: `inventory-engine run` first")
    return workspace, RegionGrid.from_dict(identity["grid"])


def stored_identity(workspace: Workspace) -> dict[str, Any] | None:
    """Read ``region.json``: what a workspace was made for, and by which engine; None if new.

    Raises
    ------
    UsageError
        ``workspace-layout`` where an engine of another layout made it, ``workspace-damaged`` where
        it cannot be read.
    """
    data = workspace.get(_FILE)
    if data is None:
        return None
    try:
        found: dict[str, Any] = json.loads(data)
        layout, engine = found.get("layout"), found.get("engine")
        if layout == LAYOUT:
            RegionGrid.from_dict(found["grid"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{_FILE} of {workspace.url} cannot be read; delete that file, and "
            "`inventory-engine run` writes it again from your settings",
            kind="workspace-damaged",
        ) from None
    if layout != LAYOUT:
        raise UsageError(
            f"the workspace {workspace.url} was written by inventory-engine {engine} in layout "
            f"{layout}; this is {__version__} with layout {LAYOUT}: use that version, or name a "
            "new workspace",
            kind="workspace-layout",
        )
    return found


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for key, value in wanted.items():
        there = found.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            yield from _differences(there, value)
        elif there != value:
            yield f"{key} is {there} there and {value} here"


def _season_differences(region: Region) -> Iterator[str]:
    """Ways in which layers that are there do not fit what their season asks for now."""
    for season in region.settings.season_labels:
        optical, radar = (f"cube.zarr/{season}/{layer}" for layer in ("optical", "sar"))
        if not region.workspace.has_array(optical):
            continue
        try:
            found = region.workspace.array(optical).shape[-2:]
        except StoreError as error:
            if error.kind != "metadata-damaged":
                raise
            continue
            # ^ the run mends it
        wanted = region.grid_of(season).shape
        if found != wanted:
            yield f"season {season} has {found} pixels there and {wanted} here"
        asked = region.settings.collections_of(season).sar
        if region.workspace.has_array(radar) and not asked:
            yield f"season {season} has radar there and none here"


Search = Literal["ask", "ask and keep", "kept"]


def search_scenes(region: Region, search: Search = "ask") -> Scenes:
    """Ask the catalogue for every season's scenes.

    Parameters
    ----------
    region
        Where and when.
    search
        Ask the catalogue; ask, and keep in the workspace what it answers; or take what was kept.

    Raises
    ------
    SourceError
        Where the catalogue cannot be reached or is incomplete.
    UsageError
        Where it knows nothing of what was asked for, or nothing is kept.
    """
    wanted = region.settings.catalog
    settings, sensors = region.settings, sensor_specs(region.settings.sensors)
    source = None
    if search != "kept":
        source = open_source(wanted.url, policy=region.policy, sensors=sensors)
    boxes = region.boxes
    aside: list[tuple[str, SetAside]] = []
    sparse: list[tuple[str, Revisit]] = []

    def find(
        kind: str, label: str, names: Sequence[str], *, clouds: float | None = None
    ) -> tuple[Scene, ...]:
        season = region.settings.seasons.get(label)
        question: dict[str, Any] = {
            "collections": list(names),
            "boxes": boxes,
            "start": season.start.isoformat() if season else None,
            "end": season.end.isoformat() if season else None,
            "max_cloud_percent": clouds,
        }
        name = f"{label}-{kind}"
        # Of a server without its port, which may be free by chance; of a file with its folder.
        asked = question | {"catalog": wanted.public_url if wanted.is_api else wanted.url}
        if settings.sensors:
            asked["sensors"] = settings.model_dump(mode="json")["sensors"]
        if source is None:
            result = read_search(region.workspace, name, question=asked)
        else:
            result = source.search(**question)
        if search == "ask and keep":
            save_search(region.workspace, name, result, question=asked)
        aside.extend((label, fault) for fault in result.set_aside)
        sparse.extend((label, tile) for tile in result.revisits if tile.is_sparse)
        strange = [scene for scene in result.scenes if scene.kind != kind]
        if strange:
            raise UsageError(
                f"collection {strange[0].collection} is {strange[0].kind}, but the settings name "
                f"it under {kind}",
                kind="wrong-kind",
            )
        if kind == "sar" and wanted.sar_orbit != "both":
            return tuple(s for s in result.scenes if s.orbit == wanted.sar_orbit)
        return tuple(result.scenes)

    names = {label: settings.collections_of(label) for label in settings.season_labels}
    clouds, dem = wanted.max_cloud_percent, wanted.collections.dem
    return Scenes(
        {s: find("optical", s, n.optical, clouds=clouds) for s, n in names.items()},
        {s: find("sar", s, n.sar) for s, n in names.items() if n.sar},
        find("dem", "region", dem) if dem else None,
        tuple(sorted(aside)),
        tuple(sorted(sparse)),
    )


def versions() -> dict[str, str]:
    """Versions of the engine and of what decides its numbers."""
    return {"inventory-engine": __version__} | {name: version(name) for name in _SHOWN_VERSIONS}
