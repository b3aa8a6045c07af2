"""A trained network as an ONNX model of standard operators, for runtimes other than this engine's.

The same numbers as the network's to rounding: batch normalisation is folded into the convolution
beside it, the linear layers of the head are one convolution a stage, applied before the upsampling.
onnxruntime and OpenVINO run it, with any number of windows at a time and windows of any size that
the network takes. Nothing in it is a function of our own, because OpenVINO reads none.

The selective scan is made of ``Scan`` operators. Tokens are cut into chunks whose tokens stand
beside each other, so that one step takes a token of every chunk: a first pass finds what each chunk
adds to a state and how much of it it keeps, a short one carries the state from chunk to chunk, and
a last one starts every chunk from the right state. Only products of factors in (0, 1] are formed.

A file is float32 or int8. There are no half-precision files: on a CPU onnxruntime has no bfloat16
convolution and gains nothing by float16, and OpenVINO rounds a float32 file itself where it is told
to, see :class:`model_serving.onnx_runtimes.OpenVino`.

onnx is needed by the functions, not by the import of this module.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from torch import nn

from catalog.cube import Workspace
from catalog.errors import UsageError
from model_serving.extras import require
from model_serving.folding import as_array, folded, folded_fusion
from model_serving.glacier_seg import Convolution, Detail, GlacierSeg, Involution, Mamba, Stage

__all__ = ["OPSET", "Precision", "export", "to_onnx"]

Array = npt.NDArray[Any]
Precision = Literal["float32", "int8"]

OPSET = 20
"""Version of the operators: the first with the error-function activation of the MLPs."""
_IR_VERSION = 9
# ^ the first that holds these operators: older readers stay able to read
_CHUNK = 128
# ^ tokens of a chunk in the first stage, half in each that follows, as there are fewer of them
_SHORTEST_CHUNK = 16
_END = np.iinfo(np.int64).max
# ^ where a slice goes to the end of its axis
_QUANTISED = ["Conv", "MatMul", "Gemm"]


def to_onnx(
    network: GlacierSeg,
    *,
    name: str = "glacier-seg",
    channels: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    window_px: int | None = None,
) -> Any:
    """Write a network as an ONNX model.

    Parameters
    ----------
    network
        Taken as in evaluation mode; it is read, not changed.
    name
        Name of the graph.
    channels, classes
        Names of inputs and outputs in their order, put into the metadata of the model.
    window_px
        Edge of the windows the network maps best, pixels, put into the metadata.

    Returns
    -------
    ``onnx.ModelProto``
        From ``window``, ``(batch, channel, y, x)`` float32, normalised, both edges a multiple of
        the ``stride`` in the metadata, to ``logits``, ``(batch, class, y, x)`` float32.

    Raises
    ------
    UsageError
        Where onnx is missing, or names are not as many as the network has channels or classes.
    """
    require("export to ONNX", "onnx")
    from onnx import TensorProto, checker, helper

    config = network.config
    graph = _Graph()
    image, features = "window", []
    for k, stage in enumerate(network.stages):
        chunk = max(_SHORTEST_CHUNK, _CHUNK >> k)
        image = _stage(graph, image, stage, chunk=chunk)  # type: ignore[arg-type]
        features.append(image)
    said = _head(graph, features, network)
    if network.detail is None:
        _upsampled(graph, said, 2, name="logits")
    else:
        _drawn(graph, "window", _upsampled(graph, said, 2), network.detail)

    def tensor(key: str, layers: int) -> Any:
        return helper.make_tensor_value_info(key, TensorProto.FLOAT, ["batch", layers, "y", "x"])

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [tensor("window", config.channels)],
            [tensor("logits", config.classes)],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="glacier-inventory-engine",
    )
    facts = {"stride": str(config.stride)}
    facts |= _named("channels", channels, config.channels)
    facts |= _named("classes", classes, config.classes)
    if window_px is not None:
        facts["window_px"] = str(window_px)
    helper.set_model_props(model, facts)
    checker.check_model(model)
    return model


def export(
    network: GlacierSeg,
    path: str | Path,
    *,
    precision: Precision = "float32",
    windows: npt.NDArray[np.float32] | None = None,
    channels: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
    window_px: int | None = None,
) -> Path:
    """Write a network into an ONNX file; a reader sees all of it or nothing.

    Parameters
    ----------
    network, channels, classes, window_px
        See :func:`to_onnx`.
    path
        Where to write; replaced if it is there.
    precision
        ``"float32"``: equal to the network but for rounding. ``"int8"``: convolutions and matrix
        products in 8 bits, the scan in float32; changes some pixels.
    windows : ``(window, channel, y, x)`` float32, for ``"int8"`` only
        Normalised windows like those to be mapped; they set the ranges of the 8 bits.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    UsageError
        As :func:`to_onnx`, where there is no such precision, and where windows are missing or are
        not the network's.
    StoreError
        Where the file cannot be written.
    """
    if precision not in get_args(Precision):
        raise UsageError(
            f"cannot export in {precision!r}; known are {', '.join(get_args(Precision))}. For "
            "bfloat16 export float32 and let OpenVINO round it (INFERENCE_PRECISION_HINT)",
            kind="export-precision",
        )
    path = Path(path)
    if precision == "int8":
        windows = _checked(windows, network)
    model = to_onnx(
        network, name=path.stem, channels=channels, classes=classes, window_px=window_px
    )
    data = model.SerializeToString() if windows is None else _quantised(model, windows)
    Workspace(path.parent).put(path.name, data)
    return path


def _named(key: str, names: Sequence[str] | None, count: int) -> dict[str, str]:
    """Names as an entry of the metadata."""
    if names is None:
        return {}
    if len(names) != count:
        raise UsageError(
            f"the network has {count} {key}, found {len(names)} names: {', '.join(names)}",
            kind="export-mismatch",
        )
    return {key: ",".join(names)}


def _checked(
    windows: npt.NDArray[np.float32] | None, network: GlacierSeg
) -> npt.NDArray[np.float32]:
    config = network.config
    wanted = (
        f"(n, {config.channels}, y, x) float32 with edges that are multiples of {config.stride}"
    )
    if windows is None:
        raise UsageError(
            f"int8 needs windows that set its ranges: give some, {wanted}", kind="export-windows"
        )
    windows = np.asarray(windows)
    if (
        windows.ndim != 4
        or not windows.size
        or windows.dtype != np.float32
        or windows.shape[1] != config.channels
        or any(edge % config.stride for edge in windows.shape[2:])
    ):
        raise UsageError(
            f"windows must be {wanted}, found {windows.shape} {windows.dtype}",
            kind="export-windows",
        )
    if not np.isfinite(windows).all():
        raise UsageError(
            "windows hold values that are not finite; normalise them, missing values become 0",
            kind="export-windows",
        )
    return windows


class _Windows:
    """Hands out windows one by one, as the calibration of onnxruntime asks for them."""

    def __init__(self, windows: npt.NDArray[np.float32]) -> None:
        self._left: Iterator[Any] = iter(windows)

    def get_next(self) -> dict[str, Array] | None:
        window = next(self._left, None)
        return None if window is None else {"window": window[None]}


def _quantised(model: Any, windows: npt.NDArray[np.float32]) -> bytes:
    require("export to ONNX", "onnxruntime")
    from onnxruntime.quantization import QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        shaped, out = Path(folder) / "shaped.onnx", Path(folder) / "int8.onnx"
        # Nothing but shapes: its other steps would leave operators that only onnxruntime knows.
        quant_pre_process(model, shaped, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            shaped,
            out,
            _Windows(windows),
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return out.read_bytes()


class _Graph:
    """Collects operators and weights; equal weights are held once."""

    def __init__(self) -> None:
        from onnx import helper, numpy_helper

        self._make_node, self._from_array = helper.make_node, numpy_helper.from_array
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def weight(self, values: Any) -> str:
        """Name of float32 weights."""
        return self._held(np.asarray(values, np.float32))

    def ints(self, *values: int) -> str:
        """Name of a list of whole numbers: axes, places, sizes."""
        return self._held(np.asarray(values, np.int64))

    def _held(self, values: Array) -> str:
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._names:
            self._names[key] = f"weight_{len(self._names)}"
            self.weights.append(self._from_array(np.ascontiguousarray(values), self._names[key]))
        return self._names[key]

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Append an operator with one output; returns the name of that."""
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(self._make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def several(self, kind: str, *inputs: str, count: int, **attributes: Any) -> list[str]:
        """Append an operator with several outputs; returns their names."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [f"{name}_{i}" for i in range(count)]
        self.nodes.append(self._make_node(kind, inputs, names, name=name, **attributes))
        return names

    def total(self, parts: Sequence[str]) -> str:
        """Sum of tensors, from the first to the last."""
        result, *others = parts
        for part in others:
            result = self.op("Add", result, part)
        return result

    def product(self, x: str, matrix: Array) -> str:
        """Tokens ``(..., in)`` times the transpose of an ``(out, in)`` matrix."""
        return self.op("MatMul", x, self.weight(matrix.T))

    def convolution(self, x: str, kernel: Array, bias: Array | None = None, **shape: Any) -> str:
        """Convolve an image ``(batch, channel, y, x)``."""
        biases = [] if bias is None else [self.weight(bias)]
        return self.op("Conv", x, self.weight(kernel), *biases, **shape)

    def cut(self, x: str, axes: Sequence[int], first: Sequence[int], last: Sequence[int]) -> str:
        """Slice some axes."""
        return self.op("Slice", x, self.ints(*first), self.ints(*last), self.ints(*axes))

    def silu(self, x: str) -> str:
        """Sigmoid linear unit."""
        return self.op("Mul", x, self.op("Sigmoid", x))


def _stage(graph: _Graph, image: str, stage: Stage, *, chunk: int) -> str:
    """``(batch, inside, y, x)`` to ``(batch, outside, y / 2, x / 2)``."""
    image = _embedding(graph, image, stage.embed)
    shape = graph.op("Shape", image)
    width = stage.norm_scan.weight.numel()
    flat = graph.op("Reshape", image, graph.ints(0, width, -1))
    tokens = graph.op("Transpose", flat, perm=[0, 2, 1])
    normal = _normalised(graph, tokens, stage.norm_scan)
    tokens = graph.op("Add", tokens, _scanned(graph, normal, shape, stage, chunk))
    rise, fall = stage.mlp[0], stage.mlp[2]
    hidden = graph.product(_normalised(graph, tokens, stage.norm_mlp), as_array(rise.weight))
    hidden = graph.op("Gelu", graph.op("Add", hidden, graph.weight(as_array(rise.bias))))
    out = graph.product(hidden, as_array(fall.weight))
    tokens = graph.total([tokens, graph.op("Add", out, graph.weight(as_array(fall.bias)))])
    return graph.op("Reshape", graph.op("Transpose", tokens, perm=[0, 2, 1]), shape)


def _embedding(graph: _Graph, image: str, layer: nn.Module) -> str:
    if not isinstance(layer, Involution | Convolution):
        raise TypeError(f"no embedding is known as {type(layer).__name__}")
    kernel, shift = folded(layer.mix, layer.norm)
    if isinstance(layer, Convolution):
        return graph.convolution(image, kernel, shift, strides=[2, 2], pads=[1] * 4)
    return graph.convolution(_involved(graph, image, layer), kernel, shift)


def _involved(graph: _Graph, image: str, layer: Involution) -> str:
    """Weighted sum of the nine neighbours of every second pixel."""
    low = graph.op("AveragePool", image, kernel_shape=[2, 2], strides=[2, 2])
    low = graph.convolution(low, as_array(layer.reduce.weight), as_array(layer.reduce.bias))
    low = graph.op("Relu", low)
    kernels = graph.convolution(low, as_array(layer.span.weight), as_array(layer.span.bias))
    inside = layer.mix.weight.shape[1]
    padded = graph.op("Pad", image, graph.ints(0, 0, 1, 1, 0, 0, 1, 1))
    # The four pixels of each 2 x 2 square side by side: the nine views are whole rows of these,
    # which is faster than to take every second pixel nine times.
    squares = graph.op("SpaceToDepth", padded, blocksize=2)
    ends = (-1, -1, _END)
    parts = []
    for k in range(9):
        row, col = divmod(k, 3)
        place = (2 * (row % 2) + col % 2) * inside
        view = graph.cut(
            squares,
            (1, 2, 3),
            (place, row // 2, col // 2),
            (place + inside, ends[row], ends[col]),
        )
        parts.append(graph.op("Mul", view, graph.cut(kernels, (1,), (k,), (k + 1,))))
    return graph.total(parts)


def _normalised(graph: _Graph, tokens: str, norm: nn.RMSNorm) -> str:
    # Written in the way that runtimes know and put together into one operator.
    square = graph.op("Pow", tokens, graph.weight(2.0))
    mean = graph.op("ReduceMean", square, graph.ints(-1))
    size = graph.op("Sqrt", graph.op("Add", mean, graph.weight(norm.eps)))
    return graph.op("Mul", graph.op("Div", tokens, size), graph.weight(as_array(norm.weight)))


def _scanned(graph: _Graph, normal: str, shape: str, stage: Stage, chunk: int) -> str:
    """Mix ``(batch, token, channel)`` along each way and take the mean.

    ``shape`` is that of the image of the tokens, ``(batch, channel, y, x)``.
    """
    ways = []
    width = stage.norm_scan.weight.numel()
    for way in stage.ways:
        tokens = normal
        if way in "v^":
            tokens = _transposed(graph, tokens, shape, (0, 2, 3, 1), width)
        tokens = _mixed(graph, _flipped(graph, tokens, way), stage.scan, chunk)
        tokens = _flipped(graph, tokens, way)
        if way in "v^":
            tokens = _transposed(graph, tokens, shape, (0, 3, 2, 1), width)
        ways.append(tokens)
    if len(ways) == 1:
        return ways[0]
    return graph.op("Mul", graph.total(ways), graph.weight(1 / len(ways)))


def _flipped(graph: _Graph, tokens: str, way: str) -> str:
    if way in ">v":
        return tokens
    return graph.op(
        "Slice", tokens, graph.ints(-1), graph.ints(-_END), graph.ints(1), graph.ints(-1)
    )


def _transposed(graph: _Graph, tokens: str, shape: str, order: Sequence[int], width: int) -> str:
    """Tokens of an image in the order of its transpose; ``order`` makes its shape of ``shape``."""
    image = graph.op("Reshape", tokens, graph.op("Gather", shape, graph.ints(*order)))
    turned = graph.op("Transpose", image, perm=[0, 2, 1, 3])
    return graph.op("Reshape", turned, graph.ints(0, -1, width))


def _mixed(graph: _Graph, tokens: str, layer: Mamba, chunk: int) -> str:
    """Mamba over ``(batch, token, channel)``."""
    inner = layer.direct.numel()
    inwards = as_array(layer.inwards.weight)
    length = graph.op("Shape", tokens, start=1, end=2)
    u = _convolved(graph, tokens, length, layer, chunk)
    # (batch, chunk, token, channel) to (token, chunk, batch, channel)
    u = graph.op("Reshape", u, graph.ints(0, -1, chunk, inner))
    u = graph.op("Transpose", u, perm=[2, 1, 0, 3])
    low, into, out = graph.several(
        "Split",
        graph.product(u, as_array(layer.select.weight)),
        graph.ints(layer.rank, layer.state, layer.state),
        count=3,
        axis=-1,
    )
    step = graph.product(low, as_array(layer.step.weight))
    delta = _softplus(graph, graph.op("Add", step, graph.weight(as_array(layer.step.bias))))
    rates = graph.weight(-np.exp(as_array(layer.log_rate)).T)
    y = _selective_scan(graph, u, delta, rates=rates, into=into, out=out)
    y = graph.op("Add", y, graph.op("Mul", u, graph.weight(as_array(layer.direct))))
    y = graph.op("Transpose", y, perm=[2, 1, 0, 3])
    y = graph.op("Reshape", y, graph.ints(0, -1, inner))
    y = graph.op("Slice", y, graph.ints(0), length, graph.ints(1))
    gate = graph.silu(graph.product(tokens, inwards[inner:]))
    return graph.product(graph.op("Mul", y, gate), as_array(layer.outwards.weight))


def _convolved(graph: _Graph, tokens: str, length: str, layer: Mamba, chunk: int) -> str:
    """Causal convolution over the tokens, filled up to whole chunks.

    What is filled up comes after all tokens, so that it changes none of them, whatever it becomes.
    """
    inner, count = layer.taps.shape
    extra = graph.op("Mod", graph.op("Neg", length), graph.ints(chunk))
    widths = graph.op("Concat", graph.ints(0, count - 1, 0, 0), extra, graph.ints(0), axis=0)
    padded = graph.op("Pad", tokens, widths)
    u = graph.product(padded, as_array(layer.inwards.weight)[:inner])
    taps = as_array(layer.taps)
    parts = [graph.weight(as_array(layer.taps_bias))]
    for k in range(count):
        last = _END if k == count - 1 else k - count + 1
        parts.append(graph.op("Mul", graph.cut(u, (1,), (k,), (last,)), graph.weight(taps[:, k])))
    return graph.silu(graph.total(parts))


def _softplus(graph: _Graph, x: str) -> str:
    """``log(1 + exp(x))`` without overflow; several times faster than onnxruntime's own."""
    small = graph.op("Exp", graph.op("Neg", graph.op("Abs", x)))
    rest = graph.op("Log", graph.op("Add", small, graph.weight(1.0)))
    return graph.op("Add", graph.op("Relu", x), rest)


def _selective_scan(graph: _Graph, u: str, delta: str, *, rates: str, into: str, out: str) -> str:
    """The recurrence of :mod:`model_serving.selective_scan` but for its direct path.

    ``u``, ``delta``, ``into`` (B) and ``out`` (C) are ``(token, chunk, batch, channel or state)``,
    ``rates`` is ``(state, channel)``. States are ``(chunk, batch, state, channel)``.
    """
    delta_ = graph.op("Unsqueeze", delta, graph.ints(-2))
    drive = graph.op("Unsqueeze", graph.op("Mul", delta, u), graph.ints(-2))
    into_ = graph.op("Unsqueeze", into, graph.ints(-1))
    out_ = graph.op("Unsqueeze", out, graph.ints(-2))
    tail = graph.op("Shape", rates)
    many = graph.op("Concat", graph.op("Shape", u, start=1, end=3), tail, axis=0)
    one = graph.op("Concat", graph.op("Shape", u, start=2, end=3), tail, axis=0)
    zeros, ones = (graph.op("Expand", graph.weight(value), many) for value in (0.0, 1.0))
    ends, kept = graph.several(
        "Scan", zeros, ones, delta_, drive, into_, count=2, body=_local(rates), num_scan_inputs=3
    )
    start = graph.op("Expand", graph.weight(0.0), one)
    _, starts = graph.several(
        "Scan", start, kept, ends, count=2, body=_carrying(), num_scan_inputs=2
    )
    _, y = graph.several(
        "Scan", starts, delta_, drive, into_, out_, count=2, body=_reading(rates), num_scan_inputs=4
    )
    return graph.op("Squeeze", y, graph.ints(-2))


def _body(*nodes: tuple[str, str, str], inputs: str, outputs: str) -> Any:
    """Step of a scan from ``(operator, inputs, output)``; names are parted by blanks."""
    from onnx import TensorProto, helper

    def tensors(names: str) -> list[Any]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names.split()]

    made = [helper.make_node(kind, taken.split(), [given]) for kind, taken, given in nodes]
    return helper.make_graph(made, "step", tensors(inputs), tensors(outputs))


