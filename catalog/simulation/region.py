"""From a spec to a folder of scenes with known truth; a stopped run resumes where it was."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from catalog.errors import UsageError

from .delivery import dem_item, optical_item, radar_item, write_catalog, write_cog, write_text
from .ground import cover_ground
from .ice import IceState, divide_glaciers, grow_ice
from .landsat import landsat_item
from .light import sun_position
from .noise import fractal, stream
from .places import RegionFrame, dem_cells, frame_of, granules_of
from .scene import plan_acquisitions, render_optical, render_radar
from .terrain import make_bed
from .truth import reference_table, season_table, write_vector

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import geopandas as gpd
    from numpy.typing import NDArray

    from .ground import Ground
    from .spec import RegionSpec, SeasonSpec

__all__ = ["SimulatedRegion", "simulate_region"]

_SAR_PER_SEASON = 2
_VERSION = 4
# ^ raise it when equal specs no longer give equal files: older folders are then refused


@dataclass(frozen=True, slots=True)
class SimulatedRegion:
    """Where the files of a made-up region are.

    ``truth`` and ``classes`` are keyed by season label.
    """

    out: Path
    items: Path
    catalog: Path
    reference: Path
    truth: dict[str, Path]
    classes: dict[str, Path]


@dataclass(frozen=True, slots=True)
class _World:
    frame: RegionFrame
    bed: NDArray[np.float32]
    states: list[IceState]
    labels: NDArray[np.int32]


def _build_world(spec: RegionSpec) -> _World:
    bed = make_bed(spec)
    states = grow_ice(spec, bed)
    labels, kept = divide_glaciers(spec, bed, states[0].ice)
    trimmed = [
        IceState(
            state.ice & kept,
            state.debris & kept,
            np.where(state.ice & ~kept, bed, state.surface).astype(np.float32),
            state.ela,
        )
        for state in states
    ]
    return _World(frame_of(spec), bed, trimmed, labels)


class _Steps:
    """Counts finished pieces for the caller's progress display."""

    def __init__(self, total: int, report: Callable[[str, int, int], None] | None) -> None:
        self.total, self.done, self.report = total, 0, report

    def tick(self, name: str) -> None:
        """Say that one more piece is finished."""
        self.done += 1
        if self.report is not None:
            self.report(name, self.done, self.total)


def _claim(spec: RegionSpec, out: Path) -> None:
    path = out / "spec.json"
    wanted = json.loads(spec.as_json()) | {"simulation_version": _VERSION}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            raise UsageError(
                f"{out} already holds the made-up region {found.get('name')!r} of another spec "
                "or version: choose an empty folder or remove it",
                kind="simulation-mismatch",
            )
        return
    write_text(path, json.dumps(wanted, sort_keys=True, indent=1) + "\n")


def simulate_region(
    spec: RegionSpec, out: Path, *, progress: Callable[[str, int, int], None] | None = None
) -> SimulatedRegion:
    """Make a region's scenes, catalogue and truth below ``out``.

    Idempotent and resumable: what is finished is kept, what is missing is made, byte for byte
    the same.

    Parameters
    ----------
    spec
        What to make.
    out
        Folder; made if missing.
    progress
        Called with the name of a finished piece, how many are finished, how many there are.

    Raises
    ------
    UsageError
        The folder holds another region (kind ``"simulation-mismatch"``).
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    _claim(spec, out)
    labels = [season.label for season in spec.seasons]
    region = SimulatedRegion(
        out,
        out / "items.json",
        out / "catalog.json",
        out / "reference.gpkg",
        {label: out / "truth" / f"{label}.gpkg" for label in labels},
        {label: out / "truth" / f"{label}.tif" for label in labels},
    )
    pieces = sum(
        season.scenes + 1 + (_SAR_PER_SEASON if spec.sar else 0) for season in spec.seasons
    )
    steps = _Steps(pieces + 2 + int(spec.dem), progress)
    if region.catalog.exists():
        # ^ the catalogue is written last
        while steps.done < steps.total:
            steps.tick("kept")
        return region
    _make_pieces(spec, region, steps)
    return region


def _make_pieces(spec: RegionSpec, region: SimulatedRegion, steps: _Steps) -> None:
    world = _build_world(spec)
    steps.tick("terrain and ice")
    items: list[dict[str, Any]] = []
    date = plan_acquisitions(spec, spec.seasons[0])[0].when.strftime("%Y-%m-%dT00:00:00")
    reference = reference_table(
        spec, world.frame, world.labels, surface=world.states[0].surface, date=date
    )
    if not region.reference.exists():
        write_vector(region.reference, reference, layer="reference")
    for position, season in enumerate(spec.seasons):
        items += _make_season(
            spec,
            world,
            season,
            position=position,
            out=region.out,
            reference=reference,
            steps=steps,
        )
    if spec.dem:
        items += _make_dem(spec, world, region.out)
        steps.tick("elevation model")
    write_catalog(region.out, spec.name, items)
    steps.tick("catalogue")


def _make_season(
    spec: RegionSpec,
    world: _World,
    season: SeasonSpec,
    *,
    position: int,
    out: Path,
    reference: gpd.GeoDataFrame,
    steps: _Steps,
) -> list[dict[str, Any]]:
    ground = cover_ground(spec, world.bed, world.states[position], first=world.states[0])
    classes = out / "truth" / f"{season.label}.tif"
    write_cog(
        classes,
        ground.classes,
        transform=world.frame.transform,
        crs=world.frame.epsg,
        nodata=None,
        categorical=True,
    )
    vector = classes.with_suffix(".gpkg")
    if not vector.exists():
        table = season_table(world.frame, world.labels, classes=ground.classes, reference=reference)
        write_vector(vector, table, layer="glaciers")
    steps.tick(f"truth {season.label}")
    items = _make_optical(spec, world.frame, season, ground=ground, out=out, steps=steps)
    if spec.sar:
        items += _make_radar(spec, world.frame, season, ground=ground, out=out, steps=steps)
    return items


def _remember(
    out: Path, name: str, make: Callable[[], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return the items of a finished piece, or make the piece and record its items last."""
    record = out / "pieces" / f"{name}.json"
    if record.exists():
        found: list[dict[str, Any]] = json.loads(record.read_text(encoding="utf-8"))
        if all(_present(item, out) for item in found):
            return found
    items = make()
    write_text(record, json.dumps(items, sort_keys=True, indent=1) + "\n")
    return items


