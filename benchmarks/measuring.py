"""What measuring a network costs beside other ways to do it: ratios of times, and the values both reach.

As in `benchmarks.steps` the ways take turns within one run. A surface costs the same at each of its points, so a few
points are timed. A search for the worst loss in a box costs what it takes to come as high as scipy's: it is timed
until then, on SmoothOut's F1 trained with a small and with a large batch.
"""

import math
import time
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nb_lib.errors import InputError
from nb_lib.lab.data import Data, Split, load
from nb_lib.lab.networks import build
from nb_lib.lab.runs import Run
from nb_lib.lab.training import Training
from nb_lib.landscape import filter_normalized_direction, loss_surface
from nb_lib.objective import Objective, Value
from nb_lib.papers import protocol
from nb_lib.sharpness import BoxSharpness, box_sharpness

POINTS = 3  # of the 51 along each side of a surface
SMALL_AND_LARGE = (256, 6000)  # SmoothOut's batch sizes


def bench_measures(
    device: torch.device, *, images: int = 10_000, epochs: int = 20, rounds: int = 3
) -> pd.DataFrame:
    """Time a filter-normalized surface of NE's F1 and the box sharpness of SmoothOut's against the usual ways.

    Fashion-MNIST and MNIST are used if they are on this machine, else random images of their size.

    Parameters
    ----------
    device : torch.device
    images : int
        To train on, and to take the loss of.
    epochs : int
        For which SmoothOut's F1 is trained.
    rounds : int
        Repetitions.

    Returns
    -------
    pandas.DataFrame
        Columns what, ratio (median over rounds), ours and theirs (the values reached at the end: the highest loss of
        the surface, the sharpness), data.  Of a box the ratio is the time until our search has come as high as scipy's
        ends, over all of scipy's; NaN, and said, if it has not, or if scipy's does not leave w*.
    """
    fashion = _data("fashion-mnist", images, device)
    x, y = fashion.train.x, fashion.train.y
    model = _trained(x, y)
    rows = _surfaces(model, Objective(model, x, y, batch_norm="stored"), rounds)
    data = _data("mnist", images, device, normalization="symmetric")
    boxes = [_box(batch_size, data, epochs, rounds) for batch_size in SMALL_AND_LARGE]
    return pd.DataFrame(
        [
            row | {"data": f"{images} images, {used.name}"}
            for used, rows in ((fashion, rows), (data, boxes))
            for row in rows
        ]
    )


def _data(dataset: str, images: int, device: torch.device, normalization: str = "unit") -> Data:
    try:
        return load(dataset, train_size=images, test_size=10, normalization=normalization, device=device)
    except InputError:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(images, 1, 28, 28, generator=generator).to(device)
        y = torch.randint(10, (images,), generator=generator).to(device)
        return Data("random", "random", tuple("0123456789"), Split(x, y), Split(x[:10], y[:10]))


def _trained(x: Tensor, y: Tensor, epochs: int = 2) -> nn.Module:
    """NE's F1 after a few epochs of Adam."""
    model = build("ne-f1", (1, 28, 28), 10, seed=0, device=x.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for _ in range(epochs):
        for a, b in zip(x.split(100), y.split(100), strict=True):
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def _surfaces(model: nn.Module, objective: Objective, rounds: int) -> list[dict[str, object]]:
    """The same few points of a surface in every way; ratios of the times."""
    directions = tuple(filter_normalized_direction(objective, seed=seed) for seed in (0, 1))
    line = np.linspace(-1, 1, POINTS)

    def ours() -> float:
        table = loss_surface({"": objective}, directions, line, line, progress=False)  # type: ignore[arg-type]
        return float(table["loss"].max())

    ways = {"naive loop": lambda: _naive_surface(model, objective, directions, line)}
    if find_spec("loss_landscapes"):
        ways["loss-landscapes (PyPI)"] = lambda: _their_surface(model, objective)
    times: dict[str, list[float]] = {name: [] for name in ["ours", *ways]}
    values = {}
    for _ in range(rounds):
        for name, way in {"ours": ours, **ways}.items():
            seconds, values[name] = _timed(way)
            times[name].append(seconds)
    return [
        {
            "what": f"surface, {POINTS} × {POINTS} of 51 × 51 points: ours ÷ {name}",
            "ratio": float(np.median(np.array(times["ours"]) / times[name])),
            "ours": values["ours"],
            "theirs": values[name]
            if name == "naive loop"
            else None,  # the other tool draws its own directions
        }
        for name in ways
    ]


def _naive_surface(
    model: nn.Module, objective: Objective, directions: tuple[Tensor, ...], line: np.ndarray
) -> float:
    """What one writes first: set each parameter, a pass through a DataLoader, put each back; the highest loss."""
    named = dict(model.named_parameters())
    parameters = [named[name] for name in objective.flat.names]
    start = [p.detach().clone() for p in parameters]
    d1, d2 = (objective.tensors(d) for d in directions)
    loader = DataLoader(TensorDataset(objective.x, objective.y), batch_size=128)
    highest = 0.0
    for a in line:
        for b in line:
            with torch.no_grad():
                for p, w, u, v in zip(parameters, start, d1, d2, strict=True):
                    p.copy_(w + a * u + b * v)
                total = sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in loader)
            highest = max(highest, total / len(objective.x))
    with torch.no_grad():
        for p, w in zip(parameters, start, strict=True):
            p.copy_(w)
    return highest


