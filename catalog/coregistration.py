"""Co-registration: how far each scene lies from a reference scene, on ground that does not move.

The one law: what a scene's shift is depends on its pixels, the reference's and the outlines only.
Windows lie on a lattice of the region's projection, so neither shards nor chunks move them.

A shift is measured, and applied, along the axes of the region's grid. Those turn against the axes
of a scene's own UTM zone by the convergence of the meridians; within one scene that angle varies
by about a degree, which turns a shift of 50 m by less than a metre.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import shapely
from rasterio.features import rasterize
from scipy import ndimage

from catalog.assets import AssetPolicy, OpenAssets
from catalog.cube import Outcome, Workspace
from catalog.displacement import WindowShift, measure_shift
from catalog.errors import DataError, SetAside, UsageError
from catalog.grid import LonLatBox, RegionGrid, lonlat_from
from catalog.scenes import Scene, boxes_meet, lon_spans
from catalog.stacks import Tile, given, pixel_metres, read_bands, read_usable

__all__ = [
    "Shift",
    "aligned",
    "build_shift",
    "choose_references",
    "coregister",
    "not_measured",
    "reference_order",
    "tried_references",
]

State = Literal["reference", "kept", "corrected", "misregistered", "not-measured"]

_MATCHED = "nir"
# ^ the band with most contrast on rock and in shadow of those with the finest pixels
_WINDOW_PX = 64
_MAX_WINDOWS = 12
# ^ as many are enough for a median; and the reading ends
_MAX_LOOKS = 24
# ^ windows that are read at most, so that a scene costs little however cloudy it is
_MIN_WINDOWS = 3
_MIN_STABLE = 0.25
_MAX_REFERENCES = 3
# ^ that are tried for one scene
_NEAR_ICE_M = 3000.0
# ^ windows lie this near to a glacier: the error that counts is the one there
_ICE_BUFFER_M = 100.0
# ^ around outlines: moraines on ice, advances, and the outlines' own error
_SNOW_INDEX = 0.4
# ^ (green - swir1) / (green + swir1) of snow is above (Hall et al. 1995), and so is that of water
_CORRECTED_PX = 0.5
# ^ of the region's grid; interpolating between pixels blurs more than a smaller shift displaces
_PLAUSIBLE_PX = 5.0
# ^ of the scenes compared; a third of what a window can find
_MAX_SCATTER_PX = 1.0
_SHOWN_SHARE = 0.9
_COMMON_PX = 0.1
# ^ what changed sun does to all windows alike, which their scatter does not show: measured on
#   simulated mountains and between four seasons of Khumbu
_MEDIAN_ERROR = 1.2533
# ^ of a median against a mean, normal errors: sqrt(pi / 2)
_UNMEASURED_M = {
    "sentinel-2-msi": 6.4,
    "landsat-oli": 12.0,
    "landsat-etm": 12.0,
    "landsat-tm": 12.0,
}
# ^ standard deviation along one axis of one scene against another where nothing could be measured:
#   Sentinel-2 lies within 11 m at 95 % (Level 1C data quality reports), Landsat Tier 1 within 12 m
#   root mean square (USGS LSDS-1619; Tier 2 has no bound); sqrt(2) for two scenes

_UNKNOWN_M = 12.0
# ^ of a sensor that the user describes: as of Landsat, the coarser of those known

_Floats = npt.NDArray[np.float64]
_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shift:
    """How far one scene lies from where it belongs."""

    scene_id: str
    state: State
    """``reference`` (it is one itself), ``kept`` (below half a pixel), ``corrected`` when it is
    read, ``misregistered`` (implausibly far: not used), or ``not-measured``."""
    residual_m: float
    """Standard deviation of what is left along one axis, metres: the error of the measurement, and
    all of the shift where it is kept; from the sensor's own specification where not measured."""
    dx_m: float | None = None
    """Eastwards along the grid's rows, metres; None where not measured."""
    dy_m: float | None = None
    """Northwards along the grid's columns, metres."""
    error_m: float | None = None
    """Standard error of either, metres."""
    scatter_m: float | None = None
    """Spread of the windows around the median (NMAD along one axis), metres."""
    windows: int = 0
    """Windows that were measured."""
    looks: int = 0
    """Windows that were read."""
    reference_id: str | None = None
    """Against which scene; None where none was found."""
    reason: str = ""
    """Why it was not measured, or is not used."""
    fault: str = ""
    """Kind of the fault of a file for which it was not measured, see ``catalog.errors``."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, the inverse of :meth:`from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shift:
        """Rebuild a shift from :meth:`to_dict`."""
        return cls(**values)


def aligned(
    scenes: Sequence[Scene], shifts: Mapping[str, Shift]
) -> tuple[list[Scene], list[SetAside]]:
    """Scenes as they are to be read, and those that lie implausibly far off by name.

    Parameters
    ----------
    scenes
        Scenes of one season.
    shifts
        Scene id -> its shift; a scene without one is left as it is.
    """
    kept, faults = [], []
    for scene in scenes:
        shift = shifts.get(scene.id)
        if shift is not None and shift.state == "misregistered":
            faults.append(SetAside(scene.id, "misregistered", shift.reason))
        elif shift is None or shift.state != "corrected":
            kept.append(scene)
        else:
            moved = (cast(float, shift.dx_m), cast(float, shift.dy_m))
            bands = tuple(replace(band, shift_m=moved) for band in scene.bands)
            masks = tuple(replace(mask, shift_m=moved) for mask in scene.masks)
            kept.append(replace(scene, bands=bands, masks=masks))
    return kept, faults


def build_shift(
    workspace: Workspace,
    season: str,
    scene: Scene,
    *,
    references: Sequence[Scene],
    outlines: gpd.GeoDataFrame,
    grid: RegionGrid,
    policy: AssetPolicy,
) -> Outcome:
    """Measure one scene's shift and write ``shifts/<season>/<scene id>.json``.

    Parameters
    ----------
    workspace, season
        Where.
    scene, references, outlines, grid, policy
        As in :func:`coregister`.

    Returns
    -------
    Outcome
        ``facts`` are the shift; a scene that lies implausibly far off is set aside
        (``misregistered``), and so is one whose rasters, or whose reference's, cannot be read: the
        next run may find them in order.

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    StoreError
        Where the file cannot be written.
    """
    shift = coregister(policy, scene, references, outlines, grid)
    facts = shift.to_dict()
    data = json.dumps(facts, indent=1, sort_keys=True, allow_nan=False).encode()
    name = f"shifts/{season}/{scene.id}.json"
    workspace.put(name, data)
    _, faults = aligned([scene], {scene.id: shift})
    if shift.fault:
        faults.append(SetAside(scene.id, shift.fault, shift.reason))
    return Outcome({name: hashlib.sha256(data).hexdigest()}, tuple(faults), facts)


def coregister(
    policy: AssetPolicy,
    scene: Scene,
    references: Sequence[Scene],
    outlines: gpd.GeoDataFrame,
    grid: RegionGrid,
) -> Shift:
    """Measure how far a scene lies from the reference that suits it best.

    Parameters
    ----------
    policy
        Which rasters may be opened.
    scene
        Which optical scene.
    references
        Scenes that stand still by definition, in order of preference; see :func:`reference_order`.
        Where one shows too little in common with the scene, the next is tried, three at most.
    outlines
        Glaciers, EPSG:4326; ground is stable outside of them, 100 m away.
    grid
        The region's grid. Pixels are compared in its projection, at the coarser scene's resolution,
        and five pixels of that are plausible; half a pixel of the grid is what is corrected.

    Returns
    -------
    Shift
        Median over windows near the glaciers, the farthest apart first: at most 24 are read, of
        which 12 are enough. Broken rasters of the scene itself leave it not measured; whoever maps
        it meets the fault again and sets it aside.

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    UsageError
        Where the scene is not an optical one: what displaces radar in mountains differs from slope
        to slope, and no shift describes it.
    """
    if scene.kind != "optical":
        raise UsageError(f"{scene.id} is of kind {scene.kind}; only optical scenes have a shift")
    ordered = tried_references(scene, references)
    if any(_same(scene, reference) for reference in ordered):
        return Shift(scene.id, "reference", 0.0, 0.0, 0.0, 0.0, reference_id=scene.id)
    found = not_measured(scene, "no reference scene overlaps it")
    with OpenAssets(policy) as assets:
        for number, reference in enumerate(ordered):
            try:
                new = _against(assets, scene, reference, outlines, grid)
            except DataError as error:
                new = replace(
                    not_measured(scene, str(error), reference=reference), fault=error.kind
                )
            if new.state != "not-measured":
                return new
            found = new if number == 0 else found
    return found


def choose_references(scenes: Sequence[Scene]) -> list[Scene]:
    """Scenes of a season that the others are laid on: the clearest of each place and sensor.

    A scene is left out where those before it show nine tenths of its box.
    """
    chosen: list[Scene] = []
    shown: dict[str, shapely.Geometry] = {}
    for scene in sorted(scenes, key=lambda s: (_cloud(s), s.datetime, s.id)):
        box = shapely.union_all([shapely.box(*part) for part in scene.boxes])
        before = shown.get(scene.sensor, shapely.Polygon())
        if shapely.intersection(before, box).area < _SHOWN_SHARE * box.area:
            chosen.append(scene)
            shown[scene.sensor] = shapely.union(before, box)
    return chosen


def _cloud(scene: Scene) -> float:
    return 100.0 if scene.cloud_percent is None else scene.cloud_percent


def reference_order(scene: Scene, references: Sequence[Scene]) -> list[Scene]:
    """Optical references that overlap a scene, the most suitable first.

    Those of the same sensor come before others, then those that overlap more of it, then those
    that stand earlier in the list: equal pixels and equal spectral bands are compared best, and
    where two references of a sensor overlap the scene, the one that shows more of it speaks for it.
    """
    overlaps = [_overlap(scene.bbox, other.bbox) for other in references]
    suited = [
        (other.sensor != scene.sensor, -overlap, place)
        for place, (other, overlap) in enumerate(zip(references, overlaps, strict=True))
        if other.kind == "optical" and overlap > 0
    ]
    return [references[place] for _, _, place in sorted(suited)]


def tried_references(scene: Scene, references: Sequence[Scene]) -> list[Scene]:
    """References that a scene is compared with, in this order; itself alone where it is one."""
    own = [reference for reference in references if _same(scene, reference)]
    return own or reference_order(scene, references)[:_MAX_REFERENCES]


def _same(one: Scene, other: Scene) -> bool:
    return (one.id, one.collection) == (other.id, other.collection)


def _overlap(a: LonLatBox, b: LonLatBox) -> float:
    """Area that two boxes share, square degrees to nine places."""
    height = min(a[3], b[3]) - max(a[1], b[1])
    widths = (
        min(east_a, east_b) - max(west_a, west_b)
        for west_a, east_a in lon_spans(a)
        for west_b, east_b in lon_spans(b)
    )
    return round(max(height, 0.0) * sum(max(width, 0.0) for width in widths), 9)


def not_measured(
    scene: Scene,
    reason: str,
    *,
    reference: Scene | None = None,
    windows: int = 0,
    looks: int = 0,
) -> Shift:
    """The shift of a scene of which nothing is known but what its sensor promises."""
    return Shift(
        scene.id,
        "not-measured",
        _UNMEASURED_M.get(scene.sensor, _UNKNOWN_M),
        windows=windows,
        looks=looks,
        reference_id=None if reference is None else reference.id,
        reason=reason,
    )


def _against(
    assets: OpenAssets,
    scene: Scene,
    reference: Scene,
    outlines: gpd.GeoDataFrame,
    grid: RegionGrid,
) -> Shift:
    lattice = _lattice(assets, (scene, reference), grid)
    found: list[WindowShift] = []
    looks = 0
    for tile, stable in _windows(scene, reference, outlines, lattice):
        if looks == _MAX_LOOKS or len(found) == _MAX_WINDOWS:
            break
        looks += 1
        shift = _measure(assets, scene, reference, tile, stable)
        found += [] if shift is None else [shift]
    if len(found) < _MIN_WINDOWS:
        return not_measured(
            scene,
            f"{len(found)} of {looks} windows show enough stable ground in common with "
            f"{reference.id}, expected {_MIN_WINDOWS} at least",
            reference=reference,
            windows=len(found),
            looks=looks,
        )
    return _combine(scene, reference, found, looks=looks, grid=grid, lattice=lattice)


def _combine(
    scene: Scene,
    reference: Scene,
    found: Sequence[WindowShift],
    *,
    looks: int,
    grid: RegionGrid,
    lattice: RegionGrid,
) -> Shift:
    """Median of the windows, and what follows from it."""
    each = np.array([(one.dx_m, one.dy_m) for one in found])
    dx, dy = (float(v) for v in np.median(each, axis=0))
    nmad = 1.4826 * np.median(np.abs(each - (dx, dy)), axis=0)
    scatter = math.hypot(*nmad) / math.sqrt(2)
    if scatter > _MAX_SCATTER_PX * lattice.resolution_m:
        return not_measured(
            scene,
            f"its windows disagree by {scatter:.1f} m on how far it lies from {reference.id}",
            reference=reference,
            windows=len(found),
            looks=looks,
        )
    common = _COMMON_PX * lattice.resolution_m
    error = math.hypot(_MEDIAN_ERROR * scatter / math.sqrt(len(found)), common)
    length = math.hypot(dx, dy)
    plausible = _PLAUSIBLE_PX * lattice.resolution_m
    state: State = "corrected" if length > _CORRECTED_PX * grid.resolution_m else "kept"
    reason = ""
    if length > plausible:
        state = "misregistered"
        reason = (
            f"it lies {length:.0f} m ({dx:.0f} m east, {dy:.0f} m north) from {reference.id}, "
            f"plausible are {plausible:.0f} m"
        )
    left = error if state == "corrected" else math.hypot(error, length / math.sqrt(2))
    return Shift(
        scene.id,
        state,
        residual_m=_millimetres(left),
        dx_m=_millimetres(dx),
        dy_m=_millimetres(dy),
        error_m=_millimetres(error),
        scatter_m=_millimetres(scatter),
        windows=len(found),
        looks=looks,
        reference_id=reference.id,
        reason=reason,
    )


def _millimetres(value: float) -> float:
    """Rounded to them; + 0.0 makes a plain zero of -0.0."""
    return round(value, 3) + 0.0


def _lattice(assets: OpenAssets, scenes: Sequence[Scene], grid: RegionGrid) -> RegionGrid:
    """Grid on which two scenes are compared, with pixels as large as the coarser scene's.

    Its corner is the projection's origin: where windows lie must not depend on the shards.
    """
    bands = [band for scene in scenes for band in scene.bands if band.role == _MATCHED]
    native = max(pixel_metres(assets.dataset(band)) for band in bands)
    return replace(grid, resolution_m=float(max(1, round(native))), left=0.0, top=0.0)


def _windows(
    scene: Scene, reference: Scene, outlines: gpd.GeoDataFrame, lattice: RegionGrid
) -> Iterator[tuple[Tile, _Mask]]:
    """Windows near the glaciers that both scenes may show, each as far as can be from the others.

    Yields
    ------
    tuple
        The window, and ``(y, x)`` bool where its ground is stable.
    """
    bounds = outlines.bounds.to_numpy()
    near = np.array([boxes_meet(scene.bbox, tuple(box)) for box in bounds], bool)
    shapes = outlines.geometry[near].to_crs(lattice.proj4).to_numpy()
    cells = _cells(shapes, lattice)
    cells = cells[_seen_by_both(cells, scene, reference, lattice)]
    tree = shapely.STRtree(shapes)
    for row, col in _farthest_first(cells):
        tile = Tile(lattice, row * _WINDOW_PX, col * _WINDOW_PX, _WINDOW_PX, _WINDOW_PX)
        stable = _stable(tile, tree)
        if stable.mean() >= _MIN_STABLE:
            yield tile, stable


def _cells(shapes: npt.NDArray[Any], lattice: RegionGrid) -> npt.NDArray[np.int64]:
    """Rows and columns of the windows that come near the glaciers' bounds, sorted."""
    edge = _WINDOW_PX * lattice.resolution_m
    found: set[tuple[int, int]] = set()
    for west, south, east, north in shapely.bounds(shapes):
        rows = range(
            math.floor(-(north + _NEAR_ICE_M) / edge), math.floor(-(south - _NEAR_ICE_M) / edge) + 1
        )
        cols = range(
            math.floor((west - _NEAR_ICE_M) / edge), math.floor((east + _NEAR_ICE_M) / edge) + 1
        )
        found |= {(row, col) for row in rows for col in cols}
    return np.array(sorted(found), np.int64).reshape(-1, 2)


