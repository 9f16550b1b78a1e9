"""Walkers on the toy losses: SGD, noise enhancement (NE) and SmoothOut, with minibatches of a finite training set.

The minibatches are real ones, so that NE eqs. 4, 6 and 10 hold exactly and can be seen to.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nb_lib.errors import InputError, check_strength, known
from nb_lib.lab.names import DISTRIBUTIONS
from nb_lib.toys import Array, Landscape, Smoothed, by_coordinate, by_weights

POOL = 2**14  # minibatch means drawn before a walk; every step of every walker picks from them
_BLOCK = 2**16  # random numbers drawn at a time


@dataclass(frozen=True)
class Samples:
    """A training set with mean loss L: ℓ_μ(w) = L(w) − s_μ·w, Σ_μ s_μ = 0, hence ∇ℓ_μ = ∇L − s_μ.

    Parameters
    ----------
    loss : Landscape or Smoothed
    tilts : array, shape [N] or [N, 2]
        s_μ; the covariance S of the gradients (NE eq. 4) is theirs, the same at all weights.
    """

    loss: Landscape | Smoothed
    tilts: Array

    def __len__(self) -> int:
        return len(self.tilts)

    def covariance(self) -> float | Array:
        """S = (1/N) Σ_μ s_μ s_μᵀ of NE eq. 4: a number, or [2, 2]."""
        if self.tilts.ndim == 1:
            return float(np.mean(self.tilts**2))
        return self.tilts.T @ self.tilts / len(self)

    def sample_losses(self, w: ArrayLike) -> Array:
        """ℓ_μ(w) of every sample, shape [..., N]; their mean is L(w)."""
        along = np.tensordot(
            by_coordinate(w, self.loss.dim), self.tilts.reshape(len(self), -1).T, axes=(0, 0)
        )
        return self.loss(w)[..., None] - along


def samples(
    loss: Landscape | Smoothed,
    n: int = 1000,
    *,
    spread: float | Sequence[float] = 1.0,
    tails: str = "normal",
    seed: int = 0,
) -> Samples:
    """Training set of `n` samples whose gradients have exactly the standard deviation `spread`.

    Parameters
    ----------
    spread : float, or a pair for two dimensions
        At least 0; the coordinates are uncorrelated.
    tails : str
        ``"normal"``: random draws; ``"heavy"``: the quantiles of Student's t with two degrees of freedom at
        (i − 1/2)/n (in two dimensions paired at random), of excess kurtosis about 50 for n = 1000 and any seed.

    Raises
    ------
    InputError
        If `n` is below 10 or `spread` negative.
    """
    if n < 10:
        raise InputError(f"a training set of the toy losses needs at least 10 samples, not {n!r}.")
    scale = np.broadcast_to(np.asarray(spread, dtype=float), loss.dim)
    if not np.all((scale >= 0) & np.isfinite(scale)):
        raise InputError(f"the spread of the gradients must be finite and at least 0, not {spread!r}.")
    rng = np.random.default_rng(seed)
    if known("kind of tails", tails, ("normal", "heavy")) == "normal":
        raw = rng.standard_normal((n, loss.dim))
    else:
        u = (np.arange(n) + 0.5) / n
        raw = rng.permuted(np.tile((2 * u - 1) / np.sqrt(2 * u * (1 - u)), (loss.dim, 1)), axis=1).T
    raw = raw - raw.mean(0)
    white = np.linalg.solve(np.linalg.cholesky(raw.T @ raw / n), raw.T).T
    return Samples(loss, (white * scale)[:, 0] if loss.dim == 1 else white * scale)


def minibatch_means(samples: Samples, B: int, count: int, rng: np.random.Generator) -> Array:
    """Mean tilts of `count` minibatches of `B` samples drawn without replacement, shape [count] or [count, 2].

    Permutations of the training set are cut into minibatches as in an epoch; a remainder is dropped.
    """
    n = len(samples)
    _check_batch(B, n)
    if n == B:
        return np.tile(samples.tilts.mean(0), (count, *[1] * (samples.tilts.ndim - 1)))
    means: list[Array] = []
    missing = -(-count // (n // B))  # permutations
    while missing > 0:
        order = rng.permuted(np.tile(np.arange(n), (min(missing, -(-(2**20) // n)), 1)), axis=1)
        batches = samples.tilts[order[:, : n // B * B]].reshape(-1, B, *samples.tilts.shape[1:])
        means.append(batches.mean(1))
        missing -= len(order)
    return np.concatenate(means)[:count]


def noise_variance(samples: Samples, B: int, alpha: float = 1.0, eta: float = 1.0) -> float | Array:
    """Covariance of the noise of one step, c (η²/B) (N−B)/(N−1) S with c = α² + (1−α)² (NE eqs. 4 and 10).

    A number, or [2, 2]; `alpha` = 1 is plain SGD.
    """
    n = len(samples)
    c = _check_alpha(alpha) ** 2 + (1 - alpha) ** 2
    return c * eta**2 / _check_batch(B, n) * (n - B) / (n - 1) * samples.covariance()


def stationary_variance(curvature: float, eta: float, variance: float) -> float:
    """Variance of w that w ← (1 − ηh) w − ξ settles to on h w²/2: Var ξ / (ηh (2 − ηh)).

    Parameters
    ----------
    curvature : float
        h.
    eta : float
        Learning rate η.
    variance : float
        Var ξ of one step, as from ``noise_variance(..., eta=eta)``.

    Raises
    ------
    InputError
        If ηh is not between 0 and 2: the weights then spread without end.
    """
    rate = eta * curvature
    if not 0 < rate < 2:
        raise InputError(f"learning rate times curvature must lie between 0 and 2 to settle, not {rate:g}.")
    return variance / (rate * (2 - rate))


def _check_alpha(alpha: float) -> float:
    if not 1 <= alpha < math.inf:
        raise InputError(f"alpha must be a finite number of at least 1 (1 is ordinary SGD), not {alpha!r}.")
    return float(alpha)


def _check_batch(B: int, n: int) -> int:
    if not (1 <= B <= n and int(B) == B):
        raise InputError(f"the batch size B must be a whole number from 1 to the {n} samples, not {B!r}.")
    return B


# ------------------------------------------------------------------------------------------------ walkers


def walk(
    loss: Landscape | Smoothed | Samples,
    start: ArrayLike,
    *,
    eta: float,
    steps: int,
    B: int | None = None,
    alpha: float = 1.0,
    a: float = 0.0,
    noise: str = "uniform",
    copies: int | None = None,
    denoise: bool = True,
    seed: int = 0,
    every: int = 1,
) -> Array:
    """Weights of independent walkers under w ← w − η [α g_B(w + θ) + (1−α) g_B'(w + θ)].

    NE eq. 6 and SmoothOut's Algorithm 1 (eq. 11) in one; the defaults are gradient descent.  A walk that gains a
    method keeps its first minibatches and its θ: they come from separate streams of `seed`.

    Parameters
    ----------
    loss : Landscape, Smoothed or Samples
        `B` needs a training set, see `samples`.
    start : array, shape [n] or [n, 2]
        One walker each; a single number or pair is one walker.
    eta : float
        Learning rate, positive.
    steps : int
        At least 1.
    B : int, optional
        Batch size, 1 to N; by default all samples, without gradient noise.  Each step of each walker picks its
        minibatch at random from a pool of `POOL`, drawn once and centered, so that the pool makes nobody drift.
    alpha : float
        At least 1; only above 1 is a second minibatch picked.
    a, noise
        Strength (at least 0) and kind of θ, see `Landscape`; fresh for every step and walker.
    copies : int, optional
        Deterministic SmoothOut (Fig. 1 (c)) instead: mean gradient over so many θ, drawn once, the same for all.
    denoise : bool
        False leaves θ in the weights.
    every : int
        Record each so many steps.

    Returns
    -------
    array, shape [steps // every + 1, n] or [steps // every + 1, n, 2]
        `start`, then the weights after the steps, NaN once a walker has left to infinity.

    Raises
    ------
    InputError
        If an argument is outside its range.
    """
    data = loss if isinstance(loss, Samples) else None
    field = loss.loss if isinstance(loss, Samples) else loss
    _check_walk(eta, steps, every, a, noise, alpha, copies, denoise)
    if B is not None and data is None:
        raise InputError("minibatches of size B need a training set: walk on toys.samples(loss).")
    w = np.array(
        np.atleast_1d(start)[None] if field.dim == 1 else np.atleast_2d(start).T, dtype=float, order="C"
    )
    if w.ndim != 2 or len(w) != field.dim or not w.size:
        raise InputError(
            f"start must have the shape {'[n]' if field.dim == 1 else '[n, 2]'}, one row a walker."
        )
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)]
    pools: list[tuple[Array, np.random.Generator]] = []
    if data is not None and B is not None and _check_batch(B, len(data)) < len(data):
        pool = minibatch_means(data, B, POOL, streams[0]).reshape(POOL, -1).T
        pool = pool - pool.mean(1, keepdims=True)
        pools = [(eta * alpha * pool, streams[1])] + (
            [(eta * (1 - alpha) * pool, streams[2])] if alpha > 1 else []
        )
    fixed = None if copies is None else _theta(streams[3], noise, a, (field.dim, copies, 1))
    gradient = _gradient(field, w) if fixed is None else _mean_gradient(field, w, fixed)
    perturbed = a > 0 and fixed is None

    path = np.empty((steps // every + 1, *w.shape))
    path[0] = w
    g, at = np.empty_like(w), w
    block = max(1, _BLOCK // w.size)
    with np.errstate(all="ignore"):  # of walkers on their way to infinity
        for first in range(0, steps, block):
            shape = (min(block, steps - first), *w.shape)
            theta = _theta(streams[3], noise, a, shape) if perturbed else None
            kicks = _kicks(pools, shape) if pools else None
            for t in range(shape[0]):
                if theta is not None:
                    at = w + theta[t]  # SmoothOut, Algorithm 1: perturb, ...
                gradient(at, g)
                if not denoise:
                    w[...] = at
                w -= np.multiply(eta, g, out=g)  # ... step from the weights without θ
                if kicks is not None:
                    w += kicks[t]
                done = first + t + 1
                if done % every == 0:
                    path[done // every] = w
    path = np.where(np.isfinite(path).all(1, keepdims=True), path, np.nan)
    return by_weights(np.moveaxis(path, 1, 0), field.dim)


def _gradient(loss: Landscape | Smoothed, like: Array) -> Callable[[Array, Array], object]:
    """Write ∇L at coordinate-first weights of the shape of `like` to the second argument, without allocation."""
    if isinstance(loss, Smoothed):
        return lambda w, out: np.copyto(out, by_coordinate(loss.gradient(by_weights(w, loss.dim)), loss.dim))
    column = (loss.dim, *[1] * (like.ndim - 1))
    k, amplitude, om = np.reshape(loss.curvatures, column), loss.amplitude, loss.frequency
    dips = [
        (A, np.reshape(center, column), -(np.reshape(width, column) ** -2.0))
        for A, center, width in loss.dips
    ]
    z, force, bump = np.empty_like(like), np.empty_like(like), np.empty_like(like[0])

    def gradient(w: Array, out: Array) -> None:
        np.multiply(k, w, out=out)
        if amplitude:  # + R ω sin ω w
            np.multiply(om, w, out=z)
            np.sin(z, out=z)
            np.multiply(amplitude * om, z, out=z)
            np.add(out, z, out=out)
        for depth, center, scale in dips:  # + A exp(−Σ z_i²/(2 σ_i²)) z/σ²
            np.subtract(w, center, out=z)
            np.multiply(scale, z, out=force)  # −z/σ²
            np.einsum("i...,i...", z, force, out=bump)
            np.multiply(0.5, bump, out=bump)
            np.exp(bump, out=bump)
            np.multiply(depth, bump, out=bump)
            np.multiply(bump, force, out=force)
            np.subtract(out, force, out=out)

    return gradient


def _mean_gradient(loss: Landscape | Smoothed, like: Array, theta: Array) -> Callable[[Array, Array], object]:
    """The same for the mean of ∇L(w + θ_i) over the copies: `theta` has the shape [dim, copies, 1]."""
    at = np.empty((len(like), theta.shape[1], like.shape[1]))
    each, gradient = np.empty_like(at), _gradient(loss, at)

    def mean_gradient(w: Array, out: Array) -> None:
        gradient(np.add(w[:, None], theta, out=at), each)
        np.mean(each, axis=1, out=out)

    return mean_gradient


def _kicks(pools: list[tuple[Array, np.random.Generator]], shape: tuple[int, ...]) -> Array:
    """Steps, coordinate and walkers [steps, dim, n]: η α s_B + η (1−α) s_B', each minibatch picked anew."""
    kicks = np.zeros(shape)
    for pool, rng in pools:
        pick = rng.integers(POOL, size=(shape[0], shape[2]))
        for i, tilts in enumerate(pool):
            kicks[:, i] += tilts[pick]
    return kicks


def _theta(rng: np.random.Generator, noise: str, a: float, shape: tuple[int, ...]) -> Array:
    """Weight noise θ: U(−a, a) or N(0, a²)."""
    return rng.uniform(-a, a, shape) if noise == "uniform" else rng.normal(0, a, shape)


def _check_walk(
    eta: float, steps: int, every: int, a: float, noise: str, alpha: float, copies: int | None, denoise: bool
) -> None:
    if not 0 < eta < math.inf:
        raise InputError(f"the learning rate eta must be finite and positive, not {eta!r}.")
    for name, number in (("steps", steps), ("every", every), ("copies", 1 if copies is None else copies)):
        if not (1 <= number < math.inf and int(number) == number):
            raise InputError(f"{name} must be a whole number of at least 1, not {number!r}.")
    if copies is not None and not denoise:
        raise InputError("fixed copies leave no noise in the weights: use either copies or denoise=False.")
    check_strength(a)
    _check_alpha(alpha)
    known("kind of noise", noise, DISTRIBUTIONS)
