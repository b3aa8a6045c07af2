"""Nothing that lies in an ensemble's folder is run, and no NaN of a tile gets into its map.

An ensemble that is not what its card says is refused with a named error before it maps a pixel.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ensembles import write_ensemble
from safetensors.torch import load, save

from catalog.cube import NOT_SEEN, TERRAIN_BANDS, Workspace, create_layer, read_shard, write_shard
from catalog.errors import UsageError
from catalog.grid import region_grid
from model_serving.ensemble import CARD, load_ensemble, pack_member, unpack_member
from model_serving.features import CHANNELS, GROUPS, Normalisation, raw_features
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.inference import ShardMapper, create_map, map_features
from model_serving.patches import WindowPlan
from model_serving.runtimes import choose_runtime

WEIGHTS = "member-f0-s0.safetensors"
OTHER = "member-f0-s1.safetensors"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_ensemble(tmp_path_factory.mktemp("pristine"), folds=1, seeds=2, window_px=96)


@pytest.fixture
def folder(pristine, tmp_path):
    return Path(shutil.copytree(pristine, tmp_path / "ensemble"))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def rewrite_card(folder, change):
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def replace_weights(folder, data, *, believed):
    """Put a file in the place of weights; believed: the card names its checksum."""
    (folder / WEIGHTS).write_bytes(data)
    if believed:
        rewrite_card(folder, lambda card: card["members"][0].update(sha256=sha256(data)))


def load_whole(folder):
    """Everything that is read of an ensemble before it maps."""
    ensemble = load_ensemble(folder)
    runtime = choose_runtime(config=ensemble.config)
    return [ensemble.predictor(member, runtime) for member in ensemble.members]


# --- Hostile files ---------------------------------------------------------------------------


class Gadget:
    """Pickles as a call, which whoever unpickles it makes."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def gadget(kind, marker):
    script = marker.with_suffix(".py")
    script.write_text(f"open({str(marker)!r}, 'w').close()")
    code = script.read_text()
    return {
        "os.system": lambda: Gadget(os.system, f"touch '{marker}'"),
        "subprocess": lambda: Gadget(subprocess.check_call, ["touch", str(marker)]),
        "eval": lambda: Gadget(eval, code),
        "exec": lambda: Gadget(exec, code),
        "method": lambda: Gadget(Path.touch, marker),
        "script": lambda: Gadget(runpy.run_path, str(script)),
    }[kind]()


GADGETS = ["os.system", "subprocess", "eval", "exec", "method", "script"]


def as_pickle(hostile):
    return pickle.dumps({"stages.0.embed.mix.weight": hostile})


