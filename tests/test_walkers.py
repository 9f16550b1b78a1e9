"""Walkers against exact laws: minibatch noise, stationary spread, both methods' mean steps, escape."""

import itertools
import math
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from scipy import integrate, stats
from shared import refused

from nb_lib import noise_enhancement, toys, walkers
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
POINTS = np.array([-1.52, -1.04, -1.0, -0.9, -0.3, 0.0, 0.41, 0.94, 1.3])
POINTS_2D = np.array([(-1.0, -0.5), (-1.04, -0.2), (-0.7, 0.4), (0.0, 0.0), (0.45, -0.4), (1.2, 0.7)])


@pytest.mark.parametrize("tails", ["normal", "heavy"])
def test_the_training_set_has_the_loss_as_its_mean_and_the_spread_asked_for(tails) -> None:
    data = walkers.samples(T1, spread=3.0, tails=tails)
    assert len(data) == 1000
    assert data.covariance() == pytest.approx(9, rel=1e-12)
    np.testing.assert_allclose(data.sample_losses(POINTS).mean(-1), T1(POINTS), atol=1e-12)
    h = 1e-4
    gradients = (data.sample_losses(0.3 + h) - data.sample_losses(0.3 - h)) / (2 * h)
    np.testing.assert_allclose(gradients, T1.gradient(0.3) - data.tilts, atol=1e-6)

    data = walkers.samples(T4, 500, spread=(2.0, 0.5), tails=tails)
    np.testing.assert_allclose(data.covariance(), np.diag([4, 0.25]), atol=1e-12)
    np.testing.assert_allclose(data.covariance(), np.cov(data.tilts.T, bias=True), atol=1e-12)
    np.testing.assert_allclose(data.sample_losses(POINTS_2D).mean(-1), T4(POINTS_2D), atol=1e-12)
    w = POINTS_2D[2]
    np.testing.assert_allclose(data.sample_losses(w), T4(w) - data.tilts @ w, rtol=1e-12)


def test_a_turned_training_set_has_its_spreads_along_the_turned_axes() -> None:
    data = walkers.samples(T4, 500, spread=(2.0, 0.5), turn=math.pi / 6)
    along = np.array([math.sqrt(3) / 2, 1 / 2])
    across = np.array([-1 / 2, math.sqrt(3) / 2])
    assert along @ data.covariance() @ along == pytest.approx(4, rel=1e-12)
    assert across @ data.covariance() @ across == pytest.approx(0.25, rel=1e-12)
    assert along @ data.covariance() @ across == pytest.approx(0, abs=1e-12)
    lengths = np.linalg.norm(walkers.samples(T4, 500, spread=(2.0, 0.5)).tilts, axis=1)
    np.testing.assert_allclose(np.linalg.norm(data.tilts, axis=1), lengths, rtol=1e-12)  # the same samples
    with pytest.raises(InputError, match="cannot be turned"):
        walkers.samples(T1, turn=0.1)


def test_a_spread_for_each_weight() -> None:
    with pytest.raises(InputError, match="one for each weight"):
        walkers.samples(T1, spread=(1.0, 2.0))


