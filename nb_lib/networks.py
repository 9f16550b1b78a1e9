"""The networks of both papers by name, and ghost batch normalization.

The papers use the names F1 and C1 for different networks; here ``ne-f1`` is Mori and Ueda's F1 and ``smoothout-f1``
that of Wen et al. (which is Keskar's F1, as are the bodies of C1 and C3 up to Hoffer's changes).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import ceil, prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.errors import InputError, known

Shape = tuple[int, int, int]


#: Ways to cut a batch into ghost batches, see `part_sizes`.
CUTTINGS = ("rest", "even")


def part_sizes(n: int, size: int, batch_size: int | None = None) -> list[int]:
    """Sizes of the parts into which `n` samples are cut, for ghost batches and for draws of weight noise.

    A last part of one sample joins its neighbor, because one sample has no variance.

    Parameters
    ----------
    n : int
        Samples to be cut.
    size : int
        Samples a part, at least 2.
    batch_size : int, optional
        None cuts parts of `size` and the rest.  B cuts ``B // size`` nearly equal parts, as ``torch.chunk`` does in
        the SmoothOut authors' code, however many samples there are: the last batch of an epoch gives as many parts.

    >>> part_sizes(300, 128), part_sizes(300, 128, batch_size=300)
    ([128, 128, 44], [150, 150])
    >>> part_sizes(5000, 128, batch_size=5000) == 38 * [129] + [98]
    True
    >>> part_sizes(88, 128, batch_size=256)
    [44, 44]
    """
    if batch_size is not None:
        parts = max(1, batch_size // size)
        size = max(2, ceil(n / parts))
    sizes = n // size * [size]
    rest = n % size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over groups of at most `group_size` samples (Hoffer et al. 2017).

    Takes [n, features] and [n, features, height, width].  In training mode each group is normalized by its own
    statistics, and the running ones take the groups in one after the other, each with `momentum`.  In evaluation mode
    it is plain batch normalization with the running statistics.

    Parameters
    ----------
    features : int
    group_size : int or None
        Samples a group; None makes each minibatch one group.
    minibatches : int
        How many minibatches of equal size lie one after the other in what comes in: 2 for noise enhancement.  No
        group crosses from one into the next.
    batch_size : int, optional
        Samples of a whole minibatch: cut it into ``batch_size // group_size`` nearly equal groups; None cuts groups of
        `group_size` and the rest (see `part_sizes`).
    """

    def __init__(
        self, features: int, group_size: int | None = None, *, minibatches: int = 1, batch_size: int | None = None
    ) -> None:
        super().__init__(features)
        if group_size is not None and group_size < 2:
            raise InputError(f"ghost batch normalization needs groups of at least 2 samples, not {group_size}.")
        self.group_size, self.minibatches, self.batch_size = group_size, minibatches, batch_size

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Normalize `input` [n, features, ...]."""
        if not self.training:
            return super().forward(input)
        sizes = self._group_sizes(len(input))
        if len(sizes) == 1:
            return super().forward(input)
        if input.is_cuda and self._foldable(input, sizes):
            return self._folded(input, len(sizes))
        return torch.cat([super(GhostBatchNorm, self).forward(group) for group in input.split(sizes)])

    def _group_sizes(self, n: int) -> list[int]:
        size, left_over = divmod(n, self.minibatches)
        if left_over:
            raise InputError(f"{n} samples are not {self.minibatches} minibatches of equal size.")
        if self.group_size is None:
            return self.minibatches * [size]
        return self.minibatches * part_sizes(size, self.group_size, self.batch_size)

    def _foldable(self, input: Tensor, sizes: Sequence[int]) -> bool:
        """Whether `_folded` can do it, and pays.

        It cannot for groups of unequal size, nor for layers without gain or running statistics, or with averaged ones.
        Images are better left as they are: folded, they would go through all later convolutions in the slower order,
        channels first, and in a recorded step the launches that folding saves cost nothing.
        """
        tracked = self.track_running_stats and self.running_mean is not None
        usual = tracked and self.weight is not None and self.momentum is not None
        return usual and input.ndim == 2 and len(set(sizes)) == 1

    def _folded(self, input: Tensor, groups: int) -> Tensor:
        """All groups in one call, as channels of their own: two copies, but one launch instead of one a group."""
        shape, features = input.shape, self.num_features
        folded = input.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)
        stats = self.weight.new_zeros(2, groups * features)  # as precise as the weights, also under autocast
        weight, bias = self.weight.repeat(groups), self.bias.repeat(groups)
        # momentum 1 leaves each group's own mean and unbiased variance in `stats`
        out = F.batch_norm(folded, stats[0], stats[1], weight, bias, True, 1.0, self.eps)
        self._update_running(stats.view(2, groups, features))
        return out.unflatten(1, (groups, features)).transpose(0, 1).reshape(shape)

    @torch.no_grad()
    def _update_running(self, stats: Tensor) -> None:
        """Running statistics after the groups, taken in one by one: group k of K keeps m (1−m)^(K−1−k)."""
        groups, momentum = stats.shape[1], self.momentum or 0.0
        keep = 1 - momentum
        weights = momentum * keep ** torch.arange(groups - 1, -1, -1, device=stats.device, dtype=stats.dtype)
        mean, var = (stats * weights[:, None]).sum(1)  # no matrix product: those are rounded under tf32 and autocast
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.mul_(keep**groups).add_(mean)
        self.running_var.mul_(keep**groups).add_(var)
        self.num_batches_tracked.add_(groups)

    def extra_repr(self) -> str:
        """Show groups and minibatches in ``print(model)``."""
        cut = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"{self.num_features}, group_size={self.group_size}, minibatches={self.minibatches}{cut}"


def ghost_batch_norm_(model: nn.Module, group_size: int | None = None, *, minibatches: int = 1) -> nn.Module:
    """Turn every batch normalization of `model` into a ghost one, in place, keeping weights and statistics.

    `group_size` None keeps the meaning of the original (one group a minibatch) and, with ``minibatches=2``, makes a
    network with batch normalization fit for noise enhancement.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                ghost = GhostBatchNorm(child.num_features, group_size, minibatches=minibatches)
                for setting in ("eps", "momentum", "affine", "track_running_stats", "training"):
                    setattr(ghost, setting, getattr(child, setting))
                ghost._parameters, ghost._buffers = child._parameters, child._buffers
                setattr(parent, name, ghost)
    return model


