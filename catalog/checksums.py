"""Checksums that a catalogue promises for its files: the multihash of STAC's ``file:checksum``."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from catalog.errors import DataError

__all__ = ["check_file", "file_digest"]

_ALGORITHMS = {
    0x11: "sha1",
    0x12: "sha256",
    0x13: "sha512",
    0x14: "sha3_512",
    0x15: "sha3_384",
    0x16: "sha3_256",
    0x20: "sha384",
    0xD5: "md5",
}
# ^ codes of the multihash table for which Python has an algorithm


def check_file(path: Path, multihash: str) -> bool:
    """Hold a local file against the checksum that its item promises.

    Parameters
    ----------
    path
        The file; it is read whole, once a process as long as it does not change.
    multihash
        ``file:checksum``: algorithm, length and digest, hexadecimal.

    Returns
    -------
    bool
        Whether it was checked: False where the text is no multihash, or of an algorithm that is not
        known here.

    Raises
    ------
    DataError
        ``checksum-mismatch``.
    """
    promised = _parse(multihash)
    if promised is None:
        return False
    algorithm, digest = promised
    status = path.stat()
    if _digest(path, algorithm, status.st_size, status.st_mtime_ns) != digest:
        raise DataError(
            f"{path} has another {algorithm} than its item promises: it is damaged or was replaced",
            kind="checksum-mismatch",
        )
    return True


def file_digest(path: Path) -> str:
    """SHA-256 of a local file; it is read once a process as long as it does not change."""
    status = path.stat()
    return _digest(path, "sha256", status.st_size, status.st_mtime_ns)


def _parse(multihash: str) -> tuple[str, str] | None:
    """Name of the algorithm and hexadecimal digest of a multihash."""
    try:
        data = bytes.fromhex(multihash)
        code, data = _varint(data)
        length, digest = _varint(data)
    except (ValueError, IndexError):
        return None
    name = _ALGORITHMS.get(code)
    if name is None or not length == len(digest) == hashlib.new(name).digest_size:
        return None
    return name, digest.hex()


def _varint(data: bytes) -> tuple[int, bytes]:
    """Read an unsigned number of seven bits a byte, the low ones first; return what follows too."""
    value, shift, position = 0, 0, 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if not byte & 0x80:
            return value, data[position:]


@lru_cache(maxsize=4096)
def _digest(path: Path, algorithm: str, size: int, changed_ns: int) -> str:
    del size, changed_ns  # part of the cache's key: a file that changed is read again
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
