"""Layers a user supplies: rasters of what the engine does not measure, on the pixels of the grid.

``dhdt`` is the rate of elevation change, for example the tiles of Hugonnet et al. (2021,
"Accelerated global glacier mass loss in the early twenty-first century"); ``coherence`` is that of
a pair of radar images, low where debris-covered ice moves.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np

from catalog.assets import AssetPolicy, OpenAssets, public_href
from catalog.cube import Outcome, Workspace, create_layer, write_shard
from catalog.errors import DataError, UsageError
from catalog.grid import LonLatBox, RegionGrid, Shard, split_box
from catalog.lattices import read_joined
from catalog.scenes import BandSource

from rasterio.warp import transform_bounds  # isort: skip

__all__ = [
    "EXTRA_LAYERS",
    "build_layer_shard",
    "create_extra_layer",
    "layer_boxes",
    "layer_policy",
    "layer_source",
]

EXTRA_LAYERS: dict[str, tuple[float, float]] = {
    "dhdt": (-150.0, 150.0),
    "coherence": (-1e-3, 1.001),
}
"""Name -> what its values lie between, both excluded; beyond are fill values that no field told."""


def layer_source(
    href: str, *, scale: float = 1.0, offset: float = 0.0, nodata: float | None = None
) -> BandSource:
    """Raster of a layer, named after its file.

    Parameters
    ----------
    href
        Path or URL of a GeoTIFF of one band.
    scale, offset
        Value = pixel x scale + offset.
    nodata
        Pixel value without data; values that make no sense are none in any case.
    """
    name = PurePosixPath(public_href(href)).name
    return BandSource("layer", name, href, scale=scale, offset=offset, nodata=nodata)


def layer_policy(files: Sequence[str]) -> AssetPolicy:
    """What may be opened for a layer: the user named its files, so these places and no others."""
    places = set()
    for file in files:
        parts = urlsplit(file)
        if file.startswith("s3://"):
            places.add(f"s3://{parts.netloc}")
        elif "://" in file:
            port = parts.port or (443 if parts.scheme == "https" else 80)
            places.add((parts.hostname or "") + ("" if port == 443 else f":{port}"))
        else:
            places.add(str(Path(file).parent))
    return AssetPolicy(tuple(sorted(places)))


def layer_boxes(assets: OpenAssets, band: BandSource) -> list[LonLatBox] | None:
    """Boxes in degrees that cover a raster; None where it cannot be opened.

    Raises
    ------
    SourceError
        Where its source cannot be reached.
    """
    try:
        dataset = assets.dataset(band)
    except DataError:
        return None
        # ^ every shard that might need it meets the fault, and names it
    west, south, east, north = transform_bounds(dataset.crs, 4326, *dataset.bounds)
    return split_box(west, max(-90.0, south), east, min(90.0, north))


def create_extra_layer(
    workspace: Workspace,
    name: str,
    grid: RegionGrid,
    *,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Create ``cube.zarr/layers/<name>``, unless it is there already.

    Parameters
    ----------
    workspace, grid
        Where, and on which pixels.
    name
        One of :data:`EXTRA_LAYERS`.
    attributes
        Kept with the array, for example its source and period.

    Raises
    ------
    UsageError
        ``unknown-layer``.
    """
    create_layer(workspace, _array(name), grid, attributes=attributes)


def build_layer_shard(
    workspace: Workspace,
    name: str,
    shard: Shard,
    *,
    rasters: Sequence[BandSource],
    policy: AssetPolicy,
) -> Outcome:
    """Bring rasters to the pixels of one shard and write them.

    Parameters
    ----------
    workspace
        Where; the layer exists, see :func:`create_extra_layer`.
    name
        One of :data:`EXTRA_LAYERS`.
    shard
        Which shard.
    rasters
        In any order and any projection, see :func:`layer_source`. Where they overlap, the first by
        name counts. One that cannot be read all over the shard is left out of it by name.
    policy
        Which rasters may be opened.

    Returns
    -------
    Outcome
        ``facts``: ``rasters`` (number of those that could be used), ``valid_fraction``.

    Raises
    ------
    UsageError
        ``unknown-layer``.
    SourceError
        Where a source cannot be reached.
    StoreError
        Where the shard cannot be written.
    """
    array = _array(name)
    by_name = sorted(rasters, key=lambda band: (band.asset, band.href))
    with OpenAssets(policy) as assets:
        out, sound, faults = read_joined(
            assets,
            [(band.asset, band) for band in by_name],
            shard,
            limits=EXTRA_LAYERS[name],
        )
    checksum = write_shard(workspace, array, shard, out)
    facts = {
        "rasters": len(sound),
        "valid_fraction": round(float(np.isfinite(out).mean()), 6),
    }
    return Outcome({f"{array}/{shard.id}": checksum}, tuple(sorted(faults)), facts)


def _array(name: str) -> str:
    if name not in EXTRA_LAYERS:
        near = difflib.get_close_matches(name, EXTRA_LAYERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(EXTRA_LAYERS)}"
        raise UsageError(f"there is no layer {name!r}; {hint}", kind="unknown-layer")
    return f"cube.zarr/layers/{name}"
