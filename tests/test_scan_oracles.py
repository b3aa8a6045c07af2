"""The scan and its block agree with other people's; its GPU kernels are right where no GPU is.

Triton runs its kernels on a CPU by interpretation, and compiles them for a GPU that is not there.
What only a GPU can show, speed and the compiled kernels' numbers, is not shown here.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from test_selective_scan import BACKWARD, FORWARD, make_inputs, relative_error, run, scan_recurrence

from model_serving import selective_scan as scans
from model_serving.glacier_seg import GlacierSegConfig, Mamba
from model_serving.selective_scan import available_backends, selective_scan

TESTS = Path(__file__).parent
DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", TESTS.parents[1] / "shared" / "data"))
INTERFACE = "mamba_ssm/ops/selective_scan_interface.py"
TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="triton is not installed (extra cuda)")

# Borders of the kernels: segments of 8 tokens, chunks of about sqrt(length), blocks of 8 channels.
SHAPES = [(1, 1, 1, 1), (1, 8, 8, 2), (1, 9, 9, 1), (2, 33, 5, 3), (1, 64, 3, 16), (1, 66, 17, 5)]
MIDDLE = SHAPES[3]
KINDS = ["extreme", "whole", "mixed", "bfloat16", "float16"]
CASES = [*((shape, "float32") for shape in SHAPES), *((MIDDLE, kind) for kind in KINDS)]
ROUNDING = {"torch.bfloat16": 2.0**-7, "torch.float16": 2.0**-11}
# ^ of a result that is stored; the interpreter cuts bfloat16 off where a GPU rounds it

# Runs in a process of its own: how triton runs kernels is settled when it is imported.
INTERPRETER = """
import json, sys
import torch
from test_selective_scan import *
from model_serving import scan_triton

def inputs_of(shape, kind):
    inputs = make_inputs(shape, seed=sum(shape))
    if kind == "mixed":
        inputs |= {k: inputs[k].bfloat16() for k in ("u", "delta", "B", "C")}
    elif kind in ("bfloat16", "float16"):
        inputs = {k: v.to(getattr(torch, kind)) for k, v in inputs.items()}
    elif kind == "extreme":
        g = torch.Generator().manual_seed(1)
        for name, values in (("delta", EXTREME_STEPS), ("A", EXTREME_RATES)):
            inputs[name] = values[torch.randint(len(values), inputs[name].shape, generator=g)]
    return inputs

def triton_scan(u, delta, *, A, B, C, D):
    return scan_triton.TritonScan.apply(u, delta, A, B, C, D)

def scanned(function, inputs, weight):
    leaves = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    y = run(function, leaves)
    grads = torch.autograd.grad(y, list(leaves.values()), weight.to(y.dtype))
    return {"output": y.detach(), **dict(zip(inputs, grads, strict=True))}

ENOUGH = scan_triton._ENOUGH
def report(shape, kind):
    inputs = inputs_of(shape, kind)
    u = inputs["u"]
    weight = torch.linspace(-1, 1, u.numel()).reshape(u.shape).to(u.dtype)
    scan_triton._ENOUGH = 1 if kind == "whole" else ENOUGH  # one chunk, as in a large batch
    found = scanned(triton_scan, inputs, weight)
    truth = scanned(scan_recurrence, {k: v.double() for k, v in inputs.items()}, weight)
    facts = {
        k: [str(v.dtype), bool(v.isfinite().all()), relative_error(v, truth[k])]
        for k, v in found.items()
    }
    wanted = {"output": u, **inputs}
    return {"dtypes": all(v.dtype == wanted[k].dtype for k, v in found.items()), "facts": facts}

def is_the_same_again(shape):
    inputs = inputs_of(shape, "float32")
    runs = [scanned(triton_scan, inputs, torch.ones(1).expand(shape[:3])) for _ in range(2)]
    return all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])

def changed_in_between():
    leaf = torch.ones(1, 4, 16, requires_grad=True)
    u = leaf * 1
    rest = list(inputs_of((1, 4, 16, 2), "float32").values())[1:]
    y = scan_triton.TritonScan.apply(u, *rest)
    u.add_(1)
    try:
        y.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""

cases = [(tuple(shape), kind) for shape, kind in json.loads(sys.argv[1])]
reports = [report(*case) for case in cases]
print(json.dumps([reports, is_the_same_again((1, 20, 9, 3)), changed_in_between()]))
"""


@pytest.fixture(scope="module")
def interpreted():
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETER, json.dumps(CASES)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports, same, error = json.loads(done.stdout)
    return dict(zip(CASES, reports, strict=True)), same, error


@needs_triton
@pytest.mark.parametrize(("shape", "kind"), CASES)
def test_the_triton_kernels_equal_the_float64_recurrence(interpreted, shape, kind):
    report = interpreted[0][shape, kind]
    assert report["dtypes"]
    for name, (dtype, finite, error) in report["facts"].items():
        assert finite, name
        # All arithmetic is float32: a half-precision result is off by its own rounding only.
        bar = FORWARD if name == "output" else BACKWARD
        assert error < bar + ROUNDING.get(dtype, 0), name


@needs_triton
def test_the_triton_kernels_give_equal_bytes_and_see_inputs_changed_before_the_backward(
    interpreted,
):
    _, same, error = interpreted
    assert same
    assert "modified by an inplace operation" in error


COMPILER = """
import itertools, pathlib, subprocess, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model_serving import scan_triton as s

