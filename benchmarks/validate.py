"""What validating an inventory costs, by its number of glaciers.

Glaciers are made up: lattices of outlines of about a hundred vertices that share borders with
their neighbours in complexes of sixteen; one in a thousand grows over its neighbours. Seconds are
the processor's, for all is done on one core. Peak memory is the whole process's so far::

    python benchmarks/validate.py            # 10,000 and 100,000 glaciers: some minutes
    python benchmarks/validate.py --quick    # 10,000
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import geopandas as gpd
import numpy as np
import pandas as pd
import shapely
from measure import machine, table

from change_detection.attributes import RGI_ATTRIBUTES
from change_detection.topology import areas_km2, dissolve_complexes, shared_borders
from change_detection.validation.inventory import Package, validate_package

Result = TypeVar("Result")
_SIDE = 4
# ^ glaciers along the edge of a complex
_EDGE_VERTICES = 24
_CELL_DEG = 0.01


def made_glaciers(count: int, *, seed: int = 0) -> gpd.GeoDataFrame:
    """Quadrangles with rough edges that neighbours share vertex by vertex, in RGI 7's columns."""
    rng = np.random.default_rng(seed)
    across = int(np.ceil(np.sqrt(count / _SIDE**2)))
    polygons = []
    for number in range(across * across):
        west, south = 6.0 + number % across * 0.06, 30.0 + number // across * 0.05
        polygons += _complex(west, south, rng)
    polygons = shapely.polygons(polygons[:count])
    centre = shapely.point_on_surface(polygons)
    lon, lat = shapely.get_x(centre), shapely.get_y(centre)
    first = shapely.get_coordinates(shapely.get_point(shapely.get_exterior_ring(polygons), 0))
    number = np.arange(count)
    region = np.array([f"{1 + n // 99_999:02d}" for n in number])
    columns = {
        "rgi_id": [
            f"RGI2000-v7.0-G-{r}-{n % 99_999 + 1:05d}" for r, n in zip(region, number, strict=True)
        ],
        "o1region": region,
        "o2region": np.char.add(region, "-01"),
        "glims_id": [
            f"G{round(x * 1000):06d}E{round(y * 1000):05d}N" for x, y in zip(lon, lat, strict=True)
        ],
        "src_date": "2003-07-30T00:00:00",
        "cenlon": lon,
        "cenlat": lat,
        "utm_zone": ((lon + 180) // 6 + 1).astype(int),
        "area_km2": areas_km2(polygons),
        "termlon": first[:, 0],
        "termlat": first[:, 1],
        "aspect_deg": 90.0,
        "aspect_sec": 3,
        "dem_source": "COPDEM30",
        "glac_name": "",
    }
    rest = {
        name: {"str": "", "int": 0, "float": 1000.0}[kind]
        for name, kind in RGI_ATTRIBUTES.items()
        if name not in columns
    }
    frame = pd.DataFrame(columns | rest | {"slope_deg": 20.0})[list(RGI_ATTRIBUTES)]
    return gpd.GeoDataFrame(frame, geometry=list(polygons), crs=4326)


def _complex(west: float, south: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Rings of the glaciers of one complex."""
    nodes = np.stack(np.meshgrid(np.arange(_SIDE + 1), np.arange(_SIDE + 1)), axis=-1) * _CELL_DEG
    nodes = nodes + (west, south) + rng.uniform(-0.1, 0.1, nodes.shape) * _CELL_DEG
    along = np.linspace(0, 1, _EDGE_VERTICES + 1)[:-1]
    bend = 0.01 * _CELL_DEG * rng.uniform(-1, 1, _EDGE_VERTICES)
    bend[0] = 0.0

    def edge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if tuple(a) > tuple(b):
            return np.concatenate([a[None], edge(b, a)[1:][::-1]])
        step = b - a
        side = np.array([-step[1], step[0]]) / np.hypot(*step)
        return a + along[:, None] * step + bend[:, None] * side

    rings = []
    for row in range(_SIDE):
        for col in range(_SIDE):
            a, b, c, d = (
                nodes[row, col],
                nodes[row, col + 1],
                nodes[row + 1, col + 1],
                nodes[row + 1, col],
            )
            ring = np.concatenate([edge(a, b), edge(b, c), edge(c, d), edge(d, a)])
            rings.append(np.concatenate([ring, ring[:1]]))
    return rings


def spoiled(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
    """One glacier in a thousand grows over its neighbours."""
    outlines = frame.geometry.to_numpy().copy()
    outlines[::1000] = shapely.buffer(outlines[::1000], 0.002)
    return frame.set_geometry(gpd.GeoSeries(outlines, crs=4326))


def timed(name: str, call: Callable[[], Result]) -> tuple[Result, float]:
    """Result and processor seconds of a call, told as soon as they are known."""
    start = time.process_time()
    result = call()
    seconds = time.process_time() - start
    print(f"{name}: {seconds:.1f} s", file=sys.stderr, flush=True)
    return result, seconds


def row(count: int) -> list[str]:
    """Row of the table: glaciers, vertices, borders, seconds of each part, rate, peak memory."""
    frame = made_glaciers(count)
    spoilt = Package(spoiled(frame))
    alone, outlines_s = timed("outlines", lambda: validate_package(spoilt))
    borders, borders_s = timed("borders", lambda: shared_borders(frame))
    complexes, complexes_s = timed("complexes", lambda: dissolve_complexes(frame))
    ids = [f"RGI2000-v7.0-C-01-{n + 1:05d}" for n in range(len(complexes.frame))]
    numbers = [
        f"RGI2000-v7.0-I-{n // 99_999 + 1:02d}-{n % 99_999 + 1:05d}" for n in range(len(borders))
    ]
    package = Package(
        frame,
        complexes.frame.assign(rgi_id=ids),
        dict(zip(ids, complexes.members, strict=True)),
        borders.assign(rgi_id=numbers),
    )
    whole, package_s = timed("package", lambda: validate_package(package))
    print(f"{count}: {len(alone)} findings, {len(whole)} in the package", file=sys.stderr)
    vertices = int(shapely.get_num_coordinates(frame.geometry.to_numpy()).sum())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        *(f"{n:,}" for n in (count, vertices, len(borders))),
        *(f"{s:.1f}" for s in (outlines_s, borders_s, complexes_s, package_s)),
        f"{count / outlines_s:,.0f}",
        f"{peak:,.0f}",
    ]


def main() -> None:
    """Print the table and the machine."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="10,000 glaciers only")
    counts = (10_000,) if parser.parse_args().quick else (10_000, 100_000)
    head = [
        *("glaciers", "vertices", "border lines", "outlines s", "borders s", "complexes s"),
        *("package s", "outlines/s", "peak MiB"),
    ]
    print(table(head, [row(count) for count in counts]))
    for name, fact in machine(("shapely", "geopandas", "pyproj")).items():
        print(f"{name}: {fact}")


if __name__ == "__main__":
    main()
