"""A runtime is chosen once; people may bring networks of their own, with a card."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ensembles import write_ensemble

from catalog.cube import CLASSES
from catalog.errors import UsageError
from inventory_engine.doctor import examination_table, examine, machine_facts
from model_serving.ensemble import CARD, export_ensemble, load_ensemble
from model_serving.folds import OUTSIDE
from model_serving.glacier_seg import GlacierSegConfig
from model_serving.onnx_members import engine_probabilities
from model_serving.runtimes import RUNTIMES, TorchPredictor, choose_runtime, missing

GPU = torch.cuda.is_available()
HERE = [name for name in RUNTIMES if not missing(name) and (GPU or name != "cuda")]
NEEDS_GPU = pytest.mark.skipif(not GPU, reason="needs a GPU")


def test_auto_takes_the_compiled_form_and_torch_where_that_cannot_run():
    assert choose_runtime(config=GlacierSegConfig()).name == "fused"
    narrow = GlacierSegConfig(widths=(8, 16, 32, 64))
    assert choose_runtime(config=narrow).name == "torch"
    assert choose_runtime(config=GlacierSegConfig(directions=4)).name == "torch"


@pytest.mark.parametrize(
    ("name", "keywords", "says"),
    [
        ("fast", {}, "no runtime 'fast'; known are auto, fused"),
        ("fused", {"config": GlacierSegConfig(directions=2)}, "scans in 2 directions"),
        ("fused", {"config": GlacierSegConfig(widths=(8, 16, 32, 64))}, "multiples of 16"),
        ("fused", {"precision": "bfloat16"}, "float32 only"),
        pytest.param(
            "cuda", {}, "needs a GPU", marks=pytest.mark.skipif(GPU, reason="there is a GPU")
        ),
    ],
)
def test_what_cannot_run_is_named(name, keywords, says):
    with pytest.raises(UsageError, match=says):
        choose_runtime(name, **{"config": GlacierSegConfig(), **keywords})


@pytest.mark.parametrize("name", HERE)
def test_every_runtime_gives_the_same_map(name, tmp_path):
    ensemble = load_ensemble(write_ensemble(tmp_path, folds=1, seeds=1))
    member = ensemble.members[0]
    window = np.random.default_rng(0).normal(size=(11, 64, 48)).astype(np.float32)
    truth = ensemble.predictor(member, choose_runtime("torch", config=ensemble.config))(window)
    runtime = choose_runtime(name, config=ensemble.config)
    found = ensemble.predictor(member, runtime)(window)
    assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
    again = ensemble.predictor(member, runtime)(window)
    assert again.tobytes() == found.tobytes()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_half_precision_in_the_head_changes_few_pixels(device):
    ensemble = load_ensemble()
    coarse = torch.randn(11, 9, 9, generator=torch.Generator().manual_seed(2))
    window = torch.nn.functional.interpolate(coarse[None], (320, 320), mode="bicubic")[0].numpy()
    network = ensemble.network(ensemble.members[0])
    truth = TorchPredictor(network, threads=1, device="cpu", precision="float32")(window)
    half = TorchPredictor(network, threads=1, device=device, precision="bfloat16")(window)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - truth).max() < 0.05 * np.abs(truth).max()
    assert (half.argmax(axis=0) == truth.argmax(axis=0)).mean() > 0.999


def test_the_identity_of_a_map_tells_runtimes_and_threads_apart():
    def of(name, **keywords):
        return choose_runtime(name, config=GlacierSegConfig(), **keywords).fingerprint()

    assert of("torch") != of("torch", threads=2)
    assert of("fused") == of("fused", threads=2)  # the same bytes, whatever the number
    assert of("fused") != of("torch")


def test_probabilities_of_other_classes_become_those_of_the_engine():
    output = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    found = engine_probabilities(output, ("water", "ice", "other"), logits=True)
    truth = torch.from_numpy(output).softmax(dim=0).numpy()
    assert np.allclose(found[CLASSES.index("water")], truth[0])
    assert np.allclose(found[CLASSES.index("clean ice")], truth[1])
    assert np.allclose(found[CLASSES.index("background")], truth[2])
    assert (found[CLASSES.index("debris-covered ice")] == 0).all()
    alone = engine_probabilities(output[:1], ("glacier",), logits=True)
    assert np.allclose(alone[1], 1 / (1 + np.exp(-output[0])))
    assert np.allclose(alone.sum(axis=0), 1)


# --- networks that people bring -------------------------------------------------------------------


def brought(folder, *, channels=("green", "swir1"), classes=("other", "ice"), **entry):
    """An ensemble of one foreign model: a 1 x 1 convolution that looks at the NDSI's two bands."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.zeros((len(classes), len(channels), 1, 1), np.float32)
    weight[-1, 0], weight[-1, -1] = 4, -4
    edges = entry.pop("edges", ["y", "x"])
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["scores"])],
        "ndsi",
        [helper.make_tensor_value_info("image", kind, ["n", len(channels), *edges])],
        [helper.make_tensor_value_info("scores", kind, ["n", len(classes), *edges])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    data = entry.pop("data", model.SerializeToString())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ndsi.onnx").write_bytes(data)
    card = {
        "format": 1,
        "name": "brought",
        "channels": load_ensemble().card["channels"],
        "classes": list(CLASSES),
        "window_px": 128,
        "members": [
            {
                "name": "ndsi",
                "file": "ndsi.onnx",
                "sha256": hashlib.sha256(data).hexdigest(),
                "channels": list(channels),
                "classes": list(classes),
                "mean": [0.5] * len(channels),
                "std": [0.2] * len(channels),
                "fold": None,
                **entry,
            }
        ],
        "regions": [],
        "area_calibration": {"scale": 1.0, "regional_scale": 1.0},
    }
    (folder / CARD).write_text(json.dumps(card))
    return folder


def test_a_brought_network_maps_with_its_own_bands_and_classes(tmp_path):
    ensemble = load_ensemble(brought(tmp_path))
    runtime = choose_runtime(config=ensemble.config)
    assert runtime.name == "onnx"
    assert "onnxruntime" in runtime.fingerprint(brings_onnx=True)
    (member,) = ensemble.members
    scores = ensemble.predictor(member, runtime)(np.ones((2, 32, 32), np.float32))
    assert scores.shape == (2, 32, 32)


def test_a_brought_network_stands_beside_ours_in_one_ensemble(tmp_path):
    folder = write_ensemble(tmp_path / "ours")
    guest = json.loads((brought(tmp_path / "guest") / CARD).read_text())["members"][0]
    (folder / "ndsi.onnx").write_bytes((tmp_path / "guest" / "ndsi.onnx").read_bytes())
    card = json.loads((folder / CARD).read_text())
    card["members"].append(guest | {"fold": [0, 1]})
    (folder / CARD).write_text(json.dumps(card))
    ensemble = load_ensemble(folder)
    assert ensemble.brings_onnx
    folds = np.array([[OUTSIDE, 0, 1, 2]], np.int16)
    votes = ensemble.may_vote(folds)
    assert votes[-1].tolist() == [[True, True, True, False]]
    assert votes[0].tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"channels": ("green", "thermal")}, "channels .* are not some of"),
        ({"channels": ("green", "green")}, "channels .* are not some of"),
        ({"classes": ("other", "snow")}, "with an ice class among them"),
        ({"mean": [0.5]}, "mean and std need 2 values"),
        ({"output": "guesses"}, "guesses"),
        ({"file": "../ndsi.onnx"}, "must be a .safetensors or .onnx file in the folder"),
        ({"edges": [64, 64]}, r"the card asks for \(1, 2, 128, 128\)"),
        ({"data": b"cos\nsystem\n(S'true'\ntR."}, "no valid ONNX model"),
        ({"sha256": "0" * 64}, "not the file its card describes"),
    ],
)
def test_a_brought_network_that_is_not_what_its_card_says_is_refused(tmp_path, changes, says):
    with pytest.raises(UsageError, match=says):
        load_ensemble(brought(tmp_path, **changes))


