"""Every measure of one trained network, as one row of numbers."""

from torch import nn

from nb_lib.gradient_noise import gradient_diversity
from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.data import Data, Split
from nb_lib.noise_sensitivity import noise_sensitivity
from nb_lib.objective import Objective
from nb_lib.sharpness import box_sharpness

#: What each number of `measures` is.
NAMES = {
    "sharpness": "Keskar's sharpness of the training loss, ε = 5·10⁻⁴",
    "sharpness_test": "the same of the test loss",
    "slope": "noise sensitivity s of the training loss (SmoothOut eq. 9), per unit of a",
    "slope_error": "its standard error",
    "relative_slope": "the same for noise per filter (AdaSmoothOut)",
    "relative_slope_error": "its standard error",
    "hessian_trace": "trace of the Hessian of the training loss",
    "hessian_trace_error": "its standard error",
    "top_eigenvalue": "largest eigenvalue of that Hessian",
    "gradient_trace": "tr S: variance of the gradients of single training samples",
}


def measures(
    model: nn.Module, data: Data, *, samples: int = 10_000, hessian_samples: int = 2_000, starts: int = 2,
    width: float = 0.0375, relative_width: float = 0.15, draws: int = 20, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Measure a trained network on the first samples of its training set and on its test set.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode.
    samples, hessian_samples : int
        Most samples for box and noise, and for curvature and gradient noise, which cost more.
    starts : int
        Random starts of the box sharpness besides w*.
    width, relative_width : float
        The noise strength a up to which the slopes s are taken, uniform and per filter; the defaults are the
        SmoothOut paper's strengths.
    draws : int
        Perturbations a noise strength.

    Returns
    -------
    dict
        By the keys of `NAMES`, and "samples" and "hessian_samples", the numbers of samples used.
    """
    train = Objective(model, data.train.x[:samples], data.train.y[:samples])
    few = _first(train, data.train, min(samples, hessian_samples))
    test = _first(train, data.test, samples)
    boxes = [box_sharpness(objective, starts=starts, seed=seed).maximum for objective in (train, test)]
    slope, relative = (
        noise_sensitivity(few, [a], adaptive=adaptive, draws=draws, seed=seed).slope(a)
        for a, adaptive in ((width, False), (relative_width, True))
    )
    trace = hessian_trace(few, seed=seed)
    found = [*boxes, *slope, *relative, trace.value, trace.error]
    found += [hessian_eigenvalues(few, 1, seed=seed).values[0], gradient_diversity(few).trace]
    used = {"samples": float(len(train.x)), "hessian_samples": float(len(few.x))}
    return dict(zip(NAMES, map(float, found), strict=True)) | used


def _first(objective: Objective, split: Split, samples: int) -> Objective:
    """The objective's network on the first samples of another split."""
    return objective.on(split.x[:samples], split.y[:samples])
