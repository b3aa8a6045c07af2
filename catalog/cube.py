"""The store: where arrays and files live, how they are written, how damage is found.

One law: two tasks never write one object. Every array is sharded exactly like the grid, a write is
one whole shard, and small files are replaced atomically.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import obstore
import zarr
from obstore.store import from_url
from zarr.abc.buffer import Buffer
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from catalog.errors import SetAside, StoreError, UsageError
from catalog.georeference import georeference, write_coordinates
from catalog.grid import RegionGrid, Shard

__all__ = [
    "CLASSES",
    "DATE_MISSING",
    "ICE_CLASSES",
    "ILLUMINATION_SCALE",
    "LAYERS",
    "LAYOUT",
    "MIN_MEMBERS",
    "NOT_SEEN",
    "OPTICAL_BANDS",
    "OPTICAL_OFFSET",
    "OPTICAL_SCALE",
    "PROBABILITY_SCALE",
    "SAR_BANDS",
    "SAR_OFFSET_DB",
    "SAR_SCALE_DB",
    "TERRAIN_BANDS",
    "UNKNOWN",
    "Layer",
    "Outcome",
    "Workspace",
    "create_layer",
    "read_shard",
    "read_window",
    "shard_checksum",
    "shard_key",
    "store_error",
    "terrain_name",
    "write_shard",
]

LAYOUT = 1
"""Layout of arrays and files; raised where an engine of the former one would misread them."""
OPTICAL_BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
OPTICAL_SCALE, OPTICAL_OFFSET = 1e-4, -0.1
# ^ reflectance = stored * scale + offset, so stored = reflectance * 10000 + 1000; 0 = no data
SAR_BANDS = ("vv", "vh")
SAR_SCALE_DB, SAR_OFFSET_DB = 1e-3, -50.0
# ^ gamma0 in dB = stored * scale + offset; 0 = no data
TERRAIN_BANDS = (
    "elevation",
    "slope",
    "relative_elevation",
    "curvature",
    "aspect_sin",
    "aspect_cos",
    "plan_curvature",
    "profile_curvature",
)
ILLUMINATION_SCALE = 1 / 250
# ^ cosine of the angle of incidence = stored * scale; 0 = in shadow, 255 = unknown
CLASSES = ("background", "clean ice", "debris-covered ice", "water")
MIN_MEMBERS = 3
# ^ fewer members that vote give no standard deviation
ICE_CLASSES = (1, 2)
# ^ indices of the classes that are glacier
UNKNOWN = 255
# ^ label of a pixel whose true class is not known: it is neither learnt nor scored
PROBABILITY_SCALE = 1 / 254
NOT_SEEN = 255
# ^ in every class of `probability` and in `spread`: the pixel was not observed
DATE_MISSING = int(np.iinfo(np.int32).min)


@dataclass(frozen=True, slots=True)
class Layer:
    """One array of the store: its type, leading dimension, fill value and CF attributes."""

    dtype: str
    fill: float | int
    bands: tuple[str, ...] = ()
    """Labels of the leading dimension; empty for a plain ``(y, x)`` array."""
    dim: str = "band"
    """Name of the leading dimension; its lengths differ, and a name has one length in a store."""
    masked: bool = True
    """Whether the fill value means that nothing is known, so that readers mask it."""
    attributes: dict[str, Any] = field(default_factory=dict)


LAYERS: dict[str, Layer] = {
    "optical": Layer(
        "uint16",
        0,
        OPTICAL_BANDS,
        attributes={
            "standard_name": "surface_bidirectional_reflectance",
            "long_name": "surface reflectance",
            "units": "1",
            "scale_factor": OPTICAL_SCALE,
            "add_offset": OPTICAL_OFFSET,
        },
    ),
    "date": Layer(
        "int32",
        DATE_MISSING,
        attributes={"long_name": "day of acquisition", "units": "days since 1970-01-01"},
    ),
    "span": Layer(
        "uint16", 65535, attributes={"long_name": "days between first and last clear look"}
    ),
    "observations": Layer(
        "uint8", 0, masked=False, attributes={"long_name": "number of clear looks", "units": "1"}
    ),
    "sar": Layer(
        "uint16",
        0,
        SAR_BANDS,
        dim="polarisation",
        attributes={
            "long_name": "terrain-corrected backscatter gamma0",
            "units": "dB",
            "scale_factor": SAR_SCALE_DB,
            "add_offset": SAR_OFFSET_DB,
        },
    ),
    "terrain": Layer(
        "float32",
        float("nan"),
        TERRAIN_BANDS,
        dim="parameter",
        attributes={
            "long_name": "elevation (m), slope (deg), relative elevation (m), curvature (1/100 m), "
            "sine and cosine of the downslope direction from true north, "
            "plan and profile curvature (1/100 m)"
        },
    ),
    "illumination": Layer(
        "uint8",
        255,
        attributes={
            "long_name": "cosine of the sun's angle of incidence at the look taken; 0 = in shadow",
            "units": "1",
            "scale_factor": ILLUMINATION_SCALE,
        },
    ),
    "dhdt": Layer(
        "float32",
        float("nan"),
        attributes={"long_name": "rate of elevation change", "units": "m year-1"},
    ),
    "coherence": Layer(
        "float32",
        float("nan"),
        attributes={"long_name": "coherence of a pair of radar images", "units": "1"},
    ),
    "probability": Layer(
        "uint8",
        NOT_SEEN,
        CLASSES,
        dim="class",
        attributes={"long_name": "class probability", "scale_factor": PROBABILITY_SCALE},
    ),
    "spread": Layer(
        "uint8",
        NOT_SEEN,
        attributes={
            "long_name": "standard deviation of the members' ice probability; 255 = not available",
            "scale_factor": PROBABILITY_SCALE,
        },
    ),
    "votes": Layer(
        "uint32",
        0,
        masked=False,
        attributes={"long_name": "bit i is set where member i of the card sees ice"},
    ),
    "voters": Layer(
        "uint32", 0, attributes={"long_name": "bit i is set where member i was allowed to vote"}
    ),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one unit of work left behind: the raw material of its receipt."""

    outputs: dict[str, str]
    """Name of each stored object or shard -> SHA-256 of its bytes."""
    set_aside: tuple[SetAside, ...] = ()
    """What was left out, and why; sorted."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON-ready facts about the result, equal for equal inputs (no timings)."""