def _advance(rates: str) -> tuple[tuple[str, str, str], ...]:
    return (
        ("Mul", f"step {rates}", "exponent"),
        ("Exp", "exponent", "decay"),
        ("Mul", "decay state", "left"),
        ("Mul", "drive into", "added"),
        ("Add", "left added", "next_state"),
    )


def _local(rates: str) -> Any:
    """A token of every chunk: the state from zero, and how much of an earlier one is left."""
    return _body(
        *_advance(rates),
        ("Mul", "decay kept", "next_kept"),
        inputs="state kept step drive into",
        outputs="next_state next_kept",
    )


def _carrying() -> Any:
    """A chunk: the state before it, and on to the next."""
    return _body(
        ("Identity", "state", "before"),
        ("Mul", "state kept", "left"),
        ("Add", "left end", "next_state"),
        inputs="state kept end",
        outputs="next_state before",
    )


def _reading(rates: str) -> Any:
    """A token of every chunk: the state, and what is read out of it."""
    return _body(
        *_advance(rates),
        ("MatMul", "out next_state", "y"),
        inputs="state step drive into out",
        outputs="next_state y",
    )


def _upsampled(graph: _Graph, image: str, factor: int, *, name: str = "") -> str:
    scales = graph.weight([1.0, 1.0, factor, factor])
    # Half-pixel centres are what torch calls not aligning corners.
    return graph.op("Resize", image, "", scales, name=name, mode="linear")


