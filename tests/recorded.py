"""Trainings whose recorded steps must be the ordinary ones, and a stand-in for CUDA's graphs that a CPU can run."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nb_lib.lab.data import Data, Split
from nb_lib.lab.graphs import Graphs
from nb_lib.lab.runs import Run
from nb_lib.lab.training import Training

COLOR, GRAY, DIGITS, SMALL_COLOR = (3, 32, 32), (1, 28, 28), (1, 8, 8), (3, 8, 8)


def seeds(run: Run, count: int = 3) -> list[Run]:
    return [replace(run, seed=seed) for seed in range(count)]


_F1 = Run(network="ne-f1", batch_size=100, epochs=99)
_MLP = Run(network="digits-mlp", batch_size=100, epochs=99)
_C1 = Run(network="ne-c1-quarter", batch_size=100, alpha=1.5, epochs=99)
_SMOOTH = Run(network="smoothout-f1", batch_size=200, a=0.0375, epochs=99)
RESNET8 = Run(
    network="resnet8",
    augment="crop-flip",
    batch_size=100,
    ghost_batch=50,
    cutting="even",
    optimizer="sgd",
    lr=0.005,
    momentum=0.9,
    weight_decay=1e-4,
    clip=1.0,
    epochs=99,
)
#: cuDNN adds up the gradients of convolutions in another order each time: on an H200 two ordinary trainings of five
#: epochs were 1.3e-2 of their weights apart, in float32, and two recorded ones as much.
ORDER_OF_SUMS = 5e-2
#: With SGD it matters less: started 1e-6 of the weights apart, ResNet8 was up to 4e-4 apart after five epochs on a CPU,
#: in bfloat16 started 1e-3 apart it was 1e-3; with other views it was 5e-3, or 2e-3 with an optimizer made anew.
ORDER_OF_SUMS_SGD, IN_BFLOAT16, MADE_ANEW = 2e-3, 4e-3, 1e-3
#: Trainings for a GPU: runs side by side, shape of the images, and how far weights may be apart, relative to them.
ON_CUDA: dict[str, tuple[list[Run], tuple[int, int, int], float]] = {
    "C1/4 NE": ([_C1], COLOR, ORDER_OF_SUMS),
    "C1/4 NE tf32": ([replace(_C1, precision="tf32")], COLOR, ORDER_OF_SUMS),
    "C1/4 NE bfloat16": ([replace(_C1, batch_size=200, precision="bfloat16")], COLOR, ORDER_OF_SUMS),
    "C1/4 SmoothOut": ([replace(_C1, alpha=1.0, a=0.02)], COLOR, ORDER_OF_SUMS),
    "SmoothOut C1, dropout": (
        [replace(_SMOOTH, network="smoothout-c1", noise_batch=128, cutting="even")], COLOR, ORDER_OF_SUMS,
    ),
    "SmoothOut F1, normal": ([replace(_SMOOTH, a=0.02, distribution="normal")], GRAY, 1e-3),
    "AdaSmoothOut F1": ([replace(_SMOOTH, a=0.15, adaptive=True)], GRAY, 1e-3),
    "SmoothOut F1, even parts": ([replace(_SMOOTH, noise_batch=64, ghost_batch=64, cutting="even")], GRAY, 1e-3),
    "SmoothOut F1, noise left in": ([replace(_SMOOTH, a=0.001, denoise=False)], GRAY, 1e-3),
    "F1, clipped": ([replace(_F1, alpha=1.5, clip=1.0)], GRAY, 1e-4),
    "F1 side by side": (seeds(replace(_F1, alpha=2.0)), GRAY, 1e-4),
    "SGD, momentum": ([replace(_F1, optimizer="sgd", momentum=0.9, lr=0.05)], GRAY, 1e-4),
    "ResNet8": ([RESNET8], COLOR, ORDER_OF_SUMS_SGD),
    "ResNet8 NE": ([replace(RESNET8, alpha=1.5)], COLOR, ORDER_OF_SUMS_SGD),
    "ResNet8 SmoothOut": ([replace(RESNET8, a=0.0375, noise_batch=50)], COLOR, ORDER_OF_SUMS_SGD),
    "ResNet8 bfloat16": ([replace(RESNET8, precision="bfloat16")], COLOR, IN_BFLOAT16),
    "ResNet8, optimizer made anew": ([replace(RESNET8, fresh_optimizer=True)], COLOR, MADE_ANEW),
}  # fmt: skip
#: Small ones for a CPU, of the same kinds, where recorded steps must be the ordinary ones to the bit.
ON_A_CPU: dict[str, tuple[list[Run], tuple[int, int, int]]] = {
    "Adam": ([_MLP], DIGITS),
    "NE": ([replace(_MLP, alpha=1.5)], DIGITS),
    "C1/4 NE": ([replace(_C1, batch_size=20, ghost_batch=10)], COLOR),
    "SmoothOut C1, dropout": (
        [replace(_SMOOTH, network="smoothout-c1", batch_size=40, noise_batch=16, ghost_batch=16, cutting="even")],
        COLOR,
    ),
    "SmoothOut, normal": ([replace(_MLP, a=0.02, distribution="normal")], DIGITS),
    "SmoothOut F1": ([replace(_SMOOTH, batch_size=40, noise_batch=16, ghost_batch=8)], DIGITS),
    "AdaSmoothOut": ([replace(_MLP, a=0.15, adaptive=True)], DIGITS),
    "noise left in": ([replace(_MLP, a=0.001, denoise=False)], DIGITS),
    "clipped": ([replace(_MLP, alpha=1.5, clip=0.1)], DIGITS),
    "side by side": (seeds(replace(_MLP, alpha=2.0)), DIGITS),
    "side by side, noise": (seeds(replace(_MLP, a=0.1, noise_batch=30)), DIGITS),
    "side by side, halved": (seeds(replace(_MLP, halve_at=2.25, stop_below=1e-9, lr=1e-2)), DIGITS),
    "SGD, momentum": ([replace(_MLP, optimizer="sgd", momentum=0.9, lr=0.05)], DIGITS),
    "ResNet8": ([replace(RESNET8, batch_size=40, ghost_batch=10)], SMALL_COLOR),
    "ResNet8 NE": ([replace(RESNET8, batch_size=40, ghost_batch=10, alpha=1.5)], SMALL_COLOR),
    "ResNet8 SmoothOut": (
        [replace(RESNET8, batch_size=40, ghost_batch=10, noise_batch=20, a=0.0375, fresh_optimizer=True)],
        SMALL_COLOR,
    ),
    "Adam made anew": ([replace(_MLP, fresh_optimizer=True)], DIGITS),
    "schedule": ([replace(_MLP, lr_steps=((2, 1e-4), (4, 1e-2)))], DIGITS),
}


def made(n: int, shape: tuple[int, int, int], device: torch.device) -> Data:
    """Random images of ten classes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, *shape, generator=generator).to(device)
    y = torch.randint(10, (n,), generator=generator).to(device)
    return Data("random", "random", tuple("0123456789"), Split(x, y), Split(x[:50], y[:50]))


