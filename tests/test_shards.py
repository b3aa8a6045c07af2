"""The chunks named as damaged are exactly those that Zarr cannot read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec, ZstdCodec

from catalog.shards import damaged_chunks

SIDE, CHUNK = 3, 8
CHUNKS = (1, SIDE, SIDE)


class Stored:
    """One shard of three by three chunks, as Zarr wrote it, and the reader's opinion of a copy."""

    def __init__(self, folder: Path) -> None:
        self.values = np.random.default_rng(0).integers(0, 9000, (2, SIDE * CHUNK, SIDE * CHUNK))
        self.array = zarr.create_array(
            folder / "a.zarr",
            shape=self.values.shape,
            dtype="uint16",
            chunks=(2, CHUNK, CHUNK),
            shards=self.values.shape,
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
        )
        self.array[...] = self.values.astype(np.uint16)
        self.path = folder / "a.zarr" / "c" / "0" / "0" / "0"
        self.data = self.path.read_bytes()

    def unreadable(self, data: bytes) -> set[tuple[int, ...]]:
        """Chunks that Zarr refuses to read, or reads as something else."""
        self.path.write_bytes(data)
        found = set()
        for row, col in np.ndindex(SIDE, SIDE):
            part = np.s_[:, row * CHUNK : (row + 1) * CHUNK, col * CHUNK : (col + 1) * CHUNK]
            try:
                same = np.array_equal(self.array[part], self.values[part])
            except (ValueError, RuntimeError):
                same = False
            if not same:
                found.add((0, row, col))
        return found


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return Stored(tmp_path_factory.mktemp("shard"))


def test_a_sound_shard_has_no_damaged_chunk(stored: Stored) -> None:
    assert damaged_chunks(stored.data, CHUNKS) == {}
    assert stored.unreadable(stored.data) == set()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_flipped_bit_damages_its_chunk_or_with_the_index_all(stored: Stored, data) -> None:
    index_at = len(stored.data) - 16 * SIDE**2 - 4
    place = data.draw(st.integers(0, len(stored.data) - 1))
    broken = bytearray(stored.data)
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    found = damaged_chunks(bytes(broken), CHUNKS)
    assert set(found) == stored.unreadable(bytes(broken))
    assert set(found.values()) == {"altered"}
    assert len(found) == (1 if place < index_at else SIDE**2)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_truncated_shard_has_lost_every_chunk_with_its_index(stored: Stored, data) -> None:
    kept = data.draw(st.integers(1, len(stored.data) - 1))
    found = damaged_chunks(stored.data[:kept], CHUNKS)
    assert len(found) == SIDE**2
    assert set(found.values()) == {"truncated"}
    assert set(found) == stored.unreadable(stored.data[:kept])


@pytest.mark.parametrize("data", [None, b""])
def test_without_an_object_every_chunk_is_missing(data: bytes | None) -> None:
    assert set(damaged_chunks(data, CHUNKS).values()) == {"missing"}
    assert len(damaged_chunks(data, CHUNKS)) == SIDE**2


def test_a_chunk_that_was_never_stored_is_missing(stored: Stored, tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "b.zarr",
        shape=(8, 16),
        dtype="uint8",
        chunks=(8, 8),
        shards=(8, 16),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
    )
    array[:, :8] = 7
    data = (tmp_path / "b.zarr" / "c" / "0" / "0").read_bytes()
    assert damaged_chunks(data, (1, 2)) == {(0, 1): "missing"}
