"""Surroundings of a training: device, precision, global random numbers kept out of the way, progress bars."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nb_lib.errors import InputError


def pick_device(name: str = "auto") -> torch.device:
    """``"auto"`` is the first CUDA device if there is one, else the CPU.

    Raises
    ------
    InputError
        If the name is not a device, or that device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here: use 'cpu', 'cuda' or 'auto'.") from error
    return device


@contextmanager
def random_state(device: torch.device, state: list[Tensor]) -> Iterator[None]:
    """Run with torch's global generators, which dropout draws from, at `state`; keep in it where they end."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.set_rng_state(state[0])
        for s in state[1:]:
            torch.cuda.set_rng_state(s, device)
        yield
        state[:] = [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in cuda)]


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Full float32 products, TF32 ones, or bfloat16 by autocast; torch's settings are put back afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32" if name == "tf32" else "ieee"
        # no cache: it would keep the first step's bfloat16 weights for all that follow
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False):
            yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value


class Replayed:
    """A function of tensors on the device, which on CUDA is recorded as a graph and from then on replayed.

    Its first calls run as they are, which also lets libraries and optimizers allocate what they need; then the
    operations of one call are recorded, once for each shape of its first argument, and replayed at one launch a call.
    The function may read and write any tensors at fixed addresses.  What it returns is overwritten by the next call.
    Call it within `own_stream`.  On a CPU it is the function itself.
    """

    _ORDINARY_CALLS = 3

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.calls: dict[object, int] = {}
        self.graphs: dict[object, tuple[torch.cuda.CUDAGraph, tuple[Any, ...], Any]] = {}

    def __call__(self, *arguments: Any) -> Any:
        """Call or replay; arguments that are not tensors belong to the shape."""
        if not (torch.cuda.is_available() and torch.cuda.current_stream() != torch.cuda.default_stream()):
            return self.function(*arguments)
        key = tuple(a.shape if isinstance(a, torch.Tensor) else a for a in arguments)
        self.calls[key] = self.calls.get(key, 0) + 1
        if self.calls[key] <= self._ORDINARY_CALLS:
            return self.function(*arguments)
        if key not in self.graphs:
            self.graphs[key] = self._record(arguments)
        graph, inputs, result = self.graphs[key]
        for mine, given in zip(inputs, arguments, strict=True):
            if isinstance(mine, torch.Tensor):
                mine.copy_(given)
        graph.replay()
        return result

    def _record(self, arguments: tuple[Any, ...]) -> tuple[torch.cuda.CUDAGraph, tuple[Any, ...], Any]:
        inputs = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            result = self.function(*inputs)
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


def hidden(progress: bool) -> bool:
    """Whether bars stay away: not wanted, or TQDM_DISABLE is set (which tqdm itself does not heed in a notebook)."""
    return not progress or os.environ.get("TQDM_DISABLE", "0") != "0"
