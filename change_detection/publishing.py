"""The batches of a season become one inventory: its outlines, its accounts and its package."""

from __future__ import annotations

import io
from collections.abc import Sequence

import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.cube import Outcome, Workspace
from catalog.errors import StoreError
from change_detection.accounts import ACCOUNT_SCHEMA, MIN_AREA_KM2
from change_detection.divides import GlacierBatch
from change_detection.files import geopackage_bytes, geoparquet_bytes, parquet_bytes, put_files
from change_detection.hypsometry import hypsometry_table
from change_detection.outlines import BAND_COLUMNS, OUTLINE_COLUMNS, typed_rows
from change_detection.package.ids import numbered_ids
from change_detection.package.write import PackageFacts, package_files

__all__ = ["publish_season"]


def publish_season(
    workspace: Workspace,
    batches: Sequence[GlacierBatch],
    *,
    frame: gpd.GeoDataFrame,
    facts: PackageFacts,
) -> Outcome:
    """Join the batches of a season to one inventory, number its outlines and write its package.

    Numbers run within each first-order region (``00`` where the reference names none) by reference
    glacier, its largest polygon first: ``<REGION><SEASON>-v1-G-<o1>-<nnnnn>``.

    Parameters
    ----------
    workspace
        Holds the parts and accounts of each batch in ``inventory/<season>``.
    batches
        All of them.
    frame
        The reference inventory.
    facts
        What the package says of itself.

    Returns
    -------
    Outcome
        Checksums of ``outlines.parquet``, ``outlines.gpkg``, ``accounts.parquet``, where glaciers
        end in water of ``fronts.gpkg`` (lines where their ice meets it), and of the package, see
        :func:`change_detection.package.write.package_files`. Outlines under 0.01 km2, where a run
        publishes them, are not in the package.

    Raises
    ------
    StoreError
        Where a batch or a glacier of the reference is missing.
    """
    folder = f"inventory/{facts.season}"
    parts, accounts, fronts = [], [], []
    for batch in sorted(batches, key=lambda b: b.ref_ids):
        parts.append(gpd.read_parquet(_read(workspace, f"{folder}/parts/{batch.id}.parquet")))
        fronts.append(gpd.read_parquet(_read(workspace, f"{folder}/fronts/{batch.id}.parquet")))
        accounts.append(pq.read_table(_read(workspace, f"{folder}/accounts/{batch.id}.parquet")))
    outlines, bands = _joined(parts, prefix=facts.prefix)
    table = pa.concat_tables([ACCOUNT_SCHEMA.empty_table(), *accounts]).sort_by("ref_id")
    _check_complete(table["ref_id"].to_pylist(), frame["ref_id"].tolist(), folder)
    files = {
        f"{folder}/outlines.parquet": geoparquet_bytes(outlines),
        f"{folder}/outlines.gpkg": geopackage_bytes({"outlines": (outlines, "Polygon")}),
        f"{folder}/accounts.parquet": parquet_bytes(table),
    }
    ends = pd.concat(fronts, ignore_index=True).sort_values("ref_id", ignore_index=True)
    if len(ends):
        files[f"{folder}/fronts.gpkg"] = geopackage_bytes({"fronts": (ends, "MultiLineString")})
    large = outlines["area_km2"] >= MIN_AREA_KM2 * (1 - 1e-9)
    package = package_files(
        outlines[large].reset_index(drop=True),
        facts=facts,
        hypsometry=hypsometry_table(
            outlines["rgi_id"][large].tolist(),
            outlines["area_km2"][large],
            *(bands[name][large].tolist() for name in BAND_COLUMNS),
        ),
        reference=frame,
    )
    files |= {f"{folder}/package/{name}": data for name, data in package.items()}
    told = {
        "glaciers": table.num_rows,
        "polygons": len(outlines),
        "area_km2": float(np.sum(table["area_km2"].to_numpy())),
        "area_in_outlines_km2": float(np.sum(outlines["area_km2"].to_numpy())),
    }
    return Outcome(put_files(workspace, files), (), told)


def _joined(parts: list[gpd.GeoDataFrame], *, prefix: str) -> tuple[gpd.GeoDataFrame, pd.DataFrame]:
    """Outlines of all batches, numbered; and their pixels by elevation, row by row."""
    filled = [part for part in parts if len(part)]
    if not filled:
        nothing = typed_rows(pd.DataFrame(columns=list(OUTLINE_COLUMNS)))
        none = gpd.GeoDataFrame(nothing, geometry=gpd.GeoSeries([], crs=4326), crs=4326)
        return none, pd.DataFrame(columns=list(BAND_COLUMNS))
    rows = pd.concat(filled, ignore_index=True)
    rows = rows.sort_values(["o1region", "ref_id"], kind="stable", ignore_index=True)
    # ^ a region without a name comes first and is number 00
    rows["rgi_id"] = numbered_ids(rows["o1region"], prefix=prefix, letter="G")
    return rows.drop(columns=list(BAND_COLUMNS)), rows[list(BAND_COLUMNS)]


def _check_complete(found: list[str], wanted: list[str], folder: str) -> None:
    differing = sorted(set(found) ^ set(wanted))
    if differing or len(found) != len(wanted):
        raise StoreError(
            f"{folder} accounts for {len(found)} glaciers, the reference has {len(wanted)}; "
            f"first difference: {', '.join(differing[:3]) or 'a glacier in two batches'}. "
            "Run the outlines stage with the batches of this reference",
            kind="inventory-incomplete",
        )


def _read(workspace: Workspace, name: str) -> io.BytesIO:
    data = workspace.get(name)
    if data is None:
        raise StoreError(
            f"{name} is missing; run the outlines stage for its batch first",
            kind="inventory-incomplete",
        )
    return io.BytesIO(data)
