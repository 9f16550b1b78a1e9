"""Steps recorded as CUDA graphs, and replayed at one launch a call."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

Key = tuple[object, ...]


def records(device: torch.device) -> bool:
    """Whether steps on this device are recorded as graphs (see `Graphs`)."""
    return device.type == "cuda"


class Graphs:
    """Calls functions of tensors; on CUDA it records each as a graph, which it replays from then on.

    The first calls run as they are, which also lets libraries and optimizers allocate what they need; then the
    operations of one call are recorded, once for each shape of the arguments, and replayed at one launch a call.  A
    function may read and write any tensors at fixed addresses; numbers of Python are recorded as they are.  What it
    returns is overwritten by the next call.  Call it within `own_stream`.  On a CPU it only calls.

    It keeps functions by their names, not the functions: the owner of a method is not kept alive, nor the gigabytes
    that its graphs hold.

    Parameters
    ----------
    device : torch.device
    """

    ORDINARY_CALLS = 3

    def __init__(self, device: torch.device) -> None:
        self.recording = records(device)
        self._calls: Counter[Key] = Counter()
        self._graphs: dict[Key, tuple[torch.cuda.CUDAGraph, tuple[Any, ...], Any]] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call or replay; of arguments that are not tensors each value is recorded anew."""
        if not self.recording:
            return function(*arguments)
        key = (function.__name__, *(a.shape if isinstance(a, Tensor) else a for a in arguments))
        self._calls[key] += 1
        if self._calls[key] <= self.ORDINARY_CALLS:
            return function(*arguments)
        if key not in self._graphs:
            self._graphs[key] = self._record(function, arguments)
        graph, inputs, result = self._graphs[key]
        for mine, given in zip(inputs, arguments, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)
        graph.replay()
        return result

    def __len__(self) -> int:
        return len(self._graphs)

    def forget(self, *functions: Callable[..., Any]) -> None:
        """Record these anew: tensors that they refer to lie elsewhere now."""
        names = {function.__name__ for function in functions}
        for key in [key for key in self._calls if key[0] in names]:
            del self._calls[key]
            self._graphs.pop(key, None)

    def _record(
        self, function: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Any, ...], Any]:
        inputs = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            result = function(*inputs)
        return graph, inputs, result


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Run on a CUDA stream beside the default one, as recording needs; on a CPU this does nothing."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
