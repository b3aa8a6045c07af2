"""One table of a comparison: mean over folds, then mean and spread over seeds.

Written as CSV (one row a variant), Markdown (to be read) and JSON (also every single run).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from catalog.cube import CLASSES, Workspace

__all__ = ["COLUMNS", "as_markdown", "summarise", "with_spread", "write_tables"]

COLUMNS: dict[str, str] = {
    "iou ice": "glacier IoU",
    **{f"iou {name}": f"{name} IoU" for name in CLASSES[1:]},
    "mean_iou all": "mean IoU",
    "found debris-covered ice": "debris found as glacier",
    "error ice": "calibration error, glacier",
    "error top": "calibration error, class",
}
"""Scores of the main table, and what they are called in it."""
_COSTS = {"parameters": ("parameters, M", 1e6), "macs": ("MACs, G", 1e9), "ms": ("ms", 1.0)}
_GROUPS = {"size_km2": "area of the glacier, km²", "debris_share": "debris-covered share"}
_SPREAD = " spread"


def summarise(runs: Sequence[Mapping[str, Any]], costs: Mapping[str, Any]) -> pd.DataFrame:
    """Average runs.

    Parameters
    ----------
    runs
        Each with ``variant``, ``title``, ``fold``, ``seed`` and ``scores``.
    costs
        Of each variant: ``parameters``, ``macs``, ``ms``, each a number or None.

    Returns
    -------
    DataFrame
        One row a variant, in the order of the runs: ``variant``, ``title``, ``folds``, ``seeds``,
        each score (the mean over seeds of the mean over folds), its ``spread`` (standard deviation
        of the latter over seeds; NaN of a single seed), and the costs.
    """
    rows = []
    for variant in dict.fromkeys(run["variant"] for run in runs):
        mine = [run for run in runs if run["variant"] == variant]
        flat = pd.DataFrame([{"seed": r["seed"], **r["scores"]} for r in mine]).astype(float)
        by_seed = flat.groupby("seed").mean()
        row: dict[str, Any] = {
            "variant": variant,
            "title": mine[0]["title"],
            "folds": len({run["fold"] for run in mine}),
            "seeds": len(by_seed),
        }
        for name, values in by_seed.items():
            row |= {str(name): values.mean(), f"{name}{_SPREAD}": values.std(ddof=1)}
        rows.append(row | dict(costs.get(variant, {})))
    return pd.DataFrame(rows)


def as_markdown(table: pd.DataFrame, *, note: str) -> str:
    """Write the table for reading: main scores and costs, then glacier IoU by size and debris."""
    main = [
        [
            row["title"],
            *(with_spread(row, score) for score in COLUMNS),
            *(_cost(row.get(name), scale) for name, (_, scale) in _COSTS.items()),
        ]
        for row in table.to_dict("records")
    ]
    head = ["model", *COLUMNS.values(), *(label for label, _ in _COSTS.values())]
    parts = [_grid(head, main)]
    for scope, label in _GROUPS.items():
        names = _group_columns(table, scope)
        if names:
            rows = [
                [row["title"], *(with_spread(row, name) for name in names)]
                for row in table.to_dict("records")
            ]
            groups = [name.rsplit(" ", 1)[1] for name in names]
            parts.append(f"Glacier IoU by {label}:\n\n" + _grid(["model", *groups], rows))
    return "\n\n".join([*parts, note]) + "\n"


def write_tables(
    out: Workspace,
    table: pd.DataFrame,
    *,
    runs: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.json``.

    Parameters
    ----------
    out
        Where.
    table
        See :func:`summarise`.
    runs
        All runs, which go into the JSON.
    facts
        How the comparison was made; ``note`` among them ends the Markdown.
    """
    out.put("table.csv", table.to_csv(index=False).encode())
    out.put("table.md", as_markdown(table, note=str(facts["note"])).encode())
    rows = json.loads(table.to_json(orient="records"))
    whole = {"facts": facts, "table": rows, "runs": list(runs)}
    out.put("table.json", json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n")


def with_spread(row: Mapping[Any, Any], name: str) -> str:
    """Write a score of a row, with its spread where there is one; a dash where it is unknown."""
    value, spread = row.get(name), row.get(f"{name}{_SPREAD}")
    if pd.isna(value):
        return "–"
    return f"{value:.3f}" if pd.isna(spread) else f"{value:.3f} ± {spread:.3f}"


def _group_columns(table: pd.DataFrame, scope: str) -> list[str]:
    """Columns of glacier IoU in groups of a scope, smallest first."""
    start = f"iou ice {scope} "
    names = [c for c in table.columns if c.startswith(start) and not c.endswith(_SPREAD)]
    return sorted(names, key=lambda name: float(name.rsplit(" ", 1)[1].split("-")[0]))


def _cost(value: Any, scale: float) -> str:
    return "–" if pd.isna(value) else f"{value / scale:.3g}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
