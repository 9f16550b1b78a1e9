"""The loss under weight noise: SmoothOut's smoothed loss C̄(w*; a) and its slope s (eqs. 1, 5, 9).

>>> from torch import nn
>>> model = nn.Linear(1, 1, bias=False).eval()  # f(w) = w², at w* = 1, so that tr H = 2
>>> _ = nn.init.ones_(model.weight)
>>> f = Objective(model, torch.ones(1, 1), torch.zeros(1), criterion=lambda out, y: out[:, 0] ** 2)
>>> rise = second_order(2.0, [0.3])  # a²/3
>>> rise, rise / 0.3
(array([0.03]), array([0.1]))
>>> round(noise_sensitivity(f, [0.3], draws=100).slope().value, 1)
0.1
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from nb_lib.errors import InputError, check_strength, known
from nb_lib.hessian import Estimate, HessianTrace
from nb_lib.lab.names import DISTRIBUTIONS
from nb_lib.objective import Objective, flattened
from nb_lib.smoothout import scaled_to_rows

_TOGETHER = 2**26  # most numbers in the perturbed copies of the weights that are held at once


@dataclass(frozen=True)
class NoiseSensitivity:
    """Loss and accuracy under weight noise of several strengths, see `noise_sensitivity`."""

    frame: pd.DataFrame = field(compare=False)  # a, loss, loss_error, accuracy, accuracy_error
    distribution: str
    adaptive: bool
    draws: int  # perturbations a strength
    loss: float  # C(w*), without noise
    accuracy: float
    evaluations: int  # of the loss over all samples

    def slope(self, a: float | None = None) -> Estimate:
        """Slope s = (C̄(w*; a) − C(w*)) / a of SmoothOut eq. 9, from 0 to `a`, the largest strength by default.

        C̄ − C grows as a²: compare slopes at one `a` only.  Raises `InputError` if that was not measured, or is 0.
        """
        if a is None:
            a = float(self.frame["a"].max())
        rows = self.frame[self.frame["a"] == a]
        if rows.empty or a <= 0:
            measured = ", ".join(f"{strength:g}" for strength in self.frame["a"] if strength > 0)
            raise InputError(f"the slope was not measured up to a = {a:g}: choose among {measured or 'new strengths'}.")
        rise = float(rows["loss"].iloc[0]) - self.loss
        error = float(rows["loss_error"].iloc[0])
        return Estimate(rise / a, error / a)

    def __str__(self) -> str:
        kind = f"{self.distribution} noise"
        if self.adaptive:
            kind += " a filter"
        lines = [f"loss under {kind}, {self.draws} draws a strength, {self.evaluations} evaluations"]
        for a, loss, loss_error, accuracy, accuracy_error in self.frame.to_numpy():
            scores = f"loss {Estimate(loss, loss_error)}, accuracy {accuracy:.2%} ± {accuracy_error:.2%}"
            lines.append(f"  a = {a:<8g} {scores}")
        return "\n".join(lines)


def noise_sensitivity(
    objective: Objective,
    strengths: Sequence[float],
    *,
    distribution: str = "uniform",
    adaptive: bool = False,
    draws: int = 20,
    seed: int = 0,
) -> NoiseSensitivity:
    """The curve C̄(w*; a) = E C(w* + θ) of loss and accuracy under weight noise (SmoothOut eqs. 1, 5, 9).

    Parameters
    ----------
    strengths : sequence of float
        Noise strengths a, each at least 0, in any order.
    distribution : {"uniform", "normal"}
        θ ~ U(−a, a), or of standard deviation a.
    adaptive : bool
        Noise per filter or neuron, θ_f = a |w_f| n_f / |n_f| (AdaSmoothOut, SmoothOut eq. 12).
    draws : int
        Perturbations a strength: an even number, at least 4.  They come in pairs ±θ, whose linear terms cancel;
        standard errors are over pairs.  All strengths share their directions, so their errors are alike.

    Raises
    ------
    InputError
        If a strength or the number of draws is out of range, or the loss at w* is not finite.
    """
    known("distribution", distribution, DISTRIBUTIONS)
    strengths = [check_strength(a) for a in strengths]
    if not strengths:
        raise InputError("a curve needs at least one noise strength.")
    if not isinstance(draws, Integral) or draws < 4 or draws % 2:
        raise InputError(f"antithetic draws come in pairs, at least two for a standard error: not {draws} draws.")
    loss, accuracy = float(objective.start.loss), float(objective.start.accuracy)
    scores = {0.0: [loss, 0.0, accuracy, 0.0]}
    for a in set(strengths) - {0.0}:
        generator = torch.Generator(objective.weights.device).manual_seed(seed)
        losses, accuracies = _under_noise(objective, a, distribution, adaptive, draws // 2, generator)
        scores[a] = [*_mean_and_error(losses), *_mean_and_error(accuracies)]
    columns = ["a", "loss", "loss_error", "accuracy", "accuracy_error"]
    frame = pd.DataFrame([[a, *scores[a]] for a in strengths], columns=columns)
    evaluations = 1 + draws * (len(scores) - 1)
    return NoiseSensitivity(frame, distribution, adaptive, draws, loss, accuracy, evaluations)


def second_order(
    trace: HessianTrace | float, strengths: Sequence[float], *, distribution: str = "uniform"
) -> NDArray[np.float64]:
    """What the trace of the Hessian predicts of C̄(w*; a) − C(w*): a²/6 · tr H, for normal noise a²/2 · tr H.

    For noise per filter take ``hessian_trace(..., adaptive=True)``: a²/2 times that.  It is the first term of a series
    in a.  The kinks of a ReLU network add curvature that no Hessian at w* sees.
    """
    known("distribution", distribution, DISTRIBUTIONS)
    variance = 1 / 3 if distribution == "uniform" else 1.0  # of θ/a
    if isinstance(trace, HessianTrace):
        variance = 1.0 if trace.adaptive else variance  # the trace holds that of noise per filter
        trace = trace.value
    return variance / 2 * trace * np.square([check_strength(a) for a in strengths])


def _under_noise(
    objective: Objective, a: float, distribution: str, adaptive: bool, pairs: int, generator: torch.Generator
) -> Tensor:
    """Loss and accuracy [2, pairs], each the mean of those at w* + θ and w* − θ."""
    w = objective.weights
    most = max(1, _TOGETHER // (2 * len(w)))
    parts = []
    for done in range(0, pairs, most):
        count = min(most, pairs - done)
        units = [_unit_noise(objective, distribution, adaptive, generator) for _ in range(count)]
        theta = a * torch.stack(units)
        values = objective.many(torch.cat([w + theta, w - theta]))
        parts.append(torch.stack(values).view(2, 2, -1).mean(1))
    return torch.cat(parts, dim=1)


def _unit_noise(objective: Objective, distribution: str, adaptive: bool, generator: torch.Generator) -> Tensor:
    """θ/a [n]."""
    w = objective.weights
    n = torch.empty_like(w)
    if distribution == "uniform":
        n.uniform_(-1, 1, generator=generator)
    else:
        n.normal_(generator=generator)
    if not adaptive:
        return n
    rows = zip(objective.rows(n), objective.rows(w), strict=True)
    return flattened(scaled_to_rows(n_f, w_f) for n_f, w_f in rows)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))
