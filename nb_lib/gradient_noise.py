"""The noise of SGD itself: covariance and tails of single samples' gradients, and of the minibatches made of them.

With g_i the gradient of sample i's loss at w and ḡ their mean over all N samples, a minibatch of B drawn without
replacement has the noise ξ = η (g_B − ḡ) of covariance (NE eq. 4; c = α² + (1−α)² with noise enhancement, eq. 10)

    Cov ξ  =  c (η²/B) (N−B)/(N−1) S,     S = (1/N) Σ_i g_i g_iᵀ − ḡ ḡᵀ.

The N gradients of n numbers need not be formed.  A linear layer's part of g_i is Σ_t d_it a_itᵀ, with a_it what the
layer takes in at position t (the only one, unless it is a convolution) and d_it the gradient of the loss with respect
to what it gives out; one pass forward and one back over all samples have both.  Where there is one position,
⟨g_i, g_j⟩ = ⟨a_i, a_j⟩ ⟨d_i, d_j⟩.  These inner products hold all of S that is not zero: the N × N Gram matrix,
centered and divided by N, has the same eigenvalues.
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

from nb_lib.errors import InputError, check_alpha
from nb_lib.noise_enhancement import covariance_factor
from nb_lib.objective import Objective
from nb_lib.sample_gradients import NUMBERS, _several, gram, squared_gradient_norms

# ------------------------------------------------------------------------------------------------ size and spectrum


@dataclass(frozen=True)
class GradientDiversity:
    """How large the gradients of single samples are, compared with their mean."""

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
        return 1 + self.trace / self.gradient_norm**2 if self.gradient_norm else math.inf

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


def gradient_noise(objective: Objective, *, at: Tensor | None = None, k: int = 10) -> GradientNoise:
    """Size, largest `k` eigenvalues and effective rank of the covariance S of the gradients (NE eq. 4), exactly.

    Parameters
    ----------
    objective : Objective
        With at least two samples; memory grows as their number squared.
    at : Tensor, shape [n], optional
        A point of weight space; the network's own weights if left out.
    k : int

    Raises
    ------
    InputError
        If the network mixes samples, or the gradients are not finite.
    """
    if k < 1:
        raise InputError(f"k, the number of eigenvalues, must be at least 1, not {k}.")
    n = _several(objective)
    products = gram(objective, at=at)
    means = products.mean(0)
    covariance = (products - means - means[:, None] + means.mean()) / n
    values = torch.linalg.eigvalsh(covariance).clamp(min=0).flip(0)
    trace, square = float(values.sum()), float(values.square().sum())
    return GradientNoise(
        samples=n,
        trace=trace,
        gradient_norm=math.sqrt(max(0.0, float(means.mean()))),
        eigenvalues=tuple(values[:k].tolist()),
        effective_rank=trace**2 / square if square else 0.0,
    )


def gradient_diversity(objective: Objective, *, at: Tensor | None = None) -> GradientDiversity:
    """Gradient diversity Δ_S of Yin et al., the batch-size bound N Δ_S and tr S, without inner products.

    Parameters and errors as for `gradient_noise`; time and memory grow in proportion to the samples.
    """
    n, squares = _several(objective), squared_gradient_norms(objective, at=at)
    mean = float(objective.gradient(objective.weights if at is None else at)[1].double().norm())
    return GradientDiversity(n, max(0.0, float(squares.mean()) - mean**2), mean)


def noise_of_update(noise: GradientDiversity, B: float, *, alpha: float = 1.0, eta: float = 1.0) -> float:
    """Variance of one update, tr Cov ξ = c (η²/B) (N−B)/(N−1) tr S with c = α² + (1−α)² (NE eqs. 4 and 10).

    `alpha` = 1 is plain SGD.  `B` may be a fraction, such as ``effective_batch_size(B, alpha, n=N)``.

    Raises
    ------
    InputError
        If `B` is not between 0 and N, or `alpha` is below 1.
    """
    n = noise.samples
    if not 0 < B <= n:
        raise InputError(f"the batch size B must lie between 0 and the {n} samples, not {B!r}.")
    return covariance_factor(alpha) * eta**2 / B * (n - B) / (n - 1) * noise.trace


# --------------------------------------------------------------------------- the N x n matrix of gradients, not formed


# ------------------------------------------------------------------------------------------- factors of the gradients


# --------------------------------------------------------------------------------------------- noise of minibatches


def minibatch_noise(
    projections: Tensor, B: int, *, alpha: float = 1.0, count: int = 1000, seed: int = 0
) -> Tensor:
    """Noise α g_B + (1−α) g_B' − ḡ of `count` updates along every direction, shape [count, R], float64 (NE eq. 6).

    Each minibatch is drawn without replacement, B' independently of B; times η, it is the noise of the weights.  One
    seed draws the same B for every α.

    Parameters
    ----------
    projections : Tensor, shape [N, R]
        From `projections`; of any finite population.
    B : int
        1 to N.
    alpha : float
        At least 1; 1 is plain SGD.

    Raises
    ------
    InputError
        If `projections` is not a table, or `B`, `alpha` or `count` is out of range.
    """
    centered = _centered(projections)
    _check_batch(B, len(centered))
    if count < 1:
        raise InputError(f"count, the number of updates, must be at least 1, not {count}.")
    generator = torch.Generator(centered.device).manual_seed(seed)
    noise = check_alpha(alpha) * _minibatch_means(centered, B, count, generator)
    if alpha != 1:
        noise += (1 - alpha) * _minibatch_means(centered, B, count, generator)
    return noise


def _minibatch_means(population: Tensor, B: int, count: int, generator: torch.Generator) -> Tensor:
    n, means = len(population), []
    for some in torch.empty(count).split(max(1, NUMBERS // (8 * n))):
        keys = torch.rand(len(some), n, generator=generator, dtype=torch.float64, device=population.device)
        drawn = torch.zeros_like(keys).scatter_(1, keys.argsort(1)[:, :B], 1 / B)
        means.append(drawn @ population)
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
    multiplies the m-th by α^m + (1−α)^m.

    Parameters and errors as for `minibatch_noise`.
    """
    x = _centered(projections)
    n = len(x)
    _check_batch(B, n)
    alpha = check_alpha(alpha)
    s2, s3, s4 = ((x / B).pow(m).sum(0) for m in (2, 3, 4))
    p1, p2, p3, p4 = (math.prod((B - j) / max(1, n - j) for j in range(m)) for m in (1, 2, 3, 4))
    second = (p1 - p2) * s2
    third = (p1 - 3 * p2 + 2 * p3) * s3
    fourth = (p1 - 7 * p2 + 12 * p3 - 6 * p4) * s4 + 3 * (p2 - 2 * p3 + p4) * s2**2 - 3 * second**2
    k2, k3, k4 = (k * _sum_of_powers(alpha, m) for m, k in ((2, second), (3, third), (4, fourth)))
    return Cumulants(k2, k3 / k2**1.5, k4 / k2**2)


