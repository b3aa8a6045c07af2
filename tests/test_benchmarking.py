"""Models are compared on the same folds, pixels and steps, and nothing finished is done again."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from catalog.cube import CLASSES, Workspace
from catalog.errors import UsageError
from catalog.grid import region_grid
from inventory_engine.cli import app
from inventory_engine.model_comparison import comparison_regions, comparison_table, names_of
from model_serving.benchmark_costs import multiply_accumulates, parameters
from model_serving.benchmark_table import as_markdown, summarise, write_tables
from model_serving.benchmark_variants import ABLATIONS, MODELS, choose_variants
from model_serving.benchmarking import Plan, benchmark_models, train_pixels
from model_serving.features import CHANNELS
from model_serving.member_training import Recipe
from model_serving.networks import build_network
from model_serving.regions import PreparedRegion, read_region

SIDE = 128
PLAN = Plan(
    Recipe(folds=2, seeds=2, steps=3, batch=2, window_px=64, serve_window_px=128),
    run_folds=1,
    pixels=2000,
    latency_repeats=1,
)


def made_region(folder: Path, seed: int) -> PreparedRegion:
    """Two seasons of one glacier, half of it under debris, a lake, and a corner never seen."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    labels = np.zeros((2, SIDE, SIDE), np.uint8)
    labels[0, :60, :50], labels[1, :50, :50] = 1, 1
    labels[:, 20:40, :50], labels[:, 100:110] = 2, 3
    owners = np.zeros((SIDE, SIDE), np.int32)
    owners[:60, :50] = 1
    light = np.full((2, 6, SIDE, SIDE), 0.2)
    for label, values in ((1, (0.6, 0.6, 0.6, 0.5, 0.08, 0.06)), (3, (0.1, 0.08, 0.05, 0, 0.1, 0))):
        light = np.where((labels == label)[:, None], np.reshape(values, (1, 6, 1, 1)), light)
    features = np.empty((2, len(CHANNELS), SIDE, SIDE))
    features[:, :6] = np.sqrt(np.maximum(light + rng.normal(0, 0.01, light.shape), 0))
    features[:, 6:] = rng.normal(0, 1, (2, 5, SIDE, SIDE))
    features[:, 8] -= 3 * (labels == 2)
    features[:, :, -10:, -10:] = np.nan
    arrays = {"features": features.astype(np.float16), "labels": labels, "owners": owners}
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    grid = region_grid([10.0, 10.01], [46.0, 46.01], resolution_m=20, shard_px=SIDE, chunk_px=64)
    note = {
        "name": folder.name,
        "seed": seed,
        "grid": grid.to_dict(),
        "bbox": (9.9, 45.9, 10.1, 46.1),
        "seasons": ("2017", "2020"),
        "glaciers": 1,
        "ice_km2": 1.0,
        "fingerprint": f"fingerprint {seed}",
        "identity": "made by hand",
    }
    Workspace(folder).put("prepared.json", json.dumps(note).encode())
    return read_region(folder)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    for seed in range(2):
        made_region(folder / "regions" / f"MADE{seed}", seed)
    return folder


@pytest.fixture(scope="module")
def regions(work: Path) -> list[PreparedRegion]:
    return comparison_regions(work, resolution_m=20.0, progress=lambda *_: None)


NAMES = ["glacier-seg-paper", "unet", "band-ratio", "band-ratio-on-truth"]


@pytest.fixture(scope="module")
def compared(
    regions: list[PreparedRegion], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("out")
    return out, benchmark_models(choose_variants(NAMES), regions, plan=PLAN, out=out)


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in sorted(folder.iterdir())}


