"""The loss of a network on a data set as a pure function of its weights, one flat vector.

An `Objective` answers what sharpness, landscapes and gradient noise ask from a copy of the network, so that the network
itself, its mode, buffers and gradients and torch's random state cannot change, whatever happens in between.

>>> model = nn.Linear(1, 1, bias=False).eval()  # out = w x, with the loss (w x)² of a sample
>>> _ = nn.init.constant_(model.weight, 3.0)
>>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2)
>>> objective = Objective(model, x, y, criterion=lambda out, y: (out[:, 0] - y) ** 2)
>>> objective.gradient(objective.weights)  # (3² + 6²)/2 and 2 w (1² + 2²)/2
(tensor(22.5000, dtype=torch.float64), tensor([15.]))
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from nb_lib.errors import InputError, known, whole
from nb_lib.lab.batch_statistics import reestimate
from nb_lib.lab.foreign import PlainWeightNorm, explained, measurable, network_at, plainly, quiet
from nb_lib.lab.losses import Value, cross_entropy
from nb_lib.lab.samples import Index, Samples, feed, part, taken
from nb_lib.lab.trials import require_a_function, require_a_hessian, require_gradients, vectorizes
from nb_lib.lab.weight_vector import FlatParameters, Selection

_IN_CACHE = 500  # samples whose activations stay in a processor's cache, which saves a fifth of a forward pass
_MISFIT = "the network, x, y and the criterion do not fit together: criterion(model(x), y) must be one loss a sample"
_NOT_TWICE = "torch has no second derivative of this network: replace the layer or operation that torch speaks of"


class Objective:
    """Mean loss over all samples as a function of the flat weights w [n] (NE eq. 1, SmoothOut eq. 7).

    Products are taken in full float32 (no TF32, no autocast), and losses, which are subtracted, added up in float64.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    x : Tensor, shape [N, ...], or tuple or dict of such
        Samples, on the model's device, given to it as ``model(x)``, ``model(*x)`` or ``model(**x)``.
    y : Tensor, shape [N, ...]
        One target for each.
    criterion : callable
        ``f(outputs, y) -> [N]``, the loss of each sample, from whatever the network gives.
    include : str or callable
        Which of the trainable parameters w holds (see `nb_lib.lab.weight_vector`); the others stay as they are.
    batch_norm : {"reestimated", "stored"}
        Running statistics, the same at any w: those of all samples at w* (`lab.batch_statistics`), or as they are.
    chunk : int
        Most samples in memory at once; the values do not depend on it.

    Attributes
    ----------
    weights : Tensor, shape [n]
        The network's own, w*.

    Raises
    ------
    InputError
        If the network is in training mode, computes in half precision or mixes samples, or its loss is random also in
        evaluation mode, or if there are no samples, or `x`, `y`, the model and the criterion do not fit together.
        Derivatives also raise it if torch has none of this network.
    """

    fast_attention = True  # torch's kernels without gradients, where they give the same
    fused_weight_norm = True
    differentiable = twice_differentiable = False  # as far as was tried

    def __init__(
        self,
        model: nn.Module,
        x: Samples,
        y: Tensor,
        *,
        criterion: Callable[[Any, Tensor], Tensor] = cross_entropy,
        include: Selection = "all",
        batch_norm: str = "reestimated",
        chunk: int = 10_000,
    ) -> None:
        known("treatment of batch normalization", batch_norm, ["reestimated", "stored"])
        self.criterion = criterion
        self.chunk = whole("chunk, the most samples in memory at once,", chunk, 1)
        self.model = measurable(model)
        self.flat = FlatParameters(self.model, include)
        self.model.requires_grad_(False)
        for parameter in self.flat.parameters:
            parameter.requires_grad_(True)
        self.weights = self.flat.clean
        self._take(x, y)
        require_a_function(self, model)
        if batch_norm == "reestimated":
            with self.exact():
                reestimate(self.model, [x for x, _ in self.chunks()])

    def __len__(self) -> int:
        return len(self.weights)

    def on(self, x: Samples, y: Tensor) -> "Objective":
        """The same network, with the same statistics of batch normalization, on other samples."""
        other = copy(self)
        other.__dict__.pop("start", None)  # known of these samples only
        other._take(x, y)
        return other

    @cached_property
    def start(self) -> Value:
        """Loss and accuracy at w*; raises `InputError` if the loss is not finite."""
        value = self(self.weights)
        if not torch.isfinite(value.loss):
            raise InputError(
                f"the loss at the network's own weights is {value.loss:g}: train it again before measuring."
            )
        return value

    @torch.no_grad()
    def __call__(self, w: Tensor) -> Value:
        """Loss and accuracy at w [n]."""
        most = _IN_CACHE if w.device.type == "cpu" else self.chunk
        with self.at(w):
            total = Value.stack([self._sums(self.outputs(x), y) for x, y in self.chunks(most)])
        return Value(total.loss.sum() / self.N, total.accuracy.sum() / self.N)

    @torch.no_grad()
    def many(self, points: Tensor) -> Value:
        """Loss and accuracy at each of the points [K, n], shapes [K]; side by side where the device has room."""
        self._check(points, 2)
        together = self.chunk // self.N
        if points.device.type == "cpu" or together <= 1 or not self.vectorizes:  # one after the other is as fast
            return Value.stack([self(w) for w in points])
        return self.side_by_side(points, together)

    @torch.enable_grad()
    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Loss at w [n] and its gradient [n]."""
        self.require_gradients()
        loss = torch.zeros((), dtype=torch.float64, device=w.device)
        gradient = torch.zeros_like(self.weights)
        with self.at(w):
            for x, y in self.chunks():
                total = self.losses(self.outputs(x), y).double().sum()
                parts = torch.autograd.grad(total, self.flat.parameters, materialize_grads=True)
                loss += total.detach()
                gradient += flattened(parts)
        return loss / self.N, gradient / self.N

    def hessian_product(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """The function v [n] -> H v [n] at w, by differentiating the gradient along v.

        If one chunk holds all samples it keeps their gradient's graph, which spares each product two passes.
        """
        self._check(w)
        self.require_gradients()
        if not self.twice_differentiable:
            require_a_hessian(self)
            self.twice_differentiable = True
        network = network_at(self.model, dict(zip(self.flat.names, self.tensors(w), strict=True)))
        leaves = [network.get_parameter(name) for name in self.flat.names]

        @torch.enable_grad()
        def gradients(x: Samples, y: Tensor) -> tuple[Tensor, ...]:  # one a parameter
            loss = self.losses(self.outputs(x, network), y).double().sum()
            return torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)

        kept = []
        if self.chunk >= self.N:
            with self._twice():
                kept.append(gradients(self.x, self.y))

        def product(v: Tensor) -> Tensor:
            self._check(v)
            direction = self.tensors(v)
            total = torch.zeros_like(v)
            with self._twice():
                for graph in kept or (gradients(x, y) for x, y in self.chunks()):
                    total += flattened(_derivative(graph, leaves, direction))
            return total / self.N

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
    def at(self, w: Tensor) -> Iterator[None]:
        """Inside, `model` has the weights w [n], and products are taken in full precision."""
        self._check(w)
        with self.exact(), self.flat.at(w):
            yield

    def exact(self) -> AbstractContextManager[None]:
        """Inside, products are taken in full precision, and the network is a function that torch can differentiate."""
        return plainly(self.model, self.weights.device, self.fast_attention)

    def part(self, index: Index) -> tuple[Samples, Tensor]:
        """Some samples and their targets."""
        return part(self.x, index), self.y[index]

    def chunks(self, most: int | None = None) -> Iterator[tuple[Samples, Tensor]]:
        """All samples, at most `chunk` of them (and at most `most`) at a time: x and y of each part."""
        size = min(self.chunk, most or self.chunk)
        for first in range(0, self.N, size):
            yield self.part(slice(first, first + size))

    def outputs(self, x: Samples, network: Callable[..., Any] | None = None) -> Any:
        """What the network gives for `x` where it is, or what another network gives."""
        with explained(_MISFIT):
            return feed(self.model if network is None else network, x)

    def network_with(self, parameters: Iterable[Tensor]) -> Callable[..., Any]:
        """The network as a function of samples with these parameters, in the shapes of `tensors`, for `torch.func`."""
        named = dict(zip(self.flat.names, parameters, strict=True))
        return lambda *args, **kwargs: functional_call(self.model, named, args, kwargs)

    def losses(self, outputs: Any, y: Tensor) -> Tensor:
        """Loss of each sample [N]; raises `InputError` if the criterion averages, which a mean of chunks would hide."""
        with explained(_MISFIT):
            losses = self.criterion(outputs, y)
            shape = list(losses.shape)
        if shape != [len(y)]:
            raise InputError(
                f"the criterion must give one loss a sample, {len(y)} here, not shape {shape}: "
                "with torch's own, reduction='none'; in a network, squeeze(-1) instead of squeeze()."
            )
        return losses

    def require_gradients(self) -> None:
        """Raise `InputError` unless torch has the gradient of this network; tried once."""
        if torch.is_inference_mode_enabled() or not self.differentiable:
            require_gradients(self)
            self.differentiable = True

    @cached_property
    def vectorizes(self) -> bool:
        """Whether `torch.func` computes what the network does."""
        return vectorizes(self)

    def _sums(self, outputs: Any, y: Tensor) -> Value:
        return Value.total(self.losses(outputs, y), outputs, y)

    def side_by_side(self, points: Tensor, together: int) -> Value:
        """Values at the points [K, n], from one pass over all samples for each so many points."""

        def sums(w: Tensor) -> Value:
            network = self.network_with(self.tensors(w))
            return self._sums(self.outputs(self.x, network), self.y)

        with self.exact(), quiet():
            total = vmap(sums, chunk_size=together)(points)
        return Value(total.loss / self.N, total.accuracy / self.N)

    @contextmanager
    def _twice(self) -> Iterator[None]:
        """Inside, what can be differentiated twice is, without the kernels of attention that cannot."""
        weight_norm = nullcontext() if self.fused_weight_norm else PlainWeightNorm()
        with self.exact(), sdpa_kernel(SDPBackend.MATH), weight_norm, explained(_NOT_TWICE):
            yield

    def _check(self, points: Tensor, ndim: int = 1) -> None:
        own = self.weights
        kind = (points.ndim, points.shape[-1:], points.dtype, points.device)
        if kind != (ndim, own.shape, own.dtype, own.device):
            raise InputError(
                f"a point or direction in this weight space is a vector of {len(self)} numbers of type {own.dtype} on "
                f"{own.device}, not {list(points.shape)} of {points.dtype} on {points.device}."
            )

    def _take(self, x: Samples, y: Tensor) -> None:
        self.x, self.y = taken(x, y, self.weights.device)
        self.N = len(self.y)


def flattened(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors, such as gradients by parameter, sparse ones too, into one vector."""
    return torch.cat([t.to_dense().reshape(-1) for t in tensors])


def _derivative(gradients: Sequence[Tensor], leaves: Sequence[Tensor], direction: list[Tensor]) -> Sequence[Tensor]:
    """Derivative of the gradients along a direction; those that are constant, as of an unused layer, have none."""
    varying = [g for g in gradients if g.requires_grad]
    if not varying:
        return [torch.zeros_like(leaf) for leaf in leaves]
    along = [d for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
    return torch.autograd.grad(varying, leaves, along, retain_graph=True, materialize_grads=True)
