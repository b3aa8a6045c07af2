"""The selective scan of Mamba: one function, several backends, one answer.

For every channel ``d`` and state ``n`` the scan runs the recurrence of Gu and Dao (2023,
"Mamba: Linear-Time Sequence Modeling with Selective State Spaces", eq. 2 with zero-order-hold
``A`` and Euler ``B``)::

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]
    y[t] = sum_n C[t] * h[t] + D * u[t]

This room needs torch and numpy only; numba, triton and mamba-ssm are used where they are installed.
"""

from __future__ import annotations

import functools
import importlib
from typing import Literal

import torch

__all__ = ["Backend", "available_backends", "scan_recurrence", "selective_scan"]

Backend = Literal["auto", "mamba_ssm", "numba", "torch", "triton"]

_CHUNK = 128
# ^ tokens per chunk of the torch backend: about sqrt(16384), so that both of its loops stay short
_BACKENDS = {"cpu": ("numba", "torch"), "cuda": ("mamba_ssm", "triton", "torch")}
# ^ of each kind of device, fastest first; torch runs on any
_MODULES = {
    "mamba_ssm": "mamba_ssm.ops.selective_scan_interface",
    "numba": "model_serving.compiled.scan",
    "triton": "model_serving.scan_triton",
}
_HALVES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_STATES = 256
# ^ the limit of mamba-ssm's kernels


def available_backends(device: str = "cpu") -> tuple[str, ...]:
    """Names of the backends whose packages this machine can run, fastest first.

    Parameters
    ----------
    device
        Kind of device the tensors are on, as in ``tensor.device.type``.
    """
    return tuple(name for name in _candidates(device) if not _import_fault(name))


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    *,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Run the selective scan along a sequence.

    Parameters
    ----------
    u, delta : ``(batch, length, channel)`` float
        Input and its positive step size (after softplus).
    A : ``(channel, state)`` float
        Negative rates.
    B, C : ``(batch, length, state)`` float
        Input and output projections of each token.
    D : ``(channel,)`` float
        Direct path.
    backend
        ``"numba"``: one compiled pass on the CPU, float32. ``"triton"``: chunked kernels on a GPU,
        float32 inside, inputs float32 or half precision. ``"mamba_ssm"``: the kernels of the
        package of that name, likewise; their backward adds in no fixed order. ``"torch"``: chunked,
        any device and dtype, safe for any length because only products of factors in (0, 1] are
        formed. ``"auto"``: the first of :func:`available_backends` that takes these tensors.

    Returns
    -------
    ``(batch, length, channel)`` tensor of the dtype of ``u``

    Raises
    ------
    ValueError
        Where shapes do not agree or the backend cannot run here.
    """
    tensors = (u, delta, A, B, C, D)
    _check_shapes(tensors)
    if backend == "auto":
        names = _candidates(u.device.type)
        backend = next(n for n in names if not _unfit(n, tensors))  # type: ignore[misc]
    reason = _unfit(backend, tensors)
    if reason:
        raise ValueError(
            f"scan backend {backend!r} cannot run {u.dtype} on {u.device}: {reason}; "
            f"available here are {available_backends(u.device.type)}"
        )
    if backend == "torch":
        return _scan_chunked(u, delta, A=A, B=B, C=C, D=D).to(u.dtype)
    if backend == "mamba_ssm":
        return _scan_mamba(u, delta, A=A, B=B, C=C, D=D)
    result: torch.Tensor
    if backend == "triton":
        from model_serving.scan_triton import TritonScan

        result = TritonScan.apply(*tensors)  # type: ignore[no-untyped-call]
        return result
    from model_serving.compiled.scan import NumbaScan

    result = NumbaScan.apply(*tensors)  # type: ignore[no-untyped-call]
    return result


def scan_recurrence(
    u: torch.Tensor,
    delta: torch.Tensor,
    *,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
) -> torch.Tensor:
    """Run the plain recurrence, token by token, in the dtype of its inputs: the oracle of tests.

    Parameters and result are those of :func:`selective_scan`.
    """
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1])
    y = []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        y.append((h * C[:, t, None, :]).sum(-1) + D * u[:, t])
    return torch.stack(y, dim=1)


def _candidates(device: str) -> tuple[str, ...]:
    return _BACKENDS.get(device, ("torch",))


@functools.cache
def _import_fault(backend: str) -> str:
    """Say why a backend's package cannot be imported here; empty where it can. Tried once.

    That a package is installed says little: mamba-ssm without its compiled extension, or one built
    for another torch, is found but cannot be imported.
    """
    if backend not in _MODULES:
        return ""
    try:
        importlib.import_module(_MODULES[backend])
    except (ImportError, OSError, RuntimeError) as error:
        return f"{_MODULES[backend]} cannot be imported ({type(error).__name__}: {error})"
    return ""


def _unfit(backend: str, tensors: tuple[torch.Tensor, ...]) -> str:
    """Say why a backend cannot scan these tensors; empty where it can."""
    if backend == "torch":
        return ""
    if backend not in _MODULES:
        return f"there is no such backend, known are {sorted([*_MODULES, 'torch'])}"
    fault = _import_fault(backend)
    if fault:
        return fault
    devices = {t.device.type for t in tensors}
    dtypes = {t.dtype for t in tensors}
    if backend == "numba":
        fits = devices == {"cpu"} and dtypes == {torch.float32}
        return "" if fits else "numba takes float32 on the CPU"
    if devices != {"cuda"} or not dtypes.issubset(_HALVES):
        return f"{backend} takes float32, bfloat16 and float16 on a CUDA device"
    if backend == "mamba_ssm" and tensors[2].shape[1] > _MOST_STATES:
        return f"mamba_ssm takes up to {_MOST_STATES} states"
    return ""


def _check_shapes(tensors: tuple[torch.Tensor, ...]) -> None:
    u, delta, A, B, C, D = tensors
    batch, length, channels = u.shape
    states = A.shape[1]
    if (
        delta.shape != u.shape
        or A.shape != (channels, states)
        or B.shape != (batch, length, states)
        or C.shape != (batch, length, states)
        or D.shape != (channels,)
    ):
        raise ValueError(
            f"scan shapes do not agree: u {tuple(u.shape)}, delta {tuple(delta.shape)}, "
            f"A {tuple(A.shape)}, B {tuple(B.shape)}, C {tuple(C.shape)}, D {tuple(D.shape)}"
        )


def _scan_mamba(
    u: torch.Tensor,
    delta: torch.Tensor,
    *,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
) -> torch.Tensor:
    """Scan with the kernels of mamba-ssm, whose tokens are the last axis.

    They take ``A`` and ``D`` in float32 and all others in one dtype.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    x, step, inwards, outwards = (t.to(u.dtype).transpose(1, 2) for t in (u, delta, B, C))
    y: torch.Tensor = selective_scan_fn(
        x, step, A.float(), inwards, outwards, D=D.float(), delta_softplus=False
    )
    return y.transpose(1, 2)


