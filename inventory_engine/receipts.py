"""Receipts: the only meaning of "done", and the metadata of what was made.

A receipt is a STAC Item at ``records/<stage>/<season>/<unit>.json``, written after the outputs it
names. It holds no time of the run, so equal work leaves equal receipts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import shapely

from catalog.cube import LAYERS, Outcome, Workspace, shard_key
from catalog.errors import SetAside
from catalog.grid import LonLatBox, RegionGrid
from inventory_engine import __version__
from inventory_engine.logs import redact

__all__ = [
    "STAGE_VERSIONS",
    "Failure",
    "Ledger",
    "Receipt",
    "State",
    "fingerprint",
    "stored_name",
    "unit_key",
]

STAGE_VERSIONS = {
    "terrain": 2,
    "layers": 1,
    "shifts": 1,
    "scenes": 1,
    "cube": 2,
    "illumination": 1,
    "map": 1,
    "outlines": 4,
    "publish": 2,
    "differences": 1,
    "change": 3,
    "trend": 1,
    "report": 2,
}
"""Raised when a stage's code gives other results for equal inputs."""

State = Literal["new", "skip", "recompute", "retry"]
"""What a unit needs: ``retry`` means that it failed before, or could not use a file it should."""

_CURABLE = {
    "asset-forbidden",
    "asset-missing",
    "checksum-mismatch",
    "geo-mismatch",
    "href-refused",
    "not-a-geotiff",
    "raster-truncated",
}
# ^ faults of a file that may be gone by the next run without a trace in the catalogue

_SHARD = re.compile(r"(?P<array>.+)/r(?P<row>\d{3,})c(?P<col>\d{3,})")
_READERS = 16
_DIGEST_PREFIX = "1220"
# ^ multihash code of a 32-byte SHA-256, as the STAC file extension asks


