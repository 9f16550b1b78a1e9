"""Noise enhancement (NE): turn up the noise of SGD at fixed learning rate and batch size.

Mori and Ueda, *Improved generalization by noise enhancement*, arXiv:2009.13094.  Two independent minibatches B_t
and B'_t of the same size B, gradients at the same weights (NE eq. 6):

    w  <-  w - eta [ alpha grad L_B(w) + (1 - alpha) grad L_B'(w) ]

The mean gradient is unchanged.  The two noises are independent with the same covariance, so the covariance of
their weighted sum is alpha^2 + (1 - alpha)^2 times that of one minibatch (NE eq. 10, second line; the first line
prints the coefficient (1 - alpha^2), a misprint for (1 - alpha)^2: with it the factor would be 1 for every alpha).
"""

import math

from torch import Tensor, nn

from nb_lib.errors import InputError, check_alpha
from nb_lib.ghost_batch_norm import GhostBatchNorm


def covariance_factor(alpha: float) -> float:
    """Factor c = α² + (1−α)² by which NE enlarges the covariance of the SGD noise (NE eq. 10).

    >>> covariance_factor(1), covariance_factor(2)
    (1.0, 5.0)
    """
    alpha = check_alpha(alpha)
    return alpha**2 + (1 - alpha) ** 2


def effective_batch_size(batch_size: float, alpha: float, n: int | None = None) -> float:
    """Batch size whose ordinary SGD noise has NE's covariance: B / c (NE eq. 11), for N much larger than B.

    With the number of training samples `n` given, the exact finite-N form 1 / (1/N + c (1/B − 1/N)), which follows
    from the factor (N−B)/(N−1) in NE eq. 4.

    >>> effective_batch_size(5000, 2)
    1000.0
    >>> round(effective_batch_size(5000, 2, n=50_000), 1)
    1087.0
    """
    rest = _check_batch(batch_size, n)
    return 1 / (rest + covariance_factor(alpha) * (1 / batch_size - rest))


def alpha_for(batch_size: float, effective_batch_size: float, n: int | None = None) -> float:
    """α ≥ 1 at which batches of `batch_size` are as noisy as ordinary ones of `effective_batch_size`.

    The inverse of `effective_batch_size`: α = (1 + √(2c − 1)) / 2.

    >>> alpha_for(5000, 1000)
    2.0

    Raises
    ------
    InputError
        If `effective_batch_size` is not in (0, batch_size]: NE only adds noise, and to all of the samples none.
    """
    rest = _check_batch(batch_size, n)
    if not 0 < effective_batch_size <= batch_size:
        raise InputError(
            f"the effective batch size must lie between 0 and the batch size {batch_size}, not {effective_batch_size}."
        )
    if effective_batch_size == batch_size:
        return 1.0
    if batch_size == n:
        raise InputError(
            "a batch of all training samples has no noise that could be enhanced: take a smaller one."
        )
    c = (1 / effective_batch_size - rest) / (1 / batch_size - rest)
    return (1 + math.sqrt(2 * c - 1)) / 2


def _check_batch(batch_size: float, n: int | None) -> float:
    """Return 1/N (0 for unlimited data) if a batch can be `batch_size` of `n` samples."""
    if not (0 < batch_size < math.inf and (n is None or batch_size <= n)):
        raise InputError(f"the batch size must lie between 0 and the number of samples, not {batch_size}.")
    return 0.0 if n is None else 1 / n


def noise_enhanced_loss(losses: Tensor, alpha: float | Tensor) -> Tensor:
    """Scalar α L_B + (1−α) L_B' whose gradient is the bracket of NE eq. 6, in one backward pass.

    For the backward pass only: with α > 1 one minibatch counts negatively, so report the plain mean of the losses.
    Batch normalization must not mix the two minibatches: see `require_separable`.

    Parameters
    ----------
    losses : Tensor, shape [..., 2B]
        Per-sample losses, those of B_t first, those of B'_t second.
    alpha : float or Tensor
        At least 1 (not checked here: this runs in every step); a Tensor must broadcast against ``losses[..., 0]``.

    Returns
    -------
    Tensor, shape [...]

    Raises
    ------
    InputError
        If the number of losses is odd.
    """
    if losses.shape[-1] % 2:
        raise InputError(
            f"noise enhancement needs two minibatches of equal size, not {losses.shape[-1]} losses in all."
        )
    first, second = losses.unflatten(-1, (2, -1)).mean(-1).unbind(-1)
    return alpha * first + (1 - alpha) * second


def require_separable(model: nn.Module) -> None:
    """Raise if `model` would normalize the two minibatches of NE together.

    Plain batch normalization over 2B samples couples B_t with B'_t; the result is a different algorithm (at
    initialization of a deep network its gradient has a cosine of 0.6 to 0.8 with NE's at B = 100 to 200).
    Convert with ``networks.ghost_batch_norm_(model, group_size, minibatches=2)``.

    Raises
    ------
    InputError
        Names the first offending layer.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        if not (isinstance(module, GhostBatchNorm) and module.minibatches == 2):
            raise InputError(
                f"{name or type(model).__name__} normalizes both minibatches of noise enhancement together: convert "
                "the model with nb_lib.ghost_batch_norm.ghost_batch_norm_(model, group_size, minibatches=2)."
            )
