"""Sharpness and curvature beside other people's tools, in one run, on a trained digits network and on NE's F1.

The tools are curvlinops (Hessian-vector products by another route, and trace estimators), scipy's ARPACK on top of its
products, and scipy's L-BFGS-B on a box written out here.
"""

import copy
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import fmin_l_bfgs_b
from scipy.sparse.linalg import eigsh
from sklearn.datasets import load_digits
from torch import Tensor, nn

from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.networks import build
from nb_lib.objective import Objective
from nb_lib.sharpness import box_sharpness

pytestmark = pytest.mark.slow

curvlinops = pytest.importorskip("curvlinops")


class Trained(NamedTuple):
    model: nn.Module
    x: Tensor
    y: Tensor
    objective: Objective
    hessian: object  # curvlinops' operator, its parameters in the objective's order


@pytest.fixture(scope="module", params=["digits-mlp", "ne-f1"])
def trained(request) -> Trained:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images[:120]).float().view(-1, 1, 8, 8) / 16, torch.from_numpy(labels[:120])
    if request.param == "ne-f1":
        x = F.interpolate(x, (28, 28))
    model = build(request.param, tuple(x.shape[1:]), 10, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3 if request.param == "digits-mlp" else 1e-4, fused=True)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    if request.param == "digits-mlp":
        model, x = model.double(), x.double()
    objective = Objective(model.eval(), x, y)
    theirs = copy.deepcopy(model)
    named = dict(theirs.named_parameters())
    ordered = [named.pop(name) for name in objective.flat.names]
    assert not named
    hessian = curvlinops.HessianLinearOperator(
        theirs, nn.CrossEntropyLoss(), ordered, [(x, y)], check_deterministic=False
    )
    return Trained(model, x, y, objective, hessian)


def test_hessian_products_are_curvlinops(trained) -> None:
    tolerance = 1e-10 if trained.x.dtype == torch.float64 else 1e-4
    product = trained.objective.hessian_product(trained.objective.weights)
    for seed in range(2):
        g = torch.Generator().manual_seed(seed)
        v = torch.randn(len(trained.objective), generator=g, dtype=trained.x.dtype)
        theirs = trained.hessian @ v
        assert float((product(v) - theirs).norm()) < tolerance * float(theirs.norm())


def test_the_largest_eigenvalue_is_that_of_arpack_on_curvlinops(trained) -> None:
    start = np.random.default_rng(0).normal(size=len(trained.objective))
    theirs = eigsh(trained.hessian.to_scipy(), k=1, which="LA", tol=1e-3, ncv=10, v0=start, return_eigenvectors=False)
    ours = hessian_eigenvalues(trained.objective, 1)
    print(f"largest eigenvalue: here {ours}, curvlinops with ARPACK {theirs}")
    assert ours.values == pytest.approx(theirs, rel=1e-3)


def test_the_trace_is_curvlinops_within_the_standard_errors(trained) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [float(curvlinops.hutchpp_trace(trained.hessian, 9)) for _ in range(4)]
    ours = hessian_trace(trained.objective, probes=30)
    error = np.std(theirs, ddof=1) / 2
    print(f"trace: here {ours}, curvlinops {np.mean(theirs):.4g} ± {error:.2g}")
    assert abs(ours.value - np.mean(theirs)) < 4 * np.hypot(ours.error, error)
    assert ours.error < 0.1 * ours.value


@pytest.mark.parametrize("trained", ["digits-mlp"], indirect=True)  # scipy takes seconds for each step in F1
def test_the_sharpness_is_that_of_a_search_by_scipy_written_out(trained) -> None:
    start, scipys, evaluations = keskars_sharpness(trained, epsilon=5e-4)
    ours = box_sharpness(trained.objective, epsilon=5e-4, starts=1, seed=3)
    print(f"{ours}; scipy {scipys:.4g} in {evaluations} evaluations")
    assert ours.loss == pytest.approx(start, rel=1e-5)
    assert ours.maximum == pytest.approx(scipys, rel=0.05)
    assert ours.maximum > scipys * (1 - 1e-3)


def keskars_sharpness(trained: Trained, epsilon: float) -> tuple[float, float, int]:
    """f, φ and evaluations: the box in numpy, the network's own backward pass, −f with −∇f to fmin_l_bfgs_b."""
    model = copy.deepcopy(trained.model)
    named = dict(model.named_parameters())
    parameters = [named[name] for name in trained.objective.flat.names]
    center = torch.nn.utils.parameters_to_vector(parameters).detach()
    half = epsilon * (center.abs() + 1).double().numpy()

    def negative(y: np.ndarray) -> tuple[float, np.ndarray]:
        torch.nn.utils.vector_to_parameters(center + torch.from_numpy(y).to(center), parameters)
        model.zero_grad()
        loss = F.cross_entropy(model(trained.x), trained.y)
        loss.backward()
        gradient = torch.nn.utils.parameters_to_vector([p.grad for p in parameters])
        return -float(loss.detach()), -gradient.double().numpy()

    start = -negative(np.zeros_like(half))[0]
    bounds = list(zip(-half, half, strict=True))
    _, lowest, report = fmin_l_bfgs_b(negative, np.zeros_like(half), bounds=bounds, maxiter=30)
    return start, 100 * (-lowest - start) / (1 + start), report["funcalls"]
