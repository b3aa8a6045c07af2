"""The fault matrix of training, row by row: M6, a kill at any step, and M8, nothing to learn."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_apart import SETTINGS, Blobs, network, train

from catalog.errors import DataError, StoreError, UsageError
from model_serving.checkpoints import Checkpoints
from model_serving.fitting import FitSettings, FixedWindows, fit
from model_serving.losses import make_loss
from model_serving.member_training import Recipe, train_member
from model_serving.training import train_ensemble

LOSS = make_loss("ce_dice", class_weights=np.ones(4, np.float32))


# --- M6: killed at any step ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The training that nothing cut off."""
    return train(tmp_path_factory.mktemp("whole"))


def killed_at(step: int, folder: Path) -> int:
    """Train in a process of its own and kill it once it has told of a step; its exit code."""
    here = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, str(here / "fit_apart.py"), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{here.parent}{os.pathsep}{here}"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            break
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    return process.wait()


def assert_resumes_to_the_same(folder: Path, steps: list[int], unbroken: Any) -> None:
    for step in steps:
        assert killed_at(step, folder) == -signal.SIGKILL
        left = Checkpoints(folder, name="blobs", identity="one").load()
        assert left is not None
        assert step <= left.step < SETTINGS.steps
    resumed = train(folder)
    assert resumed.history.losses == unbroken.history.losses
    assert resumed.history.validations == unbroken.history.validations
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


@pytest.mark.slow
def test_m6_a_training_killed_twice_ends_with_the_same_curve_and_weights_bit_by_bit(
    tmp_path: Path, unbroken: Any
):
    assert_resumes_to_the_same(tmp_path, [3, 11], unbroken)


@pytest.mark.chaos
def test_m6_ten_kills_at_any_step(tmp_path: Path, unbroken: Any):
    draw = random.Random(6)
    for trial in range(5):
        steps = sorted(draw.sample(range(1, SETTINGS.steps - 2), 2))
        assert_resumes_to_the_same(tmp_path / f"killed-{trial}", steps, unbroken)


@pytest.mark.parametrize("done", [1, 6, 13, 23])
def test_m6_a_state_taken_up_after_any_step_is_the_state_that_was_left(
    done: int, tmp_path: Path, unbroken: Any
):
    """The same without processes: the loop is left by an error at a step of our choice."""

    class Cut(Blobs):
        def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().batch()

    cut = Cut(1)
    cut.left = done
    kept = {"loss": LOSS, "validate": FixedWindows([Blobs(2).batch()], LOSS)}
    checkpoints = Checkpoints(tmp_path / "cut", name="blobs", identity="one")
    with pytest.raises(KeyboardInterrupt):
        fit(network(), cut, SETTINGS, checkpoints=checkpoints, **kept)
    torch.manual_seed(99)  # what the process does in between must not matter
    resumed = train(tmp_path / "cut")
    assert resumed.history.losses == unbroken.history.losses
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name


def test_m6_a_kill_between_tensors_and_note_leaves_the_checkpoint_before(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path, name="blobs", identity="one")
    train(tmp_path, SETTINGS)
    whole = checkpoints.load()
    assert whole is not None
    # What a process killed while it wrote the next one leaves behind: a draft, or a file unnamed.
    (tmp_path / ".blobs.step-000030.safetensors.ab12.partial").write_bytes(b"half")
    (tmp_path / "blobs.step-000030.safetensors").write_bytes(b"whole, but not yet named")
    found = checkpoints.load()
    assert found is not None
    assert found.step == whole.step == SETTINGS.steps
    checkpoints.save(found)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "blobs.checkpoint.json",
        "blobs.step-000024.safetensors",
    ]


def test_m6_a_checkpoint_of_other_data_is_none_and_a_damaged_one_is_refused(tmp_path: Path):
    train(tmp_path)
    assert Checkpoints(tmp_path, name="blobs", identity="two").load() is None
    file = next(tmp_path.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match=r"delete blobs\.checkpoint\.json") as caught:
        train(tmp_path)
    assert caught.value.kind == "checkpoint-damaged"


# --- M8: nothing to learn ------------------------------------------------------------------------


class Spoilt(Blobs):
    """Batches that are spoilt from some step on."""

    def __init__(self, spoil: Callable[[torch.Tensor, torch.Tensor], Any], at: int) -> None:
        super().__init__(1)
        self.spoil, self.left = spoil, at

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, labels = super().batch()
        self.left -= 1
        return self.spoil(x, labels) if self.left < 0 else (x, labels)


