"""The N x n matrix of single samples' gradients: norms, inner products, projections, without forming it.

The layers of most networks factor their part of sample i's gradient, Σ_t d_it a_itᵀ (see `lab.layer_factors`).  Where
there is one position t, ⟨g_i, g_j⟩ = ⟨a_i, a_j⟩ ⟨d_i, d_j⟩, as for every dense layer.  The gradients of other networks
are formed, some samples at a time.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property, reduce
from itertools import chain
from numbers import Integral

import torch
from torch import Tensor
from torch.func import grad, vmap

from nb_lib.errors import InputError
from nb_lib.lab.foreign import quiet
from nb_lib.lab.layer_factors import Factor, LayerFactors, layer_calls, widest_factor
from nb_lib.lab.samples import Samples, each, part
from nb_lib.lab.trials import close
from nb_lib.objective import Objective, flattened

NUMBERS = 2**25  # in the largest intermediate array (128 MiB in single precision)
Part = tuple[slice, Iterable[Factor]]  # which samples, and the factors of their gradients, one a parameter


def squared_gradient_norms(objective: Objective) -> Tensor:
    """‖g_i‖² of every sample, shape [N], float64.

    Raises
    ------
    InputError
        If torch has no gradient of the network, or the gradients are not finite.

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1, bias=False).eval()
    >>> x = torch.tensor([[3.0, 4.0]])
    >>> outputs = Objective(model, x, torch.zeros(1), criterion=lambda outputs, y: outputs[:, 0])
    >>> squared_gradient_norms(outputs).tolist()
    [25.0]
    """
    squares = []
    with _gradients(objective) as gradients:
        for _, factors in gradients.parts():
            of_part = _sum(_squares(factor) for factor in factors)
            squares.append(of_part)
    return _finite(torch.cat(squares))


def gram(objective: Objective) -> Tensor:
    """Inner products ⟨g_i, g_j⟩ of all gradients, shape [N, N], float64; errors as for the norms."""
    n = objective.N
    device = objective.weights.device
    products = torch.empty(n, n, dtype=torch.float64, device=device)
    with _gradients(objective) as gradients:
        for rows, left in gradients.parts():
            others = gradients.parts(start=rows.stop)
            for columns, right in chain([(rows, left)], others):
                of_parameters = map(_products, left, right)
                block = _sum(of_parameters)
                products[rows, columns] = block
                products[columns, rows] = block.T
    return _finite(products)


def projections(objective: Objective, count: int = 100, *, seed: int = 0) -> Tensor:
    """⟨g_i, v_r⟩ of every gradient with `count` random unit vectors, shape [N, count], float64.

    From these `gradient_noise.minibatch_noise` makes the noise of every batch size and every α.
    """
    if not isinstance(count, Integral) or count < 1:
        raise InputError(f"at least 1 direction is needed, not {count}.")
    found = []
    with _gradients(objective) as gradients:
        for _, factors in gradients.parts():
            blocks = _directions(count, objective.weights, seed)
            columns = [_sum(_projected(factors, block)) for block in blocks]
            of_part = torch.cat(columns, 1)
            found.append(of_part)
    return _finite(torch.cat(found))


def principal_projections(objective: Objective) -> tuple[Tensor, Tensor]:
    """Centered gradients along the principal axes of S, [N, N − 1], and its eigenvalues [N − 1], largest first.

    If V Λ Vᵀ is the matrix of inner products ⟨g_i − ḡ, g_j − ḡ⟩, these are V √Λ and Λ / N.  Errors as for the norms.
    """
    products = centered(gram(objective))
    values, vectors = torch.linalg.eigh(products)
    values = values.flip(0)[:-1]  # without the one that centering makes 0
    vectors = vectors.flip(1)[:, :-1]
    values = values.clamp(min=0)
    along_axes = vectors * values.sqrt()
    eigenvalues = values / len(products)
    return along_axes, eigenvalues


def centered(products: Tensor) -> Tensor:
    """⟨g_i − ḡ, g_j − ḡ⟩ from ⟨g_i, g_j⟩, both [N, N]."""
    of_rows = products.mean(0)
    of_all = of_rows.mean()
    return products - of_rows - of_rows[:, None] + of_all


class _Gradients:
    """Factors of all gradients, some samples at a time."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.tried = torch.arange(3, device=objective.y.device) % objective.N
        x, y = objective.part(self.tried)
        _finite(objective.losses(objective.outputs(x), y))
        self.widest = widest_factor(objective, x)  # None: the layers do not factor the gradients
        numbers = len(objective.weights) if self.widest is None else self.widest
        fitting = NUMBERS // numbers
        self.size = max(1, min(objective.chunk, fitting))

    @cached_property
    def formed(self) -> Callable[[Objective, Samples, Tensor], Tensor]:
        """The quickest way to form gradients of this network, tried on some samples."""
        x, y = self.objective.part(self.tried[: self.size])
        expected = _one_by_one(self.objective, x, y)
        try:
            found = _side_by_side(self.objective, x, y)
        except Exception:  # torch has no rule for some layer
            return _one_by_one
        return _side_by_side if close(found, expected) else _one_by_one

    def parts(self, start: int = 0) -> Iterator[Part]:
        """Those of the samples from `start` on."""
        n = self.objective.N
        for first in range(start, n, self.size):
            stop = min(first + self.size, n)
            part = slice(first, stop)
            x, y = self.objective.part(part)
            factors = self._factors(x, y)
            yield part, factors

    def _factors(self, x: Samples, y: Tensor) -> Iterable[Factor]:
        objective = self.objective

        def loss(outputs: Tensor) -> Tensor:
            return objective.losses(outputs, y).sum()

        if self.widest is None:  # whole gradients are factors, too: of one parameter with a single row
            a = self.formed(objective, x, y)[:, None]
            one = torch.ones_like(a[..., :1])
            return [Factor(a, one)]
        calls = layer_calls(objective, x, loss)
        return LayerFactors(objective.flat.parameters, calls)


