"""Steps recorded as CUDA graphs, and replayed at one launch a call."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

Key = tuple[object, ...]
Recording = tuple[torch.cuda.CUDAGraph, tuple[Any, ...], Any]  # a graph, the arguments it reads, the result it writes


def records(device: torch.device) -> bool:
    """Whether steps on this device are recorded as graphs."""
    return device.type == "cuda"


class Graphs:
    """Calls functions of tensors; on CUDA it records each as a graph, which it replays from then on.

    The first calls run as they are, which also lets libraries and optimizers allocate what they need; then the
    operations of one call are recorded, once for each shape of the arguments.  A function may read and write any
    tensors at fixed addresses; numbers of Python are recorded as they are.  What it returns is overwritten by the next
    call.  Call it within `own_stream`.

    Functions are kept by their names only: the owner of a method, and the gigabytes its graphs hold, can go.

    >>> graphs = Graphs(torch.device("cpu"))
    >>> graphs(torch.add, torch.tensor(1.0), torch.tensor(2.0)), graphs.recordings
    (tensor(3.), {})
    """

    ORDINARY_CALLS = 3

    def __init__(self, device: torch.device) -> None:
        self.recording = records(device)
        self._calls: Counter[Key] = Counter()
        self.recordings: dict[Key, Recording] = {}

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call or replay; of arguments that are not tensors each value is recorded anew."""
        if not self.recording:
            return function(*arguments)
        kinds = [a.shape if isinstance(a, Tensor) else a for a in arguments]
        key = (function.__name__, *kinds)
        self._calls[key] += 1
        if self._calls[key] <= self.ORDINARY_CALLS:
            return function(*arguments)
        if key not in self.recordings:
            self.recordings[key] = _record(function, arguments)
        graph, places, result = self.recordings[key]
        for place, given in zip(places, arguments, strict=True):
            if isinstance(place, Tensor):
                place.copy_(given)
        graph.replay()
        return result

    def forget(self, function: Callable[..., Any]) -> None:
        """Record this one anew: it does something else from now on."""
        for key in list(self._calls):
            if key[0] == function.__name__:
                del self._calls[key]
                self.recordings.pop(key, None)


def _record(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Recording:
    places = tuple(a.clone() if isinstance(a, Tensor) else a for a in arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        result = function(*places)
    return graph, places, result


_stream = cache(torch.cuda.Stream)  # one a device


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