def test_a_comparison_has_one_row_a_model_with_scores_costs_and_spread(
    compared: tuple[Path, pd.DataFrame],
):
    out, table = compared
    assert table["variant"].tolist() == NAMES
    assert (table["seeds"] == 2).all()
    assert (table["folds"] == 1).all()
    scored = table[["iou ice", "iou water", "mean_iou all", "error ice", "error top"]].to_numpy()
    assert ((scored >= 0) & (scored <= 1)).all()
    assert table["iou ice spread"].notna().all()
    assert (table["ms"] > 0).all()
    assert table["parameters"].tolist()[:2] == [677_464, 7_765_444]
    assert table["macs"].notna().tolist() == [True, True, False, False]
    # The scene shows clean ice to any ratio; debris to none.
    ratio = table.set_index("variant").loc["band-ratio"]
    assert ratio["iou clean ice"] > 0.9
    assert ratio["found debris-covered ice"] < 0.1
    runs = sorted(p.name for p in (out / "runs").iterdir())
    assert len(runs) == len(NAMES) * 2  # no checkpoint is left


def test_the_tables_are_written_for_people_and_programs(compared: tuple[Path, pd.DataFrame]):
    out, table = compared
    text = (out / "table.md").read_text()
    assert text.startswith("| model | glacier IoU | clean ice IoU |")
    assert "Glacier IoU by area of the glacier, km²:" in text
    assert "3 steps of 2 windows of 64 px" in text
    assert "±" in text
    again = pd.read_csv(out / "table.csv")
    assert again["iou ice"].tolist() == pytest.approx(table["iou ice"].tolist())
    whole = json.loads((out / "table.json").read_text())
    assert len(whole["runs"]) == len(NAMES) * 2
    assert whole["facts"]["regions"] == {"MADE0": 0, "MADE1": 1}
    assert whole["table"][0]["variant"] == NAMES[0]


def test_a_finished_comparison_is_not_done_again_and_a_changed_one_is(
    compared: tuple[Path, pd.DataFrame], regions: list[PreparedRegion], tmp_path: Path
):
    table = compared[1]
    out = Path(shutil.copytree(compared[0], tmp_path / "out"))
    before = stamps(out / "runs")
    again = benchmark_models(choose_variants(NAMES), regions[::-1], plan=PLAN, out=out)
    assert stamps(out / "runs") == before
    pd.testing.assert_frame_equal(again, table)
    # One run that is lost is all that is made anew, and it finds the same.
    lost = out / "runs" / "unet-f0-s1.json"
    text = lost.read_text()
    lost.unlink()
    more = benchmark_models(choose_variants(["unet"]), regions, plan=PLAN, out=out)
    after = stamps(out / "runs")
    assert [name for name in before if after[name] != before[name]] == ["unet-f0-s1.json"]
    one, two = json.loads(text), json.loads(lost.read_text())
    for run in (one, two):
        run.pop("training_s")
    assert one == two
    assert more["iou ice"].iloc[0] == table["iou ice"].iloc[1]
    longer = Plan(
        Recipe(folds=2, seeds=1, steps=4, batch=2, window_px=64, serve_window_px=128),
        run_folds=1,
        latency_repeats=1,
    )
    benchmark_models(choose_variants(["unet"]), regions, plan=longer, out=out)
    assert json.loads((out / "runs" / "unet-f0-s0.json").read_text())["steps"] == 4


def test_what_is_held_out_takes_no_part_in_training(
    compared: tuple[Path, pd.DataFrame], regions: list[PreparedRegion], tmp_path: Path
):
    first = json.loads((compared[0] / "runs" / "unet-f0-s0.json").read_text())
    (held_out,) = first["held_out"]
    seen = [r for r in regions if r.name != held_out]
    other = made_region(tmp_path / held_out, 77)
    benchmark_models(choose_variants(["unet"]), [*seen, other], plan=PLAN, out=tmp_path / "out")
    second = json.loads((tmp_path / "out" / "runs" / "unet-f0-s0.json").read_text())
    assert second["held_out"] == first["held_out"]
    assert second["loss"] == first["loss"]
    assert second["scores"] != first["scores"]


def test_tuning_on_the_truth_is_never_worse_than_tuning_on_training_pixels(
    compared: tuple[Path, pd.DataFrame],
):
    scores = compared[1].set_index("variant")["iou ice"]
    assert scores["band-ratio-on-truth"] >= scores["band-ratio"]


