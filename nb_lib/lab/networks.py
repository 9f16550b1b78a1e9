"""The networks of both papers by name: ``ne-f1`` is Mori and Ueda's F1, ``smoothout-f1`` that of Wen et al.

The latter is Keskar's, as are the bodies of SmoothOut's C1 and C3 up to Hoffer's changes.  SmoothOut's AlexNet is that
of Krizhevsky's "one weird trick", with batch normalization, and its ResNet18 is torchvision's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab.names import check_network, published_ghost_batch, residual_blocks
from nb_lib.lab.residual import Norm, ResidualBlock

Shape = tuple[int, int, int]
Layers = list[nn.Module]


def build(
    name: str,
    shape: Shape,
    classes: int,
    *,
    seed: int = 0,
    group_size: int | None = None,
    minibatches: int = 1,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
) -> nn.Sequential:
    """Build the network `name` for images `shape` [C, H, W], initialized from `seed` alone.

    NE's networks start from Glorot-uniform weights and zero biases, SmoothOut's from torch's default,
    U(±1/√fan-in) for both (their U(0, 1) for batch normalization's gain is replaced by 1), but the convolutions of its
    residual networks, ResNet18 among them, from N(0, 2/fan-out).

    Parameters
    ----------
    group_size : int, optional
        Ghost batch of the batch normalization; None takes the published one (100 for NE, 128 for SmoothOut).
    minibatches : int
        2 if the network is to be trained with noise enhancement.
    batch_size : int, optional
        Samples of a whole minibatch, if it is to be cut into nearly equal ghost batches (see `part_sizes`).

    Raises
    ------
    InputError
        Unknown name, or images too small for the network.
    """
    model = _skeleton(name, shape, classes, group_size, minibatches, batch_size).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    initialize = _specification(name).initialize
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, GhostBatchNorm):
                module.reset_parameters()  # gain 1, shift 0, fresh statistics: no randomness
            elif isinstance(module, nn.Linear | nn.Conv2d):
                initialize(module.weight, module.bias, generator)
    return model.to(device)


@cache
def parameter_count(name: str, shape: Shape, classes: int = 10) -> int:
    """Trainable parameters of the network `name` for such images.

    >>> parameter_count("ne-f1", (1, 28, 28))  # 784 · 500 + 6 · 500 · 500 + 500 · 10 weights, 7 · 500 + 10 biases
    1900510
    """
    return sum(p.numel() for p in _skeleton(name, shape, classes).parameters())


@cache
def stackable(name: str) -> bool:
    """Whether `stacked.stack` can hold copies of the network `name`: a plain chain of Flatten, Linear and ReLU."""
    return all(isinstance(module, nn.Flatten | nn.Linear | nn.ReLU) for module in _any_skeleton(name))


@cache
def convolutional(name: str) -> bool:
    """Whether the network `name` has convolutions."""
    return any(isinstance(module, nn.Conv2d) for module in _any_skeleton(name))


@cache
def trains_on_one(name: str, shape: Shape, classes: int) -> bool:
    """Whether the network `name` can train on one sample: no normalization in it sees a single value a channel."""
    model = _skeleton(name, shape, classes)
    try:
        model(torch.empty(1, *shape, device="meta"))
    except ValueError:  # torch's, of a variance of one value
        return False
    return True


def _any_skeleton(name: str) -> nn.Sequential:
    return _skeleton(name, (1, 64, 64), classes=2)


def _skeleton(
    name: str,
    shape: Shape,
    classes: int,
    group_size: int | None = None,
    minibatches: int = 1,
    batch_size: int | None = None,
) -> nn.Sequential:
    """Build the layers without memory: torch's own initialization would draw from the global generator."""
    specification = _specification(name)
    group = group_size or published_ghost_batch(name)

    def norm(features: int) -> GhostBatchNorm:
        return GhostBatchNorm(features, group, minibatches=minibatches, batch_size=batch_size)

    with torch.device("meta"):
        return nn.Sequential(*specification.layers(shape, classes, norm))


# ------------------------------------------------------------------------------------------------- kinds of networks


def _dense(shape: Shape, classes: int, norm: Norm, hidden: Sequence[int], normalized: bool = False) -> Layers:
    """ReLU layers of those widths; batch-normalized, they are Keskar's."""
    widths = [prod(shape), *hidden]
    layers: Layers = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers.append(nn.Linear(inputs, outputs))
        if normalized:
            layers.append(norm(outputs))
        layers.append(nn.ReLU())
    return [*layers, nn.Linear(widths[-1], classes)]


def _vgg(
    shape: Shape, classes: int, norm: Norm, stacks: Sequence[tuple[int, int]], hidden: Sequence[int] = ()
) -> Layers:
    """``stacks`` of (convolutions, width), each ended by MaxPool(2), then dense layers without normalization."""
    layers: Layers = []
    channels = shape[0]
    for convolutions, width in stacks:
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers + _dense(_shape_after(layers, shape), classes, norm, hidden)


def _shallow(shape: Shape, classes: int, norm: Norm) -> Layers:
    """Hoffer's version of Keskar's shallow network: pooling before normalization, dropout in the dense layers."""
    layers: Layers = []
    for channels in (shape[0], 64):
        convolution = nn.Conv2d(channels, 64, 5, padding=2, bias=False)
        layers += [convolution, nn.MaxPool2d(3, 2), norm(64), nn.ReLU()]
    features = prod(_shape_after(layers, shape))
    layers.append(nn.Flatten())
    for inputs, outputs in ((features, 384), (384, 192)):
        layers += [nn.Linear(inputs, outputs, bias=False), norm(outputs), nn.ReLU(), nn.Dropout(0.5)]
    return [*layers, nn.Linear(192, classes)]


def _residual(shape: Shape, classes: int, norm: Norm, blocks: int) -> Layers:
    """Three stages of so many blocks, 16, 32 and 64 channels wide, and the mean over the pixels that are left."""
    layers: Layers = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), norm(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for _ in range(blocks):
            layers.append(ResidualBlock(channels, width, norm))
            channels = width
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def _alexnet(shape: Shape, classes: int, norm: Norm, dropout: float = 0.0) -> Layers:
    """Five convolutions and three dense layers, pooling, normalization and ReLU in the order of the authors' code."""
    layers: Layers = [
        *(nn.Conv2d(shape[0], 64, 11, 4, padding=2, bias=False), nn.MaxPool2d(3, 2), norm(64), nn.ReLU()),
        *(nn.Conv2d(64, 192, 5, padding=2, bias=False), nn.MaxPool2d(3, 2), nn.ReLU(), norm(192)),
        *(nn.Conv2d(192, 384, 3, padding=1, bias=False), nn.ReLU(), norm(384)),
        *(nn.Conv2d(384, 256, 3, padding=1, bias=False), nn.ReLU(), norm(256)),
        *(nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.MaxPool2d(3, 2), nn.ReLU(), norm(256)),
    ]
    features = prod(_shape_after(layers, shape))
    layers.append(nn.Flatten())
    for inputs in (features, 4096):
        layers += [nn.Linear(inputs, 4096, bias=False), norm(4096), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return [*layers, nn.Linear(4096, classes)]


def _resnet18(shape: Shape, classes: int, norm: Norm) -> Layers:
    """Torchvision's, in its order, for images of any number of channels."""
    from torchvision.models import resnet18

    model = resnet18(num_classes=classes, norm_layer=norm)
    stem = [nn.Conv2d(shape[0], 64, 7, 2, padding=3, bias=False), model.bn1, model.relu, model.maxpool]
    stages = [*model.layer1, *model.layer2, *model.layer3, *model.layer4]
    return [*stem, *stages, model.avgpool, nn.Flatten(), model.fc]


def _shape_after(layers: Layers, shape: Shape) -> Shape:
    body = nn.Sequential(*layers).eval()  # batch normalization would refuse to train on one sample
    try:
        out = body(torch.empty(1, *shape, device="meta"))
    except RuntimeError as error:
        raise InputError(f"images of {shape[1]}x{shape[2]} pixels are too small for this network.") from error
    body.train()
    return tuple(out.shape[1:])


def _glorot(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    """Weights U(±√(6 / (fan-in + fan-out))), zero biases."""
    nn.init.xavier_uniform_(weight, generator=generator)
    if bias is not None:
        bias.zero_()


def _fan_in(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    """Weights and biases U(±1/√fan-in)."""
    bound = weight[0].numel() ** -0.5
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)


def _fan_out(weight: Tensor, bias: Tensor | None, generator: torch.Generator) -> None:
    """Convolutions N(0, 2/fan-out), dense layers as `_fan_in`."""
    if weight.ndim == 4:
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
    else:
        _fan_in(weight, bias, generator)


# ----------------------------------------------------------------------------------------------- the papers' networks


@dataclass(frozen=True)
class _Specification:
    """How to build one network: its layers and its initialization."""

    layers: Callable[[Shape, int, Norm], Layers]
    initialize: Callable[[Tensor, Tensor | None, torch.Generator], None]


_STACKS = ((3, 64), (3, 128), (3, 256))
_QUARTER_STACKS = ((3, 16), (3, 32), (3, 64))
_SPECIFICATIONS = {
    "digits-mlp": _Specification(partial(_dense, hidden=2 * [64]), _glorot),
    "ne-f1": _Specification(partial(_dense, hidden=7 * [500]), _glorot),
    "ne-c1": _Specification(partial(_vgg, stacks=_STACKS), _glorot),
    "ne-c1-quarter": _Specification(partial(_vgg, stacks=_QUARTER_STACKS), _glorot),
    "ne-c2": _Specification(partial(_vgg, stacks=(*_STACKS, (2, 512)), hidden=[1024]), _glorot),
    "smoothout-f1": _Specification(partial(_dense, hidden=5 * [512], normalized=True), _fan_in),
    "smoothout-c1": _Specification(_shallow, _fan_in),
    "smoothout-c3": _Specification(_shallow, _fan_in),
    "alexnet": _Specification(_alexnet, _fan_in),
    "alexnet-dropout": _Specification(partial(_alexnet, dropout=0.5), _fan_in),
    "alexnet-light-dropout": _Specification(partial(_alexnet, dropout=0.2), _fan_in),
    "resnet18": _Specification(_resnet18, _fan_out),
}


def _specification(name: str) -> _Specification:
    blocks = residual_blocks(check_network(name))
    if blocks:
        return _Specification(partial(_residual, blocks=blocks), _fan_out)
    return _SPECIFICATIONS[name]
