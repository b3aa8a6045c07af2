"""The selective scan of Mamba: one function, several backends, one answer.

For every channel ``d`` and state ``n`` the scan runs the recurrence of Gu and Dao (2023,
"Mamba: Linear-Time Sequence Modeling with Selective State Spaces", eq. 2 with zero-order-hold
``A`` and Euler ``B``)::

    h[t] = exp(delta[t] * A) * h[t-1] + delta[t] * B[t] * u[t]
    y[t] = sum_n C[t] * h[t] + D * u[t]

This room needs torch and numpy only; numba is used where it is installed.
"""

from __future__ import annotations

import importlib.util
from typing import Literal

import torch

__all__ = ["Backend", "available_backends", "scan_recurrence", "selective_scan"]

Backend = Literal["auto", "numba", "torch"]

_CHUNK = 128
# ^ tokens per chunk of the torch backend: about sqrt(16384), so that both of its loops stay short


def available_backends() -> tuple[str, ...]:
    """Names of the backends this machine can run, fastest first."""
    found = ["torch"]
    if importlib.util.find_spec("numba") is not None:
        found.insert(0, "numba")
    return tuple(found)


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
        ``"numba"``: one compiled pass on the CPU, float32. ``"torch"``: chunked, any device and
        dtype, safe for any length because only products of factors in (0, 1] are formed.
        ``"auto"``: numba for float32 on the CPU where it is installed, otherwise torch.

    Returns
    -------
    ``(batch, length, channel)`` tensor

    Raises
    ------
    ValueError
        Where shapes do not agree or the backend cannot run here.
    """
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
    fits_numba = u.device.type == "cpu" and u.dtype == torch.float32
    if backend == "auto":
        backend = "numba" if fits_numba and "numba" in available_backends() else "torch"
    if backend == "torch":
        return _scan_chunked(u, delta, A=A, B=B, C=C, D=D)
    if backend != "numba" or not fits_numba or "numba" not in available_backends():
        raise ValueError(
            f"scan backend {backend!r} cannot run {u.dtype} on {u.device}: "
            f"available here are {available_backends()}, numba takes float32 on the CPU"
        )
    from model_serving.compiled.scan import NumbaScan

    result: torch.Tensor = NumbaScan.apply(u, delta, A, B, C, D)  # type: ignore[no-untyped-call]
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
