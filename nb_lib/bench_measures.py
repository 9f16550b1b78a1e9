"""What measuring a network costs beside other ways to do it: ratios of times, and the values both reach.

As in `nb_lib.bench` the ways take turns within one run. A surface costs the same at each of its points, so a few
points are timed.
"""

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

from nb_lib.data import load
from nb_lib.errors import InputError
from nb_lib.landscape import filter_normalized_direction, loss_surface
from nb_lib.networks import build
from nb_lib.objective import Objective
from nb_lib.sharpness import box_sharpness

POINTS = 3  # of the 51 along each side of a surface


def bench_measures(device: torch.device, *, images: int = 10_000, rounds: int = 3) -> pd.DataFrame:
    """Time a filter-normalized surface and the box sharpness of NE's F1 against the usual ways.

    Fashion-MNIST is used if it is on this machine, else random images of its size, which take as long.

    Returns
    -------
    pandas.DataFrame
        Columns what, ratio (median over rounds), ours and theirs (the values reached: the highest loss of the
        surface, the sharpness), data.
    """
    x, y, name = _images(images, device)
    model = _trained(x, y)
    objective = Objective(model, x, y, batch_norm="stored")
    rows = [*_surfaces(model, objective, rounds), _box(objective)]
    return pd.DataFrame(rows).assign(data=f"{len(x)} images, {name}")


def _images(count: int, device: torch.device) -> tuple[Tensor, Tensor, str]:
    try:
        train = load("fashion-mnist", train_size=count, device=device).train
        return train.x, train.y, "Fashion-MNIST"
    except InputError:
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(count, 1, 28, 28, generator=generator)
        return x.to(device), torch.randint(10, (count,), generator=generator).to(device), "random"


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
            "theirs": values[name] if name == "naive loop" else None,  # the other tool draws its own directions
        }
        for name in ways
    ]


def _naive_surface(model: nn.Module, objective: Objective, directions: tuple[Tensor, ...], line: np.ndarray) -> float:
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

    metric, model = Loss(nn.CrossEntropyLoss(), objective.x, objective.y), deepcopy(model)  # it moves the weights
    with torch.no_grad():
        for p in model.parameters():  # it divides by the norm of each filter, biases too
            p.add_(1e-12 * (p == 0))
    return float(loss_landscapes.random_plane(model, metric, distance=1, steps=POINTS, normalization="filter").max())


def _box(objective: Objective) -> dict[str, object]:
    """Vertex iteration against scipy's L-BFGS-B, from w* only."""

    def search(method: str) -> Callable[[], float]:
        return lambda: box_sharpness(objective, method=method, starts=0).maximum

    seconds, values = {}, {}
    for method in ("vertex", "lbfgsb"):
        seconds[method], values[method] = _timed(search(method))
    return {
        "what": "box sharpness, all dimensions: ours ÷ scipy's L-BFGS-B",
        "ratio": seconds["vertex"] / seconds["lbfgsb"],
        "ours": values["vertex"],
        "theirs": values["lbfgsb"],
    }


def _timed(way: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    value = way()  # a number on the host: the device has finished
    return time.perf_counter() - start, value
