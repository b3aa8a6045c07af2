"""The network rewritten for speed on a CPU: the same numbers to rounding, several times faster.

Nothing is approximated. Batch normalisation is folded into the weights beside it; the linear layers
of the head are one matrix a stage, applied before the upsampling; tokens pass through a whole block
in runs short enough to stay in the cache, the scan carrying its state from run to run; the 3 x 3
convolution of the head is done by Winograd's minimal filtering a few rows at a time, so that no map
of its 128 channels is ever held. The loops are in :mod:`model_serving.compiled`.

Work is cut into the same pieces however many threads share it: any number gives the same bytes. A
thread keeps a run of tokens to itself, so that its numbers stay in the cache of one core; only the
state of the scan is handed to the thread that has the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Event, Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from model_serving.compiled import kernels, passes
from model_serving.compiled.lanes import WIDTH
from model_serving.compiled.products import packed, product
from model_serving.compiled.scan import rate_lanes, scan_gated
from model_serving.folding import as_array, folded, folded_fusion
from model_serving.glacier_seg import (
    Convolution,
    Detail,
    GlacierSeg,
    GlacierSegConfig,
    Involution,
    Mamba,
    Stage,
)

__all__ = ["FusedGlacierSeg", "unfit"]

Array = npt.NDArray[np.float32]

_RUN = 16384
# ^ numbers of a run of tokens at the width of its stage: its buffers fill half a megabyte


def _stored(values: npt.NDArray[np.float64]) -> Array:
    return np.ascontiguousarray(values, np.float32)


def _taps(kernel: npt.NDArray[np.float64]) -> Array:
    """``(out, in, 3, 3)`` to ``(9 * in, out)``, the order in which a neighbourhood is gathered."""
    taps = _widened(kernel, 1).transpose(2, 3, 1, 0)
    return packed(taps.reshape(-1, taps.shape[-1]))


def _turned(image: Array, way: str) -> Array:
    """View of ``(y, x, channel)`` in which tokens follow each other as scanned, and back."""
    if way in ">v":
        return image if way == ">" else image.swapaxes(0, 1)
    return image[::-1, ::-1] if way == "<" else image.swapaxes(0, 1)[::-1, ::-1]


def _columns(matrix: Array) -> int:
    return int(matrix.shape[0] * matrix.shape[2])


def _widened(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    """Fill an axis up with zeros to whole lanes."""
    missing = -values.shape[axis] % WIDTH
    widths = [(0, missing if i == axis % values.ndim else 0) for i in range(values.ndim)]
    return np.pad(values, widths)


class _Embedding:
    """Halves an image of ``(y, x, channel)``; channels beyond the network's are zero."""

    def __init__(self, layer: Involution | Convolution) -> None:
        weight, shift = folded(layer.mix, layer.norm)
        self.shift = _stored(shift)
        if isinstance(layer, Involution):
            self.mix = packed(_widened(weight[:, :, 0, 0].T, 0))
            self.reduce = _stored(_widened(as_array(layer.reduce.weight)[:, :, 0, 0], 1))
            self.reduce_bias = _stored(as_array(layer.reduce.bias))
            self.span = _stored(_widened(as_array(layer.span.weight)[:, :, 0, 0].T, 1))
            self.span_bias = _stored(_widened(as_array(layer.span.bias), 0))
        else:
            self.mix = _taps(weight)
        self.involution = isinstance(layer, Involution)

    def rows(self, image: Array, first: int, last: int, out: Array) -> None:
        """Rows ``first`` to ``last`` of the result into ``(y, x, channel)``."""
        gathered = np.empty((image.shape[1] // 2, self.mix.shape[1]), np.float32)
        if self.involution:
            passes.involved_rows(
                image, first, last, self.reduce, self.reduce_bias, self.span, self.span_bias,
                self.mix, self.shift, gathered, out,
            )  # fmt: skip
        else:
            passes.convolved_rows(image, first, last, self.mix, self.shift, gathered, out)


class _Run:
    """Buffers of one run of tokens."""

    def __init__(self, tokens: int, block: _Block) -> None:
        width, inner = block.width, block.inner
        self.normal = np.empty((block.reach + tokens, width), np.float32)
        self.split = np.empty((block.reach + tokens, 2 * inner), np.float32)
        self.u = np.empty((tokens, inner), np.float32)
        self.select = np.empty((tokens, _columns(block.select)), np.float32)
        self.mixed = np.empty((tokens, inner), np.float32)
        self.branch = np.empty((tokens, width), np.float32)
        self.hidden = np.empty((tokens, _columns(block.rise)), np.float32)


class _Block:
    """A Mamba block and an MLP block over the tokens of one stage, in place."""

    def __init__(self, stage: Stage) -> None:
        scan: Mamba = stage.scan
        rise, fall = stage.mlp[0], stage.mlp[2]
        self.epsilon = np.float32(stage.norm_scan.eps or 0.0)
        # The weights of a root-mean-square normalisation go into the matrix that follows it.
        self.inwards = packed((as_array(scan.inwards.weight) * as_array(stage.norm_scan.weight)).T)
        self.taps = _stored(as_array(scan.taps).T)
        self.taps_bias = _stored(as_array(scan.taps_bias))
        self.select = packed(_widened(as_array(scan.select.weight).T, 1))
        self.step = _stored(as_array(scan.step.weight).T)
        self.step_bias = _stored(as_array(scan.step.bias))
        self.rates = rate_lanes(-np.exp(as_array(scan.log_rate)))
        self.direct = _stored(as_array(scan.direct))
        self.outwards = packed(as_array(scan.outwards.weight).T)
        self.rise = packed((as_array(rise.weight) * as_array(stage.norm_mlp.weight)).T)
        self.rise_bias = _stored(as_array(rise.bias))
        self.fall = packed(as_array(fall.weight).T)
        self.fall_bias = _stored(as_array(fall.bias))
        self.width, self.inner = self.inwards.shape[1], self.direct.size
        self.way = stage.ways

    @property
    def reach(self) -> int:
        """How many tokens before its own the convolution looks at."""
        return len(self.taps) - 1

    def before_scan(self, tokens: Array, lead: Array, run: _Run) -> None:
        """Everything up to the scan, for a run of tokens and what they were before them."""
        passes.before_scan(
            tokens, lead, self.inwards, self.taps, self.taps_bias, self.select, self.epsilon,
            run.normal, run.split, run.u, run.select,
        )  # fmt: skip

    def scan(self, count: int, state: Array, run: _Run) -> None:
        """Scan a run of tokens from the state that the run before it left."""
        gate = run.split[self.reach : self.reach + count]
        scan_gated(
            run.u[:count], gate, run.select[:count], self.step,
            self.step_bias, self.rates, self.direct, state,
            run.mixed[:count],
        )  # fmt: skip

    def after_scan(self, tokens: Array, run: _Run) -> None:
        """Everything after the scan; changes the tokens."""
        passes.after_scan(
            tokens, run.mixed, self.outwards, self.rise, self.rise_bias, self.fall, self.fall_bias,
            self.epsilon, run.branch, run.normal, run.hidden,
        )  # fmt: skip


class _Head:
    """Fuses the stages and classifies, some rows at a time."""

    def __init__(self, network: GlacierSeg) -> None:
        head = network.head
        matrices, shift = folded_fusion(head)
        self.shares = [packed(matrix.T) for matrix in matrices]
        self.bias = _stored(shift)
        kernel, shift = folded(head.smooth, head.smooth_norm)
        self.smooth_bias = _stored(shift)
        # Lavin and Gray (2016), "Fast Algorithms for Convolutional Neural Networks", F(4, 3).
        side = np.array(
            [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], float
        )
        side /= 24
        transformed = np.einsum("pi,ocij,qj->pqco", side, kernel, side)
        self.smooth = np.stack([packed(m) for m in transformed.reshape(36, *kernel.shape[1::-1])])
        self.classify = packed(_widened(as_array(head.classify.weight)[:, :, 0, 0].T, 1))
        self.classify_bias = _stored(_widened(as_array(head.classify.bias), 0))

    def rows(
        self, fine: Array, coarse: tuple[Array, ...], first: int, last: int, out: Array
    ) -> None:
        """Logits of rows ``first`` to ``last``, whole tiles, into ``(y, x, class)``."""
        width, wide = fine.shape[1], self.bias.size
        ring = np.zeros((passes.RING, width + 2, wide), np.float32)
        line = np.empty((width, wide), np.float32)
        tiles = np.empty((36, width // passes.TILE, wide), np.float32)
        weighed = np.empty_like(tiles)
        rows = np.empty((passes.TILE, width, wide), np.float32)
        passes.classify_rows(
            fine, coarse, first, last, self.shares[0], self.bias, self.smooth, self.smooth_bias,
            self.classify, self.classify_bias, ring, line, tiles, weighed, rows, out,
        )  # fmt: skip


class _Detail:
    """Draws the classes at full resolution, some rows at a time."""

    def __init__(self, layer: Detail) -> None:
        weight, shift = folded(layer.look, layer.look_norm)
        self.look, self.look_bias = _taps(weight), _stored(shift)
        weight, shift = folded(layer.draw, layer.draw_norm)
        self.draw, self.draw_bias = _taps(weight), _stored(shift)
        self.classify = packed(_widened(as_array(layer.classify.weight)[:, :, 0, 0].T, 1))
        self.classify_bias = _stored(as_array(layer.classify.bias))

    def rows(self, image: Array, said: Array, first: int, last: int, out: Array) -> None:
        """Rows ``first`` to ``last`` of the logits, ``(class, y, x)``."""
        width, wide = image.shape[1], self.look_bias.size
        seen = np.empty((width, self.look.shape[1]), np.float32)
        around = np.empty((width, self.draw.shape[1]), np.float32)
        classes = np.empty((width, _columns(self.classify)), np.float32)
        passes.drawn_rows(
            image, said, first, last, self.look, self.look_bias, self.draw, self.draw_bias,
            self.classify, self.classify_bias, np.zeros_like(image[0]),
            np.empty((3, width, wide), np.float32), seen, around,
            np.empty((width, wide), np.float32), classes, out,
        )  # fmt: skip


def unfit(config: GlacierSegConfig) -> str:
    """Say why networks of a shape cannot be run in this form; empty where they can."""
    widths = (*config.widths, config.head_width, config.detail)
    if any(width % WIDTH for width in widths):
        return f"its widths {widths} are not all multiples of {WIDTH}"
    if 2 ** (len(config.widths) - 1) % passes.TILE:
        return f"it has {len(config.widths)} stages, fewer than three"
    several = max(len(ways) for ways in config.ways)
    return f"it scans in {several} directions" if several > 1 else ""


class FusedGlacierSeg:
    """Inference form of a trained network.

    Parameters
    ----------
    network
        In evaluation mode; it is read, not kept.
    threads
        How many threads share the work of one window.

    Raises
    ------
    ValueError
        Where the shape of the network is not one that the kernels were written for.
    """

    def __init__(self, network: GlacierSeg, *, threads: int = 1) -> None:
        self.config = network.config
        obstacle = unfit(self.config)
        if obstacle:
            raise ValueError(f"this network has no compiled inference form: {obstacle}")
        self.threads = threads
        stages = [stage for stage in network.stages if isinstance(stage, Stage)]
        self._embeddings = [_Embedding(stage.embed) for stage in stages]
        self._blocks = [_Block(stage) for stage in stages]
        self._head = _Head(network)
        self._detail = _Detail(network.detail) if network.detail is not None else None
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._one_window = Lock()
        # ^ runs of two windows in one pool would wait for each other

    def __call__(self, window: Array) -> Array:
        """Class logits of one window.

        Parameters
        ----------
        window : ``(channel, y, x)`` float32
            Normalised inputs; both edges a multiple of ``config.stride``.

        Returns
        -------
        ``(class, y, x)`` float32

        Raises
        ------
        ValueError
            Where the window has another number of channels or edges.
        """
        channels, height, width = window.shape
        if (
            channels != self.config.channels
            or height % self.config.stride
            or width % self.config.stride
        ):
            raise ValueError(
                f"windows must be {self.config.channels} channels and multiples of "
                f"{self.config.stride} px, found {window.shape}"
            )
        with self._one_window:
            return self._run(window)

    def _run(self, window: Array) -> Array:
        channels, height, width = window.shape
        image = np.zeros((height, width, -(-channels // WIDTH) * WIDTH), np.float32)
        planes = np.ascontiguousarray(window, np.float32)
        self._rows(lambda a, b: kernels.interleave(planes, a, b, image), height)
        features = [image]
        for embed, block in zip(self._embeddings, self._blocks, strict=True):
            features.append(self._stage(embed, block, features[-1]))
        return self._classified(*features)

    def _each(self, work: Callable[..., None], *arguments: Iterable[Any]) -> None:
        """Do a piece of work for each argument, on all threads."""
        results = (self._pool.map if self._pool else map)(work, *arguments)
        for _ in results:
            pass

    def _rows(self, work: Callable[[int, int], None], count: int, *, whole: int = 1) -> None:
        """Do work on all rows, in as many runs of whole tiles as there are threads."""
        cuts = (np.linspace(0, count // whole, self.threads + 1).astype(int) * whole).tolist()
        self._each(work, cuts[:-1], cuts[1:])

    def _stage(self, embed: _Embedding, block: _Block, image: Array) -> Array:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        out = np.empty((height, width, block.width), np.float32)
        self._rows(lambda a, b: embed.rows(image, a, b, out), height)
        turned = np.ascontiguousarray(_turned(out, block.way))
        self._tokens(block, turned.reshape(-1, block.width))
        return np.ascontiguousarray(_turned(turned, block.way))

    def _tokens(self, block: _Block, tokens: Array) -> None:
        """A whole block, in place, on tokens in the order in which they are scanned."""
        length = max(1, _RUN // block.width)
        pieces = [tokens[i : i + length] for i in range(0, len(tokens), length)]
        # The tokens are overwritten by the time the next run looks back at them.
        ends = [piece[len(piece) - block.reach :].copy() for piece in pieces[:-1]]
        leads = [np.zeros((block.reach, block.width), np.float32), *ends]
        state = np.zeros_like(block.rates)
        turns = [Event() for _ in range(len(pieces) + 1)]
        turns[0].set()

        def let_go() -> None:
            for turn in turns:  # threads must not wait for ever for one that fails
                turn.set()

        def every_nth(first: int) -> None:
            try:
                run = _Run(length, block)
                for i in range(first, len(pieces), self.threads):
                    block.before_scan(pieces[i], leads[i], run)
                    turns[i].wait()
                    block.scan(len(pieces[i]), state, run)
                    turns[i + 1].set()
                    block.after_scan(pieces[i], run)
            except BaseException:
                let_go()
                raise

        try:
            self._each(every_nth, range(self.threads))
        except BaseException:
            let_go()  # also where a thread could not be started
            raise

    def _classified(self, image: Array, fine: Array, *others: Array) -> Array:
        head = self._head
        wide = head.bias.size
        coarse = tuple(np.empty((*image.shape[:2], wide), np.float32) for image in others)

        def enlarge(first: int, last: int, k: int) -> None:
            part, target = others[k][first:last], coarse[k][first:last]
            product(part.reshape(-1, part.shape[2]), head.shares[k + 1], target.reshape(-1, wide))

        for k, coarser in enumerate(others):
            self._rows(partial(enlarge, k=k), len(coarser))
        height, width, _ = fine.shape
        logits = np.empty((height, width, head.classify_bias.size), np.float32)
        self._rows(lambda a, b: head.rows(fine, coarse, a, b, logits), height, whole=passes.TILE)
        out = np.empty((self.config.classes, 2 * height, 2 * width), np.float32)
        if self._detail is None:
            self._rows(lambda a, b: kernels.doubled(logits, a, b, out), height)
        else:
            detail = self._detail
            self._rows(lambda a, b: detail.rows(image, logits, a, b, out), 2 * height)
        return out
