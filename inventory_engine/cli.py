"""The command line. Exit codes: 0 done (or another run is at it), 2 bad settings before any work,
3 finished with recorded failures, 4 stopped and can be resumed.
"""  # noqa: D205

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from catalog.cube import Workspace
from catalog.errors import EngineError, UsageError
from inventory_engine import __version__
from inventory_engine.executors import Stopped, end_children, stop_on_signals
from inventory_engine.lock import BusyError
from inventory_engine.logs import quiet, redact
from inventory_engine.settings import set_process_environment
from inventory_engine.settings_file import EXAMPLE, load_settings

if TYPE_CHECKING:
    from inventory_engine.pipeline import Summary

__all__ = ["app", "main"]

DONE, BAD_SETTINGS, WITH_FAILURES, STOPPED = 0, 2, 3, 4

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
_REGION_FILE = Path("region.yaml")


def _console() -> Console:
    return Console(stderr=False)


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
    settings: SettingsFile = _REGION_FILE,
    search: Annotated[
        bool,
        typer.Option(help="Ask the catalogue for scenes, or take those that the last run found."),
    ] = True,
) -> None:
    """Do everything that is not done yet: cubes, maps, outlines, change, report."""
    from inventory_engine.display import RichShow
    from inventory_engine.pipeline import run_pipeline

    wanted = load_settings(settings)
    console = _console()
    with RichShow(console) as show:
        summary = run_pipeline(wanted, show=show, search=search)
    _finish(console, summary)


@app.command()
def plan(settings: SettingsFile = _REGION_FILE) -> None:
    """Tell what a run would do, without doing it."""
    from inventory_engine.display import preview_table
    from inventory_engine.pipeline import preview

    _console().print(preview_table(preview(load_settings(settings))))


@app.command()
def status(settings: SettingsFile = _REGION_FILE) -> None:
    """Tell what is done, what failed, and whether a run is going on."""
    from inventory_engine.status import print_status

    print_status(load_settings(settings), _console())


@app.command()
def verify(
    settings: SettingsFile = _REGION_FILE,
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
    settings: SettingsFile = _REGION_FILE,
    first: Annotated[str, typer.Option("--from", help="Label of the earlier season.")] = "",
    last: Annotated[str, typer.Option("--to", help="Label of the later season.")] = "",
) -> None:
    """Report the change between any two seasons that are published."""
    from inventory_engine.display import change_line
    from inventory_engine.pipeline import run_change

    wanted = load_settings(settings)
    first, last = first or wanted.season_labels[0], last or wanted.season_labels[-1]
    console = _console()
    summary = run_change(wanted, first, last)
    folder, workspace = f"change/{first}_{last}", Workspace(wanted.workspace)
    facts = workspace.get(f"{folder}/summary.json")
    if facts is not None and not summary.failed:
        console.print(change_line(json.loads(facts)), highlight=False)
        console.print(f"{workspace.url}/{folder}", highlight=False)
    _finish(console, summary)


@app.command()
def scenes(
    settings: SettingsFile = _REGION_FILE,
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
    show_scenes(wanted, _console(), season=season, glacier=glacier, top=top, plot=plot)


@app.command()
def report(settings: SettingsFile = _REGION_FILE) -> None:
    """Write the report again from what is in the workspace."""
    from inventory_engine.pipeline import run_pipeline

    _finish(_console(), run_pipeline(load_settings(settings), only=["report"], search=False))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demonstration makes.")] = (
        Path("demo")
    ),
) -> None:
    """Make up a region with known truth, map it, and score the result."""
    from inventory_engine.demo import run_demo
    from inventory_engine.display import RichShow

    console = _console()
    with RichShow(console) as show:
        summary, table = run_demo(out, show=show)
    console.print(table)
    console.print(f"report: {out / 'report' / 'index.html'}", highlight=False)
    _finish(console, summary)


@app.command()
def simulate(
    out: Annotated[Path, typer.Argument(help="Folder for scenes, catalogue and truth.")],
    region: Annotated[
        str, typer.Option(help="`demo`, or a training, calibration or held-out region.")
    ] = "demo",
) -> None:
    """Make up a region: terrain, glaciers, scenes and a STAC catalogue, with known truth."""
    from catalog.simulation import (
        calibration_specs,
        demo_spec,
        heldout_specs,
        simulate_region,
        training_specs,
    )
    from inventory_engine.display import RichShow

    made_for = (*training_specs(), *calibration_specs(), *heldout_specs())
    specs = {"demo": demo_spec()} | {spec.name: spec for spec in made_for}
    if region not in specs:
        raise UsageError(f"there is no region {region!r}; known are {', '.join(specs)}")
    console = _console()
    with RichShow(console) as show:
        made = simulate_region(specs[region], out, progress=show.counter("region"))
    console.print(f"{made.items}\n{made.reference}", highlight=False)


