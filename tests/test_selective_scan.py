"""The selective scan gives the same answer on every backend as the plain float64 recurrence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_serving.selective_scan import available_backends, scan_recurrence, selective_scan

# Borders: the compiled scan keeps a checkpoint every 32 tokens and takes 16 channels together, the
# chunks of the torch backend are 128 tokens long.
LENGTHS = st.one_of(st.sampled_from([1, 31, 32, 33, 127, 128, 129]), st.integers(1, 200))
CHANNELS = st.one_of(st.sampled_from([1, 15, 16, 17, 32]), st.integers(1, 70))
STATES = st.one_of(st.sampled_from([1, 16]), st.integers(1, 17))
SHAPES = st.tuples(st.integers(1, 3), LENGTHS, CHANNELS, STATES)
FORWARD, BACKWARD = 1e-6, 1e-5
# ^ largest errors of float32, relative to the largest magnitude of the result
ROUNDING = 8 * 2.0**-24
EXTREME_STEPS = torch.tensor([0.0, 1e-8, 50.0])
EXTREME_RATES = torch.tensor([-1e-6, -1e3])


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


def with_gradients(function, inputs, dtype, *, positive=False, **keywords):
    inputs = {k: v.detach().to(dtype).requires_grad_() for k, v in inputs.items()}
    y = run(function, inputs, **keywords)
    weight = torch.linspace(-1, 1, y.numel(), dtype=dtype).reshape(y.shape)
    weight = weight.abs() if positive else weight
    grads = torch.autograd.grad((y * weight).sum(), list(inputs.values()))
    return y.detach(), dict(zip(inputs, grads, strict=True))


def terms_of(inputs):
    """The sums without their signs: how large the numbers are that cancel each other."""
    positive = {k: v if k == "A" else v.abs() for k, v in inputs.items()}
    return with_gradients(scan_recurrence, positive, torch.float64, positive=True)


def assert_right(found, truth, terms, *, bar, name="output"):
    """Hold a float32 result to its bar.

    Where the truth is a small difference of large numbers, no float32 code can meet a bar relative
    to it: there a few roundings of the largest of those numbers are allowed.
    """
    assert torch.isfinite(found).all(), name
    allowed = max(bar * truth.abs().max(), ROUNDING * terms.abs().max())
    assert (found.double() - truth).abs().max() <= allowed, name


def assert_all_right(inputs, *, backend):
    truth, true_grads = with_gradients(scan_recurrence, inputs, torch.float64)
    terms, grad_terms = terms_of(inputs)
    found, grads = with_gradients(selective_scan, inputs, torch.float32, backend=backend)
    assert_right(found, truth, terms, bar=FORWARD)
    for name, grad in grads.items():
        assert_right(grad, true_grads[name], grad_terms[name], bar=BACKWARD, name=name)


@pytest.mark.parametrize("backend", available_backends())
@given(shape=SHAPES, seed=st.integers(0, 2**31), step=st.sampled_from([-6.0, -1.0, 3.0]))
@settings(max_examples=25, deadline=None)
def test_every_backend_and_gradient_equals_the_float64_recurrence(backend, shape, seed, step):
    assert_all_right(make_inputs(shape, seed=seed, step=step), backend=backend)


@pytest.mark.parametrize("backend", available_backends())
@given(shape=SHAPES, seed=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_steps_of_nothing_and_of_everything_stay_finite_and_right(backend, shape, seed):
    inputs = make_inputs(shape, seed=seed)
    g = torch.Generator().manual_seed(seed)

    def draw(values, like):
        return values[torch.randint(len(values), like.shape, generator=g)]

    inputs["delta"] = draw(EXTREME_STEPS, inputs["delta"])
    inputs["A"] = draw(EXTREME_RATES, inputs["A"])
    assert_all_right(inputs, backend=backend)


@given(shape=SHAPES, seed=st.integers(0, 2**31), step=st.sampled_from([-6.0, -1.0, 3.0]))
@settings(max_examples=15, deadline=None)
def test_the_torch_backend_is_as_good_as_its_dtype(shape, seed, step):
    inputs = make_inputs(shape, seed=seed, step=step)
    truth, true_grads = with_gradients(scan_recurrence, inputs, torch.float64)
    found, grads = with_gradients(selective_scan, inputs, torch.float64, backend="torch")
    assert relative_error(found, truth) < 1e-13
    for name, grad in grads.items():
        assert relative_error(grad, true_grads[name]) < 1e-11, name
    halves = {k: v.bfloat16() for k, v in inputs.items()}
    rounded = run(scan_recurrence, {k: v.double() for k, v in halves.items()})
    found = run(selective_scan, halves, backend="torch")
    assert found.dtype == torch.bfloat16
    # Eight bits of mantissa, rounded at every token.
    assert relative_error(found, rounded) < 0.1


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


@pytest.mark.parametrize("backend", available_backends())
@pytest.mark.parametrize("channels", [16, 17])
def test_an_input_changed_before_the_backward_is_refused_or_does_no_harm(backend, channels):
    inputs = make_inputs((2, 40, channels, 3), seed=6)
    _, truth = with_gradients(selective_scan, inputs, torch.float32, backend=backend)
    for changed in inputs:
        leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
        used = {k: v * 1 for k, v in leaves.items()}
        y = run(selective_scan, used, backend=backend)
        used[changed].mul_(2)
        weight = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
        try:
            grads = torch.autograd.grad((y * weight).sum(), list(leaves.values()))
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            continue
        for name, grad in zip(inputs, grads, strict=True):
            assert torch.equal(grad, truth[name]), f"{name} after a change of {changed}"


def test_the_compiled_scan_refuses_a_second_derivative():
    if "numba" not in available_backends():
        pytest.skip("numba is not installed")
    leaves = {k: v.requires_grad_() for k, v in make_inputs((1, 9, 16, 2), seed=6).items()}
    y = run(selective_scan, leaves, backend="numba")
    (grad,) = torch.autograd.grad(y.square().sum(), leaves["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (grad * leaves["u"]).sum().backward()


def test_the_backend_is_chosen_by_device_and_dtype():
    assert available_backends() == available_backends("cpu")
    for device in ("cpu", "cuda", "mps"):
        assert available_backends(device)[-1] == "torch"
    assert not {"mamba_ssm", "triton"} & set(available_backends("cpu"))
    assert "numba" not in available_backends("cuda")
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        inputs = {k: v.to(dtype) for k, v in make_inputs((2, 40, 5, 3), seed=2).items()}
        fastest = available_backends()[0] if dtype == torch.float32 else "torch"
        found = run(selective_scan, inputs)
        assert found.dtype == dtype
        assert torch.equal(found, run(selective_scan, inputs, backend=fastest))


def test_mixed_dtypes_are_scanned_in_the_wider_and_returned_in_that_of_the_input():
    inputs = make_inputs((1, 40, 16, 3), seed=4)
    wide = inputs | {"delta": inputs["delta"].double()}
    assert run(selective_scan, wide).dtype == torch.float32
    truth = run(scan_recurrence, {k: v.double() for k, v in inputs.items()})
    assert relative_error(run(selective_scan, wide), truth) < FORWARD


def test_disagreeing_shapes_and_backends_that_cannot_run_are_named():
    inputs = make_inputs((1, 4, 2, 3), seed=0)
    with pytest.raises(ValueError, match="do not agree"):
        run(selective_scan, inputs | {"B": inputs["B"][:, :2]})
    if "numba" in available_backends():
        with pytest.raises(ValueError, match="numba takes float32"):
            run(selective_scan, {k: v.double() for k, v in inputs.items()}, backend="numba")
        with pytest.raises(ValueError, match="numba takes float32"):
            run(selective_scan, inputs | {"delta": inputs["delta"].double()}, backend="numba")
    for backend in ("mamba_ssm", "triton"):
        reason = rf"{backend}.* (on a CUDA device|cannot be imported).*available here are \('"
        with pytest.raises(ValueError, match=reason):
            run(selective_scan, inputs, backend=backend)
    with pytest.raises(ValueError, match=r"no such backend, known are .*'mamba_ssm', 'numba'"):
        run(selective_scan, inputs, backend="cuda")


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_a_package_that_is_installed_but_cannot_be_imported_counts_as_absent(tmp_path, error):
    for name in ("mamba_ssm", "numba", "triton"):
        (tmp_path / f"{name}.py").write_text(f"raise {error}('made for another machine')\n")
    code = (
        "import torch\n"
        "from model_serving.selective_scan import available_backends, selective_scan\n"
        "assert available_backends() == available_backends('cuda') == ('torch',)\n"
        "x = torch.ones(1, 3, 2)\n"
        "rest = {'A': -torch.ones(2, 1), 'B': x[..., :1], 'C': x[..., :1], 'D': x[0, 0]}\n"
        "assert selective_scan(x, x, **rest).isfinite().all()\n"
        "for name in ('mamba_ssm', 'numba', 'triton'):\n"
        "    try:\n"
        "        selective_scan(x, x, **rest, backend=name)\n"
        "    except ValueError as error:\n"
        "        assert 'made for another machine' in str(error), error\n"
        "        assert \"available here are ('torch',)\" in str(error), error\n"
        "    else:\n"
        "        raise AssertionError(name)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
def test_an_input_changed_in_place_before_the_gradient_is_noticed(name):
    inputs = make_inputs((1, 40, 20, 4), seed=6)
    if "numba" not in available_backends():
        pytest.skip("numba is not installed")
    held = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    used = {k: v * 1 for k, v in held.items()}
    y = run(selective_scan, used, backend="numba")
    used[name].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
