"""Saved rankings: how good each look is at each glacier, kept in the workspace.

One Parquet file a season and batch of glaciers; it holds what the next stage and a reader need.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from catalog.assets import AssetPolicy
from catalog.candidates import RANKING_SCHEMA, ShadowOf, rank_looks
from catalog.cube import Outcome, Workspace
from catalog.errors import StoreError
from catalog.grid import RegionGrid
from catalog.scenes import Scene

__all__ = ["build_ranking", "ranking_name", "read_rankings"]


def ranking_name(season: str, batch_id: str) -> str:
    """Name of the ranking of a batch of glaciers in the workspace."""
    return f"scenes/{season}/{batch_id}.parquet"


def build_ranking(
    workspace: Workspace,
    season: str,
    batch_id: str,
    *,
    outlines: gpd.GeoDataFrame,
    others: gpd.GeoDataFrame,
    grid: RegionGrid,
    scenes: Sequence[Scene],
    policy: AssetPolicy,
    shadow: ShadowOf | None = None,
) -> Outcome:
    """Rank the looks of one season at one batch of glaciers, and write the table.

    Parameters
    ----------
    workspace
        Where: ``scenes/<season>/<batch_id>.parquet``.
    season, batch_id
        Names of the season and of the batch.
    outlines, others, grid, scenes, policy, shadow
        As for :func:`rank_looks`.

    Returns
    -------
    Outcome
        ``facts``: ``glaciers``, ``looks``, ``without_mask`` (scenes), ``unseen`` (glaciers that no
        look sees clearly).

    Raises
    ------
    SourceError
        Where a source cannot be reached.
    StoreError
        Where the workspace cannot be written.
    """
    ranking = rank_looks(
        outlines, others=others, grid=grid, scenes=scenes, policy=policy, shadow=shadow
    )
    frame = ranking.frame
    sink = io.BytesIO()
    table = pa.Table.from_pandas(frame, schema=RANKING_SCHEMA, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")
    data = sink.getvalue()
    name = ranking_name(season, batch_id)
    workspace.put(name, data)
    blind = frame[~frame["has_mask"].astype(bool)]
    named = {s.id for s in scenes if not s.masks}
    facts = {
        "glaciers": len(outlines),
        "looks": int(frame.groupby(["day", "sensor"]).ngroups),
        "without_mask": sorted(named & set(blind["scene_ids"].explode().dropna())),
        "unseen": len(outlines) - int(frame[frame["score"] > 0]["ref_id"].nunique()),
    }
    return Outcome({name: hashlib.sha256(data).hexdigest()}, ranking.set_aside, facts)


def read_rankings(
    workspace: Workspace, season: str, *, batches: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read the ranked looks of a season.

    Parameters
    ----------
    workspace, season
        Where.
    batches
        Ids of the batches of glaciers; None = all that were ranked.

    Returns
    -------
    DataFrame
        Columns of :data:`RANKING_SCHEMA`, ordered by ``ref_id`` and ``rank``.

    Raises
    ------
    StoreError
        Where nothing was ranked.
    """
    names = [n for n in workspace.names(f"scenes/{season}") if n.endswith(".parquet")]
    if batches is not None:
        names = [ranking_name(season, batch) for batch in batches]
    files = {name: workspace.get(name) for name in names}
    missing = [name for name, data in files.items() if data is None]
    if missing or not files:
        what = (
            f"there is no {missing[0]}" if missing else f"no scenes of season {season} are ranked"
        )
        raise StoreError(f"{what} in {workspace.url}; run the stage `scenes` first")
    parts = [pq.read_table(io.BytesIO(data or b"")) for data in files.values()]
    frame: pd.DataFrame = pa.concat_tables(parts).to_pandas()
    return frame.sort_values(["ref_id", "rank"], ignore_index=True)
