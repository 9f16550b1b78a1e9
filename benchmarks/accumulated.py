"""What an update accumulated over K ghost batches costs, with and without weight noise of its own for each of them.

A batch of 16,384 images passes through a network in parts: the gradients of K ghost batches are added up, and at the
weights w + θ_k of SmoothOut every part has a new θ_k.  Beside such an update stands the loop in which torchvision's
reference script for classification trains, with one step of the optimizer for each ghost batch of the same images.
The ways take turns within one run, as in `benchmarks.steps`.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from benchmarks.steps import ADAPTIVE_A, A, Batch, Row, Step, interleaved, ratios_of
from nb_lib.lab.device import let_go, precision
from nb_lib.lab.networks import build
from nb_lib.smoothout import SmoothOut

CLASSES = 1000
POOL = 256  # different images, which all batches are cut from
LR, MOMENTUM = 0.01, 0.9
_RATIOS = {  # of the times of two ways
    "accumulated ÷ reference": ("accumulated", "reference"),
    "SmoothOut ÷ accumulated": ("SmoothOut", "accumulated"),
    "AdaSmoothOut ÷ accumulated": ("AdaSmoothOut", "accumulated"),
    # perturbation and return alone: as a difference of whole updates they drown in the noise of these
    "noise of SmoothOut ÷ its update": ("noise of SmoothOut", "SmoothOut"),
    "noise of AdaSmoothOut ÷ its update": ("noise of AdaSmoothOut", "AdaSmoothOut"),
}


@dataclass(frozen=True)
class Case:
    """What is timed: updates of `network` from K `ghost_batches` of so many `images`, `pixels` high and wide."""

    network: str
    ghost_batches: int
    images: int
    pixels: int
    precision: str = "float32"


def cases(device: torch.device) -> list[Case]:
    """What `bench_accumulated` times there: on a GPU SmoothOut's own sizes, on a CPU fewer and smaller images.

    Fewer and smaller images make the noise weigh more: it takes as long with any.
    """
    if device.type == "cpu":
        sizes = [(8, 32), (128, 4)]
        pixels = {"alexnet": 64, "resnet18": 32}
        arithmetic = "float32"
    else:
        sizes = [(8, 128), (128, 128)]
        pixels = {"alexnet": 224, "resnet18": 224}
        arithmetic = "bfloat16"
    return [Case(network, k, n, side, arithmetic) for network, side in pixels.items() for k, n in sizes]


def bench_accumulated(device: torch.device, *, rounds: int = 3, chosen: Sequence[Case] | None = None) -> pd.DataFrame:
    """Time updates accumulated over ghost batches, of `cases` by default, a row a ratio.

    Returns
    -------
    pandas.DataFrame
        Columns network, K (ghost batches of an update), images (of a ghost batch), pixels (their side), precision,
        what, ratio (median over rounds), low and high (quartiles).  The noise's part of an update is K times there and
        back without a pass, over the update.
    """
    if chosen is None:
        chosen = cases(device)
    rows: list[Row] = []
    for case in chosen:
        warm_up = 0 if case.ghost_batches > 100 else 1  # the first of many ghost batches warms up for the rest
        times = interleaved(ways(case, device), device, rounds, warm_up=warm_up)
        sizes: Row = dataclasses.asdict(case)
        rows += [sizes | row for row in ratios_of(times, _RATIOS)]
        let_go(device)
    return pd.DataFrame(rows).rename(columns={"ghost_batches": "K"})


def ways(case: Case, device: torch.device) -> dict[str, Step]:
    """Whole updates, each with a network of its own, and the noise of an update alone."""
    batches = ghost_batches(case, device)
    smooth = SmoothOut(network(case, device), A)
    adaptive = SmoothOut(network(case, device), ADAPTIVE_A, adaptive=True)
    plain = network(case, device)
    if device.type == "cuda":
        plain = plain.to(memory_format=torch.channels_last)  # as the images lie; weights with noise lie in a vector
    steps = {
        "reference": reference(network(case, device), batches),
        "accumulated": accumulated(plain, batches, case.ghost_batches),
        "SmoothOut": accumulated(smooth.model, batches, case.ghost_batches, smooth),
        "AdaSmoothOut": accumulated(adaptive.model, batches, case.ghost_batches, adaptive),
        "noise of SmoothOut": noise_alone(smooth, case.ghost_batches),
        "noise of AdaSmoothOut": noise_alone(adaptive, case.ghost_batches),
    }
    return {name: _in_precision(step, case.precision, device) for name, step in steps.items()}


def network(case: Case, device: torch.device) -> nn.Sequential:
    """Network of a case, in training mode: each ghost batch is normalized as a whole."""
    shape = (3, case.pixels, case.pixels)
    return build(case.network, shape, CLASSES, group_size=case.images, device=device).train()


def ghost_batches(case: Case, device: torch.device) -> Iterable[Batch]:
    """The K ghost batches of an update, new ones each time, cut from a small pool of random images on the device."""
    shape = (POOL, case.pixels, case.pixels, 3)
    pixels = torch.randint(256, shape, dtype=torch.uint8, device=device)
    images = pixels.movedim(-1, 1)  # [n, 3, H, W], the channels innermost in memory: as decoders leave them
    labels = torch.randint(CLASSES, (POOL,), device=device)
    pool = TensorDataset(images, labels)
    numbers = RandomSampler(pool, replacement=True, num_samples=case.ghost_batches * case.images)
    return DataLoader(pool, sampler=BatchSampler(numbers, case.images, drop_last=False), batch_size=None)


def reference(net: nn.Module, batches: Iterable[Batch]) -> Step:
    """Train as torchvision's reference script does, less what it prints: a step of the optimizer for each batch."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)

    def steps() -> None:
        for images, labels in batches:
            output = net(_inputs(images))
            loss = criterion(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return steps


def accumulated(net: nn.Module, batches: Iterable[Batch], k: int, smooth: SmoothOut | None = None) -> Step:
    """One step along the mean gradient of K batches, with `smooth` each at perturbed weights; it returns their loss."""
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM, fused=True)
    perturbed = smooth.perturbed if smooth else nullcontext

    def update() -> Tensor:
        total = torch.tensor(0.0)
        for images, labels in batches:
            x = _inputs(images)
            with perturbed():  # w + θ_k
                loss = F.cross_entropy(net(x), labels) / k
                loss.backward()
            total = total + loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        return total

    return update


def noise_alone(smooth: SmoothOut, k: int) -> Step:
    """Perturb the weights and return, K times."""

    def there_and_back() -> None:
        for _ in range(k):
            with smooth.perturbed():
                pass

    return there_and_back


def _in_precision(step: Step, name: str, device: torch.device) -> Step:
    def in_precision() -> object:
        with precision(name, device):
            return step()

    return in_precision


def _inputs(images: Tensor) -> Tensor:
    """Pixels from 0 to 255 as numbers in [-1, 1]."""
    return images / 127.5 - 1