def _their_surface(model: nn.Module, objective: Objective) -> float:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    metric, model = (
        Loss(nn.CrossEntropyLoss(), objective.x, objective.y),
        deepcopy(model),
    )  # it moves the weights
    with torch.no_grad():
        for p in model.parameters():  # it divides by the norm of each filter, biases too
            p.add_(1e-12 * (p == 0))
    return float(
        loss_landscapes.random_plane(model, metric, distance=1, steps=POINTS, normalization="filter").max()
    )


class _Watched(Objective):
    """Notes when it has first seen a loss of at least `level`."""

    level, reached = math.inf, math.nan

    def __call__(self, w: Tensor) -> Value:
        value = super().__call__(w)
        self._note(value.loss)
        return value

    def gradient(self, w: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradient = super().gradient(w)
        self._note(loss)
        return loss, gradient

    def on(self, x: Tensor, y: Tensor) -> Objective:
        other = super().on(x, y)
        other.level = math.inf  # type: ignore[attr-defined]  # the loss of other samples says nothing
        return other

    def _note(self, loss: Tensor) -> None:
        if math.isnan(self.reached) and float(loss) >= self.level:
            self.reached = time.perf_counter()


def _box(batch_size: int, data: Data, epochs: int, rounds: int) -> dict[str, object]:
    """Vertex iteration, until it is as high as scipy's L-BFGS-B ends, against all of that; both from w* only."""
    batch_size = min(batch_size, len(data.train))
    objective = _Watched(_smoothouts(batch_size, data, epochs), data.train.x, data.train.y)
    ratios, ours, theirs = zip(*(_as_high(objective) for _ in range(rounds)), strict=True)
    ratio, what = (
        float(np.median(ratios)),
        f"box sharpness, SmoothOut's F1, B = {batch_size}: ours ÷ scipy's L-BFGS-B",
    )
    if torch.equal(theirs[0].highest, objective.weights):
        ratio, what = math.nan, f"{what}; scipy does not leave w*"
    elif math.isnan(ratio):
        what += "; ours ends lower"
    return {"what": what, "ratio": ratio, "ours": ours[0].maximum, "theirs": theirs[0].maximum}


def _as_high(objective: _Watched) -> tuple[float, BoxSharpness, BoxSharpness]:
    """The ratio of the times, NaN if ours is never as high; our search at its end, and scipy's."""
    objective.level = math.inf
    start = time.perf_counter()
    theirs = box_sharpness(objective, method="lbfgsb", starts=0)
    seconds = time.perf_counter() - start
    objective.level, objective.reached = theirs.max_loss, math.nan
    start = time.perf_counter()
    ours = box_sharpness(objective, starts=0)
    return (objective.reached - start) / seconds, ours, theirs


def _smoothouts(batch_size: int, data: Data, epochs: int) -> nn.Module:
    """SmoothOut's F1 after some epochs of its protocol, in evaluation mode."""
    training = Training([Run(**protocol("smoothout-f1", batch_size=batch_size, epochs=epochs))], data)
    for _ in range(epochs):
        training.train_epoch()
    return training.member(0)


def _timed(way: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = way()  # a number on the host: the device has finished
    return time.perf_counter() - start, value
