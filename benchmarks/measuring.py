"""What measuring a network costs beside other ways to do it: ratios of times, and the values both reach.

As in `benchmarks.steps` the ways take turns within one run. A surface costs the same at each of its points, so a few
points are timed. A search for the worst loss in a box costs what it takes to come as high as scipy's: it is timed
until then, on SmoothOut's F1 trained with a small and with a large batch.
"""

import math
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from importlib.util import find_spec

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.steps import Row, interleaved
from nb_lib.errors import InputError
from nb_lib.lab.data import Data, Split, load
from nb_lib.lab.runs import Run
from nb_lib.lab.training import Training
from nb_lib.landscape import filter_normalized_direction, loss_surface
from nb_lib.objective import Objective, Value
from nb_lib.protocols import protocol
from nb_lib.sharpness import BoxSharpness, Climb, box_points, box_sharpness

Vector = NDArray[np.float64]

POINTS = 3  # of the 51 along each side of a surface
SMALL_AND_LARGE = (256, 6000)  # SmoothOut's batch sizes


def bench_measures(device: torch.device, *, images: int = 10_000, epochs: int = 20, rounds: int = 3) -> pd.DataFrame:
    """Time a filter-normalized surface of NE's F1 and the box sharpness of SmoothOut's against the usual ways.

    Fashion-MNIST and MNIST are used if they are on this machine, else random images of their size: `images` to train on
    and to take the loss of; SmoothOut's F1 is trained for that many `epochs`.

    Returns
    -------
    pandas.DataFrame
        Columns what, ratio (median over rounds), ours and theirs (the values reached at the end: the highest loss of
        the surface, the sharpness), data. Of a box the ratio is the time until our search has come as high as scipy's
        ends, over all of scipy's; NaN, and said, if it has not, or if scipy's does not leave w*.
    """
    fashion = _data("fashion-mnist", images, device)
    mnist = _data("mnist", images, device, normalization="symmetric")
    rows = []
    model = _trained("ne-f1", 100, fashion, 2)
    for row in _surfaces(model, fashion.train, rounds):
        rows.append(row | {"data": f"{images} images, {fashion.name}"})
    for batch_size in SMALL_AND_LARGE:
        row = _box(batch_size, mnist, epochs, rounds)
        rows.append(row | {"data": f"{images} images, {mnist.name}"})
    return pd.DataFrame(rows)


def _data(dataset: str, images: int, device: torch.device, normalization: str = "unit") -> Data:
    try:
        return load(dataset, train_size=images, test_size=10, normalization=normalization, device=device)
    except InputError:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(images, 1, 28, 28, generator=generator).to(device)
        y = torch.randint(10, (images,), generator=generator).to(device)
        part = Split(x[:10], y[:10])
        return Data("random", "random", tuple("0123456789"), train=Split(x, y), test=part)


def _trained(network: str, batch_size: int, data: Data, epochs: int) -> nn.Module:
    """A network after some epochs of its protocol, in evaluation mode."""
    batch_size = min(batch_size, len(data.train))
    fields = protocol(network, batch_size=batch_size, epochs=epochs)
    training = Training([Run(**fields)], data)
    for _ in range(epochs):
        training.train_epoch()
    return training.member(0)


# -------------------------------------------------------------------------------------------------------- surfaces


def _surfaces(model: nn.Module, images: Split, rounds: int) -> list[Row]:
    """The same few points of a surface in every way; ratios of the times."""
    objective = Objective(model, images.x, images.y, batch_norm="stored")
    first = filter_normalized_direction(objective, seed=0)
    second = filter_normalized_direction(objective, seed=1)
    directions = (first, second)
    line = np.linspace(-1, 1, POINTS)

    def ours() -> float:
        table = loss_surface({"": objective}, directions, line, line, progress=False)
        return float(table["loss"].max())

    ways: dict[str, Callable[[], float]] = {
        "ours": ours,
        "naive loop": partial(_naive_surface, model, objective, directions, line),
    }
    highest = {name: way() for name, way in ways.items()}
    if find_spec("loss_landscapes"):  # it draws its own directions
        ways["loss-landscapes (PyPI)"] = partial(_their_surface, model, objective)
    times = interleaved(ways, objective.weights.device, rounds, warm_up=0)
    rows: list[Row] = []
    for name in times.columns.drop("ours"):
        ratio = (times["ours"] / times[name]).median()
        what = f"surface, {POINTS} × {POINTS} of 51 × 51 points: ours ÷ {name}"
        theirs = highest.get(name)
        rows.append({"what": what, "ratio": ratio, "ours": highest["ours"], "theirs": theirs})
    return rows


