"""The papers' networks against the tables of the papers."""

import math
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab import networks
from nb_lib.lab.names import NETWORKS
from nb_lib.lab.networks import build, convolutional, parameter_count, stackable
from nb_lib.papers import protocol, run
from nb_lib.protocols import PROTOCOLS

GREY, COLOR, LARGE = (1, 28, 28), (3, 32, 32), (3, 224, 224)
ALEXNETS = {"alexnet": 0.0, "alexnet-dropout": 0.5, "alexnet-light-dropout": 0.2}  # p of dropout


def images(name: str) -> tuple[int, int, int]:
    """A shape of images that is not too small for a network."""
    return (3, 64, 64) if name in ALEXNETS else COLOR


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
    *((name, LARGE, 1000, 61_110_184, 61_090_496, 1_000, 18_688) for name in ALEXNETS),
    ("resnet18", LARGE, 1000, 11_689_512, 11_678_912, 1_000, 9_600),
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


def test_parameters_of_alexnet_by_hand() -> None:
    convolutions = 3 * 64 * 11**2 + 64 * 192 * 5**2 + (192 * 384 + 384 * 256 + 256 * 256) * 3**2
    dense = 256 * 6 * 6 * 4096 + 4096 * 4096 + 4096 * 1000 + 1000
    normalization = 2 * (64 + 192 + 384 + 256 + 256 + 4096 + 4096)
    assert parameter_count("alexnet", LARGE, 1000) == convolutions + dense + normalization
    gray = parameter_count("alexnet", (1, 224, 224), 10)
    assert gray == convolutions + dense + normalization - 2 * 64 * 11**2 - 990 * (4096 + 1)


