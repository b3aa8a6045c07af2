"""What training minimises."""

from __future__ import annotations

import torch
from torch.nn import functional

__all__ = ["cross_entropy_dice"]


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
    logits = logits.float()
    known = labels != ignore
    if not known.any():
        return logits.sum() * 0
        # ^ nothing can be learnt where nothing is known
    entropy = functional.cross_entropy(logits, labels, weight=weights, ignore_index=ignore)
    probability = logits.softmax(dim=1) * known.unsqueeze(1)
    classes = logits.shape[1]
    target = functional.one_hot(labels.masked_fill(~known, 0), classes).permute(0, 3, 1, 2)
    target = target * known.unsqueeze(1)
    overlap = (probability * target).sum(dim=(0, 2, 3))
    size = (probability + target).sum(dim=(0, 2, 3))
    present = target.sum(dim=(0, 2, 3)) > 0
    dice = 1 - (2 * overlap + 1) / (size + 1)
    return entropy + dice[present].mean()