class Workspace:
    """A folder on a disk or under an object-store URL that holds one region's products.

    Parameters
    ----------
    url
        A local path, or a URL such as ``s3://bucket/prefix``. Credentials come from the
        environment only.
    """

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.local: Path | None = None
        self._store: Any = None
        if "://" not in self.url:
            self.local = Path(self.url).expanduser().absolute()
        else:
            try:
                self._store = from_url(self.url)
            except (ValueError, obstore.exceptions.BaseError) as error:
                raise UsageError(f"cannot open the workspace {self.url!r}: {error}") from error

    def __reduce__(self) -> tuple[type[Workspace], tuple[str]]:
        return Workspace, (str(self.local or self.url),)

    def __repr__(self) -> str:
        return f"Workspace({str(self.local or self.url)!r})"

    def put(self, name: str, data: bytes) -> None:
        """Write a small file so that a reader sees all of the old one or all of the new one.

        Raises
        ------
        StoreError
            Where the disk is full, read-only or out of reach.
        """
        try:
            if self.local is None:
                obstore.put(self._store, name, data)
                return
            path = self.local / name
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
            try:
                with draft.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except OSError:
                draft.unlink(missing_ok=True)
                raise
        except (OSError, obstore.exceptions.BaseError) as error:
            raise store_error(self, name, error) from error

    def renew(self, name: str, data: bytes) -> None:
        """Write a small file unless it holds that already: what is sound stays untouched."""
        if self.get(name) != data:
            self.put(name, data)

    def get(self, name: str) -> bytes | None:
        """Content of a file, or None where there is none."""
        try:
            if self.local is not None:
                return (self.local / name).read_bytes()
            return bytes(obstore.get(self._store, name).bytes())
        except FileNotFoundError:
            return None
        except (OSError, obstore.exceptions.BaseError) as error:
            raise store_error(self, name, error) from error

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens where there is none."""
        try:
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
            else:
                obstore.delete(self._store, name)
        except FileNotFoundError:
            return
        except (OSError, obstore.exceptions.BaseError) as error:
            raise store_error(self, name, error) from error

    def names(self, prefix: str) -> list[str]:
        """Names of all files under a folder, sorted; drafts of interrupted writes are left out."""
        if self.local is not None:
            root = self.local / prefix
            found = [
                path.relative_to(self.local).as_posix()
                for path in root.rglob("*")
                if path.is_file() and not path.name.endswith(".partial")
            ]
        else:
            found = [entry["path"] for page in obstore.list(self._store, prefix) for entry in page]
        return sorted(found)

    def path(self, name: str) -> Path:
        """Local path of a name, for the file formats whose writers need one.

        Raises
        ------
        StoreError
            For a workspace on an object store.
        """
        if self.local is None:
            raise StoreError(f"{name} of {self.url} is not on a local disk")
        return self.local / name

    def zarr_store(self, name: str, *, read_only: bool = False) -> Any:
        """Zarr store of a hierarchy such as ``cube.zarr``."""
        if self.local is not None:
            return LocalStore(self.local / name, read_only=read_only)
        return ObjectStore(from_url(f"{self.url.rstrip('/')}/{name}"), read_only=read_only)

    def array(self, name: str, *, mode: str = "r") -> zarr.Array[Any]:
        """Open one array by its full name, for example ``cube.zarr/2024/optical``.

        Raises
        ------
        StoreError
            Where there is no such array, or its metadata is damaged.
        """
        root, _, inner = name.partition("/")
        try:
            return zarr.open_array(
                self.zarr_store(root, read_only=mode == "r"), path=inner, mode=mode
            )
        except FileNotFoundError as error:
            raise StoreError(
                f"there is no array {name} in {self!r}; run the stage that makes it first"
            ) from error
        except (OSError, obstore.exceptions.BaseError) as error:
            raise store_error(self, f"{name}/zarr.json", error) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{name}/zarr.json of {self!r} is damaged ({error}): run again, which mends it",
                kind="metadata-damaged",
            ) from error

    def has_array(self, name: str) -> bool:
        """Whether the array has been created."""
        return self.get(f"{name}/zarr.json") is not None


_REMEDIES = {
    "disk-full": "free some space, or name a workspace elsewhere, and run again",
    "not-writable": "give this user the right to write there, or name a workspace elsewhere",
    "store": "see whether the disk or the server is in order, and run again",
}
_KINDS = {
    errno.ENOSPC: "disk-full",
    errno.EDQUOT: "disk-full",
    errno.EFBIG: "disk-full",
    errno.EACCES: "not-writable",
    errno.EPERM: "not-writable",
    errno.EROFS: "not-writable",
}


def store_error(workspace: Workspace, name: str, error: Exception) -> StoreError:
    """Say what cannot be written or read, where, and what to do about it."""
    kind = _KINDS.get(getattr(error, "errno", None) or 0, "store")
    where = workspace.local / name if workspace.local else f"{workspace.url.rstrip('/')}/{name}"
    told = getattr(error, "strerror", None) or str(error)
    return StoreError(f"cannot use {where}: {told}; {_REMEDIES[kind]}", kind=kind)


def terrain_name(grid: RegionGrid) -> str:
    """Name of the terrain layer on a grid; each pixel size of a region has its own."""
    group = "" if grid.multiple == 1 else f"{grid.resolution_m:g}m/"
    return f"cube.zarr/{group}terrain"


def create_layer(
    workspace: Workspace,
    name: str,
    grid: RegionGrid,
    *,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Create the array for one layer of the store, or mend its metadata where it is there.

    Shards that are there stay, and files that are as they should be are not touched.

    Parameters
    ----------
    workspace
        Where.
    name
        ``<hierarchy>/<season>/<layer>`` or ``cube.zarr/terrain``; the last part selects the
        :class:`Layer` of :data:`LAYERS`.
    grid
        The region's grid; the array is sharded and chunked like it.
    attributes
        Added to the layer's own.

    Raises
    ------
    StoreError
        ``layout`` where the array is there with another shape or sharding.
    """
    root, _, inner = name.partition("/")
    layer = LAYERS[inner.rsplit("/", 1)[-1]]
    lead = (len(layer.bands),) if layer.bands else ()
    merged = {**layer.attributes, **(attributes or {})}
    if layer.bands:
        merged[layer.dim] = list(layer.bands)
    if layer.masked and np.issubdtype(np.dtype(layer.dtype), np.integer):
        merged["_FillValue"] = layer.fill
    merged |= georeference(grid)
    files: dict[str, Buffer] = {}
    store = MemoryStore(files)
    write_coordinates(store, inner.rpartition("/")[0], grid)
    zarr.create_array(
        store,
        name=inner,
        shape=lead + grid.shape,
        dtype=layer.dtype,
        chunks=(*lead, grid.chunk_px, grid.chunk_px),
        shards=(*lead, grid.shard_px, grid.shard_px),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=layer.fill,
        attributes=merged,
        dimension_names=((layer.dim,) if layer.bands else ()) + ("y", "x"),
    )
    _put_metadata(workspace, root, {file: data.to_bytes() for file, data in files.items()})


