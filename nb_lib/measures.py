"""Every measure of one trained network, as one row of numbers.

>>> import torch
>>> from nb_lib.lab.data import Split
>>> model = nn.Linear(2, 2, bias=False).eval()
>>> _ = nn.init.zeros_(model.weight)  # both classes have p = 1/2: tr H is 2 p (1 − p), times the mean of |x|² = 4
>>> split = Split(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
>>> data = Data("two points", "", ("left", "right"), train=split, test=split)
>>> round(measures(model, data)["hessian_trace"], 3)
2.0
"""

from torch import nn

from nb_lib.errors import whole
from nb_lib.gradient_noise import gradient_diversity
from nb_lib.hessian import hessian_eigenvalues, hessian_trace
from nb_lib.lab.data import Data
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
    "gradient_trace": "variance of the gradients of single training samples, tr S",
}


def measures(
    model: nn.Module,
    data: Data,
    *,
    samples: int = 10_000,
    hessian_samples: int = 2_000,
    starts: int = 2,
    width: float = 0.0375,
    relative_width: float = 0.15,
) -> dict[str, float]:
    """Measure a trained network, in evaluation mode, on the first samples of its training set and of its test set.

    Parameters
    ----------
    samples, hessian_samples : int
        Most samples for the boxes, and for what costs more.
    starts : int
        Random starts of the box sharpness besides w*.
    width, relative_width : float
        Noise strengths a up to which the slopes s are taken, uniform and per filter; by default SmoothOut's own.

    Returns
    -------
    dict
        By the keys of `NAMES`, and "samples" and "hessian_samples", the numbers of samples used.
    """
    whole("samples", samples, 1)
    whole("hessian_samples", hessian_samples, 1)
    train = Objective(model, data.train.x[:samples], data.train.y[:samples])
    test = train.on(data.test.x[:samples], data.test.y[:samples])
    fewer = min(samples, hessian_samples)
    few = train.on(data.train.x[:fewer], data.train.y[:fewer])
    slope = noise_sensitivity(few, [width]).slope()
    relative_slope = noise_sensitivity(few, [relative_width], adaptive=True).slope()
    trace = hessian_trace(few)
    found = {
        "sharpness": box_sharpness(train, starts=starts).maximum,
        "sharpness_test": box_sharpness(test, starts=starts).maximum,
        "slope": slope.value,
        "slope_error": slope.error,
        "relative_slope": relative_slope.value,
        "relative_slope_error": relative_slope.error,
        "hessian_trace": trace.value,
        "hessian_trace_error": trace.error,
        "top_eigenvalue": hessian_eigenvalues(few, 1).values[0],
        "gradient_trace": gradient_diversity(few).trace,
        "samples": len(train.x),
        "hessian_samples": len(few.x),
    }
    return {name: float(value) for name, value in found.items()}
