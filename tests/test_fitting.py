"""The loop of one network learns, keeps what scored best, and ends when that was long ago."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fit_apart import Blobs, network
from torch import nn

from catalog.errors import UsageError
from model_serving.fitting import FitSettings, FixedWindows, History, fit
from model_serving.losses import make_loss
from model_serving.member_training import metrics_lines

LOSS = make_loss("ce_dice", class_weights=np.ones(4, np.float32))


class Told:
    """Scores as told, one a validation; notes a number of the network that was looked at."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.seen = list(scores), []

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert not network.training
        self.seen.append(next(network.parameters()).detach().clone())
        return {"score": self.scores[len(self.seen) - 1]}


def test_a_network_learns_what_can_be_learnt():
    fixed = FixedWindows([Blobs(2).batch()], LOSS)
    before = fixed(network().eval())
    made = fit(network(), Blobs(1), FitSettings(steps=60, ema_decay=0.9), loss=LOSS)
    after = fixed(made.network)
    assert after["score"] > before["score"] + 0.3
    assert after["loss"] < before["loss"]
    assert len(made.history.losses) == len(made.history.seconds) == 60
    assert not made.network.training


def test_any_network_from_pixels_to_logits_can_be_trained():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1))
    made = fit(plain, Blobs(1), FitSettings(steps=40, learning_rate=0.05), loss=LOSS)
    assert np.mean(made.history.losses[-5:]) < 0.6 * np.mean(made.history.losses[:5])


def test_precision_is_one_of_two_and_either_learns_the_same():
    with pytest.raises(UsageError, match="no training has the precision 'float16'"):
        FitSettings(precision="float16")  # type: ignore[arg-type]
    half, whole = (
        fit(network(), Blobs(1), FitSettings(steps=8, precision=p), loss=LOSS).history.losses
        for p in ("bfloat16", "float32")
    )
    assert half != whole
    assert half == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6])
def test_even_a_training_of_a_few_steps_comes_to_its_end(steps: int):
    made = fit(network(), Blobs(1), FitSettings(steps=steps), loss=LOSS)
    assert len(made.history.losses) == steps


def test_the_weights_that_scored_best_after_the_peak_are_kept():
    told = Told(0.9, 0.2, 0.5, 0.3)  # steps 5, 10, 15, 20; the peak lies at step 8
    settings = FitSettings(steps=20, warm_up=0.4, validate_every=5)
    made = fit(network(), Blobs(1), settings, loss=LOSS, validate=told)
    assert made.history.best_step == 15
    assert torch.equal(next(made.network.parameters()), told.seen[2])
    assert [v["step"] for v in made.history.validations] == [5, 10, 15, 20]


def test_training_ends_when_the_best_score_was_long_ago():
    told = Told(0.1, 0.5, 0.4, 0.45, 0.3, 0.9)
    settings = FitSettings(steps=60, validate_every=10, patience=3)
    made = fit(network(), Blobs(1), settings, loss=LOSS, validate=told)
    assert len(made.history.losses) == 50  # the peak lies at step 12: 20 is best, then 3 more
    assert made.history.best_step == 20
    assert torch.equal(next(made.network.parameters()), told.seen[1])


def test_scores_before_the_peak_neither_count_nor_wear_out_patience():
    told = Told(0.9, 0.8, 0.7, 0.6, 0.1, 0.2)
    settings = FitSettings(steps=12, warm_up=0.7, validate_every=2, patience=2)
    made = fit(network(), Blobs(1), settings, loss=LOSS, validate=told)
    assert len(made.history.losses) == 12
    assert made.history.best_step == 12


def test_validation_changes_nothing_in_what_is_learnt():
    settings = FitSettings(steps=8, validate_every=2)
    fixed = FixedWindows([Blobs(2).batch()], LOSS)
    with_scores = fit(network(), Blobs(1), settings, loss=LOSS, validate=fixed)
    without = fit(network(), Blobs(1), settings, loss=LOSS)
    assert with_scores.history.losses == without.history.losses


def test_fixed_windows_score_as_counted_by_hand():
    labels = torch.tensor([[[1, 1, 2, 0], [0, 0, 255, 2]]])

    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = torch.tensor([[[1, 2, 2, 0], [1, 0, 3, 0]]])
            return 9.0 * nn.functional.one_hot(found, 4).permute(0, 3, 1, 2) + self.none

    scores = FixedWindows([(torch.zeros(1, 3, 2, 4), labels)], LOSS)(Map())
    # background 2 of 4, clean 1 of 3, debris 1 of 3; water is not there; ice 3 of 5
    assert scores["score"] == pytest.approx((2 / 4 + 1 / 3 + 1 / 3) / 3, abs=1e-6)
    assert scores["ice_iou"] == pytest.approx(3 / 5)


def test_metrics_tell_each_step_once_and_scores_where_they_were_measured(tmp_path: Path):
    written: list[History] = []
    settings = FitSettings(steps=6, checkpoint_every=2, validate_every=3)
    told = Told(0.25, 0.5)
    fit(network(), Blobs(1), settings, loss=LOSS, validate=told, record=written.append)
    entry = {"name": "member-f1-s2", "fold": 1, "seed": 2}
    lines = metrics_lines(entry, written[-1]).decode().splitlines()
    assert len(written) >= 3
    assert len(lines) == 6
    assert lines[0].startswith('{"member": "member-f1-s2", "fold": 1, "seed": 2, "step": 1, "loss"')
    assert [("validation_score" in line) for line in lines] == [False, False, True] * 2


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"checkpoint_every": 0}, {"patience": -1}, {"validate_every": -5}]
)
def test_settings_without_sense_are_refused(wrong: dict[str, int]):
    with pytest.raises(UsageError, match="must be at least 1"):
        FitSettings(**wrong)
