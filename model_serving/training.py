"""Train an ensemble by regional cross-validation, reproducibly.

One law: no member sees what it will be asked to map. Whole regions are held out together, and what
is chosen after training is chosen on regions of other folds. Finished members and prepared regions
are kept, so an interrupted training goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from catalog.cube import CLASSES, MIN_MEMBERS, Workspace
from catalog.errors import UsageError
from model_serving.ensemble import CARD
from model_serving.evaluation import evaluate_calibration, evaluate_out_of_fold
from model_serving.features import CHANNELS
from model_serving.folds import TrainingRegion, assign_folds
from model_serving.measured import write_measured
from model_serving.member_training import (
    METRICS,
    Recipe,
    WindowSampler,
    served_config,
    train_member,
)
from model_serving.model_card import MODEL_CARD, model_card
from model_serving.parallel import run_jobs
from model_serving.regions import PreparedRegion, prepare_region
from model_serving.training_record import note_regions
from model_serving.training_report import REPORT, training_report

__all__ = [
    "REPORT",
    "Recipe",
    "WindowSampler",
    "dumped",
    "train_ensemble",
    "train_member",
    "write_ensemble",
]

Progress = Callable[[str, int, int], None]


def train_ensemble(
    out: Path,
    *,
    work: Path,
    specs: Sequence[Any] | None = None,
    regions: Sequence[PreparedRegion] | None = None,
    calibration: Sequence[Any] | None = None,
    recipe: Recipe | None = None,
    workers: int = 2,
    executor: str = "processes",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare the training regions, train every member, measure out of fold, write the card.

    Parameters
    ----------
    out
        Folder of the ensemble: ``card.json``, ``MODEL_CARD.md`` and one ``.safetensors`` a member.
    work
        Folder for regions, cubes, checkpoints and finished members; may be kept to resume. Holds
        ``metrics.jsonl`` of all members, which grows with each that finishes (that of a member
        at work lies in ``members``), and in the end the page ``training.html`` and the tables
        behind it, ``scores.csv`` and ``reliability.csv``.
    specs
        Regions to simulate (``catalog.simulation.RegionSpec``); by default the engine's training
        regions.
    regions
        Regions that are prepared already, such as a user's own
        (:func:`model_serving.cube_regions.region_from_workspace`), instead of ``specs``.
    calibration
        Regions, simulated or prepared, on which the uncertainty is measured; by default the
        engine's calibration regions, and none where ``regions`` are given.
    recipe
        How to train.
    workers
        Members trained at the same time, one core each.
    executor
        ``processes`` or ``ray``: the same members either way.
    progress
        Called with a label, the number done and the number in all.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    UsageError
        Where there are fewer regions than folds (``empty-fold``), fewer than three seeds, both
        ``specs`` and ``regions``, two regions of one name, or a network no ensemble can hold.
    DataError
        Where a training had to stop, see :func:`model_serving.fitting.fit`.
    """
    recipe = recipe or Recipe()
    taught, held_back = _wanted(specs, regions, calibration)
    _check(recipe, taught)
    report = progress or (lambda _label, _done, _total: None)
    everything = _prepared(
        [*taught, *held_back], work, recipe, workers=workers, executor=executor, report=report
    )
    note_regions(work, everything)
    names = {each.name for each in taught}
    prepared = [region for region in everything if region.name in names]
    unseen = [region for region in everything if region.name not in names]
    held_out = assign_folds([r.ice_km2 for r in prepared], recipe.folds)
    jobs = _jobs(prepared, held_out, recipe, work / "members")
    finished = Workspace(work / "members")

    def members_done(done: int, total: int) -> None:
        Workspace(work).put(METRICS, gathered_metrics(work / "members"))
        report("members", done, total)

    members = run_jobs(
        train_member,
        jobs,
        workers=workers,
        executor=executor,
        gpus=_gpu_share(recipe, workers),
        report=members_done,
    )
    members.sort(key=lambda m: (m["fold"], m["seed"]))
    described = [
        TrainingRegion(r.name, r.seed, f, r.bbox, r.glaciers, round(r.ice_km2, 3))
        for r, f in zip(prepared, held_out, strict=True)
    ]
    for member in members:
        member.setdefault("validated_on", [])
    card = _card(recipe, members, described, simulated=regions is None)
    card["calibration_regions"] = [{"name": r.name, "seed": r.seed} for r in unseen]
    finished.put(CARD, dumped(card))
    found, out_of_fold = evaluate_out_of_fold(
        work / "members",
        prepared,
        workers=workers,
        executor=executor,
        report=lambda d, t: report("out-of-fold maps", d, t),
    )
    measured = {"out of fold": out_of_fold}
    offsets, temperatures = found.pop("ice_offsets"), found.pop("temperatures")
    for member in card["members"]:
        member["ice_offset"] = offsets[member["fold"]]
        member["temperature"] = temperatures[member["fold"]]
        others = [r.name for r in described if r.fold != member["fold"]]
        member["tuned_on"] = {"ice_offset": others, "temperature": others}
    finished.put(CARD, dumped(card))
    card |= found
    if unseen:
        found, measured["unseen"] = evaluate_calibration(
            work / "members",
            unseen,
            workers=workers,
            executor=executor,
            report=lambda d, t: report("calibration maps", d, t),
        )
        card |= found
    write_ensemble(out, card, work / "members")
    write_measured(Workspace(work), measured)
    page = training_report(out, gathered_metrics(work / "members"), prepared, measured=measured)
    Workspace(work).put(REPORT, page.encode())
    return card


