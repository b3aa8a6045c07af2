"""Commands on files of outlines, without imagery."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from inventory_engine.terminal import WITH_FAILURES, console_out

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
def folds(
    inventory: Annotated[Path, typer.Argument(help="Outlines of the glaciers to divide.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for the folds, their glaciers and a map.")],
    count: Annotated[int, typer.Option("--folds", min=2, help="How many folds.")] = 5,
    method: Annotated[
        str, typer.Option(help="`blocks`, or `slabs` from east to west for comparison.")
    ] = "blocks",
    window_km: Annotated[
        float | None, typer.Option(help="Edge of the widest training window.")
    ] = None,
    barrier_km: Annotated[
        float | None,
        typer.Option(help="Distance of training from what is held out; a window's diagonal."),
    ] = None,
    validation: Annotated[
        float | None, typer.Option(min=0.0, max=0.5, help="Share of ice that validates.")
    ] = None,
    id_field: Annotated[str, typer.Option(help="Column of glacier ids, if not a known one.")] = "",
) -> None:
    """Divide an inventory for regional cross-validation, and draw the map of it."""
    from inventory_engine.folds import fold_lines, fold_table, make_folds

    divided, measures = make_folds(
        inventory,
        out,
        id_field=id_field or None,
        folds=count,
        method=method,
        window_km=window_km,
        barrier_km=barrier_km,
        validation=validation,
    )
    console = console_out()
    console.print(fold_table(divided, measures))
    for line in fold_lines(divided, measures):
        console.print(line, highlight=False)


@commands.command()
def validate(
    file: Annotated[
        Path, typer.Argument(help="Outlines: GeoPackage, Shapefile, GeoParquet, GeoJSON.")
    ],
    *,
    profile: Annotated[
        str, typer.Option(help="`rgi7`, or `derived` for inventories with ids of their own.")
    ] = "rgi7",
    complexes: Annotated[Path | None, typer.Option(help="Its complexes.")] = None,
    intersects: Annotated[Path | None, typer.Option(help="Its intersects.")] = None,
    hypsometry: Annotated[Path | None, typer.Option(help="Its hypsometry, CSV.")] = None,
    links: Annotated[
        list[Path] | None,
        typer.Option(help="JSON: members of complexes; CSV: overlaps with another inventory."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a table, points and a map of the findings.")
    ] = None,
) -> None:
    """Check a glacier inventory against every rule of RGI 7, and tell where it breaks one."""
    from inventory_engine.display import RichShow
    from inventory_engine.validation import has_errors, rule_table, validate_files, verdict

    with RichShow(Console(stderr=True)) as show:
        found, count = validate_files(
            file,
            profile=profile,
            complexes=complexes,
            intersects=intersects,
            hypsometry=hypsometry,
            links=links or (),
            out=out,
            progress=show.counter(),
        )
    for finding in found:
        typer.echo(finding.line)
    console = console_out()
    if found:
        console.print(rule_table(found))
    console.print(verdict(found, count), highlight=False)
    if out is not None:
        console.print(f"{out}", highlight=False)
    if has_errors(found):
        raise typer.Exit(WITH_FAILURES)


@commands.command()
def divides(
    ice: Annotated[Path, typer.Argument(help="Outlines of ice, glaciers or complexes.")],
    *,
    out: Annotated[Path, typer.Option(help="GeoPackage or GeoParquet of the glaciers.")],
    reference: Annotated[
        Path | None, typer.Option(help="Inventory whose divides are copied.")
    ] = None,
    dem: Annotated[
        list[str] | None,
        typer.Option(help="Elevation, GeoTIFF: divides new ice; without a reference, all of it."),
    ] = None,
    id_field: Annotated[
        str, typer.Option(help="Column of ids of the reference, if not a known one.")
    ] = "",
) -> None:
    """Cut ice into glaciers, along the divides of an inventory or along those of the terrain."""
    from inventory_engine.display import RichShow
    from inventory_engine.divides import divide_files, divide_lines

    with RichShow(Console(stderr=True)) as show:
        glaciers, aside = divide_files(
            ice,
            out,
            reference=reference,
            dem=dem or (),
            id_field=id_field or None,
            progress=show.counter(),
        )
    for line in divide_lines(glaciers, aside, out):
        console_out().print(line, highlight=False)


@commands.command()
def links(
    new: Annotated[Path, typer.Argument(help="Outlines of one inventory.")],
    old: Annotated[Path, typer.Argument(help="Outlines of the other one.")],
    *,
    out: Annotated[Path, typer.Option(help="CSV to write.")],
    id_field: Annotated[
        str, typer.Option(help="Columns of ids, one or one a file (A,B), if not known ones.")
    ] = "",
    names: Annotated[
        str, typer.Option(help="What the columns call the two (A,B).")
    ] = "this,reference",
) -> None:
    """Tell which glacier of an inventory is which of another: overlaps, counts and clusters."""
    from inventory_engine.divides import link_files

    table = link_files(new, old, out, id_field=id_field, names=names)
    console_out().print(f"{len(table)} links, {out}", highlight=False)


@commands.command()
def compare(
    files: Annotated[
        list[Path],
        typer.Argument(help="Outlines in the order of time; or one file of several years."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Folder for tables, figures and the report.")],
    id_field: Annotated[
        str,
        typer.Option(help="Column of ids, one or one a file (A,B); else matched by overlap."),
    ] = "",
    date_field: Annotated[
        str, typer.Option(help="Column of dates, one or one a file, if not a usual one.")
    ] = "",
    dates: Annotated[str, typer.Option(help="A date for each file instead: 1998,2009-09-15.")] = "",
    outline_error: Annotated[
        str, typer.Option(help="Standard deviation of outlines in metres, one or one a date.")
    ] = "15",
    coverage: Annotated[
        str,
        typer.Option(help="What the files show: `hull` of outlines, the `same`, or a file."),
    ] = "hull",
    growth: Annotated[
        bool, typer.Option(help="Count ice beyond the outline of the date before.")
    ] = True,
) -> None:
    """Account for glaciers between outline files of any origin, without imagery."""
    from inventory_engine.compare import (
        Request,
        compare_files,
        comparison_lines,
        listed,
        numbers,
        pair_table,
    )

    summary = compare_files(
        Request(
            tuple(files),
            listed(id_field),
            listed(date_field),
            listed(dates),
            numbers("--outline-error", outline_error),
            coverage,
            growth,
        ),
        out,
    )
    console = console_out()
    console.print(pair_table(summary))
    for line in [*comparison_lines(summary), f"report: {out / 'report.html'}"]:
        console.print(line, highlight=False)
