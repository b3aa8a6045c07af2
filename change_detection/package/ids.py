"""Ids of a derived inventory: ``<PREFIX>-v<X>-<G|C|I>-<o1>-<nnnnn>``, never those of the RGI."""

from __future__ import annotations

import pandas as pd

__all__ = ["VERSION", "id_prefix", "numbered_ids"]

VERSION = "v1"
_NO_REGION = "00"
# ^ in ids and names of files, where the reference names no first-order region


def id_prefix(text: str) -> str:
    """First part of the ids of an inventory: capitals and digits of its name.

    A name that begins like an id of the RGI itself, or has neither, gets an X before it.
    """
    letters = "".join(c for c in text.upper() if c.isascii() and c.isalnum())
    return f"X{letters}" if letters.startswith("RGI") or not letters else letters


def numbered_ids(o1region: pd.Series[str], *, prefix: str, letter: str) -> pd.Series[str]:
    """Ids of the rows of a product, counted from 1 within each first-order region in their order.

    Parameters
    ----------
    o1region
        Of each row; empty where there is none.
    prefix
        See :func:`id_prefix`.
    letter
        Of the product.
    """
    region = o1region.where(o1region != "", _NO_REGION).astype(object)
    number = region.groupby(region).cumcount() + 1
    ids = [f"{prefix}-{VERSION}-{letter}-{r}-{n:05d}" for r, n in zip(region, number, strict=True)]
    return pd.Series(ids, index=o1region.index, dtype=object)
