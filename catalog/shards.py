"""What is inside one stored shard: the index at its end, and which of its chunks are damaged.

The layout is that of the Zarr ``sharding_indexed`` codec with the index at the end: one offset and
one length a chunk, 64 bits each, then a CRC-32C; every chunk ends with a CRC-32C of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import google_crc32c
import numpy as np

__all__ = ["ChunkFault", "damaged_chunks"]

ChunkFault = Literal["altered", "missing", "truncated"]

_ABSENT = 2**64 - 1
# ^ offset and length of a chunk that was never stored
_CRC_BYTES = 4


def damaged_chunks(
    data: bytes | None, chunks: tuple[int, ...]
) -> dict[tuple[int, ...], ChunkFault]:
    """Find the chunks of a shard that no reader can read any more.

    Parameters
    ----------
    data
        The stored object, None where there is none.
    chunks
        Number of chunks along each dimension of the shard.

    Returns
    -------
    dict
        Index of each damaged chunk within the shard -> what is wrong with it: ``missing`` (its
        object or its entry is gone), ``truncated`` (it is not there to its end, or the index that
        tells where it lies is cut off), ``altered`` (its checksum, or that of the index, differs).
        Empty where every chunk can be read; the values may still be others than expected.
    """
    places = list(np.ndindex(*chunks))
    index_bytes = 16 * math.prod(chunks) + _CRC_BYTES
    if not data:
        return dict.fromkeys(places, "missing")
    body, index = data[:-index_bytes], data[-index_bytes:]
    if len(data) < index_bytes:
        return dict.fromkeys(places, "truncated")
    faults = dict(zip(places, _faults(body, index[:-_CRC_BYTES]), strict=True))
    if _sound(index):
        return {place: fault for place, fault in faults.items() if fault is not None}
    # No reader trusts an index whose checksum is wrong. Where it still leads to sound chunks it
    # was altered; where to none it is no index, for the end of the file is gone.
    lost: ChunkFault = "altered" if None in faults.values() else "truncated"
    return dict.fromkeys(places, lost)


def _faults(body: bytes, index: bytes) -> Iterator[ChunkFault | None]:
    for offset, length in np.frombuffer(index, "<u8").reshape(-1, 2).tolist():
        if offset == length == _ABSENT:
            yield "missing"
        elif offset + length > len(body):
            yield "truncated"
        else:
            yield None if _sound(body[offset : offset + length]) else "altered"


def _sound(data: bytes) -> bool:
    """Whether data ends with its own CRC-32C."""
    content, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    return bool(content) and google_crc32c.value(content).to_bytes(_CRC_BYTES, "little") == crc
