"""The loss of a network on a data set as a pure function of its weights, one flat vector.

Sharpness, landscapes and gradient noise all ask for the loss, its gradient or its curvature at points of weight
space.  An `Objective` answers from a copy of the network, so that the network itself, its mode, its buffers, its
gradients and torch's random state cannot change, whatever happens in between.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nb_lib.errors import InputError, known
from nb_lib.lab.device import precision
from nb_lib.lab.weight_vector import FlatParameters, Selection

Criterion = Callable[[Tensor, Tensor], Tensor]
BatchNorm = nn.modules.batchnorm._BatchNorm
Gradients = tuple[Tensor, ...]  # one a parameter

BATCH_NORMS = ("reestimated", "stored")

_IN_CACHE = (
    500  # samples whose activations stay in a processor's cache: a forward pass alone is then a fifth faster
)


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, in nats."""
    return F.cross_entropy(outputs, y, reduction="none")


class Value(NamedTuple):
    """What a network does at one point, or with a leading axis at several."""

    loss: Tensor  # mean over the samples, float64
    accuracy: Tensor  # fraction of the samples, float64; NaN if the outputs are not one score a class


class Measurable(Protocol):
    """What the measures of `nb_lib.sharpness` need of a loss: an `Objective`, or a closed form of yours."""

    @property
    def weights(self) -> Tensor:
        """The point to measure at, w* [n]."""

    def __call__(self, w: Tensor) -> Value:
        """Loss and accuracy (or NaN) at w [n]."""

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Loss at w [n] and its gradient [n]."""

    def hessian_product(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """The function v [n] -> H v [n] at w."""

    def rows(self, vector: Tensor) -> list[Tensor]:
        """A vector [n] as matrices that cover it in order, one row a filter or neuron."""


class Objective:
    """Mean loss over all samples as a function of the flat weights w [n].

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.  It is copied once and never touched.
    x, y : Tensor, shape [N, ...], [N]
        Samples, on the model's device.
    criterion : callable
        ``f(outputs, y) -> [N]``, the loss of each sample.
    include : str or callable
        Which of the trainable parameters w holds: ``"all"``, ``"no-norm"``, ``"weights"`` or
        ``f(name, parameter) -> bool`` (see `nb_lib.lab.weight_vector`).  The others, and frozen ones, stay as they are.
    batch_norm : str
        ``"reestimated"``: the running statistics of the copy become those of all samples of `x` at the network's own
        weights, layer by layer (training with noisy weights leaves noisy ones; this takes one forward pass a layer);
        ``"stored"``: they are left.  Either way they then stay, wherever in weight space the loss is taken.
    chunk : int
        Most samples in memory at once; the values do not depend on it.

    Attributes
    ----------
    weights : Tensor, shape [n]
        The network's own, w*.

    Raises
    ------
    InputError
        If the network is in training mode, has weights in half precision or a loss that is random also in evaluation
        mode, or if there are no samples, or `x`, `y`, the model and the criterion do not fit together.

    Notes
    -----
    Sharpness is a difference of losses: products are taken in full float32 (no TF32, no autocast), and losses are
    added up in float64.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, criterion: Criterion = cross_entropy,
        include: Selection = "all", batch_norm: str = "reestimated", chunk: int = 10_000,
    ) -> None:  # fmt: skip
        known("treatment of batch normalization", batch_norm, BATCH_NORMS)
        if any(module.training for module in model.modules()):
            raise InputError(
                "the network is in training mode, where its loss is random: call model.eval() first."
            )
        if any(layer.running_mean is None for layer in _batch_norms(model)):
            raise InputError(
                "batch normalization without running statistics makes a sample's loss depend on the others: "
                "build it with track_running_stats=True."
            )
        if chunk < 1:
            raise InputError(f"chunk, the most samples in memory at once, must be at least 1, not {chunk}.")
        self.x, self.y, self.criterion, self.chunk = x, y, criterion, chunk
        self.model = deepcopy(model)
        self.flat = FlatParameters(self.model, include)
        self.model.requires_grad_(False)
        for parameter in self.flat.parameters:
            parameter.requires_grad_(True)
        self.weights = self.flat.clean
        if self.weights.itemsize < 4:
            raise InputError(
                f"sharpness drowns in the rounding of {self.weights.dtype}: call model.float() before measuring."
            )
        self._check_samples()
        self._check_repeatable()
        if batch_norm == "reestimated":
            self._reestimate()

    def __len__(self) -> int:
        return len(self.weights)

    def on(self, x: Tensor, y: Tensor) -> "Objective":
        """The same network, with the same statistics of batch normalization, on other samples."""
        other = copy(self)
        other.__dict__.pop("start", None)
        other.x, other.y = x, y
        other._check_samples()
        return other

    @cached_property
    def start(self) -> Value:
        """Loss and accuracy at w*.

        Raises
        ------
        InputError
            If the loss is not finite: nothing can be measured around such a point.
        """
        return finite(self(self.weights))

    @torch.no_grad()
    def __call__(self, w: Tensor) -> Value:
        """Loss and accuracy at w [n]."""
        with self._at(w):
            parts = [
                self._sums(self.model(x), y)
                for x, y in self._chunks(_IN_CACHE if w.device.type == "cpu" else None)
            ]
        return Value(*(torch.stack(part).sum() / len(self.x) for part in zip(*parts, strict=True)))

    @torch.no_grad()
    def many(self, points: Tensor) -> Value:
        """Loss and accuracy at each of the points [K, n], shapes [K]; side by side where the device has room."""
        self._check(points, 2)
        together = 1 if points.device.type == "cpu" else self.chunk // len(self.x)
        if together <= 1:  # one after the other is as fast on a CPU, and where one fills the device
            values = [self(w) for w in points]
            return Value(*(torch.stack(part) for part in zip(*values, strict=True)))
        values = [self._side_by_side(group) for group in points.split(together)]
        return Value(*(torch.cat(part) for part in zip(*values, strict=True)))

    @torch.enable_grad()
    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Loss at w [n] and its gradient [n]."""
        loss, gradient = torch.zeros((), dtype=torch.float64, device=w.device), torch.zeros_like(self.weights)
        with self._at(w):
            for x, y in self._chunks():
                total = self._losses(self.model(x), y).double().sum()
                gradient += flattened(
                    torch.autograd.grad(total, self.flat.parameters, materialize_grads=True)
                )
                loss += total.detach()
        return loss / len(self.x), gradient / len(self.x)

    def hessian_product(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """The function v [n] -> H v [n] at w, by differentiating the gradient along v.

        It keeps a copy of `w`.  If one chunk holds all samples it also keeps the graph of their gradient, which
        spares each product a forward and a backward pass.
        """
        self._check(w)
        w = w.detach().clone()
        leaves = [part.requires_grad_() for part in self.tensors(w)]

        @torch.enable_grad()
        def gradients(x: Tensor, y: Tensor) -> Gradients:
            loss = self._losses(self._outputs(leaves, x), y).double().sum()
            return torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)

        with self._exact():
            kept = [gradients(self.x, self.y)] if len(self.x) <= self.chunk else None

        def product(v: Tensor) -> Tensor:
            self._check(v)
            total = torch.zeros_like(v)
            with self._exact():
                for parts in kept or (gradients(x, y) for x, y in self._chunks()):
                    total += flattened(_derivative(parts, leaves, self.tensors(v)))
            return total / len(self.x)

        return product

    def tensors(self, vector: Tensor) -> list[Tensor]:
        """A vector [n] as views in the shapes of the parameters."""
        parameters = self.flat.parameters
        parts = vector.split([p.numel() for p in parameters])
        return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]

    def rows(self, vector: Tensor) -> list[Tensor]:
        """A vector [n] as matrices, one row a filter or neuron."""
        return self.flat.rows(vector)

    @contextmanager
    def _at(self, w: Tensor) -> Iterator[None]:
        self._check(w)
        with self._exact(), self.flat.at(w):
            yield

    def _exact(self):  # type: ignore[no-untyped-def]  # a context manager
        return precision("float32", self.weights.device)

    def _check(self, points: Tensor, ndim: int = 1) -> None:
        own = self.weights
        kind = (points.ndim, points.shape[-1:], points.dtype, points.device)
        if kind != (ndim, own.shape, own.dtype, own.device):
            raise InputError(
                f"a point or direction in this weight space is a vector of {len(self)} numbers of type {own.dtype} on "
                f"{own.device}, not {list(points.shape)} of {points.dtype} on {points.device}."
            )

    def _check_samples(self) -> None:
        if len(self.x) == 0 or len(self.x) != len(self.y):
            raise InputError(
                f"a loss needs samples and one target for each, not {len(self.x)} samples and {len(self.y)} targets."
            )
        device = self.weights.device
        if {self.x.device, self.y.device} != {device}:
            raise InputError(f"the samples must lie on the model's device, {device}: move them there first.")

    @torch.no_grad()
    def _check_repeatable(self) -> None:
        x, y = self.x[:100], self.y[:100]
        cuda = [x.device] if x.device.type == "cuda" else []
        with self._exact(), torch.random.fork_rng(devices=cuda):
            first, again = (self._losses(self.model(x), y) for _ in range(2))
        if not torch.allclose(first, again, equal_nan=True):
            raise InputError(
                "the loss is random also in evaluation mode: take what draws out of the network first."
            )

    def _chunks(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(self.chunk, most or self.chunk)
        return zip(self.x.split(size), self.y.split(size), strict=True)

    def _losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Loss of each sample; a criterion that averages would pass unnoticed until the last, shorter chunk."""
        losses = self.criterion(outputs, y)
        if losses.shape != y.shape[:1]:
            raise InputError(
                f"the criterion must give one loss a sample, {len(y)} here, not shape {list(losses.shape)}: "
                "with torch's own, reduction='none'."
            )
        return losses

    def _sums(self, outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of loss and of right answers over a chunk; the loss in double precision, because it is subtracted."""
        loss = self._losses(outputs, y).double().sum()
        if outputs.ndim != 2 or y.ndim != 1 or y.is_floating_point():
            return loss, torch.full_like(loss, torch.nan)
        return loss, (outputs.argmax(1) == y).double().sum()

    def _outputs(self, parameters: Iterable[Tensor], x: Tensor) -> Tensor:
        return functional_call(self.model, dict(zip(self.flat.names, parameters, strict=True)), (x,))

    def _side_by_side(self, points: Tensor) -> Value:
        def sums(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return torch.stack(self._sums(self._outputs(self.tensors(w), x), y))

        with self._exact():
            totals = [vmap(sums, (0, None, None))(points, x, y) for x, y in self._chunks()]  # of [K, 2]
        return Value(*(torch.stack(totals).sum(0) / len(self.x)).unbind(1))

    @torch.no_grad()
    def _reestimate(self) -> None:
        """Give every batch normalization the statistics of all samples, when the layers before it have theirs."""
        called: list[BatchNorm] = []
        with _inputs_seen(_batch_norms(self.model), lambda layer, _: called.append(layer)):
            self.model(self.x[:1])
        for layer in dict.fromkeys(called):  # in the order of the forward pass
            self._take_statistics(layer)

    def _take_statistics(self, layer: BatchNorm) -> None:
        moments: list[
            tuple[int, Tensor, Tensor]
        ] = []  # of each chunk: numbers a channel, their mean and variance

        def record(_: BatchNorm, inputs: Tensor) -> None:
            across = [axis for axis in range(inputs.ndim) if axis != 1]
            var, mean = torch.var_mean(inputs, across, correction=0)
            moments.append((inputs.numel() // inputs.shape[1], mean.double(), var.double()))

        with self._exact(), _inputs_seen([layer], record):
            for x, _ in self._chunks():
                self.model(x)
        counts = torch.tensor([count for count, _, _ in moments], dtype=torch.float64, device=self.x.device)[
            :, None
        ]
        means, variances = (torch.stack(column) for column in list(zip(*moments, strict=True))[1:])
        n = counts.sum()
        if n < 2:
            raise InputError(
                "one number a channel has no variance: give more samples, or batch_norm='stored'."
            )
        mean = (counts * means).sum(0) / n
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / (n - 1)  # unbiased, as torch's
        for running, new in ((layer.running_mean, mean), (layer.running_var, variance)):
            assert running is not None
            running.copy_(new)


def finite(value: Value) -> Value:
    """Return what was found at the network's own weights if its loss is finite, else raise `InputError`."""
    if not torch.isfinite(value.loss):
        raise InputError(
            f"the loss at the network's own weights is {value.loss:g}: train it again before measuring."
        )
    return value


def flattened(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors, such as gradients by parameter, into one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def _derivative(gradients: Gradients, leaves: list[Tensor], direction: list[Tensor]) -> Gradients:
    """Derivative of the gradients along a direction; those that are constant, as of an unused layer, have none."""
    pairs = [(g, d) for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    varying, along = zip(*pairs, strict=True)
    return torch.autograd.grad(varying, leaves, along, retain_graph=True, materialize_grads=True)


def _batch_norms(model: nn.Module) -> list[BatchNorm]:
    return [module for module in model.modules() if isinstance(module, BatchNorm)]


@contextmanager
def _inputs_seen(layers: Iterable[BatchNorm], see: Callable[[BatchNorm, Tensor], None]) -> Iterator[None]:
    """Call ``see(layer, input)`` for every layer the model runs through."""
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: see(layer, inputs[0])) for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