def test_ablations_of_modality_and_time_budget_run(regions: list[PreparedRegion], tmp_path: Path):
    optical = [v for v in ABLATIONS["modalities"] if v.name == "glacier-seg optical"]
    plan = Plan(
        Recipe(folds=2, seeds=1, batch=1, window_px=32, serve_window_px=128),
        run_folds=1,
        seconds=0.2,
        latency_repeats=1,
    )
    table = benchmark_models(optical, regions, plan=plan, out=tmp_path)
    assert table["parameters"].iloc[0] < parameters(
        build_network("glacier-seg", channels=11, classes=4)
    )
    run = json.loads((tmp_path / "runs" / "glacier-seg-optical-f0-s0.json").read_text())
    kept = json.loads((tmp_path / "runs" / "glacier-seg-optical-f0-s0-steps.json").read_text())
    assert run["steps"] == kept["steps"] >= 8


def test_pixels_are_known_seen_and_equally_many_of_each_season(regions: list[PreparedRegion]):
    features, labels = train_pixels(regions, 400, np.random.default_rng(0))
    assert features.shape == (400, len(CHANNELS))
    assert np.isfinite(features[:, 0]).all()
    assert (labels < len(CLASSES)).all()
    same, _ = train_pixels(regions, 400, np.random.default_rng(0))
    assert (same == features).all()
    bright = (features[:, 2] > 0.6) & (labels == 1)
    assert bright.sum() == (labels == 1).sum()  # features and labels belong together


def test_mean_over_folds_then_mean_and_spread_over_seeds(tmp_path: Path):
    runs = [
        {
            "variant": "a",
            "title": "A",
            "fold": f,
            "seed": s,
            "scores": {"iou ice": v, "iou water": w},
        }
        for f, s, v, w in ((0, 0, 0.8, None), (1, 0, 0.6, 0.5), (0, 1, 0.9, None), (1, 1, 0.7, 0.6))
    ]
    table = summarise(runs, {"a": {"parameters": 2_000_000, "macs": None, "ms": 12.5}})
    row = table.iloc[0]
    assert row["iou ice"] == pytest.approx(0.75)  # (0.7 + 0.8) / 2
    assert row["iou ice spread"] == pytest.approx(np.std([0.7, 0.8], ddof=1))
    assert row["iou water"] == pytest.approx(0.55)  # of the folds that have water
    text = as_markdown(table, note="The end.")
    assert "| A | 0.750 ± 0.071 | – | – | 0.550 ± 0.071 |" in text
    assert text.rstrip().endswith("| 2 | – | 12.5 |\n\nThe end.")
    write_tables(Workspace(tmp_path), table, runs=runs, facts={"note": "The end."})
    assert json.loads((tmp_path / "table.json").read_text())["table"][0]["macs"] is None


