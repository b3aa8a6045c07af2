"""`inventory-engine audit`: every kind of leak, what was found of it, and what was not seen."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table
from rich.text import Text

from model_serving.leaks import KINDS, Audit

__all__ = ["audit_table", "verdict"]

_SHOWN = 5
# ^ leaks of one kind that are told in full


def audit_table(audit: Audit) -> Table:
    """One row a kind of leak, and one for each of its first leaks."""
    table = Table(box=None, pad_edge=False, show_header=False)
    leaks = {kind: list(group) for kind, group in groupby(audit.leaks, key=lambda x: x.kind)}
    for kind, meaning in KINDS.items():
        found = leaks.get(kind, [])
        if found:
            state = Text(f"{len(found)} found", style="red")
        elif kind in audit.unseen:
            state = Text("not seen", style="yellow")
        else:
            state = Text("none", style="green")
        table.add_row(kind, state, Text(meaning))
        for leak in found[:_SHOWN]:
            table.add_row("", "", Text(f"{leak.member}: {leak.where}: {leak.evidence}"))
        if kind in audit.unseen:
            table.add_row("", "", Text(audit.unseen[kind], style="yellow"))
    return table


def verdict(audit: Audit) -> str:
    """Say in one line how it stands."""
    if audit.leaks:
        kinds = len({leak.kind for leak in audit.leaks})
        return f"{len(audit.leaks)} leaks of {kinds} kinds: figures of this ensemble are too good"
    seen = len(KINDS) - len(audit.unseen)
    return f"no leak; {seen} of {len(KINDS)} kinds were looked at in full"
