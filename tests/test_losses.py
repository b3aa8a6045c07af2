"""Losses are the formulas of their papers, on known pixels alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import DataError, UsageError
from model_serving.losses import (
    LOSSES,
    class_weights_from_counts,
    cross_entropy_dice,
    l1_norm,
    make_loss,
)

WEIGHTS = np.array([0.5, 1.0, 2.0, 3.0], np.float32)


def some_batch(seed: int = 0, unknown: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, 2, (2, 4, 5, 6)))
    labels = torch.from_numpy(rng.integers(0, 4, (2, 5, 6)))
    labels[torch.from_numpy(rng.random((2, 5, 6)) < unknown)] = 255
    return logits, labels


# Each loss once more, written down pixel by pixel and class by class from its paper.


def plain(logits: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    z, y = logits.numpy(), labels.numpy()
    known = [(z[b, :, i, j], y[b, i, j]) for b, i, j in np.ndindex(y.shape) if y[b, i, j] != 255]
    p = np.array([np.exp(z - z.max()) / np.exp(z - z.max()).sum() for z, _ in known])
    return p, np.array([label for _, label in known])


def plain_dice(p: np.ndarray, y: np.ndarray) -> float:
    terms = []
    for c in sorted(set(y)):
        overlap, size = p[y == c, c].sum(), p[:, c].sum() + (y == c).sum()
        terms.append(1 - (2 * overlap + 1) / (size + 1))
    return float(np.mean(terms))


def plain_ce_dice(p: np.ndarray, y: np.ndarray) -> float:
    own = np.array([p[i, c] for i, c in enumerate(y)])
    return float(np.average(-np.log(own), weights=WEIGHTS[y])) + plain_dice(p, y)


def plain_bce_dice(p: np.ndarray, y: np.ndarray) -> float:
    terms = [
        -np.mean([np.log(p[i, c]) if c == y[i] else np.log(1 - p[i, c]) for c in range(4)])
        for i in range(len(y))
    ]
    return float(np.average(terms, weights=WEIGHTS[y])) + plain_dice(p, y)


def plain_focal(p: np.ndarray, y: np.ndarray) -> float:
    own = np.array([p[i, c] for i, c in enumerate(y)])
    return float(np.average(-((1 - own) ** 2) * np.log(own), weights=WEIGHTS[y]))


def tversky_losses(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    terms = []
    for c in sorted(set(y)):
        hit = p[y == c, c].sum()
        index = (hit + 1) / (hit + 0.3 * p[y != c, c].sum() + 0.7 * (1 - p[y == c, c]).sum() + 1)
        terms.append(1 - index)
    return np.array(terms)


PLAIN: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "ce_dice": plain_ce_dice,
    "bce_dice": plain_bce_dice,
    "focal": plain_focal,
    "tversky": lambda p, y: float(tversky_losses(p, y).mean()),
    "focal_tversky": lambda p, y: float((tversky_losses(p, y) ** 0.75).mean()),
}


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_a_loss_is_the_formula_of_its_paper(name: str, seed: int):
    logits, labels = some_batch(seed)
    found = make_loss(name, class_weights=WEIGHTS)(logits, labels)
    assert float(found) == pytest.approx(PLAIN[name](*plain(logits, labels)), rel=1e-6)


def test_the_loss_of_the_shipped_members_keeps_its_value_to_the_last_bit():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 4, 32, 32), torch.randint(0, 4, (3, 32, 32))
    labels[:, :7] = 255
    weights = torch.tensor([0.5, 1, 2, 3.0])
    ours = cross_entropy_dice(logits, labels, weights=weights)
    known = labels != 255
    target = torch.nn.functional.one_hot(labels.masked_fill(~known, 0), 4).permute(0, 3, 1, 2)
    target, p = target * known.unsqueeze(1), logits.softmax(dim=1) * known.unsqueeze(1)
    dice = 1 - (2 * (p * target).sum((0, 2, 3)) + 1) / ((p + target).sum((0, 2, 3)) + 1)
    entropy = torch.nn.functional.cross_entropy(logits, labels, weight=weights, ignore_index=255)
    assert torch.equal(ours, entropy + dice[target.sum((0, 2, 3)) > 0].mean())
    assert torch.equal(make_loss("ce_dice", class_weights=weights)(logits, labels), ours)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_map_has_the_least_loss(name: str):
    _, labels = some_batch()
    loss = make_loss(name, class_weights=WEIGHTS)
    target = torch.nn.functional.one_hot(labels.clamp(max=3), 4).permute(0, 3, 1, 2).double()
    by_sharpness = [float(loss(target * z, labels)) for z in (100, 8, 4, 2, 0, -2)]
    assert by_sharpness[0] == pytest.approx(0, abs=1e-4)
    assert by_sharpness == sorted(by_sharpness)
    rng = np.random.default_rng(1)
    others = [loss(torch.from_numpy(rng.normal(0, 3, target.shape)), labels) for _ in range(20)]
    assert min(others) > by_sharpness[0]


@pytest.mark.parametrize("name", LOSSES)
def test_unknown_pixels_may_hold_anything(name: str):
    logits, labels = some_batch()
    loss = make_loss(name, class_weights=WEIGHTS)
    unknown = (labels == 255).nonzero(as_tuple=True)
    shuffled = logits.clone()
    order = torch.randperm(len(unknown[0]), generator=torch.Generator().manual_seed(0))
    shuffled.movedim(1, -1)[unknown] = logits.movedim(1, -1)[unknown][order] * 3
    assert not torch.equal(shuffled, logits)
    assert torch.equal(loss(shuffled, labels), loss(logits, labels))
    shuffled.requires_grad_()
    loss(shuffled, labels).backward()
    assert shuffled.grad is not None
    assert (shuffled.grad.movedim(1, -1)[unknown] == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_that_of_the_value(name: str):
    logits, labels = some_batch()
    loss = make_loss(name, class_weights=WEIGHTS)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits,))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ["nothing known", "one pixel", "certain", "certain and wrong"])
def test_gradients_are_finite_in_every_corner(name: str, kind: torch.dtype, case: str):
    labels = torch.full((1, 8, 8), 255 if case == "nothing known" else 1)
    if case == "one pixel":
        labels[:], labels[0, 3, 3] = 255, 2
    side = 2 if case == "certain and wrong" else 1
    logits = torch.zeros(1, 4, 8, 8)
    logits[:, side] = 200.0 if "certain" in case else 0.0
    logits = logits.to(kind).requires_grad_()
    value = make_loss(name, class_weights=WEIGHTS)(logits, labels)
    value.backward()
    assert torch.isfinite(value)
    assert value.dtype == torch.float32
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    if case == "nothing known":
        assert value == 0
        assert (logits.grad == 0).all()


def test_losses_meet_where_their_options_make_them_one():
    logits, labels = some_batch()

    def value(name: str, **options: float) -> float:
        return float(make_loss(name, class_weights=WEIGHTS, **options)(logits, labels))

    dice = plain_dice(*plain(logits, labels))
    assert value("tversky", alpha=0.5, beta=0.5, smooth=0.5) == pytest.approx(dice)
    assert value("focal", gamma=0) == pytest.approx(value("ce_dice") - dice)
    assert value("focal_tversky", gamma=1) == pytest.approx(value("tversky"))
    assert value("tversky", beta=0.9) > value("tversky", beta=0.7)
    with pytest.raises(UsageError, match="has no option gamma; it has: alpha, beta, smooth"):
        make_loss("tversky", class_weights=WEIGHTS, gamma=2)
    with pytest.raises(UsageError, match="no loss 'hinge'; choose one of bce_dice, ce_dice"):
        make_loss("hinge", class_weights=WEIGHTS)


def test_with_two_classes_binary_cross_entropy_is_that_of_the_difference_of_the_logits():
    logits, labels = some_batch()
    logits, labels = logits[:, :2], torch.where(labels < 4, labels % 2, labels)
    ours = make_loss("bce_dice", class_weights=np.ones(2))(logits, labels)
    known = labels != 255
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        (logits[:, 1] - logits[:, 0])[known], labels[known].double()
    )
    assert float(ours - entropy) == pytest.approx(plain_dice(*plain(logits, labels)))


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=6), st.floats(0, 1))
def test_rare_classes_weigh_more_and_the_mean_weight_of_a_pixel_is_one(counts, power):
    counts = np.array(counts)
    if not counts.sum():
        with pytest.raises(DataError, match="found none"):
            class_weights_from_counts(counts)
        return
    weights = class_weights_from_counts(counts, power=power)
    assert (weights * counts / counts.sum()).sum() == pytest.approx(1, rel=1e-5)
    assert (np.diff(weights[np.argsort(counts)]) <= 1e-6 * weights.max()).all()


def test_class_weights_are_those_the_shipped_members_were_trained_with():
    counts = np.array([700_000, 200_000, 99_900, 100])
    share = counts / counts.sum()
    as_trained = 1 / np.sqrt(np.maximum(share, 1e-3))
    as_trained = (as_trained / (as_trained * share).sum()).astype(np.float32)
    assert (class_weights_from_counts(counts) == as_trained).all()
    assert (class_weights_from_counts(counts, power=0) == 1).all()


def test_the_l1_norm_sums_what_is_trained_and_pulls_it_towards_zero():
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(requires_grad=False)
    norm = l1_norm(layer.parameters())
    assert float(norm.detach()) == pytest.approx(layer.weight.detach().abs().sum().item())
    norm.backward()
    assert torch.equal(layer.weight.grad, layer.weight.detach().sign())
