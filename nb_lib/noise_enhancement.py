"""Noise enhancement (NE): turn up the noise of SGD at fixed learning rate and batch size.

Mori and Ueda, *Improved generalization by noise enhancement*, arXiv:2009.13094.  Two independent minibatches B_t
and B'_t of the same size B, gradients at the same weights (NE eq. 6):

    w  <-  w - eta [ alpha grad L_B(w) + (1 - alpha) grad L_B'(w) ]

The mean gradient is unchanged.  The two noises are independent with the same covariance, so the covariance of
their weighted sum is alpha^2 + (1 - alpha)^2 times that of one minibatch (NE eq. 10, second line; the first line
prints the coefficient (1 - alpha^2), a misprint for (1 - alpha)^2: with it the factor would be 1 for every alpha).
"""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from nb_lib.errors import InputError, check_alpha

if TYPE_CHECKING:  # everything here is known without loading torch
    from torch import Tensor


def noise_enhanced_loss(losses: Tensor, alpha: float | Tensor) -> Tensor:
    """Scalar α L_B + (1−α) L_B' whose gradient is the bracket of NE eq. 6, in one backward pass.

    For the backward pass only: with α > 1 one minibatch counts negatively, so report the plain mean of the losses.
    Batch normalization must not mix the two minibatches: see `ghost_batch_norm.ghost_batch_norm_`.

    Parameters
    ----------
    losses : Tensor, shape [..., 2B]
        Per-sample losses, those of B_t first.
    alpha : float or Tensor
        At least 1; a Tensor (not checked: this runs in every step) must broadcast against ``losses[..., 0]``.

    Raises
    ------
    InputError
        If the losses are averaged already, their number is odd or 0, or the number `alpha` is below 1.

    Examples
    --------
    >>> import torch
    >>> noise_enhanced_loss(torch.tensor([1.0, 2.0, 6.0, 10.0, 20.0, 60.0]), 1.5)  # 1.5 * 3 - 0.5 * 30
    tensor(-10.5000)
    """
    if isinstance(alpha, Real):
        check_alpha(alpha)
    if losses.ndim == 0:
        raise InputError("noise enhancement weights the loss of each sample: pass reduction='none' to the criterion.")
    count = losses.shape[-1]
    if count % 2 or not count:
        raise InputError(f"noise enhancement needs two minibatches of equal size, not {count} losses in all.")
    first, second = losses.unflatten(-1, (2, -1)).mean(-1).unbind(-1)
    return alpha * first + (1 - alpha) * second


def covariance_factor(alpha: float) -> float:
    """Factor c = α² + (1−α)² by which NE enlarges the covariance of the SGD noise (NE eq. 10)."""
    alpha = check_alpha(alpha)
    return alpha**2 + (1 - alpha) ** 2


def naive_covariance_factor(alpha: float) -> float:
    """Factor α² of the naive enhancement with the gradient of all samples in the place of B'_t (NE eq. 5)."""
    return check_alpha(alpha) ** 2


def noise_covariance(S: Any, n: int, B: float, *, alpha: float = 1.0, eta: float = 1.0) -> Any:
    """Covariance of the noise of one update, c (η²/B) (N−B)/(N−1) S (NE eqs. 4 and 10).

    S is the covariance of the gradients of single samples, (1/N) Σ_μ ∇ℓ_μ ∇ℓ_μᵀ − ∇L ∇Lᵀ, or its trace; n the number N
    of training samples, drawn without replacement.  B may be a fraction, such as an effective batch size.

    Raises
    ------
    InputError
        If `B` does not lie between 0 and N, or `alpha` is below 1.

    Examples
    --------
    >>> noise_covariance(3.0, n=4, B=2), noise_covariance(3.0, n=4, B=2, alpha=2)
    (1.0, 5.0)
    """
    _check_batch_size(B, n)
    return covariance_factor(alpha) * eta**2 / B * (n - B) / (n - 1) * S


def effective_batch_size(batch_size: float, alpha: float, n: int | None = None) -> float:
    """Batch size whose ordinary SGD noise has NE's covariance: B / c (NE eq. 11), for N much larger than B.

    With the number of training samples `n` given, the exact finite-N form 1 / (1/N + c (1/B − 1/N)), which follows
    from the factor (N−B)/(N−1) in NE eq. 4.
    """
    _check_batch_size(batch_size, n)
    one_by_n = _one_by(n)
    c = covariance_factor(alpha)
    return 1 / (one_by_n + c * (1 / batch_size - one_by_n))


def alpha_for(batch_size: float, effective_batch_size: float, n: int | None = None) -> float:
    """Strength α = (1 + √(2c − 1)) / 2 that makes batches as noisy as smaller ordinary ones (from NE eq. 11).

    Raises
    ------
    InputError
        If `effective_batch_size` is not in (0, batch_size]: NE only adds noise, and to all of the samples none.

    Examples
    --------
    >>> alpha_for(5000, 1000), effective_batch_size(5000, alpha=2)
    (2.0, 1000.0)
    """
    _check_batch_size(batch_size, n)
    if not 0 < effective_batch_size <= batch_size:
        raise InputError(
            f"the effective batch size must lie between 0 and the batch size {batch_size}, not {effective_batch_size}."
        )
    if effective_batch_size == batch_size:
        return 1.0
    if batch_size == n:
        raise InputError("a batch of all training samples has no noise that could be enhanced: take a smaller one.")
    one_by_n = _one_by(n)
    c = (1 / effective_batch_size - one_by_n) / (1 / batch_size - one_by_n)
    return (1 + math.sqrt(2 * c - 1)) / 2


class CumulantRatios(NamedTuple):
    """Skewness and excess kurtosis of NE's noise over those of plain SGD's."""

    skewness: float  # at the same batch size
    kurtosis: float
    skewness_at_equal_covariance: float  # over those of SGD with B/c
    kurtosis_at_equal_covariance: float


def cumulant_ratios(alpha: float) -> CumulantRatios:
    """How much closer to a Gaussian NE's noise (NE eq. 9) is than that of plain SGD.

    With σ_m = α^m + (1−α)^m, so that c = σ_2: σ_3/c^1.5 and σ_4/c² at the same batch size.  A batch of B/c, whose
    covariance is that of NE (NE eq. 11), has √c and c times the skewness and excess kurtosis of B, which leaves
    σ_3/c² and σ_4/c³.  The latter two hold for N much larger than B.
    """
    c = covariance_factor(alpha)
    third = cumulant_factor(alpha, 3)
    fourth = cumulant_factor(alpha, 4)
    return CumulantRatios(
        skewness=third / c**1.5,
        kurtosis=fourth / c**2,
        skewness_at_equal_covariance=third / c**2,
        kurtosis_at_equal_covariance=fourth / c**3,
    )


def cumulant_factor(alpha: float, m: int) -> float:
    """Factor σ_m = α^m + (1−α)^m by which NE multiplies the m-th cumulant of the noise; σ_2 is c of NE eq. 10."""
    return alpha**m + (1 - alpha) ** m


def _one_by(n: int | None) -> float:
    return 0.0 if n is None else 1 / n


def _check_batch_size(B: float, n: int | None) -> None:
    """Raise unless a batch, perhaps only an effective one (no whole number), can have the size `B`."""
    most = math.inf if n is None else n
    if not (0 < B <= most and math.isfinite(B)):
        samples = "the number of samples" if n is None else f"the {n} samples"
        raise InputError(f"the batch size must lie between 0 and {samples}, not {B!r}.")
