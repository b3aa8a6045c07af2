"""The page of a training shows what its files hold, whole and by itself."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from ensembles import write_ensemble
from PIL import Image
from test_territories import region_of, squares

from model_serving.ensemble import CARD
from model_serving.evaluation import evaluate_out_of_fold
from model_serving.folds import TrainingRegion
from model_serving.training_report import _mapped, _richest, training_report


def metrics(*, scores: bool) -> bytes:
    rng = np.random.default_rng(0)
    lines = [
        {
            "member": f"member-f{fold}-s{seed}",
            "fold": fold,
            "seed": seed,
            "step": step,
            "loss": 1.5 * 0.97**step + 0.1 * rng.random(),
            "seconds": 0.5,
        }
        | ({"validation_score": step / 100} if scores and step % 10 == 0 else {})
        for fold in (0, 1)
        for seed in (0, 1, 2)
        for step in range(1, 41)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, list]:
    regions = []
    for fold, name in enumerate(("A<B", "C")):
        folder = tmp_path / str(fold)
        folder.mkdir()
        made = region_of(folder, squares((5, 5), (60, 60), side=30))
        regions.append(type(made)(**{f: getattr(made, f) for f in made.__slots__} | {"name": name}))
    listed = tuple(
        TrainingRegion(r.name, 0, fold, (float(fold), 45.0, fold + 0.5, 45.5), 2, 1.0)
        for fold, r in enumerate(regions)
    )
    return write_ensemble(tmp_path / "ensemble", regions=listed), regions


def test_the_page_needs_no_other_file_and_shows_curves_maps_members_and_card(
    trained: tuple[Path, list],
):
    ensemble, regions = trained
    page = training_report(ensemble, metrics(scores=True), regions)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page
    pictures = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) == 4  # losses, validations, a map a fold
    for picture in pictures:
        colours = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 10
    assert "A&lt;B" in page
    assert "A<B" not in page
    assert page.count("<td>member-f") == 6
    assert "# Model card: ensemble untrained" in page
    assert '<td class="n">0.400</td><td class="n">40</td><td class="n">20</td>' in page
    assert page == training_report(ensemble, metrics(scores=True), regions)


def test_reliability_and_scores_of_groups_are_shown_as_far_as_they_were_measured(
    trained: tuple[Path, list],
):
    ensemble, regions = trained
    found, measured = evaluate_out_of_fold(ensemble, regions, workers=1)
    card = json.loads((ensemble / CARD).read_text())
    (ensemble / CARD).write_text(json.dumps(card | {"metrics": found["metrics"]}))
    page = training_report(
        ensemble, metrics(scores=False), regions, measured={"out of fold": measured}
    )
    assert page.count("before and after temperatures, out of fold") == 1
    assert len(re.findall("data:image/png;base64,", page)) == 4  # losses, maps, reliability
    for title in ("Fold", "Area of the glacier, km²", "Share of its ice under debris"):
        assert f"<th>{title}, out of fold</th>" in page
    for fold in ("0", "1"):
        score = f"{found['metrics']['groups']['fold'][fold]['ice_iou']:.3f}"
        assert f'<tr><td>{fold}</td><td class="n">{score}</td>' in page
        assert f"{found['metrics']['members'][fold]['ice_iou_deviation']:.3f} (3)</td>" in page
    for name in ("ice_recall", "ice_calibration_error", "ice_calibration_error_at_1"):
        assert f"{found['metrics'][name]:.3f}" in page


def test_what_was_not_done_is_said(trained: tuple[Path, list]):
    ensemble, _ = trained
    page = training_report(ensemble, metrics(scores=False))
    assert "No training was watched by a validation" in page
    assert "No region was given to be mapped" in page
    assert "Nothing was measured" in page
    assert "Reliability" not in page
    assert "Scores of groups" not in page


def test_an_example_is_mapped_by_those_that_hold_it_out_only(trained: tuple[Path, list]):
    from model_serving.ensemble import load_ensemble

    ensemble, regions = trained
    raw = regions[0].features()[0].astype(np.float32)
    raw[:, :10] = np.nan
    classes, members = _mapped(load_ensemble(ensemble), raw, 1)
    assert members == 3
    assert (classes[:10] == 255).all()
    assert (classes[10:] < 4).all()


def test_the_cut_shown_is_where_most_classes_are():
    labels = np.full((100, 100), 255, np.uint8)
    labels[:50] = 0
    labels[20:40, 60:90] = 1
    labels[22:30, 70:80] = 2
    rows, cols = _richest(labels, 40)
    assert rows.stop - rows.start == cols.stop - cols.start == 40
    assert {0, 1, 2} <= set(np.unique(labels[rows, cols]))
    assert _richest(labels[:30, :20], 40) == (slice(0, 30), slice(0, 20))
