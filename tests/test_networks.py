"""Networks are built by name; the published form stays what it is, the improved one is as small."""

from __future__ import annotations

import pytest
import torch

from catalog.errors import UsageError
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig
from model_serving.networks import FORMS, build_network
from model_serving.runtimes import choose_runtime


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_logits_of_the_size_of_its_input(name):
    network = build_network(name, channels=5, classes=3).eval()
    assert isinstance(network, GlacierSeg)
    assert network(torch.randn(2, 5, 32, 48)).shape == (2, 3, 32, 48)


def test_the_published_form_is_the_default_shape_and_the_improved_one_no_larger():
    paper = build_network("glacier-seg-paper", channels=11, classes=1)
    assert paper.config == GlacierSegConfig(channels=11, classes=1)
    assert count(paper) == 677_077
    assert count(build_network("glacier-seg", channels=11, classes=4)) < 750_000


def test_the_improved_form_runs_compiled():
    config = build_network("glacier-seg", channels=11, classes=4).config
    assert choose_runtime(config=config).name == "fused"


def test_equal_random_states_give_equal_weights():
    def made():
        torch.manual_seed(3)
        return build_network("glacier-seg", channels=4, classes=2).state_dict()

    first, second = made(), made()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_options_go_before_those_of_the_form():
    network = build_network("glacier-seg", channels=11, classes=4, detail=32, drop_path=0.0)
    assert (network.config.detail, network.config.drop_path) == (32, 0.0)
    assert network.config.directions == FORMS["glacier-seg"]["directions"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"depth": 50}, "no option depth; known are channels"),
        ({"directions": 3}, "directions 3 are none of 1, 2 and 4"),
        ({"widths": (16, 32)}, "for each of 2 stages"),
    ],
)
def test_options_that_it_cannot_have_are_named(options, says):
    with pytest.raises(UsageError, match=says) as caught:
        build_network("glacier-seg", channels=11, classes=4, **options)
    assert caught.value.kind == "network-unfit"


def test_a_name_that_is_none_is_refused_with_the_nearest_that_is():
    pytest.importorskip("model_serving.peers")
    with pytest.raises(UsageError, match=r"'glacierseg' \(did you mean glacier-seg\?\)") as caught:
        build_network("glacierseg", channels=11, classes=4)
    assert caught.value.kind == "network-unknown"