def as_checkpoint(hostile):
    buffer = io.BytesIO()
    torch.save({"stages.0.embed.mix.weight": hostile}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", GADGETS)
def test_the_gadgets_bite_whoever_unpickles_them(kind, tmp_path):
    marker = tmp_path / "marker"
    pickle.loads(as_pickle(gadget(kind, marker)))
    assert marker.exists()
    marker.unlink()
    torch.load(io.BytesIO(as_checkpoint(gadget(kind, marker))), weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("kind", GADGETS)
@pytest.mark.parametrize("disguise", [as_pickle, as_checkpoint])
@pytest.mark.parametrize("place", ["weights", "weights and checksum", "card", "beside"])
def test_a_pickle_in_an_ensemble_is_never_run(kind, disguise, place, folder, tmp_path):
    marker = tmp_path / "marker"
    data = disguise(gadget(kind, marker))
    if place == "card":
        (folder / CARD).write_bytes(data)
    elif place == "beside":
        for name in ("model.pt", "pytorch_model.bin", "card.pkl", "member-f0-s0.pt"):
            (folder / name).write_bytes(data)
    else:
        replace_weights(folder, data, believed="checksum" in place)
    if place == "beside":
        assert len(load_whole(folder)) == 2
    else:
        with pytest.raises(UsageError) as caught:
            load_whole(folder)
        kinds = {
            "card": "ensemble-missing",
            "weights": "weights-mismatch",
            "weights and checksum": "weights-damaged",
        }
        assert caught.value.kind == kinds[place]
    assert not marker.exists()


@pytest.mark.parametrize("kind", GADGETS)
def test_a_pickle_in_the_place_of_an_onnx_model_is_never_run(kind, folder, tmp_path):
    pytest.importorskip("onnx")
    marker = tmp_path / "marker"
    data = as_checkpoint(gadget(kind, marker))
    (folder / "brought.onnx").write_bytes(data)

    def bring(card):
        card["members"][0].update(file="brought.onnx", sha256=sha256(data))

    rewrite_card(folder, bring)
    with pytest.raises(UsageError, match="no valid ONNX model"):
        load_whole(folder)
    assert not marker.exists()


def header_of(entries):
    header = json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header


def entry(shape, offsets, dtype="F16"):
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        (2**63).to_bytes(8, "little") + b"{}",
        (100).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
        header_of([]),
        header_of(entry([4], [0, 8])),  # the file ends before its data
        header_of(entry([4], [8, 0])) + bytes(8),
        header_of(entry([2**62, 2**62], [0, 8])) + bytes(8),
        header_of(entry([-4], [0, 8])) + bytes(8),
        header_of(entry([4], [0, 8], "object")) + bytes(8),
        header_of(entry([4], [0, 8]) | {"b": entry([4], [0, 8])["a"]}) + bytes(8),  # overlap
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_a_lying_weights_file_is_refused_even_if_the_card_vouches_for_it(folder, data):
    replace_weights(folder, data, believed=True)
    with pytest.raises(UsageError) as caught:
        load_whole(folder)
    assert caught.value.kind in {"weights-damaged", "weights-mismatch"}


def test_a_card_cannot_point_outside_its_folder(folder):
    (folder.parent / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    for name in (f"../{WEIGHTS}", str(folder.parent / WEIGHTS), f"..\\..\\x/{WEIGHTS}"):
        stem = name.removesuffix(".safetensors")
        rewrite_card(folder, lambda card, stem=stem: card["members"][0].update(name=stem))
        with pytest.raises(UsageError, match="in the folder"):
            load_ensemble(folder)


# --- Damage and disagreement -----------------------------------------------------------------


def flipped(folder, rng):
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    replace_weights(folder, bytes(data), believed=False)
    return [WEIGHTS, sha256(bytes(data))[:12]]


def truncated(folder, rng):
    data = (folder / WEIGHTS).read_bytes()
    data = data[: rng.randrange(len(data))]
    replace_weights(folder, data, believed=False)
    return [WEIGHTS, sha256(data)[:12]]


def exchanged(folder, rng):
    data = (folder / OTHER).read_bytes()
    replace_weights(folder, data, believed=False)
    return [WEIGHTS, sha256(data)[:12]]


def wrong_checksum(folder, rng):
    digest = sha256((folder / WEIGHTS).read_bytes())
    at = rng.randrange(12)
    wrong = digest[:at] + rng.choice([c for c in "0123456789abcdef" if c != digest[at]])
    wrong += digest[at + 1 :]
    rewrite_card(folder, lambda card: card["members"][0].update(sha256=wrong))
    return [WEIGHTS, wrong[:12]]


def some_tensor(folder, rng):
    tensors = load((folder / WEIGHTS).read_bytes())
    return tensors, rng.choice(sorted(tensors))


def missing_tensor(folder, rng):
    tensors, name = some_tensor(folder, rng)
    del tensors[name]
    replace_weights(folder, save(tensors), believed=True)
    return ["missing", name]


def extra_tensor(folder, rng):
    tensors, name = some_tensor(folder, rng)
    tensors[f"{name}.more"] = torch.zeros(3)
    replace_weights(folder, save(tensors), believed=True)
    return ["unknown", f"{name}.more"]


def other_shape(folder, rng):
    tensors, name = some_tensor(folder, rng)
    tensors[name] = torch.zeros(*tensors[name].shape, 2)
    replace_weights(folder, save(tensors), believed=True)
    return ["size mismatch", name]


def reordered(key):
    def change(folder, rng):
        def shuffle(card):
            before = list(card[key])
            while card[key] == before:
                rng.shuffle(card[key])

        rewrite_card(folder, shuffle)
        return [CARD, f"{key} is", "this engine expects"]

    return change


def other_names(key):
    def change(folder, rng):
        def rename(card):
            at = rng.randrange(len(card[key]))
            card[key][at : at + rng.choice([0, 1])] = ["thermal"]

        rewrite_card(folder, rename)
        return [CARD, f"{key} is", "thermal"]

    return change


def other_network(folder, rng):
    key, value = rng.choice(
        [("state", 8), ("kernel", 3), ("expand", 1), ("classes", 2), ("channels", 8)]
    )
    rewrite_card(folder, lambda card: card["network"].update({key: value}))
    return ["do not fit the network", "size mismatch"]


def lacking(folder, rng):
    key = rng.choice(["name", "network", "window_px", "regions", "area_calibration", "members"])
    rewrite_card(folder, lambda card: card.pop(key))
    return [CARD, f"lacks {key}"]


def lacking_of_a_member(folder, rng):
    key = rng.choice(["name", "fold", "mean", "std", "sha256"])
    rewrite_card(folder, lambda card: card["members"][1].pop(key))
    return [CARD, key]


FAULTS = [
    flipped,
    truncated,
    exchanged,
    wrong_checksum,
    missing_tensor,
    extra_tensor,
    other_shape,
    reordered("channels"),
    reordered("classes"),
    other_names("channels"),
    other_names("classes"),
    other_network,
    lacking,
    lacking_of_a_member,
]


@pytest.mark.parametrize("seed", range(70))
def test_an_ensemble_that_is_not_what_its_card_says_is_refused_and_told_why(seed, folder):
    words = FAULTS[seed % len(FAULTS)](folder, random.Random(seed))
    with pytest.raises(UsageError) as caught:
        load_whole(folder)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.kind in {"weights-mismatch", "weights-damaged", "ensemble-mismatch"}


def member(**values):
    return lambda card: card["members"][0].update(values)


def whole(**values):
    return lambda card: card.update(values)


def network(**values):
    return lambda card: card["network"].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (member(mean=[float("nan")] * 11), "mean and std must be finite"),
        (member(std=[0.0] * 11), "std positive"),
        (member(std=["x"] * 11), "could not convert"),
        (member(orientation=3), "orientation 3"),
        (member(ice_offset=float("nan")), "ice_offset nan"),
        (member(ice_offset=1e9), "ice_offset 1000000000"),
        (member(fold="12"), "no whole number"),
        (lambda card: card["members"].append(card["members"][0]), "must not vote twice"),
        (lambda card: card["members"].append(card["members"][0] | {"name": "new"}), "vote twice"),
        (whole(window_px=100), "multiple of 16"),
        (whole(window_px=64), "more than 64"),
        (whole(window_px=0), "more than 64"),
        (whole(members=5), "no list of objects"),
        (whole(members=[1]), "no list of objects"),
        (whole(area_calibration={"scale": float("inf"), "regional_scale": 1}), "positive factors"),
        (network(widths=[10**9] * 4), "size mismatch|no network of the shape"),
        (network(widths=[]), "no network of the shape"),
        (network(kernel=0), "no network of the shape"),
        (network(expand=2.5), "no network of the shape"),
        (network(directions=3), "directions 3"),
    ],
)
def test_a_card_of_impossible_numbers_is_refused_before_any_work(folder, change, words):
    rewrite_card(folder, change)
    with pytest.raises(UsageError, match=words):
        load_ensemble(folder)


def test_a_card_nested_beyond_reason_is_refused(folder):
    (folder / CARD).write_text('{"a":' * 100_000)
    with pytest.raises(UsageError, match="no ensemble at"):
        load_ensemble(folder)


@pytest.mark.parametrize("seed", range(6))
def test_weights_that_do_not_fit_are_found_out_before_any_work(seed, folder):
    words = (missing_tensor, extra_tensor, other_shape)[seed % 3](folder, random.Random(seed))
    with pytest.raises(UsageError) as caught:
        load_ensemble(folder)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("head.project.3.1.running_var", float("inf")),
        ("head.project.3.1.running_var", -1.0),
        ("stages.0.embed.mix.weight", float("nan")),
        ("stages.3.scan.log_rate", float("-inf")),
    ],
)
def test_numbers_that_no_training_leaves_behind_are_refused(folder, name, value):
    tensors = load((folder / WEIGHTS).read_bytes())
    tensors[name].view(-1)[-1] = value
    replace_weights(folder, save(tensors), believed=True)
    with pytest.raises(UsageError, match=f"damaged: {name}") as caught:
        load_ensemble(folder)
    assert caught.value.kind == "weights-damaged"


