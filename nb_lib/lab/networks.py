"""The networks of both papers by name, and ghost batch normalization.

The papers use the names F1 and C1 for different networks; here ``ne-f1`` is Mori and Ueda's F1 and ``smoothout-f1``
that of Wen et al. (which is Keskar's F1, as are the bodies of C1 and C3 up to Hoffer's changes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import prod
from typing import Literal

import torch
from torch import nn

from nb_lib.errors import InputError, known
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab.names import NETWORKS

Shape = tuple[int, int, int]


@cache
def stackable(name: str) -> bool:
    """Whether `stack` can hold copies of the network `name`: a plain chain of Flatten, Linear and ReLU."""
    return all(isinstance(m, nn.Flatten | nn.Linear | nn.ReLU) for m in _skeleton(name, (1, 64, 64), 2))


@cache
def convolutional(name: str) -> bool:
    """Whether the network `name` has convolutions."""
    return any(isinstance(m, nn.Conv2d) for m in _skeleton(name, (1, 64, 64), 2))


@cache
def parameter_count(name: str, shape: Shape, classes: int = 10) -> int:
    """Trainable parameters of the network `name` for such images.

    >>> parameter_count("ne-f1", (1, 28, 28))
    1900510
    """
    return sum(p.numel() for p in _skeleton(name, shape, classes).parameters())


# ---------------------------------------------------------------------------------------------- the networks by name

Norm = Callable[[int], nn.Module]


def _dense(shape: Shape, classes: int, hidden: Sequence[int], norm: Norm | None = None) -> list[nn.Module]:
    widths = [prod(shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), *([norm(o)] if norm else []), nn.ReLU()]
    return [*layers, nn.Linear(widths[-1], classes)]


def _vgg(
    shape: Shape, classes: int, norm: Norm, stacks: Sequence[tuple[int, int]], dense: Sequence[int]
) -> list[nn.Module]:
    """``stacks`` of (convolutions, width), each ended by MaxPool(2), then dense layers without normalization."""
    layers, channels = [], shape[0]
    for convolutions, width in stacks:
        for _ in range(convolutions):
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return layers + _dense(_shape_after(layers, shape), classes, dense)


def _shallow(shape: Shape, classes: int, norm: Norm) -> list[nn.Module]:
    """Hoffer's version of Keskar's shallow network: pooling before normalization, dropout in the dense layers."""
    layers: list[nn.Module] = []
    for channels in (shape[0], 64):
        layers += [nn.Conv2d(channels, 64, 5, padding=2, bias=False), nn.MaxPool2d(3, 2), norm(64), nn.ReLU()]
    widths = [prod(_shape_after(layers, shape)), 384, 192]
    layers.append(nn.Flatten())
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o, bias=False), norm(o), nn.ReLU(), nn.Dropout(0.5)]
    return [*layers, nn.Linear(widths[-1], classes)]


def _shape_after(layers: Sequence[nn.Module], shape: Shape) -> Shape:
    try:
        out = nn.Sequential(*layers).eval()(torch.empty(1, *shape, device="meta"))
    except RuntimeError as error:
        raise InputError(f"images of {shape[1]}x{shape[2]} pixels are too small for this network.") from error
    nn.Sequential(*layers).train()
    return tuple(out.shape[1:])


@dataclass(frozen=True)
class Network:
    """How to build one network: its layers, its initialization and the ghost batch it is published with."""

    layers: Callable[[Shape, int, Norm], list[nn.Module]]
    init: Literal["glorot", "fan-in"]
    group_size: int | None


_NE_STACKS = ((3, 64), (3, 128), (3, 256))
_QUARTER_STACKS = tuple((convolutions, width // 4) for convolutions, width in _NE_STACKS)
_SPECIFICATIONS = {
    "digits-mlp": Network(lambda s, c, _: _dense(s, c, 2 * [64]), "glorot", None),
    "ne-f1": Network(lambda s, c, _: _dense(s, c, 7 * [500]), "glorot", None),
    "ne-c1": Network(lambda s, c, n: _vgg(s, c, n, _NE_STACKS, ()), "glorot", 100),
    "ne-c1-quarter": Network(lambda s, c, n: _vgg(s, c, n, _QUARTER_STACKS, ()), "glorot", 100),
    "ne-c2": Network(
        lambda s, c, n: _vgg(s, c, n, (*_NE_STACKS, (2, 512)), (1024,)),
        "glorot",
        100,
    ),
    "smoothout-f1": Network(lambda s, c, n: _dense(s, c, 5 * [512], n), "fan-in", 128),
    "smoothout-c1": Network(_shallow, "fan-in", 128),
    "smoothout-c3": Network(_shallow, "fan-in", 128),
}


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
    U(±1/√fan-in) for both (their U(0, 1) for batch normalization's gain is replaced by 1).

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
    for module in model.modules():
        _initialize(module, _SPECIFICATIONS[name].init, generator)
    return model.to(device)


def _skeleton(
    name: str,
    shape: Shape,
    classes: int,
    group_size: int | None = None,
    minibatches: int = 1,
    batch_size: int | None = None,
) -> nn.Sequential:
    """Build the layers without memory: torch's own initialization would draw from the global generator."""
    spec = _SPECIFICATIONS[known("network", name, NETWORKS)]
    group = group_size or spec.group_size

    def norm(features: int) -> GhostBatchNorm:
        return GhostBatchNorm(features, group, minibatches=minibatches, batch_size=batch_size)

    with torch.device("meta"):
        return nn.Sequential(*spec.layers(shape, classes, norm))


@torch.no_grad()
def _initialize(module: nn.Module, init: str, generator: torch.Generator) -> None:
    if isinstance(module, GhostBatchNorm):
        module.reset_parameters()  # gain 1, shift 0, fresh statistics: no randomness
    elif isinstance(module, nn.Linear | nn.Conv2d):
        bound = module.weight[0].numel() ** -0.5
        if init == "glorot":
            nn.init.xavier_uniform_(module.weight, generator=generator)
        else:
            module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            if init == "glorot":
                module.bias.zero_()
            else:
                module.bias.uniform_(-bound, bound, generator=generator)
