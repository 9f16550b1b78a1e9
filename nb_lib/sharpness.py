"""How sharp a minimum is: the worst loss in a box, the mean loss under noise, the curvature.

Three families of numbers, each from an `nb_lib.objective.Objective` or any loss with the same few methods:

* `box_sharpness`: 100 (max f − f)/(1 + f) over a small box (Keskar et al., arXiv:1609.04836, Metric 2.1);
* `noise_sensitivity`: the curve C̄(w*; a) of the loss under weight noise, and its slope s (SmoothOut eqs. 5, 9);
* `hessian_eigenvalues` and `hessian_trace`, from Hessian-vector products; `second_order` is what the trace predicts
  of that curve.

Nothing here changes what it measures, and nothing draws from torch's global random generators.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import minimize
from torch import Tensor

from nb_lib.errors import InputError, known
from nb_lib.objective import Measurable, Objective, Value, finite, flattened
from nb_lib.smoothout import DISTRIBUTIONS, check_strength

METHODS = ("vertex", "lbfgsb")
TRACES = ("hutch++", "hutchinson")

_GAIN = 1e-4  # a step that raises the loss by less than this part of all it has risen was too long
_SHORTEST = 1 / 16  # of the way through the box: a search ends when steps get shorter
_PARTS = 20  # that half of the samples is cut into, a step on each
_MANY = 5000  # samples: with fewer there are no such steps
_NOT_FINITE = "the Hessian is not finite there: train the network again before measuring."
_TOGETHER = 2**26  # most numbers in the perturbed copies of the weights that are held at once


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


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
    evaluations: int  # of the loss over all samples, most of them with its gradient; those of parts do not count
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
        raise InputError(f"epsilon, the size of the box, must be a finite number greater than 0, not {epsilon!r}.")
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
            raise InputError(f"the slope was not measured up to a = {a:g}: choose among {measured or 'new strengths'}.")
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
    rows = [(a, *(_over_draws(samples[a]) if a else (clean.loss, 0.0, clean.accuracy, 0.0))) for a in strengths]
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
        raise InputError(f"antithetic draws come in pairs, at least two for a standard error: not {draws} draws.")
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


# ------------------------------------------------------------------------------------------------------- the curvature


@dataclass(frozen=True)
class HessianEigenvalues:
    """The largest eigenvalues of a Hessian, see `hessian_eigenvalues`."""

    values: tuple[float, ...]  # the largest first
    errors: tuple[float, ...]  # each value lies within this distance of an eigenvalue
    smallest: Estimate  # the lowest end of the spectrum: well below 0 is no minimum
    products: int  # Hessian-vector products spent
    vectors: Tensor = field(repr=False, compare=False)  # [k, n], of length 1

    def __str__(self) -> str:
        values = ", ".join(str(Estimate(*pair)) for pair in zip(self.values, self.errors, strict=True))
        return f"Hessian eigenvalues {values} (smallest {self.smallest}); {self.products} products"


def hessian_eigenvalues(
    objective: Measurable, k: int = 5, *, at: Tensor | None = None, iterations: int = 100, tolerance: float = 1e-3,
    seed: int = 0,
) -> HessianEigenvalues:  # fmt: skip
    """The `k` largest eigenvalues (not: in magnitude) of the Hessian, and the smallest, by the Lanczos method.

    Parameters
    ----------
    objective : Objective or the like
    k : int
        How many, 1 to n.
    at : Tensor, shape [n], optional
        Where; w* by default.
    iterations : int
        Most Hessian-vector products, at least `k`.  So many vectors [n] are kept.
    tolerance : float
        It ends when all `k` errors are below this part of the largest eigenvalue in magnitude.
    seed : int
        Of the vector it starts from.

    Raises
    ------
    InputError
        If an argument is out of range, or a product is not finite.

    Notes
    -----
    Every new vector is orthogonalized against all before, twice.  A Ritz pair (λ, x) has an eigenvalue within
    |H x − λ x| (given as error, without rounding) of λ; that none is left out is certain only after n products.
    """
    w = objective.weights if at is None else at
    n = len(objective.weights)
    if not (1 <= k <= n and iterations >= k and tolerance > 0):
        raise InputError(
            f"of {n} weights there are 1 to {n} eigenvalues, found in at least as many iterations and to a tolerance "
            f"above 0: not {k} in {iterations} to {tolerance:g}."
        )
    basis, theta, s, errors = _lanczos(objective.hessian_product(w), w, k, min(iterations, n), tolerance, seed)
    top = slice(None, -k - 1, -1)
    return HessianEigenvalues(
        values=tuple(theta[top].tolist()),
        errors=tuple(errors[top].tolist()),
        smallest=Estimate(float(theta[0]), float(errors[0])),
        products=len(theta),
        vectors=torch.from_numpy(s[:, top].T.copy()).to(w) @ basis,
    )


@dataclass(frozen=True)
class HessianTrace:
    """An estimate of the trace of a Hessian, see `hessian_trace`."""

    value: float
    error: float  # standard error
    method: str
    adaptive: bool
    products: int  # Hessian-vector products spent

    def __str__(self) -> str:
        name = "Σ (|w_f|²/n_f) tr H_f" if self.adaptive else "tr H"
        return f"{name} = {Estimate(self.value, self.error)} ({self.method}, {self.products} products)"


def hessian_trace(
    objective: Measurable, *, probes: int = 60, method: str = "hutch++", adaptive: bool = False,
    at: Tensor | None = None, seed: int = 0,
) -> HessianTrace:  # fmt: skip
    """Trace of the Hessian from products with random vectors of ±1, tr H = E v·Hv, with its standard error.

    Parameters
    ----------
    objective : Objective or the like
    probes : int
        Hessian-vector products to spend: at least 2, or 6 for ``"hutch++"``.
    method : {"hutch++", "hutchinson"}
        ``"hutchinson"`` averages v·Hv.  ``"hutch++"`` (Meyer et al., arXiv:2010.09649) takes the trace exactly in the
        space that a third of the products point to, the large eigenvalues', and averages in the rest only; it keeps
        probes/3 vectors [n].
    adaptive : bool
        Σ_f (|w_f|²/n_f) tr H_f over filters or neurons f of n_f weights, what noise per filter feels (`second_order`).
    at : Tensor, shape [n], optional
        Where; w* by default.
    seed : int

    Raises
    ------
    InputError
        If there are too few probes, or a product is not finite.
    """
    known("method", method, TRACES)
    least = 6 if method == "hutch++" else 2
    if probes < least:
        raise InputError(f"the trace by {method} with a standard error takes at least {least} probes, not {probes}.")
    w = objective.weights if at is None else at
    generator = torch.Generator(w.device).manual_seed(seed)
    product = objective.hessian_product(w)
    if adaptive:
        product = _between(product, flattened(map(_row_scale, objective.rows(w))))
    third = probes // 3 if method == "hutch++" else 0
    basis, exact = w.new_empty(0, len(w)), 0.0
    if third:
        sketch = torch.stack([product(_signs(w, generator)) for _ in range(third)])
        basis = torch.linalg.qr(sketch.T)[0].T
        exact = float(torch.stack([q @ product(q) for q in basis]).double().sum())
    averaged = []
    for _ in range(probes - 2 * third):
        v = _outside(_signs(w, generator), basis)
        averaged.append(v @ product(v))
    quadratic = torch.stack(averaged).double()
    value, error = exact + float(quadratic.mean()), float(quadratic.std()) / math.sqrt(len(quadratic))
    if not math.isfinite(value):
        raise InputError(_NOT_FINITE)
    return HessianTrace(value, error, method, adaptive, products=third + len(basis) + len(quadratic))


def _lanczos(
    product: Callable[[Tensor], Tensor], w: Tensor, k: int, most: int, tolerance: float, seed: int
) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal vectors Q [m, n], eigenvalues [m] (ascending) and -vectors [m, m] of T = Q H Qᵀ, and their errors."""
    generator = torch.Generator(w.device).manual_seed(seed)
    q, new = w.new_empty(most, len(w)), torch.empty_like(w).normal_(generator=generator)
    alphas: list[float] = []
    betas: list[float] = []
    for m in range(1, most + 1):
        q[m - 1] = new / torch.linalg.vector_norm(new)
        new = product(q[m - 1])
        alphas.append(float(q[m - 1] @ new))
        new = _outside(_outside(new, q[:m]), q[:m])  # Lanczos alone would lose orthogonality, and find copies
        beta = float(torch.linalg.vector_norm(new))
        if not math.isfinite(alphas[-1] + beta):
            raise InputError(_NOT_FINITE)
        theta, s = eigh_tridiagonal(alphas, betas)
        errors, largest = beta * np.abs(s[-1]), np.abs(theta).max()
        if beta <= 100 * torch.finfo(w.dtype).eps * largest:  # H maps these vectors among themselves: look elsewhere
            beta, new = 0.0, _outside(torch.empty_like(w).normal_(generator=generator), q[:m])
        elif m >= k and errors[-k:].max() <= tolerance * largest:
            break
        betas.append(beta)
    return q[:m], theta, s, errors


def _outside(v: Tensor, basis: Tensor) -> Tensor:
    """The part of v [n] orthogonal to the orthonormal rows of `basis` [m, n]."""
    return v - (basis @ v) @ basis


def _signs(w: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, w.shape, generator=generator, dtype=w.dtype, device=w.device) * 2 - 1


def _row_scale(w: Tensor) -> Tensor:
    """|w_f| / √n_f for every weight of each row f."""
    return torch.linalg.vector_norm(w, dim=1, keepdim=True).expand_as(w) / math.sqrt(w.shape[1])


def _between(product: Callable[[Tensor], Tensor], scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Make v -> S H S v of v -> H v, with S diagonal."""
    return lambda v: scale * product(scale * v)
