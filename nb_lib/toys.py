"""Losses of one and two weights with a sharp and a flat minimum, and their exact smoothed forms.

Every `Landscape` belongs to one family that smoothing with independent noise on each coordinate keeps in closed form
(SmoothOut eqs. 1, 5, 14).  `nb_lib.walkers` lets SGD and both methods loose on them.

Weights `w` of a one-dimensional loss have any shape [...], of a two-dimensional one the shape [..., 2].
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from nb_lib.errors import InputError, check_strength, known
from nb_lib.lab.names import DISTRIBUTIONS

Array = NDArray[np.float64]


# ------------------------------------------------------------------------------------------------ losses


class Dip(NamedTuple):
    """The well −depth Π_i exp(−(w_i − center_i)²/(2 width_i²)); center and width have one entry a coordinate."""

    depth: float
    center: tuple[float, ...]
    width: tuple[float, ...]


@dataclass(frozen=True)
class Landscape:
    """L(w) = offset + Σ_i [k_i w_i²/2 + R (1 − cos ω w_i)] − Σ_j A_j Π_i exp(−(w_i − μ_ji)²/(2 σ_ji²)).

    Parameters
    ----------
    curvatures : tuple of 1 or 2 floats
        k_i of the bowl, 1/weight²; their number is the dimension.
    dips : tuple of Dip
        Depth A_j, center μ_j, width σ_j > 0.
    amplitude, frequency : float
        R and ω of the ripple.
    offset : float

    Raises
    ------
    InputError
        If a value is not finite, a width not positive, or the shapes do not belong to one or two dimensions.
    """

    curvatures: tuple[float, ...]
    dips: tuple[Dip, ...] = ()
    amplitude: float = 0.0
    frequency: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.dim not in (1, 2) or any(
            len(d.center) != self.dim or len(d.width) != self.dim for d in self.dips
        ):
            raise InputError(
                "a toy loss has one or two weights: give so many curvatures, and as many to each dip."
            )
        numbers = [self.offset, self.amplitude, self.frequency, *self.curvatures]
        numbers += [number for depth, center, width in self.dips for number in (depth, *center, *width)]
        if not np.all(np.isfinite(numbers)) or any(width <= 0 for dip in self.dips for width in dip.width):
            raise InputError("every parameter of a toy loss must be finite, and every width positive.")

    @property
    def dim(self) -> int:
        """Number of weights, 1 or 2."""
        return len(self.curvatures)

    def __call__(self, w: ArrayLike, a: float = 0.0, noise: str = "uniform") -> Array:
        """L̄(w; a) = E L(w + θ) (SmoothOut eq. 5), in closed form; a = 0 is L itself.

        Parameters
        ----------
        w : array, shape [...] or [..., 2]
        a : float
            At least 0: θ_i is uniform in (−a, a), or normal of standard deviation a.
        noise : str
            One of `DISTRIBUTIONS`.

        Returns
        -------
        array, shape [...]
        """
        return self._partial(w, (0,) * self.dim, a, noise)

    def gradient(self, w: ArrayLike, a: float = 0.0, noise: str = "uniform") -> Array:
        """∇L̄(w; a), of the shape of `w` (SmoothOut eq. 15 for uniform noise); arguments as for the loss."""
        if self.dim == 1:
            return self._partial(w, (1,), a, noise)
        return np.stack([self._partial(w, orders, a, noise) for orders in ((1, 0), (0, 1))], axis=-1)

    def curvature(self, w: ArrayLike, a: float = 0.0, noise: str = "uniform") -> Array:
        """L̄''(w; a) of shape [...], in two dimensions the Hessian [..., 2, 2]; arguments as for the loss."""
        if self.dim == 1:
            return self._partial(w, (2,), a, noise)
        xx, xy, yy = (self._partial(w, orders, a, noise) for orders in ((2, 0), (1, 1), (0, 2)))
        return np.stack([np.stack([xx, xy], axis=-1), np.stack([xy, yy], axis=-1)], axis=-1)

    def smoothed(self, a: float, noise: str = "uniform") -> "Smoothed":
        """L̄(·; a) as a loss of its own, for `walk` without any noise."""
        return Smoothed(self, check_strength(a), known("kind of noise", noise, DISTRIBUTIONS))

    def _partial(self, w: ArrayLike, orders: tuple[int, ...], a: float, noise: str) -> Array:
        """∂^orders L̄(w; a): order 0, 1 or 2 in each coordinate, 2 in all."""
        known("kind of noise", noise, DISTRIBUTIONS)
        a = check_strength(a)
        x = by_coordinate(w, self.dim)
        total = np.zeros(x.shape[1:])
        for depth, center, width in self.dips:  # a product smooths factor by factor
            total -= depth * math.prod(
                _bump(x[i] - center[i], width[i], orders[i], a, noise) for i in range(self.dim)
            )
        variance = a**2 / 3 if noise == "uniform" else a**2
        k, r, om = self.curvatures, self.amplitude, self.frequency
        damped = r * (np.sinc(om * a / np.pi) if noise == "uniform" else math.exp(-((om * a) ** 2) / 2))
        if sum(orders) == 0:
            total += self.offset
        for i in range(self.dim):  # bowl and ripple: sums over the coordinates, so no mixed derivatives
            if sum(orders) == 0:
                total += k[i] / 2 * (x[i] ** 2 + variance) + r - damped * np.cos(om * x[i])
            elif orders[i] == 1 == sum(orders):
                total += k[i] * x[i] + om * damped * np.sin(om * x[i])
            elif orders[i] == 2:
                total += k[i] + om**2 * damped * np.cos(om * x[i])
        return total[()]


@dataclass(frozen=True)
class Smoothed:
    """The loss L̄(w; a) of `loss`, with a and the kind of noise fixed."""

    loss: Landscape
    a: float
    noise: str

    @property
    def dim(self) -> int:
        """Number of weights, 1 or 2."""
        return self.loss.dim

    def __call__(self, w: ArrayLike) -> Array:
        """L̄(w; a)."""
        return self.loss(w, self.a, self.noise)

    def gradient(self, w: ArrayLike) -> Array:
        """∇L̄(w; a)."""
        return self.loss.gradient(w, self.a, self.noise)


def two_wells(
    *,
    sharp_depth: float = 1.0,
    sharp_curvature: float = 400.0,
    flat_depth: float = 0.8,
    flat_curvature: float = 3.2,
    bowl: float = 0.2,
    gap: float = 2.0,
) -> Landscape:
    """A sharp well at −gap/2 and a flat one at gap/2 in a weak bowl: the picture of SmoothOut's Fig. 1 (a).

    Depths and curvatures are positive; a well is sqrt(depth/curvature) wide.
    """
    if not (min(sharp_depth, sharp_curvature, flat_depth, flat_curvature) > 0):
        raise InputError("depths and curvatures of the two wells must be positive.")
    sharp = Dip(sharp_depth, (-gap / 2,), (math.sqrt(sharp_depth / sharp_curvature),))
    flat = Dip(flat_depth, (gap / 2,), (math.sqrt(flat_depth / flat_curvature),))
    return Landscape((bowl,), (sharp, flat), offset=1.0)


def bowl_with_dip(
    *, curvature: float = 1.0, dip_depth: float = 1.3, dip_width: float = 0.05, dip_at: float = -1.5
) -> Landscape:
    """A bowl whose minimum, at 0, is flat, with a narrow and deeper dip on its flank."""
    return Landscape((curvature,), (Dip(dip_depth, (dip_at,), (dip_width,)),))


def ripples(*, curvature: float = 1.0, amplitude: float = 1.0, frequency: float = 12.0) -> Landscape:
    """A bowl with ripples, k w²/2 + R (1 − cos ω w): smoothing is a low-pass filter."""
    return Landscape((curvature,), amplitude=amplitude, frequency=frequency)


def two_wells_2d(
    *,
    sharp_depth: float = 1.0,
    sharp_width: float = 0.05,
    flat_depth: float = 0.8,
    width: float = 0.6,
    bowl: float = 0.05,
) -> Landscape:
    """A well at (−1, −0.5) that is sharp along the first axis only, and a round flat one at (1, 0.5).

    `sharp_width` is the one narrow width, `width` the three others; a width belongs to curvature depth/width².
    """
    sharp = Dip(sharp_depth, (-1.0, -0.5), (sharp_width, width))
    flat = Dip(flat_depth, (1.0, 0.5), (width, width))
    return Landscape((bowl, bowl), (sharp, flat), offset=1.0)


def quadratic(*curvatures: float) -> Landscape:
    """Σ_i h_i w_i²/2 of one or two curvatures; 0 makes a flat direction."""
    return Landscape(curvatures)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)


def _bump(z: Array, width: float, order: int, a: float, noise: str) -> Array:
    """Derivative of the given order of E g(z + θ), g(z) = exp(−z²/(2 width²))."""
    if noise == "normal" or a == 0:
        square = width**2 + a**2
        return width / math.sqrt(square) * _gaussian(z, square, order)
    square = width**2
    if (
        a < 0.1 * width
    ):  # the differences below would cancel; six Gauss-Legendre nodes are exact to rounding here
        return np.average(
            [_gaussian(z + a * node, square, order) for node in _NODES], axis=0, weights=_WEIGHTS
        )
    if order == 0:
        z = -np.abs(z)  # even; ndtr is precise in its lower tail
        return width * math.sqrt(2 * math.pi) / (2 * a) * (ndtr((z + a) / width) - ndtr((z - a) / width))
    return (_gaussian(z + a, square, order - 1) - _gaussian(z - a, square, order - 1)) / (2 * a)


def _gaussian(z: Array, square: float, order: int) -> Array:
    """Derivative of the given order of exp(−z²/(2 square))."""
    g = np.exp(z**2 / (-2 * square))
    return (g, -z / square * g, (z**2 / square - 1) / square * g)[order] if order else g


def by_coordinate(w: ArrayLike, dim: int) -> Array:
    """Weights [...] or [..., 2] with the coordinate first: [dim, ...]."""
    w = np.asarray(w, dtype=float)
    if dim == 1:
        return w[None]
    if w.ndim == 0 or w.shape[-1] != dim:
        raise InputError(f"weights of a loss in two dimensions have the shape [..., 2], not {list(w.shape)}.")
    return np.moveaxis(w, -1, 0)


def by_weights(x: Array, dim: int) -> Array:
    """Inverse of `by_coordinate`."""
    return x[0] if dim == 1 else np.moveaxis(x, 0, -1)


# ------------------------------------------------------------------------------------------------ minima


def minima(
    loss: Landscape, a: float = 0.0, noise: str = "uniform", *, low: float = -3.0, high: float = 3.0
) -> Array:
    """Local minima of L̄(·; a) of a one-dimensional loss between `low` and `high`, as rows (position, value)."""
    brackets = _brackets(loss, a, noise, low, high)
    at = np.array([brentq(loss.gradient, *bracket, args=(a, noise), xtol=1e-12) for bracket in brackets])
    return np.stack([at, loss(at, a, noise)], axis=-1)


def crossing(
    loss: Landscape, noise: str = "uniform", *, low: float = -3.0, high: float = 3.0
) -> float | None:
    """Smallest a at which the lower of the two minima of L̄(·; a) changes; None if one disappears before.

    Also None if L itself has not exactly two minima between `low` and `high`.
    """

    def difference(a: float) -> float:
        found = minima(loss, a, noise, low=low, high=high)[:, 1]
        return found[0] - found[1] if len(found) == 2 else math.nan

    before, start = 0.0, difference(0.0)
    for a in _strengths(loss, low, high):
        now = difference(a)
        if math.isnan(now):
            return None
        if now * start < 0:
            return float(brentq(difference, before, a, xtol=1e-9))
        before = a
    return None


def last_minimum(loss: Landscape, noise: str = "uniform", *, low: float = -3.0, high: float = 3.0) -> float:
    """Smallest a from which on L̄(·; a) keeps a single minimum between `low` and `high`.

    0 if L has no second one; infinity if there are several even at a = high − low.
    """

    def single(a: float) -> bool:
        return len(_brackets(loss, a, noise, low, high)) <= 1

    above = math.inf
    for a in [*_strengths(loss, low, high)[::-1], 0.0]:
        if not single(a):
            break
        above = a
    if not 0 < above < math.inf:
        return float(above)
    below = a
    while above - below > 1e-6 * above:
        middle = (below + above) / 2
        below, above = (below, middle) if single(middle) else (middle, above)
    return float(above)


def _brackets(loss: Landscape, a: float, noise: str, low: float, high: float) -> list[tuple[float, float]]:
    """Neighboring points of a grid finer than all scales of L between which the slope of L̄ turns positive."""
    if loss.dim != 1 or not low < high:
        raise InputError("minima are listed for a loss in one dimension, between low and a larger high.")
    grid = np.linspace(low, high, 1 + math.ceil((high - low) / min(0.01, _scale(loss) / 10)))
    slope = loss.gradient(grid, a, noise)
    turns = np.flatnonzero((slope[:-1] < 0) & (slope[1:] >= 0))
    return [(grid[i], grid[i + 1]) for i in turns]


def _scale(loss: Landscape) -> float:
    """Shortest length on which L changes."""
    widths = [width for dip in loss.dips for width in dip.width]
    return min([1.0, *widths, *([1 / abs(loss.frequency)] if loss.frequency else [])])


def _strengths(loss: Landscape, low: float, high: float) -> Array:
    """Noise strengths from well below the shortest scale of L up to the whole interval."""
    return np.geomspace(_scale(loss) / 20, high - low, 120)
