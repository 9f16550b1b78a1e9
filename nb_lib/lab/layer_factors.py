"""What the layers of a network know of single samples' gradients: one pass forward and one back give all of them.

A layer's part of sample i's gradient is Σ_t d_it a_itᵀ, with a_it what it takes in at position t (the only one, unless
it is a convolution) and d_it the gradient of the loss with respect to what it gives out.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from nb_lib.ghost_batch_norm import GhostBatchNorm
from nb_lib.lab.samples import Samples
from nb_lib.lab.trials import close
from nb_lib.objective import Objective, flattened

_LAYERS = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, GhostBatchNorm)


class Factor(NamedTuple):
    """One parameter's part of the gradients of N samples, Σ_t d_t a_tᵀ in the parameter's order."""

    a: Tensor  # [N, T, width]: a filter, one row of the parameter, has that many numbers
    d: Tensor  # [N, T, filters]

    @property
    def one_position(self) -> bool:
        """Whether every gradient is of rank one, d aᵀ."""
        return self.a.shape[1] == 1

    def formed(self, d: Tensor) -> Tensor:
        """Gradients of every sample as vectors [N, ...], for `d`, which is that of all or of some filters."""
        gradients = torch.bmm(d.transpose(1, 2), self.a)
        return gradients.flatten(1)


class Call(NamedTuple):
    """One pass of samples through a layer."""

    layer: nn.Module
    x: Tensor  # what it took in
    g: Tensor  # gradient of what it gave out

    def factor(self, name: str) -> Factor:
        """Factor of the layer's parameter of that name."""
        layer, x, g = self
        d = _positions(layer, g)
        if name == "weight":
            if isinstance(layer, nn.Linear):
                return Factor(_positions(layer, x), d)
            if isinstance(layer, nn.Conv2d):
                assert not isinstance(layer.padding, str)
                patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
                return Factor(patches.transpose(1, 2), d)
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # the gain of what is normalized
                normalized = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
                d = d * _positions(layer, normalized)
        one = torch.ones_like(d[:, :1, :1])
        return Factor(one, d.sum(1, keepdim=True))


class LayerFactors:
    """The factors of all parameters, in their order, made anew whenever they are gone through."""

    def __init__(self, parameters: list[nn.Parameter], calls: list[Call]) -> None:
        self.parameters = parameters
        self.calls = calls

    def uses(self, p: nn.Parameter) -> list[tuple[Call, str]]:
        """Each call of a layer that has the parameter, and its name there."""
        found = []
        for call in self.calls:
            for name, parameter in call.layer.named_parameters():
                if parameter is p:
                    found.append((call, name))
        return found

    def __iter__(self) -> Iterator[Factor]:
        for p in self.parameters:
            factors = [call.factor(name) for call, name in self.uses(p)]
            a = torch.cat([factor.a for factor in factors], 1)  # a layer used twice has the positions of both
            d = torch.cat([factor.d for factor in factors], 1)
            yield Factor(a, d)


def layer_calls(objective: Objective, x: Samples, loss: Callable[[Tensor], Tensor]) -> list[Call]:
    """All calls of layers whose gradients factor, in a pass forward and one back; `loss` is a sum over the samples."""
    seen: list[tuple[nn.Module, Tensor]] = []
    edges = []  # where in the graph a layer's output comes from, whatever may overwrite that output later

    def note(layer: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        if output.requires_grad:
            taken = [*args, *kwargs.values()]
            seen.append((layer, taken[0].detach()))
            edges.append(get_gradient_edge(output))

    with ExitStack() as hooks:
        for layer in objective.model.modules():
            if _is_known(layer):
                hooks.callback(layer.register_forward_hook(note, with_kwargs=True).remove)
        value = loss(objective.outputs(x))
    if not edges:
        return []
    # the gradients of the outputs alone: those of the parameters, sums over the samples, are not computed
    gradients = torch.autograd.grad(value, edges, allow_unused=True)
    calls = []
    for (layer, taken), g in zip(seen, gradients, strict=True):
        if g is not None:
            calls.append(Call(layer, taken, g))
    return calls


def widest_factor(objective: Objective, x: Samples) -> int | None:
    """Numbers a sample in the largest factor; None if the layers do not factor all gradients of this network.

    Tried on some samples against autograd, for a network may do with its parameters what its layers do not show.
    """
    parameters = objective.flat.parameters
    outputs = objective.outputs(x)
    if not isinstance(outputs, Tensor):
        return None
    numbers = torch.arange(outputs.numel(), device=outputs.device).cos()
    cotangent = numbers.view_as(outputs).to(outputs)

    def loss(outputs: Tensor) -> Tensor:
        return (outputs * cotangent).sum()

    calls = layer_calls(objective, x, loss)
    layers = LayerFactors(parameters, calls)
    rows = {len(call.x) for call in calls} | {len(call.g) for call in calls}
    all_seen = all(layers.uses(p) for p in parameters)
    if rows != {len(outputs)} or not all_seen:
        return None
    factors = list(layers)
    found = torch.cat([factor.formed(factor.d) for factor in factors], 1)
    for i in range(min(2, len(outputs))):
        loss_of_sample = (outputs * cotangent)[i].sum()
        gradients = torch.autograd.grad(loss_of_sample, parameters, retain_graph=True)
        expected = flattened(gradients)
        if not close(found[i], expected):
            return None
    widths = [max(a[0].numel(), d[0].numel()) for a, d in factors]
    return max(widths)


def _is_known(module: nn.Module) -> bool:
    """Whether `Call.factor` knows the layer; not its descendants, which may do something else."""
    if type(module) is nn.Conv2d:
        named_padding = isinstance(module.padding, str)
        return module.groups == 1 and module.padding_mode == "zeros" and not named_padding
    return type(module) in _LAYERS


def _positions(layer: nn.Module, x: Tensor) -> Tensor:
    """[N, T, channels] of a layer's input or output."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])
    n, channels = x.shape[:2]
    return x.reshape(n, channels, -1).transpose(1, 2)