def _head(graph: _Graph, features: list[str], network: GlacierSeg) -> str:
    """Logits ``(batch, class, y, x)`` at the resolution of the first stage."""
    head = network.head
    matrices, shift = folded_fusion(head)
    kernels = [matrix[:, :, None, None] for matrix in matrices]
    parts = [graph.convolution(features[0], kernels[0], shift)]
    for k, (image, kernel) in enumerate(zip(features[1:], kernels[1:], strict=True), start=1):
        parts.append(_upsampled(graph, graph.convolution(image, kernel), 1 << k))
    fused = graph.op("Relu", graph.total(parts))
    kernel, shift = folded(head.smooth, head.smooth_norm)
    smooth = graph.op("Relu", graph.convolution(fused, kernel, shift, pads=[1] * 4))
    return graph.convolution(smooth, as_array(head.classify.weight), as_array(head.classify.bias))


def _drawn(graph: _Graph, image: str, said: str, layer: Detail) -> str:
    """Logits at full resolution from the window and what the head says, doubled."""
    kernel, shift = folded(layer.look, layer.look_norm)
    look = graph.convolution(image, kernel, shift, pads=[1] * 4)
    mixed = graph.op("Relu", graph.op("Add", look, said))
    kernel, shift = folded(layer.draw, layer.draw_norm)
    drawn = graph.op("Relu", graph.convolution(mixed, kernel, shift, pads=[1] * 4))
    weight, bias = as_array(layer.classify.weight), as_array(layer.classify.bias)
    return graph.convolution(drawn, weight, bias, name="logits")
