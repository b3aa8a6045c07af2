"""Peers are the networks and classifiers of their papers, at any number of channels and classes."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog.errors import DataError, UsageError
from model_serving.benchmark_costs import parameters
from model_serving.metrics import RATIO_THRESHOLDS, iou, ratio_masks
from model_serving.networks import build_network
from model_serving.peers import PEERS, build_peer
from model_serving.peers.indices import INDICES, IndexClassifier
from model_serving.peers.pixels import PIXEL_CLASSIFIERS, build_pixel_classifier


def absent(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def need(*packages: str) -> None:
    if absent(*packages):
        pytest.skip(f"{', '.join(absent(*packages))} not installed (extra `peers`)")


def built(name: str, *, channels: int = 11, classes: int = 4, **options: object) -> torch.nn.Module:
    need(*PEERS[name].needs)
    torch.manual_seed(0)
    return build_peer(name, channels=channels, classes=classes, **options)


# Parameters with the channels and classes of the source that states them. Those of the library are
# of segmentation-models-pytorch 0.6 with 3 channels and 1 class; SegFormer-B0's are of the weights
# published for ADE20K (paper: 3.8 M). At 11 channels and 4 classes: measured.
PUBLISHED = {
    "unet": (3, 1, 7_763_041),
    "unet-resnet34": (3, 1, 24_436_369),
    "unet-vgg19": (3, 1, 29_057_937),
    "unet-resnet50": (3, 1, 32_521_105),
    "unet-efficientnet-b3": (3, 1, 13_159_033),
    "deeplabv3plus-resnet34": (3, 1, 22_437_457),
    "deeplabv3plus-resnet50": (3, 1, 26_677_585),
    "segformer-b0": (3, 150, 3_752_694),
}
OURS = {
    "unet": 7_765_444,
    "unet-resnet34": 24_461_892,
    "unet-vgg19": 29_062_980,
    "unet-resnet50": 32_546_628,
    "unet-efficientnet-b3": 13_162_348,
    "deeplabv3plus-resnet34": 22_463_316,
    "deeplabv3plus-resnet50": 26_703_444,
    "segformer-b0": 3_727_716,
    "vision-mamba": 12_034_564,
    "glavitu": 10_530_570,
}


def test_every_peer_is_looked_at_here():
    assert set(OURS) == set(PEERS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_peer_has_as_many_parameters_as_its_source_says(name: str):
    channels, classes, count = PUBLISHED[name]
    assert parameters(built(name, channels=channels, classes=classes)) == count


@pytest.mark.parametrize("name", OURS)
def test_a_peer_has_as_many_parameters_as_were_measured(name: str):
    assert parameters(built(name)) == OURS[name]


def test_the_unet_at_the_widths_of_its_paper_has_31_million_parameters():
    wide = built("unet", channels=1, classes=2, widths=(64, 128, 256, 512, 1024))
    assert parameters(wide) == pytest.approx(31.0e6, rel=0.01)


def test_vision_mamba_has_the_parameters_of_the_papers_tiny_form():
    """Vim-Ti: 7,148,008 with its class token (and its place) and a classifier of 1000 classes."""
    encoder = built("vision-mamba", channels=3).encoder
    classifier, token_and_place = 192 * 1000 + 1000, 2 * 192
    assert parameters(encoder) + classifier + token_and_place == 7_148_008


def test_glavitu_is_about_as_large_as_its_paper_says():
    """About a third of a ResU-Net and a tenth of SETR-B/16: 10 M."""
    assert parameters(built("glavitu")) == pytest.approx(10.0e6, rel=0.06)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gives_finite_logits_and_gradients_at_any_multiple_of_32(name: str):
    network = built(name)
    x = torch.randn(2, 11, 96, 64, generator=torch.Generator().manual_seed(1))
    logits = network(x)
    assert logits.shape == (2, 4, 96, 64)
    assert torch.isfinite(logits).all()
    logits.square().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    reached = sum(g.numel() for g in gradients) / parameters(network)
    assert reached > 0.85  # EfficientNet-B3 has a last convolution that a U-Net does not use


@pytest.mark.parametrize("name", ["unet", "segformer-b0", "vision-mamba", "glavitu"])
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (6, 4)])
def test_a_peer_takes_other_channels_and_classes(name: str, channels: int, classes: int):
    network = built(name, channels=channels, classes=classes).eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, channels, 32, 64)).shape == (1, classes, 32, 64)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_starts_from_the_weights_that_the_seed_gives(name: str):
    one, two = built(name), built(name)
    torch.manual_seed(1)
    other = build_peer(name, channels=11, classes=4)
    equal = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)]
    assert all(equal)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert not all(same)


@pytest.mark.parametrize("name", ["vision-mamba", "glavitu"])
def test_a_peer_with_wide_context_sees_the_far_corner_of_its_window(name: str):
    network = built(name).eval()
    x = torch.zeros(1, 11, 64, 64)
    changed = x.clone()
    changed[..., -16:, -16:] = 3.0
    with torch.inference_mode():
        moved = (network(changed) - network(x)).abs()[..., :8, :8].amax()
    assert moved > 1e-5


def test_scans_of_vision_mamba_run_in_float32_under_autocast():
    network = built("vision-mamba", depth=4).eval()
    x = torch.randn(1, 11, 64, 64)
    with torch.inference_mode():
        exact = network.encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            told: list[torch.Tensor] = []
            network.encoder.register_forward_hook(lambda _m, _x, maps: told.extend(maps))
            logits = network(x)
    assert all(torch.equal(a, b) for a, b in zip(exact, told, strict=True))
    assert torch.isfinite(logits).all()


def test_glavitu_looks_at_each_source_of_data_by_itself():
    assert built("glavitu").split == [6, 2, 3]
    assert built("glavitu", channels=8).split == [8]
    assert built("glavitu", channels=8, sources=(6, 2)).split == [6, 2]
    with pytest.raises(UsageError, match=r"sources of \[6, 3\] channels do not make 8"):
        built("glavitu", channels=8, sources=(6, 3))


def test_networks_are_built_by_name_wherever_they_come_from():
    need("transformers")
    assert parameters(build_network("segformer-b0", channels=11, classes=4)) == OURS["segformer-b0"]


def test_an_unknown_peer_or_option_is_refused():
    with pytest.raises(UsageError, match="there is no peer 'unet-99'; known are unet, "):
        build_peer("unet-99", channels=11, classes=4)
    with pytest.raises(UsageError, match=r"unet cannot have these options: .*colour"):
        build_peer("unet", channels=11, classes=4, colour="blue")


@pytest.mark.parametrize("name", ["unet-resnet34", "deeplabv3plus-resnet50"])
def test_a_peer_whose_library_is_missing_says_how_to_get_it(name: str):
    if not absent(*PEERS[name].needs):
        pytest.skip("its library is installed")
    with pytest.raises(UsageError, match=r"pip install 'glacier-inventory-engine\[peers\]'"):
        build_peer(name, channels=11, classes=4)


# --- pixel classifiers ---


def toy(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels whose class lies in red and SWIR1 (ice), blue (water) and slope (debris or not)."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(4, count, p=(0.5, 0.25, 0.15, 0.1)).astype(np.uint8)
    light = np.full((count, 6), 0.2)
    light[labels == 1] = (0.6, 0.6, 0.6, 0.5, 0.08, 0.06)
    light[labels == 3] = (0.08, 0.06, 0.04, 0.02, 0.05, 0.01)
    features = np.full((count, 11), np.nan, np.float32)
    features[:, :6] = np.sqrt(np.maximum(light + rng.normal(0, 0.01, light.shape), 0))
    features[:, 8] = np.where(labels == 2, 5, 30) + rng.normal(0, 3, count)
    features[rng.random(count) < 0.02, 8] = np.nan
    return features, labels


@pytest.mark.parametrize("name", PIXEL_CLASSIFIERS)
def test_a_pixel_classifier_learns_what_a_pixel_can_tell(name: str):
    if name not in INDICES:
        need("sklearn")
    model = build_pixel_classifier(name)
    model.fit(*toy(4000, 0), np.random.default_rng(0))
    features, labels = toy(2000, 1)
    probability = model.predict(features)
    assert probability.shape == (2000, 4)
    assert probability.dtype == np.float32
    assert probability.sum(axis=1) == pytest.approx(1, abs=1e-5)
    found = probability.argmax(axis=1)
    if name in INDICES:  # which know clean ice and not ice only
        assert iou(found == 1, labels == 1) > 0.95
        assert not np.isin(found, (2, 3)).any()
    else:
        assert (found == labels).mean() > 0.95


@pytest.mark.parametrize("name", ["random-forest", "gradient-boosting", "mlp"])
def test_equal_generators_make_equal_classifiers(name: str):
    need("sklearn")
    features, labels = toy(1500, 0)
    told = []
    for _ in range(2):
        model = build_pixel_classifier(name)
        model.fit(features, labels, np.random.default_rng(5))
        told.append(model.predict(features))
    assert (told[0] == told[1]).all()


def test_a_class_without_pixels_gets_no_probability_and_keeps_its_place():
    need("sklearn")
    features, labels = toy(2000, 0)
    model = build_pixel_classifier("random-forest")
    model.fit(features[labels != 2], labels[labels != 2], np.random.default_rng(0))
    probability = model.predict(features)
    assert (probability[:, 2] == 0).all()
    assert (probability[labels == 3].argmax(axis=1) == 3).mean() > 0.95


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 300))
def test_the_band_ratio_finds_the_threshold_that_trying_all_finds(seed: int, count: int):
    rng = np.random.default_rng(seed)
    features = rng.uniform(0, 1, (count, 11)).astype(np.float32)
    features[rng.random(count) < 0.1, :6] = np.nan
    labels = rng.integers(0, 4, count).astype(np.uint8)
    seen = np.isfinite(features[:, 0])
    truth = np.isin(labels, (1, 2))[seen]
    model = IndexClassifier(INDICES["band-ratio"])
    if not truth.any():
        with pytest.raises(DataError, match="without glacier"):
            model.fit(features, labels, rng)
        return
    model.fit(features, labels, rng)
    red, swir = (features[seen, k].astype(np.float64) ** 2 for k in (2, 4))
    tried = [iou(mask, truth) for mask in ratio_masks(red, swir)]
    assert tried[RATIO_THRESHOLDS.index(model.threshold)] == max(tried)


def test_ndsi_is_that_of_reflectances_not_of_their_roots():
    """Green 0.6 and SWIR1 0.2 make 0.5; their roots would make 0.27."""
    features = np.sqrt(np.tile([[0.6, 0.6, 0.6, 0.5, 0.2, 0.1, 1, 1, 1, 1, 1]], (2, 1)))
    features[1, 4] = np.sqrt(0.21)
    model = IndexClassifier(INDICES["ndsi"])
    model.threshold = 0.49
    assert model.predict(features)[:, 1].tolist() == [1.0, 0.0]


def test_what_was_not_seen_is_no_glacier_to_an_index():
    model = IndexClassifier(INDICES["band-ratio"])
    model.fit(*toy(1000, 0), np.random.default_rng(0))
    assert model.predict(np.full((1, 11), np.nan))[0].tolist() == [1.0, 0.0, 0.0, 0.0]


def test_unknown_classifiers_and_pixels_of_one_class_are_refused():
    with pytest.raises(UsageError, match="there is no pixel classifier 'svm'"):
        build_pixel_classifier("svm")
    need("sklearn")
    features, labels = toy(100, 0)
    with pytest.raises(DataError, match="nothing can be told apart among 100 pixels"):
        build_pixel_classifier("mlp").fit(features, labels * 0, np.random.default_rng(0))
