"""What came of a training: loss and accuracy on whole splits, how it ended, and its curve."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nb_lib.lab.data import Split
from nb_lib.lab.device import precision
from nb_lib.lab.runs import Run

_IMAGES_AT_ONCE = {"cpu": 500, "cuda": 10_000}  # what is fast there, and fits
_CURVE_POINTS = 200


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, networks: int, arithmetic: str) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy [K] and accuracy [K], in [0, 1], of K networks side by side, or of one, on a whole split.

    The model is left in evaluation mode; `arithmetic` is a `Run.precision`.
    """
    device = split.x.device
    at_once = _IMAGES_AT_ONCE[device.type]
    loss = torch.zeros(networks, device=device)
    right = torch.zeros(networks, device=device)
    model.eval()
    with precision(arithmetic, device):
        chunks = zip(split.x.split(at_once), split.y.split(at_once), strict=True)
        for x, y in chunks:
            images = x if networks == 1 else x.expand(networks, *x.shape)
            logits = model(images).float()
            logits = logits.view(networks, len(y), -1)
            target = y.expand(networks, -1)
            loss += F.cross_entropy(logits.mT, target, reduction="none").sum(-1)
            right += (logits.argmax(-1) == target).sum(-1)
    return loss / len(split), right / len(split)


def ending(run: Run, epoch: int, loss: float) -> str | None:
    """How a run ends after so many epochs, of which the last had this mean loss; None if it goes on.

    >>> run = Run(epochs=10, stop_below=0.01)
    >>> [ending(run, 9, 0.5), ending(run, 9, 0.001), ending(run, 10, 0.5), ending(run, 9, math.inf)]
    [None, 'converged', 'out of epochs', 'diverged']
    """
    if not math.isfinite(loss):
        return "diverged"
    if run.stop_below and loss < run.stop_below:
        return "converged"
    if epoch >= run.epochs:
        return "out of epochs" if run.stop_below else "finished"
    return None


def thinned(curve: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most 200 points of a curve, evenly spread, first and last kept."""
    if len(curve) <= _CURVE_POINTS:
        return curve
    places = np.linspace(0, len(curve) - 1, _CURVE_POINTS)
    return [curve[round(place)] for place in places]