def test_parameters_of_resnet18_by_hand() -> None:
    """Of a stage: the first block, with its projection, and the second; gains and shifts with their convolutions."""

    def normalized(inputs: int, outputs: int, kernel: int) -> int:
        return inputs * outputs * kernel**2 + 2 * outputs

    def stage(inputs: int, width: int) -> int:
        projection = normalized(inputs, width, 1) if inputs != width else 0
        return normalized(inputs, width, 3) + 3 * normalized(width, width, 3) + projection

    stages = stage(64, 64) + stage(64, 128) + stage(128, 256) + stage(256, 512)
    assert parameter_count("resnet18", LARGE, 1000) == normalized(3, 64, 7) + stages + 513 * 1000
    assert parameter_count("resnet18", GREY, 10) == normalized(1, 64, 7) + stages + 513 * 10


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
    "alexnet": [
        ("Conv2d", (64, 55, 55)),
        *[(kind, (64, 27, 27)) for kind in ("MaxPool2d", "GhostBatchNorm", "ReLU")],
        ("Conv2d", (192, 27, 27)),
        *[(kind, (192, 13, 13)) for kind in ("MaxPool2d", "ReLU", "GhostBatchNorm")],
        *[(kind, (384, 13, 13)) for kind in ("Conv2d", "ReLU", "GhostBatchNorm")],
        *[(kind, (256, 13, 13)) for kind in ("Conv2d", "ReLU", "GhostBatchNorm")],
        ("Conv2d", (256, 13, 13)),
        *[(kind, (256, 6, 6)) for kind in ("MaxPool2d", "ReLU", "GhostBatchNorm")],
        ("Flatten", (9216,)),
        *2 * [(kind, (4096,)) for kind in ("Linear", "GhostBatchNorm", "ReLU")],
        ("Linear", (10,)),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_and_their_output_shapes_are_those_of_the_table(name) -> None:
    shape = LARGE if name == "alexnet" else COLOR
    x = torch.zeros(2, *shape)
    seen = []
    for layer in build(name, shape, 10).eval():
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


@pytest.mark.parametrize("name", ALEXNETS)
def test_alexnets_convolutions_and_dropout_are_those_of_the_table(name) -> None:
    model = build(name, images(name), 10)
    convolutions = [layer for layer in model if isinstance(layer, nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.stride[0], layer.padding[0]) for layer in convolutions] == [
        (11, 4, 2),
        (5, 1, 2),
        *3 * [(3, 1, 1)],
    ]
    *hidden, last = [layer for layer in model if isinstance(layer, nn.Linear)]
    assert all(layer.bias is None for layer in [*convolutions, *hidden])
    assert last.bias is not None
    after_relu = [(a, b) for a, b in pairwise(model) if isinstance(b, nn.Dropout)]
    p = ALEXNETS[name]
    assert [(type(a), b.p) for a, b in after_relu] == (2 * [(nn.ReLU, p)] if p else [])


@pytest.mark.parametrize(
    ("name", "published"),
    [("ne-c1", 100), ("ne-c2", 100), ("smoothout-c1", 128), ("resnet44", 128), ("resnet18", 128), ("alexnet", 128)],
)
@pytest.mark.parametrize("asked", [None, 32])
def test_ghost_batches_are_the_published_ones_unless_asked_for(name, published, asked) -> None:
    model = build(name, images(name), 10, group_size=asked, minibatches=2)
    norms = [m for m in model.modules() if isinstance(m, GhostBatchNorm)]
    assert {(m.group_size, m.minibatches) for m in norms} == {(asked or published, 2)}
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_every_name_has_a_description_and_a_specification() -> None:
    assert list(NETWORKS) == [*networks._SPECIFICATIONS, "resnet44"]


@pytest.mark.parametrize("name", ["ne-c1", "ne-c2", "smoothout-c1", "smoothout-c3", *ALEXNETS])
def test_too_small_images_are_refused(name) -> None:
    with pytest.raises(InputError, match="images of 4x4 pixels are too small"):
        build(name, (3, 4, 4), 10)


def test_the_smallest_images_of_alexnet() -> None:
    """The last pooling needs 3 pixels a side, the one before it 7, the first 15; the convolution 14 · 4 + 11 − 4."""
    with pytest.raises(InputError, match=r"^images of 62x62 pixels are too small for this network\.$"):
        build("alexnet", (3, 62, 62), 10)
    assert parameter_count("alexnet", (3, 63, 63)) < parameter_count("alexnet", (3, 95, 95))


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


@pytest.mark.parametrize(("name", "features"), [("resnet44", 64), ("resnet18", 512)])
def test_residual_networks_start_normal_within_fan_out(name, features) -> None:
    model = build(name, COLOR, 10, seed=1)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            n = layer.weight.numel()
            values = layer.weight.detach().double() * math.sqrt(fans(layer)[1] / 2)
            assert abs(values.mean()) < 5 / math.sqrt(n)
            assert abs(values.square().mean() - 1) < 5 * math.sqrt(2 / n)
        elif isinstance(layer, nn.Linear):
            for p in layer.parameters():
                assert_uniform(p, 1 / math.sqrt(features))
        elif isinstance(layer, GhostBatchNorm):
            assert (layer.weight == 1).all()
            assert not layer.bias.any()


# ------------------------------------------------------------------------------------------------ networks of ImageNet


def plain_alexnet(features: int, classes: int) -> nn.Sequential:
    """The table of paper-spec, section 1.4, line by line, with torch's batch normalization."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2, bias=False)),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.BatchNorm2d(64), nn.ReLU()),
        nn.Sequential(nn.Conv2d(64, 192, kernel_size=5, padding=2, bias=False)),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.ReLU(), nn.BatchNorm2d(192)),
        nn.Sequential(nn.Conv2d(192, 384, kernel_size=3, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(384)),
        nn.Sequential(nn.Conv2d(384, 256, kernel_size=3, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(256)),
        nn.Sequential(nn.Conv2d(256, 256, kernel_size=3, padding=1, bias=False)),
        nn.Sequential(nn.MaxPool2d(3, 2), nn.ReLU(), nn.BatchNorm2d(256), nn.Flatten()),
        nn.Sequential(nn.Linear(features, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()),
        nn.Sequential(nn.Linear(4096, 4096, bias=False), nn.BatchNorm1d(4096), nn.ReLU()),
        nn.Linear(4096, classes),
    )


ON_IMAGENET = {  # pixels, and an independent construction for 10 classes
    "alexnet": (63, lambda: plain_alexnet(256, 10)),
    "resnet18": (64, lambda: torchvision.models.resnet18(num_classes=10)),
}


@pytest.mark.parametrize("name", ON_IMAGENET)
def test_a_network_of_imagenet_computes_what_an_independent_one_does(name) -> None:
    pixels, other = ON_IMAGENET[name]
    ours, theirs = build(name, (3, pixels, pixels), 10, seed=2), other()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 3, pixels, pixels, generator=generator)
    with torch.no_grad():
        for p in ours.parameters():
            if p.ndim == 1:  # gains and shifts that matter
                p.add_(0.1 * torch.randn(p.shape, generator=generator))
    state = zip(theirs.state_dict(), ours.state_dict().values(), strict=True)
    theirs.load_state_dict(dict(state))
    outputs = [model(x) for model in (ours, theirs)]  # eight are one ghost batch
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
    for out in outputs:
        out.square().mean().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3 * float(q.grad.abs().max()))
    for statistic, other_statistic in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(statistic, other_statistic, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_update_of_alexnet_on_images_of_full_size() -> None:
    """B = 256 in two ghost batches, each with a pass of its own, as so large batches are trained."""
    B, ghost = 256, 128
    fields = run(**protocol("alexnet"), batch_size=B)
    model = build("alexnet", LARGE, 1000)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(B, *LARGE, generator=generator)
    y = torch.randint(1000, (B,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=fields.scaled_lr_steps[0][1], momentum=fields.momentum)
    assert fields.scaled_lr_steps[0][1] == pytest.approx(0.01 * math.sqrt(2))
    before = []
    for images_of_part, labels in zip(x.split(ghost), y.split(ghost), strict=True):
        loss = nn.functional.cross_entropy(model(images_of_part), labels)
        (ghost / B * loss).backward()
        before.append(loss.item())
    nn.utils.clip_grad_norm_(model.parameters(), fields.clip)
    optimizer.step()
    with torch.no_grad():
        after = nn.functional.cross_entropy(model(x[:32]), y[:32]).item()
    assert abs(before[0] - math.log(1000)) < 0.5  # knows nothing yet
    assert after < before[0] - 0.3


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if "image_size" in PROTOCOLS[name]])
def test_networks_of_imagenet_are_trained_as_table_2_says(name) -> None:
    """Paper-spec, section 3.3; the weight decay of the AlexNets with dropout is their authors' code's."""
    of = run(**protocol(name), batch_size=16384)
    decay = {"alexnet-dropout": 5e-4, "alexnet-light-dropout": 1e-4}.get(name, 0)
    assert (of.dataset, of.image_size, of.inputs) == ("imagenet", 224, "imagenet")
    assert (of.noise_batch, of.ghost_batch, of.cutting) == (128, None, "even")
    assert (of.optimizer, of.momentum, of.weight_decay, of.clip, of.lr_reference) == ("sgd", 0.9, decay, 5, 128)
    first, last = (0.1, 60) if name == "resnet18" else (0.01, 40)
    assert [epoch for epoch, _ in of.scaled_lr_steps] == [0, last // 2, last]
    assert of.epochs == last * 3 // 2
    rates = [rate for _, rate in of.scaled_lr_steps]
    assert rates == pytest.approx([11.3137 * first, 1.13137 * first, 0.113137 * first], rel=1e-5)
    assert of.augment == ("resized-crop-flip" if name == "resnet18" else "crop-flip")


# ---------------------------------------------------------------------------------------------------- initialization

NE_NAMES = ["digits-mlp", "ne-f1", "ne-c1", "ne-c2"]
SMOOTHOUT_NAMES = ["smoothout-f1", "smoothout-c1", "smoothout-c3", "alexnet"]


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
    for layer in build(name, images(name), 10, seed=1):
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
            built.append(list(build(name, images(name), 10, seed=seed).parameters()))
    for first, again, other in zip(*built, strict=True):
        assert torch.equal(first, again)
        if first.ndim > 1:
            assert not torch.equal(first, other)


@pytest.mark.parametrize("name", NETWORKS)
def test_building_leaves_the_global_generator_alone(name) -> None:
    before = torch.get_rng_state()
    build(name, images(name), 10, seed=3)
    stackable(name)
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------ what a name says of them


@pytest.mark.parametrize("name", NETWORKS)
def test_stackable_are_the_dense_networks_without_batch_norm(name) -> None:
    assert stackable(name) == (name in {"digits-mlp", "ne-f1"})
    assert convolutional(name) == ("-c" in name or name.startswith(("alexnet", "resnet")))
