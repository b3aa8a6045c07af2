"""Exported networks say what torch says, in onnxruntime and in OpenVINO, in standard operators."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalog.errors import UsageError
from model_serving.ensemble import CARD, Member, load_ensemble
from model_serving.export import OPSET, export, to_onnx
from model_serving.features import raw_features
from model_serving.fused import FusedGlacierSeg
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.networks import FORMS
from model_serving.onnx_runtimes import OnnxRuntime, OpenVino

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
openvino = pytest.importorskip("openvino")

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("INVENTORY_ENGINE_TEST_DATA", ROOT.parent / "shared" / "data"))
KHUMBU = DATA / "khumbu"
SEASONS = ("winter", "spring", "summer", "autumn")
TOLERANCE = 1e-5
# ^ largest difference of a logit, in units of the largest logit of the window
SIZES = ((16, 16), (32, 96), (48, 80), (64, 64), (80, 32), (96, 96))
# ^ the tokens of some fill whole chunks of the scan, those of others do not
RUNTIMES = {"onnxruntime": OnnxRuntime, "OpenVINO": OpenVino}

pytestmark = pytest.mark.skipif(
    not (ROOT / "model_serving" / "weights" / "default" / CARD).exists(),
    reason="the default ensemble is not trained yet",
)


def in_torch(network: GlacierSeg, window: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(window)[None])[0].numpy()


def furthest(found: np.ndarray, truth: np.ndarray) -> float:
    """Largest difference of a logit, in units of the largest logit."""
    assert found.shape == truth.shape
    assert found.dtype == np.float32
    assert np.isfinite(truth).all()
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def made_up_windows(count: int, channels: int) -> list[np.ndarray]:
    """Windows of mixed sizes: noise, smooth ground, dead channels, nothing at all."""
    draws = np.random.default_rng(0)
    windows = []
    for i in range(count):
        height, width = SIZES[i % len(SIZES)]
        window = draws.normal(0, 1.5, (channels, height, width))
        if i % 3 == 1:
            window = np.repeat(np.repeat(window[:, ::16, ::16], 16, axis=1), 16, axis=2)
        if i % 4 == 2:
            window[draws.random(channels) < 0.5] = 0
        windows.append(np.clip(window, -6, 6).astype(np.float32))
    windows[-1][:] = 0
    return windows


def untrained(config: GlacierSegConfig, seed: int = 0) -> GlacierSeg:
    """A network in which every normalisation has statistics and weights of its own."""
    torch.manual_seed(seed)
    network = GlacierSeg(config)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d | torch.nn.RMSNorm):
            torch.nn.init.uniform_(layer.weight, 0.5, 2)
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.bias)
            torch.nn.init.normal_(layer.running_mean)
            torch.nn.init.uniform_(layer.running_var, 0.3, 3)
    return network.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small windows are not worth a second thread, least of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def member() -> Member:
    return load_ensemble().members[0]


@pytest.fixture(scope="module")
def trained(member: Member) -> GlacierSeg:
    return load_ensemble().network(member)


@pytest.fixture(scope="module")
def model(trained: GlacierSeg) -> Any:
    return to_onnx(trained)


@pytest.fixture(scope="module")
def quantised(trained: GlacierSeg, tmp_path_factory: pytest.TempPathFactory) -> Path:
    windows = np.stack([w for w in made_up_windows(24, 11) if w.shape[1:] == (64, 64)])
    return export(
        trained, tmp_path_factory.mktemp("int8") / "m.onnx", precision="int8", windows=windows
    )


def all_nodes(graph: Any) -> Iterator[Any]:
    """Operators of a graph and of the graphs inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


