"""Glacier-Seg is the published network, deterministic, and free in its window size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from model_serving.compiled.norm import NumbaRMSNorm
from model_serving.glacier_seg import GlacierSeg, GlacierSegConfig, Head, Involution, Mamba

TURNS = (">", "<", "v", "^")


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_published_parameter_counts_are_met():
    paper = GlacierSeg(GlacierSegConfig(channels=11, classes=1))
    assert count(paper) == 677_077
    assert [count(s) for s in paper.stages] == [5_795, 19_057, 84_416, 322_432]
    assert [count(s.scan) for s in paper.stages] == [3_360, 9_920, 32_640, 116_480]
    assert count(GlacierSeg(GlacierSegConfig(classes=2)).head) == 245_506
    convolutions = GlacierSegConfig(classes=1, embeddings=("convolution",) * 4)
    assert count(GlacierSeg(convolutions)) == 682_369


@pytest.mark.parametrize("size", [(16, 16), (64, 32), (96, 160)])
def test_any_window_of_whole_strides_gives_logits_of_its_own_size(size):
    network = GlacierSeg(GlacierSegConfig(channels=5, classes=3)).eval()
    assert network(torch.randn(2, 5, *size)).shape == (2, 3, *size)


def test_a_window_that_does_not_fit_the_strides_is_named():
    with pytest.raises(ValueError, match="multiples of 16"):
        GlacierSeg()(torch.randn(1, 11, 50, 64))


def test_equal_inputs_give_equal_bytes_alone_or_in_a_batch():
    network = GlacierSeg().eval()
    torch.manual_seed(0)
    x = torch.randn(3, 11, 64, 64)
    with torch.inference_mode():
        assert network(x).numpy().tobytes() == network(x).numpy().tobytes()
        alone = torch.cat([network(part[None]) for part in x])
    assert torch.allclose(network(x), alone, atol=1e-5)


def test_projecting_before_upsampling_equals_the_published_order_of_the_head():
    config = GlacierSegConfig()
    head = Head(config).eval()
    torch.manual_seed(1)
    stages = [torch.randn(1, w, 32 >> k, 32 >> k) for k, w in enumerate(config.widths)]

    def up(x):
        return torch.nn.functional.interpolate(x, (32, 32), mode="bilinear", align_corners=False)

    wide = torch.cat([up(p(x)) for p, x in zip(head.project, stages, strict=True)], dim=1)
    kernel = torch.cat([f.weight for f in head.fuse], dim=1)
    fused = torch.relu(head.fuse_norm(torch.nn.functional.conv2d(wide, kernel)))
    published = head.classify(torch.relu(head.smooth_norm(head.smooth(fused))))
    assert torch.allclose(head(stages), published, atol=1e-5)


def test_involution_equals_its_definition_by_unfolding():
    layer = Involution(8, 12).eval()
    torch.manual_seed(2)
    x = torch.randn(2, 8, 20, 24)
    kernels = layer.span(torch.relu(layer.reduce(torch.nn.functional.avg_pool2d(x, 2))))
    patches = torch.nn.functional.unfold(x, 3, padding=1, stride=2).reshape(2, 8, 9, 10, 12)
    truth = layer.norm(layer.mix((patches * kernels[:, None]).sum(2)))
    assert torch.allclose(layer(x), truth, atol=1e-5)


@pytest.mark.parametrize("channels", [3, 11, 16, 20])
def test_the_compiled_involution_and_its_way_back_are_those_of_torch(channels: int, monkeypatch):
    torch.manual_seed(2)
    layer = Involution(channels, 12)
    x = torch.randn(2, channels, 20, 24, requires_grad=True)
    inputs, towards = [x, *layer.parameters()], torch.randn(2, 12, 10, 12)

    def halved():
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, inputs, towards)]

    found, again = halved(), halved()
    monkeypatch.setattr("model_serving.glacier_seg.available_backends", lambda: ("torch",))
    for one, twice, other in zip(found, again, halved(), strict=True):
        assert torch.equal(one, twice)
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-4)


def test_a_pixel_depends_on_rows_above_but_the_scan_never_on_tokens_below():
    scan = GlacierSeg().stages[0].scan.eval()
    torch.manual_seed(3)
    x = torch.randn(1, 50, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(scan(x)[0, 20].sum(), x)
    assert gradient[0, 21:].abs().max() == 0
    assert gradient[0, :21].abs().max(dim=1).values.min() > 0


@pytest.mark.parametrize(
    ("directions", "sees"), [(1, False), (2, True), (4, True), (TURNS, True), (("<",) * 4, True)]
)
def test_more_directions_see_what_lies_below_with_the_same_parameters(directions, sees):
    torch.manual_seed(3)
    network = GlacierSeg(GlacierSegConfig(directions=directions)).eval()
    assert count(network) == count(GlacierSeg())
    x = torch.randn(1, 11, 160, 64)
    changed = x.clone()
    changed[:, :, 128:] += 1
    with torch.inference_mode():
        difference = (network(x) - network(changed)).abs().amax(dim=(0, 1, 3))
    assert bool((difference[:32] > 0).any()) is sees
    assert (difference[128:] > 0).all()


def test_every_pixel_sees_the_whole_window_where_the_stages_take_turns():
    torch.manual_seed(6)
    network = GlacierSeg(GlacierSegConfig(directions=TURNS)).eval()
    x = torch.randn(1, 11, 96, 96)
    corners = [(0, 0), (0, -1), (-1, 0), (-1, -1)]
    with torch.inference_mode():
        before = network(x)
        for row, col in corners:
            changed = x.clone()
            changed[:, :, row, col] += 5
            difference = (network(changed) - before).abs().amax(dim=(0, 1))
            assert all(difference[corner] > 0 for corner in corners)


def test_down_the_columns_is_along_the_rows_of_the_transposed_image_and_back_is_from_its_end():
    def mixed(ways, image):
        torch.manual_seed(7)
        config = GlacierSegConfig(directions=(ways,) * 4)
        return GlacierSeg(config).stages[0]._scanned(image, "auto").reshape(image.shape)

    image = torch.randn(2, 6, 10, 16)
    along = mixed(">", image)
    turned = image.transpose(1, 2).contiguous()
    assert torch.allclose(mixed("v", turned).transpose(1, 2), along, atol=1e-6)
    assert torch.allclose(mixed("<", image.flip(1, 2)).flip(1, 2), along, atol=1e-6)
    assert torch.allclose(
        mixed("^", turned.flip(1, 2)).flip(1, 2).transpose(1, 2), along, atol=1e-6
    )
    assert torch.allclose(mixed("v<", image), (mixed("v", image) + mixed("<", image)) / 2)


@pytest.mark.parametrize(
    "directions", [3, 0, (), (">",) * 3, (">", "<", "v", "x"), (">", "<", "v", ""), (">>",) * 4]
)
def test_ways_that_are_none_are_named(directions):
    with pytest.raises(ValueError, match="directions"):
        GlacierSegConfig(directions=directions)


def test_a_card_written_before_networks_drew_details_is_the_published_form():
    old = GlacierSegConfig().to_dict()
    del old["detail"]
    assert GlacierSegConfig.from_dict(json.loads(json.dumps(old))) == GlacierSegConfig()
    new = GlacierSegConfig(directions=TURNS, detail=16, head_width=96)
    assert GlacierSegConfig.from_dict(json.loads(json.dumps(new.to_dict()))) == new


@pytest.mark.parametrize(("detail", "least", "most"), [(0, 0.0, 0.8), (16, 0.95, 1.0)])
def test_only_a_detail_tells_pixels_of_one_square_of_two_apart(detail, least, most):
    torch.manual_seed(9)
    network = GlacierSeg(GlacierSegConfig(channels=2, classes=2, drop_path=0.0, detail=detail))
    x = torch.randn(2, 2, 64, 64)
    labels = (x[:, 0] > 0).long()
    optimiser = torch.optim.AdamW(network.parameters(), 5e-3)
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = (network(x).argmax(dim=1) == labels).float().mean().item()
    assert least <= found <= most


def test_one_direction_reaches_no_more_than_thirty_pixels_down():
    torch.manual_seed(4)
    network = GlacierSeg().eval()
    x = torch.randn(1, 11, 128, 64)
    with torch.inference_mode():
        before = network(x)
        for row in range(64, 80):
            changed = x.clone()
            changed[:, :, row] += torch.randn(11, 64)
            difference = (network(changed) - before).abs().amax(dim=(0, 1, 3))
            assert (difference[: row - 30] == 0).all()


def test_training_reduces_the_loss_on_one_window():
    torch.manual_seed(4)
    network = GlacierSeg(GlacierSegConfig(channels=3, classes=2, drop_path=0.0))
    x = torch.nn.functional.interpolate(torch.randn(2, 3, 4, 4), (32, 32), mode="bilinear")
    labels = (x[:, 0] > 0).long()
    optimiser = torch.optim.AdamW(network.parameters(), 5e-3)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_the_network_imports_with_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'numba', 'rasterio', 'zarr', 'dask', 'xarray'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import model_serving.selective_scan as s\n"
        "s.available_backends = lambda: ('torch',)\n"
        "import torch\n"
        "from model_serving.glacier_seg import GlacierSeg\n"
        "assert GlacierSeg().eval()(torch.randn(1, 11, 32, 32)).isfinite().all()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_head_in_training_is_projection_normalisation_and_fusion_one_after_the_other():
    torch.manual_seed(2)
    config = GlacierSegConfig()
    head, plain = Head(config), Head(config)
    plain.load_state_dict(head.state_dict())
    stages = [3 + torch.randn(2, w, 16 >> k, 16 >> k) for k, w in enumerate(config.widths)]

    def up(x):
        return torch.nn.functional.interpolate(x, (16, 16), mode="bilinear", align_corners=False)

    parts = (up(f(p(x))) for x, p, f in zip(stages, plain.project, plain.fuse, strict=True))
    fused = torch.relu(plain.fuse_norm(sum(parts)))
    wanted = plain.classify(torch.relu(plain.smooth_norm(plain.smooth(fused))))
    found = head(stages)
    assert torch.allclose(found, wanted, atol=1e-5)
    for (name, one), other in zip(head.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), name
    found.square().sum().backward()
    wanted.square().sum().backward()
    for (name, one), other in zip(head.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=2e-2), name


@pytest.mark.parametrize(("width", "length"), [(16, 1), (16, 70), (48, 33)])
def test_the_compiled_mixer_and_its_way_back_are_those_of_torch(width: int, length: int):
    torch.manual_seed(3)
    mixer = Mamba(width, GlacierSegConfig())
    x = torch.randn(2, length, width, requires_grad=True)
    towards = torch.randn(2, length, width)
    inputs = [x, *mixer.parameters()]

    def mixed(backend):
        y = mixer(x, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, inputs, towards)]

    found, wanted = mixed("numba"), mixed("torch")
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()) + 1e-7)
    again = mixed("numba")
    assert all(
        a.numpy().tobytes() == b.numpy().tobytes() for a, b in zip(found, again, strict=True)
    )


@pytest.mark.parametrize("channels", [16, 48])
def test_the_compiled_normalisation_and_its_way_back_are_those_of_torch(channels: int):
    torch.manual_seed(4)
    norm = torch.nn.RMSNorm(channels, eps=1e-6)
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(1, channels, 7, requires_grad=True).transpose(1, 2)
    found, wanted = NumbaRMSNorm.apply(x, norm.weight, norm.eps), norm(x)
    assert torch.allclose(found, wanted, atol=1e-6)
    towards = torch.randn_like(x)
    ways = (torch.autograd.grad(y, (x, norm.weight), towards) for y in (found, wanted))
    for one, other in zip(*ways, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