def _put_metadata(workspace: Workspace, root: str, files: Mapping[str, bytes]) -> None:
    """Write what is new or damaged; nothing where there is an array of another layout."""
    waiting = {}
    for file, data in files.items():
        found = workspace.get(f"{root}/{file}")
        if found != data:
            waiting[f"{root}/{file}"] = data
            _check_layout(workspace, f"{root}/{file}", found, wanted=data)
    for file, data in waiting.items():
        workspace.put(file, data)


def _check_layout(workspace: Workspace, name: str, found: bytes | None, *, wanted: bytes) -> None:
    if found is None or not name.endswith("zarr.json"):
        return
    try:
        there, here = json.loads(found), json.loads(wanted)
    except ValueError:
        return
        # ^ damaged: it is written again
    for key in ("shape", "chunk_grid", "data_type"):
        if isinstance(there, dict) and there.get(key, here.get(key)) != here.get(key):
            raise StoreError(
                f"{name} of {workspace!r} has {key} {there[key]}, the grid asks for {here[key]}: "
                "it was written with other settings, use a new workspace; or it is damaged, then "
                "delete this one file and run again",
                kind="layout",
            )


def write_shard(workspace: Workspace, name: str, shard: Shard, values: npt.NDArray[Any]) -> str:
    """Write one whole shard of an array and return the checksum of what was stored.

    Parameters
    ----------
    workspace, name
        The array, see :func:`create_layer`.
    shard
        Which shard.
    values : ``([band,] y, x)``
        Exactly one shard, of the array's own dtype.

    Returns
    -------
    str
        SHA-256 of the stored object.

    Raises
    ------
    StoreError
        Before anything is written, where the shape or dtype is not the array's or the array is
        not sharded like the shard's grid; and where writing fails.
    """
    array = workspace.array(name, mode="r+")
    n = shard.grid.shard_px
    lead = array.shape[:-2]
    if values.shape != (*lead, n, n) or values.dtype != array.dtype:
        raise StoreError(
            f"{name} takes shards of {(*lead, n, n)} {array.dtype}, "
            f"found {values.shape} {values.dtype}"
        )
    chunks = (*lead, shard.grid.chunk_px, shard.grid.chunk_px)
    place = georeference(shard.grid)
    if (array.shards, array.chunks) != ((*lead, n, n), chunks) or any(
        array.attrs.get(key) != value for key, value in place.items()
    ):
        raise StoreError(
            f"{name} is laid out as {array.shape} in shards of {array.shards}, at "
            f"{array.attrs.get('spatial:transform')}, not like the grid of {shard.id}: it was "
            "written with other settings, use a new workspace",
            kind="layout",
        )
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            array = workspace.array(name, mode="r+")
            try:
                array[(..., *shard.window)] = values
            except (ValueError, RuntimeError):
                # Zarr looks into the old object first: a damaged one must not prevent its repair.
                workspace.delete(shard_key(name, shard.row, shard.col))
                array[(..., *shard.window)] = values
    except (OSError, obstore.exceptions.BaseError) as error:
        raise store_error(workspace, name, error) from error
    checksum = shard_checksum(workspace, name, shard)
    if checksum is None:
        raise StoreError(f"shard {shard.id} of {name} vanished after it was written")
    return checksum


