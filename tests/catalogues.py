"""Catalogues for tests: items without rasters, and the kinds of server that offer them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pystac
import pytest
from rasters import CENTRE, write_items
from servers import file_script, scripted_server, stac_server

from catalog.assets import AssetPolicy
from catalog.search import SearchResult, open_source

REAL = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", "../shared/data")) / "stac"
NOWHERE = AssetPolicy(())
HERE = [(CENTRE[0] - 0.01, CENTRE[1] - 0.01, CENTRE[0] + 0.01, CENTRE[1] + 0.01)]

Serve = Callable[[Path, list[dict]], AbstractContextManager[str]]
"""Offers items under a folder of its own; gives the location to search at."""


def bare_item(name: str, *, when: str = "2024-08-12T10:00:00Z", **properties: object) -> dict:
    """Item over CENTRE without rasters: a search opens none."""
    x, y = CENTRE
    keys = ("blue", "green", "red", "nir", "swir16", "swir22", "scl")
    ring = [[x - 1, y - 1], [x + 1, y - 1], [x + 1, y + 1], [x - 1, y + 1], [x - 1, y - 1]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": [x - 1, y - 1, x + 1, y + 1],
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"datetime": when, "s2:processing_baseline": "05.11", **properties},
        "assets": {key: {"href": f"./{name}/{key}.tif"} for key in keys},
        "links": [],
    }


def placed(item: dict, box: tuple[float, float, float, float]) -> dict:
    """Item moved to a box in degrees, in two parts where it crosses the antimeridian."""
    west, south, east, north = box
    spans = [(west, east)] if west <= east else [(west, 180.0), (-180.0, east)]
    rings = [[[[w, south], [e, south], [e, north], [w, north], [w, south]]] for w, e in spans]
    shape = {"type": "MultiPolygon", "coordinates": rings}
    return item | {"bbox": list(box), "geometry": shape}


def with_absolute_hrefs(items: list[dict]) -> list[dict]:
    """Items whose rasters lie at one place, whoever offers them."""
    items = copy.deepcopy(items)
    for item in items:
        for asset in item["assets"].values():
            asset["href"] = asset["href"].replace("./", "https://assets.example/", 1)
    return items


def find(location: object, **asked: object) -> SearchResult:
    question = {
        "collections": ["sentinel-2-l2a"],
        "boxes": HERE,
        "start": "2024-07-01",
        "end": "2024-09-30",
        **asked,
    }
    return open_source(str(location), policy=NOWHERE, backoff_s=0).search(**question)


def ids(result: SearchResult) -> list[str]:
    return [scene.id for scene in result.scenes]


def write_static_catalogue(folder: Path, items: list[dict]) -> Path:
    """Catalogue and collections by pystac with relative links; items word for word."""
    catalog = pystac.Catalog("demo", "a catalogue for tests")
    extent = pystac.Extent(
        pystac.SpatialExtent([[-180, -90, 180, 90]]), pystac.TemporalExtent([[None, None]])
    )
    names = sorted({item["collection"] for item in items})
    catalog.add_children(pystac.Collection(name, "scenes", extent) for name in names)
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    for name in names:
        path = folder / name / "collection.json"
        collection = json.loads(path.read_text())
        for item in items:
            if item["collection"] == name:
                href = f"./{item['id']}/{item['id']}.json"
                collection["links"].append({"rel": "item", "href": href})
                place = folder / name / href
                place.parent.mkdir()
                place.write_text(json.dumps(item))
        path.write_text(json.dumps(collection))
    return folder / "catalog.json"


def recorded_items() -> list[dict]:
    """Every recorded item that is valid STAC, each once."""
    if not REAL.is_dir():
        pytest.skip(f"the real STAC items are not at {REAL} (set INVENTORY_ENGINE_TEST_DATA)")
    found: dict[tuple[str, str], dict] = {}
    for path in sorted(REAL.iterdir()):
        document = json.loads(path.read_text())
        items = document if isinstance(document, list) else document.get("features", [document])
        for item in items:
            if all("href" in asset for asset in item["assets"].values()):
                found.setdefault((item["collection"], item["id"]), item)
    return list(found.values())


@contextlib.contextmanager
def as_file(folder: Path, items: list[dict]) -> Iterator[str]:
    yield str(write_items(folder / "items.json", items))


@contextlib.contextmanager
def as_static_catalogue(folder: Path, items: list[dict]) -> Iterator[str]:
    yield str(write_static_catalogue(folder / "static", items))


@contextlib.contextmanager
def as_static_catalogue_over_http(folder: Path, items: list[dict]) -> Iterator[str]:
    write_static_catalogue(folder / "static", items)
    with scripted_server(file_script(folder)) as server:
        yield f"{server.url}/static/catalog.json"


@contextlib.contextmanager
def as_rustac(folder: Path, items: list[dict]) -> Iterator[str]:
    with stac_server(write_items(folder / "items.json", items)) as url:
        yield url