def _scan_chunked(
    u: torch.Tensor,
    delta: torch.Tensor,
    *,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
) -> torch.Tensor:
    """Two-level scan: all chunks step together, then the chunk states are carried over."""
    batch, length, channels = u.shape
    chunk = min(_CHUNK, length)
    pad = -length % chunk
    chunks = (length + pad) // chunk

    def split(x: torch.Tensor) -> torch.Tensor:
        # Padding steps have delta = 0: they leave the state alone.
        return torch.nn.functional.pad(x, (0, 0, 0, pad)).reshape(batch, chunks, chunk, -1)

    u_, delta_, B_, C_ = split(u), split(delta), split(B), split(C)
    drive = ((delta_ * u_).unsqueeze(-1) * B_.unsqueeze(-2)).unbind(2)
    decay = torch.exp(delta_.unsqueeze(-1) * A).unbind(2)
    local, product = drive[0], decay[0]
    locals_, products = [local], [product]
    for t in range(1, chunk):
        local = decay[t] * local + drive[t]
        product = decay[t] * product
        locals_.append(local)
        products.append(product)
    carry = torch.zeros_like(local[:, 0])
    carries = []
    for gain, end in zip(product.unbind(1), local.unbind(1), strict=True):
        carries.append(carry)
        carry = gain * carry + end
    states = torch.stack(locals_, dim=2) + torch.stack(products, dim=2) * torch.stack(
        carries, dim=1
    ).unsqueeze(2)
    y = (states * C_.unsqueeze(-2)).sum(-1)
    return y.reshape(batch, length + pad, channels)[:, :length] + D * u