def test_independent_means_are_of_different_permutations() -> None:
    data = walkers.samples(T1, 20, spread=2.0)
    one_epoch = walkers.minibatch_means(data, 10, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(one_epoch[::2], -one_epoch[1::2], atol=1e-12)  # two halves of a permutation
    means = walkers.independent_means(data, 10, 10_000, np.random.default_rng(0))
    assert means.shape == (10_000,)
    assert abs(np.corrcoef(means[::2], means[1::2])[0, 1]) < 0.06
    assert np.mean(means**2) == pytest.approx(walkers.noise_variance(data, 10), rel=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_heavy_tails_are_heavy(seed) -> None:
    assert stats.kurtosis(walkers.samples(T1, tails="heavy", seed=seed).tilts) > 30
    assert abs(stats.kurtosis(walkers.samples(T1, seed=seed).tilts)) < 1
    first, second = walkers.samples(T4, tails="heavy", seed=seed).tilts.T
    assert min(stats.kurtosis(first), stats.kurtosis(second)) > 30


@pytest.mark.parametrize("B", [1, 2, 3, 7, 12])
def test_minibatch_noise_is_that_of_all_subsets(B) -> None:
    data = walkers.samples(T1, 12, spread=2.0, seed=3)
    subsets = np.array([np.mean(s) for s in itertools.combinations(data.tilts, B)])
    assert np.mean(subsets**2) == pytest.approx(walkers.noise_variance(data, B), rel=1e-9, abs=1e-25)  # NE eq. 4
    means = walkers.minibatch_means(data, B, 60_000, np.random.default_rng(0))
    assert means.shape == (60_000,)
    # every mean drawn is one of a subset, and none is favored (for up to 495 subsets of 60,000 draws)
    nearest = np.abs(means[:2000, None] - subsets).min(1)
    assert nearest.max() < 1e-12
    counts = np.unique(means.round(9), return_counts=True)[1]
    assert len(counts) == math.comb(12, B)
    assert stats.chi2.sf(np.sum((counts - counts.mean()) ** 2) / counts.mean(), max(1, len(counts) - 1)) > 1e-6


def test_minibatches_in_two_dimensions_keep_their_pairs() -> None:
    data = walkers.samples(T4, 11, spread=(2.0, 0.5), seed=3)
    subsets = np.array([np.mean(s, axis=0) for s in itertools.combinations(data.tilts, 4)])
    np.testing.assert_allclose(np.cov(subsets.T, bias=True), walkers.noise_variance(data, 4), atol=1e-12)
    means = walkers.minibatch_means(data, 4, 500, np.random.default_rng(0))
    assert np.abs(means[:, None] - subsets).sum(-1).min(1).max() < 1e-12


def test_all_samples_have_no_noise() -> None:
    data = walkers.samples(T1, 50)
    assert np.abs(walkers.minibatch_means(data, 50, 10, np.random.default_rng(0))).max() < 1e-15
    assert walkers.noise_variance(data, 50, alpha=3) == 0
    np.testing.assert_array_equal(
        walkers.walk(data, POINTS, eta=0.01, steps=20, B=50, alpha=2),
        walkers.walk(T1, POINTS, eta=0.01, steps=20),
    )


@pytest.mark.parametrize("alpha", [1, 1.5, 2, 7])
def test_noise_variance_has_the_factor_of_noise_enhancement(alpha) -> None:
    data = walkers.samples(T1, 200, spread=1.5)
    ratio = walkers.noise_variance(data, 10, alpha) / walkers.noise_variance(data, 10)
    assert ratio == pytest.approx(noise_enhancement.covariance_factor(alpha), rel=1e-14)
    assert walkers.noise_variance(data, 10, eta=0.1) == pytest.approx(0.01 / 10 * 190 / 199 * 2.25, rel=1e-12)


# ------------------------------------------------------------------------------------------------ walkers


def variance_z(values: np.ndarray, expected: float, extra: float = 0.0) -> float:
    """(sample variance − expected) in standard errors; `extra` is the relative one of the pool of minibatches."""
    squares = (values - values.mean()) ** 2
    error = math.hypot(squares.std() / math.sqrt(len(values)), extra * expected)
    return (squares.mean() - expected) / error


def pool_error(kurtosis: float = 0.0) -> float:
    return math.sqrt((2 + kurtosis) / walkers.POOL)


def test_without_noise_a_walk_is_gradient_descent() -> None:
    w, path = POINTS.copy(), [POINTS]
    for _ in range(50):
        w = w - 0.3 * (0.7 * w)
        path.append(w)
    np.testing.assert_array_equal(walkers.walk(toys.quadratic(0.7), POINTS, eta=0.3, steps=50), path)
    for loss, start in ((T1, POINTS), (MIXED, POINTS), (T4, POINTS_2D), (MIXED_2D, POINTS_2D)):
        w = start.copy()
        for _ in range(200):
            w = w - 0.002 * loss.gradient(w)
        path = walkers.walk(loss, start, eta=0.002, steps=200)
        assert path.shape == (201, *start.shape)
        np.testing.assert_array_equal(path[0], start)
        np.testing.assert_allclose(path[-1], w, atol=1e-11)


@pytest.mark.parametrize(("loss", "start"), [(T1, POINTS), (T4, POINTS_2D)], ids=["1d", "2d"])
def test_gradient_descent_on_the_smoothed_loss(loss, start) -> None:
    w = start.copy()
    for _ in range(30):
        w = w - 0.05 * loss.gradient(w, 0.3, "normal")
    found = walkers.walk(loss.smoothed(0.3, "normal"), start, eta=0.05, steps=30, every=30)
    np.testing.assert_allclose(found, [start, w], atol=1e-12)
    copies = walkers.walk(loss.smoothed(0.3, "normal"), start, eta=0.05, steps=1, a=0.0, copies=2)[1]
    np.testing.assert_allclose(copies, start - 0.05 * loss.gradient(start, 0.3, "normal"), atol=1e-12)


def test_recorded_steps_and_seeds() -> None:
    walk = partial(walkers.walk, walkers.samples(T1, spread=5.0), POINTS, eta=0.003, B=10, alpha=2, a=0.1)
    every = walk(steps=103)
    assert every.shape == (104, len(POINTS))
    np.testing.assert_array_equal(walk(steps=103, every=10), every[::10])
    np.testing.assert_array_equal(walk(steps=103), every)
    assert np.all(walk(steps=103, seed=1)[1:] != every[1:])
    assert walkers.walk(T1, 0.5, eta=0.1, steps=4).shape == (5, 1)
    assert walkers.walk(T4, (0.5, 0.2), eta=0.1, steps=4).shape == (5, 1, 2)


def test_blocks_of_random_numbers_do_not_repeat() -> None:
    flat = walkers.samples(toys.quadratic(0.0), spread=1.0)
    steps = np.diff(walkers.walk(flat, np.zeros(40_000), eta=1.0, steps=4, B=10, a=0.1, denoise=False), axis=0)
    for first, second in itertools.combinations(steps, 2):  # two blocks hold a step each here
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(40_000)


@pytest.mark.parametrize("alpha", [1, 1.5, 3])
@pytest.mark.parametrize("B", [1, 10, 60])
def test_the_noise_of_one_step_has_the_covariance_of_noise_enhancement(alpha, B) -> None:
    data = walkers.samples(toys.quadratic(0.0), 100, spread=2.0, seed=5)
    step = walkers.walk(data, np.zeros(100_000), eta=0.1, steps=1, B=B, alpha=alpha)[1]
    expected = (alpha**2 + (1 - alpha) ** 2) * 0.1**2 * 4 / B * (100 - B) / 99  # NE eqs. 4 and 10
    assert abs(variance_z(step, expected, pool_error())) < 4.5
    assert abs(step.mean()) < 4.5 * math.sqrt(expected / 100_000)


@pytest.mark.parametrize("alpha", [1.5, 3])
def test_the_second_minibatch_counts_negatively(alpha) -> None:
    tilts = np.random.default_rng(4).exponential(size=500)  # skewed: the sign of 1 − α shows
    data = walkers.Samples(toys.quadratic(0.0), tilts - tilts.mean())
    plain, enhanced = (walkers.walk(data, np.zeros(400_000), eta=1.0, steps=1, B=4, alpha=x)[1] for x in (1, alpha))
    assert stats.skew(plain) > 0.8
    ratio = (alpha**3 + (1 - alpha) ** 3) / (alpha**2 + (1 - alpha) ** 2) ** 1.5  # specification 2.1
    assert stats.skew(enhanced) / stats.skew(plain) == pytest.approx(ratio, abs=0.03)


def test_the_noise_in_two_dimensions() -> None:
    data = walkers.samples(toys.quadratic(0.0, 0.0), 100, spread=(2.0, 0.5))
    step = walkers.walk(data, np.zeros((100_000, 2)), eta=0.1, steps=1, B=5, alpha=2)[1]
    expected = walkers.noise_variance(data, 5, 2, 0.1)
    for i in range(2):
        assert abs(variance_z(step[:, i], expected[i, i], pool_error())) < 4.5
    assert abs(np.corrcoef(step.T)[0, 1]) < 4.5 * math.hypot(1 / math.sqrt(100_000), 1 / math.sqrt(walkers.POOL))


@pytest.mark.parametrize("eta", [0.1, 1.5])
@pytest.mark.parametrize("B", [4, 40])
@pytest.mark.parametrize("alpha", [1, 2, 4])
def test_walkers_in_a_bowl_spread_to_the_stationary_variance(alpha, B, eta) -> None:
    data = walkers.samples(toys.quadratic(0.8), 200, spread=1.5, seed=2)
    end = walkers.walk(data, np.zeros(8000), eta=eta, steps=80, B=B, alpha=alpha, every=80, seed=B)[1]
    noise = walkers.noise_variance(data, B, alpha, eta)
    rate = 0.8 * eta
    expected = noise * sum((1 - rate) ** (2 * j) for j in range(80))  # independent kicks add up
    assert abs(variance_z(end, expected, pool_error())) < 4.5
    assert walkers.stationary_variance(0.8, eta, noise) == pytest.approx(expected, rel=1e-5)


def test_noise_is_amplified_where_the_step_nearly_overshoots() -> None:
    assert walkers.stationary_variance(1.0, 1.0, 3.0) == 3.0  # every step forgets the last
    assert walkers.stationary_variance(1.0, 1.9, 3.0) == pytest.approx(walkers.stationary_variance(1.0, 0.1, 3.0))


@pytest.mark.parametrize("noise", DISTRIBUTIONS)
@pytest.mark.parametrize(("loss", "start"), [(T1, -0.9), (T2, -1.4), (T4, (-0.9, -0.3))], ids=["T1", "T2", "T4"])
def test_stochastic_smoothout_descends_the_smoothed_loss_on_average(loss, start, noise) -> None:
    starts = np.tile(start, (100_000, 1)) if loss.dim == 2 else np.full(100_000, start)
    step = np.diff(walkers.walk(loss, starts, eta=0.01, steps=1, a=0.15, distribution=noise), axis=0)[0]
    error = step.std(0) / math.sqrt(len(step))
    assert np.all(error > 0)
    assert np.all(np.abs(step.mean(0) + 0.01 * loss.gradient(start, 0.15, noise)) < 4.5 * error)


def test_both_minibatches_see_the_same_perturbation() -> None:
    # α − (α − 1) = 1: on a quadratic the spread by θ is that of plain SmoothOut, η² h² a²/3, for every α
    data = walkers.samples(toys.quadratic(2.0), spread=0.0)
    step = walkers.walk(data, np.zeros(100_000), eta=0.1, steps=1, B=10, alpha=5, a=0.3)[1]
    assert abs(variance_z(step, (0.1 * 2) ** 2 * 0.3**2 / 3)) < 4.5


def test_fixed_copies_average_their_gradients() -> None:
    for loss, start, seed in ((T1, POINTS, 0), (T4, POINTS_2D, 7)):
        path = walkers.walk(loss, start, eta=0.01, steps=2, a=0.2, copies=5, seed=seed)
        probe = walkers.walk(toys.quadratic(*[1.0] * loss.dim), start, eta=1, steps=1, a=0.2, copies=5, seed=seed)[1]
        assert np.ptp(probe, axis=0).max() < 1e-12  # w − (w + mean θ): the same copies for all walkers
        rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(4)[3])
        theta = rng.uniform(-0.2, 0.2, (loss.dim, 5)).T  # [copies, dim]
        w = start
        for _ in range(2):
            w = w - 0.01 * np.mean([loss.gradient(w + (t[0] if loss.dim == 1 else t)) for t in theta], axis=0)
        np.testing.assert_allclose(path[2], w, atol=1e-12)


def test_many_copies_approach_the_smoothed_loss() -> None:
    step = np.diff(walkers.walk(T1, POINTS, eta=1.0, steps=1, a=0.2, copies=50_000), axis=0)[0]
    np.testing.assert_allclose(step, -T1.gradient(POINTS, 0.2), atol=5 * 12 / math.sqrt(50_000))


@pytest.mark.parametrize(("noise", "each"), [("uniform", 0.04 / 3), ("normal", 0.04)])
def test_without_denoising_perturbations_accumulate(noise, each) -> None:
    walk = partial(walkers.walk, toys.quadratic(0.0), np.zeros(20_000), eta=0.1, steps=10, a=0.2, distribution=noise)
    path = walk(denoise=False)
    for step in (1, 5, 10):
        assert abs(variance_z(path[step], each * step)) < 4.5
    np.testing.assert_array_equal(walk(), 0)
    first = walkers.walk(toys.quadratic(0.5), np.zeros(9), eta=0.1, steps=1, a=0.2, denoise=False)[1]
    clean = walkers.walk(toys.quadratic(0.5), np.zeros(9), eta=0.1, steps=1, a=0.2)[1]
    np.testing.assert_allclose(first, -clean / 0.05 * 0.95)  # θ (1 − ηh) against −ηh θ


def test_a_method_more_keeps_the_other_random_numbers() -> None:
    data = walkers.samples(toys.quadratic(0.0), spread=1.0)
    walk = partial(walkers.walk, data, np.zeros(500), eta=1.0, steps=1)
    plain, enhanced = walk(B=10)[1], walk(B=10, alpha=2)[1]
    assert np.corrcoef(plain, enhanced)[0, 1] == pytest.approx(2 / math.sqrt(5), abs=0.05)  # α/√c
    many = partial(walkers.walk, data, np.zeros(40_000), eta=1.0, steps=3)  # a block of random numbers is a step here
    plain_later, enhanced_later = np.diff(many(B=10), axis=0)[2], np.diff(many(B=10, alpha=2), axis=0)[2]
    assert np.corrcoef(plain_later, enhanced_later)[0, 1] == pytest.approx(2 / math.sqrt(5), abs=0.02)
    both = walk(B=10, a=0.3, denoise=False)[1]
    np.testing.assert_allclose(both, plain + walk(a=0.3, denoise=False)[1], atol=1e-14)


def test_walkers_that_leave_become_nan_quietly(recwarn) -> None:
    path = walkers.walk(toys.quadratic(1.0, 0.1), [(1.0, 1.0), (0.0, 1.0)], eta=5.0, steps=1000)
    assert np.isnan(path[-1, 0]).all()
    assert np.isfinite(path[:, 1]).all()
    gone = np.isnan(path[:, 0, 0])
    assert np.array_equal(gone, np.isnan(path[:, 0, 1]))
    assert np.all(np.diff(gone.astype(int)) >= 0)
    assert np.isnan(walkers.walk(T3, 1.0, eta=1e200, steps=9)[-1]).all()
    assert not list(recwarn)


# ------------------------------------------------------------------------------------------------ where noise differs

TWINS = toys.two_wells(sharp_depth=1, sharp_curvature=20, flat_depth=1, flat_curvature=20, bowl=1, gap=1)
FINE = np.linspace(-2.5, 2.5, 1001)


def colder_to_the_right(w):
    return 1 - 0.6 * np.tanh(w / 0.2)


def chain(loss, eta: float, temperature: np.ndarray) -> np.ndarray:
    """Stationary density at `FINE` of steps with normal noise, by brute force: the fixed point of its kernel."""
    mean = FINE - eta * loss.gradient(FINE)
    variance = eta**2 * (2 * temperature / eta)  # of a step, from T = η V/2
    kernel = np.exp(-((FINE[:, None] - mean) ** 2) / (2 * variance))  # from each column to all rows
    kernel /= kernel.sum(0)
    equations = kernel - np.eye(len(FINE))
    equations[-1] = 1  # the sum is known in place of one of them
    of_each = np.linalg.solve(equations, np.eye(len(FINE))[-1])
    return of_each / (FINE[1] - FINE[0])


def test_the_stationary_density_under_constant_noise_is_boltzmanns() -> None:
    expected = np.exp(-T1(FINE) / 0.3)
    expected /= integrate.trapezoid(expected, FINE)
    np.testing.assert_allclose(walkers.stationary_density(T1, FINE, 0.3), expected, rtol=0.02)
    ripple = walkers.stationary_density(toys.quadratic(2.0), FINE, 0.1)
    np.testing.assert_allclose(ripple, stats.norm.pdf(FINE, scale=math.sqrt(0.05)), rtol=1e-4)


def test_no_walkers_flow_in_the_stationary_density() -> None:
    w = np.linspace(-2, 2, 40_001)
    T = 0.3 * colder_to_the_right(w)
    p = walkers.stationary_density(TWINS, w, T)
    flow = TWINS.gradient(w) * p + np.gradient(T * p, w)  # of the Fokker-Planck equation
    assert np.abs(flow).max() < 1e-5 * np.abs(TWINS.gradient(w) * p).max()


def test_steps_that_get_smaller_settle_to_the_stationary_density() -> None:
    T = 0.36 * colder_to_the_right(FINE)
    expected = walkers.stationary_density(TWINS, FINE, T)
    apart = [np.abs(chain(TWINS, eta, T) - expected).max() / expected.max() for eta in (0.012, 0.006, 0.003)]
    assert apart[2] < 0.03
    assert apart[0] / apart[1] == pytest.approx(2, abs=0.3)  # of first order in η
    assert apart[1] / apart[2] == pytest.approx(2, abs=0.3)
    left = integrate.trapezoid(expected[FINE < 0], FINE[FINE < 0])
    assert left < 0.1  # without the slope of T it would be one half
    # noise drawn between start and end of a step (Stratonovich) would leave 1/√T in front: another share
    other = expected * np.sqrt(T)
    other /= integrate.trapezoid(other, FINE)
    assert integrate.trapezoid(other[FINE < 0], FINE[FINE < 0]) > 1.5 * left


def test_walkers_settle_where_the_brute_force_says() -> None:
    eta, B, n = 0.003, 50, 4000
    data = walkers.samples(TWINS, spread=26.0)
    T = eta / 2 * walkers.noise_variance(data, B, 3.0)
    walk = partial(walkers.walk, data, eta=eta, steps=4000, every=4000, B=B, alpha=3.0)
    for profile in (np.ones_like, colder_to_the_right):
        density = chain(TWINS, eta, T * profile(FINE)) * (FINE[1] - FINE[0])
        edges = np.interp(np.linspace(0, 1, 11)[1:-1], np.cumsum(density), FINE)  # a tenth of the walkers in each bin
        end = walk(np.full(n, -0.48), profile=profile)[1]
        counts = np.bincount(np.searchsorted(edges, end), minlength=10)
        assert stats.chisquare(counts, np.full(10, n / 10)).pvalue > 1e-4


def test_a_profile_multiplies_the_variance_where_the_gradient_is_taken() -> None:
    data = walkers.samples(toys.quadratic(0.0), spread=2.0)
    walk = partial(walkers.walk, data, eta=1.0, steps=3, B=10, alpha=2)
    start = np.zeros(50_000)
    for place, factor in ((0.0, 1.0), (5.0, 0.25), (-5.0, 1.75)):
        step = walk(start + place, steps=1, profile=lambda w: 1 - 0.75 * np.sign(w))[1] - place
        assert abs(variance_z(step, factor * walkers.noise_variance(data, 10, 2), pool_error())) < 4.5
    np.testing.assert_array_equal(walk(start, profile=np.ones_like), walk(start))
    noisy = walk(np.full(50_000, 0.0), steps=1, a=1.0, profile=lambda w: (w > 0).astype(float))[1]
    assert np.mean(noisy == 0) == pytest.approx(0.5, abs=0.02)  # θ decides whether there is gradient noise
    np.testing.assert_array_equal(  # no noise, no profile: gradient descent
        walkers.walk(T1, POINTS, eta=0.01, steps=5, profile=np.zeros_like), walkers.walk(T1, POINTS, eta=0.01, steps=5)
    )


# ------------------------------------------------------------------------------------------------ equal covariance


def test_equal_covariance_but_lighter_tails() -> None:
    # B and c(2) B = 5 B have the same noise covariance for N much larger than B; the excess kurtosis of the mean of B
    # is that of a sample / B, so NE's is (α⁴ + (1−α)⁴)/c³ = 17/125 of the small batch's (specification 2.1)
    data = walkers.samples(toys.quadratic(0.0), 10_000, tails="heavy", seed=1)
    one = stats.kurtosis(data.tilts)
    walk = partial(walkers.walk, data, np.zeros(400_000), eta=1.0, steps=1)
    small, enhanced = walk(B=10)[1], walk(B=50, alpha=2)[1]
    extra = pool_error(one / 10)
    assert abs(variance_z(small, 0.1, extra)) < 4.5
    assert abs(variance_z(enhanced, 0.1, extra)) < 4.5
    ratio = stats.kurtosis(enhanced) / stats.kurtosis(small)
    assert ratio == pytest.approx(17 / 125, rel=0.25)


def test_the_fourth_cumulant_of_the_enhanced_noise() -> None:
    data = walkers.samples(toys.quadratic(0.0), 1000, tails="heavy", seed=1)
    pool = walkers.minibatch_means(data, 5, 200_000, np.random.default_rng(0))
    first, second = pool[:100_000], np.random.default_rng(1).permutation(pool[100_000:])
    for alpha in (1.5, 3):
        c = noise_enhancement.covariance_factor(alpha)
        expected = (alpha**4 + (1 - alpha) ** 4) / c**2 * stats.kurtosis(pool)
        assert stats.kurtosis(alpha * first + (1 - alpha) * second) == pytest.approx(expected, rel=0.2)


def escaped(tails: str, B: int, alpha: float) -> float:
    """Share of 1,000 walkers that have left the sharp well of T1 after 2,000 steps."""
    data = walkers.samples(T1, spread=24.0, tails=tails)
    end = walkers.walk(data, np.full(1000, -1.0), eta=0.004, steps=2000, every=2000, B=B, alpha=alpha, seed=1)[1]
    return float(np.mean(end > 0.2))


def test_escape_depends_on_more_than_the_covariance_for_heavy_tails() -> None:
    alpha = noise_enhancement.alpha_for(50, 10, n=1000)
    small, enhanced = escaped("normal", 10, 1), escaped("normal", 50, alpha)
    assert 0.01 < small < 0.1
    # 4.5 standard errors, and as much again for the two pools of minibatches, whose variances are 1 % uncertain
    assert abs(small - enhanced) < 9 * math.sqrt((small + enhanced) / 1000)
    small, enhanced = escaped("heavy", 10, 1), escaped("heavy", 50, alpha)
    assert small > enhanced + 9 * math.sqrt((small + enhanced) / 1000)


def test_noise_enhancement_leaves_the_sharp_well_and_stays_in_the_flat_one() -> None:
    data = walkers.samples(T1, spread=12.0)
    start = np.repeat([-1.0, 0.94], 500)
    walk = partial(walkers.walk, data, start, eta=0.0045, steps=1000, every=1000, B=10)
    plain, enhanced = (np.reshape(walk(alpha=alpha)[1] > 0.2, (2, 500)).mean(1) for alpha in (1, 2))
    assert plain[0] < 0.05
    assert enhanced[0] > plain[0] + 0.1
    assert plain[1] > 0.95
    assert enhanced[1] > 0.9


# ------------------------------------------------------------------------------------------------ input

DATA = walkers.samples(T1, 100)
WALK = {"eta": 0.1, "steps": 3}


@pytest.mark.parametrize(
    "call",
    [
        partial(walkers.samples, T1, 3),
        partial(walkers.samples, T1, spread=-1.0),
        partial(walkers.samples, T1, tails="fat"),
        partial(walkers.minibatch_means, DATA, 0, 5, np.random.default_rng(0)),
        partial(walkers.independent_means, DATA, 101, 5, np.random.default_rng(0)),
        partial(walkers.noise_variance, DATA, 101),
        partial(walkers.noise_variance, DATA, 10, alpha=0.5),
        partial(walkers.stationary_variance, 1.0, 2.0, 1.0),
        partial(walkers.stationary_variance, 0.0, 0.1, 1.0),
        partial(walkers.walk, T1, 0.0, **WALK, B=10),
        partial(walkers.walk, DATA, 0.0, **WALK, B=101),
        partial(walkers.walk, DATA, 0.0, **WALK, B=2.5),
        partial(walkers.walk, DATA, 0.0, **WALK, B=10, alpha=0.9),
        partial(walkers.walk, DATA, 0.0, **WALK, B=10, alpha=math.nan),
        partial(walkers.walk, DATA, 0.0, **WALK, a=-1.0),
        partial(walkers.walk, DATA, 0.0, **WALK, a=0.1, distribution="cauchy"),
        partial(walkers.walk, DATA, 0.0, **WALK, a=0.1, copies=0),
        partial(walkers.walk, DATA, 0.0, **WALK, a=0.1, copies=4, denoise=False),
        partial(walkers.walk, T1, 0.0, eta=0.0, steps=3),
        partial(walkers.walk, T1, 0.0, eta=math.inf, steps=3),
        partial(walkers.walk, T1, 0.0, eta=0.1, steps=0),
        partial(walkers.walk, T1, 0.0, eta=0.1, steps=3, every=0),
        partial(walkers.walk, T1, np.zeros((3, 2)), **WALK),
        partial(walkers.walk, T4, np.zeros(3), **WALK),
        partial(walkers.walk, T1, [], **WALK),
        partial(walkers.walk, T4, (0.5, 0.2), **WALK, profile=np.ones_like),
        partial(walkers.stationary_density, T1, POINTS, 0.0),
        partial(walkers.stationary_density, T1, POINTS, math.nan),
    ],
)
def test_impossible_input_is_refused_in_one_sentence(call) -> None:
    refused(call)


def test_the_walkers_need_no_torch() -> None:
    subprocess.run([sys.executable, "-c", "import sys, nb_lib.walkers; assert 'torch' not in sys.modules"], check=True)
