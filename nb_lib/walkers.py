"""Walkers on the toy losses: SGD, noise enhancement (NE) and SmoothOut, with minibatches of a finite training set."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import cumulative_trapezoid, trapezoid

from nb_lib.errors import InputError, check_alpha, check_batch_size, check_strength, known, positive, whole
from nb_lib.lab.names import DISTRIBUTIONS
from nb_lib.toy_samples import Samples, independent_means, minibatch_means, noise_variance, samples  # noqa: F401 (offered here, too)
from nb_lib.toys import Array, Landscape, Smoothed, by_coordinate, by_weights

POOL = 2**14  # minibatch means drawn before a walk; every step of every walker picks from them
_BLOCK = 2**16  # random numbers drawn at a time

Loss = Landscape | Smoothed
Stream = np.random.Generator
Gradient = Callable[[Array, Array], None]  # of the weights [dim, n], written to the second argument
Noise = Iterator[tuple[Array | None, Array | None]]  # θ and the minibatches' part of each step
Pool = tuple[Array, Stream]
Profile = Callable[[Array], Array]  # of weights: S there over S of the training set


def walk(
    loss: Loss | Samples,
    start: ArrayLike,
    *,
    eta: float,
    steps: int,
    B: int | None = None,
    alpha: float = 1.0,
    a: float = 0.0,
    distribution: str = "uniform",
    copies: int | None = None,
    denoise: bool = True,
    profile: Profile | None = None,
    seed: int = 0,
    every: int = 1,
) -> Array:
    """Weights of independent walkers under w ← w − η [α g_B(w + θ) + (1−α) g_B'(w + θ)].

    SGD (NE eq. 2), its enhanced noise (NE eq. 6) and SmoothOut's Algorithm 1 (SmoothOut eq. 11) in one; the defaults
    are gradient descent.  A walk that gains a method keeps its first minibatches and its θ.

    Parameters
    ----------
    start : array, shape [n] or [n, 2]
        One walker each; a single number or pair is one walker.
    B : int, optional
        Batch size, 1 to N, which needs `samples`; by default all, without gradient noise.  Each step of each walker
        picks its minibatch from a pool of `POOL`, drawn once and centered, so that the pool makes nobody drift.
    alpha : float
        At least 1; only above 1 is a second minibatch picked.
    a, distribution
        Strength (at least 0) and distribution of θ, see `Landscape`; fresh for every step and walker.
    copies : int, optional
        Deterministic SmoothOut (SmoothOut eqs. 1 and 6) instead: mean gradient over so many θ, drawn once for all.
    denoise : bool
        False leaves θ in the weights.
    profile : callable, optional
        Noise that depends on where a walker is, in one dimension: ``profile(w)``, at least 0, times the training set's
        S is the covariance of the gradients at the weights of the gradient, [n].  See `stationary_density`.

    Returns
    -------
    array, shape [steps // every + 1, n] or [steps // every + 1, n, 2]
        `start`, then the weights after each `every` steps, NaN once a walker has left to infinity.

    Raises
    ------
    InputError
        If an argument is outside its range.

    Examples
    --------
    >>> walk(Landscape((1.0,)), 8.0, eta=0.5, steps=3)[:, 0].tolist()
    [8.0, 4.0, 2.0, 1.0]
    """
    positive("the learning rate eta", eta)
    whole("steps", steps, 1)
    whole("every", every, 1)
    check_alpha(alpha)
    check_strength(a)
    known("distribution", distribution, DISTRIBUTIONS)
    if copies is not None:
        whole("copies", copies, 1)
        if not denoise:
            raise InputError("fixed copies leave no noise in the weights: use either copies or denoise=False.")
    mean_loss = loss.loss if isinstance(loss, Samples) else loss
    if profile is not None and mean_loss.dim != 1:
        raise InputError("noise that depends on the weights is for a loss in one dimension: leave out profile.")
    w = _start(start, mean_loss.dim)
    seeds = np.random.SeedSequence(seed).spawn(4)
    *streams, theta_stream = [np.random.default_rng(s) for s in seeds]
    pools = _pools(loss, B, eta, alpha, streams)
    draw_theta = partial(_theta, theta_stream, distribution, a)
    if copies is not None:
        thetas = draw_theta((len(w), copies, 1))
        gradient = _mean_gradient(mean_loss, w, thetas)
        noise = _noise_of_steps(steps, w.shape, pools, None)
    else:
        gradient = _gradient(mean_loss, w)
        noise = _noise_of_steps(steps, w.shape, pools, draw_theta if a > 0 else None)
    records = steps // every
    path = np.empty((records + 1, *w.shape))
    with np.errstate(all="ignore"):  # of walkers on their way to infinity
        _walk(w, gradient, noise, eta, denoise, profile, path, every)
    finite = np.isfinite(path)
    stayed = finite.all(1, keepdims=True)
    path = np.where(stayed, path, np.nan)
    path = np.moveaxis(path, 1, 0)
    return by_weights(path, mean_loss.dim)


def _walk(
    w: Array,
    gradient: Gradient,
    noise: Noise,
    eta: float,
    denoise: bool,
    profile: Profile | None,
    path: Array,
    every: int,
) -> None:
    """Move `w` by SmoothOut's Algorithm 1 with the minibatches of NE eq. 6, and record it in `path`."""
    path[0] = w
    g = np.empty_like(w)
    for step, (theta, kick) in enumerate(noise, start=1):
        noisy_w = w if theta is None else w + theta  # perturb
        gradient(noisy_w, g)  # ∇L(w + θ)
        if profile is not None and kick is not None:
            kick = kick * np.sqrt(profile(noisy_w))
        if not denoise:
            w[...] = noisy_w  # θ stays
        g *= eta
        w -= g
        if kick is not None:  # η α s_B + η (1−α) s_B': ∇ℓ of a minibatch is ∇L minus its tilt
            w += kick
        if step % every == 0:
            path[step // every] = w


def _start(start: ArrayLike, dim: int) -> Array:
    """A copy of the first weights with the coordinate first: [dim, n]."""
    rows = np.atleast_1d(start)[None] if dim == 1 else np.atleast_2d(start).T
    w = np.array(rows, dtype=float, order="C")
    if w.ndim != 2 or len(w) != dim or w.size == 0:
        shape = "[n]" if dim == 1 else "[n, 2]"
        raise InputError(f"start must have the shape {shape}, one row a walker.")
    return w


def _noise_of_steps(steps: int, shape: tuple, pools: list[Pool], draw_theta: Callable[[tuple], Array] | None) -> Noise:
    """θ and the minibatches' part of every step, each [dim, n], or None without; many steps are drawn at a time."""
    most = max(1, _BLOCK // math.prod(shape))
    for first in range(0, steps, most):
        count = min(most, steps - first)
        block = (count, *shape)
        thetas = draw_theta(block) if draw_theta else repeat(None, count)
        kicks = _kicks(pools, block) if pools else repeat(None, count)
        yield from zip(thetas, kicks, strict=True)


def _theta(rng: Stream, distribution: str, a: float, shape: tuple) -> Array:
    """Weight noise θ: U(−a, a) or N(0, a²) (SmoothOut eq. 5)."""
    if distribution == "uniform":
        return rng.uniform(-a, a, shape)
    return rng.normal(0, a, shape)


def _pools(data: Loss | Samples, B: int | None, eta: float, alpha: float, streams: list[Stream]) -> list[Pool]:
    """η α s_B and η (1−α) s_B' of `POOL` minibatches, [dim, POOL] each, with the stream that picks from them."""
    if B is None:
        return []
    if not isinstance(data, Samples):
        raise InputError("minibatches of size B need a training set: walk on walkers.samples(loss).")
    if check_batch_size(B, len(data)) == len(data):
        return []
    drawing, picking, picking_second = streams
    means = minibatch_means(data, B, POOL, drawing)
    tilts = means.reshape(POOL, -1).T
    tilts = tilts - tilts.mean(1, keepdims=True)
    pools = [(eta * alpha * tilts, picking)]
    if alpha > 1:
        pools.append((eta * (1 - alpha) * tilts, picking_second))
    return pools


def _kicks(pools: list[Pool], shape: tuple) -> Array:
    """Steps, coordinate and walkers [steps, dim, n]: η α s_B + η (1−α) s_B', each minibatch picked anew."""
    steps, dim, n = shape
    kicks = np.zeros(shape)
    for tilts, stream in pools:
        picked = stream.integers(POOL, size=(steps, n))
        for i in range(dim):
            of_coordinate = tilts[i]
            kicks[:, i] += of_coordinate[picked]
    return kicks


def _gradient(loss: Loss, like: Array) -> Gradient:
    """Write ∇L at coordinate-first weights of the shape of `like` to the second argument, without allocation."""
    if isinstance(loss, Smoothed):
        return partial(_smoothed_gradient, loss)
    column = (loss.dim, *[1] * (like.ndim - 1))
    k = np.reshape(loss.curvatures, column)
    R, omega = loss.amplitude, loss.frequency
    dips = []
    for depth, center, width in loss.dips:
        minus_one_by_square = -(np.reshape(width, column) ** -2.0)
        middle = np.reshape(center, column)
        dips.append((depth, middle, minus_one_by_square))
    z = np.empty_like(like)
    force = np.empty_like(like)
    bump = np.empty_like(like[0])

    def gradient(w: Array, out: Array) -> None:
        np.multiply(k, w, out=out)
        if R:  # + R ω sin ω w
            np.multiply(omega, w, out=z)
            np.sin(z, out=z)
            np.multiply(R * omega, z, out=z)
            np.add(out, z, out=out)
        for depth, center, minus_one_by_square in dips:  # + A exp(−Σ z_i²/(2 σ_i²)) z/σ²
            np.subtract(w, center, out=z)
            np.multiply(minus_one_by_square, z, out=force)  # −z/σ²
            np.einsum("i...,i...", z, force, out=bump)
            np.multiply(0.5, bump, out=bump)
            np.exp(bump, out=bump)
            np.multiply(depth, bump, out=bump)
            np.multiply(bump, force, out=force)
            np.subtract(out, force, out=out)

    return gradient


def _smoothed_gradient(loss: Smoothed, w: Array, out: Array) -> None:
    gradient = loss.gradient(by_weights(w, loss.dim))
    out[...] = by_coordinate(gradient, loss.dim)


def _mean_gradient(loss: Loss, like: Array, theta: Array) -> Gradient:
    """The same for the mean of ∇L(w + θ_i) over the copies (SmoothOut eq. 1); `theta` is [dim, copies, 1]."""
    dim, n = like.shape
    copies = np.empty((dim, theta.shape[1], n))
    gradients = np.empty_like(copies)
    gradient = _gradient(loss, copies)

    def mean_gradient(w: Array, out: Array) -> None:
        np.add(w[:, None], theta, out=copies)
        gradient(copies, gradients)
        np.mean(gradients, axis=1, out=out)

    return mean_gradient


def stationary_variance(curvature: float, eta: float, variance: float) -> float:
    """Variance of w that w ← (1 − ηh) w − ξ settles to on h w²/2: Var ξ / (ηh (2 − ηh)).

    The `variance` Var ξ is that of one step, as from ``noise_variance(..., eta=eta)``; `curvature` is h.  Raises
    `InputError` if ηh is not between 0 and 2: the weights then spread without end.
    """
    rate = eta * curvature
    if not 0 < rate < 2:
        raise InputError(f"learning rate times curvature must lie between 0 and 2 to settle, not {rate:g}.")
    return variance / (rate * (2 - rate))


def stationary_density(loss: Loss, w: ArrayLike, temperature: ArrayLike) -> Array:
    """Density that walkers settle to under noise that depends on where they are: (1/T) exp(−∫ L'/T dw), T = η V(w)/2.

    A step draws its noise at the weights it starts from, so small steps follow Itô's equation dw = −L' dt + √(2T) dW,
    t = η times the updates, whose density p has a flow of −L' p − (T p)'.  Walkers settle where there is none.
    For constant T this is ∝ exp(−L/T).

    Returns it at the increasing weights `w` [n] of a loss in one dimension, beyond which there are no walkers, from the
    `temperature` T there, a number or [n]; its integral is 1.  Raises `InputError` unless T is positive everywhere.

    >>> w = np.linspace(-6, 6, 1201)
    >>> normal = stationary_density(Landscape((1.0,)), w, 1.0)
    >>> float(normal[600].round(4))  # 1/√(2π)
    0.3989
    """
    w = np.asarray(w, dtype=float)
    T = np.broadcast_to(np.asarray(temperature, dtype=float), w.shape)
    if not np.all(T > 0):
        raise InputError("the temperature must be positive at all weights.")
    exponent = -cumulative_trapezoid(loss.gradient(w) / T, w, initial=0) - np.log(T)
    p = np.exp(exponent - exponent.max())
    return p / trapezoid(p, w)
