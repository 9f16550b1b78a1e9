"""What a measure presumes of a network, its samples and its criterion, tried on some samples; else `InputError`."""

from __future__ import annotations

import math
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils._pytree import tree_map_only

from nb_lib.errors import InputError
from nb_lib.lab.device import initial_random_state, random_state
from nb_lib.lab.foreign import explained
from nb_lib.lab.samples import Index

if TYPE_CHECKING:
    from nb_lib.objective import Objective

_MANY, _FEW = 100, 10  # samples that are tried, and with gradients
_AGAIN = 25  # of these in other company


@torch.no_grad()
def require_a_function(objective: Objective, original: nn.Module) -> None:
    """Raise unless each sample has one loss, always the same, whatever is beside it, and of the copy's own weights."""
    device = objective.y.device
    count = min(_MANY, objective.N, objective.chunk)
    some = torch.linspace(0, objective.N - 1, count, device=device).long()
    with random_state(device, initial_random_state(device, 0)):
        first = _losses(objective, some)
        second = _losses(objective, some)
    if not torch.allclose(first, second, equal_nan=True):
        raise InputError("the loss is random also in evaluation mode: take what draws out of the network first.")
    if first.itemsize < 4:
        raise InputError(
            f"the network computes in {first.dtype}, where sharpness drowns in rounding: take autocast out of it."
        )
    again = slice(None, None, math.ceil(len(some) / _AGAIN))
    in_parts = _in_parts(objective, some[again], original)
    if close(first[again], in_parts):
        return
    objective.fast_attention = False  # it gives 0 where samples are padded, and only without gradients
    if not close(_losses(objective, some)[again], in_parts):
        raise InputError(
            "what the network or the criterion gives for one sample depends on the others beside it, so that it has no "
            "loss of its own: take what mixes samples out; attention and recurrent layers need batch_first=True."
        )


@torch.enable_grad()
def _in_parts(objective: Objective, samples: Tensor, original: nn.Module) -> Tensor:
    """Losses of these samples as when gradients are taken, some at a time, and the first of these twice."""
    found = []
    several = min(_FEW, math.ceil(len(samples) / 2))
    for part in samples.split(several):
        losses = _losses(objective, torch.cat([part, part[:1]]))
        leaves = {id(node.variable) for node in _graph(losses) if hasattr(node, "variable")}
        for name, p in original.named_parameters():
            if id(p) in leaves:
                raise InputError(
                    f"a copy of the network still computes with {name} of the original, to which a replaced forward or "
                    "a hook holds on: measure what is inside, as accelerate's unwrap_model gives it."
                )
        found.append(losses[:-1].detach())
    return torch.cat(found)


def require_gradients(objective: Objective) -> None:
    """Raise unless torch can differentiate the loss with respect to every parameter on which it depends."""
    if torch.is_inference_mode_enabled():
        raise InputError("inside torch.inference_mode() nothing has a gradient: measure outside of it.")
    w = objective.weights
    why = "torch has no gradient of this network: replace what torch speaks of"
    with torch.enable_grad(), objective.at(w), explained(why):
        losses = _losses(objective, _few(objective))
        names = _without_gradient(objective, losses)
    if not names:
        return
    elsewhere = w.clone()
    for name, part in zip(objective.flat.names, objective.tensors(elsewhere), strict=True):
        if name in names:
            part.add_(torch.arange(part.numel(), device=w.device).cos().view_as(part))
    with torch.no_grad(), objective.at(elsewhere):
        there = _losses(objective, _few(objective))
    if not close(there, losses.detach()):
        raise InputError(
            f"the loss depends on {names[0]} without a gradient: freeze it with requires_grad_(False), or take away "
            "what cuts it off, as torch.no_grad(), detach() or a checkpoint with use_reentrant=True."
        )
    if not losses.requires_grad:
        raise InputError("the loss does not depend on these weights: choose others by include.")


def _few(objective: Objective) -> slice:
    return slice(min(_FEW, objective.chunk))


def _losses(objective: Objective, index: Index) -> Tensor:
    x, y = objective.part(index)
    with objective.exact():
        return objective.losses(objective.outputs(x), y)


