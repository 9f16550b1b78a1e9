"""The parameters of a module as one vector that never moves.

They become views of one contiguous vector `work`, with a `clean` copy beside it: moving a network elsewhere in weight
space and back, to the bit, is two or three operations however many tensors it has, and ``work + noise - noise``
(which drifts, and drifts apart on the ranks of a parallel run) is never needed.

Gains and shifts of normalization come first: cuDNN reads those of channels-last images 16 bytes at a time, and behind
an odd number of biases they would not be aligned ("misaligned address").
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nb_lib.errors import InputError, known
from nb_lib.lab.names import SELECTIONS

NORMALIZATION = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_NORM = re.compile("norm(?!al(?!iz))", re.IGNORECASE)  # in the name of a class: LlamaRMSNorm, LayerNormalization

Selection = str | Callable[[str, nn.Parameter], bool]


class FlatParameters:
    """Trainable parameters of `model` as one vector, with a clean copy beside it.

    Normalization is known by its type, or, for hand-written layers, by a class name that says norm: there what holds
    one number a channel is ``"norm"``.

    Parameters keep their identity (optimizers, hooks and ``state_dict`` see nothing), but their memory becomes a
    stretch of one vector, ordered normalization, weights, biases, and by row width within a kind. Build it after
    moving the model to its device and precision. Several may be built on one model, with nested selections:
    ``"weights"``, ``"no-norm"`` (weights and biases), ``"all"``, or ``f(name, parameter) -> bool``.  A part of the
    model that is saved brings the whole vector along: save clones (``{k: v.clone() for k, v in state.items()}``).

    Attributes
    ----------
    work, clean : Tensor, shape [n]
        What the module reads (the parameters are views of it), and the copy made by the last `save`.
    parameters, names : list
        Of the selection, in the order of `work`.

    Raises
    ------
    InputError
        If nothing is selected, the parameters differ in type or device, or one has no plain memory of real numbers
        (complex, sparse, sharded, or not initialized).

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> flat = FlatParameters(layer)
    >>> with flat.at(torch.arange(8.0)):
    ...     layer(torch.tensor([1.0, 0.0, 0.0])).tolist()  # w = [[0, 1, 2], [3, 4, 5]], b = [6, 7]
    [6.0, 10.0]
    """

    def __init__(self, model: nn.Module, include: Selection = "no-norm") -> None:
        everything = _layout(model, include)
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
        self._holders = [held for module in model.modules() for held in (module._parameters, module._modules)]
        self._built = self._held()
        self._trainable = [(p, p.requires_grad) for p in model.parameters()]

    def __len__(self) -> int:
        return self.work.numel()

    def rows(self, vector: Tensor) -> list[Tensor]:
        """View a vector of this layout as matrices [rows, row width], one row a filter or neuron."""
        sizes = [rows * width for rows, width in self._shapes]
        parts = vector.split(sizes)
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def save(self) -> None:
        """Take the module's present weights as the clean ones; raise if other parameters are trainable by now."""
        self.check()
        if any(p.requires_grad != trainable for p, trainable in self._trainable):
            raise InputError(
                "parameters were frozen or thawed after their vector was built: build it (or SmoothOut) anew."
            )
        self.clean.copy_(self.work)

    def restore(self) -> None:
        """Put the clean weights back, bit for bit."""
        self.work.copy_(self.clean)
        self.written()

    def written(self) -> None:
        """Tell autograd that `work` was written, so that a backward pass through older values raises."""
        torch.autograd.graph.increment_version(self.parameters)

    def version(self) -> int:
        """Count the writes to the parameters that autograd knows of."""
        return sum(p._version for p in self.parameters)

    def check(self) -> None:
        """Raise if parameters no longer live in `work`, or the model has others: moved, replaced or added since."""
        held = self._held()
        same = len(held) == len(self._built) and all(map(is_, held, self._built))
        if not same or [p.data_ptr() for p in self.parameters] != self._addresses:
            raise InputError(
                "the model's parameters were moved, replaced or added after their vector was built: "
                "build it (or SmoothOut) after model.to(...), after loading and after changing layers."
            )

    def _held(self) -> list[Any]:
        """Parameters and modules that the model has, in order."""
        return [entry for holder in self._holders for entry in holder.values()]

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
    if _NORM.search(type(owner).__name__) and parameter.numel() == max(parameter.shape, default=1):
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


def _layout(model: nn.Module, include: Selection) -> list[_Entry]:
    """List all trainable parameters in the one order every selection shares, but for what only others select."""
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise InputError(
            "the parameters are in parts on several ranks (FullyShardedDataParallel): take DistributedDataParallel."
        )
    entries = []
    for path, p in model.named_parameters():
        module, _, name = path.rpartition(".")
        owner = model.get_submodule(module)
        trouble = _trouble(p) if p.requires_grad else None
        if trouble is None:
            if p.requires_grad and p.numel():
                entries.append(_Entry(path, owner, p, _kind(owner, name, p), _row_width(owner, p)))
        elif not callable(include) or include(path, p):
            raise InputError(f"the parameter {path} {trouble}.")
    places = {(entry.parameter.dtype, entry.parameter.device) for entry in entries}
    if len(places) > 1:
        raise InputError("the parameters differ in type or device: move the whole model to one of each first.")
    kinds = SELECTIONS["all"]
    return sorted(entries, key=lambda entry: (kinds.index(entry.kind), entry.width))


def _trouble(parameter: nn.Parameter) -> str | None:
    """Say why a parameter cannot lie in a vector, and what to do; None if it can."""
    if nn.parameter.is_lazy(parameter):
        return "has no shape yet: run one forward pass first"
    if parameter.is_complex():
        return "is complex: hold it as real numbers (torch.view_as_real), or leave it out by include"
    if parameter.layout != torch.strided:
        return "is sparse: make it dense, or leave it out by include"
    if parameter.is_meta:
        return "has no values yet: load the model first"
    if parameter.is_inference():
        return "was made in inference mode: make the model outside of it"
    kind = type(parameter.data)
    if kind is not Tensor:
        return f"is a {kind.__name__}, not one plain tensor: of parallel models DistributedDataParallel (DDP) has those"
    return None


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
