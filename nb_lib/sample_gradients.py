"""The N x n matrix of single samples' gradients: norms, inner products, projections, without forming it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.func import grad, vmap

from nb_lib.errors import InputError
from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.objective import Objective, flattened

#: Numbers in the largest intermediate array (128 MiB in single precision).
NUMBERS = 2**25


#: A parameter's part of the gradients, Σ_t d_t a_tᵀ in the parameter's order: a [N, T, K] and d [N, T, O].
Factor = tuple[Tensor, Tensor]


def squared_gradient_norms(objective: Objective, *, at: Tensor | None = None) -> Tensor:
    """‖g_i‖² of every sample, shape [N], float64."""
    with _gradients(objective, at) as gradients:
        squares = [_sum(_squares(*factor) for factor in factors) for _, factors in gradients()]
    return _finite(torch.cat(squares))


def gram(objective: Objective, *, at: Tensor | None = None) -> Tensor:
    """Inner products ⟨g_i, g_j⟩ of all gradients, shape [N, N], float64."""
    n = len(objective.x)
    products = torch.empty(n, n, dtype=torch.float64, device=objective.weights.device)
    with _gradients(objective, at) as gradients:
        for rows, left in gradients():
            for columns, right in chain([(rows, left)], gradients(rows.stop)):
                block = _sum(_products(f, g) for f, g in zip(left, right, strict=True))
                products[rows, columns] = block
                products[columns, rows] = block.T
    return _finite(products)


def projections(
    objective: Objective, directions: int | Tensor = 100, *, at: Tensor | None = None, seed: int = 0
) -> Tensor:
    """⟨g_i, v_r⟩ of every gradient with every direction, shape [N, R], float64.

    From these `minibatch_noise` makes the noise of every batch size and every α.

    Parameters
    ----------
    directions : int or Tensor, shape [R, n]
        As many random unit vectors, drawn from `seed` (on the objective's device); or the directions themselves.
    """
    if isinstance(directions, Tensor):
        if directions.ndim != 2 or directions.shape[1] != len(objective):
            raise InputError(
                f"directions must be of shape [R, {len(objective)}], not {list(directions.shape)}."
            )
    elif directions < 1:
        raise InputError(f"at least 1 direction is needed, not {directions}.")
    with _gradients(objective, at) as gradients:
        parts = []
        for _, factors in gradients():
            blocks = _blocks_of(directions, objective.weights, seed)
            parts.append(torch.cat([_projected(factors, block) for block in blocks], 1))
    return _finite(torch.cat(parts))


def sample_gradients(objective: Objective, *, at: Tensor | None = None) -> Tensor:
    """The gradients themselves, shape [N, n], by ``torch.func``; for small networks."""
    w = objective.weights if at is None else at
    size = max(1, min(objective.chunk, NUMBERS // len(objective)))
    parts = zip(objective.x.split(size), objective.y.split(size), strict=True)
    with objective._at(w):
        _require_separate_samples(objective)
        return _finite(torch.cat([_rows(objective, w, x, y) for x, y in parts]))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, parts)


def _squares(a: Tensor, d: Tensor) -> Tensor:
    """‖Σ_t d_t a_tᵀ‖² of every sample [N]."""
    if a.shape[1] == 1:
        return (a.square().sum((1, 2)) * d.square().sum((1, 2))).double()
    return _sum(_formed(a, part).square().sum(1).double() for part in _filters(a, d))


def _products(left: Factor, right: Factor) -> Tensor:
    """Inner products of every sample on the left with every one on the right."""
    (a, d), (b, e) = left, right
    if a.shape[1] == b.shape[1] == 1:
        return ((a[:, 0] @ b[:, 0].T) * (d[:, 0] @ e[:, 0].T)).double()
    width = max(1, NUMBERS // (max(len(a), len(b)) * a.shape[2]))
    pairs = zip(d.split(width, 2), e.split(width, 2), strict=True)
    return _sum((_formed(a, p) @ _formed(b, q).T).double() for p, q in pairs)


def _projected(factors: Iterable[Factor], directions: Tensor) -> Tensor:
    """Inner products of every sample with every direction."""
    total, start = torch.zeros((), dtype=torch.float64, device=directions.device), 0
    for a, d in factors:
        rows, width = d.shape[2], a.shape[2]
        v = directions[:, start : start + rows * width]
        start += rows * width
        if a.shape[1] == 1:
            total = total + _along_rank_one(a[:, 0], d[:, 0], v.reshape(-1, rows, width)).double()
            continue
        offset = 0
        for part in _filters(a, d):
            g = _formed(a, part)
            total = total + (g @ v[:, offset : offset + g.shape[1]].T).double()
            offset += g.shape[1]
    return total


def _along_rank_one(a: Tensor, d: Tensor, v: Tensor) -> Tensor:
    """⟨d_i a_iᵀ, V_r⟩ = d_iᵀ V_r a_i."""
    several = max(1, NUMBERS // d.numel())
    parts = [(a @ part.flatten(0, 1).T).unflatten(1, part.shape[:2]) for part in v.split(several)]
    return torch.cat([torch.einsum("nro,no->nr", part, d) for part in parts], 1)


def _formed(a: Tensor, d: Tensor) -> Tensor:
    """Σ_t d_t a_tᵀ of every sample, as vectors."""
    return torch.bmm(d.transpose(1, 2), a).flatten(1)


def _filters(a: Tensor, d: Tensor) -> Iterable[Tensor]:
    """Split d into some filters at a time, so that the gradients formed fit into memory."""
    return d.split(max(1, NUMBERS // (len(a) * a.shape[2])), 2)


def _blocks_of(directions: int | Tensor, weights: Tensor, seed: int) -> Iterator[Tensor]:
    several = max(1, NUMBERS // len(weights))
    if isinstance(directions, Tensor):
        yield from directions.to(weights).split(several)
        return
    generator = torch.Generator(weights.device).manual_seed(seed)
    for start in range(0, directions, several):
        block = weights.new_empty(min(several, directions - start), len(weights))
        for row in block:  # one at a time: what is drawn must not depend on the size of the blocks
            row.normal_(generator=generator)
        yield block / block.norm(dim=1, keepdim=True)


_LAYERS = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, GhostBatchNorm)


Gradients = Callable[..., Iterator[tuple[slice, Iterable[Factor]]]]


@contextmanager
def _gradients(objective: Objective, at: Tensor | None) -> Iterator[Gradients]:
    """Factors of all gradients at a point, some samples at a time: ``gradients(start)`` begins at sample `start`."""
    w = objective.weights if at is None else at

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return objective._losses(outputs, y).sum()

    def gradients(start: int = 0) -> Iterator[tuple[slice, Iterable[Factor]]]:
        for first in range(start, len(objective.x), size):
            part = slice(first, min(first + size, len(objective.x)))
            x, y = objective.x[part], objective.y[part]
            if factored:
                yield part, _Layers(objective, x, partial(loss, y=y))
            else:  # whole gradients are factors, too: of one parameter with a single row
                rows = _rows(objective, w, x, y)[:, None]
                yield part, [(rows, torch.ones_like(rows[..., :1]))]

    with torch.enable_grad(), objective._at(w):
        _require_separate_samples(objective)
        factored = _widest_factor(objective)
        size = max(1, min(objective.chunk, NUMBERS // (factored or len(w))))
        yield gradients


class _Layers:
    """The factors of all parameters, in their order, from one pass forward and one back over the samples `x`."""

    def __init__(self, objective: Objective, x: Tensor, total: Callable[[Tensor], Tensor]) -> None:
        self.parameters = objective.flat.parameters
        calls: list[tuple[nn.Module, Tensor]] = []
        edges = []  # where in the graph a layer's output comes from, whatever may overwrite that output later

        def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            if output.requires_grad:
                calls.append((module, (*args, *kwargs.values())[0].detach()))
                edges.append(get_gradient_edge(output))

        layers = [m for m in objective.model.modules() if _factors(m)]
        hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
        try:
            value = total(objective.model(x))
        finally:
            for hook in hooks:
                hook.remove()
        # the gradients of the outputs alone: those of the parameters, sums over the samples, are not computed
        gradients = torch.autograd.grad(value, edges, allow_unused=True) if edges else ()
        self.calls = [(*call, g) for call, g in zip(calls, gradients, strict=True) if g is not None]

    def uses(self, p: nn.Parameter) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
        """Each use of a parameter: layer, name in it, what the layer took in, gradient of what it gave out."""
        return [
            (layer, name, x, g)
            for layer, x, g in self.calls
            for name, q in layer.named_parameters()
            if q is p
        ]

    def __iter__(self) -> Iterator[Factor]:
        for p in self.parameters:
            a, d = zip(*(_factor(*use) for use in self.uses(p)), strict=True)
            yield torch.cat(a, 1), torch.cat(d, 1)  # a layer used twice has the positions of both


def _factors(module: nn.Module) -> bool:
    """Whether `_factor` knows the layer; not its descendants, which may do something else."""
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in _LAYERS


def _factor(module: nn.Module, name: str, x: Tensor, g: Tensor) -> Factor:
    """Factor of one parameter from what its layer took in, `x`, and the gradient `g` of what it gave out."""
    d = _positions(module, g)
    if isinstance(module, nn.Linear) and name == "weight":
        return _positions(module, x), d
    if isinstance(module, nn.Conv2d) and name == "weight":
        assert not isinstance(module.padding, str)
        patches = F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.transpose(1, 2), d
    if (
        isinstance(module, nn.modules.batchnorm._BatchNorm) and name == "weight"
    ):  # the gain of what is normalized
        d = d * _positions(module, F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps))
    return torch.ones_like(d[:, :1, :1]), d.sum(1, keepdim=True)


def _positions(module: nn.Module, x: Tensor) -> Tensor:
    """[N, T, channels] of a layer's input or output."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    return x.reshape(*x.shape[:2], -1).transpose(1, 2)


def _widest_factor(objective: Objective) -> int:
    """Numbers a sample in the largest factor; 0 if the layers do not factor all gradients of this network.

    Tried on three samples against autograd, for a network may do with its parameters what its layers do not show.
    """
    x = _three(objective)
    outputs = objective.model(x)
    cotangent = torch.arange(outputs.numel(), device=x.device).cos().view_as(outputs).to(outputs)
    layers = _Layers(objective, x, lambda outputs: (outputs * cotangent).sum())
    one_each = all(len(taken) == len(given) == 3 for _, taken, given in layers.calls)
    if not (one_each and all(layers.uses(p) for p in objective.flat.parameters)):
        return 0
    factors = list(layers)
    found = torch.cat([_formed(*factor) for factor in factors], 1)
    for i in range(2):
        expected = torch.autograd.grad(
            (outputs * cotangent)[i].sum(), objective.flat.parameters, retain_graph=True
        )
        if not _close(found[i], flattened(expected)):
            return 0
    return max(part[0].numel() for factor in factors for part in factor)


def _require_separate_samples(objective: Objective) -> None:
    """Raise unless the network, as it is now, takes each sample by itself and gives numbers."""
    x = _three(objective)
    outputs = objective.model(x)
    if not outputs.isfinite().all():
        raise InputError("the network's outputs at this point are not finite: nothing can be measured there.")
    if not _close(objective.model(x[:2]), outputs[:2]):
        raise InputError(
            "what the network gives for one sample depends on the others beside it, so that a sample has no gradient "
            "of its own: take the layer that mixes samples out."
        )


def _rows(objective: Objective, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of every sample, one a row."""

    def loss(parameters: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return objective._losses(objective._outputs(parameters, x[None]), y[None]).sum()

    gradients = vmap(grad(loss), (None, 0, 0))(objective.tensors(w), x, y)
    return torch.cat([g.flatten(1) for g in gradients], 1)


def _several(objective: Objective) -> int:
    if len(objective.x) < 2:
        raise InputError("gradients of a single sample have no noise: give at least two samples.")
    return len(objective.x)


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, in whatever order a device adds."""
    return a.shape == b.shape and bool((a - b).norm() <= 10 * torch.finfo(b.dtype).eps ** 0.5 * b.norm())


def _three(objective: Objective) -> Tensor:
    return objective.x[torch.arange(3) % len(objective.x)]


def _finite(result: Tensor) -> Tensor:
    if not result.isfinite().all():
        raise InputError(
            "the loss or its gradients are not finite at this point: nothing can be measured there."
        )
    return result
