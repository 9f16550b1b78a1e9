"""Curvature of the loss at a point: eigenvalues and trace of the Hessian, which is never formed."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from nb_lib.errors import InputError, known
from nb_lib.objective import Measurable, flattened

TRACES = ("hutch++", "hutchinson")


_NOT_FINITE = "the Hessian is not finite there: train the network again before measuring."


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


@dataclass(frozen=True)
class HessianEigenvalues:
    """The largest eigenvalues of a Hessian, see `hessian_eigenvalues`."""

    values: tuple[float, ...]  # the largest first
    errors: tuple[float, ...]  # each value lies within this distance of an eigenvalue
    smallest: Estimate  # the lowest end of the spectrum: well below 0 is no minimum
    products: int  # Hessian-vector products spent
    vectors: Tensor = field(repr=False, compare=False)  # [k, n], of length 1

    def __str__(self) -> str:
        values = ", ".join(str(Estimate(*pair)) for pair in zip(self.values, self.errors, strict=True))
        return f"Hessian eigenvalues {values} (smallest {self.smallest}); {self.products} products"


def hessian_eigenvalues(
    objective: Measurable, k: int = 5, *, at: Tensor | None = None, iterations: int = 100, tolerance: float = 1e-3,
    seed: int = 0,
) -> HessianEigenvalues:  # fmt: skip
    """The `k` largest eigenvalues (not: in magnitude) of the Hessian, and the smallest, by the Lanczos method.

    Parameters
    ----------
    objective : Objective or the like
    k : int
        How many, 1 to n.
    at : Tensor, shape [n], optional
        Where; w* by default.
    iterations : int
        Most Hessian-vector products, at least `k`.  So many vectors [n] are kept.
    tolerance : float
        It ends when all `k` errors are below this part of the largest eigenvalue in magnitude.
    seed : int
        Of the vector it starts from.

    Raises
    ------
    InputError
        If an argument is out of range, or a product is not finite.

    Notes
    -----
    Every new vector is orthogonalized against all before, twice.  A Ritz pair (λ, x) has an eigenvalue within
    |H x − λ x| (given as error, without rounding) of λ; that none is left out is certain only after n products.
    """
    w = objective.weights if at is None else at
    n = len(objective.weights)
    if not (1 <= k <= n and iterations >= k and tolerance > 0):
        raise InputError(
            f"of {n} weights there are 1 to {n} eigenvalues, found in at least as many iterations and to a tolerance "
            f"above 0: not {k} in {iterations} to {tolerance:g}."
        )
    basis, theta, s, errors = _lanczos(
        objective.hessian_product(w), w, k, min(iterations, n), tolerance, seed
    )
    top = slice(None, -k - 1, -1)
    return HessianEigenvalues(
        values=tuple(theta[top].tolist()),
        errors=tuple(errors[top].tolist()),
        smallest=Estimate(float(theta[0]), float(errors[0])),
        products=len(theta),
        vectors=torch.from_numpy(s[:, top].T.copy()).to(w) @ basis,
    )


@dataclass(frozen=True)
class HessianTrace:
    """An estimate of the trace of a Hessian, see `hessian_trace`."""

    value: float
    error: float  # standard error
    method: str
    adaptive: bool
    products: int  # Hessian-vector products spent

    def __str__(self) -> str:
        name = "Σ (|w_f|²/n_f) tr H_f" if self.adaptive else "tr H"
        return f"{name} = {Estimate(self.value, self.error)} ({self.method}, {self.products} products)"


def hessian_trace(
    objective: Measurable, *, probes: int = 60, method: str = "hutch++", adaptive: bool = False,
    at: Tensor | None = None, seed: int = 0,
) -> HessianTrace:  # fmt: skip
    """Trace of the Hessian from products with random vectors of ±1, tr H = E v·Hv, with its standard error.

    Parameters
    ----------
    objective : Objective or the like
    probes : int
        Hessian-vector products to spend: at least 2, or 6 for ``"hutch++"``.
    method : {"hutch++", "hutchinson"}
        ``"hutchinson"`` averages v·Hv.  ``"hutch++"`` (Meyer et al., arXiv:2010.09649) takes the trace exactly in the
        space that a third of the products point to, the large eigenvalues', and averages in the rest only; it keeps
        probes/3 vectors [n].
    adaptive : bool
        Σ_f (|w_f|²/n_f) tr H_f over filters or neurons f of n_f weights, what noise per filter feels (`second_order`).
    at : Tensor, shape [n], optional
        Where; w* by default.
    seed : int

    Raises
    ------
    InputError
        If there are too few probes, or a product is not finite.
    """
    known("method", method, TRACES)
    least = 6 if method == "hutch++" else 2
    if probes < least:
        raise InputError(
            f"the trace by {method} with a standard error takes at least {least} probes, not {probes}."
        )
    w = objective.weights if at is None else at
    generator = torch.Generator(w.device).manual_seed(seed)
    product = objective.hessian_product(w)
    if adaptive:
        product = _between(product, flattened(map(_row_scale, objective.rows(w))))
    third = probes // 3 if method == "hutch++" else 0
    basis, exact = w.new_empty(0, len(w)), 0.0
    if third:
        sketch = torch.stack([product(_signs(w, generator)) for _ in range(third)])
        basis = torch.linalg.qr(sketch.T)[0].T
        exact = float(torch.stack([q @ product(q) for q in basis]).double().sum())
    averaged = []
    for _ in range(probes - 2 * third):
        v = _outside(_signs(w, generator), basis)
        averaged.append(v @ product(v))
    quadratic = torch.stack(averaged).double()
    value, error = exact + float(quadratic.mean()), float(quadratic.std()) / math.sqrt(len(quadratic))
    if not math.isfinite(value):
        raise InputError(_NOT_FINITE)
    return HessianTrace(value, error, method, adaptive, products=third + len(basis) + len(quadratic))


def _lanczos(
    product: Callable[[Tensor], Tensor], w: Tensor, k: int, most: int, tolerance: float, seed: int
) -> tuple[Tensor, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Orthonormal vectors Q [m, n], eigenvalues [m] (ascending) and -vectors [m, m] of T = Q H Qᵀ, and their errors."""
    generator = torch.Generator(w.device).manual_seed(seed)
    q, new = w.new_empty(most, len(w)), torch.empty_like(w).normal_(generator=generator)
    alphas: list[float] = []
    betas: list[float] = []
    for m in range(1, most + 1):
        q[m - 1] = new / torch.linalg.vector_norm(new)
        new = product(q[m - 1])
        alphas.append(float(q[m - 1] @ new))
        new = _outside(_outside(new, q[:m]), q[:m])  # Lanczos alone would lose orthogonality, and find copies
        beta = float(torch.linalg.vector_norm(new))
        if not math.isfinite(alphas[-1] + beta):
            raise InputError(_NOT_FINITE)
        theta, s = eigh_tridiagonal(alphas, betas)
        errors, largest = beta * np.abs(s[-1]), np.abs(theta).max()
        if (
            beta <= 100 * torch.finfo(w.dtype).eps * largest
        ):  # H maps these vectors among themselves: look elsewhere
            beta, new = 0.0, _outside(torch.empty_like(w).normal_(generator=generator), q[:m])
        elif m >= k and errors[-k:].max() <= tolerance * largest:
            break
        betas.append(beta)
    return q[:m], theta, s, errors


def _outside(v: Tensor, basis: Tensor) -> Tensor:
    """The part of v [n] orthogonal to the orthonormal rows of `basis` [m, n]."""
    return v - (basis @ v) @ basis


def _signs(w: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, w.shape, generator=generator, dtype=w.dtype, device=w.device) * 2 - 1


def _between(product: Callable[[Tensor], Tensor], scale: Tensor) -> Callable[[Tensor], Tensor]:
    """Make v -> S H S v of v -> H v, with S diagonal."""
    return lambda v: scale * product(scale * v)


def _row_scale(w: Tensor) -> Tensor:
    """|w_f| / √n_f for every weight of each row f."""
    return torch.linalg.vector_norm(w, dim=1, keepdim=True).expand_as(w) / math.sqrt(w.shape[1])