def fingerprint(stage: str, settings: Mapping[str, Any], inputs: Iterable[str]) -> str:
    """Name of a piece of work by its content.

    Parameters
    ----------
    stage
        Name of the stage; its code version is part of the fingerprint.
    settings
        JSON-ready settings that matter to the result.
    inputs
        Fingerprints or checksums of everything that is read, in any order.

    Returns
    -------
    str
        SHA-256, hexadecimal: equal for equal work, for ever.
    """
    named = {
        "stage": stage,
        "version": STAGE_VERSIONS[stage],
        "settings": dict(settings),
        "inputs": sorted(inputs),
    }
    text = json.dumps(named, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def unit_key(stage: str, season: str, unit: str) -> str:
    """Name of a unit within its region, for example ``cube/2024/r000c001``."""
    return f"{stage}/{season}/{unit}"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a unit could not be done."""

    kind: str
    reason: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one unit of work read and left behind."""

    stage: str
    season: str
    unit: str
    fingerprint: str
    inputs: Mapping[str, str]
    """Name of each input -> its fingerprint or checksum."""
    outcome: Outcome
    boxes: tuple[LonLatBox, ...] = ()
    """Where, in degrees; two boxes across the antimeridian."""
    interval: tuple[str, str] | None = None
    """First and last day, ISO 8601; None where the product has no season."""
    failed: Failure | None = None

    @property
    def key(self) -> str:
        """Name of the unit, see :func:`unit_key`."""
        return unit_key(self.stage, self.season, self.unit)

    def to_item(self) -> dict[str, Any]:
        """Describe the unit as a STAC Item."""
        first, last = self.interval or ("1970-01-01", "1970-01-01")
        properties: dict[str, Any] = {
            "datetime": None,
            "start_datetime": f"{first}T00:00:00Z",
            "end_datetime": f"{last}T23:59:59Z",
            "gie:stage": self.stage,
            "gie:season": self.season,
            "gie:unit": self.unit,
            "gie:fingerprint": self.fingerprint,
            "gie:inputs": dict(sorted(self.inputs.items())),
            "gie:set_aside": [
                {"what": s.what, "kind": s.kind, "reason": redact(s.reason)}
                for s in sorted(self.outcome.set_aside)
            ],
            "gie:facts": self.outcome.facts,
            "gie:engine": __version__,
        }
        if self.failed is not None:
            properties["gie:failed"] = {
                "kind": self.failed.kind,
                "reason": redact(self.failed.reason),
            }
        geometry, bbox = _geometry(self.boxes)
        item: dict[str, Any] = {
            "type": "Feature",
            "stac_version": "1.1.0",
            "stac_extensions": ["https://stac-extensions.github.io/file/v2.1.0/schema.json"],
            "id": self.key.replace("/", "."),
            "geometry": geometry,
            "properties": properties,
            "links": [],
            "assets": {
                name: {
                    "href": f"../../../{name}",
                    "roles": ["data"],
                    "file:checksum": _DIGEST_PREFIX + digest,
                }
                for name, digest in sorted(self.outcome.outputs.items())
            },
        }
        if bbox is not None:
            item["bbox"] = bbox
        return item

    @classmethod
    def from_item(cls, item: Mapping[str, Any]) -> Receipt:
        """Rebuild a receipt from :meth:`to_item`; the geometry is not read back."""
        p = item["properties"]
        failed = p.get("gie:failed")
        return cls(
            stage=p["gie:stage"],
            season=p["gie:season"],
            unit=p["gie:unit"],
            fingerprint=p["gie:fingerprint"],
            inputs=p["gie:inputs"],
            outcome=Outcome(
                {
                    k: a["file:checksum"].removeprefix(_DIGEST_PREFIX)
                    for k, a in item["assets"].items()
                },
                tuple(SetAside(s["what"], s["kind"], s["reason"]) for s in p["gie:set_aside"]),
                p["gie:facts"],
            ),
            interval=(p["start_datetime"][:10], p["end_datetime"][:10]),
            failed=Failure(failed["kind"], failed["reason"]) if failed else None,
        )


def _geometry(boxes: Iterable[LonLatBox]) -> tuple[dict[str, Any] | None, list[float] | None]:
    parts = [tuple(round(v, 6) for v in box) for box in boxes]
    if not parts:
        return None, None
    shapes = [shapely.box(*box) for box in parts]
    shape = shapes[0] if len(shapes) == 1 else shapely.MultiPolygon(shapes)
    south, north = min(b[1] for b in parts), max(b[3] for b in parts)
    return json.loads(shapely.to_geojson(shape)), [parts[0][0], south, parts[-1][2], north]


class Ledger:
    """All receipts of one workspace.

    Parameters
    ----------
    workspace
        Where.
    grid
        The region's grid, by which the outputs of a shard are found again.
    """

    def __init__(self, workspace: Workspace, grid: RegionGrid) -> None:
        self.workspace = workspace
        self.grid = grid

    @staticmethod
    def _name(stage: str, season: str, unit: str) -> str:
        return f"records/{unit_key(stage, season, unit)}.json"

    def write(self, receipt: Receipt) -> None:
        """Write a receipt; call it only after every output is in place.

        Raises
        ------
        StoreError
            Where it cannot be written.
        """
        text = json.dumps(receipt.to_item(), indent=1, sort_keys=True, allow_nan=False)
        name = self._name(receipt.stage, receipt.season, receipt.unit)
        self.workspace.put(name, text.encode() + b"\n")

    def record(self, receipt: Receipt, error: BaseException) -> Receipt:
        """Write the receipt of a unit that failed, and return it; the next run tries it again."""
        kind = getattr(error, "kind", "unexpected")
        told = str(error) if kind != "unexpected" else f"{type(error).__name__}: {error}"
        failed = Receipt(
            stage=receipt.stage,
            season=receipt.season,
            unit=receipt.unit,
            fingerprint=receipt.fingerprint,
            inputs=receipt.inputs,
            outcome=Outcome({}),
            boxes=receipt.boxes,
            interval=receipt.interval,
            failed=Failure(kind, told),
        )
        self.write(failed)
        return failed

    def read(self, stage: str, season: str, unit: str) -> Receipt | None:
        """Read one receipt; None where there is none or it cannot be understood.

        A receipt that cannot be understood counts as absent, so its unit is done again.
        """
        data = self.workspace.get(self._name(stage, season, unit))
        return None if data is None else _parse(data)

    def read_many(self, units: Sequence[tuple[str, str, str]]) -> list[Receipt | None]:
        """Read receipts by stage, season and unit, many at a time: object stores answer slowly."""
        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            return list(pool.map(lambda unit: self.read(*unit), units))

    def read_all(self, stage: str | None = None) -> Iterator[Receipt]:
        """Read all receipts, of one stage or of all, sorted by name."""
        names = self.workspace.names(f"records/{stage}" if stage else "records")
        with ThreadPoolExecutor(max_workers=_READERS) as pool:
            for data in pool.map(self.workspace.get, names):
                receipt = None if data is None else _parse(data)
                if receipt is not None:
                    yield receipt

    def outputs(self, stage: str, season: str, unit: str) -> dict[str, str] | None:
        """Return the outputs a receipt promises; None where its unit is not done or failed."""
        receipt = self.read(stage, season, unit)
        return None if receipt is None or receipt.failed else receipt.outcome.outputs

    def state(self, stage: str, season: str, unit: str, *, fingerprint: str) -> State:
        """Decide what a unit needs, by its receipt and by the bytes of its outputs."""
        receipt = self.read(stage, season, unit)
        if receipt is None:
            return "new"
        if receipt.failed is not None or any(
            fault.kind in _CURABLE for fault in receipt.outcome.set_aside
        ):
            return "retry"
        if receipt.fingerprint != fingerprint or not self.intact(receipt):
            return "recompute"
        return "skip"

    def intact(self, receipt: Receipt) -> bool:
        """Whether every output still has the checksum in the receipt."""
        return all(
            self.checksum(name) == expected for name, expected in receipt.outcome.outputs.items()
        )

    def checksum(self, name: str) -> str | None:
        """SHA-256 of an output, ``<array>/<shard id>`` or a file name; None where it is missing."""
        data = self.workspace.get(stored_name(name))
        return None if data is None else hashlib.sha256(data).hexdigest()


def stored_name(output: str) -> str:
    """Name of the stored object of an output: of ``<array>/<shard id>`` that of the shard."""
    match = _SHARD.fullmatch(output)
    if match is None or match["array"].rsplit("/", 1)[-1] not in LAYERS:
        return output
    return shard_key(match["array"], int(match["row"]), int(match["col"]))


def _parse(data: bytes) -> Receipt | None:
    try:
        return Receipt.from_item(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