@pytest.fixture(scope="module")
def hundred(trained: GlacierSeg) -> list[tuple[np.ndarray, np.ndarray]]:
    """A hundred windows of mixed sizes, and what torch says of them."""
    return [(window, in_torch(trained, window)) for window in made_up_windows(100, 11)]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_hundred_windows_of_mixed_sizes_have_the_logits_of_torch(
    runtime: str,
    model: Any,
    hundred: list[tuple[np.ndarray, np.ndarray]],
    record_property: Callable[[str, object], None],
):
    run = RUNTIMES[runtime](model.SerializeToString(), threads=1)
    found = [run(window) for window, _ in hundred]
    worst = max(furthest(y, truth) for y, (_, truth) in zip(found, hundred, strict=True))
    record_property(f"export in {runtime}", f"100 windows, {worst:.1e} of the largest logit")
    assert worst < TOLERANCE


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_window_of_many_chunks_has_the_logits_of_torch(
    runtime: str, trained: GlacierSeg, model: Any
):
    window = np.random.default_rng(1).normal(size=(11, 256, 320)).astype(np.float32)
    run = RUNTIMES[runtime](model.SerializeToString(), threads=2)
    assert furthest(run(window), in_torch(trained, window)) < TOLERANCE


CONFIGS = {
    "one class, convolutions": GlacierSegConfig(
        channels=4, classes=1, embeddings=("convolution",) * 4
    ),
    "more channels and classes": GlacierSegConfig(channels=13, classes=7),
    "involutions everywhere": GlacierSegConfig(channels=3, embeddings=("involution",) * 4),
    "three narrow stages": GlacierSegConfig(
        channels=6, widths=(8, 24, 40), embeddings=("convolution", "involution", "convolution")
    ),
    "another scan": GlacierSegConfig(state=8, expand=1, kernel=3, mlp_ratio=2, head_width=48),
    "there and back": GlacierSegConfig(channels=5, directions=2),
    "four ways": GlacierSegConfig(channels=5, directions=4),
    "improved": GlacierSegConfig(**FORMS["glacier-seg"]),
    "each stage its ways": GlacierSegConfig(channels=5, directions=("<", "v", "^", "v<"), detail=8),
}


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_networks_of_other_shapes_have_the_logits_of_torch(config: GlacierSegConfig, runtime: str):
    network = untrained(config)
    run = RUNTIMES[runtime](to_onnx(network).SerializeToString(), threads=1)
    for window in made_up_windows(4, config.channels):
        assert furthest(run(window), in_torch(network, window)) < TOLERANCE


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("bias", [-80.0, 80.0])
def test_a_state_that_never_fades_or_fades_at_once_stays_finite(runtime: str, bias: float):
    network = untrained(GlacierSegConfig(channels=3))
    with torch.no_grad():
        for stage in network.stages:
            stage.scan.step.bias.fill_(bias)
    window = np.random.default_rng(2).normal(size=(3, 96, 96)).astype(np.float32)
    run = RUNTIMES[runtime](to_onnx(network).SerializeToString(), threads=1)
    assert furthest(run(window), in_torch(network, window)) < TOLERANCE


def test_two_windows_together_are_what_they_are_alone(model: Any):
    windows = np.random.default_rng(3).normal(size=(2, 11, 48, 80)).astype(np.float32)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    free = core.compile_model(core.read_model(data), "CPU", settings)
    for together, alone in (
        (session.run(None, {"window": windows})[0], OnnxRuntime(data, threads=1)),
        (free([windows])[0], OpenVino(data, threads=1)),
    ):
        for window, found in zip(windows, together, strict=True):
            assert furthest(np.asarray(found), alone(window)) < 0.1 * TOLERANCE


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_equal_windows_give_equal_bytes_whatever_ran_between(
    runtime: str, threads: int, model: Any
):
    run = RUNTIMES[runtime](model.SerializeToString(), threads=threads)
    first, second = made_up_windows(10, 11)[3::6]
    assert first.shape == second.shape == (11, 64, 64)
    answer = run(first)
    before = answer.tobytes()
    assert run(second).tobytes() != before
    assert answer.tobytes() == before
    assert run(first).tobytes() == before


def test_the_model_is_made_of_standard_operators(model: Any):
    onnx.checker.check_model(model, full_check=True)
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", OPSET)}
    assert not model.functions
    assert {node.domain for node in all_nodes(model.graph)} == {""}