class CumulantRatios(NamedTuple):
    """Skewness and excess kurtosis of NE's noise over those of plain SGD's."""

    skewness: float  # at the same batch size
    kurtosis: float
    skewness_at_equal_covariance: float  # over those of SGD with B/c
    kurtosis_at_equal_covariance: float


def cumulant_ratios(alpha: float) -> CumulantRatios:
    """How much closer to a Gaussian NE's noise is than that of plain SGD.

    With σ_m = α^m + (1−α)^m, so that c = σ_2: σ_3/c^1.5 and σ_4/c² at the same batch size.  A batch of B/c, whose
    covariance is that of NE (eq. 11), has √c and c times the skewness and excess kurtosis of B, which leaves σ_3/c²
    and σ_4/c³.  The latter two hold for N much larger than B.

    >>> [round(ratio, 3) for ratio in cumulant_ratios(2)]
    [0.626, 0.68, 0.28, 0.136]
    """
    c = covariance_factor(alpha)
    third, fourth = _sum_of_powers(alpha, 3), _sum_of_powers(alpha, 4)
    return CumulantRatios(third / c**1.5, fourth / c**2, third / c**2, fourth / c**3)


def _sum_of_powers(alpha: float, m: int) -> float:
    return alpha**m + (1 - alpha) ** m


