"""Finite training sets for the toy losses, and the noise of minibatches drawn from them.

The minibatches are real ones, so that NE eqs. 4, 6 and 10 hold exactly and can be seen to.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from nb_lib.errors import InputError, check_batch_size, known
from nb_lib.noise_enhancement import noise_covariance
from nb_lib.toys import Array, Landscape, Smoothed, by_coordinate

_INDICES = 2**20  # of samples drawn at a time
_TAILS = ("normal", "heavy")


@dataclass(frozen=True)
class Samples:
    """A training set with mean loss L: ℓ_μ(w) = L(w) − u_μ·w, Σ_μ u_μ = 0, hence ∇ℓ_μ = ∇L − u_μ."""

    loss: Landscape | Smoothed
    tilts: Array  # u_μ, [N] or [N, 2]; the covariance S of the gradients (NE eq. 4) is theirs, the same at all weights

    def __len__(self) -> int:
        return len(self.tilts)

    def covariance(self) -> float | Array:
        """S = (1/N) Σ_μ u_μ u_μᵀ of NE eq. 4: a number, or [2, 2]."""
        if self.tilts.ndim == 1:
            return float(np.mean(self.tilts**2))
        return self.tilts.T @ self.tilts / len(self)

    def sample_losses(self, w: ArrayLike) -> Array:
        """ℓ_μ(w) of every sample, shape [..., N]; their mean is L(w)."""
        tilts = self.tilts.reshape(len(self), -1)
        x = by_coordinate(w, self.loss.dim)
        along = np.tensordot(x, tilts.T, axes=(0, 0))
        return self.loss(w)[..., None] - along


def samples(
    loss: Landscape | Smoothed,
    n: int = 1000,
    *,
    spread: float | Sequence[float] = 1.0,
    turn: float = 0.0,
    tails: str = "normal",
    seed: int = 0,
) -> Samples:
    """Training set of `n` samples whose gradients have exactly the standard deviation `spread`.

    Parameters
    ----------
    spread : float, or a pair for two dimensions
        At least 0; the coordinates are uncorrelated.
    turn : float
        Angle in radians by which the two directions of these spreads are turned away from the axes, counterclockwise.
    tails : str
        ``"normal"``: random draws; ``"heavy"``: the quantiles of Student's t with two degrees of freedom at
        (i − 1/2)/n (in two dimensions paired at random), of excess kurtosis about 50 for n = 1000 and any seed.

    Raises
    ------
    InputError
        If `n` is below 10, `spread` negative or of another number, or one weight has a `turn`.

    Examples
    --------
    >>> data = samples(Landscape((1.0,)), n=50, spread=3.0)
    >>> round(data.covariance(), 6), round(noise_variance(data, B=1), 6), noise_variance(data, B=50)
    (9.0, 9.0, 0.0)
    """
    if n < 10:
        raise InputError(f"a training set of the toy losses needs at least 10 samples, not {n!r}.")
    if np.shape(spread) not in ((), (loss.dim,)):
        raise InputError(f"give one spread of the gradients, or one for each weight of the loss, not {spread!r}.")
    if turn and loss.dim == 1:
        raise InputError("the samples of a loss of one weight cannot be turned: leave out turn.")
    spreads = np.asarray(spread, dtype=float)
    possible = np.isfinite(spreads) & (spreads >= 0)
    if not np.all(possible):
        raise InputError(f"the spread of the gradients must be finite and at least 0, not {spread!r}.")
    raw = _raw_tilts(n, loss.dim, tails, np.random.default_rng(seed))
    raw = raw - raw.mean(0)
    covariance = raw.T @ raw / n
    root = np.linalg.cholesky(covariance)
    white = np.linalg.solve(root, raw.T).T  # uncorrelated, each of variance 1
    tilts = white * spreads
    if turn:
        cos = np.cos(turn)
        sin = np.sin(turn)
        rotation = np.array([[cos, sin], [-sin, cos]])
        tilts = tilts @ rotation
    if loss.dim == 1:
        tilts = tilts[:, 0]
    return Samples(loss, tilts)


def _raw_tilts(n: int, dim: int, tails: str, rng: np.random.Generator) -> Array:
    """Tilts [n, dim] before they are given their exact mean and covariance."""
    known("kind of tails", tails, _TAILS)
    if tails == "normal":
        return rng.standard_normal((n, dim))
    u = (np.arange(n) + 0.5) / n
    root = np.sqrt(2 * u * (1 - u))
    quantiles = (2 * u - 1) / root
    rows = np.tile(quantiles, (dim, 1))
    return rng.permuted(rows, axis=1).T


def minibatch_means(samples: Samples, B: int, count: int, rng: np.random.Generator) -> Array:
    """Mean tilts of `count` minibatches of `B` samples drawn without replacement, shape [count] or [count, 2].

    Times −η, they are the noise ξ of steps with these minibatches (NE eq. 3), cut from permutations as in an epoch.
    """
    n, tilts = len(samples), samples.tilts
    check_batch_size(B, n)
    if n == B:
        mean = tilts.mean(0)
        return np.repeat(mean[None], count, axis=0)
    of_one = n // B  # minibatches in a permutation
    missing = math.ceil(count / of_one)  # permutations
    most = math.ceil(_INDICES / n)
    means: list[Array] = []
    while missing > 0:
        together = min(missing, most)
        orders = np.tile(np.arange(n), (together, 1))
        orders = rng.permuted(orders, axis=1)
        whole_minibatches = orders[:, : of_one * B]
        drawn = whole_minibatches.reshape(-1, B)
        means.append(tilts[drawn].mean(1))
        missing -= together
    return np.concatenate(means)[:count]


def independent_means(samples: Samples, B: int, count: int, rng: np.random.Generator) -> Array:
    """As `minibatch_means`, each minibatch from a permutation of its own: those of one epoch depend on each other."""
    n = len(samples)
    of_one = n // check_batch_size(B, n)  # minibatches in a permutation
    return minibatch_means(samples, B, count * of_one, rng)[::of_one]


def noise_variance(samples: Samples, B: int, alpha: float = 1.0, eta: float = 1.0) -> float | Array:
    """Covariance of the noise of one step (NE eqs. 4 and 10), a number or [2, 2]: see `noise_covariance`."""
    S = samples.covariance()
    return noise_covariance(S, len(samples), B, alpha=alpha, eta=eta)
