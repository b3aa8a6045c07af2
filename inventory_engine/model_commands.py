"""Commands on ensembles and on the made-up regions they are trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from catalog.errors import UsageError
from inventory_engine.settings_file import load_settings
from inventory_engine.terminal import REGION_FILE, WITH_FAILURES, console_out

__all__ = ["commands"]

commands = typer.Typer()


@commands.command()
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
    console = console_out()
    with RichShow(console) as show:
        made = simulate_region(specs[region], out, progress=show.counter("region"))
    console.print(f"{made.items}\n{made.reference}", highlight=False)


@commands.command()
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
    console = console_out()
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


@commands.command(name="fine-tune")
def fine_tune(
    out: Annotated[Path, typer.Argument(help="Folder for the new ensemble.")],
    *,
    region: Annotated[
        Path, typer.Option(help="Settings file of a region whose cubes are made.")
    ] = REGION_FILE,
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

    console = console_out()
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


@commands.command()
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
    console = console_out()
    console.print(audit_table(found))
    console.print(verdict(found), highlight=False)
    if found.leaks:
        raise typer.Exit(WITH_FAILURES)


@commands.command("benchmark-models")
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
    console = console_out()
    with RichShow(console) as show:
        regions = comparison_regions(
            work, resolution_m=plan.recipe.resolution_m, progress=show.counter()
        )
        scores = compare(
            variants, regions, plan=plan, out=out, workers=workers, progress=show.counter()
        )
    console.print(comparison_table(scores))
    console.print(f"{out / 'table.md'}", highlight=False)


@commands.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder for the ONNX files, one a member.")],
    ensemble: Annotated[str, typer.Option(help="`default` or the folder of an ensemble.")] = (
        "default"
    ),
) -> None:
    """Write the members of an ensemble as ONNX models of standard operators."""
    from inventory_engine.display import RichShow
    from model_serving.ensemble import export_ensemble, load_ensemble

    console = console_out()
    with RichShow(console) as show:
        files = export_ensemble(load_ensemble(ensemble), out, progress=show.counter())
    size = sum(file.stat().st_size for file in files) / 1e6
    console.print(f"{len(files)} models in {out}, {size:.1f} MB", highlight=False)
