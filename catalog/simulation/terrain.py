"""Made-up mountains: uplift and river erosion, then glacial troughs, then fine detail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from catalog.errors import DataError

from .noise import fractal, ridged, stream
from .routing import accumulate, fill_depressions, incise, receivers
from .spec import RegionSpec, style_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .spec import TerrainShape

__all__ = ["drain", "enlarge", "make_bed", "slope_of"]


def drain(
    z: NDArray[np.float64], rng: np.random.Generator | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Fill pits and route: filled surface (y, x), flat receivers, flat order low to high."""
    filled = fill_depressions(np.ascontiguousarray(z, dtype=np.float64), 1e-3)
    jitter = np.ones_like(filled) if rng is None else rng.uniform(0.72, 1.28, filled.shape)
    target = receivers(filled, jitter)
    order = np.argsort(filled.ravel(), kind="stable")
    return filled, target, order


def slope_of(z: NDArray[np.float32], cell_m: float) -> NDArray[np.float32]:
    """Return the tangent of the slope, (y, x) float32."""
    gy, gx = np.gradient(z, cell_m)
    return np.asarray(np.hypot(gy, gx), dtype=np.float32)


def enlarge(
    coarse: NDArray[np.floating],
    side: int,
    *,
    order: int = 3,
    warp: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Interpolate a square field to ``side`` pixels, cell centres aligned.

    ``warp`` (2, side, side) float32 displaces the sampling points, in coarse cells.
    """
    step = coarse.shape[0] / side
    axis = ((np.arange(side) + 0.5) * step - 0.5).astype(np.float32)
    if warp is None:
        zoomed = ndimage.zoom(
            coarse.astype(np.float32),
            side / coarse.shape[0],
            order=order,
            mode="nearest",
            grid_mode=True,
        )
        return np.asarray(zoomed, dtype=np.float32)
    points = np.stack([axis[:, None] + warp[0], axis[None, :] + warp[1]])
    out = ndimage.map_coordinates(
        coarse.astype(np.float32), points, order=order, mode="nearest", output=np.float32
    )
    return np.asarray(out, dtype=np.float32)


def _massif(seed: int, side: int, size_m: float) -> NDArray[np.float64]:
    # Uplift is high in an irregular patch and falls to the border, so that glaciers are whole.
    axis = np.linspace(-1.0, 1.0, side)
    edge = np.maximum(np.abs(axis)[:, None], np.abs(axis)[None, :])
    round_edge = np.sqrt(axis[:, None] ** 2 + axis[None, :] ** 2)
    warp = fractal(stream(seed, "massif"), (side, side), exponent=2.5, longest_px=side * 0.5)
    radius = 0.6 * edge + 0.4 * round_edge + 0.10 * warp
    rise = np.clip((1.0 - radius) / 0.75, 0.0, 1.0)
    valley_px = 9000.0 * side / size_m
    lines = [
        np.abs(
            fractal(
                stream(seed, "valleys", k),
                (side, side),
                exponent=2.5,
                longest_px=valley_px,
                shortest_px=valley_px * 0.35,
            )
        )
        for k in (0, 1)
    ]
    through = np.clip(np.minimum(lines[0], lines[1] + 0.15) / 0.55, 0.06, 1.0)
    # ^ low ground along the zero lines of smooth noise: valleys that cross the mountains
    return np.asarray((0.02 + rise**0.45) * through, dtype=np.float64)


def _evolve(
    z: NDArray[np.float64], seed: int, *, cell_m: float, steps: int, repose: float
) -> NDArray[np.float64]:
    side = z.shape[0]
    rng = stream(seed, "evolve", side)
    uplift = _massif(seed, side, side * cell_m) * 70.0
    hard = fractal(
        stream(seed, "hardness", side), (side, side), exponent=1.5, longest_px=4e3 / cell_m
    )
    limit = repose * np.exp(0.16 * np.clip(hard, -2.0, 2.0)).astype(np.float64)
    # ^ harder rock stands steeper: faces and benches instead of one angle everywhere
    for _ in range(steps):
        filled, target, order = drain(z, rng)
        area = accumulate(order, target, np.full(z.size, cell_m * cell_m))
        flat = incise(
            filled.ravel(), order, target, area, uplift.ravel(), limit.ravel(), 0.7, cell_m
        )
        z = flat.reshape(z.shape)
    return z


def _carve_troughs(
    z: NDArray[np.float64], seed: int, *, cell_m: float, floor_m: float
) -> NDArray[np.float64]:
    # Valley cross-sections of former glaciers are near-parabolic, width grows with catchment:
    # Harbor (1992), Prasicek et al. (2015).
    filled, target, order = drain(z)
    area = accumulate(order, target, np.full(z.size, cell_m * cell_m)).reshape(z.shape)
    channel = area > 0.45e6
    distance, (iy, ix) = ndimage.distance_transform_edt(~channel, return_indices=True)
    smooth_area = ndimage.gaussian_filter(area[iy, ix] ** 0.5, 3.0)
    base = ndimage.gaussian_filter(np.where(channel, filled, 0.0)[iy, ix], 2.5)
    width = np.clip(0.16 * smooth_area, 70.0, floor_m)
    wobble = 1.0 + 0.18 * fractal(stream(seed, "trough"), z.shape, exponent=2.0, longest_px=40)
    ratio = distance * cell_m / (width * wobble)
    trough = base + 0.10 * width * ratio**2 + 0.5 * width * np.maximum(ratio - 1.0, 0.0) ** 1.5
    carved = np.minimum(z, trough)
    sharp = ndimage.gaussian_filter(carved, 0.7)
    return np.asarray(np.where(carved < z - 1.0, ndimage.gaussian_filter(carved, 1.3), sharp))


def _overdeepen(z: NDArray[np.float64], seed: int, *, cell_m: float) -> NDArray[np.float64]:
    # Basins scoured below the valley floor: lakes where no ice fills them.
    filled, target, order = drain(z)
    area = accumulate(order, target, np.full(z.size, cell_m * cell_m)).reshape(z.shape)
    gentle = slope_of(ndimage.gaussian_filter(filled, 2.0).astype(np.float32), cell_m) < 0.20
    spots = np.argwhere((area > 0.5e6) & (area < 2.0e7) & gentle)
    if len(spots) == 0:
        return z
    rng = stream(seed, "basins")
    count = max(2, round(z.size * cell_m * cell_m / 1e6 / 7.0))
    y, x = np.ogrid[: z.shape[0], : z.shape[1]]
    out = z.copy()
    for row, col in spots[rng.choice(len(spots), size=min(count, len(spots)), replace=False)]:
        long, wide = rng.uniform(3.0, 9.0), rng.uniform(2.0, 4.5)
        turn = rng.uniform(0.0, np.pi)
        along = (y - row) * np.cos(turn) + (x - col) * np.sin(turn)
        across = (x - col) * np.cos(turn) - (y - row) * np.sin(turn)
        out -= rng.uniform(15.0, 55.0) * np.exp(-((along / long) ** 2) - (across / wide) ** 2)
    return np.asarray(out, dtype=np.float64)


def _detail(seed: int, bed: NDArray[np.float32]) -> NDArray[np.float32]:
    side = bed.shape[0]
    slope = ndimage.gaussian_filter(slope_of(bed, 10.0), 4.0)
    steep = np.clip((slope - 0.35) / 0.5, 0.0, 1.2)
    crags = ridged(stream(seed, "crags"), (side, side), longest_px=40.0, octaves=3) - 0.35
    rough = fractal(
        stream(seed, "rough"), (side, side), exponent=1.6, longest_px=60.0, shortest_px=2.5
    )
    fine = steep * (13.0 * crags + 0.8 * rough) + 0.4 * rough
    return np.asarray(bed + fine, dtype=np.float32)


def _real_shape(shape: TerrainShape, side: int) -> NDArray[np.float64]:
    """Heights of a real square of ``side`` cells of 40 m, (y, x) float64."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.warp import Resampling, reproject

    here = f"+proj=laea +lat_0={shape.lat} +lon_0={shape.lon} +datum=WGS84 +units=m"
    half = 20.0 * side
    out = np.full((side, side), np.nan, dtype=np.float64)
    with rasterio.open(shape.path) as source:
        reproject(
            rasterio.band(source, 1),
            out,
            dst_transform=from_origin(-half, half, 40.0, 40.0),
            dst_crs=here,
            dst_nodata=np.nan,
            resampling=Resampling.cubic,
        )
    if not np.isfinite(out).all():
        raise DataError(
            f"{shape.path} does not hold the square of {side * 0.04:g} km around {shape.lon}, "
            f"{shape.lat}: {np.isnan(out).mean():.0%} of it has no height",
            kind="terrain-missing",
        )
    return np.asarray(ndimage.gaussian_filter(out, 1.0), dtype=np.float64)


def make_bed(spec: RegionSpec) -> NDArray[np.float32]:
    """Make the ice-free ground: (y, x) float32 elevation in metres on the 10 m grid.

    Raises
    ------
    DataError
        ``terrain-missing`` where a real elevation model does not hold the region's square.
    """
    if spec.terrain is not None:
        real = enlarge(_real_shape(spec.terrain, spec.side_px // 4), spec.side_px, order=3)
        return _detail(spec.seed, real)
    style = style_of(spec)
    side = spec.side_px
    seed = spec.seed
    coarse = side // 16
    z = 4.0 * fractal(stream(seed, "start"), (coarse, coarse), exponent=2.0).astype(np.float64)
    massif = _massif(seed, coarse, 10.0 * side)
    z = np.where(massif > 0, z + 40.0 * massif, 0.0)
    for level, steps in ((16, 70), (8, 35), (4, 14)):
        size = side // level
        if z.shape[0] != size:
            z = enlarge(z, size, order=1).astype(np.float64)
            z += 3.0 * fractal(stream(seed, "grain", size), z.shape, exponent=1.0)
        z = _evolve(z, seed, cell_m=10.0 * level, steps=steps, repose=style.repose)
    low, high = np.percentile(z, [0.5, 99.9])
    scale = style.relief_m / max(float(high - low), 1.0)
    z = (z - low) * scale
    z = _carve_troughs(z, seed, cell_m=40.0, floor_m=330.0)
    z = _overdeepen(z, seed, cell_m=40.0)
    warp = np.stack(
        [
            1.5
            * fractal(
                stream(seed, "warp", k),
                (side, side),
                exponent=2.5,
                longest_px=160.0,
                shortest_px=36.0,
            )
            for k in (0, 1)
        ]
    )
    bed = enlarge(z, side, order=3, warp=warp.astype(np.float32))
    return np.asarray(_detail(seed, bed) + np.float32(style.base_m), dtype=np.float32)
