"""The loss along lines and over planes through weight space, as tables.

Every function takes one `Objective` a data set, all on the same weights: ``{"train": …, "test": …}``, the second made
from the first by `Objective.on`, so that both see the same statistics of batch normalization.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from nb_lib.errors import InputError, known
from nb_lib.lab.data import Split
from nb_lib.lab.device import hidden
from nb_lib.lab.files import write_atomically
from nb_lib.objective import Objective, Value, flattened

BETWEEN = ("interpolated", "reestimated")
_TOGETHER = 16  # points in memory at once


def filter_normalized_direction(objective: Objective, *, seed: int = 0, published: bool = False) -> Tensor:
    """A random direction whose every filter is as long as the network's (Li et al. 2018).

    Entries are normal; each filter or neuron d_f becomes d_f ‖w_f‖ / ‖d_f‖; biases and normalization stay at 0.

    Parameters
    ----------
    seed : int
        The same seed gives networks of one architecture the same directions before scaling. To walk along one and
        the same vector in both, pass the vector.
    published : bool
        True: the variant of the SmoothOut authors' code for their Fig. 5. Entries are uniform, and biases and
        normalization move too, each by plus or minus its own size.

    Returns
    -------
    Tensor, shape [n]
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [_scaled(w, generator, published) for w in objective.tensors(objective.weights)]
    return flattened(parts)


def loss_line(
    objectives: Mapping[str, Objective],
    direction: Tensor,
    positions: Sequence[float] | np.ndarray,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss and accuracy at w* + x d.

    Parameters
    ----------
    objectives : dict
        By the name of their data.
    direction : Tensor, shape [n]
        d.
    positions : sequence of float
        x.

    Returns
    -------
    pandas.DataFrame
        Columns data, x, loss (nats), accuracy (fraction); a row a point and data set.
    """
    points = np.asarray(positions, dtype=float)[:, None]
    return _measured(objectives, [direction], points, ["x"], progress)


def loss_surface(
    objectives: Mapping[str, Objective], directions: tuple[Tensor, Tensor], x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray, *, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Loss and accuracy at w* + x d₁ + y d₂, a row a point and data set: columns data, x, y, loss, accuracy."""
    points = np.array(list(product(np.asarray(x, dtype=float), np.asarray(y, dtype=float))))
    return _measured(objectives, list(directions), points, ["x", "y"], progress)


def interpolate(
    first: nn.Module, second: nn.Module, splits: Mapping[str, Split], positions: Sequence[float] | np.ndarray, *,
    batch_norm: str = "interpolated", chunk: int = 10_000, progress: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Loss and accuracy of the network (1−t) first + t second, which need not be between the two.

    Parameters
    ----------
    first, second : torch.nn.Module
        Of one architecture, in evaluation mode.
    splits : dict
        Data by name.
    positions : sequence of float
        t; SmoothOut's figures go from −1 to 2.
    batch_norm : str
        Running statistics: ``"interpolated"`` with the weights, as in the published figures (a variance that
        would become negative is 0), or ``"reestimated"`` at every t on the first of the splits.

    Returns
    -------
    pandas.DataFrame
        Columns data, t, loss, accuracy.

    Raises
    ------
    InputError
        If the networks do not have the same weights, or there is nothing to evaluate.
    """
    known("treatment of batch normalization", batch_norm, BETWEEN)
    ends = first.state_dict(), second.state_dict()
    if [(name, t.shape) for name, t in ends[0].items()] != [(name, t.shape) for name, t in ends[1].items()]:
        raise InputError("the networks differ in architecture: there is nothing between them.")
    network, treatment = deepcopy(first), "reestimated" if batch_norm == "reestimated" else "stored"
    (x, y), *_ = samples = [(split.x, split.y) for split in splits.values()]
    rows = []
    for t in tqdm(positions, desc="interpolating", disable=hidden(progress)):
        network.load_state_dict(
            {name: _between(name, start, ends[1][name], float(t)) for name, start in ends[0].items()}
        )
        objective = Objective(network, x, y, batch_norm=treatment, chunk=chunk)
        for name, part in zip(splits, samples, strict=True):
            rows.append({"data": name, "t": float(t)} | _row(objective.on(*part)(objective.weights)))
    return pd.DataFrame(rows)


def save(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table of this module as CSV, whole or not at all."""
    write_atomically(Path(path), lambda file: frame.to_csv(file, index=False))


def load(path: str | Path) -> pd.DataFrame:
    """Read what `save` wrote.

    Raises
    ------
    InputError
        If there is no such table.
    """
    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no table of a landscape: save one there first.") from error


def _measured(
    objectives: Mapping[str, Objective],
    directions: list[Tensor],
    points: np.ndarray,
    names: list[str],
    progress: bool,
) -> pd.DataFrame:
    """The table of what is found at w* + Σ_k points[:, k] directions[k]."""
    w = _common_weights(objectives)
    for direction in directions:
        if direction.shape != w.shape:
            raise InputError(
                f"a direction in this weight space has {len(w)} numbers, not {list(direction.shape)}."
            )
    basis = torch.stack(directions).to(w)
    rows = []
    with tqdm(total=len(points), desc="landscape", disable=hidden(progress)) as bar:
        for group in np.array_split(points, range(_TOGETHER, len(points), _TOGETHER)):
            places = w + torch.as_tensor(group, dtype=w.dtype, device=w.device) @ basis
            for data, objective in objectives.items():
                found = objective.many(places)
                pairs = zip(group.tolist(), found.loss.tolist(), found.accuracy.tolist(), strict=True)
                rows += [[data, *point, loss, accuracy] for point, loss, accuracy in pairs]
            bar.update(len(group))
    return pd.DataFrame(rows, columns=["data", *names, "loss", "accuracy"])


def _common_weights(objectives: Mapping[str, Objective]) -> Tensor:
    if not objectives:
        raise InputError("a landscape needs data: give at least one objective.")
    first, *others = [objective.weights for objective in objectives.values()]
    if not all(torch.equal(first, other) for other in others):
        raise InputError(
            "the objectives are of different networks: make the second from the first, with its method on."
        )
    return first


def _scaled(w: Tensor, generator: torch.Generator, published: bool) -> Tensor:
    """A random tensor with rows as long as those of the parameter `w`: its filters, neurons, or single numbers."""
    d = (
        torch.rand(w.shape, generator=generator) * 2 - 1
        if published
        else torch.randn(w.shape, generator=generator)
    )
    if w.ndim < 2 and not published:
        return torch.zeros_like(w)
    rows, lengths = (t.reshape(len(w) if w.ndim else 1, -1) for t in (d.to(w), w))
    lengths = lengths.norm(dim=1, keepdim=True)
    return rows * lengths / (rows.norm(dim=1, keepdim=True) + 1e-10)


def _between(name: str, first: Tensor, second: Tensor, t: float) -> Tensor:
    """The point t of the line from one entry of a network's state to the other; counters stay as they are."""
    if not first.is_floating_point():
        return first
    point = torch.lerp(first, second, t)
    return point.clamp(min=0) if name.endswith("running_var") else point


def _row(value: Value) -> dict[str, float]:
    return {"loss": value.loss.item(), "accuracy": value.accuracy.item()}
