"""Curvature of the loss at w*: eigenvalues and trace of the Hessian, which is never formed.

>>> model = torch.nn.Linear(2, 1, bias=False).eval()
>>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # f(w) = ((2 w₁)² + w₂²)/2, so that H is diag(4, 1)
>>> f = Objective(model, x, torch.zeros(2), criterion=lambda out, y: out[:, 0] ** 2)
>>> [round(value, 4) for value in hessian_eigenvalues(f, 2).values]
[4.0, 1.0]
>>> round(hessian_trace(f, probes=6).value, 4)
5.0
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from nb_lib.errors import InputError, positive, whole
from nb_lib.objective import Objective, flattened
from nb_lib.smoothout import scaled_to_rows

_MOST = 100  # Hessian-vector products for eigenvalues, and vectors [n] kept

Product = Callable[[Tensor], Tensor]  # v [n] -> H v [n]
Numbers = NDArray[np.float64]


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"


@dataclass(frozen=True)
class HessianEigenvalues:
    """What `hessian_eigenvalues` finds."""

    values: tuple[float, ...]  # the largest first
    errors: tuple[float, ...]  # each value lies within this distance of an eigenvalue
    smallest: Estimate  # the lowest end of the spectrum: well below 0 is no minimum
    products: int  # Hessian-vector products spent

    def __str__(self) -> str:
        pairs = zip(self.values, self.errors, strict=True)
        values = ", ".join(str(Estimate(*pair)) for pair in pairs)
        return f"Hessian eigenvalues {values} (smallest {self.smallest}); {self.products} products"


def hessian_eigenvalues(
    objective: Objective, k: int = 5, *, tolerance: float = 1e-3, seed: int = 0
) -> HessianEigenvalues:
    """The `k` largest eigenvalues (not: in magnitude) of the Hessian, and the smallest, by the Lanczos method.

    A Ritz pair (θ, x) has an eigenvalue within |H x − θ x| (given as error, without rounding) of θ; that none is left
    out is certain only after n products.  Raises `InputError` if one is not finite, or there is no second derivative.

    Parameters
    ----------
    k : int
        1 to n, at most 100.
    tolerance : float
        It ends when all `k` errors are below this part of the largest eigenvalue in magnitude, or after 100 products.
    """
    n = len(objective.weights)
    whole(f"the number of eigenvalues, of {n},", k, 1, min(n, _MOST))
    positive("the tolerance", tolerance)
    theta, errors = _lanczos(objective, k, tolerance, seed)
    top = slice(None, -k - 1, -1)  # the last k, backwards
    return HessianEigenvalues(
        values=tuple(theta[top].tolist()),
        errors=tuple(errors[top].tolist()),
        smallest=Estimate(float(theta[0]), float(errors[0])),
        products=len(theta),
    )


@dataclass(frozen=True)
class HessianTrace:
    """What `hessian_trace` finds."""

    value: float
    error: float  # standard error
    adaptive: bool
    products: int  # Hessian-vector products spent

    def __str__(self) -> str:
        name = "Σ (|w_f|²/n_f) tr H_f" if self.adaptive else "tr H"
        return f"{name} = {Estimate(self.value, self.error)} (hutch++, {self.products} products)"


def hessian_trace(objective: Objective, *, probes: int = 60, adaptive: bool = False, seed: int = 0) -> HessianTrace:
    """Trace of the Hessian from products with random vectors of ±1, tr H = E v·Hv, with its standard error.

    It is exact in the space that a third of the products, which are kept, point to, and averaged in the rest (Hutch++,
    Meyer et al., arXiv:2010.09649).  Raises `InputError` if a product is not finite.

    Parameters
    ----------
    probes : int
        Hessian-vector products to spend, at least 6.
    adaptive : bool
        Σ_f (|w_f|²/n_f) tr H_f over filters or neurons f of n_f weights, what noise per filter feels.
    """
    if not isinstance(probes, Integral) or probes < 6:
        raise InputError(f"the trace by hutch++ with a standard error takes at least 6 probes, not {probes}.")
    w = objective.weights
    generator = torch.Generator(w.device).manual_seed(seed)
    product = objective.hessian_product(w)
    if adaptive:
        rows = [scaled_to_rows(torch.ones_like(w_f), w_f) for w_f in objective.rows(w)]  # |w_f| / √n_f
        product = _scaled(product, flattened(rows))
    sketched = probes // 3
    averaged = probes - 2 * sketched
    sketch = torch.stack([product(_signs(w, generator)) for _ in range(sketched)])
    basis = torch.linalg.qr(sketch.T).Q.T
    exact = float(_forms(product, basis).sum())
    outside = (_outside(_signs(w, generator), basis) for _ in range(averaged))
    rest = _forms(product, outside)
    value = exact + float(rest.mean())
    _require_finite(value)
    error = float(rest.std()) / math.sqrt(averaged)
    products = sketched + len(basis) + averaged
    return HessianTrace(value, error, adaptive, products)


def _lanczos(objective: Objective, k: int, tolerance: float, seed: int) -> tuple[Numbers, Numbers]:
    """Eigenvalues θ of H within the space of m vectors, ascending, and their errors |H x − θ x|, shapes [m]."""
    w = objective.weights
    product = objective.hessian_product(w)
    generator = torch.Generator(w.device).manual_seed(seed)
    most = min(_MOST, len(w))
    rounding = 100 * torch.finfo(w.dtype).eps
    q = w.new_empty(most, len(w))  # orthonormal rows; T = Q H Qᵀ is tridiagonal
    new = _normal(w, generator)
    alphas = []  # the diagonal of T
    betas: list[float] = []  # beside the diagonal
    for m in range(1, most + 1):
        q[m - 1] = new / torch.linalg.vector_norm(new)
        new = product(q[m - 1])
        alpha = float(q[m - 1] @ new)
        alphas.append(alpha)
        new = _outside(new, q[:m])
        new = _outside(new, q[:m])  # once would lose orthogonality, and find copies
        beta = float(torch.linalg.vector_norm(new))
        _require_finite(alpha + beta)
        theta, s = eigh_tridiagonal(alphas, betas)
        errors = beta * np.abs(s[-1])
        largest = np.abs(theta).max()
        if beta <= rounding * largest:  # H maps these vectors among themselves: look elsewhere
            beta = 0.0
            new = _outside(_normal(w, generator), q[:m])
        elif m >= k and errors[-k:].max() <= tolerance * largest:
            break
        betas.append(beta)
    return theta, errors


def _forms(product: Product, vectors: Iterable[Tensor]) -> Tensor:
    """v·Hv of each vector, float64."""
    return torch.stack([v @ product(v) for v in vectors]).double()


def _outside(v: Tensor, basis: Tensor) -> Tensor:
    """The part of v [n] orthogonal to the orthonormal rows of `basis`."""
    return v - (basis @ v) @ basis


def _normal(w: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty_like(w).normal_(generator=generator)


def _signs(w: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, w.shape, generator=generator, dtype=w.dtype, device=w.device)
    return 2 * bits - 1


def _scaled(product: Product, scales: Tensor) -> Product:
    """Make v -> D H D v of v -> H v, with D = diag(scales)."""

    def scaled(v: Tensor) -> Tensor:
        return scales * product(scales * v)

    return scaled


def _require_finite(number: float) -> None:
    if not math.isfinite(number):
        raise InputError("the Hessian is not finite there: train the network again before measuring.")
