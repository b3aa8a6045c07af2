"""Small files of outlines for tests of comparisons: shapes in metres around a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import geopandas as gpd
import shapely
from made_inventories import PROJ4

from change_detection.comparison import Comparison, compare_series
from change_detection.epochs import OutlineFile, read_series


def square(x: float, y: float, side: float = 1000.0) -> shapely.Polygon:
    """A square by its lower-left corner and its side."""
    return shapely.box(x, y, x + side, y + side)


def outlines(
    path: Path, shapes: Mapping[str, object] | Sequence[tuple[object, object]], **columns: object
) -> Path:
    """Write outlines by id (ids may repeat in a sequence of pairs), with further columns."""
    pairs = list(shapes.items()) if isinstance(shapes, Mapping) else list(shapes)
    frame = gpd.GeoDataFrame(
        {"code": [name for name, _ in pairs], **columns},
        geometry=gpd.GeoSeries([shape for _, shape in pairs], crs=PROJ4).to_crs(4326),
    )
    frame.to_file(path)
    return path


def compared(
    *files: Path,
    dates: Sequence[str] = ("2000", "2010", "2020"),
    by_id: bool = True,
    error_m: float = 10.0,
    **how: object,
) -> Comparison:
    """Compare files of :func:`outlines`, each of one date."""
    wanted = [
        OutlineFile(file, "code" if by_id else None, date=date, outline_errors_m=(error_m,))
        for file, date in zip(files, dates, strict=False)
    ]
    return compare_series(read_series(wanted, by_id=by_id), by_id=by_id, **how)


def events_of(comparison: Comparison, pair: int = 0) -> dict[str, set[str]]:
    """All events of a pair of dates by glacier."""
    found: dict[str, set[str]] = {}
    for event in comparison.pairs[pair].events:
        found.setdefault(event.glacier_id, set()).add(event.event)
    return found


def problems_of(comparison: Comparison) -> set[tuple[str, str]]:
    """Kinds of problems and the glaciers they are of."""
    return {(problem.kind, problem.glacier_id) for problem in comparison.problems}