def test_the_model_is_as_small_as_its_weights(trained: GlacierSeg, tmp_path: Path):
    path = export(trained, tmp_path / "member.onnx")
    assert path.stat().st_size < 3e6
    held = onnx.load(path).graph.initializer
    assert len({(t.data_type, tuple(t.dims), t.raw_data) for t in held}) == len(held)
    floats = sum(int(np.prod(t.dims)) for t in held if t.data_type == onnx.TensorProto.FLOAT)
    assert floats < sum(p.numel() for p in trained.parameters())


def test_the_model_says_what_it_takes_and_gives(member: Member, trained: GlacierSeg):
    model = to_onnx(trained, channels=member.channels, classes=member.classes, window_px=320)
    assert {entry.key: entry.value for entry in model.metadata_props} == {
        "channels": ",".join(member.channels),
        "classes": ",".join(member.classes),
        "window_px": "320",
        "stride": "16",
    }
    (window,), (logits,) = model.graph.input, model.graph.output
    for value, name, layers in ((window, "window", 11), (logits, "logits", 4)):
        assert value.name == name
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        assert dims == ["batch", layers, "y", "x"]


def test_an_export_replaces_the_file_and_leaves_nothing_beside_it(
    trained: GlacierSeg, tmp_path: Path
):
    path = tmp_path / "new" / "member.onnx"
    assert export(trained, path) == path
    first = path.read_bytes()
    path.write_bytes(b"")
    export(trained, str(path))
    assert path.read_bytes() == first
    assert list(path.parent.iterdir()) == [path]


def test_the_network_is_left_as_it_was():
    network = untrained(GlacierSegConfig(channels=3)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    to_onnx(network)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_bfloat16_in_openvino_changes_few_pixels(
    model: Any,
    hundred: list[tuple[np.ndarray, np.ndarray]],
    record_property: Callable[[str, object], None],
):
    run = OpenVino(model.SerializeToString(), threads=1, precision="bfloat16")
    equal = [(run(window).argmax(0) == truth.argmax(0)).mean() for window, truth in hundred[:12]]
    record_property("bfloat16 in OpenVINO", f"equal pixels of made-up windows {np.mean(equal):.4f}")
    assert np.mean(equal) > 0.99


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_eight_bits_are_a_quarter_of_the_size_and_change_few_pixels(
    runtime: str,
    quantised: Path,
    hundred: list[tuple[np.ndarray, np.ndarray]],
    record_property: Callable[[str, object], None],
):
    data = quantised.read_bytes()
    assert len(data) < 0.9e6
    run = RUNTIMES[runtime](data, threads=1)
    equal = [(run(window).argmax(0) == truth.argmax(0)).mean() for window, truth in hundred[:12]]
    record_property(f"int8 in {runtime}", f"equal pixels of made-up windows {np.mean(equal):.4f}")
    assert np.mean(equal) > 0.9


def test_eight_bits_are_standard_operators_and_leave_the_scan_in_float(quantised: Path):
    model = onnx.load(quantised)
    onnx.checker.check_model(model)
    assert {node.domain for node in all_nodes(model.graph)} == {""}
    kinds = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Scan"} <= kinds
    made = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert made[node.input[0]].op_type == "DequantizeLinear"
        if node.op_type == "Scan":
            inside = next(a.g for a in node.attribute if a.name == "body")
            assert not {n.op_type for n in all_nodes(inside)} & {"DequantizeLinear"}


ONE = np.zeros((1, 11, 32, 32), np.float32)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"precision": "bfloat16"}, "export-precision", "INFERENCE_PRECISION_HINT"),
        ({"precision": "int8"}, "export-windows", "give some"),
        ({"precision": "int8", "windows": ONE[0]}, "export-windows", "found"),
        ({"precision": "int8", "windows": ONE[:0]}, "export-windows", "found"),
        ({"precision": "int8", "windows": ONE[:, :7]}, "export-windows", r"\(n, 11, y, x\)"),
        ({"precision": "int8", "windows": ONE[..., :24]}, "export-windows", "multiples of 16"),
        ({"precision": "int8", "windows": ONE.astype(float)}, "export-windows", "float64"),
        ({"precision": "int8", "windows": ONE * np.nan}, "export-windows", "not finite"),
        ({"channels": ["red"]}, "export-mismatch", "11 channels, found 1 names: red"),
        ({"classes": list("abc")}, "export-mismatch", "4 classes, found 3"),
    ],
)
def test_what_cannot_be_exported_is_named_and_writes_nothing(
    options: dict[str, Any], kind: str, told: str, trained: GlacierSeg, tmp_path: Path
):
    with pytest.raises(UsageError, match=told) as error:
        export(trained, tmp_path / "member.onnx", **options)
    assert error.value.kind == kind
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_what_to_install(
    trained: GlacierSeg, model: Any, monkeypatch: pytest.MonkeyPatch
):
    data = model.SerializeToString()
    for name, run in (("onnxruntime", OnnxRuntime), ("openvino", OpenVino)):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(UsageError, match=f"{name}.*pip install .*onnx") as error:
                run(data, threads=1)
            assert error.value.kind == "runtime-missing"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'glacier-inventory-engine\[onnx\]'"):
        to_onnx(trained)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_broken_model_is_named(runtime: str, model: Any):
    with pytest.raises(UsageError, match="cannot read the model") as error:
        RUNTIMES[runtime](model.SerializeToString()[:5000], threads=1)
    assert error.value.kind == "weights-damaged"


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_window_that_does_not_fit_is_named_and_never_gets_the_answer_of_another(
    runtime: str, threads: int, model: Any
):
    run = RUNTIMES[runtime](model.SerializeToString(), threads=threads)
    fitting = np.ones((11, 64, 64), np.float32)
    before = run(fitting).tobytes()
    for shape in ((10, 64, 64), (11, 56, 64), (11, 50, 64), (64, 64)):
        with pytest.raises(UsageError, match="takes no window of") as error:
            run(np.ones(shape, np.float32))
        assert error.value.kind == "runtime-window"
    assert run(fitting).tobytes() == before


