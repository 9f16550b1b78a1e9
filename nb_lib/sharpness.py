"""How sharp a minimum is: how high the loss rises in a small box around it (Keskar et al., arXiv:1609.04836).

>>> from torch import nn
>>> model = nn.Linear(1, 1, bias=False).eval()  # f(w) = w², at w* = 1
>>> _ = nn.init.ones_(model.weight)
>>> f = Objective(model, torch.ones(1, 1), torch.zeros(1), criterion=lambda out, y: out[:, 0] ** 2)
>>> box_sharpness(f, epsilon=0.5).maximum  # the box ends at 1 + 0.5 (|1| + 1) = 2, where f is 4
150.0
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from nb_lib.errors import InputError, positive, whole
from nb_lib.objective import Objective

_GAIN = 1e-4  # a step that raises the loss by less than this part of all it has risen was too long
_SHORTEST = 1 / 16  # of the way through the box: a search ends when steps get shorter
_PARTS = 20  # that half of the samples is cut into, a step on each
_MANY = 5000  # samples: with fewer there are no such steps


@dataclass(frozen=True)
class BoxSharpness:
    """What `box_sharpness` finds."""

    values: tuple[float, ...]  # φ by start, the first from w*
    epsilon: float
    loss: float  # f at w*
    max_loss: float  # the highest f met
    evaluations: int  # of the loss over all samples, most with its gradient; those of parts do not count
    highest: Tensor = field(repr=False, compare=False)  # the weights [n] of max_loss

    @classmethod
    def of(cls, climbs: Sequence["Climb"], loss: float, epsilon: float) -> "BoxSharpness":
        """Sum up searches through one box, around a point with this loss."""
        top = max(climbs, key=attrgetter("peak"))
        return cls(
            values=tuple(100 * (climb.peak - loss) / (1 + loss) for climb in climbs),
            epsilon=epsilon,
            loss=loss,
            max_loss=top.peak,
            evaluations=1 + sum(climb.evaluations for climb in climbs),
            highest=top.highest,
        )

    @property
    def maximum(self) -> float:
        """The largest φ: every start gives a lower bound of the maximum over the box."""
        return max(self.values)

    @property
    def mean(self) -> float:
        """Mean of φ over the starts."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float:
        """Standard deviation of φ over the starts; NaN for one."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        return (
            f"sharpness {self.maximum:.4g} (mean {self.mean:.4g}, std {self.std:.2g} over {len(self.values)} starts): "
            f"loss {self.loss:.4g} rises to {self.max_loss:.4g}\n"
            f"in a box of ε = {self.epsilon:g} in {len(self.highest)} dimensions; {self.evaluations} evaluations"
        )


def box_sharpness(
    objective: Objective, *, epsilon: float = 5e-4, starts: int = 5, steps: int = 20, seed: int = 0
) -> BoxSharpness:
    """(C_ε, A)-sharpness φ = 100 (max f(w* + y) − f(w*)) / (1 + f(w*)) of Keskar et al., Metric 2.1.

    The maximum is over the box C_ε, |y_i| ≤ h_i = ε (|w*_i| + 1), ε > 0, in all of weight space: A is the identity.
    (The boxes of SmoothOut eq. 4 have one half-width for all weights.)

    Parameters
    ----------
    starts : int
        Random points of the box to start from, after w* itself.
    steps : int
        Most steps on all samples from each start.

    Raises
    ------
    InputError
        If an argument is out of range, or the loss is not finite at w* or where a search went.

    Notes
    -----
    A search steps y ← h sign(∇f(w* + y)) from vertex to vertex of the box.  For a convex f no step goes down; where one
    does, the next are half as long, until short steps too gain less than 10⁻⁴ of the rise so far.  It gives a lower
    bound: in a large box many vertices are local maxima, which the spread over starts shows.

    Of 5000 samples or more only the first step, which decides between maxima far apart, is on all.  The next are on a
    fortieth each, then one along the sum of their slopes: high up in the box slopes are much the same for all samples.
    Where that leads no higher than the start, the search begins again without.
    """
    epsilon = positive("epsilon, the size of the box,", epsilon)
    whole("the number of random starts", starts, 0)
    whole("the number of steps", steps, 1)
    loss = float(objective.start.loss)
    half = epsilon * (objective.weights.abs() + 1)
    shuffle = torch.Generator(half.device).manual_seed(seed)
    climbs = []
    for y in box_points(half, starts, seed):
        climb = Climb(objective, half)
        parts = _parts(objective.N, shuffle)
        if parts:
            _step_up(climb, _ahead(climb, y, parts), steps - 1)
        if not parts or climb.peak <= climb.first:
            _step_up(climb, y, steps)
        climbs.append(climb)
    return BoxSharpness.of(climbs, loss, epsilon)


def box_points(half: Tensor, count: int, seed: int) -> list[Tensor]:
    """The center y = 0 of a box of these half-widths [n], and `count` random points y [n] of it."""
    generator = torch.Generator(half.device).manual_seed(seed)
    points = [torch.zeros_like(half)]
    for _ in range(count):
        points.append(half * torch.empty_like(half).uniform_(-1, 1, generator=generator))
    return points


class Climb:
    """One search: f at points w* + y of the box, with a record of the first and the highest that it came to."""

    def __init__(self, objective: Objective, half: Tensor) -> None:
        self.objective, self.half = objective, half
        self.first = math.nan  # f where it began
        self.peak = -math.inf  # the highest f
        self.highest = objective.weights  # and where that is
        self.evaluations = 0

    def gradient(self, y: Tensor) -> tuple[float, Tensor]:
        """Loss and slopes there."""
        w = self.objective.weights + y
        loss, slopes = self.objective.gradient(w)
        return self._note(loss, w), slopes

    def loss(self, y: Tensor) -> float:
        """Loss there."""
        w = self.objective.weights + y
        return self._note(self.objective(w).loss, w)

    def moved(self, y: Tensor, slopes: Tensor, t: float = 1.0) -> Tensor:
        """Move every coordinate uphill by the part t of its width 2 h, and stay in the box: a vertex at t = 1."""
        return torch.clamp(y + t * 2 * self.half * slopes.sign(), -self.half, self.half)

    def _note(self, loss: Tensor, w: Tensor) -> float:
        value = float(loss)  # one synchronization for a whole pass over the samples
        if not math.isfinite(value):
            raise InputError(f"the loss is {value:g} inside the box: choose a smaller epsilon.")
        if self.evaluations == 0:
            self.first = value
        self.evaluations += 1
        if value > self.peak:
            self.peak, self.highest = value, w
        return value


def _parts(samples: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Indices of half of the samples, shuffled and cut into parts; none if they are few."""
    if samples < _MANY:
        return ()
    order = torch.randperm(samples, generator=generator, device=generator.device)
    return order[: samples // 2].tensor_split(_PARTS)


def _ahead(climb: Climb, y: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Step once on all samples, once on each part of them, and once along the sum of the parts' slopes."""
    f = climb.objective
    _, slopes = climb.gradient(y)
    y = climb.moved(y, slopes)
    total = torch.zeros_like(y)
    for part in parts:
        _, slopes = f.on(*f.part(part)).gradient(f.weights + y)
        total += slopes
        y = climb.moved(y, slopes)
    return climb.moved(y, total)


def _step_up(climb: Climb, y: Tensor, steps: int) -> None:
    """Step from the highest point uphill through the whole box (t = 1), or a part t of it: no gain halves t."""
    t = 1.0
    top, highest = -math.inf, y
    uphill = torch.zeros_like(y)  # the slopes there, as soon as they are known
    for _ in range(steps):
        loss, slopes = climb.gradient(y)
        gain = loss - top  # infinite at the first step
        if gain <= _GAIN * (top - climb.first):
            t /= 2
        if gain > 0:
            top, highest, uphill = loss, y, slopes
        y = climb.moved(highest, uphill, t)
        if t < _SHORTEST or torch.equal(y, highest):
            return
    climb.loss(y)
