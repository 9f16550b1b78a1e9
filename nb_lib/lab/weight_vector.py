"""The parameters of a module as one vector that never moves.

SmoothOut, sharpness and landscapes all ask the same three things of a network: put it at another point of
weight space, come back bit for bit, and tell the filters apart.  Here a module's parameters become views of one
contiguous vector `work`; beside it lies a `clean` copy.  Moving the network anywhere and back is then two
or three operations however many tensors it has, and ``work + noise - noise`` (which drifts, and drifts apart on
the ranks of a parallel run) is never needed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError, known
from nb_lib.lab.names import SELECTIONS

NORMALIZATION = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)

Selection = str | Callable[[str, nn.Parameter], bool]


def kind(owner: nn.Module, name: str, parameter: Tensor) -> str:
    """Say what a parameter is: ``"norm"`` (gain or shift of a normalization layer), ``"bias"`` or ``"weight"``."""
    if isinstance(owner, NORMALIZATION):
        return "norm"
    return "bias" if name.rpartition(".")[2] == "bias" or parameter.ndim < 2 else "weight"


def row_width(owner: nn.Module, parameter: Tensor) -> int:
    """Entries of one filter or neuron: a slice along the first axis of a weight; a bias entry is a row of its own.

    A module with a true attribute ``side_by_side`` holds several networks, counted by the first axis.
    """
    one = parameter[0] if getattr(owner, "side_by_side", False) else parameter
    return one[0].numel() if one.ndim > 1 else 1


class FlatParameters:
    """Trainable parameters of `model` as one vector, with a clean copy beside it.

    Parameters keep their identity (optimizers, hooks and ``state_dict`` see nothing), but their memory becomes a
    stretch of one vector, ordered weights, biases, normalization, and by row width within a kind.  Build it after
    moving the model to its device and precision.  Several may be built on one model, with nested selections.

    Parameters
    ----------
    model : torch.nn.Module
    include : str or callable
        ``"weights"``, ``"no-norm"`` (weights and biases, the default), ``"all"``, or ``f(name, parameter) -> bool``.

    Attributes
    ----------
    work : Tensor, shape [n]
        What the module reads; the parameters are views of it.
    clean : Tensor, shape [n]
        The copy made by the last `save`.
    parameters : list of Parameter
    names : list of str

    Raises
    ------
    InputError
        If nothing is selected, or the parameters differ in type or device.
    """

    def __init__(self, model: nn.Module, include: Selection = "no-norm") -> None:
        everything = _layout(model)
        chosen = [entry for entry in everything if _selects(include, entry)]
        if not chosen:
            raise InputError(
                f"the selection {include!r} takes in no trainable parameter of {type(model).__name__}."
            )
        self.names = [e.name for e in chosen]
        self.parameters = parameters = [e.parameter for e in chosen]
        rest = [e.parameter for e in everything if e.name not in self.names]
        if not _contiguous(parameters if callable(include) else parameters + rest):
            _gather(parameters + rest)
        first = parameters[0]
        n = sum(p.numel() for p in parameters)
        self.work = torch.empty(0, dtype=first.dtype, device=first.device)
        self.work.set_(first.untyped_storage(), first.storage_offset(), (n,))  # type: ignore[call-overload]
        self.clean = self.work.clone()
        self._shapes = _merge_rows(chosen)
        self._homes = [
            (e.owner._parameters, e.name.rpartition(".")[2], e.parameter.data_ptr()) for e in chosen
        ]

    def __len__(self) -> int:
        return self.work.numel()

    def rows(self, vector: Tensor) -> list[Tensor]:
        """View a vector of this layout as matrices [rows, row width], one row a filter or neuron."""
        sizes = [rows * width for rows, width in self._shapes]
        return [part.view(shape) for part, shape in zip(vector.split(sizes), self._shapes, strict=True)]

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
        for p, (home, name, address) in zip(self.parameters, self._homes, strict=True):
            if home.get(name) is p and p.data_ptr() == address:
                continue
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


def _layout(model: nn.Module) -> list[_Entry]:
    """List all trainable parameters in the one order every selection shares."""
    entries = []
    for name, p in model.named_parameters():
        if p.requires_grad and p.is_floating_point() and p.numel():
            owner = model.get_submodule(name.rpartition(".")[0])
            entries.append(_Entry(name, owner, p, kind(owner, name, p), row_width(owner, p)))
    if len({(e.parameter.dtype, e.parameter.device) for e in entries}) > 1:
        raise InputError(
            "the parameters differ in type or device: move the whole model to one of each first."
        )
    return sorted(entries, key=lambda e: (SELECTIONS["all"].index(e.kind), e.width))


def _selects(include: Selection, entry: _Entry) -> bool:
    if callable(include):
        return include(entry.name, entry.parameter)
    return entry.kind in SELECTIONS[known("selection of parameters", include, SELECTIONS)]


def _contiguous(parameters: list[nn.Parameter]) -> bool:
    first = parameters[0]
    starts = accumulate((p.numel() for p in parameters), initial=first.storage_offset())
    storage = first.untyped_storage().data_ptr()
    return all(
        p.is_contiguous() and p.storage_offset() == start and p.untyped_storage().data_ptr() == storage
        for p, start in zip(parameters, starts, strict=False)
    )


@torch.no_grad()
def _gather(parameters: list[nn.Parameter]) -> None:
    """Move the parameters, in order, into one new vector; the only time their memory changes."""
    vector = torch.cat([p.reshape(-1) for p in parameters])
    for p, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view(
            p.shape
        )  # as model.to() does; set_() would cut DistributedDataParallel's gradient hooks off


def _merge_rows(entries: list[_Entry]) -> list[tuple[int, int]]:
    """Shapes [rows, width] that cover the vector; neighbors of equal width are one matrix."""
    shapes: list[tuple[int, int]] = []
    for e in entries:
        rows = e.parameter.numel() // e.width
        if shapes and shapes[-1][1] == e.width:
            rows += shapes.pop()[0]
        shapes.append((rows, e.width))
    return shapes