def with_nan(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x[0, 0, 3, 3] = float("nan")
    return x, labels


SPOILT = {
    "input-not-finite": (with_nan, "inputs are not finite"),
    "empty-batch": (lambda x, y: (x[:0], y[:0]), "holds no pixel"),
    "labels-strange": (lambda x, y: (x, y + 4), "are none of 0 to 3"),
}


@pytest.mark.parametrize("at", [0, 4, 7])
@pytest.mark.parametrize("kind", SPOILT)
def test_m8_a_spoilt_batch_stops_training_names_step_and_windows_and_keeps_the_last_checkpoint(
    kind: str, at: int, tmp_path: Path
):
    spoil, told = SPOILT[kind]
    checkpoints = Checkpoints(tmp_path, name="spoilt", identity="one")
    settings = FitSettings(steps=12, checkpoint_every=3)
    with pytest.raises(DataError, match=told) as caught:
        fit(network(), Spoilt(spoil, at), settings, loss=LOSS, checkpoints=checkpoints)
    assert caught.value.kind == kind
    assert f"at step {at}, batch {at}: windows blob" in str(caught.value)
    kept = checkpoints.load()
    if at < 3:
        assert kept is None
        assert "there is no checkpoint" in str(caught.value)
    else:
        assert kept is not None
        assert kept.step == 3 * (at // 3)
        assert f"the checkpoint after {kept.step} steps is kept in {tmp_path}" in str(caught.value)
        assert all(bool(v.isfinite().all()) for v in kept.tensors.values())


@pytest.mark.parametrize("at", [1, 5])
def test_m8_a_loss_or_gradient_that_is_no_number_never_reaches_the_weights(at: int, tmp_path: Path):
    for name, spoil in (
        ("loss", lambda value: value * float("nan")),
        ("gradient", lambda value: value + (value - value.detach()).abs().sqrt()),
    ):
        steps = iter(range(100))

        def loss(logits: Any, labels: Any, spoil: Any = spoil, steps: Any = steps) -> torch.Tensor:
            value = LOSS(logits, labels)
            return spoil(value) if next(steps) == at else value

        checkpoints = Checkpoints(tmp_path / name, name="spoilt", identity="one")
        settings = FitSettings(steps=12, checkpoint_every=1)
        with pytest.raises(DataError, match=f"the {name} became nan at step {at}") as caught:
            fit(network(), Blobs(1), settings, loss=loss, checkpoints=checkpoints)
        assert caught.value.kind == "loss-not-finite"
        resumed = fit(network(), Blobs(1), settings, loss=LOSS, checkpoints=checkpoints)
        unbroken = fit(network(), Blobs(1), settings, loss=LOSS)
        assert resumed.history.losses == unbroken.history.losses


def test_m8_batches_of_one_class_only_stop_training_in_the_end(tmp_path: Path):
    def one_class(x: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.where(labels == 1, 1, 255)

    settings = FitSettings(steps=100, checkpoint_every=10)
    checkpoints = Checkpoints(tmp_path, name="spoilt", identity="one")
    with pytest.raises(DataError, match="50 batches in a row hold one class at most") as caught:
        fit(network(), Spoilt(one_class, 20), settings, loss=LOSS, checkpoints=checkpoints)
    assert caught.value.kind == "one-class"
    assert "at step 69, batch 69" in str(caught.value)
    assert checkpoints.last_step() == 60


def test_m8_an_empty_fold_is_refused_before_any_work(tmp_path: Path):
    with pytest.raises(DataError, match="member-f2-s0: no region is left to train on") as caught:
        train_member(fold=2, seed=0, recipe=Recipe(), seen=[], folder=tmp_path)
    assert caught.value.kind == "empty-fold"
    with pytest.raises(UsageError, match="5 folds need as many regions, found 0"):
        train_ensemble(tmp_path, work=tmp_path, regions=[])
    assert not any(tmp_path.iterdir())


def test_m8_validation_windows_without_a_known_pixel_are_refused():
    x, labels = Blobs(1).batch()
    with pytest.raises(DataError, match="no pixel of the validation windows is known"):
        FixedWindows([(x, torch.full_like(labels, 255))], LOSS)


def test_a_finished_training_leaves_no_checkpoint(tmp_path: Path):
    train(tmp_path)
    Checkpoints(tmp_path, name="blobs", identity="one").delete()
    assert not any(tmp_path.iterdir())
