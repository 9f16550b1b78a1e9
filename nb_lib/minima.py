"""Minima of the toy losses, and how smoothing moves and removes them (SmoothOut eqs. 2 and 3 on two wells)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import brentq

from nb_lib.errors import InputError

if TYPE_CHECKING:
    from nb_lib.toys import Array, Landscape

LOW, HIGH = -3.0, 3.0  # between which weights minima are looked for


def minima(loss: Landscape, a: float = 0.0, distribution: str = "uniform") -> Array:
    """Local minima of L̄(·; a) of a one-dimensional loss between the weights −3 and 3, as rows (position, value).

    >>> from nb_lib.toys import quadratic
    >>> minima(quadratic(2.0)).tolist()
    [[0.0, 0.0]]
    """

    def slope(w: float) -> float:
        return float(loss.gradient(w, a, distribution))

    brackets = _brackets(loss, a, distribution)
    positions = np.array([brentq(slope, left, right, xtol=1e-12) for left, right in brackets])
    return np.stack([positions, loss(positions, a, distribution)], axis=-1)


class Rims(NamedTuple):
    """The weights between which two wells lie: (left, top) and (top, right)."""

    left: float
    top: float
    right: float


def rims(loss: Landscape) -> Rims:
    """The top of the barrier between two wells, and where, between −9 and 9, L is as high on the far side of either.

    Raises `InputError` if there are not two minima.
    """
    positions = minima(loss)[:, 0]
    if len(positions) != 2:
        raise InputError(f"two wells have a barrier between them, but this loss has {len(positions)} minima.")
    first, second = positions
    between = np.linspace(first, second, 10_001)
    top = between[np.argmax(loss(between))]

    def above_the_top(w: float) -> Array:
        return loss(w) - loss(top)

    left = brentq(above_the_top, 3 * LOW, first)
    right = brentq(above_the_top, second, 3 * HIGH)
    return Rims(float(left), float(top), float(right))


def crossing(loss: Landscape, distribution: str = "uniform") -> float | None:
    """Smallest a at which the lower of the two minima of L̄(·; a) changes; None if one disappears before.

    From there on L̄ prefers the flat minimum of two wells (SmoothOut eqs. 3 and 25).  Also None unless L has two minima.
    """

    def difference(a: float) -> float:
        values = minima(loss, a, distribution)[:, 1]
        return values[0] - values[1] if len(values) == 2 else math.nan

    start = difference(0.0)
    before = 0.0
    for a in _strengths(loss):
        now = difference(a)
        if math.isnan(now):
            return None
        if now * start < 0:
            return float(brentq(difference, before, a, xtol=1e-9))
        before = a
    return None


def last_minimum(loss: Landscape, distribution: str = "uniform") -> float:
    """Smallest a from which on L̄(·; a) keeps a single minimum: 0 if L has no second one, infinite if a = 6 has one."""

    def single(a: float) -> bool:
        return len(_brackets(loss, a, distribution)) <= 1

    above = math.inf
    for a in [*_strengths(loss)[::-1], 0.0]:
        if not single(a):
            break
        above = a
    if not 0 < above < math.inf:
        return float(above)
    below = a
    while above - below > 1e-6 * above:
        middle = (below + above) / 2
        if single(middle):
            above = middle
        else:
            below = middle
    return float(above)


def _brackets(loss: Landscape, a: float, distribution: str) -> list[tuple[float, float]]:
    """Neighboring points of a grid finer than all scales of L between which the slope of L̄ turns positive."""
    if loss.dim != 1:
        raise InputError("minima are listed for a loss in one dimension.")
    spacing = min(0.01, _scale(loss) / 10)
    grid = np.linspace(LOW, HIGH, 1 + math.ceil((HIGH - LOW) / spacing))
    slope = loss.gradient(grid, a, distribution)
    turns = (slope[:-1] < 0) & (slope[1:] >= 0)
    return list(zip(grid[:-1][turns], grid[1:][turns], strict=True))


def _scale(loss: Landscape) -> float:
    """Shortest length on which L changes."""
    lengths = [1.0]
    for dip in loss.dips:
        lengths += dip.width
    if loss.frequency:
        lengths.append(1 / abs(loss.frequency))
    return min(lengths)


def _strengths(loss: Landscape) -> Array:
    """Noise strengths from well below the shortest scale of L up to the whole interval."""
    return np.geomspace(_scale(loss) / 20, HIGH - LOW, 120)