def shard_checksum(workspace: Workspace, name: str, shard: Shard) -> str | None:
    """SHA-256 of the stored object of one shard, or None where it is missing."""
    data = workspace.get(shard_key(name, shard.row, shard.col))
    return None if data is None else hashlib.sha256(data).hexdigest()


def shard_key(name: str, row: int, col: int) -> str:
    """Name of the stored object of one shard of an array."""
    layer = LAYERS[name.rsplit("/", 1)[-1]]
    return f"{name}/c/{'0/' if layer.bands else ''}{row}/{col}"


def read_shard(workspace: Workspace, name: str, shard: Shard, *, halo: int = 0) -> npt.NDArray[Any]:
    """Read one shard, widened by ``halo`` pixels; beyond the grid stands the fill value.

    Returns
    -------
    ``([band,] y, x)`` array of the stored dtype
    """
    y, x = shard.window
    return read_window(
        workspace.array(name),
        y.start - halo,
        x.start - halo,
        shape=(y.stop - y.start + 2 * halo, x.stop - x.start + 2 * halo),
    )


def read_window(
    array: zarr.Array[Any], row0: int, col0: int, *, shape: Sequence[int]
) -> npt.NDArray[Any]:
    """Read a window whose upper-left pixel is ``(row0, col0)``; it may overhang the array.

    Raises
    ------
    StoreError
        Where a stored chunk is damaged.
    """
    height, width = shape
    rows, cols = array.shape[-2:]
    r0, r1 = min(max(row0, 0), rows), min(max(row0 + height, 0), rows)
    c0, c1 = min(max(col0, 0), cols), min(max(col0 + width, 0), cols)
    out = np.full((*array.shape[:-2], height, width), array.fill_value, dtype=array.dtype)
    if r1 > r0 and c1 > c0:
        try:
            part = np.asarray(array[..., r0:r1, c0:c1])
        except OSError as error:
            raise StoreError(f"{array.name} cannot be read: {error}") from error
        except (ValueError, RuntimeError) as error:
            raise StoreError(
                f"a chunk of {array.name} in rows {r0}-{r1}, columns {c0}-{c1} is damaged: {error}",
                kind="chunk-damaged",
            ) from error
        out[..., r0 - row0 : r1 - row0, c0 - col0 : c1 - col0] = part
    return out
