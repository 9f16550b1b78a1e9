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
from contextlib import AbstractContextManager, contextmanager
from copy import copy, deepcopy
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nb_lib.errors import InputError, known, whole
from nb_lib.lab.batch_statistics import batch_norms, reestimate
from nb_lib.lab.device import initial_random_state, precision, random_state
from nb_lib.lab.weight_vector import FlatParameters, Selection

_IN_CACHE = 500  # samples whose activations stay in a processor's cache, which saves a fifth of a forward pass


class Value(NamedTuple):
    """What a network does at one point, or with a leading axis at several."""

    loss: Tensor  # mean over the samples, float64
    accuracy: Tensor  # fraction of the samples, float64; NaN if the outputs are not one score a class

    @classmethod
    def stack(cls, values: Sequence["Value"]) -> "Value":
        """Values at single points as one, with a leading axis."""
        return cls(torch.stack([v.loss for v in values]), torch.stack([v.accuracy for v in values]))


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each sample, in nats."""
    return F.cross_entropy(outputs, y, reduction="none")


class Objective:
    """Mean loss over all samples as a function of the flat weights w [n] (NE eq. 1, SmoothOut eq. 7).

    Products are taken in full float32 (no TF32, no autocast), and losses, which are subtracted, added up in float64.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    x, y : Tensor, shape [N, ...], [N]
        Samples, on the model's device.
    criterion : callable
        ``f(outputs, y) -> [N]``, the loss of each sample.
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
        If the network is in training mode, has weights in half precision or a loss that is random also in evaluation
        mode, or if there are no samples, or `x`, `y`, the model and the criterion do not fit together.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        include: Selection = "all",
        batch_norm: str = "reestimated",
        chunk: int = 10_000,
    ) -> None:
        known("treatment of batch normalization", batch_norm, ["reestimated", "stored"])
        if any(module.training for module in model.modules()):
            raise InputError("the network is in training mode, where its loss is random: call model.eval() first.")
        if any(layer.running_mean is None for layer in batch_norms(model)):
            raise InputError(
                "batch normalization without running statistics makes a sample's loss depend on the others: "
                "build it with track_running_stats=True."
            )
        self.criterion = criterion
        self.chunk = whole("chunk, the most samples in memory at once,", chunk, 1)
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
        self._take(x, y)
        self._check_repeatable()
        if batch_norm == "reestimated":
            with self._exact():
                reestimate(self.model, x.split(chunk))

    def __len__(self) -> int:
        return len(self.weights)

    def on(self, x: Tensor, y: Tensor) -> "Objective":
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
            total = Value.stack([self._sums(self.model(x), y) for x, y in self.chunks(most)])
        return Value(total.loss.sum() / self.N, total.accuracy.sum() / self.N)

    @torch.no_grad()
    def many(self, points: Tensor) -> Value:
        """Loss and accuracy at each of the points [K, n], shapes [K]; side by side where the device has room."""
        self._check(points, 2)
        together = self.chunk // self.N
        if points.device.type == "cpu" or together <= 1:  # one after the other is as fast
            return Value.stack([self(w) for w in points])
        return self._side_by_side(points, together)

    @torch.enable_grad()
    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Loss at w [n] and its gradient [n]."""
        loss = torch.zeros((), dtype=torch.float64, device=w.device)
        gradient = torch.zeros_like(self.weights)
        with self.at(w):
            for x, y in self.chunks():
                total = self.losses(self.model(x), y).double().sum()
                parts = torch.autograd.grad(total, self.flat.parameters, materialize_grads=True)
                loss += total.detach()
                gradient += flattened(parts)
        return loss / self.N, gradient / self.N

    def hessian_product(self, w: Tensor) -> Callable[[Tensor], Tensor]:
        """The function v [n] -> H v [n] at w, by differentiating the gradient along v.

        If one chunk holds all samples it keeps their gradient's graph, which spares each product two passes.
        """
        self._check(w)
        leaves = [part.requires_grad_() for part in self.tensors(w.detach().clone())]

        @torch.enable_grad()
        def gradients(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:  # one a parameter
            loss = self.losses(self.outputs(leaves, x), y).double().sum()
            return torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)

        kept = []
        if self.chunk >= self.N:
            with self._exact():
                kept.append(gradients(self.x, self.y))

        def product(v: Tensor) -> Tensor:
            self._check(v)
            direction = self.tensors(v)
            total = torch.zeros_like(v)
            with self._exact():
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
        with self._exact(), self.flat.at(w):
            yield

    def chunks(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples, at most `chunk` of them (and at most `most`) at a time: x and y of each part."""
        size = min(self.chunk, most or self.chunk)
        return zip(self.x.split(size), self.y.split(size), strict=True)

    def outputs(self, parameters: Iterable[Tensor], x: Tensor) -> Tensor:
        """What the network gives for `x` with these parameters, in the shapes of `tensors`; differentiable."""
        named = dict(zip(self.flat.names, parameters, strict=True))
        return functional_call(self.model, named, (x,))

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Loss of each sample [N]; raises `InputError` if the criterion averages, which a mean of chunks would hide."""
        losses = self.criterion(outputs, y)
        if losses.shape != y.shape[:1]:
            raise InputError(
                f"the criterion must give one loss a sample, {len(y)} here, not shape {list(losses.shape)}: "
                "with torch's own, reduction='none'."
            )
        return losses

    def _sums(self, outputs: Tensor, y: Tensor) -> Value:
        """Sums of loss and of right answers over some samples."""
        loss = self.losses(outputs, y).double().sum()
        classifies = outputs.ndim == 2 and y.ndim == 1 and not y.is_floating_point()
        if not classifies:
            return Value(loss, torch.full_like(loss, torch.nan))
        right = outputs.argmax(1) == y
        return Value(loss, right.double().sum())

    def _side_by_side(self, points: Tensor, together: int) -> Value:
        """Values at the points [K, n], from one pass over all samples for each so many points."""

        def sums(w: Tensor) -> Value:
            return self._sums(self.outputs(self.tensors(w), self.x), self.y)

        with self._exact():
            total = vmap(sums, chunk_size=together)(points)
        return Value(total.loss / self.N, total.accuracy / self.N)

    def _exact(self) -> AbstractContextManager[None]:
        return precision("float32", self.weights.device)

    def _check(self, points: Tensor, ndim: int = 1) -> None:
        own = self.weights
        kind = (points.ndim, points.shape[-1:], points.dtype, points.device)
        if kind != (ndim, own.shape, own.dtype, own.device):
            raise InputError(
                f"a point or direction in this weight space is a vector of {len(self)} numbers of type {own.dtype} on "
                f"{own.device}, not {list(points.shape)} of {points.dtype} on {points.device}."
            )

    def _take(self, x: Tensor, y: Tensor) -> None:
        if len(x) == 0 or len(x) != len(y):
            raise InputError(
                f"a loss needs samples and one target for each, not {len(x)} samples and {len(y)} targets."
            )
        home = self.weights.device
        if {x.device, y.device} != {home}:
            raise InputError(f"the samples must lie on the model's device, {home}: move them there first.")
        self.x, self.y, self.N = x, y, len(x)

    @torch.no_grad()
    def _check_repeatable(self) -> None:
        x, y = self.x[:100], self.y[:100]
        with self._exact(), random_state(x.device, initial_random_state(x.device, 0)):
            first = self.losses(self.model(x), y)
            again = self.losses(self.model(x), y)
        if not torch.allclose(first, again, equal_nan=True):
            raise InputError("the loss is random also in evaluation mode: take what draws out of the network first.")


def flattened(tensors: Iterable[Tensor]) -> Tensor:
    """Concatenate tensors, such as gradients by parameter, into one vector."""
    return torch.cat([t.reshape(-1) for t in tensors])


def _derivative(gradients: Sequence[Tensor], leaves: list[Tensor], direction: list[Tensor]) -> Sequence[Tensor]:
    """Derivative of the gradients along a direction; those that are constant, as of an unused layer, have none."""
    varying = [g for g in gradients if g.requires_grad]
    if not varying:
        return [torch.zeros_like(leaf) for leaf in leaves]
    along = [d for g, d in zip(gradients, direction, strict=True) if g.requires_grad]
    return torch.autograd.grad(varying, leaves, along, retain_graph=True, materialize_grads=True)
