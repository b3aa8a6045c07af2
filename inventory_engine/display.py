"""What the terminal shows: a live bar per stage with rate and time left, and short tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType

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

__all__ = ["RichShow", "failure_table", "preview_table", "size_text", "summary_line"]


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
    for name in ("new", "recompute", "retry", "skip", "uncompressed"):
        table.add_column(name, justify="right")
    for row in rows:
        counts = [
            str(row.counts.get("new", 0) or "-"),
            str(row.counts.get("recompute", 0) or "-"),
            str(row.counts.get("retry", 0) or "-"),
            str(row.counts.get("skip", 0) or "-"),
        ]
        table.add_row(row.stage, row.season, *counts, size_text(row.bytes) if row.bytes else "-")
    return table


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
