"""The inference form of the network gives the numbers of the training form, for any shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from model_serving import fused
from model_serving.compiled import kernels, lanes
from model_serving.compiled.products import packed, product, products
from model_serving.ensemble import load_ensemble
from model_serving.fused import FusedGlacierSeg
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.networks import FORMS

CONFIGS = {
    "published": GlacierSegConfig(classes=1),
    "four classes": GlacierSegConfig(),
    "convolutions": GlacierSegConfig(channels=7, embeddings=("convolution",) * 4),
    "other widths": GlacierSegConfig(
        channels=20, classes=17, widths=(32, 48, 64, 80), state=5, kernel=3, head_width=64
    ),
    "no convolution": GlacierSegConfig(channels=4, kernel=1),
    "three stages": GlacierSegConfig(
        channels=3, widths=(16, 16, 32), embeddings=("involution",) * 3, mlp_ratio=2
    ),
    "taking turns": GlacierSegConfig(directions=(">", "<", "v", "^")),
    "drawn at full resolution": GlacierSegConfig(channels=17, classes=5, detail=32),
    "improved": GlacierSegConfig(**FORMS["glacier-seg"]),
}


def network_of(config, *, seed=0):
    """Random weights with normalisation statistics that are not those of a fresh layer."""
    torch.manual_seed(seed)
    network = GlacierSeg(config).eval()
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if ("norm" in name or "project" in name) and value.ndim == 1:
                value.copy_(torch.rand_like(value) + 0.5)
    return network


def truth_of(network, window):
    with torch.inference_mode():
        return network(torch.from_numpy(window)[None])[0].numpy()


def relative(found, truth):
    return float(np.abs(found - truth).max() / np.abs(truth).max())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(16, 16), (48, 80), (128, 64)])
def test_logits_equal_those_of_the_training_form(name, size):
    config = CONFIGS[name]
    network = network_of(config)
    window = np.random.default_rng(1).normal(size=(config.channels, *size)).astype(np.float32)
    found = FusedGlacierSeg(network)(window)
    assert found.shape == (config.classes, *size)
    assert found.dtype == np.float32
    assert relative(found, truth_of(network, window)) < 1e-5


def test_the_shipped_ensemble_keeps_every_class_on_smooth_windows():
    ensemble = load_ensemble()
    network = ensemble.network(ensemble.members[0])
    coarse = torch.randn(11, 9, 9, generator=torch.Generator().manual_seed(2))
    window = torch.nn.functional.interpolate(coarse[None], (320, 320), mode="bicubic")[0].numpy()
    truth, found = truth_of(network, window), FusedGlacierSeg(network)(window)
    assert relative(found, truth) < 1e-5
    assert (found.argmax(axis=0) == truth.argmax(axis=0)).mean() > 0.9999


@pytest.mark.parametrize("name", ["four classes", "improved"])
def test_any_number_of_threads_gives_the_same_bytes(name):
    network = network_of(CONFIGS[name])
    window = np.random.default_rng(3).normal(size=(11, 96, 160)).astype(np.float32)
    forms = [FusedGlacierSeg(network, threads=n) for n in (1, 2, 3, 5)]
    first = forms[0](window).tobytes()
    for form in forms:
        assert form(window).tobytes() == first
        assert form(window).tobytes() == first


def test_windows_asked_for_by_several_threads_at_once_do_not_meet():
    form = FusedGlacierSeg(network_of(GlacierSegConfig()), threads=2)
    windows = np.random.default_rng(5).normal(size=(8, 11, 64, 64)).astype(np.float32)
    alone = [form(window).tobytes() for window in windows]
    with ThreadPoolExecutor(4) as pool:
        assert [found.tobytes() for found in pool.map(form, windows)] == alone


def test_a_fault_in_one_thread_ends_the_window_and_not_the_next(monkeypatch):
    form = FusedGlacierSeg(network_of(GlacierSegConfig()), threads=3)
    window = np.random.default_rng(6).normal(size=(11, 256, 256)).astype(np.float32)
    before = form(window).tobytes()
    block, calls = form._blocks[0], iter(range(100))

    def fails_once(*arguments):
        if next(calls) == 7:
            raise MemoryError("no room")
        type(block).before_scan(block, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(block, "before_scan", fails_once)
        with pytest.raises(MemoryError, match="no room"):
            form(window)
    assert form(window).tobytes() == before


def test_a_thread_without_room_for_its_buffers_ends_the_window(monkeypatch):
    form = FusedGlacierSeg(network_of(GlacierSegConfig()), threads=2)
    window = np.random.default_rng(7).normal(size=(11, 256, 256)).astype(np.float32)
    before, made, whole = form(window).tobytes(), iter(range(100)), fused._Run

    def run(*arguments):
        if next(made) == 1:
            raise MemoryError("no room")
        return whole(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fused, "_Run", run)
        with pytest.raises(MemoryError, match="no room"):
            form(window)
    assert form(window).tobytes() == before


def test_windows_before_leave_nothing_behind():
    network = network_of(GlacierSegConfig())
    form = FusedGlacierSeg(network)
    rng = np.random.default_rng(4)
    small, large = (rng.normal(size=(11, n, n)).astype(np.float32) for n in (32, 128))
    alone = form(small).tobytes()
    form(large)
    form(np.full_like(large, np.nan))
    assert form(small).tobytes() == alone


def test_what_is_not_a_number_stays_in_its_window_and_is_not_hidden():
    network = network_of(GlacierSegConfig())
    window = np.zeros((11, 64, 64), np.float32)
    window[:, 40, 20] = np.nan
    found = FusedGlacierSeg(network)(window)
    assert np.isnan(found[:, 40:, :]).all()
    assert np.isfinite(found[:, :8, :]).all()


def test_a_shape_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="multiples of 16"):
        FusedGlacierSeg(GlacierSeg(GlacierSegConfig(widths=(8, 16, 32, 64))))
    with pytest.raises(ValueError, match="2 directions"):
        FusedGlacierSeg(GlacierSeg(GlacierSegConfig(directions=2)))
    with pytest.raises(ValueError, match=r"24\) are not all multiples of 16"):
        FusedGlacierSeg(GlacierSeg(GlacierSegConfig(detail=24)))
    two = GlacierSegConfig(widths=(16, 32), embeddings=("involution",) * 2)
    with pytest.raises(ValueError, match="fewer than three"):
        FusedGlacierSeg(GlacierSeg(two))
    form = FusedGlacierSeg(network_of(GlacierSegConfig()))
    with pytest.raises(ValueError, match=r"found \(11, 50, 64\)"):
        form(np.zeros((11, 50, 64), np.float32))
    with pytest.raises(ValueError, match=r"found \(3, 64, 64\)"):
        form(np.zeros((3, 64, 64), np.float32))


@given(
    rows=st.integers(1, 60),
    inner=st.integers(1, 70),
    columns=st.sampled_from([16, 32, 48, 64, 80, 96, 128, 144]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_a_packed_product_is_the_product_and_rows_do_not_touch_each_other(
    rows, inner, columns, seed
):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(rows, inner)).astype(np.float32)
    b = rng.normal(size=(inner, columns)).astype(np.float32)
    c = np.full((rows, columns), np.nan, np.float32)
    product(a, packed(b), c)
    truth = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(c - truth).max() < 1e-6 * inner * max(1, np.abs(truth).max())
    last = np.empty((1, columns), np.float32)
    product(a[-1:].copy(), packed(b), last)
    assert last.tobytes() == c[-1:].tobytes()


def test_a_stack_of_products_is_each_product():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((5, 7, 9), (5, 9, 32)))
    c = np.empty((5, 7, 32), np.float32)
    products(a, np.stack([packed(m) for m in b]), c)
    assert np.allclose(c, a @ b, atol=1e-5)


def test_gelu_is_exact_to_rounding_everywhere():
    x = np.linspace(-30, 30, 1 << 14, dtype=np.float32).reshape(-1, 16)
    truth = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    found = x.copy()
    kernels.gelu(found, np.zeros(16, np.float32))
    assert np.abs(found - truth).max() < 1e-6 * 3


@njit
def _of_lanes(which, x, out):
    for i in range(0, x.size, lanes.WIDTH):
        value = lanes.load(x, i)
        if which == 0:
            lanes.store(out, i, lanes.exp2_negative(value))
        elif which == 1:
            lanes.store(out, i, lanes.exp(value))
        elif which == 2:
            lanes.store(out, i, lanes.silu(value))
        else:
            lanes.store(out, i, lanes.softplus(value))


@pytest.mark.parametrize(
    ("which", "function", "low", "high"),
    [
        (0, np.exp2, -120, 0),
        (1, np.exp, -80, 80),
        (2, lambda x: x / (1 + np.exp(-x)), -80, 80),
        (3, lambda x: np.logaddexp(0, x), -80, 80),
    ],
)
def test_functions_of_lanes_are_right_to_single_precision(which, function, low, high):
    x = np.linspace(low, high, 1 << 16, dtype=np.float32)
    found = np.empty_like(x)
    _of_lanes(which, x, found)
    truth = function(x.astype(np.float64))
    assert (np.abs(found - truth) <= 1e-6 * np.abs(truth) + 1e-37).all()


def test_the_decay_of_a_slow_state_has_no_error_to_multiply():
    x = -np.geomspace(1e-12, 1e-2, 1 << 12).astype(np.float32)
    found = np.empty_like(x)
    _of_lanes(0, x, found)
    assert np.abs(found - np.exp2(x.astype(np.float64))).max() < 6.1e-8
    # ^ half the spacing of float32 below 1: the nearest number there is
