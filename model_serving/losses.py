"""What training minimises.

Every loss looks at known pixels alone: one whose label is 255 (nothing seen, nothing known) changes
neither the value nor a gradient, and a batch without any known pixel gives zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from catalog.errors import DataError, UsageError

__all__ = [
    "LOSSES",
    "binary_cross_entropy_dice",
    "class_weights_from_counts",
    "cross_entropy_dice",
    "focal",
    "focal_tversky",
    "l1_norm",
    "make_loss",
    "tversky",
]

Array = npt.NDArray[Any]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_TINY = 1e-6
# ^ a power below one has no slope at zero: what is raised to a power is kept above this
_RAREST = 1e-3
# ^ a class with a smaller share weighs no more than one with this share


def class_weights_from_counts(counts: Array, *, power: float = 0.5) -> Array:
    """Weights of classes from how many pixels each has: rare classes weigh more.

    The weight of a class is its share of the pixels to the power ``-power``, scaled so that the
    mean weight of a pixel is one. Shares below 0.001 count as 0.001.

    Parameters
    ----------
    counts : ``(class,)`` int
        Training pixels of each class.
    power
        0 weighs all classes alike, 1 gives each class the same sum of weights, and one half, which
        training uses, lies between.

    Returns
    -------
    ``(class,)`` float32

    Raises
    ------
    DataError
        Of kind ``no-known-pixels``, where no class has a pixel.
    """
    if not counts.sum():
        raise DataError(
            "class weights need pixels of known class, found none: look at the labels",
            kind="no-known-pixels",
        )
    share = counts / counts.sum()
    weights = 1 / np.maximum(share, _RAREST) ** power
    return np.asarray(weights / (weights * share).sum(), np.float32)


def cross_entropy_dice(
    logits: torch.Tensor, labels: torch.Tensor, *, weights: torch.Tensor, ignore: int = 255
) -> torch.Tensor:
    """Weighted cross entropy plus soft Dice, averaged over the classes present.

    Parameters
    ----------
    logits : ``(batch, class, y, x)`` float
    labels : ``(batch, y, x)`` int64
        Class, or ``ignore`` where nothing was seen or nothing is known.
    weights : ``(class,)`` float
        Class weights of the cross entropy.

    Returns
    -------
    Scalar tensor; the Dice term follows Milletari et al. (2016), eq. 1-2, per class.
    """
    logits = _wide(logits)
    known = labels != ignore
    if not known.any():
        return logits.sum() * 0
        # ^ nothing can be learnt where nothing is known
    log_p = logits.contiguous().log_softmax(dim=1)
    # ^ class by class: else it goes through the image in steps of as many numbers as classes
    entropy = functional.nll_loss(log_p, labels, weight=weights, ignore_index=ignore)
    probability = log_p.exp() * known.unsqueeze(1)
    classes = torch.arange(logits.shape[1], device=logits.device)[:, None, None]
    target = (labels.unsqueeze(1) == classes).to(logits.dtype)
    return entropy + _dice(probability, target, dim=(0, 2, 3))


def binary_cross_entropy_dice(
    logits: torch.Tensor, labels: torch.Tensor, *, weights: torch.Tensor, ignore: int = 255
) -> torch.Tensor:
    """Binary cross entropy of each class against all others, plus soft Dice.

    The binary probabilities are those of the softmax, as the map is made of them; with two classes
    this is the usual binary cross entropy of the difference of their logits.

    Parameters
    ----------
    logits, labels, weights, ignore
        As in :func:`cross_entropy_dice`; the weight of a pixel is that of its class.
    """
    known, target = _known_pixels(logits, labels, ignore)
    if not len(target):
        return known.sum()
    every = known.logsumexp(dim=1)
    others = [torch.cat((known[:, :c], known[:, c + 1 :]), dim=1) for c in range(known.shape[1])]
    # ^ log(1 - p) from the other classes' logits: exact also where p is almost one
    yes = known - every[:, None]
    no = torch.stack([z.logsumexp(dim=1) for z in others], dim=1) - every[:, None]
    truth = functional.one_hot(target, known.shape[1])
    entropy = -torch.where(truth > 0, yes, no).mean(dim=1)
    return _weighted_mean(entropy, weights, target) + _dice(yes.exp(), truth, dim=(0,))


def focal(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    weights: torch.Tensor,
    gamma: float = 2.0,
    ignore: int = 255,
) -> torch.Tensor:
    """Focal loss, ``-w (1 - p)^gamma log p`` of each pixel's own class (Lin et al. 2017, eq. 5).

    Parameters
    ----------
    logits, labels, weights, ignore
        As in :func:`cross_entropy_dice`; the class weights are the paper's alpha, and the mean is
        weighted by them.
    gamma
        How much less a pixel counts that is already right; 0 gives the cross entropy.
    """
    known, target = _known_pixels(logits, labels, ignore)
    if not len(target):
        return known.sum()
    log_p = known.log_softmax(dim=1).gather(1, target[:, None])[:, 0]
    missed = (-torch.expm1(log_p)).clamp_min(_TINY)
    return _weighted_mean(-(missed**gamma) * log_p, weights, target)


def tversky(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    ignore: int = 255,
) -> torch.Tensor:
    """One minus the Tversky index, averaged over the classes present (Salehi et al. 2017, eq. 2-3).

    Parameters
    ----------
    logits, labels, ignore
        As in :func:`cross_entropy_dice`.
    alpha, beta
        Weights of false positives and of false negatives; one half each gives the Dice loss.
    smooth
        Pixels added to the intersection and to what it is divided by.

    Notes
    -----
    Every class counts alike, whatever its area, so class weights have no part in it.
    """
    return _tversky(logits, labels, alpha=alpha, beta=beta, smooth=smooth, power=1.0, ignore=ignore)


def focal_tversky(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    smooth: float = 1.0,
    ignore: int = 255,
) -> torch.Tensor:
    """Tversky loss of each class to the power 1 / gamma, averaged (Abraham & Khan 2019, eq. 3-4).

    Parameters
    ----------
    logits, labels, alpha, beta, smooth, ignore
        As in :func:`tversky`: ``alpha`` weighs false positives. The paper exchanges the two names
        and sums over classes; its values are these.
    gamma
        Above 1, classes that are mapped badly get less of the slope, those almost right more.
    """
    return _tversky(
        logits, labels, alpha=alpha, beta=beta, smooth=smooth, power=1 / gamma, ignore=ignore
    )


_WEIGHTED: dict[str, Callable[..., torch.Tensor]] = {
    "bce_dice": binary_cross_entropy_dice,
    "ce_dice": cross_entropy_dice,
    "focal": focal,
}
_BALANCED: dict[str, Callable[..., torch.Tensor]] = {
    "focal_tversky": focal_tversky,
    "tversky": tversky,
}
LOSSES = tuple(sorted(_WEIGHTED | _BALANCED))
"""Names that :func:`make_loss` knows."""


def make_loss(name: str, *, class_weights: Array | torch.Tensor, **options: float) -> Loss:
    """Choose a loss by name.

    Parameters
    ----------
    name
        One of :data:`LOSSES`.
    class_weights : ``(class,)`` float
        See :func:`class_weights_from_counts`. The Tversky losses and the Dice terms balance classes
        by themselves and do not look at them.
    **options
        Further numbers the loss takes, for example ``gamma``.

    Returns
    -------
    callable
        From logits ``(batch, class, y, x)`` and labels ``(batch, y, x)`` int64, 255 = unknown, to a
        scalar tensor, on whatever device the logits are.

    Raises
    ------
    UsageError
        Where the name or an option is unknown.
    """
    chosen = (_WEIGHTED | _BALANCED).get(name)
    if chosen is None:
        raise UsageError(f"there is no loss {name!r}; choose one of {', '.join(LOSSES)}")
    own = set(inspect.signature(chosen).parameters) - {"logits", "labels", "weights", "ignore"}
    unknown = sorted(set(options) - own)
    if unknown:
        known = ", ".join(sorted(own)) or "none"
        raise UsageError(f"the loss {name!r} has no option {', '.join(unknown)}; it has: {known}")
    if name in _BALANCED:
        return partial(chosen, **options)
    weights = torch.as_tensor(class_weights)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        kind = torch.promote_types(logits.dtype, torch.float32)
        return chosen(logits, labels, weights=weights.to(logits.device, kind), **options)

    return loss


def l1_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """Sum of the absolute values of a network's parameters, to be added to a loss.

    Baraka et al. (2020) add 0.0005 times this sum, over all that is trained. It grows with the
    network: for another network, another factor.
    """
    return torch.stack([p.abs().sum() for p in parameters if p.requires_grad]).sum()


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """In single precision at least: sums over many pixels overflow in half."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _known_pixels(
    logits: torch.Tensor, labels: torch.Tensor, ignore: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``(pixel, class)`` and labels ``(pixel,)`` of the known pixels alone."""
    known = labels != ignore
    return _wide(logits.movedim(1, -1)[known]), labels[known].long()


def _weighted_mean(
    values: torch.Tensor, weights: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    each = weights[target]
    return (values * each).sum() / each.sum()


def _dice(probability: torch.Tensor, target: torch.Tensor, *, dim: tuple[int, ...]) -> torch.Tensor:
    overlap = (probability * target).sum(dim=dim)
    count = target.sum(dim=dim)
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=dim) + count + 1)
    return dice[count > 0].mean()


def _tversky(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float,
    beta: float,
    smooth: float,
    power: float,
    ignore: int,
) -> torch.Tensor:
    known, target = _known_pixels(logits, labels, ignore)
    if not len(target):
        return known.sum()
    probability = known.softmax(dim=1)
    truth = functional.one_hot(target, known.shape[1])
    right = (probability * truth).sum(dim=0)
    wrong = alpha * (probability * (1 - truth)).sum(dim=0)
    wrong = wrong + beta * ((1 - probability) * truth).sum(dim=0)
    loss = wrong / (right + wrong + smooth)
    # ^ one minus the index; taken directly, it is exact where the index is almost one
    if power != 1:
        loss = loss.clamp_min(_TINY) ** power
    return loss[truth.sum(dim=0) > 0].mean()
