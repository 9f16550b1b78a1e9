"""The loss under weight noise: SmoothOut's smoothed loss C̄(w*; a) and its slope s (eqs. 1, 5, 9)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from nb_lib.errors import InputError, check_strength, known
from nb_lib.hessian import Estimate, HessianTrace
from nb_lib.lab.names import DISTRIBUTIONS
from nb_lib.objective import Measurable, Value, finite, flattened


@dataclass(frozen=True)
class NoiseSensitivity:
    """Loss and accuracy under weight noise of several strengths, see `noise_sensitivity`."""

    frame: pd.DataFrame = field(compare=False)  # a, loss, loss_error, accuracy, accuracy_error
    noise: str
    adaptive: bool
    draws: int  # perturbations a strength
    loss: float  # C(w*), without noise
    accuracy: float
    evaluations: int  # of the loss over all samples

    def slope(self, a: float | None = None) -> Estimate:
        """Slope s = (C̄(w*; a) − C(w*)) / a of SmoothOut eq. 9, from 0 to `a`, the largest strength by default.

        C̄ − C grows as a², so s is a property of the minimum *and* of the interval: compare at one `a` only.

        Raises
        ------
        InputError
            If `a` is not greater than 0, or was not measured.
        """
        a = float(self.frame["a"].max()) if a is None else a
        rows = self.frame[self.frame["a"] == a]
        if rows.empty or a <= 0:
            measured = ", ".join(f"{strength:g}" for strength in self.frame["a"] if strength > 0)
            raise InputError(
                f"the slope was not measured up to a = {a:g}: choose among {measured or 'new strengths'}."
            )
        row = rows.iloc[0]
        return Estimate((row["loss"] - self.loss) / a, row["loss_error"] / a)

    def __str__(self) -> str:
        kind = f"{self.noise}{' noise a filter' if self.adaptive else ' noise'}"
        lines = [f"loss under {kind}, {self.draws} draws a strength, {self.evaluations} evaluations"]
        for a, loss, loss_error, accuracy, accuracy_error in self.frame.to_numpy():
            lines.append(
                f"  a = {a:<8g} loss {Estimate(loss, loss_error)}, accuracy {accuracy:.2%} ± {accuracy_error:.2%}"
            )
        return "\n".join(lines)


def noise_sensitivity(
    objective: Measurable, strengths: Sequence[float], *, noise: str = "uniform", adaptive: bool = False,
    draws: int = 20, antithetic: bool = True, seed: int = 0,
) -> NoiseSensitivity:  # fmt: skip
    """The curve C̄(w*; a) = E C(w* + θ) of loss and accuracy under weight noise (SmoothOut eqs. 1, 5, 9).

    Parameters
    ----------
    objective : Objective or the like
    strengths : sequence of float
        Noise strengths a, each at least 0, of any number and order.
    noise : {"uniform", "normal"}
        θ ~ U(−a, a), or of standard deviation a.
    adaptive : bool
        Noise per filter or neuron, θ_f = a |w_f| n_f / |n_f| (AdaSmoothOut, SmoothOut eq. 12).
    draws : int
        Perturbations a strength.  All strengths share their directions, so the curve is smooth in a and its errors
        are alike, not independent.
    antithetic : bool
        Draw in pairs ±θ, whose linear terms cancel.  Where those dominate, at small a, the errors are many times
        smaller; where curvature does, up to √2 larger.  Standard errors are over pairs.
    seed : int

    Raises
    ------
    InputError
        If a strength is negative, there are too few draws for a standard error (or an odd number, with pairs), or the
        loss at w* is not finite.
    """
    known("noise", noise, DISTRIBUTIONS)
    strengths = [check_strength(a) for a in strengths]
    count = _independent_draws(draws, antithetic)
    if not strengths:
        raise InputError("a curve needs at least one noise strength.")
    w, clean = objective.weights, finite(objective(objective.weights))
    generator = torch.Generator(w.device).manual_seed(seed)
    signs = (1, -1) if antithetic else (1,)
    noisy = sorted({a for a in strengths if a > 0})
    samples: dict[float, list[Value]] = {a: [] for a in noisy}
    for together in _groups(count, max(1, _TOGETHER // (len(signs) * len(w)))):
        units = torch.stack([_unit_noise(objective, noise, adaptive, generator) for _ in range(together)])
        for a in noisy:
            points = torch.cat([w + sign * a * units for sign in signs])
            samples[a].append(Value(*(v.view(len(signs), -1).mean(0) for v in _many(objective, points))))
    rows = [
        (a, *(_over_draws(samples[a]) if a else (clean.loss, 0.0, clean.accuracy, 0.0))) for a in strengths
    ]
    columns = ["a", "loss", "loss_error", "accuracy", "accuracy_error"]
    return NoiseSensitivity(
        frame=pd.DataFrame([[float(v) for v in row] for row in rows], columns=columns),
        noise=noise,
        adaptive=adaptive,
        draws=draws,
        loss=float(clean.loss),
        accuracy=float(clean.accuracy),
        evaluations=1 + draws * len(noisy),
    )


def second_order(
    trace: "HessianTrace | float", strengths: Sequence[float], *, noise: str = "uniform"
) -> NDArray[np.float64]:
    """What the trace of the Hessian predicts of C̄(w*; a) − C(w*): a²/6 · tr H, for normal noise a²/2 · tr H.

    For noise per filter take ``hessian_trace(..., adaptive=True)``, Σ_f (|w_f|²/n_f) tr H_f: a²/2 times that.  This is
    the first term of a series in a.  The kinks of a ReLU network add curvature that no Hessian at w* sees.

    >>> second_order(12.0, [0.1])
    array([0.02])
    """
    per_filter = isinstance(trace, HessianTrace) and trace.adaptive
    factor = {"uniform": 1 / 6, "normal": 1 / 2}[known("noise", noise, DISTRIBUTIONS)]
    value = trace.value if isinstance(trace, HessianTrace) else trace
    return (1 / 2 if per_filter else factor) * value * np.square([check_strength(a) for a in strengths])


def _independent_draws(draws: int, antithetic: bool) -> int:
    if antithetic and (draws < 4 or draws % 2):
        raise InputError(
            f"antithetic draws come in pairs, at least two for a standard error: not {draws} draws."
        )
    if draws < 2:
        raise InputError(f"a standard error needs at least 2 draws, not {draws}.")
    return draws // 2 if antithetic else draws


def _groups(count: int, size: int) -> Iterator[int]:
    """Sizes of the groups of at most `size` that make up `count`."""
    return (min(size, count - first) for first in range(0, count, size))


def _unit_noise(objective: Measurable, noise: str, adaptive: bool, generator: torch.Generator) -> Tensor:
    """θ / a [n]."""
    w = objective.weights
    n = _uniform(w, generator) if noise == "uniform" else torch.empty_like(w).normal_(generator=generator)
    return flattened(map(_scaled_to, objective.rows(n), objective.rows(w))) if adaptive else n


def _scaled_to(n: Tensor, w: Tensor) -> Tensor:
    """|w_f| n_f / |n_f| for each row f (SmoothOut eq. 12)."""
    eps = torch.finfo(n.dtype).eps  # a draw of exactly 0 gets no noise, not 0 · ∞
    n_norm = torch.linalg.vector_norm(n, dim=1, keepdim=True).clamp_min(eps)
    return n * (torch.linalg.vector_norm(w, dim=1, keepdim=True) / n_norm)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(like).uniform_(-1, 1, generator=generator)


def _many(objective: Measurable, points: Tensor) -> Value:
    """Values at the points [K, n], side by side if the objective knows how."""
    many = getattr(objective, "many", None)
    return many(points) if many else Value(*map(torch.stack, zip(*map(objective, points), strict=True)))


def _over_draws(groups: list[Value]) -> list[Tensor]:
    """Mean and standard error of loss and of accuracy over independent draws."""
    columns = [torch.cat(column) for column in zip(*groups, strict=True)]
    return [number for c in columns for number in (c.mean(), c.std() / math.sqrt(len(c)))]


_TOGETHER = 2**26  # most numbers in the perturbed copies of the weights that are held at once