def _graph(losses: Tensor) -> set[Any]:
    """The nodes that a backward pass would go through."""
    seen = set()
    ahead: list[Any] = [losses.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    return seen


def _without_gradient(objective: Objective, losses: Tensor) -> list[str]:
    names = objective.flat.names
    if not losses.requires_grad:
        return names
    gradients = torch.autograd.grad(losses.sum(), objective.flat.parameters, allow_unused=True)
    return [name for name, g in zip(names, gradients, strict=True) if g is None]


def require_a_hessian(objective: Objective) -> None:
    """Raise if torch's second derivatives are wrong, as they are, silently, of some functions.

    Of its weight normalization, and of a `torch.autograd.Function` whose backward pass leaves the graph.
    """
    few = objective.on(*objective.part(_few(objective)))
    few.twice_differentiable = True  # which is to be seen
    symmetric = _symmetric(few)
    if not symmetric:
        objective.fused_weight_norm = few.fused_weight_norm = False
        symmetric = _symmetric(few)
    if not (symmetric and _agrees_with_differences(few)):
        raise InputError(
            "torch's second derivative of this network is wrong: replace the torch.autograd.Function in it, or in the "
            "criterion, whose backward pass cannot be differentiated."
        )


def _symmetric(objective: Objective) -> bool:
    """Whether u·Hv and v·Hu are the same, as far as can be said."""
    moderate = copy(objective)
    moderate.criterion = lambda outputs, y: objective.criterion(tree_map_only(Tensor, _moderate, outputs), y)
    w = objective.weights
    u, v = _directions(w)
    try:
        product = moderate.hessian_product(w)
        h_u, h_v = product(u), product(v)
    except InputError:  # these outputs do not suit the criterion, or there is no second derivative
        return True
    difference = (u @ h_v - v @ h_u).abs()
    rounding = torch.finfo(w.dtype).eps ** 0.75 * (u.norm() * h_v.norm() + v.norm() * h_u.norm())
    return not bool(difference > rounding)


def _agrees_with_differences(objective: Objective) -> bool:
    """Whether H is roughly what differences of gradients show, at some distance, if Python takes part in gradients."""
    w = objective.weights
    with torch.enable_grad():
        nodes = _graph(_losses(objective, slice(None)))
    if not any(isinstance(node, BackwardCFunction) for node in nodes):
        return True
    v, _ = _directions(w)
    v *= w.norm() / v.norm()
    along = objective.hessian_product(w)(v)
    for h in (1e-2, 1e-3, 1e-4):
        (_, ahead), (_, behind) = objective.gradient(w + h * v), objective.gradient(w - h * v)
        difference = (ahead - behind) / (2 * h)
        rounding = torch.finfo(w.dtype).eps * ahead.norm() / h
        if (difference - along).norm() <= 0.1 * difference.norm() + rounding:
            return True
    return False


def _directions(w: Tensor) -> list[Tensor]:
    generator = torch.Generator(w.device).manual_seed(0)
    return [torch.empty_like(w).normal_(generator=generator) for _ in range(2)]


def _moderate(output: Tensor) -> Tensor:
    """An output with the same derivatives, and with numbers of which a criterion rounds none away."""
    if not output.is_floating_point():
        return output
    numbers = 0.5 + 0.4 * torch.arange(output.numel(), device=output.device).cos()
    return output - output.detach() + numbers.view_as(output).to(output)


def vectorizes(objective: Objective) -> bool:
    """Whether `torch.func` computes what the network does."""
    few = objective.on(*objective.part(slice(_MANY)))
    w = objective.weights
    points = torch.stack([w, 0.9 * w + 0.01])
    try:
        found = few.side_by_side(points, 2)
    except Exception:  # torch has no rule for some layer
        return False
    return close(found.loss, torch.stack([few(w).loss for w in points]))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, in whatever order a device adds; NaN is close to anything."""
    if a.shape != b.shape:
        return False
    eps = torch.finfo(b.dtype).eps
    difference = (a - b).norm()
    return not bool(difference > 10 * eps**0.5 * b.norm() + 1000 * eps)
