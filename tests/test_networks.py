"""The papers' networks against the tables of the papers."""

import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab import networks
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.networks import build, convolutional, stackable

GREY, COLOR = (1, 28, 28), (3, 32, 32)

# name, images, classes, total, weights, biases, gains and shifts of batch normalization (paper-spec, section 1.1)
COUNTS = [
    ("ne-f1", GREY, 10, 1_900_510, 1_897_000, 3_510, 0),
    ("ne-c1", COLOR, 10, 1_962_314, 1_959_616, 10, 2_688),
    ("ne-c2", COLOR, 100, 7_663_012, 7_657_152, 1_124, 4_736),
    ("smoothout-f1", GREY, 10, 1_462_794, 1_455_104, 2_570, 5_120),
    ("smoothout-c1", COLOR, 10, 1_388_490, 1_387_072, 10, 1_408),
    ("smoothout-c3", COLOR, 100, 1_405_860, 1_404_352, 100, 1_408),
    ("resnet44", COLOR, 10, 661_338, 657_968, 10, 3_360),
    ("resnet44", COLOR, 100, 667_188, 663_728, 100, 3_360),
]


# ------------------------------------------------------------------------------------------------- the architectures


@pytest.mark.parametrize(("name", "shape", "classes", "total", "weights", "biases", "norm"), COUNTS)
def test_parameter_counts_are_those_of_the_table(name, shape, classes, total, weights, biases, norm) -> None:
    count = {"weight": 0, "bias": 0, "norm": 0}
    model = build(name, shape, classes)
    for layer in model.modules():
        for key, p in layer.named_parameters(recurse=False):
            kind = "norm" if isinstance(layer, GhostBatchNorm) else key
            count[kind] += p.numel()
    assert count == {"weight": weights, "bias": biases, "norm": norm}
    assert sum(p.numel() for p in model.parameters()) == total


