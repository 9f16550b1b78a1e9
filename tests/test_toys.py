"""Toy losses against quadrature, finite differences and the specification's numbers."""

import math
from functools import partial

import numpy as np
import pytest
from scipy import integrate, stats
from shared import refused

from nb_lib import minima, toys
from nb_lib.errors import InputError
from nb_lib.lab.names import DISTRIBUTIONS

#: A well that is sharp along the first axis only, and a round flat one.
TWO_WELLS_2D = toys.Landscape(
    (0.05, 0.05),
    (toys.Dip(1.0, (-1.0, -0.5), (0.05, 0.6)), toys.Dip(0.8, (1.0, 0.5), (0.6, 0.6))),
    offset=1.0,
)
T1, T2, T3, T4 = toys.two_wells(), toys.bowl_with_dip(), toys.ripples(), TWO_WELLS_2D
MIXED = toys.Landscape((0.3,), (toys.Dip(0.7, (0.4,), (0.2,)), toys.Dip(-0.2, (-1.0,), (0.4,))), 0.3, 5.0, 0.25)
MIXED_2D = toys.Landscape((0.3, 1.1), (toys.Dip(0.7, (0.4, -0.3), (0.2, 0.5)),), 0.3, 5.0, 0.25)
LOSSES_1D = {"T1": T1, "T2": T2, "T3": T3, "quadratic": toys.quadratic(1.7), "mixed": MIXED}
LOSSES_2D = {"T4": T4, "quadratic": toys.quadratic(1.7, 0.2), "mixed": MIXED_2D}
ALL = [*LOSSES_1D.values(), *LOSSES_2D.values()]
IDS = [*LOSSES_1D, *(f"{name}-2d" for name in LOSSES_2D)]
# beside and on the dips, where the closed forms differ most from anything simpler
POINTS = np.array([-1.52, -1.04, -1.0, -0.9, -0.3, 0.0, 0.41, 0.94, 1.3])
POINTS_2D = np.array([(-1.0, -0.5), (-1.04, -0.2), (-0.7, 0.4), (0.0, 0.0), (0.45, -0.4), (1.2, 0.7)])


def points(loss) -> np.ndarray:
    return POINTS if loss.dim == 1 else POINTS_2D


def nodes(a: float, noise: str) -> tuple[np.ndarray, np.ndarray]:
    """θ and weights of E over one coordinate: Gauss-Legendre on panels, for normal noise times its density."""
    x, v = np.polynomial.legendre.leggauss(16)
    reach = a if noise == "uniform" else 8.5 * a
    edges = np.linspace(-reach, reach, 9 + int(2 * reach / 0.15))  # panels of up to three widths of the narrowest dip
    half = np.diff(edges)[:, None] / 2
    theta, weight = (edges[:-1, None] + half + half * x).ravel(), (half * v).ravel()
    return theta, weight * (np.full_like(theta, 0.5 / a) if noise == "uniform" else stats.norm.pdf(theta, scale=a))


def formula(loss, *x: np.ndarray) -> np.ndarray:
    """The formula in the docstring of `Landscape`, coordinate by coordinate and on its own."""
    total = loss.offset
    for i, k in enumerate(loss.curvatures):
        total = total + k * x[i] ** 2 / 2 + loss.amplitude * (1 - np.cos(loss.frequency * x[i]))
    for depth, center, width in loss.dips:
        total = total - depth * np.exp(-sum(((x[i] - center[i]) / width[i]) ** 2 for i in range(loss.dim)) / 2)
    return total


def by_quadrature(loss, w, a: float, noise: str) -> float:
    theta, weight = nodes(a, noise)
    if loss.dim == 1:
        return float(weight @ formula(loss, w + theta))
    return float(weight @ formula(loss, w[0] + theta[:, None], w[1] + theta) @ weight)


