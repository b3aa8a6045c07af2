"""What the terminal shows: a live bar per stage with rate and time left, and short tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from inventory_engine.logs import redact
from inventory_engine.pipeline import Preview, Summary
from inventory_engine.receipts import State

__all__ = ["RichShow", "change_line", "failure_table", "preview_table", "size_text", "summary_line"]


class _Rate(TextColumn):
    """Finished units per second or per minute."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """Write the rate of one bar."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        text = f"{speed:.1f}/s" if speed >= 1 else f"{speed * 60:.1f}/min"
        return Text(text, style="cyan")


class RichShow:
    """Shows a run in the terminal.

    Parameters
    ----------
    console
        Where; without a terminal behind it, each stage is one line.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[skipped]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> RichShow:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def stage(self, title: str, *, total: int, skipped: int) -> Callable[[], None]:
        """Begin a bar; the units that are done already count as finished."""
        told = f"{skipped} kept" if skipped else ""
        if not self._console.is_terminal:
            line = f"{title}: {total - skipped} of {total} to do"
            self._console.print(line, highlight=False)
        task = self._progress.add_task(title, total=total - skipped, skipped=told)
        return lambda: self._progress.advance(task)

    def counter(self, title: str = "") -> Callable[[str, int, int], None]:
        """Return what a long step calls with a label, how many are done, and how many there are.

        With a title there is one bar, otherwise one for each label.
        """
        bars: dict[str, TaskID] = {}

        def tell(label: str, done: int, total: int) -> None:
            name = title or label
            if name not in bars:
                if not self._console.is_terminal:
                    self._console.print(f"{name}: {total} to do", highlight=False)
                bars[name] = self._progress.add_task(name, total=total, skipped="")
            self._progress.update(bars[name], completed=done)

        return tell

    def note(self, text: str) -> None:
        """Tell one line."""
        self._console.print(redact(text), highlight=False)


def size_text(size: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def preview_table(rows: Sequence[Preview]) -> Table:
    """Lay out what a run would do."""
    table = Table(title="plan", title_justify="left")
    table.add_column("stage")
    table.add_column("season")
    for name in ("scenes", "new", "recompute", "retry", "skip", "uncompressed"):
        table.add_column(name, justify="right")
    for row in rows:
        states: tuple[State, ...] = ("new", "recompute", "retry", "skip")
        counts = ["-" if row.scenes is None else str(row.scenes)]
        counts += [str(row.counts.get(state, 0) or "-") for state in states]
        table.add_row(row.stage, row.season, *counts, size_text(row.bytes) if row.bytes else "-")
    aside = sum(row.set_aside for row in rows)
    if aside:
        table.caption = f"{aside} of the scenes found cannot be used; the report names them"
    return table


def change_line(facts: dict[str, Any]) -> str:
    """Say in one line what became of the glaciers, from the summary of a pair of seasons."""
    pair = f"{facts['season_from']} to {facts['season_to']}"
    compared = f"{facts['glaciers_compared']} of {facts['glaciers']} glaciers compared"
    if facts["area_change_km2"] is None:
        return f"{pair}: no change can be told, {compared}"
    sigma, rate = facts["area_change_sigma_km2"], facts["rate_percent_per_year"]
    interval = "interval not available" if sigma is None else f"± {sigma:.2f}"
    told = f"{pair}: {facts['area_change_km2']:+.2f} km² {interval}"
    return f"{told}{'' if rate is None else f', {rate:+.2f} % per year'}, {compared}"


def summary_line(summary: Summary) -> str:
    """Say in one line what a run did."""
    parts = [f"{summary.done} units done", f"{summary.skipped} kept"]
    if summary.failed:
        parts.append(f"{len(summary.failed)} failed")
    if summary.set_aside:
        parts.append(f"{summary.set_aside} inputs set aside")
    return f"{', '.join(parts)} in {summary.seconds:.0f} s, peak {summary.peak_gib:.1f} GiB"


def failure_table(summary: Summary) -> Table:
    """Lay out what could not be done, and why."""
    table = Table(title="not done; the next run tries again", title_justify="left")
    for name in ("unit", "kind", "reason"):
        table.add_column(name)
    for key, failure in sorted(summary.failed.items()):
        table.add_row(key, failure.kind, Text(redact(failure.reason)))
    return table