@pytest.mark.parametrize("name", [n for n in ("onnx", "openvino") if n in HERE])
def test_an_exported_ensemble_is_an_ensemble_and_maps_the_same(name, tmp_path):
    ensemble = load_ensemble(write_ensemble(tmp_path / "ours", folds=2, seeds=1))
    counted = []
    files = export_ensemble(ensemble, tmp_path / "out", progress=lambda *c: counted.append(c))
    assert [f.name for f in files] == ["member-f0-s0.onnx", "member-f1-s0.onnx"]
    assert counted == [("members", 1, 2), ("members", 2, 2)]
    exported = load_ensemble(tmp_path / "out")
    assert exported.config is None
    window = np.random.default_rng(2).normal(size=(11, 128, 128)).astype(np.float32)
    for ours, theirs in zip(ensemble.members, exported.members, strict=True):
        assert (ours.folds, ours.normalisation) == (theirs.folds, theirs.normalisation)
        truth = ensemble.predictor(ours, choose_runtime(config=ensemble.config))(window)
        runtime = choose_runtime(name, config=exported.config)
        found = exported.predictor(theirs, runtime)(window)
        assert np.abs(found - truth).max() < 1e-4 * np.abs(truth).max()
    again = export_ensemble(load_ensemble(tmp_path / "out"), tmp_path / "copy")
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in files]


def test_the_doctor_gives_a_brought_network_the_windows_that_it_takes(tmp_path):
    checks = {check.name: check for check in examine(str(brought(tmp_path, edges=[128, 128])))}
    assert [c.name for c in checks.values() if c.chosen] == ["onnx"]
    assert checks["onnx"].difference == 0
    assert "it is an ONNX model" in checks["fused"].note


def test_a_machine_without_numba_maps_in_torch(tmp_path):
    code = (
        "import sys\n"
        "sys.modules |= {'numba': None, 'llvmlite': None}\n"
        "import numpy as np\n"
        "from model_serving.ensemble import load_ensemble\n"
        "from model_serving.runtimes import choose_runtime\n"
        f"ensemble = load_ensemble({str(write_ensemble(tmp_path / 'ensemble'))!r})\n"
        "runtime = choose_runtime(config=ensemble.config)\n"
        "scores = ensemble.predictor(ensemble.members[0], runtime)(np.zeros((11, 64, 64), 'f4'))\n"
        "print(runtime.name, np.isfinite(scores).all(), runtime.fingerprint()['scan'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["torch", "True", "torch"], done.stderr


def test_the_doctor_tries_what_it_recommends():
    checks = {check.name: check for check in examine()}
    assert set(checks) == set(RUNTIMES)
    assert [c.name for c in checks.values() if c.chosen] == ["fused"]
    for name in HERE:
        assert checks[name].milliseconds > 0
        assert checks[name].difference < 1e-4
    for name in set(RUNTIMES) - set(HERE):
        assert checks[name].note.startswith(("not installed", "runtime cuda needs a GPU"))
    assert examination_table(list(checks.values())).row_count == len(RUNTIMES)
    assert machine_facts()["numba"]