def test_multiply_accumulates_are_those_of_the_formulas():
    plain = nn.Sequential(nn.Conv2d(11, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
    counted = multiply_accumulates(plain, channels=11, px=32)
    assert counted == 32 * 32 * (11 * 9 * 8 + 8 * 4)
    paper = build_network("glacier-seg-paper", channels=11, classes=4)
    # Scans: 3 a token, channel and state, and 4 taps a token and channel, at strides 2 to 16.
    scans = sum((64 // 2 ** (i + 1)) ** 2 * 2 * 16 * 2**i * (3 * 16 + 4) for i in range(4))
    whole = multiply_accumulates(paper, channels=11, px=64)
    assert 0.005 * whole < scans < 0.02 * whole
    two = build_network("glacier-seg-paper", channels=11, classes=4, directions=2)
    inner = [2 * 16 * 2**i for i in range(4)]
    tokens = [(64 // 2 ** (i + 1)) ** 2 for i in range(4)]
    # The second way repeats the mixer: its projections and its scan.
    repeated = sum(
        t * (d // 2 * 2 * d + d * (-(-d // 32) + 32) + -(-d // 32) * d + d * d // 2)
        for t, d in zip(tokens, inner, strict=True)
    )
    assert multiply_accumulates(two, channels=11, px=64) - whole == repeated + scans


def test_attention_is_counted_as_its_two_products_and_its_projections():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x.flatten(2).transpose(1, 2))

    tokens, width = 8 * 8, 32
    wanted = tokens * (4 * width**2 + 2 * width * 64) + 2 * tokens**2 * width
    assert multiply_accumulates(Tokens(), channels=width, px=8) == wanted


def test_every_variant_differs_from_its_base_in_what_it_says():
    for name, variants in ABLATIONS.items():
        base, *others = [v for v in variants if v.name not in MODELS] or [None]
        assert base is not None, name
        for variant in (base, *others):
            told = (variant.options, variant.channels, variant.loss, variant.learning_rate)
            plain = MODELS[variant.model]
            assert told != (plain.options, plain.channels, plain.loss, plain.learning_rate)
            assert variant.model in MODELS
    directions = [v.options.get("directions", 1) for v in ABLATIONS["directions"]]
    assert directions == [1, 2, 4]
    assert len(ABLATIONS["modalities"]) == 4


def test_variants_are_looked_up_once_each_and_unknown_ones_refused():
    chosen = choose_variants(["unet", "glacier-seg-paper"], ["directions"])
    assert [v.name for v in chosen] == [
        "unet",
        "glacier-seg-paper",
        "glacier-seg-paper 2 directions",
        "glacier-seg-paper 4 directions",
    ]
    with pytest.raises(UsageError, match="there is no model unet-99; known are glacier-seg, "):
        choose_variants(["unet-99"])
    with pytest.raises(UsageError, match="there is no ablation colour; known are modalities, "):
        choose_variants([], ["colour"])
    with pytest.raises(UsageError, match="nothing to compare"):
        choose_variants([])
    if importlib.util.find_spec("sklearn") is None:
        with pytest.raises(UsageError, match=r"glacier-inventory-engine\[peers\]"):
            choose_variants(["random-forest"])


def test_too_few_regions_and_impossible_plans_are_refused(
    regions: list[PreparedRegion], tmp_path: Path
):
    with pytest.raises(UsageError, match="5 folds need as many regions, found 2"):
        benchmark_models(choose_variants(["unet"]), regions, plan=Plan(Recipe()), out=tmp_path)
    with pytest.raises(UsageError, match="give 1 to 5 folds"):
        Plan(Recipe(), run_folds=6)


def test_calibration_regions_are_never_compared_on(work: Path, regions: list[PreparedRegion]):
    if not (work / "regions" / "CALIB00").exists():
        made_region(work / "regions" / "CALIB00", 9)
    found = comparison_regions(work, resolution_m=20.0, progress=lambda *_: None)
    assert [r.name for r in found] == [r.name for r in regions] == ["MADE0", "MADE1"]


def test_the_terminal_shows_what_tells_most(compared: tuple[Path, pd.DataFrame]):
    table = comparison_table(compared[1])
    assert table.row_count == len(NAMES)
    assert names_of("all", ["a", "b"]) == ["a", "b"]
    assert names_of("a, c", ["a", "b"]) == ["a", "c"]
    assert names_of("", ["a"]) == []


def test_the_command_compares_models_and_names_the_table(tmp_path: Path):
    """Five folds need five regions; indices alone need no training."""
    for seed in range(5):
        made_region(tmp_path / "work" / "regions" / f"MADE{seed}", seed)
    out = tmp_path / "out"
    wanted = ["--work", str(tmp_path / "work"), "--models", "band-ratio,ndsi", "--folds", "2"]
    shown = CliRunner().invoke(
        app, ["benchmark-models", *wanted, "--seeds", "1", "--steps", "3", "--out", str(out)]
    )
    assert shown.exit_code == 0, shown.output
    assert "NDSI" in shown.output
    assert "table.md" in shown.output.replace("\n", "")
    table = json.loads((out / "table.json").read_text())
    assert [row["folds"] for row in table["table"]] == [2, 2]
    refused = CliRunner().invoke(app, ["benchmark-models", "--models", "x", "--out", str(out)])
    assert isinstance(refused.exception, UsageError)