def write_ensemble(out: Path, card: dict[str, Any], members: Path) -> None:
    """Copy the members' weights, write the card in words, and last the card."""
    made, finished = Workspace(out), Workspace(members)
    for member in card["members"]:
        name = f"{member['name']}.safetensors"
        made.put(name, finished.get(name) or b"")
    made.put(MODEL_CARD, model_card(card).encode())
    made.put(CARD, dumped(card))
    # ^ last: an ensemble without its measured uncertainty must not be found


def gathered_metrics(members: Path) -> bytes:
    """The metrics of all members that have any so far, member by member."""
    files = sorted(members.glob(f"*.{METRICS}"))
    return b"".join(file.read_bytes() for file in files)


def dumped(card: dict[str, Any]) -> bytes:
    """A card as it is written."""
    return json.dumps(card, indent=1, sort_keys=True).encode() + b"\n"


def _wanted(
    specs: Sequence[Any] | None,
    regions: Sequence[PreparedRegion] | None,
    calibration: Sequence[Any] | None,
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What is trained on, and what the uncertainty is measured on."""
    from catalog.simulation import calibration_specs, training_specs

    if specs is not None and regions is not None:
        raise UsageError("give regions to simulate or prepared ones, not both")
    if regions is not None:
        taught: tuple[Any, ...] = tuple(regions)
        held_back = tuple(calibration or ())
    else:
        taught = tuple(training_specs() if specs is None else specs)
        held_back = tuple(calibration_specs() if calibration is None else calibration)
    names = [each.name for each in (*taught, *held_back)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"there are two regions named {', '.join(twice)}: each needs its own name")
    return taught, held_back


def _check(recipe: Recipe, taught: Sequence[Any]) -> None:
    if len(taught) < recipe.folds:
        raise UsageError(
            f"{recipe.folds} folds need as many regions, found {len(taught)}", kind="empty-fold"
        )
    if recipe.seeds < MIN_MEMBERS:
        raise UsageError(
            f"{recipe.seeds} seeds a fold: with fewer than {MIN_MEMBERS} members a region of "
            "training could not be mapped with an uncertainty"
        )
    if bool(recipe.validation_regions) != bool(recipe.validate_every):
        raise UsageError(
            f"validation_regions {recipe.validation_regions} and validate_every "
            f"{recipe.validate_every} need each other: give both or neither"
        )
    served_config(recipe)
    # ^ before any work: a network that no ensemble can hold must not be found out after training


def _prepared(
    wanted: Sequence[Any],
    work: Path,
    recipe: Recipe,
    *,
    workers: int,
    executor: str,
    report: Progress,
) -> list[PreparedRegion]:
    """All regions by name; those that are not prepared yet are simulated."""
    made = [each for each in wanted if isinstance(each, PreparedRegion)]
    jobs = [
        {
            "spec": spec,
            "folder": work / "regions" / spec.name,
            "resolution_m": recipe.resolution_m,
        }
        for spec in wanted
        if not isinstance(spec, PreparedRegion)
    ]
    if jobs:
        made += run_jobs(
            prepare_region,
            jobs,
            workers=workers,
            executor=executor,
            report=lambda done, total: report("regions", done, total),
        )
    return sorted(made, key=lambda region: region.name)


def _jobs(
    prepared: Sequence[PreparedRegion], held_out: Sequence[int], recipe: Recipe, folder: Path
) -> list[dict[str, Any]]:
    """One training a fold and seed; each seed sets other regions aside to be stopped by."""
    jobs = []
    for fold in range(recipe.folds):
        side = [r for r, f in zip(prepared, held_out, strict=True) if f != fold]
        for seed in range(recipe.seeds):
            aside = {(seed + i) % max(1, len(side)) for i in range(recipe.validation_regions)}
            jobs.append(
                {
                    "fold": fold,
                    "seed": seed,
                    "recipe": recipe,
                    "seen": [r for i, r in enumerate(side) if i not in aside],
                    "validating": [r for i, r in enumerate(side) if i in aside],
                    "folder": folder,
                }
            )
    return jobs


def _gpu_share(recipe: Recipe, workers: int) -> float:
    """What share of a GPU a member holds on Ray: all GPUs, shared out among the workers."""
    if torch.device(recipe.device).type != "cuda":
        return 0.0
    return min(1.0, torch.cuda.device_count() / workers)


_FORMS = {
    "glacier-seg-paper": "Glacier-Seg, published form",
    "glacier-seg": "Glacier-Seg, improved form",
}


def _card(
    recipe: Recipe,
    members: list[dict[str, Any]],
    regions: list[TrainingRegion],
    *,
    simulated: bool,
) -> dict[str, Any]:
    trained_on = (
        "simulated mountain regions whose surface spectra follow measured end-members"
        if simulated
        else "prepared regions with labels from an inventory"
    )
    return {
        "format": 1,
        "name": "default" if simulated else "own",
        "summary": (
            f"{_FORMS.get(recipe.network, recipe.network)}, trained on {trained_on}; "
            f"{recipe.folds} folds of whole regions."
        ),
        "region_source": "simulated" if simulated else "inventory",
        "channels": list(CHANNELS),
        "channel_transform": "sqrt(reflectance), dB, degrees, m, 1/100 m; then (x - mean) / std",
        "missing_inputs": "0 after normalisation; SAR and terrain may be absent",
        "classes": list(CLASSES),
        "network": served_config(recipe).to_dict(),
        "window_px": recipe.serve_window_px,
        "resolution_m": [10, 30],
        "command": "inventory-engine train FOLDER",
        "trained_with": {"torch": torch.__version__}
        | {"kernels": torch.backends.cpu.get_cpu_capability()},
        "recipe": asdict(recipe),
        "regions": [r.to_dict() for r in regions],
        "members": members,
        "area_calibration": {
            "scale": 1.0,
            "regional_scale": 1.0,
            "source": "not calibrated yet",
        },
    }
