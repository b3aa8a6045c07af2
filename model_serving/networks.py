"""Networks by name: whatever is trained or compared is built here, and nowhere else.

Every network maps normalised inputs ``(batch, channel, y, x)`` to class logits
``(batch, class, y, x)``. ``glacier-seg-paper`` is the published form of
:mod:`model_serving.glacier_seg`, ``glacier-seg`` the improved one; all others are those of
:mod:`model_serving.peers`, which is imported only where one of them is asked for.
"""

from __future__ import annotations

import difflib
from dataclasses import fields
from typing import Any

from torch import nn

from catalog.errors import UsageError
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig

__all__ = ["FORMS", "build_network"]

FORMS: dict[str, dict[str, Any]] = {
    "glacier-seg": {
        "directions": (">", "<", "v", "^"),
        "head_width": 96,
        "detail": 16,
    },
    "glacier-seg-paper": {},
}
"""Forms of Glacier-Seg, and in what each differs from the published one."""


def build_network(name: str, *, channels: int, classes: int, **options: Any) -> nn.Module:
    """Build a network with fresh weights.

    Parameters
    ----------
    name
        One of :data:`FORMS` or of ``model_serving.peers.PEERS``.
    channels, classes
        Of its input and of its logits.
    options
        For the forms of Glacier-Seg: fields of
        :class:`~model_serving.glacier_seg.GlacierSegConfig`, which go before those of the form.
        For a peer: see :func:`model_serving.peers.build_peer`.

    Returns
    -------
    nn.Module
        In training mode; its weights come from torch's random state.

    Raises
    ------
    UsageError
        Where there is no network of that name, or it cannot have these options.
    """
    if name in FORMS:
        return GlacierSeg(_config(name, channels=channels, classes=classes, options=options))
    from model_serving.peers import PEERS, build_peer

    known = [*FORMS, *PEERS]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(
            f"there is no network {name!r}{hint}; known are {', '.join(known)}",
            kind="network-unknown",
        )
    return build_peer(name, channels=channels, classes=classes, **options)


def _config(name: str, *, channels: int, classes: int, options: dict[str, Any]) -> GlacierSegConfig:
    """Shape of a form of Glacier-Seg."""
    known = [field.name for field in fields(GlacierSegConfig)]
    strange = sorted(set(options) - set(known))
    if strange:
        raise UsageError(
            f"{name} has no option {', '.join(strange)}; known are {', '.join(known)}",
            kind="network-unfit",
        )
    try:
        return GlacierSegConfig.from_dict(
            GlacierSegConfig(channels=channels, classes=classes).to_dict() | FORMS[name] | options
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} cannot have these options: {error}", kind="network-unfit"
        ) from error
