"""Saved searches: what a catalogue answered, kept in the workspace, so that a run can be repeated.

One STAC GeoParquet file a search, which QGIS and DuckDB read as well. Beside the fields of STAC an
item carries the scene as the engine understood it (``gie:scene``), so that a catalogue's odd fields
can neither spoil the file nor be read in another way later. The JSON file beside it says what was
asked and what was set aside; it is written last.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import rustac
import shapely
import shapely.geometry

from catalog.assets import public_href
from catalog.cube import Workspace
from catalog.errors import SetAside, UsageError
from catalog.revisit import Revisit
from catalog.scenes import BandSource, Scene
from catalog.search import SearchResult

__all__ = ["read_search", "save_search"]

_FOLDER = "search"


def save_search(
    workspace: Workspace, name: str, result: SearchResult, *, question: Mapping[str, Any]
) -> None:
    """Keep what a search found, in the place of what it found before; equal files stay untouched.

    Parameters
    ----------
    workspace
        Where: ``search/<name>.parquet`` and ``search/<name>.json``.
    name
        Of the search, for example ``2024-optical``.
    result
        What was found. Query strings of links, which may hold a signature, are not kept.
    question
        What was asked, JSON-ready.

    Raises
    ------
    StoreError
        Where the workspace cannot be written.
    """
    data = b""
    if result.scenes:
        with tempfile.TemporaryDirectory(prefix="gie-search-") as folder:
            path = Path(folder) / "items.parquet"
            rustac.write_sync(str(path), [_item(_public(scene)) for scene in result.scenes])
            data = path.read_bytes()
        workspace.renew(f"{_FOLDER}/{name}.parquet", data)
    note = {
        "question": question,
        "scenes": len(result.scenes),
        "sha256": hashlib.sha256(data).hexdigest(),
        "set_aside": [asdict(fault) for fault in result.set_aside],
        "revisits": [asdict(revisit) for revisit in result.revisits],
    }
    workspace.renew(f"{_FOLDER}/{name}.json", json.dumps(note, indent=1, sort_keys=True).encode())


def read_search(workspace: Workspace, name: str, *, question: Mapping[str, Any]) -> SearchResult:
    """Read what a search had found.

    Parameters
    ----------
    workspace, name
        As for :func:`save_search`.
    question
        What is asked now.

    Raises
    ------
    UsageError
        ``search-missing`` where nothing was kept, or the answer to another question.
    """
    kept = workspace.get(f"{_FOLDER}/{name}.json")
    note = _parsed(kept) if kept is not None else {}
    if note.get("question") != json.loads(json.dumps(question)):
        what = "the search of another catalogue, place or time"
        if not note:
            what = "no search" if kept is None else "a damaged search"
        raise UsageError(
            f"{what} is kept for {name} in {workspace.url}; `inventory-engine run` searches again",
            kind="search-missing",
        )
    faults = tuple(SetAside(**fault) for fault in note["set_aside"])
    revisits = tuple(Revisit(**revisit) for revisit in note.get("revisits", ()))
    if not note["scenes"]:
        return SearchResult((), faults, revisits)
    data = workspace.get(f"{_FOLDER}/{name}.parquet") or b""
    if hashlib.sha256(data).hexdigest() != note["sha256"]:
        raise UsageError(
            f"the search kept for {name} in {workspace.url} is damaged; "
            "`inventory-engine run` searches again",
            kind="search-missing",
        )
    with tempfile.TemporaryDirectory(prefix="gie-search-") as folder:
        path = Path(folder) / "items.parquet"
        path.write_bytes(data)
        items = rustac.read_sync(str(path))["features"]
    try:
        scenes = [Scene.from_dict(json.loads(item["properties"]["gie:scene"])) for item in items]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"the search kept for {name} in {workspace.url} is of another version of the engine "
            f"({error}); `inventory-engine run` searches again",
            kind="search-missing",
        ) from None
    return SearchResult(tuple(sorted(scenes, key=lambda s: (s.datetime, s.id))), faults, revisits)


def _parsed(kept: bytes) -> dict[str, Any]:
    try:
        note = json.loads(kept)
    except ValueError:
        note = None
    return note if isinstance(note, dict) else {}


def _public(scene: Scene) -> Scene:
    def clean(band: BandSource) -> BandSource:
        return replace(band, href=public_href(band.href) if "://" in band.href else band.href)

    return replace(
        scene,
        bands=tuple(map(clean, scene.bands)),
        masks=tuple(map(clean, scene.masks)),
        thermal=None if scene.thermal is None else clean(scene.thermal),
    )


def _item(scene: Scene) -> dict[str, Any]:
    """STAC item of a scene."""
    west, south, east, north = scene.bbox
    shape = shapely.MultiPolygon([shapely.box(*box) for box in scene.boxes])
    known = {
        "eo:cloud_cover": scene.cloud_percent,
        "view:sun_azimuth": scene.sun_azimuth,
        "view:sun_elevation": scene.sun_elevation,
    }
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": scene.id,
        "collection": scene.collection,
        "bbox": [west, south, east, north],
        "geometry": shapely.geometry.mapping(shape),
        "properties": {k: v for k, v in known.items() if v is not None}
        | {
            "datetime": scene.datetime or None,
            "gie:scene": json.dumps(scene.to_dict(), sort_keys=True),
        },
        "assets": {
            band.role: {"href": band.href}
            for band in (*scene.rasters, *([scene.thermal] if scene.thermal else []))
        },
        "links": [],
    }
