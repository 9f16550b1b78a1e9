"""The loss along lines and over planes through weight space, as tables.

Lines and surfaces take one `Objective` a data set, ``{"train": …, "test": …}``, the second made from the first by its
method `on`, so that both have the same weights and statistics of batch normalization.

>>> model = nn.Linear(1, 1, bias=False).eval()  # f(w) = w², at w* = 1
>>> _ = nn.init.ones_(model.weight)
>>> f = Objective(model, torch.ones(1, 1), torch.zeros(1), criterion=lambda out, y: out[:, 0] ** 2)
>>> loss_line({"train": f}, torch.tensor([2.0]), [-1, 0, 1], progress=False)["loss"].tolist()  # (1 + 2 x)²
[1.0, 1.0, 9.0]
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from nb_lib.errors import InputError, known
from nb_lib.lab.data import Split
from nb_lib.lab.device import hidden
from nb_lib.lab.foreign import measurable
from nb_lib.lab.losses import cross_entropy
from nb_lib.objective import Objective, flattened

BETWEEN = ("interpolated", "reestimated")
_TOGETHER = 16  # points in memory at once

Positions = Sequence[float] | NDArray[np.float64]


def filter_normalized_direction(objective: Objective, *, seed: int = 0, published: bool = False) -> Tensor:
    """A random direction [n] whose every filter is as long as the network's (Li et al. 2018).

    Entries are normal; each filter or neuron d_f becomes d_f ‖w_f‖ / ‖d_f‖; biases and normalization stay at 0.

    Parameters
    ----------
    seed : int
        The same seed gives networks of one architecture the same directions before scaling.  To walk along one and
        the same vector in both, pass the vector.
    published : bool
        The variant of the SmoothOut authors' code for their Fig. 5: entries are uniform, and biases and normalization
        move too, each by plus or minus its own size.
    """
    draw = torch.rand if published else torch.randn
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for w in objective.tensors(objective.weights):
        d = draw(w.shape, generator=generator)
        if published:
            d = 2 * d - 1
        elif w.ndim < 2:  # drawn all the same
            d = torch.zeros_like(d)
        parts.append(_as_long(d.to(w), w))
    return flattened(parts)


def loss_line(
    objectives: Mapping[str, Objective], direction: Tensor, positions: Positions, *, progress: bool = True
) -> pd.DataFrame:
    """Loss in nats and accuracy at w* + x d, a row a position x and data set: columns data, x, loss, accuracy.

    Raises `InputError` if there is no objective, they are of different networks, or d is of another length.
    """
    points = np.asarray(positions, dtype=float)[:, None]
    return _measured(objectives, [direction], points, ["x"], progress)


def loss_surface(
    objectives: Mapping[str, Objective],
    directions: tuple[Tensor, Tensor],
    x: Positions,
    y: Positions,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """The same at w* + x d₁ + y d₂: columns data, x, y, loss, accuracy."""
    points = np.array(list(product(x, y)), dtype=float)
    return _measured(objectives, list(directions), points, ["x", "y"], progress)


def interpolate(
    first: nn.Module,
    second: nn.Module,
    splits: Mapping[str, Split],
    positions: Positions,
    *,
    batch_norm: str = "interpolated",
    criterion: Callable[[Any, Tensor], Tensor] = cross_entropy,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss and accuracy of the network (1−t) first + t second: columns data, t, loss, accuracy.

    Parameters
    ----------
    first, second : torch.nn.Module
        Of one architecture, in evaluation mode.
    positions : sequence of float
        t, which need not be between 0 and 1: SmoothOut's figures go from −1 to 2.
    batch_norm : {"interpolated", "reestimated"}
        Running statistics: with the weights, as in the published figures (a variance that would become negative is
        0), or anew at every t on the first of the splits.
    criterion : callable
        The loss of each sample, as for an `Objective`.

    Raises
    ------
    InputError
        If the networks do not have the same weights, or there is nothing to evaluate.
    """
    known("treatment of batch normalization", batch_norm, BETWEEN)
    if not splits:
        raise InputError("a landscape needs data: give at least one split.")
    network = measurable(first)
    start, end = network.state_dict(), measurable(second).state_dict()
    if _shapes(start) != _shapes(end):
        raise InputError("the networks differ in architecture: there is nothing between them.")
    start = deepcopy(start)  # apart from the network, which moves
    treatment = "stored" if batch_norm == "interpolated" else batch_norm
    reference, *_ = splits.values()
    rows = []
    for t in tqdm(positions, desc="interpolating", disable=hidden(progress)):
        network.load_state_dict({name: _between(name, start[name], end[name], float(t)) for name in start})
        objective = Objective(network, reference.x, reference.y, criterion=criterion, batch_norm=treatment)
        for name, split in splits.items():
            loss, accuracy = objective.on(split.x, split.y)(objective.weights)
            rows.append([name, float(t), float(loss), float(accuracy)])
    return pd.DataFrame(rows, columns=["data", "t", "loss", "accuracy"])


def _as_long(d: Tensor, w: Tensor) -> Tensor:
    """d_f ‖w_f‖ / ‖d_f‖ for each filter, neuron or single number f along the first axis; the 10⁻¹⁰ is Li et al.'s."""
    rows = d.reshape(len(w) if w.ndim else 1, -1)
    lengths = w.reshape(rows.shape).norm(dim=1, keepdim=True)
    return rows * lengths / (rows.norm(dim=1, keepdim=True) + 1e-10)


def _measured(
    objectives: Mapping[str, Objective],
    directions: list[Tensor],
    points: NDArray[np.float64],
    names: list[str],
    progress: bool,
) -> pd.DataFrame:
    """The table of what is found at w* + Σ_k points[:, k] directions[k]."""
    if not objectives:
        raise InputError("a landscape needs data: give at least one objective.")
    w, *others = [objective.weights for objective in objectives.values()]
    if not all(torch.equal(w, other) for other in others):
        raise InputError(
            "the objectives are of different networks: make the second from the first, with its method on."
        )
    for direction in directions:
        if direction.shape != w.shape:
            raise InputError(f"a direction in this weight space has {len(w)} numbers, not {list(direction.shape)}.")
    basis = torch.stack(directions).to(w)
    rows = []
    with tqdm(total=len(points), desc="landscape", disable=hidden(progress)) as bar:
        for group in np.array_split(points, range(_TOGETHER, len(points), _TOGETHER)):
            places = w + torch.as_tensor(group, dtype=w.dtype, device=w.device) @ basis
            for data, objective in objectives.items():
                losses, accuracies = (column.tolist() for column in objective.many(places))
                for point, loss, accuracy in zip(group.tolist(), losses, accuracies, strict=True):
                    rows.append([data, *point, loss, accuracy])
            bar.update(len(group))
    return pd.DataFrame(rows, columns=["data", *names, "loss", "accuracy"])


def _shapes(state: Mapping[str, Any]) -> list[tuple[str, torch.Size | None]]:
    return [(name, entry.shape if isinstance(entry, Tensor) else None) for name, entry in state.items()]


def _between(name: str, first: Any, second: Any, t: float) -> Any:
    """The point t of the line from one entry of a network's state to the other; what is no real numbers stays."""
    if not (isinstance(first, Tensor) and (first.is_floating_point() or first.is_complex())):
        return first
    point = torch.lerp(first, second.to(first), t)
    return point.clamp(min=0) if name.endswith("running_var") else point
