"""Loss and accuracy around trained networks, as curves that outlive the weights: SmoothOut's Figs. 5 and 7.

A *profile* of a network has two: along a random filter-normalized line (Li et al. 2018), and under uniform weight noise
of growing strength (SmoothOut eq. 1).  A file keeps the profiles of many runs as JSON, one line a run.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from nb_lib.errors import InputError
from nb_lib.lab.data import Data, Split
from nb_lib.lab.files import place, read_text, write_atomically
from nb_lib.lab.provenance import provenance
from nb_lib.lab.runs import Run
from nb_lib.landscape import filter_normalized_direction, loss_line
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective

POSITIONS = tuple(np.linspace(-0.5, 0.5, 21).round(3).tolist())
STRENGTHS = tuple(np.linspace(0, 0.06, 7).round(3).tolist())
SAMPLES, DRAWS = 1_000, 6
_CURVES = ("line", "noise")
_FIELDS = ("network", "dataset", "batch_size", "alpha", "a", "adaptive", "distribution", "denoise", "seed")
_NUMBERS = ("x", "loss", "loss_error", "accuracy", "accuracy_error")
_DIGITS = 6  # that are kept of each number


class Profile(NamedTuple):
    """A profile of the network of one run, and where it comes from."""

    run: Run
    curves: pd.DataFrame  # as from `profile`
    provenance: dict[str, Any]


def profile(
    model: nn.Module,
    data: Data,
    *,
    positions: Sequence[float] = POSITIONS,
    strengths: Sequence[float] = STRENGTHS,
    samples: int = SAMPLES,
    draws: int = DRAWS,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure loss and accuracy of a trained network on a line through it, and under weight noise.

    Statistics of batch normalization are those of the clean weights.

    Parameters
    ----------
    positions : sequence of float
        Places x on the line w* + x d, in lengths of the filters.
    strengths : sequence of float
        Half-widths a of noise U(−a, a) on all parameters.
    samples : int
        Most samples of each split, the first ones.
    draws : int
        Perturbations a strength, an even number.
    seed : int
        Of the direction and of the noise.

    Returns
    -------
    pandas.DataFrame
        Columns curve ("line" or "noise"), data ("train" or "test"), x (the position, or a), loss (nats), accuracy (a
        fraction) and their standard errors loss_error and accuracy_error (over perturbations; NaN on the line).

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False)).eval()
    >>> _ = nn.init.zeros_(model[1].weight)  # no filter has a length, so that the line is one point
    >>> split = Split(torch.ones(2, 1, 1, 1), torch.tensor([0, 1]))
    >>> data = Data("two points", "", ("left", "right"), train=split, test=split)
    >>> profile(model, data, positions=[-1, 1], strengths=[0.0])["loss"].round(3).tolist()  # ln 2
    [0.693, 0.693, 0.693, 0.693, 0.693, 0.693]
    """
    train = _first(data.train, samples)
    test = _first(data.test, samples)
    objective = Objective(model, train.x, train.y)
    objectives = {"train": objective, "test": objective.on(test.x, test.y)}
    direction = filter_normalized_direction(objective, seed=seed)
    line = loss_line(objectives, direction, positions, progress=False)
    parts = [line.assign(curve="line")]
    for name, one in objectives.items():
        noise = noise_sensitivity(one, strengths, draws=draws, seed=seed).frame
        noise = noise.rename(columns={"a": "x"})
        parts.append(noise.assign(curve="noise", data=name))
    return pd.concat(parts, ignore_index=True)[["curve", "data", *_NUMBERS]]


def profile_of(
    run: Run, model: nn.Module, data: Data, *, samples: int = SAMPLES, draws: int = DRAWS, **places: Sequence[float]
) -> Profile:
    """The profile of the network of a run; its direction and noise are those of the run's seed."""
    curves = profile(model, data, samples=samples, draws=draws, seed=run.seed, **places)
    how = {"samples": samples, "draws": draws}
    return Profile(run, curves, {"dataset_variant": data.variant, **how, **provenance(data.device)})


def save_profiles(profiles: Iterable[Profile], path: str | Path) -> int:
    """Add profiles to a file of them; of a run that it has already the new one counts.  How many it has then."""
    path = place(path)
    of_run = {one.run: one for one in [*stored_profiles(path), *profiles]}
    lines = [json.dumps(_as_json(one), sort_keys=True, allow_nan=False) for one in of_run.values()]
    entries = ",\n".join(sorted(lines))
    content = f"[\n{entries}\n]\n".encode()
    write_atomically(path, lambda file: file.write(content))
    return len(of_run)


def stored_profiles(path: str | Path) -> list[Profile]:
    """Profiles of a file to which others can be added; none if it is not there yet."""
    path = place(path)
    return load_profiles(path) if path.exists() else []


def load_profiles(path: str | Path) -> list[Profile]:
    """Read a file of profiles; an `InputError` if it is none, or not there."""
    text = read_text(place(path))
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise TypeError
        return [_from_json(entry) for entry in entries]
    except InputError as error:
        reason = str(error).removesuffix(".")
        raise InputError(f"{path} was written by another version ({reason}): update nb_lib.") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is not a file of profiles as `python -m nb_lib profile` writes them.") from error


def table(profiles: Iterable[Profile]) -> pd.DataFrame:
    """All curves as one table: the columns of `profile`, beside network, data, batch, method and seed of each run."""
    parts = []
    for one in profiles:
        fields = {name: getattr(one.run, name) for name in _FIELDS}
        parts.append(one.curves.assign(**fields))
    if not parts:
        raise InputError("there are no profiles to show: measure some with `python -m nb_lib profile`.")
    return pd.concat(parts, ignore_index=True)


def _first(split: Split, samples: int) -> Split:
    return Split(split.x[:samples], split.y[:samples])


def _as_json(one: Profile) -> dict[str, Any]:
    """Plain values: of each curve and data set a list a column, null for NaN."""
    curves: dict[str, Any] = {}
    for (curve, data), rows in one.curves.groupby(["curve", "data"]):
        columns = {name: _rounded(rows[name]) for name in _NUMBERS}
        curves.setdefault(str(curve), {})[str(data)] = columns
    return {"run": one.run.to_dict(), "curves": curves, "provenance": one.provenance}


def _rounded(column: "pd.Series[float]") -> list[float | None]:
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in column]


def _from_json(entry: dict[str, Any]) -> Profile:
    parts = []
    for curve in _CURVES:
        for data, columns in entry["curves"][curve].items():
            numbers = pd.DataFrame({name: columns[name] for name in _NUMBERS}, dtype=float)
            parts.append(numbers.assign(curve=curve, data=data))
    curves = pd.concat(parts, ignore_index=True)[["curve", "data", *_NUMBERS]]
    return Profile(Run.from_dict(entry["run"]), curves, dict(entry["provenance"]))