def weights(training: Training) -> Tensor:
    return torch.cat([p.detach().flatten() for p in training.model.parameters()])


def trained(runs: list[Run], data: Data, epochs: int = 6) -> Training:
    """Some epochs with a last batch of its own size, whose steps are recorded in the fourth of them."""
    training = Training(runs, data)
    for _ in range(epochs):
        training.train_epoch()
    return training


@contextmanager
def ordinary():
    """No step is recorded."""
    kept, Graphs.ORDINARY_CALLS = Graphs.ORDINARY_CALLS, 10**9
    try:
        yield
    finally:
        Graphs.ORDINARY_CALLS = kept


class Tape(TorchDispatchMode):
    """What a CUDA graph is: a list of operations on fixed tensors, with the numbers they were recorded with.

    Recording performs the operations, as CUDA does not; the first replay is therefore left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("waits for the device while recording")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, recorded in self.calls if self.replays > 1 else ():
            _write(recorded, func(*args, **kwargs))


def _write(recorded: Any, fresh: Any) -> None:
    """Put what an operation gives now where it was when it was recorded."""
    if isinstance(recorded, Tensor):
        if recorded.data_ptr() != fresh.data_ptr():
            recorded.copy_(fresh)
    elif isinstance(recorded, list | tuple):
        for old, new in zip(recorded, fresh, strict=True):
            _write(old, new)


def emulate(monkeypatch) -> list[Tape]:
    """Record steps on the CPU as on a GPU; returns the list that the recordings are added to."""
    tapes: list[Tape] = []

    @contextmanager
    def recording(graph, stream):
        tapes.append(graph)
        with graph:
            yield

    monkeypatch.setattr("nb_lib.lab.graphs.records", lambda device: True)
    monkeypatch.setattr("torch.cuda.CUDAGraph", Tape)
    monkeypatch.setattr("torch.cuda.graph", recording)
    monkeypatch.setattr("torch.cuda.current_stream", lambda *_: None)
    return tapes
