"""How sharp a minimum is: the worst loss in a box, the mean loss under noise, the curvature.

Three families of numbers, each from an `nb_lib.objective.Objective` or any loss with the same few methods:

* `box_sharpness`: 100 (max f − f)/(1 + f) over a small box (Keskar et al., arXiv:1609.04836, Metric 2.1);
* `noise_sensitivity`: the curve C̄(w*; a) of the loss under weight noise, and its slope s (SmoothOut eqs. 5, 9);
* `hessian_eigenvalues` and `hessian_trace`, from Hessian-vector products; `second_order` is what the trace predicts
  of that curve.

Nothing here changes what it measures, and nothing draws from torch's global random generators.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from nb_lib.errors import InputError, known
from nb_lib.noise_sensitivity import _uniform
from nb_lib.objective import Measurable, Objective, finite

METHODS = ("vertex", "lbfgsb")

_GAIN = 1e-4  # a step that raises the loss by less than this part of all it has risen was too long
_SHORTEST = 1 / 16  # of the way through the box: a search ends when steps get shorter
_PARTS = 20  # that half of the samples is cut into, a step on each
_MANY = 5000  # samples: with fewer there are no such steps


# --------------------------------------------------------------------------------------------- the worst loss in a box


@dataclass(frozen=True)
class BoxSharpness:
    """(C_ε, A)-sharpness from several starts, see `box_sharpness`."""

    values: tuple[float, ...]  # φ by start, the first from w*
    epsilon: float
    dimension: int  # of the box: n, or p of a random subspace
    method: str
    loss: float  # f at w*
    max_loss: float  # the highest f met
    evaluations: (
        int  # of the loss over all samples, most of them with its gradient; those of parts do not count
    )
    highest: Tensor = field(repr=False, compare=False)  # the weights [n] of max_loss

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
            f"in a box of ε = {self.epsilon:g} in {self.dimension} dimensions; {self.method}, "
            f"{self.evaluations} evaluations"
        )


def box_sharpness(
    objective: Measurable, *, epsilon: float = 5e-4, method: str = "vertex", subspace: int | None = None,
    starts: int = 5, steps: int | None = None, seed: int = 0,
) -> BoxSharpness:  # fmt: skip
    """(C_ε, A)-sharpness φ = 100 (max f(w* + A y) − f(w*)) / (1 + f(w*)) (Keskar et al., Metric 2.1).

    The maximum is over the box C_ε, |y_i| ≤ ε (|(A⁺w*)_i| + 1).  A is the identity, or a random subspace: the rows of
    A⁺ are uniform on [−1, 1] and scaled to length 1, as in the SmoothOut authors' code.

    Parameters
    ----------
    objective : Objective or the like
    epsilon : float
        Greater than 0.
    method : {"vertex", "lbfgsb"}
        ``"vertex"``: y ← h sign(Aᵀ∇f(w* + A y)), h the half-widths, from vertex to vertex of the box and on the device.
        For a convex f no step goes down; where one does, the next are half as long.  Of an `Objective` with 5000
        samples or more, the first step is followed by cheap ones on small parts of half of the samples.
        ``"lbfgsb"``: scipy's L-BFGS-B as in the literature, for comparison with it only (see Notes).
    subspace : int, optional
        Dimension p of the subspace; None is the whole space.
    starts : int
        Random points of the box to start from, after w* itself.
    steps : int, optional
        Most steps on all samples from each start: 20, or for ``"lbfgsb"`` 10, Keskar's.
    seed : int
        Of the subspace, the starts and the parts of the samples.

    Raises
    ------
    InputError
        If an argument is out of range, or the loss is not finite at w* or where a search went.

    Notes
    -----
    Every search gives a lower bound, of the loss over all samples.  ``"vertex"`` ends early when it stays at a vertex,
    or when short steps too gain less than 10⁻⁴ of the rise so far; weights without a slope, as of dead units, stay
    where they are.  In a large box many vertices are local maxima: the spread over starts shows it, and more starts
    help.  The first step, which decides between maxima far apart, is on all samples.  The next are on a fortieth each,
    then one along the sum of their slopes; they save several on all samples, for high up in the box slopes are much
    the same for all.  Where they lead no higher than the start, the search begins again without them.

    ``"lbfgsb"`` measures slopes against absolute numbers: where all are below 10⁻⁵, as at a network that fits its
    samples, it does not leave w* and finds 0.  (The published SmoothOut numbers have in addition a gradient of the
    wrong sign.)
    """
    search, default = {"vertex": (_vertices, 20), "lbfgsb": (_lbfgsb, 10)}[known("method", method, METHODS)]
    w, steps = objective.weights, default if steps is None else steps
    _check_box(epsilon, starts, steps, subspace, len(w))
    loss = float(finite(objective(w)).loss)
    generator = torch.Generator(w.device).manual_seed(seed)
    space = _Space(w, subspace, generator)
    half = epsilon * (space.coordinates(w).abs() + 1)
    points = [torch.zeros_like(half), *(half * _uniform(half, generator) for _ in range(starts))]
    shuffle = torch.Generator(w.device).manual_seed(seed)
    climbs = [_Climb(objective, space, _parts(objective, shuffle)) for _ in points]
    for climb, y in zip(climbs, points, strict=True):
        search(climb, y, half, steps)
    top = max(climbs, key=lambda climb: climb.peak)
    return BoxSharpness(
        values=tuple(100 * (climb.peak - loss) / (1 + loss) for climb in climbs),
        epsilon=epsilon,
        dimension=len(half),
        method=method,
        loss=loss,
        max_loss=top.peak,
        evaluations=1 + sum(climb.evaluations for climb in climbs),
        highest=top.highest,
    )


def _check_box(epsilon: float, starts: int, steps: int, subspace: int | None, n: int) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise InputError(
            f"epsilon, the size of the box, must be a finite number greater than 0, not {epsilon!r}."
        )
    if starts < 0 or steps < 1:
        raise InputError(f"a search needs at least 0 random starts and 1 step, not {starts} and {steps}.")
    if subspace is not None and not 1 <= subspace <= n:
        raise InputError(f"a subspace of {n} weights has 1 to {n} dimensions, not {subspace}.")


class _Space:
    """The coordinates y in which a box is laid: w* + A y, with A the identity or of p random columns."""

    def __init__(self, w: Tensor, p: int | None, generator: torch.Generator) -> None:
        self.inverse = None  # A⁺ [p, n]
        if p is not None:
            rows = _uniform(w.new_empty(p, len(w)), generator)
            self.inverse = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
            # A = (A⁺)ᵀ (A⁺ (A⁺)ᵀ)⁻¹ needs the p × p Gram matrix only, where a pseudo-inverse would decompose p × n
            self.factor = torch.linalg.cholesky((self.inverse @ self.inverse.T).double())

    def coordinates(self, w: Tensor) -> Tensor:
        """A⁺ w."""
        return w if self.inverse is None else self.inverse @ w

    def lift(self, y: Tensor) -> Tensor:
        """A y."""
        return y if self.inverse is None else self.inverse.T @ self._solve(y)

    def pull(self, g: Tensor) -> Tensor:
        """Aᵀ g."""
        return g if self.inverse is None else self._solve(self.inverse @ g)

    def _solve(self, y: Tensor) -> Tensor:
        return torch.cholesky_solve(y.double()[:, None], self.factor)[:, 0].to(y.dtype)


def _parts(objective: Measurable, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Indices of half of the samples, shuffled and cut into parts; none if they are few, or f is no mean over any."""
    if not isinstance(objective, Objective) or len(objective.x) < _MANY:
        return ()
    order = torch.randperm(len(objective.x), generator=generator, device=generator.device)
    return order[: len(order) // 2].tensor_split(_PARTS)


class _Climb:
    """One search: f as a function of y, with a record of the first and the highest point it came to."""

    def __init__(self, objective: Measurable, space: _Space, parts: Sequence[Tensor]) -> None:
        self.objective, self.space, self.parts = objective, space, parts
        self.first, self.peak, self.evaluations = math.nan, -math.inf, 0
        self.highest = objective.weights

    def gradient(self, y: Tensor) -> tuple[float, Tensor]:
        """Loss and Aᵀ∇f at w* + A y."""
        w = self._weights(y)
        loss, gradient = self.objective.gradient(w)
        return self._note(loss, w), self.space.pull(gradient)

    def loss(self, y: Tensor) -> float:
        """Loss at w* + A y."""
        w = self._weights(y)
        return self._note(self.objective(w).loss, w)

    def slopes(self, y: Tensor, part: Tensor) -> Tensor:
        """Aᵀ∇f at w* + A y, with f the mean over these samples."""
        assert isinstance(self.objective, Objective)
        few = self.objective.on(self.objective.x[part], self.objective.y[part])
        return self.space.pull(few.gradient(self._weights(y))[1])

    def _weights(self, y: Tensor) -> Tensor:
        return self.objective.weights + self.space.lift(y)

    def _note(self, loss: Tensor, w: Tensor) -> float:
        value = float(loss)  # one synchronization for a whole pass over the samples
        if not math.isfinite(value):
            raise InputError(f"the loss is {value:g} inside the box: choose a smaller epsilon.")
        self.first = value if self.evaluations == 0 else self.first
        self.evaluations += 1
        if value > self.peak:
            self.peak, self.highest = value, w
        return value


def _vertices(climb: _Climb, y: Tensor, half: Tensor, steps: int) -> None:
    """Step up from where parts of the samples lead; from `y` if there are none, or if that is no higher than `y`."""
    if climb.parts:
        _step_up(climb, _ahead(climb, y, half), half, steps - 1)
    if not climb.parts or climb.peak <= climb.first:
        _step_up(climb, y, half, steps)


def _ahead(climb: _Climb, y: Tensor, half: Tensor) -> Tensor:
    """Step once on all samples, once on each part of them, and once along the sum of the parts' slopes."""
    y = _moved(y, climb.gradient(y)[1], half)
    total = torch.zeros_like(y)
    for part in climb.parts:
        slopes = climb.slopes(y, part)
        total += slopes
        y = _moved(y, slopes, half)
    return _moved(y, total, half)


def _step_up(climb: _Climb, y: Tensor, half: Tensor, steps: int) -> None:
    """Step from the highest point to y + 2 t h sign(∇f), cut to the box: a vertex at t = 1.  No gain halves t."""
    top, t = -math.inf, 1.0
    for step in range(steps):
        loss, gradient = climb.gradient(y)
        if step and loss - top <= _GAIN * (top - climb.first):
            t /= 2
        if loss > top:
            top, at, uphill = loss, y, gradient
        y = _moved(at, uphill, half, t)
        if t < _SHORTEST or torch.equal(y, at):
            return
    climb.loss(y)


def _moved(y: Tensor, uphill: Tensor, half: Tensor, t: float = 1.0) -> Tensor:
    """Move every coordinate uphill by the part t of the width of the box, and stay in it."""
    return torch.clamp(y + 2 * t * half * uphill.sign(), -half, half)


def _lbfgsb(climb: _Climb, y: Tensor, half: Tensor, steps: int) -> None:
    """Minimize −f, of gradient −∇f, by L-BFGS-B with scipy's own settings, those of the literature."""

    def negative(z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        loss, gradient = climb.gradient(torch.from_numpy(z).to(y))
        return -loss, -gradient.double().numpy(force=True)

    limits = half.double().numpy(force=True)
    start = y.double().numpy(force=True)
    bounds = list(zip(-limits, limits, strict=True))
    minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": steps})


# ------------------------------------------------------------------------------------------- the mean loss under noise


# ------------------------------------------------------------------------------------------------------- the curvature