def _seen_by_both(
    cells: npt.NDArray[np.int64], scene: Scene, reference: Scene, lattice: RegionGrid
) -> _Mask:
    edge = _WINDOW_PX * lattice.resolution_m
    to_lonlat = lonlat_from(lattice.proj4)
    lon, lat = to_lonlat.transform((cells[:, 1] + 0.5) * edge, -(cells[:, 0] + 0.5) * edge)
    seen = np.ones(len(cells), bool)
    for box in (scene.bbox, reference.bbox):
        across = [(west <= lon) & (lon <= east) for west, east in lon_spans(box)]
        seen &= np.any(across, axis=0) & (box[1] <= lat) & (lat <= box[3])
    return seen


def _farthest_first(cells: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cells, the middle one first, then always the one farthest from all before; first of equals.

    However many are taken, they are spread over the whole.
    """
    if not len(cells):
        return
    doubled = 2 * cells - (cells.min(axis=0) + cells.max(axis=0))
    nearest = -(doubled**2).sum(axis=1)
    # ^ whole numbers throughout, so that equal distances are equal everywhere
    distance = np.full(len(cells), np.iinfo(np.int64).max)
    for number in range(len(cells)):
        index = int((nearest if number == 0 else distance).argmax())
        yield int(cells[index, 0]), int(cells[index, 1])
        distance = np.minimum(distance, ((cells - cells[index]) ** 2).sum(axis=1))


def _stable(tile: Tile, tree: shapely.STRtree) -> _Mask:
    """Pixels of a window that are away from every glacier."""
    size = tile.grid.resolution_m
    halo = math.ceil(_ICE_BUFFER_M / size) + 1
    wide = tile.widened(halo)
    hits = tree.query(shapely.box(*wide.bounds))
    if not len(hits):
        return np.ones((tile.height, tile.width), bool)
    ice = rasterize(
        tree.geometries[np.sort(hits)],
        out_shape=(wide.height, wide.width),
        transform=tile.grid.window_transform(wide.row, wide.col),
        all_touched=True,
        dtype="uint8",
    )
    if not ice.any():
        return np.ones((tile.height, tile.width), bool)
    away = ndimage.distance_transform_edt(ice == 0) * size > _ICE_BUFFER_M
    return np.asarray(away[halo:-halo, halo:-halo])


def _measure(
    assets: OpenAssets, scene: Scene, reference: Scene, tile: Tile, stable: _Mask
) -> WindowShift | None:
    """One window's shift; what shows too little is not read to the end."""
    images = []
    usable = stable
    for one in (scene, reference):
        usable = usable & read_usable(assets, one.masks, tile)
        if usable.mean() < _MIN_STABLE:
            return None
        image, bare = _look(assets, one, tile)
        images.append(image)
        usable = usable & bare
    return measure_shift(images[1], images[0], usable, tile.grid.resolution_m)


def _look(assets: OpenAssets, scene: Scene, tile: Tile) -> tuple[_Floats, _Mask]:
    """Image to compare, and where it shows neither nothing nor snow nor water."""
    by_role = {band.role: band for band in scene.bands}
    bands = [by_role[role] for role in ("green", "swir1", _MATCHED)]
    raw = read_bands(assets, bands, tile, dtype=scene.dtype)
    green, swir1, nir = (
        pixels * band.scale + band.offset for pixels, band in zip(raw, bands, strict=True)
    )
    bare = green - swir1 < _SNOW_INDEX * np.maximum(green + swir1, 1e-6)
    return nir, bare & given(raw).all(axis=0)
