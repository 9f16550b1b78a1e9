"""The noise of SGD itself: covariance and tails of single samples' gradients, and of the minibatches made of them.

With g_i the gradient of sample i's loss at w and ḡ their mean over all N samples, a minibatch of B drawn without
replacement has the noise ξ = η (g_B − ḡ) (NE eq. 3) of covariance (NE eq. 4; c = α² + (1−α)² with NE, eq. 10)

    Cov ξ  =  c (η²/B) (N−B)/(N−1) S,     S = (1/N) Σ_i g_i g_iᵀ − ḡ ḡᵀ.

The gradients need not be formed: the N × N matrix of their inner products (see `nb_lib.sample_gradients`), centered and
divided by N, has the eigenvalues of S that are not zero.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import log_ndtr
from torch import Tensor

from nb_lib.errors import InputError, check_alpha, check_batch_size, whole
from nb_lib.noise_enhancement import cumulant_factor, noise_covariance
from nb_lib.objective import Objective
from nb_lib.sample_gradients import NUMBERS, centered, gram, squared_gradient_norms

ANDERSON_5_PERCENT = 0.752  # Anderson–Darling of 5 % of Gaussian samples, mean and variance unknown (Stephens 1986)


@dataclass(frozen=True)
class GradientDiversity:
    """How large the gradients of single samples are, compared with their mean.

    >>> print(GradientDiversity(samples=100, trace=3.0, gradient_norm=1.0))
    100 samples: tr S = 3, ‖ḡ‖ = 1, diversity 0.04, batch-size bound 4
    """

    samples: int  # N
    trace: float  # tr S, the variance of a sample's gradient
    gradient_norm: float  # ‖ḡ‖

    @property
    def diversity(self) -> float:
        """Δ_S = Σ ‖g_i‖² / ‖Σ g_i‖² (Yin et al. 2018); infinite where the mean gradient vanishes."""
        return self.batch_size_bound / self.samples

    @property
    def batch_size_bound(self) -> float:
        """N Δ_S = 1 + tr S / ‖ḡ‖², up to which larger minibatches speed training up in proportion (Yin et al.)."""
        if self.gradient_norm == 0:
            return math.inf
        return 1 + self.trace / self.gradient_norm**2

    def __str__(self) -> str:
        return (
            f"{self.samples} samples: tr S = {self.trace:.4g}, ‖ḡ‖ = {self.gradient_norm:.4g}, "
            f"diversity {self.diversity:.4g}, batch-size bound {self.batch_size_bound:.4g}"
        )


@dataclass(frozen=True)
class GradientNoise(GradientDiversity):
    """The same with the shape of the noise."""

    eigenvalues: tuple[float, ...]  # of S, largest first
    effective_rank: float  # (tr S)² / tr S²: that many equal eigenvalues would do

    def __str__(self) -> str:
        values = ", ".join(f"{value:.3g}" for value in self.eigenvalues)
        return f"{super().__str__()}\neigenvalues of S {values}; effective rank {self.effective_rank:.3g}"


def gradient_noise(objective: Objective, *, k: int = 10) -> GradientNoise:
    """Size, largest `k` eigenvalues and effective rank of the covariance S of the gradients (NE eq. 4), exactly.

    Raises
    ------
    InputError
        If there is a single sample, torch has no gradient of the network, or the gradients are not finite.
    """
    whole("k, the number of eigenvalues,", k, 1)
    n = _several(objective)
    products = gram(objective)
    square_of_mean = float(products.mean(0).mean())  # ‖ḡ‖²
    values = torch.linalg.eigvalsh(centered(products) / n).clamp(min=0).flip(0)
    trace = float(values.sum())
    trace_of_square = float(values.square().sum())
    return GradientNoise(
        samples=n,
        trace=trace,
        gradient_norm=math.sqrt(max(0.0, square_of_mean)),
        eigenvalues=tuple(values[:k].tolist()),
        effective_rank=trace**2 / trace_of_square if trace_of_square else 0.0,
    )


def gradient_diversity(objective: Objective) -> GradientDiversity:
    """Gradient diversity Δ_S of Yin et al., the batch-size bound N Δ_S and tr S, without inner products.

    Errors as for `gradient_noise`; time and memory grow in proportion to the samples.
    """
    n = _several(objective)
    squares = squared_gradient_norms(objective)
    _, mean_gradient = objective.gradient(objective.weights)
    norm = float(mean_gradient.double().norm())
    trace = float(squares.mean()) - norm**2
    return GradientDiversity(n, max(0.0, trace), norm)


def noise_of_update(noise: GradientDiversity, B: float, *, alpha: float = 1.0, eta: float = 1.0) -> float:
    """Variance of one update, tr Cov ξ (NE eqs. 4 and 10): see `noise_enhancement.noise_covariance`."""
    return noise_covariance(noise.trace, noise.samples, B, alpha=alpha, eta=eta)


def _several(objective: Objective) -> int:
    n = objective.N
    if n < 2:
        raise InputError("gradients of a single sample have no noise: give at least two samples.")
    return n


def minibatch_noise(projections: Tensor, B: int, *, alpha: float = 1.0, count: int = 1000, seed: int = 0) -> Tensor:
    """Noise α g_B + (1−α) g_B' − ḡ of `count` updates along every direction, shape [count, R], float64 (NE eq. 6).

    Times η, it is the noise of the weights (NE eqs. 3, 7 to 9).  Each minibatch is drawn without replacement, B'
    independently of B.  One seed draws the same B for every α.  The table `projections` [N, R] is from
    `sample_gradients.projections`, or of any finite population.

    Raises
    ------
    InputError
        If `projections` is not a table, `B` not from 1 to N, `alpha` below 1 or `count` not positive.
    """
    population = _centered(projections)
    check_batch_size(B, len(population))
    whole("count, the number of updates,", count, 1)
    alpha = check_alpha(alpha)
    generator = torch.Generator(population.device).manual_seed(seed)
    noise = alpha * _minibatch_means(population, B, count, generator)
    if alpha > 1:
        noise += (1 - alpha) * _minibatch_means(population, B, count, generator)
    return noise


def _minibatch_means(population: Tensor, B: int, count: int, generator: torch.Generator) -> Tensor:
    n = len(population)
    most = max(1, NUMBERS // (8 * n))
    means = []
    for first in range(0, count, most):
        together = min(most, count - first)
        keys = torch.rand(together, n, generator=generator, dtype=torch.float64, device=population.device)
        drawn = keys.argsort(1)[:, :B]  # without replacement
        shares = torch.zeros_like(keys).scatter_(1, drawn, 1 / B)
        means.append(shares @ population)
    return torch.cat(means)


class Cumulants(NamedTuple):
    """Of the noise along each direction, shapes [R]."""

    variance: Tensor
    skewness: Tensor
    kurtosis: Tensor  # excess: 0 for a Gaussian


def minibatch_cumulants(projections: Tensor, B: int, *, alpha: float = 1.0) -> Cumulants:
    """What `minibatch_noise` has on average over all minibatches there are, without drawing any.

    With p_m the probability that m given samples are all in the minibatch and S_m = Σ x_i^m of the centered
    projections, the sum over a minibatch has the moments p_1 S_2 − p_2 S_2, (p_1 − 3 p_2 + 2 p_3) S_3 and
    (p_1 − 7 p_2 + 12 p_3 − 6 p_4) S_4 + 3 (p_2 − 2 p_3 + p_4) S_2².  Cumulants of independent noises add, so NE
    multiplies the m-th by α^m + (1−α)^m.  Parameters and errors as for `minibatch_noise`.

    >>> [float(value) for value in minibatch_cumulants(torch.tensor([[0.0], [2.0]]), B=1)]  # a coin
    [1.0, 0.0, -2.0]
    """
    population = _centered(projections)
    n = len(population)
    check_batch_size(B, n)
    alpha = check_alpha(alpha)
    x = population / B
    s2 = x.pow(2).sum(0)
    s3 = x.pow(3).sum(0)
    s4 = x.pow(4).sum(0)
    p1, p2, p3, p4 = (_probability_of_all(m, B, n) for m in (1, 2, 3, 4))
    second = (p1 - p2) * s2
    third = (p1 - 3 * p2 + 2 * p3) * s3
    from_singles = (p1 - 7 * p2 + 12 * p3 - 6 * p4) * s4
    from_pairs = 3 * (p2 - 2 * p3 + p4) * s2**2
    fourth = from_singles + from_pairs
    k2 = second * cumulant_factor(alpha, 2)
    k3 = third * cumulant_factor(alpha, 3)
    k4 = (fourth - 3 * second**2) * cumulant_factor(alpha, 4)
    return Cumulants(variance=k2, skewness=k3 / k2**1.5, kurtosis=k4 / k2**2)


def _probability_of_all(m: int, B: int, n: int) -> float:
    """Probability that `m` given samples of `n` are all in a minibatch of `B`."""
    return math.prod((B - j) / max(1, n - j) for j in range(m))


def _centered(projections: Tensor) -> Tensor:
    if projections.ndim != 2 or len(projections) < 2:
        raise InputError(
            "projections must be a table [N, R] with a row for each of at least two samples, not of shape "
            f"{list(projections.shape)}."
        )
    projections = projections.double()
    return projections - projections.mean(0)


def direction_tails(noise: Tensor) -> pd.DataFrame:
    """How far from Gaussian a noise is along each direction, as Panigrahi et al. (arXiv:1910.09626) asked.

    `noise` [count, R], of 8 to 5000 updates, is from `minibatch_noise`.  In R rows: ``kurtosis`` (excess, unbiased for
    a Gaussian), ``shapiro_rejects`` and ``anderson_rejects``: 1 where the test of Shapiro and Wilk, or of Anderson and
    Darling, rejects a Gaussian at 5 %.

    Raises
    ------
    InputError
        If there are too few or too many updates, or there is no noise, or it is not finite.
    """
    if noise.ndim != 2 or not 8 <= len(noise) <= 5000:
        raise InputError(f"noise must be of shape [count, R] with 8 to 5000 updates, not {list(noise.shape)}.")
    x = noise.detach().double().cpu().numpy()
    scale = x.std(0, ddof=1)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError("along some direction the noise is 0 or not finite: take B below N and finite projections.")
    x = np.sort((x - x.mean(0)) / scale, axis=0)
    count = len(x)
    corrected = _anderson(x) * (1 + 0.75 / count + 2.25 / count**2)  # for the estimated mean and variance
    columns = {
        "kurtosis": stats.kurtosis(x, bias=False),
        "shapiro_rejects": (stats.shapiro(x, axis=0).pvalue < 0.05).astype(float),
        "anderson_rejects": (corrected > ANDERSON_5_PERCENT).astype(float),
    }
    return pd.DataFrame(columns)


def _anderson(x: np.ndarray) -> np.ndarray:
    """A² = −n − Σ (2i−1)/n [ln Φ(x_i) + ln(1 − Φ(x_{n+1−i}))] of sorted, standardized columns."""
    n = len(x)
    weights = np.arange(1, 2 * n, 2)[:, None] / n
    terms = log_ndtr(x) + log_ndtr(-x[::-1])
    return -n - (weights * terms).sum(0)
