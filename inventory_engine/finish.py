"""The stages that run in the driver: publish, change and report, on files already small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from catalog.cube import Outcome
from catalog.errors import DataError
from inventory_engine.logs import redact
from inventory_engine.plan import Context, terrain_season, versions
from inventory_engine.receipts import Ledger, Receipt
from inventory_engine.work import Job, Task, perform

if TYPE_CHECKING:
    from catalog.scenes import Scene
    from change_detection.divides import GlacierBatch

__all__ = ["DriverTaskMaker", "run_facts"]


class DriverTaskMaker:
    """Builds the task of the driver's stages.

    Parameters
    ----------
    context
        Of the run.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._work = {
            "publish": self._publish,
            "change": self._change,
            "trend": self._trend,
            "report": self._report,
        }

    def __call__(self) -> Task:
        """Return the function that does one job."""
        return lambda job: perform(job, self._context.ledger, self._work[job["stage"]])

    def _done_batches(self, season: str) -> list[GlacierBatch]:
        ledger = self._context.ledger
        batches = self._context.region.batches_of(season)
        return [b for b in batches if ledger.outputs("outlines", season, b.id) is not None]

    def _publish(self, ledger: Ledger, job: Job) -> Outcome:
        from change_detection.package.write import PackageFacts
        from change_detection.publishing import publish_season

        region = self._context.region
        done = self._done_batches(job["season"])
        if not done:
            raise DataError(
                f"no glacier of season {job['season']} could be outlined", kind="incomplete"
            )
        known = {ref_id for batch in done for ref_id in batch.ref_ids}
        frame = region.reference.frame
        return publish_season(
            ledger.workspace,
            done,
            frame=frame[frame["ref_id"].isin(known)],
            facts=PackageFacts(region.settings.name, job["season"], **job["payload"]["told"]),
        )

    def _change(self, ledger: Ledger, job: Job) -> Outcome:
        from change_detection.change import change_between
        from change_detection.uncertainty import AreaCalibration

        first, last = job["payload"]["from"], job["payload"]["to"]
        one, other = ({b.id for b in self._done_batches(s)} for s in (first, last))
        if one != other:
            raise DataError(
                f"{len(one ^ other)} groups of glaciers were outlined in only one of {first} and "
                f"{last}: their change is not known; see the failed units, then run again",
                kind="incomplete",
            )
        pair = f"{first}_{last}"
        compared = [
            batch
            for batch in job["payload"]["batches"]
            if ledger.outputs("differences", pair, batch) is not None
        ]
        return change_between(
            ledger.workspace,
            first,
            last,
            calibration=AreaCalibration.from_dict(self._context.ensemble.area_calibration),
            batches=compared,
            unlike=job["payload"]["unlike"],
        )

    def _trend(self, ledger: Ledger, job: Job) -> Outcome:
        from change_detection.series import series_between
        from change_detection.uncertainty import AreaCalibration

        return series_between(
            ledger.workspace,
            job["payload"]["seasons"],
            calibration=AreaCalibration.from_dict(self._context.ensemble.area_calibration),
        )

    def _report(self, ledger: Ledger, _job: Job) -> Outcome:
        from inventory_engine.report import write_report

        return write_report(ledger.workspace, run=run_facts(self._context))


def _scene_facts(scene: Scene) -> dict[str, Any]:
    return {
        "id": scene.id,
        "datetime": scene.datetime,
        "kind": scene.kind,
        "sensor": scene.sensor,
        "bbox": list(scene.bbox),
        "cloud_percent": scene.cloud_percent,
    }


def run_facts(context: Context) -> dict[str, Any]:
    """Everything a report tells about how its numbers came to be; equal for equal inputs."""
    region, scenes = context.region, context.scenes
    settings = region.settings
    receipts = list(_current(context))
    return {
        "name": settings.name,
        "seasons": {
            label: {
                "start": settings.seasons[label].start.isoformat(),
                "end": settings.seasons[label].end.isoformat(),
                "composite": settings.seasons[label].composite,
                "resolution_m": region.grid_of(label).resolution_m,
            }
            for label in settings.season_labels
        },
        "pairs": [list(pair) for pair in settings.pairs],
        "settings": settings.public(),
        "ensemble": {
            "name": context.ensemble.name,
            "fingerprint": context.ensemble.fingerprint,
            "card": context.ensemble.card,
        },
        "scenes": {
            label: [_scene_facts(s) for s in (*scenes.optical[label], *scenes.sar.get(label, ()))]
            for label in settings.season_labels
        },
        "sparse": [{"season": s, **asdict(tile)} for s, tile in scenes.sparse],
        "set_aside": set_aside(context, receipts),
        "without_mask": _without_mask(receipts),
        "grid": region.grid.to_dict(),
        "versions": versions(),
        "catalog": settings.catalog.public_url,
    }


def _current(context: Context) -> Iterator[Receipt]:
    """Receipts of the units asked for now; those of former outlines or seasons stay out."""
    settings = context.region.settings
    grids = (context.region.grid.coarsened(multiple) for multiple in settings.multiples)
    seasons = {*map(terrain_season, grids), *settings.seasons}
    seasons |= {"_".join(pair) for pair in settings.pairs} | set(settings.layers)
    units = {"region", *(s.id for s in context.region.shards)}
    units |= {b.id for b in context.region.batches[1]}
    units |= {scene.id for found in context.scenes.optical.values() for scene in found}
    for receipt in context.ledger.read_all():
        if receipt.stage != "report" and receipt.season in seasons and receipt.unit in units:
            yield receipt


def _without_mask(receipts: Sequence[Receipt]) -> list[str]:
    """Scenes that were used although they tell nothing of clouds; sorted."""
    cubes = (r for r in receipts if r.stage == "cube")
    return sorted({scene for r in cubes for scene in r.outcome.facts.get("without_mask", ())})


def set_aside(context: Context, receipts: Sequence[Receipt]) -> list[dict[str, str]]:
    """Tell what was not used in this region, where and why; failed units too. Sorted."""
    rows = [
        asdict(fault) | {"stage": "search", "unit": label}
        for label, fault in context.scenes.set_aside
    ]
    rows += [
        asdict(fault) | {"stage": "reference", "unit": "region"}
        for fault in context.region.reference.set_aside
    ]
    for receipt in receipts:
        place = {"stage": receipt.stage, "unit": f"{receipt.season}/{receipt.unit}"}
        rows += [asdict(fault) | place for fault in receipt.outcome.set_aside]
        if receipt.failed is not None:
            told = {"kind": receipt.failed.kind, "reason": receipt.failed.reason}
            rows.append({"what": receipt.key, **told, **place})
    clean = [{k: redact(str(v)) for k, v in row.items()} for row in rows]
    return sorted(clean, key=lambda r: (r["stage"], r["unit"], r["what"], r["kind"], r["reason"]))