def test_the_modules_are_imported_without_the_optional_packages():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'onnx', 'onnxruntime', 'onnxscript', 'openvino'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import model_serving.export, model_serving.onnx_runtimes\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.real_data
@pytest.mark.skipif(not KHUMBU.is_dir(), reason=f"no real data in {DATA}")
@pytest.mark.parametrize("runtime", [*RUNTIMES, "fused"])
def test_windows_of_real_scenes_have_the_logits_of_torch(
    runtime: str,
    member: Member,
    trained: GlacierSeg,
    model: Any,
    record_property: Callable[[str, object], None],
):
    run: Any = FusedGlacierSeg(trained)
    if runtime != "fused":
        run = RUNTIMES[runtime](model.SerializeToString(), threads=1)
    differences, equal = [], []
    for season in SEASONS:
        scene = member.normalisation.apply(khumbu(season))
        assert scene[:6].std() > 0.1
        assert not scene[6:].any()
        for row, col in ((0, 0), (0, 96), (96, 0), (96, 96)):
            window = np.ascontiguousarray(scene[:, row : row + 160, col : col + 160])
            truth = in_torch(trained, window)
            found = run(window)
            differences.append(np.abs(found - truth).max())
            equal.append((found.argmax(0) == truth.argmax(0)).mean())
    record_property(
        f"Khumbu in {runtime}",
        f"{len(equal)} windows, largest difference of a logit {max(differences):.1e}, "
        f"equal pixels {np.mean(equal):.6f}",
    )
    assert max(differences) < 1e-4
    assert np.mean(equal) > 0.999


def khumbu(season: str) -> np.ndarray:
    """Physical channels of a real scene: optical ones, the others missing."""
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(KHUMBU / f"s2_{season}_2024.tif") as source:
        reflectance = source.read()
    stored = np.clip(np.rint(reflectance * 10000) + 1000, 1, 65535).astype(np.uint16)
    return raw_features(stored, None, None)