def _present(item: dict[str, Any], out: Path) -> bool:
    paths = [asset["href"] for asset in item["assets"].values()]
    return all(path.startswith(str(out)) and (out / path).exists() for path in paths)


def _make_optical(
    spec: RegionSpec,
    frame: RegionFrame,
    season: SeasonSpec,
    *,
    ground: Ground,
    out: Path,
    steps: _Steps,
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for acquisition in plan_acquisitions(spec, season):

        def make(acquisition: Any = acquisition) -> list[dict[str, Any]]:
            sun = sun_position(acquisition.when, lon=spec.lon, lat=spec.lat)
            scene = render_optical(
                spec, ground, acquisition, sun=sun, convergence_deg=frame.convergence_deg
            )
            if season.sensor != "sentinel-2":
                return [
                    landsat_item(
                        out / "scenes", frame, acquisition, scene, sun=sun, sensor=season.sensor
                    )
                ]
            return [
                optical_item(
                    out / "scenes", frame, granule, acquisition=acquisition, scene=scene, sun=sun
                )
                for granule in granules_of(spec, frame)
            ]

        items += _remember(out, f"optical-{season.label}-{acquisition.index}", make)
        steps.tick(f"optical {season.label} {acquisition.index}")
    return items


def _make_radar(
    spec: RegionSpec,
    frame: RegionFrame,
    season: SeasonSpec,
    *,
    ground: Ground,
    out: Path,
    steps: _Steps,
) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    month = 8 if spec.lat >= 0 else 2
    for index in range(_SAR_PER_SEASON):
        ascending = index % 2 == 1
        hour = (6.0 + 12.0 * ascending - spec.lon / 15.0) % 24.0
        start = dt.datetime(season.year, month, 8 + 6 * index, tzinfo=dt.UTC)
        when = start + dt.timedelta(seconds=int(hour * 3600))

        def make(
            when: dt.datetime = when, ascending: bool = ascending, index: int = index
        ) -> list[dict[str, Any]]:
            layers = render_radar(spec, ground, name=f"{season.label}/{index}", ascending=ascending)
            return [radar_item(out / "scenes", frame, layers, when=when, ascending=ascending)]

        items += _remember(out, f"radar-{season.label}-{index}", make)
        steps.tick(f"radar {season.label} {index}")
    return items


def _make_dem(spec: RegionSpec, world: _World, out: Path) -> list[dict[str, Any]]:
    import pyproj

    frame = world.frame
    smooth = ndimage.gaussian_filter(world.states[0].surface, 1.6)
    rough = fractal(
        stream(spec.seed, "dem"), smooth.shape, exponent=0.6, longest_px=40.0, shortest_px=5.0
    )
    smooth = smooth + np.float32(1.1) * rough
    to_grid = pyproj.Transformer.from_crs(4326, frame.epsg, always_xy=True)
    items = []
    for south, west, transform, (rows, cols) in dem_cells(frame):
        lon = transform.c + transform.a * (np.arange(cols) + 0.5)
        lat = transform.f + transform.e * (np.arange(rows) + 0.5)
        x, y = to_grid.transform(*np.meshgrid(lon, lat))
        points = np.stack([(frame.top - y) / 10.0 - 0.5, (x - frame.left) / 10.0 - 0.5])
        height = ndimage.map_coordinates(smooth, points, order=1, mode="nearest")
        items.append(
            dem_item(
                out / "scenes", height.astype(np.float32), corner=(south, west), transform=transform
            )
        )
    return items