@app.command()
def train(
    out: Annotated[Path, typer.Argument(help="Folder for the ensemble.")],
    *,
    work: Annotated[
        Path,
        typer.Option(help="Folder for regions, finished members, metrics and the report."),
    ] = Path("work-train"),
    terrain: Annotated[
        list[str] | None,
        typer.Option(
            help="FILE,LON,LAT: train also on a made-up region on the real mountains of an "
            "elevation model, 14 km around a point; may be repeated."
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Members trained at the same time.")] = 2,
    executor: Annotated[str, typer.Option(help="`processes` or `ray`.")] = "processes",
    network: Annotated[str | None, typer.Option(help="Form of the network.")] = None,
    loss: Annotated[str | None, typer.Option(help="What training minimises.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps a member.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Members a fold.")] = None,
    device: Annotated[str | None, typer.Option(help="`cpu` or `cuda`.")] = None,
) -> None:
    """Train an ensemble on made-up regions by regional cross-validation."""
    from catalog.simulation import terrain_shape, terrain_specs, training_specs
    from inventory_engine.display import RichShow
    from model_serving.measured import SCORES
    from model_serving.training import REPORT, Recipe, train_ensemble

    given: dict[str, Any] = {
        "network": network,
        "loss": loss,
        "steps": steps,
        "seeds": seeds,
        "device": device,
    }
    recipe = replace(Recipe(), **{k: v for k, v in given.items() if v is not None})
    console = _console()
    with RichShow(console) as show:
        card = train_ensemble(
            out,
            work=work,
            specs=(*training_specs(), *terrain_specs([terrain_shape(t) for t in terrain or ()])),
            recipe=recipe,
            workers=workers,
            executor=executor,
            progress=show.counter(),
        )
    console.print(f"{len(card['members'])} members in {out}", highlight=False)
    console.print(f"report: {work / REPORT}", highlight=False)
    console.print(f"scores: {work / SCORES}", highlight=False)


@app.command(name="fine-tune")
def fine_tune(
    out: Annotated[Path, typer.Argument(help="Folder for the new ensemble.")],
    *,
    region: Annotated[
        Path, typer.Option(help="Settings file of a region whose cubes are made.")
    ] = _REGION_FILE,
    ensemble: Annotated[str, typer.Option(help="`default` or the folder of an ensemble.")] = (
        "default"
    ),
    season: Annotated[
        str, typer.Option(help="Label of the season whose date is the outlines'; the first.")
    ] = "",
    debris: Annotated[Path | None, typer.Option(help="Outlines of debris cover.")] = None,
    lakes: Annotated[Path | None, typer.Option(help="Outlines of water.")] = None,
    cut_complexes: Annotated[
        bool, typer.Option("--cut-complexes", help="Hold out parts of a complex of glaciers.")
    ] = False,
    condition: Annotated[
        str, typer.Option(help="What the region changes: `affine`, `all` or `statistics`.")
    ] = "affine",
    steps: Annotated[int, typer.Option(min=1, help="Steps a member.")] = 60,
    work: Annotated[Path, typer.Option(help="Folder for what is kept to resume.")] = (
        Path("work-tune")
    ),
    workers: Annotated[int, typer.Option(min=1, help="Members tuned at the same time.")] = 2,
    executor: Annotated[str, typer.Option(help="`processes` or `ray`.")] = "processes",
) -> None:
    """Go on training an ensemble on your own region, with its reference outlines as labels."""
    from inventory_engine.display import RichShow
    from inventory_engine.own_region import labelled_region
    from model_serving.ensemble import load_ensemble
    from model_serving.fine_tuning import Tuning, fine_tune

    console = _console()
    own = labelled_region(
        load_settings(region), work / "region", season=season, debris=debris, lakes=lakes
    )
    with RichShow(console) as show:
        card = fine_tune(
            load_ensemble(ensemble),
            own,
            out,
            work=work,
            tuning=Tuning(condition=condition, steps=steps, cut_complexes=cut_complexes),
            workers=workers,
            executor=executor,
            progress=show.counter(),
        )
    before, after = (card["fine_tuning"][k]["ice_iou"] for k in ("before", "after"))
    console.print(f"{len(card['members'])} members in {out}", highlight=False)
    console.print(
        f"IoU on glaciers they have not seen: {before:.3f} before, {after:.3f} after",
        highlight=False,
    )


@app.command()
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
    console = _console()
    console.print(fold_table(divided, measures))
    for line in fold_lines(divided, measures):
        console.print(line, highlight=False)


@app.command()
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
    console = _console()
    if found:
        console.print(rule_table(found))
    console.print(verdict(found, count), highlight=False)
    if out is not None:
        console.print(f"{out}", highlight=False)
    if has_errors(found):
        raise typer.Exit(WITH_FAILURES)


@app.command()
def audit(
    folder: Annotated[Path, typer.Argument(help="Folder of an ensemble.")],
    work: Annotated[
        Path | None, typer.Option(help="Folder of its training, with the prepared regions.")
    ] = None,
) -> None:
    """Look for held-out ground that took part in training an ensemble."""
    from inventory_engine.audits import audit_table, verdict
    from model_serving.leaks import audit_ensemble

    found = audit_ensemble(folder, work=work)
    console = _console()
    console.print(audit_table(found))
    console.print(verdict(found), highlight=False)
    if found.leaks:
        raise typer.Exit(WITH_FAILURES)


@app.command()
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
    console = _console()
    console.print(pair_table(summary))
    for line in [*comparison_lines(summary), f"report: {out / 'report.html'}"]:
        console.print(line, highlight=False)


@app.command("benchmark-models")
def benchmark_models(
    out: Annotated[Path, typer.Option(help="Folder for the tables and finished runs.")],
    work: Annotated[
        Path, typer.Option(help="Folder of a training, with the prepared regions.")
    ] = Path("work-train"),
    models: Annotated[
        str, typer.Option(help="Names with commas between, `all`, or nothing.")
    ] = "all",
    ablations: Annotated[
        str, typer.Option(help="Sets of variants, with commas between, or `all`.")
    ] = "",
    *,
    run_folds: Annotated[
        int | None, typer.Option("--folds", min=1, help="Folds run, of five; all if left out.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each model in each fold.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Of each training.")] = 600,
    seconds: Annotated[
        float | None, typer.Option(min=1.0, help="Of each training, instead of steps.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at the same time.")] = 1,
) -> None:
    """Compare models on the same held-out regions, pixels and steps."""
    from inventory_engine.display import RichShow
    from inventory_engine.model_comparison import (
        comparison_regions,
        comparison_table,
        names_of,
    )
    from model_serving.benchmark_variants import ABLATIONS, MODELS, choose_variants
    from model_serving.benchmarking import Plan
    from model_serving.benchmarking import benchmark_models as compare
    from model_serving.member_training import Recipe

    variants = choose_variants(names_of(models, list(MODELS)), names_of(ablations, list(ABLATIONS)))
    plan = Plan(Recipe(seeds=seeds, steps=steps), run_folds=run_folds, seconds=seconds)
    console = _console()
    with RichShow(console) as show:
        regions = comparison_regions(
            work, resolution_m=plan.recipe.resolution_m, progress=show.counter()
        )
        scores = compare(
            variants, regions, plan=plan, out=out, workers=workers, progress=show.counter()
        )
    console.print(comparison_table(scores))
    console.print(f"{out / 'table.md'}", highlight=False)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder for the ONNX files, one a member.")],
    ensemble: Annotated[str, typer.Option(help="`default` or the folder of an ensemble.")] = (
        "default"
    ),
) -> None:
    """Write the members of an ensemble as ONNX models of standard operators."""
    from inventory_engine.display import RichShow
    from model_serving.ensemble import export_ensemble, load_ensemble

    console = _console()
    with RichShow(console) as show:
        files = export_ensemble(load_ensemble(ensemble), out, progress=show.counter())
    size = sum(file.stat().st_size for file in files) / 1e6
    console.print(f"{len(files)} models in {out}, {size:.1f} MB", highlight=False)


@app.command()
def doctor(
    ensemble: Annotated[str, typer.Option(help="`default` or the folder of an ensemble.")] = (
        "default"
    ),
) -> None:
    """Tell what this machine can run, which of it is chosen, and why."""
    from inventory_engine.doctor import examination_table, examine, machine_facts

    console = _console()
    for name, fact in machine_facts().items():
        console.print(f"{name}: {fact}", highlight=False)
    console.print(examination_table(examine(ensemble)))


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Settings file to write.")] = _REGION_FILE,
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
    _console().print(f"{path}: edit it, then `inventory-engine plan {path}`", highlight=False)


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