def test_a_variance_beyond_half_precision_survives_being_stored():
    torch.manual_seed(0)
    network = GlacierSeg(GlacierSegConfig()).eval()
    norm = network.head.project[3][1]
    norm.running_var.fill_(1e6)
    norm.weight.data.fill_(1e3)
    again = unpack_member(pack_member(network), network.config)
    assert torch.equal(again.head.project[3][1].running_var, norm.running_var)


def test_what_lies_outside_the_card_changes_nothing(folder):
    before = load_ensemble(folder).fingerprint
    (folder / "notes.txt").write_text("trained on a Monday")
    assert load_ensemble(folder).fingerprint == before
    assert len(load_whole(folder)) == 2


# --- Hostile tiles ---------------------------------------------------------------------------

WINDOW = 96
ABOVE = 32
# ^ rows above a pixel that its value can reach: convolutions and upsampling of tokens of 16 pixels


@pytest.fixture(scope="module")
def mapped(pristine):
    """Maps raw features by the first member, in windows of a given stride."""
    ensemble = load_ensemble(pristine)
    member = ensemble.members[0]
    predict = ensemble.predictor(member, choose_runtime(config=ensemble.config))

    def run(raw, stride=WINDOW):
        return map_features(predict, raw, member, plan=WindowPlan(WINDOW, stride))

    run.normalisation = member.normalisation
    return run