def _naive_surface(model: nn.Module, objective: Objective, directions: tuple[Tensor, Tensor], line: Vector) -> float:
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
                total = 0.0
                for x, y in loader:
                    total += F.cross_entropy(model(x), y, reduction="sum").item()
            highest = max(highest, total / len(objective.x))
    with torch.no_grad():
        for p, w in zip(parameters, start, strict=True):
            p.copy_(w)
    return highest


def _their_surface(model: nn.Module, objective: Objective) -> float:
    import loss_landscapes
    from loss_landscapes.metrics import Loss

    metric = Loss(nn.CrossEntropyLoss(), objective.x, objective.y)
    model = deepcopy(model)  # it moves the weights
    with torch.no_grad():
        for p in model.parameters():  # it divides by the norm of each filter, biases too
            p.add_(1e-12 * (p == 0))
    surface = loss_landscapes.random_plane(model, metric, distance=1, steps=POINTS, normalization="filter")
    return float(surface.max())


# ------------------------------------------------------------------------------------------------------------ boxes


def lbfgsb_sharpness(
    objective: Objective, *, epsilon: float = 5e-4, starts: int = 0, steps: int = 10, seed: int = 0
) -> BoxSharpness:
    """`box_sharpness` as in the literature: by scipy's L-BFGS-B with its own settings and Keskar's 10 steps."""
    loss = float(objective.start.loss)
    half = epsilon * (objective.weights.abs() + 1)
    climbs = []
    for y in box_points(half, starts, seed):
        climb = Climb(objective, half)
        _lbfgsb(climb, y, steps)
        climbs.append(climb)
    return BoxSharpness.of(climbs, loss, epsilon)


def _lbfgsb(climb: Climb, y: Tensor, steps: int) -> None:
    """Minimize −f, of gradient −∇f, from `y`."""

    def negative(z: Vector) -> tuple[float, Vector]:
        point = torch.from_numpy(z).to(y)
        loss, slopes = climb.gradient(point)
        return -loss, -slopes.double().numpy(force=True)

    limits = climb.half.double().numpy(force=True)
    start = y.double().numpy(force=True)
    bounds = list(zip(-limits, limits, strict=True))
    minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps})


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


def _box(batch_size: int, data: Data, epochs: int, rounds: int) -> Row:
    """Vertex iteration, until it is as high as scipy's L-BFGS-B ends, against all of that."""
    model = _trained("smoothout-f1", batch_size, data, epochs)
    objective = _Watched(model, data.train.x, data.train.y)
    ratios = []
    for _ in range(rounds):
        ratio, ours, theirs = _as_high(objective)
        ratios.append(ratio)
    ratio = float(np.median(ratios))
    what = f"box sharpness, SmoothOut's F1, B = {min(batch_size, len(data.train))}: ours ÷ scipy's L-BFGS-B"
    if torch.equal(theirs.highest, objective.weights):
        ratio = math.nan
        what += "; scipy does not leave w*"
    elif math.isnan(ratio):
        what += "; ours ends lower"
    return {"what": what, "ratio": ratio, "ours": ours.maximum, "theirs": theirs.maximum}


def _as_high(objective: _Watched) -> tuple[float, BoxSharpness, BoxSharpness]:
    """Both searches from w* only, and the time until ours is as high as scipy's ends, over all of scipy's, or NaN."""
    objective.level = math.inf
    _ = objective.start  # the loss at w*, which both searches know from then on
    start = time.perf_counter()
    theirs = lbfgsb_sharpness(objective)
    seconds = time.perf_counter() - start
    objective.level, objective.reached = theirs.max_loss, math.nan
    start = time.perf_counter()
    ours = box_sharpness(objective, starts=0)
    return (objective.reached - start) / seconds, ours, theirs
