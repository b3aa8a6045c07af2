"""Each strategy against a plain computation, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.cube import DATE_MISSING, OPTICAL_BANDS
from catalog.strategies import Looks, LooksOrder, Strategy, choose

GREEN = OPTICAL_BANDS.index("green")
ALL: list[Strategy] = ["least_snow", "best_scene", "median", "medoid"]


@st.composite
def seasons(draw: st.DrawFn) -> Looks:
    count, height, width = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    top = draw(st.sampled_from([5, 3000, 65534]))
    pixels = rng.integers(1, top + 1, (count, len(OPTICAL_BANDS), height, width), np.uint16)
    clear = rng.random((count, height, width)) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    days = np.sort(rng.choice(4000, count, replace=False)).astype(np.int32)
    return Looks(pixels, clear, days)


def orders(looks: Looks, seed: int = 0) -> LooksOrder:
    rng = np.random.default_rng(seed)
    ranks = np.stack([rng.permutation(len(looks.days)) + 1 for _ in range(3)]).astype(np.int32)
    return LooksOrder(rng.integers(0, 3, looks.clear.shape[1:], np.int32), ranks)


def expected(strategy: Strategy, looks: Looks, order: LooksOrder, y: int, x: int) -> list[tuple]:
    """All acceptable answers at one pixel: bands and day."""
    clear = [i for i in range(len(looks.days)) if looks.clear[i, y, x]]
    if not clear:
        return [((0,) * len(OPTICAL_BANDS), DATE_MISSING)]
    bands = {i: tuple(int(v) for v in looks.pixels[i, :, y, x]) for i in clear}
    median = tuple(
        sorted(b[k] for b in bands.values())[(len(clear) + 1) // 2 - 1] for k in range(6)
    )
    if strategy == "median":
        return [(median, int(looks.days[clear[(len(clear) + 1) // 2 - 1]]))]
    if strategy == "medoid":
        far = {i: sum((a - b) ** 2 for a, b in zip(bands[i], median, strict=True)) for i in clear}
        best = min(clear, key=lambda i: (far[i], i))
    elif strategy == "best_scene" and order.glacier[y, x] > 0:
        best = min(clear, key=lambda i: order.ranks[order.glacier[y, x], i])
    else:
        ranked = sorted(clear, key=lambda i: (bands[i][GREEN], i))
        best = ranked[max(0, -(-len(clear) * 30 // 100) - 1)]
    return [(bands[best], int(looks.days[best]))]


@pytest.mark.parametrize("strategy", ALL)
@given(looks=seasons())
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_what_a_plain_computation_gives(strategy: Strategy, looks: Looks) -> None:
    order = orders(looks)
    chosen = choose(strategy, looks, order)
    for y in range(chosen.day.shape[0]):
        for x in range(chosen.day.shape[1]):
            found = tuple(int(v) for v in chosen.pixels[:, y, x]), int(chosen.day[y, x])
            assert found in expected(strategy, looks, order, y, x)


@pytest.mark.parametrize("strategy", ALL)
@given(looks=seasons())
@settings(max_examples=30, deadline=None)
def test_what_no_look_saw_stays_unseen_and_nothing_else_does(
    strategy: Strategy, looks: Looks
) -> None:
    chosen = choose(strategy, looks, orders(looks))
    seen = looks.clear.any(axis=0)
    assert ((chosen.pixels > 0).all(axis=0) == seen).all()
    assert ((chosen.day != DATE_MISSING) == seen).all()


def test_a_glacier_takes_its_best_look_and_fills_it_from_the_next() -> None:
    pixels = np.stack([np.full((6, 1, 3), value, np.uint16) for value in (100, 200, 300)])
    clear = np.array([[[True, True, True]], [[True, False, True]], [[True, True, False]]])
    looks = Looks(pixels, clear, np.array([10, 20, 30], np.int32))
    order = LooksOrder(np.array([[1, 1, 1]], np.int32), np.array([[0, 0, 0], [3, 1, 2]], np.int32))
    assert choose("best_scene", looks, order).day.tolist() == [[20, 30, 20]]
