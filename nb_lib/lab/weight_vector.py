"""The parameters of a module as one vector that never moves.

They become views of one contiguous vector `work`, with a `clean` copy beside it: moving a network elsewhere in weight
space and back, to the bit, is two or three operations however many tensors it has, and ``work + noise - noise``
(which drifts, and drifts apart on the ranks of a parallel run) is never needed.

Gains and shifts of normalization come first: cuDNN reads those of channels-last images 16 bytes at a time, and behind
an odd number of biases they would not be aligned ("misaligned address").
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError, known
from nb_lib.lab.names import SELECTIONS

NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)

Selection = str | Callable[[str, nn.Parameter], bool]


class FlatParameters:
    """Trainable parameters of `model` as one vector, with a clean copy beside it.

    Parameters keep their identity (optimizers, hooks and ``state_dict`` see nothing), but their memory becomes a
    stretch of one vector, ordered normalization, weights, biases, and by row width within a kind. Build it after
    moving the model to its device and precision. Several may be built on one model, with nested selections:
    ``"weights"``, ``"no-norm"`` (weights and biases), ``"all"``, or ``f(name, parameter) -> bool``.

    Attributes
    ----------
    work, clean : Tensor, shape [n]
        What the module reads (the parameters are views of it), and the copy made by the last `save`.
    parameters, names : list
        Of the selection, in the order of `work`.

    Raises
    ------
    InputError
        If nothing is selected, or the parameters differ in type or device.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> flat = FlatParameters(layer)
    >>> with flat.at(torch.arange(8.0)):
    ...     layer(torch.tensor([1.0, 0.0, 0.0])).tolist()  # w = [[0, 1, 2], [3, 4, 5]], b = [6, 7]
    [6.0, 10.0]
    """

    def __init__(self, model: nn.Module, include: Selection = "no-norm") -> None:
        everything = _layout(model)
        if callable(include):
            chosen = [entry for entry in everything if include(entry.name, entry.parameter)]
        else:
            kinds = SELECTIONS[known("selection of parameters", include, SELECTIONS)]
            chosen = [entry for entry in everything if entry.kind in kinds]
        if not chosen:
            owner = type(model).__name__
            raise InputError(f"the selection {include!r} takes in no trainable parameter of {owner}.")
        self.names = [entry.name for entry in chosen]
        self.parameters = [entry.parameter for entry in chosen]
        shared = [entry.parameter for entry in everything]  # a named selection is a stretch of their common order
        if callable(include):
            rest = [entry.parameter for entry in everything if entry.name not in self.names]
            shared = self.parameters if _contiguous(self.parameters) else self.parameters + rest
        if not _contiguous(shared):
            _gather(shared)
        n = sum(p.numel() for p in self.parameters)
        self.work = self.parameters[0].data.as_strided((n,), (1,))
        self.clean = self.work.clone()
        self._shapes = _merge_rows(chosen)
        self._addresses = [p.data_ptr() for p in self.parameters]
        self._homes = [(entry.owner._parameters, entry.name.rpartition(".")[2]) for entry in chosen]

    def __len__(self) -> int:
        return self.work.numel()

    def rows(self, vector: Tensor) -> list[Tensor]:
        """View a vector of this layout as matrices [rows, row width], one row a filter or neuron."""
        sizes = [rows * width for rows, width in self._shapes]
        parts = vector.split(sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def save(self) -> None:
        """Take the module's present weights as the clean ones."""
        self.check()
        self.clean.copy_(self.work)

    def restore(self) -> None:
        """Put the clean weights back, bit for bit."""
        self.work.copy_(self.clean)
        self.written()

    def written(self) -> None:
        """Tell autograd that `work` was written, so that a backward pass through older values raises."""
        torch.autograd.graph.increment_version(self.parameters)

    def check(self) -> None:
        """Raise if the parameters no longer live in `work` (after ``model.to`` or ``load_state_dict(assign=True)``)."""
        for p, address, (home, name) in zip(self.parameters, self._addresses, self._homes, strict=True):
            if home.get(name) is not p or p.data_ptr() != address:
                raise InputError(
                    "the model's parameters were moved after their vector was built: "
                    "build it (or SmoothOut) after model.to(...) and after loading."
                )

    @contextmanager
    def at(self, vector: Tensor) -> Iterator[None]:
        """Evaluate the module with its parameters at `vector` [n]; back to the bit outside, also after an exception."""
        self.check()
        here = self.work.clone()
        self.work.copy_(vector.detach().view_as(here))
        self.written()
        try:
            yield
        finally:
            self.work.copy_(here)
            self.written()


class _Entry(NamedTuple):
    """A parameter, where the module keeps it, and what it is."""

    name: str
    owner: nn.Module
    parameter: nn.Parameter
    kind: str
    width: int


def _kind(owner: nn.Module, name: str, parameter: Tensor) -> str:
    """Say what a parameter is: ``"norm"`` (gain or shift of a normalization layer), ``"bias"`` or ``"weight"``."""
    if isinstance(owner, NORMALIZATION):
        return "norm"
    if name == "bias" or parameter.ndim < 2:
        return "bias"
    return "weight"


def _row_width(owner: nn.Module, parameter: Tensor) -> int:
    """Entries of one filter or neuron: a slice along the first axis of a weight; a bias entry is a row of its own."""
    # a module that is `side_by_side` holds several networks, counted by the first axis
    of_one_network = parameter[0] if getattr(owner, "side_by_side", False) else parameter
    if of_one_network.ndim < 2:
        return 1
    return of_one_network[0].numel()


def _layout(model: nn.Module) -> list[_Entry]:
    """List all trainable parameters in the one order every selection shares."""
    entries = []
    for path, p in model.named_parameters():
        if p.requires_grad and p.is_floating_point() and p.numel():
            module, _, name = path.rpartition(".")
            owner = model.get_submodule(module)
            entries.append(_Entry(path, owner, p, _kind(owner, name, p), _row_width(owner, p)))
    places = {(entry.parameter.dtype, entry.parameter.device) for entry in entries}
    if len(places) > 1:
        raise InputError("the parameters differ in type or device: move the whole model to one of each first.")
    kinds = SELECTIONS["all"]
    return sorted(entries, key=lambda entry: (kinds.index(entry.kind), entry.width))


def _contiguous(parameters: list[nn.Parameter]) -> bool:
    """Whether each parameter begins where the one before it ends."""
    first = parameters[0]
    storage = first.untyped_storage().data_ptr()
    start = first.storage_offset()
    for p in parameters:
        here = p.untyped_storage().data_ptr() == storage and p.storage_offset() == start
        if not (here and p.is_contiguous()):
            return False
        start += p.numel()
    return True


@torch.no_grad()
def _gather(parameters: list[nn.Parameter]) -> None:
    """Move the parameters, in order, into one new vector; the only time their memory changes."""
    vector = torch.cat([p.reshape(-1) for p in parameters])
    sizes = [p.numel() for p in parameters]
    for p, part in zip(parameters, vector.split(sizes), strict=True):
        # as model.to() does; set_() would cut DistributedDataParallel's gradient hooks off
        p.data = part.view(p.shape)


def _merge_rows(entries: list[_Entry]) -> list[tuple[int, int]]:
    """Shapes [rows, width] that cover the vector; neighbors of equal width are one matrix."""
    shapes = []
    for width, alike in groupby(entries, key=lambda entry: entry.width):
        rows = sum(entry.parameter.numel() // width for entry in alike)
        shapes.append((rows, width))
    return shapes