# ------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("loss", ALL, ids=IDS)
def test_the_loss_is_its_formula(loss) -> None:
    w = points(loss)
    x = (w,) if loss.dim == 1 else tuple(w.T)
    np.testing.assert_allclose(loss(w), formula(loss, *x), rtol=1e-12, atol=1e-14)
    assert loss(w, 0.0, "normal") == pytest.approx(loss(w), abs=0)


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@pytest.mark.parametrize("a", [0.004, 0.06, 0.3, 1.3])
@pytest.mark.parametrize("loss", ALL, ids=IDS)
def test_the_smoothed_loss_is_the_expectation(loss, a, noise) -> None:
    places = points(loss)[:: loss.dim]
    expected = [by_quadrature(loss, w, a, noise) for w in places]
    np.testing.assert_allclose(loss(places, a, noise), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("a", [0.06, 0.5])
def test_the_smoothed_loss_agrees_with_scipys_quadrature(a) -> None:
    for w in (-1.0, -0.8):  # SmoothOut eq. 14
        value, _ = integrate.quad(partial(formula, T1), w - a, w + a, points=[-1.0], epsabs=1e-11)
        assert T1(w, a) == pytest.approx(value / (2 * a), abs=1e-9)
    value, _ = integrate.dblquad(lambda y, x: formula(T4, x, y), -1 - a, -1 + a, -0.5 - a, -0.5 + a, epsabs=1e-9)
    assert T4((-1.0, -0.5), a) == pytest.approx(value / (4 * a**2), abs=1e-7)


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@pytest.mark.parametrize("a", [0.0, 0.004, 0.06, 0.3])
@pytest.mark.parametrize("loss", ALL, ids=IDS)
def test_gradient_and_curvature_are_those_of_the_smoothed_loss(loss, a, noise) -> None:
    w, h = points(loss), 1e-4

    def difference(f, step):  # fourth order
        near, far = f(w + step) - f(w - step), f(w + 2 * step) - f(w - 2 * step)
        return (8 * near - far) / (12 * h)

    steps = [h] if loss.dim == 1 else [np.array([h, 0]), np.array([0, h])]
    gradient = np.stack([difference(partial(loss, a=a, distribution=noise), step) for step in steps], axis=-1)
    np.testing.assert_allclose(loss.gradient(w, a, noise).reshape(gradient.shape), gradient, atol=1e-6)
    hessian = np.stack([difference(partial(loss.gradient, a=a, distribution=noise), step) for step in steps], axis=-1)
    curvature = loss.curvature(w, a, noise)
    assert curvature.shape == w.shape + (() if loss.dim == 1 else (2,))
    np.testing.assert_allclose(curvature.reshape(hessian.shape), hessian, atol=2e-4)


@pytest.mark.parametrize("a", [0.001, 0.06, 0.3, 1.3])
def test_the_gradient_is_smoothouts_equation_15(a) -> None:
    for loss in LOSSES_1D.values():
        two_sided = (formula(loss, POINTS + a) - formula(loss, POINTS - a)) / (2 * a)
        np.testing.assert_allclose(loss.gradient(POINTS, a), two_sided, atol=1e-11 / a)
    theta, weight = nodes(a, "uniform")
    for loss in LOSSES_2D.values():
        for w in POINTS_2D:
            faces = [
                weight @ (formula(loss, w[0] + a, w[1] + theta) - formula(loss, w[0] - a, w[1] + theta)) / (2 * a),
                weight @ (formula(loss, w[0] + theta, w[1] + a) - formula(loss, w[0] + theta, w[1] - a)) / (2 * a),
            ]
            np.testing.assert_allclose(loss.gradient(w, a), faces, atol=1e-11 / a)


def test_the_gradient_under_normal_noise_is_the_correlation_with_it() -> None:
    theta, weight = nodes(0.2, "normal")  # E[L(w + θ) θ] / s²
    expected = [(weight * theta) @ formula(T1, w + theta) / 0.2**2 for w in POINTS]
    np.testing.assert_allclose(T1.gradient(POINTS, 0.2, "normal"), expected, atol=1e-10)


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@pytest.mark.parametrize("loss", ALL, ids=IDS)
def test_ever_weaker_noise_leads_back_to_the_loss(loss, noise) -> None:
    w = points(loss)
    for a in (1e-300, 1e-12, 1e-9, 1e-7):
        np.testing.assert_allclose(loss(w, a, noise), loss(w), atol=1e-10)
        np.testing.assert_allclose(loss.gradient(w, a, noise), loss.gradient(w), atol=1e-7)
        np.testing.assert_allclose(loss.curvature(w, a, noise), loss.curvature(w), atol=1e-6)


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@pytest.mark.parametrize("order", ["__call__", "gradient", "curvature"])
def test_the_closed_forms_do_not_jump_where_their_expression_changes(order, noise) -> None:
    change = 0.1 * 0.05  # a tenth of the width of T2's dip
    w = np.linspace(-1.8, -1.2, 61)
    below, above = (getattr(T2, order)(w, change * (1 + side), noise) for side in (-1e-12, 1e-12))
    np.testing.assert_allclose(below, above, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("loss", ALL, ids=IDS)
def test_weak_noise_adds_the_trace_of_the_hessian(loss) -> None:
    w, a = points(loss), 1e-3
    h = loss.curvature(w)
    trace = h if loss.dim == 1 else np.trace(h, axis1=-2, axis2=-1)
    np.testing.assert_allclose((loss(w, a) - loss(w)) / a**2, trace / 6, atol=0.02)
    np.testing.assert_allclose((loss(w, a, "normal") - loss(w)) / a**2, trace / 2, atol=0.2)


def test_any_shape_of_weights() -> None:
    w = np.random.default_rng(0).normal(size=(3, 4, 2))
    assert T1(w, 0.1).shape == T1.gradient(w, 0.1).shape == T1.curvature(w, 0.1).shape == (3, 4, 2)
    assert (T4(w).shape, T4.gradient(w).shape, T4.curvature(w).shape) == ((3, 4), (3, 4, 2), (3, 4, 2, 2))
    assert T4(w, 0.2)[1, 2] == pytest.approx(T4(w[1, 2], 0.2), rel=1e-14)
    assert np.ndim(T1(0.3)) == 0
    smoothed = T1.smoothed(0.2, "normal")
    assert smoothed(w) == pytest.approx(T1(w, 0.2, "normal"), abs=0)
    assert smoothed.gradient(w) == pytest.approx(T1.gradient(w, 0.2, "normal"), abs=0)
    assert (smoothed.dim, T4.smoothed(1).dim) == (1, 2)


# ------------------------------------------------------------------------------------------------ reference numbers

T1_MINIMA = [
    ("uniform", 0, [(-0.9995, 0.0997), (0.9408, 0.2941)]),
    ("uniform", 0.1, [(-0.9963, 0.5015), (0.9397, 0.2996)]),
    ("uniform", 0.3, [(-0.8061, 0.8605), (0.9298, 0.3415)]),
    ("uniform", 0.5, [(-0.5908, 0.9077), (0.9056, 0.4144)]),
    ("normal", 0.1, [(-0.9943, 0.6529), (0.9374, 0.3103)]),
    ("normal", 0.3, [(-0.8802, 0.9306), (0.9088, 0.4139)]),
    ("normal", 0.5, [(0.8461, 0.5440)]),
]


@pytest.mark.parametrize(("noise", "a", "expected"), T1_MINIMA)
def test_minima_of_two_wells(noise, a, expected) -> None:
    found = minima.minima(T1, a, noise)
    np.testing.assert_allclose(found, expected, atol=1.1e-4)
    np.testing.assert_allclose(T1.gradient(found[:, 0], a, noise), 0, atol=1e-9)
    assert np.all(T1.curvature(found[:, 0], a, noise) > 0)


@pytest.mark.parametrize(
    ("loss", "noise", "level", "last"),
    [
        (T1, "uniform", 0.0601, 1.308),
        (T1, "normal", 0.0371, 0.374),
        (toys.bowl_with_dip(dip_width=0.1), "uniform", 0.1005, 1.233),
        (toys.bowl_with_dip(dip_width=0.1), "normal", 0.0607, 0.232),
        (T2, "uniform", 0.0486, 1.354),
        (T2, "normal", 0.0293, 0.165),
        (toys.bowl_with_dip(dip_width=0.02), "uniform", 0.0192, 1.435),
        (toys.bowl_with_dip(dip_width=0.02), "normal", 0.0116, 0.105),
    ],
)
def test_when_the_levels_cross_and_when_the_sharp_minimum_goes(loss, noise, level, last) -> None:
    assert minima.crossing(loss, noise) == pytest.approx(level, abs=6e-5)
    found = minima.last_minimum(loss, noise)
    assert found == pytest.approx(last, abs=6e-4)
    assert [len(minima.minima(loss, factor * found, noise)) for factor in (0.999, 1.001)] == [2, 1]


def test_over_smoothing_prefers_what_is_left_of_the_sharp_well() -> None:
    sharp, flat = minima.minima(T1, 1.3)[:, 1]
    assert (sharp, flat) == (pytest.approx(0.6874, abs=1e-4), pytest.approx(0.7166, abs=1e-4))


def test_sharp_and_flat_curvature() -> None:
    sharp, flat = T1.curvature(minima.minima(T1)[:, 0])
    assert (sharp, flat) == (pytest.approx(400, rel=0.01), pytest.approx(3.2, rel=0.05))
    assert T2.curvature(-1.5) == pytest.approx(521, abs=1e-6)  # at the center of the dip
    np.testing.assert_allclose(minima.minima(T2), [(-1.4971, -0.1772), (0, 0)], atol=6e-5)


def test_there_is_no_crossing_without_two_minima_or_when_the_deeper_one_is_flat() -> None:
    assert minima.crossing(toys.quadratic(1.0)) is None
    assert minima.crossing(T3) is None
    assert minima.crossing(toys.two_wells(flat_depth=1.2)) is None
    assert minima.last_minimum(toys.quadratic(1.0)) == 0
    assert minima.last_minimum(toys.Landscape((1.0,), amplitude=1.0, frequency=60.0)) == math.inf


@pytest.mark.parametrize(("a", "count"), [(0, 11), (math.pi / 12, 1), (0.3, 6), (0.36, 10)])
def test_uniform_noise_brings_ripples_back_inverted(a, count) -> None:
    assert len(minima.minima(T3, a)) == count


def test_the_inverted_ripple_has_a_maximum_where_the_loss_is_least() -> None:
    assert T3.curvature(0.0, 0.3) == pytest.approx(-16.7, abs=0.05)
    convex = math.sqrt(2 * math.log(144)) / 12
    w = np.linspace(-3, 3, 2001)
    assert convex == pytest.approx(0.2627, abs=5e-5)
    assert T3.curvature(w, 1.001 * convex, "normal").min() > 0 > T3.curvature(w, 0.999 * convex, "normal").min()


T4_TABLE = [
    ("uniform", 0.0, 0.0305, 0.2312),
    ("uniform", 0.05, 0.1759, 0.2331),
    ("uniform", 0.1, 0.4352, 0.2388),
    ("uniform", 0.2, 0.7234, 0.2608),
    ("uniform", 0.3, 0.8311, 0.2957),
    ("uniform", 0.4, 0.8865, 0.3411),
    ("normal", 0.05, 0.3259, 0.2369),
    ("normal", 0.1, 0.5897, 0.2534),
    ("normal", 0.2, 0.8018, 0.3132),
    ("normal", 0.3, 0.8862, 0.3957),
    ("normal", 0.4, 0.9315, 0.4854),
]


@pytest.mark.parametrize(("noise", "a", "sharp", "flat"), T4_TABLE)
def test_two_wells_in_two_dimensions(noise, a, sharp, flat) -> None:
    np.testing.assert_allclose(T4([(-1, -0.5), (1, 0.5)], a, noise), (sharp, flat), atol=6e-5)


@pytest.mark.parametrize(("noise", "a"), [("uniform", 0.0612), ("normal", 0.0378)])
def test_levels_in_two_dimensions_cross(noise, a) -> None:
    for side in (-1, 1):
        sharp, flat = T4([(-1, -0.5), (1, 0.5)], a + side * 1e-4, noise)
        assert np.sign(sharp - flat) == side


# ------------------------------------------------------------------------------------------------ theorems


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@pytest.mark.parametrize("a", [0.01, 0.1, 0.3, 0.9])
def test_theorem_1_a_symmetric_loss_stays_stationary(a, noise) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        dips = tuple(toys.Dip(*rng.normal(size=1), (0.0,), tuple(rng.uniform(0.05, 1, 1))) for _ in range(3))
        even = toys.Landscape(tuple(rng.uniform(0, 2, 1)), dips, rng.uniform(), rng.uniform(1, 9))
        assert abs(even.gradient(0.0, a, noise)) < 1e-12
    assert abs(T1.gradient(minima.minima(T1)[1, 0], a, noise)) > 1e-5  # and not so without symmetry


@pytest.mark.parametrize(("a", "curvature"), [(0.2, -2.49), (0.3, -2.34), (0.4, -1.905)])
def test_theorem_1_stationary_may_be_a_maximum(a, curvature) -> None:
    # specification 6.2: symmetric, with its global minimum at 0
    loss = toys.Landscape((1.0,), (toys.Dip(-1.0, (0.0,), (0.5,)), toys.Dip(1.5, (0.0,), (0.05,))))
    w = np.linspace(-3, 3, 6001)
    assert abs(w[np.argmin(loss(w))]) < 1e-9
    assert loss.curvature(0.0, a) == pytest.approx(curvature, abs=0.005)


@pytest.mark.parametrize("m", [1, 2, 10, 100])
def test_theorem_2_holds_for_boxes_and_not_for_balls(m) -> None:
    a, draws = 0.7, 40_000
    theta = np.random.default_rng(m).uniform(-a, a, (draws, m))
    largest, square = np.abs(theta).max(1), (theta**2).sum(1) / 2
    for values, expected in ((largest, a * m / (m + 1)), (square, m * a**2 / 6)):  # L̄(w_s)
        assert abs(values.mean() - expected) < 5 * values.std() / math.sqrt(draws)
    # L̄(w_s) >= max of L over the box of half-width eps: a m/(m+1) >= eps; m a²/6 >= m eps²/2
    assert math.sqrt(2 * (m * a**2 / 6) / m) == pytest.approx(a / math.sqrt(3))
    assert (a * m / (m + 1) > a / math.sqrt(3)) == (m > 1)


@pytest.mark.parametrize("a", [0.02, 0.05, 0.1])
def test_theorem_2_leaves_the_sharp_minimum_a_minimum(a) -> None:
    loss = toys.Landscape((0.0,), (toys.Dip(1.0, (0.0,), (0.05,)),))  # symmetric, monotonic
    assert loss.curvature(0.0, a) == pytest.approx(loss.gradient(a) / a, rel=1e-9)
    assert loss.curvature(0.0, a) > 0


@pytest.mark.parametrize("loss", [T1, T2], ids=["T1", "T2"])
def test_in_one_dimension_normal_noise_removes_the_sharp_minimum_earlier(loss) -> None:
    uniform = minima.last_minimum(loss, "uniform") / math.sqrt(3)  # as a standard deviation
    assert minima.last_minimum(loss, "normal") < 0.6 * uniform


# ------------------------------------------------------------------------------------------------ input


@pytest.mark.parametrize(
    "call",
    [
        partial(T1, 0.0, -0.1),
        partial(T1, 0.0, math.nan),
        partial(T1.gradient, 0.0, math.inf),
        partial(T1.curvature, 0.0, 0.1, "gaussian"),
        partial(T1.smoothed, -1.0),
        partial(T1.smoothed, 1.0, "unifrom"),
        partial(T4, 0.5),
        partial(T4, [0.1, 0.2, 0.3]),
        partial(toys.two_wells, sharp_curvature=0.0),
        partial(toys.two_wells, flat_depth=-1.0),
        partial(toys.two_wells, bowl=math.nan),
        partial(toys.bowl_with_dip, dip_width=0.0),
        partial(toys.quadratic),
        partial(toys.quadratic, 1.0, 2.0, 3.0),
        partial(toys.Landscape, (1.0,), (toys.Dip(1.0, (0.0, 0.0), (1.0, 1.0)),)),
        partial(minima.minima, T4),
    ],
)
def test_impossible_input_is_refused_in_one_sentence(call) -> None:
    refused(call)


def test_rims_are_as_high_as_the_barrier_between_the_wells() -> None:
    (first, _), (second, _) = minima.minima(T1)
    left, top, right = minima.rims(T1)
    assert left < first < top < second < right
    assert T1(left) == pytest.approx(T1(top), rel=1e-9)
    assert T1(right) == pytest.approx(T1(top), rel=1e-9)
    inside = np.linspace(left, right, 2001)
    assert T1(inside).max() == pytest.approx(T1(top), abs=1e-6)
    assert T1.gradient(top) == pytest.approx(0, abs=0.01)
    with pytest.raises(InputError, match="has 1 minima"):
        minima.rims(toys.quadratic(1.0))
