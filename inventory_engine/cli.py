"""The command line. Exit codes: 0 done (or another run is at it), 2 bad settings before any work,
3 finished with recorded failures, 4 stopped and can be resumed.
"""  # noqa: D205

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from catalog.cube import Workspace
from catalog.errors import EngineError, UsageError
from inventory_engine import __version__
from inventory_engine.executors import Stopped, end_children, stop_on_signals
from inventory_engine.lock import BusyError
from inventory_engine.logs import quiet, redact
from inventory_engine.model_commands import commands as model_commands
from inventory_engine.outline_commands import commands as outline_commands
from inventory_engine.settings import set_process_environment
from inventory_engine.settings_file import EXAMPLE, load_settings
from inventory_engine.terminal import (
    BAD_SETTINGS,
    DONE,
    REGION_FILE,
    STOPPED,
    WITH_FAILURES,
    console_out,
)

if TYPE_CHECKING:
    from inventory_engine.pipeline import Summary

__all__ = ["app", "main"]

app = typer.Typer(
    name="inventory-engine",
    help="Map glaciers and how they change: from a STAC query to outlines and a change report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SettingsFile = Annotated[
    Path, typer.Argument(help="Settings file; `init` writes an example.", show_default=True)
]


def _finish(console: Console, summary: Summary) -> None:
    from inventory_engine.display import failure_table, summary_line

    console.print(summary_line(summary), highlight=False)
    if summary.failed:
        console.print(failure_table(summary))
        raise typer.Exit(WITH_FAILURES)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inventory-engine {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    del version


@app.command()
def run(
    settings: SettingsFile = REGION_FILE,
    search: Annotated[
        bool,
        typer.Option(help="Ask the catalogue for scenes, or take those that the last run found."),
    ] = True,
) -> None:
    """Do everything that is not done yet: cubes, maps, outlines, change, report."""
    from inventory_engine.display import RichShow
    from inventory_engine.pipeline import run_pipeline

    wanted = load_settings(settings)
    console = console_out()
    with RichShow(console) as show:
        summary = run_pipeline(wanted, show=show, search=search)
    _finish(console, summary)


@app.command()
def plan(settings: SettingsFile = REGION_FILE) -> None:
    """Tell what a run would do, without doing it."""
    from inventory_engine.display import preview_table
    from inventory_engine.pipeline import preview

    console_out().print(preview_table(preview(load_settings(settings))))


@app.command()
def status(settings: SettingsFile = REGION_FILE) -> None:
    """Tell what is done, what failed, and whether a run is going on."""
    from inventory_engine.status import print_status

    print_status(load_settings(settings), console_out())


@app.command()
def verify(
    settings: SettingsFile = REGION_FILE,
    as_json: Annotated[bool, typer.Option("--json", help="Write the findings as JSON.")] = False,
) -> None:
    """Read every stored object back and tell what is damaged, missing or unknown, and where."""
    from inventory_engine.display import RichShow
    from inventory_engine.verify import finding_table, verdict_line
    from inventory_engine.verify import verify as read_back

    console = Console(stderr=as_json)
    with RichShow(console) as show:
        verdict = read_back(load_settings(settings), progress=show.counter())
    if as_json:
        typer.echo(json.dumps(verdict.to_dict(), indent=1))
    elif verdict.findings:
        console.print(finding_table(verdict))
    if verdict.running:
        console.print(f"a run is going on: {verdict.running}; look again when it has ended")
    console.print(verdict_line(verdict), highlight=False)
    if verdict.findings:
        raise typer.Exit(WITH_FAILURES)


@app.command()
def change(
    settings: SettingsFile = REGION_FILE,
    first: Annotated[str, typer.Option("--from", help="Label of the earlier season.")] = "",
    last: Annotated[str, typer.Option("--to", help="Label of the later season.")] = "",
) -> None:
    """Report the change between any two seasons that are published."""
    from inventory_engine.display import change_line
    from inventory_engine.pipeline import run_change

    wanted = load_settings(settings)
    first, last = first or wanted.season_labels[0], last or wanted.season_labels[-1]
    console = console_out()
    summary = run_change(wanted, first, last)
    folder, workspace = f"change/{first}_{last}", Workspace(wanted.workspace)
    facts = workspace.get(f"{folder}/summary.json")
    if facts is not None and not summary.failed:
        console.print(change_line(json.loads(facts)), highlight=False)
        console.print(f"{workspace.url}/{folder}", highlight=False)
    _finish(console, summary)


@app.command()
def scenes(
    settings: SettingsFile = REGION_FILE,
    season: Annotated[str, typer.Option(help="Label of the season; the last one if left out.")] = (
        ""
    ),
    glacier: Annotated[str, typer.Option(help="Id of one glacier; all if left out.")] = "",
    top: Annotated[int, typer.Option(min=1, help="Looks shown of each glacier.")] = 5,
    plot: Annotated[
        Path | None,
        typer.Option(help="Picture of all looks at a glacier: a file, or a folder for all."),
    ] = None,
) -> None:
    """Tell which scenes of a season show each glacier best, and why."""
    from inventory_engine.scenes import show_scenes

    wanted = load_settings(settings)
    show_scenes(wanted, console_out(), season=season, glacier=glacier, top=top, plot=plot)


@app.command()
def report(settings: SettingsFile = REGION_FILE) -> None:
    """Write the report again from what is in the workspace."""
    from inventory_engine.pipeline import run_pipeline

    _finish(console_out(), run_pipeline(load_settings(settings), only=["report"], search=False))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = (
        Path("demo")
    ),
) -> None:
    """Make up a region with known truth, map it, and score the result."""
    from inventory_engine.demo import run_demo
    from inventory_engine.display import RichShow

    console = console_out()
    with RichShow(console) as show:
        summary, table = run_demo(out, show=show)
    console.print(table)
    console.print(f"report: {out / 'report' / 'index.html'}", highlight=False)
    _finish(console, summary)


