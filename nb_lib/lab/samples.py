"""Samples as networks take them: a tensor, a tuple of arguments or a dictionary of named ones, with a row a sample.

>>> x = {"tokens": torch.tensor([[1, 2], [3, 4]]), "scale": torch.tensor([1.0, 10.0])}
>>> part(x, slice(1, 2))
{'tokens': tensor([[3, 4]]), 'scale': tensor([10.])}
>>> feed(lambda tokens, scale: tokens.sum(1) * scale, x)
tensor([ 3., 70.])
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nb_lib.errors import InputError

Samples = Any  # a tensor, or a tuple or dictionary of these, also nested
Index = slice | Tensor


def each(x: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same with every tensor changed; lists become tuples, mappings dictionaries, and what else there is stays."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, tuple | list):
        return tuple(each(value, change) for value in x)
    if isinstance(x, Mapping):
        return {name: each(value, change) for name, value in x.items()}
    return x


def tensors(x: Any) -> list[Tensor]:
    """All tensors of some samples."""
    found: list[Tensor] = []
    each(x, found.append)
    return found


def part(x: Samples, index: Index) -> Samples:
    """Some of the samples."""
    return each(x, lambda tensor: tensor[index])


def taken(x: Any, y: Any, device: torch.device) -> tuple[Samples, Tensor]:
    """Samples and targets without a history, if they fit together and lie on the device, else `InputError`."""
    found = tensors(x)
    if not (found and isinstance(y, Tensor)):
        raise InputError(
            "x must be a tensor, or a tuple or dictionary of tensors, and y a tensor, "
            f"not {type(x).__name__} and {type(y).__name__}."
        )
    counts = {len(tensor) if tensor.ndim else 0 for tensor in found}
    targets = len(y) if y.ndim else 0
    if counts != {targets} or targets == 0:
        samples = " or ".join(str(count) for count in sorted(counts))
        raise InputError(
            f"a loss needs samples and one target for each, not {samples} samples and {targets} targets: "
            "every tensor of x has a row a sample."
        )
    if {tensor.device for tensor in [*found, y]} != {device}:
        raise InputError(f"the samples must lie on the model's device, {device}: move them there first.")
    return each(x, _without_history), _without_history(y)


def _without_history(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def feed(model: Callable[..., Any], x: Samples) -> Any:
    """What the network gives: ``model(*x)`` for a tuple, ``model(**x)`` for a dictionary, else ``model(x)``."""
    if isinstance(x, tuple):
        return model(*x)
    if isinstance(x, dict):
        return model(**x)
    return model(x)