class StackedLinear(nn.Module):
    """Linear layers of K networks as one batched product: [K, n, in] to [K, n, out]."""

    side_by_side = True  # the first axis of the parameters counts networks, see `flat.row_width`

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, input: Tensor) -> Tensor:
        """Apply network k's layer to ``input[k]``."""
        return torch.baddbmm(self.bias.unsqueeze(1), input, self.weight.transpose(1, 2))


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


def stack(models: Sequence[nn.Module]) -> nn.Sequential:
    """K networks of one `stackable` shape as one that maps [K, n, C, H, W] to logits [K, n, classes].

    Their losses can simply be added: no network's gradient depends on another.
    """
    layers: list[nn.Module] = []
    for row in zip(*(model.children() for model in models), strict=True):
        if isinstance(row[0], nn.Linear):
            layers.append(StackedLinear(row))
        else:
            layers.append(nn.Flatten(2) if isinstance(row[0], nn.Flatten) else nn.ReLU())
    return nn.Sequential(*layers)


def unstack(model: nn.Sequential, k: int) -> nn.Sequential:
    """Network number `k` of those that `stack` put together, with a copy of its weights."""
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, StackedLinear):
            _, out, inputs = layer.weight.shape
            layers.append(nn.utils.skip_init(nn.Linear, inputs, out, device=layer.weight.device))
            layers[-1].load_state_dict({name: p[k] for name, p in layer.state_dict().items()})
        else:
            layers.append(nn.Flatten() if isinstance(layer, nn.Flatten) else nn.ReLU())
    return nn.Sequential(*layers)


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
    doc: str


_NE_STACKS = ((3, 64), (3, 128), (3, 256))
_QUARTER_STACKS = tuple((convolutions, width // 4) for convolutions, width in _NE_STACKS)
NETWORKS = {
    "digits-mlp": Network(lambda s, c, _: _dense(s, c, 2 * [64]), "glorot", None, "2 x 64 ReLU, for the digits"),
    "ne-f1": Network(lambda s, c, _: _dense(s, c, 7 * [500]), "glorot", None, "NE's F1: 7 x 500 ReLU"),
    "ne-c1": Network(lambda s, c, n: _vgg(s, c, n, _NE_STACKS, ()), "glorot", 100, "NE's C1: 9 convolutions"),
    "ne-c1-quarter": Network(
        lambda s, c, n: _vgg(s, c, n, _QUARTER_STACKS, ()), "glorot", 100, "C1 with a quarter of its filters, for CPUs"
    ),
    "ne-c2": Network(
        lambda s, c, n: _vgg(s, c, n, (*_NE_STACKS, (2, 512)), (1024,)),
        "glorot",
        100,
        "NE's C2: 11 convolutions",
    ),
    "smoothout-f1": Network(
        lambda s, c, n: _dense(s, c, 5 * [512], n), "fan-in", 128, "SmoothOut's F1: 5 x 512, batch-normalized"
    ),
    "smoothout-c1": Network(_shallow, "fan-in", 128, "SmoothOut's C1: shallow, for CIFAR-10"),
    "smoothout-c3": Network(_shallow, "fan-in", 128, "SmoothOut's C3: the same, for CIFAR-100"),
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
        _initialize(module, NETWORKS[name].init, generator)
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
    spec = NETWORKS[known("network", name, NETWORKS)]
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