@contextmanager
def _gradients(objective: Objective) -> Iterator[_Gradients]:
    """Those at the objective's weights, to be asked for inside only: the network is there."""
    objective.require_gradients()
    with torch.enable_grad(), objective.at(objective.weights):
        yield _Gradients(objective)


def _side_by_side(objective: Objective, x: Samples, y: Tensor) -> Tensor:
    """The gradient of every sample, one a row."""

    def loss(parameters: list[Tensor], x: Samples, y: Tensor) -> Tensor:
        network = objective.network_with(parameters)
        outputs = objective.outputs(each(x, _alone), network)
        losses = objective.losses(outputs, y[None])
        return losses.sum()

    of_each_sample = vmap(grad(loss), (None, 0, 0))
    parameters = objective.tensors(objective.weights)
    with quiet():
        gradients = of_each_sample(parameters, x, y)
    rows = [g.reshape(len(y), -1) for g in gradients]
    return torch.cat(rows, 1)


def _one_by_one(objective: Objective, x: Samples, y: Tensor) -> Tensor:
    """The same, sample after sample, for networks that torch.func cannot take."""
    rows = []
    for i in range(len(y)):
        alone = slice(i, i + 1)
        losses = objective.losses(objective.outputs(part(x, alone)), y[alone])
        gradients = torch.autograd.grad(losses.sum(), objective.flat.parameters, materialize_grads=True)
        rows.append(flattened(gradients))
    return torch.stack(rows)


def _alone(sample: Tensor) -> Tensor:
    return sample[None]


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _some_filters(factor: Factor, samples: int) -> Iterable[Tensor]:
    """Split d into some filters at a time, so that the gradients formed of so many samples fit into memory."""
    of_a_filter = samples * factor.a.shape[2]
    several = max(1, NUMBERS // of_a_filter)
    return factor.d.split(several, 2)


def _squares(factor: Factor) -> Tensor:
    """‖Σ_t d_t a_tᵀ‖² of every sample [N]."""
    if factor.one_position:
        a_squares = factor.a.square().sum((1, 2))
        d_squares = factor.d.square().sum((1, 2))
        squares = a_squares * d_squares
        return squares.double()
    parts = []
    for d in _some_filters(factor, len(factor.a)):
        gradients = factor.formed(d)
        squares = gradients.square().sum(1)
        parts.append(squares.double())
    return _sum(parts)


def _products(left: Factor, right: Factor) -> Tensor:
    """Inner products of every sample on the left with every one on the right."""
    if left.one_position and right.one_position:
        a_products = left.a[:, 0] @ right.a[:, 0].T
        d_products = left.d[:, 0] @ right.d[:, 0].T
        products = a_products * d_products
        return products.double()
    samples = max(len(left.a), len(right.a))
    left_filters = _some_filters(left, samples)
    right_filters = _some_filters(right, samples)
    parts = []
    for d, e in zip(left_filters, right_filters, strict=True):
        of_left = left.formed(d)
        of_right = right.formed(e)
        products = of_left @ of_right.T
        parts.append(products.double())
    return _sum(parts)


def _projected(factors: Iterable[Factor], directions: Tensor) -> Iterator[Tensor]:
    """Parts whose sum is the inner products of every sample with every direction."""
    start = 0
    for factor in factors:
        if factor.one_position:
            a = factor.a[:, 0]
            d = factor.d[:, 0]
            filters, width = d.shape[1], a.shape[1]
            stop = start + filters * width
            v = directions[:, start:stop]
            v = v.reshape(-1, filters, width)
            along = _along_rank_one(a, d, v)
            yield along.double()
            start = stop
            continue
        for d in _some_filters(factor, len(factor.a)):
            g = factor.formed(d)
            stop = start + g.shape[1]
            along = g @ directions[:, start:stop].T
            yield along.double()
            start = stop


def _along_rank_one(a: Tensor, d: Tensor, v: Tensor) -> Tensor:
    """⟨d_i a_iᵀ, V_r⟩ = d_iᵀ V_r a_i of every sample and direction."""
    several = max(1, NUMBERS // d.numel())
    columns = []
    for some in v.split(several):
        vectors = some.flatten(0, 1)
        along_a = a @ vectors.T
        along_a = along_a.unflatten(1, some.shape[:2])
        along = torch.einsum("nro,no->nr", along_a, d)
        columns.append(along)
    return torch.cat(columns, 1)


def _directions(count: int, w: Tensor, seed: int) -> Iterator[Tensor]:
    """Random unit vectors, some at a time."""
    n = len(w)
    several = max(1, NUMBERS // n)
    generator = torch.Generator(w.device).manual_seed(seed)
    for start in range(0, count, several):
        together = min(several, count - start)
        block = w.new_empty(together, n)
        for row in block:  # one at a time: what is drawn must not depend on the size of the blocks
            row.normal_(generator=generator)
        lengths = block.norm(dim=1, keepdim=True)
        yield block / lengths


def _finite(result: Tensor) -> Tensor:
    finite = result.isfinite()
    if not finite.all():
        raise InputError("the loss or its gradients are not finite at this point: nothing can be measured there.")
    return result
