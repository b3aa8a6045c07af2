"""Units: the pieces of work that stages are made of, and what each of them reads.

A unit's fingerprint covers the checksums of everything it reads, so a changed input redoes exactly
the units it touches and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from catalog.grid import LonLatBox, RegionGrid, Shard, lonlat_boxes
from inventory_engine.plan import Context, terrain_season
from inventory_engine.receipts import fingerprint, unit_key

if TYPE_CHECKING:
    from change_detection.divides import GlacierBatch

__all__ = [
    "Made",
    "ShardPlaces",
    "Unit",
    "batch_boxes",
    "checksums",
    "outputs_of",
    "season_keys",
    "shard_unit",
]


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work: named, placed, and identified by its inputs."""

    stage: str
    season: str
    unit: str
    fingerprint: str
    inputs: dict[str, str]
    boxes: tuple[LonLatBox, ...]
    interval: tuple[str, str] | None
    payload: dict[str, Any] = field(default_factory=dict)
    upstream: tuple[str, ...] = ()
    """Keys of the units it reads from."""
    pixels: int = 0

    @property
    def key(self) -> str:
        """Name within the region, for example ``cube/2024/r000c001``."""
        return unit_key(self.stage, self.season, self.unit)

    def job(self) -> dict[str, Any]:
        """Describe the unit to a worker, JSON-ready."""
        return {
            "key": self.key,
            "stage": self.stage,
            "season": self.season,
            "unit": self.unit,
            "fingerprint": self.fingerprint,
            "inputs": self.inputs,
            "boxes": [list(box) for box in self.boxes],
            "interval": list(self.interval) if self.interval else None,
            "payload": self.payload,
        }


def shard_unit(
    c: Context,
    stage: str,
    season: str,
    shard: Shard,
    *,
    inputs: dict[str, str],
    payload: dict[str, Any],
    settings: dict[str, Any] | None = None,
    upstream: tuple[str, ...] = (),
) -> Unit:
    """Describe the work on one shard."""
    known = {"grid": shard.grid.to_dict(), "shard": shard.id} | (settings or {})
    place = {"shard": [shard.row, shard.col], "multiple": shard.grid.multiple}
    return Unit(
        stage,
        season,
        shard.id,
        fingerprint(stage, known, [f"{k}={v}" for k, v in inputs.items()]),
        inputs,
        tuple(shard.lonlat_boxes),
        c.interval(season),
        payload | place,
        upstream,
        shard.grid.shard_px**2,
    )


class ShardPlaces:
    """Finds the shards of a season that a window touches.

    Parameters
    ----------
    shards
        All shards of the season.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self._side = shards[0].grid.shard_px
        self._at = {(shard.row, shard.col): shard for shard in shards}

    def within(self, row0: int, col0: int, shape: tuple[int, int], reach: int = 0) -> list[Shard]:
        """Shards that a window of pixels, widened by ``reach`` pixels, touches."""
        n = self._side
        rows = range((row0 - reach) // n, (row0 + shape[0] + reach - 1) // n + 1)
        cols = range((col0 - reach) // n, (col0 + shape[1] + reach - 1) // n + 1)
        places = ((row, col) for row in rows for col in cols)
        return [self._at[place] for place in places if place in self._at]

    def around(self, shard: Shard, reach: int) -> list[Shard]:
        """Shards that come within ``reach`` pixels of a shard, itself among them."""
        n = self._side
        return self.within(shard.row * n, shard.col * n, (n, n), reach)


def season_keys(
    c: Context, season: str, shards: Sequence[Shard], *, stages: Sequence[str]
) -> tuple[str, ...]:
    """Keys of the units of some stages at some shards of a season."""
    kept = [stage for stage in stages if stage != "terrain" or c.scenes.dem is not None]
    return tuple(
        unit_key(stage, terrain_season(shard.grid) if stage == "terrain" else season, shard.id)
        for stage in kept
        for shard in shards
    )


class Made(NamedTuple):
    """What the receipt of a unit says."""

    outputs: dict[str, str] | None
    """What it promises; None where the unit is not done."""
    failed: bool
    """Whether the unit was tried and could not be done."""


def outputs_of(c: Context, keys: Sequence[str]) -> dict[str, Made]:
    """What receipts say, by the key of the unit; they are read many at a time."""
    places = [(stage, season, unit) for stage, season, unit in (key.split("/") for key in keys)]
    receipts = c.ledger.read_many(places)
    return {
        key: Made(
            None if receipt is None or receipt.failed else receipt.outcome.outputs,
            receipt is not None and receipt.failed is not None,
        )
        for key, receipt in zip(keys, receipts, strict=True)
    }


def checksums(known: dict[str, Made], keys: Sequence[str]) -> dict[str, str]:
    """Checksum of every output of the given units; ``absent`` where a unit is not done."""
    found: dict[str, str] = {}
    for key in keys:
        outputs = known[key].outputs
        found |= {key: "absent"} if outputs is None else outputs
    return found


def batch_boxes(grid: RegionGrid, batch: GlacierBatch) -> tuple[LonLatBox, ...]:
    """Boxes in degrees that cover the window of a batch."""
    left = grid.left + batch.col0 * grid.resolution_m
    top = grid.top - batch.row0 * grid.resolution_m
    right = left + batch.width * grid.resolution_m
    bottom = top - batch.height * grid.resolution_m
    return tuple(lonlat_boxes((left, bottom, right, top), grid))