app.add_typer(outline_commands)
app.add_typer(model_commands)


@app.command()
def doctor(
    ensemble: Annotated[str, typer.Option(help="`default` or the folder of an ensemble.")] = (
        "default"
    ),
) -> None:
    """Tell what this machine can run, which of it is chosen, and why."""
    from inventory_engine.doctor import examination_table, examine, machine_facts

    console = console_out()
    for name, fact in machine_facts().items():
        console.print(f"{name}: {fact}", highlight=False)
    console.print(examination_table(examine(ensemble)))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Settings file to write.")] = REGION_FILE,
    outlines: Annotated[str, typer.Option(help="Reference outlines of your region.")] = (
        "outlines.gpkg"
    ),
) -> None:
    """Write a commented example of a settings file."""
    if path.exists():
        raise UsageError(f"{path} exists already; give another name")
    try:
        path.write_text(EXAMPLE.format(outlines=outlines), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    console_out().print(f"{path}: edit it, then `inventory-engine plan {path}`", highlight=False)


def main() -> None:
    """Run the command line and leave with its exit code."""
    quiet()
    set_process_environment()
    stop_on_signals()
    errors = Console(stderr=True)
    try:
        app()
    except UsageError as error:
        errors.print(f"[red]{escape(redact(str(error)))}[/red]", highlight=False)
        _leave(BAD_SETTINGS)
    except BusyError as error:
        errors.print(escape(redact(str(error))), highlight=False)
        _leave(DONE)
    except EngineError as error:
        errors.print(f"[red]{escape(redact(str(error)))}[/red]", highlight=False)
        errors.print("stopped; the same command goes on where this one ended", highlight=False)
        _leave(STOPPED)
    except Stopped as request:
        errors.print(f"stopped by {request}; the same command goes on from here", highlight=False)
        _leave(STOPPED)


def _leave(code: int) -> None:
    """End at once and for certain: libraries' own endings may wait for workers that are gone."""
    end_children()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