def stored_tile(rng, size=WINDOW):
    """Smooth random layers as they are stored: reflectance, backscatter, terrain."""

    def smooth(low, high, bands, dtype):
        coarse = rng.uniform(low, high, (bands, size // 8, size // 8))
        return np.kron(coarse, np.ones((8, 8))).astype(dtype)

    return (
        smooth(1000, 11_000, 6, np.uint16),
        smooth(20_000, 60_000, 2, np.uint16),
        smooth(-50, 60, len(TERRAIN_BANDS), np.float32),
    )


def holes(layers, rng):
    gone = rng.random(layers[0].shape[-2:]) < rng.uniform(0.01, 0.99)
    for layer in layers:
        layer[:, gone] = np.nan if layer.dtype.kind == "f" else 0


def all_gone(layers, rng):
    for layer in layers:
        layer[:] = np.nan if layer.dtype.kind == "f" else 0


def one_pixel_left(layers, rng):
    kept = [layer[:, 5, 7].copy() for layer in layers]
    all_gone(layers, rng)
    for layer, value in zip(layers, kept, strict=True):
        layer[:, 5, 7] = value


def overflown(layers, rng):
    where = rng.random(layers[0].shape[-2:]) < rng.uniform(0.01, 1)
    for layer in layers[:2]:
        layer[:, where] = 65_535
    layers[2][:, where] = rng.choice([-3.4e38, 3.4e38, -9999, 1e30])


def infinite_terrain(layers, rng):
    where = rng.random(layers[0].shape[-2:]) < 0.2
    layers[2][rng.integers(len(layers[2])), where] = np.inf
    layers[2][rng.integers(len(layers[2])), where] = -np.inf
    layers[2][rng.integers(len(layers[2])), ~where] = np.nan


def constant(layers, rng):
    for layer in layers:
        layer[:] = rng.integers(1, 60_000)


def one_band_gone(layers, rng):
    layers[0][rng.integers(6), rng.random(layers[0].shape[-2:]) < 0.5] = 0


TILE_FAULTS = [
    holes, all_gone, one_pixel_left, overflown, infinite_terrain, constant, one_band_gone,
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(100))
def test_a_hostile_tile_gives_finite_probabilities_and_missing_counts_as_the_mean(seed, mapped):
    rng = np.random.default_rng(seed)
    layers = stored_tile(rng)
    TILE_FAULTS[seed % len(TILE_FAULTS)](layers, rng)
    raw = raw_features(*layers)
    seen = (layers[0] > 0).all(axis=0)
    assert (np.isnan(raw[GROUPS["optical"]]) == ~seen).all()
    inputs = mapped.normalisation.apply(raw)
    assert np.isfinite(inputs).all()
    assert not np.isinf(raw).any()
    assert (inputs[np.isnan(raw)] == 0).all()
    probability = mapped(raw)
    assert np.isfinite(probability).all()
    assert probability.min() >= 0
    total = probability.sum(axis=0)
    assert np.allclose(total, 1 if seen.any() else 0, atol=1e-5)
    # What is missing enters as the mean of the training: filling it in changes no byte.
    mean = np.asarray(mapped.normalisation.mean, np.float32)[:, None, None]
    filled = np.where(np.isnan(raw), mean, raw).astype(np.float32)
    if seen.any():
        assert mapped(filled).tobytes() == probability.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("seed", range(3))
def test_a_bad_pixel_changes_only_what_its_windows_scan_after_it(seed, value, mapped):
    rng = np.random.default_rng(seed)
    raw = raw_features(*stored_tile(rng, 2 * WINDOW))
    row, column = rng.integers(ABOVE + 8, WINDOW - 8, 2)
    damaged = raw.copy()
    damaged[:, row, column] = value
    before, after = mapped(raw), mapped(damaged)
    assert np.isfinite(after).all()
    changed = (before != after).any(axis=0)
    # Windows here do not overlap: the pixel is in the first, and all others keep their bytes.
    assert not changed[WINDOW:].any()
    assert not changed[:, WINDOW:].any()
    # The scan goes from the first row to the last: what lies well above the pixel is the same.
    assert not changed[: row - ABOVE].any()
    assert changed[row, column]


def test_windows_that_overlap_keep_a_bad_pixel_to_those_that_hold_it(mapped):
    raw = raw_features(*stored_tile(np.random.default_rng(0), 2 * WINDOW))
    damaged = raw.copy()
    damaged[:, 10, 10] = np.nan
    changed = (mapped(raw, stride=32) != mapped(damaged, stride=32)).any(axis=0)
    assert changed[10, 10]
    assert not changed[WINDOW:].any()
    assert not changed[:, WINDOW:].any()


def test_not_a_number_is_never_an_input_of_a_normalisation():
    samples = np.full((len(CHANNELS), 50), np.nan, np.float32)
    samples[:, :20] = np.linspace(0, 1, 20)
    norm = Normalisation.measured(samples)
    assert np.isfinite([norm.mean, norm.std]).all()
    constant_channel = Normalisation.measured(np.ones((len(CHANNELS), 5), np.float32))
    raw = np.full((len(CHANNELS), 2, 2), 1e30, np.float32)
    assert np.isfinite(constant_channel.apply(raw)).all()


def test_a_map_of_hostile_shards_says_not_seen_exactly_where_nothing_was(tmp_path):
    season = "2024"
    folder = write_ensemble(tmp_path / "ensemble", folds=1, seeds=3, window_px=96)
    grid = region_grid([10.0, 10.05], [46.0, 46.03], resolution_m=20, shard_px=64, chunk_px=64)
    shards = list(grid.shards())
    workspace = Workspace(tmp_path / "workspace")
    names = [f"cube.zarr/{season}/optical", f"cube.zarr/{season}/sar", "cube.zarr/terrain"]
    for name in names:
        create_layer(workspace, name, grid)
    for seed, shard in enumerate(shards):
        rng = np.random.default_rng(seed)
        layers = stored_tile(rng, 64)
        TILE_FAULTS[seed % len(TILE_FAULTS)](layers, rng)
        for name, values in zip(names, layers, strict=True):
            write_shard(workspace, name, shard, values)
    create_map(workspace, season, grid)
    mapper = ShardMapper(workspace, load_ensemble(folder))
    assert len(shards) >= len(TILE_FAULTS)
    for shard in shards:
        mapper.map(season, shard)
        seen = (read_shard(workspace, names[0], shard) > 0).all(axis=0)

        def layer(name, shard=shard):
            return read_shard(workspace, f"map.zarr/{season}/{name}", shard)

        probability, spread = layer("probability"), layer("spread")
        assert ((probability == NOT_SEEN) == ~seen).all()
        assert (np.abs(probability[:, seen].astype(int).sum(axis=0) - 254) <= 2).all()
        assert ((spread == NOT_SEEN) == ~seen).all()
        assert (layer("voters") == np.where(seen, 0b111, 0)).all()
        assert (layer("votes") & ~layer("voters") == 0).all()


def test_a_hostile_folder_is_refused_by_the_command_line_without_a_traceback(small, tmp_path):
    folder = Path(shutil.copytree(small.ensemble, tmp_path / "ensemble"))
    marker = tmp_path / "marker"
    weights = sorted(folder.glob("*.safetensors"))[0]
    weights.write_bytes(as_checkpoint(gadget("exec", marker)))
    settings = small.settings(tmp_path / "run", model={"ensemble": str(folder)})
    done = subprocess.run(
        [sys.executable, "-m", "inventory_engine.cli", "run", str(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode not in (0, 1)
    assert "not the file its card describes" in " ".join(told.split())
    assert "Traceback" not in told
    assert not marker.exists()
