"""What is done: read from the receipts alone, so it is true whoever made them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich.table import Table

from inventory_engine.lock import holder_of
from inventory_engine.plan import stored_grid
from inventory_engine.receipts import Failure, Ledger
from inventory_engine.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["print_status"]


def print_status(settings: Settings, console: Console) -> None:
    """Print finished and failed units by stage and season, and who is at work.

    Raises
    ------
    UsageError
        Where nothing was ever run in the workspace.
    """
    workspace, grid = stored_grid(settings)
    done: Counter[tuple[str, str]] = Counter()
    failed: dict[str, Failure] = {}
    failures: Counter[tuple[str, str]] = Counter()
    for receipt in Ledger(workspace, grid).read_all():
        place = (receipt.stage, receipt.season)
        if receipt.failed is None:
            done[place] += 1
        else:
            failures[place] += 1
            failed[receipt.key] = receipt.failed
    table = Table(title=f"{settings.name} in {workspace.url}", title_justify="left")
    table.add_column("stage")
    table.add_column("season")
    table.add_column("done", justify="right")
    table.add_column("failed", justify="right")
    for place in sorted(done.keys() | failures.keys()):
        table.add_row(*place, str(done[place]), str(failures[place] or "-"))
    console.print(table)
    for key, failure in sorted(failed.items()):
        console.print(f"{key}: {failure.kind}: {failure.reason}", highlight=False, markup=False)
    holder = holder_of(workspace)
    console.print(f"running: {holder}" if holder else "no run is going on", highlight=False)