def vgg_stack(convolutions: int, width: int, side: int) -> list[tuple[str, tuple[int, ...]]]:
    block = [(kind, (width, side, side)) for kind in ("Conv2d", "GhostBatchNorm", "ReLU")]
    return [*(convolutions * block), ("MaxPool2d", (width, side // 2, side // 2))]


NE_STACKS = [*vgg_stack(3, 64, 32), *vgg_stack(3, 128, 16), *vgg_stack(3, 256, 8)]
LAYERS = {  # paper-spec, sections 1.3 and 1.4
    "ne-c1": [*NE_STACKS, ("Flatten", (4096,)), ("Linear", (10,))],
    "ne-c2": [
        *NE_STACKS,
        *vgg_stack(2, 512, 4),
        ("Flatten", (2048,)),
        ("Linear", (1024,)),
        ("ReLU", (1024,)),
        ("Linear", (10,)),
    ],
    "smoothout-c1": [
        ("Conv2d", (64, 32, 32)),
        ("MaxPool2d", (64, 15, 15)),
        ("GhostBatchNorm", (64, 15, 15)),
        ("ReLU", (64, 15, 15)),
        ("Conv2d", (64, 15, 15)),
        ("MaxPool2d", (64, 7, 7)),
        ("GhostBatchNorm", (64, 7, 7)),
        ("ReLU", (64, 7, 7)),
        ("Flatten", (3136,)),
        *[(kind, (384,)) for kind in ("Linear", "GhostBatchNorm", "ReLU", "Dropout")],
        *[(kind, (192,)) for kind in ("Linear", "GhostBatchNorm", "ReLU", "Dropout")],
        ("Linear", (10,)),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_output_shapes_are_those_of_the_table(name) -> None:
    x = torch.zeros(2, *COLOR)
    seen = []
    for layer in build(name, COLOR, 10).eval():
        x = layer(x)
        seen.append((type(layer).__name__, tuple(x.shape[1:])))
    assert seen == LAYERS[name]


@pytest.mark.parametrize(("name", "kernel", "padding"), [("ne-c1", 3, 1), ("ne-c2", 3, 1), ("smoothout-c1", 5, 2)])
def test_convolutions_have_the_papers_kernels_and_no_bias(name, kernel, padding) -> None:
    for layer in build(name, COLOR, 10):
        if isinstance(layer, nn.Conv2d):
            assert layer.kernel_size == (kernel, kernel)
            assert layer.padding == (padding, padding)
            assert layer.stride == (1, 1)
            assert layer.bias is None


@pytest.mark.parametrize(
    ("name", "published"), [("ne-c1", 100), ("ne-c2", 100), ("smoothout-c1", 128), ("resnet44", 128)]
)
@pytest.mark.parametrize("asked", [None, 32])
def test_ghost_batches_are_the_published_ones_unless_asked_for(name, published, asked) -> None:
    model = build(name, COLOR, 10, group_size=asked, minibatches=2)
    norms = [m for m in model.modules() if isinstance(m, GhostBatchNorm)]
    assert {(m.group_size, m.minibatches) for m in norms} == {(asked or published, 2)}
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_every_name_has_a_description_and_a_specification() -> None:
    assert list(NETWORKS) == [*networks._SPECIFICATIONS, "resnet44"]


@pytest.mark.parametrize("name", ["ne-c1", "ne-c2", "smoothout-c1", "smoothout-c3"])
def test_too_small_images_are_refused(name) -> None:
    with pytest.raises(InputError, match="images of 4x4 pixels are too small"):
        build(name, (3, 4, 4), 10)


@pytest.mark.parametrize("call", [lambda name: build(name, COLOR, 10), stackable])
def test_an_unknown_name_suggests_the_nearest(call) -> None:
    with pytest.raises(InputError, match="unknown network 'smothout-c1': did you mean 'smoothout-c1'"):
        call("smothout-c1")


# ------------------------------------------------------------------------------------------------- residual networks


class TorchvisionResNet(nn.Module):
    """Torchvision's basic blocks, arranged as the specification says."""

    def __init__(self, n: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        blocks, channels = [], 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            for block in range(n):
                if block == 0 and stride == 2:
                    down = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
                    blocks.append(BasicBlock(channels, width, stride, down))
                else:
                    blocks.append(BasicBlock(width, width))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(torch.relu(self.stem(x)))
        return self.head(nn.functional.avg_pool2d(x, 8).flatten(1))

    def copy_weights(self, ours: nn.Sequential) -> None:
        """By the kind and the place of each layer: theirs has a block's shortcut last, as ours."""
        mine = [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
        by_kind = {nn.Conv2d: nn.Conv2d, nn.BatchNorm2d: GhostBatchNorm, nn.Linear: nn.Linear}
        for kind, our_kind in by_kind.items():
            pairs = zip(
                [m for m in mine if type(m) is kind], [m for m in ours.modules() if type(m) is our_kind], strict=True
            )
            for target, source in pairs:
                target.load_state_dict(source.state_dict())


@pytest.mark.parametrize(("name", "n"), [("resnet44", 7), ("resnet8", 1)])
def test_a_residual_network_computes_what_torchvisions_blocks_do(name, n) -> None:
    ours = build(name, COLOR, 10, seed=2)
    theirs = TorchvisionResNet(n, 10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, *COLOR, generator=generator)
    with torch.no_grad():
        for p in ours.parameters():  # gains, shifts and shortcuts that matter
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    theirs.copy_weights(ours)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)  # twenty are one ghost batch
    for layer in ours.modules():
        if isinstance(layer, GhostBatchNorm):  # after one batch: different from the start, alike in both
            assert layer.running_var.std() > 0
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet110"])
def test_a_residual_network_is_as_deep_as_its_name_says(name) -> None:
    depth = int(name.removeprefix("resnet"))
    convolutions = [m for m in build(name, COLOR, 10).modules() if isinstance(m, nn.Conv2d)]
    projections = [m for m in convolutions if m.kernel_size == (1, 1)]
    assert len(projections) == 2
    assert len(convolutions) - len(projections) == depth - 1  # and one dense layer


@pytest.mark.parametrize("name", ["resnet43", "resnet2", "resnet", "resnet044", "resnet44x"])
def test_other_depths_are_refused(name) -> None:
    with pytest.raises(InputError, match="unknown network"):
        build(name, COLOR, 10)


def test_residual_networks_start_normal_within_fan_out() -> None:
    model = build("resnet44", COLOR, 10, seed=1)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            n = layer.weight.numel()
            values = layer.weight.detach().double() * math.sqrt(fans(layer)[1] / 2)
            assert abs(values.mean()) < 5 / math.sqrt(n)
            assert abs(values.square().mean() - 1) < 5 * math.sqrt(2 / n)
        elif isinstance(layer, nn.Linear):
            for p in layer.parameters():
                assert_uniform(p, 1 / math.sqrt(64))
        elif isinstance(layer, GhostBatchNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


# ---------------------------------------------------------------------------------------------------- initialization

NE_NAMES = ["digits-mlp", "ne-f1", "ne-c1", "ne-c2"]
SMOOTHOUT_NAMES = ["smoothout-f1", "smoothout-c1", "smoothout-c3"]


def fans(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    assert isinstance(layer, nn.Conv2d)
    pixels = math.prod(layer.kernel_size)
    return layer.in_channels * pixels, layer.out_channels * pixels


def assert_uniform(values: Tensor, bound: float) -> None:
    """Within ±bound, nearly reaching it at both ends, with the mean and the variance of U(±bound)."""
    n = values.numel()
    values = values.detach().double() / bound
    assert -1 - 1e-6 <= values.min() < -1 + 24 / n
    assert 1 - 24 / n < values.max() <= 1 + 1e-6
    assert abs(values.mean()) < 5 * math.sqrt(1 / 3 / n)
    assert abs(values.square().mean() - 1 / 3) < 5 * math.sqrt(4 / 45 / n)


@pytest.mark.parametrize("name", NE_NAMES)
def test_ne_networks_start_from_glorot_weights_and_zero_biases(name) -> None:
    for layer in build(name, COLOR, 10, seed=1):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            assert_uniform(layer.weight, math.sqrt(6 / sum(fans(layer))))
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("name", SMOOTHOUT_NAMES)
def test_smoothout_networks_start_uniform_within_the_root_of_fan_in(name) -> None:
    for layer in build(name, COLOR, 10, seed=1):
        if isinstance(layer, nn.Linear | nn.Conv2d):
            for p in layer.parameters():
                assert_uniform(p, 1 / math.sqrt(fans(layer)[0]))


@pytest.mark.parametrize("name", ["ne-c1", "smoothout-f1"])
def test_batch_norm_starts_as_the_standardization(name) -> None:
    values = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
    for layer in build(name, COLOR, 10):
        if isinstance(layer, GhostBatchNorm):
            for key, value in layer.state_dict().items():
                assert (value == values[key]).all(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_the_seed_alone_decides_the_weights(name) -> None:
    built = []
    for noise, seed in ((0, 7), (1, 7), (1, 8)):
        with torch.random.fork_rng():
            torch.manual_seed(noise)
            built.append(list(build(name, COLOR, 10, seed=seed).parameters()))
    for first, again, other in zip(*built, strict=True):
        assert torch.equal(first, again)
        if first.ndim > 1:
            assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_building_leaves_the_global_generator_alone(name) -> None:
    before = torch.get_rng_state()
    build(name, COLOR, 10, seed=3)
    stackable(name)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------ what a name says of them


@pytest.mark.parametrize("name", NETWORKS)
def test_stackable_are_the_dense_networks_without_batch_norm(name) -> None:
    assert stackable(name) == (name in {"digits-mlp", "ne-f1"})
    assert convolutional(name) == ("-c" in name or name == "resnet44")
