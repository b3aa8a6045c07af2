"""The selective scan gives the same answer on every backend as the plain float64 recurrence."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_serving.selective_scan import available_backends, scan_recurrence, selective_scan

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 200), st.integers(1, 70), st.integers(1, 17))


def make_inputs(shape, *, seed, fastest_decay=16.0, step=-1.0):
    batch, length, channels, states = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=g)

    return {
        "u": normal(batch, length, channels),
        "delta": torch.nn.functional.softplus(normal(batch, length, channels) + step),
        "A": -torch.rand(channels, states, generator=g) * fastest_decay,
        "B": normal(batch, length, states),
        "C": normal(batch, length, states),
        "D": normal(channels),
    }


def run(function, inputs, **keywords):
    inputs = dict(inputs)
    return function(inputs.pop("u"), inputs.pop("delta"), **inputs, **keywords)


def relative_error(found, truth):
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-6))


def with_gradients(function, inputs, dtype, **keywords):
    inputs = {k: v.detach().to(dtype).requires_grad_() for k, v in inputs.items()}
    y = run(function, inputs, **keywords)
    weight = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
    grads = torch.autograd.grad((y * weight).sum(), list(inputs.values()))
    return y, dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize("backend", available_backends())
@given(shape=SHAPES, seed=st.integers(0, 2**31), step=st.sampled_from([-6.0, -1.0, 3.0]))
@settings(max_examples=25, deadline=None)
def test_every_backend_equals_the_float64_recurrence(backend, shape, seed, step):
    inputs = make_inputs(shape, seed=seed, step=step)
    truth = run(scan_recurrence, {k: v.double() for k, v in inputs.items()})
    assert relative_error(run(selective_scan, inputs, backend=backend), truth) < 2e-6


@pytest.mark.parametrize("backend", available_backends())
@given(shape=SHAPES, seed=st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_every_gradient_equals_that_of_the_float64_recurrence(backend, shape, seed):
    inputs = make_inputs(shape, seed=seed)
    _, truth = with_gradients(scan_recurrence, inputs, torch.float64)
    _, found = with_gradients(selective_scan, inputs, torch.float32, backend=backend)
    for name in truth:
        assert relative_error(found[name], truth[name]) < 1e-5, name


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize(("fastest_decay", "step"), [(1e3, 8.0), (1e-6, -10.0), (100.0, 0.0)])
def test_extreme_steps_and_decays_stay_finite_and_right(backend, fastest_decay, step):
    inputs = make_inputs((1, 2000, 8, 16), seed=5, fastest_decay=fastest_decay, step=step)
    found = run(selective_scan, inputs, backend=backend)
    truth = run(scan_recurrence, {k: v.double() for k, v in inputs.items()})
    assert torch.isfinite(found).all()
    assert relative_error(found, truth) < 1e-5


@pytest.mark.parametrize("backend", available_backends())
def test_a_very_long_sequence_is_safe(backend):
    inputs = make_inputs((1, 65_536, 4, 4), seed=1)
    found = run(selective_scan, inputs, backend=backend)
    tail = {k: (v[:, -4096:] if k in {"u", "delta", "B", "C"} else v) for k, v in inputs.items()}
    # Far from the start the state has forgotten it: the last tokens equal a run on the tail alone.
    truth = run(scan_recurrence, {k: v.double() for k, v in tail.items()})
    forgetful = (inputs["A"].abs() > 0.5).all(dim=1)
    assert forgetful.any()
    assert torch.isfinite(found).all()
    assert relative_error(found[:, -100:, forgetful], truth[:, -100:, forgetful]) < 1e-4


def test_the_compiled_scan_gives_equal_bytes_every_time():
    if "numba" not in available_backends():
        pytest.skip("numba is not installed")
    inputs = make_inputs((2, 333, 40, 16), seed=3)
    first = run(selective_scan, inputs, backend="numba")
    again = run(selective_scan, inputs, backend="numba")
    assert first.numpy().tobytes() == again.numpy().tobytes()


def test_disagreeing_shapes_and_unknown_backends_are_named():
    inputs = make_inputs((1, 4, 2, 3), seed=0)
    with pytest.raises(ValueError, match="do not agree"):
        run(selective_scan, inputs | {"B": inputs["B"][:, :2]})
    with pytest.raises(ValueError, match="numba takes float32"):
        run(selective_scan, {k: v.double() for k, v in inputs.items()}, backend="numba")
