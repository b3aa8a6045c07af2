"""The commands `folds` and `audit`: what they write, what they tell, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import matplotlib as mpl
import numpy as np
import pytest
from ensembles import write_ensemble
from made_inventories import inventory
from PIL import Image
from test_cli import call, told

from catalog.errors import UsageError
from inventory_engine.folds import _COLOURS, fold_lines, make_folds
from model_serving.ensemble import CARD
from model_serving.folds import TrainingRegion
from model_serving.glacier_folds import read_folds

LATTICE = [
    (x * 2000.0, y * 2000.0, x * 2000.0 + 900, y * 2000.0 + 900) for x in range(8) for y in range(4)
]


@pytest.fixture
def outlines(tmp_path: Path) -> Path:
    frame = inventory(LATTICE)
    path = tmp_path / "outlines.gpkg"
    frame.rename(columns={"ref_id": "rgi_id"}).to_file(path, driver="GPKG")
    return path


def test_folds_are_written_as_json_as_glaciers_and_as_a_map(outlines: Path, tmp_path: Path):
    out = tmp_path / "out"
    result = call("folds", outlines, "--out", out, "--folds", 4, "--window-km", 0.5)
    assert result.returncode == 0, told(result)
    folds = read_folds(out)
    assert (folds.folds, folds.method, folds.window_m) == (4, "blocks", 500.0)
    assert "25.0%" in told(result) and "nearest glaciers of two folds 1100 m" in told(result)
    table = gpd.read_file(out / "folds.gpkg").set_index("ref_id")
    assert table["fold"].to_dict() == folds.fold_of
    assert table["area_km2"].tolist() == pytest.approx([0.81] * len(table), rel=1e-3)
    for fold in range(4):
        validates = {name for name, text in table["validates"].items() if str(fold) in text.split()}
        assert validates == folds.validating(fold)
    picture = np.asarray(Image.open(out / "folds.png").convert("RGB"))
    for colour in _COLOURS[:4]:
        same = (picture == np.round(255 * np.array(mpl.colors.to_rgb(colour)))).all(axis=-1)
        assert same.sum() > 1000, colour


def test_equal_inventories_make_equal_files(outlines: Path, tmp_path: Path):
    for name in ("one", "two"):
        make_folds(outlines, tmp_path / name, folds=2, window_km=0.5)
    for file in ("folds.json", "folds.png"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_slabs_and_a_barrier_of_ones_own_are_taken(outlines: Path, tmp_path: Path):
    folds, _ = make_folds(
        outlines, tmp_path / "out", method="slabs", window_km=0.5, barrier_km=1.0, validation=0.2
    )
    assert (folds.method, folds.barrier_m, folds.validation_share) == ("slabs", 1000.0, 0.2)


def test_a_fold_that_cannot_be_trained_is_told(outlines: Path, tmp_path: Path):
    folds, measures = make_folds(outlines, tmp_path / "out", folds=2, window_km=20.0)
    assert sum("nothing to train on" in line for line in fold_lines(folds, measures)) == 2


def test_what_cannot_be_divided_is_refused_before_anything_is_written(
    outlines: Path, tmp_path: Path
):
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="at most 10 folds"):
        make_folds(outlines, out, folds=11)
    result = call("folds", outlines, "--out", out, "--window-km", 2, "--barrier-km", 1)
    assert result.returncode == 2
    assert "not wider than a training window" in told(result)
    assert call("folds", tmp_path / "none.gpkg", "--out", out).returncode == 2
    assert not out.exists()


def test_the_audit_ends_with_3_where_there_is_a_leak_and_with_0_where_none(tmp_path: Path):
    region = TrainingRegion("A", 1, 0, (10.0, 46.0, 10.1, 46.1), 1, 1.0)
    folder = write_ensemble(tmp_path, folds=1, seeds=3, regions=(region,))
    clean = call("audit", folder)
    assert clean.returncode == 0, told(clean)
    assert "no leak" in told(clean) and "not seen" in told(clean)
    card = json.loads((folder / CARD).read_text())
    card["members"][1]["trained_on"] = ["A"]
    (folder / CARD).write_text(json.dumps(card))
    leaky = call("audit", folder)
    assert leaky.returncode == 3
    assert "member-f0-s1: A: it claims to hold out fold 0" in told(leaky)
    assert call("audit", tmp_path / "nowhere").returncode == 2
