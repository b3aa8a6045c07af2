"""What runs on a CPU as machine code: compiled by numba at first use, needs no C compiler."""

from __future__ import annotations