SIZES = {"length", "channels", "states", "chunk", "chunks", "segments"}
FLOATS = {"ends", "gains", "carries", "marks", "dA", "dB", "dC", "dD"}
tool = pathlib.Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

def compiled(kernel, dtype, constants):
    names = [p.name for p in kernel.params]
    # Triton makes a constant of every size that is 1.
    constants = {k: v for k, v in constants.items() if k in names}
    kinds = {
        n: "constexpr" if n in constants else "i32" if n in SIZES
        else "*fp32" if n in FLOATS else f"*{dtype}"
        for n in names
    }
    source = ASTSource(kernel, kinds, {(names.index(k),): v for k, v in constants.items()})
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})

kernels = (s._chunk_ends, s._carry_over, s._outputs, s._gradients)
fixed = {"CHANNELS": s._CHANNELS, "STATES": 16, "SEGMENT": s._SEGMENT}
for kernel, flag in itertools.product(kernels, (False, True)):
    if kernel is s._gradients and flag:
        continue
    program = compiled(kernel, "bf16", fixed | {"REVERSE": flag, "SAVE": flag})
    path = pathlib.Path(sys.argv[1])
    path.write_bytes(program.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
    assert "STACK:0" in usage.stdout, (kernel, usage.stdout)
one = {"STATES": 1, "length": 1, "channels": 1, "states": 1, "segments": 1, "SAVE": True}
for kernel in (s._outputs, s._gradients):
    compiled(kernel, "fp32", fixed | one)
"""


@needs_triton
def test_the_triton_kernels_compile_for_a_gpu_and_keep_their_states_in_registers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMPILER, str(tmp_path / "kernel.cubin")],
        env=os.environ
        | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("width", "length"), [(16, 1), (16, 70), (40, 129)])
def test_the_mamba_block_equals_that_of_transformers(monkeypatch, width, length):
    # Not needed here, but imported where it is found, which fails if it is of another torch.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    pytest.importorskip("transformers")
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(width + length)
    ours = Mamba(width, GlacierSegConfig())
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs = MambaMixer(
        MambaConfig(
            hidden_size=width,
            state_size=ours.state,
            conv_kernel=ours.taps.shape[1],
            expand=2,
            time_step_rank=ours.rank,
            use_bias=False,
            use_conv_bias=True,
            num_hidden_layers=1,
        ),
        layer_idx=0,
    ).eval()
    theirs.load_state_dict(
        {
            "in_proj.weight": ours.inwards.weight,
            "conv1d.weight": ours.taps[:, None],
            "conv1d.bias": ours.taps_bias,
            "x_proj.weight": ours.select.weight,
            "dt_proj.weight": ours.step.weight,
            "dt_proj.bias": ours.step.bias,
            "A_log": ours.log_rate,
            "D": ours.direct,
            "out_proj.weight": ours.outwards.weight,
        }
    )
    x = torch.randn(2, length, width)
    truth = theirs(x).detach().double()
    for backend in ("auto", "torch"):
        assert relative_error(ours(x, backend=backend).detach(), truth) < 1e-5


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """mamba-ssm's own plain form of its kernels: one function out of a package that needs CUDA."""
    pytest.importorskip("einops")
    wheels = sorted((DATA.parent / "gpu").glob("mamba_ssm-*.whl"))
    if not wheels:
        pytest.skip(f"no wheel of mamba-ssm beside {DATA} (set INVENTORY_ENGINE_TEST_DATA)")
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheels[0]) as wheel:
        source = Path(wheel.extract(INTERFACE, folder)).read_text()
    (function,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "selective_scan_ref"
    )
    import einops

    names = {
        "torch": torch,
        "F": torch.nn.functional,
        "rearrange": einops.rearrange,
        "repeat": einops.repeat,
    }
    exec(compile(ast.Module([function], []), INTERFACE, "exec"), names)
    return names["selective_scan_ref"]


def referenced(reference, inputs):
    turned = {k: v.transpose(1, 2) for k, v in inputs.items() if k in {"u", "delta", "B", "C"}}
    y = reference(
        turned["u"],
        turned["delta"],
        inputs["A"],
        turned["B"],
        turned["C"],
        D=inputs["D"],
        delta_softplus=False,
    )
    return y.transpose(1, 2)


@pytest.mark.real_data
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 33, 5, 3), (1, 129, 32, 16), (3, 200, 70, 4)])
def test_every_backend_equals_the_reference_of_mamba_ssm(reference, shape):
    inputs = make_inputs(shape, seed=7)
    truth = referenced(reference, inputs).double()
    assert relative_error(run(scan_recurrence, inputs), truth) < 1e-5
    for backend in available_backends():
        assert relative_error(run(selective_scan, inputs, backend=backend), truth) < 1e-5


@pytest.mark.real_data
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_reach_mamba_ssm_in_its_layout(reference, monkeypatch, dtype):
    # Its reference takes the arguments of its kernels, and stands where they are looked for.
    package = types.ModuleType("interface")
    package.selective_scan_fn = reference
    monkeypatch.setitem(sys.modules, "mamba_ssm.ops.selective_scan_interface", package)
    inputs = make_inputs((2, 33, 5, 3), seed=8)
    inputs |= {k: inputs[k].to(dtype) for k in ("u", "delta", "B")}
    found = run(scans._scan_mamba, inputs)
    truth = run(scan_recurrence, {k: v.double() for k, v in inputs.items()})
    assert found.dtype == dtype
    assert relative_error(found, truth) < (1e-5 if dtype == torch.float32 else 2e-2)