def _centered(projections: Tensor) -> Tensor:
    if projections.ndim != 2 or len(projections) < 2:
        raise InputError(
            f"projections must be a table [N, R] with a row for each of at least two samples, not of shape "
            f"{list(projections.shape)}."
        )
    projections = projections.double()
    return projections - projections.mean(0)


def _check_batch(B: int, n: int) -> None:
    if not (1 <= B <= n and int(B) == B):
        raise InputError(f"the batch size B must be a whole number from 1 to the {n} samples, not {B!r}.")


# ------------------------------------------------------------------------------------------------------------- tails

#: Anderson–Darling: 5 % of Gaussian samples with unknown mean and variance exceed it (Stephens 1986).
ANDERSON_5_PERCENT = 0.752


def tails(noise: Tensor, *, seed: int = 0) -> pd.DataFrame:
    """How far from Gaussian a noise is along random directions, as Panigrahi et al. (arXiv:1910.09626) asked.

    Parameters
    ----------
    noise : Tensor, shape [count, R]
        From `minibatch_noise`, 8 to 5000 updates.
    seed : int
        Of the Gaussian noise of the same shape that it is compared with.

    Returns
    -------
    pandas.DataFrame
        A row each for the statistics of `direction_tails` and the absolute skewness; columns ``noise`` (mean over
        the directions), ``error`` (its standard error), and ``gaussian`` and ``gaussian_error``.  The errors are
        those of the directions drawn: all directions see the same updates, so that few independent ones remain if
        the covariance has a small effective rank.  Other seeds of the noise show what the draw of updates adds.
    """
    table = direction_tails(noise)
    generator = torch.Generator().manual_seed(seed)
    reference = direction_tails(torch.randn(noise.shape, generator=generator, dtype=torch.float64))
    columns: dict[str, pd.Series] = {}
    for name, error, of in (("noise", "error", table), ("gaussian", "gaussian_error", reference)):
        of = of.assign(absolute_skewness=of["skewness"].abs())
        columns |= {name: of.mean(), error: of.sem()}
    return pd.DataFrame(columns).rename_axis("statistic")


def direction_tails(noise: Tensor) -> pd.DataFrame:
    """Skewness, excess kurtosis and tests of normality along each direction.

    Parameters
    ----------
    noise : Tensor, shape [count, R]
        8 to 5000 updates.

    Returns
    -------
    pandas.DataFrame
        R rows: ``skewness``, ``kurtosis`` (excess; both unbiased for a Gaussian), ``shapiro`` (Shapiro and Wilk's
        W), ``anderson`` (Anderson and Darling's A²), and ``shapiro_rejects`` and ``anderson_rejects``: 1 where the
        test rejects a Gaussian at 5 %.

    Raises
    ------
    InputError
        If there are too few or too many updates, or there is no noise, or it is not finite.
    """
    if noise.ndim != 2 or not 8 <= len(noise) <= 5000:
        raise InputError(
            f"noise must be of shape [count, R] with 8 to 5000 updates, not {list(noise.shape)}."
        )
    x = noise.detach().double().cpu().numpy()
    scale = x.std(0, ddof=1)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise InputError(
            "along some direction the noise is 0 or not finite: take B below N and finite projections."
        )
    x = np.sort((x - x.mean(0)) / scale, axis=0)
    w, p = stats.shapiro(x, axis=0)
    a2 = _anderson(x)
    return pd.DataFrame(
        {
            "skewness": stats.skew(x, bias=False),
            "kurtosis": stats.kurtosis(x, bias=False),
            "shapiro": w,
            "shapiro_rejects": (p < 0.05).astype(float),
            "anderson": a2,
            "anderson_rejects": (a2 * (1 + 0.75 / len(x) + 2.25 / len(x) ** 2) > ANDERSON_5_PERCENT).astype(
                float
            ),
        }
    )


def _anderson(x: np.ndarray) -> np.ndarray:
    """A² = −n − Σ (2i−1)/n [ln Φ(x_i) + ln(1 − Φ(x_{n+1−i}))] of sorted, standardized columns."""
    weights = np.arange(1, 2 * len(x), 2)[:, None] / len(x)
    return -len(x) - (weights * (log_ndtr(x) + log_ndtr(-x[::-1]))).sum(0)
