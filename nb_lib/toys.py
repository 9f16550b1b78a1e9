"""Losses of one and two weights with a sharp and a flat minimum, and their exact smoothed forms.

Every `Landscape` belongs to one family that smoothing with independent noise on each coordinate keeps in closed form
(SmoothOut eqs. 1, 5, 14, 15).  `nb_lib.walkers` lets SGD and both methods loose on them.

Weights `w` of a one-dimensional loss have any shape [...], of a two-dimensional one the shape [..., 2].
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from nb_lib.errors import InputError, check_strength, known
from nb_lib.lab.names import DISTRIBUTIONS

Array = NDArray[np.float64]


class Dip(NamedTuple):
    """The well −depth Π_i exp(−(w_i − center_i)²/(2 width_i²)); center and width have one entry a coordinate."""

    depth: float
    center: tuple[float, ...]
    width: tuple[float, ...]


@dataclass(frozen=True)
class Landscape:
    """L(w) = offset + Σ_i [h_i w_i²/2 + R (1 − cos ω w_i)] − Σ_j A_j Π_i exp(−(w_i − μ_ji)²/(2 b_ji²)).

    Parameters
    ----------
    curvatures : tuple of 1 or 2 floats
        h_i of the bowl, 1/weight²; their number is the dimension.
    dips : tuple of Dip
        Depth A_j, center μ_j, width b_j > 0.
    amplitude, frequency : float
        R and ω of the ripple.

    Examples
    --------
    >>> bowl = Landscape((3.0,))
    >>> float(bowl(2.0)), float(bowl.gradient(2.0)), float(bowl.curvature(2.0))
    (6.0, 6.0, 3.0)
    >>> float(bowl(2.0, a=1.0))  # smoothed: + h/2 times a²/3, the variance of U(−a, a)
    6.5
    """

    curvatures: tuple[float, ...]
    dips: tuple[Dip, ...] = ()
    amplitude: float = 0.0
    frequency: float = 0.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        numbers = [*self.curvatures, self.offset, self.amplitude, self.frequency]
        widths: list[float] = []
        dimensions = {self.dim}
        for dip in self.dips:
            numbers += [dip.depth, *dip.center, *dip.width]
            widths += dip.width
            dimensions |= {len(dip.center), len(dip.width)}
        if dimensions not in ({1}, {2}):
            raise InputError("a toy loss has one or two weights: give so many curvatures, and as many to each dip.")
        finite = np.all(np.isfinite(numbers))
        if not finite or min(widths, default=1) <= 0:
            raise InputError("every parameter of a toy loss must be finite, and every width positive.")

    @property
    def dim(self) -> int:
        """Number of weights, 1 or 2."""
        return len(self.curvatures)

    def __call__(self, w: ArrayLike, a: float = 0.0, distribution: str = "uniform") -> Array:
        """L̄(w; a) = E L(w + θ), of shape [...] (SmoothOut eqs. 1, 5, 14), in closed form; a = 0 is L itself.

        θ_i is uniform in (−a, a), or with the distribution ``"normal"`` has the standard deviation a.
        """
        none = (0,) * self.dim
        return self._derivative(w, none, a, distribution)

    def gradient(self, w: ArrayLike, a: float = 0.0, distribution: str = "uniform") -> Array:
        """∇L̄(w; a), of the shape of `w` (SmoothOut eq. 15 for uniform noise); arguments as for the loss."""
        if self.dim == 1:
            return self._derivative(w, (1,), a, distribution)
        along_x = self._derivative(w, (1, 0), a, distribution)
        along_y = self._derivative(w, (0, 1), a, distribution)
        return np.stack([along_x, along_y], axis=-1)

    def curvature(self, w: ArrayLike, a: float = 0.0, distribution: str = "uniform") -> Array:
        """L̄''(w; a) of shape [...], in two dimensions the Hessian [..., 2, 2]; arguments as for the loss."""
        if self.dim == 1:
            return self._derivative(w, (2,), a, distribution)
        xx = self._derivative(w, (2, 0), a, distribution)
        xy = self._derivative(w, (1, 1), a, distribution)
        yy = self._derivative(w, (0, 2), a, distribution)
        along_x = np.stack([xx, xy], axis=-1)
        along_y = np.stack([xy, yy], axis=-1)
        return np.stack([along_x, along_y], axis=-1)

    def smoothed(self, a: float, distribution: str = "uniform") -> "Smoothed":
        """L̄(·; a) as a loss of its own, for `walk` without any noise."""
        known("distribution", distribution, DISTRIBUTIONS)
        a = check_strength(a)
        return Smoothed(self, a, distribution)

    def _derivative(self, w: ArrayLike, orders: tuple[int, ...], a: float, distribution: str) -> Array:
        """∂^orders L̄(w; a): order 0, 1 or 2 in each coordinate, 2 in all."""
        known("distribution", distribution, DISTRIBUTIONS)
        a = check_strength(a)
        x = by_coordinate(w, self.dim)
        total = np.zeros(x.shape[1:])
        order_of_all = sum(orders)
        for depth, center, width in self.dips:  # a product is smoothed factor by factor
            product = np.ones_like(total)
            for i in range(self.dim):
                z = x[i] - center[i]
                product = product * _bump(z, width[i], orders[i], a, distribution)
            total -= depth * product
        if order_of_all == 0:
            total += self.offset
        for i in range(self.dim):
            order = orders[i]
            if order == order_of_all:  # bowl and ripple have no mixed derivatives
                total += self._bowl_and_ripple(i, x[i], order, a, distribution)
        return total[()]

    def _bowl_and_ripple(self, i: int, x: Array, order: int, a: float, distribution: str) -> Array:
        """Derivative of the given order of E [h_i (x + θ)²/2 + R (1 − cos ω (x + θ))]."""
        k = self.curvatures[i]
        omega = self.frequency
        phase = omega * x
        spread = omega * a
        if distribution == "uniform":
            variance = a**2 / 3
            damping = float(np.sinc(spread / np.pi))  # sin(ωa)/(ωa)
        else:
            variance = a**2
            damping = math.exp(-(spread**2) / 2)
        damped = self.amplitude * damping
        if order == 0:
            bowl = k / 2 * (x**2 + variance)
            return bowl + self.amplitude - damped * np.cos(phase)
        if order == 1:
            slope = omega * damped
            return k * x + slope * np.sin(phase)
        curvature = omega**2 * damped
        return k + curvature * np.cos(phase)


@dataclass(frozen=True)
class Smoothed:
    """The loss L̄(w; a) of `loss`, with a (the half-width of the box of SmoothOut eq. 13) and the distribution fixed."""

    loss: Landscape
    a: float
    distribution: str

    @property
    def dim(self) -> int:
        """As of the loss."""
        return self.loss.dim

    def __call__(self, w: ArrayLike) -> Array:
        """L̄(w; a)."""
        return self.loss(w, self.a, self.distribution)

    def gradient(self, w: ArrayLike) -> Array:
        """∇L̄(w; a)."""
        return self.loss.gradient(w, self.a, self.distribution)


def two_wells(
    *,
    sharp_depth: float = 1.0,
    sharp_curvature: float = 400.0,
    flat_depth: float = 0.8,
    flat_curvature: float = 3.2,
    bowl: float = 0.2,
    gap: float = 2.0,
) -> Landscape:
    """A sharp well at −gap/2 and a flat one at gap/2, sqrt(depth/curvature) wide, in a bowl (SmoothOut, Fig. 1)."""
    if not (min(sharp_depth, sharp_curvature, flat_depth, flat_curvature) > 0):
        raise InputError("depths and curvatures of the two wells must be positive.")
    sharp_width = math.sqrt(sharp_depth / sharp_curvature)
    flat_width = math.sqrt(flat_depth / flat_curvature)
    half = gap / 2
    sharp = Dip(sharp_depth, (-half,), (sharp_width,))
    flat = Dip(flat_depth, (half,), (flat_width,))
    return Landscape((bowl,), (sharp, flat), offset=1.0)


def bowl_with_dip(
    *, curvature: float = 1.0, dip_depth: float = 1.3, dip_width: float = 0.05, dip_at: float = -1.5
) -> Landscape:
    """A bowl whose minimum, at 0, is flat, with a narrow and deeper dip on its flank."""
    dip = Dip(dip_depth, (dip_at,), (dip_width,))
    return Landscape((curvature,), (dip,))


def ripples() -> Landscape:
    """A bowl with ripples, w²/2 + 1 − cos 12w: smoothing is a low-pass filter."""
    return Landscape((1.0,), amplitude=1.0, frequency=12.0)


def quadratic(*curvatures: float) -> Landscape:
    """Σ_i h_i w_i²/2 of one or two curvatures; 0 makes a flat direction."""
    return Landscape(curvatures)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)  # of Gauss-Legendre quadrature over (−1, 1)


def _bump(z: Array, width: float, order: int, a: float, distribution: str) -> Array:
    """Derivative of the given order of E g(z + θ), g(z) = exp(−z²/(2 width²))."""
    square = width**2
    if distribution == "normal" or a == 0:
        wider = square + a**2
        lower = width / math.sqrt(wider)
        return lower * _gaussian(z, wider, order)
    if a < 0.1 * width:  # the differences below would cancel; six nodes are exact to rounding here
        thetas = a * _NODES
        values = [_gaussian(z + theta, square, order) for theta in thetas]
        return np.average(values, axis=0, weights=_WEIGHTS)
    if order == 0:  # SmoothOut eq. 14
        z = -np.abs(z)  # even; ndtr is precise in its lower tail
        area = width * math.sqrt(2 * math.pi)
        right = ndtr((z + a) / width)
        left = ndtr((z - a) / width)
        return area / (2 * a) * (right - left)
    right = _gaussian(z + a, square, order - 1)
    left = _gaussian(z - a, square, order - 1)
    return (right - left) / (2 * a)  # SmoothOut eq. 15


def _gaussian(z: Array, square: float, order: int) -> Array:
    """Derivative of the given order of exp(−z²/(2 square))."""
    exponent = z**2 / (-2 * square)
    g = np.exp(exponent)
    if order == 0:
        return g
    if order == 1:
        return -z / square * g
    curvature = (z**2 / square - 1) / square
    return curvature * g


def by_coordinate(w: ArrayLike, dim: int) -> Array:
    """Weights [...] or [..., 2] with the coordinate first: [dim, ...]."""
    w = np.asarray(w, dtype=float)
    if dim == 1:
        return w[None]
    if w.shape[-1:] != (dim,):
        raise InputError(f"weights of a loss in two dimensions have the shape [..., 2], not {list(w.shape)}.")
    return np.moveaxis(w, -1, 0)


def by_weights(x: Array, dim: int) -> Array:
    """Inverse of `by_coordinate`."""
    if dim == 1:
        return x[0]
    return np.moveaxis(x, 0, -1)
